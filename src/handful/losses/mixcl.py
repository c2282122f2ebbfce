"""The terms of MixCL-style pre-training, reconstructed: identity and label consistency, plain and mixed.

Only the idea and the three names are the paper's: its text was not available and no code was published. The forms,
temperatures and mixing rules below are a reconstruction from its abstract and its nearest relatives (PCRL; supervised
contrast of voxels), so results with them are "MixCL-style", not MixCL's. The reconstruction term is
``reconstruction_error``, on the clean or the mixed clean view; images are mixed by ``mixing``.

References:
    Li, Quan and Zhou, 2022, MixCL. https://arxiv.org/abs/2203.02114
    Zhou et al., 2021, PCRL. https://arxiv.org/abs/2109.04379
    Khosla et al., 2020, supervised contrast. https://arxiv.org/abs/2004.11362
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from handful.batches import IGNORE
from handful.losses import checks
from handful.losses.embeddings import unit
from handful.losses.segmentation import dice_ce


def identity_contrast(
    first: Tensor, second: Tensor, *, temperature: float = 0.2, related: Tensor | None = None
) -> Tensor:
    """Return NT-Xent over two views of B patches, in which related patches are not each other's negatives.

    -log( e^(s_ij / t) / sum over k != i of e^(s_ik / t) ), j the other view of i, averaged over the 2B embeddings.
    Equal embeddings give log(2B - 1).

    Args:
        first: (B, E), the embeddings of view 1; normalised inside.
        second: (B, E), of view 2, the same patches in the same order.
        temperature: PCRL's 0.2.
        related: (B, B) bool, symmetric: patches that show the same tissue (``overlapping``), left out of the sum.

    Raises:
        ValueError: shapes that do not fit, integers, NaN, a temperature that is not positive.

    References:
        Chen et al., 2020, SimCLR. https://arxiv.org/abs/2002.05709
    """
    checks.temperature(temperature)
    first = checks.embeddings("first", first, "B E")
    second = checks.embeddings("second", second, "B E")
    checks.same_shape(first=first, second=second)
    batch = len(first)
    if not batch:
        return checks.nothing(first, second)
    z = unit(torch.cat((first, second)))
    with torch.autocast(z.device.type, enabled=False):
        logits = z @ z.T / temperature
    index = torch.arange(batch, device=z.device)
    partner = torch.cat((index + batch, index))
    left_out = torch.eye(2 * batch, dtype=torch.bool, device=z.device)
    if related is not None:
        if related.shape != (batch, batch):
            raise ValueError(
                f"related must be ({batch}, {batch}) for {batch} patches, found {tuple(related.shape)}."
            )
        left_out = left_out | related.to(z.device).repeat(2, 2)
        left_out[torch.arange(2 * batch, device=z.device), partner] = False
    return F.cross_entropy(logits.masked_fill(left_out, -math.inf), partner)


def overlapping(volume: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return (B, B) bool: which patches are cut from one volume and share a voxel.

    Args:
        volume: (B,) identifiers.
        low: (B, D) first voxel of each patch.
        high: (B, D) one past its last voxel.
    """
    shared = torch.minimum(high[:, None], high) > torch.maximum(low[:, None], low)
    return (volume[:, None] == volume) & shared.all(2)


def mixed_identity(
    query: Tensor,
    keys: Tensor,
    partner: Tensor,
    *,
    weight: float,
    temperature: float = 0.2,
    related: Tensor | None = None,
) -> Tensor:
    """Return the mean of -w log p(k_i | q_i) - (1 - w) log p(k_partner(i) | q_i), p = softmax of q.k / t over all keys.

    The query is the embedding of a mixture of i and partner(i), the keys are those of the unmixed images in another
    view, not trained here. It never falls below the entropy of (w, 1 - w); with w = 1 it is InfoNCE.

    Args:
        query: (B, E), normalised inside.
        keys: (B or more, E), key i belonging to image i, those after it negatives only; detached inside.
        partner: (B,) indices into the keys.
        weight: the share of image i in its mixture.
        temperature: PCRL's 0.2.
        related: (B, B) bool, or (B, keys): which keys show the same tissue as image i (``overlapping``); those related
            to i or to its partner are left out of the sum, the two own keys excepted.

    Raises:
        ValueError: shapes that do not fit, integers, NaN, a weight outside [0, 1], a temperature that is not positive.
    """
    checks.temperature(temperature)
    query = checks.embeddings("query", query, "B E")
    keys = checks.embeddings("keys", keys, "B E").detach().to(query.dtype)
    checks.same_width(query=query, keys=keys)
    if len(keys) < len(query) or partner.shape != query.shape[:1]:
        raise ValueError(
            f"there must be a key and a partner for each of {len(query)} queries, found {len(keys)} keys and partners "
            f"of shape {tuple(partner.shape)}."
        )
    _share(weight)
    if not len(query):
        return checks.nothing(query)
    with torch.autocast(query.device.type, enabled=False):
        logits = unit(query) @ unit(keys).T / temperature
    own = torch.arange(len(query), device=query.device)
    partner = partner.to(own.device)
    if related is not None:
        if len(related) != len(query) or related.shape[1:] not in ((len(query),), (len(keys),)):
            raise ValueError(
                f"related must be ({len(query)}, {len(query)}), or with a column for each of {len(keys)} keys, found "
                f"{tuple(related.shape)}."
            )
        related = related.to(own.device)
        left_out = torch.zeros_like(logits, dtype=torch.bool)
        left_out[:, : related.shape[1]] = related | related[partner]
        left_out[own, own] = left_out[own, partner] = False
        logits = logits.masked_fill(left_out, -math.inf)
    return weight * F.cross_entropy(logits, own) + (1 - weight) * F.cross_entropy(logits, partner)


@torch.no_grad()
def draw_labelled(label: Tensor, count: int, *, generator: torch.Generator) -> Tensor:
    """Draw ``count`` flat indices of known voxels, each present class alike, without replacement.

    A class with fewer voxels than its share gives all it has; what is left goes to the largest class, as far as it
    reaches. Fewer than ``count`` come back where the voxels run out.

    Args:
        label: any shape, int64, -1 unknown; flattened row-major.
        count: N; the reconstruction takes 1024 a step.
        generator: for the draw.
    """
    flat = label.flatten()
    classes = torch.unique(flat[flat != IGNORE]).tolist()
    if not classes:
        return flat.new_empty(0)
    pools = []
    for k in classes:
        pool = (flat == k).nonzero()[:, 0]
        order = torch.randperm(len(pool), generator=generator, device=generator.device)
        pools.append(pool[order.to(pool.device)])
    share = count // len(classes)
    takes = [min(share, len(pool)) for pool in pools]
    largest = max(range(len(pools)), key=lambda k: len(pools[k]))
    takes[largest] = min(len(pools[largest]), takes[largest] + count - sum(takes))
    return torch.cat([pool[:take] for pool, take in zip(pools, takes)])


def label_contrast(z: Tensor, label: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Return supervised contrast of drawn voxels: the mean over anchors of the mean over their positives p of

    -log( e^(z_a.z_p / t) / sum over k != a of e^(z_a.z_k / t) ).

    Voxels of one known label are positives, background included: where a data set does not label an organ its
    background is unknown, -1, and such voxels are neither anchors nor positives nor negatives. Without a pair of
    equal labels the loss is 0.

    Args:
        z: (N, E), drawn over both views and the whole batch (``draw_labelled``); normalised inside. Holds N x N.
        label: (N,) int64.
        temperature: 0.1 is the reconstruction's choice.

    Raises:
        ValueError: shapes that do not fit, integers as embeddings, NaN, a temperature that is not positive.

    Example:
        >>> import torch
        >>> z = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
        >>> label_contrast(z, torch.tensor([0, 0, 1, 1]), temperature=1.0)
        tensor(0.5514)
    """
    z = checks.embeddings("z", z, "N E")
    if label.shape != z.shape[:1]:
        raise ValueError(f"label must be (N,) for z {tuple(z.shape)}, found {tuple(label.shape)}.")
    known = label != IGNORE
    z, label = z[known], label[known]
    return _weighted_contrast(z, (label[:, None] == label).to(z.dtype), temperature)


def soft_labels(label: Tensor, partner_label: Tensor, *, weight: float, classes: int) -> Tensor:
    """Return (N, K): weight onehot(label) + (1 - weight) onehot(partner_label), a row of 0 where either is unknown.

    Args:
        label: (N,) int64, -1 unknown.
        partner_label: (N,) int64 of the other parent at the same voxels.
        weight: the share of the first parent.
        classes: K.
    """
    checks.same_shape(label=label, partner_label=partner_label)
    _share(weight)
    first, second = (F.one_hot(parent.clamp(min=0), classes) for parent in (label, partner_label))
    known = (label != IGNORE) & (partner_label != IGNORE)
    return (weight * first.float() + (1 - weight) * second.float()) * known.unsqueeze(-1)


def soft_label_contrast(z: Tensor, shares: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Return ``label_contrast`` for mixtures: pair (a, p) counts with w_ap = sum over classes of q_a q_p.

    An anchor's term is the weighted mean of its log-probabilities; one without any weight takes no part. With one-hot
    shares it is ``label_contrast``.

    Args:
        z: (N, E), normalised inside.
        shares: (N, K) of ``soft_labels``; a row of 0 is an unknown voxel and takes no part at all.
        temperature: as for ``label_contrast``.

    Raises:
        ValueError: shapes that do not fit, integers as embeddings, NaN, a temperature that is not positive.
    """
    z = checks.embeddings("z", z, "N E")
    if shares.ndim != 2 or len(shares) != len(z):
        raise ValueError(f"shares must be (N, K) for z {tuple(z.shape)}, found {tuple(shares.shape)}.")
    known = (shares > 0).any(1)
    z, shares = z[known], shares[known].to(z.dtype)
    return _weighted_contrast(z, shares @ shares.T, temperature)


def label_segmentation(
    logits: Tensor, label: Tensor, partner_label: Tensor | None = None, *, weight: float = 1.0
) -> Tensor:
    """Return Dice and cross entropy over known voxels: the label term as plain segmentation.

    For a mixup image it is the same mixture of the losses against both parents' labels; a voxel that either does not
    know takes no part. A cutmix image has hard labels and needs no second one.

    Args:
        logits: (B, K, *S) of a temporary head.
        label: (B, *S) int64, -1 unknown.
        partner_label: (B, *S) of the other parent, or None.
        weight: the share of the first parent.

    Raises:
        ValueError: shapes that do not fit, a weight outside [0, 1].
    """
    _share(weight)
    logits = checks.embeddings("logits", logits, "B K *S")
    if partner_label is None:
        return dice_ce(logits, label)
    checks.same_shape(label=label, partner_label=partner_label)
    known = (label != IGNORE) & (partner_label != IGNORE)
    first, second = (dice_ce(logits, parent.where(known, IGNORE)) for parent in (label, partner_label))
    return weight * first + (1 - weight) * second


def _weighted_contrast(z: Tensor, weight: Tensor, temperature: float) -> Tensor:
    """Average -log softmax over all others by pair weights (N, N), then over the anchors that have any."""
    checks.temperature(temperature)
    if len(z) < 2:
        return checks.nothing(z)
    z = unit(z)
    self = torch.eye(len(z), dtype=torch.bool, device=z.device)
    with torch.autocast(z.device.type, enabled=False):
        log_p = (z @ z.T / temperature).masked_fill(self, -math.inf).log_softmax(1).masked_fill(self, 0)
    weight = weight.masked_fill(self, 0)
    total = weight.sum(1)
    terms = -(weight * log_p).sum(1) / total.where(total > 0, 1)
    return terms.sum() / (total > 0).sum().clamp(min=1)


def _share(weight: float) -> None:
    if not 0 <= weight <= 1:
        raise ValueError(f"weight is the share of the first image, in [0, 1]; found {weight}.")
