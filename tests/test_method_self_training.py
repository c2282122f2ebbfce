"""Laws of online self-training: when labels alone count, whose labels count then, and where."""

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from handful.data.augment.settings import AugmentSettings
from handful.errors import UsageError
from handful.losses.pseudo_label import pseudo_label
from handful.methods.self_training import Batch, SelfTraining, Settings
from handful.methods.supervised import Settings as ControlSettings
from handful.methods.supervised import Supervised
from handful.networks.unet import UNet
from test_methods import phantom_source


def method(dims: int = 2, **settings: Any) -> SelfTraining:
    torch.manual_seed(0)
    network = UNet(dims=dims, in_channels=1, classes=3, widths=(4, 6, 8), deep_supervision=True)
    return SelfTraining(network, Settings(**settings))


def control(made: SelfTraining, image: Tensor, label: Tensor, *, progress: float) -> Tensor:
    batch = Batch(image, label, None, None)
    return Supervised(made.network, ControlSettings()).step(batch, progress).loss


@pytest.mark.parametrize("dims", [2, 3])
def test_at_first_and_without_unlabelled_cases_it_is_the_control(dims: int) -> None:
    made = method(dims, start=0.4)
    alone = dataclasses.replace(phantom_source(dims, progress=0.9), unlabelled=[])
    for source in (phantom_source(dims, progress=0.39), alone):
        batch = made.batch(source)
        assert batch.weak is None
        learnt = control(made, batch.image, batch.label, progress=0.9)
        assert torch.equal(made.step(batch, 0.9).loss, learnt)
    assert made.batch(phantom_source(dims, progress=0.4)).weak is not None


def test_pseudo_labels_weigh_nothing_when_they_begin_and_all_when_their_ramp_ends() -> None:
    made = method(start=0.4, ramp=0.2, pseudo_weight=0.7, threshold=0.0)
    batch = made.batch(phantom_source(2))
    for progress, weight in ((0.4, 0.0), (0.5, 0.35), (0.9, 0.7)):
        alone = control(made, batch.image, batch.label, progress=progress)
        output = made.step(batch, progress)
        torch.testing.assert_close(output.loss, alone + weight * output.logs["pseudo"])


@pytest.mark.parametrize("joint", [True, False])
def test_the_student_learns_the_teachers_labels_as_it_learns_labels(joint: bool) -> None:
    made = method(threshold=0.6, joint_norm=joint)
    with torch.no_grad():
        for parameter in made.teacher.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    batch = made.batch(phantom_source(2))
    label = pseudo_label(made.teacher(batch.weak), threshold=0.6)
    assert 0 < (label == -1).float().mean() < 1
    output = made.step(batch, 1.0)
    learnt = control(made, batch.strong, label, progress=1.0)
    torch.testing.assert_close(output.terms["pseudo"], learnt)
    torch.testing.assert_close(output.logs["confident"], (label != -1).float().mean())


def test_where_the_teacher_is_not_sure_nothing_is_learnt() -> None:
    made = method(threshold=1.0)
    batch = made.batch(phantom_source(2))
    output = made.step(batch, 1.0)
    assert output.logs["confident"] == 0
    assert output.terms["pseudo"] == 0
    torch.testing.assert_close(output.loss, control(made, batch.image, batch.label, progress=1.0))


def test_the_student_sees_the_teachers_pixels_recoloured() -> None:
    source = phantom_source(2)
    batch = method().batch(source)
    assert not torch.equal(batch.weak, batch.strong)
    colours = ("p_noise", "p_blur", "p_low_resolution", "p_brightness", "p_contrast", "p_gamma")
    plain = dataclasses.replace(source, augment=AugmentSettings(**dict.fromkeys(colours, 0.0)))
    batch = method().batch(plain)
    assert torch.equal(batch.weak, batch.strong)
    assert method(recolour=False).batch(source).strong is None


def test_the_teacher_follows_quickly_at_first_and_goes_on_so_after_a_restart() -> None:
    made = method(decay=0.5)
    for number in range(8):
        if number == 4:
            other = method(decay=0.5)
            other.load_state_dict(copy.deepcopy(made.state_dict()))
            made = other
        with torch.no_grad():
            made.network.heads[0].bias.add_(1.0)
        before = made.teacher.module.heads[0].bias.clone()
        made.after_step(0.0)
        decay = min(0.5, (1 + number) / (10 + number))
        expected = decay * before + (1 - decay) * made.network.heads[0].bias
        torch.testing.assert_close(made.teacher.module.heads[0].bias, expected)


def test_counts_and_ranges() -> None:
    batch = method(labelled=5, unlabelled=1).batch(phantom_source(2))
    assert (len(batch.image), len(batch.weak)) == (5, 1)
    for wrong in ({"start": 1.5}, {"threshold": -0.1}, {"pseudo_weight": -1.0}, {"unlabelled": 0}):
        with pytest.raises(UsageError):
            Settings(**wrong)
