"""Bring one volume into the shape of another: an affine map, then a smooth displacement field, by local correlation.

Grid coordinates run from -1 to 1 between the outer edges of a volume, x (the last axis) first, as ``grid_sample``
takes them with ``align_corners=False``: so a map found on thinned volumes holds on the volumes themselves.

References:
    Avants et al., 2008, local cross-correlation in registration. https://doi.org/10.1016/j.media.2007.06.004
    Balakrishnan et al., 2019, VoxelMorph (the loss as it is written here). https://arxiv.org/abs/1809.05231
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

WORKING_VOXELS = 16_384
"""Of the thinned volumes that are compared: the time grows with them."""

AFFINE_STEPS, AFFINE_RATE, AFFINE_WINDOW = 30, 0.01, 9
BEND_STEPS, BEND_RATE, BEND_WINDOW = 60, 0.3, 5
STIFFNESS = 0.05
"""Weight of the mean squared difference (voxels) between neighbouring control points."""

KNOT_VOXELS = 4
"""Distance of the displacement's control points."""


class Deformation(NamedTuple):
    """Where each point of the fixed volume comes from in the moving one.

    Attributes:
        affine: (B, 3, 4).
        displacement: (B, 3, d, h, w) added to the affine map, of any size, interpolated linearly.
    """

    affine: Tensor
    displacement: Tensor


def register(
    moving: Tensor, fixed: Tensor, *, inside: Tensor | None = None, spacing_mm: Sequence[float] = (1, 1, 1)
) -> Deformation:
    """Find the deformation that makes ``moving`` look like ``fixed``, each pair on its own.

    Args:
        moving, fixed: (B, C, D, H, W) of one size, of one scale of intensities.
        inside: (B, 1, D, H, W) 1 where the fixed volume is known, 0 where it was padded.
        spacing_mm: of their voxels; fine axes are thinned first.

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> import torch
        >>> volume = torch.rand(1, 1, 12, 16, 20)
        >>> register(volume, volume).affine.shape
        torch.Size([1, 3, 4])
    """
    if moving.shape != fixed.shape or moving.ndim != 5:
        raise ValueError(
            f"moving and fixed must be (B, C, D, H, W) of one shape, found {tuple(moving.shape)} and "
            f"{tuple(fixed.shape)}."
        )
    size = fixed.shape[2:]
    small = working_size(size, spacing_mm)
    known = torch.ones_like(fixed[:, :1]) if inside is None else inside.to(fixed.dtype)
    a, b, weight = (F.adaptive_avg_pool3d(x, small) for x in (moving, fixed, known))
    affine = torch.eye(3, 4, device=fixed.device).repeat(len(fixed), 1, 1).requires_grad_()
    nothing = fixed.new_zeros(len(fixed), 3, *(max(2, math.ceil(side / KNOT_VOXELS)) for side in size))
    bend = nothing.clone().requires_grad_()  # in voxels
    unit = torch.tensor([2 / side for side in reversed(size)], device=fixed.device).view(1, 3, 1, 1, 1)

    def fit(leaf: Tensor, steps: int, rate: float, window: int, stiffness: float) -> None:
        optimiser = torch.optim.Adam([leaf], lr=rate)
        for _ in range(steps):
            optimiser.zero_grad()
            moved = warp(a, Deformation(affine, bend * unit))
            # summed over pairs: each has its own parameters and so its own search
            loss = -local_correlation(moved, b, window=window, weight=weight).sum()
            if stiffness:
                loss = loss + stiffness * _roughness(bend).sum()
            torch.autograd.backward(loss)
            optimiser.step()
        leaf.requires_grad_(False)

    with torch.enable_grad():
        bend.requires_grad_(False)
        fit(affine, AFFINE_STEPS, AFFINE_RATE, AFFINE_WINDOW, 0.0)
        fit(bend.requires_grad_(), BEND_STEPS, BEND_RATE, BEND_WINDOW, STIFFNESS)
    return Deformation(affine, bend * unit)


def warp(maps: Tensor, deformation: Deformation, *, outside: str = "border") -> Tensor:
    """Return (B, C, D, H, W) maps moved by a deformation, interpolated linearly.

    Args:
        maps: of the moving volume.
        deformation: of ``register``.
        outside: ``border`` repeats the nearest voxel beyond the maps, ``zeros`` shows 0.
    """
    grid = F.affine_grid(deformation.affine, [len(maps), 1, *maps.shape[2:]], align_corners=False)
    added = F.interpolate(deformation.displacement, maps.shape[2:], mode="trilinear", align_corners=False)
    return F.grid_sample(maps, grid + added.movedim(1, -1), padding_mode=outside, align_corners=False)


def local_correlation(a: Tensor, b: Tensor, *, window: int, weight: Tensor | None = None) -> Tensor:
    """Return (B,): the mean over voxels of the squared correlation in the window around each.

    A change of brightness and contrast that is the same all over a window changes nothing. Flat windows count 0.

    Args:
        a, b: (B, C, D, H, W).
        window: side in voxels, odd.
        weight: (B, 1, D, H, W) of each voxel in the mean.
    """
    mean_a, mean_b = _box(a, window), _box(b, window)
    covariance = _box(a * b, window) - mean_a * mean_b
    variances = (_box(a * a, window) - mean_a**2) * (_box(b * b, window) - mean_b**2)
    squared = covariance**2 / (variances.clamp(min=0) + 1e-3)
    if weight is None:
        return squared.flatten(1).mean(1)
    squared = squared.mean(1, keepdim=True) * weight
    return squared.flatten(1).sum(1) / weight.flatten(1).sum(1).clamp(min=1e-6)


def working_size(size: Sequence[int], spacing_mm: Sequence[float]) -> tuple[int, int, int]:
    """Return the size to which a volume is thinned: its finest axis is halved, again and again, until it is small.

    Example:
        >>> working_size((10, 216, 256), (10.0, 1.4, 1.4))
        (10, 27, 32)
    """
    sides, spacing = list(size), list(spacing_mm)
    while math.prod(sides) > WORKING_VOXELS and max(sides) > 1:
        axis = min((k for k in range(3) if sides[k] > 1), key=lambda k: (spacing[k], -sides[k]))
        sides[axis], spacing[axis] = math.ceil(sides[axis] / 2), spacing[axis] * 2
    depth, height, width = sides
    return depth, height, width


def _box(x: Tensor, window: int) -> Tensor:
    """Average over a cube, axis after axis; beyond the border nothing is counted."""
    for axis in range(3):
        kernel, padding = [1, 1, 1], [0, 0, 0]
        kernel[axis], padding[axis] = window, window // 2
        x = F.avg_pool3d(x, kernel, stride=1, padding=padding, count_include_pad=False)
    return x


def _roughness(bend: Tensor) -> Tensor:
    """Return (B,): the mean squared difference of neighbouring control points, summed over axes."""
    each = [bend.diff(dim=axis).square().flatten(1).mean(1) for axis in (2, 3, 4) if bend.shape[axis] > 1]
    return torch.stack(each).sum(0)
