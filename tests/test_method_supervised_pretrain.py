"""Supervised pre-training: the control's loss, its batch, and only what lies under the heads handed over."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from handful.errors import DataError, UsageError
from handful.methods.supervised import Settings as ControlSettings
from handful.methods.supervised import Supervised
from handful.methods.supervised_pretrain import Settings, SupervisedPretrain
from handful.networks.unet import UNet
from test_methods import phantom_source


def network(dims: int = 3) -> UNet:
    torch.manual_seed(0)
    return UNet(dims=dims, in_channels=1, classes=3, widths=(4, 6, 8), deep_supervision=True)


@pytest.mark.parametrize("dims", [2, 3])
def test_it_minimises_the_control_s_loss_on_the_control_s_batches(dims: int) -> None:
    values: dict[str, Any] = {
        "dice_weight": 0.7, "cross_entropy_weight": 1.3, "balance": 0.2, "squared_dice": True,
        "dice_background": True, "dice_smooth": 0.5,
    }  # fmt: skip
    assert values.keys() == {field.name for field in dataclasses.fields(Settings)}
    trained = SupervisedPretrain(network(dims), Settings(**values))
    control = Supervised(network(dims), ControlSettings(**values))
    source = phantom_source(dims)
    batch, theirs = trained.batch(source), control.batch(source)
    assert torch.equal(batch.image, theirs.image)
    assert torch.equal(batch.label, theirs.label)
    output, expected = trained.step(batch, 0.5), control.step(theirs, 0.5)
    assert torch.equal(output.loss, expected.loss)
    assert torch.allclose(sum(output.terms.values(), torch.zeros(())), output.loss)
    assert dataclasses.asdict(Settings()) == dataclasses.asdict(ControlSettings())


def test_everything_but_the_heads_is_handed_over() -> None:
    trained = SupervisedPretrain(network(), Settings())
    handed = {id(p) for part in trained.exports().values() for p in part.parameters()}
    left = {name for name, p in trained.named_parameters() if id(p) not in handed}
    assert left
    assert all(name.startswith("network.heads.") for name in left)


def test_without_labels_or_parts_it_says_so() -> None:
    trained = SupervisedPretrain(network(), Settings())
    with pytest.raises(DataError, match="no cases to draw from"):
        trained.batch(dataclasses.replace(phantom_source(3), labelled=[]))
    with pytest.raises(UsageError, match="a network in two parts"):
        SupervisedPretrain(nn.Conv3d(1, 3, 1), Settings())
    with pytest.raises(UsageError, match="nothing would be learnt"):
        Settings(dice_weight=0.0, cross_entropy_weight=0.0)
