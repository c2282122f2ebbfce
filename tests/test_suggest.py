"""What to label next: who may be chosen, how typical and unsure cases are found, and what chance would give."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from handful.cli.main import main
from handful.data.discover import open_dataset
from handful.data.phantom import make_phantom
from handful.data.splits import make_splits, write_splits
from handful.errors import DataError, UsageError
from handful.suggestion.cluster import (
    SMALL,
    centrality,
    choose_typical,
    kmeans,
    typicality,
)
from handful.suggestion.coverage import compare, radii, random_choices
from handful.suggestion.features import averaging, intensity_features, principal_components
from handful.suggestion.roster import make_roster
from handful.suggestion.suggest import suggest
from handful.suggestion.trust import judge
from handful.suggestion.worklist import Item, as_text, mask_of, read_worklist, write_worklist
from volumes import nnunet, save


def groups(sizes: tuple[int, ...] = (9, 6, 4), *, spread: float = 0.05) -> NDArray[np.float64]:
    """Points around corners far from one another, one group after the other."""
    corners = np.array([[0.0, 0.0, 0.0], [5.0, 0.0, 0.0], [0.0, 7.0, 0.0], [0.0, 0.0, 9.0]])
    generator = np.random.default_rng(1)
    return np.concatenate([corners[i] + spread * generator.normal(size=(n, 3)) for i, n in enumerate(sizes)])


# --- clusters


def test_three_obvious_groups_are_the_clusters_largest_first() -> None:
    order = np.random.default_rng(0).permutation(19)
    truth = np.repeat([0, 1, 2], (9, 6, 4))[order]
    assert (kmeans(groups()[order], 3, seed=4) == truth).all()


def test_kmeans_finds_the_tightest_division_of_a_few_points() -> None:
    points = np.random.default_rng(3).normal(size=(7, 2))

    def inertia(cluster: NDArray[np.intp]) -> float:
        return sum(
            float(((points[cluster == c] - points[cluster == c].mean(axis=0)) ** 2).sum())
            for c in np.unique(cluster)
        )

    best = min(inertia(np.array(c)) for c in itertools.product(range(3), repeat=7) if len(set(c)) == 3)
    assert inertia(kmeans(points, 3, seed=0)) == pytest.approx(best)


def test_there_are_no_more_clusters_than_different_points_and_none_is_empty() -> None:
    points = np.repeat(np.array([[0.0, 1.0], [2.0, 3.0], [4.0, 9.0]]), 4, axis=0)
    cluster = kmeans(points, 7, seed=0)
    assert sorted(set(cluster.tolist())) == [0, 1, 2]
    assert all(len(set(cluster[i : i + 4].tolist())) == 1 for i in (0, 4, 8))


def test_typicality_is_one_over_the_mean_distance_to_half_the_cluster() -> None:
    points = np.array([[0.0], [1.0], [3.0], [7.0], [50.0]])
    cluster = np.array([0, 0, 0, 0, 1])
    expected = [1 / (2 + SMALL), 1 / (1.5 + SMALL), 1 / (2.5 + SMALL), 1 / (5 + SMALL), 0]
    assert typicality(points, cluster) == pytest.approx(expected)
    expected = [3 / 11, 3 / 9, 3 / 9, 3 / 17, 0]
    assert centrality(points, cluster) == pytest.approx(expected, rel=1e-4)


def test_typicality_looks_at_twenty_neighbours_centrality_at_all() -> None:
    points = np.concatenate([np.linspace(0, 1, 50), [40.0]])[:, None]
    cluster = np.zeros(51, np.intp)
    apart = np.sort(np.abs(points[0] - points[1:, 0]))
    assert typicality(points, cluster)[0] == pytest.approx(1 / (apart[:20].mean() + SMALL))
    assert centrality(points, cluster)[0] == pytest.approx(1 / (apart.mean() + SMALL))


@pytest.mark.parametrize("rule", ["typical", "medoid"])
def test_each_group_without_a_label_is_covered_by_its_best_member(rule: str) -> None:
    points = groups((9, 6, 7, 8))
    labelled = np.zeros(30, bool)
    labelled[10] = True  # in the second group
    picks, cluster = choose_typical(
        points, labelled=labelled, patients=[str(i) for i in range(30)], count=3, rule=rule
    )
    of = [range(9), range(15, 22), range(22, 30)]
    assert [next(k for k, g in enumerate(of) if p.index in g) for p in picks] == [0, 2, 1]  # by size
    for pick in picks:
        members = np.flatnonzero(cluster == cluster[pick.index])
        counted = len(members) // 2 if rule == "typical" else len(members) - 1
        apart = [np.sort(np.linalg.norm(points[members] - points[i], axis=1))[: 1 + counted] for i in members]
        assert pick.index == members[int(np.argmin(np.sum(apart, axis=1)))]
        assert pick.why == "typical"


def test_a_patient_is_chosen_once_even_if_best_in_two_clusters() -> None:
    points = groups((8, 6), spread=0.1)
    labelled = np.zeros(14, bool)
    alone = [str(i) for i in range(14)]
    first, second = (p.index for p in choose_typical(points, labelled=labelled, patients=alone, count=2)[0])
    shared = list(alone)
    shared[second] = alone[first]
    picks, cluster = choose_typical(points, labelled=labelled, patients=shared, count=2)
    score = typicality(points, cluster)
    rest = [i for i in range(14) if cluster[i] == cluster[second] and i != second]
    assert [p.index for p in picks] == [first, max(rest, key=lambda i: score[i])]


def test_small_clusters_are_outliers_and_further_cases_bring_the_others_nearest() -> None:
    points = np.concatenate([groups((9, 6)), [[40.0, 0.0, 0.0], [0.0, 50.0, 0.0]]])
    labelled = np.zeros(17, bool)
    labelled[[3, 12]] = True
    picks, cluster = choose_typical(points, labelled=labelled, patients=[str(i) for i in range(17)], count=2)
    assert np.bincount(cluster).tolist()[-2:] == [1, 1]  # the two far ones, for k-means
    assert [pick.why for pick in picks] == ["nearer", "nearer"]
    covered = [3, 12]
    for pick in picks:
        mean = {
            i: radii(points, np.flatnonzero(~labelled).tolist(), [*covered, i]).mean()
            for i in range(17)
            if i not in covered
        }
        assert pick.index == min(mean, key=lambda i: mean[i])
        covered.append(pick.index)


def test_equal_images_do_not_stop_the_choice() -> None:
    points = np.array([[0.0], [0.0], [0.0], [1.0], [1.0], [9.0], [9.0]])
    labelled = np.array([True, False, False, True, False, False, False])
    picks, _ = choose_typical(points, labelled=labelled, patients=list("abcdefg"), count=3)
    assert picks[0].index in (5, 6)
    assert len({pick.index for pick in picks}) == 3
    assert not any(labelled[pick.index] for pick in picks)


# --- coverage


def test_coverage_by_hand() -> None:
    points = np.array([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0], [0.0, 1.0]])
    assert radii(points, [1, 2, 3], [0]) == pytest.approx([5, 10, 1])
    found = compare(points, labelled=[0], candidates=[1, 2, 3], chosen=[2], patients=list("abcd"))
    assert found.before == pytest.approx(16 / 3)
    assert found.mean.suggested == pytest.approx((5 + 0 + 1) / 3)
    assert found.largest.suggested == pytest.approx(5)


def test_the_random_band_is_that_of_all_choices() -> None:
    points = np.random.default_rng(5).normal(size=(7, 2))
    candidates, labelled = [1, 2, 4, 5, 6], [0, 3]
    every = [
        radii(points, candidates, [*labelled, *pair]).mean() for pair in itertools.combinations(candidates, 2)
    ]
    found = compare(
        points, labelled=labelled, candidates=candidates, chosen=[2, 5], patients=list("abcdefg"), draws=4000
    )
    own = radii(points, candidates, [*labelled, 2, 5]).mean()
    assert found.mean.suggested == pytest.approx(own)
    assert found.mean.mean == pytest.approx(np.mean(every), abs=0.01)
    assert min(every) <= found.mean.low <= np.percentile(every, 15)
    assert np.percentile(every, 85) <= found.mean.high <= max(every)
    better = np.mean(np.array(every) < own - 1e-9) + 0.5 * np.mean(np.isclose(every, own))
    assert found.mean.better == pytest.approx(better, abs=0.04)


def test_random_choices_take_different_patients_each_case_alike() -> None:
    patients = ["a", "a", "a", "b", "c", "c", "d"]
    choices = random_choices([0, 1, 2, 3, 4, 6], patients, 2, draws=3000, seed=2)
    assert choices == random_choices([0, 1, 2, 3, 4, 6], patients, 2, draws=3000, seed=2)
    assert all(len({patients[i] for i in choice}) == 2 for choice in choices)
    counts = np.bincount([i for choice in choices for i in choice], minlength=7)
    assert counts[5] == 0  # not a candidate
    assert counts / 3000 == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2, 1 / 2, 0, 1 / 2], abs=0.04)


def test_the_verdict_follows_the_band() -> None:
    points = np.linspace(0, 1, 41)[:, None]
    patients = [str(i) for i in range(41)]
    words = {
        chosen: compare(
            points, labelled=[], candidates=range(41), chosen=chosen, patients=patients
        ).mean.verdict
        for chosen in ((10, 30), (0, 1), (15, 22))
    }
    assert words[10, 30] == "better than 95 % of random draws"
    assert words[0, 1] == "worse than 95 % of random draws"
    assert "no evidence of an advantage" in words[15, 22]


# --- features


@pytest.mark.parametrize(("voxels", "extent", "cells"), [(7, 1.0, 7), (12, 1.0, 4), (5, 0.4, 9), (9, 2.5, 4)])
def test_cells_average_what_they_cover(voxels: int, extent: float, cells: int) -> None:
    weights = averaging(voxels, extent, cells)
    assert weights.shape == (cells, voxels)
    assert weights.sum(axis=1) == pytest.approx(np.ones(cells))
    fine = 12_000
    places = (np.arange(fine) + 0.5) / fine - 0.5
    voxel = np.clip(np.floor((places / extent + 0.5) * voxels).astype(int), 0, voxels - 1)
    inside = np.abs(places) < extent / 2
    for cell, row in enumerate(weights):
        here = (places * cells + cells / 2 >= cell) & (places * cells + cells / 2 < cell + 1)
        if (here & inside).any():
            expected = np.bincount(voxel[here & inside], minlength=voxels) / (here & inside).sum()
            assert row == pytest.approx(expected, abs=5e-3)
        else:  # beyond the volume its outermost voxel goes on
            assert row[0 if cell < cells / 2 else -1] == 1


def test_features_do_not_depend_on_scale_orientation_or_constant_border(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    image = generator.normal(100, 20, (12, 10, 8)).astype(np.float32)
    affine = np.diag([1.0, 1.5, 2.0, 1.0])
    save(tmp_path / "images" / "a.nii.gz", image, affine)
    save(tmp_path / "images" / "b.nii.gz", 37 * image - 5, affine)
    turned = image[::-1].transpose(2, 0, 1)
    move = np.zeros((4, 4))
    move[[2, 0, 1, 3], [0, 1, 2, 3]] = [2.0, -1.0, 1.5, 1.0]
    move[0, 3] = 11
    save(tmp_path / "images" / "c.nii.gz", turned, move)
    save(tmp_path / "images" / "d.nii.gz", generator.normal(100, 20, (12, 10, 8)).astype(np.float32), affine)
    padded = np.zeros((14, 16, 9), np.float32)
    padded[1:13, 3:13, 1:9] = image
    save(tmp_path / "images" / "e.nii.gz", padded, affine)
    a, b, c, d, e = intensity_features(open_dataset(tmp_path).cases)
    assert np.abs(b - a).max() < 1e-4
    assert np.abs(c - a).max() < 1e-4
    assert np.abs(e - a).max() < 0.02  # the border's value is not part of the scale
    assert np.abs(d - a).max() > 0.5


def test_components_keep_distances_in_units_of_their_mean() -> None:
    features = np.random.default_rng(0).normal(size=(9, 40))
    points = principal_components(features)
    before = [np.linalg.norm(a - b) for a, b in itertools.combinations(features, 2)]
    after = [np.linalg.norm(a - b) for a, b in itertools.combinations(points, 2)]
    assert np.mean(after) == pytest.approx(1)
    assert np.array(after) * np.mean(before) == pytest.approx(before)
    assert not principal_components(np.full((5, 40), 7.3)).any()


# --- who may be suggested


def test_test_cases_and_labelled_cases_are_never_candidates(phantom_folder: Path) -> None:
    dataset = open_dataset(phantom_folder)
    roster = make_roster(phantom_folder)
    assert {c.name for c in roster.candidates} == {c.name for c in dataset.unlabelled}
    assert {c.name for c in roster.labelled} == {c.name for c in dataset.labelled}
    assert roster.test == ()
    assert roster.held_out == len(dataset.held_out)
    found = suggest(phantom_folder, count=2)
    assert {item.case for item in found.items} == {c.name for c in dataset.unlabelled}


def test_a_budget_hides_the_other_labels_and_test_stays_away(phantom_folder: Path) -> None:
    dataset = open_dataset(phantom_folder)
    parts = make_splits(dataset, test="1", seed=3, draws=2)
    expected = parts.select("2", 1)
    roster = make_roster(phantom_folder, labels="2", draw=1, test="1", seed=3)
    assert roster.labelled == expected.labelled
    assert roster.candidates == expected.unlabelled
    assert all(case.label is None for case in roster.candidates)
    drawn = [name for name in parts.test if not dataset.case(name).held_out]
    assert list(roster.test) == drawn
    assert roster.held_out == len(parts.test)
    assert roster.hidden == {c.name for c in dataset.labelled} - {c.name for c in roster.labelled} - set(
        drawn
    )
    known = {*parts.test, *(case.name for case in expected.labelled)}
    found = suggest(phantom_folder, labels="2", draw=1, test="1", seed=3, count=3)
    assert {item.case for item in found.items} == {case.name for case in dataset.cases} - known


def test_what_a_run_held_out_stays_held_out_after_new_labels(tmp_path: Path) -> None:
    folder = make_phantom(tmp_path / "P", patients=4, unlabelled=2, held_out=0, size=(14, 13, 12), frames=2)
    dataset = open_dataset(folder)
    parts = make_splits(dataset, test="1p")
    run = tmp_path / "run"
    write_splits(run / "splits.json", parts)
    drawn = dataset.unlabelled[0]
    shutil.copy(dataset.labelled[0].label, folder / "labelsTr" / drawn.images[0].name)  # type: ignore[arg-type]
    roster = make_roster(folder, runs=[run])
    assert set(roster.test) == set(parts.test)
    assert drawn.name in {case.name for case in roster.labelled}
    patients = {dataset.case(name).patient for name in parts.test}
    assert not patients & {case.patient for case in (*roster.labelled, *roster.candidates)}


def test_a_patient_is_suggested_once_and_the_other_frame_is_named(tmp_path: Path) -> None:
    folder = make_phantom(tmp_path / "P", patients=5, unlabelled=4, held_out=0, size=(14, 13, 12), frames=2)
    found = suggest(folder, count=4)
    assert len({item.patient for item in found.items}) == 4
    assert found.candidates == 8
    for item in found.items:
        assert item.other_cases != item.case
        assert open_dataset(folder).case(item.other_cases).patient == item.patient
    with pytest.raises(UsageError, match="only 4 patients without a label"):
        suggest(folder, count=5)


def test_the_same_seed_gives_the_same_suggestion(phantom_folder: Path) -> None:
    first, again = (suggest(phantom_folder, labels="1", count=3, seed=2) for _ in range(2))
    assert first == again
    assert json.loads(json.dumps(first.as_dict(), allow_nan=False))["items"][0]["case"] == first.items[0].case


# --- trust


def run_with_dice(folder: Path, dice: float | None) -> Path:
    (folder / "validation").mkdir(parents=True)
    (folder / "validation" / "summary.json").write_text(json.dumps({"mean": {"dice": dice}}))
    return folder


@pytest.mark.parametrize(
    ("dice", "believed"),
    [((0.5,), False), ((0.501,), True), ((0.9, 0.4), False), ((0.9, 0.6), True), ((None,), False)],
)
def test_uncertainty_is_believed_above_a_validation_dice_of_a_half(
    tmp_path: Path, dice: tuple[float | None, ...], believed: bool
) -> None:
    runs = [run_with_dice(tmp_path / str(i), value) for i, value in enumerate(dice)]
    assert judge(runs).believed is believed
    assert judge(runs, force=True).believed


def test_a_run_without_validation_is_not_believed(tmp_path: Path) -> None:
    good = run_with_dice(tmp_path / "good", 0.9)
    answer = judge([good, tmp_path / "other"])
    assert not answer.believed
    assert "no validation Dice in" in answer.why
    assert "good" not in answer.why
    assert "--trust, although" in judge([tmp_path / "other"], force=True).why


# --- the list


ITEM = Item(
    rank=1,
    case="a",
    patient="p, 1",
    image="x/a_0000.nii.gz;x/a_0001.nii.gz",
    mask="y/a.nii.gz",
    reason='most typical of 3 "similar" images',
    cluster=2,
    typicality=1.25,
    uncertainty=None,
    distance_to_nearest_labelled=0.5,
)


def test_a_worklist_reads_back_even_with_a_column_of_notes(tmp_path: Path) -> None:
    items = [
        ITEM,
        Item(**{**vars(ITEM), "rank": 2, "uncertainty": 0.25, "distance_to_nearest_labelled": None}),
    ]
    write_worklist(tmp_path, items, labels=["l", "a"], test=["t"])
    assert read_worklist(tmp_path / "worklist.csv") == items
    assert (tmp_path / "labels.txt").read_text() == "l\na\n"
    assert (tmp_path / "test.txt").read_text() == "t\n"
    lines = as_text(items).splitlines()
    (tmp_path / "noted.csv").write_text(
        "\n".join([lines[0] + ",note", *(line + ",done" for line in lines[1:])])
    )
    assert read_worklist(tmp_path / "noted.csv") == items


def test_another_worklist_is_not_overwritten_unasked(tmp_path: Path) -> None:
    write_worklist(tmp_path, [ITEM], labels=[], test=[])
    write_worklist(tmp_path, [ITEM], labels=[], test=[])
    other = Item(**{**vars(ITEM), "case": "b"})
    with pytest.raises(UsageError, match="another worklist"):
        write_worklist(tmp_path, [other], labels=[], test=[])
    assert read_worklist(tmp_path / "worklist.csv") == [ITEM]
    write_worklist(tmp_path, [other], labels=[], test=[], overwrite=True)
    assert read_worklist(tmp_path / "worklist.csv") == [other]


@pytest.mark.parametrize("text", ["", "rank,case\n1,a\n", "\0\1"])
def test_what_is_no_worklist_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "w.csv").write_text(text)
    with pytest.raises(DataError, match=r"w\.csv.*this is no worklist"):
        read_worklist(tmp_path / "w.csv")


def test_a_mask_drawn_where_the_list_says_is_found(tmp_path: Path) -> None:
    root = nnunet(tmp_path / "n")
    save(root / "imagesTr" / "new_0000.nii.gz", np.zeros((7, 6, 5), np.int16))
    dataset = open_dataset(root)
    case = dataset.case("new")
    shutil.copy(root / "labelsTr" / "c0.nii.gz", mask_of(dataset, case))
    assert open_dataset(root).case("new").label == mask_of(dataset, case)


# --- the command


def test_the_command_writes_list_page_and_what_training_needs(
    phantom_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "w"
    words = [
        "suggest",
        str(phantom_folder),
        "--labels",
        "1",
        "--test",
        "1",
        "--count",
        "2",
        "--out",
        str(out),
    ]
    assert main(words) == 0
    text = capsys.readouterr().out
    items = read_worklist(out / "worklist.csv")
    assert all(item.case in text for item in items)
    assert "5-95 %" in text
    assert (
        f"Next: handful train {phantom_folder} --labels @{out / 'labels.txt'} --test @{out / 'test.txt'} --out RUN"
        in text
    )
    page = (out / "worklist.html").read_text()
    assert page.count("data:image/png;base64,") == 6
    assert "http" not in page.replace("http-equiv", "")
    assert main([*words, "--seed", "1", "--draw", "1"]) == 2
    assert "another worklist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--count", "40"], 2, "only 2 patients without a label"),
        (["--rule", "typcial"], 2, "did you mean 'typical'"),
        (["--run", "nowhere", "--count", "1"], 3, "nowhere does not exist"),
        (["--labels", "77"], 2, "asks for more labels than exist"),
    ],
)
def test_bad_input_ends_with_words_and_its_code(
    phantom_folder: Path,
    tmp_path: Path,
    words: list[str],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["suggest", str(phantom_folder), "--out", str(tmp_path / "w"), *words]) == code
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.out == ""
    assert not (tmp_path / "w").exists()


def test_a_folder_of_images_alone_is_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "new"
    for number, points in enumerate(groups((3, 2), spread=1.0)):
        values = (
            np.random.default_rng(number).normal(size=(7, 6, 5)) + np.linspace(0, points[0], 7)[:, None, None]
        )
        save(root / "images" / f"i{number}.nii.gz", values.astype(np.float32))
    found = suggest(root, count=2)
    assert found.labelled == ()
    assert found.coverage.before is None
    assert all(item.distance_to_nearest_labelled is None for item in found.items)
    assert [item.mask for item in found.items] == [
        str(root / "labels" / f"{i.case}.nii.gz") for i in found.items
    ]
    assert main(["suggest", str(root), "--count", "2", "--json", "--out", str(tmp_path / "w")]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [item["case"] for item in shown["items"]] == [item.case for item in found.items]
    assert shown["coverage"]["mean"]["suggested"] == pytest.approx(found.coverage.mean.suggested)
    with pytest.raises(UsageError, match="--trust is about a model"):
        suggest(root, trust=True)


def test_nothing_to_suggest_and_damaged_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = nnunet(tmp_path / "n")
    assert main(["suggest", str(root)]) == 2
    assert "every case that may train has a label" in capsys.readouterr().err
    for name in ("x", "y"):
        (root / "imagesTr" / f"{name}_0000.nii.gz").write_bytes(b"torn")
    save(root / "imagesTr" / "z_0000.nii.gz", np.full((7, 6, 5), np.nan, np.float32))
    assert main(["suggest", str(root), "--count", "1", "--out", str(tmp_path / "w")]) == 3
    shown = capsys.readouterr().err
    assert "3 of 7 images cannot be compared" in shown
    assert all(f"\n  {name}: " in shown for name in "xyz")
