"""Folders against folders: every expected case is scored or named, and the files say what the numbers mean."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from handful.artefacts import write_json
from handful.data.io import write_label
from handful.errors import DataError
from handful.metrics.bootstrap import bootstrap_mean
from handful.metrics.evaluate import evaluate
from handful.metrics.scores import ClassScore, score_case
from handful.metrics.summary import METRICS, summarise, table, write_summary

AFFINE = np.array([[-0.8, 0, 0, 4], [0, 1.1, 0, 2], [0, 0, 2.5, 1], [0, 0, 0, 1.0]])
SHAPE = (11, 14, 8)
NAMES = {0: "background", 1: "atrium", 3: "ventricle"}


def labels(seed: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    array = np.zeros(SHAPE, np.uint8)
    for value, low in ((1, (1, 2, 1)), (3, (6, 7, 3))):
        start = np.array(low) + rng.integers(0, 2, 3)
        stop = start + rng.integers(2, 4, 3)
        array[tuple(slice(a, b) for a, b in zip(start, stop))] = value
    return array


def save(path: Path, array: NDArray[Any], affine: NDArray[np.float64] = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def folders(root: Path, cases: str = "abcd") -> tuple[Path, Path]:
    for i, case in enumerate(cases):
        save(root / "predictions" / f"{case}.nii.gz", labels(i))
        save(root / "labels" / f"{case}.nii.gz", labels(i + 20))
    return root / "predictions", root / "labels"


def test_scores_are_those_of_each_volume(tmp_path: Path) -> None:
    predictions, references = folders(tmp_path)
    summary = evaluate(
        predictions, references, labels=NAMES, out=tmp_path / "out", tolerance_mm=1.2, bootstrap=100
    )
    expected = [
        score
        for i, case in enumerate("abcd")
        for score in score_case(
            labels(i), labels(i + 20), spacing_mm=(0.8, 1.1, 2.5), labels=NAMES, tolerance_mm=1.2, case=case
        )
    ]
    assert len(summary.cases) == len(expected) == 8
    for found, wanted in zip(summary.cases, expected):
        assert (found.case, found.class_name, found.status) == (wanted.case, wanted.class_name, wanted.status)
        for name in METRICS:
            assert getattr(found, name) == pytest.approx(getattr(wanted, name), rel=1e-5)
    assert not summary.problems
    assert summary.notes == (
        "every case counts as its own patient: nothing says which cases belong together.",
    )

    content = json.loads((tmp_path / "out" / "summary.json").read_text())
    first = ["version", "definitions", "mean", "classes", "cases", "ci95"]
    assert list(content) == [*first, "made_from", "problems", "notes"]
    assert "1.2 mm" in content["definitions"]["nsd"]
    with open(tmp_path / "out" / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "case", "patient", "class", "dice", "hd95_mm", "assd_mm", "nsd", "volume_ml", "reference_ml", "status",
    ]  # fmt: skip
    assert len(rows) == 8
    for row, case, score in zip(rows, content["cases"], summary.cases):
        assert list(row) == list(case)
        assert (row["case"], row["class"]) == (case["case"], case["class"]) == (score.case, score.class_name)
        assert float(row["dice"]) == pytest.approx(case["dice"], rel=1e-5)


def score(case: str, patient: str, name: str, dice: float | None, status: str = "scored") -> ClassScore:
    return ClassScore(
        case=case, patient=patient, class_name=name, dice=dice, hd95_mm=dice and 10 * dice, assd_mm=dice, nsd=dice,
        volume_ml=2.0, reference_ml=4.0, status=status,
    )  # fmt: skip


SCORES = [
    score("a1", "a", "x", 0.5), score("a1", "a", "y", 0.9),
    score("a2", "a", "x", 0.7), score("a2", "a", "y", None, "both empty"),
    score("b1", "b", "x", 0.0, "prediction empty"), score("b1", "b", "y", 0.3),
    score("c1", "c", "x", 0.8), score("c1", "c", "y", None, "both empty"),
]  # fmt: skip


def test_means_are_over_volumes_then_classes() -> None:
    summary = summarise(SCORES, tolerance_mm=1, bootstrap=300, seed=3)
    assert summary.classes["x"]["dice"] == pytest.approx((0.5 + 0.7 + 0.0 + 0.8) / 4)
    assert summary.classes["y"]["dice"] == pytest.approx((0.9 + 0.3) / 2)
    assert summary.mean["dice"] == pytest.approx((0.5 + 0.6) / 2)
    assert summary.mean["hd95_mm"] == pytest.approx(5.5)
    counts = ("scored", "both_empty", "one_empty")
    assert [summary.classes["x"][key] for key in counts] == [4, 0, 1]
    assert [summary.classes["y"][key] for key in counts] == [2, 2, 0]
    patients = ["a", "a", "b", "c"]
    wanted = bootstrap_mean([0.5, 0.7, 0.0, 0.8], patients, resamples=300, seed=3)
    assert summary.ci95["classes"]["x"]["dice"] == pytest.approx(wanted)
    low, high = summary.ci95["mean"]["dice"]
    assert low < 0.55 < high


def test_nothing_scored_is_no_number(tmp_path: Path) -> None:
    summary = summarise([score("a", "a", "x", None, "both empty")], tolerance_mm=1)
    assert summary.mean["dice"] is None
    assert summary.ci95["mean"]["dice"] is None
    write_summary(tmp_path, summary)  # JSON knows no NaN
    assert table(summary)[1][:3] == ["x", "-", "-"]


def test_the_table_has_one_line_a_class_and_the_mean() -> None:
    rows = table(summarise(SCORES, tolerance_mm=1))
    assert [row[0] for row in rows] == ["class", "x", "y", "mean"]
    assert len({len(row) for row in rows}) == 1
    assert rows[1][1] == "0.500"
    assert rows[1][-3:] == ["4", "1", "0"]


def test_every_expected_case_is_scored_or_named(tmp_path: Path) -> None:
    predictions, references = folders(tmp_path, "abcdef")
    (predictions / "a.nii.gz").unlink()
    (references / "b.nii.gz").unlink()
    shifted = AFFINE + np.array([[0, 0, 0, 5]] + [[0] * 4] * 3)
    save(predictions / "c.nii.gz", labels(1), shifted)
    save(predictions / "d.nii.gz", labels(1)[:-1])
    (predictions / "e.nii.gz").write_bytes(b"not an image")
    save(predictions / "f_probabilities.nii.gz", np.zeros((*SHAPE, 2), np.float32))
    summary = evaluate(predictions, references, labels=NAMES, out=tmp_path / "out", bootstrap=10)
    assert {s.case for s in summary.cases} == {"f"}
    assert len(summary.problems) == 5
    for case, words in {
        "a": "there is no prediction in",
        "b": "there is no reference in",
        "c": "c.nii.gz lie on different grids: affines that place the same voxel up to 5 mm apart",
        "d": "different grids: shape 10 x 14 x 8 against 11 x 14 x 8",
        "e": "e.nii.gz",
    }.items():
        assert any(words in problem and case in problem for problem in summary.problems), case
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["problems"] == list(summary.problems)


def test_headers_may_round(tmp_path: Path) -> None:
    predictions, references = folders(tmp_path, "ab")
    save(predictions / "a.nii.gz", labels(0), AFFINE * (1 + 1e-6))
    assert not evaluate(predictions, references, labels=NAMES, bootstrap=10).problems


def test_nothing_to_score_is_an_error(tmp_path: Path) -> None:
    predictions, references = folders(tmp_path, "ab")
    (tmp_path / "empty").mkdir()
    for first, second, message in (
        (predictions, tmp_path / "nowhere", "nowhere does not exist"),
        (tmp_path / "empty", references, "empty holds no label maps"),
        (
            save(tmp_path / "other" / "z.nii.gz", labels(0)).parent,
            references,
            "no case in common.*z.nii.gz and a.nii.gz",
        ),
    ):
        with pytest.raises(DataError, match=message):
            evaluate(first, second, labels=NAMES)
    for case in "ab":
        save(predictions / f"{case}.nii.gz", labels(0)[1:])
    with pytest.raises(DataError, match=r"no case could be scored:\n  .*a\.nii\.gz(.|\n)*b\.nii\.gz"):
        evaluate(predictions, references, labels=NAMES)
    with pytest.raises(DataError, match="no class to score besides background"):
        evaluate(references, references, labels={0: "background"})


def dataset(root: Path, **more: Any) -> Path:
    for i, case in enumerate(("p1_a", "p1_b", "p2_a", "p3_a")):
        save(
            root / "imagesTr" / f"{case}.nii.gz",
            np.full(SHAPE, 5.0, np.float32) * np.arange(SHAPE[2], dtype=np.float32),
        )
        save(root / "labelsTr" / f"{case}.nii.gz", labels(i))
    write_json(
        root / "dataset.json",
        {"name": "Hearts", "channel_names": {"0": "MRI"}, "file_ending": ".nii.gz", "numTraining": 4, **more},
    )
    return root


NNUNET = {"background": 0, "atrium": 1, "ventricle": 3}


def test_a_data_set_names_labels_and_patients_and_may_be_predicted_in_part(tmp_path: Path) -> None:
    data = dataset(tmp_path / "data", labels=NNUNET)
    (data / "cases.csv").write_text("case,patient\np1_a,one\np1_b,one\np2_a,two\np3_a,three\n")
    for case in ("p1_a", "p1_b", "p2_a"):
        save(tmp_path / "predictions" / f"{case}.nii.gz", labels(3))
    for place in (data, data / "dataset.json"):
        summary = evaluate(tmp_path / "predictions", place, bootstrap=10)
        assert [s.patient for s in summary.cases if s.class_name == "atrium"] == ["one", "one", "two"]
        assert list(summary.classes) == ["atrium", "ventricle"]
        assert not summary.problems
        assert summary.notes == (
            "1 labelled cases of the data set have no prediction; they are not in the means.",
        )
    # the bare folder of labels says that all four were expected; names and patients come from around it
    summary = evaluate(tmp_path / "predictions", data / "labelsTr", bootstrap=10)
    assert [problem.split(":")[0] for problem in summary.problems] == ["p3_a"]
    assert summary.cases[0].patient == "one"
    assert list(summary.classes) == ["atrium", "ventricle"]


def test_what_predict_was_asked_for_is_what_is_expected(tmp_path: Path) -> None:
    predictions, references = folders(tmp_path, "abcd")
    (predictions / "b.nii.gz").unlink()
    write_json(
        predictions / "predictions.json", {"cases": [{"case": "a"}, {"case": "b", "status": "failed"}]}
    )
    summary = evaluate(predictions, references, labels=NAMES, bootstrap=10)
    assert {s.case for s in summary.cases} == {"a"}
    assert [problem.split(":")[0] for problem in summary.problems] == ["b"]
    assert any("2 predictions are of cases that were not asked for" in note for note in summary.notes)
    chosen = evaluate(predictions, references, labels=NAMES, cases=["c", "d"], bootstrap=10)
    assert {s.case for s in chosen.cases} == {"c", "d"}


def test_where_names_come_from(tmp_path: Path) -> None:
    predictions, references = folders(tmp_path, "ab")
    summary = evaluate(predictions, references, bootstrap=10)
    assert list(summary.classes) == ["1", "3"]
    assert any("called by their values" in note for note in summary.notes)
    like = references / "a.nii.gz"
    write_label(predictions / "a.nii.gz", labels(0), like=like, label_names=NAMES)
    assert list(evaluate(predictions, references, bootstrap=10).classes) == ["atrium", "ventricle"]
    data = dataset(tmp_path / "data", labels={"background": 0, "left": 1, "right": 3})
    given = evaluate(predictions, references, labels=data / "dataset.json", bootstrap=10)
    assert list(given.classes) == ["left", "right"]
    part: Mapping[int, str] = {1: "only"}
    summary = evaluate(predictions, references, labels=part, bootstrap=10)
    assert list(summary.classes) == ["only"]
    assert (
        sum("label values without a name, which are not scored: [3]" in note for note in summary.notes) == 4
    )


def test_two_files_need_not_have_one_name(tmp_path: Path) -> None:
    first, second = save(tmp_path / "mine.nii.gz", labels(0)), save(tmp_path / "reference.nii", labels(0))
    summary = evaluate(first, second, labels=NAMES)
    assert [(s.case, s.dice) for s in summary.cases] == [("mine", 1.0), ("mine", 1.0)]
    assert summary.ci95["mean"]["dice"] is None  # of one patient nothing can be said


def test_real_labels_agree_with_themselves(shared_data: Any) -> None:
    folder = shared_data / "Task04_Hippocampus" / "labelsTr"
    files = sorted(folder.glob("*.nii.gz"))[:3]
    summary = evaluate(
        folder, folder.parent, cases=[f.name.removesuffix(".nii.gz") for f in files], bootstrap=10
    )
    assert summary.mean == {"dice": 1.0, "hd95_mm": 0.0, "assd_mm": 0.0, "nsd": 1.0}
    assert len(summary.cases) == 6
