"""What a study is asked, and the runs that answers it: every method at every budget for every draw of labels."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from handful.data.splits import Splits, parse_budget
from handful.errors import UsageError
from handful.studies.arms import Arm, Lengths, check_assignments, parse_arms, recipe_of


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The question of a study; two studies are the same if these are equal.

    Attributes:
        methods: the arms as ``--methods`` takes them, the control first.
        labels: budgets as the user wrote them.
        draws: how many draws of labels each budget has, in the order of ``labels``.
        test: cases held out besides those the data set holds out itself.
        lengths: of the runs and of the pre-trainings.
        seed: of the split; run ``draw`` has seed + draw.
        settings: as given with ``--set``.
        snapshots: weights kept on the way of each run, to say what choosing among them would have faked.
        patients: regular expression that finds the patient in a case's name.
        precision: as Lightning calls it.
    """

    methods: tuple[str, ...]
    labels: tuple[str, ...]
    draws: tuple[int, ...]
    test: str | None
    lengths: Lengths
    seed: int
    settings: tuple[str, ...]
    snapshots: int
    patients: str | None
    precision: str

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The methods, read."""
        return parse_arms(self.methods)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, as written to ``study.yaml``."""
        values = asdict(self)
        lengths = values.pop("lengths")
        return {**values, "draws": self.draws[0] if self.even else list(self.draws), **lengths}

    @property
    def even(self) -> bool:
        """Whether all budgets have as many draws."""
        return len({*self.draws}) == 1

    @property
    def draws_asked(self) -> str:
        """The draws as ``--draws`` takes them: ``3``, or ``5,3,3`` where budgets differ."""
        return str(self.draws[0]) if self.even else ",".join(map(str, self.draws))


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One run of a study.

    Attributes:
        arm: what trains.
        budget: as the user wrote it.
        draw: which draw of it.
        n_labelled: labelled cases it trains on.
    """

    arm: Arm
    budget: str
    draw: int
    n_labelled: int

    @property
    def cell(self) -> str:
        """Name of its budget and draw, which all arms share."""
        return f"{folder_name(self.budget)}-draw{self.draw}"

    @property
    def place(self) -> Path:
        """Its folder inside the study's."""
        return Path("runs") / folder_name(self.budget) / f"draw{self.draw}" / self.arm.name


def make_units(asked: Asked, splits: Splits) -> tuple[Unit, ...]:
    """Return every run of the study: budget by budget, draw by draw, the control first.

    Raises:
        UsageError: a budget that the data cannot give, or two that would be one folder.
    """
    units = []
    for budget, wanted in zip(asked.labels, asked.draws, strict=True):
        # a list of names is the same cases whatever the draw
        draws = 1 if parse_budget(budget).kind == "listed" else wanted
        for draw in range(draws):
            count = len(splits.select(budget, draw).labelled)
            units += [Unit(arm=arm, budget=budget, draw=draw, n_labelled=count) for arm in asked.arms]
    return tuple(units)


def check(asked: Asked) -> None:
    """Refuse what could never run, before anything is read or written.

    Raises:
        UsageError: unknown methods or settings, nonsense for a budget, numbers out of range.
    """
    if not asked.labels:
        raise UsageError("name at least one budget of labels: --labels 2,5%,20.")
    if min(asked.draws) < 1 or asked.snapshots < 0 or asked.seed < 0:
        raise UsageError(
            f"--draws {asked.draws_asked} --snapshots {asked.snapshots} --seed {asked.seed}: there is at least one "
            "draw, the others are 0 or more."
        )
    names: dict[str, str] = {}
    for budget in asked.labels:
        parse_budget(budget)
        other = names.setdefault(folder_name(budget), budget)
        if other != budget:
            raise UsageError(f"--labels {other},{budget}: both would be the folder {folder_name(budget)}.")
    lengths = asked.lengths
    if lengths.steps is not None and lengths.max_time is not None:
        raise UsageError(
            "--steps and --max-time are two ways to say how long a run trains; give one of them."
        )
    check_assignments(asked.arms, asked.settings)
    for arm in asked.arms:
        recipe_of(arm, "train", lengths, asked.settings)
        if arm.pretrain is not None:
            recipe_of(arm, "pretrain", lengths, asked.settings)


def folder_name(budget: str) -> str:
    """Return the folder of a budget: its own words, without the signs that trouble shells and addresses.

    Example:
        >>> folder_name("5%"), folder_name("@lists/first five.txt")
        ('5pct', 'first five')
    """
    return Path(budget[1:]).stem if budget.startswith("@") else budget.replace("%", "pct")


def draws_of(draws: int | str | Sequence[int], labels: Sequence[str]) -> tuple[int, ...]:
    """Return how many draws each budget has: one number is for all of them.

    Raises:
        UsageError: no whole numbers, or neither one nor as many as there are budgets.

    Example:
        >>> draws_of(3, ("1", "10")), draws_of("5,3", ("1", "10"))
        ((3, 3), (5, 3))
    """
    parts = draws.split(",") if isinstance(draws, str) else [draws] if isinstance(draws, int) else draws
    try:
        numbers = tuple(int(part) for part in parts)
    except ValueError:
        raise UsageError(f"--draws {draws}: write a whole number, or one for each budget: 5,3,3.") from None
    if len(numbers) not in (1, len(labels)):
        raise UsageError(
            f"--draws {','.join(map(str, numbers))}: there are {len(labels)} budget(s), {','.join(labels)}; give one "
            "number for all, or one for each."
        )
    return numbers * len(labels) if len(numbers) == 1 else numbers


def split_list(text: str | Sequence[str]) -> tuple[str, ...]:
    """Return the parts of ``a,b,c``, each once, in their order.

    Example:
        >>> split_list("2, 5%,2")
        ('2', '5%')
    """
    parts = text.split(",") if isinstance(text, str) else [str(part) for part in text]
    return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))
