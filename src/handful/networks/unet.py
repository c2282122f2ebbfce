"""The U-Net as encoder, decoder and heads, in 2D and 3D from one definition (Ronneberger et al., 2015)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from handful import settings
from handful.errors import UsageError
from handful.networks.blocks import (
    Activation,
    Layers,
    LinearUpsample,
    Norm,
    ResidualBlock,
    check_divisible,
    initialise_kaiming,
)

SUPERVISED_LEVELS = 3
"""With deep supervision, at most so many decoder levels predict (losses weigh them 1, 1/2, 1/4)."""


@dataclass(frozen=True, kw_only=True)
class Style:
    """The details in which published U-Nets differ; the defaults are the house network's.

    Attributes:
        activation: after each norm.
        affine: whether instance norm has a learnt scale and shift.
        bias: whether convolutions followed by a norm have a bias.
        down: ``stride`` in the first convolution of a level, or max-``pool`` before it.
        centre: the deepest level; ``normed`` as the others; ``bare``: no norm and ReLU; ``bare_up``: the same, and
            the encoder itself enlarges the result to the level above (transposed convolution, ReLU).
        up: ``transpose``: transposed convolution to the width of the skip; ``transpose_wide``: keeping its width;
            ``linear``: 1x1 convolution to the width of the skip, then interpolation.
        skip_first: whether the skip stands before the enlarged map in the concatenation.
        decoder_norm: whether decoder convolutions are followed by the norm.
        dropout: probability after the first convolution of each encoder level; empty for none.
        head_kernel: side of the head's convolution.
        head_bias: whether the head has a bias.
        idle_head: whether the network holds, frozen, a 1x1 convolution to one channel that nothing calls (SSCL as
            released: the rest of an autoencoder; kept so that its parameter count is the published one).
        init: ``kaiming`` (normal, leaky slope 0.01, biases 0) or ``torch`` (the framework's default).
    """

    activation: Activation = "leaky_relu"
    affine: bool = True
    bias: bool = False
    down: Literal["stride", "pool"] = "stride"
    centre: Literal["normed", "bare", "bare_up"] = "normed"
    up: Literal["transpose", "transpose_wide", "linear"] = "transpose"
    skip_first: bool = False
    decoder_norm: bool = True
    dropout: tuple[float, ...] = ()
    head_kernel: int = 1
    head_bias: bool = True
    idle_head: bool = False
    init: Literal["kaiming", "torch"] = "kaiming"


class UNet(nn.Module):
    """Map images (B, C, *S) to logits (B, K, *S).

    ``encoder(x)`` gives one feature map a level and ``decoder(features)`` one decoder map a level, both finest first
    (the last decoder map is the deepest feature itself); ``heads[i]`` turns decoder map ``i`` into logits. The three
    together hold every parameter.

    Args:
        dims: 2 or 3.
        in_channels: C.
        classes: K, background included.
        widths: channels of each level, finest first: one number, or one for each convolution of the level.
        strides: down-sampling between levels, ``len(widths) - 1`` factors or tuples of ``dims`` factors; default 2.
        kernels: kernel side of each level, numbers or tuples of ``dims``, odd; default 3. A decoder level has the
            kernel of the encoder level at its size.
        blocks: convolutions a level (``plain``), or residual blocks in an encoder level (``residual``): one number,
            or one for each level. Levels whose width is a tuple have its length.
        decoder_blocks: convolutions in a decoder level; default 2.
        kind: ``plain``, or ``residual`` (one convolution as stem, then residual blocks; the decoder stays plain).
        norm: ``batch``, ``instance`` or ``none``.
        deep_supervision: whether the finest three decoder levels get heads, for ``deep``; otherwise one.
        style: details of a published network, as ``Style`` or as a mapping of its fields.

    Raises:
        UsageError: sizes that do not fit each other.

    Example:
        >>> net = UNet(dims=3, in_channels=1, classes=3, widths=(16, 32, 64))
        >>> net(torch.zeros(1, 1, 8, 12, 20)).shape
        torch.Size([1, 3, 8, 12, 20])

    References:
        Ronneberger et al., 2015. https://arxiv.org/abs/1505.04597
        Cicek et al., 2016 (3D). https://arxiv.org/abs/1606.06650
    """

    def __init__(
        self,
        *,
        dims: int,
        in_channels: int,
        classes: int,
        widths: Sequence[int | Sequence[int]],
        strides: Sequence[int | Sequence[int]] | None = None,
        kernels: Sequence[int | Sequence[int]] | None = None,
        blocks: int | Sequence[int] = 2,
        decoder_blocks: int = 2,
        kind: Literal["plain", "residual"] = "plain",
        norm: Norm = "instance",
        deep_supervision: bool = False,
        style: Style | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(style, Style):
            style = settings.build(Style, style or {}, where="the style of the network")
        if dims not in (2, 3):
            raise UsageError(f"a U-Net has dims 2 or 3, found {dims!r}.")
        if kind not in ("plain", "residual") or norm not in ("batch", "instance", "none"):
            raise UsageError(
                f"kind must be plain or residual and norm batch, instance or none; found {kind!r} and {norm!r}."
            )
        depth = len(widths)
        if depth < 2:
            raise UsageError(f"a U-Net needs at least two levels; widths = {widths!r} has {depth}.")
        strides = _each(strides if strides is not None else 2, depth - 1, "strides")
        kernels = _each(kernels if kernels is not None else 3, depth, "kernels")
        _each(style.dropout or 0, depth, "dropout")
        convolutions = [
            tuple(width) if isinstance(width, Sequence) else (width,) * count
            for width, count in zip(widths, _each(blocks, depth, "blocks"))
        ]
        layers = Layers(
            dims=dims, norm=norm, affine=style.affine, activation=style.activation, bias=style.bias
        )
        self.encoder = Encoder(
            layers,
            in_channels,
            widths=convolutions,
            strides=[_axes(stride, dims, "strides") for stride in strides],
            kernels=[_axes(kernel, dims, "kernels") for kernel in kernels],
            kind=kind,
            style=style,
        )
        self.decoder = Decoder(layers, self.encoder, blocks=decoder_blocks, style=style)
        count = min(SUPERVISED_LEVELS, depth - 1) if deep_supervision else 1
        head_kernel = (style.head_kernel,) * dims
        self.heads = nn.ModuleList(
            layers.conv(width, classes, head_kernel, bias=style.head_bias)
            for width in self.decoder.widths[:count]
        )
        if style.idle_head:
            self.idle_head = layers.conv(self.decoder.widths[0], 1, (1,) * dims).requires_grad_(False)
        if style.init == "kaiming":
            self.apply(initialise_kaiming)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K, *S) of images (B, C, *S)."""
        logits: Tensor = self.heads[0](self.decoder(self.encoder(x))[0])
        return logits

    def deep(self, x: Tensor) -> list[Tensor]:
        """Return the logits of every head, finest first; each is coarser by the strides in between."""
        return [head(level) for head, level in zip(self.heads, self.decoder(self.encoder(x)))]


class Encoder(nn.Module):
    """Turn images (B, C, *S) into one feature map a level, finest first.

    Attributes:
        widths: channels of each map.
        strides: down-sampling between consecutive maps, one tuple of ``dims`` factors each.
        kernels: kernel of each level.
    """

    def __init__(
        self,
        layers: Layers,
        in_channels: int,
        *,
        widths: Sequence[tuple[int, ...]],
        strides: Sequence[tuple[int, ...]],
        kernels: Sequence[tuple[int, ...]],
        kind: str,
        style: Style,
    ) -> None:
        super().__init__()
        one = (1,) * layers.dims
        deepest = len(widths) - 1
        bare = Layers(dims=layers.dims, norm="none", activation="relu")
        self.levels = nn.ModuleList()
        channels = in_channels
        for level, (outputs, kernel, stride) in enumerate(zip(widths, kernels, [one, *strides])):
            here = bare if level == deepest and style.centre != "normed" else layers
            parts: list[nn.Module] = []
            if level == 0 and kind == "residual":
                parts.append(here.unit(channels, outputs[0], kernel))
                channels = outputs[0]
            if style.down == "pool" and level > 0:
                parts.append((nn.MaxPool2d if layers.dims == 2 else nn.MaxPool3d)(stride))
                stride = one
            for index, width in enumerate(outputs):
                step = stride if index == 0 else one
                if kind == "residual":
                    parts.append(ResidualBlock(here, channels, width, kernel, stride=step))
                else:
                    parts.append(here.unit(channels, width, kernel, stride=step))
                if index == 0 and style.dropout and style.dropout[level] > 0:
                    parts.append(nn.Dropout(style.dropout[level]))
                channels = width
            if level == deepest and style.centre == "bare_up":
                parts += [bare.transposed(channels, widths[-2][-1], strides[-1]), bare.activated()]
            self.levels.append(nn.Sequential(*parts))
        self.kernels = tuple(kernels)
        self.total_stride = tuple(math.prod(along_axis) for along_axis in zip(*strides))
        self.widths = tuple(outputs[-1] for outputs in widths)
        self.strides = tuple(strides)
        if style.centre == "bare_up":
            self.widths = (*self.widths[:-1], self.widths[-2])
            self.strides = (*self.strides[:-1], one)

    def forward(self, x: Tensor) -> list[Tensor]:
        check_divisible(x.shape[2:], self.total_stride)
        features = []
        for level in self.levels:
            x = level(x)
            features.append(x)
        return features


class Decoder(nn.Module):
    """Turn an encoder's feature maps into decoder maps, one a level, finest first.

    The last map is the deepest feature itself, so that map ``i`` always has the size of feature ``i``.

    Attributes:
        widths: channels of each map.
    """

    def __init__(self, layers: Layers, encoder: Encoder, *, blocks: int, style: Style) -> None:
        super().__init__()
        if not style.decoder_norm:
            layers = Layers(dims=layers.dims, norm="none", activation=layers.activation)
        self.widths = encoder.widths
        self.skip_first = style.skip_first
        self.ups = nn.ModuleList()
        self.levels = nn.ModuleList()
        for level in reversed(range(len(encoder.widths) - 1)):  # deepest first, the order of use
            deep, width, stride = encoder.widths[level + 1], encoder.widths[level], encoder.strides[level]
            kernel = encoder.kernels[level]
            up_width = deep if style.up == "transpose_wide" else width
            if max(stride) == 1 and deep == up_width:
                up: nn.Module = nn.Identity()  # the encoder has enlarged it already
            elif style.up == "linear":
                one = (1,) * layers.dims
                up = nn.Sequential(layers.conv(deep, up_width, one), LinearUpsample(stride))
            else:
                up = layers.transposed(deep, up_width, stride)
            self.ups.append(up)
            units = [layers.unit(up_width + width, width, kernel)]
            units += [layers.unit(width, width, kernel) for _ in range(blocks - 1)]
            self.levels.append(nn.Sequential(*units))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        maps = [features[-1]]
        for up, level, skip in zip(self.ups, self.levels, reversed(features[:-1])):
            enlarged = up(maps[-1])
            pair = [skip, enlarged] if self.skip_first else [enlarged, skip]
            maps.append(level(torch.cat(pair, dim=1)))
        return maps[::-1]


def _each(value: Any, count: int, name: str) -> list[Any]:
    """Spread one number over the levels, or check that there is one entry for each."""
    if isinstance(value, int):
        return [value] * count
    if len(value) != count:
        raise UsageError(f"{name} must have {count} entries for these widths, found {len(value)}: {value!r}.")
    return list(value)


def _axes(value: int | Sequence[int], dims: int, name: str) -> tuple[int, ...]:
    """Spread one number over the axes, or check that there is one for each."""
    axes = (value,) * dims if isinstance(value, int) else tuple(value)
    if len(axes) != dims or min(axes) < 1:
        raise UsageError(
            f"{name}: expected a positive number or {dims} of them for a {dims}D network, found {value!r}."
        )
    if name == "kernels" and any(axis % 2 == 0 for axis in axes):
        raise UsageError(f"kernels must be odd so that the size is kept, found {value!r}.")
    return axes
