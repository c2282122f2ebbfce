"""Largest pieces: what is lost, to whom it goes, and what stays as it is, bit for bit."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from handful.data.connected import find_pieces, largest_share
from handful.data.fingerprint import Fingerprint, PieceCount
from handful.data.one_piece import choose_one_piece
from handful.inference.pieces import keep_largest_pieces


def flooded(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Number pieces by walking from voxel to neighbour: slow, and plainly right."""
    numbers = np.zeros(mask.shape, int)
    steps = [step for step in product((-1, 0, 1), repeat=3) if any(step)]
    for start in zip(*np.nonzero(mask)):
        if numbers[start]:
            continue
        number, edge = numbers.max() + 1, [start]
        numbers[start] = number
        while edge:
            at = edge.pop()
            for step in steps:
                to = tuple(a + s for a, s in zip(at, step))
                if all(0 <= n < size for n, size in zip(to, mask.shape)) and mask[to] and not numbers[to]:
                    numbers[to] = number
                    edge.append(to)
    return numbers


def scores(winner: Any, classes: int, *, second: Any = 0) -> NDArray[np.float32]:
    """Probabilities (K, D, H, W) whose first choice is ``winner`` and whose second is ``second``."""
    winner = np.asarray(winner)
    rest = np.indices((classes, *winner.shape))[0]
    result = np.where(rest == winner, 0.6, np.where(rest == second, 0.3, 0.1 / classes))
    return result.astype(np.float32)


def noise(seed: int, classes: int, shape: tuple[int, ...] = (7, 9, 8)) -> NDArray[np.float32]:
    """Smooth random probabilities, in which every class has several pieces."""
    logits = np.random.default_rng(seed).normal(size=(classes, *shape))
    logits = 20 * ndimage.gaussian_filter(logits, (0, 0.8, 0.8, 0.8))
    result: NDArray[np.float32] = (np.exp(logits) / np.exp(logits).sum(0)).astype(np.float32)
    return result


def cleaned(p: NDArray[np.float32], one_piece: Sequence[bool]) -> NDArray[np.float32]:
    result = p.copy()
    keep_largest_pieces(result, one_piece)
    return result


@pytest.mark.parametrize("seed", range(5))
def test_pieces_are_what_a_walk_finds(seed: int) -> None:
    shape = [(6, 7, 8), (1, 9, 9), (9, 9, 1), (5, 1, 9), (4, 4, 4)][seed]
    mask = np.random.default_rng(seed).random(shape) < 0.12
    numbers, sizes = find_pieces(mask)
    expected = flooded(mask)
    np.testing.assert_array_equal(numbers, expected)
    np.testing.assert_array_equal(sizes, np.bincount(expected.ravel())[1:])
    assert len(sizes) > 1
    assert largest_share(mask) == sizes.max() / mask.sum()


def test_no_voxel_is_no_piece() -> None:
    numbers, sizes = find_pieces(np.zeros((2, 3, 4), bool))
    assert not numbers.any()
    assert sizes.shape == (0,)
    assert largest_share(np.zeros((2, 3, 4), bool)) == 0


def test_corners_touch() -> None:
    assert largest_share(np.eye(4, dtype=bool)[:, :, None] & np.eye(4, dtype=bool)[:, None]) == 1


@pytest.mark.parametrize("seed", range(8))
def test_laws_on_random_predictions(seed: int) -> None:
    """One piece a flagged class, nobody else's scores touched, the kept piece the largest, and twice is once."""
    flags = (False, True, seed % 2 == 0, True)
    before = noise(seed, 4)
    after = cleaned(before, flags)
    first, last = before.argmax(0), after.argmax(0)
    zeroed = after != before
    assert zeroed.any()
    assert not after[zeroed].any()
    assert not zeroed[[index for index, flag in enumerate(flags) if not flag]].any()
    for index, flag in enumerate(flags):
        own = flooded(first == index)
        sizes = np.bincount(own.ravel())[1:]
        if flag:
            assert flooded(last == index).max() == 1
            largest = own == 1 + sizes.argmax()
            assert not zeroed[index][largest].any()
            assert zeroed[index][(own > 0) & ~largest].all()  # the islands, and perhaps voxels others gave
        else:
            assert (last[first == index] == index).all()
    twice = cleaned(after, flags)
    assert twice.tobytes() == after.tobytes()


def test_two_classes_against_the_walk() -> None:
    before = noise(3, 2, (9, 10, 11))
    own = flooded(before.argmax(0) == 1)
    largest = own == 1 + np.bincount(own.ravel())[1:].argmax()
    assert own.max() > 1
    np.testing.assert_array_equal(cleaned(before, (False, True)).argmax(0), largest)


def test_what_is_one_piece_stays_bit_for_bit() -> None:
    winner = np.zeros((5, 6, 7), int)
    winner[1:3, 1:4, 1:4], winner[3, 4, 4:6] = 1, 2
    p = scores(winner, 4)
    assert cleaned(p, (False, True, True, True)).tobytes() == p.tobytes()  # class 3 is nowhere
    empty = scores(np.zeros((3, 3, 3), int), 3)
    assert cleaned(empty, (False, True, True)).tobytes() == empty.tobytes()


def test_without_a_flag_nothing_happens() -> None:
    p = noise(0, 3)
    for flags in ((), (False, False, False)):
        assert cleaned(p, flags).tobytes() == p.tobytes()


def test_an_island_goes_to_its_second_choice_by_hand() -> None:
    """Three islands of class 1: their second choices are background, 2, and 2 beside the true 2."""
    winner = np.array([1, 1, 1, 0, 1, 0, 0, 1, 0, 1, 2, 2])[None, None]
    second = np.array([0, 0, 0, 1, 0, 1, 1, 2, 1, 2, 1, 1])[None, None]
    p = scores(winner, 3, second=second)
    by_one = cleaned(p, (False, True, False)).argmax(0).ravel()
    assert by_one.tolist() == [1, 1, 1, 0, 0, 0, 0, 2, 0, 2, 2, 2]
    # if 2 is one piece as well, its new island cannot stay: the third choice gets it
    by_both = cleaned(p, (False, True, True)).argmax(0).ravel()
    assert by_both.tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 0, 2, 2, 2]


def test_what_is_given_away_drives_nobody_out() -> None:
    """An island of class 1 larger than all of class 2 becomes 2, and must not count as its largest piece."""
    winner = np.array([1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 0, 2, 2])[None, None]
    p = scores(winner, 3, second=np.where(np.arange(13) > 5, 2, 0)[None, None])
    assert cleaned(p, (False, True, True)).argmax(0).ravel().tolist() == [1] * 5 + [0] * 6 + [2, 2]


def test_a_certain_island_becomes_background() -> None:
    """Nothing is left to choose between where the network was entirely sure."""
    p = np.zeros((3, 1, 1, 5), np.float32)
    p[[2, 2, 0, 2, 0], 0, 0, range(5)] = 1
    assert cleaned(p, (False, True, True)).argmax(0).ravel().tolist() == [2, 2, 0, 0, 0]


@pytest.mark.parametrize("axis", range(3))
def test_of_equal_pieces_the_first_is_kept(axis: int) -> None:
    winner = np.moveaxis(np.array([0, 1, 1, 0, 1, 1, 0, 1])[None, None], 2, axis)
    kept = cleaned(scores(winner, 2), (False, True)).argmax(0)
    assert kept.ravel().tolist() == [0, 1, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_classes_decides_nothing(seed: int) -> None:
    p, flags = noise(seed, 4), np.array([False, True, False, True])
    order = [0, *(1 + np.random.default_rng(seed).permutation(3))]
    expected = cleaned(p, flags)[order]
    np.testing.assert_array_equal(cleaned(np.ascontiguousarray(p[order]), flags[order]), expected)


def test_a_file_of_probabilities_is_cleaned_in_place(tmp_path: Path) -> None:
    p = noise(1, 3, (40, 6, 6))  # more rows than are worked on at once
    file = np.memmap(tmp_path / "p", np.float32, mode="w+", shape=p.shape)
    file[:] = p
    keep_largest_pieces(file, (False, True, True))
    np.testing.assert_array_equal(file, cleaned(p, (False, True, True)))
    assert (file != p).any()


def counted(*counts: tuple[int, int, int], union: tuple[int, int, int] = (4, 4, 4)) -> Fingerprint:
    """``counts``: labelled cases, patients and whole cases of classes 1, 2, ..."""
    pieces = [
        PieceCount(value=value, cases=cases, patients=patients, whole=whole)
        for value, (cases, patients, whole) in [*enumerate(counts, start=1), (None, union)]
    ]
    return Fingerprint(
        dataset="", channel_names=(), labelled=(), cases=(), classes=(), pieces=tuple(pieces), foreground=(), body=()
    )  # fmt: skip


@pytest.mark.parametrize(
    ("count", "flag", "why"),
    [
        ((4, 4, 4), True, "Every structure is one piece (at least 99% of its voxels touch)"),
        ((2, 2, 2), True, "2 patients or more"),
        ((4, 4, 3), False, "'organ' is one piece in 3 of 4 cases"),
        ((4, 1, 4), False, "'organ' is shown by 1 labelled patient."),
        ((0, 0, 0), False, "'organ' is shown by no labelled patients"),
    ],
)
def test_the_rule_by_hand(count: tuple[int, int, int], flag: bool, why: str) -> None:
    flags, reason = choose_one_piece(counted(count), {0: "background", 1: "organ"})
    assert flags == {1: flag}
    assert why in reason


def test_too_few_patients_show_nothing() -> None:
    for union, why in (((1, 1, 1), "One labelled patient"), ((0, 0, 0), "No labelled patient")):
        flags, reason = choose_one_piece(counted((1, 1, 1), union=union), {1: "organ"})
        assert flags == {1: False}
        assert reason.startswith(why)


def test_ignored_voxels_hide_pieces() -> None:
    flags, reason = choose_one_piece(counted((4, 4, 4)), {1: "organ", 9: "ignore"}, ignore_value=9)
    assert flags == {1: False}
    assert "ignored voxels" in reason


@pytest.mark.parametrize(
    ("name", "flag"),
    [
        ("liver", True), ("left_ventricle", True), ("Anterior", True), ("pancreas", True), ("prostate", True),
        ("liver tumour", False), ("tumor", False), ("Lesions", False), ("peritumoral oedema", False), ("edema", False),
        ("kidney_cyst", False), ("lung nodule", False), ("non-enhancing", False), ("haemorrhage", False),
    ],
)  # fmt: skip
def test_findings_come_in_any_number(name: str, flag: bool) -> None:
    flags, reason = choose_one_piece(counted((2, 2, 2), (2, 2, 2)), {1: name, 2: "organ"})
    assert flags == {1: flag, 2: True}
    assert ("is a finding" in reason) is not flag
    assert reason.startswith("Every" if flag else "1 of 2")
