"""What a data set looks like: sizes, spacings, intensities, and where its labelled structures lie.

The plan is made from this and from nothing else. Statistics that need labels use the labelled cases of the budget only,
so that a run with two labels knows what two labels tell.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from handful import artefacts
from handful.data.cases import Case, Dataset
from handful.data.connected import WHOLE, largest_share
from handful.data.intensity import Intensities, background_value, describe, thin
from handful.data.io import read_image, read_label
from handful.data.resampling import grid_order, to_grid
from handful.data.volume import grid_difference
from handful.errors import DataError, UsageError
from handful.settings import build

BODY_HU = -500.0
"""CT voxels above this belong to the patient rather than to air or lung."""

POOLED_PER_CASE = 100_000
"""Voxels a case contributes to the pooled statistics, so that one large case does not speak for all."""


@dataclass(frozen=True, kw_only=True)
class CaseFingerprint:
    """One volume, axes in RAS order.

    Attributes:
        case: its name.
        patient: whose it is.
        shape: number of voxels along R, A, S.
        spacing_mm: along R, A, S.
        orientation: of the file, for example ``LPS``.
        channels: statistics of each channel over all voxels that are not the constant background.
        background: share of the voxels, per channel, that equal the commonest value of the volume's faces.
    """

    case: str
    patient: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    orientation: str
    channels: tuple[Intensities, ...]
    background: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class ClassFingerprint:
    """One structure in one labelled case of the budget.

    Attributes:
        case: name of the case.
        patient: whose it is.
        value: of the class in the label file.
        voxels: its size.
        volume_ml: its size.
        centroid: along R, A, S, relative to the volume: 0 and 1 are the outer faces.
        low: where its bounding box begins, relative, along R, A, S.
        high: where its bounding box ends, relative, along R, A, S.
        largest_piece: share of its voxels that its largest connected piece holds.
        channels: intensities inside it, per channel.
    """

    case: str
    patient: str
    value: int
    voxels: int
    volume_ml: float
    centroid: tuple[float, float, float]
    low: tuple[float, float, float]
    high: tuple[float, float, float]
    largest_piece: float
    channels: tuple[Intensities, ...]


@dataclass(frozen=True, kw_only=True)
class PieceCount:
    """How often a structure is one connected piece in the labelled cases of the budget.

    Attributes:
        value: of the class in the label file; None is all foreground together.
        cases: in how many labelled cases it is present.
        patients: whose cases these are, in number.
        whole: in how many of these cases its largest piece holds at least ``connected.WHOLE`` of its voxels.
    """

    value: int | None
    cases: int
    patients: int
    whole: int


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """Everything the plan is made from.

    Attributes:
        dataset: its name.
        channel_names: one a channel.
        labelled: names of the cases whose labels were read (the budget).
        cases: one entry an image.
        classes: one entry a structure that is present in a labelled case.
        pieces: one entry a declared structure, present or not; all foreground together last.
        foreground: per channel, all labelled foreground voxels together (each case thinned to ``POOLED_PER_CASE``).
        body: per channel, all voxels above ``BODY_HU`` together (CT is windowed by these where labels are too few).
    """

    dataset: str
    channel_names: tuple[str, ...]
    labelled: tuple[str, ...]
    cases: tuple[CaseFingerprint, ...]
    classes: tuple[ClassFingerprint, ...]
    pieces: tuple[PieceCount, ...]
    foreground: tuple[Intensities, ...]
    body: tuple[Intensities, ...]

    @property
    def hash(self) -> str:
        """16 hexadecimal digits that identify the content."""
        return artefacts.hash_of(dataclasses.asdict(self))


def make_fingerprint(
    dataset: Dataset, labelled: Sequence[Case], images: Sequence[Case], *, threads: int = 1
) -> Fingerprint:
    """Read every image once, and the labels of the budget, and describe them.

    Args:
        dataset: gives the names of channels and labels.
        labelled: the budget: the only cases whose label files are opened; may be empty.
        images: cases whose images may be used; labelled cases missing here are added.
        threads: how many volumes are read at the same time.

    Raises:
        DataError: no case at all, a label file that does not lie on its image, or a value nobody declared.
    """
    budget = {case.name for case in labelled}
    everything = [*images, *(case for case in labelled if case.name not in {c.name for c in images})]
    if not everything:
        raise DataError(f"{dataset.root}: there is no image to make a plan from.")
    with ThreadPoolExecutor(max(1, threads)) as pool:
        seen = list(
            pool.map(lambda case: _look_at(case, dataset, with_label=case.name in budget), everything)
        )
    seen.sort(key=lambda one: one.fingerprint.case)
    channels = range(len(dataset.channel_names))
    return Fingerprint(
        dataset=dataset.name,
        channel_names=tuple(dataset.channel_names),
        labelled=tuple(sorted(budget)),
        cases=tuple(one.fingerprint for one in seen),
        classes=tuple(entry for one in seen for entry in one.classes),
        pieces=_count_pieces(seen, dataset),
        foreground=tuple(_pool([one.foreground[c] for one in seen]) for c in channels),
        body=tuple(_pool([one.body[c] for one in seen]) for c in channels),
    )


def write_fingerprint(path: Path, fingerprint: Fingerprint) -> None:
    """Write ``fingerprint.json``: version and hash first."""
    from handful import __version__

    content = {"version": __version__, "hash": fingerprint.hash, **dataclasses.asdict(fingerprint)}
    artefacts.write_json(path, content)


def read_fingerprint(path: Path) -> Fingerprint:
    """Read ``fingerprint.json``; a file that does not match its own hash is a ``DataError``."""
    content = artefacts.read_json(path)
    remedy = "Delete the file: it is made anew from the images."
    if not isinstance(content, dict) or not {"hash", "cases"} <= content.keys():
        raise DataError(f"{path} is not a fingerprint. {remedy}")
    values = {key: value for key, value in content.items() if key not in ("version", "hash")}
    try:
        fingerprint = build(Fingerprint, values, where=str(path))
    except UsageError as error:
        raise DataError(f"{error} {remedy}") from None
    if fingerprint.hash != content["hash"]:
        raise DataError(
            f"{path} was changed after it was written. {remedy} To steer the plan, edit plan.yaml."
        )
    return fingerprint


@dataclass(frozen=True)
class _Seen:
    """What one case gives.

    ``foreground`` and ``body`` are thinned values of each channel; ``largest_piece`` is the share of all foreground
    that its largest piece holds, None where there is none.
    """

    fingerprint: CaseFingerprint
    classes: tuple[ClassFingerprint, ...]
    largest_piece: float | None
    foreground: list[tuple[NDArray[Any], int]]
    body: list[tuple[NDArray[Any], int]]


def _look_at(case: Case, dataset: Dataset, *, with_label: bool) -> _Seen:
    image = read_image(case.images)
    voxels = to_grid(image.array, image.affine, (0, 1, 2))
    spacing = _in_ras(image.spacing_mm, image.affine)
    backgrounds = [background_value(channel) for channel in voxels]
    shape = voxels.shape[1:]
    fingerprint = CaseFingerprint(
        case=case.name,
        patient=case.patient,
        shape=(shape[0], shape[1], shape[2]),
        spacing_mm=spacing,
        orientation=image.orientation,
        channels=tuple(
            describe(channel[channel != value]) for channel, value in zip(voxels, backgrounds, strict=True)
        ),
        background=tuple(
            float(np.mean(channel == value)) for channel, value in zip(voxels, backgrounds, strict=True)
        ),
    )
    body = [_thinned(channel[channel > BODY_HU]) for channel in voxels]
    nothing = (np.zeros(0, voxels.dtype), 0)
    if not with_label:
        return _Seen(fingerprint, (), None, [nothing] * len(voxels), body)
    if case.label is None:
        raise DataError(f"case {case.name} is in the budget of labelled cases but has no label file.")
    label = read_label(case.label)
    difference = grid_difference(image.grid, label.grid)
    if difference:
        raise DataError(
            f"{case.label} does not lie on its image {case.images[0]}: {difference}. Run 'handful check'."
        )
    values = to_grid(label.array, label.affine, (0, 1, 2))[0]
    _refuse_undeclared(values, dataset.label_names, dataset.ignore_value, case.label)
    classes = tuple(_classes(case, values, voxels, spacing, dataset))
    inside = values != 0
    if dataset.ignore_value is not None:
        inside &= values != dataset.ignore_value
    box = next(iter(ndimage.find_objects(inside.view(np.uint8))), None)
    # of all foreground together only where all of it is known
    largest = None if box is None or case.annotated is not None else largest_share(inside[box])
    return _Seen(fingerprint, classes, largest, [_thinned(channel[inside]) for channel in voxels], body)


def _classes(
    case: Case,
    values: NDArray[Any],
    voxels: NDArray[np.float32],
    spacing_mm: tuple[float, float, float],
    dataset: Dataset,
) -> list[ClassFingerprint]:
    """Describe every declared structure that is present, background and ignored voxels aside."""
    known = _structures(dataset)
    indices = np.zeros(values.shape, np.int32)
    for index, value in enumerate(known, start=1):
        indices[values == value] = index
    result = []
    boxes: list[tuple[slice, ...] | None] = list(ndimage.find_objects(indices, len(known)))
    for index, (value, box) in enumerate(zip(known, boxes), start=1):
        if box is None:
            continue
        mask = indices[box] == index
        count = int(mask.sum())
        centroid = []
        for axis in range(3):
            profile = mask.sum(axis=tuple(other for other in range(3) if other != axis))
            position = (profile @ np.arange(len(profile))) / count + box[axis].start
            centroid.append(float((position + 0.5) / values.shape[axis]))
        low = [part.start / size for part, size in zip(box, values.shape)]
        high = [part.stop / size for part, size in zip(box, values.shape)]
        result.append(
            ClassFingerprint(
                case=case.name,
                patient=case.patient,
                value=value,
                voxels=count,
                volume_ml=count * float(np.prod(spacing_mm)) / 1000,
                centroid=(centroid[0], centroid[1], centroid[2]),
                low=(low[0], low[1], low[2]),
                high=(high[0], high[1], high[2]),
                largest_piece=largest_share(mask),
                channels=tuple(describe(channel[box][mask]) for channel in voxels),
            )
        )
    return result


def _structures(dataset: Dataset) -> list[int]:
    """Return the declared label values, background and ignored voxels aside."""
    return sorted(value for value in dataset.label_names if value not in (0, dataset.ignore_value))


def _count_pieces(seen: Sequence[_Seen], dataset: Dataset) -> tuple[PieceCount, ...]:
    """Count, per structure and for all foreground together, the cases where it is one piece."""
    shares: dict[int | None, list[tuple[str, float]]] = {value: [] for value in _structures(dataset)}
    shares[None] = []
    for one in seen:
        for entry in one.classes:
            shares[entry.value].append((entry.patient, entry.largest_piece))
        if one.largest_piece is not None:
            shares[None].append((one.fingerprint.patient, one.largest_piece))
    return tuple(
        PieceCount(
            value=value,
            cases=len(found),
            patients=len({patient for patient, _ in found}),
            whole=sum(share >= WHOLE for _, share in found),
        )
        for value, found in shares.items()
    )


def _refuse_undeclared(
    values: NDArray[Any], names: Mapping[int, str], ignore_value: int | None, path: Path
) -> None:
    found = {int(value) for value in np.unique(values)}
    unknown = found - {0} - set(names) - ({ignore_value} if ignore_value is not None else set())
    if unknown:
        raise DataError(
            f"{path} holds label values nobody declared: {sorted(unknown)}. "
            f"Declared are {sorted(names)}. Add them to dataset.json or mend the label map."
        )


def _in_ras(
    spacing_mm: tuple[float, float, float], affine: NDArray[np.float64]
) -> tuple[float, float, float]:
    order, _ = grid_order(affine)
    return spacing_mm[order[0]], spacing_mm[order[1]], spacing_mm[order[2]]


def _thinned(values: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """Return some of the values, copied: views would keep all volumes whole in memory."""
    return thin(values, POOLED_PER_CASE).copy(), values.size


def _pool(parts: Sequence[tuple[NDArray[Any], int]]) -> Intensities:
    return describe(np.concatenate([values for values, _ in parts]), voxels=sum(count for _, count in parts))
