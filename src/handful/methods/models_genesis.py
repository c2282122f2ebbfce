"""Models Genesis: give back the patch as it was before it was shuffled, recoloured and painted over.

Each corruption asks for something else: a bent grey-value curve for the usual appearance of tissue, shuffled windows
for texture and borders, painted noise for what lies beside what. Trains encoder and decoder, from images alone.

References:
    Zhou et al., 2019 and 2021, Models Genesis. https://arxiv.org/abs/2004.07882
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor, nn

from handful.data.augment.corruption import CorruptionSettings, apply_corruption, sample_corruption
from handful.data.sampling import Source
from handful.errors import DataError
from handful.losses.reconstruction import reconstruction_error
from handful.methods.contract import Method, Needs, StepOutput, watched_average
from handful.networks.parts import parts_of


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Models Genesis'.

    Attributes:
        corruption: how often and how far images are corrupted.
        norm: ``mse`` or ``l1``.
        unit_range: the plan's images lie in [0, 1], as published: the output is a sigmoid, and curves and noise span
            [0, 1] instead of each patch's own range.
    """

    corruption: CorruptionSettings = field(default_factory=CorruptionSettings)
    norm: Literal["mse", "l1"] = "mse"  # the paper's
    unit_range: bool = False  # ours: images are normalised to a mean near 0; released code: True


class Batch(NamedTuple):
    """Patches (B, C, *S), corrupted and as they were."""

    corrupted: Tensor
    clean: Tensor


class ModelsGenesis(Method):
    """Restore corrupted patches."""

    kind: ClassVar[Literal["pretrain", "train"]] = "pretrain"
    needs: ClassVar[Needs] = Needs(labels=False, unlabelled=True)
    paper: ClassVar[str] = "Zhou et al. 2021, Models Genesis, https://arxiv.org/abs/2004.07882"

    def __init__(self, network: nn.Module, settings: Settings) -> None:
        super().__init__()
        parts = parts_of(network)
        self.encoder = parts.encoder
        self.decoder = parts.decoder
        convolution = nn.Conv2d if parts.dims == 2 else nn.Conv3d
        self.head = convolution(parts.widths[0], parts.channels, 1)
        self.settings = settings

    def batch(self, source: Source) -> Batch:
        """Draw one view of patches of any case, its intensities untouched, and corrupt it."""
        clean = source.view(source.draw_any(source.batch), intensity=False).image
        if self.settings.unit_range:
            _check_range(clean)
        corruption = sample_corruption(
            self.settings.corruption,
            batch=clean.shape[0],
            channels=clean.shape[1],
            patch=source.patch,
            generator=source.generator(),
        )
        value_range = (0.0, 1.0) if self.settings.unit_range else None
        return Batch(apply_corruption(corruption, clean, value_range=value_range), clean)

    def step(self, batch: Any, progress: float) -> StepOutput:
        """Distance of the restored patch to the clean one, over all its voxels."""
        features = self.encoder(batch.corrupted)
        restored = self.head(self.decoder(features)[0]).float()
        if self.settings.unit_range:
            restored = restored.sigmoid()
        loss = reconstruction_error(restored, batch.clean, norm=self.settings.norm)
        return StepOutput(loss, {"reconstruction": loss.detach()}, watched=watched_average(features[-1]))

    def exports(self) -> Mapping[str, nn.Module]:
        """Encoder and decoder; the head is dropped."""
        return {"encoder": self.encoder, "decoder": self.decoder}


def _check_range(image: Tensor) -> None:
    low, high = image.aminmax()
    if low < 0 or high > 1:
        raise DataError(
            f"unit_range needs images in [0, 1], but after the plan's normalisation a patch spans {low:.3g} to "
            f"{high:.3g}. Set method.unit_range=false, or give the plan a window, for CT low: -1000, high: 1000, "
            "centre: -1000, spread: 2000."
        )


METHOD = ModelsGenesis
