"""What it takes to do a study again: its command, the files that names, and the recipe of each of its trainings."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from handful.artefacts import hash_of, read_yaml
from handful.device import PRECISIONS
from handful.studies.folder import StudyFolder
from handful.studies.grid import Asked

OF_ONE_RUN = (
    "labelled", "unlabelled", "validation", "test", "init", "draw", "labels", "data", "seed", "plan_file",
)  # fmt: skip
"""Parts of a recipe that splits.json and study.yaml tell for all runs."""


def command(asked: Asked, *, plan: bool) -> str:
    """Return the command, where the data, the folder and the plan have these names; ``plan``: one was given."""
    lengths = asked.lengths
    precision = next(name for name, known in PRECISIONS.items() if known == asked.precision)
    options: list[tuple[str, Any]] = [
        ("--methods", ",".join(asked.methods)),
        ("--labels", ",".join(asked.labels)),
        ("--draws", asked.draws_asked),
        ("--test", asked.test),
        ("--steps", lengths.steps),
        ("--max-time", lengths.max_time),
        ("--pretrain-steps", lengths.pretrain_steps),
        ("--patients", asked.patients),
        ("--plan", "PLAN" if plan else None),
        *(("--set", setting) for setting in asked.settings),
        ("--snapshots", asked.snapshots),
        ("--seed", asked.seed),
        # a machine that chose another would ask another question
        ("--precision", precision),
    ]
    words = [word for name, value in options if value is not None for word in (name, str(value))]
    return shlex.join(["handful", "study", "DATA", *words, "--out", "STUDY"])


def files_of(folder: StudyFolder, plan: Path | None) -> dict[str, Any]:
    """Return what the files hold that the command names: ``@file`` -> names, ``PLAN`` -> the plan."""
    listed: Mapping[str, Any] = read_yaml(folder.asked).get("listed") or {}
    return {**listed, **({"PLAN": read_yaml(plan)} if plan else {})}


def recipes_of(folder: StudyFolder) -> list[dict[str, Any]]:
    """Return the recipe of every training, each different one once, without what differs from run to run.

    Returns:
        ``kind`` (``run`` or ``pre-training``), ``method`` (its folder), ``where`` (budgets whose runs had it, or what
        it was pre-trained for) and ``recipe``.
    """
    found: dict[str, dict[str, Any]] = {}
    runs = [(f, "run", f.parents[2].name) for f in sorted(folder.runs.glob("*/draw*/*/recipe.yaml"))]
    others = [
        (f, "pre-training", f.parent.name.partition("-draw")[0])
        for f in sorted(folder.pretrained.glob("*/*/recipe.yaml"))
    ]
    for file, kind, where in (*runs, *others):
        method = file.parent.name if kind == "run" else file.parents[1].name
        recipe = {key: value for key, value in read_yaml(file).items() if key not in OF_ONE_RUN}
        entry = found.setdefault(
            hash_of([kind, method, recipe]), {"kind": kind, "method": method, "where": [], "recipe": recipe}
        )
        entry["where"] += [where] * (where not in entry["where"])
    return sorted(found.values(), key=lambda entry: (entry["method"], entry["kind"]))
