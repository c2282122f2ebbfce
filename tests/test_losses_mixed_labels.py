"""The loss of a mixture: hand-computed, and against cross entropy with mixed labels."""

import math

import pytest
import torch
import torch.nn.functional as F

from handful.losses.mixed_labels import mixed_supervision
from handful.losses.mixing import random_partner
from handful.losses.segmentation import cross_entropy, deep_supervision, dice_and_cross_entropy


def drawn(seed: int = 0) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    levels = [torch.randn(3, 4, 6 // s, 8 // s, generator=generator, dtype=torch.float64) for s in (1, 2)]
    label = torch.randint(-1, 4, (3, 6, 8), generator=generator)
    return levels, label, random_partner(3, generator=generator)


def test_by_hand() -> None:
    logits = torch.tensor([[[math.log(3.0)], [0.0]], [[0.0], [0.0]]])  # class 0: 3/4, then 1/2
    label, partner = torch.tensor([[0], [1]]), torch.tensor([1, 0])
    # image 0: 0.7 x -log 3/4 + 0.3 x -log 1/4; image 1: log 2 whatever the label
    expected = (0.7 * math.log(4 / 3) + 0.3 * math.log(4) + math.log(2)) / 2
    found = mixed_supervision([logits], label, partner, share=0.7, loss=cross_entropy)
    assert found.item() == pytest.approx(expected, abs=1e-6)


def test_cross_entropy_of_a_mixture_is_cross_entropy_with_the_mixed_label() -> None:
    levels, label, partner = drawn()
    label = label.clamp(min=0)
    soft = 0.3 * F.one_hot(label, 4) + 0.7 * F.one_hot(label[partner], 4)
    oracle = F.cross_entropy(levels[0], soft.movedim(-1, 1).double())
    found = mixed_supervision(levels[:1], label, partner, share=0.3, loss=cross_entropy)
    torch.testing.assert_close(found, oracle)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_all_of_one_parent_is_that_parent_s_loss_over_all_levels(share: float) -> None:
    levels, label, partner = drawn()
    label = label.clamp(min=0)
    alone = label if share else label[partner]
    found = mixed_supervision(levels, label, partner, share=share, loss=dice_and_cross_entropy)
    torch.testing.assert_close(found, deep_supervision(levels, alone, dice_and_cross_entropy))


def test_a_pixel_that_one_parent_does_not_know_takes_no_part() -> None:
    (logits, _), label, partner = drawn()
    logits.requires_grad_()
    unknown = (label == -1) | (label[partner] == -1)
    assert unknown.any()
    assert not unknown.all()
    (gradient,) = torch.autograd.grad(
        mixed_supervision([logits], label, partner, share=0.4, loss=dice_and_cross_entropy).sum(), logits
    )
    assert torch.equal((gradient != 0).any(1), ~unknown)
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        mixed_supervision([logits], label, partner, share=1.2, loss=cross_entropy)
