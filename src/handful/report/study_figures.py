"""Drawings of a study: label efficiency, differences to the control, structures, cost.

Each is drawn for wide and for narrow pages. A method has one colour and one marker in all of them, the control is
black, and lines differ in more than colour.
"""

import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from handful.report.study_files import CONTROL, Row, Study
from handful.report.study_words import budget_words, is_sure, name_of, signed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito, 2008, "Color Universal Design", https://jfly.uni-koeln.de/color/ (without yellow, too pale for a line)
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("s", "^", "D", "v", "P", "X", "<", ">", "h", "*")
DASHES = ("-", (0, (5, 2)), (0, (1, 1.2)))
INK, GREY, PALE = "#1c2530", "#5b6875", "#d9dfe5"
WIDE, NARROW = 9.0, 4.6
"""Inches; a narrow drawing keeps its letters readable on a telephone."""
PANELS = 12
"""Structures drawn; more are in the table only."""


@dataclass(frozen=True)
class Style:
    """How a method is drawn."""

    colour: str
    marker: str
    dash: Any
    width: float


class Point(NamedTuple):
    """Dice at a number of labelled cases, and the ends of what is drawn around it."""

    labelled: float
    dice: float
    low: float
    high: float


def styles(study: Study) -> Mapping[str, Style]:
    """Return how each method is drawn; a method keeps its style whatever its rank."""
    others = sorted(method for method in study.methods if method != CONTROL)
    drawn = {
        method: Style(COLOURS[i % 6], MARKERS[i % len(MARKERS)], DASHES[i // 6 % 3], 1.8)
        for i, method in enumerate(others)
    }
    return {CONTROL: Style("#000000", "o", "-", 3.0), **drawn}


def efficiency(study: Study, *, width: float = WIDE) -> "Figure":
    """Draw Dice over the number of labelled cases, one line a method with its 95 % band; one budget: a row a method."""
    if len(study.budgets) == 1:
        return _rows_of_one_budget(study, width)
    figure = _figure(width, 4.6 if width == WIDE else 4.4)
    axes = figure.add_subplot()
    _curves(axes, study, {method: _points(study, method) for method in study.methods})
    axes.set_ylabel("Dice on the test cases", color=INK)
    _label_axis(axes, study)
    _names_at_ends(figure, axes, study)
    return figure


def forest(study: Study, *, width: float = WIDE) -> "Figure":
    """Draw each method's difference to the control with its interval, a panel a budget; filled: more than noise."""
    budgets = [b for b in study.budgets if any(row["budget"] == b for row in study.comparisons)]
    methods = [m for m in study.methods if any(row["method"] == m for row in study.comparisons)]
    across = _across(len(budgets), width)
    down = -(-len(budgets) // across)
    figure = _figure(width, down * (0.95 + 0.33 * len(methods)))
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
    drawn = styles(study)
    for axes, budget in zip(panels, budgets):
        axes.axvline(0, color="#000000", linewidth=1.6)
        for place, method in enumerate(methods):
            row, style = study.cell(study.comparisons, method, budget), drawn[method]
            if row is None or row["difference"] is None:
                continue
            if row["low"] is not None:
                axes.plot([row["low"], row["high"]], [place, place], color=style.colour, linewidth=2.2)
            axes.plot(
                row["difference"], place, style.marker, color=style.colour, markersize=6.5, markeredgewidth=1.5,
                markerfacecolor=style.colour if is_sure(row) else "white",
            )  # fmt: skip
        _tidy(axes)
        axes.set_title(budget_words(study, budget), loc="left", fontsize=10.5, color=INK)
        axes.set_yticks(range(len(methods)), [_plain(name_of(method)) for method in methods])
        axes.set_ylim(len(methods) - 0.5, -0.5)
        axes.xaxis.set_major_formatter(lambda value, _: "0" if abs(value) < 1e-9 else signed(value, 2))
        axes.locator_params(axis="x", nbins=5, steps=(1, 2, 5, 10))
    for axes in panels[len(budgets) :]:
        axes.set_visible(False)
    figure.supxlabel("difference in Dice to labels only, 95 % interval", fontsize=10, color=INK)
    return figure


def structures(study: Study, *, width: float = WIDE) -> "Figure":
    """Draw Dice of each structure over the number of labelled cases; bars span the lowest and the highest draw."""
    tables = {m: {b: study.dice_of(m, b, "class") for b in study.budgets} for m in study.methods}
    names = study.structures[:PANELS]
    across = _across(len(names), width)
    down = -(-len(names) // across)
    figure = _figure(width, 0.5 + 2.5 * down)
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, name in zip(panels, names):
        points = {
            method: [
                Point(study.labelled(budget), own.mean(), own.min(), own.max())
                for budget, found in table.items()
                if len(own := found.get(name, np.empty(0)))
            ]
            for method, table in tables.items()
        }
        _curves(axes, study, points, thin=True)
        _label_axis(axes, study, name=False)
        axes.set_title(_plain(name), loc="left", fontsize=10.5, color=INK)
        axes.xaxis.set_tick_params(labelbottom=True)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    figure.supxlabel("labelled cases", fontsize=10, color=INK)
    figure.supylabel("Dice", fontsize=10, color=INK)
    _legend(figure, study, width)
    return figure


def cost(study: Study, *, width: float = WIDE) -> "Figure":
    """Draw Dice over the minutes of a run, pre-training included, a panel a budget; small: runs, large: their mean."""
    budgets = study.budgets
    across = _across(len(budgets), width)
    down = -(-len(budgets) // across)
    figure = _figure(width, 0.5 + 2.6 * down)
    panels = figure.subplots(down, across, sharex=True, squeeze=False).ravel()
    drawn = styles(study)
    for axes, budget in zip(panels, budgets):
        for method in study.methods:
            runs = [
                r
                for r in study.runs
                if (r["method"], r["budget"]) == (method, budget) and r["dice"] is not None
            ]
            dots = [(minutes(row), row["dice"]) for row in runs if row["seconds"] is not None]
            if not dots:
                continue
            style = drawn[method]
            x, y = np.array(dots).T
            axes.plot(x, y, style.marker, color=style.colour, markersize=4, alpha=0.4, markeredgewidth=0)
            axes.plot(
                x.mean(), y.mean(), style.marker, color=style.colour, markersize=9, markeredgecolor="white"
            )
        _tidy(axes)
        axes.set_title(budget_words(study, budget), loc="left", fontsize=10.5, color=INK)
        axes.set_xscale("log")
        axes.xaxis.set_tick_params(labelbottom=True)
        _plain_log(axes)
    for axes in panels[len(budgets) :]:
        axes.set_visible(False)
    figure.supxlabel("minutes of a run, its pre-training included", fontsize=10, color=INK)
    figure.supylabel("Dice", fontsize=10, color=INK)
    _legend(figure, study, width)
    return figure


def svg(figure: "Figure") -> bytes:
    """Render a figure as SVG; the same figure gives the same bytes."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "handful"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def minutes(run: Row) -> float:
    """Return the minutes of a run with its pre-training."""
    return float((run["seconds"] or 0) + (run.get("pretrain_seconds") or 0)) / 60


def _points(study: Study, method: str) -> list[Point]:
    """Return the mean Dice at each budget with its interval; without one, the ends are the mean."""
    rows = [study.cell(study.summary, method, budget) for budget in study.budgets]
    return [
        Point(
            study.labelled(str(row["budget"])),
            row["dice"],
            row["dice"] if row["low"] is None else row["low"],
            row["dice"] if row["high"] is None else row["high"],
        )
        for row in rows
        if row is not None and row["dice"] is not None
    ]


def _rows_of_one_budget(study: Study, width: float) -> "Figure":
    budget, drawn = study.budgets[0], styles(study)
    figure = _figure(width, 1.1 + 0.36 * len(study.methods))
    axes = figure.add_subplot()
    for place, method in enumerate(study.methods):
        for _, dice, low, high in _points(study, method):
            style = drawn[method]
            axes.plot([low, high], [place, place], color=style.colour, linewidth=style.width)
            axes.plot(dice, place, style.marker, color=style.colour, markersize=8)
            if method == CONTROL:
                axes.axvline(dice, color="#000000", linewidth=1, linestyle=":")
    _tidy(axes)
    axes.set_yticks(range(len(study.methods)), [_plain(name_of(method)) for method in study.methods])
    axes.set_ylim(len(study.methods) - 0.5, -0.5)
    axes.set_xlabel(f"Dice on the test cases, {budget_words(study, budget)}", color=INK)
    return figure


def _curves(axes: "Axes", study: Study, points: Mapping[str, Sequence[Point]], *, thin: bool = False) -> None:
    """Draw one line a method, side by side where intervals would cover each other; the control on top, with a band."""
    drawn, beside = styles(study), _beside(study)
    for method, own in points.items():
        if not own:
            continue
        style = drawn[method]
        x = [point.labelled * beside[method] for point in own]
        size, width = (5, 0.7 * style.width) if thin else (7, style.width)
        low, high = [point.low for point in own], [point.high for point in own]
        above = 4 if method == CONTROL else 3
        axes.plot(
            x, [point.dice for point in own], marker=style.marker, markersize=size, color=style.colour,
            linestyle=style.dash, linewidth=width, zorder=above,
        )  # fmt: skip
        axes.vlines(x, low, high, color=style.colour, linewidth=0.6 * width, alpha=0.75, zorder=above)
        if method == CONTROL and len(x) > 1:
            axes.fill_between(x, low, high, color="#000000", alpha=0.09, linewidth=0)
    _tidy(axes)


def _beside(study: Study) -> Mapping[str, float]:
    """Return by which factor along x each method is moved, so that intervals stand side by side."""
    sizes = [study.labelled(budget) for budget in study.budgets]
    nearest = min((high / low for low, high in itertools.pairwise(sizes)), default=2.0)
    methods = study.methods
    step = nearest ** (0.3 / max(len(methods), 4))
    return {method: step ** (place - (len(methods) - 1) / 2) for place, method in enumerate(methods)}


def _label_axis(axes: "Axes", study: Study, *, name: bool = True) -> None:
    """Count labelled cases along x, equal ratios equally far apart, a tick a budget."""
    sizes = [study.labelled(budget) for budget in study.budgets]
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{n:g}" for n in sizes])
    axes.minorticks_off()
    axes.set_xlim(min(sizes) / 1.25, max(sizes) * 1.25)
    if name:
        axes.set_xlabel("labelled cases", color=INK)


def _names_at_ends(figure: "Figure", axes: "Axes", study: Study) -> None:
    """Write each method's name right of its last point, moved apart where they would overlap."""
    drawn, beside, ends = styles(study), _beside(study), []
    for method in study.methods:
        points = _points(study, method)
        if points:
            ends.append((points[-1].dice, points[-1].labelled * beside[method], method))
    ends.sort()
    low, high = axes.get_ylim()
    height = axes.get_position().height * figure.get_figheight()
    step = (high - low) * 0.19 / height
    places = _apart([end[0] for end in ends], step, low + step / 2, high - step / 2)
    right = axes.get_xlim()[1]
    for (dice, x, method), place in zip(ends, places):
        style = drawn[method]
        axes.annotate(
            _plain(name_of(method)), xy=(x, dice), xytext=(right * 1.09, place), textcoords="data", va="center",
            annotation_clip=False, fontsize=10, color=INK, fontweight="bold" if method == CONTROL else "normal",
            arrowprops={"arrowstyle": "-", "relpos": (0, 0.5), "color": style.colour, "shrinkA": 1, "shrinkB": 5},
        )  # fmt: skip


def _apart(values: Sequence[float], step: float, low: float, high: float) -> list[float]:
    """Move sorted values at least ``step`` apart, as little as possible, within ``low`` and ``high`` if they fit.

    Neighbours that are too near form a block, which lies around the mean of its members and takes in the next one that
    it reaches.
    """
    blocks: list[list[float]] = []
    for value in values:
        blocks.append([value])
        while (
            len(blocks) > 1
            and _bottom(blocks[-1], step, low, high) < _top(blocks[-2], step, low, high) + step
        ):
            last = blocks.pop()
            blocks[-1] += last
    return [_bottom(block, step, low, high) + step * place for block in blocks for place in range(len(block))]


def _bottom(block: Sequence[float], step: float, low: float, high: float) -> float:
    half = step * (len(block) - 1) / 2
    return max(low, min(float(np.mean(block)) - half, high - 2 * half))


def _top(block: Sequence[float], step: float, low: float, high: float) -> float:
    return _bottom(block, step, low, high) + step * (len(block) - 1)


def _legend(figure: "Figure", study: Study, width: float) -> None:
    from matplotlib.lines import Line2D

    keys = [
        Line2D([], [], color=s.colour, marker=s.marker, linestyle=s.dash, linewidth=0.7 * s.width, markersize=6,
               label=_plain(name_of(method)))
        for method in study.methods
        for s in [styles(study)[method]]
    ]  # fmt: skip
    figure.legend(
        handles=keys,
        loc="outside upper left",
        ncols=min(len(keys), 6 if width == WIDE else 3),
        frameon=False,
        fontsize=9.5,
    )


def _across(panels: int, width: float) -> int:
    """Return how many panels stand side by side: up to three, but four as two by two."""
    if width < WIDE:
        return 1
    return 2 if panels == 4 else min(3, panels)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def _tidy(axes: "Axes") -> None:
    axes.grid(color=PALE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(labelsize=9.5, colors=INK)


def _plain_log(axes: "Axes") -> None:
    """Write minutes as ``5``, ``10``, ``20``, not as powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _plain(text: str) -> str:
    """Keep a name from being read as a formula."""
    return text.replace("$", r"\$")
