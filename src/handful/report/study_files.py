"""What a study's folder holds: its tidy tables, each checked for its columns, and what was asked of it."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handful.artefacts import read_json, read_yaml
from handful.errors import DataError, UsageError
from handful.report.evidence import listing, mapping
from handful.report.words import count

CONTROL = "supervised"
"""The method every other is compared with: labels only."""

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "scores.csv": ("method", "budget", "n_labelled", "draw", "case", "patient", "class", "dice"),
    "runs.csv": ("method", "budget", "n_labelled", "draw", "status", "reason", "dice", "seconds"),
    "summary.csv": ("method", "budget", "n_labelled", "draws", "dice", "dice_sd", "low", "high", "rank"),
    "comparisons.csv": ("method", "budget", "difference", "low", "high", "p_corrected", "verdict"),
    "saved.csv": ("method", "budget", "n_labelled", "equal_labels", "low", "high", "note"),
}
"""The tables, and of each the columns a page cannot do without."""

WORDS = {"method", "budget", "case", "patient", "class", "status", "reason", "verdict", "note"}
"""Columns of text; all others hold numbers, None where the field is empty."""

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Study:
    """A scored study.

    Attributes:
        folder: where it lies.
        scores: one a method, budget, draw, case and structure.
        runs: one a method, budget and draw, failed and missing ones too.
        summary: one a method and budget.
        comparisons: of each method with the control, one a budget.
        saved: labels saved, one a method and budget.
        about: ``summary.json``: data, test cases, definitions, versions, machine, warnings.
        asked: ``study.yaml``.
        audit: entries of the audit log, oldest first.
        problems: one sentence a part that is missing or damaged.
    """

    folder: Path
    scores: Sequence[Row]
    runs: Sequence[Row]
    summary: Sequence[Row]
    comparisons: Sequence[Row]
    saved: Sequence[Row]
    about: Mapping[str, Any]
    asked: Mapping[str, Any]
    audit: Sequence[Row]
    problems: Sequence[str]

    @property
    def budgets(self) -> list[str]:
        """Return the budgets, fewest labels first."""
        size = {str(row["budget"]): float(row["n_labelled"] or 0) for row in self.runs}
        return sorted(size, key=lambda budget: size[budget])

    @property
    def methods(self) -> list[str]:
        """Return the control and then the others, best mean rank first; those without a rank last."""
        ranks: dict[str, list[float]] = {str(row["method"]): [] for row in self.runs}
        for row in self.summary:
            if row["rank"] is not None:
                ranks.setdefault(str(row["method"]), []).append(row["rank"])
        mean = {name: sum(own) / len(own) if own else float("inf") for name, own in ranks.items()}
        return sorted(mean, key=lambda name: (name != CONTROL, mean[name]))

    @property
    def structures(self) -> list[str]:
        """Return the structures in the order of the scores."""
        return list(dict.fromkeys(str(row["class"]) for row in self.scores))

    @property
    def draws(self) -> int:
        """Return the largest number of draws that any method was scored on."""
        return max((int(row["draws"]) for row in self.summary), default=0)

    @property
    def draws_words(self) -> str:
        """Return on how many draws methods were scored: ``1 draw``, or ``3 to 5 draws`` where budgets differ."""
        least = min((int(row["draws"]) for row in self.summary), default=0)
        return count(least, "draw") if least == self.draws else f"{least} to {self.draws} draws"

    def labelled(self, budget: str) -> float:
        """Return how many labelled cases a budget is; a mean where draws of patients differ in their cases."""
        known = [row["n_labelled"] for row in (*self.summary, *self.runs) if row["budget"] == budget]
        return float(known[0])

    def run(self, budget: str, draw: int, method: str) -> Path:
        """Return the folder of a run."""
        place = Path(budget[1:]).stem if budget.startswith("@") else budget.replace("%", "pct")
        return self.folder / "runs" / place / f"draw{draw}" / method

    def cell(self, table: Sequence[Row], method: str, budget: str) -> Row | None:
        """Return the row of ``table`` for a method at a budget, or None."""
        return next((row for row in table if (row["method"], row["budget"]) == (method, budget)), None)

    def dice_of(self, method: str, budget: str, key: str) -> dict[str, NDArray[np.float64]]:
        """Return value of the column ``key`` -> mean Dice of each draw, structures and cases averaged.

        Args:
            method: which method.
            budget: at which budget.
            key: ``class`` or ``case``.
        """
        own: dict[str, dict[int, list[float]]] = {}
        for row in self._scores_of.get((method, budget), ()):
            if row["dice"] is not None:
                own.setdefault(str(row[key]), {}).setdefault(int(row["draw"]), []).append(row["dice"])
        return {name: np.array([np.mean(values) for values in draws.values()]) for name, draws in own.items()}

    @cached_property
    def _scores_of(self) -> Mapping[tuple[str, str], list[Row]]:
        """Scores of each method and budget: there may be very many."""
        found: dict[tuple[str, str], list[Row]] = {}
        for row in self.scores:
            found.setdefault((row["method"], row["budget"]), []).append(row)
        return found


def is_study(folder: Path) -> bool:
    """Say whether a folder is a study's, finished or not."""
    return (folder / "study.yaml").is_file() or (folder / "comparisons.csv").is_file()


def read_study(folder: Path) -> Study:
    """Read a study's tables.

    Raises:
        UsageError: not a study, or one that is not scored yet; says how far it is and what to do.
        DataError: a table is damaged or lacks a column.
    """
    if not is_study(folder):
        raise UsageError(
            f"{folder} is not a study (it has no study.yaml); name the folder that 'handful study --out' made."
        )
    absent = [name for name in COLUMNS if not (folder / name).is_file()]
    if absent:
        raise UsageError(
            f"{folder} is not scored yet: it has no {', '.join(absent)}.{_so_far(folder)} Run its 'handful study' "
            "command again: it goes on where it stopped, scores once all runs are through, and loses nothing."
        )
    problems: list[str] = []
    tables = {name.removesuffix(".csv"): _read_table(folder / name) for name in COLUMNS}
    if not tables["summary"]:
        reasons = sorted({str(row["reason"]) for row in tables["runs"] if row["reason"]})
        why = f" What went wrong: {'; '.join(reasons[:3])}" if reasons else ""
        raise UsageError(f"{folder} holds no finished run, so there is nothing to show.{why}")

    def part(name: str, what: str) -> Mapping[str, Any]:
        path = folder / name
        try:
            return mapping(read_yaml(path) if path.suffix == ".yaml" else read_json(path))
        except (DataError, OSError) as error:
            problems.append(f"{name} is missing or damaged ({what}): {error}")
            return {}

    return Study(
        folder=folder,
        **tables,
        about=part("summary.json", "data, test cases, definitions, versions"),
        asked=part("study.yaml", "what was asked"),
        audit=_read_log(folder / "audit.jsonl", problems),
        problems=problems,
    )


def _read_table(path: Path) -> list[Row]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            columns = reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path} cannot be read: {error}. Run the study's command again to have it made anew."
        ) from None
    lacking = [name for name in COLUMNS[path.name] if name not in columns]
    if lacking:
        raise DataError(
            f"{path} lacks the columns {', '.join(lacking)}. Delete it and run the study again: runs are kept."
        )
    return [
        {
            key: text if key in WORDS else _number(text, path, line)
            for key, text in row.items()
            if key is not None
        }
        for line, row in enumerate(rows, start=2)
    ]


def _number(text: str | None, path: Path, line: int) -> float | None:
    if text is None or text in ("", "nan", "None"):
        return None
    try:
        return float(text)
    except ValueError:
        raise DataError(
            f"{path}, line {line}: {text!r} is no number. Delete it and run the study again: runs are kept."
        ) from None


def _read_log(path: Path, problems: list[str]) -> list[Row]:
    if not path.is_file():
        problems.append("audit.jsonl is missing: when test labels were opened cannot be shown.")
        return []
    entries: list[Row] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entries.append(mapping(json.loads(line)))
        except json.JSONDecodeError:
            problems.append("audit.jsonl: a damaged line was left out.")
    return [entry for entry in entries if entry]


def _so_far(folder: Path) -> str:
    """Say how many of the runs are through, as far as the folder shows."""
    runs = [path.parent for path in folder.glob("runs/*/draw*/*/recipe.yaml")]
    if not runs:
        return " No run was started."
    done = sum((run / "weights.safetensors").is_file() and (run / "outcome.json").is_file() for run in runs)
    try:
        asked = read_yaml(folder / "study.yaml")
    except DataError:
        asked = {}
    wanted = _product(listing(asked.get("methods")), listing(asked.get("labels")), asked.get("draws"))
    return f" {done} of {wanted or len(runs)} runs are finished."


def _product(methods: Iterable[Any], labels: Iterable[Any], draws: Any) -> int:
    budgets = list(labels)
    each = [draws] * len(budgets) if isinstance(draws, int) else listing(draws)
    cells = sum(number for number in each if isinstance(number, int))
    return len({*methods, CONTROL}) * cells if methods else 0
