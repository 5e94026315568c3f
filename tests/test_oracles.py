"""Others arrive at the same numbers by other ways."""

from math import exp, log

import numpy as np
import pytest
from conftest import LARGE

from softmax_sgd import cross_entropy, gradients, loss, sgd


def model(p, k):
    """W, b, alpha of the k-th model of a stack, or of the only one."""
    return (p.W[..., k], p.b[..., k], p.alpha[k]) if p.W.ndim == 3 else (p.W, p.b, p.alpha)


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
    for k in range(p.W.shape[2]) if p.W.ndim == 3 else [...]:
        W, b, alpha = model(p, k)
        plain = -sum(log(softmax_by_loops(W, b, x)[y]) for x, y in zip(p.X, p.y, strict=True))
        plain = plain / len(p.X) + alpha / 2 * sum(w**2 for w in W.flat)
        np.testing.assert_allclose(value[k], plain, rtol=1e-13)
        for ours, theirs in zip((dW, db), gradients_by_loops(W, b, p.X, p.y, alpha), strict=True):
            np.testing.assert_allclose(ours[..., k] if p.W.ndim == 3 else ours, theirs, rtol=1e-11)


def test_a_stack_trains_like_its_models_one_by_one(stack):
    """The stacked SGD against a plain loop with formulas of its own, on the same minibatches."""
    s = stack
    rng = np.random.default_rng(5)
    batches = [rng.choice(50, size, replace=False) for size in (16, 16, 16, 2) * 5]
    W, b = sgd(s.W, s.b, s.X, s.y, s.alpha, s.learning_rate, batches)
    for k in range(4):
        w, a = s.W[..., k].copy(), s.b[..., k].copy()
        for rows in batches:
            e = np.exp(s.X[rows] @ w + a)
            error = e / e.sum(axis=1, keepdims=True) - np.eye(10)[s.y[rows]]
            w -= s.learning_rate[k] * (s.X[rows].T @ error / len(rows) + s.alpha[k] * w)
            a -= s.learning_rate[k] * error.mean(axis=0)
        np.testing.assert_allclose(W[..., k], w, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(b[..., k], a, rtol=1e-12, atol=1e-12)


def test_full_batch_descent_finds_the_optimum_of_scipy(stack):
    optimize = pytest.importorskip("scipy.optimize")
    m, c, alpha = 6, 10, 0.1

    def objective(v):
        W, b = v[: m * c].reshape(m, c), v[m * c :]
        dW, db = gradients(W, b, stack.X, stack.y, alpha)
        return loss(W, b, stack.X, stack.y, alpha), np.concatenate([dW.ravel(), db])

    start = np.zeros(m * c + c)
    best = optimize.minimize(objective, start, jac=True, options={"gtol": 1e-9})
    W, b = sgd(np.zeros((m, c)), np.zeros(c), stack.X, stack.y, alpha, 1.0, [np.arange(50)] * 3000)
    np.testing.assert_allclose(loss(W, b, stack.X, stack.y, alpha), best.fun, rtol=1e-12)
    np.testing.assert_allclose(W, best.x[: m * c].reshape(m, c), atol=1e-6)


def test_scikit_learn_agrees_on_the_optimum(stack):
    """Its C weighs the summed loss against ||W||^2 / 2: alpha = 1 / (n C)."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    alpha = 0.1
    peer = linear_model.LogisticRegression(C=1 / (alpha * 50), tol=1e-10, max_iter=10000)
    peer.fit(stack.X, stack.y)
    log_loss = pytest.importorskip("sklearn.metrics").log_loss
    W, b = peer.coef_.T, peer.intercept_
    theirs = log_loss(stack.y, peer.predict_proba(stack.X))
    np.testing.assert_allclose(cross_entropy(W, b, stack.X, stack.y), theirs, rtol=1e-9)
    for gradient in gradients(W, b, stack.X, stack.y, alpha):
        np.testing.assert_allclose(gradient, 0, atol=1e-7)


@pytest.mark.parametrize("alpha", [0.0, LARGE])
def test_pytorch_agrees_on_loss_and_gradients(problem, alpha):
    torch = pytest.importorskip("torch")
    X, y = torch.tensor(problem.X), torch.tensor(problem.y)
    total = 0
    parameters = [torch.tensor(a, requires_grad=True) for a in (problem.W, problem.b)]
    W, b = (a.reshape(*a.shape[: 3 - i], -1) for i, a in enumerate(parameters, start=1))
    for k in range(W.shape[-1]):
        z = X @ W[..., k] + b[..., k]
        total = total + torch.nn.functional.cross_entropy(z, y) + alpha / 2 * (W[..., k] ** 2).sum()
    total.backward()
    ours = gradients(problem.W, problem.b, problem.X, problem.y, alpha)
    value = loss(problem.W, problem.b, problem.X, problem.y, alpha).sum()
    np.testing.assert_allclose(value, total.item(), rtol=1e-13)
    for mine, theirs in zip(ours, parameters, strict=True):
        np.testing.assert_allclose(mine, theirs.grad.numpy(), rtol=1e-11, atol=1e-14)
