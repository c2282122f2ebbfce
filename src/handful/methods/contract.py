"""The contract every method keeps: a module that turns a batch into a loss.

A method is one file in this folder; its file name is its name. The file defines ``Settings`` (a frozen dataclass,
defaults from the paper) and ``METHOD`` (the class, built as ``METHOD(network, settings)``). The engine in
``training`` knows nothing else about it.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from handful.data.sampling import Source


class Watched(NamedTuple):
    """What the health meter looks at: embeddings of the views of one batch.

    Attributes:
        embeddings: (B, V, E), detached, before or after normalisation.
        position: (B,) relative position of each item along the axis it is a slice of, if the method has it.
        axis: which of D, H, W that is: positions along different axes are not compared.
        stops: whether a run ends when they have become one point: not if no term of the loss keeps them apart.
    """

    embeddings: Tensor
    position: Tensor | None = None
    axis: int = 0
    stops: bool = True


PLACES = 256
"""Of maps, watched in a step at most: as many as the meter keeps."""


def watched_places(maps: Tensor) -> Watched:
    """Watch places of maps, evenly spaced over images and space, each in all views.

    Args:
        maps: (B, V, E, *S), or (B, V, E, R) of R regions.
    """
    each = maps.detach().movedim((1, 2), (-2, -1))  # (B, *S, V, E)
    count = each[..., 0, 0].numel()
    places = torch.arange(0, count, -(-count // PLACES), device=maps.device)
    return Watched(each[torch.unravel_index(places, each.shape[:-2])])


def watched_average(features: Tensor) -> Watched:
    """Watch feature maps (B, E, *S) averaged over space: for the record, as no term of the loss keeps them apart."""
    return Watched(features.detach().flatten(2).mean(2)[:, None], stops=False)


class StepOutput(NamedTuple):
    """What one training step yields.

    Attributes:
        loss: scalar to minimise.
        logs: named scalars for ``metrics.jsonl``; tensors stay on the device until they are written.
        terms: the summands of ``loss``, weighted and with their graph, where there are several: the meter measures
            the gradient of each.
        watched: embeddings for the health meter; None where a method has none.
    """

    loss: Tensor
    logs: Mapping[str, Tensor]
    terms: Mapping[str, Tensor] = {}
    watched: Watched | None = None


class Needs(NamedTuple):
    """What a method learns from.

    Attributes:
        labels: labelled cases must exist.
        unlabelled: cases without labels are used too (and labelled ones as images).
        optional_labels: labels are used where the budget allows some, and it works without.
        labels_unless: the settings with which it works without, where its defaults do not.
    """

    labels: bool
    unlabelled: bool
    optional_labels: bool = False
    labels_unless: str = ""


class Method(nn.Module, ABC):
    """A way to learn from images and few labels.

    Attributes:
        kind: ``train`` makes a segmentation network, ``pretrain`` parts that a training starts from.
        needs: what it learns from.
        paper: authors, year and link, printed by ``handful methods``.
        trains_all: whether every step gives every trainable parameter a gradient; where several processes train
            together, this saves them the search for those it does not.
        has_epochs: whether a step draws so many of all images; not if stages draw batches of their own.
    """

    kind: ClassVar[Literal["pretrain", "train"]] = "train"
    needs: ClassVar[Needs]
    paper: ClassVar[str]
    trains_all: ClassVar[bool] = False
    has_epochs: ClassVar[bool] = True

    @abstractmethod
    def batch(self, source: Source) -> Any:
        """Draw what one step eats: which cases, which views. Pure in ``source``; may run ahead in a thread."""

    @abstractmethod
    def step(self, batch: Any, progress: float) -> StepOutput:
        """Compute the loss of one batch; ``progress`` runs from 0 to 1 over the run."""

    def started(self, parts: Collection[str]) -> None:
        """Hear which exported parts began with weights of another run; copies of them were taken already."""

    def after_step(self, progress: float) -> None:
        """Move what follows the weights (teachers, queues); called after each optimiser step."""

    @abstractmethod
    def exports(self) -> Mapping[str, nn.Module]:
        """Name the trained parts: ``segmenter``; of a pre-training ``encoder`` and perhaps ``decoder``."""
