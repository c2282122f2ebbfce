"""Gaussian noise cut off at two deviations: how a teacher's view of an image is disturbed."""

import torch
from torch import Tensor


def with_noise(image: Tensor, deviation: float, *, generator: torch.Generator) -> Tensor:
    """Return ``image`` plus normal noise, cut off at two deviations.

    Args:
        image: (B, C, *S).
        deviation: of the noise before it is cut off, in units of the image, 0 or more.
        generator: on the image's device.

    References:
        Yu et al., 2019, UA-MT (0.1 on images of deviation 1). https://arxiv.org/abs/1907.07034
    """
    noise = torch.randn(image.shape, dtype=image.dtype, device=image.device, generator=generator)
    return image + deviation * noise.clamp(-2, 2)
