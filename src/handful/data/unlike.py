"""Images that are plainly of another kind than the labelled ones: other voxels, another extent, other intensities.

Volumes are brought to one grid and one scale before they train, so small differences do not matter, and intensities
of MR scanners may differ a thousandfold. What is left is what no preprocessing bridges. A contrast of its own in the
same range (T1 beside T2) cannot be told from the numbers here.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from handful.data.fingerprint import CaseFingerprint
from handful.data.intensity import Intensities

VOXEL_RATIO = 3.0
"""Between voxel lengths along one axis. ACDC's 100 patients reach 2.7 among themselves."""

EXTENT_RATIO = 3.0
"""Between lengths of the volume along one axis. ACDC's reach 1.8, Hippocampus' crops 2.0."""

NEGATIVE = -50.0
"""Hounsfield units go far below 0 (air -1000, fat -100); the intensities of other modalities do not."""

SHAPE = 1.5
"""Mean distance of percentiles, in spreads, once centre and spread are taken out. ACDC reaches 0.9, Hippocampus 0.3;
between ACDC and Hippocampus it is 0.6 in the median, up to 1.1."""

AXES = ("left-right", "front-back", "head-foot")


def unlike(case: CaseFingerprint, known: Sequence[CaseFingerprint]) -> str:
    """Say in which way a case is far from every known one; "" if it is like one of them, or there is none.

    Args:
        case: the one asked about.
        known: cases of the right kind, with as many channels.

    Example:
        >>> unlike(ct, [mr])  # doctest: +SKIP
        'intensities far below 0, as in CT'
    """
    if not known:
        return ""
    for axis, name in enumerate(AXES):
        voxel = case.spacing_mm[axis]
        others = [other.spacing_mm[axis] for other in known]
        if _factor(voxel, others) > VOXEL_RATIO:
            return f"voxels {voxel:.3g} mm {name}, the labelled ones {_range(others)} mm"
    for axis, name in enumerate(AXES):
        extent = case.shape[axis] * case.spacing_mm[axis]
        others = [other.shape[axis] * other.spacing_mm[axis] for other in known]
        if _factor(extent, others) > EXTENT_RATIO:
            return f"{extent:.3g} mm long {name}, the labelled ones {_range(others)} mm"
    for channel, own in enumerate(case.channels):
        lowest = [other.channels[channel].percentiles[0] for other in known]
        if own.percentiles[0] < NEGATIVE and min(lowest) >= 0:
            return "intensities far below 0, as in CT, the labelled ones have none"
        if own.percentiles[0] >= 0 and max(lowest) < NEGATIVE:
            return "no intensities below 0, the labelled ones reach far below, as in CT"
        if min(_distance(own, other.channels[channel]) for other in known) > SHAPE:
            return "intensities spread in quite another way than in the labelled ones"
    return ""


def _factor(value: float, others: Sequence[float]) -> float:
    return min(max(value / other, other / value) for other in others)


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low} to {high}"


def _distance(one: Intensities, other: Intensities) -> float:
    return float(np.abs(_shape(one) - _shape(other)).mean())


def _shape(intensities: Intensities) -> NDArray[np.float64]:
    """Return the percentiles with centre and spread taken out; a constant image is 0 everywhere."""
    spread = intensities.spread or 1.0
    return (np.asarray(intensities.percentiles) - intensities.centre) / spread
