"""Laws of UA-MT: where the teacher is certain, how it is disturbed, and that uncertain pixels teach nothing."""

import copy
import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from handful.data.augment.noise import with_noise
from handful.errors import UsageError
from handful.methods.mean_teacher import MeanTeacher
from handful.methods.mean_teacher import Settings as MeanTeacherSettings
from handful.methods.supervised import Settings as ControlSettings
from handful.methods.supervised import Supervised
from handful.methods.uamt import UAMT, Settings
from handful.networks.unet import UNet
from test_methods import phantom_source


def network(dims: int = 2, dropout: float = 0.0) -> UNet:
    torch.manual_seed(0)
    style = {"dropout": (dropout,) * 3} if dropout else None
    return UNet(dims=dims, in_channels=1, classes=3, widths=(4, 6, 8), deep_supervision=True, style=style)


def method(dims: int = 2, dropout: float = 0.0, **settings: Any) -> UAMT:
    return UAMT(network(dims, dropout), Settings(**{"passes": 3, **settings}))


def says(made: UAMT, bias: Tensor) -> None:
    """Let the teacher say the same of every pixel, whatever it sees."""
    head = made.teacher.module.heads[0]
    nn.init.zeros_(head.weight)
    with torch.no_grad():
        head.bias.copy_(bias)


def test_without_unlabelled_cases_it_is_the_control() -> None:
    made, control = method(), Supervised(network(), ControlSettings())
    source = dataclasses.replace(phantom_source(2), unlabelled=())
    assert torch.equal(made.step(made.batch(source), 1.0).loss, control.step(control.batch(source), 1.0).loss)


def test_where_nothing_is_certain_nothing_is_followed() -> None:
    made, control = method(), Supervised(network(), ControlSettings())
    says(made, torch.zeros(3))  # entropy log 3, never below the limit
    batch = made.batch(phantom_source(2))
    for progress in (0.0, 1.0):
        output = made.step(batch, progress)
        assert output.logs["certain"].item() == output.terms["consistency"].item() == 0
        torch.testing.assert_close(output.loss, control.step(batch, progress).loss)


@pytest.mark.parametrize("sees", ["plain", "noisy"])
def test_where_all_is_certain_it_is_mean_teacher(sees: str) -> None:
    made = method(teacher_sees=sees)
    says(made, torch.tensor([9.0, 0.0, 0.0]))
    relative = MeanTeacher(network(), MeanTeacherSettings(teacher_sees=sees))
    relative.teacher = made.teacher
    batch = made.batch(phantom_source(2))
    output = made.step(batch, 0.4)
    assert output.logs["certain"].item() == 1
    assert torch.equal(output.loss, relative.step(batch, 0.4).loss)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_term_is_the_mean_over_certain_pixels(dims: int) -> None:
    made = method(dims, threshold=0.5, consistency_weight=1.0)
    made.teacher.module.heads[0].weight.mul_(3.0)  # sure of some pixels
    batch = made.batch(phantom_source(dims))
    generator = torch.Generator().manual_seed(batch.seed)
    passes = [with_noise(batch.teacher, 0.1, generator=generator) for _ in range(3)]
    mean = torch.stack([made.teacher(image).softmax(1) for image in passes]).mean(0)
    spread = torch.distributions.Categorical(probs=mean.movedim(1, -1)).entropy()
    certain = spread < (0.5 + 0.5 * math.exp(-5 * 0.9**2)) * math.log(3)
    assert 0.02 < certain.float().mean() < 0.98
    difference = (made.network(batch.student).softmax(1) - made.teacher(batch.teacher).softmax(1)).square()
    output = made.step(batch, 0.1)
    torch.testing.assert_close(output.logs["certain"], certain.float().mean())
    torch.testing.assert_close(output.logs["consistency"], difference.mean(1)[certain].mean())


def test_the_limit_rises_to_the_entropy_of_not_knowing() -> None:
    assert method().limit(0, classes=4) == pytest.approx((0.75 + 0.25 * math.exp(-5)) * math.log(4))
    assert method().limit(1, classes=4) == pytest.approx(math.log(4))
    assert method(threshold_classes=2).limit(1, classes=4) == pytest.approx(math.log(2))
    limits = [method().limit(step / 10, classes=2) for step in range(11)]
    assert limits == sorted(limits)


def test_dropout_disturbs_the_passes_while_training_and_never_the_target() -> None:
    made = method(dropout=0.5, noise=0.0).train()
    image = phantom_source(2).view(phantom_source(2).draw_labelled(2)).image
    torch.manual_seed(1)
    first = made.mean_answer(image, seed=0)
    assert not torch.allclose(first, made.mean_answer(image, seed=0))  # other draws of dropout
    torch.manual_seed(1)
    assert torch.equal(first, made.mean_answer(image, seed=0))
    assert torch.equal(made.teacher(image), made.teacher(image))  # the modes are put back
    settled = made.eval().mean_answer(image, seed=0)
    torch.testing.assert_close(settled, made.teacher(image).softmax(1))


def test_noise_alone_disturbs_a_network_without_dropout_and_is_drawn_from_the_batch() -> None:
    made = method(noise=0.1)
    batch = made.batch(phantom_source(2))
    first = made.mean_answer(batch.disturbed, seed=batch.seed)
    assert torch.equal(first, made.mean_answer(batch.disturbed, seed=batch.seed))
    assert not torch.equal(first, made.mean_answer(batch.disturbed, seed=batch.seed + 1))
    torch.testing.assert_close(first.sum(1), torch.ones_like(first[:, 0]))
    other = made.batch(phantom_source(2, step=1))
    assert other.seed != batch.seed
    with pytest.raises(UsageError, match="3 passes would all be alike"):
        method(noise=0.0)
    method(noise=0.0, passes=1)


def test_the_noisy_target_is_disturbed_on_its_own() -> None:
    batch = method(teacher_sees="noisy", noise=0.1).batch(phantom_source(2))
    assert torch.equal(batch.disturbed, batch.student)
    assert 0.19 < (batch.teacher - batch.student).abs().max() < 0.2 + 1e-5
    generator = torch.Generator().manual_seed(batch.seed)
    assert not torch.allclose(batch.teacher, with_noise(batch.student, 0.1, generator=generator), atol=0.01)


def test_the_teacher_follows_and_counts_on_after_a_pause() -> None:
    made = method(decay=0.75)
    for parameter in made.network.parameters():
        parameter.data.add_(0.1)
    made.teacher.followed = 1000
    before = copy.deepcopy(made.teacher.module)
    made.step(made.batch(phantom_source(2)), 0.5).loss.backward()
    assert all(parameter.grad is None for parameter in made.teacher.parameters())
    made.after_step(0.5)
    student = dict(made.network.named_parameters())
    for (name, new), old in zip(made.teacher.module.named_parameters(), before.parameters()):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * student[name])
    resumed = method(decay=0.75)
    resumed.load_state_dict(made.state_dict())
    assert resumed.teacher.followed == 1001


def test_impossible_settings_say_what_is_allowed() -> None:
    for wrong in (
        {"passes": 0},
        {"threshold": 1.5},
        {"noise": -0.1},
        {"threshold_classes": 1},
        {"labelled": 0},
    ):
        with pytest.raises(UsageError, match=r"must be"):
            Settings(**wrong)
