"""DICOM series written slice by slice, for the tests that read them; every patient is called Secret."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

PATIENT = {
    "PatientName": "Secret^Person", "PatientID": "SECRET-4711", "PatientBirthDate": "19700101", "PatientSex": "O",
}  # fmt: skip


def write_series(
    folder: Path,
    array: NDArray[Any],
    affine: NDArray[np.float64],
    *,
    rescale: Sequence[tuple[float, float]] = ((1, 0),),
    seed: int = 0,
    suffix: str = ".dcm",
    edit: Callable[[int, FileDataset], None] = lambda number, dataset: None,
) -> Path:
    """Write stored values (X, Y, Z) on a RAS grid, one file a slice, in names and instance numbers without order.

    Args:
        folder: made.
        array: int16.
        affine: voxel index -> RAS millimetres; its axes at right angles.
        rescale: slope and intercept of each slice, in turn.
        seed: of the shuffling and of the identifiers: another one, another series.
        suffix: of the file names.
        edit: called with the slice's number and its data set before it is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    names = np.random.default_rng(seed).permutation(array.shape[2])
    study, series, frame = (
        generate_uid(entropy_srcs=[what, str(seed)]) for what in ("study", "series", "frame")
    )
    for z in range(array.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["slice", str(seed), str(z)])
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"I{names[z]:03d}{suffix}"
        dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        for keyword, value in PATIENT.items():
            setattr(dataset, keyword, value)
        dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = (
            study,
            series,
            frame,
        )
        dataset.StudyID, dataset.AccessionNumber, dataset.ReferringPhysicianName = "1", "", ""
        dataset.StudyDate, dataset.StudyTime, dataset.PositionReferenceIndicator = "20200101", "120000", ""
        dataset.Modality, dataset.Manufacturer, dataset.SeriesNumber = "CT", "none", 1
        dataset.InstanceNumber = int(names[z]) + 1
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.ImagePositionPatient = [_decimal(v) for v in (lps @ [0, 0, z, 1])[:3]]
        dataset.ImageOrientationPatient = [_decimal(v) for v in (lps[:3, :2] / spacing[:2]).T.ravel()]
        dataset.PixelSpacing = [_decimal(spacing[1]), _decimal(spacing[0])]
        dataset.SliceThickness = "9.9"  # the slices overlap: this is not how far apart they are
        dataset.Columns, dataset.Rows = array.shape[:2]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = (
            16,
            16,
            15,
            1,
        )
        slope, intercept = rescale[z % len(rescale)]
        dataset.RescaleSlope, dataset.RescaleIntercept = _decimal(slope), _decimal(intercept)
        dataset.PixelData = np.ascontiguousarray(array[:, :, z].T, "<i2").tobytes()
        edit(z, dataset)
        pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    return folder


def _decimal(value: float) -> str:
    """Write a number in the sixteen characters that DICOM allows."""
    return f"{value:.9g}"
