"""Losses between logits and label maps: soft Dice, cross entropy, both at once, and their mean over decoder levels.

Shapes: logits (B, K, *S); label (B, *S) int64 class indices, -1 where a pixel takes no part in any loss: neither the
value nor the gradient depends on what the network says there. Everything is computed in float32 at least.

A class that is absent from the batch (from the image, with ``batch=False``) still counts in the mean over classes of
the Dice loss: its Dice is ``smooth / (predicted mass + smooth)``, so with a small ``smooth`` it adds a constant 1 and
next to no gradient, and 0 where nothing of it is predicted at all. Where no pixel has a label, every loss is 0 and
can still be differentiated.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from handful.batches import IGNORE
from handful.losses.processes import gathered


def dice_ce(
    logits: Tensor,
    label: Tensor,
    *,
    dice_weight: float = 1.0,
    cross_entropy_weight: float = 1.0,
    include_background: bool = False,
    squared: bool = False,
    smooth: float = 1e-5,
    batch: bool = True,
    processes: bool = False,
) -> Tensor:
    """Return the weighted sum of ``soft_dice_loss`` and ``cross_entropy``, the plain mean.

    The defaults are nnU-Net's; the papers' variants are named at ``soft_dice_loss``.

    References:
        Isensee et al., 2021, nnU-Net. https://doi.org/10.1038/s41592-020-01008-z
    """
    dice, entropy = dice_and_cross_entropy(
        logits, label, include_background=include_background, squared=squared, smooth=smooth, batch=batch,
        processes=processes,
    )  # fmt: skip
    total: Tensor = dice_weight * dice + cross_entropy_weight * entropy
    return total


def dice_and_cross_entropy(
    logits: Tensor,
    label: Tensor,
    *,
    balance: float = 0.0,
    include_background: bool = False,
    squared: bool = False,
    smooth: float = 1e-5,
    batch: bool = True,
    processes: bool = False,
) -> Tensor:
    """Return ``soft_dice_loss`` and ``cross_entropy`` as (2,), from one softmax: what labelled images train with.

    Args:
        logits, label, balance, include_background, squared, smooth, batch: as for the two.
        processes: whether the sums run over the images of all processes (``gathered``), which must then all call it
            together with equally many: Dice, and weights of classes, of small batches are not the mean of their parts.

    Raises:
        ValueError: as the two.

    Example:
        >>> dice_and_cross_entropy(torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 1]]]))
        tensor([0.5000, 0.6931])
    """
    sums = _sums(logits, label, squared=squared)
    if processes:
        sums = _Sums(*gathered(torch.stack(sums, dim=1)).unbind(1))
    dice = _dice(sums, include_background=include_background, smooth=smooth, batch=batch)
    return torch.stack([dice, _cross_entropy(sums, balance=balance)])


def soft_dice_loss(
    logits: Tensor,
    label: Tensor,
    *,
    include_background: bool = False,
    squared: bool = False,
    smooth: float = 1e-5,
    batch: bool = True,
) -> Tensor:
    """Return 1 - (2 sum(p g) + smooth) / (sum(p) + sum(g) + smooth), averaged over classes.

    p are the softmax probabilities, g the one-hot label; nnU-Net by default. SSCL fine-tunes with ``squared=True,
    smooth=1.0``; MONA and SSL4MIS use ``squared=True, include_background=True``.

    Args:
        logits: (B, K, *S).
        label: (B, *S) int64, -1 ignored.
        include_background: whether class 0 counts in the mean.
        squared: whether the denominator holds sum(p^2).
        smooth: positive; decides what an absent class costs (see the head of this file).
        batch: whether the sums run over the batch as over one image; otherwise one Dice an image, then the mean.

    Raises:
        ValueError: shapes that do not fit, or ``smooth`` not positive.

    References:
        Milletari et al., 2016. https://arxiv.org/abs/1606.04797
        Drozdzal et al., 2016. https://arxiv.org/abs/1608.04117
    """
    sums = _sums(logits, label, squared=squared)
    return _dice(sums, include_background=include_background, smooth=smooth, batch=batch)


def cross_entropy(logits: Tensor, label: Tensor, *, balance: float = 0.0) -> Tensor:
    """Return the mean over known pixels of -log softmax at the label, pixels of rare classes weighing more.

    A pixel of a class with n pixels in the batch weighs n^-balance. 0 is the plain mean; with 1 every class that is
    present counts the same, however small it is.

    Args:
        logits: (B, K, *S).
        label: (B, *S) int64, -1 ignored.
        balance: in [0, 1].

    Raises:
        ValueError: shapes that do not fit, or ``balance`` outside [0, 1].
    """
    return _cross_entropy(_sums(logits, label), balance=balance)


def deep_supervision(
    logits: Sequence[Tensor], label: Tensor, loss: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Return the mean of ``loss`` over decoder levels, finest first, weighted 1, 1/2, 1/4, ...

    A coarser level sees every n-th pixel of the label along each axis, the first of each n.

    Args:
        logits: (B, K, *S) and coarser.
        label: (B, *S) int64, -1 ignored.
        loss: of logits and label, for example ``dice_ce``; or several, stacked, as ``dice_and_cross_entropy``.

    Raises:
        ValueError: no levels, or a level whose size does not divide the label's.

    References:
        Lee et al., 2015. https://arxiv.org/abs/1409.5185
    """
    if not logits:
        raise ValueError("deep supervision needs the logits of at least one level.")
    weights = [0.5**level for level in range(len(logits))]
    losses = [
        weight * loss(level, downsampled(label, level.shape[2:])) for weight, level in zip(weights, logits)
    ]
    return torch.stack(losses).sum(0) / sum(weights)


def downsampled(label: Tensor, size: Sequence[int]) -> Tensor:
    """Return every n-th pixel of ``label`` (B, *S) along each axis, so that it has ``size``.

    Raises:
        ValueError: ``size`` does not divide the label's.
    """
    full = label.shape[1:]
    if len(full) != len(size) or any(f % s for f, s in zip(full, size)):
        raise ValueError(
            f"a label of size {tuple(full)} cannot be thinned out to {tuple(size)}: it must be a multiple."
        )
    return label[(slice(None), *(slice(None, None, f // s) for f, s in zip(full, size)))]


class _Sums(NamedTuple):
    """Sums over the known pixels of each image, (B, K) each.

    Attributes:
        pixels: of the class.
        overlap: probabilities of the class at its own pixels.
        predicted: probabilities of the class, or their squares, at all pixels.
        surprise: -log probability of the class at its own pixels.
    """

    pixels: Tensor
    overlap: Tensor
    predicted: Tensor
    surprise: Tensor


def _sums(logits: Tensor, label: Tensor, *, squared: bool = False) -> _Sums:
    """Return all that both losses are made of, in float32 at least, from one softmax and without a one-hot label."""
    if logits.ndim < 3 or label.shape != logits.shape[:1] + logits.shape[2:]:
        raise ValueError(
            f"logits (B, K, *S) and label (B, *S) do not fit: found {tuple(logits.shape)} and {tuple(label.shape)}."
        )
    if label.dtype != torch.int64:
        raise ValueError(f"labels must be int64 class indices, found {label.dtype}.")
    precise = logits if logits.dtype == torch.float64 else logits.float()
    log_p = precise.log_softmax(1).reshape(*logits.shape[:3], -1)
    index = label.reshape(*label.shape[:2], -1)
    known = index != IGNORE
    index = index.where(known, 0)
    chosen = log_p.gather(1, index.unsqueeze(1)).squeeze(1)
    p = log_p.exp()
    weight = known.to(p.dtype)
    # slice by slice, then over slices: adding up millions of numbers one by one would lose the small ones
    empty = p.new_zeros(*index.shape[:2], p.shape[1])
    pixels, overlap, surprise = (
        empty.scatter_add(2, index, values).sum(1)
        for values in (weight, weight * chosen.exp(), -weight * chosen)
    )
    predicted = ((p.square() if squared else p) * weight.unsqueeze(1)).sum((2, 3))
    return _Sums(pixels, overlap, predicted, surprise)


def _dice(sums: _Sums, *, include_background: bool, smooth: float, batch: bool) -> Tensor:
    if smooth <= 0:
        raise ValueError(
            f"smooth must be positive (a class that is absent and not predicted is 0/0 without), found {smooth}."
        )
    pixels, overlap, predicted, _ = (each.sum(0) if batch else each for each in sums)
    dice = (2 * overlap + smooth) / (predicted + pixels + smooth)
    return 1 - dice[..., 0 if include_background else 1 :].mean()


def _cross_entropy(sums: _Sums, *, balance: float) -> Tensor:
    if not 0 <= balance <= 1:
        raise ValueError(f"balance lies in [0, 1], found {balance}.")
    pixels, surprise = sums.pixels.sum(0), sums.surprise.sum(0)
    weight = pixels.clamp(min=1) ** -balance
    return (weight * surprise).sum() / (weight * pixels).sum().clamp(min=torch.finfo(pixels.dtype).tiny)
