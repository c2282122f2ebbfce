"""The log of a study: what happened, when; lines are added and never changed."""

import json
import os
from pathlib import Path
from typing import Any

from handful.errors import RunError
from handful.training.record import now

OPENED = "test labels opened"
"""Written before the first of them is read. Runs that failed may be trained after it; the log shows if they were."""

READ = "test labels read"
"""Which they were, by their hashes; those of a later opening must be the same."""

EXTENDED = "study extended"
"""By which methods. Whether test labels had been opened before, the log shows."""


class Audit:
    """Append to and read ``audit.jsonl``: one JSON object a line, with ``time`` (UTC) and ``event``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, event: str, **details: Any) -> None:
        """Write one line through to the disk."""
        line = json.dumps({"time": now(), "event": event, **details}) + "\n"
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(
                f"{self.path} could not be written: {error.strerror}. Free some space and run the same command again."
            ) from error

    def read(self) -> list[dict[str, Any]]:
        """Return the events so far; a line cut short by a kill is left out."""
        events = []
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    events.append(json.loads(line))
                except json.JSONDecodeError:
                    continue
        return events
