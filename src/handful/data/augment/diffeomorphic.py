"""A smooth random warp that cannot fold: a small velocity field, integrated by scaling and squaring.

MONA warps strong views of unlabelled images so (image only, in the released code). Grids are what ``grid_sample``
takes with ``align_corners=True``: (B, H, W, 2), x before y, from -1 to 1.

References:
    Chen et al., 2020, adversarial augmentation. https://arxiv.org/abs/2006.13322
    Vercauteren et al., 2009. https://doi.org/10.1016/j.neuroimage.2008.10.040
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from handful.data.augment.separable import separable


def sample_velocity(batch: int, knots: Sequence[int] = (32, 32), *, generator: torch.Generator) -> Tensor:
    """Draw (B, 2, *knots): uniform directions of unit norm an image, x before y."""
    velocity = torch.rand(batch, 2, *knots, generator=generator, device=generator.device) * 2 - 1
    return F.normalize(velocity.flatten(1), dim=1).reshape(velocity.shape)


@torch.no_grad()
def diffeomorphic_grid(
    velocity: Tensor,
    size: Sequence[int],
    *,
    strength: float = 1.5,
    steps: int = 8,
    form: Literal["repaired", "official"] = "repaired",
) -> Tensor:
    """Return the sampling grid (B, H, W, 2) of the flow of ``strength * velocity`` after unit time.

    The velocity is smoothed (Gaussian, sigma 1 knot), interpolated to ``size``, integrated in 2^steps steps, and the
    displacement is smoothed again (sigma 1 pixel). The grid stays inside the image.

    ``form="official"`` loses the first of the 2^steps steps, as the released code does (it subtracts a base grid that
    it had moved): the displacement is 1 / 256 too short.

    Args:
        velocity: (B, 2, h, w) of ``sample_velocity``.
        size: (H, W).
        strength: MONA's 1.5.
        steps: of squaring.
        form: see above.
    """
    if velocity.ndim != 4 or velocity.shape[1] != 2 or len(size) != 2:
        raise ValueError(
            f"a velocity must be (B, 2, h, w) and a size (H, W), found {tuple(velocity.shape)} and {tuple(size)}."
        )
    flow = F.interpolate(_smooth(strength * velocity), tuple(size), mode="bilinear", align_corners=False)
    axes = [torch.linspace(-1, 1, length, device=velocity.device, dtype=velocity.dtype) for length in size]
    base = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1])  # (2, H, W), x first
    moved = base + flow / 2**steps
    start = moved if form == "official" else base
    for _ in range(steps):
        moved = F.grid_sample(moved, moved.movedim(1, -1), padding_mode="border", align_corners=True)
    inside = (moved - start + base).clamp(-1, 1)
    return (_smooth(inside - base) + base).clamp(-1, 1).movedim(1, -1)


def warp(maps: Tensor, grid: Tensor, *, mode: Literal["bilinear", "nearest"] = "bilinear") -> Tensor:
    """Resample maps at a grid (B, H, W, 2) of this file or of ``thin_plate``; 0 outside.

    Args:
        maps: (B, C, H, W), or (B, C, D, H, W), every slice alike.
        grid: of the same B, H and W.
        mode: ``nearest`` for labels.
    """
    slices = maps.flatten(1, -3)
    moved = F.grid_sample(slices, grid.to(maps.dtype), mode=mode, padding_mode="zeros", align_corners=True)
    return moved.reshape(maps.shape)


def _smooth(field: Tensor) -> Tensor:
    """Smooth with a Gaussian of sigma 1, cut off at 3 samples, zero outside (as released)."""
    return separable(field, [_gaussian(length).to(field) for length in field.shape[2:]])


def _gaussian(length: int) -> Tensor:
    weight = torch.exp(-(torch.arange(-3, 4).double() ** 2) / 2)
    weight /= weight.sum()
    offset = torch.arange(length) - torch.arange(length)[:, None]
    return weight[(offset + 3).clamp(0, 6)] * (offset.abs() <= 3)
