"""Laws of FixMatch and UniMatch: whose labels, on which disturbed views, and that both stay aligned."""

import copy
import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from handful.data.augment.settings import AugmentSettings
from handful.errors import UsageError
from handful.losses.mixing import paste
from handful.losses.pseudo_label import pseudo_label
from handful.losses.segmentation import soft_dice_loss
from handful.methods.fixmatch import FixMatch, Settings
from handful.methods.supervised import Settings as ControlSettings
from handful.methods.supervised import Supervised
from handful.networks.deep import judged
from handful.networks.unet import UNet
from handful.networks.vnet import VNet
from test_methods import phantom_source

COLOURS = ("p_noise", "p_blur", "p_low_resolution", "p_brightness", "p_contrast", "p_gamma")
FIXMATCH = {"views": 1, "cutmix": 0.0, "feature_weight": 0.0, "pseudo_loss": "cross_entropy", "balance": 0.0}


def method(dims: int = 2, *, norm: Any = "instance", levels: bool = False, **settings: Any) -> FixMatch:
    torch.manual_seed(0)
    network = UNet(dims=dims, in_channels=1, classes=3, widths=(4, 6, 8), norm=norm, deep_supervision=levels)
    return FixMatch(network, Settings(**settings))


def colourless(dims: int = 2) -> Any:
    return dataclasses.replace(phantom_source(dims), augment=AugmentSettings(**dict.fromkeys(COLOURS, 0.0)))


@pytest.mark.parametrize("dims", [2, 3])
def test_without_unlabelled_cases_it_is_the_control(dims: int) -> None:
    made = method(dims, levels=True)
    batch = made.batch(dataclasses.replace(phantom_source(dims), unlabelled=[]))
    assert batch.weak is None
    loss = Supervised(made.network, ControlSettings()).step(batch, 0.5).loss
    assert torch.equal(made.step(batch, 0.5).loss, loss)


def test_fixmatch_itself_is_the_mean_over_all_pixels_of_those_that_count() -> None:
    made = method(threshold=0.6, **FIXMATCH)
    batch = made.batch(phantom_source(2))
    assert batch.keep is None
    assert batch.features is None
    assert len(batch.strong) == len(batch.weak)
    p, label = judged(made.network, batch.weak).softmax(1).max(1)
    sure = (p >= 0.6).float()
    assert 0 < sure.mean() < 1
    entropy = F.cross_entropy(made.network(batch.strong), label, reduction="none")
    output = made.step(batch, 0.5)
    torch.testing.assert_close(output.terms["strong"], (sure * entropy).mean())
    torch.testing.assert_close(output.logs["confident"], sure.mean())
    assert "features" not in output.terms


def test_unimatch_is_dice_over_the_pixels_that_count() -> None:
    made = method(threshold=0.5, strong_weight=0.8, feature_weight=0.6)
    batch = made.batch(phantom_source(2))
    label = pseudo_label(judged(made.network, batch.weak), threshold=0.5)
    count = len(label)
    partner = torch.tensor([1, 2, 0, 4, 5, 3])
    assert count == 3
    mixed = paste(torch.cat([label, label]), batch.keep, partner)
    output = made.step(batch, 0.5)
    torch.testing.assert_close(
        output.terms["strong"], 0.8 * soft_dice_loss(made.network(batch.strong), mixed)
    )
    maps = made.network.encoder(batch.weak)
    kept = batch.features.split([4, 6, 8], dim=1)
    maps = [each * 2 * own[:, :, None, None] for each, own in zip(maps, kept)]
    logits = made.network.heads[0](made.network.decoder(maps)[0])
    torch.testing.assert_close(output.terms["features"], 0.6 * soft_dice_loss(logits, label))


@pytest.mark.parametrize("dims", [2, 3])
def test_a_strong_view_shows_the_plain_pixels_and_boxes_of_the_next_image(dims: int) -> None:
    batch = method(dims, cutmix=1.0, labelled=2, unlabelled=4).batch(colourless(dims))
    again = torch.cat([batch.weak, batch.weak])
    partner = torch.tensor([1, 2, 3, 0, 5, 6, 7, 4])
    assert torch.equal(batch.strong, paste(again, batch.keep, partner))
    assert (~batch.keep).flatten(1).any(1).all()
    assert not torch.equal(batch.keep[:4], batch.keep[4:])
    whole = method(dims, cutmix=0.0).batch(phantom_source(dims))
    assert whole.keep is None
    boxed = method(dims, cutmix=1.0).batch(phantom_source(dims))
    own = torch.tensor([1, 2, 0, 4, 5, 3])  # a box shows the next image as the same view has recoloured it
    assert torch.equal(boxed.strong, paste(whole.strong, boxed.keep, own))
    first, second = whole.strong.chunk(2)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("joint", [True, False])
def test_passing_together_or_apart_is_the_same_without_batch_norm(joint: bool) -> None:
    made = method(levels=True, threshold=0.4, joint_norm=joint)
    batch = made.batch(phantom_source(2))
    apart = {name: term.detach() for name, term in made.step(batch, 0.5).terms.items()}
    made.settings = dataclasses.replace(made.settings, joint_norm=not joint)
    for name, term in made.step(batch, 0.5).terms.items():
        torch.testing.assert_close(term, apart[name])


def test_channels_left_out_are_left_out() -> None:
    made = method(feature_dropout=0.5)
    batch = made.batch(phantom_source(2))
    empty = batch._replace(features=torch.zeros_like(batch.features))
    one = made._disturbed(empty)[1][0]
    two = made._disturbed(empty._replace(weak=batch.weak.flip(0)))[1][0]
    torch.testing.assert_close(one, two)
    levels, _, strong = made._disturbed(batch)
    torch.testing.assert_close(levels[0], made.network(batch.image))
    torch.testing.assert_close(strong[0], made.network(batch.strong))
    all_in = method(feature_dropout=0.0)
    batch = all_in.batch(phantom_source(2))
    assert batch.features.all()
    torch.testing.assert_close(all_in._disturbed(batch)[1][0], all_in.network(batch.weak))


def test_where_nothing_is_sure_nothing_is_learnt() -> None:
    made = method(threshold=1.0, pseudo_loss="both")
    output = made.step(made.batch(phantom_source(2)), 0.5)
    assert output.logs["confident"] == 0
    assert output.terms["strong"] == 0
    assert output.terms["features"] == 0


def test_the_judge_is_the_student_or_its_average() -> None:
    for teacher in ("student", "ema"):
        made = method(threshold=0.0, teacher=teacher)
        batch = made.batch(phantom_source(2))
        before = made.step(batch, 0.5).logs["strong"]
        if made.teacher is not None:
            with torch.no_grad():
                for parameter in made.teacher.parameters():
                    parameter.neg_()
        assert (made.step(batch, 0.5).logs["strong"] != before) == (teacher == "ema")
    other = method(threshold=0.0, teacher="ema")
    made.after_step(0.0)
    other.load_state_dict(copy.deepcopy(made.state_dict()))
    assert other.teacher.followed == 1


def test_a_v_net_has_features_to_disturb_too() -> None:
    torch.manual_seed(0)
    network = VNet(dims=3, in_channels=1, classes=3, widths=(2, 4), blocks=(1, 1), dropout=0.0)
    made = FixMatch(network, Settings(threshold=0.0))
    batch = made.batch(phantom_source(3))
    assert batch.features.shape == (3, 6)
    made.step(batch, 0.5).loss.backward()


def test_wrong_settings_are_named() -> None:
    with pytest.raises(UsageError, match="at least 2"):
        method(unlabelled=1).batch(phantom_source(2))
    assert method(unlabelled=1, cutmix=0.0).batch(phantom_source(2)).keep is None
    for wrong in ({"views": 3}, {"threshold": 1.1}, {"feature_dropout": 1.0}, {"strong_weight": -1.0}):
        with pytest.raises(UsageError):
            Settings(**wrong)
