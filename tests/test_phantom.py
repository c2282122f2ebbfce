"""The phantom is the same wherever it is made, hard enough to need learning, and laid out as it says."""

import csv
import hashlib
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from handful.data import phantom
from handful.data.phantom import LABEL_NAMES, PhantomVolume, draw_volume, make_phantom
from handful.errors import UsageError

SIZE = (44, 36, 30)
SPACING = (2.2, 2.4, 3.5)
RARE = 5


@pytest.fixture(scope="module")
def volumes() -> list[PhantomVolume]:
    return [draw_volume(patient, size=SIZE, spacing_mm=SPACING, seed=3) for patient in range(10)]


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_seed_gives_the_same_bytes_and_a_patient_does_not_depend_on_the_others(
    tmp_path: Path,
) -> None:
    def make(name: str, patients: int, seed: int = 0) -> dict[str, str]:
        folder = make_phantom(
            tmp_path / name, patients=patients, unlabelled=1, held_out=1, size=(22, 18, 14), seed=seed
        )
        return digests(folder)

    first, again, larger, other = make("a", 4), make("b", 4), make("c", 6), make("d", 4, seed=1)
    assert first == again
    assert first["imagesTr/phantom_001.nii.gz"] == larger["imagesTr/phantom_001.nii.gz"]
    images = [name for name in first if name.startswith("images")]
    assert len(images) == 4
    assert all(first[name] != other[name] for name in images)


def test_the_order_of_drawing_does_not_matter(volumes: list[PhantomVolume]) -> None:
    late = draw_volume(7, size=SIZE, spacing_mm=SPACING, seed=3)
    assert np.array_equal(late.image, volumes[7].image)
    assert np.array_equal(late.label, volumes[7].label)


def test_patients_differ_in_anatomy_and_in_scanner(volumes: list[PhantomVolume]) -> None:
    livers = [int((v.label == 1).sum()) for v in volumes]
    assert len(set(livers)) == len(livers)
    assert max(livers) > 1.2 * min(livers)
    middles = [float(np.median(v.image[v.label == 1])) for v in volumes]
    assert max(middles) > 100 * min(middles), "MR intensities have no unit"
    assert len({v.image.shape for v in volumes}) > 5


def test_every_structure_but_the_rare_one_is_in_every_patient_and_sizes_have_a_long_tail(
    volumes: list[PhantomVolume],
) -> None:
    counts = np.array([np.bincount(v.label.ravel(), minlength=len(LABEL_NAMES)) for v in volumes])
    common = [value for value in LABEL_NAMES if value != RARE]
    assert (counts[:, common] >= 20).all()
    present = counts[:, RARE] > 0
    assert 0 < present.sum() < len(volumes)
    assert counts[:, 1].mean() > 30 * counts[present, RARE].mean()
    assert counts.shape[1] == len(LABEL_NAMES), "no value that is not declared"
    for left, right in zip(counts[:, 2], counts[:, 3]):
        assert 1 / 4 < left / right < 4


def test_left_and_right_are_where_the_affine_says(volumes: list[PhantomVolume]) -> None:
    mirrored = 0
    for volume in volumes:
        centres = [
            nibabel.affines.apply_affine(volume.affine, np.argwhere(volume.label == value).mean(0))
            for value in (2, 3)
        ]
        assert centres[0][0] > 0 > centres[1][0], "RAS: the right kidney has the larger first coordinate"
        mirrored += int(np.linalg.det(volume.affine) < 0)
    assert 0 < mirrored < len(volumes)


def test_spacing_is_as_said_and_a_few_are_oblique(volumes: list[PhantomVolume]) -> None:
    oblique = 0
    for number, volume in enumerate(volumes):
        spacing = nibabel.affines.voxel_sizes(volume.affine)
        inplane = 0.9 if number % 4 == 2 else 1.0
        assert spacing == pytest.approx([SPACING[0] * inplane, SPACING[1] * inplane, SPACING[2]])
        oblique += int(nibabel.affines.obliquity(volume.affine).max() > np.deg2rad(3))
        extent = np.array(volume.image.shape) * spacing
        assert np.allclose(extent, np.array(SIZE) * SPACING, rtol=0.12)
    assert 0 < oblique < len(volumes) / 2


def test_labels_align_with_intensities() -> None:
    """In HU the liver is brighter than the fat around it, and a label moved by three voxels fits worse."""
    for patient in range(3):
        volume = draw_volume(patient, size=SIZE, spacing_mm=SPACING, modality="CT")
        image = volume.image.astype(float)
        inside = volume.label == 1
        moved = np.roll(inside, 3, axis=1)
        assert volume.image.dtype == np.int16
        assert 80 < np.median(image[inside]) < 130
        assert image[inside].std() < image[moved].std()
        assert image.min() >= -1024
        assert np.median(image[:2, -2:]) < -900, "air in the corner"


def test_no_threshold_finds_a_structure_not_even_one_fitted_on_the_answer(
    volumes: list[PhantomVolume],
) -> None:
    """For each structure, take the best of many intensity intervals *in the very same image*."""
    best: dict[int, list[float]] = {value: [] for value in LABEL_NAMES if value}
    for volume in volumes[:5]:
        for value, scores in best.items():
            truth = volume.label == value
            if not truth.any():
                continue
            levels = np.quantile(volume.image[truth], np.linspace(0, 1, 15))
            dice = []
            for low in levels[:7]:
                for high in levels[8:]:
                    guess = (volume.image >= low) & (volume.image <= high)
                    dice.append(2 * (guess & truth).sum() / (guess.sum() + truth.sum()))
            scores.append(max(dice))
    means = {LABEL_NAMES[value]: float(np.mean(scores)) for value, scores in best.items()}
    assert len(means) == 5
    assert means["liver"] < 0.65, means
    assert all(mean < 0.35 for name, mean in means.items() if name != "liver"), means


def test_two_frames_share_the_anatomy_but_not_the_moment() -> None:
    first, second, stranger = (
        draw_volume(patient, frame, size=SIZE, spacing_mm=SPACING)
        for patient, frame in ((0, 0), (0, 1), (8, 0))
    )
    assert first.image.shape == second.image.shape
    assert np.array_equal(first.affine, second.affine)
    same = ((first.label == 1) & (second.label == 1)).sum() / (first.label == 1).sum()
    assert 0.6 < same < 1
    assert stranger.image.shape != first.image.shape
    assert not np.array_equal(first.image, second.image)


def test_the_folder_is_laid_out_as_said(tmp_path: Path) -> None:
    folder = make_phantom(
        tmp_path / "P", patients=5, unlabelled=2, held_out=1, frames=2, modality="CT", size=(20, 18, 14)
    )
    description = json.loads((folder / "dataset.json").read_text())
    assert description["labels"] == {str(value): name for value, name in LABEL_NAMES.items()}
    assert description["modality"] == {"0": "CT"}
    assert len(description["training"]) == description["numTraining"] == 4
    assert len(description["test_labelled"]) == 2
    for entry in [*description["training"], *description["test_labelled"]]:
        assert (folder / entry["image"]).is_file()
        assert (folder / entry["label"]).is_file()
    names = {
        part: {p.name for p in (folder / part).iterdir()} for part in ("imagesTr", "imagesUn", "imagesTs")
    }
    assert [len(found) for found in names.values()] == [4, 4, 2]
    assert names["imagesTs"] == {p.name for p in (folder / "labelsTs").iterdir()}
    assert not (folder / "labelsUn").exists()
    rows = list(csv.DictReader((folder / "cases.csv").read_text().splitlines()))
    assert len(rows) == 10
    assert len({row["patient"] for row in rows}) == 5
    assert {f"{row['case']}.nii.gz" for row in rows} == set().union(*names.values())
    image = nibabel.load(folder / "imagesTr" / "phantom_000_frame1.nii.gz")
    label = nibabel.load(folder / "labelsTr" / "phantom_000_frame1.nii.gz")
    assert image.shape == label.shape
    assert np.array_equal(image.affine, label.affine)
    assert image.header.get_xyzt_units()[0] == "mm"


def test_a_half_written_folder_is_not_taken_for_a_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = 0
    write = phantom._write

    def fails_late(*arguments: object) -> None:
        nonlocal written
        written += 1
        if written == 4:
            raise KeyboardInterrupt
        write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(phantom, "_write", fails_late)
    with pytest.raises(KeyboardInterrupt):
        make_phantom(tmp_path / "P", patients=4, unlabelled=1, held_out=1, size=(16, 14, 13))
    assert list(tmp_path.iterdir()) == []


def test_an_equal_phantom_is_kept_and_anything_else_is_refused(tmp_path: Path) -> None:
    folder = make_phantom(tmp_path / "P", patients=3, unlabelled=1, held_out=1, size=(16, 14, 13))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert make_phantom(folder, patients=3, unlabelled=1, held_out=1, size=(16, 14, 13)) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    with pytest.raises(UsageError, match="holds no such phantom"):
        make_phantom(folder, patients=3, unlabelled=1, held_out=1, size=(16, 14, 13), seed=1)
    with pytest.raises(UsageError, match="labelled patient"):
        make_phantom(tmp_path / "Q", patients=3, unlabelled=2, held_out=1)
    with pytest.raises(UsageError, match="12 voxels"):
        make_phantom(tmp_path / "Q", patients=3, unlabelled=0, held_out=1, size=(16, 8, 13))
