"""BCP: paste a box of a labelled image into an unlabelled one and the other way round, and label both mixtures.

The pasted part of a mixture has a label, the rest has what a teacher, the student's moving average, says of the
unlabelled image. So every training image shows both kinds, and what is learnt from the labels is carried over. For
the first share of the run labelled images are mixed with each other, until the teacher is worth listening to.

A mixture is half true and half guessed, its anatomy is cut at the border of the box, and there are as many of them
as there would be labelled images: short runs with a good augmentation of few labels can lose by it. ``plain`` adds
unmixed labelled images to each step, ``warm_up``, ``threshold`` and ``decay`` say when, where and how fast the teacher
is believed. Without unlabelled images it is the control (``supervised``).

References:
    Bai et al., 2023, Bidirectional copy-paste for semi-supervised medical image segmentation.
    https://arxiv.org/abs/2305.00673
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from handful.batches import IGNORE
from handful.data.connected import find_pieces
from handful.data.sampling import Crops, Source, View
from handful.errors import UsageError
from handful.losses.consistency import linear_ramp
from handful.losses.labelled import labelled_loss, labelled_terms, weighted
from handful.losses.mixing import box_masks, next_partner, paste
from handful.losses.pseudo_label import pseudo_label
from handful.losses.segmentation import deep_supervision
from handful.methods.contract import Method, Needs, StepOutput
from handful.networks.deep import deep_logits
from handful.networks.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The paper's; the loss of each part is the control's.

    Attributes:
        box: side of the pasted box, as a share of the patch's along each axis.
        warm_up: share of the run in which labelled images are mixed with each other alone.
        ramp: share of the run after that over which the weight of pseudo-labels rises, linearly; 0: constant.
        pseudo_weight: of the part of a mixture that the teacher labels; the labelled part has 1.
        plain: unmixed labelled images a step besides the mixtures, all the run; None is the plan's batch, 0 none.
        threshold: of the teacher's probability for its label to count; 0 counts every pixel.
        largest: whether a pseudo-label keeps but the largest connected piece of each class. Done on the CPU, class
            by class and image by image: it can cost more than the step itself. Only for structures of one piece.
        recolour: whether a mixture's intensities are changed, as one image; the teacher's image keeps its own.
        decay: of the teacher a step; a young teacher follows quickly (``Teacher.follow``).
        teacher_trains: dropout and batch statistics act in the teacher too.
        joint_norm: plain images and mixtures pass the student, and so batch norm, together.
        labelled: labelled images a step to be mixed, as many unlabelled ones with them, so as many mixtures; half of
            them in each direction. None is the plan's batch.
        dice_weight, cross_entropy_weight, balance: of all terms, see ``supervised``.
        squared_dice, dice_background: squares in the Dice loss's denominator, background among its classes.
    """

    box: float = 2 / 3  # the paper: beta
    warm_up: float = 0.25  # released code: 10000 of 40000 steps for ACDC, 2000 of 17000 for LA
    ramp: float = 0.0  # the paper
    pseudo_weight: float = 0.5  # the paper: alpha
    plain: int | None = None  # ours; the paper: 0
    threshold: float = 0.0  # the paper
    largest: bool = False  # ours; the paper: True
    recolour: bool = True  # ours; the paper only turns and flips
    decay: float = 0.99  # the paper
    teacher_trains: bool = False  # repaired: pseudo-labels without dropout; released code: True
    joint_norm: bool = True  # ours; released code: each direction apart
    labelled: int | None = None  # released code: 12 for ACDC, 4 for LA
    dice_weight: float = 1.0  # as supervised; released code: 0.5
    cross_entropy_weight: float = 1.0  # as supervised; released code: 0.5
    balance: float = 0.5  # as supervised; released code: 0
    squared_dice: bool = False  # as supervised; released code: True
    dice_background: bool = False  # as supervised; released code: True

    def __post_init__(self) -> None:
        if min(self.pseudo_weight, self.dice_weight, self.cross_entropy_weight) < 0:
            raise UsageError("weights must be 0 or more.")
        if not 0 < self.box < 1:
            raise UsageError(f"box is a share of each side, between 0 and 1, found {self.box}.")
        shares = (self.warm_up, self.ramp, self.threshold, self.decay, self.balance)
        if not all(0 <= share <= 1 for share in shares):
            raise UsageError("warm_up, ramp, threshold, decay and balance must be between 0 and 1.")
        if self.labelled is not None and self.labelled < 2:
            raise UsageError("labelled must be at least 2, one mixture in each direction.")
        if self.plain is not None and self.plain < 0:
            raise UsageError("plain must be 0 or more, or null for the plan's batch.")


class Batch(NamedTuple):
    """Mixtures of labelled and unlabelled images, and unmixed labelled ones.

    Attributes:
        image: (M, C, *S) mixtures; without unlabelled cases, labelled images.
        label: (M, *S) int64, -1 where unknown, and where a mixture shows an unlabelled image.
        weak: (M, C, *S) the unlabelled images as they are; None in the warm-up and without unlabelled cases.
        keep: (M, *S) bool, True where a mixture shows its labelled image; None with ``weak``.
        plain: (P, C, *S) unmixed labelled images, or None.
        plain_label: (P, *S) int64, or None.
    """

    image: Tensor
    label: Tensor
    weak: Tensor | None
    keep: Tensor | None
    plain: Tensor | None
    plain_label: Tensor | None


class BCP(Method):
    """Learn mixtures of labelled and unlabelled images, half by labels and half by a teacher's."""

    needs: ClassVar[Needs] = Needs(labels=True, unlabelled=True)
    paper: ClassVar[str] = "Bai et al. 2023, BCP, https://arxiv.org/abs/2305.00673"

    def __init__(self, network: nn.Module, settings: Settings) -> None:
        super().__init__()
        self.network = network
        self.teacher = Teacher(network, follow_mode=settings.teacher_trains)
        self.settings = settings

    def batch(self, source: Source) -> Batch:
        """Draw images, where each mixture is to show which, and the mixtures.

        Raises:
            UsageError: one mixture a step, which has one direction only.
        """
        settings = self.settings
        count = settings.labelled or source.batch
        crops = source.draw_labelled(count)
        if not source.unlabelled:
            view = source.view(crops)
            assert view.label is not None
            return Batch(view.image, view.label, None, None, None, None)
        if count < 2:
            raise UsageError(
                "bcp mixes in two directions and needs two images a step, the plan's batch is 1: set "
                "method.labelled=2 (--set method.labelled=2)."
            )
        share = settings.box ** len(source.patch)
        keep = box_masks(count, source.patch, share=(share, share), generator=source.generator())
        plain, plain_label = self._plain(source)
        known = source.view(crops, intensity=False)
        assert known.label is not None
        if source.progress < settings.warm_up:
            keep, partner = keep.to(known.image.device), next_partner(count)
            mixed = known._replace(image=paste(known.image, keep, partner))
            label = paste(known.label, keep, partner)
            return Batch(self._seen(source, mixed), label, None, None, plain, plain_label)
        # the first half shows its labelled image around the box, the second half in it
        keep[count // 2 :].logical_not_()
        keep = keep.to(known.image.device)
        others = source.view(source.draw_unlabelled(count), stream=1, intensity=False).image
        mixed = known._replace(image=known.image.where(keep.unsqueeze(1), others))
        label = known.label.where(keep, IGNORE)
        return Batch(self._seen(source, mixed), label, others, keep, plain, plain_label)

    def step(self, batch: Any, progress: float) -> StepOutput:
        """Dice and cross entropy: labelled parts, parts the teacher labels, unmixed images."""
        settings = self.settings
        images = [batch.image] if batch.plain is None else [batch.image, batch.plain]
        levels = deep_logits(self.network, *images, joint=settings.joint_norm)
        both = labelled_loss(settings, progress)
        terms, logs = labelled_terms(deep_supervision(levels[0], batch.label, both), settings)
        if batch.plain is not None:
            terms["plain"] = weighted(deep_supervision(levels[1], batch.plain_label, both), settings)
            logs["plain"] = terms["plain"].detach()
        if batch.weak is not None:
            label = pseudo_label(self.teacher(batch.weak), threshold=settings.threshold)
            if settings.largest:
                label = largest_pieces(label)
            label = label.where(~batch.keep, IGNORE)
            pseudo = weighted(deep_supervision(levels[0], label, both), settings)
            weight = settings.pseudo_weight * linear_ramp(progress - settings.warm_up, length=settings.ramp)
            terms["pseudo"], logs["pseudo"] = weight * pseudo, pseudo.detach()
            logs["confident"] = (label != IGNORE).sum() / (~batch.keep).sum().clamp(min=1)
        return StepOutput(torch.stack(list(terms.values())).sum(), logs, terms)

    def after_step(self, progress: float) -> None:
        """Move the teacher, in the warm-up too."""
        self.teacher.follow(self.network, self.settings.decay)

    def exports(self) -> Mapping[str, nn.Module]:
        """The student; the teacher is dropped."""
        return {"segmenter": self.network}

    def _plain(self, source: Source) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Draw unmixed labelled images, in another stream than those to be mixed."""
        count = source.batch if self.settings.plain is None else self.settings.plain
        if count == 0:
            return None, None
        crops: Crops = source.draw_labelled(count, stream=3)
        view = source.view(crops, stream=3)
        assert view.label is not None
        return view.image, view.label

    def _seen(self, source: Source, mixed: View) -> Tensor:
        return source.recolour(mixed).image if self.settings.recolour else mixed.image


def largest_pieces(label: Tensor) -> Tensor:
    """Return a label map (B, *S) in which each class but background keeps its largest piece; the rest becomes 0.

    Pixels touch by a face, an edge or a corner. -1 stays.
    """
    array = label.detach().to("cpu", copy=True).numpy()
    for image in array:
        volume = image if image.ndim == 3 else image[None]  # a view of the same pixels
        for index in range(1, int(volume.max()) + 1):
            numbers, sizes = find_pieces(volume == index)
            if len(sizes) > 1:
                volume[(numbers > 0) & (numbers != sizes.argmax() + 1)] = 0
    return torch.from_numpy(array).to(label.device)


METHOD = BCP
