"""SSCL: first all images are told apart, then the pixels of the labelled ones by their class.

The labels are used twice, in pre-training and in the training after it: pixels of one class attract each other across
images and views, so that encoder and decoder start from features that already separate the classes. The published
loss looks at every fourth pixel, or inside blocks; here it is exact over all pixels by default. Helps most where a few
labelled volumes cannot cover what a class looks like.

References:
    Hu et al., 2021, semi-supervised contrastive learning for label-efficient medical image segmentation.
    https://arxiv.org/abs/2109.07407
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from handful.data.augment.geometry import identity_geometry
from handful.data.sampling import Source
from handful.errors import DataError, UsageError
from handful.losses.gathered import pixel_contrast_across_processes
from handful.losses.mixcl import identity_contrast, overlapping
from handful.losses.pixel import pixel_contrast
from handful.losses.processes import gathered
from handful.losses.segmentation import downsampled
from handful.methods.contract import Method, Needs, StepOutput, Watched, watched_places
from handful.networks.heads import PixelHead, VectorHead
from handful.networks.levels import decode, level_strides, train_up_to
from handful.networks.parts import parts_of


@dataclass(frozen=True, kw_only=True)
class Settings:
    """SSCL's.

    Attributes:
        stage: ``both``, one after the other; or only the ``global`` one (no labels, encoder alone), or only the
            ``local`` one (for example on an encoder trained before).
        global_share: of the run, for the global stage.
        batch: images a step of the global stage, two views each.
        temperature: of the global stage.
        patch_share: of the planned patch's sides in the global stage in 3D.
        width: of the global embedding.
        local: which pixels the local stage contrasts: ``exact`` all; ``stride`` every n-th along each axis; ``block``
            those of one tile at a time; ``self`` every n-th, without labels (the same pixel of the other view).
        stride: n of ``stride`` and ``self``.
        block: side of the tiles.
        local_batch: images a step of the local stage, two views each.
        local_temperature: of the local stage.
        local_level: decoder level whose map is contrasted, 0 the finest; finer ones stay fresh. None: 0 in 2D, 1 in
            3D.
        local_pixels: contrasted in a step at most (about), all images and views together; the cost grows with its
            square. Not for ``block``. Patches of the local stage are made as much smaller than planned as this takes,
            and as it takes that a step has no more voxels than a planned batch.
        local_geometry: whether a local batch is also moved; its two views alike, so that their pixels coincide.
        local_width: of the pixel embedding.
    """

    stage: Literal["both", "global", "local"] = "both"
    global_share: float = 0.5  # the paper: 70 epochs each
    batch: int = 16  # released scripts: 120
    temperature: float = 0.5  # released code
    patch_share: float = 0.5  # ours: the paper is 2D
    width: int = 256  # released code; the paper's figure: 128
    local: Literal["exact", "stride", "block", "self"] = "exact"  # ours; the paper: stride and block
    stride: int = 4  # the paper
    block: int = 16  # the paper
    local_batch: int = 4  # released code
    local_temperature: float = 0.1  # released script
    local_level: int | None = None  # the paper: 0; in 3D half the resolution is a 64th of the pairs
    local_pixels: int = 32_768  # ours; docs/methods/sscl.md has the times
    local_geometry: bool = True  # ours; the paper: False
    local_width: int = 128  # released code

    def __post_init__(self) -> None:
        if not 0 < self.global_share < 1 or not 0 < self.patch_share <= 1:
            raise UsageError("global_share must lie between 0 and 1, and patch_share in (0, 1].")
        if self.batch < 2 or self.local_batch < 1:
            raise UsageError("batch must be at least 2 and local_batch at least 1.")
        if min(self.temperature, self.local_temperature) <= 0:
            raise UsageError("temperature and local_temperature must be positive.")
        if min(self.stride, self.block, self.local_pixels, self.width, self.local_width) < 1:
            raise UsageError("stride, block, local_pixels, width and local_width must be at least 1.")


class GlobalBatch(NamedTuple):
    """Two views (B, C, *S) of each image, and which of the N images of all processes overlap, (N, N) bool."""

    first: Tensor
    second: Tensor
    related: Tensor


class LocalBatch(NamedTuple):
    """Two views (B, C, *S) of each image that differ in intensities alone, and their label (B, *S), if used."""

    first: Tensor
    second: Tensor
    label: Tensor | None


class SSCL(Method):
    """Tell images apart, then pixels by their class."""

    kind: ClassVar[Literal["pretrain", "train"]] = "pretrain"
    needs: ClassVar[Needs] = Needs(
        labels=False,
        unlabelled=True,
        optional_labels=True,
        labels_unless="method.local=self or method.stage=global",  # else refused, see ``_local_source``
    )
    paper: ClassVar[str] = "Hu et al. 2021, SSCL, https://arxiv.org/abs/2109.07407"
    has_epochs: ClassVar[bool] = False

    def __init__(self, network: nn.Module, settings: Settings) -> None:
        super().__init__()
        parts = parts_of(network)
        self.settings = settings
        self.stride = parts.stride
        self.encoder = parts.encoder
        if settings.stage != "local":
            # no activation between the layers, as released
            self.head = VectorHead(parts.deepest, hidden=parts.deepest, out=settings.width, activation=False)
        if settings.stage != "global":
            usual = min(parts.dims - 2, len(parts.widths) - 2)
            self.level = usual if settings.local_level is None else settings.local_level
            train_up_to(parts, level=self.level)
            self.level_stride = level_strides(parts)[self.level]
            self.decoder = parts.decoder
            width = settings.local_width
            self.pixel_head = PixelHead(
                dims=parts.dims, in_channels=parts.widths[self.level], hidden=2 * width, out=width
            )

    def batch(self, source: Source) -> GlobalBatch | LocalBatch:
        """Draw images of all cases (global stage), then of the labelled ones with their labels (local stage)."""
        settings = self.settings
        local = self._local_source(source) if settings.stage != "global" else source
        if settings.stage == "global" or (
            settings.stage == "both" and source.progress < settings.global_share
        ):
            if len(self.stride) == 3:
                source = source.smaller(settings.patch_share, multiple=self.stride)
            crops = source.draw_any(settings.batch)
            first, second = source.view(crops, stream=0), source.view(crops, stream=1)
            places = crops.everywhere
            assert places is not None
            related = overlapping(places.case, places.low, places.high)
            if source.step == 0 and related.all():
                raise DataError(
                    "the global stage of SSCL tells images apart, and all patches show the same place of one volume. "
                    "Give it more volumes, lower method.patch_share, or use --set method.stage=local."
                )
            return GlobalBatch(first.image, second.image, related.to(first.image.device))
        draw = local.draw_any if settings.local == "self" else local.draw_labelled
        crops = draw(settings.local_batch)
        still = None if settings.local_geometry else identity_geometry(len(crops.case), len(local.patch))
        first = local.view(crops, stream=0, geometry=still)
        second = local.view(crops, stream=1, geometry=first.geometry)
        return LocalBatch(first.image, second.image, first.label)

    def step(self, batch: Any, progress: float) -> StepOutput:
        """Contrast of images, or of pixels, as the batch is."""
        views = torch.cat([batch.first, batch.second])
        features = self.encoder(views)
        if isinstance(batch, GlobalBatch):
            first, second = (gathered(view) for view in self.head(features[-1]).float().chunk(2))
            loss = identity_contrast(
                first, second, temperature=self.settings.temperature, related=batch.related
            )
            watched = Watched(torch.stack([first, second], dim=1).detach())
            return StepOutput(loss, {"global_contrast": loss.detach()}, watched=watched)
        z = self.pixel_head(decode(self.decoder, features, level=self.level)).float()
        label = batch.label
        if label is not None:
            label = downsampled(label, z.shape[2:])
            label = torch.stack([label, label], dim=1)
        z, temperature = torch.stack(z.chunk(2), dim=1), self.settings.local_temperature
        if self.settings.local == "block":
            loss = pixel_contrast(z, label, temperature=temperature, block=self.settings.block)
        else:
            stride = self.settings.stride if self.settings.local in ("stride", "self") else None
            loss = pixel_contrast_across_processes(z, label, temperature=temperature, stride=stride)
        return StepOutput(loss, {"local_contrast": loss.detach()}, watched=watched_places(z))

    def exports(self) -> Mapping[str, nn.Module]:
        """Encoder and decoder; the heads are dropped. The global stage alone trains the encoder only."""
        if self.settings.stage == "global":
            return {"encoder": self.encoder}
        return {"encoder": self.encoder, "decoder": self.decoder}

    def _local_source(self, source: Source) -> Source:
        """Return the source with patches of the local stage, after saying before the first step what cannot work."""
        settings = self.settings
        if settings.local != "self" and not source.labelled:
            raise UsageError(
                "the local stage of SSCL contrasts pixels by their labels, and this run has none. Allow some "
                "(--labels), or use --set method.local=self, or --set method.stage=global."
            )
        share = source.batch / (2 * settings.local_batch)
        if settings.local != "block":
            step = settings.stride if settings.local in ("stride", "self") else 1
            pixels = math.prod(s / (n * step) for s, n in zip(source.patch, self.level_stride))
            share = min(share, settings.local_pixels / (2 * settings.local_batch * pixels))
        if share < 1:
            source = source.smaller(share ** (1 / len(self.stride)), multiple=self.stride)
        size = tuple(side // stride for side, stride in zip(source.patch, self.level_stride))
        if settings.local == "block" and min(size) < settings.block:
            raise UsageError(
                f"method.block is {settings.block}, but the decoder's map at level {self.level} has {size} pixels. "
                "Use a smaller block or local_batch, or method.local=exact."
            )
        return source


METHOD = SSCL
