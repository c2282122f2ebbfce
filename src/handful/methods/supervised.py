"""Labels only: the control every other method is measured against.

Dice and cross entropy on the budget's labelled cases, with deep supervision, as in nnU-Net.

References:
    Isensee et al. 2021, nnU-Net. https://doi.org/10.1038/s41592-020-01008-z
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from handful.batches import SegmentationBatch
from handful.data.sampling import Source
from handful.errors import UsageError
from handful.losses.labelled import labelled_loss, labelled_terms
from handful.losses.segmentation import deep_supervision
from handful.methods.contract import Method, Needs, StepOutput
from handful.networks.unet import UNet


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Weights of the two terms; nnU-Net weighs them equally.

    Attributes:
        dice_weight, cross_entropy_weight: of each.
        balance: how much more pixels of rare classes weigh in the cross entropy when the run begins (each of a class of
            n pixels n^-balance); it falls evenly to 0 at its end (``losses.labelled``). 0: never; nnU-Net.
        squared_dice, dice_background: squares in the Dice loss's denominator, background among its classes.
        dice_smooth: added to the numerator and denominator of the Dice loss.
    """

    dice_weight: float = 1.0
    cross_entropy_weight: float = 1.0
    balance: float = 0.5
    squared_dice: bool = False  # nnU-Net; SSCL, SSL4MIS: True
    dice_background: bool = False  # nnU-Net, SSCL; SSL4MIS: True
    dice_smooth: float = 1e-5  # nnU-Net; SSCL: 1

    def __post_init__(self) -> None:
        if self.dice_smooth <= 0:
            raise UsageError(f"dice_smooth must be positive, found {self.dice_smooth}.")


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
        settings = self.settings
        both = labelled_loss(settings, progress, smooth=settings.dice_smooth)
        terms, logs = labelled_terms(deep_supervision(levels, batch.label, both), settings)
        return StepOutput(terms["dice_loss"] + terms["cross_entropy"], logs)

    def exports(self) -> Mapping[str, nn.Module]:
        """The segmentation network is what ``predict`` runs."""
        return {"segmenter": self.network}


METHOD = Supervised
