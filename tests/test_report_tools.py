"""The programs that measured the report's numbers, each on a small case with a known answer."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize

from report import (
    averages,
    choice,
    gradient_check,
    logistic,
    optimum,
    ratios,
    rounding,
    shared,
    winner,
)
from softmax_sgd import Grid, Metrics, evaluate, gradients, loss, sgd


@pytest.fixture
def small_problem():
    """Twenty examples of four pixels in ten classes, in float64, and a generator."""
    rng = np.random.default_rng(8)
    return rng.random((20, 4)), np.arange(20) % 10, rng


# --- shared ---------------------------------------------------------------------------------------


def test_a_result_that_is_not_a_number_is_an_error_where_it_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(shared, "RESULTS", tmp_path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        shared.write("part", lambda: ({"share": math.nan}, {}))
    assert list(tmp_path.iterdir()) == []


# --- winner ---------------------------------------------------------------------------------------


def test_a_constant_model_has_one_predicted_class_and_the_loss_of_its_one_probability():
    W, b = np.zeros((10, 2)), np.zeros(10)
    b[3] = math.log(11)  # so that class 3 has the probability 11/20
    X, y = np.zeros((100, 2), np.float32), np.repeat([3, 5], 50)
    facts = winner.test_facts(W, b, X, y)
    assert facts["confusion"][3][3] == facts["confusion"][5][3] == 50
    assert np.sum(facts["confusion"]) == 100
    mean = (math.log(20 / 11) + math.log(20)) / 2
    # The normal approximation, with 1.96: 50 losses have one value and 50 another, log 11 apart.
    half = 1.96 * math.log(11) / 2 * math.sqrt(100 / 99) / 10
    assert facts["cross_entropy"] == pytest.approx({"low": mean - half, "high": mean + half})
    # Wilson's interval is centred on 1/2, as 50 of 100 are. With SciPy's z in place of 1.96, its
    # half width z/(1 + z²/n) √(1/(4n) + z²/(4n²)) is z/(2 √(n + z²)).
    half = 1.959964 / (2 * math.sqrt(100 + 1.959964**2))
    assert facts["accuracy"] == pytest.approx({"low": 0.5 - half, "high": 0.5 + half})


# --- gradient_check -------------------------------------------------------------------------------


def test_gradient_check_accepts_the_gradients_and_sees_one_that_is_half_too_long(
    small_problem, monkeypatch
):
    X, y, rng = small_problem
    axes = np.eye(10 * (X.shape[1] + 1)).reshape(-1, 10, X.shape[1] + 1)
    assert max(gradient_check.relative_errors(X, y, axes, rng)) < 1e-6

    def too_long(*arguments):
        dW, db = gradients(*arguments)
        return 1.5 * dW, db

    monkeypatch.setattr(gradient_check, "gradients", too_long)
    excess = 0.5 / 1.5  # as a part of the longer one
    largest = max(gradient_check.relative_errors(X, y, axes, rng))
    assert largest == pytest.approx(excess, abs=1e-5)


# --- rounding -------------------------------------------------------------------------------------


def test_differences_are_found_where_they_are():
    right = np.zeros((2, 3, 4, 5))  # (n, ε, α, epoch)
    ours = right.copy()
    ours[1, 0, 2, 4], ours[0, 1, 3, 2] = -0.3, 0.1
    facts = rounding.differences(ours, right, winner=(0, 1, 3, 2))
    assert facts == {"largest": 0.3, "largest_by_alpha": [0, 0, 0.3, 0.1], "at_the_winner": 0.1}


# --- ratios ---------------------------------------------------------------------------------------


def test_the_models_of_a_ratio_are_put_together():
    models = {(8, 0.1): 0.5, (16, 0.2): 0.7, (16, 0.1): 0.4, (8, 0.05): 0.45}
    facts = ratios.describe(models, [80.0, 160.0])
    assert [row["lowest"] for row in facts["first"]] == [0.5, 0.7]
    assert [row["lowest"] for row in facts["last"]] == [0.45, 0.4]
    assert facts["spreads"] == pytest.approx([0.2, 0.05])
    assert facts["largest_n_is_worst"] == [True, False]


# --- averages -------------------------------------------------------------------------------------


def test_the_mean_is_over_the_weights_that_the_second_half_of_the_epochs_kept(small_problem):
    """They are kept after every ten steps, and at the end of each epoch."""
    X, y, _ = small_problem
    batches = [[np.array([i, i + 1]) for i in range(0, 18)] + [np.arange(20)] * 4] * 3  # 22 steps
    rates = [0.1, 0.5]
    parts = (X, y), (X[:7], y[:7])
    last, mean = averages.train_and_average(X, y, parts, 0.01, rates, batches)
    assert last.shape == mean.shape == (2, 2, 2, 3), "not (part, metric, learning rate, epoch)"
    for j, rate in enumerate(rates):
        W, b, kept = np.zeros((10, 4)), np.zeros(10), []
        for epoch in range(3):
            of_epoch = []
            for steps in (10, 10, 2):  # so after 10, 20 and 22, which ends the epoch
                done = 10 * len(of_epoch)
                W, b = sgd(W, b, X, y, 0.01, rate, batches[epoch][done : done + steps])
                of_epoch.append((W, b))
            kept.append(of_epoch)
        second_half = kept[1] + kept[2]  # of three epochs, the first is the first half
        mean_W, mean_b = (np.mean(values, axis=0) for values in zip(*second_half, strict=True))
        for i, part in enumerate(parts):
            assert last[i, :, j, 2] == pytest.approx(evaluate(W, b, *part))
            assert mean[i, :, j, 2] == pytest.approx(evaluate(mean_W, mean_b, *part))


def test_parts_that_move_together_have_correlated_changes():
    noise = np.array([0, 1, 0, 3, 1, 2]) / 100
    last = np.zeros((2, 2, 3, 6))  # (part, metric, learning rate, epoch)
    last[0, 0, 1], last[1, 0, 1] = 0.4 + noise, 0.5 + 2 * noise
    facts = averages.compare(last, last + 0.1, chosen=1)
    assert facts["correlation_of_changes"] == pytest.approx(1)
    assert facts["last"]["lowest_by_learning_rate"] == pytest.approx([0, 0.4, 0])
    after = facts["mean"]["after_all_epochs"]
    assert after["validation"]["cross_entropy"] == pytest.approx(0.4 + 0.02 + 0.1)
    assert after["test"]["cross_entropy"] == pytest.approx(0.5 + 0.04 + 0.1)


# --- optimum --------------------------------------------------------------------------------------


def test_the_minimum_is_that_of_another_method_and_the_certificate_bounds_the_distance(
    small_problem,
):
    X, y, _ = small_problem
    alpha, shape = 0.01, (10, X.shape[1] + 1)

    def loss_and_gradient(flat):
        theta = flat.reshape(shape)
        at = theta[:, :-1], theta[:, -1], X, y, alpha
        return loss(*at), np.column_stack(gradients(*at)).ravel()

    how = {"jac": True, "options": {"gtol": 1e-9, "ftol": 0, "maxiter": 10_000}}
    other = minimize(loss_and_gradient, np.zeros(math.prod(shape)), method="L-BFGS-B", **how)
    W, b = optimum.minimise(X, y, alpha, within=1e-9)
    facts = optimum.certify(W, b, X, y, alpha)
    assert facts["loss"] == pytest.approx(other.fun, abs=1e-12)
    assert facts["weights_within"] <= 1e-9
    assert facts["largest_db"] < 1e-11

    rough_W, rough_b = optimum.minimise(X, y, alpha, within=0.1)
    bound = optimum.certify(rough_W, rough_b, X, y, alpha)["weights_within"]
    assert 0 < np.linalg.norm(rough_W - W) <= bound <= 0.1


# --- choice ---------------------------------------------------------------------------------------

GRID = Grid(batch_sizes=(10, 20), learning_rates=(0.1, 0.2), alphas=(0.0, 0.1, 0.5), epochs=7)


def test_models_are_grouped_by_the_ratio_of_batch_size_and_learning_rate():
    grid = GRID._replace(learning_rates=(0.1, 0.2, 0.4))
    of_ratio = {25: 0.9, 50: 0.3, 100: 0.2, 200: 0.5}
    lowest = np.array(
        [[[of_ratio[round(n / rate)]] * 3 for rate in grid.learning_rates] for n in (10, 20)]
    )
    lowest[1, 1, 2] += 0.05  # batches of 20 and rate 0.2, beside those of 10 and 0.1
    facts = choice.spreads(grid, lowest)
    assert facts["within"] == pytest.approx([0, 0, 0.05])
    # Largest minus smallest of all models of 50 and 100, which alone have two each: 0.3 − 0.2.
    assert facts["between"] == pytest.approx([0.1, 0.1, 0.1])


def test_the_alphas_are_compared_at_the_same_batch_size_and_learning_rate():
    base = np.array([[0.4, 0.5], [0.6, 0.8]])
    lowest = np.stack([base, base + 0.01, base + np.array([[0.1, 0.2], [0.3, 0.4]])], axis=-1)
    lowest[1, 0, 1] += 0.05
    facts = choice.compare_alphas(lowest)
    assert facts["pairs"] == 4
    assert facts["worse"] == pytest.approx([0.1, 0.4])
    assert facts["others_median"] == pytest.approx(0.01)
    assert facts["others_largest"] == pytest.approx(0.06)


def test_neighbours_and_rivals_are_those_of_the_lowest_point():
    values = np.full((2, 2, 3, 7), 0.6)
    values[1, 0, 2] = [0.9, 0.52, 0.4, 0.51, 0.6, 0.6, 0.6]  # the winner in epoch 3
    values[0, 1, 0, 6] = 0.404
    facts = choice.neighbours_and_rivals(Metrics(values, values))
    assert facts["before_and_after"] == [0.52, 0.51]
    assert facts["runner_up"] == pytest.approx(0.004)
    assert facts["models_close"] == 2  # the winner and the rival, as choice.CLOSE is 0.005
    # Equal values count in the first epoch, so only the rival has its lowest value late.
    assert facts["lowest_in_last_epochs"] == 1
    values[0, 1, 0, 6] = 0.3  # a winner in the last epoch has one neighbour
    assert choice.neighbours_and_rivals(Metrics(values, values))["before_and_after"] == [0.6]


def test_the_best_average_is_centred_on_its_epoch():
    values = np.ones((2, 2, 3, 7))
    values[0, 1, 1] = [1, 1, 0, 0, 0, 0, 0]
    values[1, 1, 1] = [1, 1, 1, -1, 1, 1, 1]  # lower, but alone
    point = choice.best_average(GRID, Metrics(values, values))
    expected = {"batch_size": 10, "learning_rate": 0.2, "alpha": 0.1, "epochs": 5}
    assert point == {"epochs_averaged": 5, **expected}


def test_a_rise_is_the_mean_over_the_splits_from_validation_to_test():
    def metrics(validation, test):
        parts = {"validation": validation, "test": test}
        return {part: {"cross_entropy": value} for part, value in parts.items()}

    runs = [metrics(0.40, 0.45), metrics(0.42, 0.44)]
    means = [{"mean": {"after_all_epochs": metrics(0.40, 0.43)}}] * 2
    facts = choice.rises(runs, means, [metrics(0.41, 0.44), metrics(0.43, 0.44)])
    assert facts == pytest.approx({"winner": 0.035, "mean": 0.03, "minimum": 0.02})


# --- logistic -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x1", "x2", "h"),
    [([1, 2], [2, 1], [1.5, 1.5]), ([1, 1], [-1, -1], [0, 0]), ([1, 0.5], [2, 1.5], [1, 0.5])],
    ids=["inside", "zero", "an end"],
)
def test_nearest_point_of_the_segment(x1, x2, h):
    for ends in ((x1, x2), (x2, x1)):
        np.testing.assert_allclose(logistic.nearest(*np.array(ends, float)), h, atol=1e-15)


def test_a_step_of_logistic_descent_is_down_the_gradient_of_the_mean_loss():
    rng = np.random.default_rng(0)
    X, w, b = rng.normal(size=(2, 2)), rng.normal(size=2), 0.3

    def f(w1, w2, b):
        return logistic.mean_loss(X, np.array([w1, w2]), b)

    at, h = np.array([*w, b]), 1e-5
    slopes = [(f(*(at + step)) - f(*(at - step))) / (2 * h) for step in h * np.eye(3)]
    new_w, new_b = logistic.descend(X, w, b, learning_rate=0.7)
    np.testing.assert_allclose(np.append(new_w, new_b), at - 0.7 * np.array(slopes), rtol=1e-8)


def test_descents_of_several_problems_together_are_those_of_each_alone():
    rng = np.random.default_rng(1)
    X, w, b, kept = rng.normal(size=(3, 2, 2)), rng.normal(size=(3, 2)), np.zeros(3), [1, 4, 9]
    together = logistic.descent(X, w, b, 0.5, kept)
    for p in range(3):
        w_p, b_p = w[p], b[p]
        for step in range(1, 10):
            w_p, b_p = logistic.descend(X[p], w_p, b_p, 0.5)
            if step in kept:
                np.testing.assert_allclose(together[0][p, kept.index(step)], w_p, rtol=1e-12)
                np.testing.assert_allclose(together[1][p, kept.index(step)], b_p, rtol=1e-12)


def test_the_smoothness_is_a_quarter_of_the_largest_eigenvalue():
    """Of the mean of (x, 1)(x, 1)ᵀ. By hand, it is 11/2 for the first two examples, then 2."""
    assert logistic.smoothness(np.array([[1, 2], [2, 1]])) == pytest.approx(11 / 8)
    assert logistic.smoothness(np.array([[1, 1], [-1, -1]])) == pytest.approx(1 / 2)
