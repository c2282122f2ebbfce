"""Slices along several axes of a volume: one 2D network sees all of them, and its predictions are averaged.

Where voxels are about as long along every axis, a labelled volume holds three stacks of slices instead of one, and what
two of them miss the third may see: three times the examples from the same label, in steps far cheaper than 3D.

References:
    Perslev et al., 2019, One network to segment them all (MPUnet). https://arxiv.org/abs/1911.01764
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from handful.data.sampling import Readable, StoredCase

Order = tuple[int, int, int]
"""Which of D, H, W come first, second and third: the axis that is cut into slices, then their rows and columns."""

STRAIGHT: Order = (0, 1, 2)


def in_planes(cases: Sequence[StoredCase], orders: Sequence[Order]) -> list[StoredCase]:
    """Return every case once for each order, all of the first order first; nothing is copied."""
    return [_turned(case, order) for order in orders for case in cases]


def lead_and(order: Sequence[int]) -> tuple[int, ...]:
    """Return ``order`` as a permutation of (C, D, H, W), the channels staying in front."""
    return (0, *(axis + 1 for axis in order))


def undone(order: Sequence[int]) -> Order:
    """Return the order that brings the axes back."""
    d, h, w = (int(axis) for axis in np.argsort(order))
    return d, h, w


def _turned(case: StoredCase, order: Order) -> StoredCase:
    if order == STRAIGHT:
        return case
    d, h, w = (case.spacing_mm[axis] for axis in order)
    return replace(
        case,
        image=_Turned(case.image, order),
        label=None if case.label is None else _Turned(case.label, order),
        foreground=tuple(voxels[:, order] for voxels in case.foreground),
        spacing_mm=(d, h, w),
    )


@dataclass(frozen=True)
class _Turned:
    """An array whose last three axes appear in another order; boxes of it are read from the array as it is."""

    array: Readable
    order: Order

    @property
    def shape(self) -> tuple[int, ...]:
        *lead, d, h, w = self.array.shape
        return (*lead, *((d, h, w)[axis] for axis in self.order))

    def __getitem__(self, box: tuple[slice, ...]) -> Tensor:
        lead, asked = box[:-3], box[-3:]
        found = self.array[(*lead, *(asked[axis] for axis in undone(self.order)))]
        return found.permute(*range(len(lead)), *(len(lead) + axis for axis in self.order))
