"""Mean Teacher: on unlabelled images the network should say what the average of its own past weights says.

The teacher is that average; it is steadier than the student, so its probabilities are targets where nobody drew a
label. It sees the same pixels as they are, the student sees them with changed intensities, or both see the same and
the teacher's view is noisy, as in SSL4MIS. What predicts is the student.

Needs unlabelled images of the same kind as the labelled ones; without any it is the control (``supervised``).

References:
    Tarvainen and Valpola, 2017, Mean teachers are better role models. https://arxiv.org/abs/1703.01780
    Luo et al., SSL4MIS, the form it has in medical benchmarks. https://github.com/HiLab-git/SSL4MIS
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from handful.data.augment.noise import with_noise
from handful.data.sampling import Source
from handful.errors import UsageError
from handful.losses.consistency import sigmoid_ramp, squared_consistency
from handful.losses.labelled import labelled_loss, labelled_terms
from handful.losses.segmentation import deep_supervision
from handful.methods.contract import Method, Needs, StepOutput
from handful.networks.deep import deep_logits_of_both
from handful.networks.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class Settings:
    """SSL4MIS's; the labelled term is the control's.

    Attributes:
        consistency_weight: of the unlabelled term once its ramp has ended.
        ramp: share of the run over which that weight rises, as a sigmoid.
        decay: of the teacher a step; a young teacher follows quickly (``Teacher.follow``).
        teacher_sees: ``plain``: the pixels as they are, while the student's are recoloured; ``noisy``: the student's
            view, with noise.
        noise: deviation, for ``noisy``.
        teacher_trains: dropout and batch statistics act in the teacher too.
        joint_norm: labelled and unlabelled images pass the network, and so batch norm, together.
        labelled, unlabelled: images a step; None is the plan's batch each, so a step costs two batches.
        dice_weight, cross_entropy_weight, balance: of the labelled term, see ``supervised``.
        squared_dice, dice_background: squares in the Dice loss's denominator, background among its classes.
    """

    consistency_weight: float = 0.1  # SSL4MIS; Tarvainen and Valpola, released: 100, for photographs
    ramp: float = 1.0  # SSL4MIS: the whole run
    decay: float = 0.99  # SSL4MIS; Tarvainen and Valpola, released: 0.99, then 0.999
    teacher_sees: Literal["plain", "noisy"] = "plain"  # ours, weak to strong; SSL4MIS: noisy
    noise: float = 0.1  # SSL4MIS, cut off at 0.2
    teacher_trains: bool = False  # repaired: targets without dropout; SSL4MIS: True
    joint_norm: bool = True  # SSL4MIS
    labelled: int | None = None  # SSL4MIS: 12
    unlabelled: int | None = None  # SSL4MIS: 12
    dice_weight: float = 1.0  # as supervised; SSL4MIS: 0.5
    cross_entropy_weight: float = 1.0  # as supervised; SSL4MIS: 0.5
    balance: float = 0.5  # as supervised; SSL4MIS: 0
    squared_dice: bool = False  # as supervised; SSL4MIS: True
    dice_background: bool = False  # as supervised; SSL4MIS: True

    def __post_init__(self) -> None:
        weights = (self.consistency_weight, self.dice_weight, self.cross_entropy_weight, self.noise)
        if min(weights) < 0 or not 0 <= self.balance <= 1:
            raise UsageError("weights and noise must be 0 or more and balance between 0 and 1.")
        if not 0 <= self.ramp <= 1 or not 0 <= self.decay <= 1:
            raise UsageError("ramp and decay must be between 0 and 1.")
        if min(count for count in (self.labelled, self.unlabelled, 1) if count is not None) < 1:
            raise UsageError("labelled and unlabelled must be at least 1, or null for the plan's batch.")


class Batch(NamedTuple):
    """Labelled images, and two views of the same pixels of unlabelled ones.

    Attributes:
        image: (B, C, *S).
        label: (B, *S) int64, -1 where unknown.
        student, teacher: (U, C, *S), or None without unlabelled cases.
    """

    image: Tensor
    label: Tensor
    student: Tensor | None
    teacher: Tensor | None


class MeanTeacher(Method):
    """Learn labels where there are some, and elsewhere the teacher's probabilities."""

    needs: ClassVar[Needs] = Needs(labels=True, unlabelled=True)
    paper: ClassVar[str] = "Tarvainen and Valpola 2017, Mean Teacher, https://arxiv.org/abs/1703.01780"

    def __init__(self, network: nn.Module, settings: Settings) -> None:
        super().__init__()
        self.network = network
        self.teacher = Teacher(network, follow_mode=settings.teacher_trains)
        self.settings = settings

    def batch(self, source: Source) -> Batch:
        """Draw labelled patches, and unlabelled ones in the student's and the teacher's view."""
        settings = self.settings
        view = source.view(source.draw_labelled(settings.labelled or source.batch))
        assert view.label is not None
        if not source.unlabelled:
            return Batch(view.image, view.label, None, None)
        crops = source.draw_unlabelled(settings.unlabelled or source.batch)
        plain = source.view(crops, stream=1, intensity=False)
        student = source.recolour(plain, stream=1).image
        if settings.teacher_sees == "plain":
            return Batch(view.image, view.label, student, plain.image)
        generator = torch.Generator(source.device).manual_seed(source.generator().initial_seed())
        noisy = with_noise(student, settings.noise, generator=generator)
        return Batch(view.image, view.label, student, noisy)

    def step(self, batch: Any, progress: float) -> StepOutput:
        """Dice and cross entropy of labelled images, squared difference to the teacher of unlabelled ones."""
        settings = self.settings
        levels, unlabelled = deep_logits_of_both(
            self.network, batch.image, batch.student, joint=settings.joint_norm
        )
        both = labelled_loss(settings, progress)
        terms, logs = labelled_terms(deep_supervision(levels, batch.label, both), settings)
        if unlabelled is not None:
            consistency = squared_consistency(unlabelled, self.teacher(batch.teacher))
            weight = settings.consistency_weight * sigmoid_ramp(progress, length=settings.ramp)
            terms["consistency"], logs["consistency"] = weight * consistency, consistency.detach()
        return StepOutput(torch.stack(list(terms.values())).sum(), logs, terms)

    def after_step(self, progress: float) -> None:
        """Move the teacher."""
        self.teacher.follow(self.network, self.settings.decay)

    def exports(self) -> Mapping[str, nn.Module]:
        """The student; the teacher is dropped."""
        return {"segmenter": self.network}


METHOD = MeanTeacher
