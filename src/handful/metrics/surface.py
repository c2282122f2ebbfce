"""Distances between the surfaces of two masks, in millimetres and weighted by surface area.

The surface of a mask is cut into elements, one for each 2 x 2 x 2 neighbourhood that is partly inside. Everything (95th
percentile, mean, share within a tolerance) is derived from the distances of these elements and their areas, which are
computed once. The surface closes at the edge of the image.

References:
    Nikolov et al., 2021, "Clinically applicable segmentation of head and neck anatomy". https://doi.org/10.2196/26151
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


@dataclass(frozen=True)
class SurfaceDistances:
    """Distance and area of every surface element of two masks, each side sorted by distance.

    Attributes:
        from_prediction_mm: (N,) distance of each element of the prediction to the reference.
        from_reference_mm: (M,) distance of each element of the reference to the prediction.
        prediction_mm2: (N,) areas of the elements in ``from_prediction_mm``.
        reference_mm2: (M,) areas of the elements in ``from_reference_mm``.
    """

    from_prediction_mm: NDArray[np.float64]
    from_reference_mm: NDArray[np.float64]
    prediction_mm2: NDArray[np.float64]
    reference_mm2: NDArray[np.float64]


def surface_distances(
    prediction: NDArray[np.bool_], reference: NDArray[np.bool_], *, spacing_mm: Sequence[float]
) -> SurfaceDistances:
    """Measure from every surface element of each mask to the nearest one of the other.

    Args:
        prediction: (X, Y, Z) mask, not empty; cropping both to their common box saves time and changes nothing.
        reference: (X, Y, Z) mask, not empty.
        spacing_mm: size of a voxel along X, Y, Z.
    """
    areas_mm2 = _areas_mm2(tuple(float(s) for s in spacing_mm))
    codes = [_neighbourhoods(mask) for mask in (prediction, reference)]
    borders = [(code != 0) & (code != 255) for code in codes]
    maps_mm = [ndimage.distance_transform_edt(~border, sampling=tuple(spacing_mm)) for border in borders]
    sides = []
    for own, other in ((0, 1), (1, 0)):
        distance_mm, area_mm2 = maps_mm[other][borders[own]], areas_mm2[codes[own][borders[own]]]
        order = np.lexsort((area_mm2, distance_mm))
        sides.append((distance_mm[order], area_mm2[order]))
    (from_prediction, prediction_mm2), (from_reference, reference_mm2) = sides
    return SurfaceDistances(from_prediction, from_reference, prediction_mm2, reference_mm2)


def hd95_mm(distances: SurfaceDistances) -> float:
    """Return the larger of the two directed 95th percentiles (95 % of the surface's *area* is nearer)."""
    return max(
        _percentile(distances.from_prediction_mm, distances.prediction_mm2, 0.95),
        _percentile(distances.from_reference_mm, distances.reference_mm2, 0.95),
    )


def assd_mm(distances: SurfaceDistances) -> float:
    """Return the average symmetric surface distance: the mean over the area of both surfaces together."""
    total = (
        distances.from_prediction_mm @ distances.prediction_mm2
        + distances.from_reference_mm @ distances.reference_mm2
    )
    return float(total / (distances.prediction_mm2.sum() + distances.reference_mm2.sum()))


def nsd(distances: SurfaceDistances, *, tolerance_mm: float) -> float:
    """Return the normalised surface Dice: the share of both surfaces' area within ``tolerance_mm`` of the other."""
    near = distances.prediction_mm2[distances.from_prediction_mm <= tolerance_mm].sum()
    near += distances.reference_mm2[distances.from_reference_mm <= tolerance_mm].sum()
    return float(near / (distances.prediction_mm2.sum() + distances.reference_mm2.sum()))


def _neighbourhoods(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Encode each 2 x 2 x 2 neighbourhood of the padded mask in eight bits, the first corner in the highest."""
    padded = np.pad(mask, 1).astype(np.uint8)
    code = np.zeros([n - 1 for n in padded.shape], np.uint8)
    for bit, corner in enumerate(product((0, 1), repeat=3)):
        code |= padded[tuple(slice(c, c + n) for c, n in zip(corner, code.shape))] << (7 - bit)
    return code


@lru_cache(maxsize=64)
def _areas_mm2(spacing_mm: tuple[float, ...]) -> NDArray[np.float64]:
    """Return the area of the surface inside each of the 256 neighbourhoods, from MONAI's table of triangles."""
    from monai.metrics.utils import get_code_to_measure_table

    table, _ = get_code_to_measure_table(spacing_mm)
    return np.asarray(table, np.float64)


def _percentile(values: NDArray[np.float64], weights: NDArray[np.float64], share: float) -> float:
    """Return the smallest of the sorted ``values`` that at least ``share`` of the weight does not exceed."""
    cumulative = np.cumsum(weights) / weights.sum()
    return float(values[min(int(np.searchsorted(cumulative, share)), len(values) - 1)])
