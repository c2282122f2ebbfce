"""From a file's grid of voxels to the network's and back: axes reordered and flipped, spacing changed, nothing cropped.

Reordering goes to the closest RAS axes and never interpolates, so oblique volumes keep their voxels. Resampling aligns
the *extents* of the two grids (the outer faces of the outermost voxels), so both directions use the same map and a
round trip returns to the same grid. An axis whose number of voxels does not change is not touched.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from nibabel.orientations import io_orientation
from numpy.typing import NDArray
from scipy import ndimage

from handful.errors import DataError

Order = Literal[1, 3]
"""Of a spline: linear or cubic."""

TIE = 1e-6
"""Scores this close are equal: rounding does not decide which of two classes gets the voxel between them."""


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
    array: NDArray[np.floating], shape: Sequence[int], *, orders: Sequence[int]
) -> NDArray[np.floating]:
    """Interpolate the last three axes of ``array`` to ``shape`` by splines, one axis after the other.

    Interpolation along an axis is linear in the values, so it is a matrix; three small matrix products replace
    64 taps a voxel. Equal to ``scipy.ndimage.zoom(..., mode="nearest", grid_mode=True)``.

    Args:
        array: (..., D, H, W).
        shape: of the result; axes that have this size already are left as they are, bit for bit.
        orders: spline order along each axis, 1 or 3.
    """
    lead = array.shape[:-3]
    # shrinking axes first: the later products are smaller
    for axis in sorted(range(3), key=lambda axis: shape[axis] / array.shape[len(lead) + axis]):
        old, new = array.shape[len(lead) + axis], shape[axis]
        if old == new:
            continue
        matrix = _interpolation_matrix(old, new, orders[axis]).astype(array.dtype)
        if axis == 0:
            tail = array.shape[-2:]
            array = np.matmul(matrix, array.reshape(*lead, old, -1)).reshape(*lead, new, *tail)
        elif axis == 1:
            array = np.matmul(matrix, array)
        else:
            array = np.matmul(array, matrix.T)
    return array


def resample_labels(label: NDArray[np.uint8], shape: Sequence[int]) -> NDArray[np.uint8]:
    """Interpolate each class linearly and keep the strongest: smooth borders without mixing indices.

    Each class is computed only in the box that holds it, so that the number of classes hardly matters.

    Args:
        label: (D, H, W) class indices; any value, 255 included, counts as a class. The lowest wins ties.
        shape: of the result; equal to the label's shape returns the label unchanged.
    """
    if tuple(shape) == label.shape:
        return label
    matrices = [_interpolation_matrix(old, new, 1) for old, new in zip(label.shape, shape)]
    result = np.zeros(shape, np.uint8)
    best = np.zeros(shape, np.float32)
    background = np.ones(shape, np.float32)
    boxes: list[tuple[slice, ...] | None] = list(ndimage.find_objects(label))
    for index, box in enumerate(boxes, start=1):
        if box is None:
            continue
        target, weights = _box_weights(matrices, box)
        score = _apply(weights, (label[box] == index).astype(np.float32))
        background[target] -= score
        wins = score > best[target] + TIE
        result[target][wins] = index
        best[target][wins] = score[wins]
    result[background >= best - TIE] = 0
    return result


def resampled_argmax(scores: NDArray[np.floating], shape: Sequence[int]) -> NDArray[np.uint8]:
    """Interpolate (K, D, H, W) scores linearly to ``shape`` and return the index of the strongest class.

    One class at a time, each only where it could win, so memory stays at a few volumes for any K. The lowest index
    wins ties.
    """
    result = np.zeros(shape, np.uint8)
    best = np.full(shape, -np.inf, np.float32)
    matrices = [_interpolation_matrix(old, new, 1) for old, new in zip(scores.shape[1:], shape)]
    # the strongest of K scores is at least their mean: below the smallest mean nothing wins
    mean = np.zeros(scores.shape[1:], np.float32)
    for channel in scores:
        mean += channel
    floor = float(mean.min()) / len(scores)
    floor -= 1e-5 * max(1.0, abs(floor))
    for index, channel in enumerate(scores):
        box = _bounding_box(channel >= floor)
        if box is None:
            continue
        grown = tuple(slice(max(0, s.start - 1), min(n, s.stop + 1)) for s, n in zip(box, channel.shape))
        target, weights = _box_weights(matrices, grown)
        score = _apply(weights, channel[grown].astype(np.float32))
        wins = score > best[target] + TIE
        result[target][wins] = index
        best[target][wins] = score[wins]
    return result


def _orientation(affine: NDArray[np.floating]) -> NDArray[np.float64]:
    orientation: NDArray[np.float64] = io_orientation(affine)
    if np.isnan(orientation).any():
        raise DataError(
            f"the affine {np.asarray(affine).round(3).tolist()} maps two axes to one direction, so the volume has no "
            "thickness. Mend the header (sform/qform) with the scanner's original."
        )
    return orientation


@lru_cache(maxsize=512)
def _interpolation_matrix(old: int, new: int, order: Order) -> NDArray[np.float32]:
    """Return the (new, old) matrix of spline interpolation with aligned extents and repeated edges."""
    if old == 1:
        return np.ones((new, 1), np.float32)
    if old == new:
        return np.eye(old, dtype=np.float32)
    # interpolating the unit vectors gives the matrix's columns
    matrix = ndimage.zoom(np.eye(old), (new / old, 1.0), order=order, mode="nearest", grid_mode=True)
    return np.asarray(matrix, np.float32)


def _box_weights(
    matrices: Sequence[NDArray[np.float32]], box: Sequence[slice]
) -> tuple[tuple[slice, ...], list[NDArray[np.float32]]]:
    """Return the box of the result that voxels of ``box`` reach, and the parts of the matrices that take them there."""
    target, weights = [], []
    for matrix, part in zip(matrices, box):
        reached = np.flatnonzero(matrix[:, part].any(axis=1))
        # a class one voxel wide can fall between two voxels of a coarser grid
        rows = slice(int(reached[0]), int(reached[-1]) + 1) if reached.size else slice(0, 0)
        target.append(rows)
        weights.append(matrix[rows, part])
    return tuple(target), weights


def _apply(weights: Sequence[NDArray[np.float32]], array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Multiply (D, H, W) by one matrix an axis; an identity is skipped."""
    for axis in sorted(range(3), key=lambda axis: weights[axis].shape[0] / weights[axis].shape[1]):
        matrix = weights[axis]
        if matrix.shape[0] == matrix.shape[1] and np.array_equal(matrix, np.eye(len(matrix))):
            continue
        if axis == 0:
            array = (matrix @ array.reshape(array.shape[0], -1)).reshape(-1, *array.shape[1:])
        elif axis == 1:
            array = np.matmul(matrix, array)
        else:
            array = np.matmul(array, matrix.T)
    return array


def _bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, ...] | None:
    found: tuple[slice, ...] | None = next(iter(ndimage.find_objects(mask.view(np.uint8))), None)
    return found
