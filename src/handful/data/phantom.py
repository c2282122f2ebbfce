"""A data set that can be made anywhere: torsos with organs, drawn by formula, different in every patient.

Each patient is an upright torso described by a few smooth surfaces (body wall, spine, lungs, bowel, liver,
kidneys, vessels), whose sizes and places vary and which a smooth random field deforms. A scanner then looks
at it: a grid that may be oblique or left-handed, a contrast of its own, a bias field, texture, blur and
noise. Five structures are labelled; around them lie others of the same intensity that are not (spleen,
psoas, vein, bowel, cysts), so that neither a threshold nor a small neighbourhood is enough. Nothing here
models real anatomy or a real scanner; scores on it say that the machinery works, not how it works on
patients.
"""

import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from handful.artefacts import write_json, write_text
from handful.errors import RunError, UsageError

Modality = Literal["MR", "CT"]
Field = NDArray[np.float64]

LABEL_NAMES = {0: "background", 1: "liver", 2: "right kidney", 3: "left kidney", 4: "artery", 5: "nodule"}
"""What the label files hold, in order of falling size; the nodule is there in three patients of five."""


@dataclass(frozen=True, kw_only=True)
class PhantomVolume:
    """One scan of one phantom patient.

    Attributes:
        image: (X, Y, Z), float32 in arbitrary units (MR) or int16 in HU (CT).
        label: (X, Y, Z) uint8, the values of ``LABEL_NAMES``.
        affine: (4, 4), voxel to millimetres, right-anterior-superior.
    """

    image: NDArray[Any]
    label: NDArray[np.uint8]
    affine: Field


def make_phantom(
    out: Path,
    *,
    patients: int = 24,
    unlabelled: int = 8,
    held_out: int = 6,
    modality: Modality = "MR",
    size: tuple[int, int, int] = (56, 48, 40),
    spacing_mm: tuple[float, float, float] = (2.0, 2.0, 3.0),
    seed: int = 0,
    frames: int = 1,
) -> Path:
    """Write a phantom data set in the layout of the Medical Segmentation Decathlon and return its folder.

    Of ``patients``, the last ``held_out`` go to ``imagesTs/`` with labels in ``labelsTs/``, the
    ``unlabelled`` before them to ``imagesUn/``, the rest to ``imagesTr/`` and ``labelsTr/``. ``cases.csv``
    says whose each case is. The same arguments give the same bytes, and a patient does not depend on how many
    others there are.

    Args:
        out: folder to make; the whole data set appears at once. An equal phantom already there is kept.
        size: voxels of a usual volume along X, Y, Z; patients differ by up to a tenth.
        spacing_mm: voxel size of most volumes; every fourth patient's has voxels a tenth smaller in plane.
        frames: volumes of each patient, in different states of breathing.

    Raises:
        UsageError: for impossible numbers, or if ``out`` holds anything else.
    """
    labelled = patients - unlabelled - held_out
    if min(unlabelled, held_out) < 0 or labelled < 1 or frames < 1 or modality not in ("MR", "CT"):
        raise UsageError(
            f"a phantom of {patients} patients, {unlabelled} of them unlabelled, {held_out} held out, "
            f"{frames} frames each, modality {modality}: needs a labelled patient, a frame, and MR or CT."
        )
    if min(size) < 12 or min(spacing_mm) <= 0:
        raise UsageError(
            f"size {size}, spacing {spacing_mm} mm: 12 voxels an axis and a positive spacing are needed."
        )
    settings = {
        "patients": patients, "unlabelled": unlabelled, "held_out": held_out, "modality": modality,
        "size": list(size), "spacing_mm": list(spacing_mm), "seed": seed, "frames": frames,
    }  # fmt: skip
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if _settings_in(out) == settings:
            return out
        raise UsageError(f"{out} is not empty and holds no such phantom. Choose another folder or delete it.")

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=".tmp-phantom-", dir=out.parent))
    except OSError as error:
        raise RunError(f"{out.parent} cannot be written: {error.strerror}. Choose another folder.") from error
    try:
        training, test, rows = [], [], ["case,patient"]
        for patient in range(patients):
            part = "Tr" if patient < labelled else "Un" if patient < labelled + unlabelled else "Ts"
            for frame in range(frames):
                name = f"phantom_{patient:03d}" + (f"_frame{frame + 1}" if frames > 1 else "")
                volume = draw_volume(
                    patient, frame, modality=modality, size=size, spacing_mm=spacing_mm, seed=seed
                )
                file = f"{name}.nii.gz"
                _write(building / f"images{part}" / file, volume.image, volume.affine)
                if part != "Un":
                    _write(building / f"labels{part}" / file, volume.label, volume.affine)
                if part == "Tr":
                    training.append({"image": f"./imagesTr/{file}", "label": f"./labelsTr/{file}"})
                elif part == "Ts":
                    test.append({"image": f"./imagesTs/{file}", "label": f"./labelsTs/{file}"})
                rows.append(f"{name},patient_{patient:03d}")
        write_text(building / "cases.csv", "\n".join(rows) + "\n")
        write_json(
            building / "dataset.json",
            {
                "name": "Phantom",
                "description": "Torsos drawn by formula. No patient was scanned.",
                "licence": "Apache-2.0",
                "tensorImageSize": "3D",
                "modality": {"0": modality},
                "labels": {str(value): name for value, name in LABEL_NAMES.items()},
                "numTraining": len(training),
                "numTest": 0,  # MSD's own test images have no labels; ours have
                "training": training,
                "test": [],
                "test_labelled": test,
                "phantom": settings,
            },
        )
        if out.is_dir():
            out.rmdir()  # empty, checked above
        umask = os.umask(0)
        os.umask(umask)
        building.chmod(0o777 & ~umask)  # mkdtemp makes folders private
        os.replace(building, out)
    except OSError as error:
        raise RunError(
            f"{out} could not be written: {error.strerror or error}. Free some space or choose another."
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return out


def draw_volume(
    patient: int,
    frame: int = 0,
    *,
    modality: Modality = "MR",
    size: tuple[int, int, int] = (56, 48, 40),
    spacing_mm: tuple[float, float, float] = (2.0, 2.0, 3.0),
    seed: int = 0,
) -> PhantomVolume:
    """Draw one scan of one patient; depends on nothing but the arguments."""
    body = np.random.default_rng([seed, patient])
    scan = np.random.default_rng([seed, patient, frame + 1])
    half_mm = np.array(size) * np.array(spacing_mm) / 2
    shape, affine = _grid(patient, body, size=size, spacing_mm=spacing_mm)
    index = np.stack(np.meshgrid(*(np.arange(n, dtype=np.float64) for n in shape), indexing="ij"))
    world_mm = np.tensordot(affine[:3, :3], index, 1) + affine[:3, 3, None, None, None]
    voxel = 2 / np.array(size)
    tissue = _anatomy(
        world_mm / half_mm[:, None, None, None], body, scan, patient=patient, frame=frame, voxel=voxel
    )
    label = np.array([t.label for t in _TISSUES], np.uint8)[tissue]
    image = _mr(tissue, body, scan) if modality == "MR" else _ct(tissue, scan)
    return PhantomVolume(image=image, label=label, affine=affine)


@dataclass(frozen=True)
class _Tissue:
    name: str
    mr: float  # relative signal, fat about 0.9
    ct: float  # HU
    texture: float  # spread, in units of 0.09 of the signal (MR) or of 14 HU (CT)
    label: int = 0


# Liver, spleen, muscle and bowel wall share a band of intensities; so do artery and vein, nodule and cysts.
_TISSUES = (
    _Tissue("air", 0.00, -1000, 0.0),
    _Tissue("fat", 0.90, -100, 0.6),
    _Tissue("muscle", 0.47, 62, 0.7),
    _Tissue("bowel", 0.52, 75, 2.0),
    _Tissue("content", 0.30, 30, 1.5),
    _Tissue("marrow", 0.72, 210, 1.2),
    _Tissue("cortex", 0.12, 650, 0.5),
    _Tissue("canal", 0.25, 25, 0.3),
    _Tissue("psoas", 0.45, 70, 0.6),
    _Tissue("spleen", 0.50, 112, 0.5),
    _Tissue("cyst", 0.34, 62, 0.6),
    _Tissue("vein", 0.66, 165, 0.4),
    _Tissue("lung", 0.06, -820, 1.5),
    _Tissue("liver", 0.54, 105, 0.9, 1),
    _Tissue("right kidney", 0.56, 150, 0.7, 2),
    _Tissue("right medulla", 0.42, 118, 0.6, 2),
    _Tissue("left kidney", 0.56, 150, 0.7, 3),
    _Tissue("left medulla", 0.42, 118, 0.6, 3),
    _Tissue("artery", 0.69, 180, 0.4, 4),
    _Tissue("nodule", 0.37, 66, 0.6, 5),
    _Tissue("table", 0.00, 40, 0.2),
)
_INDEX = {tissue.name: index for index, tissue in enumerate(_TISSUES)}


def _grid(
    patient: int, rng: np.random.Generator, *, size: Sequence[int], spacing_mm: Sequence[float]
) -> tuple[tuple[int, ...], Field]:
    """Return shape and affine of a patient's scans, the torso's centre in the middle of the grid."""
    spacing = np.array(spacing_mm) * (np.array([0.9, 0.9, 1.0]) if patient % 4 == 2 else 1.0)
    reach = np.array(size) * np.array(spacing_mm) / spacing  # a smaller voxel, more of them
    shape = np.maximum(12, np.round(reach * (1 + rng.uniform(-0.08, 0.08, 3)))).astype(int)
    turn = np.eye(3)
    if patient % 5 == 3:  # oblique: the slices are tilted and turned
        tilt, yaw = np.deg2rad(rng.uniform(6, 14, 2) * rng.choice([-1, 1], 2))
        turn = np.array(
            [[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]]
        ) @ np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    if patient % 7 == 4:  # left-handed: the first axis runs from right to left
        turn = turn @ np.diag([-1.0, 1.0, 1.0])
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing
    affine[:3, 3] = -affine[:3, :3] @ ((shape - 1) / 2)
    return tuple(int(n) for n in shape), affine


def _anatomy(
    at: Field,
    body: np.random.Generator,
    scan: np.random.Generator,
    *,
    patient: int,
    frame: int,
    voxel: Field,
) -> NDArray[np.uint8]:
    """Return the tissue at each point of ``at`` (3, *S): right, anterior, superior, in [-1, 1] on a usual grid.

    Later structures lie over earlier ones. ``body`` decides what belongs to the patient, ``scan`` what to the
    moment.
    """
    skin = at + _waves(at, body, reach=0.03)  # the surface moves less than the organs
    where = skin + _waves(at, body, reach=0.075)
    if frame:  # breathing moves the organs up and down, least at the back
        breath = scan.uniform(0.06, 0.12) * scan.choice([-1, 1])
        where[2] += breath * np.clip(where[1] + 0.6, 0, 1)
        where += _waves(at, scan, reach=0.02)
    x, y, z = where
    tissue = np.zeros(at.shape[1:], np.uint8)

    def near(*centre: float, spread: float = 0.035) -> Field:
        return np.array(centre) + body.uniform(-spread, spread, 3)

    def about(*radii: float, spread: float = 0.14) -> Field:
        return np.array(radii) * body.uniform(1 - spread, 1 + spread, 3)

    def put(name: str, inside: NDArray[np.bool_]) -> None:
        tissue[inside] = _INDEX[name]

    # the body wall: skin and fat, muscle, the cavity's own fat
    girth = body.uniform(0.93, 1.0)
    fat, muscle = body.uniform(0.07, 0.16), body.uniform(0.07, 0.11)
    wall = (np.abs(skin[0] / (0.95 * girth)) ** 2.6 + np.abs(skin[1] / (0.86 * girth)) ** 2.6) ** (1 / 2.6)
    put("fat", wall < 1)
    put("muscle", wall < 1 - fat)
    cavity = wall < 1 - fat - muscle
    put("fat", cavity)

    # bowel: loops of tube filled with something darker, unlabelled, as bright as liver and kidney
    for _ in range(8):
        start = np.array([body.uniform(-0.55, 0.55), body.uniform(-0.1, 0.4), body.uniform(-0.95, -0.15)])
        steps = np.cumsum(body.uniform(-0.3, 0.3, (5, 3)) * [1, 0.7, 0.8], axis=0)
        loop = _tube(where, np.vstack([start, start + steps]))
        radius = body.uniform(0.10, 0.16)
        put("bowel", (loop < radius) & cavity)
        put("content", (loop < 0.5 * radius) & cavity)

    # the back: vertebra with marrow and canal, psoas on both sides of it, close to the kidneys
    disc = np.cos(2 * np.pi * 2.2 * (z + body.uniform(0, 0.45)))
    vertebra = np.hypot(x / 0.19, (y + 0.50) / 0.15)
    put("muscle", (np.abs(x) < 0.42) & (y < -0.55) & (wall < 1 - fat))
    put("cortex", vertebra < 1)
    put("marrow", (vertebra < 0.8) & (disc < 0.75))
    put("muscle", (vertebra < 0.8) & (disc >= 0.75))
    put("cortex", np.hypot(x / 0.11, (y + 0.74) / 0.12) < 1)
    put("canal", np.hypot(x / 0.075, (y + 0.71) / 0.06) < 1)
    for side in (-1, 1):
        centre = near(side * 0.29, -0.46, 0.0)
        put(
            "psoas",
            np.hypot((x - centre[0] - side * 0.1 * (0.2 - z)) / 0.11, (y - centre[1]) / 0.13) < _taper(z),
        )

    # left upper abdomen: spleen and stomach, liver's look-alikes
    put("spleen", (_ellipsoid(where, near(-0.56, -0.18, 0.33), about(0.19, 0.30, 0.34)) < 1) & cavity)
    stomach = _ellipsoid(where, near(-0.38, 0.26, 0.38), about(0.27, 0.24, 0.26))
    put("bowel", (stomach < 1) & cavity)
    put("content", (stomach < 0.68) & cavity)

    # liver: a right and a left lobe in one smooth surface, the stomach under its left
    right = _ellipsoid(where, near(0.42, 0.06, 0.28), about(0.37, 0.43, 0.52, spread=0.1)) - 1
    left = _ellipsoid(where, near(0.02, 0.33, 0.42), about(0.36, 0.20, 0.25)) - 1
    blend = np.clip(0.5 + (left - right) / 0.5, 0, 1)
    liver = left * (1 - blend) + right * blend - 0.25 * blend * (1 - blend)
    put("liver", (liver < 0) & cavity)
    in_liver = (liver < -0.12) & cavity

    # lungs above a dome; what is below stays
    dome = 0.86 - 0.55 * (x**2 + (y + 0.05) ** 2) + 0.06 * x + body.uniform(-0.05, 0.05)
    lung = (z > dome) & cavity & (vertebra > 1.15)
    put("lung", lung)

    # vein right of the artery, alike in brightness and size, unlabelled
    sway = body.uniform(-0.05, 0.05, 8)
    height = np.linspace(-1.4, 1.4, 8)
    calibre = max(body.uniform(0.068, 0.085), 1.25 * float(voxel[:2].max()))
    vein = np.stack([0.15 + sway, -0.23 + 0.04 * np.cos(2 * height), height], 1)
    put("vein", _tube(where, vein) < 1.15 * calibre)

    # kidneys: beans around a hilum of fat, cortex brighter than medulla; the right one lower, below the liver
    for side, name, drop in ((1, "right", -0.34), (-1, "left", -0.20)):
        centre, radii = near(side * 0.50, -0.33, drop), about(0.165, 0.165, 0.30)
        lean = where.copy()
        lean[0] += side * 0.2 * (z - centre[2])  # upper poles lean to the spine
        bean = _ellipsoid(lean, centre, radii)
        put(f"{name} kidney", bean < 1)
        put(f"{name} medulla", (bean < 0.68) & (np.sin(9 * z + 5 * y + 3 * x) > -0.2))
        put("fat", _ellipsoid(lean, centre - [side * 0.16, -0.02, 0], np.array([0.08, 0.09, 0.10])) < 1)

    # artery: left of the midline, over the vertebrae, curved, dividing in two below, a branch to each kidney
    bend = body.uniform(-0.06, 0.06, 4)
    trunk = np.array(
        [
            [-0.10, -0.40, 1.4],
            [-0.10, -0.33, 0.8],
            [-0.07, -0.27, 0.4],
            [-0.06, -0.26, 0.0],
            [0.0, -0.27, -0.5],
        ]
    )
    trunk[1:, 0] += bend
    thin = max(0.62 * calibre, 0.95 * float(voxel[:2].max()))
    artery = _tube(where, trunk) < calibre
    for side in (-1, 1):
        fork = trunk[-1] + np.array(
            [[0, 0, 0], [side * 0.10, 0.04, -0.25], [side * 0.22, 0.10, -0.6], [side * 0.3, 0.15, -1.0]]
        )
        artery |= _tube(where, fork) < max(0.8 * calibre, thin)
    put("artery", artery)

    # cysts look like nodules, but lie in spleen, fat and kidney pole; a nodule lies in the liver
    small = max(0.10, 1.3 * float(voxel.mean())) * body.uniform(0.9, 1.25, 4)
    for centre, radius in zip(
        (near(-0.55, -0.15, 0.4, spread=0.1), near(0.15, 0.2, -0.3, spread=0.3)), small
    ):
        put("cyst", (_ellipsoid(where, centre, np.full(3, radius)) < 1) & cavity)
    if patient % 5 in (0, 2, 3):
        spots = np.argwhere(in_liver & ~lung & (np.abs(z) < 0.8))
        seat = where[:, *spots[int(body.integers(len(spots)))]]
        put("nodule", (_ellipsoid(where, seat, small[2] * body.uniform(0.8, 1.2, 3)) < 1) & cavity)

    # the couch, a shallow curved plate behind the patient; only CT sees it
    put("table", (np.abs(at[1] + 0.93 - 0.08 * at[0] ** 2) < max(0.03, 0.6 * voxel[1])) & (tissue == 0))
    return tissue


def _waves(at: Field, rng: np.random.Generator, *, reach: float, count: int = 7) -> Field:
    """Return a smooth displacement (3, *S): long sine waves in random directions, about ``reach`` in size."""
    moved: Field = np.zeros_like(at)
    for _ in range(count):
        direction, phase = rng.normal(0, 1.1, 3), rng.uniform(0, 2 * np.pi)
        wave = np.sin(np.tensordot(direction, at, 1) * np.pi / 1.6 + phase)
        moved += rng.normal(0, reach / np.sqrt(count / 2), 3)[:, None, None, None] * wave
    return moved


def _ellipsoid(at: Field, centre: Field, radii: Field) -> Field:
    """Return the distance from ``centre`` in units of ``radii``; 1 on the surface."""
    gap = (at - centre[:, None, None, None]) / radii[:, None, None, None]
    distance: Field = np.sqrt(np.sum(gap**2, axis=0))
    return distance


def _tube(at: Field, points: Field) -> Field:
    """Return the distance to a line through ``points`` (N, 3)."""
    nearest: Field = np.full(at.shape[1:], np.inf)
    for start, end in itertools.pairwise(points):
        along = end - start
        gap = at - start[:, None, None, None]
        share = np.clip(np.tensordot(along, gap, 1) / (along @ along), 0, 1)
        nearest = np.minimum(nearest, np.sum((gap - along[:, None, None, None] * share) ** 2, axis=0))
    np.sqrt(nearest, out=nearest)
    return nearest


def _taper(z: Field) -> Field:
    """Return 1 low in the body and 0 high in it: a muscle that ends under the ribs."""
    taper: Field = np.clip((0.45 - z) / 0.4, 0, 1)
    return taper


def _texture(shape: Sequence[int], rng: np.random.Generator) -> Field:
    """Return noise of zero mean and unit spread with a coarse and a fine grain."""
    coarse = ndimage.gaussian_filter(rng.standard_normal(shape), 2.2, mode="wrap")
    fine = ndimage.gaussian_filter(rng.standard_normal(shape), 0.8, mode="wrap")
    grain: Field = coarse / coarse.std() * 0.8 + fine / fine.std() * 0.6
    return grain


def _mr(
    tissue: NDArray[np.uint8], body: np.random.Generator, scan: np.random.Generator
) -> NDArray[np.float32]:
    """Return what an MR scanner makes of the tissues: no unit, a bias field, Rician noise."""
    signal = np.array([t.mr for t in _TISSUES])
    signal = signal ** body.uniform(0.8, 1.3) * np.exp(body.normal(0, 0.05, len(signal)))  # of this protocol
    grain = np.array([t.texture for t in _TISSUES])
    clean = signal[tissue] * (1 + 0.09 * grain[tissue] * _texture(tissue.shape, scan))
    clean = ndimage.gaussian_filter(np.maximum(clean, 0), 0.55)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in tissue.shape), indexing="ij")
    slope, bow = body.normal(0, 0.16, 3), body.normal(0, 0.12, 3)
    bias = np.exp(sum(s * a + b * a * a for s, b, a in zip(slope, bow, axes)))
    noise = scan.normal(0, scan.uniform(0.02, 0.05), (2, *tissue.shape))  # of the complex signal
    gain = 10 ** body.uniform(0, 4)  # receivers differ by orders of magnitude
    magnitude: NDArray[np.float32] = (gain * np.hypot(clean * bias + noise[0], noise[1])).astype(np.float32)
    return magnitude


def _ct(tissue: NDArray[np.uint8], scan: np.random.Generator) -> NDArray[np.int16]:
    """Return what a CT scanner makes of the tissues: HU, streak-free, grainy."""
    attenuation = np.array([t.ct for t in _TISSUES])
    grain = np.array([t.texture for t in _TISSUES])
    clean = attenuation[tissue] + 14 * grain[tissue] * _texture(tissue.shape, scan)
    noise = ndimage.gaussian_filter(scan.standard_normal(tissue.shape), 0.6)  # CT noise is correlated
    image = ndimage.gaussian_filter(clean, 0.55) + noise / noise.std() * scan.uniform(14, 28)
    hu: NDArray[np.int16] = np.clip(np.round(image), -1024, 3071).astype(np.int16)
    return hu


def _write(path: Path, array: NDArray[Any], affine: Field) -> None:
    import nibabel

    path.parent.mkdir(exist_ok=True)
    image = nibabel.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)


def _settings_in(out: Path) -> Any:
    """Return the settings of the phantom in ``out``, None if there is none."""
    try:
        return json.loads((out / "dataset.json").read_text(encoding="utf-8")).get("phantom")
    except (OSError, ValueError, AttributeError):
        return None
