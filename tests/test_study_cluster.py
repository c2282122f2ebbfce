"""A study whose runs are jobs of a scheduler is the study that one process does, and loses as little."""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from handful.artefacts import read_json
from handful.errors import Stopped, UsageError
from handful.studies import cluster
from handful.studies.pace import Pace, Watcher
from handful.studies.study import study
from handful.studies.tasks import Task
from test_study import SMALL, events, plan, rows, same_scores, small

__all__ = ["plan", "small"]  # fixtures

pytest.importorskip("submitit", reason="needs the extra 'cluster'")

HERE: dict[str, Any] = {"cluster": "local", "precision": "32", "jobs": 2}


@pytest.fixture(autouse=True)
def _children_find_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in paths if path))


def test_jobs_give_the_scores_of_one_process(
    phantom_folder: Path, plan: Path, small: Path, tmp_path: Path
) -> None:
    out = study(phantom_folder, tmp_path / "study", plan=plan, **{**SMALL, **HERE})
    same_scores(out, small)
    assert {run["status"] for run in rows(out / "runs.csv")} == {"finished"}
    assert list((out / "jobs").glob("*_log.out"))
    done = [event["run"] for event in events(out) if event["event"] == "run finished"]
    study(phantom_folder, out, plan=plan, **{**SMALL, **HERE, "overwrite": False})
    assert [event["run"] for event in events(out) if event["event"] == "run finished"] == done, "done twice"


def task(out: Path, *, init: Path | None = None) -> Task:
    return Task(
        kind="train", words=out.name, method="supervised", out=out, data=Path("data"), labels="1", draw=0,
        splits=Path("splits.json"), seed=0, settings=(), steps=1, max_time=None, init=init,
    )  # fmt: skip


class Dying(cluster.Job):
    """A job whose process ends without a word."""

    def __call__(self) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


class Waiting(cluster.Job):
    """A job that says which process it is, and waits."""

    def __call__(self) -> dict[str, Any]:
        self.task.out.with_suffix(".pid").write_text(str(os.getpid()))
        time.sleep(300)
        raise AssertionError


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_stopping_the_study_cancels_its_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "Job", Waiting)
    file = tmp_path / "run.pid"

    def stop() -> None:
        while not (file.exists() and file.read_text()):
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    silent = Watcher(
        Pace(total=1), started=lambda task: None, ended=lambda task, outcome: None, report=lambda pace: None
    )
    with pytest.raises(Stopped, match="SIGTERM"):
        cluster.on_cluster(
            [task(tmp_path / "run")], silent, scheduler="local", options={"timeout_min": 1}, logs=tmp_path / "jobs",
            jobs=1, device="cpu", threads=1,
        )  # fmt: skip
    deadline = time.monotonic() + 60
    while Path(f"/proc/{file.read_text()}").exists():
        assert time.monotonic() < deadline, "the job goes on"
        time.sleep(0.1)
    assert not (tmp_path / "run" / "outcome.json").exists(), "a stopped run is no failed one"


def test_a_job_that_dies_is_written_down_and_takes_only_those_that_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, str]] = []
    watcher = Watcher(
        Pace(total=2),
        started=lambda task: told.append(("started", task.words)),
        ended=lambda task, outcome: told.append((outcome["status"], task.words)),
        report=lambda pace: None,
    )
    first, second = task(tmp_path / "first"), task(tmp_path / "second", init=tmp_path / "first")
    monkeypatch.setattr(cluster, "Job", Dying)
    cluster.on_cluster(
        [first, second], watcher, scheduler="local", options={"timeout_min": 1}, logs=tmp_path / "jobs", jobs=2,
        device="cpu", threads=1,
    )  # fmt: skip
    assert told == [("started", "first"), ("failed", "first"), ("failed", "second")]
    reasons = [read_json(tmp_path / name / "outcome.json")["reason"] for name in ("first", "second")]
    assert "its job" in reasons[0]
    assert str(tmp_path / "jobs") in reasons[0]
    assert reasons[1].startswith("its pre-training failed: its job")


def test_a_job_whose_time_is_over_is_queued_again_as_it_was(tmp_path: Path) -> None:
    job = cluster.Job(task(tmp_path), "cpu", 1)
    again = job.checkpoint()
    assert again.function is job


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scheduler": "pbs"}, "expected slurm or local"),
        ({"device": "auto"}, "--device cpu or cuda"),
        ({"precision": "auto"}, "--precision 32, bf16 or fp16"),
        ({"options": ("gpus",)}, "expected NAME=VALUE"),
        ({"options": ("gpu_count=3",)}, "gpu_count"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_submitted(
    changes: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    usual: dict[str, Any] = {"scheduler": "local", "options": (), "device": "cuda", "precision": "bf16"}
    with pytest.raises(UsageError, match=words):
        cluster.check_cluster(**{**usual, **changes})
    assert not list(tmp_path.iterdir())


def test_options_are_for_a_cluster(phantom_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--cluster-set"):
        study(phantom_folder, tmp_path / "study", cluster_set=("slurm_partition=gpu",), **SMALL)
    assert not (tmp_path / "study").exists()
