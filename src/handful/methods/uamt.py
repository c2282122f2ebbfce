"""Uncertainty-aware Mean Teacher: follow the teacher only where it says the same however it is disturbed.

``mean_teacher``, with a mask. The teacher looks at each unlabelled image several times, each time with other noise on
it and with dropout; where the mean of its answers is spread over classes, it is not listened to. The threshold rises
over the run, so that easy pixels come first. A network without dropout, as the house U-Net is, is disturbed by noise
alone: its uncertainty is how undecided it is in the neighbourhood of the image, not what its weights leave open.

Costs ``passes`` forward passes of the teacher a step more than ``mean_teacher``. Needs unlabelled images of the same
kind as the labelled ones; without any it is the control (``supervised``).

References:
    Yu et al., 2019, UA-MT. https://arxiv.org/abs/1907.07034
    Luo et al., SSL4MIS, the form it has in 2D. https://github.com/HiLab-git/SSL4MIS
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from handful.data.augment.noise import with_noise
from handful.data.sampling import Source
from handful.errors import UsageError
from handful.losses.consistency import sigmoid_ramp, squared_consistency
from handful.losses.entropy import entropy_map
from handful.losses.labelled import labelled_loss, labelled_terms
from handful.losses.segmentation import deep_supervision
from handful.methods.contract import Method, Needs, StepOutput
from handful.networks.deep import deep_logits_of_both
from handful.networks.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The released code's; the labelled term is the control's.

    Attributes:
        consistency_weight: of the unlabelled term once its ramp has ended.
        ramp: share of the run over which that weight rises, as a sigmoid.
        passes: of the teacher for its uncertainty.
        threshold: share of the largest possible entropy under which a pixel is certain, at the start; it rises to 1
            over the run, as a sigmoid.
        threshold_classes: that largest entropy is the log of so many classes; None is the network's own number.
        decay: of the teacher a step; a young teacher follows quickly (``Teacher.follow``).
        teacher_sees: ``plain``: the pixels as they are, while the student's are recoloured; ``noisy``: the student's
            view, with noise. The passes always add noise to it.
        noise: deviation.
        teacher_trains: dropout and batch statistics act in the teacher's target too. In the passes dropout always
            does.
        joint_norm: labelled and unlabelled images pass the network, and so batch norm, together.
        labelled, unlabelled: images a step; None is the plan's batch each, so a step costs two batches.
        dice_weight, cross_entropy_weight, balance: of the labelled term, see ``supervised``.
        squared_dice, dice_background: squares in the Dice loss's denominator, background among its classes.
    """

    consistency_weight: float = 0.1  # released
    ramp: float = 1.0  # released: the whole run
    passes: int = 8  # Yu et al.
    threshold: float = 0.75  # Yu et al.
    threshold_classes: int | None = None  # Yu et al.: 2, of 2; SSL4MIS: 2, of 4
    decay: float = 0.99  # Yu et al.
    teacher_sees: Literal["plain", "noisy"] = "plain"  # ours, weak to strong; released: noisy
    noise: float = 0.1  # released, cut off at 0.2
    teacher_trains: bool = False  # repaired: targets without dropout; released: True
    joint_norm: bool = True  # released
    labelled: int | None = None  # released: 2
    unlabelled: int | None = None  # released: 2
    dice_weight: float = 1.0  # as supervised; released: 0.5
    cross_entropy_weight: float = 1.0  # as supervised; released: 0.5
    balance: float = 0.5  # as supervised; released: 0
    squared_dice: bool = False  # as supervised; released: True
    dice_background: bool = False  # as supervised, released; SSL4MIS: True

    def __post_init__(self) -> None:
        weights = (self.consistency_weight, self.dice_weight, self.cross_entropy_weight, self.noise)
        if min(weights) < 0 or not 0 <= self.balance <= 1:
            raise UsageError("weights and noise must be 0 or more and balance between 0 and 1.")
        if not (0 <= self.ramp <= 1 and 0 <= self.decay <= 1 and 0 <= self.threshold <= 1):
            raise UsageError("ramp, decay and threshold must be between 0 and 1.")
        classes = 2 if self.threshold_classes is None else self.threshold_classes
        counts = [count for count in (self.passes, self.labelled, self.unlabelled) if count is not None]
        if min(counts) < 1 or classes < 2:
            raise UsageError(
                "passes, labelled and unlabelled must be at least 1 and threshold_classes at least 2; all but passes "
                "may be null: the plan's batch, and the network's own number of classes."
            )


class Batch(NamedTuple):
    """Labelled images, and two views of the same pixels of unlabelled ones.

    Attributes:
        image: (B, C, *S).
        label: (B, *S) int64, -1 where unknown.
        student: (U, C, *S), or None without unlabelled cases.
        teacher: (U, C, *S) what the teacher's target is made from, or None.
        disturbed: (U, C, *S) what the passes add noise to, or None.
        seed: of that noise.
    """

    image: Tensor
    label: Tensor
    student: Tensor | None
    teacher: Tensor | None
    disturbed: Tensor | None
    seed: int


class UAMT(Method):
    """Learn labels where there are some, and elsewhere what the teacher is certain of."""

    needs: ClassVar[Needs] = Needs(labels=True, unlabelled=True)
    paper: ClassVar[str] = "Yu et al. 2019, UA-MT, https://arxiv.org/abs/1907.07034"

    def __init__(self, network: nn.Module, settings: Settings) -> None:
        super().__init__()
        if settings.noise == 0 and settings.passes > 1 and not dropouts(network):
            raise UsageError(
                f"the {settings.passes} passes would all be alike: noise is 0 and the network has no dropout. Use "
                "--set method.noise=0.1, or a network with dropout, or --set method.passes=1."
            )
        self.network = network
        self.teacher = Teacher(network, follow_mode=settings.teacher_trains)
        self.settings = settings

    def batch(self, source: Source) -> Batch:
        """Draw labelled patches, and unlabelled ones in the student's and the teacher's view."""
        settings = self.settings
        seed = source.generator().initial_seed()
        view = source.view(source.draw_labelled(settings.labelled or source.batch))
        assert view.label is not None
        if not source.unlabelled:
            return Batch(view.image, view.label, None, None, None, seed)
        crops = source.draw_unlabelled(settings.unlabelled or source.batch)
        plain = source.view(crops, stream=1, intensity=False)
        student = source.recolour(plain, stream=1).image
        if settings.teacher_sees == "plain":
            return Batch(view.image, view.label, student, plain.image, plain.image, seed)
        generator = torch.Generator(source.device).manual_seed(source.generator(stream=1).initial_seed())
        noisy = with_noise(student, settings.noise, generator=generator)
        return Batch(view.image, view.label, student, noisy, student, seed)

    def step(self, batch: Any, progress: float) -> StepOutput:
        """Dice and cross entropy of labelled images; squared difference to the teacher where it is certain."""
        settings = self.settings
        levels, unlabelled = deep_logits_of_both(
            self.network, batch.image, batch.student, joint=settings.joint_norm
        )
        both = labelled_loss(settings, progress)
        terms, logs = labelled_terms(deep_supervision(levels, batch.label, both), settings)
        if unlabelled is not None:
            spread = entropy_map(self.mean_answer(batch.disturbed, seed=batch.seed))
            certain = spread < self.limit(progress, classes=unlabelled.shape[1])
            consistency = squared_consistency(
                unlabelled, self.teacher(batch.teacher), certain, processes=True
            )
            weight = settings.consistency_weight * sigmoid_ramp(progress, length=settings.ramp)
            terms["consistency"] = weight * consistency
            logs |= {"consistency": consistency.detach(), "certain": certain.float().mean()}
        return StepOutput(torch.stack(list(terms.values())).sum(), logs, terms)

    @torch.no_grad()
    def mean_answer(self, image: Tensor, *, seed: int) -> Tensor:
        """Return the mean class probabilities (U, K, *S) of the teacher over its disturbed passes."""
        generator = torch.Generator(image.device).manual_seed(seed)
        layers = dropouts(self.teacher.module)
        before = [layer.training for layer in layers]
        for layer in layers:
            layer.train(self.training)
        total = sum(
            self.teacher(with_noise(image, self.settings.noise, generator=generator)).float().softmax(1)
            for _ in range(self.settings.passes)
        )
        for layer, mode in zip(layers, before):
            layer.train(mode)
        assert isinstance(total, Tensor)
        return total / self.settings.passes

    def limit(self, progress: float, *, classes: int) -> float:
        """Return the entropy, in nats, under which a pixel is certain."""
        start = self.settings.threshold
        share = start + (1 - start) * sigmoid_ramp(progress)
        return share * math.log(self.settings.threshold_classes or classes)

    def after_step(self, progress: float) -> None:
        """Move the teacher."""
        self.teacher.follow(self.network, self.settings.decay)

    def exports(self) -> Mapping[str, nn.Module]:
        """The student; the teacher is dropped."""
        return {"segmenter": self.network}


def dropouts(network: nn.Module) -> list[nn.Module]:
    """Return the layers that drop values or channels."""
    return [module for module in network.modules() if isinstance(module, _DropoutNd) and module.p > 0]


METHOD = UAMT
