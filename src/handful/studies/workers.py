"""Who does a study's tasks: this process one after the other, or several processes beside each other."""

import contextlib
import multiprocessing.connection
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

from handful.errors import Stopped
from handful.studies.pace import Watcher
from handful.studies.queue import Queue
from handful.studies.tasks import Task, perform

REPORT_SECONDS = 1.0
"""Between two reports of a process about its task."""

PATIENCE_SECONDS = 120.0
"""For processes that were told to stop and are saving where they are."""


def work(
    tasks: Sequence[Task], watcher: Watcher, *, jobs: int, devices: Sequence[str], threads: int | None
) -> None:
    """Do all tasks.

    Args:
        tasks: those that wait come after what they wait for; a pre-training that is not among them is done.
        watcher: is told.
        jobs: processes; 1 works in this one.
        devices: handed to the processes in turn.
        threads: CPU threads of each process.

    Raises:
        Stopped, KeyboardInterrupt: this process was told to stop; all tasks have saved where they were.
    """
    queue = Queue(tasks, watcher)
    if jobs == 1:
        _alone(queue, device=devices[0], threads=threads)
    else:
        _together(queue, jobs=min(jobs, len(tasks)), devices=devices, threads=threads)


def _alone(queue: Queue, *, device: str, threads: int | None) -> None:
    while (task := queue.next()) is not None:

        def report(share: float, task: Task = task) -> None:
            queue.watcher.at(task, share)

        queue.end(task, perform(task, device=device, threads=threads, report=report, alone=True))


@dataclass
class _Worker:
    """A process and the line to it."""

    process: subprocess.Popen[bytes]
    line: Connection
    task: Task | None = None


def _together(queue: Queue, *, jobs: int, devices: Sequence[str], threads: int | None) -> None:
    workers: dict[int, _Worker] = {}
    with sigterm_raises():
        try:
            while True:
                for number in range(jobs):
                    if number in workers and workers[number].task is not None:
                        continue
                    task = queue.next()
                    if task is None:
                        break
                    if number not in workers:
                        workers[number] = _start(devices[number % len(devices)], threads)
                    workers[number].task = task
                    workers[number].line.send(task)
                busy = [worker for worker in workers.values() if worker.task is not None]
                if not busy:
                    return
                ready = multiprocessing.connection.wait([worker.line for worker in busy], timeout=60)
                for number, worker in list(workers.items()):
                    if worker.task is None or worker.line not in ready:
                        continue
                    task = worker.task
                    try:
                        kind, content = worker.line.recv()
                    except (EOFError, OSError):
                        del workers[number]
                        queue.fail(task, _why(worker.process.wait()))
                        continue
                    if kind == "at":
                        queue.watcher.at(task, content)
                    else:
                        worker.task = None
                        queue.end(task, content)
        finally:
            _dismiss(list(workers.values()))


def _why(code: int) -> str:
    """Say why a task ended with its process."""
    if code >= 0:
        return f"its process ended with exit code {code}."
    name = signal.Signals(-code).name
    perhaps = "; perhaps memory ran out (fewer --jobs need less)" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{perhaps}."


def _start(device: str, threads: int | None) -> _Worker:
    """Start a process of its own session: an interrupt of the terminal reaches it through this one, once."""
    mine, theirs = socket.socketpair()
    arguments = f"{theirs.fileno()}, {device!r}, {threads!r}, {os.getpid()}"
    code = f"from handful.studies.workers import serve; serve({arguments})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        pass_fds=[theirs.fileno()],
        env=environment,
        start_new_session=True,
        stdin=subprocess.DEVNULL,
    )
    theirs.close()
    return _Worker(process, Connection(mine.detach()))


def serve(descriptor: int, device: str, threads: int | None, parent: int) -> None:
    """Be one of the processes: do tasks as they come until there are no more.

    Args:
        descriptor: of the line to the process that hands them out.
        device: where to compute.
        threads: CPU threads.
        parent: that process; when it is gone, however it ended, this one ends too.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()
    line = Connection(descriptor)
    told = 0.0
    while True:
        try:
            task = line.recv()
        except EOFError:
            return

        def report(share: float) -> None:
            nonlocal told
            if time.monotonic() - told >= REPORT_SECONDS:
                told = time.monotonic()
                try:
                    line.send(("at", share))
                except OSError as error:
                    raise Stopped("the study it belongs to is gone.") from error

        try:
            outcome = perform(task, device=device, threads=threads, report=report)
        except (Stopped, KeyboardInterrupt):
            return
        line.send(("done", outcome))


def _dismiss(workers: Sequence[_Worker]) -> None:
    """End all processes; those in the middle of a task save where they are first."""
    for worker in workers:
        if worker.task is None:
            worker.line.close()
        else:  # its line stays open: it may still tell how far it is
            worker.process.terminate()
    for worker in workers:
        try:
            worker.process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
        worker.line.close()


@contextlib.contextmanager
def sigterm_raises() -> Iterator[None]:
    """Let SIGTERM end the study as Ctrl-C does: its processes are told, and save where they are."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise Stopped("the study was stopped by SIGTERM; run the same command again to continue.")

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
