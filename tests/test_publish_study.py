"""A finished study is published whole, each study into its own place, and nothing that names this machine."""

import subprocess
import sys
from pathlib import Path

import pytest

from handful.artefacts import read_yaml, write_json, write_yaml
from made_up_study import make_study

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A made-up study with the recipes of its runs; those of mona differ by budget."""
    folder = make_study(
        tmp_path / "study", methods=("supervised", "mona"), budgets={"2": 2, "5%": 10}, draws=1, cases=3
    )
    for name in ("splits.json", "cases.json"):
        write_json(folder / name, {})
    for budget in ("2", "5pct"):
        for method in ("supervised", "mona"):
            recipe = {
                "name": method,
                "loop": {"steps": 9 if (method, budget) == ("mona", "2") else 5},
                "labels": budget,
            }
            write_yaml(folder / "runs" / budget / "draw0" / method / "recipe.yaml", recipe)
    return folder


def publish(*words: Path | str) -> subprocess.CompletedProcess[str]:
    script = BENCHMARKS / "publish_study.py"
    return subprocess.run([sys.executable, script, *words], text=True, capture_output=True, check=False)


def test_studies_are_published_side_by_side_with_every_recipe(study: Path, tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    names = ("heart", "liver")
    page.write_text(
        "".join(
            f"<!-- study {n}: written by its benchmark -->\n<!-- study {n}: end -->\n{n} was here\n"
            for n in names
        )
    )
    for name in names:
        done = publish(study, tmp_path / "studies" / name, "--into", page)
        assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert [text.count(f"](studies/{name}/figure.svg)") for name in names] == [1, 1]
    assert [text.count(f"{name} was here") for name in names] == [1, 1]
    shared = tmp_path / "studies" / "liver"
    assert sorted(path.name for path in (shared / "recipes").iterdir()) == [
        "mona-2.yaml", "mona-5pct.yaml", "supervised.yaml",
    ]  # fmt: skip
    assert read_yaml(shared / "recipes" / "mona-2.yaml") == {"name": "mona", "loop": {"steps": 9}}
    assert (shared / "report.html").is_file()


def test_what_names_this_machine_or_has_no_place_is_refused(study: Path, tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("no marks")
    done = publish(study, tmp_path / "out", "--into", page)
    assert done.returncode == 2
    assert "it needs the lines <!-- study out: written by its benchmark -->" in done.stderr
    recipe = study / "runs" / "2" / "draw0" / "mona" / "recipe.yaml"
    write_yaml(recipe, {"name": "mona", "teacher": "/data/someone/weights"})
    done = publish(study, tmp_path / "out")
    assert done.returncode != 0
    assert "recipes/mona-2.yaml names /data/someone/weights" in done.stderr
    assert not (tmp_path / "out").exists()
