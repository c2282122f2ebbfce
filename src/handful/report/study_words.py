"""What a study found, in sentences: who leads at each budget, by how much, and whether that is more than noise."""

from collections.abc import Sequence

from handful.report.evidence import listing
from handful.report.study_files import CONTROL, Row, Study

SURE = "more than noise"
"""The verdict of a difference that is not put down to chance, as ``comparisons.csv`` has it."""

CONTROL_WORDS = "labels only"
"""What the control is called in sentences and figures."""


def name_of(method: str) -> str:
    """Return how a method is called in figures and tables."""
    return CONTROL_WORDS if method == CONTROL else method


def budget_words(study: Study, budget: str) -> str:
    """Return ``2 labelled cases``, ``10 labelled cases (5%)``."""
    n = study.labelled(budget)
    cases = f"{n:g} labelled case" + ("" if n == 1 else "s")
    return cases if budget == f"{n:g}" else f"{cases} ({budget})"


def is_sure(row: Row) -> bool:
    """Say whether a difference to the control is more than noise, by the study's own verdict."""
    return bool(row["verdict"] == SURE)


def leader(study: Study, budget: str) -> Row | None:
    """Return the row of the highest Dice at a budget; None if nothing was scored there."""
    rows = [row for row in study.summary if row["budget"] == budget and row["dice"] is not None]
    return max(rows, key=lambda row: row["dice"], default=None)


def headline(study: Study) -> dict[str, str]:
    """Answer in one sentence; beside it, the lead at the smallest budget."""
    tops = {budget: top for budget in study.budgets if (top := leader(study, budget)) is not None}
    names = {str(top["method"]) for top in tops.values()}
    if len(names) == 1 and len(tops) > 1 and CONTROL not in names:
        answers = [_answer(study, budget, top, named=False) for budget, top in tops.items()]
        sentence = f"{names.pop()} leads at every budget: {'; '.join(answers)}."
    elif names == {CONTROL} and len(tops) > 1 and len(study.methods) > 1:
        answers = [
            f"Dice {top['dice']:.3f} with {budget_words(study, budget)}" for budget, top in tops.items()
        ]
        sentence = f"No method beats {CONTROL_WORDS} at any budget: {'; '.join(answers)}."
    else:
        answers = [_answer(study, budget, top, named=True) for budget, top in tops.items()]
        sentence = f"{'; '.join(answers)}."
        sentence = sentence[:1].upper() + sentence[1:]
    first, top = next(iter(tops.items()))
    found = study.cell(study.comparisons, str(top["method"]), first)
    if found is None:
        figure = f"{top['dice']:.3f}"
        caption = f"Dice of {name_of(str(top['method']))} with {budget_words(study, first)}"
    else:
        figure = signed(found["difference"])
        caption = f"Dice: {top['method']} against {CONTROL_WORDS} with {budget_words(study, first)}"
    return {"figure": figure, "caption": caption, "sentence": sentence}


def signed(value: float | None, digits: int = 3) -> str:
    """Return ``+0.031``, ``−0.012`` with a real minus sign, a dash if there is no value."""
    return "–" if value is None else f"{value:+.{digits}f}".replace("-", "−")


def span(row: Row, digits: int = 3) -> str:
    """Return the interval of a difference, ``+0.012 to +0.049``; nothing without one."""
    return (
        ""
        if row["low"] is None or row["high"] is None
        else f"{signed(row['low'], digits)} to {signed(row['high'], digits)}"
    )


def warnings(study: Study) -> list[str]:
    """Say what weakens the numbers on the page: what the study wrote down itself, and what shows only here."""
    shown_elsewhere = (
        *(f"{row['method']}, {row['budget']}, draw {row['draw']:g}: " for row in failures(study)),
        *(f"{method}: selection on the test set" for method in study.methods),
    )
    told = [
        str(text)
        for text in listing(study.about.get("warnings"))
        if not str(text).startswith(shown_elsewhere)
    ]
    if len(study.budgets) == 1:
        told.append(
            "one budget: nothing can be said about how fast a method learns, or how many labels it saves."
        )
    if not any(row["method"] == CONTROL for row in study.summary):
        told.append("the control has no result: no gain can be claimed for any method.")
    gaps = [row for row in study.summary if row.get("selection_gap") is not None]
    if gaps:
        worst = max(gaps, key=lambda row: row["selection_gap"])
        mean = sum(row["selection_gap"] for row in gaps) / len(gaps)
        told.append(
            f"choosing each run's checkpoint on the test cases would have added {mean:.3f} Dice on average, most "
            f"({worst['selection_gap']:.3f}) for {name_of(str(worst['method']))} with "
            f"{budget_words(study, str(worst['budget']))}. Nothing was chosen: every score is of the last weights."
        )
    return [text[:1].upper() + text[1:] for text in told]


def failures(study: Study) -> list[Row]:
    """Return the runs without a result."""
    return [row for row in study.runs if row["status"] != "finished"]


def _answer(study: Study, budget: str, top: Row, *, named: bool) -> str:
    """Return the clause about one budget."""
    method, where, dice = str(top["method"]), f"with {budget_words(study, budget)}", f"Dice {top['dice']:.3f}"
    if method == CONTROL:
        alone = all(row["method"] == CONTROL for row in study.summary if row["budget"] == budget)
        return f"{where} {CONTROL_WORDS} reaches {dice}" + ("" if alone else ", and no method beats it")
    found = study.cell(study.comparisons, method, budget)
    start = f"{where} {method} leads with {dice}" if named else f"{dice} {where}"
    if found is None:
        return f"{start}, with no control to compare it with"
    ends = f"95 % interval {span(found)}: " if span(found) else ""
    return f"{start}, {signed(found['difference'])} against {CONTROL_WORDS} ({ends}{found['verdict']})"


def order(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """Return rows in the order of their methods in ``names``."""
    return sorted(rows, key=lambda row: names.index(str(row["method"])))
