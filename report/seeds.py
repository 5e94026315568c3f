"""The whole search again for each of SEEDS, with another split and other minibatches.

Writes report/results/seeds.json, with the winners, and seeds.npz, with each model's lowest
validation cross-entropy.
"""

import numpy as np

from report.shared import data, read, rows_of, write
from softmax_sgd import Grid, evaluate, search, without_diverged

NAME = "seeds"
SEEDS = (0, 1, 2, 3, 4)


def measure() -> tuple[dict, dict]:
    X, y, X_test, y_test = data()
    grid = Grid(**read("results")["grid"])
    runs, lowest = [], []
    for seed in SEEDS:
        train, validation = rows_of(seed)
        curves, point, W, b = search(X, y, train, validation, grid, seed)
        best = {name: tried[i] for (name, tried), i in zip(grid.axes().items(), point, strict=True)}
        run = {"seed": seed, **best}
        for part, images in (
            ("validation", (X[validation], y[validation])),
            ("test", (X_test, y_test)),
        ):
            run[part] = {k: float(v) for k, v in evaluate(W, b, *images)._asdict().items()}
        runs.append(run)
        lowest.append(without_diverged(curves).min(axis=-1))
        print(f"  {run}", flush=True)
    return {"runs": runs}, {"lowest": np.stack(lowest)}


if __name__ == "__main__":
    write(NAME, measure)
