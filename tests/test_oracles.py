"""Others arrive at the same numbers by other ways."""

import itertools
import re

import numpy as np
import pytest
from conftest import FRACTION, GRID, NAMES, SEED

from softmax_sgd import cross_entropy, gradients


def test_scikit_learn_agrees_on_the_optimum():
    """Its C weighs the summed loss against ||W||^2 / 2: alpha = 1 / (n C)."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(2)
    X, y, alpha = rng.uniform(0, 1, (50, 6)), rng.permutation(np.arange(50) % 10), 0.1
    peer = linear_model.LogisticRegression(C=1 / (alpha * 50), tol=1e-10, max_iter=10000)
    peer.fit(X, y)
    W, b = peer.coef_.T, peer.intercept_
    theirs = -np.log(peer.predict_proba(X)[range(50), y]).mean()
    np.testing.assert_allclose(cross_entropy(W, b, X, y), theirs, rtol=1e-9)
    for gradient in gradients(W, b, X, y, alpha):
        np.testing.assert_allclose(gradient, 0, atol=1e-7)


FIGURES = re.compile(
    r"\nBest: batch size (\S+), learning rate (\S+), alpha (\S+), epochs (\S+)\n(?:Note.*\n)*"
    r"\nValidation cross-entropy: (\S+)\nValidation accuracy: (\S+)%"
    r"\nTest cross-entropy \(unregularized\): (\S+)\nTest accuracy: (\S+)%\n$"
)


def log_softmax(W, b, X):
    z = X @ W + b
    return z - np.logaddexp.reduce(z, axis=1, keepdims=True)


def measure(W, b, X, y):
    log_yhat = log_softmax(W, b, X)
    return -log_yhat[range(len(y)), y].mean(), (log_yhat.argmax(axis=1) == y).mean()


def run_by_loops(folder, made):
    """The eight FIGURES of the assignment, done in plain NumPy, in float64, model by model.

    At each step it asks whether a mistake is `made` there that was found in students' solutions.
    """
    X, y, X_test, y_test = (np.load(folder / name) for name in NAMES)
    X, X_test = X / 255, X_test / (1 if made("the test images are not divided by 255") else 255)

    seed = 0 if made("the split ignores --seed") else SEED
    order = np.random.default_rng(seed).permutation(len(X))
    validation, train = np.split(order, [round(FRACTION * len(X))])
    X_judge, y_judge = X[validation], y[validation]
    if made("the validation images train, too"):
        train = order
    if made("validation is on the training images"):
        X_judge, y_judge = X[train], y[train]
    if made("the test set is inside the search"):
        X_judge, y_judge = X_test, y_test

    best, lowest = None, np.inf
    # In this order, the first of equals is the one that wins.
    for point in itertools.product(GRID.batch_sizes[::-1], GRID.learning_rates, GRID.alphas[::-1]):
        batch_size, learning_rate, alpha = point
        decay = 0 if made("alpha is missing from the gradient") else alpha
        decay /= len(train) if made("alpha is divided by n") else 1
        decay /= batch_size if made("alpha is divided by the batch size") else 1
        seed = 0 if made("the batches ignore --seed") else SEED
        rng = np.random.default_rng([seed, batch_size])
        batch_size = len(train) if made("whole batches, not minibatches") else batch_size
        batch_size = 1 if made("one example per batch") else batch_size

        W, b = np.zeros((X.shape[1], 10)), np.zeros(10)
        order, accuracies = rng.permutation(train), []
        for epoch in range(1, GRID.epochs + 1):
            order = train if made("the examples are not shuffled") else order
            W_before, b_before = W, b
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                if made("the last partial batch is dropped") and len(rows) < batch_size:
                    continue
                if made("only the last minibatch's update is kept"):
                    W, b = W_before, b_before
                D = (np.exp(log_softmax(W, b, X[rows])) - np.eye(10)[y[rows]]) / len(rows)
                dW, db = X[rows].T @ D + decay * W, D.sum(axis=0)
                db = 0 * db if made("the bias never learns") else db
                db = -db if made("the bias goes up its gradient") else db
                W, b = W - learning_rate * dW, b - learning_rate * db
            if made("the bias is dropped after each epoch"):
                b = 0 * b
            if not made("the order is the same in each epoch"):
                order = rng.permutation(train)

            ce, accuracy = measure(W, b, X_judge, y_judge)
            accuracies.append(accuracy)
            penalty = alpha / 2 * (W**2).sum()
            ce += penalty if made("the validation curves are regularised") else 0
            rank = ce + (penalty if made("selection on the regularised validation loss") else 0)
            rank = -accuracy if made("selection by accuracy") else rank
            if rank < lowest - 1e-9:
                best, lowest, validated = (*point, epoch), rank, (ce, accuracy)
                W_best, b_best, penalty_best = W, b, penalty
            if made("the weights tested are those of the last epoch") and best[:3] == point:
                W_best, b_best = W, b
            if made("the last epoch is reported as the best") and best[:3] == point:
                validated = ce, accuracy
            if made("the highest accuracy of the winner is reported") and best[:3] == point:
                validated = validated[0], max(accuracies)

    b_best = b_best * (not made("the bias is dropped in the test"))
    tested = measure(W_best, b_best, X_test, y_test)
    if made("the test figures are those of validation"):
        tested = validated
    if made("the test cross-entropy is regularised"):
        tested = tested[0] + penalty_best, tested[1]
    if made("the validation cross-entropy reported is regularised"):
        validated = validated[0] + penalty_best, validated[1]
    if made("the loop's last values are printed as the best"):
        best = (*(values[-1] for values in GRID[:3]), GRID.epochs)
    if made("one epoch too few is reported"):
        best = (*best[:3], best[3] - 1)
    return [float(figure) for figure in (*best, *validated, *tested)]


def agree(figures, others):
    return np.allclose(figures, others, rtol=0, atol=1e-4)


@pytest.fixture(scope="session")
def by_loops(run):
    """The right figures, and those of each mistake."""
    asked = {}
    right = run_by_loops(run.own_files, made=lambda mistake: asked.setdefault(mistake, False))
    return right, {mistake: run_by_loops(run.own_files, made=mistake.__eq__) for mistake in asked}


def test_the_run_is_that_of_the_assignment(run, by_loops):
    figures = [float(text) for text in FIGURES.search(run.stdout).groups()]
    figures[5], figures[7] = figures[5] / 100, figures[7] / 100  # they are percentages
    right, wrong = by_loops
    guess = [mistake for mistake in wrong if agree(figures, wrong[mistake])]
    # Of equals, rounding may choose another; then only the measures tell.
    guess = guess or [mistake for mistake in wrong if agree(figures[4:], wrong[mistake][4:])]
    names = "batch size", "learning rate", "alpha", "epochs", "cross-entropy", "accuracy"
    names += "test cross-entropy", "test accuracy"
    differ = [
        f"{name} {ours:.5g}, not {theirs:.5g}"
        for name, ours, theirs in zip(names, figures, right)
        if not agree(ours, theirs)
    ]
    assert not differ, f"a guess: {guess}; {differ}"


def test_that_run_would_show_each_mistake(by_loops):
    right, wrong = by_loops
    assert [mistake for mistake in wrong if agree(wrong[mistake], right)] == []
