"""How far a study is, and whom it tells."""

import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

from handful.studies.tasks import Task


@dataclass
class _Work:
    """A task in work: when it began, how much earlier commands had done of it, how much is done."""

    began: float
    before: float | None = None
    share: float = 0.0


@dataclass
class Pace:
    """How far a study is.

    A step of one method takes several times as long as a step of another, so the time left is projected method by
    method; one that was not met yet counts as those that were.

    Attributes:
        total: runs of the study, pre-trainings not counted.
        finished: runs so far, those of earlier commands included.
        failed: runs so far.
        clock: tells the time in seconds.
    """

    total: int
    finished: int = 0
    failed: int = 0
    clock: Callable[[], float] = time.monotonic
    _waiting: dict[Task, None] = field(default_factory=dict)
    _work: dict[Task, _Work] = field(default_factory=dict)
    _seconds: defaultdict[Hashable, float] = field(default_factory=lambda: defaultdict(float))
    _done: defaultdict[Hashable, float] = field(default_factory=lambda: defaultdict(float))
    _at_once: int = 1

    def plan(self, tasks: Iterable[Task]) -> None:
        """Take what this command has to do."""
        self._waiting = dict.fromkeys(tasks)

    def begin(self, task: Task) -> None:
        """Take a task into work."""
        self._waiting.pop(task, None)
        self._work[task] = _Work(self.clock())

    def at(self, task: Task, share: float) -> None:
        """Say how much of a task is done; the first word of a run that goes on is what it had done before."""
        work = self._work[task]
        work.share = share
        if work.before is None:
            work.before = share
        self._at_once = max(self._at_once, len(self._running()))

    def end(self, task: Task, *, finished: bool) -> None:
        """Take a task out of work; how long it took tells of others only if it was done to the end."""
        self._waiting.pop(task, None)
        work = self._work.pop(task, None)
        if finished and work is not None:
            self._seconds[_kind(task)] += self.clock() - work.began
            self._done[_kind(task)] += task.weight * (1 - (work.before or 0.0))
        if task.kind == "train":
            self.finished += finished
            self.failed += not finished

    @property
    def current(self) -> dict[Task, float]:
        """Task -> share done, of those in work."""
        return {task: work.share for task, work in self._work.items()}

    @property
    def fraction(self) -> float:
        """Share of this command's work that is done, in weight."""
        now = sum(task.weight * (work.share - (work.before or 0.0)) for task, work in self._work.items())
        done = sum(self._done.values()) + now
        left = sum(task.weight * (1 - share) for task, share in self._left())
        return done / max(done + left, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """Projected from what each method took so far, for as many tasks at once as there were; None before any."""
        seconds, done = self._seconds.copy(), self._done.copy()
        for task, work in self._running().items():
            seconds[_kind(task)] += self.clock() - work.began
            done[_kind(task)] += task.weight * (work.share - (work.before or 0.0))
        met = {kind: seconds[kind] / done[kind] for kind in done if done[kind] > 0}
        if self.fraction <= 0.001 or not met:
            return None
        others = sum(seconds[kind] for kind in met) / sum(done[kind] for kind in met)
        left = [task.weight * (1 - share) * met.get(_kind(task), others) for task, share in self._left()]
        return sum(left) / max(min(self._at_once, len(left)), 1)

    def _running(self) -> dict[Task, _Work]:
        """Return the tasks in work that were heard of: one that a cluster has queued takes no time yet."""
        return {task: work for task, work in self._work.items() if work.before is not None}

    def _left(self) -> list[tuple[Task, float]]:
        return [*self.current.items(), *((task, 0.0) for task in self._waiting)]


def _kind(task: Task) -> Hashable:
    """Return what tasks share that take equally long a step."""
    return task.kind, task.method, task.settings


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

    def started(self, task: Task) -> None:
        """Say that a task begins."""
        self.pace.begin(task)
        self._started(task)
        self._report(self.pace)

    def at(self, task: Task, share: float) -> None:
        """Say how much of a task is done."""
        self.pace.at(task, share)
        self._report(self.pace)

    def ended(self, task: Task, outcome: dict[str, Any]) -> None:
        """Say what became of a task."""
        self.pace.end(task, finished=outcome["status"] == "finished")
        self._ended(task, outcome)
        self._report(self.pace)
