"""Noise, blur, low resolution, brightness, contrast and gamma of a whole batch of normalised images.

The parameters are small tensors on the CPU, one entry a sample and channel; noise is recorded as a seed, so a replay
is exact on the same kind of device. Only the chosen channels are computed. The order follows how a picture comes
about: resolution first, then noise, then the grey-value curve.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from handful.data.augment.separable import separable
from handful.data.augment.settings import AugmentSettings, fine_axes


class Intensity(NamedTuple):
    """What happens to the values of each sample and channel.

    Attributes:
        blur: (B, C, 3) standard deviation in voxels along D, H, W (2D images use the last two); 0 is none.
        zoom: (B, C, 3) fraction of the voxels kept along D, H, W; 1 is all.
        noise: (B, C) standard deviation; 0 is none.
        seed: (B, C) int64, of the noise.
        gain: (B, C) factor; 1 is none.
        offset: (B, C) summand; 0 is none.
        contrast: (B, C) factor about the mean, clipped to the range; 1 is none.
        gamma: (B, C) exponent; 1 is none.
        inverted: (B, C) bool, whether the exponent acts on the range turned upside down.
        keep: (B, C) bool, whether gamma keeps mean and deviation.
    """

    blur: Tensor
    zoom: Tensor
    noise: Tensor
    seed: Tensor
    gain: Tensor
    offset: Tensor
    contrast: Tensor
    gamma: Tensor
    inverted: Tensor
    keep: Tensor


def sample_intensity(
    settings: AugmentSettings,
    *,
    batch: int,
    channels: int,
    generator: torch.Generator,
    spacing_mm: Sequence[float] | None = None,
) -> Intensity:
    """Draw the intensity changes of a batch.

    Args:
        settings: probabilities and ranges.
        batch: number of samples.
        channels: each is drawn on its own.
        generator: on the CPU; the number of values taken from it does not depend on the settings' probabilities.
        spacing_mm: voxel length along the axes; coarse axes are neither blurred nor coarsened. None: none is coarse.
    """

    def uniform(bounds: tuple[float, float]) -> Tensor:
        return bounds[0] + (bounds[1] - bounds[0]) * torch.rand(batch, channels, generator=generator)

    def factor(bounds: tuple[float, float]) -> Tensor:
        return uniform((math.log(bounds[0]), math.log(bounds[1]))).exp()

    def happens(probability: float) -> Tensor:
        return torch.rand(batch, channels, generator=generator) < probability

    fine = [True] * 3
    if spacing_mm is not None:
        fine[3 - len(spacing_mm) :] = fine_axes(settings, tuple(spacing_mm))
    axes = torch.tensor(fine)

    blur = (uniform(settings.blur) * happens(settings.p_blur))[..., None] * axes
    coarsened = happens(settings.p_low_resolution)[..., None] & axes
    zoom = torch.where(coarsened, uniform(settings.low_resolution)[..., None], 1.0)
    noise = uniform(settings.noise) * happens(settings.p_noise)
    seed = torch.randint(2**62, (batch, channels), generator=generator)
    brighter = happens(settings.p_brightness)
    return Intensity(
        blur=blur,
        zoom=zoom,
        noise=noise,
        seed=seed,
        gain=torch.where(brighter, factor(settings.gain), 1.0),
        offset=uniform(settings.offset) * brighter,
        contrast=torch.where(happens(settings.p_contrast), factor(settings.contrast), 1.0),
        gamma=torch.where(happens(settings.p_gamma), factor(settings.gamma), 1.0),
        inverted=happens(settings.gamma_inverted),
        keep=torch.full((batch, channels), settings.gamma_keeps_moments),
    )


@torch.no_grad()
def apply_intensity(intensity: Intensity, image: Tensor) -> Tensor:
    """Change the values of a batch.

    Args:
        intensity: what to do, one row a sample.
        image: (B, C, *S) normalised, floating, on any device; not written to.

    Returns:
        (B, C, *S) float32.
    """
    if image.shape[:2] != intensity.noise.shape or not 4 <= image.ndim <= 5:
        raise ValueError(
            f"the parameters are for (B, C) = {tuple(intensity.noise.shape)}, but the image is {tuple(image.shape)}; "
            "expected B, C and two or three axes."
        )
    each = Intensity(*(field.flatten(0, 1) for field in intensity))
    x = image.to(torch.float32, copy=True).flatten(0, 1)
    dims = x.ndim - 1

    def column(values: Tensor) -> Tensor:
        return values.to(x.device).reshape(-1, *[1] * dims)

    def change(chosen: Tensor, by: Callable[[Tensor, Intensity], Tensor]) -> None:
        rows = chosen.nonzero()[:, 0]
        if len(rows):
            on_device = rows.to(x.device)
            x[on_device] = by(x[on_device], Intensity(*(field[rows] for field in each)))

    def scaled(values: Tensor, of: Intensity) -> Tensor:
        return values * column(of.gain) + column(of.offset)

    def contrasted(values: Tensor, of: Intensity) -> Tensor:
        axes = tuple(range(1, values.ndim))
        mean = values.mean(axes, keepdim=True)
        stretched = mean + (values - mean) * column(of.contrast)
        return stretched.clamp(values.amin(axes, keepdim=True), values.amax(axes, keepdim=True))

    def curved(values: Tensor, of: Intensity) -> Tensor:
        return _gamma(values, column(of.gamma), column(of.inverted), column(of.keep))

    blur, zoom = each.blur[:, -dims:], each.zoom[:, -dims:]
    change((blur > 0).any(1) | (zoom < 1).any(1), _lower_resolution)
    change(each.noise > 0, lambda values, of: values + column(of.noise) * _normal(of.seed, values))
    change((each.gain != 1) | (each.offset != 0), scaled)
    change(each.contrast != 1, contrasted)
    change(each.gamma != 1, curved)
    return x.reshape(image.shape)


def _lower_resolution(x: Tensor, of: Intensity) -> Tensor:
    """Blur, drop voxels and interpolate back: one matrix an axis."""
    matrices: list[Tensor | None] = []
    for axis, size in enumerate(x.shape[1:]):
        blur, zoom = of.blur[:, 3 - (x.ndim - 1) + axis], of.zoom[:, 3 - (x.ndim - 1) + axis]
        if not (blur > 0).any() and not (zoom < 1).any():
            matrices.append(None)
        else:
            with torch.autocast("cpu", enabled=False):
                matrices.append((_fewer(zoom, size) @ _gaussian(blur, size)).to(x.device))
    return separable(x.unsqueeze(1), matrices).squeeze(1)


def _gaussian(sigma: Tensor, size: int) -> Tensor:
    """Return (n, size, size): a Gaussian a row, summing to 1 also at the border; the identity where sigma is 0."""
    distance = torch.arange(size)[:, None] - torch.arange(size)
    return torch.softmax(-(distance**2) / (2 * sigma.clamp(min=1e-3).square()[:, None, None]), -1)


def _fewer(zoom: Tensor, size: int) -> Tensor:
    """Return (n, size, size): keep the nearest of round(zoom * size) voxels, interpolate linearly back."""
    low = (zoom * size).round().clamp(1, size)[:, None]
    position = ((torch.arange(size) + 0.5) * (low / size) - 0.5).clamp(min=0).minimum(low - 1)
    left = position.floor()
    right = (left + 1).minimum(low - 1)
    weight = position - left

    def kept(index: Tensor) -> Tensor:
        return ((index + 0.5) * (size / low)).floor().long().clamp(max=size - 1).unsqueeze(-1)

    matrix = torch.zeros(len(zoom), size, size)
    matrix.scatter_add_(2, kept(left), (1 - weight).unsqueeze(-1))
    return matrix.scatter_add_(2, kept(right), weight.unsqueeze(-1))


def _normal(seeds: Tensor, like: Tensor) -> Tensor:
    """Draw standard normal noise, each row from its own seed: a row does not depend on its neighbours."""
    noise = torch.empty_like(like)
    generator = torch.Generator(like.device)
    for row, seed in zip(noise, seeds.tolist()):
        row.normal_(generator=generator.manual_seed(seed))
    return noise


def _gamma(x: Tensor, gamma: Tensor, inverted: Tensor, keep: Tensor) -> Tensor:
    """Raise the range mapped to [0, 1] to a power; a constant image stays as it is."""
    axes = tuple(range(1, x.ndim))
    low, high = x.amin(axes, keepdim=True), x.amax(axes, keepdim=True)
    width = (high - low).clamp(min=1e-7)
    unit = (x - low) / width
    unit = torch.where(inverted, 1 - unit, unit).pow(gamma)
    curved = torch.where(inverted, 1 - unit, unit) * width + low

    # Centred squares, because torch.std over several axes is fifteen times slower on a CPU.
    before, after = (values - values.mean(axes, keepdim=True) for values in (x, curved))
    ratio = before.square().mean(axes, keepdim=True) / after.square().mean(axes, keepdim=True).clamp(
        min=1e-14
    )
    restored = torch.where(high > low, after * ratio.sqrt() + (x - before), x)
    return torch.where(keep, restored, torch.where(high > low, curved, x))
