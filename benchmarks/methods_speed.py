"""What a step of every method costs beside the control's: images, time and peak memory, 2D and 3D, on real sets.

    python benchmarks/methods_speed.py DATA_FOLDER [--steps 4] [--threads 1] [--only fixmatch] [--sets planned 3D ACDC]

Each method, trainings and pre-trainings, does a few steps with its own recipe and the set's plan, late in its run, when
all its terms are on, in a process of its own. ``planned`` is Hippocampus as a CPU's plan has it, ``3D`` the same in 3D.
The median time of a step is of the processors, with which programs beside this one interfere least; the control is
measured first and last, and the ratio is to the mean of both. Peak memory is the most resident memory of the process, a
few cases included. DATA_FOLDER holds Task04_Hippocampus and ACDC.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch

from handful.data.plan import read_plan, write_plan
from handful.data.store import load_cases
from handful.methods import load_method, method_names
from handful.training.decisions import choose_cases, decide_plan
from handful.training.recipe import resolve
from handful.training.start import build_method, sources

SETS = {
    "planned": ("Task04_Hippocampus", "4", None),
    "3D": ("Task04_Hippocampus", "4", 3),
    "ACDC": ("ACDC", "2p", None),
}
"""Folder, budget, and dimensions where they are not the plan's choice."""

UNLABELLED = 8
"""Cases without labels that are loaded; the rest would only take time to read."""

PROGRESS = 0.8


def chosen(data: Path, labels: str) -> Any:
    """Return the data set and its selection, cut down."""
    dataset, _, selection = choose_cases(data, labels=labels)
    return dataset, selection._replace(unlabelled=selection.unlabelled[:UNLABELLED])


def one(data: Path, labels: str, plan_file: Path, name: str, steps: int) -> dict[str, float]:
    """Train a few steps in this process; return the images of one, its median seconds, and the peak in GB."""
    device = torch.device("cpu")
    _, selection = chosen(data, labels)
    plan = read_plan(plan_file)
    cases = load_cases([*selection.labelled, *selection.unlabelled], plan, folder=None, device=device).cases
    known = len(selection.labelled)
    recipe = resolve(name, over={"loop": {"steps": 1000}})
    method = build_method(recipe, plan, 0)[0]
    memory_format = torch.channels_last if plan.dims == 2 else torch.channels_last_3d
    for module in method.modules():  # as the training loop lays them out
        for parameter in module.parameters(recurse=False):
            if parameter.ndim == plan.dims + 2:
                parameter.data = parameter.data.to(memory_format=memory_format)
    source = sources(
        recipe, plan, labelled=cases[:known], unlabelled=cases[known:], one_plane=method.kind == "pretrain",
        device=device, seed=0,
    )  # fmt: skip
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-3, fused=True)
    work, clock = [], []
    for step in range(steps + 1):
        before, start = time.process_time(), time.perf_counter()
        batch = method.batch(replace(source(step), progress=PROGRESS))
        optimiser.zero_grad(set_to_none=True)
        method.step(batch, PROGRESS).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 12.0)
        optimiser.step()
        method.after_step(PROGRESS)
        work.append(time.process_time() - before)
        clock.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    images = [x for x in batch if isinstance(x, torch.Tensor) and x.ndim == plan.dims + 2]
    return {
        "images": sum(map(len, images)),
        "work": median(work[1:]),
        "clock": median(clock[1:]),
        "peak": peak,
    }


def main() -> None:
    kinds = {name: load_method(name).METHOD.kind for name in method_names()}
    every = sorted(kinds, key=lambda name: (kinds[name] == "pretrain", name))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=every, choices=every)
    parser.add_argument("--sets", nargs="*", default=list(SETS), choices=list(SETS))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.child:
        labels, plan, name = json.loads(given.child)
        print(json.dumps(one(given.data, labels, Path(plan), name, given.steps)))
        return
    for chosen_set in given.sets:
        folder, labels, dims = SETS[chosen_set]
        with tempfile.TemporaryDirectory() as temporary:
            dataset, selection = chosen(given.data / folder, labels)
            plan = decide_plan(dataset, selection, device="cpu", dims=dims)
            write_plan(Path(temporary) / "plan.yaml", plan)
            sides = " x ".join(map(str, plan.patch))
            print(
                f"\n{folder}, {plan.dims}D patches {sides}, {len(plan.planes)} planes, batch {plan.batch}, "
                f"{given.threads} threads, float32\n"
            )
            print(
                "| method | images a step | processor s a step | times the control's | s a step | peak memory |\n"
                "|---|---|---|---|---|---|"
            )
            names = ["supervised", *(name for name in given.only if name != "supervised"), "supervised"]
            found = []
            for name in names:
                asked = json.dumps([labels, f"{temporary}/plan.yaml", name])
                words = [sys.executable, __file__, str(given.data / folder), "--child", asked]
                words += ["--steps", str(given.steps), "--threads", str(given.threads)]
                environment = {**os.environ, "OMP_NUM_THREADS": str(given.threads)}
                done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
                if done.returncode:
                    raise SystemExit(f"{name}: {done.stderr}")
                found.append(json.loads(done.stdout.splitlines()[-1]))
                print(name, found[-1], file=sys.stderr, flush=True)
        control = mean(each["work"] for each in (found[0], found[-1]))
        for name, each in zip(names, found):
            print(
                f"| {name} | {each['images']:.0f} | {each['work']:.2f} | {each['work'] / control:.2f} "
                f"| {each['clock']:.2f} | {each['peak']:.2f} GB |",
                flush=True,
            )


if __name__ == "__main__":
    main()
