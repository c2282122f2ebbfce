"""Structures that the plan calls one piece, as the budget's labels show them, are one piece in predictions too.

A few labels leave a network unsure far from the structure, where it invents small islands. Each of their voxels goes to
its most probable other class, which need not be background.

References:
    Isensee et al., 2021, nnU-Net (largest component only, where cross-validation says so; here the budget's labels say
    so, because few labels leave nothing to validate on). https://doi.org/10.1038/s41592-020-01008-z
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from handful.data.connected import find_pieces
from handful.data.resampling import SLAB, resampled_argmax


def keep_largest_pieces(probabilities: NDArray[np.float32], one_piece: Sequence[bool]) -> None:
    """Take from each flagged class, in place, the voxels that do not touch its largest piece.

    Their probability of the class becomes 0, so that the most probable other class wins (the lowest index of equals, as
    in ``resampled_argmax``); nothing else changes. Voxels given to another flagged class must touch that one's largest
    piece too, or they move on. All classes are treated at once, so their order decides nothing; of equally large pieces
    the one with the first voxel, in the order of the array, is kept. What is one piece already stays, bit for bit.

    Beside ``probabilities``, which may be a memory map, this holds two bytes a voxel, and about five more a voxel of
    the box around one class.

    Args:
        probabilities: (K, D, H, W), background first.
        one_piece: one flag a class index, background's False; empty: nothing to do.

    Example:
        >>> p = np.float32([[0.1, 0.2, 0.9, 0.3], [0.9, 0.8, 0.1, 0.7]]).reshape(2, 1, 1, 4)
        >>> keep_largest_pieces(p, (False, True))
        >>> p.argmax(0).ravel().tolist()
        [1, 1, 0, 0]
    """
    flagged = [index for index, flag in enumerate(one_piece) if flag]
    if not flagged:
        return
    shape = probabilities.shape[1:]
    winner = resampled_argmax(probabilities, shape)
    kept: dict[int, tuple[int, ...]] = {}
    lost = np.zeros(shape, bool)
    while _find_islands(winner, flagged, kept, lost):
        for start in range(0, shape[0], SLAB):
            rows = slice(start, start + SLAB)
            d, h, w = np.nonzero(lost[rows])
            if d.size:
                scores, own = probabilities[:, rows], winner[rows]
                scores[own[d, h, w], d, h, w] = 0
                others = scores[:, d, h, w][:, None, None]  # a volume of one row
                own[d, h, w] = resampled_argmax(others, (1, 1, d.size))[0, 0]
        lost[:] = False


def _find_islands(
    winner: NDArray[np.uint8],
    flagged: Sequence[int],
    kept: dict[int, tuple[int, ...]],
    lost: NDArray[np.bool_],
) -> bool:
    """Mark in ``lost`` the voxels of flagged classes outside the piece to keep; return whether there are any.

    ``kept`` remembers one voxel of the piece that was the largest at first: voxels another class gave away later may
    form a larger one, and must not drive it out.
    """
    found = False
    boxes: list[tuple[slice, ...] | None] = list(ndimage.find_objects(winner, max(flagged)))
    for index in flagged:
        box = boxes[index - 1]
        if box is None:
            continue
        numbers, sizes = find_pieces(winner[box] == index)
        corner = [part.start for part in box]
        if index not in kept:
            place = np.unravel_index(np.argmax(numbers == 1 + np.argmax(sizes)), numbers.shape)
            kept[index] = tuple(int(start + step) for start, step in zip(corner, place, strict=True))
        if len(sizes) > 1:
            number = numbers[tuple(at - start for at, start in zip(kept[index], corner, strict=True))]
            lost[box] |= (numbers != number) & (numbers != 0)
            found = True
    return found
