"""Lightning Fabric, the engine of devices, precision and processes."""

import logging
from typing import Any

import torch
from lightning_fabric import Fabric


def make_fabric(device: torch.device, precision: str) -> Fabric:
    """Return Fabric for one device; what it would print of itself is left to our own lines.

    Args:
        device: of ``choose_device``.
        precision: of ``choose_precision``.
    """
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    chosen: Any = precision
    return Fabric(
        accelerator=device.type, devices=1 if device.index is None else [device.index], precision=chosen
    )
