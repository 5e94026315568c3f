"""Measure what the report says beyond the grid search itself, into report/results.

    python softmax_sgd.py --output report/results     # first: the search that this builds upon
    python report/experiments.py [PART ...]           # then all of it, or parts by name

    seeds        the whole search again for each of SEEDS, which make the split and the minibatches
    optimum      the least loss that any weights reach, by L-BFGS in float64, for each of ALPHAS
    gradients    the gradients of the program against central differences
    logistic     gradient descent on examples that are all positive (problem 4)
    winner       the chosen model trained once more, and what it does on the test set

Each part writes PART.json (winner and logistic PART.npz, too) and depends on no other.
"""

import argparse
import json
import math
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import softmax_sgd as program  # noqa: I001  before NumPy, whose BLAS threads it sets
import numpy as np

RESULTS = Path(__file__).resolve().parent / "results"
DATA = RESULTS.parent.parent / "data"
SEEDS = (0, 1, 2, 3, 4)
ALPHAS = (0.0, 1e-5, 1e-4, 3e-4, 1e-3)
ITERATIONS = 1500  # of L-BFGS at most; without regularisation it would go on for much longer
H = 1e-5  # the half-width of the central differences
# The examples of problem 4(c), all positive, each pair with the w that the descent starts from.
PAIRS = {
    "opposite": ([[1, 1], [-1, -1]], [2, 1]),
    "unequal": ([[1, 1], [-0.25, -0.25]], [2, 1]),
    "apart": ([[1, 2], [2, 1]], [0, 0]),
}
STEPS = 10**6
LEARNING_RATE = 1.0  # of the descent on PAIRS, below 2/L for each
MISTAKES = 8


# --- What the parts share -------------------------------------------------------------------------


@cache
def data() -> tuple[np.ndarray, ...]:
    return program.load(DATA)


def search_results() -> dict:
    return json.loads((RESULTS / "results.json").read_text())


def divide(results: dict, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows to train on and those to validate, as softmax_sgd.py divides them."""
    train, validation = results["split"]["train"], results["split"]["validation"]
    n = train + validation
    return program.split(n, validation / n, np.random.default_rng(seed))


def measure(W, b, X, y) -> dict:
    return dict(zip(program.Curves._fields, map(float, program.evaluate(W, b, X, y)), strict=True))


# --- Five seeds -----------------------------------------------------------------------------------


def seeds() -> tuple[dict, dict]:
    X, y, X_test, y_test = data()
    results = search_results()
    grid = program.Grid(**results["grid"])
    runs = []
    for seed in SEEDS:
        train, validation = divide(results, seed)
        curves, weights = program.search(X, y, train, validation, grid, seed, workers=2)
        i, j, k, epoch = program.best_point(curves)
        run = {
            "seed": seed,
            "batch_size": grid.batch_sizes[i],
            "learning_rate": grid.learning_rates[j],
            "alpha": grid.alphas[k],
            "epochs": epoch + 1,
            "validation": measure(*weights[i, j, k], X[validation], y[validation]),
            "test": measure(*weights[i, j, k], X_test, y_test),
        }
        runs.append(run)
        program.say(f"  seed {seed}: test {run['test']}")
    return {"runs": runs, **{part: spread(runs, part) for part in ("validation", "test")}}, {}


def spread(runs: list[dict], part: str) -> dict:
    """Mean and sample standard deviation of each measure over the runs."""
    values = {name: [run[part][name] for run in runs] for name in program.Curves._fields}
    return {name: {"mean": np.mean(v), "sd": np.std(v, ddof=1)} for name, v in values.items()}


# --- The convex optimum ---------------------------------------------------------------------------


def optimum() -> tuple[dict, dict]:
    X, y, X_test, y_test = data()
    results = search_results()
    train, validation = divide(results, results["seed"])
    X64, y_train = X[train].astype(np.float64), y[train]

    def measured(alpha: float) -> dict:
        W, b, found = minimise(X64, y_train, alpha)
        parts = {"training": (X64, y_train), "validation": (X[validation], y[validation])}
        parts["test"] = X_test, y_test
        program.say(f"  alpha {alpha:g}: {found}")
        return {"alpha": alpha, **found} | {k: measure(W, b, *v) for k, v in parts.items()}

    with ThreadPoolExecutor(2) as pool:
        return {"iteration_limit": ITERATIONS, "rows": list(pool.map(measured, ALPHAS))}, {}


def minimise(
    X, y, alpha: float, iterations: int = ITERATIONS
) -> tuple[np.ndarray, np.ndarray, dict]:
    """(W, b) of the least loss that L-BFGS finds from zero, and how it ended."""
    from scipy.optimize import minimize

    m, c = X.shape[1], program.CLASSES

    def unpack(theta):
        theta = theta.astype(X.dtype, copy=False)
        return theta[: m * c].reshape(m, c), theta[m * c :]

    def objective(theta):
        W, b = unpack(theta)
        dW, db = program.gradients(W, b, X, y, alpha)
        return program.loss(W, b, X, y, alpha), np.concatenate([dW.ravel(), db])

    options = {"maxiter": iterations, "maxfun": 2 * iterations, "maxcor": 30}
    options |= {"ftol": 0, "gtol": 1e-5}
    end = minimize(objective, np.zeros(m * c + c), jac=True, method="L-BFGS-B", options=options)
    return *unpack(end.x), {
        "iterations": int(end.nit),
        "converged": bool(end.success),
        "loss": float(end.fun),
        "largest_derivative": float(np.abs(end.jac).max()),
    }


# --- The gradient check ---------------------------------------------------------------------------


def gradients() -> tuple[dict, dict]:
    """The largest relative error of any coordinate, or of any direction, in each setting."""
    rng = np.random.default_rng(0)
    X, y = rng.random((7, 5)), rng.integers(4, size=7)
    settings = {
        "alpha 0": ((5, 4), 0.0),
        "alpha 10": ((5, 4), 10.0),
        "stack": ((5, 4, 3), np.array([0.0, 1e-3, 10.0])),
    }
    errors = {
        name: coordinates(rng.normal(size=shape), rng.normal(size=shape[1:]), X, y, alpha)
        for name, (shape, alpha) in settings.items()
    }
    images, labels = data()[0][:1000].astype(np.float64), data()[1][:1000]
    W, b = rng.normal(size=(784, 10)) / 10, rng.normal(size=10)
    errors["images"] = max(
        direction(W, b, images, labels, alpha, rng) for alpha in (0.0, 10.0) for _ in range(5)
    )
    return {"h": H, "errors": errors, "largest": max(errors.values())}, {}


def coordinates(W, b, X, y, alpha) -> float:
    """The largest relative error of dW and db, each coordinate compared with its difference."""

    def differences(f, at):
        steps = H * np.eye(at.size).reshape(-1, *at.shape)
        return np.reshape([(f(at + step) - f(at - step)) / (2 * H) for step in steps], at.shape)

    def total(W, b):
        return program.loss(W, b, X, y, alpha).sum()

    dW, db = program.gradients(W, b, X, y, alpha)
    numeric_dW = differences(lambda V: total(V, b), W)
    numeric_db = differences(lambda a: total(W, a), b)
    return max(relative(dW, numeric_dW), relative(db, numeric_db))


def direction(W, b, X, y, alpha, rng) -> float:
    """The relative error of the derivative along one random direction of W and b."""
    V, a = rng.normal(size=W.shape), rng.normal(size=b.shape)
    dW, db = program.gradients(W, b, X, y, alpha)
    ahead = program.loss(W + H * V, b + H * a, X, y, alpha)
    behind = program.loss(W - H * V, b - H * a, X, y, alpha)
    return relative((dW * V).sum() + (db * a).sum(), (ahead - behind) / (2 * H))


def relative(analytic, numeric) -> float:
    return float(np.max(np.abs(analytic - numeric) / np.maximum(np.abs(analytic), np.abs(numeric))))


# --- Problem 4 ------------------------------------------------------------------------------------


def logistic() -> tuple[dict, dict]:
    """Descend on all of PAIRS, and keep w, b and the loss at about equal ratios of the step t."""
    X, w = (np.array(values, float) for values in zip(*PAIRS.values(), strict=True))
    b = np.zeros(len(X))
    kept = np.unique(np.geomspace(1, STEPS, 200).round().astype(int))
    path = {"t": kept, "w": [], "b": [], "loss": []}
    for t in range(1, STEPS + 1):
        w, b = descend(w, b, X, LEARNING_RATE)
        if t == kept[len(path["b"])]:
            path["w"].append(w)
            path["b"].append(b)
            path["loss"].append(np.log1p(np.exp(-logits(w, b, X))).mean(axis=-1))
    pairs = {
        name: {
            "examples": examples,
            "start": start,
            "largest_rate": 2 / smoothness(X[i]),
            "w": w[i].tolist(),
            "b": b[i],
            "loss": path["loss"][-1][i],
        }
        for i, (name, (examples, start)) in enumerate(PAIRS.items())
    }
    return {"steps": STEPS, "learning_rate": LEARNING_RATE, "pairs": pairs}, path


def logits(w, b, X) -> np.ndarray:
    """z of each example, (..., n), for w of (..., m), b of (...) and X of (..., n, m)."""
    return (X @ w[..., None])[..., 0] + np.expand_dims(b, -1)


def descend(w, b, X, learning_rate: float) -> tuple[np.ndarray, np.ndarray]:
    """One step down the gradient of the mean of log(1 + exp(-z)), all examples being positive."""
    error = 1 / (1 + np.exp(logits(w, b, X)))  # 1 - yhat
    w = w + learning_rate * (X * error[..., None]).mean(axis=-2)
    return w, b + learning_rate * error.mean(axis=-1)


def smoothness(X) -> float:
    """L of problem 4: the largest eigenvalue of the mean of x̃x̃ᵀ/4, for X of (n, m)."""
    extended = np.column_stack([X, np.ones(len(X))])
    return float(np.linalg.eigvalsh(extended.T @ extended / len(X)).max() / 4)


# --- The chosen model -----------------------------------------------------------------------------


def winner() -> tuple[dict, dict]:
    X, y, X_test, y_test = data()
    results = search_results()
    rows = divide(results, results["seed"])
    curves, alone = retrain(
        results["best"], results["seed"], results["grid"]["epochs"], X, y, *rows
    )
    with np.load(RESULTS / "model.npz") as model:
        W, b = model["W"], model["b"]
    apart = max(np.abs(alone[0] - W).max(), np.abs(alone[1] - b).max())
    facts, images = examine(W, b, X_test, y_test)
    return {"curves": curves, "apart": apart, **facts}, {"mistakes": images}


def retrain(best: dict, seed: int, epochs: int, X, y, train, validation) -> tuple[dict, tuple]:
    """Cross-entropy by epoch of the chosen model, trained by itself, and its chosen (W, b)."""
    rng = np.random.default_rng([seed, best["batch_size"]])
    W, b = np.zeros((X.shape[1], program.CLASSES), X.dtype), np.zeros(program.CLASSES, X.dtype)
    curves = {"training": [], "validation": []}
    for epoch in range(epochs):
        batches = program.minibatches(train, best["batch_size"], rng)
        W, b = program.sgd(W, b, X, y, best["alpha"], best["learning_rate"], batches)
        curves["training"].append(program.cross_entropy(W, b, X[train], y[train]))
        curves["validation"].append(program.cross_entropy(W, b, X[validation], y[validation]))
        if epoch + 1 == best["epochs"]:
            chosen = W, b
    return curves, chosen


def examine(W, b, X_test, y_test) -> tuple[dict, np.ndarray]:
    """What the model does on the test set, and the images of its most confident mistakes."""
    n = len(y_test)
    log_yhat = program.log_softmax(W, b, X_test)
    losses = -log_yhat[y_test, np.arange(n)].astype(np.float64)
    predicted = log_yhat.argmax(axis=0)
    confusion = np.zeros((program.CLASSES, program.CLASSES), int)
    np.add.at(confusion, (y_test, predicted), 1)
    confidence = np.exp(log_yhat.max(axis=0))
    wrong = np.flatnonzero(predicted != y_test)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")[:MISTAKES]]
    facts = {
        "accuracy": wilson(n - len(wrong), n),
        "cross_entropy": normal(losses),
        "confusion": confusion,
        "class_accuracy": np.diag(confusion) / confusion.sum(axis=1),
        "mistakes": [
            {"index": i, "true": y_test[i], "predicted": predicted[i], "probability": confidence[i]}
            for i in worst
        ],
    }
    return facts, np.round(X_test[worst] * 255).astype(np.uint8)


def wilson(successes: int, n: int, z: float = 1.959964) -> dict:
    """Wilson's 95% interval for a probability."""
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return {"estimate": p, "low": centre - half, "high": centre + half}


def normal(values: np.ndarray, z: float = 1.959964) -> dict:
    """The 95% interval for a mean by the normal approximation."""
    mean, half = values.mean(), z * values.std(ddof=1) / math.sqrt(len(values))
    return {"estimate": mean, "low": mean - half, "high": mean + half}


# --- Command line ---------------------------------------------------------------------------------


def write(part: str, facts: dict, arrays: dict) -> None:
    text = json.dumps(facts, indent=1, default=lambda value: value.tolist())
    with program.replacing(RESULTS / f"{part}.json") as file:
        file.write(text.encode() + b"\n")
    if arrays:
        with program.replacing(RESULTS / f"{part}.npz") as file:
            np.savez_compressed(file, **arrays)


def main() -> None:
    parts = {f.__name__: f for f in (winner, gradients, logistic, optimum, seeds)}
    parser = argparse.ArgumentParser(description="Measure what the report says.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(parts)}: all")
    chosen = parser.parse_args().parts or parts
    for part in chosen:
        if part not in parts:
            parser.error(f"{part!r} is none of {', '.join(parts)}")
        start = time.monotonic()
        program.say(part)
        write(part, *parts[part]())
        program.say(f"{part}: {time.monotonic() - start:.1f} s")


if __name__ == "__main__":
    main()
