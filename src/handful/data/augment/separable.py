"""One small matrix along each axis: splines, blur and coarsening are all of this form.

At the sizes of patches a dense matrix product beats depthwise convolution on a CPU, in 2D and 3D alike.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def separable(x: Tensor, matrices: Sequence[Tensor | None]) -> Tensor:
    """Multiply each spatial axis by its matrix.

    Args:
        x: (N, C, *S).
        matrices: for each spatial axis (T, S) for all items, (N, T, S) for each its own, or None to leave it alone.

    Returns:
        (N, C, *T).
    """
    # Half precision would move voxels by a tenth and quantise intensities, so autocast must not reach in.
    with torch.autocast(x.device.type, enabled=False):
        for axis, matrix in enumerate(matrices, start=2):
            if matrix is None:
                continue
            before, size, after = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
            per_item = matrix.unsqueeze(-3) if matrix.ndim == 3 else matrix
            if after:
                x = per_item @ x.reshape(before[0], -1, size, after.numel())
            else:
                x = x.reshape(before[0], -1, size) @ matrix.mT
            x = x.reshape(*before, matrix.shape[-2], *after)
    return x
