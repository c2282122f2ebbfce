"""Find the cases of a folder: MSD, nnU-Net raw, plain folders or a CSV manifest, read in place, no voxel decoded."""

import hashlib
import re
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from handful.artefacts import hash_of
from handful.data.cases import Case, Dataset
from handful.data.dicom import slice_files
from handful.data.folders import LAYOUTS, find_in_folder
from handful.data.io import NIFTI, read_label, suffix_of
from handful.data.layouts import Found
from handful.data.manifest import find_in_csv
from handful.data.nifti import read_nifti_header
from handful.data.partial import annotated_structures
from handful.data.patients import assign_patients, patients_in_two_splits
from handful.data.problems import Problem, ProblemError, Problems
from handful.errors import DataError

MIB = 2**20


class Scan(NamedTuple):
    """What was found: the data set, or None where nothing could be read, and every problem met on the way."""

    dataset: Dataset | None
    problems: tuple[Problem, ...]


def open_dataset(path: Path | str, *, patients: str | None = None) -> Dataset:
    """Open a folder of volumes (or a CSV manifest) as one data set.

    Headers at most are read. A case without a label is unlabelled, not an error; everything the user should know is in
    ``Dataset.notes``. ``Case.images`` has one path a channel; a 4-D file that holds all channels is repeated.
    ``dataset.json`` the label values are read from the label files when ``label_names`` is first looked at.

    Args:
        path: a folder, its ``dataset.json``, or a CSV manifest.
        patients: regular expression searched in each case name; its first group is the patient.

    Raises:
        DataError: nothing readable, files that are declared and missing, a patient both in training and held out, ...
        UsageError: ``patients`` is no regular expression with a group that matches every case.

    Example:
        >>> dataset = open_dataset("Task04_Hippocampus", patients=r"(hippocampus_\\d+)")  # doctest: +SKIP
        >>> len(dataset.labelled), len(dataset.unlabelled)  # doctest: +SKIP
        (200, 0)
    """
    dataset, problems = scan_dataset(path, patients=patients)
    fatal = [str(problem) for problem in problems if problem.severity == "fatal"]
    if dataset is None or fatal:
        more = (
            f"\n... and {len(fatal) - 5} more; handful check {path} lists them all." if len(fatal) > 5 else ""
        )
        raise DataError("\n".join(fatal[:5]) + more)
    notes = [str(problem) for problem in problems]
    return replace(dataset, notes=(*notes, *_geometry_notes(dataset)))


def scan_dataset(path: Path | str, *, patients: str | None = None) -> Scan:
    """Do what ``open_dataset`` does, but return every problem instead of stopping at fatal ones."""
    path = Path(path)
    problems = Problems()
    try:
        found = _find(path, problems)
        if not found.entries:
            raise ProblemError(
                found.root, "there is no case in it.", f"Put volumes (.nii.gz) into it. {LAYOUTS}"
            )
    except ProblemError as error:
        return Scan(None, (*problems, error.problem))
    except OSError as error:
        problems.fatal(path, f"the folder cannot be read ({error.strerror}).", "Check its permissions.")
        return Scan(None, tuple(problems))
    entries, patients_from = assign_patients(found, patients, problems)
    annotated = annotated_structures(found, problems)
    cases = tuple(
        Case(
            name=e.name, patient=e.patient or e.name, images=e.images, label=e.label, held_out=e.held_out,
            annotated=annotated.get(e.name),
        )
        for e in sorted(entries, key=lambda e: e.name)
    )  # fmt: skip
    problems += _judge_names(cases)
    problems += patients_in_two_splits(cases)
    if not any(case.label for case in cases):
        problems.warning(
            found.root, "no case has a label.", "That is enough to pre-train; to train, label a few cases."
        )
    declared = found.declared
    labels: Mapping[int, str]
    if declared is not None:
        labels = declared.labels
    else:
        labels = LabelsSeen(tuple(case.label for case in cases if case.label is not None))
        problems.note(
            found.root,
            "no dataset.json names the labels: their values are read from the label files when needed.",
            'For names, add a dataset.json with "labels": {"0": "background", "1": ...}.',
        )
    dataset = Dataset(
        name=(declared.name if declared else None) or found.name,
        root=found.root,
        layout=found.layout,
        cases=cases,
        label_names=labels,
        channel_names=found.channels,
        ignore_value=declared.ignore_value if declared else None,
        patients_from=patients_from,
        notes=tuple(str(problem) for problem in problems if problem.severity != "fatal"),
    )
    return Scan(dataset, tuple(problems))


def content_hash(dataset: Dataset) -> str:
    """Return 16 hexadecimal digits that identify the data, wherever the folder lies.

    Hashed are the declarations, and of every file (every slice of a DICOM series) its case, its role, its size and the
    bytes of its first and last MiB:
    whole files for most MR, and a few seconds for 100 GB. A change in the middle of a larger file that keeps its size
    goes unseen (compressed files change to their end, so this concerns uncompressed ones).
    """
    declared = (
        None
        if isinstance(dataset.label_names, LabelsSeen)
        else {str(k): v for k, v in dataset.label_names.items()}
    )
    digests: dict[Path, str] = {}

    def digest(path: Path | None) -> str | None:
        if path is not None and path not in digests:
            digests[path] = _digest(path)
        return None if path is None else digests[path]

    return hash_of(
        {
            "name": dataset.name,
            "labels": declared,
            "ignore": dataset.ignore_value,
            "channels": dataset.channel_names,
            "cases": [
                [
                    *(c.name, c.patient, c.held_out, [digest(image) for image in c.images], digest(c.label)),
                    *([c.annotated] if c.annotated is not None else []),
                ]
                for c in dataset.cases
            ],
        }
    )


def image_hashes(cases: Iterable[Case]) -> dict[str, list[str]]:
    """Return case -> a hash of each of its image files, read as ``content_hash`` reads them; equal files, equal hashes.

    A copy is found by it under another name and in another data set, but not one that was saved anew.
    """
    return {case.name: sorted({hash_of(_digest(image)) for image in case.images}) for case in cases}


def named_by(dataset: Dataset, cases: Sequence[Case]) -> Dataset:
    """Return the data set with its structures known from these cases alone, where no ``dataset.json`` names them.

    A training may know no more than its budget's labels, not even which values the others hold.
    """
    if not isinstance(dataset.label_names, LabelsSeen):
        return dataset
    return replace(dataset, label_names=LabelsSeen([case.label for case in cases if case.label is not None]))


class LabelsSeen(Mapping[int, str]):
    """Label names made of the values in the label files, which are read when the names are first looked at."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = tuple(files)
        self._lock = threading.Lock()
        self._read: dict[int, str] | None = None

    def __getitem__(self, value: int) -> str:
        return self._names[value]

    def __iter__(self) -> Iterator[int]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"LabelsSeen({len(self._files)} files)"

    @property
    def _names(self) -> dict[int, str]:
        with self._lock:
            if self._read is None:
                values = {0}
                for file in self._files:
                    values.update(int(value) for value in np.unique(read_label(file).array))
                self._read = {value: str(value) if value else "background" for value in sorted(values)}
            return self._read


def _find(path: Path, problems: Problems) -> Found:
    if not path.exists():
        raise ProblemError(
            path, "there is no such file or folder.", "Check the spelling and the current folder."
        )
    if path.is_file():
        if path.suffix.lower() == ".csv":
            return find_in_csv(path, problems)
        if path.name == "dataset.json":
            return find_in_folder(path.parent, problems)
        raise ProblemError(path, "this is a file, not a data set.", f"Name the folder it lies in. {LAYOUTS}")
    return find_in_folder(path, problems)


def _judge_names(cases: Sequence[Case]) -> list[Problem]:
    problems = Problems()
    exact = Counter(case.name for case in cases)
    folded = Counter(name.casefold() for name in exact)
    for case in cases:
        if exact[case.name] > 1:
            problems.fatal(
                case.images[0],
                f"{exact[case.name]} cases are called {case.name}.",
                "Rename the files (or rows) so that every case has its own name.",
                case=case.name,
            )
        elif folded[case.name.casefold()] > 1:
            problems.warning(
                case.images[0],
                f"the case name {case.name} is that of another but for upper and lower case.",
                "Rename one: some disks cannot keep the two predictions apart.",
                case=case.name,
            )
        if re.search(r'[/\\:*?"<>|\x00-\x1f]', case.name) or case.name.startswith("."):
            problems.fatal(
                case.images[0],
                f"the case name {case.name!r} cannot be a file name.",
                "Use letters, digits, - and _.",
                case=case.name,
            )
    by_file: dict[Path, Case] = {}
    for case in cases:
        for file in dict.fromkeys(case.images):
            other = by_file.setdefault(file, case)
            if other is not case and other.name != case.name:
                problems.fatal(
                    file,
                    f"it is the image of two cases, {other.name} and {case.name}.",
                    "Give every case its own image.",
                    case=case.name,
                )
    return problems


def _geometry_notes(dataset: Dataset) -> Iterable[str]:
    """Say once, for all files, where headers contradict themselves (each file's own warning comes when it is read)."""
    seen: dict[str, list[Problem]] = defaultdict(list)
    for case in dataset.cases:
        for file in dict.fromkeys((*case.images, *((case.label,) if case.label else ()))):
            if suffix_of(file) not in NIFTI:
                continue
            try:
                found = read_nifti_header(file).remarks
            except DataError:
                continue  # reading the voxels will say so
            for remark in found:
                seen[re.sub(r"\d[\d.e+-]*( x \d[\d.e+-]*)*", "#", remark.what)].append(remark)
    for remarks in seen.values():
        first = remarks[0]
        same = f" So in {len(remarks)} files." if len(remarks) > 1 else ""
        yield f"{first.file}: {first.what}{same} handful check {dataset.root} lists them with the remedy."


def _digest(path: Path) -> str:
    if path.is_dir():  # a DICOM series, whatever its files are called
        return hash_of(sorted(map(_digest, slice_files(path))))
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            parts = hashlib.sha256(file.read(MIB))
            if size > 2 * MIB:
                file.seek(-MIB, 2)
            parts.update(file.read())
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}). Restore the file or its permissions."
        ) from None
    return f"{size}:{parts.hexdigest()[:32]}"
