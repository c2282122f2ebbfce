"""Agreement of decoder levels: by hand, against the obvious computation, and its laws."""

import math

import pytest
import torch
from torch import Tensor

from handful.losses.pyramid import pyramid_consistency


def test_by_hand_at_one_pixel() -> None:
    """Probabilities (3/4, 1/4) and (1/4, 3/4): the mean is (1/2, 1/2), each is a quarter away from it in each class."""
    levels = [torch.tensor([[[math.log(3)], [0.0]]]), torch.tensor([[[0.0], [math.log(3)]]])]
    far = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert pyramid_consistency(levels).item() == pytest.approx(1 / 16 + far, rel=1e-6)


def test_pixels_that_disagree_weigh_less() -> None:
    """Of two pixels one agrees (weight 1) and one does not (weight e^-far): the first halves the squares and more."""
    first = torch.tensor([[[math.log(3), 2.0], [0.0, 0.0]]])
    second = torch.tensor([[[0.0, 2.0], [math.log(3), 0.0]]])
    far = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    weight = math.exp(-far)
    expected = weight / 16 / (1 + weight) + far / 2
    assert pyramid_consistency([first, second]).item() == pytest.approx(expected, rel=1e-6)


def obvious(levels: list[Tensor]) -> Tensor:
    p = [level.softmax(1) for level in levels]
    m = torch.stack(p).mean(0)
    total = torch.zeros((), dtype=m.dtype)
    for own in p:
        far = torch.nn.functional.kl_div(own.log(), m, reduction="none").sum(1, keepdim=True)
        weight = torch.exp(-far)
        total = total + ((m - own) ** 2 * weight).mean() / weight.mean() + far.mean()
    return total / len(p)


@pytest.mark.parametrize("size", [(4, 5), (3, 4, 5)])
def test_it_is_the_obvious_computation_and_blind_to_order_and_shifts(size: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    levels = [torch.randn(2, 3, *size, dtype=torch.float64, generator=generator) for _ in range(3)]
    value = pyramid_consistency(levels)
    torch.testing.assert_close(value, obvious(levels))
    torch.testing.assert_close(value, pyramid_consistency(levels[::-1]))
    torch.testing.assert_close(value, pyramid_consistency([level + 7.0 for level in levels]))
    assert value > 0
    torch.testing.assert_close(pyramid_consistency([levels[0]] * 3), torch.zeros((), dtype=torch.float64))


def test_every_level_has_a_gradient_and_sure_ones_stay_finite() -> None:
    levels = [torch.randn(1, 3, 2, 3).mul(200).requires_grad_() for _ in range(3)]
    pyramid_consistency(levels).backward()
    for level in levels:
        assert torch.isfinite(level.grad).all()
        assert level.grad.abs().sum() > 0
    empty = torch.zeros(0, 3, 2, 3, requires_grad=True)
    nothing = pyramid_consistency([empty, empty])
    nothing.backward()
    assert nothing.item() == 0


def test_wrong_input_is_named() -> None:
    level = torch.zeros(1, 2, 3)
    with pytest.raises(ValueError, match="two at least"):
        pyramid_consistency([level])
    with pytest.raises(ValueError, match="same shape"):
        pyramid_consistency([level, torch.zeros(1, 2, 4)])
