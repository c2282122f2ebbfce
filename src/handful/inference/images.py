"""Which volumes to predict: one volume, a folder of volumes, a data set or a CSV manifest become a list of cases."""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from handful.data.cases import Case
from handful.data.dicom import is_series
from handful.data.discover import open_dataset
from handful.data.io import SUFFIXES, stem_of, suffix_of
from handful.errors import DataError

CHANNEL = re.compile(r"(.+)_(\d{4})$")
DATASET_PARTS = ("dataset.json", "imagesTr", "images", "imagesUn")


def is_dataset(images: Path) -> bool:
    """Say whether ``images`` is a data set rather than plain volumes."""
    if images.is_dir():
        return any((images / part).exists() for part in DATASET_PARTS)
    return images.name == "dataset.json" or images.suffix.lower() == ".csv"


def find_images(images: Path, *, channels: int) -> list[Case]:
    """Return the cases to predict, sorted by name.

    A data set gives all its cases. A volume is a file, or a folder of DICOM slices. Among plain volumes,
    ``x_0000.nii.gz``, ``x_0001.nii.gz``, ... are the channels of case ``x`` if the numbers of every such case are
    exactly the model's; otherwise each is a case of its own.

    Args:
        images: one volume, a folder of volumes, a data set's folder or ``dataset.json``, or a CSV manifest.
        channels: how many the model expects.

    Raises:
        DataError: nothing there, a kind of file nobody can read, two volumes for one case, or slices beside volumes.
    """
    if not images.exists():
        raise DataError(f"{images} does not exist; give a volume, a folder of volumes or a data set.")
    if is_dataset(images):
        return list(open_dataset(images).cases)
    if images.is_file():
        if not suffix_of(images):
            raise DataError(
                f"{images} is not a kind of file that can be read; convert it to one of {', '.join(SUFFIXES)}. Of a "
                "DICOM series, name the folder."
            )
        match = CHANNEL.match(stem_of(images))
        ending = suffix_of(images)
        siblings = [
            images.with_name(f"{match[1]}_{number:04d}{images.name[-len(ending) :]}") for number in range(channels)
        ] if match else []  # fmt: skip
        together = images in siblings and all(file.is_file() for file in siblings)
        return _cases(siblings if together else [images], channels)
    visible = [entry for entry in images.iterdir() if entry.name[0] != "."]
    files = sorted(entry for entry in visible if suffix_of(entry) or is_series(entry))
    if is_series(images):
        if files:
            raise DataError(
                f"{images} holds both DICOM slices and volumes ({files[0].name}); give each a folder of its own."
            )
        return _cases([images.resolve()], channels)  # the name of "." too
    if not files:
        others = sorted({file.suffix or file.name for file in images.iterdir()})
        there = f"found {', '.join(others[:5])}" if others else "it is empty"
        raise DataError(
            f"{images} holds no volumes ({there}); volumes end in {', '.join(SUFFIXES)} or are folders of DICOM slices."
        )
    return _cases(files, channels)


def _cases(files: Sequence[Path], channels: int) -> list[Case]:
    """Group files into cases."""
    matches = {file: CHANNEL.match(stem_of(file)) for file in files}
    groups: dict[str, set[int]] = defaultdict(set)
    for match in matches.values():
        if match:
            groups[match[1]].add(int(match[2]))
    numbered = all(matches.values()) and all(numbers == set(range(channels)) for numbers in groups.values())
    found: dict[str, list[Path]] = defaultdict(list)
    for file, match in matches.items():
        found[match[1] if match and numbered else stem_of(file)].append(file)
    for name, paths in found.items():
        if len(paths) != (channels if numbered else 1):
            raise DataError(
                f"{' and '.join(map(str, paths))} are both case '{name}'; remove or rename one of them."
            )
    return [
        Case(name=name, patient=name, images=tuple(paths) if numbered else (paths[0],) * channels)
        for name, paths in sorted(found.items())
    ]
