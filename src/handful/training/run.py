"""Train one model: from a folder of volumes to a run folder, doing whatever is missing on the way."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric
from torch import nn

from handful.artefacts import read_json, write_json, write_yaml
from handful.data.plan import Plan, explain
from handful.data.sampling import StoredCase, sharing_draws
from handful.data.splits import write_splits
from handful.data.store import load_cases
from handful.methods.contract import Method
from handful.networks.weights import save_weights
from handful.training.beforehand import said_beforehand
from handful.training.decisions import decide_plan
from handful.training.fabric import started
from handful.training.folder import RunFolder
from handful.training.loggers import chosen_loggers
from handful.training.loop import Progress, fit
from handful.training.record import asked_of, is_finished, manifest_of, now, weights_header
from handful.training.settle import settle
from handful.training.stage import Stage
from handful.training.stages import first_stage, teacher_stage
from handful.training.start import build_method, checkup_of, eaten, rehearse, sources, start_from
from handful.training.synthetic import with_synthetic
from handful.training.teaching import seconds_of, taught_cases
from handful.training.watch import draw_progress, watch


def train(
    data: Path | str,
    out: Path | str,
    *,
    method: str | None = None,
    labels: str | None = None,
    draw: int = 0,
    test: str | None = None,
    splits: Path | None = None,
    fold: int | None = None,
    seed: int = 0,
    steps: int | None = None,
    max_time: str | None = None,
    plan: Path | None = None,
    patients: str | None = None,
    recipe: Path | None = None,
    set_: Sequence[str] = (),
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    tensorboard: bool = False,
    mlflow: bool = False,
    wandb: bool = False,
    init: Path | None = None,
    adapt_channels: bool = False,
    partial_init: bool = False,
    dry_run: bool = False,
    devices: int | None = None,
    nodes: int | None = None,
    report: Callable[[Progress], None] | None = None,
) -> Path:
    """Train a segmentation model on a partly labelled folder.

    The same call with the same ``out`` continues an unfinished run exactly, says so of a finished one, and refuses
    a different recipe there.

    Args:
        data: a data set folder or CSV manifest (see ``handful check``).
        out: the run folder.
        method: a file of ``handful.methods`` or a dotted module; ``auto`` unless the recipe says otherwise.
        labels: budget, ``10``, ``10p``, ``5%`` or ``@file``; None uses every label.
        draw: which draw of the budget.
        test: cases to hold out (``40``, ``20p``, ``20%``, ``@file``), besides those the data set holds out itself.
        splits: a ``splits.json`` to follow instead of ``test`` and ``seed``.
        fold: train on all folds of the labelled cases but this one, then score this one (``RUN/validation/``). None
            trains on all of them, which is right when they are few: the score of one or two cases says little.
        seed: of the split, the weights and every random draw.
        steps: optimiser steps; with neither ``steps`` nor ``max_time``, ``DEFAULT_STEPS``.
        max_time: training time, for example ``20m``.
        plan: a ``plan.yaml`` to follow instead of making one.
        patients: regular expression whose first group is the patient in a case's name.
        recipe: a YAML file of settings.
        set_: single settings, ``["loop.lr=0.001"]``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        precision: ``auto``, ``32``, ``bf16`` or ``fp16``.
        threads: CPU threads; None leaves torch's choice.
        overwrite: start over where ``out`` holds another run.
        quiet: print nothing.
        tensorboard: also write TensorBoard events (extra ``tensorboard``).
        mlflow: also log to MLflow (extra ``mlflow``), in the run folder unless ``MLFLOW_TRACKING_URI`` is set.
        wandb: also log to Weights & Biases (extra ``wandb``), offline unless ``WANDB_MODE`` is set.
        init: a run (of ``pretrain`` or ``train``) whose weights this one starts from; its plan must give the network
            the same images.
        adapt_channels: where ``init`` saw another number of input channels, spread its first convolution over ours.
        partial_init: accept that less than 99 % of the tensors match.
        dry_run: decide and print everything, train nothing.
        devices: processes on this machine that train together, one device and one batch each; None: as many as
            torchrun or SLURM started, else one. The first starts the others, which run this very program again.
        nodes: machines, each running this program (docs/distributed.md).
        report: called with the progress at every row of the metrics.

    Returns:
        The run folder.

    Raises:
        UsageError, DataError, RunError: in words, with what to do.

    Example:
        >>> run = train(Path("Task04_Hippocampus"), Path("runs/two-labels"), labels="2", test="40", max_time="10m")
    """
    loggers = chosen_loggers(tensorboard=tensorboard, mlflow=mlflow, wandb=wandb)
    stage = settle(
        "train",
        Path(data),
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
        set_=set_,
        device=device,
        precision=precision,
        threads=threads,
        init=init,
        adapt_channels=adapt_channels,
        partial_init=partial_init,
        devices=devices,
        nodes=nodes,
    )
    out = Path(out)
    if dry_run:
        print_decisions(stage)
    else:
        run_stage(stage, out, overwrite=overwrite, quiet=quiet, loggers=loggers, report=report)
    return out


def pretrain(
    data: Path | str,
    out: Path | str,
    *,
    method: str | None = None,
    labels: str | None = None,
    draw: int = 0,
    test: str | None = None,
    splits: Path | None = None,
    seed: int = 0,
    steps: int | None = None,
    max_time: str | None = None,
    plan: Path | None = None,
    patients: str | None = None,
    recipe: Path | None = None,
    set_: Sequence[str] = (),
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    tensorboard: bool = False,
    mlflow: bool = False,
    wandb: bool = False,
    init: Path | None = None,
    adapt_channels: bool = False,
    partial_init: bool = False,
    dry_run: bool = False,
    devices: int | None = None,
    nodes: int | None = None,
    report: Callable[[Progress], None] | None = None,
) -> Path:
    """Learn an encoder, perhaps a decoder too, from all training images; ``train(init=...)`` starts from them.

    Give the ``labels``, ``draw``, ``test`` and ``seed`` of the training that follows: then neither a held-out image
    nor a label outside the budget is learned from.

    Args:
        data, out, draw, test, splits, seed, steps, max_time, plan, patients, recipe, set_, device, precision, threads,
            overwrite, quiet, tensorboard, mlflow, wandb, init, adapt_channels, partial_init, dry_run, devices, nodes,
            report: as for ``train``.
        method: a pre-training method (``handful methods``), or None if the recipe names it.
        labels: budget of a method that learns from labels too; None is every label.

    Returns:
        The run folder.

    Raises:
        UsageError, DataError, RunError: in words, with what to do.

    Example:
        >>> run = pretrain("Task04_Hippocampus", "runs/pcl", method="pcl", test="40", steps=500)  # doctest: +SKIP
        >>> train("Task04_Hippocampus", "runs/two", init=run, labels="2", test="40")  # doctest: +SKIP
    """
    loggers = chosen_loggers(tensorboard=tensorboard, mlflow=mlflow, wandb=wandb)
    stage = settle(
        "pretrain",
        Path(data),
        method=method,
        labels=labels,
        draw=draw,
        test=test,
        splits=splits,
        fold=None,
        seed=seed,
        steps=steps,
        max_time=max_time,
        plan=plan,
        patients=patients,
        recipe=recipe,
        set_=set_,
        device=device,
        precision=precision,
        threads=threads,
        init=init,
        adapt_channels=adapt_channels,
        partial_init=partial_init,
        devices=devices,
        nodes=nodes,
    )
    out = Path(out)
    if dry_run:
        print_decisions(stage)
    else:
        run_stage(stage, out, overwrite=overwrite, quiet=quiet, loggers=loggers, report=report)
    return out


def print_decisions(stage: Stage) -> None:
    """Print the plan of a training and what it would learn from, writing nothing."""
    asked_of(stage)  # reads what the training would read, so that it is refused now
    plan = _decide(stage)
    for what, value, why in explain(plan):
        print(f"{what}: {value}  ({why})")
    for note in (*said_beforehand(stage, plan), *rehearse(stage, plan)):
        print(note)
    print(f"{stage.describe()}; nothing trained.")


def run_stage(
    stage: Stage,
    out: Path,
    *,
    overwrite: bool = False,
    quiet: bool = False,
    loggers: Sequence[str] = (),
    report: Callable[[Progress], None] | None = None,
) -> None:
    """Train in one run folder, or go on where an earlier call was interrupted; a finished run is left alone.

    Args:
        stage: what to train.
        out: the run folder.
        overwrite, quiet, report: see ``train``.
        loggers: names of ``handful.training.loggers``.
    """
    asked = asked_of(stage)
    first = stage.processes.first
    folder = RunFolder(out, quiet=quiet, writes=first)
    with folder.locked():
        # asked before the others start: none of them needs to be told
        if (first or not overwrite) and is_finished(folder, asked, overwrite=overwrite):
            folder.say(f"{out} holds this run, finished; nothing to do. --overwrite trains it again.")
            return
        with folder.freed_if_refused():
            plan = _begin(stage, folder, asked) if first else None
            follow = partial(run_stage, overwrite=overwrite, quiet=quiet, loggers=loggers, report=report)
            stage = _earlier_stages(stage, folder, follow)
            if first:
                write_json(folder.manifest, manifest_of(stage, asked["data"]["hash"]))
            with started(
                stage.device, stage.precision, stage.processes, trains_all=stage.method.trains_all
            ) as fabric:
                stage = replace(stage, device=fabric.device)
                plan = fabric.broadcast(plan)
                assert plan is not None
                with watch(folder, report, loggers=loggers) as look:
                    parts, architecture, parameters = learn(stage, plan, folder, fabric, look)
                if first:
                    header = weights_header(stage, plan, architecture, read_json(folder.manifest))
                    save_weights(folder.weights, parts, header)
                fabric.barrier()  # whoever goes on finds the weights
        if first:
            _finish(stage, folder, parameters)


def _earlier_stages(stage: Stage, folder: RunFolder, follow: Callable[[Stage, Path], None]) -> Stage:
    """Run what comes before the training itself; return the training that goes on from there."""
    if stage.recipe.teach is not None and not stage.selection.unlabelled:
        # nothing to teach: one training of the whole length
        stage = replace(stage, recipe=replace(stage.recipe, teach=None))
    many = len([part for part in stage.recipe.stages() if part is not None])
    number = 1
    if (before := first_stage(stage, folder)) is not None:
        name = before.recipe.name
        folder.say(f"stage 1 of {many}: pre-training with {name}, {_length(before)}, in {folder.pretrain}")
        follow(before, folder.pretrain)
        stage = replace(stage, init=folder.pretrain)
        number += 1
    if (teacher := teacher_stage(stage, folder)) is not None:
        name = teacher.recipe.name
        folder.say(
            f"stage {number} of {many}: a teacher with {name}, {_length(teacher)}, in {folder.teacher}"
        )
        follow(teacher, folder.teacher)
        stage = replace(stage, taught=taught_cases(stage, folder))
        number += 1
    if many > 1:
        begin = " from there" if before is not None and teacher is None else ""
        folder.say(f"stage {number} of {many}: training with {stage.recipe.name}{begin}")
    return stage


def _length(stage: Stage) -> str:
    loop = stage.recipe.loop
    return f"{loop.steps} steps" if loop.steps else f"{loop.max_time_s:g} s"


def _decide(stage: Stage, folder: RunFolder | None = None) -> Plan:
    """Return the plan of a training, kept in its folder if there is one."""
    return decide_plan(
        stage.dataset,
        stage.selection,
        device=stage.device.type,
        plan=stage.plan,
        fixed=stage.recipe.plan,
        folder=folder,
        structures=stage.segments,
    )


def _begin(stage: Stage, folder: RunFolder, asked: dict[str, Any]) -> Plan:
    """Write what the run was asked and what it starts from; return its plan."""
    if not folder.recipe.exists():
        write_yaml(folder.recipe, asked, comment="Everything this run was asked to do; enough to repeat it.")
    write_splits(folder.splits, stage.splits)
    plan = _decide(stage, folder)
    rehearse(stage, plan)
    for note in filter(
        None, (*stage.dataset.notes, stage.selection.note, *said_beforehand(stage, plan, folder))
    ):
        folder.say(note)
    return plan


def _finish(stage: Stage, folder: RunFolder, parameters: int) -> None:
    """Score the fold that did not train, draw the curves, and say in the manifest that the run is whole."""
    if stage.validation:
        _validate(stage, folder)
    draw_progress(folder)
    rows = folder.read_metrics()
    manifest = read_json(folder.manifest) | {
        "parameters": parameters,
        "finished": now(),
        "steps": int(rows[-1]["step"]) if rows else 0,
        "seconds": rows[-1]["seconds"] if rows else 0.0,
    }
    if stage.recipe.pretrain is not None:
        manifest["pretrain_seconds"] = read_json(folder.pretrain / "manifest.json")["seconds"]
    if stage.taught:
        manifest["teach_seconds"] = seconds_of(folder)
    write_json(folder.manifest, manifest)
    folder.synthetic.unlink(missing_ok=True)
    folder.say(
        f"trained {manifest['steps']} steps in {manifest['seconds']:.0f} s; weights in {folder.weights}"
    )


def learn(
    stage: Stage, plan: Plan, folder: RunFolder, fabric: Fabric, look: Callable[[Progress], None]
) -> tuple[dict[str, nn.Module], dict[str, Any], int]:
    """Load the cases, build the method and train it; return its parts, their architecture, its parameters' number."""
    taught = {case.name: case for case in stage.taught}
    cases = [*stage.selection.labelled, *(taught.get(case.name, case) for case in stage.unlabelled)]
    loaded = load_cases(cases, plan, folder=folder.path, device=stage.device, sharing=stage.processes.devices)
    count, world = len(stage.selection.labelled), stage.processes.world
    several = f" on each of {world} processes" if world > 1 else ""

    def snapshot(step: int, parts: Mapping[str, nn.Module]) -> None:
        if folder.writes:
            header = weights_header(stage, plan, architecture, read_json(folder.manifest))
            save_weights(folder.snapshot(step), parts, header)

    def start(method: Method) -> Collection[str]:
        began = start_from(stage, method, plan)
        for line in began.said:
            folder.say(line)
        return began.parts

    loop = stage.recipe.stages().train.loop
    method, architecture = build_method(
        stage.recipe, plan, stage.seed, start=None if stage.init is None else start
    )
    labelled: Sequence[StoredCase] = loaded.cases[:count]
    others = [replace(case, label=None, foreground=()) for case in loaded.cases[count:]]
    if method.kind == "train" and stage.recipe.sampling.synthetic:
        labelled, took = with_synthetic(
            labelled, others, settings=stage.recipe.sampling, loop=loop,
            classes=len(plan.label_values), seed=stage.seed, folder=folder, fabric=fabric,
        )  # fmt: skip
        if loop.max_time_s is not None:
            loop = replace(loop, max_time_s=max(loop.max_time_s - took, loop.max_time_s / 2))
        if folder.writes:
            write_json(folder.manifest, read_json(folder.manifest) | {"synthetic_seconds": took})
    if stage.recipe.teach is not None:
        learned = [case for case in loaded.cases[count:] if case.name in taught]
        labelled = sharing_draws(labelled, learned, share=stage.recipe.teach.draws)
    source = sources(
        stage.recipe,
        plan,
        labelled=labelled,
        unlabelled=others,
        one_plane=method.kind == "pretrain",
        device=stage.device,
        seed=stage.seed,
        processes=stage.processes,
    )
    folder.say(
        f"{stage.describe()}, on {stage.device} ({stage.precision}), {eaten(method, source(0))}{several}"
        + (", read from compressed files, as the cases would not fit into memory" if loaded.streamed else "")
    )
    parts = fit(
        method,
        source,
        settings=loop.in_steps(
            images=_images([*labelled, *others], plan),
            batch=getattr(stage.recipe.method, "batch", plan.batch) * world,
        ),
        fabric=fabric,
        folder=folder,
        seed=stage.seed,
        prefetch=loaded.streamed,
        checkup=checkup_of(stage, plan, loaded.cases[:count]) if method.kind == "pretrain" else None,
        report=look,
        snapshot=snapshot,
    )
    return parts, architecture, sum(p.numel() for p in method.parameters())


def _images(cases: Sequence[StoredCase], plan: Plan) -> int:
    """Return how many images an epoch has: volumes, or their slices along every axis that is cut."""
    if plan.dims == 3:
        return len(cases)
    return sum(case.image.shape[1 + order[0]] for case in cases for order in plan.planes)


def _validate(stage: Stage, folder: RunFolder) -> None:
    """Predict and score the fold that did not train."""
    from handful.inference.predict import predict
    from handful.metrics.evaluate import evaluate

    out, names = folder.path / "validation", [case.name for case in stage.validation]
    predict([folder.path], stage.data, out, only=names, device=str(stage.device), overwrite=True)
    score = evaluate(out, stage.data, out=out, cases=names).mean["dice"]
    words = "nothing could be scored" if score is None else f"mean Dice {score:.3f}"
    folder.say(f"validation on {len(names)} cases that did not train: {words} ({out / 'summary.json'})")
