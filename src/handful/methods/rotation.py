"""Rotation: turn a patch by quarter turns and predict which turn it was.

To tell a turned body from an upright one a network must recognise what it shows. It helps where anatomy has a clear
orientation, and is the weakest of the image-level tasks in comparisons on medical images. Trains the encoder.

Turns are exact permutations of voxels, without interpolation that would give them away. In 2D there are four classes;
in 3D ten: upright, and quarter, half and three-quarter turns about each of three axes. A quarter turn needs two axes
with equal voxels and equal sides, so patches are cut square or cubic; about other axes there are half turns only.

References:
    Gidaris, Singh and Komodakis, 2018, RotNet. https://arxiv.org/abs/1803.07728
    Taleb et al., 2020, the ten classes in 3D. https://arxiv.org/abs/2006.03829
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handful.data.sampling import Source
from handful.errors import UsageError
from handful.methods.contract import Method, Needs, StepOutput, watched_average
from handful.networks.parts import parts_of

EQUAL = 1.05
"""Voxels of two axes count as equally long up to this ratio: anatomy turned between them is stretched by it."""

UPRIGHT_DEGREES = 45.0
"""An augmentation that turns by as much makes two classes alike."""


class Turn(NamedTuple):
    """A rotation from the first axis of a plane towards the second, ``quarters`` times 90 degrees."""

    plane: tuple[int, int]
    quarters: int


def turns(dims: int) -> tuple[Turn, ...]:
    """Return the classes, upright first: 4 in 2D and 10 in 3D.

    Example:
        >>> len(turns(2)), len(turns(3))
        (4, 10)
    """
    planes = reversed(list(combinations(range(dims), 2)))  # in 3D the slice plane (H, W) comes first
    return (Turn((0, 1), 0), *(Turn(plane, quarters) for plane in planes for quarters in (1, 2, 3)))


def turned(image: Tensor, turn: Turn) -> Tensor:
    """Turn images (B, C, *S); a quarter turn swaps two sides of S."""
    first, second = turn.plane
    return image.rot90(turn.quarters, (first + 2, second + 2))


def turning_axes(
    patch: Sequence[int], *, spacing_mm: Sequence[float], stride: Sequence[int]
) -> tuple[tuple[int, ...], int]:
    """Return the axes between which quarter turns are possible, and the side that a patch then has along them.

    They have equally long voxels, and their side is the largest the patch and all their strides allow. Three axes
    are taken only if the cube keeps half of the patch's longest side; else two, the slice plane (H, W) first. Where
    not even two fit, there are none, and the side is 0.

    Args:
        patch: side along each axis.
        spacing_mm: voxel length along each axis.
        stride: what the network's strides multiply to along each axis.

    Example:
        >>> turning_axes((40, 160, 128), spacing_mm=(3.0, 0.8, 0.8), stride=(4, 32, 32))
        ((1, 2), 128)
    """
    dims = len(patch)
    for count in range(dims, 1, -1):
        for axes in reversed(list(combinations(range(dims), count))):
            unit = math.lcm(*(stride[axis] for axis in axes))
            side = min(patch[axis] for axis in axes) // unit * unit
            lengths = [spacing_mm[axis] for axis in axes]
            halved = count == 3 and 2 * side < max(patch)
            if side and not halved and max(lengths) <= EQUAL * min(lengths):
                return axes, side
    return (), 0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """RotNet's.

    Attributes:
        every_turn: whether each image is shown under all its turns, or under one drawn at random.
        batch: images a step; with ``every_turn`` as many times as there are turns.
        patch_share: of the planned patch's sides in 3D.
    """

    every_turn: bool = False  # ours: other images teach more for the same time; the paper: all four copies
    batch: int = 16  # the paper: 192 images, four copies each
    patch_share: float = 0.5  # ours: the paper is 2D

    def __post_init__(self) -> None:
        if self.batch < 1 or not 0 < self.patch_share <= 1:
            raise UsageError("batch must be at least 1 and patch_share in (0, 1].")


class Batch(NamedTuple):
    """Turned images (N, C, *S) and the number of the turn of each (N,)."""

    image: Tensor
    turn: Tensor


class Rotation(Method):
    """Predict which turn was applied."""

    kind: ClassVar[Literal["pretrain", "train"]] = "pretrain"
    needs: ClassVar[Needs] = Needs(labels=False, unlabelled=True)
    paper: ClassVar[str] = "Gidaris et al. 2018, RotNet, https://arxiv.org/abs/1803.07728"

    def __init__(self, network: nn.Module, settings: Settings) -> None:
        super().__init__()
        parts = parts_of(network)
        self.stride = parts.stride
        self.turns = turns(parts.dims)
        self.encoder = parts.encoder
        self.head = nn.Linear(parts.deepest, len(self.turns))
        self.settings = settings

    def batch(self, source: Source) -> Batch:
        """Draw square or cubic patches, never mirrored nor turned all the way round, and turn them.

        Mirroring along two axes is a half turn, so both are off here whatever the plan allows.

        Raises:
            UsageError: the augmentation itself turns so far that the turn cannot be told.
        """
        augment = source.augment
        if augment.p_rotation > 0 and augment.rotation_degrees >= UPRIGHT_DEGREES:
            raise UsageError(
                f"rotation predicts quarter turns, but the augmentation turns by up to {augment.rotation_degrees:g} "
                f"degrees itself; set augment.rotation_degrees below {UPRIGHT_DEGREES:g}."
            )
        dims = len(self.stride)
        if dims == 3:
            source = source.smaller(self.settings.patch_share, multiple=self.stride)
        cases = [*source.labelled, *source.unlabelled]
        spacing = cases[0].spacing_mm[3 - dims :] if cases else (1.0,) * dims
        axes, side = turning_axes(source.patch, spacing_mm=spacing, stride=self.stride)
        patch = tuple(side if axis in axes else length for axis, length in enumerate(source.patch))
        source = replace(source, patch=patch, mirror=(False,) * dims, turned=0.0)
        image = source.view(source.draw_any(self.settings.batch)).image
        possible = [
            number
            for number, turn in enumerate(self.turns)
            if turn.quarters in (0, 2) or set(turn.plane) <= set(axes)
        ]
        if self.settings.every_turn:
            copies = torch.cat([turned(image, self.turns[number]) for number in possible])
            numbers = torch.tensor(possible).repeat_interleave(len(image))
        else:
            numbers = torch.tensor(possible)[_shares(len(image), len(possible), source)]
            copies = image.clone()
            for number in possible:
                rows = (numbers == number).nonzero()[:, 0].to(image.device)
                copies[rows] = turned(image[rows], self.turns[number])
        return Batch(copies, numbers.to(image.device))

    def step(self, batch: Any, progress: float) -> StepOutput:
        """Cross entropy of the turn."""
        deepest = self.encoder(batch.image)[-1]
        logits = self.head(deepest.flatten(2).mean(2)).float()
        loss = F.cross_entropy(logits, batch.turn)
        correct = (logits.argmax(1) == batch.turn).float().mean()
        logs = {"cross_entropy": loss.detach(), "accuracy": correct}
        return StepOutput(loss, logs, watched=watched_average(deepest))

    def exports(self) -> Mapping[str, nn.Module]:
        """The encoder; the classifier is dropped."""
        return {"encoder": self.encoder}


def _shares(count: int, kinds: int, source: Source) -> Tensor:
    """Draw ``count`` numbers below ``kinds``, each as often as the others or once more."""
    generator = source.generator()
    numbers = torch.randperm(kinds, generator=generator).repeat(-(-count // kinds))[:count]
    return numbers[torch.randperm(count, generator=generator)]


METHOD = Rotation
