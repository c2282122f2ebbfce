"""A recipe: the method and every setting of a run, resolved, complete enough to repeat it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from handful import settings as settings_
from handful.artefacts import read_yaml
from handful.data.augment.settings import AugmentSettings
from handful.data.sampling import SamplingSettings
from handful.errors import UsageError, nearest
from handful.methods import load_method
from handful.networks.presets import PRESETS
from handful.training.loop import LoopSettings

PARTS = ("method", "loop", "augment", "sampling", "network", "plan")
"""Sections of a recipe."""

PRETRAIN_SHARE = 0.25
"""Of a run, for the pre-training before it, where nobody says otherwise."""

LENGTHS = ("steps", "epochs", "max_time_s")
"""Ways to say how long; one at a time."""


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """Which network.

    Attributes:
        preset: a published one (``networks/presets.py``); None is the plan's U-Net.
    """

    preset: str | None = None

    def __post_init__(self) -> None:
        if self.preset is not None and self.preset not in PRESETS:
            raise UsageError(
                f"there is no network preset '{self.preset}'; {nearest(self.preset, list(PRESETS))}"
            )


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """What a recipe fixes of the plan; None leaves it to the data. See ``data.plan.Plan`` for the fields.

    ``planes`` is their number, 1 or 3. A recipe that fixes patch, spacing or mirrors has one, and turns nothing beyond
    ``augment.rotation_degrees``, unless it says otherwise.
    ``width`` is the channels of the U-Net's finest level, doubled at each; fewer make a faster step.
    """

    dims: Literal[2, 3] | None = None
    planes: Literal[1, 3] | None = None
    width: int | None = None
    patch: tuple[int, ...] | None = None
    spacing_mm: tuple[float | None, float | None, float | None] | None = None
    batch: int | None = None
    mirror: tuple[bool, ...] | None = None
    turned: float | None = None


@dataclass(frozen=True, kw_only=True)
class FirstStage:
    """A pre-training that comes before the training, as part of the same run and of its length.

    Attributes:
        name: of the pre-training method.
        share: of the run's steps, or of its time.
        method: the method's own settings.
    """

    name: str
    share: float
    method: Any

    def as_dict(self) -> dict[str, Any]:
        """Return plain values: the method's settings beside name and share."""
        return {"name": self.name, "share": self.share, **settings_.as_dict(self.method)}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Method and settings.

    Attributes:
        name: of the method: a file in ``handful.methods`` or a dotted module.
        method: its own settings (the ``Settings`` class of its module).
        loop: length, optimiser, schedules.
        augment: ranges of the augmentation.
        sampling: how patches are chosen.
        network: which network.
        plan: what is fixed of the plan.
        pretrain: what comes first, or None.
    """

    name: str
    method: Any
    loop: LoopSettings
    augment: AugmentSettings
    sampling: SamplingSettings
    network: NetworkSettings
    plan: PlanSettings
    pretrain: FirstStage | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, as written to ``recipe.yaml``."""
        return {
            "name": self.name,
            **{part: settings_.as_dict(getattr(self, part)) for part in PARTS},
            "pretrain": self.pretrain and self.pretrain.as_dict(),
        }

    def stages(self) -> tuple["Recipe | None", "Recipe"]:
        """Return the recipe of the pre-training, if there is one, and of the training, which share the length."""
        first = self.pretrain
        if first is None:
            return None, self
        loop = self.loop
        lengths: tuple[dict[str, Any], dict[str, Any]]
        if loop.steps is not None:
            count = min(max(round(loop.steps * first.share), 1), loop.steps - 1)
            lengths = {"steps": count}, {"steps": loop.steps - count}
        elif loop.max_time_s is not None:
            lengths = (
                {"max_time_s": loop.max_time_s * first.share},
                {"max_time_s": loop.max_time_s * (1 - first.share)},
            )
        else:
            raise UsageError(
                "a run that starts with a pre-training shares its length with it: say --steps or --max-time, "
                "not epochs, or leave the pre-training out (--set pretrain=null)."
            )
        before = replace(
            self,
            name=first.name,
            method=first.method,
            loop=replace(
                LoopSettings(**lengths[0]), rows=loop.rows, checkpoint_every_s=loop.checkpoint_every_s
            ),
            pretrain=None,
        )
        return before, replace(self, loop=replace(loop, **lengths[1]), pretrain=None)


def resolve(
    name: str | None,
    *,
    file: Path | None = None,
    assignments: Sequence[str] = (),
    over: Mapping[str, Any] | None = None,
    default_steps: int | None = None,
) -> Recipe:
    """Build a recipe from defaults, then a YAML file, then options, then ``--set`` assignments (the later wins).

    A length given as an option replaces the file's; ``default_steps`` is used where nobody gives a length. Without a
    file, a method starts from the recipe of its own name that comes with handful, if there is one.

    Raises:
        UsageError: unknown names (the nearest known one is named), wrong types, or a file made for another method.
    """
    values: dict[str, Any] = read_yaml(file) if file else {}
    if "handful" in values:  # the recipe.yaml of a run also says on which cases; those are chosen anew
        values = {key: values[key] for key in ("name", *PARTS, "pretrain") if key in values}
    written = values.pop("name", None)
    if name and written and name != written:
        raise UsageError(
            f"{file} is a recipe for '{written}', but --method asks for '{name}'; leave one of them out."
        )
    name = name or written or "supervised"
    module = load_method(name)
    if file is None and (house := shipped(name)) is not None:
        values = {key: value for key, value in read_yaml(house).items() if key != "name"}
    kinds = {
        "method": module.Settings,
        "loop": LoopSettings,
        "augment": AugmentSettings,
        "sampling": SamplingSettings,
        "network": NetworkSettings,
        "plan": PlanSettings,
    }
    options = over or {}
    if options.get("loop"):  # one way of saying how long replaces the other
        for key in LENGTHS:
            values.get("loop", {}).pop(key, None)
    values = settings_.merge(values, options)
    values = settings_.merge(values, settings_.parse_assignments(assignments))
    length = values.setdefault("loop", {})
    if isinstance(length, dict) and all(length.get(key) is None for key in LENGTHS):
        length["steps"] = default_steps
    parts = {}
    where = f"recipe {file}" if file else "--set"
    pretrain = _first_stage(values.pop("pretrain", None), where=where)
    for key in values:
        if key not in kinds:
            inside = [
                f"{part}.{f.name}" for part, kind in kinds.items() if is_dataclass(kind) for f in fields(kind)
            ]
            found = next((path for path in inside if path.endswith(f".{key}")), None)
            hint = f"did you mean '{found}'?" if found else nearest(key, [*kinds, "pretrain"])
            raise UsageError(f"{where}: unknown setting '{key}'; {hint}")
    for key, kind in kinds.items():
        parts[key] = settings_.build(kind, values.get(key) or {}, where=where)
    if pretrain is not None and module.METHOD.kind != "train":
        raise UsageError(
            f"{where}: 'pretrain' is a stage before a training; '{name}' is a pre-training itself."
        )
    return Recipe(name=name, **parts, pretrain=pretrain)


def shipped(name: str) -> Path | None:
    """Return the recipe of that name that comes with handful, or None."""
    file = Path(str(resources.files("handful") / "recipes" / f"{name}.yaml"))
    return file if file.is_file() else None


def shipped_names() -> list[str]:
    """Return the names of the recipes that come with handful."""
    return sorted(file.stem for file in Path(str(resources.files("handful") / "recipes")).glob("*.yaml"))


def _first_stage(values: Any, *, where: str) -> FirstStage | None:
    """Build the pre-training of a recipe from its section, name and share beside the method's own settings.

    Raises:
        UsageError: no pre-training method, a share outside (0, 1), unknown settings.
    """
    if values is None or (isinstance(values, Mapping) and values.get("name", "") is None):
        return None
    if not isinstance(values, Mapping) or not values.get("name"):
        raise UsageError(
            f"{where}: 'pretrain' names a method and its settings, for example pretrain.name=pcl, or is null."
        )
    name, share = values["name"], values.get("share", PRETRAIN_SHARE)
    module = load_method(name)
    if module.METHOD.kind != "pretrain":
        raise UsageError(
            f"{where}: pretrain.name is '{name}', which is no pre-training (see handful methods)."
        )
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
        raise UsageError(f"{where}: pretrain.share is a share of the run, between 0 and 1, found {share!r}.")
    own = {key: value for key, value in values.items() if key not in ("name", "share")}
    return FirstStage(
        name=name,
        share=float(share),
        method=settings_.build(module.Settings, own, where=f"{where}, pretrain"),
    )


def length_of(steps: int | None, max_time: str | None) -> dict[str, Any]:
    """Return what the options ``--steps`` and ``--max-time`` say of the loop, as ``over`` of ``resolve``."""
    length: dict[str, Any] = {}
    if steps is not None:
        length["steps"] = steps
    if max_time is not None:
        length["max_time_s"] = parse_duration(max_time)
    return {"loop": length}


def parse_duration(text: str) -> float:
    """Return seconds of ``90s``, ``20m``, ``1h30m`` or plain seconds.

    Example:
        >>> parse_duration("1h30m")
        5400.0
    """
    import re

    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip())
    seconds = (
        sum(float(part) * unit for part, unit in zip(match.groups(), (3600, 60, 1), strict=True) if part)
        if match
        else 0
    )
    if seconds <= 0:
        raise UsageError(f"--max-time {text}: expected a duration such as 90s, 20m or 1h30m.")
    return float(seconds)
