"""Measure what the report needs beyond the grid search itself, and write it to report/results.

    python softmax_sgd.py --output report/results     # first: the search on which this builds
    python -m report.experiments [PART ...]           # then every part, or parts by name

    winner           the chosen model trained once more, and what it does on the test set
    gradient_check   the gradients of the program against central differences
    logistic         gradient descent on examples that are all positive (problem 4)
    optimum          the smallest loss of any weights, for each of ALPHAS and on each split
    seeds            the whole search again for each of SEEDS, with a new split and new minibatches
    choice           what the search can and cannot decide

Each part writes PART.json; winner and logistic also write PART.npz. No part needs another, except
that choice trains nothing and reads what optimum and seeds wrote.
"""

import argparse
import json
import math
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

if __name__ == "__main__":
    # Repeated from softmax_sgd.py, which is imported too late: BLAS reads these when NumPy is
    # first imported. One thread per worker is fastest.
    for library in ("OPENBLAS_NUM", "MKL_NUM", "OMP_NUM", "VECLIB_MAXIMUM"):
        os.environ.setdefault(f"{library}_THREADS", "1")

import numpy as np

import softmax_sgd as program

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "report" / "results"
SEEDS = (0, 1, 2, 3, 4)

MISTAKES = 8  # images shown

H = 1e-5  # the half-width of the central differences
DIRECTIONS = 5  # random ones, on images

# Pairs of positive examples, each with the w from which the descent starts (b starts from 0).
# Figures show the paths of these three. The first two answer problem 4(c).
PAIRS = {
    "opposite": ([[1, 1], [-1, -1]], [2, 1]),
    "apart": ([[1, 2], [2, 1]], [0, 0]),
    "unequal": ([[1, 1], [-0.25, -0.25]], [2, 1]),
}
# Further pairs on which the law is tested. For the third, h is an end of the segment.
MORE_PAIRS = (
    ([[2, 1], [-1, 1]], [1, -2]),
    ([[3, 1], [-0.5, 1.5]], [0, 0]),
    ([[1, 0.5], [2, 1.5]], [-1, 1]),
    ([[1, -1], [-2, 2]], [1, 1]),
    ([[-1, 2], [2, 0]], [0, -1]),
)
# Opposite examples x and -q x with mu = q norm(x)² above 1: (q, norm(x)², x·w_0).
OPPOSITE = ((2, 1.5, 3), (2, 1.5, -3), (3, 2, 1), (0.5, 4, 2), (0.25, 8, -1))
STEPS = 10**6
LEARNING_RATE = 1.0

ALPHAS = (1e-5, 1e-4, 3e-4, 1e-3)  # of the optima on the split of the search
SPLIT_ALPHA = 3e-4  # of the optimum on the split of each seed
WEIGHTS_WITHIN = 5e-9  # a bound on the distance of W from the optimum

CLOSE = 0.005  # models whose cross-entropy is within this of the lowest count as close
LAST_EPOCHS = 4
AVERAGED_EPOCHS = 5
NEIGHBOURS = 3  # epochs shown on either side of the chosen one


# --- What the parts share -------------------------------------------------------------------------


def read(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def data() -> tuple:
    """The data, and what the search found: X, y, X_test, y_test, results."""
    return *program.load(ROOT / "data"), read("results")


def divide(results: dict, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows to train on and those to validate on, divided as softmax_sgd.py divides them."""
    train, validation = results["split"]["train"], results["split"]["validation"]
    n = train + validation
    return program.split(n, validation / n, np.random.default_rng(seed))


def measure(W, b, X, y) -> dict:
    cross_entropy, accuracy = program.evaluate(W, b, X, y)
    return {"cross_entropy": float(cross_entropy), "accuracy": float(accuracy)}


def losses(W, b, X, y) -> np.ndarray:
    """The cross-entropy of each example, in float64: (n,)."""
    Z = X @ W.astype(np.float64) + b
    return np.logaddexp.reduce(Z, axis=1) - Z[np.arange(len(y)), y]


def normal(values: np.ndarray, z: float = 1.959964) -> dict:
    """The 95% interval for a mean by the normal approximation."""
    mean, error = mean_and_error(values)
    interval = {"low": mean - z * error, "high": mean + z * error}
    return {"estimate": mean, **interval, "standard_error": error}


def mean_and_error(values) -> tuple[float, float]:
    """The mean of a sample, and the mean's standard error."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))


# --- The chosen model -----------------------------------------------------------------------------


def measure_winner() -> tuple[dict, dict]:
    X, y, X_test, y_test, results = data()
    best = results["best"]
    train, validation = divide(results, results["seed"])
    with np.load(RESULTS / "model.npz") as model:
        W, b = model["W"], model["b"]
    facts, images = examine(W, b, X_test, y_test)
    facts["loss"] = float(program.loss(W, b, X[train], y[train], best["alpha"]))
    facts["norm_squared"] = float(np.square(W).sum())
    epochs = results["grid"]["epochs"]
    facts["curves"] = retrain(best, results["seed"], epochs, X, y, train, validation)
    return facts, images


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


def examine(W, b, X_test, y_test) -> tuple[dict, dict]:
    """What the model does on the test set, and the images to show, as uint8.

    These are its most confident mistakes and, as examples, the first image of each class.
    """
    n = len(y_test)
    yhat = program.softmax(W, b, X_test)
    predicted = yhat.argmax(axis=0)
    confidence = yhat.max(axis=0)
    confusion = np.zeros((program.CLASSES, program.CLASSES), int)
    np.add.at(confusion, (y_test, predicted), 1)

    wrong = np.flatnonzero(predicted != y_test)
    mistakes = wrong[np.argsort(-confidence[wrong], kind="stable")[:MISTAKES]]
    examples = np.array([np.flatnonzero(y_test == k)[0] for k in range(program.CLASSES)])

    def describe(rows: np.ndarray) -> dict:
        return {
            "index": rows.tolist(),
            "true": y_test[rows].tolist(),
            "predicted": predicted[rows].tolist(),
            "probability": confidence[rows].tolist(),
        }

    def pixels(rows: np.ndarray) -> np.ndarray:
        return np.round(X_test[rows] * 255).astype(np.uint8)

    facts = {
        "accuracy": wilson(n - len(wrong), n),
        "cross_entropy": normal(losses(W, b, X_test, y_test)),
        "confusion": confusion.tolist(),
        "mistakes": describe(mistakes),
        "examples": describe(examples),
    }
    return facts, {"mistakes": pixels(mistakes), "examples": pixels(examples)}


def wilson(successes: int, n: int, z: float = 1.959964) -> dict:
    """Wilson's 95% interval for a probability."""
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return {"estimate": p, "low": centre - half, "high": centre + half}


# --- The gradient check ---------------------------------------------------------------------------


def check_gradients() -> tuple[dict, dict]:
    """The largest relative error of a derivative of the loss.

    A tiny problem is checked along every axis, and real images in random directions. A direction
    is that of W, with that of b as the last row.
    """
    rng = np.random.default_rng(0)
    X, y = data()[:2]
    tiny = {"examples": 7, "pixels": 5, "classes": 4, "derivatives": 24}
    tiny_X, tiny_y = rng.random((7, 5)), np.arange(7) % 4
    axes = np.eye(24).reshape(24, 6, 4)
    images, labels = X[:1000].astype(np.float64), y[:1000]
    anywhere = rng.normal(size=(DIRECTIONS, images.shape[1] + 1, program.CLASSES))
    alphas, errors = (0, 10), []
    for X, y, directions in ((tiny_X, tiny_y, axes), (images, labels, anywhere)):
        m, c = X.shape[1], y.max() + 1
        for alpha in alphas:
            W, b = rng.normal(size=(m, c)) / math.sqrt(m), rng.normal(size=c)
            errors += [relative_error(W, b, d[:-1], d[-1], X, y, alpha) for d in directions]
    facts = {"h": H, "alphas": alphas, "tiny": tiny, "images": len(images)}
    return facts | {"directions": DIRECTIONS, "largest": max(errors)}, {}


def relative_error(W, b, V, a, X, y, alpha) -> float:
    """How far the derivative of the loss along (V, a) is from its central difference."""
    dW, db = program.gradients(W, b, X, y, alpha)
    ahead = program.loss(W + H * V, b + H * a, X, y, alpha)
    behind = program.loss(W - H * V, b - H * a, X, y, alpha)
    analytic, numeric = (dW * V).sum() + (db * a).sum(), (ahead - behind) / (2 * H)
    return float(abs(analytic - numeric) / max(abs(analytic), abs(numeric)))


# --- Problem 4: all examples positive -------------------------------------------------------------


def simulate_descent() -> tuple[dict, dict]:
    """Descend on all pairs together: the paths for the figures, and how well the laws hold."""
    pairs = [*PAIRS.values(), *MORE_PAIRS]
    X, w = (np.array(part, float) for part in zip(*pairs, *map(opposite_pair, OPPOSITE)))
    kept = np.unique([*np.geomspace(1, STEPS, 200).round().astype(int), STEPS // 10])
    tenth = kept.tolist().index(STEPS // 10)
    points = descent(X, w, np.zeros(len(w)), LEARNING_RATE, kept)
    w, b = (np.stack(part, axis=1) for part in zip(*points))  # (pairs, kept, 2), (pairs, kept)

    descriptions, law = [], []
    for i, (examples, start) in enumerate(pairs):
        description = {"examples": examples, "start": start, "largest_rate": 2 / smoothness(X[i])}
        description["h"] = nearest(*X[i]).tolist()
        ratios = compare_with_law(X[i], w[i, tenth], b[i, tenth], w[i, -1], b[i, -1])
        descriptions.append(description)
        law.append(description | ratios)

    paths = {"t": kept}
    for i, name in enumerate(PAIRS):
        paths[name] = np.column_stack([w[i], b[i], mean_loss(X[i], w[i], b[i])])

    limits = []
    for i, (q, squared, start) in enumerate(OPPOSITE, start=len(pairs)):
        limits.append(compare_with_limit(q, squared, start, X[i, 0] @ w[i, -1]))
    facts = {"steps": STEPS, "learning_rate": LEARNING_RATE}
    return facts | {"pairs": dict(zip(PAIRS, descriptions)), "law": law, "limits": limits}, paths


def opposite_pair(row: tuple[float, float, float]) -> tuple[list, list]:
    """Examples x and -q x, and w_0, for a row of OPPOSITE."""
    q, squared, start = row
    x = math.sqrt(squared)
    return [[x, 0], [-q * x, 0]], [start / x, 0]


def nearest(x1: np.ndarray, x2: np.ndarray) -> np.ndarray:
    """h: the point of the segment from x1 to x2 that is nearest to 0.

    On the line through both it is x1 + tau (x2 - x1) with tau = -x1·(x2 - x1) / norm(x2 - x1)²;
    on the segment, tau is limited to 0..1.
    """
    along = x2 - x1
    squared = along @ along
    tau = np.clip(-(x1 @ along) / squared, 0, 1) if squared else 0
    return x1 + tau * along


def compare_with_law(X, w_before, b_before, w, b) -> dict:
    """How well the law of problem 4 holds at the last step, and between STEPS / 10 and there.

    With h the point of the segment nearest to 0, and rho = 1 + norm(h)²,

        f_t ~ 1/(epsilon rho t),    b_t ~ log(t)/rho,
        w_t converges if h = 0, and otherwise grows like h log(t)/rho.
    """
    h = nearest(*X)
    squared = float(h @ h)
    rho = 1 + squared
    moved, along = w - w_before, None
    if squared:
        along = float(rho * (h @ moved) / (squared * math.log(10)))
        moved = moved - (h @ moved) / squared * h
    return {
        "h_squared": squared,
        "loss": float(LEARNING_RATE * rho * STEPS * mean_loss(X, w, b)),
        "bias": float(rho * (b - b_before) / math.log(10)),
        "along": along,
        "moved": float(np.linalg.norm(moved)),
    }


def compare_with_limit(q: float, squared: float, start: float, s: float) -> dict:
    """t d_t at the last step for examples x and -q x, beside its limit, where mu > 1.

    d_t = s_t - s* is the distance of s_t = x·w_t from its limit s* = -log(q)/(1 + q).
    """
    mu = q * squared
    predicted = 2 * mu * (1 - q) / (LEARNING_RATE * (1 + q) ** 2 * (mu - 1))
    measured = float(STEPS * (s + math.log(q) / (1 + q)))
    given = {"q": q, "norm_squared": squared, "mu": mu, "start": start}
    return given | {"measured": measured, "predicted": predicted}


def descent(X, w, b, learning_rate: float, kept):
    """Yield (w, b) after each number of steps in `kept`, which ascend."""
    for steps in np.diff(kept, prepend=0):
        for _ in range(steps):
            w, b = descend(w, b, X, learning_rate)
        yield w, b


def descend(w, b, X, learning_rate: float) -> tuple[np.ndarray, np.ndarray]:
    """One step down the gradient of the mean of log(1 + exp(-z)), all examples being positive.

    X is (n, m), w (m,) and b a number; for p problems together, (p, n, m), (p, m) and (p,).
    """
    residuals = 1 / (1 + np.exp(logits(X, w, b)))  # 1 - yhat
    pull = (residuals[..., None, :] @ X)[..., 0, :] / X.shape[-2]
    return w + learning_rate * pull, b + learning_rate * residuals.mean(axis=-1)


def logits(X, w, b) -> np.ndarray:
    """z = x·w + b of each example."""
    return (X @ w[..., None])[..., 0] + np.asarray(b)[..., None]


def mean_loss(X, w, b) -> np.ndarray:
    """f, the mean of log(1 + exp(-z)) over the examples."""
    return np.log1p(np.exp(-logits(X, w, b))).mean(axis=-1)


def smoothness(X) -> float:
    """L of problem 4: the largest eigenvalue of the mean of x̃x̃ᵀ/4, for X of (n, m)."""
    extended = np.column_stack([X, np.ones(len(X))])
    return float(np.linalg.eigvalsh(extended.T @ extended / len(X)).max() / 4)


# --- The optimum ----------------------------------------------------------------------------------


def find_optima() -> tuple[dict, dict]:
    """The model of least loss for each of ALPHAS, and for SPLIT_ALPHA on the split of each seed."""
    X, y, X_test, y_test, results = data()
    with np.load(RESULTS / "model.npz") as model:
        by_sgd = losses(model["W"], model["b"], X_test, y_test)

    def solve(problem: tuple[float, int]) -> dict:
        alpha, seed = problem
        train, validation = divide(results, seed)
        X_train, y_train = X[train], y[train]
        W, b = minimise(X_train, y_train, alpha, name=f"alpha {alpha:g}, seed {seed}")
        b = best_biases(W, b, X_train, y_train)
        facts = {"alpha": alpha, "seed": seed} | certify(W, b, X_train, y_train, alpha)
        facts["norm_squared"] = float(np.square(W).sum())
        facts["training"] = measure(W, b, X_train, y_train)
        facts["validation"] = measure(W, b, X[validation], y[validation])
        facts["test"] = measure(W, b, X_test, y_test)
        if seed == results["seed"]:  # of the other seeds' models, none was kept
            facts["sgd_above_on_test"] = normal(by_sgd - losses(W, b, X_test, y_test))
        return facts

    rows = [(alpha, results["seed"]) for alpha in ALPHAS]
    splits = [(SPLIT_ALPHA, seed) for seed in SEEDS]
    problems = list(dict.fromkeys(rows + splits))  # what is in both is solved once
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        solved = dict(zip(problems, pool.map(solve, problems)))
    return {"rows": [solved[row] for row in rows], "splits": [solved[row] for row in splits]}, {}


def certify(W, b, X, y, alpha: float) -> dict:
    """The loss, and how far from the optimum W and the loss can be, if b is the best for W.

    The smallest loss that each W allows, φ(W) = min_b loss(W, b), is strongly convex: it remains
    convex if α/2 ‖W‖² is subtracted. Its gradient is dW at the best b, where db = 0. So if W* is
    optimal, then ‖W - W*‖ <= ‖dW‖/α and φ(W) - φ(W*) <= ‖dW‖²/(2α). The largest entry of db shows
    that b is the best for W, up to rounding.
    """
    X = X.astype(np.float64)
    dW, db = program.gradients(W, b, X, y, alpha)
    length = float(np.linalg.norm(dW))
    return {
        "loss": float(program.loss(W, b, X, y, alpha)),
        "largest_db": float(np.abs(db).max()),
        "weights_within": length / alpha,
        "loss_within": length**2 / (2 * alpha),
    }


def minimise(X, y, alpha: float, name: str, within=WEIGHTS_WITHIN) -> tuple[np.ndarray, np.ndarray]:
    """The (W, b) of least loss, in float64, by Newton's method from zero.

    A step solves the Newton equation by conjugate gradients, more exactly as the gradient becomes
    shorter (Nocedal and Wright, Numerical Optimization, section 7.1), and is halved until it
    shortens the gradient. Stops when ‖gradient‖/alpha is at most `within`. `name` is printed.
    """
    X64 = X.astype(np.float64)

    def gradient_at(theta: np.ndarray) -> np.ndarray:
        return np.vstack(program.gradients(theta[:-1], theta[-1], X64, y, alpha))

    mean = X64.mean(axis=0)
    pixels = mean, *np.linalg.eigh(X64.T @ X64 / len(X) - np.outer(mean, mean))
    theta = np.zeros((X.shape[1] + 1, program.CLASSES))  # W, and b as the last row
    gradient = gradient_at(theta)
    while np.linalg.norm(gradient) > within * alpha:
        length = np.linalg.norm(gradient)
        print(f"  {name}: length of the gradient {length:.1e}", file=sys.stderr, flush=True)
        tolerance = np.clip(math.sqrt(length), 1e-2, 0.25)
        step = newton_step(theta, gradient, X, alpha, pixels, tolerance)
        while np.linalg.norm(gradient_at(theta + step)) >= length:
            step = step / 2
        theta = theta + step
        gradient = gradient_at(theta)
    return theta[:-1], theta[-1]


def newton_step(theta, gradient, X, alpha: float, pixels: tuple, tolerance: float) -> np.ndarray:
    """The step by which, to first order, the gradient becomes 0 (but for `tolerance`).

    `pixels` holds their mean, and the eigenvalues and eigenvectors of their covariance matrix. The
    Hessian is in the float32 of X, twice as fast as float64; that makes the step, and not the
    minimum, less exact.
    """
    mean, variances, axes = pixels
    W, b = theta[:-1].astype(X.dtype), theta[-1].astype(X.dtype)
    yhat = program.softmax(W, b, X)
    # Its smallest eigenvalue is 0, as a common shift of the logits changes nothing; nor has the
    # gradient a part along it, so any positive number will do in its place.
    curvatures, mixtures = np.linalg.eigh(bias_hessian(yhat))
    curvatures[0] = curvatures[-1]

    def multiply(direction: np.ndarray) -> np.ndarray:
        V, a = direction[:-1].astype(X.dtype), direction[-1].astype(X.dtype)
        return np.vstack(hessian_product(yhat, X, alpha, V, a)).astype(np.float64)

    def precondition(residual: np.ndarray) -> np.ndarray:
        """Divide by what the Hessian is if ŷ and x are independent, and the pixels centred."""
        R, r = residual[:-1], residual[-1]
        R = axes.T @ (R - np.outer(mean, r)) @ mixtures
        V = axes @ (R / (np.outer(variances, curvatures) + alpha)) @ mixtures.T
        a = mixtures @ (mixtures.T @ r / curvatures) - mean @ V
        return np.vstack([V, a])

    return solve_by_conjugate_gradients(multiply, -gradient, precondition, tolerance)


def bias_hessian(yhat) -> np.ndarray:
    """The Hessian of the loss with respect to b: (c, c), for ŷ of shape (c, n)."""
    return np.diag(yhat.mean(axis=1)) - yhat @ yhat.T / yhat.shape[1]


def best_biases(W, b, X, y) -> np.ndarray:
    """The b of least loss for this W, up to rounding, by Newton's method from a b near it."""
    X = X.astype(np.float64)
    for _ in range(5):
        yhat = program.softmax(W, b, X)
        _, db = program.cross_entropy_gradients(W, b, X, y)
        # A common shift of b changes nothing; its eigenvalue, 0 but for rounding, is left out.
        b = b - np.linalg.pinv(bias_hessian(yhat), rcond=1e-10, hermitian=True) @ db
    return b


def hessian_product(yhat, X, alpha, V, a) -> tuple[np.ndarray, np.ndarray]:
    """The derivative of (dW, db) along (V, a), of the shapes of W and b.

    Along (V, a) the logits change by T = Vᵀx + a, and so ŷ_k by ŷ_k (T_k - Σ_j ŷ_j T_j).
    """
    T = (X @ V).T + a[:, None]
    D = yhat * (T - (yhat * T).sum(axis=0)) / len(X)
    return X.T @ D.T + alpha * V, D.sum(axis=1)


def solve_by_conjugate_gradients(multiply, right, precondition, tolerance: float) -> np.ndarray:
    """The x for which multiply(x) is `right`, with a residual of at most `tolerance` of its length.

    `multiply` is by a symmetric positive definite matrix (or a semidefinite one that has `right`
    in its range), and `precondition` by an approximation of its inverse.
    """
    x, residual = np.zeros_like(right), right
    conditioned = precondition(residual)
    direction, squared = conditioned, np.vdot(residual, conditioned)
    while np.linalg.norm(residual) > tolerance * np.linalg.norm(right):
        product = multiply(direction)
        length = squared / np.vdot(direction, product)
        x = x + length * direction
        residual = residual - length * product
        conditioned = precondition(residual)
        before, squared = squared, np.vdot(residual, conditioned)
        direction = conditioned + squared / before * direction
    return x


# --- Other seeds ----------------------------------------------------------------------------------


def repeat_search() -> tuple[dict, dict]:
    X, y, X_test, y_test, results = data()
    grid = program.Grid(**results["grid"])
    runs = []
    for seed in SEEDS:
        train, validation = divide(results, seed)
        curves, W, b = program.search(X, y, train, validation, grid, seed, os.cpu_count())
        i, j, k, epoch = program.best_point(curves)
        run = {
            "seed": seed,
            **program.point(grid, i, j, k, epoch + 1),
            "validation": measure(W[..., i, j, k], b[..., i, j, k], X[validation], y[validation]),
            "test": measure(W[..., i, j, k], b[..., i, j, k], X_test, y_test),
        }
        runs.append(run)
        print(f"  {run}", file=sys.stderr, flush=True)
    return {"runs": runs}, {}


# --- What the search decides ----------------------------------------------------------------------


def judge_choice() -> tuple[dict, dict]:
    """How clearly the chosen point won, and whether it beats the optimum of SPLIT_ALPHA."""
    grid, runs = program.Grid(**read("results")["grid"]), read("seeds")["runs"]
    with np.load(RESULTS / "curves.npz") as file:
        curves = program.Curves(**file)
    facts = describe_curves(grid, curves)
    facts["edges"] = [{"seed": run["seed"], "names": edges(grid, run)} for run in runs]
    facts["winner_above_optimum"] = compare_with_optima(runs, read("optimum")["splits"])
    guess = {"cross_entropy": math.log(program.CLASSES), "accuracy": 1 / program.CLASSES}
    return facts | {"chance": guess}, {}


def describe_curves(grid, curves) -> dict:
    """How the chosen point compares with its neighbours and with the other models."""
    values = curves.cross_entropy
    i, j, k, epoch = program.best_point(curves)
    lowest, lowest_epochs = values.min(axis=-1), values.argmin(axis=-1)
    near = range(max(0, epoch - NEIGHBOURS), min(grid.epochs, epoch + NEIGHBOURS + 1))
    return {
        "neighbours": {
            "epochs": [e + 1 for e in near],
            "cross_entropy": [float(values[i, j, k, e]) for e in near],
        },
        "models": lowest.size,
        "within": CLOSE,
        "models_within": int((lowest <= lowest.min() + CLOSE).sum()),
        "last_epochs": LAST_EPOCHS,
        "lowest_in_last_epochs": int((lowest_epochs >= grid.epochs - LAST_EPOCHS).sum()),
        "lowest_at_last_epoch": int((lowest_epochs == grid.epochs - 1).sum()),
        "averaged": best_average(grid, curves),
        "best_by_batch_size": best_along(grid, curves, axis=0),
        "best_by_alpha": best_along(grid, curves, axis=2),
    }


def best_along(grid, curves, axis: int) -> list[dict]:
    """The best point for each value of the hyperparameter on this axis of the curves."""
    points = []
    for position in range(curves.cross_entropy.shape[axis]):
        values = curves.cross_entropy.take([position], axis)
        index = [int(i) for i in np.unravel_index(values.argmin(), values.shape)]
        index[axis] = position
        i, j, k, epoch = index
        best = program.point(grid, i, j, k, epoch + 1)
        points.append(best | {"cross_entropy": float(values.min())})
    return points


def best_average(grid, curves) -> dict:
    """The point that wins if each value is replaced by the mean over the epochs around it.

    Only points with AVERAGED_EPOCHS // 2 epochs on either side can win.
    """
    windows = np.lib.stride_tricks.sliding_window_view
    means = windows(curves.cross_entropy, AVERAGED_EPOCHS, axis=-1).mean(axis=-1)
    i, j, k, first = program.best_point(program.Curves(means, means))
    point = program.point(grid, i, j, k, first + AVERAGED_EPOCHS // 2 + 1)
    value = float(means[i, j, k, first])
    facts = {"epochs_averaged": AVERAGED_EPOCHS, **point, "cross_entropy": value}
    return facts | {"edges": edges(grid, point)}


def edges(grid, point: dict) -> list[str]:
    """The hyperparameters of which `point` has the smallest or the largest value tried."""
    ends = {
        "batch_size": (grid.batch_sizes[0], grid.batch_sizes[-1]),
        "learning_rate": (grid.learning_rates[0], grid.learning_rates[-1]),
        "alpha": (grid.alphas[0], grid.alphas[-1]),
        "epochs": (1, grid.epochs),
    }
    return [name for name, values in ends.items() if point[name] in values]


def compare_with_optima(runs: list[dict], splits: list[dict]) -> dict:
    """The cross-entropy of each seed's winner minus that of the optimum on the same split.

    The standard error of the mean is over the splits.
    """
    facts = {"alpha": splits[0]["alpha"], "seeds": [run["seed"] for run in runs]}
    optima = {split["seed"]: split for split in splits}
    for part in ("validation", "test"):
        differences = [
            run[part]["cross_entropy"] - optima[run["seed"]][part]["cross_entropy"] for run in runs
        ]
        mean, error = mean_and_error(differences)
        facts[part] = {"differences": differences, "mean": mean, "standard_error": error}
    return facts


# --- Command line ---------------------------------------------------------------------------------

PARTS = {
    "winner": measure_winner,
    "gradient_check": check_gradients,
    "logistic": simulate_descent,
    "optimum": find_optima,
    "seeds": repeat_search,
    "choice": judge_choice,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what the report needs.")
    names = ", ".join(PARTS)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {names}; default: all")
    chosen = parser.parse_args().parts or list(PARTS)
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; choose from {names}")
    for name in chosen:
        start = time.monotonic()
        facts, arrays = PARTS[name]()
        (RESULTS / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n", newline="\n")
        if arrays:
            np.savez_compressed(RESULTS / f"{name}.npz", **arrays)
        print(f"{name}: {time.monotonic() - start:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
