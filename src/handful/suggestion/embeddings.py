"""Images as a pre-trained encoder sees them: its deepest feature map averaged over space and over crops."""

from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from handful.data.cases import Case
from handful.data.io import read_image
from handful.data.plan import Plan
from handful.data.preprocess import prepare
from handful.errors import DataError, UsageError
from handful.inference.model import read_run
from handful.inference.sliding import window_starts
from handful.networks.build import build_network
from handful.networks.weights import load_into
from handful.settings import build

CROPS = 27
"""Crops (or slices) of an image that are looked at, at most; of more, evenly spread ones."""


def load_encoder(run: Path, *, device: torch.device | str = "cpu") -> tuple[nn.Module, Plan]:
    """Return the encoder of a finished pre-training, in evaluation mode, and its plan.

    Raises:
        UsageError: its network has no encoder by itself.
        DataError: not a run, or its weights are damaged or not those of an encoder.
    """
    file, parts, metadata = read_run(run)
    if "encoder" not in parts:
        raise DataError(f"{file} holds {', '.join(parts) or 'nothing'}, no encoder.")
    plan = build(Plan, metadata["plan"], where=f"the plan in {file}")
    encoder = getattr(build_network(metadata["architecture"]), "encoder", None)
    if not isinstance(encoder, nn.Module):
        raise UsageError(f"{file}: its network has no part 'encoder', so it cannot embed images by itself.")
    try:
        load_into(encoder, parts["encoder"])
    except DataError as error:
        raise DataError(f"{file}: {error}") from None
    return encoder.eval().requires_grad_(False).to(device), plan


def embedding_features(
    encoder: nn.Module,
    plan: Plan,
    cases: Sequence[Case],
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> NDArray[np.float64]:
    """Return (N, E): of each image the mean of the embeddings of its crops, each of length 1.

    Raises:
        DataError: images that cannot be read or have other channels; names each (five at most).
    """
    rows, problems = [], []
    for number, case in enumerate(cases, start=1):
        try:
            rows.append(_embedding(encoder, plan, case))
        except DataError as error:
            problems.append(f"{case.name}: {error}")
        progress(number, len(cases))
    if problems:
        raise DataError(
            f"{len(problems)} of {len(cases)} images cannot be embedded:\n  " + "\n  ".join(problems[:5])
        )
    return np.stack(rows)


def crops(image: NDArray[np.float32], plan: Plan, *, most: int = CROPS) -> Tensor:
    """Cut (C, D, H, W) into crops (B, C, *patch) that lie side by side; a smaller image is padded by its edges.

    In 2D, of ``most`` slices evenly spread the middle patch.
    """
    volume = torch.from_numpy(np.ascontiguousarray(image))
    patch = plan.patch if plan.dims == 3 else (1, *plan.patch)
    missing = [max(0, p - n) for n, p in zip(volume.shape[1:], patch)]
    if any(missing):
        pad = [part for m in reversed(missing) for part in (m // 2, m - m // 2)]
        volume = functional.pad(volume[None], pad, mode="replicate")[0]
    if plan.dims == 2:
        middle = [[(n - p) // 2] for n, p in zip(volume.shape[2:], plan.patch)]
        starts = [list(range(volume.shape[1])), *middle]
    else:
        starts = [window_starts(n, p, 0.0) for n, p in zip(volume.shape[1:], patch)]
    corners = list(product(*starts))
    chosen = [
        corners[i] for i in np.linspace(0, len(corners) - 1, min(most, len(corners))).round().astype(int)
    ]
    cut = torch.stack(
        [volume[(slice(None), *(slice(c, c + p) for c, p in zip(corner, patch)))] for corner in chosen]
    )
    return cut[:, :, 0] if plan.dims == 2 else cut


def _embedding(encoder: nn.Module, plan: Plan, case: Case) -> NDArray[np.float64]:
    if len(case.images) != len(plan.channels):
        raise DataError(
            f"it has {len(case.images)} channels, the encoder was trained on {len(plan.channels)}."
        )
    device = next(encoder.parameters()).device
    cut = crops(prepare(read_image(case.images), None, plan).image, plan)
    total: Tensor | None = None
    with torch.inference_mode():
        for part in torch.split(cut, max(plan.batch, 1)):
            deepest: Tensor = encoder(part.to(device))[-1]
            pooled = functional.normalize(deepest.float().flatten(2).mean(2), dim=1).sum(0)
            total = pooled if total is None else total + pooled
    assert total is not None
    return np.asarray((total / len(cut)).cpu().numpy(), np.float64)
