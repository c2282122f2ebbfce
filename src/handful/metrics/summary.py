"""The scores of many volumes together: means, intervals over patients, a file for programs and a table for people."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import handful
from handful.artefacts import write_json, write_text
from handful.metrics.bootstrap import bootstrap_mean, mean_score
from handful.metrics.scores import BOTH_EMPTY, SCORED, ClassScore

METRICS = ("dice", "hd95_mm", "assd_mm", "nsd")
LEVEL = 0.95

Interval = tuple[float, float] | None
"""Lower and upper end; None where there are fewer than two patients."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What an evaluation found.

    Attributes:
        definitions: what each number means, in words; written into the file.
        mean: metric -> mean over volumes, then over classes; None where nothing could be scored.
        classes: class -> metric -> mean over volumes; also mean volumes in ml, and how many were scored and were not.
        cases: one score a volume and class, sorted by case, classes in the order of the labels.
        ci95: ``mean`` -> metric -> 95 % interval over patients (None for one); ``classes`` -> class -> the same.
        made_from: what was compared, and a hash of it.
        problems: cases that should have been scored and were not, with the reason and the remedy.
        notes: other things the reader should know.
    """

    definitions: Mapping[str, str]
    mean: Mapping[str, float | None]
    classes: Mapping[str, Mapping[str, float | None]]
    cases: tuple[ClassScore, ...]
    ci95: Mapping[str, Any]
    made_from: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def summarise(
    scores: Sequence[ClassScore],
    *,
    tolerance_mm: float,
    bootstrap: int = 2000,
    seed: int = 0,
    made_from: Mapping[str, str] | None = None,
    problems: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Summary:
    """Gather the scores of volumes.

    Args:
        scores: of all cases and classes.
        tolerance_mm: the one the surface Dice was computed with; goes into the definitions.
        bootstrap: draws of patients for the intervals.
        seed: of the draws.
        made_from: see ``Summary``.
        problems: see ``Summary``.
        notes: see ``Summary``.
    """
    names = list(dict.fromkeys(score.class_name for score in scores))
    patient_of = {score.case: score.patient for score in sorted(scores, key=lambda score: score.case)}
    rows, patients = list(patient_of), list(patient_of.values())
    tables = {metric: _matrix(scores, rows, names, metric) for metric in METRICS}

    def intervals(columns: slice) -> dict[str, Interval]:
        drawn = {
            m: bootstrap_mean(tables[m][:, columns], patients, resamples=bootstrap, seed=seed)
            for m in METRICS
        }
        return {metric: _interval(ends) for metric, ends in drawn.items()}

    classes: dict[str, dict[str, float | None]] = {}
    for k, name in enumerate(names):
        own = [score for score in scores if score.class_name == name]
        classes[name] = {metric: _number(mean_score(tables[metric][:, k])) for metric in METRICS} | {
            "volume_ml": float(np.mean([score.volume_ml for score in own])),
            "reference_ml": float(np.mean([score.reference_ml for score in own])),
            "scored": len(own) - sum(score.status == BOTH_EMPTY for score in own),
            "both_empty": sum(score.status == BOTH_EMPTY for score in own),
            "one_empty": sum(score.status not in (SCORED, BOTH_EMPTY) for score in own),
        }
    return Summary(
        cases=tuple(sorted(scores, key=lambda score: (score.case, names.index(score.class_name)))),
        mean={metric: _number(mean_score(tables[metric])) for metric in METRICS},
        classes=classes,
        ci95={
            "mean": intervals(slice(None)),
            "classes": {name: intervals(slice(k, k + 1)) for k, name in enumerate(names)},
        },
        definitions=definitions(tolerance_mm=tolerance_mm, bootstrap=bootstrap, seed=seed),
        made_from=dict(made_from or {}),
        problems=tuple(problems),
        notes=tuple(notes),
    )


def definitions(*, tolerance_mm: float, bootstrap: int, seed: int) -> dict[str, str]:
    """Say what each number means."""
    return {
        "dice": "2 |P and R| / (|P| + |R|) over the voxels of one volume",
        "hd95_mm": "the larger of the two directed 95th percentiles of surface distance, weighted by area, in mm",
        "assd_mm": "distance from surface to surface averaged over the area of both, in mm",
        "nsd": f"share of both surfaces' area within {tolerance_mm:g} mm of the other surface",
        "volume_ml": "volume of the prediction; reference_ml: of the reference",
        "mean": "over the volumes of each class, then over the classes; background is left out",
        "both empty": "not scored, counted as both_empty",
        "one empty": "Dice and NSD 0, distances the diagonal of the image; counted as one_empty",
        "ci95": f"percentile bootstrap over patients, all volumes of one together, {bootstrap} draws, seed {seed}",
    }


def write_summary(folder: Path, summary: Summary) -> None:
    """Write ``summary.json`` and ``scores.csv`` into ``folder``."""
    columns = ["class" if entry.name == "class_name" else entry.name for entry in fields(ClassScore)]
    cases = [dict(zip(columns, astuple(score), strict=True)) for score in summary.cases]
    content = {entry.name: getattr(summary, entry.name) for entry in fields(Summary)} | {"cases": cases}
    write_json(folder / "summary.json", {"version": handful.__version__, **content})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for case in cases:
        writer.writerow([f"{value:.6g}" if isinstance(value, float) else value for value in case.values()])
    write_text(folder / "scores.csv", text.getvalue())


def table(summary: Summary) -> list[list[str]]:
    """Return the summary as rows of text, the first one the heading: one line a class, the mean last."""
    heading = [
        "class",
        "Dice",
        "95 % interval",
        "HD95 mm",
        "ASSD mm",
        "NSD",
        "volumes",
        "missed or invented",
        "not scored",
    ]
    rows = [heading]
    for name, values in summary.classes.items():
        counts = [f"{values[key]:.0f}" for key in ("scored", "one_empty", "both_empty")]
        rows.append([name, *_cells(values, summary.ci95["classes"][name]), *counts])
    if len(summary.classes) != 1:
        volumes = len({score.case for score in summary.cases})
        rows.append(["mean", *_cells(summary.mean, summary.ci95["mean"]), str(volumes), "", ""])
    return rows


def _cells(values: Mapping[str, float | None], ci95: Mapping[str, Interval]) -> list[str]:
    interval = ci95.get("dice")
    return [
        _text(values["dice"], 3),
        f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else "-",
        _text(values["hd95_mm"], 2),
        _text(values["assd_mm"], 2),
        _text(values["nsd"], 3),
    ]


def _matrix(
    scores: Sequence[ClassScore], rows: Sequence[str], names: Sequence[str], metric: str
) -> NDArray[np.float64]:
    """Return (volumes, classes) of one metric, NaN where not scored."""
    matrix = np.full((len(rows), len(names)), np.nan)
    row_of, column_of = {r: i for i, r in enumerate(rows)}, {n: k for k, n in enumerate(names)}
    for score in scores:
        value = getattr(score, metric)
        if value is not None:
            matrix[row_of[score.case], column_of[score.class_name]] = value
    return matrix


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _interval(ends: tuple[float, float]) -> Interval:
    return None if math.isnan(ends[0]) else ends


def _text(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
