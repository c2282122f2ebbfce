"""Frozen dataclasses of settings: read from YAML and ``--set a.b=c``, unknown keys refused by name."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

import yaml
from pydantic import TypeAdapter, ValidationError

from handful.errors import UsageError, nearest

T = TypeVar("T")


def build(kind: type[T], values: Mapping[str, Any], *, where: str) -> T:
    """Make a frozen settings dataclass from plain values.

    Args:
        kind: a dataclass whose fields may be dataclasses themselves.
        values: nested plain values; missing keys take the defaults.
        where: what the user calls the source (a file, ``--set``), for messages.

    Raises:
        UsageError: an unknown key (the nearest known one is named) or a value of the wrong type.
    """
    _refuse_unknown(kind, values, where=where, path="")
    try:
        checked: T = _adapter(cast(Any, kind)).validate_python(dict(values))
        return checked
    except ValidationError as error:
        lines = [
            f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']} (found {e['input']!r})"
            for e in error.errors()
        ]
        raise UsageError(f"{where}: " + "; ".join(lines)) from None
    except (ValueError, TypeError) as error:
        raise UsageError(f"{where}: {error}") from None


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """Turn ``["pretrain.temperature=0.2"]`` into ``{"pretrain": {"temperature": 0.2}}`` (values are YAML)."""
    result: dict[str, Any] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--set {text}: expected name=value, for example --set optimiser.lr=0.001.")
        *parents, last = key.strip().split(".")
        node = result
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise UsageError(f"--set {text}: '{parent}' was already given a plain value.")
        try:
            node[last] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UsageError(f"--set {text}: the value is not valid YAML: {error}.") from None
    return result


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay ``over`` on ``base``, key by key, going into nested mappings."""
    result = dict(base)
    for key, value in over.items():
        current = result.get(key)
        if isinstance(current, Mapping) and isinstance(value, Mapping):
            result[key] = merge(current, value)
        else:
            result[key] = value
    return result


def as_dict(settings: Any) -> dict[str, Any]:
    """Return a settings dataclass as nested plain values, complete enough to build it again."""
    return dataclasses.asdict(settings)


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    """Return what checks a class; making one takes longer than using it a thousand times."""
    return TypeAdapter(kind)


def _refuse_unknown(kind: Any, values: Mapping[str, Any], *, where: str, path: str) -> None:
    if not isinstance(values, Mapping):
        raise UsageError(
            f"{where}: {path or 'the settings'} must be a mapping of names to values, found {values!r}."
        )
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key, value in values.items():
        full = f"{path}.{key}" if path else str(key)
        if key not in fields:
            raise UsageError(f"{where}: unknown setting '{full}'; {nearest(str(key), list(fields))}")
        inner = fields[key].type
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            _refuse_unknown(inner, value, where=where, path=full)
