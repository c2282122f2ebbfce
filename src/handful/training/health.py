"""Say during pre-training whether embeddings keep carrying information: spread, rank, agreement of views, position.

A contrastive loss has a floor that depends on the batch and a value it freezes at when every embedding is the same, so
its curve alone does not tell learning from collapse. These measures do; see ``docs/health.md`` for how to read them.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from handful.losses import checks
from handful.losses.embeddings import unit
from handful.methods.contract import Watched

ROWS = 20
"""Consecutive rows that must look collapsed, a tenth of a run's: learning networks pass near a collapse and return."""

GRACE = 0.2
"""Share of a run before which nothing is called a collapse: twice the warm-up, since fresh networks start nearly so."""

SPREAD = 0.01
"""Deviation below which embeddings count as one point; rounding a point to bfloat16 alone makes 0.001."""

RANK = 1.5
"""Effective rank below which embeddings count as one point: a point with rounding noise around it exceeds 1."""

INFORMED = 0.5
"""Position error, as a share of chance, below which embeddings of little spread still tell where they are from."""

FROZEN = 1e-3
"""How near, relatively, a loss stands to its value for equal embeddings to be called frozen there."""

NEIGHBOURS = 5
"""Embeddings a position is regressed from."""

ENOUGH = 32
"""Items the meter waits for: ranks and neighbours of fewer say nothing."""


def effective_rank(z: Tensor) -> Tensor:
    """Return how many directions the embeddings fill: exp of the entropy of their singular values' shares.

    With s_k the singular values of ``z`` (not centred) and p_k = s_k / sum s: exp(-sum p_k ln p_k). From 1 (all on one
    line) to min(N, E) (all directions alike); 0 when all embeddings are zero.

    Args:
        z: (N, E) embeddings; computed in float64.

    Raises:
        ValueError: another shape, integers, NaN or infinite values.

    References:
        Roy and Vetterli, 2007. https://ieeexplore.ieee.org/document/7098875
        Garrido et al., 2023, RankMe. https://arxiv.org/abs/2210.02885
    """
    z = checks.embeddings("z", z, "N E").double()
    # eigenvalues of the smaller Gram matrix: a third of the time of the singular values themselves. Squaring halves
    # the digits, which float64 has to spare
    gram = z @ z.T if len(z) < z.shape[1] else z.T @ z
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    total = values.sum()
    share = values / total
    return torch.where(total > 0, torch.special.entr(share).sum().exp(), 0.0)


def mean_deviation(z: Tensor) -> Tensor:
    """Return the mean over dimensions of the standard deviation of the unit embeddings, times sqrt(E).

    1 for embeddings spread evenly over the sphere, which is the most there is; 0 when all have one direction.

    Args:
        z: (N, E) embeddings of any length.

    Raises:
        ValueError: another shape, integers, NaN or infinite values.

    References:
        Chen and He, 2021, SimSiam (section 4.1). https://arxiv.org/abs/2011.10566
    """
    z = unit(checks.embeddings("z", z, "N E"))
    return z.std(dim=0, correction=0).mean() * math.sqrt(z.shape[1])


def alignment(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean squared distance between the unit embeddings of two views: 0 identical, 2 unrelated, 4 opposite.

    Args:
        first, second: (N, E) embeddings of two views of the same items, of any length.

    Raises:
        ValueError: shapes that differ, integers, NaN or infinite values.

    References:
        Wang and Isola, 2020. https://arxiv.org/abs/2005.10242
    """
    first, second = checks.embeddings("first", first, "N E"), checks.embeddings("second", second, "N E")
    checks.same_shape(first=first, second=second)
    return (unit(first) - unit(second)).square().sum(dim=1).mean()


def uniformity(z: Tensor) -> Tensor:
    """Return log of the mean over pairs of exp(-2 d^2), d their distance on the sphere; lower is more even.

    0 when all embeddings have one direction; about -4 when they are spread evenly over a sphere of many dimensions.

    Args:
        z: (N, E) embeddings of any length, N at least 2.

    Raises:
        ValueError: fewer than two, another shape, integers, NaN or infinite values.

    References:
        Wang and Isola, 2020. https://arxiv.org/abs/2005.10242
    """
    z = unit(checks.embeddings("z", z, "N E"))
    if len(z) < 2:
        raise ValueError(f"uniformity compares pairs and needs at least 2 embeddings, found {len(z)}.")
    squared = torch.pdist(z).square()
    return torch.logsumexp(-2 * squared, dim=0) - math.log(len(squared))


def position_error(z: Tensor, position: Tensor, *, neighbours: int = NEIGHBOURS) -> tuple[Tensor, Tensor]:
    """Regress each position from the nearest other embeddings; return the mean absolute error and that of chance.

    The prediction is the mean position of the ``neighbours`` other embeddings nearest in direction; chance predicts
    the median of all positions. Several crops of one slice in ``z`` are easy neighbours, so that an untrained network
    is below chance too: look at the fall over a run.

    Args:
        z: (N, E) embeddings of any length.
        position: (N,) relative positions in [0, 1].
        neighbours: fewer than N.

    Raises:
        ValueError: shapes that do not fit, too few embeddings, integers, NaN or infinite values.
    """
    z = checks.embeddings("z", z, "N E")
    if position.shape != (len(z),):
        raise ValueError(f"position must have shape ({len(z)},), found {tuple(position.shape)}.")
    if not 1 <= neighbours < len(z):
        raise ValueError(f"{len(z)} embeddings have 1 to {len(z) - 1} neighbours, not {neighbours}.")
    position = checks.embeddings("position", position, "N").to(z)
    direction = unit(z)
    # centred, so that the distances within a tight cluster keep their digits
    distance = torch.cdist(direction - direction.mean(0), direction - direction.mean(0))
    nearest = distance.fill_diagonal_(torch.inf).topk(neighbours, largest=False).indices
    error = (position[nearest].mean(1) - position).abs().mean()
    # the middle of the two middle ones: torch's median takes the lower
    chance = (position - position.quantile(0.5)).abs().mean()
    return error, chance


class Meter:
    """Keep the last watched embeddings and measure them when a row of metrics is due.

    Spread, rank, uniformity and position are measured on the first view, so that views of different make (student and
    teacher) are not mistaken for spread. Adding costs one copy on the device; measuring happens on the CPU.

    Args:
        items: kept at most.

    Example:
        >>> meter = Meter()
        >>> meter.add(Watched(torch.randn(64, 2, 128), torch.rand(64)))
        >>> sorted(meter.row())[0]
        'health/alignment'
    """

    def __init__(self, items: int = 256) -> None:
        self.items = items
        self.together = 0
        self.stops = True
        self.embeddings = torch.empty(0)
        self.position = torch.empty(0)
        self.axis = torch.empty(0, dtype=torch.int64)

    @torch.no_grad()
    def add(self, watched: Watched | None) -> None:
        """Take in a batch; the oldest items leave.

        Embeddings of another shape than before start afresh, and so does a stage in which a method watches nothing.
        """
        if watched is None:
            self.embeddings, self.position, self.axis = self.embeddings[:0], self.position[:0], self.axis[:0]
            return
        self.stops = watched.stops
        z = watched.embeddings.detach().float()
        position = watched.position
        if position is None:
            position = z.new_full((len(z),), torch.nan)
        self.together = z.shape[0] * z.shape[1]
        if self.embeddings.shape[1:] != z.shape[1:]:
            self.embeddings, self.position, self.axis = z[:0], position[:0], self.axis[:0]
        # a checkpoint is read onto the training device, whereas positions may come on the CPU
        held, places = self.embeddings.to(z.device), self.position.to(position.device)
        self.embeddings = torch.cat([held, z])[-self.items :]
        self.position = torch.cat([places, position])[-self.items :]
        self.axis = torch.cat([self.axis, torch.full((len(z),), watched.axis)])[-self.items :]

    @torch.no_grad()
    def row(self) -> dict[str, float]:
        """Measure what is held; empty until there are ``ENOUGH`` items."""
        if len(self.embeddings) < ENOUGH:
            return {}
        z, position = self.embeddings.cpu(), self.position.cpu()
        first = z[:, 0]
        measured = {
            "effective_rank": effective_rank(unit(first)),
            "deviation": mean_deviation(first),
            "uniformity": uniformity(first),
        }
        views = list(combinations(z.unbind(1), 2))
        if views:
            measured["alignment"] = torch.stack([alignment(a, b) for a, b in views]).mean()
        if position.isfinite().all():
            cuts = [self.axis == number for number in sorted({*self.axis.tolist()})]
            found = [position_error(first[cut], position[cut]) for cut in cuts if int(cut.sum()) > NEIGHBOURS]
            if found:
                errors, chances = zip(*found)
                measured["position_error"] = torch.stack(errors).mean()
                measured["position_chance"] = torch.stack(chances).mean()
        return {f"health/{name}": float(value) for name, value in measured.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to write the same rows."""
        return {
            "embeddings": self.embeddings.clone(),
            "position": self.position.clone(),
            "axis": self.axis.clone(),
            "together": self.together,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state of another meter."""
        self.embeddings, self.position, self.axis = (
            state["embeddings"],
            state["position"],
            state["axis"].cpu(),
        )
        self.together = int(state["together"])


def collapsed(rows: Sequence[Mapping[str, float]], *, progress: float, together: int = 0) -> str | None:
    """Say in a sentence that the embeddings have become one point, and what to do; None while they have not.

    A collapse is told by all of the last ``ROWS`` rows, after ``GRACE`` of the run: hardly any deviation and an
    effective rank near 1. Embeddings that pass for a point but still tell positions are left alone: features that no
    term spreads (of a reconstruction) may lie close together. Unless a loss stands at ln(``together`` - 1), the value
    of a contrast of equal embeddings; alone that value proves nothing, since an untrained network starts at it.

    Args:
        rows: of the metrics, oldest first, as ``metrics.jsonl`` has them; only the last ``ROWS`` are read.
        progress: of the run, from 0 to 1.
        together: embeddings that a step contrasts (``Meter.together``); 0 if unknown.
    """
    rows = rows[-ROWS:]
    if progress < GRACE or len(rows) < ROWS or not all("health/deviation" in row for row in rows):
        return None
    deviation = max(row["health/deviation"] for row in rows)
    rank = max(row["health/effective_rank"] for row in rows)
    if deviation >= SPREAD or rank >= RANK:
        return None
    floor = math.log(together - 1) if together > 2 else math.inf
    frozen = [
        name
        for name in rows[-1]
        if not name.startswith("health/")
        and all(abs(row.get(name, math.nan) - floor) <= FROZEN * floor < math.inf for row in rows)
    ]
    informed = all(
        row.get("health/position_error", math.inf) < INFORMED * row.get("health/position_chance", 0.0)
        for row in rows
    )
    if informed and not frozen:
        return None
    stands = (
        f", and {frozen[0]} stands at {floor:.4f} = ln({together} - 1), as for equal ones" if frozen else ""
    )
    return (
        f"the embeddings have collapsed: in the last {ROWS} rows of metrics they hardly differ (deviation at most "
        f"{deviation:.2g} of 1, effective rank at most {rank:.2f}){stands}. More steps will not "
        "help. Start again (--overwrite) with a lower learning rate, a tenth say (--set loop.lr=...), and a warm-up "
        "(--set loop.warm_up=0.1), or with another --seed. --set loop.stop_on_collapse=false trains on regardless."
    )


def term_gradients(terms: Mapping[str, Tensor], parameters: Sequence[nn.Parameter]) -> dict[str, Tensor]:
    """Return the norm of each term's gradient in the parameters the terms share, as ``health/gradient_<term>``.

    Tells which term moves the encoder, whatever their values. Call it before ``backward``, which it leaves possible;
    it adds nothing to ``.grad``. A term that does not reach the parameters has norm 0.

    Args:
        terms: scalars with their graph (``StepOutput.terms``).
        parameters: of the encoder, see ``shared_parameters``; few, so that this costs little.

    Example:
        >>> w = nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> term_gradients({"a": w.square().sum(), "b": torch.zeros(())}, [w])
        {'health/gradient_a': tensor(10.), 'health/gradient_b': tensor(0.)}
    """
    norms = {}
    for name, term in terms.items():
        gradients: Sequence[Tensor | None] = ()
        if term.requires_grad and parameters:
            gradients = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
        flat = [gradient.detach().float().flatten() for gradient in gradients if gradient is not None]
        norm = torch.linalg.vector_norm(torch.cat(flat)) if flat else torch.zeros_like(term.detach())
        norms[f"health/gradient_{name}"] = norm
    return norms


def shared_parameters(exports: Mapping[str, nn.Module]) -> list[nn.Parameter]:
    """Return the weights of the encoder's deepest level: every term that trains the encoder's depth goes through them.

    Args:
        exports: of a method; its ``encoder``, or that of its ``segmenter``. Without either there is nothing to return.
    """
    part = exports.get("encoder", getattr(exports.get("segmenter"), "encoder", None))
    if part is None:
        return []
    levels = getattr(part, "levels", None)
    deepest = levels[-1] if isinstance(levels, nn.ModuleList) and len(levels) else part
    return [weight for weight in deepest.parameters() if weight.requires_grad and weight.ndim > 1]
