"""A DICOM series as one volume: a folder of slices, put in order by where they lie (extra ``formats``).

The grid comes from ImagePositionPatient, ImageOrientationPatient and PixelSpacing alone: file names, instance numbers
and SliceThickness (which knows neither gaps nor overlaps) decide nothing. A folder whose slices do not make one even,
straight stack is refused. Of what a header says about the patient nothing is kept.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from handful.data.problems import ProblemError
from handful.data.volume import SAME_PLACE, Grid, times

PREAMBLE = 128  # bytes of anything before the four letters that every DICOM file has there
INDEX = "DICOMDIR"  # the standard's name for the list of files on a disk; it holds no slice
SERIES_UID, ORIENTATION, POSITION, SPACING = "0020|000e", "0020|0037", "0020|0032", "0028|0030"
SAME_DIRECTION = 1e-3  # of a unit vector's components: some scanners round them to three or four digits
STRAIGHT_DEGREES = 0.1  # rounded directions look tilted by up to half of it
RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


class Series(NamedTuple):
    """One stack of slices.

    Attributes:
        files: in the order of the third axis, along row direction x column direction.
        grid: where the voxels lie: X along a row of pixels, Y along a column, Z from slice to slice.
    """

    files: tuple[Path, ...]
    grid: Grid


class _Slice(NamedTuple):
    file: Path
    series: str
    shape: tuple[int, int]  # (X, Y)
    spacing_mm: tuple[float, float]  # along X, Y
    directions: NDArray[np.float64]  # (2, 3) LPS: of a row, of a column
    position_mm: NDArray[np.float64]  # (3,) LPS, of the first pixel


def is_series(path: Path) -> bool:
    """Say whether a path is a folder with a DICOM file in it, whatever the file is called."""
    return path.is_dir() and any(map(_is_dicom, path.iterdir()))


def slice_files(folder: Path) -> list[Path]:
    """Return the DICOM files of a folder by name; what lies beside them is left out."""
    return sorted(file for file in folder.iterdir() if _is_dicom(file))


def read_series(folder: Path) -> Series:
    """Read the headers of a folder's slices and put them in order; no voxel is returned.

    Raises:
        ProblemError: no slices or one, several series, slices of different shapes or orientations, several in one
            place, missing ones, a stack that is not straight, several frames a file, colours, no place in the patient.
    """
    files = slice_files(folder)
    if not files:
        raise ProblemError(
            folder,
            "there is no DICOM file in this folder.",
            "Name a volume, or a folder that holds one series.",
        )
    slices = [_read_slice(file) for file in files]
    _expect_one_series(folder, slices)
    _expect_one_shape(folder, slices)
    if len(slices) == 1:
        raise ProblemError(
            files[0],
            "the series has one slice; handful segments volumes.",
            "Restore the other slices of the scan.",
        )
    normal = np.cross(*slices[0].directions)
    normal /= np.linalg.norm(normal)  # of rounded directions it is not quite one
    slices.sort(key=lambda s: float(s.position_mm @ normal))
    step = _step_mm(folder, slices, normal)
    affine = np.eye(4)
    affine[:3, :2] = slices[0].directions.T * slices[0].spacing_mm
    affine[:3, 2] = step
    affine[:3, 3] = slices[0].position_mm
    shape = (*slices[0].shape, len(slices))
    return Series(tuple(s.file for s in slices), Grid(shape, RAS_FROM_LPS @ affine))


def read_series_array(folder: Path, series: Series) -> NDArray[np.float32]:
    """Decode the voxels, each slice's RescaleSlope and RescaleIntercept applied, as (1, X, Y, Z)."""
    sitk = _simpleitk(folder)
    reader = sitk.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    # else the first slice decides the type, and the fractions that others' slopes make are cut off
    reader.SetOutputPixelType(sitk.sitkFloat32)
    reader.SetFileNames([str(file) for file in series.files])
    try:
        array = np.asarray(sitk.GetArrayFromImage(reader.Execute()))
    except RuntimeError:
        raise ProblemError(
            folder, "a slice is cut off, damaged or compressed in an unknown way.", "Export the series again."
        ) from None
    return np.ascontiguousarray(array.transpose(2, 1, 0)[None])


def _is_dicom(file: Path) -> bool:
    if file.name.startswith(".") or file.name == INDEX or not file.is_file():
        return False
    try:
        with open(file, "rb") as stream:
            return stream.read(PREAMBLE + 4)[PREAMBLE:] == b"DICM"
    except OSError as error:
        raise ProblemError(
            file, f"the file cannot be read ({error.strerror}).", "Restore it or its permissions."
        ) from None


def _read_slice(file: Path) -> _Slice:
    reader = _simpleitk(file).ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        raise ProblemError(
            file,
            "this DICOM file is damaged or holds no image.",
            "Export the series again, or remove the file (a report, for example) from the folder.",
        ) from None
    x, y, *frames = reader.GetSize()
    if any(number > 1 for number in frames):
        raise ProblemError(
            file,
            f"the file holds {times(frames)} frames.",
            "Export the series as one slice a file, or convert it to NIfTI.",
        )
    if reader.GetNumberOfComponents() > 1:
        raise ProblemError(file, "its voxels are colours.", "Export the slices with one number a voxel.")
    position, spacing = _numbers(reader, POSITION, 3), _numbers(reader, SPACING, 2)
    directions = _numbers(reader, ORIENTATION, 6).reshape(2, 3)
    right_angles = np.allclose(directions @ directions.T, np.eye(2), atol=SAME_DIRECTION)
    if not (right_angles and np.isfinite(position).all() and (spacing > 0).all()):
        raise ProblemError(
            file,
            "it does not say where its voxels lie (ImagePositionPatient, ImageOrientationPatient, PixelSpacing).",
            "Slices of a scan do: restore the header, or convert the images to NIfTI with their geometry.",
        )
    along_y, along_x = map(float, spacing)  # the standard names the distance between rows first
    series = reader.GetMetaData(SERIES_UID) if reader.HasMetaDataKey(SERIES_UID) else ""
    return _Slice(file, series, (int(x), int(y)), (along_x, along_y), directions, position)


def _numbers(reader: Any, key: str, count: int) -> NDArray[np.float64]:
    """Return the numbers of a header field; NaN if it is missing or is not as many numbers."""
    nowhere = np.full(count, np.nan)
    if not reader.HasMetaDataKey(key):
        return nowhere
    try:
        numbers = np.array([float(part) for part in reader.GetMetaData(key).split("\\")])
    except ValueError:
        return nowhere
    return numbers if numbers.shape == (count,) else nowhere


def _expect_one_series(folder: Path, slices: Sequence[_Slice]) -> None:
    counts = Counter(s.series for s in slices)
    if len(counts) > 1:
        first = {s.series: s.file.name for s in reversed(slices)}
        shown = ", ".join(f"{counts[uid]} file(s) with {first[uid]}" for uid in counts)
        raise ProblemError(
            folder,
            f"the folder holds {len(counts)} series: {shown}.",
            "Put each series into a folder of its own.",
        )


def _expect_one_shape(folder: Path, slices: Sequence[_Slice]) -> None:
    first = slices[0]
    remedy = "A localiser among the slices? Keep those of one stack."
    for other in slices[1:]:
        pair = f"{first.file.name} and {other.file.name}"
        if other.shape != first.shape:
            difference = f"have different shapes: {times(first.shape)} against {times(other.shape)}"
        elif not np.allclose(other.spacing_mm, first.spacing_mm, rtol=1e-3):
            difference = (
                f"have different spacings: {times(first.spacing_mm)} mm against {times(other.spacing_mm)} mm"
            )
        elif not np.allclose(other.directions, first.directions, atol=SAME_DIRECTION):
            difference = "have different orientations"
        else:
            continue
        raise ProblemError(folder, f"the slices {pair} {difference}.", remedy)


def _step_mm(folder: Path, slices: Sequence[_Slice], normal: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the way from each slice to the next, (3,) LPS; the slices are sorted along ``normal``."""
    positions = np.array([s.position_mm for s in slices])
    gaps = np.diff(positions @ normal)
    usual, where = float(np.median(gaps)), int(gaps.argmin())
    if gaps[where] <= SAME_PLACE * usual or usual <= 0:
        raise ProblemError(
            folder,
            f"several slices lie in one place (first: {slices[where].file.name} and {slices[where + 1].file.name}).",
            "Several time points, echoes or copies? Keep one slice a place.",
        )
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    apart = positions - positions[0] - np.arange(len(slices))[:, None] * step
    if np.abs(apart @ normal).max() > SAME_PLACE * usual:
        where = int(np.abs(gaps - usual).argmax())
        raise ProblemError(
            folder,
            f"the slices are not evenly spaced: {gaps[where]:.4g} mm between {slices[where].file.name} and "
            f"{slices[where + 1].file.name}, {usual:.4g} mm elsewhere.",
            "Slices are missing, or two scans are mixed: export the series again, whole.",
        )
    aside = float(np.linalg.norm(step - step @ normal * normal))
    tilt = float(np.degrees(np.arctan2(aside, step @ normal)))
    allowed_mm = SAME_PLACE * min(*slices[0].spacing_mm, usual)
    tilted = tilt > STRAIGHT_DEGREES and aside * (len(slices) - 1) > allowed_mm
    if tilted or np.abs(apart).max() > allowed_mm:
        raise ProblemError(
            folder,
            f"the slices are shifted against each other (by a gantry tilted {tilt:.3g} degrees?).",
            "Convert the series with a program that straightens it, such as dcm2niix, and use its NIfTI file.",
        )
    return np.asarray(step)


def _simpleitk(path: Path) -> Any:
    try:
        import SimpleITK
    except ImportError:
        raise ProblemError(
            path,
            "reading DICOM series needs SimpleITK, which is not installed.",
            'Run: pip install "handful[formats]"',
        ) from None
    return SimpleITK
