"""The layers networks are made of, in 2D and 3D: convolution, norm, activation, up-sampling, residual block."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Literal["batch", "instance", "none"]
Activation = Literal["leaky_relu", "relu"]

LEAKY_SLOPE = 0.01

_CONV: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, type[nn.ConvTranspose2d] | type[nn.ConvTranspose3d]] = {
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}
_BATCH_NORM: dict[int, type[nn.BatchNorm2d] | type[nn.BatchNorm3d]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class InstanceNorm(nn.Module):
    """Normalise each channel of each image to mean 0 and variance 1, then scale and shift if ``affine``.

    The same function as ``torch.nn.InstanceNorm2d``/``3d`` without running statistics. On a CPU torch's own kernel
    leaves the channels-last layout and takes three to four times as long there, so channels-last images go one by
    one through batch norm, which stays in it.
    """

    def __init__(self, channels: int, *, affine: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and x.is_contiguous(memory_format=_CHANNELS_LAST[x.ndim]):
            images = [
                F.batch_norm(image, None, None, self.weight, self.bias, training=True, eps=self.eps)
                for image in x.chunk(x.shape[0])
            ]
            return images[0] if len(images) == 1 else torch.cat(images)
        return F.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)


@dataclass(frozen=True, kw_only=True)
class Layers:
    """How every convolution of one network looks: convolution, norm, activation, in this order.

    Attributes:
        dims: 2 or 3.
        norm: what follows each convolution.
        affine: whether instance norm has a learnt scale and shift (batch norm always has).
        activation: what follows the norm; leaky slope 0.01.
        bias: whether a convolution that a norm follows has a bias (one without a norm always has).
    """

    dims: int
    norm: Norm
    affine: bool = True
    activation: Activation = "leaky_relu"
    bias: bool = False

    def conv(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Sequence[int],
        *,
        stride: Sequence[int] | int = 1,
        padding: int | None = None,
        bias: bool = True,
    ) -> nn.Module:
        """Return a convolution; by default it is padded so that stride 1 and an odd kernel keep the size."""
        pad = tuple(k // 2 if padding is None else padding for k in kernel)
        # mypy cannot see that the 2D and 3D classes take tuples of their own length
        return _CONV[self.dims](in_channels, out_channels, tuple(kernel), stride, pad, bias=bias)  # type: ignore[arg-type]

    def transposed(self, in_channels: int, out_channels: int, stride: Sequence[int]) -> nn.Module:
        """Return the transposed convolution that enlarges by ``stride``, each input pixel writing its own block."""
        return _TRANSPOSED[self.dims](in_channels, out_channels, tuple(stride), tuple(stride))  # type: ignore[arg-type]

    def normed(self, channels: int) -> list[nn.Module]:
        """Return the norm as a list of no or one module."""
        if self.norm == "none":
            return []
        if self.norm == "batch":
            return [_BATCH_NORM[self.dims](channels)]
        return [InstanceNorm(channels, affine=self.affine)]

    def activated(self) -> nn.Module:
        """Return the activation; it works in place, which neither a norm's nor a convolution's backward minds."""
        return nn.ReLU(inplace=True) if self.activation == "relu" else nn.LeakyReLU(LEAKY_SLOPE, inplace=True)

    def unit(
        self, in_channels: int, out_channels: int, kernel: Sequence[int], *, stride: Sequence[int] | int = 1
    ) -> nn.Sequential:
        """Return convolution, norm, activation."""
        conv = self.conv(
            in_channels, out_channels, kernel, stride=stride, bias=self.bias or self.norm == "none"
        )
        return nn.Sequential(conv, *self.normed(out_channels), self.activated())


class ResidualBlock(nn.Module):
    """Two convolutions whose result is added to their input (He et al., 2016; the shortcut of Isensee et al., 2024).

    The shortcut averages over the stride, then a 1x1 convolution with norm matches the channels where they differ.

    References:
        He et al., 2016. https://arxiv.org/abs/1512.03385
        Isensee et al., 2024, nnU-Net revisited. https://arxiv.org/abs/2404.09556
    """

    def __init__(
        self,
        layers: Layers,
        in_channels: int,
        out_channels: int,
        kernel: Sequence[int],
        *,
        stride: Sequence[int],
    ) -> None:
        super().__init__()
        plain = layers.norm == "none"
        self.first = layers.unit(in_channels, out_channels, kernel, stride=stride)
        self.second = nn.Sequential(
            layers.conv(out_channels, out_channels, kernel, bias=layers.bias or plain),
            *layers.normed(out_channels),
        )
        shortcut: list[nn.Module] = []
        if max(stride) > 1:
            pool = nn.AvgPool2d if layers.dims == 2 else nn.AvgPool3d
            shortcut.append(pool(tuple(stride), tuple(stride)))  # type: ignore[arg-type]
        if in_channels != out_channels:
            shortcut.append(
                layers.conv(in_channels, out_channels, (1,) * layers.dims, bias=layers.bias or plain)
            )
            shortcut.extend(layers.normed(out_channels))
        self.shortcut = nn.Sequential(*shortcut)
        self.activation = layers.activated()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.activation(self.second(self.first(x)) + self.shortcut(x))
        return result


class LinearUpsample(nn.Module):
    """Enlarge by bi- or trilinear interpolation whose corner pixels meet (``align_corners``)."""

    def __init__(self, factors: Sequence[int]) -> None:
        super().__init__()
        self.factors = tuple(float(factor) for factor in factors)

    def forward(self, x: Tensor) -> Tensor:
        mode = "bilinear" if x.ndim == 4 else "trilinear"
        return F.interpolate(x, scale_factor=self.factors, mode=mode, align_corners=True)


def initialise_kaiming(module: nn.Module) -> None:
    """Draw convolution weights for leaky slope 0.01 and set biases to zero; for ``net.apply``.

    References:
        He et al., 2015. https://arxiv.org/abs/1502.01852
    """
    if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=LEAKY_SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def check_divisible(size: Sequence[int], factors: Sequence[int]) -> None:
    """Refuse images that the network's strides do not divide.

    Raises:
        ValueError: naming the size found and the multiples allowed.
    """
    if len(size) != len(factors):
        raise ValueError(
            f"a {len(factors)}D network takes images (B, C, *S) with {len(factors)} axes in S; found S = {tuple(size)}."
        )
    if any(s % f for s, f in zip(size, factors)):
        padded = tuple(-(-s // f) * f for s, f in zip(size, factors))
        raise ValueError(
            f"images of size {tuple(size)} do not divide by the network's total strides {tuple(factors)}; "
            f"pad or crop them, for example to {padded}."
        )
