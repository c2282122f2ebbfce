"""Copy what of a finished study may be shared into a folder, and its table and figure into a page.

    python benchmarks/publish_study.py STUDY studies/hippocampus [--into README.md]

Shared are the question, the splits, the tables, the audit log, each plan, each different recipe, and the page without
slices: no image, no label map, no weights, no path of this machine. ``--into`` writes the answer, the table and the
figure between the lines ``<!-- study hippocampus: written by its benchmark -->`` and
``<!-- study hippocampus: end -->``, by the name of the folder.
"""

import argparse
import os
import re
from pathlib import Path
from typing import Any

import yaml

from handful.artefacts import write_text
from handful.report.study import write_study_report
from handful.report.study_files import read_study
from handful.report.study_markdown import markdown
from handful.studies.folder import StudyFolder
from handful.studies.repeat import recipes_of
from marked import MarkedPage

ABSOLUTE = re.compile(r"""(?:^|[\s"'@=])(/\w[\w.-]*/[^\s"']*)""", re.MULTILINE)


def publish(study: Path, folder: Path) -> Path:
    """Copy, then write the page anew from nothing but the copies; return the page.

    Raises:
        ValueError: a file names a place on this machine.
    """
    source = StudyFolder(study)
    records = (source.asked, source.splits, source.cases, source.summary, source.audit.path)
    # a study of an older version has not all of the tables
    tables = [path for path in source.tables.values() if path.is_file()]
    shared = {path.name: path.read_text() for path in (*records, *tables)}
    for plan in sorted(source.plans.glob("*/plan.yaml")):
        shared[f"plans/{plan.parent.name}.yaml"] = plan.read_text()
    shared |= {f"recipes/{name}.yaml": text for name, text in recipes(source).items()}
    for name, text in shared.items():
        if hit := ABSOLUTE.search(text):
            raise ValueError(
                f"{name} names {hit[1]}, a place on this machine; give relative paths to the study."
            )
    for name, text in shared.items():
        write_text(folder / name, text)
    return write_study_report(folder, images=False)


def recipes(source: StudyFolder) -> dict[str, str]:
    """Return name -> text: the method, ``-pretraining`` behind it, and the budgets where its recipes differ."""
    found: dict[str, list[dict[str, Any]]] = {}
    for entry in recipes_of(source):
        name = entry["method"] + ("-pretraining" if entry["kind"] == "pre-training" else "")
        found.setdefault(name, []).append(entry)
    return {
        name if len(entries) == 1 else f"{name}-{'-'.join(entry['where'])}": yaml.safe_dump(
            entry["recipe"], sort_keys=False, width=110
        )
        for name, entries in found.items()
        for entry in entries
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--into", type=Path, help="a page that shows the table and the figure")
    asked = parser.parse_args()
    try:
        into = MarkedPage(asked.into, f"study {asked.folder.name}") if asked.into else None
    except argparse.ArgumentTypeError as error:
        parser.error(str(error))
    publish(asked.study, asked.folder)
    if into:
        figure = os.path.relpath(asked.folder / "figure.svg", into.path.parent)
        into.replace(markdown(read_study(asked.folder), figure=figure).rstrip("\n").split("\n"))


if __name__ == "__main__":
    main()
