"""Pre-training on a set larger than the memory it may use, from compressed files, beside all of it in memory.

    python benchmarks/streaming.py [OUT] [--volumes 260] [--limit-gb 0.9] [--steps 12]

Makes volumes of 128 x 128 x 128 voxels (one phantom patient, moved, scaled and with its own noise) and runs
``pretrain`` in processes of their own: under RLIMIT_DATA, which is ``ulimit -d`` (no more anonymous memory than that;
asking for more fails), and without. Both draw the same batches, so the losses must be alike. Prints what each held at
most (peak RSS; pages of mapped files are in it, and can be dropped at any time) and the median time of a step, on the
clock and of the processors (reading ahead included), which other programs disturb less. Everything lies in a temporary
folder, made in OUT if given, and is deleted at the end.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import nibabel as nib
import numpy as np

from handful.data.phantom import draw_volume

SIZE = (128, 128, 128)
RUNS = {
    2: ("simclr", "plan.dims=2", "plan.patch=[96,96]", "method.batch=8"),
    3: ("simclr", "plan.dims=3", "plan.patch=[64,64,64]", "method.batch=4"),
}
"""Method and settings: small patches, of many volumes at each step, so that reading weighs as much as it can."""


def make_set(folder: Path, volumes: int) -> int:
    """Write the volumes; return the bytes of their files."""
    base = draw_volume(0, 0, modality="MR", size=SIZE, spacing_mm=(1.5, 1.5, 1.5), seed=0)
    image = base.image / base.image.max()
    (folder / "images").mkdir(parents=True)
    for number in range(volumes):
        rng = np.random.default_rng(number)
        moved = np.roll(image, tuple(rng.integers(-20, 20, 3)), axis=(0, 1, 2))
        noisy = moved * rng.uniform(500, 1500) + rng.normal(0, 10, moved.shape).astype(np.float32)
        file = folder / "images" / f"case_{number:03d}.nii"
        nib.save(nib.Nifti1Image(noisy.astype(np.int16), base.affine), file)
    return bytes_in(folder)


def bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


CHILD = """
import json, resource, sys, time
from pathlib import Path

given = json.loads(sys.argv[1])
if given["limit"]:
    resource.setrlimit(resource.RLIMIT_DATA, (given["limit"],) * 2)
from handful.training.run import pretrain

seen = []
plan = given["plan"] and Path(given["plan"])
pretrain(
    given["data"], given["out"], method=given["method"], set_=given["settings"], steps=given["steps"], plan=plan,
    threads=given["threads"], device="cpu", report=lambda progress: seen.append((time.process_time(), progress.row)),
)
print(json.dumps(seen))
"""


def run(
    data: Path, out: Path, dims: int, *, steps: int, threads: int, limit_gb: float | None, plan: Path | None
) -> dict[str, Any]:
    """Pre-train in a process of its own; return its peak memory and what a step took."""
    method, *settings = RUNS[dims]
    given = {
        "data": str(data), "out": str(out), "method": method, "settings": ["loop.rows=1000", *settings],
        "steps": steps, "threads": threads, "limit": int(limit_gb * 1e9) if limit_gb else 0,
        "plan": str(plan) if plan else None,
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, json.dumps(given)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    peak, anonymous, said = watched(process)
    if process.returncode:
        raise SystemExit(f"the run of {out} ended with {process.returncode}:\n{said}")
    seen = json.loads(said.splitlines()[-1])
    return {
        "streamed": "compressed files" in said,
        "peak": peak,
        "anonymous": anonymous,
        "cpu": median(after[0] - before[0] for before, after in pairwise(seen[2:])),
        "wall": median(after[1]["seconds"] - before[1]["seconds"] for before, after in pairwise(seen[2:])),
        "loss": seen[-1][1]["loss"],
        "cache": bytes_in(out),
    }


def watched(process: subprocess.Popen[str]) -> tuple[float, float, str]:
    """Wait; return the peak of all resident and of the anonymous memory in GB, and what the process printed."""
    peak = anonymous = 0.0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        told = {line.split(":")[0]: line.split()[1] for line in status.splitlines() if " kB" in line}
        peak = max(peak, int(told.get("VmHWM", 0)) * 1024 / 1e9)
        anonymous = max(anonymous, int(told.get("RssAnon", 0)) * 1024 / 1e9)
        time.sleep(0.1)
    assert process.stdout is not None
    said = process.stdout.read()
    process.wait()
    return peak, anonymous, said


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, nargs="?", help="where the temporary folder is made")
    parser.add_argument("--volumes", type=int, default=260)
    parser.add_argument("--limit-gb", type=float, default=0.9)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    prepared = given.volumes * np.prod(SIZE) * 5 / 1e9
    with tempfile.TemporaryDirectory(dir=given.out, prefix="handful-streaming-") as name:
        data = Path(name) / "set"
        files = make_set(data, given.volumes) / 1e9
        print(
            f"{given.volumes} volumes of {' x '.join(map(str, SIZE))}: {files:.1f} GB of files, {prepared:.1f} GB "
            f"prepared in memory, {prepared / given.limit_gb:.1f} times the limit of {given.limit_gb} GB\n"
        )
        print("| | limit | cases | peak RSS | of it anonymous | ms a step | CPU ms a step | last loss |")
        print("|---|---|---|---|---|---|---|---|")
        for dims in RUNS:
            plan = None
            for limit in (given.limit_gb, None):
                out = Path(name) / f"{dims}D-{limit}"
                found = run(
                    data, out, dims, steps=given.steps, threads=given.threads, limit_gb=limit, plan=plan
                )
                plan = out / "plan.yaml"
                where = (
                    f"streamed ({found['cache'] / 1e9:.1f} GB of files)" if found["streamed"] else "in memory"
                )
                print(
                    f"| {RUNS[dims][0]}, {dims}D | {'none' if limit is None else f'{limit} GB'} | {where} "
                    f"| {found['peak']:.2f} GB | {found['anonymous']:.2f} GB | {1e3 * found['wall']:.0f} "
                    f"| {1e3 * found['cpu']:.0f} | {found['loss']:.4f} |",
                    flush=True,
                )
                for file in sorted(out.rglob("*.b2nd")):
                    file.unlink()


if __name__ == "__main__":
    main()
