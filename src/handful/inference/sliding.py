"""Predict a whole volume by windows of the training patch's size, blended smoothly, in bounded memory.

Windows are visited slab by slab along the first axis. Rows no later window can reach are finished: they are normalised
and handed to the result, which is an array in memory or, beyond a limit, a temporary file. So beside the image and the
result only one slab, as deep as a window, is ever held.

References:
    Isensee et al., 2021, nnU-Net (Gaussian blending, half overlap). https://doi.org/10.1038/s41592-020-01008-z
"""

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

SINGLE_PASS_FACTOR = 3.0
"""A volume of up to this many patches goes through the network whole: cheaper than 8 windows, and it sees more."""

MEMORY_LIMIT_BYTES = 1 << 30
"""A larger result goes to a temporary file instead of memory."""


def sliding_window(
    network: Callable[[Tensor], Tensor],
    image: Tensor,
    *,
    patch: Sequence[int],
    overlap: float = 0.5,
    batch: int = 1,
    multiple: Sequence[int] | None = None,
    pad: Literal["replicate", "reflect", "constant"] = "replicate",
    device: torch.device | str = "cpu",
    autocast: torch.dtype | None = None,
    memory_limit: int = MEMORY_LIMIT_BYTES,
    scratch: Path | None = None,
) -> NDArray[np.float32]:
    """Return class probabilities for every voxel of ``image``.

    Args:
        network: (B, C, *patch) -> (B, K, *patch) probabilities, in evaluation mode, on ``device``.
        image: (C, D, H, W), on any device.
        patch: size of a window; three numbers, or two for a network of slices (then D is cut into single slices).
        overlap: share of a window that its neighbour sees too, in [0, 1).
        batch: windows (or slices) a call.
        multiple: sizes the network can take are multiples of these (the product of its strides, one number an axis of
            ``patch``); a volume of up to ``SINGLE_PASS_FACTOR`` patches then passes whole. None: windows only.
        pad: how a volume smaller than a window is filled up, both ends alike; ``replicate`` is what training does.
        device: where the network is.
        autocast: precision of the network's arithmetic, for example ``torch.bfloat16``; None is full precision.
        memory_limit: bytes of result above which it lives in a temporary file.
        scratch: folder of that file; None is the system's.

    Returns:
        (K, D, H, W) probabilities; a memory map if over the limit (its file vanishes with the array).
    """
    if len(patch) not in (2, 3) or image.ndim != 4:
        raise ValueError(
            f"expected an image (C, D, H, W) and a patch of 2 or 3 sizes, found {tuple(image.shape)}, {patch}"
        )
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap must be in [0, 1), found {overlap}")
    size = tuple(image.shape[1:])
    flat = len(patch) == 2
    window = window_size(size[1:] if flat else size, patch, multiple)
    if flat:
        network, window, group = _by_slice(network), (min(batch, size[0]), *window), 1
    else:
        group = batch
    padding = [
        (max(w - n, 0) // 2, max(w - n, 0) - max(w - n, 0) // 2) for w, n in zip(window, size, strict=True)
    ]
    if any(after for _, after in padding):
        image = functional.pad(image, [n for pair in reversed(padding) for n in pair], mode=pad)
    rows, *others = (
        window_starts(n, w, 0.0 if flat and axis == 0 else overlap)
        for axis, (n, w) in enumerate(zip(image.shape[1:], window, strict=True))
    )
    importance = gaussian_importance(window, flat=flat)

    def predict(corners: Sequence[tuple[int, ...]]) -> Tensor:
        tiles = torch.stack([image[(slice(None), *_box(corner, window))] for corner in corners]).to(device)
        with torch.autocast(
            torch.device(device).type, autocast or torch.bfloat16, enabled=autocast is not None
        ):
            return network(tiles).float().cpu()

    slab: Tensor | None = None
    result: NDArray[np.float32] | None = None
    weight = torch.zeros(window[0], *image.shape[2:])
    inside = tuple(slice(before, before + n) for (before, _), n in zip(padding[1:], size[1:], strict=True))
    with torch.inference_mode():
        for row, following in zip(rows, [*rows[1:], rows[-1] + window[0]], strict=True):
            for corners in _groups([(row, *corner) for corner in product(*others)], group):
                for corner, probabilities in zip(corners, predict(corners), strict=True):
                    if slab is None or result is None:
                        classes = len(probabilities)
                        slab = torch.zeros(classes, *weight.shape)
                        result = _empty((classes, *size), memory_limit, scratch)
                    box = _box((0, *corner[1:]), window)
                    slab[(slice(None), *box)].addcmul_(probabilities, importance)
                    weight[box] += importance
            assert slab is not None
            assert result is not None
            done = following - row
            # the padding at both ends never reaches the result
            first, last = max(row, padding[0][0]), min(following, padding[0][0] + size[0])
            finished = (slice(first - row, last - row), *inside)
            np.divide(
                slab[(slice(None), *finished)].numpy(),
                weight[finished].numpy(),
                out=result[:, first - padding[0][0] : last - padding[0][0]],
            )
            for accumulator, axis in ((slab, 1), (weight, 0)):
                _advance(accumulator, done, axis)
    assert result is not None
    return result


def window_size(size: Sequence[int], patch: Sequence[int], multiple: Sequence[int] | None) -> tuple[int, ...]:
    """Return the patch, or the whole volume rounded up to ``multiple`` where it is little larger."""
    if multiple is not None:
        whole = tuple(max(p, math.ceil(n / m) * m) for n, p, m in zip(size, patch, multiple, strict=True))
        if math.prod(whole) <= SINGLE_PASS_FACTOR * math.prod(patch):
            return whole
    return tuple(patch)


def window_starts(size: int, window: int, overlap: float) -> list[int]:
    """Return where windows begin along one axis: evenly spread, first at 0, last at ``size - window``."""
    if size <= window:
        return [0]
    step = max(int(window * (1 - overlap)), 1)
    count = math.ceil((size - window) / step) + 1
    return [round(i * (size - window) / (count - 1)) for i in range(count)]


def gaussian_importance(window: Sequence[int], *, flat: bool = False) -> Tensor:
    """Return the weight of each voxel of a window: a Gaussian of an eighth of its size, at least 0.001.

    Args:
        window: sizes along D, H, W.
        flat: the same weight all along D, for windows that are stacks of slices.
    """
    weight = torch.ones(())
    for axis, n in enumerate(window):
        x = torch.arange(n) - (n - 1) / 2
        profile = torch.ones(n) if flat and axis == 0 else torch.exp(-(x**2) / (2 * (0.125 * n) ** 2))
        weight = weight[..., None] * profile
    return weight.clamp_min(1e-3)


def _by_slice(network: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Let a network of slices (B, C, H, W) take stacks of them (1, C, D, H, W)."""

    def forward(stack: Tensor) -> Tensor:
        return network(stack[0].transpose(0, 1)).transpose(0, 1)[None]

    return forward


def _box(corner: Sequence[int], window: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(c, c + w) for c, w in zip(corner, window, strict=True))


def _groups(corners: list[tuple[int, ...]], size: int) -> Iterator[list[tuple[int, ...]]]:
    for start in range(0, len(corners), size):
        yield corners[start : start + size]


def _advance(accumulator: Tensor, rows: int, axis: int) -> None:
    """Drop the first ``rows`` of ``axis`` and open as many empty ones at its end, in place and row by row."""
    depth = accumulator.shape[axis]
    for row in range(depth):
        target = accumulator.select(axis, row)
        if row + rows < depth:
            target.copy_(accumulator.select(axis, row + rows))
        else:
            target.zero_()


def _empty(shape: tuple[int, ...], limit: int, scratch: Path | None) -> NDArray[np.float32]:
    if math.prod(shape) * 4 <= limit:
        return np.empty(shape, np.float32)
    with tempfile.TemporaryFile(dir=scratch) as file:  # the map keeps the file alive; both go together
        return np.memmap(file, np.float32, mode="w+", shape=shape)
