"""Which images a trained model is unsure of, structure by structure, with less noise the more labels there are.

Like ClaSP PE: two thirds of the choices serve the structures in turn, the rest the mean over structures, and noise
keeps the ranking from being taken too seriously as long as few labels made the model. Unlike it, whole cases are chosen
instead of patches, at most one from each cluster of similar images, and the noise falls with the number of labels.

References:
    Lüth et al., 2026. Finally outshining the random baseline: a simple and effective solution for active learning in
    3D biomedical imaging (ClaSP PE). https://arxiv.org/abs/2601.13677
    Kirsch et al., 2023. Stochastic batch acquisition: a simple baseline for deep active learning (power noise).
    https://arxiv.org/abs/2106.12059
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from handful.data.cases import Case
from handful.data.io import read_image
from handful.data.preprocess import prepare, restore
from handful.errors import DataError, UsageError
from handful.inference.model import Model
from handful.inference.tta import entropy

STRATIFIED = 2 / 3
"""Share of the choices made structure by structure (0.66 in ClaSP PE)."""


@dataclass(frozen=True)
class Doubtful:
    """One chosen case.

    Attributes:
        index: of the case.
        structure: index of the structure it was chosen for, from 0; None for their mean.
        score: its uncertainty there, without noise, in [0, 1].
    """

    index: int
    structure: int | None
    score: float


def class_uncertainty(probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return (K - 1,): for each structure the mean predictive entropy of its voxels, in [0, 1].

    A voxel counts by the probability p_k that it belongs to the structure, so that no threshold decides and the large
    background, sure everywhere, does not drown the rest: sum(p_k H) / sum(p_k). A structure of probability 0
    everywhere gives 0.

    Args:
        probabilities: (K, *S), background first; of an ensemble, their average: its entropy holds both the members'
            own doubt and their disagreement.
    """
    doubt = entropy(probabilities)
    result = np.zeros(len(probabilities) - 1)
    for k, p in enumerate(probabilities[1:]):
        mass = float(p.sum(dtype=np.float64))
        if mass > 0:
            result[k] = float((p * doubt).sum(dtype=np.float64)) / mass
    return result


def predict_uncertainty(
    models: Sequence[Model],
    cases: Sequence[Case],
    *,
    tta: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> NDArray[np.float64]:
    """Return (N, K - 1): ``class_uncertainty`` of each case by the average of the models.

    Raises:
        UsageError: the models know different labels.
        DataError: images that cannot be read or do not fit the models; names each (five at most).
    """
    first = models[0].plan
    for model in models[1:]:
        if (model.plan.label_values, model.plan.label_names) != (first.label_values, first.label_names):
            raise UsageError(
                f"{models[0].run} and {model.run} know different labels ({', '.join(first.label_names)}; "
                f"{', '.join(model.plan.label_names)}); only runs of the same labels can be asked together."
            )
    rows, problems = [], []
    for number, case in enumerate(cases, start=1):
        try:
            rows.append(class_uncertainty(_average(models, case, tta=tta)))
        except DataError as error:
            problems.append(f"{case.name}: {error}")
        progress(number, len(cases))
    if problems:
        raise DataError(
            f"{len(problems)} of {len(cases)} images cannot be predicted:\n  " + "\n  ".join(problems[:5])
        )
    return np.stack(rows)


def choose_uncertain(
    scores: NDArray[np.float64],
    *,
    cluster: Sequence[int],
    patients: Sequence[str],
    count: int,
    power: float,
    seed: int = 0,
) -> list[Doubtful]:
    """Choose the most uncertain cases, one patient each and, as far as that goes, one cluster each.

    The first ``STRATIFIED`` of them (rounded up) go to the structures in turn, beginning with the one that is most
    uncertain on average; the rest to the mean over structures. A case is ranked by log(uncertainty) + Gumbel noise /
    ``power``, which draws it with probability proportional to uncertainty ** power.

    Args:
        scores: (N, structures) of the candidates.
        cluster: of each candidate.
        patients: of each candidate.
        count: how many; there must be as many patients.
        power: infinity is no noise.
        seed: of the noise.
    """
    generator = np.random.default_rng((seed, 2))
    table = np.column_stack([scores, scores.mean(axis=1)])
    noise = generator.gumbel(size=table.shape) / power
    ranked = np.log(np.maximum(table, np.finfo(np.float64).tiny)) + noise
    structures = scores.shape[1]
    turn = sorted(range(structures), key=lambda k: (-scores[:, k].mean(), k))
    stratified = math.ceil(STRATIFIED * count - 1e-9)
    chosen: list[Doubtful] = []
    while len(chosen) < count:
        number = len(chosen)
        column = turn[number % structures] if number < stratified else structures
        taken = {patients[pick.index] for pick in chosen}
        near = {cluster[pick.index] for pick in chosen}
        free = [i for i in range(len(scores)) if patients[i] not in taken]
        free = [i for i in free if cluster[i] not in near] or free
        best = max(free, key=lambda i: (ranked[i, column], -i))
        chosen.append(Doubtful(best, column if number < stratified else None, float(table[best, column])))
    return chosen


def _average(models: Sequence[Model], case: Case, *, tta: bool) -> NDArray[np.float32]:
    """Average the models' probabilities, on their common grid or else on the file's."""
    for model in models:
        if len(case.images) != len(model.plan.channels):
            raise DataError(
                f"it has {len(case.images)} channels, {model.run} was trained on {len(model.plan.channels)}."
            )
    image = read_image(case.images)
    prepared = [prepare(image, None, model.plan) for model in models]
    grid, axes = prepared[0].geometry.grid, models[0].plan.axes
    one_grid = all(p.geometry.grid == grid and m.plan.axes == axes for p, m in zip(prepared, models))
    total: NDArray[np.float32] | None = None
    for model, own in zip(models, prepared):
        member = model.probabilities(own.image, tta=tta)
        if not one_grid:
            member = restore(member, own.geometry, model.plan)
        total = member if total is None else total + member
    assert total is not None
    return total / np.float32(len(models))
