"""Laws of a run: resumed is uninterrupted, hidden labels are hidden, nothing is lost when something breaks."""

import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from safetensors.torch import load_file
from torch import nn

from handful.artefacts import hash_of, read_yaml, write_yaml
from handful.data.cases import Dataset
from handful.data.phantom import make_phantom
from handful.data.plan import read_plan
from handful.errors import DataError, RunError, Stopped, UsageError
from handful.methods.contract import StepOutput
from handful.methods.supervised import Settings, Supervised
from handful.networks.build import build_network, unet_architecture
from handful.training.fabric import make_fabric
from handful.training.folder import RunFolder
from handful.training.loop import LoopSettings, Progress, fit
from handful.training.recipe import parse_duration, resolve
from handful.training.run import pretrain, train
from handful.training.schedules import SCHEDULES, ema_decay
from test_methods import phantom_source

QUICK = ("loop.checkpoint_every_s=0", "loop.rows=10000")
"""A checkpoint and a row at every step, so that a kill can fall anywhere."""

SCRIPT = """
import sys, json
from pathlib import Path
from handful.errors import HandfulError
from handful.training.run import train
arguments = json.loads(sys.argv[1])
try:
    train(Path(arguments.pop("data")), Path(arguments.pop("out")), **arguments)
except HandfulError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def run(data: Path, out: Path, *, steps: int = 6, **changes: object) -> dict[str, torch.Tensor]:
    arguments: dict[str, object] = {
        "method": "supervised",
        "labels": "2",
        "steps": steps,
        "set_": QUICK,
        "threads": 1,
        "quiet": True,
        "device": "cpu",
    }
    train(data, out, **(arguments | changes))  # type: ignore[arg-type]
    return load_file(out / "weights.safetensors")


def start(data: Path, out: Path, *, steps: int, limit: int | None = None) -> subprocess.Popen[str]:
    arguments = {
        "data": str(data),
        "out": str(out),
        "method": "supervised",
        "labels": "2",
        "steps": steps,
        "set_": QUICK,
        "threads": 1,
        "device": "cpu",
    }

    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit or 0, resource.RLIM_INFINITY))

    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, json.dumps(arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=small_files if limit else None,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def wait_for_step(out: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        metrics = out / "metrics.jsonl"
        if metrics.exists() and metrics.read_text().count("\n") >= step:
            return
        time.sleep(0.01)
    raise AssertionError(f"the run ended before step {step}: {process.communicate()}")


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert len(one) > 10
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.fixture(scope="module")
def uninterrupted(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    run(phantom_folder, out, steps=40)
    return out


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_and_resumed_run_ends_with_the_same_bits(
    sign: signal.Signals, phantom_folder: Path, tmp_path: Path, uninterrupted: Path
) -> None:
    out = tmp_path / "run"
    for step in (3, 9):  # killed twice
        process = start(phantom_folder, out, steps=40)
        wait_for_step(out, step, process)
        process.send_signal(sign)
        _, errors = process.communicate()
        assert process.returncode != 0
        assert not (out / "weights.safetensors").exists()
        if sign is signal.SIGTERM:
            assert "run the same command again to continue" in errors
    resumed = run(phantom_folder, out, steps=40)
    assert_same(resumed, load_file(uninterrupted / "weights.safetensors"))
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert steps[-1] == 40


def test_a_full_disk_leaves_the_previous_checkpoint_and_says_so(
    phantom_folder: Path, tmp_path: Path, uninterrupted: Path
) -> None:
    out = tmp_path / "run"
    process = start(phantom_folder, out, steps=40)
    wait_for_step(out, 4, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = (out / "checkpoint.pt").read_bytes()
    process = start(phantom_folder, out, steps=40, limit=len(before) // 2)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    assert "could not be written" in errors
    assert "run the same command again" in errors
    assert (out / "checkpoint.pt").read_bytes() == before
    assert not list(out.glob(".tmp-*"))
    assert_same(run(phantom_folder, out, steps=40), load_file(uninterrupted / "weights.safetensors"))


def test_labels_outside_the_budget_never_touch_a_run(phantom_folder: Path, tmp_path: Path) -> None:
    """Poison every label the budget does not include, and every held-out label: the weights are the same bits."""
    clean = run(phantom_folder, tmp_path / "clean")
    allowed = set(json.loads((tmp_path / "clean" / "manifest.json").read_text())["cases"]["labelled"])
    poisoned = tmp_path / "poisoned"
    import shutil

    shutil.copytree(phantom_folder, poisoned)
    count = 0
    for path in sorted([*poisoned.glob("labelsTr/*.nii.gz"), *poisoned.glob("labelsTs/*.nii.gz")]):
        if path.name.removesuffix(".nii.gz") not in allowed:
            image = nib.load(path)
            rubbish = np.random.default_rng(0).integers(0, 4, image.shape).astype(np.uint8)
            nib.save(nib.Nifti1Image(rubbish, image.affine, image.header), path)
            count += 1
    assert count >= 4
    assert_same(clean, run(poisoned, tmp_path / "again"))


def test_one_folder_one_run(phantom_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    first = run(phantom_folder, out, steps=2)
    stamp = (out / "weights.safetensors").stat().st_mtime_ns
    run(phantom_folder, out, steps=2, quiet=False)
    assert "finished; nothing to do" in capsys.readouterr().out
    assert (out / "weights.safetensors").stat().st_mtime_ns == stamp
    asked = read_yaml(out / "recipe.yaml")
    del asked["method"]["balance"], asked["loop"]["snapshots"], asked["teach"]
    write_yaml(out / "recipe.yaml", asked)
    run(phantom_folder, out, steps=2, quiet=False)
    assert "nothing to do" in capsys.readouterr().out, "a run from before these settings is this run"
    with pytest.raises(UsageError, match="differs in: method"):
        run(phantom_folder, out, steps=2, set_=(*QUICK, "method.balance=0.25"))
    with pytest.raises(UsageError, match="differs in: loop"):
        run(phantom_folder, out, steps=3)
    with pytest.raises(UsageError, match="differs in: labelled, seed"):
        run(phantom_folder, out, steps=2, seed=1)
    assert_same(first, run(phantom_folder, out, steps=2, overwrite=True))


def test_a_run_folder_holds_what_the_design_says(phantom_folder: Path, uninterrupted: Path) -> None:
    names = {path.name for path in uninterrupted.iterdir()}
    assert names >= {
        "recipe.yaml", "plan.yaml", "manifest.json", "metrics.jsonl", "progress.png", "checkpoint.pt",
        "weights.safetensors", "log.txt", "splits.json", "fingerprint.json",
    }  # fmt: skip
    manifest = json.loads((uninterrupted / "manifest.json").read_text())
    groups = [set(manifest["cases"][kind]) for kind in ("labelled", "unlabelled", "test")]
    assert len(groups[0]) == 2
    assert not groups[0] & groups[1]
    assert not (groups[0] | groups[1]) & groups[2]
    assert groups[2]
    assert manifest["finished"]


def test_a_loss_that_is_not_finite_stops_the_run_by_name(phantom_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"step \d+: .* is not finite.*no checkpoint yet"):
        run(phantom_folder, tmp_path / "run", steps=30, set_=("loop.lr=1e30", "loop.schedule=constant"))


def test_embeddings_that_are_not_finite_stop_the_run_and_keep_the_last_checkpoint(
    phantom_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    settings = (
        "loop.lr=1e30",
        "loop.schedule=constant",
        "loop.warm_up=0.1",
        "method.batch=2",
        "plan.dims=2",
        *QUICK,
    )
    with pytest.raises(RunError, match=r"step \d+: (first|gradient_norm).*last checkpoint is from before"):
        pretrain(
            phantom_folder, out, method="simclr", steps=20, set_=settings, threads=1, quiet=True, device="cpu"
        )
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    assert all(torch.isfinite(value).all() for value in state["method"].values() if torch.is_tensor(value))
    assert not (out / "weights.safetensors").exists()


@pytest.mark.parametrize("length", [{"steps": 30}, {"max_time_s": 1.5}])
@pytest.mark.parametrize("trained", [True, False])
def test_the_first_term_that_is_not_finite_is_named_and_never_reaches_a_checkpoint(
    length: dict[str, Any], trained: bool, tmp_path: Path
) -> None:
    """If the term has a gradient, the weights and all terms of later steps are no numbers either."""

    class Failing(Supervised):
        """The control, whose cross entropy is NaN from the fourth step on."""

        steps = 0

        def step(self, batch: Any, progress: float) -> StepOutput:
            output = super().step(batch, progress)
            self.steps += 1
            bad = output.loss * (math.nan if self.steps > 3 else 0.0)
            bad = bad if trained else bad.detach()
            return StepOutput(output.loss + bad, {**output.logs, "cross_entropy": bad.detach()})

    torch.manual_seed(0)
    architecture = unet_architecture(
        dims=2, in_channels=1, classes=3, widths=(4, 6), strides=((2, 2),), kernels=((3, 3),) * 2, blocks=1,
        kind="plain", norm="batch", deep_supervision=False,
    )  # fmt: skip
    with pytest.raises(RunError, match=r"^step 4: cross_entropy is not finite.*no checkpoint yet"):
        fit(
            Failing(build_network(architecture), Settings()),
            lambda step: phantom_source(2, step=step),
            settings=LoopSettings(**length, rows=1),
            fabric=make_fabric(torch.device("cpu"), "32-true"),
            folder=RunFolder(tmp_path, quiet=True),
            seed=0,
        )
    assert not (tmp_path / "checkpoint.pt").exists()


def test_float16_skips_the_steps_that_overflow_counts_them_and_resumes_with_the_scale_it_had(
    tmp_path: Path,
) -> None:
    """The scale of the loss begins far too large, as on a GPU without bfloat16; the CPU can pretend to be one."""
    architecture = unet_architecture(
        dims=2, in_channels=1, classes=3, widths=(4, 6), strides=((2, 2),), kernels=((3, 3),) * 2, blocks=1,
        kind="plain", norm="batch", deep_supervision=False,
    )  # fmt: skip

    def trained(out: Path, *, stop: int | None = None) -> dict[str, nn.Module]:
        def interrupt(progress: Progress) -> None:
            if progress.step == stop:
                signal.raise_signal(signal.SIGTERM)

        torch.manual_seed(0)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
        return fit(
            Supervised(build_network(architecture), Settings()),
            lambda step: phantom_source(2, step=step),
            settings=LoopSettings(steps=40, rows=40),
            fabric=Fabric(accelerator="cpu", devices=1, plugins=[MixedPrecision("16-mixed", "cpu", scaler)]),
            folder=RunFolder(out, quiet=True),
            seed=0,
            report=interrupt,
        )

    whole = trained(tmp_path / "whole")
    with pytest.raises(Stopped):
        trained(tmp_path / "parts", stop=5)
    parts = trained(tmp_path / "parts")
    rows = RunFolder(tmp_path / "whole", quiet=True).read_metrics()
    skipped = [row["overflow"] for row in rows]
    assert skipped[0] == 1
    assert skipped[-1] == 0
    assert 5 < sum(skipped) < 35
    assert all(row["gradient_norm"] > 0 or row["overflow"] for row in rows)
    for one, other in zip(whole["segmenter"].parameters(), parts["segmenter"].parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_plan_that_the_recipe_contradicts_is_refused(phantom_folder: Path, tmp_path: Path) -> None:
    usual: dict[str, Any] = {"labels": "2", "steps": 1, "quiet": True, "threads": 1, "method": "supervised"}
    run = train(phantom_folder, tmp_path / "run", set_=("plan.dims=2", "plan.width=6"), **usual)
    plan = run / "plan.yaml"
    for asked, words in (
        ("plan.dims=3", "plan.dims is 3 and the file has 2"),
        ("plan.width=8", "the file has 6"),
    ):
        with pytest.raises(UsageError, match=words):
            train(phantom_folder, tmp_path / "same", plan=plan, set_=(asked,), **usual)
        assert not list((tmp_path / "same").glob("[a-z]*")), "what is refused leaves nothing behind"
    train(
        phantom_folder,
        tmp_path / "same",
        plan=plan,
        set_=("plan.dims=2", "plan.width=6", "plan.batch=1"),
        **usual,
    )
    assert read_plan(tmp_path / "same" / "plan.yaml").batch == 1


def test_a_time_limit_ends_the_run(phantom_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(phantom_folder, out, steps=None, max_time="2s")
    manifest = json.loads((out / "manifest.json").read_text())
    assert 1.9 < manifest["seconds"] < 10
    assert manifest["steps"] >= 1


def test_bad_requests_are_refused_before_anything_is_written(phantom_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    bad: list[tuple[dict[str, object], str]] = [
        ({"method": "supervized"}, "did you mean 'supervised'"),
        ({"set_": ("loop.learning_rate=1",)}, "unknown setting"),
        ({"set_": ("lr=1",)}, "did you mean 'loop.lr'"),
        ({"set_": ("loop.lr=fast",)}, "loop.lr|lr"),
        ({"set_": ("loop.lr",)}, "expected name=value"),
        ({"steps": 0}, "at least 1"),
        ({"max_time": "soon", "steps": None}, "expected a duration"),
        ({"max_time": "1m"}, "only one"),
        ({"labels": "0"}, "0"),
        ({"labels": "99"}, "99"),
        ({"labels": "many"}, "many"),
        ({"device": "cuda:99"}, "CUDA devices|expected auto"),
        ({"device": "tpu"}, "expected auto, cpu"),
        ({"precision": "fp8"}, "expected auto"),
        ({"precision": "fp16"}, "needs a GPU"),
        ({"threads": 0}, "at least 1"),
        ({"plan": tmp_path / "absent.yaml"}, "does not exist"),
        ({"recipe": tmp_path / "absent.yaml"}, "does not exist"),
        ({"splits": tmp_path / "absent.json"}, "does not exist"),
        ({"draw": -1}, "draw"),
    ]
    for changes, words in bad:
        with pytest.raises((UsageError, DataError), match=words):
            run(phantom_folder, out, **changes)
    assert len(bad) == 20
    assert not out.exists()


def test_two_processes_cannot_share_a_run_folder(phantom_folder: Path, tmp_path: Path) -> None:
    from handful.training.folder import RunFolder

    folder = RunFolder(tmp_path / "run")
    with folder.locked(), pytest.raises(RunError, match="in use by another process"):
        run(phantom_folder, tmp_path / "run")


def test_a_damaged_checkpoint_is_said(phantom_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(phantom_folder, out, steps=2)
    (out / "weights.safetensors").unlink()
    (out / "checkpoint.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(RunError, match="damaged and cannot be resumed"):
        run(phantom_folder, out, steps=2)


def test_schedules_start_peak_and_end_where_they_should() -> None:
    grid = np.linspace(0, 1, 1001)
    for name, schedule in SCHEDULES.items():
        values = np.array([schedule(float(p)) for p in grid])
        assert values.max() == pytest.approx(1, abs=1e-6), name
        assert values.min() >= 0, name
    cycle = np.array([SCHEDULES["one_cycle"](float(p)) for p in grid])
    assert cycle.argmax() == 100
    assert (np.diff(cycle[:100]) > 0).all()
    assert (np.diff(cycle[101:]) < 0).all()


def test_averaging_depends_on_progress_not_on_the_number_of_steps() -> None:
    def forgotten(steps: int) -> float:
        """Weight that the last tenth of the run has in the average."""
        rest = 1.0
        for n in range(int(steps * 0.9), steps):
            rest *= ema_decay(n, 1 / steps, horizon=0.04)
        return 1 - rest

    assert forgotten(1000) == pytest.approx(forgotten(100_000), abs=1e-3)
    assert ema_decay(0, 1e-9, horizon=0.04) == pytest.approx(0.1)


def test_epochs_become_steps_and_lengths_exclude_each_other() -> None:
    settings = LoopSettings(epochs=3)
    assert settings.in_steps(images=100, batch=32).steps == 9  # three full batches an epoch
    assert settings.in_steps(images=5, batch=32).steps == 3
    assert LoopSettings(steps=7).in_steps(images=5, batch=2).steps == 7
    for wrong in ({"epochs": 3, "steps": 4}, {}, {"epochs": -1}, {"steps": 4, "warm_up": 1.0}):
        with pytest.raises(UsageError):
            LoopSettings(**wrong)


def test_the_step_schedule_divides_by_ten_and_no_horizon_keeps_the_last_weights() -> None:
    assert [SCHEDULES["step"](p) for p in (0, 0.32, 0.34, 0.67, 1)] == pytest.approx([1, 1, 0.1, 0.01, 0.01])
    assert ema_decay(100, 0.01, horizon=0) == 0


def test_durations() -> None:
    assert [parse_duration(t) for t in ("90s", "20m", "1h30m", "45", "1.5m")] == [90, 1200, 5400, 45, 90]


def test_a_recipe_file_is_complete_enough_to_repeat_a_run(phantom_folder: Path, uninterrupted: Path) -> None:
    import yaml

    file = uninterrupted / "recipe.yaml"
    written = yaml.safe_load(file.read_text())
    repeated = resolve(None, file=file).as_dict()
    assert hash_of(repeated) == hash_of({key: written[key] for key in repeated})


def test_the_data_set_object_never_shows_a_hidden_label(phantom_folder: Path) -> None:
    from handful.data.discover import open_dataset
    from handful.data.splits import make_splits, parse_budget

    dataset: Dataset = open_dataset(phantom_folder)
    selection = make_splits(dataset, test=None, seed=0, draws=3).select(parse_budget("2"), 1)
    assert len(selection.labelled) == 2
    assert selection.unlabelled
    assert all(case.label is None for case in selection.unlabelled)


def test_a_fold_is_trained_without_and_scored_after(phantom_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "many"
    make_phantom(data, patients=6, unlabelled=0, held_out=0, size=(18, 16, 14), spacing_mm=(4.0, 4.5, 6.0))
    seen: list[str] = []
    for fold in (0, 1):
        out = tmp_path / f"fold{fold}"
        run(data, out, labels=None, steps=2, fold=fold)
        cases = json.loads((out / "manifest.json").read_text())["cases"]
        assert not set(cases["validation"]) & {*cases["labelled"], *cases["unlabelled"]}
        scored = json.loads((out / "validation" / "summary.json").read_text())["cases"]
        assert {row["case"] for row in scored} == set(cases["validation"])
        seen += cases["validation"]
    assert len(seen) == len(set(seen)) >= 2
    with pytest.raises(UsageError, match="too few to set some aside"):
        run(data, tmp_path / "few", labels="2", steps=2, fold=0)
    with pytest.raises(UsageError, match="does not exist"):
        run(data, tmp_path / "absent", labels=None, steps=2, fold=9)


def test_a_run_can_start_from_the_weights_of_another(
    phantom_folder: Path, tmp_path: Path, uninterrupted: Path
) -> None:
    start_again = {"set_": ("loop.lr=1e-12", "loop.ema_horizon=1e-6", "loop.weight_decay=0")}
    started = run(phantom_folder, tmp_path / "warm", steps=1, init=uninterrupted, **start_again)
    before = load_file(uninterrupted / "weights.safetensors")
    cold = run(phantom_folder, tmp_path / "cold", steps=1, **start_again)
    trained = [name for name in before if "running" not in name and "tracked" not in name]  # of batch norm
    assert len(trained) > 10
    assert all(torch.allclose(started[name], before[name], atol=1e-6) for name in trained)
    assert not all(torch.allclose(cold[name], before[name], atol=1e-6) for name in trained)
    with pytest.raises(UsageError, match="holds no trained weights"):
        run(phantom_folder, tmp_path / "none", init=tmp_path)


def test_precision_reaches_the_step(phantom_folder: Path, tmp_path: Path) -> None:
    """Fabric applies its precision to forward() alone; a step once ran in float32 whatever was asked for."""
    exact = run(phantom_folder, tmp_path / "exact", steps=1, precision="32")
    mixed = run(phantom_folder, tmp_path / "mixed", steps=1, precision="bf16")
    assert any(not torch.equal(exact[name], mixed[name]) for name in exact)
