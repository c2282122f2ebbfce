"""Label maps as DICOM SEG objects that refer to the series they belong to (extra ``dicom``).

A SEG names the patient and the study of its series, as the standard demands: archives file it by them. It is the one
thing written here that says whose image it was.
"""

import io
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import handful
from handful.artefacts import atomic_path
from handful.data.cases import Case
from handful.data.dicom import is_series, read_series
from handful.data.problems import ProblemError
from handful.errors import UsageError

NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
# the standard wants these in every object, but lets them be empty; anonymised series often lack them
MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime",
    "AccessionNumber", "ReferringPhysicianName", "SliceThickness",
)  # fmt: skip
NAME_AT_MOST = 64  # characters of a segment's label


def expect_dicom_seg(cases: Sequence[Case], label_names: Mapping[int, str]) -> None:
    """Refuse before anything is computed what could not be written afterwards.

    Raises:
        UsageError: the extra is missing, an image is no DICOM series, a name is none DICOM can hold.
    """
    if find_spec("highdicom") is None or find_spec("pydicom") is None:
        raise UsageError('--dicom-seg needs extra packages: pip install "handful[dicom]".')
    others = [case for case in cases if not is_series(case.images[0])]
    if others:
        raise UsageError(
            f"--dicom-seg: {len(others)} of {len(cases)} images are no DICOM series (first: {others[0].images[0]}). "
            "A SEG refers to the slices it was drawn on: give folders of slices, or leave --dicom-seg away."
        )
    for name in label_names.values():
        if len(name) > NAME_AT_MOST or "\\" in name or not name.isprintable():
            raise UsageError(
                f"--dicom-seg: the label name {name!r} cannot stand in DICOM (up to {NAME_AT_MOST} characters, no "
                "backslash). Shorten it in dataset.json and train again, or leave --dicom-seg away."
            )


def encode_dicom_seg(
    array: NDArray[Any], *, series: Path, label_names: Mapping[int, str], weights: str
) -> bytes:
    """Make the file of a binary segmentation: one segment a class by label value, background left out.

    Slices without any class are left out, as viewers expect.

    Args:
        array: (X, Y, Z) label values on the grid of the series.
        series: the folder of the slices.
        label_names: value -> name; 0 is the background.
        weights: identifies what predicted it; becomes the device's serial number.

    Raises:
        ProblemError: the slices lack the identifiers by which a SEG refers to them.
    """
    import highdicom
    from pydicom import config
    from pydicom.sr.codedict import codes

    stack = read_series(series)
    assert array.shape == stack.grid.shape
    classes = sorted(value for value in label_names if value)
    numbers = np.zeros(array.shape, np.uint16)
    for number, value in enumerate(classes, start=1):
        numbers[array == value] = number
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="handful", version=handful.__version__, family=codes.DCM.ArtificialIntelligence
    )
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=label_names[value],
            # all that is known of a name: it is a part of a body
            segmented_property_category=codes.SCT.Tissue,
            segmented_property_type=codes.SCT.Tissue,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, value in enumerate(classes, start=1)
    ]
    with (
        config.disable_value_validation()
    ):  # what is copied is not ours to judge, and complaints would quote it
        segmentation = highdicom.seg.Segmentation(
            source_images=_headers(stack.files, stack.grid.spacing_mm[2]),
            pixel_array=numbers.transpose(2, 1, 0),
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=segments,
            series_instance_uid=highdicom.UID(),
            sop_instance_uid=highdicom.UID(),
            series_number=1000,  # behind those of the scanner
            instance_number=1,
            manufacturer="handful",
            manufacturer_model_name="handful",
            software_versions=handful.__version__,
            device_serial_number=weights,
            content_label="SEGMENTATION",
            specific_character_set="ISO_IR 192",  # UTF-8: names of classes are in any language
        )
        file = io.BytesIO()
        segmentation.save_as(file)
    return file.getvalue()


def write_dicom_seg(path: Path, encoded: bytes) -> None:
    """Write what ``encode_dicom_seg`` made, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(encoded)


def _headers(files: Sequence[Path], step_mm: float) -> list[Any]:
    """Read the slices without their pixels, with what a SEG needs of them."""
    import pydicom

    headers = []
    for file in files:
        header = pydicom.dcmread(file, stop_before_pixels=True)
        if missing := [keyword for keyword in NEEDED if not header.get(keyword)]:
            raise ProblemError(
                file,
                f"the slice has no {', '.join(missing)}, by which a DICOM SEG refers to it.",
                "Leave --dicom-seg away, or export the series again from the archive.",
            )
        header.decode()  # out of its own character set
        for keyword in MAY_BE_EMPTY:
            if keyword not in header:
                setattr(header, keyword, None)
        header.SpacingBetweenSlices = f"{step_mm:.9g}"  # some scanners write the gap alone
        headers.append(header)
    return headers
