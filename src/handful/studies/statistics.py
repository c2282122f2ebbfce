"""What a study may conclude: intervals over patients and draws of labels, paired tests, ranks, labels saved.

Scores of one arm at one budget are tables, one for each draw: (N cases, K classes), NaN where a class was not scored.
All draws have the same test cases, so patients and draws are crossed, and a mean over both varies for two reasons:
other patients could have been tested, other cases could have been labelled. The two variances are estimated apart and
added.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from handful.metrics.bootstrap import mean_score, resampled_means

LEVEL = 0.95
RESAMPLES = 2000
GRID = 200
"""Numbers of labels tried between the control's smallest and its largest budget, equal ratios apart."""

Table = NDArray[np.float64]


class Estimate(NamedTuple):
    """A mean over draws and patients.

    Attributes:
        mean: over draws of the mean over volumes, then over classes.
        sd: of the draws' means; NaN for one draw.
        low: lower end of the interval; NaN where neither draws nor patients vary.
        high: upper end.
        p: two-sided, that the mean is 0: for differences.
        draws: how many.
    """

    mean: float
    sd: float
    low: float
    high: float
    p: float
    draws: int


class Saved(NamedTuple):
    """At how many labels the control is as good.

    Attributes:
        labels: that number; the end of the control's curve where it lies beyond.
        where: ``inside`` the control's curve, ``below`` its smallest budget, or ``beyond`` its largest.
    """

    labels: float
    where: Literal["inside", "below", "beyond"]


class Bounds(NamedTuple):
    """How sure that number is.

    Attributes:
        low: lower end; 0 where the control's curve ends before, NaN where nothing can be said.
        high: upper end; infinite where the curve ends before.
        draws: that the method and the control at every budget have, on which both rest.
    """

    low: float
    high: float
    draws: int


def estimate(
    tables: Sequence[ArrayLike],
    patients: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Estimate:
    """Return mean, spread, interval and test of one arm's scores, or of its differences to another.

    With m_d the mean of draw d, D draws, P patients, the variance of the mean is taken as

        V = var_d(m_d) / D + P / (P - 1) * var_b(m*_b),

    where m*_b is the mean over draws in bootstrap resample b of patients. What is peculiar to a patient under one draw
    counts in both terms, so V errs to the large side. The interval is mean +- t sqrt(V), Student's t having the degrees
    of freedom of Welch and Satterthwaite for such a sum: with three draws, percentiles of resampled draws would cover
    the truth far too seldom (Hesterberg 2015, https://arxiv.org/abs/1411.5279).

    Args:
        tables: (N,) or (N, K), one a draw; rows are the same cases in all.
        patients: (N,) of each row.
        resamples: of the patients.
        seed: of the resamples.
        level: of the interval.

    Example:
        >>> round(estimate([[0.8, 0.6], [0.9, 0.7]], ["a", "b"]).mean, 3)
        0.75
    """
    means = [mean_score(table) for table in tables]
    return _concluded(
        means, _resampled(tables, patients, resamples=resamples, seed=seed), len(set(patients)), level=level
    )


def compare(
    tables: Sequence[ArrayLike], control: Sequence[ArrayLike], patients: Sequence[str], *, seed: int = 0
) -> Estimate:
    """Return the difference of an arm's mean to the control's, paired by draw and patient; see ``estimate``.

    It is the difference of the two means as ``estimate`` gives them: a structure that only one of the arms invents
    counts in that arm, as it does in its Dice. Both see the same resamples of patients.

    Args:
        tables: of the arm, one a draw.
        control: of the control, for the same draws.
        patients: of each row.
        seed: of the resamples.
    """
    means = [mean_score(a) - mean_score(b) for a, b in zip(tables, control, strict=True)]
    own, other = (_resampled(side, patients, resamples=RESAMPLES, seed=seed) for side in (tables, control))
    return _concluded(means, own - other, len(set(patients)), level=LEVEL)


def _resampled(
    tables: Sequence[ArrayLike], patients: Sequence[str], *, resamples: int, seed: int
) -> NDArray[np.float64]:
    """Return the mean over draws in each resample of patients; the same seed, the same resamples."""
    if not tables:
        return np.full(resamples, np.nan)
    drawn = [resampled_means(table, patients, resamples=resamples, seed=seed) for table in tables]
    over_draws: NDArray[np.float64] = np.mean(drawn, axis=0)
    return over_draws


def _concluded(
    of_draws: ArrayLike, of_resamples: NDArray[np.float64], patients: int, *, level: float
) -> Estimate:
    """Return what ``estimate`` does, from the mean of each draw and the mean in each resample of patients."""
    means = np.asarray(of_draws, float)
    mean = float(means.mean()) if len(means) else float("nan")
    sd = float(means.std(ddof=1)) if len(means) > 1 else float("nan")
    nothing = Estimate(mean, sd, float("nan"), float("nan"), float("nan"), len(means))
    if np.isnan(mean):
        return nothing
    terms = []  # (variance, degrees of freedom)
    if len(means) > 1:
        terms.append((sd**2 / len(means), len(means) - 1))
    if patients > 1:
        terms.append((float(np.nanvar(of_resamples, ddof=1)) * patients / (patients - 1), patients - 1))
    if not terms:
        return nothing
    # rounding is not variance: equal scores have none
    if sum(v for v, _ in terms) < 1e-20:
        return Estimate(mean, sd, mean, mean, 1.0 if abs(mean) < 1e-10 else 0.0, len(means))
    variance, freedom = _welch(terms)
    half = float(_half_width(terms, level))
    p = 2 * float(stats.t.sf(abs(mean) / np.sqrt(variance), freedom))
    return Estimate(mean, sd, mean - half, mean + half, p, len(means))


def _welch(terms: Sequence[tuple[Any, int]]) -> tuple[Any, Any]:
    """Return the sum of variances and its degrees of freedom; terms are (variance, degrees of freedom)."""
    variance = sum(v for v, _ in terms)
    return variance, variance**2 / np.maximum(sum(v**2 / df for v, df in terms), 1e-300)


def _half_width(terms: Sequence[tuple[Any, int]], level: float) -> Any:
    variance, freedom = _welch(terms)
    return stats.t.ppf((1 + level) / 2, np.maximum(freedom, 1.0)) * np.sqrt(variance)


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values corrected for having asked several questions; NaN stays and does not count.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6.

    Example:
        >>> [round(value, 3) for value in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    asked = [index for index, value in enumerate(p) if not np.isnan(value)]
    corrected = [float("nan")] * len(p)
    largest = 0.0
    for place, index in enumerate(sorted(asked, key=lambda index: p[index])):
        largest = max(largest, min(1.0, p[index] * (len(asked) - place)))
        corrected[index] = largest
    return corrected


def mean_ranks(budgets: Sequence[Sequence[Mapping[str, float]]]) -> dict[str, float]:
    """Return the mean rank of each method, 1 the best: over the draws of a budget, then over budgets; ties share.

    Args:
        budgets: for each, method -> score of every draw; draws that lack a method another has are left out.
    """
    everyone = {name for cells in budgets for cell in cells for name in cell}
    ranks: dict[str, list[float]] = {}
    for cells in budgets:
        whole = [cell for cell in cells if set(cell) == everyone]
        for name in everyone if whole else ():
            own = [1 + _beaten_by(cell, name) for cell in whole]
            ranks.setdefault(name, []).append(float(np.mean(own)))
    return {name: float(np.mean(found)) for name, found in ranks.items()}


def _beaten_by(cell: Mapping[str, float], name: str) -> float:
    """Return how many methods are better; one that is as good counts half."""
    others = [score for other, score in cell.items() if other != name]
    return sum((score > cell[name]) + 0.5 * (score == cell[name]) for score in others)


def equal_labels(labels: Sequence[float], dice: Sequence[float], reached: float) -> Saved:
    """Return the fewest labels with which the control reaches a Dice, its curve linear in the logarithm of labels.

    Args:
        labels: of the control's budgets, increasing.
        dice: of the control at each.
        reached: the Dice to look for.

    Example:
        >>> equal_labels([1, 100], [0.6, 0.8], 0.7)
        Saved(labels=10.0, where='inside')
    """
    if reached <= dice[0]:
        return Saved(float(labels[0]), "inside" if reached == dice[0] else "below")
    for left in range(len(labels) - 1):
        low, high = dice[left], dice[left + 1]
        if high >= reached > low:
            share = (reached - low) / (high - low)
            return Saved(float(labels[left] * (labels[left + 1] / labels[left]) ** share), "inside")
    return Saved(float(labels[-1]), "beyond")


def labels_saved(
    method: Mapping[int, ArrayLike],
    control: Sequence[tuple[float, Mapping[int, ArrayLike]]],
    patients: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> tuple[Saved, Bounds] | None:
    """Return how many labels the control needs to be as good, and an interval of that number.

    The interval is the test of ``estimate`` turned round: all numbers of labels n at which the method minus the control
    does not differ from 0, the control's mean linear in log n between its budgets. Draw d of one budget and draw d of
    another are nested, and differ less than any two; so differences are taken within draws, and those count that the
    method and the control at every budget have. Fieller 1954, "Some problems in interval estimation", Journal of the
    Royal Statistical Society B 16, has the idea for one ratio.

    Args:
        method: draw -> table of the method.
        control: (labels, draw -> table) of each of the control's budgets, by increasing labels.
        patients: of each row.
        resamples: of the patients.
        seed: of the resamples.
        level: of the interval.

    Returns:
        The number and its bounds; None where no draw is common to all.
    """
    common = sorted(set(method).intersection(*(tables for _, tables in control)))
    if not common:
        return None
    labels = [count for count, _ in control]
    sides = [[tables[draw] for draw in common] for tables in (method, *(tables for _, tables in control))]
    means = np.array([[mean_score(table) for table in side] for side in sides])
    drawn = np.array([_resampled(side, patients, resamples=resamples, seed=seed) for side in sides])
    reached, *curve = means.mean(axis=1)
    found = equal_labels(labels, curve, reached)
    grid = np.unique([*labels, found.labels, *np.geomspace(labels[0], labels[-1], GRID)])
    shares = np.stack([np.interp(np.log(grid), np.log(labels), row) for row in np.eye(len(labels))], axis=1)
    contrasts = np.hstack([np.ones((len(grid), 1)), -shares])  # method minus control at each n of the grid

    def variances(values: NDArray[np.float64]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = np.einsum("gi,ij,gj->g", contrasts, np.cov(values), contrasts)
        return np.maximum(found, 0)

    terms, people = [], len(set(patients))
    if len(common) > 1:
        terms.append((variances(means) / len(common), len(common) - 1))
    if people > 1:
        whole = drawn[:, ~np.isnan(drawn).any(axis=0)]
        terms.append((variances(whole) * people / (people - 1), people - 1))
    if not terms or np.isnan(reached):
        return found, Bounds(float("nan"), float("nan"), len(common))
    half = _half_width(terms, level)
    # rounding is no difference
    equal = grid[np.abs(contrasts @ means.mean(axis=1)) <= half + 1e-10]
    if not len(equal):
        low, high = (labels[-1], np.inf) if found.where == "beyond" else (0.0, labels[0])
    else:
        low = 0.0 if equal[0] == grid[0] else equal[0]
        high = np.inf if equal[-1] == grid[-1] else equal[-1]
    return found, Bounds(float(low), float(high), len(common))
