"""How strong is the labels-only control? Train, predict the held-out cases, evaluate, for several budgets and draws.

    python benchmarks/control.py DATA_FOLDER OUT [--only hippocampus-2 ...] [--draws 0 1] [--set loop.steps=2000 ...]
    python benchmarks/control.py DATA_FOLDER OUT --method auto    # another method on the same cells

Every run is an ordinary run folder under OUT: a killed benchmark continues where it was, a finished run is not redone.
Held-out cases are scored once, after training, with the averaged weights of the last step.

Settings are chosen on development cells only (``--set`` belongs to them): the 40 Hippocampus volumes that seed 0 holds
out, and the 10 OASIS volumes and 80 ACDC patients that it does not. The other Hippocampus cells never see those 40:
test cases and labels come from the other 160. The other OASIS and ACDC cells are tested on cases that no setting was
chosen on, and labelled from those that some were.
"""

import argparse
import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from handful.data.discover import open_dataset
from handful.data.splits import make_splits
from handful.inference.predict import predict
from handful.metrics.evaluate import evaluate
from handful.training.run import train

DEVELOPMENT = {"Task04_Hippocampus": ("40", True), "OASIS_Subcortical": ("5", False), "ACDC": ("20p", False)}
"""What a split with seed 0 holds out, and whether those are the development cases or the others are."""


@dataclass(frozen=True)
class Cell:
    """One budget of one data set: how many labels, held-out cases, draws, for how long, and what to compare with."""

    folder: str
    labels: str
    test: str
    draws: int
    steps: int
    floor: float | None = None
    part: str = "all"
    seed: int = 0


GRID = {
    "hippocampus-2": Cell("Task04_Hippocampus", "2", "40", 5, 2000, 0.833, "benchmark", 1),
    "hippocampus-10": Cell("Task04_Hippocampus", "10", "40", 3, 3000, 0.861, "benchmark", 1),
    "hippocampus-20": Cell("Task04_Hippocampus", "20", "40", 3, 3000, 0.845, "benchmark", 1),
    "acdc-3p": Cell("ACDC", "3p", "20p", 5, 2000, 0.827),
    "oasis-2": Cell("OASIS_Subcortical", "2", "5", 3, 400),
    "oasis-5": Cell("OASIS_Subcortical", "5", "5", 3, 400),
    "development-2": Cell("Task04_Hippocampus", "2", "20", 4, 2000, None, "development"),
    "development-oasis-2": Cell("OASIS_Subcortical", "2", "5", 2, 400, None, "development"),
    "development-acdc-3p": Cell("ACDC", "3p", "20p", 2, 1200, None, "development"),
    "development-2-images": Cell("Task04_Hippocampus", "2", "20", 4, 1500, None, "development and images"),
    "development-10-images": Cell("Task04_Hippocampus", "10", "20", 2, 3000, None, "development and images"),
    "development-20-images": Cell("Task04_Hippocampus", "20", "20", 1, 3000, None, "development and images"),
    "development-10": Cell("Task04_Hippocampus", "10", "20", 2, 2000, None, "development"),
}


def part_of(folder: Path, part: str, out: Path) -> Path:
    """Return the data set, or a manifest of a part of it.

    Args:
        folder: of the data set.
        part: ``all``; ``development``, its development cases; ``benchmark``, all others; ``development and images``,
            the development cases, and without their labels the others that the benchmark does not test on.
        out: manifests are written here.
    """
    if part == "all":
        return folder
    dataset = open_dataset(folder)
    count, held_out = DEVELOPMENT[folder.name]
    test = make_splits(dataset, test=count, seed=0).test
    development = {case.name for case in dataset.cases if (case.name in test) == held_out}
    taken = {case.name for case in dataset.cases if (case.name in development) == (part != "benchmark")}
    images = set[str]()
    if part == "development and images":
        cell = next(cell for cell in GRID.values() if (cell.folder, cell.part) == (folder.name, "benchmark"))
        benchmark = open_dataset(part_of(folder, "benchmark", out))
        tested = make_splits(benchmark, test=cell.test, seed=cell.seed).test
        images = {case.name for case in benchmark.cases} - set(tested)
    name = part.replace(" ", "_")
    manifest = out / f"{dataset.name}_{name}" / f"{name}.csv"
    manifest.parent.mkdir(parents=True, exist_ok=True)
    declared = {
        "labels": {"background": 0, **{name: value for value, name in dataset.label_names.items() if value}},
        "channel_names": dict(enumerate(dataset.channel_names)),
    }
    (manifest.parent / "dataset.json").write_text(json.dumps(declared))
    with manifest.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["case", "patient", "image", "label"])
        for case in dataset.cases:
            if case.name in taken | images:
                label = case.label.resolve() if case.name in taken else ""
                rows.writerow([case.name, case.patient, case.images[0].resolve(), label])
    return manifest


def score(data: Path, run: Path, cell: Cell, draw: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one draw to its scores; whatever exists already is kept."""
    train(
        data, run, method=arguments.method, labels=cell.labels, draw=draw, test=cell.test, seed=cell.seed,
        steps=None if arguments.max_time else arguments.steps or cell.steps, max_time=arguments.max_time,
        set_=arguments.set, plan=arguments.plan, device=arguments.device, threads=arguments.threads,
    )  # fmt: skip
    if not (run / "summary.json").exists():
        predict([run], data, run / "predictions", held_out_only=True, device=arguments.device)
        evaluate(run / "predictions", data, out=run)
    summary = json.loads((run / "summary.json").read_text())
    manifest = json.loads((run / "manifest.json").read_text())
    return {
        "dice": summary["mean"]["dice"],
        "classes": {name: values["dice"] for name, values in summary["classes"].items()},
        "seconds": manifest["seconds"],
        "steps": manifest["steps"],
    }


def row(name: str, floor: float | None, results: Sequence[dict[str, Any]]) -> str:
    """Return one line of the table."""
    dice = np.array([result["dice"] for result in results], dtype=float)
    classes = [result["classes"] for result in results]
    by_class = " / ".join(f"{np.mean([c[key] for c in classes]):.3f}" for key in classes[0])
    minutes = np.mean([result["seconds"] for result in results]) / 60
    steps = np.mean([result["steps"] for result in results])
    spread = f"{dice.std(ddof=1):.3f}" if len(dice) > 1 else "-"
    return (
        f"| {name} | {floor or '-'} | {dice.mean():.3f} | {spread} | {' '.join(f'{d:.3f}' for d in dice)} "
        f"| {by_class} | {minutes:.1f} | {steps:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--only", nargs="*", default=[n for n in GRID if "development" not in n], choices=list(GRID)
    )
    parser.add_argument("--draws", nargs="*", type=int, help="which draws (default: all of the cell)")
    parser.add_argument("--steps", type=int, help="steps a run instead of the cell's")
    parser.add_argument("--max-time", help="time a run instead of steps, for example 225s")
    parser.add_argument("--set", nargs="*", default=[], help="settings to try, development cells only")
    parser.add_argument("--plan", type=Path, help="plan to try, development cells only")
    parser.add_argument("--method", default="supervised", help="what to train; its default settings")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    chosen_on = [name for name in arguments.only if GRID[name].part != "development"]
    if (arguments.set or arguments.plan) and chosen_on:
        parser.error(f"--set and --plan are for development cells, not for {', '.join(chosen_on)}.")
    print("| set, labels | floor | mean Dice | sd over draws | by draw | by class | minutes | steps |")
    print("|---|---|---|---|---|---|---|---|")
    for name in arguments.only:
        cell = GRID[name]
        data = part_of(arguments.data / cell.folder, cell.part, arguments.out)
        place = name if arguments.method == "supervised" else f"{name}-{arguments.method}"
        results = [
            score(data, arguments.out / place / f"draw{draw}", cell, draw, arguments)
            for draw in (arguments.draws if arguments.draws is not None else range(cell.draws))
        ]
        print(row(place, cell.floor, results), flush=True)


if __name__ == "__main__":
    main()
