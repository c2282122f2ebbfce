"""Which patches a step sees: cases resident in memory (or streamed), patches drawn by number, nothing remembered.

Every draw is a pure function of (seed, step, stream), so a resumed run draws exactly what the uninterrupted one
would have drawn, and a batch can be prepared ahead of time in a thread without changing it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from handful.batches import IGNORE
from handful.data.augment.geometry import Geometry, apply_geometry, sample_geometry, source_margin
from handful.data.augment.intensity import Intensity, apply_intensity, sample_intensity
from handful.data.augment.settings import AugmentSettings
from handful.data.preprocess import IGNORED_VOXEL
from handful.errors import DataError, UsageError

FOREGROUND_VOXELS_KEPT = 4096
"""Voxels remembered per class and case as possible patch centres; more change nothing measurable."""


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How patches are chosen.

    Attributes:
        foreground: share of a batch whose centre lies on a foreground voxel (of a class drawn uniformly from those
            present in the case). A third is nnU-Net's rule (Isensee et al. 2021, https://doi.org/10.1038/s41592-020-01008-z).
        synthetic: how many labelled volumes are made before a training by giving labelled cases the shapes of others
            (``data.synthetic``), at most; 0: none.
        synthetic_steps: in a run of few steps, one volume for so many of them; 0: ``synthetic`` whatever its length.
        synthetic_share: of the labelled draws that go to them.
        synthetic_up_to: with more labelled cases none are made; 0: whatever their number.
    """

    foreground: float = 1 / 3
    synthetic: int = 0
    synthetic_steps: int = 0
    synthetic_share: float = 0.5
    synthetic_up_to: int = 0

    def __post_init__(self) -> None:
        counts = self.synthetic, self.synthetic_steps, self.synthetic_up_to
        if not 0 <= self.foreground <= 1 or not 0 < self.synthetic_share < 1 or min(counts) < 0:
            raise UsageError(
                "sampling: foreground lies in [0, 1], synthetic_share in (0, 1), synthetic, synthetic_steps and "
                f"synthetic_up_to are 0 or more, found {self.foreground}, {self.synthetic_share} and {counts}."
            )


class Readable(Protocol):
    """An array that gives up a box without being read whole: a tensor in memory or a compressed file on disk."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, box: tuple[slice, ...], /) -> Tensor: ...


@dataclass(frozen=True)
class StoredCase:
    """One preprocessed case.

    Attributes:
        name: of the case.
        image: (C, D, H, W) float16 or float32.
        label: (D, H, W) uint8 class indices, ``IGNORED_VOXEL`` where unknown; None for an unlabelled case.
        foreground: per class index >= 1 present: (n, 3) int32 voxel coordinates, at most ``FOREGROUND_VOXELS_KEPT``.
        spacing_mm: of this case along D, H, W on the plan's grid.
    """

    name: str
    image: Readable
    label: Readable | None
    foreground: tuple[np.ndarray, ...]
    spacing_mm: tuple[float, float, float]


def sharing_draws(
    labelled: Sequence[StoredCase], made: Sequence[StoredCase], *, share: float
) -> list[StoredCase]:
    """Return the labelled cases, repeated so that the made ones, appended, take about ``share`` of even draws."""
    repeats = max(1, round(len(made) * (1 - share) / share / len(labelled)))
    return [*labelled] * repeats + [*made]


def foreground_voxels(
    label: np.ndarray, classes: int, *, keep: int = FOREGROUND_VOXELS_KEPT
) -> tuple[np.ndarray, ...]:
    """Return up to ``keep`` voxel coordinates (n, 3) of every foreground class present, thinned evenly."""
    found = []
    for index in range(1, classes):
        flat = np.flatnonzero(label == index)
        if len(flat):
            flat = flat[np.linspace(0, len(flat) - 1, min(keep, len(flat))).astype(np.int64)]
            found.append(np.stack(np.unravel_index(flat, label.shape), axis=1).astype(np.int32))
    return tuple(found)


class Places(NamedTuple):
    """Where boxes were drawn: the fields of ``Crops`` of the same names."""

    case: Tensor
    position: Tensor
    low: Tensor
    high: Tensor


class Crops(NamedTuple):
    """Source boxes, larger than a patch by the augmentation's margin, before any augmentation.

    Attributes:
        image: (B, C, *S) on the training device, float16 or float32.
        label: (B, *S) int64 (``IGNORE`` where unknown), or None when the cases are unlabelled.
        case: (B,) index of each item's case in its store.
        position: (B, 3) float64 centre of the box, relative to its volume, in [0, 1]: along the axis that is cut into
            slices first, then along their rows and columns.
        low, high: (B, 3) first voxel of each patch (without margin) in its volume, and the one after its last, along
            the volume's own D, H, W however it is cut (``Source.order``); they may lie outside the volume.
        everywhere: where the boxes of all processes are, in the order of their ranks; None where draws were joined.
    """

    image: Tensor
    label: Tensor | None
    case: Tensor
    position: Tensor
    low: Tensor
    high: Tensor
    everywhere: Places | None = None


class View(NamedTuple):
    """One augmentation of crops: image (B, C, *patch) float32, label (B, *patch) int64 or None, and its geometry."""

    image: Tensor
    label: Tensor | None
    geometry: Geometry


@dataclass(frozen=True)
class Source:
    """What a method draws its batches from: the cases of one run, seen from one step.

    Attributes:
        labelled: cases whose labels the budget allows.
        unlabelled: all other training cases; their labels were never read.
        patch: network input size, ``dims`` numbers.
        batch: items a step, as planned.
        classes: K, background included.
        mirror: allowed mirror axes, ``dims`` flags.
        turned: share of the rotations that may go all the way round.
        augment: ranges of the augmentation.
        sampling: how centres are chosen.
        device: where tensors go.
        seed: of the run.
        step: number of the step; draws are a function of (seed, step, stream).
        progress: of the run, from 0 to 1: methods of several stages draw by it.
        order: which of D, H, W the axes of every case are (``data.planes``), where all are turned alike.
        rank, world: which process this is, of how many. Draws and views are those of one process with ``world`` times
            the count, of which each process cuts its own rows: those of all ranks, one after the other, are the whole.
    """

    labelled: Sequence[StoredCase]
    unlabelled: Sequence[StoredCase]
    patch: tuple[int, ...]
    batch: int
    classes: int
    mirror: tuple[bool, ...]
    augment: AugmentSettings
    sampling: SamplingSettings
    device: torch.device
    seed: int
    step: int
    progress: float = 0.0
    turned: float = 0.0
    order: tuple[int, int, int] = (0, 1, 2)
    rank: int = 0
    world: int = 1

    def smaller(self, share: float, *, multiple: Sequence[int]) -> "Source":
        """Return the same source with patches of about ``share`` of each side, for tasks that need many small views.

        Args:
            share: of the planned side, in (0, 1].
            multiple: what the network's strides multiply to along each axis; a side is a multiple of it, one at least
                and at most the planned side. Two where that is possible, so that the deepest level is no single voxel.
        """
        sides = []
        for side, unit in zip(self.patch, multiple, strict=True):
            units = max(round(side * share / unit), min(2, side // unit), 1)
            sides.append(min(units * unit, side))
        return replace(self, patch=tuple(sides))

    def draw_labelled(self, count: int, *, stream: int = 0) -> Crops:
        """Draw ``count`` labelled source boxes; a share of them is centred on foreground."""
        return self._draw(self.labelled, count, stream=stream, with_label=True)

    def draw_unlabelled(self, count: int, *, stream: int = 1) -> Crops:
        """Draw ``count`` source boxes from the unlabelled cases, uniformly in space."""
        return self._draw(self.unlabelled, count, stream=stream, with_label=False)

    def draw_any(self, count: int, *, stream: int = 2) -> Crops:
        """Draw ``count`` source boxes from all training cases, labels left out."""
        return self._draw([*self.labelled, *self.unlabelled], count, stream=stream, with_label=False)

    def draw_parts(self, volumes: int, parts: int, *, stream: int = 2) -> Crops:
        """Draw a box from each of ``parts`` equal parts along the slice axis of ``volumes`` of all training cases.

        What is cut is the range of places a patch may have, so that every part has some; labels are left out.

        Returns:
            ``volumes * parts`` boxes, volume by volume: item i comes from part ``i % parts``.

        Raises:
            DataError: a volume has fewer places than parts along the slice axis.
        """
        every = [*self.labelled, *self.unlabelled]
        return self._draw(every, volumes * parts, stream=stream, with_label=False, parts=parts)

    def draw_partly_labelled(self, count: int, *, share: float) -> Crops:
        """Draw boxes of labelled cases, then of unlabelled ones, as one: for methods that learn from both at once.

        Without unlabelled cases all boxes come from labelled ones; without labelled cases none has a label.

        Args:
            count: boxes in all.
            share: of them from labelled cases, rounded; one box at least.

        Returns:
            The labelled boxes first; the label of the others is ``IGNORE`` everywhere. ``label`` is None without
            labelled cases. ``case`` counts the labelled cases first, then the unlabelled ones, as ``draw_any`` does.
        """
        if not self.labelled:
            return self.draw_any(count)
        known = min(max(round(count * share), 1), count) if self.unlabelled else count
        labelled = self.draw_labelled(known)
        if known == count:
            return labelled
        others = self.draw_unlabelled(count - known)
        unknown = others.image.new_full(others.image[:, 0].shape, IGNORE, dtype=torch.int64)
        others = others._replace(label=unknown, case=others.case + len(self.labelled))
        pairs: list[Any] = list(zip(labelled[:-1], others[:-1]))
        joined: list[Any] = [torch.cat(pair) for pair in pairs]
        return Crops(*joined)

    def view(
        self, crops: Crops, *, stream: int = 0, geometry: Geometry | None = None, intensity: bool = True
    ) -> View:
        """Augment crops to patches: one fused resampling, then intensities.

        Args:
            crops: what to look at.
            stream: tells the views of one step apart.
            geometry: of an earlier view, to see exactly the same pixels again; None draws a new one.
            intensity: False leaves the intensities as they are (the target of a reconstruction).
        """
        generator = torch.Generator().manual_seed(self._seed("view", stream))
        spacing = self._spacing()
        batch, channels = crops.image.shape[:2]
        drawn = sample_geometry(
            self.augment,
            batch=batch * self.world,
            patch=self.patch,
            spacing_mm=spacing,
            mirror=self.mirror,
            turned=self.turned,
            generator=generator,
        )
        geometry = Geometry(*map(self._own, drawn)) if geometry is None else geometry
        recolouring = sample_intensity(
            self.augment, batch=batch * self.world, channels=channels, generator=generator, spacing_mm=spacing
        )
        with torch.no_grad():
            image, label = apply_geometry(
                geometry,
                crops.image,
                crops.label,
                patch=self.patch,
                padding=self.augment.padding,
                mode=self.augment.label,
                classes=self.classes,
            )
            if intensity:
                image = apply_intensity(Intensity(*map(self._own, recolouring)), image)
        return View(image, label, geometry)

    def recolour(self, view: View, *, stream: int = 0) -> View:
        """Change the intensities of a view made with ``intensity=False``; its pixels stay where they are.

        The two are the input and the target of a reconstruction, or the strong and the weak view of one place.
        """
        generator = torch.Generator().manual_seed(self._seed("recolour", stream))
        batch, channels = view.image.shape[:2]
        recolouring = sample_intensity(
            self.augment, batch=batch * self.world, channels=channels, generator=generator,
            spacing_mm=self._spacing(),
        )  # fmt: skip
        return view._replace(image=apply_intensity(Intensity(*map(self._own, recolouring)), view.image))

    def generator(self, *, stream: int = 0) -> torch.Generator:
        """Return a generator on the CPU for what a method draws besides patches and views: masks, noise, pairings.

        Each process has its own.
        """
        return torch.Generator().manual_seed(self._seed("method", stream))

    def _draw(
        self, cases: Sequence[StoredCase], count: int, *, stream: int, with_label: bool, parts: int = 1
    ) -> Crops:
        if not cases:
            raise DataError(
                "there are no cases to draw from: this method needs cases this run does not have."
            )
        rng = np.random.default_rng(self._seed("draw", stream))
        mine = range(self.rank * count, (self.rank + 1) * count)
        count *= self.world
        picks = self._pick_cases(len(cases), count // parts, stream).repeat(parts)
        # the same number of foreground-centred items every step, the fraction made up over steps
        forced = int((self.step + 1) * count * self.sampling.foreground) - int(
            self.step * count * self.sampling.foreground
        )
        margin = source_margin(self.augment, self.patch, self._spacing())
        size = (1,) * (3 - len(self.patch)) + tuple(p + m for p, m in zip(self.patch, margin, strict=True))
        full = np.array((1,) * (3 - len(self.patch)) + self.patch)
        images, labels, positions, corners = [], [], [], []
        for item, pick in enumerate(picks):
            case = cases[pick]
            extent = np.array(case.image.shape[1:])
            part = (item % parts, parts)
            centre = self._centre(case, extent, rng, on_foreground=with_label and item < forced, part=part)
            positions.append((centre + 0.5) / extent)
            corners.append(centre - full // 2)
            if item not in mine:
                continue
            images.append(_box(case.image, centre, size))
            if with_label:
                assert case.label is not None
                labels.append(_box(case.label, centre, size, outside=IGNORED_VOXEL))
        image = torch.stack(images).to(self.device)
        label = None
        if with_label:
            raw = torch.stack(labels).to(self.device)
            label = torch.where(raw == IGNORED_VOXEL, IGNORE, raw.long())
        if len(self.patch) == 2:
            image = image.squeeze(2)
            label = label.squeeze(1) if label is not None else None
        back = np.argsort(self.order)
        low, size_of_patch = (torch.from_numpy(sides[..., back]) for sides in (np.array(corners), full))
        everywhere = Places(
            torch.from_numpy(picks), torch.from_numpy(np.array(positions)), low, low + size_of_patch
        )
        own = Places(*map(self._own, everywhere))
        return Crops(image, label, own.case, own.position, own.low, own.high, everywhere)

    def _pick_cases(self, total: int, count: int, stream: int) -> np.ndarray:
        """Choose the cases of this step: all are seen equally often, and none twice in a step that need not."""
        drawn = partial(_permutation, self.seed, stream, total)
        numbers = np.arange(self.step * count, (self.step + 1) * count)
        apart = count - 1
        if 3 * apart <= total or count > total:
            # shuffled rounds; none begins with what the one before ended with
            rounds = {
                int(one): _round(drawn, int(one), min(apart, total // 3)) for one in set(numbers // total)
            }
            return np.array([rounds[int(number) // total][int(number) % total] for number in numbers])
        # a few more cases than places: in `total` steps each takes every place once
        block, place = divmod(self.step, total)
        order, shifts = drawn(2 * block), drawn(2 * block + 1)[:count]
        picks: np.ndarray = order[(place + shifts) % total]
        return picks

    def _centre(
        self,
        case: StoredCase,
        extent: np.ndarray,
        rng: np.random.Generator,
        *,
        on_foreground: bool,
        part: tuple[int, int],
    ) -> np.ndarray:
        """Choose the centre voxel of a box: on foreground, or wherever the patch stays inside the volume.

        Of the places along the slice axis only the ``part[0]``-th of ``part[1]`` equal parts is used.
        """
        full = (1,) * (3 - len(self.patch)) + self.patch
        low = np.minimum(np.array(full) // 2, (extent - 1) // 2)
        high = np.maximum(extent - 1 - (np.array(full) - 1) // 2, low)
        places, (number, parts) = int(high[0] - low[0]) + 1, part
        if places < parts:
            raise DataError(
                f"{case.name} has room for {places} patches of {full[0]} slices one slice apart ({extent[0]} slices); "
                f"{parts} partitions need as many. Use fewer partitions, or a smaller patch_share (3D)."
            )
        high[0] = low[0] + (number + 1) * places // parts - 1
        low[0] += number * places // parts
        uniform = rng.integers(low, high + 1)
        if on_foreground and case.foreground:
            voxels = case.foreground[rng.integers(len(case.foreground))]
            wanted = voxels[rng.integers(len(voxels))]
            return np.asarray(np.clip(wanted, low, high))
        return np.asarray(uniform)

    def _spacing(self) -> tuple[float, ...]:
        cases = self.labelled or self.unlabelled
        return tuple(cases[0].spacing_mm[3 - len(self.patch) :])

    def _own(self, rows: Tensor) -> Tensor:
        """Return this process's rows of those drawn for all."""
        return rows.chunk(self.world)[self.rank]

    def _seed(self, purpose: str, stream: int) -> int:
        numbers = [self.seed, self.step, {"draw": 1, "view": 2, "method": 3, "recolour": 4}[purpose], stream]
        if purpose == "method" and self.rank:
            numbers.append(self.rank)
        words = np.random.SeedSequence(numbers).generate_state(2)
        return int(words[0]) << 31 | int(words[1]) >> 1


def _permutation(seed: int, stream: int, total: int, number: int) -> np.ndarray:
    return np.random.default_rng([seed, 7, stream, number]).permutation(total)


def _round(drawn: Callable[[int], np.ndarray], number: int, apart: int) -> np.ndarray:
    """Return a shuffled round of all cases whose first ``apart`` are none of the last ``apart`` of the round before.

    Its own last ones stay as they were shuffled, so that a round needs to know the one before it alone; there are
    three times ``apart`` cases at least.
    """
    order = drawn(number)
    if number == 0 or apart == 0:
        return order
    body, tail = order[:-apart], order[-apart:]
    late = np.isin(body, drawn(number - 1)[-apart:])
    return np.concatenate([body[~late], body[late], tail])


def _box(array: Readable, centre: np.ndarray, size: tuple[int, ...], *, outside: int | None = None) -> Tensor:
    """Cut a box around ``centre`` from the last three axes.

    Beyond the volume an image repeats its nearest voxel, as at prediction, and a label is ``outside``: nobody knows
    what is there.
    """
    lead = len(array.shape) - 3
    shape = array.shape[lead:]
    start = [int(c) - s // 2 for c, s in zip(centre, size, strict=True)]
    inside = tuple(slice(max(a, 0), min(a + s, n)) for a, s, n in zip(start, size, shape, strict=True))
    box = array[(slice(None),) * lead + inside]
    for axis, (a, s, n) in enumerate(zip(start, size, shape, strict=True)):
        if a < 0 or a + s > n:
            index = torch.arange(a, a + s, device=box.device)
            box = box.index_select(lead + axis, index.clamp(0, n - 1) - max(a, 0))
            if outside is not None:
                box = box.index_fill(lead + axis, ((index < 0) | (index >= n)).nonzero()[:, 0], outside)
    return box
