"""Whole runs beside an outsider: a plain loop over the models of the grid, and scikit-learn.

The loop below is the homework as one would first write it, in float64: it reads the files, splits,
trains one model after the other, chooses, tests. It uses nothing of softmax_sgd.py. Its W is that
of the assignment, (pixels, classes). Whoever adds a hyperparameter to the program adds it here.
"""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import DATA_FILES, GRID, SEED
from numpy.testing import assert_allclose

from softmax_sgd import gradients, load


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
    order = np.random.default_rng(SEED).permutation(60)  # the seeds are those of the program
    validation, train = order[:12], order[12:]

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


def test_exchanged_indices_would_show_in_the_plain_run(right):
    """The indices of its winner differ, and none is the first or the last of several."""
    axes = [*GRID[:-1], range(1, GRID.epochs + 1)]
    indices = [list(values).index(best) for values, best in zip(axes, right.best, strict=True)]
    advice = f"choose another GRID or SEED in helpers.py: the winner has the indices {indices}"
    assert len(set(indices)) == len(indices), advice
    for i, values in zip(indices, axes, strict=True):
        # A new hyperparameter may have one value.
        assert len(values) == 1 or 0 < i < len(values) - 1, advice


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


@pytest.fixture
def minimum(own_files):
    """The minimum of the regularised loss on the training file, found by scikit-learn."""
    from sklearn.linear_model import LogisticRegression

    X, y, _, _ = load(own_files)
    X, alpha = X.astype(np.float64), 0.01
    # It minimises C times the sum of the losses, plus ‖W‖²/2.
    model = LogisticRegression(C=1 / (len(X) * alpha), tol=1e-10, max_iter=10_000).fit(X, y)
    return SimpleNamespace(X=X, y=y, alpha=alpha, W=model.coef_, b=model.intercept_)


def test_the_gradients_are_zero_where_scikit_learn_finds_the_minimum(minimum):
    dW, db = gradients(minimum.W, minimum.b, minimum.X, minimum.y, minimum.alpha)
    assert_allclose(dW, 0, atol=1e-6, err_msg="dW")
    assert_allclose(db, 0, atol=1e-6, err_msg="db")
