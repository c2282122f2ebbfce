"""Compare a folder of predictions with their references: every case and class, means, intervals, what is missing."""

import os
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from handful.artefacts import hash_of, hash_of_file, read_json
from handful.data.cases import Dataset
from handful.data.discover import open_dataset, scan_dataset
from handful.data.io import SUFFIXES, read_label, read_label_names, stem_of, suffix_of
from handful.data.plan import read_plan
from handful.data.volume import grid_difference
from handful.errors import DataError, HandfulError
from handful.metrics.scores import TOLERANCE_MM, ClassScore, score_case
from handful.metrics.summary import Summary, summarise, write_summary

COMPANIONS = ("_probabilities", "_uncertainty")
"""What ``predict`` writes beside the label maps."""

RECORD = "predictions.json"
"""The list ``predict`` keeps of what it was asked for and what became of it."""


class References(NamedTuple):
    """What predictions are compared with.

    Attributes:
        files: case -> label map.
        patients: case -> patient; empty if nothing says so.
        labels: value -> name, or None if nothing says so.
        ignore_value: value that means "no label here", or None.
        annotated: case -> values of the structures annotated in it, of cases where not all were.
        complete: whether every reference must have a prediction (a plain folder of labels).
    """

    files: Mapping[str, Path]
    patients: Mapping[str, str]
    labels: Mapping[int, str] | None
    ignore_value: int | None
    annotated: Mapping[str, Collection[int]]
    complete: bool


def evaluate(
    predictions: Path | str,
    references: Path | str,
    *,
    labels: Path | str | Mapping[int, str] | None = None,
    out: Path | str | None = None,
    cases: Collection[str] | None = None,
    tolerance_mm: float = TOLERANCE_MM,
    patients: Mapping[str, str] | None = None,
    bootstrap: int = 2000,
    seed: int = 0,
) -> Summary:
    """Score label maps against references of the same case names.

    Which cases are expected: those in ``cases``; else those ``predict`` was asked for (its ``predictions.json``); else
    all references, or, where the references are a data set of which usually only a part is predicted, all cases with a
    prediction. An expected case that is missing, damaged or on another grid becomes one of ``Summary.problems``, and
    the others are scored all the same.

    Args:
        predictions: a folder of label maps ``<case>.nii.gz``, or one file.
        references: a folder of label maps, a data set's folder, its ``dataset.json`` or CSV manifest, or one file.
        labels: value -> name, or a data set or ``plan.yaml`` that says so. None: the references' data set, the
            ``dataset.json`` beside a folder of labels, the names embedded in the predictions, or else the values found.
        out: folder for ``summary.json`` and ``scores.csv``; None writes nothing.
        cases: the cases that must be scored.
        tolerance_mm: of the normalised surface Dice.
        patients: case -> patient; None: the data set's; else every case is its own patient and the notes say so.
        bootstrap: draws of patients for the intervals.
        seed: of the draws.

    Raises:
        DataError: nothing at all can be scored; the message says why, case by case.
    """
    predictions = Path(predictions)
    found = _label_maps(predictions)
    known = _references(Path(references))
    files = known.files
    if len(found) == 1 and len(files) == 1 and predictions.is_file():
        files = {
            next(iter(found)): next(iter(files.values()))
        }  # two files given by hand need not have one name
    notes: list[str] = []
    asked = cases if cases is not None else _asked_for(predictions)
    wanted = _wanted(found, files, asked, complete=known.complete, notes=notes)
    problems = [_missing(case, predictions, Path(references), found, files) for case in wanted]
    pairs = [case for case, problem in zip(wanted, problems, strict=True) if not problem]
    if not pairs:
        raise DataError(
            f"{predictions} and {references} have no case in common: predictions are called like their references, for "
            f"example {_examples(found)} and {_examples(files)}."
        )
    names = _labels(labels, known, [found[case] for case in pairs], [files[case] for case in pairs], notes)
    patient_of = patients if patients is not None else known.patients
    if in_part := sorted(set(pairs) & set(known.annotated)):
        notes.append(
            f"{len(in_part)} case(s) are annotated in part; of them only what was annotated is scored: "
            f"{', '.join(in_part[:5])}{', ...' if len(in_part) > 5 else ''}."
        )
    if not patient_of:
        notes.append("every case counts as its own patient: nothing says which cases belong together.")

    def score(case: str) -> list[ClassScore] | str:
        try:
            return _score(case, found[case], files[case], names, known, tolerance_mm, patient_of, notes)
        except HandfulError as error:
            return str(error)

    with ThreadPoolExecutor(min(len(pairs), os.cpu_count() or 1)) as pool:
        results = list(pool.map(score, pairs))
        hashes = list(pool.map(hash_of_file, [file for case in pairs for file in (found[case], files[case])]))
    failures = [problem for problem in problems if problem] + [
        result for result in results if isinstance(result, str)
    ]
    scores = [row for result in results if not isinstance(result, str) for row in result]
    if not scores:
        raise DataError("no case could be scored:\n  " + "\n  ".join(failures))
    summary = summarise(
        scores,
        tolerance_mm=tolerance_mm,
        bootstrap=bootstrap,
        seed=seed,
        made_from={"predictions": str(predictions), "references": str(references), "hash": hash_of(hashes)},
        problems=failures,
        notes=sorted(notes),
    )
    if out is not None:
        write_summary(Path(out), summary)
    return summary


def _score(
    case: str,
    prediction_file: Path,
    reference_file: Path,
    labels: Mapping[int, str],
    known: References,
    tolerance_mm: float,
    patients: Mapping[str, str],
    notes: list[str],
) -> list[ClassScore]:
    prediction, reference = read_label(prediction_file), read_label(reference_file)
    if difference := grid_difference(prediction.grid, reference.grid):
        raise DataError(
            f"{prediction_file} and {reference_file} lie on different grids: {difference}. Resample the prediction to "
            "the grid of its reference."
        )
    declared = {0, *labels, *({known.ignore_value} if known.ignore_value is not None else ())}
    for file, volume in ((prediction_file, prediction), (reference_file, reference)):
        undeclared = sorted(set(np.unique(volume.array).tolist()) - declared)
        if undeclared:
            notes.append(
                f"{file} holds label values without a name, which are not scored: {undeclared[:10]}."
            )
    return score_case(
        prediction.array[0],
        reference.array[0],
        spacing_mm=reference.spacing_mm,
        labels={v: name for v, name in labels.items() if v in known.annotated.get(case, labels)},
        tolerance_mm=tolerance_mm,
        ignore_value=known.ignore_value,
        case=case,
        patient=patients.get(case, case),
    )


def _label_maps(place: Path) -> dict[str, Path]:
    """Return case -> file of a folder of label maps, what ``predict`` writes beside them left out."""
    if not place.exists():
        raise DataError(f"{place} does not exist.")
    files = (
        [place]
        if place.is_file()
        else sorted(f for f in place.iterdir() if suffix_of(f) and f.name[0] != ".")
    )
    found: dict[str, Path] = {}
    for file in files:
        case = stem_of(file)
        if case in found:
            raise DataError(
                f"{found[case]} and {file} are both the label map of '{case}'; remove one of them."
            )
        found[case] = file
    for case in list(found):
        base = next((case.removesuffix(ending) for ending in COMPANIONS if case.endswith(ending)), None)
        if base in found:
            del found[case]
    if not found:
        raise DataError(f"{place} holds no label maps (files ending in {', '.join(SUFFIXES)}).")
    return found


def _references(place: Path) -> References:
    """Read what the references are: a data set, or a plain folder of label maps with perhaps a data set around it."""
    if not place.exists():
        raise DataError(f"{place} does not exist.")
    plain = (
        place.is_file() if suffix_of(place) else place.is_dir() and any(suffix_of(f) for f in place.iterdir())
    )
    if not plain:
        dataset = open_dataset(place)
        files = {case.name: case.label for case in dataset.cases if case.label is not None}
        return References(
            files,
            _patients(dataset),
            dataset.label_names,
            dataset.ignore_value,
            _annotated(dataset),
            complete=False,
        )
    files = _label_maps(place)
    around = place.parent if place.is_dir() else place.parent.parent
    # for its names only: what is wrong with its images does not matter here
    context = scan_dataset(around).dataset if (around / "dataset.json").is_file() else None
    if context is None:
        return References(files, {}, None, None, {}, complete=True)
    return References(
        files,
        _patients(context),
        context.label_names,
        context.ignore_value,
        _annotated(context),
        complete=True,
    )


def _annotated(dataset: Dataset) -> dict[str, tuple[int, ...]]:
    return {case.name: case.annotated for case in dataset.cases if case.annotated is not None}


def _patients(dataset: Dataset) -> dict[str, str]:
    return {case.name: case.patient for case in dataset.cases} if dataset.patients_from else {}


def _asked_for(predictions: Path) -> list[str] | None:
    """Return the cases ``predict`` was asked for, failed ones included, or None if another tool made the folder."""
    record = predictions / RECORD
    return [case["case"] for case in read_json(record)["cases"]] if record.is_file() else None


def _wanted(
    found: Mapping[str, Path],
    files: Mapping[str, Path],
    asked: Collection[str] | None,
    *,
    complete: bool,
    notes: list[str],
) -> list[str]:
    """Return the cases that must be scored, sorted; say what is left out."""
    if asked is not None:
        if others := len(set(found) - set(asked)):
            notes.append(f"{others} predictions are of cases that were not asked for; they are not scored.")
        return sorted(asked)
    if complete:
        return sorted({*found, *files})
    if left := len(set(files) - set(found)):
        notes.append(f"{left} labelled cases of the data set have no prediction; they are not in the means.")
    return sorted(found)


def _missing(
    case: str, predictions: Path, references: Path, found: Mapping[str, Path], files: Mapping[str, Path]
) -> str:
    """Say what is missing of a case; "" if nothing is."""
    if case not in files:
        return f"{case}: there is no reference in {references}; add its label map or remove the prediction."
    if case not in found:
        return f"{case}: there is no prediction in {predictions}; predict it, or name the cases to score."
    return ""


def _labels(
    given: Path | str | Mapping[int, str] | None,
    known: References,
    predictions: Sequence[Path],
    references: Sequence[Path],
    notes: list[str],
) -> dict[int, str]:
    """Return value -> name without background, from the best source there is."""
    names: Mapping[int, str]
    if isinstance(given, Mapping):
        names = given
    elif given is not None:
        names = _names_of(Path(given))
    elif known.labels is not None:
        names = known.labels
    else:
        names = read_label_names(predictions[0]) if suffix_of(predictions[0]).startswith(".nii") else {}
        if not names:
            values = set().union(*(np.unique(read_label(file).array).tolist() for file in references))
            names = {int(value): str(value) for value in sorted(values)}
            notes.append(
                "nothing gives the labels names (--labels dataset.json does); classes are called by their values."
            )
    names = {int(value): name for value, name in names.items() if value != 0}
    if not names:
        raise DataError(
            "there is no class to score besides background; give the label names with --labels dataset.json."
        )
    return names


def _names_of(source: Path) -> Mapping[int, str]:
    """Read the label names of a plan or of a data set."""
    if source.suffix in (".yaml", ".yml"):
        plan = read_plan(source)
        return dict(zip(plan.label_values, plan.label_names, strict=True))
    return open_dataset(source).label_names


def _examples(names: Mapping[str, Path]) -> str:
    return " or ".join(file.name for file in list(names.values())[:2]) or "none"
