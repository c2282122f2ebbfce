"""``handful check``: read every file of a folder and name every problem."""

import typer

from handful.cli.console import next_command, progress, say, say_json
from handful.cli.options import Data, Json, Patients


def check(data: Data, *, patients: Patients = None, json: Json = False) -> None:
    """Read every file; list what was found, and every problem with its file and its remedy.

    Exit code 3 if a problem would stop training.
    """
    from handful.data.check import check_dataset

    result = check_dataset(data, patients=patients)
    if json:
        say_json(result.as_dict())
