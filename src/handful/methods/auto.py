"""The house recipe: the control, and beside it whatever of the other images has been shown to help.

A step sees as many labelled patches as the control's, always, so no label is traded for a guess. The recipe of the same
name lets half of them come from labelled volumes in the shapes of unlabelled ones (``data.synthetic``): the part that
paid on development cases. The other parts are here and can be switched on. From ``start`` on a teacher, the moving
average of the student, labels unlabelled patches as they are; the student sees the same pixels recoloured, some with a
box of a labelled image pasted in, and learns what the teacher is sure of. And pixels of one class are drawn together
and others pushed apart, over all labelled and surely labelled pixels at once (exact).

With all of them off it is the control (``supervised``). What each part adds was measured: docs/methods/auto.md.

References:
    Tarvainen and Valpola, 2017, the averaged teacher. https://arxiv.org/abs/1703.01780
    Sohn et al., 2020, FixMatch, weak to strong and the gate. https://arxiv.org/abs/2001.07685
    Bai et al., 2023, BCP, pasting between labelled and unlabelled. https://arxiv.org/abs/2305.00673
    Hu et al., 2021, SSCL, supervised pixel contrast. https://arxiv.org/abs/2109.07407
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
from handful.losses.gathered import pixel_contrast_across_processes
from handful.losses.labelled import dice_and_fading_cross_entropy, labelled_terms, weighted
from handful.losses.mixing import box_masks
from handful.losses.pseudo_label import pseudo_label
from handful.losses.segmentation import deep_supervision, downsampled
from handful.methods.contract import Method, Needs, StepOutput
from handful.networks.deep import deep_logits
from handful.networks.heads import PixelHead
from handful.networks.parts import head_of, parts_of
from handful.networks.teacher import Teacher

HIDDEN = 2
"""Width of the middle of the pixel projector, in widths of its embeddings, as in SSCL."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """With all parts on; the recipe of the same name keeps those that paid (docs/methods/auto.md).

    Attributes:
        start: share of the run that learns labels alone: a teacher that knows nothing yet teaches errors.
        ramp: share of the run after that over which the weight of pseudo-labels rises, linearly.
        pseudo_weight: of the pseudo-label term, once its ramp has ended; 0 leaves unlabelled images out.
        threshold: of the teacher's probability for its label to count.
        paste: share of the unlabelled patches in which a box shows a labelled patch.
        box: volume of that box as a share of the patch's, drawn uniformly.
        decay: of the teacher a step; a young teacher follows quickly (``Teacher.follow``).
        contrast_weight: of the pixel contrast; 0 leaves it out.
        contrast_every: steps from one pixel contrast to the next: it can cost as much as half a step of the control.
        temperature, width, level: of the pixel contrast: SSCL's temperature; channels of an embedding; decoder level
            whose map is contrasted, 0 is the finest.
        joint_norm: labelled and unlabelled images pass the student, and so batch norm, together.
        labelled, unlabelled: patches a step; None is the plan's batch each.
        dice_weight, cross_entropy_weight, balance: of labels and pseudo-labels, see ``supervised``.
    """

    start: float = 0.4
    ramp: float = 0.1
    pseudo_weight: float = 1.0
    threshold: float = 0.7
    paste: float = 0.5
    box: tuple[float, float] = (0.1, 0.4)
    decay: float = 0.99  # Mean Teacher
    contrast_weight: float = 0.1
    contrast_every: int = 4
    temperature: float = 0.1  # SSCL
    width: int = 32
    level: int = 1
    joint_norm: bool = True
    labelled: int | None = None
    unlabelled: int | None = None
    dice_weight: float = 1.0  # as supervised
    cross_entropy_weight: float = 1.0  # as supervised
    balance: float = 0.5  # as supervised

    def __post_init__(self) -> None:
        weights = (self.pseudo_weight, self.contrast_weight, self.dice_weight, self.cross_entropy_weight)
        if min(weights) < 0:
            raise UsageError("weights must be 0 or more.")
        shares = (self.start, self.ramp, self.threshold, self.paste, self.decay, self.balance, *self.box)
        if not all(0 <= share <= 1 for share in shares) or self.box[0] > self.box[1]:
            raise UsageError(
                "start, ramp, threshold, paste, decay and balance must be between 0 and 1, and box a range in it."
            )
        if self.temperature <= 0 or self.width < 1 or self.contrast_every < 1 or self.level < 0:
            raise UsageError("temperature, width and contrast_every must be positive, and level 0 or more.")
        if min(count for count in (self.labelled, self.unlabelled, 1) if count is not None) < 1:
            raise UsageError("labelled and unlabelled must be at least 1, or null for the plan's batch.")


class Batch(NamedTuple):
    """Labelled patches, and two views of the same pixels of unlabelled ones.

    Attributes:
        image: (B, C, *S).
        label: (B, *S) int64, -1 where unknown.
        contrasts: whether pixels are contrasted at this step.
        weak: (U, C, *S), the teacher's; None, and all that follows, before ``start`` and without unlabelled cases.
        strong: (U, C, *S), the student's, with boxes of labelled patches pasted in.
        keep: (U, *S) bool, False in those boxes.
        pasted: (U, *S) int64, the labels in those boxes, -1 elsewhere.
    """

    image: Tensor
    label: Tensor
    contrasts: bool
    weak: Tensor | None
    strong: Tensor | None
    keep: Tensor | None
    pasted: Tensor | None


class Auto(Method):
    """Learn labels, sure pseudo-labels, and a space in which classes lie apart."""

    needs: ClassVar[Needs] = Needs(labels=True, unlabelled=True)
    paper: ClassVar[str] = (
        "handful's own; its parts: https://arxiv.org/abs/1703.01780, 2001.07685, 2305.00673, 2109.07407"
    )

    def __init__(self, network: nn.Module, settings: Settings) -> None:
        super().__init__()
        self.network = network
        self.settings = settings
        if settings.contrast_weight:
            head_of(network)  # refuses a network that cannot be taken apart
            self.parts = parts = parts_of(network)
            if settings.level >= len(parts.widths):
                raise UsageError(
                    f"method.level is {settings.level}, but this network's decoder has the levels 0 (the finest) to "
                    f"{len(parts.widths) - 1}."
                )
            self.project = PixelHead(
                dims=parts.dims,
                in_channels=parts.widths[settings.level],
                hidden=HIDDEN * settings.width,
                out=settings.width,
            )
        self.teacher = Teacher(network) if settings.pseudo_weight else None

    def batch(self, source: Source) -> Batch:
        """Draw labelled patches and, after the first share of the run, unlabelled ones with boxes pasted in."""
        settings = self.settings
        view = source.view(source.draw_labelled(settings.labelled or source.batch))
        assert view.label is not None
        contrasts = settings.contrast_weight > 0 and source.step % settings.contrast_every == 0
        if not source.unlabelled or not settings.pseudo_weight or source.progress < settings.start:
            return Batch(view.image, view.label, contrasts, None, None, None, None)
        count = settings.unlabelled or source.batch
        plain = source.view(source.draw_unlabelled(count), stream=1, intensity=False)
        keep = box_masks(
            count, source.patch, share=settings.box, probability=settings.paste, generator=source.generator()
        ).to(plain.image.device)
        other = source.view(source.draw_labelled(count, stream=3), stream=3, intensity=False)
        assert other.label is not None
        mixed = plain._replace(image=plain.image.where(keep.unsqueeze(1), other.image))
        strong = source.recolour(mixed, stream=1).image
        pasted = other.label.where(~keep, IGNORE)
        return Batch(view.image, view.label, contrasts, plain.image, strong, keep, pasted)

    def step(self, batch: Any, progress: float) -> StepOutput:
        """Dice and cross entropy against labels and sure pseudo-labels, and pixel contrast over both."""
        settings = self.settings
        both = dice_and_fading_cross_entropy(settings.balance, progress)
        images = [batch.image] if batch.weak is None else [batch.image, batch.strong]
        levels, maps = self._seen(*images)
        terms, logs = labelled_terms(deep_supervision(levels[0], batch.label, both), settings)
        labels = [batch.label]
        if batch.weak is not None:
            assert self.teacher is not None  # only it asks for unlabelled images
            label = pseudo_label(self.teacher(batch.weak), threshold=settings.threshold)
            label = label.where(batch.keep, batch.pasted)
            pseudo = weighted(deep_supervision(levels[1], label, both), settings)
            weight = settings.pseudo_weight * linear_ramp(progress - settings.start, length=settings.ramp)
            terms["pseudo"], logs["pseudo"] = weight * pseudo, pseudo.detach()
            logs["sure"] = (label != IGNORE).float().mean()
            labels.append(label)
        if batch.contrasts:
            z = torch.cat([self.project(each).float() for each in maps])
            groups = torch.cat([downsampled(label, z.shape[2:]) for label in labels])
            contrast = pixel_contrast_across_processes(
                z.unsqueeze(1), groups.unsqueeze(1), temperature=settings.temperature, ignore=IGNORE
            )
            terms["contrast"], logs["contrast"] = settings.contrast_weight * contrast, contrast.detach()
        return StepOutput(torch.stack(list(terms.values())).sum(), logs, terms)

    def after_step(self, progress: float) -> None:
        """Move the teacher, where there is one."""
        if self.teacher is not None:
            self.teacher.follow(self.network, self.settings.decay)

    def exports(self) -> Mapping[str, nn.Module]:
        """The student; the teacher and the projector are dropped."""
        return {"segmenter": self.network}

    def _seen(self, *images: Tensor) -> tuple[list[list[Tensor]], list[Tensor]]:
        """Return, for each batch of images, the logits of every level that predicts, and the map to be contrasted."""
        if not self.settings.contrast_weight:
            return deep_logits(self.network, *images, joint=self.settings.joint_norm), []
        if len(images) > 1 and self.settings.joint_norm:
            (levels,), (decoded,) = self._seen(torch.cat(images))
            sizes = [len(each) for each in images]
            split = [torch.split(level, sizes) for level in levels]
            return [list(own) for own in zip(*split)], list(torch.split(decoded, sizes))
        every = [self.parts.decoder(self.parts.encoder(each)) for each in images]
        heads = self.network.heads
        assert isinstance(heads, nn.ModuleList)
        found = [[head(each) for head, each in zip(heads, decoded)] for decoded in every]
        return found, [decoded[self.settings.level] for decoded in every]


METHOD = Auto
