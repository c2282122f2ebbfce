"""MixCL-style, reconstructed: views agree on which image, which tissue and which values they show, mixed or not.

Identity consistency: two views of a patch have one embedding. Label consistency: pixels of one known label have one
embedding; pixels without a label take no part, so labels may be partial or absent. Reconstruction consistency: the
decoder gives back the view as it was before its intensities were changed. All three are asked of views and of mixtures
of two patches, whose identity, label and values are the same mixture. Trains encoder and decoder; heads are dropped.

Only this idea is the paper's: its full text was not available and no code was published. Every form, weight and value
below is a reconstruction, so results are "MixCL-style", not MixCL's; report ``mix=none`` beside ``mix=cutmix``, because
it is not known whether the paper mixes images at all.

References:
    Li, Quan and Zhou, 2022, MixCL. https://arxiv.org/abs/2203.02114
    Zhou et al., 2021, PCRL, the nearest relative with public code. https://arxiv.org/abs/2109.04379
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from handful.batches import IGNORE
from handful.data.augment.corruption import CorruptionSettings, apply_corruption, sample_corruption
from handful.data.sampling import Source
from handful.errors import DataError, UsageError
from handful.losses.identity import byol_distance, negative_cosine, queue_info_nce
from handful.losses.mixcl import (
    draw_labelled,
    identity_contrast,
    label_contrast,
    label_segmentation,
    mixed_identity,
    soft_label_contrast,
    soft_labels,
)
from handful.losses.mixing import box_mask, mixing_weight, mixup, paste, random_partner
from handful.losses.processes import gathered, own_first
from handful.losses.reconstruction import reconstruction_error
from handful.losses.segmentation import downsampled
from handful.methods.contract import Method, Needs, StepOutput, Watched
from handful.networks.embedder import Embedder
from handful.networks.heads import NormedHead, PixelHead, VectorHead
from handful.networks.levels import train_up_to
from handful.networks.memory import Memory, overlap
from handful.networks.parts import head_of, parts_of
from handful.networks.teacher import Teacher

WITHOUT_CURVES = CorruptionSettings(p_curve=0.0)
"""PCRL's corruption: that of Models Genesis, grey values left as they are."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of the reconstruction; none of these values is known to be the paper's.

    Attributes:
        mix: how two patches become one: a box of the partner (``cutmix``), a weighted sum (``mixup``), or not at all.
        identity: ``nt_xent`` against the other patches of the batch, ``queue`` against earlier ones (MoCo),
            ``simsiam`` or ``byol`` without negatives; ``none`` leaves the term out.
        label: ``contrast`` of drawn pixels, ``segmentation`` (Dice and cross entropy of a head that is dropped);
            ``none`` leaves the term out and draws from all cases alike.
        reconstruction: squared or absolute error; ``none`` leaves the term out.
        output: of the reconstruction: ``linear``, compared with the normalised image; or ``sigmoid``, compared with
            the image stretched to [0, 1] by the patch's own least and largest value.
        identity_weight, label_weight, reconstruction_weight: of the terms.
        batch: patches a step, two views each, and as many mixtures.
        labelled_share: of the batch that is drawn from labelled cases, where there are some.
        patch_share: of the planned patch's sides in 3D.
        alpha: of the Beta distribution that weights are drawn from; the larger share is always the patch's own.
        identity_temperature: of ``nt_xent`` and ``queue``.
        label_temperature: of ``contrast``.
        width: of the image embedding.
        queue: embeddings remembered, for ``queue``.
        decay: of the teacher a step, for ``queue`` and ``byol``; it should remember more steps than keys stay queued.
        pixels: drawn a step for ``contrast``, every class alike, and as many of the mixtures.
        pixel_width: of a pixel's embedding.
        label_level: decoder level that ``contrast`` looks at; 0 is the finest.
        corrupt: shuffle and paint the input as well, as ``corruption`` says.
        corruption: how often and how far (``models_genesis``).
    """

    mix: Literal["none", "mixup", "cutmix"] = "cutmix"  # reconstructed: cutmix keeps labels hard
    identity: Literal["nt_xent", "queue", "simsiam", "byol", "none"] = "nt_xent"  # reconstructed
    label: Literal["contrast", "segmentation", "none"] = "contrast"  # reconstructed
    reconstruction: Literal["mse", "l1", "none"] = "mse"  # Models Genesis, PCRL
    output: Literal["linear", "sigmoid"] = "linear"  # ours: images are normalised to mean 0; PCRL: sigmoid
    identity_weight: float = 1.0  # PCRL adds its terms unweighted
    label_weight: float = 1.0
    reconstruction_weight: float = 1.0
    batch: int = 8  # ours, as mixing doubles it; PCRL: 16
    labelled_share: float = 0.5  # ours
    patch_share: float = 0.5  # ours: PCRL's patch is 64 x 64 x 32
    alpha: float = 1.0  # PCRL
    identity_temperature: float = 0.2  # PCRL
    label_temperature: float = 0.1  # reconstructed; anatomix 0.33, Hu et al. 0.07
    width: int = 128  # PCRL
    queue: int = 512  # ours: 32 batches, as moco; PCRL: 16384
    decay: float = 0.99  # ours, for runs of thousands of steps; PCRL: 0.999
    pixels: int = 1024  # reconstructed; anatomix 512
    pixel_width: int = 64  # reconstructed
    label_level: int = 1  # reconstructed
    corrupt: bool = False  # ours: intensities change instead; PCRL: True
    corruption: CorruptionSettings = WITHOUT_CURVES  # PCRL

    def __post_init__(self) -> None:
        if self.identity == self.label == self.reconstruction == "none":
            raise UsageError("identity, label and reconstruction are all 'none': nothing is left to learn.")
        weights = (self.identity_weight, self.label_weight, self.reconstruction_weight)
        positive = (self.alpha, self.identity_temperature, self.label_temperature)
        counts = (self.width, self.queue, self.pixels, self.pixel_width)
        if min(weights) < 0 or min(positive) <= 0 or min(counts) < 1:
            raise UsageError(
                "weights must not be negative; alpha and temperatures must be positive; width, queue, pixels and "
                "pixel_width at least 1."
            )
        if self.batch < 2 or not 0 < self.labelled_share <= 1 or not 0 < self.patch_share <= 1:
            raise UsageError("batch must be at least 2, labelled_share and patch_share in (0, 1].")
        if not 0 <= self.decay <= 1 or self.label_level < 0:
            raise UsageError("decay must be in [0, 1] and label_level 0 or more.")


class Batch(NamedTuple):
    """Two views of B patches, all first views before all second ones, and how they are mixed.

    Attributes:
        image: (2B, C, *S), intensities changed.
        clean: (2B, C, *S) the same pixels, intensities as they are.
        label: (2B, *S) int64, -1 where unknown; None where no case has labels.
        box: (B, 7) where each patch was cut from (``networks.memory``): those of the same tissue are no negatives.
        partner: (B,) what each patch is mixed with, in both views; None without mixing.
        mask: (1, *S) bool, True where a patch keeps its own pixels (cutmix); else None.
        weight: share of a mixture that is the patch's own.
        classes: K.
        seed: of the draw of labelled pixels.
    """

    image: Tensor
    clean: Tensor
    label: Tensor | None
    box: Tensor
    partner: Tensor | None
    mask: Tensor | None
    weight: float
    classes: int
    seed: int


class MixCL(Method):
    """Keep identity, label and values consistent between views and their mixtures."""

    kind: ClassVar[Literal["pretrain", "train"]] = "pretrain"
    needs: ClassVar[Needs] = Needs(labels=False, unlabelled=True, optional_labels=True)
    paper: ClassVar[str] = (
        "after Li et al. 2022, MixCL (reconstructed from its abstract), https://arxiv.org/abs/2203.02114"
    )

    def __init__(self, network: nn.Module, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        parts = parts_of(network)
        self.stride = parts.stride

        levels = [0] if settings.reconstruction != "none" or settings.label == "segmentation" else []
        if settings.label == "contrast":
            if settings.label_level >= len(parts.widths) - 1:
                raise UsageError(
                    f"label_level is {settings.label_level}, but the decoder of this network has levels 0 (the "
                    f"finest) to {len(parts.widths) - 2}."
                )
            levels.append(settings.label_level)
        self.finest = min(levels, default=0)
        if levels:
            train_up_to(parts, level=self.finest)
            self.decoder: nn.Module | None = parts.decoder
        else:
            self.decoder = None

        normed = settings.identity in ("simsiam", "byol")  # without negatives, norms keep embeddings apart
        head: nn.Module = nn.Identity()
        if normed:
            widths = (settings.width, settings.width)
            head = NormedHead(parts.deepest, widths=widths, norm_last=settings.identity == "simsiam")
        elif settings.identity != "none":
            head = VectorHead(parts.deepest, hidden=settings.width, out=settings.width)
        self.student = Embedder(parts.encoder, head)
        self.predictor = NormedHead(settings.width, widths=(settings.width,) * 2) if normed else None
        averaged = settings.identity in ("queue", "byol")
        self.teacher = Teacher(self.student, follow_mode=normed) if averaged else None
        self.memory = Memory(settings.queue, settings.width) if settings.identity == "queue" else None
        self.keys: tuple[Tensor, Tensor] | None = None  # of this step, remembered after it

        if settings.label == "contrast":
            self.pixel_head = PixelHead(
                dims=parts.dims, in_channels=parts.widths[settings.label_level], hidden=settings.pixel_width,
                out=settings.pixel_width, activation=True,
            )  # fmt: skip
        if settings.label == "segmentation":
            self.segmentation_head, _ = head_of(network)
        if settings.reconstruction != "none":
            convolution = nn.Conv2d if parts.dims == 2 else nn.Conv3d
            self.reconstruction_head = convolution(parts.widths[0], parts.channels, 1)

    def batch(self, source: Source) -> Batch:
        """Draw labelled and other patches as one, two views of each, and partners to mix with.

        Raises:
            DataError: the first patches all overlap each other, or the label term is alone and has no labels.
        """
        settings = self.settings
        if settings.identity == settings.reconstruction == "none" and not source.labelled:
            raise DataError(
                "identity and reconstruction are 'none' and no case has labels: nothing is left to learn. Turn one of "
                "them on, or allow labels (--labels)."
            )
        if len(self.stride) == 3:
            source = source.smaller(settings.patch_share, multiple=self.stride)
        if settings.label == "none":
            crops = source.draw_any(settings.batch)
        else:
            crops = source.draw_partly_labelled(settings.batch, share=settings.labelled_share)
        box = torch.cat([crops.case[:, None], crops.low, crops.high], dim=1)
        if source.step == 0 and settings.identity in ("nt_xent", "queue") and overlap(box, box).all():
            raise DataError(
                f"all {settings.batch} patches of a step overlap in one case, so none can be told from another: "
                "identity contrast needs more cases, or in 3D smaller patches (--set method.patch_share=0.25). Or "
                "leave negatives out with --set method.identity=simsiam."
            )
        views = [source.view(crops, stream=stream, intensity=False) for stream in (0, 1)]
        clean = torch.cat([view.image for view in views])
        image = torch.cat([source.recolour(view, stream=stream).image for stream, view in enumerate(views)])
        labels = [view.label for view in views if view.label is not None]

        generator = source.generator()
        if settings.corrupt:
            corruption = sample_corruption(
                settings.corruption, batch=len(image), channels=image.shape[1], patch=source.patch,
                generator=generator,
            )  # fmt: skip
            image = apply_corruption(corruption, image)
        partner, mask, weight = None, None, 1.0
        if settings.mix != "none":
            partner = random_partner(settings.batch, generator=generator)
            weight = mixing_weight(alpha=settings.alpha, generator=generator)
        if settings.mix == "cutmix":
            mask, weight = box_mask(source.patch, weight, generator=generator)
            mask = mask.unsqueeze(0).to(image.device)
        return Batch(
            image=image,
            clean=clean,
            label=torch.cat(labels) if labels else None,
            box=box.to(image.device),
            partner=None if partner is None else partner.to(image.device),
            mask=mask,
            weight=weight,
            classes=source.classes,
            seed=int(torch.randint(2**62, (), generator=generator)),
        )

    def step(self, batch: Any, progress: float) -> StepOutput:
        """The three consistencies, each the mean of what plain views and mixtures cost."""
        settings = self.settings
        # one pass: batch norm sees views and mixtures together
        images = batch.image if batch.partner is None else torch.cat([batch.image, mixed(batch.image, batch)])
        features = self.student.encoder(images)
        maps = [] if self.decoder is None else self.decoder(features[self.finest :])

        terms: dict[str, Tensor] = {}
        watched = None
        if settings.identity != "none":
            z = self.student.head(features[-1]).float()
            terms["identity"] = settings.identity_weight * self._identity(z, batch)
            watched = Watched(torch.stack(apart(z.detach(), batch)[0].chunk(2), dim=1))
        if settings.label != "none" and batch.label is not None:
            if settings.label == "contrast":
                term = self._label_contrast(maps[settings.label_level - self.finest], batch.label, batch)
            else:
                term = self._label_segmentation(self.segmentation_head(maps[0]), batch.label, batch)
            terms["label"] = settings.label_weight * term
        if settings.reconstruction != "none":
            restored = self.reconstruction_head(maps[0]).float()
            terms["reconstruction"] = settings.reconstruction_weight * self._reconstruction(restored, batch)
        loss = torch.stack(list(terms.values())).sum()
        return StepOutput(loss, {name: term.detach() for name, term in terms.items()}, terms, watched)

    def after_step(self, progress: float) -> None:
        """Move the teacher and remember this step's keys."""
        if self.teacher is not None:
            self.teacher.update(self.student, self.settings.decay)
        if self.memory is not None and self.keys is not None:
            self.memory.enqueue(*self.keys)

    def exports(self) -> Mapping[str, nn.Module]:
        """The encoder, and the decoder where a term trains it; the heads are dropped."""
        trained = {"encoder": self.student.encoder, "decoder": self.decoder}
        return {name: part for name, part in trained.items() if part is not None}

    def _identity(self, z: Tensor, batch: Batch) -> Tensor:
        """Compare each view, and each mixture, with the unmixed patches of the other view."""
        keys = apart(z, batch)[0] if self.teacher is None else self.teacher(batch.image)
        if self.memory is not None:
            self.keys = (gathered(keys), gathered(batch.box.repeat(2, 1)))
        first, second = keys.chunk(2)
        queries = z if self.predictor is None else self.predictor(z).float()
        plain, mixtures = apart(queries, batch)
        if self.settings.identity == "nt_xent":
            places = gathered(batch.box)
            loss = identity_contrast(
                gathered(first), gathered(second), temperature=self.settings.identity_temperature,
                related=overlap(places, places),
            )  # fmt: skip
        else:
            one, two = plain.chunk(2)
            loss = (self._agreement(one, second, batch) + self._agreement(two, first, batch)) / 2
        if batch.partner is None:
            return loss
        one, two = mixtures.chunk(2)
        mixture = (self._mixed_identity(one, second, batch) + self._mixed_identity(two, first, batch)) / 2
        return (loss + mixture) / 2

    def _agreement(self, query: Tensor, key: Tensor, batch: Batch) -> Tensor:
        if self.memory is None:
            return (
                byol_distance(query, key) if self.settings.identity == "byol" else negative_cosine(query, key)
            )
        negatives, boxes = self.memory.with_batch(gathered(key), gathered(batch.box))
        related = overlap(batch.box, boxes)  # a patch's own key in the batch among them
        return queue_info_nce(
            query, key, negatives, temperature=self.settings.identity_temperature, related=related
        )

    def _mixed_identity(self, query: Tensor, key: Tensor, batch: Batch) -> Tensor:
        assert batch.partner is not None
        if self.predictor is not None:
            own = self._agreement(query, key, batch)
            return batch.weight * own + (1 - batch.weight) * self._agreement(query, key[batch.partner], batch)
        keys, boxes = own_first(key), own_first(batch.box)
        if self.memory is not None:
            keys, boxes = self.memory.with_batch(keys, boxes)
        return mixed_identity(
            query, keys, batch.partner, weight=batch.weight, temperature=self.settings.identity_temperature,
            related=overlap(batch.box, boxes),
        )  # fmt: skip

    def _label_contrast(self, maps: Tensor, label: Tensor, batch: Batch) -> Tensor:
        """Contrast of pixels drawn over both views and the whole batch, and of as many over the mixtures."""
        count, temperature = self.settings.pixels, self.settings.label_temperature
        generator = torch.Generator().manual_seed(batch.seed)
        plain, mixtures = apart(maps, batch)

        def hard(maps: Tensor, label: Tensor) -> Tensor:
            label = downsampled(label, maps.shape[2:])
            drawn = draw_labelled(label, count, generator=generator)
            return label_contrast(
                self._embedded(maps, drawn), label.flatten()[drawn], temperature=temperature
            )

        def soft(maps: Tensor, label: Tensor, other: Tensor) -> Tensor:
            label, other = (downsampled(parent, maps.shape[2:]) for parent in (label, other))
            drawn = draw_labelled(label.where(other != IGNORE, IGNORE), count, generator=generator)
            parents = (label.flatten()[drawn], other.flatten()[drawn])
            shares = soft_labels(*parents, weight=batch.weight, classes=batch.classes)
            return soft_label_contrast(self._embedded(maps, drawn), shares, temperature=temperature)

        loss = hard(plain, label)
        if batch.partner is None:
            return loss
        if batch.mask is not None:
            return (loss + hard(mixtures, mixed(label, batch))) / 2
        return (loss + soft(mixtures, label, label[of_both_views(batch.partner)])) / 2

    def _embedded(self, maps: Tensor, drawn: Tensor) -> Tensor:
        """Embed the drawn pixels alone: the head is a 1x1 convolution, so that a pixel may stand for an image."""
        size = prod(maps.shape[2:])
        pixels = maps.flatten(2)[drawn // size, :, drawn % size]
        z: Tensor = self.pixel_head(pixels.reshape(*pixels.shape, *[1] * (maps.ndim - 2)))
        return z.flatten(1).float()

    def _label_segmentation(self, logits: Tensor, label: Tensor, batch: Batch) -> Tensor:
        plain, mixtures = apart(logits, batch)
        loss = label_segmentation(plain, label)
        if batch.partner is None:
            return loss
        if batch.mask is not None:
            return (loss + label_segmentation(mixtures, mixed(label, batch))) / 2
        other = label[of_both_views(batch.partner)]
        return (loss + label_segmentation(mixtures, label, other, weight=batch.weight)) / 2

    def _reconstruction(self, restored: Tensor, batch: Batch) -> Tensor:
        norm: Literal["mse", "l1"] = "l1" if self.settings.reconstruction == "l1" else "mse"
        target = batch.clean
        if self.settings.output == "sigmoid":
            restored, target = restored.sigmoid(), stretched(target)
        plain, mixtures = apart(restored, batch)
        loss = reconstruction_error(plain, target, norm=norm)
        if batch.partner is None:
            return loss
        return (loss + reconstruction_error(mixtures, mixed(target, batch), norm=norm)) / 2


def mixed(maps: Tensor, batch: Batch) -> Tensor:
    """Mix what belongs to the views (2B, ...) as the batch says: the same partners, weight and box in both views."""
    assert batch.partner is not None
    partner = of_both_views(batch.partner)
    return mixup(maps, batch.weight, partner) if batch.mask is None else paste(maps, batch.mask, partner)


def of_both_views(partner: Tensor) -> Tensor:
    """Return (2B,) indices into both views from the (B,) of one."""
    return torch.cat([partner, partner + len(partner)])


def apart(maps: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Part what the network made of the plain views (2B, ...) from what it made of the mixtures (2B or 0, ...)."""
    return maps[: len(batch.image)], maps[len(batch.image) :]


def stretched(image: Tensor) -> Tensor:
    """Map the least and largest value of each patch and channel (B, C, *S) to 0 and 1; a constant patch to 0."""
    axes = tuple(range(2, image.ndim))
    low, high = image.amin(axes, keepdim=True), image.amax(axes, keepdim=True)
    return (image - low) / torch.where(high > low, high - low, 1.0)


METHOD = MixCL
