"""What report/experiments.py measures: each part against what it must be, and against a rerun."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

import softmax_sgd as program
from report import experiments

RESULTS = experiments.RESULTS


def recorded(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


# --- The chosen model -----------------------------------------------------------------------------


def test_wilsons_interval_ends_where_the_score_test_rejects():
    near = experiments.wilson(8449, 10000)
    for p in (near["low"], near["high"]):  # (p - share)² = z² p (1 - p) / n
        assert (p - 0.8449) ** 2 == pytest.approx(1.959964**2 * p * (1 - p) / 10000)


def test_normal_interval_holds_the_mean_in_about_95_percent_of_samples():
    values = np.random.default_rng(0).exponential(size=(4000, 50))
    covered = [e["low"] < 1 < e["high"] for e in map(experiments.normal, values)]
    assert 0.9 < np.mean(covered) < 0.96


def test_losses_are_those_of_which_the_cross_entropy_is_the_mean():
    rng = np.random.default_rng(0)
    X, y = rng.random((30, 7)), rng.integers(0, 4, 30)
    W, b = 1000 * rng.normal(size=(7, 4)), rng.normal(size=4)
    losses = experiments.losses(W, b, X, y)
    for i in range(30):
        alone = program.cross_entropy(W, b, X[i : i + 1], y[i : i + 1])
        assert losses[i] == pytest.approx(alone, abs=1e-9)


@pytest.mark.data
def test_the_chosen_model_does_on_the_test_set_what_is_recorded(real):
    results, winner = recorded("results"), recorded("winner")
    with np.load(RESULTS / "model.npz") as model:
        facts, images = experiments.examine(model["W"], model["b"], real.X_test, real.y_test)
    assert np.abs(np.subtract(facts["confusion"], winner["confusion"])).sum() <= 4
    assert np.trace(winner["confusion"]) / len(real.y_test) == results["test"]["accuracy"]
    for name in ("mistakes", "examples"):
        np.testing.assert_allclose(
            facts[name]["probability"], winner[name]["probability"], atol=1e-4
        )
        index = winner[name]["index"]
        assert winner[name]["true"] == real.y_test[index].tolist()
        with np.load(RESULTS / "winner.npz") as file:
            np.testing.assert_array_equal(file[name], images[name])
        np.testing.assert_allclose(images[name] / 255, real.X_test[index], atol=1e-6)


@pytest.mark.data
def test_the_examples_are_the_first_test_image_of_each_class(real):
    examples = recorded("winner")["examples"]
    assert examples["true"] == list(range(10))
    for k, index in zip(examples["true"], examples["index"]):
        assert real.y_test[index] == k
        assert k not in real.y_test[:index]


@pytest.mark.data
def test_the_chosen_model_trains_and_validates_as_recorded(real):
    results, winner = recorded("results"), recorded("winner")
    seed, best = results["seed"], results["best"]
    train, validation = experiments.divide(results, seed)
    with np.load(RESULTS / "model.npz") as model:
        measured = experiments.measure(
            model["W"], model["b"], real.X[validation], real.y[validation]
        )
    assert measured == pytest.approx(results["validation"], abs=2e-4)
    first = experiments.retrain(best, seed, 1, real.X, real.y, train, validation)
    for part, values in first.items():
        assert values[0] == pytest.approx(winner["curves"][part][0], abs=1e-4)


# --- The gradient check ---------------------------------------------------------------------------


def test_gradients_agreed_with_differences():
    check = recorded("gradient_check")
    tiny = check["tiny"]
    assert tiny["derivatives"] == (tiny["pixels"] + 1) * tiny["classes"]
    assert check["largest"] < 1e-6


# --- Problem 4 ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_no_point_of_the_segment_is_nearer_to_0_than_h(seed):
    rng = np.random.default_rng(seed)
    x1, x2 = rng.normal(size=(2, 2)) + rng.choice([0, 2])
    segment = x1 + np.linspace(0, 1, 2001)[:, None] * (x2 - x1)
    lengths, h = np.linalg.norm(segment, axis=1), experiments.nearest(x1, x2)
    assert np.linalg.norm(h) <= lengths.min() + 1e-12
    assert np.linalg.norm(segment - h, axis=1).min() <= np.linalg.norm(x2 - x1) / 4000 + 1e-12


def test_h_of_two_equal_examples_and_of_opposite_ones():
    x = np.array([3.0, 1.0])
    np.testing.assert_array_equal(experiments.nearest(x, x), x)
    for q in (1, 2, 0.25):
        np.testing.assert_array_equal(experiments.nearest(x, -q * x), 0)


def test_a_step_descends_along_the_gradient_of_the_mean_loss():
    rng = np.random.default_rng(0)
    X, w, b = rng.normal(size=(3, 2)), rng.normal(size=2), 0.3
    ahead_w, ahead_b = experiments.descend(w, b, X, 0.1)
    for step, direction in zip((*(ahead_w - w), ahead_b - b), np.eye(3)):
        V, a = 1e-6 * direction[:2], 1e-6 * direction[2]
        rise = experiments.mean_loss(X, w + V, b + a) - experiments.mean_loss(X, w - V, b - a)
        assert step == pytest.approx(-0.1 * rise / 2e-6, rel=1e-6)


def test_problems_that_descend_together_descend_as_each_does_alone():
    rng = np.random.default_rng(0)
    X, w, b = rng.normal(size=(4, 2, 2)), rng.normal(size=(4, 2)), rng.normal(size=4)
    ahead_w, ahead_b = experiments.descend(w, b, X, 1)
    for i in range(4):
        alone_w, alone_b = experiments.descend(w[i], b[i], X[i], 1)
        np.testing.assert_allclose(ahead_w[i], alone_w, rtol=1e-13)
        np.testing.assert_allclose(ahead_b[i], alone_b, rtol=1e-13)


def assert_law_holds(row: dict, within: float) -> None:
    for name in ("loss", "bias", "along"):
        if row[name] is not None:
            assert abs(row[name] - 1) < within, f"{name} of {row['examples']}: {row[name]}, not 1"
    assert row["moved"] < 0.05, f"w of {row['examples']} does not settle beside h"


def test_the_law_held_in_the_recorded_simulation():
    facts = recorded("logistic")
    assert len(facts["law"]) == len(experiments.PAIRS) + len(experiments.MORE_PAIRS)
    for row in facts["law"]:
        assert facts["learning_rate"] < row["largest_rate"]
        assert_law_holds(row, within=2e-3)
    for row in facts["limits"]:
        assert row["measured"] == pytest.approx(row["predicted"], rel=1e-4)


def test_the_law_holds_for_other_pairs(monkeypatch):
    monkeypatch.setattr(experiments, "STEPS", 30000)
    monkeypatch.setattr(
        experiments,
        "MORE_PAIRS",
        (
            ([[1, 3], [0.5, -2]], [1, 1]),  # h between the examples
            ([[1, -1], [2, -3]], [0, 0]),  # h at an end
            ([[2, 1], [2, 1]], [-1, 3]),  # equal examples
            ([[1.5, 0.5], [-1.5, -0.5]], [2, 0]),  # h = 0
        ),
    )
    monkeypatch.setattr(experiments, "OPPOSITE", ((1.5, 2, 1), (0.4, 6, -2)))
    facts, paths = experiments.simulate_descent()
    for row in facts["law"][len(experiments.PAIRS) :]:
        assert_law_holds(row, within=0.02)
    for row in facts["limits"]:
        assert row["measured"] == pytest.approx(row["predicted"], rel=1e-2)
    assert paths["t"][-1] == 30000
    for name, (examples, _) in experiments.PAIRS.items():
        *w, b, loss = paths[name][-1]
        logits = np.array(examples) @ w + b
        assert loss == pytest.approx(np.logaddexp(0, -logits).mean())


# --- The optimum ----------------------------------------------------------------------------------


@pytest.fixture
def problem():
    """Forty examples of five pixels in four classes, as X, y, alpha."""
    rng = np.random.default_rng(0)
    return rng.random((40, 5), np.float32), rng.integers(0, 4, 40), 1e-3


@pytest.fixture
def ten_classes():
    """Two hundred examples of six pixels in as many classes as the program trains."""
    rng = np.random.default_rng(0)
    X = rng.random((200, 6), np.float32)
    return X, (5 * X[:, 0] + 5 * rng.random(200)).astype(int), 1e-3


def test_hessian_products_agree_with_differences_of_the_gradients(problem):
    X, y, alpha = problem
    X = X.astype(np.float64)
    rng = np.random.default_rng(1)
    W, b = 3 * rng.normal(size=(5, 4)), rng.normal(size=4)
    yhat, h = program.softmax(W, b, X), 1e-5
    for direction in np.eye(24).reshape(24, 6, 4):
        V, a = direction[:-1], direction[-1]
        product = experiments.hessian_product(yhat, X, alpha, V, a)
        ahead = program.gradients(W + h * V, b + h * a, X, y, alpha)
        behind = program.gradients(W - h * V, b - h * a, X, y, alpha)
        for analytic, after, before in zip(product, ahead, behind):
            np.testing.assert_allclose(analytic, (after - before) / (2 * h), atol=1e-9)


def test_conjugate_gradients_solve_a_linear_system():
    rng = np.random.default_rng(0)
    A = rng.normal(size=(12, 12))
    A = A @ A.T + np.eye(12)
    right = rng.normal(size=(4, 3))

    def multiply(x):
        return (A @ x.ravel()).reshape(4, 3)

    def precondition(x):
        return (x.ravel() / A.diagonal()).reshape(4, 3)

    x = experiments.solve_by_conjugate_gradients(multiply, right, precondition, tolerance=1e-10)
    np.testing.assert_allclose(multiply(x), right, atol=1e-9)


def test_minimise_ends_where_every_derivative_vanishes(ten_classes):
    X, y, alpha = ten_classes
    W, b = experiments.minimise(X, y, alpha, name="test")
    for derivatives in program.gradients(W, b, X, y, alpha):
        assert np.abs(derivatives).max() <= 1e-9
    facts = experiments.certify(W, b, X, y, alpha)
    assert facts["weights_within"] <= experiments.WEIGHTS_WITHIN
    rng = np.random.default_rng(1)
    for size in (1e-3, 0.1, 10):
        V, a = size * rng.normal(size=W.shape), size * rng.normal(size=b.shape)
        assert program.loss(W + V, b + a, X, y, alpha) > facts["loss"]


def test_the_certificate_bounds_the_distance_from_the_optimum(ten_classes):
    X, y, alpha = ten_classes
    best_W, best_b = experiments.minimise(X, y, alpha, name="test")
    least = program.loss(best_W, best_b, X.astype(np.float64), y, alpha)
    rng = np.random.default_rng(1)
    for size in (1e-4, 1e-2, 1):
        W, b = best_W + size * rng.normal(size=best_W.shape), best_b
        for _ in range(6):
            b = experiments.best_biases(W, b, X, y)
        facts = experiments.certify(W, b, X, y, alpha)
        assert facts["largest_db"] <= 1e-15, "not the best b for this W"
        assert np.linalg.norm(W - best_W) <= facts["weights_within"]
        assert 0 < facts["loss"] - least <= facts["loss_within"]


def test_the_recorded_optima_are_certain_to_the_last_printed_digit():
    """Four decimals of a cross-entropy and of the loss, and the whole part of ‖W‖².

    Let v be the distance from W to the optimal W*, and ‖x‖ <= 28, for 784 pixels in 0..1. Going
    from W to W* with b fixed changes z_j - z_k by at most G = √2·28·v. Then b changes, too. If the
    changes of its ten entries, in ascending order, had a gap above G, then the classes above it
    would become more probable on every training image; but db = 0 fixes the mean of their
    probabilities. So z_j - z_k changes by at most 9 G + G, and a cross-entropy by no more.
    """
    facts = recorded("optimum")
    for row in facts["rows"] + facts["splits"]:
        assert row["largest_db"] <= 1e-15, "not the best b for this W"
        v = row["weights_within"]
        assert_certain(row["loss"], row["loss_within"], decimals=4)
        for part in ("training", "validation", "test"):
            assert_certain(row[part]["cross_entropy"], 10 * np.sqrt(2) * 28 * v, decimals=4)
        assert_certain(row["norm_squared"], (2 * row["norm_squared"] ** 0.5 + v) * v, decimals=0)


def assert_certain(value: float, within: float, decimals: int) -> None:
    low, high = (round(end, decimals) for end in (value - within, value + within))
    assert low == high, f"{value} is certain to {within} only: not to {decimals} decimals"


def test_the_recorded_optima_are_those_of_alphas_and_seeds():
    facts = recorded("optimum")
    assert [row["alpha"] for row in facts["rows"]] == list(experiments.ALPHAS)
    assert [row["seed"] for row in facts["splits"]] == list(experiments.SEEDS)
    assert facts["splits"][0] in facts["rows"]
    for row in facts["rows"] + facts["splits"]:
        penalty = row["alpha"] / 2 * row["norm_squared"]
        assert row["loss"] == pytest.approx(row["training"]["cross_entropy"] + penalty, abs=1e-9)


@pytest.mark.data
def test_newtons_method_nears_the_recorded_optimum_from_above(real):
    row, results = recorded("optimum")["rows"][-1], recorded("results")
    train, _ = experiments.divide(results, results["seed"])
    X, y = real.X[train], real.y[train]
    W, b = experiments.minimise(X, y, row["alpha"], name="test", within=10)
    loss = program.loss(W, b, X.astype(np.float64), y, row["alpha"])
    assert 0 <= loss - row["loss"] < 5e-3


# --- The seeds and the choice ---------------------------------------------------------------------


def test_the_run_with_the_seed_of_the_search_chose_the_same():
    results, runs = recorded("results"), recorded("seeds")["runs"]
    (same,) = [run for run in runs if run["seed"] == results["seed"]]
    assert {name: same[name] for name in results["best"]} == results["best"]
    for part in ("validation", "test"):
        assert same[part] == pytest.approx(results[part], abs=1e-6)


def test_what_is_recorded_of_the_choice_follows_from_the_other_results():
    assert recorded("choice") == json.loads(json.dumps(experiments.judge_choice()[0]))


GRID = program.Grid((10, 20, 30), (0.1, 0.2), (0.0, 0.5, 1.0, 2.0), epochs=9)


def made_curves() -> program.Curves:
    """Curves of GRID that fall from 1 to 0.92, but for three models."""
    cross_entropy = np.tile(1 - np.arange(9) / 100, (3, 2, 4, 1))
    cross_entropy[1, 0, 2, 3] = 0.5  # a single low point: the winner
    cross_entropy[2, 1, 3, 2:] = 0.503  # a whole low level
    cross_entropy[0, 1, 1, 4] = 0.504
    return program.Curves(cross_entropy, cross_entropy)


def test_the_curves_are_described_as_they_were_made():
    facts = experiments.describe_curves(GRID, made_curves())
    assert facts["neighbours"]["epochs"] == [1, 2, 3, 4, 5, 6, 7]
    assert facts["neighbours"]["cross_entropy"] == [1, 0.99, 0.98, 0.5, 0.96, 0.95, 0.94]
    assert (facts["models"], facts["models_within"]) == (24, 3)
    assert facts["lowest_in_last_epochs"] == facts["lowest_at_last_epoch"] == 21
    averaged = facts["averaged"]
    assert (averaged["batch_size"], averaged["learning_rate"], averaged["alpha"]) == (30, 0.2, 2.0)
    assert averaged["epochs"] == 5, "the middle of epochs 3 to 7, the first five at the low level"
    assert averaged["cross_entropy"] == pytest.approx(0.503)
    assert averaged["edges"] == ["batch_size", "learning_rate", "alpha"]
    of_sizes = facts["best_by_batch_size"]
    assert [point["batch_size"] for point in of_sizes] == [10, 20, 30]
    assert [point["learning_rate"] for point in of_sizes] == [0.2, 0.1, 0.2]
    assert [point["epochs"] for point in of_sizes] == [5, 4, 3]
    of_alphas = facts["best_by_alpha"]
    assert [point["cross_entropy"] for point in of_alphas] == [0.92, 0.504, 0.5, 0.503]


def test_neighbours_end_with_the_curve():
    cross_entropy = made_curves().cross_entropy
    cross_entropy[1, 0, 2, 8] = 0.4
    facts = experiments.describe_curves(GRID, program.Curves(cross_entropy, cross_entropy))
    assert facts["neighbours"]["epochs"] == [6, 7, 8, 9]


def test_edges_are_the_smallest_and_the_largest_values_tried():
    inside = {"batch_size": 20, "learning_rate": 0.15, "alpha": 0.5, "epochs": 8}
    assert experiments.edges(GRID, inside) == []
    for name, values in {"batch_size": (10, 30), "alpha": (0.0, 2.0), "epochs": (1, 9)}.items():
        for value in values:
            assert experiments.edges(GRID, inside | {name: value}) == [name]


def test_winners_and_optima_are_paired_by_seed():
    def row(seed, validation, test):
        parts = {"validation": {"cross_entropy": validation}, "test": {"cross_entropy": test}}
        return {"alpha": 3e-4, "seed": seed} | parts

    runs = [row(0, 0.5, 0.6), row(1, 0.7, 0.9)]
    optima = [row(1, 0.75, 0.8), row(0, 0.25, 0.55)]
    facts = experiments.compare_with_optima(runs, optima)
    assert facts["validation"]["differences"] == pytest.approx([0.25, -0.05])
    assert facts["test"]["differences"] == pytest.approx([0.05, 0.1])
    assert facts["test"]["mean"] == pytest.approx(0.075)
    assert facts["test"]["standard_error"] == pytest.approx(0.025)


# --- Command line ---------------------------------------------------------------------------------


def test_an_unknown_part_is_refused_with_the_names_of_all():
    command = [sys.executable, "-m", "report.experiments", "optimun"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert "optimun" in ended.stderr
    assert all(part in ended.stderr for part in experiments.PARTS)
