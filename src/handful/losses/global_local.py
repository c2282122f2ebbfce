"""Global and local contrast in the original form of Chaitanya et al., where only a pair and its negatives are compared.

For a positive pair (a, b) and the negatives of a, on the sphere,

    l(a, b) = -log( e^(a.b / t) / (e^(a.b / t) + sum over negatives of e^(a.n / t) ) ):

unlike in SimCLR or supervised contrast other positives are not in the denominator (``partition_contrast`` is the
supervised form that PCL and SSCL call GCL).

References:
    Chaitanya et al., 2020. https://arxiv.org/abs/2006.10511
"""

import math
from collections.abc import Sequence
from itertools import combinations, product

import torch
import torch.nn.functional as F
from torch import Tensor

from handful.losses import checks
from handful.losses.embeddings import unit


def global_contrast(
    z: Tensor,
    partition: Tensor | None = None,
    *,
    partner: Tensor | None = None,
    related: Tensor | None = None,
    temperature: float = 0.1,
) -> Tensor:
    """Return the sum of l(a, b) over positive pairs in both orders, divided by the number of embeddings.

    G^R: ``z`` with two views and no partition; every pair of views of a slice is positive, all else negative (SimCLR).
    G^D-: with the partition of each slice, three views (the slice and two augmentations) in the paper; the negatives
    are the embeddings of other partitions, and slices of the same partition are neither attracted nor repelled.
    G^D: also with ``partner``, two views (slice, augmentation): for each slice i with partner j the pairs are
    (x_i, a_i), (x_j, a_j), (x_i, x_j) and (a_i, a_j). The released code takes j from the next volume, the first after
    the last; the all-zero images that its batches end with are not reproduced.

    An anchor without negatives (one partition) adds 0.

    Args:
        z: (B, V, E), normalised inside.
        partition: (B,) integers, or None.
        partner: (B,) index of a slice of the same partition in another volume, -1 for none; needs a partition.
        related: (B, B) bool: items that show the same tissue (patches that overlap) and so are never each other's
            negatives; none when None.
        temperature: 0.1.

    Raises:
        ValueError: shapes that do not fit, a partner of another partition, integers, NaN, a temperature that is not
            positive.

    Example:
        >>> import torch
        >>> z = torch.ones(4, 3, 8)  # one volume, four partitions: each anchor has 9 negatives
        >>> float(global_contrast(z, torch.arange(4))) / 2  # each embedding is in two pairs: 2 log(9 + 1)
        2.302585...
    """
    checks.temperature(temperature)
    z = checks.embeddings("z", z, "B V E")
    batch, views = z.shape[:2]
    if partition is None:
        partition = torch.arange(batch, device=z.device)
        if partner is not None:
            raise ValueError("a partner is a slice of the same partition: give the partition too.")
    elif partition.shape != (batch,):
        raise ValueError(
            f"partition must be ({batch},) for z {tuple(z.shape)}, found {tuple(partition.shape)}."
        )
    first = torch.arange(batch, device=z.device) * views
    pairs = [torch.stack((first + v, first + w), 1) for v, w in combinations(range(views), 2)]
    if partner is not None:
        pairs = _across(pairs, partition, partner.to(z.device), views)
    if not batch or not pairs:
        return checks.nothing(z)
    every = torch.cat(pairs)
    every = torch.cat((every, every.flip(1)))
    flat = unit(z.flatten(0, 1))
    kind = partition.to(z.device).repeat_interleave(views)
    with torch.autocast(z.device.type, enabled=False):
        logits = flat @ flat.T / temperature
    left_out = kind[:, None] == kind
    if related is not None:
        if related.shape != (batch, batch):
            raise ValueError(f"related must be ({batch}, {batch}), found {tuple(related.shape)}.")
        left_out |= related.to(z.device).repeat_interleave(views, 0).repeat_interleave(views, 1)
    away = logits.masked_fill(left_out, -math.inf).logsumexp(1)
    near = logits[every[:, 0], every[:, 1]]
    return F.softplus(away[every[:, 0]] - near).sum() / len(flat)


def local_contrast(first: Tensor, second: Tensor, neighbours: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Return L^R: the mean over images, regions and both directions of l(a, b), a and b a region in both maps.

    The negatives of region r are its neighbouring regions in both maps of the same image: 10 of them with 5 neighbours.

    Args:
        first: (B, R, E), the embedded regions of one intensity version (``regions`` through a head).
        second: (B, R, E), of the other.
        neighbours: (R, M) indices of regions, for example ``nearest_regions``.
        temperature: 0.1.

    Raises:
        ValueError: shapes that do not fit, integers as embeddings, NaN, a temperature that is not positive.
    """
    checks.temperature(temperature)
    first = checks.embeddings("first", first, "B R E")
    second = checks.embeddings("second", second, "B R E")
    checks.same_shape(first=first, second=second)
    if neighbours.ndim != 2 or len(neighbours) != first.shape[1]:
        raise ValueError(
            f"neighbours must be (R, M) with R = {first.shape[1]} regions, found {tuple(neighbours.shape)}."
        )
    if not first.numel() or not neighbours.numel():
        return checks.nothing(first, second)
    both = unit(torch.stack((first, second)))
    with torch.autocast(first.device.type, enabled=False):
        alike = torch.einsum("vbre,wbse->vbrws", both, both) / temperature  # (2, B, R, 2, R)
    regions = torch.arange(first.shape[1], device=first.device)
    near = torch.stack((alike[0, :, regions, 1, regions], alike[1, :, regions, 0, regions]))  # (2, B, R)
    index = neighbours.to(first.device)[None, None, :, None].expand(2, len(first), -1, 2, -1)
    away = alike.gather(4, index).flatten(3).logsumexp(3)
    return F.softplus(away - near).mean()


def regions(maps: Tensor, corners: Tensor, *, size: int = 3) -> Tensor:
    """Return (B, R, C * size^axes): the regions of ``maps`` (B, C, *S) that begin at ``corners`` (R, axes)."""
    found = [
        maps[(slice(None), slice(None), *(slice(at, at + size) for at in corner.tolist()))].flatten(1)
        for corner in corners
    ]
    return torch.stack(found, 1)


def region_corners(size: Sequence[int], *, region: int = 3) -> Tensor:
    """Return the (R, axes) corners of the fixed regions: three places an axis, and the quarter points between them.

    13 regions in 2D, as released; 35 in 3D. Places that coincide on a short axis are named once: fewer regions.

    Raises:
        ValueError: an axis shorter than a region, or fewer than six regions, which leaves none to compare with.

    Example:
        >>> region_corners((48, 48)).shape, region_corners((8, 12, 20)).shape
        (torch.Size([13, 2]), torch.Size([35, 3]))
    """
    if min(size) < region:
        raise ValueError(f"a map of {tuple(size)} is too small for regions of {region} pixels a side.")
    last = [max(length - region - 1, 0) for length in size]  # as released: the last row and column stay empty
    grid = product(*((0, end // 2, end) for end in last))
    quarters = product(*((end // 4, 3 * end // 4) for end in last))
    corners = list(dict.fromkeys((*grid, *quarters)))
    if len(corners) < 6:
        raise ValueError(
            f"a map of {tuple(size)} is too small: it has room for {len(corners)} regions of {region} pixels a side, "
            "at least 6 are needed."
        )
    return torch.tensor(corners)


def nearest_regions(corners: Tensor, count: int = 5) -> Tensor:
    """Return (R, count): the nearest other regions of each, nearest first, the earlier one of two as near.

    The released table is written by hand, not symmetric, and partly names places outside the 13 regions.
    """
    place = corners.double()
    distance = torch.cdist(place, place).fill_diagonal_(math.inf)
    return distance.sort(dim=1, stable=True).indices[:, :count]


def _across(pairs: list[Tensor], partition: Tensor, partner: Tensor, views: int) -> list[Tensor]:
    """Turn the pairs within each slice into those of G^D: its own, its partner's, and between the two."""
    if partner.shape != partition.shape:
        raise ValueError(f"partner must be {tuple(partition.shape)}, found {tuple(partner.shape)}.")
    with_partner = (partner >= 0).nonzero()[:, 0]
    other = partner[with_partner]
    partition = partition.to(partner.device)
    if (partition[other] != partition[with_partner]).any():
        raise ValueError(
            "a partner must be of the same partition: attracting other slices contradicts the negatives."
        )
    between = [torch.stack((with_partner * views + v, other * views + v), 1) for v in range(views)]
    return pairs + [pair[other] for pair in pairs] + between
