"""Minibatches, and the steps that SGD takes with them."""

import numpy as np
import pytest
from helpers import assert_leaves_arguments_alone
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from softmax_sgd import Grid, gradients, minibatches, sgd

# --- Minibatches ----------------------------------------------------------------------------------


@given(n=st.integers(1, 40), batch_size=st.integers(1, 50), seed=st.integers(0, 99))
def test_an_epoch_has_every_row_once_in_batches_of_the_size(n, batch_size, seed):
    rows = np.arange(100, 100 + n)  # row numbers, not positions
    batches = list(minibatches(rows, batch_size, np.random.default_rng(seed)))
    assert rows.tolist() == list(range(100, 100 + n)), "the caller's rows were changed"
    assert sorted(np.concatenate(batches)) == rows.tolist(), "not every row comes exactly once"
    sizes = [len(batch) for batch in batches]
    full, rest = divmod(n, batch_size)
    assert sizes == [batch_size] * full + [rest] * (rest > 0), "sizes of the minibatches"


def test_every_epoch_has_another_order():
    rng = np.random.default_rng(0)
    first, second = (np.concatenate(list(minibatches(np.arange(50), 8, rng))) for _ in range(2))
    assert (first != np.arange(50)).any(), "the rows are not shuffled"
    assert (first != second).any(), "the rows are not shuffled again in the second epoch"


# --- Steps ----------------------------------------------------------------------------------------


def test_without_a_minibatch_nothing_changes(problem):
    p = problem
    W, b = sgd(p.W, p.b, p.X, p.y, p.alpha, p.learning_rate, [])[:2]
    assert_array_equal(W, p.W)
    assert_array_equal(b, p.b)


def test_sgd_leaves_its_arguments_alone(problem):
    p = problem
    batches = [np.array([7, 2, 11])]
    assert_leaves_arguments_alone(sgd, p.W, p.b, p.X, p.y, p.alpha, p.learning_rate, batches)


def test_each_minibatch_is_one_step_down_its_own_gradients(problem):
    """Also the last and shorter one, and for each model of a stack with its own rate and alpha."""
    p = problem
    batches = [np.array(rows) for rows in ([7, 2, 11], [0, 12, 5], [9])]
    right_W, right_b = p.W.copy(), p.b.copy()
    for steps, rows in enumerate(batches, start=1):
        dW, db = gradients(right_W, right_b, p.X[rows], p.y[rows], p.alpha)
        right_W = right_W - p.learning_rate * dW
        right_b = right_b - p.learning_rate * db
        W, b = sgd(p.W, p.b, p.X, p.y, p.alpha, p.learning_rate, batches[:steps])[:2]
        assert_allclose(W, right_W, err_msg=f"W after step {steps}: not W − ε dW")
        assert_allclose(b, right_b, err_msg=f"b after step {steps}: not b − ε db")


def test_a_model_that_diverges_harms_no_other_model_of_its_stack():
    rng = np.random.default_rng(0)
    X, y = rng.random((12, 5)), rng.integers(0, 4, 12)
    W, b = np.zeros((5, 4, 2)), np.zeros((4, 2))
    batches = [np.arange(12)] * 50
    with np.errstate(all="ignore"):
        W_stack, b_stack = sgd(W, b, X, y, np.array([1e6, 0.1]), np.array([1e6, 0.1]), batches)[:2]
    W_alone, b_alone = sgd(W[..., 1], b[..., 1], X, y, 0.1, 0.1, batches)[:2]
    assert not np.isfinite(W_stack[..., 0]).all(), "the model that should diverge does not"
    assert_allclose(W_stack[..., 1], W_alone)
    assert_allclose(b_stack[..., 1], b_alone)


# --- In float32, the precision that trains --------------------------------------------------------


@pytest.fixture(scope="module")
def train_in_both_precisions():
    """What 400 steps do in float32 and in float64, from weights as large as trained ones.

    Returns a function (alphas, learning rates) -> {dtype: (W, b)} for a stack.
    """
    rng = np.random.default_rng(0)
    n, m, c = 480, 200, 10
    X, y = rng.random((n, m)), rng.integers(0, c, n)
    W, b = rng.normal(0, 0.2, (m, c, 1)), rng.normal(0, 0.2, (c, 1))
    batches = [*minibatches(np.arange(n), 12, rng)] * 10

    def train(alphas, learning_rates):
        K = len(alphas)
        return {
            dtype: sgd(
                np.repeat(W, K, axis=-1).astype(dtype),
                np.repeat(b, K, axis=-1).astype(dtype),
                X.astype(dtype),
                y,
                np.array(alphas),
                np.array(learning_rates),
                batches,
            )[:2]
            for dtype in (np.float32, np.float64)
        }

    return train


@pytest.mark.parametrize("learning_rate", Grid().learning_rates)
@pytest.mark.parametrize("alpha", [1e-6, 1e-5, 1e-4, 1e-3])
def test_float32_regularises_as_much_as_alpha_asks(train_in_both_precisions, alpha, learning_rate):
    """What alpha does to W, all in all, is within 3% of what it does in float64.

    Not so for the step (1 − εα)W − ε(dW − αW), which is equal on paper: if α is small, 1 − εα
    in float32 is one of very few numbers.
    """
    alphas, learning_rates = [0.0, alpha], [learning_rate] * 2
    effect = {}
    for dtype, (W, _) in train_in_both_precisions(alphas, learning_rates).items():
        W = W.astype(np.float64)
        effect[dtype] = (W[..., 1] - W[..., 0]).ravel()
    exact = effect[np.float64]
    share = effect[np.float32] @ exact / (exact @ exact)
    assert abs(share - 1) < 0.03, f"the effective alpha is {share:.2f} of {alpha}"


def test_float32_moves_W_and_b_as_far_as_float64(train_in_both_precisions):
    learning_rates = Grid().learning_rates
    trained = train_in_both_precisions([1e-4] * len(learning_rates), learning_rates)
    for name, ours, right in zip("Wb", trained[np.float32], trained[np.float64], strict=True):
        assert ours.dtype == np.float32, f"{name} is {ours.dtype}"
        assert_allclose(ours, right, rtol=1e-3, atol=1e-4, err_msg=name)
