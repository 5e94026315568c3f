"""What becomes of a small α in float32 if the step of SGD is written in another way.

On paper, (1 - εα)W - εG is the same as W - ε(G + αW), where G is the gradient of the cross-entropy.
In float32, 1 - εα is rounded to a multiple of 6e-8, and W (1 - εα) in nearly the same direction in
every step.

Writes report/results/rounding.json.
"""

import numpy as np

from report.shared import arrays, data, read, rows_of, write
from softmax_sgd import gradients, minibatches, sgd

NAME = "rounding"
STEPS = 400


def measure() -> tuple[dict, dict]:
    X, y = data()[:2]
    results = read("results")
    best, (train, _) = results["best"], rows_of(results["seed"])
    batches = minibatches(train, best["batch_size"], np.random.default_rng(0))
    batches = [next(batches) for _ in range(STEPS)]
    model = arrays("model")
    rows = []
    for learning_rate in results["grid"]["learning_rates"]:
        row = {"learning_rate": learning_rate, "alpha": best["alpha"]}
        for name, train_model in (("decay", sgd_by_decay), ("gradient", sgd)):
            row[name] = effective_alpha(
                train_model, model["W"], model["b"], X, y, best["alpha"], learning_rate, batches
            )
        rows.append(row)
    return {"steps": STEPS, "rows": rows}, {}


def effective_alpha(train_model, W, b, X, y, alpha, learning_rate, batches) -> float:
    """The α that float32 training has in effect, divided by α.

    It is the effect of α on the trained W, in float32, as a multiple of that in float64.
    """

    def effect(dtype):
        given = W.astype(dtype), b.astype(dtype), X.astype(dtype, copy=False), y
        with_alpha, without = (
            train_model(*given, a, learning_rate, batches)[0] for a in (alpha, 0)
        )
        return with_alpha.astype(np.float64) - without

    right = effect(np.float64)
    return float((effect(np.float32) * right).sum() / np.square(right).sum())


def sgd_by_decay(W, b, X, y, alpha, learning_rate, batches):
    """The other form of the step: W shrinks by a factor."""
    W, b = W.copy(), b.copy()
    for rows in batches:
        dW, db = gradients(W, b, X[rows], y[rows], 0)
        W *= W.dtype.type(1 - learning_rate * alpha)
        W -= learning_rate * dW
        b -= learning_rate * db
    return W, b


if __name__ == "__main__":
    write(NAME, measure)
