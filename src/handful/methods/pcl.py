"""PCL: slices, or patches, at a similar relative position in their volumes are positives, whoever they belong to.

Volumes of one body region are roughly aligned, so position along the slice axis is a free, weak label. Trains the
encoder; the decoder starts fresh. Collapse is a plateau at ln(2 B V - 1): lower ``loop.lr``.

References:
    Zeng et al., 2021, positional contrastive learning for volumetric medical image segmentation.
    https://arxiv.org/abs/2106.09157
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from handful.data.sampling import Source
from handful.errors import DataError, UsageError
from handful.losses.contrastive import positional_contrast
from handful.losses.mixcl import overlapping
from handful.losses.processes import gathered
from handful.methods.contract import Method, Needs, StepOutput, Watched
from handful.networks.heads import VectorHead
from handful.networks.parts import parts_of


@dataclass(frozen=True, kw_only=True)
class Settings:
    """PCL's.

    Attributes:
        threshold: relative distance below which two images are positives.
        temperature: of the softmax.
        axes: ``slice``: distance along the slice axis; ``all``: the largest along the three axes (3D patches only).
        batch: images a step, two views each.
        patch_share: of the planned patch's sides in 3D, where a patch as large as the volume has only one position.
        width: of the embedding.
    """

    threshold: float = 0.1  # the paper's for CHD; 0.35 for ACDC
    temperature: float = 0.1  # the paper's
    axes: Literal["slice", "all"] = "slice"
    batch: int = 16  # the paper: 32
    patch_share: float = 0.5  # ours: the paper is 2D
    width: int = 512  # released code

    def __post_init__(self) -> None:
        if self.threshold <= 0 or self.temperature <= 0 or self.batch < 2 or not 0 < self.patch_share <= 1:
            raise UsageError(
                "threshold and temperature must be positive, batch at least 2 and patch_share in (0, 1]."
            )


class Batch(NamedTuple):
    """Two views (B, C, *S) of each image, and of the N images of all processes their positions and overlaps.

    Attributes:
        first, second: (B, C, *S), of this process.
        position: (N, 3) along the axis that is cut into slices, then along rows and columns (``Crops``).
        related: (N, N) bool, which images overlap.
        axis: which of the volume's D, H, W the images of this step are slices of.
    """

    first: Tensor
    second: Tensor
    position: Tensor
    related: Tensor
    axis: int


class PCL(Method):
    """Pull embeddings of images at similar positions together."""

    kind: ClassVar[Literal["pretrain", "train"]] = "pretrain"
    needs: ClassVar[Needs] = Needs(labels=False, unlabelled=True)
    paper: ClassVar[str] = "Zeng et al. 2021, PCL, https://arxiv.org/abs/2106.09157"
    trains_all: ClassVar[bool] = True

    def __init__(self, network: nn.Module, settings: Settings) -> None:
        super().__init__()
        parts = parts_of(network)
        if settings.axes == "all" and parts.dims == 2:
            raise UsageError(
                "method.axes=all compares patches of a 3D plan; a slice has one position, axes=slice."
            )
        self.stride = parts.stride
        self.encoder = parts.encoder
        self.head = VectorHead(parts.deepest, hidden=parts.deepest, out=settings.width)
        self.settings = settings

    def batch(self, source: Source) -> Batch:
        """Draw patches of different volumes where there are enough, and two views of each."""
        if len(self.stride) == 3:
            source = source.smaller(self.settings.patch_share, multiple=self.stride)
        if source.step == 0:
            self._check_positions(source)
        crops = source.draw_any(self.settings.batch)
        first, second = source.view(crops, stream=0), source.view(crops, stream=1)
        places = crops.everywhere
        assert places is not None
        related = overlapping(places.case, places.low, places.high)
        return Batch(
            first.image, second.image, places.position, related.to(first.image.device), source.order[0]
        )

    def step(self, batch: Any, progress: float) -> StepOutput:
        """Positional contrast of the two views."""
        views = torch.cat([batch.first, batch.second])
        z = self.head(self.encoder(views)[-1]).float()
        z = gathered(torch.stack(z.chunk(2), dim=1))
        where = batch.position if self.settings.axes == "all" else batch.position[:, 0]
        loss = positional_contrast(
            z, where, threshold=self.settings.threshold, temperature=self.settings.temperature,
            related=batch.related,
        )  # fmt: skip
        watched = Watched(z.detach(), batch.position[:, 0], batch.axis)
        return StepOutput(loss, {"contrast": loss.detach()}, watched=watched)

    def _check_positions(self, source: Source) -> None:
        """Say before the first step that no two images can lie so far apart as to be negatives."""
        patch = np.array((1,) * (3 - len(source.patch)) + source.patch)
        sides = np.array([case.image.shape[-3:] for case in (*source.labelled, *source.unlabelled)])
        apart = (np.maximum(sides - patch, 0) / sides).max(0)  # of the outermost places in one volume
        widest = apart.max() if self.settings.axes == "all" else apart[0]
        if widest < self.settings.threshold:
            raise DataError(
                f"PCL tells images at different positions apart, and here they lie {widest:.2g} of a volume apart at "
                f"most, less than method.threshold={self.settings.threshold:g}: every pair would be a positive. It "
                "needs volumes of several slices; in 3D lower method.patch_share."
            )

    def exports(self) -> Mapping[str, nn.Module]:
        """The encoder; the head is dropped."""
        return {"encoder": self.encoder}


METHOD = PCL
