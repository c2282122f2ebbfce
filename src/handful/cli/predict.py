"""``handful predict``: label maps for new volumes, in their own geometry."""

from pathlib import Path
from typing import Annotated

import typer

from handful.cli.console import next_command, note, progress, say
from handful.cli.options import Device, Overwrite, Quiet, Threads


def predict(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="One run, or several: their ensemble.")
    ],
    images: Annotated[
        Path, typer.Argument(metavar="IMAGES", help="One volume, a folder of volumes, or a data set.")
    ],
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for <case>.nii.gz.")],
    held_out: Annotated[
        bool,
        typer.Option("--held-out", help="Only the cases the run set aside as test; IMAGES is its data set."),
    ] = False,
    tta: Annotated[
        bool, typer.Option("--tta", help="Average over mirrored and rotated copies; slower.")
    ] = False,
    all_pieces: Annotated[
        bool,
        typer.Option("--all-pieces", help="Keep every piece of structures the plan calls one piece."),
    ] = False,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Also write a map for each class.")
    ] = False,
    uncertainty: Annotated[
        bool, typer.Option("--uncertainty", help="Also write where the model hesitates.")
    ] = False,
    dicom_seg: Annotated[
        bool, typer.Option("--dicom-seg", help="Also write <case>.dcm; IMAGES are folders of DICOM slices.")
    ] = False,
    device: Device = "auto",
    threads: Threads = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write a label map for every volume, in exactly the input's grid; several RUNs vote as an ensemble."""
    from handful.inference.predict import predict as predict_

    with progress(unit="cases", quiet=quiet) as report:
        written = predict_(
            runs,
            images,
            out,
            tta=tta,
            all_pieces=all_pieces,
            probabilities=probabilities,
            uncertainty=uncertainty,
            dicom_seg=dicom_seg,
            held_out_only=held_out,
            device=device,
            threads=threads,
            overwrite=overwrite,
            progress=report,
        )
    for prediction in written:
        for doubt in prediction.warnings:
            note(f"{prediction.case}: {doubt}")
    if not quiet:
        say(f"{len(written)} label maps in {out}")
        # the held-out cases of a data set have their references in it
        next_command("handful", "evaluate", out, images if held_out else "REFERENCES", "--out", runs[0])
