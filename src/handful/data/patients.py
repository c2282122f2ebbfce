"""Find out which cases belong to one patient, so that no split ever cuts one."""

import re
from collections.abc import Sequence

from handful.data.cases import Case
from handful.data.layouts import Entry, Found
from handful.data.manifest import read_csv
from handful.data.problems import ProblemError, Problems
from handful.errors import UsageError


def assign_patients(found: Found, pattern: str | None, problems: Problems) -> tuple[list[Entry], str | None]:
    """Return the entries with their patients, and in words where those came from (None: from nowhere).

    The pattern counts first, then the manifest's column, then ``cases.csv`` (another file or column if ``groups`` in
    ``dataset.json`` says so). A case nobody assigns is its own patient.

    Raises:
        UsageError: the pattern is no regular expression, has no group, or does not match every case.
    """
    if pattern is not None:
        return _patients_by_pattern(found, pattern), f"pattern {pattern}"
    if found.patients_from:
        return found.entries, found.patients_from
    groups = found.declared.content.get("groups", {}) if found.declared else {}
    groups = groups if isinstance(groups, dict) else {}
    table, key = found.root / str(groups.get("file", "cases.csv")), str(groups.get("key", "patient")).lower()
    if not table.is_file():
        if groups:
            problems.warning(
                table,
                "dataset.json groups cases by this file, which does not exist.",
                "Restore it.",
            )
        problems.note(found.root, *_NO_PATIENTS)
        return found.entries, None
    try:
        columns, rows = read_csv(table)
    except ProblemError as error:
        problems.append(error.problem)
        return found.entries, None
    if columns == ["case", "annotated"]:  # made for ``partial`` alone
        problems.note(found.root, *_NO_PATIENTS)
        return found.entries, None
    if not {"case", key} <= set(columns):
        problems.warning(
            table,
            f"it has no columns 'case' and '{key}', so it does not say whose each case is.",
            "Add both columns, or give --patients a regular expression.",
        )
        problems.note(found.root, *_NO_PATIENTS)
        return found.entries, None
    patient_of: dict[str, str] = {}
    for line, row in rows:
        if patient_of.setdefault(row["case"], row[key]) != row[key]:
            problems.fatal(
                table,
                f"line {line}: case {row['case']} is given two patients.",
                "List every case once.",
            )
    without = [e.name for e in found.entries if not patient_of.get(e.name)]
    if without:
        problems.warning(
            table,
            f"{len(without)} case(s) are not in it (first: {without[0]}); each is its own patient.",
            "Add them.",
        )
    entries = [entry._replace(patient=patient_of.get(entry.name) or None) for entry in found.entries]
    return entries, f"column '{key}' of {table.name}"


_NO_PATIENTS = (
    "nothing says which cases belong to one patient; every case counts as its own patient.",
    "If that is wrong, add cases.csv with the columns case,patient, or give --patients a regular expression.",
)


def _patients_by_pattern(found: Found, pattern: str) -> list[Entry]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--patients {pattern}: this is no regular expression ({error}).") from None
    if not expression.groups:
        raise UsageError(
            f"--patients {pattern}: put the patient in parentheses, for example '(patient\\d+)_'."
        )
    entries = []
    for entry in found.entries:
        match = expression.search(entry.name)
        if not match or not match[1]:
            raise UsageError(
                f"--patients {pattern}: it does not match case '{entry.name}'. It must match every case name."
            )
        entries.append(entry._replace(patient=match[1]))
    return entries


def patients_in_two_splits(cases: Sequence[Case]) -> Problems:
    """Find patients who are held out and train: fatal with labels, a warning without (splits leave such images out)."""
    problems = Problems()
    held_out = {case.patient: case for case in cases if case.held_out}
    training = [case for case in cases if not case.held_out and case.patient in held_out]
    for case in training:
        test = held_out[case.patient].name
        if case.label is not None:
            problems.fatal(
                case.images[0],
                f"patient {case.patient} is in training ({case.name}) and in test ({test}).",
                "Move all cases of the patient to one side; otherwise the test scores would be too good.",
                case=case.name,
            )
        else:
            problems.warning(
                case.images[0],
                f"patient {case.patient} is in test ({test}); this unlabelled image will not train.",
                "Give it another patient if that is wrong.",
                case=case.name,
            )
    return problems
