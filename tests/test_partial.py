"""Laws of cases annotated in part: their background is not known, and what was not looked for is not scored."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from handful.artefacts import read_json
from handful.data.cache import Cache
from handful.data.check import check_dataset
from handful.data.discover import content_hash, open_dataset
from handful.data.fingerprint import make_fingerprint
from handful.data.plan import make_plan
from handful.data.preprocess import IGNORED_VOXEL
from handful.data.splits import make_splits
from handful.errors import DataError
from handful.metrics.evaluate import evaluate
from handful.studies.blind import write_blind
from handful.training.run import pretrain, train


@pytest.fixture
def data(phantom_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(phantom_folder, tmp_path / "data"))


def say(data: Path, **annotated: str) -> None:
    """Write into cases.csv which structures were annotated in which case."""
    lines = [line.split(",")[:2] for line in (data / "cases.csv").read_text().splitlines()]
    lines = [[*line, annotated.get(line[0], "")] for line in lines[1:]]
    (data / "cases.csv").write_text(
        "\n".join(",".join(line) for line in [["case", "patient", "annotated"], *lines])
    )


def keep(file: Path, values: set[int]) -> None:
    """Leave only these structures in a label map."""
    image = nib.load(file)
    voxels = np.asarray(image.dataobj)
    nib.save(
        nib.Nifti1Image(np.where(np.isin(voxels, list(values)), voxels, 0).astype(np.uint8), image.affine),
        file,
    )


def test_the_background_of_a_case_annotated_in_part_is_not_known(data: Path, tmp_path: Path) -> None:
    whole = open_dataset(data)
    case = whole.labelled[0]
    plan = make_plan(make_fingerprint(whole, [case], [case]), whole)
    cache = Cache(tmp_path / "cache", plan)
    full = cache.get(case).label
    say(data, **{case.name: " Liver;5 "})
    keep(case.label, {1, 5})
    dataset = open_dataset(data)
    part = dataset.case(case.name)
    assert part.annotated == (1, 5)
    assert any("annotated in part" in note for note in dataset.notes)
    assert content_hash(dataset) != content_hash(
        replace(dataset, cases=tuple(replace(each, annotated=None) for each in dataset.cases))
    )
    found = cache.get(part).label
    assert set(np.unique(found)) == {1, 5, IGNORED_VOXEL}
    assert np.array_equal(np.isin(found, (1, 5)), np.isin(full, (1, 5)))
    assert np.array_equal(cache.open_lazy(part).label[:], found)
    # the same files, said to be complete
    all_known = cache.get(replace(part, annotated=None)).label
    assert np.array_equal(all_known == 0, found == IGNORED_VOXEL)
    fingerprint = make_fingerprint(dataset, [part], [part])
    assert {entry.value for entry in fingerprint.classes} == {1, 5}


@pytest.mark.parametrize("words", ["lung", "liver; 9", "0", ";"])
def test_a_word_that_is_no_structure_is_named(data: Path, words: str) -> None:
    say(data, phantom_001=words)
    with pytest.raises(DataError, match="phantom_001") as caught:
        open_dataset(data)
    assert "liver, right kidney, left kidney, artery, nodule" in str(caught.value)


def test_all_structures_or_none_named_is_annotated_in_full(data: Path) -> None:
    say(data, phantom_000="1;2;3;4;5", phantom_001="")
    assert all(case.annotated is None for case in open_dataset(data).cases)


def test_a_structure_beyond_what_was_annotated_is_an_error(data: Path) -> None:
    say(data, phantom_000="liver")
    report = check_dataset(data)
    (problem,) = [p for p in report.problems if p.severity == "fatal"]
    assert "phantom_000" in str(problem)
    assert "'annotated'" in problem.remedy
    with pytest.raises(DataError, match="only \\[1\\] are said to be annotated"):
        train(data, data / "run", labels="100%", steps=1, device="cpu", quiet=True)


def test_something_must_say_what_background_is(data: Path) -> None:
    cases = [case.name for case in open_dataset(data).labelled]
    for case in cases:
        keep(open_dataset(data).case(case).label, {1})
    say(data, **dict.fromkeys(cases, "liver"))
    with pytest.raises(DataError, match="nothing says what background is"):
        train(data, data / "run", labels="100%", steps=1, device="cpu", quiet=True)
    assert not (data / "run" / "weights.safetensors").exists()
    # where nothing names the structures, liver is all there is
    (data / "dataset.json").unlink()
    with pytest.raises(DataError, match=r"no dataset\.json names any"):
        open_dataset(data)
    say(data, **dict.fromkeys(cases, "1"))
    train(data, data / "run", labels="100%", steps=1, device="cpu", quiet=True, set_=["plan.width=4"])


def test_only_what_was_annotated_is_scored(data: Path, tmp_path: Path) -> None:
    case = open_dataset(data).held_out[0]
    shutil.copytree(data / "labelsTs", tmp_path / "predictions")
    complete = evaluate(tmp_path / "predictions", data, bootstrap=10)
    assert {s.class_name for s in complete.cases if s.case == case.name} > {"liver"}
    keep(case.label, {1})
    wrong = evaluate(tmp_path / "predictions", data, bootstrap=10)
    say(data, **{case.name: "liver"})
    for references in (data, data / "labelsTs"):
        found = evaluate(tmp_path / "predictions", references, bootstrap=10)
        own = [s for s in found.cases if s.case == case.name]
        assert [(s.class_name, s.dice) for s in own] == [("liver", 1.0)]
        assert found.mean["dice"] == 1.0 > wrong.mean["dice"]
        assert any(
            f"annotated in part; of them only what was annotated is scored: {case.name}" in n
            for n in found.notes
        )


def test_a_study_hands_on_what_was_annotated(data: Path, tmp_path: Path) -> None:
    case = open_dataset(data).labelled[0]
    keep(case.label, {1, 2})
    say(data, **{case.name: "1;2"})
    blind = write_blind(tmp_path / "blind", make_splits(open_dataset(data), seed=0))
    assert blind.dataset.case(case.name).annotated == (1, 2)


def test_trainings_take_partial_labels(data: Path, tmp_path: Path) -> None:
    case = open_dataset(data).labelled[0]
    keep(case.label, {1})
    say(data, **{case.name: "liver"})
    small = {"device": "cpu", "quiet": True, "labels": "100%", "steps": 2, "set_": ("plan.width=4",)}
    pretrain(data, tmp_path / "mixcl", method="mixcl", **small)
    train(data, tmp_path / "run", init=tmp_path / "mixcl", **small)
    last = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1]
    assert np.isfinite(json.loads(last)["loss"])
    assert case.name in read_json(tmp_path / "run" / "manifest.json")["cases"]["labelled"]
