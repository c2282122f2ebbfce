"""Is a suggested choice of labels better than a random one? Measured without training, in a minute or two.

    python benchmarks/suggest.py DATA_FOLDER                 # Task04_Hippocampus and ACDC inside it
    python benchmarks/suggest.py DATA_FOLDER --train OUT     # hours: trains short runs on each choice instead
    python benchmarks/suggest.py DATA_FOLDER --only Task04_Hippocampus --ask RUN    # minutes: does a run's doubt tell?

Two measures of a choice. *Coverage*: the mean distance of a case to the nearest chosen one, in the features that the
choice was made from. *Transfer*: every other case gets the label map of its nearest chosen case, the volumes laid
centre on centre; the mean Dice of these copies, over cases and structures, says how well so few labels stand for the
rest before any network learns. Nearest is by the features, so that no label but the chosen ones is used.

The cases that seeds 0 and 1 hold out for other benchmarks (``--test 40``) take no part. One choice is one sample, so it
is repeated in random halves of the pool, by patient: the suggestion of that half against its own random draws.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.stats import spearmanr

from handful.data.cases import Case, Dataset
from handful.data.discover import open_dataset
from handful.data.io import read_geometry, read_label
from handful.data.resampling import grid_order, to_grid
from handful.data.splits import make_splits
from handful.inference.predict import predict
from handful.metrics.evaluate import evaluate
from handful.suggestion.cluster import RULES, choose_typical
from handful.suggestion.coverage import radii, random_choices
from handful.suggestion.features import averaging, intensity_features, principal_components
from handful.training.run import train

SETS = ("Task04_Hippocampus", "ACDC")
HELD_OUT = "40"
RAS = (0, 1, 2)


class Pool(NamedTuple):
    """The cases of one set: their features' components, patients, and the Dice of each label copied onto each other."""

    cases: list[Case]
    features: NDArray[np.float64]
    patients: list[str]
    dice: NDArray[np.float64]


def load(folder: Path, threads: int) -> Pool:
    """Read the pool of a set: images for the features, labels for the measure."""
    dataset = open_dataset(folder)
    aside = {name for seed in (0, 1) for name in make_splits(dataset, test=HELD_OUT, seed=seed).test}
    patients = {case.patient for case in dataset.cases if case.name in aside}
    cases = [case for case in dataset.labelled if case.patient not in patients]
    return Pool(
        cases,
        intensity_features(cases, threads=threads),
        [case.patient for case in cases],
        copied(dataset, cases),
    )


def copied(dataset: Dataset, cases: list[Case]) -> NDArray[np.float64]:
    """Return (N, N): mean Dice over structures of the label of case j laid on that of case i, centre on centre."""
    geometry = [read_geometry(case.images[0]) for case in cases]
    orders = [grid_order(grid.affine, RAS)[0] for grid in geometry]
    spacing = np.array([[g.spacing_mm[a] for a in order] for g, order in zip(geometry, orders)])
    extent = spacing * [[g.shape[a] for a in order] for g, order in zip(geometry, orders)]
    size, cell = np.median(extent, axis=0), np.median(spacing, axis=0)
    cells = np.round(size / cell).astype(int)
    values = [value for value in dataset.label_names if value]
    flat = np.zeros((len(values), len(cases), int(np.prod(cells))), np.float32)
    for number, case in enumerate(cases):
        label = read_label(case.label)
        array = to_grid(label.array[0], label.affine, RAS)
        for k, value in enumerate(values):
            mask = (array == value).astype(np.float64)
            for axis in range(3):
                weights = averaging(mask.shape[axis], extent[number][axis] / size[axis], int(cells[axis]))
                if extent[number][axis] < size[axis]:  # beyond the volume there is no label
                    centres = (np.arange(cells[axis]) + 0.5) / cells[axis] - 0.5
                    weights[np.abs(centres) > extent[number][axis] / size[axis] / 2] = 0
                mask = np.moveaxis(np.tensordot(weights, mask, (1, axis)), 0, axis)
            flat[k, number] = mask.ravel() > 0.5
    scores = []
    for own in flat:
        sizes = own.sum(axis=1)
        both = sizes[:, None] + sizes[None]
        scores.append(np.where(both > 0, 2 * (own @ own.T) / np.maximum(both, 1), np.nan))
    return np.asarray(np.nanmean(scores, axis=0), np.float64)


def transfer(pool: Pool, points: NDArray[np.float64], members: list[int], chosen: list[int]) -> float:
    """Return the mean Dice of the members that are of no chosen patient, each with its nearest chosen case's label."""
    taken = {pool.patients[i] for i in chosen}
    rest = [i for i in members if pool.patients[i] not in taken]
    nearest = cdist(points[rest], points[chosen]).argmin(axis=1)
    return float(pool.dice[rest, np.asarray(chosen)[nearest]].mean())


def measured(pool: Pool, members: list[int], count: int, rule: str, draws: int, seed: int) -> dict[str, Any]:
    """Measure the suggestion among ``members`` and as many random choices."""
    inside = principal_components(pool.features[members])
    points = np.zeros((len(pool.cases), inside.shape[1]))
    points[members] = inside
    patients = [pool.patients[i] for i in members]
    picks, _ = choose_typical(
        inside, labelled=np.zeros(len(members), bool), patients=patients, count=count, seed=seed, rule=rule
    )
    suggested = [members[pick.index] for pick in picks]
    random = random_choices(members, pool.patients, count, draws=draws, seed=seed)
    result: dict[str, Any] = {"chosen": [pool.cases[i].name for i in suggested]}
    for name, value in (
        ("coverage", lambda chosen: float(radii(points, members, chosen).mean())),
        ("transfer", lambda chosen: transfer(pool, points, members, chosen)),
    ):
        result[name] = {"suggested": value(suggested), "random": [value(choice) for choice in random]}
    return result


def halves(pool: Pool, count: int, rule: str, draws: int, repeats: int) -> dict[str, NDArray[np.float64]]:
    """Return, for each random half of the patients, the suggestion minus the mean of its random draws."""
    names = sorted(set(pool.patients))
    generator = np.random.default_rng(0)
    gaps: dict[str, list[float]] = {"coverage": [], "transfer": []}
    for repeat in range(repeats):
        half = {names[i] for i in generator.permutation(len(names))[: len(names) // 2]}
        members = [i for i, patient in enumerate(pool.patients) if patient in half]
        found = measured(pool, members, count, rule, draws, repeat)
        for name in gaps:
            gaps[name].append(found[name]["suggested"] - np.mean(found[name]["random"]))
    return {name: np.array(values) for name, values in gaps.items()}


def train_choices(data: Path, out: Path, pool: Pool, count: int, arguments: argparse.Namespace) -> str:
    """Train the control on each rule's suggestion and on each random choice; score the cases that seed 0 holds out."""
    points, members = principal_components(pool.features), list(range(len(pool.cases)))
    choices: dict[str, list[int]] = {}
    for rule in RULES:
        none = np.zeros(len(members), bool)
        picks, _ = choose_typical(points, labelled=none, patients=pool.patients, count=count, rule=rule)
        choices[rule] = [pick.index for pick in picks]
    random = random_choices(members, pool.patients, count, draws=arguments.draws)
    choices |= {f"random-{number}": choice for number, choice in enumerate(random)}
    dice = {}
    for name, choice in choices.items():
        run = out / f"{data.name}-{count}" / name
        names = run.with_suffix(".txt")
        names.parent.mkdir(parents=True, exist_ok=True)
        names.write_text("".join(f"{pool.cases[i].name}\n" for i in choice))
        train(
            data, run, method="supervised", labels=f"@{names}", test=HELD_OUT, seed=0, steps=arguments.steps,
            set_=arguments.set, threads=arguments.threads,
        )  # fmt: skip
        if not (run / "summary.json").exists():
            predict([run], data, run / "predictions", held_out_only=True)
            evaluate(run / "predictions", data, out=run)
        dice[name] = json.loads((run / "summary.json").read_text())["mean"]["dice"]
    drawn = np.array([value for name, value in dice.items() if name.startswith("random")])
    said = "; ".join(
        f"{rule} {dice[rule]:.3f}, better than {(dice[rule] > drawn).sum()} of {len(drawn)}" for rule in RULES
    )
    spread = f"{drawn.mean():.3f}, sd {drawn.std(ddof=1):.3f}, {drawn.min():.3f} to {drawn.max():.3f}"
    return f"{said}; random {spread}"


def asked(pool: Pool, run: Path) -> str:
    """Return how a run's uncertainty about cases it did not learn from goes with their Dice, structure by structure."""
    from handful.data.io import read_image
    from handful.data.preprocess import prepare
    from handful.inference.model import load_model
    from handful.suggestion.warm import class_uncertainty

    model = load_model(run)
    used = {*model.metadata["labelled"], *model.metadata.get("labels_used", [])}
    cases = [case for case in pool.cases if case.name not in used]
    doubt, dice = [], []
    for case in cases:
        prepared = prepare(read_image(case.images), read_label(case.label), model.plan)
        probabilities = model.probabilities(prepared.image)
        doubt.append(class_uncertainty(probabilities))
        found = probabilities.argmax(axis=0)
        scores = []
        for k in range(1, len(probabilities)):
            mine, theirs = found == k, prepared.label == k
            both = mine.sum() + theirs.sum()
            scores.append(2 * (mine & theirs).sum() / both if both else np.nan)
        dice.append(scores)
    told = []
    for k, name in enumerate(model.plan.label_names[1:]):
        unsure, score = np.array(doubt)[:, k], np.array(dice)[:, k]
        seen = np.isfinite(score)
        correlation = spearmanr(unsure[seen], score[seen]).statistic
        most = np.argsort(-unsure[seen])[: max(1, seen.sum() // 10)]
        told.append(
            f"{name}: Spearman {correlation:+.2f}, Dice {score[seen].mean():.3f}, of the most uncertain tenth "
            f"{score[seen][most].mean():.3f}"
        )
    return f"{len(cases)} cases; " + "; ".join(told)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", nargs="*", default=SETS, choices=SETS)
    parser.add_argument("--counts", nargs="*", type=int, default=[2, 5, 10])
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=100, help="random halves of the pool")
    parser.add_argument("--train", type=Path, metavar="OUT", help="only train on each choice; hours")
    parser.add_argument(
        "--ask", type=Path, metavar="RUN", help="only compare a segmenter's doubt with its Dice"
    )
    parser.add_argument("--steps", type=int, default=300, help="of each training")
    parser.add_argument("--set", nargs="*", default=[], help="settings of each training")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.ask:
        for name in arguments.only:
            print(f"{name}: {asked(load(arguments.data / name, arguments.threads), arguments.ask)}")
        return
    if arguments.train:
        for name in arguments.only:
            pool = load(arguments.data / name, arguments.threads)
            for count in arguments.counts:
                said = train_choices(arguments.data / name, arguments.train, pool, count, arguments)
                print(f"{name}, trained on {count}: {said}", flush=True)
        return
    print(
        "| set, labels | rule | measure | suggested | random: mean, sd, range | halves: mean gain, sd, share won |"
    )
    print("|---|---|---|---|---|---|")
    for name in arguments.only:
        pool = load(arguments.data / name, arguments.threads)
        for count in arguments.counts:
            for rule in RULES:
                whole = measured(pool, list(range(len(pool.cases))), count, rule, arguments.draws, 0)
                gaps = halves(pool, count, rule, arguments.draws, arguments.repeats)
                for measure, better in (("coverage", -1), ("transfer", 1)):
                    random = np.array(whole[measure]["random"])
                    gain = better * gaps[measure]
                    print(
                        f"| {name} ({len(pool.cases)} cases), {count} | {rule} | {measure} "
                        f"| {whole[measure]['suggested']:.3f} | {random.mean():.3f}, {random.std(ddof=1):.3f}, "
                        f"{random.min():.3f}-{random.max():.3f} | {gain.mean():+.3f}, {gain.std(ddof=1):.3f}, "
                        f"{100 * (gain > 0).mean():.0f} % |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
