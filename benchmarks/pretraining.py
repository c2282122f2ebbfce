"""Does pre-training pay? Every method and training from scratch; same network, plan and fine-tuning steps.

    python benchmarks/pretraining.py DATA_FOLDER OUT [--only hippocampus-2] [--methods pcl sscl] [--pretrain-steps 500]

Pre-training sees the training images (never a held-out one), and where a method learns from labels, the budget's.
A method that learns from images alone is pre-trained once for all budgets and draws. Every run is an ordinary run
folder under OUT: a killed benchmark continues where it was. The difference to scratch is paired (same draw, same
held-out cases) and its interval bootstrapped over patients.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from control import GRID, Cell, part_of
from handful.inference.predict import predict
from handful.methods import load_method, method_names
from handful.metrics.bootstrap import paired_bootstrap
from handful.metrics.evaluate import evaluate
from handful.training.run import pretrain, train

CELLS = {
    "hippocampus-2": (GRID["hippocampus-2"], 3, 500),
    "hippocampus-10": (GRID["hippocampus-10"], 3, 500),
    "hippocampus-20": (GRID["hippocampus-20"], 3, 500),
    "acdc-3p": (GRID["acdc-3p"], 3, 500),
    "acdc-10p": (Cell("ACDC", "10p", "20p", 3, 500), 3, 500),
    "acdc-20p": (Cell("ACDC", "20p", "20p", 3, 500), 3, 500),
}
"""Budget, draws, and fine-tuning steps of each row of the table."""


def start(data: Path, out: Path, method: str, cell: Cell, draw: int, arguments: argparse.Namespace) -> Path:
    """Pre-train, or find it done."""
    needs = load_method(method).METHOD.needs
    uses_labels = needs.labels or needs.optional_labels
    name = f"{cell.labels}-draw{draw}" if uses_labels else "images"
    run = out / "pretrained" / method / name
    pretrain(
        data, run, method=method, labels=cell.labels if uses_labels else None, draw=draw if uses_labels else 0,
        test=cell.test, seed=cell.seed, steps=arguments.pretrain_steps,
        device=arguments.device, threads=arguments.threads,
    )  # fmt: skip
    return run


def scores(
    data: Path, run: Path, cell: Cell, draw: int, steps: int, init: Path | None, arguments: Any
) -> np.ndarray:
    """Train from ``init`` and score: (cases, classes) Dice, with case names kept in ``summary.json``."""
    train(
        data, run, method="supervised", labels=cell.labels, draw=draw, test=cell.test, seed=cell.seed, steps=steps,
        init=init, device=arguments.device, threads=arguments.threads,
    )  # fmt: skip
    if not (run / "summary.json").exists():
        predict([run], data, run / "predictions", held_out_only=True, device=arguments.device)
        evaluate(run / "predictions", data, out=run)
    rows = json.loads((run / "summary.json").read_text())["cases"]
    cases = sorted({row["case"] for row in rows})
    classes = sorted({row["class"] for row in rows})
    table = np.full((len(cases), len(classes)), np.nan)
    for row in rows:
        if row["dice"] is not None:
            table[cases.index(row["case"]), classes.index(row["class"])] = row["dice"]
    return table


def main() -> None:
    pretraining = [name for name in method_names() if load_method(name).METHOD.kind == "pretrain"]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="*", default=list(CELLS), choices=list(CELLS))
    parser.add_argument("--methods", nargs="*", default=pretraining, choices=pretraining)
    parser.add_argument("--draws", nargs="*", type=int, help="which draws (default: all of the cell)")
    parser.add_argument("--pretrain-steps", type=int, default=500)
    parser.add_argument("--steps", type=int, help="fine-tuning steps instead of the cell's")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    print(
        "| set, labels | method | mean Dice | by draw | difference to scratch | 95 % interval over patients | p |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in arguments.only:
        cell, count, steps = CELLS[name]
        steps = arguments.steps or steps
        draws = arguments.draws if arguments.draws is not None else list(range(count))
        data = part_of(arguments.data / cell.folder, cell.part, arguments.out)
        patients: list[str] = []
        found: dict[str, list[np.ndarray]] = {}
        for method in ["scratch", *arguments.methods]:
            found[method] = []
            for draw in draws:
                place = arguments.out / cell.folder
                init = None if method == "scratch" else start(data, place, method, cell, draw, arguments)
                run = place / cell.labels / f"draw{draw}" / method
                found[method].append(scores(data, run, cell, draw, steps, init, arguments))
                if not patients:
                    summary, manifest = (
                        json.loads((run / f).read_text()) for f in ("summary.json", "manifest.json")
                    )
                    cases = sorted({row["case"] for row in summary["cases"]})
                    patients = [manifest["patients"][case] for case in cases]
            by_draw = [float(np.nanmean(table)) for table in found[method]]
            line = f"| {name} | {method} | {np.mean(by_draw):.3f} | {' '.join(f'{d:.3f}' for d in by_draw)} "
            if method == "scratch":
                line += "| | | |"
            else:
                a, b = (np.concatenate(found[key], axis=1) for key in (method, "scratch"))
                d = paired_bootstrap(a, b, patients)
                line += f"| {d.mean:+.3f} | {d.low:+.3f} to {d.high:+.3f} | {d.p:.3f} |"
            print(line, flush=True)


if __name__ == "__main__":
    main()
