"""NIfTI headers, read strictly: what a header says about the grid, and which of its contradictions can be lived with.

A NIfTI file may state its geometry three times (sform, qform, pixdim), and the three may disagree. The rule here:

1. The sform counts, if its code is not 0; else the qform; else pixdim alone (orientation is a guess; warned about).
2. sform says 1 x 1 x 1 mm, pixdim says otherwise: a tool wrote an identity over the real geometry (the original ACDC
   release does this). pixdim is believed, with the sform's directions, or the whole qform if there is one. Warned of.
3. pixdim was left at 1 x 1 x 1 and the sform says otherwise: the sform counts. Warned about.
4. sform to a template (codes 3 and 4) with another scale than pixdim: the sform counts. Warned about.
5. Any other disagreement of more than one per cent: refused, because nobody can know which is right.
"""

import gzip
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from handful.data.problems import Problem, ProblemError
from handful.data.volume import Grid, corner_distance_mm, times

TEMPLATE_CODES = (3, 4)  # Talairach, MNI 152: the sform may scale
DAMAGED = (EOFError, OSError, zlib.error, ValueError, HeaderDataError)
DEFLATE_AT_MOST = 1032  # no byte of gzip stands for more
NEW_COPY = "Copy or export the file again."
SET_GEOMETRY = (
    "Write the right geometry into both (nibabel: image.set_sform(affine, 1); image.set_qform(affine, 1))."
)


class NiftiFile(NamedTuple):
    """A header that was understood.

    Attributes:
        header: nibabel's header, exactly as on disk.
        grid: where the voxels lie, by the rule above.
        channels: number of volumes in the file (the fourth dimension).
        remarks: contradictions that were decided by the rule (``warning``).
    """

    header: Any
    grid: Grid
    channels: int
    remarks: tuple[Problem, ...]


def read_nifti_header(path: Path) -> NiftiFile:
    """Read and judge the header of a ``.nii`` or ``.nii.gz`` file; no voxel is decoded.

    Raises:
        ProblemError: missing, empty, damaged, not NIfTI, not a volume, or a geometry that cannot be trusted.
    """
    header = _raw_header(path)
    shape = _shape(path, header)
    affine, remarks = _affine(path, header, shape[:3])
    return NiftiFile(header, Grid(shape[:3], affine), shape[3], remarks)


def read_nifti_array(path: Path, file: NiftiFile) -> NDArray[Any]:
    """Decode the voxels, scl_slope and scl_inter applied, as (C, X, Y, Z) in the type on disk (float if scaled)."""
    if int(file.header["datatype"]) not in nib.nifti1.data_type_codes.value_set("code"):
        raise ProblemError(
            path, f"the voxels have the unknown type {int(file.header['datatype'])}.", NEW_COPY
        )
    claimed = math.prod(file.grid.shape) * file.channels * file.header.get_data_dtype().itemsize
    there = path.stat().st_size * (DEFLATE_AT_MOST if path.name.lower().endswith(".gz") else 1)
    if claimed > there:  # asked before memory is, which a damaged header would ask for by the terabyte
        what = f"the header claims {times(file.grid.shape)} voxels, the file holds fewer: it is cut off or damaged."
        raise ProblemError(path, what, NEW_COPY)
    try:
        array = np.asanyarray(ArrayProxy(str(path), file.header, mmap=False))
    except MemoryError:
        raise ProblemError(
            path, f"the header claims {times(file.grid.shape)} voxels, more than fits in memory.", NEW_COPY
        ) from None
    except DAMAGED as error:
        raise ProblemError(path, f"the file is cut off or damaged ({_plain(error)}).", NEW_COPY) from None
    if array.dtype.kind not in "biuf":
        kind = "complex numbers" if array.dtype.kind == "c" else "colours"
        raise ProblemError(path, f"its voxels are {kind}.", "Save one real number a voxel.")
    array = array.reshape(*file.grid.shape, file.channels)
    return np.ascontiguousarray(np.moveaxis(array, -1, 0))


def _raw_header(path: Path) -> Any:
    try:
        with open(path, "rb") as file:
            magic = file.read(2)
        zipped = magic == b"\x1f\x8b"
        if not magic:
            raise ProblemError(path, "the file is empty (0 bytes).", NEW_COPY)
        if zipped != path.name.lower().endswith(".gz"):
            found, ending = ("is", ".nii.gz") if zipped else ("is not", ".nii")
            raise ProblemError(
                path,
                f"the file {found} gzip-compressed, against its name.",
                f"If it is NIfTI, rename it to end in {ending}.",
            )
        with gzip.open(path, "rb") if zipped else open(path, "rb") as stream:
            block = stream.read(540)
    except FileNotFoundError:
        raise ProblemError(
            path, "the file does not exist.", "Correct the path or restore the file."
        ) from None
    except IsADirectoryError:
        raise ProblemError(path, "this is a folder, not a file.", "Name an image file.") from None
    except PermissionError:
        raise ProblemError(
            path, "the file may not be read (permission denied).", "Run: chmod u+r on it."
        ) from None
    except (EOFError, OSError, zlib.error) as error:
        raise ProblemError(path, f"the file is cut off or damaged ({_plain(error)}).", NEW_COPY) from None
    for kind, size, magics in ((nib.Nifti1Header, 348, b"n+1"), (nib.Nifti2Header, 540, b"n+2")):
        claimed = int.from_bytes(block[:4], "little"), int.from_bytes(block[:4], "big")
        if len(block) >= size and size in claimed:
            header = kind(block[:size], check=False)
            if bytes(header["magic"].tobytes())[:3] == magics:
                return header
    raise ProblemError(
        path,
        "this is not a NIfTI file, whatever its name says.",
        "Convert it to NIfTI, or give it its right ending.",
    )


def _shape(path: Path, header: Any) -> tuple[Any, ...]:
    """Return (X, Y, Z, C)."""
    dims = int(header["dim"][0])
    sizes = [int(n) for n in header["dim"][1 : 1 + max(dims, 0)]]
    if not 1 <= dims <= 7 or min(sizes) < 1:
        raise ProblemError(path, f"the header claims the impossible shape {sizes}.", NEW_COPY)
    if dims < 3:
        raise ProblemError(
            path,
            f"the image is {dims}-D ({times(sizes)}); handful segments volumes.",
            "Stack the slices of a scan into one 3-D file (a single slice: shape X x Y x 1).",
        )
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    if len(sizes) > 4:
        raise ProblemError(
            path, f"the image is {len(sizes)}-D ({times(sizes)}).", "Save one 3-D volume a file."
        )
    return (*sizes, 1) if len(sizes) == 3 else tuple(sizes)


def _affine(path: Path, header: Any, shape: Sequence[int]) -> tuple[NDArray[np.float64], tuple[Problem, ...]]:
    """Decide the affine by the rule at the top of this file."""
    pixdim = np.asarray(header["pixdim"][1:4], dtype=np.float64)
    pixdim_valid = bool(np.isfinite(pixdim).all() and (pixdim > 0).all())
    remarks = []

    def remark(what: str, remedy: str) -> None:
        remarks.append(Problem(severity="warning", what=what, remedy=remedy, file=path))

    unit = int(header["xyzt_units"]) % 8
    if unit in (1, 3):
        name = {1: "metres", 3: "micrometres"}[unit]
        remark(
            f"the header gives lengths in {name}; they are read as millimetres.",
            "Convert affine and units to mm.",
        )

    if int(header["sform_code"]) > 0:
        sform = np.asarray(header.get_sform(), dtype=np.float64)
        spacing = np.linalg.norm(sform[:3, :3], axis=0)
        if (
            not np.isfinite(sform).all()
            or abs(np.linalg.det(sform[:3, :3])) < 1e-9 * max(spacing.max(), 1e-9) ** 3
        ):
            raise ProblemError(
                path, f"the sform is not a geometry (spacing {times(spacing)} mm).", SET_GEOMETRY
            )
        if not pixdim_valid:
            remark(f"pixdim is {times(pixdim)} mm, which is impossible; the sform is used.", SET_GEOMETRY)
            return sform, tuple(remarks)
        qform = _qform(header)
        disagree = f"the sform says a spacing of {times(spacing)} mm, pixdim says {times(pixdim)} mm"
        if np.allclose(spacing, pixdim, rtol=1e-2, atol=0):
            if qform is not None and corner_distance_mm(shape, sform, qform) > 0.5 * spacing.min():
                remark(
                    "sform and qform place the volume differently; the sform is used (other programs may differ).",
                    SET_GEOMETRY,
                )
            return sform, tuple(remarks)
        if np.allclose(spacing, 1, rtol=0, atol=1e-3):
            remark(
                f"{disagree}: a unit sform was written over the real geometry. pixdim is used.",
                f"{SET_GEOMETRY} If 1 mm is right, correct pixdim instead.",
            )
            return (qform if qform is not None else sform @ np.diag([*(pixdim / spacing), 1.0])), tuple(
                remarks
            )
        if np.allclose(pixdim, 1):
            remark(f"{disagree}: pixdim was never set. The sform is used.", SET_GEOMETRY)
            return sform, tuple(remarks)
        if int(header["sform_code"]) in TEMPLATE_CODES:
            remark(
                f"{disagree}: the sform leads to a template. The sform is used.",
                "Make sure template space is meant.",
            )
            return sform, tuple(remarks)
        raise ProblemError(path, f"{disagree}; which is right cannot be known.", SET_GEOMETRY)

    if not pixdim_valid:
        raise ProblemError(path, f"the spacing is {times(pixdim)} mm.", SET_GEOMETRY)
    if int(header["qform_code"]) > 0:
        qform = _qform(header)
        if qform is None:
            raise ProblemError(path, "the qform is not a rotation.", SET_GEOMETRY)
        return qform, tuple(remarks)
    remark(
        "the header has neither sform nor qform: left and right, front and back are unknown.",
        f"{SET_GEOMETRY} Until then the orientation is taken as LAS, NIfTI's default.",
    )
    return np.asarray(header.get_base_affine(), dtype=np.float64), tuple(remarks)


def _qform(header: Any) -> NDArray[np.float64] | None:
    """Return the qform, or None if its code is 0 or its numbers are no rotation."""
    if int(header["qform_code"]) == 0:
        return None
    header = header.copy()
    if abs(float(header["pixdim"][0])) != 1:
        header["pixdim"][0] = 1  # the standard: any other qfac reads as 1
    try:
        qform = np.asarray(header.get_qform(), dtype=np.float64)
    except (ValueError, HeaderDataError):
        return None
    return qform if np.isfinite(qform).all() else None


def _plain(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
