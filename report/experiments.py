"""Measure what the report says beyond the grid search itself, into report/results.

    python softmax_sgd.py --output report/results     # first: the search that this builds upon
    python report/experiments.py [PART ...]           # then all of it, or parts by name

    winner       the chosen model trained once more, and what it does on the test set
    gradients    the gradients of the program against central differences
    logistic     gradient descent on examples that are all positive (problem 4)
    optimum      the least loss of any weights, for each of ALPHAS, and SPLIT_ALPHA on each split
    seeds        the whole search again for each of SEEDS, which make the split and the minibatches

Each part writes PART.json (winner and logistic PART.npz, too) and depends on no other.
"""

import argparse
import json
import math
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# One thread for each product, as in the program. BLAS reads this when NumPy is first imported.
for library in ("OPENBLAS_NUM", "MKL_NUM", "OMP_NUM", "VECLIB_MAXIMUM"):
    os.environ[f"{library}_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np  # noqa: E402

import softmax_sgd as program  # noqa: E402

RESULTS = Path(__file__).resolve().parent / "results"
SEEDS = (0, 1, 2, 3, 4)
ALPHAS = (1e-5, 1e-4, 3e-4, 1e-3)
H = 1e-5  # the half-width of the central differences
# The examples of problem 4(c), all positive, each pair with the w that the descent starts from.
PAIRS = {
    "opposite": ([[1, 1], [-1, -1]], [2, 2]),
    "unequal": ([[1, 1], [-0.25, -0.25]], [2, 1]),
    "apart": ([[1, 2], [2, 1]], [0, 0]),
}
STEPS = 10**6
LEARNING_RATE = 1.0  # of the descent on PAIRS, below 2/L for each
# Opposite examples x and -q x, as (q, norm(x)²), on which the rate of w is measured.
OPPOSITE = ((1, 2), (1, 0.5), (0.25, 2), (2, 1.5), (0.5, 1), (3, 0.2), (1, 1), (2, 0.25))
SPLIT_ALPHA = 3e-4  # of the optimum on each split
MISTAKES = 8


# --- What the parts share -------------------------------------------------------------------------


def data() -> tuple:
    """The data, and what the search found: X, y, X_test, y_test, results."""
    found = json.loads((RESULTS / "results.json").read_text())
    return *program.load(RESULTS.parents[1] / "data"), found


def divide(results: dict, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows to train on and those to validate, as softmax_sgd.py divides them."""
    train, validation = results["split"]["train"], results["split"]["validation"]
    n = train + validation
    return program.split(n, validation / n, np.random.default_rng(seed))


def measure(W, b, X, y) -> dict:
    return dict(zip(program.Curves._fields, map(float, program.evaluate(W, b, X, y))))


def unpack(theta: np.ndarray, m: int, c: int) -> tuple[np.ndarray, np.ndarray]:
    """The (W, b) of which `theta` is np.append(W, b)."""
    return theta[: m * c].reshape(m, c), theta[m * c :]


# --- The chosen model -----------------------------------------------------------------------------


def winner() -> tuple[dict, dict]:
    X, y, X_test, y_test, results = data()
    best, epochs = results["best"], results["grid"]["epochs"]
    train, validation = divide(results, results["seed"])
    curves = retrain(best, results["seed"], epochs, X, y, train, validation)
    with np.load(RESULTS / "model.npz") as model:
        W, b = model["W"], model["b"]
    facts, images = examine(W, b, X_test, y_test)
    facts["loss"] = float(program.loss(W, b, X[train], y[train], best["alpha"]))
    facts["norm_squared"] = float(np.square(W).sum())
    return facts | {"curves": curves}, {"mistakes": images}


def retrain(best: dict, seed: int, epochs: int, X, y, train, validation) -> dict:
    """Cross-entropy by epoch of the chosen model, trained by itself."""
    rng = np.random.default_rng([seed, best["batch_size"]])
    W, b = np.zeros((X.shape[1], program.CLASSES), X.dtype), np.zeros(program.CLASSES, X.dtype)
    parts = {"training": (X[train], y[train]), "validation": (X[validation], y[validation])}
    curves = {part: [] for part in parts}
    for _ in range(epochs):
        batches = program.minibatches(train, best["batch_size"], rng)
        W, b = program.sgd(W, b, X, y, best["alpha"], best["learning_rate"], batches)
        for part, images in parts.items():
            curves[part].append(float(program.cross_entropy(W, b, *images)))
    return curves


def examine(W, b, X_test, y_test) -> tuple[dict, np.ndarray]:
    """What the model does on the test set, and the images of its most confident mistakes."""
    n = len(y_test)
    yhat = program.softmax(W, b, X_test)
    predicted = yhat.argmax(axis=0)
    confusion = np.zeros((program.CLASSES, program.CLASSES), int)
    np.add.at(confusion, (y_test, predicted), 1)
    confidence = yhat.max(axis=0)
    wrong = np.flatnonzero(predicted != y_test)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")[:MISTAKES]]
    facts = {
        "accuracy": wilson(n - len(wrong), n),
        "cross_entropy": normal(losses(W, b, X_test, y_test)),
        "confusion": confusion.tolist(),
        "mistakes": {
            "index": worst.tolist(),
            "true": y_test[worst].tolist(),
            "predicted": predicted[worst].tolist(),
            "probability": confidence[worst].tolist(),
        },
    }
    return facts, np.round(X_test[worst] * 255).astype(np.uint8)


def losses(W, b, X, y) -> np.ndarray:
    """The cross-entropy of each example by itself, in float64."""
    return -np.log(program.softmax(W.astype(np.float64), b, X)[program.at_labels(y)])


def wilson(successes: int, n: int, z: float = 1.959964) -> dict:
    """Wilson's 95% interval for a probability."""
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return {"estimate": p, "low": centre - half, "high": centre + half}


def normal(values: np.ndarray, z: float = 1.959964) -> dict:
    """The 95% interval for a mean by the normal approximation."""
    mean, error = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))
    interval = {"low": mean - z * error, "high": mean + z * error}
    return {"estimate": mean, **interval, "standard_error": error}


# --- The gradient check ---------------------------------------------------------------------------


def gradients() -> tuple[dict, dict]:
    """The largest relative error of a derivative, along every axis or in random directions."""
    rng = np.random.default_rng(0)
    X, y = data()[:2]
    axes, anywhere = np.eye(24), rng.normal(size=(5, 7850))
    tiny = rng.random((7, 5)), np.arange(7) % 4, axes
    images = X[:1000].astype(np.float64), y[:1000], anywhere
    alphas, errors = (0, 10), []
    for X, y, directions in (tiny, images):
        m, c = X.shape[1], y.max() + 1
        for alpha in alphas:
            W, b = rng.normal(size=(m, c)) / math.sqrt(m), rng.normal(size=c)
            errors += [relative_error(W, b, *unpack(d, m, c), X, y, alpha) for d in directions]
    return {"h": H, "alphas": alphas, "images": len(X), "largest": max(errors)}, {}


def relative_error(W, b, V, a, X, y, alpha) -> float:
    """Of the derivative of the loss along (V, a), compared with its central difference."""
    dW, db = program.gradients(W, b, X, y, alpha)
    ahead = program.loss(W + H * V, b + H * a, X, y, alpha)
    behind = program.loss(W - H * V, b - H * a, X, y, alpha)
    analytic, numeric = (dW * V).sum() + (db * a).sum(), (ahead - behind) / (2 * H)
    return float(abs(analytic - numeric) / max(abs(analytic), abs(numeric)))


# --- Problem 4 ------------------------------------------------------------------------------------


def logistic() -> tuple[dict, dict]:
    """Descend on each of PAIRS, and keep w, b and the loss at about equal ratios of the step t."""
    kept = np.unique(np.geomspace(1, STEPS, 200).round().astype(int))
    pairs, paths = {}, {"t": kept}
    for name, (examples, start) in PAIRS.items():
        X = np.array(examples, float)
        paths[name] = [
            (*w, b, np.log1p(np.exp(-X @ w - b)).mean())
            for w, b in descent(X, np.array(start, float), 0.0, LEARNING_RATE, kept)
        ]
        pairs[name] = {"examples": examples, "start": start, "largest_rate": 2 / smoothness(X)}
    facts = {"steps": STEPS, "learning_rate": LEARNING_RATE, "pairs": pairs}
    return facts | {"exponents": [exponent(q, squared) for q, squared in OPPOSITE]}, paths


def exponent(q: float, squared: float) -> dict:
    """The slope of log |s - s*| against log t at the end of a descent on x and -q x."""
    X = math.sqrt(squared) * np.array([[1.0], [-q]])
    (w1, _), (w2, _) = descent(X, np.array([2.0]), 0.0, LEARNING_RATE, (STEPS // 10, STEPS))
    limit = -math.log(q) / (1 + q)
    before, after = (abs(X[0] @ w - limit) for w in (w1, w2))
    return {"q": q, "norm_squared": squared, "exponent": float(np.log10(after / before))}


def descent(X, w, b, learning_rate: float, kept):
    """Yield (w, b) after each number of steps in `kept`, which ascend."""
    for steps in np.diff(kept, prepend=0):
        for _ in range(steps):
            w, b = descend(w, b, X, learning_rate)
        yield w, b


def descend(w, b, X, learning_rate: float) -> tuple[np.ndarray, float]:
    """One step down the gradient of the mean of log(1 + exp(-z)), all examples being positive."""
    residual = 1 / (1 + np.exp(X @ w + b))  # 1 - yhat
    return w + learning_rate * residual @ X / len(X), b + learning_rate * residual.mean()


def smoothness(X) -> float:
    """L of problem 4: the largest eigenvalue of the mean of x̃x̃ᵀ/4, for X of (n, m)."""
    extended = np.column_stack([X, np.ones(len(X))])
    return float(np.linalg.eigvalsh(extended.T @ extended / len(X)).max() / 4)


# --- The convex optimum ---------------------------------------------------------------------------


def optimum() -> tuple[dict, dict]:
    X, y, X_test, y_test, results = data()
    with np.load(RESULTS / "model.npz") as model:
        by_sgd = losses(model["W"], model["b"], X_test, y_test)

    def row(alpha: float, seed: int) -> dict:
        train, validation = divide(results, seed)
        X64, y_train = X[train].astype(np.float64), y[train]
        W, b = minimise(X64, y_train, alpha)
        derivatives = np.abs(np.append(*program.gradients(W, b, X64, y_train, alpha)))
        return {
            "alpha": alpha,
            "seed": seed,
            "loss": float(program.loss(W, b, X64, y_train, alpha)),
            "norm_squared": float(np.square(W).sum()),
            "largest_derivative": float(derivatives.max()),
            "training": measure(W, b, X64, y_train),
            "validation": measure(W, b, X[validation], y[validation]),
            "test": measure(W, b, X_test, y_test),
            "sgd_above_on_test": normal(by_sgd - losses(W, b, X_test, y_test)),
        }

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        rows = list(pool.map(row, ALPHAS, [results["seed"]] * len(ALPHAS)))
        splits = list(pool.map(row, [SPLIT_ALPHA] * len(SEEDS), SEEDS))
    return {"rows": rows, "splits": splits}, {}


def minimise(X, y, alpha: float, steps: int = 10**5) -> tuple[np.ndarray, np.ndarray]:
    """The (W, b) of least loss, by L-BFGS until no derivative exceeds 5e-7, or for so many steps.

    The pixels are centred, with which it takes fewer steps. The minimum is the same, as b is not
    regularised and makes up for the shift.
    """
    from scipy.optimize import minimize

    m, c, centre = X.shape[1], program.CLASSES, X.mean(axis=0)
    X = X - centre

    def objective(theta):
        W, b = unpack(theta, m, c)
        return program.loss(W, b, X, y, alpha), np.append(*program.gradients(W, b, X, y, alpha))

    options = {"maxiter": steps, "maxfun": 2 * steps, "maxcor": 30, "ftol": 0, "gtol": 5e-7}
    start = np.zeros((m + 1) * c)
    end = minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    W, b = unpack(end.x, m, c)
    return W, b - centre @ W


# --- Five seeds -----------------------------------------------------------------------------------


def seeds() -> tuple[dict, dict]:
    X, y, X_test, y_test, results = data()
    grid = program.Grid(**results["grid"])
    runs = []
    for seed in SEEDS:
        train, validation = divide(results, seed)
        curves, W, b = program.search(X, y, train, validation, grid, seed, os.cpu_count())
        i, j, k, epoch = program.best_point(curves)
        model = W[..., i, j, k], b[..., i, j, k]
        best = grid.batch_sizes[i], grid.learning_rates[j], grid.alphas[k], epoch + 1
        validated = measure(*model, X[validation], y[validation])
        tested = {"validation": validated, "test": measure(*model, X_test, y_test)}
        runs.append({"seed": seed, **dict(zip(results["best"], best)), **tested})
        print(f"  {runs[-1]}", file=sys.stderr)
    return {"runs": runs}, {}


# --- Command line ---------------------------------------------------------------------------------


def main() -> None:
    parts = {part.__name__: part for part in (winner, gradients, logistic, optimum, seeds)}
    parser = argparse.ArgumentParser(description="Measure what the report says.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(parts)}: all")
    chosen = parser.parse_args().parts or list(parts)
    if unknown := set(chosen) - set(parts):
        parser.error(f"{', '.join(sorted(unknown))}: none of {', '.join(parts)}")
    for name in chosen:
        start = time.monotonic()
        facts, arrays = parts[name]()
        (RESULTS / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n")
        if arrays:
            np.savez_compressed(RESULTS / f"{name}.npz", **arrays)
        print(f"{name}: {time.monotonic() - start:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
