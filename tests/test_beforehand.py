"""What is said of the cases before a training starts: nothing unlabelled, a structure without labels, strange scans."""

import copy
import dataclasses
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from handful.data.fingerprint import CaseFingerprint
from handful.data.intensity import describe
from handful.data.phantom import draw_volume, make_phantom
from handful.data.sampling import foreground_voxels
from handful.data.unlike import unlike
from handful.methods import load_method, method_names
from handful.methods.auto import METHOD, Settings
from handful.methods.supervised import METHOD as CONTROL
from handful.methods.supervised import Settings as ControlSettings
from handful.training.run import train
from handful.training.start import eaten
from test_methods import made, phantom_source

TRAINING = [name for name in method_names() if load_method(name).METHOD.kind == "train"]
SEMI = [name for name in TRAINING if load_method(name).METHOD.needs.unlabelled]


def case(spacing_mm: tuple[float, float, float] = (1.0, 1.0, 3.0), *, ct: bool = False) -> CaseFingerprint:
    image = draw_volume(
        0, 0, modality="CT" if ct else "MR", size=(24, 20, 16), spacing_mm=(4, 5, 6), seed=0
    ).image
    return CaseFingerprint(
        case="c", patient="p", shape=(100, 100, 50), spacing_mm=spacing_mm, orientation="RAS",
        channels=(describe(image),), background=(0.0,),
    )  # fmt: skip


def test_a_case_is_like_itself_and_unlike_other_voxels_extents_and_units() -> None:
    mr, ct = case(), case(ct=True)
    assert unlike(mr, [mr]) == unlike(mr, []) == unlike(ct, [mr, ct]) == ""
    assert "below 0, as in CT" in unlike(ct, [mr])
    assert "no intensities below 0" in unlike(mr, [ct])
    assert unlike(case((1.0, 1.0, 9.1)), [mr]).startswith("voxels 9.1 mm head-foot, the labelled ones 3 mm")
    assert unlike(case((1.0, 0.3, 3.0)), [mr, case((2.0, 2.0, 3.0))]).endswith("the labelled ones 1 to 2 mm")
    assert unlike(case((2.9, 1.0, 1.1)), [mr]) == ""
    long = dataclasses.replace(mr, shape=(100, 301, 50))
    assert "301 mm long front-back" in unlike(long, [mr])
    # one factor for all values, as between MR scanners, is no difference; a handful of bright voxels is
    brighter = dataclasses.replace(mr, channels=(describe(1000 * np.arange(1000.0)),), background=(0.0,))
    darker = dataclasses.replace(brighter, channels=(describe(np.arange(1000.0)),))
    spiky = dataclasses.replace(brighter, channels=(describe(np.r_[np.zeros(990), np.ones(10)]),))
    assert unlike(brighter, [darker]) == ""
    assert "quite another way" in unlike(spiky, [darker])


@pytest.mark.parametrize("name", SEMI)
@pytest.mark.parametrize("dims", [2, 3])
def test_without_unlabelled_cases_the_gradient_is_the_control_s(name: str, dims: int) -> None:
    source = dataclasses.replace(phantom_source(dims), unlabelled=())
    method = made(name, dims)
    if name == "auto":  # its pixel contrast needs no unlabelled images
        method = METHOD(method.exports()["segmenter"], Settings(contrast_weight=0.0))
    network = method.exports()["segmenter"]
    control = CONTROL(copy.deepcopy(network), ControlSettings())
    for progress in (0.0, 0.5, 1.0):
        method.zero_grad()
        method.step(method.batch(dataclasses.replace(source, progress=progress)), progress).loss.backward()
        control.zero_grad()
        control.step(control.batch(source), progress).loss.backward()
        for own, theirs in zip(network.parameters(), control.network.parameters(), strict=True):
            assert own.grad is not None
            torch.testing.assert_close(own.grad, theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", TRAINING)
@pytest.mark.parametrize(("dims", "cases"), [(2, 2), (3, 2), (2, 1), (3, 1)])
def test_a_class_absent_from_the_labels_gives_finite_losses_and_weights(
    name: str, dims: int, cases: int
) -> None:
    source = phantom_source(dims)
    labelled = []
    for case in source.labelled[:cases]:
        label = case.label[:].where(
            case.label[:] != 1, 0
        )  # the first of two classes: none is the last by chance
        labelled.append(
            dataclasses.replace(case, label=label, foreground=foreground_voxels(label.numpy(), 3))
        )
    method = made(name, dims)
    optimiser = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    for step, progress in enumerate((0.0, 0.6, 1.0)):
        now = dataclasses.replace(source, labelled=labelled, step=step, progress=progress)
        batch = method.batch(now)
        assert not (batch.label == 1).any()
        optimiser.zero_grad()
        output = method.step(batch, progress)
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(method.parameters(), 12.0, error_if_nonfinite=True)
        optimiser.step()
        method.after_step(progress)
        assert all(torch.isfinite(value) for value in (output.loss, *output.logs.values()))
    assert all(torch.isfinite(value).all() for value in method.exports()["segmenter"].state_dict().values())


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom of MR scans whose first patient has no nodule, with a CT among its unlabelled cases."""
    folder = make_phantom(
        tmp_path_factory.mktemp("data") / "Phantom",
        patients=6, unlabelled=2, held_out=0, size=(26, 22, 18), spacing_mm=(3.0, 3.2, 4.5),
    )  # fmt: skip
    file = folder / "labelsTr" / "phantom_000.nii.gz"
    image = nib.load(file)
    values = np.asarray(image.dataobj)
    nib.save(nib.Nifti1Image(np.where(values == 5, 0, values).astype(np.uint8), image.affine), file)
    scan = draw_volume(9, 0, modality="CT", size=(26, 22, 18), spacing_mm=(3.0, 3.2, 4.5), seed=0)
    nib.save(nib.Nifti1Image(scan.image, scan.affine), folder / "imagesUn" / "phantom_004.nii.gz")
    return folder


def test_absent_structures_and_strange_scans_are_said_before_training(strange: Path, tmp_path: Path) -> None:
    (tmp_path / "budget").write_text("phantom_000")
    common = {"steps": 1, "threads": 1, "quiet": True, "device": "cpu", "set_": ("plan.dims=2",)}
    train(strange, tmp_path / "run", method="fixmatch", labels=f"@{tmp_path / 'budget'}", **common)  # type: ignore[arg-type]
    lines = [line.split("  ", 1)[1] for line in (tmp_path / "run" / "log.txt").read_text().splitlines()]
    absent = next(
        number for number, line in enumerate(lines) if line.startswith("no label of 'nodule': it is in")
    )
    unlike_ = next(
        number for number, line in enumerate(lines) if line.startswith("1 unlabelled case looks unlike")
    )
    begins = next(number for number, line in enumerate(lines) if line.startswith("fixmatch: 1 labelled"))
    assert "none of the 1 labelled case of draw 0 (phantom_000)" in lines[absent]
    assert "phantom_004 (intensities far below 0, as in CT" in lines[unlike_]
    assert max(absent, unlike_) < begins
    assert not any("no unlabelled cases" in line for line in lines)


def test_how_many_images_were_not_compared_is_said(
    strange: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handful.training.decisions.IMAGES_FOR_FINGERPRINT", 3)
    run = train(
        strange, tmp_path / "run", method="fixmatch", labels="2", steps=1, device="cpu", threads=1, quiet=True
    )
    asked = "4 of 5 unlabelled images were not compared with the labelled ones: a plan looks at 3 images."
    unlabelled = json.loads((run / "manifest.json").read_text())["cases"]["unlabelled"]
    assert (
        asked.replace("4 of 5", f"{len(unlabelled) - 1} of {len(unlabelled)}")
        in (run / "log.txt").read_text()
    )


def test_no_unlabelled_cases_is_said_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_phantom(
        tmp_path / "Phantom",
        patients=2,
        unlabelled=0,
        held_out=0,
        size=(26, 22, 18),
        spacing_mm=(3.0, 3.2, 4.5),
    )
    for name, words in (("fixmatch", True), ("supervised", False)):
        train(folder, tmp_path / name, method=name, device="cpu", dry_run=True)
        expected = f"no unlabelled cases: {name} learns from labels alone, like the control (supervised)"
        assert (expected in capsys.readouterr().out) == words
    assert not (tmp_path / "fixmatch").exists()


@pytest.mark.parametrize(("name", "dims"), [(name, dims) for name in method_names() for dims in (2, 3)])
def test_the_sizes_said_are_those_of_the_first_batch(name: str, dims: int) -> None:
    method, source = made(name, dims), phantom_source(dims, progress=0.0)
    first = next(x for x in method.batch(source) if isinstance(x, torch.Tensor) and x.ndim == dims + 2)
    count, _, *sides = first.shape
    assert eaten(method, source) == f"{dims}D patches {' x '.join(map(str, sides))}, batch {count}"
    settings = getattr(method, "settings", None)
    if load_method(name).METHOD.kind == "pretrain" and name not in (
        "rotation",
        "gcl",
        "pirl",
        "sscl",
        "mixcl",
    ):
        assert count == getattr(settings, "batch", source.batch)
    if dims == 3 and getattr(settings, "patch_share", 1) < 1 and name != "rotation":
        assert tuple(sides) == source.smaller(settings.patch_share, multiple=method.stride).patch
