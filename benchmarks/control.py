"""How strong is the labels-only control? Train, predict the held-out cases, evaluate, for several budgets and draws.

    python benchmarks/control.py DATA_FOLDER OUT [--only hippocampus-2 ...]

Every run is an ordinary run folder under OUT: a killed benchmark continues where it was, a finished run is not redone.
Held-out cases are fixed by seed 0 and scored once, after training, with the averaged weights of the last step.
The table compares the mean over draws with the floor: a quick unoptimised U-Net (see docs/benchmarks.md).
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from handful.inference.predict import predict
from handful.metrics.evaluate import evaluate
from handful.training.run import train


@dataclass(frozen=True)
class Cell:
    """One budget of one data set: how many labels, held-out cases, draws, and for how long."""

    folder: str
    labels: str
    test: str
    draws: int
    max_time: str
    floor: float | None


GRID = {
    # a third of the time the floor took, or less
    "hippocampus-2": Cell("Task04_Hippocampus", "2", "40", 5, "225s", 0.833),
    "hippocampus-10": Cell("Task04_Hippocampus", "10", "40", 3, "240s", 0.861),
    "hippocampus-20": Cell("Task04_Hippocampus", "20", "40", 3, "235s", 0.845),
    "acdc-3p": Cell("ACDC", "3p", "20p", 5, "300s", 0.827),
    "oasis-2": Cell("OASIS_Subcortical", "2", "5", 3, "150s", None),
    "oasis-5": Cell("OASIS_Subcortical", "5", "5", 3, "150s", None),
}


def score(data: Path, out: Path, cell: Cell, draw: int, device: str) -> dict[str, object]:
    """Run one draw to its scores; whatever exists already is kept."""
    run = out / f"draw{draw}"
    train(
        data / cell.folder, run, method="supervised", labels=cell.labels, draw=draw, test=cell.test,
        max_time=cell.max_time, device=device,
    )  # fmt: skip
    if not (run / "summary.json").exists():
        predict([run], data / cell.folder, run / "predictions", held_out_only=True, device=device)
        evaluate(run / "predictions", data / cell.folder, out=run)
    summary = json.loads((run / "summary.json").read_text())
    manifest = json.loads((run / "manifest.json").read_text())
    return {
        "dice": summary["mean"]["dice"],
        "classes": {name: values["dice"] for name, values in summary["classes"].items()},
        "seconds": manifest["seconds"],
        "steps": manifest["steps"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="*", default=list(GRID), choices=list(GRID))
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    print("| set, labels | floor | mean Dice | sd over draws | by draw | by class | minutes | steps |")
    print("|---|---|---|---|---|---|---|---|")
    for name in arguments.only:
        cell = GRID[name]
        results = [
            score(arguments.data, arguments.out / name, cell, draw, arguments.device)
            for draw in range(cell.draws)
        ]
        dice = np.array([result["dice"] for result in results], dtype=float)
        classes = [result["classes"] for result in results]
        by_class = " / ".join(f"{np.mean([c[key] for c in classes]):.3f}" for key in classes[0])
        minutes = np.mean([result["seconds"] for result in results]) / 60
        steps = np.mean([result["steps"] for result in results])
        print(
            f"| {name} | {cell.floor or '-'} | {dice.mean():.3f} | {dice.std(ddof=1):.3f} | "
            f"{' '.join(f'{d:.3f}' for d in dice)} | {by_class} | {minutes:.1f} | {steps:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
