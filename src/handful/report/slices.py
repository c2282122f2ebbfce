"""Slices of one case for the page: image, reference, prediction and error, where error or structure is largest."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from handful.errors import DataError
from handful.report.evidence import Evidence, listing, mapping, number
from handful.report.figures import CONFUSED, EXTRA, MISSED, error_map, overlay
from handful.report.render import source

PLANES = ("sagittal", "coronal", "axial")
LETTERS = ("APSI", "RLSI", "RLAP")
"""What lies left, right, above and below in each plane, as radiologists look at it: from the feet, or face to face."""
MARGIN_MM = 20.0
"""How much of the surroundings is shown around the structures."""
NEARBY = 0.1
"""Two slices closer than this part of the volume show much the same; the second is left out."""


class Panel(NamedTuple):
    """A picture with its heading; ``source`` is a data URI."""

    title: str
    source: str


class Row(NamedTuple):
    """One slice."""

    title: str
    panels: list[Panel]


def show_case(
    evidence: Evidence, case: str, *, label_values: Sequence[int], colours: Sequence[str]
) -> list[Row]:
    """Draw the slice with the most wrong voxels and, if it lies elsewhere, the one with the most structure.

    Args:
        label_values: value in the files of each class; the first is background.
        colours: of class 1, 2, ...

    Raises:
        DataError: a file is missing or unreadable, or the three do not lie on one grid; says which.
    """
    image, affine = _read(
        evidence, _only(listing(mapping(evidence.manifest.get("images")).get(case)), case, "image")
    )
    reference, _ = _read(
        evidence, _only([mapping(evidence.manifest.get("labels")).get(case)], case, "reference")
    )
    prediction, _ = _read(evidence, str(evidence.run.resolve() / "predictions" / f"{case}.nii.gz"))
    if not image.shape == reference.shape == prediction.shape:
        shapes = f"image {image.shape}, reference {reference.shape}, prediction {prediction.shape}"
        raise DataError(f"{case}: the files do not have one shape ({shapes}).")

    from handful.data.resampling import to_grid

    image, reference, prediction = (
        to_grid(array, affine, (0, 1, 2)) for array in (image, reference, prediction)
    )
    ras_mm = np.abs(to_spacing(affine))
    across = _slice_axis(evidence, ras_mm)
    window = _window(evidence, image)
    reference, prediction = (_indices(array, label_values) for array in (reference, prediction))
    errors = error_map(reference, prediction)

    where = _crop((reference > 0) | (prediction > 0), ras_mm, across)
    image, reference, prediction, errors = (
        upright(array[where], across) for array in (image, reference, prediction, errors)
    )
    in_plane = [axis for axis in range(3) if axis != across]
    pixel_mm = (float(ras_mm[in_plane[1]]), float(ras_mm[in_plane[0]]))
    bar_mm = max(
        length for length in (1, 2, 5, 10, 20, 50) if length <= max(1, 0.3 * image.shape[2] * pixel_mm[1])
    )

    structure = (reference if (reference > 0).any() else prediction) > 0
    worst, largest = (int(np.count_nonzero(array, axis=(1, 2)).argmax()) for array in (errors, structure))
    chosen = {worst: "most wrong voxels"}
    if abs(worst - largest) > NEARBY * len(image):
        chosen[largest] = "most structure"
    dimmed = (window[0], window[0] + 1.7 * (window[1] - window[0]))
    rows = []
    for index, why in chosen.items():
        draw = partial(overlay, image[index], pixel_mm=pixel_mm)
        figures = {
            "Image": draw(None, window=window, colours=(), letters=LETTERS[across], bar_mm=bar_mm),
            "Reference": draw(reference[index], window=window, colours=colours),
            "Prediction": draw(prediction[index], window=window, colours=colours),
            "Error": draw(errors[index], window=dimmed, colours=(MISSED, EXTRA, CONFUSED), tint=0.8),
        }
        share = 100 * np.count_nonzero(errors[index]) / errors[index].size
        title = f"{PLANES[across].capitalize()} slice {index + 1} of {len(image)}: {why} ({share:.1f} % of it wrong)"
        rows.append(Row(title, [Panel(name, source(figure, dpi=100)) for name, figure in figures.items()]))
    return rows


def compare_case(
    evidence: Evidence,
    case: str,
    predictions: Mapping[str, Path],
    *,
    label_values: Sequence[int],
    colours: Sequence[str],
) -> Row:
    """Draw the slice on which several predictions together are most wrong: each above its errors.

    Args:
        evidence: of a run that knows the case's files.
        case: its name.
        predictions: what a prediction is called -> folder it lies in.
        label_values: value in the files of each class; the first is background.
        colours: of class 1, 2, ...

    Returns:
        Panels in two rows of equal length: image and predictions, then reference and errors.

    Raises:
        DataError: a file is missing or unreadable, or they do not lie on one grid; says which.
    """
    image, affine = _read(
        evidence, _only(listing(mapping(evidence.manifest.get("images")).get(case)), case, "image")
    )
    maps = [
        _read(evidence, path)[0]
        for path in (
            _only([mapping(evidence.manifest.get("labels")).get(case)], case, "reference"),
            *(str((folder / f"{case}.nii.gz").resolve()) for folder in predictions.values()),
        )
    ]
    if any(found.shape != image.shape for found in maps):
        raise DataError(f"{case}: image, reference and predictions do not have one shape.")

    from handful.data.resampling import to_grid

    image = to_grid(image, affine, (0, 1, 2))
    maps = [_indices(to_grid(found, affine, (0, 1, 2)), label_values) for found in maps]
    ras_mm = np.abs(to_spacing(affine))
    across, window = _slice_axis(evidence, ras_mm), _window(evidence, image)
    where = _crop(np.any([found > 0 for found in maps], axis=0), ras_mm, across)
    image, reference, *found = (upright(array[where], across) for array in (image, *maps))
    errors = [error_map(reference, prediction) for prediction in found]
    index = int(sum(np.count_nonzero(kind, axis=(1, 2)) for kind in errors).argmax())
    in_plane = [axis for axis in range(3) if axis != across]
    pixel_mm = (float(ras_mm[in_plane[1]]), float(ras_mm[in_plane[0]]))
    draw = partial(overlay, image[index], pixel_mm=pixel_mm)
    dimmed = (window[0], window[0] + 1.7 * (window[1] - window[0]))
    figures = {
        "Image": draw(None, window=window, colours=(), letters=LETTERS[across]),
        **{
            name: draw(prediction[index], window=window, colours=colours)
            for name, prediction in zip(predictions, found)
        },
        "Reference": draw(reference[index], window=window, colours=colours),
        **{
            f"{name}: errors": draw(kind[index], window=dimmed, colours=(MISSED, EXTRA, CONFUSED), tint=0.8)
            for name, kind in zip(predictions, errors)
        },
    }
    title = (
        f"{PLANES[across].capitalize()} slice {index + 1} of {len(image)}: most wrong voxels in all together"
    )
    return Row(title, [Panel(name, source(figure)) for name, figure in figures.items()])


def to_spacing(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the voxel size along R, A, S of a volume after its axes were reordered to the nearest of these."""
    from handful.data.resampling import grid_order

    order, _ = grid_order(affine, (0, 1, 2))
    return np.asarray(np.linalg.norm(affine[:3, :3], axis=0)[list(order)], np.float64)


def upright(array: NDArray[Any], across: int) -> NDArray[Any]:
    """Turn (R, A, S) to (slice, row, column) as ``LETTERS`` says: first row on top, the right side on the left."""
    turned = np.moveaxis(array, across, 0).transpose(0, 2, 1)
    return turned[:, ::-1, ::-1]


def _only(paths: Sequence[object], case: str, what: str) -> str:
    """Return the first path (the first channel); none is an error that says so."""
    if not paths or not paths[0]:
        raise DataError(f"{case}: manifest.json names no {what}.")
    return str(paths[0])


def _read(evidence: Evidence, path: str) -> tuple[NDArray[Any], NDArray[np.float64]]:
    from handful.data.io import load

    root = Path(str(mapping(evidence.manifest.get("dataset")).get("root", ".")))
    loaded = load(Path(path) if Path(path).exists() else root / path)
    return loaded.array[0], loaded.grid.affine


def _slice_axis(evidence: Evidence, ras_mm: NDArray[np.float64]) -> int:
    """Return the axis slices are taken across: the plan's, or else the one with the thickest slices."""
    axes = listing(evidence.plan.get("axes"))
    if axes and axes[0] in (0, 1, 2):
        return int(axes[0])
    return int(2 - ras_mm[::-1].argmax())


def _window(evidence: Evidence, image: NDArray[Any]) -> tuple[float, float]:
    """Return the intensities drawn black and white: the plan's window for CT, else nearly the whole range."""
    channel = mapping(next(iter(listing(evidence.plan.get("channels"))), None))
    low, high = number(channel.get("low")), number(channel.get("high"))
    if channel.get("kind") == "window" and low is not None and high is not None and high > low:
        return low, high
    values = np.asarray(image, np.float64)
    low, high = np.percentile(values[np.isfinite(values)], (1, 99.5))
    return float(low), float(high)


def _indices(array: NDArray[Any], label_values: Sequence[int]) -> NDArray[np.uint8]:
    """Return class indices; values that are no class (an ignored region) count as background."""
    found = np.zeros(array.shape, np.uint8)
    for index, value in enumerate(label_values):
        found[array == value] = index
    return found


def _crop(structure: NDArray[np.bool_], ras_mm: NDArray[np.float64], across: int) -> tuple[slice, ...]:
    """Return the part of the volume around all structures, the same in every slice; no slice is left out."""
    box = []
    for axis in range(3):
        hit = np.flatnonzero(structure.any(axis=tuple(a for a in range(3) if a != axis)))
        margin = int(np.ceil(MARGIN_MM / ras_mm[axis]))
        if axis == across or not hit.size:
            box.append(slice(None))
        else:
            box.append(slice(max(0, int(hit[0]) - margin), int(hit[-1]) + 1 + margin))
    return tuple(box)
