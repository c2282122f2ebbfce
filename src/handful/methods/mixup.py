"""Mixup: learn from weighted sums of two labelled images, supervised by the same weighted sum of two losses.

The network is asked to be linear between training images, so it cannot learn few of them by heart so easily. It
sees labelled images alone, as the control does, and is one of the baselines of SSCL's tables. ``ict`` does the same
with unlabelled images, whose labels a teacher gives (``--set method.labelled_alpha=1`` mixes both).

References:
    Zhang et al., 2018, mixup. https://arxiv.org/abs/1710.09412
    Hu et al., 2021, SSCL, for segmentation with few labels. https://arxiv.org/abs/2109.07407
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from handful.data.sampling import Source
from handful.errors import UsageError
from handful.losses.labelled import dice_and_fading_cross_entropy, labelled_terms
from handful.losses.mixed_labels import mixed_supervision
from handful.losses.mixing import mixing_weight, mixup, random_partner
from handful.methods.contract import Method, Needs, StepOutput
from handful.networks.deep import deep_logits


@dataclass(frozen=True, kw_only=True)
class Settings:
    """SSCL's released baseline; the loss is the control's.

    Attributes:
        alpha: of the Beta(alpha, alpha) that a batch's share is drawn from: near 0 hardly mixes, 1 is uniform.
        labelled: images a step; None is the plan's batch.
        dice_weight, cross_entropy_weight, balance: of the two terms, see ``supervised``.
        squared_dice, dice_background, dice_smooth: squares in the Dice loss's denominator, background among its
            classes, and what is added above and below.
    """

    alpha: float = 1.0  # SSCL, released; Zhang et al.: 0.1 to 0.4 for photographs
    labelled: int | None = None  # SSCL, released: 8
    dice_weight: float = 1.0  # as supervised, SSCL
    cross_entropy_weight: float = 1.0  # as supervised, SSCL
    balance: float = 0.5  # as supervised; SSCL: 0
    squared_dice: bool = False  # as supervised; SSCL: True
    dice_background: bool = False  # as supervised, SSCL
    dice_smooth: float = 1e-5  # as supervised; SSCL: 1

    def __post_init__(self) -> None:
        if self.alpha <= 0 or self.dice_smooth <= 0:
            raise UsageError("alpha and dice_smooth must be positive.")
        if min(self.dice_weight, self.cross_entropy_weight) < 0 or not 0 <= self.balance <= 1:
            raise UsageError("weights must be 0 or more and balance between 0 and 1.")
        if self.labelled is not None and self.labelled < 2:
            raise UsageError(f"mixing takes at least two images a step, found labelled = {self.labelled}.")


class Batch(NamedTuple):
    """Images and how they are mixed.

    Attributes:
        image: (B, C, *S), not mixed yet.
        label: (B, *S) int64, -1 where unknown.
        partner: (B,) what each image is mixed with.
        share: of a mixture that is the image's own.
    """

    image: Tensor
    label: Tensor
    partner: Tensor
    share: float


class Mixup(Method):
    """Train a segmentation network on mixtures of labelled images."""

    needs: ClassVar[Needs] = Needs(labels=True, unlabelled=False)
    paper: ClassVar[str] = "Zhang et al. 2018, mixup, https://arxiv.org/abs/1710.09412"

    def __init__(self, network: nn.Module, settings: Settings) -> None:
        super().__init__()
        self.network = network
        self.settings = settings

    def batch(self, source: Source) -> Batch:
        """Draw one augmented view of labelled patches, a partner for each, and one share for all.

        Raises:
            UsageError: the plan's batch is a single image.
        """
        count = self.settings.labelled or source.batch
        if count < 2:
            raise UsageError(
                "mixing takes at least two images a step, but the plan's batch is 1: --set method.labelled=2."
            )
        view = source.view(source.draw_labelled(count))
        assert view.label is not None
        generator = source.generator()
        partner = random_partner(count, generator=generator)
        share = mixing_weight(alpha=self.settings.alpha, fold=False, generator=generator)
        return Batch(view.image, view.label, partner, share)

    def step(self, batch: Any, progress: float) -> StepOutput:
        """Dice and cross entropy of the mixtures, averaged over the decoder levels that predict."""
        settings = self.settings
        (levels,) = deep_logits(self.network, mixup(batch.image, batch.share, batch.partner))
        both = dice_and_fading_cross_entropy(
            settings.balance, progress, squared=settings.squared_dice,
            include_background=settings.dice_background, smooth=settings.dice_smooth,
        )  # fmt: skip
        segmentation = mixed_supervision(levels, batch.label, batch.partner, share=batch.share, loss=both)
        terms, logs = labelled_terms(segmentation, settings)
        return StepOutput(torch.stack(list(terms.values())).sum(), logs, terms)

    def exports(self) -> Mapping[str, nn.Module]:
        """The segmentation network."""
        return {"segmenter": self.network}


METHOD = Mixup
