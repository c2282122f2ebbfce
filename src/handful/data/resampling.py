"""From a file's grid of voxels to the network's and back: axes reordered and flipped, spacing changed, nothing cropped.

Reordering goes to the closest RAS axes and never interpolates, so oblique volumes keep their voxels. Resampling aligns
the *extents* of the two grids (the outer faces of the outermost voxels), so both directions use the same map and a
round trip returns to the same grid. An axis whose number of voxels does not change is not touched.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
from nibabel.orientations import io_orientation
from numpy.typing import NDArray
from scipy import ndimage

from handful.errors import DataError

Order = Literal[1, 3]
"""Of a spline: linear or cubic."""

TIE = 1e-6
"""Scores this close are equal: rounding does not decide which of two classes gets the voxel between them."""

SLAB = 16
"""Slices of a label map that are interpolated together: small enough to stay near the processor."""


@dataclass(frozen=True, eq=False)
class Geometry:
    """Where a prepared array came from: enough to go back to the file's grid exactly.

    Attributes:
        shape: (X, Y, Z) of the file.
        affine: (4, 4) float64 of the file, voxel index to millimetres, kept bit for bit.
        grid: (D, H, W) of the prepared array.
        spacing_mm: along D, H, W of the prepared array. It differs from the plan's by the rounding to whole voxels.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    grid: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]


def grid_order(
    affine: NDArray[np.floating], axes: Sequence[int] = (0, 1, 2)
) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Return which file axis becomes each axis of the grid, and whether each file axis is flipped.

    Args:
        affine: (4, 4) of the file.
        axes: which axis of the RAS volume becomes D, H, W (``Plan.axes``); (0, 1, 2) gives RAS itself.
    """
    orientation = _orientation(affine)
    to_ras = np.argsort(orientation[:, 0])
    order = tuple(int(to_ras[axis]) for axis in axes)
    return order, tuple(bool(direction < 0) for direction in orientation[:, 1])


def to_grid(array: NDArray[Any], affine: NDArray[np.floating], axes: Sequence[int]) -> NDArray[Any]:
    """Reorder and flip (..., X, Y, Z) to (..., D, H, W); a view, no interpolation."""
    order, flipped = grid_order(affine, axes)
    lead = array.ndim - 3
    array = np.flip(array, tuple(lead + axis for axis in range(3) if flipped[axis]))
    return array.transpose(*range(lead), *(lead + axis for axis in order))


def from_grid(array: NDArray[Any], affine: NDArray[np.floating], axes: Sequence[int]) -> NDArray[Any]:
    """Undo ``to_grid``: (..., D, H, W) to (..., X, Y, Z); a view."""
    order, flipped = grid_order(affine, axes)
    lead = array.ndim - 3
    array = array.transpose(*range(lead), *(lead + int(axis) for axis in np.argsort(order)))
    return np.flip(array, tuple(lead + axis for axis in range(3) if flipped[axis]))


def grid_shape(
    shape: Sequence[int], spacing_mm: Sequence[float], target_mm: Sequence[float | None]
) -> tuple[int, int, int]:
    """Return the number of voxels along each axis after resampling to ``target_mm`` (None keeps an axis)."""
    d, h, w = (
        size if target is None else max(1, round(size * spacing / target))
        for size, spacing, target in zip(shape, spacing_mm, target_mm)
    )
    return d, h, w


def resample(
    array: NDArray[np.floating], shape: Sequence[int], *, orders: Sequence[Order]
) -> NDArray[np.floating]:
    """Interpolate the last three axes of ``array`` to ``shape`` by splines, one axis after the other.

    Equal to ``scipy.ndimage.zoom(..., mode="nearest", grid_mode=True)``, without its 64 taps a voxel.

    Args:
        array: (..., D, H, W).
        shape: of the result; axes that have this size already are left as they are, bit for bit.
        orders: spline order along each axis, 1 or 3.
    """
    size = array.shape[-3:]
    for axis in sorted(
        range(3), key=lambda axis: shape[axis] / size[axis]
    ):  # shrinking first: less work after
        if size[axis] != shape[axis] and orders[axis] == 1:
            array = _linear(array, _taps(size[axis], shape[axis]), axis)
        elif size[axis] != shape[axis]:
            array = _cubic(array, shape[axis], axis)
    return array


def resample_labels(label: NDArray[np.uint8], shape: Sequence[int]) -> NDArray[np.uint8]:
    """Interpolate each class linearly and keep the strongest: smooth borders without mixing indices.

    A few slices at a time, and each class only in the box that holds it: the number of classes hardly matters.

    Args:
        label: (D, H, W) class indices; any value, 255 included, counts as a class. The lowest wins ties.
        shape: of the result; equal to the label's shape returns the label unchanged.
    """
    if tuple(shape) == label.shape:
        return label
    result = np.zeros(shape, np.uint8)
    for rows, part, taps in _slabs(label.shape, shape):
        slab, winner = label[part], result[rows]
        best = np.zeros(winner.shape, np.float32)
        background = np.ones(winner.shape, np.float32)
        boxes: list[tuple[slice, ...] | None] = list(ndimage.find_objects(slab))
        for index, box in enumerate(boxes, start=1):
            reached = None if box is None else _reach(taps, box)
            if reached is None:
                continue
            target, source, inner = reached
            score = _linear_all((slab[source] == index).astype(np.float32), inner)
            background[target] -= score
            wins = score > best[target] + TIE
            np.copyto(winner[target], index, where=wins)
            np.copyto(best[target], score, where=wins)
        winner[background >= best - TIE] = 0
    return result


def resampled_argmax(scores: NDArray[np.floating], shape: Sequence[int]) -> NDArray[np.uint8]:
    """Interpolate (K, D, H, W) scores linearly to ``shape`` and return the index of the strongest class.

    A few slices at a time, and each class only where it could win, so memory stays at the result for any K. The lowest
    index wins ties.
    """
    result = np.zeros(shape, np.uint8)
    for rows, part, taps in _slabs(scores.shape[1:], shape):
        slab = scores[:, part].astype(np.float32)
        winner = result[rows]
        best = np.full(winner.shape, -np.inf, np.float32)
        # the strongest of K scores is at least their mean: below the smallest mean nothing wins
        floor = float(slab.mean(axis=0).min())
        floor -= 1e-5 * max(1.0, abs(floor))
        for index, channel in enumerate(slab):
            box = next(iter(ndimage.find_objects((channel >= floor).view(np.uint8))), None)
            reached = None if box is None else _reach(taps, box)
            if reached is None:
                continue
            target, source, inner = reached
            score = _linear_all(channel[source], inner)
            wins = score > best[target] + TIE
            np.copyto(winner[target], index, where=wins)
            np.copyto(best[target], score, where=wins)
    return result


class _Taps(NamedTuple):
    """Linear interpolation along an axis: ``array[lower] + weight * (array[upper] - array[lower])``."""

    lower: NDArray[np.intp]
    upper: NDArray[np.intp]
    weight: NDArray[np.float32]


def _taps(old: int, new: int) -> _Taps:
    """Return the taps from ``old`` to ``new`` voxels with aligned extents and repeated edges."""
    place = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
    lower = np.floor(place).astype(np.intp)
    return _Taps(lower, np.minimum(lower + (place > lower), old - 1), (place - lower).astype(np.float32))


def _linear(array: NDArray[Any], taps: _Taps, axis: int) -> NDArray[Any]:
    """Interpolate one of the last three axes (0, 1, 2) linearly."""
    axis -= 3
    lower = array.take(taps.lower, axis=axis)
    step = array.take(taps.upper, axis=axis)
    step -= lower
    step *= taps.weight.reshape(-1, *(1,) * (-1 - axis))
    lower += step
    return lower


def _linear_all(array: NDArray[np.float32], taps: Sequence[_Taps]) -> NDArray[np.float32]:
    """Interpolate (D, H, W) along all axes, shrinking ones first; an axis that stays as it is is skipped."""
    for axis in sorted(range(3), key=lambda axis: len(taps[axis].lower) / array.shape[axis]):
        if len(taps[axis].lower) != array.shape[axis] or taps[axis].weight.any():
            array = _linear(array, taps[axis], axis)
    return array


def _slabs(
    old: Sequence[int], new: Sequence[int]
) -> Iterator[tuple[slice, slice, tuple[_Taps, _Taps, _Taps]]]:
    """Cut the result into slabs along its first axis: rows of the result, rows of the source they need, taps there."""
    first, second, third = (_taps(n, m) for n, m in zip(old, new))
    for start in range(0, new[0], SLAB):
        rows = slice(start, min(new[0], start + SLAB))
        part = slice(int(first.lower[rows][0]), int(first.upper[rows][-1]) + 1)
        yield rows, part, (_cut(first, rows, part.start), second, third)


def _reach(
    taps: Sequence[_Taps], box: Sequence[slice]
) -> tuple[tuple[slice, ...], tuple[slice, ...], list[_Taps]] | None:
    """Return what a box of the source touches: the box of the result, the source it needs, and the taps in there.

    None if nothing: a structure one voxel wide can fall between two voxels of a coarser grid.
    """
    target, source, inner = [], [], []
    for axis, part in zip(taps, box):
        rows = slice(
            int(np.searchsorted(axis.upper, part.start)), int(np.searchsorted(axis.lower, part.stop))
        )
        if rows.start >= rows.stop:
            return None
        needed = slice(int(axis.lower[rows.start]), int(axis.upper[rows.stop - 1]) + 1)
        target.append(rows)
        source.append(needed)
        inner.append(_cut(axis, rows, needed.start))
    return tuple(target), tuple(source), inner


def _cut(taps: _Taps, rows: slice, origin: int) -> _Taps:
    return _Taps(taps.lower[rows] - origin, taps.upper[rows] - origin, taps.weight[rows])


def _cubic(array: NDArray[Any], new: int, axis: int) -> NDArray[Any]:
    """Interpolate one of the last three axes (0, 1, 2) by a cubic spline: a matrix product, because it is linear."""
    *lead, d, h, w = array.shape
    matrix = _cubic_matrix(array.shape[axis - 3], new).astype(array.dtype)
    if axis == 0:
        array = np.matmul(matrix, array.reshape(*lead, d, h * w)).reshape(*lead, new, h, w)
    else:
        array = np.matmul(matrix, array) if axis == 1 else np.matmul(array, matrix.T)
    return array


@lru_cache(maxsize=256)
def _cubic_matrix(old: int, new: int) -> NDArray[np.float32]:
    """Return the (new, old) matrix of cubic spline interpolation with aligned extents and repeated edges."""
    if old == 1:
        return np.ones((new, 1), np.float32)
    # interpolating the unit vectors gives the matrix's columns
    matrix = ndimage.zoom(np.eye(old), (new / old, 1.0), order=3, mode="nearest", grid_mode=True)
    return np.asarray(matrix, np.float32)


def _orientation(affine: NDArray[np.floating]) -> NDArray[np.float64]:
    orientation: NDArray[np.float64] = io_orientation(affine)
    if np.isnan(orientation).any():
        raise DataError(
            f"the affine {np.asarray(affine).round(3).tolist()} maps two axes to one direction, so the volume has no "
            "thickness. Mend the header (sform/qform) with the scanner's original."
        )
    return orientation
