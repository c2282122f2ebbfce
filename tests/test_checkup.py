"""Laws of watching a pre-training: in the metrics, resumed exactly, stopped by collapse or by a probe that stands."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from handful.errors import RunError
from handful.methods.contract import StepOutput, Watched
from handful.training.checkup import Checkup
from handful.training.health import ROWS
from handful.training.run import pretrain


def output(spread: float, *, seed: int = 0) -> StepOutput:
    generator = torch.Generator().manual_seed(seed)
    z = torch.ones(32, 2, 8) + spread * torch.randn(32, 2, 8, generator=generator)
    return StepOutput(torch.tensor(1.0), {}, watched=Watched(z, torch.rand(32, generator=generator)))


class Nothing(nn.Module):
    def exports(self) -> dict[str, nn.Module]:
        return {}


def rows_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_pretraining_writes_its_health_and_its_probe(phantom_folder: Path, tmp_path: Path) -> None:
    pretrain(
        phantom_folder, tmp_path / "run", method="pcl", labels="2", steps=8, set_=["method.batch=8"],
        threads=1, quiet=True, device="cpu",
    )  # fmt: skip
    rows = rows_of(tmp_path / "run")
    assert len(rows) == 8
    for name in ("effective_rank", "deviation", "alignment", "uniformity", "position_error"):
        assert f"health/{name}" in rows[-1]
    probes = [row["health/probe"] for row in rows if "health/probe" in row]
    assert 2 <= len(probes) <= 11
    assert all(0 <= probe <= 1 for probe in probes)


def test_without_a_budget_no_label_is_probed(phantom_folder: Path, tmp_path: Path) -> None:
    pretrain(
        phantom_folder, tmp_path / "run", method="pcl", steps=2, set_=["method.batch=4"], threads=1, quiet=True,
        device="cpu",
    )  # fmt: skip
    assert not any("health/probe" in row for row in rows_of(tmp_path / "run"))


@pytest.mark.parametrize(("spread", "collapses"), [(0.0, True), (1.0, False)])
def test_a_collapse_stops_the_run_unless_told_otherwise(spread: float, collapses: bool) -> None:
    def watch(checkup: Checkup) -> None:
        for step in range(ROWS + 1):
            checkup.add(output(spread, seed=step))
            checkup.row(Nothing(), {"step": step, "loss": 1.0}, 0.5)  # type: ignore[arg-type]

    watch(Checkup(None, stop_on_collapse=False))
    if collapses:
        with pytest.raises(RunError, match=rf"step {ROWS - 1}: the embeddings have collapsed"):
            watch(Checkup(None))
    else:
        watch(Checkup(None))


def test_features_that_no_term_keeps_apart_may_be_one_point() -> None:
    checkup = Checkup(None)
    for step in range(ROWS + 1):
        same = Watched(torch.ones(32, 1, 8), stops=False)
        checkup.add(StepOutput(torch.tensor(1.0), {}, watched=same))
        row = checkup.row(Nothing(), {"step": step, "loss": 1.0}, 0.5)  # type: ignore[arg-type]
        assert row["health/deviation"] == 0


def test_a_standing_probe_stops_and_a_resumed_checkup_goes_on_as_the_first() -> None:
    scores = iter([0.2, 0.5, 0.4, 0.4, 0.4, 0.4])

    def probe(_: object) -> float:
        return next(scores)

    def step(checkup: Checkup, number: int) -> dict[str, float]:
        checkup.add(output(1.0, seed=number))
        return checkup.row(Nothing(), {"step": number, "loss": 1.0}, number / 10)  # type: ignore[arg-type]

    one = Checkup(probe, patience=2)
    for number in range(4):
        step(one, number)
        assert not one.stopped
    other = Checkup(probe, patience=2)
    other.load_state_dict(one.state_dict())
    measured = step(other, 4)
    assert other.stopped
    assert measured["health/probe"] == 0.4
    plain = {key: value for key, value in step(one, 4).items() if key != "health/probe"}
    assert plain == {key: value for key, value in measured.items() if key != "health/probe"}
