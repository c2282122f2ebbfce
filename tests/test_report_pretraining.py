"""The page of a pre-training says what it learned from, how healthy it was and what it exports, and claims no more."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from handful.artefacts import read_json, write_json, write_yaml
from handful.methods.contract import Watched
from handful.networks.weights import save_weights
from handful.report import health as shown
from handful.report.figures import write_progress
from handful.report.health import findings, loss_panel, panels
from handful.report.page import write_report
from handful.training import health as measured

CASES = {
    "labelled": ["a1", "a2"],
    "unlabelled": ["b1", "b2", "b3"],
    "validation": [],
    "test": ["t1"],
}


def rows(count: int = 20) -> list[dict[str, float]]:
    """A run that learns: every number moves evenly from its first value to its last."""
    ends = {
        "loss": (3.0, 2.0),
        "near": (2.0, 1.5),
        "far": (1.0, 0.5),
        "gradient_norm": (2.0, 1.0),
        "lr": (0.001, 0.0001),
        "steps_per_s": (5.0, 5.0),
        "health/effective_rank": (10.0, 20.0),
        "health/deviation": (0.2, 0.4),
        "health/uniformity": (-0.3, -1.0),
        "health/alignment": (0.2, 0.1),
        "health/position_error": (0.2, 0.1),
        "health/position_chance": (0.2, 0.2),
        "health/gradient_near": (1.0, 0.5),
        "health/gradient_far": (0.1, 0.2),
    }
    made = []
    for i in range(count):
        share = i / (count - 1)
        row = {key: low + share * (high - low) for key, (low, high) in ends.items()}
        made.append({"step": float(i + 1), "steps": float(count), "seconds": i + 1.0, **row})
    made[0]["health/probe"], made[-1]["health/probe"] = 0.5, 0.75
    return made


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    write_json(
        run / "manifest.json",
        {
            "kind": "pretrain", "learns_labels": False, "method": "pcl", "references": ["A paper"], "cases": CASES,
            "init": None, "finished": "2026-01-02T03:20:05", "steps": 20, "seconds": 20.0,
            "dataset": {"name": "Toy", "root": "/data/Toy", "patients_from": "cases.csv"},
            "patients": {name: name for part in CASES.values() for name in part},
        },
    )  # fmt: skip
    write_yaml(
        run / "recipe.yaml", {"name": "pcl", "labels": "2", "draw": 1, "seed": 3, "loop": {"patience": 0}}
    )
    write_json(run / "splits.json", {"test": ["t1"]})
    few = [{"step": 1.0, "health/probe": 0.5}, {"step": 20.0, "health/probe": 0.75}]  # drawing takes the time
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in few))
    save_weights(
        run / "weights.safetensors",
        {"encoder": nn.Linear(2, 3), "decoder": nn.Linear(3, 2)},
        {"labels_used": [], "images_used": [*CASES["labelled"], *CASES["unlabelled"]]},
    )
    return run


def edit(run: Path, name: str, **changes: object) -> None:
    write_json(run / name, read_json(run / name) | changes)


def text(run: Path) -> str:
    page = write_report(run).read_text(encoding="utf-8")
    body = page[page.index("<body>") :]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", body).replace("&#39;", "'").replace("&#34;", '"'))


def test_the_headline_says_what_was_learned_from_and_what_to_do_with_it(run: Path) -> None:
    found = text(run)
    assert "Pre-trained by pcl (A paper) on the images of 5 cases." in found
    assert "The labels of 2 cases made the probe and did not enter the loss." in found
    assert "It exports the encoder and the decoder" in found
    assert (
        f"handful train /data/Toy --init {run} --labels 2 --draw 1 --splits {run}/splits.json --seed 3 "
        f"--out {run}-trained" in found
    )
    assert "held out: neither images nor labels were looked at" in found


def test_nothing_is_said_about_segmentation(run: Path) -> None:
    found = text(run)
    assert "Nothing is claimed about segmentation" in found
    for word in ("Dice", "held-out result", "Worst", "Failures", "HD95", "Segmentation report"):
        assert word not in found


@pytest.mark.parametrize(
    ("learns", "patience", "labelled", "probed", "said"),
    [
        (True, 0, ["a1"], True, "The labels of 1 case entered the loss."),
        (True, 3, ["a1"], True, "The labels of 1 case entered the loss."),
        (False, 3, ["a1"], True, "decided when to stop, through the probe, and did not enter the loss."),
        (False, 0, ["a1"], True, "made the probe and did not enter the loss."),
        (False, 0, ["a1"], False, "The labels of 1 case did not enter the loss."),
        (False, 0, [], False, "No label was opened."),
    ],
)
def test_what_labels_were_used_for_is_told_apart(
    run: Path, learns: bool, patience: int, labelled: list[str], probed: bool, said: str
) -> None:
    edit(run, "manifest.json", learns_labels=learns, cases=CASES | {"labelled": labelled})
    write_yaml(run / "recipe.yaml", {"name": "pcl", "loop": {"patience": patience}})
    if not probed:
        (run / "metrics.jsonl").write_text("")
    assert text(run).count(said) == 2, "in the headline and in the split"


def test_a_run_without_a_recorded_kind_is_known_by_what_it_exports(run: Path) -> None:
    edit(run, "manifest.json", kind=None, learns_labels=None)
    assert "Pre-training report" in text(run)
    save_weights(run / "weights.safetensors", {"segmenter": nn.Linear(2, 3)}, {})
    assert "Segmentation report" in text(run)
    (run / "weights.safetensors").write_bytes(b"no weights")
    assert "weights.safetensors is damaged" in text(run)


def test_an_unfinished_one_offers_no_start(run: Path) -> None:
    (run / "weights.safetensors").unlink()
    edit(run, "manifest.json", finished=None)
    found = text(run)
    assert "It has exported nothing yet." in found
    assert "has not finished" in found
    assert "--init" not in found


def test_findings_are_the_numbers_of_the_rows() -> None:
    probe, position, spread, loss, claim = findings(rows(), classes=4)
    assert (
        probe == "The probe rose from 0.500 after step 1 to 0.750 after step 20 (2 probes; chance is 0.250)."
    )
    # means of two rows at each end: 0.2 - 0.1 / 38 and 0.1 + 0.1 / 38, of 0.2
    assert "ended below chance, at 51% of it; it was first measured at 99%." in position
    assert "effective rank 19.7 (first 10.3), deviation 0.39 (first 0.21)" in spread
    assert loss == "The loss fell from 2.97 to 2.03."
    assert "Nothing is claimed" in claim


def test_a_run_that_got_nowhere_is_not_praised() -> None:
    still = [
        row
        | {
            "health/position_error": 0.19,
            "health/deviation": 0.005,
            "health/effective_rank": 1.1,
            "health/probe": 0.5,
        }
        for row in rows()
    ]
    probe, position, spread, *_ = findings(still)
    assert probe.startswith("The probe stayed")
    assert "no better than chance, at 95%" in position
    assert "have become one point" in spread
    bare = [{"step": 1.0, "loss": 1.0, "health/gradient_near": 1.0}]
    assert len(findings(bare)) == 4, "what was not measured is said, and a single loss is no course"


def test_one_point_means_here_what_it_means_where_it_is_measured() -> None:
    assert (shown.SPREAD, shown.RANK) == (measured.SPREAD, measured.RANK)


def test_every_drawing_is_shown_with_how_to_read_it(run: Path) -> None:
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(3)))
    found, page = text(run), (run / "report.html").read_text(encoding="utf-8")
    wanted = [loss_panel(rows(3)), *panels(rows(3), classes=3)]
    assert len(wanted) == 10
    assert all(f"{panel.title} {panel.reading}" in found for panel in wanted)
    assert page.count('src="data:image/png;base64,') == 10


def test_every_measure_has_a_drawing() -> None:
    meter = measured.Meter()
    meter.add(Watched(torch.randn(64, 2, 8), torch.rand(64)))
    keys = {*meter.row(), "health/probe", "health/gradient_near", "gradient_norm", "lr"}
    assert len(keys) == 10
    drawn = panels([{"step": 1.0, **dict.fromkeys(keys, 0.5)}])
    assert {key for panel in drawn for key in panel.lines.values()} == keys
    assert all(panel.reading for panel in drawn)
    assert panels([{"step": 1.0}]) == []


def test_terms_are_drawn_with_the_loss_unless_they_are_the_loss() -> None:
    assert list(loss_panel(rows()).lines) == ["loss", "far", "near"]
    assert list(loss_panel([{"step": 1.0, "loss": 2.0, "contrast": 2.0}]).lines) == ["loss"]


def test_the_progress_picture_shows_the_health(tmp_path: Path) -> None:
    sizes = {}
    for name, metrics in {"healthy": rows(2), "plain": [{"step": 1.0, "loss": 2.0}]}.items():
        write_progress(metrics, tmp_path / "progress.png")
        data = (tmp_path / "progress.png").read_bytes()
        sizes[name] = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    assert {width for width, _ in sizes.values()} == {900}
    assert sizes["plain"][1] == 520 < sizes["healthy"][1]


def test_a_training_names_the_weights_it_started_from(run: Path) -> None:
    start = {
        "run": "pre/pcl",
        "method": "sscl",
        "data_name": "Toy",
        "labels_used": ["a1", "x9"],
        "images_used": 5,
    }
    edit(run, "manifest.json", kind="train", init=start)
    found = text(run)
    assert (
        "Started from pre/pcl (method sscl, which learned from 5 images of Toy and the labels of 2 cases)"
        in found
    )
    assert "the labels of 1 case outside its budget (x9)" in found
    edit(run, "manifest.json", init=start | {"labels_used": []})
    found = text(run)
    assert "5 images of Toy and no label" in found
    assert "outside its budget" not in found
    edit(run, "manifest.json", init=None)
    assert "Started from" not in text(run)
