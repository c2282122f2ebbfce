"""Laws of handing weights over: exactly the exported parts arrive, counted; what must not be used is refused."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from handful.data.plan import read_plan, write_plan
from handful.errors import DataError, UsageError
from handful.inference.predict import predict
from handful.methods.contract import Method
from handful.networks.weights import read_metadata
from handful.training.decisions import decide_plan
from handful.training.run import pretrain, train
from handful.training.settle import settle
from handful.training.start import _adapted, build_method, start_from

STILL = ("loop.lr=1e-12", "loop.ema_horizon=0", "loop.weight_decay=0")
SMALL = ("method.batch=4",)


def quick(data: Path, out: Path, **changes: object) -> Path:
    options: dict[str, object] = {"labels": "2", "steps": 2, "threads": 1, "quiet": True, "device": "cpu"}
    step = pretrain if changes.pop("pre", False) else train
    if step is train:
        changes.setdefault("method", "supervised")
    return step(data, out, **(options | changes))  # type: ignore[arg-type]


def tensors(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "weights.safetensors")


@pytest.fixture(scope="module")
def pretrained(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pretrained") / "pcl"
    return quick(phantom_folder, out, pre=True, method="pcl", set_=SMALL)


def test_a_pretraining_exports_its_parts_and_says_what_it_used(
    phantom_folder: Path, pretrained: Path
) -> None:
    assert {name.split(".")[0] for name in tensors(pretrained)} == {"encoder"}
    metadata = read_metadata(pretrained / "weights.safetensors")
    manifest = json.loads((pretrained / "manifest.json").read_text())["cases"]
    assert metadata["labels_used"] == []
    assert set(metadata["images_used"]) == {*manifest["labelled"], *manifest["unlabelled"]}
    assert not set(metadata["images_used"]) & set(manifest["test"])


def test_training_starts_from_exactly_the_exported_encoder(
    phantom_folder: Path, pretrained: Path, tmp_path: Path
) -> None:
    run = quick(phantom_folder, tmp_path / "run", steps=1, init=pretrained, set_=STILL)
    cold = quick(phantom_folder, tmp_path / "cold", steps=1, set_=STILL)
    after, scratch = tensors(run), tensors(cold)
    names = [name for name in tensors(pretrained) if "running" not in name and "tracked" not in name]
    assert len(names) > 10
    for name in names:
        assert torch.allclose(after[f"segmenter.{name}"], tensors(pretrained)[name], atol=1e-7), name
    kernels = [name for name in names if tensors(pretrained)[name].ndim > 1]
    assert not any(
        torch.allclose(scratch[f"segmenter.{name}"], tensors(pretrained)[name]) for name in kernels
    )
    decoder = [n for n in after if ".decoder." in n and "running" not in n and "tracked" not in n]
    assert all(torch.allclose(after[n], scratch[n], atol=1e-7) for n in decoder)
    log = (run / "log.txt").read_text()
    assert "loaded" in log
    assert "decoder starts untrained" in log


def test_a_pretraining_can_start_from_a_segmentation_network(
    phantom_folder: Path, tmp_path: Path, pretrained: Path
) -> None:
    first = quick(phantom_folder, tmp_path / "train", steps=1)
    again = quick(phantom_folder, tmp_path / "pcl", pre=True, method="pcl", init=first, set_=(*STILL, *SMALL))
    for name, value in tensors(again).items():
        if "running" not in name and "tracked" not in name:
            assert torch.allclose(value, tensors(first)[f"segmenter.{name}"], atol=1e-6), name
    start = json.loads((again / "manifest.json").read_text())["init"]
    assert (start["run"], start["method"]) == (str(first), "supervised")
    assert start["labels_used"] == read_metadata(first / "weights.safetensors")["labels_used"] != []


def test_each_command_refuses_the_other_kind_of_method(phantom_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'pcl' is one for handful pretrain"):
        quick(phantom_folder, tmp_path / "a", method="pcl")
    with pytest.raises(UsageError, match="'supervised' is one for handful train"):
        quick(phantom_folder, tmp_path / "b", pre=True, method="supervised")
    with pytest.raises(UsageError, match="name a pre-training method"):
        quick(phantom_folder, tmp_path / "c", pre=True)
    with pytest.raises(UsageError, match="no recipe of handful"):
        quick(phantom_folder, tmp_path / "d", pre=True, recipe=Path("nonsense"))
    assert not any(tmp_path.iterdir())


def test_a_pretraining_cannot_predict(phantom_folder: Path, pretrained: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="it cannot predict"):
        predict(pretrained, phantom_folder, tmp_path)


def test_labels_of_held_out_cases_in_the_start_are_refused(phantom_folder: Path, tmp_path: Path) -> None:
    leaky = quick(
        phantom_folder, tmp_path / "leaky", pre=True, method="supervised_pretrain", labels=None, steps=1
    )
    cases = json.loads((leaky / "manifest.json").read_text())["cases"]["labelled"]
    (tmp_path / "test.txt").write_text(f"{cases[0]}\n")
    with pytest.raises(UsageError, match="learned from the labels of 1 cases that this run holds out"):
        quick(phantom_folder, tmp_path / "run", init=leaky, test=f"@{tmp_path / 'test.txt'}", steps=1)
    beyond = quick(phantom_folder, tmp_path / "beyond", init=leaky, labels="1", steps=1)
    assert "outside this run's budget" in (beyond / "log.txt").read_text()


def test_a_held_out_case_is_known_again_under_another_name(
    phantom_folder: Path, pretrained: Path, tmp_path: Path
) -> None:
    leaky = quick(
        phantom_folder, tmp_path / "leaky", pre=True, method="supervised_pretrain", labels="1", steps=1
    )
    case = json.loads((leaky / "manifest.json").read_text())["cases"]["labelled"][0]
    copy = tmp_path / "copy"
    for kind in ("images", "labels"):
        (copy / kind).mkdir(parents=True)
        for file in (phantom_folder / f"{kind}Tr").glob("*.nii.gz"):
            shutil.copy(file, copy / kind / f"other_{file.name.replace('_0000', '')}")
    (tmp_path / "test.txt").write_text(f"other_{case}")

    def run(init: Path, name: str) -> str:
        test, plan = f"@{tmp_path / 'test.txt'}", init / "plan.yaml"
        return (
            quick(copy, tmp_path / name, init=init, test=test, plan=plan, steps=1) / "log.txt"
        ).read_text()

    with pytest.raises(UsageError, match=rf"labels of 1 cases that this run holds out \(other_{case}\)"):
        run(leaky, "labels")
    assert "has seen the images (not the labels) of 1 cases" in run(pretrained, "images")
    # saved anew, it is another file
    image = copy / "images" / f"other_{case}.nii.gz"
    nib.save(nib.Nifti1Image(np.asarray(nib.load(image).dataobj) + 1, nib.load(image).affine), image)
    assert "no image file that is held out here is among its own" in run(leaky, "changed")


def test_images_made_otherwise_are_refused_with_both_plans(
    phantom_folder: Path, pretrained: Path, tmp_path: Path
) -> None:
    plan, other = read_plan(pretrained / "plan.yaml"), tmp_path / "plan.yaml"
    window = dataclasses.replace(plan.channels[0], kind="window", low=-5.5, high=7.5)
    write_plan(other, dataclasses.replace(plan, spacing_mm=(9.0, 8.0, 7.0), channels=(window,)))
    with pytest.raises(UsageError) as refused:
        quick(phantom_folder, tmp_path / "run", init=pretrained, plan=other)
    words = str(refused.value)
    assert f"spacing_mm: {list(plan.spacing_mm)} and [9.0, 8.0, 7.0]" in words
    assert "kind: zscore" in words
    assert "low: -5.5" in words
    for file in (pretrained / "plan.yaml", other):
        assert str(file) in words
    for same in ("dims", "axes"):
        assert f"{same}:" not in words


def test_another_network_is_refused_by_count_unless_asked_for(
    phantom_folder: Path, pretrained: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="do not fit the network: loaded"):
        quick(phantom_folder, tmp_path / "run", init=pretrained, steps=1, set_=other_network(pretrained))
    plan = read_plan(pretrained / "plan.yaml")
    network = dataclasses.replace(
        plan.network, widths=(*plan.network.widths[:-1], plan.network.widths[-1] - 8)
    )
    write_plan(tmp_path / "plan.yaml", dataclasses.replace(plan, network=network))
    options: dict[str, Any] = {"init": pretrained, "plan": tmp_path / "plan.yaml", "steps": 1, "set_": STILL}
    with pytest.raises(DataError, match="partial load"):
        quick(phantom_folder, tmp_path / "run", **options)
    run = quick(phantom_folder, tmp_path / "run", partial_init=True, **options)
    assert "of another shape" in (run / "log.txt").read_text()
    after, fitting = tensors(run), 0
    for name, value in tensors(pretrained).items():
        found = after[f"segmenter.{name}"]
        if found.shape == value.shape and value.ndim > 1:
            assert torch.allclose(found, value, atol=1e-6), name
            fitting += 1
    assert fitting == 4, "the kernels of all levels but the narrower one"


def other_network(run: Path) -> tuple[str, ...]:
    """A published network of as many dimensions as the run's plan has."""
    preset = "genesis" if "dims: 3" in (run / "plan.yaml").read_text() else "pcl-32"
    return (f"network.preset={preset}",)


@pytest.mark.parametrize(
    ("wrong", "right", "words", "dry"),
    [
        ("method.local=exact", "method.local=self", "has none", False),
        ("method.local_level=9", "method.local_level=1", "level", True),
        ("method.block=99", "method.block=2", "is 99", False),
    ],
    ids=["no labels", "no such level", "too large a block"],
)
def test_what_is_refused_before_anything_is_trained_leaves_the_folder_free(
    phantom_folder: Path, tmp_path: Path, wrong: str, right: str, words: str, dry: bool
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "summary.json").write_text("somebody else's")
    data = (
        bare_folder(phantom_folder, tmp_path / "data", labels=False) if "exact" in wrong else phantom_folder
    )
    local = "method.local=block" if "block" in wrong else "method.local=exact"

    def sscl(where: Path, setting: str, **changes: object) -> None:
        settings = ("method.stage=local", local, setting)
        quick(data, where, pre=True, method="sscl", labels=None, steps=1, set_=settings, **changes)

    if dry:
        with pytest.raises(UsageError, match=words):
            sscl(tmp_path / "dry", wrong, dry_run=True)
    with pytest.raises(UsageError, match=words):
        sscl(out, wrong)
    assert [path.name for path in out.glob("[a-z]*")] == ["summary.json"]
    sscl(out, right)
    assert (out / "weights.safetensors").exists()


@pytest.mark.parametrize("method", ["gcl", "sscl"])
def test_stages_with_batches_of_their_own_have_no_epochs(
    phantom_folder: Path, tmp_path: Path, method: str
) -> None:
    with pytest.raises(UsageError, match=r"loop\.epochs=3.*--steps"):
        quick(phantom_folder, tmp_path / "run", pre=True, method=method, steps=None, set_=("loop.epochs=3",))
    assert not (tmp_path / "run").exists()


def test_an_unfit_start_is_refused_by_a_dry_run_and_leaves_the_folder_free(
    phantom_folder: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preset = other_network(pretrained)
    for dry in (True, False):
        with pytest.raises(DataError, match="do not fit the network"):
            quick(phantom_folder, tmp_path / "run", init=pretrained, steps=1, set_=preset, dry_run=dry)
        assert not list((tmp_path / "run").glob("[a-z]*"))
    quick(phantom_folder, tmp_path / "run", init=pretrained, steps=1, dry_run=True)
    assert "encoder from" in capsys.readouterr().out
    quick(phantom_folder, tmp_path / "run", init=pretrained, steps=1)


def test_a_run_that_has_trained_is_kept_whatever_is_asked_of_it_later(
    phantom_folder: Path, tmp_path: Path
) -> None:
    out = quick(phantom_folder, tmp_path / "run", steps=1)
    (out / "weights.safetensors").unlink()
    (out / "plan.yaml").write_text("rubbish")
    with pytest.raises((DataError, UsageError)):
        quick(phantom_folder, out, steps=1)
    assert (out / "recipe.yaml").exists()
    assert (out / "checkpoint.pt").exists()


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_an_adapted_first_convolution_sees_equal_channels_alike(channels: int) -> None:
    first, other = nn.Conv2d(2, 3, 3), nn.Conv2d(channels, 3, 3)
    state, spread = _adapted(first.state_dict(), other, seen=2, now=channels)
    assert spread == ([] if channels == 2 else ["weight"])
    other.load_state_dict(state)
    image = torch.randn(1, 1, 6, 6)
    assert torch.allclose(
        first(image.expand(1, 2, 6, 6)), other(image.expand(1, channels, 6, 6) * 2 / 2), atol=1e-5
    )


def test_only_kernels_that_look_at_the_image_are_adapted() -> None:
    """Deeper kernels of another width were once spread too, and counted as loaded."""
    theirs = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Conv2d(3, 5, 3), nn.Conv2d(2, 5, 3))
    mine = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Conv2d(4, 5, 3), nn.Conv2d(2, 5, 3))
    state, spread = _adapted(theirs.state_dict(), mine, seen=1, now=2)
    assert spread == ["0.weight"]
    assert all(
        torch.equal(state[name], value) for name, value in theirs.state_dict().items() if name != "0.weight"
    )


def two_channels(phantom: Path, out: Path) -> Path:
    """The phantom as plain folders, each image there twice."""
    (out / "images").mkdir(parents=True)
    (out / "labels").mkdir()
    for image in sorted((phantom / "imagesTr").glob("*.nii.gz")):
        for channel in (0, 1):
            name = image.name.replace("_0000", "").replace(".nii.gz", f"_000{channel}.nii.gz")
            (out / "images" / name).symlink_to(image)
    for label in sorted((phantom / "labelsTr").glob("*.nii.gz")):
        (out / "labels" / label.name).symlink_to(label)
    return out


def test_another_number_of_channels_is_adapted_only_if_asked_for(
    phantom_folder: Path, pretrained: Path, tmp_path: Path
) -> None:
    data, plan = two_channels(phantom_folder, tmp_path / "data"), read_plan(pretrained / "plan.yaml")
    write_plan(tmp_path / "plan.yaml", dataclasses.replace(plan, channels=plan.channels * 2))
    options: dict[str, Any] = {"init": pretrained, "plan": tmp_path / "plan.yaml", "steps": 1, "set_": STILL}
    with pytest.raises(UsageError, match="--adapt-channels"):
        quick(data, tmp_path / "run", **options)
    run = quick(data, tmp_path / "run", adapt_channels=True, **options)
    after, before = tensors(run), tensors(pretrained)
    spread = [name for name, value in before.items() if after[f"segmenter.{name}"].shape != value.shape]
    assert spread
    log = (run / "log.txt").read_text()
    assert "could not be checked" not in log, "nothing is held out"
    assert f"{', '.join(n.removeprefix('encoder.') for n in spread)} spread from 1 to 2 image channels" in log
    for name, value in before.items():
        found = after[f"segmenter.{name}"]
        if name in spread:
            assert torch.allclose(found, value.expand_as(found) / 2, atol=1e-6)
        elif "running" not in name and "tracked" not in name:
            assert torch.allclose(found, value, atol=1e-6), name


def bare_folder(phantom: Path, out: Path, *, labels: bool) -> Path:
    """The phantom as plain folders, without the file that names its structures."""
    (out / "images").mkdir(parents=True)
    names = sorted(file.name for file in (phantom / "imagesTr").glob("*.nii.gz"))
    for name in names:
        (out / "images" / name.replace("_0000", "")).symlink_to(phantom / "imagesTr" / name)
    if labels:
        (out / "labels").mkdir()
        for file in sorted((phantom / "labelsTr").glob("*.nii.gz")):
            (out / "labels" / file.name).symlink_to(file)
    return out


def test_images_alone_are_enough_to_pretrain_and_not_to_train(phantom_folder: Path, tmp_path: Path) -> None:
    data = bare_folder(phantom_folder, tmp_path / "data", labels=False)
    quick(data, tmp_path / "run", pre=True, method="pcl", labels=None, steps=1, set_=SMALL)
    with pytest.raises(DataError, match="no labelled training case"):
        quick(data, tmp_path / "train", labels=None, steps=1)


def test_values_of_hidden_labels_are_unknown_to_a_run(phantom_folder: Path, tmp_path: Path) -> None:
    """Without a dataset.json the classes come from the label files: the budget's, not the hidden ones'."""
    data = bare_folder(phantom_folder, tmp_path / "data", labels=True)
    clean = quick(data, tmp_path / "clean", steps=1)
    for name in json.loads((clean / "manifest.json").read_text())["cases"]["unlabelled"]:
        hidden = data / "labels" / f"{name}.nii.gz"
        if hidden.exists():
            image = nib.load(hidden)
            hidden.unlink()
            nib.save(nib.Nifti1Image(np.full(image.shape, 77, np.uint8), image.affine), hidden)
    poisoned = quick(data, tmp_path / "poisoned", steps=1)
    assert "77" not in (poisoned / "plan.yaml").read_text()
    assert all(torch.equal(tensors(clean)[name], value) for name, value in tensors(poisoned).items())


def test_a_teacher_starts_from_the_loaded_weights_too(phantom_folder: Path, pretrained: Path) -> None:
    method: Any = begun("mean_teacher", phantom_folder, pretrained)
    loaded = load_file(pretrained / "weights.safetensors")
    for network in (method.network, method.teacher.module):
        state = network.state_dict()
        assert all(torch.equal(state[name], value) for name, value in loaded.items())


def test_both_networks_of_cps_start_from_the_loaded_encoder(phantom_folder: Path, pretrained: Path) -> None:
    method: Any = begun("cps", phantom_folder, pretrained)
    loaded = load_file(pretrained / "weights.safetensors")
    assert loaded
    for network in (method.network, method.second):
        state = network.state_dict()
        assert all(torch.equal(state[name], value) for name, value in loaded.items())
    heads = [network.heads.state_dict() for network in (method.network, method.second)]
    assert any(not torch.equal(heads[0][name], heads[1][name]) for name in heads[0])


def begun(name: str, data: Path, init: Path) -> Method:
    """Build a method that starts from the weights of another run."""
    stage = settle(
        "train", data, method=name, labels="2", draw=0, test=None, splits=None, fold=None, seed=0,
        steps=1, max_time=None, plan=None, patients=None, recipe=None, set_=(), device="cpu", precision="auto",
        threads=None, init=init, adapt_channels=False, partial_init=False, devices=1, nodes=1,
    )  # fmt: skip
    plan = decide_plan(stage.dataset, stage.selection, device="cpu")
    method, _ = build_method(
        stage.recipe, plan, 0, start=lambda method: start_from(stage, method, plan).parts
    )
    return method


def test_a_chain_of_starts_forgets_no_label(phantom_folder: Path, tmp_path: Path) -> None:
    leaky = quick(
        phantom_folder, tmp_path / "a", pre=True, method="supervised_pretrain", labels=None, steps=1
    )
    case = json.loads((leaky / "manifest.json").read_text())["cases"]["labelled"][0]
    between = quick(phantom_folder, tmp_path / "b", pre=True, method="pcl", init=leaky, set_=SMALL, steps=1)
    assert case in read_metadata(between / "weights.safetensors")["labels_used"]
    (tmp_path / "test.txt").write_text(f"{case}\n")
    with pytest.raises(UsageError, match="learned from the labels of 1 cases that this run holds out"):
        quick(phantom_folder, tmp_path / "c", init=between, test=f"@{tmp_path / 'test.txt'}", steps=1)
