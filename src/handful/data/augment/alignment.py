"""Relate augmented views to their source and to each other: undo a view, read one view where another looks.

Affine geometry and mirrors are inverted exactly; elastic bending by fixed-point iteration (Chen et al., 2008,
https://doi.org/10.1118/1.2816107), to a hundredth of a voxel. Maps keep their gradient.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from handful.data.augment.geometry import (
    Geometry,
    affine_matrix,
    centred,
    displacement,
    sampling_grid,
    source_points,
)


@torch.no_grad()
def relate(
    first: Geometry, second: Geometry, *, patch: Sequence[int], device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Find where the second view shows what each voxel of the first view shows; both are views of one source.

    Returns:
        points (B, *patch, D): offsets from the centre of the second patch, in voxels, for ``read``;
        inside (B, *patch) bool: whether that place lies within the second patch.
    """
    points = _invert(second, source_points(first, patch=patch, device=device), patch=patch)
    return points, _inside(points, patch)


def undo_geometry(geometry: Geometry, maps: Tensor, *, source: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Bring maps of a view (logits, probabilities, embeddings) back to the grid of its source.

    Average several views with ``sum(maps * inside) / sum(inside)``.

    Args:
        geometry: how the view was made.
        maps: (B, K, *patch).
        source: size of the source grid.

    Returns:
        (B, K, *source), differentiable in ``maps``, 0 where the view does not reach; inside (B, *source) bool.
    """
    patch = tuple(maps.shape[2:])
    axes = [
        centred(size, maps.device) + (size - 1) / 2 - (size - wanted) // 2 - (wanted - 1) / 2
        for size, wanted in zip(source, patch)
    ]
    everywhere = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).expand(len(maps), *source, len(axes))
    points = _invert(geometry, everywhere, patch=patch)
    inside = _inside(points, patch)
    return read(maps, points) * inside.unsqueeze(1), inside


def read(maps: Tensor, points: Tensor) -> Tensor:
    """Interpolate maps linearly at offsets from their centre; beyond the border, the border's value.

    Args:
        maps: (B, K, *S), floating.
        points: (B, *T, D) voxels.

    Returns:
        (B, K, *T), differentiable in ``maps``.
    """
    size = tuple(maps.shape[2:])
    grid = sampling_grid(points, size, size)
    return F.grid_sample(maps, grid.to(maps.dtype), padding_mode="border", align_corners=False)


@torch.no_grad()
def _invert(geometry: Geometry, points: Tensor, *, patch: Sequence[int]) -> Tensor:
    """Find the patch offsets (B, *T, D) that show the source offsets ``points`` (B, *T, D)."""
    batch, dims = geometry.shift.shape
    inverse = torch.linalg.inv(affine_matrix(geometry).double()).float().to(points.device)
    target = points - geometry.shift.to(points.device).reshape(batch, *[1] * dims, dims)

    def backwards(y: Tensor) -> Tensor:
        spread = [batch, *[1] * dims, dims]
        return sum(
            (inverse[:, :, axis].reshape(spread) * y[..., axis : axis + 1] for axis in range(dims)),
            torch.zeros(()),
        )

    found = backwards(target)
    if geometry.elastic.any():
        bend = displacement(geometry.elastic, patch=patch, device=points.device)
        for _ in range(20):  # contracts at least by half each time at the permitted strengths
            found = backwards(target - read(bend, found).movedim(1, -1))
    return found


def _inside(points: Tensor, patch: Sequence[int]) -> Tensor:
    limit = points.new_tensor([(size - 1) / 2 for size in patch])
    return (points.abs() <= limit + 1e-3).all(-1)  # a thousandth of a voxel for rounding
