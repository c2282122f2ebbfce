"""Scale embeddings to the unit sphere: contrastive losses compare directions."""

import math

import torch
from torch import Tensor


def unit(z: Tensor, *, dim: int = -1) -> Tensor:
    """Scale the vectors along ``dim`` to length one.

    A vector of length zero has no direction: it stays zero (its cosine with everything is 0) and gets no gradient,
    where dividing by a small number instead would give it an enormous one.
    """
    length: Tensor = torch.linalg.vector_norm(z, dim=dim, keepdim=True)
    # times the reciprocal: its gradient takes half the passes of a division's
    scaled: Tensor = z * length.masked_fill(length <= torch.finfo(z.dtype).tiny, math.inf).reciprocal()
    return scaled
