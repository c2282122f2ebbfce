"""What a study found, as tidy files: one row a score, a run, a method and budget; and all of it in ``summary.json``."""

import csv
import io
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import handful
from handful.artefacts import read_json, write_json, write_text
from handful.data.splits import Splits
from handful.metrics.bootstrap import mean_score
from handful.studies.arms import CONTROL
from handful.studies.audit import EXTENDED, OPENED
from handful.studies.folder import OUTCOME, StudyFolder
from handful.studies.grid import Asked, Unit
from handful.studies.leakage import CHECKED, said_of_copies
from handful.studies.overlap import labelled_in, overlaps
from handful.studies.plans import IMAGES
from handful.studies.repeat import command, files_of, recipes_of
from handful.studies.score import snapshot_scores
from handful.studies.statistics import (
    Bounds,
    Estimate,
    Saved,
    compare,
    estimate,
    holm,
    labels_saved,
    mean_ranks,
)

COLUMNS = {
    "scores": "method,budget,n_labelled,draw,case,patient,class,dice,hd95_mm,assd_mm,nsd,volume_ml,reference_ml",
    "patients": "method,budget,n_labelled,draw,patient,class,volumes,dice,hd95_mm,assd_mm,nsd",
    "runs": "method,budget,n_labelled,draw,status,reason,dice,seconds,pretrain_seconds,steps,peak_memory_mb,"
    "best_dice,best_step,energy_wh",
    "summary": "method,budget,n_labelled,draws,dice,dice_sd,low,high,hd95_mm,nsd,rank,selection_gap,"
    "hd95_low,hd95_high,nsd_low,nsd_high",
    "comparisons": "method,budget,n_labelled,difference,low,high,p,p_corrected,draws,verdict,"
    "hd95_difference,hd95_low,hd95_high,nsd_difference,nsd_low,nsd_high",
    "saved": "method,budget,n_labelled,equal_labels,low,high,note",
}
"""The columns of each file, in their order."""

SURE, NOISE = "more than noise", "within the noise"
UNDECIDED = {1: "one draw: not decided", 2: "two draws: not decided"}
ALPHA = 0.05
OTHERS, LARGEST = {"hd95_mm": "hd95", "nsd": "nsd"}, {"hd95_mm": math.inf, "nsd": 1.0}
"""Metric -> how columns of its intervals and differences begin, and the most it can be."""

FEW_PATIENTS, FEW_DRAWS = 10, 3
"""With two draws, differences of nothing come out below 0.05 up to twice as often as that (benchmarks/intervals.py)."""

Row = dict[str, Any]


@dataclass
class Scored:
    """A run with its scores.

    Attributes:
        unit: which run.
        rows: of its ``summary.json``, one a case and class.
        tables: metric -> (cases, classes), NaN where not scored.
    """

    unit: Unit
    rows: Sequence[Mapping[str, Any]]
    tables: Mapping[str, NDArray[np.float64]]

    def mean(self, metric: str) -> float:
        """Return the mean over volumes, then over classes."""
        return mean_score(self.tables[metric])


def gather(
    folder: StudyFolder,
    asked: Asked,
    units: Sequence[Unit],
    splits: Splits,
    *,
    data_hash: str,
    plan: Path | None = None,
) -> dict[str, Any]:
    """Read the scores of all runs, compute what the study concludes, and write its files; return the summary.

    Args:
        folder: of the study.
        asked: its question.
        units: all its runs, scored or not.
        splits: names the test cases.
        data_hash: of the data the runs saw.
        plan: the file all runs followed, or None.
    """
    scored = _read_scores(folder, units)
    some = next(iter(scored.values()), None)
    patient_of = {row["case"]: row["patient"] for row in some.rows} if some else {}
    patients = [patient_of[case] for case in sorted(patient_of)]
    runs = [_run_row(folder, unit, scored.get(unit)) for unit in units]
    found = _Findings(asked, units, scored, patients)
    gaps = _gaps(runs)
    for row in found.summary:
        row["selection_gap"] = gaps.get((row["method"], row["budget"]))
    tables: dict[str, list[Row]] = {
        "scores": [_score_row(unit, row) for unit, s in scored.items() for row in s.rows],
        "patients": [{**_of(unit), **row} for unit, s in scored.items() for row in of_patients(s.rows)],
        "runs": runs,
        "summary": found.summary,
        "comparisons": found.comparisons,
        "saved": found.saved,
    }
    content = {
        "command": command(asked, plan=plan is not None),
        "files": files_of(folder, plan),
        "definitions": _definitions(),
        "data": {"name": splits.dataset.name, "hash": data_hash},
        "test_cases": sorted(splits.test),
        "test_patients": len(set(patients)),
        "labelled": labelled_in(units, splits),
        "asked": asked.as_dict(),
        "seed": asked.seed,
        "versions": {
            "handful": handful.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "machine": _machine(folder, units),
        "warnings": _warnings(folder, asked, units, runs, splits, patients, found, gaps),
        "ranks": found.ranks,
        "recipes": recipes_of(folder),
        **{name: tables[name] for name in ("summary", "comparisons", "saved", "runs")},
    }
    for name, rows in tables.items():
        _write_csv(folder.tables[name], COLUMNS[name].split(","), rows)
    write_json(folder.summary, content)
    summary: dict[str, Any] = read_json(folder.summary)
    return summary


class _Findings:
    """The rows of ``summary``, ``comparisons`` and ``saved``."""

    def __init__(
        self, asked: Asked, units: Sequence[Unit], scored: Mapping[Unit, Scored], patients: Sequence[str]
    ) -> None:
        self.patients, self.seed = patients, asked.seed
        self.methods = [arm.name for arm in asked.arms]
        self.of: dict[tuple[str, str], dict[int, Scored]] = {}
        for unit, found in scored.items():
            self.of.setdefault((unit.arm.name, unit.budget), {})[unit.draw] = found
        counts: dict[str, list[int]] = {}
        for unit in units:
            if unit.arm.name == CONTROL:
                counts.setdefault(unit.budget, []).append(unit.n_labelled)
        self.labelled = {budget: float(np.mean(count)) for budget, count in counts.items()}
        self.budgets = list(asked.labels)
        cells = self._cells()
        self.ranks = mean_ranks(list(cells.values()))
        self.summary, self.comparisons, self.saved = [], [], []  # type: list[Row], list[Row], list[Row]
        for budget in self.budgets:
            self._summarise(budget, mean_ranks([cells[budget]]))
            self._compare(budget)
        self._count_saved()

    def _cells(self) -> dict[str, list[dict[str, float]]]:
        """Return, for each budget, the Dice of each method for each draw."""
        cells: dict[str, list[dict[str, float]]] = {budget: [] for budget in self.budgets}
        for budget in self.budgets:
            of = {m: self.of[m, budget] for m in self.methods if (m, budget) in self.of}
            for draw in sorted({draw for found in of.values() for draw in found}):
                cells[budget].append(
                    {m: found[draw].mean("dice") for m, found in of.items() if draw in found}
                )
        return cells

    def _tables(self, method: str, budget: str, metric: str = "dice") -> dict[int, NDArray[np.float64]]:
        """Return draw -> table."""
        found = self.of.get((method, budget), {})
        return {draw: found[draw].tables[metric] for draw in sorted(found)}

    def _key(self, method: str, budget: str) -> Row:
        return {"method": method, "budget": budget, "n_labelled": _whole(self.labelled[budget])}

    def _summarise(self, budget: str, ranks: Mapping[str, float]) -> None:
        for method in self.methods:
            tables = self._tables(method, budget)
            if not tables:
                continue
            e = estimate(list(tables.values()), self.patients, seed=self.seed)
            others: Row = {}
            for metric, name in OTHERS.items():
                own = self._tables(method, budget, metric)
                other = estimate(list(own.values()), self.patients, seed=self.seed)
                low, high = max(other.low, 0.0), min(other.high, LARGEST[metric])
                others |= {
                    metric: _mean([mean_score(table) for table in own.values()]),
                    f"{name}_low": _number(low), f"{name}_high": _number(high),
                }  # fmt: skip
            self.summary.append(
                {
                    **self._key(method, budget), "draws": e.draws, "dice": _number(e.mean), "dice_sd": _number(e.sd),
                    "low": _number(max(e.low, 0.0)), "high": _number(min(e.high, 1.0)), **others,
                    "rank": ranks.get(method),
                }
            )  # fmt: skip

    def _compare(self, budget: str) -> None:
        control = self.of.get((CONTROL, budget), {})
        found: list[tuple[str, Estimate, dict[str, Estimate]]] = []
        for method in self.methods:
            own = self.of.get((method, budget), {})
            both = sorted(set(own) & set(control))
            if method != CONTROL and both:

                def against(metric: str, own: Any = own, both: Sequence[int] = both) -> Estimate:
                    first, second = ([side[draw].tables[metric] for draw in both] for side in (own, control))
                    return compare(first, second, self.patients, seed=self.seed)

                others = {name: against(metric) for metric, name in OTHERS.items()}
                found.append((method, against("dice"), others))
        for (method, e, others), corrected in zip(found, holm([e.p for _, e, _ in found])):
            verdict = SURE if corrected < ALPHA else NOISE
            self.comparisons.append(
                {
                    **self._key(method, budget), "difference": _number(e.mean), "low": _number(e.low),
                    "high": _number(e.high), "p": _number(e.p), "p_corrected": _number(corrected), "draws": e.draws,
                    "verdict": UNDECIDED.get(e.draws, verdict),
                    **{f"{name}_difference": _number(other.mean) for name, other in others.items()},
                    **{f"{name}_low": _number(other.low) for name, other in others.items()},
                    **{f"{name}_high": _number(other.high) for name, other in others.items()},
                }
            )  # fmt: skip

    def _count_saved(self) -> None:
        curve = {self.labelled[b]: tables for b in self.budgets if (tables := self._tables(CONTROL, b))}
        if not curve:
            return
        for budget in self.budgets:
            for method in self.methods:
                tables = self._tables(method, budget)
                if method != CONTROL and tables:
                    found = labels_saved(tables, sorted(curve.items()), self.patients, seed=self.seed)
                    self.saved.append({**self._key(method, budget), **_saved(found, list(curve))})


def _saved(found: tuple[Saved, Bounds] | None, labels: Sequence[float]) -> Row:
    """Return the fields of ``saved`` but for method and budget; ``labels`` are the control's."""
    if found is None:
        note = "no draw finished in the method and in the control at every budget"
        return {"equal_labels": None, "low": None, "high": None, "note": note}
    number, (low, high, draws) = found
    inside = number.where == "inside"
    low, high = (end if math.isfinite(end) and end > 0 else float("nan") for end in (low, high))
    notes = {
        "inside": ["the interval is open where the control's curve ends"]
        * (math.isnan(low) or math.isnan(high)),
        "beyond": [f"better than the control with its largest budget run ({max(labels):g} labels)"],
        "below": [f"worse than the control with its smallest budget run ({min(labels):g} labels)"],
    }[number.where]
    if draws < FEW_DRAWS:
        notes = [
            *notes,
            f"{draws} draw{'s' * (draws > 1)} in common: the interval says little of other labels",
        ]
    return {
        "equal_labels": number.labels if inside else None,
        "low": _number(low),
        "high": _number(high),
        "note": "; ".join(notes),
    }


def _read_scores(folder: StudyFolder, units: Sequence[Unit]) -> dict[Unit, Scored]:
    found = {}
    for unit in units:
        if not (folder.finished(unit) and folder.scored(unit)):
            continue
        summary = read_json(folder.run(unit) / "summary.json")
        rows = summary["cases"]
        cases = {case: i for i, case in enumerate(sorted({row["case"] for row in rows}))}
        classes = {name: k for k, name in enumerate(dict.fromkeys(row["class"] for row in rows))}
        tables = {m: np.full((len(cases), len(classes)), np.nan) for m in ("dice", "hd95_mm", "nsd")}
        for row in rows:
            for metric, table in tables.items():
                if row[metric] is not None:
                    table[cases[row["case"]], classes[row["class"]]] = row[metric]
        found[unit] = Scored(unit, rows, tables)
    return found


def _score_row(unit: Unit, row: Mapping[str, Any]) -> Row:
    return {**_of(unit), **row}


def of_patients(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Return the mean over the volumes of each patient and class, of those scored; ``volumes`` counts all of them."""
    own: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        own.setdefault((row["patient"], row["class"]), []).append(row)
    return [
        {
            "patient": patient, "class": name, "volumes": len(volumes),
            **{
                metric: _mean([v[metric] for v in volumes if v[metric] is not None])
                for metric in ("dice", "hd95_mm", "assd_mm", "nsd")
            },
        }
        for (patient, name), volumes in own.items()
    ]  # fmt: skip


def _of(unit: Unit) -> Row:
    return {
        "method": unit.arm.name, "budget": unit.budget, "n_labelled": unit.n_labelled, "draw": unit.draw,
    }  # fmt: skip


def _run_row(folder: StudyFolder, unit: Unit, scored: Scored | None) -> Row:
    outcome = folder.outcome(unit)
    row: Row = {**_of(unit), "status": outcome.get("status", "missing"), "reason": outcome.get("reason", "")}
    if row["status"] != "finished":
        return row
    row |= {key: outcome[key] for key in ("seconds", "steps", "peak_memory_mb")}
    row["pretrain_seconds"] = _pretrain_seconds(folder, unit)
    row["energy_wh"] = _energy(folder, unit, outcome)
    if scored is None:
        return row
    last = scored.mean("dice")
    snapshots = snapshot_scores(folder.run(unit))
    best_step = max([*snapshots, outcome["steps"]], key=lambda step: snapshots.get(step, last))
    row |= {"dice": _number(last)}
    if snapshots:
        row |= {"best_dice": _number(snapshots.get(best_step, last)), "best_step": best_step}
    return row


def _pretrain_seconds(folder: StudyFolder, unit: Unit) -> float | None:
    """Return what the pre-training of a run took, also where other runs share it."""
    ran = read_json(folder.run(unit) / "manifest.json")
    if unit.arm.start is None:
        # a method may pre-train, teach itself, and give its cases other shapes inside its run
        return sum(float(ran.get(f"{part}_seconds", 0.0)) for part in ("pretrain", "teach", "synthetic"))
    before = _pretraining(folder, unit)
    return read_json(before / "manifest.json").get("seconds") if before else None


def _pretraining(folder: StudyFolder, unit: Unit) -> Path | None:
    """Return the folder of the pre-training that a run started from, while it is there."""
    assert unit.arm.start is not None
    init = read_json(folder.run(unit) / "manifest.json")["init"]
    places = [folder.pretrained / unit.arm.start / name for name in (unit.cell, IMAGES)]
    known = [Path(init["run"])] if init else []
    return next((place for place in (*known, *places) if (place / "manifest.json").is_file()), None)


def _energy(folder: StudyFolder, unit: Unit, outcome: Mapping[str, Any]) -> float | None:
    """Return the watt hours of a run and of the pre-training before it; None where one of them is not known."""
    own: float | None = outcome.get("energy_wh")
    if unit.arm.pretrain is None or own is None:
        return own
    before = _pretraining(folder, unit)
    file = before / OUTCOME if before else None
    spent: float | None = read_json(file).get("energy_wh") if file and file.is_file() else None
    return None if spent is None else own + spent


def _gaps(runs: Sequence[Row]) -> dict[tuple[str, str], float]:
    """Return, for each method and budget, the mean over draws of best minus last Dice."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in runs:
        if row.get("best_dice") is not None and row.get("dice") is not None:
            found.setdefault((row["method"], row["budget"]), []).append(row["best_dice"] - row["dice"])
    return {key: float(np.mean(gaps)) for key, gaps in found.items()}


def _warnings(
    folder: StudyFolder,
    asked: Asked,
    units: Sequence[Unit],
    runs: Sequence[Row],
    splits: Splits,
    patients: Sequence[str],
    found: _Findings,
    gaps: Mapping[tuple[str, str], float],
) -> list[str]:
    said = []
    failed = [row for row in runs if row["status"] != "finished"]
    for row in failed:
        where = f"{row['method']}, {row['budget']}, draw {row['draw']}"
        said.append(f"{where}: {row['status']}{': ' if row['reason'] else ''}{row['reason']}")
    if failed:
        said.append(
            f"{len(failed)} of {len(runs)} runs are not in the results; the same command tries them again. Means are "
            "over the draws that finished, differences over those that finished in both arms, ranks over budgets and "
            "draws that all methods finished."
        )
    same: dict[float, list[str]] = {}
    for budget, labels in found.labelled.items():
        same.setdefault(labels, []).append(budget)
    for labels, budgets in same.items():
        if len(budgets) > 1:
            said.append(f"the budgets {' and '.join(budgets)} are the same {labels:g} labelled cases.")
    said += _few_draws(found.summary)
    said += [
        f"{row['method']}, {row['budget']}: Dice is better than the control's by more than noise, but HD95 is worse by "
        f"{row['hd95_difference']:.2f} mm."
        for row in found.comparisons
        if row["verdict"] == SURE and row["difference"] > 0 and (row["hd95_difference"] or 0) > 0
    ]
    said += overlaps(units, splits)
    checked = folder.blind / CHECKED
    said += said_of_copies(read_json(checked)) if checked.is_file() else []
    count = len(set(patients))
    if found.summary and count < 2:
        said.append("one test patient: intervals say nothing of other patients.")
    elif found.summary and count < FEW_PATIENTS:
        said.append(
            f"{count} test patients: intervals over so few patients rest on the assumption that they are typical."
        )
    if splits.dataset.patients_from is None:
        said.append(
            "nothing says which cases belong to one patient: every case counts as its own, in the split and in the "
            "intervals."
        )
    if asked.lengths.max_time is not None:
        said.append(
            "runs are equally long by the clock: what else ran on the machine decides how far they came."
        )
    for method in dict.fromkeys(method for method, _ in gaps):
        own = [gap for (name, _), gap in gaps.items() if name == method]
        said.append(
            f"{method}: selection on the test set would have added {np.mean(own):.3f} Dice "
            f"(best of {asked.snapshots + 1} checkpoints minus the last, mean over its runs). The last is reported."
        )
    log = folder.audit.read()
    opened = [number for number, event in enumerate(log) if event["event"] == OPENED]
    late = [event["methods"] for event in log[min(opened, default=0) :] if event["event"] == EXTENDED]
    if late:
        said.append(
            f"added when test labels had been opened: {', '.join(spec for specs in late for spec in specs)}. Who chose "
            "them could know how the others did."
        )
    if len(opened) > 1:
        said.append(
            f"test labels were opened {len(opened)} times, for runs that had not been scored before; audit.jsonl says "
            "when and for which."
        )
    return said


def _few_draws(summary: Sequence[Row]) -> list[str]:
    """Say where there are too few draws to tell a difference from noise."""
    said = []
    for number in range(1, FEW_DRAWS):
        at: dict[str, list[str]] = {}
        for row in summary:
            if row["draws"] == number:
                at.setdefault(row["budget"], []).append(row["method"])
        methods = {budget: {row["method"] for row in summary if row["budget"] == budget} for budget in at}
        where = ", ".join(
            budget if set(few) == methods[budget] else f"{budget} ({', '.join(few)})"
            for budget, few in at.items()
        )
        why = {
            1: "one draw at {}: intervals are over patients alone and say nothing of other choices of labels",
            2: "two draws at {}: how much draws differ is hardly known from two, so intervals may be too narrow",
        }[number].format(where)
        if at:
            said.append(
                f"{why}; no difference there is called more than noise. --draws {FEW_DRAWS} or more answers that."
            )
    return said


def _machine(folder: StudyFolder, units: Sequence[Unit]) -> dict[str, Any]:
    """Return where the runs ran, by their manifests, and what this program runs on."""
    manifests = [
        read_json(folder.run(unit) / "manifest.json")
        for unit in units
        if (folder.run(unit) / "manifest.json").is_file()
    ]
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processors": os.cpu_count(),
        "devices": sorted({f"{m['device']} ({m['device_name']})" for m in manifests}),
        "precision": sorted({m["precision"] for m in manifests}),
    }


def _definitions() -> dict[str, str]:
    return {
        "dice": "of a run: over the test volumes of each class, then over the classes, of the averaged weights of the "
        "last step; of a method: mean over the draws",
        "dice_sd": "standard deviation over draws",
        "low, high": "95 % interval over patients and draws (docs/study.md)",
        "difference": "to the labels-only control, paired by draw and case",
        "p": "two-sided, of the difference over patients and draws; p_corrected: by Holm over the methods of a budget",
        "verdict": f"'{SURE}' if p_corrected < {ALPHA}; with fewer than {FEW_DRAWS} draws nothing is decided",
        "hd95_..., nsd_...": "the same of HD95 (mm) and of NSD: intervals, and differences to the control; no verdict "
        "rests on them",
        "rank": "mean over draws, 1 the best of the methods, ties shared; 'ranks': the mean of these over budgets",
        "selection_gap": "mean over draws of the best Dice among the snapshots and the last weights, minus the last",
        "equal_labels": "labels at which the control has the same Dice, its curve linear in log(labels); low, high: "
        "all numbers at which the two do not differ at 95 %, over patients and the draws that both have at every "
        "budget; empty where the control's curve ends before",
        "seconds": "of training, pauses left out; pretrain_seconds: of what came before it: a "
        "pre-training, which runs may share, a teacher, registrations",
        "energy_wh": "of a run, its predictions and its pre-training, which runs may share: what the GPU and, where "
        "their counters may be read, the processors and memory of the machine took meanwhile; only of runs done one at "
        "a time and in one go",
        "peak_memory_mb": "most memory of the process that trained (on a GPU: most that torch held there)",
    }


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[Row]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(row.get(column)) for column in columns])
    write_text(path, text.getvalue())


def _cell(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _mean(values: Sequence[float]) -> float | None:
    kept = [value for value in values if not math.isnan(value)]
    return float(np.mean(kept)) if kept else None


def _whole(value: float) -> float | int:
    return int(value) if value == int(value) else value
