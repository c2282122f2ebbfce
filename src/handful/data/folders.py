"""Read folders of volumes: MSD and nnU-Net with their ``dataset.json``, or images/ and labels/ alone."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from handful.data.declared import Declared, read_declared
from handful.data.dicom import is_series
from handful.data.io import stem_of, suffix_of
from handful.data.layouts import Entry, Found, unnamed_channels
from handful.data.problems import ProblemError, Problems

LAYOUTS = (
    "Known are: dataset.json of MSD or nnU-Net beside imagesTr/ and labelsTr/; images/ and labels/; "
    "or a CSV file with the columns case,patient,image,label,split."
)
# these may lie beside volumes without a word about them
COMPANIONS = (".raw", ".zraw", ".gz", ".json", ".txt", ".csv", ".md", ".tsv")
CHANNEL = re.compile(r"(.+)_(\d{4})$")


def find_in_folder(root: Path, problems: Problems) -> Found:
    """Read a folder with or without ``dataset.json``; ``imagesTr`` goes before ``images``.

    Raises:
        ProblemError: no known layout, or a ``dataset.json`` that cannot be read.
    """
    manifest = root / "dataset.json"
    declared = read_declared(manifest, problems) if manifest.exists() else None
    images, labels = next(
        (
            (root / image, root / label)
            for image, label in (("imagesTr", "labelsTr"), ("images", "labels"))
            if (root / image).is_dir()
        ),
        (root / "imagesTr", root / "labelsTr"),
    )
    training = declared.content.get("training") if declared else None
    listed = declared.content.get("dataset") if declared else None
    if not (images.is_dir() or training or listed or (root / "imagesUn").is_dir()):
        raise ProblemError(root, _what_is_there(root), LAYOUTS)
    n_channels = len(declared.channels) if declared else None
    ending = _ending(manifest, declared)

    pairs = _Folder(images, labels, n_channels, ending, problems)
    if training or listed:
        assert declared is not None
        entries = _listed_training(root, declared, training, listed, problems)
        entries += _unlisted(entries, pairs, manifest, problems)
        unused_labels = set(pairs.labels.values()) - {e.label for e in entries}
        orphans = {p for p in unused_labels if stem_of(p) not in pairs.images}
    else:
        entries = [Entry(name, files, pairs.labels.get(name)) for name, files in pairs.images.items()]
        orphans = {p for stem, p in pairs.labels.items() if stem not in pairs.images}
    unlabelled = _Folder(root / "imagesUn", None, n_channels or pairs.n_channels, ending, problems)
    added = {
        name: pairs.labels[name] for name in unlabelled.images if pairs.labels.get(name) in orphans
    }  # drawn since: the image need not move for its label to count
    orphans -= set(added.values())
    if added:
        problems.note(
            root / "imagesUn",
            f"{len(added)} image(s) have a label in {labels.name}/ and count as labelled (first: {min(added)}).",
        )
    for orphan in sorted(orphans):
        nothing_fits = len(orphans) == len(pairs.labels) and not any(e.label for e in entries)
        report = problems.fatal if nothing_fits else problems.warning
        report(
            orphan,
            "this label has no image.",
            f"Labels are called as their images in {images.name}/ (without _0000): rename it, or restore the image.",
        )
    if declared:
        _judge_count(manifest, declared, sum(e.label is not None for e in entries), len(entries), problems)

    entries += [Entry(name, files, added.get(name)) for name, files in unlabelled.images.items()]
    entries += _held_out(root, declared, n_channels or pairs.n_channels, ending, problems)
    channels = (
        declared.channels if declared else unnamed_channels(max((len(e.images) for e in entries), default=1))
    )
    for entry in entries:
        if len(entry.images) != len(channels):
            problems.fatal(
                entry.images[0],
                f"case {entry.name} has {len(entry.images)} channel files, {len(channels)} are expected.",
                "Every case needs every channel (_0000, _0001, ...), or one 4-D file.",
                case=entry.name,
            )
    layout = declared.dialect if declared else "folders"
    return Found(layout, root.resolve().name, root, entries, channels, declared)


class _Folder:
    """The volumes of an image folder by case, and of the label folder beside it.

    ``x_0000.nii.gz`` is channel 0 of case ``x`` if the labels are called so, or, where no label tells, if the numbers
    are exactly those of the channels; otherwise it is the name of a case.
    """

    def __init__(
        self,
        images: Path,
        labels: Path | None,
        n_channels: int | None,
        ending: str | None,
        problems: Problems,
    ) -> None:
        self.labels: dict[str, Path] = {}
        self.images: dict[str, tuple[Path, ...]] = {}
        for file in _volumes(labels, ending, problems) if labels else ():
            if (stem := stem_of(file)) in self.labels:
                problems.fatal(file, *_same_name(self.labels[stem]))
            self.labels[stem] = file
        files = sorted([*_volumes(images, ending, problems), *_series(images, ending)])
        suffixed = _channel_numbers(files, n_channels, self.labels)
        self.n_channels = n_channels or 1 + max((number for _, number in suffixed.values()), default=0)
        groups: dict[str, dict[int, Path]] = defaultdict(dict)
        for file in files:
            name, number = suffixed.get(file, (stem_of(file), -1))
            if number in groups[name]:
                problems.fatal(file, *_same_name(groups[name][number]))
            groups[name][number] = file
        for name, numbered in groups.items():
            if set(numbered) == {-1}:
                self.images[name] = (numbered[-1],) * self.n_channels
            elif set(numbered) == set(range(self.n_channels)):
                self.images[name] = tuple(numbered[number] for number in range(self.n_channels))
            else:
                first = next(iter(numbered.values()))
                have = ", ".join(file.name for file in numbered.values())
                problems.fatal(
                    first,
                    f"case {name} has the files {have}; {self.n_channels} channel(s) expected.",
                    f"Give every case exactly the channels _0000 to _{self.n_channels - 1:04d}.",
                    case=name,
                )


def _channel_numbers(
    files: Sequence[Path], n_channels: int | None, labels: Mapping[str, Path]
) -> dict[Path, tuple[str, int]]:
    """Return case name and channel number of the files whose ``_0000`` is a channel, {} if none is."""
    suffixed = {file: (m[1], int(m[2])) for file in files if (m := CHANNEL.match(stem_of(file)))}
    if not suffixed or any(stem_of(file) in labels for file in suffixed):
        return {}
    if any(name in labels for name, _ in suffixed.values()):
        return suffixed
    groups: dict[str, set[int]] = defaultdict(set)
    for name, number in suffixed.values():
        groups[name].add(number)
    numbers = set(range(n_channels or max(len(group) for group in groups.values())))
    several_or_one = n_channels is not None or len(groups) > 1 or numbers == {0}
    return suffixed if several_or_one and all(group == numbers for group in groups.values()) else {}


def _listed_training(
    root: Path, declared: Declared, training: Any, listed: Any, problems: Problems
) -> list[Entry]:
    """Read the entries of ``training`` (MSD) or ``dataset`` (nnU-Net)."""
    manifest = root / "dataset.json"
    if isinstance(listed, dict) and not training:
        items: list[tuple[str | None, Any]] = list(listed.items())
    elif isinstance(training, list):
        items = [(None, item) for item in training]
    else:
        raise ProblemError(
            manifest, "'training' is not a list.", 'Write [{"image": "...", "label": "..."}, ...].'
        )
    entries = []
    for name, item in items:
        entry = _listed_entry(root, declared, name, item)
        for file in (*dict.fromkeys(entry.images), *((entry.label,) if entry.label else ())):
            if not file.is_file():
                problems.fatal(
                    file,
                    "dataset.json lists this file for training, but it does not exist.",
                    f"Restore the file, or remove its entry from {manifest}.",
                    case=entry.name,
                )
        entries.append(entry)
    return entries


def _listed_entry(root: Path, declared: Declared, name: str | None, item: Any) -> Entry:
    images, label = item, None
    if isinstance(item, dict):
        images, label = item.get("image", item.get("images")), item.get("label")
    if isinstance(images, str):
        images = [images]
    if not (
        isinstance(images, list) and images and all(isinstance(i, str) for i in images)
    ) or not isinstance(label, str | None):
        raise ProblemError(
            root / "dataset.json",
            f"this entry cannot be read: {str(item)[:80]}.",
            'Write {"image": "...", "label": "..."}.',
        )
    label_path = root / label if label else None
    paths = tuple(root / image for image in images)
    stem = stem_of(paths[0])
    n_channels = len(declared.channels)
    if len(paths) == 1 and not paths[0].is_file():  # nnU-Net 1 lists x.nii.gz and stores x_0000.nii.gz
        suffix = suffix_of(paths[0])
        stored = tuple(paths[0].with_name(f"{stem}_{number:04d}{suffix}") for number in range(n_channels))
        if all(path.is_file() for path in stored):
            return Entry(name or stem, stored, label_path)
    channel = CHANNEL.match(stem)
    if (
        channel
        and int(channel[2]) == 0
        and (len(paths) > 1 or (label_path and stem_of(label_path) == channel[1]))
    ):
        stem = channel[1]
    return Entry(name or stem, paths * n_channels if len(paths) == 1 else paths, label_path)


def _unlisted(entries: list[Entry], pairs: _Folder, manifest: Path, problems: Problems) -> list[Entry]:
    """Return the volumes of the image folder that ``dataset.json`` does not list, as unlabelled cases."""
    known = {image.resolve() for entry in entries for image in entry.images}
    extra = [
        Entry(name, files)
        for name, files in pairs.images.items()
        if not any(file.resolve() in known for file in files)
    ]
    if extra:
        problems.note(
            manifest,
            f"{len(extra)} image(s) are not in its training list and count as unlabelled (first: {extra[0].name}).",
        )
    with_label = [entry.name for entry in extra if entry.name in pairs.labels]
    if with_label:
        problems.warning(
            manifest,
            f"{len(with_label)} of them have a label, which is not used (first: {with_label[0]}).",
            "Add them to the training list.",
        )
    return extra


def _held_out(
    root: Path, declared: Declared | None, n_channels: int, ending: str | None, problems: Problems
) -> list[Entry]:
    """Return the labelled test cases: listed ones that exist, and pairs in imagesTs/ and labelsTs/."""
    entries: list[Entry] = []
    content = declared.content if declared else {}
    missing: list[str] = []
    listed_without: list[Path] = []
    for key in ("test_labelled", "test"):
        items = content.get(key)
        for item in items if isinstance(items, list) else ():
            assert declared is not None
            entry = _listed_entry(root, declared, None, item)
            if entry.label is None:
                listed_without += entry.images[:1]
            elif all(file.is_file() for file in (*entry.images, entry.label)):
                entries.append(entry._replace(held_out=True))
            else:
                missing.append(entry.name)
    if missing:
        problems.note(
            root / "dataset.json",
            f"{len(missing)} labelled test case(s) are listed but not here (first: {missing[0]}); they are left out.",
        )
    folder = _Folder(root / "imagesTs", root / "labelsTs", n_channels, ending, problems)
    known = {image.resolve() for entry in entries for image in entry.images}
    without = 0
    for name, files in folder.images.items():
        if any(file.resolve() in known for file in files):
            continue
        if name in folder.labels:
            entries.append(Entry(name, files, folder.labels[name], held_out=True))
        else:
            without += 1
    for stem, label in folder.labels.items():
        if stem not in folder.images and label not in {entry.label for entry in entries}:
            problems.warning(
                label,
                "this test label has no image in imagesTs/.",
                "Restore the image or delete it.",
            )
    paired = {image.resolve() for entry in entries for image in entry.images}
    number = max(without, sum(image.resolve() not in paired for image in listed_without))
    if number:
        problems.note(
            root,
            f"{number} test image(s) have no label; they are left out, use handful predict on them.",
        )
    return entries


def _judge_count(
    manifest: Path, declared: Declared, labelled: int, training: int, problems: Problems
) -> None:
    number = declared.content.get("numTraining")
    if isinstance(number, int) and number not in (labelled, training):
        problems.warning(
            manifest,
            f"numTraining is {number}, but {labelled} labelled cases were found.",
            "Correct the number, or look for missing files.",
        )


def _ending(manifest: Path, declared: Declared | None) -> str | None:
    ending = declared.content.get("file_ending") if declared else None
    if ending is not None and not suffix_of(Path(f"x{ending}")):
        raise ProblemError(
            manifest, f"file_ending is {ending!r}, which cannot be read.", "Convert the volumes to .nii.gz."
        )
    return ending


def _volumes(folder: Path, ending: str | None, problems: Problems) -> list[Path]:
    """List the volumes of a folder, sorted; files nobody can read are a warning."""
    if not folder.is_dir():
        return []
    files = [file for file in sorted(folder.iterdir()) if not file.name.startswith(".") and file.is_file()]
    good = [f for f in files if suffix_of(f) and (ending is None or f.name.lower().endswith(ending.lower()))]
    strange = [f for f in files if suffix_of(f) or f.suffix.lower() not in COMPANIONS]
    strange = sorted(set(strange) - set(good))
    if strange:
        problems.warning(
            strange[0],
            f"{len(strange)} file(s) in {folder.name}/ are not volumes; left out.",
            "Convert them to .nii.gz" + (f" (dataset.json says file_ending {ending})." if ending else "."),
        )
    return good


def _series(folder: Path, ending: str | None) -> list[Path]:
    """List the DICOM series, each a folder, of an image folder; a declared file ending excludes them."""
    if ending or not folder.is_dir():
        return []
    return [entry for entry in folder.iterdir() if entry.name[0] != "." and is_series(entry)]


def _what_is_there(root: Path) -> str:
    names = sorted(entry.name for entry in root.iterdir() if not entry.name.startswith("."))
    if not names:
        return "the folder is empty."
    inside = [
        name
        for name in names
        if (root / name / "dataset.json").is_file() or (root / name / "imagesTr").is_dir()
    ]
    if inside:
        return f"this folder is no data set, but holds {', '.join(inside[:5])}: name one of them."
    more = ", ..." if len(names) > 5 else ""
    return f"neither imagesTr/ nor images/ is in it (it holds {', '.join(names[:5])}{more})."


def _same_name(other: Path) -> tuple[str, str]:
    return f"it has the same name as {other.name}, but for the ending.", "Keep one of the two."
