"""Self-training: first learn the labels, then also what an averaged copy of the network is sure of on other images.

For the first share of the run it is the control. After that a teacher, the moving average of the student, labels
patches of unlabelled cases as they are drawn; the student sees the same pixels recoloured and learns those labels like
any others, except where the teacher is not sure.

The online form of a classic. Offline, a network is trained to the end, labels every unlabelled volume once, and a
fresh one is trained on both; labels can be cleaned as whole volumes, and the second network has a second full run.
Here labels are made patch by patch, improve with the teacher during one run, and cost one more forward pass; but the
student is the one whose mistakes they repeat, not a fresh one.

Helps where labels are few but the network is already right on most of what it is sure of. Without unlabelled images
it is the control (``supervised``).

References:
    Lee, 2013, Pseudo-label, ICML workshop on challenges in representation learning.
    Xie et al., 2020, Noisy Student, the offline form. https://arxiv.org/abs/1911.04252
    Tarvainen and Valpola, 2017, the averaged teacher. https://arxiv.org/abs/1703.01780
    Sohn et al., 2020, FixMatch, the confidence gate. https://arxiv.org/abs/2001.07685
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from handful.batches import IGNORE
from handful.data.sampling import Source
from handful.errors import UsageError
from handful.losses.consistency import linear_ramp
from handful.losses.labelled import dice_and_fading_cross_entropy, labelled_terms, weighted
from handful.losses.pseudo_label import pseudo_label
from handful.losses.segmentation import deep_supervision
from handful.methods.contract import Method, Needs, StepOutput
from handful.networks.deep import deep_logits
from handful.networks.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class Settings:
    """No one paper's: the classic has no online form with values of its own.

    Attributes:
        start: share of the run that learns labels alone.
        ramp: share of the run after that over which the weight of pseudo-labels rises, linearly.
        pseudo_weight: of the pseudo-label term, once its ramp has ended.
        threshold: of the teacher's probability for its label to count; 0 counts every pixel.
        recolour: whether the student sees changed intensities; otherwise it sees what the teacher sees.
        decay: of the teacher a step; a young teacher follows quickly (``Teacher.follow``).
        teacher_trains: dropout and batch statistics act in the teacher too.
        joint_norm: labelled and unlabelled images pass the student, and so batch norm, together.
        labelled, unlabelled: images a step; None is the plan's batch each, so a step costs two batches after ``start``.
        dice_weight, cross_entropy_weight, balance: of both terms, see ``supervised``.
    """

    start: float = 0.3  # ours
    ramp: float = 0.2  # ours
    pseudo_weight: float = 1.0  # Noisy Student: labels and pseudo-labels alike
    threshold: float = 0.9  # ours
    recolour: bool = True  # Noisy Student: the student's images are changed, the teacher's are not
    decay: float = 0.99  # Mean Teacher
    teacher_trains: bool = False  # ours
    joint_norm: bool = True  # ours
    labelled: int | None = None  # ours
    unlabelled: int | None = None  # ours
    dice_weight: float = 1.0  # as supervised
    cross_entropy_weight: float = 1.0  # as supervised
    balance: float = 0.5  # as supervised

    def __post_init__(self) -> None:
        if min(self.pseudo_weight, self.dice_weight, self.cross_entropy_weight) < 0:
            raise UsageError("weights must be 0 or more.")
        shares = (self.start, self.ramp, self.threshold, self.decay, self.balance)
        if not all(0 <= share <= 1 for share in shares):
            raise UsageError("start, ramp, threshold, decay and balance must be between 0 and 1.")
        if min(count for count in (self.labelled, self.unlabelled, 1) if count is not None) < 1:
            raise UsageError("labelled and unlabelled must be at least 1, or null for the plan's batch.")


class Batch(NamedTuple):
    """Labelled images, and two views of the same pixels of unlabelled ones.

    Attributes:
        image: (B, C, *S).
        label: (B, *S) int64, -1 where unknown.
        weak: (U, C, *S), the teacher's; None at first, and without unlabelled cases.
        strong: (U, C, *S), the student's; None if it is to see the teacher's.
    """

    image: Tensor
    label: Tensor
    weak: Tensor | None
    strong: Tensor | None


class SelfTraining(Method):
    """Learn labels, then also confident pseudo-labels."""

    needs: ClassVar[Needs] = Needs(labels=True, unlabelled=True)
    paper: ClassVar[str] = "Xie et al. 2020, Noisy Student, https://arxiv.org/abs/1911.04252"

    def __init__(self, network: nn.Module, settings: Settings) -> None:
        super().__init__()
        self.network = network
        self.teacher = Teacher(network, follow_mode=settings.teacher_trains)
        self.settings = settings

    def batch(self, source: Source) -> Batch:
        """Draw labelled patches and, after the first share of the run, unlabelled ones."""
        settings = self.settings
        view = source.view(source.draw_labelled(settings.labelled or source.batch))
        assert view.label is not None
        if not source.unlabelled or source.progress < settings.start:
            return Batch(view.image, view.label, None, None)
        weak = source.view(
            source.draw_unlabelled(settings.unlabelled or source.batch), stream=1, intensity=False
        )
        strong = source.recolour(weak, stream=1).image if settings.recolour else None
        return Batch(view.image, view.label, weak.image, strong)

    def step(self, batch: Any, progress: float) -> StepOutput:
        """Dice and cross entropy against labels, and against the teacher's where it is sure."""
        settings = self.settings
        both = dice_and_fading_cross_entropy(settings.balance, progress)
        images = [batch.image]
        if batch.weak is not None:
            images.append(batch.weak if batch.strong is None else batch.strong)
        levels = deep_logits(self.network, *images, joint=settings.joint_norm)
        terms, logs = labelled_terms(deep_supervision(levels[0], batch.label, both), settings)
        if batch.weak is not None:
            label = pseudo_label(self.teacher(batch.weak), threshold=settings.threshold)
            pseudo = weighted(deep_supervision(levels[1], label, both), settings)
            weight = settings.pseudo_weight * linear_ramp(progress - settings.start, length=settings.ramp)
            terms["pseudo"], logs["pseudo"] = weight * pseudo, pseudo.detach()
            logs["confident"] = (label != IGNORE).float().mean()
        return StepOutput(torch.stack(list(terms.values())).sum(), logs, terms)

    def after_step(self, progress: float) -> None:
        """Move the teacher."""
        self.teacher.follow(self.network, self.settings.decay)

    def exports(self) -> Mapping[str, nn.Module]:
        """The student; the teacher is dropped."""
        return {"segmenter": self.network}


METHOD = SelfTraining
