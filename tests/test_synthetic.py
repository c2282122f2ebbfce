"""Laws of synthetic cases: the label fits the image, nothing beyond the volume is claimed, a run makes them once."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from handful.artefacts import read_json
from handful.data.phantom import make_phantom
from handful.data.preprocess import IGNORED_VOXEL
from handful.data.sampling import SamplingSettings, StoredCase, foreground_voxels
from handful.data.synthetic import choose_pairs, synthetic_cases
from handful.errors import RunError, UsageError
from handful.training import synthetic as training_synthetic
from handful.training.loop import LoopSettings
from handful.training.recipe import resolve
from handful.training.run import train


def ball(
    name: str, *, size: tuple[int, int, int] = (16, 24, 20), centre: tuple[float, float, float] = (8, 12, 10),
    radius: tuple[float, float, float] = (4, 7, 5), labelled: bool = True,
) -> StoredCase:  # fmt: skip
    """A case whose image shows an ellipsoid of class 1 with a core of class 2, smooth at the borders."""
    grid = torch.stack(torch.meshgrid(*[torch.arange(s).float() for s in size], indexing="ij"))
    middle, axes = (torch.tensor(x).float().view(3, 1, 1, 1) for x in (centre, radius))
    away = ((grid - middle) / axes).square().sum(0).sqrt()
    label = (away < 1).to(torch.uint8) + (away < 0.5).to(torch.uint8)
    image = F.avg_pool3d(label[None, None].float(), 3, stride=1, padding=1, count_include_pad=False)[0]
    return StoredCase(
        name, image, label if labelled else None, foreground_voxels(label.numpy(), 3), (1.0, 1.0, 1.0)
    )


def dice(a: Tensor, b: Tensor) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.fixture(scope="module")
def other() -> StoredCase:
    return ball("other", centre=(7, 13, 9), radius=(5, 5, 7), labelled=False)


@pytest.fixture(scope="module")
def made(other: StoredCase) -> StoredCase:
    return synthetic_cases(choose_pairs([ball("known")], [other], 1, seed=0), classes=3)[0]


def test_the_label_fits_the_image(made: StoredCase) -> None:
    label, image = made.label[:, :, :], made.image[:, :, :, :][0]
    known = label != IGNORED_VOXEL
    assert known.float().mean() > 0.7  # the other is narrower: its grid reaches beyond the labelled volume
    assert dice((image > 0.5) & known, (label >= 1) & known) > 0.93
    assert dice((image > 1.5) & known, (label == 2) & known) > 0.8


def test_it_has_the_other_shape(made: StoredCase, other: StoredCase) -> None:
    shown = other.image[:, :, :, :][0] > 0.5
    found, before = made.label[:, :, :], ball("known").label[:, :, :]
    assert dice((found == 1) | (found == 2), shown) > dice(before > 0, shown) + 0.05
    assert made.name == "known as other"
    assert made.image.shape == other.image.shape


def test_beyond_the_labelled_volume_nothing_is_known() -> None:
    small, large = ball("small", size=(16, 24, 12), centre=(8, 12, 6)), ball("large", labelled=False)
    made = synthetic_cases(choose_pairs([small], [large], 1, seed=0), classes=3)
    label = made[0].label[:, :, :]
    assert label.shape == (16, 24, 20)
    assert (label[:, :, 0] == IGNORED_VOXEL).all()
    assert (label[:, :, -1] == IGNORED_VOXEL).all()
    assert (label[:, 12, 10] != IGNORED_VOXEL).any()


def test_unknown_voxels_stay_unknown(other: StoredCase) -> None:
    known = ball("known")
    label = known.label[:, :, :].clone()
    label[:, :8] = IGNORED_VOXEL
    half = StoredCase("half", known.image, label, foreground_voxels(label.numpy(), 3), known.spacing_mm)
    made = synthetic_cases(choose_pairs([half], [other], 1, seed=0), classes=3)[0]
    assert (made.label[:, :4, :] == IGNORED_VOXEL).float().mean() > 0.9


def test_a_structure_that_is_lost_fails_the_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = ball("tiny", radius=(2.5, 2.5, 2.5), labelled=False)
    pairs = choose_pairs([ball("known")], [tiny], 1, seed=0)
    assert len(synthetic_cases(pairs, classes=3)) == 1
    monkeypatch.setattr("handful.data.synthetic.KEPT_VOLUME", (0.9, 1.1))
    assert synthetic_cases(pairs, classes=3) == []


def test_many_at_once_are_each_alone(other: StoredCase) -> None:
    others = [other, ball("third", radius=(6, 6, 4), size=(14, 26, 18), labelled=False)]
    pairs = choose_pairs([ball("known")], others, 2, seed=0)
    together = synthetic_cases(pairs, classes=3)
    assert [case.image.shape[1:] for case in together] == [pair.fixed.image.shape[1:] for pair in pairs]


@pytest.mark.parametrize(("known", "unknown"), [(1, 5), (2, 5), (3, 4), (4, 0)])
def test_pairs_are_spread_evenly_and_none_comes_twice(known: int, unknown: int) -> None:
    labelled, others = [ball(f"l{n}") for n in range(known)], [ball(f"u{n}") for n in range(unknown)]
    every = choose_pairs(labelled, others, 1000, seed=3)
    names = [(pair.moving.name, pair.fixed.name) for pair in every]
    assert len(names) == len(set(names)) == known * unknown
    assert names == [(p.moving.name, p.fixed.name) for p in choose_pairs(labelled, others, 1000, seed=3)]
    if unknown:
        first = names[:unknown]
        assert len({fixed for _, fixed in first}) == unknown
        counts = np.bincount([int(moving[1:]) for moving, _ in first], minlength=known)
        assert counts.max() - counts.min() <= 1


def test_large_volumes_make_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    others = [ball(f"u{n}", labelled=False) for n in range(4)]
    monkeypatch.setattr("handful.data.synthetic.KEPT_VOXELS", 3 * 16 * 24 * 20)
    assert len(choose_pairs([ball("known")], others, 4, seed=0)) == 3


def test_a_run_makes_them_once_and_ends_the_same(phantom_folder: Path, tmp_path: Path) -> None:
    settings = ("sampling.synthetic=3", "sampling.synthetic_steps=1", "plan.dims=2", "pretrain=null")
    common: dict[str, object] = {
        "method": "auto", "labels": "2", "steps": 3, "set_": settings, "device": "cpu", "threads": 1,
    }  # fmt: skip
    train(phantom_folder, tmp_path / "a", **common)  # type: ignore[arg-type]
    assert re.search(r"made \d of 3 in", (tmp_path / "a" / "log.txt").read_text())
    assert read_json(tmp_path / "a" / "manifest.json")["synthetic_seconds"] > 0
    assert not (tmp_path / "a" / "synthetic.safetensors").exists()
    plain = tmp_path / "b"
    train(phantom_folder, plain, **common | {"set_": ("sampling.synthetic=0", *settings[2:])})  # type: ignore[arg-type]
    mine, theirs = (load_file(run / "weights.safetensors") for run in (tmp_path / "a", plain))
    assert any(not torch.equal(mine[name], theirs[name]) for name in mine)


def test_without_unlabelled_cases_the_house_recipe_is_the_control(tmp_path: Path) -> None:
    data = make_phantom(
        tmp_path / "Phantom",
        patients=4,
        unlabelled=0,
        held_out=1,
        size=(26, 22, 18),
        spacing_mm=(3.0, 3.2, 4.5),
    )
    runs = []
    for method in ("auto", "supervised"):
        run = train(
            data, tmp_path / method, method=method, steps=3, set_=("plan.dims=2",), threads=1, device="cpu",
            quiet=True,
        )  # fmt: skip
        assert read_json(run / "manifest.json")["cases"]["unlabelled"] == []
        runs.append(load_file(run / "weights.safetensors"))
    mine, theirs = runs
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_registrations_are_part_of_the_time(
    phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = []

    def fit(*_: object, settings: LoopSettings, **__: object) -> None:
        limits.append(settings.max_time_s)
        raise RunError("enough")

    monkeypatch.setattr("handful.training.run.fit", fit)
    for name, took in (("short", 10.0), ("long", 90.0)):
        cases = "handful.training.run.with_synthetic"
        monkeypatch.setattr(cases, lambda labelled, *_, took=took, **__: (list(labelled), took))
        with pytest.raises(RunError, match="enough"):
            train(
                phantom_folder, tmp_path / name, method="auto", labels="1", max_time="100s", threads=1, device="cpu",
                quiet=True,
            )  # fmt: skip
    assert limits == [90.0, 50.0]


@pytest.mark.parametrize(
    ("asked", "every", "steps", "count"),
    [
        (64, 30, 2000, 64),
        (64, 30, 600, 20),
        (64, 30, 10, 1),
        (64, 0, 10, 64),
        (5, 30, 600, 5),
        (64, 30, None, 64),
    ],
)
def test_a_short_run_makes_fewer(asked: int, every: int, steps: int | None, count: int) -> None:
    settings = SamplingSettings(synthetic=asked, synthetic_steps=every)
    loop = LoopSettings(steps=steps, max_time_s=None if steps else 60)
    assert training_synthetic._count(settings, loop, 2) == count
    few = replace(settings, synthetic_up_to=3)
    assert [training_synthetic._count(few, loop, labelled) for labelled in (3, 4)] == [count, 0]


def test_no_registration_begins_when_the_time_is_over() -> None:
    pairs = choose_pairs([ball("known")], [ball(f"u{n}", labelled=False) for n in range(3)], 3, seed=0)
    assert synthetic_cases(pairs, classes=3, seconds=0) == []


@pytest.mark.parametrize(
    "setting", ["sampling.synthetic=-1", "sampling.synthetic_share=1", "sampling.foreground=2"]
)
def test_settings_out_of_range_are_refused(setting: str) -> None:
    with pytest.raises(UsageError, match="synthetic_share"):
        resolve("supervised", assignments=[setting], default_steps=10)


def test_a_run_that_goes_on_reads_what_its_first_start_made(
    phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common: dict[str, object] = {
        "method": "auto", "labels": "2", "steps": 2, "set_": ("sampling.synthetic=2", "plan.dims=2"),
        "device": "cpu", "threads": 1, "quiet": True,
    }  # fmt: skip
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(phantom_folder, whole, **common)  # type: ignore[arg-type]

    def stopped(*_: object, **__: object) -> None:
        raise RunError("stopped before its first step")

    with monkeypatch.context() as patched:
        patched.setattr("handful.training.run.fit", stopped)
        with pytest.raises(RunError, match="before its first step"):
            train(phantom_folder, broken, **common)  # type: ignore[arg-type]
    assert (broken / "synthetic.safetensors").exists()
    monkeypatch.setattr("handful.training.synthetic.synthetic_cases", stopped)
    train(phantom_folder, broken, **common)  # type: ignore[arg-type]
    mine, theirs = (load_file(run / "weights.safetensors") for run in (broken, whole))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
