"""Lemmas on the split, the grid search and the choice of the winner."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softmax_sgd import (
    STACK,
    Curves,
    Grid,
    best_point,
    evaluate,
    minibatches,
    search,
    sgd,
    split,
)

GRID = Grid(batch_sizes=(8, 15), learning_rates=(0.05, 0.5), alphas=(0.0, 0.01, 0.1), epochs=6)


@pytest.fixture(scope="module")
def examples():
    """Two hundred noisy examples in float32, on which models overfit: X, y, train, validation."""
    rng = np.random.default_rng(7)
    X = rng.uniform(0, 1, (200, 12)).astype(np.float32)
    y = (X @ rng.normal(0, 1, (12, 10)) + rng.normal(0, 1, (200, 10))).argmax(axis=1)
    return X, y, *split(200, 0.2, np.random.default_rng(0))


@given(n=st.integers(2, 300), fraction=st.floats(0.01, 0.99), seed=st.integers(0, 2**32))
def test_the_split_is_a_partition(n, fraction, seed):
    train, validation = split(n, fraction, np.random.default_rng(seed))
    assert sorted([*train, *validation]) == list(range(n)), "rows shared by both sides, or lost"
    assert abs(len(validation) - n * fraction) <= 0.5


def test_the_split_is_random_and_repeats_with_its_seed():
    (first, _), (again, _), (other, _) = (
        split(100, 0.2, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert (first == again).all()
    assert (first != other).any()
    assert (np.sort(first) != first).any(), "the files' own order was kept"


def test_curves_are_those_of_each_model_trained_alone(examples):
    """On the documented streams of minibatches; so nothing leaks from one grid point to another."""
    X, y, train, validation = examples
    curves, _ = search(X, y, train, validation, GRID, seed=3)
    for i, j, k in np.ndindex(2, 2, 3):
        rng = np.random.default_rng([3, GRID.batch_sizes[i]])
        W, b = np.zeros((12, 10), np.float32), np.zeros(10, np.float32)
        for epoch in range(GRID.epochs):
            batches = minibatches(train, GRID.batch_sizes[i], rng)
            W, b = sgd(W, b, X, y, GRID.alphas[k], GRID.learning_rates[j], batches)
            ce, accuracy = evaluate(W, b, X[validation], y[validation])
            np.testing.assert_allclose(curves.cross_entropy[i, j, k, epoch], ce, rtol=1e-5)
            np.testing.assert_allclose(curves.accuracy[i, j, k, epoch], accuracy, atol=0.026)


def test_weights_kept_are_those_of_the_best_epoch(examples):
    X, y, train, validation = examples
    curves, weights = search(X, y, train, validation, GRID, seed=3)
    best = curves.cross_entropy.min(axis=-1)
    assert (curves.cross_entropy.argmin(axis=-1) < GRID.epochs - 1).any(), "no model overfits"
    assert set(weights) == set(np.ndindex(best.shape))
    for model, (W, b) in weights.items():
        ce, _ = evaluate(W, b, X[validation], y[validation])
        np.testing.assert_allclose(ce, best[model], rtol=1e-6, err_msg="not the best epoch's")


def test_of_equal_epochs_the_first_keeps_its_weights(examples):
    """A rate too small to change the cross-entropy still moves the weights, epoch by epoch."""
    X, y, train, _ = examples
    grid = Grid((160,), (1e-20,), (0.0,), 3)
    curves, weights = search(*examples, grid, seed=0)
    assert np.ptp(curves.cross_entropy) == 0
    W, b = np.zeros((12, 10, 1), np.float32), np.zeros((10, 1), np.float32)
    batches = minibatches(train, 160, np.random.default_rng([0, 160]))
    W, b = sgd(W, b, X, y, 0.0, 1e-20, batches)
    np.testing.assert_array_equal(weights[0, 0, 0][0], W[..., 0])
    np.testing.assert_array_equal(weights[0, 0, 0][1], b[..., 0])


@pytest.mark.parametrize("workers", [2, 5])
def test_the_number_of_workers_changes_not_one_bit(examples, workers):
    one, many = (search(*examples, GRID, seed=3, workers=w) for w in (1, workers))
    np.testing.assert_array_equal(one[0], many[0])
    for model, arrays in one[1].items():
        for mine, other in zip(arrays, many[1][model], strict=True):
            np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_are_threads_beside_the_main_one(examples, workers):
    before, seen = threading.active_count(), []
    more = {"workers": workers} if workers > 1 else {}
    search(*examples, GRID, 3, **more, progress=lambda *_: seen.append(threading.active_count()))
    assert max(seen) - before == workers


def test_the_rest_of_the_grid_changes_nothing_but_rounding(examples):
    whole, _ = search(*examples, GRID, seed=3)
    part, _ = search(*examples, Grid((15,), (0.5,), (0.01,), 4), seed=3)
    for mine, other in zip(part, whole, strict=True):
        np.testing.assert_allclose(mine[0, 0, 0], other[1, 1, 1, :4], rtol=1e-5)


def test_the_seed_changes_the_minibatches(examples):
    one, other = (search(*examples, GRID, seed=seed)[0].cross_entropy for seed in (1, 2))
    assert (one != other).all()


def test_a_search_wider_than_a_stack_is_whole(examples):
    grid = Grid((20,), tuple(np.linspace(0.01, 0.1, STACK + 1)), (0.0,), 2)
    curves, weights = search(*examples, grid, seed=0, workers=2)
    assert np.isfinite(curves.cross_entropy).all()
    assert len(weights) == STACK + 1


def test_the_validation_images_do_not_train(examples):
    """Other validation images change what is measured, and no weight."""
    X, y, train, validation = examples
    grid = GRID._replace(epochs=1)  # so that the weights kept are those of the same epoch
    X_other = X.copy()
    X_other[validation] = X[validation][::-1]
    (curves, weights), (others, same) = (
        search(x, y, train, validation, grid, 0) for x in (X, X_other)
    )
    assert (curves.cross_entropy != others.cross_entropy).all()
    for model, arrays in weights.items():
        for mine, other in zip(arrays, same[model], strict=True):
            np.testing.assert_array_equal(mine, other, err_msg="validation reached the training")


def test_progress_counts_every_point(examples):
    calls = []
    curves, _ = search(*examples, GRID, 0, 2, lambda *call: calls.append(call))
    done, total, lowest = zip(*calls, strict=True)
    assert set(total) == {curves.cross_entropy.size} == {done[-1]}
    assert list(done) == sorted(set(done))
    assert lowest[-1] == curves.cross_entropy.min()


def test_a_model_that_diverges_is_never_chosen(examples):
    grid = GRID._replace(learning_rates=(0.05, 1e30), alphas=(0.0, 0.1))
    curves, _ = search(*examples, grid, seed=0)
    calm, _ = search(*examples, grid._replace(learning_rates=(0.05,)), seed=0)
    assert not np.isfinite(curves.cross_entropy[:, 1, 1, -1]).any()
    assert best_point(curves)[1] == 0
    np.testing.assert_allclose(curves.cross_entropy[:, 0], calm.cross_entropy[:, 0], rtol=1e-5)


def curves_of(cross_entropy):
    return Curves(np.array(cross_entropy, float), np.zeros(np.shape(cross_entropy)))


@given(st.integers(0, 2**32))
def test_the_winner_is_the_minimum_of_the_curves(seed):
    cross_entropy = np.random.default_rng(seed).uniform(0, 1, (2, 3, 2, 5))
    assert cross_entropy[best_point(curves_of(cross_entropy))] == cross_entropy.min()


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


@pytest.mark.data
def test_a_small_search_on_the_real_data_reaches_83_percent(real):
    train, validation = split(len(real.X), 0.2, np.random.default_rng(0))
    grid = Grid((64, 256), (0.05, 0.1), (0.0, 1e-4), 8)
    curves, weights = search(real.X, real.y, train, validation, grid, seed=0, workers=2)
    i, j, k, _ = best_point(curves)
    ce, accuracy = evaluate(*weights[i, j, k], real.X_test, real.y_test)
    assert 0.83 <= accuracy <= 0.85, "a linear model above 85% has seen the test set"
    assert ce <= 0.48
