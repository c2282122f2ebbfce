"""Laws of mixup: what is mixed with what, and that nothing mixed is the control."""

import copy
import dataclasses
from typing import Any

import pytest
import torch

from handful.data.augment.settings import AugmentSettings
from handful.errors import UsageError
from handful.losses.segmentation import deep_supervision, dice_and_cross_entropy
from handful.methods.mixup import Mixup, Settings
from handful.methods.supervised import Settings as ControlSettings
from handful.methods.supervised import Supervised
from handful.networks.unet import UNet
from test_methods import phantom_source


def method(dims: int = 2, **settings: Any) -> Mixup:
    torch.manual_seed(0)
    network = UNet(dims=dims, in_channels=1, classes=3, widths=(4, 6, 8), deep_supervision=True)
    return Mixup(network, Settings(**settings))


@pytest.mark.parametrize("dims", [2, 3])
def test_all_of_one_image_is_the_control_on_the_control_s_batch(dims: int) -> None:
    made = method(dims)
    control = Supervised(copy.deepcopy(made.network), ControlSettings())
    source = phantom_source(dims)
    batch, theirs = made.batch(source), control.batch(source)
    assert torch.equal(batch.image, theirs.image)
    assert torch.equal(batch.label, theirs.label)
    known = batch._replace(label=batch.label.clamp(min=0))  # else pixels unknown to the partner are left out
    expected = control.step(theirs._replace(label=known.label), 0.5)
    torch.testing.assert_close(made.step(known._replace(share=1.0), 0.5).loss, expected.loss)
    none = made.step(known._replace(share=0.0), 0.5).loss
    torch.testing.assert_close(none, expected.loss)  # the same images, in the order of the partners
    assert not torch.allclose(made.step(known._replace(share=0.5), 0.5).loss, expected.loss)


def test_the_loss_is_that_of_the_mixed_images_against_both_labels() -> None:
    values = {"squared_dice": True, "dice_smooth": 1.0, "balance": 0.0, "dice_weight": 0.5}
    made = method(labelled=4, **values)
    batch = made.batch(phantom_source(2))
    label = batch.label.clamp(min=0)
    partner, share = batch.partner.tolist(), batch.share
    mixed = torch.stack([share * batch.image[i] + (1 - share) * batch.image[partner[i]] for i in range(4)])
    levels = made.network.deep(mixed)

    def both(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        return dice_and_cross_entropy(logits, truth, squared=True, smooth=1.0)

    own, theirs = deep_supervision(levels, label, both), deep_supervision(levels, label[batch.partner], both)
    dice, entropy = share * own + (1 - share) * theirs
    torch.testing.assert_close(made.step(batch._replace(label=label), 0.5).loss, 0.5 * dice + entropy)


def test_mixing_the_other_way_round_is_the_same() -> None:
    made = method(labelled=2)
    batch = made.batch(phantom_source(2))
    assert batch.partner.tolist() == [1, 0]
    turned = batch._replace(image=batch.image.flip(0), label=batch.label.flip(0), share=1 - batch.share)
    torch.testing.assert_close(made.step(turned, 0.5).loss, made.step(batch, 0.5).loss)


def test_shares_are_drawn_over_the_whole_range_and_nobody_is_mixed_with_himself() -> None:
    made = method(alpha=1.0, labelled=3)
    still = AugmentSettings(**{name: 0.0 for name in vars(AugmentSettings()) if name.startswith("p_")})
    source = dataclasses.replace(phantom_source(2), augment=still)  # quick to draw
    batches = [made.batch(dataclasses.replace(source, step=step)) for step in range(40)]
    shares = [batch.share for batch in batches]
    assert 0 <= min(shares) < 0.25
    assert 0.75 < max(shares) <= 1
    assert all((batch.partner != torch.arange(3)).all() for batch in batches)


def test_only_labelled_images_are_seen() -> None:
    source = phantom_source(2)
    alone = dataclasses.replace(source, unlabelled=())
    first, second = method().batch(source), method().batch(alone)
    assert torch.equal(first.image, second.image)
    assert first.share == second.share


def test_one_image_cannot_be_mixed() -> None:
    with pytest.raises(UsageError, match=r"--set method\.labelled=2"):
        method().batch(dataclasses.replace(phantom_source(2), batch=1))
    with pytest.raises(UsageError, match="at least two images"):
        Settings(labelled=1)
    with pytest.raises(UsageError, match="alpha"):
        Settings(alpha=0.0)
    assert method(labelled=2).batch(dataclasses.replace(phantom_source(2), batch=1)).image.shape[0] == 2
