"""Every file of reference numbers is read by a test: none is carried along for show."""

import ast
import re
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from golden_values import FOLDER

FILES = sorted(path.stem for path in FOLDER.glob("*.npz"))
SOURCES = [path for path in Path(__file__).parent.glob("test_*.py") if path != Path(__file__)]


@cache
def names_in(source: str) -> tuple[set[str], list[re.Pattern[str]]]:
    """Return the text constants of a test file, and its f-strings as patterns with the unknown parts as groups."""
    tree = ast.parse(source)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    constants, patterns = set(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            constants.add(node.value.removesuffix(".npz"))
        elif isinstance(node, ast.JoinedStr) and isinstance(node.values[0], ast.Constant):
            parts = [
                re.escape(str(part.value)) if isinstance(part, ast.Constant) else "(.+)"
                for part in node.values
            ]
            patterns.append(re.compile("".join(parts).removesuffix(re.escape(".npz"))))
    return constants, patterns


def reads(name: str, source: str) -> bool:
    """Say whether a test file names ``name``: as text, by ``*``, or as an f-string whose gap one of its texts fills.

    A ``*`` needs the family before it. A file with one also asserts which files of the family it leaves to others.
    """
    constants, patterns = names_in(source)
    if name in constants:
        return True
    if any("_*" in constant and fnmatchcase(name, constant) for constant in constants):
        return True
    filled = (
        pattern.fullmatch(name) for pattern in patterns if pattern.pattern.startswith(name.split("_")[0])
    )
    return any(found is not None and set(found.groups()) <= constants for found in filled)


def test_every_file_is_read() -> None:
    sources = {path.name: path.read_text(encoding="utf-8") for path in SOURCES}
    readers = {name: [test for test, source in sources.items() if reads(name, source)] for name in FILES}
    assert [name for name, tests in readers.items() if not tests] == []
    assert len(readers) == 61, "the published numbers that the project holds"


def test_the_reader_sees() -> None:
    assert reads("mona_nn", 'golden("mona_nn")')
    assert reads("mona_nn", 'NAMES = ["nn"]\ngolden(f"mona_{name}")')
    assert reads("pcl_a_b", 'GOLDEN.glob("pcl_*.npz")')
    assert not reads("mona_nn", '"""Mentions mona_nn."""\n# mona_nn\nx = "mona_nnn"')
    assert not reads("mona_nn", '"""mona_nn"""')
    assert not reads("mona_nn", 'NAMES = ["isd"]\ngolden(f"mona_{name}")')
    assert not reads("mona_nn", 'GOLDEN.glob("*.npz")')
