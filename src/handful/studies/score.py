"""Scoring, the one step that opens test labels: after all runs, and the audit log says so."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from handful.artefacts import hash_of, hash_of_file, read_json, write_json
from handful.data.cases import Dataset
from handful.data.discover import open_dataset
from handful.data.io import read_label
from handful.data.splits import Splits
from handful.errors import DataError
from handful.metrics.bootstrap import mean_score
from handful.metrics.evaluate import evaluate
from handful.metrics.summary import write_summary
from handful.studies.audit import OPENED, READ
from handful.studies.folder import StudyFolder
from handful.studies.grid import Unit

SNAPSHOT_SCORES = "scores.json"
"""In the folder of a run's snapshots: step -> mean Dice on the test cases."""


def score(
    folder: StudyFolder,
    data: Path,
    units: Sequence[Unit],
    splits: Splits,
    *,
    patients: str | None,
    report: Callable[[str, int, int | None], None] = lambda stage, done, total: None,
) -> None:
    """Score every finished run that is not scored yet; nothing is read where there is none.

    Args:
        folder: of the study.
        data: the data set itself, labels and all.
        units: runs of the study.
        splits: names the test cases.
        patients: see ``open_dataset``.
        report: called with how many runs are scored.

    Raises:
        DataError: a test label is damaged or lies on another grid than its image, or they are not those that were
            opened before.
    """
    todo = [unit for unit in units if folder.finished(unit) and not folder.scored(unit)]
    if not todo:
        return
    # said first, then done: a study killed here has opened them as far as anyone can tell
    folder.audit.add(
        OPENED,
        cases=len(splits.test),
        list=hash_of(sorted(splits.test)),
        runs=[str(unit.place) for unit in todo],
        predictions=hash_of([_prediction_hashes(folder.run(unit)) for unit in todo]),
    )
    dataset = open_dataset(data, patients=patients)
    hashes = _label_hashes(dataset, splits.test)
    _refuse_changed(folder, hashes)
    folder.audit.add(READ, labels=hash_of(sorted(hashes.items())), files=hashes)
    names = dict(dataset.label_names)
    of_patient = {case.name: case.patient for case in dataset.cases} if dataset.patients_from else {}
    for number, unit in enumerate(todo):
        report("scoring", number, len(todo))
        run = folder.run(unit)
        _score_snapshots(run, dataset, splits.test, names)
        summary = evaluate(
            run / "predictions", data, labels=names, cases=splits.test, patients=of_patient or None
        )
        if summary.problems:
            raise DataError(
                "not every test case can be scored:\n  "
                + "\n  ".join(summary.problems)
                + "\nMend them and run the "
                "same command again; all trainings and predictions are kept."
            )
        write_summary(run, summary)  # last: it says that the run is scored
    report("scoring", len(todo), len(todo))


def dice_of_labels(
    prediction: np.ndarray, reference: np.ndarray, values: Sequence[int], *, ignore_value: int | None = None
) -> list[float]:
    """Return the Dice of each value, NaN where both are empty, as ``metrics.scores`` has it."""
    if ignore_value is not None:
        ignored = reference == ignore_value
        prediction, reference = np.where(ignored, 0, prediction), np.where(ignored, 0, reference)
    found = []
    for value in values:
        p, r = prediction == value, reference == value
        size = int(p.sum()) + int(r.sum())
        found.append(2 * int((p & r).sum()) / size if size else float("nan"))
    return found


def _score_snapshots(run: Path, dataset: Dataset, cases: Sequence[str], names: Mapping[int, str]) -> None:
    values = [value for value in names if value not in (0, dataset.ignore_value)]
    steps = {
        int(place.name.removeprefix("step-")): place
        for place in (run / "snapshots").glob("step-*")
        if place.is_dir()
    }
    if not steps:
        return
    tables: dict[int, list[list[float]]] = {step: [] for step in sorted(steps)}
    for name in cases:
        file = dataset.case(name).label
        assert file is not None
        reference = read_label(file).array
        looked_for = dataset.case(name).annotated or values
        for step, rows in tables.items():
            prediction = read_label(steps[step] / f"{name}.nii.gz").array
            dice = dice_of_labels(prediction, reference, values, ignore_value=dataset.ignore_value)
            rows.append([one if value in looked_for else float("nan") for value, one in zip(values, dice)])
    write_json(
        run / "snapshots" / SNAPSHOT_SCORES,
        {str(step): _number(mean_score(rows)) for step, rows in tables.items()},
    )


def _label_hashes(dataset: Dataset, cases: Sequence[str]) -> dict[str, str]:
    hashes = {}
    for name in cases:
        file = dataset.case(name).label
        if file is None:
            raise DataError(f"{name} is a test case and has lost its label; restore it to score the study.")
        hashes[name] = hash_of_file(file)
    return hashes


def _refuse_changed(folder: StudyFolder, hashes: Mapping[str, str]) -> None:
    """Refuse to score one part of a study on other labels than the rest."""
    before = [event for event in folder.audit.read() if event.get("files")]
    known: Mapping[str, str] = before[-1]["files"] if before else {}
    changed = sorted(name for name in known if known[name] != hashes.get(name))
    if changed and any((place / "summary.json").is_file() for place in folder.runs.glob("*/*/*")):
        raise DataError(
            f"the labels of {len(changed)} test cases ({', '.join(changed[:5])}) are not those that were opened on "
            f"{before[-1]['time']}, by which runs of this study are scored. Restore them; or, to score all runs anew "
            f"by the labels as they are now, delete {folder.runs}/*/*/*/summary.json. No training is lost by it."
        )


def _prediction_hashes(run: Path) -> dict[str, str]:
    """Return a hash of each label map of a run, snapshots included: they were made before the labels were opened."""
    files = sorted([*run.glob("predictions/*.nii.gz"), *run.glob("snapshots/*/*.nii.gz")])
    return {str(file.relative_to(run)): hash_of_file(file) for file in files}


def snapshot_scores(run: Path) -> dict[int, float]:
    """Return step -> mean Dice of a run's snapshots; {} if there were none."""
    file = run / "snapshots" / SNAPSHOT_SCORES
    if not file.is_file():
        return {}
    found: dict[str, float | None] = read_json(file)
    return {int(step): dice for step, dice in found.items() if dice is not None}


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value
