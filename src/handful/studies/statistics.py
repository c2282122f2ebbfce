"""What a study may conclude: intervals over patients and draws of labels, paired tests, ranks, labels saved.

Scores of one arm at one budget are tables, one for each draw: (N cases, K classes), NaN where a class was not scored.
All draws have the same test cases, so patients and draws are crossed, and a mean over both varies for two reasons:
other patients could have been tested, other cases could have been labelled. The two variances are estimated apart and
added.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from handful.metrics.bootstrap import mean_score, resampled_means

LEVEL = 0.95
RESAMPLES = 2000

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
    of_draws: Sequence[float], of_resamples: NDArray[np.float64], patients: int, *, level: float
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
    variance = sum(v for v, _ in terms)
    # rounding is not variance: equal scores have none
    if variance < 1e-20:
        return Estimate(mean, sd, mean, mean, 1.0 if abs(mean) < 1e-10 else 0.0, len(means))
    freedom = variance**2 / sum(v**2 / df for v, df in terms)
    error = float(np.sqrt(variance))
    half = float(stats.t.ppf((1 + level) / 2, freedom)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, freedom))
    return Estimate(mean, sd, mean - half, mean + half, p, len(means))


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


def mean_ranks(cells: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean rank of each method, 1 the best; ties share their ranks.

    Args:
        cells: method -> score, one for each budget and draw; cells that lack a method another has are left out.
    """
    everyone = {name for cell in cells for name in cell}
    ranks: dict[str, list[float]] = {}
    for cell in cells:
        if set(cell) == everyone:
            for name, rank in zip(cell, stats.rankdata([-score for score in cell.values()])):
                ranks.setdefault(name, []).append(float(rank))
    return {name: float(np.mean(found)) for name, found in ranks.items()}


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
    method: Sequence[ArrayLike],
    control: Sequence[tuple[float, Sequence[ArrayLike]]],
    patients: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> tuple[Saved, float, float]:
    """Return how many labels the control needs to be as good, and a bootstrap interval of that number.

    Each resample takes the same patients, and the same draws where the budgets have as many, for the method and the
    control at all budgets: pairing is kept.

    Args:
        method: tables of the method, one a draw.
        control: (labels, tables) of each of the control's budgets, by increasing labels.
        patients: of each row.
        resamples: of patients and draws together.
        seed: of the resamples.
        level: of the percentile interval.

    Returns:
        The number and the ends of its interval; ends beyond the control's curve are the curve's.
    """
    labels = [count for count, _ in control]

    def mean(tables: Sequence[ArrayLike]) -> float:
        return float(np.mean([mean_score(table) for table in tables]))

    found = equal_labels(labels, [mean(tables) for _, tables in control], mean(method))
    everyone = [method, *(tables for _, tables in control)]
    drawn = [_both_resampled(tables, patients, resamples=resamples, seed=seed) for tables in everyone]
    counts = [
        equal_labels(labels, curve, reached).labels
        for reached, *curve in zip(*drawn)
        if not np.isnan([reached, *curve]).any()
    ]
    if not counts:
        return found, float("nan"), float("nan")
    low, high = np.quantile(counts, [(1 - level) / 2, (1 + level) / 2])
    return found, float(low), float(high)


def _both_resampled(
    tables: Sequence[ArrayLike], patients: Sequence[str], *, resamples: int, seed: int
) -> NDArray[np.float64]:
    """Return means of resamples of draws and patients at once; as many draws, the same resamples."""
    by_draw = np.stack([resampled_means(t, patients, resamples=resamples, seed=seed) for t in tables])
    chosen = np.random.default_rng(seed + 1).integers(len(tables), size=(len(tables), resamples))
    picked: NDArray[np.float64] = np.take_along_axis(by_draw, chosen, axis=0).mean(axis=0)
    return picked
