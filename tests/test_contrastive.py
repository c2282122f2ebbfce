"""Laws of the contrastive family on image embeddings, and the numbers of the published code."""

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from handful.losses import (
    info_nce,
    nt_xent,
    partition_contrast,
    partition_of_slices,
    positional_contrast,
    relative_position,
)
from handful.metrics.scores import score_case
from handful.training.schedules import cosine

GOLDEN = Path(__file__).parent / "golden"
LOSS_FILES = sorted(path for path in GOLDEN.glob("pcl_*.npz") if "method" in np.load(path).files)
OTHER_PCL = {"pcl_lr_schedule", "pcl_metric_pooled_dice", "pcl_positions_partitions", "pcl_splits"}
NTXENT_FILES = sorted(GOLDEN.glob("sscl_ntxent_*.npz"))


def random_views(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_info_nce(
    z: Tensor, positives: Tensor, *, temperature: float, anchors: Tensor | None = None
) -> float:
    """The formula, pair by pair."""
    rows = [row / np.linalg.norm(row) for row in z.detach().numpy()]
    costs = []
    for i, row in enumerate(rows):
        near = [j for j in range(len(rows)) if j != i and positives[i, j]]
        if not near or (anchors is not None and not anchors[i]):
            continue
        others = sum(math.exp(row @ other / temperature) for j, other in enumerate(rows) if j != i)
        costs.append(np.mean([math.log(others) - row @ rows[j] / temperature for j in near]))
    return float(np.mean(costs))


def published(path: Path) -> tuple[Callable[[Tensor], Tensor], dict[str, Any]]:
    case = dict(np.load(path))
    method, temperature = str(case["method"]), float(case["temperature"])
    number = torch.tensor(case["labels"])
    if method == "simclr":
        return lambda z: nt_xent(z[:, 0], z[:, 1], temperature=temperature), case
    if method == "gcl":
        return lambda z: partition_contrast(z, number, temperature=temperature), case
    threshold = float(case["threshold"])
    return lambda z: positional_contrast(z, number, threshold=threshold, temperature=temperature), case


def test_the_published_cases_are_all_here() -> None:
    assert len(LOSS_FILES) == 15
    assert {path.stem for path in GOLDEN.glob("pcl_*.npz")} - {path.stem for path in LOSS_FILES} == OTHER_PCL
    assert len(NTXENT_FILES) == 1


@pytest.mark.parametrize("path", LOSS_FILES, ids=lambda path: path.stem)
def test_published_numbers(path: Path) -> None:
    loss, case = published(path)
    z = torch.tensor(case["features"], requires_grad=True)
    value = loss(z)
    value.backward()
    assert z.grad is not None
    if not np.isfinite(case["loss_official"]):
        # 0/0 in the published code: no anchor has a positive
        assert path.stem == "pcl_b6_t010_thr000_nan"
        assert value.item() == 0
        assert not z.grad.any()
        return
    factor = float(case["temperature"]) / float(case["base_temperature"])
    assert value.item() == pytest.approx(float(case["loss_without_base_factor"]), rel=1e-12)
    assert value.item() * factor == pytest.approx(float(case["loss_official"]), rel=1e-9)
    np.testing.assert_allclose(z.grad.numpy() * factor, case["grad_features"], rtol=1e-9, atol=1e-13)
    single = loss(torch.tensor(case["features"]).float())
    assert single.dtype == torch.float32
    assert single.item() * factor == pytest.approx(float(case["loss_official_float32"]), rel=1e-4)


@pytest.mark.parametrize("path", LOSS_FILES, ids=lambda path: path.stem)
def test_published_masks_and_anchors(path: Path) -> None:
    _, case = published(path)
    mask = torch.tensor(case["positive_mask"]).bool()
    z = torch.tensor(case["features"]).transpose(0, 1).flatten(0, 1)
    assert mask.sum(1).tolist() == case["positives_per_anchor"].tolist()
    for i, cost in enumerate(case["per_anchor_without_base_factor"]):
        anchors = torch.arange(len(z)) == i
        value = info_nce(z, mask, temperature=float(case["temperature"]), anchors=anchors).item()
        assert value == pytest.approx(cost if np.isfinite(cost) else 0.0, rel=1e-9)


@pytest.mark.parametrize("path", NTXENT_FILES, ids=lambda path: path.stem)
def test_published_nt_xent(path: Path) -> None:
    case = np.load(path)
    a = torch.tensor(case["zi"], requires_grad=True)
    value = nt_xent(a, torch.tensor(case["zj"]), temperature=float(case["temperature"]))
    value.backward()
    assert value.item() == pytest.approx(float(case["loss_official"]), rel=1e-9)
    assert a.grad is not None
    np.testing.assert_allclose(a.grad.numpy(), case["grad_zi"], rtol=1e-9, atol=1e-13)


def test_published_positions_and_partitions() -> None:
    case = np.load(GOLDEN / "pcl_positions_partitions.npz")
    checked = 0
    for slices in np.unique(case["n_slices"]):
        rows = case["n_slices"] == slices
        index = case["slice_index0"][rows]
        # the ties at a threshold are decided by the last bit
        assert (relative_position(int(slices)).numpy()[index] == case["position"][rows]).all()
        assert (partition_of_slices(int(slices)).numpy()[index] == case["partition"][rows]).all()
        checked += int(rows.sum())
    assert checked == 564


def test_published_learning_rates() -> None:
    case = np.load(GOLDEN / "pcl_lr_schedule.npz")
    pretrain = case["pretrain_lr01_epochs6_iters5"]
    finetune = case["finetune_lr5e5_min5e6_epochs6_iters5"]
    factor = np.array([cosine(step / 30) for step in range(30)])
    np.testing.assert_allclose(pretrain, 0.1 * factor, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(finetune, np.maximum(5e-5 * factor, 5e-6), rtol=1e-9)


def test_published_pooled_dice_is_the_dice_of_the_stacked_slices() -> None:
    case = np.load(GOLDEN / "pcl_metric_pooled_dice.npz")
    predicted = case["probabilities"].argmax(1)
    names = {1: "one", 2: "two", 3: "three"}
    scores = score_case(predicted, case["labels"], spacing_mm=(1.5, 1.0, 1.2), labels=names)
    assert [score.dice for score in scores] == pytest.approx(case["dice_per_class_1_3"].tolist(), rel=1e-9)


def test_published_splits_divide_and_nest() -> None:
    case = np.load(GOLDEN / "pcl_splits.npz")
    names = {name.rsplit("_fold", 1)[0] for name in case.files}
    assert names == {"acdc", "chd_index", "mmwhs", "hvsmr"}
    checked = 0
    for name in names:
        tests = [case[f"{name}_fold{fold}_test"] for fold in range(5)]
        everyone = sorted(np.concatenate(tests))
        assert len(set(everyone)) == len(everyone)
        for fold in range(5):
            train = case[f"{name}_fold{fold}_train"]
            assert sorted([*train, *tests[fold]]) == everyone
            subsets = [key for key in case.files if key.startswith(f"{name}_fold{fold}_M")]
            for key in subsets:
                count = int(key.rsplit("_M", 1)[1])
                drawn = random.Random(1234).sample(train.tolist(), count)
                assert case[key].tolist() == drawn
                checked += 1
    assert checked > 20


@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
def test_info_nce_agrees_with_the_slow_obvious_version(temperature: float) -> None:
    generator = torch.Generator().manual_seed(1)
    z = random_views(9, 4) * 3
    positives = torch.rand(9, 9, generator=generator) < 0.3
    positives[4] = False
    anchors = torch.rand(9, generator=generator) < 0.7
    for rows in (None, anchors):
        value = info_nce(z, positives, temperature=temperature, anchors=rows)
        assert value.item() == pytest.approx(
            slow_info_nce(z, positives, temperature=temperature, anchors=rows), rel=1e-12
        )
    assert torch.autograd.gradcheck(
        lambda z: info_nce(z, positives, temperature=temperature, anchors=anchors), z.requires_grad_()
    )


def test_by_hand() -> None:
    z = torch.tensor([[[1.0, 0.0]] * 2, [[0.0, 1.0]] * 2], dtype=torch.float64)
    apart = positional_contrast(z, torch.tensor([0.1, 0.9]), threshold=0.1, temperature=1.0)
    assert apart.item() == pytest.approx(math.log(math.e + 2) - 1)
    close = positional_contrast(z, torch.tensor([0.1, 0.15]), threshold=0.1, temperature=1.0)
    assert close.item() == pytest.approx(math.log(math.e + 2) - 1 / 3)


def test_the_threshold_is_strict_in_float64() -> None:
    z = random_views(2, 2, 5)
    for a, b, near in ((0.5, 0.4, True), (0.8, 0.7, False), (0.3, 0.4, False)):
        assert (abs(a - b) < 0.1) == near
        value = positional_contrast(
            z, torch.tensor([a, b], dtype=torch.float64), threshold=0.1, temperature=0.1
        )
        same = partition_contrast(z, torch.tensor([0, 0 if near else 1]), temperature=0.1)
        assert value.item() == same.item()


def test_invariances_of_positional_contrast() -> None:
    z = random_views(6, 2, 7)
    position = torch.tensor([0.05, 0.12, 0.30, 0.33, 0.71, 0.95], dtype=torch.float64)

    def loss(z: Tensor, position: Tensor = position) -> float:
        return positional_contrast(z, position, threshold=0.11, temperature=0.2).item()

    expected = pytest.approx(loss(z), rel=1e-12)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    assert loss(z * (0.1 + random_views(6, 2, 1).abs())) == expected
    assert loss(z.flip(1)) == expected
    assert loss(z[order], position[order]) == expected
    assert loss(z, position + 0.5) == expected
    assert loss(z, 1 - position) == expected
    # every field matters
    assert loss(z, position * 5) != expected
    for view in (0, 1):
        changed = z.clone()
        changed[2, view, 0] += 1
        assert loss(changed) != expected


def test_members_of_the_family_meet() -> None:
    z = random_views(6, 2, 7)
    position = torch.tensor([0.05, 0.12, 0.30, 0.33, 0.71, 0.95], dtype=torch.float64)
    simclr = nt_xent(z[:, 0], z[:, 1], temperature=0.1).item()
    assert nt_xent(z[:, 1], z[:, 0], temperature=0.1).item() == pytest.approx(simclr, rel=1e-12)
    narrow = positional_contrast(z, position, threshold=1e-9, temperature=0.1).item()
    assert narrow == pytest.approx(simclr, rel=1e-12)
    wide = positional_contrast(z, position, threshold=1.5, temperature=0.1).item()
    everyone = partition_contrast(z, torch.zeros(6, dtype=torch.int64), temperature=0.1).item()
    assert wide == pytest.approx(everyone, rel=1e-12)
    part = torch.tensor([1, 1, 2, 2, 3, 4])
    as_position = positional_contrast(z, part.double(), threshold=1.0, temperature=0.1).item()
    assert as_position == pytest.approx(partition_contrast(z, part, temperature=0.1).item(), rel=1e-12)


def test_three_views_attract_each_other() -> None:
    z = random_views(4, 3, 5)
    image = torch.arange(4).repeat(3)
    value = partition_contrast(z, torch.arange(4), temperature=0.3).item()
    flat = z.transpose(0, 1).flatten(0, 1)
    assert value == pytest.approx(slow_info_nce(flat, image[:, None] == image, temperature=0.3), rel=1e-12)


def test_collapse_and_lower_bound() -> None:
    count, position = 25, torch.linspace(0.01, 1, 25, dtype=torch.float64)
    collapsed = torch.ones(count, 2, 3, dtype=torch.float64)
    for threshold in (0.02, 0.3):
        value = positional_contrast(collapsed, position, threshold=threshold, temperature=0.1)
        assert value.item() == pytest.approx(math.log(2 * count - 1), rel=1e-12)
    # perfectly separated groups reach the bound ln(positives), never 0
    corners = torch.eye(3, dtype=torch.float64).repeat_interleave(2, 0)[:, None].expand(6, 2, 3)
    value = partition_contrast(corners, torch.tensor([0, 0, 1, 1, 2, 2]), temperature=0.01)
    assert value.item() == pytest.approx(math.log(3), rel=1e-9)


def test_nothing_to_contrast_is_zero_with_a_graph() -> None:
    for z, loss in (
        (random_views(1, 2, 4), lambda z: nt_xent(z[:0, 0], z[:0, 1], temperature=0.1)),
        (random_views(3, 1, 4), lambda z: partition_contrast(z, torch.arange(3), temperature=0.1)),
        (random_views(1, 1, 4), lambda z: partition_contrast(z, torch.zeros(1), temperature=0.1)),
    ):
        z.requires_grad_()
        value = loss(z)
        value.backward()
        assert value.item() == 0
        assert z.grad is not None
        assert not z.grad.any()


def test_a_zero_embedding_has_no_direction_and_no_gradient() -> None:
    z = random_views(3, 2, 4)
    z[1, 0] = 0
    z.requires_grad_()
    nt_xent(z[:, 0], z[:, 1], temperature=0.1).backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()
    assert not z.grad[1, 0].any()
    assert z.grad[0].any()


def test_half_precision_and_autocast_compute_in_float32() -> None:
    z = random_views(8, 2, 16).float()
    exact = nt_xent(z[:, 0], z[:, 1], temperature=0.07)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert nt_xent(z[:, 0], z[:, 1], temperature=0.07) == exact
    half = z.half().requires_grad_()
    value = nt_xent(half[:, 0], half[:, 1], temperature=0.07)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(exact.item(), rel=1e-2)
    value.backward()
    assert half.grad is not None
    assert half.grad.dtype == torch.float16


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: info_nce(torch.ones(3, 2).long(), torch.ones(3, 3).bool(), temperature=1.0), "floating"),
        (lambda: info_nce(torch.ones(3, 2, 1), torch.ones(3, 3).bool(), temperature=1.0), "shape"),
        (
            lambda: info_nce(torch.ones(3, 2), torch.ones(3, 2).bool(), temperature=1.0),
            r"positives.*\(3, 2\)",
        ),
        (lambda: info_nce(torch.ones(3, 2), torch.ones(3, 3), temperature=1.0), "positives.*float32"),
        (
            lambda: info_nce(
                torch.ones(3, 2), torch.ones(3, 3).bool(), temperature=1.0, anchors=torch.ones(2).bool()
            ),
            "anchors",
        ),
        (lambda: info_nce(torch.ones(3, 2), torch.ones(3, 3).bool(), temperature=0.0), "temperature"),
        (lambda: info_nce(torch.ones(3, 2), torch.ones(3, 3).bool(), temperature=math.nan), "temperature"),
        (
            lambda: info_nce(torch.tensor([[1.0, math.nan]]), torch.ones(1, 1).bool(), temperature=1.0),
            r"1 NaN.*\(0, 1\)",
        ),
        (lambda: nt_xent(torch.ones(3, 2), torch.ones(2, 2), temperature=1.0), r"\(3, 2\).*\(2, 2\)"),
        (lambda: nt_xent(torch.ones(2), torch.ones(2), temperature=1.0), "shape"),
        (
            lambda: positional_contrast(torch.ones(3, 2), torch.ones(3), threshold=0.1, temperature=1.0),
            "shape",
        ),
        (
            lambda: positional_contrast(torch.ones(3, 2, 4), torch.ones(2), threshold=0.1, temperature=1.0),
            r"position .*3 images",
        ),
        (
            lambda: positional_contrast(
                torch.ones(2, 2, 4), torch.tensor([0.1, math.nan]), threshold=0.1, temperature=1.0
            ),
            "position .*nan",
        ),
        (
            lambda: positional_contrast(torch.ones(2, 2, 4), torch.ones(2), threshold=-0.1, temperature=1.0),
            "threshold",
        ),
        (lambda: partition_contrast(torch.ones(2, 2, 4), torch.ones(2, 1), temperature=1.0), "partition"),
        (lambda: relative_position(0), "at least one slice"),
        (lambda: partition_of_slices(0), "at least one slice"),
    ],
)
def test_bad_input_is_refused_in_words(call: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


def test_partitions_by_hand() -> None:
    assert "".join(map(str, partition_of_slices(10).tolist())) == "1112223334"
    assert "".join(map(str, partition_of_slices(9).tolist())) == "112233444"
    assert partition_of_slices(1).tolist() == [1]


def test_left_out_pairs_are_no_negatives_but_positives_stay() -> None:
    z = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    positives = torch.zeros(6, 6, dtype=torch.bool)
    positives[0, 1] = positives[1, 0] = True
    left_out = torch.zeros(6, 6, dtype=torch.bool)
    left_out[:2, 4:] = True
    expected = info_nce(z[:4], positives[:4, :4], temperature=0.3)
    assert torch.allclose(info_nce(z, positives, temperature=0.3, left_out=left_out), expected)
    both = left_out | positives  # a positive that is also left out counts as a positive
    assert torch.allclose(info_nce(z, positives, temperature=0.3, left_out=both), expected)


def test_positions_along_several_axes_are_near_only_where_every_axis_is() -> None:
    z = torch.randn(3, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    place = torch.tensor([[0.1, 0.5, 0.5], [0.12, 0.9, 0.5], [0.9, 0.5, 0.52]], dtype=torch.float64)
    apart = positional_contrast(z, place, threshold=0.1, temperature=0.2)
    assert torch.allclose(apart, nt_xent(z[:, 0], z[:, 1], temperature=0.2))
    one = positional_contrast(z, place[:, :1], threshold=0.1, temperature=0.2)
    assert torch.equal(one, positional_contrast(z, place[:, 0], threshold=0.1, temperature=0.2))
    assert not torch.allclose(one, apart)


def test_related_slices_of_other_partitions_are_no_negatives() -> None:
    z, partition = random_views(4, 2, 6, seed=5), torch.tensor([1, 1, 2, 3])
    related = torch.zeros(4, 4, dtype=torch.bool)
    related[0, 1] = related[1, 0] = True  # of one partition: still positives
    related[:3, 3] = related[3, :3] = True  # the fourth is left with its own other view: a cost of 0
    loss = partition_contrast(z, partition, temperature=0.3, related=related)
    fewer = partition_contrast(z[:3], partition[:3], temperature=0.3)
    assert torch.allclose(loss * 8, fewer * 6)
