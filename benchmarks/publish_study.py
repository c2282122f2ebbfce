"""Copy what of a finished study may be shared into a folder, and its table and figure into a page.

    python benchmarks/publish_study.py STUDY studies/hippocampus [--into README.md]

Shared are the question, the splits, the tables, the audit log, each plan, one recipe of each method, and the page
without slices: no image, no label map, no weights, no path of this machine. ``--into`` writes the answer, the table and
the figure between the lines ``<!-- study: written by its benchmark -->`` and ``<!-- study: end -->``.
"""

import argparse
import os
import re
from pathlib import Path

from handful.artefacts import read_yaml, write_text, write_yaml
from handful.report.study import write_study_report
from handful.report.study_files import read_study
from handful.report.study_markdown import markdown
from handful.studies.folder import StudyFolder
from marked import MarkedPage

OF_ONE_RUN = ("labelled", "unlabelled", "validation", "test", "init", "draw", "labels", "data")
"""Parts of a recipe that splits.json and study.yaml tell for all runs."""

ABSOLUTE = re.compile(r"""(?:^|[\s"'@=])(/\w[\w.-]*/[^\s"']*)""", re.MULTILINE)


def publish(study: Path, folder: Path) -> Path:
    """Copy, then write the page anew from nothing but the copies; return the page.

    Raises:
        ValueError: a file names a place on this machine.
    """
    source = StudyFolder(study)
    records = (source.asked, source.splits, source.cases, source.summary, source.audit.path)
    shared = {path.name: path.read_text() for path in (*records, *source.tables.values())}
    for plan in sorted(source.plans.glob("*/plan.yaml")):
        shared[f"plans/{plan.parent.name}.yaml"] = plan.read_text()
    for name, text in shared.items():
        if hit := ABSOLUTE.search(text):
            raise ValueError(
                f"{name} names {hit[1]}, a place on this machine; give relative paths to the study."
            )
    for name, text in shared.items():
        write_text(folder / name, text)
    for path in sorted(
        [*source.runs.glob("*/draw*/*/recipe.yaml"), *source.pretrained.glob("*/*/recipe.yaml")]
    ):
        recipe = {key: value for key, value in read_yaml(path).items() if key not in OF_ONE_RUN}
        copy = folder / "recipes" / f"{recipe['name']}.yaml"
        write_yaml(copy, recipe, comment="Without what differs from run to run.")
    return write_study_report(folder, images=False)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--into",
        type=lambda path: MarkedPage(Path(path), "study"),
        help="a page that shows the table and the figure",
    )
    asked = parser.parse_args()
    publish(asked.study, asked.folder)
    if asked.into:
        figure = os.path.relpath(asked.folder / "figure.svg", asked.into.path.parent)
        asked.into.replace(markdown(read_study(asked.folder), figure=figure).rstrip("\n").split("\n"))


if __name__ == "__main__":
    main()
