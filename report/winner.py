"""What the chosen model does on the test set, how large its weights are, and their sum over k.

Writes report/results/winner.json.
"""

import math

import numpy as np
from scipy.stats import binomtest

from report.shared import arrays, data, read, rows_of, write
from softmax_sgd import CLASSES, logits, loss

NAME = "winner"


def measure() -> tuple[dict, dict]:
    X, y, X_test, y_test = data()
    results, model = read("results"), arrays("model")
    W, b = model["W"], model["b"]
    train, _ = rows_of(results["seed"])
    facts = {
        **test_facts(W, b, X_test, y_test),
        "loss": float(loss(W, b, X[train], y[train], results["best"]["alpha"])),
        "norm_squared": float(np.square(W).sum()),
        "largest_sum": float(np.abs(W.sum(axis=0, dtype=np.float64)).max()),
    }
    return facts, {}


def test_facts(W, b, X_test, y_test) -> dict:
    """95% intervals of the two metrics, and the counts of true classes by predicted ones."""
    Z = logits(W.astype(np.float64), b, X_test)
    losses = np.logaddexp.reduce(Z, axis=0) - Z[y_test, np.arange(len(y_test))]
    predicted = Z.argmax(axis=0)
    confusion = np.zeros((CLASSES, CLASSES), int)
    np.add.at(confusion, (y_test, predicted), 1)
    accuracy = binomtest(int((predicted == y_test).sum()), len(y_test)).proportion_ci(
        method="wilson"
    )
    return {
        "cross_entropy": normal_interval(losses),
        "accuracy": {"low": float(accuracy.low), "high": float(accuracy.high)},
        "confusion": confusion.tolist(),
    }


def normal_interval(values: np.ndarray) -> dict:
    """The 95% interval of a mean by the normal approximation."""
    mean, error = values.mean(), values.std(ddof=1) / math.sqrt(len(values))
    return {"low": float(mean - 1.96 * error), "high": float(mean + 1.96 * error)}


if __name__ == "__main__":
    write(NAME, measure)
