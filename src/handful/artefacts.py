"""Files the tool leaves behind: written whole or not at all, hashed, and read back with clear errors."""

import contextlib
import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from handful.errors import DataError, RunError


@contextlib.contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``target``; rename it over ``target`` only if the block succeeds.

    A crash, a full disk or an exception leaves the previous ``target`` as it was and no temporary file.

    Raises:
        RunError: when the disk is full or the folder cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # the target's suffixes are kept, because writers such as nibabel choose the format by them
        handle, name = tempfile.mkstemp(prefix=".tmp-", suffix="-" + target.name, dir=target.parent)
        os.close(handle)
    except OSError as error:
        raise RunError(
            f"{target.parent} cannot be written: {error.strerror}. Choose another --out."
        ) from error
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes files private
        os.replace(temporary, target)
    except OSError as error:
        raise RunError(
            f"{target} could not be written: {error.strerror or error}. Any previous version of it is intact; "
            "free some space and run the same command again."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically (UTF-8)."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` to ``path`` atomically as indented JSON; NaN and infinity are refused."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False, default=_plain) + "\n")


def write_yaml(path: Path, content: Mapping[str, Any], *, comment: str = "") -> None:
    """Write ``content`` to ``path`` atomically as YAML, ``comment`` lines first."""
    head = "".join(f"# {line}\n" for line in comment.splitlines())
    write_text(path, head + yaml.safe_dump(_yaml_plain(content), sort_keys=False, width=110))


def read_json(path: Path) -> Any:
    """Read JSON; a missing or damaged file is a ``DataError`` that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist.") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(
            f"{path} is not valid JSON: {error}. Mend the file or delete it to have it made anew."
        ) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; a missing or damaged file is a ``DataError`` that names it."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist.") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(
            f"{path} is not valid YAML: {error}. Mend the file or delete it to have it made anew."
        ) from None
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no settings (a mapping was expected, found {type(content).__name__}).")
    return content


def hash_of(content: Any) -> str:
    """Return 16 hexadecimal digits that identify ``content`` (anything JSON can hold; order of keys is ignored)."""
    text = json.dumps(content, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hash_of_file(path: Path) -> str:
    """Return 16 hexadecimal digits that identify the bytes of ``path``."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _yaml_plain(content: Any) -> Any:
    """Reduce to the types ``safe_dump`` knows (tuples become lists)."""
    return json.loads(json.dumps(content, default=_plain))
