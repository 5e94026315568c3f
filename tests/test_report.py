"""What report.pdf proves, as lemmas; what it says of its numbers; and its bytes, rebuilt."""

import base64
import functools
import io
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
HYPERPARAMETERS = "batch_size", "learning_rate", "alpha", "epochs"


def recorded(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def differences(f, at, h=1e-5):
    """The central differences of f, which may be an array, in each coordinate of a vector."""
    return np.array([(f(at + step) - f(at - step)) / (2 * h) for step in h * np.eye(len(at))])


# --- Problem 1 ------------------------------------------------------------------------------------

POINTS = np.array([(0, 0, 1), (0, 1, 1), (1, 0, 1), (1, 1, 1)])  # x and the 1 of the bias
TARGETS = np.array([0, 1, 1, 0])


def mse(theta):
    return np.mean((TARGETS - POINTS @ theta) ** 2)


def test_xor_normal_equations_and_their_only_solution():
    H, right = np.array([[2, 1, 2], [1, 2, 2], [2, 2, 4]]) / 2, [1 / 2, 1 / 2, 1]
    theta = np.random.default_rng(0).normal(size=3)
    np.testing.assert_allclose(H @ theta - right, differences(mse, theta), atol=1e-9)
    np.testing.assert_allclose(np.linalg.solve(H, right), [0, 0, 1 / 2], atol=1e-15)


def test_xor_cost_is_a_quarter_and_a_quarter_of_the_squared_distances_from_one_half():
    for theta in np.random.default_rng(0).normal(size=(20, 3)):
        yhat = POINTS @ theta
        assert mse(theta) == pytest.approx(1 / 4 + np.sum((yhat - 1 / 2) ** 2) / 4)
        assert yhat[0] + yhat[3] == pytest.approx(yhat[1] + yhat[2])


# --- Problem 2 ------------------------------------------------------------------------------------


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


# --- Problem 4: the questions ---------------------------------------------------------------------


def examples(seed, n=5, m=3):
    """Examples X of shape (n, m), and a start w, b."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, m)), rng.normal(size=m), rng.normal()


def descent(X, w, b, rate, steps):
    """Along gradient descent, for each t: w, b, the residuals r, and the losses of the examples.

    X is (n, m); for several problems together, (p, n, m).
    """
    path = [(w, b)]
    for _ in range(steps):
        path.append(experiments.descend(*path[-1], X, rate))
    w, b = map(np.array, zip(*path))
    z = experiments.logits(X, w, b)
    return w, b, 1 / (1 + np.exp(z)), np.logaddexp(0, -z)


@functools.cache
def descents(problems, w, rate, steps):
    """The `descent` of each problem, a tuple of examples, from w and b = 0; together, for speed."""
    starts = np.array([w] * len(problems), float), np.zeros(len(problems))
    together = descent(np.array(problems, float), *starts, rate, steps)
    return [tuple(values[:, p] for values in together) for p in range(len(problems))]


def extended(X):
    """The examples x̃ = (x, 1)."""
    return np.column_stack([X, np.ones(len(X))])


@pytest.mark.parametrize("seed", range(5))
def test_4a_at_a_well_chosen_rate_the_loss_falls_by_what_is_proved(seed):
    X, w, b = examples(seed)
    L = experiments.smoothness(X)
    rate = 1.9 / L
    _, _, r, losses = descent(X, w, b, rate, 2000)
    f, r_mean, kappa = losses.mean(axis=1), r.mean(axis=1), rate * (1 - rate * L / 2)
    assert (np.diff(f) <= -kappa * r_mean[:-1] ** 2).all()
    assert kappa * np.square(r_mean).sum() <= f[0]
    np.testing.assert_allclose(losses, -np.log1p(-r), rtol=1e-6)


@pytest.mark.parametrize("name", ["opposite", "apart"])
def test_4_once_the_residuals_are_small_each_step_takes_p_nearer_to_h(name):
    X = np.array(recorded("logistic")["pairs"][name]["examples"], float)
    h = experiments.nearest(*X)
    for start in (X[0] - X[1], X[1] - X[0]):
        _, _, r, _ = descent(X, start, 7.0, 1.0, 1000)
        assert r.max() < 0.05
        away = np.linalg.norm(r @ X / r.sum(axis=1, keepdims=True) - h, axis=1)
        assert away[0] > 0.5
        assert (np.diff(away) < 0).all()


def test_4_while_a_residual_is_large_a_step_may_take_p_away_from_h():
    X = np.array(recorded("logistic")["pairs"]["apart"]["examples"], float)
    _, _, r, _ = descent(X, np.array([10.0, -10.0]), 0.0, 0.1, 1)
    away = np.linalg.norm(r @ X / r.sum(axis=1, keepdims=True) - experiments.nearest(*X), axis=1)
    assert away[1] > away[0]


@pytest.mark.parametrize("rate", [0.01, 1, 10])
def test_4b_b_increases_and_no_step_of_w_is_longer_than_the_proof_allows(rate):
    X, w, b = examples(1)
    w, b, r, _ = descent(X, w, b, rate, 3000)
    np.testing.assert_allclose(np.diff(b), rate * r[:-1].mean(axis=1), rtol=1e-6)
    assert (np.diff(b) > 0).all()
    longest = np.linalg.norm(X, axis=1).max()
    assert (np.linalg.norm(np.diff(w, axis=0), axis=1) <= longest * np.diff(b) * (1 + 1e-9)).all()


@pytest.mark.parametrize("rate", [0.1, 1, 2])  # the last is 4/‖x‖²
def test_4c_for_opposite_examples_each_step_takes_s_nearer_to_0_and_not_past_it(rate):
    X = np.array(recorded("logistic")["pairs"]["opposite"]["examples"], float)
    for start in ([2.0, 1.0], [-9.0, 3.0]):
        w, *_ = descent(X, np.array(start), -1.0, rate, 3000)
        s = w @ X[0]
        assert (s * np.sign(s[0]) >= 0).all()
        assert (np.diff(np.abs(s)) <= 0).all()


@pytest.mark.parametrize("rate", [0.1, 1, 50])
def test_4c_for_1_2_and_2_1_the_sum_of_w_grows_three_times_as_much_as_b(rate):
    X = np.array(recorded("logistic")["pairs"]["apart"]["examples"], float)
    w, b, *_ = descent(X, np.array([5.0, -4.0]), -1.0, rate, 2000)
    np.testing.assert_allclose(w.sum(axis=1) - w[0].sum(), 3 * (b - b[0]), rtol=1e-9)


def test_4c_the_answers_are_the_examples_that_page_1_names():
    pairs = recorded("logistic")["pairs"]
    assert pairs["opposite"]["examples"] == [[1, 1], [-1, -1]]
    assert pairs["apart"]["examples"] == [[1, 2], [2, 1]]


# --- Problem 4: beyond the questions --------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.1, 1, 10])
def test_4_at_every_rate_the_loss_becomes_small_and_then_falls_for_ever(rate):
    X, w, b = examples(3)
    w, b, r, losses = descent(X, w, b, rate, 3000)
    f, rho = losses.mean(axis=1), np.square(extended(X)).sum(axis=1).max()
    squares = np.square(w).sum(axis=1) + np.square(b)  # ‖θ‖²
    assert (np.diff(squares) <= 2 * rate + rate**2 * rho).all()
    small = f <= 1 / (2 * rate * rho)
    assert small.any()
    assert small[np.argmax(small) :].all(), "the loss rose again"
    falls = np.diff(f) <= -rate / 2 * r[:-1].mean(axis=1) ** 2
    assert falls[small[:-1]].all()


def test_4_the_loss_may_rise_on_the_way():
    _, _, _, losses = descent(*examples(3), 10, 300)
    assert (np.diff(losses.mean(axis=1)) > 0).any()


PAIRS = {  # none of which the report names
    "h between the examples": ((2, 0.5), (-0.5, 1)),
    "h is the first example": ((1, 0.5), (2, 2)),
    "h is the second example": ((3, 1), (1, 0)),
    "equal examples": ((1, -1), (1, -1)),
    "0 between the examples": ((1.5, 0), (-0.5, 0)),
}


@pytest.mark.parametrize("rate", [0.5, 2])
@pytest.mark.parametrize("name", PAIRS)
def test_4_the_law_and_the_steps_of_its_proof(name, rate):
    X = np.array(PAIRS[name], float)
    h, D = experiments.nearest(*X), X[0] - X[1]
    of_all = descents(tuple(PAIRS.values()), (1, -2), rate, 20000)
    w, b, r, losses = of_all[list(PAIRS).index(name)]
    f, r_mean, v = losses.mean(axis=1), r.mean(axis=1), w @ D
    p = r @ X / (2 * r_mean[:, None])
    # In the proof: p_t = x² + λ_t D with λ_t near σ(-v_t), and the step of v.
    share = 1 / (1 + np.exp(v))
    np.testing.assert_allclose(p[-1], X[1] + share[-1] * D, atol=1e-3)
    np.testing.assert_allclose(np.diff(v), rate * r_mean[:-1] * (p[:-1] @ D), atol=1e-9)
    # The law.
    late, c = np.arange(10000, 20001, 1000), 1 + h @ h
    np.testing.assert_allclose(p[-1], h, atol=0.02)
    np.testing.assert_allclose(np.diff(1 / f[late]) / 1000, rate * c, rtol=0.02)
    np.testing.assert_allclose(np.diff(b[late[[0, -1]]]), np.log(2) / c, rtol=0.02)
    grown = np.diff(w[late[[0, -1]]], axis=0)[0]
    np.testing.assert_allclose(grown, h * np.log(2) / c, atol=0.02)


def test_4_at_a_large_rate_the_law_may_set_in_late():
    X = np.array(PAIRS["h between the examples"], float)
    h, rate, steps = experiments.nearest(*X), 20, 20000
    _, b, r, losses = descent(X, np.array([1.0, -2.0]), 0.0, rate, steps)
    assert rate * (1 + h @ h) * steps * losses[-1].mean() < 0.5, "it has set in"
    assert b[-1] - b[0] > 10
    assert r[-1].max() < 1e-4


def test_4_g_falls_from_end_to_end_and_is_0_where_the_mean_is_h():
    v = np.linspace(-14, 14, 28001)
    for pair in PAIRS.values():
        X = np.array(pair, float)
        D, h = X[0] - X[1], experiments.nearest(*X)
        if not D.any():
            continue
        means = X[1] + D / (1 + np.exp(v))[:, None]
        G = means @ D
        assert (np.diff(G) < 0).all()
        assert G[0] == pytest.approx(D @ X[0], abs=1e-4)
        assert G[-1] == pytest.approx(D @ X[1], abs=1e-4)
        np.testing.assert_allclose(means[np.abs(G).argmin()], h, atol=1e-3)


@pytest.mark.parametrize("q", [0.5, 1, 3])
def test_4_limit_of_w_for_opposite_examples(q):
    x, start = np.array([1.0, 1.5]), np.array([2.0, 1.0])
    w, *_ = descent(np.array([x, -q * x]), start, 0.0, 0.5, 5000)
    limit = start + (-np.log(q) / (1 + q) - x @ start) / (x @ x) * x
    np.testing.assert_allclose(w[-1], limit, atol=1e-3)


OPPOSITE = (1, 2), (1, 0.5), (2, 1.5), (0.25, 8), (0.5, 1)


@pytest.mark.parametrize(("q", "squared"), OPPOSITE)
def test_4_distance_of_w_from_its_limit_obeys_its_recurrence(q, squared):
    """With q = 1 its logarithm falls like -mu log t. Otherwise, where mu > 1, it is near its limit
    divided by t."""
    rate, mu = 1.0, q * squared
    x = np.array([np.sqrt(squared), 0])
    pairs = tuple(((np.sqrt(s), 0), (-q * np.sqrt(s), 0)) for q, s in OPPOSITE)
    w, b, r, _ = descents(pairs, (1, 0), rate, 30000)[OPPOSITE.index((q, squared))]
    s, t = -np.log(q) / (1 + q), np.arange(30001)
    d, r_mean = w @ x - s, r.mean(axis=1)
    assert np.exp(-b[-1] - s) == pytest.approx(2 * q * r_mean[-1] / (1 + q), rel=1e-3)
    assert rate * r_mean[-1] * t[-1] == pytest.approx(1, rel=1e-3)
    beta = 2 * mu * (1 - q) / (rate * (1 + q) ** 2)
    late = slice(20000, 30000)
    expected = -mu * d[late] / t[late] + beta / t[late] ** 2
    scale = np.abs(mu * d[late] / t[late]) + abs(beta) / t[late] ** 2
    assert (np.abs(np.diff(d[20000:30001]) - expected) <= 0.01 * scale).all()
    if q == 1:
        assert np.log(d[20000] / d[10000]) / np.log(2) == pytest.approx(-mu, abs=0.01)
    elif mu > 1:
        assert t[-1] * d[-1] == pytest.approx(beta / (mu - 1), rel=0.02)


def test_4_if_one_example_is_0_w_diverges_although_h_is_0():
    """v + e^v, where v = D·w, rises like ‖D‖² log t: the step of v is ‖D‖² σ(-v)/t."""
    X = np.array([(1.0, 0.5), (0, 0)])
    assert not experiments.nearest(*X).any()
    w, *_ = descent(X, np.array([1.0, -2.0]), 0.0, 1, 40000)
    v, D = w @ X[0], X[0]
    assert (np.diff(v) > 0).all()
    grown = v[40000] + np.exp(v[40000]) - v[4000] - np.exp(v[4000])
    assert grown == pytest.approx(D @ D * np.log(10), rel=0.02)


def test_4_no_simulated_pair_is_a_boundary_case():
    for pair in recorded("logistic")["law"]:
        X = np.array(pair["examples"], float)
        assert (X @ (X[0] - X[1])).all(), f"for {pair['examples']}, D is orthogonal to an example"


def test_4_the_limit_is_simulated_where_it_is_proved():
    for row in recorded("logistic")["limits"]:
        assert row["q"] != 1
        assert row["mu"] > 1


# --- What the text says of its numbers ------------------------------------------------------------


def test_the_search_shows_the_level_of_the_loss_and_hardly_decides_the_point():
    choice, best = recorded("choice"), recorded("results")["best"]
    others = choice["models_within"] - 1  # the winner itself is one of them
    assert others > (choice["models"] - 1) / 10
    averaged = {name: choice["averaged"][name] for name in HYPERPARAMETERS[:3]}
    assert averaged != {name: best[name] for name in averaged}, "the same model wins on average"
    winners = {tuple(run[name] for name in HYPERPARAMETERS) for run in recorded("seeds")["runs"]}
    assert len(winners) > 1, "all seeds have the same winner"


def test_the_chosen_epoch_is_a_dip():
    near, best = recorded("choice")["neighbours"], recorded("results")["best"]["epochs"]
    i = near["epochs"].index(best)
    chosen = near["cross_entropy"][i]
    gap = min(near["cross_entropy"][i - 1], near["cross_entropy"][i + 1]) - chosen
    assert near["epochs"][i - 1 : i + 2] == [best - 1, best, best + 1]
    assert gap > 0.001, f"the neighbours are only {gap:.4f} above the chosen epoch"


def test_paired_differences_are_those_of_the_seeds_and_the_optima():
    against = recorded("choice")["winner_above_optimum"]
    winners, optima = recorded("seeds")["runs"], recorded("optimum")["splits"]
    assert {row["alpha"] for row in optima} == {against["alpha"]}
    optima = {row["seed"]: row for row in optima}
    for part in ("validation", "test"):
        found = [
            run[part]["cross_entropy"] - optima[run["seed"]][part]["cross_entropy"]
            for run in winners
        ]
        assert against[part]["differences"] == pytest.approx(found, abs=1e-6)
        assert against[part]["mean"] == pytest.approx(np.mean(found), abs=1e-6)
        error = np.std(found, ddof=1) / np.sqrt(len(found))
        assert against[part]["standard_error"] == pytest.approx(error, abs=1e-6)


def test_the_minimum_that_is_best_on_validation_is_the_one_whose_alpha_the_splits_use():
    rows = recorded("optimum")["rows"]
    least = min(rows, key=lambda row: row["validation"]["cross_entropy"])
    assert least["alpha"] == recorded("choice")["winner_above_optimum"]["alpha"]


def test_stopping_early_has_acted_like_a_larger_alpha():
    """Our loss is above the least for our alpha; our norm is that of a minimum for a larger one."""
    winner, rows = recorded("winner"), recorded("optimum")["rows"]
    best = recorded("results")["best"]
    own = next(row for row in rows if row["alpha"] == best["alpha"])
    assert winner["loss"] > own["loss"]
    assert winner["norm_squared"] < own["norm_squared"] / 2, "not far from its own optimum"
    norms = [row["norm_squared"] for row in rows]
    assert norms == sorted(norms, reverse=True)
    assert norms[-1] < winner["norm_squared"] < own["norm_squared"]


def test_test_results_hardly_differ_between_seeds():
    runs = recorded("seeds")["runs"]
    assert np.ptp([run["test"]["cross_entropy"] for run in runs]) < 0.01
    assert np.ptp([run["test"]["accuracy"] for run in runs]) < 0.01


def test_the_reported_search_is_the_one_of_its_seed():
    results = recorded("results")
    (run,) = [run for run in recorded("seeds")["runs"] if run["seed"] == results["seed"]]
    assert {name: run[name] for name in HYPERPARAMETERS} == results["best"]
    for part in ("validation", "test"):
        assert run[part] == pytest.approx(results[part], abs=1e-6)


# --- The document ---------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def build():
    """report/build.py, if what it needs is there in the pinned versions."""
    requirements = (REPORT / "requirements.txt").read_text(encoding="utf-8")
    for name, pin in re.findall(r"^(\w+)==([\d.]+)", requirements, re.MULTILINE):
        pytest.importorskip(name)
        if version(name) != pin:
            pytest.skip(f"the bytes are those of {name} {pin}")
    build = pytest.importorskip("report.build")
    build.document = functools.cache(build.document)  # the figures are drawn once for all tests
    return build


@pytest.fixture(scope="session")
def built(build, tmp_path_factory):
    """A folder with report.pdf and report/readme.svg, built once more."""
    folder = tmp_path_factory.mktemp("built")
    (folder / "report").mkdir()
    build.build(folder)
    return folder


@pytest.fixture(scope="session")
def quoted(build) -> dict:
    """The metrics that the report quotes, and its numbers of pages."""
    (found,) = json.loads(build.typst.query(selector="<quoted>", **build.document()))
    return found["value"]


def test_report_is_what_build_makes(built):
    same = (built / "report.pdf").read_bytes() == (ROOT / "report.pdf").read_bytes()
    assert same, "report.pdf is not what report/build.py makes from report/results"


def test_picture_in_the_readme_is_what_build_makes(built):
    """Its images are compared by their pixels: not every machine compresses them alike."""
    committed = REPORT / "readme.svg"
    assert committed.stat().st_size < 150_000
    text, images = taken_apart(committed)
    again, images_again = taken_apart(built / "report" / "readme.svg")
    assert text == again, "report/readme.svg is not what report/build.py makes from report/results"
    for image, image_again in zip(images, images_again, strict=True):
        np.testing.assert_array_equal(image, image_again)


def taken_apart(path) -> tuple[str, list[np.ndarray]]:
    """An SVG without the images in it, and these images."""
    imread = pytest.importorskip("matplotlib.image").imread
    embedded = re.compile(r"base64,([^\"]*)")
    text = path.read_text(encoding="utf-8")
    images = [imread(io.BytesIO(base64.b64decode(data))) for data in embedded.findall(text)]
    text = re.sub(r'id="image\w+"', "", text)  # which Matplotlib makes from the compressed bytes
    return embedded.sub("", text), images


def test_report_has_six_pages_and_answers_all_questions_on_the_first_four(quoted):
    assert quoted["pages"] == 6
    assert quoted["pages-for-the-questions"] == 4


def test_report_quotes_the_metrics_of_the_readme(quoted):
    lines = {f"{name}: {value}" for name, value in quoted.items() if isinstance(value, str)}
    assert len(lines) == 4
    assert lines <= set((ROOT / "README.md").read_text(encoding="utf-8").splitlines())


def test_every_figure_and_table_is_referred_to():
    text = (REPORT / "report.typ").read_text(encoding="utf-8")
    labels = set(re.findall(r"^ *\) <([\w-]+)>", text, re.MULTILINE))
    assert len(labels) == 9
    assert labels <= set(re.findall(r"@([\w-]+)", text))


def test_no_measured_number_is_typed_into_the_report():
    assert not re.search(
        r"\b0\.\d{3,}|\b\d\d\.\d+ ?%", (REPORT / "report.typ").read_text(encoding="utf-8")
    )
