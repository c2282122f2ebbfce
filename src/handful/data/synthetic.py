"""Labelled volumes in the shape of unlabelled ones: a labelled image is warped to look like another, its label with it.

With one to four labels a network has seen one to four shapes, bent at random. A registration to unlabelled images
bends them as patients really differ, and image and label stay aligned however well or badly it succeeds: unlike a
pseudo-label, what such a volume teaches is true of the image it shows.

References:
    Zhao et al., 2019, Data augmentation using learned transformations for one-shot segmentation.
    https://arxiv.org/abs/1902.09383
"""

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from handful.data.preprocess import IGNORED_VOXEL
from handful.data.registration import Deformation, local_correlation, register, warp
from handful.data.sampling import StoredCase, foreground_voxels

TOGETHER_VOXELS = 1_000_000
"""Voxels registered at once, at most, but for a single pair: bounds the memory."""

KEPT_VOLUME = (1 / 3, 3.0)
"""How far the volume of a structure may shrink or grow before the pair counts as failed."""

KEPT_VOXELS = 200_000_000
"""Of all synthetic volumes together, at most: about a gigabyte with their labels."""


class Pair(NamedTuple):
    """A labelled case, and the case whose shape it is to take."""

    moving: StoredCase
    fixed: StoredCase


def choose_pairs(
    labelled: Sequence[StoredCase], others: Sequence[StoredCase], count: int, *, seed: int
) -> list[Pair]:
    """Return up to ``count`` pairs, no pair twice: all labelled cases alike often, all others too.

    Fewer where their volumes would take more than ``KEPT_VOXELS``.
    """
    order = np.random.default_rng([seed, 29]).permutation(len(others))
    pairs = [
        Pair(labelled[(place + turn) % len(labelled)], others[index])
        for turn in range(len(labelled))  # in each, every target is met by another labelled case
        for place, index in enumerate(order)
    ]
    chosen: list[Pair] = []
    voxels = 0
    for pair in pairs:
        voxels += math.prod(pair.fixed.image.shape[1:])
        if len(chosen) == count or voxels > KEPT_VOXELS:
            break
        chosen.append(pair)
    return chosen


def synthetic_cases(pairs: Sequence[Pair], *, classes: int, seconds: float = math.inf) -> list[StoredCase]:
    """Register each pair and return the labelled case in the other's shape, where that succeeded.

    A pair fails where the two do not look more alike afterwards, or a structure shrank or grew beyond
    ``KEPT_VOLUME``. Voxels that come from beyond the labelled volume are unknown.

    Args:
        pairs: of ``choose_pairs``; their centres are laid on each other first.
        classes: K, background included.
        seconds: after so many no further registrations begin.

    Returns:
        Cases named ``labelled as other``, of the other's size and spacing, on its device.
    """
    made: list[StoredCase] = []
    done, began = 0, time.monotonic()
    while done < len(pairs) and time.monotonic() - began < seconds:
        batch = [pairs[done]]
        size = _frame(batch)
        for pair in pairs[done + 1 :]:
            wider = _frame([*batch, pair])
            if (len(batch) + 1) * wider[0] * wider[1] * wider[2] > TOGETHER_VOXELS:
                break
            batch.append(pair)
            size = wider
        made += _moved(batch, size, classes)
        done += len(batch)
    return made


def _moved(pairs: Sequence[Pair], size: tuple[int, int, int], classes: int) -> list[StoredCase]:
    every = (slice(None),) * 4
    moving = torch.stack([_fitted(pair.moving.image[every].float(), size) for pair in pairs])
    fixed = torch.stack([_fitted(pair.fixed.image[every].float(), size) for pair in pairs])
    inside = torch.stack(
        [_fitted(torch.ones_like(pair.fixed.image[every][:1]).float(), size, 0.0) for pair in pairs]
    )
    labels = []
    for pair in pairs:
        assert pair.moving.label is not None
        labels.append(_fitted(pair.moving.label[every[:3]][None], size, IGNORED_VOXEL)[0])
    label = torch.stack(labels)
    spacing = tuple(float(np.mean([pair.fixed.spacing_mm[axis] for pair in pairs])) for axis in range(3))
    found = register(moving, fixed, inside=inside, spacing_mm=spacing)
    image = warp(moving, found)
    before, after = (local_correlation(x, fixed, window=5, weight=inside) for x in (moving, image))
    moved = _warped_label(label, found, classes)
    kept = []
    for index, pair in enumerate(pairs):
        sizes = [torch.bincount(x[index].flatten().long(), minlength=256)[1:classes] for x in (label, moved)]
        ratio = (sizes[1][sizes[0] > 0] / sizes[0][sizes[0] > 0]).tolist()
        if not after[index] > before[index] or not all(KEPT_VOLUME[0] <= r <= KEPT_VOLUME[1] for r in ratio):
            continue
        box = _middle(tuple(pair.fixed.image.shape[1:]), size)
        own = moved[index][box].contiguous()
        kept.append(
            StoredCase(
                f"{pair.moving.name} as {pair.fixed.name}",
                image[index][(slice(None), *box)].to(pair.fixed.image[every].dtype).contiguous(),
                own,
                foreground_voxels(own.cpu().numpy(), classes),
                pair.fixed.spacing_mm,
            )
        )
    return kept


def _warped_label(label: Tensor, found: Deformation, classes: int) -> Tensor:
    """Return (B, D, H, W) uint8: each class warped linearly, the strongest wins; unknown where half of it is."""
    known = warp((label != IGNORED_VOXEL)[:, None].float(), found, outside="zeros")[:, 0] > 0.5
    best = torch.full(label.shape, -1.0, device=label.device)
    strongest = torch.zeros_like(label)
    for index in range(classes):  # one at a time: all classes of a large volume would not fit into memory
        share = warp((label == index)[:, None].float(), found)[:, 0]
        strongest = torch.where(share > best, index, strongest)
        best = torch.maximum(best, share)
    return strongest.where(known, IGNORED_VOXEL).to(torch.uint8)


def _frame(pairs: Sequence[Pair]) -> tuple[int, int, int]:
    """Return the size that holds every volume."""
    shapes = [case.image.shape[1:] for pair in pairs for case in pair]
    depth, height, width = (max(shape[axis] for shape in shapes) for axis in range(3))
    return depth, height, width


def _fitted(volume: Tensor, size: tuple[int, int, int], value: float | None = None) -> Tensor:
    """Put (C, D, H, W) into the middle of a larger box, around it ``value`` or its nearest voxel."""
    sides: list[int] = []
    for length, whole in reversed(list(zip(volume.shape[1:], size, strict=True))):
        sides += [(whole - length) // 2, whole - length - (whole - length) // 2]
    if value is not None:
        return F.pad(volume, sides, value=value)
    return F.pad(volume[None], sides, mode="replicate")[0]


def _middle(shape: Sequence[int], size: tuple[int, int, int]) -> tuple[slice, ...]:
    """Return the place of a volume in the box that ``_fitted`` put it into."""
    starts = [(whole - length) // 2 for length, whole in zip(shape, size, strict=True)]
    return tuple(slice(start, start + length) for start, length in zip(starts, shape, strict=True))
