"""What is settled before training: which cases take part, and the plan made from them."""

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

from handful.data.cases import Case, Dataset
from handful.data.discover import named_by, open_dataset
from handful.data.fingerprint import make_fingerprint, write_fingerprint
from handful.data.plan import Plan, make_plan, read_plan, write_plan
from handful.data.plan_check import check_plan
from handful.data.splits import Selection, Splits, folds, make_splits, read_splits, validation_rule
from handful.errors import DataError, UsageError
from handful.training.folder import RunFolder
from handful.training.recipe import PlanSettings

IMAGES_FOR_FINGERPRINT = 200
"""Images looked at for spacing and intensities; the plan does not change measurably with more."""

DRAWS = 5
"""Draws written to ``splits.json``, at least."""


class Chosen(NamedTuple):
    """The data set, its split, and the cases one run may see."""

    dataset: Dataset
    splits: Splits
    selection: Selection


def choose_cases(
    data: Path,
    *,
    labels: str | None = None,
    draw: int = 0,
    test: str | None = None,
    splits: Path | None = None,
    seed: int = 0,
    patients: str | None = None,
) -> Chosen:
    """Open the data set, split it (or follow ``splits``), and take the budget's cases; see ``train``."""
    dataset = open_dataset(data, patients=patients)
    if splits is not None:
        parts = read_splits(splits, dataset)
    else:
        parts = make_splits(dataset, test=test, seed=seed, draws=max(draw + 1, DRAWS))
    return Chosen(dataset, parts, parts.select(labels or "100%", draw))


def set_aside(selection: Selection, fold: int | None) -> tuple[Selection, tuple[Case, ...]]:
    """Take one fold of the labelled cases out for validation, if there are enough of them to say something.

    Returns:
        What is left to train on, and the fold; with ``fold`` None everything and nothing.

    Raises:
        UsageError: too few labelled cases, or no such fold.
    """
    if fold is None:
        return selection, ()
    count = validation_rule(len(selection.labelled), len({case.patient for case in selection.labelled}))
    if count == 0:
        raise UsageError(
            f"--fold {fold}: {len(selection.labelled)} labelled cases are too few to set some aside; leave --fold "
            "away and all of them train."
        )
    if not 0 <= fold < count:
        raise UsageError(f"--fold {fold} does not exist: these labelled cases make folds 0 to {count - 1}.")
    part = folds(selection, count)[fold]
    return selection._replace(labelled=part.train), part.validation


def without_labels(selection: Selection) -> Selection:
    """Return the same cases with no label left to look at: what a pre-training on images alone may know."""
    bare = tuple(replace(case, label=None) for case in selection.labelled)
    return selection._replace(labelled=(), unlabelled=(*bare, *selection.unlabelled), note="")


def decide_plan(
    dataset: Dataset,
    selection: Selection,
    *,
    device: str,
    dims: int | None = None,
    plan: Path | None = None,
    fixed: PlanSettings | None = None,
    folder: RunFolder | None = None,
    structures: bool = True,
) -> Plan:
    """Read the plan given, or the one an earlier start of this run made, or make one from the training cases.

    Args:
        selection: only its labels, and the images that may train, are looked at.
        device: kind of device, ``cpu``, ``cuda`` or ``mps``; decides the sizes.
        dims: 2 or 3; None decides from the spacing.
        plan: a file to follow.
        fixed: what the recipe decides instead of the data.
        folder: where fingerprint and plan are kept.
        structures: whether there must be something to segment.

    Raises:
        UsageError: the plan given is not what the recipe asks for.
    """
    if plan is not None:
        decided = read_plan(plan)
        _refuse_other(decided, fixed, plan)
    elif folder is not None and folder.plan.exists():
        decided = read_plan(folder.plan)
    else:
        dataset = named_by(dataset, selection.labelled)
        images = [*selection.labelled, *selection.unlabelled][:IMAGES_FOR_FINGERPRINT]
        fingerprint = make_fingerprint(dataset, selection.labelled, images, threads=os.cpu_count() or 1)
        if folder is not None:
            write_fingerprint(folder.fingerprint, fingerprint)
        decided = make_plan(
            fingerprint,
            dataset,
            device=device,
            dims=(fixed and fixed.dims) or dims,
            planes=_planes(fixed),
            width=fixed.width if fixed is not None else None,
            structures=structures,
        )
    if fixed is not None:
        decided = _fixed(decided, fixed)
    if folder is not None:
        write_plan(folder.plan, decided)
    if len(decided.channels) != len(dataset.channel_names):
        raise DataError(
            f"the plan expects {len(decided.channels)} image channels, {dataset.name} has "
            f"{len(dataset.channel_names)} ({', '.join(dataset.channel_names)}); use a plan made from this data."
        )
    return decided


def _planes(fixed: PlanSettings | None) -> int | None:
    """Return how many planes the recipe wants: published slices of one size lie in one plane."""
    if fixed is None:
        return None
    if fixed.planes is not None:
        return fixed.planes
    return 1 if _sized(fixed) else None


def _sized(fixed: PlanSettings) -> bool:
    return any(value is not None for value in (fixed.patch, fixed.spacing_mm, fixed.mirror))


def _refuse_other(plan: Plan, fixed: PlanSettings | None, file: Path) -> None:
    """Refuse a plan that was made otherwise than the recipe asks; what it asks besides is put into the plan."""
    if fixed is None:
        return
    made = {"dims": plan.dims, "planes": len(plan.planes), "width": plan.network.widths[0]}
    other = [
        f"plan.{name} is {asked} and the file has {has}"
        for name, has in made.items()
        if (asked := getattr(fixed, name)) not in (None, has)
    ]
    if other:
        raise UsageError(
            f"--plan {file} is not what the recipe asks for: {'; '.join(other)}. Leave one of them away."
        )


def _fixed(plan: Plan, fixed: PlanSettings) -> Plan:
    """Put the recipe's values into the plan, with the reason."""
    turned = 0.0 if fixed.turned is None and _sized(fixed) else fixed.turned
    chosen = asdict(replace(fixed, dims=None, planes=None, width=None, turned=turned))
    values = {name: value for name, value in chosen.items() if value is not None}
    if not values:
        return plan
    reasons = {**plan.reasons, **dict.fromkeys(values, "Fixed by the recipe.")}
    decided = replace(plan, **values, reasons=reasons)
    check_plan(decided, where="the recipe's section 'plan'")
    return decided
