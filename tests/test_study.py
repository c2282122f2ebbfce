"""Laws of a study: test labels stay closed until all is trained, nothing is done twice, nothing is lost."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from safetensors.numpy import load_file

from handful.artefacts import read_json
from handful.cli.main import main
from handful.data.discover import open_dataset
from handful.data.plan import NetworkPlan, write_plan
from handful.data.splits import make_splits
from handful.errors import DataError, RunError, UsageError
from handful.studies import tasks
from handful.studies.audit import OPENED, READ, Audit
from handful.studies.results import COLUMNS
from handful.studies.study import study
from handful.training.decisions import decide_plan

QUESTION: dict[str, Any] = {
    "methods": "pcl,supervised_pretrain", "labels": "1,2", "draws": 2, "steps": 4, "pretrain_steps": 3, "snapshots": 1,
    "device": "cpu", "threads": 1, "set_": ("loop.rows=4",),
}  # fmt: skip
RUNS = 3 * 2 * 2
SMALL: dict[str, Any] = {**QUESTION, "methods": "pcl", "labels": "1"}
SMALL_RUNS = 2 * 2

SCRIPT = """
import json, sys
from pathlib import Path
from handful.errors import HandfulError
from handful.training import run
run.draw_progress = lambda folder: None
from handful.studies.study import study
arguments = json.loads(sys.argv[1])
try:
    study(arguments.pop("data"), arguments.pop("out"), **{**arguments, "plan": Path(arguments["plan"])})
except HandfulError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing the curves takes longer than these runs."""
    monkeypatch.setattr("handful.training.run.draw_progress", lambda folder: None)


@pytest.fixture(scope="module")
def plan(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    dataset = open_dataset(phantom_folder)
    made = decide_plan(dataset, make_splits(dataset).select("100%"), device="cpu")
    network = NetworkPlan(widths=(4, 8), strides=((2, 2, 2),), kernels=((3, 3, 3), (3, 3, 3)), blocks=1)
    file = tmp_path_factory.mktemp("plan") / "plan.yaml"
    write_plan(file, replace(made, patch=(20, 24, 28), batch=2, network=network))
    return file


@pytest.fixture(scope="module")
def whole(phantom_folder: Path, plan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that nothing interrupted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("handful.training.run.draw_progress", lambda folder: None)
        return study(phantom_folder, tmp_path_factory.mktemp("whole") / "study", plan=plan, **QUESTION)


@pytest.fixture(scope="module")
def small(phantom_folder: Path, plan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with one method, at one budget."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("handful.training.run.draw_progress", lambda folder: None)
        return study(phantom_folder, tmp_path_factory.mktemp("small") / "study", plan=plan, **SMALL)


@pytest.fixture
def copied(small: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small, tmp_path / "study"))


def rows(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as opened:
        return list(csv.DictReader(opened))


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]


def tree(folder: Path) -> dict[str, int]:
    return {str(f.relative_to(folder)): f.stat().st_mtime_ns for f in folder.rglob("*") if f.is_file()}


def same_scores(one: Path, other: Path) -> None:
    for name in ("scores.csv", "summary.csv", "comparisons.csv", "saved.csv"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


# what a study leaves


def test_every_file_has_its_columns_and_every_run_its_rows(whole: Path) -> None:
    for name, columns in COLUMNS.items():
        assert (whole / f"{name}.csv").read_text().splitlines()[0] == columns
    runs = rows(whole / "runs.csv")
    assert len(runs) == RUNS
    assert {run["status"] for run in runs} == {"finished"}
    assert {run["method"] for run in runs} == {"supervised", "pcl", "supervised_pretrain"}
    assert all(float(run["steps"]) == 4 and float(run["peak_memory_mb"]) > 10 for run in runs)
    assert all((float(run["pretrain_seconds"]) > 0) == (run["method"] != "supervised") for run in runs)
    scores = rows(whole / "scores.csv")
    keys = {tuple(row[key] for key in ("method", "budget", "draw", "case", "class")) for row in scores}
    assert len(keys) == len(scores) == RUNS * 2 * 5
    assert {row["case"] for row in scores} == set(read_json(whole / "summary.json")["test_cases"])


def test_the_summary_is_that_of_the_scores(whole: Path) -> None:
    scores = rows(whole / "scores.csv")
    for row in rows(whole / "summary.csv"):
        by_draw = []
        for draw in ("0", "1"):
            classes: dict[str, list[float]] = {}
            for score in scores:
                same = all(score[key] == row[key] for key in ("method", "budget"))
                if same and score["draw"] == draw and score["dice"]:
                    classes.setdefault(score["class"], []).append(float(score["dice"]))
            by_draw.append(np.mean([np.mean(values) for values in classes.values()]))
        assert float(row["dice"]) == pytest.approx(np.mean(by_draw), abs=1e-6)
        assert float(row["dice_sd"]) == pytest.approx(np.std(by_draw, ddof=1), abs=1e-6)
        assert float(row["low"]) <= float(row["dice"]) <= float(row["high"])
    ranks: dict[str, float] = {}
    for row in rows(whole / "summary.csv"):
        ranks[row["budget"]] = ranks.get(row["budget"], 0) + float(row["rank"])
    assert ranks == {"1": 6.0, "2": 6.0}


def test_the_gap_is_best_minus_last(whole: Path) -> None:
    gaps: dict[tuple[str, str], list[float]] = {}
    for run in rows(whole / "runs.csv"):
        place = whole / "runs" / run["budget"] / f"draw{run['draw']}" / run["method"]
        (step, dice), *others = read_json(place / "snapshots" / "scores.json").items()
        assert (int(step), others) == (2, [])
        last = read_json(place / "summary.json")["mean"]["dice"]
        assert float(run["best_dice"]) == pytest.approx(max(dice, last), abs=1e-6)
        assert run["best_step"] == ("2" if dice > last else "4")
        gaps.setdefault((run["method"], run["budget"]), []).append(max(dice, last) - last)
    for row in rows(whole / "summary.csv"):
        assert float(row["selection_gap"]) == pytest.approx(
            np.mean(gaps[row["method"], row["budget"]]), abs=1e-6
        )
    said = [
        text for text in read_json(whole / "summary.json")["warnings"] if "selection on the test set" in text
    ]
    assert len(said) == 3


def test_draws_are_nested_and_the_same_for_all_methods(whole: Path) -> None:
    test = set(read_json(whole / "splits.json")["test"])
    for draw in ("draw0", "draw1"):
        seen = {}
        for budget in ("1", "2"):
            arms = [
                read_json(run / "manifest.json")["cases"]["labelled"]
                for run in sorted((whole / "runs" / budget / draw).iterdir())
            ]
            assert len(arms) == 3
            assert all(cases == arms[0] for cases in arms)
            assert len(arms[0]) == int(budget)
            seen[budget] = set(arms[0])
        assert seen["1"] < seen["2"]
        assert not seen["2"] & test


def test_pre_training_is_shared_where_its_inputs_are_equal(whole: Path) -> None:
    done = [event["run"] for event in events(whole) if event["event"] == "pre-training finished"]
    assert sorted(done) == ["pretrained/pcl/images"] + [
        f"pretrained/supervised_pretrain/{budget}-draw{draw}" for budget in (1, 2) for draw in (0, 1)
    ]
    header = read_json(whole / "runs/2/draw1/supervised_pretrain/manifest.json")["init"]
    assert len(header["labels_used"]) == 2
    assert header["labels_used"] == sorted(
        read_json(whole / "runs/2/draw1/supervised/manifest.json")["cases"]["labelled"]
    )
    assert read_json(whole / "runs/2/draw1/pcl/manifest.json")["init"]["labels_used"] == []


# test labels


def test_labels_are_opened_once_after_the_last_run(whole: Path) -> None:
    names = [event["event"] for event in events(whole)]
    assert names[0] == "study started"
    assert names[-3:] == [OPENED, READ, "scores written"]
    assert names.count(OPENED) == names.count(READ) == 1
    assert names.count("run finished") == RUNS
    opened, read = events(whole)[-3:-1]
    assert opened["cases"] == len(read["files"]) == 2
    assert len(opened["runs"]) == RUNS
    assert all(event["time"].endswith("+00:00") for event in events(whole))


RECORDING: list[Callable[[str], None]] = []


def _record(event: str, arguments: tuple[Any, ...]) -> None:
    if RECORDING and event == "open" and isinstance(arguments[0], (str, os.PathLike)):
        RECORDING[0](os.fspath(arguments[0]))


sys.addaudithook(_record)  # Python has no way to take it away again; it does nothing while nobody records


@pytest.fixture
def reads() -> Iterator[list[tuple[str, bool]]]:
    """Every file opened, and whether the study's log said by then that test labels are."""
    found: list[tuple[str, bool]] = []
    state = {"opened": False}

    def record(path: str) -> None:
        found.append((path, state["opened"]))

    original = Audit.add

    def add(self: Audit, event: str, **details: Any) -> None:
        original(self, event, **details)
        state["opened"] |= event == OPENED

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Audit, "add", add)
        RECORDING.append(record)
        yield found
        RECORDING.clear()


def test_no_test_label_is_read_before_it_is_time(
    phantom_folder: Path, plan: Path, tmp_path: Path, reads: list[tuple[str, bool]]
) -> None:
    dataset = open_dataset(phantom_folder)
    labels = {str(case.label): case.held_out for case in dataset.cases if case.label is not None}
    reads.clear()
    study(phantom_folder, tmp_path / "study", plan=plan, **SMALL)
    before = {path for path, opened in reads if not opened and path in labels}
    after = {path for path, opened in reads if opened and path in labels}
    held_out = {path for path, is_test in labels.items() if is_test}
    assert before, "the labels that train are read, and the recorder sees it"
    assert not before & held_out
    assert held_out <= after


@pytest.mark.parametrize("snapshots", [0, 1])
def test_a_damaged_test_label_costs_no_training(
    snapshots: int, phantom_folder: Path, plan: Path, tmp_path: Path, small: Path
) -> None:
    data = Path(shutil.copytree(phantom_folder, tmp_path / phantom_folder.name))
    label = open_dataset(data).held_out[0].label
    assert label is not None
    kept = label.read_bytes()
    label.write_bytes(b"no label map")
    out, question = tmp_path / "study", {**SMALL, "snapshots": snapshots, "methods": "supervised"}
    with pytest.raises(DataError, match=label.name):
        study(data, out, plan=plan, **question)
    assert len(list(out.glob("runs/*/*/*/predictions/*.nii.gz"))) == 4
    assert not list(out.glob("runs/*/*/*/summary.json"))
    trained = {name: when for name, when in tree(out).items() if name.endswith("weights.safetensors")}
    label.write_bytes(kept)
    study(data, out, plan=plan, **question)
    assert trained.items() <= tree(out).items()
    control = [row for row in rows(small / "scores.csv") if row["method"] == "supervised"]
    assert rows(out / "scores.csv") == control
    assert any("opened 2 times" in text for text in read_json(out / "summary.json")["warnings"])


def test_runs_cannot_find_a_test_label(whole: Path, phantom_folder: Path) -> None:
    """What trains is told of no test case; what predicts, of no label."""
    test = set(read_json(whole / "splits.json")["test"])
    assert len(test) == 2
    training, images = whole / "data" / "Phantom.csv", whole / "data" / "Phantom_test_images.csv"
    known = open_dataset(training)
    assert not {case.name for case in known.cases} & test
    assert known.label_names == open_dataset(phantom_folder).label_names
    assert {row["case"] for row in rows(images)} == test
    assert {row["label"] for row in rows(images)} == {""}
    for manifest in whole.glob("runs/*/*/*/manifest.json"):
        assert not test & set(read_json(manifest)["labels"])


# going on


def test_a_finished_study_is_left_alone(copied: Path, phantom_folder: Path, plan: Path) -> None:
    before = tree(copied)
    said: list[str] = []
    study(phantom_folder, copied, plan=plan, say=said.append, **SMALL)
    after = tree(copied)
    changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    assert changed <= {".lock"}
    assert "finished; nothing to do" in said[-1]


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_study_continues_and_ends_with_the_same_scores(
    sign: signal.Signals, phantom_folder: Path, plan: Path, tmp_path: Path, small: Path
) -> None:
    out = tmp_path / "study"
    arguments = {**SMALL, "data": str(phantom_folder), "out": str(out), "plan": str(plan)}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, json.dumps(arguments)],
        stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if (out / "audit.jsonl").exists() and (out / "audit.jsonl").read_text().count("run started") == 3:
            break
        time.sleep(0.005)
    process.send_signal(sign)
    _, errors = process.communicate()
    assert process.returncode != 0, errors
    assert not (out / "summary.json").exists()
    assert "run failed" not in {event["event"] for event in events(out)}
    finished = [event["run"] for event in events(out) if event["event"] == "run finished"]
    assert len(finished) == 2
    before = {
        name: when for name, when in tree(out).items() if any(name.startswith(f"{run}/") for run in finished)
    }
    study(phantom_folder, out, plan=plan, **SMALL)
    assert len(before) > 20
    assert before.items() <= tree(out).items()
    same_scores(out, small)
    started = [event["run"] for event in events(out) if event["event"] == "run started"]
    assert all(started.count(run) == 1 for run in finished)


def test_several_processes_find_the_same(
    phantom_folder: Path, plan: Path, tmp_path: Path, small: Path
) -> None:
    out = study(phantom_folder, tmp_path / "study", plan=plan, jobs=2, **SMALL)
    same_scores(out, small)
    assert [event["event"] for event in events(out)].count("pre-training finished") == 1


# failures


def test_a_run_that_fails_is_shown_and_tried_again(
    phantom_folder: Path, plan: Path, tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = tasks.train

    def fail(data: Path, out: Path, **options: Any) -> Path:
        if "runs/1/draw1/pcl" in str(out):
            raise RunError("step 3: the loss is not finite.")
        if "runs/1/draw0/supervised" in str(out):
            raise ZeroDivisionError("a defect")
        return train(data, out, **options)

    out = tmp_path / "study"
    said: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(tasks, "train", fail)
        study(phantom_folder, out, plan=plan, say=said.append, **SMALL)
    failed = {
        (run["method"], run["budget"], run["draw"]): run["reason"]
        for run in rows(out / "runs.csv")
        if run["status"] == "failed"
    }
    assert failed == {
        ("pcl", "1", "1"): "step 3: the loss is not finite.",
        ("supervised", "1", "0"): "ZeroDivisionError: a defect",
    }
    assert sum(text.startswith("failed: ") for text in said) == 2
    warnings = read_json(out / "summary.json")["warnings"]
    assert "pcl, 1, draw 1: failed: step 3: the loss is not finite." in warnings
    assert any("2 of 4 runs are not in the results" in text for text in warnings)
    # the control finished draw 1, the other draw 0: there is no pair
    assert rows(out / "comparisons.csv") == []
    assert [row["draws"] for row in rows(out / "summary.csv")] == ["1", "1"]
    study(phantom_folder, out, plan=plan, **SMALL)
    same_scores(out, small)
    started = [event["run"] for event in events(out) if event["event"] == "run started"]
    assert started.count("runs/1/draw1/pcl") == 2
    assert len(started) == SMALL_RUNS + 2


def test_a_failed_pre_training_takes_only_its_runs_along(
    phantom_folder: Path, plan: Path, tmp_path: Path
) -> None:
    changes = {"methods": "pcl,simclr", "draws": 1, "set_": (*SMALL["set_"], "pcl:loop.lr=1e30")}
    out = study(phantom_folder, tmp_path / "study", plan=plan, **{**SMALL, **changes})
    became = {run["method"]: run for run in rows(out / "runs.csv")}
    assert became["pcl"]["status"] == "failed"
    assert became["pcl"]["reason"].startswith("its pre-training failed: step ")
    assert {became[name]["status"] for name in ("supervised", "simclr")} == {"finished"}


def test_a_process_that_dies_is_a_run_that_failed(
    phantom_folder: Path, plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A method whose module kills any process but this one."""
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "__init__.py").touch()
    (tmp_path / "lab" / "dying.py").write_text(
        "import os, signal\nfrom handful.methods.supervised import METHOD, Settings\n"
        "if os.getpid() != int(os.environ['SPARED']):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("SPARED", str(os.getpid()))
    changes = {"methods": "lab.dying", "labels": "1", "draws": 1, "jobs": 2}
    out = study(phantom_folder, tmp_path / "study", plan=plan, **{**SMALL, **changes})
    became = {run["method"]: run for run in rows(out / "runs.csv")}
    assert became["supervised"]["status"] == "finished"
    assert became["lab.dying"]["status"] == "failed"
    assert "ended by SIGKILL" in became["lab.dying"]["reason"]


# what is refused


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": "pcl,spuervised"}, "did you mean 'supervised'"),
        ({"methods": "supervised+mona"}, "before the \\+ stands a pre-training"),
        ({"methods": "pcl+mae"}, "after the \\+ stands a training"),
        ({"labels": "1,500"}, "500 asks for more labels than exist"),
        ({"labels": "1,90p"}, "90p asks for 90 patients"),
        ({"labels": "some"}, "no number of labels"),
        ({"labels": ""}, "at least one budget"),
        ({"steps": 4, "max_time": "5m"}, "two ways"),
        ({"set_": ("loop.lrr=1",)}, "unknown setting 'lrr'; did you mean 'lr'"),
        ({"set_": ("plc:loop.lr=1",)}, "did you mean 'pcl'"),
        ({"draws": 0}, "at least one draw"),
        ({"draws": "2,2,2"}, "there are 1 budget"),
        ({"draws": "few"}, "a whole number, or one for each budget"),
        ({"jobs": 0}, "--jobs"),
        ({"test": "100%"}, "leave a patient"),
    ],
    ids=str,
)
def test_nonsense_is_refused_before_anything_is_written(
    changes: dict[str, Any], words: str, phantom_folder: Path, plan: Path, tmp_path: Path
) -> None:
    out = tmp_path / "study"
    with pytest.raises(UsageError, match=words):
        study(phantom_folder, out, plan=plan, **{**SMALL, **changes})
    assert not out.exists()


def test_another_question_in_the_same_folder_is_refused_by_name(
    copied: Path, phantom_folder: Path, plan: Path
) -> None:
    before = tree(copied)
    with pytest.raises(UsageError, match=r"labels: 1 there, 1, 3 asked\n  seed: 0 there, 7 asked"):
        study(phantom_folder, copied, plan=plan, **{**SMALL, "labels": "1,3", "seed": 7})
    with pytest.raises(UsageError, match="plan_file"):
        study(phantom_folder, copied, **SMALL)
    assert tree(copied).items() >= {n: t for n, t in before.items() if n != ".lock"}.items()


def test_methods_can_be_added_and_it_is_as_if_all_had_been_asked_at_once(
    copied: Path, phantom_folder: Path, plan: Path, tmp_path: Path
) -> None:
    question = {
        **SMALL, "methods": "pcl,late=supervised_pretrain", "set_": (*SMALL["set_"], "late:loop.lr=0.001"),
    }  # fmt: skip
    before = tree(copied)
    with pytest.raises(
        UsageError, match=r"--extend keeps them and adds late=supervised_pretrain\+supervised\."
    ):
        study(phantom_folder, copied, plan=plan, **question)
    for changes, words in (
        ({"methods": "late=supervised_pretrain"}, "holds another study"),  # would lose one
        ({"set_": (*question["set_"], "pcl:loop.lr=0.001")}, "holds another study"),  # would change one
        ({"steps": 5}, "steps: 4 there, 5 asked"),
        ({"overwrite": True}, "give one of them"),
    ):
        with pytest.raises(UsageError, match=words) as caught:
            study(phantom_folder, copied, plan=plan, extend=True, **{**question, **changes})
        assert "keeps them and adds" not in str(caught.value)
    assert tree(copied).items() >= {n: t for n, t in before.items() if n != ".lock"}.items()
    study(phantom_folder, copied, plan=plan, extend=True, **question)
    after = tree(copied)
    kept = {name for name in before if name.startswith(("runs/", "pretrained/"))}
    assert len(kept) > 20
    assert all(after[name] == before[name] for name in kept)
    same_scores(copied, study(phantom_folder, tmp_path / "at-once", plan=plan, **question))
    log = [event["event"] for event in events(copied)]
    assert log.count(OPENED) == 2
    assert log.index(OPENED) < log.index("study extended")
    (said,) = [
        text for text in read_json(copied / "summary.json")["warnings"] if text.startswith("added when")
    ]
    assert "late=supervised_pretrain+supervised." in said
    said_again: list[str] = []
    study(phantom_folder, copied, plan=plan, say=said_again.append, **question)
    assert "nothing to do" in said_again[-1], "the question is the larger one now"


def test_changed_data_is_named_and_nothing_lost(
    copied: Path, phantom_folder: Path, plan: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(phantom_folder, tmp_path / phantom_folder.name))
    case = open_dataset(data).labelled[0]
    image = nib.load(case.images[0])
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) + 1, image.affine), case.images[0])
    before = tree(copied)
    with pytest.raises(DataError, match=rf"1 changed \({case.name}\)"):
        study(data, copied, plan=plan, **SMALL)
    assert tree(copied).items() >= {n: t for n, t in before.items() if n != ".lock"}.items()


def test_changed_test_labels_are_not_mixed_in(
    copied: Path, phantom_folder: Path, plan: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(phantom_folder, tmp_path / phantom_folder.name))
    label = open_dataset(data).held_out[0].label
    assert label is not None
    image = nib.load(label)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[::-1].copy(), image.affine), label)
    study(data, copied, plan=plan, **SMALL)  # all is scored: no label is opened
    (copied / "runs" / "1" / "draw0" / "pcl" / "summary.json").unlink()
    with pytest.raises(DataError, match="are not those that were opened"):
        study(data, copied, plan=plan, **SMALL)
    for file in copied.glob("runs/*/*/*/summary.json"):
        file.unlink()
    study(data, copied, plan=plan, **SMALL)
    names = [event["event"] for event in events(copied)]
    assert (names.count(OPENED), names.count(READ)) == (3, 2), "what was refused had been opened"


def test_overwriting_keeps_the_log(copied: Path, phantom_folder: Path, plan: Path, small: Path) -> None:
    count = len(events(copied))
    page = [copied / name for name in ("report.html", "report.md", "figure.png", "figure.svg")]
    for file in page:
        file.write_text("of the study before")
    changes = {"methods": "supervised", "labels": "1", "draws": 1, "overwrite": True}
    study(phantom_folder, copied, plan=plan, **{**SMALL, **changes})
    assert events(copied)[:count] == events(small)
    assert events(copied)[count]["event"] == "study removed"
    assert len(rows(copied / "runs.csv")) == 1
    assert not (copied / "pretrained").exists()
    assert not any(file.exists() for file in page)


def test_an_image_that_trains_and_tests_is_found(phantom_folder: Path, plan: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(phantom_folder, tmp_path / phantom_folder.name))
    dataset = open_dataset(data)
    train, test = dataset.unlabelled[0].images[0], dataset.held_out[0].images[0]
    image = nib.load(test)
    header = image.header.copy()
    header["descrip"] = b"not the same bytes"
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine, header), train)
    assert train.read_bytes() != test.read_bytes()
    with pytest.raises(DataError, match="voxel for voxel") as caught:
        study(data, tmp_path / "study", plan=plan, **SMALL)
    assert train.name in str(caught.value)
    assert test.name in str(caught.value)
    assert not (tmp_path / "study" / "runs").exists()


def test_a_dry_run_writes_nothing(phantom_folder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    study(phantom_folder, tmp_path / "study", dry_run=True, say=said.append, **QUESTION)
    assert not (tmp_path / "study").exists()
    text = "\n".join(said)
    assert "12 runs: 3 methods (supervised, pcl, supervised_pretrain) at 2 budgets, 2 draws each" in text
    assert "--labels 2: 2 labelled cases" in text
    assert "was not named and is added" in text


# the command


def test_the_command_prints_what_was_found(
    copied: Path, phantom_folder: Path, plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = _words(phantom_folder, copied, plan)
    assert main(words) == 0
    shown = capsys.readouterr()
    table = [line for line in shown.out.splitlines() if line and line[0].isdigit()]
    assert len(table) == 2
    assert sum("the control" in line for line in table) == 1
    assert f"handful report {copied}" in shown.out
    assert "selection on the test set would have added" in shown.err
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == read_json(copied / "summary.json")


def test_the_command_says_so_when_a_run_failed(
    phantom_folder: Path, plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = _words(phantom_folder, tmp_path / "study", plan, "--set", "pcl:loop.lr=1e30")
    words[words.index("--draws") + 1] = "1"
    assert main(words) == 1
    shown = capsys.readouterr()
    assert "failed: pcl, all images" in shown.err
    assert "1 of 2 runs, 1 failed" in shown.err
    assert "Next: handful report" in shown.out


def _words(data: Path, out: Path, plan: Path, *more: str) -> list[str]:
    settings = [word for setting in SMALL["set_"] for word in ("--set", setting)]
    return [
        "study", str(data), "--out", str(out), "--methods", SMALL["methods"], "--labels", SMALL["labels"],
        "--draws", "2", "--steps", "4", "--pretrain-steps", "3", "--snapshots", "1", "--plan", str(plan),
        "--device", "cpu", "--threads", "1", *settings, *more,
    ]  # fmt: skip


def test_a_named_arm_is_its_method_until_a_setting_is_for_it_alone(
    phantom_folder: Path, plan: Path, tmp_path: Path
) -> None:
    question = {
        **SMALL, "methods": "pcl,same=pcl,long=supervised", "draws": 1, "set_": (*SMALL["set_"], "long:loop.steps=6"),
    }  # fmt: skip
    out = study(phantom_folder, tmp_path / "study", plan=plan, **question)
    runs = {row["method"]: row for row in read_json(out / "summary.json")["runs"]}
    assert {name: row["steps"] for name, row in runs.items()} == {
        "supervised": 4,
        "pcl": 4,
        "same": 4,
        "long": 6,
    }
    assert runs["same"]["pretrain_seconds"] > 0
    first, second, control = (
        load_file(out / "runs/1/draw0" / name / "weights.safetensors")
        for name in ("pcl", "same", "supervised")
    )
    assert all(np.array_equal(first[key], second[key]) for key in first)
    assert any(not np.array_equal(first[key], control[key]) for key in first)
    assert "same=pcl" in read_json(out / "summary.json")["command"]
    assert main(["report", str(out), "--no-images"]) == 0
    assert "pcl, same=pcl+supervised, long=supervised" in (out / "report.html").read_text()
