"""What a run says of itself: ``recipe.yaml`` (asked), ``manifest.json`` (happened), and the header of its weights."""

import contextlib
import datetime
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

import handful
from handful.artefacts import hash_of, hash_of_file, read_json, read_yaml
from handful.data.cases import Case
from handful.data.discover import content_hash, image_hashes
from handful.data.plan import Plan
from handful.errors import UsageError
from handful.networks.weights import read_metadata
from handful.training.folder import RunFolder, weights_of
from handful.training.recipe import resolve
from handful.training.stage import Stage


def asked_of(stage: Stage) -> dict[str, Any]:
    """Return everything a run was asked to do, enough to repeat it; two runs are the same if these are equal.

    Reads the data once, for its hash, and the files named as plan and start.
    """
    return {
        "handful": handful.__version__,
        **stage.recipe.as_dict(),
        "data": {"name": stage.dataset.name, "hash": content_hash(stage.dataset)},
        "labels": stage.labels,
        "draw": stage.draw,
        **_names(stage),
        "seed": stage.seed,
        "precision": stage.precision,
        "plan_file": hash_of(read_yaml(stage.plan)) if stage.plan else None,
        # a start that this run makes itself is in the recipe
        "init": hash_of_file(weights_of(stage.init)) if stage.init and not stage.recipe.pretrain else None,
        "adapt_channels": stage.adapt_channels,
        "partial_init": stage.partial_init,
        # only where there are several: a run of one process is the run it was before there could be
        **({"processes": stage.processes.world} if stage.processes.world > 1 else {}),
    }


def is_finished(folder: RunFolder, asked: Mapping[str, Any], *, overwrite: bool) -> bool:
    """Say whether the folder holds this very run, complete; with ``overwrite``, clear it.

    Raises:
        UsageError: it holds a different run; what differs is named.
    """
    if overwrite:
        folder.clear()
        return False
    if not folder.recipe.exists():
        if folder.weights.exists() or folder.checkpoint.exists():
            raise UsageError(
                f"{folder.path} holds a run without its recipe.yaml; choose another --out or use --overwrite."
            )
        return False
    there = read_yaml(folder.recipe)
    # a setting that did not exist when the run began counts as left out
    with contextlib.suppress(UsageError):
        there |= resolve(None, file=folder.recipe).as_dict()
    differing = sorted(key for key in {*there, *asked} if hash_of(there.get(key)) != hash_of(asked.get(key)))
    if differing:
        raise UsageError(
            f"{folder.path} holds a different run (it differs in: {', '.join(differing)}). "
            "Choose another --out, or use --overwrite to replace it."
        )
    return bool(
        folder.weights.exists() and folder.manifest.exists() and read_json(folder.manifest).get("finished")
    )


def manifest_of(stage: Stage, data_hash: str) -> dict[str, Any]:
    """Return the manifest of a run that starts now: versions, machine, and which case played which part."""
    dataset, selection, device = stage.dataset, stage.selection, stage.device
    everyone = (*selection.labelled, *selection.unlabelled, *stage.validation, *selection.test)
    return {
        "version": handful.__version__,
        "command": " ".join(["handful", *sys.argv[1:]]),
        "started": now(),
        "finished": None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "precision": stage.precision,
        "processes": stage.processes.world,
        "nodes": stage.processes.nodes,
        "seed": stage.seed,
        "method": stage.recipe.name,
        "kind": stage.method.kind,
        "learns_labels": stage.learns_labels,
        "init": _start_of(stage),
        "references": [stage.method.paper],
        "dataset": {
            "name": dataset.name,
            "root": str(dataset.root),
            "layout": dataset.layout,
            "hash": data_hash,
            "notes": list(dataset.notes),
            "patients_from": dataset.patients_from,
        },
        "cases": _names(stage),
        "patients": {case.name: case.patient for case in everyone},
        "images": {case.name: [str(path) for path in case.images] for case in everyone},
        "image_hashes": image_hashes(everyone),
        "labels": {case.name: str(case.label) if case.label else None for case in everyone},
    }


def weights_header(
    stage: Stage, plan: Plan, architecture: Mapping[str, Any], manifest: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what is saved with the weights: enough to build their network and to prepare images for it.

    Args:
        stage, plan, architecture: of the run.
        manifest: its ``manifest_of``, as written when it started.
    """
    hashes = manifest.get("image_hashes", {})  # a run that an older version began has none

    def files(cases: Sequence[Case]) -> set[str]:
        return {found for case in cases for found in hashes.get(case.name, [])}

    images = (*stage.selection.labelled, *stage.unlabelled)
    return {
        "format": 1,
        "version": handful.__version__,
        "method": stage.recipe.name,
        "architecture": architecture,
        "plan": asdict(plan),
        "label_names": list(plan.label_names),
        "data_hash": manifest["dataset"]["hash"],
        "data_name": stage.dataset.name,
        "labelled": _names(stage)["labelled"],
        "labels_used": _with_start(stage, "labels_used", stage.label_cases),
        "images_used": _with_start(stage, "images_used", images),
        "label_hashes": sorted(files(stage.label_cases) | _of_start(stage, "label_hashes")),
        "image_hashes": sorted(files(images) | _of_start(stage, "image_hashes")),
    }


def _of_start(stage: Stage, field: str) -> set[str]:
    return set(read_metadata(weights_of(stage.init)).get(field, [])) if stage.init else set()


def _with_start(stage: Stage, field: str, cases: Sequence[Case]) -> list[str]:
    """Add what the weights this run starts from had learned from: a chain of starts forgets nothing."""
    theirs = read_metadata(weights_of(stage.init)) if stage.init else {}
    known = theirs.get(field, []) if theirs.get("data_name") == stage.dataset.name else []
    return sorted({case.name for case in cases} | set(known))


def now() -> str:
    """Return the time in UTC, to the second, as ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _start_of(stage: Stage) -> dict[str, Any] | None:
    """Return whose weights a run starts from and what those learned from."""
    if stage.init is None:
        return None
    theirs = read_metadata(weights_of(stage.init))
    return {
        "run": str(stage.init),
        "method": theirs.get("method"),
        "data_name": theirs.get("data_name"),
        "labels_used": theirs.get("labels_used", []),
        "images_used": len(theirs.get("images_used", [])),
    }


def _names(stage: Stage) -> dict[str, list[str]]:
    parts = {
        "labelled": stage.selection.labelled,
        "unlabelled": stage.selection.unlabelled,
        "validation": stage.validation,
        "test": stage.selection.test,
    }
    return {part: [case.name for case in cases] for part, cases in parts.items()}
