"""Lemmas on the softmax, the cross-entropy, the regularised loss and the accuracy."""

import numpy as np
import pytest

from softmax_sgd import cross_entropy, evaluate, gradients, logits, loss, sgd, softmax


def test_zero_weights_guess_at_random(problem):
    p = problem
    ce, accuracy = evaluate(np.zeros_like(p.W), np.zeros_like(p.b), p.X, p.y)
    np.testing.assert_allclose(ce, np.log(4), rtol=1e-15)
    np.testing.assert_array_equal(accuracy, (p.y == 0).mean())


def test_probabilities_of_each_example_sum_to_1(problem):
    yhat = softmax(problem.W, problem.b, problem.X)
    assert yhat.shape == (*problem.b.shape, len(problem.X))
    np.testing.assert_allclose(yhat.sum(axis=0), 1, rtol=1e-14, err_msg="softmax of another axis?")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logits_of_ten_thousand_are_finite_and_right(dtype):
    """Where exp overflows, log(yhat) would be -inf, and log(yhat + eps) about -37."""
    W, b = np.array([[1e4, -1e4, 0]], dtype), np.zeros(3, dtype)
    X, y = np.ones((3, 1), dtype), np.array([0, 1, 2])
    said = "the maximum is not subtracted, or log(yhat + eps)?"
    np.testing.assert_array_equal(logits(W, b, X)[:, 0], [0.0, -2e4, -1e4], said)
    np.testing.assert_array_equal(softmax(W, b, X)[:, 0], [1.0, 0.0, 0.0], said)
    np.testing.assert_allclose(cross_entropy(W, b, X, y), 1e4, rtol=1e-7, err_msg=said)
    assert all(np.isfinite(g).all() for g in gradients(W, b, X, y, 0.0)), said


def test_large_logits_of_a_model_or_an_image_leave_the_others_alone():
    """Each image has, in each model of a stack, a maximum of its own."""
    W, b, X = np.array([[[1e4, 1.0], [0.0, 0.0]]]), np.zeros((2, 2)), np.array([[1.0], [1e-4]])
    sigmoid = 1 / (1 + np.exp(-W[0, 0, :, None] * X[:, 0]))  # of each model and image
    said = "one maximum for all models, or for all images: what is far below it underflows"
    np.testing.assert_allclose(softmax(W, b, X)[0], sigmoid, rtol=1e-12, err_msg=said)


def test_a_certain_and_right_model_has_no_loss_and_no_gradient():
    W, b, X, y = np.array([[100.0, -100.0]]), np.zeros(2), np.array([[1.0], [-1.0]]), np.arange(2)
    ce, accuracy = evaluate(W, b, X, y)
    assert str(ce) == "0.0", "a biased loss, such as of log(yhat + eps)? Or -0.0?"
    assert accuracy == 1
    assert all(abs(g).max() < 1e-80 for g in gradients(W, b, X, y, 0.0))


def test_alpha_is_not_divided_by_n_and_leaves_the_biases_out(problem):
    p = problem
    penalty = loss(p.W, p.b, p.X, p.y, p.alpha) - cross_entropy(p.W, p.b, p.X, p.y)
    squares = sum(row**2 for row in p.W.reshape(-1, *p.W.shape[2:]))
    said = "not alpha/2 ||W||^2: is alpha divided by n, or not halved, or the bias penalised?"
    np.testing.assert_allclose(penalty, p.alpha / 2 * squares, rtol=1e-12, err_msg=said)


def test_the_mean_of_a_stack_does_not_drift_in_float32():
    X, y = np.zeros((200_000, 1), np.float32), np.zeros(200_000, int)
    W, b = np.zeros((1, 10, 2), np.float32), np.zeros((10, 2), np.float32)
    np.testing.assert_allclose(cross_entropy(W, b, X, y), np.log(10), rtol=1e-7)


def test_one_hot_labels_are_refused_with_what_to_do(problem):
    p = problem
    for function in (loss, gradients):
        with pytest.raises(ValueError, match=r"one-hot labels\? y\.argmax\(axis=1\)"):
            function(p.W, p.b, p.X, np.eye(4)[p.y], 0.0)


def test_no_function_changes_its_arguments(problem):
    p = problem
    arrays = p.W, p.b, p.X, p.y, np.asarray(p.alpha)
    before = [a.copy() for a in arrays]
    loss(*arrays)
    gradients(*arrays)
    sgd(*arrays, 0.1, [np.arange(13)])
    for array, copy in zip(arrays, before):
        np.testing.assert_array_equal(array, copy, "weights leak into all that begins with them")
