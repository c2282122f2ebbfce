"""Which structures were looked for in a case: where not all were, its background hides others and is not known.

Data sets from several places often disagree on what they label. The column ``annotated`` of a CSV manifest, or of
``cases.csv``, names the structures of a case, by name or value: ``liver; spleen``. Empty means all.
"""

from collections.abc import Mapping

from handful.data.layouts import Found
from handful.data.manifest import read_csv
from handful.data.problems import ProblemError, Problems

COLUMN = "annotated"


def annotated_structures(found: Found, problems: Problems) -> dict[str, tuple[int, ...]]:
    """Return case -> label values of the structures that were annotated in it, of cases where not all were."""
    table, words = found.root / "cases.csv", {e.name: e.annotated for e in found.entries if e.annotated}
    if not words and found.layout != "csv" and table.is_file():
        try:
            columns, rows = read_csv(table)
        except ProblemError:  # said where patients are read from it
            return {}
        if {"case", COLUMN} <= set(columns):
            words = {row["case"]: row[COLUMN] for _, row in rows if row[COLUMN]}
    names = dict(found.declared.labels) if found.declared else None
    result = {}
    for name in sorted(words.keys() & {e.name for e in found.entries if e.label is not None}):
        try:
            values = _values(words[name], names)
        except ValueError as error:
            known = (
                "label values (no dataset.json names any)"
                if names is None
                else ", ".join(names[value] for value in sorted(names) if value)
            )
            problems.fatal(
                table if found.layout != "csv" else found.root,
                f"case {name}: the column '{COLUMN}' holds '{error}', which is no structure.",
                f"Allowed are {known}, with ; between them; empty means all.",
                case=name,
            )
            continue
        if names is None or set(values) != set(names) - {0}:
            result[name] = values
    if result:
        problems.note(
            found.root,
            f"{len(result)} case(s) are annotated in part (column '{COLUMN}'): their background trains nothing, and of "
            "them only what was annotated is scored.",
        )
    return result


def _values(words: str, names: Mapping[int, str] | None) -> tuple[int, ...]:
    """Return sorted label values of ``liver; 3``; a word that is no structure is a ``ValueError`` of that word."""
    by_name = {name.lower(): value for value, name in (names or {}).items()}
    found = set()
    for word in filter(None, (part.strip() for part in words.split(";"))):
        value = by_name.get(word.lower(), int(word) if word.isdigit() else 0)
        if value == 0 or (names is not None and value not in names):
            raise ValueError(word)
        found.add(value)
    if not found:
        raise ValueError(words)
    return tuple(sorted(found))
