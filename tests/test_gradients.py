"""The gradients are the slopes of the loss, in every coordinate of W and of b, to six digits.

The loss is measured a little above and a little below each coordinate. The slope between the two,
a central difference, is what `gradients` must return. Three things make this check sharp: it is
done in float64, at random weights far from zero, and with a large alpha as well as with none.

If it fails, it looks among the mistakes that people make for one that gives the same gradients.
Each is a function below, whose name says the mistake.
"""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from softmax_sgd import gradients, loss, softmax

LARGE = 3.0  # an alpha that dominates the gradient


def central_differences(f, array, h=1e-5):
    """The derivative of f() by every coordinate of `array`, which f reads."""
    slope = np.empty_like(array)
    for index in np.ndindex(array.shape):
        middle = array[index]
        array[index] = middle + h
        above = f()
        array[index] = middle - h
        below = f()
        array[index] = middle
        slope[index] = (above - below) / (2 * h)
    return slope


def slopes(p, alpha):
    """What dW and db must be."""

    def total():  # each coordinate belongs to one model, so the sum has every model's slopes
        return loss(p.W, p.b, p.X, p.y, alpha).sum()

    return central_differences(total, p.W), central_differences(total, p.b)


# --- Mistakes: each turns the right dW and db into what it would give -----------------------------


def y_minus_yhat_in_place_of_yhat_minus_y(dW, db, p, alpha):
    return -(dW - alpha * p.W) + alpha * p.W, -db


def the_gradients_have_the_wrong_sign(dW, db, p, alpha):
    return -dW, -db


def alpha_is_missing(dW, db, p, alpha):
    return dW - alpha * p.W, db


def alpha_is_divided_by_n(dW, db, p, alpha):
    return dW - alpha * p.W + alpha * p.W / len(p.X), db


def alpha_has_the_wrong_sign(dW, db, p, alpha):
    return dW - 2 * alpha * p.W, db


def alpha_is_doubled(dW, db, p, alpha):
    return dW + alpha * p.W, db


def alpha_is_halved(dW, db, p, alpha):
    return dW - alpha * p.W / 2, db


def the_biases_are_regularised(dW, db, p, alpha):
    return dW, db + alpha * p.b


def the_bias_gradient_is_missing(dW, db, p, alpha):
    return dW, 0 * db


def the_bias_gradient_has_the_wrong_sign(dW, db, p, alpha):
    return dW, -db


def the_bias_gradient_is_summed_not_averaged(dW, db, p, alpha):
    return dW, db * len(p.X)


def both_gradients_are_summed_not_averaged(dW, db, p, alpha):
    return (dW - alpha * p.W) * len(p.X) + alpha * p.W, db * len(p.X)


def both_gradients_are_averaged_over_the_classes_too(dW, db, p, alpha):
    c = len(p.b)
    return (dW - alpha * p.W) / c + alpha * p.W, db / c


def the_labels_are_not_subtracted(dW, db, p, alpha):
    yhat = softmax(p.W, p.b, p.X)
    return mean_of_pixels_times(yhat, p.X) + alpha * p.W, yhat.mean(axis=-1)


def the_predictions_are_made_one_hot(dW, db, p, alpha):
    yhat = softmax(p.W, p.b, p.X)
    hard = (yhat == yhat.max(axis=0)).astype(float)
    return dW + mean_of_pixels_times(hard - yhat, p.X), db + (hard - yhat).mean(axis=-1)


def mean_of_pixels_times(D, X):
    """XᵀD/n, for D of the shape of ŷ: the examples are its last axis."""
    return np.moveaxis(np.tensordot(D, X, axes=(-1, 0)), -1, 0) / len(X)


MISTAKES = [
    y_minus_yhat_in_place_of_yhat_minus_y,
    the_gradients_have_the_wrong_sign,
    alpha_is_missing,
    alpha_is_divided_by_n,
    alpha_has_the_wrong_sign,
    alpha_is_doubled,
    alpha_is_halved,
    the_biases_are_regularised,
    the_bias_gradient_is_missing,
    the_bias_gradient_has_the_wrong_sign,
    the_bias_gradient_is_summed_not_averaged,
    both_gradients_are_summed_not_averaged,
    both_gradients_are_averaged_over_the_classes_too,
    the_labels_are_not_subtracted,
    the_predictions_are_made_one_hot,
]


# --- The check ------------------------------------------------------------------------------------


def check(dW, db, p, alpha):
    """Fail unless dW and db are the slopes of the loss; name the mistake that gives them."""
    right = slopes(p, alpha)

    def close(*pair):
        return all(
            np.allclose(ours, theirs, rtol=1e-6, atol=1e-9)
            for ours, theirs in zip((dW, db), pair, strict=True)
        )

    assert (np.shape(dW), np.shape(db)) == (p.W.shape, p.b.shape), "not the shapes of W and b"
    if not close(*right):
        names = [f.__name__.replace("_", " ") for f in MISTAKES if close(*f(*right, p, alpha))]
        likely = f": as if {' or '.join(names)}" if names else ""
        for name, ours, slope in (("dW", dW, right[0]), ("db", db, right[1])):
            message = f"{name} is not the slope of the loss{likely}"
            assert_allclose(ours, slope, rtol=1e-6, atol=1e-9, err_msg=message)


@pytest.mark.parametrize("alpha", [0.0, LARGE])
def test_gradients_are_the_slopes_of_the_loss(problem, alpha):
    p = problem
    check(*gradients(p.W, p.b, p.X, p.y, alpha), p, alpha)


def test_gradients_are_slopes_with_an_alpha_for_each_model(problem):
    p = problem
    check(*gradients(p.W, p.b, p.X, p.y, p.alpha), p, p.alpha)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_gradients_are_slopes_for_a_minibatch_of_any_size(problem, n):
    p = problem
    p.X, p.y = p.X[-n:], p.y[-n:]
    check(*gradients(p.W, p.b, p.X, p.y, LARGE), p, LARGE)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_check_names_the_mistake(problem, mistake):
    p = problem
    wrong = mistake(*slopes(p, p.alpha), p, p.alpha)
    with pytest.raises(AssertionError, match=f"as if .*{mistake.__name__.replace('_', ' ')}"):
        check(*wrong, p, p.alpha)


def test_gradients_of_float32_are_float32_and_close(problem):
    """Products of float32 are twice as fast as those of float64."""
    p = problem
    W, b, X = (array.astype(np.float32) for array in (p.W, p.b, p.X))
    for name, ours, right in zip(
        ("dW", "db"),
        gradients(W, b, X, p.y, LARGE),
        gradients(p.W, p.b, p.X, p.y, LARGE),
        strict=True,
    ):
        assert ours.dtype == np.float32, f"{name} is {ours.dtype}"
        assert_allclose(ours, right, rtol=1e-4, atol=1e-5, err_msg=name)
