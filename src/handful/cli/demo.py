"""``handful demo``: the whole way, from a made-up data set to a page of results, in minutes on two cores."""

from pathlib import Path
from typing import Annotated

import typer

from handful.cli.console import next_command, note, progress, say, training_progress
from handful.cli.evaluate import print_scores
from handful.cli.options import Device, Overwrite, Quiet, Seed, Threads

LABELS = "4"
"""Labelled cases the demo trains on; few, as the name of the package says."""

STEPS = 300
"""Enough for every structure of the phantom to appear, in minutes on two cores."""


def demo(
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the data set and the run.")] = Path(
        "demo"
    ),
    steps: Annotated[int, typer.Option(min=1, help="Length of the training.")] = STEPS,
    seed: Seed = 0,
    device: Device = "auto",
    threads: Threads = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Make a data set, train on four labels, predict and score the held-out cases, and write a page about it.

    Every step says which command does the same on your own folder. Run again, it goes on where it stopped.
    """
    from handful.data.phantom import make_phantom

    data, run = out / "data", out / "run"
    predictions = run / "predictions"

    def step(number: int, what: str, command: str) -> None:
        if not quiet:
            note(f"\n[{number}/5] {what}\n      {command}")

    step(1, f"A data set of drawn torsos, some labelled, some not: {data}", f"handful check {data}")
    make_phantom(data, seed=seed)

    from handful.inference.predict import predict
    from handful.metrics.evaluate import evaluate
    from handful.report.page import write_report
    from handful.training.run import train

    step(
        2,
        f"Training on {LABELS} labelled cases",
        f"handful train {data} --labels {LABELS} --steps {steps} --out {run}",
    )
    with training_progress(quiet=quiet) as watch:
        train(
            data, run, labels=LABELS, steps=steps, seed=seed, device=device, threads=threads,
            overwrite=overwrite, quiet=quiet, report=watch,
        )  # fmt: skip
    step(3, "Predicting the held-out cases", f"handful predict {run} {data} --held-out --out {predictions}")
    with progress(unit="cases", quiet=quiet) as report:
        predict(
            [run], data, predictions, held_out_only=True, device=device, threads=threads,
            overwrite=True, progress=report,
        )  # fmt: skip
    step(4, "Scoring them", f"handful evaluate {predictions} {data} --out {run}")
    summary = evaluate(predictions, data, out=run)
    if not quiet:
        print_scores(summary)
    step(5, "Writing the page", f"handful report {run}")
    page = write_report(run)
    say(f"\nOpen {page.resolve()}")
    if not quiet:
        next_command("handful", "check", "YOUR_FOLDER")
