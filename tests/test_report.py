"""What report.pdf proves, as lemmas; what it quotes, against a rerun; and its bytes, rebuilt."""

import json
import re
from importlib.metadata import version

import numpy as np
import pytest
from conftest import ROOT

import softmax_sgd as program
from report import experiments

REPORT = ROOT / "report"
RESULTS = REPORT / "results"


def recorded(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


def differences(f, at, h=1e-5):
    """The central differences of f, which may be an array, in each coordinate of a vector."""
    return np.array([(f(at + step) - f(at - step)) / (2 * h) for step in h * np.eye(len(at))])


# --- Problems 1 and 2 -----------------------------------------------------------------------------


def test_xor_normal_equations_and_their_only_solution():
    points = np.array([(0, 0, 1), (0, 1, 1), (1, 0, 1), (1, 1, 1)])  # x and the 1 of the bias
    H, right = np.array([[2, 1, 2], [1, 2, 2], [2, 2, 4]]) / 2, [1 / 2, 1 / 2, 1]

    def mse(theta):
        return np.mean(([0, 1, 1, 0] - points @ theta) ** 2)

    theta = np.random.default_rng(0).normal(size=3)
    np.testing.assert_allclose(H @ theta - right, differences(mse, theta), atol=1e-9)
    np.testing.assert_allclose(np.linalg.solve(H, right), [0, 0, 1 / 2], atol=1e-15)
    r00, r01, r10, r11 = [0, 1, 1, 0] - points @ theta
    assert r01 + r10 - r00 - r11 == pytest.approx(2), "what Cauchy and Schwarz bound"
    assert mse(theta) >= mse([0, 0, 1 / 2]) == 1 / 4


def test_softmax_derivative_in_both_cases():
    rng = np.random.default_rng(0)
    x, W, b = rng.normal(size=3), rng.normal(size=(3, 4)), rng.normal(size=4)

    def yhat(w):
        return program.softmax(w.reshape(3, 4), b, x[None])[:, 0]

    y = yhat(W.ravel())
    slopes = differences(yhat, W.ravel()).reshape(3, 4, 4)
    for l, k in np.ndindex(4, 4):  # noqa: E741  the assignment's letter
        by_hand = x * y[l] * (1 - y[l]) if l == k else -x * y[k] * y[l]
        np.testing.assert_allclose(slopes[:, l, k], by_hand, atol=1e-9)


# --- Problem 4: all examples positive -------------------------------------------------------------


def examples(seed, n=5, m=3):
    """Examples, a start, and R and L of the report."""
    rng = np.random.default_rng(seed)
    X, w, b = rng.normal(size=(n, m)), rng.normal(size=m), rng.normal()
    return X, w, b, np.linalg.norm(X, axis=1).max(), experiments.smoothness(X)


def descent(X, w, b, rate, steps):
    """Along gradient descent: w, b, the residuals r, and the losses of the examples."""
    path = [(w, b)]
    for _ in range(steps):
        path.append(experiments.descend(*path[-1], X, rate))
    w, b = map(np.array, zip(*path))
    z = w @ X.T + b[:, None]
    return w, b, 1 / (1 + np.exp(z)), np.logaddexp(0, -z)


@pytest.mark.parametrize("seed", range(5))
def test_4a_loss_falls_within_its_bound(seed):
    X, w, b, _, L = examples(seed)
    rate = 1.9 / L
    _, _, r, losses = descent(X, w, b, rate, 2000)
    f, kappa = losses.mean(axis=1), rate * (1 - rate * L / 2)
    assert (np.diff(f) <= -kappa * r[:-1].mean(axis=1) ** 2).all()
    assert kappa * np.square(r.mean(axis=1)).sum() <= f[0]
    assert (f[1:] <= constant(f[0], len(X), kappa) / np.arange(1, len(f))).all()
    assert (losses / (1 + losses) <= r).all()
    assert (r <= losses).all()


def constant(f, n, kappa):
    """C of the report, from a step on that leaves the loss f."""
    return (1 + n * f) ** 2 / kappa


@pytest.mark.parametrize("rate", [1, 10, 100])
def test_4a_loss_converges_to_0_at_every_rate(rate):
    X, w, b, R, L = examples(3)
    w, b, _, losses = descent(X, w, b, rate, 3000)
    f, rho, B = losses.mean(axis=1), 1 + R**2, 5
    apart = np.square(w).sum(axis=1) + np.square(b - B - rate * rho / 2)  # ‖theta - u'‖²
    assert (np.diff(apart) <= -2 * rate * (f[:-1] - np.log1p(np.exp(-B))) + 1e-7).all()
    small = rate * rho * f[:-1] <= 1 / 2
    assert (np.diff(f)[small] <= 0).all()
    assert small.any()
    assert (np.diff(f) > 0).any() == (rate > 2 / L), "it does (not) rise on the way"
    assert f[-1] < 1 / rate


@pytest.mark.parametrize("rate", [0.01, 1, 10, 20])
def test_4b_b_grows_like_log_t(rate):
    """Between two multiples of log t, and the loss falls like 1/t, from t_0 on at every rate."""
    X, w, b, R, _ = examples(1)
    w, b, _, losses = descent(X, w, b, rate, 5000)
    f, rho, Z, t = losses.mean(axis=1), 1 + R**2, max(0, (X @ w[0] + b[0]).max()), np.arange(len(b))
    assert (np.diff(b) > 0).all()
    assert (np.linalg.norm(np.diff(w, axis=0), axis=1) <= R * np.diff(b) * (1 + 1e-9)).all()
    assert (b >= b[0] + np.log1p(rate * rho * np.exp(-Z) * t / 2) / rho).all()
    t_0 = np.argmax(rate * rho * f <= 1 / 2)
    C, since = constant(f[t_0], len(X), rate / 2), t[t_0 + 1 :] - t_0
    assert (f[t_0 + 1 :] <= C / since).all()
    assert (b[t_0 + 1 :] <= b[t_0 + 1] + rate * C * (1 + np.log(since))).all()
    assert len(since) > 1000


@pytest.mark.parametrize("rate", [0.1, 1, 50])
def test_4c_for_1_2_and_2_1_the_sum_of_w_grows_three_times_as_much_as_b(rate):
    w, b, *_ = descent(np.array([(1.0, 2.0), (2.0, 1.0)]), np.array([5.0, -4.0]), -1.0, rate, 2000)
    np.testing.assert_allclose(w.sum(axis=1) - w[0].sum(), 3 * (b - b[0]), rtol=1e-9)


def test_4b_at_a_large_rate_nothing_moves_any_more_in_float64():
    with np.errstate(over="ignore"):
        w, b, *_ = descent(np.array([(1.0, 1.0), (-5.0, -5.0)]), np.zeros(2), 0.0, 100, 10)
    assert (w[3:] == -25).all()
    assert (b[3:] == 125).all()
    assert b[2] < 125


@pytest.mark.parametrize("rate", [0.1, 1])
@pytest.mark.parametrize("X", [[(1, 2), (2, 1)], [(1, 1), (1, 1)], [(-1, 3), (2, 0.5)]], ids=str)
def test_4c_w_diverges_if_0_is_outside_the_segment(X, rate):
    X = np.array(X, float)
    segment = X[0] + np.linspace(0, 1, 10001)[:, None] * (X[1] - X[0])
    h = segment[np.linalg.norm(segment, axis=1).argmin()]
    w, b, *_ = descent(X, np.array([2.0, -3.0]), 0.0, rate, 3000)
    ahead = (w - w[0]) @ h - h @ h * (b - b[0])
    assert (ahead >= -1e-3 * (b - b[0])).all(), "h·w lags behind b"  # h is nearest but for the grid
    assert np.linalg.norm(w[-1]) > np.linalg.norm(w[1000]) + 0.05


@pytest.mark.parametrize("rate", [4 / 3.25, 5])  # the first is 4/‖x‖²
@pytest.mark.parametrize("q", [0.5, 1, 3])
def test_4c_w_converges_if_the_examples_are_opposite(q, rate):
    x, start = np.array([1.0, 1.5]), np.array([2.0, 1.0])
    w, *_ = descent(np.array([x, -q * x]), start, 0.0, rate, 5000)
    limit = start + (-np.log(q) / (1 + q) - x @ start) / (x @ x) * x
    np.testing.assert_allclose(w[-1], limit, atol=1e-3)
    if q == 1 and rate <= 4 / (x @ x):
        assert (w @ x >= 0).all()
        assert (np.diff(w @ x) <= 0).all()


def test_4c_sign_and_limit_of_the_pull():
    q, s, b = np.meshgrid([0.2, 1, 5], np.linspace(-4, 4, 40), [-2, 0.3, 3, 30])
    scaled = np.exp(b) * (q / (1 + np.exp(b - q * s)) - 1 / (1 + np.exp(s + b)))
    bracket = q * np.exp(s) - np.exp(-q * s) - (1 - q) * np.exp(-b)
    np.testing.assert_array_equal(np.sign(scaled), np.sign(bracket))
    np.testing.assert_allclose(scaled[..., -1], (q * np.exp(q * s) - np.exp(-s))[..., -1], 1e-4)


def test_simulation_meets_its_predictions():
    facts = recorded("logistic")
    build = pytest.importorskip("report.build", reason="report/requirements.txt is not installed")
    with np.load(RESULTS / "logistic.npz") as paths:
        for name, pair in facts["pairs"].items():
            assert facts["learning_rate"] < pair["largest_rate"]
            rho, ratio, limit, exponent = build.predicted(pair)
            time = facts["learning_rate"] * paths["t"]
            *w, b, loss = paths[name].T
            np.testing.assert_allclose(loss[-1] * rho * time[-1], 1, rtol=5e-3)
            np.testing.assert_allclose(rho * b[-1] - np.log(time[-1]), np.log(ratio), atol=5e-3)
            if limit is not None:
                late = paths["t"] > 1e5
                distance = np.linalg.norm(np.transpose(w) - limit, axis=1)[late]
                slope = np.polyfit(np.log(time[late]), np.log(distance), 1)[0]
                assert slope == pytest.approx(exponent, abs=0.02)


# --- Problem 3: the results -----------------------------------------------------------------------


def test_what_the_report_says_of_its_tables():
    results, winner, best = recorded("results"), recorded("winner"), recorded("results")["best"]
    for tried, value in zip(results["grid"].values(), best.values()):
        low, high = (tried[0], tried[-1]) if isinstance(tried, list) else (1, tried)
        assert low < value < high, "the best point is not strictly inside the grid"
    rows, runs = recorded("optimum")["rows"], recorded("seeds")["runs"]
    splits = recorded("optimum")["splits"]
    assert max(row["largest_derivative"] for row in rows + splits) < 1e-6
    least = min(rows, key=lambda row: row["validation"]["cross_entropy"])
    assert results["validation"]["cross_entropy"] < least["validation"]["cross_entropy"]
    apart = least["sgd_above_on_test"]
    difference = results["test"]["cross_entropy"] - least["test"]["cross_entropy"]
    assert apart["estimate"] == pytest.approx(difference, abs=1e-6)
    assert 0 < difference < 2 * apart["standard_error"], "a real difference"
    assert winner["loss"] > next(row["loss"] for row in rows if row["alpha"] == best["alpha"])
    penalties = [row["alpha"] / 2 * row["norm_squared"] for row in rows]
    found = [row["loss"] - row["training"]["cross_entropy"] for row in rows]
    np.testing.assert_allclose(penalties, found, rtol=1e-9)
    norms = [row["norm_squared"] for row in rows]
    assert norms == sorted(norms, reverse=True)
    assert norms[0] > norms[1] > winner["norm_squared"] > norms[-1], "not between two optima"

    def gap(row):
        return row["test"]["cross_entropy"] - row["validation"]["cross_entropy"]

    gaps, unchosen = list(map(gap, runs)), list(map(gap, splits))
    assert [run["seed"] for run in splits] == [run["seed"] for run in runs]
    assert min(gaps + unchosen) > 0, "a split has validation images harder than the test images"
    optimism = np.mean(gaps) - np.mean(unchosen)
    assert 0 < optimism < 0.2 * np.mean(gaps), "selection is the reason for the gap"
    easiest = min(runs, key=lambda run: run["validation"]["cross_entropy"])
    assert {name: easiest[name] for name in ("seed", *best)} == {"seed": results["seed"], **best}
    assert len({tuple(run[name] for name in best) for run in runs}) > 1
    assert np.ptp([run["test"]["cross_entropy"] for run in runs]) < 0.01


# --- The document ---------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def build():
    """report/build.py, if what it needs is there in the pinned versions."""
    requirements = (REPORT / "requirements.txt").read_text()
    for name, pin in re.findall(r"^(\w+)==([\d.]+)", requirements, re.MULTILINE):
        pytest.importorskip(name)
        if version(name) != pin:
            pytest.skip(f"the bytes are those of {name} {pin}")
    return pytest.importorskip("report.build")


def test_report_is_what_build_makes(build, tmp_path):
    build.build(tmp_path / "report.pdf")
    same = (tmp_path / "report.pdf").read_bytes() == (ROOT / "report.pdf").read_bytes()
    assert same, "report.pdf is not what report/build.py makes of report/results"


def test_report_has_six_pages_and_quotes_the_figures_of_the_readme(build):
    (found,) = json.loads(build.typst.query(selector="<quoted>", **build.document()))
    assert found["value"].pop("pages") == 6
    readme = (ROOT / "README.md").read_text().splitlines()
    assert {f"{name}: {figure}" for name, figure in found["value"].items()} <= set(readme)


def test_no_measured_figure_is_typed_into_the_report():
    assert not re.search(r"\b0\.\d{3,}|\b\d\d\.\d+ ?%", (REPORT / "report.typ").read_text())
