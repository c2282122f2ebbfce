"""What was decided from the data: grid, normalisation, network sizes; readable, explained, editable."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """How one channel's intensities become the network's.

    ``zscore``: subtract the volume's robust centre, divide by its robust spread (MR; per volume).
    ``window``: clip to [low, high], then subtract ``centre`` and divide by ``spread`` (CT; one set for all volumes).
    """

    kind: Literal["zscore", "window"] = "zscore"
    low: float = 0.0
    high: float = 0.0
    centre: float = 0.0
    spread: float = 1.0


@dataclass(frozen=True, kw_only=True)
class NetworkPlan:
    """Sizes of the U-Net.

    Attributes:
        widths: channels of each level, finest first; its length is the number of levels.
        strides: down-sampling from each level to the next, one tuple of ``dims`` factors each (len(widths) - 1).
        kernels: kernel size of each level, one tuple of ``dims`` each.
        blocks: convolutions (plain) or residual blocks a level.
        kind: ``plain`` or ``residual``.
        norm: ``batch`` or ``instance``.
        deep_supervision: whether coarser decoder levels also predict.
    """

    widths: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    blocks: int = 2
    kind: Literal["plain", "residual"] = "plain"
    norm: Literal["batch", "instance"] = "instance"
    deep_supervision: bool = True


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything between a file and a network input.

    Attributes:
        dims: 2 (slices along D) or 3.
        axes: which axis of the reoriented (RAS) volume becomes D, H, W; D is the slice axis.
        spacing_mm: target spacing along D, H, W; None keeps each volume's own (D of a 2D plan).
        patch: network input size, ``dims`` numbers (H, W or D, H, W).
        batch: items a step.
        channels: one normalisation a channel.
        label_values: value in the files of each class index; ``label_values[0]`` is background.
        label_names: name of each class index.
        ignore_value: value in the files that means "no label here", or None.
        mirror: whether each axis of the patch may be mirrored in augmentation.
        network: sizes of the built-in U-Net.
        reasons: field name -> one sentence why it was decided so; shown to the user.
        dataset: name of the data set.
        fingerprint_hash: hash of the fingerprint this came from.
        version: of handful.
    """

    dims: Literal[2, 3]
    axes: tuple[int, int, int]
    spacing_mm: tuple[float | None, float | None, float | None]
    patch: tuple[int, ...]
    batch: int
    channels: tuple[Normalisation, ...]
    label_values: tuple[int, ...]
    label_names: tuple[str, ...]
    ignore_value: int | None = None
    mirror: tuple[bool, ...]
    network: NetworkPlan
    reasons: dict[str, str] = field(default_factory=dict)
    dataset: str = ""
    fingerprint_hash: str = ""
    version: str = ""
