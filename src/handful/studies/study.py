"""Compare methods at several budgets of labels over several draws, by a protocol that keeps the test labels closed."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from handful.artefacts import read_json, write_json
from handful.data.splits import Splits, make_splits, write_splits
from handful.device import choose_device, choose_precision
from handful.errors import UsageError
from handful.studies.arms import CONTROL, Lengths, parse_arms
from handful.studies.blind import open_unread, write_blind
from handful.studies.cluster import check_cluster, on_cluster
from handful.studies.folder import StudyFolder
from handful.studies.grid import Asked, Unit, check, draws_of, make_units, split_list
from handful.studies.leakage import CHECKED, refuse_copies, refuse_shared_patients
from handful.studies.overlap import overlaps
from handful.studies.pace import Pace, Watcher
from handful.studies.plans import make_plans
from handful.studies.results import gather
from handful.studies.schedule import make_tasks
from handful.studies.score import score
from handful.studies.tasks import Task
from handful.studies.workers import work
from handful.training.folder import RunFolder

SNAPSHOTS = 4
"""Weights kept on the way of each run unless told otherwise."""


def study(
    data: Path | str,
    out: Path | str,
    *,
    methods: str | Sequence[str],
    labels: str | Sequence[str],
    draws: int | str | Sequence[int] = 3,
    test: str | None = None,
    steps: int | None = None,
    max_time: str | None = None,
    pretrain_steps: int | None = None,
    seed: int = 0,
    jobs: int = 1,
    cluster: str | None = None,
    cluster_set: Sequence[str] = (),
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    set_: Sequence[str] = (),
    plan: Path | None = None,
    patients: str | None = None,
    snapshots: int = SNAPSHOTS,
    dry_run: bool = False,
    overwrite: bool = False,
    extend: bool = False,
    say: Callable[[str], None] = lambda text: None,
    report: Callable[[Pace], None] = lambda pace: None,
    progress: Callable[[str, int, int | None], None] = lambda stage, done, total: None,
) -> Path:
    """Train every method at every budget for every draw of labels, then score all on the same held-out cases.

    The labels-only control is always among the methods. Test labels are opened when every run is trained and has
    predicted. The same call with the same ``out`` continues: finished runs are left alone, failed ones tried again.

    Args:
        data: a data set folder or CSV manifest.
        out: the study's folder.
        methods: names as of ``handful methods``, a list or ``"a,b"``. A pre-training means that it comes before the
            control's training; ``a+b`` means pre-training ``a`` before training ``b``; ``name=method`` names an arm, so
            that a method can stand beside itself with other settings.
        labels: budgets, a list or ``"2,5%,20"``.
        draws: of labels for each budget, one number or one for each (``"5,3,3"``); the smaller budgets of a draw are
            nested in the larger.
        test: cases to hold out (``40``, ``20p``, ``20%``, ``@file``), besides those the data set holds out itself.
        steps, max_time: length of each run, see ``train``.
        pretrain_steps: of each pre-training; None: as long as a run.
        seed: of the split; draw d trains with seed + d.
        jobs: runs beside each other, each in a process of its own, or so many jobs of a cluster at once.
        cluster: ``slurm``: each run is a job of the scheduler (extra ``cluster``); ``local`` tries that here. None:
            this process works itself, or starts processes.
        cluster_set: what each job asks for, as submitit names it: ``"slurm_partition=gpu"``, ``"gpus_per_node=1"``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; several jobs on ``auto`` or ``cuda`` take the GPUs
            in turn.
        precision: ``auto``, ``32``, ``bf16`` or ``fp16``.
        threads: CPU threads of all runs together; None: as many as there are.
        set_: settings of all runs, ``"loop.lr=0.001"``, of one method's, ``"pcl:loop.lr=0.001"``, or of one
            named arm's, ``"name:loop.lr=0.001"``.
        plan: a ``plan.yaml`` all runs follow; None makes one for each budget and draw from what its runs may see.
        patients: regular expression whose first group is the patient in a case's name.
        snapshots: weights kept on the way of each run, to say what choosing among them by test score would have
            faked; 0 leaves that out.
        dry_run: say what would be done, write nothing.
        overwrite: remove the study that ``out`` holds, all but its audit log.
        extend: add methods to the study that ``out`` holds; what it has stays, and all else must be as it was. The
            results say which were added after test labels had been opened.
        say: told what is worth knowing before and between the runs.
        report: told how far the runs are.
        progress: told how far reading and scoring are.

    Returns:
        The study's folder: ``summary.json``, ``scores.csv``, ``runs.csv``, ``summary.csv``, ``comparisons.csv``,
        ``saved.csv``, ``audit.jsonl``, and an ordinary run folder for each run.

    Raises:
        UsageError: unknown methods, impossible budgets, or another study in ``out``.
        DataError: no test case, a test case that also trains, data that changed since the study began.

    Example:
        >>> study("DATA", "STUDY", methods="pcl,mona", labels="2,5%,20", test="40")  # doctest: +SKIP
    """
    data, folder = Path(data), StudyFolder(Path(out))
    if jobs < 1:
        raise UsageError(f"--jobs must be at least 1, found {jobs}.")
    if overwrite and extend:
        raise UsageError("--overwrite removes what --extend keeps; give one of them.")
    if cluster is None and cluster_set:
        raise UsageError("--cluster-set is for jobs of a --cluster.")
    options = check_cluster(cluster, cluster_set, device=device, precision=precision) if cluster else {}
    where = torch.device(device) if cluster else choose_device(device)
    named, budgets = split_list(methods), split_list(labels)
    asked = Asked(
        methods=tuple(arm.spec for arm in parse_arms(named)),
        labels=budgets,
        draws=draws_of(draws, budgets),
        test=test,
        lengths=Lengths(steps=steps, max_time=max_time, pretrain_steps=pretrain_steps),
        seed=seed,
        settings=tuple(set_),
        snapshots=snapshots,
        patients=patients,
        precision=choose_precision(precision, where),
    )
    check(asked)
    dataset = open_unread(data, patients=patients)
    splits = make_splits(dataset, test=test, seed=seed, draws=max(asked.draws))
    if not splits.test:
        raise UsageError("a study needs cases to test on: hold some out with --test 20%.")
    units = make_units(asked, splits)
    if CONTROL not in named:
        say(f"'{CONTROL}', the labels-only control, was not named and is added: every claim needs it.")
    refuse_shared_patients(splits)
    if dry_run:
        for line in describe(asked, units, splits):
            say(line)
        return folder.path
    with RunFolder(folder.path, quiet=True).locked():
        if overwrite:
            folder.clear()
            folder.audit.add("study removed", by="--overwrite")
        known = folder.asked.exists()
        data_hash = folder.take(asked, splits, plan, extend=extend)
        todo = [unit for unit in units if not folder.finished(unit)]
        if not todo and folder.summary.exists() and all(folder.scored(unit) for unit in units):
            say(f"{folder.path} holds this study, finished; nothing to do. --overwrite does it again.")
            return folder.path
        folder.audit.add(
            "study continued" if known else "study started",
            runs=len(units),
            left=len(todo),
            data=data_hash,
            test=len(splits.test),
        )
        write_splits(folder.splits, splits)
        if todo:
            _run(
                folder, asked, units, splits, plan=plan, precision=precision, jobs=jobs, cluster=cluster,
                options=options, device=device, threads=threads, say=say, report=report,
            )  # fmt: skip
        score(folder, data, units, splits, patients=patients, report=progress)
        gather(folder, asked, units, splits, data_hash=data_hash, plan=plan)
        folder.audit.add("scores written", finished=sum(folder.finished(unit) for unit in units))
    return folder.path


def describe(asked: Asked, units: Sequence[Unit], splits: Splits) -> list[str]:
    """Return in words what a study would do."""
    each = " each" if asked.even else ""
    lines = [
        f"{len(units)} runs: {len(asked.arms)} methods ({', '.join(arm.spec for arm in asked.arms)}) at "
        f"{len(asked.labels)} budgets, {asked.draws_asked} draws{each}; tested on {len(splits.test)} cases of "
        f"{len({splits.dataset.case(name).patient for name in splits.test})} patients, opened after the last run."
    ]
    for budget in asked.labels:
        counts = sorted({unit.n_labelled for unit in units if unit.budget == budget})
        lines.append(f"--labels {budget}: {' or '.join(map(str, counts))} labelled cases")
        note = splits.select(budget, 0).note
        if note:
            lines.append(f"  {note}")
    return [*lines, *overlaps(units, splits)]


def _run(
    folder: StudyFolder,
    asked: Asked,
    units: Sequence[Unit],
    splits: Splits,
    *,
    plan: Path | None,
    precision: str,
    jobs: int,
    cluster: str | None,
    options: Mapping[str, Any],
    device: str,
    threads: int | None,
    say: Callable[[str], None],
    report: Callable[[Pace], None],
) -> None:
    """Train and predict what is left, everything checked first."""
    checked = folder.blind / CHECKED
    if not checked.exists():
        say("comparing all images: does a test image also train?")
        write_json(checked, refuse_copies(splits)._asdict())
    blind = write_blind(folder.blind, splits)
    plans = {}
    if plan is None:
        say("making the plans")
        kind = device if cluster else choose_device(device).type
        plans = make_plans(
            folder.plans, units, blind, device=kind, lengths=asked.lengths, settings=asked.settings
        )
    tasks = make_tasks(folder, asked, units, blind, plans, plan=plan, precision=precision)
    pace = Pace(total=len(units), finished=sum(folder.finished(unit) for unit in units))

    def started(task: Task) -> None:
        folder.audit.add(f"{_event(task)} started", run=_place(folder, task))

    def ended(task: Task, outcome: dict[str, Any]) -> None:
        details = {"reason": outcome["reason"]} if outcome["reason"] else {}
        folder.audit.add(f"{_event(task)} {outcome['status']}", run=_place(folder, task), **details)
        if outcome["status"] != "finished":
            say(f"failed: {task.words}: {outcome['reason']}")

    watcher = Watcher(pace, started=started, ended=ended, report=report)
    if cluster:
        on_cluster(
            tasks, watcher, scheduler=cluster, options=options, logs=folder.jobs, jobs=jobs, device=device,
            threads=threads,
        )  # fmt: skip
    else:
        work(tasks, watcher, jobs=jobs, devices=_devices(device), threads=_shared(threads, jobs))


def _event(task: Task) -> str:
    return "run" if task.kind == "train" else "pre-training"


def _place(folder: StudyFolder, task: Task) -> str:
    return str(task.out.relative_to(folder.path))


def _devices(device: str) -> list[str]:
    """Return the devices that jobs take in turn: all GPUs where none is named."""
    where = choose_device(device)
    if where.type == "cuda" and device in ("auto", "cuda"):
        return [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return [device]


def _shared(threads: int | None, jobs: int) -> int | None:
    """Return the threads of each job."""
    if jobs == 1:
        return threads
    return max(1, (threads or torch.get_num_threads()) // jobs)


def read_summary(out: Path) -> dict[str, Any]:
    """Return the ``summary.json`` of a study.

    Raises:
        UsageError: there is none, because the study is not finished or the folder is another.
    """
    folder = StudyFolder(out)
    if not folder.summary.is_file():
        what = "is not finished: repeat its command" if folder.asked.is_file() else "is no study"
        raise UsageError(f"{out} {what} (there is no summary.json).")
    summary: dict[str, Any] = read_json(folder.summary)
    return summary
