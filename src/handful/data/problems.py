"""What is wrong with a file and what to do about it, in the user's words; collected by ``check``, raised elsewhere."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from handful.errors import DataError

Severity = Literal["fatal", "warning", "note"]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One finding about the data.

    Attributes:
        severity: ``fatal`` stops training, ``warning`` should be looked at, ``note`` is handled and only said.
        what: what was found, a whole sentence.
        remedy: what to do about it, a whole sentence; "" for a note that asks for nothing.
        file: the file or folder it was found in, or None if it is about the whole data set.
        case: the case it was found in, or None.
    """

    severity: Severity
    what: str
    remedy: str = ""
    file: Path | None = None
    case: str | None = None

    def __str__(self) -> str:
        """Return one line: file, finding, remedy."""
        return " ".join(filter(None, (f"{self.file}:" if self.file else "", self.what, self.remedy)))


class Problems(list[Problem]):
    """Problems met on the way through a data set, in the order they were met."""

    def fatal(self, file: Path, what: str, remedy: str, *, case: str | None = None) -> None:
        """Add a problem that stops training."""
        self.append(Problem(severity="fatal", what=what, remedy=remedy, file=file, case=case))

    def warning(self, file: Path, what: str, remedy: str, *, case: str | None = None) -> None:
        """Add a problem that should be looked at."""
        self.append(Problem(severity="warning", what=what, remedy=remedy, file=file, case=case))

    def note(self, file: Path, what: str, remedy: str = "") -> None:
        """Add something that is handled and only said."""
        self.append(Problem(severity="note", what=what, remedy=remedy, file=file))


class ProblemError(DataError):
    """A fatal problem after which a file or a folder cannot be read any further."""

    def __init__(self, file: Path, what: str, remedy: str) -> None:
        self.problem = Problem(severity="fatal", what=what, remedy=remedy, file=file)
        super().__init__(str(self.problem))
