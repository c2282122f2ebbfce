"""The streamed contrast on a GPU: one kernel for the denominators, one for the gradient, no atomic additions.

Each program keeps a block of rows and runs over the columns, so that the sums come out in the same order every time.
The weight u of a key that is no anchor is 0: for such rows only the columns of anchors are visited.

Triton is imported if it is there (it comes with the CUDA builds of torch); the plain tiles of ``streamed`` are used
otherwise, for float64 and for very cold temperatures. Before its first use on a device the kernels are compared with
the plain tiles; should they disagree, a warning says so and the plain tiles are used.
"""

# The kernels' annotations are read as text: their language may not be installed.
# mypy: disable-error-code="name-defined"
from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from handful.losses.streamed import LOG2_E, partial_gradient, partial_sums

try:
    triton: Any = import_module("triton")
    tl: Any = import_module("triton.language")
except ImportError:
    triton = tl = None

ROWS, COLUMNS = 128, 64
# an embedding lies in registers as a whole; wider ones take the plain tiles
WIDEST = 256


def usable(z: Tensor, *, rounded: bool) -> bool:
    """Return whether the kernels can take these embeddings, and are right on this device."""
    if triton is None or not z.is_cuda or z.dtype != torch.float32 or z.shape[1] > WIDEST:
        return False
    return _agrees(z.device, _padded(z.shape[1]), rounded)


def log_denominators(z: Tensor, anchors: int, scale: float, rounded: bool) -> Tensor:
    """Return log sum_{k != a} exp(scale z_a.z_k) for the first ``anchors`` rows of z (N, E), float32."""
    z = (z.bfloat16() if rounded else z).contiguous()
    out = torch.empty(anchors, dtype=torch.float32, device=z.device)
    grid = (triton.cdiv(anchors, ROWS),)
    _kernel(_sums)[grid](
        z,
        out,
        len(z),
        anchors,
        z.shape[1],
        scale * LOG2_E,
        WIDTH=_padded(z.shape[1]),
        ROWS=ROWS,
        COLUMNS=COLUMNS,
        PRECISION=_precision(rounded),
        num_warps=8,
    )
    return out.log_()


def gradient(z: Tensor, log_d: Tensor, grad: Tensor, scale: float, rounded: bool) -> Tensor:
    """Return the gradient (N, E) of sum(grad * log_d), float32."""
    weight = torch.zeros(len(z), dtype=torch.float32, device=z.device)
    weight[: len(log_d)] = grad * torch.exp(-log_d)
    out = torch.empty(z.shape, dtype=torch.float32, device=z.device)
    z = (z.bfloat16() if rounded else z).contiguous()
    grid = (triton.cdiv(len(z), ROWS),)
    _kernel(_gradient)[grid](
        z,
        weight,
        out,
        len(z),
        len(log_d),
        z.shape[1],
        scale * LOG2_E,
        scale,
        WIDTH=_padded(z.shape[1]),
        ROWS=ROWS,
        COLUMNS=COLUMNS,
        PRECISION=_precision(rounded),
        num_warps=8,
    )
    return out


# The kernels' sources; arguments in capitals are constants of the compilation.
def _sums(
    z: Any,
    out: Any,
    n: Any,
    anchors: Any,
    width: Any,
    scale: Any,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    e = tl.arange(0, WIDTH)
    inside = (i < n)[:, None] & (e < width)[None, :]
    zi = tl.load(z + i.to(tl.int64)[:, None] * width + e[None, :], mask=inside, other=0.0)
    total = tl.zeros([ROWS], dtype=tl.float32)
    for start in range(0, n, COLUMNS):
        j = start + tl.arange(0, COLUMNS)
        there = (j < n)[:, None] & (e < width)[None, :]
        zj = tl.load(z + j.to(tl.int64)[:, None] * width + e[None, :], mask=there, other=0.0)
        s = tl.dot(zi, tl.trans(zj), input_precision=PRECISION)
        pair = (i[:, None] != j[None, :]) & (j < n)[None, :]
        total += tl.sum(tl.where(pair, tl.exp2(s * scale), 0.0), 1)
    tl.store(out + i, total, mask=i < anchors)


def _gradient(
    z: Any,
    weight: Any,
    out: Any,
    n: Any,
    anchors: Any,
    width: Any,
    scale2: Any,
    scale: Any,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    first = tl.program_id(0) * ROWS
    i = first + tl.arange(0, ROWS)
    e = tl.arange(0, WIDTH)
    inside = (i < n)[:, None] & (e < width)[None, :]
    place = i.to(tl.int64)[:, None] * width + e[None, :]
    zi = tl.load(z + place, mask=inside, other=0.0)
    ui = tl.load(weight + i, mask=i < n, other=0.0)
    total = tl.zeros([ROWS, WIDTH], dtype=tl.float32)
    # rows that are keys only meet anchors only
    stop = tl.where(first < anchors, n, anchors)
    for start in range(0, stop, COLUMNS):
        j = start + tl.arange(0, COLUMNS)
        there = (j < n)[:, None] & (e < width)[None, :]
        zj = tl.load(z + j.to(tl.int64)[:, None] * width + e[None, :], mask=there, other=0.0)
        uj = tl.load(weight + j, mask=j < n, other=0.0)
        s = tl.dot(zi, tl.trans(zj), input_precision=PRECISION)
        pair = (i[:, None] != j[None, :]) & (j < n)[None, :]
        g = tl.where(pair, tl.exp2(s * scale2) * (ui[:, None] + uj[None, :]), 0.0)
        total += tl.dot(g.to(zj.dtype), zj, input_precision=PRECISION)
    tl.store(out + place, total * scale, mask=inside)


@cache
def _kernel(source: Callable[..., None]) -> Any:
    return triton.jit(source)


@cache
def _agrees(device: torch.device, width: int, rounded: bool) -> bool:
    """Compare the kernels with the plain tiles on a few hundred embeddings."""
    generator = torch.Generator().manual_seed(0)
    z = torch.nn.functional.normalize(torch.randn(300, width, generator=generator)).to(device)
    grad = torch.rand(170, generator=generator).to(device)
    tolerance = 2e-2 if rounded else 1e-4
    try:
        expected = partial_sums(z, 170, 10.0, rounded)
        slope = partial_gradient(z, expected, grad, 10.0, rounded)
        log_d = log_denominators(z, 170, 10.0, rounded)
        found = gradient(z, expected, grad, 10.0, rounded)
    except Exception as error:  # a compiler's error may be of any kind; the plain tiles are always there
        reason = f"{type(error).__name__}: {error}"
    else:
        if (log_d - expected).abs().max() < tolerance and (found - slope).norm() < tolerance * slope.norm():
            return True
        reason = "their result differs"
    warnings.warn(
        f"The GPU kernels of the pixel contrast are not used on {device} ({reason}); plain tiles take their place, "
        "which is slower and gives the same loss.",
        stacklevel=2,
    )
    return False


def _precision(rounded: bool) -> str:
    """Return how the tensor cores multiply: three TF32 products keep what float32 has."""
    return "tf32" if rounded else "tf32x3"


def _padded(width: int) -> int:
    """Return the power of two, 16 or more, that holds the width."""
    return max(16, 1 << (width - 1).bit_length())
