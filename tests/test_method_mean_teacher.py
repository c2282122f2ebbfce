"""Laws of Mean Teacher: what the two views show, what the term is, and that the teacher only follows."""

import copy
import dataclasses
from typing import Any

import pytest
import torch

from handful.data.augment.settings import AugmentSettings
from handful.errors import UsageError
from handful.losses.consistency import sigmoid_ramp
from handful.methods.mean_teacher import MeanTeacher, Settings
from handful.methods.supervised import Settings as ControlSettings
from handful.methods.supervised import Supervised
from handful.networks.unet import UNet
from test_methods import phantom_source

COLOURS = ("p_noise", "p_blur", "p_low_resolution", "p_brightness", "p_contrast", "p_gamma")


def network(dims: int = 2, norm: str = "instance") -> UNet:
    torch.manual_seed(0)
    return UNet(dims=dims, in_channels=1, classes=3, widths=(4, 6, 8), deep_supervision=True, norm=norm)


def method(dims: int = 2, norm: str = "instance", **settings: Any) -> MeanTeacher:
    return MeanTeacher(network(dims, norm), Settings(**settings))


@pytest.mark.parametrize("dims", [2, 3])
def test_without_unlabelled_cases_it_is_the_control(dims: int) -> None:
    made, control = method(dims), Supervised(network(dims), ControlSettings())
    source = dataclasses.replace(phantom_source(dims), unlabelled=())
    batch, theirs = made.batch(source), control.batch(source)
    assert torch.equal(batch.image, theirs.image)
    assert torch.equal(batch.label, theirs.label)
    output = made.step(batch, 0.7)
    assert torch.equal(output.loss, control.step(theirs, 0.7).loss)
    assert "consistency" not in output.logs


@pytest.mark.parametrize(("norm", "joint"), [("instance", True), ("instance", False), ("batch", False)])
def test_the_loss_is_the_control_s_and_the_ramped_squared_difference(norm: str, joint: bool) -> None:
    made = method(norm=norm, joint_norm=joint, consistency_weight=3.0, ramp=0.5, labelled=2, unlabelled=4)
    control = Supervised(copy.deepcopy(made.network), ControlSettings())
    batch = made.batch(phantom_source(2))
    assert batch.image.shape[0] == 2
    assert batch.student.shape[0] == batch.teacher.shape[0] == 4
    for progress in (0.0, 0.2, 0.9):
        student = copy.deepcopy(made.network)(batch.student).softmax(1)
        difference = (student - made.teacher(batch.teacher).softmax(1)).square().mean()
        expected = control.step(batch, progress).loss + 3 * sigmoid_ramp(progress, length=0.5) * difference
        output = made.step(batch, progress)
        torch.testing.assert_close(output.loss, expected)
        torch.testing.assert_close(output.logs["consistency"], difference)
        torch.testing.assert_close(torch.stack(list(output.terms.values())).sum(), output.loss)


def test_together_in_batch_norm_unlabelled_images_change_what_is_said_of_labelled_ones() -> None:
    batch = method().batch(phantom_source(2))
    said = [
        method(norm="batch", joint_norm=joint).step(batch, 0).logs["dice_loss"] for joint in (True, False)
    ]
    alone = Supervised(network(norm="batch"), ControlSettings()).step(batch, 0).logs["dice_loss"]
    assert torch.equal(said[1], alone)
    assert not torch.allclose(said[0], alone)


def test_a_student_that_is_its_teacher_and_sees_the_same_has_nothing_to_learn_from_it() -> None:
    made = method()
    batch = made.batch(phantom_source(2))
    assert made.step(batch._replace(teacher=batch.student), 1.0).logs["consistency"].item() < 1e-12
    assert made.step(batch, 1.0).logs["consistency"].item() > 1e-6


@pytest.mark.parametrize("dims", [2, 3])
def test_both_views_show_the_same_pixels(dims: int) -> None:
    source = phantom_source(dims)
    colourless = dataclasses.replace(source, augment=AugmentSettings(**dict.fromkeys(COLOURS, 0.0)))
    plain, still = method(dims).batch(source), method(dims).batch(colourless)
    assert torch.equal(still.student, still.teacher)
    assert torch.equal(
        plain.teacher, still.teacher
    )  # the teacher's is never recoloured, and geometry is shared
    assert not torch.equal(plain.student, plain.teacher)

    noisy = method(dims, teacher_sees="noisy", noise=0.1).batch(source)
    assert torch.equal(noisy.student, plain.student)
    noise = (noisy.teacher - noisy.student).abs()
    assert 0.19 < noise.max() < 0.2 + 1e-5
    other = method(dims, teacher_sees="noisy").batch(dataclasses.replace(source, step=1))
    assert not torch.allclose(other.teacher - other.student, noisy.teacher - noisy.student, atol=1e-3)


def test_the_teacher_follows_without_gradient_quickly_at_first_and_counts_on_after_a_pause() -> None:
    made = method(decay=0.2)
    for parameter in made.network.parameters():
        parameter.data.add_(0.1)
    made.step(made.batch(phantom_source(2)), 0.5).loss.backward()
    assert all(parameter.grad is None for parameter in made.teacher.parameters())
    for decay in (0.1, 2 / 11, 0.2):  # (1 + n) / (10 + n), then the setting
        before = copy.deepcopy(made.teacher.module)
        made.after_step(0.5)
        student = dict(made.network.named_parameters())
        for (name, new), old in zip(made.teacher.module.named_parameters(), before.parameters()):
            torch.testing.assert_close(new, decay * old + (1 - decay) * student[name])
        resumed = method(decay=0.2)
        resumed.load_state_dict(made.state_dict())
        assert resumed.teacher.followed == made.teacher.followed


def test_a_training_teacher_drops_as_its_student_does() -> None:
    for trains in (False, True):
        made = method(teacher_trains=trains).train()
        assert {layer.training for layer in made.teacher.module.modules()} == {trains}


def test_impossible_settings_say_what_is_allowed() -> None:
    for wrong in (
        {"consistency_weight": -1.0},
        {"ramp": 2.0},
        {"decay": 1.5},
        {"labelled": 0},
        {"balance": 2},
    ):
        with pytest.raises(UsageError, match=r"must be"):
            Settings(**wrong)
