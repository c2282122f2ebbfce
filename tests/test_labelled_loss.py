"""What methods learn from labels: rare classes weigh more while a run is young, and no longer when it ends."""

from types import SimpleNamespace

import pytest
import torch

from handful.losses.labelled import dice_and_fading_cross_entropy, fading, labelled_terms, weighted
from handful.losses.segmentation import dice_and_cross_entropy


def test_the_balance_falls_from_all_of_it_to_nothing() -> None:
    values = [fading(0.5, progress) for progress in (-0.1, 0.0, 0.25, 0.5, 1.0, 1.1)]
    assert values == [0.5, 0.5, 0.375, 0.25, 0.0, 0.0]


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_cross_entropy_ends_least_at_the_true_frequencies(progress: float) -> None:
    # 900 pixels of background, 90 and 10 of two structures, all of them looking the same: one answer for all pixels
    counts = torch.tensor([900.0, 90.0, 10.0], dtype=torch.float64)
    label = torch.repeat_interleave(torch.arange(3), counts.long())[None]
    # a class of n pixels weighs n^-balance each, so that the best answer is as if there were n^(1 - balance) of them
    best = (1 - fading(0.5, progress)) * counts.log()
    logits = best[None, :, None].expand(1, 3, 1000).clone().requires_grad_()
    both = dice_and_fading_cross_entropy(0.5, progress)
    (gradient,) = torch.autograd.grad(both(logits, label)[1], logits)
    torch.testing.assert_close(gradient.sum((0, 2)), torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)
    if progress == 1.0:
        torch.testing.assert_close(best.softmax(0), counts / counts.sum())


def test_variants_of_the_dice_loss_are_handed_on() -> None:
    logits, label = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    variant = {"squared": True, "include_background": True, "smooth": 1.0}
    made = dice_and_fading_cross_entropy(0.8, 0.25, **variant)(logits, label)  # type: ignore[arg-type]
    torch.testing.assert_close(made, dice_and_cross_entropy(logits, label, balance=0.6, **variant))  # type: ignore[arg-type]


def test_terms_are_weighted_and_logs_are_not() -> None:
    both = torch.tensor([0.25, 2.0], requires_grad=True)
    weights = SimpleNamespace(dice_weight=2.0, cross_entropy_weight=0.5)
    terms, logs = labelled_terms(both, weights)
    assert {name: value.item() for name, value in terms.items()} == {"dice_loss": 0.5, "cross_entropy": 1.0}
    assert {name: value.item() for name, value in logs.items()} == {"dice_loss": 0.25, "cross_entropy": 2.0}
    assert all(value.requires_grad for value in terms.values())
    assert not any(value.requires_grad for value in logs.values())
    assert weighted(both, weights) == sum(terms.values())
