"""The split, the search over the grid, and the choice of the best point."""

import itertools
import signal
import sys
import threading

import numpy as np
import pytest
from helpers import GRID, SEED
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import softmax_sgd
from softmax_sgd import Grid, Metrics, best_point, evaluate, minibatches, search, sgd, split

# --- The split ------------------------------------------------------------------------------------


@given(n=st.integers(2, 300), seed=st.integers(0, 99))
def test_every_row_is_in_exactly_one_part_of_the_split(n, seed):
    train, validation = split(n, 0.2, np.random.default_rng(seed))
    assert sorted([*train, *validation]) == list(range(n))
    assert len(validation) == max(1, round(0.2 * n))


def test_the_split_is_random_and_depends_on_the_seed():
    parts = [split(100, 0.2, np.random.default_rng(seed))[1] for seed in (0, 0, 1)]
    assert_array_equal(parts[0], parts[1], err_msg="the same seed gives another split")
    assert set(parts[0]) != set(range(20)), "the first rows are taken"
    assert set(parts[0]) != set(range(80, 100)), "the last rows are taken"
    assert set(parts[0]) != set(parts[2]), "another seed gives the same split"


# --- The search -----------------------------------------------------------------------------------


class SmallData:
    """A small data set in float64, and ways to search and to train on it."""

    def __init__(self):
        rng = np.random.default_rng(7)
        class_means = rng.uniform(0, 1, (10, 12))
        self.y = rng.integers(0, 10, 70)
        self.X = np.clip(class_means[self.y] + rng.normal(0, 0.25, (70, 12)), 0, 1)
        self.train, self.validation = np.arange(5, 55), np.r_[0:5, 55:70]

    def search(self, grid, seed=SEED, **options):
        return search(self.X, self.y, self.train, self.validation, grid, seed, **options)

    def train_alone(self, batch_size, learning_rate, alpha, same_order=False):
        """The W and b of one model, after each epoch of GRID."""
        rng = np.random.default_rng([SEED, batch_size])
        W, b = np.zeros((10, 12)), np.zeros(10)
        for _ in range(GRID.epochs):
            if same_order:  # a mistake, for comparison
                rng = np.random.default_rng([SEED, batch_size])
            batches = minibatches(self.train, batch_size, rng)
            W, b = sgd(W, b, self.X, self.y, alpha, learning_rate, batches)
            yield W, b

    def curves_alone(self, models, rows, **how) -> np.ndarray:
        """The metrics of each model on the rows after each epoch: (2, models, epochs)."""
        X, y = self.X[rows], self.y[rows]
        curves = [[evaluate(W, b, X, y) for W, b in self.train_alone(*m, **how)] for m in models]
        return np.moveaxis(curves, -1, 0)


MODELS = list(itertools.product(GRID.batch_sizes, GRID.learning_rates, GRID.alphas))


def close(ours, right):
    return np.allclose(ours, right, rtol=1e-9, atol=0)


@pytest.fixture(scope="module")
def small():
    return SmallData()


@pytest.fixture(scope="module")
def found(small):
    """Curves, point, W and b of a search over GRID."""
    return small.search(GRID)


def test_another_seed_gives_other_minibatches_and_the_same_seed_the_same(small):
    grid = GRID._replace(epochs=2)
    curves = [small.search(grid, seed)[0].cross_entropy for seed in (SEED, SEED, SEED + 1)]
    assert close(curves[0], curves[1]), "the same seed gives other curves"
    assert not close(curves[0], curves[2]), "the seed is ignored"


def test_the_curves_are_those_of_each_model_trained_alone(small, found):
    """Trained from zero with its own hyperparameters, and evaluated after every epoch."""
    curves = np.reshape(found[0], (2, len(MODELS), GRID.epochs))
    right = small.curves_alone(MODELS, small.validation)
    assert close(curves, right), what_is_wrong(small, curves, right)


def what_is_wrong(small, curves, right) -> str:
    """Name the mistakes that would give these curves, and what is wrong first."""
    exchanged = [(batch_size, alpha, rate) for batch_size, rate, alpha in MODELS]
    mistakes = {
        "Every epoch has the same order": close(
            curves, small.curves_alone(MODELS, small.validation, same_order=True)
        ),
        "The metrics are those of the training rows": close(
            curves, small.curves_alone(MODELS, small.train)
        ),
        "The metrics are those before the epoch": close(curves[..., 1:], right[..., :-1]),
        "Learning rate and alpha are exchanged": close(
            curves, small.curves_alone(exchanged, small.validation)
        ),
        "Models or epochs are scrambled": close(
            np.sort(curves, axis=None), np.sort(right, axis=None)
        ),
    }
    names = " or ".join(name for name, seen in mistakes.items() if seen) or "No known mistake"
    differs = ~np.isclose(curves, right, rtol=1e-9, atol=0)
    epoch = differs.any(axis=(0, 1)).argmax() + 1
    is_wrong = differs.any(axis=(0, 2))
    first = dict(zip(GRID.axes(), MODELS[is_wrong.argmax()], strict=False))
    return (
        f"{names}; from epoch {epoch} on, {is_wrong.sum()} of {len(MODELS)} models are wrong, "
        f"first {first}"
    )


def test_the_axis_of_epochs_counts_from_1_to_the_last():
    assert list(Grid(epochs=3).axes()["epochs"]) == [1, 2, 3]


def test_W_and_b_are_those_of_the_point(small, found):
    curves, point, W, b = found
    lowest = np.unravel_index(curves.cross_entropy.argmin(), curves.cross_entropy.shape)
    assert point == lowest, "the point is not that of the lowest cross-entropy"
    best_epochs = curves.cross_entropy[point[0]].argmin(axis=-1)
    assert (best_epochs > point[-1]).any(), "choose other data: no other model improves later"
    *model, epoch = (values[i] for values, i in zip(GRID.axes().values(), point, strict=True))
    right_W, right_b = list(small.train_alone(*model))[epoch - 1]
    assert close(W, right_W), "W is that of another model or epoch"
    assert close(b, right_b), "b is that of another model or epoch"


@pytest.mark.parametrize("max_stack", [3, 100])
def test_how_models_are_stacked_changes_nothing(small, monkeypatch, max_stack):
    grid = GRID._replace(batch_sizes=(3, 7), epochs=3)
    right, right_point, right_W, right_b = small.search(grid)
    monkeypatch.setattr(softmax_sgd, "MAX_STACK", max_stack)
    curves, point, W, b = small.search(grid)
    assert_allclose(curves.cross_entropy, right.cross_entropy)
    assert_allclose(curves.accuracy, right.accuracy)
    assert point == right_point
    assert_allclose(W, right_W)
    assert_allclose(b, right_b)


@pytest.mark.parametrize("cores", [1, 8])
@pytest.mark.parametrize(
    ("batch_sizes", "n_rates", "n_alphas", "sizes"),
    [
        ((7,), 5, 4, [10, 10]),  # at most 16
        ((7,), 5, 2, [5, 5]),  # a single stack would use one core only
        ((3, 7), 5, 2, [10, 10]),
        ((7,), 1, 1, [1]),
    ],
)
def test_the_stacks_do_not_depend_on_the_number_of_cores(
    small, monkeypatch, batch_sizes, n_rates, n_alphas, sizes, cores
):
    """If they did, the last digits of the results would, too."""
    seen = []
    monkeypatch.setattr("os.cpu_count", lambda: cores)

    class CountedStack(softmax_sgd.Stack):
        def __init__(self, *arguments, **columns):
            seen.append(len(columns["alphas"]))
            super().__init__(*arguments, **columns)

    monkeypatch.setattr(softmax_sgd, "Stack", CountedStack)
    rates, alphas = GRID.learning_rates[:n_rates], GRID.alphas[:n_alphas]
    small.search(Grid(batch_sizes, rates, alphas, epochs=1))
    assert seen == sizes, "the numbers of models in the stacks"


def test_a_search_in_float32_stays_in_float32(small):
    X = small.X.astype(np.float32)
    _, _, W, b = search(X, small.y, small.train, small.validation, GRID._replace(epochs=1), SEED)
    assert (W.dtype, b.dtype) == (np.float32, np.float32)


def test_progress_tells_the_epochs_done_and_the_lowest_cross_entropy_so_far(small):
    told = []
    curves = small.search(GRID, progress=lambda *now: told.append(now))[0]
    for epochs, (done, lowest) in enumerate(told, start=1):
        assert done == epochs
        so_far = curves.cross_entropy[..., :epochs].min()
        assert_allclose(lowest, so_far, err_msg=f"not the lowest of {epochs} epochs")
    assert len(told) == GRID.epochs


def test_nothing_of_a_search_stays_behind_even_if_it_is_interrupted(small):
    threads = set(threading.enumerate())
    interval = sys.getswitchinterval()
    on_ctrl_c = signal.getsignal(signal.SIGINT)

    def interrupt(epochs, lowest):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small.search(GRID, progress=interrupt)
    left = signal.signal(signal.SIGINT, on_ctrl_c)  # so that no other test is harmed
    assert left is on_ctrl_c, "Ctrl-C stays ignored after an interrupted search"
    assert set(threading.enumerate()) <= threads, "a thread is still running"
    assert sys.getswitchinterval() == interval, "Python's switch interval has changed"


def test_each_stack_has_learning_rates_of_its_own(small, monkeypatch):
    """So that a schedule may change them in place."""
    stacks = []

    class KeptStack(softmax_sgd.Stack):
        def __init__(self, *arguments, **columns):
            super().__init__(*arguments, **columns)
            stacks.append(self)

    monkeypatch.setattr(softmax_sgd, "Stack", KeptStack)
    small.search(GRID._replace(epochs=1))
    for one, other in itertools.combinations(stacks, 2):
        assert not np.shares_memory(one.learning_rates, other.learning_rates)


# --- Divergence, and the choice -------------------------------------------------------------------

# Half of its models diverge. (With alpha 0, even a learning rate of 1e200 stays finite.)
DIVERGING = GRID._replace(learning_rates=(0.1, 1e200), alphas=(0.001, 0.02), epochs=4)


@pytest.mark.filterwarnings("error")
def test_models_that_diverge_neither_win_nor_harm_the_others(small):
    told = []
    curves, point, W, b = small.search(DIVERGING, progress=lambda *now: told.append(now))
    right, right_point, right_W, right_b = small.search(DIVERGING._replace(learning_rates=(0.1,)))
    assert np.isnan(curves.cross_entropy[:, 1, :, -1]).all(), "models that should diverge do not"
    assert_allclose(curves.cross_entropy[:, :1], right.cross_entropy)
    assert point == right_point
    assert_allclose(W, right_W)
    assert_allclose(b, right_b)
    assert np.isfinite(told).all(), "progress is not told a number"


def curves_of(values):
    return Metrics(np.array(values, float), np.zeros(np.shape(values)))


def test_if_every_model_diverges_in_the_end_good_first_epochs_do_not_help():
    with pytest.raises(FloatingPointError):
        best_point(curves_of([[0.1, np.nan], [0.2, np.inf]]))


def test_the_best_point_has_the_lowest_cross_entropy():
    shape = (3, 4, 5, 6)
    for point in itertools.product((0, 2), (1, 3), (0, 2, 4), (0, 3, 5)):
        cross_entropy = np.ones(shape)
        cross_entropy[point] = 0.5
        accuracy = np.random.default_rng(0).random(shape)
        assert best_point(Metrics(cross_entropy, accuracy)) == point


def test_of_equal_points_the_first_in_the_order_of_the_grid_wins():
    assert best_point(curves_of([[3, 1, 2], [1, 1, 2]])) == (0, 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_model_that_diverges_later_cannot_win_by_an_earlier_epoch(bad):
    assert best_point(curves_of([[0.1, bad], [0.3, 0.2]])) == (1, 1)
