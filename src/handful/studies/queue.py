"""Which task of a study comes next: one waits for the pre-training it starts from, and fails with it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from handful.studies.folder import record_outcome
from handful.studies.pace import Watcher
from handful.studies.tasks import Task


class Queue:
    """Tasks on their way: handed out, and taken back with what became of them.

    Args:
        tasks: those that wait come after what they wait for; a pre-training that is not among them is done.
        watcher: is told.
    """

    def __init__(self, tasks: Sequence[Task], watcher: Watcher) -> None:
        self.waiting = list(tasks)
        self.watcher = watcher
        self._pending = {task.out for task in tasks}
        self._failed: dict[Path, str] = {}
        watcher.pace.plan(tasks)

    def next(self) -> Task | None:
        """Hand out the first task that can begin; None while there is none."""
        for task in list(self.waiting):
            if task.init in self._failed:
                self.waiting.remove(task)
                self.fail(task, f"its pre-training failed: {self._failed[task.init]}")
            elif task.init not in self._pending:
                self.waiting.remove(task)
                self.watcher.started(task)
                return task
        return None

    def end(self, task: Task, outcome: dict[str, Any]) -> None:
        """Take a task back; its outcome is written down already."""
        self._pending.discard(task.out)
        if outcome["status"] != "finished":
            self._failed[task.out] = outcome["reason"]
        self.watcher.ended(task, outcome)

    def fail(self, task: Task, reason: str) -> None:
        """Take back a task that could not write down what became of it."""
        outcome = {"status": "failed", "reason": reason}
        task.out.mkdir(parents=True, exist_ok=True)
        record_outcome(task.out, **outcome)
        self.end(task, outcome)
