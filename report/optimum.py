"""The exact minimum of the regularised loss, for each of ALPHAS and on the split of each seed.

Newton's method: each step solves the Newton equation by SciPy's conjugate gradients, more exactly
as the gradient becomes shorter (Nocedal and Wright, Numerical Optimization, section 7.1). Method
trust-krylov of scipy.optimize.minimize compares losses, whose rounding errors stop it at a distance
of about 4e-5 from the minimum, too far to be sure of the digits shown.

How exact the cross-entropies are: let W be within d of the best one, and db = 0. No image is longer
than 28, so the error of W changes no difference z_j - z_k by more than u = 28 √2 d. The error of b
changes none by more than 9 u: if its ten entries, sorted, had a gap of more than u between two
neighbours, the classes above the gap would be more probable on every image than at the minimum, but
db = 0 fixes their mean probability. So no cross-entropy is wrong by more than 10 u.

Writes report/results/optimum.json.
"""

import math
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from scipy.sparse.linalg import LinearOperator, cg

from report.seeds import SEEDS
from report.shared import data, read, rows_of, write
from softmax_sgd import CLASSES, evaluate, gradients, loss, softmax

NAME = "optimum"
ALPHAS = (1e-5, 1e-4, 3e-4, 1e-3)  # on the split of the search
SPLIT_ALPHA = 3e-4  # on the splits of SEEDS
WITHIN = 5e-9  # the distance of W from that of the minimum is at most this


def measure() -> tuple[dict, dict]:
    X, y, X_test, y_test = data()

    def solve(problem: tuple[float, int]) -> dict:
        alpha, seed = problem
        train, validation = rows_of(seed)
        parts = {
            "training": (X[train], y[train]),
            "validation": (X[validation], y[validation]),
            "test": (X_test, y_test),
        }
        W, b = minimise(*parts["training"], alpha, WITHIN)
        facts = {"alpha": alpha, "seed": seed, **certify(W, b, *parts["training"], alpha)}
        facts["norm_squared"] = float(np.square(W).sum())
        for part, images in parts.items():
            facts[part] = {k: float(v) for k, v in evaluate(W, b, *images)._asdict().items()}
        print(f"  {facts}", flush=True)
        return facts

    rows = [(alpha, read("results")["seed"]) for alpha in ALPHAS]
    splits = [(SPLIT_ALPHA, seed) for seed in SEEDS]
    problems = list(dict.fromkeys(rows + splits))  # what is in both is solved once
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        solved = dict(zip(problems, pool.map(solve, problems)))
    return {"rows": [solved[row] for row in rows], "splits": [solved[row] for row in splits]}, {}


def certify(W, b, X, y, alpha: float) -> dict:
    """The loss, and a bound on the distance of W from that of the minimum, if b is best for W.

    The lowest loss that each W allows, min_b loss(W, b), is convex even without its α/2 ‖W‖², and
    dW is its gradient at the best b. So the distance is at most ‖dW‖/α. That b is the best is
    shown by db, which is 0 but for rounding.
    """
    dW, db = gradients(W, b, X.astype(np.float64), y, alpha)
    return {
        "loss": float(loss(W, b, X.astype(np.float64), y, alpha)),
        "weights_within": float(np.linalg.norm(dW)) / alpha,
        "largest_db": float(np.abs(db).max()),
    }


def cross_entropy_within(weights_within: float) -> float:
    """How exact a cross-entropy is at least, by the bound in the docstring above."""
    return 10 * 28 * math.sqrt(2) * weights_within


def minimise(X, y, alpha: float, within: float) -> tuple[np.ndarray, np.ndarray]:
    """The float64 W and b of least loss: Newton's method from 0 until ‖dW‖/alpha <= `within`.

    A step is halved until it shortens the gradient.
    """
    X64 = X.astype(np.float64)
    mean, covariance = X64.mean(axis=0), np.cov(X64.T, bias=True)

    def gradient_at(theta):
        dW, db = gradients(theta[:, :-1], theta[:, -1], X64, y, alpha)
        return np.column_stack([dW, db])

    theta = np.zeros((CLASSES, X.shape[1] + 1))  # W, and b as the last column
    gradient = gradient_at(theta)
    while np.linalg.norm(gradient) > within * alpha:
        length = np.linalg.norm(gradient)
        step = newton_step(theta, gradient, X, alpha, mean, covariance)
        while np.linalg.norm(gradient_at(theta + step)) >= length:
            step = step / 2
        theta = theta + step
        gradient = gradient_at(theta)
        print(f"  alpha {alpha}: length of the gradient {length:.1e}", flush=True)
    return theta[:, :-1], theta[:, -1]


def newton_step(theta, gradient, X, alpha: float, mean, covariance) -> np.ndarray:
    """The step that makes the gradient zero to first order, but for a small part of its length.

    The Hessian is in the float32 of X: twice as fast as in float64, and all that becomes less
    exact is the step.
    """
    yhat = softmax(theta[:, :-1].astype(X.dtype), theta[:, -1].astype(X.dtype), X)
    curvature = (yhat * (1 - yhat)).mean()
    inverse = np.linalg.inv(curvature * covariance + alpha * np.eye(len(mean)))

    def multiply(flat):
        direction = flat.reshape(theta.shape).astype(X.dtype)
        V, a = hessian_product(yhat, X, alpha, direction[:, :-1], direction[:, -1])
        return np.column_stack([V, a]).ravel()

    def precondition(flat):
        """Divide by what the Hessian would be if ŷ were independent of x, and of the class."""
        gradient = flat.reshape(theta.shape)
        R, r = gradient[:, :-1], gradient[:, -1]
        V = (R - np.outer(r, mean)) @ inverse
        return np.column_stack([V, r / curvature - V @ mean]).ravel()

    size = (theta.size, theta.size)
    length = np.linalg.norm(gradient)
    step, _ = cg(
        LinearOperator(size, multiply, dtype=np.float64),
        -gradient.ravel(),
        rtol=float(np.clip(math.sqrt(length), 1e-2, 0.25)),
        M=LinearOperator(size, precondition, dtype=np.float64),
    )
    return step.reshape(theta.shape)


def hessian_product(yhat, X, alpha: float, V, a) -> tuple[np.ndarray, np.ndarray]:
    """The derivative of (dW, db) along (V, a), of the shapes of W and b.

    Along (V, a), z changes by t = Vx + a, and so ŷ_k by ŷ_k (t_k - Σ_j ŷ_j t_j).
    """
    T = V @ X.T + a[:, None]
    D = yhat * (T - (yhat * T).sum(axis=0)) / len(X)
    return D @ X + alpha * V, D.sum(axis=1)


if __name__ == "__main__":
    write(NAME, measure)
