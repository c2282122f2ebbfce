"""Student and teacher should agree on unlabelled images: squared difference, KL divergence, masks and ramps.

The teacher's side is detached inside: only the student's logits get a gradient.
"""

import math

import torch
from torch import Tensor

from handful.losses import checks
from handful.losses.processes import gathered


def squared_consistency(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, processes: bool = False
) -> Tensor:
    """Return the mean over pixels (in ``mask``) and classes of (softmax(student) - softmax(teacher))^2.

    Args:
        student: (B, K, *S) logits.
        teacher: (B, K, *S) logits, detached inside.
        mask: (B, *S) bool or weights; None counts every pixel, an empty mask gives 0.
        processes: whether the mean is over the masks of all processes, which must then all call it together: each
            returns its own sum over the mean size of the masks, so that the mean over processes is the whole's.

    Raises:
        ValueError: shapes that do not fit, integers as logits, NaN.

    References:
        Tarvainen and Valpola, 2017, Mean Teacher. https://arxiv.org/abs/1703.01780
    """
    student, teacher = _checked(student, teacher)
    return _mean((student.softmax(1) - teacher.softmax(1)).square().mean(1), mask, processes=processes)


def divergence_consistency(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, temperature: float = 1.0
) -> Tensor:
    """Return the mean over pixels (in ``mask``) of KL( softmax(teacher / t) || softmax(student / t) ).

    Args:
        student: (B, K, *S) logits.
        teacher: (B, K, *S) logits, detached inside.
        mask: (B, *S) bool or weights; None counts every pixel, an empty mask gives 0.
        temperature: of both; the value is not scaled back.

    Raises:
        ValueError: shapes that do not fit, integers as logits, NaN, a temperature that is not positive.

    References:
        Xie et al., 2020, UDA. https://arxiv.org/abs/1904.12848
    """
    checks.temperature(temperature)
    student, teacher = _checked(student, teacher)
    log_q = (teacher / temperature).log_softmax(1)
    return _mean((log_q.exp() * (log_q - (student / temperature).log_softmax(1))).sum(1), mask)


@torch.no_grad()
def confident(logits: Tensor, threshold: float = 0.95) -> Tensor:
    """Return (B, *S) bool: where the largest probability of ``logits`` (B, K, *S) reaches ``threshold``.

    References:
        Sohn et al., 2020, FixMatch. https://arxiv.org/abs/2001.07685
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is a probability in [0, 1], found {threshold}.")
    return checks.embeddings("logits", logits, "B K *S").softmax(1).amax(1) >= threshold


def sigmoid_ramp(progress: float, *, length: float = 1.0) -> float:
    """Return exp(-5 (1 - t)^2), t = progress / length up to 1: 0.0067 at the start, 1 after ``length`` of the run.

    References:
        Laine and Aila, 2017. https://arxiv.org/abs/1610.02242
    """
    return math.exp(-5 * (1 - linear_ramp(progress, length=length)) ** 2)


def linear_ramp(progress: float, *, length: float = 1.0) -> float:
    """Return progress / length between 0 and 1; a length of 0 is no ramp: 1 from the start."""
    if length < 0:
        raise ValueError(f"the length of a ramp is a share of the run, 0 or more; found {length}.")
    return 1.0 if length == 0 else min(max(progress / length, 0.0), 1.0)


def _checked(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    student = checks.embeddings("student", student, "B K *S")
    teacher = checks.embeddings("teacher", teacher, "B K *S").detach().to(student.dtype)
    checks.same_shape(student=student, teacher=teacher)
    return student, teacher


def _mean(values: Tensor, mask: Tensor | None, *, processes: bool = False) -> Tensor:
    """Average (B, *S) values where the mask says."""
    if mask is None:
        return values.mean() if values.numel() else checks.nothing(values)
    checks.same_shape(mask=mask, pixels=values)
    weight = mask.to(values.dtype)
    total = weight.sum()
    if processes:
        total = gathered(total[None]).mean()
    return (values * weight).sum() / torch.where(total > 0, total, 1.0)
