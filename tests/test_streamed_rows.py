"""Laws of the contrast by whole rows: the forms are their equations over all pairs; few anchors change nothing."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from handful.losses import pixel_contrast, streamed, streamed_rows
from handful.losses.embeddings import unit
from handful.losses.streamed_rows import FORMS

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(params=["small pieces", "large pieces"])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Blocks and tiles that cut through classes, and such that hold everything."""
    if request.param == "small pieces":
        monkeypatch.setattr(streamed_rows, "BLOCK", 7)
        monkeypatch.setattr(streamed_rows, "KEYS", 29)
    return str(request.param)


def maps(
    *size: int, views: int = 2, width: int = 5, classes: int = 4, seed: int = 0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(2, views, width, *size, generator=generator, dtype=torch.float64)
    return z, torch.randint(0, classes, (2, views, *size), generator=generator)


def over_all_pairs(
    z: Tensor,
    labels: Tensor | None,
    *,
    form: str,
    temperature: float,
    background: int = 0,
    background_anchors: bool = False,
    ignore: int = -1,
) -> Tensor:
    """The forms as they are written, with N x N matrices of similarities and masks."""
    flat = unit(z.movedim(2, -1).flatten(0, -2))
    if labels is None:
        group = torch.arange(len(z) * z[0, 0, 0].numel()).view(len(z), 1, -1)
        group, background = group.expand(-1, z.shape[1], -1).flatten(), -1
    else:
        group = labels.flatten()
        flat, group = flat[group != ignore], group[group != ignore]
    alike = flat @ flat.T / temperature
    same = group[:, None] == group
    positive = same & ~torch.eye(len(group), dtype=torch.bool)
    count = positive.sum(1).to(z.dtype)
    own = alike.masked_fill(~positive, -math.inf).logsumexp(1)
    others = alike.masked_fill(same, -math.inf).logsumexp(1)
    total = torch.logaddexp(own, others)
    # the positives' similarities one by one: the mean of what a form makes of each
    each: dict[str, Callable[[], Tensor]] = {
        "outside": lambda: ((total[:, None] - alike) * positive).sum(1) / count,
        "inside": lambda: (
            count.log() - (alike - total[:, None]).masked_fill(~positive, -math.inf).logsumexp(1)
        ),
        "printed": lambda: -(own - others) / count,
        "negatives": lambda: ((others[:, None] - alike) * positive).sum(1) / count,
    }
    anchor = (count > 0) & ((group != background) | background_anchors)
    return each[form]()[anchor].mean()


def value_and_gradient(loss: Callable[[Tensor], Tensor], z: Tensor) -> tuple[float, Tensor]:
    z = z.detach().clone().requires_grad_()
    value = loss(z)
    (slope,) = torch.autograd.grad(value, z)
    return value.item(), slope


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("temperature", [0.002, 0.02, 0.1, 1.0])
@pytest.mark.parametrize("case", ["labels", "background_anchors", "ignore", "none", "three_views"])
def test_a_form_is_its_equation_over_all_pairs(case: str, temperature: float, form: str, pieces: str) -> None:
    z, labels = maps(5, 7, views=3 if case == "three_views" else 2)
    settings: dict[str, Any] = {"temperature": temperature, "form": form}
    known: Tensor | None = labels
    if case == "background_anchors":
        settings |= {"background_anchors": True, "background": 2}
    elif case == "ignore":
        settings |= {"ignore": 3, "background": 1}
    elif case in ("none", "three_views"):
        known = None
    value, slope = value_and_gradient(lambda z: pixel_contrast(z, known, **settings), z)
    expected, true = value_and_gradient(lambda z: over_all_pairs(z, known, **settings), z)
    assert value == pytest.approx(expected, rel=1e-10, abs=1e-12)
    torch.testing.assert_close(slope, true, rtol=1e-8, atol=1e-11)
    assert pixel_contrast(z, known, **settings).item() == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_gradcheck(form: str, pieces: str) -> None:
    z, labels = maps(2, 2, width=3, classes=3)
    for temperature in (0.015, 0.2):
        loss = partial(pixel_contrast, labels=labels, temperature=temperature, form=form)
        assert torch.autograd.gradcheck(loss, z.requires_grad_())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("temperature", [0.01, 0.1])
def test_float32_is_close_to_float64(form: Any, temperature: float, pieces: str) -> None:
    z, labels = maps(13, 17, width=16)
    expected, true = value_and_gradient(
        lambda z: pixel_contrast(z, labels, temperature=temperature, form=form), z
    )
    value, slope = value_and_gradient(
        lambda z: pixel_contrast(z, labels, temperature=temperature, form=form), z.float()
    )
    assert value == pytest.approx(expected, rel=1e-4 if form == "printed" else 1e-5)
    assert (slope - true).norm() <= 1e-5 * true.norm()


def test_the_printed_equation_gives_the_golden_number() -> None:
    case = dict(np.load(GOLDEN / "sscl_full_t010_detail.npz"))
    z, labels = torch.tensor(case["features"]), torch.tensor(case["labels"])
    value = pixel_contrast(z, labels, temperature=float(case["temperature"]), form="printed").item()
    assert value == pytest.approx(float(case["loss_printed_equation"]), rel=1e-9)


def test_equal_embeddings_by_hand() -> None:
    """5 of 12 pixels are background, 4 and 3 of two classes; every similarity is the same."""
    labels = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2]).view(1, 2, 2, 3)
    z = torch.ones(1, 2, 6, 2, 3, dtype=torch.float64)
    expected = {
        "outside": math.log(11),
        "inside": math.log(11),
        "printed": (4 * math.log(8 / 3) / 3 + 3 * math.log(9 / 2) / 2) / 7,
        "negatives": (4 * math.log(8) + 3 * math.log(9)) / 7,
    }
    assert expected.keys() == set(FORMS)
    for form, value in expected.items():
        loss = pixel_contrast(z, labels, temperature=0.1, form=form)
        assert loss.item() == pytest.approx(value, rel=1e-12)


def test_two_classes_by_hand() -> None:
    """Three pixels (1, 0) and (0, 1) of one class and two (0, 1) of background, at temperature 1."""
    z = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1], [0, 1]], dtype=torch.float64).T.reshape(1, 1, 2, 5)
    labels = torch.tensor([1, 1, 1, 0, 0]).view(1, 1, 5)
    e = math.e
    # own sums: e + 1 twice, then 2; others: 2 twice, then 2 e
    expected = {
        "outside": (2 * (math.log(e + 3) - 1 / 2) + math.log(2 + 2 * e)) / 3,
        "inside": (2 * math.log((e + 3) / ((e + 1) / 2)) + math.log(2 + 2 * e)) / 3,
        "printed": (2 * math.log(2 / (e + 1)) / 2 + math.log(2 * e / 2) / 2) / 3,
        "negatives": (2 * (math.log(2) - 1 / 2) + math.log(2 * e)) / 3,
    }
    for form, value in expected.items():
        loss = pixel_contrast(z, labels, temperature=1, form=form)
        assert loss.item() == pytest.approx(value, rel=1e-12), form


def test_order_of_the_forms() -> None:
    """The logarithm of a mean is at least the mean of logarithms; fewer in the denominator cost less."""
    z, labels = maps(6, 5)
    loss = {form: pixel_contrast(z, labels, temperature=0.2, form=form).item() for form in FORMS}
    assert loss["inside"] < loss["outside"]
    assert loss["negatives"] < loss["outside"]
    # with one positive, the mean is the positive
    outside, inside = (pixel_contrast(z, None, temperature=0.2, form=form) for form in ("outside", "inside"))
    assert inside.item() == pytest.approx(outside.item(), rel=1e-12)


def test_one_class_has_no_negatives() -> None:
    z, labels = maps(4, 5)
    labels = torch.ones_like(labels)
    for form in ("printed", "negatives"):
        value, slope = value_and_gradient(
            partial(pixel_contrast, labels=labels, temperature=0.1, form=form), z
        )
        assert value == 0
        assert not slope.any()
    # all the mass is on positives already
    for temperature in (0.1, 0.01):
        value, slope = value_and_gradient(
            partial(pixel_contrast, labels=labels, temperature=temperature, form="inside"), z
        )
        assert value == pytest.approx(math.log(79), rel=1e-12)
        assert slope.abs().max() < 1e-15


def test_few_anchors_are_contrasted_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    rows = streamed_rows.contrast

    def count(z: Tensor, anchor: Tensor, *others: Any, **settings: Any) -> Tensor:
        passes.append(len(anchor))
        return rows(z, anchor, *others, **settings)

    monkeypatch.setattr(streamed_rows, "contrast", count)
    z, labels = maps(8, 9)
    few = labels * (torch.arange(72).view(8, 9) % 10 == 0)
    value, slope = value_and_gradient(lambda z: pixel_contrast(z, few, temperature=0.1), z)
    assert passes == [int((few > 0).sum())]
    # no gradient, no reason to keep anything; many anchors: tiles serve two directions at once
    assert pixel_contrast(z, few, temperature=0.1).item() == pytest.approx(value, rel=1e-12)
    pixel_contrast(z.requires_grad_(), labels, temperature=0.1)
    assert len(passes) == 1
    monkeypatch.setattr(streamed, "_few", lambda *_: False)
    again, same = value_and_gradient(lambda z: pixel_contrast(z, few, temperature=0.1), z)
    assert len(passes) == 1
    assert value == pytest.approx(again, rel=1e-12)
    torch.testing.assert_close(slope, same, rtol=1e-9, atol=1e-13)


def test_the_gradient_can_be_used_again_and_scaled() -> None:
    z, labels = maps(4, 5)
    z.requires_grad_()
    loss = pixel_contrast(z, labels, temperature=0.1, form="inside")
    (once,) = torch.autograd.grad(loss, z, retain_graph=True)
    (thrice,) = torch.autograd.grad(3 * loss, z, retain_graph=True)
    torch.testing.assert_close(thrice, 3 * once)
    (again,) = torch.autograd.grad(loss, z)
    assert torch.equal(again, once)


@pytest.mark.parametrize("rows", [True, False])
def test_differentiating_twice_is_refused(rows: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed, "_few", lambda *_: rows)
    z, labels = maps(4, 5)
    loss = pixel_contrast(z.requires_grad_(), labels, temperature=0.1)
    with pytest.raises(RuntimeError, match="differentiated once"):
        torch.autograd.grad(loss, z, create_graph=True)


def test_own_classes_are_told_apart_whatever_the_pieces() -> None:
    """Sums over both parts of every row against masks, for classes that begin and end anywhere."""
    checked = 0
    for sizes in ([2, 5, 3], [1, 1, 9], [4, 4, 4], [12], [2, 2, 2, 2, 2]):
        member = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        z = unit(
            torch.randn(
                len(member), 4, generator=torch.Generator().manual_seed(len(sizes)), dtype=torch.float64
            )
        )
        same = member[:, None] == member
        e = torch.exp(z @ z.T * 3).fill_diagonal_(0)
        for step in (1, 2, 5, 20):
            for block in (torch.arange(len(z)), torch.tensor([1]), torch.arange(2, len(z), 3)):
                kept = torch.empty(len(z) * len(block), dtype=z.dtype)
                edges = streamed_rows._edges(len(z), step, torch.tensor([sizes[0]]))
                tiles = list(streamed_rows._tiles(z, block, member, edges, kept, z[:0]))
                logs, inverse, near = streamed_rows._sums(tiles, z[block], 3.0, True)
                for part, mask in ((streamed_rows.OWN, same), (streamed_rows.OTHERS, ~same)):
                    weights = (e * mask)[block]
                    torch.testing.assert_close(logs[part], weights.sum(1).log())
                    torch.testing.assert_close(near[part], weights @ z)
                    total = weights.sum(1)
                    torch.testing.assert_close(inverse[part] * total, (total > 0).to(z.dtype))
                checked += 1
    assert checked == 60
