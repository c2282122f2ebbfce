"""A mixture of two images is supervised by the same mixture of the losses against the labels of both.

References:
    Zhang et al., 2018, mixup. https://arxiv.org/abs/1710.09412
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from handful.batches import IGNORE
from handful.losses.segmentation import deep_supervision


def mixed_supervision(
    logits: Sequence[Tensor],
    label: Tensor,
    partner: Tensor,
    *,
    share: float,
    loss: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Return share L(logits, label) + (1 - share) L(logits, label of the partner), averaged over decoder levels.

    A pixel that either of the two labels does not know takes no part.

    Args:
        logits: of the mixtures, (B, K, *S) and coarser, finest first.
        label: (B, *S) int64, -1 unknown.
        partner: (B,) what each image is mixed with.
        share: of a mixture that is the image's own, in [0, 1].
        loss: of logits and label, see ``deep_supervision``.

    Raises:
        ValueError: ``share`` outside [0, 1], or shapes that do not fit.

    Example:
        >>> import torch
        >>> from handful.losses.segmentation import cross_entropy
        >>> label, logits = torch.tensor([[[0]], [[1]]]), torch.tensor([[[[2.0]], [[0.0]]]]).expand(2, 2, 1, 1)
        >>> mixed_supervision([logits], label, torch.tensor([1, 0]), share=0.7, loss=cross_entropy)
        tensor(1.1269)
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share is what a mixture has of its first image, in [0, 1]; found {share}.")
    other = label[partner.to(label.device)]
    known = (label != IGNORE) & (other != IGNORE)
    own, theirs = (deep_supervision(logits, each.where(known, IGNORE), loss) for each in (label, other))
    return share * own + (1 - share) * theirs
