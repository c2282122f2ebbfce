"""``handful plan``: what is decided from the data, and why."""

from pathlib import Path
from typing import Annotated

import typer

from handful.cli.console import next_command, note, say, say_json, table
from handful.cli.options import Data, Device, Draw, Json, Labels, Patients, Seed, SplitsFile, Test
from handful.errors import UsageError


def plan(
    data: Data,
    *,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the plan there, to be edited and used.")
    ] = None,
    labels: Labels = None,
    draw: Draw = 0,
    test: Test = None,
    splits: SplitsFile = None,
    patients: Patients = None,
    dims: Annotated[int | None, typer.Option(min=2, max=3, help="Decide 2D or 3D yourself.")] = None,
    seed: Seed = 0,
    device: Device = "auto",
    cost: Annotated[
        bool, typer.Option(help="Measure what a training step takes on this machine (some seconds).")
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the FILE of --out.")] = False,
    json: Json = False,
) -> None:
    """Decide grid, intensities, patch and network from the data, and say why.

    Labels outside the budget, and cases held out, are not looked at.
    """
    from handful.data.plan import explain, write_plan
    from handful.device import choose_device
    from handful.settings import as_dict
    from handful.training.decisions import choose_cases, decide_plan

    if out is not None and out.exists() and not overwrite:
        raise UsageError(f"{out} exists and may have been edited; name another file or use --overwrite.")
    dataset, _, selection = choose_cases(
        data, labels=labels, draw=draw, test=test, splits=splits, seed=seed, patients=patients
    )
    decided = decide_plan(dataset, selection, device=choose_device(device).type, dims=dims)
    if out is not None:
        write_plan(out, decided)
    if json:
        say_json(as_dict(decided))
        return
    for text in filter(None, (*dataset.notes, selection.note)):
        note(text)
    say(
        f"{dataset.name}: {len(selection.labelled)} labelled and {len(selection.unlabelled)} unlabelled cases "
        f"to train on, {len(selection.test)} held out.\n"
    )
    table(("decided", "value", "why"), explain(decided))
    if cost:
        from handful.training.cost import measure
        from handful.training.settle import DEFAULT_STEPS

        found = measure(decided, device=device)
        minutes = found.seconds_per_step * DEFAULT_STEPS / 60
        say(
            f"\nMeasured on {found.device} ({found.precision}): {found.seconds_per_step:.2f} s a step, so "
            f"{DEFAULT_STEPS} steps in {minutes:.1f} minutes; {found.memory_gb:.1f} GB memory; {found.disk_mb:.0f} MB "
            f"on disk a run; {found.parameters / 1e6:.1f} million parameters."
        )
    options = {"--labels": labels, "--draw": draw or None, "--test": test, "--splits": splits, "--plan": out}
    words = [str(word) for option, value in options.items() if value is not None for word in (option, value)]
    next_command("handful", "train", data, *words, "--out", "RUN")
