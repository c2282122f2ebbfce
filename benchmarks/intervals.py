"""How often do a study's intervals hold the truth? Simulated scores of known mean, draws crossed with patients.

    python benchmarks/intervals.py [--studies 2000]

First the mean: beside the interval that `handful study` gives, percentiles of resampled draws and patients, and of
resampled patients alone, as if the draws of labels at hand were all there are. Then the difference to the control where
one arm invents a structure in every fifth case, so that the case counts in that arm alone. Then labels saved, with a
control at 2, 8 and 32 labels: beside handful's interval, percentiles of the number itself.
"""

import argparse
from collections.abc import Sequence

import numpy as np

from handful.studies.statistics import compare, equal_labels, estimate, labels_saved

CELLS = [
    # draws, patients, standard deviations over draws, over patients, and of what is peculiar to both
    (2, 40, (0.04, 0.02, 0.01)),
    (3, 20, (0.04, 0.04, 0.02)),
    (3, 40, (0.04, 0.02, 0.01)),
    (3, 40, (0.01, 0.06, 0.03)),
    (5, 20, (0.03, 0.05, 0.05)),
    (5, 40, (0.04, 0.02, 0.01)),
]
CONTROL = {2: 0.60, 8: 0.80, 32: 0.90}
METHODS = {0.85: 16.0, 0.70: 4.0}
"""Mean of a method -> labels at which the control has it, its curve linear in log(labels)."""
INVENTED = 0.2
RESAMPLES = 500

Ends = tuple[float, float]


def percentiles(table: np.ndarray, rng: np.random.Generator, *, draws: bool) -> Ends:
    """Return the 95 % percentile interval of the mean of (draws, patients) when patients, and draws, are resampled."""
    low, high = np.quantile(resampled([table], rng, draws=draws)[0], [0.025, 0.975])
    return float(low), float(high)


def resampled(tables: Sequence[np.ndarray], rng: np.random.Generator, *, draws: bool = True) -> np.ndarray:
    """Return (tables, resamples) means of tables (draws, patients), the same resamples for all."""
    d, p = tables[0].shape
    by_patient = rng.multinomial(p, np.full(p, 1 / p), RESAMPLES) / p
    by_draw = (
        rng.multinomial(d, np.full(d, 1 / d), RESAMPLES) / d if draws else np.full((RESAMPLES, d), 1 / d)
    )
    return np.einsum("rd,adp,rp->ar", by_draw, np.stack(tables), by_patient)


def simulated(rng: np.random.Generator, draws: int, patients: int, sd: Sequence[float]) -> np.ndarray:
    """Return scores (draws, patients) around 0."""
    table = rng.normal(0, sd[0], (draws, 1)) + rng.normal(0, sd[1], (1, patients))
    return table + rng.normal(0, sd[2], table.shape)


def of_the_mean(rng: np.random.Generator, draws: int, patients: int, sd: Sequence[float]) -> list[bool]:
    table = simulated(rng, draws, patients, sd)
    found = estimate(list(table), names(patients), resamples=RESAMPLES)
    by = [percentiles(table, rng, draws=draws_too) for draws_too in (True, False)]
    return [low <= 0 <= high for low, high in [(found.low, found.high), *by]]


def of_the_difference(rng: np.random.Generator, draws: int, patients: int, sd: Sequence[float]) -> list[bool]:
    """Half of the spread is shared; where the arm invents, it has 0 and the control no score."""
    shared = 0.8 + simulated(rng, draws, patients, sd)
    arm, control = (shared + 0.5 * simulated(rng, draws, patients, sd) for _ in range(2))
    absent = rng.random(patients) < 2 * INVENTED
    invents = absent & (rng.random((draws, patients)) < 0.5)
    control[:, absent] = np.nan
    arm[:, absent] = np.nan
    arm[invents] = 0.0
    # of what is scored in the arm, so much is invented
    share = INVENTED / (INVENTED + 1 - 2 * INVENTED)
    found = compare(list(arm), list(control), names(patients))
    return [found.low <= -0.8 * share <= found.high]


def of_labels_saved(rng: np.random.Generator, draws: int, patients: int, sd: Sequence[float]) -> list[bool]:
    """Half of the spread is shared by all arms and budgets: draws are nested, and patients the same."""
    shared, held = simulated(rng, draws, patients, sd), []
    for mean, truth in METHODS.items():
        arms = [m + shared + 0.5 * simulated(rng, draws, patients, sd) for m in (mean, *CONTROL.values())]
        method, *control = (dict(enumerate(arm)) for arm in arms)
        bounds = labels_saved(method, list(zip(CONTROL, control)), names(patients), resamples=RESAMPLES)
        assert bounds is not None
        drawn = [equal_labels(list(CONTROL), curve, own).labels for own, *curve in resampled(arms, rng).T]
        low, high = np.quantile(drawn, [0.025, 0.975])
        held.append([bounds[1].low <= truth <= bounds[1].high, low <= truth <= high])
    return list(np.mean(held, axis=0))


def names(patients: int) -> list[str]:
    return [str(i) for i in range(patients)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--studies", type=int, default=2000, help="simulated, each cell")
    count = parser.parse_args().studies
    tables = (
        (of_the_mean, ("handful", "percentiles of both", "patients alone")),
        (of_the_difference, ("difference, a fifth invented",)),
        (of_labels_saved, ("labels saved", "its percentiles")),
    )
    for simulate, heads in tables:
        print(f"| draws | patients | sd over draws, patients, both | {' | '.join(heads)} |")
        print("|---" * (3 + len(heads)) + "|")
        for draws, patients, sd in CELLS:
            rng = np.random.default_rng(0)
            held = np.mean([simulate(rng, draws, patients, sd) for _ in range(count)], axis=0)
            cells = " | ".join(f"{share:.1%}" for share in held)
            print(f"| {draws} | {patients} | {', '.join(map(str, sd))} | {cells} |", flush=True)
        print()


if __name__ == "__main__":
    main()
