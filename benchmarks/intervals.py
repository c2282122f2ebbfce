"""How often do a study's intervals hold the truth? Simulated scores of known mean, draws crossed with patients.

    python benchmarks/intervals.py [--studies 2000]

Beside the interval that `handful study` gives: percentiles of resampled draws and patients, and of resampled patients
alone, as if the draws of labels at hand were all there are.
"""

import argparse

import numpy as np

from handful.studies.statistics import estimate

CELLS = [
    # draws, patients, standard deviations over draws, over patients, and of what is peculiar to both
    (3, 20, (0.04, 0.04, 0.02)),
    (3, 40, (0.04, 0.02, 0.01)),
    (3, 40, (0.01, 0.06, 0.03)),
    (5, 20, (0.03, 0.05, 0.05)),
    (5, 40, (0.04, 0.02, 0.01)),
]
RESAMPLES = 500


def percentiles(table: np.ndarray, rng: np.random.Generator, *, draws: bool) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean of (draws, patients) when patients, and draws, are resampled."""
    d, p = table.shape
    by_patient = rng.multinomial(p, np.full(p, 1 / p), RESAMPLES) / p
    by_draw = (
        rng.multinomial(d, np.full(d, 1 / d), RESAMPLES) / d if draws else np.full((RESAMPLES, d), 1 / d)
    )
    means = np.einsum("rd,dp,rp->r", by_draw, table, by_patient)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--studies", type=int, default=2000, help="simulated, each cell")
    count = parser.parse_args().studies
    print(
        "| draws | patients | sd over draws, patients, both | handful | percentiles of both | patients alone |"
    )
    print("|---|---|---|---|---|---|")
    for draws, patients, sd in CELLS:
        rng, held = np.random.default_rng(0), np.zeros(3)
        for _ in range(count):
            table = rng.normal(0, sd[0], (draws, 1)) + rng.normal(0, sd[1], (1, patients))
            table = table + rng.normal(0, sd[2], table.shape)
            found = estimate(list(table), [str(i) for i in range(patients)], resamples=RESAMPLES)
            ends = [
                (found.low, found.high),
                percentiles(table, rng, draws=True),
                percentiles(table, rng, draws=False),
            ]
            held += [low <= 0 <= high for low, high in ends]
        cells = " | ".join(f"{share:.1%}" for share in held / count)
        print(f"| {draws} | {patients} | {', '.join(map(str, sd))} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
