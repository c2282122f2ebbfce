"""Imports point one way, every module can be imported, and the light commands stay light."""

import ast
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "handful"
MODULES = sorted(PACKAGE.rglob("*.py"))

# What each part may import, besides itself: the picture in docs/design.md. A part is a folder or a file of src/handful.
GROUND = {"__init__", "errors", "artefacts", "settings", "batches", "device"}
PARTS: dict[str, set[str]] = {
    "__init__": set(),
    "__main__": {"cli"},
    "errors": set(),
    "artefacts": {"__init__", "errors"},
    "settings": {"errors"},
    "batches": set(),
    "device": {"errors"},
    "losses": GROUND,
    "networks": GROUND,
    "data": GROUND,
    "metrics": GROUND,
    "methods": GROUND | {"losses", "networks", "data"},
    "inference": GROUND | {"data", "networks"},
    "report": GROUND | {"data", "metrics"},
    "suggestion": GROUND | {"data", "networks", "inference", "metrics", "report"},
    "training": GROUND | {"losses", "networks", "data", "methods", "inference", "metrics", "report"},
}
# The one file of metrics that reads folders; what it computes with does not.
ALSO = {"metrics/evaluate.py": {"data"}}
PARTS["studies"] = GROUND | {"data", "methods", "training", "inference", "metrics", "report"}
PARTS["cli"] = GROUND | set(PARTS) - {"__main__"}

# Who may know a heavy library at all.
OWNERS = {
    "lightning": {"training"},
    "monai": {"inference", "metrics"},
    "typer": {"cli"},
    "matplotlib": {"report", "training"},
    "jinja2": {"report"},
}

HEAVY = (
    "torch",
    "monai",
    "matplotlib",
    "lightning",
    "scipy",
    "numpy",
    "nibabel",
    "jinja2",
    "blosc2",
)


def part_of(path: Path) -> str:
    first, *rest = path.relative_to(PACKAGE).parts
    return first if rest else Path(first).stem


def name_of(path: Path) -> str:
    words = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(words[:-1] if words[-1] == "__init__" else words)


def imports_of(path: Path) -> set[str]:
    """Return the full names a file imports anywhere, functions and type checking included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            assert node.module is not None
            if node.module == "handful":
                found |= {f"handful.{alias.name}" for alias in node.names}
            else:
                found.add(node.module)
    return found


def parts_imported(path: Path) -> set[str]:
    """Return the parts of the package a file imports; ``handful`` itself and its version are ``__init__``."""
    words = [name.split(".") for name in imports_of(path) if name.split(".")[0] == "handful"]
    known = {part_of(module) for module in MODULES}
    return {word[1] if len(word) > 1 and word[1] in known else "__init__" for word in words}


def test_every_part_is_in_the_picture() -> None:
    assert len(MODULES) > 20
    found = {part_of(path) for path in MODULES}
    assert found == set(PARTS), "a new folder belongs into PARTS here and into docs/design.md"


@pytest.mark.parametrize("part", [part for part in PARTS if part != "__init__"])
def test_imports_point_one_way(part: str) -> None:
    paths = [path for path in MODULES if part_of(path) == part]
    assert paths
    for path in paths:
        also = ALSO.get(path.relative_to(PACKAGE).as_posix(), set())
        wrong = parts_imported(path) - PARTS[part] - {part} - also
        assert not wrong, (
            f"{path.relative_to(ROOT)} imports {sorted(wrong)}, which docs/design.md does not allow"
        )


def test_the_picture_has_no_circle() -> None:
    left = dict(PARTS)
    while left:
        free = [part for part, needs in left.items() if not (needs & set(left)) - {part}]
        assert free, f"a circle among {sorted(left)}"
        for part in free:
            del left[part]


def test_heavy_libraries_have_owners() -> None:
    seen = 0
    for path in MODULES:
        for name in imports_of(path):
            library = name.split(".")[0]
            if library in OWNERS:
                seen += 1
                assert part_of(path) in OWNERS[library], f"{path.relative_to(ROOT)} imports {name}"
    assert seen >= len(OWNERS)


def test_the_checker_sees() -> None:
    """A reader of imports that finds nothing would allow everything."""
    assert {"data", "errors"} <= parts_imported(PACKAGE / "data" / "cases.py") | {"data"}
    assert "errors" in parts_imported(PACKAGE / "artefacts.py")
    assert "monai.inferers" in imports_of_text("def f():\n    from monai.inferers import x")


def imports_of_text(text: str) -> set[str]:
    return {
        node.module for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom) and node.module
    }


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_imports(path: Path) -> None:
    if name_of(path) != "handful.__main__":
        importlib.import_module(name_of(path))


def test_public_names_exist() -> None:
    import handful

    names = [name for name in handful.__all__ if name != "__version__"]
    assert len(names) > 5
    for name in names:
        assert getattr(handful, name).__name__ == name
    assert set(names) <= set(dir(handful))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = handful.nonsense


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import handful; handful.__version__", HEAVY),
        ("from handful.cli.main import main; main(['--help'])", HEAVY),
        ("from handful.cli.main import main; main(['train', '--help'])", HEAVY),
        ("from handful.cli.main import main; main(['methods'])", HEAVY),
        (
            "from handful.cli.main import main; main(['download'])",
            (
                "torch",
                "monai",
                "matplotlib",
            ),
        ),
        (
            "import handful.data.check, handful.data.fingerprint, handful.data.phantom",
            ("torch", "monai", "matplotlib"),
        ),
        ("import handful.metrics.scores", ("torch", "monai", "matplotlib")),
    ],
)
def test_light_things_stay_light(code: str, heavy: tuple[str, ...]) -> None:
    script = f"{code}\nimport json, sys\nprint(json.dumps(sorted(set(sys.modules) & set({heavy!r}))))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_no_file_names_a_machine() -> None:
    """A path of somebody's home or a host of a package mirror works on one machine only."""
    home = re.compile(r"(?<![\w.])/(?:home|root|Users|work|mnt|opt|scratch)/\w|index-url\s*=?\s*https?://\S")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    texts = {
        ".py",
        ".md",
        ".toml",
        ".yaml",
        ".yml",
        ".cff",
        ".lock",
        ".html",
        ".css",
        ".js",
        ".json",
        ".txt",
    }
    checked = 0
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.suffix in texts and path.is_file() and path.resolve() != Path(__file__).resolve():
            found = home.search(path.read_text(encoding="utf-8", errors="replace"))
            assert found is None, f"{name}: '{found.group()}'"
            checked += 1
    assert checked > 30


def test_no_environment_variable_is_needed() -> None:
    bare = {"PATH": os.environ.get("PATH", "")}
    done = subprocess.run(
        [sys.executable, "-m", "handful", "--version"], env=bare, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"handful \d+\.\d+\.\d+\n", done.stdout)
