"""The plans of a study: one for each budget and draw, followed by all of its arms, made before anything trains."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from handful.artefacts import hash_of
from handful.data.plan import Plan
from handful.studies.arms import Arm, Lengths, recipe_of
from handful.studies.blind import Blind
from handful.studies.grid import Unit
from handful.training.decisions import decide_plan, without_labels
from handful.training.folder import RunFolder

IMAGES = "images"
"""Name of what learned from all images and no label, which every budget and draw can start from."""


def make_plans(
    folder: Path,
    units: Sequence[Unit],
    blind: Blind,
    *,
    device: str,
    lengths: Lengths,
    settings: Sequence[str],
) -> dict[str, Plan]:
    """Make, or find made, the plan of each budget and draw, and that of pre-trainings on images alone.

    Each is decided from what its runs may see: the labels of its budget and the images that may train.

    Returns:
        ``Unit.cell`` (or ``IMAGES``) -> plan; each lies in the folder of that name, its fingerprint beside it.
    """
    fixed = recipe_of(units[0].arm, "train", lengths, settings).plan
    plans = {}
    for unit in units:
        if unit.cell not in plans:
            plans[unit.cell] = decide_plan(
                blind.dataset,
                blind.parts.select(unit.budget, unit.draw),
                device=device,
                fixed=fixed,
                folder=RunFolder(folder / unit.cell, quiet=True),
            )
    if any(unit.arm.pretrain and not unit.arm.needs_pretrain_labels for unit in units):
        plans[IMAGES] = decide_plan(
            blind.dataset,
            without_labels(blind.parts.select("100%", 0)),
            device=device,
            fixed=fixed,
            folder=RunFolder(folder / IMAGES, quiet=True),
            structures=False,
        )
    return plans


def shares_plan(arm: Arm, control: Arm, *, kind: str, lengths: Lengths, settings: Sequence[str]) -> bool:
    """Say whether an arm may begin with the plan of its budget: not if its recipe asks for another."""
    own = recipe_of(arm, kind, lengths, settings).plan
    return own == recipe_of(control, "train", lengths, settings).plan


def same_start(one: Plan, other: Plan) -> bool:
    """Say whether weights trained by one plan can start a run by the other: equal images, equal network."""
    fields = ("dims", "axes", "spacing_mm", "channels", "network")
    first, second = asdict(one), asdict(other)
    return all(hash_of(first[field]) == hash_of(second[field]) for field in fields)
