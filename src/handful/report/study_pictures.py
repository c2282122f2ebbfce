"""Pictures of a study's worst case: the control and the leader on the slice where they err most."""

from typing import Any

from handful.errors import DataError, HandfulError
from handful.report.evidence import listing, read_run
from handful.report.slices import Row, compare_case
from handful.report.study_files import CONTROL, Study
from handful.report.study_tables import colours, worst_cases
from handful.report.study_words import leader, name_of

Picture = dict[str, Any]


def pictures(study: Study) -> list[Picture]:
    """Draw the worst case of each budget; what cannot be drawn says why; no predictions at all, no pictures."""
    if not (study.folder / "predictions").is_dir():
        return []
    shown = []
    for worst in worst_cases(study):
        if not worst["cases"]:
            continue
        case, trouble, row = worst["cases"][0][0], "", None
        try:
            row = _draw(study, worst["budget"], case)
        except (HandfulError, OSError, ValueError) as error:
            trouble = str(error)
        shown.append({"budget": worst["words"], "case": case, "row": row, "trouble": trouble})
    return shown


def _draw(study: Study, budget: str, case: str) -> Row:
    """Draw a case as the control and the leader (the runner-up where the control leads) of one draw see it."""
    ranked = sorted(
        (row for row in study.summary if row["budget"] == budget and row["dice"] is not None),
        key=lambda row: -row["dice"],
    )
    methods = [CONTROL, *(str(row["method"]) for row in ranked if row["method"] != CONTROL)][:2]
    if leader(study, budget) is None:
        raise DataError("no run of this budget finished.")
    draws = sorted(
        {int(row["draw"]) for row in study.scores if row["budget"] == budget and row["case"] == case}
    )
    for draw in draws:
        place = f"{budget}/draw{draw}"
        folders = {
            name_of(method): study.folder / "predictions" / place / method
            for method in methods
            if (study.folder / "predictions" / place / method / f"{case}.nii.gz").is_file()
        }
        run = next((found for m in methods if (found := study.folder / "runs" / place / m).is_dir()), None)
        if len(folders) == len(methods) and run is not None:
            evidence = read_run(run)
            values = [int(value) for value in listing(evidence.plan.get("label_values"))]
            if not values:
                raise DataError(f"{run / 'plan.yaml'} does not say which value is which structure.")
            names = [str(name) for name in listing(evidence.plan.get("label_names"))][1:]
            palette = colours(study)
            return compare_case(
                evidence,
                case,
                folders,
                label_values=values,
                colours=[palette.get(name, "#999999") for name in names],
            )
    raise DataError(
        f"its predictions by {' and '.join(map(name_of, methods))} are not in {study.folder / 'predictions'}."
    )
