"""The page of a study answers in one sentence, shows every number, survives what is missing, and loads nothing."""

import base64
import csv
import json
import re
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from handful.artefacts import read_json, read_yaml, write_json, write_yaml
from handful.cli.main import main
from handful.cli.study import _saved
from handful.data.discover import open_dataset
from handful.data.fingerprint import make_fingerprint
from handful.data.plan import make_plan, write_plan
from handful.errors import DataError, UsageError
from handful.report import study as page_of_study
from handful.report import study_figures, study_files
from handful.report.study import write_study_report
from handful.report.study_files import read_study
from handful.report.study_pictures import pictures
from handful.report.study_tables import comparisons, cost, has_energy, results, saved, verdict_counts
from handful.report.study_words import SURE, headline, is_sure, leader, warnings
from handful.studies import results as engine
from handful.studies.arms import Arm
from handful.studies.grid import Unit
from made_up_study import COLUMNS, make_study
from pages import read, requests_of, visit

FAILED = {("pcl", "2", 1): "step 12: loss is not finite."}
MISSING = [("mona", "5%", 2)]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three methods, two budgets, three draws; one run failed, one was never run."""
    return make_study(
        tmp_path_factory.mktemp("study") / "made up", methods=("supervised", "pcl", "mona"), draws=3, cases=9,
        budgets={"2": 2, "5%": 10}, failed=FAILED, missing=MISSING,
    )  # fmt: skip


@pytest.fixture(scope="module")
def page(study: Path) -> Path:
    return write_study_report(study)


@pytest.fixture
def copy(study: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(
        shutil.copytree(study, tmp_path / "study", ignore=shutil.ignore_patterns("report*", "figure*"))
    )


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the drawings of a page, which take the time and are tested on their own."""
    dot = "data:image/png;base64,iVBORw0KGgo="
    monkeypatch.setattr(page_of_study, "_figure", lambda draw, study: {"wide": dot, "narrow": dot})
    monkeypatch.setattr(page_of_study, "png", lambda figure, dpi: b"")
    monkeypatch.setattr(study_figures, "svg", lambda figure: b"")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def rewrite(path: Path, lines: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


def edit(path: Path, where: dict[str, str], **changes: str) -> None:
    """Change the fields of the lines that have the given ones."""
    lines = rows(path)
    hit = [line for line in lines if all(line[key] == value for key, value in where.items())]
    assert hit
    for line in hit:
        line.update(changes)
    rewrite(path, lines)


def test_every_number_of_the_tables_is_on_the_page(page: Path, study: Path) -> None:
    text = read(page).text
    shown = 0
    for row in rows(study / "summary.csv"):
        low, high = float(row["low"]), float(row["high"])
        for number in (
            f"{float(row['dice']):.3f}",
            f"± {float(row['dice_sd']):.3f}",
            f"{low:.3f}–{high:.3f}",
        ):
            assert number in text
            shown += 1
        assert f"rank {row['rank']}.0" in text
    for row in rows(study / "comparisons.csv"):
        assert f"{float(row['difference']):+.3f}".replace("-", "−") in text
        shown += 1
    for row in rows(study / "saved.csv"):
        assert (f"{float(row['equal_labels']):.1f}" if row["equal_labels"] else row["note"]) in text
        shown += 1
    assert shown == 6 * 3 + 4 + 4
    for part in (
        "handful study DATA",
        "0123456789abcdef",
        "test labels opened for scoring",
        "case_008",
        "2.13.0",
        "train_201",  # who was labelled
        "Recipe of mona, run: 2, 5%",
        "steps: 1000",
    ):
        assert part in text


def test_it_says_on_how_many_draws_methods_were_scored(study: Path, page: Path) -> None:
    """A run that failed leaves its method fewer."""
    assert "2 to 3 draws of labels" in read(page).text
    assert "2 to 3 draws of labels" in (study / "report.md").read_text()


def test_every_drawing_has_words_and_a_table_beside_it(page: Path) -> None:
    walk, text = read(page), page.read_text(encoding="utf-8")
    assert walk.tags.count("img") == sum(name == "alt" and len(value) > 20 for name, value in walk.attributes)
    for part in ("efficiency", "differences", "structures", "cost"):
        section = text[text.index(f'<section id="{part}">') :].split("</section>")[0]
        assert section.count("<picture>") == 1
        assert "<table>" in section
        assert 'media="(max-width: 720px)"' in section
    linked = {value for name, value in walk.attributes if name == "href"}
    assert linked == {f"#{value}" for name, value in walk.attributes if name == "id"}
    assert "prefers-color-scheme" in text


def test_nothing_is_loaded_from_anywhere(page: Path) -> None:
    walk = read(page)
    sources = [
        value for name, value in walk.attributes if name in ("src", "srcset", "href", "action", "data")
    ]
    assert len(sources) > 12
    assert all(value.startswith(("data:image/png;base64,", "#")) for value in sources)
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(walk.tags)
    pictures = [value for value in sources if value.startswith("data")]
    assert len(set(pictures)) == len(pictures) == 8
    assert all(base64.b64decode(value.split(",")[1]).startswith(b"\x89PNG") for value in pictures)
    assert page.stat().st_size < 3_000_000


def test_the_same_study_gives_the_same_files_twice(page: Path, study: Path, tmp_path: Path) -> None:
    again = write_study_report(study, out=tmp_path / "deep" / "page.html")
    assert again.read_bytes() == page.read_bytes()
    for name in ("report.md", "figure.png", "figure.svg"):
        assert (again.parent / name).read_bytes() == (page.parent / name).read_bytes()
    assert sorted(path.name for path in again.parent.iterdir()) == [
        "figure.png", "figure.svg", "page.html", "report.md"
    ]  # fmt: skip


def test_the_markdown_holds_the_table_the_figure_and_the_command(page: Path, study: Path) -> None:
    text = (study / "report.md").read_text()
    assert text.startswith(headline(read_study(study))["sentence"])
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 3
    assert {line.count("|") for line in table} == {4}
    for row in rows(study / "summary.csv"):
        assert f"{float(row['dice']):.3f}" in text
    assert "](figure.png)" in text
    assert (study / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (study / "figure.svg").read_text()
    assert "```sh\nhandful study DATA" in text
    assert "2 runs gave no result" in text


def test_failed_and_missing_runs_are_shown_with_their_reason(page: Path) -> None:
    text = read(page).text
    assert "2 of 18 runs are not in the results" in text
    assert FAILED["pcl", "2", 1] in text
    assert "no reason was recorded" in text


def test_the_answer_names_the_leader_its_lead_and_whether_it_is_noise(copy: Path) -> None:
    two_left = {"method": "mona", "budget": "5%"}
    assert "two draws: not decided" in headline(read_study(copy))["sentence"]
    edit(copy / "comparisons.csv", two_left, verdict=SURE)
    found = headline(read_study(copy))
    lead = {row["budget"]: row for row in rows(copy / "comparisons.csv") if row["method"] == "mona"}
    assert found["sentence"].startswith("mona leads at every budget: ")
    assert found["figure"] == f"{float(lead['2']['difference']):+.3f}"
    assert found["sentence"].count("more than noise") == 2
    for row in lead.values():
        assert f"{float(row['low']):+.3f} to {float(row['high']):+.3f}" in found["sentence"]

    edit(
        copy / "comparisons.csv", {"method": "mona", "budget": "5%"}, low="-0.002", verdict="within the noise"
    )
    sentence = headline(read_study(copy))["sentence"]
    assert sentence.count("more than noise") == 1
    assert sentence.count("−0.002 to") == 1
    assert sentence.endswith("within the noise).")

    edit(copy / "summary.csv", {"method": "supervised", "budget": "5%"}, dice="0.99")
    sentence = headline(read_study(copy))["sentence"]
    assert "with 2 labelled cases mona leads" in sentence[:1].lower() + sentence[1:]
    assert "with 10 labelled cases (5%) labels only reaches Dice 0.990, and no method beats it" in sentence

    edit(copy / "summary.csv", {"method": "supervised", "budget": "2"}, dice="0.98")
    sentence = headline(read_study(copy))["sentence"]
    assert sentence.startswith(
        "No method beats labels only at any budget: Dice 0.980 with 2 labelled cases; "
    )


def test_the_verdict_is_the_study_s_own(copy: Path) -> None:
    """An interval without 0 is not enough: the study corrects for having asked several questions."""
    edit(copy / "comparisons.csv", {"budget": "5%"}, verdict="more than noise")
    edit(copy / "comparisons.csv", {"budget": "2"}, low="0.01", high="0.03", verdict="within the noise")
    found = read_study(copy)
    assert [is_sure(row) for row in found.comparisons] == [row["budget"] == "5%" for row in found.comparisons]
    assert verdict_counts(found) == {"sure": 2, "all": 4}
    for line in next(group for group in comparisons(found) if group.heading == "2 labelled cases").rows:
        assert line[-1] == "within the noise"


def test_a_better_dice_with_a_worse_distance_is_marked(copy: Path) -> None:
    def cells() -> list[str]:
        return [line[-2] for group in comparisons(read_study(copy)) for line in group.rows]

    assert not any("worse" in cell for cell in cells())
    edit(
        copy / "comparisons.csv",
        {"method": "mona", "budget": "2"},
        hd95_difference="0.8",
        hd95_low="-0.1",
        hd95_high="1.7",
    )
    edit(
        copy / "comparisons.csv", {"method": "pcl", "budget": "2"}, difference="-0.01", hd95_difference="0.5"
    )
    assert [cell for cell in cells() if "worse" in cell] == ["worse: +0.80 (−0.10 to +1.70)"]
    lines = rows(copy / "comparisons.csv")
    new = [name for name in lines[0] if name.startswith(("hd95", "nsd"))]
    rewrite(copy / "comparisons.csv", [{k: v for k, v in line.items() if k not in new} for line in lines])
    assert set(cells()) == {"–"}, "a study of an older version has none"


def test_energy_is_shown_where_it_was_measured(copy: Path) -> None:
    assert not has_energy(read_study(copy))
    without = {len(line) for group in cost(read_study(copy)) for line in group.rows}
    edit(copy / "runs.csv", {"method": "mona", "budget": "2"}, energy_wh="12.34")
    shown = [line for group in cost(read_study(copy)) for line in group.rows]
    assert {len(line) for line in shown} == {without.pop() + 1}
    assert [line[-2] for line in shown].count("12.3") == 1


def test_an_end_of_labels_saved_is_shown_where_the_number_is_beyond(copy: Path) -> None:
    where = {"method": "mona", "budget": "2"}
    for low, high, shown, said in (
        ("6", "", "at least 6.0", "better than at all its budgets (at least 6 labels)"),
        ("", "3", "at most 3.0", "better than at all its budgets (at most 3 labels)"),
        ("", "", "–", "better than at all its budgets"),
    ):
        note = "better than the control with its largest budget run (10 labels)"
        edit(copy / "saved.csv", where, equal_labels="", low=low, high=high, note=note)
        group = next(group for group in saved(read_study(copy)) if group.heading == "mona")
        assert group.rows[0][1:4] == ["–", shown, "–"]
        ends = {"low": float(low) if low else None, "high": float(high) if high else None}
        assert _saved({"equal_labels": None, "note": note, **ends}) == said
    assert _saved({"equal_labels": 4.0, "low": 3.0, "high": None, "note": ""}) == "4 labels (3 to ?)"


def test_words_and_places_are_those_of_the_engine(study: Path) -> None:
    """The page may not import the engine, so that this is where the two are held together."""
    assert (SURE, study_files.CONTROL) == (engine.SURE, engine.CONTROL)
    # the page does without the means of patients, which a study of an older version has not
    assert {name.removesuffix(".csv") for name in study_files.COLUMNS} == set(engine.COLUMNS) - {"patients"}
    for name, columns in study_files.COLUMNS.items():
        assert set(columns) <= set(engine.COLUMNS[name.removesuffix(".csv")].split(","))
    for name, columns in COLUMNS.items():
        assert columns.split() == engine.COLUMNS[name].split(","), "the made-up tables are like the real ones"
    found = read_study(study)
    for budget in ("2", "5%", "3p", "@lists/first five.txt"):
        unit = Unit(arm=Arm(name="pcl", train="pcl"), budget=budget, draw=3, n_labelled=2)
        assert found.run(budget, 3, "pcl") == study / unit.place


def test_ranks_lead_and_means_agree_with_the_scores(study: Path) -> None:
    found = read_study(study)
    assert found.budgets == ["2", "5%"]
    assert found.methods[0] == "supervised"
    for budget in found.budgets:
        best = {}
        for method in found.methods:
            own = [
                float(row["dice"])
                for row in rows(study / "scores.csv")
                if (row["method"], row["budget"]) == (method, budget)
            ]
            best[method] = np.mean(own)
            by_class, by_case = (found.dice_of(method, budget, key) for key in ("class", "case"))
            assert np.mean([values.mean() for values in by_class.values()]) == pytest.approx(best[method])
            assert np.mean([values.mean() for values in by_case.values()]) == pytest.approx(best[method])
            draws = {("pcl", "2"): 2, ("mona", "5%"): 2}.get((method, budget), 3)
            assert {len(values) for values in by_case.values()} == {draws}
        top = leader(found, budget)
        assert top is not None
        assert top["method"] == max(best, key=lambda name: best[name])
    for line in results(found):
        assert line["rank"] == found.about["ranks"][line["method"]]
        assert [cell["best"] for cell in line["cells"]] == [cell["rank"] == "1.0" for cell in line["cells"]]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("settings", "expected", "absent"),
    [
        ({"draws": 1}, ["One draw: intervals", "leads at every budget", "one draw: not decided)"], ["more than"]),
        ({"budgets": {"2": 2}}, ["One budget", "With 2 labelled cases mona leads"], []),
        ({"methods": ("supervised",)}, ["Nothing was compared", "labels only reaches Dice"], ["beats it"]),
        (
            {"failed": {("supervised", b, d): "out of memory" for b in ("2", "4") for d in (0, 1)}},
            ["The control has no result", "with no control to compare it with", "out of memory"],
            ["more than noise"],
        ),
        (
            {"failed": {("mona", b, d): "killed" for b in ("2", "4") for d in (0, 1)}},
            ["4 of 12 runs are not in the results", "pcl leads at every budget"],
            [],
        ),
        ({"failed": {(m, "2", d): "x" for m in ("supervised", "pcl", "mona") for d in (0, 1)}},
         ["6 of 12 runs", "With 4 labelled cases mona leads"], []),
        ({"draws": 1, "budgets": {"1": 1}, "cases": 1, "classes": ("organ",)}, ["One draw", "1 labelled case"], []),
    ],
    ids=["draw", "budget", "control only", "no control", "no method", "no budget", "least"],
)  # fmt: skip
def test_what_is_missing_leaves_a_page_that_says_so(
    settings: dict, expected: list[str], absent: list[str], tmp_path: Path
) -> None:
    folder = make_study(
        tmp_path / "study",
        **{
            "methods": ("supervised", "pcl", "mona"),
            "draws": 2,
            "cases": 4,
            "budgets": {"2": 2, "4": 4},
            **settings,
        },
    )
    walk = read(write_study_report(folder))
    for text in expected:
        assert text in walk.text, text
    for text in absent:
        assert text not in walk.text.split("Other measures")[0].split("Mean Dice")[0], text
    assert "could not be shown" not in walk.text
    assert ("are not in the results" in walk.text) == bool(settings.get("failed"))


def test_an_unfinished_study_says_how_far_it_is_and_what_to_do(copy: Path) -> None:
    (copy / "scores.csv").unlink()
    (copy / "summary.csv").unlink()
    for number in range(4):
        run = copy / "runs" / "2" / f"draw{number}" / "pcl"
        run.mkdir(parents=True)
        (run / "recipe.yaml").touch()
        if number:
            (run / "weights.safetensors").touch()
            (run / "outcome.json").touch()
    before = sorted(copy.rglob("*"))
    with pytest.raises(UsageError, match=r"no scores\.csv, summary\.csv") as caught:
        write_study_report(copy)
    assert "3 of 18 runs are finished" in str(caught.value)
    assert "goes on where it stopped" in str(caught.value)
    assert sorted(copy.rglob("*")) == before


def test_runs_are_counted_by_the_draws_of_each_budget(copy: Path) -> None:
    (copy / "scores.csv").unlink()
    asked = read_yaml(copy / "study.yaml")
    write_yaml(copy / "study.yaml", {**asked, "draws": [3, 1]})
    (copy / "runs" / "2" / "draw0" / "pcl").mkdir(parents=True)
    (copy / "runs" / "2" / "draw0" / "pcl" / "recipe.yaml").touch()
    with pytest.raises(UsageError, match="0 of 12 runs are finished"):
        write_study_report(copy)


def test_a_study_without_a_single_result_says_why(tmp_path: Path) -> None:
    folder = make_study(
        tmp_path / "s",
        methods=("supervised",),
        budgets={"2": 2},
        draws=1,
        failed={("supervised", "2", 0): "no disk"},
    )
    with pytest.raises(UsageError, match=r"no finished run.*no disk"):
        write_study_report(folder)
    with pytest.raises(UsageError, match="not a study"):
        read_study(tmp_path)


def test_damaged_tables_are_refused_with_file_line_and_remedy(copy: Path) -> None:
    lines = rows(copy / "summary.csv")
    rewrite(
        copy / "summary.csv", [{k: v for k, v in line.items() if k not in ("dice", "rank")} for line in lines]
    )
    with pytest.raises(DataError, match=r"summary\.csv lacks the columns dice, rank"):
        read_study(copy)
    rewrite(copy / "summary.csv", lines)
    edit(copy / "summary.csv", {"method": "pcl", "budget": "2"}, dice="high")
    with pytest.raises(DataError, match=r"summary\.csv, line 3: 'high' is no number"):
        read_study(copy)


@pytest.mark.usefixtures("undrawn")
def test_damaged_companions_are_named_and_cost_only_their_part(copy: Path) -> None:
    for name in ("summary.json", "study.yaml", "audit.jsonl"):
        whole = (copy / name).read_bytes()
        (copy / name).write_bytes(b"{")
        walk = read(write_study_report(copy))
        assert name in walk.text.split("Missing from this page")[1].split("Label efficiency")[0]
        assert "leads at every budget" in walk.text
        (copy / name).write_bytes(whole)
    write_json(copy / "summary.json", dict.fromkeys(read_json(copy / "summary.json"), "x"))
    read(write_study_report(copy))


def test_names_cannot_become_markup_or_formulas(tmp_path: Path) -> None:
    evil, formula = "<script>x</script>", "a$\\frac{$|b"
    folder = make_study(
        tmp_path / "s", methods=("supervised", formula), classes=(evil, "$x"), budgets={"2": 2}, draws=2, cases=3,
        failed={(formula, "2", 1): evil},
    )  # fmt: skip
    walk = read(write_study_report(folder))
    assert "script" not in walk.tags
    assert walk.text.count(evil) >= 2
    table = [line for line in (folder / "report.md").read_text().splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {3}


def test_one_warning_tells_what_selection_would_have_faked(copy: Path) -> None:
    def told() -> list[str]:
        return [text for text in warnings(read_study(copy)) if "checkpoint" in text or "selection" in text]

    lines = rows(copy / "summary.csv")
    rewrite(copy / "summary.csv", [line | {"selection_gap": "0.001"} for line in lines])
    edit(copy / "summary.csv", {"method": "mona", "budget": "5%"}, selection_gap="0.061")
    (text,) = told()
    assert "0.011 Dice on average" in text
    assert "(0.061) for mona with 10 labelled cases (5%)" in text
    rewrite(copy / "summary.csv", [line | {"selection_gap": ""} for line in lines])
    assert told() == []


def test_methods_look_different_and_keep_their_look(tmp_path: Path) -> None:
    many = ("supervised", *(f"method{number:02d}" for number in range(18)))
    found = read_study(make_study(tmp_path / "s", methods=many, budgets={"2": 2, "4": 4}, draws=1, cases=2))
    drawn = study_figures.styles(found)
    looks = {(style.colour, style.marker, str(style.dash)) for style in drawn.values()}
    assert len(looks) == len(many)
    assert drawn["supervised"].colour == "#000000"
    assert drawn["supervised"].width > max(
        style.width for name, style in drawn.items() if name != "supervised"
    )
    few = read_study(make_study(tmp_path / "t", methods=many[:4], budgets={"2": 2}, draws=1, cases=2, seed=5))
    assert all(study_figures.styles(few)[name] == drawn[name] for name in many[:4]), (
        "whatever their ranks are"
    )


def test_names_beside_lines_are_moved_apart_and_no_further() -> None:
    apart = study_figures._apart
    assert apart([0.1, 0.5, 0.9], 0.2, 0.0, 1.0) == [0.1, 0.5, 0.9]
    rng = np.random.default_rng(1)
    for count in range(1, 9):
        wanted = np.sort(rng.random(count)) * 0.3 + 0.4
        places = apart(list(wanted), 0.1, 0.0, 1.0)
        gaps = np.diff(places)
        assert len(places) == count
        assert (gaps >= 0.1 - 1e-9).all()
        assert -1e-9 <= places[0] <= places[-1] <= 1 + 1e-9
        assert np.mean(places) == pytest.approx(wanted.mean(), abs=0.1 * count)


def test_drawings_follow_the_numbers(study: Path) -> None:
    found = read_study(study)
    axes = study_figures.efficiency(found).axes[0]
    lines = {line.get_color(): line for line in axes.lines}
    for method, style in study_figures.styles(found).items():
        dice = [float(r["dice"]) for r in rows(study / "summary.csv") if r["method"] == method]
        assert lines[style.colour].get_ydata() == pytest.approx(dice, rel=1e-5)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2", "10"]
    assert {text.get_text() for text in axes.texts} == {"labels only", "pcl", "mona"}

    panels = study_figures.forest(found).axes
    assert [axes.get_title(loc="left") for axes in panels] == ["2 labelled cases", "10 labelled cases (5%)"]
    marks = {
        float(line.get_xdata()[0]) for axes in panels for line in axes.lines if len(line.get_xdata()) == 1
    }
    assert sorted(marks) == pytest.approx(
        sorted(float(r["difference"]) for r in rows(study / "comparisons.csv")), rel=1e-5
    )
    assert len(study_figures.structures(found).axes) == 2
    dots = study_figures.cost(found).axes[0].lines
    assert sum(len(line.get_xdata()) for line in dots) == 8 + 3, "eight finished runs and three means"


@pytest.mark.usefixtures("undrawn")
def test_the_worst_case_is_drawn_from_files_at_hand(phantom_folder: Path, tmp_path: Path) -> None:
    data = open_dataset(phantom_folder)
    case = data.held_out[0]
    names = [name for value, name in data.label_names.items() if value]
    folder = make_study(
        tmp_path / "s", methods=("supervised", "mona"), budgets={"2": 2}, draws=1, cases=1, classes=names
    )
    (folder / "scores.csv").write_text((folder / "scores.csv").read_text().replace("case_000", case.name))
    assert pictures(read_study(folder)) == [], "without predictions there is nothing to draw"
    label = nibabel.load(case.label)
    for method, shift in (("supervised", 2), ("mona", 1)):
        run = folder / "runs" / "2" / "draw0" / method
        (run / "predictions").mkdir(parents=True)
        moved = nibabel.Nifti1Image(np.roll(np.asanyarray(label.dataobj), shift, axis=0), label.affine)
        nibabel.save(moved, run / "predictions" / f"{case.name}.nii.gz")
        write_plan(run / "plan.yaml", make_plan(make_fingerprint(data, data.labelled, data.labelled), data))
        write_json(run / "summary.json", {"made_from": {"references": str(tmp_path / "gone")}})
    (shown,) = pictures(read_study(folder))
    assert shown["row"] is None
    assert f"not at {tmp_path / 'gone'} any more" in shown["trouble"]
    write_json(
        run.with_name("supervised") / "summary.json", {"made_from": {"references": str(phantom_folder)}}
    )
    (shown,) = pictures(read_study(folder))
    assert shown["trouble"] == ""
    assert shown["case"] == case.name
    assert [panel.title for panel in shown["row"].panels] == [
        "Image", "labels only", "mona", "Reference", "labels only: errors", "mona: errors",
    ]  # fmt: skip
    assert len({panel.source for panel in shown["row"].panels}) == 6

    walk = read(write_study_report(folder))
    assert sum(name == "alt" and case.name in value for name, value in walk.attributes) == 6
    walk = read(write_study_report(folder, images=False))
    assert not [name for name, value in walk.attributes if name == "alt" and case.name in value]
    assert "Pictures of patients were left out." in walk.text


@pytest.mark.usefixtures("undrawn")
def test_the_command_knows_a_study_from_a_run(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(copy)]) == 0
    assert str(copy / "report.html") in capsys.readouterr().out
    assert "Study report" in read(copy / "report.html").text
    (copy / "runs.csv").unlink()
    assert main(["report", str(copy)]) == 2
    assert "not scored yet" in capsys.readouterr().err


def test_the_audit_log_is_cut_in_the_middle_but_not_where_test_labels_were_opened(copy: Path) -> None:
    events = [{"time": f"2026-01-01T00:00:{n:02d}", "event": f"run {n} finished"} for n in range(40)]
    events[20]["event"] = "test labels opened"
    (copy / "audit.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    lines = [text for _, text in page_of_study._log(read_study(copy))]
    assert lines[0] == "run 0 finished"
    assert lines[-1] == "run 39 finished"
    assert "test labels opened" in lines
    assert lines.count("…") == 2
    assert len(lines) == 3 + 3 + 1 + 2


@pytest.mark.browser
def test_a_browser_opens_the_page_without_an_error_or_a_request(page: Path, tmp_path: Path) -> None:
    shot, log = tmp_path / "page.png", tmp_path / "net.json"
    done = visit(
        page, tmp_path, "--window-size=1200,5000", f"--screenshot={shot}", f"--log-net-log={log}",
        "--virtual-time-budget=2000",
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr
    assert shot.stat().st_size > 100_000
    assert requests_of(page, log) == []
