"""What the assignment asks, in its words: below each quotation are the tests that check it.

Most look at a finished run of the program, with GRID on small files, from outside. The indices of
its winner are pairwise different, so a model or a number taken from another place shows.
"""

import json
import re

import numpy as np
import pytest
from helpers import (
    GRID,
    GRID_OPTIONS,
    SEED,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    run,
    write_own_files,
)
from numpy.testing import assert_allclose, assert_array_equal

from softmax_sgd import Grid, Metrics, evaluate, gradients, load, split


def winner(finished):
    """The indices of the winner in the curves: those of the values in results.json."""
    best = finished.results["best"]
    return tuple(list(values).index(best[name]) for name, values in GRID.axes().items())


# "the mini-batch size, the learning rate, the number of epochs and the L2 regularisation strength;
# ... search a grid systematically, over at least 4 different values of each hyperparameter"


def test_the_default_grid_has_at_least_4_values_of_each_hyperparameter():
    for name, values in Grid().axes().items():
        assert len(set(values)) >= 4, f"{name} has only the values {values}"
        assert list(values) == sorted(set(values)), f"{name} is not in ascending order"


def test_every_point_of_the_grid_was_tried(finished_run):
    shape = tuple(len(values) for values in GRID.axes().values())
    for name in ("cross_entropy", "accuracy"):
        assert finished_run.curves[name].shape == shape
        assert np.isfinite(finished_run.curves[name]).all()


# "set aside a fraction, e.g. 20%, of the training files as the validation set and train on the
# remaining 80%"


def test_80_percent_of_the_training_files_train_and_20_percent_validate(finished_run):
    assert finished_run.results["split"] == {"training": 48, "validation": 12, "test": 40}
    assert finished_run.stdout.startswith("Images: 48 training, 12 validation, 40 test")


# "Hint 1: divide each pixel of both the training and testing data by 255."


def test_each_pixel_is_divided_by_255(finished_run):
    X, _, X_test, _ = load(finished_run.own_files)
    pixels = np.load(finished_run.own_files / TRAIN_IMAGES)
    test_pixels = np.load(finished_run.own_files / TEST_IMAGES)
    assert pixels.max() < 255, "a division by the maximum would not show"
    assert_allclose(X, pixels / 255, rtol=1e-6, err_msg="the training images are not pixels / 255")
    assert_allclose(
        X_test, test_pixels / 255, rtol=1e-6, err_msg="the test images are not pixels / 255"
    )


# "Regularise the weights but not the biases." "The regularisation term is not divided by n."


@pytest.mark.parametrize("n", [1, 13])
def test_weights_are_regularised_and_biases_are_not_whatever_n_is(problem, n):
    p = problem
    X, y = p.X[:n], p.y[:n]
    dW, db = gradients(p.W, p.b, X, y, p.alpha)
    dW_without, db_without = gradients(p.W, p.b, X, y, 0 * p.alpha)
    assert_allclose(dW - dW_without, p.alpha * p.W, err_msg="what alpha adds to dW is not αW")
    assert_allclose(db, db_without, err_msg="alpha changes db: the biases are regularised")


# "optimise the hyperparameters on the validation set only"


def test_the_winner_has_the_lowest_validation_cross_entropy(finished_run):
    cross_entropy, accuracy = (finished_run.curves[name] for name in Metrics._fields)
    best = winner(finished_run)
    assert best == np.unravel_index(cross_entropy.argmin(), cross_entropy.shape)
    assert accuracy[best] < accuracy.max(), (
        "choose another GRID or SEED in helpers.py: a choice by accuracy would not show"
    )


def test_the_test_files_change_nothing_but_the_metrics_of_the_test(finished_run, tmp_path):
    own_files = write_own_files(tmp_path / "own")
    for name in (TEST_IMAGES, TEST_LABELS):
        np.save(own_files / name, np.load(own_files / name)[7:])
    np.save(own_files / TEST_LABELS, 9 - np.load(own_files / TEST_LABELS))
    output = tmp_path / "results"
    done = run("softmax_sgd.py", *GRID_OPTIONS, "--data-dir", own_files, "--output", output)
    assert done.returncode == 0, done.stderr
    results = json.loads((output / "results.json").read_text(encoding="utf-8"))
    for part in ("best", "training", "validation"):
        assert results[part] == finished_run.results[part], f"{part} depends on the test files"
    model = np.load(output / "model.npz")
    for name in "Wb":
        message = f"{name} depends on the test files"
        assert_array_equal(model[name], finished_run.model[name], err_msg=message)
    assert results["test"] != finished_run.results["test"], "the test ignores the test files"


# "Once the hyperparameters are tuned and the weights optimised so as to maximise performance on the
# validation set: (1) stop training, and (2) evaluate on the test set."


def test_the_model_is_the_winner_as_it_was_validated_and_not_trained_further(finished_run):
    """The saved model's metrics on the validation images are those of its curve at that epoch."""
    X, y, _, _ = load(finished_run.own_files)
    _, rows = split(len(X), 0.2, np.random.default_rng(SEED))
    model = finished_run.model
    ours = evaluate(model["W"], model["b"], X[rows], y[rows])
    for name, value in ours._asdict().items():
        message = f"{name} of model.npz is not that of the winner at its epoch"
        of_curve = finished_run.curves[name][winner(finished_run)]
        assert_allclose(value, of_curve, rtol=1e-5, err_msg=message)
        assert finished_run.results["validation"][name] == of_curve


def test_the_test_metrics_are_those_of_the_winner_on_all_test_images(finished_run):
    _, _, X_test, y_test = load(finished_run.own_files)
    model, test = finished_run.model, finished_run.results["test"]
    right = evaluate(model["W"], model["b"], X_test, y_test)
    assert_allclose(test["cross_entropy"], right.cross_entropy, rtol=1e-6)
    assert_allclose(test["accuracy"], right.accuracy, rtol=1e-12)


# "Record both the (unregularised) cross-entropy ... and the percentage of correctly classified
# examples"


def test_the_last_lines_are_the_metrics_with_those_of_the_test_at_the_end(finished_run):
    lines = finished_run.stdout.splitlines()[-6:]
    parts = ("training", "validation", "test")
    for part, cross_entropy, accuracy in zip(parts, lines[::2], lines[1::2], strict=True):
        result = finished_run.results[part]
        assert cross_entropy == (
            f"{part.capitalize()} cross-entropy (unregularized): {result['cross_entropy']:.4f}"
        )
        assert accuracy == f"{part.capitalize()} accuracy: {100 * result['accuracy']:.2f}%"


def test_the_best_hyperparameters_are_printed(finished_run):
    best = re.search("^Best: (.*)$", finished_run.stdout, re.MULTILINE)[1]
    right = finished_run.results["best"].items()
    assert best == ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in right)
