"""What the cases of a training leave to be desired, said before it starts; nothing here stops it."""

from collections.abc import Sequence

import numpy as np

from handful.data.fingerprint import Fingerprint, read_fingerprint
from handful.data.io import read_label
from handful.data.plan import Plan
from handful.data.unlike import unlike
from handful.training.folder import RunFolder
from handful.training.stage import Stage

NAMED = 3
"""Cases a sentence names before it says how many more there are."""


def said_beforehand(stage: Stage, plan: Plan, folder: RunFolder | None = None) -> list[str]:
    """Return a sentence for each: no unlabelled cases, structures without a label, images of another kind.

    Reads labels of the budget alone, one after the other until every structure has been seen.

    Args:
        stage: what trains.
        plan: of the run.
        folder: of the run, for its fingerprint; without one, images are not compared.
    """
    said = [_no_unlabelled(stage), _absent(stage, plan)]
    if folder is not None and folder.fingerprint.exists():
        said += _unlike(stage, read_fingerprint(folder.fingerprint))
    return [sentence for sentence in said if sentence]


def _no_unlabelled(stage: Stage) -> str:
    if stage.method.kind == "train" and stage.method.needs.unlabelled and not stage.unlabelled:
        return f"no unlabelled cases: {stage.recipe.name} learns from labels alone, like the control (supervised)"
    return ""


def _absent(stage: Stage, plan: Plan) -> str:
    cases = stage.selection.labelled
    if not (stage.learns_labels and cases):
        return ""
    absent = dict(list(zip(plan.label_values, plan.label_names, strict=True))[1:])
    for case in cases:
        if not absent:
            return ""
        assert case.label is not None
        for value in np.unique(read_label(case.label).array):
            absent.pop(int(value), None)
    if not absent:
        return ""
    names = _listed([f"'{name}'" for name in absent.values()])
    one = len(absent) == 1
    drawn = "" if stage.labels is None else f" of draw {stage.draw}"
    another = "" if stage.labels is None else f", another --draw or a larger --labels than {stage.labels}"
    return (
        f"no label of {names}: {'it is' if one else 'they are'} in none of the {len(cases)} labelled "
        f"case{'s' if len(cases) > 1 else ''}{drawn} ({_listed([case.name for case in cases])}), so "
        f"{'it' if one else 'they'} will not be learned. Take cases that show {'it' if one else 'them'} "
        f"(--labels @file){another}."
    )


def _unlike(stage: Stage, fingerprint: Fingerprint) -> list[str]:
    seen = {case.case: case for case in fingerprint.cases}
    known = [seen[case.name] for case in stage.selection.labelled if case.name in seen]
    reasons = {case.name: unlike(seen[case.name], known) for case in stage.unlabelled if case.name in seen}
    strange = [(name, why) for name, why in reasons.items() if why]
    said = []
    if strange:
        words = _listed([f"{name} ({why})" for name, why in strange])
        said.append(
            f"{len(strange)} unlabelled case{'s look' if len(strange) > 1 else ' looks'} unlike every labelled one: "
            f"{words}. They train all the same; move away what is another kind of scan."
        )
    if len(reasons) < len(stage.unlabelled):
        said.append(
            f"{len(stage.unlabelled) - len(reasons)} of {len(stage.unlabelled)} unlabelled images were not compared "
            f"with the labelled ones: a plan looks at {len(seen)} images."
        )
    return said


def _listed(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
