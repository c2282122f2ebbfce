"""Laws of consistency, reconstruction, and the ramps."""

import math

import pytest
import torch
from torch import Tensor

from handful.losses.consistency import (
    confident,
    divergence_consistency,
    linear_ramp,
    sigmoid_ramp,
    squared_consistency,
)
from handful.losses.reconstruction import reconstruction_error

LOSSES = [squared_consistency, divergence_consistency]


def case() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 3, 4, 6, 5, generator=generator, dtype=torch.float64)
    mask = torch.rand(3, 6, 5, generator=generator) < 0.3
    return student.requires_grad_(), teacher.requires_grad_(), mask


def test_consistency_by_hand() -> None:
    student = torch.zeros(1, 2, 3, dtype=torch.float64)
    teacher = torch.tensor([0.75, 0.25], dtype=torch.float64).log().reshape(1, 2, 1).expand(1, 2, 3)
    assert squared_consistency(student, teacher).item() == pytest.approx(0.0625, rel=1e-9)
    assert divergence_consistency(student, teacher).item() == pytest.approx(0.130812, abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_consistency_looks_at_the_mask_and_trains_the_student(loss) -> None:  # type: ignore[no-untyped-def]
    student, teacher, mask = case()
    value = loss(student, teacher, mask)
    value.backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert ((student.grad != 0).any(1) == mask).all()
    chosen = [z.movedim(1, -1)[mask][:, :, None] for z in (student, teacher)]
    assert value.item() == pytest.approx(loss(*chosen).item(), rel=1e-9)
    assert loss(student, teacher).item() == pytest.approx(
        loss(student, teacher, torch.ones_like(mask)).item(), rel=1e-9
    )
    assert loss(student, student).item() == pytest.approx(0, abs=1e-12)
    nothing = loss(student, teacher, mask & False)
    student.grad = None
    nothing.backward()
    assert nothing.item() == 0
    assert (student.grad == 0).all()
    assert loss(student[:0], teacher[:0]).item() == 0
    assert torch.autograd.gradcheck(lambda z: loss(z, teacher, mask), student)
    with pytest.raises(ValueError, match="same shape"):
        loss(student, teacher[:, :3])
    with pytest.raises(ValueError, match="mask"):
        loss(student, teacher, mask[:, 1:])
    with pytest.raises(ValueError, match="teacher"):
        loss(student, teacher * math.nan)


def test_confidence_is_the_largest_probability() -> None:
    student, _, _ = case()
    probability = student.softmax(1).amax(1)
    assert torch.equal(confident(student, 0.6), probability >= 0.6)
    assert confident(student, 0).all()
    with pytest.raises(ValueError, match="in \\[0, 1\\]"):
        confident(student, 97)


def test_ramps() -> None:
    assert sigmoid_ramp(0) == pytest.approx(math.exp(-5))
    assert sigmoid_ramp(0.2, length=0.4) == pytest.approx(math.exp(-1.25))
    values = [sigmoid_ramp(step / 50, length=0.6) for step in range(51)]
    assert values == sorted(values)
    assert values[30:] == [1.0] * 21
    assert [linear_ramp(p, length=0.5) for p in (0, 0.25, 0.5, 1)] == [0, 0.5, 1, 1]
    assert linear_ramp(0, length=0) == sigmoid_ramp(0, length=0) == 1
    with pytest.raises(ValueError, match="0 or more"):
        linear_ramp(0.5, length=-1)


def test_reconstruction_by_hand() -> None:
    half, target = torch.full((2, 1, 4, 6), 0.5), (torch.rand(2, 1, 4, 6) < 0.5).float()
    assert reconstruction_error(half, target).item() == 0.25
    assert reconstruction_error(half, target, norm="l1").item() == 0.5


@pytest.mark.parametrize("norm", ["mse", "l1"])
def test_masked_reconstruction_sees_the_mask_only(norm) -> None:  # type: ignore[no-untyped-def]
    prediction, target, mask = case()
    loss = reconstruction_error(prediction, target, mask, norm=norm)
    loss.backward()
    assert target.grad is None
    assert prediction.grad is not None
    assert ((prediction.grad != 0).any(1) == mask).all()
    difference = (prediction - target).movedim(1, -1)[mask]
    slow = difference.square().mean() if norm == "mse" else difference.abs().mean()
    assert loss.item() == pytest.approx(slow.item(), rel=1e-9)
    whole = reconstruction_error(prediction, target, norm=norm).item()
    both = [reconstruction_error(prediction, target, part, norm=norm) * part.sum() for part in (mask, ~mask)]
    assert whole == pytest.approx(sum(both).item() / mask.numel(), rel=1e-9)
    assert reconstruction_error(prediction, target, mask & False, norm=norm).item() == 0
    with pytest.raises(ValueError, match="'mse' or 'l1'"):
        reconstruction_error(prediction, target, norm="l2")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="same shape"):
        reconstruction_error(prediction, target[:, :1])
