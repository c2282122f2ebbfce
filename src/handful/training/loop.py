"""The training loop: one for every method, on Lightning Fabric, resumable to the bit.

A step is a pure function of (weights, optimiser state, averages, seed, step number): all randomness comes from the
step number, so a checkpoint needs no generator states and a resumed run repeats the uninterrupted one exactly.

Several processes each take their rows of the batch; norms see the whole batch, gradients are averaged (DDP), and all
agree on the clock, so that they draw, log and stop at the same steps.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision, Precision
from torch import Tensor, nn

from handful.data.sampling import Source
from handful.errors import NotFinite, RunError, Stopped, UsageError
from handful.methods.contract import Method
from handful.networks.synchronised import synchronise_norms
from handful.networks.teacher import Teacher
from handful.training.checkup import Checkup
from handful.training.contention import Contention
from handful.training.folder import RunFolder
from handful.training.lockstep import Lockstep
from handful.training.schedules import SCHEDULES, ema_decay


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """How long and how fast to train.

    Attributes:
        steps: optimiser steps; None lets ``epochs`` or ``max_time_s`` decide.
        epochs: passes over all slices (2D) or volumes (3D) the method learns from, as papers count; becomes ``steps``
            when the run starts.
        max_time_s: seconds of training, pauses not counted; the schedules follow the clock then, so such a run is
            resumable but not repeatable to the bit.
        optimiser: ``adamw``, ``adam`` or ``sgd``.
        lr: peak learning rate.
        momentum: of SGD; nnU-Net's 0.99.
        nesterov: whether SGD looks ahead, as nnU-Net's does.
        weight_decay: decoupled (AdamW) or L2 (SGD, Adam); never on biases and norm weights.
        schedule: of the learning rate over progress.
        warm_up: share of the run over which the schedule's rate is reached linearly from 0 (one_cycle has its own).
        clip: largest gradient norm; nnU-Net's 12. Infinity never clips.
        ema_horizon: share of the run over which weights are averaged; the average is what predicts. 0: the last ones.
        stop_on_collapse: whether a pre-training whose embeddings have become one point ends with an error.
        patience: probes of a pre-training, ten over a run, that may bring no improvement before it stops; 0: never.
        checkpoint_every_s: seconds between checkpoints.
        rows: how many rows ``metrics.jsonl`` gets over a run.
        snapshots: averaged weights kept on the way, evenly spaced, besides those at the end.
        compile: compile the network (needs a C compiler; pays on long runs).
    """

    steps: int | None = None
    epochs: float | None = None
    max_time_s: float | None = None
    optimiser: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = 2e-3
    momentum: float = 0.99
    nesterov: bool = True
    weight_decay: float = 1e-2
    schedule: Literal["one_cycle", "polynomial", "cosine", "step", "constant"] = "one_cycle"
    warm_up: float = 0.0
    clip: float = 12.0
    ema_horizon: float = 0.04
    stop_on_collapse: bool = True
    patience: int = 0
    checkpoint_every_s: float = 60.0
    rows: int = 200
    snapshots: int = 0
    compile: bool = False

    def __post_init__(self) -> None:
        if sum(length is not None for length in (self.steps, self.epochs, self.max_time_s)) != 1:
            raise UsageError(
                "give a number of steps, a number of epochs or a time limit, and only one of them."
            )
        if self.epochs is not None and self.epochs <= 0:
            raise UsageError(f"epochs must be positive, found {self.epochs}.")
        if self.steps is not None and self.steps < 1:
            raise UsageError(f"steps must be at least 1, found {self.steps}.")
        if self.max_time_s is not None and self.max_time_s <= 0:
            raise UsageError(f"the time limit must be positive, found {self.max_time_s} s.")
        if self.patience < 0:
            raise UsageError(f"patience must be 0 or more probes, found {self.patience}.")
        if self.snapshots < 0:
            raise UsageError(f"snapshots must be 0 or more, found {self.snapshots}.")
        if self.lr <= 0 or self.clip <= 0 or not 0 <= self.ema_horizon <= 1 or not 0 <= self.warm_up < 1:
            raise UsageError("lr and clip must be positive, ema_horizon in [0, 1] and warm_up in [0, 1).")

    def in_steps(self, *, images: int, batch: int) -> "LoopSettings":
        """Return these settings with ``epochs`` turned into steps: the last, smaller batch of an epoch is left out."""
        if self.epochs is None:
            return self
        return replace(self, epochs=None, steps=max(1, round(self.epochs * max(1, images // batch))))


@dataclass
class Progress:
    """Where a run is: reported to whoever shows it."""

    step: int
    steps: int | None
    fraction: float
    seconds: float
    row: Mapping[str, float]

    @property
    def seconds_left(self) -> float:
        """Projected from the speed so far."""
        return self.seconds * (1 - self.fraction) / max(self.fraction, 1e-9)


def fit(
    method: Method,
    source: Callable[[int], Source],
    *,
    settings: LoopSettings,
    fabric: Fabric,
    folder: RunFolder,
    seed: int,
    prefetch: bool = False,
    checkup: Checkup | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
    snapshot: Callable[[int, Mapping[str, nn.Module]], None] | None = None,
) -> dict[str, nn.Module]:
    """Train ``method`` and return its exported parts with averaged weights.

    Args:
        method: on the CPU; moved to the fabric's device.
        source: step number -> what the method draws its batch from.
        settings: length, optimiser, schedules.
        fabric: device, precision, and the processes that train together, launched.
        folder: where checkpoints and metrics go; an existing checkpoint is continued, by all processes from the same.
        seed: of the run; also drives dropout.
        checkup: watches a pre-training; None watches nothing.
        prefetch: prepare the next batch in a thread (for cases streamed from disk).
        report: called at every row of the metrics.
        snapshot: called with the step and the averaged parts at each of ``settings.snapshots``.

    Raises:
        RunError: a loss became NaN or infinite (the term is named, the last checkpoint kept), the disk is full, the
            run was interrupted (a checkpoint was saved), processes do not see the same checkpoint.
    """
    dims = len(source(0).patch)
    memory_format = torch.channels_last if dims == 2 else torch.channels_last_3d
    method = method.to(fabric.device)
    for module in method.modules():  # weights only: the other tensors of a module have fewer axes
        for parameter in module.parameters(recurse=False):
            if parameter.ndim == dims + 2:
                # .to, not .contiguous: with one input channel only .to writes the strides convolutions go by
                parameter.data = parameter.data.to(memory_format=memory_format)
    if fabric.world_size > 1:
        synchronise_norms(method)
    lockstep = Lockstep(fabric)
    half = fabric.strategy.precision
    scaled = isinstance(half, MixedPrecision) and half.scaler is not None  # float16 only
    optimiser = _optimiser(method, settings, fused=not scaled)  # fused, it would unscale after the clipping
    averages = nn.ModuleDict({name: Teacher(part) for name, part in method.exports().items()})
    wrapped, optimiser = fabric.setup(method, optimiser)
    wrapped.mark_forward_method("step")

    step, before = 0, 0.0
    state = folder.load_checkpoint(fabric.device)
    if state is not None:
        method.load_state_dict(state["method"])
        optimiser.load_state_dict(state["optimiser"])
        averages.load_state_dict(state["averages"])
        half.load_state_dict(state["precision"])
        if checkup is not None:
            checkup.load_state_dict(state["checkup"])
        step, before = int(state["step"]), float(state["seconds"])
        folder.say(f"continuing at step {step} after {before:.0f} s of training")
    if not lockstep.same(step):
        raise RunError(
            f"{folder.checkpoint} is not the same file for all processes (here it is of step {step}). --out must be on "
            "storage that all machines share."
        )
    folder.keep_metrics_until(step)

    steps, limit = settings.steps, settings.max_time_s
    every = max(1, steps // settings.rows) if steps else 1
    window, contention = _Window(), Contention()
    now, caught = lockstep.agree()
    stopped = lockstep.any(checkup is not None and checkup.stopped)
    started = saved = written = now
    fraction = _fraction(step, before, steps, limit)
    method.train()
    with _Interrupt() as interrupt:

        def progress(number: int) -> float:
            return _fraction(number, before + now - started, steps, limit)

        def drawn(number: int, progress: float) -> Any:
            return method.batch(replace(source(number), progress=progress))

        for number, batch in _batches(drawn, progress, step, prefetch=prefetch):
            fraction = progress(number)
            if fraction >= 1 or caught or stopped:
                break
            due = (number + 1) % every == 0 if steps else now - written >= (limit or 0) / settings.rows
            # dropout: the only randomness left to the global generator
            torch.manual_seed((seed << 32) + (fabric.global_rank << 26) + number)
            lr = settings.lr * SCHEDULES[settings.schedule](fraction)
            if fraction < settings.warm_up:
                lr *= fraction / settings.warm_up
            for group in optimiser.param_groups:
                group["lr"] = lr
            wall, cpu = time.monotonic(), time.thread_time()
            optimiser.zero_grad(set_to_none=True)
            try:
                # fabric itself applies the precision to forward() only, not to step()
                with fabric.autocast():
                    output = wrapped.step(_channels_last(batch, memory_format), fraction)
            except NotFinite as error:
                raise _diverged(folder, *window.first_bad() or (number + 1, str(error))) from error
            gradients: Mapping[str, Tensor] = {}
            if checkup is not None and due:
                gradients = checkup.gradients(method, output)
            fabric.backward(output.loss)
            norm = fabric.clip_gradients(wrapped, optimiser, max_norm=settings.clip, error_if_nonfinite=False)
            step = number + 1
            window.add(
                step, {"loss": output.loss.detach(), **output.logs, **_norm(norm, scaled), **gradients}
            )
            optimiser.step()
            try:
                method.after_step(fraction)
            except NotFinite as error:
                raise _diverged(folder, *window.first_bad() or (step, str(error))) from error
            now, caught = lockstep.agree(interrupt.caught)
            after = progress(step)
            decay = ema_decay(number, after - fraction, horizon=settings.ema_horizon)
            for name, part in method.exports().items():
                average = averages[name]
                assert isinstance(average, Teacher)
                average.update(part, decay)
            if snapshot is not None and _snapshot_due(fraction, after, settings.snapshots):
                snapshot(step, _averaged(averages))
            if checkup is not None:
                checkup.add(output)

            # elsewhere the thread waits for the device, or for the other processes
            if fabric.device.type == "cpu" and fabric.world_size == 1:
                contention.add(time.thread_time() - cpu, time.monotonic() - wall)
            checkpoint = now - saved >= settings.checkpoint_every_s
            if due or checkpoint or step == steps:
                row = _row(window, fabric, folder, step, steps, before + now - started, lr, now - written)
                if checkup is not None:
                    row |= checkup.row(method, row, after)
                    stopped = lockstep.any(checkup.stopped)
                written, window = now, _Window()
                folder.append_metrics(row)
                report(Progress(step, steps, after, row["seconds"], row))
                if slowed := contention.sentence():
                    folder.say(slowed)
            if checkpoint:
                _save(folder, method, optimiser, averages, half, checkup, step, before + now - started)
                saved = now
    seconds = before + now - started
    if step != (int(state["step"]) if state else 0):
        # of the steps since the last row: a checkpoint is never worse than it
        _finite(window, fabric, folder, step)
        _save(folder, method, optimiser, averages, half, checkup, step, seconds)
    if stopped:
        folder.say(f"stopped after {step} steps: the probe has not improved for {settings.patience} probes")
    if caught and _fraction(step, seconds, steps, limit) < 1:
        words = f"stopped at step {step} by {caught}; run the same command again to continue exactly there."
        raise KeyboardInterrupt(words) if caught == "SIGINT" else Stopped(words)
    return _averaged(averages)


def _optimiser(method: nn.Module, settings: LoopSettings, *, fused: bool) -> torch.optim.Optimizer:
    trained = [p for p in method.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if settings.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.nesterov)
    kind = torch.optim.Adam if settings.optimiser == "adam" else torch.optim.AdamW
    return kind(groups, lr=settings.lr, fused=fused)


def _norm(norm: Tensor | None, scaled: bool) -> dict[str, Tensor | None]:
    """Return what is logged of a gradient norm: under float16 an overflow, whose step is skipped, is only counted."""
    if norm is None or not scaled:
        return {"gradient_norm": norm}
    finite = torch.isfinite(norm)
    return {"gradient_norm": norm.where(finite, 0.0), "overflow": (~finite).float()}


def _averaged(averages: nn.ModuleDict) -> dict[str, nn.Module]:
    return {name: average.module for name, average in averages.items() if isinstance(average, Teacher)}


def _snapshot_due(before: float, after: float, count: int) -> bool:
    """Say whether a step passed one of ``count`` points that divide the run evenly; its end is none of them."""
    passed, reached = (int(fraction * (count + 1) + 1e-9) for fraction in (before, after))
    return passed < reached <= count


def _fraction(step: int, seconds: float, steps: int | None, limit: float | None) -> float:
    return step / steps if steps else seconds / (limit or 1.0)


def _batches(
    draw: Callable[[int, float], Any], progress: Callable[[int], float], first: int, *, prefetch: bool
) -> Iterator[tuple[int, Any]]:
    """Yield (step number, batch) from ``first`` on; with ``prefetch`` one batch is made ahead in a thread.

    The thread is told the progress: if it read the clock itself, processes could see different times.
    """
    step = first
    if not prefetch:
        while True:
            yield step, draw(step, progress(step))
            step += 1
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(draw, first, progress(first))
        while True:
            batch = ahead.result()
            ahead = pool.submit(draw, step + 1, progress(step + 1))
            yield step, batch
            step += 1


def _channels_last(batch: Any, memory_format: torch.memory_format) -> Any:
    """Lay images out as convolutions like them; other fields stay."""
    wide = 4 if memory_format == torch.channels_last else 5
    return type(batch)(
        *(x.to(memory_format=memory_format) if isinstance(x, Tensor) and x.ndim == wide else x for x in batch)
    )


class _Window:
    """Means of the logged terms since the last row, and which was no number first; on the device until asked for."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.bad: dict[str, Tensor] = {}

    def add(self, step: int, logs: Mapping[str, Tensor | None]) -> None:
        for name, value in logs.items():
            if value is not None:
                value = value.detach().float()
                bad = torch.where(value.isfinite(), math.inf, float(step))
                self.sums[name] = self.sums[name] + value if name in self.sums else value
                self.bad[name] = torch.minimum(self.bad[name], bad) if name in self.bad else bad
                self.counts[name] = self.counts.get(name, 0) + 1

    def first_bad(self, fabric: Fabric | None = None) -> tuple[int, str] | None:
        """Return the first step with a term that is no number, and which; None if all are.

        The loss, its gradient and all later steps only follow from it. With ``fabric``, of all processes.
        """
        if not self.bad:
            return None
        steps = torch.stack(list(self.bad.values()))
        if fabric is not None and fabric.world_size > 1:
            everywhere = fabric.all_reduce(steps, reduce_op="min")
            assert isinstance(everywhere, Tensor)
            steps = everywhere
        first = float(steps.min())
        if math.isinf(first):
            return None
        names = [name for name, step in zip(self.bad, steps.tolist()) if step == first]
        terms = [n for n in names if n not in ("loss", "gradient_norm") and not n.startswith("health/")]
        return int(first), f"{', '.join(terms or names[:1])} is not finite."

    def means(self, fabric: Fabric) -> dict[str, float]:
        """Return the means over steps and processes."""
        if fabric.world_size > 1 and self.sums:
            means = torch.stack([total / self.counts[name] for name, total in self.sums.items()])
            everywhere = fabric.all_reduce(means, reduce_op="mean")
            assert isinstance(everywhere, Tensor)
            return dict(zip(self.sums, everywhere.tolist()))
        return {name: float(total) / self.counts[name] for name, total in self.sums.items()}


def _row(
    window: _Window,
    fabric: Fabric,
    folder: RunFolder,
    step: int,
    steps: int | None,
    seconds: float,
    lr: float,
    passed: float,
) -> dict[str, float]:
    means = _finite(window, fabric, folder, step)
    count = window.counts.get("loss", 1)
    return {
        "step": step,
        "steps": steps or 0,
        "seconds": seconds,
        **means,
        "lr": lr,
        "steps_per_s": count / max(passed, 1e-9),
    }


def _finite(window: _Window, fabric: Fabric, folder: RunFolder, step: int) -> dict[str, float]:
    """Return the means of the window, or raise ``RunError`` with the term that was no number first."""
    means = window.means(fabric)
    bad = [name for name, value in means.items() if not math.isfinite(value)]
    if bad:
        raise _diverged(folder, *window.first_bad(fabric) or (step, f"{', '.join(bad)} is not finite."))
    return means


def _diverged(folder: RunFolder, step: int, what: str) -> RunError:
    kept = (
        "the last checkpoint is from before" if folder.checkpoint.exists() else "there is no checkpoint yet"
    )
    return RunError(
        f"step {step}: {what} The run stopped; {kept}. Try a smaller learning rate (--set loop.lr=...) or "
        "--precision 32."
    )


def _save(
    folder: RunFolder,
    method: Method,
    optimiser: Any,
    averages: nn.ModuleDict,
    half: Precision,
    checkup: Checkup | None,
    step: int,
    seconds: float,
) -> None:
    folder.save_checkpoint(
        {
            "method": method.state_dict(),
            "optimiser": optimiser.state_dict(),
            "averages": averages.state_dict(),
            "precision": half.state_dict(),
            "checkup": checkup.state_dict() if checkup is not None else None,
            "step": step,
            "seconds": seconds,
        }
    )


class _Interrupt:
    """Turn the first SIGINT or SIGTERM into a request to stop after the current step; a second one stops at once."""

    def __init__(self) -> None:
        self.caught = ""
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> "_Interrupt":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.previous[number] = signal.signal(number, self._catch)
        return self

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self.caught = signal.Signals(number).name
        signal.signal(number, self.previous[number])

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
