"""Reference numbers of the published code, as tensors."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parent / "golden"


def golden(name: str) -> dict[str, Tensor]:
    """Return the arrays of ``golden/<name>.npz``."""
    with np.load(FOLDER / f"{name}.npz") as stored:
        return {key: torch.from_numpy(stored[key]) for key in stored.files}
