"""Reconstruction: the network gives back what a view was before it was corrupted or masked."""

from typing import Literal

import torch
from torch import Tensor

from handful.losses import checks


def reconstruction_error(
    prediction: Tensor, target: Tensor, mask: Tensor | None = None, *, norm: Literal["mse", "l1"] = "mse"
) -> Tensor:
    """Return the mean over voxels (in ``mask``) and channels of (prediction - target)^2, or of the absolute difference.

    Without a mask every voxel counts (Models Genesis, PCRL, MixCL-style); with one only those in it, for example
    what a masked autoencoder did not see. An empty mask gives 0.

    Args:
        prediction: (B, C, *S).
        target: (B, C, *S) the clean view, detached inside.
        mask: (B, *S) bool or weights, or None.
        norm: ``mse`` or ``l1``.

    Raises:
        ValueError: shapes that do not fit, integers, NaN, an unknown norm.

    References:
        Zhou et al., 2021, Models Genesis. https://arxiv.org/abs/2004.07882
        He et al., 2022, MAE. https://arxiv.org/abs/2111.06377

    Example:
        >>> import torch
        >>> reconstruction_error(torch.full((1, 1, 4, 6), 0.5), torch.ones(1, 1, 4, 6))
        tensor(0.2500)
    """
    if norm not in ("mse", "l1"):
        raise ValueError(f"norm must be 'mse' or 'l1', found {norm!r}.")
    prediction = checks.embeddings("prediction", prediction, "B C *S")
    target = checks.embeddings("target", target, "B C *S").detach().to(prediction.dtype)
    checks.same_shape(prediction=prediction, target=target)
    if not prediction.numel():
        return checks.nothing(prediction)
    difference = prediction - target
    error = (difference.square() if norm == "mse" else difference.abs()).mean(1)
    if mask is None:
        return error.mean()
    checks.same_shape(mask=mask, voxels=error)
    weight = mask.to(error.dtype)
    total = weight.sum()
    return (error * weight).sum() / torch.where(total > 0, total, 1.0)
