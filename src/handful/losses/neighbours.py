"""Diversity in MONA: an image's map should look like its nearest neighbours in a bank of other images' maps."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from handful.losses import checks
from handful.losses.embeddings import unit


def nearest_neighbours(
    student: Tensor,
    teacher: Tensor,
    bank: Tensor,
    *,
    neighbours: int = 5,
    form: Literal["mean_shift", "official"] = "mean_shift",
) -> Tensor:
    """Return the mean over images and over the bank rows nearest to the *teacher* of 2 - 2 cos(student, row).

    0 where the student equals every neighbour, 2 orthogonal, 4 opposite. Mean shift enqueues the teacher's map before
    calling this, so that it is one of its own neighbours; the released MONA code enqueues it afterwards.

    ``form="official"`` swaps student and teacher as the released MONA code does: neighbours of the student, distance
    of the teacher. It has no gradient at all and serves comparison only.

    Args:
        student: (B, ...) embeddings or maps, flattened inside; ``pooled`` makes them small (whole maps of 496 x 256 x
            256 would need a bank of 4.4 GiB and carry no further idea).
        teacher: (B, ...), detached inside.
        bank: (K, E) rows, detached inside; where there are fewer than ``neighbours`` all count, without any the loss is
            0.
        neighbours: MONA takes 5 of 36.
        form: see above.

    Raises:
        ValueError: shapes that do not fit, integers, NaN, no neighbours asked for.

    References:
        Koohpayegani, Tejankar and Pirsiavash, 2021, MSF. https://arxiv.org/abs/2105.07269
        You et al., 2024, MONA. https://arxiv.org/abs/2209.13476

    Example:
        >>> import torch
        >>> maps = torch.eye(4).reshape(4, 1, 2, 2)
        >>> nearest_neighbours(-maps, maps, torch.eye(4), neighbours=1)
        tensor(4.)
    """
    if neighbours < 1:
        raise ValueError(f"neighbours must be at least 1, found {neighbours}.")
    student = checks.embeddings("student", student, "B *S").flatten(1)
    teacher = checks.embeddings("teacher", teacher, "B *S").flatten(1).detach().to(student.dtype)
    bank = checks.embeddings("bank", bank, "K E").detach().to(student.dtype)
    checks.same_shape(student=student, teacher=teacher)
    checks.same_width(student=student, bank=bank)
    if not len(student) or not len(bank):
        return checks.nothing(student)
    student, teacher, bank = (unit(z) for z in (student, teacher, bank))
    with torch.autocast(student.device.type, enabled=False):
        own, target = student @ bank.T, teacher @ bank.T
    if form == "official":
        own, target = target, own.detach()
    nearest = target.topk(min(neighbours, len(bank)), dim=1).indices
    return (2 - 2 * own.gather(1, nearest)).mean()


def pooled(maps: Tensor, size: int | Sequence[int] = 8) -> Tensor:
    """Average maps (B, E, *S) over a grid of ``size`` cells and flatten: (B, E * cells), for ``nearest_neighbours``."""
    dims = maps.ndim - 2
    sizes = tuple(size) if isinstance(size, Sequence) else (size,) * dims
    if not 1 <= dims <= 3 or len(sizes) != dims:
        raise ValueError(f"maps must be (B, E, *S) with as many axes as {sizes}, found {tuple(maps.shape)}.")
    pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[dims - 1]
    small: Tensor = pool(sizes)(maps)
    return small.flatten(1)
