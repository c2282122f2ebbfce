"""Laws of bidirectional copy-paste: which pixels a mixture shows, who labels them, and when it begins."""

import dataclasses
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from handful.batches import SegmentationBatch
from handful.data.augment.settings import AugmentSettings
from handful.data.sampling import Source
from handful.errors import UsageError
from handful.losses.pseudo_label import pseudo_label
from handful.methods.bcp import BCP, Settings, largest_pieces
from handful.methods.supervised import Settings as ControlSettings
from handful.methods.supervised import Supervised
from handful.networks.unet import UNet
from test_methods import phantom_source


def method(dims: int = 2, **settings: Any) -> BCP:
    torch.manual_seed(0)
    network = UNet(dims=dims, in_channels=1, classes=3, widths=(4, 6, 8), deep_supervision=True)
    return BCP(network, Settings(**settings))


def telling(dims: int, progress: float) -> Source:
    """Return a source whose images show their labels (0, 1, 2), or 10 everywhere in cases without one."""
    source = phantom_source(dims, progress=progress)
    still = AugmentSettings(**{
        field.name: 0.0 for field in dataclasses.fields(AugmentSettings) if field.name.startswith("p_")
    })  # fmt: skip
    known = [dataclasses.replace(case, image=case.label[None].float()) for case in source.labelled]
    others = [dataclasses.replace(case, image=torch.full_like(case.image, 10)) for case in source.unlabelled]
    return dataclasses.replace(source, labelled=known, unlabelled=others, augment=still, batch=4)


def control(made: BCP, image: Tensor, label: Tensor, *, progress: float) -> Tensor:
    return Supervised(made.network, ControlSettings()).step(SegmentationBatch(image, label), progress).loss


@pytest.mark.parametrize("dims", [2, 3])
def test_a_mixture_shows_the_labelled_image_where_it_has_a_label(dims: int) -> None:
    batch = method(dims, plain=0).batch(telling(dims, 0.5))
    assert torch.equal(batch.keep.unsqueeze(1), batch.image != 10)
    assert torch.equal(batch.keep, batch.label != -1)
    assert torch.equal(batch.label[batch.keep], batch.image[:, 0][batch.keep].long())
    assert (batch.weak == 10).all()
    assert {0, 1, 2} <= set(batch.label.unique().tolist())


@pytest.mark.parametrize("dims", [2, 3])
def test_boxes_go_in_both_directions(dims: int) -> None:
    source = telling(dims, 0.5)
    batch = method(dims, plain=0).batch(source)
    boxes = torch.cat([~batch.keep[:2], batch.keep[2:]])
    for box in boxes:
        where = box.nonzero()
        extent = where.amax(0) - where.amin(0) + 1
        assert extent.tolist() == [round(side * 2 / 3) for side in source.patch]
        assert extent.prod() == len(where)


@pytest.mark.parametrize("dims", [2, 3])
def test_at_first_labelled_images_are_mixed_with_each_other(dims: int) -> None:
    batch = method(dims, warm_up=0.4).batch(telling(dims, 0.39))
    assert batch.weak is None
    assert (batch.label != -1).all()
    assert torch.equal(batch.label, batch.image[:, 0].long())
    assert method(dims, warm_up=0.4).batch(telling(dims, 0.4)).weak is not None
    assert len(batch.plain) == 4
    assert torch.equal(batch.plain_label, batch.plain[:, 0].long())


def test_each_part_is_learnt_from_who_knows_it() -> None:
    made = method(pseudo_weight=0.3, threshold=0.5, plain=2)
    with torch.no_grad():
        for parameter in made.teacher.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    batch = made.batch(phantom_source(2, progress=0.8))
    label = pseudo_label(made.teacher(batch.weak), threshold=0.5).where(~batch.keep, -1)
    learnt = partial(control, made, progress=0.8)
    known, pseudo = learnt(batch.image, batch.label), learnt(batch.image, label)
    plain = learnt(batch.plain, batch.plain_label)
    output = made.step(batch, 0.8)
    torch.testing.assert_close(output.loss, known + plain + 0.3 * pseudo)
    torch.testing.assert_close(output.terms["plain"], plain)
    share = (label != -1).sum() / (~batch.keep).sum()
    torch.testing.assert_close(output.logs["confident"], share)


def test_pseudo_labels_weigh_nothing_when_their_ramp_begins_or_nobody_is_sure() -> None:
    made = method(warm_up=0.25, ramp=0.5, plain=0)
    batch = made.batch(phantom_source(2))
    known = control(made, batch.image, batch.label, progress=0.25)
    torch.testing.assert_close(made.step(batch, 0.25).loss, known)
    output = made.step(batch, 0.5)
    torch.testing.assert_close(output.terms["pseudo"], 0.25 * output.logs["pseudo"])
    unsure = method(threshold=1.0, plain=0)
    output = unsure.step(batch, 0.8)
    assert output.logs["confident"] == 0
    known = control(unsure, batch.image, batch.label, progress=0.8)
    torch.testing.assert_close(output.loss, known)


@pytest.mark.parametrize("dims", [2, 3])
def test_without_unlabelled_cases_it_is_the_control(dims: int) -> None:
    made = method(dims)
    source = dataclasses.replace(phantom_source(dims), unlabelled=[])
    batch = made.batch(source)
    own = Supervised(made.network, ControlSettings()).batch(source)
    assert torch.equal(batch.image, own.image)
    assert torch.equal(batch.label, own.label)
    assert torch.equal(made.step(batch, 0.5).loss, control(made, own.image, own.label, progress=0.5))


def test_a_mixture_is_recoloured_as_one_image_and_the_teachers_is_not() -> None:
    source = phantom_source(2)
    changed, plain = method().batch(source), method(recolour=False).batch(source)
    assert not torch.equal(changed.image, plain.image)
    assert torch.equal(changed.weak, plain.weak)
    shown = plain.image.where(plain.keep.unsqueeze(1), plain.weak)
    assert torch.equal(shown, plain.image)


def test_largest_pieces_by_hand() -> None:
    label = torch.tensor([
        [[1, 0, 0, 2], [0, 1, 0, 2], [-1, 0, 0, 0], [1, 0, 2, 2]],  # the diagonal ones touch
        [[0, 0, 0, 0], [0, 2, 2, 0], [0, 0, 0, 0], [2, 0, 0, -1]],
    ])  # fmt: skip
    expected = torch.tensor([
        [[1, 0, 0, 2], [0, 1, 0, 2], [-1, 0, 0, 0], [0, 0, 0, 0]],
        [[0, 0, 0, 0], [0, 2, 2, 0], [0, 0, 0, 0], [0, 0, 0, -1]],
    ])  # fmt: skip
    before = label.clone()
    assert torch.equal(largest_pieces(label), expected)
    assert torch.equal(label, before)
    deep = torch.stack([label[:1], torch.zeros(1, 4, 4, dtype=torch.int64)], dim=1)
    assert torch.equal(largest_pieces(deep)[:, 0], expected[:1])
    assert torch.equal(largest_pieces(torch.zeros_like(label)), torch.zeros_like(label))


def test_largest_pieces_are_what_the_student_learns() -> None:
    made = method(largest=True, plain=0)
    batch = made.batch(phantom_source(2, progress=0.8))
    label = largest_pieces(pseudo_label(made.teacher(batch.weak))).where(~batch.keep, -1)
    assert not torch.equal(label, pseudo_label(made.teacher(batch.weak)).where(~batch.keep, -1))
    output = made.step(batch, 0.8)
    torch.testing.assert_close(output.logs["pseudo"], control(made, batch.image, label, progress=0.8))


def test_wrong_settings_are_named() -> None:
    with pytest.raises(UsageError, match="two directions"):
        method().batch(dataclasses.replace(phantom_source(2), batch=1))
    for wrong in ({"box": 1.0}, {"warm_up": 1.1}, {"labelled": 1}, {"plain": -1}, {"pseudo_weight": -1.0}):
        with pytest.raises(UsageError):
            Settings(**wrong)
