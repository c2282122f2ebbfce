"""Prepared cases kept on disk, compressed, under a name made of everything they depend on: never stale, never trusted.

Image and label are separate files. The image's name is made of the content of the image files and the parts of the plan
that change an image; the label's also of the label file and the values of the classes. A label is touched only for a
case that carries one, so a case outside the budget leaves no trace of its label here.
"""

import json
import math
import warnings
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from handful import artefacts
from handful.data.cases import Case
from handful.data.dicom import slice_files
from handful.data.fingerprint import Fingerprint
from handful.data.io import read_image, read_label
from handful.data.plan import Plan
from handful.data.preprocess import Prepared, prepare
from handful.data.resampling import Geometry, grid_shape
from handful.errors import DataError, RunError

FORMAT = 1
"""Raised whenever ``prepare`` gives other numbers for the same plan and files."""

LEVEL = 1
"""Zstandard level after byte shuffling: 0.71 of the bytes of real MR; level 5 takes seven times as long for 0.70."""


class CacheWarning(UserWarning):
    """A cache file was damaged and is made anew."""


@dataclass(frozen=True, eq=False)
class LazyPrepared:
    """A prepared case on disk; slicing reads and decompresses only the chunks that are touched.

    Attributes:
        image: (C, D, H, W) float16; ``image[:, 3:9, :, 20:40]`` gives a numpy array.
        label: (D, H, W) uint8 class indices, read the same way, or None.
        geometry: the way back.
    """

    image: Any
    label: Any | None
    geometry: Geometry


class Cache:
    """Prepared cases of one plan, made when they are first asked for.

    Several processes and threads may read and fill one folder: files are written beside and renamed, so a reader sees
    a whole file or none.
    """

    def __init__(self, folder: Path | None, plan: Plan) -> None:
        """Keep cases in ``folder``; None prepares them each time."""
        self.folder = folder
        self.plan = plan
        self._hashes: dict[tuple[tuple[Path, int, int], ...], str] = {}
        self._lock = Lock()

    def get(self, case: Case) -> Prepared:
        """Return the prepared case whole, from disk if it is there and sound.

        Raises:
            DataError: the case's files cannot be prepared; the message names the case.
        """
        if self.folder is None:
            return self._make(case)
        paths = self._paths(case)
        image = _read(paths[0])
        label = _read(paths[1]) if paths[1] is not None else None
        if image is None or (paths[1] is not None and label is None):
            prepared = self._make(case)
            self._store(case, prepared)
            return prepared
        indices = None if label is None else label[0]
        return Prepared(image[0].astype(np.float32), indices, image[1])

    def open_lazy(self, case: Case) -> LazyPrepared:
        """Return the case memory-mapped; needs a folder. A damaged file is made anew. No file stays open."""
        if self.folder is None:
            raise ValueError("a cache without a folder has nothing to map; use get().")
        paths = self._paths(case)
        opened = [_open(path) for path in paths if path is not None]
        if any(array is None for array in opened):
            self._store(case, self._make(case))
            opened = [_open(path) for path in paths if path is not None]
        label = opened[1] if len(opened) > 1 else None
        return LazyPrepared(opened[0], label, _geometry(opened[0]))

    def _make(self, case: Case) -> Prepared:
        image = read_image(case.images)
        label = read_label(case.label) if case.label is not None else None
        try:
            return prepare(image, label, self.plan, annotated=case.annotated)
        except DataError as error:
            raise DataError(f"case {case.name} ({case.images[0]}): {error}") from None

    def _store(self, case: Case, prepared: Prepared) -> None:
        image_path, label_path = self._paths(case)
        by_slice = self.plan.dims == 2 and len(self.plan.planes) == 1
        _write(image_path, prepared.image.astype(np.float16), prepared.geometry, slices=by_slice)
        if label_path is not None and prepared.label is not None:
            _write(label_path, prepared.label, prepared.geometry, slices=by_slice)

    def _paths(self, case: Case) -> tuple[Path, Path | None]:
        assert self.folder is not None
        plan = self.plan
        grid = {
            "format": FORMAT,
            "axes": plan.axes,
            "spacing_mm": plan.spacing_mm,
            "dims": plan.dims,  # decides the chunks, as the planes do
            **({"planes": plan.planes} if len(plan.planes) > 1 else {}),
            "images": [self._hash(path) for path in case.images],
        }
        name = quote(case.name, safe="")
        key = artefacts.hash_of({**grid, "channels": [asdict(channel) for channel in plan.channels]})
        image = self.folder / f"{name}-{key}.image.b2nd"
        if case.label is None:
            return image, None
        classes = {"label": self._hash(case.label), "values": plan.label_values, "ignore": plan.ignore_value}
        if case.annotated is not None:
            classes["annotated"] = case.annotated
        return image, self.folder / f"{name}-{artefacts.hash_of({**grid, **classes})}.label.b2nd"

    def _hash(self, path: Path) -> str:
        """Hash the content of a file or DICOM series, once as long as sizes and times of change stay the same."""
        try:
            files = slice_files(path) if path.is_dir() else [path]
            states = [(file, file.stat()) for file in files]
        except FileNotFoundError:
            raise DataError(f"{path} does not exist.") from None
        key = tuple((file, status.st_size, status.st_mtime_ns) for file, status in states)
        with self._lock:
            known = self._hashes.get(key)
        if known is None:
            hashes = sorted(artefacts.hash_of_file(file) for file in files)
            known = artefacts.hash_of(hashes) if path.is_dir() else hashes[0]
            with self._lock:
                self._hashes[key] = known
        return known


def load_all(
    cases: Sequence[Case],
    plan: Plan,
    *,
    folder: Path | None = None,
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[Prepared]:
    """Prepare all cases and keep them in memory, in the order given.

    Args:
        cases: labels are read for those whose ``label`` is not None.
        plan: what they are prepared by.
        folder: of the cache; None keeps nothing on disk.
        threads: how many cases at the same time.
        progress: called with (cases done, all cases) after each.
    """
    cache = Cache(folder, plan)
    result = []
    with ThreadPoolExecutor(max(1, threads)) as pool:
        for prepared in pool.map(cache.get, cases):
            result.append(prepared)
            if progress is not None:
                progress(len(result), len(cases))
    return result


def resident_gb(fingerprint: Fingerprint, plan: Plan, *, bytes_each: int = 2) -> float:
    """Return how much memory all cases of the fingerprint take after preparation, in GB.

    Args:
        fingerprint: sizes and spacings of the cases.
        plan: the grid.
        bytes_each: of an intensity (2 for float16, 4 for float32); a label adds one byte a voxel.
    """
    total = 0
    for case in fingerprint.cases:
        shape = [case.shape[axis] for axis in plan.axes]
        spacing = [case.spacing_mm[axis] for axis in plan.axes]
        total += math.prod(grid_shape(shape, spacing, plan.spacing_mm)) * (
            len(plan.channels) * bytes_each + 1
        )
    return total / 1e9


def fits_in_memory(fingerprint: Fingerprint, plan: Plan, *, memory_gb: float, bytes_each: int = 2) -> bool:
    """Tell whether all prepared cases together fit into ``memory_gb``."""
    return resident_gb(fingerprint, plan, bytes_each=bytes_each) <= memory_gb


def _write(path: Path, array: NDArray[Any], geometry: Geometry, *, slices: bool) -> None:
    import blosc2

    content = np.ascontiguousarray(array)
    meta = {
        "shape": geometry.shape,
        "affine": np.asarray(geometry.affine, np.float64).tolist(),  # JSON keeps a float64 bit for bit
        "grid": geometry.grid,
        "spacing_mm": geometry.spacing_mm,
        "crc": zlib.crc32(content.data),
    }
    # a chunk is what a patch reads; blocks inside it are decompressed alone
    depth = 1 if slices else 32
    side = 256 if slices else 64
    chunk = [min(n, limit) for n, limit in zip(array.shape[-3:], (depth, side, side))]
    block = [
        min(n, limit) for n, limit in zip(chunk, (min(depth, 16), 64 if slices else 32, 64 if slices else 32))
    ]
    lead = [1] * (array.ndim - 3)
    with artefacts.atomic_path(path) as temporary:
        temporary.unlink()  # blosc2 makes the file itself
        stored = blosc2.asarray(
            content,
            urlpath=str(temporary),
            mode="w",
            chunks=(*lead, *chunk),
            blocks=(*lead, *block),
            cparams=blosc2.CParams(codec=blosc2.Codec.ZSTD, clevel=LEVEL, nthreads=1),
        )
        stored.schunk.vlmeta["geometry"] = json.dumps(meta)


def _read(path: Path) -> tuple[NDArray[Any], Geometry] | None:
    """Read a file whole and check its sum; None if it is not there or damaged (with a warning)."""
    array = _open(path)
    if array is None:
        return None
    try:
        content = np.ascontiguousarray(array[:])
        if zlib.crc32(content.data) != _meta(array)["crc"]:
            raise ValueError("the sum of its content is wrong")
        return content, _geometry(array)
    except (RuntimeError, ValueError, KeyError) as error:
        _warn(path, error)
        return None


def _open(path: Path) -> Any | None:
    import blosc2
    import torch

    if not path.exists():
        return None
    try:
        # torch closes a file that it maps; blosc2 and mmap keep a descriptor each, and a process has a thousand
        frame = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
        array = blosc2.ndarray_from_cframe(frame.numpy())
        array.frame = frame  # mapped as long as the array lives
        array.schunk.dparams = blosc2.DParams(nthreads=1)
        _geometry(array)
        return array
    except (RuntimeError, ValueError, KeyError, TypeError, OSError) as error:
        _warn(path, error)
        return None


def _meta(array: Any) -> dict[str, Any]:
    meta: dict[str, Any] = json.loads(array.schunk.vlmeta["geometry"])
    return meta


def _geometry(array: Any) -> Geometry:
    meta = _meta(array)
    return Geometry(
        shape=tuple(meta["shape"]),
        affine=np.array(meta["affine"], np.float64),
        grid=tuple(meta["grid"]),
        spacing_mm=tuple(meta["spacing_mm"]),
    )


def _warn(path: Path, error: Exception) -> None:
    try:
        path.open("rb").close()
    except OSError as refused:  # too many files, no permission: says nothing about the content
        raise RunError(
            f"{path} cannot be opened: {refused.strerror}. Allow more open files (ulimit -n) or see to its permissions."
        ) from refused
    warnings.warn(f"{path} is damaged ({error}) and is made anew.", CacheWarning, stacklevel=3)
