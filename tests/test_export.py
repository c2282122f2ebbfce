"""Laws of handing weights over: the same numbers come out, all that is needed goes along, nothing is half written."""

import importlib.util
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from scipy import ndimage

from handful.cli.export import _targets
from handful.data.io import read_image
from handful.data.plan import NetworkPlan, Normalisation, Plan
from handful.data.preprocess import prepare
from handful.errors import DataError, RunError, UsageError
from handful.inference.about import preprocessing
from handful.inference.bundle import differences
from handful.inference.export import ENDINGS, export
from handful.inference.model import load_model
from handful.inference.predict import predict
from handful.networks.build import build_network, unet_architecture
from handful.networks.weights import save_weights

WINDOW = Normalisation(kind="window", low=-50, high=120, centre=20, spread=40)
PLAN = Plan(
    dims=3, axes=(2, 1, 0), spacing_mm=(None, None, None), patch=(8, 16, 12), batch=2, channels=(WINDOW,),
    label_values=(0, 3, 7), label_names=("background", "liver", "tumour"), mirror=(False, False, False),
    network=NetworkPlan(
        widths=(4, 6), strides=((2, 2, 2),), kernels=((3, 3, 3), (3, 3, 3)), norm="instance", deep_supervision=True
    ),
)  # fmt: skip
FLAT = replace(
    PLAN, dims=2, patch=(16, 12), mirror=(False, False),
    network=replace(PLAN.network, strides=((2, 2),), kernels=((3, 3), (3, 3)), norm="batch"),
)  # fmt: skip


def make_run(folder: Path, plan: Plan = PLAN, *, pretrained: bool = False) -> Path:
    """A finished run with drawn weights: of a training, or of a pre-training with its two parts."""
    torch.manual_seed(3)
    sizes = {"in_channels": len(plan.channels), "classes": len(plan.label_values), **asdict(plan.network)}
    architecture = unet_architecture(dims=plan.dims, **sizes)
    network: Any = build_network(architecture)
    parts = {"encoder": network.encoder, "decoder": network.decoder} if pretrained else {"segmenter": network}
    metadata = {
        "format": 1, "version": "0.1.0", "method": "pcl" if pretrained else "supervised", "architecture": architecture,
        "plan": asdict(plan), "label_names": list(plan.label_names), "labels_used": ["a", "b"], "labelled": ["a", "b"],
    }  # fmt: skip
    save_weights(folder / "weights.safetensors", parts, metadata)
    return folder


def images(plan: Plan, batch: int) -> torch.Tensor:
    return torch.randn(batch, len(plan.channels), *plan.patch, generator=torch.Generator().manual_seed(batch))


def check_what_travels(told: dict[str, Any], plan: Plan = PLAN) -> None:
    assert told["plan"] == json.loads(json.dumps(asdict(plan)))
    assert told["architecture"]["name"] == "unet"
    assert told["labels_used"] == ["a", "b"]
    assert told["labels"] == {"0": "background", "3": "liver", "7": "tumour"}
    text = " ".join(told["preprocessing"])
    assert "towards S, A, R" in text
    assert "clip to [-50, 120], subtract 20, divide by 40" in text


def test_what_is_cut_in_several_planes_is_said_where_a_bundle_cuts_one() -> None:
    turned = replace(FLAT, planes=((0, 1, 2), (1, 0, 2), (2, 1, 0)))
    one, three = ([step for step in preprocessing(plan) if "slices" in step] for plan in (FLAT, turned))
    assert "slices along D (rows H, columns W) (B," in one[0]
    assert "and along H (rows D, columns W) and along W (rows H, columns D) (B," in three[0]
    averaged = [len([s for s in preprocessing(plan) if "averaged" in s]) for plan in (PLAN, FLAT, turned)]
    assert averaged == [0, 0, 1]
    assert len(differences(turned)) == len(differences(FLAT)) + 1 == len(differences(PLAN)) + 1


@pytest.mark.parametrize("pretrained", [False, True], ids=["training", "pre-training"])
@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_the_encoder_leaves_under_its_plain_names(pretrained: bool, ending: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", pretrained=pretrained)
    out = export(run, tmp_path / f"encoder{ending}", to="encoder")
    if ending == ".pt":
        state = torch.load(out, weights_only=True)
        assert type(state) is dict
        told = json.loads(out.with_suffix(".json").read_text())
    else:
        state = load_file(out)
        with safe_open(out, framework="pt") as file:
            told = json.loads(file.metadata()["about"])
    check_what_travels(told)
    stored = load_file(run / "weights.safetensors")
    prefix = "encoder." if pretrained else "segmenter.encoder."
    wanted = {name.removeprefix(prefix): t for name, t in stored.items() if name.startswith(prefix)}
    assert len(wanted) == 12
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in wanted.items())
    network: Any = build_network(told["architecture"])
    network.encoder.load_state_dict(state)  # strict: the names are the encoder's own
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        {"run", out.name, *(["encoder.json"] if ending == ".pt" else [])}
    )


@pytest.mark.parametrize("plan", [PLAN, FLAT], ids=["3D", "2D"])
def test_torchscript_gives_the_same_logits_for_any_batch(plan: Plan, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", plan)
    out = export(run, tmp_path / "model.ts", to="torchscript")
    extra = {"handful.json": ""}
    exported = torch.jit.load(out, _extra_files=extra)
    check_what_travels(json.loads(extra["handful.json"]), plan)
    network = load_model(run).network
    for batch in (1, 3):
        expected = network(images(plan, batch))
        assert expected.shape == (batch, 3, *plan.patch)
        assert torch.allclose(exported(images(plan, batch)), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("plan", [PLAN, FLAT], ids=["3D", "2D"])
def test_onnx_gives_the_same_logits_for_any_batch(plan: Plan, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    run = make_run(tmp_path / "run", plan)
    out = export(run, tmp_path / "model.onnx", to="onnx")
    session = runtime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    told = {entry.key: entry.value for entry in onnx.load(out).metadata_props}
    check_what_travels(json.loads(told["handful"]), plan)
    network = load_model(run).network
    for batch in (1, 3):
        (logits,) = session.run(["logits"], {"image": images(plan, batch).numpy()})
        np.testing.assert_allclose(logits, network(images(plan, batch)).numpy(), atol=1e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "run"]


def test_without_its_packages_onnx_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "onnxruntime" else found(name, *rest)
    )
    with pytest.raises(UsageError, match=r"onnxruntime, not installed here; pip install 'handful\[onnx\]'"):
        export(make_run(tmp_path / "run"), tmp_path / "model.onnx", to="onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_bundle_holds_its_three_files(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    out = export(run, tmp_path / "bundle", to="monai-bundle")
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert files == ["configs/inference.json", "configs/metadata.json", "models/model.ts"]
    metadata = json.loads((out / "configs" / "metadata.json").read_text())
    check_what_travels(metadata["handful"])
    shapes = metadata["network_data_format"]
    assert shapes["inputs"]["image"]["spatial_shape"] == [8, 16, 12]
    assert shapes["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "liver", "2": "tumour"}
    assert json.loads((out / "configs" / "inference.json").read_text())["run"]
    exported = torch.jit.load(out / "models" / "model.ts")
    assert torch.allclose(exported(images(PLAN, 2)), load_model(run).network(images(PLAN, 2)), atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "run"]


ZSCORE = Normalisation(kind="zscore")


def scans(folder: Path, seed: int, channels: int = 1) -> list[Path]:
    """One head-like scan: a bright ellipsoid in constant zero, in an order of axes of its own."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    grid = np.indices((14, 22, 9)) - np.array([7, 11, 4.5]).reshape(-1, 1, 1, 1)
    inside = (grid**2 / np.array([36, 100, 16]).reshape(-1, 1, 1, 1)).sum(0) < 1
    affine = np.array([[0, 0, -2.0, 3], [0, -0.9, 0, 5], [1.5, 0, 0, 9], [0, 0, 0, 1.0]])
    files = []
    for channel in range(channels):
        texture = ndimage.gaussian_filter(rng.standard_normal(inside.shape), 2)
        array = np.where(inside, 40 + 60 * texture / texture.std(), 0).astype(np.float32)
        files.append(folder / f"case_{channel:04d}.nii.gz")
        nib.save(nib.Nifti1Image(array, affine), files[-1])
    return files


def parsed(bundle: Path, **changes: Any) -> Any:
    from monai.bundle import ConfigParser

    parser = ConfigParser(json.loads((bundle / "configs" / "inference.json").read_text()))
    for key, value in changes.items():
        parser[key] = value
    parser["bundle_root"] = str(bundle)
    parser.parse()
    return parser


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "plan",
    [PLAN, replace(PLAN, channels=(ZSCORE,)), replace(FLAT, channels=(ZSCORE,))],
    ids=["3D window", "3D z-score", "2D z-score"],
)
def test_of_a_volume_of_one_patch_a_bundle_run_by_monai_writes_what_predict_writes(
    plan: Plan, tmp_path: Path
) -> None:
    plan = replace(plan, patch=(16, 24, 12)[-plan.dims :])
    run = make_run(tmp_path / "run", plan)
    (file,) = scans(tmp_path / "images", 4)
    bundle = export(run, tmp_path / "bundle", to="monai-bundle")
    where = {"dataset_dir": str(tmp_path / "images"), "output_dir": str(tmp_path / "theirs")}
    parsed(bundle, **where).get_parsed_content("run")
    predict(run, file, tmp_path / "ours", device="cpu")
    (theirs,), (ours,) = (list((tmp_path / name).glob("*.nii.gz")) for name in ("theirs", "ours"))
    found, expected = nib.load(theirs), nib.load(ours)
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-5)
    labels = np.asarray(expected.dataobj)
    assert len(np.unique(labels)) > 1
    # a voxel at the border of two classes may turn on the rounding to half precision
    assert np.mean(np.asarray(found.dataobj) != labels) < 0.001


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("spacing", "close"),
    [
        ((None, None, None), 2e-3),
        ((0.75, 0.45, 1.0), 2e-2),
        ((None, 0.45, 1.0), 2e-2),
        ((3.0, 0.45, 1.0), None),  # thick slices: MONAI has one order of interpolation for all axes
    ],
    ids=str,
)
def test_the_bundle_prepares_images_as_here(spacing: Any, close: float | None, tmp_path: Path) -> None:
    """Several channels, each normalised in its own way, at spacings that divide the volume's extent."""
    plan = replace(PLAN, channels=(WINDOW, ZSCORE), spacing_mm=spacing)
    bundle = export(make_run(tmp_path / "run", plan), tmp_path / "bundle", to="monai-bundle")
    files = scans(tmp_path / "images", 5, channels=2)
    prepared = parsed(bundle).get_parsed_content("preprocessing")({"image": [str(file) for file in files]})
    found, expected = np.asarray(prepared["image"]), prepare(read_image(files), None, plan).image
    assert found.shape == expected.shape
    if close is None:
        assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.95
    else:
        np.testing.assert_allclose(found, expected, atol=close)


def test_what_is_there_is_kept_unless_overwrite(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for to, name in (("encoder", "a.safetensors"), ("torchscript", "a.ts"), ("monai-bundle", "bundle")):
        out = export(run, tmp_path / name, to=to)
        mine = out / "mine.txt" if out.is_dir() else out
        mine.write_text("mine")
        with pytest.raises(UsageError, match="--overwrite"):
            export(run, out, to=to)
        assert mine.read_text() == "mine"
        export(run, out, to=to, overwrite=True)
        if out.is_dir():
            assert mine.read_text() == "mine", "only the bundle's own files are replaced"
        else:
            assert out.stat().st_size > 1000
    (tmp_path / "b.json").write_text("mine")
    with pytest.raises(UsageError, match=r"b\.json exists already"):
        export(run, tmp_path / "b.pt", to="encoder")


def test_wrong_words_are_refused_in_words(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with pytest.raises(UsageError, match="did you mean 'torchscript'"):
        export(run, tmp_path / "a.ts", to="torchscrpt")
    with pytest.raises(UsageError, match=r"ends in \.safetensors or \.pt"):
        export(run, tmp_path / "a.onnx", to="encoder")
    with pytest.raises(UsageError, match="a bundle is a folder"):
        export(run, run / "weights.safetensors", to="monai-bundle", overwrite=True)
    assert sorted(_targets("")) == sorted(ENDINGS)


@pytest.mark.parametrize(
    ("to", "name"), [("encoder", "a.pt"), ("torchscript", "a.ts"), ("monai-bundle", "a")]
)
def test_runs_that_cannot_be_exported_leave_nothing(to: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "recipe.yaml").write_text("{}")
    with pytest.raises(RunError, match="not finished"):
        export(tmp_path / "begun", tmp_path / name, to=to)
    with pytest.raises(DataError, match="does not exist"):
        export(tmp_path / "nowhere", tmp_path / name, to=to)
    if to != "encoder":
        with pytest.raises(DataError, match="cannot predict"):
            export(make_run(tmp_path / "pre", pretrained=True), tmp_path / name, to=to)
        shutil.rmtree(tmp_path / "pre")
    assert [path.name for path in tmp_path.iterdir()] == ["begun"]


@pytest.mark.parametrize(("to", "name"), [("torchscript", "a.ts"), ("monai-bundle", "a")])
def test_a_network_that_changes_on_the_way_is_not_written(
    to: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run")
    trace = torch.jit.trace

    def spoilt(network: Any, example: torch.Tensor, **options: Any) -> Any:
        class Doubled(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return 2 * network(x)

        return trace(Doubled(), example, **options)

    monkeypatch.setattr(torch.jit, "trace", spoilt)
    with pytest.raises(RunError, match="differs from the original"):
        export(run, tmp_path / name, to=to)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
