"""Which voxels tell how bright a volume is, and the robust statistics that describe them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

PERCENTILES = (0.5, 5.0, 25.0, 50.0, 75.0, 95.0, 99.5)
"""Percentiles kept in ``Intensities.percentiles``, in this order."""

SAMPLE = 2_000_000
"""Voxels looked at in a larger volume, evenly spaced: their percentiles are those of all, in a tenth of the time."""


@dataclass(frozen=True, kw_only=True)
class Intensities:
    """Robust statistics of a set of voxels; all zero when the set is empty.

    Attributes:
        voxels: how many there are.
        percentiles: at ``PERCENTILES``.
        mean: of the values as they are.
        sd: of the values as they are.
        centre: mean after clipping to the outermost percentiles.
        spread: standard deviation after that clipping.
        mad: median absolute deviation from the median.
    """

    voxels: int
    percentiles: tuple[float, ...]
    mean: float
    sd: float
    centre: float
    spread: float
    mad: float


def describe(values: NDArray[Any], *, voxels: int | None = None) -> Intensities:
    """Describe voxels by robust statistics.

    Args:
        values: of any shape; thinned to ``SAMPLE`` evenly spaced ones when there are more.
        voxels: how many voxels the values stand for, where they were thinned already.
    """
    count = values.size if voxels is None else voxels
    sample = thin(values, SAMPLE).astype(np.float64)
    if not sample.size:
        return Intensities(
            voxels=0, percentiles=(0.0,) * len(PERCENTILES), mean=0.0, sd=0.0, centre=0.0, spread=0.0, mad=0.0
        )
    percentiles = np.percentile(sample, PERCENTILES)
    clipped = np.clip(sample, percentiles[0], percentiles[-1])
    return Intensities(
        voxels=count,
        percentiles=tuple(percentiles.tolist()),
        mean=float(sample.mean()),
        sd=float(sample.std()),
        centre=float(clipped.mean()),
        spread=float(clipped.std()),
        mad=float(np.median(np.abs(sample - percentiles[PERCENTILES.index(50.0)]))),
    )


def centre_and_spread(volume: NDArray[np.float32]) -> tuple[float, float]:
    """Return the robust centre and spread of one channel of one volume.

    Mean and standard deviation after clipping to the 0.5th and 99.5th percentile, over the voxels that are not the
    constant background (``background_value``): a volume multiplied by 10,000, with a few overflowing voxels or with
    more zeros around a skull-stripped head keeps its normalised values. A constant volume has spread 1.
    """
    values = volume.ravel()
    kept = values[values != background_value(volume)]
    if kept.size < 0.01 * values.size:  # nearly nothing but background: better all voxels than a handful
        kept = values
    kept = thin(kept, SAMPLE)
    low, high = np.percentile(kept, (PERCENTILES[0], PERCENTILES[-1]))
    clipped = np.clip(kept, low, high).astype(np.float64)
    centre, spread = float(clipped.mean()), float(clipped.std())
    return centre, spread if spread > 1e-6 * max(abs(centre), 1e-30) else 1.0


def background_value(volume: NDArray[Any]) -> float:
    """Return the commonest value on the six faces of ``volume`` (X, Y, Z).

    Skull-stripped and padded images are surrounded by one constant. Without such a constant this is some value that
    few voxels share, so that leaving those out changes nothing: no threshold decides between the two.
    """
    faces = [np.take(volume, end, axis=axis).ravel() for axis in range(3) for end in (0, -1)]
    values, counts = np.unique(np.concatenate(faces), return_counts=True)
    return float(values[np.argmax(counts)])


def thin(values: NDArray[Any], limit: int) -> NDArray[Any]:
    """Return at most ``limit`` of the values, flat and evenly spaced."""
    flat = values.ravel()
    return flat[:: -(-flat.size // limit)] if flat.size > limit else flat
