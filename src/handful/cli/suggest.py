"""``handful suggest``: which cases to label next, and why, beside what random cases would give."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from handful.cli.console import next_command, progress, say, say_json, table
from handful.cli.options import (
    Data,
    Device,
    Draw,
    Json,
    Labels,
    Overwrite,
    Patients,
    Seed,
    SplitsFile,
    Test,
    Threads,
)
from handful.errors import UsageError, nearest

if TYPE_CHECKING:
    from handful.suggestion.suggest import Suggestion

RULES = ("typical", "medoid")


def suggest(
    data: Data,
    *,
    run: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RUN", help="A pre-training, or trained segmenters (repeat: an ensemble) to ask."
        ),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="How many cases.")] = 5,
    labels: Labels = None,
    draw: Draw = 0,
    test: Test = None,
    splits: SplitsFile = None,
    seed: Seed = 0,
    patients: Patients = None,
    rule: Annotated[
        str, typer.Option(metavar="NAME", help="Of each cluster: typical (densest) or medoid (most central).")
    ] = "typical",
    trust: Annotated[
        bool, typer.Option("--trust", help="Believe RUN's uncertainty whatever its validation Dice.")
    ] = False,
    tta: Annotated[bool, typer.Option("--tta", help="Ask RUN about transformed copies too; slower.")] = False,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for worklist.csv and worklist.html.")
    ] = Path("worklist"),
    device: Device = "auto",
    threads: Threads = None,
    json: Json = False,
    overwrite: Overwrite = False,
) -> None:
    """Say which cases to label next: typical images first, and once a model is good enough, those it is unsure of.

    Always beside as many random cases: where a choice is no better than chance, it says so.
    """
    if rule not in RULES:
        raise UsageError(f"--rule {rule}: {nearest(rule, list(RULES))}")
    from handful.suggestion.suggest import save
    from handful.suggestion.suggest import suggest as suggest_

    with progress(unit="cases", quiet=json) as report:
        found = suggest_(
            data,
            run=run or (),
            count=count,
            labels=labels,
            draw=draw,
            test=test,
            splits=splits,
            seed=seed,
            patients=patients,
            rule="typical" if rule == "typical" else "medoid",
            trust=trust,
            tta=tta,
            device=device,
            threads=threads,
            progress=report,
        )
    if json:
        say_json(found.as_dict())
    else:
        _print(found)
    save(found, out, overwrite=overwrite)
    if not json:
        _print_next(found, data, out, run or [], patients)


def _print(found: "Suggestion") -> None:
    say(found.why)
    whose = f"{found.candidates} cases of {found.patients} patients to choose from"
    say(f"{whose}, {len(found.labelled)} labelled, {found.held_out} held out and not looked at\n")
    table(
        ("rank", "case", "patient", "from the nearest label", "why"),
        [
            (
                item.rank,
                item.case,
                item.patient,
                "-" if (d := item.distance_to_nearest_labelled) is None else f"{d:.2f}",
                item.reason + (f" (also of this patient: {item.other_cases})" if item.other_cases else ""),
            )
            for item in found.items
        ],
    )
    say("\nDistances are in units of the mean distance between two cases.")
    for sentence in found.sentences():
        say(sentence)


def _print_next(found: "Suggestion", data: Path, out: Path, runs: list[Path], patients: str | None) -> None:
    say(f"\n{out / 'worklist.csv'} lists them, {out / 'worklist.html'} shows them.")
    words: list[object] = ["handful", "train", data]
    if found.to_draw:
        example = next(item.mask for item in found.items if item.case == found.to_draw[0])
        say(f"Draw their masks where the column 'mask' says, for example {example}.")
        if found.how_to_add:
            say(found.how_to_add)
    if found.budget:
        words += ["--labels", f"@{out / 'labels.txt'}"]
    if found.test:
        words += ["--test", f"@{out / 'test.txt'}"]
    if patients:
        words += ["--patients", patients]
    if len(runs) == 1:
        words += ["--init", runs[0]]
        if found.asked == "segmenter":  # a plan from more labels may prepare images in another way
            words += ["--plan", runs[0] / "plan.yaml"]
    next_command(*words, "--out", "RUN")
