"""One self-contained HTML page of images to look at before labelling: three slices of each, and why it is there."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

import handful
from handful.artefacts import write_text
from handful.data.io import load
from handful.data.resampling import to_grid
from handful.report.figures import overlay
from handful.report.render import render, source
from handful.report.slices import LETTERS, PLANES, Panel, to_spacing, upright

DPI = 50
"""Half the resolution of a report's slices: enough to recognise a case."""


class Entry(NamedTuple):
    """One image: what it is called, why it is shown, facts as (what, value), and the file of its first channel."""

    title: str
    reason: str
    facts: Sequence[tuple[str, str]]
    image: Path


def write_page(path: Path, *, title: str, sentences: Sequence[str], entries: Sequence[Entry]) -> None:
    """Write the page, atomically; it loads nothing and runs no script.

    Raises:
        DataError: an image cannot be read.
    """
    content = {
        "version": handful.__version__,
        "title": title,
        "warnings": [],
        "problems": [],
        "sentences": [sentence for sentence in sentences if sentence],
        "entries": [(entry, thumbnails(entry.image)) for entry in entries],
    }
    write_text(path, render("worklist.html.j2", content))


def thumbnails(image: Path) -> list[Panel]:
    """Draw the middle sagittal, coronal and axial slice of the first channel of a file."""
    loaded = load(image)
    array = np.asarray(to_grid(loaded.array[0], loaded.grid.affine, (0, 1, 2)), np.float64)
    spacing_mm = to_spacing(loaded.grid.affine)
    low, high = np.percentile(array[np.isfinite(array)], (1, 99.5))
    panels = []
    for across, plane in enumerate(PLANES):
        rows, columns = (axis for axis in (2, 1, 0) if axis != across)
        slices = upright(array, across)
        figure = overlay(
            slices[len(slices) // 2],
            None,
            pixel_mm=(float(spacing_mm[rows]), float(spacing_mm[columns])),
            window=(float(low), float(high)),
            colours=(),
            letters=LETTERS[across],
        )
        panels.append(Panel(plane, source(figure, dpi=DPI)))
    return panels
