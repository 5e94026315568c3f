"""Lemmas on the minibatches and on the steps that they make."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from softmax_sgd import gradients, minibatches, sgd


@given(n=st.integers(1, 60), batch_size=st.integers(1, 70), seed=st.integers(0, 2**32))
def test_every_example_is_used_exactly_once_an_epoch(n, batch_size, seed):
    rows = np.arange(100, 100 + n)
    batches = list(minibatches(rows, batch_size, np.random.default_rng(seed)))
    full, rest = divmod(n, batch_size)
    sizes = [batch_size] * full + [rest] * (rest > 0)
    said = "whole batches, or one example per batch, or the last partial batch dropped?"
    assert [len(batch) for batch in batches] == sizes, said
    used = sorted(row for batch in batches for row in batch)
    assert used == list(rows), "an example was left out, or repeated"


def test_the_order_changes_between_epochs():
    rng, rows = np.random.default_rng(0), np.arange(50)
    first, second = (list(np.concatenate(list(minibatches(rows, 7, rng)))) for _ in range(2))
    assert first != list(rows), "the examples were not shuffled"
    assert first != second, "the order is the same in each epoch"
    np.testing.assert_array_equal(rows, np.arange(50), err_msg="the rows themselves were shuffled")


def test_each_batch_moves_the_weights_by_the_mean_of_its_own_examples(problem):
    """The images and the labels of a batch are those of its rows, the last and smaller one too."""
    p, batches, learning_rate = (
        problem,
        [np.arange(7, -1, -1), np.arange(8, 13)],
        0.1 * problem.alpha,
    )
    W, b = p.W, p.b
    for rows in batches:
        dW, db = gradients(W, b, p.X[rows], p.y[rows], p.alpha)
        W, b = W - learning_rate * dW, b - learning_rate * db
    after = sgd(p.W, p.b, p.X, p.y, p.alpha, learning_rate, batches)
    said = "images without their labels? A batch left out? Only the last one's update kept?"
    for ours, expected in zip(after, (W, b)):
        np.testing.assert_allclose(ours, expected, rtol=1e-12, err_msg=said)
