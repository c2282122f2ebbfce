"""Who looks on while a run trains: the caller, ``progress.png``, TensorBoard."""

from collections.abc import Callable
from typing import Any

from handful.errors import UsageError
from handful.training.folder import RunFolder
from handful.training.loop import Progress

DRAW_SECONDS = 60.0
"""Between two drawings of ``progress.png``, each of which takes about a second."""


def watch(
    folder: RunFolder, report: Callable[[Progress], None] | None, *, tensorboard: bool
) -> Callable[[Progress], None]:
    """Combine what looks on: the caller's report, ``progress.png`` now and then, TensorBoard if asked for.

    Raises:
        UsageError: TensorBoard is asked for and not installed.
    """
    if not folder.writes:
        return lambda progress: None
    writer = _tensorboard(folder) if tensorboard else None
    drawn = 0.0

    def look(progress: Progress) -> None:
        nonlocal drawn
        if report is not None:
            report(progress)
        if writer is not None:
            for name, value in progress.row.items():
                writer.add_scalar(name, value, progress.step)
            writer.flush()
        if progress.seconds - drawn > DRAW_SECONDS:
            drawn = progress.seconds
            draw_progress(folder)

    return look


def draw_progress(folder: RunFolder) -> None:
    """Write ``progress.png`` from the metrics so far."""
    from handful.report.figures import write_progress

    write_progress(folder.read_metrics(), folder.progress)


def _tensorboard(folder: RunFolder) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError(
            '--tensorboard needs an extra package: pip install "handful[tensorboard]".'
        ) from error
    return SummaryWriter(str(folder.path / "tensorboard"))
