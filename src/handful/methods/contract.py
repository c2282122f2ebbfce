"""The contract every method keeps: a module that turns a batch into a loss.

A method is one file in this folder; its file name is its name. The file defines ``Settings`` (a frozen dataclass,
defaults from the paper) and ``METHOD`` (the class, built as ``METHOD(network, settings)``). The engine in
``training`` knows nothing else about it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from handful.data.sampling import Source


class StepOutput(NamedTuple):
    """What one training step yields.

    Attributes:
        loss: scalar to minimise.
        logs: named scalars for ``metrics.jsonl``; tensors stay on the device until they are written.
    """

    loss: Tensor
    logs: Mapping[str, Tensor]


class Needs(NamedTuple):
    """What a method must be given before it can start."""

    labels: bool
    unlabelled: bool


class Method(nn.Module, ABC):
    """A way to learn from images and few labels.

    Attributes:
        needs: whether labelled or unlabelled cases must exist.
        paper: authors, year and link, printed by ``handful methods``.
    """

    needs: ClassVar[Needs]
    paper: ClassVar[str]

    @abstractmethod
    def batch(self, source: Source) -> Any:
        """Draw what one step eats: which cases, which views. Pure in ``source``; may run ahead in a thread."""

    @abstractmethod
    def step(self, batch: Any, progress: float) -> StepOutput:
        """Compute the loss of one batch; ``progress`` runs from 0 to 1 over the run."""

    def after_step(self, progress: float) -> None:
        """Move what follows the weights (teachers, queues); called after each optimiser step."""

    @abstractmethod
    def exports(self) -> Mapping[str, nn.Module]:
        """Name the trained parts that other runs may start from, for example ``{"segmenter": network}``."""
