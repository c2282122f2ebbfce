"""Heads of representation learning: from feature maps to vectors and pixel embeddings; dropped after pre-training."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class VectorHead(nn.Module):
    """Average the deepest feature map over space and project it: (B, C, *S) to (B, E).

    Args:
        in_channels: C.
        hidden: width between the two linear layers.
        out: E.
        activation: whether ReLU stands between the layers (PCL and SimCLR: yes; SSCL and MONA as released: no).
    """

    def __init__(self, in_channels: int, *, hidden: int, out: int, activation: bool = True) -> None:
        super().__init__()
        middle = [nn.ReLU(inplace=True)] if activation else []
        self.layers = nn.Sequential(nn.Linear(in_channels, hidden), *middle, nn.Linear(hidden, out))

    def forward(self, feature: Tensor) -> Tensor:
        vector: Tensor = self.layers(feature.flatten(2).mean(2))
        return vector


class NormedHead(nn.Module):
    """Average a feature map over space, if it has any, and project it through layers with batch norm between them.

    Linear, batch norm, ReLU for each width but the last; linear for the last: the projector and the predictor of
    BYOL, SimSiam and their relatives. Linear layers that a norm follows have no bias, which it would take away.

    Args:
        in_channels: C of a map (B, C, *S) or of vectors (B, C).
        widths: of the layers; the last is E.
        norm_last: whether a batch norm without scale and shift stands at the end (SimSiam's projector).

    References:
        Grill et al., 2020. https://arxiv.org/abs/2006.07733
        Chen and He, 2021. https://arxiv.org/abs/2011.10566
    """

    def __init__(self, in_channels: int, *, widths: Sequence[int], norm_last: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for width in widths[:-1]:
            layers += [nn.Linear(channels, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(inplace=True)]
            channels = width
        layers.append(nn.Linear(channels, widths[-1], bias=not norm_last))
        if norm_last:
            layers.append(nn.BatchNorm1d(widths[-1], affine=False))
        self.layers = nn.Sequential(*layers)

    def forward(self, feature: Tensor) -> Tensor:
        """Return (B, E) of (B, C, *S) or (B, C)."""
        vector: Tensor = self.layers(feature.flatten(2).mean(2) if feature.ndim > 2 else feature)
        return vector


class PixelHead(nn.Module):
    """Project every pixel of a decoder map: (B, C, *S) to (B, E, *S), by two 1x1 convolutions.

    Args:
        dims: 2 or 3.
        in_channels: C.
        hidden: width between the two convolutions.
        out: E.
        activation: whether ReLU stands between the convolutions (SSCL and MONA as released: no).
        bias: whether the convolutions have biases (SSCL: yes; MONA: no).
    """

    def __init__(
        self,
        *,
        dims: int,
        in_channels: int,
        hidden: int,
        out: int,
        activation: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        middle = [nn.ReLU(inplace=True)] if activation else []
        self.layers = nn.Sequential(
            conv(in_channels, hidden, 1, bias=bias), *middle, conv(hidden, out, 1, bias=bias)
        )

    def forward(self, decoder_map: Tensor) -> Tensor:
        embedding: Tensor = self.layers(decoder_map)
        return embedding


class PyramidHead(nn.Module):
    """Gather decoder maps of all sizes into one at full resolution, linearly (the extractor of MONA).

    From the coarsest map on: mix the channels (1x1 convolution without bias, added to its input), enlarge to the next
    map's size (linear, corners aligned), append that map; the last mixing is not added to its input.

    Args:
        dims: 2 or 3.
        widths: channels of the decoder maps, finest first, the deepest feature last.
        out: channels of the result; default the sum of ``widths``.

    References:
        You et al., 2024. https://arxiv.org/abs/2209.13476
    """

    def __init__(self, *, dims: int, widths: Sequence[int], out: int | None = None) -> None:
        super().__init__()
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        gathered = [sum(widths[level:]) for level in reversed(range(len(widths)))]
        outputs = [*gathered[:-1], gathered[-1] if out is None else out]
        self.mixers = nn.ModuleList(conv(i, o, 1, bias=False) for i, o in zip(gathered, outputs))
        self.mode = "bilinear" if dims == 2 else "trilinear"

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return (B, out, *S) from decoder maps, finest first."""
        *coarse, last = self.mixers
        x = maps[-1]
        for mix, finer in zip(coarse, reversed(maps[:-1])):
            x = F.interpolate(mix(x) + x, size=finer.shape[2:], mode=self.mode, align_corners=True)
            x = torch.cat([x, finer], dim=1)
        result: Tensor = last(x)
        return result


class LeanPyramidHead(nn.Module):
    """Gather decoder maps of all sizes into one, linearly and with little memory: (B, out, *S).

    From the coarsest map on: mix the channels of a map to ``out`` (1x1 convolution without bias) at its own size, add
    what came from below, enlarged (linear, corners aligned). These are the functions of ``PyramidHead``, of which
    products of matrices are left: nothing is ever wider than ``out`` but the maps themselves.

    Args:
        dims: 2 or 3.
        widths: channels of the decoder maps, finest first.
        out: channels of the result.
    """

    def __init__(self, *, dims: int, widths: Sequence[int], out: int) -> None:
        super().__init__()
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        self.mixers = nn.ModuleList(conv(width, out, 1, bias=False) for width in widths)
        self.mode = "bilinear" if dims == 2 else "trilinear"

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return (B, out, *S) from decoder maps, finest first."""
        mixed: list[Tensor] = [mix(each) for mix, each in zip(self.mixers, maps)]
        result = mixed[-1]
        for finer in reversed(mixed[:-1]):
            result = F.interpolate(result, size=finer.shape[2:], mode=self.mode, align_corners=True) + finer
        return result
