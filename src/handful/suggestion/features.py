"""What makes two images alike, as short vectors: their intensities on a small common grid, or an encoder's embeddings.

Distances between the vectors are all that is used, in units of the mean distance between two cases.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import pdist

from handful.data.cases import Case
from handful.data.intensity import background_value
from handful.data.io import read_image
from handful.data.plan import Normalisation
from handful.data.preprocess import normalise
from handful.data.resampling import grid_order, to_grid
from handful.data.volume import Volume
from handful.errors import DataError

CELLS = 16
"""Cells along each axis of the common grid."""

FINE = 32
"""Cells along each axis of what is kept of an image until the size of the common grid is known."""

COMPONENTS = 32
"""Principal components kept at most."""

RAS = (0, 1, 2)

Progress = Callable[[int, int], None]


def intensity_features(
    cases: Sequence[Case], *, threads: int = 1, progress: Progress = lambda done, total: None
) -> NDArray[np.float64]:
    """Return (N, F): each image on the same small grid, all of equal size in mm, centred on one another.

    Every image is turned to RAS, a constant border is cut off, and each channel is normalised by its own robust centre
    and spread, so that scanners' scales do not count. The grid has ``CELLS`` cells an axis over the median size of the
    images; each cell holds the mean of the voxels it covers, and beyond an image its outermost voxels go on.

    Raises:
        DataError: images that cannot be read; names each (five at most).
    """
    with ThreadPoolExecutor(max(1, threads)) as pool:
        made = []
        problems = []
        for number, result in enumerate(pool.map(_tried, cases), start=1):
            if isinstance(result, DataError):
                problems.append(str(result))
            else:
                made.append(result)
            progress(number, len(cases))
    if problems:
        more = f"\n  ... and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise DataError(
            f"{len(problems)} of {len(cases)} images cannot be compared with the others:\n  "
            + "\n  ".join(problems[:5])
            + f"{more}\n'handful check' names every problem of the data set."
        )
    size_mm = np.median([extent for _, extent in made], axis=0)
    return np.stack([_on_grid(cells, extent, size_mm, CELLS).ravel() for cells, extent in made])


def principal_components(features: NDArray[np.floating], *, most: int = COMPONENTS) -> NDArray[np.float64]:
    """Return (N, E): the coordinates along the ``most`` directions of largest variance, mean distance of two cases 1.

    Cases that are all alike give zeros.
    """
    centred = np.asarray(features, np.float64)
    centred = centred - centred.mean(axis=0)
    left, singular, _ = np.linalg.svd(centred, full_matrices=False)
    points = left[:, :most] * singular[:most]
    # what rounding leaves of equal cases is no distance
    scale = pdist(points).mean() if len(points) > 1 else 0.0
    return points / scale if scale > 1e-9 * (1 + np.abs(features).max()) else np.zeros_like(points)


def _tried(case: Case) -> tuple[NDArray[np.float64], NDArray[np.float64]] | DataError:
    try:
        return _small(read_image(case.images))
    except DataError as error:
        return DataError(f"{case.name}: {error}")


def _small(image: Volume) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return an image without its constant border, ``FINE`` cells an axis, (C, R, A, S), and its size in mm."""
    array = to_grid(image.array, image.affine, RAS)
    box = _inside(array)
    spacing = np.asarray(image.spacing_mm)[list(grid_order(image.affine, RAS)[0])]
    extent = spacing * [part.stop - part.start for part in box]
    channels = [normalise(np.ascontiguousarray(channel), Normalisation()) for channel in array]
    return _on_grid(np.stack(channels)[(slice(None), *box)], extent, extent, FINE), extent


def _inside(array: NDArray[np.float32]) -> tuple[slice, ...]:
    """Return the box outside which every channel of (C, X, Y, Z) holds its background value; all if it is constant."""
    content = np.zeros(array.shape[1:], bool)
    for channel in array:
        content |= channel != background_value(channel)
    box = []
    for axis in range(3):
        hit = np.flatnonzero(content.any(axis=tuple(other for other in range(3) if other != axis)))
        box.append(slice(int(hit[0]), int(hit[-1]) + 1) if hit.size else slice(0, array.shape[1 + axis]))
    return tuple(box)


def _on_grid(
    array: NDArray[np.floating], extent_mm: NDArray[np.float64], size_mm: NDArray[np.float64], cells: int
) -> NDArray[np.float64]:
    """Average (C, X, Y, Z), ``extent_mm`` large, over the cells of a grid ``size_mm`` large with the same centre."""
    result = np.asarray(array, np.float64)
    for axis in range(3):
        weights = averaging(array.shape[1 + axis], float(extent_mm[axis] / size_mm[axis]), cells)
        result = np.moveaxis(np.tensordot(weights, result, (1, 1 + axis)), 0, 1 + axis)
    return result


def averaging(voxels: int, extent: float, cells: int) -> NDArray[np.float64]:
    """Return the (cells, voxels) matrix that averages voxels over cells, by the length each two have in common.

    Args:
        voxels: along one axis.
        extent: their length together, where that of all cells together is 1; both have the same centre.
        cells: of the grid. One that reaches no voxel takes the nearest.
    """
    cell_edges = np.linspace(-0.5, 0.5, cells + 1)
    voxel_edges = np.linspace(-0.5, 0.5, voxels + 1) * extent
    shared = np.minimum(cell_edges[1:, None], voxel_edges[None, 1:]) - np.maximum(
        cell_edges[:-1, None], voxel_edges[None, :-1]
    )
    shared = np.maximum(shared, 0.0)
    empty = shared.sum(axis=1) < 1e-9 / cells
    centres = (cell_edges[1:] + cell_edges[:-1]) / 2
    shared[empty] = 0.0
    shared[empty, np.where(centres[empty] < 0, 0, voxels - 1)] = 1.0
    return np.asarray(shared / shared.sum(axis=1, keepdims=True), np.float64)
