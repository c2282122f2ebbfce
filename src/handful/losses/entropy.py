"""How undecided a prediction is: the entropy of class probabilities at each pixel, and its mean as a loss."""

import math

import torch
from torch import Tensor

from handful.losses import checks


def entropy_map(probabilities: Tensor) -> Tensor:
    """Return (B, *S): -sum over classes of p log p in nats, 0 where one class is sure, log K where all are alike.

    Args:
        probabilities: (B, K, *S), in [0, 1].

    Raises:
        ValueError: another number of axes, integers, NaN, or numbers below 0 (logits, perhaps).

    Example:
        >>> import torch
        >>> entropy_map(torch.tensor([[[0.5, 1.0], [0.5, 0.0]]]))  # (1, 2, 2): log 2, and nothing to decide
        tensor([[0.6931, 0.0000]])
    """
    probabilities = checks.embeddings("probabilities", probabilities, "B K *S")
    if (probabilities < 0).any():
        raise ValueError("probabilities must not be negative: give the softmax, not the logits.")
    entropy: Tensor = torch.special.entr(probabilities).sum(1)
    return entropy


def mean_entropy(logits: Tensor) -> Tensor:
    """Return the mean over pixels of the entropy of softmax(logits), as a share of log K: between 0 and 1.

    Args:
        logits: (B, K, *S), two classes at least.

    Raises:
        ValueError: another number of axes, one class only, integers, NaN.

    References:
        Grandvalet and Bengio, 2004. https://papers.nips.cc/paper/2740-semi-supervised-learning-by-entropy-minimization
        Vu et al., 2019, ADVENT (normalised so). https://arxiv.org/abs/1811.12833
    """
    logits = checks.embeddings("logits", logits, "B K *S")
    if logits.shape[1] < 2:
        raise ValueError(f"entropy needs two classes at least, found logits of {tuple(logits.shape)}.")
    if not logits.numel():
        return checks.nothing(logits)
    log_p = logits.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1).mean() / math.log(logits.shape[1])
