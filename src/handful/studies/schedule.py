"""The tasks a study has left: its runs, each after the pre-training it starts from, which equal runs share."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from handful.artefacts import read_json
from handful.data.plan import Plan
from handful.studies.arms import CONTROL, Arm
from handful.studies.blind import Blind
from handful.studies.folder import OUTCOME, StudyFolder
from handful.studies.grid import Asked, Unit
from handful.studies.plans import IMAGES, same_start, shares_plan
from handful.studies.tasks import Task


def start_of(folder: StudyFolder, unit: Unit, plans: Mapping[str, Plan]) -> Path | None:
    """Return the run folder of the pre-training that a run starts from, or None.

    A method that learns from images alone is pre-trained once for all budgets and draws whose runs see the same images
    through the same network; one that learns from labels, once for each budget and draw.
    """
    if unit.arm.start is None:
        return None
    shared = not unit.arm.needs_pretrain_labels and (
        IMAGES not in plans or same_start(plans[IMAGES], plans[unit.cell])
    )
    return folder.pretrained / unit.arm.start / (IMAGES if shared else unit.cell)


def make_tasks(
    folder: StudyFolder,
    asked: Asked,
    units: Sequence[Unit],
    blind: Blind,
    plans: Mapping[str, Plan],
    *,
    plan: Path | None,
    precision: str,
) -> list[Task]:
    """Return what is left to do, pre-trainings before the first run that needs them.

    Args:
        folder: of the study.
        asked: its question.
        units: its runs; finished ones are left out.
        blind: the data of the runs.
        plans: of ``make_plans``; empty where ``plan`` is given.
        plan: a file that all follow instead.
        precision: as of ``--precision``.
    """
    tasks: dict[Path, Task] = {}
    control = next(arm for arm in asked.arms if arm.name == CONTROL)

    def begun(arm: Arm, kind: str, name: str) -> Path | None:
        same = shares_plan(arm, control, kind=kind, lengths=asked.lengths, settings=asked.settings)
        return folder.plans / name if plans and same else None

    def task(unit: Unit, kind: str, out: Path, init: Path | None) -> Task:
        of_images = kind == "pretrain" and not unit.arm.needs_pretrain_labels
        shared = out.name == IMAGES
        begins = begun(unit.arm, kind, IMAGES if shared else unit.cell)
        follows = plan
        if of_images and not shared and begins is not None:
            # its own plan would be that of the images; this run needs the one of its budget
            follows, begins = begins / "plan.yaml", None
        where = "all images" if of_images else f"{unit.budget}, draw {unit.draw}"
        return Task(
            kind="train" if kind == "train" else "pretrain",
            out=out,
            words=f"{unit.arm.start if kind == 'pretrain' else unit.arm.name}, {where}",
            data=blind.training,
            splits=blind.splits,
            method=unit.arm.method(kind),
            labels=None if of_images else unit.budget,
            draw=0 if of_images else unit.draw,
            seed=asked.seed + (0 if of_images else unit.draw),
            settings=unit.arm.settings(kind, asked.settings),
            snapshots=asked.snapshots if kind == "train" else 0,
            plan=follows,
            begun=begins,
            init=init,
            test=blind.test if kind == "train" else None,
            precision=precision,
            **asked.lengths.of(kind),
        )

    for unit in units:
        if folder.finished(unit):
            continue
        init = start_of(folder, unit, plans)
        if init is not None and init not in tasks and not is_trained(init):
            tasks[init] = task(unit, "pretrain", init, None)
        tasks[folder.run(unit)] = task(unit, "train", folder.run(unit), init)
    return list(tasks.values())


def is_trained(pretraining: Path) -> bool:
    """Say whether a pre-training is finished."""
    outcome = pretraining / OUTCOME
    return outcome.is_file() and read_json(outcome)["status"] == "finished"
