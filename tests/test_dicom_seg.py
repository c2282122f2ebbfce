"""A DICOM SEG holds the label map, voxel for voxel, in its series' place, and says who drew it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

import handful
from dicom_series import PATIENT, write_series
from handful.cli.main import main
from handful.data import io
from handful.data.dicom import read_series
from handful.data.volume import Grid, grid_difference
from handful.errors import DataError, UsageError
from handful.inference.dicom_seg import encode_dicom_seg, write_dicom_seg
from handful.inference.predict import predict
from test_dicom import AFFINES, AXIAL
from test_predict import PLAN, make_run
from volumes import SHAPE, image, label, save

NAMES = {0: "background", 3: "Höhle", 9: "never there", 40: "wall"}


def made(folder: Path, array: NDArray[Any]) -> Path:
    path = folder.with_name(f"{folder.name}.dcm")
    write_dicom_seg(
        path, encode_dicom_seg(array, series=folder, label_names=NAMES, weights="0123456789abcdef")
    )
    return path


def segments(path: Path, grid: Grid) -> dict[str, NDArray[np.bool_]]:
    """Read the frames one by one, as the standard says where they lie; return name -> mask on ``grid``."""
    dataset = pydicom.dcmread(path)
    names = {int(s.SegmentNumber): str(s.SegmentLabel) for s in dataset.SegmentSequence}
    masks = {name: np.zeros(grid.shape, bool) for name in names.values()}
    shared = dataset.SharedFunctionalGroupsSequence[0]
    assert [float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing] == pytest.approx(
        [grid.spacing_mm[1], grid.spacing_mm[0]]
    )
    assert float(shared.PixelMeasuresSequence[0].SpacingBetweenSlices) == pytest.approx(grid.spacing_mm[2])
    axes = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    lps = np.diag([-1, -1, 1, 1]) @ grid.affine
    np.testing.assert_allclose(axes.T, lps[:3, :2] / grid.spacing_mm[:2], atol=1e-6)
    pixels = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
    for pixel, frame in zip(pixels, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        place = [*map(float, frame.PlanePositionSequence[0].ImagePositionPatient), 1]
        x, y, z = (np.linalg.inv(lps) @ place)[:3]
        assert np.abs([x, y, z - round(z)]).max() < 1e-5
        (identified,) = (shared if len(names) == 1 else frame).SegmentIdentificationSequence
        number = int(identified.ReferencedSegmentNumber)
        masks[names[number]][:, :, round(z)] = pixel.T
    return masks


def test_segments_are_the_label_map(tmp_path: Path) -> None:
    values = np.array([0, 3, 40], np.uint8)[label(4)]
    values[..., 1] = 0  # a slice without anything
    for name, affine in AFFINES.items():
        folder = write_series(tmp_path / name, image(), affine, seed=5, suffix="")
        path, grid = made(folder, values), io.read_geometry(folder)
        masks = segments(path, grid)
        assert list(masks) == ["Höhle", "never there", "wall"]
        for value, mask in zip((3, 9, 40), masks.values()):
            np.testing.assert_array_equal(mask, values == value)
        volume = highdicom.seg.segread(path).get_volume(combine_segments=True, allow_missing_positions=True)
        whole = Grid(volume.spatial_shape[::-1], np.diag([-1, -1, 1, 1]) @ volume.affine[:, [2, 1, 0, 3]])
        array = np.asarray(volume.array).transpose(2, 1, 0)
        if np.linalg.det(whole.affine[:3, :3]) * np.linalg.det(grid.affine[:3, :3]) < 0:
            array = array[:, :, ::-1]
            whole = Grid(whole.shape, whole.affine @ _flipped(whole.shape[2]))
        assert grid_difference(whole, grid) == ""
        np.testing.assert_array_equal(np.array([0, 3, 9, 40])[array], values)


def _flipped(slices: int) -> NDArray[np.float64]:
    flip = np.diag([1.0, 1.0, -1.0, 1.0])
    flip[2, 3] = slices - 1
    return flip


def test_a_segmentation_says_of_what_and_by_whom(tmp_path: Path) -> None:
    def in_latin_1(number: int, dataset: Any) -> None:
        dataset.SpecificCharacterSet, dataset.PatientName = "ISO_IR 100", "Müßig^Secret"

    folder = write_series(tmp_path / "a", image(), AXIAL, edit=in_latin_1)
    seg = pydicom.dcmread(made(folder, np.where(label() == 1, 3, 0)))
    slices = [pydicom.dcmread(file) for file in read_series(folder).files]
    assert (str(seg.PatientName), seg.PatientID) == ("Müßig^Secret", PATIENT["PatientID"])
    assert seg.StudyInstanceUID == slices[0].StudyInstanceUID
    assert seg.FrameOfReferenceUID == slices[0].FrameOfReferenceUID
    assert seg.SeriesInstanceUID != slices[0].SeriesInstanceUID
    assert (seg.Modality, seg.SegmentationType) == ("SEG", "BINARY")
    (referenced,) = seg.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == slices[0].SeriesInstanceUID
    ours = {item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence}
    assert ours == {dataset.SOPInstanceUID for dataset in slices}
    for segment in seg.SegmentSequence:
        assert (segment.SegmentAlgorithmType, segment.SegmentAlgorithmName) == ("AUTOMATIC", "handful")
        (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
        assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("handful", handful.__version__)
    assert (seg.DeviceSerialNumber, seg.SoftwareVersions) == ("0123456789abcdef", handful.__version__)


def test_an_empty_label_map_is_a_segmentation_too(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "a", image(), AXIAL)
    masks = segments(made(folder, np.zeros(SHAPE, np.uint8)), io.read_geometry(folder))
    assert not any(mask.any() for mask in masks.values())


def _anonymised(number: int, dataset: Any) -> None:
    for keyword in (*PATIENT, "StudyID", "StudyDate", "StudyTime", "AccessionNumber", "SliceThickness"):
        delattr(dataset, keyword)


def test_predictions_are_written_as_segmentations_too(tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "b")):
        edit = _anonymised if seed else lambda number, dataset: None
        write_series(tmp_path / "scans" / name, image(seed, (13, 21, 9)), AXIAL, seed=seed, edit=edit)
    run, out = make_run(tmp_path / "run"), tmp_path / "out"
    assert main(["predict", str(run), str(tmp_path / "scans"), "--out", str(out), "--quiet"]) == 0
    first = (out / "a.nii.gz").read_bytes()
    command = ["predict", str(run), str(tmp_path / "scans"), "--out", str(out), "--dicom-seg", "--quiet"]
    assert main(command) == 0
    assert (out / "a.nii.gz").read_bytes() == first
    assert sorted(file.name for file in out.glob("*.dcm")) == ["a.dcm", "b.dcm"]
    for name in ("a", "b"):
        volume = io.read_label(out / f"{name}.nii.gz")
        np.testing.assert_array_equal(
            segments(out / f"{name}.dcm", volume.grid)["bright"], volume.array[0] == 7
        )
    assert [p.status for p in predict(run, tmp_path / "scans", out, dicom_seg=True, device="cpu")] == [
        "kept"
    ] * 2


def test_only_series_can_be_referred_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, scans = make_run(tmp_path / "run"), tmp_path / "scans"
    write_series(scans / "a", image(), AXIAL)
    save(scans / "b.nii.gz", image(1), AXIAL)
    with pytest.raises(UsageError, match=r"1 of 2 images are no DICOM series .*b\.nii\.gz"):
        predict(run, scans, tmp_path / "out", dicom_seg=True, device="cpu")
    long = make_run(tmp_path / "long", replace(PLAN, label_names=("background", "x" * 65)))
    with pytest.raises(UsageError, match="up to 64 characters"):
        predict(long, scans / "a", tmp_path / "out", dicom_seg=True, device="cpu")
    monkeypatch.setattr("handful.inference.dicom_seg.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r'pip install "handful\[dicom\]"'):
        predict(run, scans / "a", tmp_path / "out", dicom_seg=True, device="cpu")
    assert not (tmp_path / "out").exists()


def test_one_series_without_identifiers_costs_the_others_nothing(tmp_path: Path) -> None:
    run, scans = make_run(tmp_path / "run"), tmp_path / "scans"
    write_series(scans / "a", image(), AXIAL, edit=lambda z, dataset: delattr(dataset, "FrameOfReferenceUID"))
    write_series(scans / "b", image(1), AXIAL)
    with pytest.raises(DataError, match="no FrameOfReferenceUID") as failed:
        predict(run, scans, tmp_path / "out", dicom_seg=True, device="cpu")
    assert "SECRET" not in str(failed.value).upper()
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "b.dcm",
        "b.nii.gz",
        "predictions.json",
    ]
