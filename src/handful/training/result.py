"""A finished run as an object: predict with it, score it, show it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handful.inference.predict import Prediction, predict
from handful.metrics.evaluate import evaluate
from handful.metrics.summary import Summary
from handful.report.page import write_report
from handful.training.folder import weights_of


@dataclass(frozen=True)
class Run:
    """The folder of a finished run.

    Raises:
        UsageError: the folder holds no trained weights.

    Example:
        >>> run = Run(train("DATA", "RUN", labels="10", test="20%"))  # doctest: +SKIP
        >>> run.predict("new_scans", "new_labels")  # doctest: +SKIP
        >>> run.evaluate("DATA").mean["dice"]  # doctest: +SKIP
    """

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))
        weights_of(self.path)

    def predict(self, images: Path | str, out: Path | str, **options: Any) -> list[Prediction]:
        """Write label maps of ``images`` to ``out``; options as of ``handful.predict``."""
        return predict(self.path, images, out, **options)

    def evaluate(self, data: Path | str, **options: Any) -> Summary:
        """Predict the cases this run held out and score them; ``scores.csv`` and ``summary.json`` go to the run folder.

        Args:
            data: the data set the run was trained on.
            options: as of ``handful.evaluate``.
        """
        predictions = self.path / "predictions"
        predict(self.path, data, predictions, held_out_only=True)
        return evaluate(predictions, data, out=self.path, **options)

    def report(self, **options: Any) -> Path:
        """Write the page about this run and return its path."""
        return write_report(self.path, **options)
