"""Weights on disk: named parts in one safetensors file with readable metadata, and loading that counts.

Nothing here can run code from a file: safetensors holds numbers and a JSON header.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from handful.artefacts import atomic_path
from handful.errors import DataError, RunError, UsageError

ENOUGH = 0.99
"""Share of a network's tensors that loaded weights must fill unless a partial load was asked for."""

_KEY = "handful"


class LoadReport(NamedTuple):
    """What ``load_into`` did, tensor by tensor.

    Attributes:
        matched: loaded.
        missing: in the network but not in the weights; left as they were.
        unexpected: in the weights but not in the network; ignored.
        shape_mismatch: in both, with different shapes; left as they were.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    shape_mismatch: tuple[str, ...]

    def __str__(self) -> str:
        total = len(self.matched) + len(self.missing) + len(self.shape_mismatch)
        text = f"loaded {len(self.matched)} of {total} tensors"
        for words, names in (
            ("missing in the weights", self.missing),
            ("of another shape", self.shape_mismatch),
            ("not in the network", self.unexpected),
        ):
            if names:
                text += f"; {len(names)} {words} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        return text


def save_weights(path: Path, parts: Mapping[str, nn.Module], metadata: Mapping[str, Any]) -> None:
    """Write the tensors of each part, as ``part.name``, and the metadata, atomically.

    A tensor that occurs under several names, because parts overlap or a network registers it twice, is written once.

    Args:
        path: ends in ``.safetensors``.
        parts: part name -> module.
        metadata: anything JSON can hold: architecture, plan, label names.

    Raises:
        UsageError: a part's name has a dot in it.
        RunError: the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}  # safetensors refuses tensors that share memory
    first_name: dict[tuple[object, ...], str] = {}
    for part, module in parts.items():
        if not part or "." in part:
            raise UsageError(
                f"the name of a part of the weights must be a word without dots, found '{part}'."
            )
        for name, tensor in module.state_dict().items():
            key = f"{part}.{name}"
            memory = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            if tensor.numel() and first_name.setdefault(memory, key) != key:
                aliases[key] = first_name[memory]
            else:
                tensors[key] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    header = {"parts": list(parts), "aliases": aliases, "metadata": metadata}
    text = {_KEY: json.dumps(header, allow_nan=False)}
    with atomic_path(path) as temporary:
        try:
            save_file(tensors, temporary, metadata=text)
        except SafetensorError as error:
            raise RunError(f"{path} could not be written: {error}. Free some space and try again.") from None


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata that was saved with the weights, without reading the weights.

    Raises:
        DataError: the file is missing, damaged, or not a file of weights of this tool.
    """
    return _read(path, tensors=False)[1]


def load_weights(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Return ``(parts, metadata)``: the tensors of each part by name, on the CPU, and what was saved with them.

    Raises:
        DataError: the file is missing, damaged, or not a file of weights of this tool.
    """
    return _read(path, tensors=True)


def load_into(module: nn.Module, state: Mapping[str, Tensor], *, partial: bool = False) -> LoadReport:
    """Copy the tensors of ``state`` into those of ``module`` with the same name and shape, and count.

    Args:
        module: changed in place; keeps its device, precision and memory layout.
        state: tensors by name, as ``state_dict`` gives them.
        partial: whether less than 99 % of the module's tensors may be filled (at least one must be).

    Raises:
        DataError: too few tensors match; nothing was changed.
    """
    own = module.state_dict()
    shared = [name for name in own if name in state]
    report = LoadReport(
        matched=tuple(name for name in shared if own[name].shape == state[name].shape),
        missing=tuple(name for name in own if name not in state),
        unexpected=tuple(name for name in state if name not in own),
        shape_mismatch=tuple(name for name in shared if own[name].shape != state[name].shape),
    )
    if len(report.matched) < (1 if partial else ENOUGH * len(own)):
        advice = (
            "These are weights of another network."
            if partial
            else "If this is what you want, ask for a partial load."
        )
        raise DataError(f"the weights do not fit the network: {report}. {advice}")
    with torch.no_grad():
        for name in report.matched:
            own[name].copy_(state[name])
    return report


def _read(path: Path, *, tensors: bool) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    if not path.is_file():
        raise DataError(f"{path} does not exist.")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(_KEY, "null"))
            if header is None:
                raise DataError(
                    f"{path} is a safetensors file, but not weights saved by this tool (it has no metadata)."
                )
            parts: dict[str, dict[str, Tensor]] = {part: {} for part in header["parts"]}
            metadata: dict[str, Any] = header["metadata"]
            aliases: dict[str, str] = header["aliases"]
            for key in [*file.keys(), *aliases] if tensors else ():
                part, _, name = key.partition(".")
                parts[part][name] = file.get_tensor(aliases.get(key, key))
    except (SafetensorError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is damaged and cannot be read as weights: {error}. Restore it or train again."
        ) from None
    return parts, metadata
