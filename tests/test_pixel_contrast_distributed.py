"""The pixels of several processes: same value on each, and the gradients DDP averages are those of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from handful.losses import pixel_contrast, pixel_contrast_across_processes, streamed

CASES: list[dict[str, Any]] = [
    {"temperature": 0.1},
    {"temperature": 0.1, "background_anchors": True, "stride": 2},
    {"temperature": 0.015, "ignore": 2},
    {"temperature": 0.1, "labelled": False},
    # nothing to contrast anywhere
    {"temperature": 0.1, "background": 1, "ignore": 2},
]


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Return three images, their labels (0..2) and a projection: rank 0 gets two images, rank 1 one."""
    generator = torch.Generator().manual_seed(3)
    image = torch.randn(3, 2, 6, 5, 7, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (3, 2, 5, 7), generator=generator)
    weight = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    return image, labels, weight


def gradient_of(
    loss: Any, image: Tensor, labels: Tensor, weight: Tensor, case: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    settings = {name: value for name, value in case.items() if name != "labelled"}
    if case.get("background") == 1:
        labels = labels.clamp(min=1)
    weight = weight.clone().requires_grad_()
    z = torch.einsum("ec,bvcij->bveij", weight, image)
    value = loss(z, labels if case.get("labelled", True) else None, **settings)
    value.backward()
    assert weight.grad is not None
    return value.detach(), weight.grad


def one_process(rank: int, world: int, meeting: Path) -> None:
    streamed.TILE = 16
    dist.init_process_group("gloo", init_method=meeting.as_uri(), rank=rank, world_size=world)
    image, labels, weight = batch()
    own = slice(0, 2) if rank == 0 else slice(2, 3)
    results = []
    for case in CASES:
        value, gradient = gradient_of(pixel_contrast_across_processes, image[own], labels[own], weight, case)
        dist.all_reduce(gradient)
        results.append([value.item(), (gradient / world).tolist()])
    dist.destroy_process_group()
    print(json.dumps(results))


def test_two_processes_give_the_value_and_gradient_of_one(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), "2", str(tmp_path / "meeting")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    done = [process.communicate(timeout=120) for process in running]
    for process, (_, error) in zip(running, done):
        assert process.returncode == 0, error
    image, labels, weight = batch()
    for output, _ in done:
        results = json.loads(output.splitlines()[-1])
        assert len(results) == len(CASES)
        for case, (value, gradient) in zip(CASES, results):
            expected, slope = gradient_of(pixel_contrast, image, labels, weight, case)
            assert value == pytest.approx(expected.item(), rel=1e-10), case
            torch.testing.assert_close(
                torch.tensor(gradient, dtype=torch.float64), slope, rtol=1e-8, atol=1e-12
            )


def test_without_processes_it_is_the_pixel_contrast() -> None:
    image, labels, weight = batch()
    for case in CASES:
        alone = gradient_of(pixel_contrast, image, labels, weight, case)
        across = gradient_of(pixel_contrast_across_processes, image, labels, weight, case)
        assert across[0].item() == pytest.approx(alone[0].item(), rel=1e-12)
        torch.testing.assert_close(across[1], alone[1])


if __name__ == "__main__":
    one_process(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
