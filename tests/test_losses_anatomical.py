"""MONA's anatomical contrast against its published numbers, and the laws of both forms."""

import math

import pytest
import torch
from torch import Tensor

from golden_values import golden
from handful.losses.anatomical import (
    Draw,
    bank_anchors,
    bank_contrast,
    bank_keys,
    certainty,
    class_masks,
    class_means,
    draw_from_banks,
    draw_hard_queries,
    entropy_percent,
    hard_queries,
    pair_classes,
    query_contrast,
    relation_graph,
)
from handful.losses.sampling import antithetic, stratified
from handful.networks.bank import ClassBanks

RELEASED = ["contra2d_fresh", "contra2d_absent1", "contra2d_3class", "contra2d_lastrank", "contra3d_2class"]


class Scene:
    """One golden case, with what the loss needs of it."""

    def __init__(self, name: str) -> None:
        self.g = g = golden(f"mona_{name}")
        self.label = torch.cat((g["label_l"], g["label_u"]))
        self.labelled = torch.arange(len(self.label)) < len(g["label_l"])
        self.probability = torch.cat((g["logits_teacher_l"], g["logits_teacher_u"])).softmax(1)
        self.classes = self.probability.shape[1]
        low, high = certainty(g["logits_student_u"], g["label_u"], percent=float(g["alpha_t"]))
        sure = torch.ones_like(g["label_l"], dtype=torch.bool)
        self.certain, self.uncertain = torch.cat((sure, low)), torch.cat((sure, high))
        self.members = class_masks(self.label, self.classes, self.certain)
        self.anchors = bank_anchors(self.members, self.probability, threshold=float(g["delta_p"]))
        self.student = g["rep_student"].clone().requires_grad_()

    def banks(self, before: str = "bank_before") -> ClassBanks:
        banks = ClassBanks([200] * self.classes, 6)
        for k in range(self.classes):
            banks[k].enqueue(self.g[f"{before}_{k}"])
        return banks

    def keys(self, **options: object) -> Tensor:
        return bank_keys(self.label, self.labelled, self.probability, self.uncertain, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", RELEASED)
def test_released_form_is_the_published_one(name: str) -> None:
    scene = Scene(name)
    g = scene.g
    assert torch.equal(scene.certain.float(), g["low_mask"][:, 0])
    assert torch.equal(scene.uncertain.float(), g["high_mask"][:, 0])
    keys = scene.keys(low_rank=int(g["low_rank"]), high_rank=int(g["high_rank"]), repair_keys=False)
    banks = scene.banks()
    counts = banks.enqueue(g["rep_teacher"], keys)
    assert counts == g["new_keys"].tolist() == keys.transpose(0, 1).flatten(1).sum(1).tolist()
    for k in range(scene.classes):
        torch.testing.assert_close(banks[k].in_order(), g[f"bank_after_{k}"])
    assert scene.members.transpose(0, 1).flatten(1).sum(1).tolist() == g["n_low_valid"].tolist()
    pools = scene.anchors.transpose(0, 1).flatten(1)
    assert pools.sum(1).tolist() == g["n_anchor_pool"].tolist()

    stored = iter(sorted(key for key in g if key.startswith("draw_")))
    draws = []
    for label, bank in pair_classes(scene.members, repair_classes=False):
        pool = pools[label].nonzero()[:, 0]
        if len(pool):
            queries, rows = g[next(stored)], g[next(stored)]
            draws.append(Draw(label, bank, pool[queries], rows.reshape(len(queries), -1)))
    assert next(stored, None) is None, "every published draw is used"
    loss = bank_contrast(
        scene.student, g["rep_teacher"], scene.members, banks.valid, draws, temperature=float(g["temp"])
    )
    loss.backward()
    assert loss.item() == pytest.approx(float(g["loss"]), abs=1e-5)
    assert scene.student.grad is not None
    assert (scene.student.grad - g["grad_rep"]).abs().max() < 1e-6


@pytest.mark.parametrize("name", RELEASED)
def test_the_released_rule_never_takes_a_labelled_key_and_the_repaired_one_those_that_were_meant(
    name: str,
) -> None:
    scene = Scene(name)
    released, repaired = scene.keys(low_rank=3, repair_keys=False), scene.keys(low_rank=3)
    assert not released[scene.labelled].any()
    meant = repaired[scene.labelled].transpose(0, 1).flatten(1).sum(1)
    assert meant.tolist() == scene.g["n_labelled_negatives_if_fixed"].tolist()


def test_repaired_rule_with_an_absent_class() -> None:
    scene, g = Scene("contra2d_absent1"), golden("mona_contra2d_absent1_corrected")
    banks = scene.banks()
    counts = banks.enqueue(scene.g["rep_teacher"], scene.keys())
    assert counts == [int(g[f"new_keys_{k}"]) for k in range(4)]
    for k in range(4):
        torch.testing.assert_close(banks[k].in_order(), g[f"bank_after_{k}"])
    draws = []
    for label, bank in pair_classes(scene.members):
        assert label == bank
        pool = scene.anchors[:, label].flatten().nonzero()[:, 0]
        draw = Draw(label, bank, pool[g[f"anchor_idx_{label}"]], g[f"neg_idx_{label}"].reshape(8, 16))
        alone = bank_contrast(scene.student, scene.g["rep_teacher"], scene.members, banks.valid, [draw])
        assert alone.item() == pytest.approx(float(g[f"loss_{label}"]) / 3, abs=1e-5)
        draws.append(draw)
    assert [draw.label for draw in draws] == g["valid_classes"].tolist() == [0, 2, 3]
    loss = bank_contrast(scene.student, scene.g["rep_teacher"], scene.members, banks.valid, draws)
    assert loss.item() == pytest.approx(float(g["loss"]), abs=1e-5)

    # the same batch with the absent class removed (classes 0, 2, 3 become 0, 1, 2) gives the same loss
    kept = [0, 2, 3]
    renamed = [draw._replace(label=kept.index(draw.label), keys=kept.index(draw.keys)) for draw in draws]
    without = bank_contrast(
        scene.student,
        scene.g["rep_teacher"],
        scene.members[:, kept],
        [banks.valid[k] for k in kept],
        renamed,
    )
    assert without.item() == pytest.approx(loss.item(), rel=1e-6)


def test_paper_form_is_the_published_one() -> None:
    g = golden("mona_reco2d")
    label = torch.cat((g["label_l"], g["label_u"]))
    z = g["rep"].clone().requires_grad_()
    members = class_masks(label, 4, g["mask"][:, 0] > 0)
    hard = hard_queries(members, g["logits_student"].softmax(1), threshold=float(g["strong_threshold"]))
    assert members.transpose(0, 1).flatten(1).sum(1).tolist() == g["n_valid"].tolist()
    assert hard.transpose(0, 1).flatten(1).sum(1).tolist() == g["n_hard"].tolist()
    means = class_means(z, members)
    torch.testing.assert_close(means, g["class_mean"], rtol=1e-5, atol=1e-6)
    graph = relation_graph(means, torch.ones(4, dtype=torch.bool), temperature=float(g["temp"]))
    pixels = [members[:, k].flatten().nonzero()[:, 0] for k in range(4)]
    draws = []
    for c in range(4):
        cyclic = [(c + step) % 4 for step in (1, 2, 3)]
        torch.testing.assert_close(graph[c, cyclic], g[f"class_probs_{c}"], rtol=1e-5, atol=1e-6)
        rows = torch.cat([pixels[k] for k in cyclic])[g[f"neg_index_{c}"]].reshape(8, 16)
        kinds = torch.tensor([cyclic.index(k) for k in label.flatten()[rows.flatten()].tolist()]).reshape(
            8, 16
        )
        assert torch.equal(kinds.sort(1).values, g[f"samp_class_{c}"].sort(1).values)
        draws.append(Draw(c, c, hard[:, c].flatten().nonzero()[:, 0][g[f"query_idx_{c}"]], rows))
    loss = query_contrast(z, members, draws, temperature=float(g["temp"]))
    loss.backward()
    assert loss.item() == pytest.approx(float(g["loss"]), abs=1e-5)
    assert z.grad is not None
    assert (z.grad - g["grad_rep"]).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("cosine", "expected"), [(1, 4.252653), (0.5, 5.243620), (0, 6.240276), (-1, 8.238589)]
)
def test_zero_bank_by_hand(cosine: float, expected: float) -> None:
    """512 negatives of cosine 0, one positive: log(1 + 512 exp(-cos / .5))."""
    # one image of two pixels: class 0 looks along the teacher's mean by `cosine`, class 1 only makes two classes
    student = torch.tensor([[[[cosine, 0.0]], [[math.sqrt(1 - cosine**2), 1.0]]]], dtype=torch.float64)
    teacher = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]], dtype=torch.float64)
    members = class_masks(torch.tensor([[[0, 1]]]), 2)
    draw = Draw(0, 0, torch.tensor([0]), torch.zeros(1, 512, dtype=torch.int64))
    loss = 2 * bank_contrast(student, teacher, members, [torch.zeros(1, 2)] * 2, [draw])
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_one_query_by_hand() -> None:
    z = torch.tensor([[[[1.0, 0.0, -1.0]], [[0.0, 1.0, 0.0]]]])  # e1, e2, -e1
    members = class_masks(torch.tensor([[[0, 1, 1]]]), 2)
    draw = Draw(0, 0, torch.tensor([0]), torch.tensor([[1, 2]]))
    assert 2 * query_contrast(z, members, [draw]).item() == pytest.approx(0.142932, abs=1e-6)


def test_relation_graph_by_hand() -> None:
    def row(*cosines: float) -> list[float]:
        means = torch.eye(5, dtype=torch.float64)[: len(cosines) + 1].clone()
        for k, cosine in enumerate(cosines, start=1):
            means[k] *= math.sqrt(1 - cosine**2)
            means[k, 0] = cosine
        graph = relation_graph(means, torch.ones(len(means), dtype=torch.bool))
        assert (graph.diagonal() == 0).all()
        return graph[0, 1:].tolist()

    assert row(1, -1) == pytest.approx([0.982014, 0.017986], abs=1e-6)
    assert row(0.8, 0.2, 0) == pytest.approx([0.665296, 0.200383, 0.134321], abs=1e-6)


def scene(
    *, size: tuple[int, ...] = (9, 7), classes: int = 4, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 3, 5, *size, generator=generator, dtype=torch.float64)
    label = torch.randint(0, classes, (3, *size), generator=generator)
    probability = torch.randn(3, classes, *size, generator=generator, dtype=torch.float64).softmax(1)
    return student.requires_grad_(), teacher.requires_grad_(), label, probability


def test_draws_obey_their_rules() -> None:
    generator = torch.Generator().manual_seed(1)
    student, _, label, probability = scene()
    label[:, 0] = -1
    members = class_masks(label, 4)
    hard = hard_queries(members, probability, threshold=0.4)
    draws = draw_hard_queries(
        student, members, hard, queries=6, negatives=40, generator=generator, sampler=stratified
    )
    assert [draw.label for draw in draws] == [0, 1, 2, 3]
    flat = label.flatten()
    for draw in draws:
        assert draw.queries.shape == (6,)
        assert draw.negatives.shape == (6, 40)
        assert hard[:, draw.label].flatten()[draw.queries].all()
        assert ((flat[draw.negatives] != draw.label) & (flat[draw.negatives] != -1)).all()
    anchors = bank_anchors(members, probability)
    again = draw_from_banks(
        members, anchors, [7, 0, 3, 5], queries=4, negatives=9, generator=generator, sampler=antithetic
    )
    assert [draw.label for draw in again] == [0, 2, 3], "an empty bank has nothing to offer"
    for draw in again:
        assert anchors[:, draw.label].flatten()[draw.queries].all()
        assert draw.negatives.max() < [7, 0, 3, 5][draw.keys]


def test_relation_graph_is_what_the_negatives_follow() -> None:
    """Chi-square of 1e5 draws against the softmax, 2 degrees of freedom: 20 is passed once in 22,000."""
    student, _, label, _ = scene()
    members = class_masks(label, 4)
    z = student.detach()
    graph = relation_graph(class_means(z, members), torch.ones(4, dtype=torch.bool), temperature=0.2)
    draws = draw_hard_queries(
        z,
        members,
        members,
        queries=100,
        negatives=1000,
        temperature=0.2,
        generator=torch.Generator().manual_seed(0),
    )
    assert len(draws) == 4
    for draw in draws:
        seen = label.flatten()[draw.negatives].flatten().bincount(minlength=4).double()
        expected = graph[draw.label] * 1e5
        others = expected > 0
        assert int(others.sum()) == 3
        assert ((seen - expected)[others].square() / expected[others]).sum() < 20


@pytest.mark.parametrize("size", [(9, 7), (3, 5, 4)])
def test_gradient_reaches_queries_only_and_scale_does_not_matter(size: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(2)
    student, teacher, label, probability = scene(size=size)
    members = class_masks(label, 4)
    draws = draw_hard_queries(student, members, members, queries=3, negatives=5, generator=generator)
    loss = query_contrast(student, members, draws)
    (grad,) = torch.autograd.grad(loss, student)
    touched = (grad.flatten(2) != 0).any(1).flatten()
    assert set(touched.nonzero()[:, 0].tolist()) == set(torch.cat([draw.queries for draw in draws]).tolist())
    assert query_contrast(student * 7, members, draws).item() == pytest.approx(loss.item(), rel=1e-9)

    anchors = bank_anchors(members, probability)
    banks = [
        torch.randn(6, 5, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(4)
    ]
    drawn = draw_from_banks(members, anchors, [6] * 4, queries=3, negatives=5, generator=generator)
    loss = bank_contrast(student, teacher, members, banks, drawn)
    loss.backward()
    assert student.grad is not None
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None
    assert all(bank.grad is None for bank in banks)
    scaled = bank_contrast(student * 3, teacher * 5, members, [bank * 2 for bank in banks], drawn)
    assert scaled.item() == pytest.approx(loss.item(), rel=1e-9)
    assert torch.autograd.gradcheck(lambda z: bank_contrast(z, teacher, members, banks, drawn), student)


def test_volumes_of_one_slice_are_images() -> None:
    generator = torch.Generator().manual_seed(3)
    student, teacher, label, probability = scene()
    members = class_masks(label, 4)
    banks = [torch.randn(6, 5, generator=generator, dtype=torch.float64) for _ in range(4)]
    draws = draw_from_banks(
        members, bank_anchors(members, probability), [6] * 4, queries=3, negatives=5, generator=generator
    )
    flat = bank_contrast(student, teacher, members, banks, draws)
    deep = bank_contrast(student.unsqueeze(2), teacher.unsqueeze(2), members.unsqueeze(2), banks, draws)
    assert deep.item() == pytest.approx(flat.item(), rel=1e-12)


def test_nothing_to_contrast_is_zero_with_a_graph() -> None:
    generator = torch.Generator().manual_seed(4)
    student, teacher, label, probability = scene()
    alone = class_masks(torch.ones_like(label), 4)
    draws = draw_hard_queries(student, alone, alone, generator=generator)
    assert draws == []
    banks = [torch.ones(2, 5)] * 4
    drawn = draw_from_banks(alone, bank_anchors(alone, probability), [2] * 4, generator=generator)
    assert len(drawn) == 1
    nobody = class_masks(torch.full_like(label, -1), 4)
    for loss in (
        query_contrast(student, alone, draws),
        query_contrast(student, nobody, []),
        bank_contrast(student, teacher, alone, banks, drawn),
        bank_contrast(student, teacher, nobody, banks, []),
    ):
        student.grad = None
        loss.backward()
        assert loss.item() == 0
        assert student.grad is not None
        assert (student.grad == 0).all()


def test_certainty_by_hand() -> None:
    """Entropies in the order 0..9 and 20 percent: thresholds at 1.8 and 7.2, two pixels each."""
    p = torch.linspace(0.99, 0.55, 10, dtype=torch.float64)
    logits = torch.stack((p, 1 - p)).log().reshape(1, 2, 2, 5)
    low, high = certainty(logits, torch.zeros(1, 2, 5, dtype=torch.int64), percent=entropy_percent(0.0))
    assert low.flatten().nonzero()[:, 0].tolist() == [0, 1]
    assert high.flatten().nonzero()[:, 0].tolist() == [8, 9]
    label = torch.zeros(1, 2, 5, dtype=torch.int64)
    label[0, 0, 0] = -1
    low, _ = certainty(logits, label, percent=20)
    assert low.flatten().nonzero()[:, 0].tolist() == [1, 2]
    none, neither = certainty(logits, torch.full_like(label, -1), percent=20)
    assert not none.any()
    assert not neither.any()
    assert entropy_percent(1.0) == 0


def test_two_classes_fill_their_banks_with_the_repaired_rank() -> None:
    """With the released ranks a bank of three classes or fewer stays as it began."""
    _, _, label, probability = scene(classes=2)
    labelled, uncertain = torch.tensor([True, False, False]), torch.ones_like(label, dtype=torch.bool)
    assert not bank_keys(label, labelled, probability, uncertain, low_rank=3, repair_keys=False).any()
    keys = bank_keys(label, labelled, probability, uncertain)
    assert keys[0].any()
    assert keys[1:].any()
    unknown = bank_keys(torch.full_like(label, -1), labelled, probability, uncertain)
    assert not unknown.any()


def test_the_order_of_images_changes_the_order_of_the_bank_only() -> None:
    scene = Scene("contra2d_lastrank")
    order = torch.tensor([0, 1, 3, 2])
    keys, z = scene.keys(), scene.g["rep_teacher"]
    moved = bank_keys(scene.label[order], scene.labelled, scene.probability[order], scene.uncertain[order])
    assert torch.equal(moved, keys[order])
    banks, others = scene.banks(), scene.banks()
    banks.enqueue(z, keys)
    others.enqueue(z[order], moved)
    for k in range(4):
        one, other = ({tuple(row) for row in b[k].in_order().tolist()} for b in (banks, others))
        assert one == other
    torch.testing.assert_close(class_means(z, scene.members), class_means(z[order], scene.members[order]))


def test_bad_input_is_said() -> None:
    student, teacher, label, _ = scene()
    members = class_masks(label, 4)
    draw = Draw(0, 0, torch.tensor([0]), torch.tensor([[0]]))
    banks = [torch.ones(1, 5)] * 4
    with pytest.raises(ValueError, match="same pixels"):
        query_contrast(student[:, :, 1:], members, [draw])
    with pytest.raises(ValueError, match="temperature must be positive"):
        bank_contrast(student, teacher, members, banks, [draw], temperature=0)
    with pytest.raises(ValueError, match="floating point"):
        query_contrast(student.long(), members, [draw])
    with pytest.raises(ValueError, match=r"student .* holds 3 NaN"):
        bank_contrast(
            with_nan(student, 3),
            teacher,
            members,
            banks,
            [draw],
        )
    with pytest.raises(ValueError, match="a bank for each of 4"):
        bank_contrast(student, teacher, members, banks[:3], [draw])


def with_nan(z: Tensor, count: int) -> Tensor:
    z = z.detach().clone()
    z.flatten()[:count] = math.nan
    return z
