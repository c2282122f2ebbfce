"""Laws of a run in two stages: one length, one plan, one resumable command, and no label where none belongs."""

import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from handful.artefacts import read_json, read_yaml
from handful.errors import UsageError
from handful.networks.weights import read_metadata
from handful.training.recipe import resolve
from handful.training.run import pretrain, train
from interrupted import killed_at

SETTINGS = ("pretrain.name=pcl", "pretrain.share=0.4", "loop.checkpoint_every_s=0", "loop.rows=10000")


def arguments(data: Path, out: Path, *, steps: int) -> dict[str, object]:
    return {
        "data": str(data), "out": str(out), "method": "supervised", "labels": "2", "steps": steps,
        "set_": SETTINGS, "threads": 1, "device": "cpu", "quiet": True,
    }  # fmt: skip


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "weights.safetensors")


@pytest.fixture(scope="module")
def whole(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 10 steps, 4 of them pre-training, never interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train(**arguments(phantom_folder, out, steps=10))  # type: ignore[arg-type]
    return out


@pytest.mark.parametrize(("steps", "share"), [(10, 0.4), (1000, 0.25), (2, 0.01), (2, 0.99), (7, 0.5)])
def test_the_stages_share_the_steps_and_each_has_one(steps: int, share: float) -> None:
    recipe = resolve(
        "supervised", assignments=[f"loop.steps={steps}", "pretrain.name=pcl", f"pretrain.share={share}"]
    )
    before, _, then = recipe.stages()
    assert before is not None
    lengths = before.loop.steps, then.loop.steps
    assert None not in lengths
    assert sum(length or 0 for length in lengths) == steps
    assert min(length or 0 for length in lengths) >= 1


def test_the_stages_share_the_time() -> None:
    recipe = resolve(
        "supervised", assignments=["loop.max_time_s=100", "pretrain.name=mae", "pretrain.share=0.2"]
    )
    before, _, then = recipe.stages()
    assert before is not None
    assert (before.name, before.loop.max_time_s, then.loop.max_time_s) == ("mae", 20, 80)
    assert then.method == recipe.method
    assert then.pretrain is before.pretrain is None


def test_settings_beside_the_name_are_the_methods_own() -> None:
    recipe = resolve(
        "supervised", assignments=["pretrain.name=pcl", "pretrain.temperature=0.2"], default_steps=10
    )
    before, _, _ = recipe.stages()
    assert before is not None
    assert before.method.temperature == 0.2
    assert recipe.as_dict()["pretrain"]["temperature"] == 0.2


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (["pretrain.name=supervised"], "no pre-training"),
        (["pretrain.share=0.3"], "names a method"),
        (["pretrain.name=pcl", "pretrain.share=1"], "between 0 and 1"),
        (["pretrain.name=pcl", "pretrain.temprature=1"], "temperature"),
        (["pretrain.name=pck"], "pcl"),
        (["pretrain=5"], "names a method"),
    ],
)
def test_what_cannot_be_a_first_stage_is_refused(assignments: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        resolve("supervised", assignments=assignments, default_steps=10)


def test_a_length_in_epochs_cannot_be_shared(phantom_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--steps or --max-time"):
        train(
            phantom_folder,
            tmp_path / "run",
            method="supervised",
            set_=["pretrain.name=pcl", "loop.epochs=2"],
            quiet=True,
        )
    assert not (tmp_path / "run").exists()


def test_a_pretraining_has_no_stage_before_it() -> None:
    with pytest.raises(UsageError, match="is a pre-training itself"):
        resolve("pcl", assignments=["pretrain.name=mae"], default_steps=10)


def test_a_stage_set_to_null_is_none() -> None:
    for assignment in ("pretrain=null", "pretrain.name=null"):
        assert resolve("supervised", assignments=[assignment], default_steps=10).pretrain is None


def test_two_stages_are_what_two_commands_do(phantom_folder: Path, tmp_path: Path, whole: Path) -> None:
    common: dict[str, object] = {"threads": 1, "device": "cpu", "quiet": True}
    plan = whole / "plan.yaml"
    pretrain(phantom_folder, tmp_path / "a", method="pcl", steps=4, plan=plan, **common)  # type: ignore[arg-type]
    train(  # type: ignore[misc]
        phantom_folder,
        tmp_path / "b",
        method="supervised",
        labels="2",
        steps=6,
        init=tmp_path / "a",
        plan=plan,
        **common,
    )
    for one, other in ((tmp_path / "a", whole / "pretrain"), (tmp_path / "b", whole)):
        mine, theirs = weights(one), weights(other)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_method_without_labels_is_handed_none(whole: Path) -> None:
    assert read_metadata(whole / "pretrain" / "weights.safetensors")["labels_used"] == []
    assert read_json(whole / "pretrain" / "manifest.json")["cases"]["labelled"] == []
    manifest = read_json(whole / "manifest.json")
    assert manifest["init"]["method"] == "pcl"
    assert manifest["pretrain_seconds"] > 0
    assert read_yaml(whole / "recipe.yaml")["loop"]["steps"] == 10


def test_the_recipe_of_a_run_repeats_both_stages(phantom_folder: Path, tmp_path: Path, whole: Path) -> None:
    train(
        phantom_folder,
        tmp_path / "run",
        labels="2",
        recipe=whole / "recipe.yaml",
        threads=1,
        device="cpu",
        quiet=True,
    )
    mine, theirs = weights(tmp_path / "run"), weights(whole)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("stage", ["pretrain", "."])
def test_killed_in_either_stage_it_ends_with_the_same_bits(
    stage: str, phantom_folder: Path, tmp_path: Path, whole: Path
) -> None:
    out = tmp_path / "run"
    killed_at(out / stage / "metrics.jsonl", arguments(phantom_folder, out, steps=10))
    train(**arguments(phantom_folder, out, steps=10))  # type: ignore[arg-type]
    mine, theirs = weights(out), weights(whole)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_a_finished_run_is_left_alone_even_without_its_first_stage(
    phantom_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    train(**arguments(phantom_folder, out, steps=2))  # type: ignore[arg-type]
    before = (out / "weights.safetensors").stat().st_mtime_ns
    for file in (out / "pretrain").iterdir():
        file.unlink()
    train(**arguments(phantom_folder, out, steps=2))  # type: ignore[arg-type]
    assert (out / "weights.safetensors").stat().st_mtime_ns == before
    with pytest.raises(UsageError, match=r"different run .*pretrain"):
        train(**arguments(phantom_folder, out, steps=2) | {"set_": ("pretrain.name=mae",)})  # type: ignore[arg-type]


def test_another_start_takes_the_place_of_the_first_stage(
    phantom_folder: Path, tmp_path: Path, whole: Path
) -> None:
    out = tmp_path / "run"
    train(  # type: ignore[misc]
        **arguments(phantom_folder, out, steps=2) | {"init": whole / "pretrain", "plan": whole / "plan.yaml"}  # type: ignore[arg-type]
    )
    assert not (out / "pretrain").exists()
    assert read_yaml(out / "recipe.yaml")["pretrain"] is None


@pytest.mark.parametrize(
    "chosen",
    [
        ("pretrain.name=supervised_pretrain", "pretrain.share=0.5"),
        ("pretrain.name=sscl", "pretrain.share=0.5", "pretrain.batch=4", "pretrain.global_share=0.5"),
        ("pretrain.name=mixcl", "pretrain.share=0.5", "pretrain.batch=4"),
        ("pretrain.name=mona_pretrain", "pretrain.share=0.5"),
    ],
    ids=lambda chosen: chosen[0].partition("=")[2],
)
def test_labels_outside_the_budget_reach_neither_stage(
    chosen: tuple[str, ...], phantom_folder: Path, tmp_path: Path
) -> None:
    """Stages that use labels end with the same bits when all other labels are nonsense."""
    poisoned = tmp_path / "Phantom"
    subprocess.run(["cp", "-r", str(phantom_folder), str(poisoned)], check=True)
    # the house recipe with every part that reads images without labels
    more = ("method.pseudo_weight=1", "method.start=0", "sampling.synthetic=2", "sampling.synthetic_steps=1")
    settings = {"method": "auto", "set_": (*chosen, *more, "plan.dims=2", "plan.width=4")}
    train(**arguments(phantom_folder, tmp_path / "a", steps=2) | settings)  # type: ignore[arg-type]
    known = set(read_json(tmp_path / "a" / "pretrain" / "manifest.json")["cases"]["labelled"])
    assert len(known) == 2
    for file in (poisoned / "labelsTr").glob("*.nii.gz"):
        if file.name.removesuffix(".nii.gz") not in known:
            label = nib.load(file)
            nib.save(nib.Nifti1Image(np.ones(label.shape, np.uint8), label.affine), file)
    train(**arguments(poisoned, tmp_path / "b", steps=2) | settings)  # type: ignore[arg-type]
    for folder in ("pretrain", "."):
        mine, theirs = weights(tmp_path / "b" / folder), weights(tmp_path / "a" / folder)
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
