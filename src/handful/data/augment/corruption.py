"""Corruptions an image is restored from: shuffled windows, a bent grey-value curve, noise painted over parts of it.

They are Models Genesis', in its order: shuffle, bend, paint. The parameters are small tensors on the CPU, one row a
sample; permutations and noise are recorded as seeds, so a replay is exact on the same kind of device. Geometry is not
touched: corrupt a view, and the view itself is the target.

Two things differ from the released code.

* *Ranges.* It corrupts CT mapped to [0, 1]. Images here are normalised to a mean near 0 and have no fixed range, so
  the curve bends each patch and channel between its own smallest and largest value, and noise is drawn between the
  two. ``value_range=(0, 1)`` is the released form, for images that lie there.
* *Shuffling.* It draws 10 000 windows anywhere, one after the other in a Python loop, each a shuffled piece of the
  *uncorrupted* image laid over what stands there: windows overlap, and values get lost or doubled. Here the patch is
  cut into windows of the same random sides that do not overlap, and all voxels are permuted within theirs by one
  sort: every value is still there, in its window.

References:
    Zhou et al., 2021, Models Genesis. https://arxiv.org/abs/2004.07882
    Its values: https://github.com/MrGiovanni/ModelsGenesis
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from handful.errors import UsageError

Range = tuple[float, float]

EDGE = 3
"""Voxels that painted boxes stay away from the border of the patch, where there is room (released code)."""

CURVE_POINTS = 1025
"""Points a curve is tabulated at, linear in between."""


@dataclass(frozen=True, kw_only=True)
class CorruptionSettings:
    """Probabilities and ranges; all probabilities 0 leave the image as it is.

    Attributes:
        p_shuffle, p_curve, p_paint: how often a sample is shuffled window by window, recoloured, painted over.
        window: longest side of a shuffled window, as a share of the patch (two voxels at least); sides are drawn
            from 1 to it.
        inverted: how often a curve falls instead of rising: bright becomes dark.
        outside: how often noise is painted around the boxes (out-painting) instead of into them (in-painting).
        boxes: at most.
        another: probability of each further box; out-painting always has a first.
        box_inside, box_outside: sides of a box, as shares of the patch, for in- and out-painting.
    """

    p_shuffle: float = 0.5  # released code: local_rate
    window: float = 0.1  # released code
    p_curve: float = 0.9  # released code: nonlinear_rate
    inverted: float = 0.5  # released code
    p_paint: float = 0.9  # released code: paint_rate
    outside: float = 0.8  # released code: outpaint_rate
    boxes: int = 5  # released code
    another: float = 0.95  # released code
    box_inside: Range = (1 / 6, 1 / 3)  # released code
    box_outside: Range = (3 / 7, 4 / 7)  # released code

    def __post_init__(self) -> None:
        for name in ("p_shuffle", "p_curve", "inverted", "p_paint", "outside", "another"):
            _require(
                0 <= getattr(self, name) <= 1, name, getattr(self, name), "a probability between 0 and 1"
            )
        for name in ("box_inside", "box_outside"):
            low, high = getattr(self, name)
            _require(0 < low <= high <= 1, name, (low, high), "a range (low, high) within (0, 1]")
        _require(0 < self.window <= 1, "window", self.window, "a share of the patch in (0, 1]")
        _require(self.boxes >= 1, "boxes", self.boxes, "1 or more")


class Corruption(NamedTuple):
    """What happens to each sample; D is the number of spatial axes.

    Attributes:
        window: (B, D, longest side) int64 number of the window that a voxel lies in, along each axis; as many windows
            as voxels: nothing is shuffled.
        shuffle_seed: (B,) int64, of the permutation.
        curve: (B, C, 4) the two inner control points x1, y1, x2, y2 of a cubic Bezier curve from (0, 0) to (1, 1), in
            [0, 1]; points on the diagonal leave the values as they are.
        inverted: (B, C) bool, whether the curve is turned upside down, from (0, 1) to (1, 0).
        low, high: (B, boxes, D) int64 first voxel of each box and the one after its last; equal where there is none.
        outside: (B,) bool, whether noise is painted outside the boxes instead of inside.
        noise_seed: (B, C) int64, of the noise.
    """

    window: Tensor
    shuffle_seed: Tensor
    curve: Tensor
    inverted: Tensor
    low: Tensor
    high: Tensor
    outside: Tensor
    noise_seed: Tensor


def sample_corruption(
    settings: CorruptionSettings,
    *,
    batch: int,
    channels: int,
    patch: Sequence[int],
    generator: torch.Generator,
) -> Corruption:
    """Draw the corruptions of a batch.

    Windows and boxes are shared by the channels of a sample; curves and noise are each channel's own.

    Args:
        settings: probabilities and ranges.
        batch: number of samples.
        channels: of each.
        patch: its size along each axis.
        generator: on the CPU; the number of values taken from it does not depend on the settings' probabilities.
    """
    dims = len(patch)

    def happens(probability: float, *shape: int) -> Tensor:
        return torch.rand(batch, *shape, generator=generator) < probability

    def seeds(*shape: int) -> Tensor:
        return torch.randint(2**62, (batch, *shape), generator=generator)

    shuffled = happens(settings.p_shuffle)
    window = torch.arange(max(patch)).repeat(batch, dims, 1)
    for axis, size in enumerate(patch):
        longest = min(size, max(2, int(settings.window * size)))
        sides = torch.randint(1, longest + 1, (batch, size), generator=generator)
        voxels = torch.arange(size).repeat(batch, 1)
        number = torch.searchsorted(sides.cumsum(1), voxels, right=True)
        window[:, axis, :size] = torch.where(shuffled[:, None], number, voxels)
    shuffle_seed = seeds()

    bent = happens(settings.p_curve)
    straight = torch.tensor([1 / 3, 1 / 3, 2 / 3, 2 / 3])
    curve = torch.where(bent[:, None, None], torch.rand(batch, channels, 4, generator=generator), straight)
    inverted = happens(settings.inverted, channels) & bent[:, None]

    painted = happens(settings.p_paint)
    outside = happens(settings.outside)
    # drawn one after the other until the coin says stop
    goes_on = happens(settings.another, settings.boxes)
    goes_on[:, 0] |= outside
    there = (goes_on.cumprod(1) > 0) & painted[:, None]
    sizes = torch.tensor(list(patch))
    shares = torch.where(
        outside[:, None], torch.tensor(settings.box_outside), torch.tensor(settings.box_inside)
    )
    shortest, longest_side = (
        (share[:, None, None] * sizes).round().clamp(min=1) for share in shares.unbind(1)
    )
    shape = (batch, settings.boxes, dims)
    side = shortest + (torch.rand(shape, generator=generator) * (longest_side - shortest + 1)).floor()
    room = sizes - side
    edge = (room / 2).floor().clamp(max=EDGE)
    low = edge + (torch.rand(shape, generator=generator) * (room - 2 * edge + 1)).floor()
    low, high = ((corner * there[..., None]).long() for corner in (low, low + side))
    return Corruption(window, shuffle_seed, curve, inverted, low, high, outside & painted, seeds(channels))


@torch.no_grad()
def apply_corruption(corruption: Corruption, image: Tensor, *, value_range: Range | None = None) -> Tensor:
    """Shuffle, bend and paint a batch.

    Args:
        corruption: what to do, one row a sample.
        image: (B, C, *S) floating, on any device; not written to.
        value_range: between which values curves act (what lies outside is clipped where a curve acts) and noise is
            drawn; None takes each patch's and channel's smallest and largest value. A patch of one value stays.

    Returns:
        (B, C, *S) float32.

    Example:
        >>> settings = CorruptionSettings(p_curve=1.0)
        >>> image = torch.randn(2, 1, 8, 12, 20)
        >>> how = sample_corruption(
        ...     settings, batch=2, channels=1, patch=(8, 12, 20), generator=torch.Generator().manual_seed(0)
        ... )
        >>> apply_corruption(how, image).shape
        torch.Size([2, 1, 8, 12, 20])
    """
    _check(corruption, image)
    x = image.to(torch.float32, copy=True)
    if value_range is None:
        axes = tuple(range(2, x.ndim))
        low, high = x.amin(axes), x.amax(axes)
    else:
        low, high = (torch.full(x.shape[:2], bound, device=x.device) for bound in value_range)

    together = corruption.window.diff(dim=2) == 0
    rows = together.flatten(1).any(1).nonzero()[:, 0]
    if len(rows):
        on_device = rows.to(x.device)
        x[on_device] = _shuffled(x[on_device], corruption.window[rows], corruption.shuffle_seed[rows])

    points = corruption.curve
    straight = (points[..., 0] == points[..., 1]) & (points[..., 2] == points[..., 3])
    which = (~straight | corruption.inverted).nonzero(as_tuple=True)
    if len(which[0]):
        table = _curves(points[which], corruption.inverted[which]).to(x.device)
        there = tuple(index.to(x.device) for index in which)
        x[there] = _bent(x[there], table, low[there], high[there])

    painted = corruption.outside | (corruption.high > corruption.low).all(2).any(1)
    rows = painted.nonzero()[:, 0]
    if len(rows):
        on_device = rows.to(x.device)
        fill = _inside(corruption.low[rows], corruption.high[rows], x.shape[2:], x.device)
        fill ^= corruption.outside[rows].to(x.device).reshape(-1, *[1] * (x.ndim - 2))
        noise = _uniform(corruption.noise_seed[rows], x[on_device])
        noise = torch.lerp(_column(low[on_device], x), _column(high[on_device], x), noise)
        x[on_device] = torch.where(fill.unsqueeze(1), noise, x[on_device])
    return x


def _shuffled(x: Tensor, window: Tensor, seeds: Tensor) -> Tensor:
    """Permute the voxels of (n, C, *S) within each window.

    Voxels are sorted by (window, noise) and handed out in the order of windows. That order needs no second sort: the
    windows are a grid, so how many voxels lie in those before a window, and where in it a voxel is, are products.
    """
    size = x.shape[2:]
    before = torch.zeros(len(x), *[1] * len(size), dtype=torch.int64, device=x.device)
    within = before
    for axis in reversed(range(len(size))):
        start, side, _ = _along(window, axis, size, x.device)
        before = start * math.prod(size[axis + 1 :]) + side * before
    for axis in range(len(size)):
        start, side, voxel = _along(window, axis, size, x.device)
        within = within * side + (voxel - start)
    before, place = before.flatten(1), (before + within).flatten(1)
    noise = torch.empty_like(before)
    generator = torch.Generator(x.device)
    for row, seed in zip(noise, seeds.tolist()):
        row.random_(2**31, generator=generator.manual_seed(seed))
    partner = ((before << 31) | noise).argsort(1).gather(1, place)
    flat = x.flatten(2)
    return flat.gather(2, partner.unsqueeze(1).expand_as(flat)).reshape(x.shape)


def _along(
    window: Tensor, axis: int, size: Sequence[int], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Return first voxel and side of each voxel's window along an axis, and the voxel itself, to broadcast."""
    number = window[:, axis, : size[axis]].contiguous()
    start = torch.searchsorted(number, number)
    side = torch.searchsorted(number, number, right=True) - start
    voxel = torch.arange(size[axis]).expand_as(start)
    shape = (len(window), *[length if a == axis else 1 for a, length in enumerate(size)])
    start, side, voxel = (values.to(device).reshape(shape) for values in (start, side, voxel))
    return start, side, voxel


def _curves(points: Tensor, inverted: Tensor) -> Tensor:
    """Tabulate curves (n, 4) at even steps of the value: (n, CURVE_POINTS).

    A cubic Bezier curve whose control points lie in the unit square never turns back along either axis, so it is a
    monotone function; the released code sorts its points to that end.
    """
    t = torch.linspace(0, 1, CURVE_POINTS, dtype=torch.float64)
    x1, y1, x2, y2 = points.double().unsqueeze(-1).unbind(1)
    first, second, third = 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3
    x, y = first * x1 + second * x2 + third, first * y1 + second * y2 + third
    value = t.expand_as(x).contiguous()
    right = torch.searchsorted(x, value, right=True).clamp(1, CURVE_POINTS - 1)
    start, end = x.gather(1, right - 1), x.gather(1, right)
    weight = ((value - start) / (end - start).clamp(min=1e-30)).clamp(0, 1)
    table = torch.lerp(y.gather(1, right - 1), y.gather(1, right), weight).float()
    return torch.where(inverted[:, None], 1 - table, table)


def _bent(x: Tensor, table: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Send the values of images (n, *S) between low and high (n,) through their curves."""
    bottom, top = low[:, None], high[:, None]
    flat = x.flatten(1)
    place = ((flat - bottom) / (top - bottom).clamp(min=1e-30)).clamp(0, 1) * (table.shape[1] - 1)
    left = place.long().clamp(max=table.shape[1] - 2)
    bent = torch.lerp(table.gather(1, left), table.gather(1, left + 1), place - left)
    return torch.where(top > bottom, torch.lerp(bottom, top, bent), flat).reshape(x.shape)


def _inside(low: Tensor, high: Tensor, size: Sequence[int], device: torch.device) -> Tensor:
    """Return (n, *S) bool: whether a voxel lies in one of the boxes (n, boxes, D)."""
    inside = torch.ones(*low.shape[:2], *[1] * len(size), dtype=torch.bool, device=device)
    for axis, length in enumerate(size):
        voxel = torch.arange(length)
        along = (voxel >= low[..., axis, None]) & (voxel < high[..., axis, None])
        shape = [length if a == axis else 1 for a in range(len(size))]
        inside = inside & along.to(device).reshape(*low.shape[:2], *shape)
    return inside.any(1)


def _uniform(seeds: Tensor, like: Tensor) -> Tensor:
    """Draw numbers in [0, 1), each sample and channel from its own seed: none depends on its neighbours."""
    noise = torch.empty(like.shape, device=like.device)
    generator = torch.Generator(like.device)
    for row, seed in zip(noise.flatten(0, 1), seeds.flatten().tolist()):
        row.uniform_(generator=generator.manual_seed(seed))
    return noise


def _column(values: Tensor, like: Tensor) -> Tensor:
    """Return values (n, C) so that they broadcast over images (n, C, *S)."""
    return values.reshape(*values.shape, *[1] * (like.ndim - 2))


def _check(corruption: Corruption, image: Tensor) -> None:
    batch, channels = corruption.noise_seed.shape
    dims, longest = corruption.window.shape[1:]
    if image.shape[:2] != (batch, channels) or image.ndim != dims + 2 or max(image.shape[2:]) != longest:
        raise ValueError(
            f"the parameters are for (B, C) = {(batch, channels)} and {dims} axes, the longest of {longest} voxels, "
            f"but the image is {tuple(image.shape)}."
        )


def _require(true: bool, name: str, found: object, allowed: str) -> None:
    if not true:
        raise UsageError(f"corruption setting '{name}' is {found!r}; it must be {allowed}.")
