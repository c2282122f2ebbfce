"""What travels from the data to a method: immutable, named, moved to a device in one line.

Shapes: B batch, C channels, S spatial (D, H, W or H, W). Labels are class indices 0..K-1, -1 where unknown.
"""

from typing import NamedTuple

from torch import Tensor


class SegmentationBatch(NamedTuple):
    """Labelled images, augmented, ready for the network.

    Attributes:
        image: (B, C, *S) normalised intensities.
        label: (B, *S) int64 class indices, ``IGNORE`` where a pixel has no label.
    """

    image: Tensor
    label: Tensor


IGNORE = -1
"""The label of a pixel that takes no part in any loss."""
