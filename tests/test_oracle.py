"""A whole run of the program, compared with a plain loop.

The loop is the homework as one would first write it, in float64: it reads the files, splits, trains
one model after the other, chooses, tests. It calls nothing in softmax_sgd.py. Its W is that of the
assignment, (pixels, classes).
"""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import DATA_FILES, GRID, SEED
from numpy.testing import assert_allclose


def probabilities(W, b, X):
    exp_z = np.exp(X @ W + b)
    return exp_z / exp_z.sum(axis=1, keepdims=True)


def metrics(W, b, X, y):
    """Cross-entropy, accuracy, and the share of images whose two best classes are almost equal.

    In float32, either of the two may come out as the best.
    """
    yhat = probabilities(W, b, X)
    second, first = np.sort(yhat, axis=1)[:, -2:].T
    undecided = (first - second < 1e-3).mean()
    cross_entropy = -np.log(yhat[np.arange(len(y)), y]).mean()
    return cross_entropy, (yhat.argmax(axis=1) == y).mean(), undecided


def train_one_epoch(W, b, X, y, batch_size, learning_rate, alpha):
    """X and y are in the order in which the epoch goes through them."""
    Y = np.eye(10)[y]
    for start in range(0, len(X), batch_size):
        batch = slice(start, start + batch_size)
        error = probabilities(W, b, X[batch]) - Y[batch]
        n = len(error)
        dW = X[batch].T @ error / n + alpha * W
        db = error.sum(axis=0) / n
        W, b = W - learning_rate * dW, b - learning_rate * db
    return W, b


def plain_run(folder):
    X, y, X_test, y_test = (np.load(folder / name) for name in DATA_FILES)
    X, X_test = X.astype(float) / 255, X_test.astype(float) / 255
    order = np.random.default_rng(SEED).permutation(len(X))  # seeded as in the program
    n_validation = len(X) // 5
    validation, train = order[:n_validation], order[n_validation:]

    curves, lowest = [], np.inf
    for batch_size, learning_rate, alpha in itertools.product(*GRID[:-1]):
        rng = np.random.default_rng([SEED, batch_size])
        W, b = np.zeros((X.shape[1], 10)), np.zeros(10)
        for epoch in range(1, GRID.epochs + 1):
            rows = rng.permutation(train)
            W, b = train_one_epoch(W, b, X[rows], y[rows], batch_size, learning_rate, alpha)
            curves.append(metrics(W, b, X[validation], y[validation]))
            if curves[-1][0] < lowest:
                lowest = curves[-1][0]
                values = [batch_size, learning_rate, alpha, epoch]
                best = SimpleNamespace(values=values, W=W, b=b)
    return SimpleNamespace(
        curves=np.array(curves),
        best=best.values,
        W=best.W,
        b=best.b,
        training=metrics(best.W, best.b, X[train], y[train]),
        validation=metrics(best.W, best.b, X[validation], y[validation]),
        test=metrics(best.W, best.b, X_test, y_test),
    )


@pytest.fixture(scope="module")
def right(finished_run):
    return plain_run(finished_run.own_files)


def test_the_plain_run_has_a_clear_winner_with_a_different_index_on_each_axis(right):
    """Otherwise, the next test could miss exchanged axes, or fail because of rounding."""
    advice = "choose another GRID or SEED in helpers.py"
    first, second = np.sort(right.curves[:, 0])[:2]
    assert second - first > 5e-3, f"{advice}: the second-best point is only {second - first} worse"
    axes = GRID.axes().values()
    indices = [list(values).index(value) for values, value in zip(axes, right.best, strict=True)]
    assert len(set(indices)) == len(indices), f"{advice}: the winner has the indices {indices}"
    for i, values in zip(indices, axes, strict=True):
        inside = 0 < i < len(values) - 1 or len(values) == 1
        assert inside, f"{advice}: the winner has the indices {indices}, one of them at an edge"


def assert_same(name, ours, right):
    """Float32 differs from the plain loop by some 1e-4, and in what is undecided."""
    (cross_entropy, accuracy), (right_cross_entropy, right_accuracy, undecided) = ours, right
    assert_allclose(cross_entropy, right_cross_entropy, atol=1e-3, err_msg=f"cross-entropy, {name}")
    doubt = np.max(np.abs(accuracy - right_accuracy) - undecided)
    assert doubt < 1e-6, f"accuracy, {name}: differs by {doubt:.4f} more than what is undecided"


def test_a_whole_run_gives_what_a_plain_loop_gives(finished_run, right):
    """All curves; then the winner, its weights, and its metrics."""
    results = finished_run.results
    curves = [finished_run.curves[name].ravel() for name in ("cross_entropy", "accuracy")]
    assert_same("validation, all points", curves, right.curves.T)
    assert list(results["best"].values()) == right.best, "the best hyperparameters"
    assert_allclose(finished_run.model["W"], right.W.T, atol=1e-3, err_msg="W")
    assert_allclose(finished_run.model["b"], right.b, atol=1e-3, err_msg="b")
    for part in ("training", "validation", "test"):
        assert_same(part, results[part].values(), getattr(right, part))
