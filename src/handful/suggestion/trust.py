"""Whether a model's doubt may choose cases: only where cases that did not train it showed that it segments at all.

Below a Dice of about 0.5 the most uncertain cases are a worse choice than random ones (docs/suggest.md, with sources).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from handful.artefacts import read_json

ENOUGH = 0.5
"""Validation Dice above which uncertainty is believed."""


class Trust(NamedTuple):
    """Whether uncertainty is believed, and why, in words."""

    believed: bool
    why: str


def validation_dice(run: Path) -> float | None:
    """Return the mean Dice of the fold a run set aside (``RUN/validation/summary.json``); None if it has none."""
    file = run / "validation" / "summary.json"
    dice = read_json(file)["mean"]["dice"] if file.is_file() else None
    return None if dice is None else float(dice)


def judge(runs: Sequence[Path], *, force: bool = False) -> Trust:
    """Decide whether the runs' uncertainty chooses cases: their lowest validation Dice must exceed ``ENOUGH``.

    How well a model fits the labels it was trained on is no evidence, so a run without a validation fold is not
    believed.

    Args:
        runs: folders of trained segmenters; all of them have a say.
        force: believe them anyway.
    """
    found = {run: validation_dice(run) for run in runs}
    without = [str(run) for run, dice in found.items() if dice is None]
    known = [dice for dice in found.values() if dice is not None]
    believed = not without and min(known) > ENOUGH
    if without:
        why = (
            f"no validation Dice in {', '.join(without)}, and uncertainty misleads below {ENOUGH:g} (handful train "
            "--fold 0 measures one, from five labels on)"
        )
    elif believed:
        why = f"validation Dice {min(known):.3f} is above {ENOUGH:g}"
    else:
        why = f"validation Dice {min(known):.3f} is not above {ENOUGH:g}, where uncertainty misleads"
    if force and not believed:
        return Trust(True, f"--trust, although: {why}")
    return Trust(believed, why)
