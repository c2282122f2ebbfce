"""A study's tidy files without any training: numbers that look like real ones and hold together like them."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from handful.artefacts import write_json, write_yaml

GAIN = {"supervised": 0.0, "pcl": 0.015, "sscl": 0.01, "mixcl": 0.02, "mona": 0.035, "auto": 0.05}
"""What a method adds at two labels; less and less with more."""


COLUMNS = {
    "scores": "method budget n_labelled draw case patient class dice hd95_mm assd_mm nsd volume_ml reference_ml",
    "patients": "method budget n_labelled draw patient class volumes dice hd95_mm assd_mm nsd",
    "runs": "method budget n_labelled draw status reason dice seconds pretrain_seconds steps peak_memory_mb best_dice "
    "best_step energy_wh",
    "summary": "method budget n_labelled draws dice dice_sd low high hd95_mm nsd rank selection_gap "
    "hd95_low hd95_high nsd_low nsd_high",
    "comparisons": "method budget n_labelled difference low high p p_corrected draws verdict "
    "hd95_difference hd95_low hd95_high nsd_difference nsd_low nsd_high",
    "saved": "method budget n_labelled equal_labels low high note",
}
"""What each table of a study holds."""


def make_study(
    folder: Path,
    *,
    methods: Sequence[str] = tuple(GAIN),
    budgets: Mapping[str, int] | None = None,
    draws: int = 5,
    cases: int = 40,
    classes: Sequence[str] = ("anterior", "posterior"),
    failed: Mapping[tuple[str, str, int], str] | None = None,
    missing: Iterable[tuple[str, str, int]] = (),
    seed: int = 0,
) -> Path:
    """Write the five tables of a study and what describes them."""
    budgets = {"2": 2, "5%": 10, "10%": 20} if budgets is None else budgets
    failed, missing = dict(failed or {}), set(missing)
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"case_{number:03d}" for number in range(cases)]
    hard = rng.beta(2, 6, cases)
    scores, runs = [], []
    dice: dict[tuple[str, str, int], np.ndarray] = {}
    for budget, n in budgets.items():
        luck = rng.normal(0, 0.05 / np.sqrt(n), draws)
        for method in methods:
            for draw in range(draws):
                about = {"method": method, "budget": budget, "n_labelled": n, "draw": draw}
                cell = (method, budget, draw)
                if cell in failed or cell in missing:
                    status = "failed" if cell in failed else "missing"
                    runs.append(about | {"status": status, "reason": failed.get(cell, "")})
                    continue
                level = 0.90 - 0.13 / np.sqrt(n) + GAIN.get(method, 0.02) * np.sqrt(2 / n) + luck[draw]
                table = level - 0.25 * hard[:, None] * (2 / n) ** 0.25 - 0.02 * np.arange(len(classes))
                table = np.clip(table + rng.normal(0, 0.015, table.shape), 0, 0.99)
                dice[cell] = table
                for case, row in zip(names, table):
                    for name, value in zip(classes, row):
                        scores.append(about | {
                            "case": case, "patient": case.replace("case", "patient"), "class": name, "dice": value,
                            "hd95_mm": 12 * (1 - value), "assd_mm": 4 * (1 - value), "nsd": min(1, value + 0.06),
                            "volume_ml": 1.7 * value, "reference_ml": 1.7,
                        })  # fmt: skip
                seconds = 900 * (1 + 0.3 * (method in ("mona", "auto"))) * rng.uniform(0.95, 1.05)
                before = 400 * rng.uniform(0.9, 1.1) * (method not in ("supervised", "mixup"))
                gap = abs(rng.normal(0, 0.006))
                runs.append(about | {
                    "status": "finished", "reason": "", "dice": table.mean(), "seconds": seconds,
                    "pretrain_seconds": before, "steps": 1000, "peak_memory_mb": 1800.0,
                    "best_dice": table.mean() + gap, "best_step": 800,
                })  # fmt: skip
    summary, comparisons, saved = [], [], []
    for budget, n in budgets.items():
        means = {}
        for method in methods:
            own = [dice[method, budget, draw] for draw in range(draws) if (method, budget, draw) in dice]
            if own:
                means[method] = np.stack(own)
        ranks = {m: 1 + sum(v.mean() > means[m].mean() for v in means.values()) for m in means}
        for method, own in means.items():
            each = own.mean((1, 2))
            low, high = interval(own, rng)
            gaps = [r["best_dice"] - r["dice"] for r in runs
                    if (r["method"], r["budget"], r["status"]) == (method, budget, "finished")]  # fmt: skip
            summary.append({
                "method": method, "budget": budget, "n_labelled": n, "draws": len(own), "dice": each.mean(),
                "dice_sd": each.std(ddof=1) if len(each) > 1 else "", "low": low, "high": high,
                "hd95_mm": 12 * (1 - each.mean()), "nsd": min(1, each.mean() + 0.06), "rank": ranks[method],
                "selection_gap": np.mean(gaps), "hd95_low": 12 * (1 - high), "hd95_high": 12 * (1 - low),
                "nsd_low": min(1, low + 0.06), "nsd_high": min(1, high + 0.06),
            })  # fmt: skip
            if method == "supervised" or "supervised" not in means:
                continue
            both = [d for d in range(draws) if {(method, budget, d), ("supervised", budget, d)} <= set(dice)]
            if not both:
                continue
            difference = np.stack([dice[method, budget, d] - dice["supervised", budget, d] for d in both])
            low, high = interval(difference, rng)
            sure = low > 0 or high < 0
            verdict = "more than noise" if sure else "within the noise"
            comparisons.append({
                "method": method, "budget": budget, "n_labelled": n, "difference": difference.mean(), "low": low,
                "high": high, "p": 0.001 if sure else 0.2, "p_corrected": 0.005 if sure else 0.6, "draws": len(both),
                "verdict": {1: "one draw: not decided", 2: "two draws: not decided"}.get(len(both), verdict),
                "hd95_difference": -12 * difference.mean(), "hd95_low": -12 * high, "hd95_high": -12 * low,
                "nsd_difference": difference.mean(), "nsd_low": low, "nsd_high": high,
            })  # fmt: skip
            equal = n * 1.8 if n < max(budgets.values()) else ""
            saved.append({
                "method": method, "budget": budget, "n_labelled": n, "equal_labels": equal,
                "low": n * 1.2 if equal else "", "high": n * 2.9 if equal else "",
                "note": "" if equal else "more than the largest budget of the control",
            })  # fmt: skip
    patients = [row | {"volumes": 1} for row in scores]  # each has one
    patients = [{key: row[key] for key in COLUMNS["patients"].split()} for row in patients]
    tables = {
        "scores": scores,
        "patients": patients,
        "runs": runs,
        "summary": summary,
        "comparisons": comparisons,
        "saved": saved,
    }
    for name, lines in tables.items():
        write_csv(folder / f"{name}.csv", COLUMNS[name], lines)
    asked = {
        "methods": list(methods),
        "labels": list(budgets),
        "draws": draws,
        "test": "40",
        "seed": 0,
        "steps": 1000,
    }
    lost = [row for row in runs if row["status"] != "finished"]
    told = [f"{r['method']}, {r['budget']}, draw {r['draw']}: {r['status']}: {r['reason']}" for r in lost]
    told += [f"{len(lost)} of {len(runs)} runs are not in the results."] if lost else []
    told += ["one draw: intervals are over patients alone."] if draws == 1 else []
    told += [f"{m}: selection on the test set would have added 0.005 Dice." for m in methods]
    options = f"--methods {','.join(methods)} --labels {','.join(budgets)} --draws {draws}"
    about = {
        "definitions": {"dice": "per volume, then the mean over volumes, then over structures"},
        "data": {"name": "Hippocampus", "hash": "0123456789abcdef"},
        "test_cases": names,
        "seed": 0,
        "versions": {"handful": "0.1.0", "python": "3.12.1", "torch": "2.13.0"},
        "machine": {"device": "cpu", "name": "a processor"},
        "asked": asked,
        "command": f"handful study DATA {options} --out {folder.name}",
        "warnings": told,
        "labelled": {
            b: {str(d): [f"train_{d}{i:02d}" for i in range(n)] for d in range(draws)}
            for b, n in budgets.items()
        },
        "recipes": [
            {
                "kind": "run",
                "method": m,
                "where": list(budgets),
                "recipe": {"name": m, "loop": {"steps": 1000}},
            }
            for m in methods
        ],
        "ranks": {
            m: np.mean(own) for m in methods if (own := [r["rank"] for r in summary if r["method"] == m])
        },
    }
    write_json(folder / "summary.json", about)
    write_yaml(folder / "study.yaml", asked)
    events = [{"time": f"2026-01-02T03:0{number}:00+00:00", "event": event} for number, event in enumerate(
        ("study started", "runs finished", "test labels opened for scoring", "scores written"))]  # fmt: skip
    (folder / "audit.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder


def interval(values: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """Draw draws and patients with replacement: (draws, patients, classes) -> lower and upper end."""
    picks = [
        values[
            np.ix_(
                rng.integers(0, len(values), len(values)), rng.integers(0, values.shape[1], values.shape[1])
            )
        ].mean()
        for _ in range(200)
    ]
    return float(np.quantile(picks, 0.025)), float(np.quantile(picks, 0.975))


def write_csv(path: Path, header: str, rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, header.split(), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()}
            for row in rows
        )
