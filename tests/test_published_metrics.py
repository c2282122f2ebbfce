"""Scores as published code computes them, against values worked out by hand, and never the ones handful reports."""

from pathlib import Path

import numpy as np
import pytest

from handful.metrics.published import (
    ABSENT_IS_PERFECT,
    EMPTY_IS_LEFT_OUT,
    INVENTED_IS_PERFECT,
    MISSED_IS_NEAR,
    hd95_of_borders,
    pooled_dice,
    with_fixed_scores,
)
from handful.metrics.scores import score_case
from handful.metrics.summary import summarise

SPACING = (1.5, 2.0, 8.0)


def box(shape: tuple[int, ...], *ends: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(low, high) for low, high in ends)] = True
    return mask


def test_pooled_dice_weighs_volumes_by_their_size() -> None:
    large = box((12, 10, 8), (1, 11), (0, 10), (2, 4))  # 200 voxels, found whole
    small = box((7, 5, 4), (0, 2), (1, 2), (0, 2))  # 4 voxels, missed
    pairs = [(large, large), (np.zeros_like(small), small)]
    assert pooled_dice(pairs) == 2 * 200 / 404
    assert np.mean([1.0, 0.0]) == 0.5, "what the mean over volumes says of the same predictions"


def test_pooled_dice_of_slices_is_that_of_their_volume_and_of_one_volume_its_dice() -> None:
    rng = np.random.default_rng(0)
    prediction, reference = (rng.random((5, 7, 11)) < share for share in (0.3, 0.5))
    one = pooled_dice([(prediction, reference)])
    assert one == 2 * int((prediction & reference).sum()) / (int(prediction.sum()) + int(reference.sum()))
    assert pooled_dice(zip(prediction, reference)) == one
    assert pooled_dice([(np.zeros((2, 3), bool), np.zeros((2, 3), bool))]) is None


def test_the_distance_of_borders_between_shifted_boxes_is_the_shift() -> None:
    shape = (30, 9, 7)
    one, other = box(shape, (2, 12), (2, 4), (3, 4)), box(shape, (12, 22), (2, 4), (3, 4))
    # two bars of 10 end to end, all of whose voxels are border: each is 1 to 10 away, and 95 % of 40 are at 10
    distances = np.repeat(np.arange(1, 11), 4)
    assert hd95_of_borders(one, other) == np.percentile(distances, 95) == 10.0
    assert hd95_of_borders(one, other, spacing=SPACING) == 15.0
    assert hd95_of_borders(one, one) == 0.0


def test_counting_voxels_makes_an_error_across_slices_small() -> None:
    shape = (12, 11, 9)
    reference = box(shape, (3, 9), (3, 8), (2, 3))
    across, within = np.roll(reference, 2, axis=2), np.roll(reference, 2, axis=0)
    assert hd95_of_borders(across, reference) == 2.0 == hd95_of_borders(within, reference)
    assert hd95_of_borders(across, reference, spacing=SPACING) == 16.0
    assert hd95_of_borders(within, reference, spacing=SPACING) == 3.0


def test_borders_count_only_the_shell_and_both_directions_together() -> None:
    shape = (15, 13, 11)
    full = box(shape, (2, 13), (2, 11), (2, 9))
    hollow = full & ~box(shape, (3, 12), (3, 10), (3, 8))
    hollowed_shell_agrees = hd95_of_borders(full, hollow)
    # the hollow box has an inner border too, one voxel from the shell: the same voxels here, for its wall is one thick
    assert hollowed_shell_agrees == 0.0
    spot = box(shape, (7, 8), (6, 7), (5, 6))
    shell = np.argwhere(full & ~box(shape, (3, 12), (3, 10), (3, 8))) - np.array([7, 6, 5])
    radii = np.linalg.norm(shell, axis=1)
    assert hd95_of_borders(full, spot) == pytest.approx(np.percentile([*radii, radii.min()], 95))


def test_an_empty_mask_has_no_distance() -> None:
    some, none = box((4, 5, 6), (1, 2), (1, 2), (1, 2)), np.zeros((4, 5, 6), bool)
    for pair in ((some, none), (none, some), (none, none)):
        with pytest.raises(ValueError, match="empty"):
            hd95_of_borders(*pair)
    with pytest.raises(ValueError, match=r"\(4, 5, 6\) and \(4, 5, 7\)"):
        hd95_of_borders(some, np.ones((4, 5, 7), bool))


def four_kinds() -> list:
    """One class, four cases: half right, missed, invented, rightly not found."""
    shape = (9, 8, 6)
    here, half = box(shape, (1, 5), (1, 5), (1, 5)), box(shape, (1, 3), (1, 5), (1, 5))
    none = np.zeros(shape, bool)
    pairs = {"half": (half, here), "missed": (none, here), "invented": (here, none), "absent": (none, none)}
    return [
        score
        for case, (prediction, reference) in pairs.items()
        for score in score_case(
            prediction.astype(np.uint8),
            reference.astype(np.uint8),
            spacing_mm=SPACING,
            labels={1: "organ"},
            case=case,
        )
    ]


@pytest.mark.parametrize(
    ("rule", "dice", "distances"),
    [
        ({}, (2 / 3 + 0 + 0) / 3, 3),  # half: 2 * 32 / (32 + 64)
        (MISSED_IS_NEAR, (2 / 3 + 0 + 0) / 3, 3),
        (INVENTED_IS_PERFECT, (2 / 3 + 0 + 1 + 0) / 4, 4),
        (EMPTY_IS_LEFT_OUT, 2 / 3, 1),
        (ABSENT_IS_PERFECT, (2 / 3 + 0 + 0 + 1) / 4, 4),
    ],
)
def test_rules_for_empty_masks(rule: dict, dice: float, distances: int) -> None:
    before = four_kinds()
    after = with_fixed_scores(before, rule)
    found = [score.dice for score in after if score.dice is not None]
    assert np.mean(found) == pytest.approx(dice)
    assert sum(score.hd95_mm is not None for score in after) == distances
    assert after[0] == before[0], "what was measured stays"
    assert [score.status for score in after] == [score.status for score in before]


def test_a_miss_lowers_the_mean_distance_only_under_the_published_rule() -> None:
    """Three cases are found 3 mm off; then one of them is missed instead."""
    shape = (20, 9, 8)
    reference = box(shape, (3, 11), (2, 6), (2, 6)).astype(np.uint8)
    moved = np.roll(reference, 2, axis=0)

    def mean_distance(predictions: list[np.ndarray], rule: dict) -> float:
        rows = [
            row
            for number, prediction in enumerate(predictions)
            for row in score_case(
                prediction, reference, spacing_mm=SPACING, labels={1: "organ"}, case=str(number)
            )
        ]
        found = summarise(with_fixed_scores(rows, rule), tolerance_mm=1.0, bootstrap=10).mean["hd95_mm"]
        assert found is not None
        return found

    found, missed = [moved] * 3, [moved, moved, np.zeros_like(moved)]
    assert mean_distance(missed, MISSED_IS_NEAR) == pytest.approx(
        2 / 3 * mean_distance(found, MISSED_IS_NEAR)
    )
    assert mean_distance(missed, {}) > 3 * mean_distance(found, {})


def test_no_other_part_of_the_package_scores_this_way() -> None:
    import handful

    root = Path(handful.__file__).parent
    users = [
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if "metrics.published" in path.read_text(encoding="utf-8")
    ]
    assert users == []
