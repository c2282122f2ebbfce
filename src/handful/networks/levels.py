"""The deep part of a decoder: its blocks from the deepest up to one level; the finer ones stay fresh."""

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor, nn
from torch.func import functional_call

from handful.errors import UsageError
from handful.networks.parts import Parts


def decode(decoder: nn.Module, features: Sequence[Tensor], *, level: int) -> Tensor:
    """Return the decoder map (B, C, *S) at ``level`` (0 is the finest); finer blocks are not computed.

    A decoder goes up as far as it is given features, so it is given those from ``level`` on.
    """
    finest: Tensor = decoder(features[level:])[0]
    return finest


def train_up_to(parts: Parts, *, level: int) -> None:
    """Freeze the decoder blocks finer than ``level``, which ``decode`` does not reach.

    Raises:
        UsageError: the network has no decoder block at this level, or a decoder that is not made of ``ups`` and
            ``levels``.
    """
    blocks = len(parts.widths) - 1
    if not 0 <= level < blocks:
        raise UsageError(
            f"local_level is {level}, but this network's decoder has the levels 0 (the finest) to {blocks - 1}."
        )
    for name in ("ups", "levels") if level else ():
        stacked = getattr(parts.decoder, name, None)
        if not isinstance(stacked, nn.ModuleList) or len(stacked) != blocks:
            raise UsageError(
                f"local_level is {level}, but {type(parts.decoder).__name__} cannot be trained in part: it has no "
                f"'{name}', one for each of its {blocks} levels, the deepest first. Use --set method.local_level=0."
            )
        stacked[blocks - level :].requires_grad_(False)


def level_strides(parts: Parts) -> list[tuple[int, ...]]:
    """Return, for each level, how many voxels of the image lie along each axis of one voxel of its map, finest first.

    Only shapes are computed: the encoder runs on tensors without data.
    """
    sides = [2 * stride for stride in parts.stride]
    image = torch.empty(1, parts.channels, *sides, device="meta")
    tensors = chain(parts.encoder.named_parameters(), parts.encoder.named_buffers())
    with torch.no_grad():
        features = functional_call(
            parts.encoder, {name: tensor.to("meta") for name, tensor in tensors}, (image,)
        )
    return [tuple(side // s for side, s in zip(sides, feature.shape[2:])) for feature in features]
