"""What was decided from the data: grid, normalisation, network sizes; readable, explained, editable."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import yaml

from handful import artefacts
from handful.data.discover import LabelsSeen
from handful.data.plan_check import LAST_CLASS, check_plan
from handful.data.sizes import BUDGETS, Sizes, choose_sizes, unit
from handful.errors import UsageError
from handful.settings import build

if TYPE_CHECKING:
    from handful.data.cases import Dataset
    from handful.data.fingerprint import Fingerprint

ANISOTROPIC = 3.0
"""Slices this many times thicker than pixels are worked on one by one (nnU-Net's threshold)."""

FEW_SLICES = 8
"""Volumes with fewer slices cannot be halved along them even once; they are worked on slice by slice too."""

SLICE_AXIS_COARSER = 1.1
"""An axis this much coarser than the others is the one the volume was sliced along."""

TURNED = 0.15
"""Chosen by measurement (docs/benchmarks.md, "Turned hearts")."""

AXIS_NAMES = ("left-right", "front-back", "head-foot")
"""The axes of a RAS volume in words."""

FEW_FOREGROUND = 5_000
"""CT foreground voxels below which the window comes from the whole body: a few small lesions are no window."""


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """How one channel's intensities become the network's.

    ``zscore``: subtract the volume's robust centre, divide by its robust spread (MR; per volume).
    ``window``: clip to [low, high], then subtract ``centre`` and divide by ``spread`` (CT; one set for all volumes).
    """

    kind: Literal["zscore", "window"] = "zscore"
    low: float = 0.0
    high: float = 0.0
    centre: float = 0.0
    spread: float = 1.0


@dataclass(frozen=True, kw_only=True)
class NetworkPlan:
    """Sizes of the U-Net.

    Attributes:
        widths: channels of each level, finest first; its length is the number of levels.
        strides: down-sampling from each level to the next, one tuple of ``dims`` factors each (len(widths) - 1).
        kernels: kernel size of each level, one tuple of ``dims`` each.
        blocks: convolutions (plain) or residual blocks a level.
        kind: ``plain`` or ``residual``.
        norm: ``batch`` or ``instance``. With two labels batch norm generalised better (docs/benchmarks.md) and is
            faster on a CPU; its running statistics are averaged along with the weights.
        deep_supervision: whether coarser decoder levels also predict.
    """

    widths: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    blocks: int = 2
    kind: Literal["plain", "residual"] = "plain"
    norm: Literal["batch", "instance"] = "batch"
    deep_supervision: bool = True


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything between a file and a network input.

    Attributes:
        dims: 2 (slices along D) or 3.
        axes: which axis of the reoriented (RAS) volume becomes D, H, W; D is the slice axis.
        planes: of a 2D plan, the orders of D, H, W in which volumes are cut: slice axis, rows, columns (data.planes).
        spacing_mm: target spacing along D, H, W; None keeps each volume's own (D of a 2D plan).
        patch: network input size, ``dims`` numbers (H, W or D, H, W).
        batch: items a step.
        channels: one normalisation a channel.
        label_values: value in the files of each class index; ``label_values[0]`` is background.
        label_names: name of each class index.
        ignore_value: value in the files that means "no label here", or None.
        mirror: whether each axis of the patch may be mirrored in augmentation.
        turned: share of the rotations in augmentation that may go all the way round instead of ``rotation_degrees``.
        one_piece: whether predictions keep only the largest piece of each class index, background's False; empty: none.
        network: sizes of the built-in U-Net.
        reasons: field name -> one sentence why it was decided so; shown to the user.
        dataset: name of the data set.
        fingerprint_hash: hash of the fingerprint this came from.
        version: of handful.
    """

    dims: Literal[2, 3]
    axes: tuple[int, int, int]
    spacing_mm: tuple[float | None, float | None, float | None]
    patch: tuple[int, ...]
    batch: int
    channels: tuple[Normalisation, ...]
    label_values: tuple[int, ...]
    label_names: tuple[str, ...]
    ignore_value: int | None = None
    mirror: tuple[bool, ...]
    turned: float = 0.0
    one_piece: tuple[bool, ...] = ()
    planes: tuple[tuple[int, int, int], ...] = ((0, 1, 2),)
    network: NetworkPlan
    reasons: dict[str, str] = field(default_factory=dict)
    dataset: str = ""
    fingerprint_hash: str = ""
    version: str = ""


def make_plan(
    fingerprint: "Fingerprint",
    dataset: "Dataset",
    *,
    memory_gb: float | None = None,
    device: str = "cpu",
    dims: int | None = None,
    planes: int | None = None,
    width: int | None = None,
    structures: bool = True,
) -> Plan:
    """Decide grid, normalisation and sizes from the data; each decision gets a sentence in ``Plan.reasons``.

    Args:
        fingerprint: what the data look like; its labels are the budget's only.
        dataset: names of labels and channels.
        memory_gb: memory a training step may use; None takes what ``sizes.BUDGETS`` assumes of the device.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        dims: 2 or 3 to decide it yourself; None decides from spacing and device.
        planes: of a 2D plan: 1 cuts slices along D only, 3 along all axes; None decides from the spacing.
        width: channels of the network's finest level, doubled at each; None takes what suits the device.
        structures: whether there must be a structure to segment; a pre-training on images alone needs none.

    Raises:
        UsageError: ``dims`` is neither 2 nor 3, ``width`` is not positive, three planes of voxels that are longer along
            one axis or of a 3D plan, or the data set declares no structure or too many.
    """
    from handful import __version__

    if dims not in (None, 2, 3):
        raise UsageError(f"dims must be 2 or 3, found {dims}.")
    if width is not None and width < 1:
        raise UsageError(f"width must be at least 1 channel, found {width}.")
    reasons: dict[str, str] = {}
    axes = _choose_axes(fingerprint, reasons)
    sizes = np.array([[case.shape[axis] for axis in axes] for case in fingerprint.cases])
    spacings = np.array([[case.spacing_mm[axis] for axis in axes] for case in fingerprint.cases])
    kind: Literal["cpu", "gpu"] = "cpu" if device.startswith("cpu") else "gpu"
    chosen = _choose_dims(sizes, spacings, dims, kind, reasons)
    several = _choose_planes(sizes, spacings, chosen, planes, reasons)
    target = _choose_spacing(spacings, chosen, reasons, through=several)
    values, names = _classes(dataset, reasons, structures=structures)
    reached = np.array(
        [spacings[:, i] if mm is None else np.full(len(sizes), mm) for i, mm in enumerate(target)]
    ).T
    grid = np.maximum(1, np.round(sizes * spacings / reached))
    part = slice(3 - chosen, None)
    median = [int(n) for n in np.median(grid, axis=0)]
    cuts = _orders(median) if several else ((0, 1, 2),)
    median_size = [max(median[order[axis]] for order in cuts) for axis in range(3)[part]]
    budget = BUDGETS[kind, chosen]
    fit = choose_sizes(
        median_size,
        [float(mm) for mm in np.median(reached, axis=0)[part]],
        channels=len(dataset.channel_names),
        classes=len(values),
        budget=budget if width is None else dataclasses.replace(budget, width=width),
        memory_gb=memory_gb,
    )
    _explain_sizes(fit, median_size, kind, reasons, several=several, asked=width is not None)
    channels = _normalisations(fingerprint, reasons)
    rows = [[axes[order[axis]] for order in cuts] for axis in range(3)[part]]
    mirror = _choose_mirror(fingerprint, dataset, rows, reasons)
    turned = _choose_turned(chosen, len(cuts), reasons)
    one_piece = _choose_one_piece(fingerprint, dataset, values, reasons)
    return Plan(
        dims=chosen,
        axes=axes,
        spacing_mm=target,
        patch=fit.patch,
        batch=fit.batch,
        channels=channels,
        label_values=values,
        label_names=names,
        ignore_value=dataset.ignore_value,
        mirror=mirror,
        turned=turned,
        one_piece=one_piece,
        planes=cuts,
        network=NetworkPlan(
            widths=fit.widths,
            strides=fit.strides,
            kernels=fit.kernels,
            deep_supervision=len(fit.widths) > 2,
        ),
        reasons={name: reasons[name] for name in _MEANING if name in reasons},
        dataset=dataset.name,
        fingerprint_hash=fingerprint.hash,
        version=__version__,
    )


def write_plan(path: Path, plan: Plan) -> None:
    """Write ``plan.yaml``: every field under a comment that says what it means, the reasons last."""
    lines = [
        "# What handful decided from the data. Edit what you know better; delete the file to have it made anew.",
    ]
    values = _plain(dataclasses.asdict(plan))
    for name, meaning in _MEANING.items():
        text = yaml.dump({name: values[name]}, Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)
        lines += ["", f"# {meaning}", text.rstrip()]
    artefacts.write_text(path, "\n".join(lines) + "\n")


def read_plan(path: Path) -> Plan:
    """Read ``plan.yaml``.

    Raises:
        UsageError: an unknown key (the nearest known one is named) or a value that cannot be.
        DataError: no such file, or not YAML.
    """
    values = artefacts.read_yaml(path)
    channels = values.get("channels")
    if isinstance(channels, Sequence) and all(isinstance(channel, Mapping) for channel in channels):
        # settings.build looks for unknown keys in dataclasses, not in tuples of them
        values["channels"] = [
            build(Normalisation, channel, where=f"{path}, channels") for channel in channels
        ]
    missing = [
        f.name for f in dataclasses.fields(Plan) if f.default is f.default_factory and f.name not in values
    ]
    if missing:
        raise UsageError(f"{path}: {', '.join(missing)} missing. Delete the file to have the plan made anew.")
    plan = build(Plan, values, where=str(path))
    check_plan(plan, where=str(path))
    return plan


def explain(plan: Plan) -> list[tuple[str, str, str]]:
    """Return the plan as a table: what was decided, its value, and why."""
    network = plan.network
    planes = ", ".join(AXIS_NAMES[plan.axes[order[0]]] for order in plan.planes)
    spacing = " x ".join("own" if mm is None else f"{mm:g}" for mm in plan.spacing_mm)
    mirrored = [AXIS_NAMES[axis] for axis, allowed in zip(plan.axes[3 - plan.dims :], plan.mirror) if allowed]
    classes = ", ".join(f"{value} {name}" for value, name in zip(plan.label_values, plan.label_names))
    whole = [name for name, flag in zip(plan.label_names, plan.one_piece) if flag]
    values = {
        "dims": f"{plan.dims}D",
        "axes": "D, H, W = " + ", ".join(AXIS_NAMES[axis] for axis in plan.axes),
        **({"planes": f"slices along {planes}"} if plan.dims == 2 else {}),
        "spacing_mm": f"{spacing} mm",
        "patch": _times(plan.patch),
        "batch": str(plan.batch),
        "channels": "; ".join(_describe(channel) for channel in plan.channels),
        "label_values": classes + ("" if plan.ignore_value is None else f"; {plan.ignore_value} ignored"),
        "mirror": ", ".join(mirrored) or "none",
        "turned": f"{plan.turned:.0%} of the rotations" if plan.turned else "none",
        "one_piece": ", ".join(whole) or "none",
        "network": f"{network.kind} U-Net, {network.norm} norm, {'-'.join(map(str, network.widths))}",
    }
    return [(_TITLES[name], value, plan.reasons.get(name, "")) for name, value in values.items()]


_TITLES = {
    "dims": "dimensions",
    "axes": "axes",
    "planes": "planes",
    "spacing_mm": "spacing",
    "patch": "patch",
    "batch": "batch",
    "channels": "intensities",
    "label_values": "classes",
    "mirror": "mirroring",
    "turned": "any angle",
    "one_piece": "one piece",
    "network": "network",
}

_MEANING = {
    "dims": "2: slices along D; 3: volumes.",
    "axes": "Which axis of the volume (0 left-right, 1 front-back, 2 head-foot) becomes D (the slice axis), H and W.",
    "planes": "2D: orders of D, H, W (0, 1, 2) to cut volumes in: slice axis, rows, columns. Predictions are averaged.",
    "spacing_mm": "Voxel size along D, H, W after resampling; null keeps each volume's own (only D of a 2D plan).",
    "patch": "Voxels the network sees at once: H, W or D, H, W. Multiples of the product of the strides.",
    "batch": "Patches a step.",
    "channels": "One normalisation a channel: zscore (per volume) or window (clip to low..high, - centre, / spread).",
    "label_values": "Value in the label files of each class; background first.",
    "label_names": "Name of each class, in the same order.",
    "ignore_value": "Value in the label files that means 'not labelled here', or null.",
    "mirror": "Whether augmentation may mirror each axis of the patch.",
    "turned": "Share of the rotations in augmentation that may go all the way round, beyond augment.rotation_degrees.",
    "one_piece": "Whether predictions keep only the largest piece of each class (background: false); [] is none.",
    "network": "The U-Net: channels of each level (finest first), strides between levels, kernel of each level.",
    "reasons": "Why; shown by 'handful plan' and in the report.",
    "dataset": "What this plan was made for.",
    "fingerprint_hash": "Of the fingerprint.json it was made from.",
    "version": "Of handful.",
}


def _explain_sizes(
    fit: Sizes, median_size: Sequence[int], kind: str, reasons: dict[str, str], *, several: bool, asked: bool
) -> None:
    """Say why patch, batch and network have the sizes they have."""
    dims = len(fit.patch)
    what = "volume" if dims == 3 else "slice"
    if all(p >= n for p, n in zip(fit.patch, median_size)):
        reach = f"covers the median {what}" + (" of every plane" if several else "")
    else:
        reach = "as near to a cube in mm as the volume and the memory allow"
    reasons["patch"] = (
        f"The median {what} has {_times(median_size)} voxels on this grid; {reach}, "
        f"in multiples of {_times(unit(fit.strides, dims))}."
    )
    reasons["batch"] = f"About {fit.memory_gb:.1f} GB in training on a {kind.upper()}."
    reasons["network"] = (
        f"{len(fit.widths)} levels: an axis is halved while 4 voxels remain and it is within twice the finest; "
        f"{fit.widths[0]} channels {'were asked for' if asked else f'suit a {kind.upper()}'}."
    )


def _choose_axes(fingerprint: "Fingerprint", reasons: dict[str, str]) -> tuple[int, int, int]:
    """Take the coarsest axis as the slice axis; head-foot when none is coarser than the others."""
    spacings = np.array([case.spacing_mm for case in fingerprint.cases])
    median = np.median(spacings, axis=0)
    coarsest = int(np.argmax(median))
    if median[coarsest] > SLICE_AXIS_COARSER * np.delete(median, coarsest).max():
        others = int(
            sum(np.argmax(s) != coarsest and s.max() > SLICE_AXIS_COARSER * s[coarsest] for s in spacings)
        )
        reasons["axes"] = (
            f"Slices lie along {AXIS_NAMES[coarsest]}, the coarsest axis ({median[coarsest]:.3g} mm)."
        )
        if others:
            reasons["axes"] += f" {others} of {len(spacings)} volumes were sliced along another axis."
    else:
        coarsest = 2
        reasons["axes"] = "No axis is coarser than the others, so slices are axial: along head-foot."
    # the remaining axes from last to first, so that RAS volumes become (S, A, R), as images are usually shown
    h, w = (axis for axis in (2, 1, 0) if axis != coarsest)
    return coarsest, h, w


def _choose_dims(
    sizes: np.ndarray[Any, Any],
    spacings: np.ndarray[Any, Any],
    asked: int | None,
    kind: Literal["cpu", "gpu"],
    reasons: dict[str, str],
) -> Literal[2, 3]:
    ratio = float(np.median(spacings[:, 0] / spacings[:, 1:].max(axis=1)))
    slices = float(np.median(sizes[:, 0]))
    if ratio > ANISOTROPIC:
        natural: Literal[2, 3] = 2
        why = f"Slices are {ratio:.1f} times as thick as pixels are wide, so neighbouring slices share little: 2D."
    elif slices < FEW_SLICES:
        natural = 2
        why = f"The median volume has only {slices:g} slices: 2D."
    elif kind == "cpu" and _alike(spacings):
        natural = 2
        why = (
            "Voxels are equally long along all axes, and on a CPU slices along each of them learn more than volumes in "
            "the same time: 2D."
        )
    else:
        natural = 3
        why = (
            f"Slices are {ratio:.1f} times as thick as pixels are wide and there are {slices:g} of them: 3D."
        )
    if asked is None or asked == natural:
        reasons["dims"] = why
        return natural
    reasons["dims"] = f"Asked for. The data suggest otherwise: {why}"
    return 2 if asked == 2 else 3


def _choose_planes(
    sizes: np.ndarray[Any, Any],
    spacings: np.ndarray[Any, Any],
    dims: Literal[2, 3],
    asked: int | None,
    reasons: dict[str, str],
) -> bool:
    """Say whether slices are cut along all three axes: where no axis is coarser, all planes show the same detail."""
    if asked not in (None, 1, 3) or (asked == 3 and dims == 3):
        raise UsageError(f"planes must be 1 or 3, and 1 for a 3D plan, found {asked}.")
    if dims == 3:
        return False
    median, slices = np.median(spacings, axis=0), float(np.median(sizes[:, 0]))
    ratio, alike = float(median.max() / median.min()), _alike(spacings)
    if asked == 3 and not alike:
        raise UsageError(
            f"three planes need voxels that are equally long along all axes, here one is {ratio:.2g} times as long as "
            "another; use one plane, or 3D."
        )
    if asked is not None:
        reasons["planes"] = "Asked for."
        return asked == 3
    if not alike:
        reasons["planes"] = f"Voxels are {ratio:.2g} times as long along one axis as along another."
    elif slices < FEW_SLICES:
        reasons["planes"] = f"There are only {slices:g} slices."
    else:
        reasons["planes"] = (
            "Voxels are equally long along all axes: one network sees slices along each, and predictions are averaged."
        )
    return alike and slices >= FEW_SLICES


def _alike(spacings: np.ndarray[Any, Any]) -> bool:
    """Say whether the median voxel is about equally long along all axes."""
    median = np.median(spacings, axis=0)
    return float(median.max()) <= SLICE_AXIS_COARSER * float(median.min())


def _orders(size: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    """Return the three orders of D, H, W to cut in; the longer side of a slice lies where that of the first has it."""
    tall = size[1] >= size[2]
    orders = [(0, 1, 2)]
    for axis in (1, 2):
        long, short = sorted({0, 1, 2} - {axis}, key=lambda other: -size[other])
        orders.append((axis, long, short) if tall else (axis, short, long))
    return tuple(orders)


def _choose_spacing(
    spacings: np.ndarray[Any, Any], dims: Literal[2, 3], reasons: dict[str, str], *, through: bool
) -> tuple[float | None, float, float]:
    d, h, w = (round(float(mm), 4) for mm in np.median(spacings, axis=0))
    if dims == 2 and not through:
        reasons["spacing_mm"] = f"The median in plane of {len(spacings)} volumes; slices stay where they are."
        return None, h, w
    if d > ANISOTROPIC * max(h, w):
        # nnU-Net's rule: with the median, half the volumes would lose slices that cannot be won back
        d = round(float(np.percentile(spacings[:, 0], 10)), 4)
        reasons["spacing_mm"] = (
            f"The median in plane of {len(spacings)} volumes, the 10th percentile through it."
        )
    else:
        same = bool(np.allclose(spacings, (d, h, w), rtol=1e-3))
        reasons["spacing_mm"] = f"{'That of all' if same else 'The median of'} {len(spacings)} volumes."
    return d, h, w


def _classes(
    dataset: "Dataset", reasons: dict[str, str], *, structures: bool
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    names = {0: "background", **dataset.label_names}
    values = (0, *sorted(value for value in names if value not in (0, dataset.ignore_value)))
    if len(values) < 2 and structures:
        raise UsageError(
            f"{dataset.root}: no structure is declared, and the labels that may be used show none. Name the labels in "
            "dataset.json."
        )
    if len(values) > LAST_CLASS + 1:
        raise UsageError(
            f"{dataset.root}: {len(values)} classes are declared; at most {LAST_CLASS + 1} are possible."
        )
    reasons["label_values"] = (
        "The values in the label files of the budget."
        if isinstance(dataset.label_names, LabelsSeen)
        else f"As {dataset.name} declares them."
    )
    return values, tuple(names[value] for value in values)


def _normalisations(fingerprint: "Fingerprint", reasons: dict[str, str]) -> tuple[Normalisation, ...]:
    chosen, why = [], []
    for index, name in enumerate(fingerprint.channel_names):
        if not _is_ct(name):
            chosen.append(Normalisation(kind="zscore"))
            why.append(
                f"'{name}' is not CT, its numbers have no fixed scale: each volume by its own mean and deviation, the "
                "outermost 0.5 % clipped and the constant background left out."
            )
            continue
        foreground, body = fingerprint.foreground[index], fingerprint.body[index]
        enough = foreground.voxels >= FEW_FOREGROUND
        source = foreground if enough else body
        if not source.voxels:
            raise UsageError(
                f"channel '{name}' is called CT but no voxel is above -500 HU. Check units and name."
            )
        chosen.append(
            Normalisation(
                kind="window",
                low=round(source.percentiles[0], 3),
                high=round(max(source.percentiles[-1], source.percentiles[0] + 1), 3),
                centre=round(source.mean, 3),
                spread=round(max(source.sd, 1e-3), 3),
            )
        )
        origin = (
            f"the {source.voxels:,} labelled foreground voxels of the budget"
            if enough
            else f"all voxels above -500 HU ({foreground.voxels:,} labelled foreground voxels are too few)"
        )
        why.append(f"'{name}' is CT: window and scale from {origin}.")
    reasons["channels"] = " ".join(why)
    return tuple(chosen)


def _is_ct(channel_name: str) -> bool:
    """Cone-beam CT (CBCT) is left out: its numbers are not Hounsfield units."""
    return bool({"ct", "cta", "cect", "ncct", "hu"} & set(re.findall(r"[a-z]+", channel_name.lower())))


def _choose_mirror(
    fingerprint: "Fingerprint", dataset: "Dataset", rows: Sequence[Sequence[int]], reasons: dict[str, str]
) -> tuple[bool, ...]:
    """Allow a mirror along an axis of the patch where every axis of the volume that comes to lie there allows it."""
    from handful.data.mirror import mirror_axes

    decisions = mirror_axes(fingerprint, dataset.label_names)
    axes = dict.fromkeys(axis for row in zip(*rows) for axis in row)
    why = "; ".join(f"{AXIS_NAMES[axis]} {decisions[axis].why}" for axis in axes)
    reasons["mirror"] = why[0].upper() + why[1:] + "."
    return tuple(all(decisions[axis].allowed for axis in row) for row in rows)


def _choose_turned(dims: int, planes: int, reasons: dict[str, str]) -> float:
    """Expect turned anatomy where slices lie along one axis: such planes are laid by hand, to each patient anew."""
    if dims == 2 and planes == 1:
        reasons["turned"] = (
            "Slices that are laid by hand show some patients turned; nnU-Net turns 2D by up to 180 degrees too."
        )
        return TURNED
    reasons["turned"] = "Volumes, and slices along every axis, are turned by little, as nnU-Net turns 3D."
    return 0.0


def _choose_one_piece(
    fingerprint: "Fingerprint", dataset: "Dataset", values: Sequence[int], reasons: dict[str, str]
) -> tuple[bool, ...]:
    from handful.data.one_piece import choose_one_piece

    flags, reasons["one_piece"] = choose_one_piece(
        fingerprint, dataset.label_names, ignore_value=dataset.ignore_value
    )
    return tuple(flags.get(value, False) for value in values)


def _describe(channel: Normalisation) -> str:
    if channel.kind == "zscore":
        return "z-score a volume"
    return f"window {channel.low:g} to {channel.high:g}, (x - {channel.centre:g}) / {channel.spread:g}"


def _times(numbers: Sequence[int]) -> str:
    return " x ".join(str(n) for n in numbers)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


class _Dumper(yaml.SafeDumper):
    """YAML as a person would write it: lists of numbers on one line, mappings one entry a line."""


def _represent_list(dumper: yaml.SafeDumper, data: list[Any]) -> yaml.Node:
    flow = not any(isinstance(item, dict) for item in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=flow)


_Dumper.add_representer(list, _represent_list)
