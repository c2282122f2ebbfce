"""Mix images with each other: CutMix, CutOut, ClassMix and mixup, of everything that belongs to an image alike.

Masks and partners are drawn once (data) and then applied to image, label and confidence, which so stay aligned.
A mask (B, *S) bool is True where an image keeps its own pixels.

References:
    Yun et al., 2019, CutMix. https://arxiv.org/abs/1905.04899
    DeVries and Taylor, 2017, CutOut. https://arxiv.org/abs/1708.04552
    Olsson et al., 2021, ClassMix. https://arxiv.org/abs/2007.07936
    Zhang et al., 2018, mixup. https://arxiv.org/abs/1710.09412
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from handful.batches import IGNORE


def next_partner(batch: int) -> Tensor:
    """Return (B,): image i takes from image i + 1, the last from the first (ReCo, MONA)."""
    return torch.arange(batch).roll(-1)


def random_partner(batch: int, *, generator: torch.Generator) -> Tensor:
    """Return (B,): a random permutation in which no image is its own partner, unless it is alone."""
    order = torch.randperm(batch, generator=generator, device=generator.device)
    partner = torch.empty_like(order)
    partner[order] = order.roll(-1)
    return partner


def mixing_weight(*, alpha: float = 1.0, fold: bool = True, generator: torch.Generator) -> float:
    """Draw a weight from Beta(alpha, alpha), folded to max(w, 1 - w) so that an image dominates its mixture."""
    if not alpha > 0:
        raise ValueError(f"alpha must be positive, found {alpha}.")
    a, b = torch._standard_gamma(
        torch.full((2,), alpha, dtype=torch.float64, device=generator.device), generator=generator
    )
    weight = float(a / (a + b)) if float(a + b) > 0 else 0.5
    return max(weight, 1 - weight) if fold else weight


def half_box_mask(batch: int, size: Sequence[int], *, generator: torch.Generator) -> Tensor:
    """Return (B, *S): False in a box of half the image, of random shape, at a random place (MONA's CutMix).

    The longest axis (of equals the first) makes up the half; the others, the last one first, get a length drawn
    uniformly from those that leave it room. On a square: w from W / 2 + 1 .. W - 1, h = round(H W / 2 / w). In 3D the
    box is cut in all axes, where the released code cuts ten slices.
    """
    mask = torch.ones(batch, *size, dtype=torch.bool)
    longest = max(range(len(size)), key=lambda axis: (size[axis], -axis))
    order = [axis for axis in reversed(range(len(size))) if axis != longest]
    for image in mask:
        sides = [1] * len(size)
        left, room = math.prod(size) / 2, math.prod(size)
        for axis in order:
            room //= size[axis]
            least = min(size[axis], math.floor(left / room) + 1)
            sides[axis] = _integer(least, max(least, size[axis] - 1), generator)
            left /= sides[axis]
        sides[longest] = min(max(round(left), 1), size[longest])
        image[_place(size, sides, generator)] = False
    return mask


def box_mask(size: Sequence[int], weight: float, *, generator: torch.Generator) -> tuple[Tensor, float]:
    """Return a mask (*S), False in a box of the image's shape with about 1 - ``weight`` of its volume, and its mean.

    The sides are round(S_k (1 - weight)^(1 / axes)); use the returned mean in place of ``weight``, which rounding
    missed. MixCL-style, reconstructed.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight is the share an image keeps, in [0, 1]; found {weight}.")
    sides = [round(length * (1 - weight) ** (1 / len(size))) for length in size]
    mask = torch.ones(*size, dtype=torch.bool)
    mask[_place(size, sides, generator)] = False
    return mask, float(mask.double().mean())


def box_masks(
    batch: int,
    size: Sequence[int],
    *,
    share: tuple[float, float],
    probability: float = 1.0,
    generator: torch.Generator,
) -> Tensor:
    """Return (B, *S): False in a box of the image's shape at a random place, another one for each image.

    Args:
        batch: B.
        size: *S.
        share: of the image's volume, drawn uniformly in (low, high); the sides are rounded.
        probability: of a box; otherwise an image is kept whole.
        generator: on the CPU.

    Raises:
        ValueError: shares that are no range within [0, 1].
    """
    low, high = share
    if not 0 <= low <= high <= 1:
        raise ValueError(f"share is a range within [0, 1], found {share}.")
    shares, chances = torch.rand(2, batch, generator=generator)
    boxes = [
        box_mask(size, 1 - (low + (high - low) * float(drawn)), generator=generator)[0] for drawn in shares
    ]
    whole = (chances >= probability).reshape(-1, *[1] * len(size))
    return torch.stack(boxes).logical_or(whole)


def class_mask(label: Tensor, *, generator: torch.Generator) -> Tensor:
    """Return (B, *S): True on half (rounded down) of the classes of each label (ClassMix); -1 is never among them."""
    mask = torch.zeros_like(label, dtype=torch.bool)
    for image, own in enumerate(label):
        present = torch.unique(own[own != IGNORE])
        order = torch.randperm(len(present), generator=generator, device=generator.device).to(label.device)
        mask[image] = torch.isin(own, present[order[: len(present) // 2]])
    return mask


def paste(maps: Tensor, mask: Tensor, partner: Tensor) -> Tensor:
    """Return each image where its mask is True, its partner elsewhere; for images, labels and confidences alike.

    Args:
        maps: (B, *S) or (B, C, *S).
        mask: (B, *S) bool, or (1, *S) for all images.
        partner: (B,) indices.

    Example:
        >>> import torch
        >>> label = torch.tensor([[[1, 1]], [[2, 2]]])
        >>> paste(label, torch.tensor([[[True, False]]]), next_partner(2)).tolist()
        [[[1, 2]], [[2, 1]]]
    """
    return torch.where(_spread(mask, maps), maps, maps[partner.to(maps.device)])


def erase(maps: Tensor, mask: Tensor, value: float) -> Tensor:
    """Return the maps with ``value`` where the mask is False: CutOut, of images 0, labels -1, confidences 0.

    Args:
        maps: (B, *S) or (B, C, *S).
        mask: (B, *S) bool, or (1, *S) for all images.
        value: for what is erased.
    """
    return maps.where(_spread(mask, maps), value)


def mixup(maps: Tensor, weight: float, partner: Tensor) -> Tensor:
    """Return weight x + (1 - weight) x[partner], for images (B, C, *S); labels stay apart (``mixcl.soft_labels``)."""
    return weight * maps + (1 - weight) * maps[partner.to(maps.device)]


def _spread(mask: Tensor, maps: Tensor) -> Tensor:
    """Give the mask (B or 1, *S) the channel axis that the maps may have."""
    mask = mask.to(maps.device)
    spread = mask.unsqueeze(1) if mask.ndim == maps.ndim - 1 else mask
    channels = spread.ndim > mask.ndim
    space = maps.shape[2:] if channels else maps.shape[1:]
    if spread.ndim != maps.ndim or mask.shape[1:] != space or len(mask) not in (1, len(maps)):
        raise ValueError(
            f"a mask of {tuple(mask.shape)} does not fit maps of {tuple(maps.shape)}: it must be (B, *S)."
        )
    return spread


def _integer(low: int, high: int, generator: torch.Generator) -> int:
    return int(torch.randint(low, high + 1, (), generator=generator, device=generator.device))


def _place(size: Sequence[int], sides: Sequence[int], generator: torch.Generator) -> tuple[slice, ...]:
    """Put a box of ``sides`` at a random place inside."""
    starts = [_integer(0, length - side, generator) for length, side in zip(size, sides)]
    return tuple(slice(start, start + side) for start, side in zip(starts, sides))
