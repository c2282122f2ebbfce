"""A run's folder, written so that a kill at any moment loses at most the steps since the last checkpoint."""

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from handful.artefacts import atomic_path, write_text
from handful.errors import DataError, RunError, UsageError


def weights_of(run: Path) -> Path:
    """Return the weight file of a finished run; anything else is a ``UsageError``."""
    path = run / "weights.safetensors"
    if not path.is_file():
        raise UsageError(
            f"{run} holds no trained weights (weights.safetensors); give the folder of a finished run."
        )
    return path


class RunFolder:
    """Paths and writers of one run.

    Args:
        path: the folder; made if missing.
        quiet: write ``log.txt`` only, print nothing.
        writes: False in all processes of a training but one: what they would write or say, that one does.
    """

    def __init__(self, path: Path, *, quiet: bool = False, writes: bool = True) -> None:
        self.path = path
        self.writes = writes
        self.quiet = quiet
        self.recipe = path / "recipe.yaml"
        self.plan = path / "plan.yaml"
        self.fingerprint = path / "fingerprint.json"
        self.splits = path / "splits.json"
        self.manifest = path / "manifest.json"
        self.metrics = path / "metrics.jsonl"
        self.progress = path / "progress.png"
        self.checkpoint = path / "checkpoint.pt"
        self.weights = path / "weights.safetensors"
        self.synthetic = path / "synthetic.safetensors"
        self.pretrain = path / "pretrain"
        self.teacher = path / "teacher"
        self.snapshots = path / "snapshots"
        self.loggers = path / "loggers.json"
        self.tensorboard = path / "tensorboard"
        self.mlflow = path / "mlflow"
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"--out {path} cannot be made: {error.strerror}. Choose another folder."
            ) from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for one process; a second one is told so instead of mixing its files in."""
        if not self.writes:
            yield
            return
        with open(self.path / ".lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise RunError(
                    f"{self.path} is in use by another process; wait for it or choose another --out."
                ) from error
            for half_written in self.path.glob(".tmp-*"):  # a process killed while writing left it
                half_written.unlink()
            yield

    @contextlib.contextmanager
    def freed_if_refused(self) -> Iterator[None]:
        """Remove what a run writes on its way, if it is refused with nothing trained: a corrected one finds room."""
        written = (
            self.recipe, self.splits, self.fingerprint, self.plan, self.manifest, self.synthetic, self.loggers,
            self.metrics, self.progress, self.path / "log.txt",
        )  # fmt: skip
        others = [] if self.recipe.exists() else [path for path in written if path.exists()]
        try:
            yield
        except (UsageError, DataError):
            trained = any(
                (part / file.name).exists()
                for part in (self.path, self.pretrain, self.teacher)
                for file in (self.checkpoint, self.weights)
            )
            for path in written if self.writes and not trained else ():
                if path not in others:
                    path.unlink(missing_ok=True)
            raise

    def say(self, text: str) -> None:
        """Append a line to ``log.txt`` and print it."""
        if not self.writes:
            return
        with open(self.path / "log.txt", "a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")
        if not self.quiet:
            print(text, flush=True)

    def append_metrics(self, row: Mapping[str, float]) -> None:
        """Append one row to ``metrics.jsonl``."""
        if not self.writes:
            return
        try:
            with open(self.metrics, "a", encoding="utf-8") as file:
                file.write(json.dumps({k: _rounded(v) for k, v in row.items()}) + "\n")
        except OSError as error:
            raise RunError(
                f"{self.metrics} could not be written: {error.strerror}. The last checkpoint is intact; free some "
                "space and run the same command again to continue."
            ) from error

    def read_metrics(self) -> list[dict[str, float]]:
        """Return the rows of ``metrics.jsonl``; a line cut short by a kill ends the list."""
        rows: list[dict[str, float]] = []
        if self.metrics.exists():
            for line in self.metrics.read_text(encoding="utf-8").splitlines():
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError:
                    break
        return rows

    def snapshot(self, step: int) -> Path:
        """Return the file of the averaged weights after ``step``."""
        return self.snapshots / f"step-{step:06d}.safetensors"

    def keep_metrics_until(self, step: int) -> None:
        """Drop rows and snapshots past ``step``: they belong to steps that are about to be repeated."""
        if not self.writes:
            return
        for file in self.snapshots.glob("step-*.safetensors"):
            if int(file.stem.removeprefix("step-")) > step:
                file.unlink()
        rows = [row for row in self.read_metrics() if row["step"] <= step]
        write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in rows))

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Write ``checkpoint.pt`` whole or leave the previous one as it was."""
        if not self.writes:
            return
        with atomic_path(self.checkpoint) as temporary:
            try:
                torch.save(dict(state), temporary)
            except RuntimeError as error:  # torch reports a full disk as a failed write of its archive
                raise OSError(str(error).splitlines()[0]) from error

    def load_checkpoint(self, device: torch.device) -> dict[str, Any] | None:
        """Return the resume state, or None when there is none yet."""
        if not self.checkpoint.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(self.checkpoint, map_location=device, weights_only=True)
        except Exception as error:
            raise RunError(
                f"{self.checkpoint} is damaged and cannot be resumed from ({type(error).__name__}). Delete it to start "
                "again from the first step, or use --overwrite."
            ) from error
        return state

    def clear(self) -> None:
        """Remove what a run leaves, and nothing else that may lie in the folder."""
        names: Sequence[Path] = (
            self.recipe, self.plan, self.fingerprint, self.splits, self.manifest, self.metrics, self.progress,
            self.checkpoint, self.weights, self.synthetic, self.path / "log.txt", self.path / "scores.csv",
            self.path / "summary.json", self.path / "report.html", self.loggers,
        )  # fmt: skip
        for name in (*names, *self.snapshots.glob("step-*.safetensors")):
            name.unlink(missing_ok=True)
        # MLflow and W&B keep runs apart by themselves; TensorBoard would draw two in one
        shutil.rmtree(self.tensorboard, ignore_errors=True)
        for part in (self.pretrain, self.teacher):
            if part.is_dir():
                RunFolder(part).clear()
        predictions = self.path / "predictions"
        if predictions.is_dir():
            for file in (*predictions.glob("*.nii.gz"), *predictions.glob("*.dcm")):
                os.unlink(file)


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
