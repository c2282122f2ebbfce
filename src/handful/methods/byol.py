"""BYOL and SimSiam: predict the embedding of one view from the other; nothing is pushed apart.

Two views of an image have one identity, and no other image is needed to say so: no negatives, hence small batches
will do, and patches of one volume may overlap. A predictor on one side and a side without gradient keep embeddings
from collapsing: in BYOL the other side is a slowly averaged teacher, in SimSiam the student itself. Trains the encoder.

References:
    Grill et al., 2020, BYOL. https://arxiv.org/abs/2006.07733
    Chen and He, 2021, SimSiam. https://arxiv.org/abs/2011.10566
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from handful.data.sampling import Source
from handful.errors import UsageError
from handful.losses.identity import byol_distance, negative_cosine
from handful.methods.contract import Method, Needs, StepOutput, Watched
from handful.networks.embedder import Embedder
from handful.networks.heads import NormedHead
from handful.networks.parts import parts_of
from handful.networks.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class Settings:
    """BYOL's, or SimSiam's.

    Attributes:
        form: ``byol``: the target is a teacher's embedding; ``simsiam``: the student's own, without gradient.
        decay: of the teacher at the start; rises to 1 along a cosine. SimSiam has no teacher.
        hidden: width between the projector's layers; None: 1024 in BYOL and 512 in SimSiam (published: 4096, 2048).
        width: of the embedding; None: 256 in BYOL and 512 in SimSiam (published: 256, 2048).
        predictor_hidden: width between the predictor's layers; None: 1024 in BYOL and 128 in SimSiam (published: 4096,
            512).
        batch: images a step, two views each.
        patch_share: of the planned patch's sides in 3D.
    """

    form: Literal["byol", "simsiam"] = "byol"
    decay: float = 0.99  # BYOL's runs of 100 and 300 epochs; 0.996 in its longest, 1000
    # published heads follow 2048 channels; after the few hundred of a U-Net they would take most of a step's time
    hidden: int | None = None  # the papers: 4096 (BYOL), 2048 (SimSiam)
    width: int | None = None  # the papers: 256, 2048
    predictor_hidden: int | None = None  # the papers: 4096, 512
    batch: int = 16  # the papers: 4096 (BYOL), 512 (SimSiam)
    patch_share: float = 0.5  # ours: the papers are 2D

    def __post_init__(self) -> None:
        if not 0 <= self.decay <= 1 or self.batch < 2 or not 0 < self.patch_share <= 1:
            raise UsageError(
                "decay must lie in [0, 1], batch be at least 2 (batch norm needs two images) and patch_share in (0, 1]."
            )
        if any(size is not None and size < 1 for size in (self.hidden, self.width, self.predictor_hidden)):
            raise UsageError("hidden, width and predictor_hidden must be at least 1, or left to the form.")


class Batch(NamedTuple):
    """Two views (B, C, *S) of each image."""

    first: Tensor
    second: Tensor


class BYOL(Method):
    """Pull two views of an image together, by a predictor and a target without gradient."""

    kind: ClassVar[Literal["pretrain", "train"]] = "pretrain"
    needs: ClassVar[Needs] = Needs(labels=False, unlabelled=True)
    paper: ClassVar[str] = "Grill et al. 2020, BYOL, https://arxiv.org/abs/2006.07733"

    def __init__(self, network: nn.Module, settings: Settings) -> None:
        super().__init__()
        parts = parts_of(network)
        self.stride = parts.stride
        self.settings = settings
        averaged = settings.form == "byol"
        hidden = settings.hidden or (1024 if averaged else 512)
        width = settings.width or (256 if averaged else 512)
        predictor_hidden = settings.predictor_hidden or (1024 if averaged else 128)
        # SimSiam's projector has a layer more, and a norm at the end
        projector = NormedHead(
            parts.deepest,
            widths=(hidden, width) if averaged else (hidden, hidden, width),
            norm_last=not averaged,
        )
        self.student = Embedder(parts.encoder, projector)
        self.predictor = NormedHead(width, widths=(predictor_hidden, width))
        # its norms use the batch's statistics, as the student's do: the published target network
        self.teacher = Teacher(self.student, follow_mode=True) if averaged else None

    def batch(self, source: Source) -> Batch:
        """Draw patches of all cases, and two views of each."""
        if len(self.stride) == 3:
            source = source.smaller(self.settings.patch_share, multiple=self.stride)
        crops = source.draw_any(self.settings.batch)
        return Batch(source.view(crops, stream=0).image, source.view(crops, stream=1).image)

    def step(self, batch: Any, progress: float) -> StepOutput:
        """Predict each view's target from the other view; view by view, so that norms see one view at a time."""
        z1, z2 = self.student(batch.first), self.student(batch.second)
        p1, p2 = self.predictor(z1).float(), self.predictor(z2).float()
        if self.teacher is None:
            loss = (negative_cosine(p1, z2) + negative_cosine(p2, z1)) / 2
        else:
            loss = byol_distance(p1, self.teacher(batch.second)) + byol_distance(
                p2, self.teacher(batch.first)
            )
        watched = Watched(torch.stack([z1, z2], dim=1).detach())
        return StepOutput(loss, {"distance": loss.detach()}, watched=watched)

    def after_step(self, progress: float) -> None:
        """Let the teacher follow, ever more slowly: its decay rises from ``decay`` to 1."""
        if self.teacher is not None:
            decay = 1 - (1 - self.settings.decay) * (1 + math.cos(math.pi * progress)) / 2
            self.teacher.update(self.student, decay)

    def exports(self) -> Mapping[str, nn.Module]:
        """The student's encoder; its head, the predictor and the teacher are dropped."""
        return {"encoder": self.student.encoder}


METHOD = BYOL
