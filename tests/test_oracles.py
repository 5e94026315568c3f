"""Others arrive at the same numbers by other ways."""

import itertools
import re
from math import exp, log

import numpy as np
import pytest
from conftest import FRACTION, GRID, LARGE, NAMES, SEED

from softmax_sgd import cross_entropy, gradients, loss

# --- Loss and gradients ---------------------------------------------------------------------------


def softmax_by_loops(W, b, x):
    z = [sum(x[j] * W[j][k] for j in range(len(x))) + b[k] for k in range(len(b))]
    return [exp(z_k) / sum(map(exp, z)) for z_k in z]


def gradients_by_loops(W, b, X, y, alpha):
    """Problem 2 of the assignment as it stands there: a sum over i, k and l, in two cases."""
    c = len(b)
    dW, db = alpha * W, np.zeros(c)
    for i in range(len(X)):
        yhat = softmax_by_loops(W, b, X[i])
        for l in range(c):  # noqa: E741
            for k in range(c):
                slope = yhat[l] * (1 - yhat[l]) if l == k else -yhat[k] * yhat[l]
                if k == y[i]:
                    dW[:, l] -= X[i] * slope / yhat[k] / len(X)
                    db[l] -= slope / yhat[k] / len(X)
    return dW, db


def test_loss_and_gradients_equal_the_sums_of_the_assignment(problem):
    p = problem
    dW, db = gradients(p.W, p.b, p.X, p.y, p.alpha)
    value = loss(p.W, p.b, p.X, p.y, p.alpha)
    for k in np.ndindex(p.W.shape[2:]):  # each model of the stack, or the only one
        model = (..., *k)
        W, b, alpha = p.W[model], p.b[model], p.alpha[model]
        plain = -sum(log(softmax_by_loops(W, b, x)[y_i]) for x, y_i in zip(p.X, p.y))
        plain = plain / len(p.X) + alpha / 2 * sum(w**2 for w in W.flat)
        np.testing.assert_allclose(value[model], plain, rtol=1e-13)
        for ours, theirs in zip((dW, db), gradients_by_loops(W, b, p.X, p.y, alpha)):
            np.testing.assert_allclose(ours[model], theirs, rtol=1e-11)


def test_scikit_learn_agrees_on_the_optimum():
    """Its C weighs the summed loss against ||W||^2 / 2: alpha = 1 / (n C)."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(2)
    X, y, alpha = rng.uniform(0, 1, (50, 6)), rng.permutation(np.arange(50) % 10), 0.1
    peer = linear_model.LogisticRegression(C=1 / (alpha * 50), tol=1e-10, max_iter=10000)
    peer.fit(X, y)
    W, b = peer.coef_.T, peer.intercept_
    theirs = metrics.log_loss(y, peer.predict_proba(X))
    np.testing.assert_allclose(cross_entropy(W, b, X, y), theirs, rtol=1e-9)
    for gradient in gradients(W, b, X, y, alpha):
        np.testing.assert_allclose(gradient, 0, atol=1e-7)


@pytest.mark.parametrize("alpha", [0.0, LARGE])
def test_pytorch_agrees_on_loss_and_gradients(problem, alpha):
    torch = pytest.importorskip("torch")
    p = problem
    W, b = (torch.tensor(a, requires_grad=True) for a in (p.W, p.b))
    X, y, total = torch.tensor(p.X), torch.tensor(p.y), 0
    for k in np.ndindex(p.W.shape[2:]):
        w, a = W[(..., *k)], b[(..., *k)]
        total = total + torch.nn.functional.cross_entropy(X @ w + a, y) + alpha / 2 * (w**2).sum()
    total.backward()
    value = loss(p.W, p.b, p.X, p.y, alpha).sum()
    np.testing.assert_allclose(value, total.item(), rtol=1e-13)
    for ours, theirs in zip(gradients(p.W, p.b, p.X, p.y, alpha), (W.grad, b.grad)):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-11, atol=1e-14)


# --- A whole run of the program -------------------------------------------------------------------

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
    for point in itertools.product(*GRID[:3]):
        batch_size, learning_rate, alpha = point
        decay = 0 if made("alpha is missing from the gradient") else alpha
        decay /= len(train) if made("alpha is divided by n") else 1
        decay /= batch_size if made("alpha is divided by the batch size") else 1
        seed = 0 if made("the batches ignore --seed") else SEED
        rng = np.random.default_rng([seed, batch_size])
        batch_size = len(train) if made("whole batches, not minibatches") else batch_size
        batch_size = 1 if made("one example per batch") else batch_size

        W, b = np.zeros((X.shape[1], 10)), np.zeros(10)
        order = rng.permutation(train)
        for epoch in range(1, GRID.epochs + 1):
            order = train if made("the examples are not shuffled") else order
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                if made("the last partial batch is dropped") and len(rows) < batch_size:
                    continue
                D = (np.exp(log_softmax(W, b, X[rows])) - np.eye(10)[y[rows]]) / len(rows)
                W = W - learning_rate * (X[rows].T @ D + decay * W)
                if not made("the bias never learns"):
                    b = b - learning_rate * D.sum(axis=0)
            if not made("the order is the same in each epoch"):
                order = rng.permutation(train)

            ce, accuracy = measure(W, b, X_judge, y_judge)
            penalty = alpha / 2 * (W**2).sum()
            ce += penalty if made("the validation curves are regularised") else 0
            rank = -accuracy if made("selection by accuracy") else ce
            rank += penalty if made("selection on the regularised validation loss") else 0
            if rank < lowest:
                best, lowest, validated = (*point, epoch), rank, (ce, accuracy)
                W_best, b_best, penalty_best = W, b, penalty
            if made("the weights tested are those of the last epoch") and best[:3] == point:
                W_best, b_best = W, b

    b_best = b_best * (not made("the bias is dropped in the test"))
    tested = measure(W_best, b_best, X_test, y_test)
    if made("the test cross-entropy is regularised"):
        tested = tested[0] + penalty_best, tested[1]
    if made("the validation cross-entropy reported is regularised"):
        validated = validated[0] + penalty_best, validated[1]
    if made("the loop's last values are printed as the best"):
        best = (*point, epoch)
    if made("one epoch too few is reported"):
        best = (*best[:3], best[3] - 1)
    return [*best, *validated, *tested]


def agree(figures, others):
    return np.allclose(figures, others, rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def by_loops(run):
    """The right figures, and those of each mistake."""
    asked = {}
    right = run_by_loops(run.own_files, made=lambda mistake: asked.setdefault(mistake, False))
    return right, {mistake: run_by_loops(run.own_files, made=mistake.__eq__) for mistake in asked}


@pytest.mark.parametrize("source", ["stdout", "results.json"])
def test_the_run_is_that_of_the_assignment(run, by_loops, source):
    if source == "stdout":
        figures = [float(text) for text in FIGURES.search(run.stdout).groups()]
        figures[5], figures[7] = figures[5] / 100, figures[7] / 100  # they are percentages
    else:
        parts = (run.results[part].values() for part in ("best", "validation", "test"))
        figures = [*itertools.chain(*parts)]
    for value, values in zip(figures, (*GRID[:3], range(1, GRID.epochs + 1))):
        assert value in values, f"the final hyperparameter {value} is not in the declared grid"
    right, wrong = by_loops
    guess = [mistake for mistake in wrong if agree(figures, wrong[mistake])]
    assert agree(figures, right), f"{figures}, not {right}; a guess: {guess}"


def test_that_run_would_show_each_mistake(by_loops):
    right, wrong = by_loops
    assert [mistake for mistake in wrong if agree(wrong[mistake], right)] == []
