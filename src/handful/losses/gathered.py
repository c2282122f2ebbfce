"""Pixel contrast over the batches of several processes: every pixel of every rank against every other.

Embeddings and labels are gathered (N E numbers), the tiles of the similarities are shared out: each process computes
every m-th tile, and the partial sums and gradients are added up. Nothing of size N x N exists anywhere.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from handful.batches import IGNORE
from handful.losses import checks
from handful.losses.embeddings import unit
from handful.losses.pixel import checked, pixels, strided
from handful.losses.streamed import Products, partial_gradient, partial_sums, supervised_contrast


def pixel_contrast_across_processes(
    z: Tensor,
    labels: Tensor | None,
    *,
    temperature: float,
    stride: int | None = None,
    background: int = 0,
    background_anchors: bool = False,
    ignore: int = IGNORE,
    products: Products = "float32",
    processes: dist.ProcessGroup | None = None,
) -> Tensor:
    """Return ``pixel_contrast`` over the batches of all processes together, the same number on each of them.

    The gradient of each process is that of the common loss with respect to its own embeddings times the number of
    processes, because DDP averages gradients: parameters get the gradient of one process with the whole batch.

    All processes must call it and go backward through it together; batches may differ in size, even in image size.
    Without an initialised process group it is ``pixel_contrast``.

    Args:
        z: (B, V, C, *S) embeddings of this process; C the same everywhere.
        labels: (B, V, *S) integer classes, or None (everywhere None, V >= 2).
        temperature: positive.
        stride: as in ``pixel_contrast``; blocks are contrasted on each process alone.
        background: the class of background.
        background_anchors: whether background pixels are anchors like all others.
        ignore: pixels with this label take no part at all.
        products: as in ``pixel_contrast``.
        processes: which processes; all when None.

    Raises:
        ValueError: as ``pixel_contrast``.

    Example:
        >>> loss = pixel_contrast_across_processes(z, labels, temperature=0.1)  # in every process of torchrun
    """
    z = checked(z, labels, temperature=temperature, products=products)
    if stride is not None:
        z, labels = strided(z, labels, stride)
    several = dist.is_available() and dist.is_initialized()
    rank, world = (dist.get_rank(processes), dist.get_world_size(processes)) if several else (0, 1)
    with torch.autocast(z.device.type, enabled=False):
        pixel, group, anchor = pixels(
            z, labels, background=background, background_anchors=background_anchors, ignore=ignore
        )
        if labels is None:
            # a pixel's own number, different on every process
            group = group * world + rank
        if world > 1:
            counts = _counts(len(pixel), pixel.device, world, processes)
            pixel = _Gathered.apply(unit(pixel), counts, rank, processes)  # type: ignore[no-untyped-call]
            group, anchor = (_gather(value, counts, processes) for value in (group, anchor.long()))
            anchor = anchor.bool()
        else:
            pixel = unit(pixel)
        loss = supervised_contrast(
            pixel,
            group,
            anchor,
            temperature=temperature,
            products=products,
            log_sums=None if world == 1 else _shared_between(rank, world, processes),
        )
    # the gathered pixels keep the graph, and so the common backward pass, on processes that brought none
    return checks.nothing(pixel) if loss is None else loss


class _Gathered(torch.autograd.Function):
    """Rows of all processes; backward returns the own rows of the (everywhere equal) gradient."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, counts: list[int], rank: int, processes: dist.ProcessGroup | None
    ) -> Tensor:
        start = sum(counts[:rank])
        ctx.own, ctx.world = slice(start, start + counts[rank]), len(counts)
        return _gather(rows, counts, processes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        # times the number of processes: DDP divides by it
        return grads[0][ctx.own] * ctx.world, None, None, None


class _SharedLogSums(torch.autograd.Function):
    """``log_denominators`` whose tiles are shared out between the processes."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        anchors: int,
        scale: float,
        rounded: bool,
        rank: int,
        world: int,
        processes: dist.ProcessGroup | None,
    ) -> Tensor:
        part = partial_sums(z, anchors, scale, rounded, (rank, world))
        # log(sum_r exp(part_r)) without overflow; every process adds in the same order
        parts = [torch.empty_like(part) for _ in range(world)]
        dist.all_gather(parts, part, group=processes)
        log_d = torch.stack(parts).logsumexp(0)
        ctx.save_for_backward(z, log_d)
        ctx.settings = scale, rounded, (rank, world), processes
        return log_d

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        z, log_d = ctx.saved_tensors
        scale, rounded, share, processes = ctx.settings
        with torch.autocast(z.device.type, enabled=False):
            total = partial_gradient(z, log_d, grads[0].contiguous(), scale, rounded, share)
        dist.all_reduce(total, group=processes)
        return total, None, None, None, None, None, None


def _shared_between(rank: int, world: int, processes: dist.ProcessGroup | None) -> Any:
    def log_sums(z: Tensor, anchors: int, scale: float, rounded: bool) -> Tensor:
        result: Tensor = _SharedLogSums.apply(  # type: ignore[no-untyped-call]
            z, anchors, scale, rounded, rank, world, processes
        )
        return result

    return log_sums


def _counts(own: int, device: torch.device, world: int, processes: dist.ProcessGroup | None) -> list[int]:
    """Return how many pixels each process brings."""
    counts = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(world)]
    dist.all_gather(counts, torch.tensor([own], device=device), group=processes)
    return [int(count) for count in counts]


def _gather(rows: Tensor, counts: list[int], processes: dist.ProcessGroup | None) -> Tensor:
    """Return the rows of all processes in their order; shorter ones are padded on the way."""
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded, group=processes)
    return torch.cat([part[:count] for part, count in zip(parts, counts)])
