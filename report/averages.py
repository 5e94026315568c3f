"""Is the winner luck? The chosen model by epoch on validation and test images, and the mean of its
weights, for each of SEEDS and each learning rate of the grid.

The batch size and alpha are those of the winner. After epoch t, the mean is taken over the second
half of all epochs, ⌊t/2⌋ + 1 to t, of W and b after every EVERY-th step (Polyak and Juditsky 1992).

Writes report/results/averages.json, and averages.npz with all metrics: the arrays `last` and `mean`
have the axes seed, part (validation, test), metric (cross-entropy, accuracy), learning rate, epoch.
"""

import itertools
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from report.seeds import SEEDS
from report.shared import data, read, rows_of, write
from softmax_sgd import CLASSES, evaluate, minibatches, sgd

NAME = "averages"
EVERY = 10  # steps


def measure() -> tuple[dict, dict]:
    results = read("results")
    best, grid = results["best"], results["grid"]
    X, y, X_test, y_test = data()

    def train(seed: int) -> tuple[np.ndarray, np.ndarray]:
        rows, validation = rows_of(seed)
        parts = (X[validation], y[validation]), (X_test, y_test)
        rng = np.random.default_rng([seed, best["batch_size"]])  # as the search does
        epochs = (minibatches(rows, best["batch_size"], rng) for _ in range(grid["epochs"]))
        return train_and_average(X, y, parts, best["alpha"], grid["learning_rates"], epochs)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        last, mean = map(np.stack, zip(*pool.map(train, SEEDS), strict=True))
    chosen = grid["learning_rates"].index(best["learning_rate"])
    facts = {
        "every": EVERY,
        "noisy_from": noisy_from(grid["epochs"]),
        "seeds": [
            {"seed": seed, **compare(last[i], mean[i], chosen)} for i, seed in enumerate(SEEDS)
        ],
    }
    return facts, {"last": last.astype(np.float32), "mean": mean.astype(np.float32)}


def train_and_average(X, y, parts, alpha, learning_rates, epochs) -> tuple[np.ndarray, np.ndarray]:
    """The metrics on each part after each of the epochs: of the last W and b, and of their mean.

    An item of `epochs` is an iterable of minibatches. All learning rates are trained as one stack.
    """
    K, m = len(learning_rates), X.shape[1]
    W, b = np.zeros((K, CLASSES, m), X.dtype), np.zeros((K, CLASSES), X.dtype)
    total_W, total_b, count = np.zeros(W.shape), np.zeros(b.shape), 0
    totals = [(total_W, total_b, count)]  # after each epoch
    last, mean = [], []
    for epoch, batches in enumerate(epochs, start=1):
        batches = iter(batches)
        while few := list(itertools.islice(batches, EVERY)):
            W, b = sgd(W, b, X, y, alpha, np.array(learning_rates), few)
            total_W, total_b, count = total_W + W, total_b + b, count + 1
        totals.append((total_W, total_b, count))
        before_W, before_b, before = totals[epoch // 2]
        mean_W = ((total_W - before_W) / (count - before)).astype(X.dtype)
        mean_b = ((total_b - before_b) / (count - before)).astype(X.dtype)
        last.append([evaluate(W, b, *part) for part in parts])
        mean.append([evaluate(mean_W, mean_b, *part) for part in parts])
    return np.stack(last, axis=-1), np.stack(mean, axis=-1)  # (part, metric, learning rate, epoch)


def noisy_from(epochs: int) -> int:
    """The epoch from which a curve is noise rather than progress: the last two thirds."""
    return epochs // 3 + 1


def compare(last, mean, chosen: int) -> dict:
    """For one seed: how the last weights and the mean do, and whether the parts move together."""
    validation, test = last[:, 0, chosen]  # (epoch)
    noisy = slice(noisy_from(len(test)) - 1, None)
    changes = np.diff(validation[noisy]), np.diff(test[noisy])
    facts = {"correlation_of_changes": float(np.corrcoef(changes)[0, 1])}
    for name, metrics in (("last", last), ("mean", mean)):
        validation = metrics[0, 0]  # (learning rate, epoch)
        facts[name] = {
            "lowest_by_learning_rate": validation.min(axis=-1).tolist(),
            "range_of_noisy_epochs": float(np.ptp(validation[chosen, noisy])),
            "after_all_epochs": {
                part: {
                    "cross_entropy": float(metrics[i, 0, chosen, -1]),
                    "accuracy": float(metrics[i, 1, chosen, -1]),
                }
                for i, part in enumerate(("validation", "test"))
            },
        }
    return facts


if __name__ == "__main__":
    write(NAME, measure)
