"""A trained model as it comes out of a run's folder: network, plan and label names, ready to predict."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from handful.artefacts import hash_of_file, read_json
from handful.data.plan import Plan
from handful.data.planes import lead_and, undone
from handful.device import half_precision
from handful.errors import DataError, RunError
from handful.inference.sliding import sliding_window
from handful.inference.tta import IDENTITY, averaged, transforms_for
from handful.networks.build import build_network
from handful.networks.weights import load_into, load_weights
from handful.settings import build

WEIGHTS = "weights.safetensors"
FORMAT = 1
"""Newest layout of the metadata this version understands."""

PART = "segmenter"
"""Name of the part of the weights that predicts."""


@dataclass(frozen=True, eq=False)
class Model:
    """A network and what it needs to know about its images.

    Attributes:
        run: the folder it came from.
        network: (B, C, *S) -> logits (B, K, *S), in evaluation mode, on its device.
        plan: preprocessing, patch and classes.
        label_names: value in label files -> name, background included.
        metadata: everything written with the weights.
        weights_hash: identifies the file of weights.
    """

    run: Path
    network: nn.Module
    plan: Plan
    label_names: Mapping[int, str]
    metadata: Mapping[str, Any]
    weights_hash: str

    def probabilities(
        self, image: NDArray[np.float32], *, tta: bool = False, scratch: Path | None = None
    ) -> NDArray[np.float32]:
        """Predict a prepared image, (C, D, H, W) -> (K, D, H, W).

        Args:
            image: on the plan's grid, normalised.
            tta: average over transformed copies (mirrors where the plan allows them, else small moves).
            scratch: folder for the result where it does not fit in memory.
        """
        device = next(self.network.parameters()).device
        transforms = transforms_for(self.plan.mirror) if tta else (IDENTITY,)
        total: NDArray[np.float32] | None = None
        for order in self.plan.planes:
            cut = sliding_window(
                averaged(self.network, transforms),
                torch.from_numpy(np.ascontiguousarray(image.transpose(lead_and(order)))),
                patch=self.plan.patch,
                batch=max(self.plan.batch, 1),
                multiple=_strides(self.metadata["architecture"], self.plan.dims),
                device=device,
                autocast=_autocast(device),
                scratch=scratch,
            ).transpose(lead_and(undone(order)))
            if total is None:
                total = cut
            else:
                total += cut
        assert total is not None
        if len(self.plan.planes) > 1:
            total /= len(self.plan.planes)
        return total


def load_model(run: Path | str, *, device: torch.device | str = "cpu") -> Model:
    """Load the model of a finished run.

    Args:
        run: the run's folder, or its file of weights.
        device: where the network goes.

    Raises:
        DataError: not a run, or its weights are damaged.
        RunError: the run is not finished, or was made by a newer version.
    """
    file, parts, metadata = read_run(run)
    if PART not in parts:
        raise DataError(
            f"{file} holds {', '.join(parts) or 'nothing'}, no '{PART}': it cannot predict. Train from it first."
        )
    plan = build(Plan, metadata["plan"], where=f"the plan in {file}")
    network = build_network(metadata["architecture"])
    try:
        load_into(network, parts[PART])
    except DataError as error:
        raise DataError(f"{file}: {error}") from None
    memory_format = torch.channels_last if plan.dims == 2 else torch.channels_last_3d
    for parameter in network.parameters():  # the layout training measured to be fastest
        if parameter.ndim == plan.dims + 2:
            parameter.data = parameter.data.to(memory_format=memory_format)
    network.eval().requires_grad_(False).to(device)
    names = dict(zip(plan.label_values, plan.label_names, strict=True))
    return Model(file.parent, network, plan, names, metadata, hash_of_file(file))


def read_run(run: Path | str) -> tuple[Path, dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Return a finished run's file of weights, the tensors of each of its parts, and what was saved with them.

    Args:
        run: the run's folder, or its file of weights.

    Raises:
        DataError: not a run, or its weights are damaged.
        RunError: the run is not finished, or was made by a newer version.
    """
    run = Path(run)
    file = run if run.is_file() else run / WEIGHTS
    if not run.exists():
        raise DataError(f"{run} does not exist; give the folder that 'handful train --out' wrote.")
    if not file.is_file():
        if (run / "recipe.yaml").is_file():
            raise RunError(
                f"{run} is not finished: it has no {WEIGHTS}. Repeat its 'handful {_kind(run)}' command to go on."
            )
        raise DataError(
            f"{run} is not a run: it has no {WEIGHTS}. Give the folder that 'handful train --out' wrote."
        )
    parts, metadata = load_weights(file)
    found = metadata.get("format")
    if not isinstance(found, int) or found > FORMAT:
        raise RunError(
            f"{file} has format {found}, written by handful {metadata.get('version', 'unknown')}; this version reads "
            f"up to {FORMAT}. Upgrade with: pip install --upgrade handful"
        )
    return file, parts, metadata


def _kind(run: Path) -> str:
    """Return the command of an unfinished run; one stopped before its manifest was written says nothing of it."""
    manifest = run / "manifest.json"
    return str(read_json(manifest).get("kind", "train")) if manifest.is_file() else "train"


def _strides(architecture: Mapping[str, Any], dims: int) -> tuple[int, ...] | None:
    """Return what sizes must be multiples of, or None where only the patch is known to fit."""
    if architecture.get("name") != "unet" or "strides" not in architecture:
        return None
    totals = [1] * dims
    for stride in architecture["strides"]:
        each = [stride] * dims if isinstance(stride, int) else stride
        totals = [total * s for total, s in zip(totals, each, strict=True)]
    return tuple(totals)


def _autocast(device: torch.device) -> torch.dtype | None:
    """Half precision on GPUs; on other devices a prediction is exact."""
    return half_precision(device) if device.type == "cuda" else None
