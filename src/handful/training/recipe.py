"""A recipe: the method and every setting of a run, resolved, complete enough to repeat it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple

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
    """What a recipe fixes of the plan; None leaves it to the data. See ``data.plan.Plan``.

    A recipe that fixes patch, spacing or mirrors has one plane, and turns nothing beyond ``augment.rotation_degrees``,
    unless it says otherwise.

    Attributes:
        dims: 2 or 3, of the network.
        planes: 1 or 3, along which a 2D network cuts slices.
        width: channels of the U-Net's finest level, doubled at each; fewer make a faster step.
        patch: voxels along the axes of the network, the last fastest.
        spacing_mm: of the grid along D, H, W; null keeps an axis as it is scanned.
        batch: patches a step.
        mirror: along which axes patches may be mirrored.
        turned: share of the rotated slices that are turned to any angle.
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
class Teaching:
    """A first training of the same method, whose predictions of whole unlabelled volumes the second learns as labels.

    Attributes:
        share: of the run's steps, or of its time, that the first training takes; labelling comes on top.
        volumes: at most so many are labelled, drawn by the seed.
        draws: share of the labelled patches that come from them.
    """

    share: float = 0.5  # ours
    volumes: int = 128  # ours
    draws: float = 0.5  # ours

    def __post_init__(self) -> None:
        if not (0 < self.share < 1 and 0 < self.draws < 1):
            raise UsageError("teach.share and teach.draws are shares between 0 and 1.")
        if self.volumes < 1:
            raise UsageError("teach.volumes must be 1 or more; teach=null leaves the teacher out.")


class Stages(NamedTuple):
    """The recipes of a run's parts, which share its length; None where there is no such part."""

    pretrain: "Recipe | None"
    teach: "Recipe | None"
    train: "Recipe"


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
        teach: the training that labels unlabelled volumes for this one, or None.
    """

    name: str
    method: Any
    loop: LoopSettings
    augment: AugmentSettings
    sampling: SamplingSettings
    network: NetworkSettings
    plan: PlanSettings
    pretrain: FirstStage | None = None
    teach: Teaching | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, as written to ``recipe.yaml``."""
        return {
            "name": self.name,
            **{part: settings_.as_dict(getattr(self, part)) for part in PARTS},
            "pretrain": self.pretrain and self.pretrain.as_dict(),
            "teach": self.teach and settings_.as_dict(self.teach),
        }

    def stages(self) -> Stages:
        """Return the recipes of the pre-training and of the teacher, if there are any, and of the training.

        Raises:
            UsageError: a length that cannot be shared out: epochs, or fewer steps than parts.
        """
        rest, before, teacher = self, None, None
        if (first := self.pretrain) is not None:
            early, late = rest._parted(first.share)
            loop = replace(
                LoopSettings(**early), rows=self.loop.rows, checkpoint_every_s=self.loop.checkpoint_every_s
            )
            before = replace(self, name=first.name, method=first.method, loop=loop, pretrain=None, teach=None)
            rest = replace(rest, loop=replace(rest.loop, **late), pretrain=None)
        if rest.teach is not None:
            early, late = rest._parted(rest.teach.share)
            teacher = replace(rest, loop=replace(rest.loop, **early), teach=None)
            rest = replace(rest, loop=replace(rest.loop, **late), teach=None)
        return Stages(before, teacher, rest)

    def _parted(self, share: float) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the length of a first part and of what is left, as settings of the loop."""
        loop = self.loop
        if loop.steps is not None and loop.steps > 1:
            count = min(max(round(loop.steps * share), 1), loop.steps - 1)
            return {"steps": count}, {"steps": loop.steps - count}
        if loop.max_time_s is not None:
            return {"max_time_s": loop.max_time_s * share}, {"max_time_s": loop.max_time_s * (1 - share)}
        raise UsageError(
            "a run of several parts shares its length among them: say --steps or --max-time, not epochs, and a "
            "step for each part at least, or leave the parts out (--set pretrain=null --set teach=null)."
        )


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
        values = {key: values[key] for key in ("name", *PARTS, "pretrain", "teach") if key in values}
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
    teach = _teaching(values.pop("teach", None), where=where)
    for key in values:
        if key not in kinds:
            inside = [
                f"{part}.{f.name}" for part, kind in kinds.items() if is_dataclass(kind) for f in fields(kind)
            ]
            found = next((path for path in inside if path.endswith(f".{key}")), None)
            hint = f"did you mean '{found}'?" if found else nearest(key, [*kinds, "pretrain", "teach"])
            raise UsageError(f"{where}: unknown setting '{key}'; {hint}")
    for key, kind in kinds.items():
        parts[key] = settings_.build(kind, values.get(key) or {}, where=where)
    for part, what in (("pretrain", pretrain), ("teach", teach)):
        if what is not None and module.METHOD.kind != "train":
            raise UsageError(
                f"{where}: '{part}' is a stage before a training; '{name}' is a pre-training itself."
            )
    return Recipe(name=name, **parts, pretrain=pretrain, teach=teach)


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


def _teaching(values: Any, *, where: str) -> Teaching | None:
    """Build the teacher's section; null, or a share of null, leaves it out."""
    if values is None or (isinstance(values, Mapping) and values.get("share", 0) is None):
        return None
    if not isinstance(values, Mapping):
        raise UsageError(f"{where}: 'teach' holds settings, for example teach.share=0.5, or is null.")
    return settings_.build(Teaching, values, where=f"{where}, teach")


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
