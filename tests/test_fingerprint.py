"""The fingerprint: closed forms, only the budget's labels, one reading of each image."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff

from handful.data import fingerprint as module
from handful.data.cases import Case, Dataset
from handful.data.fingerprint import PieceCount, make_fingerprint, read_fingerprint, write_fingerprint
from handful.data.intensity import PERCENTILES, describe, thin
from handful.data.plan import make_plan
from handful.errors import DataError

SHAPE, SPACING = (20, 15, 8), (1.0, 1.5, 4.0)


def save(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    """Three RAS cases: a box of value 2 with intensity 100, a box of value 5 with 200, in a sea of 10 to 20."""
    cases = []
    for index in range(3):
        rng = np.random.default_rng(index)
        image = rng.uniform(10, 20, SHAPE).astype(np.float32)
        label = np.zeros(SHAPE, np.uint8)
        label[4:8, 3:9, 2:4] = 2
        label[10:15, 5:6, 2:7] = 5
        image[label == 2], image[label == 5] = 100, 200
        affine = np.diag([*SPACING, 1.0])
        cases.append(
            Case(
                name=f"case{index}",
                patient=f"patient{index // 2}",
                images=(save(tmp_path / "images" / f"{index}.nii.gz", image, affine),),
                label=save(tmp_path / "labels" / f"{index}.nii.gz", label, affine),
            )
        )
    return Dataset(
        name="boxes",
        root=tmp_path,
        layout="folders",
        cases=tuple(cases),
        label_names={0: "background", 2: "flat", 5: "tall"},
        channel_names=("MR",),
    )


def test_boxes_in_closed_form(dataset):
    found = make_fingerprint(dataset, dataset.cases[:1], dataset.cases)
    assert [case.case for case in found.cases] == ["case0", "case1", "case2"]
    first = found.cases[0]
    assert (first.shape, first.spacing_mm, first.orientation) == (SHAPE, SPACING, "RAS")
    assert found.labelled == ("case0",)
    flat, tall = found.classes
    assert (flat.value, flat.voxels, flat.volume_ml) == (2, 48, pytest.approx(48 * 6 / 1000))
    assert flat.centroid == pytest.approx((6 / 20, 6 / 15, 3 / 8))
    assert (flat.low, flat.high) == ((4 / 20, 3 / 15, 2 / 8), (8 / 20, 9 / 15, 4 / 8))
    assert tall.centroid == pytest.approx((12.5 / 20, 5.5 / 15, 4.5 / 8))
    assert (flat.channels[0].mean, tall.channels[0].mean) == (100, 200)
    assert found.foreground[0].voxels == 48 + 25
    assert found.foreground[0].mean == pytest.approx((48 * 100 + 25 * 200) / 73)
    assert found.body[0].voxels == 3 * np.prod(SHAPE)


def relabel(case: Case, *changes: tuple[tuple[int, int, int], int]) -> None:
    """Change single voxels of a case's label file."""
    image = nib.load(case.label)
    array = np.asarray(image.dataobj).copy()
    for place, value in changes:
        array[place] = value
    save(case.label, array, image.affine)


def pieces(found) -> dict:
    return {count.value: (count.cases, count.patients, count.whole) for count in found.pieces}


def test_pieces_are_counted_by_hand(dataset):
    everything = make_fingerprint(dataset, dataset.cases, [])
    assert everything.pieces == tuple(
        PieceCount(value=value, cases=3, patients=2, whole=whole)
        for value, whole in ((2, 3), (5, 3), (None, 0))
    )  # the two boxes do not touch
    assert [entry.largest_piece for entry in everything.classes] == [1.0] * 6
    # a second piece of one voxel is 1 of 49 of the flat box, 1 of 26 of the tall one
    relabel(dataset.cases[0], ((0, 0, 0), 2))
    # a voxel that touches by a corner belongs to it
    relabel(dataset.cases[1], ((8, 9, 4), 2))
    # nothing left of the tall box
    relabel(dataset.cases[2], *(((x, 5, z), 0) for x in range(10, 15) for z in range(2, 7)))
    found = make_fingerprint(dataset, dataset.cases, [])
    assert pieces(found) == {2: (3, 2, 2), 5: (2, 1, 2), None: (3, 2, 1)}
    shares = {(entry.case, entry.value): entry.largest_piece for entry in found.classes}
    assert shares["case0", 2] == 48 / 49
    assert shares["case1", 2] == 1


def test_stray_voxels_are_tolerated_up_to_a_hundredth(dataset):
    case = dataset.cases[0]
    big = [((x, y, z), 2) for x in range(5) for y in range(4) for z in range(5)]  # 100 voxels
    relabel(case, *(((x, y, z), 0) for x, y, z in np.ndindex(SHAPE)), *big[1:], ((19, 14, 7), 2))
    assert pieces(make_fingerprint(dataset, [case], []))[2] == (1, 1, 1)
    relabel(case, (big[1][0], 0))
    assert pieces(make_fingerprint(dataset, [case], []))[2] == (1, 1, 0)


def test_no_label_shows_no_piece(dataset):
    assert pieces(make_fingerprint(dataset, [], dataset.cases)) == {
        2: (0, 0, 0),
        5: (0, 0, 0),
        None: (0, 0, 0),
    }


def test_labels_outside_the_budget_do_not_change_the_flag(dataset):
    budget = [dataset.cases[0], dataset.cases[2]]  # of two patients
    flags = make_plan(make_fingerprint(dataset, budget, dataset.cases), dataset).one_piece
    assert flags == (False, True, True)
    relabel(dataset.cases[1], *(((x, 0, 0), 2 + 3 * (x % 4 == 0)) for x in range(0, 20, 2)))
    assert make_plan(make_fingerprint(dataset, budget, dataset.cases), dataset).one_piece == flags
    within = make_plan(make_fingerprint(dataset, dataset.cases, dataset.cases), dataset)
    assert within.one_piece == (False, False, False)  # the same label counts inside the budget
    dataset.cases[1].label.write_bytes(b"poison")
    assert make_plan(make_fingerprint(dataset, budget, dataset.cases), dataset).one_piece == flags
    one_patient = make_fingerprint(dataset, dataset.cases[:1], dataset.cases)
    assert make_plan(one_patient, dataset).one_piece == (False, False, False)


@pytest.mark.parametrize("orientation", ["LAS", "SPR", "ALI"])
def test_the_orientation_of_the_file_does_not_matter(dataset, tmp_path, orientation):
    case = dataset.cases[0]
    to = nib.orientations.axcodes2ornt(orientation)
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), to)
    turned = []
    for path in (*case.images, case.label):
        image = nib.load(path)
        array = apply_orientation(np.asarray(image.dataobj), turn)
        affine = image.affine @ inv_ornt_aff(turn, image.shape)
        turned.append(save(tmp_path / "turned" / f"{path.parent.name}.nii.gz", array, affine))
    other = dataclasses.replace(case, images=(turned[0],), label=turned[1])
    expected = make_fingerprint(dataset, [case], [case])
    found = make_fingerprint(dataset, [other], [other])
    assert found.cases[0].orientation == orientation
    for field in ("shape", "spacing_mm", "background"):
        assert getattr(found.cases[0], field) == getattr(expected.cases[0], field)
    assert found.classes == expected.classes
    assert found.pieces == expected.pieces


def test_labels_outside_the_budget_are_never_opened(dataset):
    expected = make_fingerprint(dataset, dataset.cases[:1], dataset.cases)
    for case in dataset.cases[1:]:
        case.label.write_bytes(b"poison")
    assert make_fingerprint(dataset, dataset.cases[:1], dataset.cases).hash == expected.hash
    nothing = make_fingerprint(dataset, [], dataset.cases)
    assert (nothing.classes, nothing.foreground[0].voxels) == ((), 0)


def test_each_image_is_read_once_and_threads_change_nothing(dataset, monkeypatch):
    read, count = module.read_image, Counter()

    def counted(paths):
        count.update(paths)
        return read(paths)

    monkeypatch.setattr(module, "read_image", counted)
    one = make_fingerprint(dataset, dataset.cases[:2], dataset.cases[1:], threads=1)
    assert len(one.cases) == len(count) == 3
    assert set(count.values()) == {1}
    assert make_fingerprint(dataset, dataset.cases[:2], dataset.cases[1:], threads=4).hash == one.hash


def test_errors_in_words(dataset):
    case = dataset.cases[0]
    with pytest.raises(DataError, match="no image"):
        make_fingerprint(dataset, [], [])
    with pytest.raises(DataError, match="no label file"):
        make_fingerprint(dataset, [dataclasses.replace(case, label=None)], [])
    with pytest.raises(DataError, match=r"nobody declared: \[5\]"):
        make_fingerprint(dataclasses.replace(dataset, label_names={0: "background", 2: "flat"}), [case], [])
    affine = np.diag([2.0, 1.5, 4.0, 1.0])
    moved = save(dataset.root / "moved.nii.gz", np.zeros(SHAPE, np.uint8), affine)
    with pytest.raises(DataError, match="does not lie on its image"):
        make_fingerprint(dataset, [dataclasses.replace(case, label=moved)], [])


def test_ignored_voxels_are_no_foreground(dataset):
    ignoring = dataclasses.replace(dataset, label_names={0: "background", 2: "flat"}, ignore_value=5)
    found = make_fingerprint(ignoring, dataset.cases[:1], [])
    assert [entry.value for entry in found.classes] == [2]
    assert pieces(found) == {2: (1, 1, 1), None: (1, 1, 1)}
    assert (found.foreground[0].voxels, found.foreground[0].mean) == (48, 100)


def test_file_round_trip_and_a_changed_file(dataset, tmp_path):
    found = make_fingerprint(dataset, dataset.cases[:2], dataset.cases)
    path = tmp_path / "fingerprint.json"
    write_fingerprint(path, found)
    assert read_fingerprint(path) == found
    assert read_fingerprint(path).hash == found.hash == json.loads(path.read_text())["hash"]
    path.write_text(path.read_text().replace('"voxels": 48', '"voxels": 49'))
    with pytest.raises(DataError, match="changed after it was written"):
        read_fingerprint(path)
    path.write_text('{"hash": "0", "cases": 3}')
    with pytest.raises(DataError, match="Delete the file"):
        read_fingerprint(path)
    path.write_text("[]")
    with pytest.raises(DataError, match="not a fingerprint"):
        read_fingerprint(path)


def test_statistics_in_closed_form():
    values = np.arange(1001, dtype=np.float32)
    found = describe(values)
    assert found.percentiles == pytest.approx(np.array(PERCENTILES) * 10)
    assert (found.mean, found.mad) == (500, 250)
    assert found.spread < found.sd
    assert describe(values[:0]).voxels == 0
    assert len(thin(values, 100)) <= 100
    assert np.array_equal(thin(values, 1001), values)


def test_real_volumes(shared_data):
    root = shared_data / "Task04_Hippocampus"
    cases = [
        Case(name=path.name, patient=path.name, images=(path,), label=root / "labelsTr" / path.name)
        for path in sorted((root / "imagesTr").glob("*.nii.gz"))[:5]
    ]
    dataset = Dataset(
        name="Hippocampus",
        root=root,
        layout="msd",
        cases=tuple(cases),
        label_names={0: "background", 1: "Anterior", 2: "Posterior"},
        channel_names=("MRI",),
    )
    found = make_fingerprint(dataset, cases[:2], cases, threads=2)
    assert len(found.cases) == 5
    assert [(entry.case, entry.value) for entry in found.classes] == [
        (case.name, value) for case in cases[:2] for value in (1, 2)
    ]
    for anterior, posterior in (found.classes[:2], found.classes[2:]):
        assert anterior.centroid[1] > posterior.centroid[1]
        assert 0.5 < anterior.volume_ml < 4


@pytest.mark.parametrize("with_label", [True, False])
def test_what_is_kept_of_a_volume_does_not_keep_the_volume(dataset, monkeypatch, with_label):
    monkeypatch.setattr(module, "POOLED_PER_CASE", 50)
    seen = module._look_at(dataset.cases[0], dataset, with_label=with_label)
    for values, count in (*seen.foreground, *seen.body):
        assert len(values) <= 50
        assert values.base is None
        assert count >= len(values)
    assert seen.body[0][1] == np.prod(SHAPE)
