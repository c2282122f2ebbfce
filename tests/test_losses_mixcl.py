"""Hand-computed values and laws of the MixCL-style terms."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from handful.losses.contrastive import nt_xent
from handful.losses.mixcl import (
    draw_labelled,
    identity_contrast,
    label_contrast,
    label_segmentation,
    mixed_identity,
    overlapping,
    soft_label_contrast,
    soft_labels,
)
from handful.losses.segmentation import dice_ce

E1, E2 = [1.0, 0.0], [0.0, 1.0]


def vectors(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize(("temperature", "expected"), [(1, 0.551445), (0.5, 0.239545), (0.1, 9.080e-5)])
def test_identity_by_hand(temperature: float, expected: float) -> None:
    z = torch.eye(2, dtype=torch.float64)
    assert identity_contrast(z, z, temperature=temperature).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("batch", "expected"), [(2, 1.098612), (4, 1.945910), (8, 2.708050)])
def test_collapsed_identity_costs_log_of_the_others(batch: int, expected: float) -> None:
    z = torch.ones(batch, 5, dtype=torch.float64)
    assert identity_contrast(z, z).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("z", "label", "temperature", "expected"),
    [
        ((E1, E1, E2, E2), (0, 0, 1, 1), 1, 0.551445),
        ((E1, E1, E2, E2), (0, 1, 0, 1), 1, 1.551445),
        ((E1, E1, E1, E2), (0, 0, 0, 1), 1, 0.861995),
        ((E1, E1, E1, E2), (0, 0, 0, 1), 0.1, 0.693170),
        ((E1, E1, E2, E2), (0, 0, 1, -1), 1, 0.313262),
        (([1, 0], [0.5, 3**0.5 / 2], [-1, 0]), (0, 0, 1), 1, 0.257337),
    ],
)
def test_label_contrast_by_hand(z: tuple, label: tuple, temperature: float, expected: float) -> None:
    loss = label_contrast(vectors(*z), torch.tensor(label), temperature=temperature)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("count", "expected"), [(512, 6.236370), (1024, 6.930495)])
def test_one_perfect_class_costs_the_log_of_the_others(count: int, expected: float) -> None:
    loss = label_contrast(torch.ones(count, 3), torch.zeros(count, dtype=torch.int64))
    assert loss.item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("query", "weight", "temperature", "expected"),
    [([1, 1], 0.5, 1, 0.807866), ([1, 1], 0.5, 0.5, 0.722272), ([0.75, 0.25], 0.75, 1, 0.677651)],
)
def test_mixed_identity_by_hand(query: list, weight: float, temperature: float, expected: float) -> None:
    keys = vectors(E1, E2, [-1, 0])
    loss = mixed_identity(
        vectors(query), keys, torch.tensor([1]), weight=weight, temperature=temperature
    ).item()
    assert loss == pytest.approx(expected, abs=1e-6)
    assert loss > -weight * math.log(weight) - (1 - weight) * math.log(1 - weight), (
        "the entropy of the mixture"
    )


def case() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 12, 5, generator=generator, dtype=torch.float64)
    label = torch.randint(-1, 3, (12,), generator=generator)
    assert set(label.tolist()) == {-1, 0, 1, 2}
    return first.requires_grad_(), second.requires_grad_(), label


def test_identity_is_nt_xent_and_related_patches_are_no_negatives() -> None:
    first, second, _ = case()
    plain = identity_contrast(first, second, temperature=0.3)
    assert plain.item() == pytest.approx(nt_xent(first, second, temperature=0.3).item(), rel=1e-6)
    assert plain.item() == pytest.approx(identity_contrast(second, first, temperature=0.3).item(), rel=1e-12)
    nobody = torch.zeros(12, 12, dtype=torch.bool)
    assert identity_contrast(first, second, temperature=0.3, related=nobody).item() == plain.item()
    pair = nobody.clone()
    pair[2, 7] = pair[7, 2] = True
    z = F.normalize(torch.cat((first, second)), dim=1)
    logits = z @ z.T / 0.3
    terms = []
    for i in range(24):
        others = [k for k in range(24) if k != i and not (k != (i + 12) % 24 and pair[i % 12, k % 12])]
        terms.append(logits[i, others].logsumexp(0) - logits[i, (i + 12) % 24])
    expected = torch.stack(terms).mean().item()
    assert identity_contrast(first, second, temperature=0.3, related=pair).item() == pytest.approx(expected)
    everyone = identity_contrast(first, second, related=torch.ones(12, 12, dtype=torch.bool))
    assert everyone.item() == 0
    everyone.backward()


def test_overlapping_patches() -> None:
    low, high = torch.tensor([[0, 0], [3, 3], [4, 0], [0, 0]]), torch.tensor([[4, 4], [6, 6], [8, 4], [4, 4]])
    found = overlapping(torch.tensor([0, 0, 0, 1]), low, high).int().tolist()
    assert found == [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]]


def test_related_patches_are_no_negatives_of_a_mixture() -> None:
    first, second, _ = case()
    query, keys, extra = first[:3], second[:3], second[3:5]
    partner = torch.tensor([1, 0, 1])
    related = torch.eye(3, dtype=torch.bool)
    related[0, 2] = related[2, 0] = True
    loss = mixed_identity(query, torch.cat([keys, extra]), partner, weight=0.7, related=related)
    # by hand: the third key is out for 0 (related to it) and for 1 (related to its partner); for 2 only itself, its
    # partner and what follows the batch are left
    cosine = F.normalize(query, dim=1) @ F.normalize(torch.cat([keys, extra]), dim=1).T / 0.2
    kept = [[0, 1, 3, 4], [0, 1, 3, 4], [1, 2, 3, 4]]
    terms = [
        0.7 * (torch.logsumexp(cosine[i, kept[i]], 0) - cosine[i, i])
        + 0.3 * (torch.logsumexp(cosine[i, kept[i]], 0) - cosine[i, partner[i]])
        for i in range(3)
    ]
    assert loss.item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-9)
    further = F.pad(related, (0, 2))
    further[0, 3] = True  # out for 0, and for 1 whose partner it is
    kept = [[0, 1, 4], [0, 1, 4], [1, 2, 3, 4]]
    terms = [
        torch.logsumexp(cosine[i, kept[i]], 0) - 0.7 * cosine[i, i] - 0.3 * cosine[i, partner[i]]
        for i in range(3)
    ]
    loss = mixed_identity(query, torch.cat([keys, extra]), partner, weight=0.7, related=further)
    assert loss.item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-9)
    with pytest.raises(ValueError, match="a column for each of 5 keys"):
        mixed_identity(query, torch.cat([keys, extra]), partner, weight=0.7, related=related[:, :2])
    alone = mixed_identity(query, keys, partner, weight=0.7, related=torch.eye(3, dtype=torch.bool))
    assert alone.item() == pytest.approx(mixed_identity(query, keys, partner, weight=0.7).item(), rel=1e-12)


def test_mixing_with_weight_one_is_plain() -> None:
    first, second, label = case()
    partner = torch.arange(12).roll(1)
    plain = F.cross_entropy(F.normalize(first, dim=1) @ F.normalize(second, dim=1).T / 0.2, torch.arange(12))
    assert mixed_identity(first, second, partner, weight=1.0).item() == pytest.approx(plain.item(), rel=1e-9)
    known = label.clamp(min=0)
    shares = soft_labels(known, known[partner], weight=1.0, classes=3)
    assert soft_label_contrast(first, shares).item() == pytest.approx(
        label_contrast(first, known).item(), rel=1e-6
    )
    logits = torch.randn(2, 3, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    maps = label.reshape(2, 2, 3)
    other = maps.roll(1, 0).where(maps.roll(1, 0) >= 0, 0)
    mixed = label_segmentation(logits, maps, other, weight=1.0)
    assert mixed.item() == pytest.approx(dice_ce(logits, maps).item(), rel=1e-9)
    assert label_segmentation(logits, maps).item() == pytest.approx(dice_ce(logits, maps).item(), rel=1e-9)


def test_soft_labels_agree_with_the_slow_obvious_version() -> None:
    first, _, label = case()
    other = label.roll(5)
    shares = soft_labels(label, other, weight=0.7, classes=3)
    known = (label >= 0) & (other >= 0)
    assert torch.equal(shares.sum(1) > 0, known)
    swapped = soft_labels(other, label, weight=0.3, classes=3)
    torch.testing.assert_close(shares, swapped)
    z, q = F.normalize(first[known], dim=1), shares[known].double()
    terms = []
    for a in range(len(z)):
        others = [k for k in range(len(z)) if k != a]
        log_p = {p: (z[a] @ z[p] / 0.1 - (z[others] @ z[a] / 0.1).logsumexp(0)).item() for p in others}
        weight = {p: (q[a] @ q[p]).item() for p in others}
        if sum(weight.values()) > 0:
            terms.append(-sum(weight[p] * log_p[p] for p in others) / sum(weight.values()))
    assert len(terms) > 3
    assert soft_label_contrast(first, shares).item() == pytest.approx(sum(terms) / len(terms), rel=1e-6)


def test_label_contrast_obeys_its_laws() -> None:
    first, _, label = case()
    loss = label_contrast(first, label).item()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    assert label_contrast(first[order], label[order]).item() == pytest.approx(loss, rel=1e-12)
    assert label_contrast(first * 9, label).item() == pytest.approx(loss, rel=1e-12)
    renamed = torch.tensor([2, 0, 1, -1])[label]
    assert label_contrast(first, renamed).item() == pytest.approx(loss, rel=1e-12)
    more = torch.cat((first, torch.randn(4, 5, dtype=torch.float64)))
    assert label_contrast(more, torch.cat((label, torch.full((4,), -1)))).item() == pytest.approx(
        loss, rel=1e-12
    )
    label_contrast(first, label).backward()
    assert first.grad is not None
    assert ((first.grad != 0).any(1) == (label != -1)).all()
    assert torch.autograd.gradcheck(lambda z: label_contrast(z, label), first)


def test_nothing_to_contrast_is_zero_with_a_graph() -> None:
    first, second, label = case()
    unknown = torch.full_like(label, -1)
    losses = [
        label_contrast(first, unknown),
        label_contrast(first[:3], torch.tensor([0, 1, 2])),
        label_contrast(first[:1], torch.tensor([0])),
        soft_label_contrast(first, soft_labels(unknown, label, weight=0.6, classes=3)),
        identity_contrast(first[:0], second[:0]),
        mixed_identity(first[:0], second, torch.zeros(0, dtype=torch.int64), weight=0.5),
        label_segmentation(first.reshape(1, 5, 3, 4), unknown.reshape(1, 3, 4)) * 0,
    ]
    for loss in losses:
        first.grad = None
        loss.backward()
        assert loss.item() == 0
        assert first.grad is not None
        assert (first.grad == 0).all()


def test_keys_of_mixtures_are_not_trained() -> None:
    first, second, _ = case()
    mixed_identity(first, second, torch.arange(12).roll(1), weight=0.6).backward()
    assert second.grad is None
    assert first.grad is not None
    assert first.grad.abs().sum() > 0


def test_drawn_voxels_are_balanced_known_and_different() -> None:
    generator = torch.Generator().manual_seed(0)
    label = torch.cat((torch.zeros(80), torch.ones(6), torch.full((30,), 2), torch.full((9,), -1))).long()
    label = label[torch.randperm(125, generator=generator)].reshape(5, 25)
    for count, expected in [(60, [34, 6, 20]), (12, [4, 4, 4]), (13, [5, 4, 4]), (999, [80, 6, 30])]:
        drawn = draw_labelled(label, count, generator=generator)
        assert len(set(drawn.tolist())) == len(drawn)
        assert label.flatten()[drawn].bincount(minlength=3).tolist() == expected
    assert len(draw_labelled(torch.full((3, 4), -1), 10, generator=generator)) == 0


def test_bad_input_is_said() -> None:
    first, second, label = case()
    with pytest.raises(ValueError, match="in \\[0, 1\\]"):
        mixed_identity(first, second, torch.arange(12), weight=1.2)
    with pytest.raises(ValueError, match="a key and a partner"):
        mixed_identity(first, second[:4], torch.arange(12), weight=0.5)
    with pytest.raises(ValueError, match="temperature must be positive"):
        label_contrast(first, label, temperature=0)
    with pytest.raises(ValueError, match=r"label must be \(N,\)"):
        label_contrast(first, label[:5])
    with pytest.raises(ValueError, match="related must be"):
        identity_contrast(first, second, related=torch.ones(3, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"shares must be \(N, K\)"):
        soft_label_contrast(first, torch.ones(3, 2))
    with pytest.raises(ValueError, match=r"second .*NaN"):
        identity_contrast(first, second * math.nan)
