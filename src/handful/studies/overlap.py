"""Do the draws of a budget label different cases? Where they hardly do, the spread over draws says little."""

from collections.abc import Sequence
from itertools import combinations

from handful.data.splits import Splits
from handful.studies.grid import Unit

MUCH = 1 / 3
"""Share of the pool from which two draws of a budget share so many cases that their spread misleads."""


def labelled_in(units: Sequence[Unit], splits: Splits) -> dict[str, dict[int, tuple[str, ...]]]:
    """Return budget -> draw -> names of the labelled cases."""
    found: dict[str, dict[int, tuple[str, ...]]] = {}
    for budget, draw in dict.fromkeys((unit.budget, unit.draw) for unit in units):
        found.setdefault(budget, {})[draw] = tuple(c.name for c in splits.select(budget, draw).labelled)
    return found


def overlaps(units: Sequence[Unit], splits: Splits) -> list[str]:
    """Say of each budget which of its draws are the same cases, or that all share many; [] if none do."""
    pool = sum(case.label is not None for case in splits.pool)
    said = []
    for budget, draws in labelled_in(units, splits).items():
        if len(draws) < 2:
            continue
        same = [
            f"{one} and {other}" for one, other in combinations(draws, 2) if {*draws[one]} == {*draws[other]}
        ]
        most = max(len(cases) for cases in draws.values())
        if same:
            said.append(
                f"--labels {budget}: draws {', '.join(same)} label the same cases; they differ by their seeds alone, "
                "and the spread over draws says too little of other labels."
            )
        elif most > MUCH * pool:
            said.append(
                f"--labels {budget}: {most} of the {pool} labelled cases that may train, so that draws share cases: "
                "their spread is smaller than that of other cases would be."
            )
    return said
