"""What commands say: tables and moving bars on a terminal, plain lines everywhere else.

Results go to standard output, everything about the way there to standard error, so that a pipe gets results only.
"""

import contextlib
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from handful.studies.pace import Pace
    from handful.training.loop import Progress as Training


class Watched(Protocol):
    """Something whose share is done."""

    @property
    def fraction(self) -> float: ...


W = TypeVar("W", bound=Watched)

Progress = Callable[[str, int, int | None], None]
"""Called with what is being done, how much of it is done, and how much there is (None: not known)."""

LINE_SECONDS = 10.0
"""Where nobody watches, progress is a line this often."""


def say(text: str = "") -> None:
    """Print a result."""
    print(text, flush=True)


def note(text: str) -> None:
    """Print something about the way there."""
    print(text, file=sys.stderr, flush=True)


def say_json(content: Any) -> None:
    """Print ``content`` as indented JSON and nothing else."""
    say(json.dumps(content, indent=1, allow_nan=False, default=str))


def next_command(*words: object) -> None:
    """Print the command that comes next, ready to be pasted."""
    say("\nNext: " + " ".join(_quoted(str(word)) for word in words))


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under their columns: ruled and fitted to the screen on a terminal, aligned text elsewhere."""
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        ruled = Table(box=SIMPLE_HEAD, pad_edge=False)
        for column in columns:
            ruled.add_column(column, overflow="fold")
        for row in cells:
            ruled.add_row(*(Text(cell) for cell in row))  # Text: brackets in a file name are not markup
        Console().print(ruled)
        return
    widths = [max(len(line[i]) for line in [list(columns), *cells]) for i in range(len(columns))]
    for line in [list(columns), *cells]:
        say("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())


@contextlib.contextmanager
def progress(*, unit: str = "", quiet: bool = False) -> Iterator[Progress]:
    """Yield a function to report progress to: a bar with the time left on a terminal, a line now and then elsewhere.

    Args:
        unit: what is counted, for example ``cases``; ``bytes`` are shown as kB, MB, GB.
        quiet: show nothing.
    """
    if quiet:
        yield lambda stage, done, total: None
    elif sys.stderr.isatty():
        with _bar(unit) as report:
            yield report
    else:
        yield _lines(unit)


def training_progress(*, quiet: bool = False) -> AbstractContextManager[Callable[["Training"], None]]:
    """Yield what ``train`` takes as ``report``: step, loss and time left, as a bar or as a line now and then."""
    return _watched(_sentence, lambda training: training.fraction >= 1, quiet=quiet)


def study_progress(*, quiet: bool = False) -> AbstractContextManager[Callable[["Pace"], None]]:
    """Yield what ``study`` takes as ``report``: runs done and time left, as a bar or as a line now and then."""
    return _watched(_runs, lambda pace: pace.finished + pace.failed, quiet=quiet)


@contextlib.contextmanager
def _watched(
    words: Callable[[W], str], passed: Callable[[W], object], *, quiet: bool
) -> Iterator[Callable[[W], None]]:
    """Yield a function to report to: a bar on a terminal; elsewhere a line now and then and when ``passed`` changes."""
    if quiet:
        yield lambda watched: None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        columns = (BarColumn(), TextColumn("{task.description}"))
        with Bar(*columns, console=Console(stderr=True), redirect_stdout=sys.stdout.isatty()) as bar:
            task = bar.add_task("starting", total=1.0)
            yield lambda watched: bar.update(task, completed=watched.fraction, description=words(watched))
    else:
        last: tuple[float, object] | None = None

        def report(watched: W) -> None:
            nonlocal last
            now = time.monotonic(), passed(watched)
            if last is None or now[1] != last[1] or now[0] - last[0] >= LINE_SECONDS:
                last = now
                note(words(watched))

        yield report


def _runs(pace: "Pace") -> str:
    """Return for example ``5 of 54 runs, 1 failed, 2.1 h left: pcl, 5%, draw 1 (42 %)``."""
    failed = f", {pace.failed} failed" if pace.failed else ""
    left = "" if pace.seconds_left is None else f", {_duration(pace.seconds_left)} left"
    now = "; ".join(f"{task.words} ({share:.0%})" for task, share in pace.current.items())
    return f"{pace.finished} of {pace.total} runs{failed}{left}{': ' if now else ''}{now}"


def _duration(seconds: float) -> str:
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _sentence(training: "Training") -> str:
    """Return for example ``step 120 of 1000, loss 0.531, 4 min left``."""
    of = f" of {training.steps}" if training.steps else ""
    loss = f", loss {training.row['loss']:.3f}" if "loss" in training.row else ""
    return f"step {training.step}{of}{loss}, {_duration(training.seconds_left)} left"


@contextlib.contextmanager
def _bar(unit: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    amount = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), amount, TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), redirect_stdout=sys.stdout.isatty()) as bar:
        tasks: dict[str, Any] = {}

        def report(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)

        yield report


def _lines(unit: str) -> Progress:
    last: dict[str, float] = {}

    def report(stage: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        begun = stage not in last
        if begun or done == total or now - last[stage] >= LINE_SECONDS:
            last[stage] = now
            of = f" of {_amount(total, unit)}" if total is not None else ""
            note(f"{stage}: {_amount(done, unit)}{of} {unit if unit != 'bytes' else ''}".rstrip())

    return report


def _amount(count: int, unit: str) -> str:
    if unit != "bytes":
        return str(count)
    for name, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {name}"
    return f"{count} bytes"


def _quoted(word: str) -> str:
    # words in capitals stand for something the reader fills in
    return word if word.isupper() else shlex.quote(word)
