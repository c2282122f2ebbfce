"""MONA's other terms against their published numbers: neighbours, equivariance, pseudo-labels."""

import math

import pytest
import torch
from torch import Tensor

from golden_values import golden
from handful.data.augment.diffeomorphic import warp
from handful.losses.equivariance import anatomy, masked_divergence, warp_consistency
from handful.losses.neighbours import nearest_neighbours, pooled
from handful.losses.pseudo_label import pseudo_label, pseudo_label_cross_entropy


def leaf(x: Tensor) -> Tensor:
    return x.clone().requires_grad_()


def grad_of(x: Tensor) -> Tensor:
    assert x.grad is not None
    return x.grad


# Nearest neighbours.


def test_neighbours_are_the_published_ones() -> None:
    g = golden("mona_nn")
    student, topk = leaf(g["rep_student"]), int(g["topk"])
    loss = nearest_neighbours(student, g["rep_teacher"], g["pool"], neighbours=topk)
    loss.backward()
    assert loss.item() == pytest.approx(float(g["loss_msf"]), abs=1e-5)
    assert (grad_of(student) - g["grad_msf"]).abs().max() < 1e-6
    official = nearest_neighbours(student, g["rep_teacher"], g["pool"], neighbours=topk, form="official")
    assert official.item() == pytest.approx(float(g["loss_official"]), abs=1e-5)
    assert official.requires_grad == bool(g["official_requires_grad"])


@pytest.mark.parametrize(("turn", "expected"), [(1, 0), (0, 2), (-1, 4)])
def test_neighbours_by_hand(turn: int, expected: float) -> None:
    bank = torch.tensor([[1.0, 0, 0, 0]] * 3)
    teacher = bank[:2].reshape(2, 1, 4)
    student = teacher * turn + (1 - abs(turn)) * torch.tensor([0, 1.0, 0, 0])
    assert nearest_neighbours(student, teacher, bank, neighbours=2).item() == pytest.approx(
        expected, abs=1e-6
    )


def test_neighbours_obey_their_laws() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 3, 4, 6, 5, generator=generator, dtype=torch.float64)
    student, teacher = leaf(student), leaf(teacher)
    bank = leaf(torch.randn(9, 2 * 3 * 4, generator=generator, dtype=torch.float64))

    def loss(scale: float = 1) -> Tensor:
        maps = pooled(student * scale, (2, 3)), pooled(teacher * scale, (2, 3))
        return nearest_neighbours(*maps, bank * scale, neighbours=4)

    loss().backward()
    assert grad_of(student).abs().sum() > 0
    assert teacher.grad is None
    assert bank.grad is None
    assert loss(6.0).item() == pytest.approx(loss().item(), rel=1e-9)
    everyone = nearest_neighbours(pooled(student, (2, 3)), pooled(teacher, (2, 3)), bank, neighbours=99)
    cosine = torch.cosine_similarity(pooled(student, (2, 3))[:, None], bank[None], dim=2)
    assert everyone.item() == pytest.approx((2 - 2 * cosine).mean().item(), rel=1e-9)
    nobody = nearest_neighbours(student, teacher, torch.zeros(0, 4 * 6 * 5))
    nobody.backward()
    assert nobody.item() == 0
    assert pooled(torch.ones(2, 3, 5, 7, 4), 2).shape == (2, 24)
    with pytest.raises(ValueError, match="equally wide"):
        nearest_neighbours(student, teacher, bank)
    with pytest.raises(ValueError, match="at least 1"):
        nearest_neighbours(student, teacher, bank, neighbours=0)


# Equivariance.


def test_equivariance_is_the_published_one() -> None:
    g = golden("mona_eqv")
    mask = anatomy(g["label"], g["conf"], threshold=float(g["weak_threshold"]))
    assert torch.equal(mask.float(), g["mask"][:, 0])
    torch.testing.assert_close(warp(mask[:, None].float(), g["grid"]), g["mask_tps"], atol=1e-5, rtol=0)
    torch.testing.assert_close(warp(g["logits_student"], g["grid"]), g["logits_tps"], atol=1e-5, rtol=0)
    prediction = leaf(g["pred_on_warped"])
    loss = warp_consistency(prediction, g["logits_student"], mask, lambda maps: warp(maps, g["grid"]))
    loss.backward()
    assert loss.item() == pytest.approx(float(g["loss"]), abs=1e-5)
    assert (grad_of(prediction) - g["grad"]).abs().max() < 1e-6
    again = masked_divergence(g["pred_on_warped"], g["logits_tps"], g["mask_tps"])
    assert again.item() == pytest.approx(float(g["loss"]), abs=1e-5)


def test_equivariance_by_hand() -> None:
    target = torch.tensor([[0.75], [0.25]], dtype=torch.float64).log()[None]
    loss = masked_divergence(torch.zeros(1, 2, 1, dtype=torch.float64), target, torch.ones(1, 1))
    assert loss.item() == pytest.approx(0.130812, abs=1e-6)


def test_equivariance_obeys_its_laws() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, logits = torch.randn(2, 3, 4, 6, 5, generator=generator, dtype=torch.float64)
    prediction, logits = leaf(prediction), leaf(logits)
    mask = torch.rand(3, 6, 5, generator=generator, dtype=torch.float64)

    def flip(maps: Tensor) -> Tensor:
        return maps.flip(3)

    warp_consistency(prediction, logits, mask, flip).backward()
    assert logits.grad is None
    assert grad_of(prediction).abs().sum() > 0
    assert warp_consistency(flip(logits), logits, mask, flip).item() == pytest.approx(0, abs=1e-12)
    nowhere = warp_consistency(prediction, logits, torch.zeros_like(mask), flip)
    prediction.grad = None
    nowhere.backward()
    assert nowhere.item() == 0
    assert (grad_of(prediction) == 0).all()
    label = torch.tensor([[0, -1, 2, 1]])
    assert anatomy(label, torch.tensor([[1.0, 1.0, 0.7, 0.6]])).tolist() == [[False, False, True, False]]
    assert torch.autograd.gradcheck(lambda z: warp_consistency(z, logits, mask, flip), prediction)
    with pytest.raises(ValueError, match="mask must be"):
        masked_divergence(prediction, logits, mask[:, 1:])


# Pseudo-labels.


def test_a_pseudo_label_is_the_most_probable_class_where_it_is_probable_enough() -> None:
    p = torch.tensor([[0.90, 0.05, 0.05], [0.30, 0.40, 0.30], [0.05, 0.20, 0.75]]).T.reshape(1, 3, 3, 1)
    logits = p.log()
    assert pseudo_label(logits).flatten().tolist() == [0, 1, 2]
    assert pseudo_label(logits, threshold=0.7).flatten().tolist() == [0, -1, 2]
    assert pseudo_label(logits.requires_grad_(), threshold=0.95).eq(-1).all()
    with pytest.raises(ValueError, match="probability"):
        pseudo_label(logits, threshold=1.5)


def test_pseudo_labels_are_the_published_ones() -> None:
    g = golden("mona_unsup2d")
    logits = leaf(g["logits"])
    loss = pseudo_label_cross_entropy(logits, g["target"], g["conf"], threshold=float(g["strong_threshold"]))
    loss.backward()
    assert loss.item() == pytest.approx(float(g["loss"]), abs=1e-5)
    assert (grad_of(logits) - g["grad"]).abs().max() < 1e-6
    deep = pseudo_label_cross_entropy(logits.unsqueeze(2), g["target"].unsqueeze(1), g["conf"].unsqueeze(1))
    assert deep.item() == pytest.approx(float(g["loss"]), abs=1e-5)


def test_pseudo_labels_by_hand_and_empty() -> None:
    label, sure = torch.zeros(1, 2, 4, dtype=torch.int64), torch.ones(1, 2, 4)
    sure[:, 0] = 0.9
    logits = leaf(torch.zeros(1, 4, 2, 4))
    assert pseudo_label_cross_entropy(logits, label, sure).item() == pytest.approx(
        0.5 * math.log(4), abs=1e-6
    )
    unknown = torch.full_like(label, -1)
    nothing = pseudo_label_cross_entropy(logits, unknown, sure)
    nothing.backward()
    assert nothing.item() == 0
    assert (grad_of(logits) == 0).all()
    with pytest.raises(ValueError, match="int64"):
        pseudo_label_cross_entropy(logits, label[:, :1], sure[:, :1])
    with pytest.raises(ValueError, match=r"logits .*NaN"):
        pseudo_label_cross_entropy(logits * math.nan, label, sure)
