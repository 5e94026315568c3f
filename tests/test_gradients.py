"""The gradients are the slopes of the loss: in each coordinate of W and of b, to six digits.

The loss is measured a little above and a little below each coordinate. The slope between the two,
a central difference, is what `gradients` must return. Three things make the check sharp: it is done
in float64, at random weights far from zero, and with a large alpha as well as with none.

`problem`, from conftest.py, is such a place: 13 images X of 5 pixels, labels y of 4 classes, and
W, b and alpha of one model, or of a stack of three models that are trained together.
"""

import numpy as np
import pytest
from conftest import assert_arguments_stay, assert_right

from softmax_sgd import cross_entropy_gradients, gradients, loss, softmax

LARGE = 3.0  # an alpha that dominates the gradient

MISTAKES = [
    "Ŷ - Y has the wrong sign",
    "alpha is missing",
    "alpha is divided by n",
    "alpha has the wrong sign",
    "alpha is doubled",
    "the biases are penalised",
    "the bias gradient is summed over the classes, too",
    "the bias gradient is summed over the classes, not over the examples",
    "the bias gradient has the wrong sign",
    "the gradients are summed over the examples, not averaged",
    "the predictions are made one-hot",
    "the labels are not subtracted",
]


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


def slopes(p, alpha):
    """What dW and db must be."""

    def total():  # each coordinate belongs to one model, so the sum has every model's slopes
        return loss(p.W, p.b, p.X, p.y, alpha).sum()

    return central_differences(total, p.W), central_differences(total, p.b)


def with_mistake(mistake, dW, db, p, alpha):
    """What the right dW and db become by a mistake."""
    n, c = len(p.X), len(p.b)
    decay = alpha * p.W
    if mistake == "Ŷ - Y has the wrong sign":
        return 2 * decay - dW, -db
    if mistake == "alpha is missing":
        return dW - decay, db
    if mistake == "alpha is divided by n":
        return dW - decay + decay / n, db
    if mistake == "alpha has the wrong sign":
        return dW - 2 * decay, db
    if mistake == "alpha is doubled":
        return dW + decay, db
    if mistake == "the biases are penalised":
        return dW, db + alpha * p.b
    if mistake == "the bias gradient is summed over the classes, too":
        return dW, 0 * db
    if mistake == "the bias gradient is summed over the classes, not over the examples":
        return dW, np.zeros((*db.shape[1:], n))
    if mistake == "the bias gradient has the wrong sign":
        return dW, -db
    if mistake == "the gradients are summed over the examples, not averaged":
        return (dW - decay) * n + decay, db * n
    yhat = softmax(p.W, p.b, p.X)  # (c, n), or (c, K, n)
    if mistake == "the predictions are made one-hot":
        one_hot = np.moveaxis(np.eye(c)[yhat.argmax(axis=0)], -1, 0)
        return dW + image_means(p, one_hot - yhat), db + (one_hot - yhat).mean(axis=-1)
    if mistake == "the labels are not subtracted":
        return image_means(p, yhat) + decay, yhat.mean(axis=-1)
    raise ValueError(mistake)


def image_means(p, D):
    """XᵀD/n for D of the shape of ŷ."""
    return np.moveaxis(np.tensordot(D, p.X, axes=(-1, 0)), -1, 0) / len(p.X)


def check(ours, p, alpha):
    dW, db = slopes(p, alpha)
    named = {mistake: with_mistake(mistake, dW, db, p, alpha) for mistake in MISTAKES}
    mistakes = {mistake: dict(zip(("dW", "db"), wrong)) for mistake, wrong in named.items()}
    assert_right(
        dict(zip(("dW", "db"), ours)), {"dW": dW, "db": db}, mistakes, rtol=1e-6, atol=1e-9
    )


def test_gradients_leave_their_arguments_alone(problem):
    p = problem
    assert_arguments_stay(gradients, p.W, p.b, p.X, p.y, p.alpha)
    assert_arguments_stay(cross_entropy_gradients, p.W, p.b, p.X, p.y, p.alpha)


@pytest.mark.parametrize("alpha", [0.0, LARGE])
def test_gradients_are_the_slopes_of_the_loss(problem, alpha):
    p = problem
    check(gradients(p.W, p.b, p.X, p.y, alpha), p, alpha)


@pytest.mark.parametrize("n", [1, 2, 13])
def test_they_are_right_on_a_batch_of_any_size_and_for_an_alpha_of_each_model(problem, n):
    p = problem
    p.X, p.y = p.X[-n:], p.y[-n:]
    check(gradients(p.W, p.b, p.X, p.y, p.alpha), p, p.alpha)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_check_names_the_mistake(problem, mistake):
    p = problem
    wrong = with_mistake(mistake, *slopes(p, p.alpha), p, p.alpha)
    with pytest.raises(pytest.fail.Exception, match=f"exactly as if {mistake}\n"):
        check(wrong, p, p.alpha)


def test_float32_stays_float32(problem):
    """Though the learning rates are float64: products of float32 are twice as fast."""
    p = problem
    W, b, X = p.W.astype(np.float32), p.b.astype(np.float32), p.X.astype(np.float32)
    results = {
        "softmax": [softmax(W, b, X)],
        "cross_entropy_gradients": cross_entropy_gradients(W, b, X, p.y, scale=p.alpha),
    }
    for function, arrays in results.items():
        dtypes = [str(array.dtype) for array in arrays]
        assert set(dtypes) == {"float32"}, f"{function} returns {dtypes} for float32 W, b and X"


def test_scale_multiplies_the_gradients_without_alpha(problem):
    """It is the learning rate where they train: a number, or one for each model."""
    p, scale = problem, 0.7 * problem.alpha
    dW, db = gradients(p.W, p.b, p.X, p.y, 0.0)
    ours = cross_entropy_gradients(p.W, p.b, p.X, p.y, scale)
    mistakes = {
        "the scale is ignored": {"dW": dW, "db": db},
        "the scale leaves db out": {"dW": scale * dW, "db": db},
        "the scale leaves dW out": {"dW": dW, "db": scale * db},
        "the models have each other's scales": {
            "dW": np.flip(scale) * dW,
            "db": np.flip(scale) * db,
        },
    }
    assert_right(dict(zip(("dW", "db"), ours)), {"dW": scale * dW, "db": scale * db}, mistakes)
