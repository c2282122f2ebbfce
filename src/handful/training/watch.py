"""Who looks on while a run trains: the caller, ``progress.png``, loggers."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

from handful.training.folder import RunFolder
from handful.training.loggers import logging_to
from handful.training.loop import Progress

DRAW_SECONDS = 60.0
"""Between two drawings of ``progress.png``, each of which takes about a second."""


@contextlib.contextmanager
def watch(
    folder: RunFolder, report: Callable[[Progress], None] | None, *, loggers: Sequence[str] = ()
) -> Iterator[Callable[[Progress], None]]:
    """Combine what looks on: the caller's report, ``progress.png`` now and then, loggers if asked for.

    Raises:
        RunError: a logger cannot be opened.
    """
    if not folder.writes:
        yield lambda progress: None
        return
    drawn = 0.0
    with logging_to(loggers, folder) as log:

        def look(progress: Progress) -> None:
            nonlocal drawn
            if report is not None:
                report(progress)
            log(progress.row)
            if progress.seconds - drawn > DRAW_SECONDS:
                drawn = progress.seconds
                draw_progress(folder)

        yield look


def draw_progress(folder: RunFolder) -> None:
    """Write ``progress.png`` from the metrics so far."""
    from handful.report.figures import write_progress

    write_progress(folder.read_metrics(), folder.progress)
