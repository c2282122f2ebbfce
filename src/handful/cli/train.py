"""``handful train``: from a folder to a segmentation model."""

from pathlib import Path
from typing import Annotated

import typer

from handful.cli.console import next_command, say, training_progress
from handful.cli.options import (
    Data,
    Device,
    Draw,
    Labels,
    MethodName,
    Overwrite,
    Patients,
    Precision,
    Quiet,
    Seed,
    SplitsFile,
    Test,
    Threads,
)


def train(
    data: Data,
    *,
    out: Annotated[
        Path, typer.Option(metavar="RUN", help="Folder of the run; an unfinished one goes on exactly.")
    ],
    method: MethodName = None,
    labels: Labels = None,
    draw: Draw = 0,
    test: Test = None,
    splits: SplitsFile = None,
    fold: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Set fold N of the labelled cases aside and score it."),
    ] = None,
    patients: Patients = None,
    plan: Annotated[Path | None, typer.Option(metavar="FILE", help="A plan.yaml, perhaps edited.")] = None,
    recipe: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A recipe.yaml, of another run perhaps.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="One setting of the recipe; repeatable."),
    ] = None,
    init: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Start from the weights of another run.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Length of the training.")] = None,
    max_time: Annotated[
        str | None, typer.Option(metavar="TIME", help="Or its duration: 90s, 20m, 1h30m.")
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Threads = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write TensorBoard's event files.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Decide and print everything; train nothing.")
    ] = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Train a segmentation model; whatever is missing before (plan, cache, splits) is made on the way.

    The same command with the same --out continues an unfinished run and says so of a finished one.
    """
    from handful.training import run

    with training_progress(quiet=quiet or dry_run) as report:
        run.train(
            data,
            out,
            method=method,
            labels=labels,
            draw=draw,
            test=test,
            splits=splits,
            fold=fold,
            seed=seed,
            steps=steps,
            max_time=max_time,
            plan=plan,
            patients=patients,
            recipe=recipe,
            set_=set_ or (),
            device=device,
            precision=precision,
            threads=threads,
            overwrite=overwrite,
            quiet=quiet,
            tensorboard=tensorboard,
            init=init,
            dry_run=dry_run,
            report=report,
        )
    if quiet:
        return
    if dry_run:
        say("Nothing was trained; the same command without --dry-run does it.")
    else:
        next_command("handful", "predict", out, data, "--held-out", "--out", out / "predictions")
