"""The split, the search over the grid, and the choice of the best point."""

import itertools
import threading

import numpy as np
import pytest
from helpers import GRID, SEED
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import softmax_sgd
from softmax_sgd import Metrics, best_point, evaluate, minibatches, search, sgd, split

# --- The split ------------------------------------------------------------------------------------


@given(n=st.integers(2, 300), seed=st.integers(0, 99))
def test_every_row_is_in_exactly_one_part_of_the_split(n, seed):
    train, validation = split(n, 0.2, np.random.default_rng(seed))
    assert sorted([*train, *validation]) == list(range(n))
    assert len(validation) == max(1, round(0.2 * n))


def test_the_split_is_random_and_depends_on_the_seed():
    parts = [split(100, 0.2, np.random.default_rng(seed))[1] for seed in (0, 0, 1)]
    assert_array_equal(parts[0], parts[1], err_msg="the same seed gives another split")
    assert set(parts[0]) != set(parts[2]), "another seed gives the same split"
    assert set(parts[0]) != set(range(20)), "the first rows are taken"
    assert set(parts[0]) != set(range(80, 100)), "the last rows are taken"


# --- The search -----------------------------------------------------------------------------------


class SmallData:
    """A small data set in float64, and ways to search and to train on it."""

    def __init__(self):
        rng = np.random.default_rng(7)
        looks = rng.uniform(0, 1, (10, 12))  # of the ten classes
        self.y = rng.integers(0, 10, 70)
        self.X = np.clip(looks[self.y] + rng.normal(0, 0.5, (70, 12)), 0, 1)
        self.train, self.validation = np.arange(5, 55), np.r_[0:5, 55:70]

    def search(self, grid, **options):
        return search(self.X, self.y, self.train, self.validation, grid, SEED, **options)

    def train_alone(self, batch_size, learning_rate, alpha, epochs):
        """The W and b of one model, after each epoch."""
        rng = np.random.default_rng([SEED, batch_size])
        W, b = np.zeros((12, 10)), np.zeros(10)
        for _epoch in range(1, epochs + 1):
            batches = minibatches(self.train, batch_size, rng)
            W, b = sgd(W, b, self.X, self.y, alpha, learning_rate, batches)[:2]
            yield W, b

    def validate(self, W, b):
        return evaluate(W, b, self.X[self.validation], self.y[self.validation])


@pytest.fixture(scope="module")
def small():
    return SmallData()


@pytest.fixture(scope="module")
def found(small):
    return small.search(GRID)


def test_the_curves_are_those_of_each_model_trained_alone(small, found):
    """With its own batch size, learning rate and alpha, from zero, evaluated after every epoch."""
    curves, _, _ = found
    axes = GRID.axes()
    shape = tuple(len(values) for values in axes.values())
    assert curves.cross_entropy.shape == shape, f"the axes are not {', '.join(axes)}"
    *of_model, _ = axes.values()
    for indices in np.ndindex(shape[:-1]):
        model = [values[i] for values, i in zip(of_model, indices, strict=True)]
        alone = [small.validate(W, b) for W, b in small.train_alone(*model, GRID.epochs)]
        for name, curve, values in zip(
            Metrics._fields, curves, zip(*alone, strict=True), strict=True
        ):
            message = f"{name} of batch size {model[0]}, learning rate {model[1]}, alpha {model[2]}"
            assert_allclose(curve[indices], values, rtol=1e-9, err_msg=message)


def test_W_and_b_are_those_of_the_best_point(small, found):
    """Of that model, and after its best epoch: not of the last one."""
    curves, W, b = found
    *model, epoch = [
        values[i] for values, i in zip(GRID.axes().values(), best_point(curves), strict=True)
    ]
    trained = list(small.train_alone(*model, GRID.epochs))
    assert epoch < GRID.epochs, "choose another GRID or SEED: the last epoch is the best"
    for name, ours, after in zip("Wb", (W, b), zip(*trained, strict=True), strict=True):
        equal = [e for e, right in enumerate(after, 1) if np.allclose(ours, right)]
        assert equal == [epoch], f"{name} is that of the epochs {equal}, not of epoch {epoch}"


@pytest.mark.parametrize("batch_sizes", [(7,), (3, 7)])  # a single one is split into two stacks
@pytest.mark.parametrize("max_stack", [1, 3, 5, 100])
def test_how_models_are_stacked_changes_nothing(small, monkeypatch, batch_sizes, max_stack):
    grid = GRID._replace(batch_sizes=batch_sizes, epochs=3)
    right, right_W, right_b = small.search(grid)
    monkeypatch.setattr(softmax_sgd, "MAX_STACK", max_stack)
    curves, W, b = small.search(grid)
    assert_allclose(curves.cross_entropy, right.cross_entropy)
    assert_allclose(curves.accuracy, right.accuracy)
    assert_allclose(W, right_W)
    assert_allclose(b, right_b)


def test_a_single_model_is_a_grid_too(small):
    grid = softmax_sgd.Grid(batch_sizes=(7,), learning_rates=(0.3,), alphas=(0.01,), epochs=2)
    curves, W, b = small.search(grid)
    assert curves.cross_entropy.size == 2
    right_W, right_b = [*small.train_alone(7, 0.3, 0.01, 2)][best_point(curves)[-1]]
    assert_allclose(W, right_W)
    assert_allclose(b, right_b)


def test_fewer_epochs_give_the_beginning_of_the_same_curves(small, found):
    curves, _, _ = small.search(GRID._replace(epochs=4))
    assert_allclose(curves.cross_entropy, found[0].cross_entropy[..., :4], rtol=1e-9)


def test_a_search_in_float32_stays_in_float32(small):
    X = small.X.astype(np.float32)
    _, W, b = search(X, small.y, small.train, small.validation, GRID._replace(epochs=1), SEED)
    assert (W.dtype, b.dtype) == (np.float32, np.float32)


def test_progress_tells_the_epochs_done_and_the_lowest_cross_entropy_so_far(small):
    told = []
    curves, _, _ = small.search(GRID, progress=lambda *now: told.append(now))
    for epochs, (done, lowest) in enumerate(told, start=1):
        assert done == epochs
        assert_allclose(lowest, curves.cross_entropy[..., :epochs].min())
    assert len(told) == GRID.epochs


def test_nothing_of_a_search_stays_behind_even_if_it_is_interrupted(small):
    threads, errors = set(threading.enumerate()), np.geterr()

    def interrupt(epochs, lowest):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small.search(GRID, progress=interrupt)
    assert set(threading.enumerate()) <= threads, "a thread is still running"
    assert np.geterr() == errors, "NumPy's handling of errors has changed"


# --- Divergence, and the choice -------------------------------------------------------------------

# Half of its models diverge. With alpha 0, even such steps stay finite.
DIVERGING = GRID._replace(learning_rates=(0.1, 1e200), alphas=(0.001, 0.02), epochs=4)


@pytest.mark.filterwarnings("error")
def test_models_that_diverge_neither_win_nor_harm_the_others(small):
    curves, W, b = small.search(DIVERGING)
    right, right_W, right_b = small.search(DIVERGING._replace(learning_rates=(0.1,)))
    assert np.isnan(curves.cross_entropy[:, 1, :, -1]).all(), "models that should diverge do not"
    assert_allclose(curves.cross_entropy[:, :1], right.cross_entropy)
    assert best_point(curves) == best_point(right)
    assert_allclose(W, right_W)
    assert_allclose(b, right_b)


def test_progress_stays_a_number_when_models_diverge(small):
    told = []
    small.search(DIVERGING, progress=lambda epochs, lowest: told.append(lowest))
    assert np.isfinite(told).all()


@pytest.mark.filterwarnings("error")
def test_if_every_model_diverges_the_search_says_so(small):
    with pytest.raises(FloatingPointError, match="every model diverged"):
        small.search(DIVERGING._replace(learning_rates=(1e200,)))


def test_if_every_model_diverges_in_the_end_good_first_epochs_do_not_help():
    with pytest.raises(FloatingPointError):
        best_point(curves_of([[0.1, np.nan], [0.2, np.inf]]))


def curves_of(values):
    return Metrics(np.array(values, float), np.zeros(np.shape(values)))


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
