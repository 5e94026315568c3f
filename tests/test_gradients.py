"""The gradients are the slopes of the loss: in each coordinate of W and of b, to six digits.

The loss is measured a little above and a little below each coordinate; the slope between the two,
a central difference, is what `gradients` must say. Three things make the check sharp: it is done
in float64, at random weights far from zero, and with a large alpha as well as with none.

`problem`, from conftest.py, is such a place: 13 images X of 5 pixels, labels y of 4 classes, and
W, b and alpha of one model, or of a stack of three models that are trained side by side.
"""

import numpy as np
import pytest
from conftest import LARGE

from softmax_sgd import gradients, loss


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


# What is often had in place of the right dW and db.
MISTAKES = {
    "Ŷ - Y has the wrong sign": lambda dW, db, p, alpha: (2 * alpha * p.W - dW, -db),
    "alpha is missing": lambda dW, db, p, alpha: (dW - alpha * p.W, db),
    "alpha is divided by n": lambda dW, db, p, alpha: (dW - alpha * p.W * (1 - 1 / len(p.X)), db),
    "alpha has the wrong sign": lambda dW, db, p, alpha: (dW - 2 * alpha * p.W, db),
    "the bias is penalised": lambda dW, db, p, alpha: (dW, db + alpha * p.b),
    "the bias gradient is summed over the classes": lambda dW, db, p, alpha: (dW, 0 * db),
    "the bias gradient has the wrong sign": lambda dW, db, p, alpha: (dW, -db),
    "all is summed over the examples": lambda dW, db, p, alpha: (dW * len(p.X), db * len(p.X)),
}


def slopes(p, alpha):
    """What dW and db must be."""

    def total():  # each coordinate belongs to one model, so the sum has every model's slopes
        return loss(p.W, p.b, p.X, p.y, alpha).sum()

    return central_differences(total, p.W), central_differences(total, p.b)


def check(ours, p, alpha):
    right, guess = slopes(p, alpha), []
    for mistake, wrong in MISTAKES.items():
        if all(np.allclose(a, b, 1e-6, 1e-9) for a, b in zip(ours, wrong(*right, p, alpha))):
            guess.append(mistake)
    for name, gradient, slope in zip(("dW", "db"), ours, right):
        said = f"{name} is not the slope of the loss at alpha = {alpha}; a guess: {guess}"
        assert gradient.shape == slope.shape, said
        np.testing.assert_allclose(gradient, slope, rtol=1e-6, atol=1e-10, err_msg=said)


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
    with pytest.raises(AssertionError, match=mistake):
        check(MISTAKES[mistake](*slopes(p, p.alpha), p, p.alpha), p, p.alpha)


def test_an_uncertain_prediction_teaches_though_it_is_right():
    W, b, X, y = np.array([[0.1, 0.0]]), np.zeros(2), np.array([[1.0]]), np.array([0])
    dW, _ = gradients(W, b, X, y, 0.0)
    np.testing.assert_allclose(dW, [[-0.475, 0.475]], atol=1e-3, err_msg="one-hot predictions?")
