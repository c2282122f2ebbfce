"""What methods learn from labels, as the control does: Dice and cross entropy over the decoder levels.

While a run is young, pixels of rare classes weigh more in the cross entropy, so that small structures are found at all.
Such a loss is least where the network says each rare class too often: a pixel that is one of a class with a share p
of the patch is told to be it with odds multiplied by the weight. So the balance falls to 0 by the end of the run.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

from torch import Tensor

from handful.losses.segmentation import dice_and_cross_entropy

Both = Callable[[Tensor, Tensor], Tensor]
"""Logits and label map to Dice loss and cross entropy, (2,)."""


class Weights(Protocol):
    """What the settings of a method say of the two."""

    @property
    def dice_weight(self) -> float: ...
    @property
    def cross_entropy_weight(self) -> float: ...


class LabelledTerms(NamedTuple):
    """Dice loss and cross entropy by name: weighted, with their graph, and as they are, without."""

    terms: dict[str, Tensor]
    logs: dict[str, Tensor]


def fading(balance: float, progress: float) -> float:
    """Return the balance of this moment: all of it when a run begins, none when it ends.

    Args:
        balance: of the first step, in [0, 1].
        progress: of the run, from 0 to 1.
    """
    return balance * (1 - min(max(progress, 0.0), 1.0))


def dice_and_fading_cross_entropy(
    balance: float,
    progress: float,
    *,
    squared: bool = False,
    include_background: bool = False,
    smooth: float = 1e-5,
) -> Both:
    """Return ``dice_and_cross_entropy``, over all processes, with the balance of this moment."""
    return partial(
        dice_and_cross_entropy,
        balance=fading(balance, progress),
        squared=squared,
        include_background=include_background,
        smooth=smooth,
        processes=True,
    )


def labelled_terms(both: Tensor, weights: Weights) -> LabelledTerms:
    """Name the two, (2,), and weigh them."""
    dice, entropy = both
    return LabelledTerms(
        {"dice_loss": weights.dice_weight * dice, "cross_entropy": weights.cross_entropy_weight * entropy},
        {"dice_loss": dice.detach(), "cross_entropy": entropy.detach()},
    )


def weighted(both: Tensor, weights: Weights) -> Tensor:
    """Return the weighted sum of the two, (2,)."""
    dice, entropy = both
    total: Tensor = weights.dice_weight * dice + weights.cross_entropy_weight * entropy
    return total
