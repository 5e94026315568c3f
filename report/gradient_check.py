"""The gradients of softmax_sgd.py against central differences of its loss, in float64.

A small problem is checked along every axis, and real images in random directions.

Writes report/results/gradient_check.json.
"""

import math

import numpy as np

from report.shared import data, write
from softmax_sgd import CLASSES, gradients, loss

NAME = "gradient_check"
H = 1e-5  # half the distance of the two points of a central difference
DIRECTIONS = 5
IMAGES = 1000
ALPHAS = (0, 10)


def measure() -> tuple[dict, dict]:
    rng = np.random.default_rng(0)
    n, m, c = 7, 5, 4
    X, y = rng.random((n, m)), np.arange(n) % c
    # A direction is (V, a), with the shapes of W and b; a is the last column of (c, m + 1).
    axes = np.eye(c * (m + 1)).reshape(-1, c, m + 1)
    errors = relative_errors(X, y, axes, rng)

    images, labels = data()[:2]
    images, labels = images[:IMAGES].astype(np.float64), labels[:IMAGES]
    directions = rng.normal(size=(DIRECTIONS, CLASSES, images.shape[1] + 1))
    errors += relative_errors(images, labels, directions, rng)
    facts = {
        "h": H,
        "alphas": ALPHAS,
        "small": {"examples": n, "pixels": m, "classes": c, "derivatives": len(axes)},
        "images": IMAGES,
        "directions": DIRECTIONS,
        "largest": max(errors),
    }
    return facts, {}


def relative_errors(X, y, directions, rng) -> list[float]:
    """For each of ALPHAS and each direction, the error at random W and b."""
    m, c = X.shape[1], y.max() + 1
    errors = []
    for alpha in ALPHAS:
        W, b = rng.normal(size=(c, m)) / math.sqrt(m), rng.normal(size=c)
        errors += [relative_error(W, b, d[:, :-1], d[:, -1], X, y, alpha) for d in directions]
    return errors


def relative_error(W, b, V, a, X, y, alpha) -> float:
    """The difference of the two derivatives along (V, a), as a part of the larger one."""
    dW, db = gradients(W, b, X, y, alpha)
    ahead = loss(W + H * V, b + H * a, X, y, alpha)
    behind = loss(W - H * V, b - H * a, X, y, alpha)
    by_gradients, by_difference = (dW * V).sum() + (db * a).sum(), (ahead - behind) / (2 * H)
    error = abs(by_gradients - by_difference)
    return float(error / max(abs(by_gradients), abs(by_difference)))


if __name__ == "__main__":
    write(NAME, measure)
