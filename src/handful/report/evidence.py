"""What a run folder holds, read without trust: a part that is missing or damaged is named, never guessed."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from handful.artefacts import read_json, read_yaml
from handful.errors import DataError, UsageError

PARTS = {
    "manifest.json": "which cases were used, on which machine, with which command",
    "recipe.yaml": "the method and its settings",
    "plan.yaml": "preprocessing and network sizes",
    "fingerprint.json": "shapes, spacings and volumes of the data",
    "splits.json": "how cases were divided",
    "metrics.jsonl": "the course of the training",
}
"""Files of a run and what the report takes from them."""

WEIGHTS = "weights.safetensors"
"""Only its header is read; it is missing until a run is finished."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The parts of a run; an absent or damaged one is empty.

    Attributes:
        run: the folder.
        manifest: provenance and cases.
        recipe: resolved settings.
        plan: decisions and their reasons.
        fingerprint: of the data.
        splits: how cases were divided.
        metrics: rows of ``metrics.jsonl``, numbers only.
        summary: scores; empty if nothing was evaluated.
        header: what was saved with the weights; empty without weights.
        exports: names of the parts of the weights: ``segmenter``, or ``encoder`` and perhaps ``decoder``.
        problems: one sentence a part that is missing or damaged.
    """

    run: Path
    manifest: Mapping[str, Any]
    recipe: Mapping[str, Any]
    plan: Mapping[str, Any]
    fingerprint: Mapping[str, Any]
    splits: Mapping[str, Any]
    metrics: list[dict[str, float]]
    summary: Mapping[str, Any]
    header: Mapping[str, Any]
    exports: tuple[str, ...]
    problems: list[str]

    def cases(self, part: str) -> list[str]:
        """Return names of the ``labelled``, ``unlabelled``, ``validation`` or ``test`` cases."""
        return [str(name) for name in listing(mapping(self.manifest.get("cases")).get(part))]

    def patient(self, case: str) -> str:
        """Return whose a case is; its own name if that is not recorded."""
        return str(mapping(self.manifest.get("patients")).get(case, case))


def read_run(run: Path) -> Evidence:
    """Read what is there.

    Raises:
        UsageError: ``run`` is not a folder, or holds no part of a run at all.
    """
    if not run.is_dir():
        raise UsageError(f"{run} is not a folder; name the folder that 'handful train --out' made.")
    if not any((run / name).exists() for name in (*PARTS, "summary.json")):
        raise UsageError(
            f"{run} holds nothing of a run (no {', '.join(PARTS)}); name the folder of a training."
        )
    problems: list[str] = []

    def part(name: str, read: Callable[[Path], Any]) -> dict[str, Any]:
        path = run / name
        if not path.exists():
            problems.append(f"{name} is missing: {PARTS[name]}.")
            return {}
        try:
            content = read(path)
        except (DataError, OSError) as error:
            problems.append(f"{name} is damaged and was left out ({PARTS[name]}): {error}")
            return {}
        if not isinstance(content, dict):
            problems.append(f"{name} is damaged and was left out ({PARTS[name]}): it holds no mapping.")
            return {}
        return content

    manifest, recipe, plan = (
        part("manifest.json", read_json),
        part("recipe.yaml", read_yaml),
        part("plan.yaml", read_yaml),
    )
    fingerprint, splits = part("fingerprint.json", read_json), part("splits.json", read_json)
    metrics = _read_metrics(run / "metrics.jsonl", problems)
    # 'handful evaluate' writes beside the predictions unless told otherwise
    scores = next(
        (f for f in (run / "summary.json", run / "predictions" / "summary.json") if f.exists()), None
    )
    summary: Mapping[str, Any] = {}
    if scores:
        try:
            summary = mapping(read_json(scores))
        except (DataError, OSError) as error:
            problems.append(f"summary.json is damaged and no score can be shown: {error}")
    exports, header = _read_header(run / WEIGHTS, problems)
    return Evidence(
        run=run, manifest=manifest, recipe=recipe, plan=plan, fingerprint=fingerprint, splits=splits,
        metrics=metrics, summary=summary, header=header, exports=exports, problems=problems,
    )  # fmt: skip


def mapping(content: Any) -> Mapping[str, Any]:
    """Return ``content`` if it is a mapping, an empty one otherwise."""
    return content if isinstance(content, Mapping) else {}


def listing(content: Any) -> list[Any]:
    """Return ``content`` if it is a list, an empty one otherwise."""
    return content if isinstance(content, list) else []


def number(content: Any) -> float | None:
    """Return ``content`` if it is a finite number, None otherwise."""
    if isinstance(content, bool) or not isinstance(content, int | float) or not math.isfinite(content):
        return None
    return float(content)


def _read_header(path: Path, problems: list[str]) -> tuple[tuple[str, ...], Mapping[str, Any]]:
    """Return the names of the parts of the weights and what was saved with them, without reading a weight."""
    if not path.exists():
        return (), {}
    try:
        with safe_open(path, framework="numpy") as file:
            content = mapping(json.loads((file.metadata() or {}).get("handful", "null")))
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        problems.append(f"{path.name} is damaged; what it exports is unknown: {error}")
        return (), {}
    return tuple(map(str, listing(content.get("parts")))), mapping(content.get("metadata"))


def _read_metrics(path: Path, problems: list[str]) -> list[dict[str, float]]:
    """Read one row a line; lines that are no JSON (a kill may cut the last) are counted and left out."""
    if not path.exists():
        problems.append(f"{path.name} is missing: {PARTS[path.name]}.")
        return []
    rows, bad = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if isinstance(row, dict) and number(row.get("step")) is not None:
            rows.append(
                {str(key): found for key, value in row.items() if (found := number(value)) is not None}
            )
        elif line.strip():
            bad += 1
    if bad:
        problems.append(f"metrics.jsonl: {bad} of {bad + len(rows)} lines are damaged and were left out.")
    return rows
