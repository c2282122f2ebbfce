"""Laws of BYOL and SimSiam: which side is trained, how the teacher follows, what the loss is."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from handful.errors import UsageError
from handful.methods.byol import BYOL, Batch, Settings
from handful.networks.unet import UNet
from test_methods import phantom_source

SMALL = {"hidden": 12, "width": 6, "predictor_hidden": 10, "batch": 4}


def made(**settings: object) -> BYOL:
    torch.manual_seed(0)
    network = UNet(dims=2, in_channels=1, classes=3, widths=(4, 6, 8), blocks=1)
    return BYOL(network, Settings(**{**SMALL, **settings}))  # type: ignore[arg-type]


def test_byol_is_the_distance_to_the_teacher_in_both_directions() -> None:
    method = made()
    with torch.no_grad():
        for parameter in method.teacher.parameters():  # a teacher of its own mind
            parameter.mul_(1.5).add_(0.01)
    batch = method.batch(phantom_source(2))
    total = 0.0
    for mine, other in ((batch.first, batch.second), (batch.second, batch.first)):
        p = F.normalize(method.predictor(method.student(mine)), dim=1)
        t = F.normalize(method.teacher(other), dim=1)
        total += (p - t).square().sum(1).mean().item()
    assert method.step(batch, 0.5).loss.item() == pytest.approx(total, rel=1e-5)


def test_simsiam_is_half_the_negative_cosines_and_has_no_teacher() -> None:
    method = made(form="simsiam")
    assert method.teacher is None
    batch = method.batch(phantom_source(2))
    z1, z2 = method.student(batch.first), method.student(batch.second)
    cosines = [F.cosine_similarity(method.predictor(a), b).mean().item() for a, b in ((z1, z2), (z2, z1))]
    assert method.step(batch, 0.5).loss.item() == pytest.approx(-sum(cosines) / 2, rel=1e-5)
    torch.testing.assert_close(z1.mean(0), torch.zeros(6), atol=1e-5, rtol=0)  # a norm ends the projector


@pytest.mark.parametrize(("form", "factor"), [("byol", 4), ("simsiam", 1)])
def test_nothing_reaches_the_student_through_the_target(form: str, factor: int) -> None:
    method = made(form=form)
    image = method.batch(phantom_source(2)).first
    method.step(Batch(image, image), 0.5).loss.backward()
    found = [p.grad.clone() for p in method.student.parameters()]
    method.zero_grad()
    target = (method.student if method.teacher is None else method.teacher)(image).detach()
    cosine = F.cosine_similarity(method.predictor(method.student(image)), target).mean()
    (-factor * cosine).backward()
    for gradient, parameter in zip(found, method.student.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-6, rtol=1e-4)


def test_the_teacher_follows_along_a_cosine_and_stands_still_at_the_end() -> None:
    method = made(decay=0.9)
    for progress, decay in ((0.0, 0.9), (1 / 3, 0.925), (0.5, 0.95), (1.0, 1.0)):
        with torch.no_grad():
            for parameter in method.student.parameters():
                parameter.add_(torch.randn_like(parameter))
        before = [p.clone() for p in method.teacher.parameters()]
        method.after_step(progress)
        for old, new, student in zip(
            before, method.teacher.parameters(), method.student.parameters(), strict=True
        ):
            torch.testing.assert_close(new, decay * old + (1 - decay) * student)


def test_views_do_not_share_batch_statistics() -> None:
    method = made()
    batch = method.batch(phantom_source(2))
    alone = method.predictor(method.student(batch.first))
    shifted = batch._replace(second=batch.second * 3 + 5)
    for other in (batch, shifted):
        z = method.step(other, 0.5).watched.embeddings[:, 0]
        torch.testing.assert_close(method.predictor(z), alone)


def test_one_volume_is_enough_and_widths_are_the_forms() -> None:
    source = phantom_source(2)
    method = made()
    batch = method.batch(replace(source, labelled=source.labelled[:1], unlabelled=[]))
    assert torch.isfinite(method.step(batch, 0.0).loss)
    wide = {"hidden": None, "width": None, "predictor_hidden": None}
    assert [p.shape[0] for p in made(**wide).student.head.parameters() if p.ndim == 2] == [1024, 256]
    simsiam = made(form="simsiam", **wide)
    assert [p.shape[0] for p in simsiam.student.head.parameters() if p.ndim == 2] == [512, 512, 512]
    assert [p.shape[0] for p in simsiam.predictor.parameters() if p.ndim == 2] == [128, 512]


@pytest.mark.parametrize("wrong", [{"decay": 1.1}, {"batch": 1}, {"patch_share": 0}, {"hidden": 0}])
def test_settings_that_cannot_be_are_said(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Settings(**wrong)  # type: ignore[arg-type]
