"""The scores of one volume, class by class: Dice, HD95, ASSD, NSD and volumes, with a stated rule for empty masks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from handful.errors import DataError
from handful.metrics.surface import assd_mm, hd95_mm, nsd, surface_distances

TOLERANCE_MM = 1.0
"""Default tolerance of the normalised surface Dice: about a voxel of a routine scan."""

SCORED, BOTH_EMPTY = "scored", "both empty"
PREDICTION_EMPTY, REFERENCE_EMPTY = "prediction empty", "reference empty"


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """How well one class of one volume was found; the four scores are None where both masks are empty.

    Attributes:
        case: name of the volume.
        patient: whose it is; intervals draw patients, not volumes.
        class_name: name of the structure.
        dice: 2 |P and R| / (|P| + |R|) over the voxels of this volume, in [0, 1].
        hd95_mm: larger of the two directed, area-weighted 95th percentiles of the surface distance.
        assd_mm: average symmetric surface distance.
        nsd: normalised surface Dice at the stated tolerance, in [0, 1].
        volume_ml: volume of the prediction.
        reference_ml: volume of the reference.
        status: ``scored``, ``both empty``, ``prediction empty`` or ``reference empty``.
    """

    case: str
    patient: str
    class_name: str
    dice: float | None
    hd95_mm: float | None
    assd_mm: float | None
    nsd: float | None
    volume_ml: float
    reference_ml: float
    status: str


def score_case(
    prediction: NDArray[np.integer],
    reference: NDArray[np.integer],
    *,
    spacing_mm: Sequence[float],
    labels: Mapping[int, str],
    tolerance_mm: float = TOLERANCE_MM,
    ignore_value: int | None = None,
    case: str = "",
    patient: str = "",
) -> list[ClassScore]:
    """Score every class of one volume.

    Both masks empty: not scored. One of them empty: Dice and NSD 0, distances the diagonal of the image, so that a
    missed structure can never improve a mean.

    Args:
        prediction: (X, Y, Z) label values.
        reference: (X, Y, Z) label values.
        spacing_mm: size of a voxel along X, Y, Z.
        labels: value -> name; 0 is background and is left out; values that are not listed are not scored.
        tolerance_mm: of the normalised surface Dice.
        ignore_value: voxels of the reference with this value count as background in both.
        case: name to write into the scores.
        patient: patient to write into the scores; the case's own name if not given.

    Raises:
        DataError: the two have different shapes or are not three-dimensional.
    """
    if prediction.shape != reference.shape or prediction.ndim != 3:
        raise DataError(
            f"{case or 'the case'}: a prediction of shape {prediction.shape} cannot be compared with a reference of "
            f"shape {reference.shape}; both must be on the same three-dimensional grid."
        )
    values = {value: name for value, name in labels.items() if value != 0}
    if ignore_value is not None:
        ignored = reference == ignore_value
        prediction, reference = np.where(ignored, 0, prediction), np.where(ignored, 0, reference)
        values.pop(ignore_value, None)
    diagonal_mm = float(np.linalg.norm(np.multiply(prediction.shape, spacing_mm)))
    voxel_ml = float(np.prod(spacing_mm)) / 1000.0
    boxes: list[Sequence[tuple[slice, ...] | None]] = [
        ndimage.find_objects(mask, max_label=max(values, default=1)) for mask in (prediction, reference)
    ]

    scores = []
    for value, name in values.items():
        found, wanted = boxes[0][value - 1], boxes[1][value - 1]
        dice: float | None = 0.0
        surface: tuple[float | None, float | None, float | None] = (diagonal_mm, diagonal_mm, 0.0)
        volume = reference_volume = 0
        if found is None and wanted is None:
            status, dice, surface = BOTH_EMPTY, None, (None, None, None)
        elif found is None:
            status, reference_volume = PREDICTION_EMPTY, int((reference[wanted] == value).sum())
        elif wanted is None:
            status, volume = REFERENCE_EMPTY, int((prediction[found] == value).sum())
        else:
            status = SCORED
            box = tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(found, wanted))
            p, r = prediction[box] == value, reference[box] == value
            volume, reference_volume = int(p.sum()), int(r.sum())
            dice = 2.0 * int((p & r).sum()) / (volume + reference_volume)
            distances = surface_distances(p, r, spacing_mm=spacing_mm)
            surface = (hd95_mm(distances), assd_mm(distances), nsd(distances, tolerance_mm=tolerance_mm))
        scores.append(
            ClassScore(
                case=case,
                patient=patient or case,
                class_name=name,
                dice=dice,
                hd95_mm=surface[0],
                assd_mm=surface[1],
                nsd=surface[2],
                volume_ml=volume * voxel_ml,
                reference_ml=reference_volume * voxel_ml,
                status=status,
            )
        )
    return scores
