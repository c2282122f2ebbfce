"""Scores of one volume agree with an independent implementation and with closed forms."""

import numpy as np
import pytest
import surface_distance
from numpy.typing import NDArray
from scipy import ndimage

from handful.errors import DataError
from handful.metrics.bootstrap import bootstrap_mean, mean_score, paired_bootstrap
from handful.metrics.scores import score_case
from handful.metrics.surface import assd_mm, hd95_mm, nsd, surface_distances

SPACING_MM = (0.7, 1.3, 3.0)
LABELS = {0: "background", 1: "heart", 4: "vessel"}


def blob(seed: int, shape: tuple[int, int, int], *, share: float = 0.3) -> NDArray[np.bool_]:
    """A smooth random mask that usually touches the border of its image."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    return noise > np.quantile(noise, 1 - share)


def box(shape: tuple[int, int, int], low: tuple[int, ...], high: tuple[int, ...]) -> NDArray[np.bool_]:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high))] = True
    return mask


SHAPE = (13, 9, 6)
PAIRS = {
    **{f"blobs {s}": (blob(s, SHAPE), blob(s + 50, SHAPE, share=0.2)) for s in range(4)},
    "near copies": (blob(7, SHAPE), ndimage.binary_dilation(blob(7, SHAPE))),
    "single voxels": (box(SHAPE, (2, 3, 1), (3, 4, 2)), box(SHAPE, (9, 5, 4), (10, 6, 5))),
    "corner voxel against all": (box(SHAPE, (0, 0, 0), (1, 1, 1)), np.ones(SHAPE, bool)),
    "on every border": (np.ones(SHAPE, bool), box(SHAPE, (1, 0, 0), (13, 9, 6))),
    "far apart": (box(SHAPE, (0, 0, 0), (3, 2, 2)), box(SHAPE, (10, 7, 4), (13, 9, 6))),
    "one slice": (box((13, 9, 1), (2, 3, 0), (7, 8, 1)), box((13, 9, 1), (3, 2, 0), (9, 8, 1))),
}


@pytest.mark.parametrize("name", PAIRS)
def test_agrees_with_the_surface_distance_package(name: str) -> None:
    prediction, reference = PAIRS[name]
    oracle = surface_distance.compute_surface_distances(reference, prediction, SPACING_MM)
    both = (oracle["surfel_areas_gt"], oracle["surfel_areas_pred"])
    mean_mm = (oracle["distances_gt_to_pred"] @ both[0] + oracle["distances_pred_to_gt"] @ both[1]) / (
        both[0].sum() + both[1].sum()
    )
    (score,) = score_case(
        prediction.astype(np.uint8),
        reference.astype(np.uint8),
        spacing_mm=SPACING_MM,
        labels={1: "a"},
        tolerance_mm=1.5,
    )
    assert score.status == "scored"
    assert score.dice == pytest.approx(surface_distance.compute_dice_coefficient(reference, prediction))
    assert score.hd95_mm == pytest.approx(surface_distance.compute_robust_hausdorff(oracle, 95), rel=1e-6)
    assert score.nsd == pytest.approx(
        surface_distance.compute_surface_dice_at_tolerance(oracle, 1.5), rel=1e-6
    )
    assert score.assd_mm == pytest.approx(mean_mm, rel=1e-6)


def test_every_pair_of_masks_was_compared() -> None:
    assert len(PAIRS) == 10


def test_shifted_boxes_have_closed_forms() -> None:
    """A box moved by two voxels along the slices: the ends are 2 spacings apart, the sides mostly at distance 0."""
    shape, low, high = (20, 24, 30), (3, 4, 5), (17, 20, 21)
    a, b = box(shape, low, high), box(shape, (3, 4, 7), (17, 20, 23))
    (score,) = score_case(a * 1, b * 1, spacing_mm=SPACING_MM, labels={1: "box"}, tolerance_mm=0.5)
    assert score.dice == pytest.approx(14 / 16)
    assert score.hd95_mm == pytest.approx(2 * 3.0)
    assert score.volume_ml == pytest.approx(14 * 16 * 16 * 0.7 * 1.3 * 3.0 / 1000)
    assert score.reference_ml == pytest.approx(score.volume_ml)
    assert score.nsd is not None
    assert 0.5 < score.nsd < 1.0


def test_scores_are_symmetric_and_perfect_on_themselves() -> None:
    a, b = blob(1, SHAPE), blob(2, SHAPE)
    there, back = (
        surface_distances(a, b, spacing_mm=SPACING_MM),
        surface_distances(b, a, spacing_mm=SPACING_MM),
    )
    assert hd95_mm(there) == hd95_mm(back)
    assert assd_mm(there) == pytest.approx(assd_mm(back))
    assert nsd(there, tolerance_mm=1.0) == pytest.approx(nsd(back, tolerance_mm=1.0))
    same = surface_distances(a, a, spacing_mm=SPACING_MM)
    assert (hd95_mm(same), assd_mm(same), nsd(same, tolerance_mm=0.0)) == (0.0, 0.0, 1.0)


def test_distances_scale_with_the_voxel() -> None:
    a, b = blob(3, SHAPE), blob(4, SHAPE)
    small = surface_distances(a, b, spacing_mm=SPACING_MM)
    large = surface_distances(a, b, spacing_mm=[2.5 * s for s in SPACING_MM])
    assert hd95_mm(large) == pytest.approx(2.5 * hd95_mm(small))
    assert assd_mm(large) == pytest.approx(2.5 * assd_mm(small), rel=1e-6)
    assert nsd(large, tolerance_mm=2.5) == pytest.approx(nsd(small, tolerance_mm=1.0), rel=1e-6)


def test_empty_masks_follow_the_stated_rule() -> None:
    empty, full = np.zeros(SHAPE, np.uint8), blob(5, SHAPE).astype(np.uint8)
    diagonal_mm = np.linalg.norm(np.multiply(SHAPE, SPACING_MM))
    both, missed, invented = (
        score_case(p, r, spacing_mm=SPACING_MM, labels={1: "a"})[0]
        for p, r in ((empty, empty), (empty, full), (full, empty))
    )
    assert (both.status, both.dice, both.hd95_mm, both.assd_mm, both.nsd) == (
        "both empty",
        None,
        None,
        None,
        None,
    )
    for score, status in ((missed, "prediction empty"), (invented, "reference empty")):
        assert score.status == status
        assert (score.dice, score.nsd) == (0.0, 0.0)
        assert score.hd95_mm == score.assd_mm == pytest.approx(diagonal_mm)
    assert missed.volume_ml == invented.reference_ml == 0.0
    assert missed.reference_ml == invented.volume_ml == pytest.approx(full.sum() * np.prod(SPACING_MM) / 1000)


def test_each_class_is_scored_by_itself_and_background_is_not() -> None:
    prediction, reference = np.zeros(SHAPE, np.int16), np.zeros(SHAPE, np.int16)
    prediction[1:5, 2:6, 1:4], reference[2:6, 2:6, 1:4] = 1, 1
    prediction[7:9, 1:5, 2:5], reference[7:11, 1:5, 2:5] = 4, 4
    prediction[12, 8, 5] = 9  # not in the list of labels: not scored
    scores = score_case(prediction, reference, spacing_mm=SPACING_MM, labels=LABELS, case="c", patient="p")
    assert [(s.case, s.patient, s.class_name) for s in scores] == [("c", "p", "heart"), ("c", "p", "vessel")]
    for score, value in zip(scores, (1, 4)):
        (alone,) = score_case(
            (prediction == value) * value, (reference == value) * value,
            spacing_mm=SPACING_MM, labels={value: score.class_name}, case="c", patient="p",
        )  # fmt: skip
        assert score == alone


def test_ignored_voxels_change_nothing() -> None:
    reference = blob(6, SHAPE).astype(np.uint8)
    reference[:, 5:, :] = 255
    prediction = blob(16, SHAPE).astype(np.uint8)
    other = prediction.copy()
    other[:, 5:, :] = 1 - other[:, 5:, :]
    first, second = (
        score_case(p, reference, spacing_mm=SPACING_MM, labels={1: "a", 255: "ignore"}, ignore_value=255)
        for p in (prediction, other)
    )
    assert first == second
    assert len(first) == 1


def test_different_grids_are_refused() -> None:
    with pytest.raises(DataError, match=r"c: .*\(3, 4, 5\).*\(3, 5, 4\)"):
        score_case(
            np.zeros((3, 4, 5), int),
            np.zeros((3, 5, 4), int),
            spacing_mm=(1, 1, 1),
            labels={1: "a"},
            case="c",
        )


def slow_resampled_means(
    values: NDArray[np.float64], groups: list[str], weights: NDArray[np.int64]
) -> NDArray[np.float64]:
    names = sorted(set(groups))
    means = []
    for row in weights:
        chosen = [
            i for name, n in zip(names, row) for _ in range(n) for i, g in enumerate(groups) if g == name
        ]
        means.append([np.nanmean(values[chosen, k]) for k in range(values.shape[1])])
    averaged: NDArray[np.float64] = np.array(means).mean(1)
    return averaged


def test_bootstrap_agrees_with_a_loop_over_patients() -> None:
    rng = np.random.default_rng(3)
    groups = [f"p{i}" for i in rng.integers(0, 7, 25)]
    values = rng.uniform(size=(25, 3))
    values[4, 1] = values[9, 2] = np.nan
    count = len(set(groups))
    weights = np.random.default_rng(11).multinomial(count, np.full(count, 1 / count), size=200)
    slow = np.quantile(slow_resampled_means(values, groups, weights), [0.05, 0.95])
    fast = bootstrap_mean(values, groups, resamples=200, seed=11, level=0.9)
    assert fast == pytest.approx(tuple(slow))
    assert mean_score(values) == pytest.approx(np.nanmean(values, 0).mean())


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits, trials = 0, 300
    for trial in range(trials):
        patients = np.repeat(np.arange(40), 2)
        values = rng.normal(0.8, 0.1, 40)[patients] + rng.normal(0, 0.02, 80)
        low, high = bootstrap_mean(values, [str(p) for p in patients], resamples=400, seed=trial)
        hits += low <= 0.8 <= high
    assert 0.90 <= hits / trials <= 0.98


def test_volumes_of_one_patient_are_drawn_together() -> None:
    """Two frames a patient add volumes, not knowledge: drawing them apart would narrow the interval."""
    values = np.random.default_rng(1).uniform(size=30)
    names = [str(i) for i in range(30)]
    once = bootstrap_mean(values, names, seed=2)
    assert bootstrap_mean(np.repeat(values, 2), list(np.repeat(names, 2)), seed=2) == pytest.approx(once)


def test_bootstrap_of_constants_and_of_one_patient() -> None:
    assert bootstrap_mean([0.5, 0.5, 0.5], ["a", "b", "c"]) == (0.5, 0.5)
    assert np.isnan(bootstrap_mean([0.5, 0.6], ["a", "a"])).all()
    assert np.isnan(bootstrap_mean([], [])).all()
    assert bootstrap_mean([0.1, 0.4, 0.9], "abc", seed=5) == bootstrap_mean([0.1, 0.4, 0.9], "abc", seed=5)
    with pytest.raises(ValueError, match="3 values need as many groups, found 2"):
        bootstrap_mean([1, 2, 3], ["a", "b"])


def test_paired_difference_sees_what_unpaired_scores_hide() -> None:
    rng = np.random.default_rng(4)
    groups = [str(i // 2) for i in range(40)]
    a = rng.uniform(0.3, 0.9, size=(40, 2))
    b = a - 0.05 + rng.normal(0, 0.01, size=a.shape)
    better = paired_bootstrap(a, b, groups)
    assert better.low <= better.mean <= better.high
    assert 0.04 < better.low < better.high < 0.06
    assert better.p < 0.001
    worse = paired_bootstrap(b, a, groups)
    assert (worse.mean, worse.low, worse.high) == pytest.approx(
        (-better.mean, -better.high, -better.low), rel=0.05
    )
    same = paired_bootstrap(a, a, groups)
    assert same == (0.0, 0.0, 0.0, 1.0)


def test_sign_flip_test_is_exact_for_few_patients() -> None:
    """Four patients, all better: two of the sixteen sign patterns are as extreme, whatever the sizes."""
    result = paired_bootstrap([0.9, 0.8, 0.7, 0.95], [0.5, 0.6, 0.65, 0.4], list("abcd"), resamples=20000)
    assert result.p == pytest.approx(2 / 16, abs=0.01)
    alone = paired_bootstrap([0.9], [0.5], ["a"])
    assert alone.mean == pytest.approx(0.4)
    assert np.isnan(alone.low)
    assert alone.p == 1.0


def test_a_difference_is_that_of_the_two_means_whatever_was_scored() -> None:
    """A model that invents a structure in half the volumes is worse, though no volume is scored in both for it."""
    groups = [str(i) for i in range(20)]
    sober, inventive = [0.8] * 10 + [np.nan] * 10, [0.8] * 10 + [0.0] * 10
    found = paired_bootstrap(inventive, sober, groups)
    assert found.mean == pytest.approx(mean_score(inventive) - mean_score(sober)) == pytest.approx(-0.4)
    assert found.high < 0
    assert found.p < 0.01


def test_p_values_are_even_when_nothing_differs() -> None:
    rng = np.random.default_rng(9)
    ps = [
        paired_bootstrap(
            rng.normal(size=12), rng.normal(size=12), [str(i) for i in range(12)], resamples=200
        ).p
        for _ in range(300)
    ]
    assert np.mean(np.array(ps) <= 0.1) == pytest.approx(0.1, abs=0.06)
