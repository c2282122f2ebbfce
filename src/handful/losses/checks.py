"""What every loss asks of its input: floating point, a fitting shape, no NaN, a positive temperature."""

import torch
from torch import Tensor

from handful.errors import NotFinite


def embeddings(name: str, z: Tensor, shape: str) -> Tensor:
    """Return ``z`` in float32 at least (float64 stays), after a look at it.

    Args:
        name: what the caller calls it, for the message.
        z: floating point.
        shape: its axes in words, for example ``"N E"`` or ``"B E *S"``; ``*S`` stands for one axis or more.

    Raises:
        NotFinite: NaN or infinite values.
        ValueError: integers, another number of axes.
    """
    axes = shape.split()
    wanted = f"({', '.join(axes)})"
    if not z.is_floating_point():
        raise ValueError(f"{name} must hold floating point numbers, found {z.dtype}.")
    if (z.ndim < len(axes)) if "*S" in axes else (z.ndim != len(axes)):
        raise ValueError(f"{name} must be {wanted}, found the shape {tuple(z.shape)}.")
    z = z if z.dtype == torch.float64 else z.float()
    # the sum of finite numbers is finite: one number to look at, whatever the size
    if not torch.compiler.is_compiling() and not torch.isfinite(z.detach().sum()):
        bad = (~torch.isfinite(z)).nonzero()
        if len(bad):
            raise NotFinite(
                f"{name} {wanted} of shape {tuple(z.shape)} holds {len(bad)} NaN or infinite values, the first at "
                f"{tuple(bad[0].tolist())}: the network diverged, or an input was not finite."
            )
    return z


def temperature(value: float, name: str = "temperature") -> None:
    """Raise ``ValueError`` unless ``value`` is positive."""
    if not value > 0:
        raise ValueError(f"{name} must be positive, found {value}.")


def same_shape(**tensors: Tensor) -> None:
    """Raise ``ValueError`` unless all have one shape."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"{' and '.join(shapes)} must have the same shape, found {found}.")


def same_width(**tensors: Tensor) -> None:
    """Raise ``ValueError`` unless the last axes are equally long."""
    if len({tensor.shape[-1] for tensor in tensors.values()}) > 1:
        found = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(f"{' and '.join(tensors)} must be equally wide (last axis), found {found}.")


def nothing(*tensors: Tensor) -> Tensor:
    """Return a scalar 0 that depends on every tensor with gradient 0: what a loss is when nothing is left to do."""
    return torch.stack([tensor.flatten()[:0].sum() for tensor in tensors]).sum()
