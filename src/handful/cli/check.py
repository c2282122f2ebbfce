"""``handful check``: read every file of a folder and name every problem."""

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from handful.cli.console import next_command, progress, say, say_json, table
from handful.cli.options import Data, Json, Patients, Threads
from handful.errors import DataError

if TYPE_CHECKING:
    from handful.data.check import CheckReport


def check(data: Data, *, patients: Patients = None, threads: Threads = None, json: Json = False) -> None:
    """Read every file; list what was found, and every problem with its file and its remedy.

    Exit code 3 if a problem would stop training.
    """
    from handful.data.check import check_dataset

    with progress(unit="cases", quiet=json) as report:
        result = check_dataset(
            data,
            patients=patients,
            threads=threads,
            progress=lambda done, total: report("reading", done, total),
        )
    if json:
        say_json(result.as_dict())
    else:
        _print(result)
        if not result.fatal:
            next_command("handful", "plan", data, *(("--patients", patients) if patients else ()))
    if result.fatal:
        raise typer.Exit(DataError.exit_code)


def _print(result: "CheckReport") -> None:
    if result.found:
        _print_found(result.found)
    for problem in result.problems:
        say(f"{problem.severity}: {problem}")
    count = Counter(problem.severity for problem in result.problems)
    say(", ".join(f"{severity}: {count[severity]}" for severity in ("fatal", "warning", "note")))


def _print_found(found: Mapping[str, Any]) -> None:
    whose = found["patients_from"] or "assumed: every case is a patient of its own"
    say(f"{found['name']} ({found['layout']})\n")
    kinds = ", ".join(
        f"{found[kind]} {kind.replace('_', ' ')}" for kind in ("labelled", "unlabelled", "held_out")
    )
    rows = [
        ("cases", f"{found['cases']}: {kinds}"),
        ("patients", f"{found['patients']} ({whose})"),
        ("channels", ", ".join(found["channels"])),
        ("voxels", _range(found["shape"])),
        ("spacing mm", _range(found["spacing_mm"])),
        ("orientations", ", ".join(f"{name} {count}" for name, count in found["orientations"].items())),
    ]
    table(("what", "found"), rows)
    say()
    columns = ("value", "name", "cases", "voxels")
    table(columns, [[label[column] for column in columns] for label in found["labels"]])
    say()


def _range(parts: Mapping[str, list[float]] | None) -> str:
    """Write for example ``36 x 50 x 35 (31 x 40 x 24 to 43 x 59 x 47)``."""
    if parts is None:
        return "none could be read"
    low, middle, high = (
        " x ".join(f"{value:g}" for value in parts[name]) for name in ("min", "median", "max")
    )
    return middle if low == high else f"{middle} ({low} to {high})"
