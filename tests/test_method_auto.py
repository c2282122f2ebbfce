"""Laws of the house recipe: off it is the control, boxes bring their labels, sure guesses are contrasted too."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from handful.batches import SegmentationBatch
from handful.data.augment.settings import AugmentSettings
from handful.data.sampling import Source
from handful.errors import UsageError
from handful.losses.pixel import pixel_contrast
from handful.losses.pseudo_label import pseudo_label
from handful.losses.segmentation import downsampled
from handful.methods.auto import Auto, Settings
from handful.methods.supervised import Settings as ControlSettings
from handful.methods.supervised import Supervised
from handful.networks.unet import UNet
from handful.training.recipe import resolve
from handful.training.run import train
from test_methods import phantom_source


def method(dims: int = 2, **settings: Any) -> Auto:
    torch.manual_seed(0)
    network = UNet(dims=dims, in_channels=1, classes=3, widths=(4, 6, 8), deep_supervision=True)
    return Auto(network, Settings(**settings))


def telling(dims: int) -> Source:
    """Return a source whose images show their labels (0, 1, 2), or 10 everywhere in cases without one."""
    source = phantom_source(dims, progress=0.9)
    still = AugmentSettings(**{
        field.name: 0.0 for field in dataclasses.fields(AugmentSettings) if field.name.startswith("p_")
    })  # fmt: skip
    known = [dataclasses.replace(case, image=case.label[None].float()) for case in source.labelled]
    others = [dataclasses.replace(case, image=torch.full_like(case.image, 10)) for case in source.unlabelled]
    return dataclasses.replace(source, labelled=known, unlabelled=others, augment=still, batch=4)


def control(made: Auto, image: Tensor, label: Tensor) -> Tensor:
    return Supervised(made.network, ControlSettings()).step(SegmentationBatch(image, label), 0.5).loss


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("off", ["unlabelled", "weight", "start"])
def test_with_all_parts_off_it_is_the_control(dims: int, off: str) -> None:
    source = phantom_source(dims, progress=0.3 if off == "start" else 0.9)
    if off == "unlabelled":
        source = dataclasses.replace(source, unlabelled=[])
    made = method(dims, contrast_weight=0, pseudo_weight=0 if off == "weight" else 1)
    batch = made.batch(source)
    assert batch.weak is None
    own = Supervised(made.network, ControlSettings())
    theirs = own.batch(source)
    assert torch.equal(batch.image, theirs.image)
    assert torch.equal(batch.label, theirs.label)
    assert torch.equal(made.step(batch, 0.9).loss, own.step(theirs, 0.9).loss)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_box_shows_a_labelled_patch_and_brings_its_label(dims: int) -> None:
    batch = method(dims, paste=1.0, box=(0.3, 0.3)).batch(telling(dims))
    assert torch.equal(batch.keep.unsqueeze(1), batch.strong == 10)
    assert torch.equal(batch.keep, batch.pasted == -1)
    assert torch.equal(batch.pasted[~batch.keep], batch.strong[:, 0][~batch.keep].long())
    assert (batch.weak == 10).all()
    share = (~batch.keep).float().flatten(1).mean(1)
    assert ((share - 0.3).abs() < 0.12).all()  # whole voxels
    assert (batch.label != -1).all()


def test_without_pasting_the_student_sees_the_teachers_pixels() -> None:
    batch = method(paste=0.0).batch(telling(2))
    assert batch.keep.all()
    assert torch.equal(batch.strong, batch.weak)  # recolouring is off in this source
    assert (batch.pasted == -1).all()


def test_the_loss_is_the_sum_of_its_parts() -> None:
    made = method(pseudo_weight=0.3, threshold=0.5, contrast_weight=0.2, start=0.4, ramp=0.2, paste=1.0)
    with torch.no_grad():
        for parameter in made.teacher.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    batch = made.batch(phantom_source(2, progress=0.5))
    label = pseudo_label(made.teacher(batch.weak), threshold=0.5).where(batch.keep, batch.pasted)
    network = made.network
    # plan norms of the tiny network look at each image alone, so passing apart is the same
    maps = [network.decoder(network.encoder(image))[1] for image in (batch.image, batch.strong)]
    z = made.project(torch.cat(maps)).unsqueeze(1)
    groups = downsampled(torch.cat([batch.label, label]), z.shape[3:]).unsqueeze(1)
    expected = (
        control(made, batch.image, batch.label)
        + 0.5 * 0.3 * control(made, batch.strong, label)  # half way up the ramp
        + 0.2 * pixel_contrast(z, groups, temperature=0.1)
    )
    output = made.step(batch, 0.5)
    torch.testing.assert_close(output.loss, expected)
    assert set(output.terms) == {"dice_loss", "cross_entropy", "pseudo", "contrast"}


def test_the_gate_leaves_boxes_open() -> None:
    made = method(threshold=1.0, paste=1.0)
    batch = made.batch(phantom_source(2, progress=0.9))
    sure = made.step(batch, 0.9).logs["sure"]
    torch.testing.assert_close(sure, (batch.pasted != -1).float().mean())


def test_pixels_are_contrasted_every_few_steps() -> None:
    made, source = method(contrast_every=3), phantom_source(2, progress=0.9)
    terms = [made.step(made.batch(dataclasses.replace(source, step=n)), 0.9).terms for n in range(7)]
    assert [n for n, each in enumerate(terms) if "contrast" in each] == [0, 3, 6]


def test_the_projector_is_dropped_and_only_made_when_needed() -> None:
    assert set(method().exports()) == {"segmenter"}
    assert not hasattr(method(contrast_weight=0), "project")


def test_a_level_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match=r"0 \(the finest\) to 2"):
        method(level=3)


def test_the_recipe_of_its_name_comes_with_it() -> None:
    recipe = resolve("auto", default_steps=100)
    before, _, then = recipe.stages()
    assert then.name == "auto"
    assert before is None or before.name == recipe.as_dict()["pretrain"]["name"]


def test_a_training_is_auto_unless_told_otherwise(
    phantom_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("name: mixup\n")
    for options, expected in (
        ({}, "auto:"),
        ({"method": "entropy"}, "entropy:"),
        ({"recipe": file}, "mixup:"),
    ):
        train(phantom_folder, tmp_path / "run", dry_run=True, device="cpu", **options)  # type: ignore[arg-type]
        assert capsys.readouterr().out.splitlines()[-1].startswith(expected)
