"""Predictions of all decoder levels should agree, most where they nearly do (uncertainty-rectified consistency)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from handful.losses import checks


def pyramid_consistency(levels: Sequence[Tensor]) -> Tensor:
    """Return the mean over levels of sum_v w_v |p_v - m_v|^2 / sum_v w_v + mean_v D_v.

    p are a level's class probabilities, m their mean over levels, D_v = KL(m_v || p_v) how far the level is from it
    at pixel v, w_v = exp(-D_v); |.|^2 is averaged over classes. Where a level disagrees it is trusted less (w), and
    the second term keeps it from disagreeing everywhere. Both m and w have gradients, as released.

    Args:
        levels: logits (B, K, *S) each, all of one size.

    Raises:
        ValueError: fewer than two levels, shapes that differ, integers, NaN.

    References:
        Luo et al., 2021, URPC. https://arxiv.org/abs/2012.07042

    Example:
        >>> import torch
        >>> level = torch.tensor([[[2.0], [0.0]]])
        >>> round(pyramid_consistency([level, level]).item(), 4)
        0.0
        >>> round(pyramid_consistency([level, -level]).item(), 4)
        0.5788
    """
    if len(levels) < 2:
        raise ValueError(f"levels must be two at least to agree with each other, found {len(levels)}.")
    levels = [checks.embeddings(f"level {i}", level, "B K *S") for i, level in enumerate(levels)]
    checks.same_shape(**{f"level {i}": level for i, level in enumerate(levels)})
    if not levels[0].numel():
        return checks.nothing(*levels)
    log_p = torch.stack([level.log_softmax(1) for level in levels])
    log_m = log_p.logsumexp(0) - math.log(len(levels))
    m = log_m.exp()
    far = (m * (log_m - log_p)).sum(2)
    weight = (-far).exp()
    apart = (log_p.exp() - m).square().mean(2)
    rectified = (apart * weight).flatten(1).sum(1) / weight.flatten(1).sum(1)
    return (rectified + far.flatten(1).mean(1)).mean()
