"""Tiny data sets on disk, for the tests that read files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

SHAPE = (7, 6, 5)
AFFINE = np.array([[-0.8, 0, 0, 11], [0, 0.9, 0, -7], [0, 0, 2.5, 3], [0, 0, 0, 1.0]])  # LAS, left-handed


def oblique(*, flip: bool = False) -> NDArray[np.float64]:
    """An affine turned about two axes, anisotropic, left-handed if ``flip``."""
    a, b = 0.3, -0.2
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    turn = turn @ np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-0.7 if flip else 0.7, 0.8, 3.1])
    affine[:3, 3] = [12.5, -40.25, 7.125]
    return affine


def image(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> NDArray[np.int16]:
    """Noise, different for every seed."""
    return np.random.default_rng(seed).integers(-200, 900, shape).astype(np.int16)


def label(seed: int = 0, shape: tuple[int, ...] = SHAPE, classes: int = 2) -> NDArray[np.uint8]:
    """Values 0..classes, every one present."""
    array = np.random.default_rng(seed + 1000).integers(0, classes + 1, shape).astype(np.uint8)
    array.flat[: classes + 1] = range(classes + 1)
    return array


def save(path: Path, array: NDArray[Any], affine: NDArray[np.float64] | None = None, **header: Any) -> Path:
    """Write NIfTI; keywords overwrite header fields (``pixdim`` takes a tuple) in the bytes on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = nib.Nifti1Image(array, AFFINE if affine is None else affine)
    file.set_sform(file.affine, 1)
    file.set_qform(file.affine, 1)
    file.header.set_xyzt_units("mm")
    file.to_filename(path)
    if header:
        rewrite_header(path, header)
    return path


def rewrite_header(path: Path, fields: Mapping[str, Any]) -> None:
    """Overwrite header fields without nibabel's corrections."""
    import gzip

    packed = path.name.endswith(".gz")
    data = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    header = nib.Nifti1Header(data[:348], check=False)
    for name, value in fields.items():
        if name == "pixdim":
            header["pixdim"][1 : 1 + len(value)] = value
        elif name == "sform":
            header.set_sform(np.asarray(value, dtype=float), 2)
        else:
            header[name] = value
    data = header.binaryblock + data[348:]
    path.write_bytes(gzip.compress(data) if packed else data)


def dataset_json(root: Path, **changes: Any) -> Path:
    """Write an nnU-Net ``dataset.json``; keywords replace keys, None removes one."""
    content: dict[str, Any] = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "head": 1, "tail": 2},
        "file_ending": ".nii.gz",
        "numTraining": 4,
    }
    content.update(changes)
    root.mkdir(parents=True, exist_ok=True)
    path = root / "dataset.json"
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return path


def nnunet(root: Path, n: int = 4, **changes: Any) -> Path:
    """Write a sound nnU-Net data set of cases ``c0 c1 ...``."""
    for i in range(n):
        save(root / "imagesTr" / f"c{i}_0000.nii.gz", image(i))
        save(root / "labelsTr" / f"c{i}.nii.gz", label(i))
    dataset_json(root, **{"numTraining": n, **changes})
    return root
