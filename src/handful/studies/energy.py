"""The energy a run takes, by the counters of the machine: its GPU's, and those of its processor packages and memory.

Linux shows the counters of Intel's and AMD's processors (RAPL) as files, often to root alone; NVIDIA's driver those of
its GPUs, through the package ``nvidia-ml-py``. Power supplies, disks and fans have no counter: wall plugs say more.
"""

import contextlib
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

POWERCAP = Path("/sys/class/powercap")
SECONDS = 30.0
"""Between two readings: a counter of 65 kJ is full after five minutes at 200 W, and begins again."""


class Meter:
    """Joules from now on, of all that the machine does.

    Args:
        device: where the run computes. Where that is a GPU, a processor that shows no counter is left out, but without
            the GPU's own nothing is measured.
        powercap: folder of the processor's counters.
    """

    def __init__(self, device: torch.device, *, powercap: Path = POWERCAP) -> None:
        self._counters: dict[str, Callable[[], int | None]] = _packages(powercap)
        if device.type == "cuda":
            self._counters["gpu"] = _gpu(device)
        self._full = {name: _read(powercap / name / "max_energy_range_uj") for name in self._counters}
        if device.type == "cuda":
            self._counters = {
                n: read for n, read in self._counters.items() if n == "gpu" or read() is not None
            }
        self._last = {name: read() for name, read in self._counters.items()}
        self._microjoules = 0
        self._over = threading.Event()
        self._lock = threading.Lock()
        self.measures = bool(self._last) and None not in self._last.values()
        if self.measures:
            threading.Thread(target=self._watch, daemon=True, name="energy").start()

    def watt_hours(self) -> float | None:
        """End the measurement and return what was taken; None where it cannot be told."""
        self.stop()
        self.look()
        return self._microjoules / 3.6e9 if self.measures else None

    def stop(self) -> None:
        """End the measurement."""
        self._over.set()

    def look(self) -> None:
        """Add what the counters have grown by; one that was full began again at 0."""
        with self._lock:
            for name, read in self._counters.items():
                now, before = read(), self._last[name]
                full = self._full[name] or 0
                if now is None or before is None or now + full < before:
                    self.measures = False
                    return
                self._microjoules += now - before if now >= before else now + full - before
                self._last[name] = now

    def _watch(self) -> None:
        while not self._over.wait(SECONDS):
            self.look()


def _packages(powercap: Path) -> dict[str, Callable[[], int | None]]:
    """Return readers of the counters of packages and of memory; parts of a package are in it already."""
    found: dict[str, Callable[[], int | None]] = {}
    for folder in sorted(powercap.glob("intel-rapl:*")):
        with contextlib.suppress(OSError):
            if (folder / "name").read_text().startswith(("package", "dram")):
                found[folder.name] = partial(_read, folder / "energy_uj")
    return found


def _read(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _gpu(device: torch.device) -> Callable[[], int | None]:
    """Return a reader of the GPU's counter in microjoules."""
    try:
        import pynvml

        pynvml.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        handle: Any = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except Exception:  # no package, no driver, a card without the counter: then there is no number
        return lambda: None

    def read() -> int | None:
        try:
            return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) * 1000
        except pynvml.NVMLError:
            return None

    return read
