"""What a ``dataset.json`` declares: label values, channels, files; the dialects of MSD and of nnU-Net understood."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from handful.data.problems import ProblemError, Problems

BACKGROUND_WORDS = (
    "background",
    "bg",
    "none",
    "unlabelled",
    "unlabeled",
    "other",
    "rest",
    "clear label",
    "air",
)
EXAMPLE = 'for example "labels": {"0": "background", "1": "liver"}'


class Declared(NamedTuple):
    """The parts of a ``dataset.json`` that are used.

    Attributes:
        dialect: ``msd`` ({"1": "liver"}) or ``nnunet`` ({"liver": 1}, channel_names, file_ending).
        name: what the data set calls itself, or None.
        labels: value -> name, 0 included, the ignore label not.
        ignore_value: the value of the label called "ignore", or None.
        channels: their names in order.
        content: the whole file.
    """

    dialect: Literal["msd", "nnunet"]
    name: str | None
    labels: Mapping[int, str]
    ignore_value: int | None
    channels: tuple[str, ...]
    content: Mapping[str, Any]


def read_declared(path: Path, problems: Problems) -> Declared:
    """Read ``dataset.json``; what can be lived with is appended to ``problems``.

    Raises:
        ProblemError: not JSON, no labels, ambiguous labels, region labels.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_Pairs)
    except OSError as error:
        raise ProblemError(
            path, f"the file cannot be read ({error.strerror}).", "Restore it or its permissions."
        ) from None
    except (ValueError, RecursionError) as error:
        raise ProblemError(
            path, f"this is not valid JSON ({error}).", "Mend the file; any JSON checker shows where."
        ) from None
    if not isinstance(content, _Pairs):
        raise ProblemError(
            path, "a mapping in braces was expected.", f"Begin with {{ and give at least labels, {EXAMPLE}."
        )
    labels = content.get("labels")
    if not labels:
        raise ProblemError(
            path, "the key 'labels' is missing or empty.", f"Name every label value, {EXAMPLE}."
        )
    names, by_name = _labels(path, labels)
    ignore = next((value for value, name in names.items() if name.lower() == "ignore"), None)
    names = {value: name for value, name in names.items() if value != ignore}
    if 0 not in names:
        problems.warning(
            path, "labels name no value 0; 0 is taken as background.", 'Add "0": "background" to labels.'
        )
        names = {0: "background", **names}
    elif names[0].lower() not in BACKGROUND_WORDS:
        problems.warning(
            path,
            f"value 0 is called '{names[0]}'; it is treated as background.",
            "If 0 is a structure, renumber the label files so that structures start at 1.",
        )
    if len(names) < 2:
        raise ProblemError(
            path, "labels name no structure besides the background.", f"Name every label value, {EXAMPLE}."
        )
    nnunet = by_name or "channel_names" in content or "file_ending" in content
    name = content.get("name")
    return Declared(
        dialect="nnunet" if nnunet else "msd",
        name=name if isinstance(name, str) and name else None,
        labels=dict(sorted(names.items())),
        ignore_value=ignore,
        channels=_channels(path, content, problems),
        content=content,
    )


class _Pairs(dict[str, Any]):
    """A JSON object that remembers keys given twice, of which ``json`` would keep the last in silence."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        keys = [key for key, _ in pairs]
        self.twice = sorted({key for key in keys if keys.count(key) > 1}) if len(self) < len(keys) else []


def _labels(path: Path, labels: Any) -> tuple[dict[int, str], bool]:
    """Return value -> name and whether the file had it the other way round."""
    if isinstance(labels, list):
        labels = _Pairs([(str(index), name) for index, name in enumerate(labels)])
    if not isinstance(labels, _Pairs):
        raise ProblemError(
            path, "'labels' is not a mapping.", f"Write value and name of every label, {EXAMPLE}."
        )
    if labels.twice:
        raise ProblemError(
            path, f"labels give '{labels.twice[0]}' twice.", "Give every label value and name once."
        )
    if any(isinstance(value, list) for value in labels.values()):
        raise ProblemError(
            path,
            "labels are regions (lists of values), which handful does not train.",
            "Give every value its own name; overlapping regions can be joined from the predictions.",
        )
    keys, values = [_integer(k) for k in labels], [_integer(v) for v in labels.values()]
    by_name = None in keys
    if by_name:
        pairs = list(zip(values, labels, strict=True))
    else:
        pairs = list(zip(keys, labels.values(), strict=True))
    names: dict[int, str] = {}
    for value, name in pairs:
        if value is None or not isinstance(name, str) or not name.strip():
            raise ProblemError(
                path,
                f"labels cannot be read at {name!r}.",
                f"Every label is a whole number and a name, {EXAMPLE}.",
            )
        if value in names:
            raise ProblemError(
                path,
                f"labels give the value {value} twice ('{names[value]}', '{name}').",
                "Make them unique.",
            )
        if name in names.values():
            raise ProblemError(
                path, f"labels give the name '{name}' to two values.", "Make the names unique."
            )
        names[value] = name
    return names, by_name


def _channels(path: Path, content: Mapping[str, Any], problems: Problems) -> tuple[str, ...]:
    channels = content.get("channel_names", content.get("modality"))
    if isinstance(channels, str):
        channels = [channels]
    if isinstance(channels, dict):
        order = {_integer(key): value for key, value in channels.items()}
        if set(order) != set(range(len(order))):
            raise ProblemError(
                path, f"channels are numbered {', '.join(channels)}.", "Number them 0, 1, 2, ..."
            )
        channels = [order[index] for index in range(len(order))]
    if isinstance(channels, list) and channels and all(isinstance(name, str) for name in channels):
        return tuple(channels)
    problems.warning(
        path,
        "neither channel_names nor modality names the channels; one is assumed.",
        'Add "channel_names": {"0": "MRI"} or {"0": "CT"}; CT is normalised differently.',
    )
    return ("image",)


def _integer(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    try:
        return int(value)
    except ValueError:
        return None
