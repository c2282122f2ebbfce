"""From the words of a command to one training, everything settled and checked before anything is written."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from handful.device import choose_device, choose_precision, use_threads
from handful.errors import UsageError, nearest
from handful.methods import load_method, method_names
from handful.training.decisions import choose_cases, set_aside, without_labels
from handful.training.processes import Processes, processes
from handful.training.recipe import length_of, resolve, shipped, shipped_names
from handful.training.stage import Stage

DEFAULT_METHOD = "auto"
"""Of a training that names neither a method nor a recipe."""

DEFAULT_STEPS = 1000
"""Steps of a run that names neither steps nor a time limit."""


def settle(
    kind: Literal["train", "pretrain"],
    data: Path,
    *,
    method: str | None,
    labels: str | None,
    draw: int,
    test: str | None,
    splits: Path | None,
    fold: int | None,
    seed: int,
    steps: int | None,
    max_time: str | None,
    plan: Path | None,
    patients: str | None,
    recipe: Path | None,
    set_: Sequence[str],
    device: str,
    precision: str,
    threads: int | None,
    init: Path | None,
    adapt_channels: bool,
    partial_init: bool,
    devices: int | None = None,
    nodes: int | None = None,
) -> Stage:
    """Resolve the recipe, open and divide the data, choose the device; see ``run.train`` for the arguments.

    Raises:
        UsageError, DataError: in words, with what to do.
    """
    use_threads(threads)
    together = processes(devices, nodes)
    where = choose_device(device)
    if together.world > 1:
        _check_devices(device, where, together)
        if threads is not None:
            os.environ["OMP_NUM_THREADS"] = str(threads)  # else Lightning shares the processors out
    file = None if recipe is None else find_recipe(recipe)
    if kind == "pretrain" and method is None and file is None:
        raise UsageError(f"name a pre-training method: --method {', '.join(_of_kind(kind))}.")
    if kind == "train" and method is None and file is None:
        method = DEFAULT_METHOD
    resolved = resolve(
        method, file=file, assignments=set_, over=length_of(steps, max_time), default_steps=DEFAULT_STEPS
    )
    found = load_method(resolved.name).METHOD.kind
    if found != kind:
        raise UsageError(
            f"method '{resolved.name}' is one for handful {found}, not for handful {kind}; "
            f"there are {', '.join(_of_kind(kind))}."
        )
    if init is not None:  # somebody else's start takes the place of the recipe's own
        resolved = replace(resolved, pretrain=None)
    resolved.stages()  # refuses a length that cannot be shared out
    dataset, parts, selection = choose_cases(
        data, labels=labels, draw=draw, test=test, splits=splits, seed=seed, patients=patients
    )
    selection, validation = set_aside(selection, fold)
    needs = load_method(resolved.name).METHOD.needs
    if kind == "pretrain" and labels is None and not (needs.labels or needs.optional_labels):
        selection = without_labels(selection)
    return Stage(
        data=data,
        recipe=resolved,
        dataset=dataset,
        splits=parts,
        selection=selection,
        validation=validation,
        labels=labels,
        draw=draw,
        seed=seed,
        device=where,
        precision=choose_precision(precision, where),
        plan=plan,
        init=init,
        adapt_channels=adapt_channels,
        partial_init=partial_init,
        processes=together,
    )


def _check_devices(name: str, device: torch.device, together: Processes) -> None:
    """Refuse several processes on a device that cannot serve them."""
    if device.type == "mps" or ":" in name:
        raise UsageError(
            f"--device {name} is one device; {together.world} processes need --device cuda (one GPU each) or cpu."
        )
    if device.type == "cuda" and together.devices > torch.cuda.device_count():
        raise UsageError(
            f"--devices {together.devices}: this machine has {torch.cuda.device_count()} CUDA devices; use as many at "
            "most, or --device cpu."
        )


def find_recipe(recipe: Path) -> Path:
    """Return the file as it is named, or the recipe of that name that comes with handful.

    Raises:
        UsageError: neither exists; the nearest name is given.
    """
    if recipe.exists():
        return recipe
    if (file := shipped(recipe.name)) is not None:
        return file
    raise UsageError(
        f"--recipe {recipe}: the file does not exist, and no recipe of handful is called so; "
        f"{nearest(recipe.name, shipped_names())}"
    )


def _of_kind(kind: str) -> list[str]:
    return [name for name in method_names() if load_method(name).METHOD.kind == kind]
