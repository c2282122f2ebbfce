"""What comes before a training, in folders inside its own: a pre-training to start from, a teacher to learn from."""

import time
from dataclasses import replace
from pathlib import Path

from handful.training.decisions import without_labels
from handful.training.folder import RunFolder
from handful.training.stage import Stage


def first_stage(stage: Stage, folder: RunFolder) -> Stage | None:
    """Return the pre-training that this training starts with, or None.

    It follows the plan that the run has already written, so that both see the same images, and learns from the same
    cases; where its method uses no labels, it is handed none.
    """
    recipe = stage.recipe.stages().pretrain
    if recipe is None:
        return None
    before = replace(stage, recipe=recipe, plan=_plan_of(folder), init=None, validation=())
    if before.learns_labels:
        return before
    return replace(before, selection=without_labels(stage.selection), labels=None)


def teacher_stage(stage: Stage, folder: RunFolder) -> Stage | None:
    """Return the training whose predictions this one learns, or None: same method, cases, plan and start."""
    recipe = stage.recipe.stages().teach
    return None if recipe is None else replace(stage, recipe=recipe, plan=_plan_of(folder), validation=())


def _plan_of(folder: RunFolder) -> Path:
    """Return the run's plan, once it is there: torchrun starts all processes at once, and the first makes it."""
    while not folder.writes and not folder.plan.exists():
        time.sleep(0.2)
    return folder.plan
