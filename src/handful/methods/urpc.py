"""URPC: the predictions of all decoder levels should agree on images nobody has labelled.

Coarse and fine levels see the same image, so where they differ one of them is wrong. Each is drawn towards their mean,
less where it is far from it: there the difference says more about resolution than about anatomy. One network, one
pass, no teacher: the cheapest of the semi-supervised methods.

Needs a network that predicts at several levels: the plan's U-Net, unless it is very small. Without unlabelled images
it is the control (``supervised``).

References:
    Luo et al., 2021, uncertainty rectified pyramid consistency. https://arxiv.org/abs/2012.07042
    Luo et al., SSL4MIS, the authors' code. https://github.com/HiLab-git/SSL4MIS
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handful.data.sampling import Source
from handful.errors import UsageError
from handful.losses.consistency import sigmoid_ramp
from handful.losses.labelled import labelled_loss, labelled_terms
from handful.losses.pyramid import pyramid_consistency
from handful.losses.segmentation import deep_supervision
from handful.methods.contract import Method, Needs, StepOutput
from handful.networks.unet import UNet


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The authors' code's; the labelled term is the control's.

    Attributes:
        consistency_weight: of the unlabelled term once its ramp has ended.
        ramp: share of the run over which that weight rises, as a sigmoid.
        supervision: ``deep``: the label thinned out to each level, levels weighted 1, 1/2, 1/4, as the control;
            ``pyramid``: each level enlarged to the label, all alike, as published.
        dropout: probability with which a channel of a decoder map is left out before a coarser level's head.
        joint_norm: labelled and unlabelled images pass the network, and so batch norm, together.
        labelled, unlabelled: images a step; None is the plan's batch each, so a step costs two batches.
        dice_weight, cross_entropy_weight, balance: of the labelled term, see ``supervised``.
        squared_dice, dice_background: squares in the Dice loss's denominator, background among its classes.
    """

    consistency_weight: float = 0.1  # released code
    ramp: float = 1.0  # released code: the whole run
    supervision: Literal["deep", "pyramid"] = "deep"  # ours, as supervised; the paper: pyramid
    dropout: float = 0.0  # ours, as supervised; released in 2D: 0.5, and two other disturbances
    joint_norm: bool = True  # released code
    labelled: int | None = None  # released code: 12 in 2D, 2 in 3D
    unlabelled: int | None = None  # released code: 12 in 2D, 2 in 3D
    dice_weight: float = 1.0  # as supervised; released code: 0.5
    cross_entropy_weight: float = 1.0  # as supervised; released code: 0.5
    balance: float = 0.5  # as supervised; released code: 0
    squared_dice: bool = False  # as supervised; released code: True
    dice_background: bool = False  # as supervised; released code: True

    def __post_init__(self) -> None:
        if min(self.consistency_weight, self.dice_weight, self.cross_entropy_weight) < 0:
            raise UsageError("weights must be 0 or more.")
        if not 0 <= self.ramp <= 1 or not 0 <= self.dropout < 1 or not 0 <= self.balance <= 1:
            raise UsageError("ramp and balance must be between 0 and 1, dropout below 1.")
        if min(count for count in (self.labelled, self.unlabelled, 1) if count is not None) < 1:
            raise UsageError("labelled and unlabelled must be at least 1, or null for the plan's batch.")


class Batch(NamedTuple):
    """Labelled and unlabelled images.

    Attributes:
        image: (B, C, *S).
        label: (B, *S) int64, -1 where unknown.
        unlabelled: (U, C, *S), or None without unlabelled cases.
    """

    image: Tensor
    label: Tensor
    unlabelled: Tensor | None


class URPC(Method):
    """Learn labels where there are some, and elsewhere what the decoder's levels agree on."""

    needs: ClassVar[Needs] = Needs(labels=True, unlabelled=True)
    paper: ClassVar[str] = "Luo et al. 2021, URPC, https://arxiv.org/abs/2012.07042"

    def __init__(self, network: nn.Module, settings: Settings) -> None:
        super().__init__()
        if not isinstance(network, UNet) or len(network.heads) < 2:
            raise UsageError(
                "urpc compares the predictions of several decoder levels, and this network predicts at one. Use the "
                "plan's U-Net (network.preset null), with at least three levels."
            )
        self.network = network
        self.settings = settings

    def batch(self, source: Source) -> Batch:
        """Draw labelled and unlabelled patches, one view of each."""
        settings = self.settings
        view = source.view(source.draw_labelled(settings.labelled or source.batch))
        assert view.label is not None
        if not source.unlabelled:
            return Batch(view.image, view.label, None)
        crops = source.draw_unlabelled(settings.unlabelled or source.batch)
        return Batch(view.image, view.label, source.view(crops, stream=1).image)

    def step(self, batch: Any, progress: float) -> StepOutput:
        """Dice and cross entropy of labelled images, agreement of the levels on unlabelled ones."""
        settings = self.settings
        if batch.unlabelled is None:
            levels, others = self._levels(batch.image), None
        elif settings.joint_norm:
            joint = self._levels(torch.cat([batch.image, batch.unlabelled]))
            known = len(batch.image)
            levels, others = [level[:known] for level in joint], [level[known:] for level in joint]
        else:
            levels, others = self._levels(batch.image), self._levels(batch.unlabelled)
        terms, logs = labelled_terms(self._segmentation(levels, batch.label, progress), settings)
        if others is not None:
            consistency = pyramid_consistency(enlarged(others))
            weight = settings.consistency_weight * sigmoid_ramp(progress, length=settings.ramp)
            terms["consistency"], logs["consistency"] = weight * consistency, consistency.detach()
        return StepOutput(torch.stack(list(terms.values())).sum(), logs, terms)

    def exports(self) -> Mapping[str, nn.Module]:
        """The segmentation network, of which the finest level predicts."""
        return {"segmenter": self.network}

    def _levels(self, image: Tensor) -> list[Tensor]:
        """Return the logits of every level, the coarser ones from disturbed maps while training."""
        finest, *coarse = self.network.decoder(self.network.encoder(image))[: len(self.network.heads)]
        dropped = [F.dropout1d(each.flatten(2), self.settings.dropout, self.training) for each in coarse]
        maps = [finest, *(each.reshape(like.shape) for each, like in zip(dropped, coarse))]
        return [head(each) for head, each in zip(self.network.heads, maps)]

    def _segmentation(self, levels: list[Tensor], label: Tensor, progress: float) -> Tensor:
        """Return Dice loss and cross entropy, (2,), over the decoder levels."""
        settings = self.settings
        both = labelled_loss(settings, progress)
        if settings.supervision == "deep":
            return deep_supervision(levels, label, both)
        return torch.stack([both(level, label) for level in enlarged(levels)]).mean(0)


def enlarged(levels: list[Tensor]) -> list[Tensor]:
    """Return the logits of all levels at the size of the finest, linearly; the released 2D code copies pixels."""
    size = levels[0].shape[2:]
    mode = "bilinear" if len(size) == 2 else "trilinear"
    return [levels[0], *(F.interpolate(level, size=size, mode=mode) for level in levels[1:])]


METHOD = URPC
