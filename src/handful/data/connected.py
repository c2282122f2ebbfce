"""Connected pieces of a structure: voxels that touch by a face, an edge or a corner belong together."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

WHOLE = 0.99
"""A structure whose largest piece holds this share of its voxels is one piece: annotators leave stray voxels."""


def find_pieces(mask: NDArray[np.bool_]) -> tuple[NDArray[np.integer], NDArray[np.int64]]:
    """Number the pieces of a structure and count their voxels.

    Args:
        mask: (D, H, W), in any order of axes.

    Returns:
        The number of the piece of each voxel, (D, H, W), 0 outside; pieces are numbered from 1 by their first voxels in
        the array's order. And the size of each, (pieces,), number 1 first.
    """
    numbers, count = ndimage.label(mask, ndimage.generate_binary_structure(3, 3))
    sizes = np.zeros(count + 1, np.int64)
    for part in numbers:  # slice by slice: counting takes eight bytes a voxel
        sizes += np.bincount(part.ravel(), minlength=count + 1)
    return numbers, sizes[1:]


def largest_share(mask: NDArray[np.bool_]) -> float:
    """Return which share of the voxels of a structure, (D, H, W), its largest piece holds; 0 if it is empty."""
    _, sizes = find_pieces(mask)
    return float(sizes.max() / sizes.sum()) if sizes.size else 0.0
