"""Opening data sets in every layout, in place and without decoding voxels."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from conftest import RealData
from handful.data import discover
from handful.data.cases import Case, Dataset
from handful.data.check import check_dataset
from handful.data.discover import content_hash, open_dataset
from handful.data.io import GeometryWarning, read_image
from handful.errors import DataError, UsageError
from volumes import dataset_json, image, label, nnunet, save

MSD = {"channel_names": None, "file_ending": None, "modality": {"0": "CT"}}
MSD_LABELS = {"0": "background", "1": "head", "2": "tail"}


def names(cases: tuple[Case, ...]) -> list[str]:
    return [case.name for case in cases]


def has_note(dataset: Dataset, text: str) -> bool:
    return any(text in note for note in dataset.notes)


@pytest.fixture(autouse=True)
def no_voxels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening may read headers at most."""
    monkeypatch.setattr("handful.data.nifti.read_nifti_array", None)
    monkeypatch.setattr("handful.data.io.read_nifti_array", None)


def msd(root: Path, n: int = 3, **changes: object) -> Path:
    for i in range(n):
        save(root / "imagesTr" / f"la_{i:03d}.nii.gz", image(i))
        save(root / "labelsTr" / f"la_{i:03d}.nii.gz", label(i))
    training = [
        {"image": f"./imagesTr/la_{i:03d}.nii.gz", "label": f"./labelsTr/la_{i:03d}.nii.gz"} for i in range(n)
    ]
    dataset_json(root, **{**MSD, "labels": MSD_LABELS, "training": training, "numTraining": n, **changes})
    return root


def test_msd(tmp_path: Path) -> None:
    dataset = open_dataset(msd(tmp_path / "Task99"))
    assert dataset.layout == "msd"
    assert dataset.name == "Task99"
    assert names(dataset.labelled) == ["la_000", "la_001", "la_002"]
    assert dataset.label_names == {0: "background", 1: "head", 2: "tail"}
    assert dataset.channel_names == ("CT",)
    assert dataset.patients_from is None
    assert has_note(dataset, "every case counts as its own patient")
    assert open_dataset(tmp_path / "Task99" / "dataset.json") == dataset


def test_msd_entries_without_label_and_plain_strings_are_unlabelled(tmp_path: Path) -> None:
    root = msd(tmp_path)
    dataset_json(
        root, **MSD, labels=MSD_LABELS, numTraining=3,
        training=[
            {"image": "./imagesTr/la_000.nii.gz", "label": "./labelsTr/la_000.nii.gz"},
            {"image": "./imagesTr/la_001.nii.gz"},
            "./imagesTr/la_002.nii.gz",
        ],
    )  # fmt: skip
    dataset = open_dataset(root)
    assert names(dataset.labelled) == ["la_000"]
    assert names(dataset.unlabelled) == ["la_001", "la_002"]


def test_images_that_are_not_listed_are_unlabelled_and_said(tmp_path: Path) -> None:
    root = msd(tmp_path)
    save(root / "imagesTr" / "new.nii.gz", image(7))
    save(root / "labelsTr" / "new.nii.gz", label(7))
    dataset = open_dataset(root)
    assert names(dataset.unlabelled) == ["new"]
    assert has_note(dataset, "1 image(s) are not in its training list")
    assert has_note(dataset, "have a label, which is not used")


@pytest.mark.parametrize("layout", ["msd", "nnunet", "folders"])
def test_a_label_drawn_for_an_unlabelled_image_counts_from_then_on(tmp_path: Path, layout: str) -> None:
    root = msd(tmp_path) if layout == "msd" else nnunet(tmp_path / layout)
    if layout == "folders":
        (root / "dataset.json").unlink()
    suffix = "" if layout == "msd" else "_0000"
    for number in (7, 8):
        save(root / "imagesUn" / f"u{number}{suffix}.nii.gz", image(number))
    before = open_dataset(root)
    assert names(before.unlabelled) == ["u7", "u8"]
    drawn = save(root / "labelsTr" / "u7.nii.gz", label(7))
    dataset = open_dataset(root)
    assert names(dataset.unlabelled) == ["u8"]
    assert names(dataset.labelled) == [*names(before.labelled), "u7"]
    assert dataset.case("u7").label == drawn
    assert has_note(dataset, "1 image(s) have a label in labelsTr/ and count as labelled")
    assert not has_note(dataset, "this label has no image")


def test_msd_test_cases(tmp_path: Path) -> None:
    root = msd(
        tmp_path,
        test=["./imagesTs/x.nii.gz"],
        test_labelled=[
            {"image": "./imagesTs/t0.nii.gz", "label": "./labelsTs/t0.nii.gz"},
            {"image": "./imagesTs/gone.nii.gz", "label": "./labelsTs/gone.nii.gz"},
        ],
    )
    for name in ("t0", "t1"):
        save(root / "imagesTs" / f"{name}.nii.gz", image(9))
        save(root / "labelsTs" / f"{name}.nii.gz", label(9))
    save(root / "imagesTs" / "x.nii.gz", image(10))
    dataset = open_dataset(root)
    assert names(dataset.held_out) == ["t0", "t1"]
    assert names(dataset.labelled) == ["la_000", "la_001", "la_002"]
    assert has_note(dataset, "1 labelled test case(s) are listed but not here (first: gone)")
    assert has_note(dataset, "1 test image(s) have no label")


def test_msd_four_channels_in_one_file(tmp_path: Path) -> None:
    root = tmp_path
    save(root / "imagesTr" / "b.nii.gz", np.stack([image(i) for i in range(4)], -1))
    save(root / "labelsTr" / "b.nii.gz", label())
    entry = {"image": "./imagesTr/b.nii.gz", "label": "./labelsTr/b.nii.gz"}
    modality = {str(i): name for i, name in enumerate(("FLAIR", "T1w", "t1gd", "T2w"))}
    dataset_json(root, **{**MSD, "modality": modality}, labels=MSD_LABELS, training=[entry], numTraining=1)
    (case,) = open_dataset(root).cases
    assert case.images == (root / "imagesTr" / "b.nii.gz",) * 4


def test_old_nnunet_lists_names_without_the_suffix_it_stores(tmp_path: Path) -> None:
    root = msd(tmp_path)
    for path in list((root / "imagesTr").iterdir()):
        path.rename(path.with_name(path.name.replace(".nii.gz", "_0000.nii.gz")))
    dataset = open_dataset(root)
    assert names(dataset.labelled) == ["la_000", "la_001", "la_002"]
    assert dataset.cases[0].images[0].name == "la_000_0000.nii.gz"
    assert not dataset.unlabelled


def test_nnunet_with_and_without_suffix(tmp_path: Path) -> None:
    with_suffix = open_dataset(nnunet(tmp_path / "a"))
    assert with_suffix.layout == "nnunet"
    assert names(with_suffix.labelled) == ["c0", "c1", "c2", "c3"]
    for path in list((tmp_path / "a" / "imagesTr").iterdir()):
        path.rename(path.with_name(path.name.replace("_0000", "")))
    assert names(open_dataset(tmp_path / "a").labelled) == ["c0", "c1", "c2", "c3"]


def test_nnunet_several_channels_ignore_label_and_unlabelled(tmp_path: Path) -> None:
    labels = {"background": 0, "head": 1, "tail": 2, "ignore": 3}
    root = nnunet(tmp_path, channel_names={"0": "T1", "1": "T2"}, labels=labels, numTraining=9)
    for i in range(4):
        save(root / "imagesTr" / f"c{i}_0001.nii.gz", image(20 + i))
    for channel in (0, 1):
        save(root / "imagesUn" / f"u_{channel:04d}.nii.gz", image(30 + channel))
        save(root / "imagesTr" / f"extra_{channel:04d}.nii.gz", image(40 + channel))
    dataset = open_dataset(root)
    assert dataset.channel_names == ("T1", "T2")
    assert [p.name for p in dataset.case("c1").images] == ["c1_0000.nii.gz", "c1_0001.nii.gz"]
    assert dataset.label_names == {0: "background", 1: "head", 2: "tail"}
    assert dataset.ignore_value == 3
    assert names(dataset.unlabelled) == ["extra", "u"]
    assert has_note(dataset, "numTraining is 9, but 4 labelled cases were found")


@pytest.mark.parametrize("layout", ["images", "imagesTr"])
def test_plain_folders(tmp_path: Path, layout: str) -> None:
    for i in range(3):
        save(tmp_path / layout / f"s{i}.nii.gz", image(i))
    for i in range(2):
        save(tmp_path / layout.replace("images", "labels") / f"s{i}.nii.gz", label(i))
    save(tmp_path / "imagesUn" / "u.nii.gz", image(8))
    save(tmp_path / "imagesTs" / "t.nii.gz", image(9))
    save(tmp_path / "labelsTs" / "t.nii.gz", label(9))
    (tmp_path / layout / ".hidden.nii.gz").write_bytes(b"of macOS")
    dataset = open_dataset(tmp_path)
    assert dataset.layout == "folders"
    assert names(dataset.labelled) == ["s0", "s1"]
    assert names(dataset.unlabelled) == ["s2", "u"]
    assert names(dataset.held_out) == ["t"]
    assert dataset.channel_names == ("image",)
    assert has_note(dataset, "values are read from the label files when needed")


def test_label_names_of_plain_folders_are_the_values_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "images" / "s.nii.gz", image())
    save(tmp_path / "labels" / "s.nii.gz", np.where(label() == 2, 7, label()).astype(np.uint8))
    dataset = open_dataset(tmp_path)
    with pytest.raises(TypeError):  # no_voxels: only now are they read
        len(dataset.label_names)
    monkeypatch.undo()
    assert dict(dataset.label_names) == {0: "background", 1: "1", 7: "7"}


@pytest.mark.parametrize(
    ("files", "labels", "expected"),
    [
        (["p_0000", "q_0000"], [], {"p": 1, "q": 1}),
        (["p_0000", "p_0001", "q_0000", "q_0001"], [], {"p": 2, "q": 2}),
        (["p_0000", "p_0001", "p_0002"], [], {"p_0000": 1, "p_0001": 1, "p_0002": 1}),
        (["p_0000", "p_0001"], ["p"], {"p": 2}),
        (["p_0000", "q_0000"], ["p_0000"], {"p_0000": 1, "q_0000": 1}),
        (["p_0001", "p_0002"], [], {"p_0001": 1, "p_0002": 1}),
    ],
)
def test_four_digits_are_a_channel_only_where_they_must_be(
    tmp_path: Path, files: list[str], labels: list[str], expected: dict[str, int]
) -> None:
    for i, name in enumerate(files):
        save(tmp_path / "images" / f"{name}.nii.gz", image(i))
    for i, name in enumerate(labels):
        save(tmp_path / "labels" / f"{name}.nii.gz", label(i))
    assert {case.name: len(case.images) for case in open_dataset(tmp_path).cases} == expected


def csv_set(root: Path, text: str) -> Path:
    for i in range(4):
        save(root / "deep" / f"i{i}.nii.gz", image(i))
        save(root / "deep" / f"j{i}.nii.gz", image(i + 50))
        save(root / "deep" / f"l{i}.nii.gz", label(i))
    path = root / "manifest.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_csv_manifest(tmp_path: Path) -> None:
    text = (
        "\ufeffcase,patient,image,image2,label,split,age\n"
        "a,p1,deep/i0.nii.gz,deep/j0.nii.gz,deep/l0.nii.gz,train,7\n"
        "b,p1,deep/i1.nii.gz,deep/j1.nii.gz,,,\n\n"
        "c,p2,deep/i2.nii.gz,deep/j2.nii.gz,deep/l2.nii.gz,test,\n"
        "d,,deep/i3.nii.gz,deep/j3.nii.gz,deep/l3.nii.gz,unlabelled,\n"
    )
    dataset = open_dataset(csv_set(tmp_path, text))
    assert dataset.layout == "csv"
    assert dataset.name == "manifest"
    assert names(dataset.labelled) == ["a"]
    assert names(dataset.unlabelled) == ["b", "d"]
    assert names(dataset.held_out) == ["c"]
    assert {case.name: case.patient for case in dataset.cases} == {"a": "p1", "b": "p1", "c": "p2", "d": "d"}
    assert dataset.patients_from == "column 'patient' of manifest.csv"
    assert len(dataset.channel_names) == 2
    assert has_note(dataset, "column(s) not used: age")
    assert has_note(dataset, "its label is not used")


def test_csv_with_semicolons_and_a_dataset_json(tmp_path: Path) -> None:
    dataset_json(tmp_path)
    dataset = open_dataset(csv_set(tmp_path, "case;image;label\na;deep/i0.nii.gz;deep/l0.nii.gz\n"))
    assert dataset.label_names[2] == "tail"
    assert dataset.channel_names == ("MRI",)


def test_patients_from_cases_csv(tmp_path: Path) -> None:
    root = nnunet(tmp_path, groups={"key": "subject"})
    (root / "cases.csv").write_text("case,subject,age\nc0,A,1\nc1,A,2\nc2,B,3\n")
    dataset = open_dataset(root)
    assert [case.patient for case in dataset.cases] == ["A", "A", "B", "c3"]
    assert dataset.patients_from == "column 'subject' of cases.csv"
    assert has_note(dataset, "1 case(s) are not in it (first: c3)")


def test_patients_from_a_pattern(tmp_path: Path) -> None:
    root = nnunet(tmp_path)
    dataset = open_dataset(root, patients=r"^(\w)\d")
    assert {case.patient for case in dataset.cases} == {"c"}
    for pattern, message in (
        (r"(x\d)", "does not match case 'c0'"),
        (r"c\d", "parentheses"),
        (r"(c", "no regular"),
    ):
        with pytest.raises(UsageError, match=message):
            open_dataset(root, patients=pattern)


def test_files_that_contradict_themselves_are_noted_once(tmp_path: Path) -> None:
    root = nnunet(tmp_path)
    for i in (1, 2):
        save(
            root / "imagesTr" / f"c{i}_0000.nii.gz",
            image(i),
            sform=np.diag([-1.0, 1, 1 + i * 1e-5, 1]),
            qform_code=0,
        )
    notes = [note for note in open_dataset(root).notes if "unit sform" in note]
    assert len(notes) == 1
    assert "So in 2 files" in notes[0]


def test_the_hash_follows_the_content_not_the_place(tmp_path: Path) -> None:
    first = content_hash(open_dataset(nnunet(tmp_path / "a")))
    shutil.copytree(tmp_path / "a", tmp_path / "elsewhere" / "a")
    moved = tmp_path / "elsewhere" / "a"
    assert content_hash(open_dataset(moved)) == first
    save(moved / "labelsTr" / "c1.nii.gz", label(77))
    changed = content_hash(open_dataset(moved))
    dataset_json(tmp_path / "a", labels={"background": 0, "head": 1, "other": 2})
    renamed = content_hash(open_dataset(tmp_path / "a"))
    assert len({first, changed, renamed}) == 3


def test_the_hash_reads_both_ends_of_large_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discover, "MIB", 8)
    path = tmp_path / "f"
    digests = set()
    for data in (b"0" * 40, b"1" + b"0" * 39, b"0" * 39 + b"1", b"0" * 41):
        path.write_bytes(data)
        digests.add(discover._digest(path))
    assert len(digests) == 4


def test_many_problems_are_cut_short_and_lead_to_check(tmp_path: Path) -> None:
    root = msd(tmp_path, n=8)
    shutil.rmtree(root / "labelsTr")
    with pytest.raises(DataError, match="3 more; handful check") as caught:
        open_dataset(root)
    assert str(caught.value).count("does not exist") == 5


def test_real_data_sets(shared_data: RealData) -> None:
    expected = {
        "Task04_Hippocampus": (200, 200, ("MRI",), None),
        "ACDC": (200, 100, ("MRI",), "column 'patient' of cases.csv"),
        "OASIS_Subcortical": (15, 15, ("MRI",), "column 'oasis_subject' of cases.csv"),
    }
    for name, (cases, patients, channels, patients_from) in expected.items():
        dataset = open_dataset(shared_data / name)
        assert len(dataset.labelled) == len(dataset.cases) == cases
        assert len({case.patient for case in dataset.cases}) == patients
        assert dataset.channel_names == channels
        assert dataset.patients_from == patients_from
        assert dataset.label_names[0] == "background"
    assert len(dataset.label_names) == 15
    assert has_note(dataset, "20 labelled test case(s) are listed but not here")


def test_the_orphans_of_hippocampus(shared_data: RealData) -> None:
    folder = shared_data / "quirks/hippocampus_orphans"
    with pytest.raises(DataError, match=r"hippocampus_010.nii.gz: this label has no image"):
        open_dataset(folder)


def test_original_acdc_is_opened_with_a_loud_note(
    shared_data: RealData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shared_data / "quirks/acdc_original_header"
    for kind, file in (("images", "patient001_frame01.nii.gz"), ("labels", "patient001_frame01_gt.nii.gz")):
        (tmp_path / kind).mkdir()
        shutil.copy(folder / file, tmp_path / kind / "patient001_frame01.nii.gz")
    dataset = open_dataset(tmp_path, patients=r"(patient\d+)")
    assert has_note(dataset, "unit sform")
    assert dataset.cases[0].patient == "patient001"
    monkeypatch.undo()
    report = check_dataset(tmp_path)
    assert not report.fatal
    assert sum("unit sform" in problem.what for problem in report.problems) == 2
    assert report.found["spacing_mm"]["median"] == [1.5625, 1.5625, 10.0]
    with pytest.warns(GeometryWarning):
        read_image(dataset.cases[0].images)


def test_test_images_listed_bare_but_labelled_in_labels_ts_are_held_out_without_a_word(
    phantom_folder: Path,
) -> None:
    dataset = open_dataset(phantom_folder)
    assert len(dataset.held_out) == 2
    assert not [note for note in dataset.notes if "have no label" in note]
