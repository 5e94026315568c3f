"""The softmax, the cross-entropy, the accuracy and the regularised loss against their formulas."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.special
from helpers import assert_leaves_arguments_alone, make_problem
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose

from softmax_sgd import evaluate, gradients, loss, softmax


def plain_logits(p):
    """z = Wx + b: (c, n), or (K, c, n)."""
    return np.einsum("...cm,nm->...cn", p.W, p.X) + p.b[..., None]


def plain_cross_entropy(p):
    """The mean over the examples of -log ŷ of their own class: a number, or (K,)."""
    log_yhat = scipy.special.log_softmax(plain_logits(p), axis=-2)
    return -np.mean([log_yhat[..., k, i] for i, k in enumerate(p.y)], axis=0)


# --- Softmax --------------------------------------------------------------------------------------


def test_softmax_is_equation_1(problem):
    p = problem
    yhat = softmax(p.W, p.b, p.X)
    assert yhat.shape == (*p.b.shape, len(p.X)), "the axes are not (models), classes, examples"
    assert_allclose(yhat.sum(axis=-2), 1, err_msg="the sums over the classes")
    assert_allclose(yhat, scipy.special.softmax(plain_logits(p), axis=-2), err_msg="ŷ")


# --- Cross-entropy and accuracy -------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 13])
def test_the_cross_entropy_is_the_mean_of_minus_log_yhat(problem, n):
    p = problem
    p.X, p.y = p.X[:n], p.y[:n]
    cross_entropy = evaluate(p.W, p.b, p.X, p.y).cross_entropy
    assert np.shape(cross_entropy) == np.shape(p.alpha), "not one number for each model"
    assert_allclose(cross_entropy, plain_cross_entropy(p), err_msg="cross-entropy")


@given(logits=arrays(np.float32, (3, 4), elements=st.floats(-(2**60), 2**60, width=32)))
def test_softmax_and_cross_entropy_of_huge_logits_neither_overflow_nor_become_nan(logits):
    # Three classes and four examples. As image i has only pixel i, its logits are column i of W.
    X, y = np.eye(4, dtype=np.float32), np.array([0, 1, 2, 0])
    b = np.zeros(3, np.float32)
    yhat = softmax(logits, b, X)
    cross_entropy, _ = evaluate(logits, b, X, y)
    assert_allclose(yhat.sum(axis=0), 1, rtol=1e-6)
    log_yhat = scipy.special.log_softmax(logits.astype(np.float64), axis=0)
    assert_allclose(cross_entropy, -log_yhat[y, np.arange(4)].mean(), rtol=1e-6, atol=1e-6)


def test_a_small_probability_is_exact_and_so_is_its_logarithm():
    """Nothing is added to it, and it is not clipped."""
    W, b, X = np.array([[60.0], [0.0]]), np.zeros(2), np.ones((1, 1))
    assert_allclose(softmax(W, b, X)[1], np.exp(-60), rtol=1e-12)
    cross_entropy, _ = evaluate(W, b, X, np.array([1]))
    assert_allclose(cross_entropy, 60, rtol=1e-12)


def test_the_accuracy_is_the_fraction_whose_own_class_is_the_most_probable(problem):
    p = problem
    correct = plain_logits(p).argmax(axis=-2) == p.y
    assert 0 < correct.mean() < 1
    assert_allclose(evaluate(p.W, p.b, p.X, p.y).accuracy, correct.mean(axis=-1))


def test_zero_weights_give_every_class_the_same_probability_and_predict_the_first():
    W, b = np.zeros((4, 5)), np.zeros(4)
    cross_entropy, accuracy = evaluate(W, b, np.ones((6, 5)), np.array([0, 1, 2, 3, 0, 1]))
    assert_allclose(cross_entropy, np.log(4))
    assert_allclose(accuracy, 2 / 6)


def test_the_mean_of_many_losses_is_as_exact_as_one():
    """In float32, the mean of 100,000 losses has a relative error of 1e-7 or more."""
    W, b = np.array([[0.3], [-0.2]], np.float32), np.zeros(2, np.float32)
    X, y = np.ones((100_000, 1), np.float32), np.zeros(100_000, int)
    one = evaluate(W, b, X[:1], y[:1]).cross_entropy
    many = evaluate(W, b, X, y).cross_entropy
    assert_allclose(many, one, rtol=1e-12)


# --- Loss -----------------------------------------------------------------------------------------


def test_the_loss_is_equation_2(problem):
    p = problem
    without = loss(p.W, p.b, p.X, p.y, 0 * p.alpha)
    assert_allclose(without, plain_cross_entropy(p), err_msg="not the cross-entropy if alpha is 0")
    penalty = loss(p.W, p.b, p.X, p.y, p.alpha) - without
    right = p.alpha / 2 * (p.W**2).sum(axis=(-2, -1))
    assert_allclose(penalty, right, err_msg="not α/2 ‖W‖², without b and not divided by n")


# --- Shapes ---------------------------------------------------------------------------------------

FUNCTIONS = {
    "softmax": lambda p: (softmax(p.W, p.b, p.X),),
    "evaluate": lambda p: evaluate(p.W, p.b, p.X, p.y),
    "loss": lambda p: (loss(p.W, p.b, p.X, p.y, p.alpha),),
    "gradients": lambda p: gradients(p.W, p.b, p.X, p.y, p.alpha),
}
each_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS.keys())


@pytest.mark.parametrize(
    ("K", "n", "m", "c"), [(3, 13, 5, 4), (4, 13, 5, 4), (6, 6, 5, 4), (5, 7, 5, 4), (4, 4, 4, 4)]
)
@each_function
def test_a_stack_gives_what_its_models_give_one_by_one(function, K, n, m, c):
    """Also if there are as many models as classes, as examples, as pixels, or as all of them."""
    p = make_problem(K, n=n, m=m, c=c)
    of_stack = function(p)
    for k in range(K):
        alone = function(SimpleNamespace(X=p.X, y=p.y, W=p.W[k], b=p.b[k], alpha=p.alpha[k]))
        for ours, right in zip(of_stack, alone, strict=True):
            assert_allclose(ours[k], right, rtol=1e-9, atol=1e-12, err_msg=f"model {k}")


@pytest.mark.parametrize(
    "change",
    [
        lambda y: y[:, None],
        lambda y: y[None],
        lambda y: np.eye(4)[y],
        lambda y: y[:1],
        lambda y: y[0],
    ],
    ids=["a column", "a row", "one-hot", "one label", "a number"],
)
@pytest.mark.parametrize("n", [4, 13])  # with as many examples as classes, more shapes would fit
@pytest.mark.parametrize("name", ["evaluate", "gradients"])
def test_labels_of_another_shape_are_refused(problem, name, n, change):
    """NumPy would broadcast most of them, and return wrong numbers."""
    p = problem
    p.X, p.y = p.X[:n], change(p.y[:n])
    shapes = re.escape(f"y has the shape {np.shape(p.y)}; for {n} images, ({n},) is expected")
    with pytest.raises(ValueError, match=shapes):
        FUNCTIONS[name](p)


@pytest.mark.parametrize("n", [4, 13])
@each_function
def test_biases_in_a_column_are_refused(problem, function, n):
    """Some books have (c, 1). Here, NumPy would broadcast that over the classes."""
    p = problem
    p.X, p.y, p.b = p.X[:n], p.y[:n], p.b[..., None]
    shapes = re.escape(f"b has the shape {p.b.shape}; with W {p.W.shape}")
    with pytest.raises(ValueError, match=shapes):
        function(p)


# --- All of them ----------------------------------------------------------------------------------


def test_softmax_evaluate_and_loss_leave_their_arguments_alone(problem):
    p = problem
    assert_leaves_arguments_alone(softmax, p.W, p.b, p.X)
    assert_leaves_arguments_alone(evaluate, p.W, p.b, p.X, p.y)
    assert_leaves_arguments_alone(loss, p.W, p.b, p.X, p.y, p.alpha)
