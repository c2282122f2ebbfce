"""A recipe: the method and every setting of a run, resolved, complete enough to repeat it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
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
    """What a recipe fixes of the plan; None leaves it to the data. See ``data.plan.Plan`` for the fields."""

    dims: Literal[2, 3] | None = None
    patch: tuple[int, ...] | None = None
    spacing_mm: tuple[float | None, float | None, float | None] | None = None
    batch: int | None = None
    mirror: tuple[bool, ...] | None = None


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
    """

    name: str
    method: Any
    loop: LoopSettings
    augment: AugmentSettings
    sampling: SamplingSettings
    network: NetworkSettings
    plan: PlanSettings

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, as written to ``recipe.yaml``."""
        return {
            "name": self.name,
            **{part: settings_.as_dict(getattr(self, part)) for part in PARTS},
        }


def resolve(
    name: str | None,
    *,
    file: Path | None = None,
    assignments: Sequence[str] = (),
    over: Mapping[str, Any] | None = None,
    default_steps: int | None = None,
) -> Recipe:
    """Build a recipe from defaults, then a YAML file, then options, then ``--set`` assignments (the later wins).

    A length given as an option replaces the file's; ``default_steps`` is used where nobody gives a length.

    Raises:
        UsageError: unknown names (the nearest known one is named), wrong types, or a file made for another method.
    """
    values: dict[str, Any] = read_yaml(file) if file else {}
    if "handful" in values:  # the recipe.yaml of a run also says on which cases; those are chosen anew
        values = {key: values[key] for key in ("name", *PARTS) if key in values}
    written = values.pop("name", None)
    if name and written and name != written:
        raise UsageError(
            f"{file} is a recipe for '{written}', but --method asks for '{name}'; leave one of them out."
        )
    name = name or written or "supervised"
    module = load_method(name)
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
    for key in values:
        if key not in kinds:
            inside = [
                f"{part}.{f.name}" for part, kind in kinds.items() if is_dataclass(kind) for f in fields(kind)
            ]
            found = next((path for path in inside if path.endswith(f".{key}")), None)
            hint = f"did you mean '{found}'?" if found else nearest(key, list(kinds))
            raise UsageError(f"{where}: unknown setting '{key}'; {hint}")
    for key, kind in kinds.items():
        parts[key] = settings_.build(kind, values.get(key) or {}, where=where)
    return Recipe(name=name, **parts)


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
