"""MoCo v2: tell the other view of an image from a queue of earlier images, whose keys a slow teacher made.

The queue makes many negatives affordable with small batches; the teacher keeps keys of many steps comparable. Patches
that overlap a queued one of the same volume are not its negatives. Trains the encoder.

References:
    He et al., 2020, MoCo. https://arxiv.org/abs/1911.05722
    Chen et al., 2020, MoCo v2. https://arxiv.org/abs/2003.04297
    Cai et al., 2021, averaged norm statistics in the teacher. https://arxiv.org/abs/2101.08482
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handful.data.sampling import Source
from handful.errors import DataError, UsageError
from handful.losses.identity import queue_info_nce
from handful.losses.processes import gathered
from handful.methods.contract import Method, Needs, StepOutput, Watched
from handful.networks.embedder import Embedder
from handful.networks.heads import VectorHead
from handful.networks.memory import Memory, overlap
from handful.networks.parts import parts_of
from handful.networks.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class Settings:
    """MoCo v2's.

    Attributes:
        temperature: of the softmax.
        queue: keys remembered.
        decay: of the teacher. A teacher that follows quickly makes old keys differ from new ones by their age, which a
            query can tell instead of the image.
        batch_negatives: whether the other keys of the batch are negatives too, besides the queue.
        random_start: whether the queue starts full of random directions instead of empty.
        batch: images a step, two views each.
        patch_share: of the planned patch's sides in 3D.
        width: of the embedding.
    """

    temperature: float = 0.2  # v2
    queue: int = 512  # ours: 32 batches, a third of the teacher's memory; the paper: 65536
    decay: float = 0.99  # the paper: 0.999 over a million steps, too slow for thousands
    batch_negatives: bool = True  # ours: there is contrast from the first step on; the paper: the queue alone
    random_start: bool = False  # ours: random directions teach nothing; released code: true
    batch: int = 16  # the paper: 256
    patch_share: float = 0.5  # ours: the paper is 2D
    width: int = 128  # the paper's

    def __post_init__(self) -> None:
        if self.temperature <= 0 or self.queue < 1 or self.width < 1 or not 0 <= self.decay <= 1:
            raise UsageError(
                "temperature must be positive, queue and width at least 1 and decay in [0, 1]; "
                f"found {self.temperature}, {self.queue}, {self.width} and {self.decay}."
            )
        if self.batch < 2 or not 0 < self.patch_share <= 1:
            raise UsageError("batch must be at least 2 and patch_share in (0, 1].")


class Batch(NamedTuple):
    """Two views (B, C, *S) of each image, and the box it was cut from (B, 7): case, first voxel, one past the last."""

    first: Tensor
    second: Tensor
    box: Tensor


class MoCo(Method):
    """Contrast a student's query with a teacher's keys, those of this batch and of earlier ones."""

    kind: ClassVar[Literal["pretrain", "train"]] = "pretrain"
    needs: ClassVar[Needs] = Needs(labels=False, unlabelled=True)
    paper: ClassVar[str] = "Chen et al. 2020, MoCo v2, https://arxiv.org/abs/2003.04297"
    trains_all: ClassVar[bool] = True

    def __init__(self, network: nn.Module, settings: Settings) -> None:
        super().__init__()
        parts = parts_of(network)
        self.stride = parts.stride
        self.settings = settings
        head = VectorHead(parts.deepest, hidden=parts.deepest, out=settings.width)
        self.student = Embedder(parts.encoder, head)
        # its norms use averaged statistics: with the batch's own, query and key could recognise each other by them,
        # which the released code prevents by shuffling images between GPUs
        self.teacher = Teacher(self.student)
        self.memory = Memory(settings.queue, settings.width)
        self.keys: tuple[Tensor, Tensor] | None = None
        if settings.random_start:
            nowhere = torch.full((settings.queue, 7), -1)
            self.memory.enqueue(F.normalize(torch.randn(settings.queue, settings.width), dim=1), nowhere)

    def batch(self, source: Source) -> Batch:
        """Draw patches of different volumes where there are enough, and two views of each.

        Raises:
            DataError: the first patches drawn all overlap each other, so that there is nothing to tell apart.
        """
        if len(self.stride) == 3:
            source = source.smaller(self.settings.patch_share, multiple=self.stride)
        crops = source.draw_any(self.settings.batch)
        first, second = source.view(crops, stream=0), source.view(crops, stream=1)
        box = torch.cat([crops.case[:, None], crops.low, crops.high], dim=1)
        if source.step == 0 and overlap(box, box).all():
            raise DataError(
                "moco tells images apart, but all patches it drew overlap each other. It needs several volumes, or "
                "smaller patches of the only one (--set method.patch_share=...); byol works with one."
            )
        return Batch(first.image, second.image, box.to(first.image.device))

    def step(self, batch: Any, progress: float) -> StepOutput:
        """Contrast the queries of the first views with the keys of the second."""
        query, key = self.student(batch.first), self.teacher(batch.second)
        keys, places = gathered(key), gathered(batch.box)
        negatives, boxes = (
            self.memory.with_batch(keys, places) if self.settings.batch_negatives else self.memory.valid
        )
        related = overlap(batch.box, boxes)  # an image's own key in the batch among them
        loss = queue_info_nce(query, key, negatives, temperature=self.settings.temperature, related=related)
        self.keys = (keys, places)
        watched = Watched(torch.stack([query.detach(), key], dim=1))
        return StepOutput(loss, {"contrast": loss.detach()}, watched=watched)

    def after_step(self, progress: float) -> None:
        """Put the keys of this step into the queue and move the teacher."""
        if self.keys is not None:
            self.memory.enqueue(*self.keys)
        self.teacher.update(self.student, self.settings.decay)

    def exports(self) -> Mapping[str, nn.Module]:
        """The student's encoder; the head, the teacher and the queue are dropped."""
        return {"encoder": self.student.encoder}


METHOD = MoCo
