"""Rows of all processes in one tensor, so that a loss sees the whole batch and not one process's share of it."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def gathered(rows: Tensor) -> Tensor:
    """Return the rows (n, *shape) of all processes one after the other, (processes x n, *shape); alone, ``rows``.

    Gradients pass. A loss of gathered rows is the same number on every process; each sends back the gradient with
    respect to its own rows, times the number of processes m. Parameters then get on process r

        m (dL/dz_r) (dz_r/dw)

    and the mean over processes, which DDP takes, is the sum over r of (dL/dz_r) (dz_r/dw): the gradient of one process
    with the whole batch. A mean over a process's own images alone follows the same convention by itself.

    All processes must call it together, with rows of one shape and type, on the device the processes talk through.

    Args:
        rows: embeddings, sums, positions, indices: of any type and shape.

    Example:
        >>> z = torch.randn(4, 8)
        >>> gathered(z) is z  # one process
        True
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows
    result: Tensor = _Gathered.apply(rows)  # type: ignore[no-untyped-call]
    return result


def own_first(rows: Tensor) -> Tensor:
    """Return ``gathered(rows)`` beginning with this process's own, those of the other processes after them."""
    every = gathered(rows)
    return every if every is rows else every.roll(-dist.get_rank() * len(rows), 0)


@torch.no_grad()
def gathered_unequal(rows: Tensor) -> Tensor:
    """Return the rows of all processes, of which each may bring another number; without gradients."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows
    counts = gathered(torch.tensor([len(rows)], device=rows.device)).tolist()
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = gathered(padded).chunk(len(counts)) if max(counts) else ()
    return torch.cat([part[:count] for part, count in zip(parts, counts)]) if parts else rows


class _Gathered(torch.autograd.Function):
    """Concatenate; backward is the own part of the (everywhere equal) gradient, times the number of processes."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.rank, ctx.world = dist.get_rank(), dist.get_world_size()
        rows = rows.contiguous()
        parts = [torch.empty_like(rows) for _ in range(ctx.world)]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        own: Tensor = grads[0].chunk(ctx.world)[ctx.rank] * ctx.world
        return own
