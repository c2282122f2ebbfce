"""From an architecture, a mapping that JSON can hold, to the network it describes.

The mapping is stored with every file of weights, so that weights are enough to build their network again.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from handful.errors import UsageError, nearest
from handful.networks.presets import PRESETS, preset
from handful.networks.unet import UNet
from handful.networks.vnet import VNet

BUILT_IN: dict[str, type[nn.Module]] = {"unet": UNet, "vnet": VNet}


def build_network(architecture: Mapping[str, Any]) -> nn.Module:
    """Build the network that ``architecture`` describes.

    Args:
        architecture: ``name`` and the arguments. The name is ``unet`` or ``vnet``; ``preset:`` and a published
            network, for example ``preset:pcl-32``; or the dotted path of any ``torch.nn.Module``, for example
            ``monai.networks.nets.DynUNet``, imported only then.

    Raises:
        UsageError: the name does not exist, or the network does not take these arguments.

    Example:
        >>> net = build_network({"name": "preset:pcl-32", "in_channels": 1, "classes": 8})
        >>> sum(p.numel() for p in net.parameters())
        7763584
    """
    arguments = dict(architecture)
    name = arguments.pop("name", None)
    known = [*BUILT_IN, *(f"preset:{key}" for key in PRESETS)]
    if not isinstance(name, str):
        raise UsageError(f"an architecture needs a 'name'; {nearest('', known)}, or a dotted path.")
    if name in BUILT_IN:
        return _call(BUILT_IN[name], arguments, name)
    if name.startswith("preset:"):
        return _call(preset, {"name": name.removeprefix("preset:"), **arguments}, name)
    if "." in name:
        return _call(_import(name), arguments, name)
    raise UsageError(f"there is no network '{name}'; {nearest(name, known)}, or a dotted path.")


def unet_architecture(
    *, dims: int, in_channels: int, classes: int, widths: Sequence[int | Sequence[int]], **others: Any
) -> dict[str, Any]:
    """Return the architecture of a ``UNet`` as plain values; ``others`` are its remaining arguments.

    Example:
        >>> unet_architecture(dims=2, in_channels=1, classes=3, widths=(16, 32), norm="batch")["norm"]
        'batch'
    """
    sizes = {"dims": dims, "in_channels": in_channels, "classes": classes, "widths": widths, **others}
    _check_arguments(UNet, sizes, "unet")
    return {"name": "unet", **{key: _plain(value) for key, value in sizes.items()}}


def _call(make: Callable[..., Any], arguments: dict[str, Any], name: str) -> nn.Module:
    _check_arguments(make, arguments, name)
    network: nn.Module = make(**arguments)
    return network


def _check_arguments(make: Callable[..., Any], arguments: Mapping[str, Any], name: str) -> None:
    signature = inspect.signature(make)
    try:
        signature.bind(**arguments)
    except TypeError as error:
        takes = ", ".join(signature.parameters)
        raise UsageError(
            f"the network {name} does not take these arguments: {error}. It takes: {takes}."
        ) from None


def _import(path: str) -> type[nn.Module]:
    module_name, _, attribute = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UsageError(
            f"the network {path} cannot be imported: {error}. Is its package installed?"
        ) from None
    found = getattr(module, attribute, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        networks = [
            key
            for key, value in vars(module).items()
            if isinstance(value, type) and issubclass(value, nn.Module)
        ]
        raise UsageError(
            f"{module_name} has no torch.nn.Module '{attribute}'; {nearest(attribute, networks)}"
        )
    return found


def _plain(value: Any) -> Any:
    """Turn tuples into lists, at every depth, as JSON would."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(inner) for inner in value]
    return value
