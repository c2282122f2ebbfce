"""Options that several commands share, so that one word means one thing everywhere."""

from pathlib import Path
from typing import Annotated

import typer


def _method_names(incomplete: str) -> list[str]:
    from handful.methods import method_names

    return [name for name in method_names() if name.startswith(incomplete)]


def _devices(incomplete: str) -> list[str]:
    return [name for name in ("auto", "cpu", "cuda", "mps") if name.startswith(incomplete)]


Data = Annotated[
    Path,
    typer.Argument(
        metavar="DATA", help="Folder of volumes (MSD, nnU-Net, images/ + labels/) or a CSV manifest."
    ),
]
Patients = Annotated[
    str | None,
    typer.Option(
        metavar="PATTERN", help="Regular expression whose first group is the patient in a case's name."
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(metavar="SPEC", help="Budget of labels: 10 (cases), 10p (patients), 5%, or @file of ids."),
]
Draw = Annotated[int, typer.Option(min=0, help="Which draw of the budget; draws are nested across budgets.")]
Test = Annotated[
    str | None,
    typer.Option(
        metavar="SPEC", help="Hold out as test set: 40 (cases), 20p (patients), 20%, or @file of ids."
    ),
]
SplitsFile = Annotated[
    Path | None,
    typer.Option("--splits", metavar="FILE", help="A splits.json to use as it is, instead of drawing."),
]
Seed = Annotated[int, typer.Option(min=0, help="Of everything that is random in this command.")]
Device = Annotated[
    str, typer.Option(metavar="NAME", autocompletion=_devices, help="auto, cpu, cuda, cuda:1 or mps.")
]
Precision = Annotated[str, typer.Option(metavar="NAME", help="auto, 32, bf16 or fp16.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; all of them if not given.")]
Devices = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=1, help="Train on N GPUs (with --device cpu, N processes) of this machine."
    ),
]
Nodes = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Train on N machines (docs/distributed.md).")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but problems.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
MethodName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        autocompletion=_method_names,
        help="One of handful methods, or a dotted module; of a training, auto unless named.",
    ),
]
RunOut = Annotated[
    Path, typer.Option("--out", metavar="RUN", help="Folder of the run; an unfinished one goes on exactly.")
]
Init = Annotated[Path | None, typer.Option(metavar="RUN", help="Start from the weights of another run.")]
AdaptChannels = Annotated[
    bool, typer.Option("--adapt-channels", help="Spread --init's first convolution over other channels.")
]
PartialInit = Annotated[
    bool, typer.Option("--partial-init", help="Accept that less than 99 % of --init's tensors match.")
]
RecipeFile = Annotated[
    Path | None,
    typer.Option("--recipe", metavar="FILE", help="A recipe.yaml, or the name of one of handful's."),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="One setting of the recipe; repeatable."),
]
PlanFile = Annotated[Path | None, typer.Option("--plan", metavar="FILE", help="A plan.yaml, perhaps edited.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Length of the training.")]
MaxTime = Annotated[str | None, typer.Option(metavar="TIME", help="Or its duration: 90s, 20m, 1h30m.")]
TensorBoard = Annotated[bool, typer.Option("--tensorboard", help="Also write TensorBoard's event files.")]
MLflow = Annotated[
    bool, typer.Option("--mlflow", help="Also log to MLflow: RUN/mlflow, or MLFLOW_TRACKING_URI.")
]
WandB = Annotated[
    bool, typer.Option("--wandb", help="Also log to Weights & Biases, offline unless WANDB_MODE says so.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Decide and print everything; train nothing.")]
