"""Local contrast across volumes (Chaitanya et al.'s L^D): a region resembles the same region of other volumes' slices.

``local_contrast`` (L^R) compares a region with itself under another intensity. Where slices of one partition of their
volumes are roughly aligned, the same region of those slices can be a positive too.

References:
    Chaitanya et al., 2020. https://arxiv.org/abs/2006.10511
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from handful.losses import checks
from handful.losses.embeddings import unit


def local_contrast_across(
    first: Tensor, second: Tensor, neighbours: Tensor, partners: Tensor, *, temperature: float = 0.1
) -> Tensor:
    """Return L^D: the sum of l(a, b) over images, regions and positives, divided by twice the images and the regions.

    For region r of image i, a is r in the first map, and b is r in the second map and in the first maps of the
    partners of i. With the negatives n, the neighbours of r in the first map of i and in the map of b,

        l(a, b) = -log( e^(a.b / t) / (e^(a.b / t) + sum_n e^(a.n / t)) )

    This is the released code's form: b is never the anchor in turn, though twice the images is what both directions
    would be divided by. Its batch holds a slice of each of the four partitions of three volumes, so that every slice
    has two partners; the neighbours are four instead of five, for memory.

    Args:
        first: (B, R, E), the embedded regions of one intensity version (``regions`` through a head).
        second: (B, R, E), of the other.
        neighbours: (R, M) indices of regions, for example ``nearest_regions(corners, 4)``.
        partners: (B, P) indices of images of the same partition in other volumes, -1 for none.
        temperature: 0.1.

    Raises:
        ValueError: shapes that do not fit, a partner that is not an image of the batch or is the image itself,
            integers as embeddings, NaN, a temperature that is not positive.

    Example:
        >>> z = torch.ones(12, 13, 8)  # four partitions of the first volume, of the second, of the third
        >>> partners = (torch.arange(12)[:, None] + torch.tensor([4, 8])) % 12
        >>> neighbours = torch.arange(13)[:, None].add(torch.arange(1, 5)) % 13
        >>> float(local_contrast_across(z, z, neighbours, partners))  # 3 positives, 8 negatives each: 3/2 log 9
        3.29583...
    """
    checks.temperature(temperature)
    first = checks.embeddings("first", first, "B R E")
    second = checks.embeddings("second", second, "B R E")
    checks.same_shape(first=first, second=second)
    images, count = first.shape[:2]
    if neighbours.ndim != 2 or len(neighbours) != count:
        raise ValueError(
            f"neighbours must be (R, M) with R = {count} regions, found {tuple(neighbours.shape)}."
        )
    if partners.ndim != 2 or len(partners) != images:
        raise ValueError(f"partners must be (B, P) with B = {images} images, found {tuple(partners.shape)}.")
    itself = torch.arange(images, device=first.device)[:, None]
    partners = partners.to(first.device)
    wrong = (partners < -1) | (partners >= images) | (partners == itself)
    if wrong.any():
        image, place = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"partners must be other images of the batch, 0 to {images - 1}, or -1 for none: image {image} has "
            f"{int(partners[image, place])}."
        )
    if not first.numel() or not neighbours.numel():
        return checks.nothing(first, second)
    first, second = unit(first), unit(second)
    with torch.autocast(first.device.type, enabled=False):
        # (B, 1 + P, R, E): the second map, then the partners' first maps; a missing partner is not counted
        other = torch.cat((second[:, None], first[partners]), 1)
        here = torch.einsum("bre,bse->brs", first, first) / temperature
        there = torch.einsum("bre,bpse->bprs", first, other) / temperature
    index = neighbours.to(first.device)[None]
    away_here = here.gather(2, index.expand(images, -1, -1)).logsumexp(2)
    away_there = there.gather(3, index[None].expand(*there.shape[:2], -1, -1)).logsumexp(3)
    away = torch.logaddexp(away_here[:, None], away_there)
    cost = F.softplus(away - there.diagonal(dim1=2, dim2=3)).sum(2)
    known = torch.cat((torch.ones_like(itself), partners >= 0), 1)
    return (cost * known).sum() / (2 * images * count)
