"""What a study's runs share: the plan of their budget and draw, and pre-training where it would be the same."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from handful.artefacts import write_json
from handful.data.discover import open_dataset
from handful.data.plan import Normalisation, Plan, read_plan
from handful.data.splits import make_splits
from handful.errors import DataError, UsageError
from handful.studies.arms import Lengths, check_assignments, parse_arms, recipe_of
from handful.studies.blind import Blind, write_blind
from handful.studies.folder import OUTCOME, StudyFolder
from handful.studies.grid import Asked, Unit, draws_of, make_units
from handful.studies.leakage import refuse_copies, refuse_shared_patients, said_of_copies
from handful.studies.overlap import overlaps
from handful.studies.pace import Pace, Watcher
from handful.studies.plans import IMAGES, make_plans, same_start
from handful.studies.schedule import make_tasks
from handful.studies.tasks import Task
from handful.training.decisions import decide_plan

ASKED = Asked(
    methods=("supervised", "pcl", "supervised_pretrain", "pcl+mean_teacher"),
    labels=("1", "2"), draws=(2, 2), test=None, lengths=Lengths(steps=5, pretrain_steps=7), seed=3,
    settings=("loop.rows=4", "pcl:loop.lr=0.5"), snapshots=2, patients=None, precision="32-true",
)  # fmt: skip


@pytest.fixture(scope="module")
def blind(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Blind:
    splits = make_splits(open_dataset(phantom_folder), seed=3, draws=2)
    return write_blind(tmp_path_factory.mktemp("blind"), splits)


@pytest.fixture(scope="module")
def units(phantom_folder: Path) -> tuple[Unit, ...]:
    return make_units(ASKED, make_splits(open_dataset(phantom_folder), seed=3, draws=2))


@pytest.fixture(scope="module")
def made(
    blind: Blind, units: tuple[Unit, ...], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Plan]]:
    folder = tmp_path_factory.mktemp("plans")
    return folder, make_plans(
        folder, units, blind, device="cpu", lengths=ASKED.lengths, settings=ASKED.settings
    )


def test_each_budget_has_its_own_number_of_draws(phantom_folder: Path) -> None:
    asked = replace(ASKED, draws=draws_of("3,1", ASKED.labels))
    units = make_units(asked, make_splits(open_dataset(phantom_folder), seed=3, draws=3))
    cells = list(dict.fromkeys((unit.budget, unit.draw) for unit in units))
    assert cells == [("1", 0), ("1", 1), ("1", 2), ("2", 0)]
    assert len(units) == len(cells) * len(asked.methods)
    assert asked.as_dict()["draws"] == [3, 1]
    assert draws_of(asked.draws_asked, asked.labels) == asked.draws


@pytest.mark.parametrize("draws", [2, "2", [2], "2,2", (2, 2)], ids=str)
def test_one_number_of_draws_is_that_of_every_budget(draws: int | str | list[int]) -> None:
    assert draws_of(draws, ASKED.labels) == ASKED.draws
    assert ASKED.as_dict()["draws"] == 2
    assert ASKED.draws_asked == "2"


def tasks_of(folder: Path, units: tuple[Unit, ...], blind: Blind, plans: dict[str, Plan]) -> dict[str, Task]:
    study = StudyFolder(folder)
    made = make_tasks(study, ASKED, units, blind, plans, plan=None, precision="auto")
    return {str(task.out.relative_to(folder)): task for task in made}


def test_each_budget_and_draw_has_the_plan_its_own_run_would_make(
    made: tuple[Path, dict[str, Plan]], blind: Blind
) -> None:
    folder, plans = made
    assert set(plans) == {"1-draw0", "1-draw1", "2-draw0", "2-draw1", IMAGES}
    alone = decide_plan(blind.dataset, blind.parts.select("2", 1), device="cpu")
    assert plans["2-draw1"] == alone == read_plan(folder / "2-draw1" / "plan.yaml")
    assert (folder / "2-draw1" / "fingerprint.json").is_file()


def test_runs_wait_for_their_pre_training_and_share_it(
    tmp_path: Path, units: tuple[Unit, ...], blind: Blind, made: tuple[Path, dict[str, Plan]]
) -> None:
    tasks = tasks_of(tmp_path, units, blind, made[1])
    pretrained = [name for name, task in tasks.items() if task.kind == "pretrain"]
    assert sorted(pretrained) == ["pretrained/pcl/images"] + [
        f"pretrained/supervised_pretrain/{cell}" for cell in ("1-draw0", "1-draw1", "2-draw0", "2-draw1")
    ]
    order = list(tasks)
    for name, task in tasks.items():
        if task.init is not None:
            assert order.index(str(task.init.relative_to(tmp_path))) < order.index(name)
    both = [tasks[f"runs/2/draw1/{name}"] for name in ("pcl", "pcl+mean_teacher")]
    assert both[0].init == both[1].init == tmp_path / "pretrained/pcl/images"
    assert [task.method for task in both] == ["supervised", "mean_teacher"]
    assert (
        tasks["runs/2/draw1/supervised_pretrain"].init == tmp_path / "pretrained/supervised_pretrain/2-draw1"
    )
    assert tasks["runs/2/draw1/supervised"].init is None


def test_tasks_say_how_long_with_which_seed_and_settings(
    tmp_path: Path, units: tuple[Unit, ...], blind: Blind, made: tuple[Path, dict[str, Plan]]
) -> None:
    tasks = tasks_of(tmp_path, units, blind, made[1])
    images, run = tasks["pretrained/pcl/images"], tasks["runs/2/draw1/pcl"]
    of_labels = tasks["pretrained/supervised_pretrain/2-draw1"]
    assert (images.steps, run.steps, of_labels.steps) == (7, 5, 7)
    assert (images.seed, run.seed, of_labels.seed) == (3, 4, 4)  # draw 1 has its own weights, in every arm
    assert (images.labels, run.labels, of_labels.labels) == (None, "2", "2")
    assert images.settings == ("loop.rows=4", "loop.lr=0.5")
    assert run.settings == ("loop.rows=4",)  # it trains with 'supervised'; pcl was before
    assert (images.snapshots, run.snapshots) == (0, 2)
    assert run.begun == tmp_path / "plans" / "2-draw1"
    assert images.begun == tmp_path / "plans" / IMAGES


def test_a_budget_with_other_images_is_pre_trained_for_itself(
    tmp_path: Path, units: tuple[Unit, ...], blind: Blind, made: tuple[Path, dict[str, Plan]]
) -> None:
    """As in CT, where the window is chosen from what is labelled."""
    window = Normalisation(kind="window", low=-100, high=300, centre=40, spread=80)
    plans = {**made[1], "1-draw0": replace(made[1]["1-draw0"], channels=(window,))}
    tasks = tasks_of(tmp_path, units, blind, plans)
    assert tasks["runs/1/draw0/pcl"].init == tmp_path / "pretrained/pcl/1-draw0"
    assert tasks["runs/1/draw1/pcl"].init == tmp_path / "pretrained/pcl/images"
    own = tasks["pretrained/pcl/1-draw0"]
    assert (own.labels, own.plan, own.begun) == (None, tmp_path / "plans/1-draw0/plan.yaml", None)


def test_what_is_finished_is_no_task(
    tmp_path: Path, units: tuple[Unit, ...], blind: Blind, made: tuple[Path, dict[str, Plan]]
) -> None:
    done = ["pretrained/pcl/images", "runs/1/draw0/supervised"]
    for name in done:
        write_json(tmp_path / name / OUTCOME, {"status": "finished"})
    write_json(tmp_path / "runs/1/draw1/supervised" / OUTCOME, {"status": "failed", "reason": "x"})
    tasks = tasks_of(tmp_path, units, blind, made[1])
    assert not set(done) & set(tasks)
    assert "runs/1/draw1/supervised" in tasks
    assert len(tasks) == len(units) - 1 + 4


def test_equal_images_and_network_are_an_equal_start(made: tuple[Path, dict[str, Plan]]) -> None:
    plan = made[1]["1-draw0"]
    assert same_start(plan, replace(plan, patch=(8, 8, 8), batch=7, one_piece=()))
    for changes in (
        {"spacing_mm": (1.0, 1.0, 1.0)},
        {"axes": (0, 1, 2)},
        {"channels": (Normalisation(kind="window", high=1.0),)},
        {"network": replace(plan.network, blocks=plan.network.blocks + 1)},
    ):
        assert not same_start(plan, replace(plan, **changes))


def test_arms_are_read_and_the_control_comes_first() -> None:
    arms = parse_arms(["pcl+supervised", "mona", "pcl", "mona_pretrain+mona"])
    assert [(arm.name, arm.pretrain, arm.train) for arm in arms] == [
        ("supervised", None, "supervised"),
        ("pcl", "pcl", "supervised"),
        ("mona", None, "mona"),
        ("mona_pretrain+mona", "mona_pretrain", "mona"),
    ]


def test_a_setting_of_one_method_reaches_no_other() -> None:
    given = ["loop.lr=0.1", "mae: loop.rows=3", "pcl:method.x=a:b"]
    pcl, mae = parse_arms(["pcl", "mae"])[1:]
    assert pcl.settings("pretrain", given) == ("loop.lr=0.1", "method.x=a:b")
    assert [text.strip() for text in mae.settings("pretrain", given)] == ["loop.lr=0.1", "loop.rows=3"]
    assert pcl.settings("train", given) == ("loop.lr=0.1",)


def test_a_named_arm_is_its_method_with_settings_of_its_own() -> None:
    names = ["pcl", "near=pcl", "long = supervised", "both=pcl+mona"]
    given = ["pcl:loop.lr=0.1", "near:method.threshold=0.01", "long:loop.steps=9", "both:loop.rows=2"]
    control, pcl, near, long, both = arms = parse_arms(names)
    check_assignments(arms, given)
    assert near.settings("pretrain", given) == ("loop.lr=0.1", "method.threshold=0.01")
    assert both.settings("pretrain", given) == ("loop.lr=0.1", "loop.rows=2")
    for arm in (control, pcl, near, both):
        assert arm.settings("train", given) == ()
    assert pcl.settings("pretrain", given) == ("loop.lr=0.1",)
    assert long.settings("train", given) == ("loop.steps=9",)
    assert recipe_of(long, "train", Lengths(steps=5), given).loop.steps == 9
    assert [arm.start for arm in arms] == [None, "pcl", "near", None, "both"], "its start is its own"
    assert parse_arms([arm.spec for arm in arms]) == arms
    assert parse_arms(names)[0].spec == "supervised"


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["mae=pcl"], "a method itself"),
        (["a/b=pcl"], "becomes a folder"),
        (["near=pcl", "near=mae"], "another method of this study"),
        (["near=plc"], "did you mean 'pcl'"),
    ],
)
def test_a_name_that_is_taken_or_no_folder_is_refused(names: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_arms(names)


def test_a_setting_for_nobody_is_refused() -> None:
    with pytest.raises(UsageError, match="did you mean 'near'"):
        check_assignments(parse_arms(["near=pcl"]), ["naer:loop.lr=1"])


def test_an_arm_whose_recipe_asks_for_another_plan_makes_its_own(
    tmp_path: Path, phantom_folder: Path, blind: Blind, made: tuple[Path, dict[str, Plan]]
) -> None:
    asked = replace(ASKED, methods=("supervised", "wide=supervised"), settings=("wide:plan.width=8",))
    units = make_units(asked, make_splits(open_dataset(phantom_folder), seed=3, draws=2))
    made_ = make_tasks(StudyFolder(tmp_path), asked, units, blind, made[1], plan=None, precision="auto")
    begun = {task.out.name: task.begun for task in made_}
    assert begun["wide"] is None
    assert begun["supervised"] is not None


def test_a_patient_on_both_sides_is_named(phantom_folder: Path) -> None:
    splits = make_splits(open_dataset(phantom_folder))
    test, train = splits.test[0], splits.pool[0]
    cases = [
        replace(case, patient=splits.dataset.case(test).patient) if case.name == train.name else case
        for case in splits.dataset.cases
    ]
    broken = replace(splits, dataset=replace(splits.dataset, cases=tuple(cases)))
    with pytest.raises(DataError, match=f"{train.name} trains and {test} is tested"):
        refuse_shared_patients(broken)


def test_draws_that_label_the_same_cases_are_named(phantom_folder: Path) -> None:
    splits = make_splits(open_dataset(phantom_folder), seed=3, draws=3)
    pool = sum(case.label is not None for case in splits.pool)
    assert pool == 4

    def said(labels: tuple[str, ...], draws: tuple[int, ...]) -> list[str]:
        return overlaps(make_units(replace(ASKED, labels=labels, draws=draws), splits), splits)

    assert said(("1",), (1,)) == []
    (text,) = said(("1", "100%"), (1, 2))
    assert text.startswith("--labels 100%: draws 0 and 1 label the same cases; they differ by their seeds")
    chosen = {draw: {case.name for case in splits.select("3", draw).labelled} for draw in range(3)}
    same = [(a, b) for a, b in ((0, 1), (0, 2), (1, 2)) if chosen[a] == chosen[b]]
    (text,) = said(("3",), (3,))
    assert ("label the same cases" in text) == bool(same)
    assert ("3 of the 4 labelled cases that may train" in text) == (not same)


def test_copies_on_one_side_are_named_and_no_error(phantom_folder: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(phantom_folder, tmp_path / phantom_folder.name))
    splits = make_splits(open_dataset(data), seed=3)
    assert refuse_copies(splits)[1:] == ((), ())
    test, pool = list(splits.test[:2]), [case.name for case in splits.pool[:2]]
    for one, other in (test, pool):
        shutil.copy(splits.dataset.case(one).images[0], splits.dataset.case(other).images[0])
    found = refuse_copies(splits)
    assert found == (len(splits.pool) + len(splits.test), (tuple(pool),), (tuple(test),))
    first, second = said_of_copies(found._asdict())
    assert "among the cases that may train: fewer different cases" in first
    assert f"({' = '.join(pool)})" in first
    assert "intervals are narrower" in second
    assert said_of_copies({"compared": 9}) == [], "a study of an older version did not look"


def test_what_earlier_commands_did_is_not_counted_as_this_one_s_speed(
    tmp_path: Path, units: tuple[Unit, ...], blind: Blind, made: tuple[Path, dict[str, Plan]]
) -> None:
    first, second = [
        task for task in tasks_of(tmp_path, units, blind, made[1]).values() if task.kind == "train"
    ][:2]
    now = 0.0
    pace = Pace(total=2, clock=lambda: now)
    pace.plan([first, second])
    watcher = Watcher(pace, started=lambda t: None, ended=lambda t, o: None, report=lambda p: None)
    watcher.started(first)
    watcher.at(first, 0.9)  # its checkpoint was there
    assert pace.fraction == 0
    assert pace.seconds_left is None
    now = 15.0
    watcher.at(first, 0.95)
    assert pace.fraction == pytest.approx(0.05 / 1.1)
    assert pace.seconds_left == pytest.approx(300 * 1.05)
    now = 30.0
    watcher.ended(first, {"status": "finished"})
    watcher.started(second)
    watcher.at(second, 0.0)
    assert pace.fraction == pytest.approx(0.1 / 1.1)
    assert pace.seconds_left == pytest.approx(300)
    watcher.at(second, 1.0)
    watcher.ended(second, {"status": "finished"})
    assert pace.fraction == pytest.approx(1)


def test_time_left_knows_that_a_step_of_one_method_takes_longer_than_of_another(tmp_path: Path) -> None:
    def task(method: str, number: int) -> Task:
        return Task(
            kind="train", out=tmp_path / f"{method}{number}", words=method, data=tmp_path, splits=tmp_path,
            method=method, labels="1", draw=number, seed=0, steps=100, max_time=None, settings=(),
        )  # fmt: skip

    now = 0.0
    quick, slow = [task("quick", n) for n in range(3)], [task("slow", n) for n in range(3)]
    pace = Pace(total=6, clock=lambda: now)
    pace.plan([*quick, *slow])
    pace.begin(quick[0])
    now = 10.0
    pace.end(quick[0], finished=True)
    assert pace.seconds_left == pytest.approx(20 + 30), "what was not met yet counts as what was"
    pace.begin(slow[0])
    now = 25.0
    pace.at(slow[0], 0.0)
    pace.at(slow[0], 0.5)
    now = 60.0
    pace.at(slow[0], 1.0)
    pace.end(slow[0], finished=True)
    assert pace.seconds_left == pytest.approx(2 * 10 + 2 * 50)
    pace.begin(quick[1])
    pace.begin(slow[1])
    assert pace.seconds_left == pytest.approx(2 * 10 + 2 * 50), "queued, not begun"
    pace.at(quick[1], 0.0)
    pace.at(slow[1], 0.0)
    assert pace.seconds_left == pytest.approx((2 * 10 + 2 * 50) / 2), "two at once"
    pace.end(quick[1], finished=False)
    assert (pace.finished, pace.failed) == (2, 1)
    assert pace.seconds_left == pytest.approx((10 + 2 * 50) / 2), (
        "one that failed tells nothing, nor its going"
    )
