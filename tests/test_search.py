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
        self.X = np.clip(looks[self.y] + rng.normal(0, 0.25, (70, 12)), 0, 1)
        self.train, self.validation = np.arange(5, 55), np.r_[0:5, 55:70]

    def search(self, grid, seed=SEED, **options):
        return search(self.X, self.y, self.train, self.validation, grid, seed, **options)

    def train_alone(self, batch_size, learning_rate, alpha, *, epochs, same_order=False):
        """The W and b of one model, after each epoch."""
        rng = np.random.default_rng([SEED, batch_size])
        W, b = np.zeros((10, 12)), np.zeros(10)
        for _epoch in range(1, epochs + 1):
            if same_order:
                rng = np.random.default_rng([SEED, batch_size])
            batches = minibatches(self.train, batch_size, rng)
            W, b = sgd(W, b, self.X, self.y, alpha, learning_rate, batches)
            yield W, b

    def metrics_alone(self, model, rows=None, before=False, **how) -> np.ndarray:
        """The metrics of one model after each epoch of GRID: (2, epochs). Or before each."""
        rows = self.validation if rows is None else rows
        trained = list(self.train_alone(*model, epochs=GRID.epochs, **how))
        if before:
            trained = [(np.zeros((10, 12)), np.zeros(10)), *trained[:-1]]
        return np.transpose([evaluate(W, b, self.X[rows], self.y[rows]) for W, b in trained])


*OF_A_MODEL, _EPOCHS = GRID.axes().values()
MODELS = list(itertools.product(*OF_A_MODEL))  # in the order of the grid


@pytest.fixture(scope="module")
def small():
    return SmallData()


@pytest.fixture(scope="module")
def found(small):
    """Curves, point, W and b of a search over GRID."""
    return small.search(GRID)


def test_the_curves_have_the_axes_of_the_grid(found):
    curves, _, _, _ = found
    shape = tuple(len(values) for values in GRID.axes().values())
    for name, curve in curves._asdict().items():
        assert curve.shape == shape, f"the axes of {name} are not {', '.join(GRID.axes())}"
    epochs = list(GRID.axes()["epochs"])
    assert epochs == list(range(1, GRID.epochs + 1)), "epochs do not count from 1"


def test_another_seed_gives_other_minibatches_and_the_same_seed_the_same(small, found):
    grid = GRID._replace(epochs=2)
    curves = [small.search(grid, seed)[0].cross_entropy for seed in (SEED, SEED, SEED + 1)]
    assert_allclose(curves[0], curves[1], rtol=1e-9, err_msg="the same seed gives other curves")
    assert not np.allclose(curves[0], curves[2], rtol=1e-9), "the seed is ignored"


def test_the_curves_are_those_of_each_model_trained_alone(small, found):
    """With its own batch size, learning rate and alpha, from zero, evaluated after every epoch."""
    curves = np.reshape(found[0], (2, len(MODELS), GRID.epochs))
    right = np.stack([small.metrics_alone(model) for model in MODELS], axis=1)
    if np.allclose(curves, right, rtol=1e-9):
        return
    as_if = {
        "every epoch had the order of the first": [
            small.metrics_alone(model, same_order=True) for model in MODELS
        ],
        "the metrics were those of the training rows": [
            small.metrics_alone(model, rows=small.train) for model in MODELS
        ],
        "the metrics were those before the epoch": [
            small.metrics_alone(model, before=True) for model in MODELS
        ],
        "learning rate and alpha were exchanged": [
            small.metrics_alone((n, alpha, rate, *others)) for n, rate, alpha, *others in MODELS
        ],
    }
    seen = [name for name, metrics in as_if.items() if close(curves, np.stack(metrics, axis=1))]
    if close(np.sort(curves, axis=None), np.sort(right, axis=None)):
        seen.append("models or epochs were scrambled: all numbers are right, but at other places")
    wrong = [
        f"{name} of {len(models)} of {len(MODELS)} models, first of {MODELS[models[0]]}"
        for name, ours, theirs in zip(Metrics._fields, curves, right, strict=True)
        if len(models := np.flatnonzero(~np.isclose(ours, theirs, rtol=1e-9).all(axis=-1)))
    ]
    pytest.fail(f"as if {' or '.join(seen) or 'something unknown were wrong'}; {'; '.join(wrong)}")


def close(these, those):
    return np.allclose(these, those, rtol=1e-9)


def test_the_point_is_that_of_the_lowest_cross_entropy(found):
    curves, point, _, _ = found
    lowest = np.unravel_index(curves.cross_entropy.argmin(), curves.cross_entropy.shape)
    best_accuracy = np.unravel_index(curves.accuracy.argmax(), curves.accuracy.shape)
    assert lowest != best_accuracy, "choose another SmallData: accuracy would choose the same"
    assert point == lowest, f"not the lowest; the highest accuracy is at {best_accuracy}"


def test_W_and_b_are_those_of_the_point(small, found):
    """Of that model, and after its best epoch, even if others of its stack become better later."""
    curves, point, W, b = found
    of_its_size = curves.cross_entropy[point[0]].reshape(-1, GRID.epochs)
    pair = np.ravel_multi_index(point[1:-1], curves.cross_entropy.shape[1:-1])
    of_its_stack = np.array_split(of_its_size, 2)[pair // 10]  # as 20 models make two stacks
    later = of_its_stack.argmin(axis=-1) > point[-1]
    assert later.any(), "choose another SmallData: no other model of its stack improves later"
    places = [  # where W and b occur
        (name, model, epoch)
        for model in MODELS
        for epoch, trained in enumerate(small.train_alone(*model, epochs=GRID.epochs), start=1)
        for name, ours, theirs in zip("Wb", (W, b), trained, strict=True)
        if np.allclose(ours, theirs, rtol=1e-9)
    ]
    *model, epoch = (values[i] for values, i in zip(GRID.axes().values(), point, strict=True))
    right = [(name, tuple(model), epoch) for name in "Wb"]
    assert places == right, "W or b is that of another model or epoch, or of none"


@pytest.mark.parametrize("batch_sizes", [(7,), (3, 7)])  # a single one is split into two stacks
@pytest.mark.parametrize("max_stack", [1, 3, 5, 100])
def test_how_models_are_stacked_changes_nothing(small, monkeypatch, batch_sizes, max_stack):
    grid = GRID._replace(batch_sizes=batch_sizes, epochs=3)
    right, right_point, right_W, right_b = small.search(grid)
    monkeypatch.setattr(softmax_sgd, "MAX_STACK", max_stack)
    curves, point, W, b = small.search(grid)
    message = f"with MAX_STACK {max_stack} (ACTUAL) and {16} (DESIRED)"
    assert_allclose(curves.cross_entropy, right.cross_entropy, err_msg=message)
    assert_allclose(curves.accuracy, right.accuracy, err_msg=message)
    assert point == right_point, message
    assert_allclose(W, right_W, err_msg=f"W {message}")
    assert_allclose(b, right_b, err_msg=f"b {message}")


@pytest.mark.parametrize("cores", [1, 2, 3, 8])
@pytest.mark.parametrize(("batch_sizes", "stacks"), [((7,), 2), ((3, 7), 4)])
def test_stacks_do_not_depend_on_the_number_of_cores(
    small, monkeypatch, batch_sizes, stacks, cores
):
    """A single batch size gives two stacks, 20 models of a batch size two of at most 16."""
    sizes = []
    monkeypatch.setattr("os.cpu_count", lambda: cores)

    class CountedStack(softmax_sgd.Stack):
        def __init__(self, *arguments, **columns):
            sizes.append(len(columns["alphas"]))
            super().__init__(*arguments, **columns)

    monkeypatch.setattr(softmax_sgd, "Stack", CountedStack)
    small.search(GRID._replace(batch_sizes=batch_sizes, epochs=1))
    assert sizes == [10] * stacks, "other stacks give other last digits"


def test_a_single_model_is_a_grid_too(small):
    grid = softmax_sgd.Grid(batch_sizes=(7,), learning_rates=(0.3,), alphas=(0.01,), epochs=2)
    curves, point, W, b = small.search(grid)
    assert curves.cross_entropy.size == 2
    right_W, right_b = [*small.train_alone(7, 0.3, 0.01, epochs=2)][point[-1]]
    assert_allclose(W, right_W)
    assert_allclose(b, right_b)


def test_fewer_epochs_give_the_beginning_of_the_same_curves(small, found):
    curves = small.search(GRID._replace(epochs=4))[0]
    assert_allclose(curves.cross_entropy, found[0].cross_entropy[..., :4], rtol=1e-9)


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
    threads, errors = set(threading.enumerate()), np.geterr()
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
    assert np.geterr() == errors, "NumPy's handling of errors has changed"


# --- Divergence, and the choice -------------------------------------------------------------------

# Half of its models diverge. With alpha 0, even such steps stay finite.
DIVERGING = GRID._replace(learning_rates=(0.1, 1e200), alphas=(0.001, 0.02), epochs=4)


@pytest.mark.filterwarnings("error")
def test_models_that_diverge_neither_win_nor_harm_the_others(small):
    curves, point, W, b = small.search(DIVERGING)
    right, right_point, right_W, right_b = small.search(DIVERGING._replace(learning_rates=(0.1,)))
    assert np.isnan(curves.cross_entropy[:, 1, :, -1]).all(), "models that should diverge do not"
    assert_allclose(curves.cross_entropy[:, :1], right.cross_entropy)
    assert point == right_point
    assert_allclose(W, right_W)
    assert_allclose(b, right_b)


def test_progress_stays_a_number_when_models_diverge(small):
    told = []
    small.search(DIVERGING, progress=lambda epochs, lowest: told.append(lowest))
    assert np.isfinite(told).all()


def test_after_an_interruption_a_stack_takes_no_more_steps(small, monkeypatch):
    """So Ctrl-C need not wait for the end of an epoch."""
    calls, train_epoch = [], softmax_sgd.Stack.train_epoch

    def record(stack, *arguments):
        calls.append((stack, arguments))
        return train_epoch(stack, *arguments)

    def interrupt(epochs, lowest):
        raise KeyboardInterrupt

    monkeypatch.setattr(softmax_sgd.Stack, "train_epoch", record)
    with pytest.raises(KeyboardInterrupt):
        small.search(GRID, progress=interrupt)
    for stack, arguments in calls:
        W = stack.W.copy()
        train_epoch(stack, *arguments)
        assert_array_equal(stack.W, W, err_msg="Ctrl-C does not stop the threads")


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
