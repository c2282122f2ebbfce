"""A quick look, during pre-training, at how well features tell the classes apart: class means of a few labelled voxels.

Nothing is trained: a voxel belongs to the class whose mean feature is nearest in direction. Only the budget's labelled
cases are looked at, so a probe costs no label that a run does not have.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from handful.batches import IGNORE
from handful.data.augment.settings import AugmentSettings
from handful.data.sampling import SamplingSettings, Source, StoredCase
from handful.errors import UsageError
from handful.losses.embeddings import unit

UNCHANGED = AugmentSettings(
    p_rotation=0, p_scale=0, p_shift=0, p_elastic=0, p_mirror=0,
    p_noise=0, p_blur=0, p_low_resolution=0, p_brightness=0, p_contrast=0, p_gamma=0,
)  # fmt: skip

LOOKS = 8
"""Patches that the voxels of a class come from, at least: with fewer their places decide the score."""

SLABS = 8
"""Slabs along a patch's longest side that a single case is cut into, every other one on the same side."""


def probe(
    exports: Mapping[str, nn.Module],
    cases: Sequence[StoredCase],
    *,
    patch: tuple[int, ...],
    classes: int,
    device: torch.device,
    seed: int,
    voxels: int = 64,
) -> float | None:
    """Return the accuracy, averaged over classes, of telling each case's voxels by the class means of the others.

    Patches on the foreground of each case are shown to the network once, in evaluation mode and unaugmented. A voxel's
    features are the decoder's finest map at its place or, without a decoder, the encoder's maps of every level; they
    are standardised on the voxels that make the class means. Between 1 / K (chance) and 1. Features of an untrained
    network are above chance, since intensity alone tells some classes: look at the rise over a run.

    With one labelled case, slabs of it take turns: means of every other slab tell the voxels of those in between. Its
    own scanner, its own anatomy and, at the borders, the same tissue: such an accuracy is optimistic.

    Args:
        exports: of a pre-training: ``encoder`` and perhaps ``decoder``, on ``device``; left in the mode they were in.
        cases: of the budget; those without a label are left out.
        patch: sides of the patches, which the network's strides divide.
        classes: K, background included.
        device: where to compute.
        seed: of the places; the same seed looks at the same voxels.
        voxels: most voxels of a class and case (or half of a case).

    Returns:
        None without labelled cases, or where fewer than two classes could be told apart because no other case has them.

    Raises:
        UsageError: there is no encoder, or fewer than one voxel is asked for.

    References:
        Snell et al., 2017, prototypical networks (the classifier). https://arxiv.org/abs/1703.05175
    """
    if "encoder" not in exports:
        raise UsageError(f"a probe needs an encoder; this method exports {', '.join(exports) or 'nothing'}.")
    if voxels < 1:
        raise UsageError(f"a probe needs at least one voxel a class, found {voxels}.")
    labelled = [case for case in cases if case.label is not None]
    modes = [(module, module.training) for part in exports.values() for module in part.modules()]
    for module, _ in modes:
        module.training = False
    try:
        features, label, part = _look(
            exports, labelled, patch=patch, classes=classes, device=device, seed=seed, voxels=voxels
        )
    finally:
        for module, mode in modes:
            module.training = mode
    return _accuracy(features, label, part, classes=classes)


@dataclass
class Stopper:
    """Say when to stop: the best probe is older than ``patience`` probes.

    It only stops; the weights that are kept are the run's last averages, not the best probe's. A few cases decide
    too little to pick among checkpoints by them.

    Attributes:
        patience: probes to wait for a better one, at least 1.
        best: highest score so far.
        age: probes since then.

    Raises:
        UsageError: no patience.

    Example:
        >>> stopper = Stopper(patience=2)
        >>> [stopper.add(score) for score in (0.5, 0.6, 0.6, 0.4, 0.3)]
        [False, False, False, False, True]
    """

    patience: int
    best: float = float("-inf")
    age: int = 0

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise UsageError(f"the patience must be at least one probe, found {self.patience}.")

    def add(self, score: float | None) -> bool:
        """Take in a probe and return whether to stop; None, a probe that could not be scored, changes nothing."""
        if score is not None:
            better = score > self.best
            self.best, self.age = (score, 0) if better else (self.best, self.age + 1)
        return self.age > self.patience

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to stop where the uninterrupted one would."""
        return {"best": self.best, "age": self.age}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state of another stopper; the patience stays this one's."""
        self.best, self.age = float(state["best"]), int(state["age"])


@torch.no_grad()
def _look(
    exports: Mapping[str, nn.Module],
    cases: Sequence[StoredCase],
    *,
    patch: tuple[int, ...],
    classes: int,
    device: torch.device,
    seed: int,
    voxels: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return features (n, F), label (n,) and part (n,) of voxels, on the CPU; a part is a case, or half of one."""
    features, labels, parts = [], [], []
    for number, case in enumerate(cases):
        own = list(range(2)) if len(cases) == 1 else [number]
        wanted = {(part, label): voxels for part in own for label in range(classes)}
        for step in range(LOOKS * classes):
            source = Source(
                labelled=[case], unlabelled=[], patch=patch, batch=1, classes=classes, mirror=(False,) * len(patch),
                augment=UNCHANGED, sampling=SamplingSettings(foreground=1.0), device=device, seed=seed, step=step,
            )  # fmt: skip
            crops = source.draw_labelled(1)
            assert crops.label is not None
            label = crops.label[0].cpu()
            part = _halves(label, crops.low[0]) if len(cases) == 1 else torch.full_like(label, number)
            picked = _pick(label, part, wanted, source.generator(), most=-(-voxels // LOOKS))
            if len(picked):
                features.append(_features(exports, crops.image.float(), picked))
                labels.append(label[tuple(picked.T)])
                parts.append(part[tuple(picked.T)])
            # background and the classes this case has
            if sum(left == 0 for left in wanted.values()) == (1 + len(case.foreground)) * len(own):
                break
    if not features:
        empty = torch.empty(0, dtype=torch.int64)
        return torch.empty(0, 1), empty, empty
    return torch.cat(features), torch.cat(labels), torch.cat(parts)


def _halves(label: Tensor, low: Tensor) -> Tensor:
    """Return 0 or 1 for each voxel of a patch: which of the alternating slabs of its volume it lies in."""
    axis = label.shape.index(max(label.shape))
    first = int(low[len(low) - label.ndim + axis])
    place = first + torch.arange(label.shape[axis])
    half = place.div(max(1, label.shape[axis] // SLABS), rounding_mode="floor") % 2
    shape = [1] * label.ndim
    shape[axis] = -1
    return half.view(shape).expand_as(label)


def _pick(
    label: Tensor, part: Tensor, wanted: dict[tuple[int, int], int], generator: torch.Generator, *, most: int
) -> Tensor:
    """Draw places (n, dims) of the classes still wanted of each part, and lower what is wanted by what was found."""
    picked = []
    for (of_part, of_class), left in wanted.items():
        places = ((label == of_class) & (part == of_part) & (label != IGNORE)).nonzero()
        places = places[torch.randperm(len(places), generator=generator)[: min(left, most)]]
        wanted[of_part, of_class] -= len(places)
        picked.append(places)
    return torch.cat(picked)


def _features(exports: Mapping[str, nn.Module], image: Tensor, places: Tensor) -> Tensor:
    """Return (n, F) of one image (1, C, *S): at each place, every level's map enlarged to S by repeating its voxels."""
    maps = exports["encoder"](image)
    if "decoder" in exports:
        maps = exports["decoder"](maps)[:1]
    full = torch.tensor(image.shape[2:])
    columns = []
    for level in maps:
        size = torch.tensor(level.shape[2:])
        inside = (places * size // full).to(level.device)
        columns.append(level[0][(slice(None), *inside.T)].T.float().cpu())
    return torch.cat(columns, dim=1)


def _accuracy(features: Tensor, label: Tensor, part: Tensor, *, classes: int) -> float | None:
    """Tell each part's voxels by the class means of the other parts; mean over classes of the share told right."""
    right, total = torch.zeros(classes), torch.zeros(classes)
    for held_out in torch.unique(part):
        support, query = part != held_out, part == held_out
        known = torch.unique(label[support])
        query &= torch.isin(label, known)
        if len(known) < 2 or not query.any():
            continue
        z = features - features[support].mean(0)
        spread = features[support].std(0, correction=0)
        # a channel that is all but constant here says nothing, and must not be blown up
        z = z / spread.clamp(min=float(spread.max()) * 1e-3 + 1e-12)
        means = torch.stack([z[support & (label == index)].mean(0) for index in known])
        told = known[(z[query] @ unit(means).T).argmax(1)]
        right += torch.bincount(label[query], weights=(told == label[query]).float(), minlength=classes)
        total += torch.bincount(label[query], minlength=classes)
    scored = total > 0
    return float((right[scored] / total[scored]).mean()) if scored.sum() >= 2 else None
