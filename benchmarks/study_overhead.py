"""How much of a study's time goes to the machinery around its trainings? Read off the audit log of a study that ran.

    python benchmarks/study_overhead.py STUDY

A process that trains or predicts is busy. Not busy are: making plans and comparing all images before the first run,
handing out tasks, waiting for a pre-training, scoring, statistics and the page. Their share of the time of all
processes is the overhead. Of the busy time, what is neither a training step nor a prediction (reading images, building
networks, writing weights) is told apart; ``handful train`` and ``handful predict`` by hand take it too, and start
Python besides. Time between a command that was stopped and the one that went on does not count.
"""

import argparse
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from handful.artefacts import read_json
from handful.studies.audit import Audit

COMMANDS = ("study started", "study continued")
"""What the log says first of each command."""


class Spent(NamedTuple):
    """Seconds, of all processes together."""

    processes: int
    all: float
    busy: float
    steps: float
    predictions: float


def spent(study: Path) -> Spent:
    """Add up the whole commands of a study: what each process was there for, and what it did."""
    events = Audit(study / "audit.jsonl").read()
    for event in events:
        event["at"] = datetime.fromisoformat(event["time"]).timestamp()
    starts = [number for number, event in enumerate(events) if event["event"] in COMMANDS]
    processes, total, busy, steps, predictions = 1, 0.0, 0.0, 0.0, 0.0
    for first, beyond in zip(starts, [*starts[1:], len(events)], strict=True):
        command, running = events[first:beyond], dict[str, float]()
        at_once, worked, done = 1, 0.0, list[str]()
        end = command[0]["at"]
        for event in command:
            if event["event"].endswith("started") and "run" in event:
                running[event["run"]] = event["at"]
                at_once = max(at_once, len(running))
            elif "run" in event and event["run"] in running:
                worked += event["at"] - running.pop(event["run"])
                done.append(event["run"])
            if not event["event"].endswith("started"):
                end = event["at"]
        # a task that was cut off began before the end, and was work until then
        worked += sum(max(end - begun, 0.0) for begun in running.values())
        processes, total, busy = (
            max(processes, at_once),
            total + at_once * (end - command[0]["at"]),
            busy + worked,
        )
        for run in done:
            steps += read_json(study / run / "manifest.json")["seconds"]
            record = study / run / "predictions" / "predictions.json"
            predictions += (
                sum(case["seconds"] for case in read_json(record)["cases"]) if record.is_file() else 0.0
            )
    return Spent(processes, total, busy, steps, predictions)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path)
    found = spent(parser.parse_args().study)
    rest = found.busy - found.steps - found.predictions
    print(f"{found.processes} processes, {found.all / 3600:.2f} h together")
    for name, seconds in {
        "training steps": found.steps,
        "predictions": found.predictions,
        "reading, building, writing": rest,
        "machinery of the study": found.all - found.busy,
    }.items():
        print(f"{name:>28}: {seconds:8.0f} s {seconds / found.all:6.1%}")


if __name__ == "__main__":
    main()
