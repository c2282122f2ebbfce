"""Intervals of a mean score by drawing patients again and again, all volumes of a patient together."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Difference(NamedTuple):
    """A paired difference of two means.

    Attributes:
        mean: a minus b.
        low: lower end of its bootstrap interval; NaN with fewer than two patients.
        high: upper end.
        p: two-sided p-value when the two are exchanged on patients at random; 1 with fewer than two patients.
    """

    mean: float
    low: float
    high: float
    p: float


def mean_score(values: ArrayLike) -> float:
    """Return the mean over volumes of each class, then over classes; unscored (NaN) entries are left out.

    Args:
        values: (N,) one class, or (N, K).
    """
    columns = _columns(values)
    everyone = np.zeros(len(columns), np.intp)
    return float(_means(np.ones((1, 1)), *_group_totals(columns, everyone))[0])


def bootstrap_mean(
    values: ArrayLike, groups: Sequence[str], *, resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Return the percentile interval of ``mean_score`` when patients are drawn with replacement.

    Args:
        values: (N,) scores of volumes, or (N, K) with one column a class; NaN where a class was not scored.
        groups: (N,) patient of each volume.
        resamples: number of draws.
        seed: of the draws; the same seed gives the same interval.
        level: share of the draws inside the interval.

    Returns:
        Lower and upper end; (NaN, NaN) with fewer than two patients, about whom nothing can be said.
    """
    columns = _columns(values)
    index = _group_index(groups, len(columns))
    if len(columns) == 0 or index.max() == 0:
        return float("nan"), float("nan")
    weights = _draws(int(index.max()) + 1, resamples, seed)
    return _interval(_means(weights, *_group_totals(columns, index)), level)


def resampled_means(
    values: ArrayLike, groups: Sequence[str], *, resamples: int = 2000, seed: int = 0
) -> NDArray[np.float64]:
    """Return ``mean_score`` of each of many resamples of patients, all volumes of a patient together.

    Tables of the same patients see the same resamples, so that what they give can be averaged or subtracted.

    Args:
        values: (N,) or (N, K) scores; NaN where a class was not scored.
        groups: (N,) patient of each volume.
        resamples: number of draws with replacement.
        seed: of the draws.

    Returns:
        (resamples,) means; NaN where a resample holds nothing that was scored.
    """
    columns = _columns(values)
    index = _group_index(groups, len(columns))
    return _means(_draws(int(index.max()) + 1, resamples, seed), *_group_totals(columns, index))


def paired_bootstrap(
    a: ArrayLike,
    b: ArrayLike,
    groups: Sequence[str],
    *,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Difference:
    """Compare two models on the same volumes: difference of ``mean_score``, its interval, and a test.

    The mean is the difference of the two means: a structure that only one of the models invents counts in that model.
    The p-value exchanges the models on whole patients at random: under the null hypothesis that changes nothing.

    Args:
        a: (N,) or (N, K) scores of one model.
        b: scores of the other, same shape and order.
        groups: (N,) patient of each volume.
        resamples: number of draws and of exchanges.
        seed: of both.
        level: share of the draws inside the interval.
    """
    first, second = _columns(a), _columns(b)
    if first.shape != second.shape:
        raise ValueError(f"paired scores must have one shape, found {first.shape} and {second.shape}")
    mean = mean_score(first) - mean_score(second)
    index = _group_index(groups, len(first))
    if len(first) == 0 or index.max() == 0:
        return Difference(mean, float("nan"), float("nan"), 1.0)
    count = int(index.max()) + 1
    sides = [_group_totals(side, index) for side in (first, second)]
    drawn = _draws(count, resamples, seed)
    low, high = _interval(_means(drawn, *sides[0]) - _means(drawn, *sides[1]), level)
    kept = np.random.default_rng(seed).choice((0.0, 1.0), size=(resamples, count))
    both = [np.vstack(parts) for parts in zip(*sides)]
    exchanged = _means(np.hstack([kept, 1 - kept]), *both) - _means(np.hstack([1 - kept, kept]), *both)
    # rounding must not make the observed difference look rarer than its own mirror image; no number is no evidence
    extreme = int((~(np.abs(exchanged) < abs(mean) * (1 - 1e-9))).sum())
    return Difference(mean, low, high, (1 + extreme) / (1 + resamples))


def _columns(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, np.float64)
    return array[:, None] if array.ndim == 1 else array


def _group_index(groups: Sequence[str], length: int) -> NDArray[np.intp]:
    if len(groups) != length:
        raise ValueError(f"{length} values need as many groups, found {len(groups)}")
    return np.unique(np.asarray(list(groups), str), return_inverse=True)[1].astype(np.intp)


def _group_totals(
    columns: NDArray[np.float64], index: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return sums and counts of the scored entries of each patient and class: (G, K) each."""
    scored = ~np.isnan(columns)
    totals = np.zeros((int(index.max(initial=0)) + 1, columns.shape[1]))
    counts = np.zeros_like(totals)
    np.add.at(totals, index, np.where(scored, columns, 0.0))
    np.add.at(counts, index, scored)
    return totals, counts


def _draws(count: int, resamples: int, seed: int) -> NDArray[np.float64]:
    """Return how often each patient is drawn: (resamples, count), every row summing to ``count``."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(count, np.full(count, 1.0 / count), size=resamples).astype(np.float64)


def _means(
    weights: NDArray[np.float64], totals: NDArray[np.float64], counts: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the mean over classes of the weighted mean over volumes, one a row of ``weights``; NaN if none counts."""
    scored = weights @ counts
    present = np.broadcast_to(scored > 0, (len(weights), totals.shape[1]))
    means = np.where(present, weights @ totals / np.where(scored > 0, scored, 1.0), 0.0)
    classes = present.sum(1)
    return np.where(classes > 0, means.sum(1) / np.maximum(classes, 1), np.nan)


def _interval(means: NDArray[np.float64], level: float) -> tuple[float, float]:
    means = means[~np.isnan(means)]
    if len(means) == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
