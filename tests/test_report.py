"""What report.pdf proves, as lemmas; what it quotes, against a rerun; and its bytes, rebuilt."""

import json
import re
import sys
from importlib.metadata import PackageNotFoundError, version

import pytest
from conftest import ROOT

import softmax_sgd as program  # before NumPy, as in use: it sets the number of BLAS threads

import numpy as np  # isort: skip

REPORT = ROOT / "report"
RESULTS = REPORT / "results"
sys.path.insert(0, str(REPORT))

import experiments  # noqa: E402


def recorded(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


def differences(f, at, h=1e-5):
    """The central differences of f, which may be an array, in each coordinate of a vector."""
    return np.array([(f(at + step) - f(at - step)) / (2 * h) for step in h * np.eye(len(at))])


# --- Problem 1: XOR -------------------------------------------------------------------------------

POINTS = np.array([(0, 0, 1), (0, 1, 1), (1, 0, 1), (1, 1, 1)])  # x and the 1 that b multiplies
TARGETS = np.array([0, 1, 1, 0])
NORMAL = np.array([[2, 1, 2], [1, 2, 2], [2, 2, 4]])  # the report's equations, times 2
FLAT = np.array([0, 0, 0.5])


def mse(theta):
    return np.mean((POINTS @ theta - TARGETS) ** 2)


def test_xor_normal_equations():
    theta = np.random.default_rng(0).normal(size=3)
    by_hand = (NORMAL @ theta - [1, 1, 2]) / 2
    np.testing.assert_allclose(by_hand, differences(mse, theta), atol=1e-9)
    np.testing.assert_array_equal(NORMAL @ FLAT, [1, 1, 2])


def test_xor_minimum_is_unique_and_a_quarter():
    leading = [np.linalg.det(NORMAL[:k, :k] / 2) for k in (1, 2, 3)]
    np.testing.assert_allclose(leading, [1, 3 / 4, 1 / 2])
    assert mse(FLAT) == 1 / 4
    for step in np.random.default_rng(0).normal(size=(20, 3)):
        assert mse(FLAT + step) == pytest.approx(1 / 4 + step @ (NORMAL / 2) @ step / 2)


# --- Problem 2: softmax ---------------------------------------------------------------------------


def test_softmax_derivative_in_both_cases():
    rng = np.random.default_rng(0)
    x, W, b = rng.normal(size=3), rng.normal(size=(3, 4)), rng.normal(size=4)

    def yhat(W, b):
        return np.exp(program.log_softmax(W, b, x[None]))[:, 0]

    y = yhat(W, b)
    slopes = differences(lambda w: yhat(w.reshape(3, 4), b), W.ravel()).reshape(3, 4, 4)
    for l, k in np.ndindex(4, 4):  # noqa: E741  the assignment's letter
        by_hand = x * y[l] * (1 - y[l]) if l == k else -x * y[k] * y[l]
        np.testing.assert_allclose(slopes[:, l, k], by_hand, atol=1e-9)


def test_loss_is_convex():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(9, 3)), rng.integers(4, size=9)
    (W, b), (V, a) = ((rng.normal(size=(3, 4)), rng.normal(size=4)) for _ in range(2))
    ends = program.loss(W, b, X, y, 0), program.loss(V, a, X, y, 0)
    assert program.loss((W + V) / 2, (b + a) / 2, X, y, 0) < np.mean(ends) - 1e-3


# --- Problem 4: all examples positive -------------------------------------------------------------


def descent(X, w, b, rate, steps):
    """The w, b and shortfalls r of gradient descent, from the start to the last step."""
    path = [(w, b, 1 / (1 + np.exp(experiments.logits(w, b, X))))]
    for _ in range(steps):
        w, b = experiments.descend(w, b, X, rate)
        path.append((w, b, 1 / (1 + np.exp(experiments.logits(w, b, X)))))
    return tuple(map(np.array, zip(*path, strict=True)))


def examples(seed, n=5, m=3):
    """Examples, a start, L and R."""
    rng = np.random.default_rng(seed)
    X, w, b = rng.normal(size=(n, m)), rng.normal(size=m), rng.normal()
    return X, w, b, experiments.smoothness(X), np.linalg.norm(X, axis=1).max()


def losses(r):
    return -np.log1p(-r)


def test_descent_follows_the_gradient():
    X, w, b, _, _ = examples(0)
    after = experiments.descend(w, b, X, 0.1)

    def f(theta):
        return np.log1p(np.exp(-X @ theta[:-1] - theta[-1])).mean()

    theta = np.append(w, b)
    np.testing.assert_allclose(np.append(*after), theta - 0.1 * differences(f, theta), atol=1e-9)


def test_4a_no_eigenvalue_of_the_hessian_exceeds_L():
    X, w, b, L, _ = examples(0)

    def gradient(theta):
        return theta - np.append(*experiments.descend(theta[:-1], theta[-1], X, 1))

    origin = np.zeros(len(w) + 1)
    assert np.linalg.eigvalsh(differences(gradient, origin)).max() == pytest.approx(L)
    assert np.linalg.eigvalsh(differences(gradient, np.append(w, b))).max() < L


@pytest.mark.parametrize("seed", range(5))
def test_4a_loss_falls_within_its_bound(seed):
    X, w, b, L, _ = examples(seed)
    rate, n = 1.9 / L, len(X)
    _, _, r = descent(X, w, b, rate, 2000)
    f = losses(r).mean(axis=1)
    kappa = rate * (1 - rate * L / 2)
    C = (1 + n * f[0]) ** 2 / kappa
    assert (np.diff(f) <= -kappa * r[:-1].mean(axis=1) ** 2).all()
    assert (f[1:] <= C / np.arange(1, len(f))).all()
    assert (losses(r) / (1 + losses(r)) <= r).all()
    assert (r <= losses(r)).all()


@pytest.mark.parametrize("rate", [0.01, 1, 10])
def test_4b_b_grows_at_least_like_log_t_at_every_rate(rate):
    X, w, b, _, R = examples(1)
    w, b, _ = descent(X, w, b, rate, 2000)
    rho, Z = 1 + R**2, max(0, experiments.logits(w[0], b[0], X).max())
    steps, t = np.linalg.norm(np.diff(w, axis=0), axis=1), np.arange(len(b))
    assert (np.diff(b) > 0).all()
    assert (steps <= R * np.diff(b) * (1 + 1e-9)).all()
    assert (b >= b[0] + np.log1p(rate * rho * np.exp(-Z) * t / 2) / rho).all()


def test_4b_b_grows_at_most_like_log_t():
    X, w, b, L, _ = examples(2)
    rate = 1 / L
    _, b, r = descent(X, w, b, rate, 2000)
    C = (1 + len(X) * losses(r[0]).mean()) ** 2 / (rate / 2)
    assert (b[1:] <= b[1] + rate * C * (1 + np.log(np.arange(1, len(b))))).all()


@pytest.mark.parametrize("rate", [0.1, 1])
@pytest.mark.parametrize("X", [[(1, 2), (2, 1)], [(1, 1), (1, 1)], [(-1, 3), (2, 0.5)]], ids=str)
def test_4c_w_diverges_if_0_is_outside_the_segment(X, rate):
    X = np.array(X, float)
    segment = X[0] + np.linspace(0, 1, 10001)[:, None] * (X[1] - X[0])
    u = segment[np.linalg.norm(segment, axis=1).argmin()]
    w, b, _ = descent(X, np.array([2.0, -3.0]), 0.0, rate, 3000)
    ahead = (w - w[0]) @ u - u @ u * (b - b[0])
    assert (ahead >= -1e-3 * (b - b[0])).all(), "u·w lags behind b"  # u is nearest but for the grid
    assert np.linalg.norm(w[-1]) > np.linalg.norm(w[1000]) + 0.05


@pytest.mark.parametrize("rate", [0.5, 5])
@pytest.mark.parametrize("c", [0.5, 1, 3])
def test_4c_w_converges_if_the_examples_are_opposite(c, rate):
    x = np.array([1.0, 1.5])
    start = np.array([2.0, 1.0])
    w, _, _ = descent(np.array([x, -c * x]), start, 0.0, rate, 5000)
    limit = start + (-np.log(c) / (1 + c) - x @ start) / (x @ x) * x
    np.testing.assert_allclose(w[-1], limit, atol=1e-3)


def test_4c_sign_of_the_pull():
    c, s, b = np.meshgrid([0.2, 1, 5], np.linspace(-4, 4, 41), [-2, 0.3, 3])
    g = c / (1 + np.exp(b - c * s)) - 1 / (1 + np.exp(s + b))
    bracket = c * np.exp(s) - np.exp(-c * s) - (1 - c) * np.exp(-b)
    np.testing.assert_array_equal(np.sign(g.round(12)), np.sign(bracket.round(12)))


def test_4c_opposite_examples_approach_without_overshoot_up_to_4_over_x_squared():
    x = np.array([1.0, 1.0])
    w, _, _ = descent(np.array([x, -x]), np.array([3.0, -1.0]), -2.0, 4 / (x @ x), 500)
    s = w @ x
    assert (s >= 0).all()
    assert (np.diff(s) <= 0).all()
    np.testing.assert_allclose(w @ [1, -1], 4)  # what is orthogonal to x stays


def test_growth_lemma():
    u = 0.0
    for t in range(1, 10**5):
        u += 3 * (1 + 1 / t) * np.exp(-u)
    assert u == pytest.approx(np.log(3 * 10**5), abs=1e-2)


def test_simulation_meets_its_predictions():
    facts = recorded("logistic")
    with np.load(RESULTS / "logistic.npz") as path:
        t, b, loss = path["t"], path["b"][-1], path["loss"][-1]
        size = np.linalg.norm(path["w"][-1], axis=-1)
    build = pytest.importorskip("build", reason="report/requirements.txt is not installed")
    for i, name in enumerate(facts["pairs"]):
        assert facts["learning_rate"] < facts["pairs"][name]["largest_rate"]
        expected = [values[-1] for values in build.predicted(name, facts, t)]
        np.testing.assert_allclose([loss[i], b[i], size[i]], expected, rtol=5e-3)


# --- Problem 3: the results -----------------------------------------------------------------------


def test_results_agree_with_each_other():
    results, winner, seeds = map(recorded, ("results", "winner", "seeds"))
    confusion = np.array(winner["confusion"])
    assert confusion.sum() == results["split"]["test"]
    assert np.trace(confusion) / confusion.sum() == results["test"]["accuracy"]
    assert winner["cross_entropy"]["estimate"] == pytest.approx(results["test"]["cross_entropy"])
    epoch = results["best"]["epochs"] - 1
    alone = winner["curves"]["validation"][epoch]
    assert alone == pytest.approx(results["validation"]["cross_entropy"], abs=1e-5)
    values = [run["test"]["cross_entropy"] for run in seeds["runs"]]
    spread = seeds["test"]["cross_entropy"]
    assert (spread["mean"], spread["sd"]) == pytest.approx(
        (np.mean(values), np.std(values, ddof=1))
    )
    same = next(run for run in seeds["runs"] if run["seed"] == results["seed"])
    assert {name: same[name] for name in results["best"]} == results["best"]
    assert same["test"] == pytest.approx(results["test"], abs=1e-6)


def test_sgd_has_reached_the_limit_of_the_model_class():
    results, rows = recorded("results"), recorded("optimum")["rows"]
    lowest = min(rows, key=lambda row: row["validation"]["cross_entropy"])
    for part in ("validation", "test"):
        assert results[part]["cross_entropy"] < lowest[part]["cross_entropy"] + 0.005
    assert results["test"]["accuracy"] < 0.86, "no linear model is as good as that"


def test_the_point_chosen_varies_with_the_seed_but_hardly_the_result():
    seeds = recorded("seeds")
    names = ("batch_size", "learning_rate", "alpha", "epochs")
    assert len({tuple(run[name] for name in names) for run in seeds["runs"]}) > 1
    assert seeds["test"]["cross_entropy"]["sd"] < 0.003
    assert seeds["test"]["accuracy"]["sd"] < 0.003


def test_intervals():
    near = experiments.wilson(8449, 10000)  # from the score test: (p - share)² = z² p (1 - p) / n
    for p in (near["low"], near["high"]):
        assert (p - 0.8449) ** 2 == pytest.approx(1.959964**2 * p * (1 - p) / 10000)
    values = np.random.default_rng(0).exponential(size=(4000, 50))
    covered = [e["low"] < 1 < e["high"] for e in map(experiments.normal, values)]
    assert 0.9 < np.mean(covered) < 0.96


@pytest.mark.data
def test_the_committed_model_measures_as_reported(real):
    with np.load(RESULTS / "model.npz") as model:
        W, b = model["W"], model["b"]
    results = recorded("results")
    facts, _ = experiments.examine(W, b, real.X_test, real.y_test)
    assert facts["cross_entropy"]["estimate"] == pytest.approx(
        results["test"]["cross_entropy"], abs=1e-5
    )
    assert facts["accuracy"]["estimate"] == pytest.approx(results["test"]["accuracy"], abs=2e-4)
    assert np.abs(facts["confusion"] - recorded("winner")["confusion"]).sum() <= 4
    _, validation = experiments.divide(results, results["seed"])
    measured = experiments.measure(W, b, real.X[validation], real.y[validation])
    assert measured == pytest.approx(results["validation"], abs=2e-4)


@pytest.mark.data
def test_an_epoch_of_the_winner_runs_as_reported(real):
    results, curves = recorded("results"), recorded("winner")["curves"]
    rows = experiments.divide(results, results["seed"])
    best = results["best"] | {"epochs": 1}
    rerun, _ = experiments.retrain(best, results["seed"], 1, real.X, real.y, *rows)
    for part, values in rerun.items():
        assert values[0] == pytest.approx(curves[part][0], abs=1e-4)


@pytest.mark.data
def test_gradient_check_as_reported(data_dir):
    rerun, _ = experiments.gradients()
    assert max(rerun["largest"], recorded("gradients")["largest"]) < 1e-6


@pytest.mark.data
def test_lbfgs_nears_the_reported_optimum_from_above(real):
    pytest.importorskip("scipy")
    results = recorded("results")
    row = max(recorded("optimum")["rows"], key=lambda row: row["alpha"])
    train, _ = experiments.divide(results, results["seed"])
    X, y = real.X[train], real.y[train]
    W, b, _ = experiments.minimise(X, y, row["alpha"], iterations=100)
    assert 0 <= program.loss(W, b, X, y, row["alpha"]) - row["loss"] < 1e-3


# --- The document ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def build():
    """report/build.py, if what it needs is there in the pinned versions."""
    for line in (REPORT / "requirements.txt").read_text().splitlines():
        name, _, pin = line.partition(";")[0].partition("==")
        if name in ("matplotlib", "typst"):
            try:
                found = version(name)
            except PackageNotFoundError:
                found = "none"
            if found != pin:
                pytest.skip(f"the bytes are those of {name} {pin}; here is {found}")
    import build

    return build


def test_report_is_what_build_makes(build, tmp_path):
    build.build(tmp_path / "report.pdf")
    same = (tmp_path / "report.pdf").read_bytes() == (ROOT / "report.pdf").read_bytes()
    assert same, "report.pdf is not what report/build.py makes of report/results"


def ask(build, label: str):
    """The value that report.typ gives the label."""
    (found,) = json.loads(build.typst.query(selector=f"<{label}>", **build.document()))
    return found["value"]


def test_report_and_readme_quote_the_same_figures(build):
    readme = (ROOT / "README.md").read_text().splitlines()
    for name, figure in ask(build, "metrics").items():
        assert f"{name}: {figure}" in readme


def test_report_has_at_most_8_pages(build):
    assert ask(build, "pages") <= 8


def test_no_measured_figure_is_typed_into_the_report():
    typed = re.findall(r"\b0\.\d{3,}|\b\d\d\.\d+ ?%", (REPORT / "report.typ").read_text())
    assert not typed
