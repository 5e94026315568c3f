"""What the assignment asks, in its words: below each quotation are the tests that check it.

Most look at a finished run of the program, with GRID on small files. What the assignment says of
the loss is tested in test_model and test_gradients, and the division by 255 in test_load.
"""

import json
import re

import numpy as np
import pytest
from helpers import GRID, GRID_OPTIONS, SEED, TEST_IMAGES, TEST_LABELS, run, write_own_files
from numpy.testing import assert_allclose

from softmax_sgd import Grid, Metrics, evaluate, load, main, split


def winner(finished):
    """The indices of the winner in the curves: those of the values in results.json."""
    best = finished.results["best"]
    return tuple(list(values).index(best[name]) for name, values in GRID.axes().items())


# "the mini-batch size, the learning rate, the number of epochs and the L2 regularisation strength;
# ... search a grid systematically, over at least 4 different values of each hyperparameter"


def test_the_default_grid_has_at_least_4_values_of_each_hyperparameter():
    for name, values in Grid().axes().items():
        assert len(set(values)) >= 4, f"{name} has only the values {values}"


def test_every_point_of_the_grid_was_tried(finished_run):
    shape = tuple(len(values) for values in GRID.axes().values())
    for name in ("cross_entropy", "accuracy"):
        assert finished_run.curves[name].shape == shape
        assert np.isfinite(finished_run.curves[name]).all()


# "set aside a fraction, e.g. 20%, of the training files as the validation set and train on the
# remaining 80%"


def test_80_percent_of_the_training_files_train_and_20_percent_validate(own_files, monkeypatch):
    """Looks at the rows that `search` is given, and does not search."""
    given = []

    def stop(X, y, train, validation, *others):
        given.extend([train, validation])
        raise KeyboardInterrupt

    monkeypatch.setattr("softmax_sgd.search", stop)
    with pytest.raises(SystemExit):
        main(["--batch-sizes", "8", "--seed", "3", "--data-dir", str(own_files)])
    train, validation = given
    assert (len(train), len(validation)) == (48, 12)
    assert sorted([*train, *validation]) == list(range(60)), "not each row in one of the two"
    right = split(60, 0.2, np.random.default_rng(3))
    assert set(validation) == set(right[1]), "the split is not that of --seed"


# "optimise the hyperparameters on the validation set only"


def test_the_test_files_change_nothing_but_the_metrics_of_the_test(finished_run, tmp_path):
    own_files = write_own_files(tmp_path / "own")
    for name in (TEST_IMAGES, TEST_LABELS):
        np.save(own_files / name, np.load(own_files / name)[7:])
    np.save(own_files / TEST_LABELS, 9 - np.load(own_files / TEST_LABELS))
    output = tmp_path / "results"
    done = run("softmax_sgd.py", *GRID_OPTIONS, "--data-dir", own_files, "--output", output)
    assert done.returncode == 0, done.stderr
    results = json.loads((output / "results.json").read_text(encoding="utf-8"))
    for part in ("training", "validation"):
        ours, before = (list(r[part].values()) for r in (results, finished_run.results))
        assert_allclose(ours, before, rtol=1e-5, err_msg=f"{part} depends on the test files")
    assert results["best"] == finished_run.results["best"], "the choice depends on the test files"
    model = np.load(output / "model.npz")
    for name in "Wb":
        message = f"{name} depends on the test files"
        assert_allclose(model[name], finished_run.model[name], atol=1e-5, err_msg=message)
    assert results["test"] != finished_run.results["test"], "the test ignores the test files"


def test_the_winner_has_the_lowest_validation_cross_entropy(finished_run):
    cross_entropy, accuracy = (finished_run.curves[name] for name in Metrics._fields)
    lowest = np.unravel_index(cross_entropy.argmin(), cross_entropy.shape)
    highest_accuracy = np.unravel_index(accuracy.argmax(), accuracy.shape)
    assert lowest != highest_accuracy, "choose another GRID or SEED in helpers.py"
    assert winner(finished_run) == lowest, f"the highest accuracy is at {highest_accuracy}"


# "Once the hyperparameters are tuned and the weights optimised so as to maximise performance on the
# validation set: (1) stop training, and (2) evaluate on the test set."


def test_the_model_is_the_winner_as_it_was_validated_and_not_trained_further(finished_run):
    """The saved model's metrics on the validation images are those of its curve at that epoch."""
    X, y, _, _ = load(finished_run.own_files)
    train, rows = split(len(X), 0.2, np.random.default_rng(SEED))
    model = finished_run.model
    for name, value in evaluate(model["W"], model["b"], X[train], y[train])._asdict().items():
        message = f"the training {name} is not that of model.npz on the training rows"
        assert_allclose(finished_run.results["training"][name], value, rtol=1e-5, err_msg=message)
    ours = evaluate(model["W"], model["b"], X[rows], y[rows])
    for name, value in ours._asdict().items():
        of_curve = finished_run.curves[name][winner(finished_run)]
        reported = finished_run.results["validation"][name]
        assert reported == of_curve, f"the validation {name} is not that of the winner's point"
        message = f"{name} of model.npz is not that of the winner at its epoch"
        assert_allclose(value, of_curve, rtol=1e-5, err_msg=message)


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
