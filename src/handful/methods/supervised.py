"""Labels only: the control every other method is measured against.

Dice and cross entropy on the budget's labelled cases, with deep supervision, as in nnU-Net.

References:
    Isensee et al. 2021, nnU-Net. https://doi.org/10.1038/s41592-020-01008-z
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import nn

from handful.batches import SegmentationBatch
from handful.data.sampling import Source
from handful.losses.segmentation import deep_supervision, dice_and_cross_entropy
from handful.methods.contract import Method, Needs, StepOutput
from handful.networks.unet import UNet


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Weights of the two terms; nnU-Net weighs them equally."""

    dice_weight: float = 1.0
    cross_entropy_weight: float = 1.0
    balance: float = 0.5


class Supervised(Method):
    """Train a segmentation network on labelled images alone."""

    needs: ClassVar[Needs] = Needs(labels=True, unlabelled=False)
    paper: ClassVar[str] = "Isensee et al. 2021, nnU-Net, https://doi.org/10.1038/s41592-020-01008-z"
    trains_all: ClassVar[bool] = True

    def __init__(self, network: nn.Module, settings: Settings) -> None:
        super().__init__()
        self.network = network
        self.settings = settings

    def batch(self, source: Source) -> SegmentationBatch:
        """Draw one augmented view of labelled patches."""
        view = source.view(source.draw_labelled(source.batch))
        assert view.label is not None
        return SegmentationBatch(view.image, view.label)

    def step(self, batch: Any, progress: float) -> StepOutput:
        """Dice and cross entropy, averaged over the decoder levels that predict."""
        levels = (
            self.network.deep(batch.image) if isinstance(self.network, UNet) else [self.network(batch.image)]
        )
        both = partial(dice_and_cross_entropy, balance=self.settings.balance, processes=True)
        dice, entropy = deep_supervision(levels, batch.label, both)
        loss = self.settings.dice_weight * dice + self.settings.cross_entropy_weight * entropy
        return StepOutput(loss, {"dice_loss": dice.detach(), "cross_entropy": entropy.detach()})

    def exports(self) -> Mapping[str, nn.Module]:
        """The segmentation network is what ``predict`` runs."""
        return {"segmenter": self.network}


METHOD = Supervised
