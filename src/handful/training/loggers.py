"""Where the numbers of ``metrics.jsonl`` also go: TensorBoard, MLflow, Weights & Biases.

Each gets every row once, at its step, also where a run was interrupted and continued: ``loggers.json`` in the run
folder remembers what each of them calls the run, and rows up to the last one written before are not sent again.
"""

import contextlib
import os
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from handful.artefacts import read_json, write_json
from handful.errors import RunError, UsageError
from handful.training.folder import RunFolder

PROJECT = "handful"
"""Of W&B, and the experiment of MLflow, unless their own environment variables name another."""

Row = Mapping[str, float]


class Logger(ABC):
    """One receiver of a run's rows.

    Attributes:
        run_id: what it calls the run; given again, the same run is continued.
    """

    run_id: str

    @abstractmethod
    def __init__(self, folder: RunFolder, run_id: str | None) -> None: ...

    @abstractmethod
    def log(self, row: Row) -> None:
        """Take one row of ``metrics.jsonl``; ``row["step"]`` says where it belongs."""

    @abstractmethod
    def close(self, *, finished: bool) -> None:
        """Write what is waiting, and whether the run came to its end."""


class TensorBoard(Logger):
    """Event files in ``RUN/tensorboard``."""

    def __init__(self, folder: RunFolder, run_id: str | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.run_id = folder.tensorboard.name
        self.writer: Any = SummaryWriter(str(folder.tensorboard))

    def log(self, row: Row) -> None:
        for name, value in row.items():
            self.writer.add_scalar(name, value, int(row["step"]))
        self.writer.flush()

    def close(self, *, finished: bool) -> None:
        self.writer.close()


class MLflow(Logger):
    """A run in the store of ``MLFLOW_TRACKING_URI``, or else in ``RUN/mlflow``."""

    def __init__(self, folder: RunFolder, run_id: str | None) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it would use the network unasked
        # a store of files needs no database; newer versions want to be told that it is meant
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient

        uri = os.environ.get("MLFLOW_TRACKING_URI") or folder.mlflow.resolve().as_uri()
        self.client: Any = MlflowClient(tracking_uri=uri)
        if run_id is not None:
            self.run_id = run_id
            self.client.update_run(run_id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        known = self.client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self.client.create_experiment(name)
        self.run_id = self.client.create_run(experiment, run_name=_name(folder)).info.run_id

    def log(self, row: Row) -> None:
        from mlflow.entities import Metric

        now, step = int(time.time() * 1000), int(row["step"])
        self.client.log_batch(self.run_id, [Metric(name, value, now, step) for name, value in row.items()])

    def close(self, *, finished: bool) -> None:
        self.client.set_terminated(self.run_id, "FINISHED" if finished else "KILLED")


class WandB(Logger):
    """A run of Weights & Biases, in ``RUN/wandb`` and, if ``WANDB_MODE`` says online, on its server."""

    def __init__(self, folder: RunFolder, run_id: str | None) -> None:
        import wandb

        mode = os.environ.get("WANDB_MODE") or "offline"
        self.run_id = run_id or uuid.uuid4().hex[:12]
        self.run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=_name(folder),
            id=self.run_id,
            dir=str(folder.path),
            mode=mode,
            resume="allow" if mode == "online" else None,  # offline it is only warned about
            settings=wandb.Settings(
                console="off", disable_git=True, save_code=False
            ),  # the rows, nothing else
        )

    def log(self, row: Row) -> None:
        self.run.log(dict(row), step=int(row["step"]))

    def close(self, *, finished: bool) -> None:
        self.run.finish(exit_code=0 if finished else 1)


LOGGERS: Mapping[str, type[Logger]] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB}
"""By the option, the extra and the package, which are called the same."""


def chosen_loggers(**wanted: bool) -> tuple[str, ...]:
    """Return the names of those wanted, ``chosen_loggers(mlflow=True)``.

    Raises:
        UsageError: one of them is not installed.
    """
    names = tuple(name for name in LOGGERS if wanted[name])
    for name in names:
        if find_spec(name) is None:
            raise UsageError(f'--{name} needs an extra package: pip install "handful[{name}]".')
    return names


@contextlib.contextmanager
def logging_to(names: Sequence[str], folder: RunFolder) -> Iterator[Callable[[Row], None]]:
    """Open these loggers for one run; yield what hands them a row.

    A logger that is new to a run in progress gets the rows so far. One that fails on the way is said to and left out:
    a server that is gone costs its curves, not the training.

    Raises:
        RunError: one of them cannot be opened.
    """
    ids: dict[str, str] = read_json(folder.loggers) if folder.loggers.is_file() else {}
    before = folder.read_metrics()
    sent = before[-1]["step"] if before else 0
    opened: dict[str, Logger] = {}

    def each(do: Callable[[Logger], None], only: Sequence[str]) -> None:
        for name in only:
            try:
                do(opened[name])
            except Exception as error:
                del opened[name]
                folder.say(
                    f"{name} takes no more of this run ({type(error).__name__}: {error}); metrics.jsonl does."
                )

    def send(row: Row, only: Sequence[str]) -> None:
        each(lambda logger: logger.log(row), only)

    finished = False
    try:
        for name in names:
            opened[name] = _open(name, folder, ids.get(name))
        new = [name for name in names if name not in ids]
        if new:
            write_json(folder.loggers, ids | {name: opened[name].run_id for name in new})
        for row in before:
            send(row, [name for name in new if name in opened])
        yield lambda row: send(row, tuple(opened)) if row["step"] > sent else None
        finished = True
    finally:
        each(lambda logger: logger.close(finished=finished), tuple(opened))


def _open(name: str, folder: RunFolder, run_id: str | None) -> Logger:
    try:
        return LOGGERS[name](folder, run_id)
    except Exception as error:
        known = f" as {run_id} ({folder.loggers} says so; delete it to begin a new one)" if run_id else ""
        raise RunError(
            f"--{name}: the run could not be opened{known}: {type(error).__name__}: {error}"
        ) from error


def _name(folder: RunFolder) -> str:
    return folder.path.resolve().name
