"""Read every file of a data set and say everything that is wrong with it, with the file and the remedy."""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handful.data.cases import Case, Dataset
from handful.data.discover import LabelsSeen, scan_dataset
from handful.data.io import as_integers, load
from handful.data.problems import Problem, ProblemError, Problems
from handful.data.volume import Grid, grid_difference, times

TINY = 4  # fewer voxels along an axis and no 3-D neighbourhood is left
SPACING_MM = (0.01, 50.0)  # finer is a microscope, coarser no scan: both mean wrong units
OBLIQUE_DEGREES = 1.0
ORDER = {"fatal": 0, "warning": 1, "note": 2}


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What a data set holds and what is wrong with it.

    Attributes:
        found: plain values: name, layout, cases, labelled, unlabelled, held_out, patients, patients_from, channels,
            labels (value, name, cases, voxels), minimum, median and maximum of shape and spacing_mm, orientations;
            empty if nothing could be read.
        problems: fatal ones first.
    """

    found: Mapping[str, Any]
    problems: tuple[Problem, ...]

    @property
    def fatal(self) -> bool:
        """Whether any problem stops training."""
        return any(problem.severity == "fatal" for problem in self.problems)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for ``--json``."""
        problems = [
            {
                "severity": p.severity,
                "case": p.case,
                "file": str(p.file) if p.file else None,
                "what": p.what,
                "remedy": p.remedy,
            }
            for p in self.problems
        ]
        return {"fatal": self.fatal, "found": dict(self.found), "problems": problems}


def check_dataset(
    path: Path | str,
    *,
    patients: str | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Read every file of a data set and report every problem; the data is never changed.

    Args:
        path: as for ``open_dataset``.
        patients: as for ``open_dataset``.
        threads: files read at a time; one a core by default. Each holds one case in memory.
        progress: called with (cases done, cases in all) after every case.

    Raises:
        UsageError: ``patients`` is no usable pattern. Everything wrong with the data is in the report.
    """
    dataset, problems = scan_dataset(path, patients=patients)
    if dataset is None:
        return CheckReport(found={}, problems=_sorted(problems))
    facts = []
    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        for fact in pool.map(lambda case: _examine(case, dataset), dataset.cases):
            facts.append(fact)
            if progress:
                progress(len(facts), len(dataset.cases))
    found = list(problems)
    for fact in facts:
        found += fact.problems
    found += _duplicates(facts)
    found += _labels_over_all(dataset, facts)
    found += _handled(dataset, facts)
    return CheckReport(found=_summary(dataset, facts), problems=_sorted(found))


@dataclass
class _Facts:
    """What reading one case has shown; fields stay None where its files could not be read."""

    case: Case
    problems: Problems = field(default_factory=Problems)
    grid: Grid | None = None
    image_hash: str | None = None
    label_hash: str | None = None
    voxels: dict[int, int] = field(default_factory=dict)


def _examine(case: Case, dataset: Dataset) -> _Facts:
    facts = _Facts(case)
    image = _examine_images(case, dataset, facts)
    if case.label is not None:
        _examine_label(case, case.label, image, dataset, facts)
    facts.problems = Problems(_with_case(problem, case) for problem in facts.problems)
    return facts


def _examine_images(case: Case, dataset: Dataset, facts: _Facts) -> NDArray[Any] | None:
    """Judge the image; return its first channel if it could be read."""
    digest = hashlib.blake2b(digest_size=16)
    first: NDArray[Any] | None = None
    constant: list[tuple[Path, str]] = []
    channels = 0
    files = list(dict.fromkeys(case.images))
    for file in files:
        try:
            array, grid, remarks = load(file)
        except ProblemError as error:
            facts.problems.append(error.problem)
            continue
        facts.problems += remarks
        expected = len(case.images) if len(files) == 1 else 1
        if array.shape[0] != expected:
            facts.problems.fatal(
                file,
                f"it holds {array.shape[0]} channel(s) or time point(s), {expected} expected.",
                "Name every channel in dataset.json (channel_names), or save the volume that is meant as a 3-D file.",
            )
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, as in read_image
            array = np.ascontiguousarray(array, dtype=np.float32)
        if facts.grid is None:
            facts.grid, first = grid, array[0]
            _judge_grid(file, grid, facts.problems)
        elif difference := grid_difference(facts.grid, grid):
            facts.problems.fatal(
                file,
                f"its grid differs from channel {files[0].name}: {difference}.",
                "Resample all channels of a case to one grid.",
            )
        for channel in array:
            name = dataset.channel_names[channels] if channels < len(dataset.channel_names) else ""
            if what := _judge_intensities(file, channel, name, facts.problems):
                constant.append((file, what))
            channels += 1
        digest.update(array.data)
    if len(constant) < channels == len(case.images):
        facts.image_hash = digest.hexdigest() + str(facts.grid.shape if facts.grid else "")
    for file, what in constant:
        if len(constant) == channels:
            facts.problems.fatal(file, f"the image is {what}.", "Export it again, or remove the case.")
        else:  # some fill a missing modality with zeros
            facts.problems.warning(
                file, f"one of its channels is {what}.", "Export it again if it was not left out."
            )
    return first


def _judge_intensities(file: Path, channel: NDArray[Any], name: str, problems: Problems) -> str:
    """Judge one channel; return in which way it is constant, "" if its values vary."""
    if bad := channel.size - int(np.count_nonzero(np.isfinite(channel))):
        problems.fatal(
            file,
            f"{bad} of {channel.size} voxels are NaN or infinite.",
            "Replace them by the background's intensity.",
        )
        return ""
    low, high = float(channel.min()), float(channel.max())
    if low == high:
        return "empty (all zero)" if low == 0 else f"constant (all {low:.6g})"
    if name.lower() in ("ct", "cbct") and (low >= 0 or high - low > 60000):
        problems.warning(
            file,
            f"the channel is called {name}, but its values, {low:.6g} to {high:.6g}, are not Hounsfield units.",
            "Store HU (air near -1000), or give the channel another name, for example MRI.",
        )
    return ""


def _examine_label(
    case: Case, file: Path, image: NDArray[Any] | None, dataset: Dataset, facts: _Facts
) -> None:
    problems = facts.problems
    try:
        array, grid, remarks = load(file)
        problems += remarks
        if array.shape[0] != 1:
            problems.fatal(
                file,
                f"the label map has {array.shape[0]} channels or time points.",
                "Save one 3-D map whose values are the classes.",
            )
            return
        if facts.grid is not None and (difference := grid_difference(facts.grid, grid)):
            problems.fatal(
                file,
                f"label and image do not lie on the same grid: {difference}.",
                f"Resample the label to its image {case.images[0].name} (nearest neighbour), or copy its header.",
            )
        label = as_integers(file, array[0])
    except ProblemError as error:
        problems.append(error.problem)
        return
    facts.voxels = _count(label)
    facts.label_hash = hashlib.blake2b(np.ascontiguousarray(label, dtype=np.int64).data).hexdigest()
    if image is not None and image.shape == label.shape and np.array_equal(image, label):
        problems.fatal(file, "the label is a copy of the image.", "Put the right label map in its place.")
        return
    if isinstance(dataset.label_names, LabelsSeen):
        declared = set(facts.voxels)
    else:
        declared = {*dataset.label_names, *(() if dataset.ignore_value is None else (dataset.ignore_value,))}
    strange = {value: count for value, count in facts.voxels.items() if value not in declared}
    if strange:
        shown = ", ".join(f"{value} ({count} voxels)" for value, count in list(strange.items())[:8])
        problems.fatal(
            file,
            f"label values that nobody declared: {shown}{', ...' if len(strange) > 8 else ''}.",
            f"Declared are {', '.join(map(str, sorted(declared)))}: correct the file or the labels in dataset.json.",
        )
    elif case.annotated is not None and (
        others := set(facts.voxels) - {0, dataset.ignore_value, *case.annotated}
    ):
        problems.fatal(
            file,
            f"it holds {sorted(others)}, but only {list(case.annotated)} are said to be annotated in case {case.name}.",
            "Correct the column 'annotated', or the label map.",
        )
    elif set(facts.voxels) <= {0, dataset.ignore_value}:
        problems.warning(
            file,
            "the label is all background.",
            "If a structure is there, label it; if the case is unlabelled, remove it.",
        )


def _count(label: NDArray[Any]) -> dict[int, int]:
    """Count the voxels of each value, in one pass where the values are few."""
    low, high = int(label.min()), int(label.max())
    if high - low < 65536:
        counts = np.bincount((label.ravel().astype(np.int64) - low) if low else label.ravel())
        return {int(value) + low: int(counts[value]) for value in np.flatnonzero(counts)}
    values, counts = np.unique(label, return_counts=True)
    return {int(value): int(count) for value, count in zip(values, counts)}


def _judge_grid(file: Path, grid: Grid, problems: Problems) -> None:
    low, high = SPACING_MM
    if not all(low <= spacing <= high for spacing in grid.spacing_mm):
        problems.warning(
            file,
            f"the spacing is {times(grid.spacing_mm)} mm, hardly that of a scan.",
            "Correct the header; lengths are in mm.",
        )
    if min(grid.shape) < TINY:
        problems.warning(
            file,
            f"the volume is tiny ({times(grid.shape)} voxels).",
            "If it is a scout or a crop gone wrong, remove it.",
        )


def _duplicates(facts: Sequence[_Facts]) -> Problems:
    """Find images that are there twice: fatal across train and test or with two truths, else a warning."""
    problems = Problems()
    groups: dict[str, list[_Facts]] = defaultdict(list)
    for fact in facts:
        if fact.image_hash is not None:
            groups[fact.image_hash].append(fact)
    for first, *others in groups.values():
        for other in others:
            what = f"the image has the same voxels as that of case {first.case.name} ({first.case.images[0]})"
            file, name = other.case.images[0], other.case.name
            if first.case.held_out != other.case.held_out:
                problems.fatal(
                    file,
                    f"{what}, and one of them trains, the other tests.",
                    "Remove one of the two.",
                    case=name,
                )
            elif first.label_hash and other.label_hash and first.label_hash != other.label_hash:
                problems.fatal(
                    file,
                    f"{what}, but their labels differ.",
                    "Keep the case whose label is right.",
                    case=name,
                )
            else:
                problems.warning(
                    file, f"{what}.", "Remove one of the two, or give both the same patient.", case=name
                )
    return problems


def _labels_over_all(dataset: Dataset, facts: Sequence[_Facts]) -> Problems:
    problems = Problems()
    seen = set().union(*(fact.voxels for fact in facts))
    if seen and not isinstance(dataset.label_names, LabelsSeen):
        for value, name in dataset.label_names.items():
            if value not in seen:
                problems.warning(
                    dataset.root,
                    f"no file holds the declared label {value} ('{name}').",
                    "Remove it from dataset.json, or look for labels that are missing.",
                )
    return problems


def _handled(dataset: Dataset, facts: Sequence[_Facts]) -> Problems:
    """Say what is unusual and taken care of."""
    problems = Problems()
    grids = [fact.grid for fact in facts if fact.grid is not None]
    left = [grid for grid in grids if grid.left_handed]
    oblique = [grid for grid in grids if grid.tilt_degrees > OBLIQUE_DEGREES]
    if left:
        codes = ", ".join(sorted({grid.orientation for grid in left}))
        problems.note(
            dataset.root, f"{len(left)} of {len(grids)} volumes have left-handed axes ({codes}); handled."
        )
    if oblique:
        most = max(grid.tilt_degrees for grid in oblique)
        problems.note(
            dataset.root,
            f"{len(oblique)} of {len(grids)} volumes are oblique (up to {most:.0f} degrees); handled, "
            "predictions lie on the tilted grid.",
        )
    return problems


def _summary(dataset: Dataset, facts: Sequence[_Facts]) -> dict[str, Any]:
    voxels: Counter[int] = Counter()
    cases: Counter[int] = Counter()
    for fact in facts:
        voxels.update(fact.voxels)
        cases.update(fact.voxels.keys())
    names: Mapping[int, str] = dataset.label_names
    if isinstance(names, LabelsSeen):  # the files have just been read; unreadable ones are among the problems
        names = {0: "background", **{value: str(value) for value in sorted(voxels) if value}}
    grids = [fact.grid for fact in facts if fact.grid is not None]
    return {
        "name": dataset.name,
        "layout": dataset.layout,
        "cases": len(dataset.cases),
        "labelled": len(dataset.labelled),
        "unlabelled": len(dataset.unlabelled),
        "held_out": len(dataset.held_out),
        "patients": len({case.patient for case in dataset.cases}),
        "patients_from": dataset.patients_from,
        "channels": list(dataset.channel_names),
        "labels": [
            {"value": value, "name": name, "cases": cases[value], "voxels": voxels[value]}
            for value, name in names.items()
        ],
        "shape": _range([grid.shape for grid in grids]),
        "spacing_mm": _range([grid.spacing_mm for grid in grids]),
        "orientations": dict(Counter(grid.orientation for grid in grids).most_common()),
    }


def _range(rows: Sequence[Sequence[float]]) -> dict[str, list[float]] | None:
    if not rows:
        return None
    array = np.asarray(rows)
    parts = {"min": array.min(axis=0), "median": np.median(array, axis=0), "max": array.max(axis=0)}
    return {name: [round(float(value), 6) for value in part] for name, part in parts.items()}


def _with_case(problem: Problem, case: Case) -> Problem:
    return Problem(
        severity=problem.severity, what=problem.what, remedy=problem.remedy, file=problem.file, case=case.name
    )


def _sorted(problems: Sequence[Problem]) -> tuple[Problem, ...]:
    """Put fatal problems first; the same finding about the same file (its header read twice) counts once."""
    return tuple(sorted(dict.fromkeys(problems), key=lambda problem: ORDER[problem.severity]))
