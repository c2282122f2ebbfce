"""Laws of MoCo: what a query is told from, and how queue and teacher move."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from handful.errors import DataError, UsageError
from handful.methods.moco import MoCo, Settings
from handful.networks.unet import UNet
from test_methods import phantom_source


def made(**settings: object) -> MoCo:
    torch.manual_seed(0)
    network = UNet(dims=2, in_channels=1, classes=3, widths=(4, 6, 8), blocks=1, norm="batch")
    return MoCo(network, Settings(**{"width": 5, "queue": 40, "batch": 6, **settings}))  # type: ignore[arg-type]


@pytest.mark.parametrize("batch_negatives", [True, False])
def test_the_loss_told_slowly(batch_negatives: bool) -> None:
    method = made(batch_negatives=batch_negatives)
    for step in range(3):
        method.step(method.batch(phantom_source(2, step=step)), 0.5)
        method.after_step(0.5)
    batch = method.batch(phantom_source(2, step=3))
    q, k = (F.normalize(z, dim=1) for z in (method.student(batch.first), method.teacher(batch.second)))
    rows, boxes = method.memory.valid
    assert len(rows) == 18
    rows = F.normalize(rows, dim=1)
    if batch_negatives:
        rows, boxes = torch.cat([rows, k]), torch.cat([boxes, batch.box])
    total, left_out = 0.0, 0
    for query, key, mine in zip(q, k, batch.box, strict=True):
        near = (query @ key / 0.2).exp()
        far = torch.zeros(())
        for row, theirs in zip(rows, boxes, strict=True):
            same = mine[0] == theirs[0] and bool(
                (mine[1:4] < theirs[4:]).all() and (theirs[1:4] < mine[4:]).all()
            )
            far = far + (0 if same else (query @ row / 0.2).exp())
            left_out += same
        total -= (near / (near + far)).log().item()
    assert left_out > 6 * batch_negatives  # besides an image's own key
    assert method.step(batch, 0.5).loss.item() == pytest.approx(total / 6, rel=1e-5)


def test_the_keys_of_a_step_enter_the_queue_after_it_with_their_boxes() -> None:
    method = made()
    batch = method.batch(phantom_source(2))
    keys = method.teacher(batch.second)
    method.step(batch, 0.0)
    assert len(method.memory.valid[0]) == 0
    method.after_step(0.0)
    torch.testing.assert_close(method.memory.valid[0], keys)
    assert torch.equal(method.memory.valid[1], batch.box)


def test_the_teacher_follows() -> None:
    method = made(decay=0.9)
    before = [p.clone() for p in method.teacher.parameters()]
    with torch.no_grad():
        for parameter in method.student.parameters():
            parameter.add_(torch.randn_like(parameter))
    method.after_step(0.5)
    for old, new, student in zip(
        before, method.teacher.parameters(), method.student.parameters(), strict=True
    ):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * student)


def test_a_key_depends_on_its_own_image_alone() -> None:
    method = (
        made()
    )  # with batch norm: its statistics are the averaged ones, which no image of the batch moves
    batch = method.batch(phantom_source(2))
    together = method.teacher(batch.second)
    torch.testing.assert_close(method.teacher(batch.second[:1]), together[:1])
    assert not torch.allclose(method.student(batch.second[:2])[:1], method.student(batch.second)[:1])


def test_the_published_queue_starts_full_of_directions() -> None:
    rows, boxes = made(random_start=True).memory.valid
    assert rows.shape == (40, 5)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(40))
    assert (boxes == -1).all()
    published = made(random_start=True, batch_negatives=False)
    assert published.step(published.batch(phantom_source(2)), 0.0).loss.item() > 1


def test_without_anything_to_tell_apart_it_says_so() -> None:
    source = phantom_source(3)
    alone = replace(source, labelled=source.labelled[:1], unlabelled=[])
    network = UNet(dims=3, in_channels=1, classes=3, widths=(4, 6), blocks=1)
    with pytest.raises(DataError, match="all patches it drew overlap"):
        MoCo(network, Settings(patch_share=1.0)).batch(alone)
    MoCo(network, Settings(patch_share=1.0)).batch(source)


@pytest.mark.parametrize("wrong", [{"temperature": 0}, {"queue": 0}, {"decay": -0.1}, {"batch": 1}])
def test_settings_that_cannot_be_are_said(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Settings(**wrong)  # type: ignore[arg-type]
