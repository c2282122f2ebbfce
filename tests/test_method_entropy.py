"""Laws of entropy minimisation: what is measured where, and that it makes predictions surer."""

import copy
import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from handful.errors import UsageError
from handful.losses.consistency import sigmoid_ramp
from handful.methods.entropy import Entropy, Settings
from handful.methods.supervised import Settings as ControlSettings
from handful.methods.supervised import Supervised
from handful.networks.unet import UNet
from test_methods import phantom_source


def network(dims: int = 2) -> UNet:
    torch.manual_seed(0)
    return UNet(dims=dims, in_channels=1, classes=3, widths=(4, 6, 8), deep_supervision=True)


def method(dims: int = 2, **settings: Any) -> Entropy:
    return Entropy(network(dims), Settings(**settings))


def entropy(logits: Tensor) -> Tensor:
    return torch.distributions.Categorical(logits=logits.movedim(1, -1)).entropy().mean() / math.log(3)


@pytest.mark.parametrize("dims", [2, 3])
def test_without_unlabelled_cases_it_is_the_control(dims: int) -> None:
    for labelled_too in (False, True):
        made, control = method(dims, labelled_too=labelled_too), Supervised(network(dims), ControlSettings())
        source = dataclasses.replace(phantom_source(dims), unlabelled=())
        assert torch.equal(
            made.step(made.batch(source), 1.0).loss, control.step(control.batch(source), 1.0).loss
        )


@pytest.mark.parametrize("labelled_too", [False, True])
def test_the_loss_is_the_control_s_and_the_ramped_entropy(labelled_too: bool) -> None:
    made = method(labelled_too=labelled_too, entropy_weight=2.0, ramp=0.5, unlabelled=5)
    batch = made.batch(phantom_source(2))
    assert batch.unlabelled.shape[0] == 5
    looked_at = [batch.image, batch.unlabelled] if labelled_too else [batch.unlabelled]
    expected = entropy(made.network(torch.cat(looked_at)))
    control = Supervised(copy.deepcopy(made.network), ControlSettings())
    for progress in (0.0, 0.3, 1.0):
        output = made.step(batch, progress)
        weight = 2 * sigmoid_ramp(progress, length=0.5)
        torch.testing.assert_close(output.logs["entropy"], expected)
        torch.testing.assert_close(output.loss, control.step(batch, progress).loss + weight * expected)


def test_a_network_that_knows_nothing_has_all_entropy_and_following_the_term_leaves_less() -> None:
    made = method()
    batch = made.batch(phantom_source(2))
    torch.nn.init.zeros_(made.network.heads[0].weight)
    torch.nn.init.zeros_(made.network.heads[0].bias)
    assert made.step(batch, 1.0).logs["entropy"].item() == pytest.approx(1.0)

    made = method()
    before = made.step(batch, 1.0)
    parameters = list(made.parameters())
    gradients = torch.autograd.grad(before.terms["entropy"], parameters, allow_unused=True)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients):
            if gradient is not None:
                parameter -= 0.1 * gradient
    assert made.step(batch, 1.0).logs["entropy"] < before.logs["entropy"]


def test_impossible_settings_say_what_is_allowed() -> None:
    for wrong in ({"entropy_weight": -1.0}, {"ramp": 2.0}, {"unlabelled": 0}):
        with pytest.raises(UsageError, match=r"must be"):
            Settings(**wrong)
