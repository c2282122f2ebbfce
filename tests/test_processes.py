"""Training on several processes: two with a batch each do what one does with both, and only the first one writes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from handful.data.phantom import make_phantom
from handful.errors import UsageError
from handful.losses.processes import gathered, gathered_unequal, own_first
from handful.losses.segmentation import dice_and_cross_entropy
from handful.methods import load_method, method_names
from handful.networks.build import build_network, unet_architecture
from handful.networks.synchronised import synchronise_norms
from handful.training.fabric import started
from handful.training.folder import RunFolder
from handful.training.loop import LoopSettings, fit
from handful.training.processes import Processes, processes
from test_methods import made, phantom_source

STEPS = 3

SETTINGS: dict[str, Callable[[int], dict[str, Any]]] = {
    "supervised": lambda batch: {},
    "pcl": lambda batch: {"batch": batch},
    "simclr": lambda batch: {"batch": batch},
    "moco": lambda batch: {"batch": batch},
    "byol": lambda batch: {"batch": batch},
    "gcl": lambda batch: {"volumes": batch, "freeze": False},
    "sscl": lambda batch: {"batch": batch, "local_batch": batch},
    "mixcl": lambda batch: {"batch": batch, "mix": "none", "label": "none"},
    "mona_pretrain": lambda batch: {"batch": batch, "cells": 2},
    "auto": lambda batch: {
        "start": 0.0,
        "ramp": 0.0,
        "threshold": 0.0,
        "paste": 0.0,
        "contrast_every": 1,
        "contrast_weight": 1.0,
        "level": 0,
    },
    "mean_teacher": lambda batch: {},
    "entropy": lambda batch: {},
    "cps": lambda batch: {"pseudo_loss": "both"},
    "self_training": lambda batch: {"start": 0.0, "threshold": 0.0},
    "fixmatch": lambda batch: {"cutmix": 0.0, "feature_weight": 0.0, "threshold": 0.0},
    "uamt": lambda batch: {"noise": 0.0, "passes": 1, "threshold": 0.95},
}
"""Settings that leave nothing to draw but patches and views, and terms that are never empty, for ``batch`` images.

What a method draws besides (mixtures, boxes, noise) differs between processes; those methods are not here.
"""

METHODS = tuple(SETTINGS)


def trained(method_name: str, folder: Path, together: Processes, *, batch: int) -> dict[str, Tensor]:
    """Train a small network with batch norm three steps; ``batch`` images on each process."""
    torch.manual_seed(0)
    network = build_network(
        unet_architecture(
            dims=2, in_channels=1, classes=3, widths=(4, 6), strides=((2, 2),), kernels=((3, 3),) * 2, blocks=1,
            kind="plain", norm="batch", deep_supervision=False,
        )
    )  # fmt: skip
    module = load_method(method_name)
    method = module.METHOD(network, module.Settings(**SETTINGS[method_name](batch)))

    def source(step: int) -> Any:
        drawn = phantom_source(2, step=step)
        if (
            method_name == "mona_pretrain"
        ):  # labelled rows come first in each process, in one process of all: no labels
            drawn = replace(drawn, labelled=(), unlabelled=[*drawn.labelled, *drawn.unlabelled])
        return replace(drawn, batch=batch, rank=together.rank, world=together.world)

    with started(torch.device("cpu"), "32-true", together, trains_all=method.trains_all) as fabric:
        parts = fit(
            method,
            source,
            settings=LoopSettings(steps=STEPS, optimiser="sgd", lr=0.05, momentum=0.9, ema_horizon=0.0),
            fabric=fabric,
            folder=RunFolder(folder / method_name, quiet=True, writes=together.first),
            seed=0,
        )
    assert {parameter.grad is None for part in parts.values() for parameter in part.parameters()} == {True}
    return {
        f"{part}.{name}": value.clone()
        for part, module in parts.items()
        for name, value in module.state_dict().items()
    }


def one_process(folder: Path) -> None:
    together = processes(2)
    weights = {name: trained(name, folder / "two", together, batch=2) for name in METHODS}
    torch.save(weights, folder / f"weights{together.rank}.pt")
    torch.save(norm_and_losses(together.rank, 2), folder / f"losses{together.rank}.pt")
    torch.save(rows(together.rank), folder / f"rows{together.rank}.pt")
    dist.barrier()


def norm_and_losses(rank: int, world: int) -> list[Tensor]:
    """Return values and gradients of batch norm, of Dice and of a contrast, of this process's rows of ten."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(10, 3, 4, 5, generator=generator, dtype=torch.float64) * 3 + 100
    label = torch.randint(0, 3, (10, 4, 5), generator=generator)
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)).double()
    for number, parameter in enumerate(network.parameters()):
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) + 0.1 * number
    if world > 1:
        assert synchronise_norms(network) == 1
    results = []
    mine = slice(rank * 10 // world, (rank + 1) * 10 // world)
    for turn in range(2):
        network.zero_grad()
        logits = network(x[mine])
        segmentation = dice_and_cross_entropy(logits, label[mine], balance=0.5, processes=True).sum()
        z = gathered(logits.mean((2, 3)))
        loss = segmentation + (z @ z.T).logsumexp(1).mean()
        loss.backward()
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        for gradient in gradients:
            if world > 1:
                dist.all_reduce(gradient)
        results += [loss.detach(), *(gradient / world for gradient in gradients)]
        network.train(turn == 1)
    return [*results, *network.state_dict().values()]


def rows(rank: int) -> list[Tensor]:
    """Return what two processes bring together of rows that say whose they are."""
    own = torch.tensor([[10 * rank], [10 * rank + 1]])
    unequal = [torch.full((2 * rank, 3), 7.0), torch.zeros(0, 3), torch.arange(4 - rank)]
    return [own_first(own), *(gathered_unequal(each) for each in unequal)]


def test_rows_come_own_first_or_in_any_number(two: Path) -> None:
    for rank, order in enumerate(([0, 1, 10, 11], [10, 11, 0, 1])):
        first, some, none, long = torch.load(two / f"rows{rank}.pt")
        assert first.flatten().tolist() == order
        assert torch.equal(some, torch.full((2, 3), 7.0))
        assert none.shape == (0, 3)
        assert long.tolist() == [0, 1, 2, 3, 0, 1, 2]
    alone = torch.arange(3)
    assert own_first(alone) is gathered_unequal(alone) is alone


def test_norm_dice_and_contrast_are_those_of_the_whole_batch(two: Path) -> None:
    expected = norm_and_losses(0, 1)
    assert len(expected) == 2 * 7 + 9
    for rank in range(2):
        found = torch.load(two / f"losses{rank}.pt")
        for one, other in zip(expected, found, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-10)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder in which two processes have left their results; starting them takes most of the time."""
    folder = tmp_path_factory.mktemp("processes")
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("SLURM")},
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    running = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**environment, "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    done = [process.communicate(timeout=250) for process in running]
    for process, (output, error) in zip(running, done):
        assert process.returncode == 0, output + error
    return folder


def free_port() -> int:
    import socket

    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_train_as_one_with_the_double_batch(name: str, two: Path, tmp_path: Path) -> None:
    alone = trained(name, tmp_path / "one", Processes(), batch=4)
    start = trained_nothing(name)
    moved = max((alone[key] - start[key]).abs().max().item() for key in start)
    assert moved > 1e-3
    for rank in range(2):
        weights = torch.load(two / f"weights{rank}.pt")[name]
        assert weights.keys() == alone.keys()
        for key, value in alone.items():
            torch.testing.assert_close(weights[key], value, rtol=1e-5, atol=1e-5)
    rows = [
        [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        for folder in (tmp_path / "one", two / "two")
    ]
    assert [row["step"] for row in rows[1]] == [1, 2, 3]
    for one, both in zip(*rows, strict=True):
        # rows hold six digits: the last one of either may be rounded the other way
        assert both["loss"] == pytest.approx(one["loss"], abs=3e-5, rel=1e-5)
        assert both["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-4)


def trained_nothing(name: str) -> dict[str, Tensor]:
    torch.manual_seed(0)
    network = build_network(
        unet_architecture(
            dims=2, in_channels=1, classes=3, widths=(4, 6), strides=((2, 2),), kernels=((3, 3),) * 2, blocks=1,
            kind="plain", norm="batch", deep_supervision=False,
        )
    )  # fmt: skip
    module = load_method(name)
    exports = module.METHOD(network, module.Settings(**SETTINGS[name](4))).exports()
    return {f"{part}.{key}": v for part, m in exports.items() for key, v in m.named_parameters()}


@pytest.mark.parametrize(
    ("environment", "asked", "expected"),
    [
        ({}, (None, None), Processes(1, 1, 0)),
        ({}, (4, None), Processes(4, 1, 0)),
        ({"LOCAL_RANK": "3", "NODE_RANK": "1"}, (4, 2), Processes(4, 2, 7)),
        ({"NODE_RANK": "1"}, (4, 2), Processes(4, 2, 4)),
        (
            {
                "TORCHELASTIC_RUN_ID": "x",
                "WORLD_SIZE": "4",
                "LOCAL_WORLD_SIZE": "2",
                "RANK": "3",
                "LOCAL_RANK": "1",
            },
            (None, None),
            Processes(2, 2, 3),
        ),
        (
            {"SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4", "SLURM_PROCID": "5", "SLURM_JOB_NAME": "pcl"},
            (4, 2),
            Processes(4, 2, 5),
        ),
        (
            {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "bash"},
            (None, None),
            Processes(1, 1, 0),
        ),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, (None, None), Processes(1, 1, 0)),
    ],
)
def test_who_started_the_processes_is_read_from_the_environment(
    environment: dict[str, str], asked: tuple[int | None, int | None], expected: Processes
) -> None:
    assert processes(*asked, environment=environment) == expected


def test_contradictions_are_refused() -> None:
    torchrun = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "RANK": "3"}
    with pytest.raises(UsageError, match="torchrun started 2 processes on each of 2 machines"):
        processes(4, environment=torchrun)
    with pytest.raises(UsageError, match="--ntasks-per-node"):
        processes(environment={"SLURM_NTASKS": "4", "SLURM_PROCID": "0"})
    with pytest.raises(UsageError, match="at least 1"):
        processes(0, environment={})
    with pytest.raises(UsageError, match="number 2 by NODE_RANK"):
        processes(2, 1, environment={"NODE_RANK": "1"})


@pytest.mark.parametrize("name", [name for name in method_names() if load_method(name).METHOD.trains_all])
def test_methods_that_say_they_train_all_do(name: str) -> None:
    for progress in (0.0, 0.3, 0.6, 0.99):
        method = made(name, 2)
        method.step(method.batch(phantom_source(2, progress=progress)), progress).loss.backward()
        assert all(parameter.grad is not None for parameter in method.parameters() if parameter.requires_grad)


COMMAND = [sys.executable, "-m", "handful", "train"]
QUICK = (
    "--method", "supervised", "--device", "cpu", "--labels", "2", "--threads", "1", "--precision", "32",
    "--set", "plan.dims=2", "--set", "loop.checkpoint_every_s=0", "--set", "loop.rows=1000",
)  # fmt: skip


@pytest.mark.slow
def test_the_command_starts_the_others_writes_once_and_resumes(tmp_path: Path) -> None:
    data = make_phantom(
        tmp_path / "Phantom",
        patients=8,
        unlabelled=2,
        held_out=2,
        size=(26, 22, 18),
        spacing_mm=(3.0, 3.2, 4.5),
    )
    out = tmp_path / "run"
    words = [*COMMAND, str(data), "--out", str(out), *QUICK, "--steps", "3", "--devices", "2"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained 3 steps") == 1
    assert done.stdout.count("Next: ") == 1
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["processes"] == 2
    assert manifest["finished"]
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]
    again = subprocess.run(words, capture_output=True, text=True, timeout=280, check=False)
    assert again.returncode == 0
    assert "nothing to do" in again.stdout
    alone = [*words[:-1], "1"]
    other = subprocess.run(alone, capture_output=True, text=True, timeout=280, check=False)
    assert other.returncode == 2
    assert "processes" in other.stderr


if __name__ == "__main__":
    one_process(Path(sys.argv[1]))
