"""Volumes from files and back: NIfTI through nibabel; NRRD, MHA, MHD and folders of DICOM slices through SimpleITK.

Reading corrects nothing but what ``nifti.py`` states; what it had to decide comes as a ``GeometryWarning``.
Writing copies the geometry of an input file bit for bit.
"""

import gzip
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from handful.artefacts import atomic_path
from handful.data.dicom import read_series, read_series_array
from handful.data.nifti import read_nifti_array, read_nifti_header
from handful.data.problems import Problem, ProblemError
from handful.data.volume import Grid, Volume, grid_difference, times
from handful.errors import DataError, UsageError

NIFTI = (".nii.gz", ".nii")
ITK = (".nrrd", ".nhdr", ".mha", ".mhd")
SUFFIXES = NIFTI + ITK
"""File endings that can be read."""

CARET = 30  # extension code of Connectome Workbench ("Caret") XML
LABEL_INTENT = 1002  # NIFTI_INTENT_LABEL
INTEGERS = (np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.int64)
NEARLY_INTEGER = 1e-4  # scl_slope is a float32: a label of 255 may come back as 254.99998


class GeometryWarning(UserWarning):
    """A header contradicts itself and was read by the rule in ``handful.data.nifti``."""


class Loaded(NamedTuple):
    """One file, decoded.

    Attributes:
        array: (C, X, Y, Z) in the type on disk (float where the file scales its values).
        grid: where the voxels lie.
        remarks: contradictions of the header and how they were decided.
    """

    array: NDArray[Any]
    grid: Grid
    remarks: tuple[Problem, ...]


def suffix_of(path: Path) -> str:
    """Return the ending in lower case, ``.nii.gz`` whole; "" if it is none of ``SUFFIXES``."""
    name = path.name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")


def stem_of(path: Path) -> str:
    """Return the name without the ending: ``la_003`` for ``la_003.nii.gz``; all of it for a folder, ``1.2.840``."""
    suffix = suffix_of(path)
    return path.name[: -len(suffix)] if suffix else path.name


def read_image(paths: Sequence[Path]) -> Volume:
    """Read one image, one file (or folder of DICOM slices) a channel, as float32 (C, X, Y, Z).

    The same path several times (``[p, p, p, p]``) means one file that holds as many channels, as MSD's 4-D images do.

    Raises:
        DataError: unreadable, 2-D, wrong number of channels, channels on different grids, NaN or infinite values.
    """
    if not paths:
        raise UsageError("read_image was given no path.")
    if len(set(paths)) == 1:
        loaded = load(paths[0])
        _expect_channels(paths[0], loaded.array.shape[0], len(paths))
        arrays, grid = [loaded.array], loaded.grid
        _warn(loaded.remarks)
    else:
        arrays = []
        for path in paths:
            loaded = load(path)
            _expect_channels(path, loaded.array.shape[0], 1)
            if not arrays:
                grid = loaded.grid
            elif difference := grid_difference(grid, loaded.grid):
                raise ProblemError(
                    path, f"its grid differs from its first channel's, {paths[0].name}: {difference}.",
                    "Resample all channels of a case to one grid.",
                )  # fmt: skip
            arrays.append(loaded.array)
            _warn(loaded.remarks)
    with np.errstate(over="ignore"):  # float64 values beyond float32 become infinite and are refused below
        array = np.concatenate([a.astype(np.float32, copy=False) for a in arrays])
    if bad := int(array.size - np.count_nonzero(np.isfinite(array))):
        raise ProblemError(
            paths[0], f"{bad} voxels are NaN or infinite.", "Replace them by the background's intensity."
        )
    return Volume(array, grid.affine)


def read_label(path: Path) -> Volume:
    """Read a label map as (1, X, Y, Z) in the smallest integer type that holds its values.

    Float files are accepted when every value is an integer (to 1e-4, the rounding of ``scl_slope``).

    Raises:
        DataError: unreadable, 2-D or 4-D, or values that are not integers.
    """
    loaded = load(path)
    _expect_channels(path, loaded.array.shape[0], 1)
    _warn(loaded.remarks)
    return Volume(as_integers(path, loaded.array), loaded.grid.affine)


def read_geometry(path: Path) -> Grid:
    """Read shape and affine from the header alone, fast."""
    path = Path(path)
    if path.is_dir():
        return read_series(path).grid
    if _known(path) in NIFTI:
        file = read_nifti_header(path)
        _warn(file.remarks)
        return file.grid
    return _itk_header(path)[0]


def load(path: Path) -> Loaded:
    """Decode a file whatever its format, without judging its values; remarks are returned, not warned about."""
    path = Path(path)
    if path.is_dir():
        series = read_series(path)
        return Loaded(read_series_array(path, series), series.grid, ())
    if _known(path) in NIFTI:
        file = read_nifti_header(path)
        return Loaded(read_nifti_array(path, file), file.grid, file.remarks)
    grid, reader = _itk_header(path)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise ProblemError(
            path, f"the file is cut off or damaged ({_itk_words(error)}).", "Copy or export it again."
        ) from None
    import SimpleITK

    array = np.asarray(SimpleITK.GetArrayFromImage(image))
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = np.moveaxis(array, -1, 0)
    array = array.reshape(-1, *grid.shape[::-1])
    return Loaded(np.ascontiguousarray(array.transpose(0, 3, 2, 1)), grid, ())


def as_integers(path: Path, array: NDArray[Any]) -> NDArray[Any]:
    """Return label values in the smallest integer type; values that are not integers are a ``ProblemError``."""
    if array.dtype.kind == "f":
        rounded = np.rint(array)
        with np.errstate(invalid="ignore"):  # inf - inf
            wrong = ~(np.abs(array - rounded) <= NEARLY_INTEGER)
        if wrong.any():
            raise ProblemError(
                path,
                f"{np.count_nonzero(wrong)} label values are not integers (first: {array[wrong][0]:.6g}).",
                "Was the label map interpolated, or is it an image or a probability map? Save integer class values.",
            )
        array = rounded
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    return array.astype(_integer_type(path, low, high), copy=False)


def write_label(path: Path, array: NDArray[Any], *, like: Path, label_names: Mapping[int, str]) -> None:
    """Write a label map on the grid of the file ``like``, atomically.

    From a NIfTI ``like``, sform, qform, their codes, pixdim and units are copied bit for bit, contradictions included;
    header extensions and free text (which may name the patient) are not. From other formats the equivalent affine is
    written. ``label_names`` are embedded as a NIfTI header extension of code 30, Connectome Workbench's XML label table
    (``CaretExtension/VolumeInformation/LabelTable/Label[@Key]``), as TotalSegmentator does; ``read_label_names`` gives
    them back.

    Args:
        path: ends in ``.nii.gz`` or ``.nii``.
        array: (X, Y, Z) integers; stored as uint8 unless the values need more.
        like: the input image.
        label_names: value -> name.
    """
    array = np.asarray(array)
    if array.dtype.kind not in "biu":
        raise UsageError(f"{path}: label maps are integers, this array is {array.dtype}.")
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    header = _header_like(path, like, array.shape)
    header["intent_code"] = LABEL_INTENT
    header.extensions.append(nib.nifti1.Nifti1Extension(CARET, _label_table(label_names)))
    _write(path, array.astype(_integer_type(path, low, high)), header)


def write_float(path: Path, array: NDArray[Any], *, like: Path) -> None:
    """Write probabilities, uncertainty or an image as float32 on the grid of ``like``, as ``write_label`` does.

    Args:
        path: ends in ``.nii.gz`` or ``.nii``.
        array: (X, Y, Z), or (C, X, Y, Z) which becomes a 4-D file, channels last.
        like: the input image.
    """
    array = np.asarray(array, dtype=np.float32)
    if array.ndim == 4:
        array = np.moveaxis(array, 0, -1)
    _write(path, array, _header_like(path, like, array.shape))


def read_label_names(path: Path) -> dict[int, str]:
    """Return the label names embedded by ``write_label`` (or TotalSegmentator); {} if there are none."""
    read_nifti_header(path)
    for extension in nib.load(path).header.extensions:
        text = extension.content.decode("utf-8", "replace")
        if "<CaretExtension" not in text:
            continue
        try:
            labels = ElementTree.fromstring(text.rstrip("\0")).iter("Label")
            return {int(label.attrib["Key"]): label.text or "" for label in labels}
        except (ElementTree.ParseError, KeyError, ValueError):
            continue
    return {}


def _known(path: Path) -> str:
    suffix = suffix_of(path)
    if not suffix:
        raise ProblemError(
            path,
            "this kind of file is unknown.",
            f"Convert it to one of {', '.join(SUFFIXES)}; of a DICOM series, name the folder.",
        )
    return suffix


def _expect_channels(path: Path, found: int, expected: int) -> None:
    if found != expected:
        raise ProblemError(
            path,
            f"the file holds {found} channel(s) or time point(s), {expected} expected.",
            "Name every channel in dataset.json (channel_names), or save the one volume that is meant as a 3-D file.",
        )


def _warn(remarks: Sequence[Problem]) -> None:
    for remark in remarks:
        warnings.warn(str(remark), GeometryWarning, stacklevel=3)


def _integer_type(path: Path, low: int, high: int) -> type[np.integer[Any]]:
    for kind in INTEGERS:
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return kind
    raise ProblemError(
        path, f"label values from {low} to {high} fit no integer type.", "Number the classes 0, 1, 2, ..."
    )


def _header_like(path: Path, like: Path, shape: Sequence[int]) -> Any:
    """Make a NIfTI header with the geometry of ``like`` and nothing else."""
    if suffix_of(path) not in NIFTI:
        raise UsageError(f"{path}: results are written as NIfTI; choose a name that ends in .nii.gz.")
    if suffix_of(like) in NIFTI:
        file = read_nifti_header(like)
        grid, source = file.grid, file.header
        header = type(source)(endianness=source.endianness)
        fields = ["pixdim", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z", "xyzt_units"]
        for name in [*fields, "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"]:
            header[name] = source[name]
    else:
        grid = read_geometry(like)
        header = nib.Nifti1Header()
        header.set_data_shape(grid.shape)
        header.set_qform(grid.affine, 1)
        header.set_sform(grid.affine, 1)
        header.set_xyzt_units("mm")
    if tuple(shape[:3]) != grid.shape or len(shape) > 4:
        raise DataError(
            f"{path}: the array is {times(shape)}, but {like} is {times(grid.shape)}; they must be the same grid."
        )
    return header


def _write(path: Path, array: NDArray[Any], header: Any) -> None:
    pixdim = header["pixdim"].copy()
    header.set_data_dtype(array.dtype)
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    image = kind(array, None, header)
    image.header["pixdim"][:4] = pixdim[:4]
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        if suffix_of(path) == ".nii":
            image.to_stream(file)
            return
        # no name and no time inside: the same array gives the same bytes
        with gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=4, mtime=0) as zipped:
            image.to_stream(zipped)


def _label_table(label_names: Mapping[int, str]) -> bytes:
    root = ElementTree.Element("CaretExtension")
    volume = ElementTree.SubElement(root, "VolumeInformation", Index="0")
    ElementTree.SubElement(volume, "VolumeType").text = "Label"
    table = ElementTree.SubElement(volume, "LabelTable")
    for value, name in sorted(label_names.items()):
        red, green, blue = _colour(value)
        label = ElementTree.SubElement(
            table, "Label", Key=str(value), Red=red, Green=green, Blue=blue, Alpha="1" if value else "0"
        )
        label.text = name
    table_bytes: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return table_bytes


def _colour(value: int) -> tuple[str, str, str]:
    """Spread hues by the golden ratio, so that neighbouring values look different."""
    import colorsys

    red, green, blue = colorsys.hsv_to_rgb(value * 0.618034 % 1, 0.75 if value else 0, 0.95 if value else 0)
    return f"{red:.3f}", f"{green:.3f}", f"{blue:.3f}"


def _itk_header(path: Path) -> tuple[Grid, Any]:
    """Read the header through SimpleITK and turn its LPS geometry into RAS."""
    try:
        import SimpleITK
    except ImportError:
        raise ProblemError(
            path,
            f"reading {suffix_of(path)} needs SimpleITK, which is not installed.",
            'Run: pip install "handful[formats]"',
        ) from None
    if not path.is_file():
        raise ProblemError(path, "the file does not exist.", "Correct the path or restore the file.")
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ProblemError(
            path,
            f"the file is damaged or not what its name says ({_itk_words(error)}).",
            "Copy or export it again.",
        ) from None
    size, dims = reader.GetSize(), reader.GetDimension()
    if dims not in (3, 4):
        raise ProblemError(
            path, f"the image is {dims}-D ({times(size)}); handful segments volumes.",
            "Stack the slices of a scan into one 3-D file.",
        )  # fmt: skip
    direction = np.asarray(reader.GetDirection(), dtype=np.float64).reshape(dims, dims)[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = direction * np.asarray(reader.GetSpacing()[:3])
    affine[:3, 3] = reader.GetOrigin()[:3]
    if not np.isfinite(affine).all() or abs(np.linalg.det(direction)) < 1e-6:
        raise ProblemError(
            path, "the directions of its axes are not a geometry.", "Export it again with its geometry."
        )
    x, y, z = (int(n) for n in size[:3])
    return Grid((x, y, z), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine), reader


def _itk_words(error: RuntimeError) -> str:
    """Keep the sentence that says something of ITK's several lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:160] if lines else "unknown error"
