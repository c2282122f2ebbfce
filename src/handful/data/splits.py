"""Who trains and who tests: a fixed test set and nested draws of few labels, never cutting a patient.

Everything is decided by hashing patient names with the seed, not by a random stream: the same on every machine,
whatever the order of files, and patients added later do not reorder those that were there.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Literal, NamedTuple

from handful.artefacts import hash_of, read_json, write_json
from handful.data.cases import Case, Dataset
from handful.errors import DataError, UsageError, nearest

FORMAT = "handful splits 1"
FOLDS = 5
FEWEST_CASES = 5  # with one to four labels a validation Dice is one or two cases' luck
FEWEST_PATIENTS = 3


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How many labels a run may use.

    Attributes:
        kind: ``cases``, ``patients``, ``percent`` (of the pool's labelled cases) or ``listed``.
        number: how many; 0 if listed.
        names: case or patient names, if listed.
        spec: as the user wrote it.
    """

    kind: Literal["cases", "patients", "percent", "listed"]
    number: Fraction
    names: tuple[str, ...] = ()
    spec: str

    def __str__(self) -> str:
        """Return what the user wrote."""
        return self.spec


class Selection(NamedTuple):
    """The cases of one run.

    Attributes:
        labelled: may be learned from with their labels; patients in the order of the draw.
        unlabelled: every other training case, their labels taken away (``label`` is None), so that none can leak.
        test: labelled cases of other patients, for measuring only.
        note: what the user should know, "" if the budget was met exactly.
    """

    labelled: tuple[Case, ...]
    unlabelled: tuple[Case, ...]
    test: tuple[Case, ...]
    note: str


class Fold(NamedTuple):
    """One way to set labelled cases aside for validation."""

    train: tuple[Case, ...]
    validation: tuple[Case, ...]


@dataclass(frozen=True, kw_only=True)
class Splits:
    """A test set, and orders in which the labelled patients of the rest are taken.

    Attributes:
        dataset: the cases.
        seed: what everything was drawn with.
        test_spec: what the user asked to hold out beyond the data set's own test cases, or None.
        test: names of the labelled test cases.
        left_out: names of unlabelled cases of test patients: they neither train nor test.
        draws: for each draw, every labelled patient of the pool in the order they join a budget.
    """

    dataset: Dataset
    seed: int
    test_spec: str | None
    test: tuple[str, ...]
    left_out: tuple[str, ...]
    draws: tuple[tuple[str, ...], ...]

    @property
    def pool(self) -> tuple[Case, ...]:
        """Every case that may train."""
        aside = {*self.test, *self.left_out}
        return tuple(case for case in self.dataset.cases if case.name not in aside)

    def select(self, budget: Budget | str, draw: int = 0) -> Selection:
        """Return the cases of a run.

        Whole patients join in the order of the draw while the number of labelled cases stays within the budget, one at
        least: so the cases of a smaller budget are in every larger one. A percentage is of the pool's labelled cases,
        rounded down, at least one case. Listed names are taken as they are, whatever the draw; a patient's name means
        all its labelled cases.

        Raises:
            UsageError: more than there is, a name that is not in the pool, a draw that was not made.
        """
        if isinstance(budget, str):
            budget = parse_budget(budget)
        if not 0 <= draw < len(self.draws):
            raise UsageError(f"draw {draw} does not exist: there are draws 0 to {len(self.draws) - 1}.")
        pool = self.pool
        labelled = [case for case in pool if case.label is not None]
        if budget.kind == "listed":
            chosen, note = _listed(budget, self.dataset, labelled, set(self.test))
        else:
            of_patient = _by_patient(labelled)
            patients, note = _take(
                budget,
                self.draws[draw],
                of_patient,
                what="labels",
                more=f" ({len(self.test)} are kept for test)",
            )
            chosen = [case for patient in patients for case in of_patient[patient]]
        names = {case.name for case in chosen}
        return Selection(
            labelled=tuple(chosen),
            unlabelled=tuple(replace(case, label=None) for case in pool if case.name not in names),
            test=tuple(case for case in self.dataset.cases if case.name in set(self.test)),
            note=note,
        )


def parse_budget(spec: str) -> Budget:
    """Read ``10`` (cases), ``10p`` (patients), ``5%`` (of the labelled cases) or ``@file`` (a case or patient a line).

    In a file, empty lines and what follows ``#`` do not count.

    Raises:
        UsageError: anything else, nothing at all, or a file that cannot be read.
    """
    text = str(spec).strip()
    if text.startswith("@"):
        path = Path(text[1:])
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"{text}: {path} cannot be read ({error}). Write one case or patient a line."
            ) from None
        names = tuple(dict.fromkeys(name for line in lines if (name := line.partition("#")[0].strip())))
        if not names:
            raise UsageError(f"{text}: {path} names nothing. Write one case or patient a line.")
        return Budget(kind="listed", number=Fraction(0), names=names, spec=text)
    kinds: dict[str, Literal["cases", "patients", "percent"]] = {"p": "patients", "%": "percent"}
    kind = kinds.get(text[-1:], "cases")
    digits = text if kind == "cases" else text[:-1].strip()
    try:
        number = Fraction(digits) if "/" not in digits else None
    except ValueError:
        number = None
    if number is None or (kind != "percent" and number.denominator != 1):
        raise UsageError(f"'{spec}' is no number of labels: write 10 (cases), 10p (patients), 5% or @file.")
    if number <= 0 or (kind == "percent" and number > 100):
        raise UsageError(f"'{spec}' is impossible: at least one label, at most 100%.")
    return Budget(kind=kind, number=number, spec=text)


def make_splits(dataset: Dataset, *, test: str | None = None, seed: int = 0, draws: int = 1) -> Splits:
    """Fix the test set and draw orders of the labelled patients left.

    Cases the data set itself holds out are always test. ``test`` asks for more, from the labelled cases that are left:
    ``40`` cases, ``20p`` patients, ``20%`` of the cases, or ``@file``; whole patients only, by the rule of
    ``Splits.select`` (a case named in a file brings its patient along).
    Unlabelled images of a test patient do not train.

    Raises:
        UsageError: an impossible number, or nothing would be left to train on.
    """
    if seed < 0 or draws < 1:
        raise UsageError(
            f"seed {seed}, draws {draws}: the seed is at least 0, and there is at least one draw."
        )
    candidates = _by_patient(dataset.labelled)
    test_patients = {case.patient for case in dataset.held_out}
    if test is not None:
        budget = parse_budget(test)
        if budget.kind == "listed":
            chosen, _ = _listed(budget, dataset, dataset.labelled, set())
            more = {case.patient for case in chosen}
        else:
            order = _shuffled(candidates, seed, "test")
            more = set(_take(budget, order, candidates, what="test cases", more="")[0])
        if more >= set(candidates):
            raise UsageError(
                f"--test {test} takes all {len(dataset.labelled)} labelled cases; leave a patient to train on."
            )
        test_patients |= more
    aside = [case for case in dataset.cases if case.held_out or case.patient in test_patients]
    rest = [patient for patient in candidates if patient not in test_patients]
    return Splits(
        dataset=dataset,
        seed=seed,
        test_spec=test,
        test=tuple(case.name for case in aside if case.label is not None),
        left_out=tuple(case.name for case in aside if case.label is None),
        draws=tuple(tuple(_shuffled(rest, seed, f"draw {draw}")) for draw in range(draws)),
    )


def validation_rule(n_cases: int, n_patients: int | None = None) -> int:
    """Return into how many folds labelled cases are divided for validation; 0 means none.

    With one to four labelled cases (or one or two patients) all of them train and the last averaged weights are taken:
    a validation score of one case would only pretend to know which weights are best.

    Args:
        n_cases: labelled cases of the budget.
        n_patients: their patients; as many as cases if not given.
    """
    n_patients = n_cases if n_patients is None else n_patients
    return 0 if n_cases < FEWEST_CASES or n_patients < FEWEST_PATIENTS else min(FOLDS, n_patients)


def folds(selection: Selection, k: int) -> tuple[Fold, ...]:
    """Divide the labelled cases into ``k`` folds by patient; every case validates exactly once.

    Patients go, in the order of the draw, to the fold that has fewest cases so far.

    Raises:
        UsageError: ``k`` is not between 2 and the number of labelled patients.
    """
    patients = _by_patient(selection.labelled)
    if not 2 <= k <= len(patients):
        raise UsageError(
            f"{k} folds of {len(patients)} labelled patients cannot be made; 2 to {len(patients)} can."
        )
    parts: list[list[Case]] = [[] for _ in range(k)]
    for cases in patients.values():
        min(parts, key=len).extend(cases)
    return tuple(
        Fold(tuple(c for other in parts if other is not part for c in other), tuple(part)) for part in parts
    )


def write_splits(path: Path, splits: Splits) -> None:
    """Write ``splits.json``, meant to be read by people and committed.

    Keys: ``format``, ``dataset`` (name), ``dataset_hash`` (of case names, patients and which are labelled or held out),
    ``seed``, ``test_spec``, ``test`` and ``left_out`` (case names), ``draws`` (lists of patient names in the order they
    join a budget), ``cases`` (patient -> its labelled training cases, for the reader).
    """
    labelled = _by_patient(case for case in splits.pool if case.label is not None)
    content = {
        "format": FORMAT,
        "dataset": splits.dataset.name,
        "dataset_hash": roster_hash(splits.dataset),
        "seed": splits.seed,
        "test_spec": splits.test_spec,
        "test": splits.test,
        "left_out": splits.left_out,
        "draws": splits.draws,
        "cases": {patient: [case.name for case in cases] for patient, cases in labelled.items()},
    }
    write_json(path, content)


def read_splits(path: Path, dataset: Dataset) -> Splits:
    """Read ``splits.json`` back for the same data set; test set and draws may have been edited by hand.

    Raises:
        DataError: not such a file, made for other cases, or edited so that a patient is cut or unknown.
    """
    content = read_json(path)
    if isinstance(content, list):
        raise DataError(
            f"{path} is a list of folds as nnU-Net's splits_final.json, not splits.json; "
            "read it with read_nnunet_folds, or write the test cases into a file and use --test @file."
        )
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(
            f"{path} is no splits.json ('format' is not '{FORMAT}'). Delete it to have it made anew."
        )
    here, there = roster_hash(dataset), content.get("dataset_hash")
    if here != there:
        raise DataError(
            f"{path} was made for the data set '{content.get('dataset')}' ({there}), but this is '{dataset.name}' "
            f"({here}): cases, patients, or which of them are labelled differ. Delete the file to have it made anew, "
            "or keep its test set: write the test cases into a file and use --test @file."
        )
    try:
        splits = Splits(
            dataset=dataset,
            seed=int(content["seed"]),
            test_spec=content["test_spec"],
            test=tuple(content["test"]),
            left_out=tuple(content["left_out"]),
            draws=tuple(tuple(draw) for draw in content["draws"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} cannot be read at {error}. Delete it to have it made anew.") from None
    if problem := _broken(splits):
        raise DataError(f"{path}: {problem} Undo the edit, or delete the file to have it made anew.")
    return splits


def read_nnunet_folds(path: Path, dataset: Dataset) -> tuple[Fold, ...]:
    """Read nnU-Net's ``splits_final.json``, a list of {"train": [...], "val": [...]} of case names.

    Raises:
        DataError: another form, unknown or unlabelled cases, a case or patient on both sides of a fold.
    """
    content = read_json(path)
    form = 'a list of {"train": [...], "val": [...]}'
    if not isinstance(content, list) or not content:
        raise DataError(f"{path} is not {form}.")
    result = []
    for number, item in enumerate(content):
        if not isinstance(item, dict) or not all(isinstance(item.get(key), list) for key in ("train", "val")):
            raise DataError(f"{path}, fold {number}: expected {form}.")
        train, validation = (tuple(dataset.case(str(name)) for name in item[key]) for key in ("train", "val"))
        if unlabelled := [case.name for case in (*train, *validation) if case.label is None]:
            raise DataError(f"{path}, fold {number}: {unlabelled[0]} has no label; take it out of the fold.")
        if both := sorted({case.patient for case in train} & {case.patient for case in validation}):
            raise DataError(
                f"{path}, fold {number}: patient {both[0]} is in train and in val; keep patients whole."
            )
        result.append(Fold(train, validation))
    return tuple(result)


def roster_hash(dataset: Dataset) -> str:
    """Return 16 hexadecimal digits for what a split depends on: names, patients, who is labelled and held out."""
    return hash_of(
        [[c.name, c.patient, c.label is not None, c.held_out] for c in sorted(dataset.cases, key=_name)]
    )


def _take(
    budget: Budget, order: Sequence[str], of_patient: dict[str, list[Case]], *, what: str, more: str
) -> tuple[list[str], str]:
    """Take whole patients in order up to the budget, at least one; say if that is not what was asked for."""
    n_cases = sum(len(of_patient[patient]) for patient in order)
    exist = f"there are {n_cases} labelled cases of {len(order)} patients{more}"
    if budget.kind == "patients":
        if budget.number > len(order):
            raise UsageError(f"{budget} asks for {budget.number} patients, but {exist}.")
        return list(order[: int(budget.number)]), ""
    if not order and budget.kind == "percent" and budget.number == 100:
        return [], ""  # all of none: enough to pre-train
    if not order or (budget.kind == "cases" and budget.number > n_cases):
        raise UsageError(f"{budget} asks for more {what} than exist: {exist}.")
    limit = int(budget.number)
    if budget.kind == "percent":
        limit = max(1, math.floor(n_cases * budget.number / 100))
    taken: list[str] = []
    count = 0
    for patient in order:
        if taken and count + len(of_patient[patient]) > limit:
            break
        taken.append(patient)
        count += len(of_patient[patient])
        if count >= limit:
            break
    asked = f"{limit}" if budget.kind == "cases" else f"{budget} of {n_cases}, that is {limit}"
    note = f"{asked} asked for, {count} used: patients are kept whole." if count != limit else ""
    return taken, note


def _listed(
    budget: Budget, dataset: Dataset, labelled: Sequence[Case], test: set[str]
) -> tuple[list[Case], str]:
    by_name = {case.name: case for case in labelled}
    by_patient = _by_patient(labelled)
    chosen: dict[str, Case] = {}
    for name in budget.names:
        cases = [by_name[name]] if name in by_name else by_patient.get(name, [])
        if not cases:
            there = [case for case in dataset.cases if name in (case.name, case.patient)]
            if any(case.held_out or case.name in test for case in there):
                raise UsageError(f"{budget}: '{name}' is a test case; its label cannot be used.")
            if there:
                raise UsageError(f"{budget}: '{name}' has no label.")
            known = [*by_name, *by_patient]
            hint = (
                nearest(name, known)
                if len(known) <= 20
                else nearest(name, known).partition("Known")[0].strip()
            )
            raise UsageError(f"{budget}: there is no labelled case or patient '{name}'. {hint}".strip())
        chosen.update((case.name, case) for case in cases)
    return list(chosen.values()), f"the {len(chosen)} cases of {budget.spec[1:]} are used whatever the draw."


def _broken(splits: Splits) -> str:
    """Say what an edited file got wrong; "" if nothing."""
    cases = {case.name: case for case in splits.dataset.cases}
    for name in (*splits.test, *splits.left_out):
        if name not in cases:
            return f"there is no case '{name}'."
    if unlabelled := [name for name in splits.test if cases[name].label is None]:
        return f"the test case '{unlabelled[0]}' has no label."
    aside = {cases[name].patient for name in (*splits.test, *splits.left_out)}
    pool = splits.pool
    for case in pool:
        if case.held_out or case.patient in aside:
            return f"case '{case.name}' trains, though its patient {case.patient} tests."
    patients = {case.patient for case in pool if case.label is not None}
    for number, draw in enumerate(splits.draws):
        if set(draw) != patients or len(draw) != len(patients):
            return f"draw {number} does not name each of the {len(patients)} labelled training patients once."
    return "" if splits.draws else "there is no draw."


def _shuffled(patients: Iterable[str], seed: int, purpose: str) -> list[str]:
    return sorted(patients, key=lambda p: (hashlib.sha256(f"{seed}/{purpose}/{p}".encode()).digest(), p))


def _by_patient(cases: Iterable[Case]) -> dict[str, list[Case]]:
    """Group by patient, patients in order of appearance, cases by name."""
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        groups[case.patient].append(case)
    return {patient: sorted(group, key=_name) for patient, group in groups.items()}


def _name(case: Case) -> str:
    return case.name
