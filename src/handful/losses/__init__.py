"""Losses as pure functions: tensors in, a scalar out."""

from handful.losses.contrastive import (
    info_nce,
    nt_xent,
    partition_contrast,
    partition_of_slices,
    positional_contrast,
    relative_position,
)
from handful.losses.gathered import pixel_contrast_across_processes
from handful.losses.pixel import pixel_contrast

__all__ = [
    "info_nce",
    "nt_xent",
    "partition_contrast",
    "partition_of_slices",
    "pixel_contrast",
    "pixel_contrast_across_processes",
    "positional_contrast",
    "relative_position",
]
