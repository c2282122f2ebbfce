"""Lightning Fabric, the engine of devices, precision and processes."""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy

from handful.errors import HandfulError, RunError, UsageError
from handful.training.processes import Processes

ALONE = Processes()


def make_fabric(
    device: torch.device, precision: str, processes: Processes = ALONE, *, trains_all: bool = False
) -> Fabric:
    """Return Fabric for one device, or one for each process; what it would print is left to our own lines.

    Args:
        device: of ``choose_device``; only its kind counts where there are several processes.
        precision: of ``choose_precision``.
        processes: of the training.
        trains_all: whether every step gives every trainable parameter a gradient.
    """
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    chosen: Any = precision
    if processes.world == 1:
        return Fabric(
            accelerator=device.type, devices=1 if device.index is None else [device.index], precision=chosen
        )
    strategy = DDPStrategy(find_unused_parameters=not trains_all)
    return Fabric(
        accelerator=device.type,
        devices=processes.devices,
        num_nodes=processes.nodes,
        strategy=strategy,
        precision=chosen,
    )


@contextlib.contextmanager
def started(
    device: torch.device, precision: str, processes: Processes, *, trains_all: bool = False
) -> Iterator[Fabric]:
    """Yield Fabric with all processes running and joined; one that fails takes the others along.

    On one machine the first process starts the others, each with the same command line.

    Raises:
        UsageError: this program trains with another number of processes already.
        RunError: in a process that is not the first, whatever went wrong there.
    """
    joined = dist.get_world_size() if dist.is_available() and dist.is_initialized() else None
    if joined is not None and joined != processes.world:
        raise UsageError(
            f"this program runs as {joined} processes already and cannot train with {processes.world}; use the same "
            "devices and nodes for all of its trainings."
        )
    fabric = make_fabric(device, precision, processes, trains_all=trains_all)
    if processes.world == 1:
        yield fabric
        return
    try:
        _follow_parent()
        fabric.launch()
        if fabric.global_rank != processes.rank:
            raise RunError(f"process {processes.rank} is number {fabric.global_rank} to Lightning.")
        yield fabric
    except BaseException as error:
        for child in getattr(fabric.strategy.launcher, "procs", ()):
            child.terminate()
        if processes.first or isinstance(error, HandfulError) or not isinstance(error, Exception):
            raise
        raise RunError(
            f"process {processes.rank} of {processes.world} stopped, perhaps because another one did: {error}"
        ) from error


def _follow_parent() -> None:
    """Let the processes this one starts end with it, however it ends; waiting for it, they would hang."""
    parent = os.environ.get("HANDFUL_PARENT")
    if parent in (None, str(os.getpid())) or int(os.environ.get("LOCAL_RANK", 0)) == 0:
        os.environ["HANDFUL_PARENT"] = str(os.getpid())
        return

    def watch() -> None:
        while str(os.getppid()) == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()
