"""Lemmas on the split, the grid search and the choice of the winner."""

import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import softmax_sgd
from softmax_sgd import Curves, Grid, best_point, evaluate, search, sgd, split

GRID = Grid(batch_sizes=(8, 15), learning_rates=(0.05, 0.5), alphas=(0.0, 0.03, 0.3), epochs=8)


@pytest.fixture(scope="session")
def examples():
    """Two hundred noisy examples in float32, on which models overfit: X, y, train, validation."""
    rng = np.random.default_rng(7)
    X = rng.uniform(0, 1, (200, 12)).astype(np.float32)
    y = (X @ rng.normal(0, 1, (12, 10)) + rng.normal(0, 1, (200, 10))).argmax(axis=1)
    return X, y, *split(200, 0.2, np.random.default_rng(0))


@pytest.fixture(scope="session")
def found(examples):
    return search(*examples, GRID, seed=3)


def assert_same(ours, theirs, said):
    """All but rounding: a product of another width may be summed in another order."""
    for one, other in zip(ours, theirs):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6, err_msg=said)


# --- The split ------------------------------------------------------------------------------------


@given(n=st.integers(2, 300), fraction=st.floats(0.01, 0.99), seed=st.integers(0, 2**32))
def test_the_split_is_a_partition(n, fraction, seed):
    train, validation = split(n, fraction, np.random.default_rng(seed))
    assert sorted([*train, *validation]) == list(range(n)), "rows shared by both sides, or lost"
    assert abs(len(validation) - n * fraction) <= 0.5


def test_the_split_is_random_and_repeats_with_its_seed():
    first, again, other = (split(100, 0.2, np.random.default_rng(seed))[0] for seed in (1, 1, 2))
    assert (first == again).all(), "the split does not repeat"
    assert (first != other).any(), "the split ignores the seed"
    assert (np.sort(first) != first).any(), "the files' own order was kept"


# --- The search -----------------------------------------------------------------------------------


def test_each_model_is_what_it_is_when_trained_alone(examples, found):
    """By its own hyperparameters, from zero: nothing reaches it from the rest of the grid."""
    curves, W, b = found
    assert W.dtype == b.dtype == np.float32
    for i, j, k in np.ndindex(2, 2, 3):
        point = GRID.batch_sizes[i : i + 1], GRID.learning_rates[j : j + 1], GRID.alphas[k : k + 1]
        alone, w, a = search(*examples, Grid(*point, GRID.epochs), seed=3)
        ours = (*(c[i, j, k] for c in curves), W[..., i, j, k], b[..., i, j, k])
        theirs = (*(c[0, 0, 0] for c in alone), w[..., 0, 0, 0], a[..., 0, 0, 0])
        assert_same(ours, theirs, f"weights leak into {point} from the grid's other points")


def test_the_weights_kept_are_those_of_the_best_epoch(examples, found):
    X, y, _, validation = examples
    curves, W, b = found
    assert np.isfinite(curves.cross_entropy).all(), "an epoch was not trained, or not measured"
    assert (curves.cross_entropy.argmin(axis=-1) < GRID.epochs - 1).any(), "no model overfits"
    for model in np.ndindex(2, 2, 3):
        best = curves.cross_entropy[model].argmin()
        ours = evaluate(W[(..., *model)], b[(..., *model)], X[validation], y[validation])
        assert_same(ours, [c[model][best] for c in curves], "the weights of another epoch")


def test_a_model_that_diverges_keeps_the_weights_of_its_best_epoch(examples):
    """At each of the ten steps of an epoch, W is multiplied by -29: soon it overflows."""
    X, y, _, validation = examples
    curves, W, b = search(*examples, Grid((16,), (10.0,), (3.0,), 5), seed=0)
    cross_entropy = curves.cross_entropy[0, 0, 0]
    assert np.isfinite(cross_entropy).tolist() == [True, True, False, False, False]
    kept = evaluate(W[..., 0, 0, 0], b[..., 0, 0, 0], X[validation], y[validation])
    assert_same(kept[:1], [np.nanmin(cross_entropy)], "the weights of an epoch that became NaN")


def test_of_equal_epochs_the_first_keeps_its_weights(examples):
    """A rate too small to change the cross-entropy still moves the weights, epoch by epoch."""
    one, many = (search(*examples, Grid((160,), (1e-20,), (0.0,), n), seed=0) for n in (1, 3))
    assert np.ptp(many[0].cross_entropy) == 0
    for ours, expected in zip(many[1:], one[1:]):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, err_msg="not the first of the best")


@pytest.mark.parametrize(("stack", "workers"), [(16, 2), (4, 1), (1, 5)])
def test_neither_workers_nor_stacks_change_the_result(examples, found, monkeypatch, stack, workers):
    monkeypatch.setattr(softmax_sgd, "MAX_STACK", stack)
    curves, W, b = search(*examples, GRID, seed=3, workers=workers)
    assert_same((*curves, W, b), (*found[0], *found[1:]), "the workers, or the stacks, change it")


def test_the_validation_images_do_not_train(examples, found):
    """Other validation images change what is measured, and no weight."""
    X, y, train, validation = examples
    grid = GRID._replace(epochs=1)  # so that the weights kept are those of the same epoch
    X_other = X.copy()
    X_other[validation] = X[validation][::-1]
    ours, others = (search(x, y, train, validation, grid, seed=0) for x in (X, X_other))
    assert (ours[0].cross_entropy != others[0].cross_entropy).all(), "not measured on validation"
    assert_same(ours[1:], others[1:], "the validation images train, too")


def test_images_train_with_their_own_labels():
    rows, grid = np.arange(20), Grid((3,), (1.0,), (0.0,), 20)
    curves, _, _ = search(np.eye(20, dtype=np.float32), rows[::-1] % 10, rows, rows, grid, seed=0)
    assert curves.accuracy[0, 0, 0, -1] == 1, "X is permuted without y"


def test_many_rows_count_as_few_do():
    """One step from zero over half of them, measured on the other half, as float64 has it."""
    n = 100_003  # no chunks of a round number of rows are of equal size
    rng, y = np.random.default_rng(0), np.arange(n) * 10 // n
    X = (rng.uniform(0, 1, (n, 2)) + np.eye(10, 2)[y]).astype(np.float32)
    train, validation = split(n, 0.5, rng)
    assert len({*train, *validation}) == n, "row numbers in int16?"
    curves, W, b = search(X, y, train, validation, Grid((len(train),), (9.0,), (0.0,), 1), seed=0)

    D = 9 * (np.eye(10)[y[train]] - 0.1) / len(train)
    right = X[train].T @ D, D.sum(axis=0)
    assert_same((W[..., 0, 0, 0], b[..., 0, 0, 0]), right, "row numbers in int16?")
    Z, labels = X[validation] @ right[0] + right[1], y[validation]
    losses = np.log(np.exp(Z).sum(axis=1)) - Z[range(len(Z)), labels]
    right = losses.mean(), (Z.argmax(axis=1) == labels).mean()
    said = "only the first rows are measured? The mean of the means of chunks of unequal size?"
    np.testing.assert_allclose(np.ravel(curves), right, atol=1e-4, err_msg=said)


@pytest.mark.parametrize("workers", [1, 3])
def test_as_many_stacks_train_at_once_as_there_are_workers(examples, monkeypatch, workers):
    """Each waits for the others, which would be in vain if there were fewer."""
    together, threads = threading.Barrier(workers, timeout=10), set()

    def train_together(*arguments):
        threads.add(threading.get_ident())
        together.wait()
        return sgd(*arguments)

    monkeypatch.setattr(softmax_sgd, "sgd", train_together)
    try:
        search(*examples, Grid(range(10, 16), (0.1,), (0.0,), 1), seed=0, workers=workers)
    except threading.BrokenBarrierError:
        pytest.fail(f"never do {workers} stacks train at once: `workers` is ignored")
    assert len(threads) == workers, "more stacks than `workers` train at once: it is ignored"


@pytest.mark.parametrize(("most", "stack"), [(16, 6), (4, 3)])
def test_progress_counts_every_point(examples, monkeypatch, most, stack):
    """After each epoch of a stack: the six models of a minibatch size, or half of them."""
    calls = []
    monkeypatch.setattr(softmax_sgd, "MAX_STACK", most)
    curves, _, _ = search(*examples, GRID, 0, 2, lambda *call: calls.append(call))
    done, total, lowest = zip(*calls)
    assert list(done) == list(range(stack, 97, stack)), "more stacks than need be, or uneven ones"
    assert set(total) == {96}
    assert lowest[-1] == curves.cross_entropy.min()


def test_an_interrupted_search_ends_at_once(examples, monkeypatch):
    """What waits is neither trained nor measured, and no thread is left."""
    measured, threads = [], set(threading.enumerate())

    def measure_slowly(*model):
        measured.append(time.sleep(0.01))
        return evaluate(*model)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(softmax_sgd, "evaluate", measure_slowly)
    with pytest.raises(KeyboardInterrupt) as _interrupted:  # which keeps the workers' pool alive
        search(*examples, GRID._replace(batch_sizes=range(1, 51)), 3, 2, interrupt)
    assert len(measured) < 50
    assert set(threading.enumerate()) <= threads


# --- The winner -----------------------------------------------------------------------------------


def curves_of(cross_entropy):
    return Curves(np.array(cross_entropy, float), np.zeros(np.shape(cross_entropy)))


@pytest.mark.parametrize(
    ("tied", "wins"),
    [
        (((0, 0, 1, 3), (1, 1, 0, 2)), (1, 1, 0, 2)),
        (((0, 0, 0, 2), (0, 1, 1, 2)), (0, 1, 1, 2)),
        (((0, 0, 1, 2), (1, 1, 1, 2)), (1, 1, 1, 2)),
        (((0, 0, 1, 2), (0, 1, 1, 2)), (0, 0, 1, 2)),
    ],
    ids=["fewer epochs", "larger alpha", "larger minibatch", "smaller rate"],
)
def test_ties_go_to(tied, wins):
    cross_entropy = np.ones((2, 2, 2, 4))
    for at in tied:
        cross_entropy[at] = 0.5
    assert best_point(curves_of(cross_entropy)) == wins


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_model_with_a_point_that_is_not_finite_has_diverged(bad):
    cross_entropy = np.array([[[[0.1, 0.2, bad], [0.5, 0.4, 0.6]]]])
    assert best_point(curves_of(cross_entropy)) == (0, 0, 1, 1)
    with pytest.raises(FloatingPointError, match="every model diverged"):
        best_point(curves_of(cross_entropy[:, :, :1]))
