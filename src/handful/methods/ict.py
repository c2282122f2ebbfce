"""Interpolation consistency: of a mixture of two unlabelled images, predict the mixture of the teacher's predictions.

Between two images the prediction should change evenly, so that no boundary runs through where images are. The
teacher is the average of the network's past weights, as in ``mean_teacher``; the disturbance is mixing instead of
noise. A mixture of two patients is no image that exists, but it is a demand that needs no label. Mixing the labelled
images too (``labelled_alpha``) makes it ``mixup`` with labels that a teacher gives.

Needs unlabelled images of the same kind as the labelled ones; without any it is the control (``supervised``).

References:
    Verma et al., 2019, ICT. https://arxiv.org/abs/1903.03825
    Luo et al., SSL4MIS, the form it has in medical benchmarks. https://github.com/HiLab-git/SSL4MIS
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from handful.data.sampling import Source
from handful.errors import UsageError
from handful.losses.consistency import sigmoid_ramp, squared_consistency
from handful.losses.labelled import labelled_loss, labelled_terms
from handful.losses.mixed_labels import mixed_supervision
from handful.losses.mixing import mixing_weight, mixup, random_partner
from handful.losses.segmentation import deep_supervision
from handful.methods.contract import Method, Needs, StepOutput
from handful.networks.deep import deep_logits_of_both
from handful.networks.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class Settings:
    """SSL4MIS's; the labelled term is the control's.

    Attributes:
        alpha: of the Beta(alpha, alpha) that each mixture's share is drawn from: near 0 hardly mixes, 1 is uniform.
        labelled_alpha: the same for labelled images, one share a step; 0 does not mix them.
        consistency_weight: of the unlabelled term once its ramp has ended.
        ramp: share of the run over which that weight rises, as a sigmoid.
        decay: of the teacher a step; a young teacher follows quickly (``Teacher.follow``).
        teacher_sees: ``plain``: the pixels as they are, while the student's mixtures are of recoloured images;
            ``same``: what the student's mixtures are made of.
        teacher_trains: dropout and batch statistics act in the teacher too.
        joint_norm: labelled images and mixtures pass the network, and so batch norm, together.
        labelled: images a step; None is the plan's batch.
        unlabelled: images a step, an even number, which make half as many mixtures; None is the plan's batch, or one
            more.
        dice_weight, cross_entropy_weight, balance: of the labelled term, see ``supervised``.
        squared_dice, dice_background: squares in the Dice loss's denominator, background among its classes.
    """

    alpha: float = 0.2  # SSL4MIS; Verma et al.: 0.1 to 1
    labelled_alpha: float = 0.0  # SSL4MIS; Verma et al., released: as alpha
    consistency_weight: float = 0.1  # SSL4MIS; Verma et al., released: 100, for photographs
    ramp: float = 1.0  # SSL4MIS: the whole run; Verma et al., released: a quarter
    decay: float = 0.99  # SSL4MIS; Verma et al., released: 0.999
    teacher_sees: Literal["plain", "same"] = "plain"  # ours, weak to strong; SSL4MIS, Verma et al.: same
    teacher_trains: bool = False  # repaired: targets without dropout; SSL4MIS: True
    joint_norm: bool = True  # SSL4MIS
    labelled: int | None = None  # SSL4MIS: 12
    unlabelled: int | None = None  # SSL4MIS: 12, so 6 mixtures
    dice_weight: float = 1.0  # as supervised; SSL4MIS: 0.5
    cross_entropy_weight: float = 1.0  # as supervised; SSL4MIS: 0.5
    balance: float = 0.5  # as supervised; SSL4MIS: 0
    squared_dice: bool = False  # as supervised; SSL4MIS: True
    dice_background: bool = False  # as supervised; SSL4MIS: True

    def __post_init__(self) -> None:
        weights = (self.consistency_weight, self.dice_weight, self.cross_entropy_weight)
        if self.alpha <= 0 or self.labelled_alpha < 0 or min(weights) < 0:
            raise UsageError("alpha must be positive, labelled_alpha and weights 0 or more.")
        if not (0 <= self.ramp <= 1 and 0 <= self.decay <= 1 and 0 <= self.balance <= 1):
            raise UsageError("ramp, decay and balance must be between 0 and 1.")
        if self.labelled is not None and self.labelled < 1:
            raise UsageError("labelled must be at least 1, or null for the plan's batch.")
        if self.unlabelled is not None and (self.unlabelled < 2 or self.unlabelled % 2):
            raise UsageError(
                f"unlabelled images are mixed in pairs: their number must be even, found {self.unlabelled}."
            )


class Batch(NamedTuple):
    """Labelled images, and pairs of unlabelled ones in two views; nothing is mixed yet.

    Attributes:
        image: (B, C, *S).
        label: (B, *S) int64, -1 where unknown.
        partner: (B,) what each labelled image is mixed with; None where they are not mixed.
        labelled_share: of such a mixture that is the image's own.
        student, teacher: (2P, C, *S) the same pixels twice, all first images of the pairs before all second ones;
            None without unlabelled cases.
        share: (P,) of a mixture that is its first image's.
    """

    image: Tensor
    label: Tensor
    partner: Tensor | None
    labelled_share: float
    student: Tensor | None
    teacher: Tensor | None
    share: Tensor | None


class ICT(Method):
    """Learn labels where there are some, and elsewhere to interpolate as the teacher's predictions do."""

    needs: ClassVar[Needs] = Needs(labels=True, unlabelled=True)
    paper: ClassVar[str] = "Verma et al. 2019, ICT, https://arxiv.org/abs/1903.03825"

    def __init__(self, network: nn.Module, settings: Settings) -> None:
        super().__init__()
        self.network = network
        self.teacher = Teacher(network, follow_mode=settings.teacher_trains)
        self.settings = settings

    def batch(self, source: Source) -> Batch:
        """Draw labelled patches, pairs of unlabelled ones, and the shares of their mixtures.

        Raises:
            UsageError: labelled images are to be mixed, but the plan's batch is a single one.
        """
        settings, generator = self.settings, source.generator()
        count = settings.labelled or source.batch
        view = source.view(source.draw_labelled(count))
        assert view.label is not None
        partner, labelled_share = None, 1.0
        if settings.labelled_alpha:
            if count < 2:
                raise UsageError(
                    "labelled_alpha mixes labelled images, which takes two a step at least: --set method.labelled=2."
                )
            partner = random_partner(count, generator=generator)
            labelled_share = mixing_weight(alpha=settings.labelled_alpha, fold=False, generator=generator)
        known = Batch(view.image, view.label, partner, labelled_share, None, None, None)
        if not source.unlabelled:
            return known
        pairs = (settings.unlabelled or source.batch + 1) // 2
        crops = source.draw_unlabelled(2 * pairs)
        plain = source.view(crops, stream=1, intensity=False)
        student = source.recolour(plain, stream=1).image
        share = [mixing_weight(alpha=settings.alpha, fold=False, generator=generator) for _ in range(pairs)]
        return known._replace(
            student=student,
            teacher=plain.image if settings.teacher_sees == "plain" else student,
            share=torch.tensor(share, device=student.device),
        )

    def step(self, batch: Any, progress: float) -> StepOutput:
        """Dice and cross entropy of labelled images, squared difference of mixtures to mixed predictions."""
        settings = self.settings
        image, mixtures = batch.image, None
        if batch.partner is not None:
            image = mixup(image, batch.labelled_share, batch.partner)
        if batch.student is not None:
            mixtures = mixed_pairs(batch.student, batch.share)
        levels, predicted = deep_logits_of_both(self.network, image, mixtures, joint=settings.joint_norm)
        both = labelled_loss(settings, progress)
        if batch.partner is None:
            segmentation = deep_supervision(levels, batch.label, both)
        else:
            segmentation = mixed_supervision(
                levels, batch.label, batch.partner, share=batch.labelled_share, loss=both
            )
        terms, logs = labelled_terms(segmentation, settings)
        if predicted is not None:
            target = mixed_pairs(self.teacher(batch.teacher).float().softmax(1), batch.share)
            # the loss takes logits, and the softmax of log p is p
            target = target.clamp(min=torch.finfo(target.dtype).tiny).log()
            consistency = squared_consistency(predicted, target)
            weight = settings.consistency_weight * sigmoid_ramp(progress, length=settings.ramp)
            terms["consistency"], logs["consistency"] = weight * consistency, consistency.detach()
        return StepOutput(torch.stack(list(terms.values())).sum(), logs, terms)

    def after_step(self, progress: float) -> None:
        """Move the teacher."""
        self.teacher.follow(self.network, self.settings.decay)

    def exports(self) -> Mapping[str, nn.Module]:
        """The student; the teacher is dropped."""
        return {"segmenter": self.network}


def mixed_pairs(maps: Tensor, share: Tensor) -> Tensor:
    """Return (P, C, *S): share of the first half of ``maps`` (2P, C, *S), the rest of the second; share is (P,)."""
    first, second = maps.chunk(2)
    own = share.reshape(-1, *[1] * (maps.ndim - 1))
    return own * first + (1 - own) * second


METHOD = ICT
