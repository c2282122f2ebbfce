"""What methods learn from labels, as the control does: Dice and cross entropy over the decoder levels.

While a run is young, pixels of rare classes weigh more in the cross entropy, so that small structures are found at all.
Such a loss is least where the network says each rare class too often: a pixel that is one of a class with a share p
of the patch is told to be it with odds multiplied by the weight. So the balance falls to 0 by the end of the run.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple, Protocol

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


class Form(Protocol):
    """What the settings of a method with published forms say of the loss."""

    @property
    def balance(self) -> float: ...
    @property
    def squared_dice(self) -> bool: ...
    @property
    def dice_background(self) -> bool: ...


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


def labelled_loss(form: Form, progress: float, *, smooth: float = 1e-5) -> Both:
    """Return ``dice_and_fading_cross_entropy`` in the form that a method's settings ask for."""
    return dice_and_fading_cross_entropy(
        form.balance,
        progress,
        squared=form.squared_dice,
        include_background=form.dice_background,
        smooth=smooth,
    )


def labelled_terms(both: Tensor, weights: Weights) -> LabelledTerms:
    """Name the two, (2,), and weigh them."""
    dice, entropy = both
    return LabelledTerms(
        {"dice_loss": weights.dice_weight * dice, "cross_entropy": weights.cross_entropy_weight * entropy},
        {"dice_loss": dice.detach(), "cross_entropy": entropy.detach()},
    )


def one_or_both(both: Tensor, which: Literal["dice", "cross_entropy", "both"]) -> Tensor:
    """Return the first of the two, (2,), the second, or their sum."""
    dice, entropy = both
    chosen: Tensor = {"dice": dice, "cross_entropy": entropy, "both": dice + entropy}[which]
    return chosen


def weighted(both: Tensor, weights: Weights) -> Tensor:
    """Return the weighted sum of the two, (2,)."""
    dice, entropy = both
    total: Tensor = weights.dice_weight * dice + weights.cross_entropy_weight * entropy
    return total
