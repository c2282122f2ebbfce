"""Does a test case also train? Patients on both sides of a split, and images that are copies of one another."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from handful.data.cases import Case
from handful.data.io import read_image
from handful.data.splits import Splits
from handful.errors import DataError

CHECKED = "leakage.json"
"""Beside the manifests of the runs: images were compared, and which are copies on one side."""


class Copies(NamedTuple):
    """Images that are copies of one another.

    Attributes:
        compared: how many images were.
        pool: names of cases that may train, each group of copies.
        test: the same of test cases.
    """

    compared: int
    pool: tuple[tuple[str, ...], ...]
    test: tuple[tuple[str, ...], ...]


def refuse_shared_patients(splits: Splits) -> None:
    """Refuse a split in which a patient trains and is tested.

    Raises:
        DataError: names a case on each side.
    """
    tested = {splits.dataset.case(name).patient: name for name in splits.test}
    for case in splits.pool:
        if case.patient in tested:
            raise DataError(
                f"{case.name} trains and {tested[case.patient]} is tested, and both are of patient {case.patient}: the "
                "scores would be too good. Keep all cases of a patient on one side."
            )


def refuse_copies(splits: Splits) -> Copies:
    """Refuse images that train and, under another name, are tested; reads every image once.

    Two images are copies if all their voxels are equal, however the files are compressed and whatever their headers
    say. Copies on one side are no leak, and are returned.

    Raises:
        DataError: names both files of the first pairs.
    """
    pool = list(splits.pool)
    tested = [splits.dataset.case(name) for name in splits.test]
    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        hashes = list(threads.map(_voxels, [*pool, *tested]))
    train, test = _by_hash(pool, hashes), _by_hash(tested, hashes[len(pool) :])
    pairs = [(one, other) for found, cases in test.items() for other in cases for one in train.get(found, [])]
    if pairs:
        raise DataError(_said(pairs))
    same = [
        tuple(tuple(case.name for case in cases) for cases in side.values() if len(cases) > 1)
        for side in (train, test)
    ]
    return Copies(len(hashes), *same)


def said_of_copies(copies: Mapping[str, Any]) -> list[str]:
    """Return a warning for each side that holds copies; ``copies``: those of ``refuse_copies``, as read back."""
    words = {
        "pool": "cases that may train: fewer different cases are labelled or seen than the budget says",
        "test": "test cases: they count as several, and intervals are narrower than they should be",
    }
    return [
        f"{len(groups)} image(s) are there more than once, voxel for voxel, among the {what} "
        f"({'; '.join(' = '.join(names) for names in groups[:5])}{'; ...' if len(groups) > 5 else ''})."
        for side, what in words.items()
        if (groups := copies.get(side))
    ]


def _by_hash(cases: Sequence[Case], hashes: Sequence[str]) -> dict[str, list[Case]]:
    found: dict[str, list[Case]] = defaultdict(list)
    for case, own in zip(cases, hashes):
        found[own].append(case)
    return found


def _said(pairs: Sequence[tuple[Case, Case]]) -> str:
    lines = "\n".join(f"  {train.images[0]} and {test.images[0]}" for train, test in pairs[:5])
    more = f"\n  and {len(pairs) - 5} more" if len(pairs) > 5 else ""
    return (
        f"{len(pairs)} test image(s) also train, voxel for voxel under another name:\n{lines}{more}\n"
        "Remove one of each pair, or give both the same patient (cases.csv), so that they stay on one side."
    )


def _voxels(case: Case) -> str:
    array = np.ascontiguousarray(read_image(case.images).array, np.float32)
    return hashlib.sha256(repr(array.shape).encode() + array.tobytes()).hexdigest()
