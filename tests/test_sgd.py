"""Lemmas on the minibatches and on the steps that they make."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softmax_sgd import accuracy, cross_entropy, gradients, minibatches, sgd


@given(n=st.integers(1, 60), batch_size=st.integers(1, 70), seed=st.integers(0, 2**32))
def test_every_example_is_used_exactly_once_an_epoch(n, batch_size, seed):
    rows = np.arange(100, 100 + n)
    batches = list(minibatches(rows, batch_size, np.random.default_rng(seed)))
    used = sorted(row for batch in batches for row in batch)
    assert used == list(rows), "an example was dropped or repeated"
    full, rest = divmod(n, batch_size)
    sizes = [batch_size] * full + [rest] * (rest > 0)
    assert [len(batch) for batch in batches] == sizes, "the last batch alone may be smaller"


def test_the_order_changes_between_epochs():
    rng, rows = np.random.default_rng(0), np.arange(50)
    first, second = (np.concatenate(list(minibatches(rows, 7, rng))) for _ in range(2))
    assert (first != rows).any(), "the examples were not shuffled"
    assert (first != second).any(), "the examples were not shuffled again"
    np.testing.assert_array_equal(rows, np.arange(50), err_msg="the rows themselves were shuffled")


def test_each_batch_moves_the_weights_by_the_mean_of_its_own_examples(stack):
    s, batches = stack, [np.arange(0, 32), np.arange(32, 50)]
    W, b = s.W, s.b
    for rows in batches:
        dW, db = gradients(W, b, s.X[rows], s.y[rows], s.alpha)
        W, b = W - s.learning_rate * dW, b - s.learning_rate * db
    after = sgd(s.W, s.b, s.X, s.y, s.alpha, s.learning_rate, batches)
    for ours, expected in zip(after, (W, b), strict=True):
        np.testing.assert_array_equal(
            ours, expected, err_msg="a batch was left out or overweighted"
        )


def test_images_and_labels_stay_together(stack):
    """A step on rows of (X, y) is a step on those images with those labels."""
    s, rows = stack, np.array([3, 41, 7])
    ours = sgd(s.W, s.b, s.X, s.y, s.alpha, 0.1, [rows])
    alone = sgd(s.W, s.b, s.X[rows], s.y[rows], s.alpha, 0.1, [np.arange(3)])
    for mine, other in zip(ours, alone, strict=True):
        np.testing.assert_array_equal(mine, other)


def test_sgd_leaves_its_arguments_alone(stack):
    s = stack
    before = s.W.copy(), s.b.copy(), s.learning_rate.copy()
    sgd(s.W, s.b, s.X, s.y, s.alpha, s.learning_rate, [np.arange(50)])
    for array, copy in zip((s.W, s.b, s.learning_rate), before, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_training_overfits_20_examples(dtype):
    rng = np.random.default_rng(6)
    X, y = rng.uniform(0, 1, (20, 30)).astype(dtype), rng.integers(0, 10, 20)
    W, b = np.zeros((30, 10), dtype), np.zeros(10, dtype)
    for _ in range(2000):
        W, b = sgd(W, b, X, y, 0.0, 1.0, minibatches(np.arange(20), 6, rng))
    assert W.dtype == b.dtype == dtype
    assert accuracy(W, b, X, y) == 1
    assert cross_entropy(W, b, X, y) < 0.01


def test_a_model_that_diverges_leaves_its_neighbours_alone(stack):
    s, batches = stack, [np.arange(25), np.arange(25, 50)] * 20
    alpha, rate = np.array([0.0, 10.0, 0.1, 1.0]), np.array([0.5, 1e30, 0.02, 0.3])
    with np.errstate(over="ignore", invalid="ignore"):
        wild = sgd(s.W, s.b, s.X, s.y, alpha, rate, batches)
    calm = sgd(s.W, s.b, s.X, s.y, alpha, np.where(rate > 1, 0.1, rate), batches)
    assert not np.isfinite(wild[0][..., 1]).any()
    for mine, other in zip(wild, calm, strict=True):
        np.testing.assert_array_equal(mine[..., [0, 2, 3]], other[..., [0, 2, 3]])
