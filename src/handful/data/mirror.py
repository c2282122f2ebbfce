"""Which axes an image may be mirrored along without turning anatomy into something that does not exist.

Mirroring teaches a network that both sides look alike. Where structures are named or ordered by side, that is false,
and with few labels nothing else corrects it. So an axis may be mirrored only if nothing speaks against it: neither the
names of the structures, nor their positions in the labelled cases.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from handful.data.fingerprint import Fingerprint

SPREADS = 1.0
"""An offset whose mean exceeds this many standard deviations over patients has a direction (84 % share its sign)."""

NEGLIGIBLE = 0.02
"""Offsets below this part of the volume's extent are those of concentric structures, whatever their spread."""

_SIDES = (
    {"left", "right", "lt", "rt", "lh", "rh", "sinister", "dexter"},
    {"anterior", "posterior", "ventral", "dorsal"},
    {"superior", "inferior", "upper", "lower", "cranial", "caudal"},
)
_ORDERED = re.compile(r"\b(vertebrae?|[ctls]\d{1,2})\b", re.IGNORECASE)


class MirrorDecision(NamedTuple):
    """Whether a RAS axis may be mirrored, and why (a clause without a full stop)."""

    allowed: bool
    why: str


def mirror_axes(fingerprint: Fingerprint, label_names: Mapping[int, str]) -> tuple[MirrorDecision, ...]:
    """Decide for left-right, front-back and head-foot whether mirroring is safe.

    An axis is closed if names of structures tell its two ends apart, or if, over the patients of the budget, the
    offset between two structures, or between a structure and the middle of the volume, has a consistent direction.
    No labelled patient, or only one, cannot show symmetry: closed.
    """
    names = {value: name for value, name in label_names.items() if value != 0}
    return tuple(_decide(axis, fingerprint, names) for axis in range(3))


def _decide(axis: int, fingerprint: Fingerprint, names: Mapping[int, str]) -> MirrorDecision:
    telling = _named_side(axis, list(names.values()))
    if telling:
        return MirrorDecision(False, f"off, '{telling}' is named by its side")
    offsets = _offsets_mm(axis, fingerprint, names)
    patients = len({entry.patient for entry in fingerprint.classes})
    if patients < 2:
        return MirrorDecision(
            False,
            f"off, {patients or 'no'} labelled patient{'s' * (not patients)} cannot show that the sides are alike",
        )
    extent = float(np.median([case.shape[axis] * case.spacing_mm[axis] for case in fingerprint.cases]))
    directed = []
    for pair, values in offsets.items():
        if len(values) < 2:
            continue
        mean, sd = float(np.mean(values)), float(np.std(values, ddof=1))
        if abs(mean) > SPREADS * sd and abs(mean) > NEGLIGIBLE * extent:
            directed.append((abs(mean) / max(sd, 1e-3), pair, mean, sd))
    if not directed:
        return MirrorDecision(True, f"on, no structure keeps to one side in {patients} patients")
    _, (first, second), mean, sd = max(directed)
    return MirrorDecision(
        False,
        f"off, '{first}' lies {abs(mean):.0f} mm (sd {sd:.0f}) to one side of {second} in {patients} patients",
    )


def _named_side(axis: int, names: Sequence[str]) -> str:
    """Return a name that tells the ends of the axis apart, or ""."""
    words = {
        name: re.findall(r"[a-z]+|\d+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower()) for name in names
    }
    for name in names:
        if _SIDES[axis] & set(words[name]):
            return name
    if axis == 0:  # a lone l or r means a side only if the other side exists: kidney_l, kidney_r
        swapped = [
            ["r" if word == "l" else word for word in words[name]] for name in names if "l" in words[name]
        ]
        return next((name for name in names if "r" in words[name] and words[name] in swapped), "")
    if axis == 2:
        return next((name for name in names if _ORDERED.search(name.replace("_", " "))), "")
    return ""


def _offsets_mm(
    axis: int, fingerprint: Fingerprint, names: Mapping[int, str]
) -> dict[tuple[str, str], list[float]]:
    """Return, per pair of structures (or structure and middle), one mean offset a patient."""
    size = {case.case: case.shape[axis] * case.spacing_mm[axis] for case in fingerprint.cases}
    places: dict[str, dict[int, float]] = defaultdict(dict)
    patient_of = {}
    for entry in fingerprint.classes:
        places[entry.case][entry.value] = (entry.centroid[axis] - 0.5) * size[entry.case]
        patient_of[entry.case] = entry.patient
    collected: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for case, found in places.items():
        for value, place in found.items():
            collected[names[value], "the middle"][patient_of[case]].append(place)
        for first, second in combinations(sorted(found), 2):
            pair = (names[first], f"'{names[second]}'")
            collected[pair][patient_of[case]].append(found[first] - found[second])
    return {
        pair: [float(np.mean(values)) for values in by_patient.values()]
        for pair, by_patient in collected.items()
    }
