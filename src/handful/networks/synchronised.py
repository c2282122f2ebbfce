"""Batch norm whose statistics are those of the batches of all processes together.

Instance norm needs none of this: its statistics are those of one image.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def synchronise_norms(module: nn.Module) -> int:
    """Replace every batch norm inside ``module`` by one over all processes; return how many there were.

    Parameters, buffers and their names stay, so optimisers, checkpoints and weight files do not notice. On a GPU it is
    torch's own ``SyncBatchNorm``, which knows no CPU; elsewhere ``SynchronisedNorm``.

    Args:
        module: on the device it will train on; not itself a batch norm.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        >>> synchronise_norms(network)
        1
    """
    replaced: dict[nn.Module, nn.Module] = {}
    for parent in list(module.modules()):
        for name, child in parent._modules.items():
            if isinstance(child, _BATCH_NORMS):
                if child not in replaced:
                    replaced[child] = _synchronised(child)
                parent._modules[name] = replaced[child]
    return len(replaced)


class SynchronisedNorm(nn.Module):
    """Batch norm over the batches of all processes, which may differ in size; on any device.

    In evaluation it is the batch norm it was made from, and no process waits for another.

    Args:
        norm: whose parameters and buffers it takes over: the same tensors, not copies.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        self.eps, self.momentum = norm.eps, norm.momentum
        self.weight, self.bias = norm.weight, norm.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(norm, name))
        self.training = norm.training

    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and dist.is_available() and dist.is_initialized()):
            return self._alone(x)
        axes = [axis for axis in range(x.ndim) if axis != 1]
        shape = (1, -1, *[1] * (x.ndim - 2))
        precise = x if x.dtype == torch.float64 else x.float()
        with torch.autocast(x.device.type, enabled=False):
            own = precise.new_tensor([precise.numel() / precise.shape[1]])
            sums = _summed(torch.cat([precise.sum(axes), own]))
            count = sums[-1].detach()
            mean = sums[:-1] / count
            centred = precise - mean.reshape(shape)
            # of the distances to the common mean: the difference of two large sums would lose digits
            variance = _summed(centred.square().sum(axes)) / count
            self._remember(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
            scale = (variance + self.eps).rsqrt()
            if self.weight is not None:
                scale = scale * self.weight
            result = centred * scale.reshape(shape)
            if self.bias is not None:
                result = result + self.bias.reshape(shape)
        return result.to(x.dtype)

    def _alone(self, x: Tensor) -> Tensor:
        own = self.training or self.running_mean is None
        if self.training and self.running_mean is not None and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, own, self._share(), self.eps
        )

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics, those ``eval`` uses, towards this batch's."""
        if self.running_mean is None or self.running_var is None:
            return
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self._share())
        self.running_var.lerp_(variance.to(self.running_var.dtype), self._share())

    def _share(self) -> float:
        """Return how much a batch moves the running statistics; without a momentum they are a plain mean."""
        if self.momentum is not None:
            return float(self.momentum)
        return 0.0 if self.num_batches_tracked is None else 1 / max(int(self.num_batches_tracked), 1)


class _Summed(torch.autograd.Function):
    """Sum over processes; each process's losses depend on the sum, so the gradients are summed as well."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone()
        dist.all_reduce(total)
        return total


def _summed(x: Tensor) -> Tensor:
    result: Tensor = _Summed.apply(x)  # type: ignore[no-untyped-call]
    return result


def _synchronised(norm: _BatchNorm) -> nn.Module:
    tensor = next((t for t in (norm.weight, norm.running_mean) if t is not None), None)
    if tensor is not None and tensor.is_cuda:
        module: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(norm)  # type: ignore[no-untyped-call]
        return module
    return SynchronisedNorm(norm)
