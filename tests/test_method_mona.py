"""Laws of MONA: what each principle is, that each can be left out, what the pseudo-labels show, what is remembered."""

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from handful.batches import IGNORE
from handful.data.augment.diffeomorphic import sample_velocity, warp
from handful.data.augment.settings import AugmentSettings
from handful.data.sampling import Source
from handful.errors import UsageError
from handful.losses.equivariance import anatomy, masked_divergence
from handful.losses.mixing import erase, next_partner, paste
from handful.losses.neighbours import nearest_neighbours, pooled
from handful.losses.pseudo_label import pseudo_label_cross_entropy
from handful.methods import mona
from handful.methods.mona import MONA, Settings
from handful.methods.mona_pretrain import MONAPretrain
from handful.methods.mona_pretrain import Settings as PretrainSettings
from handful.methods.supervised import Settings as ControlSettings
from handful.methods.supervised import Supervised
from handful.networks.unet import UNet
from test_methods import phantom_source

COLOURS = ("p_noise", "p_blur", "p_low_resolution", "p_brightness", "p_contrast", "p_gamma")
PRINCIPLES = {"tailness", "consistency", "diversity"}


def network(dims: int = 2, *, sure: float = 1.0, norm: str = "instance") -> UNet:
    """Return an untrained network whose logits are larger by the factor ``sure``."""
    torch.manual_seed(0)
    made = UNet(dims=dims, in_channels=1, classes=3, widths=(4, 6, 8), deep_supervision=True, norm=norm)
    for parameter in made.heads.parameters():
        parameter.data.mul_(sure)
    return made


def method(dims: int = 2, sure: float = 1.0, norm: str = "instance", **settings: Any) -> MONA:
    small = {"queries": 8, "negatives": 16, "width": 5, "cells": 2, "bank": 40, "background_bank": 50}
    return MONA(network(dims, sure=sure, norm=norm), Settings(**{**small, **settings}))


def colourless(source: Source) -> Source:
    return dataclasses.replace(source, augment=AugmentSettings(**dict.fromkeys(COLOURS, 0.0)))


def trained_step(made: MONA, step: int, rate: float = 0.01) -> Tensor:
    made.zero_grad()
    loss = made.step(made.batch(phantom_source(2, step=step)), 0.1).loss
    loss.backward()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.grad is not None:
                parameter.sub_(rate * parameter.grad)
    made.after_step(0.1)
    return loss.detach()


@pytest.mark.parametrize("dims", [2, 3])
def test_without_unlabelled_cases_it_is_the_control(dims: int) -> None:
    made, control = method(dims), Supervised(network(dims), ControlSettings())
    source = dataclasses.replace(phantom_source(dims), unlabelled=())
    batch, theirs = made.batch(source), control.batch(source)
    assert torch.equal(batch.image, theirs.image)
    assert torch.equal(batch.label, theirs.label)
    output = made.step(batch, 0.7)
    assert torch.equal(output.loss, control.step(theirs, 0.7).loss)
    assert not PRINCIPLES & set(output.logs)
    made.after_step(0.7)


@pytest.mark.parametrize("form", ["paper", "code"])
def test_each_principle_can_be_left_out_and_no_other_term_notices(form: str) -> None:
    def terms(**settings: Any) -> dict[str, float]:
        made = method(sure=20, form=form, repair_start=False, **settings)
        batch = made.batch(phantom_source(2))
        return {name: term.item() for name, term in made.step(batch, 0.1).terms.items()}

    full = terms()
    assert PRINCIPLES | {"pseudo_label"} <= set(full)
    weights = {
        "tailness": "contrast_weight",
        "consistency": "equivariance_weight",
        "diversity": "neighbour_weight",
    }
    for name in sorted(PRINCIPLES):
        without = terms(**{name: False})
        assert without.keys() == full.keys() - {name}
        for other in (
            without.keys() - PRINCIPLES
        ):  # heads of embeddings begin elsewhere where there are fewer banks
            assert without[other] == pytest.approx(full[other], rel=1e-5), (name, other)
        assert terms(**{weights[name]: 0.0}).keys() == without.keys()
        doubled = terms(**{weights[name]: 2 * getattr(Settings(), weights[name])})
        assert doubled[name] == pytest.approx(2 * full[name], rel=1e-5)
        assert full[name] > 0
    bare = method(tailness=False, consistency=False, diversity=False, pseudo_weight=0.0)
    batch = bare.batch(phantom_source(2))
    assert torch.equal(
        bare.step(batch, 0.1).loss, Supervised(network(), ControlSettings()).step(batch, 0.1).loss
    )


@pytest.mark.parametrize("mix", ["cutmix", "cutout", "none"])
def test_strong_views_show_what_the_mixing_left(mix: str) -> None:
    source = colourless(phantom_source(2))
    batch = method(deform=0.0, mix=mix).batch(source)
    if mix == "none":
        assert batch.keep is None
        torch.testing.assert_close(batch.strong, batch.weak)
    else:
        own = batch.keep[:, None].expand_as(batch.weak)
        torch.testing.assert_close(batch.strong[own], batch.weak[own])
        instead = batch.weak.roll(-1, 0) if mix == "cutmix" else torch.zeros_like(batch.weak)
        torch.testing.assert_close(batch.strong[~own], instead[~own])
        assert (~own).float().mean() == pytest.approx(0.5, abs=0.05)


def test_class_mix_moves_images_labels_and_confidences_alike() -> None:
    batch = method(mix="classmix").batch(phantom_source(2))
    assert batch.keep is None
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 4, batch.weak[:, 0].shape, generator=generator)
    confidence = torch.rand(label.shape, generator=generator)
    # images that show their own labels and confidences
    batch = batch._replace(strong=label[:, None].float(), second=confidence[:, None])
    mixed, labels, confidences = mona._mixed_by_class(batch, label, confidence)
    assert torch.equal(mixed.strong[:, 0].long(), labels)
    assert torch.equal(mixed.second[:, 0], confidences)
    kept = confidences == confidence
    assert torch.equal(confidences[~kept], confidence.roll(-1, 0)[~kept])
    for own, mine in zip(label, kept):
        assert len(set(own[mine].tolist())) == 2, "half of four classes"


@pytest.mark.parametrize("mix", ["cutmix", "cutout", "classmix", "none"])
@pytest.mark.parametrize("dims", [2, 3])
def test_the_terms_are_the_losses_of_what_the_networks_say(dims: int, mix: str) -> None:
    made = method(dims, sure=20, deform=0.0, repair_start=False, mix=mix)
    batch = made.batch(phantom_source(dims))
    terms = made.step(batch, 0.1).terms
    confidence, label = made.teacher.module.network(batch.weak).softmax(1).max(1)
    if mix == "cutmix":
        label, confidence = (
            paste(each, batch.keep, next_partner(len(label))) for each in (label, confidence)
        )
    elif mix == "cutout":
        label, confidence = erase(label, batch.keep, IGNORE), erase(confidence, batch.keep, 0)
    elif mix == "classmix":
        batch, label, confidence = mona._mixed_by_class(batch, label, confidence)
    student, known = made.network, len(batch.image)
    expected = pseudo_label_cross_entropy(student(batch.strong), label, confidence)
    torch.testing.assert_close(terms["pseudo_label"], expected)

    images = torch.cat([batch.image, batch.second])
    low = images.flatten(1).amin(1).reshape(-1, *[1] * (dims + 1))
    prediction = student(warp(images - low, batch.grid) + low)
    target = warp(student(torch.cat([batch.image, batch.strong])), batch.grid)
    counts = anatomy(
        torch.cat([batch.label, label]), torch.cat([torch.ones_like(confidence[:1])] * known + [confidence])
    )
    mask = warp(counts[:, None].float(), batch.grid)
    torch.testing.assert_close(terms["consistency"], masked_divergence(prediction, target, mask))

    own = pooled(made.project(made.student(batch.strong)[1]), 2)
    theirs = pooled(made.teacher(batch.strong)[1], 2)
    expected = nearest_neighbours(own, theirs, made.neighbours.valid)
    torch.testing.assert_close(terms["diversity"], expected)
    made.after_step(0.1)
    torch.testing.assert_close(made.neighbours.in_order()[-len(theirs) :], theirs)


class Threshold(nn.Module):
    """Say class 1 where the image exceeds ``at``, 2 elsewhere: the same whatever is around a pixel."""

    def __init__(self, at: float = 0.0) -> None:
        super().__init__()
        self.at, self.scale = at, nn.Parameter(torch.tensor(30.0))

    def forward(self, image: Tensor) -> Tensor:
        logit = self.scale * (image - self.at)
        return torch.cat([torch.zeros_like(logit), logit, -logit], dim=1)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("deform", [0.0, 1.0])
def test_pseudo_labels_show_the_pixels_of_the_strong_view(
    dims: int, deform: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        mona, "sample_velocity", lambda *size, **others: 100 * sample_velocity(*size, **others)
    )

    def agreement(align: bool) -> float:
        settings = Settings(tailness=False, diversity=False, deform=deform, align=align, unlabelled=3)
        made = MONA(Threshold(0.5), settings)
        batch = made.batch(colourless(phantom_source(dims)))
        assert (batch.flow is not None) == (align and deform == 1)
        label, confidence = made._pseudo_labels(batch)
        assert confidence.min() > 1 / 3
        return float(((label == 1) == (batch.strong[:, 0] > 0.5)).float().mean())

    if deform == 0:
        assert agreement(True) == agreement(False) == 1
    else:
        assert agreement(True) > agreement(False) + 0.03


def test_what_looks_at_single_pixels_is_consistent_and_what_looks_around_is_not() -> None:
    settings = {
        "warp_degrees": 0.0,
        "warp_scale": (1.5, 1.5),
        "warp_shift": 0.0,
    }  # nothing comes in from outside

    def consistency(of: nn.Module, **others: Any) -> float:
        made = MONA(of, Settings(tailness=False, diversity=False, **{**settings, **others}))
        return made.step(made.batch(colourless(phantom_source(2))), 0.0).terms["consistency"].item()

    assert consistency(Threshold()) < 1e-6  # its logits are linear in the image, as the warp is
    assert consistency(network(sure=20)) > 0.01


def test_the_teacher_begins_as_the_student_was_loaded_and_follows_without_gradient() -> None:
    first = MONAPretrain(network(), PretrainSettings(batch=4, width=16))
    for parameter in first.parameters():
        parameter.data.add_(0.1)
    made = method(decay=0.75)
    segmenter = made.exports()["segmenter"]
    assert isinstance(segmenter, UNet)
    for name, part in first.exports().items():
        getattr(segmenter, name).load_state_dict(part.state_dict())
    made.step(made.batch(phantom_source(2)), 0.0).loss.backward()
    for mine, theirs in zip(made.teacher.module.parameters(), made.student.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert mine.grad is None
    before = copy.deepcopy(made.student.state_dict())
    for parameter in made.student.parameters():
        parameter.data.add_(1.0)
    made.teacher.followed = 1000  # past the young teacher's quick steps
    made.after_step(0.0)
    for name, parameter in made.teacher.module.named_parameters():
        torch.testing.assert_close(parameter, before[name] + 0.25)


def test_banks_fill_after_the_step_and_are_drawn_from_as_if_before() -> None:
    made = method(sure=3, form="code")
    batch = made.batch(phantom_source(2))
    first = made.step(batch, 0.1)
    assert made.banks.sizes == [0, 0, 0]  # a step changes nothing
    assert torch.equal(made.step(batch, 0.1).loss, first.loss)
    assert first.logs["tailness"] > 0
    fresh = made.banks.with_rows(made.fresh_keys)
    made.after_step(0.1)
    assert min(made.banks.sizes) > 0
    for bank, rows in zip(made.banks.banks, fresh):
        assert torch.equal(bank.in_order(), rows)


def test_by_the_released_rule_three_classes_have_no_keys() -> None:
    made = method(sure=3, form="code", repair_keys=False, low_rank=3)
    for step in range(3):
        trained_step(made, step)
    assert made.banks.sizes == [0, 0, 0]


def test_memories_begin_empty_or_as_released() -> None:
    assert len(method(form="code").neighbours) == 0
    released = method(form="code", repair_start=False)
    assert released.banks.sizes == [1, 1, 1]
    assert not torch.cat(released.banks.valid).any()
    torch.testing.assert_close(released.neighbours.valid.norm(dim=1), torch.ones(36))
    assert torch.cat(method(3, form="code", repair_start=False).banks.valid).any()


@pytest.mark.parametrize("form", ["paper", "code"])
@pytest.mark.parametrize("dims", [2, 3])
def test_absent_classes_and_unknown_labels_leave_terms_out_without_nan(form: str, dims: int) -> None:
    made = method(dims, form=form, sure=20)
    batch = made.batch(phantom_source(dims))
    for label in (
        batch.label.where(batch.label != 1, 2),
        torch.zeros_like(batch.label),
        torch.full_like(batch.label, IGNORE),
    ):
        made.zero_grad()
        output = made.step(batch._replace(label=label), 0.5)
        output.loss.backward()
        gradients = [p.grad for p in made.parameters() if p.grad is not None]
        assert all(torch.isfinite(value).all() for value in (*output.logs.values(), *gradients))
    assert output.logs["dice_loss"] == output.logs["cross_entropy"] == 0


@pytest.mark.parametrize("form", ["paper", "code"])
def test_a_restored_run_repeats_the_uninterrupted_one(form: str) -> None:
    made, restored = method(form=form, neighbour_bank=5), method(form=form, neighbour_bank=5)
    for parameter in restored.parameters():
        parameter.data.add_(1.0)
    for step in range(2):
        trained_step(made, step)
    restored.load_state_dict(copy.deepcopy(made.state_dict()))
    for step in (2, 3):
        assert torch.equal(trained_step(made, step), trained_step(restored, step))


def test_only_the_repaired_neighbours_teach() -> None:
    for form, teaches in (("mean_shift", True), ("official", False)):
        made = method(tailness=False, neighbour_form=form, repair_start=False)
        term = made.step(made.batch(phantom_source(2)), 0.1).terms["diversity"]
        assert term.requires_grad == teaches


@pytest.mark.parametrize("dims", [2, 3])
def test_maps_as_large_as_the_image_are_remembered_whole(dims: int) -> None:
    source = phantom_source(dims)
    made = method(dims, level=0, cells=source.patch, width=None, extractor="published", neighbour_bank=3)
    batch = made.batch(source)
    made.step(batch, 0.0)
    made.after_step(0.0)
    assert made.neighbours.rows.shape[1] == (4 + 6 + 8) * torch.tensor(source.patch).prod()
    torch.testing.assert_close(
        made.neighbours.in_order().shape, torch.Size([len(batch.weak), made.neighbours.rows.shape[1]])
    )


def test_together_in_batch_norm_strong_views_change_what_is_said_of_labelled_images() -> None:
    batch = method().batch(phantom_source(2))
    apart, together = (
        method(norm="batch", joint_norm=joint).train().step(batch, 0).logs["dice_loss"]
        for joint in (False, True)
    )
    alone = Supervised(network(norm="batch"), ControlSettings()).train().step(batch, 0).logs["dice_loss"]
    assert torch.equal(apart, alone)
    assert not torch.allclose(together, alone)


def test_what_cannot_be_is_refused_in_words() -> None:
    with pytest.raises(UsageError, match="decoder has 3 levels"):
        method(level=3)
    with pytest.raises(UsageError, match="one for each axis"):
        method(cells=(2, 2, 2))
    with pytest.raises(UsageError, match="certain is a percentage"):
        Settings(certain=80.0)
    with pytest.raises(UsageError, match="weights must be 0 or more"):
        Settings(contrast_weight=-1.0)
