"""``handful demo``: the whole way, from a made-up data set to a page of results, in minutes on two cores."""

from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from handful.cli.console import next_command, note, progress, say, training_progress
from handful.cli.evaluate import print_scores
from handful.cli.options import Device, Overwrite, Quiet, Seed, Threads

if TYPE_CHECKING:
    from handful.metrics.summary import Summary

LABELS = "4"
"""Labelled cases the demo trains on; few, as the name of the package says."""

PRETRAINING = "pcl"
"""Cheap, and it needs no label."""

PRETRAINING_SHARE = 0.25
"""Of the second run, which is longer by as much: both train the same number of steps on labels."""

STEPS = 300
"""Enough for every structure of the phantom to appear, in minutes on two cores."""


def demo(
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the data set and the runs.")] = Path(
        "demo"
    ),
    steps: Annotated[
        int, typer.Option(min=1, help="Steps of each training, a pre-training not counted.")
    ] = STEPS,
    seed: Seed = 0,
    device: Device = "auto",
    threads: Threads = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Make a data set, train on four labels alone and with the other images too, and compare on held-out cases.

    Every step says which command does the same on your own folder. Run again, it goes on where it stopped.
    """
    from handful.data.phantom import make_phantom

    data = out / "data"
    arms = {"supervised": out / "run", "auto": out / "run-auto"}
    why = {
        "supervised": "and nothing else: the control",
        "auto": "and on all images: the same training after a pre-training that needs no label",
    }
    settings = {
        "supervised": (),
        "auto": (f"pretrain.name={PRETRAINING}", f"pretrain.share={PRETRAINING_SHARE}"),
    }
    lengths = {"supervised": steps, "auto": round(steps / (1 - PRETRAINING_SHARE))}
    number = 0

    def step(what: str, command: str) -> None:
        nonlocal number
        number += 1
        if not quiet:
            note(f"\n[{number}/{1 + 4 * len(arms)}] {what}\n      {command}")

    step(f"A data set of drawn torsos, some labelled, some not: {data}", f"handful check {data}")
    make_phantom(data, seed=seed)

    from handful.inference.predict import predict
    from handful.metrics.evaluate import evaluate
    from handful.report.page import write_report
    from handful.training.run import train

    common: dict[str, Any] = {
        "seed": seed, "device": device, "threads": threads, "overwrite": overwrite, "quiet": quiet,
    }  # fmt: skip
    summaries, pages = [], []
    for method, run in arms.items():
        step(
            f"Training on {LABELS} labelled cases {why[method]}",
            f"handful train {data} --labels {LABELS} --method {method} --steps {lengths[method]} --out {run}"
            + "".join(f" --set {setting}" for setting in settings[method]),
        )
        with training_progress(quiet=quiet) as watch:
            train(
                data,
                run,
                labels=LABELS,
                method=method,
                steps=lengths[method],
                set_=settings[method],
                report=watch,
                **common,
            )
        predictions = run / "predictions"
        step("Predicting the held-out cases", f"handful predict {run} {data} --held-out --out {predictions}")
        with progress(unit="cases", quiet=quiet) as report:
            predict(
                [run], data, predictions, held_out_only=True, device=device, threads=threads,
                overwrite=True, progress=report,
            )  # fmt: skip
        step("Scoring them", f"handful evaluate {predictions} {data} --out {run}")
        summary = evaluate(predictions, data, out=run)
        summaries.append(summary)
        if not quiet:
            print_scores(summary)
        step("Writing the page", f"handful report {run}")
        pages.append(write_report(run))
    for (name, _), summary, page in zip(arms.items(), summaries, pages, strict=True):
        dice = summary.mean["dice"]
        score = "not scored" if dice is None else f"mean Dice {dice:.3f}"
        say(f"\n{name}: {score}; open {page.resolve()}")
    say(f"\n{_verdict(*summaries)}")
    if not quiet:
        next_command("handful", "check", "YOUR_FOLDER")


def _verdict(control: "Summary", other: "Summary") -> str:
    """Say whether the difference is more than noise on these few cases."""
    from handful.metrics.bootstrap import paired_bootstrap

    cases = sorted({row.case for row in control.cases})
    names = list(control.classes)
    tables = []
    for summary in (other, control):
        dice = {(row.case, row.class_name): row.dice for row in summary.cases}
        tables.append([[nan if (d := dice[case, name]) is None else d for name in names] for case in cases])
    found = paired_bootstrap(tables[0], tables[1], cases)
    sure = found.low > 0 or found.high < 0
    words = "more than the spread of these cases" if sure else "within the noise of so few cases"
    return f"Difference {found.mean:+.3f}, 95 % interval {found.low:+.3f} to {found.high:+.3f}: {words}."
