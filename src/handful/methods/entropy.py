"""Entropy minimisation: on unlabelled images the network should make up its mind.

A boundary between classes that runs through many similar pixels leaves them undecided; pushing every prediction
towards certainty moves it to where few pixels are. There is no teacher and no second view, so it costs least of all
semi-supervised methods. It makes right and wrong predictions surer alike: a network that calls everything background
has no entropy, so keep the weight small and the ramp long.

Needs unlabelled images of the same kind as the labelled ones; without any it is the control (``supervised``).

References:
    Vu et al., 2019, ADVENT (its "MinEnt"), for segmentation. https://arxiv.org/abs/1811.12833
    Grandvalet and Bengio, 2004, where the idea is from.
    https://papers.nips.cc/paper/2740-semi-supervised-learning-by-entropy-minimization
    Luo et al., SSL4MIS, the form it has in medical benchmarks. https://github.com/HiLab-git/SSL4MIS
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from handful.data.sampling import Source
from handful.errors import UsageError
from handful.losses.consistency import sigmoid_ramp
from handful.losses.entropy import mean_entropy
from handful.losses.labelled import labelled_loss, labelled_terms
from handful.losses.segmentation import deep_supervision
from handful.methods.contract import Method, Needs, StepOutput
from handful.networks.deep import deep_logits_of_both


@dataclass(frozen=True, kw_only=True)
class Settings:
    """SSL4MIS's; the labelled term is the control's.

    Attributes:
        entropy_weight: of the unlabelled term once its ramp has ended.
        ramp: share of the run over which that weight rises, as a sigmoid; 0 is no ramp.
        labelled_too: the term looks at labelled images as well.
        joint_norm: labelled and unlabelled images pass the network, and so batch norm, together.
        labelled, unlabelled: images a step; None is the plan's batch each, so a step costs two batches.
        dice_weight, cross_entropy_weight, balance: of the labelled term, see ``supervised``.
        squared_dice, dice_background: squares in the Dice loss's denominator, background among its classes.
    """

    entropy_weight: float = 0.1  # SSL4MIS; Vu et al.: 0.001, for street scenes
    ramp: float = 1.0  # SSL4MIS: the whole run; Vu et al.: 0
    labelled_too: bool = False  # Vu et al.; SSL4MIS: True
    joint_norm: bool = True  # SSL4MIS
    labelled: int | None = None  # SSL4MIS: 12
    unlabelled: int | None = None  # SSL4MIS: 12
    dice_weight: float = 1.0  # as supervised; SSL4MIS: 0.5
    cross_entropy_weight: float = 1.0  # as supervised; SSL4MIS: 0.5
    balance: float = 0.5  # as supervised; SSL4MIS: 0
    squared_dice: bool = False  # as supervised; SSL4MIS: True
    dice_background: bool = False  # as supervised; SSL4MIS: True

    def __post_init__(self) -> None:
        weights = (self.entropy_weight, self.dice_weight, self.cross_entropy_weight)
        if min(weights) < 0 or not 0 <= self.balance <= 1 or not 0 <= self.ramp <= 1:
            raise UsageError("weights must be 0 or more, balance and ramp between 0 and 1.")
        if min(count for count in (self.labelled, self.unlabelled, 1) if count is not None) < 1:
            raise UsageError("labelled and unlabelled must be at least 1, or null for the plan's batch.")


class Batch(NamedTuple):
    """Labelled images (B, C, *S) with labels (B, *S), and unlabelled images (U, C, *S) or None without such cases."""

    image: Tensor
    label: Tensor
    unlabelled: Tensor | None


class Entropy(Method):
    """Learn labels where there are some, and elsewhere to be sure."""

    needs: ClassVar[Needs] = Needs(labels=True, unlabelled=True)
    paper: ClassVar[str] = "Vu et al. 2019, ADVENT, https://arxiv.org/abs/1811.12833"

    def __init__(self, network: nn.Module, settings: Settings) -> None:
        super().__init__()
        self.network = network
        self.settings = settings

    def batch(self, source: Source) -> Batch:
        """Draw one augmented view of labelled patches, and one of unlabelled ones."""
        view = source.view(source.draw_labelled(self.settings.labelled or source.batch))
        assert view.label is not None
        if not source.unlabelled:
            return Batch(view.image, view.label, None)
        crops = source.draw_unlabelled(self.settings.unlabelled or source.batch)
        return Batch(view.image, view.label, source.view(crops, stream=1).image)

    def step(self, batch: Any, progress: float) -> StepOutput:
        """Dice and cross entropy of labelled images, entropy of unlabelled ones."""
        settings = self.settings
        levels, unlabelled = deep_logits_of_both(
            self.network, batch.image, batch.unlabelled, joint=settings.joint_norm
        )
        both = labelled_loss(settings, progress)
        terms, logs = labelled_terms(deep_supervision(levels, batch.label, both), settings)
        if unlabelled is not None:
            looked_at = torch.cat([levels[0], unlabelled]) if settings.labelled_too else unlabelled
            entropy = mean_entropy(looked_at)
            weight = settings.entropy_weight * sigmoid_ramp(progress, length=settings.ramp)
            terms["entropy"], logs["entropy"] = weight * entropy, entropy.detach()
        return StepOutput(torch.stack(list(terms.values())).sum(), logs, terms)

    def exports(self) -> Mapping[str, nn.Module]:
        """The segmentation network."""
        return {"segmenter": self.network}


METHOD = Entropy
