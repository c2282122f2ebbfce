"""Read a CSV manifest: ``case,patient,image[,image2...],label,split,annotated``, paths relative to the file."""

import csv
import re
from pathlib import Path

from handful.data.declared import read_declared
from handful.data.layouts import Entry, Found, unnamed_channels
from handful.data.problems import ProblemError, Problems

SPLITS = ("train", "test", "unlabelled")

KNOWN = ("case", "patient", "label", "split", "annotated")
"""Columns besides the images; what the last means is in ``data.partial``."""


def find_in_csv(path: Path, problems: Problems) -> Found:
    """Read a manifest; a ``dataset.json`` beside it, if there is one, names labels and channels.

    ``split`` is train (or empty), test or unlabelled; an empty ``label`` means unlabelled.

    Raises:
        ProblemError: not a table of the known columns.
    """
    columns, rows = read_csv(path)
    image_columns = [c for c in columns if re.fullmatch(r"image\d*", c)]
    for needed in ("case", "image"):
        if needed not in columns:
            raise ProblemError(
                path,
                f"the column '{needed}' is missing (found: {', '.join(columns)}).",
                "The first line names the columns: case,patient,image,label,split.",
            )
    unused = [c for c in columns if c not in (*KNOWN, *image_columns)]
    if unused:
        problems.note(path, f"column(s) not used: {', '.join(unused)}.")
    manifest = path.parent / "dataset.json"
    declared = read_declared(manifest, problems) if manifest.is_file() else None
    if declared and len(declared.channels) != len(image_columns) > 1:
        raise ProblemError(
            path,
            f"{len(image_columns)} image columns, but dataset.json names {len(declared.channels)} channels.",
            "Make them agree.",
        )
    repeat = len(declared.channels) if declared and len(image_columns) == 1 else 1
    entries = []
    for line, row in rows:
        where = f"line {line}"
        name = row["case"]
        if not name:
            raise ProblemError(path, f"{where} names no case.", "Fill the column 'case'.")
        split = row.get("split", "") or "train"
        split = {"unlabeled": "unlabelled"}.get(split.lower(), split.lower())
        if split not in SPLITS:
            raise ProblemError(path, f"{where}: the split is '{split}'.", f"Allowed are {', '.join(SPLITS)}.")
        images = tuple(path.parent / row[column] for column in image_columns if row[column])
        if len(images) != len(image_columns):
            problems.fatal(
                path,
                f"{where}: case {name} lacks an image.",
                "Fill every image column.",
                case=name,
            )
            continue
        label = path.parent / row["label"] if row.get("label") else None
        for file in (*images, *((label,) if label else ())):
            if not (file.is_file() or (file.is_dir() and file != label)):  # a DICOM series is a folder
                problems.fatal(
                    file,
                    f"{path.name}, {where} lists this file, but it does not exist.",
                    "Correct the path; paths are relative to the CSV file.",
                    case=name,
                )
        if split == "test" and label is None:
            problems.note(
                path,
                f"{where}: test case {name} has no label and is left out; use handful predict.",
            )
            continue
        if split == "unlabelled" and label is not None:
            problems.note(path, f"{where}: case {name} is declared unlabelled; its label is not used.")
            label = None
        patient, annotated = row.get("patient") or None, row.get("annotated", "")
        entries.append(Entry(name, images * repeat, label, split == "test", patient, annotated))
    patients_from = None
    if "patient" in columns:
        patients_from = f"column 'patient' of {path.name}"
        without = sum(entry.patient is None for entry in entries)
        if without:
            problems.note(path, f"{without} case(s) have no patient; each counts as its own.")
    channels = declared.channels if declared else unnamed_channels(len(image_columns))
    return Found("csv", path.stem, path.parent, entries, channels, declared, patients_from)


def read_csv(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Return lower-case column names and (line number, row) pairs; comma, semicolon or tab, whichever the head uses."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ProblemError(path, f"the file cannot be read ({error}).", "Save it as CSV in UTF-8.") from None
    head = text.split("\n", 1)[0]
    reader = csv.reader(text.splitlines(), delimiter=max(",;\t", key=head.count), strict=True)
    try:
        lines = [
            (reader.line_num, [cell.strip() for cell in cells])
            for cells in reader
            if any(c.strip() for c in cells)
        ]
    except csv.Error as error:
        raise ProblemError(
            path, f"line {reader.line_num} is not valid CSV ({error}).", "Close its quotes."
        ) from None
    if not lines:
        raise ProblemError(
            path, "the file is empty.", "The first line names the columns: case,patient,image,label,split."
        )
    columns = [name.lower() for name in lines[0][1]]
    if len(set(columns)) < len(columns):
        raise ProblemError(
            path, f"a column is named twice ({', '.join(columns)}).", "Name every column once."
        )
    for line, cells in lines[1:]:
        if len(cells) > len(columns):
            raise ProblemError(
                path,
                f"line {line} has {len(cells)} cells, the head has {len(columns)}.",
                "Put values that hold commas in quotes.",
            )
    return columns, [(line, dict(zip(columns, [*cells, *[""] * len(columns)]))) for line, cells in lines[1:]]
