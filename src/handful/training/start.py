"""What a training starts with: the planned network in its method, another run's weights, the cases to draw from."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from handful.artefacts import hash_of
from handful.data.plan import Plan
from handful.data.sampling import Source, StoredCase
from handful.errors import UsageError
from handful.methods import load_method
from handful.methods.contract import Method
from handful.networks.build import build_network, unet_architecture
from handful.networks.weights import load_into, load_weights
from handful.training.folder import weights_of
from handful.training.recipe import Recipe


def build_method(recipe: Recipe, plan: Plan, seed: int) -> tuple[Method, dict[str, Any]]:
    """Build the planned network inside its method, weights drawn from ``seed``; also return the architecture."""
    torch.manual_seed(seed)
    sizes = asdict(plan.network)
    architecture = unet_architecture(
        dims=plan.dims, in_channels=len(plan.channels), classes=len(plan.label_values), **sizes
    )
    network: nn.Module = build_network(architecture)
    method: Method = load_method(recipe.name).METHOD(network, recipe.method)
    return method, architecture


def start_from(init: Path, method: Method, plan: Plan) -> str:
    """Load another run's network into this one's and say how much of it matched.

    Raises:
        UsageError: its weights were trained on differently made images, or hold no segmentation network.
    """
    parts, metadata = load_weights(weights_of(init))
    theirs = metadata.get("plan", {})
    for field in ("dims", "axes", "spacing_mm"):
        mine = asdict(plan)[field]
        if hash_of(theirs.get(field)) != hash_of(mine):
            raise UsageError(
                f"--init {init}: its plan has {field} = {theirs.get(field)}, this run's plan has {mine}; its weights "
                f"would see other images. Train with its plan: --plan {init / 'plan.yaml'}."
            )
    if "segmenter" not in parts:
        raise UsageError(f"--init {init}: it holds {', '.join(parts)}, not a segmentation network.")
    return f"started from {init}: {load_into(method.exports()['segmenter'], parts['segmenter'])}"


def sources(
    recipe: Recipe,
    plan: Plan,
    *,
    labelled: Sequence[StoredCase],
    unlabelled: Sequence[StoredCase],
    device: torch.device,
    seed: int,
) -> Callable[[int], Source]:
    """Return what a method draws its batches from: step number -> the loaded cases, seen from that step."""

    def source(step: int) -> Source:
        return Source(
            labelled=labelled,
            unlabelled=unlabelled,
            patch=plan.patch,
            batch=plan.batch,
            classes=len(plan.label_values),
            mirror=plan.mirror,
            augment=recipe.augment,
            sampling=recipe.sampling,
            device=device,
            seed=seed,
            step=step,
        )

    return source
