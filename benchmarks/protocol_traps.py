"""The same predictions, scored honestly and in the ways that make published numbers look better than they are.

    python benchmarks/protocol_traps.py [--into docs/protocol_traps.md]     # trains on the phantom, a few minutes
    python benchmarks/protocol_traps.py --study STUDY --data DATA           # predictions of a study, trains nothing

On the phantom, labels-only models are trained on a few volumes, in two ways: as handful does (one-cycle rate, averaged
weights), and as is usual (constant rate, last weights). Weights are kept at several points of each training, and all of
them predict the same held-out volumes.
"""

import argparse
import csv
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from handful.data.cases import Dataset
from handful.data.discover import open_dataset
from handful.data.io import read_label
from handful.data.phantom import make_phantom
from handful.inference.predict import predict
from handful.metrics.published import (
    ABSENT_IS_PERFECT,
    EMPTY_IS_LEFT_OUT,
    INVENTED_IS_PERFECT,
    MISSED_IS_NEAR,
    hd95_of_borders,
    pooled_dice,
    with_fixed_scores,
)
from handful.metrics.scores import SCORED, ClassScore, score_case
from handful.metrics.summary import summarise
from handful.studies.grid import folder_name
from handful.training.run import train
from marked import MarkedPage

LABELS, DRAWS, STEPS, POINTS = "3", 3, 150, 6
PHANTOM = {
    "patients": 20,
    "unlabelled": 2,
    "held_out": 8,
    "size": (36, 30, 14),
    "spacing_mm": (3.0, 3.0, 8.0),
}
"""Slices 8 mm apart in voxels of 3 mm, as in cardiac MR: here units matter."""
WAYS = {
    "handful": (),
    "usual": ("loop.schedule=constant", "loop.ema_horizon=0"),
}


@dataclass(frozen=True)
class Scored:
    """Predictions of one model on the held-out volumes.

    Attributes:
        cases: case -> prediction, reference, spacing in mm.
        rows: honest scores.
        names: value -> name of the structures.
    """

    cases: Mapping[str, tuple[np.ndarray, np.ndarray, tuple[float, ...]]]
    rows: Sequence[ClassScore]
    names: Mapping[int, str]

    @property
    def dice(self) -> float:
        return mean(self.rows, "dice")


def score(predictions: Path, dataset: Dataset, only: Sequence[str]) -> Scored:
    names = {
        value: name for value, name in dataset.label_names.items() if value not in (0, dataset.ignore_value)
    }
    cases, rows = {}, []
    for name in only:
        label = dataset.case(name).label
        assert label is not None, f"{name} has no reference"
        reference = read_label(label)
        found = read_label(predictions / f"{name}.nii.gz")
        prediction, truth = found.array[0], reference.array[0]
        if dataset.ignore_value is not None:
            ignored = truth == dataset.ignore_value
            prediction, truth = np.where(ignored, 0, prediction), np.where(ignored, 0, truth)
        cases[name] = (prediction, truth, reference.spacing_mm)
        rows += score_case(
            prediction, truth, spacing_mm=reference.spacing_mm, labels=names, case=name,
            patient=dataset.case(name).patient,
        )  # fmt: skip
    return Scored(cases, rows, names)


def mean(rows: Sequence[ClassScore], metric: str) -> float:
    found = summarise(rows, tolerance_mm=1.0, bootstrap=1).mean[metric]
    assert found is not None
    return found


def train_in_points(data: Path, run: Path, draw: int, settings: Sequence[str]) -> list[Path]:
    """Train, and return the weights at every point of the way, the end last."""
    train(
        data, run, method="supervised", labels=LABELS, draw=draw, steps=STEPS, quiet=True, threads=1,
        set_=[*settings, f"loop.snapshots={POINTS - 1}"],
    )  # fmt: skip
    return [*sorted((run / "snapshots").glob("step-*.safetensors")), run]


def trained(folder: Path) -> dict[str, list[list[Scored]]]:
    """Return way -> draw -> point -> scores on the phantom."""
    data = make_phantom(folder / "phantom", **PHANTOM)
    dataset = open_dataset(data)
    test = [case.name for case in dataset.held_out]
    found: dict[str, list[list[Scored]]] = {}
    for way, settings in WAYS.items():
        for draw in range(DRAWS):
            points = []
            for number, run in enumerate(train_in_points(data, folder / f"{way}{draw}", draw, settings)):
                out = folder / f"{way}{draw}-predictions{number}"
                predict([run], data, out, only=test, device="cpu", threads=1)
                points.append(score(out, dataset, test))
            found.setdefault(way, []).append(points)
            print(
                f"{way}, draw {draw}: Dice at its points",
                *(f"{point.dice:.3f}" for point in points),
                flush=True,
            )
    return found


def pooled(scored: Scored) -> tuple[float, float]:
    """Return one Dice a structure over all volumes, averaged; and with all structures taken for one."""
    each = [
        pooled_dice((p == value, r == value) for p, r, _ in scored.cases.values()) for value in scored.names
    ]
    together = [pooled_dice([(p > 0, r > 0)]) for p, r, _ in scored.cases.values()]
    return tuple(float(np.mean([dice for dice in kind if dice is not None])) for kind in (each, together))


def distances(scored: Scored) -> dict[str, float]:
    """Return the mean HD95 over structures of volumes where both masks hold something, in voxels and in mm."""
    kinds: dict[str, list[float]] = {"voxels": [], "mm": [], "by area": []}
    measured = {(row.case, row.class_name): row.hd95_mm for row in scored.rows if row.status == SCORED}
    for value, name in scored.names.items():
        own: dict[str, list[float]] = {kind: [] for kind in kinds}
        for case, (p, r, spacing_mm) in scored.cases.items():
            if (case, name) in measured:
                own["voxels"].append(hd95_of_borders(p == value, r == value))
                own["mm"].append(hd95_of_borders(p == value, r == value, spacing=spacing_mm))
                own["by area"].append(measured[case, name] or 0.0)
        if own["mm"]:
            for kind in kinds:
                kinds[kind].append(float(np.mean(own[kind])))
    return {kind: float(np.mean(values)) for kind, values in kinds.items()}


def row(trap: str, faked: float, honest: float, unit: str = "Dice") -> str:
    digits = 3 if unit == "Dice" else 1
    return f"| {trap} | {unit} | {faked:.{digits}f} | {honest:.{digits}f} | {faked - honest:+.{digits}f} |"


def score_rows(models: Sequence[Scored]) -> Iterator[str]:
    """Yield what scoring alone does to the same predictions, averaged over models."""

    def over(of) -> float:
        return float(np.mean([of(model) for model in models]))

    dice, hd95 = over(lambda m: m.dice), over(lambda m: mean(m.rows, "hd95_mm"))
    yield row("Dice pooled over all volumes", over(lambda m: pooled(m)[0]), dice)
    yield row("all structures taken for one", over(lambda m: pooled(m)[1]), dice)
    for words, rule in (
        ("an invented structure has Dice 1", INVENTED_IS_PERFECT),
        ("a structure rightly not found has Dice 1", ABSENT_IS_PERFECT),
        ("missed and invented structures left out", EMPTY_IS_LEFT_OUT),
    ):
        yield row(words, over(lambda m, rule=rule: mean(with_fixed_scores(m.rows, rule), "dice")), dice)
    for words, rule in (
        ("a missed structure has distance 0", MISSED_IS_NEAR),
        ("missed and invented structures left out", EMPTY_IS_LEFT_OUT),
    ):
        yield row(
            words,
            over(lambda m, rule=rule: mean(with_fixed_scores(m.rows, rule), "hd95_mm")),
            hd95,
            "HD95, mm",
        )
    units = [distances(model) for model in models]
    voxels, mm, by_area = (
        float(np.mean([found[kind] for found in units])) for kind in ("voxels", "mm", "by area")
    )
    yield row("voxels given as if they were mm (found structures)", voxels, mm, "HD95 of borders")
    yield row("borders counted by voxel, not by area (found structures)", mm, by_area, "HD95, mm")


def head(what: str) -> Iterator[str]:
    yield what
    yield ""
    yield "| trap | measure | as it would be reported | honest | difference |"
    yield "|---|---|---|---|---|"


def phantom_table(folder: Path) -> Iterator[str]:
    found = trained(folder)
    sizes = f"{LABELS} labelled volumes, {DRAWS} draws, {STEPS} steps, {PHANTOM['held_out']} held-out volumes"
    yield from head(f"Phantom ({sizes}; means over draws):")
    for way, words in (
        ("usual", "constant rate, last weights"),
        ("handful", "one-cycle rate, averaged weights"),
    ):
        best = float(np.mean([max(point.dice for point in points) for points in found[way]]))
        last = float(np.mean([points[-1].dice for points in found[way]]))
        yield row(f"best of {POINTS} checkpoints, chosen on the test volumes ({words})", best, last)
    models = [points[-1] for points in found["handful"]]
    yield row(f"best of {DRAWS} draws", max(m.dice for m in models), float(np.mean([m.dice for m in models])))
    yield from score_rows(models)
    empty = [score.status for model in models for score in model.rows]
    yield ""
    yield (
        "Of {} structures to score, {} were missed, {} invented, {} rightly not found.".format(
            len(empty), *(empty.count(kind) for kind in ("prediction empty", "reference empty", "both empty"))
        )
    )


def study_table(study: Path, data: Path) -> Iterator[str]:
    """Yield the same for the predictions of a finished study, budget by budget, over its draws and methods."""
    dataset = open_dataset(data)
    with (study / "runs.csv").open(newline="") as file:
        runs = [entry for entry in csv.DictReader(file) if entry["status"] == "finished"]
    for budget in dict.fromkeys(entry["budget"] for entry in runs):
        own = [entry for entry in runs if entry["budget"] == budget]
        scored = {}
        for entry in own:
            folder = (
                study
                / "runs"
                / folder_name(budget)
                / f"draw{entry['draw']}"
                / entry["method"]
                / "predictions"
            )
            test = sorted(file.name.removesuffix(".nii.gz") for file in folder.glob("*.nii.gz"))
            if test:
                scored[entry["method"], entry["draw"]] = score(folder, dataset, test)
        if not scored:
            continue
        methods = list(dict.fromkeys(method for method, _ in scored))
        yield from head(
            f"{dataset.name}, budget {budget} ({len(scored)} models of {', '.join(methods)}; means):"
        )
        gaps = [(float(e["best_dice"]), float(e["dice"])) for e in own if e.get("best_dice")]
        if gaps:
            best, last = np.mean(gaps, axis=0)
            yield row("best checkpoint, chosen on the test volumes", best, last)
        by_method = [[m.dice for (name, _), m in scored.items() if name == method] for method in methods]
        if max(map(len, by_method)) > 1:
            best, average = np.mean([[max(dice), np.mean(dice)] for dice in by_method], axis=0)
            yield row("best draw", best, average)
        yield from score_rows(list(scored.values()))
        yield ""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--into",
        type=lambda path: MarkedPage(Path(path), "protocol traps"),
        help="a page whose table is to be replaced",
    )
    parser.add_argument("--study", type=Path, help="a finished study, instead of training on the phantom")
    parser.add_argument("--data", type=Path, help="the data set of the study")
    asked = parser.parse_args()
    if (asked.study is None) != (asked.data is None):
        parser.error("--study and --data belong together: the predictions and their references.")
    with tempfile.TemporaryDirectory() as folder:
        table = study_table(asked.study, asked.data) if asked.study else phantom_table(Path(folder))
        lines = []
        for line in table:
            print(line, flush=True)
            lines.append(line)
    if asked.into:
        asked.into.replace(lines)


if __name__ == "__main__":
    main()
