"""Models beside the grid: every batch size at every ratio of learning rate and batch size from that
of the winner on. Of these ratios, the grid itself has most with one batch size only.

alpha and the seed are those of the winner. Writes report/results/ratios.json.
"""

import math

import numpy as np

from report.shared import arrays, data, read, rows_of, write
from softmax_sgd import Grid, search, without_diverged

NAME = "ratios"


def measure() -> tuple[dict, dict]:
    results = read("results")
    best, grid, seed = results["best"], Grid(**results["grid"]), results["seed"]
    lowest = arrays("curves")["cross_entropy"][..., grid.alphas.index(best["alpha"]), :].min(-1)
    models = {  # of the grid: their lowest validation cross-entropies
        (batch_size, learning_rate): float(lowest[i, j])
        for i, batch_size in enumerate(grid.batch_sizes)
        for j, learning_rate in enumerate(grid.learning_rates)
    }
    n_per_epsilon = sorted({round(n / epsilon, 6) for n, epsilon in models})
    n_per_epsilon = [r for r in n_per_epsilon if r <= best["batch_size"] / best["learning_rate"]]
    X, y = data()[:2]
    train, validation = rows_of(seed)
    for batch_size in grid.batch_sizes:
        wanted = [float(f"{batch_size / ratio:.6g}") for ratio in n_per_epsilon]
        rates = tuple(sorted(rate for rate in wanted if (batch_size, rate) not in models))
        if not rates:
            continue
        more = Grid((batch_size,), rates, (best["alpha"],), epochs=grid.epochs)
        curves, _, _, _ = search(X, y, train, validation, more, seed)
        values = without_diverged(curves).min(axis=-1).ravel()
        models |= {(batch_size, rate): float(v) for rate, v in zip(rates, values, strict=True)}
    return {"alpha": best["alpha"], **describe(models, n_per_epsilon)}, {}


def describe(models: dict[tuple[int, float], float], n_per_epsilon: list[float]) -> dict:
    """All models; those of the first and of the last n/epsilon by n; and the spread of each.

    n/epsilon ascends, so its first value is the largest ratio.
    """
    rows = [
        {"batch_size": n, "learning_rate": epsilon, "lowest": value}
        for (n, epsilon), value in sorted(models.items())
    ]
    groups = [
        [row for row in rows if math.isclose(row["batch_size"] / row["learning_rate"], ratio)]
        for ratio in n_per_epsilon
    ]
    return {
        "models": rows,
        "n_per_epsilon": n_per_epsilon,
        "first": groups[0],
        "last": groups[-1],
        "spreads": [float(np.ptp([row["lowest"] for row in group])) for group in groups],
        "largest_n_is_worst": [
            max(group, key=lambda row: row["lowest"]) == group[-1] for group in groups
        ],
    }


if __name__ == "__main__":
    write(NAME, measure)
