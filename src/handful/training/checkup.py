"""What a pre-training is asked while it runs: is it healthy, and does its probe still improve?"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from handful.errors import RunError
from handful.methods.contract import Method, StepOutput
from handful.training.health import ROWS, Meter, collapsed, shared_parameters, term_gradients
from handful.training.probe import Stopper

PROBES = 10
"""Probes over a run, evenly spaced; each costs a few forward passes."""


class Checkup:
    """Measure at every row of the metrics; say when to stop.

    Args:
        probe: scores a method's exported parts, or None where there are no labels to probe with.
        patience: probes without improvement before the run stops early; 0 never stops it.
        stop_on_collapse: whether a collapse ends the run with an error; otherwise it is only in the metrics.
    """

    def __init__(
        self,
        probe: Callable[[Mapping[str, nn.Module]], float | None] | None,
        *,
        patience: int = 0,
        stop_on_collapse: bool = True,
    ) -> None:
        self.probe = probe
        self.stop_on_collapse = stop_on_collapse
        self.stopper = Stopper(patience) if patience else None
        self.meter = Meter()
        self.rows: list[dict[str, float]] = []
        self.probed = -1
        self.stopped = False

    def gradients(self, method: Method, output: StepOutput) -> dict[str, Tensor]:
        """Return the norm of each term's gradient; call it before ``backward``, only when a row is due."""
        return term_gradients(output.terms, shared_parameters(method.exports()))

    def add(self, output: StepOutput) -> None:
        """Take in a step."""
        self.meter.add(output.watched)

    def row(self, method: Method, row: Mapping[str, float], progress: float) -> dict[str, float]:
        """Return what this row adds to the metrics.

        Raises:
            RunError: the embeddings have collapsed.
        """
        measured = self.meter.row()
        number = int(progress * PROBES)
        if self.probe is not None and number > self.probed:
            self.probed = number
            score = self.probe(method.exports())
            if score is not None:
                measured["health/probe"] = score
            if self.stopper is not None and self.stopper.add(score):
                self.stopped = True
        self.rows = [*self.rows, {**row, **measured}][-ROWS:]
        if self.stop_on_collapse and self.meter.stops:
            said = collapsed(self.rows, progress=progress, together=self.meter.together)
            if said:
                raise RunError(f"step {int(row['step'])}: {said}")
        return measured

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to go on as the uninterrupted one would."""
        return {
            "meter": self.meter.state_dict(),
            "rows": self.rows,
            "probed": self.probed,
            "stopped": self.stopped,
            "stopper": self.stopper.state_dict() if self.stopper else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state of another checkup."""
        self.meter.load_state_dict(state["meter"])
        self.rows, self.probed = list(state["rows"]), int(state["probed"])
        self.stopped = bool(state["stopped"])
        if self.stopper is not None and state["stopper"] is not None:
            self.stopper.load_state_dict(state["stopper"])
