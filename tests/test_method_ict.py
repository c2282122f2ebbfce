"""Laws of interpolation consistency: what is mixed, what the target is, and where it meets its relatives."""

import copy
import dataclasses
from typing import Any

import pytest
import torch

from handful.data.augment.settings import AugmentSettings
from handful.errors import UsageError
from handful.losses.consistency import sigmoid_ramp
from handful.methods.ict import ICT, Settings
from handful.methods.mixup import Mixup
from handful.methods.mixup import Settings as MixupSettings
from handful.methods.supervised import Settings as ControlSettings
from handful.methods.supervised import Supervised
from handful.networks.unet import UNet
from test_methods import phantom_source

STILL = AugmentSettings(
    **{name: 0.0 for name in vars(AugmentSettings()) if name.startswith("p_")}  # quick to draw
)


def network(dims: int = 2) -> UNet:
    torch.manual_seed(0)
    return UNet(dims=dims, in_channels=1, classes=3, widths=(4, 6, 8), deep_supervision=True)


def method(dims: int = 2, **settings: Any) -> ICT:
    return ICT(network(dims), Settings(**settings))


@pytest.mark.parametrize("dims", [2, 3])
def test_without_unlabelled_cases_it_is_the_control_or_mixup(dims: int) -> None:
    source = dataclasses.replace(phantom_source(dims), unlabelled=())
    made, control = method(dims), Supervised(network(dims), ControlSettings())
    assert torch.equal(made.step(made.batch(source), 1.0).loss, control.step(control.batch(source), 1.0).loss)
    mixing, mixup = method(dims, labelled_alpha=0.4), Mixup(network(dims), MixupSettings(alpha=0.4))
    batch = mixing.batch(source)
    assert 0 < batch.labelled_share < 1
    assert torch.equal(mixing.step(batch, 1.0).loss, mixup.step(mixup.batch(source), 1.0).loss)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_term_is_the_difference_to_the_mixed_predictions(dims: int) -> None:
    made = method(dims, consistency_weight=3.0, ramp=0.5, unlabelled=4)
    for parameter in made.teacher.parameters():
        parameter.add_(0.02)  # a teacher of its own
    control = Supervised(copy.deepcopy(made.network), ControlSettings())
    batch = made.batch(phantom_source(dims))
    assert batch.share.shape == (2,)
    errors = []
    for pair in range(2):
        share, first, second = batch.share[pair], pair, pair + 2
        mixture = share * batch.student[first] + (1 - share) * batch.student[second]
        said = [made.teacher(batch.teacher[i : i + 1]).softmax(1) for i in (first, second)]
        target = share * said[0] + (1 - share) * said[1]
        errors.append((made.network(mixture[None]).softmax(1) - target).square().mean())
    expected = torch.stack(errors).mean()
    output = made.step(batch, 0.2)
    torch.testing.assert_close(output.logs["consistency"], expected)
    weight = 3 * sigmoid_ramp(0.2, length=0.5)
    torch.testing.assert_close(output.loss, control.step(batch, 0.2).loss + weight * expected)


@pytest.mark.parametrize(("share", "kept"), [(1.0, slice(0, 2)), (0.0, slice(2, 4))])
def test_all_of_one_image_is_plain_consistency_of_that_image(share: float, kept: slice) -> None:
    made = method(unlabelled=4)
    batch = made.batch(phantom_source(2))
    found = made.step(batch._replace(share=torch.full((2,), share)), 1.0).logs["consistency"]
    student = made.network(batch.student[kept]).softmax(1)
    teacher = made.teacher(batch.teacher[kept]).softmax(1)
    torch.testing.assert_close(found, (student - teacher).square().mean())


def test_a_network_that_says_the_same_of_everything_interpolates() -> None:
    made = method()
    for head in (made.network.heads[0], made.teacher.module.heads[0]):
        torch.nn.init.zeros_(head.weight)
    assert made.step(made.batch(phantom_source(2)), 1.0).logs["consistency"].item() < 1e-12


def test_views_pairs_and_shares_are_as_set() -> None:
    source = phantom_source(2)
    batch = method().batch(source)
    assert batch.student.shape[0] == 4  # the plan's batch is 3: one more, for pairs
    assert not torch.equal(batch.student, batch.teacher)
    same = method(teacher_sees="same").batch(source)
    assert torch.equal(same.student, same.teacher)
    assert torch.equal(same.student, batch.student)
    many = dataclasses.replace(source, augment=STILL)
    hardly = method(alpha=0.01, unlabelled=60).batch(many).share
    evenly = method(alpha=50.0, unlabelled=60).batch(many).share
    assert ((hardly < 0.05) | (hardly > 0.95)).float().mean() > 0.9
    assert (hardly > 0.5).any()
    assert (hardly < 0.5).any()
    assert (evenly - 0.5).abs().max() < 0.3


def test_the_teacher_follows_without_gradient_and_counts_on_after_a_pause() -> None:
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


def test_what_cannot_be_paired_is_refused() -> None:
    with pytest.raises(UsageError, match="must be even, found 3"):
        Settings(unlabelled=3)
    with pytest.raises(UsageError, match="alpha must be positive"):
        Settings(alpha=0.0)
    with pytest.raises(UsageError, match=r"--set method\.labelled=2"):
        method(labelled_alpha=1.0, labelled=1).batch(phantom_source(2))
