"""The list somebody works through: a CSV of what to label, in order, and beside it what the next training needs."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from handful.artefacts import read_json, write_text
from handful.data.cases import Case, Dataset
from handful.data.io import NIFTI, suffix_of
from handful.data.problems import ProblemError
from handful.errors import UsageError

NAME = "worklist.csv"


@dataclass(frozen=True, kw_only=True)
class Item:
    """One case to label.

    Attributes:
        rank: 1 is first.
        case: its name.
        patient: whose it is.
        image: its image files, channels separated by ``;``.
        mask: where the label map belongs.
        reason: why it was chosen, a sentence.
        cluster: number of its cluster, 0 the largest.
        typicality: 1 / mean distance to its neighbours in the cluster.
        uncertainty: mean entropy of the structure it was chosen for, in [0, 1]; None in a cold start.
        distance_to_nearest_labelled: to the nearest case with a label; 1 is that of two random cases; None without any.
        other_cases: further candidates of the same patient, separated by ``;``.
    """

    rank: int
    case: str
    patient: str
    image: str
    mask: str
    reason: str
    cluster: int
    typicality: float
    uncertainty: float | None
    distance_to_nearest_labelled: float | None
    other_cases: str = ""


def images_of(case: Case) -> str:
    """Return the image files of a case in one string, channels separated by ``;``."""
    return ";".join(str(path) for path in dict.fromkeys(case.images))


def mask_of(dataset: Dataset, case: Case) -> Path:
    """Return where the label map of a case belongs, so that the data set finds it."""
    suffix = suffix_of(case.images[0])
    name = f"{case.name}{suffix if suffix in NIFTI else '.nii.gz'}"
    folders = {"imagesTr": "labelsTr", "imagesUn": "labelsTr", "images": "labels"}
    if dataset.layout == "csv":
        return dataset.root / "labels" / name
    return dataset.root / folders.get(case.images[0].parent.name, "labelsTr") / name


def how_to_add(dataset: Dataset, cases: Sequence[Case]) -> str:
    """Say what makes new labels of these cases count, beyond their files; "" for nothing."""
    if dataset.layout == "csv":
        return "Write the path of each into the column 'label' of the manifest."
    manifest = dataset.root / "dataset.json"
    declared = read_json(manifest) if manifest.is_file() else {}
    listed = [key for key in ("training", "dataset") if declared.get(key)]
    if listed and any(case.images[0].parent.name != "imagesUn" for case in cases):
        return f"Add image and label of each to '{listed[0]}' in {manifest}, which lists the labelled cases."
    return ""


def as_text(items: Sequence[Item]) -> str:
    """Return the worklist as CSV; ``read_worklist`` gives the items back exactly."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in fields(Item)])
    for item in items:
        writer.writerow(["" if value is None else value for value in asdict(item).values()])
    return text.getvalue()


def read_worklist(path: Path) -> list[Item]:
    """Read a worklist back; further columns, such as notes of the reader, are left out.

    Raises:
        DataError: not a worklist.
    """
    kinds = {"rank": int, "cluster": int, "typicality": float}
    optional = ("uncertainty", "distance_to_nearest_labelled")
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
        missing = {field.name for field in fields(Item)} - set(reader.fieldnames or ())
        if missing:
            raise ValueError(f"it has no column {', '.join(sorted(missing))}")
        items = []
        for row in rows:
            values: dict[str, Any] = {field.name: row[field.name] for field in fields(Item)}
            values |= {name: kind(row[name]) for name, kind in kinds.items()}
            values |= {name: float(row[name]) if row[name] else None for name in optional}
            items.append(Item(**values))
    except (OSError, UnicodeDecodeError, KeyError, ValueError, TypeError, csv.Error) as error:
        raise ProblemError(
            path, f"this is no worklist ({type(error).__name__}: {error}).", "Make it anew: handful suggest."
        ) from None
    return items


def write_worklist(
    out: Path, items: Sequence[Item], *, labels: Sequence[str], test: Sequence[str], overwrite: bool = False
) -> None:
    """Write ``worklist.csv``, and for the training that follows ``labels.txt`` and ``test.txt``, a case a line.

    ``labels.txt`` names all cases with a label once the list is worked through. ``test.txt`` holds the test cases
    (nothing is written where there are none): new labels change whom ``--test 40`` would draw.

    Raises:
        UsageError: ``out`` holds another worklist, perhaps with notes in it.
    """
    texts = {NAME: as_text(items), "labels.txt": _lines(labels)}
    if test:
        texts["test.txt"] = _lines(test)
    there = out / NAME
    if there.is_file() and not overwrite and there.read_text(encoding="utf-8") != texts[NAME]:
        raise UsageError(
            f"{there} is another worklist. Choose another --out, or use --overwrite to replace it."
        )
    for name, text in texts.items():
        write_text(out / name, text)


def _lines(names: Sequence[str]) -> str:
    return "".join(f"{name}\n" for name in names)
