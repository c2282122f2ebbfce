"""Networks as published, to the parameter; each takes its number of input channels and classes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from handful.errors import UsageError, nearest
from handful.networks.unet import UNet
from handful.networks.vnet import VNet


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A published network.

    Attributes:
        network: the class it is an instance of.
        sizes: its arguments, input channels and classes excepted.
        source: authors, year and link.
    """

    network: type[UNet] | type[VNet]
    sizes: Mapping[str, Any]
    source: str


def preset(name: str, *, in_channels: int, classes: int, dims: int | None = None) -> nn.Module:
    """Return the network that ``PRESETS`` describes under ``name``.

    Args:
        name: for example ``pcl-32``.
        in_channels: C.
        classes: K, background included.
        dims: 2 or 3 to have the same network in other dimensions than published.

    Raises:
        UsageError: no such preset; the message lists what exists.
    """
    if name not in PRESETS:
        raise UsageError(f"there is no network preset '{name}'; {nearest(name, list(PRESETS))}")
    found = PRESETS[name]
    sizes = dict(found.sizes) if dims is None else {**found.sizes, "dims": dims}
    return found.network(in_channels=in_channels, classes=classes, **sizes)


def _pcl(width: int) -> Preset:
    return Preset(
        network=UNet,
        sizes={
            "dims": 2,
            "widths": tuple(width * 2**level for level in range(5)),
            "norm": "batch",
            "style": {"bias": True, "down": "pool", "centre": "bare", "head_bias": False},
        },
        source="Zeng et al., 2021, PCL. https://arxiv.org/abs/2106.09157",
    )


PRESETS: dict[str, Preset] = {
    # CHD and MMWHS
    "pcl-32": _pcl(32),
    # ACDC and HVSMR
    "pcl-48": _pcl(48),
    "sscl": Preset(
        network=UNet,
        sizes={
            "dims": 2,
            "widths": (64, 128, 256, 512, 1024),
            "norm": "instance",
            "style": {
                "affine": False,
                "bias": True,
                "down": "pool",
                "centre": "bare_up",
                "decoder_norm": False,
                "idle_head": True,
                "init": "torch",
            },
        },
        source="Hu et al., 2021, SSCL. https://arxiv.org/abs/2109.07407",
    ),
    "mona": Preset(
        network=UNet,
        sizes={
            "dims": 2,
            "widths": (16, 32, 64, 128, 256),
            "norm": "batch",
            "style": {
                "bias": True,
                "down": "pool",
                "up": "linear",
                "skip_first": True,
                "dropout": (0.05, 0.1, 0.2, 0.3, 0.5),
                "head_kernel": 3,
                "init": "torch",
            },
        },
        source="You et al., 2024, MONA, the U-Net of SSL4MIS. https://arxiv.org/abs/2209.13476",
    ),
    "mona-vnet": Preset(
        network=VNet,
        sizes={"dims": 3},
        source="You et al., 2024, MONA, the V-Net of SSL4MIS. https://arxiv.org/abs/2209.13476",
    ),
    "genesis": Preset(
        network=UNet,
        sizes={
            "dims": 3,
            "widths": ((32, 64), (64, 128), (128, 256), (256, 512)),
            "norm": "batch",
            "style": {
                "activation": "relu",
                "bias": True,
                "down": "pool",
                "up": "transpose_wide",
                "init": "torch",
            },
        },
        source="Zhou et al., 2021, Models Genesis (also PCRL, MixCL). https://arxiv.org/abs/2004.07882",
    ),
}
