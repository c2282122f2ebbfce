"""A study's data without its test labels: what trains cannot find a label that is not named to it.

Two CSV manifests are written into the study's folder. One has the cases that may train, none of the others; the other
has the images of the test cases and no label. Runs read the first, predictions the second; the data set itself is
opened again when everything is predicted.
"""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from handful.artefacts import hash_of, write_json, write_text
from handful.data.cases import Case, Dataset
from handful.data.discover import LabelsSeen, content_hash, open_dataset, scan_dataset
from handful.data.splits import Splits, write_splits
from handful.errors import DataError


class Blind(NamedTuple):
    """The data of the runs.

    Attributes:
        training: manifest of the cases that may train.
        test: manifest of the test images.
        splits: ``splits.json`` of the first, with the draws of the study.
        dataset: the first, opened.
        parts: its splits.
    """

    training: Path
    test: Path
    splits: Path
    dataset: Dataset
    parts: Splits


def open_unread(data: Path, *, patients: str | None) -> Dataset:
    """Open a data set without reading any of its label files, not even their headers.

    Raises:
        DataError: what ``open_dataset`` refuses.
    """
    found = scan_dataset(data, patients=patients)
    fatal = [str(problem) for problem in found.problems if problem.severity == "fatal"]
    if found.dataset is None or fatal:
        more = (
            f"\n... and {len(fatal) - 5} more; handful check {data} lists them all." if len(fatal) > 5 else ""
        )
        raise DataError("\n".join(fatal[:5]) + more)
    return found.dataset


def write_blind(folder: Path, splits: Splits) -> Blind:
    """Write both manifests into ``folder`` and open the one that trains.

    Args:
        folder: made if missing; what an earlier call wrote is replaced.
        splits: of the whole data set.
    """
    dataset = splits.dataset
    name = re.sub(r"[^\w.-]", "_", dataset.name)
    training, test = folder / f"{name}.csv", folder / f"{name}_test_images.csv"
    if not isinstance(dataset.label_names, LabelsSeen):
        labels = {str(value): label for value, label in dataset.label_names.items()}
        if dataset.ignore_value is not None:
            labels[str(dataset.ignore_value)] = "ignore"
        channels = {str(index): channel for index, channel in enumerate(dataset.channel_names)}
        write_json(
            folder / "dataset.json", {"name": dataset.name, "labels": labels, "channel_names": channels}
        )
    with_patients = dataset.patients_from is not None
    _write_manifest(training, splits.pool, with_patients=with_patients)
    hidden = [replace(dataset.case(case), label=None) for case in splits.test]
    _write_manifest(test, hidden, with_patients=with_patients)
    blind = open_dataset(training)
    parts = replace(splits, dataset=blind, test_spec=None, test=(), left_out=())
    write_splits(folder / "splits.json", parts)
    return Blind(training, test, folder / "splits.json", blind, parts)


def case_hashes(splits: Splits) -> dict[str, str]:
    """Return a hash of the files of each case that trains or is tested; of a test case, of its images alone."""
    dataset, test = splits.dataset, set(splits.test)
    seen = [replace(case, label=None) if case.name in test else case for case in dataset.cases]
    aside = set(splits.left_out)
    return {
        case.name: content_hash(replace(dataset, cases=(case,))) for case in seen if case.name not in aside
    }


def hash_of_cases(hashes: dict[str, str]) -> str:
    """Return one hash for all."""
    return hash_of(sorted(hashes.items()))


def _write_manifest(path: Path, cases: Sequence[Case], *, with_patients: bool) -> None:
    channels = max(len(case.images) for case in cases) if cases else 1
    images = ["image", *(f"image{number}" for number in range(2, channels + 1))]
    in_part = any(case.annotated is not None for case in cases)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            "case",
            *(["patient"] if with_patients else []),
            *images,
            "label",
            "split",
            *(["annotated"] if in_part else []),
        ]
    )
    for case in cases:
        writer.writerow(
            [
                case.name,
                *([case.patient] if with_patients else []),
                *(file.resolve() for file in case.images),
                case.label.resolve() if case.label else "",
                "train" if case.label else "unlabelled",
                *(["; ".join(map(str, case.annotated or ()))] if in_part else []),
            ]
        )
    write_text(path, text.getvalue())
