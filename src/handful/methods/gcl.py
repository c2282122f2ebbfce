"""GCL: parts of volumes at the same height are alike, then regions of one image are told apart.

Volumes of one body region are cut into a few partitions along the slice axis. The global stage trains the encoder:
slices, or patches, of one partition are alike in all volumes, other partitions are negatives. The local stage freezes
it and trains the deep half of the decoder: a small region is the same in two intensity versions of an image and unlike
the regions around it. Helps where volumes are roughly aligned and labels are very few; PCL is its finer successor.

References:
    Chaitanya et al., 2020, contrastive learning of global and local features. https://arxiv.org/abs/2006.10511
    Zeng et al., 2021, whose comparison has the global stage in another form. https://arxiv.org/abs/2106.09157
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from handful.data.augment.geometry import Geometry, identity_geometry
from handful.data.sampling import Crops, Source
from handful.errors import UsageError
from handful.losses.contrastive import partition_contrast
from handful.losses.global_local import (
    global_contrast,
    local_contrast,
    nearest_regions,
    region_corners,
    regions,
)
from handful.losses.mixcl import overlapping
from handful.losses.processes import gathered
from handful.methods.contract import Method, Needs, StepOutput, Watched, watched_places
from handful.networks.heads import PixelHead, VectorHead
from handful.networks.levels import decode, level_strides, train_up_to
from handful.networks.parts import parts_of

REGION = 3
"""Side of a local region, in pixels of the decoder map (the paper's)."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """GCL's.

    Attributes:
        stage: ``both``, one after the other; or only the ``global`` one (encoder alone), or only the ``local`` one.
        global_share: of the run, for the global stage.
        form: of the global loss. ``original``: a positive pair and its negatives; ``pcl``: all slices of a partition
            are positives and in the denominator, as PCL compares with it.
        across: whether ``original`` also attracts slices of one partition in two volumes (the paper's G^D), or only
            leaves them out of the negatives (G^D-).
        partitions: of each volume, along the slice axis.
        volumes: a step of the global stage, a slice or patch from each partition of each.
        temperature: of both stages.
        patch_share: of the planned patch's sides in the global stage in 3D.
        width: of the embeddings.
        local_batch: images a step of the local stage, two views each; None takes the plan's.
        local_level: decoder level whose map is contrasted, 0 the finest; finer ones stay fresh. None: a quarter of
            the resolution, level 2, or the deepest there is.
        local_geometry: whether a local batch is also moved; its two views alike, so that their regions coincide.
        freeze: whether the local stage leaves the encoder as the global stage made it.
    """

    stage: Literal["both", "global", "local"] = "both"
    global_share: float = 0.5  # the paper: as many steps each
    form: Literal["original", "pcl"] = "original"
    across: bool = True  # the paper's best
    partitions: int = 4  # the paper
    volumes: int = 4  # released scripts: 6
    temperature: float = 0.1  # the paper
    patch_share: float = 0.5  # ours: the paper is 2D
    width: int = 128  # the paper
    local_batch: int | None = None  # released scripts: 12
    local_level: int | None = None  # the paper's best: three of five decoder blocks, level 2
    local_geometry: bool = True  # ours; the paper: False
    freeze: bool = True  # the paper

    def __post_init__(self) -> None:
        if not 0 < self.global_share < 1 or not 0 < self.patch_share <= 1 or self.temperature <= 0:
            raise UsageError(
                "global_share must lie between 0 and 1, patch_share in (0, 1], temperature above 0."
            )
        if self.partitions < 2 or min(self.volumes, self.width, self.local_batch or 1) < 1:
            raise UsageError("partitions must be at least 2; volumes, width and local_batch at least 1.")
        if self.form == "original" and self.across and self.volumes < 2:
            raise UsageError(
                "method.across attracts slices of two volumes: volumes must be at least 2, or across=false."
            )
        if self.form == "pcl" and not self.across:
            raise UsageError(
                "method.form=pcl always attracts across volumes; across=false is of form=original."
            )


class GlobalBatch(NamedTuple):
    """Views of N images, each from one partition of one volume.

    Attributes:
        views: (V N, C, *S), all first views, then all second ones.
        partition: (M,) int64 of the images of all processes, and so the next two.
        partner: (M,) index of the image of the same partition in another volume; None where pairs are not used.
        related: (M, M) bool, which images show the same tissue.
        axis: which of the volume's D, H, W was cut into partitions.
    """

    views: Tensor
    partition: Tensor
    partner: Tensor | None
    related: Tensor
    axis: int


class LocalBatch(NamedTuple):
    """Two views (B, C, *S) of each image that differ in intensities alone."""

    first: Tensor
    second: Tensor


class GCL(Method):
    """Pull partitions together across volumes, then tell the regions of an image apart."""

    kind: ClassVar[Literal["pretrain", "train"]] = "pretrain"
    needs: ClassVar[Needs] = Needs(labels=False, unlabelled=True)
    paper: ClassVar[str] = "Chaitanya et al. 2020, GCL, https://arxiv.org/abs/2006.10511"
    has_epochs: ClassVar[bool] = False

    def __init__(self, network: nn.Module, settings: Settings) -> None:
        super().__init__()
        parts = parts_of(network)
        self.settings = settings
        self.stride = parts.stride
        self.encoder = parts.encoder
        if settings.stage != "local":
            # 1024 hidden units as released, but after an average over space: flattening would fix the image's size
            self.head = VectorHead(parts.deepest, hidden=1024, out=settings.width)
        if settings.stage != "global":
            usual = min(2, len(parts.widths) - 2)
            self.level = usual if settings.local_level is None else settings.local_level
            train_up_to(parts, level=self.level)
            self.level_stride = level_strides(parts)[self.level]
            self.decoder = parts.decoder
            channels = parts.widths[self.level]
            # as released, but without batch norm between the two convolutions
            self.pixel_head = PixelHead(
                dims=parts.dims, in_channels=channels, hidden=channels, out=channels, activation=True
            )
            self.region_head = nn.Linear(channels * REGION**parts.dims, settings.width, bias=False)
            if settings.freeze and settings.stage == "local":
                self.encoder.requires_grad_(False)

    def batch(self, source: Source) -> GlobalBatch | LocalBatch:
        """Draw one slice, or patch, a partition from a few volumes (global stage), then any (local stage)."""
        settings = self.settings
        if settings.stage != "global":
            self._check_regions(source.patch)
        if settings.stage == "global" or (
            settings.stage == "both" and source.progress < settings.global_share
        ):
            return self._global_batch(source)
        crops = source.draw_any(settings.local_batch or source.batch)
        still = None if settings.local_geometry else _unmoved(crops)
        first = source.view(crops, stream=0, geometry=still)
        second = source.view(crops, stream=1, geometry=first.geometry)
        return LocalBatch(first.image, second.image)

    def step(self, batch: Any, progress: float) -> StepOutput:
        """Contrast of partitions, or of regions, as the batch is."""
        return self._global_step(batch) if isinstance(batch, GlobalBatch) else self._local_step(batch)

    def exports(self) -> Mapping[str, nn.Module]:
        """Encoder and decoder; the heads are dropped. The global stage alone trains the encoder only."""
        if self.settings.stage == "global":
            return {"encoder": self.encoder}
        return {"encoder": self.encoder, "decoder": self.decoder}

    def _global_batch(self, source: Source) -> GlobalBatch:
        settings = self.settings
        paired = settings.form == "original" and settings.across
        if paired and len(source.labelled) + len(source.unlabelled) < 2:
            raise UsageError(
                "GCL attracts slices of two volumes, and this run has one. Use --set method.across=false."
            )
        if len(self.stride) == 3:
            source = source.smaller(settings.patch_share, multiple=self.stride)
        crops = source.draw_parts(settings.volumes, settings.partitions)
        views = [source.view(crops, stream=stream).image for stream in range(1 if paired else 2)]
        if settings.form == "original":  # the slice itself is a view too
            plain = source.view(crops, geometry=_unmoved(crops), intensity=False)
            views.insert(0, plain.image)
        device, places = crops.image.device, crops.everywhere
        assert places is not None
        partition = torch.arange(settings.partitions).repeat(len(places.case) // settings.partitions)
        partner = partners(places.case[:: settings.partitions], settings.partitions) if paired else None
        return GlobalBatch(
            torch.cat(views),
            partition.to(device),
            partner if partner is None else partner.to(device),
            overlapping(places.case, places.low, places.high).to(device),
            source.order[0],
        )

    def _global_step(self, batch: GlobalBatch) -> StepOutput:
        z = self.head(self.encoder(batch.views)[-1]).float()
        z = gathered(torch.stack(z.split(self.settings.volumes * self.settings.partitions), dim=1))
        temperature = self.settings.temperature
        if self.settings.form == "pcl":
            loss = partition_contrast(z, batch.partition, temperature=temperature, related=batch.related)
        else:
            loss = global_contrast(
                z, batch.partition, partner=batch.partner, related=batch.related, temperature=temperature
            )
        watched = Watched(z.detach(), batch.partition / (self.settings.partitions - 1), batch.axis)
        return StepOutput(loss, {"global_contrast": loss.detach()}, watched=watched)

    def _local_step(self, batch: LocalBatch) -> StepOutput:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.settings.freeze):
            features = self.encoder(torch.cat([batch.first, batch.second]))
        maps = self.pixel_head(decode(self.decoder, features, level=self.level))
        corners = region_corners(maps.shape[2:], region=REGION)
        first, second = self.region_head(regions(maps, corners, size=REGION)).float().chunk(2)
        loss = local_contrast(first, second, nearest_regions(corners), temperature=self.settings.temperature)
        watched = watched_places(torch.stack([first, second], dim=1).movedim(2, 3))
        return StepOutput(loss, {"local_contrast": loss.detach()}, watched=watched)

    def _check_regions(self, patch: tuple[int, ...]) -> None:
        """Say before the first step that the local stage has no room for its regions."""
        try:
            region_corners([side // stride for side, stride in zip(patch, self.level_stride)], region=REGION)
        except ValueError as error:
            raise UsageError(
                f"the local stage of GCL at decoder level {self.level}: {error} Use a finer level, for example --set "
                "method.local_level=0, or --set method.stage=global."
            ) from error


def partners(case: Tensor, partitions: int) -> Tensor:
    """Return for each image, volume by volume, the one of the same partition in the next volume of another case.

    Args:
        case: (M,) the case of each volume; a case may have been drawn twice.
        partitions: images a volume.

    Returns:
        (M * partitions,) indices; -1 where all volumes are of one case. The last volume's next is the first.
    """
    volume = torch.arange(len(case))
    ahead = (volume - volume[:, None]) % len(case)
    distance, other = ahead.masked_fill(case == case[:, None], len(case)).min(1)
    index = other[:, None] * partitions + torch.arange(partitions)
    return index.masked_fill(distance[:, None] == len(case), -1).flatten()


def _unmoved(crops: Crops) -> Geometry:
    return identity_geometry(len(crops.image), crops.image.ndim - 2)


METHOD = GCL
