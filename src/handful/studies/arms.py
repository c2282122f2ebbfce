"""What a study compares: each arm is a training, perhaps after a pre-training, by the name the user gave it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
        named: whether the name is the user's own, ``name=method``: settings can then be for this arm alone.
    """

    name: str
    train: str
    pretrain: str | None = None
    named: bool = False

    @property
    def spec(self) -> str:
        """The arm as ``--methods`` takes it."""
        if not self.named:
            return self.name
        return f"{self.name}={self.train if self.pretrain is None else f'{self.pretrain}+{self.train}'}"

    @property
    def start(self) -> str | None:
        """Name of what it starts from: arms of one start share their pre-training."""
        return self.name if self.named and self.pretrain is not None else self.pretrain

    def method(self, kind: str) -> str:
        """Return the method of one of its trainings, ``pretrain`` or ``train``."""
        method = self.pretrain if kind == "pretrain" else self.train
        assert method is not None
        return method

    def settings(self, kind: str, assignments: Sequence[str]) -> tuple[str, ...]:
        """Return the settings that concern one of its trainings.

        ``loop.lr=0.001`` is for all, ``pcl:loop.lr=0.001`` for every training with that method, and the same with the
        name of a named arm for that arm alone: for its pre-training, where it has one.

        Example:
            >>> given = ["loop.lr=0.001", "pcl:method.threshold=0.2", "near:method.threshold=0.1"]
            >>> Arm(name="near", train="supervised", pretrain="pcl", named=True).settings("pretrain", given)
            ('loop.lr=0.001', 'method.threshold=0.2', 'method.threshold=0.1')
        """
        own = "train" if self.pretrain is None else "pretrain"
        names = {self.method(kind), *([self.name] if self.named and kind == own else [])}
        chosen = []
        for text in assignments:
            owner, colon, _ = text.partition("=")[0].partition(":")
            if not colon:
                chosen.append(text)
            elif owner.strip() in names:
                chosen.append(text.partition(":")[2])
        return tuple(chosen)

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
    pre-training with ``a`` and training with ``b``. ``name=method`` gives any of these a name of its own, so that one
    method can stand beside itself with other settings.

    Raises:
        UsageError: an unknown method (the nearest known one is named), one in the wrong place, a name that two arms
            have or that is a method's.
    """
    arms = {CONTROL: Arm(name=CONTROL, train=CONTROL)}
    for text in names:
        if text:
            arm = _named(text) if "=" in text else _parse(text)
            if arms.setdefault(arm.name, arm) != arm:
                raise UsageError(
                    f"--methods {text}: '{arm.name}' is the name of another method of this study."
                )
    return tuple(arms.values())


def recipe_of(arm: Arm, kind: str, lengths: Lengths, assignments: Sequence[str]) -> Recipe:
    """Resolve the recipe of one training of an arm, as ``train`` and ``pretrain`` will.

    Raises:
        UsageError: unknown settings, or values that do not go together.
    """
    return resolve(
        arm.method(kind),
        assignments=arm.settings(kind, assignments),
        over=length_of(**lengths.of(kind)),
        default_steps=DEFAULT_STEPS,
    )


def check_assignments(arms: Sequence[Arm], assignments: Sequence[str]) -> None:
    """Refuse a setting for a method or a named arm that is not there.

    Raises:
        UsageError: neither is in the study.
    """
    used = sorted(
        {name for arm in arms for name in (arm.train, arm.pretrain, arm.named and arm.name) if name}
    )
    for text in assignments:
        owner, colon, _ = text.partition("=")[0].partition(":")
        if colon and owner.strip() not in used:
            raise UsageError(
                f"--set {text}: '{owner.strip()}' is no method of this study; {nearest(owner.strip(), used)}"
            )


def _named(text: str) -> Arm:
    name, _, method = (part.strip() for part in text.partition("="))
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise UsageError(
            f"--methods {text}: before the = stands a name, which becomes a folder: letters, digits, '-', '_', '.'."
        )
    if name in method_names():
        raise UsageError(f"--methods {text}: '{name}' is a method itself; choose another name for this arm.")
    return replace(_parse(method), name=name, named=True)


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
