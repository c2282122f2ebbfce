"""Loggers hold the rows of metrics.jsonl, each once at its step, under the run's name."""

import signal
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from handful.cli.main import main
from handful.errors import RunError, Stopped, UsageError
from handful.training.folder import RunFolder
from handful.training.loggers import LOGGERS, logging_to
from handful.training.loop import Progress
from handful.training.run import pretrain, train

STAND_IN = """
SESSIONS = []

class Settings:
    def __init__(self, **settings):
        self.settings = settings

class Run:
    def __init__(self, asked):
        self.asked, self.rows, self.exit_code = asked, [], None

    def log(self, row, step):
        self.rows.append((step, row))

    def finish(self, exit_code):
        self.exit_code = exit_code

def init(**asked):
    SESSIONS.append(Run(asked))
    return SESSIONS[-1]
"""
"""Of the package wandb, which is 70 MB: it keeps what it is given."""

Rows = list[tuple[int, dict[str, float]]]


@pytest.fixture(autouse=True)
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "wandb.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    import wandb

    yield wandb
    assert not list((tmp_path / "here").iterdir())  # nothing is left where the command was given
    del sys.modules["wandb"]


def in_mlflow(store: Path, run: str, *, runs: int = 1) -> tuple[Any, Rows]:
    """Return the latest of so many runs in a store and its rows."""
    from mlflow import MlflowClient

    client: Any = MlflowClient(tracking_uri=store.as_uri())
    (experiment,) = client.search_experiments(filter_string="name = 'handful'")
    found, *older = client.search_runs([experiment.experiment_id])
    assert len(older) == runs - 1
    assert found.info.run_name == run
    points = [
        (point.step, name, point.value)
        for name in found.data.metrics
        for point in client.get_metric_history(found.info.run_id, name)
    ]
    return found, _by_step(points)


def in_tensorboard(folder: Path) -> Rows:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), {"scalars": 0})
    events.Reload()
    return _by_step(
        [(e.step, name, e.value) for name in events.Tags()["scalars"] for e in events.Scalars(name)]
    )


def _by_step(points: list[tuple[int, str, float]]) -> Rows:
    rows: dict[int, dict[str, float]] = defaultdict(dict)
    for step, name, value in points:
        assert name not in rows[step], f"{name} of step {step} is there twice"
        rows[step][name] = value
    return sorted(rows.items())


def assert_rows(found: Rows, folder: Path) -> None:
    rows = RunFolder(folder).read_metrics()
    assert [step for step, _ in found] == [row["step"] for row in rows]
    for (_, row), expected in zip(found, rows, strict=True):
        assert row == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("command", [["train", "--method", "supervised"], ["pretrain", "--method", "simclr"]])
def test_every_logger_holds_the_metrics(
    command: list[str], phantom_folder: Path, tmp_path: Path, wandb: Any
) -> None:
    out = tmp_path / "runs" / "two labels"
    options = ["--out", str(out), "--steps", "4", "--device", "cpu", "--threads", "1", "--quiet"]
    options += ["--labels", "2", "--set", "loop.rows=4", "--tensorboard", "--mlflow", "--wandb"]
    assert main([*command, str(phantom_folder), *options]) == 0
    assert len(RunFolder(out).read_metrics()) == 4
    run, rows = in_mlflow(out / "mlflow", "two labels")
    assert run.info.status == "FINISHED"
    assert_rows(rows, out)
    assert_rows(in_tensorboard(out / "tensorboard"), out)
    (session,) = wandb.SESSIONS
    assert_rows(session.rows, out)
    asked = session.asked
    assert (asked["name"], asked["project"], asked["mode"]) == ("two labels", "handful", "offline")
    assert Path(asked["dir"]) == out
    assert session.exit_code == 0


def test_an_interrupted_run_goes_on_as_the_same_run(phantom_folder: Path, tmp_path: Path, wandb: Any) -> None:
    out = tmp_path / "run"

    def go(stop: int | None = None, **changes: Any) -> None:
        def interrupt(progress: Progress) -> None:
            if progress.step == stop:
                signal.raise_signal(signal.SIGTERM)

        train(
            phantom_folder, out, method="supervised", labels="2", steps=6, set_=["loop.rows=6"], device="cpu",
            threads=1, quiet=True, tensorboard=True, mlflow=True, wandb=True, report=interrupt, **changes,
        )  # fmt: skip

    with pytest.raises(Stopped):
        go(stop=3)
    before, rows = in_mlflow(out / "mlflow", "run")
    assert before.info.status == "KILLED"
    assert 3 <= len(rows) < 6
    assert_rows(rows, out)
    go()
    after, rows = in_mlflow(out / "mlflow", "run")
    assert (after.info.run_id, after.info.status) == (before.info.run_id, "FINISHED")
    assert_rows(rows, out)
    assert_rows(in_tensorboard(out / "tensorboard"), out)
    first, second = wandb.SESSIONS
    assert_rows(first.rows + second.rows, out)
    assert first.asked["id"] == second.asked["id"]
    assert (first.exit_code, second.exit_code) == (1, 0)
    go(overwrite=True)
    again, rows = in_mlflow(out / "mlflow", "run", runs=2)
    assert again.info.run_id != before.info.run_id
    assert_rows(rows, out)
    assert_rows(in_tensorboard(out / "tensorboard"), out)
    assert wandb.SESSIONS[2].asked["id"] != first.asked["id"]


def _send(folder: RunFolder, names: list[str], steps: range, *, die: bool = False) -> None:
    with logging_to(names, folder) as log:
        folder.keep_metrics_until(steps[0] - 1)
        for step in steps:
            row = {"step": step, "loss": 1 / step}
            folder.append_metrics(row)
            log(row)
        if die:
            raise KeyboardInterrupt


def test_steps_trained_twice_are_sent_once_and_a_new_logger_gets_the_past(tmp_path: Path, wandb: Any) -> None:
    """After a kill, training goes on from the last checkpoint: rows behind it come again, the same."""
    folder = RunFolder(tmp_path / "run", quiet=True)
    with pytest.raises(KeyboardInterrupt):
        _send(folder, ["mlflow", "tensorboard"], range(1, 8), die=True)
    _send(folder, list(LOGGERS), range(4, 11))
    assert len(folder.read_metrics()) == 10
    for rows in (
        in_mlflow(folder.mlflow, "run")[1],
        in_tensorboard(folder.tensorboard),
        wandb.SESSIONS[0].rows,
    ):
        assert_rows(rows, folder.path)


def test_a_logger_that_fails_costs_only_itself(
    tmp_path: Path, wandb: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(self: Any, row: Any, step: int) -> None:
        raise ConnectionError("no server")

    monkeypatch.setattr(wandb.Run, "log", lost)
    folder = RunFolder(tmp_path / "run", quiet=True)
    _send(folder, ["wandb", "mlflow"], range(1, 4))
    assert_rows(in_mlflow(folder.mlflow, "run")[1], folder.path)
    log = (folder.path / "log.txt").read_text()
    assert log.count("wandb takes no more of this run (ConnectionError: no server)") == 1


def test_a_logger_that_cannot_begin_says_so(
    tmp_path: Path, wandb: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(**asked: Any) -> None:
        raise PermissionError("log in first")

    monkeypatch.setattr(wandb, "init", refused)
    folder = RunFolder(tmp_path / "run", quiet=True)
    with (
        pytest.raises(RunError, match="--wandb: the run could not be opened: PermissionError: log in first"),
        logging_to(["mlflow", "wandb"], folder),
    ):
        raise AssertionError("the training began")
    assert in_mlflow(folder.mlflow, "run")[0].info.status == "KILLED"


def test_the_environment_says_where(tmp_path: Path, wandb: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "elsewhere").as_uri())
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_PROJECT", "hearts")
    folder = RunFolder(tmp_path / "run", quiet=True)
    _send(folder, ["wandb", "mlflow"], range(1, 4))
    assert_rows(in_mlflow(tmp_path / "elsewhere", "run")[1], folder.path)
    assert not folder.mlflow.exists()
    asked = wandb.SESSIONS[0].asked
    assert (asked["mode"], asked["project"], asked["resume"]) == ("online", "hearts", "allow")


@pytest.mark.parametrize("name", LOGGERS)
def test_a_missing_package_is_named_before_anything_is_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handful.training.loggers.find_spec", lambda package: None)
    for function in (train, pretrain):
        with pytest.raises(UsageError, match=rf'pip install "handful\[{name}\]"'):
            function(tmp_path / "data", tmp_path / "run", **{name: True})
    assert not (tmp_path / "run").exists()
