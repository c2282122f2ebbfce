"""A plan that was edited by hand is checked before anything is computed with it."""

from typing import TYPE_CHECKING

from handful.data.sizes import unit
from handful.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from handful.data.plan import Plan

LAST_CLASS = 254
"""Class indices are stored in one byte, and 255 marks ignored voxels."""


def check_plan(plan: "Plan", *, where: str) -> None:
    """Refuse a plan that cannot work, naming every contradiction at once.

    Raises:
        UsageError: the list of contradictions, each with what would be allowed.
    """
    network, dims = plan.network, plan.dims
    levels = len(network.widths)
    wrong = [
        f"{name} needs {dims} numbers because dims is {dims}, found {list(value)}"
        for name, value in (("patch", plan.patch), ("mirror", plan.mirror))
        if len(value) != dims
    ]
    for name, rows, count in (("strides", network.strides, levels - 1), ("kernels", network.kernels, levels)):
        if len(rows) != count:
            wrong.append(
                f"network.{name} needs {count} entries for {levels} levels of widths, found {len(rows)}"
            )
        wrong += [
            f"network.{name} needs {dims} numbers an entry, found {list(row)}"
            for row in rows
            if len(row) != dims
        ]
    if not levels or min(network.widths) < 1:
        wrong.append("network.widths needs at least one level, each of at least one channel")
    if any(n < 1 for rows in (network.strides, network.kernels) for row in rows for n in row):
        wrong.append("network.strides and network.kernels must be 1 or more")
    elif any(k % 2 == 0 for row in network.kernels for k in row):
        wrong.append("network.kernels must be odd, so that they have a middle")
    if not wrong:
        for size, step in zip(plan.patch, unit(network.strides, dims)):
            if size < 1 or size % step:
                below = size // step * step
                allowed = f"{below} or {below + step}" if below > 0 else f"{step}"
                wrong.append(
                    f"patch {list(plan.patch)}: {size} is not a multiple of {step} (network.strides); use {allowed}"
                )
    if sorted(plan.axes) != [0, 1, 2]:
        wrong.append(f"axes must hold 0, 1 and 2 once each, found {list(plan.axes)}")
    several = len(plan.planes) > 1
    if not plan.planes or any(sorted(order) != [0, 1, 2] for order in plan.planes):
        wrong.append(f"planes needs one order at least, each of 0, 1 and 2, found {_lists(plan.planes)}")
    elif dims == 3 and plan.planes != ((0, 1, 2),):
        wrong.append(f"planes of a 3D plan is [[0, 1, 2]], found {_lists(plan.planes)}")
    for letter, mm in zip("DHW", plan.spacing_mm):
        if mm is None and not (letter == "D" and dims == 2 and not several):
            wrong.append(
                f"spacing_mm along {letter} needs a number (null is for D of a 2D plan of one plane)"
            )
        elif mm is not None and not 0 < mm < float("inf"):
            wrong.append(f"spacing_mm along {letter} must be positive, found {mm}")
    wrong += _check_labels(plan)
    if not 0 <= plan.turned <= 1:
        wrong.append(f"turned is a share from 0 to 1, found {plan.turned}")
    if plan.batch < 1:
        wrong.append(f"batch must be 1 or more, found {plan.batch}")
    if not plan.channels:
        wrong.append("channels needs one normalisation a channel")
    for channel in plan.channels:
        if not channel.spread > 0:
            wrong.append(f"channels: spread must be positive, found {channel.spread}")
        if channel.kind == "window" and not channel.low < channel.high:
            wrong.append(f"channels: a window needs low < high, found {channel.low} and {channel.high}")
    if wrong:
        raise UsageError(f"{where}: " + "; ".join(wrong) + ".")


def _lists(rows: "Sequence[Sequence[int]]") -> list[list[int]]:
    return [list(row) for row in rows]


def _check_labels(plan: "Plan") -> list[str]:
    wrong = []
    if len(plan.label_values) != len(plan.label_names):
        wrong.append(f"{len(plan.label_values)} label_values but {len(plan.label_names)} label_names")
    for name, entries in (("label_values", plan.label_values), ("label_names", plan.label_names)):
        twice = sorted({str(entry) for entry in entries if list(entries).count(entry) > 1})
        if twice:
            wrong.append(f"{name} holds {', '.join(twice)} more than once")
    if not 1 <= len(plan.label_values) <= LAST_CLASS + 1:
        wrong.append(f"label_values needs 1 to {LAST_CLASS + 1} classes, background first")
    if plan.ignore_value is not None and plan.ignore_value in plan.label_values:
        wrong.append(f"ignore_value {plan.ignore_value} is also one of label_values")
    if plan.one_piece and len(plan.one_piece) != len(plan.label_values):
        wrong.append(
            f"one_piece needs {len(plan.label_values)} flags, one a class (background false), or none, found "
            f"{len(plan.one_piece)}"
        )
    elif plan.one_piece and plan.one_piece[0]:
        wrong.append("one_piece of the background, the first flag, must be false")
    return wrong
