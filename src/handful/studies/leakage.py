"""Does a test case also train? Patients on both sides of a split, and images that are copies of one another."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from handful.data.cases import Case
from handful.data.io import read_image
from handful.data.splits import Splits
from handful.errors import DataError


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


def refuse_copies(splits: Splits) -> int:
    """Refuse images that train and, under another name, are tested; reads every image once.

    Two images are copies if all their voxels are equal, however the files are compressed and whatever their headers
    say.

    Returns:
        How many images were compared.

    Raises:
        DataError: names both files of the first pairs.
    """
    pool = list(splits.pool)
    tested = [splits.dataset.case(name) for name in splits.test]
    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        hashes = list(threads.map(_voxels, [*pool, *tested]))
    by_hash: dict[str, list[Case]] = defaultdict(list)
    for case, found in zip(pool, hashes):
        by_hash[found].append(case)
    pairs = [
        (train, test) for test, found in zip(tested, hashes[len(pool) :]) for train in by_hash.get(found, [])
    ]
    if pairs:
        raise DataError(_said(pairs))
    return len(hashes)


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
