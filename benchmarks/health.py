"""What the health meter reads on fresh, learning and collapsing networks, and what it and the probe cost.

    python benchmarks/health.py [--steps 150] [--threads 1]

Slices of phantom volumes, so that no data is needed. The readings are what the thresholds of ``training/health.py``
stand between; quote the costs as shares of a step.
"""

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from statistics import mean, pstdev
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from handful.data.augment.settings import AugmentSettings
from handful.data.phantom import LABEL_NAMES, draw_volume
from handful.data.sampling import SamplingSettings, Source, StoredCase, foreground_voxels
from handful.losses.contrastive import positional_contrast
from handful.methods.contract import Watched
from handful.methods.pcl import PCL, Settings
from handful.networks.build import build_network, unet_architecture
from handful.training.health import ROWS, Meter, alignment, collapsed, shared_parameters, term_gradients
from handful.training.probe import probe

WIDTHS = (16, 32, 64, 128)
PATCH = {2: (48, 48), 3: (24, 24, 24)}
CPU = torch.device("cpu")


def phantom(patients: int) -> list[StoredCase]:
    """Draw volumes, slices along the body's axis, each of mean 0 and deviation 1."""
    cases = []
    for patient in range(patients):
        volume = draw_volume(patient)
        image = volume.image.transpose(2, 1, 0).astype(np.float32)
        label = np.ascontiguousarray(volume.label.transpose(2, 1, 0))
        image = torch.from_numpy((image - image.mean()) / image.std())[None]
        voxels = foreground_voxels(label, len(LABEL_NAMES))
        cases.append(StoredCase(str(patient), image, torch.from_numpy(label), voxels, (3.0, 2.0, 2.0)))
    return cases


def source(cases: list[StoredCase], dims: int, step: int) -> Source:
    return Source(
        labelled=[], unlabelled=cases, patch=PATCH[dims], batch=16, classes=len(LABEL_NAMES), mirror=(False,) * dims,
        augment=AugmentSettings(), sampling=SamplingSettings(), device=CPU, seed=0, step=step,
    )  # fmt: skip


def pcl(dims: int, *, widths: tuple[int, ...] = WIDTHS, kind: str = "plain", norm: str = "instance") -> PCL:
    torch.manual_seed(0)
    levels = len(widths)
    network = build_network(
        unet_architecture(
            dims=dims, in_channels=1, classes=len(LABEL_NAMES), widths=widths, strides=((2,) * dims,) * (levels - 1),
            kernels=((3,) * dims,) * levels, blocks=1, kind=kind, norm=norm, deep_supervision=False,
        )
    )  # fmt: skip
    return PCL(network, Settings(patch_share=1.0))


def embedded(method: PCL, batch: Any) -> tuple[Tensor, Tensor]:
    z = method.head(method.encoder(torch.cat([batch.first, batch.second]))[-1])
    first, second = z.chunk(2)
    return first, second


def contrast(method: PCL, first: Tensor, second: Tensor, batch: Any) -> Tensor:
    return positional_contrast(
        torch.stack([first, second], dim=1), batch.position[:, 0], threshold=0.1, temperature=0.1, related=batch.related
    )  # fmt: skip


def agreement(method: PCL, first: Tensor, second: Tensor, batch: Any) -> Tensor:
    return alignment(first, second)


def run(
    cases: list[StoredCase],
    method: PCL,
    loss_of: Callable[..., Tensor],
    optimiser: str,
    lr: float,
    steps: int,
) -> Iterator[dict[str, float]]:
    """Train on slices and yield a row a step; the learning rate warms up over the first tenth."""
    meter = Meter()
    parameters = list(method.parameters())
    optim: torch.optim.Optimizer = (
        torch.optim.AdamW(parameters, lr=lr)
        if optimiser == "AdamW"
        else torch.optim.SGD(parameters, lr=lr, momentum=0.9)
    )
    for step in range(steps):
        for group in optim.param_groups:
            group["lr"] = lr * min(1, (step + 1) / (0.1 * steps))
        batch = method.batch(source(cases, 2, step))
        first, second = embedded(method, batch)
        loss = loss_of(method, first, second, batch)
        optim.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 12.0)
        optim.step()
        meter.add(Watched(torch.stack([first, second], dim=1), batch.position[:, 0]))
        row = {"step": step, "loss": loss.item(), **meter.row()}
        if step in (0, steps - 1):
            scores = [probed(method, cases, seed) for seed in range(6)]
            row |= {"probe": mean(scores), "sd": pstdev(scores)}
        yield row


def probed(method: PCL, cases: list[StoredCase], seed: int) -> float:
    """Probe two cases."""
    score = probe(
        method.exports(), cases[:2], patch=PATCH[2], classes=len(LABEL_NAMES), device=CPU, seed=seed
    )
    assert score is not None
    return score


def reading(row: dict[str, float]) -> str:
    names = ("deviation", "effective_rank", "uniformity", "alignment", "position_error", "position_chance")
    return " | ".join(f"{row['health/' + name]:.3g}" for name in names)


def seconds(call: Callable[[], Any], times: int) -> float:
    call()
    start = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - start) / times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cases = phantom(8)

    head = "deviation | rank | uniformity | alignment | position error | chance |"
    print(f"| fresh network | {head}\n|---|---|---|---|---|---|---|")
    for dims, widths, kind, norm in itertools.product(
        (2, 3), ((4, 6, 8), WIDTHS), ("plain", "residual"), ("instance", "batch")
    ):
        method, meter = pcl(dims, widths=widths, kind=kind, norm=norm), Meter()
        with torch.no_grad():
            for step in range(4):
                batch = method.batch(source(cases, dims, step))
                meter.add(Watched(torch.stack(embedded(method, batch), dim=1), batch.position[:, 0]))
        print(f"| {dims}D {kind}, {norm} norm, {widths} | {reading(meter.row())} |", flush=True)

    print(
        f"\n| run | step | loss | {head} probe | collapsed |\n|---|---|---|---|---|---|---|---|---|---|---|"
    )
    house = {"kind": "residual", "norm": "batch"}
    for name, network, loss_of, optimiser, lr in (
        ("PCL, residual, batch norm", house, contrast, "AdamW", 2e-3),
        ("PCL, plain, instance norm", {}, contrast, "AdamW", 2e-3),
        ("PCL, plain, instance norm", {}, contrast, "SGD", 3.0),
        ("agreement alone, plain, instance norm", {}, agreement, "AdamW", 2e-3),
    ):
        rows: list[dict[str, float]] = []
        for row in run(cases, pcl(2, **network), loss_of, optimiser, lr, arguments.steps):
            rows.append(row)
            said = collapsed(rows[-ROWS:], progress=len(rows) / arguments.steps, together=32)
            if len(rows) in {arguments.steps * share // 10 for share in (1, 2, 4, 6, 8, 10)}:
                ends = [
                    f"{end['probe']:.2f} (sd {end['sd']:.2f})" for end in (rows[0], row) if "probe" in end
                ]
                score = " to ".join(ends[-2:]) if len(ends) > 1 else ""
                print(
                    f"| {name}, {optimiser} {lr} | {len(rows)} | {row['loss']:.4f} | {reading(row)} | {score} | "
                    f"{'yes' if said else 'no'} |",
                    flush=True,
                )

    method, meter = pcl(2, **house), Meter()
    batch = method.batch(source(cases, 2, 0))
    watched = method.step(batch, 0.5).watched
    assert watched is not None
    for _ in range(16):
        meter.add(watched)

    def step_once() -> None:
        method.step(method.batch(source(cases, 2, 0)), 0.5).loss.backward()

    def gradients() -> None:
        loss = method.step(batch, 0.5).loss
        term_gradients({"contrast": loss}, shared_parameters(method.exports()))

    def forward() -> None:
        _ = method.step(batch, 0.5).loss

    print(f"\na step of PCL: {1e3 * seconds(step_once, 5):.1f} ms of one core; of it or beside it:")
    print(f"  meter.add {1e3 * seconds(lambda: meter.add(watched), 100):.2f} ms")
    print(f"  meter.row {1e3 * seconds(meter.row, 20):.1f} ms")
    print(f"  term_gradients {1e3 * (seconds(gradients, 10) - seconds(forward, 10)):.1f} ms a term")
    print(f"  probe of two cases {1e3 * seconds(lambda: probed(method, cases, 0), 3):.0f} ms")


if __name__ == "__main__":
    main()
