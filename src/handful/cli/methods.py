"""``handful methods``: what there is to train with, read from the files of ``handful/methods``."""

import ast
import dataclasses
import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from handful.cli.console import next_command, say, say_json, table
from handful.cli.options import Json


class _Sheet(NamedTuple):
    """What a method's file says of itself."""

    name: str
    kind: str
    does: str
    paper: str
    needs: list[str]


class _Setting(NamedTuple):
    """A setting as ``--set`` names it, its default, where the default comes from, and what it is."""

    path: str
    default: Any
    why: str
    means: str


def _names(incomplete: str) -> list[str]:
    from handful.methods import method_names

    return [name for name in method_names() if name.startswith(incomplete)]


def methods(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", autocompletion=_names, help="A method, to see every setting; else all methods."
        ),
    ] = None,
    *,
    json: Json = False,
) -> None:
    """List the methods with their papers and needs; with NAME, every setting and its default."""
    from handful import methods as package

    if name is None:
        folder = Path(package.__file__).parent
        sheets = [_read_sheet(folder / f"{method}.py") for method in package.method_names()]
        if json:
            say_json([sheet._asdict() for sheet in sheets])
        else:
            rows = [(s.name, s.kind, s.does, _authors(s.paper), " + ".join(s.needs)) for s in sheets]
            table(("method", "command", "does", "paper", "learns from"), rows)
            next_command("handful", "methods", "NAME")
        return

    module = package.load_method(name)
    sheet = _read_sheet(Path(inspect.getfile(module)), name=name)
    settings = _settings_of(name)
    if json:
        shown = {
            "settings": {s.path: s.default for s in settings},
            "meanings": {s.path: s.means for s in settings},
        }
        say_json({**sheet._asdict(), **shown})
        return
    say(f"{name}: {sheet.does}\n\nPaper: {sheet.paper}\nLearns from: {' and '.join(sheet.needs)}\n")
    before = ["", *(s.means for s in settings)]
    lines = [
        (s.path, _written(s.default), s.why, "as above" if s.means == last else s.means)
        for s, last in zip(settings, before)
    ]
    table(("setting", "default", "why", "what it is"), lines)
    next_command(
        "handful", sheet.kind, "DATA", "--method", name, "--out", "RUN", "--set", f"{settings[0].path}=VALUE"
    )


def _read_sheet(path: Path, *, name: str | None = None) -> _Sheet:
    """Read a method's docstring, paper and needs without importing it (and torch with it)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    declared: dict[str, ast.expr] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            declared.setdefault(node.target.id, node.value)
    paper, needs = declared.get("paper"), declared.get("needs")
    wanted = (
        {word.arg or "": ast.literal_eval(word.value) for word in needs.keywords}
        if isinstance(needs, ast.Call)
        else {}
    )
    kind = declared.get("kind")
    return _Sheet(
        name=name or path.stem,
        kind=ast.literal_eval(kind) if kind else "train",
        does=(ast.get_docstring(tree) or "").partition("\n")[0],
        paper=ast.literal_eval(paper) if paper else "",
        needs=_needed(wanted),
    )


def _needed(needs: Mapping[str, Any]) -> list[str]:
    """Say what a method learns from, by its ``Needs``."""
    if needs.get("labels"):
        others = ["unlabelled cases if there are any"] if needs.get("unlabelled") else []
        return ["labelled cases", *others]
    labels = (
        f"labels, unless {unless}" if (unless := needs.get("labels_unless")) else "labels if there are any"
    )
    return ["images of all cases", *([labels] if needs.get("optional_labels") else [])]


def _authors(paper: str) -> str:
    """Return authors, year and name of a paper without its link."""
    return re.split(r", (?=http)|;", paper)[0]


def _settings_of(name: str) -> list[_Setting]:
    """Return every setting of a recipe, as the classes that hold them tell of it."""
    from handful.training.recipe import resolve
    from handful.training.settle import DEFAULT_STEPS

    recipe = resolve(name, default_steps=DEFAULT_STEPS)
    rows: list[_Setting] = []
    for part in recipe.as_dict():
        if dataclasses.is_dataclass(settings := getattr(recipe, part)):
            rows += _told(settings, part)
    return rows


def _told(settings: Any, place: str) -> list[_Setting]:
    """Return the fields of settings, and of settings among them, by what stands beside them in their file."""
    whys, meanings = _comments(type(settings)), _meanings(type(settings))
    rows = []
    for name, default in dataclasses.asdict(settings).items():
        path = f"{place}.{name}"
        if dataclasses.is_dataclass(inner := getattr(settings, name)):
            rows += _told(inner, path)
        else:
            rows.append(_Setting(path, default, whys.get(name, ""), meanings.get(name, "")))
    return rows


def _comments(kind: type) -> dict[str, str]:
    """Return what is written behind each field of a settings class: where its default comes from."""
    names = {field.name for field in dataclasses.fields(kind)}
    found = re.findall(r"^ +(\w+): [^#\n]*#\s*(.+)$", inspect.getsource(kind), flags=re.MULTILINE)
    return {name: comment for name, comment in found if name in names}


def _meanings(kind: type) -> dict[str, str]:
    """Return what the docstring of a settings class says of each field, after the names where some share a sentence."""
    _, _, attributes = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")
    section = re.split(r"\n\n(?=\S)", attributes)[0]
    entries = re.findall(r"^ {4}(\w+(?:, \w+)*): (.+(?:\n {5,}.+)*)", section, flags=re.MULTILINE)
    return {
        name: (f"{names}: " if "," in names else "") + re.sub(r"\s+", " ", text).replace("``", "")
        for names, text in entries
        for name in names.split(", ")
    }


def _written(default: Any) -> str:
    """Write a default the way ``--set`` takes it."""
    import yaml

    return (
        yaml.safe_dump(default, default_flow_style=True).replace("\n...", "").strip()
        if default != ""
        else "''"
    )
