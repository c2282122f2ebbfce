"""From files to files: label maps lie where their images lie, and every failure says what to do."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from handful.artefacts import read_json, write_json
from handful.cli.main import main
from handful.data.connected import find_pieces
from handful.data.io import read_label, read_label_names, write_label
from handful.data.plan import NetworkPlan, Normalisation, Plan
from handful.data.preprocess import restore_labels
from handful.errors import DataError, RunError, UsageError
from handful.inference.images import find_images
from handful.inference.model import load_model
from handful.inference.predict import UnlikeTraining, predict
from handful.inference.tta import entropy
from handful.networks.build import build_network
from handful.networks.weights import save_weights

PLAN = Plan(
    dims=3,
    axes=(2, 1, 0),
    spacing_mm=(None, None, None),
    patch=(8, 16, 8),
    batch=2,
    channels=(Normalisation(kind="window", low=0, high=100, centre=50, spread=25),),
    label_values=(0, 7),
    label_names=("background", "bright"),
    mirror=(False, False, False),
    network=NetworkPlan(widths=(4, 8), strides=((2, 2, 2),), kernels=((3, 3, 3), (3, 3, 3))),
)
NAMES = {0: "background", 7: "bright"}


def make_run(
    folder: Path, plan: Plan = PLAN, *, threshold: float = 50, metadata: dict[str, Any] | None = None
) -> Path:
    """A run whose network says "bright" where the first channel is above ``threshold``."""
    channels = len(plan.channels)
    architecture = {
        "name": f"torch.nn.Conv{plan.dims}d", "in_channels": channels, "out_channels": 2, "kernel_size": 1,
    }  # fmt: skip
    network = build_network(architecture)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.zero_()
            if name == "weight":
                parameter[1, 0] = 10.0
            else:
                parameter[1] = -10 * (threshold - 50) / 25
    about = {
        "format": 1, "version": "0.1.0", "architecture": architecture, "plan": asdict(plan),
        "label_names": list(plan.label_names),
    }  # fmt: skip
    save_weights(folder / "weights.safetensors", {"segmenter": network}, {**about, **(metadata or {})})
    return folder


def noise(seed: int, shape: Sequence[int]) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(0, 100, shape).astype(np.float32)


AFFINES = {
    "RAS": np.diag([1.5, 0.9, 2.0, 1.0]),
    "LAS": np.array([[-1.5, 0, 0, 40], [0, 0.9, 0, -12], [0, 0, 2, 7], [0, 0, 0, 1.0]]),
    "SPL": np.array([[0, 0, -2.0, 3], [0, -0.9, 0, 5], [1.5, 0, 0, 9], [0, 0, 0, 1.0]]),
    "oblique": np.array([[1.4, 0.2, -0.1, 3], [-0.3, 0.8, 0.3, 5], [0.1, -0.1, 1.9, 9], [0, 0, 0, 1.0]]),
}


def save(path: Path, array: NDArray[Any], affine: NDArray[np.float64] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, affine if affine is not None else AFFINES["RAS"])
    nib.save(image, path)
    return path


@pytest.mark.parametrize("dims", [2, 3])
def test_labels_lie_where_the_image_lies(dims: Literal[2, 3], tmp_path: Path) -> None:
    """Whatever the axes of a file, the prediction is the threshold of its own voxels, geometry bit for bit."""
    plan = replace(PLAN, dims=dims, patch=PLAN.patch[-dims:], mirror=(False,) * dims)
    run = make_run(tmp_path / "run", plan)
    arrays = {name: noise(seed, (13, 21, 9 + seed)) for seed, name in enumerate(AFFINES)}
    for name, affine in AFFINES.items():
        save(tmp_path / "images" / f"{name}.nii.gz", arrays[name], affine)
    seen: list[tuple[str, int, int | None]] = []
    predictions = predict(
        run, tmp_path / "images", tmp_path / "out", device="cpu", progress=lambda *what: seen.append(what)
    )
    assert [p.case for p in predictions] == sorted(AFFINES)
    assert seen == [("predicting", done, 4) for done in range(5)]
    for prediction in predictions:
        assert prediction.status == "written"
        assert prediction.label == tmp_path / "out" / f"{prediction.case}.nii.gz"
        image, label = (nib.load(tmp_path / part / f"{prediction.case}.nii.gz") for part in ("images", "out"))
        assert label.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(np.asarray(label.dataobj), 7 * (arrays[prediction.case] > 50))
        assert image.affine.tobytes() == label.affine.tobytes()
        assert image.header["pixdim"].tobytes() == label.header["pixdim"].tobytes()
        assert read_label_names(prediction.label) == NAMES


def test_probabilities_and_uncertainty_agree_with_the_labels(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", replace(PLAN, mirror=(True, False, True)))
    image = save(tmp_path / "a.nii.gz", noise(1, (12, 17, 10)), AFFINES["SPL"])
    (p,) = predict(run, image, tmp_path / "out", tta=True, probabilities=True, uncertainty=True, device="cpu")
    assert p.probabilities is not None
    assert p.uncertainty is not None
    classes, doubt, label = (nib.load(f).get_fdata() for f in (p.probabilities, p.uncertainty, p.label))
    assert classes.shape == (12, 17, 10, 2)
    np.testing.assert_allclose(classes.sum(-1), 1, atol=1e-5)
    np.testing.assert_array_equal(label, 7 * classes.argmax(-1))
    np.testing.assert_allclose(doubt, entropy(np.moveaxis(classes, -1, 0)), atol=1e-4)
    assert (doubt >= 0).all()
    assert (doubt <= 1).all()


def test_runs_vote_also_on_different_grids(tmp_path: Path) -> None:
    image = save(tmp_path / "a.nii.gz", noise(2, (12, 17, 10)))
    same = [make_run(tmp_path / f"run{t}", threshold=t) for t in (20, 50, 80)]
    (vote,) = predict(same, image, tmp_path / "same", device="cpu")
    (middle,) = predict(same[1], image, tmp_path / "middle", device="cpu")
    values = [nib.load(p.label).get_fdata() for p in (vote, middle)]
    assert np.mean(values[0] == values[1]) > 0.99
    coarse = make_run(
        tmp_path / "coarse", replace(PLAN, spacing_mm=(3.0, 1.8, 2.2), axes=(0, 1, 2)), threshold=200
    )
    (p,) = predict([same[1], coarse], image, tmp_path / "mixed", probabilities=True, device="cpu")
    alone = predict(same[1], image, tmp_path / "alone", probabilities=True, device="cpu")[0]
    assert p.probabilities is not None
    assert alone.probabilities is not None
    # the second member never says "bright"
    mixed, own = (nib.load(file).get_fdata() for file in (p.probabilities, alone.probabilities))
    np.testing.assert_allclose(mixed[..., 1], own[..., 1] / 2, atol=1e-3)


def islands(shape: Sequence[int] = (12, 17, 10)) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """A dim image with a bright box and two bright islands; and where the box is."""
    image, box = noise(10, shape) / 4, np.zeros(shape, bool)
    box[3:8, 4:10, 2:9] = True
    image[box] = 90
    image[0, 0, 0] = image[10:, 13:15, 4] = 80
    return image, box


ONE_PIECE = replace(PLAN, one_piece=(False, True))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", AFFINES)
def test_a_structure_of_one_piece_stays_one(dims: Literal[2, 3], name: str, tmp_path: Path) -> None:
    """Whether by slices or volumes: pieces are those of the volume, and only label maps lose theirs."""
    plan = replace(ONE_PIECE, dims=dims, patch=PLAN.patch[-dims:], mirror=(False,) * dims)
    run, (array, box) = make_run(tmp_path / "run", plan), islands()
    image = save(tmp_path / "a.nii.gz", array, AFFINES[name])
    (one,), (every,) = (
        predict(
            run, image, tmp_path / f"{keep}", all_pieces=keep, probabilities=True, uncertainty=True, device="cpu"
        )
        for keep in (False, True)
    )  # fmt: skip
    for p, expected in ((one, box), (every, array > 50)):
        np.testing.assert_array_equal(nib.load(p.label).get_fdata(), 7 * expected)
    for file in ("probabilities", "uncertainty"):
        same = [np.asarray(nib.load(getattr(p, file)).dataobj) for p in (one, every)]
        assert same[0].tobytes() == same[1].tobytes()


def test_pieces_survive_resampling(tmp_path: Path) -> None:
    """On a coarser plan the islands are lost there, and do not come back on the file's grid."""
    run, (array, _) = make_run(tmp_path / "run", replace(ONE_PIECE, spacing_mm=(2.0, 1.4, 1.5))), islands()
    image = save(tmp_path / "a.nii.gz", array)
    counts = []
    for keep in (False, True):
        (p,) = predict(run, image, tmp_path / f"{keep}", all_pieces=keep, device="cpu")
        counts.append(len(find_pieces(nib.load(p.label).get_fdata() > 0)[1]))
    assert counts[0] == 1 < counts[1]


def test_runs_must_agree_that_a_structure_is_one_piece(tmp_path: Path) -> None:
    array, box = islands()
    image = save(tmp_path / "a.nii.gz", array)
    says = [make_run(tmp_path / f"says{t}", ONE_PIECE, threshold=t) for t in (40, 50)]
    silent = make_run(tmp_path / "silent", PLAN)
    denies = make_run(tmp_path / "denies", replace(PLAN, one_piece=(False, False)))
    other_grid = make_run(tmp_path / "grid", replace(ONE_PIECE, axes=(0, 1, 2)))
    for number, (runs, expected) in enumerate(
        [
            (says, box), ([says[0], silent], array > 50), ([denies, says[0]], array > 50),
            ([says[0], other_grid], box), ([other_grid, silent], array > 50),
        ]
    ):  # fmt: skip
        (p,) = predict(runs, image, tmp_path / f"o{number}", probabilities=True, device="cpu")
        np.testing.assert_array_equal(nib.load(p.label).get_fdata(), 7 * expected)
        assert p.probabilities is not None
        np.testing.assert_array_equal(nib.load(p.probabilities).get_fdata().argmax(-1), array > 50)


def test_predictions_with_and_without_islands_do_not_mix(tmp_path: Path) -> None:
    run, out = make_run(tmp_path / "run", ONE_PIECE), tmp_path / "out"
    for name in "ab":
        save(tmp_path / "images" / f"{name}.nii.gz", islands()[0])
    first = tmp_path / "images" / "a.nii.gz"
    predict(run, first, out, device="cpu")
    assert read_json(out / "predictions.json")["made_by"]["one_piece"] == ["bright"]
    with pytest.raises(UsageError, match="with other weights or settings"):
        predict(run, tmp_path / "images", out, all_pieces=True, device="cpu")
    predict(run, first, out, all_pieces=True, overwrite=True, device="cpu")
    record = read_json(out / "predictions.json")
    assert record["made_by"].pop("one_piece") == []
    write_json(out / "predictions.json", record)  # as before there was the choice: every piece was kept
    with pytest.raises(UsageError, match="with other weights or settings"):
        predict(run, tmp_path / "images", out, device="cpu")
    again = predict(run, tmp_path / "images", out, all_pieces=True, device="cpu")
    assert [p.status for p in again] == ["kept", "written"]


def test_the_command_keeps_all_pieces_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, (array, box) = make_run(tmp_path / "run", ONE_PIECE), islands()
    image = save(tmp_path / "a.nii.gz", array)
    for words, expected in (([], box), (["--all-pieces"], array > 50)):
        out = tmp_path / f"out{len(words)}"
        assert main(["predict", str(run), str(image), "--out", str(out), "--device", "cpu", *words]) == 0
        np.testing.assert_array_equal(nib.load(out / "a.nii.gz").get_fdata(), 7 * expected)
    capsys.readouterr()


def test_one_damaged_file_costs_no_other(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for name in "acd":
        save(tmp_path / "images" / f"{name}.nii.gz", noise(3, (9, 12, 8)))
    (tmp_path / "images" / "b.nii.gz").write_bytes((tmp_path / "images" / "a.nii.gz").read_bytes()[:300])
    save(tmp_path / "out" / "b.nii.gz", np.ones((9, 12, 8), np.uint8))  # stale: must not pass for a result
    with pytest.raises(
        DataError, match=r"1 of 4 volumes could not be predicted(.|\n)*b: .*b\.nii\.gz"
    ) as caught:
        predict(run, tmp_path / "images", tmp_path / "out", overwrite=True, device="cpu")
    assert caught.value.exit_code == 3
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == [
        "a.nii.gz", "c.nii.gz", "d.nii.gz", "predictions.json",
    ]  # fmt: skip
    record = {
        case["case"]: case["status"] for case in read_json(tmp_path / "out" / "predictions.json")["cases"]
    }
    assert record == {"a": "written", "b": "failed", "c": "written", "d": "written"}


def test_a_surprise_in_one_volume_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run")
    for name, depth in (("a", 8), ("b", 9), ("c", 8)):
        save(tmp_path / "images" / f"{name}.nii.gz", noise(3, (9, 12, depth)))

    def surprised(label: Any, geometry: Any, plan: Any) -> Any:
        if geometry.shape[2] == 9:
            raise ZeroDivisionError("nobody thought of this")
        return restore_labels(label, geometry, plan)

    monkeypatch.setattr("handful.inference.predict.restore_labels", surprised)
    with pytest.raises(DataError, match=r"1 of 3(.|\n)*b: .*b\.nii\.gz: ZeroDivisionError: nobody thought"):
        predict(run, tmp_path / "images", tmp_path / "out", device="cpu")
    assert {f.name for f in (tmp_path / "out").glob("*.nii.gz")} == {"a.nii.gz", "c.nii.gz"}


def test_a_full_disk_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run")
    image = save(tmp_path / "a.nii.gz", noise(3, (9, 12, 8)))

    def full(*args: Any, **kwargs: Any) -> None:
        raise RunError("no space left")

    monkeypatch.setattr("handful.inference.predict.write_label", full)
    with pytest.raises(RunError, match="no space left"):
        predict(run, image, tmp_path / "out", device="cpu")


def test_complete_results_are_kept_unless_told_otherwise(tmp_path: Path) -> None:
    run, other = make_run(tmp_path / "run"), make_run(tmp_path / "other", threshold=70)
    images, out = tmp_path / "images", tmp_path / "out"
    for name in "ab":
        save(images / f"{name}.nii.gz", noise(4, (9, 12, 8)))
    predict(run, images / "a.nii.gz", out, device="cpu")
    before = (out / "a.nii.gz").stat().st_mtime_ns
    assert [p.status for p in predict(run, images, out, device="cpu")] == ["kept", "written"]
    assert (out / "a.nii.gz").stat().st_mtime_ns == before
    assert [c["status"] for c in read_json(out / "predictions.json")["cases"]] == ["written", "written"]
    assert [p.status for p in predict(run, images, out, uncertainty=True, device="cpu")] == [
        "written",
        "written",
    ]
    with pytest.raises(UsageError, match=r"holds predictions of .*run with other weights.*--overwrite"):
        predict(other, images, out, device="cpu")
    assert [p.status for p in predict(other, images, out, overwrite=True, device="cpu")] == [
        "written",
        "written",
    ]
    assert (read_label(out / "a.nii.gz").array > 0).mean() == pytest.approx(0.3, abs=0.05)


def test_inputs_are_never_overwritten(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    image = save(tmp_path / "images" / "a.nii.gz", noise(5, (9, 12, 8)))
    with pytest.raises(UsageError, match=r"--out .*images is the folder of a\.nii\.gz"):
        predict(run, image, tmp_path / "images", overwrite=True, device="cpu")


def test_channels_belong_together(tmp_path: Path) -> None:
    two = replace(PLAN, channels=PLAN.channels * 2)
    run, folder = make_run(tmp_path / "run", two), tmp_path / "images"
    first, second = noise(6, (9, 12, 8)), noise(7, (9, 12, 8))
    save(folder / "x_0000.nii.gz", first)
    save(folder / "x_0001.nii.gz", second)
    for place in (folder, folder / "x_0000.nii.gz"):
        (case,) = find_images(place, channels=2)
        assert (case.name, [f.name for f in case.images]) == ("x", ["x_0000.nii.gz", "x_0001.nii.gz"])
    (p,) = predict(run, folder, tmp_path / "out", device="cpu")
    np.testing.assert_array_equal(read_label(tmp_path / "out" / "x.nii.gz").array[0] > 0, first > 50)
    assert p.case == "x"
    save(tmp_path / "lone" / "y.nii.gz", first)
    with pytest.raises(DataError, match=r"y: .*y\.nii\.gz.*1 channel.*2 expected"):
        predict(run, tmp_path / "lone", tmp_path / "out2", device="cpu")
    four_d = np.stack([first, second], -1)
    save(tmp_path / "stack" / "z.nii.gz", four_d)
    predict(run, tmp_path / "stack", tmp_path / "out3", device="cpu")
    np.testing.assert_array_equal(read_label(tmp_path / "out3" / "z.nii.gz").array[0] > 0, first > 50)


@pytest.mark.parametrize(
    ("files", "channels", "names"),
    [
        (["a.nii.gz", "b.nii"], 1, ["a", "b"]),
        (["a_0000.nii.gz", "b_0000.nii.gz"], 1, ["a", "b"]),
        (["scan_0001.nii.gz", "scan_0002.nii.gz"], 1, ["scan_0001", "scan_0002"]),
        (["scan_0000.nii.gz", "scan_0001.nii.gz"], 1, ["scan_0000", "scan_0001"]),
        (["a_0000.nii.gz", "b.nii.gz"], 1, ["a_0000", "b"]),
        (["a_0000.nii.gz", "a_0001.nii.gz", "notes.txt", ".a.nii.gz"], 2, ["a"]),
    ],
)
def test_names_of_cases(files: list[str], channels: int, names: list[str], tmp_path: Path) -> None:
    for file in files:
        (tmp_path / file).touch()
    assert [case.name for case in find_images(tmp_path, channels=channels)] == names


def test_what_cannot_be_predicted_is_said(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    (tmp_path / "photo.png").touch()
    (tmp_path / "twice").mkdir()
    for name in ("a.nii", "a.nii.gz"):
        (tmp_path / "twice" / name).touch()
    for place, message in (
        ("nowhere", "does not exist"),
        ("empty", "holds no volumes .it is empty"),
        ("photo.png", r"photo\.png is not a kind of file that can be read; convert it to one of \.nii\.gz"),
        ("twice", r"a\.nii and .*a\.nii\.gz are both case 'a'"),
    ):
        with pytest.raises(DataError, match=message):
            predict(run, tmp_path / place, tmp_path / "out", device="cpu")


def test_unlike_images_are_doubted(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", replace(PLAN, spacing_mm=(2.0, 0.9, 1.5)))
    metres = np.diag([0.0015, 0.0009, 0.002, 1.0]) * [[100], [100], [100], [1]]
    odd = save(tmp_path / "odd.nii.gz", noise(8, (12, 17, 10)), metres)
    with pytest.warns(UnlikeTraining, match=r"odd: its voxels are 0\.2 x 0\.09 x 0\.15 mm"):
        (p,) = predict(run, odd, tmp_path / "out", device="cpu")
    assert len(p.warnings) == 1
    unit = save(tmp_path / "unit.nii.gz", noise(8, (12, 17, 10)) / 100)
    with pytest.warns(
        UnlikeTraining, match=r"unit: channel 0 holds values from .* expects a scan .* 0 to 100"
    ):
        predict(run, unit, tmp_path / "out", device="cpu")


def test_only_held_out_cases(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name) for name in ("r1", "r2")]
    data = tmp_path / "data"
    for name in "abcd":
        image = save(data / "images" / f"{name}.nii.gz", noise(9, (9, 12, 8)))
        (data / "labels").mkdir(exist_ok=True)
        array = np.ones((9, 12, 8), np.uint8)
        write_label(data / "labels" / image.name, array, like=image, label_names={1: "x"})
    write_json(runs[0] / "splits.json", {"test": ["b", "c"]})
    write_json(runs[1] / "splits.json", {"test": ["c", "d"]})
    assert [p.case for p in predict(runs[0], data, tmp_path / "o1", held_out_only=True, device="cpu")] == [
        "b",
        "c",
    ]
    assert [p.case for p in predict(runs, data, tmp_path / "o2", held_out_only=True, device="cpu")] == ["c"]
    assert len(predict(runs[0], data, tmp_path / "o3", device="cpu")) == 4
    write_json(runs[1] / "splits.json", {"test": []})
    with pytest.raises(DataError, match=r"no case of .* was held out"):
        predict(runs, data, tmp_path / "o4", held_out_only=True, device="cpu")
    with pytest.raises(UsageError, match="is not a data set"):
        predict(runs, data / "images", tmp_path / "o5", held_out_only=True, device="cpu")


def test_runs_that_cannot_predict_say_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        load_model(tmp_path / "nowhere")
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="is not a run"):
        load_model(tmp_path / "other")
    (tmp_path / "other" / "recipe.yaml").touch()
    for kind in ("train", "pretrain"):
        (tmp_path / "other" / "manifest.json").write_text(json.dumps({"kind": kind}))
        with pytest.raises(RunError, match=f"is not finished.*'handful {kind}'"):
            load_model(tmp_path / "other")
    newer = make_run(tmp_path / "newer", metadata={"format": 99, "version": "7.0"})
    with pytest.raises(RunError, match=r"has format 99, written by handful 7\.0.*Upgrade"):
        load_model(newer)
    damaged = make_run(tmp_path / "damaged")
    whole = (damaged / "weights.safetensors").read_bytes()
    (damaged / "weights.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="damaged"):
        load_model(damaged)
    smaller = {"name": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 5, "kernel_size": 1}
    unlike = make_run(tmp_path / "unlike", metadata={"architecture": smaller})
    with pytest.raises(DataError, match="do not fit the network"):
        load_model(unlike)
    run = make_run(tmp_path / "run")
    more = make_run(tmp_path / "more", replace(PLAN, label_names=("background", "dark")))
    image = save(tmp_path / "a.nii.gz", noise(5, (9, 12, 8)))
    with pytest.raises(UsageError, match=r"know different labels.*bright.*dark"):
        predict([run, more], image, tmp_path / "out", device="cpu")
    with pytest.raises(UsageError, match="at least one run"):
        predict([], image, tmp_path / "out", device="cpu")
    with pytest.raises(UsageError, match="--device warp"):
        predict(run, image, tmp_path / "out", device="warp")
    with pytest.raises(UsageError, match="--threads must be at least 1"):
        predict(run, image, tmp_path / "out", threads=0)


def test_a_real_network_predicts_alike_whole_and_from_its_run(tmp_path: Path) -> None:
    architecture = {
        "name": "unet", "dims": 3, "in_channels": 1, "classes": 2, "widths": [4, 8], "strides": [[1, 2, 2]],
        "norm": "batch",
    }  # fmt: skip
    network = build_network(architecture).eval()
    about = {"format": 1, "architecture": architecture, "plan": json.loads(json.dumps(asdict(PLAN)))}
    save_weights(tmp_path / "run" / "weights.safetensors", {"segmenter": network}, about)
    model = load_model(tmp_path / "run")
    image = np.random.default_rng(0).normal(size=(1, 10, 20, 12)).astype(np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(image)[None]).softmax(1)[0]
    np.testing.assert_allclose(model.probabilities(image), expected, atol=1e-5)
