"""Who may be suggested: images that may train and whose label is not known; never a test case or a test patient's."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from handful.artefacts import read_json
from handful.data.cases import Case, Dataset
from handful.data.discover import open_dataset
from handful.data.splits import Splits, make_splits, read_splits
from handful.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Roster:
    """The cases of a suggestion.

    Attributes:
        dataset: all cases.
        labelled: their labels count as known.
        candidates: the cases to choose from; their labels, if files have any, are hidden (``label`` is None).
        test: names of the labelled cases that are held out, but for the data set's own test cases.
        held_out: how many labelled cases are held out, those included.
        hidden: names of candidates that have a label file outside the budget: a choice made in hindsight.
    """

    dataset: Dataset
    labelled: tuple[Case, ...]
    candidates: tuple[Case, ...]
    test: tuple[str, ...]
    held_out: int
    hidden: frozenset[str]

    @property
    def patients(self) -> tuple[str, ...]:
        """Patients of the candidates, sorted."""
        return tuple(sorted({case.patient for case in self.candidates}))


def make_roster(
    data: Path,
    *,
    labels: str | None = None,
    draw: int = 0,
    test: str | None = None,
    splits: Path | None = None,
    seed: int = 0,
    patients: str | None = None,
    runs: Sequence[Path] = (),
) -> Roster:
    """Divide a data set into labelled cases, candidates and test cases.

    Without ``test`` and ``splits``, what ``runs`` held out is held out again, by name, whatever was labelled since.

    Args:
        data, labels, draw, test, splits, seed, patients: as for training; ``labels`` hides all labels but the budget's.
        runs: run folders.

    Raises:
        UsageError: no candidate, or an impossible budget.
        DataError: the data set cannot be read, or ``splits`` is of another.
    """
    dataset = open_dataset(data, patients=patients)
    if splits is not None:
        parts = read_splits(splits, dataset)
    else:
        parts = make_splits(dataset, test=test, seed=seed, draws=draw + 1)
        if test is None:
            parts = _without(parts, _aside(runs, dataset))
    if labels is None:
        labelled = tuple(case for case in parts.pool if case.label is not None)
        candidates = tuple(case for case in parts.pool if case.label is None)
    else:
        selection = parts.select(labels, draw)
        labelled, candidates = selection.labelled, selection.unlabelled
    if not candidates:
        all_labelled = (
            "every case that may train has a label" if labels is None else f"--labels {labels} is all"
        )
        raise UsageError(
            f"{dataset.name}: {all_labelled}, so there is nothing left to suggest. Add images without labels, or give "
            "--labels a smaller budget to choose as if only those labels were known."
        )
    unknown = {case.name for case in candidates}
    return Roster(
        dataset=dataset,
        labelled=labelled,
        candidates=candidates,
        test=tuple(name for name in parts.test if not dataset.case(name).held_out),
        held_out=len(parts.test),
        hidden=frozenset(
            case.name for case in dataset.cases if case.label is not None and case.name in unknown
        ),
    )


def _aside(runs: Sequence[Path], dataset: Dataset) -> set[str]:
    """Return the names of the cases of this data set that the runs kept from training."""
    names: set[str] = set()
    for run in runs:
        file = (run if run.is_dir() else run.parent) / "splits.json"
        content: Any = read_json(file) if file.is_file() else {}
        if content.get("dataset") == dataset.name:
            names |= {*content.get("test", ()), *content.get("left_out", ())}
    return names


def _without(parts: Splits, names: set[str]) -> Splits:
    """Hold out all patients of the named cases."""
    cases = parts.dataset.cases
    patients = {case.patient for case in cases if case.name in names or case.held_out}
    aside = [case for case in cases if case.patient in patients]
    return replace(
        parts,
        test=tuple(case.name for case in aside if case.label is not None),
        left_out=tuple(case.name for case in aside if case.label is None),
        draws=tuple(tuple(p for p in draw if p not in patients) for draw in parts.draws),
    )
