"""Segment the budget's labelled images, keep encoder and decoder: the control of every pre-training that sees labels.

What a label-using pre-training gains over no pre-training may come from the labels alone, or from training twice as
long. This one has the same labels and the plainest loss there is; what beats it has learnt something from its own.

References:
    Li et al., 2024, supervised pre-training against self-supervised (SuPreM). https://arxiv.org/abs/2501.11253
    Isensee et al., 2021, nnU-Net, for the loss. https://doi.org/10.1038/s41592-020-01008-z
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from handful.batches import SegmentationBatch
from handful.data.sampling import Source
from handful.errors import UsageError
from handful.losses.labelled import labelled_loss, labelled_terms
from handful.losses.segmentation import deep_supervision
from handful.methods.contract import Method, Needs, StepOutput, watched_average
from handful.networks.parts import parts_of
from handful.networks.unet import UNet


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The control's, see ``supervised``.

    Attributes:
        dice_weight, cross_entropy_weight: of the two terms.
        balance: how much more pixels of rare classes weigh in the cross entropy at first (``losses.labelled``).
        squared_dice, dice_background, dice_smooth: forms of the Dice loss.
    """

    dice_weight: float = 1.0  # nnU-Net
    cross_entropy_weight: float = 1.0  # nnU-Net
    balance: float = 0.5  # as supervised; nnU-Net: 0
    squared_dice: bool = False  # nnU-Net
    dice_background: bool = False  # nnU-Net
    dice_smooth: float = 1e-5  # nnU-Net

    def __post_init__(self) -> None:
        if self.dice_smooth <= 0:
            raise UsageError(f"dice_smooth must be positive, found {self.dice_smooth}.")
        if min(self.dice_weight, self.cross_entropy_weight) < 0 or not 0 <= self.balance <= 1:
            raise UsageError("the weights must be 0 or more and balance between 0 and 1.")
        if self.dice_weight == self.cross_entropy_weight == 0:
            raise UsageError("dice_weight and cross_entropy_weight are both 0: nothing would be learnt.")


class SupervisedPretrain(Method):
    """Learn a segmentation, hand over what is under its heads."""

    kind: ClassVar[Literal["pretrain", "train"]] = "pretrain"
    needs: ClassVar[Needs] = Needs(labels=True, unlabelled=False)
    paper: ClassVar[str] = "Li et al. 2024, SuPreM, https://arxiv.org/abs/2501.11253"
    trains_all: ClassVar[bool] = True

    def __init__(self, network: nn.Module, settings: Settings) -> None:
        super().__init__()
        parts_of(network)  # refuses a network that has no parts to hand over
        self.network = network
        self.settings = settings

    def batch(self, source: Source) -> SegmentationBatch:
        """Draw one augmented view of labelled patches."""
        view = source.view(source.draw_labelled(source.batch))
        assert view.label is not None
        return SegmentationBatch(view.image, view.label)

    def step(self, batch: Any, progress: float) -> StepOutput:
        """Dice and cross entropy, averaged over the decoder levels that predict."""
        watched = None
        if isinstance(self.network, UNet):
            maps = self.network.decoder(self.network.encoder(batch.image))  # the last is the deepest feature
            levels = [head(each) for head, each in zip(self.network.heads, maps)]
            watched = watched_average(maps[-1])
        else:
            levels = [self.network(batch.image)]
        settings = self.settings
        both = labelled_loss(settings, progress, smooth=settings.dice_smooth)
        terms, logs = labelled_terms(deep_supervision(levels, batch.label, both), settings)
        return StepOutput(terms["dice_loss"] + terms["cross_entropy"], logs, terms, watched)

    def exports(self) -> Mapping[str, nn.Module]:
        """Encoder and decoder; the heads are dropped."""
        parts = parts_of(self.network)
        return {"encoder": parts.encoder, "decoder": parts.decoder}


METHOD = SupervisedPretrain
