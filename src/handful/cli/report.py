"""``handful report``: one page about a run or a study."""

from pathlib import Path
from typing import Annotated

import typer

from handful.cli.console import say


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN_OR_STUDY", help="Folder of a run or of a study.")],
    *,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The page; default report.html in the folder.")
    ] = None,
    images: Annotated[
        bool,
        typer.Option(
            "--images/--no-images", help="Show slices of cases; without, no image leaves its folder."
        ),
    ] = True,
) -> None:
    """Write one self-contained HTML page.

    Of a run: data, split, plan, curves, scores, best and worst cases. Of a study: label efficiency, differences to the
    control, cost and protocol; report.md and figure.svg beside it are for a README.
    """
    from handful.report.study import is_study, write_study_report

    if is_study(run):
        say(f"Report: {write_study_report(run, out=out, images=images)}")
        return
    from handful.report.page import write_report

    say(f"Report: {write_report(run, out=out, images=images)}")
