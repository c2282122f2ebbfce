"""Two views of one image have one identity: negative cosine (SimSiam, BYOL) and InfoNCE against a queue (MoCo).

The second argument is always the side that is not trained (a detached branch or a teacher): no gradient reaches it.
"""

import math

import torch
from torch import Tensor

from handful.losses import checks
from handful.losses.embeddings import unit


def negative_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean of -cos(prediction, target): -1 parallel, 0 orthogonal, 1 opposite.

    SimSiam is ``(negative_cosine(p1, z2) + negative_cosine(p2, z1)) / 2``. An all-zero vector has cosine 0.

    Args:
        prediction: (N, E), from the predictor.
        target: (N, E), detached inside.

    Raises:
        ValueError: shapes that differ, integers, NaN.

    References:
        Chen and He, 2021, SimSiam. https://arxiv.org/abs/2011.10566

    Example:
        >>> import torch
        >>> p1, z1, p2, z2 = torch.eye(3).repeat(4, 1, 1)
        >>> (negative_cosine(p1, z2) + negative_cosine(p2, z1)) / 2
        tensor(-1.)
    """
    prediction = checks.embeddings("prediction", prediction, "N E")
    target = checks.embeddings("target", target, "N E").detach().to(prediction.dtype)
    checks.same_shape(prediction=prediction, target=target)
    if not len(prediction):
        return checks.nothing(prediction)
    return -(unit(prediction) * unit(target)).sum(1).mean()


def byol_distance(prediction: Tensor, target: Tensor) -> Tensor:
    """Return BYOL's mean of |p - t|^2 between unit vectors, which is 2 - 2 cos: 0 parallel, 2 orthogonal, 4 opposite.

    BYOL adds both directions: ``byol_distance(p1, t2) + byol_distance(p2, t1)``.

    Args:
        prediction: (N, E), from the student's predictor.
        target: (N, E), from the teacher, detached inside.

    Raises:
        ValueError: shapes that differ, integers, NaN.

    References:
        Grill et al., 2020, BYOL. https://arxiv.org/abs/2006.07733
    """
    if not len(prediction):
        return negative_cosine(prediction, target)
    return 2 + 2 * negative_cosine(prediction, target)


def queue_info_nce(
    query: Tensor, key: Tensor, queue: Tensor, *, temperature: float = 0.2, related: Tensor | None = None
) -> Tensor:
    """Return MoCo's mean of -log( e^(q.k / t) / (e^(q.k / t) + sum over the queue of e^(q.n / t)) ), on the sphere.

    The queue holds earlier keys; enqueue the new ones after calling this. With an empty queue the loss is 0.

    Args:
        query: (N, E), student.
        key: (N, E), teacher, another view of the same images; detached inside.
        queue: (Q, E), detached inside; a ``networks.bank.Bank``'s ``valid``.
        temperature: MoCo v2 and PCRL use 0.2.
        related: (N, Q) bool: queued keys of the same tissue as a query, which are not its negatives; none when None.

    Raises:
        ValueError: shapes that do not fit, integers, NaN, a temperature that is not positive.

    References:
        He et al., 2020, MoCo. https://arxiv.org/abs/1911.05722

    Example:
        >>> import torch
        >>> queue_info_nce(torch.eye(2), torch.eye(2), torch.zeros(3, 2), temperature=1.0)  # log(1 + 3/e)
        tensor(0.7437)
    """
    checks.temperature(temperature)
    query = checks.embeddings("query", query, "N E")
    key = checks.embeddings("key", key, "N E").detach().to(query.dtype)
    queue = checks.embeddings("queue", queue, "Q E").detach().to(query.dtype)
    checks.same_shape(query=query, key=key)
    checks.same_width(query=query, queue=queue)
    if related is not None and (related.shape != (len(query), len(queue)) or related.dtype != torch.bool):
        raise ValueError(
            f"related must be bool of shape ({len(query)}, {len(queue)}), one column a queued key, "
            f"found {related.dtype} of shape {tuple(related.shape)}."
        )
    if not len(query) or not len(queue):
        return checks.nothing(query)
    query, key, queue = (unit(z) for z in (query, key, queue))
    with torch.autocast(query.device.type, enabled=False):
        positive = (query * key).sum(1, keepdim=True)
        negatives = query @ queue.T
        if related is not None:
            negatives = negatives.masked_fill(related.to(query.device), -math.inf)
        logits = torch.cat((positive, negatives), 1) / temperature
    return -logits.log_softmax(1)[:, 0].mean()
