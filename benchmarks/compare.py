"""By how much do the runs of one benchmark beat another's? Paired by draw and case, with an interval.

    python benchmarks/compare.py OUT/hippocampus-2-auto OUT/hippocampus-2

Both folders hold draw0, draw1, ... as ``control.py`` and ``ablation.py`` leave them. The interval and its test are a
study's (``handful.studies.statistics``).
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from handful.artefacts import read_json
from handful.studies.statistics import Estimate, compare

Table = tuple[list[str], list[str], NDArray[np.float64]]


def dice_of(run: Path) -> Table:
    """Return cases, their patients, and Dice (cases, structures) of a run that was scored; NaN where both are empty."""
    rows = read_json(run / "summary.json")["cases"]
    cases = list(dict.fromkeys(row["case"] for row in rows))
    names = list(dict.fromkeys(row["class"] for row in rows))
    table = np.full((len(cases), len(names)), np.nan)
    for row in rows:
        if row["dice"] is not None:
            table[cases.index(row["case"]), names.index(row["class"])] = row["dice"]
    patient = {row["case"]: row["patient"] for row in rows}
    return cases, [patient[case] for case in cases], table


def difference(method: Path, control: Path) -> Estimate:
    """Compare the draws that both have.

    Raises:
        ValueError: they have none in common, or a draw was scored on other cases.
    """
    draws = sorted(
        run.name for run in method.glob("draw*") if (control / run.name / "summary.json").is_file()
    )
    pairs = [(dice_of(method / draw), dice_of(control / draw)) for draw in draws]
    if not pairs:
        raise ValueError(f"{method} and {control} have no scored draw in common.")
    cases, patients, _ = pairs[0][0]
    for draw, (own, other) in zip(draws, pairs, strict=True):
        if own[0] != cases or other[0] != cases:
            raise ValueError(f"{draw} was scored on other cases.")
    return compare([own[2] for own, _ in pairs], [other[2] for _, other in pairs], patients)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("method", type=Path)
    parser.add_argument("control", type=Path)
    asked = parser.parse_args()
    try:
        found = difference(asked.method, asked.control)
    except ValueError as error:
        parser.error(str(error))
    print(
        f"{found.mean:+.4f}, 95 % interval {found.low:+.4f} to {found.high:+.4f}, p {found.p:.4f}, {found.draws} draws"
    )


if __name__ == "__main__":
    main()
