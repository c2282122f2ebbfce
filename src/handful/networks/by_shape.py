"""Weights for a network whose layers have other names: the encoder's layers are found by order and shape."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from handful.errors import DataError, UsageError
from handful.networks.weights import ENOUGH


class ShapeReport(NamedTuple):
    """What ``load_encoder_by_shape`` did, tensor by tensor.

    Attributes:
        matched: name in the encoder -> name in the network, in order.
        missing: tensors of the encoder without a place in the network.
        untouched: tensors of the network that were left as they were (its decoder, for example).
    """

    matched: dict[str, str]
    missing: tuple[str, ...]
    untouched: tuple[str, ...]

    def __str__(self) -> str:
        text = f"placed {len(self.matched)} of {len(self.matched) + len(self.missing)} tensors of the encoder"
        for words, names in (
            ("without a place", self.missing),
            ("tensors of the network left as they were", self.untouched),
        ):
            if names:
                text += f"; {len(names)} {words} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        return text


def load_encoder_by_shape(
    module: nn.Module, state: Mapping[str, Tensor], *, partial: bool = False
) -> ShapeReport:
    """Copy an encoder into another network, layer by layer in the order of definition, where the shapes agree.

    A layer is a kernel with its bias and the norm that follows it. The encoder must fit one unbroken run of the
    network's layers, every tensor of every layer the same shape, and fit in one place only.

    The same shapes are not yet the same function: strides, pooling, activation, the kind of a norm without running
    statistics, and padding leave no trace in weights. Give one image to both networks and compare the feature maps.

    Args:
        module: changed in place, for example a network of MONAI, or the part of one that is its encoder; it keeps its
            device, precision and memory layout.
        state: tensors by name, as ``handful export RUN --to encoder`` writes them.
        partial: whether less than 99 % of the encoder's tensors may find a place; then the longest run of layers
            that both have is used.

    Raises:
        DataError: too few tensors find a place; nothing was changed.
        UsageError: they fit in more places than one; nothing was changed.

    Example:
        >>> from handful.networks.unet import UNet
        >>> mine = UNet(dims=2, in_channels=1, classes=3, widths=(8, 16)).encoder
        >>> other = torch.nn.ModuleList(mine.levels)
        >>> print(load_encoder_by_shape(other, mine.state_dict()))
        placed 12 of 12 tensors of the encoder
    """
    own = _distinct(module)
    mine, theirs = _layers(state), _layers(own)
    runs = _longest_runs(mine, theirs)
    matched: dict[str, str] = {}
    if runs:
        start, place, length = runs[0]
        for layer, target in zip(mine[start : start + length], theirs[place : place + length]):
            matched |= {name: target.names[role] for role, name in layer.names.items()}
    report = ShapeReport(
        matched,
        tuple(name for name in state if name not in matched),
        tuple(name for name in own if name not in set(matched.values())),
    )
    if len(matched) < (1 if partial else ENOUGH * len(state)):
        advice = (
            "These are weights of another network."
            if partial
            else f"{_difference(mine, theirs, runs)}If this is what you want, ask for a partial load."
        )
        raise DataError(f"the encoder does not fit the network: {report}. {advice}")
    if len(runs) > 1:
        places = ", ".join(theirs[place].names["weight"] for _, place, _ in runs)
        raise UsageError(
            f"the encoder fits the network in {len(runs)} places, beginning at {places}; shapes do not say which is "
            "meant. Give the part of the network that is its encoder."
        )
    with torch.no_grad():
        for name, home in matched.items():
            own[home].copy_(state[name])
    return report


class _Layer(NamedTuple):
    """A kernel and its norm: what each tensor does in it (``weight``, ``norm.bias``, ...) -> its name, its shape."""

    names: dict[str, str]
    shapes: dict[str, torch.Size]


def _distinct(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a network in the order of definition, those with several names under the first one."""
    tensors: dict[str, Tensor] = {}
    seen = set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor
    return tensors


def _layers(tensors: Mapping[str, Tensor]) -> list[_Layer]:
    """Group tensors into kernels with their norms.

    A norm belongs to the first kernel before it of its width that has none yet, so it does not matter whether a
    network defines convolution, norm, convolution, norm, or both convolutions first.
    """
    modules: dict[str, dict[str, str]] = {}
    for name in tensors:
        owner, _, role = name.rpartition(".")
        modules.setdefault(owner, {})[role] = name
    layers: list[_Layer] = []
    waiting: list[_Layer] = []
    for roles in modules.values():
        shapes = {role: tensors[name].shape for role, name in roles.items()}
        if "weight" in shapes and len(shapes["weight"]) > 1:
            layer = _Layer(dict(roles), shapes)
            layers.append(layer)
            waiting.append(layer)
            continue
        widths = {shape for shape in shapes.values() if len(shape) == 1}
        if len(widths) != 1 or not ({"bias", "running_mean"} & set(shapes)):
            continue  # no norm: the slope of an activation, a token
        (width,) = widths
        owners = [layer for layer in waiting if layer.shapes["weight"][:1] == width]
        if owners:
            owners[0].names.update({f"norm.{role}": name for role, name in roles.items()})
            owners[0].shapes.update({f"norm.{role}": shape for role, shape in shapes.items()})
            waiting.remove(owners[0])
    return layers


def _longest_runs(mine: list[_Layer], theirs: list[_Layer]) -> list[tuple[int, int, int]]:
    """Return (start in mine, start in theirs, length) of the longest stretches of equal layers."""
    runs: list[tuple[int, int, int]] = []
    for shift in range(1 - len(mine), len(theirs)):
        length = 0
        for index in range(max(0, -shift), min(len(mine), len(theirs) - shift)):
            same = mine[index].shapes == theirs[index + shift].shapes
            length = length + 1 if same else 0
            if length and (not runs or length >= runs[0][2]):
                runs = [run for run in runs if run[2] == length]
                runs.append((index - length + 1, index - length + 1 + shift, length))
    return runs


def _difference(mine: list[_Layer], theirs: list[_Layer], runs: list[tuple[int, int, int]]) -> str:
    """Say at which layer the two part company."""
    start, place, length = runs[0] if runs else (0, 0, 0)
    index = start + length if start + length < len(mine) else start - 1
    there = place + length if start + length < len(mine) else place - 1
    if not 0 <= index < len(mine):
        return ""
    found = _shapes(theirs[there]) if 0 <= there < len(theirs) else "nothing"
    return f"Where the encoder has {_shapes(mine[index])}, the network has {found}. "


def _shapes(layer: _Layer) -> str:
    inside = ", ".join(f"{role} {tuple(shape)}" for role, shape in layer.shapes.items())
    return f"{layer.names['weight'].removesuffix('.weight')} ({inside})"
