"""A page with a part that a benchmark writes: two comment lines mark its place, the rest is left alone."""

from argparse import ArgumentTypeError
from collections.abc import Iterable
from pathlib import Path


class MarkedPage:
    """The part of a page between ``<!-- NAME: written by its benchmark -->`` and ``<!-- NAME: end -->``.

    Raises:
        ArgumentTypeError: the page has no such lines; so a parser says it before anything is measured.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self.marks = f"<!-- {name}: written by its benchmark -->", f"<!-- {name}: end -->"
        if not all(mark in path.read_text() for mark in self.marks):
            raise ArgumentTypeError(
                f"{path} has no place for this: it needs the lines {' and '.join(self.marks)}."
            )

    def replace(self, lines: Iterable[str]) -> None:
        """Write ``lines`` in the place of those that are there."""
        begin, end = self.marks
        before, _, rest = self.path.read_text().partition(begin)
        after = rest.partition(end)[2]
        self.path.write_text("\n".join((before + begin, "", *lines, "", end + after)))
