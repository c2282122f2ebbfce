"""How far a study is, and whom it tells."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from handful.studies.tasks import Task


@dataclass
class Pace:
    """How far a study is.

    Attributes:
        total: runs of the study, pre-trainings not counted.
        finished: runs so far, those of earlier commands included.
        failed: runs so far.
        left: weight of the tasks of this command that are not done.
        done: weight of those that are.
        current: task -> share done, of those in work.
        before: weight of what earlier commands had done of the tasks of this one.
    """

    total: int
    finished: int = 0
    failed: int = 0
    left: float = 0.0
    done: float = 0.0
    current: dict[Task, float] = field(default_factory=dict)
    before: float = 0.0
    started: float = field(default_factory=time.monotonic)

    @property
    def fraction(self) -> float:
        """Share of this command's work that is done."""
        done = self.done + sum(task.weight * share for task, share in self.current.items())
        return (done - self.before) / max(self.done + self.left - self.before, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """Projected from the speed so far; None before there is any."""
        done = self.fraction
        return (time.monotonic() - self.started) * (1 - done) / done if done > 0.001 else None


class Watcher:
    """What is told of the work: each start, each end, and the pace in between."""

    def __init__(
        self,
        pace: Pace,
        *,
        started: Callable[[Task], None],
        ended: Callable[[Task, dict[str, Any]], None],
        report: Callable[[Pace], None],
    ) -> None:
        self.pace, self._started, self._ended, self._report = pace, started, ended, report
        self._heard: set[Task] = set()

    def started(self, task: Task) -> None:
        """Say that a task begins."""
        self.pace.current[task] = 0.0
        self._started(task)
        self._report(self.pace)

    def at(self, task: Task, share: float) -> None:
        """Say how much of a task is done."""
        if task not in self._heard:  # a run that goes on begins where it was
            self._heard.add(task)
            self.pace.before += task.weight * share
        self.pace.current[task] = share
        self._report(self.pace)

    def ended(self, task: Task, outcome: dict[str, Any]) -> None:
        """Say what became of a task."""
        self.pace.current.pop(task, None)
        self.pace.done, self.pace.left = self.pace.done + task.weight, self.pace.left - task.weight
        if task.kind == "train":
            if outcome["status"] == "finished":
                self.pace.finished += 1
            else:
                self.pace.failed += 1
        self._ended(task, outcome)
        self._report(self.pace)
