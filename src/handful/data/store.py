"""Training cases where a step can reach them: on the training device if they fit, else in compressed files."""

import math
import os
import resource
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from handful.data.cache import Cache, load_all
from handful.data.cases import Case
from handful.data.io import read_geometry
from handful.data.plan import Plan
from handful.data.resampling import Geometry, grid_order, grid_shape
from handful.data.sampling import StoredCase, foreground_voxels

RESIDENT_SHARE = 0.4
"""Share of the free memory that training cases may fill; the rest is for the network's activations."""


LAPTOP_GB = 8.0
"""Assumed free where the system does not tell."""


class Stored(NamedTuple):
    """Cases ready to be drawn from, and whether they are read from disk as they are drawn."""

    cases: list[StoredCase]
    streamed: bool


def load_cases(
    cases: Sequence[Case],
    plan: Plan,
    *,
    folder: Path | None,
    device: torch.device,
    memory_gb: float | None = None,
    sharing: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Stored:
    """Prepare cases and put them on ``device``, or leave them in compressed files if they would not fit.

    Args:
        cases: labels are read for those whose ``label`` is not None.
        plan: how they are prepared.
        folder: where the compressed files go if they are needed.
        device: of the training.
        memory_gb: what the cases may fill; None takes ``RESIDENT_SHARE`` of what is free now.
        sharing: processes that each load these cases; on a CPU they share its memory.
        progress: called with (cases done, all cases).
    """
    free = _free_gb(device) * RESIDENT_SHARE if memory_gb is None else memory_gb
    if memory_gb is None and device.type != "cuda":
        free /= sharing
    if folder is None or _resident_gb(cases, plan) <= free:
        prepared = load_all(cases, plan, threads=os.cpu_count() or 1, progress=progress)
        kept = []
        for index, case in enumerate(cases):
            item = prepared[index]
            image = torch.from_numpy(item.image).to(
                device, torch.float16 if device.type == "cuda" else torch.float32
            )
            label = torch.from_numpy(item.label).to(device) if item.label is not None else None
            kept.append(_stored(case.name, image, label, item.label, item.geometry, plan))
        return Stored(kept, streamed=False)
    cache = Cache(folder, plan)
    kept = []
    for done, case in enumerate(cases, start=1):
        lazy = cache.open_lazy(case)
        mapped = _OnDisk(lazy.label) if lazy.label is not None else None
        kept.append(_stored(case.name, _OnDisk(lazy.image), mapped, lazy.label, lazy.geometry, plan))
        if progress is not None:
            progress(done, len(cases))
    return Stored(kept, streamed=True)


@dataclass(frozen=True)
class _OnDisk:
    """A compressed array that gives tensors; only the chunks under a box are read."""

    array: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)

    def __getitem__(self, box: tuple[slice, ...]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(self.array[box]))


def _stored(
    name: str, image: Any, label: Any, values: Any | None, geometry: Geometry, plan: Plan
) -> StoredCase:
    foreground = (
        foreground_voxels(np.asarray(values[:]), len(plan.label_values)) if values is not None else ()
    )
    spacing = tuple(float(s) for s in geometry.spacing_mm)
    assert len(spacing) == 3
    return StoredCase(name, image, label, foreground, spacing)


def _resident_gb(cases: Sequence[Case], plan: Plan) -> float:
    """Estimate from headers alone what the prepared cases take, in GB (4 bytes an intensity, 1 a label)."""
    total = 0
    for case in cases:
        grid = read_geometry(case.images[0])
        order, _ = grid_order(grid.affine, plan.axes)
        spacing = np.linalg.norm(grid.affine[:3, :3], axis=0)
        shape = grid_shape(
            [grid.shape[axis] for axis in order], [spacing[axis] for axis in order], plan.spacing_mm
        )
        total += math.prod(shape) * (4 * len(plan.channels) + 1)
    return total / 1e9


def _free_gb(device: torch.device) -> float:
    """Return the memory left on a GPU; else the least of what the system, a container and ``ulimit`` leave."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 1e9
    told = [_bytes(Path("/proc/meminfo"), "MemAvailable"), _container(Path("/sys/fs/cgroup")), *_limits()]
    return min([free / 1e9 for free in told if free is not None], default=LAPTOP_GB)


def _container(folder: Path) -> int | None:
    """Return what a container with limited memory (cgroup 2) has left, its file cache not counted; None: no limit."""
    limit, used = folder / "memory.max", _bytes(folder / "memory.stat", "anon")
    if (
        used is None
        or not limit.exists()
        or not (words := limit.read_text(encoding="ascii").strip()).isdigit()
    ):
        return None
    return max(int(words) - used, 0)


def _limits() -> Iterator[int]:
    """Yield what ``ulimit -d`` and ``ulimit -v`` leave to this process."""
    for limit, name in ((resource.RLIMIT_DATA, "VmData"), (resource.RLIMIT_AS, "VmSize")):
        most, used = resource.getrlimit(limit)[0], _bytes(Path("/proc/self/status"), name)
        if most != resource.RLIM_INFINITY and used is not None:
            yield max(most - used, 0)


def _bytes(file: Path, name: str) -> int | None:
    """Return the bytes that a line of a Linux status file names, ``name: 12 kB`` or ``name 12345``; None without."""
    for line in file.read_text(encoding="ascii").splitlines() if file.exists() else ():
        word, _, rest = line.replace(":", " ").partition(" ")
        if word == name:
            number, *unit = rest.split()
            return int(number) * (1024 if unit == ["kB"] else 1)
    return None
