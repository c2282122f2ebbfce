"""Laws of the probe: what it can and cannot tell apart, what it looks at, and when to stop."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from handful.data.preprocess import IGNORED_VOXEL
from handful.data.sampling import StoredCase, foreground_voxels
from handful.errors import UsageError
from handful.training.probe import Stopper, probe
from test_methods import made, phantom_source


class Copies(nn.Module):
    """An encoder of two levels: the image itself, and its means over boxes of 2."""

    def forward(self, image: Tensor) -> list[Tensor]:
        pool = nn.functional.avg_pool2d if image.ndim == 4 else nn.functional.avg_pool3d
        return [image, pool(image, 2)]


class Numbers(nn.Module):
    """A decoder whose finest map is a constant."""

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [torch.ones_like(maps[0])]


class Unreadable:
    """A label that must not be looked at."""

    shape = (12, 18, 15)

    def __getitem__(self, box: Any) -> Tensor:
        raise AssertionError("a label was read")


def case(
    seed: int, *, channels: int = 3, told: bool = True, shape: tuple[int, ...] = (12, 18, 15)
) -> StoredCase:
    """Two boxes on background; with ``told`` channel k is bright where the class is k, otherwise all is noise."""
    rng = np.random.default_rng(seed)
    label = np.zeros(shape, dtype=np.uint8)
    label[2:8, 3 + seed : 12, 2:9] = 1
    label[5:11, 10:17, 6:13] = 2
    image = 0.1 * rng.normal(size=(channels, *shape)).astype(np.float32)
    if told:
        image += label[None] == np.arange(channels)[:, None, None, None]
    return StoredCase(
        f"c{seed}", torch.from_numpy(image), torch.from_numpy(label), foreground_voxels(label, 3), (1.5, 1, 1)
    )


def look(
    cases: Sequence[StoredCase], exports: dict[str, nn.Module] | None = None, *, dims: int = 3, **changes: Any
) -> float | None:
    settings = {
        "patch": (8, 16, 12)[3 - dims :], "classes": 3, "device": torch.device("cpu"), "seed": 0, **changes
    }  # fmt: skip
    return probe(exports or {"encoder": Copies()}, cases, **settings)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("count", [1, 3])
def test_features_that_are_the_class_tell_everything_and_noise_nothing(dims: int, count: int) -> None:
    assert look([case(i) for i in range(count)], dims=dims) > 0.99
    noise = look([case(i, told=False) for i in range(count)], dims=dims)
    assert noise == pytest.approx(1 / 3, abs=0.12)
    constant = look([case(i) for i in range(count)], {"encoder": Copies(), "decoder": Numbers()}, dims=dims)
    assert constant == pytest.approx(1 / 3)  # the decoder's map is used, and it says nothing


def test_classes_count_alike_however_small_they_are() -> None:
    """Class 2 looks like background: its voxels are told wrongly or half of the background's are."""
    cases = [case(i) for i in range(3)]
    for one in cases:
        one.image[2] = 0.0
        one.image[0][one.label == 2] = 1.0
    assert look(cases, voxels=200) == pytest.approx(2 / 3, abs=0.08)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_level_is_read_as_if_enlarged(dims: int) -> None:
    """Coarse levels alone give what the same maps enlarged by repetition give."""

    class Coarse(nn.Module):
        def forward(self, image: Tensor) -> list[Tensor]:
            return [Copies()(image)[1]]

    class Enlarged(nn.Module):
        def forward(self, image: Tensor) -> list[Tensor]:
            return [nn.functional.interpolate(Copies()(image)[1], size=image.shape[2:], mode="nearest")]

    cases = [case(i) for i in range(2)]
    coarse = look(cases, {"encoder": Coarse()}, dims=dims)
    assert coarse == look(cases, {"encoder": Enlarged()}, dims=dims)
    assert 0.5 < coarse < 1


def test_a_probe_is_a_function_of_its_seed_and_leaves_everything_as_it_was() -> None:
    method = made("pcl", 3).train()
    method.encoder.levels[0].eval()  # a part somebody froze
    exports, cases = method.exports(), phantom_source(3).labelled
    modes = [module.training for module in method.modules()]
    weights = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    torch.manual_seed(5)
    following = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (look(cases, exports, seed=seed, voxels=20) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), following)
    assert first == again
    assert first != other
    assert 0 < first <= 1
    assert [module.training for module in method.modules()] == modes
    assert all(torch.equal(tensor, weights[name]) for name, tensor in method.state_dict().items())
    assert all(p.grad is None for p in method.parameters())


def test_the_decoder_of_a_network_is_used() -> None:
    network = made("supervised", 2).exports()["segmenter"]
    parts = {"encoder": network.encoder, "decoder": network.decoder}
    cases = phantom_source(2).labelled
    assert look(cases, parts, dims=2) != look(cases, {"encoder": network.encoder}, dims=2)


def test_only_the_labelled_cases_given_are_looked_at() -> None:
    cases = [case(i) for i in range(2)]
    hidden = replace(case(3, told=False), label=None, foreground=())
    assert look([*cases, hidden]) == look(cases)
    assert look([hidden]) is None
    assert look([]) is None
    with pytest.raises(AssertionError, match="a label was read"):
        look([replace(cases[0], label=Unreadable())])


def test_unknown_voxels_are_left_out() -> None:
    cases = [case(i) for i in range(3)]
    for one in cases:
        one.label[one.label == 2] = IGNORED_VOXEL
        one.image[:, one.label == IGNORED_VOXEL] = 50.0
    known = [replace(one, foreground=one.foreground[:1]) for one in cases]
    assert look(known) > 0.99  # background against class 1


def test_a_class_that_no_other_case_has_is_not_scored() -> None:
    cases = [case(i) for i in range(3)]
    for one in cases[1:]:
        one.image[:, one.label == 2] = one.image[:, one.label == 0][:, :1]
        one.label[one.label == 2] = 0
    known = [cases[0], *(replace(one, foreground=one.foreground[:1]) for one in cases[1:])]
    assert look(known) > 0.99
    background = [replace(one, label=torch.zeros_like(one.label), foreground=()) for one in cases]
    assert look(background) is None


def test_one_case_is_halved_into_slabs() -> None:
    """A structure within one slab is in one half only: there is no other half to tell it by."""
    one = case(0)
    one.label[one.label > 0] = 0
    one.label[3:5, 8:9, 4:6] = 1  # slabs are 16 // 8 voxels thick along the longest side
    thin = replace(one, foreground=foreground_voxels(one.label.numpy(), 3))
    assert look([thin], classes=2) is None
    one.label[3:5, 8:12, 4:6] = 1
    assert look([replace(thin, foreground=foreground_voxels(one.label.numpy(), 3))], classes=2) is not None


def test_a_probe_says_what_it_needs() -> None:
    with pytest.raises(UsageError, match="exports segmenter"):
        look([case(0)], {"segmenter": Copies()})
    with pytest.raises(UsageError, match="found 0"):
        look([case(0)], voxels=0)


def test_the_stopper_waits_for_a_better_probe() -> None:
    stopper = Stopper(patience=2)
    assert [stopper.add(score) for score in (0.4, 0.3, 0.35, 0.5, 0.5, 0.1)] == [False] * 6
    assert not stopper.add(None)
    assert stopper.add(0.49)
    assert stopper.best == 0.5
    assert not stopper.add(0.6)  # whoever went on after all
    with pytest.raises(UsageError, match="at least one"):
        Stopper(patience=0)


def test_a_resumed_stopper_stops_where_the_other_would() -> None:
    scores = [0.4, 0.6, 0.5, 0.5, 0.5]
    whole = Stopper(patience=2)
    verdicts = [whole.add(score) for score in scores]
    first, second = Stopper(patience=2), Stopper(patience=2)
    early = [first.add(score) for score in scores[:3]]
    second.load_state_dict(first.state_dict())
    assert early + [second.add(score) for score in scores[3:]] == verdicts
    assert verdicts[-1]
