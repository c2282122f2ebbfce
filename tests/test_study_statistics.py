"""What a study concludes, against values worked out by hand, slow versions, and simulations with a known truth."""

import numpy as np
import pytest
from scipy import stats

from handful.studies.statistics import (
    Saved,
    compare,
    equal_labels,
    estimate,
    holm,
    labels_saved,
    mean_ranks,
)


def crossed(
    rng: np.random.Generator, *, draws: int, patients: int, sd: tuple[float, float, float], mean: float = 0.0
) -> list[np.ndarray]:
    """Draw scores with a part peculiar to the draw, one to the patient, and one to both."""
    of_draw, of_patient = rng.normal(0, sd[0], (draws, 1)), rng.normal(0, sd[1], (1, patients))
    table = mean + of_draw + of_patient + rng.normal(0, sd[2], (draws, patients))
    return [row[:, None] for row in table]


def names(count: int) -> list[str]:
    return [f"p{number}" for number in range(count)]


def test_the_mean_is_over_volumes_then_classes_then_draws() -> None:
    one = [[0.8, np.nan], [0.6, 0.4]]  # classes: 0.7 and 0.4
    two = [[0.9, 0.5], [0.9, 0.7]]  # classes: 0.9 and 0.6
    found = estimate([one, two], ["a", "b"])
    assert found.mean == pytest.approx((0.55 + 0.75) / 2)
    assert found.sd == pytest.approx(np.std([0.55, 0.75], ddof=1))
    assert found.draws == 2


def test_with_one_patient_it_is_the_t_interval_of_the_draws() -> None:
    means = [0.70, 0.76, 0.79, 0.81]
    found = estimate([[[m]] for m in means], ["a"])
    low, high = stats.t.interval(0.95, 3, np.mean(means), stats.sem(means))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.p == pytest.approx(stats.ttest_1samp(means, 0).pvalue)


def test_with_one_draw_it_is_nearly_the_t_interval_of_the_patients() -> None:
    values = np.random.default_rng(0).normal(0.8, 0.05, 30)
    found = estimate([values], names(30), resamples=20000)
    low, high = stats.t.interval(0.95, 29, values.mean(), stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-4)
    assert np.isnan(found.sd)


def test_one_draw_of_one_patient_says_nothing() -> None:
    found = estimate([[[0.5]]], ["a"])
    assert found.mean == 0.5
    assert np.isnan([found.low, found.high, found.p]).all()


def test_nothing_scored_is_no_number() -> None:
    for found in (estimate([], ["a"]), estimate([[[np.nan]], [[np.nan]]], ["a"])):
        assert np.isnan([found.mean, found.low, found.high, found.p]).all()


def test_all_volumes_of_a_patient_go_together() -> None:
    """A patient scored ten times is one patient."""
    values = np.random.default_rng(1).normal(0.8, 0.1, 12)
    once = estimate([values], names(12))
    often = estimate([np.repeat(values, 10)], list(np.repeat(names(12), 10)))
    assert (often.low, often.high) == pytest.approx((once.low, once.high))


def test_the_variance_is_that_of_the_slow_bootstrap_over_both() -> None:
    """Resample draws and patients one by one; corrected for their numbers, its variance is the one used."""
    rng = np.random.default_rng(2)
    tables, draws, patients = crossed(rng, draws=5, patients=12, sd=(0.03, 0.06, 0.0), mean=0.8), 5, 12
    found = estimate(tables, names(patients), resamples=20000)
    table = np.concatenate(tables, axis=1).T
    terms = []
    for axis, size in enumerate((draws, patients)):
        means = [table.take(rng.integers(size, size=size), axis=axis).mean() for _ in range(4000)]
        terms.append(np.var(means) * size / (size - 1))
    variance = sum(terms)
    freedom = variance**2 / (terms[0] ** 2 / (draws - 1) + terms[1] ** 2 / (patients - 1))
    half = stats.t.ppf(0.975, freedom) * np.sqrt(variance)
    assert found.high - found.mean == pytest.approx(half, rel=0.05)
    # and resampling both at once varies by as much, but for the corrections
    means = []
    for _ in range(4000):
        d, p = rng.integers(draws, size=draws), rng.integers(patients, size=patients)
        means.append(table[np.ix_(d, p)].mean())
    assert np.var(means) == pytest.approx(
        terms[0] * (draws - 1) / draws + terms[1] * (patients - 1) / patients, rel=0.1
    )


@pytest.mark.parametrize(
    ("draws", "patients", "sd"),
    [
        (3, 20, (0.04, 0.04, 0.02)),
        (3, 40, (0.04, 0.02, 0.01)),
        (5, 10, (0.01, 0.08, 0.02)),
        (5, 20, (0.03, 0.05, 0.05)),
    ],
)
def test_the_interval_covers_the_truth_as_often_as_it_says(
    draws: int, patients: int, sd: tuple[float, float, float]
) -> None:
    rng = np.random.default_rng(3)
    count, inside, rejected = 200, 0, 0
    for _ in range(count):
        found = estimate(crossed(rng, draws=draws, patients=patients, sd=sd), names(patients), resamples=100)
        inside += found.low <= 0 <= found.high
        rejected += found.p < 0.05
    # 95 % give or take three standard errors of a count of 200; what errs, errs to the wide side
    assert 0.90 <= inside / count <= 0.995
    assert rejected == count - inside


def test_percentiles_of_three_resampled_draws_would_not() -> None:
    """Why the interval is Student's: with three draws, resampling them covers the truth in three of four cases."""
    rng = np.random.default_rng(4)
    inside = 0
    for _ in range(300):
        means = rng.normal(0, 1, 3)
        low, high = np.quantile(rng.choice(means, (500, 3)).mean(1), [0.025, 0.975])
        inside += low <= 0 <= high
    assert inside / 300 < 0.85


def test_a_comparison_is_paired_by_draw_and_case() -> None:
    rng = np.random.default_rng(5)
    control = crossed(rng, draws=3, patients=15, sd=(0.2, 0.2, 0.05), mean=0.7)
    better = [table + 0.02 for table in control]  # always by the same, whatever the draw and the patient
    found = compare(better, control, names(15))
    assert (found.mean, found.low, found.high) == pytest.approx((0.02, 0.02, 0.02))
    assert found.p == 0
    same = compare(control, control, names(15))
    assert (same.mean, same.low, same.high, same.p) == (0, 0, 0, 1)
    # unpaired, 0.02 would drown in the spread
    assert estimate(control, names(15)).high - estimate(control, names(15)).low > 0.2


def test_the_difference_is_that_of_the_two_means_whatever_was_scored() -> None:
    rng = np.random.default_rng(8)
    for _ in range(20):
        arms = [
            [np.where(rng.random((9, 3)) < 0.4, np.nan, rng.random((9, 3))) for _ in range(3)] for _ in "ab"
        ]
        found = compare(arms[0], arms[1], names(9))
        assert found.mean == pytest.approx(
            estimate(arms[0], names(9)).mean - estimate(arms[1], names(9)).mean
        )
        other = compare(arms[1], arms[0], names(9))
        assert (other.mean, other.low, other.high) == pytest.approx((-found.mean, -found.high, -found.low))


def test_an_arm_that_invents_a_structure_in_half_the_cases_is_worse() -> None:
    """Where the reference is empty, a case is scored only in the arm that found something there: with 0."""
    there, empty = [[0.8]] * 10, [[np.nan]] * 10
    sober = np.array(there + empty)
    inventive = np.array(there + [[0.0]] * 10)
    found = compare([inventive] * 3, [sober] * 3, names(20))
    assert found.mean == pytest.approx(0.4 - 0.8)
    assert found.p < 0.01


def test_holm_by_hand() -> None:
    # sorted 0.01 x 4, 0.02 x 3, 0.03 x 2, 0.04 x 1, never smaller than the one before
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.4, 0.9]) == pytest.approx([0.8, 0.9])
    assert holm([0.7, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []
    assert holm([0.02, float("nan"), 0.3])[0] == pytest.approx(0.04)
    assert np.isnan(holm([0.02, float("nan")])[1])


def test_holm_errs_in_no_more_families_than_it_says() -> None:
    rng = np.random.default_rng(6)
    families = rng.uniform(size=(2000, 5))
    assert np.mean([min(holm(list(p))) < 0.05 for p in families]) == pytest.approx(0.05, abs=0.015)


def test_ranks_by_hand_with_ties_and_gaps() -> None:
    cells = [
        {"a": 0.9, "b": 0.8, "c": 0.8},  # 1, 2.5, 2.5
        {"a": 0.7, "b": 0.9, "c": 0.8},  # 3, 1, 2
        {"a": 0.7, "b": 0.9},  # c failed: the cell says nothing of three
    ]
    assert mean_ranks([cells]) == pytest.approx({"a": 2.0, "b": 1.75, "c": 2.25})
    assert mean_ranks([]) == mean_ranks([[]]) == {}


def test_budgets_weigh_alike_in_ranks_however_many_draws_they_have() -> None:
    few, many = {"a": 0.9, "b": 0.8}, {"a": 0.7, "b": 0.9}
    assert mean_ranks([[few], [many]]) == mean_ranks([[few], [many] * 5]) == {"a": 1.5, "b": 1.5}
    assert mean_ranks([[few], [{"a": 0.7}]]) == {"a": 1.0, "b": 2.0}, (
        "a budget that one never finished is left out"
    )


@pytest.mark.parametrize(
    ("reached", "found"),
    [
        (0.60, Saved(2.0, "inside")),
        (0.70, Saved(np.sqrt(2 * 8), "inside")),  # half way up between 2 and 8 labels
        (0.80, Saved(8.0, "inside")),
        (0.85, Saved(8 * 4**0.5, "inside")),
        (0.59, Saved(2.0, "below")),
        (0.91, Saved(32.0, "beyond")),
    ],
)
def test_equal_labels_by_hand(reached: float, found: Saved) -> None:
    labels, where = equal_labels([2, 8, 32], [0.6, 0.8, 0.9], reached)
    assert labels == pytest.approx(found.labels)
    assert where == found.where


def test_a_control_that_falls_counts_with_its_first_crossing() -> None:
    assert equal_labels([2, 8, 32], [0.6, 0.8, 0.7], 0.7).labels == pytest.approx(4)
    assert equal_labels([2, 8, 32], [0.6, 0.5, 0.7], 0.65).where == "inside"
    assert equal_labels([5], [0.6], 0.7) == Saved(5.0, "beyond")
    assert equal_labels([5], [0.6], 0.5) == Saved(5.0, "below")


def curve_of(rng: np.random.Generator, *, draws: int, patients: int = 20) -> list[tuple[float, dict]]:
    """Draw a control at 2, 8 and 32 labels."""
    return [
        (n, dict(enumerate(crossed(rng, draws=draws, patients=patients, sd=(0.01, 0.02, 0.01), mean=mean))))
        for n, mean in ((2, 0.6), (8, 0.8), (32, 0.9))
    ]


def test_labels_saved_brackets_what_it_finds() -> None:
    rng = np.random.default_rng(7)
    curve = curve_of(rng, draws=4)
    method = dict(enumerate(crossed(rng, draws=4, patients=20, sd=(0.01, 0.02, 0.01), mean=0.8)))
    found, bounds = labels_saved(method, curve, names(20))
    assert found.where == "inside"
    assert 2 < bounds.low < found.labels < bounds.high < 32
    assert bounds.draws == 4
    # the control itself at 8 labels: paired, it needs 8 whichever patients and draws are taken
    found, bounds = labels_saved(curve[1][1], curve, names(20))
    assert (found.labels, bounds.low, bounds.high) == pytest.approx((8, 8, 8))


def test_labels_saved_is_open_where_the_curve_of_the_control_ends() -> None:
    rng = np.random.default_rng(9)
    curve = curve_of(rng, draws=4)

    def of(mean: float) -> tuple[Saved, tuple[float, float]]:
        made = dict(enumerate(crossed(rng, draws=4, patients=20, sd=(0.01, 0.02, 0.01), mean=mean)))
        found, bounds = labels_saved(made, curve, names(20))
        return found, bounds[:2]

    _, (low, high) = of(0.905)
    assert 8 < low < 32, "nearly as good as the best control: at least so many labels"
    assert high == np.inf
    assert of(0.99) == (Saved(32.0, "beyond"), (32.0, np.inf))
    assert of(0.3) == (Saved(2.0, "below"), (0.0, 2.0))


def test_labels_saved_pairs_draws_by_name_and_takes_those_that_all_have() -> None:
    rng = np.random.default_rng(10)
    curve = curve_of(rng, draws=5)
    method = {draw: table + 0.05 for draw, table in curve[1][1].items()}
    some = [(n, {draw: t for draw, t in tables.items() if draw in (1, 2, 4)}) for n, tables in curve]
    expected = labels_saved({draw: method[draw] for draw in (1, 2, 4)}, some, names(20))
    uneven = [curve[0], some[1], curve[2]]
    assert labels_saved(method, uneven, names(20)) == expected
    assert labels_saved({4: method[4], 1: method[1], 2: method[2]}, curve, names(20)) == expected
    assert labels_saved({7: method[1]}, curve, names(20)) is None


def test_labels_saved_covers_the_truth_as_often_as_it_says() -> None:
    """Three draws, nested: what a draw is worth is shared between budgets in part, and between arms."""
    rng = np.random.default_rng(11)
    count, inside, truth = 200, 0, 8 * 4**0.5
    for _ in range(count):
        draw, patient = rng.normal(0, 0.02, (3, 1)), rng.normal(0, 0.06, (1, 15))

        def arm(mean: float, draw: np.ndarray = draw, patient: np.ndarray = patient) -> dict:
            own = rng.normal(0, 0.02, (3, 1)) + rng.normal(0, 0.02, (1, 15)) + rng.normal(0, 0.02, (3, 15))
            return {d: row[:, None] for d, row in enumerate(mean + draw + patient + own)}

        control = [(2, arm(0.6)), (8, arm(0.8)), (32, arm(0.9))]
        _, bounds = labels_saved(arm(0.85), control, names(15), resamples=100)
        inside += bounds.low <= truth <= bounds.high
    assert 0.90 <= inside / count <= 0.995
