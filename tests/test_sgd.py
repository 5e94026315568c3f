"""Minibatches, and the steps that SGD takes with them."""

import numpy as np
import pytest
from helpers import assert_leaves_arguments_alone
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from softmax_sgd import gradients, minibatches, sgd

# --- Minibatches ----------------------------------------------------------------------------------


@given(n=st.integers(1, 40), batch_size=st.integers(1, 50), seed=st.integers(0, 99))
def test_an_epoch_visits_every_row_once_in_batches_of_the_given_size(n, batch_size, seed):
    rows = np.arange(100, 100 + n)  # so that an index into `rows` is not a row
    batches = list(minibatches(rows, batch_size, np.random.default_rng(seed)))
    assert rows.tolist() == list(range(100, 100 + n)), "the caller's rows were changed"
    seen = sorted(row for batch in batches for row in batch)
    assert seen == rows.tolist(), "not every row comes exactly once"
    sizes = [len(batch) for batch in batches]
    right = [min(batch_size, n - start) for start in range(0, n, batch_size)]
    assert sizes == right, "sizes of the minibatches"


def test_every_epoch_has_another_order():
    rng = np.random.default_rng(0)
    first, second = (np.concatenate(list(minibatches(np.arange(50), 8, rng))) for _ in range(2))
    assert (first != np.arange(50)).any(), "the rows are not shuffled"
    assert (first != second).any(), "the rows are not shuffled again in the second epoch"


# --- Steps ----------------------------------------------------------------------------------------


def test_sgd_leaves_its_arguments_alone(problem):
    p = problem
    batches = [np.array([7, 2, 11])]
    assert_leaves_arguments_alone(sgd, p.W, p.b, p.X, p.y, p.alpha, p.learning_rate, batches)


def test_each_minibatch_is_one_step_down_its_own_gradients(problem):
    """Also the last and shorter one, and for each model of a stack with its own rate and alpha."""
    p = problem
    rate_W, rate_b = p.learning_rate[..., None, None], p.learning_rate[..., None]
    batches = [np.array(rows) for rows in ([7, 2, 11], [0, 12, 5], [9])]
    right_W, right_b = p.W.copy(), p.b.copy()
    for steps, rows in enumerate(batches, start=1):
        dW, db = gradients(right_W, right_b, p.X[rows], p.y[rows], p.alpha)
        right_W = right_W - rate_W * dW
        right_b = right_b - rate_b * db
        W, b = sgd(p.W, p.b, p.X, p.y, p.alpha, p.learning_rate, batches[:steps])
        assert_allclose(W, right_W, err_msg=f"W after step {steps}: not W − ε dW")
        assert_allclose(b, right_b, err_msg=f"b after step {steps}: not b − ε db")


# --- In float32, the precision that trains --------------------------------------------------------


def test_float32_gradients_are_float32_and_close_to_those_in_float64(problem):
    p = problem
    W, b, X = (array.astype(np.float32) for array in (p.W, p.b, p.X))
    ours = gradients(W, b, X, p.y, p.alpha)
    right = gradients(p.W, p.b, p.X, p.y, p.alpha)
    for name, array, right_array in zip(("dW", "db"), ours, right, strict=True):
        assert array.dtype == np.float32, f"{name} is {array.dtype}, and slower"
        assert_allclose(array, right_array, rtol=1e-4, atol=1e-5, err_msg=name)


def train(dtype, alphas, learning_rate):
    """The W and b of a stack after 400 steps from weights as large as trained ones."""
    rng = np.random.default_rng(0)
    n, m, c, K = 480, 200, 10, len(alphas)
    X, y = rng.random((n, m)), rng.integers(0, c, n)
    W, b = rng.normal(0, 0.2, (1, c, m)), rng.normal(0, 0.2, (1, c))
    batches = [*minibatches(np.arange(n), 12, rng)] * 10
    W, b, X = (array.astype(dtype) for array in (W.repeat(K, axis=0), b.repeat(K, axis=0), X))
    return sgd(W, b, X, y, np.array(alphas), np.full(K, learning_rate), batches)


@pytest.mark.parametrize("learning_rate", [0.005, 0.02])
def test_float32_regularises_as_much_as_alpha_asks(learning_rate):
    """The total effect of alpha on W is within 3% of that in float64.

    This forbids the step (1 − εα)W − ε(Ŷ − Y)X/n, which is the same on paper: in float32, 1 − εα is
    rounded to 1 or to a number next to it, so a small alpha acts too weakly or too strongly.
    """
    alphas = [0.0, 1e-5, 1e-4, 1e-3]
    W, right_W = (
        train(dtype, alphas, learning_rate)[0].astype(np.float64)
        for dtype in (np.float32, np.float64)
    )
    for k in range(1, len(alphas)):
        effect, right = ((w[k] - w[0]).ravel() for w in (W, right_W))
        share = effect @ right / (right @ right)  # least squares: effect ≈ share · right
        assert abs(share - 1) < 0.03, f"alpha {alphas[k]} acts like {share:.2f} of it"


def test_float32_moves_W_and_b_as_far_as_float64():
    ours, right = (train(dtype, [1e-4, 0.01], 0.05) for dtype in (np.float32, np.float64))
    for name, array, right_array in zip("Wb", ours, right, strict=True):
        assert array.dtype == np.float32, f"{name} is {array.dtype}"
        assert_allclose(array, right_array, rtol=1e-3, atol=1e-4, err_msg=name)
