"""FixMatch, as UniMatch has it: what a plain view is surely labelled as, its disturbed views must be labelled as too.

The network labels an unlabelled image as it is; where it is sure, it learns that label from strong views of the same
pixels: recoloured, with a box of another image pasted in (CutMix), or with channels of its features left out. FixMatch
has one strong view; UniMatch two, and the disturbed features besides. No teacher unless asked for.

Helps where intensities vary more in the unlabelled images than in the labelled ones, and the network is right where it
is sure. Without unlabelled images it is the control (``supervised``).

References:
    Sohn et al., 2020, FixMatch. https://arxiv.org/abs/2001.07685
    Yang et al., 2023, Revisiting weak-to-strong consistency (UniMatch). https://arxiv.org/abs/2208.09910
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from handful.batches import IGNORE
from handful.data.sampling import Source
from handful.errors import UsageError
from handful.losses.consistency import sigmoid_ramp
from handful.losses.labelled import Both, labelled_loss, labelled_terms, one_or_both
from handful.losses.mixing import box_masks, next_partner, paste
from handful.losses.pseudo_label import pseudo_label
from handful.losses.segmentation import deep_supervision
from handful.methods.contract import Method, Needs, StepOutput
from handful.networks.deep import deep_logits, judged
from handful.networks.parts import head_of, parts_of
from handful.networks.teacher import Teacher

BOX_SHARE = (0.02, 0.4)
"""Of an image's volume that a CutMix box takes, as in UniMatch; its aspect there is drawn too, here the image's."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """UniMatch's in its medical code; the labelled term is the control's.

    FixMatch itself: ``views=1``, ``cutmix=0``, ``feature_weight=0``, ``pseudo_loss=cross_entropy``.

    Attributes:
        threshold: of the probability for a label to count.
        strong_weight: of the mean loss over strong views.
        feature_weight: of the loss with disturbed features; 0 leaves them out, and saves their pass.
        feature_dropout: probability with which a channel of an encoder map is left out.
        views: strong views of each unlabelled image, 1 or 2.
        cutmix: probability of a box of the next image in a strong view.
        pseudo_loss: ``dice`` over the pixels that count, ``cross_entropy`` averaged over all pixels as FixMatch has
            it, or ``both``; over all decoder levels that predict, as for labels.
        ramp: share of the run over which both weights rise, as a sigmoid; 0: constant.
        teacher: who labels: the ``student`` as it is now, or its moving average, ``ema``.
        decay: of the average a step; a young one follows quickly (``Teacher.follow``).
        joint_norm: labelled images and strong views pass the network, and so batch norm, together.
        labelled, unlabelled: images a step; None is the plan's batch each. A step with everything on costs about
            four of the control's.
        dice_weight, cross_entropy_weight, balance: of the labelled term, see ``supervised``; balance also of the other.
        squared_dice, dice_background: squares in the Dice loss's denominator, background among its classes.
    """

    threshold: float = 0.95  # FixMatch, UniMatch
    strong_weight: float = 1.0  # FixMatch; UniMatch: 1/4 a view where Dice and CE have 1/2 each
    feature_weight: float = 1.0  # UniMatch: 1/2 where Dice and CE have 1/2 each
    feature_dropout: float = 0.5  # UniMatch
    views: int = 2  # UniMatch; FixMatch: 1
    cutmix: float = 0.5  # UniMatch
    pseudo_loss: Literal["dice", "cross_entropy", "both"] = "dice"  # UniMatch on ACDC
    ramp: float = 0.0  # FixMatch, UniMatch
    teacher: Literal["student", "ema"] = "student"  # FixMatch, UniMatch
    decay: float = 0.99  # Mean Teacher
    joint_norm: bool = False  # UniMatch: strong views apart
    labelled: int | None = None  # UniMatch on ACDC: 12
    unlabelled: int | None = None  # UniMatch on ACDC: 12
    dice_weight: float = 1.0  # as supervised; UniMatch: 1/2 of a loss that is halved again
    cross_entropy_weight: float = 1.0  # as supervised; UniMatch: as its Dice
    balance: float = 0.5  # as supervised; UniMatch: 0
    squared_dice: bool = False  # as supervised; UniMatch: True
    dice_background: bool = False  # as supervised; UniMatch: True

    def __post_init__(self) -> None:
        weights = (self.strong_weight, self.feature_weight, self.dice_weight, self.cross_entropy_weight)
        if min(weights) < 0:
            raise UsageError("weights must be 0 or more.")
        shares = (self.threshold, self.cutmix, self.ramp, self.decay, self.balance)
        if not all(0 <= share <= 1 for share in shares) or not 0 <= self.feature_dropout < 1:
            raise UsageError(
                "threshold, cutmix, ramp, decay and balance must be between 0 and 1, feature_dropout below 1."
            )
        if self.views not in (1, 2):
            raise UsageError(f"views is 1 or 2 strong views of each image, found {self.views}.")
        if min(count for count in (self.labelled, self.unlabelled, 1) if count is not None) < 1:
            raise UsageError("labelled and unlabelled must be at least 1, or null for the plan's batch.")


class Batch(NamedTuple):
    """Labelled images, and views of the same pixels of unlabelled ones.

    Attributes:
        image: (B, C, *S).
        label: (B, *S) int64, -1 where unknown.
        weak: (U, C, *S) as they are; None, and all that follows, without unlabelled cases.
        strong: (V U, C, *S), the first view of all images first; boxes pasted in.
        keep: (V U, *S) bool, False where a strong view shows the next image; None without CutMix.
        features: (U, channels of all encoder maps) bool, False for a channel to be left out; None without.
    """

    image: Tensor
    label: Tensor
    weak: Tensor | None
    strong: Tensor | None
    keep: Tensor | None
    features: Tensor | None


class FixMatch(Method):
    """Learn labels, and the network's own sure labels from disturbed views."""

    needs: ClassVar[Needs] = Needs(labels=True, unlabelled=True)
    paper: ClassVar[str] = "Sohn et al. 2020, FixMatch, https://arxiv.org/abs/2001.07685"

    def __init__(self, network: nn.Module, settings: Settings) -> None:
        super().__init__()
        self.network = network
        self.widths: tuple[int, ...] = ()
        if settings.feature_weight > 0:
            head_of(network)
            widths: Any = parts_of(network).encoder.widths
            self.widths = tuple(widths)
        self.teacher = Teacher(network) if settings.teacher == "ema" else None
        self.settings = settings

    def batch(self, source: Source) -> Batch:
        """Draw labelled patches; of unlabelled ones a plain view and strong ones, boxes and channels to leave out."""
        settings = self.settings
        view = source.view(source.draw_labelled(settings.labelled or source.batch))
        assert view.label is not None
        if not source.unlabelled:
            return Batch(view.image, view.label, None, None, None, None)
        count = settings.unlabelled or source.batch
        weak = source.view(source.draw_unlabelled(count), stream=1, intensity=False)
        device, generator = weak.image.device, source.generator()
        strong = torch.cat([source.recolour(weak, stream=stream).image for stream in range(settings.views)])
        keep = features = None
        if settings.cutmix > 0:
            if count < 2:
                raise UsageError(
                    "CutMix takes boxes from another image: unlabelled must be at least 2, or cutmix 0."
                )
            keep = box_masks(
                len(strong), source.patch, share=BOX_SHARE, probability=settings.cutmix, generator=generator
            ).to(device)
            strong = paste(strong, keep, self._partner(count))
        if self.widths:
            chances = torch.rand(count, sum(self.widths), generator=generator)
            features = (chances >= settings.feature_dropout).to(device)
        return Batch(view.image, view.label, weak.image, strong, keep, features)

    def step(self, batch: Any, progress: float) -> StepOutput:
        """Labels on labelled images; on unlabelled ones the sure labels of the plain view on the disturbed ones."""
        settings = self.settings
        strong: list[Tensor] = []
        features: list[Tensor] = []
        if batch.weak is None:
            (levels,) = deep_logits(self.network, batch.image)
        elif batch.features is None:
            levels, strong = deep_logits(self.network, batch.image, batch.strong, joint=settings.joint_norm)
        else:
            levels, features, strong = self._disturbed(batch)
        both = labelled_loss(settings, progress)
        terms, logs = labelled_terms(deep_supervision(levels, batch.label, both), settings)
        if batch.weak is not None:
            judge = judged(self.network, batch.weak) if self.teacher is None else self.teacher(batch.weak)
            label = pseudo_label(judge, threshold=settings.threshold)
            logs["confident"] = (label != IGNORE).float().mean()
            repeated = torch.cat([label] * settings.views)
            if batch.keep is not None:
                repeated = paste(repeated, batch.keep, self._partner(len(label)))
            ramp = sigmoid_ramp(progress, length=settings.ramp)
            term = self._pseudo(strong, repeated, both)
            terms["strong"], logs["strong"] = ramp * settings.strong_weight * term, term.detach()
            if features:
                term = self._pseudo(features, label, both)
                terms["features"], logs["features"] = ramp * settings.feature_weight * term, term.detach()
        return StepOutput(torch.stack(list(terms.values())).sum(), logs, terms)

    def after_step(self, progress: float) -> None:
        """Move the average, if it is who labels."""
        if self.teacher is not None:
            self.teacher.follow(self.network, self.settings.decay)

    def exports(self) -> Mapping[str, nn.Module]:
        """The network, not its average."""
        return {"segmenter": self.network}

    def _partner(self, count: int) -> Tensor:
        """Return which strong view each one takes its box from: the next image's, of the same number."""
        return torch.cat([next_partner(count) + number * count for number in range(self.settings.views)])

    def _disturbed(self, batch: Batch) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Return all levels of labelled images, of plain views with disturbed features, and of strong views."""
        assert batch.weak is not None
        assert batch.strong is not None
        assert batch.features is not None
        network: Any = self.network
        images = [batch.image, batch.weak]
        if self.settings.joint_norm:
            images.append(batch.strong)
        counts = [len(each) for each in images]
        maps = []
        share = 1 - self.settings.feature_dropout
        for each, kept in zip(
            network.encoder(torch.cat(images)), torch.split(batch.features, list(self.widths), dim=1)
        ):
            known, weak, *others = each.split(counts)
            factor = kept.to(each.dtype).reshape(*kept.shape, *[1] * (each.ndim - 2)) / share
            maps.append(torch.cat([known, weak * factor, *others]))
        joint = [head(each).split(counts) for head, each in zip(network.heads, network.decoder(maps))]
        levels, features, *strong = (list(own) for own in zip(*joint))
        return levels, features, strong[0] if strong else deep_logits(network, batch.strong)[0]

    def _pseudo(self, levels: Sequence[Tensor], label: Tensor, both: Both) -> Tensor:
        dice, entropy = deep_supervision(levels, label, both)
        entropy = entropy * (label != IGNORE).float().mean()  # of all pixels, not of those that count
        return one_or_both(torch.stack([dice, entropy]), self.settings.pseudo_loss)


METHOD = FixMatch
