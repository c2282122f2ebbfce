"""Laws of URPC: what the levels are asked of labelled and of unlabelled images, and what disturbs them."""

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from handful.errors import UsageError
from handful.losses.pyramid import pyramid_consistency
from handful.losses.segmentation import dice_ce
from handful.methods.supervised import Settings as ControlSettings
from handful.methods.supervised import Supervised
from handful.methods.urpc import URPC, Settings, enlarged
from handful.networks.unet import UNet
from handful.networks.vnet import VNet
from test_methods import phantom_source


def method(dims: int = 2, norm: Any = "instance", **settings: Any) -> URPC:
    torch.manual_seed(0)
    network = UNet(
        dims=dims, in_channels=1, classes=3, widths=(4, 6, 8, 10), norm=norm, deep_supervision=True
    )
    return URPC(network, Settings(**settings))


def source(dims: int, **changes: Any) -> Any:
    return dataclasses.replace(phantom_source(dims), patch=(8, 16, 24)[3 - dims :], **changes)


@pytest.mark.parametrize("dims", [2, 3])
def test_without_unlabelled_cases_it_is_the_control(dims: int) -> None:
    made = method(dims)
    batch = made.batch(source(dims, unlabelled=[]))
    assert batch.unlabelled is None
    loss = Supervised(made.network, ControlSettings()).step(batch, 0.5).loss
    assert torch.equal(made.step(batch, 0.5).loss, loss)


@pytest.mark.parametrize("dims", [2, 3])
def test_levels_of_unlabelled_images_are_compared_at_full_size(dims: int) -> None:
    made = method(dims, consistency_weight=0.3, ramp=0.0)
    batch = made.batch(source(dims))
    mode = "bilinear" if dims == 2 else "trilinear"
    levels = made.network.deep(batch.unlabelled)
    assert len(levels) == 3
    full = [F.interpolate(level, size=batch.unlabelled.shape[2:], mode=mode) for level in levels]
    output = made.step(batch, 0.1)
    torch.testing.assert_close(output.terms["consistency"], 0.3 * pyramid_consistency(full))
    apart = method(dims, consistency_weight=0.3, ramp=0.0, joint_norm=False)
    torch.testing.assert_close(apart.step(batch, 0.1).loss, output.loss)


def test_levels_that_agree_cost_nothing() -> None:
    made = method(ramp=0.0)
    with torch.no_grad():
        for head in made.network.heads:
            head.weight.zero_()
    assert made.step(made.batch(source(2)), 1.0).terms["consistency"].item() == pytest.approx(0, abs=1e-6)


def test_published_supervision_asks_every_level_for_the_whole_label() -> None:
    made = method(
        supervision="pyramid", dice_weight=0.5, cross_entropy_weight=0.5, balance=0.0, squared_dice=True,
        dice_background=True,
    )  # fmt: skip
    batch = made.batch(source(2, unlabelled=[]))
    expected = [
        dice_ce(level, batch.label, squared=True, include_background=True) / 2
        for level in enlarged(made.network.deep(batch.image))
    ]
    torch.testing.assert_close(made.step(batch, 0.5).loss, torch.stack(expected).mean())


def test_dropout_disturbs_the_coarser_levels_while_training_alone() -> None:
    made = method(dropout=0.5)
    image = torch.randn(2, 1, 16, 24)
    clean = made.network.deep(image)
    for level, disturbed in enumerate(made._levels(image)):
        assert torch.allclose(disturbed, clean[level]) == (level == 0)
    for level, undisturbed in enumerate(made.eval()._levels(image)):
        torch.testing.assert_close(undisturbed, clean[level])


def test_a_network_of_one_level_is_refused() -> None:
    for network in (
        UNet(dims=2, in_channels=1, classes=3, widths=(4, 6, 8)),
        VNet(dims=3, in_channels=1, classes=2, widths=(2, 3), blocks=(1, 1)),
    ):
        with pytest.raises(UsageError, match="predicts at one"):
            URPC(network, Settings())
    with pytest.raises(UsageError, match="dropout below 1"):
        Settings(dropout=1.0)
