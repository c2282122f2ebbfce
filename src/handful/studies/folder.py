"""A study's folder: what it was asked, where its parts lie, what became of each run."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import handful
from handful.artefacts import hash_of, read_json, read_yaml, write_json, write_yaml
from handful.data.splits import Splits
from handful.errors import DataError, UsageError
from handful.studies.arms import parse_arms
from handful.studies.audit import EXTENDED, Audit
from handful.studies.blind import case_hashes, hash_of_cases
from handful.studies.grid import Asked, Unit

OUTCOME = "outcome.json"
"""In the folder of each run: what became of it."""


class StudyFolder:
    """Paths of one study."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked = path / "study.yaml"
        self.splits = path / "splits.json"
        self.audit = Audit(path / "audit.jsonl")
        self.cases = path / "cases.json"
        self.blind = path / "data"
        self.plans = path / "plans"
        self.pretrained = path / "pretrained"
        self.runs = path / "runs"
        self.jobs = path / "jobs"
        self.summary = path / "summary.json"
        self.tables = {
            name: path / f"{name}.csv"
            for name in ("scores", "patients", "runs", "summary", "comparisons", "saved")
        }

    def run(self, unit: Unit) -> Path:
        """Return the folder of a run."""
        return self.path / unit.place

    def outcome(self, unit: Unit) -> dict[str, Any]:
        """Return what became of a run; {} if it was not tried."""
        file = self.run(unit) / OUTCOME
        outcome: dict[str, Any] = read_json(file) if file.is_file() else {}
        return outcome

    def finished(self, unit: Unit) -> bool:
        """Say whether a run is trained and its predictions are written."""
        return self.outcome(unit).get("status") == "finished"

    def scored(self, unit: Unit) -> bool:
        """Say whether a run has been scored."""
        return (self.run(unit) / "summary.json").is_file()

    def clear(self) -> None:
        """Remove everything a study leaves but its audit log, which is never cut."""
        for folder in (self.blind, self.plans, self.pretrained, self.runs, self.jobs):
            shutil.rmtree(folder, ignore_errors=True)
        for file in (self.asked, self.splits, self.cases, self.summary, *self.tables.values()):
            file.unlink(missing_ok=True)
        for name in ("report.html", "report.md", "figure.png", "figure.svg"):
            (self.path / name).unlink(missing_ok=True)

    def take(self, asked: Asked, splits: Splits, plan: Path | None, *, extend: bool = False) -> str:
        """Write down the question, or find that it is the one this folder holds already; return the data's hash.

        Args:
            asked: the question.
            splits: of the data.
            plan: a file that all runs follow.
            extend: whether the question may have more methods than the folder's; all else must be as it was.

        Raises:
            UsageError: the folder holds another study; what differs is named.
            DataError: it holds this study of other data; the cases that changed are named.
        """
        words = _question(asked, plan)
        if not self.asked.exists():
            if self.runs.exists() or self.pretrained.exists():
                raise UsageError(
                    f"{self.path} holds runs but no study.yaml; choose another --out or use --overwrite."
                )
            hashes = case_hashes(splits)
            data = {"name": splits.dataset.name, "hash": hash_of_cases(hashes)}
            write_json(self.cases, hashes)
            self._write(words, data)
            return data["hash"]
        there = read_yaml(self.asked)
        data = there.pop("data", {})
        differing = sorted(
            key for key in {*there, *words} if hash_of(there.get(key)) != hash_of(words.get(key))
        )
        added = _added(there, asked) if set(differing) <= {"methods", "settings"} else ()
        if differing and not (added and extend):
            lines = "\n".join(
                f"  {key}: {_said(there.get(key))} there, {_said(words.get(key))} asked" for key in differing
            )
            raise UsageError(
                f"{self.path} holds another study. It differs in\n{lines}\nChoose another --out, or --overwrite to "
                "replace all its runs."
                + (f" --extend keeps them and adds {', '.join(added)}." if added else "")
            )
        self._refuse_changed(case_hashes(splits), data)
        if added:
            self.audit.add(EXTENDED, methods=list(added))
            self._write(words, data)
        return str(data["hash"])

    def _write(self, words: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        comment = "What this study was asked. The same command with the same --out continues it."
        write_yaml(self.asked, {**words, "data": dict(data)}, comment=comment)

    def _refuse_changed(self, hashes: Mapping[str, str], data: Mapping[str, Any]) -> None:
        if hash_of_cases(dict(hashes)) == data.get("hash"):
            return
        before: dict[str, str] = read_json(self.cases) if self.cases.is_file() else {}
        gone = sorted(set(before) - set(hashes))
        new = sorted(set(hashes) - set(before))
        other = sorted(name for name in set(before) & set(hashes) if before[name] != hashes[name])
        found = [
            f"{len(names)} {what} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"
            for names, what in ((other, "changed"), (gone, "gone or in another part"), (new, "new"))
            if names
        ]
        raise DataError(
            f"the data set is not the one {self.path} began with: of its cases {'; '.join(found) or 'none is known'}. "
            "Nothing was touched: the study's runs and scores are of the data as it was. Restore the data to continue "
            "it, or begin a study of the new data with another --out."
        )


def record_outcome(run: Path, **values: Any) -> None:
    """Write down what became of a run."""
    write_json(run / OUTCOME, values)


def _question(asked: Asked, plan: Path | None) -> dict[str, Any]:
    from handful.data.splits import parse_budget

    return {
        "handful": handful.__version__,
        **asked.as_dict(),
        # a file of names is a question only by what it holds
        "listed": {
            spec: list(parse_budget(spec).names)
            for spec in (*asked.labels, *([asked.test] if asked.test else []))
            if spec.startswith("@")
        },
        "plan_file": hash_of(read_yaml(plan)) if plan else None,
    }


def _added(there: Mapping[str, Any], asked: Asked) -> tuple[str, ...]:
    """Return the methods that a question has beyond those of a folder; () where it is not that folder's and more."""
    old = parse_arms(there.get("methods", ()))
    unchanged = set(old) <= set(asked.arms) and all(
        arm.settings(kind, there.get("settings", ())) == arm.settings(kind, asked.settings)
        for arm in old
        for kind in (("train",) if arm.pretrain is None else ("pretrain", "train"))
    )
    return tuple(arm.spec for arm in asked.arms if arm not in old) if unchanged else ()


def _said(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
