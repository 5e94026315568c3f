"""The gradients are those of the loss, for a model and for a stack, and they are what trains."""

import numpy as np
import pytest
from conftest import LARGE

from softmax_sgd import gradients, loss, sgd


def central_differences(f, array, h=1e-5):
    """The derivative of f() by every coordinate of `array`, which f reads."""
    slope = np.empty_like(array)
    for at in np.ndindex(array.shape):
        middle = array[at]
        array[at] = middle + h
        above = f()
        array[at] = middle - h
        slope[at] = (above - f()) / (2 * h)
        array[at] = middle
    return slope


def check(gradients, p, alpha):
    """Compare `gradients` with central differences of the loss, in each coordinate of W and b."""

    def total():  # each coordinate belongs to one model, so the sum has every model's slopes
        return loss(p.W, p.b, p.X, p.y, alpha).sum()

    for name, array, gradient in zip(
        ("dW", "db"), (p.W, p.b), gradients(p.W, p.b, p.X, p.y, alpha), strict=True
    ):
        assert gradient.shape == array.shape, f"{name} is not of the shape of its parameter"
        np.testing.assert_allclose(
            gradient,
            central_differences(total, array),
            rtol=1e-6,
            atol=1e-10,
            err_msg=f"{name} is not the slope of the loss at alpha = {alpha}",
        )


@pytest.mark.parametrize("alpha", [0.0, LARGE])
def test_gradients_are_the_slopes_of_the_loss(problem, alpha):
    check(gradients, problem, alpha)


def test_gradients_are_right_for_a_different_alpha_in_each_model(problem):
    check(gradients, problem, problem.alpha)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_gradients_are_right_on_a_ragged_batch(problem, n):
    problem.X, problem.y = problem.X[-n:], problem.y[-n:]
    check(gradients, problem, problem.alpha)


MISTAKES = {
    "one coordinate of dW wrong by 0.1%": lambda dW, db, p: (dW * scaled(dW), db),
    "one coordinate of db wrong by 0.1%": lambda dW, db, p: (dW, db * scaled(db)),
    "sign of the alpha term": lambda dW, db, p: (dW - 2 * p.alpha * p.W, db),
    "alpha divided by n": lambda dW, db, p: (dW - p.alpha * p.W * (1 - 1 / len(p.X)), db),
    "alpha missing": lambda dW, db, p: (dW - p.alpha * p.W, db),
    "bias penalised": lambda dW, db, p: (dW, db + p.alpha * p.b),
    "bias gradient summed over the classes": lambda dW, db, p: (dW, db * 0 + db.sum(axis=0)),
    "sign of the bias gradient": lambda dW, db, p: (dW, -db),
    "sum in place of mean": lambda dW, db, p: (dW * len(p.X), db * len(p.X)),
}


def scaled(gradient):
    factor = np.ones_like(gradient)
    factor[1] = 1.001
    return factor


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_check_reports_a_wrong_gradient(problem, mistake):
    def wrong(W, b, X, y, alpha):
        return MISTAKES[mistake](*gradients(W, b, X, y, alpha), problem)

    with pytest.raises(AssertionError, match="is not the slope of the loss"):
        check(wrong, problem, problem.alpha)


@pytest.mark.data
@pytest.mark.parametrize("alpha", [0.0, LARGE])
def test_slope_along_random_directions_on_real_images(real, alpha):
    rng = np.random.default_rng(4)
    X, y = real.X[:256].astype(np.float64), real.y[:256]
    W, b = rng.normal(0, 0.1, (784, 10)), rng.normal(0, 0.1, 10)
    dW, db = gradients(W, b, X, y, alpha)
    for _ in range(5):
        U, u = rng.normal(size=W.shape), rng.normal(size=b.shape)
        h = 1e-5 / np.sqrt((U**2).sum() + (u**2).sum())
        above, below = (loss(W + s * U, b + s * u, X, y, alpha) for s in (h, -h))
        np.testing.assert_allclose((dW * U).sum() + db @ u, (above - below) / (2 * h), rtol=1e-6)


def test_a_full_batch_step_of_rate_1_subtracts_the_gradient(problem):
    p = problem
    W, b = sgd(p.W, p.b, p.X, p.y, p.alpha, 1.0, [np.arange(len(p.X))])
    dW, db = gradients(p.W, p.b, p.X, p.y, p.alpha)
    np.testing.assert_array_equal(W, p.W - dW)
    np.testing.assert_array_equal(b, p.b - db)


def test_the_bias_learns(problem):
    """The classes' bias gradients sum to zero, so a bias shared by all classes would never move."""
    _, db = gradients(problem.W, problem.b, problem.X, problem.y, problem.alpha)
    np.testing.assert_allclose(db.sum(axis=0), 0, atol=1e-15)
    assert (abs(db) > 1e-3).all(), "the bias gradient vanishes"


def test_gradients_follow_the_dtype(problem):
    arrays = [a.astype(np.float32) for a in (problem.W, problem.b, problem.X)]
    dW, db = gradients(*arrays, problem.y, problem.alpha)
    assert dW.dtype == db.dtype == np.float32
    exact = gradients(problem.W, problem.b, problem.X, problem.y, problem.alpha)
    np.testing.assert_allclose(dW, exact[0], atol=1e-5)
    np.testing.assert_allclose(db, exact[1], atol=1e-5)
