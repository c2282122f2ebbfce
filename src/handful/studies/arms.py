"""What a study compares: each arm is a training, perhaps after a pre-training, by the name the user gave it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from handful.errors import UsageError, nearest
from handful.methods import load_method, method_names
from handful.methods.contract import Method
from handful.training.recipe import Recipe, length_of, resolve
from handful.training.settle import DEFAULT_STEPS

CONTROL = "supervised"
"""The labels-only control: in every study, and what every other arm is compared with."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One thing to compare.

    Attributes:
        name: as the user wrote it, and of its folder.
        train: the method that makes the segmentation model.
        pretrain: the method whose weights it starts from, or None.
    """

    name: str
    train: str
    pretrain: str | None = None

    @property
    def needs_pretrain_labels(self) -> bool:
        """Whether its pre-training learns from labels, so that it belongs to one budget and draw."""
        if self.pretrain is None:
            return False
        needs = _class_of(self.pretrain).needs
        return needs.labels or needs.optional_labels


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """How long a run trains, and how long the pre-training before it."""

    steps: int | None = None
    max_time: str | None = None
    pretrain_steps: int | None = None

    def of(self, kind: str) -> dict[str, Any]:
        """Return ``steps`` and ``max_time`` of a training or a pre-training, as ``train`` takes them."""
        if kind == "pretrain" and self.pretrain_steps is not None:
            return {"steps": self.pretrain_steps, "max_time": None}
        if self.steps is None and self.max_time is None:
            return {"steps": DEFAULT_STEPS, "max_time": None}
        return {"steps": self.steps, "max_time": self.max_time}


def parse_arms(names: Sequence[str]) -> tuple[Arm, ...]:
    """Read method names; the control comes first, named or not.

    A name is a training method; a pre-training method, which means it and then the control's training; or ``a+b``,
    pre-training with ``a`` and training with ``b``.

    Raises:
        UsageError: an unknown method (the nearest known one is named), or one in the wrong place.
    """
    arms = {CONTROL: Arm(name=CONTROL, train=CONTROL)}
    for name in names:
        if name:
            arm = _parse(name)
            arms.setdefault(arm.name, arm)
    return tuple(arms.values())


def recipe_of(method: str, kind: str, lengths: Lengths, assignments: Sequence[str]) -> Recipe:
    """Resolve the recipe of one training of an arm, as ``train`` and ``pretrain`` will.

    Raises:
        UsageError: unknown settings, or values that do not go together.
    """
    return resolve(
        method,
        assignments=assignments_for(method, assignments),
        over=length_of(**lengths.of(kind)),
        default_steps=DEFAULT_STEPS,
    )


def assignments_for(method: str, assignments: Sequence[str]) -> tuple[str, ...]:
    """Return the settings that concern a method: ``loop.lr=0.001`` all of them, ``pcl:loop.lr=0.001`` that one.

    Example:
        >>> assignments_for("pcl", ["loop.lr=0.001", "pcl:method.threshold=0.2", "mae:loop.lr=0.1"])
        ('loop.lr=0.001', 'method.threshold=0.2')
    """
    chosen = []
    for text in assignments:
        owner, colon, _ = text.partition("=")[0].partition(":")
        if not colon:
            chosen.append(text)
        elif owner.strip() == method:
            chosen.append(text.partition(":")[2])
    return tuple(chosen)


def check_assignments(arms: Sequence[Arm], assignments: Sequence[str]) -> None:
    """Refuse a setting for a method that no arm uses.

    Raises:
        UsageError: the method is not in the study.
    """
    used = sorted({method for arm in arms for method in (arm.train, arm.pretrain) if method})
    for text in assignments:
        owner, colon, _ = text.partition("=")[0].partition(":")
        if colon and owner.strip() not in used:
            raise UsageError(
                f"--set {text}: '{owner.strip()}' is no method of this study; {nearest(owner.strip(), used)}"
            )


def _parse(name: str) -> Arm:
    first, plus, second = (part.strip() for part in name.partition("+"))
    kind = _class_of(first).kind
    if not plus:
        return Arm(name=first, train=first) if kind == "train" else _arm(first, CONTROL)
    if kind != "pretrain":
        raise UsageError(
            f"--methods {name}: before the + stands a pre-training; '{first}' is a training. "
            f"Pre-trainings are {', '.join(_of_kind('pretrain'))}."
        )
    if not second or _class_of(second).kind != "train":
        raise UsageError(
            f"--methods {name}: after the + stands a training; '{second}' is not one. "
            f"Trainings are {', '.join(_of_kind('train'))}."
        )
    return _arm(first, second)


def _arm(pretrain: str, train: str) -> Arm:
    name = pretrain if train == CONTROL else f"{pretrain}+{train}"
    return Arm(name=name, train=train, pretrain=pretrain)


def _class_of(method: str) -> type[Method]:
    found: type[Method] = load_method(method).METHOD
    return found


def _of_kind(kind: str) -> list[str]:
    return [name for name in method_names() if _class_of(name).kind == kind]
