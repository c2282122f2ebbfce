"""What a training will cost on this machine, measured over a few steps of the real loop on made-up images."""

import resource
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

from handful.data.plan import Plan
from handful.data.sampling import StoredCase, foreground_voxels
from handful.device import choose_device, choose_precision
from handful.training.fabric import make_fabric
from handful.training.folder import RunFolder
from handful.training.loop import fit
from handful.training.recipe import resolve
from handful.training.start import build_method, sources

STEPS = 8
"""Steps measured; the first two, slowed by start-up, are left out."""


class Cost(NamedTuple):
    """Time and size of a training.

    Attributes:
        seconds_per_step: median over the measured steps, augmentation included.
        memory_gb: the most this process has held (on a GPU: the most torch held there).
        disk_mb: of the checkpoint and the weights of one run.
        parameters: of the network.
        device: where it was measured.
        precision: in which it was measured.
    """

    seconds_per_step: float
    memory_gb: float
    disk_mb: float
    parameters: int
    device: str
    precision: str


def measure(plan: Plan, *, device: str = "auto", precision: str = "auto") -> Cost:
    """Train ``STEPS`` steps of the labels-only control on noise of the plan's sizes and say what they took."""
    where = choose_device(device)
    exactness = choose_precision(precision, where)
    recipe = resolve("supervised", over={"loop": {"steps": STEPS}}, assignments=("loop.rows=1000",))
    method, _ = build_method(recipe, plan, seed=0)
    parameters = sum(p.numel() for p in method.parameters())
    case = _noise(plan, where)
    source = sources(recipe, plan, labelled=[case], unlabelled=[], one_plane=False, device=where, seed=0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = RunFolder(Path(temporary), quiet=True)
        fit(method, source, settings=recipe.loop, fabric=make_fabric(where, exactness), folder=folder, seed=0)
        seconds = median(1 / row["steps_per_s"] for row in folder.read_metrics()[2:])
        # the weights file holds the averaged network once; the checkpoint holds four copies of it
        disk = folder.checkpoint.stat().st_size * 1.25 / 1e6
    if where.type == "cuda":
        memory = torch.cuda.max_memory_allocated(where) / 1e9
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
    return Cost(seconds, memory, disk, parameters, str(where), exactness)


def _noise(plan: Plan, device: torch.device) -> StoredCase:
    """Return a volume a little larger than the patch, with every class in it."""
    shape = (*(1,) * (3 - plan.dims), *(size + 8 for size in plan.patch))
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(len(plan.channels), *shape, generator=generator)
    label = torch.randint(0, len(plan.label_values), shape, generator=generator, dtype=torch.uint8)
    foreground = foreground_voxels(label.numpy(), len(plan.label_values))
    spacing = tuple(1.0 if mm is None else mm for mm in plan.spacing_mm)
    assert len(spacing) == 3
    return StoredCase("noise", image.to(device), label.to(device), foreground, spacing)
