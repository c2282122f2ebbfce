"""A DICOM series is the volume that NIfTI would hold, wherever an image may stand; other folders are refused."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, JPEGLSLossless, RLELossless

from dicom_series import PATIENT, write_series
from handful.cli.main import main
from handful.data import io
from handful.data.cache import load_all
from handful.data.check import check_dataset
from handful.data.dicom import is_series
from handful.data.discover import content_hash, open_dataset
from handful.data.problems import ProblemError
from handful.data.volume import grid_difference
from handful.errors import DataError, UsageError
from handful.inference.images import find_images
from handful.inference.predict import predict
from test_predict import PLAN, make_run
from volumes import SHAPE, image, label, oblique, save

AXIAL = np.array([[-0.8, 0, 0, 11], [0, -0.9, 0, -7], [0, 0, 2.5, 3], [0, 0, 0, 1.0]])
CORONAL = np.array([[0.7, 0, 0, 3], [0, 0, 1.9, -20], [0, -1.1, 0, 40], [0, 0, 0, 1.0]])
AFFINES = {"axial": AXIAL, "coronal": CORONAL, "oblique": oblique()}
Edit = Callable[[int, Any], None]


@pytest.mark.parametrize("suffix", ["", ".dcm", ".IMA"])
@pytest.mark.parametrize("name", AFFINES)
def test_a_series_is_the_volume_its_slices_make(name: str, suffix: str, tmp_path: Path) -> None:
    """Whatever files and instances are called, wherever the slices point, and whatever SliceThickness says."""
    folder = write_series(tmp_path / "1.2.840", image(), AFFINES[name], seed=3, suffix=suffix)
    (folder / "notes.txt").write_text("of no interest")
    (folder / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    nifti = save(tmp_path / "a.nii.gz", image(), AFFINES[name])
    volume, expected = io.read_image([folder]), io.read_image([nifti])
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array, expected.array)
    np.testing.assert_allclose(volume.affine, AFFINES[name], atol=1e-6)
    assert grid_difference(volume.grid, expected.grid) == ""
    assert grid_difference(io.read_geometry(folder), expected.grid) == ""
    assert io.stem_of(folder) == "1.2.840"


def test_slices_stack_along_rows_by_columns(tmp_path: Path) -> None:
    """A left-handed grid cannot be said slice by slice: its slices come in the opposite order, in the same places."""
    affine = oblique(flip=True)
    volume = io.read_image([write_series(tmp_path / "a", image(), affine)])
    np.testing.assert_array_equal(volume.array[0], image()[:, :, ::-1])
    np.testing.assert_allclose(volume.affine @ [0, 0, SHAPE[2] - 1, 1], affine @ [0, 0, 0, 1], atol=1e-6)
    assert not volume.grid.left_handed


def test_each_slice_is_rescaled_by_its_own_numbers(tmp_path: Path) -> None:
    """As in PET; the first slice's are whole, the next ones' are not."""
    rescale = [(1, -1024), (0.5, 0), (0.25, 3)]
    volume = io.read_image([write_series(tmp_path / "a", image(), AXIAL, rescale=rescale)])
    slopes, intercepts = np.array([rescale[z % 3] for z in range(SHAPE[2])]).T
    np.testing.assert_array_equal(volume.array[0], image() * slopes + intercepts)


@pytest.mark.parametrize("syntax", [JPEGLSLossless, RLELossless, DeflatedExplicitVRLittleEndian])
def test_compressed_slices_are_the_same_slices(syntax: UID, tmp_path: Path) -> None:
    def compressed(number: int, dataset: Any) -> None:
        if syntax.is_encapsulated:
            dataset.compress(syntax)
        dataset.file_meta.TransferSyntaxUID = syntax

    array = image(shape=(16, 12, 5))  # GDCM reads no RLE of less than 64 pixels
    volume = io.read_image([write_series(tmp_path / "a", array, AXIAL, edit=compressed)])
    np.testing.assert_array_equal(volume.array[0], array)


def test_positions_may_be_rounded(tmp_path: Path) -> None:
    def rounded(number: int, dataset: Any) -> None:
        dataset.ImagePositionPatient = [f"{float(v):.2f}" for v in dataset.ImagePositionPatient]
        dataset.ImageOrientationPatient = [f"{float(v):.4f}" for v in dataset.ImageOrientationPatient]

    volume = io.read_image([write_series(tmp_path / "a", image(), oblique(), edit=rounded)])
    np.testing.assert_allclose(volume.affine, oblique(), atol=0.01)


def _move(along: int, by_mm: Callable[[int], float]) -> Edit:
    def edit(number: int, dataset: Any) -> None:
        position = [float(v) for v in dataset.ImagePositionPatient]
        position[along] += by_mm(number)
        dataset.ImagePositionPatient = [f"{v:.9g}" for v in position]

    return edit


def _set(keyword: str, value: Any, *, first: int = 0) -> Edit:
    return lambda number, dataset: setattr(dataset, keyword, value) if number >= first else None


def _coarser(number: int, dataset: Any) -> None:
    if number == 2:
        dataset.Columns, dataset.Rows = 3, 6
        dataset.PixelData = dataset.PixelData[: 2 * 3 * 6]


def _colours(number: int, dataset: Any) -> None:
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.PixelData = bytes(3 * 42)


def _frames(number: int, dataset: Any) -> None:
    dataset.NumberOfFrames = 2
    dataset.PixelData *= 2


REFUSED: dict[str, tuple[Edit, str, str]] = {
    "two series": (_set("SeriesInstanceUID", "1.2.3", first=3), "holds 2 series: ", "folder of its own"),
    "gap": (_move(2, lambda z: 2.5 * (z > 2)), r"not evenly spaced: 5 mm .*, 2.5 mm elsewhere", "missing"),
    "irregular": (_move(2, lambda z: 0.3 * (z == 2)), "not evenly spaced", "export the series again"),
    "two times": (_move(2, lambda z: -2.5 * (z % 2)), "in one place", "Keep one slice a place"),
    "gantry": (_move(1, lambda z: 0.6 * z), r"shifted .* tilted 13.5 degrees", "dcm2niix"),
    "one slice aside": (_move(0, lambda z: 0.5 * (z == 1)), "shifted against each other", "dcm2niix"),
    "shapes": (_coarser, "different shapes: .*3 x 6", "Keep those of one stack"),
    "spacings": (_set("PixelSpacing", [1, 1], first=4), "different spacings: .* 1 x 1 mm", "one stack"),
    "localiser": (
        _set("ImageOrientationPatient", [1, 0, 0, 0, 0, -1], first=4), "different orientations", "localiser",
    ),
    "no place": (lambda z, d: d.__delitem__("ImagePositionPatient"), "does not say where", "restore the header"),
    "no spacing": (lambda z, d: d.__delitem__("PixelSpacing"), "does not say where", "restore the header"),
    "no direction": (_set("ImageOrientationPatient", [0] * 6), "does not say where", "restore the header"),
    "colours": (_colours, "colours", "one number a voxel"),
    "frames": (_frames, "holds 2 frames", "one slice a file"),
    "cut off": (lambda z, d: d.__delitem__("PixelData"), "damaged", "Export the series again"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_straight_even_stack_is_refused(name: str, tmp_path: Path) -> None:
    edit, what, remedy = REFUSED[name]
    folder = write_series(tmp_path / "a", image(), AXIAL, edit=edit)
    with pytest.raises(ProblemError, match=what) as refused:
        io.read_image([folder])
    assert remedy in refused.value.problem.remedy
    assert refused.value.problem.file is not None
    assert folder in (refused.value.problem.file, refused.value.problem.file.parent)
    assert "secret" not in str(refused.value).lower()


def test_a_missing_slice_is_noticed_wherever_it_lay(tmp_path: Path) -> None:
    """In a long series too, whose mean spacing one slice hardly changes."""
    tall = image(shape=(4, 3, 60))
    for z in (1, 30, 58):
        folder = write_series(tmp_path / str(z), tall, AXIAL)
        names = {round(float(_header(f).ImagePositionPatient[2]), 3): f for f in folder.iterdir()}
        names[round(3 + 2.5 * z, 3)].unlink()
        with pytest.raises(ProblemError, match="not evenly spaced: 5 mm"):
            io.read_geometry(folder)


def _header(file: Path) -> Any:
    import pydicom

    return pydicom.dcmread(file, stop_before_pixels=True)


def test_folders_without_a_stack_are_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "one", image(shape=(7, 6, 1)), AXIAL)
    with pytest.raises(ProblemError, match="one slice"):
        io.read_image([tmp_path / "one"])
    (tmp_path / "empty").mkdir()
    assert not is_series(tmp_path / "empty")
    with pytest.raises(ProblemError, match="no DICOM file"):
        io.read_image([tmp_path / "empty"])
    with pytest.raises(ProblemError, match="name the folder"):
        io.read_image([next((tmp_path / "one").iterdir())])


def test_without_simpleitk_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_series(tmp_path / "a", image(), AXIAL)
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(ProblemError, match=r"handful\[formats\]"):
        io.read_image([folder])


def _folders(root: Path) -> Path:
    """``images/`` and ``labels/`` with two series, of which one is labelled, and a NIfTI case."""
    for seed, name in enumerate(("1.2.840", "b")):
        write_series(root / "images" / name, image(seed), AXIAL, seed=seed, suffix="")
    save(root / "images" / "c.nii.gz", image(7), AXIAL)
    save(root / "labels" / "1.2.840.nii.gz", label(0), AXIAL)
    return root


def test_a_data_set_may_hold_series(tmp_path: Path) -> None:
    dataset = open_dataset(_folders(tmp_path / "set"))
    assert [case.name for case in dataset.cases] == ["1.2.840", "b", "c"]
    assert [case.name for case in dataset.labelled] == ["1.2.840"]
    report = check_dataset(tmp_path / "set")
    assert not report.fatal
    assert report.found["spacing_mm"]["min"] == report.found["spacing_mm"]["max"] == [0.8, 0.9, 2.5]
    plan = replace(PLAN, label_values=(0, 1, 2), label_names=("background", "one", "two"))
    cached, again = (load_all(dataset.cases, plan, folder=tmp_path / "cache") for _ in range(2))
    for case, first, second in zip(dataset.cases, cached, again):
        np.testing.assert_array_equal(first.image, second.image, err_msg=case.name)
    direct = load_all(dataset.cases, plan)
    for first, second in zip(cached, direct):
        np.testing.assert_allclose(first.image, second.image, atol=0.1)  # the cache rounds


def test_a_manifest_may_name_series(tmp_path: Path) -> None:
    write_series(tmp_path / "scans" / "a", image(), AXIAL)
    save(tmp_path / "a.nii.gz", label(), AXIAL)
    table = tmp_path / "cases.csv"
    table.write_text("case,image,label\nfirst,scans/a,a.nii.gz\n")
    (case,) = open_dataset(table).labelled
    assert case.images == (tmp_path / "scans/a",)
    assert not check_dataset(table).fatal
    table.write_text("case,image,label\nfirst,a.nii.gz,scans/a\n")  # a label is a file
    with pytest.raises(DataError, match="does not exist"):
        open_dataset(table)


def test_a_series_is_the_same_data_under_other_file_names(tmp_path: Path) -> None:
    root = _folders(tmp_path / "set")
    before = content_hash(open_dataset(root))
    for number, file in enumerate(sorted((root / "images" / "b").iterdir())):
        file.rename(file.with_name(f"other{number}.dcm"))
    assert content_hash(open_dataset(root)) == before
    next((root / "images" / "b").iterdir()).unlink()
    assert content_hash(open_dataset(root)) != before


def test_images_to_predict_may_be_series(tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "b.c")):
        write_series(tmp_path / "all" / name, image(seed), AXIAL, seed=seed)
    save(tmp_path / "all" / "d.nii.gz", image(5), AXIAL)
    assert [case.name for case in find_images(tmp_path / "all", channels=1)] == ["a", "b.c", "d"]
    assert [case.name for case in find_images(tmp_path / "all" / "b.c", channels=1)] == ["b.c"]
    for channel in (0, 1):
        write_series(tmp_path / "pairs" / f"x_{channel:04d}", image(channel), AXIAL)
    (case,) = find_images(tmp_path / "pairs", channels=2)
    assert (case.name, [path.name for path in case.images]) == ("x", ["x_0000", "x_0001"])
    save(tmp_path / "all" / "a" / "d.nii.gz", image(5), AXIAL)
    with pytest.raises(DataError, match="both DICOM slices and volumes"):
        find_images(tmp_path / "all" / "a", channels=1)
    with pytest.raises(DataError, match="name the folder"):
        find_images(next((tmp_path / "pairs" / "x_0000").iterdir()), channels=1)


@pytest.mark.parametrize("name", AFFINES)
def test_a_series_is_predicted_as_its_nifti_is(name: str, tmp_path: Path) -> None:
    array = image(2, (13, 21, 9))
    folder = write_series(tmp_path / "dicom" / "a", array, AFFINES[name])
    save(tmp_path / "nifti" / "a.nii.gz", array, AFFINES[name])
    run = make_run(tmp_path / "run")
    for kind, images in (("dicom", folder), ("nifti", tmp_path / "nifti")):
        assert (
            main(["predict", str(run), str(images), "--out", str(tmp_path / f"{kind}-out"), "--quiet"]) == 0
        )
    ours, theirs = (io.read_label(tmp_path / f"{kind}-out" / "a.nii.gz") for kind in ("dicom", "nifti"))
    np.testing.assert_array_equal(ours.array, theirs.array)
    assert set(np.unique(ours.array)) == {0, 7}
    assert grid_difference(ours.grid, theirs.grid) == ""
    _holds_no_patient(tmp_path / "dicom-out")


def _holds_no_patient(folder: Path) -> None:
    import gzip

    files = [file for file in folder.rglob("*") if file.is_file()]
    assert files
    for file in files:
        content = file.read_bytes()
        content = gzip.decompress(content) if file.name.endswith(".gz") else content
        for value in PATIENT.values():
            assert value == "O" or value.encode() not in content


def test_predictions_never_land_among_the_slices(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "a", image(), AXIAL)
    run = make_run(tmp_path / "run")
    with pytest.raises(UsageError, match="choose another"):
        predict(run, folder, folder, device="cpu")
