"""A study as Markdown, to be pasted into a README: the answer, the figure, one table, and how to repeat it."""

from handful.report.study_files import CONTROL, Row, Study
from handful.report.study_words import budget_words, failures, headline, is_sure, name_of, signed
from handful.report.words import count, figures


def markdown(study: Study, *, figure: str) -> str:
    """Return the text; ``figure`` is the address of the label-efficiency curve."""
    budgets = study.budgets
    lines = [
        headline(study)["sentence"],
        "",
        f"![Dice over the number of labelled cases, one line a method]({figure})",
        "",
        "| method | " + " | ".join(f"Dice, {budget_words(study, budget)}" for budget in budgets) + " |",
        "|---|" + "---|" * len(budgets),
    ]
    for method in study.methods:
        cells = [_cell(study, method, budget) for budget in budgets]
        name = _escape(name_of(method))
        lines.append(f"| {f'**{name}**' if method == CONTROL else name} | {' | '.join(cells)} |")
    cases = len({row["case"] for row in study.scores})
    lines += [
        "",
        f"Mean over {count(cases, 'test case')} and {study.draws_words} of labels"
        f"{' ± standard deviation over draws' if study.draws > 1 else ''}; in brackets the difference to "
        "labels only, with a star if it is more than noise (p below 0.05, corrected over the methods of a budget; at "
        "least three draws). Weights are those of the last step; nothing was selected on the test cases.",
    ]
    if failures(study):
        lines.append(f"{count(len(failures(study)), 'run')} gave no result and are in no mean.")
    command = study.about.get("command")
    if isinstance(command, str) and command:
        lines += ["", "```sh", command, "```"]
    return "\n".join(lines) + "\n"


def _cell(study: Study, method: str, budget: str) -> str:
    row = study.cell(study.summary, method, budget)
    if row is None or row["dice"] is None:
        return "–"
    spread = f" ± {row['dice_sd']:.3f}" if row["dice_sd"] is not None else ""
    best = max(
        other["dice"] for other in study.summary if other["budget"] == budget and other["dice"] is not None
    )
    dice = figures(row["dice"], 3)
    shown = f"**{dice}**" if row["dice"] == best else dice
    return f"{shown}{spread}{_difference(study.cell(study.comparisons, method, budget))}"


def _difference(row: Row | None) -> str:
    if row is None or row["difference"] is None:
        return ""
    star = r"\*" if is_sure(row) else ""
    return f" ({signed(row['difference'])}{star})"


def _escape(name: str) -> str:
    return name.replace("|", r"\|").replace("<", "&lt;").replace("_", r"\_").replace("*", r"\*")
