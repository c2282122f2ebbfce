"""A study's tasks as jobs of a cluster's scheduler, by submitit: SLURM, or processes of this machine to try it.

This process hands tasks to the scheduler, waits, and writes down what the jobs could not. It trains nothing itself and
may run on a login node; the study's folder and the data must lie where all nodes see them.

References:
    submitit. https://github.com/facebookincubator/submitit
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from handful.errors import UsageError
from handful.studies.pace import Watcher
from handful.studies.queue import Queue
from handful.studies.tasks import Task, perform
from handful.studies.workers import PATIENCE_SECONDS, sigterm_raises

SCHEDULERS = ("slurm", "local")
"""Where jobs can go; ``local`` starts processes on this machine, to try the way without a cluster."""

ASK_SECONDS = {"slurm": 10.0, "local": 0.2}
"""Between two looks at the jobs; a scheduler is not to be asked too often."""

HOURS = 24
"""A job's time unless ``timeout_min`` says otherwise; one that needs more is queued again and goes on."""


@dataclass(frozen=True)
class Job:
    """One task, as the node does it."""

    task: Task
    device: str
    threads: int | None

    def __call__(self) -> dict[str, Any]:
        return perform(self.task, device=self.device, threads=self.threads)

    def checkpoint(self) -> Any:
        """Queue it again where the scheduler takes the node away or the time is over: the run goes on where it was."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def check_cluster(scheduler: str, options: Sequence[str], *, device: str, precision: str) -> dict[str, Any]:
    """Return the options of the jobs, after a look at all that can be seen to be wrong.

    Args:
        scheduler: of ``SCHEDULERS``.
        options: ``NAME=VALUE`` as submitit names them, for example ``slurm_partition=gpu``, ``gpus_per_node=1``.
        device, precision: of the jobs: what this machine has says nothing of the nodes, so neither can be ``auto``.

    Raises:
        UsageError: submitit is missing, an unknown scheduler, an option that is none, ``auto``.
    """
    if scheduler not in SCHEDULERS:
        raise UsageError(f"--cluster {scheduler}: expected {' or '.join(SCHEDULERS)}.")
    try:
        import submitit
    except ImportError:
        raise UsageError(
            "--cluster needs submitit; install it with: pip install 'handful[cluster]'"
        ) from None
    if device not in ("cpu", "cuda"):
        raise UsageError(f"--cluster needs --device cpu or cuda, as the nodes have it; found {device}.")
    if precision == "auto":
        raise UsageError(
            "--cluster needs --precision 32, bf16 or fp16, as suits the nodes; this machine cannot know."
        )
    values: dict[str, Any] = {"timeout_min": HOURS * 60, "name": "handful"}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals or not name:
            raise UsageError(f"--cluster-set {option}: expected NAME=VALUE, for example slurm_partition=gpu.")
        values[name] = yaml.safe_load(value)
    try:
        with tempfile.TemporaryDirectory() as folder:  # an executor makes its folder at once
            submitit.AutoExecutor(folder=folder, cluster=scheduler).update_parameters(**values)
    except (NameError, RuntimeError, AssertionError, TypeError) as error:
        raise UsageError(f"--cluster {scheduler}: {error}") from None
    return values


def on_cluster(
    tasks: Sequence[Task],
    watcher: Watcher,
    *,
    scheduler: str,
    options: Mapping[str, Any],
    logs: Path,
    jobs: int,
    device: str,
    threads: int | None,
) -> None:
    """Do all tasks as jobs of a scheduler.

    Args:
        tasks: those that wait come after what they wait for; a pre-training that is not among them is done.
        watcher: is told.
        scheduler, options: of ``check_cluster``.
        logs: folder for what the jobs print.
        jobs: at most so many are in the scheduler's queue or at work.
        device, threads: of each job.

    Raises:
        Stopped, KeyboardInterrupt: this process was told to stop. Its jobs are cancelled; the same command goes on from
            their checkpoints.
    """
    import submitit

    executor = submitit.AutoExecutor(folder=logs, cluster=scheduler)
    executor.update_parameters(**options)
    queue = Queue(tasks, watcher)
    running: dict[Task, Any] = {}
    with sigterm_raises():
        try:
            while True:
                while len(running) < jobs and (task := queue.next()) is not None:
                    running[task] = executor.submit(Job(task, device, threads))
                if not running:
                    return
                time.sleep(ASK_SECONDS[scheduler])
                for task, job in list(running.items()):
                    if not job.done():
                        continue
                    del running[task]
                    error = job.exception()
                    if error is None:
                        queue.end(task, job.result())
                    else:
                        reason = f"its job {job.job_id} ended: {_last_line(error)} (what it printed: {logs})"
                        queue.fail(task, reason)
        finally:
            _cancel(list(running.values()))


def _cancel(jobs: Sequence[Any]) -> None:
    """Cancel jobs and see them end, so that the same command finds their folders free."""
    for job in jobs:
        job.cancel()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline and not all(job.done(force_check=True) for job in jobs):
        time.sleep(1)


def _last_line(error: BaseException) -> str:
    """Return what an error of submitit says in the end; before it stands all that the job printed."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
