"""Where to compute and how precisely: chosen from what the machine has, or as told."""

import logging
from typing import Any

import torch
from lightning_fabric import Fabric

from handful.errors import UsageError


def choose_device(name: str) -> torch.device:
    """Return the device called ``name``; ``auto`` takes CUDA, then MPS, then the CPU."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name}: expected auto, cpu, cuda, cuda:1 or mps.") from None
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise UsageError(
                f"--device {name}: this machine has {count} CUDA devices; use --device auto or cpu."
            )
        return torch.device("cuda", device.index or 0)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("--device mps: this machine has no Metal device; use --device auto or cpu.")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"--device {name}: expected auto, cpu, cuda, cuda:1 or mps.")
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """Return Fabric's name of a precision; ``auto`` takes bfloat16 autocast where the processor multiplies it natively.

    On a CPU with AVX-512 BF16 or AMX a bfloat16 step takes about half the time of a float32 step
    (benchmarks/training.py); elsewhere it would be emulated and slower.
    """
    known = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
    if name != "auto":
        if name not in known:
            raise UsageError(f"--precision {name}: expected auto, {', '.join(known)}.")
        if name == "fp16" and device.type == "cpu":
            raise UsageError("--precision fp16 needs a GPU; on the CPU use bf16 or 32.")
        return known[name]
    if device.type == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
    if device.type == "cpu" and cpu_multiplies_bfloat16():
        return "bf16-mixed"
    return "32-true"


def make_fabric(device: torch.device, precision: str) -> Fabric:
    """Return Lightning Fabric for one device; what it would print of itself is left to our own lines."""
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    chosen: Any = precision
    return Fabric(
        accelerator=device.type, devices=1 if device.index is None else [device.index], precision=chosen
    )


def cpu_multiplies_bfloat16() -> bool:
    """Say whether this CPU has bfloat16 dot products in hardware (AVX-512 BF16 or AMX)."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, probe)()) for probe in probes if hasattr(torch.cpu, probe))
