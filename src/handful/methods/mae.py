"""MAE: hide most of the patch in blocks, give back what was hidden.

To fill in three quarters of an anatomy from the last quarter a network must know what lies where and how organs are
shaped. Trains encoder and decoder, from images alone. A plain U-Net, as in nnssl: hidden voxels enter as 0, the mean
of normalised images, and convolutions see them as such. (SparK and S3D keep them out of the encoder's features.)

References:
    He et al., 2022, masked autoencoders. https://arxiv.org/abs/2111.06377
    Tian et al., 2023, SparK, for convolutional networks. https://arxiv.org/abs/2301.03580
    Wald et al., 2025, in 3D, on nnU-Net's networks. https://arxiv.org/abs/2410.23132
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from handful.data.sampling import Source
from handful.errors import UsageError
from handful.losses.reconstruction import reconstruction_error
from handful.methods.contract import Method, Needs, StepOutput, watched_average
from handful.networks.parts import parts_of

BLOCKS = 4
"""A patch has at least so many blocks along each axis, however small: with fewer there is nothing to infer from."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """MAE's.

    Attributes:
        mask_ratio: share of the blocks that is hidden.
        block: side of a block in voxels, at most a quarter of the patch's.
        norm: ``mse`` or ``l1``.
    """

    mask_ratio: float = 0.75  # He et al., nnssl
    block: int = 16  # He et al. (pixels), nnssl (voxels)
    norm: Literal["mse", "l1"] = "mse"  # He et al., nnssl

    def __post_init__(self) -> None:
        if not 0 < self.mask_ratio < 1 or self.block < 1:
            raise UsageError(
                f"mask_ratio must lie between 0 and 1 and block be at least 1, found {self.mask_ratio} and "
                f"{self.block}."
            )


class Batch(NamedTuple):
    """Patches (B, C, *S) and which voxels are hidden (B, *S) bool."""

    image: Tensor
    hidden: Tensor


class MAE(Method):
    """Reconstruct hidden blocks."""

    kind: ClassVar[Literal["pretrain", "train"]] = "pretrain"
    needs: ClassVar[Needs] = Needs(labels=False, unlabelled=True)
    paper: ClassVar[str] = "He et al. 2022, masked autoencoders, https://arxiv.org/abs/2111.06377"

    def __init__(self, network: nn.Module, settings: Settings) -> None:
        super().__init__()
        parts = parts_of(network)
        self.encoder = parts.encoder
        self.decoder = parts.decoder
        convolution = nn.Conv2d if parts.dims == 2 else nn.Conv3d
        self.head = convolution(parts.widths[0], parts.channels, 1)
        self.settings = settings

    def batch(self, source: Source) -> Batch:
        """Draw one view of patches of any case, its intensities untouched, and what to hide of it."""
        image = source.view(source.draw_any(source.batch), intensity=False).image
        hidden = block_mask(
            len(image), source.patch, block=self.settings.block, ratio=self.settings.mask_ratio,
            generator=source.generator(),
        )  # fmt: skip
        return Batch(image, hidden.to(image.device))

    def step(self, batch: Any, progress: float) -> StepOutput:
        """Distance of the reconstruction to the patch, over the hidden voxels alone."""
        visible = batch.image.masked_fill(batch.hidden.unsqueeze(1), 0.0)
        features = self.encoder(visible)
        filled = self.head(self.decoder(features)[0]).float()
        loss = reconstruction_error(filled, batch.image, batch.hidden, norm=self.settings.norm)
        return StepOutput(loss, {"reconstruction": loss.detach()}, watched=watched_average(features[-1]))

    def exports(self) -> Mapping[str, nn.Module]:
        """Encoder and decoder; the head is dropped."""
        return {"encoder": self.encoder, "decoder": self.decoder}


def block_mask(
    batch: int, patch: Sequence[int], *, block: int, ratio: float, generator: torch.Generator
) -> Tensor:
    """Hide the same number of blocks in every patch, at random: (B, *patch) bool, on the CPU.

    Args:
        batch: B.
        patch: its sides; blocks at the far end are cut off where ``block`` does not divide them.
        block: side of a block, along an axis at most a quarter of the patch.
        ratio: share of the blocks hidden; one at least, and one stays visible.
        generator: on the CPU.
    """
    sides = [max(1, min(block, size // BLOCKS)) for size in patch]
    grid = [math.ceil(size / side) for size, side in zip(patch, sides)]
    count = math.prod(grid)
    if count < 2:
        raise UsageError(f"a patch of {' x '.join(map(str, patch))} voxels cannot be hidden in part.")
    hidden = min(max(round(ratio * count), 1), count - 1)
    rank = torch.rand(batch, count, generator=generator).argsort(1).argsort(1)
    mask = (rank < hidden).reshape(batch, *grid)
    for axis, (side, size) in enumerate(zip(sides, patch), start=1):
        mask = mask.repeat_interleave(side, dim=axis).narrow(axis, 0, size)
    return mask


METHOD = MAE
