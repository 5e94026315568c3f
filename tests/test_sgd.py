"""Lemmas on the minibatches and on the steps that they make."""

import numpy as np
import pytest
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


# What is often had in place of alpha, of the learning rate, and of dW and db of the cross-entropy.
MISTAKES = {
    "W shrinks after the subtraction": lambda p, a, r, dW, db: (a, r, dW * (1 - r * a), db),
    "the learning rate reaches the decay twice": lambda p, a, r, dW, db: (a * r, r, dW, db),
    "the learning rate does not reach the decay": lambda p, a, r, dW, db: (a / r, r, dW, db),
    "the bias shrinks, too": lambda p, a, r, dW, db: (a, r, dW, db + a * p.b),
    "the models have each other's rates": lambda p, a, r, dW, db: (a, np.roll(r, 1), dW, db),
}


def hyperparameters(p, decay):
    """An alpha and a learning rate, of about this product, that differ from model to model."""
    rate = 0.3 * p.alpha
    return decay * (1 / rate + 0.1), rate


def stepped(p, rows, decay, mistake=None):
    """W - learning_rate * dW and b - learning_rate * db, which is equation (4)."""
    terms = *hyperparameters(p, decay), *gradients(p.W, p.b, p.X[rows], p.y[rows], 0.0)
    alpha, rate, dW, db = MISTAKES[mistake](p, *terms) if mistake else terms
    return p.W - rate * (dW + alpha * p.W), p.b - rate * db


def check_step(after, p, rows, decay):
    guess = [m for m in MISTAKES if all(map(np.allclose, after, stepped(p, rows, decay, m)))]
    for name, ours, right in zip("Wb", after, stepped(p, rows, decay)):
        said = f"{name} is not what it was less the learning rate times d{name}; a guess: {guess}"
        np.testing.assert_allclose(ours, right, rtol=1e-12, atol=1e-12, err_msg=said)


@pytest.mark.parametrize("decay", [0.0, 0.4, 0.999, 1.7])
@pytest.mark.parametrize("rows", [[5], range(13)], ids=["a batch of one", "a batch of all"])
def test_a_step_goes_down_the_gradient(problem, decay, rows):
    p, rows = problem, np.array(rows)
    check_step(sgd(p.W, p.b, p.X, p.y, *hyperparameters(p, decay), [rows]), p, rows, decay)


@pytest.mark.parametrize("problem", [(3,)], ids=["a stack of 3"], indirect=True)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_check_of_a_step_names_the_mistake(problem, mistake):
    rows = np.arange(13)
    with pytest.raises(AssertionError, match=mistake):
        check_step(stepped(problem, rows, 0.4, mistake), problem, rows, 0.4)


def test_each_batch_moves_the_weights_by_the_mean_of_its_own_examples(problem):
    """The images and the labels of a batch are those of its rows, the last and smaller one too."""
    p, batches, rate = problem, [np.arange(7, -1, -1), np.arange(8, 13)], 0.1 * problem.alpha
    W, b = p.W, p.b
    for rows in batches:
        dW, db = gradients(W, b, p.X[rows], p.y[rows], p.alpha)
        W, b = W - rate * dW, b - rate * db
    after = sgd(p.W, p.b, p.X, p.y, p.alpha, rate, batches)
    said = "images without their labels? A batch left out? Only the last one's update kept?"
    for ours, expected in zip(after, (W, b)):
        np.testing.assert_allclose(ours, expected, rtol=1e-12, err_msg=said)
