"""Pictures of a study's worst case: the control and the leader on the slice where they err most."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from handful.data.discover import open_dataset
from handful.errors import DataError, HandfulError
from handful.report.evidence import Evidence, listing, mapping, read_run
from handful.report.slices import Row, compare_case
from handful.report.study_files import CONTROL, Study
from handful.report.study_tables import colours, worst_cases
from handful.report.study_words import name_of

Picture = dict[str, Any]


def pictures(study: Study) -> list[Picture]:
    """Draw the worst case of each budget; what cannot be drawn says why; no predictions at all, no pictures."""
    if next(study.folder.glob("runs/*/*/*/predictions"), None) is None:
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
    """Draw a case as the control and the best other method see it, in the first draw that has both."""
    ranked = sorted(
        (row for row in study.summary if row["budget"] == budget and row["dice"] is not None),
        key=lambda row: -row["dice"],
    )
    methods = [CONTROL, *(str(row["method"]) for row in ranked if row["method"] != CONTROL)][:2]
    draws = sorted({int(row["draw"]) for row in study.scores if row["budget"] == budget})
    for draw in draws:
        runs = {method: study.run(budget, draw, method) for method in methods}
        if all((run / "predictions" / f"{case}.nii.gz").is_file() for run in runs.values()):
            evidence = _with_files(read_run(runs[methods[0]]), case)
            values = [int(value) for value in listing(evidence.plan.get("label_values"))]
            names = [str(name) for name in listing(evidence.plan.get("label_names"))][1:]
            if not values:
                raise DataError(f"{evidence.run / 'plan.yaml'} does not say which value is which structure.")
            palette = colours(study)
            return compare_case(
                evidence,
                case,
                {name_of(method): run / "predictions" for method, run in runs.items()},
                label_values=values,
                colours=[palette.get(name, "#999999") for name in names],
            )
    raise DataError(f"no draw has its predictions by both {' and '.join(map(name_of, methods))}.")


def _with_files(evidence: Evidence, case: str) -> Evidence:
    """Add where the image and the reference of a test case lie: the runs were not told, their scores are."""
    data = Path(str(mapping(evidence.summary.get("made_from")).get("references", "")))
    if not data.exists() or data == Path():
        raise DataError(f"the data set the study was scored on is not at {data} any more.")
    found = open_dataset(data).case(case)
    files = {"images": {case: [str(path.resolve()) for path in found.images]}, "labels": {case: None}}
    if found.label is not None:
        files["labels"] = {case: str(found.label.resolve())}
    return replace(evidence, manifest={**evidence.manifest, **files})
