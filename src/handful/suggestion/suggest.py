"""Which cases to label next, and why: from a partly labelled folder to a ranked list, beside what chance would give."""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import handful
from handful.data.cases import Case
from handful.errors import UsageError
from handful.suggestion.cluster import Rule, choose_typical, kmeans, typicality
from handful.suggestion.coverage import Coverage, compare, radii
from handful.suggestion.features import intensity_features, principal_components
from handful.suggestion.roster import Roster, make_roster
from handful.suggestion.worklist import Item, how_to_add, images_of, mask_of, write_worklist

THREADS = 4
"""Images read at the same time, at most."""

Mode = Literal["cold", "warm"]
Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """Which cases to label next.

    Attributes:
        mode: ``cold`` (typical images) or ``warm`` (images a model is unsure of).
        asked: what the runs are, ``segmenter`` or ``encoder``; None without any.
        why: which mode was taken and why, a sentence.
        items: the cases, most wanted first.
        coverage: what labelling them would cover, beside random draws.
        labelled: names of the cases whose labels are known.
        budget: what ``labelled`` came from, if a budget was given: then a training needs ``labels_after`` by name.
        test: names of the cases held out beyond the data set's own test cases; a training must hold them out by name,
            because new labels change whom ``40`` would draw.
        held_out: how many labelled cases are held out in all; none of them was looked at.
        candidates: how many cases there were to choose from.
        patients: how many patients they are of.
        to_draw: names of the suggested cases without a label file (outside a budget, others may have one).
        how_to_add: what new labels need beyond their files, "" for nothing.
    """

    mode: Mode
    asked: str | None
    why: str
    items: tuple[Item, ...]
    coverage: Coverage
    labelled: tuple[str, ...]
    budget: str | None
    test: tuple[str, ...]
    held_out: int
    candidates: int
    patients: int
    to_draw: tuple[str, ...]
    how_to_add: str

    @property
    def labels_after(self) -> tuple[str, ...]:
        """Names of all cases with a label once the suggested ones have theirs."""
        return (*self.labelled, *(item.case for item in self.items))

    def sentences(self) -> list[str]:
        """Return the coverage in words: the suggestion beside the band of random draws."""
        count = len(self.items)
        lines = []
        for what, band in (("on average", self.coverage.mean), ("at worst", self.coverage.largest)):
            lines.append(
                f"With these {count}, a candidate lies {what} {band.suggested:.2f} from a labelled case; with {count} "
                f"random ones {band.mean:.2f} (5-95 %: {band.low:.2f}-{band.high:.2f}): {band.verdict}."
            )
        return lines

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        verdicts = {"mean": self.coverage.mean.verdict, "largest": self.coverage.largest.verdict}
        return {"version": handful.__version__, **asdict(self), "verdicts": verdicts}


def suggest(
    data: Path | str,
    *,
    run: Path | str | Sequence[Path | str] = (),
    count: int = 5,
    labels: str | None = None,
    draw: int = 0,
    test: str | None = None,
    splits: Path | None = None,
    seed: int = 0,
    patients: str | None = None,
    rule: Rule = "typical",
    trust: bool = False,
    tta: bool = False,
    out: Path | str | None = None,
    overwrite: bool = False,
    device: str = "auto",
    threads: int | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Suggestion:
    """Say which cases to label next: typical ones while there is no model to ask, then those the model is unsure of.

    Cold start (no ``run``, or the run of a pre-training, whose encoder then says what is alike): k-means over all
    images, and the most typical case of each cluster without a label. Warm start (runs of trained segmenters): the
    cases of largest uncertainty, structure by structure, only if the runs' own validation Dice is above 0.5; otherwise
    a cold start, and ``Suggestion.why`` says so. A patient is suggested once; test cases are never looked at.

    Args:
        data: a data set folder or CSV manifest.
        run: folder of a pre-training, or of one or several trained segmenters (an ensemble).
        count: how many cases.
        labels: choose as if only this budget's labels were known; None: all labels there are.
        draw: which draw of the budget.
        test: cases to hold out, besides those the data set holds out itself. Without ``test`` and ``splits``, what
            ``run`` held out.
        splits: a ``splits.json`` to follow instead of ``test`` and ``seed``.
        seed: of the split, of k-means, of the noise and of the random draws.
        patients: regular expression whose first group is the patient in a case's name.
        rule: cold start: ``typical`` (densest) or ``medoid`` (most central) member of a cluster.
        trust: believe the runs' uncertainty whatever their validation Dice.
        tta: warm start: average over transformed copies; slower, and sees more doubt.
        out: folder for ``worklist.csv``, ``worklist.html``, ``labels.txt`` and ``test.txt``; None writes nothing.
        overwrite: replace another worklist in ``out``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; only runs need it.
        threads: CPU threads; None leaves torch's choice.
        progress: called with what is being done, how many cases are done, and how many there are.

    Raises:
        UsageError: nothing to choose from, more wanted than there are patients, runs that do not fit the data.
        DataError: the data set or an image cannot be read.

    Example:
        >>> found = suggest("Task04_Hippocampus", labels="4", test="40", count=3)  # doctest: +SKIP
        >>> [item.case for item in found.items], found.coverage.mean.verdict  # doctest: +SKIP
    """
    runs = [Path(run)] if isinstance(run, str | Path) else [Path(one) for one in run]
    if count < 1:
        raise UsageError(f"--count {count}: at least one case can be suggested.")
    if (trust or tta) and not runs:
        raise UsageError(f"{'--trust' if trust else '--tta'} is about a model: name its --run.")
    roster = make_roster(
        Path(data),
        labels=labels,
        draw=draw,
        test=test,
        splits=splits,
        seed=seed,
        patients=patients,
        runs=runs,
    )
    if count > len(roster.patients):
        raise UsageError(
            f"--count {count}: there are only {len(roster.patients)} patients without a label to choose from "
            f"({len(roster.candidates)} cases; a patient is suggested once)."
        )
    if runs:
        from handful.suggestion.asked import ask_runs  # torch takes seconds

        answer = ask_runs(
            runs, roster, trust=trust, tta=tta, device=device, threads=threads, progress=progress
        )
        features, doubt, why = answer.features, answer.uncertainty, answer.why
        structures, asked = answer.structures, answer.kind
    else:
        features, doubt, structures, asked = None, None, (), None
        why = "Cold start from intensities: no run was given."
    cases = [*roster.labelled, *roster.candidates]
    if features is None:
        features = intensity_features(
            cases,
            threads=threads or min(THREADS, os.cpu_count() or 1),
            progress=lambda done, total: progress("comparing", done, total),
        )
    points = principal_components(features)
    known = np.arange(len(cases)) < len(roster.labelled)
    picks = _cold(points, known, cases, count, seed, rule) if doubt is None else _warm(
        points, known, cases, count, seed, doubt, structures
    )  # fmt: skip
    chosen = [cases[pick.index] for pick in picks]
    to_draw = [case for case in chosen if case.name not in roster.hidden]
    suggestion = Suggestion(
        mode="cold" if doubt is None else "warm",
        asked=asked,
        why=why,
        items=_items(roster, cases, points, picks),
        coverage=compare(
            points,
            labelled=np.flatnonzero(known).tolist(),
            candidates=np.flatnonzero(~known).tolist(),
            chosen=[pick.index for pick in picks],
            patients=[case.patient for case in cases],
            seed=seed,
        ),
        labelled=tuple(case.name for case in roster.labelled),
        budget=labels,
        test=roster.test,
        held_out=roster.held_out,
        candidates=len(roster.candidates),
        patients=len(roster.patients),
        to_draw=tuple(case.name for case in to_draw),
        how_to_add=how_to_add(roster.dataset, to_draw) if to_draw else "",
    )
    if out is not None:
        save(suggestion, Path(out), overwrite=overwrite)
    return suggestion


def save(suggestion: Suggestion, out: Path, *, overwrite: bool = False) -> None:
    """Write the worklist, the lists the next training takes, and the page with pictures to ``out``.

    Raises:
        UsageError: ``out`` holds another worklist.
    """
    from handful.report.worklist import Entry, write_page

    write_worklist(
        out, suggestion.items, labels=suggestion.labels_after, test=suggestion.test, overwrite=overwrite
    )
    write_page(
        out / "worklist.html",
        title=f"{len(suggestion.items)} cases to label next",
        sentences=[suggestion.why, *suggestion.sentences(), suggestion.how_to_add],
        entries=[
            Entry(f"{item.rank}. {item.case}", item.reason, _facts(item), Path(item.image.split(";")[0]))
            for item in suggestion.items
        ],
    )


@dataclass(frozen=True)
class _Choice:
    index: int
    cluster: int
    typicality: float
    uncertainty: float | None
    reason: str


def _cold(
    points: NDArray[np.float64],
    known: NDArray[np.bool_],
    cases: Sequence[Case],
    count: int,
    seed: int,
    rule: Rule,
) -> list[_Choice]:
    picks, cluster = choose_typical(
        points,
        labelled=known,
        patients=[case.patient for case in cases],
        count=count,
        seed=seed,
        rule=rule,
    )
    density = typicality(points, cluster)
    sizes = np.bincount(cluster)
    chosen = []
    for pick in picks:
        if pick.why == "nearer":
            reason = "brings the images without a label nearest to one that has it"
        else:
            word = "most typical" if rule == "typical" else "most central"
            reason = f"{word} of {int(sizes[pick.cluster])} similar images of which none has a label"
        chosen.append(_Choice(pick.index, pick.cluster, float(density[pick.index]), None, reason))
    return chosen


def _warm(
    points: NDArray[np.float64],
    known: NDArray[np.bool_],
    cases: Sequence[Case],
    count: int,
    seed: int,
    doubt: NDArray[np.float64],
    structures: Sequence[str],
) -> list[_Choice]:
    from handful.suggestion.warm import choose_uncertain

    cluster = kmeans(points, count + int(known.sum()), seed=seed)
    density = typicality(points, cluster)
    free = np.flatnonzero(~known).tolist()
    picks = choose_uncertain(
        doubt,
        cluster=[int(cluster[i]) for i in free],
        patients=[cases[i].patient for i in free],
        count=count,
        power=max(1.0, float(known.sum())),
        seed=seed,
    )
    chosen = []
    for pick in picks:
        index = free[pick.index]
        what = "all structures" if pick.structure is None else structures[pick.structure]
        values = doubt.mean(axis=1) if pick.structure is None else doubt[:, pick.structure]
        place = int((values > pick.score).sum()) + 1
        reason = f"unsure of {what}: entropy {pick.score:.3f}, number {place} of {len(free)} before noise"
        chosen.append(_Choice(index, int(cluster[index]), float(density[index]), pick.score, reason))
    return chosen


def _items(
    roster: Roster, cases: Sequence[Case], points: NDArray[np.float64], picks: Sequence[_Choice]
) -> tuple[Item, ...]:
    labelled = range(len(roster.labelled))
    distance = radii(points, [pick.index for pick in picks], labelled) if len(labelled) else None
    items = []
    for number, pick in enumerate(picks):
        case = cases[pick.index]
        others = [c.name for c in roster.candidates if c.patient == case.patient and c.name != case.name]
        items.append(
            Item(
                rank=number + 1,
                case=case.name,
                patient=case.patient,
                image=images_of(case),
                mask=str(mask_of(roster.dataset, case)),
                reason=pick.reason,
                cluster=pick.cluster,
                typicality=round(pick.typicality, 6),
                uncertainty=None if pick.uncertainty is None else round(pick.uncertainty, 6),
                distance_to_nearest_labelled=None if distance is None else round(float(distance[number]), 6),
                other_cases=";".join(others),
            )
        )
    return tuple(items)


def _facts(item: Item) -> list[tuple[str, str]]:
    facts = [("Patient", item.patient), ("Image", item.image), ("Mask goes to", item.mask)]
    if item.other_cases:
        facts.append(("Other cases of the patient", item.other_cases.replace(";", ", ")))
    if item.distance_to_nearest_labelled is not None:
        facts.append(("Distance to the nearest label", f"{item.distance_to_nearest_labelled:.2f}"))
    return facts
