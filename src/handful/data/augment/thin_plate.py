"""Thin-plate spline warps: a rotation, scale, shift and mirror with a slight bend, exact at 5 x 5 control points.

MONA's equivariance term warps images, predictions and masks by one recorded grid. Grids are what ``grid_sample``
takes with ``align_corners=True``: (B, H, W, 2), x before y, from -1 to 1; ``diffeomorphic.warp`` applies them.

References:
    Bookstein, 1989. https://doi.org/10.1109/34.24792
    Hung et al., 2019, SCOPS. https://arxiv.org/abs/1905.01298
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from handful.data.augment.geometry import rotation


def control_points(count: int = 5) -> Tensor:
    """Return the (count^2, 2) points of a square grid over [-1, 1]^2, where the warped image is fixed."""
    axis = torch.linspace(-1, 1, count)
    return torch.cartesian_prod(axis, axis)


def sample_thin_plate(
    batch: int,
    *,
    generator: torch.Generator,
    jitter: float = 0.01,
    rotation_degrees: float = 60.0,
    scale: tuple[float, float] = (0.8, 1.2),
    shift: float = 0.1,
    mirror: bool = True,
) -> Tensor:
    """Draw (B, 25, 2): where in the source each control point of the warped image looks.

    Jitter, then rotation, scale and shift, then with probability 1/2 a mirror along x of the whole batch (MONA).

    Args:
        batch: number of images.
        generator: on the CPU.
        jitter: largest displacement of a point, in halves of the image.
        rotation_degrees: largest angle, either way.
        scale: of the image; the points move by its inverse, drawn uniformly between the inverses.
        shift: largest shift along an axis, in halves of the image.
        mirror: whether to mirror at all.
    """

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(batch, *shape, generator=generator)

    points = control_points() + uniform(-jitter, jitter, 25, 2)
    turn = rotation(uniform(-1, 1, 1) * math.radians(rotation_degrees), 2)
    turn = turn * uniform(1 / scale[1], 1 / scale[0], 1, 1)
    points = torch.einsum("bde,bpe->bpd", turn, points) + uniform(-shift, shift, 1, 2)
    if mirror and bool(torch.rand((), generator=generator) < 0.5):
        points = points * torch.tensor([-1.0, 1.0])
    return points


def thin_plate_grid(source: Tensor, size: Sequence[int], *, target: Tensor | None = None) -> Tensor:
    """Return the sampling grid (B, H, W, 2) of the spline that takes each target point to its source point.

    f(x) = affine(x) + sum over points of w_p |x - p|^2 log |x - p|, the bend of least energy through all points.

    Args:
        source: (B, P, 2), x before y.
        size: (H, W).
        target: (P, 2), no three on every line; None is ``control_points()``.
    """
    target = control_points() if target is None else target
    if source.ndim != 3 or source.shape[1:] != target.shape or target.shape[1:] != (2,) or len(size) != 2:
        raise ValueError(
            f"source points must be (B, P, 2) for target points (P, 2), and size (H, W); found {tuple(source.shape)}, "
            f"{tuple(target.shape)} and {tuple(size)}."
        )
    target = target.double().to(source.device)
    count = len(target)
    system = target.new_zeros(count + 3, count + 3)
    system[:count, :count] = _kernel(target, target)
    system[:count, count] = system[count, :count] = 1
    system[:count, count + 1 :] = target
    system[count + 1 :, :count] = target.T
    wanted = torch.cat((source.double(), source.new_zeros(len(source), 3, 2).double()), 1)
    weights = torch.linalg.solve(system, wanted)
    axes = [torch.linspace(-1, 1, length, dtype=torch.float64, device=source.device) for length in size]
    y, x = torch.meshgrid(*axes, indexing="ij")
    pixels = torch.stack((x, y), -1).flatten(0, 1)
    basis = torch.cat((_kernel(pixels, target), torch.ones_like(pixels[:, :1]), pixels), 1)
    grid: Tensor = (basis @ weights).reshape(len(source), *size, 2)
    return grid.to(source.dtype)


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    """Return r^2 log r between points, which is 0.5 r^2 log r^2, and 0 at r = 0."""
    square = (a[:, None] - b).square().sum(2)
    return 0.5 * torch.xlogy(square, square)
