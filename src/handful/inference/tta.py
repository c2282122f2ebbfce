"""Test-time averaging: predict transformed copies of an image and transform the predictions back.

Each transform is a pair of functions that undo one another. They act on windows, so memory stays bounded.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

SMALL_ANGLE_DEGREES = 8.0
SMALL_SCALE = 1.06
SMALL_SHIFT = 0.03  # of the window: less than the margin that Gaussian blending trusts least


@dataclass(frozen=True)
class Transform:
    """A change of a window that can be undone.

    Attributes:
        name: for messages and records.
        apply: (B, C, *S) -> (B, C, *S).
        invert: (B, K, *S) -> (B, K, *S), undoes ``apply``: exactly for mirrors, up to interpolation otherwise.
    """

    name: str
    apply: Callable[[Tensor], Tensor]
    invert: Callable[[Tensor], Tensor]


IDENTITY = Transform("identity", lambda x: x, lambda x: x)


def transforms_for(mirror: Sequence[bool]) -> tuple[Transform, ...]:
    """Choose the transforms: every combination of the allowed mirrors, else small rotations, scales and shifts.

    Args:
        mirror: whether each axis of the window may be mirrored (the plan's), ``dims`` flags.
    """
    axes = [axis for axis, allowed in enumerate(mirror) if allowed]
    if axes:
        choices = product((False, True), repeat=len(axes))
        return tuple(
            mirrored([a for a, chosen in zip(axes, choice, strict=True) if chosen]) for choice in choices
        )
    dims = len(mirror)
    still = (0.0,) * dims
    aside = tuple(SMALL_SHIFT if axis >= dims - 2 else 0.0 for axis in range(dims))
    return (
        IDENTITY,
        moved(angle_degrees=SMALL_ANGLE_DEGREES, scale=1.0, shift=still),
        moved(angle_degrees=-SMALL_ANGLE_DEGREES, scale=1.0, shift=still),
        moved(angle_degrees=0.0, scale=SMALL_SCALE, shift=aside),
        moved(angle_degrees=0.0, scale=1 / SMALL_SCALE, shift=tuple(-s for s in aside)),
    )


def mirrored(axes: Sequence[int]) -> Transform:
    """Mirror spatial ``axes`` (0 is the first of S); its own inverse."""
    if not axes:
        return IDENTITY
    dims = [axis + 2 for axis in axes]
    return Transform(f"mirror {', '.join(map(str, axes))}", lambda x: x.flip(dims), lambda x: x.flip(dims))


def moved(*, angle_degrees: float, scale: float, shift: Sequence[float]) -> Transform:
    """Rotate in the plane of the last two axes, scale all axes, and shift; beyond the edge the last voxel is repeated.

    Args:
        angle_degrees: of the rotation in H, W.
        scale: above 1 enlarges.
        shift: along each axis of S, as a part of the window's size.
    """
    angle = math.radians(angle_degrees)

    def matrix(sizes: Sequence[int]) -> Tensor:
        """Return the map from output to input positions in voxels from the centre, homogeneous, axes in order of S."""
        dims = len(sizes)
        move = torch.eye(dims + 1, dtype=torch.float64)
        move[dims - 2 : dims, dims - 2 : dims] = torch.tensor(
            [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64
        )
        move[:dims, :dims] /= scale
        move[:dims, dims] = torch.tensor(
            [s * n for s, n in zip(shift, sizes, strict=True)], dtype=torch.float64
        )
        return move

    def warp(x: Tensor, *, back: bool) -> Tensor:
        sizes = x.shape[2:]
        move = matrix(sizes)
        return _resample(x, torch.linalg.inv(move) if back else move)

    name = f"rotate {angle_degrees:g} degrees, scale {scale:.3g}, shift {', '.join(f'{s:g}' for s in shift)}"
    return Transform(name, lambda x: warp(x, back=False), lambda x: warp(x, back=True))


def averaged(
    network: Callable[[Tensor], Tensor], transforms: Sequence[Transform]
) -> Callable[[Tensor], Tensor]:
    """Return windows -> class probabilities, averaged over the transforms (a softmax follows the network).

    Args:
        network: (B, C, *S) -> (B, K, *S) logits.
        transforms: at least one; ``(IDENTITY,)`` for plain prediction.
    """

    def predict(windows: Tensor) -> Tensor:
        total: Tensor | None = None
        for transform in transforms:
            part = transform.invert(network(transform.apply(windows)).float().softmax(1))
            total = part if total is None else total + part
        assert total is not None
        return total / len(transforms)

    return predict


def entropy(probabilities: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return how undecided each voxel is: the entropy of (K, *S) probabilities over log K, in [0, 1].

    Of averaged members it holds both kinds of doubt: members that waver, and members that disagree.
    """
    total = np.zeros(probabilities.shape[1:], np.float32)
    for p in probabilities:  # class by class, so that a memory-mapped array is never copied whole
        total -= p * np.log(np.maximum(p, np.finfo(np.float32).tiny))
    total /= math.log(max(len(probabilities), 2))
    return total.clip(0.0, 1.0)


def _resample(x: Tensor, move: Tensor) -> Tensor:
    """Sample ``x`` (B, C, *S) linearly at ``move`` applied to each output voxel."""
    sizes = x.shape[2:]
    dims = len(sizes)
    # affine_grid wants coordinates in [-1, 1] and the axes in reverse order
    unit = torch.diag(torch.tensor([2 / n for n in sizes] + [1.0], dtype=torch.float64))
    theta = (unit @ move @ torch.linalg.inv(unit))[:dims]
    order = list(reversed(range(dims)))
    theta = theta[order][:, [*order, dims]].to(x)
    grid = functional.affine_grid(theta.expand(len(x), dims, dims + 1), list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
