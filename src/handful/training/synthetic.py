"""The synthetic cases of a run: made once, kept in its folder until it is finished, drawn beside the real ones."""

import math
import time
from collections.abc import Sequence

import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file, save_file

from handful.artefacts import atomic_path
from handful.data.sampling import SamplingSettings, StoredCase, foreground_voxels, sharing_draws
from handful.data.synthetic import choose_pairs, synthetic_cases
from handful.training.folder import RunFolder
from handful.training.loop import LoopSettings

TIME_SHARE = 0.2
"""Of a run's time limit: registrations that would begin later are left out."""

SECONDS = "seconds"
"""In the file of the synthetic cases: how long they took."""


def with_synthetic(
    labelled: Sequence[StoredCase],
    others: Sequence[StoredCase],
    *,
    settings: SamplingSettings,
    loop: LoopSettings,
    classes: int,
    seed: int,
    folder: RunFolder,
    fabric: Fabric,
) -> tuple[list[StoredCase], float]:
    """Return the labelled cases, repeated so that synthetic ones, appended, take their share of the draws.

    A resumed run reads what its first start made, to the bit. The first process makes them, the others read.

    Args:
        labelled, others: loaded cases; labels of ``others`` are not looked at.
        settings: how many, and their share.
        loop: a short run gets fewer of them.
        classes: K.
        seed: of the run.
        folder: of the run.
        fabric: of the run.

    Returns:
        The cases, and the seconds it took to make the synthetic ones.
    """
    count = _count(settings, loop, len(labelled))
    pairs = choose_pairs(labelled, others, count, seed=seed)
    if not pairs:
        if others and count:
            folder.say("no labelled case takes the shape of another: one volume alone is too large")
        return list(labelled), 0.0
    if folder.writes and not folder.synthetic.exists():
        began = time.monotonic()
        folder.say(f"giving {len(labelled)} labelled cases the shapes of others, {len(pairs)} times")
        seconds = TIME_SHARE * loop.max_time_s if loop.max_time_s else math.inf
        made = synthetic_cases(pairs, classes=classes, seconds=seconds)
        took = time.monotonic() - began
        folder.say(
            f"made {len(made)} of {len(pairs)} in {took:.0f} s; they take {settings.synthetic_share:.0%} of the "
            "labelled draws"
        )
        _save(folder, made, took)
    fabric.barrier()
    spacing = {case.name: case.spacing_mm for case in (*labelled, *others)}
    stored = load_file(folder.synthetic, device=str(fabric.device))
    took = float(stored.pop(SECONDS))
    names = sorted({key.rpartition("/")[0] for key in stored})
    made = [
        StoredCase(
            name,
            stored[f"{name}/image"],
            label := stored[f"{name}/label"],
            foreground_voxels(label.cpu().numpy(), classes),
            spacing[name.partition(" as ")[2]],
        )
        for name in names
    ]
    return sharing_draws(labelled, made, share=settings.synthetic_share), took


def _count(settings: SamplingSettings, loop: LoopSettings, labelled: int) -> int:
    """Return how many volumes a run of this length and budget gets: one at least, where any are asked for."""
    if 0 < settings.synthetic_up_to < labelled:
        return 0
    if loop.steps is None or not settings.synthetic_steps:
        return settings.synthetic
    return min(settings.synthetic, max(1, loop.steps // settings.synthetic_steps))


def _save(folder: RunFolder, cases: Sequence[StoredCase], seconds: float) -> None:
    every = slice(None)
    tensors = {SECONDS: torch.tensor(seconds)}
    for case in cases:
        assert case.label is not None
        tensors[f"{case.name}/image"] = case.image[every, every, every, every].cpu()
        tensors[f"{case.name}/label"] = case.label[every, every, every].cpu()
    with atomic_path(folder.synthetic) as temporary:
        save_file(tensors, temporary)
