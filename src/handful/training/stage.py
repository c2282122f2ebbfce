"""One training as it was asked for; commands of several trainings make several of these."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from handful.data.cases import Case, Dataset
from handful.data.discover import named_by
from handful.data.splits import Selection, Splits
from handful.errors import DataError, UsageError
from handful.methods import load_method
from handful.methods.contract import Method
from handful.training.processes import Processes
from handful.training.recipe import Recipe

ALONE = Processes()


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Everything that decides the weights of one training, settled before anything is written.

    Attributes:
        data: the data set as the user named it.
        recipe: method and settings.
        dataset: the data set, opened.
        splits: its division, written into the run.
        selection: the cases that train, and those held out.
        validation: labelled cases set aside; scored when the training is done.
        labels: the budget as the user wrote it.
        draw: which draw of the budget.
        seed: of the weights and every random draw.
        device: where to compute.
        precision: Lightning's name of one.
        plan: a file to follow; None makes a plan from the cases that train.
        taught: unlabelled cases with labels that a teacher predicted (training.teaching).
        init: a run whose weights this one starts from.
        adapt_channels: whether its first convolution may be spread over another number of input channels.
        partial_init: whether less than 99 % of the tensors may match.
        processes: that train together; each takes a whole batch, of its own rows.

    Raises:
        DataError: the method learns from labels and there are none, or it segments and none says what background is.
        UsageError: its length is in epochs, and the method has none.
    """

    data: Path
    recipe: Recipe
    dataset: Dataset
    splits: Splits
    selection: Selection
    validation: tuple[Case, ...] = ()
    labels: str | None = None
    draw: int = 0
    seed: int = 0
    device: torch.device
    precision: str
    plan: Path | None = None
    taught: tuple[Case, ...] = ()
    init: Path | None = None
    adapt_channels: bool = False
    partial_init: bool = False
    processes: Processes = ALONE

    def __post_init__(self) -> None:
        if self.method.needs.labels and not self.selection.labelled:
            raise DataError(
                f"method '{self.recipe.name}' learns from labels and this data has no labelled training case. "
                "Put label maps beside some images (see handful check)."
            )
        labelled = self.selection.labelled
        if self.method.kind == "train" and _none_whole(labelled, self.dataset):
            names = ", ".join(case.name for case in labelled[:3])
            raise DataError(
                f"every labelled case of the run is annotated in part ({names}{', ...' if labelled[3:] else ''}); "
                "their background may hide other structures, so that nothing says what background is. Add a case in "
                "which all are annotated (--labels @file), or correct the column 'annotated'."
            )
        if self.recipe.loop.epochs is not None and not self.method.has_epochs:
            raise UsageError(
                f"loop.epochs={self.recipe.loop.epochs:g}: the stages of '{self.recipe.name}' draw other images and "
                "batches each, so that its epochs cannot be counted; say --steps or --max-time."
            )

    @property
    def method(self) -> type[Method]:
        """The class that trains; the recipe holds its settings."""
        method: type[Method] = load_method(self.recipe.name).METHOD
        return method

    @property
    def segments(self) -> bool:
        """Whether there must be structures to segment."""
        return self.method.kind == "train" or self.method.needs.labels

    @property
    def learns_labels(self) -> bool:
        """Whether labels, where there are any, enter the loss."""
        return self.method.needs.labels or self.method.needs.optional_labels

    @property
    def probes(self) -> bool:
        """Whether a pre-training is probed with labels: only where a budget was named or labels are learned anyway."""
        return self.labels is not None or self.learns_labels

    @property
    def label_cases(self) -> tuple[Case, ...]:
        """The cases whose labels decide the weights: by the loss, or by stopping the run early."""
        decide = self.learns_labels or (self.probes and self.recipe.loop.patience > 0)
        return tuple(self.selection.labelled) if decide else ()

    @property
    def unlabelled(self) -> tuple[Case, ...]:
        """The cases without labels that are learned from."""
        learned = self.method.needs.unlabelled or self.recipe.teach is not None
        return tuple(self.selection.unlabelled) if learned else ()

    def describe(self) -> str:
        """Return for example ``supervised: 2 labelled and 8 unlabelled cases (which it does not use), 4 held out``."""
        labelled, unlabelled, test = (
            len(cases) for cases in (self.selection.labelled, self.selection.unlabelled, self.selection.test)
        )
        unused = "" if self.method.needs.unlabelled or self.recipe.teach else " (which it does not use)"
        first = f" after {self.recipe.pretrain.name}" if self.recipe.pretrain else ""
        taught = f", {len(self.taught)} of them with a teacher's labels" if self.taught else ""
        cases = f"{labelled} labelled and {unlabelled} unlabelled cases{unused}{taught}, {test} held out"
        return f"{self.recipe.name}{first}: {cases}"


def _none_whole(labelled: Sequence[Case], dataset: Dataset) -> bool:
    """Say whether every labelled case hides structures that were not looked for in it."""
    if not labelled or any(case.annotated is None for case in labelled):
        return False
    structures = set(named_by(dataset, labelled).label_names) - {0}
    return all(structures - set(case.annotated or ()) for case in labelled)
