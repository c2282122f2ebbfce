"""How large the network's input, the network and the batch can be: from the volumes' size, the device and its memory.

The shape of the network follows nnU-Net (Isensee et al. 2021, https://doi.org/10.1038/s41592-020-01008-z): an axis is
halved while its coarsest map keeps ``SMALLEST_MAP`` voxels and while its spacing is near that of the finest axis;
kernels do not reach along an axis that is still too coarse.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

SMALLEST_MAP = 4
"""Voxels along an axis of the coarsest map, at least."""

COARSE = 2.0
"""An axis this much coarser than the finest is neither halved nor convolved along until the others have caught up."""

BLOCKS = 2
"""Convolutions a level."""

TENSORS_KEPT = 3
"""Tensors that one convolution, its normalisation and activation keep for the backward pass."""

FIXED_GB = 0.7
"""Memory of the runtime itself: libraries, workspaces, allocator slack."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a kind of device affords; tuned by measurement.

    Attributes:
        width: channels of the finest level; doubled at each level.
        widest: the most channels a level may have.
        levels: the most levels.
        patch_voxels: the largest patch.
        batch: the largest batch.
        step_voxels: voxels a step at most (batch x patch), unless that would be fewer than two items.
        memory_gb: assumed where nobody says how much there is.
        bytes_each: of one number in a stored activation.
    """

    width: int
    widest: int
    levels: int
    patch_voxels: int
    batch: int
    step_voxels: int
    memory_gb: float
    bytes_each: int


BUDGETS: dict[tuple[Literal["cpu", "gpu"], Literal[2, 3]], Budget] = {
    # two laptop cores: one step of about half a second
    ("cpu", 2): Budget(
        width=24,
        widest=256,
        levels=6,
        patch_voxels=192 * 192,
        batch=8,
        step_voxels=8 * 192 * 192,
        memory_gb=4,
        bytes_each=4,
    ),
    ("cpu", 3): Budget(
        width=16,
        widest=256,
        levels=5,
        patch_voxels=160_000,
        batch=2,
        step_voxels=320_000,
        memory_gb=4,
        bytes_each=4,
    ),
    # nnU-Net's widths; half-precision activations; small patches fill the device by a larger batch
    ("gpu", 2): Budget(
        width=32,
        widest=512,
        levels=8,
        patch_voxels=512 * 512,
        batch=32,
        step_voxels=12 * 512 * 512,
        memory_gb=10,
        bytes_each=2,
    ),
    ("gpu", 3): Budget(
        width=32,
        widest=320,
        levels=6,
        patch_voxels=128**3,
        batch=8,
        step_voxels=2 * 128**3,
        memory_gb=10,
        bytes_each=2,
    ),
}


class Sizes(NamedTuple):
    """A patch, a batch, and the levels of a U-Net that fit each other."""

    patch: tuple[int, ...]
    batch: int
    widths: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    memory_gb: float


def choose_sizes(
    size: Sequence[int],
    spacing_mm: Sequence[float],
    *,
    channels: int,
    classes: int,
    budget: Budget,
    memory_gb: float | None = None,
) -> Sizes:
    """Choose the largest patch and batch that the device affords, and the network for them.

    The patch covers the median volume where it can; otherwise it is as near to a cube (a square), in millimetres, as
    the volume allows. Memory takes from the batch first, down to 2, then from the patch.

    Args:
        size: median number of voxels along the patch's axes, on the plan's grid.
        spacing_mm: along the patch's axes.
        channels: of the image.
        classes: background included.
        budget: one of ``BUDGETS``.
        memory_gb: what there is; None takes the budget's.
    """
    available = budget.memory_gb if memory_gb is None else memory_gb
    voxels = budget.patch_voxels
    while True:
        patch, strides, kernels = _fit_patch(size, spacing_mm, voxels=voxels, levels=budget.levels)
        widths = tuple(min(budget.widest, budget.width * 2**level) for level in range(len(kernels)))
        batch = max(2, min(budget.batch, budget.step_voxels // math.prod(patch)))
        while True:
            needed = training_memory_gb(
                patch,
                batch,
                widths=widths,
                strides=strides,
                kernels=kernels,
                channels=channels,
                classes=classes,
                bytes_each=budget.bytes_each,
            )
            if needed <= available or batch == 2:
                break
            batch -= 1
        # a patch of 16 voxels an axis is the least that is worth training on
        if needed <= available or voxels <= 16 ** len(patch):
            return Sizes(patch, batch, widths, strides, kernels, needed)
        voxels = int(min(voxels, math.prod(patch)) * 0.8)


def plan_levels(
    size: Sequence[float], spacing_mm: Sequence[float], *, levels: int
) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
    """Return the strides between levels and the kernel of each level, finest first.

    Args:
        size: voxels along each axis of the input.
        spacing_mm: along each axis.
        levels: the most levels.
    """
    current, spacing = list(size), list(spacing_mm)
    kernel = [3 if s <= COARSE * min(spacing) else 1 for s in spacing]
    strides: list[tuple[int, ...]] = []
    kernels = [tuple(kernel)]
    while len(kernels) < levels:
        finest = min(spacing)
        stride = tuple(
            2 if n / 2 >= SMALLEST_MAP and s <= COARSE * finest else 1 for n, s in zip(current, spacing)
        )
        if max(stride) == 1:
            break
        current = [n / factor for n, factor in zip(current, stride)]
        spacing = [s * factor for s, factor in zip(spacing, stride)]
        kernel = [3 if k == 3 or s <= COARSE * min(spacing) else 1 for k, s in zip(kernel, spacing)]
        strides.append(stride)
        kernels.append(tuple(kernel))
    return tuple(strides), tuple(kernels)


def training_memory_gb(
    patch: Sequence[int],
    batch: int,
    *,
    widths: Sequence[int],
    strides: Sequence[Sequence[int]],
    kernels: Sequence[Sequence[int]],
    channels: int,
    classes: int,
    bytes_each: int = 4,
) -> float:
    """Estimate the peak memory of a training step in GB: activations, weights with their optimiser, the runtime.

    Every level keeps ``BLOCKS`` convolutions in the encoder and in the decoder, each with ``TENSORS_KEPT`` tensors.
    """
    factors = [
        [math.prod(s[axis] for s in strides[:level]) for axis in range(len(patch))]
        for level in range(len(widths))
    ]
    voxels = [math.prod(n / f for n, f in zip(patch, factor)) for factor in factors]
    activations = sum(v * w * BLOCKS * 2 * TENSORS_KEPT for v, w in zip(voxels, widths)) * batch * bytes_each
    activations += batch * math.prod(patch) * (channels + 3 * classes) * 4
    weights = sum(math.prod(k) * w * w * BLOCKS * 2.5 for k, w in zip(kernels, widths)) * 4 * 5
    return (activations + weights) / 1e9 + FIXED_GB


def unit(strides: Sequence[Sequence[int]], dims: int) -> tuple[int, ...]:
    """Return what each axis of a patch must be divisible by."""
    return tuple(math.prod(stride[axis] for stride in strides) for axis in range(dims))


def _fit_patch(
    size: Sequence[int], spacing_mm: Sequence[float], *, voxels: int, levels: int
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
    """Return the largest patch of at most ``voxels`` voxels, its strides and kernels."""
    finest = min(spacing_mm)
    # an axis that is to be halved once needs two coarsest maps; a smaller volume is padded
    least = [2 * SMALLEST_MAP if s <= COARSE * finest else 1 for s in spacing_mm]
    wanted = [max(n, low) for n, low in zip(size, least)]
    edge_mm = max(n * s for n, s in zip(wanted, spacing_mm))
    while True:
        cut = [max(low, min(n, round(edge_mm / s))) for n, s, low in zip(wanted, spacing_mm, least)]
        strides, kernels = plan_levels(cut, spacing_mm, levels=levels)
        steps = unit(strides, len(size))
        # the whole volume is covered with padding; a part of it is rounded to the nearest
        patch = tuple(
            step * (math.ceil(n / step) if n == full else max(1, round(n / step)))
            for n, step, full in zip(cut, steps, wanted)
        )
        if math.prod(patch) <= voxels or cut == least:
            return _widened(patch, wanted, spacing_mm, steps, voxels), strides, kernels
        edge_mm *= 0.97


def _widened(
    patch: tuple[int, ...],
    wanted: Sequence[int],
    spacing_mm: Sequence[float],
    steps: Sequence[int],
    voxels: int,
) -> tuple[int, ...]:
    """Spend what rounding to multiples left over: one more step along the axes that show least of the volume."""
    current = list(patch)
    for axis in sorted(range(len(patch)), key=lambda axis: (patch[axis] - wanted[axis]) * spacing_mm[axis]):
        more = current[axis] + steps[axis]
        if current[axis] < wanted[axis] and math.prod(current) // current[axis] * more <= voxels:
            current[axis] = more
    return tuple(current)
