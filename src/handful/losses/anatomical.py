"""MONA's anatomical contrast: pixels of a class are pulled to their class mean and pushed from mined others.

Two forms. The *paper's*, after ReCo: hard queries, negatives of the same batch, their classes drawn by how alike the
class means are (``draw_hard_queries``, ``query_contrast``). The *released* one, after U2PL: certain anchors, negatives
from one memory bank a class (``certainty``, ``bank_keys``, ``bank_anchors``, ``draw_from_banks``, ``bank_contrast``).

Every form is two steps, so that chance is data: a function draws indices, another computes the loss of them. A flat
pixel index counts through (B, *S), image by image and row-major. Shapes: z (B, E, *S); label (B, *S) int64, -1 taking
no part; masks of classes (B, K, *S) bool.

References:
    You et al., 2024, MONA. https://arxiv.org/abs/2209.13476
    Liu et al., 2022, ReCo. https://arxiv.org/abs/2104.04465
    Wang et al., 2022, U2PL. https://arxiv.org/abs/2203.03884
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from handful.batches import IGNORE
from handful.losses import checks
from handful.losses.embeddings import unit
from handful.losses.sampling import Sampler, uniform

TOP = 3
"""A labelled pixel may be a negative for the classes among this many that the teacher finds most likely."""


class Draw(NamedTuple):
    """What one class contrasts in one step.

    Attributes:
        label: the class of queries and positive.
        keys: the class whose bank the negatives are rows of; equal to ``label`` except in the unrepaired form.
        queries: (Q,) flat pixel indices.
        negatives: (Q, M) flat pixel indices (paper's form) or rows of the bank (released form).
    """

    label: int
    keys: int
    queries: Tensor
    negatives: Tensor


def class_masks(label: Tensor, classes: int, where: Tensor | None = None) -> Tensor:
    """Return (B, K, *S) bool: the pixels of each class, among those of ``where`` (B, *S) bool."""
    members = label.unsqueeze(1) == torch.arange(classes, device=label.device).reshape(
        -1, *[1] * (label.ndim - 1)
    )
    return members if where is None else members & where.unsqueeze(1)


@torch.no_grad()
def class_means(z: Tensor, members: Tensor) -> Tensor:
    """Return (K, E): the mean embedding of each class, 0 where it has no pixel; never with a gradient."""
    z = checks.embeddings("z", z, "B E *S").detach().flatten(2)
    weight = members.flatten(2).to(z.dtype)
    with torch.autocast(z.device.type, enabled=False):
        total = torch.einsum("bes,bks->ke", z, weight)
    return total / weight.sum((0, 2)).clamp(min=1)[:, None]


# The paper's form.


def hard_queries(members: Tensor, probability: Tensor, *, threshold: float = 0.97) -> Tensor:
    """Return (B, K, *S) bool: the members whose own class the student gives less than ``threshold``."""
    checks.same_shape(members=members, probability=probability)
    return members & (probability < threshold)


def relation_graph(means: Tensor, present: Tensor, *, temperature: float = 0.5) -> Tensor:
    """Return (K, K): row c is softmax over v of cos(mean_c, mean_v) / temperature, v any other present class.

    A row without another present class, and that of an absent class, is 0.

    Args:
        means: (K, E) class means.
        present: (K,) bool.
        temperature: the higher, the more alike the classes are drawn.
    """
    checks.temperature(temperature)
    means = unit(checks.embeddings("means", means, "K E"))
    with torch.autocast(means.device.type, enabled=False):
        alike = means @ means.T / temperature
    allowed = present[:, None] & present & ~torch.eye(len(means), dtype=torch.bool, device=means.device)
    return alike.masked_fill(~allowed, -math.inf).softmax(1).nan_to_num(0)


@torch.no_grad()
def draw_hard_queries(
    z: Tensor,
    members: Tensor,
    hard: Tensor,
    *,
    queries: int = 256,
    negatives: int = 512,
    temperature: float = 0.5,
    generator: torch.Generator,
    sampler: Sampler = uniform,
) -> list[Draw]:
    """Draw hard queries of each class and their negatives, other classes the more often the more alike they are.

    Args:
        z: (B, E, *S) student embeddings; the class means are theirs.
        members: (B, K, *S) bool, ``class_masks`` of valid pixels: labelled, or with a confidence of at least 0.7.
        hard: (B, K, *S) bool, ``hard_queries``.
        queries: a class, with replacement.
        negatives: a query, with replacement.
        temperature: of the relation graph.
        generator: for every draw.
        sampler: how queries are picked from a class.

    Returns:
        One draw for each class with a hard query and another class to contrast it with.
    """
    checks.same_shape(members=members, hard=hard)
    device = z.device
    pixels = [_flat(members, k) for k in range(members.shape[1])]
    present = torch.tensor([len(own) > 0 for own in pixels], device=device)
    graph = relation_graph(class_means(z, members), present, temperature=temperature)
    every = torch.cat(pixels)
    sizes = torch.tensor([len(own) for own in pixels], device=device)
    starts = sizes.cumsum(0) - sizes
    draws = []
    for k in range(len(pixels)):
        candidates = _flat(hard, k)
        if not len(candidates) or not graph[k].any():
            continue
        chosen = candidates[sampler(len(candidates), queries, generator=generator).to(device)]
        shape = (queries, negatives)
        kinds = torch.multinomial(
            graph[k].to(generator.device), queries * negatives, replacement=True, generator=generator
        )
        kinds = kinds.to(device).reshape(shape)
        share = torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64).to(
            device
        )
        row = (share * sizes[kinds]).long().clamp(max=sizes[kinds] - 1)
        draws.append(Draw(k, k, chosen, every[starts[kinds] + row]))
    return draws


def query_contrast(z: Tensor, members: Tensor, draws: Sequence[Draw], *, temperature: float = 0.5) -> Tensor:
    """Return the paper's contrast: the mean over present classes of the mean over their queries of

    -log( e^(cos(q, mean_c) / t) / (e^(cos(q, mean_c) / t) + sum over negatives of e^(cos(q, n) / t) ) ).

    Only the queries get a gradient. A class whose pixels are all easy adds 0 but counts in the mean; a batch with one
    class, or without draws, gives 0.

    Args:
        z: (B, E, *S) student embeddings.
        members: (B, K, *S) bool as given to ``draw_hard_queries``.
        draws: of ``draw_hard_queries``; negatives are flat pixel indices.
        temperature: MONA's 0.5.

    Raises:
        ValueError: shapes that do not fit, integers, NaN, a temperature that is not positive.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> z, label = torch.randn(2, 8, 6, 5), torch.randint(0, 3, (2, 6, 5))
        >>> members = class_masks(label, 3)
        >>> hard = hard_queries(members, torch.rand(2, 3, 6, 5))
        >>> draws = draw_hard_queries(z, members, hard, queries=4, negatives=8, generator=generator)
        >>> query_contrast(z, members, draws).shape
        torch.Size([])
    """
    z = _same_pixels(z, members)
    present = members.transpose(0, 1).flatten(1).any(1)
    if not draws:
        return checks.nothing(z)
    means = class_means(z, members)
    keys = z.detach()
    losses = [
        _cross_entropy(
            _rows(z, draw.queries),
            means[draw.label],
            _rows(keys, draw.negatives.flatten()),
            None,
            temperature,
        )
        for draw in draws
    ]
    return torch.stack(losses).sum() / present.sum()


# The released form.


def entropy_percent(progress: float, *, start: float = 20.0) -> float:
    """Return the percentage of pixels taken as certain, and as uncertain: ``start`` (1 - progress)."""
    return start * (1 - progress)


@torch.no_grad()
def certainty(logits: Tensor, label: Tensor, *, percent: float) -> tuple[Tensor, Tensor]:
    """Return which unlabelled pixels are certain and which uncertain: (B, *S) bool each, by the entropy of ``logits``.

    Certain: entropy at most its ``percent``-th percentile over the known pixels of the whole batch; uncertain: at
    least the (100 - ``percent``)-th, both with linear interpolation. Pixels labelled -1 are neither.

    Args:
        logits: (B, K, *S) of the unlabelled images; MONA takes the student's, U2PL the teacher's.
        label: (B, *S) int64 pseudo-labels.
        percent: ``entropy_percent``.
    """
    if not 0 <= percent <= 100:
        raise ValueError(f"percent lies in [0, 100], found {percent}.")
    probability = checks.embeddings("logits", logits, "B K *S").softmax(1)
    entropy = -(probability * (probability + 1e-10).log()).sum(1)
    checks.same_shape(label=label, pixels=entropy)
    known = label != IGNORE
    if not known.any():
        return known, known.clone()
    low, high = (_percentile(entropy[known], share) for share in (percent, 100 - percent))
    return (entropy <= low) & known, (entropy >= high) & known


@torch.no_grad()
def bank_keys(
    label: Tensor,
    labelled: Tensor,
    probability: Tensor,
    uncertain: Tensor,
    *,
    threshold: float = 0.97,
    low_rank: int | None = None,
    high_rank: int = 20,
    repair_keys: bool = True,
) -> Tensor:
    """Return (B, K, *S) bool: which teacher embeddings enter the bank of class c, as negatives for it.

    With rank_c the place of c among the teacher's probabilities (0 the most likely) and p_c < ``threshold``:
    labelled pixels of another class with rank_c < ``low_rank`` (easily taken for c), and uncertain unlabelled pixels
    with ``low_rank`` <= rank_c < ``high_rank`` (hardly c), whatever their pseudo-label.

    ``repair_keys=False`` is the released rule, which asks of every key that its label be c: no labelled pixel can
    then enter (its label must be c and not c), and of the unlabelled ones only those whose pseudo-label is unlikely.

    Args:
        label: (B, *S) int64 labels, and pseudo-labels where not labelled; -1 never enters.
        labelled: (B,) bool, which images have labels.
        probability: (B, K, *S) teacher softmax.
        uncertain: (B, *S) bool of ``certainty``; looked at in unlabelled images only.
        threshold: delta_n.
        low_rank: None is min(3, K - 1): with 3 and K <= 3 every bank would stay as it began. The released value is 3.
        high_rank: released value 20.
        repair_keys: see above.
    """
    classes = probability.shape[1]
    low_rank = min(TOP, classes - 1) if low_rank is None else low_rank
    members = class_masks(label, classes)
    known = (label != IGNORE).unsqueeze(1)
    rank = probability.sort(dim=1, descending=True, stable=True).indices.argsort(1)
    from_label = ~members & (rank < low_rank)
    from_doubt = uncertain.unsqueeze(1) & (rank >= low_rank) & (rank < high_rank)
    if not repair_keys:
        from_label, from_doubt = from_label & members, from_doubt & members
    with_label = labelled.to(label.device).reshape(-1, *[1] * (members.ndim - 1))
    return torch.where(with_label, from_label, from_doubt) & (probability < threshold) & known


def bank_anchors(members: Tensor, probability: Tensor, *, threshold: float = 0.3) -> Tensor:
    """Return (B, K, *S) bool: the certain members whose class the teacher gives more than ``threshold`` (delta_p)."""
    checks.same_shape(members=members, probability=probability)
    return members & (probability > threshold)


@torch.no_grad()
def draw_from_banks(
    members: Tensor,
    anchors: Tensor,
    bank_sizes: Sequence[int],
    *,
    queries: int = 256,
    negatives: int = 512,
    generator: torch.Generator,
    sampler: Sampler = uniform,
    repair_classes: bool = True,
) -> list[Draw]:
    """Draw anchors of each class and rows of its bank.

    Args:
        members: (B, K, *S) bool, ``class_masks`` of certain pixels (labelled ones are certain).
        anchors: (B, K, *S) bool of ``bank_anchors``.
        bank_sizes: rows in the bank of each class, the new keys included.
        queries: a class, with replacement.
        negatives: a query, with replacement.
        generator: for every draw.
        sampler: for anchors and negatives.
        repair_classes: see ``pair_classes``.

    Returns:
        One draw for each class with an anchor and a bank that is not empty.
    """
    checks.same_shape(members=members, anchors=anchors)
    device = members.device
    draws = []
    for label, keys in pair_classes(members, repair_classes=repair_classes):
        candidates = _flat(anchors, label)
        if not len(candidates) or not bank_sizes[keys]:
            continue
        chosen = candidates[sampler(len(candidates), queries, generator=generator).to(device)]
        rows = sampler(bank_sizes[keys], queries * negatives, generator=generator).to(device)
        draws.append(Draw(label, keys, chosen, rows.reshape(queries, negatives)))
    return draws


def pair_classes(members: Tensor, *, repair_classes: bool = True) -> list[tuple[int, int]]:
    """Return, for each class present in ``members``, whose anchors are contrasted with whose bank: its own.

    ``repair_classes=False`` is the released loop: the k-th *present* class lends its bank, but anchors and mean are
    those of class k, so that after an absent class everything is one off.
    """
    present = members.transpose(0, 1).flatten(1).any(1).nonzero()[:, 0].tolist()
    return [(k if repair_classes else place, k) for place, k in enumerate(present)]


def bank_contrast(
    student: Tensor,
    teacher: Tensor,
    members: Tensor,
    banks: Sequence[Tensor],
    draws: Sequence[Draw],
    *,
    temperature: float = 0.5,
) -> Tensor:
    """Return the released contrast: sum over draws of the mean over anchors a of

    -log( e^(cos(a, m_c) / t) / (e^(cos(a, m_c) / t) + sum over negatives of e^(cos(a, n) / t) ) ),

    divided by the number of classes present; m_c is the teacher's mean over the certain members of c.

    Only the anchors get a gradient. A class without an anchor adds 0 but counts; with a single class present, or
    without draws, the loss is 0. A bank row of zeros has cosine 0.

    Args:
        student: (B, E, *S).
        teacher: (B, E, *S), detached inside.
        members: (B, K, *S) bool as given to ``draw_from_banks``.
        banks: for each class its rows (n, E), the new keys already enqueued; detached inside.
        draws: of ``draw_from_banks``.
        temperature: MONA's 0.5.

    Raises:
        ValueError: shapes that do not fit, integers, NaN, a temperature that is not positive.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> student, teacher = torch.randn(2, 2, 8, 6, 5)
        >>> members = class_masks(torch.randint(0, 3, (2, 6, 5)), 3)
        >>> anchors = bank_anchors(members, torch.rand(2, 3, 6, 5))
        >>> banks = [torch.randn(9, 8) for _ in range(3)]
        >>> draws = draw_from_banks(members, anchors, [9, 9, 9], queries=4, negatives=8, generator=generator)
        >>> bank_contrast(student, teacher, members, banks, draws).shape
        torch.Size([])
    """
    student = _same_pixels(student, members, "student")
    teacher = _same_pixels(teacher, members, "teacher")
    checks.temperature(temperature)
    if len(banks) != members.shape[1]:
        raise ValueError(f"there must be a bank for each of {members.shape[1]} classes, found {len(banks)}.")
    present = members.transpose(0, 1).flatten(1).any(1).sum()
    if not draws or present < 2:
        return checks.nothing(student)
    means = class_means(teacher, members)
    losses = [
        _cross_entropy(
            _rows(student, draw.queries),
            means[draw.label],
            checks.embeddings(f"banks[{draw.keys}]", banks[draw.keys], "n E").detach(),
            draw.negatives,
            temperature,
        )
        for draw in draws
    ]
    return torch.stack(losses).sum() / present


def _cross_entropy(
    queries: Tensor, positive: Tensor, keys: Tensor, index: Tensor | None, temperature: float
) -> Tensor:
    """Contrast queries (Q, E) with one positive (E,) and keys (n, E): those of ``index`` (Q, M), or M = n / Q each."""
    checks.temperature(temperature)
    queries, positive, keys = (unit(z.to(queries.dtype)) for z in (queries, positive, keys))
    with torch.autocast(queries.device.type, enabled=False):
        near = queries @ positive
        if index is None:
            far = torch.einsum("qe,qme->qm", queries, keys.reshape(len(queries), -1, keys.shape[1]))
        else:
            # cosines with the whole bank, then a choice of them: Q x n numbers instead of Q x M x E
            far = (queries @ keys.T).gather(1, index.to(keys.device))
    logits = torch.cat((near[:, None], far), 1) / temperature
    return -logits.log_softmax(1)[:, 0].mean()


def _flat(masks: Tensor, k: int) -> Tensor:
    """Return the flat indices of the pixels of class ``k``."""
    return masks[:, k].flatten().nonzero()[:, 0]


def _rows(z: Tensor, pixels: Tensor) -> Tensor:
    """Return (n, E): the embeddings at flat pixel indices of z (B, E, *S), without moving the whole map."""
    flat = z.flatten(2)
    return flat[pixels // flat.shape[2], :, pixels % flat.shape[2]]


def _same_pixels(z: Tensor, members: Tensor, name: str = "z") -> Tensor:
    z = checks.embeddings(name, z, "B E *S")
    if z.shape[:1] + z.shape[2:] != members.shape[:1] + members.shape[2:]:
        raise ValueError(
            f"{name} (B, E, *S) and members (B, K, *S) must show the same pixels, found {tuple(z.shape)} and "
            f"{tuple(members.shape)}."
        )
    return z


def _percentile(values: Tensor, percent: float) -> Tensor:
    """Return the percentile with linear interpolation; ``torch.quantile`` refuses more than 16 million values."""
    place = percent / 100 * (len(values) - 1)
    below = math.floor(place)
    low = values.kthvalue(below + 1).values
    high = values.kthvalue(min(below + 2, len(values))).values
    return torch.lerp(low, high, place - below)
