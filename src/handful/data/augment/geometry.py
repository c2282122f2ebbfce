"""Rotation, scale, shift, elastic bending, mirror and crop of a whole batch in one resampling.

A voxel at offset p from the patch centre shows the source at offset

    y = matrix (mirror p) + shift + elastic(p)

from the source centre, all in voxels. The parameters are small tensors on the CPU, one row a sample: they can be
stored, sliced, replayed and inverted (``alignment``).

Elastic displacement is a cubic B-spline over a coarse grid of control points (Rueckert et al., 1999,
https://doi.org/10.1109/42.796284); it cannot fold while control points move less than 0.40 of their distance
(Choi and Lee, 2000, https://doi.org/10.1006/gmod.1999.0514).
"""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from handful.batches import IGNORE
from handful.data.augment.separable import separable
from handful.data.augment.settings import AugmentSettings, fine_axes

LINEAR_CLASSES = 4
"""Up to this many classes ``auto`` interpolates labels linearly: benchmarks/augmentation.py has the times."""


class Geometry(NamedTuple):
    """Where each voxel of a patch comes from; D is the number of spatial axes, all lengths in voxels.

    Attributes:
        matrix: (B, D, D) rotation and scale.
        mirror: (B, D) bool, axes turned around before anything else.
        shift: (B, D).
        elastic: (B, D, *knots) B-spline coefficients over the patch; one knot along an axis means constant.
    """

    matrix: Tensor
    mirror: Tensor
    shift: Tensor
    elastic: Tensor


def sample_geometry(
    settings: AugmentSettings,
    *,
    batch: int,
    patch: Sequence[int],
    spacing_mm: Sequence[float],
    mirror: Sequence[bool],
    turned: float = 0.0,
    generator: torch.Generator,
) -> Geometry:
    """Draw the geometry of a batch.

    Args:
        settings: probabilities and ranges.
        batch: number of samples.
        patch: output size along each axis.
        spacing_mm: voxel length along the same axes; rotation and scale happen in millimetres.
        mirror: whether each axis may be mirrored.
        turned: share of the rotations that go beyond ``rotation_degrees``, evenly up to half a turn either way.
        generator: on the CPU; the number of values taken from it does not depend on the settings' probabilities.
    """
    dims = len(patch)
    if not dims == len(spacing_mm) == len(mirror):
        raise ValueError(
            f"patch {tuple(patch)}, spacing_mm {tuple(spacing_mm)} and mirror {tuple(mirror)} must name the same "
            "axes; give one number an axis to each."
        )

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(batch, *shape, generator=generator)

    def happens(probability: float, *shape: int) -> Tensor:
        return torch.rand(batch, *shape, generator=generator) < probability

    fine = torch.tensor(fine_axes(settings, tuple(spacing_mm)))
    spacing = torch.tensor([float(length) for length in spacing_mm])

    planes = list(combinations(range(dims), 2))
    turnable = torch.tensor([bool(fine[a] & fine[b]) for a, b in planes])
    angles = _angles(uniform(-1, 1, len(planes)), math.radians(settings.rotation_degrees), turned)
    angles = angles * (happens(settings.p_rotation)[:, None] & turnable)
    size = uniform(math.log(settings.scale[0]), math.log(settings.scale[1])).exp()
    size = torch.where(happens(settings.p_scale)[:, None] & fine, size[:, None], 1.0)
    in_mm = rotation(angles, dims) / size[:, None, :]
    matrix = in_mm * (spacing / spacing[:, None])

    flips = happens(settings.p_mirror, dims) & torch.tensor([bool(allowed) for allowed in mirror])

    shift = uniform(-settings.shift, settings.shift, dims) * torch.tensor([float(length) for length in patch])
    shift = shift * (happens(settings.p_shift)[:, None] & fine)

    knots, knot_mm = _knots(settings, tuple(patch), tuple(spacing_mm))
    strength = uniform(*settings.elastic_strength) * happens(settings.p_elastic)
    reach = strength[:, None] * knot_mm / spacing * fine
    elastic = uniform(-1, 1, dims, *knots) * reach.reshape(batch, dims, *[1] * dims)
    return Geometry(matrix, flips, shift, elastic)


def identity_geometry(batch: int, dims: int, *, mirror: Sequence[bool] | None = None) -> Geometry:
    """Return the geometry of a plain centre crop, mirrored along the named axes (for test-time averaging)."""
    flips = torch.tensor([bool(flag) for flag in mirror or [False] * dims])
    return Geometry(
        torch.eye(dims).repeat(batch, 1, 1),
        flips.repeat(batch, 1),
        torch.zeros(batch, dims),
        torch.zeros(batch, dims, *[1] * dims),
    )


def source_margin(
    settings: AugmentSettings, patch: Sequence[int], spacing_mm: Sequence[float]
) -> tuple[int, ...]:
    """Return how many voxels more than the patch the source crop should have along each axis, both sides together.

    Enough for every geometry the settings can draw, but at most ``source_factor`` times the patch. Always even, so
    that patch and source share their centre.
    """
    dims = len(patch)
    fine = torch.tensor(fine_axes(settings, tuple(spacing_mm)))
    spacing = torch.tensor([float(length) for length in spacing_mm])
    half_mm = torch.tensor([float(length) for length in patch]) / 2 * spacing

    planes = list(combinations(range(dims), 2))
    limit = math.radians(settings.rotation_degrees) if settings.p_rotation > 0 else 0.0
    steps = torch.linspace(
        -limit, limit, 9
    )  # the reach is smooth in the angles: nine a plane find it to a voxel
    turnable = torch.tensor([bool(fine[a] & fine[b]) for a, b in planes])
    angles = torch.cartesian_prod(*[steps] * len(planes)).reshape(-1, len(planes)) * turnable
    reach = (rotation(angles, dims).abs() @ half_mm).amax(0) / spacing
    if settings.p_scale > 0:
        reach = torch.where(fine, reach / min(settings.scale[0], 1.0), reach)
    if settings.p_shift > 0:
        reach = reach + settings.shift * torch.tensor([float(length) for length in patch]) * fine
    if settings.p_elastic > 0:
        _, knot_mm = _knots(settings, tuple(patch), tuple(spacing_mm))
        reach = reach + settings.elastic_strength[1] * knot_mm / spacing * fine

    def margin(voxels: float, length: int) -> int:
        wanted = voxels - length / 2
        return 2 * max(0, min(math.ceil(wanted - 1e-3), round((settings.source_factor - 1) * length / 2)))

    return tuple(margin(voxels, length) for voxels, length in zip(reach.tolist(), patch))


@torch.no_grad()
def apply_geometry(
    geometry: Geometry,
    image: Tensor,
    label: Tensor | None = None,
    *,
    patch: Sequence[int],
    outside: int = IGNORE,
    padding: Literal["border", "reflection", "zeros"] = "border",
    mode: Literal["auto", "linear", "nearest"] = "auto",
    classes: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Resample source crops to augmented patches.

    Samples that only mirror are copied, not interpolated, so their values stay exact.

    Args:
        geometry: what to do, one row a sample.
        image: (B, C, *source) floating, on any device.
        label: (B, *source) integer class indices, ``IGNORE`` where unknown; or None.
        patch: output size; where source minus patch is odd, the centre is the lower of the two.
        outside: label of patch voxels that show nothing of the source.
        padding: what the image shows there.
        mode: how labels are interpolated; ``linear`` needs ``classes``, ``auto`` without it is ``nearest``.
        classes: K; with ``linear`` every label must lie in -1..K-1.

    Returns:
        (B, C, *patch) float32 and (B, *patch) int64, or None without a label.
    """
    dims, source = len(patch), tuple(image.shape[2:])
    _check(geometry, image, label, tuple(patch))
    linear = mode == "linear" or (mode == "auto" and classes is not None and classes <= LINEAR_CLASSES)
    if linear and classes is None:
        raise ValueError("mode='linear' interpolates each class on its own: say how many with classes=K.")

    device = image.device
    warped = moved(geometry)
    if any(size < wanted for size, wanted in zip(source, patch)):
        warped = torch.ones_like(warped)  # nothing to crop from: the resampling pads
    new_image = torch.empty(*image.shape[:2], *patch, device=device)
    new_label = None if label is None else torch.empty(len(label), *patch, dtype=torch.int64, device=device)

    still = (~warped).nonzero()[:, 0]
    if len(still):
        rows = still.to(device)
        box = tuple(
            slice((size - wanted) // 2, (size - wanted) // 2 + wanted) for size, wanted in zip(source, patch)
        )
        new_image[rows] = _mirrored(
            image[(slice(None), slice(None), *box)][rows], geometry.mirror[still]
        ).float()
        if label is not None and new_label is not None:
            new_label[rows] = _mirrored(label[(slice(None), *box)][rows], geometry.mirror[still]).long()

    moving = warped.nonzero()[:, 0]
    if len(moving):
        rows = moving.to(device)
        points = source_points(Geometry(*(field[moving] for field in geometry)), patch=patch, device=device)
        grid = sampling_grid(points, patch, source)
        sampled = image[rows].float()
        if label is None or new_label is None:
            new_image[rows] = F.grid_sample(sampled, grid, padding_mode=padding, align_corners=False)
            return new_image, None
        if linear and classes is not None:
            kinds = torch.arange(IGNORE, classes, device=device, dtype=torch.float32).reshape(-1, *[1] * dims)
            one_hot = (label[rows].unsqueeze(1) - kinds).abs_().neg_().add_(1).clamp_(min=0)  # faster than ==
            both = torch.cat((sampled, one_hot), 1)
            both = F.grid_sample(both, grid, padding_mode=padding, align_corners=False)
            new_image[rows] = both[:, : image.shape[1]]
            scores = both[:, image.shape[1] :].movedim(1, -1).contiguous()  # argmax is six times faster so
            classified = scores.argmax(-1) + IGNORE
        else:
            new_image[rows] = F.grid_sample(sampled, grid, padding_mode=padding, align_corners=False)
            values = label[rows].unsqueeze(1).float()  # exact up to 2**24
            nearest = F.grid_sample(values, grid, mode="nearest", padding_mode=padding, align_corners=False)
            classified = nearest[:, 0].long()
        new_label[rows] = classified.masked_fill(grid.abs().amax(-1) > 1, outside)
    return new_image, new_label


@torch.no_grad()
def source_points(geometry: Geometry, *, patch: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Return (B, *patch, D): the source offset from the centre, in voxels, that each patch voxel shows."""
    batch, dims = geometry.shift.shape
    affine = affine_matrix(geometry).to(device)
    points = geometry.shift.to(device).reshape(batch, *[1] * dims, dims)
    # A sum of outer terms, not a matrix product: reduced-precision products on a GPU would move voxels.
    for axis, size in enumerate(patch):
        offsets = centred(size, device).reshape(-1, *[1] * (dims - axis))
        points = points + affine[:, :, axis].reshape(batch, *[1] * dims, dims) * offsets
    bent = geometry.elastic.flatten(1).any(1).nonzero()[:, 0]
    if len(bent):
        points[bent.to(device)] += displacement(geometry.elastic[bent], patch=patch, device=device).movedim(
            1, -1
        )
    return points


def displacement(elastic: Tensor, *, patch: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Evaluate B-spline coefficients (B, D, *knots) at every voxel: (B, D, *patch) voxels."""
    knots = elastic.shape[2:]
    return separable(
        elastic.to(device), [_spline(size, count).to(device) for size, count in zip(patch, knots)]
    )


def affine_matrix(geometry: Geometry) -> Tensor:
    """Return (B, D, D): mirror first, then rotation and scale."""
    return geometry.matrix * torch.where(geometry.mirror, -1.0, 1.0)[:, None, :]


def moved(geometry: Geometry) -> Tensor:
    """Say of each sample (B,) whether it needs interpolation: anything but mirror and crop."""
    turned = (geometry.matrix != torch.eye(geometry.matrix.shape[-1])).flatten(1).any(1)
    return turned | geometry.shift.any(1) | geometry.elastic.flatten(1).any(1)


def rotation(angles: Tensor, dims: int) -> Tensor:
    """Compose plane rotations: angles (B, number of planes) in radians to matrices (B, D, D)."""
    result = torch.eye(dims).repeat(len(angles), 1, 1)
    for (a, b), angle in zip(combinations(range(dims), 2), angles.T):
        turn = torch.eye(dims).repeat(len(angles), 1, 1)
        turn[:, a, a] = turn[:, b, b] = angle.cos()
        turn[:, b, a] = angle.sin()
        turn[:, a, b] = -angle.sin()
        with torch.autocast("cpu", enabled=False):
            result = result @ turn
    return result


def centred(size: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the offsets of ``size`` voxels from their centre."""
    return torch.arange(size, device=device, dtype=torch.float32) - (size - 1) / 2


def sampling_grid(points: Tensor, patch: Sequence[int], source: Sequence[int]) -> Tensor:
    """Turn source offsets (..., D) into what ``grid_sample`` wants: last axis first, the source from -1 to 1."""
    sizes = points.new_tensor([float(size) for size in source])
    centre = points.new_tensor([(size - wanted) // 2 + wanted / 2 for size, wanted in zip(source, patch)])
    return torch.addcmul((2 * centre / sizes - 1), points, 2 / sizes).flip(-1)


def _angles(even: Tensor, limit: float, turned: float) -> Tensor:
    """Map numbers drawn evenly from [-1, 1] to angles in radians: a share ``turned`` of them beyond ``limit``."""
    near = 1 - turned
    within = even.abs() * limit / near if near else torch.zeros_like(even)
    beyond = limit + (even.abs() - near) * (math.pi - limit) / turned if turned else within
    return even.sign() * torch.where(even.abs() <= near, within, beyond)


def _knots(
    settings: AugmentSettings, patch: tuple[int, ...], spacing_mm: tuple[float, ...]
) -> tuple[tuple[int, ...], float]:
    """Return the number of control points along each axis and their shortest distance in millimetres."""
    fine = fine_axes(settings, spacing_mm)
    extents = [size * length for size, length in zip(patch, spacing_mm)]
    wanted = max(extent for extent, is_fine in zip(extents, fine) if is_fine) / settings.elastic_knots
    intervals = [max(1, round(extent / wanted)) for extent in extents]
    shortest = min(extent / count for extent, count, is_fine in zip(extents, intervals, fine) if is_fine)
    return tuple(count + 3 if is_fine else 1 for count, is_fine in zip(intervals, fine)), shortest


def _spline(size: int, count: int) -> Tensor:
    """Return (size, count): the weight of each of the uniform cubic B-splines at each voxel."""
    if count == 1:
        return torch.ones(size, 1)
    position = (torch.arange(size) + 0.5) / size * (count - 3) + 1  # control point 1 sits on the first edge
    distance = (position[:, None] - torch.arange(count)).abs()
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = (2 - distance).clamp(min=0) ** 3 / 6
    return torch.where(distance < 1, near, far)


def _mirrored(x: Tensor, flips: Tensor) -> Tensor:
    """Turn around the flagged axes of each row; ``x`` (n, ..., *S) is a copy that may be written to."""
    dims = flips.shape[1]
    for axis in range(dims):
        rows = flips[:, axis].nonzero()[:, 0].to(x.device)
        if len(rows):
            x[rows] = x[rows].flip(axis - dims)
    return x


def _check(geometry: Geometry, image: Tensor, label: Tensor | None, patch: tuple[int, ...]) -> None:
    batch, dims = geometry.shift.shape
    if len(patch) != dims or image.ndim != dims + 2 or len(image) != batch:
        raise ValueError(
            f"the geometry is for {batch} samples of {dims} axes, but the image is {tuple(image.shape)} (expected "
            f"B, C and the axes) and the patch {patch}."
        )
    if label is not None and label.shape != (batch, *image.shape[2:]):
        raise ValueError(
            f"label {tuple(label.shape)} must have the image's batch and axes: {(batch, *image.shape[2:])}."
        )
