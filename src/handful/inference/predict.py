"""Label maps for new volumes, each on the grid of its own file; several runs vote as an ensemble.

Reading, computing and writing overlap. A volume that cannot be read or does not fit the model is listed at the end and
costs none of the others.
"""

import time
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

import handful
from handful.artefacts import hash_of, read_json, write_json
from handful.data.cases import Case
from handful.data.discover import open_dataset
from handful.data.io import read_image, write_float, write_label
from handful.data.plan import Plan
from handful.data.preprocess import Prepared, prepare, restore, restore_labels
from handful.data.resampling import grid_order, resampled_argmax
from handful.data.volume import Volume, times
from handful.device import choose_device, use_threads
from handful.errors import DataError, HandfulError, RunError, UsageError
from handful.inference.dicom_seg import encode_dicom_seg, expect_dicom_seg, write_dicom_seg
from handful.inference.images import find_images, is_dataset
from handful.inference.model import Model, load_model
from handful.inference.pieces import keep_largest_pieces
from handful.inference.tta import entropy

RECORD = "predictions.json"
"""What was asked for, by which weights, and what became of it; beside the label maps."""

UNLIKE_SPACING = 5.0
"""A volume whose voxels are this many times larger or smaller than the model's is another kind of image."""


class UnlikeTraining(UserWarning):
    """An image differs so much from what the model was trained on that its prediction may mean nothing."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What became of one case.

    Attributes:
        case: its name.
        status: ``written``, ``kept`` (was there already) or ``failed``.
        label: the label map, on the input's grid; None if failed.
        probabilities: 4-D file of class probabilities, if asked for.
        uncertainty: entropy of the class probabilities over its maximum, in [0, 1], if asked for.
        dicom_seg: the label map as a DICOM SEG, if asked for.
        seconds: of computing; reading and writing go on beside it.
        warnings: doubts about the image.
        error: why it failed, and what to do.
    """

    case: str
    status: Literal["written", "kept", "failed"]
    label: Path | None = None
    probabilities: Path | None = None
    uncertainty: Path | None = None
    dicom_seg: Path | None = None
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    error: str = ""


def predict(
    runs: Sequence[Path | str] | Path | str,
    images: Path | str,
    out: Path | str,
    *,
    tta: bool = False,
    all_pieces: bool = False,
    probabilities: bool = False,
    uncertainty: bool = False,
    dicom_seg: bool = False,
    held_out_only: bool = False,
    only: Collection[str] | None = None,
    device: str = "auto",
    threads: int | None = None,
    overwrite: bool = False,
    progress: Callable[[str, int, int | None], None] = lambda stage, done, total: None,
) -> list[Prediction]:
    """Write ``<case>.nii.gz`` for every volume, in exactly the grid of its file.

    Complete results that are there already are kept, so an interrupted call goes on where it stopped.

    Args:
        runs: one run folder, or several whose probabilities are averaged; they must know the same labels.
        images: a file, a folder of files, a data set or a CSV manifest (see ``find_images``).
        out: folder for the label maps and ``predictions.json``.
        tta: average over transformed copies of each image; slower.
        all_pieces: keep every piece of every structure. Otherwise classes that every run's plan flags (``one_piece``)
            keep their largest piece only.
        probabilities: also write ``<case>_probabilities.nii.gz``, one volume a class, pieces or not.
        uncertainty: also write ``<case>_uncertainty.nii.gz``, in [0, 1].
        dicom_seg: also write ``<case>.dcm``, a DICOM SEG; every image is a DICOM series (extra ``dicom``).
        held_out_only: only the cases that every run set aside as test (its ``splits.json``); ``images`` is a data set.
        only: names of the cases to predict; ``images`` is a data set. None: all.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        threads: CPU threads; None leaves torch's choice.
        overwrite: write again what is there.
        progress: called with what is being done, how many cases are done, and how many there are.

    Returns:
        One entry a case, sorted by name.

    Raises:
        UsageError: runs that do not fit each other, a folder that holds other results or the images themselves, or
            ``dicom_seg`` of images that are no DICOM series.
        DataError: the images cannot be found, or, after all others were written, some could not be predicted.

    Example:
        >>> predictions = predict("runs/two-labels", "new_scans", "new_labels")  # doctest: +SKIP
    """
    folders = [Path(runs)] if isinstance(runs, str | Path) else [Path(run) for run in runs]
    images, out = Path(images), Path(out)
    use_threads(threads)
    where = choose_device(device)
    models = [load_model(folder, device=where) for folder in folders]
    _check_agreement(models)
    if held_out_only:
        cases = _held_out(images, models)
    else:
        cases = find_images(images, channels=len(models[0].plan.channels))
    if only is not None:
        cases = [case for case in cases if case.name in set(only)]
    _protect_inputs(cases, out)
    if dicom_seg:
        expect_dicom_seg(cases, models[0].label_names)
    results = {
        case.name: _names(
            case.name, out, probabilities=probabilities, uncertainty=uncertainty, dicom_seg=dicom_seg
        )
        for case in cases
    }
    todo = [
        case for case in cases if overwrite or not all(file.is_file() for file in _files(results[case.name]))
    ]
    one_piece = () if all_pieces else _agreed_pieces(models)
    record = _Record(out, models, tta=tta, one_piece=one_piece)
    record.start(cases, keeps=[case.name for case in cases if case not in todo], overwrite=overwrite)
    done = len(cases) - len(todo)
    progress("predicting", done, len(cases))
    with ThreadPoolExecutor(1) as writer:
        waiting: Future[None] | None = None
        for case, loaded in _read_ahead(todo, models):
            if waiting is not None:
                waiting.result()  # one volume at most waits for the disk
                waiting = None
            started = time.monotonic()
            result = results[case.name]
            try:
                image, prepared = loaded.result()
                doubts = _doubts(case, image, models[0].plan)
                outputs = _compute(models, prepared, result, tta=tta, one_piece=one_piece, scratch=out)
                if dicom_seg:
                    outputs = replace(outputs, dicom_seg=_segmentation(case, outputs, models))
            except RunError:  # the disk is full: nothing more can be written
                raise
            except (MemoryError, torch.OutOfMemoryError):
                result = _failed(
                    result, f"{case.images[0]}: not enough memory for its size; try --device cpu."
                )
            except HandfulError as error:
                result = _failed(result, str(error))
            except Exception as error:  # whatever one volume provokes, the others are still wanted
                result = _failed(result, f"{case.images[0]}: {type(error).__name__}: {error}")
            else:
                for doubt in doubts:
                    warnings.warn(f"{case.name}: {doubt}", UnlikeTraining, stacklevel=2)
                result = replace(
                    result, status="written", seconds=time.monotonic() - started, warnings=doubts
                )
                waiting = writer.submit(_write, case, result, outputs, models[0])
            results[case.name] = result
            done += 1
            progress("predicting", done, len(cases))
        if waiting is not None:
            waiting.result()
    predictions = list(results.values())
    record.finish(predictions)
    failed = [prediction for prediction in predictions if prediction.status == "failed"]
    if failed:
        raise DataError(
            f"{len(failed)} of {len(cases)} volumes could not be predicted, the others are in {out}:\n  "
            + "\n  ".join(f"{prediction.case}: {prediction.error}" for prediction in failed)
        )
    return predictions


@dataclass(frozen=True)
class _Outputs:
    label: NDArray[Any]
    probabilities: NDArray[np.float32] | None
    uncertainty: NDArray[np.float32] | None
    dicom_seg: bytes | None = None


def _compute(
    models: Sequence[Model],
    prepared: Sequence[Prepared],
    wanted: Prediction,
    *,
    tta: bool,
    one_piece: Sequence[bool],
    scratch: Path,
) -> _Outputs:
    """Predict one case by every model and bring the average to the file's grid."""
    geometry, plan = prepared[0].geometry, models[0].plan
    one_grid = all(
        p.geometry.grid == geometry.grid and m.plan.axes == plan.axes for p, m in zip(prepared, models)
    )
    total: NDArray[np.float32] | None = None
    for model, case in zip(models, prepared, strict=True):
        member = model.probabilities(case.image, tta=tta, scratch=scratch)
        if not one_grid:
            member = restore(member, case.geometry, model.plan)
        if total is None:
            total = member
        else:
            total += member
        del member  # one copy of the probabilities less
    assert total is not None
    if len(models) > 1:
        total /= len(models)
    doubt = entropy(total) if wanted.uncertainty else None
    if one_grid:
        soft = restore(total, geometry, plan) if wanted.probabilities else None
        keep_largest_pieces(total, one_piece)
        return _Outputs(
            restore_labels(total, geometry, plan),
            soft,
            None if doubt is None else restore(doubt, geometry, plan),
        )
    soft = total if wanted.probabilities else None
    if soft is not None and any(one_piece):
        total = soft.copy()  # the pieces are taken from the label map, not from the probabilities
    keep_largest_pieces(total, one_piece)
    winner = resampled_argmax(total, total.shape[1:])  # equals are decided as on the plan's grid
    return _Outputs(np.asarray(plan.label_values)[winner], soft, doubt)


def _segmentation(case: Case, outputs: _Outputs, models: Sequence[Model]) -> bytes:
    hashes = [model.weights_hash for model in models]
    return encode_dicom_seg(
        outputs.label,
        series=case.images[0],
        label_names=models[0].label_names,
        weights=hashes[0] if len(hashes) == 1 else hash_of(hashes),
    )


def _write(case: Case, result: Prediction, outputs: _Outputs, model: Model) -> None:
    like = case.images[0]
    if result.probabilities and outputs.probabilities is not None:
        write_float(result.probabilities, outputs.probabilities, like=like)
    if result.uncertainty and outputs.uncertainty is not None:
        write_float(result.uncertainty, outputs.uncertainty, like=like)
    if result.dicom_seg and outputs.dicom_seg is not None:
        write_dicom_seg(result.dicom_seg, outputs.dicom_seg)
    assert result.label is not None
    write_label(
        result.label, outputs.label, like=like, label_names=model.label_names
    )  # last: it stands for all


def _read_ahead(
    cases: Sequence[Case], models: Sequence[Model]
) -> Iterator[tuple[Case, Future[tuple[Volume, list[Prepared]]]]]:
    """Yield each case with its image, which a thread reads and prepares while the one before is computed."""

    def load(case: Case) -> tuple[Volume, list[Prepared]]:
        for model in models:
            if len(case.images) != len(model.plan.channels):
                raise DataError(
                    f"it has {len(case.images)} channels ({', '.join(file.name for file in case.images)}), {model.run} "
                    f"was trained on {len(model.plan.channels)}. Give the channels it was trained on, in their order."
                )
        image = read_image(case.images)
        made: dict[str, Prepared] = {}  # runs of one data set often share their preprocessing
        prepared = []
        for model in models:
            plan = model.plan
            key = repr((plan.axes, plan.spacing_mm, plan.channels))
            if key not in made:
                made[key] = prepare(image, None, plan)
            prepared.append(made[key])
        return image, prepared

    with ThreadPoolExecutor(1) as reader:
        ahead: Future[tuple[Volume, list[Prepared]]] | None = None
        for number, case in enumerate(cases):
            current = ahead or reader.submit(load, case)
            ahead = reader.submit(load, cases[number + 1]) if number + 1 < len(cases) else None
            yield case, current


def _doubts(case: Case, image: Volume, plan: Plan) -> tuple[str, ...]:
    """Say how an image differs from anything the model can have seen."""
    doubts = []
    own = [image.spacing_mm[axis] for axis in grid_order(image.affine, plan.axes)[0]]
    for axis, spacing, planned in zip("DHW", own, plan.spacing_mm, strict=True):
        if planned is not None and not 1 / UNLIKE_SPACING < spacing / planned < UNLIKE_SPACING:
            doubts.append(
                f"its voxels are {times(own)} mm along D, H, W, the model works at {planned:.3g} mm along {axis}; is "
                "the spacing in the header right?"
            )
            break
    for number, (channel, how) in enumerate(zip(image.array, plan.channels, strict=True)):
        if channel.min() == channel.max():
            doubts.append(f"channel {number} is constant.")
        elif how.kind == "window":
            inside = float(np.mean((channel > how.low) & (channel < how.high)))
            low, high = np.percentile(channel, (1, 99))
            if inside < 0.01 or high - low < 0.05 * (how.high - how.low):
                doubts.append(
                    f"channel {number} holds values from {low:.4g} to {high:.4g}, the model expects a scan whose "
                    f"values span {how.low:.4g} to {how.high:.4g} (CT in Hounsfield units?)."
                )
    return tuple(doubts)


class _Record:
    """The file that says what a folder of predictions is: which weights made it, which cases were asked for."""

    def __init__(self, out: Path, models: Sequence[Model], *, tta: bool, one_piece: Sequence[bool]) -> None:
        self.path = out / RECORD
        self.made_by = {
            "weights": [model.weights_hash for model in models],
            "tta": tta,
            "one_piece": [name for name, flag in zip(models[0].plan.label_names, one_piece) if flag],
        }
        self.runs = [str(model.run) for model in models]
        self.cases: dict[str, dict[str, Any]] = {}

    def start(self, cases: Sequence[Case], *, keeps: Sequence[str], overwrite: bool) -> None:
        """Refuse to mix with other models' results; then write down what is asked for."""
        before = read_json(self.path) if self.path.is_file() else None
        if before is not None:
            # a record without the key is older than the choice: every piece was kept
            same = {"one_piece": [], **before["made_by"]} == self.made_by
            if keeps and not same and not overwrite:
                raise UsageError(
                    f"{self.path.parent} holds predictions of {', '.join(before['runs'])} with other weights or "
                    "settings. Choose another --out, or use --overwrite to replace them."
                )
            if same:
                self.cases = {entry["case"]: entry for entry in before["cases"]}
        for case in cases:
            if case.name not in keeps or case.name not in self.cases:
                self.cases[case.name] = {
                    "case": case.name,
                    "status": "kept" if case.name in keeps else "pending",
                }
        self._write()

    def finish(self, predictions: Sequence[Prediction]) -> None:
        """Write down what became of each case."""
        for p in predictions:
            if p.status != "kept":
                self.cases[p.case] = {
                    "case": p.case,
                    "status": p.status,
                    "seconds": round(p.seconds, 3),
                    "warnings": p.warnings,
                    "error": p.error,
                }
        self._write()

    def _write(self) -> None:
        cases = [self.cases[name] for name in sorted(self.cases)]
        write_json(
            self.path,
            {"version": handful.__version__, "runs": self.runs, "made_by": self.made_by, "cases": cases},
        )


def _names(case: str, out: Path, *, probabilities: bool, uncertainty: bool, dicom_seg: bool) -> Prediction:
    """Return where the results of a case go."""
    return Prediction(
        case=case,
        status="kept",
        label=out / f"{case}.nii.gz",
        probabilities=out / f"{case}_probabilities.nii.gz" if probabilities else None,
        uncertainty=out / f"{case}_uncertainty.nii.gz" if uncertainty else None,
        dicom_seg=out / f"{case}.dcm" if dicom_seg else None,
    )


def _files(result: Prediction) -> list[Path]:
    files = (result.label, result.probabilities, result.uncertainty, result.dicom_seg)
    return [file for file in files if file]


def _failed(result: Prediction, error: str) -> Prediction:
    for file in _files(result):
        file.unlink(missing_ok=True)  # an older result must not pass for this one
    return Prediction(case=result.case, status="failed", error=error)


def _check_agreement(models: Sequence[Model]) -> None:
    if not models:
        raise UsageError("name at least one run to predict with.")
    first = models[0]
    for model in models[1:]:
        labels = [list(zip(m.plan.label_values, m.plan.label_names, strict=True)) for m in (first, model)]
        if labels[0] != labels[1]:
            raise UsageError(
                f"{first.run} and {model.run} know different labels ({labels[0]} and {labels[1]}); only runs of the "
                "same labels can vote together."
            )
        if len(model.plan.channels) != len(first.plan.channels):
            raise UsageError(
                f"{first.run} and {model.run} expect different numbers of channels; predict with each alone."
            )


def _agreed_pieces(models: Sequence[Model]) -> tuple[bool, ...]:
    """Return which classes every run's plan calls one piece; empty if one of them says nothing about it."""
    return tuple(all(flags) for flags in zip(*(model.plan.one_piece for model in models)))


def _held_out(images: Path, models: Sequence[Model]) -> list[Case]:
    """Return the cases that every run set aside as test."""
    if not is_dataset(images):
        raise UsageError(f"--held-out needs the data set the run was trained on; {images} is not a data set.")
    dataset = open_dataset(images)
    # names only: the patients of a data set may depend on how training was told to read them
    names = set.intersection(*(set(read_json(model.run / "splits.json")["test"]) for model in models))
    if not names:
        raise DataError(
            f"no case of {images} was held out by {' and '.join(str(model.run) for model in models)}: train with "
            "--test, or leave --held-out away."
        )
    return [dataset.case(name) for name in sorted(names)]


def _protect_inputs(cases: Sequence[Case], out: Path) -> None:
    """Refuse to write among images or reference labels, whose names predictions share."""
    for case in cases:
        for file in (*case.images, *((case.label,) if case.label else ())):
            if out.resolve() in (file.resolve().parent, file.resolve()):  # a DICOM series is a folder
                raise UsageError(
                    f"--out {out} is the folder of {file.name}; choose another, so that no input is overwritten."
                )
