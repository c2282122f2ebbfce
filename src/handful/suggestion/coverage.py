"""How well chosen cases stand for all others, and how well as many random ones would: no choice without that band."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

DRAWS = 200
"""Random choices that the band is made of."""


@dataclass(frozen=True, kw_only=True)
class Band:
    """One number of the suggestion beside the same number of random draws.

    Attributes:
        suggested: of the suggestion.
        mean: over random draws.
        low: their 5th percentile.
        high: their 95th percentile.
        better: share of random draws that are smaller (better) than the suggestion, ties counted half.
    """

    suggested: float
    mean: float
    low: float
    high: float
    better: float

    @property
    def verdict(self) -> str:
        """Say how the suggestion compares, in words."""
        if self.suggested < self.low:
            return "better than 95 % of random draws"
        if self.suggested > self.high:
            return "worse than 95 % of random draws"
        return "within the band of random draws, so no evidence of an advantage"


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Distances from the candidates to the nearest labelled or suggested case; 1 is that of two random cases.

    Attributes:
        mean: mean distance.
        largest: distance of the candidate that is covered worst.
        before: mean distance to the labelled cases alone; None without any.
        draws: random draws in the bands.
    """

    mean: Band
    largest: Band
    before: float | None
    draws: int


def radii(
    points: NDArray[np.float64], candidates: Sequence[int], covered: Sequence[int]
) -> NDArray[np.float64]:
    """Return the distance from each candidate to the nearest covered case.

    Args:
        points: (N, E) of all cases.
        candidates: indices of the cases without a label.
        covered: indices of labelled and chosen cases, at least one.
    """
    apart = cdist(points[list(candidates)], points[list(covered)])
    return np.asarray(apart.min(axis=1), np.float64)


def random_choices(
    candidates: Sequence[int], patients: Sequence[str], count: int, *, draws: int = DRAWS, seed: int = 0
) -> list[list[int]]:
    """Draw ``count`` different patients and one case of each, ``draws`` times.

    Args:
        candidates: indices of the cases without a label.
        patients: of each case, by index.
    """
    of_patient: dict[str, list[int]] = {}
    for index in candidates:
        of_patient.setdefault(patients[index], []).append(index)
    names = sorted(of_patient)
    generator = np.random.default_rng((seed, 1))  # another stream than k-means draws from
    return [
        [
            of_patient[names[p]][int(generator.integers(len(of_patient[names[p]])))]
            for p in generator.permutation(len(names))[:count]
        ]
        for _ in range(draws)
    ]


def compare(
    points: NDArray[np.float64],
    *,
    labelled: Sequence[int],
    candidates: Sequence[int],
    chosen: Sequence[int],
    patients: Sequence[str],
    draws: int = DRAWS,
    seed: int = 0,
) -> Coverage:
    """Measure the coverage of the chosen cases and of as many random ones."""
    to_candidates = cdist(points[list(candidates)], points[list(candidates)])
    place = {index: position for position, index in enumerate(candidates)}
    nearest = radii(points, candidates, labelled) if labelled else np.full(len(candidates), np.inf)

    def measured(choice: Sequence[int]) -> tuple[float, float]:
        apart = np.minimum(nearest, to_candidates[:, [place[index] for index in choice]].min(axis=1))
        return float(apart.mean()), float(apart.max())

    own = measured(chosen)
    random = np.array(
        [measured(c) for c in random_choices(candidates, patients, len(chosen), draws=draws, seed=seed)]
    )
    return Coverage(
        mean=_band(own[0], random[:, 0]),
        largest=_band(own[1], random[:, 1]),
        before=float(nearest.mean()) if labelled else None,
        draws=draws,
    )


def _band(own: float, random: NDArray[np.float64]) -> Band:
    low, high = np.percentile(random, (5, 95))
    ties = np.isclose(random, own, rtol=1e-9, atol=1e-12)
    return Band(
        suggested=own,
        mean=float(random.mean()),
        low=float(low),
        high=float(high),
        better=float(((random < own) & ~ties).mean() + ties.mean() / 2),
    )
