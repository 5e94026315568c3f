"""The gradients are the slopes of the loss: a lesson on checking them, in this order.

1. Slopes by central differences, tried on a function whose slopes are known.
2. `gradients` beside the slopes of `loss`: for one model, for a stack, for minibatches of any size.
3. One example by hand.
4. Would the check notice? Mistakes that people make, put in on purpose.

Three things make the check sharp: float64, random weights far from zero, and an alpha that is large
in one test and none in another.

To check functions of your own, write in a file, say mine.py,

    import softmax_sgd
    softmax_sgd.gradients, softmax_sgd.sgd = gradients, sgd

after their definitions, and run these lessons with it, for one model at a time:

    python -m pytest -p mine -k "not stack and not float32" \\
        tests/test_gradients.py tests/test_sgd.py

The last lines then say whose functions were checked.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.special
from helpers import make_problem
from numpy.testing import assert_allclose

from softmax_sgd import gradients, loss

LARGE = 3.0  # an alpha that dominates the gradient

# The slope between a point a little above and one a little below is wrong by about h² times the
# third derivative, and by the rounding error of the loss, some 1e-15, divided by h. With this h,
# both are near 1e-10, which the tolerances allow for. A mistake changes some slope by 1e-2 or more.
H = 1e-5
TOLERANCES = {"rtol": 1e-6, "atol": 1e-9}


# --- Slopes ---------------------------------------------------------------------------------------


def central_differences(f, array):
    """The slope of f() along every coordinate of `array`, which f reads."""
    slopes = np.empty_like(array)
    for index in np.ndindex(array.shape):
        middle = array[index]
        array[index] = middle + H
        above = f()
        array[index] = middle - H
        below = f()
        array[index] = middle
        slopes[index] = (above - below) / (2 * H)
    return slopes


def test_central_differences_give_the_slopes_of_a_known_function():
    """Of Σ x³: 3x²."""
    x = np.array([[-1.0, 0.5, 2.0], [0.0, -3.0, 1.5]])
    assert_allclose(central_differences(lambda: (x**3).sum(), x), 3 * x**2, **TOLERANCES)


# --- The check ------------------------------------------------------------------------------------


def check(dW, db, p):
    """Fail unless dW and db are the slopes of the loss of one model; name a known mistake."""

    def f():
        return loss(p.W, p.b, p.X, p.y, p.alpha)

    slopes = central_differences(f, p.W), central_differences(f, p.b)
    assert (np.shape(dW), np.shape(db)) == (p.W.shape, p.b.shape), "not the shapes of W and b"
    known = [name for name, mistake in MISTAKES.items() if close((dW, db), mistake(p))]
    likely = f", as if {' or '.join(known)}" if known else ""
    for name, ours, slope in zip(("dW", "db"), (dW, db), slopes, strict=True):
        message = (
            f"{name} is not the slope of the loss{likely}. Or the loss is wrong: see test_model"
        )
        assert_allclose(ours, slope, **TOLERANCES, err_msg=message)


def close(these, those):
    return all(np.allclose(a, b, **TOLERANCES) for a, b in zip(these, those, strict=True))


@pytest.mark.parametrize("alpha", [0.0, LARGE])
def test_the_gradients_of_one_model_are_the_slopes_of_its_loss(alpha):
    p = make_problem()
    p.alpha = alpha
    check(*gradients(p.W, p.b, p.X, p.y, p.alpha), p)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_they_are_the_slopes_for_a_minibatch_of_any_size(n):
    p = make_problem(n=n)
    p.alpha = LARGE
    check(*gradients(p.W, p.b, p.X, p.y, p.alpha), p)


def test_each_model_of_a_stack_has_its_own_slopes_with_its_own_alpha():
    p = make_problem(3)
    dW, db = gradients(p.W, p.b, p.X, p.y, p.alpha)
    for k in range(3):
        one = SimpleNamespace(X=p.X, y=p.y, W=p.W[k], b=p.b[k], alpha=p.alpha[k])
        check(dW[k], db[k], one)


def test_gradients_of_float32_are_float32_and_close(problem):
    """Products of float32 are twice as fast as those of float64."""
    p = problem
    W, b, X = (array.astype(np.float32) for array in (p.W, p.b, p.X))
    ours = gradients(W, b, X, p.y, p.alpha)
    right = gradients(p.W, p.b, p.X, p.y, p.alpha)
    for name, array, right_array in zip(("dW", "db"), ours, right, strict=True):
        assert array.dtype == np.float32, f"{name} is {array.dtype}"
        assert_allclose(array, right_array, rtol=1e-4, atol=1e-5, err_msg=name)


# --- By hand --------------------------------------------------------------------------------------


def test_one_example_of_one_pixel_in_two_classes_by_hand():
    """x = 2, and z = (log 3, 0), so ŷ = (3/4, 1/4). The label is 0: ŷ − y = (−1/4, 1/4)."""
    w = np.log(3) / 2
    W, b = np.array([[w], [0.0]]), np.zeros(2)
    dW, db = gradients(W, b, np.array([[2.0]]), np.array([0]), 0.1)
    assert_allclose(dW, [[-1 / 2 + 0.1 * w], [1 / 2]], err_msg="(ŷ − y) x + αW")
    assert_allclose(db, [-1 / 4, 1 / 4], err_msg="ŷ − y")


# --- Would it notice? -----------------------------------------------------------------------------
# The right gradients are D X/n + αW and Σ_i D_i/n, where D = Ŷ − Y has a column for each example.
# Each function below gives them with one mistake.

MISTAKES = {}


def mistake(function):
    MISTAKES[function.__name__.replace("_", " ")] = function
    return function


def error_of(p):
    """D = Ŷ − Y."""
    yhat = scipy.special.softmax(p.W @ p.X.T + p.b[:, None], axis=0)
    return yhat - np.eye(len(p.b))[:, p.y]


@mistake
def y_minus_yhat_stands_for_yhat_minus_y(p):
    D = -error_of(p)
    return D @ p.X / len(p.X) + p.alpha * p.W, D.mean(axis=1)


@mistake
def alpha_is_missing(p):
    D = error_of(p)
    return D @ p.X / len(p.X), D.mean(axis=1)


@mistake
def alpha_is_divided_by_n(p):
    D = error_of(p)
    return (D @ p.X + p.alpha * p.W) / len(p.X), D.mean(axis=1)


@mistake
def alpha_is_halved(p):
    D = error_of(p)
    return D @ p.X / len(p.X) + p.alpha / 2 * p.W, D.mean(axis=1)


@mistake
def the_biases_are_regularised(p):
    D = error_of(p)
    return D @ p.X / len(p.X) + p.alpha * p.W, D.mean(axis=1) + p.alpha * p.b


@mistake
def the_gradient_of_b_is_summed_over_the_classes(p):
    """It is 0 then, as the probabilities of all classes add up to 1: b never learns."""
    D = error_of(p)
    return D @ p.X / len(p.X) + p.alpha * p.W, np.full(len(p.b), D.sum() / len(p.X))


@mistake
def the_examples_are_summed_and_not_averaged(p):
    D = error_of(p)
    return D @ p.X + p.alpha * p.W, D.sum(axis=1)


@mistake
def the_most_probable_class_stands_for_the_probabilities(p):
    Y = np.eye(len(p.b))[:, p.y]
    D = error_of(p)
    D = np.eye(len(p.b))[:, (D + Y).argmax(axis=0)] - Y
    return D @ p.X / len(p.X) + p.alpha * p.W, D.mean(axis=1)


@pytest.mark.parametrize("name", MISTAKES)
def test_the_check_fails_for_a_mistake_and_names_it(name):
    p = make_problem()
    with pytest.raises(AssertionError, match=f"is not the slope of the loss, as if .*{name}"):
        check(*MISTAKES[name](p), p)
