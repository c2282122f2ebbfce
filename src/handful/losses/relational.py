"""MONA's first stage: a student relates an image to a bank of others as the teacher does, globally and per window.

The relation of an embedding v to the bank is softmax over the bank of cos(v, bank row) / temperature. The loss is
KL(teacher's relation || student's relation), the teacher sharper (lower temperature).

References:
    You et al., 2024, MONA. https://arxiv.org/abs/2209.13476
    Tejankar et al., 2021, ISD. https://arxiv.org/abs/2012.09259
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from handful.losses import checks
from handful.losses.embeddings import unit


def relation(
    student: Tensor,
    teacher: Tensor,
    bank: Tensor,
    *,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.01,
) -> Tensor:
    """Return the mean over rows of KL( softmax(cos(teacher, bank) / t_t) || softmax(cos(student, bank) / t_s) ).

    The released code lets the gradient into the teacher's heads, which are moved as averages as well; here teacher
    and bank are detached. Enqueue the teacher's embeddings after calling this. An empty bank, or one of a single
    row, relates everything alike: the loss is 0.

    Args:
        student: (N, E), after the predictor.
        teacher: (N, E), detached inside.
        bank: (K, E) earlier teacher embeddings, detached inside; MONA keeps 36.
        student_temperature: the paper's 0.1.
        teacher_temperature: the paper's 0.01 (the released default is 0.1).

    Raises:
        ValueError: shapes that do not fit, integers, NaN, a temperature that is not positive.

    Example:
        >>> import torch
        >>> relation(torch.eye(2), torch.eye(2), torch.eye(2), student_temperature=0.1, teacher_temperature=0.1)
        tensor(0.)
    """
    student, teacher, bank = _checked(
        student, teacher, bank, "N E", "K E", student_temperature, teacher_temperature
    )
    if not len(student) or not len(bank):
        return checks.nothing(student)
    student, teacher, bank = (unit(z) for z in (student, teacher, bank))
    with torch.autocast(student.device.type, enabled=False):
        own, target = student @ bank.T / student_temperature, teacher @ bank.T / teacher_temperature
    return _divergence(own, target)


def window_relation(
    student: Tensor,
    teacher: Tensor,
    bank: Tensor,
    *,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.01,
    form: Literal["repaired", "official"] = "repaired",
) -> Tensor:
    """Return ``relation`` of each window to the same window of the bank's images, averaged over images and windows.

    ``form="official"`` is what the released code computes and serves comparison only: it re-reads the memory of the
    window-major embeddings (P, B, E) in rows of P consecutive numbers, and the bank's likewise, so that a row mixes
    positions of one embedding with those of the next.

    Args:
        student: (B, P, E) an embedding a window, after the predictor.
        teacher: (B, P, E), detached inside.
        bank: (K, P, E), detached inside.
        student_temperature: the paper's 0.1.
        teacher_temperature: the paper's 0.01.
        form: see above.

    Raises:
        ValueError: shapes that do not fit, integers, NaN, a temperature that is not positive.
    """
    student, teacher, bank = _checked(
        student, teacher, bank, "B P E", "K P E", student_temperature, teacher_temperature
    )
    if student.shape[1] != bank.shape[1]:
        raise ValueError(
            f"student and bank must have the same windows (second axis), found {tuple(student.shape)} and "
            f"{tuple(bank.shape)}."
        )
    if not student.numel() or not len(bank):
        return checks.nothing(student)
    if form == "official":
        rows = [z.transpose(0, 1).reshape(-1, z.shape[1]) for z in (student, teacher, bank)]
        return relation(
            *rows, student_temperature=student_temperature, teacher_temperature=teacher_temperature
        )
    student, teacher, bank = (unit(z) for z in (student, teacher, bank))
    with torch.autocast(student.device.type, enabled=False):
        own = torch.einsum("bpe,kpe->bpk", student, bank) / student_temperature
        target = torch.einsum("bpe,kpe->bpk", teacher, bank) / teacher_temperature
    return _divergence(own.flatten(0, 1), target.flatten(0, 1))


def windows(maps: Tensor, *, size: int | Sequence[int], step: int | Sequence[int]) -> Tensor:
    """Cut maps (B, C, *S) into overlapping windows (B, P, C, *size), row-major; a remainder at the end is left out.

    MONA takes 64 every 32 of 256 (49 windows), in 3D 20 every 10 of 112 x 112 x 80 (700 windows).

    Raises:
        ValueError: a window larger than the map, or lengths that are not positive.
    """
    dims = maps.ndim - 2
    sizes, steps = (
        tuple(length) if isinstance(length, Sequence) else (length,) * dims for length in (size, step)
    )
    space = tuple(maps.shape[2:])
    if not len(sizes) == len(steps) == dims or any(
        not 0 < width <= length or stride < 1 for width, stride, length in zip(sizes, steps, space)
    ):
        raise ValueError(f"windows of {sizes} every {steps} do not fit into maps of {space}.")
    for axis in range(dims):
        maps = maps.unfold(2 + axis, sizes[axis], steps[axis])
    return maps.movedim(1, 1 + dims).flatten(1, dims)


def _checked(
    student: Tensor,
    teacher: Tensor,
    bank: Tensor,
    shape: str,
    bank_shape: str,
    student_temperature: float,
    teacher_temperature: float,
) -> tuple[Tensor, Tensor, Tensor]:
    checks.temperature(student_temperature, "student_temperature")
    checks.temperature(teacher_temperature, "teacher_temperature")
    student = checks.embeddings("student", student, shape)
    teacher = checks.embeddings("teacher", teacher, shape).detach().to(student.dtype)
    bank = checks.embeddings("bank", bank, bank_shape).detach().to(student.dtype)
    checks.same_shape(student=student, teacher=teacher)
    checks.same_width(student=student, bank=bank)
    return student, teacher, bank


def _divergence(own: Tensor, target: Tensor) -> Tensor:
    return F.kl_div(own.log_softmax(1), target.log_softmax(1), reduction="batchmean", log_target=True)
