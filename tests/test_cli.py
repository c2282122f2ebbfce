"""The command line: help, exit codes, JSON, completion; the whole pipeline is run elsewhere."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from handful.cli import console
from handful.cli.main import main
from handful.errors import DataError, RunError, UsageError

COMMANDS = (
    "demo",
    "check",
    "plan",
    "pretrain",
    "train",
    "predict",
    "evaluate",
    "study",
    "report",
    "suggest",
    "export",
    "methods",
    "download",
)


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("FORCE_COLOR", raising=False)


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    listed = re.findall(r"^  ([a-z]+)  ", text, flags=re.MULTILINE)
    assert tuple(listed) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"Usage: handful {command}")
    options = re.findall(r"^  (?:-\w, )?(--[a-z-]+)(.*)$", text, flags=re.MULTILINE)
    assert options
    for option, rest in options:
        assert re.search(r"  \S", rest), f"{command} {option} has no help"
    assert main([command, "-h"]) == 0


@pytest.mark.parametrize(
    "command", ["check", "plan", "train", "predict", "evaluate", "study", "report", "export"]
)
def test_a_command_without_arguments_shows_its_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command]) == 2
    shown = capsys.readouterr()
    assert f"Usage: handful {command}" in shown.out + shown.err


@pytest.mark.parametrize(
    "words",
    [
        ["chekc", "x"],
        ["train", "x"],
        ["train", "x", "--out", "y", "--steps", "0"],
        ["train", "x", "--out", "y", "--nonsense"],
        ["train", "x", "--out", "y", "--draw", "-1"],
        ["methods", "nonsense"],
        ["download", "nonsense"],
        ["export", "x", "--to", "nonsense", "--out", "y"],
    ],
    ids=" ".join,
)
def test_wrong_use_ends_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Traceback" not in shown.err
    assert shown.err


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["methods", "spuervised"], "did you mean 'supervised'?"),
        (["download", "Task04_hippocampus"], "did you mean 'Task04_Hippocampus'?"),
    ],
)
def test_the_nearest_name_is_named(words: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize("command", [["check"], ["plan"], ["train", "--out", "never"]], ids=lambda c: c[0])
def test_missing_data_ends_with_3(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "no such folder"
    assert main([command[0], str(missing), *command[1:]]) == 3
    shown = capsys.readouterr()
    assert str(missing) in shown.out + shown.err
    assert "Traceback" not in shown.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("wrong word"), 2),
        (DataError("bad file"), 3),
        (RunError("disk full"), 1),
        (ZeroDivisionError("a defect"), 1),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, BaseException) else str(x),
)
def test_each_kind_of_failure_has_its_code(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: str) -> Iterator[None]:
        raise error

    monkeypatch.setattr("handful.data.download.find_source", fail)
    assert main(["download", "Task02_Heart"]) == code
    shown = capsys.readouterr()
    assert str(error) in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""
    if code == 130:
        assert "goes on from there" in shown.err
    else:
        with pytest.raises(type(error)):
            main(["download", "Task02_Heart", "--debug"])


def test_methods_lists_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    from handful.methods import method_names

    assert main(["methods", "--json"]) == 0
    sheets = json.loads(capsys.readouterr().out)
    assert [sheet["name"] for sheet in sheets] == method_names()
    assert len(sheets) >= 1
    for sheet in sheets:
        assert sheet["does"].endswith(".")
        assert re.search(r"\d{4}", sheet["paper"]), "authors, year and link"
        assert sheet["needs"]
    assert main(["methods"]) == 0
    text = capsys.readouterr().out
    assert all(sheet["does"] in text for sheet in sheets)
    rows = {line.split()[0]: line for line in text.splitlines() if line}
    for sheet in sheets:
        authors = sheet["paper"].split(", http")[0].split(";")[0]
        assert authors in rows[sheet["name"]]
    assert rows["pcl"].endswith("images of all cases")
    assert rows["bcp"].endswith("labelled cases + unlabelled cases if there are any")
    assert rows["mixcl"].endswith("images of all cases + labels if there are any")
    assert rows["sscl"].endswith("labels, unless method.local=self or method.stage=global"), "refused without"


def test_a_method_shows_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    from handful.training.recipe import resolve
    from handful.training.settle import DEFAULT_STEPS

    assert main(["methods", "supervised", "--json"]) == 0
    sheet = json.loads(capsys.readouterr().out)
    assert len(sheet["settings"]) > 5
    assignments = [f"{path}={json.dumps(value)}" for path, value in sheet["settings"].items()]
    default = resolve("supervised", default_steps=DEFAULT_STEPS)
    assert resolve("supervised", assignments=assignments) == default, "what is shown can be set"
    assert main(["methods", "supervised"]) == 0
    text = capsys.readouterr().out
    assert all(path in text for path in sheet["settings"])


def test_every_setting_of_every_method_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    from handful.methods import method_names

    for name in method_names():
        assert main(["methods", name, "--json"]) == 0
        sheet = json.loads(capsys.readouterr().out)
        assert sheet["settings"].keys() == sheet["meanings"].keys()
        untold = [path for path, meaning in sheet["meanings"].items() if not meaning]
        assert not untold, (name, untold)


def test_downloads_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["download", "--json"]) == 0
    sources = json.loads(capsys.readouterr().out)
    assert len(sources) == 10
    assert main(["download"]) == 0
    text = capsys.readouterr().out
    assert all(source["name"] in text for source in sources)
    assert "Next: handful download" in text


def test_check_speaks_json_and_prose(phantom_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(phantom_folder), "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)
    assert main(["check", str(phantom_folder)]) == 0
    assert "Next: handful plan" in capsys.readouterr().out


def test_check_of_a_damaged_file_ends_with_3(phantom_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = sorted((phantom_copy / "imagesTr").iterdir())[0]
    damaged.write_bytes(damaged.read_bytes()[:500])
    assert main(["check", str(phantom_copy), "--json"]) == 3
    assert damaged.name in json.dumps(json.loads(capsys.readouterr().out))
    assert main(["check", str(phantom_copy)]) == 3
    shown = capsys.readouterr()
    assert damaged.name in shown.out + shown.err
    assert "Next: handful plan" not in shown.out


@pytest.fixture
def phantom_copy(phantom_folder: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(phantom_folder, tmp_path / "copy"))


def test_plan_says_why_and_writes_what_it_says(
    phantom_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from handful.data.plan import read_plan

    out = tmp_path / "plan.yaml"
    assert main(["plan", str(phantom_folder), "--labels", "2", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    plan = read_plan(out)
    assert plan.reasons
    for reason in plan.reasons.values():
        assert reason in text
    assert "Next: handful train" in text


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_prints(shell: str) -> None:
    done = run(env={"_HANDFUL_COMPLETE": f"source_{shell}"})
    assert done.returncode == 0, done.stderr
    assert "handful" in done.stdout
    assert "complet" in done.stdout


def test_completion_knows_names() -> None:
    for words, expected in (("handful tra", "train"), ("handful methods self", "self_training")):
        env = {"_HANDFUL_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        done = run(env=env)
        assert done.stdout.split() == [expected], done


def test_tables_and_progress_are_plain_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    console.table(("case", "problem [x]"), [("a", "[bold]not markup[/bold]"), ("longer", None)])
    assert capsys.readouterr().out == "case    problem [x]\na       [bold]not markup[/bold]\nlonger\n"
    with console.progress(unit="bytes") as report:
        for done in range(0, 5_000_001, 1000):
            report("downloading", done, 5_000_000)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "downloading: 0 bytes of 5.0 MB\ndownloading: 5.0 MB of 5.0 MB\n"
    with console.progress(unit="cases", quiet=True) as report:
        report("reading", 1, 2)
    assert capsys.readouterr().err == ""


def test_next_command_can_be_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    console.next_command("handful", "check", Path("my data"), "--out", "RUN")
    assert capsys.readouterr().out == "\nNext: handful check 'my data' --out RUN\n"


def test_no_colour_where_nobody_watches() -> None:
    for words in (["--help"], ["methods"], ["chekc"]):
        done = run(*words)
        assert "\x1b" not in done.stdout + done.stderr


def run(*words: str, env: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    program = Path(sys.executable).with_name("handful")
    command = [str(program)] if program.exists() else [sys.executable, "-m", "handful"]
    return subprocess.run(
        [*command, *words], env={**os.environ, **(env or {})}, capture_output=True, text=True, check=False
    )


def _spelled(parameter: Any) -> list[str]:
    """Return the ways to write an option, ``--no-...`` too."""
    return [*parameter.opts, *parameter.secondary_opts]


def test_the_documented_options_exist() -> None:
    """README and docs/cli.md may not mention a command or an option that is not there."""
    from typer.main import get_command

    from handful.cli.main import app

    group = get_command(app)
    options = {option for parameter in group.params for option in _spelled(parameter)} | {"--help"}
    commands: dict[str, set[str]] = {}
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        commands[name] = {option for parameter in command.params for option in _spelled(parameter)} | {
            "--help",
            "--debug",
        }
        options |= commands[name]
    root = Path(__file__).resolve().parents[1]
    lines = 0
    for text in (root / "README.md").read_text(), (root / "docs" / "cli.md").read_text():
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)) <= options
        for name, rest in re.findall(r"^(?:\| `)?handful (\w+) ?([^#`\n]*)", text, flags=re.MULTILINE):
            lines += 1
            assert name in commands, name
            assert set(re.findall(r"--[a-z-]+", rest)) <= commands[name], name
    assert lines > 12


def test_the_docs_name_the_folders_that_the_demo_writes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[Path] = []
    for name, stub in {
        "handful.data.phantom.make_phantom": lambda data, **_: made.append(data),
        "handful.training.run.train": lambda data, run, **_: made.append(run),
        "handful.inference.predict.predict": lambda *_, **__: None,
        "handful.metrics.evaluate.evaluate": lambda *_, **__: SimpleNamespace(mean={"dice": None}),
        "handful.report.page.write_report": lambda run: run / "report.html",
        "handful.cli.demo._verdict": lambda *_: "",
    }.items():
        monkeypatch.setattr(name, stub)
    assert main(["demo", "--out", str(tmp_path / "demo"), "--quiet"]) == 0
    page = (Path(__file__).parents[1] / "docs" / "cli.md").read_text()
    (row,) = (line for line in page.splitlines() if line.startswith("| `handful demo"))
    assert re.findall(r"`(demo/[\w-]+)`", row) == [str(path.relative_to(tmp_path)) for path in made]
