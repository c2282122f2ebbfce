"""Pseudo-labels: what a network says of an unlabelled image where it is sure; a cross entropy that weighs images."""

import torch
import torch.nn.functional as F
from torch import Tensor

from handful.batches import IGNORE
from handful.losses import checks
from handful.losses.consistency import confident


@torch.no_grad()
def pseudo_label(logits: Tensor, *, threshold: float = 0.0) -> Tensor:
    """Return (B, *S) int64: the most probable class where its probability reaches ``threshold``, -1 elsewhere.

    Args:
        logits: (B, K, *S).
        threshold: in [0, 1]; 0 labels every pixel.

    Raises:
        ValueError: another shape, integers, NaN, or a threshold that is no probability.

    References:
        Lee, 2013, pseudo-label. ICML workshop on challenges in representation learning.
        Sohn et al., 2020, FixMatch (the threshold). https://arxiv.org/abs/2001.07685

    Example:
        >>> import torch
        >>> pseudo_label(torch.tensor([[[0.0, 5.0], [0.0, 0.0]]]), threshold=0.9)
        tensor([[-1,  0]])
    """
    return logits.argmax(1).where(confident(logits, threshold), IGNORE)


def pseudo_label_cross_entropy(
    logits: Tensor, label: Tensor, confidence: Tensor, *, threshold: float = 0.97
) -> Tensor:
    """Return the mean over pixels with CE > 0 of w_b CE, w_b = (pixels with confidence >= threshold) / (known pixels).

    The whole image is weighed, not its pixels: those of low confidence are trained too. As published, the numerator
    counts every pixel, so a pixel that was cut out must have confidence 0 (as ``mixing.erase`` leaves it), or an
    image can weigh more than 1; and pixels that are right beyond the last digit (CE exactly 0) leave the mean. An
    image without known pixels weighs 0; where nothing is known the loss is 0.

    Args:
        logits: (B, K, *S), student.
        label: (B, *S) int64 pseudo-labels, -1 ignored.
        confidence: (B, *S) largest teacher probability.
        threshold: ReCo's and MONA's delta_s.

    Raises:
        ValueError: shapes that do not fit, labels that are not int64, integers as logits, NaN.

    References:
        Liu et al., 2022, ReCo. https://arxiv.org/abs/2104.04465
        You et al., 2024, MONA. https://arxiv.org/abs/2209.13476

    Example:
        >>> import torch
        >>> label, sure = torch.zeros(1, 2, 4, dtype=torch.int64), torch.ones(1, 2, 4)
        >>> sure[:, 0] = 0.5
        >>> pseudo_label_cross_entropy(torch.zeros(1, 4, 2, 4), label, sure)  # half of log 4
        tensor(0.6931)
    """
    logits = checks.embeddings("logits", logits, "B K *S")
    checks.same_shape(label=label, confidence=confidence)
    if label.shape != logits.shape[:1] + logits.shape[2:] or label.dtype != torch.int64:
        raise ValueError(
            f"label must be int64 (B, *S) for logits of {tuple(logits.shape)}, found {label.dtype} "
            f"{tuple(label.shape)}."
        )
    if not logits.numel():
        return checks.nothing(logits)
    entropy = F.cross_entropy(logits, label, ignore_index=IGNORE, reduction="none").flatten(1)
    sure = (confidence >= threshold).flatten(1).sum(1)
    known = (label != IGNORE).flatten(1).sum(1)
    weight = (sure / known.clamp(min=1) * (known > 0)).to(entropy.dtype)
    counted = (entropy > 0).sum().clamp(min=1)
    return (weight[:, None] * entropy).sum() / counted
