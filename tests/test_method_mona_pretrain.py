"""Laws of MONA's first stage: what is related to what, who learns from it, and what is remembered."""

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from handful.batches import IGNORE
from handful.data.augment.settings import AugmentSettings
from handful.errors import DataError, UsageError
from handful.losses.relational import relation, window_relation, windows
from handful.losses.segmentation import dice_ce
from handful.methods.mona_pretrain import MONAPretrain, Settings
from handful.networks.build import build_network, unet_architecture
from test_methods import phantom_source


def method(dims: int = 2, **settings: Any) -> MONAPretrain:
    torch.manual_seed(0)
    network = build_network(
        unet_architecture(
            dims=dims, in_channels=1, classes=3, widths=(4, 6, 8), strides=((2,) * dims,) * 2, blocks=1,
            norm="instance",
        )
    )  # fmt: skip
    return MONAPretrain(network, Settings(**{"batch": 4, "width": 16, **settings}))


def as_identity(made: MONAPretrain) -> None:
    """Make the student's predictors pass on what they are given."""
    with torch.no_grad():
        for layer in [*made.predict, *made.predict_cells.layers]:
            assert isinstance(layer, nn.Linear | nn.Conv2d | nn.Conv3d)
            layer.weight.copy_(torch.eye(len(layer.weight)).reshape(layer.weight.shape))
            layer.bias.zero_()


@pytest.mark.parametrize("dims", [2, 3])
def test_projecting_before_cutting_is_cutting_before_projecting(dims: int) -> None:
    made = method(dims)
    side = {2: 64, 3: 32}[dims]  # each cell of a window is two voxels long
    image = torch.randn(2, 1, *[side] * dims)
    views = made.student(image)
    cut = windows(views.logits, size=side // 4, step=side // 8)  # the published windows
    assert cut.shape[1] == 7**dims
    average = nn.AdaptiveAvgPool2d if dims == 2 else nn.AdaptiveAvgPool3d
    projected = made.student.project_cells(average(made.cells)(cut.flatten(0, 1)))
    torch.testing.assert_close(made.cut(views.cells), projected.reshape(2, 7**dims, -1))
    assert made.cut(views.cells).shape[2] == 3 * made.cells**dims


@pytest.mark.parametrize("references", ["bank", "mined"])
@pytest.mark.parametrize("form", ["repaired", "official"])
def test_the_terms_are_the_losses_of_what_the_heads_give(references: str, form: str) -> None:
    made = method(references=references, window_form=form, supervised_weight=0.5)
    batch = made.batch(phantom_source(2))
    output = made.step(batch, 0.0)
    own, target = made.student(batch.student), made.teacher(batch.teacher)
    if references == "bank":
        vectors, cells = made.bank.valid, made.window_bank.valid
        assert batch.mined is None
    else:
        assert made.bank is None
        assert batch.mined.shape[0] == 5
        mined = made.teacher(batch.mined)
        vectors, cells = mined.embedding, made.cut(mined.cells)
    student_windows = made.cut(made.predict_cells(own.cells))
    known = [0, 1]  # half of the four images are from labelled cases
    assert (batch.label[2:] == IGNORE).all()
    expected = {
        "global_relation": relation(made.predict(own.embedding), target.embedding, vectors),
        "window_relation": window_relation(student_windows, made.cut(target.cells), cells, form=form),
        "supervised": 0.5
        * dice_ce(own.logits[known], batch.label[known], include_background=True, squared=True),
    }
    for name, term in expected.items():
        assert output.terms[name].item() == pytest.approx(term.item(), rel=1e-5), name
    assert output.loss.item() == pytest.approx(sum(term.item() for term in expected.values()), rel=1e-5)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_student_that_says_what_the_teacher_says_relates_alike(dims: int) -> None:
    made = method(dims, strong="none", teacher_temperature=0.1)
    as_identity(made)
    batch = made.batch(phantom_source(dims))
    assert torch.equal(batch.student, batch.teacher)
    terms = made.step(batch, 0.0).terms
    assert terms["global_relation"].item() == pytest.approx(0, abs=1e-6)
    assert terms["window_relation"].item() == pytest.approx(0, abs=1e-6)
    turned = batch._replace(teacher=batch.teacher.flip(0))
    assert made.step(turned, 0.0).terms["global_relation"].item() > 1e-4


def test_the_teacher_follows_without_gradient_and_its_words_enter_the_bank() -> None:
    made = method(bank=6, decay=0.75)
    for parameter in made.student.parameters():
        parameter.data.add_(0.1)
    batch = made.batch(phantom_source(2))
    start = made.bank.rows.clone()
    assert len(made.bank) == len(made.window_bank) == 6
    before = copy.deepcopy(made.teacher)
    made.step(batch, 0.0).loss.backward()
    assert torch.equal(made.bank.rows, start)  # only what came before is related to
    made.after_step(0.0)
    assert all(p.grad is None for p in made.teacher.parameters())
    student = dict(made.student.named_parameters())
    old = dict(before.module.named_parameters())
    for name, parameter in made.teacher.module.named_parameters():
        torch.testing.assert_close(parameter, 0.75 * old[name] + 0.25 * student[name])
    said = before(batch.teacher)
    torch.testing.assert_close(made.bank.in_order()[-4:], said.embedding)
    torch.testing.assert_close(made.window_bank.in_order()[-4:], made.cut(said.cells))
    assert torch.equal(made.bank.in_order()[:2], start[4:])


@pytest.mark.parametrize(
    ("strong", "moved"),
    [("none", (0, 0)), ("student", (1, 0)), ("teacher", (0, 1)), ("both", (1, 1))],
)
def test_the_strong_view_alone_is_recoloured_and_both_show_the_same_pixels(
    strong: str, moved: tuple[int, int]
) -> None:
    source = phantom_source(2)
    plain = method(strong="none").batch(source).student
    batch = method(strong=strong).batch(source)
    assert (not torch.equal(batch.student, plain), not torch.equal(batch.teacher, plain)) == moved
    colours = {"p_noise", "p_blur", "p_low_resolution", "p_brightness", "p_contrast", "p_gamma"}
    colourless = dataclasses.replace(source, augment=AugmentSettings(**dict.fromkeys(colours, 0.0)))
    still = method(strong=strong).batch(colourless)
    assert torch.equal(still.student, still.teacher)
    assert torch.equal(still.student, plain)  # geometry does not depend on the colours


def test_without_labels_only_relations_are_learnt() -> None:
    made = method()
    batch = made.batch(dataclasses.replace(phantom_source(2), labelled=()))
    assert batch.label is None
    output = made.step(batch, 0.0)
    assert set(output.terms) == {"global_relation", "window_relation"}
    output.loss.backward()
    reached = {n for n, p in made.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert reached == {n for n, p in made.named_parameters() if p.requires_grad}


def test_relations_do_not_depend_on_the_length_of_remembered_embeddings() -> None:
    made = method()
    batch = made.batch(phantom_source(2))
    before = made.step(batch, 0.0).loss
    made.bank.rows.mul_(3)
    made.window_bank.rows.mul_(0.2)
    torch.testing.assert_close(made.step(batch, 0.0).loss, before)


def test_a_restored_run_repeats_the_uninterrupted_one() -> None:
    def advance(made: MONAPretrain, step: int) -> Tensor:
        made.zero_grad()
        loss = made.step(made.batch(phantom_source(2, step=step)), 0.0).loss
        loss.backward()
        with torch.no_grad():
            for parameter in made.parameters():
                if parameter.grad is not None:
                    parameter.sub_(0.01 * parameter.grad)
        made.after_step(0.0)
        return loss.detach()

    made, restored = method(bank=6), method(bank=6)
    for parameter in restored.parameters():
        parameter.data.add_(1.0)
    advance(made, 0)
    restored.load_state_dict(copy.deepcopy(made.state_dict()))
    for step in (1, 2, 3):  # the ring of the bank is in the middle of a turn
        assert torch.equal(advance(made, step), advance(restored, step))


def test_the_teacher_drops_nothing_unless_asked() -> None:
    def said(trains: bool) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        network = build_network(
            unet_architecture(
                dims=2, in_channels=1, classes=3, widths=(4, 6, 8), style={"dropout": (0.0, 0.0, 0.5)}
            )
        )
        made = MONAPretrain(network, Settings(teacher_trains=trains)).train()
        image = torch.randn(2, 1, 16, 24)
        return made.teacher(image).embedding, made.teacher(image).embedding

    assert torch.equal(*said(False))
    assert not torch.equal(*said(True))


def test_what_cannot_be_learnt_from_is_refused_in_words() -> None:
    source = phantom_source(3)
    alone = dataclasses.replace(source, labelled=source.labelled[:1], unlabelled=())
    with pytest.raises(DataError, match="needs more cases, or in 3D smaller patches"):
        method(3, patch_share=1.0).batch(alone)
    with pytest.raises(UsageError, match="cells must be even"):
        Settings(cells=3)
    with pytest.raises(UsageError, match="mined must be at least 2"):
        Settings(references="mined", mined=1)
