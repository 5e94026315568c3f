"""Gradient descent on two positive examples (problem 4), and how well the law of the report holds.

Writes report/results/logistic.json, and logistic.npz with the paths for the figures.
"""

import math

import numpy as np

from report.shared import write

NAME = "logistic"
LEARNING_RATE = 1.0
STEPS = 10**6

# Pairs of examples, each with the w from which the descent starts; b starts from 0.
ANSWERS = {  # to problem 4(c)
    "opposite": ([[1, 1], [-1, -1]], [2, 1]),
    "apart": ([[1, 2], [2, 1]], [0, 0]),
}
MORE_PAIRS = (  # for the third, the point of the segment nearest to 0 is an end
    ([[2, 1], [-1, 1]], [1, -2]),
    ([[3, 1], [-0.5, 1.5]], [0, 0]),
    ([[1, 0.5], [2, 1.5]], [-1, 1]),
    ([[-1, 2], [2, 0]], [0, -1]),
    ([[2, 2], [-1, -1]], [2, 1]),
    ([[1, -1], [-2, 2]], [1, 1]),
)


def measure() -> tuple[dict, dict]:
    pairs = [*ANSWERS.values(), *MORE_PAIRS]
    X = np.array([examples for examples, start in pairs], float)
    w = np.array([start for examples, start in pairs], float)
    kept = np.unique([*np.geomspace(1, STEPS, 200).round().astype(int), STEPS // 10])
    w, b = descent(X, w, np.zeros(len(w)), LEARNING_RATE, kept)

    before = int(np.flatnonzero(kept == STEPS // 10)[0])
    law = []
    for i, (examples, start) in enumerate(pairs):
        errors = compare_with_law(X[i], w[i, before], b[i, before], w[i, -1], b[i, -1])
        law.append({"examples": examples, "start": start, **errors})

    facts = {"steps": STEPS, "learning_rate": LEARNING_RATE, "law": law}
    facts["pairs"], paths = {}, {"t": kept}
    for i, (name, (examples, start)) in enumerate(ANSWERS.items()):
        facts["pairs"][name] = {
            "examples": examples,
            "start": start,
            "h": nearest(*X[i]).tolist(),
            "largest_rate": 2 / smoothness(X[i]),
        }
        paths[name] = np.column_stack([w[i], b[i], mean_loss(X[i], w[i], b[i])])
    return facts, paths


def nearest(x1: np.ndarray, x2: np.ndarray) -> np.ndarray:
    """h: the point of the segment from x1 to x2, two different points, that is nearest to 0."""
    along = x2 - x1
    return x1 + np.clip(-(x1 @ along) / (along @ along), 0, 1) * along


def compare_with_law(X, w_before, b_before, w, b) -> dict:
    """How well the law holds: at the last step, and between STEPS / 10 and there.

    With rho = 1 + norm(h)², it says that

        f_t ~ 1/(epsilon rho t),    b_t ~ log(t)/rho,    w_t ~ h log(t)/rho unless h = 0.

    Each number is a part of what the law predicts: 1 if it is exact.
    """
    h = nearest(*X)
    squared = float(h @ h)
    rho = 1 + squared
    return {
        "h_squared": squared,
        "loss": float(LEARNING_RATE * rho * STEPS * mean_loss(X, w, b)),
        "bias": float(rho * (b - b_before) / math.log(10)),
        "along": float(rho * h @ (w - w_before) / (squared * math.log(10))) if squared else None,
    }


def descent(X, w, b, learning_rate: float, kept) -> tuple[np.ndarray, np.ndarray]:
    """w and b after each number of steps in `kept`, which ascends.

    X is (p, n, m) for p problems together, w (p, m) and b (p,); the result (p, kept, m), (p, kept).
    """
    path = []
    for steps in np.diff(kept, prepend=0):
        for _ in range(steps):
            w, b = descend(X, w, b, learning_rate)
        path.append((w, b))
    return np.stack([w for w, b in path], axis=1), np.stack([b for w, b in path], axis=1)


def descend(X, w, b, learning_rate: float) -> tuple[np.ndarray, np.ndarray]:
    """A step down the gradient of the mean of log(1 + exp(-z)): all examples are positive."""
    residuals = 1 / (1 + np.exp(logits(X, w, b)))  # 1 - ŷ
    mean_rx = (residuals[..., None, :] @ X)[..., 0, :] / X.shape[-2]
    return w + learning_rate * mean_rx, b + learning_rate * residuals.mean(axis=-1)


def logits(X, w, b) -> np.ndarray:
    """z = x·w + b of each example."""
    return (X @ w[..., None])[..., 0] + np.asarray(b)[..., None]


def mean_loss(X, w, b) -> np.ndarray:
    """f, the mean of log(1 + exp(-z)) over the examples."""
    return np.log1p(np.exp(-logits(X, w, b))).mean(axis=-1)


def smoothness(X) -> float:
    """L: the largest eigenvalue of the mean of x̃x̃ᵀ/4, for X of (n, m)."""
    extended = np.column_stack([X, np.ones(len(X))])
    return float(np.linalg.eigvalsh(extended.T @ extended / len(X)).max() / 4)


if __name__ == "__main__":
    write(NAME, measure)
