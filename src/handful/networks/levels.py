"""The deep part of a decoder: its blocks from the deepest up to one level; the finer ones stay fresh."""

from collections.abc import Sequence

from torch import Tensor, nn

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
