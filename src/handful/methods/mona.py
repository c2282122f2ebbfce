"""MONA: labels, a teacher's labels, and three principles for very few labels: tailness, consistency, diversity.

On labelled images Dice and cross entropy; on unlabelled ones the labels of a teacher, the student's moving average,
weighed by how much of the image it is sure of. Besides, embeddings of pixels (a head on the decoder maps, dropped
afterwards) and logits are held to three principles, each of which can be left out:

* tailness: pixels of a class near their class mean and far from mined pixels of other classes, hard or rare ones too;
* consistency: the segmentation of a warped image is the warped segmentation of the image;
* diversity: an image's map of embeddings is like its nearest among remembered maps of other images.

Made for one to a few labelled cases among many without; the first stage, ``mona_pretrain``, is what it starts from
(``--init``). Without unlabelled images it is the control (``supervised``).

References:
    You et al., 2024, MONA. https://arxiv.org/abs/2209.13476
    You et al., 2023, ARCO, which restates it. https://arxiv.org/abs/2302.01735
    Liu et al., 2022, ReCo. https://arxiv.org/abs/2104.04465
    Wang et al., 2022, U2PL. https://arxiv.org/abs/2203.03884
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from handful.batches import IGNORE
from handful.data.augment.diffeomorphic import diffeomorphic_grid, sample_velocity, warp
from handful.data.augment.thin_plate import sample_thin_plate, thin_plate_grid
from handful.data.sampling import Source
from handful.errors import UsageError
from handful.losses.anatomical import (
    bank_anchors,
    bank_contrast,
    bank_keys,
    certainty,
    class_masks,
    draw_from_banks,
    draw_hard_queries,
    entropy_percent,
    hard_queries,
    query_contrast,
)
from handful.losses.embeddings import unit
from handful.losses.equivariance import anatomy, warp_consistency
from handful.losses.labelled import LabelledTerms, labelled_loss, labelled_terms
from handful.losses.mixing import class_mask, erase, half_box_mask, next_partner, paste
from handful.losses.neighbours import nearest_neighbours, pooled
from handful.losses.processes import gathered, gathered_unequal
from handful.losses.pseudo_label import pseudo_label_cross_entropy
from handful.losses.sampling import Sampler, antithetic, stratified, uniform
from handful.losses.segmentation import deep_supervision, downsampled
from handful.methods.contract import Method, Needs, StepOutput
from handful.networks.bank import Bank, ClassBanks
from handful.networks.deep import deep_logits
from handful.networks.heads import LeanPyramidHead, PixelHead, PyramidHead
from handful.networks.parts import head_of, parts_of
from handful.networks.teacher import Teacher

SAMPLERS: dict[str, Sampler] = {"uniform": uniform, "stratified": stratified, "antithetic": antithetic}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """MONA's, as ARCO restates them or as the released code has them; the labelled term is the control's.

    Attributes:
        tailness, consistency, diversity: whether the principle is used.
        contrast_weight, equivariance_weight, neighbour_weight: of the three, in this order.
        pseudo_weight: of the teacher's labels.
        form: of tailness: ``paper``, hard queries and negatives of the same step, their classes drawn by how alike the
            classes are (after ReCo); or ``code``, certain anchors and negatives remembered for each class (after U2PL).
        temperature, queries, negatives: of tailness; queries a class, negatives a query.
        sampler: how queries, and in ``code`` also negatives, are drawn: ``uniform``, or ARCO's ``stratified`` (SG) or
            ``antithetic`` (SAG).
        sure: probability from which a pixel counts towards the weight of its image's pseudo-labels.
        hard: in ``paper`` queries are pixels whose class the student gives less.
        valid: probability from which a pseudo-label takes part in ``paper``'s tailness and in consistency.
        anchor, key: in ``code`` anchors' classes have more and keys' classes less of the teacher's probability.
        certain: in ``code`` percent of the pixels, by entropy, that are certain and uncertain; falls to 0.
        bank, background_bank: in ``code`` embeddings remembered for each class.
        low_rank: in ``code`` a class among the so many likeliest is easily mistaken; None: 3, or all but one class.
        repair_keys, repair_classes: in ``code`` whether labelled pixels can be keys, and whether classes keep to their
            own bank where one is absent; see docs.
        repair_start: whether all memories begin empty; otherwise with a row of zeros (2D) or noise (3D) for each class,
            and with random maps.
        neighbours, neighbour_bank: nearest maps and remembered maps, of diversity.
        cells: maps are averaged to so many cells along each axis, or along all, before they are remembered.
        neighbour_form: ``official`` has no gradient, as released; for comparison only.
        warp_degrees, warp_scale, warp_shift, warp_jitter: of consistency's warp, see ``thin_plate``; in 3D in plane.
        mix: what strong views are mixed with: ``cutmix``, a box of half the next image; ``classmix``, the next image
            but for half of the own classes; ``cutout``, a box of half is erased; or ``none``.
        deform: probability, for all images of a step at once, of a smooth small deformation of strong views.
        align: whether pseudo-labels and the second strong view are deformed like the first.
        width: of pixel embeddings; None is the sum of the decoder's widths.
        level: of the decoder whose size the map of embeddings has; 0 is the finest.
        extractor: ``lean``, or ``published``: the same functions in more and wider matrices.
        nonlinear: whether ReLU stands between the two layers of the student's projector.
        decay: of the teacher a step; a young teacher follows quickly (``Teacher.follow``).
        teacher_trains: dropout and batch statistics act in the teacher too.
        joint_norm: labelled images and strong views pass the student, and so batch norm, together.
        labelled, unlabelled: images a step; None is half of the plan's batch, since every image passes the student
            twice, but two unlabelled images at least for CutMix. Without unlabelled cases None is the plan's batch.
        dice_weight, cross_entropy_weight, balance: of the labelled term, see ``supervised``.
        squared_dice, dice_background: squares in the Dice loss's denominator, background among its classes.
    """

    tailness: bool = True
    consistency: bool = True
    diversity: bool = True
    contrast_weight: float = 0.01  # ARCO, released code
    equivariance_weight: float = 1.0  # released code in 2D
    neighbour_weight: float = 1.0  # ARCO, released code
    pseudo_weight: float = 1.0  # ARCO, released code
    form: Literal["paper", "code"] = "paper"
    temperature: float = 0.5  # ARCO, released code
    queries: int = 256  # ACTION, released code
    negatives: int = 512  # ACTION, released code
    sampler: Literal["uniform", "stratified", "antithetic"] = "uniform"  # released code
    sure: float = 0.97  # released code
    hard: float = 0.97  # ACTION
    valid: float = 0.7  # released code
    anchor: float = 0.3  # released code
    key: float = 0.97  # released code
    certain: float = 20.0  # released code
    bank: int = 30_000  # released code
    background_bank: int = 50_000  # released code
    low_rank: int | None = None  # repaired; released code: 3, with which three classes have no keys
    repair_keys: bool = True  # repaired; released code: False
    repair_classes: bool = True  # repaired; released code: False
    repair_start: bool = True  # repaired; released code: False
    neighbours: int = 5  # released code
    neighbour_bank: int = 36  # ARCO, released code
    cells: int | tuple[int, ...] = 8  # ours; released code: the whole map, 256 x 256
    neighbour_form: Literal["mean_shift", "official"] = "mean_shift"  # repaired; released code: official
    warp_degrees: float = 60.0  # released code
    warp_scale: tuple[float, float] = (0.8, 1.2)  # released code
    warp_shift: float = 0.1  # released code
    warp_jitter: float = 0.01  # released code
    mix: Literal["cutmix", "classmix", "cutout", "none"] = "cutmix"  # released code, which offers all
    deform: float = 0.5  # released code
    align: bool = True  # repaired; released code: False
    width: int | None = 64  # ours; released code: 496, the sum; 16 in 3D
    level: int = 1  # ours; released code: 0
    extractor: Literal["lean", "published"] = "lean"  # ours
    nonlinear: bool = False  # released code
    decay: float = 0.99  # ARCO, released code
    teacher_trains: bool = False  # repaired: pseudo-labels without dropout; released code: True
    joint_norm: bool = False  # released code
    labelled: int | None = None  # released code: 4
    unlabelled: int | None = None  # released code: 4
    dice_weight: float = 1.0  # as supervised, released code
    cross_entropy_weight: float = 1.0  # as supervised, released code
    balance: float = 0.5  # as supervised; released code: 0
    squared_dice: bool = False  # as supervised; released code: True
    dice_background: bool = False  # as supervised; released code: True

    def __post_init__(self) -> None:
        weights = (
            self.contrast_weight, self.equivariance_weight, self.neighbour_weight, self.pseudo_weight,
            self.dice_weight, self.cross_entropy_weight,
        )  # fmt: skip
        if min(weights) < 0:
            raise UsageError("weights must be 0 or more.")
        shares = (
            self.sure,
            self.hard,
            self.valid,
            self.anchor,
            self.key,
            self.deform,
            self.decay,
            self.balance,
        )
        if not all(0 <= share <= 1 for share in shares):
            raise UsageError(
                "sure, hard, valid, anchor, key, deform, decay and balance must be between 0 and 1."
            )
        if not 0 <= self.certain <= 50:
            raise UsageError(f"certain is a percentage between 0 and 50, found {self.certain}.")
        cells = (self.cells,) if isinstance(self.cells, int) else self.cells
        counts = [self.queries, self.negatives, self.bank, self.background_bank, self.neighbours, *cells]
        counts += [self.neighbour_bank, *(n for n in (self.width, self.low_rank) if n is not None)]
        if min(counts) < 1:
            raise UsageError(
                "queries, negatives, banks, neighbours, cells, width and low_rank must be at least 1."
            )
        if self.level < 0 or self.temperature <= 0:
            raise UsageError("level must be 0 or more and temperature positive.")
        if not 0 < self.warp_scale[0] <= self.warp_scale[1] or min(self.warp_shift, self.warp_jitter) < 0:
            raise UsageError("warp_scale must be a range above 0, warp_shift and warp_jitter 0 or more.")
        if min(count for count in (self.labelled, self.unlabelled, 1) if count is not None) < 1:
            raise UsageError(
                "labelled and unlabelled must be at least 1, or null for half of the plan's batch."
            )


class Batch(NamedTuple):
    """Labelled images, three views of the same unlabelled ones, and what was drawn to make them.

    Attributes:
        image: (B, C, *S).
        label: (B, *S) int64, -1 where unknown.
        weak: (U, C, *S) as they are; None, and all that follows but ``seed``, without unlabelled cases.
        strong, second: (U, C, *S), boxes pasted in, then perhaps deformed, then recoloured (ClassMix mixes them last,
            in the step); ``second`` is None without consistency.
        keep: (U, *S) bool, False in the boxes of CutMix and CutOut; None without.
        flow: (U, H, W, 2) the sampling grid that pseudo-labels follow; None where there is none to follow.
        grid: (B + U, H, W, 2) the sampling grid of consistency; None without.
        seed: of queries and negatives, which depend on what the network says.
    """

    image: Tensor
    label: Tensor
    weak: Tensor | None = None
    strong: Tensor | None = None
    second: Tensor | None = None
    keep: Tensor | None = None
    flow: Tensor | None = None
    grid: Tensor | None = None
    seed: int = 0


class Pixels(NamedTuple):
    """Pixels of the map of embeddings: z (B, E, *S), logits (B, K, *S) detached, label and sure (B, *S)."""

    z: Tensor
    logits: Tensor
    label: Tensor
    sure: Tensor


class Branch(nn.Module):
    """A network, and a head that gathers its decoder maps into embeddings of pixels: what student and teacher share."""

    def __init__(self, network: nn.Module, extractor: nn.Module, level: int) -> None:
        super().__init__()
        self.network, self.extractor, self.level = network, extractor, level

    def forward(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the logits of every level that predicts, finest first, and embeddings (B, E, *size of the level)."""
        network: Any = self.network
        maps = network.decoder(network.encoder(image))
        levels = [head(each) for head, each in zip(network.heads, maps)]
        return levels, self.extractor(maps[self.level :])


class MONA(Method):
    """Learn labels, a teacher's labels, and by three principles what pixels and images have to do with each other."""

    needs: ClassVar[Needs] = Needs(labels=True, unlabelled=True)
    paper: ClassVar[str] = "You et al. 2024, MONA, https://arxiv.org/abs/2209.13476"

    def __init__(self, network: nn.Module, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.tailness = settings.tailness and settings.contrast_weight > 0
        self.consistency = settings.consistency and settings.equivariance_weight > 0
        self.diversity = settings.diversity and settings.neighbour_weight > 0
        self.student = network
        self.banks: ClassBanks | None = None
        self.neighbours: Bank | None = None
        if self.tailness or self.diversity:
            parts, (_, classes) = parts_of(network), head_of(network)
            if settings.level >= len(parts.widths):
                raise UsageError(
                    f"level {settings.level}: the decoder has {len(parts.widths)} levels, from 0, the finest."
                )
            widths = parts.widths[settings.level :]
            width = settings.width or sum(widths)
            pyramid = LeanPyramidHead if settings.extractor == "lean" else PyramidHead
            self.student = Branch(network, pyramid(dims=parts.dims, widths=widths, out=width), settings.level)
            self.project = PixelHead(
                dims=parts.dims, in_channels=width, hidden=width, out=width, activation=settings.nonlinear,
                bias=False,
            )  # fmt: skip
            if self.tailness and settings.form == "code":
                self.banks = ClassBanks([settings.background_bank, *[settings.bank] * (classes - 1)], width)
            if self.diversity:
                cells = settings.cells
                self.cells = (cells,) * parts.dims if isinstance(cells, int) else cells
                if len(self.cells) != parts.dims:
                    raise UsageError(
                        f"cells must be one number or {parts.dims}, one for each axis; found {cells}."
                    )
                self.neighbours = Bank(settings.neighbour_bank, width * math.prod(self.cells))
            if not settings.repair_start:
                self._fill(parts.dims)
        self.teacher = Teacher(self.student, follow_mode=settings.teacher_trains)
        self.fresh_keys: list[Tensor] | None = None
        self.fresh_maps: Tensor | None = None

    @property
    def network(self) -> nn.Module:
        """The segmentation network."""
        return self.student.network if isinstance(self.student, Branch) else self.student

    def batch(self, source: Source) -> Batch:
        """Draw labelled patches; of unlabelled ones a plain view and strong ones, and the warp."""
        settings = self.settings
        half = (source.batch + 1) // 2 if source.unlabelled else source.batch
        view = source.view(source.draw_labelled(settings.labelled or half))
        assert view.label is not None
        if not source.unlabelled:
            return Batch(view.image, view.label)
        weak = source.view(
            source.draw_unlabelled(settings.unlabelled or max(2, half)), stream=1, intensity=False
        )
        count, device, generator = len(weak.image), weak.image.device, source.generator()
        keep = flow = second = grid = None
        mixed = weak.image
        if settings.mix in ("cutmix", "cutout"):
            keep = half_box_mask(count, source.patch, generator=generator).to(device)
            mixed = (
                erase(mixed, keep, 0) if settings.mix == "cutout" else paste(mixed, keep, next_partner(count))
            )

        def deformation() -> Tensor | None:
            happens = bool(torch.rand((), generator=generator) < settings.deform)
            velocity = sample_velocity(count, generator=generator).to(device)
            return diffeomorphic_grid(velocity, source.patch[-2:]) if happens else None

        def seen(deformed: Tensor | None, stream: int) -> Tensor:
            image = mixed if deformed is None else warp(mixed, deformed)
            return source.recolour(weak._replace(image=image), stream=stream).image

        first = deformation()
        strong = seen(first, 0)
        if settings.align:
            flow = first
        if self.consistency:
            second = seen(first if settings.align else deformation(), 1)
            points = sample_thin_plate(
                len(view.image) + count,
                generator=generator,
                jitter=settings.warp_jitter,
                rotation_degrees=settings.warp_degrees,
                scale=settings.warp_scale,
                shift=settings.warp_shift,
                mirror=source.mirror[-1],  # released code: always; here where the plan allows it
            )
            grid = thin_plate_grid(points, source.patch[-2:]).to(device)
        seed = source.generator(stream=1).initial_seed()
        return Batch(view.image, view.label, weak.image, strong, second, keep, flow, grid, seed)

    def step(self, batch: Any, progress: float) -> StepOutput:
        """Labels; the teacher's labels on strong views; the three principles."""
        settings = self.settings
        if self.teacher.followed == 0:
            self.teacher.update(self.student, 0.0)  # begins as the student, whatever that was started from
        if batch.weak is None:
            (levels,) = deep_logits(self.network, batch.image)
            return _output(*self._labelled(levels, batch.label, progress))
        pseudo, confidence = self._pseudo_labels(batch)
        if settings.mix == "classmix":
            batch, pseudo, confidence = _mixed_by_class(batch, pseudo, confidence)
        levels, logits, z = self._student(batch)
        terms, logs = self._labelled(levels, batch.label, progress)
        logs["confident"] = (confidence >= settings.sure).float().mean()
        label = torch.cat([batch.label, pseudo])
        sure = torch.cat([torch.ones_like(batch.label, dtype=confidence.dtype), confidence])
        both = torch.cat([levels[0], logits]).float()
        added: dict[str, tuple[float, Tensor]] = {}
        if settings.pseudo_weight > 0:
            entropy = pseudo_label_cross_entropy(logits, pseudo, confidence, threshold=settings.sure)
            added["pseudo_label"] = (settings.pseudo_weight, entropy)
        if self.consistency:
            mask = anatomy(label, sure, threshold=settings.valid)
            warped = self.network(_warped_image(torch.cat([batch.image, batch.second]), batch.grid))
            term = warp_consistency(warped, both, mask, partial(warp, grid=batch.grid))
            added["consistency"] = (settings.equivariance_weight, term)
        if z is not None:
            known, pixels = len(batch.image), _pixels(z, both, label, sure)
            generator = torch.Generator(z.device).manual_seed(batch.seed)
            if self.banks is None and self.tailness:
                added["tailness"] = (settings.contrast_weight, self._hard_contrast(pixels, generator))
            if self.banks is not None or self.neighbours is not None:
                judged, target = self._teacher(batch)
            if self.banks is not None:
                term = self._bank_contrast(pixels, judged, target, known, progress, generator)
                added["tailness"] = (settings.contrast_weight, term)
            if self.neighbours is not None:
                self.fresh_maps = pooled(target[-len(pseudo) :], self.cells)
                term = nearest_neighbours(
                    pooled(z[known:], self.cells),
                    self.fresh_maps,
                    self.neighbours.valid,
                    neighbours=settings.neighbours,
                    form=settings.neighbour_form,
                )
                added["diversity"] = (settings.neighbour_weight, term)
        for name, (weight, term) in added.items():
            terms[name], logs[name] = weight * term, term.detach()
        return _output(terms, logs)

    def after_step(self, progress: float) -> None:
        """Move the teacher, and remember what it said of this step's images."""
        self.teacher.follow(self.student, self.settings.decay)
        if self.neighbours is not None and self.fresh_maps is not None:
            self.neighbours.enqueue(gathered(self.fresh_maps))
        if self.banks is not None and self.fresh_keys is not None:
            for label, rows in enumerate(self.fresh_keys):
                self.banks[label].enqueue(gathered_unequal(rows))
        self.fresh_maps = self.fresh_keys = None

    def exports(self) -> Mapping[str, nn.Module]:
        """The student; its heads for embeddings, the teacher and the banks are dropped."""
        return {"segmenter": self.network}

    def _fill(self, dims: int) -> None:
        """Begin the memories as the released code does."""
        if self.neighbours is not None:
            self.neighbours.enqueue(unit(torch.randn_like(self.neighbours.rows)))
        if self.banks is not None:
            for label in range(len(self.banks)):
                row = torch.zeros_like(self.banks[label].rows[:1])
                self.banks[label].enqueue(row if dims == 2 else torch.randn_like(row))

    def _labelled(self, levels: list[Tensor], label: Tensor, progress: float) -> LabelledTerms:
        """Return Dice and cross entropy over the decoder levels, weighted and as they are."""
        settings = self.settings
        both = labelled_loss(settings, progress)
        return labelled_terms(deep_supervision(levels, label, both), settings)

    @torch.no_grad()
    def _pseudo_labels(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the teacher's labels of the strong views (U, *S) and their probabilities."""
        assert batch.weak is not None
        teacher = self.teacher.module
        network = teacher.network if isinstance(teacher, Branch) else teacher
        confidence, label = network(batch.weak).float().softmax(1).max(1)
        if batch.keep is not None and self.settings.mix == "cutout":
            label, confidence = erase(label, batch.keep, IGNORE), erase(confidence, batch.keep, 0)
        elif batch.keep is not None:
            partner = next_partner(len(label))
            label, confidence = (paste(each, batch.keep, partner) for each in (label, confidence))
        if batch.flow is not None:
            pair = torch.stack([label.to(confidence.dtype), confidence], dim=1)
            label, confidence = warp(pair, batch.flow, mode="nearest").unbind(1)
        return label.long(), confidence

    def _student(self, batch: Batch) -> tuple[list[Tensor], Tensor, Tensor | None]:
        """Return all levels' logits of labelled images, the finest of strong views, and the embeddings of both."""
        assert batch.strong is not None
        joint, counts = self.settings.joint_norm, [len(batch.image), len(batch.strong)]
        if not isinstance(self.student, Branch):
            levels, strong = deep_logits(self.network, batch.image, batch.strong, joint=joint)
            return levels, strong[0], None
        if joint:
            every, z = self.student(torch.cat([batch.image, batch.strong]))
            parts = [level.split(counts) for level in every]
            return [known for known, _ in parts], parts[0][1], self.project(z).float()
        levels, z = self.student(batch.image)
        strong, others = self.student(batch.strong)
        return levels, strong[0], self.project(torch.cat([z, others])).float()

    def _teacher(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the teacher's logits and embeddings of strong views; with banks, of labelled images before them."""
        assert batch.strong is not None
        images = [batch.strong] if self.banks is None else [batch.image, batch.strong]
        said = [self.teacher(each) for each in images]
        return torch.cat([levels[0] for levels, _ in said]), torch.cat([z for _, z in said]).float()

    def _hard_contrast(self, pixels: Pixels, generator: torch.Generator) -> Tensor:
        """Contrast hard queries with pixels of this step: the paper's form."""
        settings = self.settings
        valid = (pixels.label != IGNORE) & (pixels.sure >= settings.valid)
        members = class_masks(pixels.label, pixels.logits.shape[1], where=valid)
        draws = draw_hard_queries(
            pixels.z.detach(),
            members,
            hard_queries(members, pixels.logits.softmax(1), threshold=settings.hard),
            queries=settings.queries,
            negatives=settings.negatives,
            temperature=settings.temperature,
            generator=generator,
            sampler=SAMPLERS[settings.sampler],
        )
        return query_contrast(pixels.z, members, draws, temperature=settings.temperature)

    def _bank_contrast(
        self,
        pixels: Pixels,
        judged: Tensor,
        target: Tensor,
        known: int,
        progress: float,
        generator: torch.Generator,
    ) -> Tensor:
        """Contrast certain anchors with what is remembered for their class: the released form.

        Args:
            pixels: of labelled images, then of strong views.
            judged, target: logits and embeddings of the teacher for the same.
            known: number of labelled images.
            progress: of the run.
            generator: of anchors and negatives.
        """
        assert self.banks is not None
        settings, label = self.settings, pixels.label
        probability = _thinned(judged.float().softmax(1), pixels.z.shape[2:])
        percent = entropy_percent(progress, start=settings.certain)
        low, high = certainty(pixels.logits[known:], label[known:], percent=percent)
        members = class_masks(label, probability.shape[1], where=torch.cat([label[:known] != IGNORE, low]))
        keys = bank_keys(
            label,
            torch.arange(len(label), device=label.device) < known,
            probability,
            torch.cat([torch.zeros_like(label[:known], dtype=torch.bool), high]),
            threshold=settings.key,
            low_rank=settings.low_rank,
            repair_keys=settings.repair_keys,
        )
        self.fresh_keys = self.banks.rows_at(target, keys)
        rows = self.banks.with_rows(self.fresh_keys)  # as if remembered already, as released
        draws = draw_from_banks(
            members,
            bank_anchors(members, probability, threshold=settings.anchor),
            [len(own) for own in rows],
            queries=settings.queries,
            negatives=settings.negatives,
            generator=generator,
            sampler=SAMPLERS[settings.sampler],
            repair_classes=settings.repair_classes,
        )
        return bank_contrast(pixels.z, target, members, rows, draws, temperature=settings.temperature)


def _output(terms: Mapping[str, Tensor], logs: Mapping[str, Tensor]) -> StepOutput:
    return StepOutput(torch.stack(list(terms.values())).sum(), logs, terms)


def _mixed_by_class(batch: Batch, label: Tensor, confidence: Tensor) -> tuple[Batch, Tensor, Tensor]:
    """Leave of each strong view half of its classes on top of the next one, and mix its labels alike (ClassMix).

    The classes are the teacher's, so this waits for its labels; released code mixes before it deforms and recolours.
    """
    assert batch.strong is not None
    keep = class_mask(label, generator=torch.Generator().manual_seed(batch.seed + 1))
    partner = next_partner(len(label))
    strong, second = (
        None if view is None else paste(view, keep, partner) for view in (batch.strong, batch.second)
    )
    mixed = batch._replace(strong=strong, second=second)
    return mixed, paste(label, keep, partner), paste(confidence, keep, partner)


def _pixels(z: Tensor, logits: Tensor, label: Tensor, sure: Tensor) -> Pixels:
    """Take of full-size maps the pixels for which there are embeddings."""
    size = z.shape[2:]
    return Pixels(z, _thinned(logits.detach(), size), downsampled(label, size), _thinned(sure, size))


def _thinned(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Take of maps (B, *S) or (B, K, *S) the pixels that ``downsampled`` takes of a label, so that it has ``size``."""
    thin = downsampled(maps.flatten(0, maps.ndim - len(size) - 1), size)
    return thin.reshape(*maps.shape[: maps.ndim - len(size)], *size)


def _warped_image(image: Tensor, grid: Tensor) -> Tensor:
    """Warp images (B, C, *S); outside is the darkest value of each, which 0 is in the released code's images."""
    darkest = image.amin(tuple(range(2, image.ndim)), keepdim=True)
    return warp(image - darkest, grid) + darkest


METHOD = MONA
