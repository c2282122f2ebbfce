"""The laws of splits: nested, whole patients, disjoint, repeatable, whatever the order; and their files."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import RealData
from handful.data.cases import Case, Dataset
from handful.data.discover import open_dataset
from handful.data.splits import (
    Selection,
    Splits,
    folds,
    make_splits,
    parse_budget,
    read_nnunet_folds,
    read_splits,
    validation_rule,
    write_splits,
)
from handful.errors import DataError, UsageError


def dataset(
    sizes: list[int], *, unlabelled: int = 3, held_out: int = 0, shuffle: int | None = None
) -> Dataset:
    """Patients ``p0 p1 ...`` with so many labelled cases each; every other patient also has an unlabelled case."""
    cases = []
    for p, size in enumerate(sizes):
        for i in range(size):
            cases.append(_case(f"p{p}_{i}", f"p{p}", labelled=True))
        if p % 2:
            cases.append(_case(f"p{p}_x", f"p{p}", labelled=False))
    cases += [_case(f"u{i}", f"u{i}", labelled=False) for i in range(unlabelled)]
    cases += [replace(_case(f"t{i}", f"t{i // 2}", labelled=True), held_out=True) for i in range(held_out)]
    if shuffle is not None:
        random.Random(shuffle).shuffle(cases)
    return Dataset(
        name="Toy", root=Path("toy"), layout="folders", cases=tuple(cases),
        label_names={0: "background", 1: "x"}, channel_names=("MRI",),
    )  # fmt: skip


def _case(name: str, patient: str, *, labelled: bool) -> Case:
    label = Path(f"labels/{name}.nii.gz") if labelled else None
    return Case(name=name, patient=patient, images=(Path(f"images/{name}.nii.gz"),), label=label)


def names(cases: tuple[Case, ...]) -> set[str]:
    return {case.name for case in cases}


def patients(cases: tuple[Case, ...]) -> set[str]:
    return {case.patient for case in cases}


SIZES = st.lists(st.integers(1, 4), min_size=3, max_size=12)
BUDGETS = ("1", "2", "3", "5", "1p", "2p", "3p", "1%", "20%", "50%", "100%")


@settings(max_examples=40, deadline=None)
@given(SIZES, st.integers(0, 2**31), st.integers(0, 4))
def test_the_laws_of_a_selection(sizes: list[int], seed: int, held_out: int) -> None:
    data = dataset(sizes, held_out=held_out)
    splits = make_splits(data, test="1p", seed=seed, draws=3)
    labels = {case.name: case.label for case in data.cases}
    everything = names(data.cases)
    n = 0
    for draw in range(3):
        previous: set[str] = set()
        for budget in range(1, sum(case.label is not None for case in splits.pool) + 1):
            chosen = splits.select(str(budget), draw)
            # nested
            assert previous <= names(chosen.labelled)
            previous = names(chosen.labelled)
            # whole patients: a patient with one label in the run has all of them in the run
            for case in data.labelled:
                assert (case.name in previous) == (case.patient in patients(chosen.labelled))
            # disjoint, complete, no patient on both sides
            parts = [
                names(chosen.labelled),
                names(chosen.unlabelled),
                names(chosen.test),
                set(splits.left_out),
            ]
            assert sum(map(len, parts)) == len(everything)
            assert set().union(*parts) == everything
            assert not patients(chosen.test) & patients(chosen.labelled + chosen.unlabelled)
            # no label leaks, none is lost
            assert all(case.label is None for case in chosen.unlabelled)
            assert all(case.label == labels[case.name] for case in chosen.labelled + chosen.test)
            assert names(data.held_out) <= names(chosen.test)
            # as many as asked for, or a note; never none
            assert len(chosen.labelled) >= 1
            assert (len(chosen.labelled) != budget) == bool(chosen.note)
            first = sum(case.patient == splits.draws[draw][0] for case in data.labelled)
            assert len(chosen.labelled) <= max(budget, first)
            n += 1
    assert n >= 3


@settings(max_examples=25, deadline=None)
@given(SIZES, st.integers(0, 2**31), st.integers(0, 1000))
def test_same_seed_same_split_whatever_the_order_of_files(sizes: list[int], seed: int, order: int) -> None:
    first = make_splits(dataset(sizes), test="20%", seed=seed, draws=2)
    second = make_splits(dataset(sizes, shuffle=order), test="20%", seed=seed, draws=2)
    assert set(first.test) == set(second.test)
    assert first.draws == second.draws
    for budget in BUDGETS[:1]:
        assert [c.name for c in first.select(budget, 1).labelled] == [
            c.name for c in second.select(budget, 1).labelled
        ]


def test_seeds_and_draws_differ() -> None:
    data = dataset([1] * 30)
    splits = make_splits(data, test="10", seed=1, draws=4)
    assert len(set(splits.draws)) == 4
    assert set(make_splits(data, test="10", seed=2).test) != set(splits.test)
    assert make_splits(data, test="10", seed=1, draws=9).draws[:4] == splits.draws


def test_every_patient_is_drawn_about_equally_often() -> None:
    data = dataset([1] * 10)
    first = [make_splits(data, seed=seed).draws[0][0] for seed in range(1000)]
    counts = [first.count(f"p{i}") for i in range(10)]
    assert sum(counts) == 1000
    assert min(counts) > 60  # expected 100, standard deviation 9.5
    assert max(counts) < 140


def test_the_order_is_the_same_on_every_machine() -> None:
    assert make_splits(dataset([1] * 6), seed=0).draws[0] == (
        "p4",
        "p0",
        "p5",
        "p3",
        "p1",
        "p2",
    )  # by sha256sum


def test_new_patients_do_not_reorder_the_old() -> None:
    old, new = make_splits(dataset([1] * 6), seed=3).draws[0], make_splits(dataset([1] * 9), seed=3).draws[0]
    assert tuple(p for p in new if p in old) == old


def test_budgets_count_cases_patients_and_percentages() -> None:
    splits = make_splits(dataset([2] * 10))
    counts = {budget: len(splits.select(budget).labelled) for budget in BUDGETS}
    assert counts == {
        "1": 2, "2": 2, "3": 2, "5": 4, "1p": 2, "2p": 4, "3p": 6, "1%": 2, "20%": 4, "50%": 10, "100%": 20,
    }  # fmt: skip
    assert splits.select("3").note == "3 asked for, 2 used: patients are kept whole."
    assert splits.select("4").note == ""
    assert "1% of 20, that is 1 asked for, 2 used" in splits.select("1%").note
    assert len(splits.select("12.5%").labelled) == 2  # 2.5 cases, rounded down


def test_percentages_are_exact() -> None:
    splits = make_splits(dataset([1] * 100))
    assert [len(splits.select(f"{p}%").labelled) for p in range(1, 101)] == list(range(1, 101))


def test_test_set_by_count_patients_and_percent() -> None:
    data = dataset([2] * 10, held_out=2)
    for spec, cases in (("6", 6), ("7", 6), ("3p", 6), ("30%", 6), (None, 0)):
        splits = make_splits(data, test=spec)
        assert len(splits.test) == cases + 2
        assert {"t0", "t1"} <= set(splits.test)
        assert len(splits.draws[0]) == 10 - cases // 2
    left = {
        case.name
        for case in data.cases
        if case.label is None and case.patient in patients_of(splits := make_splits(data, test="6"))
    }
    assert set(splits.left_out) == left


def patients_of(splits: Splits) -> set[str]:
    return {splits.dataset.case(name).patient for name in splits.test}


def test_listed_cases_and_patients(tmp_path: Path) -> None:
    data = dataset([2] * 5, held_out=2)
    file = tmp_path / "mine.txt"
    file.write_text("p1_0  # the clearest\n\np3\np1_0\n")
    splits = make_splits(data, seed=4, draws=2)
    for draw in (0, 1):
        chosen = splits.select(f"@{file}", draw)
        assert [case.name for case in chosen.labelled] == ["p1_0", "p3_0", "p3_1"]
        assert "p1_1" in names(chosen.unlabelled)
        assert "whatever the draw" in chosen.note
    held = make_splits(data, test=f"@{file}")
    assert set(held.test) == {"p1_0", "p1_1", "p3_0", "p3_1", "t0", "t1"}  # whole patients
    assert set(held.left_out) == {"p1_x", "p3_x"}
    for text, message in (
        ("p9", "there is no labelled case or patient 'p9'. did you mean"),
        ("t0", "'t0' is a test case"),
        ("u1", "'u1' has no label"),
        ("# nothing", "names nothing"),
    ):
        file.write_text(text)
        with pytest.raises(UsageError, match=message):
            splits.select(f"@{file}")
    with pytest.raises(UsageError, match="cannot be read"):
        parse_budget(f"@{tmp_path / 'gone.txt'}")


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "ten",
        "0",
        "-3",
        "0p",
        "-1p",
        "0%",
        "101%",
        "1.5",
        "2.5p",
        "5 %%",
        "%",
        "p",
        "1/2",
        "nan",
        "inf",
        "@",
    ],
)
def test_impossible_budgets_are_usage_errors(spec: str) -> None:
    with pytest.raises(UsageError):
        parse_budget(spec)


def test_budgets_that_exceed_what_exists_say_what_exists() -> None:
    splits = make_splits(dataset([2] * 5), test="4")
    exist = "there are 6 labelled cases of 3 patients"
    for budget in ("7", "4p"):
        with pytest.raises(UsageError, match=exist):
            splits.select(budget)
    with pytest.raises(UsageError, match="draws 0 to 0"):
        splits.select("2", 1)
    with pytest.raises(UsageError, match="there are 10 labelled cases of 5 patients"):
        make_splits(dataset([2] * 5), test="11")
    with pytest.raises(UsageError, match="leave a patient to train on"):
        make_splits(dataset([2] * 5), test="10")
    with pytest.raises(UsageError, match="there are 0 labelled cases"):
        make_splits(dataset([]), seed=1).select("1")
    with pytest.raises(UsageError, match="at least one draw"):
        make_splits(dataset([1, 1]), draws=0)


def test_validation_is_for_those_who_can_afford_it() -> None:
    assert [validation_rule(n) for n in range(1, 9)] == [0, 0, 0, 0, 5, 5, 5, 5]
    assert validation_rule(6, 3) == 3
    assert validation_rule(6, 2) == 0


@settings(max_examples=25, deadline=None)
@given(SIZES, st.integers(2, 5))
def test_folds_validate_every_case_once_and_keep_patients(sizes: list[int], k: int) -> None:
    chosen = make_splits(dataset(sizes)).select("100%")
    if k > len(sizes):
        with pytest.raises(UsageError, match=f"2 to {len(sizes)} can"):
            folds(chosen, k)
        return
    made = folds(chosen, k)
    assert len(made) == k
    validated = [case.name for fold in made for case in fold.validation]
    assert sorted(validated) == sorted(names(chosen.labelled))
    for fold in made:
        assert fold.validation
        assert names(fold.train) == names(chosen.labelled) - names(fold.validation)
        assert not patients(fold.train) & patients(fold.validation)
    sizes_of_folds = [len(fold.validation) for fold in made]
    assert max(sizes_of_folds) - min(sizes_of_folds) <= max(sizes)


def written(tmp_path: Path, data: Dataset) -> tuple[Path, Splits]:
    splits = make_splits(data, test="2p", seed=5, draws=3)
    write_splits(tmp_path / "splits.json", splits)
    return tmp_path / "splits.json", splits


def test_splits_survive_the_disk(tmp_path: Path) -> None:
    data = dataset([2, 1, 3, 1, 2], held_out=2)
    path, splits = written(tmp_path, data)
    again = read_splits(path, data)
    assert again == splits
    selection: Selection = again.select("3", 2)
    assert selection == splits.select("3", 2)
    content = json.loads(path.read_text())
    assert content["dataset"] == "Toy"
    assert sorted(content["cases"]) == sorted(content["draws"][0])


def test_splits_of_another_data_set_are_refused(tmp_path: Path) -> None:
    path, _ = written(tmp_path, dataset([2, 1, 3, 1, 2]))
    other = dataset([2, 1, 3, 1, 1])
    with pytest.raises(
        DataError,
        match=r"splits.json was made for the data set 'Toy' \(\w{16}\), but this is 'Toy' \(\w{16}\)",
    ):
        read_splits(path, other)
    relabelled = dataset([2, 1, 3, 1, 2], shuffle=3)
    assert read_splits(path, relabelled).draws  # the order of files does not matter


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c["test"].append("nobody"), "there is no case 'nobody'"),
        (lambda c: c["test"].append("u1"), "'u1' has no label"),
        (lambda c: c["test"].pop(), "trains, though its patient"),
        (
            lambda c: c["test"].append(c["cases"][c["draws"][0][0]][0]),
            "trains, though|labelled training patients once",
        ),
        (lambda c: c["draws"][1].pop(), "draw 1 does not name each"),
        (lambda c: c.pop("draws"), "cannot be read at 'draws'"),
        (lambda c: c.update(draws=[]), "there is no draw"),
        (lambda c: c.update(format="2"), "is no splits.json"),
    ],
)
def test_edits_that_break_the_laws_are_refused(tmp_path: Path, edit: object, message: str) -> None:
    data = dataset([2, 2, 3, 2, 2])
    path, _ = written(tmp_path, data)
    content = json.loads(path.read_text())
    edit(content)  # type: ignore[operator]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        read_splits(path, data)


def test_nnunet_folds(tmp_path: Path) -> None:
    data = dataset([2, 2, 1])
    path = tmp_path / "splits_final.json"
    path.write_text(json.dumps([{"train": ["p0_0", "p0_1", "p1_0", "p1_1"], "val": ["p2_0"]}]))
    (fold,) = read_nnunet_folds(path, data)
    assert names(fold.train) == {"p0_0", "p0_1", "p1_0", "p1_1"}
    assert names(fold.validation) == {"p2_0"}
    with pytest.raises(DataError, match="read_nnunet_folds"):
        read_splits(path, data)
    for content, message in (
        ([{"train": ["p0_0"], "val": ["p0_1"]}], "patient p0 is in train and in val"),
        ([{"train": ["p0_0"], "val": ["zz"]}], "there is no case 'zz'"),
        ([{"train": ["u0"], "val": ["p0_1"]}], "u0 has no label"),
        ([{"train": ["p0_0"]}], "fold 0: expected a list"),
        ({"train": []}, "is not a list"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(DataError, match=message):
            read_nnunet_folds(path, data)


def test_acdc_is_split_by_patient(shared_data: RealData) -> None:
    splits = make_splits(open_dataset(shared_data / "ACDC"), test="20p", seed=0, draws=5)
    assert len(splits.test) == 40
    assert all(len(draw) == 80 for draw in splits.draws)
    chosen = splits.select("3p", 4)
    assert (len(chosen.labelled), len(chosen.unlabelled), len(chosen.test)) == (6, 154, 40)
    assert len(patients(chosen.labelled)) == 3
