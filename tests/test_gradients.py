"""The gradients are the slopes of the loss: a lesson on checking them.

1. Slopes by central differences, tried on a function whose slopes are known.
2. The check: `gradients` compared with the slopes of `loss`, for one model and for a stack.
3. One example by hand.
4. Would the check notice? Mistakes that people make, made on purpose.

The check needs float64, as the differences of float32 are too coarse; weights far from zero, as at
W = 0 a mistake in αW does not show; and a large alpha. If the case of alpha 0 passes and one with
alpha 3 fails, the mistake is in the gradient of the penalty: αW for W, none for b.

To check functions of your own, see "Check gradients of your own" in README.md.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.special
from helpers import assert_leaves_arguments_alone, make_problem
from numpy.testing import assert_allclose

from softmax_sgd import gradients, loss

# A central difference is wrong by about h² times the third derivative, and by the rounding error
# of the loss, some 1e-15, divided by h. With this h, both are near 1e-10, well within the
# tolerances of `close`. A mistake changes some slope by 1e-2 or more.
H = 1e-5


def close(ours, right):
    return np.allclose(ours, right, rtol=1e-6, atol=1e-9)


# --- Slopes ---------------------------------------------------------------------------------------


def slopes(f, x):
    """The slope of f at x along each coordinate, by central differences."""
    result = np.empty_like(x)
    for index in np.ndindex(x.shape):
        h = np.zeros_like(x)
        h[index] = H
        result[index] = (f(x + h) - f(x - h)) / (2 * H)
    return result


def test_central_differences_find_the_slopes_of_a_known_function():
    """The slopes of Σ x³ are 3x²."""
    x = np.array([[-1.0, 0.5, 2.0], [0.0, -3.0, 1.5]])
    assert close(slopes(lambda x: (x**3).sum(), x), 3 * x**2)


# --- The check ------------------------------------------------------------------------------------


def check(dW, db, p):
    """Fail unless dW and db are the slopes of the loss of the one model of the problem p."""
    assert np.shape(dW) == p.W.shape, "dW does not have the shape of W"
    assert np.shape(db) == p.b.shape, "db does not have the shape of b"
    right_dW = slopes(lambda W: loss(W, p.b, p.X, p.y, p.alpha), p.W)
    right_db = slopes(lambda b: loss(p.W, b, p.X, p.y, p.alpha), p.b)
    assert close(dW, right_dW), f"dW is not the slope of the loss. {hint(dW, db, p)}"
    assert close(db, right_db), f"db is not the slope of the loss. {hint(dW, db, p)}"


# With one example, a sum is like a mean, and α/n like α; with seven, they differ.
@pytest.mark.parametrize(("n", "alpha"), [(13, 0.0), (1, 3.0), (7, 3.0)])
def test_the_gradients_of_one_model_are_the_slopes_of_its_loss(n, alpha):
    p = make_problem(n=n)
    p.alpha = alpha
    # Copies: if it changed its arguments, the slopes would be taken at another point.
    dW, db = gradients(p.W.copy(), p.b.copy(), p.X.copy(), p.y.copy(), alpha)
    check(dW, db, p)


def test_gradients_leaves_its_arguments_alone(problem):
    p = problem
    assert_leaves_arguments_alone(gradients, p.W, p.b, p.X, p.y, p.alpha)


def test_each_model_of_a_stack_has_its_own_slopes_with_its_own_alpha():
    p = make_problem(K=3)
    dW, db = gradients(p.W.copy(), p.b.copy(), p.X.copy(), p.y.copy(), p.alpha)
    for k in range(3):
        model = SimpleNamespace(X=p.X, y=p.y, W=p.W[k], b=p.b[k], alpha=p.alpha[k])
        check(dW[k], db[k], model)


# --- By hand --------------------------------------------------------------------------------------


def test_one_example_of_one_pixel_in_two_classes_by_hand():
    """x = 2, and z = (log 3, 0), so ŷ = (3/4, 1/4). The label is 0, so ŷ − y = (−1/4, 1/4)."""
    w = np.log(3) / 2
    W, b = np.array([[w], [0.0]]), np.zeros(2)
    dW, db = gradients(W, b, np.array([[2.0]]), np.array([0]), 0.1)
    assert_allclose(dW, [[-1 / 2 + 0.1 * w], [1 / 2]], err_msg="dW is not (ŷ − y) x + αW")
    assert_allclose(db, [-1 / 4, 1 / 4], err_msg="db is not ŷ − y")


# --- Would it notice? -----------------------------------------------------------------------------


def from_difference(D, p):
    """The gradients by their formulas, with D in place of Ŷ − Y: (c, n)."""
    return D @ p.X / len(p.X) + p.alpha * p.W, D.mean(axis=1)


def sign_reversed(Yhat, Y, p):
    return from_difference(Y - Yhat, p)


def softmax_over_the_examples_instead_of_the_classes(Yhat, Y, p):
    Z = p.W @ p.X.T + p.b[:, None]
    return from_difference(scipy.special.softmax(Z, axis=1) - Y, p)


def sum_in_place_of_mean(Yhat, Y, p):
    D = Yhat - Y
    return D @ p.X + p.alpha * p.W, D.sum(axis=1)


def sum_in_place_of_mean_for_b(Yhat, Y, p):
    dW, db = from_difference(Yhat - Y, p)
    return dW, db * len(p.X)


def alpha_missing(Yhat, Y, p):
    D = Yhat - Y
    return D @ p.X / len(p.X), D.mean(axis=1)


def alpha_divided_by_n(Yhat, Y, p):
    D = Yhat - Y
    return (D @ p.X + p.alpha * p.W) / len(p.X), D.mean(axis=1)


def alpha_doubled(Yhat, Y, p):
    D = Yhat - Y
    return D @ p.X / len(p.X) + 2 * p.alpha * p.W, D.mean(axis=1)


def biases_regularised(Yhat, Y, p):
    dW, db = from_difference(Yhat - Y, p)
    return dW, db + p.alpha * p.b


MISTAKES = (
    sign_reversed,
    softmax_over_the_examples_instead_of_the_classes,
    sum_in_place_of_mean,
    sum_in_place_of_mean_for_b,
    alpha_missing,
    alpha_divided_by_n,
    alpha_doubled,
    biases_regularised,
)


def probabilities_and_labels(p):
    """Ŷ and the one-hot Y, without softmax_sgd."""
    Z = p.W @ p.X.T + p.b[:, None]
    return scipy.special.softmax(Z, axis=0), np.eye(len(p.b))[:, p.y]


def hint(dW, db, p):
    """Name the mistakes that give just these dW and db."""
    Yhat, Y = probabilities_and_labels(p)
    right = from_difference(Yhat - Y, p)
    if close(dW, right[0]) and close(db, right[1]):
        return "They are right by the formula, so `loss` is wrong: see test_model.py"
    known = []
    for mistake in MISTAKES:
        wrong_dW, wrong_db = mistake(Yhat, Y, p)
        if close(dW, wrong_dW) and close(db, wrong_db):
            known.append(mistake.__name__.replace("_", " "))
    return f"It looks like this mistake: {' or '.join(known)}" if known else ""


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_check_notices_the_mistake_and_names_it(mistake):
    p = make_problem(n=7)
    p.alpha = 3.0
    dW, db = mistake(*probabilities_and_labels(p), p)
    name = mistake.__name__.replace("_", " ")
    with pytest.raises(AssertionError, match=f"not the slope of the loss.* mistake: {name}"):
        check(dW, db, p)
