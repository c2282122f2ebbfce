"""What processes that train together must agree on at every step, so that all take the same turn."""

import signal
import time

import torch
import torch.distributed as dist
from lightning_fabric import Fabric


class Lockstep:
    """One clock, and one decision to stop, for all processes; without company the own ones.

    They talk through the processors, so that no step waits for a GPU.

    Args:
        fabric: launched.
    """

    def __init__(self, fabric: Fabric) -> None:
        self.first = fabric.is_global_zero
        self.group = dist.new_group(backend="gloo") if fabric.world_size > 1 else None

    def agree(self, caught: str = "") -> tuple[float, str]:
        """Return the first process's time in seconds, and a signal that any process caught.

        Args:
            caught: name of the signal that told this process to end.
        """
        now, number = self._largest(
            time.monotonic() if self.first else -1.0, int(signal.Signals[caught]) if caught else 0
        )
        return now, signal.Signals(int(number)).name if number else ""

    def any(self, happened: bool) -> bool:
        """Say whether it happened in any process."""
        return bool(self._largest(float(happened))[0])

    def same(self, number: int) -> bool:
        """Say whether all processes hold the same number."""
        largest, smallest = self._largest(number, -number)
        return largest == -smallest

    def _largest(self, *numbers: float) -> list[float]:
        if self.group is None:
            return list(numbers)
        said = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(said, op=dist.ReduceOp.MAX, group=self.group)
        return said.tolist()
