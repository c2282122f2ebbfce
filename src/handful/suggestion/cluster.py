"""Which images are typical: k-means over all of them, and from each cluster without a label the densest member.

Labels of typical cases teach more than labels of outliers as long as there are few (TypiClust).

References:
    Hacohen, Dekel and Weinshall, 2022. Active learning on a budget: opposite strategies suit high and low budgets.
    https://arxiv.org/abs/2202.02794
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

NEIGHBOURS = 20
"""Typicality is measured over this many nearest members of the cluster, and half of it at most (the authors' code)."""

SMALLEST = 6
"""A cluster with fewer members is a handful of outliers rather than a kind of image (the authors' code drops those)."""

RESTARTS = 20
"""k-means is started so often; the tightest result counts."""

ITERATIONS = 100

SMALL = 1e-5
"""Added to distances that divide."""

Rule = Literal["typical", "medoid"]
RULES: tuple[Rule, ...] = ("typical", "medoid")


@dataclass(frozen=True)
class Pick:
    """One chosen case.

    Attributes:
        index: of the case.
        cluster: its cluster.
        why: ``typical`` of a cluster without a label, or ``nearer``: it brings the others nearest to a label.
    """

    index: int
    cluster: int
    why: Literal["typical", "nearer"]


def kmeans(
    points: NDArray[np.float64], k: int, *, seed: int = 0, restarts: int = RESTARTS
) -> NDArray[np.intp]:
    """Divide (N, E) points into at most ``k`` clusters, numbered from 0, the largest first; deterministic in ``seed``.

    Lloyd's algorithm from k-means++ starts (Arthur and Vassilvitskii, 2007). There are no more clusters than different
    points, and none is empty.
    """
    generator = np.random.default_rng(seed)
    k = min(k, len(np.unique(points, axis=0)))
    best, least = np.zeros(len(points), np.intp), np.inf
    for _ in range(restarts):
        cluster, spread = _lloyd(points, _start(points, k, generator))
        if spread < least - 1e-12:
            best, least = cluster, spread
    sizes = np.bincount(best, minlength=k)
    firsts = [int(np.flatnonzero(best == c)[0]) for c in range(k)]
    order = sorted(range(k), key=lambda c: (-sizes[c], firsts[c]))
    rank = np.empty(k, np.intp)
    rank[order] = np.arange(k)
    return np.asarray(rank[best], np.intp)


def typicality(points: NDArray[np.float64], cluster: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return for each of (N, E) points how densely its cluster lies around it: 1 / mean distance to its neighbours.

    The neighbours are the ``NEIGHBOURS`` nearest other members of the cluster, at most half as many as it has members,
    at least one. A point that is alone has typicality 0; ``SMALL`` is added to the distance, which may be 0.
    """
    result = np.zeros(len(points))
    for c in np.unique(cluster):
        members = np.flatnonzero(cluster == c)
        if len(members) < 2:
            continue
        neighbours = max(1, min(NEIGHBOURS, len(members) // 2))
        apart = np.sort(cdist(points[members], points[members]), axis=1)[:, 1 : neighbours + 1].mean(axis=1)
        result[members] = 1 / (apart + SMALL)
    return result


def centrality(points: NDArray[np.float64], cluster: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return for each point 1 / mean distance to all other members of its cluster; the medoid's is the largest."""
    result = np.zeros(len(points))
    for c in np.unique(cluster):
        members = np.flatnonzero(cluster == c)
        if len(members) < 2:
            continue
        apart = cdist(points[members], points[members]).sum(axis=1) / (len(members) - 1)
        result[members] = 1 / (apart + SMALL)
    return result


def choose_typical(
    points: NDArray[np.float64],
    *,
    labelled: NDArray[np.bool_],
    patients: Sequence[str],
    count: int,
    seed: int = 0,
    rule: Rule = "typical",
) -> tuple[list[Pick], NDArray[np.intp]]:
    """Choose cases to label, one patient each: first typical ones of clusters without a label, the largest first.

    There are as many clusters as labelled cases and wanted ones together, so that enough hold none. Only clusters of
    at least ``SMALLEST`` members count; where a cluster's best member belongs to a patient who is chosen already, the
    next best is taken. When such clusters run out, because many are labelled or there are few images, each further
    case is the one that brings the others nearest to a labelled or chosen case on average (greedy k-medoids).

    Args:
        points: (N, E) of all cases.
        labelled: (N,) which have a label.
        patients: of each case.
        count: how many patients to choose; there must be as many without a chosen case.
        seed: of k-means.
        rule: ``typical`` takes the densest member (TypiClust), ``medoid`` the most central.

    Returns:
        The picks in order, and the cluster of each case.
    """
    cluster = kmeans(points, count + int(labelled.sum()), seed=seed)
    score = (typicality if rule == "typical" else centrality)(points, cluster)
    picks: list[Pick] = []
    for c in range(int(cluster.max()) + 1):
        members = np.flatnonzero(cluster == c).tolist()
        if len(picks) == count or len(members) < SMALLEST:  # the largest come first
            break
        free = _free(members, picks, patients)
        if free and not labelled[members].any():
            picks.append(Pick(max(free, key=lambda i: (score[i], -i)), c, "typical"))
    candidates = np.flatnonzero(~labelled).tolist()
    apart = cdist(points[candidates], points)
    while len(picks) < count:
        covered = [*np.flatnonzero(labelled).tolist(), *(pick.index for pick in picks)]
        nearest = apart[:, covered].min(axis=1) if covered else np.full(len(candidates), np.inf)
        free = _free(candidates, picks, patients)
        left = np.minimum(nearest[:, None], apart[:, free]).mean(axis=0)
        index = free[int(left.argmin())]
        picks.append(Pick(index, int(cluster[index]), "nearer"))
    return picks, cluster


def _free(cases: Sequence[int], picks: Sequence[Pick], patients: Sequence[str]) -> list[int]:
    """Return the cases whose patients are not chosen yet."""
    taken = {patients[pick.index] for pick in picks}
    return [i for i in cases if patients[i] not in taken]


def _start(points: NDArray[np.float64], k: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """Draw k points, each with a probability that grows with the squared distance to those drawn before."""
    chosen = [int(generator.integers(len(points)))]
    nearest = cdist(points, points[chosen]).min(axis=1) ** 2
    while len(chosen) < k:
        total = np.cumsum(nearest)
        chosen.append(int(np.searchsorted(total, generator.random() * total[-1], side="right")))
        nearest = np.minimum(nearest, cdist(points, points[chosen[-1:]])[:, 0] ** 2)
    return points[chosen].copy()


def _lloyd(points: NDArray[np.float64], centres: NDArray[np.float64]) -> tuple[NDArray[np.intp], float]:
    """Move the centres to the means of their points until nothing changes; return clusters and their inertia."""
    cluster = np.full(len(points), -1, np.intp)
    for _ in range(ITERATIONS):
        apart = cdist(points, centres)
        nearest = np.asarray(apart.argmin(axis=1), np.intp)
        for c in np.flatnonzero(np.bincount(nearest, minlength=len(centres)) == 0):
            # an empty cluster starts again at the point that lies worst, and leaves no other empty
            sizes = np.bincount(nearest, minlength=len(centres))
            distance = np.where(sizes[nearest] > 1, apart[np.arange(len(points)), nearest], -1.0)
            nearest[int(distance.argmax())] = c
        if (nearest == cluster).all():
            break
        cluster = nearest
        centres = np.stack([points[cluster == c].mean(axis=0) for c in range(len(centres))])
    own = centres[cluster]
    return cluster, float(((points - own) ** 2).sum())
