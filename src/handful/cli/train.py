"""``handful train``: from a folder to a segmentation model."""

from typing import Annotated

import typer

from handful.cli.console import next_command, say, training_progress
from handful.cli.options import (
    AdaptChannels,
    Data,
    Device,
    Devices,
    Draw,
    DryRun,
    Init,
    Labels,
    MaxTime,
    MethodName,
    MLflow,
    Nodes,
    Overwrite,
    PartialInit,
    Patients,
    PlanFile,
    Precision,
    Quiet,
    RecipeFile,
    RunOut,
    Seed,
    Set,
    SplitsFile,
    Steps,
    TensorBoard,
    Test,
    Threads,
    WandB,
)


def train(
    data: Data,
    *,
    out: RunOut,
    method: MethodName = None,
    labels: Labels = None,
    draw: Draw = 0,
    test: Test = None,
    splits: SplitsFile = None,
    fold: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Set fold N of the labelled cases aside and score it."),
    ] = None,
    patients: Patients = None,
    plan: PlanFile = None,
    recipe: RecipeFile = None,
    set_: Set = None,
    init: Init = None,
    adapt_channels: AdaptChannels = False,
    partial_init: PartialInit = False,
    steps: Steps = None,
    max_time: MaxTime = None,
    seed: Seed = 0,
    device: Device = "auto",
    devices: Devices = None,
    nodes: Nodes = None,
    precision: Precision = "auto",
    threads: Threads = None,
    tensorboard: TensorBoard = False,
    mlflow: MLflow = False,
    wandb: WandB = False,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Train a segmentation model; whatever is missing before (plan, cache, splits) is made on the way.

    The same command with the same --out continues an unfinished run and says so of a finished one.
    """
    from handful.training import run
    from handful.training.processes import processes

    quiet = quiet or not processes(devices, nodes).first
    with training_progress(quiet=quiet or dry_run) as report:
        run.train(
            data,
            out,
            method=method,
            labels=labels,
            draw=draw,
            test=test,
            splits=splits,
            fold=fold,
            seed=seed,
            steps=steps,
            max_time=max_time,
            plan=plan,
            patients=patients,
            recipe=recipe,
            set_=set_ or (),
            device=device,
            devices=devices,
            nodes=nodes,
            precision=precision,
            threads=threads,
            overwrite=overwrite,
            quiet=quiet,
            tensorboard=tensorboard,
            mlflow=mlflow,
            wandb=wandb,
            init=init,
            adapt_channels=adapt_channels,
            partial_init=partial_init,
            dry_run=dry_run,
            report=report,
        )
    if quiet:
        return
    if dry_run:
        say("Nothing was trained; the same command without --dry-run does it.")
    else:
        next_command("handful", "predict", out, data, "--held-out", "--out", out / "predictions")
