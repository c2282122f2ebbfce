"""Which structures are always one connected piece, so that predictions may keep the largest piece only.

An island in a prediction is an error only if anatomy knows no islands. With few labels nothing but these labels can say
so, hence a structure counts as one piece only if nothing speaks against it: neither its name nor a labelled case.
"""

import re
from collections.abc import Mapping

from handful.data.connected import WHOLE
from handful.data.fingerprint import Fingerprint, PieceCount

PATIENTS = 2
"""Patients that must show a structure: what holds in one may be that patient's."""

_FINDING = re.compile(
    r"tumou?r|lesion|cancer|carcinoma|metasta|nodule|cyst|o?edema|necro|infarct|stroke|ha?emorrh|bleed|plaque"
    r"|thromb|embol|calcifi|polyp|abscess|infect|consolidation|enhancing",
    re.IGNORECASE,
)
"""Findings come in any number: two patients with one lesion each do not promise that the next has one."""


def choose_one_piece(
    fingerprint: Fingerprint, label_names: Mapping[int, str], *, ignore_value: int | None = None
) -> tuple[dict[int, bool], str]:
    """Decide which structures are one piece.

    Args:
        fingerprint: of the budget's labels only.
        label_names: value in the label files -> name, background and ignored voxels included or not.
        ignore_value: value of voxels without a label; where there are any, pieces cannot be counted.

    Returns:
        One flag a structure, and a sentence why.
    """
    counts = {count.value: count for count in fingerprint.pieces}
    names = {value: name for value, name in label_names.items() if value not in (0, ignore_value)}
    nothing = dict.fromkeys(names, False)
    patients = counts[None].patients
    if patients < PATIENTS:
        number = "One labelled patient" if patients else "No labelled patient"
        return nothing, f"{number}: too few to show that a structure is always one piece."
    if ignore_value is not None:
        return nothing, "Labels with ignored voxels need not show the whole of a structure."
    against = {value: _against(names[value], counts[value]) for value in sorted(names)}
    flags = {value: not why for value, why in against.items()}
    others = "; ".join(f"'{names[value]}' {why}" for value, why in against.items() if why)
    rule = f"one piece (at least {WHOLE:.0%} of its voxels touch) in every labelled case"
    if not any(flags.values()):
        return flags, f"No structure is surely {rule}: {others}."
    if others:
        return flags, f"{sum(flags.values())} of {len(flags)} structures: {rule}. Not so: {others}."
    return flags, f"Every structure is {rule}, and shown by {PATIENTS} patients or more."


def _against(name: str, count: PieceCount) -> str:
    """Say what speaks against one piece (a clause without a full stop), or nothing."""
    if _FINDING.search(name):
        return "is a finding, which may come in any number"
    if count.patients < PATIENTS:
        return f"is shown by {count.patients or 'no'} labelled patient{'s' * (not count.patients)}"
    if count.whole < count.cases:
        return f"is one piece in {count.whole} of {count.cases} cases"
    return ""
