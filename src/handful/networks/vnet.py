"""The V-Net that semi-supervised papers use in 3D: strided convolutions, skips added instead of concatenated."""

from collections.abc import Sequence

from torch import Tensor, nn

from handful.networks.blocks import Layers, check_divisible


class VNet(nn.Module):
    """Map images (B, C, *S) to logits (B, K, *S); the same three parts as ``UNet``.

    Args:
        dims: 2 or 3.
        in_channels: C.
        classes: K, background included.
        widths: channels of each level, finest first; neighbours are a factor 2 apart in size.
        blocks: convolutions of each level.
        dropout: probability for whole channels after the deepest level and before the head.

    References:
        Milletari et al., 2016. https://arxiv.org/abs/1606.04797
        Sizes of the SSL4MIS benchmark (Luo et al., 2020), without residual units inside a level.
    """

    def __init__(
        self,
        *,
        dims: int,
        in_channels: int,
        classes: int,
        widths: Sequence[int] = (16, 32, 64, 128, 256),
        blocks: Sequence[int] = (1, 2, 3, 3, 3),
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        layers = Layers(dims=dims, norm="batch", activation="relu", bias=True)
        self.encoder = VNetEncoder(layers, in_channels, widths=widths, blocks=blocks, dropout=dropout)
        self.decoder = VNetDecoder(layers, widths=widths, blocks=blocks)
        self.heads = nn.ModuleList(
            [nn.Sequential(_dropout(dims, dropout), layers.conv(widths[0], classes, (1,) * dims))]
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K, *S) of images (B, C, *S)."""
        logits: Tensor = self.heads[0](self.decoder(self.encoder(x))[0])
        return logits


class VNetEncoder(nn.Module):
    """Turn images (B, C, *S) into one feature map a level, finest first; ``widths`` are their channels."""

    def __init__(
        self,
        layers: Layers,
        in_channels: int,
        *,
        widths: Sequence[int],
        blocks: Sequence[int],
        dropout: float,
    ) -> None:
        super().__init__()
        two = (2,) * layers.dims
        self.levels = nn.ModuleList()
        for level, (width, count) in enumerate(zip(widths, blocks)):
            parts: list[nn.Module] = []
            if level > 0:
                down = layers.conv(widths[level - 1], width, two, stride=two, padding=0)
                parts += [down, *layers.normed(width), layers.activated()]
            parts.append(_units(layers, in_channels if level == 0 else width, width, count))
            if level == len(widths) - 1:
                parts.append(_dropout(layers.dims, dropout))
            self.levels.append(nn.Sequential(*parts))
        self.widths = tuple(widths)
        self.total_stride = (2 ** (len(widths) - 1),) * layers.dims

    def forward(self, x: Tensor) -> list[Tensor]:
        check_divisible(x.shape[2:], self.total_stride)
        features = []
        for level in self.levels:
            x = level(x)
            features.append(x)
        return features


class VNetDecoder(nn.Module):
    """Turn an encoder's feature maps into decoder maps, finest first; the last is the deepest feature itself."""

    def __init__(self, layers: Layers, *, widths: Sequence[int], blocks: Sequence[int]) -> None:
        super().__init__()
        two = (2,) * layers.dims
        self.widths = tuple(widths)
        self.ups = nn.ModuleList()
        self.levels = nn.ModuleList()
        for level in reversed(range(len(widths) - 1)):
            width = widths[level]
            up = layers.transposed(widths[level + 1], width, two)
            self.ups.append(nn.Sequential(up, *layers.normed(width), layers.activated()))
            self.levels.append(_units(layers, width, width, blocks[level]))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        maps = [features[-1]]
        for up, level, skip in zip(self.ups, self.levels, reversed(features[:-1])):
            maps.append(level(up(maps[-1]) + skip))
        return maps[::-1]


def _units(layers: Layers, in_channels: int, width: int, count: int) -> nn.Sequential:
    kernel = (3,) * layers.dims
    return nn.Sequential(
        *(layers.unit(width if index else in_channels, width, kernel) for index in range(count))
    )


def _dropout(dims: int, probability: float) -> nn.Module:
    return nn.Dropout2d(probability) if dims == 2 else nn.Dropout3d(probability)
