"""Weights kept on the way: at even points, changing nothing, the same bits when a run was interrupted."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from handful.artefacts import read_yaml
from handful.data.cases import Dataset
from handful.data.discover import open_dataset
from handful.errors import UsageError
from handful.inference.predict import predict
from handful.training.loop import LoopSettings, Progress, _snapshot_due
from handful.training.run import train

EVERY_STEP = ("loop.checkpoint_every_s=0", "loop.rows=10000")


def run(data: Path, out: Path, *settings: str, **changes: object) -> Path:
    arguments: dict[str, object] = {
        "method": "supervised", "labels": "2", "steps": 10, "set_": (*EVERY_STEP, *settings), "threads": 1,
        "quiet": True, "device": "cpu",
    }  # fmt: skip
    return train(data, out, **(arguments | changes))  # type: ignore[arg-type]


def steps_of(run: Path) -> list[int]:
    return sorted(int(file.stem.removeprefix("step-")) for file in (run / "snapshots").glob("*"))


@pytest.fixture(scope="module")
def whole(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(phantom_folder, tmp_path_factory.mktemp("whole") / "run", "loop.snapshots=4")


@pytest.mark.parametrize(("steps", "count"), [(10, 4), (7, 3), (500, 4), (3, 9), (1, 4), (10, 0)])
def test_snapshots_divide_a_run_evenly_and_leave_its_end_alone(steps: int, count: int) -> None:
    due = [step for step in range(1, steps + 1) if _snapshot_due((step - 1) / steps, step / steps, count)]
    # the first step at or past each point i / (count + 1), in whole numbers
    wanted = {-(-i * steps // (count + 1)) for i in range(1, count + 1)}
    assert due == sorted(step for step in wanted if step < steps)


def test_a_run_with_snapshots_is_the_run_without(phantom_folder: Path, tmp_path: Path, whole: Path) -> None:
    plain = run(phantom_folder, tmp_path / "plain")
    assert steps_of(whole) == [2, 4, 6, 8]
    assert not (plain / "snapshots").exists()
    one, other = (load_file(folder / "weights.safetensors") for folder in (plain, whole))
    assert len(one) > 10
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert read_yaml(plain / "recipe.yaml")["loop"]["snapshots"] == 0
    assert read_yaml(whole / "recipe.yaml")["loop"]["snapshots"] == 4


def test_an_interrupted_run_leaves_the_same_snapshots(
    phantom_folder: Path, tmp_path: Path, whole: Path
) -> None:
    out = tmp_path / "run"

    def die(progress: Progress) -> None:
        if progress.step == 5:
            shutil.copy(out / "checkpoint.pt", tmp_path / "step 4.pt")
        if progress.step == 9:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        run(phantom_folder, out, "loop.snapshots=4", report=die)
    # as if the last checkpoint were older than two of the snapshots: they are made anew, the others stay
    shutil.copy(tmp_path / "step 4.pt", out / "checkpoint.pt")
    for step in (6, 8):
        (out / "snapshots" / f"step-{step:06d}.safetensors").write_bytes(b"of steps that are repeated")
    before = (out / "snapshots" / "step-000004.safetensors").stat().st_mtime_ns
    seen: list[list[int]] = []
    run(phantom_folder, out, "loop.snapshots=4", report=lambda progress: seen.append(steps_of(out)))
    assert seen[0] == [2, 4]
    assert (out / "snapshots" / "step-000004.safetensors").stat().st_mtime_ns == before
    assert steps_of(out) == [2, 4, 6, 8]
    for name in sorted(file.name for file in (whole / "snapshots").iterdir()):
        one, other = (load_file(folder / "snapshots" / name) for folder in (whole, out))
        assert all(torch.equal(one[key], other[key]) for key in one), name


def test_a_snapshot_predicts(
    phantom_folder: Path, phantom_dataset: Dataset, tmp_path: Path, whole: Path
) -> None:
    snapshot = whole / "snapshots" / "step-000004.safetensors"
    case = phantom_dataset.held_out[0].name
    predict([snapshot], phantom_folder, tmp_path / "out", only=[case], device="cpu")
    assert (tmp_path / "out" / f"{case}.nii.gz").is_file()


def test_overwriting_a_run_removes_its_snapshots(phantom_folder: Path, tmp_path: Path, whole: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    run(phantom_folder, out, steps=2, overwrite=True)
    assert steps_of(out) == []


def test_a_negative_number_is_refused() -> None:
    with pytest.raises(UsageError, match="found -1"):
        LoopSettings(steps=1, snapshots=-1)


@pytest.fixture
def phantom_dataset(phantom_folder: Path) -> Dataset:
    return open_dataset(phantom_folder)
