"""Contrast N embeddings, each with all others, in memory linear in N: the N x N similarities pass by in tiles.

The loss of anchor a with class c, P = n_c - 1 positives and unit embeddings z is (t the temperature)

    l_a = log D_a - 1/P sum_{p in c, p != a} z_a.z_p / t,      D_a = sum_{k != a} exp(z_a.z_k / t)

* The positives need no pairs: with the class sum S_c, sum_{a in c} sum_{p != a} z_a.z_p = |S_c|^2 - sum_a |z_a|^2.
* D needs every pair once: a tile of similarities is symmetric, so one exponential serves both directions.
* The gradient is dz = G z / t with G_ij = exp(z_i.z_j / t) (g_i / D_i + g_j / D_j), where g = dL / d log D; the tiles
  are computed again instead of kept.
* |z_i.z_j| <= 1, so for usual temperatures nothing can overflow and no running maximum is needed.

Where few embeddings are anchors, and for other forms of the loss, ``streamed_rows`` goes over whole rows instead.

Embeddings that are keys only (background) come last: among themselves they have no tiles at all.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from handful.losses import streamed_rows
from handful.losses.streamed_rows import LARGEST_SCALE, Form

Products = Literal["float32", "bfloat16"]
LogSums = Callable[[Tensor, int, float, bool], Tensor]

# 768 x 768 float32 are 2.4 MB: small enough for the caches of two cores, large enough that calls cost nothing.
TILE = 768
# On a GPU every tile is a handful of kernel launches, so tiles are large: 4096 x 4096 float32 are 64 MB.
TILE_CUDA = 4096
# Up to this share of anchors one pass over whole rows, which keeps what it computed, is faster than two over tiles.
FEW = 0.3
LOG2_E = 1 / math.log(2)


def supervised_contrast(
    z: Tensor,
    group: Tensor,
    anchor: Tensor,
    *,
    temperature: float,
    products: Products = "float32",
    form: Form = "outside",
    log_sums: LogSums | None = None,
) -> Tensor | None:
    """Return the mean over anchors of the supervised contrast of N embeddings, or None if there is nothing to contrast.

    Args:
        z: (N, E) embeddings on the unit sphere, float32 or float64; the gradient is right along the sphere.
        group: (N,) integers; equal numbers are positives of each other.
        anchor: (N,) bool, the same for all embeddings of a group. The others are keys only.
        temperature: positive.
        products: "bfloat16" rounds the factors of the products, sums in float32.
        form: as in ``streamed_rows``.
        log_sums: (z, anchors, 1 / temperature, rounded) -> log D of the first rows; by default on this process.
    """
    member, size = torch.unique(group, return_inverse=True, return_counts=True)[1:]
    positives = size[member] - 1
    counted = anchor & (positives > 0)
    anchors = int(counted.sum())
    if anchors == 0 or (len(size) == 1 and form in ("printed", "negatives")):
        return None
    scale, rounded = 1 / temperature, products == "bfloat16"
    if form != "outside":
        order = member.argsort(stable=True)
        rows = counted[order].nonzero().squeeze(1)
        return streamed_rows.contrast(
            z.index_select(0, order), rows, member[order], scale=scale, form=form, rounded=rounded
        )
    if log_sums is None and _few(z, anchors, scale):
        rows = counted.nonzero().squeeze(1)
        return streamed_rows.contrast(z, rows, member, scale=scale, rounded=rounded)
    order = torch.cat([counted.nonzero(), (~counted).nonzero()]).squeeze(1)
    z, member = z.index_select(0, order), member[order][:anchors]
    log_d = (log_sums or log_denominators)(z, anchors, scale, rounded)
    first = z[:anchors]
    total = z.new_zeros(len(size), z.shape[1]).index_add(0, member, first)
    # the lengths are constant on the sphere: their gradient would only point off it
    length = z.new_zeros(len(size)).index_add(0, member, first.detach().square().sum(1))
    pull = (total.square().sum(1) - length) / (size - 1).clamp(min=1)
    loss: Tensor = (log_d.sum() - scale * pull.sum()) / anchors
    return loss


def _few(z: Tensor, anchors: int, scale: float) -> bool:
    """Return whether one pass over whole rows is faster than tiles."""
    if z.device.type != "cpu":
        return False
    # the running log-sums of cold tiles cost more than all else
    return scale > LARGEST_SCALE or (z.requires_grad and torch.is_grad_enabled() and anchors <= FEW * len(z))


def log_denominators(z: Tensor, anchors: int, scale: float, rounded: bool = False) -> Tensor:
    """Return log sum_{k != a} exp(scale z_a.z_k) for the first ``anchors`` rows a of z, differentiable in z.

    Args:
        z: (N, E) unit embeddings, N >= 2.
        anchors: 1..N.
        scale: 1 / temperature.
        rounded: whether the products' factors are rounded to bfloat16 (they are summed in float32).
    """
    result: Tensor = torch.ops.handful.log_denominators(z, anchors, scale, rounded)
    return result


class Tile(NamedTuple):
    """A rectangle of the matrix of similarities, rows before columns; ``mutual`` when its columns are anchors too."""

    rows: slice
    columns: slice
    diagonal: bool
    mutual: bool


def tiles(n: int, anchors: int, *, size: int, share: tuple[int, int] = (0, 1)) -> Iterator[Tile]:
    """Yield tiles that hold every pair of an anchor with another embedding exactly once.

    Args:
        n: number of embeddings.
        anchors: how many of them, the first ones, are anchors.
        size: side of a tile.
        share: (k, m) yields every m-th tile, from the k-th on: the part of process k of m.
    """
    number = 0
    for top in range(0, anchors, size):
        rows = slice(top, min(top + size, anchors))
        starts = [*range(top, anchors, size), *range(anchors, n, size)]
        for left in starts:
            mutual = left < anchors
            if number % share[1] == share[0]:
                columns = slice(left, min(left + size, anchors if mutual else n))
                yield Tile(rows, columns, left == top, mutual)
            number += 1


def partial_sums(
    z: Tensor, anchors: int, scale: float, rounded: bool, share: tuple[int, int] = (0, 1)
) -> Tensor:
    """Return the log of a share's part of the denominators, -inf where it has no part."""
    z = _factors(z, rounded)
    size = _tile_size(z)
    buffer = z.new_empty(min(size, anchors) * min(size, len(z)))
    cold = scale > LARGEST_SCALE
    sums = z.new_full((anchors,), -math.inf if cold else 0.0)
    for tile in tiles(len(z), anchors, size=size, share=share):
        rows, columns, diagonal, mutual = tile
        e = _product(z, tile, scale if cold else scale * LOG2_E, buffer)
        if cold:
            if diagonal:
                e.fill_diagonal_(-math.inf)
            sums[rows] = torch.logaddexp(sums[rows], e.logsumexp(1))
            if mutual and not diagonal:
                sums[columns] = torch.logaddexp(sums[columns], e.logsumexp(0))
        else:
            e.exp2_()
            if diagonal:
                e.fill_diagonal_(0)
            sums[rows] += e.sum(1)
            if mutual and not diagonal:
                sums[columns] += e.sum(0)
    return sums if cold else sums.log_()


def partial_gradient(
    z: Tensor, log_d: Tensor, grad: Tensor, scale: float, rounded: bool, share: tuple[int, int] = (0, 1)
) -> Tensor:
    """Return a share's part of the gradient (N, E) of sum(grad * log_d)."""
    z = _factors(z, rounded)
    anchors = len(log_d)
    size = _tile_size(z)
    area = min(size, anchors) * min(size, len(z))
    buffer, weights = z.new_empty(area), z.new_empty(area)
    cold = scale > LARGEST_SCALE
    inverse = z.new_zeros(anchors) if cold else grad * torch.exp(-log_d)
    row_part = torch.zeros_like(z[:anchors])
    # what comes from and goes to keys that are no anchors is weighted once, not in every tile
    with_keys = anchors < len(z) and not cold
    weighted = inverse[:, None] * z[:anchors] if with_keys else row_part
    key_part = torch.zeros_like(row_part) if with_keys else row_part
    # transposed, so that both products of a tile read it along its rows; a little wider than N, because rows a power
    # of two apart share the same few places of a cache
    column_part = z.new_zeros(z.shape[1], len(z) + 24)[:, : len(z)]
    for tile in tiles(len(z), anchors, size=size, share=share):
        rows, columns, diagonal, mutual = tile
        e = _product(z, tile, scale if cold else scale * LOG2_E, buffer)
        if cold:
            if diagonal:
                e.fill_diagonal_(-math.inf)
            g = grad[rows, None] * torch.exp(e - log_d[rows, None])
            if mutual:
                g += grad[columns] * torch.exp(e - log_d[columns])
        else:
            e.exp2_()
            if diagonal:
                e.fill_diagonal_(0)
            if not mutual:
                key_part[rows].addmm_(e, z[columns])
                column_part[:, columns].addmm_(weighted[rows].T, e)
                continue
            w = torch.add(inverse[rows, None], inverse[columns], out=weights[: e.numel()].view(e.shape))
            g = e.mul_(w)
        row_part[rows].addmm_(g, z[columns])
        if not diagonal:
            column_part[:, columns].addmm_(z[rows].T, g)
    if with_keys:
        row_part.addcmul_(inverse[:, None], key_part)
    result = torch.empty_like(z)
    torch.mul(column_part.T, scale, out=result)
    result[:anchors].add_(row_part, alpha=scale)
    return result


def _tile_size(z: Tensor) -> int:
    return TILE if z.device.type == "cpu" else TILE_CUDA


def _factors(z: Tensor, rounded: bool) -> Tensor:
    """Return the embeddings to multiply: products of bfloat16 numbers are exact in float32."""
    return z.bfloat16().to(z.dtype) if rounded else z.contiguous()


def _product(z: Tensor, tile: Tile, scale: float, buffer: Tensor) -> Tensor:
    """Return scale z_i.z_j for a tile, written into the buffer."""
    a, b = z[tile.rows], z[tile.columns]
    out = buffer[: len(a) * len(b)].view(len(a), len(b))
    # beta = 0: what lies in the buffer is not read
    return torch.addmm(out, a, b.T, beta=0, alpha=scale, out=out)


def _forward(z: Tensor, anchors: int, scale: float, rounded: bool) -> Tensor:
    with torch.autocast(z.device.type, enabled=False):
        if _has_kernels(z, scale, rounded):
            from handful.losses import streamed_cuda

            return streamed_cuda.log_denominators(z, anchors, scale, rounded)
        return partial_sums(z, anchors, scale, rounded)


def _backward(z: Tensor, log_d: Tensor, grad: Tensor, scale: float, rounded: bool) -> Tensor:
    grad = grad.contiguous()
    with torch.autocast(z.device.type, enabled=False):
        if _has_kernels(z, scale, rounded):
            from handful.losses import streamed_cuda

            return streamed_cuda.gradient(z, log_d, grad, scale, rounded)
        return partial_gradient(z, log_d, grad, scale, rounded)


def _has_kernels(z: Tensor, scale: float, rounded: bool) -> bool:
    if not z.is_cuda or scale > LARGEST_SCALE:
        return False
    from handful.losses import streamed_cuda

    return streamed_cuda.usable(z, rounded=rounded)


def _save(ctx: Any, inputs: tuple[Tensor, int, float, bool], output: Tensor) -> None:
    z, _, ctx.scale, ctx.rounded = inputs
    ctx.save_for_backward(z, output)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    streamed_rows.refuse_a_graph()
    z, log_d = ctx.saved_tensors
    return (
        torch.ops.handful.log_denominators_backward(z, log_d, grad, ctx.scale, ctx.rounded),
        None,
        None,
        None,
    )


# Registered as operators, so that torch.compile sees one node and does not unroll thousands of tiles. The plain
# registration is used because torch.library.custom_op imports the whole compiler (seconds) on its first call.
_LIBRARY: Any = torch.library.Library("handful", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define("log_denominators(Tensor z, int anchors, float scale, bool rounded) -> Tensor")
_LIBRARY.define(
    "log_denominators_backward(Tensor z, Tensor log_d, Tensor grad, float scale, bool rounded) -> Tensor"
)
_LIBRARY.impl("log_denominators", _forward, "CompositeExplicitAutograd")
_LIBRARY.impl("log_denominators_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake(
    "handful::log_denominators", lambda z, anchors, scale, rounded: z.new_empty(anchors), lib=_LIBRARY
)
torch.library.register_fake(
    "handful::log_denominators_backward",
    lambda z, log_d, grad, scale, rounded: torch.empty_like(z),
    lib=_LIBRARY,
)
torch.library.register_autograd(
    "handful::log_denominators", _differentiate, setup_context=_save, lib=_LIBRARY
)
