"""``handful evaluate``: predictions against references, in millimetres."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from handful.cli.console import next_command, note, say, say_json, table
from handful.cli.options import Json
from handful.errors import DataError

if TYPE_CHECKING:
    from handful.metrics.summary import Summary


def evaluate(
    predictions: Annotated[
        Path, typer.Argument(metavar="PREDICTIONS", help="Folder of predicted label maps.")
    ],
    references: Annotated[
        Path, typer.Argument(metavar="REFERENCES", help="Label maps of the same names, or a data set.")
    ],
    *,
    labels: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A data set or dataset.json that names the labels."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for scores.csv and summary.json; default PREDICTIONS."),
    ] = None,
    tolerance_mm: Annotated[
        float, typer.Option("--tolerance", min=0, metavar="MM", help="Of the surface Dice.")
    ] = 1.0,
    json: Json = False,
) -> None:
    """Score every case and class; print the means with their intervals and write every number down.

    Exit code 3 if a reference had no prediction or a pair could not be compared; the others are scored all the same.
    """
    from handful.artefacts import read_json
    from handful.metrics.evaluate import evaluate as evaluate_

    folder = out or (predictions if predictions.is_dir() else predictions.parent)
    summary = evaluate_(predictions, references, labels=labels, out=folder, tolerance_mm=tolerance_mm)
    if json:
        say_json(read_json(folder / "summary.json"))
    else:
        print_scores(summary)
        say(f"\nEvery number: {folder / 'scores.csv'}, {folder / 'summary.json'}")
        if (folder / "recipe.yaml").exists():
            next_command("handful", "report", folder)
    if summary.problems:
        raise typer.Exit(DataError.exit_code)


def print_scores(summary: "Summary") -> None:
    """Print the table of an evaluation, and what could not be scored."""
    from handful.metrics.summary import table as rows_of

    columns, *rows = rows_of(summary)
    table(columns, rows)
    for text in (*summary.problems, *summary.notes):
        note(text)
