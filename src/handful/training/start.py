"""What a training starts with: the planned network in its method, another run's weights, the cases to draw from."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from handful.artefacts import hash_of
from handful.data.discover import image_hashes
from handful.data.plan import Plan
from handful.data.planes import STRAIGHT, in_planes
from handful.data.sampling import Source, StoredCase
from handful.errors import UsageError
from handful.methods import load_method
from handful.methods.contract import Method
from handful.networks.build import build_network, unet_architecture
from handful.networks.weights import load_into, load_weights
from handful.training.checkup import Checkup
from handful.training.folder import weights_of
from handful.training.probe import probe
from handful.training.processes import Processes
from handful.training.recipe import Recipe
from handful.training.stage import ALONE, Stage

PROBED_CASES = 8
"""Labelled cases a probe looks at, at most."""


def build_method(
    recipe: Recipe, plan: Plan, seed: int, *, start: Callable[[Method], Collection[str]] | None = None
) -> tuple[Method, dict[str, Any]]:
    """Build the planned network inside its method, weights drawn from ``seed``; also return the architecture.

    Args:
        recipe, plan, seed: of the run.
        start: loads other weights into what the method exports and names the parts. The method is then made anew
            around the network, so that the copies it takes of it (teachers) start from those weights too.
    """
    torch.manual_seed(seed)
    sizes = asdict(plan.network)
    channels, classes = len(plan.channels), len(plan.label_values)
    if recipe.network.preset is None:
        architecture = unet_architecture(dims=plan.dims, in_channels=channels, classes=classes, **sizes)
    else:
        name = f"preset:{recipe.network.preset}"
        architecture = {"name": name, "dims": plan.dims, "in_channels": channels, "classes": classes}
    network: nn.Module = build_network(architecture)
    make = load_method(recipe.name).METHOD
    method: Method = make(network, recipe.method)
    if start is not None:
        loaded = start(method)
        torch.manual_seed(seed)
        method = make(network, recipe.method)
        method.started(loaded)
    return method, architecture


def rehearse(stage: Stage, plan: Plan) -> list[str]:
    """Build the network and the method of each part of the run, and load ``--init``, before any case is loaded.

    Returns:
        What is to be said of the weights that the training starts from.

    Raises:
        UsageError, DataError: they do not fit each other.
    """
    said: list[str] = []
    for recipe in filter(None, stage.recipe.stages()):
        method, _ = build_method(recipe, plan, stage.seed)
        if stage.init is not None:
            said = start_from(stage, method, plan).said
    return said


class Start(NamedTuple):
    """The parts that were loaded, and what is to be said of them."""

    parts: tuple[str, ...]
    said: list[str]


def start_from(stage: Stage, method: Method, plan: Plan) -> Start:
    """Load the parts that another run exported into the same parts of this one, and say how much of each matched.

    A segmentation network counts as its encoder and decoder where only those are wanted.

    Raises:
        UsageError: its weights were trained on differently made images, or with labels of cases held out here, or
            share no part with this method.
        DataError: less than 99 % of a part's tensors match (unless ``stage.partial_init``).
    """
    init = stage.init
    assert init is not None
    states, metadata = load_weights(weights_of(init))
    _check_images(stage, metadata, plan)
    said = _check_cases(init, metadata, stage)
    targets, states = _parts(method.exports()), _part_states(states)
    shared = [name for name in targets if name in states]
    if "segmenter" in shared:
        shared = ["segmenter"]
    if not shared:
        raise UsageError(
            f"--init {init}: it holds {', '.join(states)}; '{stage.recipe.name}' trains {', '.join(targets)}."
        )
    for name in shared:
        state = states[name]
        spread: list[str] = []
        if stage.adapt_channels:
            state, spread = _adapted(state, targets[name], seen=_channels(metadata), now=len(plan.channels))
        report = load_into(targets[name], state, partial=stage.partial_init)
        said.append(f"{name} from {init} ({metadata.get('method')}): {report}")
        if spread:
            said.append(
                f"{', '.join(spread)} spread from {_channels(metadata)} to {len(plan.channels)} image channels"
            )
    fresh = [
        n for n in ("encoder", "decoder") if n in targets and n not in shared and shared != ["segmenter"]
    ]
    if fresh:
        said.append(f"{' and '.join(fresh)} start{'s' if len(fresh) == 1 else ''} untrained")
    return Start(tuple(shared), said)


def _check_images(stage: Stage, metadata: Mapping[str, Any], plan: Plan) -> None:
    """Refuse weights that saw images made in another way; every difference is named."""
    assert stage.init is not None
    theirs, mine = dict(metadata.get("plan", {})), asdict(plan)
    fields = ("dims", "axes", "spacing_mm", "channels")
    differing = [f for f in fields if hash_of(theirs.get(f)) != hash_of(mine[f])]
    other_number = _channels(metadata) != len(plan.channels)
    if other_number and stage.adapt_channels:
        differing.remove("channels")
    if not differing:
        return
    files = stage.init / "plan.yaml", stage.plan or "made from this run's cases"
    advice = (
        f"Train with its plan (--plan {files[0]}), or pre-train with this run's --labels, --test and --seed."
    )
    if other_number and not stage.adapt_channels:
        alone = differing == ["channels"]
        advice = "--adapt-channels spreads its first convolution over ours." + ("" if alone else f" {advice}")
    lines = "".join(f"\n  {f}: {_written(theirs.get(f))} and {_written(mine[f])}" for f in differing)
    raise UsageError(
        f"--init {stage.init}: its weights saw other images. Its plan ({files[0]}) and this run's ({files[1]}) differ "
        f"in{lines}\n{advice}"
    )


def _written(value: Any) -> str:
    """Write a value of a plan on one line, from Python and from JSON alike."""
    return json.dumps(value).replace('"', "")


def _check_cases(init: Path, metadata: Mapping[str, Any], stage: Stage) -> list[str]:
    """Refuse weights that learned from labels held out here; say what else they have seen.

    Cases are known again by their names in the same data set, and by their image files in any.
    """
    aside = (*stage.selection.test, *stage.validation)
    files, same = image_hashes(aside), metadata.get("data_name") == stage.dataset.name

    def held_out(names: str, hashes: str) -> list[str]:
        named, found = set(metadata.get(names, []) if same else ()), set(metadata.get(hashes, []))
        return sorted(name for name, own in files.items() if name in named or found & set(own))

    used, seen = held_out("labels_used", "label_hashes"), held_out("images_used", "image_hashes")
    if used:
        raise UsageError(
            f"--init {init}: it learned from the labels of {len(used)} cases that this run holds out "
            f"({', '.join(used[:3])}). Pre-train with the same --test, --seed and --labels."
        )
    said = []
    beyond = set(metadata.get("labels_used", [])) - {case.name for case in stage.selection.labelled}
    if same and beyond:
        said.append(
            f"{init} learned from the labels of {len(beyond)} cases outside this run's budget: "
            "compare it with runs of that budget only."
        )
    if seen:
        said.append(
            f"{init} has seen the images (not the labels) of {len(seen)} cases that are held out here."
        )
    elif not same and aside:
        known = "image_hashes" in metadata
        said.append(
            f"{init} was trained on {metadata.get('data_name')}, this run on {stage.dataset.name}: "
            + (
                "no image file that is held out here is among its own"
                if known
                else "whether it has seen a case that is held out here, or its label, could not be checked"
            )
        )
    return said


def _parts(exports: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Add the encoder and decoder of a segmentation network to what a method exports."""
    parts = dict(exports)
    for name in ("encoder", "decoder"):
        inner = getattr(parts.get("segmenter"), name, None)
        if isinstance(inner, nn.Module):
            parts[name] = inner
    return parts


def _part_states(states: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """Do the same for weights on disk."""
    parts = {name: dict(state) for name, state in states.items()}
    for name in ("encoder", "decoder"):
        inner = {
            key.removeprefix(f"{name}."): value
            for key, value in parts.get("segmenter", {}).items()
            if key.startswith(f"{name}.")
        }
        if inner:
            parts[name] = inner
    return parts


def _adapted(
    state: Mapping[str, Tensor], module: nn.Module, *, seen: int, now: int
) -> tuple[dict[str, Tensor], list[str]]:
    """Spread kernels that look at the image: their mean, so that equal channels give the same sum.

    Args:
        state: tensors of the other run.
        module: what they go into.
        seen, now: image channels of the other run and of this one; kernels of other widths stay as they are.

    Returns:
        All tensors, and the names of those that were spread.
    """
    own, adapted, spread = module.state_dict(), dict(state), []
    for name, value in state.items():
        wanted = own.get(name)
        if seen == now or wanted is None or wanted.ndim < 3 or wanted.ndim != value.ndim:
            continue
        ends = value.shape[:1] + value.shape[2:]
        if (value.shape[1], wanted.shape[1]) == (seen, now) and wanted.shape[:1] + wanted.shape[2:] == ends:
            adapted[name] = (value.mean(1, keepdim=True) * (seen / now)).expand(wanted.shape).clone()
            spread.append(name)
    return adapted, spread


def _channels(metadata: Mapping[str, Any]) -> int:
    """Return how many image channels weights were trained on."""
    return len(metadata.get("plan", {}).get("channels", []))


def sources(
    recipe: Recipe,
    plan: Plan,
    *,
    labelled: Sequence[StoredCase],
    unlabelled: Sequence[StoredCase],
    one_plane: bool,
    device: torch.device,
    seed: int,
    processes: Processes = ALONE,
) -> Callable[[int], Source]:
    """Return what a method draws its batches from: step number -> the loaded cases, seen from that step.

    Args:
        recipe, plan: of the run.
        labelled, unlabelled: loaded cases.
        one_plane: a step draws slices of one of the plan's planes, the next step of the next, so that positions and
            overlaps within a step mean something; otherwise every step draws from all planes.
        device, seed, processes: of the run.
    """
    turns = [(order, [order]) for order in plan.planes] if one_plane else [(STRAIGHT, plan.planes)]
    cuts = [(order, in_planes(labelled, own), in_planes(unlabelled, own)) for order, own in turns]

    def source(step: int) -> Source:
        order, known, others = cuts[step % len(cuts)]
        return Source(
            labelled=known,
            unlabelled=others,
            order=order,
            patch=plan.patch,
            batch=plan.batch,
            classes=len(plan.label_values),
            mirror=plan.mirror,
            turned=plan.turned,
            augment=recipe.augment,
            sampling=recipe.sampling,
            device=device,
            seed=seed,
            step=step,
            rank=processes.rank,
            world=processes.world,
        )

    return source


def eaten(method: Method, source: Source) -> str:
    """Return for example ``2D patches 112 x 112, batch 16``: what the method draws, which need not be the plan's.

    Args:
        method: any.
        source: of the first step. Methods of several stages may draw more or fewer later.
    """
    dims = len(source.patch)
    images = [x for x in method.batch(source) if isinstance(x, Tensor) and x.ndim == dims + 2]
    if not images:
        return f"{dims}D"
    sides = " x ".join(map(str, images[0].shape[2:]))
    return f"{dims}D patches {sides}, batch {len(images[0])}"


def checkup_of(stage: Stage, plan: Plan, labelled: Sequence[StoredCase]) -> Checkup:
    """Return what watches a pre-training; it probes the budget's labels where a budget was named."""
    few = labelled[:PROBED_CASES] if stage.probes else []

    def probed(exports: Mapping[str, nn.Module]) -> float | None:
        return probe(
            exports,
            few,
            patch=plan.patch,
            classes=len(plan.label_values),
            device=stage.device,
            seed=stage.seed,
        )

    loop = stage.recipe.loop
    return Checkup(probed if few else None, patience=loop.patience, stop_on_collapse=loop.stop_on_collapse)
