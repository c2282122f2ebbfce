"""One piece of a study's work, done in whichever process: a pre-training, or a run with its predictions."""

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from handful.artefacts import read_json
from handful.device import choose_device
from handful.errors import HandfulError, RunError, Stopped
from handful.inference.predict import predict
from handful.studies.energy import Meter
from handful.studies.folder import record_outcome
from handful.training.loop import Progress
from handful.training.recipe import parse_duration
from handful.training.run import pretrain, train


@dataclass(frozen=True, kw_only=True)
class Task:
    """A training, and for a run its predictions.

    Attributes:
        kind: which of the two.
        out: its run folder.
        words: what it is, for people.
        data: manifest of the cases that may train.
        splits: the draws.
        method: which.
        labels: budget; None where it learns from images alone.
        draw: of the budget.
        seed: of the weights and every random draw.
        steps: its length, or None.
        max_time: its length, or None.
        settings: as of ``--set``.
        snapshots: weights to keep on the way.
        plan: file to follow, or None.
        begun: folder whose plan and fingerprint the run starts with, or None.
        init: run folder of the pre-training it waits for and starts from, or None.
        test: manifest of the images to predict, or None.
        precision: as of ``--precision``.
    """

    kind: Literal["pretrain", "train"]
    out: Path
    words: str
    data: Path
    splits: Path
    method: str
    labels: str | None
    draw: int
    seed: int
    steps: int | None
    max_time: str | None
    settings: tuple[str, ...]
    snapshots: int = 0
    plan: Path | None = None
    begun: Path | None = None
    init: Path | None = None
    test: Path | None = None
    precision: str = "auto"

    @property
    def weight(self) -> float:
        """How long it is, beside others of the same study."""
        return float(self.steps) if self.steps else parse_duration(self.max_time or "1s")


def perform(
    task: Task,
    *,
    device: str,
    threads: int | None,
    report: Callable[[float], None] = lambda fraction: None,
    alone: bool = False,
) -> dict[str, Any]:
    """Do it, or go on with it, and write down what became of it.

    Args:
        task: what to do.
        device: where.
        threads: CPU threads.
        report: called with the share that is done.
        alone: no other task is done beside it, so that what the machine takes is taken by it.

    Returns:
        The outcome as written: ``status``, ``reason`` of a failure, time, memory, energy.

    Raises:
        Stopped, KeyboardInterrupt: the process was told to stop; nothing is written down then.
    """
    memory = _Memory(choose_device(device))
    # of a run that goes on, the energy of its beginning is not known
    begins = not list(task.out.glob("**/checkpoint.pt"))
    meter = Meter(choose_device(device)) if alone and begins else None
    try:
        if task.kind == "pretrain":
            _train(task, device, threads, report)
        else:
            _train(task, device, threads, lambda fraction: report(0.98 * fraction))
            _predict(task, device, threads)
    except Stopped:
        raise
    except Exception as error:  # whatever one run provokes, the others are still wanted
        reason = str(error) if isinstance(error, HandfulError) else f"{type(error).__name__}: {error}"
        outcome: dict[str, Any] = {"status": "failed", "reason": reason}
    else:
        manifest = read_json(task.out / "manifest.json")
        outcome = {
            "status": "finished",
            "reason": "",
            "steps": manifest["steps"],
            "seconds": manifest["seconds"],
            "peak_memory_mb": memory.peak_mb(),
            "energy_wh": meter.watt_hours() if meter else None,
        }
    finally:
        if meter:
            meter.stop()
    try:
        record_outcome(task.out, **outcome)
    except RunError as error:  # a full disk: the outcome is still told to the audit log
        outcome["reason"] = outcome["reason"] or str(error)
        outcome["status"] = "failed"
    return outcome


def _train(task: Task, device: str, threads: int | None, report: Callable[[float], None]) -> None:
    if task.begun is not None and not (task.out / "recipe.yaml").exists():
        task.out.mkdir(parents=True, exist_ok=True)
        for name in ("fingerprint.json", "plan.yaml"):
            shutil.copy(task.begun / name, task.out / name)

    def look(progress: Progress) -> None:
        report(progress.fraction)

    common: dict[str, Any] = {
        "method": task.method, "labels": task.labels, "draw": task.draw, "splits": task.splits, "seed": task.seed,
        "steps": task.steps, "max_time": task.max_time, "plan": task.plan, "device": device,
        "precision": task.precision, "threads": threads, "quiet": True, "report": look,
    }  # fmt: skip
    if task.kind == "pretrain":
        pretrain(task.data, task.out, set_=task.settings, **common)
    else:
        settings = (*task.settings, *([f"loop.snapshots={task.snapshots}"] if task.snapshots else []))
        train(task.data, task.out, set_=settings, init=task.init, **common)


def _predict(task: Task, device: str, threads: int | None) -> None:
    """Predict the test images by the last weights and by each snapshot, whose weights are then not needed any more."""
    assert task.test is not None
    predict([task.out], task.test, task.out / "predictions", device=device, threads=threads)
    for weights in sorted((task.out / "snapshots").glob("step-*.safetensors")):
        predict([weights], task.test, weights.with_suffix(""), device=device, threads=threads)
        weights.unlink()


class _Memory:
    """The most memory this process (or its GPU) holds from now on."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.fresh = True
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        try:  # Linux forgets the peak so far; elsewhere a process has one peak for all it did
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            self.fresh = False

    def peak_mb(self) -> float | None:
        """Return it in MB; None where it cannot be told from what this process did before."""
        if self.device.type == "cuda":
            return round(torch.cuda.max_memory_allocated(self.device) / 1e6, 1)
        if self.fresh:
            found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
            return round(int(found[1]) * 1024 / 1e6, 1) if found else None
        return None
