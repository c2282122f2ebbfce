"""``handful report``: one page about a run."""

from pathlib import Path
from typing import Annotated

import typer

from handful.cli.console import say


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    *,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The page; default RUN/report.html.")
    ] = None,
) -> None:
    """Write one self-contained HTML page: data, split, plan, curves, scores, best and worst cases."""
    from handful.report.page import write_report

    say(f"Report: {write_report(run, out=out)}")
