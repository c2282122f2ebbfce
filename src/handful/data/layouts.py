"""What every layout of files comes down to before it is a data set: entries, channels, declarations."""

from pathlib import Path
from typing import NamedTuple

from handful.data.declared import Declared


class Entry(NamedTuple):
    """One case as found on disk; the patient is None where the layout does not name it, ``annotated`` as written."""

    name: str
    images: tuple[Path, ...]
    label: Path | None = None
    held_out: bool = False
    patient: str | None = None
    annotated: str = ""


class Found(NamedTuple):
    """One data set as found on disk; ``layout`` is ``msd``, ``nnunet``, ``folders`` or ``csv``."""

    layout: str
    name: str
    root: Path
    entries: list[Entry]
    channels: tuple[str, ...]
    declared: Declared | None
    patients_from: str | None = None


def unnamed_channels(number: int) -> tuple[str, ...]:
    """Name the channels of a data set that does not."""
    return ("image",) if number == 1 else tuple(f"image {index}" for index in range(1, number + 1))
