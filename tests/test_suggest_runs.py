"""What runs are asked before labelling: a segmenter what it is unsure of, an encoder which images are alike."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from handful.cli.main import main
from handful.data.discover import open_dataset
from handful.data.io import read_image
from handful.data.plan import Normalisation
from handful.data.preprocess import prepare
from handful.errors import DataError, UsageError
from handful.inference.model import load_model
from handful.inference.tta import entropy
from handful.networks.build import build_network, unet_architecture
from handful.networks.weights import save_weights
from handful.suggestion.embeddings import crops, embedding_features, load_encoder
from handful.suggestion.suggest import suggest
from handful.suggestion.warm import choose_uncertain, class_uncertainty, predict_uncertainty
from test_predict import PLAN, make_run
from volumes import nnunet, save

# --- uncertainty of structures


def test_the_uncertainty_of_a_structure_is_the_entropy_weighted_by_its_probability() -> None:
    probabilities = np.array([[0.9, 0.5, 0.2], [0.1, 0.5, 0.1], [0.0, 0.0, 0.7]])[:, None, :]
    entropies = [
        -sum(p * math.log(p) for p in column if p > 0) / math.log(3) for column in probabilities[:, 0].T
    ]
    expected = [
        (0.1 * entropies[0] + 0.5 * entropies[1] + 0.1 * entropies[2]) / 0.7,
        entropies[2],
    ]
    assert class_uncertainty(probabilities.astype(np.float32)) == pytest.approx(expected, rel=1e-5)


def test_sure_background_does_not_count_and_an_impossible_structure_is_sure() -> None:
    small = np.random.default_rng(0).dirichlet((1, 1, 1), size=(4, 5)).transpose(2, 0, 1)
    large = np.zeros((3, 4, 50))
    large[0] = 1
    large[:, :, :5] = small
    assert class_uncertainty(large) == pytest.approx(class_uncertainty(small))
    assert class_uncertainty(np.array([[1.0, 0.5], [0.0, 0.5], [0.0, 0.0]]))[1] == 0


# --- the choice


SCORES = np.array([[0.10, 0.90], [0.80, 0.20], [0.70, 0.85], [0.75, 0.15], [0.30, 0.30], [0.60, 0.88]])


def chosen(count: int, **changes: object) -> list[tuple[int, int | None]]:
    given = {"cluster": list(range(6)), "patients": list("abcdef"), "power": math.inf} | changes
    return [(p.index, p.structure) for p in choose_uncertain(SCORES, count=count, **given)]  # type: ignore[arg-type]


def test_two_thirds_go_to_the_structures_in_turn_the_rest_to_their_mean() -> None:
    # the means over cases are 0.54 and 0.55: the second structure begins; the means over structures of the cases left
    # are 0.5 (case 1 is taken), 0.775 (2), 0.45, 0.3, 0.74 (5)
    assert chosen(3) == [(0, 1), (1, 0), (2, None)]
    assert chosen(6) == [(0, 1), (1, 0), (5, 1), (3, 0), (2, None), (4, None)]
    assert chosen(1) == [(0, 1)]


def test_a_patient_and_a_cluster_are_taken_once() -> None:
    assert chosen(2, patients=list("abcadb")) == [(0, 1), (1, 0)]
    assert chosen(2, patients=list("aacadb")) == [(0, 1), (2, 0)]
    assert chosen(2, cluster=[0, 0, 0, 1, 2, 3]) == [(0, 1), (3, 0)]
    # one cluster: the rule cannot be kept, the patients' still is
    assert chosen(2, cluster=[0] * 6, patients=list("aabcde")) == [(0, 1), (3, 0)]


def test_power_noise_draws_in_proportion_to_a_power_of_uncertainty() -> None:
    scores = np.array([[0.2], [0.4], [0.8]])
    first = [
        choose_uncertain(scores, cluster=[0, 1, 2], patients=list("abc"), count=1, power=2.0, seed=seed)[
            0
        ].index
        for seed in range(3000)
    ]
    shares = np.bincount(first, minlength=3) / 3000
    assert shares == pytest.approx(np.array([0.04, 0.16, 0.64]) / 0.84, abs=0.03)


# --- runs on files


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four labelled cases and three without; what is near 50 is what ``make_run`` is unsure of."""
    root = nnunet(tmp_path / "Set", labels={"background": 0, "bright": 7}, numTraining=4)
    for name, middle in (("u0", 90), ("u1", 52), ("u2", 5)):
        values = np.random.default_rng(1).normal(middle, 2, (7, 6, 5)).astype(np.float32)
        save(root / "imagesTr" / f"{name}_0000.nii.gz", values)
    return root


def segmenter(folder: Path, dice: float | None = 0.8, **metadata: object) -> Path:
    make_run(folder, metadata={"data_name": "Set", **metadata})
    if dice is not None:
        (folder / "validation").mkdir()
        (folder / "validation" / "summary.json").write_text(json.dumps({"mean": {"dice": dice}}))
    return folder


def test_uncertainty_of_files_is_that_of_the_averaged_runs(data: Path, tmp_path: Path) -> None:
    dataset = open_dataset(data)
    models = [load_model(make_run(tmp_path / f"r{t}", threshold=t)) for t in (45, 60)]
    found = predict_uncertainty(models, dataset.unlabelled)
    for case, row in zip(dataset.unlabelled, found, strict=True):
        image = prepare(read_image(case.images), None, PLAN).image
        mean = (models[0].probabilities(image) + models[1].probabilities(image)) / 2
        expected = (mean[1] * entropy(mean)).sum() / mean[1].sum()
        assert row == pytest.approx([expected], rel=1e-4)


def test_runs_on_different_grids_are_asked_together(data: Path, tmp_path: Path) -> None:
    coarse = replace(PLAN, spacing_mm=(3.0, 1.4, 1.4), axes=(0, 1, 2))
    models = [load_model(make_run(tmp_path / "a")), load_model(make_run(tmp_path / "b", coarse))]
    found = predict_uncertainty(models, open_dataset(data).unlabelled)
    assert found.shape == (3, 1)
    assert (found > 0).all()
    other = replace(PLAN, label_names=("background", "dark"))
    with pytest.raises(UsageError, match="know different labels"):
        predict_uncertainty(
            [models[0], load_model(make_run(tmp_path / "c", other))], open_dataset(data).unlabelled
        )


def test_a_trusted_run_suggests_what_it_is_unsure_of(data: Path, tmp_path: Path) -> None:
    run = segmenter(tmp_path / "run", 0.8)
    found = suggest(data, run=run, count=1, seed=1, device="cpu")
    assert found.mode == "warm"
    assert "validation Dice 0.800 is above 0.5" in found.why
    scores = {}
    for seed in range(6):
        item = suggest(data, run=run, count=3, seed=seed, device="cpu").items
        scores |= {i.case: i.uncertainty for i in item}
    assert max(scores, key=lambda case: scores[case] or 0) == "u1"
    assert "unsure of" in found.items[0].reason


@pytest.mark.parametrize(("dice", "why"), [(0.4, "is not above 0.5"), (None, "no validation Dice")])
def test_a_run_below_a_half_is_not_asked_unless_forced(
    data: Path, tmp_path: Path, dice: float | None, why: str
) -> None:
    run = segmenter(tmp_path / "run", dice)
    cold = suggest(data, run=run, count=2, device="cpu")
    assert cold.mode == "cold"
    assert why in cold.why
    assert cold.items == suggest(data, count=2).items
    assert suggest(data, run=run, count=2, trust=True, device="cpu").mode == "warm"


def encoder_run(folder: Path, dims: int = 3) -> Path:
    torch.manual_seed(0)
    architecture = unet_architecture(dims=dims, in_channels=1, classes=2, widths=(4, 6))
    network = build_network(architecture)
    plan = replace(PLAN, dims=dims, patch=PLAN.patch[-dims:], mirror=(False,) * dims)
    about = {"format": 1, "version": "0.1.0", "architecture": architecture, "plan": asdict(plan)}
    save_weights(
        folder / "weights.safetensors", {"encoder": network.encoder}, {**about, "data_name": "Elsewhere"}
    )
    return folder


@pytest.mark.parametrize("dims", [2, 3])
def test_embeddings_are_pooled_features_of_crops(data: Path, tmp_path: Path, dims: int) -> None:
    encoder, plan = load_encoder(encoder_run(tmp_path / "pre", dims))
    cases = open_dataset(data).unlabelled
    found = embedding_features(encoder, plan, cases)
    assert found.shape == (3, 6)
    for case, row in zip(cases, found, strict=True):
        cut = crops(prepare(read_image(case.images), None, plan).image, plan)
        deep = torch.stack([encoder(piece[None])[-1][0].flatten(1).mean(1) for piece in cut])
        expected = (deep / deep.norm(dim=1, keepdim=True)).mean(0)
        assert row == pytest.approx(expected.numpy(), rel=1e-4, abs=1e-6)
    suggestion = suggest(data, run=tmp_path / "pre", count=2, device="cpu")
    assert suggestion.mode == "cold"
    assert "embeddings" in suggestion.why


def volume(*shape: int) -> NDArray[np.float32]:
    return np.arange(int(np.prod(shape)), dtype=np.float32).reshape(1, *shape)


def test_crops_lie_side_by_side_and_reach_every_voxel() -> None:
    image = volume(11, 20, 17)
    cut = crops(image, PLAN)  # patches of 8 x 16 x 8
    assert cut.shape == (2 * 2 * 3, 1, 8, 16, 8)
    assert set(cut.unique().tolist()) == set(image.ravel().tolist())
    assert crops(image, PLAN, most=5).shape[0] == 5
    small = crops(volume(5, 16, 3), PLAN)
    assert small.shape == (1, 1, 8, 16, 8)
    assert set(small.unique().tolist()) == set(volume(5, 16, 3).ravel().tolist())


def test_crops_of_slices_are_their_middle() -> None:
    plan = replace(PLAN, dims=2, patch=(4, 6), mirror=(False, False))
    image = volume(9, 8, 10)
    cut = crops(image, plan)
    assert cut.shape == (9, 1, 4, 6)
    np.testing.assert_array_equal(cut[3, 0].numpy(), image[0, 3, 2:6, 2:8])
    assert crops(image, plan, most=3)[:, 0, 0, 0].tolist() == [image[0, i, 2, 2] for i in (0, 4, 8)]


def test_runs_that_cannot_say_anything_are_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, pre = segmenter(tmp_path / "run"), encoder_run(tmp_path / "pre")
    other = segmenter(tmp_path / "other", data_name="Another")
    two = replace(PLAN, channels=(Normalisation(), Normalisation()))
    channels = make_run(tmp_path / "two", two, metadata={"data_name": "Set"})
    for runs, message in (
        ([other], "trained on Another, this is Set"),
        ([channels], "trained on 2 image channels, Set has 1"),
        ([run, pre], "not both kinds"),
        ([pre, pre], "no second pre-training"),
    ):
        with pytest.raises(UsageError, match=message):
            suggest(data, run=runs, count=1)
    words = [word for one in (run, other) for word in ("--run", str(one))]
    assert main(["suggest", str(data), "--count", "1", *words]) == 2
    assert "this is Set" in capsys.readouterr().err


def test_every_image_that_cannot_be_asked_about_is_named(data: Path, tmp_path: Path) -> None:
    for name in ("u0", "u2"):
        (data / "imagesTr" / f"{name}_0000.nii.gz").write_bytes(b"torn")
    for run in (segmenter(tmp_path / "run"), encoder_run(tmp_path / "pre")):
        with pytest.raises(DataError, match=r"(?s)^2 of \d.*\n  u0: .*\n  u2: "):
            suggest(data, run=run, count=1, device="cpu")
