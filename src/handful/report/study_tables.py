"""The tables of a study's page: the numbers behind each figure, in the order in which methods are drawn."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from handful.report.evidence import mapping, number
from handful.report.figures import structure_colours
from handful.report.study_figures import minutes
from handful.report.study_files import CONTROL, Row, Study
from handful.report.study_words import budget_words, is_sure, name_of, signed, span
from handful.report.words import duration, figures

WORST = 8
"""Cases listed a budget."""


class Group(NamedTuple):
    """Lines under one heading; the first cell of each names it."""

    heading: str
    rows: list[list[str]]


def results(study: Study) -> list[dict[str, Any]]:
    """Return a line a method: at each budget Dice, its spread over draws, interval, rank, and whether it leads."""
    best = {
        budget: max((row["dice"] for row in study.summary if row["budget"] == budget), default=None)
        for budget in study.budgets
    }
    lines = []
    for method in study.methods:
        rows = {budget: study.cell(study.summary, method, budget) for budget in study.budgets}
        lines.append(
            {
                "method": method,
                "name": name_of(method),
                "control": method == CONTROL,
                "cells": [_result(row, best[budget]) for budget, row in rows.items()],
                "rank": number(mapping(study.about.get("ranks")).get(method)),
            }
        )
    return lines


def other_measures(study: Study) -> list[Group]:
    """Return for each budget: method, draws, Dice, NSD, HD95 and what selection would have added."""
    return _by_budget(
        study,
        lambda method, budget: (
            [
                name_of(method), _whole(row["draws"]), figures(row["dice"], 3), _with_ends(row, "nsd", "nsd", 3),
                _with_ends(row, "hd95_mm", "hd95", 2), signed(row.get("selection_gap")),
            ]
            if (row := study.cell(study.summary, method, budget))
            else None
        ),
    )  # fmt: skip


def comparisons(study: Study) -> list[Group]:
    """Return for each budget: method, difference to the control, interval, p, corrected p, draws, HD95 and verdict."""
    return _by_budget(
        study,
        lambda method, budget: (
            [
                method, signed(row["difference"]), span(row) or "–", _p(row.get("p")),
                _p(row["p_corrected"]), _whole(row.get("draws")), _distance(row), str(row["verdict"]),
            ]
            if (row := study.cell(study.comparisons, method, budget))
            else None
        ),
    )  # fmt: skip


def _distance(row: Row) -> str:
    """Return the difference in HD95 with its interval, marked where Dice is better and HD95 is worse."""
    difference = row.get("hd95_difference")
    if difference is None:
        return "–"
    low, high = row.get("hd95_low"), row.get("hd95_high")
    ends = f" ({signed(low, 2)} to {signed(high, 2)})" if low is not None and high is not None else ""
    mark = "worse: " if difference > 0 and (row["difference"] or 0) > 0 else ""
    return f"{mark}{signed(difference, 2)}{ends}"


def structures(study: Study) -> list[Group]:
    """Return for each structure: budget, and the mean Dice of each method over its draws."""
    tables = {(m, b): study.dice_of(m, b, "class") for m in study.methods for b in study.budgets}
    return [
        Group(
            name,
            [
                [
                    budget_words(study, budget),
                    *(figures(_mean(tables[method, budget].get(name)), 3) for method in study.methods),
                ]
                for budget in study.budgets
            ],
        )
        for name in study.structures
    ]


def saved(study: Study) -> list[Group]:
    """Return for each method: its labels, how many the control needs to do as well, interval, labels saved, a note."""

    def line(method: str, budget: str) -> list[str] | None:
        row = study.cell(study.saved, method, budget)
        if row is None:
            return None
        equal, n = row["equal_labels"], study.labelled(budget)
        low, high = (None if row[end] is None else figures(row[end], 1) for end in ("low", "high"))
        if low and high:
            ends = f"{low}–{high}"
        else:
            ends = f"at least {low}" if low else f"at most {high}" if high else "–"
        more = "–" if equal is None else signed(equal - n, 1)
        return [f"{n:g}", figures(equal, 1), ends, more, str(row["note"] or "")]

    groups = [
        Group(name_of(method), [row for budget in study.budgets if (row := line(method, budget))])
        for method in study.methods
    ]
    return [group for group in groups if group.rows]


def cost(study: Study) -> list[Group]:
    """Return for each budget: method, minutes in all, time of training and pre-training, steps, memory, Dice.

    Before Dice stand watt hours where there are any.
    """

    def line(method: str, budget: str) -> list[str] | None:
        runs = [
            row
            for row in study.runs
            if (row["method"], row["budget"], row["status"]) == (method, budget, "finished")
        ]
        if not runs:
            return None
        steps, memory = (_column(runs, key) for key in ("steps", "peak_memory_mb"))
        before, energy = _column(runs, "pretrain_seconds"), _column(runs, "energy_wh")
        return [
            name_of(method), f"{np.mean([minutes(row) for row in runs]):.1f}",
            duration(float(np.mean(_column(runs, "seconds") or [0.0]))),
            duration(float(np.mean(before))) if any(before) else "–",
            f"{np.mean(steps):,.0f}" if steps else "–", f"{np.max(memory):,.0f}" if memory else "–",
            *([figures(_mean(energy), 1)] if has_energy(study) else []), figures(_mean(_column(runs, "dice")), 3),
        ]  # fmt: skip

    return _by_budget(study, line)


def has_energy(study: Study) -> bool:
    """Say whether the energy of any run was measured."""
    return bool(_column(study.runs, "energy_wh"))


def runs(study: Study) -> list[list[str]]:
    """Return every run, those without a result first."""
    ordered = sorted(study.runs, key=lambda row: row["status"] == "finished")
    return [
        [
            name_of(str(row["method"])), budget_words(study, str(row["budget"])), _whole(row["draw"]),
            str(row["status"]), figures(row["dice"], 3), figures(row.get("best_dice"), 3), _whole(row.get("best_step")),
            "–" if row["seconds"] is None else duration(row["seconds"]),
        ]
        for row in ordered
    ]  # fmt: skip


def worst_cases(study: Study) -> list[dict[str, Any]]:
    """Return for each budget the cases with the lowest Dice over all methods, and each method's Dice on them."""
    found = []
    for budget in study.budgets:
        tables = {method: study.dice_of(method, budget, "case") for method in study.methods}
        tables = {method: table for method, table in tables.items() if table}
        cases = sorted(
            {case for table in tables.values() for case in table},
            key=lambda case: (
                np.mean([table[case].mean() for table in tables.values() if case in table]),
                case,
            ),
        )
        patients = {str(row["case"]): str(row["patient"]) for row in study.scores if row["budget"] == budget}
        found.append(
            {
                "budget": budget,
                "words": budget_words(study, budget),
                "methods": list(tables),
                "cases": [
                    (case, patients[case], [_mean(table.get(case)) for table in tables.values()])
                    for case in cases[:WORST]
                ],
                "of": len(cases),
            }
        )
    return found


def colours(study: Study) -> dict[str, str]:
    """Return the colour of each structure in pictures."""
    return dict(zip(study.structures, structure_colours(len(study.structures))))


def verdict_counts(study: Study) -> Mapping[str, int]:
    """Return how many comparisons are more than noise, and how many there are."""
    return {"sure": sum(is_sure(row) for row in study.comparisons), "all": len(study.comparisons)}


def _by_budget(study: Study, line: Callable[[str, str], list[str] | None]) -> list[Group]:
    """Return the lines of each budget, a method each, in the order of the methods; None is left out."""
    groups = [
        Group(budget_words(study, budget), [row for method in study.methods if (row := line(method, budget))])
        for budget in study.budgets
    ]
    return [group for group in groups if group.rows]


def _result(row: Row | None, best: float | None) -> dict[str, Any] | None:
    if row is None or row["dice"] is None:
        return None
    ends = None if row["low"] is None or row["high"] is None else (row["low"], row["high"])
    return {
        "dice": row["dice"],
        "sd": row["dice_sd"],
        "ends": ends,
        "rank": figures(row["rank"], 1),
        "best": row["dice"] == best,
    }


def _with_ends(row: Row, key: str, name: str, digits: int) -> str:
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    ends = (
        f" ({figures(low, digits)}–{figures(high, digits)})" if low is not None and high is not None else ""
    )
    return f"{figures(row.get(key), digits)}{ends}"


def _column(rows: Sequence[Row], key: str) -> list[float]:
    return [row[key] for row in rows if row.get(key) is not None]


def _mean(values: Any) -> float | None:
    return float(np.mean(values)) if values is not None and len(values) else None


def _p(value: float | None) -> str:
    return "< 0.001" if value is not None and value < 0.001 else figures(value, 3)


def _whole(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"
