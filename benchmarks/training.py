"""Training steps a second: our loop beside the same network fed by a conventional per-sample pipeline.

    python benchmarks/training.py [--steps 12] [--threads 2]

The conventional pipeline is what most scripts do: MONAI dictionary transforms (the same content and probabilities)
on cached volumes, a DataLoader, float32, PyTorch's default memory layout. All rows run in turns in one process, so
that a change of the machine's speed hits them alike; quote the ratios. Then: where our step's time goes, and its rate
beside the machine's own matrix products.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from augmentation import monai_pipeline
from handful.batches import SegmentationBatch
from handful.data.augment.settings import AugmentSettings
from handful.data.plan import NetworkPlan, Normalisation, Plan
from handful.data.planes import in_planes, lead_and
from handful.data.sampling import Source, StoredCase, foreground_voxels
from handful.device import choose_device, choose_precision
from handful.methods.contract import Method
from handful.training.recipe import resolve
from handful.training.start import build_method

SMALL = (36, 50, 35)
"""A median hippocampus volume."""

SHAPES = {
    "slices of three planes, 56 x 40, batch 8": ((56, 40), 8, 24, SMALL),
    "3D 40 x 56 x 40, batch 2": ((40, 56, 40), 2, 16, SMALL),
    "2D 144 x 144, batch 8": ((144, 144), 8, 24, (12, 160, 150)),
}
"""Patch, batch, finest channels, and the volumes they come from."""

ORDERS = ((0, 1, 2), (1, 0, 2), (2, 1, 0))
"""Slice axis, rows, columns: what a plan of three planes cuts."""


def plan_of(patch: tuple[int, ...], batch: int, width: int, volume: tuple[int, ...]) -> Plan:
    """Return the plan of such volumes, as ``handful plan`` makes it."""
    dims = len(patch)
    levels = 4 if volume == SMALL else 5
    return Plan(
        dims=dims,  # type: ignore[arg-type]
        axes=(2, 1, 0),
        spacing_mm=(1.0, 1.0, 1.0),
        patch=patch,
        batch=batch,
        planes=ORDERS if dims == 2 and volume == SMALL else ORDERS[:1],
        channels=(Normalisation(),),
        label_values=(0, 1, 2),
        label_names=("background", "one", "two"),
        mirror=(False,) * dims,
        network=NetworkPlan(
            widths=tuple(min(256, width * 2**level) for level in range(levels)),
            strides=((2,) * dims,) * (levels - 1),
            kernels=((3,) * dims,) * levels,
        ),
    )


class Cached(Dataset[Any]):
    """Volumes in memory, one random crop and its transforms an item, as a script would have it."""

    def __init__(
        self,
        cases: list[StoredCase],
        patch: tuple[int, ...],
        settings: AugmentSettings,
        planes: Sequence[tuple[int, int, int]],
    ) -> None:
        self.cases, self.patch, self.planes = cases, patch, planes
        self.pipeline = monai_pipeline(settings, patch)

    def __len__(self) -> int:
        return 10_000

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        case = self.cases[index % len(self.cases)]
        image, label = case.image[:], case.label[:].unsqueeze(0).float()  # type: ignore[index]
        if len(self.patch) == 2:
            order = self.planes[int(torch.randint(len(self.planes), ()))]
            image, label = (part.permute(lead_and(order)) for part in (image, label))
            depth = int(torch.randint(image.shape[1], ()))
            image, label = image[:, depth], label[:, depth]
        done = self.pipeline({"image": image, "label": label})
        return {key: torch.as_tensor(done[key]).as_subclass(Tensor) for key in ("image", "label")}


def conventional_batches(data: Dataset[Any], batch: int, workers: int) -> Iterator[SegmentationBatch]:
    """Yield collated batches for ever."""
    while True:
        for item in DataLoader(data, batch_size=batch, num_workers=workers):
            yield SegmentationBatch(item["image"], item["label"][:, 0].long())


def stepper(
    method: Method,
    batches: Callable[[], SegmentationBatch],
    *,
    device: torch.device,
    bfloat16: bool,
    last: bool,
) -> Callable[[], None]:
    """Return one training step: batch, forward, loss, backward, optimiser."""
    dims = len(next(iter(method.parameters())).shape) - 2
    memory_format = torch.channels_last if dims == 2 else torch.channels_last_3d
    method.to(device)
    if last:
        for parameter in method.parameters():
            if parameter.ndim == dims + 2:
                parameter.data = parameter.data.to(memory_format=memory_format)
    optimiser = torch.optim.AdamW(method.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        batch = batches()
        image = batch.image.to(device)
        batch = SegmentationBatch(
            image.to(memory_format=memory_format) if last else image, batch.label.to(device)
        )
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            loss = method.step(batch, 0.5).loss
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(method.parameters(), 12.0)
        optimiser.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step


def matrix_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Return GFLOP/s of a 2,048-sided matrix product, the fastest of ten."""
    a = torch.randn(2048, 2048, device=device).to(dtype)
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * 2048**3 / best / 1e9


def compare(
    title: str,
    patch: tuple[int, ...],
    batch: int,
    width: int,
    shape: tuple[int, ...],
    *,
    steps: int,
    device: torch.device,
) -> None:
    """Print the table of one shape."""
    plan = plan_of(patch, batch, width, shape)
    recipe = resolve("supervised", over={"loop": {"steps": 1}})
    cases = []
    for index in range(8):
        generator = torch.Generator().manual_seed(index)
        image = torch.randn(1, *shape, generator=generator)
        label = torch.randint(0, 3, shape, generator=generator, dtype=torch.uint8)
        voxels = foreground_voxels(label.numpy(), 3)
        cases.append(StoredCase(str(index), image.to(device), label.to(device), voxels, (1.0, 1.0, 1.0)))
    labelled = in_planes(cases, plan.planes)
    bfloat16 = choose_precision("auto", device) == "bf16-mixed"
    ours = build_method(recipe, plan, 0)[0]
    counter = [0]

    def our_batch() -> SegmentationBatch:
        counter[0] += 1
        source = Source(
            labelled=labelled, unlabelled=[], patch=patch, batch=batch, classes=3, mirror=plan.mirror,
            augment=recipe.augment, sampling=recipe.sampling, device=device, seed=0, step=counter[0],
        )  # fmt: skip
        made: SegmentationBatch = ours.batch(source)
        return made

    on_cpu = [StoredCase(c.name, c.image.cpu(), c.label.cpu(), (), c.spacing_mm) for c in cases]  # type: ignore[attr-defined, union-attr]
    data = Cached(on_cpu, patch, recipe.augment, plan.planes)
    feeds = {f"MONAI, {n} workers": conventional_batches(data, batch, n) for n in (0, 2)}
    rows: dict[str, Callable[[], None]] = {
        "ours": stepper(ours, our_batch, device=device, bfloat16=bfloat16, last=True)
    }
    for name, feed in feeds.items():
        for words, half, last in (("our step", bfloat16, True), ("conventional step", False, False)):
            model = build_method(recipe, plan, 0)[0]
            rows[f"{name}, {words}"] = stepper(model, feed.__next__, device=device, bfloat16=half, last=last)
    times: dict[str, list[float]] = {name: [] for name in rows}
    for turn in range(steps + 2):
        for name, step in rows.items():
            start = time.perf_counter()
            step()
            if turn >= 2:
                times[name].append(time.perf_counter() - start)
    fastest = median(times["ours"])
    print(f"\n{title}, {device}, {torch.get_num_threads()} threads, bfloat16 {bfloat16}\n")
    print("| feed and step | ms a step | steps/s | ours is faster by |\n|---|---|---|---|")
    for name, values in times.items():
        took = median(values)
        print(f"| {name} | {1e3 * took:.0f} | {1 / took:.2f} | {took / fastest:.1f} |")

    feed_only = []
    for _ in range(steps):
        start = time.perf_counter()
        our_batch()
        feed_only.append(time.perf_counter() - start)
    one = our_batch()
    with FlopCounterMode(display=False) as flops:
        rows["ours"]()
    rate = flops.get_total_flops() / fastest / 1e9
    print(
        f"\nOur batch (draw, crop, augmentation) takes {100 * median(feed_only) / fastest:.0f} % of the step. "
        f"{flops.get_total_flops() / 1e9:.1f} GFLOP a step, {rate:.0f} GFLOP/s; this machine's matrix product: "
        f"{matrix_rate(torch.float32, device):.0f} (float32), {matrix_rate(torch.bfloat16, device):.0f} (bfloat16) "
        f"GFLOP/s. Batch of {tuple(one.image.shape)}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    for title, (patch, batch, width, volume) in SHAPES.items():
        compare(title, patch, batch, width, volume, steps=given.steps, device=choose_device(given.device))


if __name__ == "__main__":
    main()
