"""Lemmas on the minibatches and on the steps that they make."""

import numpy as np
import pytest
from conftest import assert_arguments_stay, assert_right
from hypothesis import given
from hypothesis import strategies as st

import softmax_sgd
from softmax_sgd import cross_entropy_gradients, gradients, minibatches, sgd

# --- Minibatches ----------------------------------------------------------------------------------


def wrong_sizes(n, batch_size):
    """The sizes of the minibatches by each known mistake."""
    full, rest = divmod(n, batch_size)
    return {
        "the last, smaller minibatch is dropped": [batch_size] * full,
        "the last, smaller minibatch is filled up": [batch_size] * (full + (rest > 0)),
        "all examples are one minibatch": [n],
        "each example is a minibatch": [1] * n,
    }


@given(n=st.integers(1, 60), batch_size=st.integers(1, 70), seed=st.integers(0, 2**32))
def test_every_example_is_used_exactly_once_an_epoch(n, batch_size, seed):
    rows = np.arange(100, 100 + n)
    batches = list(minibatches(rows, batch_size, np.random.default_rng(seed)))
    full, rest = divmod(n, batch_size)
    sizes = [len(batch) for batch in batches]
    if sizes != [batch_size] * full + [rest] * (rest > 0):
        named = [mistake for mistake, wrong in wrong_sizes(n, batch_size).items() if sizes == wrong]
        pytest.fail(f"{n} examples by {batch_size} give minibatches of {sizes}: {named}")
    used = sorted(int(row) for batch in batches for row in batch)
    assert used != list(range(n)), "these are positions within `rows`, not the row numbers in it"
    assert used == list(range(100, 100 + n)), "an example was left out, or repeated"


def test_the_order_changes_between_epochs():
    rng, rows = np.random.default_rng(0), np.arange(50)
    first, second = (list(np.concatenate(list(minibatches(rows, 7, rng)))) for _ in range(2))
    assert list(rows) == list(range(50)), "the array of rows itself was shuffled"
    assert first != list(range(50)), "the examples were not shuffled"
    assert first != second, "the order is the same in each epoch"


# --- One step -------------------------------------------------------------------------------------

STEP_MISTAKES = [
    "the labels are not those of the images",
    "W goes up its gradient",
    "b goes up its gradient",
    "alpha is missing",
    "alpha is divided by n",
    "alpha is divided by the size of the minibatch",
    "W shrinks after the subtraction",
    "the learning rate reaches alpha twice",
    "the learning rate does not reach alpha",
    "the learning rate does not reach b",
    "the learning rate is divided by the size of the minibatch",
    "b shrinks, too",
    "b is not updated",
    "the models have each other's learning rates",
    "the models have each other's alphas",
    "alpha and the learning rate are exchanged",
    "the gradient is clipped to -1..1",
    "the gradient is scaled to length 1",
    "the step is clipped to -1..1",
    "the step of W is clipped to -1..1",
]


def after_a_step(p, rows, alpha, rate, mistake=None):
    """W - learning_rate * dW and b - learning_rate * db, which is equation (4)."""
    if mistake == "the models have each other's learning rates":
        rate = np.roll(rate, 1)
    if mistake == "the models have each other's alphas":
        alpha = np.roll(alpha, 1)
    if mistake == "alpha and the learning rate are exchanged":
        alpha, rate = rate, alpha
    if mistake == "alpha is missing":
        alpha = 0 * alpha
    if mistake == "alpha is divided by n":
        alpha = alpha / len(p.X)
    if mistake == "alpha is divided by the size of the minibatch":
        alpha = alpha / len(rows)
    labels = p.y[rows]
    if mistake == "the labels are not those of the images":
        labels = p.y[: len(rows)]
    dW, db = gradients(p.W, p.b, p.X[rows], labels, alpha)
    decay = alpha * p.W
    if mistake == "W goes up its gradient":
        dW = -dW
    if mistake == "b goes up its gradient":
        db = -db
    if mistake == "W shrinks after the subtraction":
        dW = dW - rate * alpha * (dW - decay)
    if mistake == "the learning rate reaches alpha twice":
        dW = dW - decay + rate * decay
    if mistake == "the learning rate does not reach alpha":
        dW = dW - decay + decay / rate
    if mistake == "the learning rate does not reach b":
        db = db / rate
    if mistake == "the learning rate is divided by the size of the minibatch":
        dW, db = decay + (dW - decay) / len(rows), db / len(rows)
    if mistake == "b shrinks, too":
        db = db + alpha * p.b
    if mistake == "b is not updated":
        db = 0 * db
    if mistake == "the gradient is clipped to -1..1":
        dW, db = decay + np.clip(dW - decay, -1, 1), np.clip(db, -1, 1)
    if mistake == "the gradient is scaled to length 1":
        length = np.sqrt((dW**2).sum(axis=(0, 1)) + (db**2).sum(axis=0))
        dW, db = decay + (dW - decay) / length, db / length
    step_W, step_b = rate * (dW - decay), rate * db
    if mistake == "the step is clipped to -1..1":
        step_W, step_b = np.clip(step_W, -1, 1), np.clip(step_b, -1, 1)
    if mistake == "the step of W is clipped to -1..1":
        step_W = np.clip(step_W, -1, 1)
    return {"W": p.W - rate * decay - step_W, "b": p.b - step_b}


def check_step(ours, p, rows, alpha, rate):
    mistakes = {mistake: after_a_step(p, rows, alpha, rate, mistake) for mistake in STEP_MISTAKES}
    assert_right(ours, after_a_step(p, rows, alpha, rate), mistakes)


def test_a_step_leaves_its_arguments_alone(problem):
    p = problem
    assert_arguments_stay(sgd, p.W, p.b, p.X, p.y, p.alpha, 0.1 * p.alpha, [np.arange(13)])


# One learning rate makes W change its sign. Large pixels make gradients and steps above 1.
@pytest.mark.parametrize(
    ("alpha", "rate", "pixels"), [(0, 0.3, 1), (1, 0.3, 1), (1, 1, 1), (5, 0.7, 1), (0.1, 2, 30)]
)
@pytest.mark.parametrize("rows", [[5], range(13)], ids=["a batch of one", "a batch of all"])
def test_a_step_is_minus_the_learning_rate_times_the_gradients(problem, alpha, rate, pixels, rows):
    p, rows = problem, np.array(rows)
    p.X *= pixels
    alpha, rate = alpha * p.alpha, rate * np.flip(p.alpha)
    W, b = sgd(p.W, p.b, p.X, p.y, alpha, rate, [rows])
    check_step({"W": W, "b": b}, p, rows, alpha, rate)


@pytest.mark.parametrize("mistake", STEP_MISTAKES)
@pytest.mark.parametrize("problem", [(3,)], indirect=True)
def test_the_check_of_a_step_names_the_mistake(problem, mistake):
    p, rows, rate = problem, np.arange(12, -1, -1), 0.3 * problem.alpha[::-1]
    p.X *= 30
    wrong = after_a_step(p, rows, p.alpha, rate, mistake)
    with pytest.raises(pytest.fail.Exception, match=f"as if .*{mistake}[,\n]"):
        check_step(wrong, p, rows, p.alpha, rate)


def test_training_depends_on_the_gradients_that_are_checked(problem, monkeypatch):
    """With zeros in their place, nothing is learnt: neither `gradients` nor `sgd` has its own."""
    p = problem

    def zeros(W, b, X, y, scale=1):
        return np.zeros_like(W), np.zeros_like(b)

    monkeypatch.setattr(softmax_sgd, "cross_entropy_gradients", zeros)
    dW, db = gradients(p.W, p.b, p.X, p.y, 0.0)
    W, b = sgd(p.W, p.b, p.X, p.y, 0.0, 0.3, [np.arange(13)] * 5)
    assert not dW.any(), "`gradients` does not call cross_entropy_gradients"
    assert not db.any(), "`gradients` does not call cross_entropy_gradients"
    assert np.array_equal(W, p.W), "`sgd` does not train with cross_entropy_gradients"
    assert np.array_equal(b, p.b), "`sgd` does not train with cross_entropy_gradients"


def test_what_trains_is_float32_for_float32_images(problem, monkeypatch):
    """Though alphas and learning rates are float64."""
    p, dtypes = problem, set()

    def record(*arguments, scale):
        step = cross_entropy_gradients(*arguments, scale=scale)
        W, b, X, _ = arguments
        dtypes.update(str(array.dtype) for array in (W, b, X, *step))
        return step

    monkeypatch.setattr(softmax_sgd, "cross_entropy_gradients", record)
    W, b, X = p.W.astype(np.float32), p.b.astype(np.float32), p.X.astype(np.float32)
    trained = sgd(W, b, X, p.y, p.alpha, p.alpha, [np.arange(7), np.arange(7, 13)])
    dtypes.update(str(array.dtype) for array in trained)
    assert dtypes == {"float32"}, f"{sorted(dtypes)} train, though W, b and X are float32"


# --- Several steps --------------------------------------------------------------------------------

STEPS_MISTAKES = [
    "the labels are not those of the images",
    "the first minibatch is left out",
    "the last minibatch is left out",
    "only the last minibatch's update is kept",
    "all steps use the gradients at the start",
    "the last, smaller minibatch is divided by the full size",
    "momentum of 0.9 is used",
    "momentum of 0.9 is used, damped by 1 - 0.9",
    "the learning rate is halved after each step",
    "the learning rate is divided by the number of the step",
    "the weights are averaged over the steps",
    "alpha shrinks W in the first step only",
]


def after_steps(p, batches, rate, mistake=None):
    W, b = p.W, p.b
    velocity_W, velocity_b = 0 * W, 0 * b
    path = []
    for t, rows in enumerate(batches):
        labels = p.y[rows]
        if mistake == "the labels are not those of the images":
            labels = p.y[: len(rows)]
        if mistake == "the first minibatch is left out" and t == 0:
            continue
        if mistake == "the last minibatch is left out" and t == len(batches) - 1:
            continue
        if mistake == "only the last minibatch's update is kept":
            W, b = p.W, p.b
        dW, db = gradients(W, b, p.X[rows], labels, p.alpha)
        if mistake == "alpha shrinks W in the first step only" and t > 0:
            dW, db = gradients(W, b, p.X[rows], labels, 0 * p.alpha)
        if mistake == "all steps use the gradients at the start":
            dW, db = gradients(p.W, p.b, p.X[rows], labels, p.alpha)
        if mistake == "the last, smaller minibatch is divided by the full size":
            share = len(rows) / len(batches[0])
            dW, db = share * (dW - p.alpha * W) + p.alpha * W, share * db
        if mistake == "momentum of 0.9 is used":
            velocity_W, velocity_b = 0.9 * velocity_W + dW, 0.9 * velocity_b + db
            dW, db = velocity_W, velocity_b
        if mistake == "momentum of 0.9 is used, damped by 1 - 0.9":
            velocity_W = 0.9 * velocity_W + 0.1 * dW
            velocity_b = 0.9 * velocity_b + 0.1 * db
            dW, db = velocity_W, velocity_b
        factor = 1
        if mistake == "the learning rate is halved after each step":
            factor = 0.5**t
        if mistake == "the learning rate is divided by the number of the step":
            factor = 1 / (t + 1)
        W, b = W - factor * rate * dW, b - factor * rate * db
        path.append((W, b))
    if mistake == "the weights are averaged over the steps":
        W, b = sum(W for W, _ in path) / len(path), sum(b for _, b in path) / len(path)
    return {"W": W, "b": b}


def test_each_minibatch_makes_a_step_from_where_the_last_one_ended(problem):
    """By the mean of its own images and labels: of the last, smaller minibatch, too."""
    p, rate = problem, 0.1 * problem.alpha
    batches = [np.arange(7, 3, -1), np.array([12, 3, 0, 8]), np.arange(9, 12)]
    W, b = sgd(p.W, p.b, p.X, p.y, p.alpha, rate, batches)
    mistakes = {mistake: after_steps(p, batches, rate, mistake) for mistake in STEPS_MISTAKES}
    assert_right({"W": W, "b": b}, after_steps(p, batches, rate), mistakes)
