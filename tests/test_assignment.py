"""What the assignment asks, in its words: each quotation is held by the test below it.

Half of them look at the program while it runs, from its command line to its last line.
"""

import json
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import NAMES, assert_right

import softmax_sgd
from softmax_sgd import Grid, best_point, evaluate, gradients, load, search, sgd

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = NAMES
OPTIONS = ("--batch-sizes", 4, 9, "--learning-rates", 0.1, 1, "--alphas", 0, 0.02, 0.2)
OPTIONS += ("--epochs", 6, "--workers", 1)


def run_here(monkeypatch, *arguments):
    """Run the program in this process."""
    monkeypatch.setattr(sys, "argv", ["softmax_sgd.py", *map(str, arguments)])
    softmax_sgd.run_experiment()


# "mini-batch size, learning rate, number of epochs, L2 regularisation strength ... search a grid
# systematically, over at least 4 different values of each hyperparameter"


def test_the_default_grid_has_at_least_4_values_of_each_hyperparameter(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["softmax_sgd.py"])
    options = softmax_sgd.parse_arguments()
    assert Grid(*(getattr(options, name) for name in Grid._fields)) == Grid()
    for name, values in zip(Grid._fields[:3], Grid()):
        assert len(set(values)) >= 4, f"{name} has the values {values}"
        assert list(values) == sorted(set(values)), f"{name} is not in ascending order"
    assert Grid().epochs >= 4, "every number of epochs up to this is a value"


# "set aside ... 20% of the training files as the validation set and train on the remaining 80%"


def test_80_percent_of_the_training_files_train_and_20_percent_validate(
    own_files, monkeypatch, capsys
):
    rows = {}

    def record(X, y, train, validation, *rest, **options):
        rows.update(X=X, y=y, train=train, validation=validation)
        return search(X, y, train, validation, *rest, **options)

    monkeypatch.setattr(softmax_sgd, "search", record)
    run_here(monkeypatch, *OPTIONS, "--data-dir", own_files)
    X, y, _, _ = load(own_files)
    assert np.array_equal(rows["X"], X), "the search gets other images than `load` returns"
    assert np.array_equal(rows["y"], y), "the search gets other labels than the training file's"
    assert len(rows["train"]) == 48, "not 80% of the 60 images train"
    assert len(rows["validation"]) == 12, "not 20% of the 60 images validate"
    assert not set(rows["train"]) & set(rows["validation"]), "some images train and validate"
    assert capsys.readouterr().out.startswith("Images: 48 training, 12 validation, 40 test\n")


# "divide each pixel of both the training and testing data by 255"


def test_each_pixel_is_divided_by_255(own_files):
    X, _, X_test, _ = load(own_files)
    training, test = np.load(own_files / TRAIN_IMAGES), np.load(own_files / TEST_IMAGES)
    both = np.concatenate([training, test])
    for name, ours, pixels in ((TRAIN_IMAGES, X, training), (TEST_IMAGES, X_test, test)):
        mistakes = {
            "they were not divided": pixels,
            "they were divided by 256": pixels / 256,
            "they were divided by their own maximum": pixels / pixels.max(),
            "they were divided twice": pixels / 255**2,
            "the mean of the training images was subtracted": pixels / 255 - training.mean() / 255,
        }
        for of, images in (("the training images", training), ("all images", both)):
            for each, axis in (("", None), ("each pixel of ", 0)):
                standardised = (pixels - images.mean(axis)) / images.std(axis)
                mistakes[f"they were standardised by {each}{of}"] = standardised
        named = {mistake: {f"{name}": wrong} for mistake, wrong in mistakes.items()}
        assert_right({name: ours}, {name: pixels / 255}, named, rtol=1e-5, atol=1e-6)


# "Regularise the weights but not the biases." "The regularisation term is not divided by n."


@pytest.mark.parametrize("n", [1, 13])
def test_weights_are_regularised_and_biases_are_not_whatever_n_is(problem, n):
    p = problem
    X, y = p.X[:n], p.y[:n]
    plain, regularised = (gradients(p.W, p.b, X, y, alpha) for alpha in (0 * p.alpha, p.alpha))
    added = {name: after - before for name, after, before in zip("Wb", regularised, plain)}
    mistakes = {
        "alpha is divided by n": {"W": p.alpha * p.W / n, "b": 0 * p.b},
        "alpha is multiplied by n": {"W": p.alpha * p.W * n, "b": 0 * p.b},
        "nothing is regularised": {"W": 0 * p.W, "b": 0 * p.b},
        "the biases are regularised, too": {"W": p.alpha * p.W, "b": p.alpha * p.b},
        "the biases are regularised, the weights not": {"W": 0 * p.W, "b": p.alpha * p.b},
    }
    assert_right(added, {"W": p.alpha * p.W, "b": 0 * p.b}, mistakes)


# "optimise the hyperparameters on the validation set only"


def test_the_test_files_change_nothing_but_the_metrics_of_the_test(
    own_files, tmp_path, monkeypatch
):
    results = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        run_here(monkeypatch, *OPTIONS, "--data-dir", own_files, "--output", tmp_path / name)
        result = json.loads((tmp_path / name / "results.json").read_text(encoding="utf-8"))
        model = np.load(tmp_path / name / "model.npz")
        assert sorted(model) == ["W", "b"], f"model.npz holds {sorted(model)}, not W and b"
        results.append((result, model["W"], model["b"]))
        np.save(own_files / TEST_IMAGES, np.load(own_files / TEST_IMAGES)[::-1])  # not the labels
    (one, *model), (other, *other_model) = results
    for part in ("best", "training", "validation", "split"):
        assert one[part] == other[part], f"{part} depends on the test images"
    for name, ours, others in zip("Wb", model, other_model):
        assert np.array_equal(ours, others), f"{name} depends on the test images"
    assert one["test"] != other["test"], "the metrics of the test ignore the test images"


# "Once the hyperparameters are tuned ...: (1) stop training, and (2) evaluate on the test set."


def test_the_test_set_is_evaluated_once_at_the_end_by_the_winner(own_files, monkeypatch):
    events, kept = [], SimpleNamespace()
    _, _, X_test, y_test = load(own_files)

    def record_sgd(*arguments, **options):
        events.append("training")
        return sgd(*arguments, **options)

    def record_evaluate(W, b, X, y):
        if np.array_equal(X, X_test):
            events.append("test")
            kept.tested = {"W": W, "b": b}
            assert np.array_equal(y, y_test), "the labels are not those of the test images"
        return evaluate(W, b, X, y)

    def record_search(*arguments, **options):
        kept.curves, kept.W, kept.b = search(*arguments, **options)
        events.append("end of the search")
        return kept.curves, kept.W, kept.b

    monkeypatch.setattr(softmax_sgd, "sgd", record_sgd)
    monkeypatch.setattr(softmax_sgd, "evaluate", record_evaluate)
    monkeypatch.setattr(softmax_sgd, "search", record_search)
    run_here(monkeypatch, *OPTIONS, "--data-dir", own_files)
    assert events.count("test") == 1, f"the test set is evaluated {events.count('test')} times"
    before_the_test = events[events.index("end of the search") + 1 : events.index("test")]
    assert before_the_test == [], "after the search, and before the test, a model is trained"
    assert events[-1] == "test", "after the test, a model is trained"

    def of(point):
        return {"W": kept.W[(..., *point)], "b": kept.b[(..., *point)]}

    *winner, _ = best_point(kept.curves)
    right, others = of(winner), {}
    for point in np.ndindex(kept.W.shape[2:]):
        if point != tuple(winner):
            others[f"the model at the indices {point} were the winner"] = of(point)
            others[f"b were that of the model at {point}"] = {**right, "b": of(point)["b"]}
            others[f"W were that of the model at {point}"] = {**right, "W": of(point)["W"]}
    others["b were left out"] = {**right, "b": 0 * right["b"]}
    assert_right(kept.tested, right, others, rtol=0, atol=0)


# "Record both the (unregularised) cross-entropy ... and the percentage of correctly classified"


def test_the_cross_entropy_and_the_percentage_of_the_test_are_printed(finished_run):
    _, _, X_test, y_test = load(finished_run.own_files)
    model = np.load(finished_run.output / "model.npz")
    cross_entropy, accuracy = evaluate(model["W"], model["b"], X_test, y_test)
    printed = re.search(
        r"^Test cross-entropy \(unregularized\): (.*)\nTest accuracy: (.*)%$",
        finished_run.stdout,
        re.MULTILINE,
    )
    assert printed, f"not both are printed:\n{finished_run.stdout}"
    ours = {
        name: float(text) for name, text in zip(("cross-entropy", "percentage"), printed.groups())
    }
    right = {"cross-entropy": cross_entropy, "percentage": 100 * accuracy}
    mistakes = {
        "a fraction is printed with %": {**right, "percentage": accuracy},
        "a fraction of a percent is printed": {**right, "percentage": accuracy / 100},
        "the percentage of errors is printed": {**right, "percentage": 100 - 100 * accuracy},
        "the cross-entropy is in bits": {**right, "cross-entropy": cross_entropy / np.log(2)},
    }
    assert_right(ours, right, mistakes, rtol=0, atol=6e-5)
