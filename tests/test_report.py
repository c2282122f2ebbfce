"""The page of a run says what was measured, loads nothing, and survives whatever is missing or malicious."""

import base64
import dataclasses
import json
import re
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from handful.artefacts import read_json, write_json, write_yaml
from handful.data.discover import open_dataset
from handful.data.fingerprint import make_fingerprint, write_fingerprint
from handful.data.phantom import make_phantom
from handful.data.plan import make_plan, write_plan
from handful.errors import UsageError
from handful.metrics.evaluate import evaluate
from handful.report.figures import curves, error_map, overlay, png, structure_colours, write_progress
from handful.report.page import write_report
from pages import read, requests_of, visit


def metrics_rows(count: int) -> list[dict[str, float]]:
    rng = np.random.default_rng(4)
    return [
        {
            "step": 10.0 * (i + 1), "steps": 10.0 * count, "seconds": 2.0 * (i + 1),
            "loss": 1.4 * np.exp(-i / count * 3) + 0.2 + rng.normal(0, 0.02),
            "dice_loss": 0.9 * np.exp(-i / count * 3) + 0.1, "cross_entropy": 0.5 * np.exp(-i / count * 4) + 0.1,
            "gradient_norm": 1.0, "lr": 1e-3 * (1 - i / count), "steps_per_s": 5.0 + rng.normal(0, 0.2),
        }
        for i in range(count)
    ]  # fmt: skip


def fake_prediction(reference: np.ndarray, number: int) -> np.ndarray:
    """A reference moved by a voxel, worn at its edges, without its nodule."""
    moved = np.roll(reference, (number % 2, 1, 0), axis=(0, 1, 2))
    keep = ndimage.uniform_filter((moved > 0).astype(float), 3) > 0.25 + 0.1 * (number % 3)
    moved = np.where(keep, moved, 0)
    moved[moved == 5] = 1
    return moved.astype(np.uint8)


def make_run(
    run: Path, data: Path, *, rename: dict[str, str] | None = None, patients: str | None = ""
) -> Path:
    """Write a run folder as ``train``, ``predict`` and ``evaluate`` leave it, without training anything."""
    dataset = open_dataset(data)
    train, test = [*dataset.labelled, *dataset.unlabelled], dataset.held_out
    fingerprint = make_fingerprint(dataset, dataset.labelled, train)
    plan = make_plan(fingerprint, dataset)
    if rename:
        plan = dataclasses.replace(plan, label_names=tuple(rename.get(n, n) for n in plan.label_names))
    write_fingerprint(run / "fingerprint.json", fingerprint)
    write_plan(run / "plan.yaml", plan)
    write_yaml(run / "recipe.yaml", {"name": "supervised", "loop": {"steps": 300, "lr": 0.001}})
    write_json(run / "splits.json", {"test": [case.name for case in test]})
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics_rows(30)))
    (run / "predictions").mkdir()
    for number, case in enumerate(test):
        assert case.label is not None
        label = nibabel.load(case.label)
        worn = fake_prediction(np.asanyarray(label.dataobj), number)
        nibabel.save(nibabel.Nifti1Image(worn, label.affine), run / "predictions" / f"{case.name}.nii.gz")
    names = dict(zip(plan.label_values, plan.label_names))
    evaluate(run / "predictions", data / "labelsTs", labels=names, out=run, bootstrap=200)
    write_json(
        run / "manifest.json",
        {
            "version": "0.1.0", "command": ["handful", "train", str(data), "--out", "run with space"],
            "started": "2026-01-02T03:04:05", "finished": "2026-01-02T03:20:05", "python": "3.12.1", "torch": "2.13.0",
            "device": "cpu", "device_name": "a processor", "threads": 2, "precision": "32", "seed": 7,
            "method": "supervised", "steps": 300, "seconds": 960.0, "parameters": 1813764,
            "dataset": {
                "name": dataset.name, "root": str(data), "layout": dataset.layout, "hash": "0123456789abcdef",
                "notes": [], "patients_from": dataset.patients_from if patients == "" else patients,
            },
            "cases": {
                "labelled": [case.name for case in dataset.labelled],
                "unlabelled": [case.name for case in dataset.unlabelled],
                "validation": [], "test": [case.name for case in test],
            },
            "patients": {case.name: case.patient for case in dataset.cases},
            "images": {case.name: [str(path) for path in case.images] for case in dataset.cases},
            "labels": {case.name: str(case.label) if case.label else None for case in dataset.cases},
        },
    )  # fmt: skip
    return run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "Phantom"
    return make_phantom(
        folder, patients=12, unlabelled=3, held_out=6, size=(34, 30, 22), spacing_mm=(3.0, 3.2, 5.0)
    )


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("finished") / "run"
    run.mkdir()
    return make_run(run, data)


@pytest.fixture(scope="module")
def page(finished: Path) -> Path:
    """The page of the finished run, for tests that only look."""
    return write_report(finished)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("report.html")))


def edit_manifest(run: Path, **changes: object) -> None:
    write_json(run / "manifest.json", read_json(run / "manifest.json") | changes)


def test_the_page_shows_every_number_of_the_summary_and_is_small(page: Path, finished: Path) -> None:
    assert page == finished / "report.html"
    assert page.stat().st_size < 5_000_000
    walk = read(page)
    summary = read_json(finished / "summary.json")
    shown = 0
    for values in [summary["mean"], *summary["classes"].values()]:
        for metric, digits in (("dice", 3), ("nsd", 3), ("hd95_mm", 2), ("assd_mm", 2)):
            assert f"{values[metric]:.{digits}f}" in walk.text
            shown += 1
    for ends in [summary["ci95"]["mean"], *summary["ci95"]["classes"].values()]:
        low, high = ends["dice"]
        assert f"{low:.3f}–{high:.3f}" in walk.text
        shown += 1
    assert shown == 5 * 6
    for name in summary["classes"]:
        assert name in walk.text
    assert "held-out cases of 6 patients, trained on the labels of 3 of 6 cases." in walk.text
    assert "handful train" in walk.text
    assert "'run with space'" in walk.text


def test_worst_median_and_best_are_drawn_as_four_panels_each(page: Path) -> None:
    walk = read(page)
    pictures = [value for name, value in walk.attributes if name == "src"]
    assert len(pictures) % 4 == 1, "and the curves"
    assert 13 <= len(pictures) <= 25
    assert len(set(pictures)) == len(pictures)
    for rank in ("Worst:", "Median:", "Best:"):
        assert rank in walk.text
    assert all(base64.b64decode(picture.split(",")[1]).startswith(b"\x89PNG") for picture in pictures)


def test_without_images_no_slice_of_a_patient_is_on_the_page(finished: Path, tmp_path: Path) -> None:
    walk = read(write_report(finished, out=tmp_path / "a.html", images=False))
    (alt,) = [value for name, value in walk.attributes if name == "alt"]
    assert alt.startswith("Loss")
    assert "Pictures of patients were left out." in walk.text
    assert "All cases, worst first" in walk.text


def test_failures_are_listed(page: Path, finished: Path) -> None:
    walk = read(page)
    missed = [
        row for row in read_json(finished / "summary.json")["cases"] if row["status"] == "prediction empty"
    ]
    assert missed, "the made-up predictions have no nodule"
    assert walk.text.count("missed") >= len(missed)
    assert f"Structures missed altogether: {len(missed)}" in walk.text


def test_nothing_is_loaded_from_anywhere(page: Path) -> None:
    walk = read(page)
    sources = [
        value for name, value in walk.attributes if name in ("src", "href", "srcset", "action", "data")
    ]
    assert len(sources) > 12
    assert all(value.startswith(("data:image/", "#")) for value in sources)
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(walk.tags)
    assert not re.search(r"url\(|@import", page.read_text(encoding="utf-8"))
    assert not [name for name, _ in walk.attributes if name.startswith("on")]


def test_names_cannot_become_markup(data: Path, tmp_path: Path) -> None:
    evil = '<script>alert("1")</script>'
    (tmp_path / "run").mkdir()
    run = make_run(tmp_path / "run", data, rename={"liver": evil, "artery": "a$\\frac{$ & <b>"})
    text = (run / "manifest.json").read_text()
    write_json(run / "manifest.json", json.loads(text.replace("phantom_006", "phantom_<script>x</script>")))
    rows = read_json(run / "summary.json")
    rows["cases"] = json.loads(json.dumps(rows["cases"]).replace("phantom_006", "phantom_<script>x</script>"))
    write_json(run / "summary.json", rows)
    edit_manifest(run, command=f"handful {evil}", method="</style><script>")
    walk = read(write_report(run))
    assert "script" not in walk.tags
    assert "b" in walk.tags, "our own markup is still markup"
    assert evil in walk.text
    assert "phantom_<script>x</script>" in walk.text


def test_missing_and_damaged_parts_are_named_and_never_crash(run: Path) -> None:
    shutil.rmtree(run / "predictions")  # drawing takes the time, and is tested elsewhere
    (run / "metrics.jsonl").unlink()
    assert "metrics.jsonl is missing" in read(write_report(run)).text
    (run / "metrics.jsonl").write_bytes(b'{"step": 1, "loss": 2}\n{"step": 2, "lo')
    assert "metrics.jsonl: 1 of 2 lines are damaged" in read(write_report(run)).text
    (run / "metrics.jsonl").unlink()
    parts = [path for path in run.iterdir() if path.suffix in (".json", ".yaml")]
    assert len(parts) == 6
    for path in parts:
        whole = path.read_bytes()
        for damage in (b"", b"{", b"[1, 2]", b"\x00\xff\xfe"):
            if damage:
                path.write_bytes(damage)
            else:
                path.unlink()
            walk = read(write_report(run))
            named = "There is no held-out result" if path.name == "summary.json" else f"{path.name} is"
            assert named in walk.text, (path.name, damage)
        path.write_bytes(whole)
    assert "is damaged and was left out" not in read(write_report(run)).text


def test_parts_of_an_unexpected_form_never_crash(run: Path) -> None:
    shutil.rmtree(run / "predictions")
    for name in (
        "manifest.json",
        "fingerprint.json",
        "splits.json",
        "summary.json",
        "plan.yaml",
        "recipe.yaml",
    ):
        whole = (run / name).read_bytes()
        for nonsense in ("x", [{"case": 1}]):
            keys = ("cases", "classes", "mean", "dataset", "patients", "label_values", "reasons", "name")
            write_json(run / name, dict.fromkeys(keys, nonsense))
            read(write_report(run))
        (run / name).write_bytes(whole)


def test_an_unevaluated_run_says_so_plainly(run: Path) -> None:
    (run / "summary.json").unlink()
    shutil.rmtree(run / "predictions")
    edit_manifest(run, finished=None)
    walk = read(write_report(run))
    assert "There is no held-out result" in walk.text
    assert "no statement about quality" in walk.text
    assert "has not finished" in walk.text
    assert "Mean Dice" not in walk.text


def test_what_weakens_the_numbers_is_said(run: Path) -> None:
    shutil.rmtree(run / "predictions")
    (run / "metrics.jsonl").unlink()
    cases = read_json(run / "manifest.json")["cases"]
    dataset = read_json(run / "manifest.json")["dataset"]
    assert "Read this with the numbers" in read(write_report(run)).text
    assert "Patients are unknown" not in read(write_report(run)).text
    edit_manifest(run, dataset=dataset | {"patients_from": None})
    assert "Patients are unknown" in read(write_report(run)).text
    edit_manifest(run, cases=cases | {"labelled": [*cases["labelled"], cases["test"][0]]})
    assert "1 scored case gave labels to the training" in read(write_report(run)).text
    patients = read_json(run / "manifest.json")["patients"]
    edit_manifest(run, cases=cases, patients=patients | {cases["test"][0]: patients[cases["labelled"][0]]})
    assert "1 patient in both training and test" in read(write_report(run)).text


def test_a_picture_that_cannot_be_drawn_says_why(run: Path) -> None:
    for prediction in (run / "predictions").glob("*.nii.gz"):
        prediction.unlink()
    walk = read(write_report(run))
    assert walk.text.count("No picture:") == 3
    assert "predictions" in walk.text


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds nothing of a run"):
        write_report(tmp_path)
    with pytest.raises(UsageError, match="not a folder"):
        write_report(tmp_path / "nowhere")


def test_the_page_goes_where_it_is_asked_and_is_the_same_twice(
    page: Path, finished: Path, tmp_path: Path
) -> None:
    before = page.stat().st_mtime_ns
    again = write_report(finished, out=tmp_path / "deep" / "a.html")
    assert again == tmp_path / "deep" / "a.html"
    assert again.read_bytes() == page.read_bytes()
    assert page.stat().st_mtime_ns == before


def picture(figure: object) -> np.ndarray:
    import io

    from matplotlib.image import imread

    return imread(io.BytesIO(png(figure)))  # type: ignore[arg-type]


def test_progress_is_drawn_at_any_length_and_leaves_no_global_state(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    for count in (0, 1, 2, 1200):
        write_progress(metrics_rows(count), tmp_path / "progress.png")
        data = (tmp_path / "progress.png").read_bytes()
        assert data.startswith(b"\x89PNG")
        assert int.from_bytes(data[16:20], "big") == 900
    assert dict(matplotlib.rcParams) == before
    assert [path.name for path in tmp_path.iterdir()] == ["progress.png"]


def test_curves_tolerate_rows_that_lack_a_term_and_odd_names() -> None:
    rows = [{"step": 1.0, "loss": 2.0}, {"step": 2.0, "loss": 1.0, "$\\bad{_病": 0.5, "lr": 0.1}]
    assert picture(curves(rows)).shape[:2] == (520, 900)


def test_a_slice_keeps_the_proportions_of_the_patient_and_puts_colours_where_the_label_is() -> None:
    image = np.zeros((12, 20))
    label = np.zeros((12, 20), int)
    label[0:4, 0:5] = 2
    shown = picture(
        overlay(image, label, pixel_mm=(3.0, 1.0), window=(0.0, 1.0), colours=("#ff0000", "#00ff00"))
    )
    rows, columns = shown.shape[:2]
    assert rows / columns == pytest.approx(12 * 3.0 / (20 * 1.0), rel=0.02)
    inside, outside = shown[rows // 6, columns // 8], shown[rows // 2, columns // 2]
    assert inside[1] > 0.3
    assert inside[0] == inside[2] == 0
    assert outside[:3].max() == 0


def test_errors_are_told_apart_and_colours_are_enough() -> None:
    reference, prediction = np.array([[0, 1, 0, 1, 2]]), np.array([[0, 0, 2, 2, 2]])
    assert error_map(reference, prediction).tolist() == [[0, 1, 2, 3, 0]]
    for count in (1, 7, 8, 14):
        assert len(set(structure_colours(count))) == count
    assert len(structure_colours(30)) == 30


@pytest.mark.browser
def test_a_browser_opens_the_page_without_an_error_or_a_request(page: Path, tmp_path: Path) -> None:
    shot, log = tmp_path / "page.png", tmp_path / "net.json"
    done = visit(
        page,
        tmp_path,
        "--window-size=1100,6000",
        f"--screenshot={shot}",
        f"--log-net-log={log}",
        "--virtual-time-budget=2000",
    )
    assert "CONSOLE" not in done.stderr, done.stderr
    assert shot.stat().st_size > 100_000
    assert requests_of(page, log) == []


@pytest.mark.browser
def test_the_check_itself_sees_errors_and_requests(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        "<!DOCTYPE html><title>bad</title><img src='http://example.test/a.png'><script>undefined_name()</script>"
    )
    log = tmp_path / "net.json"
    done = visit(page, tmp_path, f"--screenshot={tmp_path / 'bad.png'}", f"--log-net-log={log}")
    assert "CONSOLE" in done.stderr
    assert "http://example.test/a.png" in log.read_text(encoding="utf-8", errors="replace")
