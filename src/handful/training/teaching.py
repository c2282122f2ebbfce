"""Self-training on whole volumes: a first training labels the unlabelled ones, the next learns those labels too.

Labels are made volume by volume, with averaged weights, all planes of the plan and islands removed, so they are better
than what a network says of one patch in the middle of its training; and a fresh network learns them, not the one whose
mistakes they repeat.

References:
    Xie et al., 2020, Noisy Student. https://arxiv.org/abs/1911.04252
    Zhou et al., 2019, predictions of several planes, fused, as labels for each of them. https://arxiv.org/abs/1804.02586
"""

import time
from dataclasses import replace

import numpy as np

from handful.artefacts import read_json
from handful.data.cases import Case
from handful.inference.predict import RECORD, predict
from handful.training.folder import RunFolder
from handful.training.stage import Stage

LABELLED = ("written", "kept")


def taught_cases(stage: Stage, folder: RunFolder) -> tuple[Case, ...]:
    """Let the teacher label unlabelled cases, and return them with those labels; no other label is looked at.

    Label maps that are there already are kept, so an interrupted run goes on. The first process writes, the others
    wait for it.

    Args:
        stage: its unlabelled cases are labelled, as many as the recipe says, drawn by the run's seed.
        folder: of the run; the teacher's own lies inside.

    Raises:
        DataError: a volume cannot be predicted.
    """
    teach, cases = stage.recipe.teach, stage.selection.unlabelled
    assert teach is not None
    order = np.random.default_rng(stage.seed).permutation(len(cases))[: teach.volumes]
    chosen = [cases[index] for index in sorted(order)]
    out = folder.teacher / "predictions"
    if folder.writes:
        folder.say(f"the teacher labels {len(chosen)} of {len(cases)} unlabelled volumes, in {out}")
        names = {case.name for case in chosen}
        predict(folder.teacher, stage.data, out, only=names, device=str(stage.device))
    while not {case.name for case in chosen} <= _labelled(folder):
        time.sleep(0.2)
    return tuple(replace(case, label=out / f"{case.name}.nii.gz") for case in chosen)


def seconds_of(folder: RunFolder) -> float:
    """Return how long teaching took: the teacher's training, and the computing of its labels."""
    entries = read_json(folder.teacher / "predictions" / RECORD)["cases"]
    trained = float(read_json(folder.teacher / "manifest.json")["seconds"])
    return trained + sum(float(entry.get("seconds", 0.0)) for entry in entries)


def _labelled(folder: RunFolder) -> set[str]:
    record = folder.teacher / "predictions" / RECORD
    entries = read_json(record)["cases"] if record.exists() else []
    return {entry["case"] for entry in entries if entry["status"] in LABELLED}
