"""One self-contained HTML page about a run: what was measured, on whom, from which labels, and how to repeat it.

The page loads nothing (its own content policy forbids it), runs no script, and can be printed, mailed and archived.
Whatever is missing is said in the place where it would have been.
"""

import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import handful
from handful.artefacts import read_json, write_text
from handful.errors import DataError
from handful.report.evidence import Evidence, listing, mapping, number, read_run
from handful.report.figures import (
    CONFUSED,
    EXTRA,
    MISSED,
    curves,
    panel_curves,
    structure_colours,
)
from handful.report.health import findings, loss_panel, panels
from handful.report.pretraining import beyond_budget, headline, is_pretraining, start, train_command, uses
from handful.report.render import render, source
from handful.report.slices import show_case
from handful.report.words import count, duration, interval, some

METRICS = {"dice": "Dice", "hd95_mm": "HD95, mm", "assd_mm": "ASSD, mm", "nsd": "NSD"}
POOR = 0.5
"""Structures below this Dice are listed among the failures."""
NAMES_SHOWN = 400
"""Longest list of case names written out."""
REFERENCES = (
    "Maier-Hein, Reinke et al., 2024. Metrics reloaded: recommendations for image analysis validation. "
    "Nature Methods 21. doi:10.1038/s41592-023-02151-z",
    "Nikolov et al., 2021. Clinically applicable segmentation of head and neck anatomy for radiotherapy (normalised "
    "surface Dice). JMIR 23(7). doi:10.2196/26151",
)

Row = Mapping[str, Any]


def write_report(run: Path, *, out: Path | None = None, images: bool = True) -> Path:
    """Write the page of a run and return its path.

    Args:
        run: folder made by ``handful train`` or ``handful pretrain``; parts may be missing or damaged, the
            page then says which.
        out: file to write; ``report.html`` in the run folder if not given.
        images: show slices of cases. Without them no patient's image is on the page.

    Raises:
        UsageError: ``run`` holds nothing of a run.
    """
    evidence = read_run(run)
    target = out or run / "report.html"
    name = "pretraining" if is_pretraining(evidence) else "segmentation"
    write_text(target, render(f"{name}.html.j2", _content(evidence, images=images)))
    return target


def _content(evidence: Evidence, *, images: bool) -> dict[str, Any]:
    """Gather what the template shows; a section whose files hold something unexpected is None and named."""
    problems = list(evidence.problems)

    def section(name: str, build: Callable[[Evidence], Any]) -> Any:
        try:
            return build(evidence)
        except (AttributeError, DataError, IndexError, KeyError, OSError, TypeError, ValueError) as error:
            problems.append(f"The part '{name}' could not be shown ({type(error).__name__}: {error}).")
            return None

    content = {
        "version": handful.__version__,
        "title": section("title", _title) or evidence.run.name,
        "data": section("data", _data),
        "split": section("split", _split),
        "plan": section("plan", _plan),
        "training": section("training", _training),
        "environment": section("environment", _environment),
        "settings": section("settings", lambda found: _flat(found.recipe)),
        "repeat": section("command", _command),
        "licence": section("licence", _licence),
    }
    papers = [*map(str, listing(evidence.manifest.get("references")))]
    if is_pretraining(evidence):
        content |= {
            "verdict": section("verdict", headline),
            "next": section("next command", train_command),
            "health": section("health", _health),
            "references": papers,
        }
        warnings = section("warnings", _weak_start)
    else:
        results = section("results", _results)
        content |= {
            "verdict": section("verdict", lambda found: _verdict(found, results)),
            "results": results,
            "pictures": section("pictures", lambda found: _pictures(found, results))
            if results and images
            else None,
            "images": images,
            "errors_legend": (("missed", MISSED), ("extra", EXTRA), ("wrong structure", CONFUSED)),
            "poor": POOR,
            "definitions": section("definitions", _definitions),
            "references": [*papers, *REFERENCES],
        }
        warnings = section("warnings", lambda found: _warnings(found, results))
    return content | {"warnings": warnings or [], "problems": problems}


def _title(evidence: Evidence) -> dict[str, str]:
    dataset = (
        mapping(evidence.manifest.get("dataset")).get("name")
        or evidence.plan.get("dataset")
        or evidence.run.name
    )
    method = evidence.manifest.get("method") or evidence.recipe.get("name") or "unknown method"
    finished = evidence.manifest.get("finished")
    state = (
        f"finished {_moment(finished)}"
        if finished
        else "not finished"
        if evidence.manifest
        else "state unknown"
    )
    return {
        "dataset": str(dataset),
        "method": str(method),
        "run": evidence.run.resolve().name,
        "state": state,
    }


def _verdict(evidence: Evidence, results: Row | None) -> dict[str, str]:
    """Say in one sentence what was reached, on whom, from how many labels."""
    labelled, images = len(evidence.cases("labelled")), len(_trainable(evidence))
    if evidence.manifest:
        training = f"trained on the labels of {labelled} of {count(images, 'case')}"
    else:
        training = "trained on unknown cases"
    if not results:
        return {
            "figure": "–",
            "caption": "no score",
            "sentence": f"There is no held-out result: this model, {training}, was not evaluated.",
        }
    ends = results["mean"]["ends"]["dice"]
    spread = f"95 % interval {interval(ends, 3)}" if ends else "no interval: that needs two patients"
    dice = results["mean"]["dice"]
    value = f"{dice:.3f}" if dice is not None else "–"
    return {
        "figure": value,
        "caption": f"mean Dice, {spread}",
        "sentence": f"Mean Dice {value} ({spread}) on {results['where']}, {training}.",
    }


def _results(evidence: Evidence) -> dict[str, Any] | None:
    """Return the scores a structure and a case; None if nothing was evaluated."""
    scores = [mapping(row) for row in listing(evidence.summary.get("cases"))]
    if not scores:
        return None
    classes, ci95 = mapping(evidence.summary.get("classes")), mapping(evidence.summary.get("ci95"))
    structures = list(dict.fromkeys([*classes, *(str(row["class"]) for row in scores)]))
    colours = dict(zip(structures, structure_colours(len(structures))))

    def line(name: str, values: Row, ends: Row, rows: Sequence[Row]) -> dict[str, Any]:
        return {
            "name": name,
            **{metric: number(values.get(metric)) for metric in METRICS},
            "ends": {metric: _ends(ends.get(metric)) for metric in METRICS},
            "dots": [
                (str(row["case"]), dice) for row in rows if (dice := number(row.get("dice"))) is not None
            ],
        }

    lines = []
    for name in structures:
        own = [row for row in scores if row["class"] == name]
        kinds = Counter(_failure(row) for row in own)
        lines.append(
            line(name, mapping(classes.get(name)), mapping(mapping(ci95.get("classes")).get(name)), own)
            | {"colour": colours[name], "missed": kinds["missed"], "invented": kinds["invented"]}
        )
    cases: list[dict[str, Any]] = []
    for case in dict.fromkeys(str(row["case"]) for row in scores):
        own = [row for row in scores if str(row["case"]) == case]
        found = [(dice, str(row["class"])) for row in own if (dice := number(row.get("dice"))) is not None]
        if found:
            average = sum(dice for dice, _ in found) / len(found)
            patient = str(own[0].get("patient") or evidence.patient(case))
            cases.append({"case": case, "patient": patient, "dice": average, "least": min(found)})
    cases.sort(key=lambda row: (row["dice"], row["case"]))
    mean = line("Mean of structures", mapping(evidence.summary.get("mean")), mapping(ci95.get("mean")), ())
    mean["dots"] = [(row["case"], row["dice"]) for row in cases]
    failures = [
        {"case": str(row["case"]), "structure": str(row["class"]), "kind": kind, "dice": number(row.get("dice")),
         "volume_ml": number(row.get("volume_ml")), "reference_ml": number(row.get("reference_ml"))}
        for row in scores if (kind := _failure(row))
    ]  # fmt: skip
    order = ("missed", "invented", "low overlap")
    failures.sort(key=lambda row: (order.index(str(row["kind"])), row["dice"] or 0.0))
    return {
        "lines": lines,
        "mean": mean,
        "cases": cases,
        "failures": failures,
        "where": _where(evidence, [row["case"] for row in cases]),
        "notes": [str(note) for note in listing(evidence.summary.get("notes"))],
    }


def _failure(row: Row) -> str:
    """Return how a structure failed in one case, "" if it did not."""
    status = {"prediction empty": "missed", "reference empty": "invented"}.get(str(row.get("status")), "")
    dice = number(row.get("dice"))
    return status or ("low overlap" if dice is not None and dice < POOR else "")


def _where(evidence: Evidence, scored: Sequence[str]) -> str:
    """Say on which cases the scores were taken, in the words of the split."""
    patients = count(len({evidence.patient(case) for case in scored}), "patient")
    for part, words in (("test", "held-out "), ("validation", "validation ")):
        if scored and set(scored) <= set(evidence.cases(part)):
            return f"{count(len(scored), words + 'case')} of {patients}"
    if evidence.manifest and not set(scored) & set(evidence.cases("labelled")):
        return f"{count(len(scored), 'case')} outside the training labels"
    return count(len(scored), "case") + (" (some of them trained on)" if evidence.manifest else "")


def _pictures(evidence: Evidence, results: Row) -> list[dict[str, Any]]:
    """Draw the worst, the median and the best case; what cannot be drawn says why."""
    cases = results["cases"]
    if not cases:
        return []
    values = [int(value) for value in listing(evidence.plan.get("label_values"))]
    names = [str(name) for name in listing(evidence.plan.get("label_names"))]
    colour_of = {line["name"]: line["colour"] for line in results["lines"]}
    spare = structure_colours(len(values))
    colours = [colour_of.get(name, spare[index]) for index, name in enumerate(names)][1:]
    chosen = {len(cases) - 1: "Best", (len(cases) - 1) // 2: "Median", 0: "Worst"}
    if len(cases) == 1:
        chosen = {0: "Only"}
    shown = []
    for place, rank in sorted(chosen.items()):
        case, rows, trouble = cases[place], [], ""
        try:
            if not values:
                raise DataError("plan.yaml does not say which value is which structure.")
            rows = show_case(evidence, case["case"], label_values=values, colours=colours)
        except (DataError, OSError, ValueError) as error:
            trouble = str(error)
        shown.append({"rank": rank, **case, "rows": rows, "trouble": trouble})
    return shown


def _data(evidence: Evidence) -> dict[str, Any]:
    """Describe the data set: sizes, spacings, and how large each structure is."""
    dataset = mapping(evidence.manifest.get("dataset"))
    cases = [mapping(case) for case in listing(evidence.fingerprint.get("cases"))]
    everyone = _everyone(evidence)
    facts = [
        ("Data set", dataset.get("name")),
        ("Folder", dataset.get("root")),
        ("Layout", dataset.get("layout")),
        ("Content hash", dataset.get("hash")),
        ("Cases", len(everyone) or None),
        ("Patients", len({evidence.patient(case) for case in everyone}) or None),
        (
            "Patients known from",
            dataset.get("patients_from") or "nothing: each case counts as a patient of its own",
        ),
        ("Channels", ", ".join(map(str, listing(evidence.fingerprint.get("channel_names"))))),
        ("Shape (R, A, S), voxels", _range([case["shape"] for case in cases])),
        ("Spacing (R, A, S), mm", _range([case["spacing_mm"] for case in cases])),
        (
            "Orientation of the files",
            ", ".join(f"{n} {code}" for code, n in Counter(c["orientation"] for c in cases).most_common()),
        ),
    ]
    values = listing(evidence.plan.get("label_values"))
    names = listing(evidence.plan.get("label_names"))
    found = [mapping(entry) for entry in listing(evidence.fingerprint.get("classes"))]
    scores = [mapping(row) for row in listing(evidence.summary.get("cases"))]
    structures = []
    for value, name in list(zip(values, names))[1:]:
        training = [float(entry["volume_ml"]) for entry in found if entry.get("value") == value]
        test = [ml for row in scores if row.get("class") == name and (ml := number(row.get("reference_ml")))]
        structures.append(
            {
                "name": name,
                "value": value,
                "training": _volumes(training),
                "test": _volumes(test),
                "in_training": len(training),
            }
        )
    return {
        "facts": [(what, value) for what, value in facts if value not in (None, "")],
        "scored": bool(scores),
        "structures": [row for row in structures if row["in_training"] or not is_pretraining(evidence)],
        "read": len(listing(evidence.fingerprint.get("labelled"))),
        "notes": [str(note) for note in listing(dataset.get("notes"))],
    }


def _split(evidence: Evidence) -> list[dict[str, Any]]:
    used = (
        uses(evidence)
        if is_pretraining(evidence)
        else {
            "labelled": "labels seen in training",
            "unlabelled": "labels never opened; images used only by methods that learn from them",
            "validation": "watched during training",
            "test": "held out: used for nothing but the scores",
        }
    )
    rows = []
    for part, use in used.items():
        cases = evidence.cases(part)
        if part == "validation" and not cases:
            continue  # few-label runs watch nothing, and need not say so
        patients = {evidence.patient(case) for case in cases}
        names = ", ".join(cases[:NAMES_SHOWN]) + (
            f" and {len(cases) - NAMES_SHOWN} more" if len(cases) > NAMES_SHOWN else ""
        )
        rows.append(
            {"part": part, "use": use, "cases": len(cases), "patients": len(patients), "names": names}
        )
    return rows


def _plan(evidence: Evidence) -> list[tuple[str, str, str]]:
    """Return what was decided, its value, and why."""
    from handful.data.plan import explain, read_plan

    return explain(read_plan(evidence.run / "plan.yaml")) if evidence.plan else []


def _training(evidence: Evidence) -> dict[str, Any]:
    rows = evidence.metrics
    last = rows[-1] if rows else {}
    seconds = number(evidence.manifest.get("seconds")) or last.get("seconds")
    steps = number(evidence.manifest.get("steps")) or last.get("step")
    facts = [
        ("Started from", start(evidence)),
        ("Steps", f"{steps:,.0f}" if steps else None),
        ("Time", duration(seconds) if seconds else None),
        ("Steps per second", f"{steps / seconds:.2f}" if steps and seconds else None),
        ("Last loss", f"{last['loss']:.4f}" if "loss" in last else None),
    ]
    drawn = rows and not is_pretraining(evidence)  # whose curves are drawn with its health
    return {
        "facts": [(what, value) for what, value in facts if value],
        "source": source(curves(rows)) if drawn else "",
    }


def _health(evidence: Evidence) -> dict[str, Any]:
    """Return what the measures of a pre-training say, and each of them drawn."""
    rows, classes = evidence.metrics, len(listing(evidence.plan.get("label_values")))
    if not rows:
        return {"findings": [], "panels": []}
    shown = [loss_panel(rows), *panels(rows, classes=classes)]
    return {
        "findings": findings(rows, classes=classes),
        "panels": [
            {"title": panel.title, "reading": panel.reading, "source": source(panel_curves(panel, rows))}
            for panel in shown
        ],
    }


def _environment(evidence: Evidence) -> list[tuple[str, str]]:
    parameters = number(evidence.manifest.get("parameters"))
    facts = {
        "handful": evidence.manifest.get("version"),
        "Python": evidence.manifest.get("python"),
        "PyTorch": evidence.manifest.get("torch"),
        "Device": " – ".join(
            str(evidence.manifest[key]) for key in ("device", "device_name") if evidence.manifest.get(key)
        ),
        "Threads": evidence.manifest.get("threads"),
        "Precision": evidence.manifest.get("precision"),
        "Seed": evidence.manifest.get("seed"),
        "Parameters": f"{parameters:,.0f}" if parameters else None,
        "Started": _moment(evidence.manifest.get("started")),
        "Finished": _moment(evidence.manifest.get("finished")),
    }
    return [(what, str(value)) for what, value in facts.items() if value not in (None, "")]


def _command(evidence: Evidence) -> str:
    command = evidence.manifest.get("command")
    if isinstance(command, list):
        return shlex.join(str(word) for word in command)
    return str(command or "")


def _definitions(evidence: Evidence) -> list[tuple[str, str]]:
    words = METRICS | {"volume_ml": "Volume, ml", "ci95": "95 % interval"}
    found = mapping(evidence.summary.get("definitions"))
    return [(words.get(key, str(key).capitalize()), str(text)) for key, text in found.items()]


def _licence(evidence: Evidence) -> dict[str, str]:
    """Return what the data set says about its terms and how to cite it, from its ``dataset.json``."""
    path = Path(str(mapping(evidence.manifest.get("dataset")).get("root", ""))) / "dataset.json"
    found = mapping(read_json(path)) if path.is_file() else {}
    return {key: str(found[key]) for key in ("licence", "license", "reference") if found.get(key)}


def _warnings(evidence: Evidence, results: Row | None) -> list[str]:
    """Say what weakens the numbers on this page."""
    told = []
    dataset = mapping(evidence.manifest.get("dataset"))
    seen, test = evidence.cases("labelled"), evidence.cases("test")
    scored = [row["case"] for row in results["cases"]] if results else []
    if results is None:
        told.append("Nothing was evaluated: no statement about quality can be made from this page.")
    if leaked := sorted(set(seen) & {*scored, *test}):
        told.append(
            f"{count(len(leaked), 'scored case')} gave labels to the training ({some(leaked)}): "
            "such scores prove nothing."
        )
    shared = sorted(
        {evidence.patient(case) for case in _trainable(evidence)} & {evidence.patient(case) for case in test}
    )
    if shared and not leaked:
        told.append(
            f"{count(len(shared), 'patient')} in both training and test ({some(shared)}): the scores are too good."
        )
    if evidence.manifest and not dataset.get("patients_from"):
        told.append(
            "Patients are unknown: each case counts as a patient of its own. If some patients have several cases, "
            "the test cases are not independent of the training cases and the intervals are too narrow."
        )
    if evidence.manifest and not evidence.manifest.get("finished"):
        told.append("The training has not finished; run its command again to continue it.")
    if unscored := sorted(set(test) - set(scored)) if scored else []:
        told.append(f"{len(unscored)} of {count(len(test), 'held-out case')} not scored: {some(unscored)}.")
    if results and results["mean"]["ends"]["dice"] is None:
        told.append(
            "There is no interval: with fewer than two patients nothing can be said about the next one."
        )
    if beyond := beyond_budget(evidence):
        told.append(
            f"The weights this training started from learned from the labels of {count(len(beyond), 'case')} outside "
            f"its budget ({some(beyond)}): compare it with runs of that budget only."
        )
    missed, invented = (
        sum(line[kind] for line in results["lines"]) if results else 0 for kind in ("missed", "invented")
    )
    if invented:
        told.append(f"Structures found where there is none: {invented}; see Failures.")
    if missed:
        told.append(f"Structures missed altogether: {missed}; see Failures.")
    return [*told, *map(str, listing(evidence.summary.get("problems")))]


def _weak_start(evidence: Evidence) -> list[str]:
    """Say what weakens a comparison that starts from these weights."""
    told = []
    learned, test = [*evidence.cases("labelled"), *evidence.cases("unlabelled")], evidence.cases("test")
    shared = sorted({evidence.patient(case) for case in learned} & {evidence.patient(case) for case in test})
    if shared:
        told.append(
            f"{count(len(shared), 'patient')} in both training and test ({some(shared)}): a model trained from these "
            "weights has seen images of the patients it is tested on."
        )
    if evidence.manifest and not mapping(evidence.manifest.get("dataset")).get("patients_from"):
        told.append(
            "Patients are unknown: each case counts as a patient of its own. If some patients have several cases, "
            "images of held-out patients may have been learned from."
        )
    if evidence.manifest and not evidence.manifest.get("finished"):
        told.append("The pre-training has not finished; run its command again to continue it.")
    if beyond := beyond_budget(evidence):
        told.append(
            f"The weights this pre-training started from learned from the labels of {count(len(beyond), 'case')} "
            f"outside its budget ({some(beyond)})."
        )
    return told


def _trainable(evidence: Evidence) -> list[str]:
    """Return all cases but the held-out ones."""
    return [case for part in ("labelled", "unlabelled", "validation") for case in evidence.cases(part)]


def _everyone(evidence: Evidence) -> list[str]:
    return list(dict.fromkeys([*_trainable(evidence), *evidence.cases("test")]))


def _flat(settings: Row, prefix: str = "") -> list[tuple[str, str]]:
    """Return nested settings as ``part.name`` and value."""
    rows: list[tuple[str, str]] = []
    for key, value in settings.items():
        rows += (
            _flat(value, f"{prefix}{key}.")
            if isinstance(value, Mapping)
            else [(f"{prefix}{key}", _words(value))]
        )
    return rows


def _words(value: Any) -> str:
    """Write a setting as people do: ``48 × 64 × 40``, ``yes``, ``kind window, low -150``."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_words(content)}" for key, content in value.items())
    if isinstance(value, list):
        numbers = all(isinstance(item, int | float) and not isinstance(item, bool) for item in value)
        return (" × " if numbers else ", ").join(_words(item) for item in value)
    return str(value)


def _range(rows: Sequence[Sequence[float]]) -> str:
    """Write the smallest and largest of each axis: ``31–43 × 40–59 × 24–47``."""
    ends = [(f"{min(column):.4g}", f"{max(column):.4g}") for column in zip(*rows)]
    return " × ".join(low if low == high else f"{low}–{high}" for low, high in ends)


def _volumes(ml: Sequence[float]) -> str:
    if not ml:
        return "–"
    return f"{median(ml):.3g} ({min(ml):.3g}–{max(ml):.3g})"


def _ends(content: Any) -> tuple[float, float] | None:
    low, high = (
        (number(end) for end in content) if isinstance(content, list) and len(content) == 2 else (None, None)
    )
    return None if low is None or high is None else (low, high)


def _moment(iso: Any) -> str:
    return str(iso or "").replace("T", " ")[:19]
