"""Views a second of pre-training: our loop beside the same encoder fed by a conventional per-sample two-view pipeline.

    python benchmarks/pretraining_speed.py [--steps 8] [--threads 1] [--workers 0 2]

SimCLR with the plan's encoder on small volumes in memory, 2D and 3D. The conventional pipeline is what most scripts
do: a random crop, MONAI dictionary transforms (our content and probabilities) applied twice, a DataLoader, float32,
PyTorch's default memory layout. All rows take turns in one process. Times are given twice: on the clock, and of the
processors, with those of the loader's workers, which programs beside this one hardly change.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from augmentation import monai_pipeline
from handful.data.augment.settings import AugmentSettings
from handful.data.plan import Plan
from handful.data.sampling import Source, StoredCase
from handful.device import choose_device, choose_precision
from handful.methods.simclr import Batch
from handful.training.recipe import Recipe, resolve
from handful.training.start import build_method
from training import SHAPES, VOLUME, plan_of

BATCH = 16
"""Images a step, two views each."""


class TwoViews(Dataset[Any]):
    """Volumes in memory; a random crop and its transforms twice, an item, as a script would have it."""

    def __init__(self, cases: list[StoredCase], patch: tuple[int, ...], settings: AugmentSettings) -> None:
        self.cases, self.patch = cases, patch
        self.pipeline = monai_pipeline(settings, patch, labelled=False)

    def __len__(self) -> int:
        return 100_000

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.cases[index % len(self.cases)].image[:]  # type: ignore[index]
        if len(self.patch) == 2:
            image = image[:, int(torch.randint(image.shape[1], ()))]
        for axis, side in enumerate(self.patch, start=1):  # a margin for the moves, as ours
            length = min(image.shape[axis], round(1.4 * side))
            image = image.narrow(axis, int(torch.randint(image.shape[axis] - length + 1, ())), length)
        return tuple(
            torch.as_tensor(self.pipeline({"image": image})["image"]).as_subclass(Tensor) for _ in range(2)
        )  # type: ignore[return-value]


def conventional(data: Dataset[Any], workers: int) -> Iterator[Batch]:
    """Yield collated batches for ever; nothing is known of overlaps."""
    unrelated = torch.zeros(BATCH, BATCH, dtype=torch.bool)
    while True:
        for first, second in DataLoader(data, batch_size=BATCH, num_workers=workers):
            yield Batch(first, second, unrelated)


def stepper(
    recipe: Recipe,
    plan: Plan,
    batches: Callable[[Any], Batch],
    *,
    device: torch.device,
    half: bool,
    last: bool,
) -> Callable[[], None]:
    """Return one step of pre-training: batch, forward, loss, backward, optimiser."""
    method = build_method(recipe, plan, 0)[0].to(device)
    memory_format = torch.channels_last if plan.dims == 2 else torch.channels_last_3d
    for parameter in method.parameters():
        if last and parameter.ndim == plan.dims + 2:
            parameter.data = parameter.data.to(memory_format=memory_format)
    optimiser = torch.optim.AdamW(method.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        batch = batches(method)
        views = [view.to(device) for view in (batch.first, batch.second)]
        if last:
            views = [view.to(memory_format=memory_format) for view in views]
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = method.step(Batch(*views, batch.related.to(device)), 0.5).loss
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(method.parameters(), 12.0)
        optimiser.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step


def processor_seconds() -> float:
    """Return what this process and its children have computed, those that have ended included."""
    own = psutil.Process()
    times = [own.cpu_times()]
    for child in own.children(recursive=True):
        try:
            times.append(child.cpu_times())
        except psutil.Error:
            continue
    ended = times[0].children_user + times[0].children_system
    return float(sum(t.user + t.system for t in times) + ended)


def compare(title: str, patch: tuple[int, ...], width: int, given: Any, device: torch.device) -> None:
    """Print the table of one shape."""
    plan = plan_of(patch, BATCH, width)
    recipe = resolve("simclr", over={"loop": {"steps": 1}, "method": {"batch": BATCH}})
    shape = VOLUME if plan.dims == 3 else (12, 160, 150)
    images = [torch.randn(1, *shape, generator=torch.Generator().manual_seed(index)) for index in range(8)]
    cases = [
        StoredCase(str(i), image.to(device), None, (), (1.0, 1.0, 1.0)) for i, image in enumerate(images)
    ]
    half = choose_precision("auto", device) == "bf16-mixed"
    count = 0

    def ours(method: Any) -> Batch:
        nonlocal count
        count += 1
        source = Source(
            labelled=[], unlabelled=cases, patch=patch, batch=BATCH, classes=3, mirror=plan.mirror,
            augment=recipe.augment, sampling=recipe.sampling, device=device, seed=0, step=count,
        )  # fmt: skip
        batch: Batch = method.batch(source)
        return batch

    step = partial(stepper, recipe, plan, device=device)
    rows = {"ours": step(ours, half=half, last=True)}
    seen = tuple(ours(build_method(recipe, plan, 0)[0]).first.shape[2:])
    on_cpu = [StoredCase(case.name, image, None, (), case.spacing_mm) for case, image in zip(cases, images)]
    for workers in given.workers:
        feed = conventional(TwoViews(on_cpu, seen, recipe.augment), workers)
        for words, quick in (("our step", True), ("conventional step", False)):
            name = f"MONAI, {workers} workers, {words}"
            rows[name] = step(lambda _, feed=feed: next(feed), half=half and quick, last=quick)  # type: ignore[misc]
    clock: dict[str, list[float]] = {name: [] for name in rows}
    computed: dict[str, list[float]] = {name: [] for name in rows}
    for turn in range(given.steps + 1):
        for name, one in rows.items():
            start, before = time.perf_counter(), processor_seconds()
            one()
            if turn:
                clock[name].append(time.perf_counter() - start)
                computed[name].append(processor_seconds() - before)
    views = " x ".join(map(str, seen))
    print(
        f"\n{title}: {BATCH} images of {views}, two views each; {device}, {torch.get_num_threads()} threads, "
        f"bfloat16 {half}\n"
    )
    print(
        "| feed and step | ms a step | views/s | ours is faster by | processor ms a step | ours takes less by |"
    )
    print("|---|---|---|---|---|---|")
    for name in rows:
        wall, work = median(clock[name]), median(computed[name])
        print(
            f"| {name} | {1e3 * wall:.0f} | {2 * BATCH / wall:.1f} | {wall / median(clock['ours']):.1f} "
            f"| {1e3 * work:.0f} | {work / median(computed['ours']):.1f} |"
        )
    feeds: list[float] = []
    method = build_method(recipe, plan, 0)[0]
    for feeder in (ours, lambda _: next(conventional(TwoViews(on_cpu, seen, recipe.augment), 0))):
        spent = []
        for _ in range(3):
            before = time.process_time()
            feeder(method)
            spent.append(time.process_time() - before)
        feeds.append(min(spent))
    print(
        f"\nThe batch alone takes {1e3 * feeds[0]:.0f} ms of a processor, MONAI's {1e3 * feeds[1]:.0f} "
        f"({feeds[1] / feeds[0]:.1f} times as much).",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 2])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", choices=["2D", "3D"])
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    for title, (patch, _, width) in SHAPES.items():
        if given.only in (None, title[:2]):
            compare(title[:2], patch, width, given, choose_device(given.device))


if __name__ == "__main__":
    main()
