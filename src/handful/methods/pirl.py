"""PIRL: an image and its shuffled pieces have one embedding, unlike those of other images.

Where other tasks ask for the shuffling, this one asks to see through it: the pieces of an image, encoded one by one
and put together in any order, must give what the image gives. Trains the encoder.

References:
    Misra and van der Maaten, 2020, PIRL. https://arxiv.org/abs/1912.01991
    Noroozi and Favaro, 2016, the pieces. https://arxiv.org/abs/1603.09246
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from handful.data.sampling import Source
from handful.errors import DataError, UsageError
from handful.losses.identity import queue_info_nce
from handful.losses.processes import gathered
from handful.methods.contract import Method, Needs, StepOutput, Watched
from handful.networks.embedder import Embedder
from handful.networks.heads import NormedHead
from handful.networks.memory import Memory, overlap
from handful.networks.parts import parts_of


@dataclass(frozen=True, kw_only=True)
class Settings:
    """PIRL's, with the jigsaw.

    Attributes:
        weight: of the term of the pieces; the image's own has the rest.
        temperature: of the softmax.
        grid: pieces along each axis; None: 3 in 2D and 2 in 3D.
        memory: earlier embeddings that are negatives too, besides those of the batch; 0 for none.
        batch: images a step.
        patch_share: of the planned patch's sides in 3D.
        width: of the embedding.
    """

    weight: float = 0.5  # the paper's lambda
    temperature: float = 0.07  # the paper's
    grid: int | None = None  # the paper: 3
    memory: int = 0  # the paper: 32000, of a memory of all images
    batch: int = 16  # the paper: 1024
    patch_share: float = 0.75  # ours: the paper is 2D. Half a patch leaves pieces of one deepest voxel
    width: int = 128  # the paper's

    def __post_init__(self) -> None:
        if not 0 < self.weight <= 1 or self.temperature <= 0 or self.memory < 0 or self.width < 1:
            raise UsageError(
                "weight must lie in (0, 1], temperature be positive, memory 0 or more and width at least 1; "
                f"found {self.weight}, {self.temperature}, {self.memory} and {self.width}."
            )
        if (self.grid is not None and self.grid < 2) or self.batch < 2 or not 0 < self.patch_share <= 1:
            raise UsageError("grid and batch must be at least 2 and patch_share in (0, 1].")


class Batch(NamedTuple):
    """What one step compares.

    Attributes:
        image: (B, C, *S).
        other: (B, C, *S), another view of the same images.
        pieces: (B P, C, *s), the pieces of ``image``, those of one image after another in shuffled order.
        box: (B, 7) where each was cut from: case, first voxel, one past the last.
    """

    image: Tensor
    other: Tensor
    pieces: Tensor
    box: Tensor


class PIRL(Method):
    """Contrast the shuffled pieces of an image, and the image, with another view of it."""

    kind: ClassVar[Literal["pretrain", "train"]] = "pretrain"
    needs: ClassVar[Needs] = Needs(labels=False, unlabelled=True)
    paper: ClassVar[str] = "Misra and van der Maaten 2020, PIRL, https://arxiv.org/abs/1912.01991"

    def __init__(self, network: nn.Module, settings: Settings) -> None:
        super().__init__()
        parts = parts_of(network)
        self.stride = parts.stride
        self.settings = settings
        self.grid = settings.grid or (3 if parts.dims == 2 else 2)
        width = settings.width
        self.embed = Embedder(parts.encoder, NormedHead(parts.deepest, widths=(width,)))
        self.piece_head = NormedHead(parts.deepest, widths=(width,))
        self.join = nn.Linear(self.grid**parts.dims * width, width)
        self.memory = Memory(settings.memory, width) if settings.memory else None
        self.seen: tuple[Tensor, Tensor] | None = None

    def batch(self, source: Source) -> Batch:
        """Draw patches of different volumes where there are enough, two views of each, and the pieces of the first.

        Raises:
            DataError: the first patches drawn all overlap each other, so that there is nothing to tell apart.
            UsageError: the patches are too small to be cut.
        """
        if len(self.stride) == 3:
            source = source.smaller(self.settings.patch_share, multiple=self.stride)
        sides = piece_sides(source.patch, grid=self.grid, stride=self.stride)
        crops = source.draw_any(self.settings.batch)
        box = torch.cat([crops.case[:, None], crops.low, crops.high], dim=1)
        if source.step == 0 and overlap(box, box).all():
            raise DataError(
                "pirl tells images apart, but all patches it drew overlap each other. It needs several volumes, or "
                "smaller patches of the only one (--set method.patch_share=...); byol works with one."
            )
        image, other = source.view(crops, stream=0).image, source.view(crops, stream=1).image
        generator = source.generator()
        pieces = cut(image, grid=self.grid, sides=sides, generator=generator)
        order = torch.rand(len(image), pieces.shape[1], generator=generator).argsort(1).to(image.device)
        pieces = pieces[torch.arange(len(image), device=image.device)[:, None], order]
        return Batch(image, other, pieces.flatten(0, 1), box.to(image.device))

    def step(self, batch: Any, progress: float) -> StepOutput:
        """Contrast pieces and image with the other view, which stands for the paper's memory of the image."""
        z = self.embed(batch.image)
        pieces = self.piece_head(self.embed.encoder(batch.pieces)[-1])
        joined = self.join(pieces.reshape(len(z), -1)).float()
        with torch.no_grad():  # after the passes with a gradient: autocast keeps the weights it cast
            target = self.embed(batch.other)
        keys, places = gathered(target), gathered(batch.box)
        negatives, boxes = (keys, places) if self.memory is None else self.memory.with_batch(keys, places)
        related = overlap(batch.box, boxes)
        temperature, weight = self.settings.temperature, self.settings.weight
        jigsaw = queue_info_nce(joined, target, negatives, temperature=temperature, related=related)
        image = queue_info_nce(z, target, negatives, temperature=temperature, related=related)
        terms = {"jigsaw": weight * jigsaw, "image": (1 - weight) * image}
        self.seen = (keys, places)
        return StepOutput(
            terms["jigsaw"] + terms["image"],
            {"jigsaw": jigsaw.detach(), "image": image.detach()},
            terms=terms,
            watched=Watched(torch.stack([z.detach(), target], dim=1)),
        )

    def after_step(self, progress: float) -> None:
        """Remember the embeddings of this step."""
        if self.memory is not None and self.seen is not None:
            self.memory.enqueue(*self.seen)

    def exports(self) -> Mapping[str, nn.Module]:
        """The encoder; the heads are dropped."""
        return {"encoder": self.embed.encoder}


def piece_sides(patch: Sequence[int], *, grid: int, stride: Sequence[int]) -> tuple[int, ...]:
    """Return the side of a piece along each axis: what fits into a cell of the grid in multiples of the stride.

    A piece is at least two strides long where the patch has three, so that its deepest map is no single voxel; pieces
    longer than a cell overlap. Along an axis of one stride there is nothing to cut.

    Raises:
        UsageError: every side would be one stride.

    Example:
        >>> piece_sides((224, 160), grid=3, stride=(32, 32))
        (64, 64)
    """
    counts = [side // unit for side, unit in zip(patch, stride, strict=True)]
    fitting = [max(count // grid, min(2, count - 1), 1) for count in counts]
    if math.prod(fitting) == 1:
        raise UsageError(
            f"patches of {tuple(patch)} are too small for {grid} pieces an axis: a piece would be one voxel after the "
            f"network's strides of {tuple(stride)}. Plan a larger patch, or raise method.patch_share (3D)."
        )
    return tuple(count * unit for count, unit in zip(fitting, stride, strict=True))


def cut(image: Tensor, *, grid: int, sides: Sequence[int], generator: torch.Generator) -> Tensor:
    """Cut pieces from images (B, C, *S): (B, P, C, *sides), P = grid to the power of the axes, row-major.

    A piece smaller than its cell lies somewhere in it, so that pieces do not touch; else pieces are spread evenly
    from edge to edge.
    """
    starts = []
    for length, side in zip(image.shape[2:], sides, strict=True):
        free = length // grid - side
        if free > 0:
            within = torch.randint(0, free + 1, (grid,), generator=generator).tolist()
            starts.append([cell * length // grid + offset for cell, offset in enumerate(within)])
        else:
            starts.append([round(cell * (length - side) / (grid - 1)) for cell in range(grid)])
    pieces = []
    for corner in product(*starts):
        box = tuple(slice(start, start + side) for start, side in zip(corner, sides, strict=True))
        pieces.append(image[(slice(None), slice(None), *box)])
    return torch.stack(pieces, dim=1)


METHOD = PIRL
