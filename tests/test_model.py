"""Lemmas on the softmax, the cross-entropy, the accuracy and the regularised loss.

Each is compared with its formula, written out in the plainest NumPy. Where a function is wrong in a
known way, the message names that mistake.
"""

import numpy as np
import pytest
from conftest import assert_arguments_stay, assert_right

from softmax_sgd import (
    cross_entropy,
    evaluate,
    gradients,
    logits,
    loss,
    softmax,
)


def test_the_arguments_stay_as_they_are(problem):
    p = problem
    assert_arguments_stay(softmax, p.W, p.b, p.X)
    assert_arguments_stay(evaluate, p.W, p.b, p.X, p.y)
    assert_arguments_stay(loss, p.W, p.b, p.X, p.y, p.alpha)


def test_probabilities_of_each_example_sum_to_1(problem):
    yhat = softmax(problem.W, problem.b, problem.X)
    axes = ["classes", "models", "examples"] if yhat.ndim == 3 else ["classes", "examples"]
    sums = [axis for a, axis in enumerate(axes) if np.allclose(yhat.sum(axis=a), 1)]
    assert sums == ["classes"], f"sums to 1 over {sums}, must be over the classes, the first axis"
    assert yhat.shape == (*problem.b.shape, len(problem.X))


SOFTMAX_MISTAKES = [
    "the biases are left out",
    "exp is left out",
    "the softmax is over the examples",
    "the logits are divided by the number of pixels",
    "the maximum over the examples is subtracted, not that over the classes",
]


def softmax_by_formula(p, mistake=None):
    """ŷ of equation (1), of shape (c, n), or (c, K, n)."""
    Z = np.tensordot(p.W, p.X, axes=(0, 1))
    if mistake == "the logits are divided by the number of pixels":
        Z = Z / len(p.W)
    if mistake != "the biases are left out":
        Z = Z + p.b[..., None]
    if mistake == "the maximum over the examples is subtracted, not that over the classes":
        Z = Z - Z.max(axis=-1, keepdims=True)
    if mistake == "exp is left out":
        return Z / Z.sum(axis=0)
    if mistake == "the softmax is over the examples":
        return np.exp(Z) / np.exp(Z).sum(axis=-1, keepdims=True)
    return np.exp(Z) / np.exp(Z).sum(axis=0)


def test_softmax_is_equation_1(problem):
    p = problem
    assert_right(
        {"ŷ": softmax(p.W, p.b, p.X)},
        {"ŷ": softmax_by_formula(p)},
        {mistake: {"ŷ": softmax_by_formula(p, mistake)} for mistake in SOFTMAX_MISTAKES},
    )


SMALL = 1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10
EVALUATE_MISTAKES = [
    "the biases are left out",
    "the logarithm is of base 2: a factor of 1/ln 2",
    "the logarithm is of base 10",
    "the losses are summed, not averaged",
    "the losses are averaged over the classes, too",
    "the minus is missing",
    *(f"{small} is added to ŷ before the logarithm" for small in SMALL),
    "the accuracy is a percentage",
    "the accuracy is the fraction of errors",
    "the accuracy is that of all models together",
]


def evaluate_by_formula(p, mistake=None):
    """The cross-entropy and the accuracy: numbers, or (K,)."""
    yhat = softmax_by_formula(p, mistake)
    n, c = len(p.X), len(yhat)
    added = sum(small for small in SMALL if mistake and mistake.startswith(f"{small} is added"))
    losses = [-np.log(yhat[p.y[i], ..., i] + added) for i in range(n)]
    cross_entropy, accuracy = sum(losses) / n, (yhat.argmax(axis=0) == p.y).mean(axis=-1)
    if mistake == "the logarithm is of base 2: a factor of 1/ln 2":
        cross_entropy = cross_entropy / np.log(2)
    if mistake == "the logarithm is of base 10":
        cross_entropy = cross_entropy / np.log(10)
    if mistake == "the losses are summed, not averaged":
        cross_entropy = cross_entropy * n
    if mistake == "the losses are averaged over the classes, too":
        cross_entropy = cross_entropy / c
    if mistake == "the minus is missing":
        cross_entropy = -cross_entropy
    if mistake == "the accuracy is a percentage":
        accuracy = accuracy * 100
    if mistake == "the accuracy is the fraction of errors":
        accuracy = 1 - accuracy
    if mistake == "the accuracy is that of all models together":
        accuracy = accuracy.mean()
    return {"cross-entropy": cross_entropy, "accuracy": accuracy}


def test_the_cross_entropy_is_the_mean_of_minus_log_yhat(problem):
    p = problem
    metrics = dict(zip(("cross-entropy", "accuracy"), evaluate(p.W, p.b, p.X, p.y)))
    mistakes = {mistake: evaluate_by_formula(p, mistake) for mistake in EVALUATE_MISTAKES}
    assert_right(metrics, evaluate_by_formula(p), mistakes)
    assert np.array_equal(cross_entropy(p.W, p.b, p.X, p.y), metrics["cross-entropy"])


PENALTY_MISTAKES = [
    "alpha is divided by n",
    "the penalty is not halved",
    "the penalty is missing",
    "the norm is not squared",
    "the biases are penalised, too",
    "the penalty is summed over the models of a stack",
]


def penalty_by_formula(p, mistake=None):
    """alpha/2 ‖W‖², a number, or (K,)."""
    alpha, squares = p.alpha, sum(row**2 for row in p.W.reshape(-1, *p.W.shape[2:]))
    if mistake == "alpha is divided by n":
        alpha = alpha / len(p.X)
    if mistake == "the penalty is not halved":
        alpha = 2 * alpha
    if mistake == "the penalty is missing":
        alpha = 0 * alpha
    if mistake == "the norm is not squared":
        squares = np.sqrt(squares)
    if mistake == "the biases are penalised, too":
        squares = squares + (p.b**2).sum(axis=0)
    if mistake == "the penalty is summed over the models of a stack":
        squares = squares.sum()
    return {"loss - cross-entropy": alpha / 2 * squares}


def test_alpha_is_not_divided_by_n_and_leaves_the_biases_out(problem):
    p = problem
    penalty = loss(p.W, p.b, p.X, p.y, p.alpha) - cross_entropy(p.W, p.b, p.X, p.y)
    mistakes = {mistake: penalty_by_formula(p, mistake) for mistake in PENALTY_MISTAKES}
    assert_right({"loss - cross-entropy": penalty}, penalty_by_formula(p), mistakes)


# --- Numbers that are large, small or many --------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logits_of_ten_thousand_are_finite_and_right(dtype):
    W, b, X = np.array([[1e4, -1e4, 0]], dtype), np.zeros(3, dtype), np.ones((1, 1), dtype)
    with np.errstate(all="ignore"):
        yhat = softmax(W, b, X)[:, 0]
        ce = cross_entropy(W, b, X, np.array([1]))
    assert np.isfinite(yhat).all(), f"ŷ is {yhat}: exp overflows; subtract the maximum of z first"
    assert np.isfinite(ce), f"the loss is {ce}: take it from z, not from ŷ, which underflows to 0"
    added = f"as if {np.exp(-ce):.0e} were added to ŷ" if ce < 100 else "a wrong number"
    assert ce == 2e4, f"the loss is {ce:.5g}, not 20000: {added}"
    np.testing.assert_array_equal(logits(W, b, X)[:, 0], [0.0, -2e4, -1e4])
    np.testing.assert_array_equal(yhat, [1.0, 0.0, 0.0])
    dW, db = gradients(W, b, X, np.array([1]), 0.0)
    assert np.isfinite(dW).all(), f"dW is {dW}"
    assert np.isfinite(db).all(), f"db is {db}"


MAXIMA = {
    "each model has one maximum for all images": (0, 2),
    "each image has one maximum for all models": (0, 1),
    "there is one maximum for all": (0, 1, 2),
}


def softmax_of_large_logits(axes):
    """ŷ of two models and two images, if the maximum is taken over these axes of z (c, K, n)."""
    Z = np.array([[[1e4, 1.0], [1.0, 1e-4]], [[0.0, 0.0], [0.0, 0.0]]])
    with np.errstate(invalid="ignore"):
        exp_z = np.exp(Z - Z.max(axis=axes, keepdims=True))
        return {"ŷ": exp_z / exp_z.sum(axis=0)}


def test_large_logits_of_a_model_or_an_image_leave_the_others_alone():
    """Each image has, in each model of a stack, a maximum of its own."""
    W, b, X = np.array([[[1e4, 1.0], [0.0, 0.0]]]), np.zeros((2, 2)), np.array([[1.0], [1e-4]])
    with np.errstate(invalid="ignore"):
        ours = {"ŷ": softmax(W, b, X)}
    mistakes = {mistake: softmax_of_large_logits(axes) for mistake, axes in MAXIMA.items()}
    assert_right(ours, softmax_of_large_logits((0,)), mistakes)


def test_a_certain_and_right_model_has_no_loss_and_no_gradient():
    W, b, X, y = np.array([[100.0, -100.0]]), np.zeros(2), np.array([[1.0], [-1.0]]), np.arange(2)
    ce, accuracy = evaluate(W, b, X, y)
    assert str(ce) == "0.0", f"the loss of ŷ = 1 is {ce}, not 0.0"
    assert accuracy == 1
    largest = max(abs(g).max() for g in gradients(W, b, X, y, 0.0))
    assert largest < 1e-80, f"a gradient of {largest}, though ŷ is the one-hot label"


def test_the_mean_of_a_stack_does_not_drift_in_float32():
    X, y = np.zeros((200_000, 1), np.float32), np.zeros(200_000, int)
    W, b = np.zeros((1, 10, 2), np.float32), np.zeros((10, 2), np.float32)
    said = "of 200,000 equal losses; is the mean taken in float32?"
    np.testing.assert_allclose(cross_entropy(W, b, X, y), np.log(10), rtol=1e-7, err_msg=said)


def test_zero_weights_guess_at_random(problem):
    p = problem
    ce, accuracy = evaluate(np.zeros_like(p.W), np.zeros_like(p.b), p.X, p.y)
    np.testing.assert_allclose(ce, np.log(4), rtol=1e-15, err_msg="not log c, for c = 4 classes")
    np.testing.assert_array_equal(accuracy, (p.y == 0).mean(), "not the fraction of class 0")


# --- Arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [loss, gradients])
def test_one_hot_labels_are_refused_with_what_to_do(problem, function):
    p = problem
    with pytest.raises(ValueError, match=r"one-hot.*argmax\(axis=1\)"):
        function(p.W, p.b, p.X, np.eye(4)[p.y], 0.0)
