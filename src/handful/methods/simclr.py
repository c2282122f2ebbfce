"""SimCLR: two views of one image are positives, all other images of the batch are negatives.

The plainest contrast, and the one the methods that know about volumes are compared with: neighbouring slices, and the
same anatomy in two patients, are pushed apart here. Trains the encoder; the decoder starts fresh. Collapse is a
plateau at ln(2 B - 1).

References:
    Chen et al., 2020, a simple framework for contrastive learning. https://arxiv.org/abs/2002.05709
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from handful.data.sampling import Source
from handful.errors import DataError, UsageError
from handful.losses.mixcl import identity_contrast, overlapping
from handful.losses.processes import gathered
from handful.methods.contract import Method, Needs, StepOutput, Watched
from handful.networks.heads import VectorHead
from handful.networks.parts import parts_of


@dataclass(frozen=True, kw_only=True)
class Settings:
    """SimCLR's.

    Attributes:
        temperature: of the softmax.
        batch: images a step, two views each; the other images are the negatives.
        patch_share: of the planned patch's sides in 3D, where patches as large as the volume all show the same.
        width: of the embedding.
    """

    temperature: float = (
        0.1  # section 5.1, the best with many epochs; PCL compares with 0.1 too, SSCL uses 0.5
    )
    batch: int = 16  # the paper: hundreds to thousands; PCL's comparison: 32
    patch_share: float = 0.5  # ours: the paper is 2D
    width: int = 128  # the paper

    def __post_init__(self) -> None:
        if self.temperature <= 0 or self.batch < 2 or not 0 < self.patch_share <= 1 or self.width < 1:
            raise UsageError(
                "temperature and width must be positive, batch at least 2 and patch_share in (0, 1]."
            )


class Batch(NamedTuple):
    """Two views (B, C, *S) of each image, and which of the N images of all processes overlap, (N, N) bool."""

    first: Tensor
    second: Tensor
    related: Tensor


class SimCLR(Method):
    """Tell images apart."""

    kind: ClassVar[Literal["pretrain", "train"]] = "pretrain"
    needs: ClassVar[Needs] = Needs(labels=False, unlabelled=True)
    paper: ClassVar[str] = "Chen et al. 2020, SimCLR, https://arxiv.org/abs/2002.05709"
    trains_all: ClassVar[bool] = True

    def __init__(self, network: nn.Module, settings: Settings) -> None:
        super().__init__()
        parts = parts_of(network)
        self.stride = parts.stride
        self.encoder = parts.encoder
        self.head = VectorHead(parts.deepest, hidden=parts.deepest, out=settings.width)
        self.settings = settings

    def batch(self, source: Source) -> Batch:
        """Draw slices, or patches, of different volumes where there are enough, and two views of each."""
        if len(self.stride) == 3:
            source = source.smaller(self.settings.patch_share, multiple=self.stride)
        crops = source.draw_any(self.settings.batch)
        first, second = source.view(crops, stream=0), source.view(crops, stream=1)
        places = crops.everywhere
        assert places is not None
        related = overlapping(places.case, places.low, places.high)
        if source.step == 0 and related.all():
            raise DataError(
                "SimCLR tells images apart, and all patches show the same place of one volume. Give it more volumes, "
                "or lower method.patch_share."
            )
        return Batch(first.image, second.image, related.to(first.image.device))

    def step(self, batch: Any, progress: float) -> StepOutput:
        """Contrast of the two views, over all images but those that show the same tissue."""
        z = self.head(self.encoder(torch.cat([batch.first, batch.second]))[-1]).float()
        first, second = (gathered(view) for view in z.chunk(2))
        loss = identity_contrast(first, second, temperature=self.settings.temperature, related=batch.related)
        watched = Watched(torch.stack([first, second], dim=1).detach())
        return StepOutput(loss, {"contrast": loss.detach()}, watched=watched)

    def exports(self) -> Mapping[str, nn.Module]:
        """The encoder; the head is dropped."""
        return {"encoder": self.encoder}


METHOD = SimCLR
