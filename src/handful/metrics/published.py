"""Scores as much-used code computes them: to reproduce a published number, and to see what it hides.

None of these is reported by ``handful`` anywhere else; ``docs/protocol_traps.md`` shows what each does to a result.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from handful.metrics.scores import BOTH_EMPTY, PREDICTION_EMPTY, REFERENCE_EMPTY, ClassScore

Masks = tuple[NDArray[np.bool_], NDArray[np.bool_]]
"""Prediction and reference of one volume (or of one slice), same shape."""


class Fixed(NamedTuple):
    """What is written down instead of a measurement; None leaves the volume out of the mean."""

    dice: float | None
    distance: float | None


MISSED_IS_NEAR: Mapping[str, Fixed] = {PREDICTION_EMPTY: Fixed(0.0, 0.0)}
"""A missed structure has distance 0, which lowers the mean distance (BCP, ``val_2d.py``; the SSL4MIS family)."""

INVENTED_IS_PERFECT: Mapping[str, Fixed] = {
    REFERENCE_EMPTY: Fixed(1.0, 0.0),
    PREDICTION_EMPTY: Fixed(0.0, 0.0),
    BOTH_EMPTY: Fixed(0.0, 0.0),
}
"""A structure invented where there is none has Dice 1, one rightly not found Dice 0 (ARCO, ``test_2D.py``)."""

EMPTY_IS_LEFT_OUT: Mapping[str, Fixed] = {
    PREDICTION_EMPTY: Fixed(None, None),
    REFERENCE_EMPTY: Fixed(None, None),
}
"""Only volumes where both masks hold something are averaged: a method is not blamed for what it misses."""

ABSENT_IS_PERFECT: Mapping[str, Fixed] = {BOTH_EMPTY: Fixed(1.0, 0.0)}
"""A structure rightly not found has Dice 1: the rarer it is, the better everyone looks."""


def pooled_dice(pairs: Iterable[Masks]) -> float | None:
    """Return one Dice of all volumes (or slices) together: twice the sum of intersections over the sum of sizes.

    Large structures outweigh small ones, and a case that is missed altogether hardly counts. PCL (``metrics.py``) and
    SSCL score this way.

    Args:
        pairs: prediction and reference of each volume, of any shape.

    Returns:
        In [0, 1]; None if no voxel is set anywhere.

    Example:
        >>> a, b = np.array([True] * 9 + [False]), np.array([False, True])
        >>> pooled_dice([(a, a), (~b, b)])  # found, and missed: the mean over the two is 0.5
        0.9
    """
    common = total = 0
    for prediction, reference in pairs:
        common += int((prediction & reference).sum())
        total += int(prediction.sum()) + int(reference.sum())
    return 2.0 * common / total if total else None


def hd95_of_borders(
    prediction: NDArray[np.bool_], reference: NDArray[np.bool_], *, spacing: Sequence[float] | None = None
) -> float:
    """Return the 95th percentile of the distances of all border voxels of both masks to the other's border.

    The border of a mask is what an erosion by face neighbours removes; voxels beyond the edge count as outside. Both
    directions go into one list. This is how MedPy's ``hd95`` is defined, which the SSL4MIS family calls without a
    spacing, so that 10 mm between slices count as much as 1 mm within one.

    Args:
        prediction: mask of any number of axes, not empty.
        reference: mask of the same shape, not empty.
        spacing: size of a voxel along each axis; None counts voxels.

    Raises:
        ValueError: a mask is empty (there is no distance to it), or the shapes differ.
    """
    if prediction.shape != reference.shape:
        raise ValueError(
            f"the masks have different shapes, {prediction.shape} and {reference.shape}; they must be equal."
        )
    if not prediction.any() or not reference.any():
        raise ValueError("a mask is empty, so there is no distance to it; see with_fixed_scores.")
    borders = [mask & ~ndimage.binary_erosion(mask) for mask in (prediction, reference)]
    maps = [ndimage.distance_transform_edt(~border, sampling=spacing) for border in borders]
    both = np.concatenate([maps[1][borders[0]], maps[0][borders[1]]])
    return float(np.percentile(both, 95))


def with_fixed_scores(scores: Iterable[ClassScore], rule: Mapping[str, Fixed]) -> list[ClassScore]:
    """Return the scores with those of empty masks replaced as ``rule`` says; measured ones stay.

    Args:
        scores: of all cases and classes.
        rule: status -> what is written down, for example ``MISSED_IS_NEAR``.
    """
    return [
        replace(
            score,
            dice=rule[score.status].dice,
            hd95_mm=rule[score.status].distance,
            assd_mm=rule[score.status].distance,
        )
        if score.status in rule
        else score
        for score in scores
    ]
