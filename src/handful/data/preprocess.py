"""From a volume as the scanner wrote it to the network's array, and back to the scanner's grid, voxel for voxel."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handful.data.intensity import centre_and_spread
from handful.data.plan import ANISOTROPIC, Normalisation, Plan
from handful.data.resampling import (
    Geometry,
    Order,
    from_grid,
    grid_order,
    grid_shape,
    resample,
    resample_labels,
    resampled_argmax,
    to_grid,
)
from handful.data.volume import Volume, grid_difference
from handful.errors import DataError

IGNORED_VOXEL = 255
"""Class index of voxels whose label is not known."""

UNKNOWN = -1
"""Marks values without a class in the table of ``class_indices``."""

FURTHEST = 6.0
"""Z-scores are clipped here: one overflowing voxel at 15 deviations would shift a whole instance normalisation."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A case on the plan's grid.

    Attributes:
        image: (C, D, H, W) float32, normalised; every value is one that float16 holds exactly.
        label: (D, H, W) uint8 class indices, ``IGNORED_VOXEL`` where unknown; None without a label.
        geometry: the way back.
    """

    image: NDArray[np.float32]
    label: NDArray[np.uint8] | None
    geometry: Geometry


def prepare(
    image: Volume, label: Volume | None, plan: Plan, *, annotated: Collection[int] | None = None
) -> Prepared:
    """Reorient, normalise and resample a case to the plan's grid. Nothing is cropped.

    Images are interpolated by cubic splines, labels linearly class by class (the strongest class wins). Along an axis
    more than ``ANISOTROPIC`` times coarser than the finest, images are interpolated linearly: a cubic through thick
    slices invents anatomy (nnU-Net, Isensee et al. 2021, treats that axis apart for the same reason). An axis that
    keeps its number of voxels is not interpolated at all.

    The result is rounded to half precision: z-scores below 6 keep an error under 0.002, a fiftieth of any scanner's
    noise, and what the cache stores in two bytes is exactly what was computed.

    Args:
        image: (C, X, Y, Z), any orientation, spacing and handedness.
        label: (1, X, Y, Z) values as in the file, on the image's grid; or None.
        plan: the grid, the normalisations, the values of the classes.
        annotated: of the case, see ``class_indices``.

    Raises:
        DataError: the label does not lie on the image, holds undeclared values, or the image holds NaN or infinity.
    """
    if len(image.array) != len(plan.channels):
        raise DataError(f"found {len(image.array)} channels, the plan was made for {len(plan.channels)}.")
    geometry = geometry_of(image, plan)
    orders = _orders(_along(image.spacing_mm, image.affine, plan.axes))
    result = np.empty((len(image.array), *geometry.grid), np.float32)
    for channel, normalisation, target in zip(image.array, plan.channels, result):
        values = normalise(np.ascontiguousarray(to_grid(channel, image.affine, plan.axes)), normalisation)
        target[:] = resample(values, geometry.grid, orders=orders).astype(np.float16)
    if label is None:
        return Prepared(result, None, geometry)
    difference = grid_difference(image.grid, label.grid)
    if difference:
        raise DataError(f"the label does not lie on the image: {difference}. Run 'handful check'.")
    indices = class_indices(to_grid(label.array[0], image.affine, plan.axes), plan, annotated=annotated)
    return Prepared(result, resample_labels(indices, geometry.grid), geometry)


def geometry_of(image: Volume, plan: Plan) -> Geometry:
    """Return the grid a volume gets under the plan, without touching its voxels."""
    shape = [image.shape[axis] for axis in grid_order(image.affine, plan.axes)[0]]
    spacing = _along(image.spacing_mm, image.affine, plan.axes)
    grid = grid_shape(shape, spacing, plan.spacing_mm)
    d, h, w = (mm * old / new for mm, old, new in zip(spacing, shape, grid))
    return Geometry(image.shape, image.affine, grid, (d, h, w))


def normalise(volume: NDArray[np.float32], normalisation: Normalisation) -> NDArray[np.float32]:
    """Bring one channel (any axes) to the network's scale; see ``Normalisation`` and ``centre_and_spread``.

    Raises:
        DataError: NaN or infinite voxels.
    """
    if not np.isfinite(volume).all():
        raise DataError(
            f"{np.count_nonzero(~np.isfinite(volume))} voxels are NaN or infinite. Replace them (for example by the "
            "background value) in the file; 'handful check' lists all such files."
        )
    if normalisation.kind == "window":
        values = np.clip(volume, normalisation.low, normalisation.high).astype(np.float32)
        values -= np.float32(normalisation.centre)
        values /= np.float32(normalisation.spread)
        return values
    centre, spread = centre_and_spread(volume)
    values = volume.astype(np.float32)
    values -= np.float32(centre)
    values /= np.float32(spread)
    return np.clip(values, -FURTHEST, FURTHEST, out=values)


def class_indices(
    values: NDArray[Any], plan: Plan, *, annotated: Collection[int] | None = None
) -> NDArray[np.uint8]:
    """Turn label values of the files into class indices, ``plan.ignore_value`` into ``IGNORED_VOXEL``.

    Args:
        values: of the files, any shape.
        plan: knows the values.
        annotated: values of the structures that were annotated. Where the plan has others, background may hide them,
            and becomes ``IGNORED_VOXEL`` too. None: all were.

    Raises:
        DataError: a value that the plan does not know, or a structure that was not annotated.
    """
    known = dict(zip(plan.label_values, range(len(plan.label_values))))
    if annotated is not None and (others := set(plan.label_values) - {0, *annotated}):
        known = {value: index for value, index in known.items() if value not in others}
        known[0] = IGNORED_VOXEL
    if plan.ignore_value is not None:
        known[plan.ignore_value] = IGNORED_VOXEL
    lowest, highest = min(known), max(known)
    table = np.full(highest - lowest + 1, UNKNOWN, np.int16)
    for value, index in known.items():
        table[value - lowest] = index
    result = np.empty(values.shape, np.uint8)
    for slab, target in zip(values, result):  # slice by slice: a table look-up takes eight bytes a voxel
        outside = slab.size and (slab.min() < lowest or slab.max() > highest)
        indices = np.int16(UNKNOWN) if outside else table[slab.astype(np.int64) - lowest]
        if np.any(indices == UNKNOWN):
            unknown = sorted({int(value) for value in np.unique(values)} - set(known))
            if set(unknown) <= set(plan.label_values):
                raise DataError(
                    f"the label holds values {unknown[:10]}, but only {sorted(annotated or ())} are said to be "
                    "annotated in this case. Mend its cell in the column 'annotated', or the label map."
                )
            raise DataError(
                f"the label holds values {unknown[:10]} that nobody declared (declared: {sorted(known)}). "
                "Add them to dataset.json and to plan.yaml, or mend the label map."
            )
        target[:] = indices
    return result


def restore(array: NDArray[Any], geometry: Geometry, plan: Plan) -> NDArray[Any]:
    """Take an array on the plan's grid back to the file's grid.

    Args:
        array: (..., D, H, W). Integers are class indices and interpolated class by class, (D, H, W) only; floats are
            interpolated linearly (probabilities keep their sum).
        geometry: of the case.
        plan: the one the case was prepared with.

    Returns:
        (..., X, Y, Z) in the file's order of axes; the same type for integers, float32 for floats.
    """
    shape = _file_shape(geometry, plan)
    if np.issubdtype(array.dtype, np.integer) or array.dtype == bool:
        restored: NDArray[Any] = resample_labels(array.astype(np.uint8), shape).astype(array.dtype)
    else:
        restored = resample(array.astype(np.float32), shape, orders=(1, 1, 1))
    return np.ascontiguousarray(from_grid(restored, geometry.affine, plan.axes))


def restore_labels(probabilities: NDArray[np.floating], geometry: Geometry, plan: Plan) -> NDArray[Any]:
    """Turn class probabilities on the plan's grid into label values on the file's grid.

    Args:
        probabilities: (K, D, H, W); one class is interpolated at a time, so that memory stays bounded.
        geometry: of the case.
        plan: gives the value of each class.

    Returns:
        (X, Y, Z) label values, in the smallest of uint8, int16, int32 that holds them all.
    """
    winners = resampled_argmax(probabilities, _file_shape(geometry, plan))
    low, high = min(plan.label_values), max(plan.label_values)
    kind = next(
        kind
        for kind in (np.uint8, np.int16, np.int32)
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max
    )
    values = np.asarray(plan.label_values, kind)[winners]
    return np.ascontiguousarray(from_grid(values, geometry.affine, plan.axes))


def _file_shape(geometry: Geometry, plan: Plan) -> tuple[int, int, int]:
    """Return the file's shape with its axes in the order D, H, W."""
    d, h, w = (geometry.shape[axis] for axis in grid_order(geometry.affine, plan.axes)[0])
    return d, h, w


def _along(per_file_axis: Sequence[float], affine: NDArray[np.float64], axes: Sequence[int]) -> list[float]:
    return [per_file_axis[axis] for axis in grid_order(affine, axes)[0]]


def _orders(spacing_mm: Sequence[float]) -> tuple[Order, ...]:
    return tuple(1 if mm > ANISOTROPIC * min(spacing_mm) else 3 for mm in spacing_mm)
