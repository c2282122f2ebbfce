"""How a pre-training went: which of its measures are drawn, how to read each, and what they say in the end.

The measures themselves are made by ``training/health.py`` and ``training/probe.py``. None of them says how well a model
segments: a pre-training is judged by the model that is trained from it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from handful.report.words import count

NOT_A_TERM = ("step", "steps", "seconds", "loss", "lr", "steps_per_s", "gradient_norm")
"""Numbers of a row that are no term of the loss, like every one with a slash in its name."""

SPREAD, RANK = 0.01, 1.5
"""Deviation and effective rank below which embeddings are one point; as in ``training/health.py``."""

NEAR = 0.1
"""A position error within this share of chance is called no better than chance."""

SAME = 0.01
"""Probes that differ by less are called equal."""

Rows = Sequence[Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One small drawing.

    Attributes:
        title: above it.
        lines: what a line is called -> its name in ``metrics.jsonl``.
        reading: how to read it, in a sentence or two.
        level: a dashed line at this height, what guessing gives; None draws none.
        dashed: those of ``lines`` that are what guessing gives.
        from_zero: whether the height starts at zero.
    """

    title: str
    lines: Mapping[str, str]
    reading: str
    level: float | None = None
    dashed: tuple[str, ...] = ()
    from_zero: bool = True


def is_measured(metrics: Rows) -> bool:
    """Say whether these are rows of a pre-training: only its health is measured."""
    return any(key.startswith("health/") for row in metrics for key in row)


def loss_terms(metrics: Rows) -> list[str]:
    """Return the names of the terms of the loss, sorted."""
    keys = {key for row in metrics for key in row}
    return sorted(
        key
        for key in keys
        if "/" not in key and not key.startswith(("lr", "memory")) and key not in NOT_A_TERM
    )


def loss_panel(metrics: Rows) -> Panel:
    """Return the loss with its terms; a single term that is the loss is left out."""
    terms = [name for name in loss_terms(metrics) if any(row.get(name) != row.get("loss") for row in metrics)]
    known = {key for row in metrics for key in row}
    # first those whose gradients are drawn too, so that both drawings give a term the same colour
    terms.sort(key=lambda name: f"health/gradient_{name}" not in known)
    return Panel(
        title="Loss",
        lines={"loss": "loss", **{name: name for name in terms}},
        reading="What is minimised, and what was logged beside it. A contrastive loss cannot reach zero, and it stands "
        "still where all embeddings are equal: the curve alone does not tell learning from collapse.",
        from_zero=False,
    )


def panels(metrics: Rows, *, classes: int = 0) -> list[Panel]:
    """Return what there is to draw beside the loss; a measure that no row has is left out.

    Args:
        metrics: rows of ``metrics.jsonl``.
        classes: background included, for the probe's chance; 0 if unknown.
    """
    gradients = sorted({key for row in metrics for key in row if key.startswith("health/gradient_")})
    wanted = [
        Panel(
            title="Effective rank",
            lines={"effective rank": "health/effective_rank"},
            reading="How many directions the embeddings fill. At 1 all lie on one line and tell nothing apart; more "
            "is richer.",
        ),
        Panel(
            title="Deviation",
            lines={"deviation": "health/deviation"},
            reading="How far the embeddings differ from each other: 0 if all are alike (a collapse), 1 if they are "
            "spread evenly over the sphere.",
        ),
        Panel(
            title="Uniformity",
            lines={"uniformity": "health/uniformity"},
            reading="How evenly the embeddings cover the sphere: 0 if all have one direction, about -4 if they are "
            "spread evenly. Lower is more even.",
            from_zero=False,
        ),
        Panel(
            title="Alignment",
            lines={"alignment": "health/alignment"},
            reading="How far apart two views of the same item are: 0 if alike, 2 if unrelated. Low is good only while "
            "the deviation is not low too.",
        ),
        Panel(
            title="Position error",
            lines={"position error": "health/position_error", "chance": "health/position_chance"},
            reading="How far off, in lengths of the slice axis, a position is that is guessed from the nearest other "
            "embeddings. Below the dashed line (the guess without any) embeddings tell where they are from; an "
            "untrained network may be below it too, so look at the fall.",
            dashed=("chance",),
        ),
        Panel(
            title="Probe",
            lines={"accuracy": "health/probe"},
            reading="How often a labelled voxel's class is told by the mean features of each class, averaged over "
            "classes. Nothing is trained for it. An untrained network is above chance (dashed), since intensity alone "
            "tells some classes: look at the rise. Few cases are probed, so small differences mean nothing.",
            level=1 / classes if classes else None,
            from_zero=False,
        ),
        Panel(
            title="Gradient of each term",
            lines={key.removeprefix("health/gradient_"): key for key in gradients},
            reading="How strongly each term of the loss pulls at the deepest weights of the encoder: which term moves "
            "it, whatever the terms' values.",
        ),
        Panel(
            title="Gradient norm",
            lines={"gradient norm": "gradient_norm"},
            reading="The gradient of the whole loss in all weights, before it is clipped. Jumps mean that the learning "
            "rate is near its limit.",
        ),
        Panel(
            title="Learning rate",
            lines={"learning rate": "lr"},
            reading="The size of a step of the optimiser.",
        ),
    ]
    known = {key for row in metrics for key in row}
    return [panel for panel in wanted if known & set(panel.lines.values())]


def findings(metrics: Rows, *, classes: int = 0) -> list[str]:
    """Say in sentences what the measures show, and that they say nothing of segmentation.

    Args:
        metrics: rows of ``metrics.jsonl``, oldest first.
        classes: background included, for the probe's chance; 0 if unknown.
    """
    said = [_probe(metrics, classes), _position(metrics), _spread(metrics), _loss(metrics)]
    return [
        *filter(None, said),
        "Nothing is claimed about segmentation: how much these weights help shows only when a model is trained from "
        "them and compared, on held-out cases, with one trained from scratch.",
    ]


def _probe(metrics: Rows, classes: int) -> str:
    scores = [(row["step"], row["health/probe"]) for row in metrics if "health/probe" in row]
    if not scores:
        return "No probe was taken: no label was there to take one with, or none was allowed (--labels)."
    chance = f"; chance is {1 / classes:.3f}" if classes else ""
    (first, before), (last, after) = scores[0], scores[-1]
    if len(scores) == 1:
        return f"The probe was taken once: accuracy {before:.3f} after step {first:,.0f}{chance}."
    change = "stayed" if abs(after - before) < SAME else "rose" if after > before else "fell"
    best = max(score for _, score in scores)
    between = f", {best:.3f} at its best" if best > max(before, after) + SAME else ""
    return (
        f"The probe {change} from {before:.3f} after step {first:,.0f} to {after:.3f} after step {last:,.0f}"
        f"{between} ({count(len(scores), 'probe')}{chance})."
    )


def _position(metrics: Rows) -> str:
    shares = [
        row["health/position_error"] / row["health/position_chance"]
        for row in metrics
        if "health/position_error" in row and row.get("health/position_chance", 0.0) > 0
    ]
    if not shares:
        return (
            "How well embeddings tell their position was not measured: this method does not report positions."
        )
    before, after = _ends(shares)
    where = (
        "below chance"
        if after < 1 - NEAR
        else "above chance"
        if after > 1 + NEAR
        else "no better than chance"
    )
    return f"The position error ended {where}, at {after:.0%} of it; it was first measured at {before:.0%}."


def _spread(metrics: Rows) -> str:
    rows = [row for row in metrics if "health/deviation" in row and "health/effective_rank" in row]
    if not rows:
        return "The spread of embeddings was not measured: too few of them were seen, or the method has none."
    rank = _ends([row["health/effective_rank"] for row in rows])
    deviation = _ends([row["health/deviation"] for row in rows])
    change = (
        f"effective rank {rank[1]:.1f} (first {rank[0]:.1f}), "
        f"deviation {deviation[1]:.2g} (first {deviation[0]:.2g})"
    )
    if rank[1] < RANK and deviation[1] < SPREAD:
        return (
            f"The embeddings have become one point: {change}. If the method's loss is to keep them apart, it has "
            "collapsed; features of a reconstruction may lie like that."
        )
    return f"The embeddings still differ at the end: {change}."


def _loss(metrics: Rows) -> str:
    losses = [row["loss"] for row in metrics if "loss" in row]
    if len(losses) < 2:
        return ""
    before, after = _ends(losses)
    change = "stayed" if f"{before:.3g}" == f"{after:.3g}" else "fell" if after < before else "rose"
    return f"The loss {change} from {before:.3g} to {after:.3g}."


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """Return the means of the first and of the last tenth: single rows are noisy."""
    tenth = max(1, len(values) // 10)
    return fmean(values[:tenth]), fmean(values[-tenth:])
