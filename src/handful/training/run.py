"""Train one model: from a folder of volumes to a run folder, doing whatever is missing on the way."""

import datetime
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

import handful
from handful.artefacts import hash_of, hash_of_file, read_json, read_yaml, write_json, write_yaml
from handful.data.cases import Case, Dataset
from handful.data.discover import content_hash
from handful.data.plan import Plan, explain
from handful.data.sampling import Source
from handful.data.splits import Selection, folds, validation_rule, write_splits
from handful.data.store import load_cases
from handful.device import choose_device, choose_precision, use_threads
from handful.errors import DataError, UsageError
from handful.methods import load_method
from handful.methods.contract import Method
from handful.networks.build import build_network, unet_architecture
from handful.networks.weights import load_into, load_weights, save_weights
from handful.training.decisions import choose_cases, decide_plan
from handful.training.fabric import make_fabric
from handful.training.folder import RunFolder, weights_of
from handful.training.loop import Progress, fit
from handful.training.recipe import Recipe, parse_duration, resolve

DEFAULT_STEPS = 1000
"""Steps of a run that names neither steps nor a time limit."""


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
    init: Path | None = None,
    dry_run: bool = False,
    report: Callable[[Progress], None] | None = None,
) -> Path:
    """Train a segmentation model on a partly labelled folder.

    The same call with the same ``out`` continues an unfinished run exactly, says so of a finished one, and refuses
    a different recipe there.

    Args:
        data: a data set folder or CSV manifest (see ``handful check``).
        out: the run folder.
        method: a file of ``handful.methods`` or a dotted module; ``supervised`` unless the recipe says otherwise.
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
        init: a run whose weights this one starts from; its plan must give the network the same images.
        dry_run: decide and print everything, train nothing.
        report: called with the progress at every row of the metrics.

    Returns:
        The run folder.

    Raises:
        UsageError, DataError, RunError: in words, with what to do.

    Example:
        >>> run = train(Path("Task04_Hippocampus"), Path("runs/two-labels"), labels="2", test="40", max_time="10m")
    """
    data, out = Path(data), Path(out)
    use_threads(threads)
    where = choose_device(device)
    exactness = choose_precision(precision, where)
    length: dict[str, Any] = {}
    if steps is not None:
        length["steps"] = steps
    if max_time is not None:
        length["max_time_s"] = parse_duration(max_time)
    resolved = resolve(
        method, file=recipe, assignments=set_, over={"loop": length}, default_steps=DEFAULT_STEPS
    )
    dataset, parts, selection = choose_cases(
        data, labels=labels, draw=draw, test=test, splits=splits, seed=seed, patients=patients
    )
    selection, validation = _divide(selection, fold)
    _check_needs(resolved, selection)

    data_hash = content_hash(dataset)
    asked = {
        "handful": handful.__version__,
        **resolved.as_dict(),
        "data": {"name": dataset.name, "hash": data_hash},
        "labels": labels,
        "draw": draw,
        "labelled": [case.name for case in selection.labelled],
        "unlabelled": [case.name for case in selection.unlabelled],
        "validation": [case.name for case in validation],
        "test": [case.name for case in selection.test],
        "seed": seed,
        "precision": exactness,
        "plan_file": hash_of(read_yaml(plan)) if plan else None,
        "init": hash_of_file(weights_of(init)) if init else None,
    }
    if dry_run:
        for what, value, why in explain(decide_plan(dataset, selection, device=where.type, plan=plan)):
            print(f"{what}: {value}  ({why})")
        print(f"{resolved.name}: {_counts(resolved, selection)}; nothing trained.")
        return out

    folder = RunFolder(out, quiet=quiet)
    with folder.locked():
        if _finished(folder, asked, overwrite=overwrite):
            folder.say(f"{out} holds this run, finished; nothing to do. --overwrite trains it again.")
            return out
        if not folder.recipe.exists():
            write_yaml(
                folder.recipe, asked, comment="Everything this run was asked to do; enough to repeat it."
            )
        write_splits(folder.splits, parts)
        decided = decide_plan(dataset, selection, device=where.type, plan=plan, folder=folder)
        manifest = _manifest(dataset, data_hash, selection, validation, resolved, where, exactness, seed)
        write_json(folder.manifest, manifest)
        for note in (*dataset.notes, selection.note):
            if note:
                folder.say(note)

        def source_of(step: int) -> Source:
            return Source(
                labelled=stored,
                unlabelled=others,
                patch=decided.patch,
                classes=len(decided.label_values),
                batch=decided.batch,
                mirror=decided.mirror,
                augment=resolved.augment,
                sampling=resolved.sampling,
                device=where,
                seed=seed,
                step=step,
            )

        needs = load_method(resolved.name).METHOD.needs
        loaded = load_cases(
            [*selection.labelled, *(selection.unlabelled if needs.unlabelled else ())],
            decided,
            folder=folder.path,
            device=where,
        )
        stored, others = loaded.cases[: len(selection.labelled)], loaded.cases[len(selection.labelled) :]
        folder.say(
            f"{resolved.name}: {_counts(resolved, selection)}, on {where} ({exactness}), {decided.dims}D patches "
            f"{' x '.join(map(str, decided.patch))}, batch {decided.batch}"
        )
        model, architecture = build_method(resolved, decided, seed)
        if init is not None:
            folder.say(_start_from(init, model, decided))
        manifest["parameters"] = sum(p.numel() for p in model.parameters())
        fabric = make_fabric(where, exactness)
        watch = _watch(folder, report, tensorboard=tensorboard)
        trained = fit(
            model, source_of, settings=resolved.loop, fabric=fabric, folder=folder, seed=seed,
            prefetch=loaded.streamed, report=watch,
        )  # fmt: skip
        save_weights(
            folder.weights,
            trained,
            {
                "format": 1,
                "version": handful.__version__,
                "method": resolved.name,
                "architecture": architecture,
                "plan": asdict(decided),
                "label_names": list(decided.label_names),
                "data_hash": asked["data"]["hash"],
                "labelled": asked["labelled"],
            },
        )
        if validation:
            _validate(folder, data, validation, str(where))
        rows = folder.read_metrics()
        _write_progress(folder)
        manifest |= {
            "finished": _now(),
            "steps": int(rows[-1]["step"]) if rows else 0,
            "seconds": rows[-1]["seconds"] if rows else 0.0,
        }
        write_json(folder.manifest, manifest)
        folder.say(
            f"trained {manifest['steps']} steps in {manifest['seconds']:.0f} s; weights in {folder.weights}"
        )
    return out


def build_method(recipe: Recipe, plan: Plan, seed: int) -> tuple[Method, dict[str, Any]]:
    """Build the planned network inside its method, weights drawn from ``seed``; also return the architecture."""
    torch.manual_seed(seed)
    sizes = asdict(plan.network)
    architecture = unet_architecture(
        dims=plan.dims, in_channels=len(plan.channels), classes=len(plan.label_values), **sizes
    )
    network: nn.Module = build_network(architecture)
    method: Method = load_method(recipe.name).METHOD(network, recipe.method)
    return method, architecture


def _start_from(init: Path, method: Method, plan: Plan) -> str:
    """Load another run's network into this one's; refuse weights that were trained on differently made images."""
    parts, metadata = load_weights(weights_of(init))
    theirs = metadata.get("plan", {})
    for field in ("dims", "axes", "spacing_mm"):
        mine = asdict(plan)[field]
        if hash_of(theirs.get(field)) != hash_of(mine):
            raise UsageError(
                f"--init {init}: its plan has {field} = {theirs.get(field)}, this run's plan has {mine}; its weights "
                f"would see other images. Train with its plan: --plan {init / 'plan.yaml'}."
            )
    if "segmenter" not in parts:
        raise UsageError(f"--init {init}: it holds {', '.join(parts)}, not a segmentation network.")
    return f"started from {init}: {load_into(method.exports()['segmenter'], parts['segmenter'])}"


def _divide(selection: Selection, fold: int | None) -> tuple[Selection, tuple[Case, ...]]:
    """Take one fold of the labelled cases out for validation, if there are enough of them to say something."""
    if fold is None:
        return selection, ()
    count = validation_rule(len(selection.labelled), len({case.patient for case in selection.labelled}))
    if count == 0:
        raise UsageError(
            f"--fold {fold}: {len(selection.labelled)} labelled cases are too few to set some aside; leave --fold "
            "away and all of them train."
        )
    if not 0 <= fold < count:
        raise UsageError(f"--fold {fold} does not exist: these labelled cases make folds 0 to {count - 1}.")
    part = folds(selection, count)[fold]
    return selection._replace(labelled=part.train), part.validation


def _validate(folder: RunFolder, data: Path, validation: Sequence[Case], device: str) -> None:
    """Predict and score the fold that did not train."""
    from handful.inference.predict import predict
    from handful.metrics.evaluate import evaluate

    out, names = folder.path / "validation", [case.name for case in validation]
    predict([folder.path], data, out, only=names, device=device, overwrite=True)
    score = evaluate(out, data, out=out, cases=names).mean["dice"]
    words = "nothing could be scored" if score is None else f"mean Dice {score:.3f}"
    folder.say(f"validation on {len(names)} cases that did not train: {words} ({out / 'summary.json'})")


def _counts(recipe: Recipe, selection: Selection) -> str:
    hidden = f"{len(selection.unlabelled)} unlabelled cases"
    unused = "" if load_method(recipe.name).METHOD.needs.unlabelled else " (which it does not use)"
    return f"{len(selection.labelled)} labelled and {hidden}{unused}, {len(selection.test)} held out"


def _check_needs(recipe: Recipe, selection: Selection) -> None:
    needs = load_method(recipe.name).METHOD.needs
    if needs.labels and not selection.labelled:
        raise DataError(
            f"method '{recipe.name}' learns from labels and this data has no labelled training case. "
            "Put label maps beside some images (see handful check)."
        )


def _finished(folder: RunFolder, asked: dict[str, Any], *, overwrite: bool) -> bool:
    """Say whether this very run is complete; clear or refuse a different one."""
    if overwrite:
        folder.clear()
        return False
    if not folder.recipe.exists():
        if folder.weights.exists() or folder.checkpoint.exists():
            raise UsageError(
                f"{folder.path} holds a run without its recipe.yaml; choose another --out or use --overwrite."
            )
        return False
    there = read_yaml(folder.recipe)
    if hash_of(there) != hash_of(asked):
        differing = sorted(
            key for key in {*there, *asked} if hash_of(there.get(key)) != hash_of(asked.get(key))
        )
        raise UsageError(
            f"{folder.path} holds a different run (it differs in: {', '.join(differing)}). "
            "Choose another --out, or use --overwrite to replace it."
        )
    return bool(
        folder.weights.exists() and folder.manifest.exists() and read_json(folder.manifest).get("finished")
    )


def _manifest(
    dataset: Dataset,
    data_hash: str,
    selection: Selection,
    validation: Sequence[Case],
    recipe: Recipe,
    device: torch.device,
    precision: str,
    seed: int,
) -> dict[str, Any]:
    everyone = (*selection.labelled, *selection.unlabelled, *validation, *selection.test)
    return {
        "version": handful.__version__,
        "command": " ".join(["handful", *sys.argv[1:]]),
        "started": _now(),
        "finished": None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "precision": precision,
        "seed": seed,
        "method": recipe.name,
        "references": [load_method(recipe.name).METHOD.paper],
        "dataset": {
            "name": dataset.name,
            "root": str(dataset.root),
            "layout": dataset.layout,
            "hash": data_hash,
            "notes": list(dataset.notes),
            "patients_from": dataset.patients_from,
        },
        "cases": {
            "labelled": [case.name for case in selection.labelled],
            "unlabelled": [case.name for case in selection.unlabelled],
            "validation": [case.name for case in validation],
            "test": [case.name for case in selection.test],
        },
        "patients": {case.name: case.patient for case in everyone},
        "images": {case.name: [str(path) for path in case.images] for case in everyone},
        "labels": {case.name: str(case.label) if case.label else None for case in everyone},
    }


def _watch(
    folder: RunFolder, report: Callable[[Progress], None] | None, *, tensorboard: bool
) -> Callable[[Progress], None]:
    """Combine what looks on: the caller's report, ``progress.png`` now and then, TensorBoard if asked for."""
    writer: Any = None
    if tensorboard:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UsageError(
                '--tensorboard needs an extra package: pip install "handful[tensorboard]".'
            ) from error
        writer = SummaryWriter(str(folder.path / "tensorboard"))
    drawn = [0.0]

    def watch(progress: Progress) -> None:
        if report is not None:
            report(progress)
        if writer is not None:
            for name, value in progress.row.items():
                writer.add_scalar(name, value, progress.step)
            writer.flush()
        if progress.seconds - drawn[0] > 60:  # drawing takes a good part of a second
            drawn[0] = progress.seconds
            _write_progress(folder)

    return watch


def _write_progress(folder: RunFolder) -> None:
    from handful.report.figures import write_progress

    write_progress(folder.read_metrics(), folder.progress)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
