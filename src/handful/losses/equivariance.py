"""Consistency in MONA: segmenting a warped image should give the warped segmentation of the image.

The warp is any recorded geometry as a callable on maps (B, C, *S): a thin-plate grid, a mirror, an inverted view.

References:
    You et al., 2024, MONA. https://arxiv.org/abs/2209.13476
    Hung et al., 2019, SCOPS. https://arxiv.org/abs/1905.01298
"""

from collections.abc import Callable

import torch
from torch import Tensor

from handful.batches import IGNORE
from handful.losses import checks


def warp_consistency(
    prediction: Tensor, logits: Tensor, mask: Tensor, warp: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return ``masked_divergence(prediction, warp(logits), warp(mask))``: MONA's equivariance term.

    Args:
        prediction: (B, K, *S) logits of the warped images; the only argument with a gradient.
        logits: (B, K, *S) logits of the images themselves, detached inside.
        mask: (B, *S) or (B, 1, *S), bool or in [0, 1]: where the target counts (``anatomy``), before the warp.
        warp: maps (B, C, *S) to (B, C, *S), zero where it shows nothing, as it was done to the images.

    Raises:
        ValueError: shapes that do not fit, integers as logits, NaN.

    Example:
        >>> import torch
        >>> logits, mask = torch.randn(2, 3, 8, 6), torch.ones(2, 8, 6)
        >>> warp_consistency(logits.flip(3), logits, mask, lambda maps: maps.flip(3)).abs() < 1e-6
        tensor(True)
    """
    logits = checks.embeddings("logits", logits, "B K *S").detach()
    mask = (mask.unsqueeze(1) if mask.ndim == logits.ndim - 1 else mask).to(logits.dtype)
    with torch.no_grad():
        warped = warp(logits), warp(mask)
    return masked_divergence(prediction, *warped)


def masked_divergence(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return mean_b sum_s M KL(q || p) / (sum_s M + 1e-7), q = softmax(target), p = softmax(prediction).

    An image whose mask is empty adds 0 and still counts in the mean; an empty batch gives 0.

    Args:
        prediction: (B, K, *S) logits.
        target: (B, K, *S) logits, detached inside.
        mask: (B, *S) or (B, 1, *S), bool or in [0, 1]; soft at the border of what a bilinear warp moved.

    Raises:
        ValueError: shapes that do not fit, integers as logits, NaN.
    """
    prediction = checks.embeddings("prediction", prediction, "B K *S")
    target = checks.embeddings("target", target, "B K *S").detach().to(prediction.dtype)
    checks.same_shape(prediction=prediction, target=target)
    mask = mask.squeeze(1) if mask.ndim == prediction.ndim else mask
    if mask.shape != prediction.shape[:1] + prediction.shape[2:]:
        raise ValueError(
            f"mask must be (B, *S) for predictions of {tuple(prediction.shape)}, found {tuple(mask.shape)}."
        )
    if not prediction.numel():
        return checks.nothing(prediction)
    log_q = target.log_softmax(1)
    divergence = (log_q.exp() * (log_q - prediction.log_softmax(1))).sum(1)
    weight = mask.to(prediction.dtype).flatten(1)
    return ((weight * divergence.flatten(1)).sum(1) / (weight.sum(1) + 1e-7)).mean()


def anatomy(label: Tensor, confidence: Tensor, *, threshold: float = 0.7, background: int = 0) -> Tensor:
    """Return where MONA compares: known, not background, and confident enough; label images have confidence 1.

    Args:
        label: (B, *S) int64 labels and pseudo-labels, -1 unknown.
        confidence: (B, *S) largest probability of the teacher.
        threshold: MONA's delta_w.
        background: class that does not count.
    """
    checks.same_shape(label=label, confidence=confidence)
    return (label != background) & (label != IGNORE) & (confidence >= threshold)
