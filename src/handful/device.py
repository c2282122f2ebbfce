"""Where to compute and how precisely: chosen from what the machine has, or as told. Imports torch."""

import torch

from handful.errors import UsageError

PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
"""What users call a precision, and what Lightning calls it."""


def choose_device(name: str) -> torch.device:
    """Return the device called ``name``; ``auto`` takes CUDA, then MPS, then the CPU.

    Raises:
        UsageError: no such device, or not on this machine.

    Example:
        >>> choose_device("cpu")
        device(type='cpu')
    """
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
    """Return Lightning's name of a precision; ``auto`` takes half precision where it is fast.

    On a CPU with AVX-512 BF16 or AMX a bfloat16 step takes about half the time of a float32 step
    (benchmarks/training.py); elsewhere it would be emulated and slower.

    Raises:
        UsageError: an unknown name, or one the device cannot do.
    """
    if name != "auto":
        if name not in PRECISIONS:
            raise UsageError(f"--precision {name}: expected auto, {', '.join(PRECISIONS)}.")
        if name == "fp16" and device.type == "cpu":
            raise UsageError("--precision fp16 needs a GPU; on the CPU use bf16 or 32.")
        return PRECISIONS[name]
    names = {torch.bfloat16: "bf16", torch.float16: "fp16", None: "32"}
    return PRECISIONS[names[half_precision(device)]]


def half_precision(device: torch.device) -> torch.dtype | None:
    """Return the half precision that is fast on ``device``, or None where none is."""
    if device.type == "cuda":
        # an emulated bfloat16, of cards before Ampere, is slow
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if device.type == "cpu" and cpu_multiplies_bfloat16() else None


def use_threads(threads: int | None) -> None:
    """Let torch compute with so many CPU threads; None leaves its choice.

    Raises:
        UsageError: fewer than one.
    """
    if threads is None:
        return
    if threads < 1:
        raise UsageError(f"--threads must be at least 1, found {threads}.")
    torch.set_num_threads(threads)


def cpu_multiplies_bfloat16() -> bool:
    """Say whether this CPU has bfloat16 dot products in hardware (AVX-512 BF16 or AMX)."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, probe)()) for probe in probes if hasattr(torch.cpu, probe))
