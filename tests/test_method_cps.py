"""Laws of CPS: two beginnings, labels crossed over without gradient, boxes pasted into images and labels alike."""

import dataclasses
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from handful.errors import UsageError
from handful.losses.mixing import next_partner, paste
from handful.losses.segmentation import cross_entropy, deep_supervision
from handful.methods.cps import CPS, Settings, begun_anew
from handful.methods.supervised import Settings as ControlSettings
from handful.methods.supervised import Supervised
from handful.networks.deep import judged
from handful.networks.unet import UNet
from test_methods import phantom_source


def method(dims: int = 2, *, levels: bool = False, **settings: Any) -> CPS:
    torch.manual_seed(0)
    network = UNet(dims=dims, in_channels=1, classes=3, widths=(4, 6, 8), deep_supervision=levels)
    return CPS(network, Settings(**{"ramp": 0.0, "balance": 0.0, **settings}))


def test_the_second_network_begins_with_the_same_values_in_other_places() -> None:
    first = UNet(dims=3, in_channels=1, classes=3, widths=(4, 6, 8), style={"init": "torch"})
    second = begun_anew(first)
    differing = 0
    for (name, a), b in zip(first.named_parameters(), second.parameters()):
        assert torch.equal(a.flatten().sort().values, b.flatten().sort().values), name
        differing += not torch.equal(a, b)
        assert a.data_ptr() != b.data_ptr()
    assert differing > len(list(first.parameters())) / 3  # norms begin with equal values
    image = torch.randn(1, 1, 8, 12, 8)
    assert (first(image).argmax(1) != second(image).argmax(1)).any()


@pytest.mark.parametrize("dims", [2, 3])
def test_without_unlabelled_cases_each_network_is_the_control(dims: int) -> None:
    made = method(dims, levels=True, balance=0.5)
    batch = made.batch(dataclasses.replace(phantom_source(dims), unlabelled=[]))
    assert batch.unlabelled is None
    first, second = (
        Supervised(network, ControlSettings()).step(batch, 0.5).loss
        for network in (made.network, made.second)
    )
    torch.testing.assert_close(made.step(batch, 0.5).loss, first + second)


def gradients(network: torch.nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(network.parameters()), retain_graph=True))


@pytest.mark.parametrize("on_labelled", [True, False])
def test_each_learns_the_others_labels_and_nobody_is_taught_by_being_asked(on_labelled: bool) -> None:
    made = method(on_labelled=on_labelled, pseudo_weight=0.6)
    batch = made.batch(phantom_source(2))
    images = torch.cat([batch.image, batch.unlabelled]) if on_labelled else batch.unlabelled
    one, two = made.network(images), made.second(images)
    expected = 0.6 * F.cross_entropy(one, two.argmax(1)), 0.6 * F.cross_entropy(two, one.argmax(1))
    term = made.step(batch, 0.5).terms["pseudo"]
    torch.testing.assert_close(term, expected[0] + expected[1])
    for network, own in zip((made.network, made.second), expected):
        for found, wanted in zip(gradients(network, term), gradients(network, own)):
            torch.testing.assert_close(found, wanted)


def test_the_weight_rises_to_the_papers() -> None:
    made = method(ramp=1.0)
    batch = made.batch(phantom_source(2))
    for progress, weight in ((0.0, 1.5 * torch.tensor(-5.0).exp()), (1.0, torch.tensor(1.5))):
        output = made.step(batch, progress)
        torch.testing.assert_close(output.terms["pseudo"], weight * output.logs["pseudo"])


def test_networks_that_agree_disagree_nowhere() -> None:
    made = method()
    made.second.load_state_dict(made.network.state_dict())
    assert made.step(made.batch(phantom_source(2)), 0.5).logs["disagreement"] == 0
    assert method().step(made.batch(phantom_source(2)), 0.5).logs["disagreement"] > 0


def test_boxes_are_pasted_into_images_and_labels_alike() -> None:
    made = method(levels=True, cutmix=True, on_labelled=False, pseudo_weight=1.0, threshold=0.5)
    batch = made.batch(phantom_source(2))
    partner = next_partner(len(batch.unlabelled))
    assert 0.2 < (~batch.keep).float().mean() < 0.6
    mixed = paste(batch.unlabelled, batch.keep, partner)
    expected = torch.zeros(())
    for learner, judge in ((made.network, made.second), (made.second, made.network)):
        p, said = judged(judge, batch.unlabelled).softmax(1).max(1)
        said = paste(said.where(p >= 0.5, -1), batch.keep, partner)
        expected = expected + deep_supervision(learner.deep(mixed), said, partial(cross_entropy, balance=0.0))
    torch.testing.assert_close(made.step(batch, 0.5).terms["pseudo"], expected)


def test_wrong_settings_are_named() -> None:
    with pytest.raises(UsageError, match="at least 2"):
        method(cutmix=True, unlabelled=1).batch(phantom_source(2))
    for wrong in ({"ramp": 2.0}, {"threshold": 1.1}, {"pseudo_weight": -1.0}, {"labelled": 0}):
        with pytest.raises(UsageError):
            Settings(**wrong)
