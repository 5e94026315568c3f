"""What float32 does to the results: the whole search in float64, beside that in float32.

Writes report/results/rounding.json.
"""

import numpy as np

from report.shared import arrays, data, read, rows_of, write
from softmax_sgd import Grid, Metrics, best_point, evaluate, search

NAME = "rounding"


def measure() -> tuple[dict, dict]:
    results, grid = read("results"), Grid(**read("results")["grid"])
    X, y, X_test, y_test = data()
    train, validation = rows_of(results["seed"])
    X64 = X.astype(np.float64)
    curves, point, W, b = search(X64, y, train, validation, grid, results["seed"])
    in_float32 = Metrics(*(arrays("curves")[name] for name in Metrics._fields))
    facts = {
        **differences(in_float32.cross_entropy, curves.cross_entropy, best_point(in_float32)),
        "same_winner": point == best_point(in_float32),
        "test": {k: float(v) for k, v in evaluate(W, b, X_test, y_test)._asdict().items()},
    }
    return facts, {}


def differences(ours: np.ndarray, right: np.ndarray, winner: tuple) -> dict:
    """The largest differences: of all points, of those with each alpha, and at the winner."""
    error = np.abs(ours - right)  # (n, ε, α, epoch)
    return {
        "largest": float(error.max()),
        "largest_by_alpha": error.max(axis=(0, 1, 3)).tolist(),
        "at_the_winner": float(error[winner]),
    }


if __name__ == "__main__":
    write(NAME, measure)
