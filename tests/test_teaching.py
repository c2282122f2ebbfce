"""Laws of a teacher inside a run: one length, one resumable command, and no hidden label looked at."""

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from handful.artefacts import read_json, read_yaml
from handful.data.sampling import StoredCase, sharing_draws
from handful.errors import UsageError
from handful.inference.predict import predict
from handful.networks.weights import read_metadata
from handful.training.recipe import resolve
from handful.training.run import train
from interrupted import killed_at

SETTINGS = ("teach.share=0.4", "teach.volumes=3", "loop.checkpoint_every_s=0", "loop.rows=10000")


def arguments(data: Path, out: Path, *, steps: int = 10) -> dict[str, object]:
    return {
        "data": str(data), "out": str(out), "method": "supervised", "labels": "2", "steps": steps,
        "set_": SETTINGS, "threads": 1, "device": "cpu", "quiet": True,
    }  # fmt: skip


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "weights.safetensors")


def same_bits(one: Path, other: Path) -> bool:
    mine, theirs = weights(one), weights(other)
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.fixture(scope="module")
def whole(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 10 steps, 4 of them the teacher's, never interrupted."""
    out = tmp_path_factory.mktemp("taught") / "run"
    train(**arguments(phantom_folder, out))  # type: ignore[arg-type]
    return out


@pytest.mark.parametrize(("steps", "share"), [(10, 0.4), (1000, 0.5), (2, 0.01), (3, 0.99)])
def test_teacher_and_training_share_the_steps(steps: int, share: float) -> None:
    recipe = resolve("supervised", assignments=[f"loop.steps={steps}", f"teach.share={share}"])
    before, teacher, then = recipe.stages()
    assert before is None
    assert teacher is not None
    assert (teacher.loop.steps or 0) + (then.loop.steps or 0) == steps
    assert min(teacher.loop.steps or 0, then.loop.steps or 0) >= 1
    assert (teacher.name, teacher.method, teacher.teach) == (then.name, then.method, None)


def test_three_parts_share_one_length() -> None:
    recipe = resolve(
        "supervised",
        assignments=["loop.steps=100", "pretrain.name=pcl", "pretrain.share=0.2", "teach.share=0.5"],
    )
    assert [part and part.loop.steps for part in recipe.stages()] == [20, 40, 40]
    timed = resolve("supervised", assignments=["loop.max_time_s=100", "teach.share=0.3"])
    assert [part and part.loop.max_time_s for part in timed.stages()] == [None, 30, 70]


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (["teach.share=1"], "between 0 and 1"),
        (["teach.draws=0"], "between 0 and 1"),
        (["teach.volumes=0"], "1 or more"),
        (["teach.volume=5"], "did you mean 'volumes'"),
        (["teach=5"], "holds settings"),
        (["teech.share=0.5"], "unknown setting"),
    ],
)
def test_what_cannot_be_is_refused(assignments: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        resolve("supervised", assignments=assignments, default_steps=10)


def test_what_cannot_be_shared_out_is_refused() -> None:
    with pytest.raises(UsageError, match="is a pre-training itself"):
        resolve("pcl", assignments=["teach.share=0.5"], default_steps=10)
    for length in ("loop.epochs=3", "loop.steps=1"):
        with pytest.raises(UsageError, match="--steps or --max-time"):
            resolve("supervised", assignments=["teach.share=0.5", length]).stages()


def test_null_leaves_the_teacher_out() -> None:
    for assignment in ("teach=null", "teach.share=null"):
        assert resolve("supervised", assignments=[assignment], default_steps=10).teach is None


@pytest.mark.parametrize(("real", "taught", "share"), [(2, 100, 0.5), (3, 7, 0.2), (1, 1, 0.5), (5, 2, 0.5)])
def test_taught_cases_take_their_share_of_the_draws(real: int, taught: int, share: float) -> None:
    def cases(name: str, count: int) -> list[StoredCase]:
        return [StoredCase(f"{name}{i}", np.zeros(1), None, (), (1, 1, 1)) for i in range(count)]

    known, learned = cases("real", real), cases("taught", taught)
    drawn = sharing_draws(known, learned, share=share)
    count = sum(case.name.startswith("taught") for case in drawn)
    assert count == taught, "each once"
    repeats = (len(drawn) - count) / real
    assert repeats == int(repeats) >= 1, "the labelled ones alike"
    wanted = taught * (1 - share) / share / real
    assert abs(repeats - max(wanted, 1)) <= 0.5, "as near to the share as whole repeats come"
    assert sharing_draws(known, [], share=share) == known


def test_the_teacher_is_a_run_of_its_own(phantom_folder: Path, tmp_path: Path, whole: Path) -> None:
    """It is what the same command without a teacher trains, and its labels are what ``predict`` says."""
    train(
        phantom_folder, tmp_path / "alone", method="supervised", labels="2", steps=4, plan=whole / "plan.yaml",
        set_=SETTINGS[2:], threads=1, device="cpu", quiet=True,
    )  # fmt: skip
    assert same_bits(tmp_path / "alone", whole / "teacher")
    files = sorted((whole / "teacher" / "predictions").glob("*.nii.gz"))
    names = {file.name.removesuffix(".nii.gz") for file in files}
    cases = read_json(whole / "manifest.json")["cases"]
    assert len(names) == 3
    assert names <= set(cases["unlabelled"])
    predict(whole / "teacher", phantom_folder, tmp_path / "again", only=names, device="cpu")
    for file in files:
        mine, theirs = nib.load(file), nib.load(tmp_path / "again" / file.name)
        assert np.array_equal(np.asarray(mine.dataobj), np.asarray(theirs.dataobj))


def test_the_run_says_what_it_learned_from(whole: Path) -> None:
    manifest, header = read_json(whole / "manifest.json"), read_metadata(whole / "weights.safetensors")
    assert len(header["labels_used"]) == 2, "the budget's; a teacher's labels are none"
    assert set(header["images_used"]) == {*manifest["cases"]["labelled"], *manifest["cases"]["unlabelled"]}
    assert manifest["teach_seconds"] > read_json(whole / "teacher" / "manifest.json")["seconds"] > 0
    assert read_yaml(whole / "recipe.yaml")["teach"]["volumes"] == 3
    assert "3 of them with a teacher's labels" in (whole / "log.txt").read_text()


def test_what_the_teacher_says_is_learned(phantom_folder: Path, tmp_path: Path, whole: Path) -> None:
    """Other labels in the teacher's folder, same seed, same steps: other weights."""
    out = tmp_path / "run"
    train(**arguments(phantom_folder, out))  # type: ignore[arg-type]
    assert same_bits(out, whole)
    for file in (out / "teacher" / "predictions").glob("*.nii.gz"):
        label = nib.load(file)
        nib.save(nib.Nifti1Image(np.ones(label.shape, np.uint8), label.affine), file)
    for name in ("weights.safetensors", "checkpoint.pt"):
        (out / name).unlink()
    train(**arguments(phantom_folder, out))  # type: ignore[arg-type]
    assert not same_bits(out, whole)


@pytest.mark.parametrize("part", ["teacher", "."])
def test_killed_in_either_part_it_ends_with_the_same_bits(
    part: str, phantom_folder: Path, tmp_path: Path, whole: Path
) -> None:
    out = tmp_path / "run"
    killed_at(out / part / "metrics.jsonl", arguments(phantom_folder, out))
    train(**arguments(phantom_folder, out))  # type: ignore[arg-type]
    assert same_bits(out, whole)


def test_labels_outside_the_budget_reach_no_part(phantom_folder: Path, tmp_path: Path, whole: Path) -> None:
    poisoned = tmp_path / "Phantom"
    shutil.copytree(phantom_folder, poisoned)
    known = set(read_json(whole / "manifest.json")["cases"]["labelled"])
    for file in (poisoned / "labelsTr").glob("*.nii.gz"):
        if file.name.removesuffix(".nii.gz") not in known:
            label = nib.load(file)
            nib.save(nib.Nifti1Image(np.ones(label.shape, np.uint8), label.affine), file)
    train(**arguments(poisoned, tmp_path / "run"))  # type: ignore[arg-type]
    assert same_bits(tmp_path / "run", whole)
    assert same_bits(tmp_path / "run" / "teacher", whole / "teacher")


def test_without_unlabelled_cases_it_is_one_training(phantom_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "Phantom"
    shutil.copytree(phantom_folder, data, ignore=shutil.ignore_patterns("imagesUn"))
    every = {"labels": None, "test": "2"}
    train(**arguments(data, tmp_path / "taught", steps=3) | every)  # type: ignore[arg-type]
    train(**arguments(data, tmp_path / "plain", steps=3) | every | {"set_": SETTINGS[2:]})  # type: ignore[arg-type]
    assert not (tmp_path / "taught" / "teacher").exists()
    assert same_bits(tmp_path / "taught", tmp_path / "plain")
