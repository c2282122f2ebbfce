"""What does each part of a method add? Variants of it on development cases, paired with the control draw by draw.

    python benchmarks/ablation.py DATA_FOLDER OUT --cell development-2 --steps 1000 \\
        --variant control supervised --variant "no contrast" auto method.contrast_weight=0

Development cells are cases that no table of results is made from (see control.py): settings are chosen here. Every run
is an ordinary run folder under OUT: a killed benchmark continues where it was. The difference to the first variant is
paired (same draw, same held-out cases), its interval over draws and patients (docs/study.md).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from compare import dice_of
from control import GRID, Cell, part_of
from handful.artefacts import read_json
from handful.inference.predict import predict
from handful.metrics.evaluate import evaluate
from handful.studies.statistics import compare
from handful.training.run import train


def run_variant(
    data: Path,
    run: Path,
    method: str,
    settings: Sequence[str],
    cell: Cell,
    draw: int,
    args: argparse.Namespace,
) -> np.ndarray:
    """Train, predict and score one draw of one variant, or find it done."""
    train(
        data, run, method=method, set_=settings, labels=cell.labels, draw=draw, test=cell.test, seed=cell.seed,
        steps=args.steps or cell.steps, plan=args.plan, threads=args.threads, device=args.device,
    )  # fmt: skip
    if not (run / "summary.json").exists():
        predict([run], data, run / "predictions", held_out_only=True, device=args.device)
        evaluate(run / "predictions", data, out=run)
    return dice_of(run)[2]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cell", default="development-2", choices=[n for n in GRID if "development" in n])
    parser.add_argument("--variant", nargs="+", action="append", required=True, metavar="NAME METHOD SETTING")
    parser.add_argument("--draws", nargs="*", type=int)
    parser.add_argument("--steps", type=int, help="steps a run instead of the cell's")
    parser.add_argument("--plan", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    cell = GRID[args.cell]
    data = part_of(args.data / cell.folder, cell.part, args.out)
    draws = args.draws if args.draws is not None else list(range(cell.draws))
    first: list[np.ndarray] = []
    print("| variant | mean Dice | by draw | difference to the first | 95 % interval | seconds |")
    print("|---|---|---|---|---|---|")
    for name, method, *settings in args.variant:
        runs = [args.out / args.cell / name.replace(" ", "-") / f"draw{draw}" for draw in draws]
        found = [
            run_variant(data, run, method, settings, cell, draw, args)
            for run, draw in zip(runs, draws, strict=True)
        ]
        dice = [float(np.nanmean(table)) for table in found]
        seconds = np.mean([read_json(run / "manifest.json")["seconds"] for run in runs])
        line = f"| {name} | {np.mean(dice):.3f} | {' '.join(f'{d:.3f}' for d in dice)} "
        if first:
            patients = dice_of(runs[0])[1]
            d = compare(found, first, patients)
            line += f"| {d.mean:+.3f} | {d.low:+.3f} to {d.high:+.3f} "
        else:
            first, line = found, line + "| | "
        print(f"{line}| {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
