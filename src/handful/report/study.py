"""One self-contained HTML page about a study, the same as Markdown for a README, and its first figure as a file."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

import handful
from handful.artefacts import atomic_path, write_text
from handful.errors import DataError
from handful.report import study_figures, study_tables
from handful.report.evidence import listing, mapping
from handful.report.figures import CONFUSED, EXTRA, MISSED, png
from handful.report.render import render, source
from handful.report.study_files import CONTROL, Row, Study, is_study, read_study
from handful.report.study_markdown import markdown
from handful.report.study_pictures import pictures
from handful.report.study_words import CONTROL_WORDS, budget_words, failures, headline, name_of, warnings
from handful.report.words import count

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["is_study", "write_study_report"]

DPI = 160
"""Of figures on the page: sharp on a screen of high resolution."""

LOG_ENDS = 3
"""Entries of the audit log shown from its beginning and from its end, besides those about test labels."""

NAMES_SHOWN = 400
"""Longest list of test cases written out."""

REFERENCES = (
    "Maier-Hein, Reinke et al., 2024. Metrics reloaded: recommendations for image analysis validation. "
    "Nature Methods 21. doi:10.1038/s41592-023-02151-z",
    "Holm, 1979. A simple sequentially rejective multiple test procedure. Scandinavian Journal of Statistics 6.",
    "Hesterberg, 2015. What teachers should know about the bootstrap. The American Statistician 69(4). arXiv:1411.5279",
)


def write_study_report(study: Path, *, out: Path | None = None, images: bool = True) -> Path:
    """Write the page of a study, ``report.md`` and ``figure.png`` and ``figure.svg`` beside it; return the page's path.

    Args:
        study: folder made by ``handful study``, scored. Runs that failed or are missing are shown as such.
        out: file of the page; ``report.html`` in the study's folder if not given. The others lie beside it.
        images: show slices of the worst cases. Without them no patient's image is on the page.

    Raises:
        UsageError: not a study, or one that is not scored yet.
        DataError: one of its tables is damaged.

    Example:
        >>> write_study_report(Path("studies/hippocampus"))  # doctest: +SKIP
        PosixPath('studies/hippocampus/report.html')
    """
    found = read_study(Path(study))
    page = out or found.folder / "report.html"
    write_text(page, render("study.html.j2", _content(found, images=images)))
    write_text(page.with_name("report.md"), markdown(found, figure="figure.png"))
    figure = study_figures.efficiency(found)
    with atomic_path(page.with_name("figure.png")) as temporary:
        temporary.write_bytes(png(figure, dpi=200))
    with atomic_path(page.with_name("figure.svg")) as temporary:
        temporary.write_bytes(study_figures.svg(figure))
    return page


def _content(study: Study, *, images: bool) -> dict[str, Any]:
    problems = list(study.problems)

    def section(name: str, build: Callable[[Study], Any]) -> Any:
        try:
            return build(study)
        except (AttributeError, DataError, IndexError, KeyError, OSError, TypeError, ValueError) as error:
            problems.append(f"The part '{name}' could not be shown ({type(error).__name__}: {error}).")
            return None

    content = {
        "version": handful.__version__,
        "title": _title(study),
        "control": CONTROL_WORDS,
        "verdict": section("verdict", headline),
        "warnings": section("warnings", warnings) or [],
        "budgets": [budget_words(study, budget) for budget in study.budgets],
        "methods": [name_of(method) for method in study.methods],
        "draws": study.draws_words,
        "several": len(study.budgets) > 1,
        "efficiency": section("label efficiency", lambda s: _figure(study_figures.efficiency, s)),
        "results": section("results", study_tables.results),
        "other": section("other measures", study_tables.other_measures),
        "forest": section("differences", lambda s: _figure(study_figures.forest, s))
        if study.comparisons
        else None,
        "comparisons": section("differences", study_tables.comparisons),
        "counts": study_tables.verdict_counts(study),
        "structures": section("structures", lambda s: _figure(study_figures.structures, s)),
        "structure_rows": section("structures", study_tables.structures),
        "left_out": study.structures[study_figures.PANELS :],
        "saved": section("labels saved", study_tables.saved),
        "cost": section("cost", lambda s: _figure(study_figures.cost, s)),
        "cost_rows": section("cost", study_tables.cost),
        "energy": study_tables.has_energy(study),
        "failures": [_failure(study, row) for row in failures(study)],
        "runs": section("runs", study_tables.runs),
        "worst": section("worst cases", study_tables.worst_cases),
        "pictures": section("pictures", pictures) if images else None,
        "images": images,
        "colours": study_tables.colours(study),
        "errors_legend": (("missed", MISSED), ("extra", EXTRA), ("wrong structure", CONFUSED)),
        "protocol": section("protocol", _protocol),
        "definitions": section("definitions", lambda s: _facts(mapping(s.about.get("definitions")))),
        "log": section("audit log", _log),
        "repeat": section("command", _command),
        "labelled": section("labelled cases", _labelled),
        "files": section("files", lambda s: _as_text(mapping(s.about.get("files")))),
        "recipes": section("recipes", _recipes),
        "references": REFERENCES,
    }
    return content | {"problems": problems}


def _figure(draw: Callable[..., "Figure"], study: Study) -> dict[str, str]:
    """Draw for wide and for narrow pages."""
    return {
        "wide": source(draw(study, width=study_figures.WIDE), dpi=DPI),
        "narrow": source(draw(study, width=study_figures.NARROW), dpi=DPI),
    }


def _title(study: Study) -> dict[str, str]:
    data = mapping(study.about.get("data"))
    others = sum(method != CONTROL for method in study.methods)
    return {
        "dataset": str(data.get("name") or study.folder.resolve().name),
        "what": f"{count(others, 'method')} beside the control, {count(len(study.budgets), 'budget')}, "
        f"{study.draws_words} of labels, {count(len(_test_cases(study)), 'test case')}",
    }


def _test_cases(study: Study) -> list[str]:
    named = [str(case) for case in listing(study.about.get("test_cases"))]
    return named or sorted({str(row["case"]) for row in study.scores})


def _protocol(study: Study) -> list[tuple[str, str]]:
    """Say what was asked, on which data, with what."""
    cases, data = _test_cases(study), mapping(study.about.get("data"))
    patients = {str(row["patient"]) for row in study.scores}
    names = ", ".join(cases[:NAMES_SHOWN]) + (
        f" and {len(cases) - NAMES_SHOWN} more" if len(cases) > NAMES_SHOWN else ""
    )
    asked = mapping(study.about.get("asked")) or study.asked
    given = [str(text) for text in listing(asked.get("methods"))]
    specs = {text.partition("=")[0]: text for text in given if "=" in text}
    facts: list[tuple[str, Any]] = [
        ("Data set", data.get("name")),
        ("Content hash", data.get("hash")),
        ("Test cases", f"{count(len(cases), 'case')} of {count(len(patients), 'patient')}: {names}"),
        ("Methods", ", ".join(specs.get(method, name_of(method)) for method in study.methods)),
        ("Budgets", ", ".join(budget_words(study, budget) for budget in study.budgets)),
        (
            "Draws of labels",
            f"{study.draws_words}; the cases of a smaller budget are in the larger ones of the same draw",
        ),
        ("Seed", study.about.get("seed")),
    ]
    shown = {"methods", "labels", "draws", "seed", "command"}
    facts += [
        (key.replace("_", " ").capitalize(), _plain(value))
        for key, value in asked.items()
        if key not in shown
    ]
    for part in ("versions", "machine"):
        content = study.about.get(part)
        facts.append((part.capitalize(), _plain(content)))
    return [(what, str(value)) for what, value in facts if value not in (None, "", [], {})]


def _facts(content: Any) -> list[tuple[str, str]]:
    return [(str(key).replace("_", " ").capitalize(), _plain(value)) for key, value in content.items()]


def _plain(value: Any) -> str:
    """Write a value as people do; a mapping as ``name value, name value``."""
    if value is None:
        return ""
    if isinstance(value, dict):
        return ", ".join(
            f"{key} {_plain(content)}" for key, content in value.items() if content not in (None, "")
        )
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _log(study: Study) -> list[tuple[str, str]]:
    """Return the beginning and the end of the audit log, and everything it says about test labels."""
    entries = list(study.audit)
    keep = {*range(LOG_ENDS), *range(len(entries) - LOG_ENDS, len(entries))}
    lines, gap = [], False
    for place, entry in enumerate(entries):
        moment = str(entry.get("time") or "").replace("T", " ")[:19]
        text = _plain(
            {
                # lists of runs and tables of hashes: how long they are is enough here
                key: len(value) if isinstance(value, dict | list) else value
                for key, value in entry.items()
                if key not in ("time", "event")
            }
        )
        event = str(entry.get("event") or "")
        if place not in keep and "test" not in event:
            gap = True
            continue
        if gap:
            lines.append(("", "…"))
            gap = False
        lines.append((moment, f"{event}: {text}" if event and text else event or text))
    return lines


def _command(study: Study) -> str:
    asked = mapping(study.about.get("asked"))
    command = study.about.get("command") or asked.get("command") or study.asked.get("command")
    if isinstance(command, list):
        return shlex.join(str(word) for word in command)
    return str(command or "")


def _labelled(study: Study) -> list[tuple[str, str, str]]:
    """Return budget, draw and the cases labelled in it."""
    found = mapping(study.about.get("labelled"))
    return [
        (
            budget_words(study, str(budget)),
            str(draw),
            ", ".join(map(str, names[:NAMES_SHOWN]))
            + (f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""),
        )
        for budget, draws in found.items()
        for draw, names in mapping(draws).items()
    ]


def _recipes(study: Study) -> list[tuple[str, str]]:
    """Return what each recipe is of, and its text."""
    return [
        (
            f"{name_of(str(entry['method']))}, {entry['kind']}: {', '.join(map(str, entry['where']))}",
            _as_text(entry["recipe"]),
        )
        for entry in map(mapping, listing(study.about.get("recipes")))
    ]


def _as_text(content: Any) -> str:
    return yaml.safe_dump(content, sort_keys=False, width=110, default_flow_style=None) if content else ""


def _failure(study: Study, row: Row) -> tuple[str, str, str, str, str]:
    return (
        name_of(str(row["method"])),
        budget_words(study, str(row["budget"])),
        f"{row['draw']:g}",
        str(row["status"]),
        str(row["reason"] or "no reason was recorded"),
    )
