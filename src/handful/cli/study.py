"""``handful study``: methods, budgets and draws compared by a protocol that keeps the test labels closed."""

from pathlib import Path
from typing import Annotated, Any

import typer

from handful.cli.console import next_command, note, progress, say, say_json, study_progress, table
from handful.cli.options import (
    Data,
    Device,
    DryRun,
    Json,
    MaxTime,
    Overwrite,
    Patients,
    PlanFile,
    Precision,
    Quiet,
    Seed,
    Steps,
    Test,
    Threads,
)


def study(
    data: Data,
    *,
    out: Annotated[
        Path, typer.Option("--out", metavar="STUDY", help="Folder of the study; an unfinished one goes on.")
    ],
    methods: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Comma between: trainings, pre-trainings (the control trains after them), a+b, or name=any of these.",
        ),
    ],
    labels: Annotated[
        str, typer.Option(metavar="SPECS", help="Budgets, comma between: 2,5%,20 or 3p,10p or @file.")
    ],
    draws: Annotated[
        str,
        typer.Option(
            metavar="NUMBERS", help="Draws of labels for each budget, nested: 3, or 5,3,3 for three budgets."
        ),
    ] = "3",
    test: Test = None,
    steps: Steps = None,
    max_time: MaxTime = None,
    pretrain_steps: Annotated[
        int | None, typer.Option(min=1, help="Length of each pre-training; default: as long as a run.")
    ] = None,
    patients: Patients = None,
    plan: PlanFile = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A setting of all runs, or of one METHOD:NAME=VALUE; repeatable.",
        ),
    ] = None,
    snapshots: Annotated[
        int, typer.Option(min=0, help="Checkpoints of each run that show what selection would fake; 0: none.")
    ] = 4,
    seed: Seed = 0,
    jobs: Annotated[int, typer.Option(min=1, help="Runs beside each other, each in its own process.")] = 1,
    cluster: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Runs as jobs of a scheduler: slurm, or local to try it here."),
    ] = None,
    cluster_set: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="What a job asks for, such as slurm_partition=gpu; repeatable."
        ),
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Threads = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    extend: Annotated[
        bool, typer.Option("--extend", help="Add methods to the study in --out; its runs are kept.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train every method at every budget and draw, then score all on the same held-out cases, opened once.

    The same command with the same --out goes on: finished runs are left alone, failed ones are tried again.
    Exit code 1 if a run failed; the others are scored all the same.
    """
    from handful.studies.study import read_summary
    from handful.studies.study import study as study_

    speak = (lambda text: None) if quiet else say if dry_run and not json else note
    with study_progress(quiet=quiet or dry_run) as report, progress(unit="runs", quiet=quiet) as scoring:
        study_(
            data,
            out,
            methods=methods,
            labels=labels,
            draws=draws,
            test=test,
            steps=steps,
            max_time=max_time,
            pretrain_steps=pretrain_steps,
            seed=seed,
            jobs=jobs,
            cluster=cluster,
            cluster_set=cluster_set or (),
            device=device,
            precision=precision,
            threads=threads,
            set_=set_ or (),
            plan=plan,
            patients=patients,
            snapshots=snapshots,
            dry_run=dry_run,
            overwrite=overwrite,
            extend=extend,
            say=speak,
            report=report,
            progress=scoring,
        )
    if dry_run:
        if not quiet:
            speak("Nothing was trained; the same command without --dry-run does it.")
        return
    summary = read_summary(out)
    if json:
        say_json(summary)
    elif not quiet:
        print_study(summary)
        next_command("handful", "report", out)
    if any(run["status"] != "finished" for run in summary["runs"]):
        raise typer.Exit(1)


def print_study(summary: dict[str, Any]) -> None:
    """Print what a study found: scores beside the control, labels saved, and every warning."""
    against = {(row["method"], row["budget"]): row for row in summary["comparisons"]}
    saved = {(row["method"], row["budget"]): row for row in summary["saved"]}
    rows = []
    for row in summary["summary"]:
        key = row["method"], row["budget"]
        other, labels = against.get(key), saved.get(key)
        rows.append(
            [
                row["budget"],
                row["method"],
                f"{_text(row['dice'])} ± {_text(row['dice_sd'])}",
                _ends(row, 3),
                "" if other is None else _signed(other["difference"]),
                "" if other is None else _ends(other, 3, signed=True),
                "" if other is None else _text(other["p_corrected"]),
                "the control" if other is None else other["verdict"],
                "" if labels is None else _saved(labels),
            ]
        )
    table(
        (
            "labels", "method", "Dice ± sd", "95 % interval", "to control", "95 % interval", "p (Holm)", "verdict",
            "as the control at",
        ),
        rows,
    )  # fmt: skip
    for text in summary["warnings"]:
        note(text)


def _saved(row: dict[str, Any]) -> str:
    """Return for example ``12 (7 to 19) labels``, or what is known where the number is beyond the control's budgets."""
    low, high = (None if row[end] is None else f"{row[end]:.3g}" for end in ("low", "high"))
    if row["equal_labels"] is not None:
        return f"{row['equal_labels']:.3g} labels ({low or '?'} to {high or '?'})"
    side = row["note"].partition(" ")[0]
    if side not in ("better", "worse"):
        return "-"
    end = (
        f" (at least {low} labels)"
        if low and not high
        else f" (at most {high} labels)"
        if high and not low
        else ""
    )
    return f"{side} than at all its budgets{end}"


def _ends(row: dict[str, Any], digits: int, *, signed: bool = False) -> str:
    if row["low"] is None or row["high"] is None:
        return "-"
    sign = "+" if signed else ""
    return f"{row['low']:{sign}.{digits}f} to {row['high']:{sign}.{digits}f}"


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3f}"
