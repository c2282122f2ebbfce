"""Entropy of predictions against hand-computed values and another implementation."""

import math

import pytest
import torch

from handful.losses.entropy import entropy_map, mean_entropy


def test_it_is_nothing_where_one_class_is_sure_and_log_k_where_all_are_alike() -> None:
    p = torch.tensor([[1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0.0]]).T[None]  # (1, 3, 3)
    torch.testing.assert_close(entropy_map(p), torch.tensor([[0.0, math.log(3), math.log(2)]]))
    assert mean_entropy(torch.zeros(2, 5, 3, 4)).item() == pytest.approx(1.0, abs=1e-6)
    assert mean_entropy(torch.tensor([[[200.0], [0.0]]])).item() == 0
    # 3/4 against 1/4: (3/4 log 4/3 + 1/4 log 4) / log 2 = 0.8113
    assert mean_entropy(torch.tensor([[[math.log(3)], [0.0]]])).item() == pytest.approx(0.811278, abs=1e-6)


@pytest.mark.parametrize("size", [(5,), (3, 4), (2, 3, 5)])
def test_it_is_what_torch_s_distributions_say(size: tuple[int, ...]) -> None:
    logits = 4 * torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    oracle = torch.distributions.Categorical(logits=logits.movedim(1, -1)).entropy()
    torch.testing.assert_close(entropy_map(logits.softmax(1)), oracle)
    torch.testing.assert_close(mean_entropy(logits), oracle.mean() / math.log(3))


def test_its_gradient_is_right_and_stays_finite_where_a_class_is_impossible() -> None:
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert torch.autograd.gradcheck(mean_entropy, logits.requires_grad_())
    extreme = torch.tensor([[[500.0, -500.0], [-500.0, 500.0]]], requires_grad=True)
    mean_entropy(extreme).backward()
    assert torch.isfinite(extreme.grad).all()


def test_what_it_cannot_measure_it_refuses() -> None:
    with pytest.raises(ValueError, match="give the softmax"):
        entropy_map(torch.tensor([[[1.0], [-1.0]]]))
    with pytest.raises(ValueError, match="two classes at least"):
        mean_entropy(torch.zeros(1, 1, 4))
    with pytest.raises(ValueError, match="floating point"):
        mean_entropy(torch.zeros(1, 2, 4, dtype=torch.int64))
    empty = torch.zeros(0, 3, 4, requires_grad=True)
    mean_entropy(empty).backward()
    assert mean_entropy(empty).item() == 0
