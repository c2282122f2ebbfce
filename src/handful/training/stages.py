"""A run in two stages: a pre-training in its own folder inside the run's, then the training that starts from it."""

import time
from dataclasses import replace

from handful.training.decisions import without_labels
from handful.training.folder import RunFolder
from handful.training.stage import Stage


def first_stage(stage: Stage, folder: RunFolder) -> Stage | None:
    """Return the pre-training that this training starts with, or None.

    It follows the plan that the run has already written, so that both see the same images, and learns from the same
    cases; where its method uses no labels, it is handed none.
    """
    recipe = stage.recipe.stages()[0]
    if recipe is None:
        return None
    plan = folder.path / "plan.yaml"
    while (
        not folder.writes and not plan.exists()
    ):  # torchrun starts all processes at once; the first makes the plan
        time.sleep(0.2)
    before = replace(stage, recipe=recipe, plan=folder.plan, init=None, validation=())
    if before.learns_labels:
        return before
    return replace(before, selection=without_labels(stage.selection), labels=None)
