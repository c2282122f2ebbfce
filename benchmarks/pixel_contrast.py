"""What the exact pixel contrast costs, forward and backward, beside the matrix form and the published approximations.

    python benchmarks/pixel_contrast.py [--threads 2] [--device cpu] [--large] [--into docs/benchmarks.md]

"exact" is what ``pixel_contrast`` does by default: few anchors in one pass over whole rows, many by tiles. "tiles"
takes tiles for the few too; "inside" is a form of the loss that needs the sums over each anchor's own class.

Every row runs in a process of its own: the fastest of a few calls by the clock, the processor time of that call (busy
machines: a quiet one would need this divided by the threads), and how far the process's memory rose above what it
held with the inputs in place (on a GPU: the allocator's peak above the inputs). On a CPU the exact form's time is also
compared with what its products and exponentials alone would take at the rates that this machine reaches for both,
measured in the same process: a number that machines share.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from handful.losses import pixel_contrast, streamed
from marked import MarkedPage

TEMPERATURE = 0.1
WAYS = ("exact", "tiles", "inside", "matrix", "block 16", "stride 4", "bfloat16")
# images, views, width, spatial size, share of foreground; where all is foreground, all pixels are anchors
CASES: dict[str, tuple[int, int, int, tuple[int, ...], float]] = {
    "a 64 x 64 slice, two views": (1, 2, 32, (64, 64), 1.0),
    "two 64 x 64 slices, two views": (2, 2, 32, (64, 64), 1.0),
    "a hippocampus volume, two views of 50 x 25 x 25": (1, 2, 32, (50, 25, 25), 0.05),
    "eight slices, two views": (8, 2, 32, (64, 64), 1.0),
    "eight slices, two views, wide": (8, 2, 64, (64, 64), 1.0),
    "32 slices, two views": (32, 2, 32, (64, 64), 1.0),
}
QUICK = 3
# five matrices of N x N float32 have to fit
MATRIX_LIMIT = 16_384
# beyond this, only what is to be shown about memory
LONG = 65_536


def matrix_form(z: Tensor, labels: Tensor) -> Tensor:
    """The published way: all similarities and masks at once."""
    flat = torch.nn.functional.normalize(z, dim=2).movedim(2, -1).flatten(0, -2)
    group = labels.flatten()
    similarity = flat @ flat.T / TEMPERATURE
    others = 1 - torch.eye(len(flat), device=z.device)
    positives = (group[:, None] == group).float() * others
    log_sum = (torch.exp(similarity) * others).sum(1, keepdim=True).log()
    cost = -(positives * (similarity - log_sum)).sum(1) / positives.sum(1)
    anchors = group != 0
    return (cost * anchors).sum() / anchors.sum()


def way_to(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    if name == "matrix":
        return matrix_form
    if name == "tiles":
        streamed.FEW = 0
    settings: dict[str, Any] = {
        "exact": {},
        "tiles": {},
        "inside": {"form": "inside"},
        "block 16": {"block": 16},
        "stride 4": {"stride": 4},
        "bfloat16": {"products": "bfloat16"},
    }[name]
    return partial(pixel_contrast, temperature=TEMPERATURE, **settings)


def make(case: str, device: str) -> tuple[Tensor, Tensor]:
    images, views, width, size, foreground = CASES[case]
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(images, views, width, *size, generator=generator)
    # classes 1..3 in one view; the other view has the same
    labels = torch.randint(1, 4, (images, 1, *size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) >= foreground] = 0
    return z.to(device).requires_grad_(), labels.expand(-1, views, *[-1] * len(size)).to(device)


def arithmetic_floor(case: str, name: str) -> float | None:
    """Return the seconds of a form's products and exponentials at this machine's rates; None where it is not exact."""
    images, views, width, size, foreground = CASES[case]
    n = images * views * torch.Size(size).numel()
    if name == "exact" and foreground <= streamed.FEW:
        # one product for the similarities, two for the gradient
        pairs, products, exponentials = foreground * n * n, 3, 1
    elif name in ("exact", "tiles"):
        # each pair once where both ends are anchors; similarities and exponentials again for the gradient's products
        pairs, products, exponentials = (foreground - foreground**2 / 2) * n * n, 4, 2
    else:
        return None
    from training import matrix_rate  # not before memory is read: it imports the whole training

    product = 2 / (1e9 * matrix_rate(torch.float32, torch.device("cpu")))
    some = torch.rand(torch.get_num_threads() * 2**16)
    exponential = fastest(lambda: some.exp2_().sub_(1), calls=200) / len(some)
    return pairs * (products * width * product + exponentials * exponential)


def fastest(call: Callable[[], object], *, calls: int) -> float:
    """Return the seconds of the fastest of some calls."""
    best = float("inf")
    for _ in range(calls):
        started = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - started)
    return best


def measure(case: str, name: str, *, device: str, threads: int) -> dict[str, float | None]:
    torch.set_num_threads(threads)
    z, labels = make(case, device)
    loss = way_to(name)

    def step() -> None:
        z.grad = None
        loss(z, labels).backward()

    # a tiny call first: libraries and threads are there before memory is read
    small = torch.randn(1, 2, 32, 16, 16, device=device, requires_grad=True)
    loss(small, torch.ones(1, 2, 16, 16, dtype=torch.int64, device=device)).backward()
    clock, used = time.perf_counter(), time.process_time()
    if device == "cpu":
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        step()
        # the gradient itself is an output
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 - z.numel() * 4
    else:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        peak = torch.cuda.max_memory_allocated() - before - z.numel() * 4
    best, processor = time.perf_counter() - clock, time.process_time() - used
    started = time.perf_counter()
    # the first call is cold, but where it takes this long nothing of that is seen
    for _ in range(20 if best < 20 else 0):
        clock, used = time.perf_counter(), time.process_time()
        step()
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - clock)
        processor = min(processor, time.process_time() - used)
        if time.perf_counter() - started > 3:
            break
    floor = arithmetic_floor(case, name) if device == "cpu" else None
    return {"seconds": best, "processor": processor, "peak_mb": max(0.0, peak / 1e6), "floor": floor}


def table(asked: argparse.Namespace) -> Iterator[str]:
    """Yield the lines of the table, each as soon as it is measured."""
    threads = "one thread" if asked.threads == 1 else f"{asked.threads} threads"
    yield f"torch {torch.__version__}, {asked.device}, {threads}, forward and backward:"
    yield ""
    yield "| case | N | E | way | ms | processor ms | MB beyond inputs | times the exact form | times its arithmetic |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for case in list(CASES)[: None if asked.large else QUICK]:
        images, views, width, size, foreground = CASES[case]
        n = images * views * torch.Size(size).numel()
        exact = None
        for name in WAYS:
            if (
                (name == "matrix" and n > MATRIX_LIMIT)
                or (name == "tiles" and foreground > streamed.FEW)
                or (name == "inside" and n > LONG)
                or (name == "bfloat16" and asked.device == "cpu")
            ):
                continue
            command = [sys.executable, __file__, "--one", case, name]
            command += ["--threads", str(asked.threads), "--device", asked.device]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                reason = (done.stderr.splitlines() or ["killed: out of memory?"])[-1]
                yield f"| {case} | {n:,} | {width} | {name} | {reason} | | | | |"
                continue
            row = json.loads(done.stdout.splitlines()[-1])
            exact = exact or row["seconds"]
            arithmetic = f"{row['seconds'] / row['floor']:.2f}" if row["floor"] else ""
            yield (
                f"| {case} | {n:,} | {width} | {name} | {row['seconds'] * 1e3:.1f} | {row['processor'] * 1e3:.0f} "
                f"| {row['peak_mb']:.1f} | {row['seconds'] / exact:.2f} | {arithmetic} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--large", action="store_true", help="up to 262,144 pixels: minutes on a CPU")
    parser.add_argument(
        "--into",
        type=lambda path: MarkedPage(Path(path), "pixel contrast"),
        help="a page whose table is to be replaced",
    )
    parser.add_argument("--one", nargs=2, metavar=("CASE", "WAY"), help="measure one row, as JSON")
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(*asked.one, device=asked.device, threads=asked.threads)))
        return
    lines = []
    for line in table(asked):
        print(line, flush=True)
        lines.append(line)
    if asked.into:
        asked.into.replace(lines)


if __name__ == "__main__":
    main()
