"""Laws of the segmentation losses."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from handful.losses.segmentation import (
    cross_entropy,
    deep_supervision,
    dice_and_cross_entropy,
    dice_ce,
    downsampled,
    soft_dice_loss,
)

GOLDEN = Path(__file__).parent / "golden"
VARIANTS = [
    {"include_background": background, "squared": squared, "smooth": smooth, "batch": batch}
    for background in (False, True)
    for squared in (False, True)
    for smooth in (1e-5, 1.0)
    for batch in (False, True)
]


def random_case(
    *, classes: int = 4, ignored: bool = True, dims: int = 3, seed: int = 0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    size = (3, 5, 4)[:dims]
    logits = torch.randn(2, classes, *size, generator=generator, dtype=torch.float64)
    label = torch.randint(-1 if ignored else 0, classes, (2, *size), generator=generator)
    return logits, label


def slow_dice(
    logits: Tensor, label: Tensor, *, include_background: bool, squared: bool, smooth: float, batch: bool
) -> float:
    probability = logits.softmax(1)
    groups = [range(len(logits))] if batch else [[image] for image in range(len(logits))]
    terms = []
    for group in groups:
        for k in range(0 if include_background else 1, logits.shape[1]):
            overlap = predicted = reference = 0.0
            for image in group:
                for at in np.ndindex(*label.shape[1:]):
                    if label[(image, *at)] == -1:
                        continue
                    p = float(probability[(image, k, *at)])
                    g = float(label[(image, *at)] == k)
                    overlap += p * g
                    predicted += p * p if squared else p
                    reference += g
            terms.append(1 - (2 * overlap + smooth) / (predicted + reference + smooth))
    return float(np.mean(terms))


@pytest.mark.parametrize("variant", VARIANTS)
def test_dice_agrees_with_the_slow_obvious_version(variant: dict) -> None:
    logits, label = random_case()
    assert float(soft_dice_loss(logits, label, **variant)) == pytest.approx(
        slow_dice(logits, label, **variant), 1e-12
    )


def test_cross_entropy_agrees_with_the_slow_obvious_version() -> None:
    logits, label = random_case(dims=2)
    log_p = logits.log_softmax(1)
    terms = [
        -float(log_p[(image, int(label[(image, *at)]), *at)])
        for image in range(2)
        for at in np.ndindex(*label.shape[1:])
        if label[(image, *at)] != -1
    ]
    assert len(terms) > 10
    assert float(cross_entropy(logits, label)) == pytest.approx(np.mean(terms), 1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_those_of_the_value(variant: dict) -> None:
    logits, label = random_case(dims=2)
    assert torch.autograd.gradcheck(lambda z: dice_ce(z, label, **variant), logits.requires_grad_())


def test_published_mona_loss() -> None:
    golden = np.load(GOLDEN / "mona_sup.npz")
    logits = torch.from_numpy(golden["logits"]).requires_grad_()
    label = torch.from_numpy(golden["label"])
    mona = {"squared": True, "include_background": True}
    dice, ce = soft_dice_loss(logits, label, **mona), cross_entropy(logits, label)
    total = dice_ce(logits, label, **mona)
    total.backward()
    for value, name in ((dice, "dice"), (ce, "ce"), (total, "total")):
        assert value.item() == pytest.approx(float(golden[name]), abs=1e-5)
    assert np.abs(logits.grad.numpy() - golden["grad"]).max() < 1e-6


def test_published_sscl_fine_tuning_loss() -> None:
    golden = np.load(GOLDEN / "sscl_finetune_loss.npz")
    logits = torch.from_numpy(golden["logits"]).requires_grad_()
    label = torch.from_numpy(golden["labels"])
    sscl = {"squared": True, "smooth": 1.0}
    total = dice_ce(logits, label, **sscl)
    total.backward()
    without = torch.from_numpy(golden["labels_without_class3"])
    values = {
        "soft_dice_loss": soft_dice_loss(logits, label, **sscl),
        "cross_entropy": cross_entropy(logits, label),
        "sum": total,
        "soft_dice_loss_without_class3": soft_dice_loss(logits, without, **sscl),
    }
    for name, value in values.items():
        assert value.item() == pytest.approx(float(golden[name]), rel=1e-9)
    assert np.abs(logits.grad.numpy() - golden["grad_logits_of_sum"]).max() < 1e-12


def test_the_total_is_the_weighted_sum() -> None:
    logits, label = random_case()
    total = dice_ce(logits, label, dice_weight=0.3, cross_entropy_weight=2.0)
    expected = 0.3 * soft_dice_loss(logits, label) + 2 * cross_entropy(logits, label)
    torch.testing.assert_close(total, expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_both_at_once_are_the_two(variant: dict) -> None:
    logits, label = random_case()
    dice, entropy = dice_and_cross_entropy(logits, label, balance=0.5, **variant)
    torch.testing.assert_close(dice, soft_dice_loss(logits, label, **variant))
    torch.testing.assert_close(entropy, cross_entropy(logits, label, balance=0.5))


def test_a_label_beyond_the_classes_is_not_passed_over() -> None:
    logits, label = random_case()
    for value in (4, -2):
        with pytest.raises(RuntimeError, match=f"index {value} is out of bounds"):
            dice_ce(logits, label.index_fill(1, torch.tensor([0]), value))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_perfect_prediction_costs_nothing(variant: dict) -> None:
    _, label = random_case(ignored=False)
    logits = 100 * torch.nn.functional.one_hot(label, 4).movedim(-1, 1).double()
    assert float(dice_ce(logits, label, **variant)) == pytest.approx(0, abs=1e-9)


def test_permuting_the_classes_changes_nothing() -> None:
    logits, label = random_case()
    order = torch.tensor([2, 0, 3, 1])
    renamed = torch.where(label >= 0, order.argsort()[label.clamp(min=0)], label)
    for loss in (cross_entropy, lambda z, y: soft_dice_loss(z, y, include_background=True)):
        assert float(loss(logits, label)) == pytest.approx(float(loss(logits[:, order], renamed)), 1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_ignored_pixels_take_no_part(variant: dict) -> None:
    logits, label = random_case()
    ignored = (label == -1).unsqueeze(1)
    assert ignored.any()
    other = torch.where(ignored, 7 * logits + 3, logits).requires_grad_()
    loss = dice_ce(other, label, **variant)
    loss.backward()
    assert loss.item() == pytest.approx(float(dice_ce(logits, label, **variant)), 1e-12)
    assert (other.grad.masked_select(ignored) == 0).all()
    assert other.grad.masked_select(~ignored).abs().min() > 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_any_label_the_loss_is_zero_and_has_a_graph(variant: dict) -> None:
    logits, label = random_case()
    logits.requires_grad_()
    loss = dice_ce(logits, torch.full_like(label, -1), **variant)
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


def test_an_absent_class_counts_with_the_stated_value() -> None:
    logits, label = random_case(classes=3, ignored=False)
    label = label.clamp(max=1)
    mass = float(logits.softmax(1)[:, 2].sum())
    present = soft_dice_loss(logits, label) * 2 - float(1 - 1e-5 / (mass + 1e-5))
    only = 1 - (2 * logits.softmax(1)[:, 1][label == 1].sum() + 1e-5) / (
        logits.softmax(1)[:, 1].sum() + (label == 1).sum() + 1e-5
    )
    assert present.item() == pytest.approx(only.item(), 1e-12)


def test_2d_equals_3d_of_depth_one() -> None:
    logits, label = random_case(dims=2)
    assert float(dice_ce(logits, label)) == pytest.approx(
        float(dice_ce(logits[:, :, None], label[:, None])), 1e-12
    )


def test_the_memory_format_does_not_matter() -> None:
    logits, label = random_case()
    last = logits.to(memory_format=torch.channels_last_3d)
    assert float(dice_ce(logits, label)) == pytest.approx(float(dice_ce(last, label)), 1e-12)


def test_half_precision_is_computed_in_float32() -> None:
    logits, label = random_case()
    loss = dice_ce(logits.bfloat16(), label)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(float(dice_ce(logits.bfloat16().double(), label)), 1e-5)
    assert dice_ce(logits, label).dtype == torch.float64


def test_deep_supervision_is_the_weighted_mean_over_levels() -> None:
    label = torch.randint(-1, 3, (2, 4, 8, 12))
    levels = [torch.randn(2, 3, 4, 8, 12), torch.randn(2, 3, 4, 4, 6), torch.randn(2, 3, 2, 2, 3)]
    coarse = [label, label[:, :, ::2, ::2], label[:, ::2, ::4, ::4]]
    terms = [float(dice_ce(z, y)) for z, y in zip(levels, coarse)]
    expected = (terms[0] + terms[1] / 2 + terms[2] / 4) / 1.75
    assert float(deep_supervision(levels, label, dice_ce)) == pytest.approx(expected, 1e-6)
    assert float(deep_supervision(levels[:1], label, dice_ce)) == pytest.approx(terms[0], 1e-6)
    both = deep_supervision(levels, label, dice_and_cross_entropy)
    assert both.shape == (2,)
    assert float(both.sum()) == pytest.approx(expected, 1e-6)


def test_shapes_that_do_not_fit_are_refused() -> None:
    logits, label = random_case()
    with pytest.raises(ValueError, match=r"do not fit.*\(2, 4, 3, 5, 4\)"):
        dice_ce(logits, label[:, 1:])
    with pytest.raises(ValueError, match="int64"):
        cross_entropy(logits, label.int())
    with pytest.raises(ValueError, match="smooth must be positive"):
        soft_dice_loss(logits, label, smooth=0.0)
    with pytest.raises(ValueError, match="multiple"):
        downsampled(label, (2, 5, 4))
    with pytest.raises(ValueError, match="at least one"):
        deep_supervision([], label, dice_ce)


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_balanced_cross_entropy_equals_the_weighted_mean_written_out(balance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    label = torch.randint(-1, 3, (2, 3, 5), generator=generator)  # class 3 is absent, -1 is not known
    total, weights = torch.zeros((), dtype=torch.float64), 0.0
    for image in range(2):
        for row in range(3):
            for column in range(5):
                index = int(label[image, row, column])
                if index >= 0:
                    weight = float((label == index).sum()) ** -balance
                    total = total - weight * logits[image, :, row, column].log_softmax(0)[index]
                    weights += weight
    value = cross_entropy(logits, label, balance=balance)
    torch.testing.assert_close(value, total / weights)
    expected = torch.autograd.grad(total / weights, logits)[0]
    torch.testing.assert_close(torch.autograd.grad(value, logits)[0], expected)


def test_a_fully_balanced_cross_entropy_does_not_see_how_large_a_class_is() -> None:
    logits = torch.tensor([[2.0, -1.0], [0.0, 0.5]]).T.reshape(1, 2, 1, 2)
    once = torch.tensor([[[0, 1]]])
    often = cross_entropy(
        logits.repeat_interleave(torch.tensor([9, 1]), 3),
        once.repeat_interleave(torch.tensor([9, 1]), 2),
        balance=1,
    )
    torch.testing.assert_close(often, cross_entropy(logits, once, balance=1))
    assert cross_entropy(logits, torch.full((1, 1, 2), -1), balance=0.5).item() == 0
    with pytest.raises(ValueError, match="balance lies in"):
        cross_entropy(logits, once, balance=1.5)


def test_a_million_pixels_are_summed_to_float32_precision() -> None:
    """Added one by one, each new probability is small beside the sum and loses its last digits."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(1, 2, 128, 128, 64, generator=generator)
    label = torch.zeros(1, 128, 128, 64, dtype=torch.int64)
    label[:, :, :50] = 1
    torch.testing.assert_close(
        dice_and_cross_entropy(logits, label, balance=0.5).double(),
        dice_and_cross_entropy(logits.double(), label, balance=0.5),
        rtol=1e-6,
        atol=0,
    )
