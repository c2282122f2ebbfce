"""CPS: two networks of one make, begun differently, and each learns what the other says of an image without a label.

Two networks err in different places at first, so the other's labels correct more than one's own would; as they come
to agree, the term fades. No confidence gate is needed. What predicts is the first network; the second is dropped.

Helps where unlabelled images are of the same kind and the labelled ones suffice for both networks to be roughly right.
A step costs twice that of a method with one network. Without unlabelled images the first network is the control
(``supervised``).

References:
    Chen et al., 2021, Semi-supervised semantic segmentation with cross pseudo supervision.
    https://arxiv.org/abs/2106.01226
    Luo et al., SSL4MIS, the form it has in medical benchmarks. https://github.com/HiLab-git/SSL4MIS
"""

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from handful.data.sampling import Source
from handful.errors import UsageError
from handful.losses.consistency import sigmoid_ramp
from handful.losses.labelled import labelled_loss, labelled_terms, one_or_both, weighted
from handful.losses.mixing import box_masks, next_partner, paste
from handful.losses.pseudo_label import pseudo_label
from handful.losses.segmentation import deep_supervision
from handful.methods.contract import Method, Needs, StepOutput
from handful.networks.deep import deep_logits, judged
from handful.networks.parts import parts_of

BOX_SHARE = (0.25, 0.5)
"""Of an image's volume that a CutMix box takes: the authors' code, whose three boxes of any shape are one here."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The paper's; the labelled term is the control's.

    Attributes:
        pseudo_weight: of each network's loss against the other's labels, once its ramp has ended.
        ramp: share of the run over which that weight rises, as a sigmoid; 0 is the paper's constant weight.
        pseudo_loss: ``cross_entropy``, ``dice`` or ``both``; over all decoder levels that predict, as for labels.
        threshold: of the other's probability for its label to count; 0 counts every pixel, as published.
        on_labelled: whether the networks also learn each other's labels of labelled images.
        cutmix: whether unlabelled images are mixed by boxes; the labels are then made on the unmixed images.
        joint_norm: labelled and unlabelled images pass a network, and so batch norm, together.
        labelled, unlabelled: images a step; None is the plan's batch each.
        dice_weight, cross_entropy_weight, balance: of the labelled term, see ``supervised``; balance also of the other.
        squared_dice, dice_background: squares in the Dice loss's denominator, background among its classes.
    """

    pseudo_weight: float = 1.5  # the paper on VOC, 6 on Cityscapes, 1 with CutMix; SSL4MIS: 0.1
    ramp: float = 1.0  # SSL4MIS; the paper begins with pre-trained encoders and has none
    pseudo_loss: Literal["cross_entropy", "dice", "both"] = "cross_entropy"  # the paper
    threshold: float = 0.0  # the paper
    on_labelled: bool = True  # the paper; SSL4MIS, and the paper's code with CutMix: False
    cutmix: bool = False  # the paper has both
    joint_norm: bool = True  # SSL4MIS; the paper's code: False
    labelled: int | None = None  # SSL4MIS: 12
    unlabelled: int | None = None  # SSL4MIS: 12
    dice_weight: float = 1.0  # as supervised; SSL4MIS: 0.5
    cross_entropy_weight: float = 1.0  # as supervised; SSL4MIS: 0.5
    balance: float = 0.5  # as supervised; SSL4MIS: 0
    squared_dice: bool = False  # as supervised; SSL4MIS: True
    dice_background: bool = False  # as supervised; SSL4MIS: True

    def __post_init__(self) -> None:
        weights = (self.pseudo_weight, self.dice_weight, self.cross_entropy_weight)
        if min(weights) < 0:
            raise UsageError("weights must be 0 or more.")
        if not all(0 <= share <= 1 for share in (self.ramp, self.threshold, self.balance)):
            raise UsageError("ramp, threshold and balance must be between 0 and 1.")
        if min(count for count in (self.labelled, self.unlabelled, 1) if count is not None) < 1:
            raise UsageError("labelled and unlabelled must be at least 1, or null for the plan's batch.")


class Batch(NamedTuple):
    """Labelled and unlabelled images, these perhaps mixed.

    Attributes:
        image: (B, C, *S).
        label: (B, *S) int64, -1 where unknown.
        unlabelled: (U, C, *S), or None without unlabelled cases.
        keep: (U, *S) bool, False where an unlabelled image is to show the next one; None without CutMix.
    """

    image: Tensor
    label: Tensor
    unlabelled: Tensor | None
    keep: Tensor | None


class CPS(Method):
    """Train two networks on labels, and each on what the other says."""

    needs: ClassVar[Needs] = Needs(labels=True, unlabelled=True)
    paper: ClassVar[str] = "Chen et al. 2021, CPS, https://arxiv.org/abs/2106.01226"

    def __init__(self, network: nn.Module, settings: Settings) -> None:
        super().__init__()
        self.network = network
        self.second = begun_anew(network)
        self.settings = settings

    def started(self, parts: Collection[str]) -> None:
        """Start the second network from the same parts, as in the paper: heads and what was not loaded differ."""
        for name in ("encoder", "decoder"):
            if name in parts or "segmenter" in parts:
                own, theirs = (getattr(parts_of(network), name) for network in (self.second, self.network))
                own.load_state_dict(theirs.state_dict())

    def batch(self, source: Source) -> Batch:
        """Draw labelled and unlabelled patches, one view of each, and boxes to mix by."""
        settings = self.settings
        view = source.view(source.draw_labelled(settings.labelled or source.batch))
        assert view.label is not None
        if not source.unlabelled:
            return Batch(view.image, view.label, None, None)
        count = settings.unlabelled or source.batch
        others = source.view(source.draw_unlabelled(count), stream=1).image
        if not settings.cutmix:
            return Batch(view.image, view.label, others, None)
        if count < 2:
            raise UsageError("CutMix takes boxes from another image: unlabelled must be at least 2.")
        keep = box_masks(count, source.patch, share=BOX_SHARE, generator=source.generator())
        return Batch(view.image, view.label, others, keep.to(others.device))

    def step(self, batch: Any, progress: float) -> StepOutput:
        """Each network against the labels, and against the other's pseudo-labels."""
        settings = self.settings
        networks = (self.network, self.second)
        if batch.unlabelled is None:
            levels = [deep_logits(network, batch.image) for network in networks]
        else:
            others = batch.unlabelled
            if batch.keep is not None:
                others = paste(others, batch.keep, next_partner(len(others)))
            levels = [
                deep_logits(network, batch.image, others, joint=settings.joint_norm) for network in networks
            ]
        both = labelled_loss(settings, progress)
        first, second = (deep_supervision(own[0], batch.label, both) for own in levels)
        terms, logs = labelled_terms(first, settings)
        terms["second"] = weighted(second, settings)
        logs["second"] = terms["second"].detach()
        if batch.unlabelled is not None:
            said = [self._said(network, own, batch) for network, own in zip(networks, levels)]
            seen = [self._seen(own) for own in levels]
            first, second = (
                one_or_both(deep_supervision(own, label, both), settings.pseudo_loss)
                for own, label in zip(seen, reversed(said))
            )
            pseudo = first + second
            weight = settings.pseudo_weight * sigmoid_ramp(progress, length=settings.ramp)
            terms["pseudo"], logs["pseudo"] = weight * pseudo, pseudo.detach()
            logs["disagreement"] = (said[0] != said[1]).float().mean()
        return StepOutput(torch.stack(list(terms.values())).sum(), logs, terms)

    def exports(self) -> Mapping[str, nn.Module]:
        """The first network; the second is dropped."""
        return {"segmenter": self.network}

    def _said(self, network: nn.Module, levels: Sequence[Sequence[Tensor]], batch: Batch) -> Tensor:
        """Return what a network says of all images that the other is to learn it of."""
        threshold = self.settings.threshold
        if batch.keep is None:
            label = pseudo_label(levels[1][0], threshold=threshold)
        else:
            assert batch.unlabelled is not None
            whole = pseudo_label(judged(network, batch.unlabelled), threshold=threshold)
            label = paste(whole, batch.keep, next_partner(len(whole)))
        if self.settings.on_labelled:
            return torch.cat([pseudo_label(levels[0][0], threshold=threshold), label])
        return label

    def _seen(self, levels: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Return the logits of the same images, every level."""
        if self.settings.on_labelled:
            return [torch.cat(pair) for pair in zip(*levels)]
        return list(levels[1])


def begun_anew(network: nn.Module) -> nn.Module:
    """Return a copy of a network that starts from other weights.

    Each tensor gets its own values in another order: whatever its starting values were drawn from, the copy's are
    drawn from the same, and a tensor of equal values (a norm's scale) stays.
    """
    twin = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in twin.parameters():
            values = parameter.flatten()
            parameter.copy_(values[torch.randperm(len(values))].reshape(parameter.shape))
    return twin


METHOD = CPS
