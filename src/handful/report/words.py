"""Numbers and lists as people write them."""

from collections.abc import Sequence


def count(n: int, noun: str) -> str:
    """Return ``1 case``, ``2 cases``."""
    return f"{n} {noun}" + ("" if n == 1 else "s")


def some(names: Sequence[str]) -> str:
    """Return the first five names and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def both(names: Sequence[str]) -> str:
    """Return ``a``, ``a and b``, ``a, b and c``."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def duration(seconds: float) -> str:
    """Return ``12 s``, ``3 min 4 s``, ``2 h 5 min``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def figures(value: float | None, digits: int) -> str:
    """Return ``0.812``; a dash if there is no value."""
    return "–" if value is None else f"{value:.{digits}f}"


def interval(ends: tuple[float, float] | None, digits: int) -> str:
    """Return ``0.790–0.834``; nothing if there is no interval."""
    return "" if ends is None else f"{ends[0]:.{digits}f}–{ends[1]:.{digits}f}"
