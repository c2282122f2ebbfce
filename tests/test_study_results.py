"""What a study writes down, from scores that are made up: no training, the real tables."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handful.artefacts import write_yaml
from handful.cli.main import main
from handful.errors import UsageError
from handful.studies import study as study_module
from handful.studies.arms import Lengths, parse_arms
from handful.studies.folder import StudyFolder
from handful.studies.grid import Asked, Unit
from handful.studies.repeat import command, files_of, recipes_of
from handful.studies.results import NOISE, SURE, Scored, _few_draws, _Findings, of_patients
from handful.studies.statistics import labels_saved

ASKED = Asked(
    methods=("supervised", "pcl", "mona"),
    labels=("2", "8", "50%"), draws=(5, 3, 3), test=None, lengths=Lengths(steps=5), seed=0, settings=(), snapshots=0,
    patients=None, precision="32-true",
)  # fmt: skip
LABELLED = {"2": 2, "8": 8, "50%": 32}
GAIN = {"supervised": 0.0, "pcl": 0.05, "mona": 0.001}
PATIENTS = [f"p{number // 2}" for number in range(24)]


def findings(
    asked: Asked = ASKED,
    *,
    failed: Sequence[tuple[str, str, int]] = (),
    gain: Mapping[str, float] = GAIN,
    unscored: float = 0.0,
) -> tuple[_Findings, dict[Unit, Scored]]:
    """Make up scores of two structures in 24 volumes of 12 patients; a share of them is not scored."""
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 0.03, (24, 1))
    units, scored = [], {}
    for budget, draws in zip(asked.labels, asked.draws):
        n = LABELLED[budget]
        for draw in range(draws):
            luck = rng.normal(0, 0.01)
            for arm in parse_arms(asked.methods):
                unit = Unit(arm=arm, budget=budget, draw=draw, n_labelled=n)
                units.append(unit)
                mean = 0.6 + 0.08 * np.log2(n) / 2 + gain[arm.name] + luck
                table = mean + hard + rng.normal(0, 0.01, (24, 2))
                table[rng.random(table.shape) < unscored] = np.nan
                if (arm.name, budget, draw) not in failed:
                    tables = {"dice": table, "hd95_mm": 20 * (1 - table), "nsd": table}
                    scored[unit] = Scored(unit, [], tables)
    return _Findings(asked, units, scored, PATIENTS), scored


def test_a_difference_is_that_of_the_dice_of_the_same_table() -> None:
    found, _ = findings(unscored=0.3)
    dice = {(row["method"], row["budget"]): row["dice"] for row in found.summary}
    assert len(found.comparisons) == 6
    for row in found.comparisons:
        both = dice[row["method"], row["budget"]] - dice["supervised", row["budget"]]
        assert row["difference"] == pytest.approx(both)


def test_distances_have_intervals_and_differences_like_dice() -> None:
    found, _ = findings()  # HD95 is made up as 20 (1 - Dice)
    for row in found.summary:
        assert row["hd95_low"] < row["hd95_mm"] < row["hd95_high"]
        assert row["hd95_high"] == pytest.approx(20 * (1 - row["low"]))
        assert (row["nsd_low"], row["nsd_high"]) == pytest.approx((row["low"], row["high"]))
    for row in found.comparisons:
        assert row["hd95_difference"] == pytest.approx(-20 * row["difference"])
        assert (row["hd95_low"], row["hd95_high"]) == pytest.approx((-20 * row["high"], -20 * row["low"]))


def test_with_fewer_than_three_draws_nothing_is_decided_however_large() -> None:
    gain = {"supervised": 0.0, "pcl": 0.2, "mona": 0.0}
    found, _ = findings(replace(ASKED, draws=(3, 2, 1)), gain=gain)
    verdicts = {row["budget"]: row["verdict"] for row in found.comparisons if row["method"] == "pcl"}
    assert verdicts == {"2": SURE, "8": "two draws: not decided", "50%": "one draw: not decided"}
    assert all(row["p_corrected"] < 0.05 for row in found.comparisons if row["method"] == "pcl")
    assert {row["verdict"] for row in found.comparisons if row["method"] == "mona"} >= {NOISE}


def test_warnings_name_the_budgets_and_methods_with_few_draws() -> None:
    found, _ = findings(replace(ASKED, draws=(3, 2, 1)), failed=[("pcl", "2", 0)])
    one, two = _few_draws(found.summary)
    assert one.startswith("one draw at 50%: intervals are over patients alone")
    assert two.startswith("two draws at 2 (pcl), 8: ")
    assert "may be too narrow" in two
    assert _few_draws(findings()[0].summary) == []


def test_labels_saved_rest_on_the_draws_that_all_budgets_have() -> None:
    failed = [("supervised", "8", 1), ("pcl", "2", 3)]
    found, scored = findings(failed=failed)
    tables = {
        key: {
            unit.draw: s.tables["dice"] for unit, s in scored.items() if (unit.arm.name, unit.budget) == key
        }
        for key in {(unit.arm.name, unit.budget) for unit in scored}
    }
    assert sorted(tables["pcl", "2"]) == [0, 1, 2, 4]
    common = (0, 2)
    curve = [(n, {d: tables["supervised", budget][d] for d in common}) for budget, n in LABELLED.items()]
    expected = labels_saved({d: tables["pcl", "2"][d] for d in common}, curve, PATIENTS)
    assert expected is not None
    (row,) = [row for row in found.saved if (row["method"], row["budget"]) == ("pcl", "2")]
    assert row["equal_labels"] == pytest.approx(expected[0].labels)
    assert row["low"] == (pytest.approx(expected[1].low) if expected[1].low else None)
    assert "2 draws in common" in row["note"]


def test_labels_saved_without_a_common_draw_says_so() -> None:
    failed = [("supervised", "8", draw) for draw in (0, 1)] + [("pcl", "2", 2)]
    row = next(
        row for row in findings(failed=failed)[0].saved if (row["method"], row["budget"]) == ("pcl", "2")
    )
    assert (row["equal_labels"], row["low"], row["high"]) == (None, None, None)
    assert row["note"].startswith("no draw finished in the method and in the control")


@pytest.mark.parametrize(
    ("changes", "plan"),
    [
        ({}, False),
        ({"test": "@lists/test cases.txt", "labels": ("@a b.txt", "10p", "5%"), "draws": (3, 3, 3)}, True),
        ({"lengths": Lengths(max_time="5m", pretrain_steps=9), "precision": "bf16-mixed", "seed": 7}, True),
        (
            {
                "settings": ("loop.lr=0.1", "pcl:method.threshold=0.2"),
                "patients": r"(p\d+)_.*",
                "snapshots": 0,
            },
            False,
        ),
    ],
    ids=["plain", "files", "lengths", "settings"],
)
def test_the_command_asks_the_same_question_again(
    changes: dict[str, Any], plan: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, read, given = replace(ASKED, **changes), [], []
    original = study_module.study

    def check(again: Asked) -> None:
        read.append(again)
        raise UsageError("that is all")

    def study(*arguments: Any, **options: Any) -> Path:
        given.append(options["plan"])
        return original(*arguments, **options)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study_module, "check", check)
    monkeypatch.setattr(study_module, "study", study)
    assert main(shlex.split(command(asked, plan=plan))[1:]) == 2
    assert read == [asked]
    assert given == [Path("PLAN") if plan else None]


def test_the_files_a_command_names_are_kept_with_it(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    write_yaml(folder.asked, {"labels": ["@a.txt"], "listed": {"@a.txt": ["case_1", "case_2"]}})
    write_yaml(tmp_path / "plan.yaml", {"dims": 2})
    assert files_of(folder, tmp_path / "plan.yaml") == {"@a.txt": ["case_1", "case_2"], "PLAN": {"dims": 2}}


def test_every_different_recipe_is_there_once(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    for budget, draw, method, lr in (
        ("2", 0, "mona", 0.1), ("2", 1, "mona", 0.1), ("8", 0, "mona", 0.1), ("50pct", 0, "mona", 0.2),
        ("2", 0, "pcl", 0.1),
    ):  # fmt: skip
        run = folder.runs / budget / f"draw{draw}" / method
        write_yaml(run / "recipe.yaml", {"name": method, "loop": {"lr": lr}, "draw": draw, "seed": draw})
    write_yaml(folder.pretrained / "pcl" / "images" / "recipe.yaml", {"name": "pcl", "init": "/some/where"})
    found = [(entry["method"], entry["kind"], sorted(entry["where"])) for entry in recipes_of(folder)]
    assert sorted(found) == [
        ("mona", "run", ["2", "8"]), ("mona", "run", ["50pct"]), ("pcl", "pre-training", ["images"]),
        ("pcl", "run", ["2"]),
    ]  # fmt: skip
    assert {"name": "mona", "loop": {"lr": 0.2}} in [entry["recipe"] for entry in recipes_of(folder)]


def test_scores_of_a_patient_are_means_of_its_scored_volumes() -> None:
    def row(patient: str, name: str, dice: float | None) -> dict[str, Any]:
        return {"patient": patient, "class": name, "dice": dice, "hd95_mm": 1.0, "assd_mm": None, "nsd": dice}

    rows = [
        row("a", "x", 0.4),
        row("a", "x", 0.8),
        row("a", "y", None),
        row("a", "y", 0.5),
        row("b", "x", None),
    ]
    found = {(r["patient"], r["class"]): r for r in of_patients(rows)}
    assert {key: (r["volumes"], r["dice"], r["assd_mm"]) for key, r in found.items()} == {
        ("a", "x"): (2, pytest.approx(0.6), None), ("a", "y"): (2, 0.5, None), ("b", "x"): (1, None, None),
    }  # fmt: skip
