"""Laws of the teacher."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from handful.networks.teacher import Teacher, warmed_up
from handful.networks.unet import UNet


def student(*, seed: int = 0) -> UNet:
    torch.manual_seed(seed)
    return UNet(dims=2, in_channels=1, classes=3, widths=(4, 6), norm="batch", style={"dropout": (0.5, 0.5)})


def moved(network: nn.Module) -> nn.Module:
    """Change every parameter and buffer."""
    network(torch.randn(3, 1, 8, 12))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))
    return network


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.99, 1.0])
def test_the_average_law_holds_for_parameters_and_floating_buffers(decay: float) -> None:
    network = student()
    teacher = Teacher(network)
    before = {name: tensor.clone() for name, tensor in teacher.module.state_dict().items()}
    moved(network)
    teacher.update(network, decay)
    seen = {True: 0, False: 0}
    for name, theirs in network.state_dict().items():
        mine = teacher.module.state_dict()[name]
        expected = decay * before[name] + (1 - decay) * theirs if theirs.is_floating_point() else theirs
        torch.testing.assert_close(mine, expected.to(mine.dtype), rtol=1e-6, atol=1e-7)
        seen[theirs.is_floating_point()] += 1
    assert seen[True] > 20
    assert seen[False] == 6


def test_repeated_updates_follow_the_closed_form() -> None:
    network = student()
    teacher = Teacher(network)
    start = next(teacher.module.parameters()).clone()
    moved(network)
    for _ in range(7):
        teacher.update(network, 0.9)
    end = next(network.parameters())
    torch.testing.assert_close(next(teacher.module.parameters()), end + 0.9**7 * (start - end))


def test_the_teacher_shares_no_memory_and_receives_no_gradient() -> None:
    network = student()
    teacher = Teacher(network)
    mine = {tensor.data_ptr() for tensor in teacher.parameters()}
    assert not mine & {tensor.data_ptr() for tensor in network.parameters()}
    x = torch.randn(2, 1, 8, 12, requires_grad=True)
    assert not teacher(x).requires_grad
    (network(x) * teacher(x)).sum().backward()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_a_poisoned_teacher_poisons_what_it_says() -> None:
    teacher = Teacher(student())
    x = torch.randn(2, 1, 8, 12)
    assert teacher(x).isfinite().all()
    next(teacher.module.parameters()).data.fill_(torch.nan)
    assert teacher(x).isnan().any()


def test_the_teacher_stays_in_evaluation_mode_unless_told_to_follow() -> None:
    x = torch.randn(2, 1, 8, 12)
    for follow in (False, True):
        owner = nn.ModuleList([Teacher(student(), follow_mode=follow)])
        assert owner.train()[0].module.training is follow
        assert torch.equal(owner[0](x), owner[0](x)) is not follow
        assert owner.eval()[0].module.training is False


def test_the_state_makes_a_round_trip() -> None:
    teacher, other = Teacher(student()), Teacher(student(seed=1))
    x = torch.randn(2, 1, 8, 12)
    assert not torch.equal(teacher(x), other(x))
    other.load_state_dict(teacher.state_dict())
    assert torch.equal(teacher(x), other(x))


def test_another_network_or_an_impossible_decay_is_refused() -> None:
    teacher = Teacher(student())
    with pytest.raises(ValueError, match="not the same network"):
        teacher.update(nn.Linear(2, 2), 0.9)
    with pytest.raises(ValueError, match=r"\[0, 1\], found 1.1"):
        teacher.update(student(), 1.1)


def test_the_warm_up_rises_to_the_decay() -> None:
    values = [warmed_up(0.99, update) for update in range(2000)]
    assert values[0] == 0.1
    assert all(0 <= a <= b <= 0.99 for a, b in pairwise(values))
    assert values[889] < 0.99 == values[891]


def test_following_is_updating_by_the_warmed_up_decay_and_goes_on_where_it_was_saved() -> None:
    first, second = student(), student()
    followed, updated = Teacher(first), Teacher(first)
    for update in range(3):
        followed.follow(second, 0.99)
        updated.update(second, warmed_up(0.99, update))
    restored = Teacher(first)
    restored.load_state_dict(followed.state_dict())
    restored.follow(second, 0.99)
    updated.update(second, warmed_up(0.99, 3))
    assert restored.followed == 4
    for mine, theirs in zip(restored.module.parameters(), updated.module.parameters(), strict=True):
        assert torch.equal(mine, theirs)
