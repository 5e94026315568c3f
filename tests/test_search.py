"""Lemmas on the split, the grid search and the choice of the winner."""

import threading
import time
import tracemalloc
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import assert_right
from hypothesis import given
from hypothesis import strategies as st

import softmax_sgd
from softmax_sgd import (
    Curves,
    Grid,
    Progress,
    best_point,
    described,
    evaluate,
    minibatches,
    point,
    search,
    sgd,
    split,
    stacks_of,
)

# More epochs than by default. The 15 models of a batch size, at most 4 in a stack, make stacks of 4
# and of 3.
GRID = Grid((7, 24), (0.003, 0.05, 0.6), (0.0, 0.001, 0.01, 0.1, 0.4), 70)
MAX_STACK, SEED = 4, 3
SHAPE = tuple(len(axis) for axis in GRID[:3])


@pytest.fixture(scope="session")
def examples():
    """Noisy examples in float64, on which models overfit: X, y, train, validation."""
    rng = np.random.default_rng(7)
    X = rng.uniform(0, 1, (130, 12))
    y = (X @ rng.normal(0, 1, (12, 10)) + rng.normal(0, 0.5, (130, 10))).argmax(axis=1)
    return X, y, *split(130, 0.2, np.random.default_rng(0))


@pytest.fixture(scope="session")
def found(examples):
    """What the search finds on GRID: curves, W and b."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(softmax_sgd, "MAX_STACK", MAX_STACK)
        curves, W, b = search(*examples, GRID, SEED, workers=2)
        return SimpleNamespace(curves=curves, W=W, b=b)


def named(model):
    """The hyperparameters of the model at these indices, in words."""
    i, j, k = model
    return (
        f"batch size {GRID.batch_sizes[i]}, learning rate {GRID.learning_rates[j]}, "
        f"alpha {GRID.alphas[k]}"
    )


# --- The split ------------------------------------------------------------------------------------


@given(n=st.integers(2, 300), fraction=st.floats(0.01, 0.99), seed=st.integers(0, 2**32))
def test_the_split_is_a_partition(n, fraction, seed):
    train, validation = split(n, fraction, np.random.default_rng(seed))
    assert not set(train) & set(validation), "rows shared by both sides"
    assert sorted([*train, *validation]) == list(range(n)), "rows were lost, or repeated"
    assert abs(len(validation) - n * fraction) <= 0.5, "not this fraction for validation"


def test_the_split_is_random_and_repeats_with_its_seed():
    first, again, other = (split(100, 0.2, np.random.default_rng(seed))[0] for seed in (1, 1, 2))
    assert (first == again).all(), "the split does not repeat"
    assert (np.sort(first) != first).any(), "the files' own order was kept"
    assert (first != other).any(), "the split ignores the seed"


def test_the_first_rows_of_the_permutation_validate():
    """One of many right choices: the committed results hold for this one."""
    order = np.random.default_rng(1).permutation(10)
    train, validation = split(10, 0.2, np.random.default_rng(1))
    other_end = {"train": order[:8], "validation": order[8:]}
    assert_right(
        {"train": train, "validation": validation},
        {"train": order[2:], "validation": order[:2]},
        {"the other end validates: as good a split, but not that of the results": other_end},
    )


# --- The stacks -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axes", "sizes"),
    [
        ((1, 1, 1), [1]),
        ((1, 2, 1), [1, 1]),
        ((1, 4, 4), [8, 8]),
        ((2, 4, 4), [16, 16]),
        ((4, 4, 4), [16, 16, 16, 16]),
        ((1, 17, 1), [9, 8]),
        ((2, 1, 17), [9, 8, 9, 8]),
        ((3, 5, 7), [12, 12, 11, 12, 12, 11, 12, 12, 11]),
    ],
)
def test_stacks_are_as_few_and_as_even_as_may_be_but_at_least_two(axes, sizes):
    n_sizes, n_rates, n_alphas = axes
    grid = Grid(range(1, n_sizes + 1), range(1, n_rates + 1), range(n_alphas), 1)
    stacks = stacks_of(grid, 0)
    times, rates, alphas = np.zeros((3, *axes))
    for stack in stacks:
        i = grid.batch_sizes.index(stack.batch_size)
        inside = np.zeros(axes, bool)
        inside[stack.at] = True
        assert inside[i].sum() == len(stack.alphas), "indices of another batch size"
        times[stack.at] += 1
        rates[stack.at], alphas[stack.at] = stack.learning_rates, stack.alphas
    assert (times == 1).all(), f"{(times == 0).sum()} models of {times.size} are in no stack"
    ours = {"learning rates": rates, "alphas": alphas}
    _, right_rates, right_alphas = np.meshgrid(*grid[:3], indexing="ij")
    right = {"learning rates": right_rates, "alphas": right_alphas}
    exchanged = {"learning rates": right_alphas, "alphas": right_rates}
    assert_right(ours, right, {"they were exchanged": exchanged})
    assert [len(stack.alphas) for stack in stacks] == sizes, "sizes of the stacks"


# --- What trains ----------------------------------------------------------------------------------


def training_calls(monkeypatch, examples, grid, seed=SEED):
    """The calls of `sgd` in a search: a list for each stack, in the order of its epochs."""
    calls = []

    def record(W, b, X, y, alpha, learning_rate, batches):
        batches = list(batches)
        trained = sgd(W, b, X, y, alpha, learning_rate, batches)
        calls.append(
            SimpleNamespace(
                start={"W": W.copy(), "b": b.copy()},
                alpha=np.copy(alpha),
                learning_rate=np.copy(learning_rate),
                batch_size=len(batches[0]),
                order=np.concatenate(batches).tolist(),
                end=dict(zip("Wb", trained)),
            )
        )
        return trained

    monkeypatch.setattr(softmax_sgd, "sgd", record)
    search(*examples, grid, seed, workers=1)  # one worker trains the stacks in turn
    n_stacks = len(stacks_of(grid, seed))
    assert len(calls) == n_stacks * grid.epochs, "not one call of sgd for each stack and epoch"
    return [calls[s::n_stacks] for s in range(n_stacks)]


SHORT = Grid((7, 24), (0.05, 0.5), (0.0, 0.1), 4)


def test_every_epoch_trains_on_the_training_rows_in_a_new_order(monkeypatch, examples):
    _, _, train, validation = examples
    for calls in training_calls(monkeypatch, examples, SHORT):
        for call in calls:
            strangers = sorted(set(call.order) & set(validation))
            assert strangers == [], "these rows of the validation set train"
            assert sorted(call.order) == sorted(train), "not each training row once"
        orders = [call.order for call in calls]
        repeated = [e + 1 for e in range(1, len(orders)) if orders[e] in orders[:e]]
        assert repeated == [], "these epochs repeat the order of one before"


def test_the_order_depends_on_the_seed_and_the_batch_size_alone(monkeypatch, examples):
    def orders_by_size(grid, seed):
        calls = training_calls(monkeypatch, examples, grid, seed)
        orders = {}
        for epochs in calls:
            orders.setdefault(epochs[0].batch_size, []).append([call.order for call in epochs])
        return orders

    both, other_seed = orders_by_size(SHORT, 0), orders_by_size(SHORT, 1)
    alone = orders_by_size(SHORT._replace(batch_sizes=(24,)), 0)
    assert alone[24][0] == alone[24][1], "two stacks of one batch size train in different orders"
    assert both[24][0] == alone[24][0], (
        "batch size 7 in the grid changes the order of batch size 24"
    )
    assert both[24][0] != both[7][0], "all batch sizes train in the same order"
    assert both[24][0] != other_seed[24][0], "the order ignores the seed"


def test_training_starts_from_zero_and_goes_on_where_it_was(monkeypatch, examples):
    for calls in training_calls(monkeypatch, examples, SHORT._replace(epochs=14)):
        for name in "Wb":
            largest = abs(calls[0].start[name]).max()
            assert largest == 0, f"{name} starts with values up to {largest:.2g}, not at zero"
        for epoch, (before, after) in enumerate(pairwise(calls), start=2):
            for name in "Wb":
                same = np.array_equal(after.start[name], before.end[name])
                assert same, f"{name} of epoch {epoch} does not start where epoch {epoch - 1} ended"


def test_every_epoch_has_the_same_learning_rates_and_alphas(monkeypatch, examples):
    """For longer than by default: there is no schedule."""
    for calls in training_calls(monkeypatch, examples, GRID._replace(batch_sizes=(24,))):
        for name in ("learning_rate", "alpha"):
            first = getattr(calls[0], name)
            for epoch, call in enumerate(calls, start=1):
                ours = getattr(call, name)
                same = np.array_equal(ours, first)
                assert same, f"{name} is {first} in epoch 1, and {ours} in epoch {epoch}"


def test_float32_images_train_float32_weights(monkeypatch, examples):
    X, *rest = examples
    calls = training_calls(monkeypatch, (X.astype(np.float32), *rest), SHORT)
    arrays = [(epoch.start, epoch.end) for epochs in calls for epoch in epochs]
    dtypes = {str(array.dtype) for pair in arrays for state in pair for array in state.values()}
    assert dtypes == {"float32"}


def test_images_train_with_their_own_labels():
    rows, grid = np.arange(20), Grid((3,), (1.0,), (0.0,), 20)
    curves, _, _ = search(np.eye(20, dtype=np.float32), rows[::-1] % 10, rows, rows, grid, seed=0)
    assert curves.accuracy[0, 0, 0, -1] == 1, "20 images are not learnt: X is permuted without y"


# --- What comes of it -----------------------------------------------------------------------------

PLAIN_MISTAKES = [
    "the learning rate is halved every 20 epochs",
    "the learning rate is divided by 10 every 30 epochs",
    "the learning rate is divided by the number of the epoch",
    "the learning rate is divided by the root of the number of the epoch",
    "the curves hold the regularised loss",
    "the training images are evaluated",
    "each epoch is evaluated before it trains",
    "the bias is dropped after each epoch",
]


def train_alone(examples, batch_size, learning_rate, alpha, mistake=None):
    """(W, b, cross-entropy, accuracy) after each epoch of one model: a plain loop of `sgd`."""
    X, y, train, validation = examples
    W, b = np.zeros((X.shape[1], 10)), np.zeros(10)
    rng = np.random.default_rng([SEED, batch_size])
    judged = train if mistake == "the training images are evaluated" else validation
    epochs = []
    for epoch in range(1, GRID.epochs + 1):
        rate = learning_rate
        if mistake == "the learning rate is halved every 20 epochs":
            rate *= 0.5 ** ((epoch - 1) // 20)
        if mistake == "the learning rate is divided by 10 every 30 epochs":
            rate *= 0.1 ** ((epoch - 1) // 30)
        if mistake == "the learning rate is divided by the number of the epoch":
            rate /= epoch
        if mistake == "the learning rate is divided by the root of the number of the epoch":
            rate /= epoch**0.5
        before = W, b
        W, b = sgd(W, b, X, y, alpha, rate, minibatches(train, batch_size, rng))
        if mistake == "the bias is dropped after each epoch":
            b = 0 * b
        evaluated = before if mistake == "each epoch is evaluated before it trains" else (W, b)
        cross_entropy, accuracy = evaluate(*evaluated, X[judged], y[judged])
        if mistake == "the curves hold the regularised loss":
            cross_entropy = cross_entropy + alpha / 2 * (W**2).sum()
        epochs.append((W, b, cross_entropy, accuracy))
    return epochs


def curve(epochs):
    return np.array([cross_entropy for _, _, cross_entropy, _ in epochs])


@pytest.fixture(scope="session")
def alone(examples):
    """Each model of GRID, trained alone."""
    return {
        (i, j, k): train_alone(
            examples, GRID.batch_sizes[i], GRID.learning_rates[j], GRID.alphas[k]
        )
        for i, j, k in np.ndindex(SHAPE)
    }


def explain(examples, alone, model, ours):
    """Why the curve of a model is not that of a plain loop, as far as can be computed."""
    i, j, k = model
    hyperparameters = GRID.batch_sizes[i], GRID.learning_rates[j], GRID.alphas[k]
    for mistake in PLAIN_MISTAKES:
        wrong = curve(train_alone(examples, *hyperparameters, mistake))
        if np.allclose(ours, wrong, 1e-9):
            return f"this is what comes out if {mistake}"
    for other, epochs in alone.items():
        if np.allclose(ours, curve(epochs), 1e-9):
            return f"this is the model of {named(other)}"
    if np.isnan(ours).all():
        return "this model was never trained"
    right = np.isclose(ours, curve(alone[model]), 1e-9)
    first = right.argmin()
    if len(set(ours[first:])) == 1 < len(ours[first:]):
        return f"right until epoch {first}, then it stays at {ours[first]}: does it stop early?"
    return f"right until epoch {first}, then {ours[first]}, not {curve(alone[model])[first]}"


def test_each_model_is_a_plain_loop_of_sgd(examples, found, alone):
    """From zero, by its own hyperparameters, for longer than by default."""
    for model, epochs in alone.items():
        ours = found.curves.cross_entropy[model]
        if not np.allclose(ours, curve(epochs), 1e-9):
            pytest.fail(f"{named(model)}: {explain(examples, alone, model, ours)}", pytrace=False)
        accuracy = [accuracy for *_, accuracy in epochs]
        np.testing.assert_array_equal(found.curves.accuracy[model], accuracy, "validation accuracy")


def test_the_weights_kept_are_those_of_the_lowest_cross_entropy(found, alone):
    """Some models get better until some epoch, then worse."""
    best_epochs = found.curves.cross_entropy.argmin(axis=-1)
    for model, epochs in alone.items():
        best = best_epochs[model]
        W = found.W[(..., *model)]
        same = [e + 1 for e, (w, *_) in enumerate(epochs) if np.allclose(W, w, 1e-9, 1e-9)]
        others = [named(m) for m in alone if np.allclose(W, alone[m][best_epochs[m]][0], 1e-9)]
        assert best + 1 in same, (
            f"{named(model)}: lowest at epoch {best + 1}; the weights kept are those of its epochs "
            f"{same}, and of {others} at its best epoch"
        )
        b_right = np.allclose(found.b[(..., *model)], epochs[best][1], 1e-9, 1e-9)
        assert b_right, f"{named(model)}: b is not that of epoch {best + 1}, though W is"
    assert ((best_epochs > 5) & (best_epochs < 55)).any(), "this test needs a model that overfits"


def test_the_weights_kept_give_exactly_the_cross_entropy_reported(examples, found, monkeypatch):
    """To the last bit, when the same stacks are evaluated again."""
    X, y, _, validation = examples
    monkeypatch.setattr(softmax_sgd, "MAX_STACK", MAX_STACK)
    for stack in stacks_of(GRID, SEED):
        W, b = found.W[stack.at], found.b[stack.at]
        again, _ = evaluate(W, b, X[validation], y[validation])
        np.testing.assert_array_equal(again, found.curves.cross_entropy.min(axis=-1)[stack.at])


def one_stack(grid, seed):
    """All models of a grid of one batch size in one stack."""
    j, k = np.indices((len(grid.learning_rates), len(grid.alphas))).reshape(2, -1)
    rates, alphas = np.array(grid.learning_rates)[j], np.array(grid.alphas)[k]
    rng = np.random.default_rng([seed, *grid.batch_sizes])
    return [softmax_sgd.Stack(grid.batch_sizes[0], rates, alphas, np.s_[..., 0, j, k], rng)]


def test_a_model_that_diverges_leaves_the_others_of_its_stack_alone(examples):
    """At each step, one model's W is multiplied by -29: soon it overflows. The others go on."""
    X, y, train, validation = examples
    grid, shown = Grid((16,), (0.1, 10.0), (0.0, 3.0), 60), []

    def progress(epochs_done, lowest, best_epoch):
        shown.append(lowest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(softmax_sgd, "stacks_of", one_stack)
        curves, W, b = search(X, y, train, validation, grid, seed=0, progress=progress)
    finite = np.isfinite(curves.cross_entropy[0])
    assert finite[1, 1, 0], "this test needs a model whose first epoch is finite"
    last = curves.cross_entropy[0, 1, 1, -1]
    assert not finite[1, 1, -1], f"a curve that diverges ends in {last}, not in NaN or infinity"
    for j, k in [(0, 0), (0, 1), (1, 0)]:
        assert finite[j, k].all(), f"the model {(j, k)} diverges, because another one does"
        lone = Grid((16,), grid.learning_rates[j : j + 1], grid.alphas[k : k + 1], 60)
        right, _, _ = search(X, y, train, validation, lone, seed=0)
        np.testing.assert_allclose(
            curves.cross_entropy[0, j, k], right.cross_entropy[0, 0, 0], rtol=1e-9
        )
    kept, _ = evaluate(W[..., 0, 1, 1], b[..., 0, 1, 1], X[validation], y[validation])
    lowest = np.nanmin(curves.cross_entropy[0, 1, 1])
    assert kept == pytest.approx(lowest), "the weights kept are not those of its best epoch"
    assert shown[-1][0, 1, 1] == lowest, "progress forgets its lowest cross-entropy"


@pytest.mark.filterwarnings("error")
def test_a_model_that_diverges_causes_no_warning(examples, monkeypatch):
    """Neither while it trains, nor when it is evaluated: here with weights that are infinite."""
    monkeypatch.setattr(softmax_sgd, "sgd", lambda W, b, *rest: (W + np.inf, b))
    curves, _, _ = search(*examples, Grid((16,), (0.1,), (0.0,), 2), seed=0)
    assert np.isnan(curves.cross_entropy).all()


def test_of_equal_epochs_the_first_keeps_its_weights(examples):
    """A rate too small to change the cross-entropy still moves the weights, epoch by epoch."""
    one, many = (search(*examples, Grid((160,), (1e-20,), (0.0,), n), seed=0) for n in (1, 3))
    assert np.ptp(many[0].cross_entropy) == 0
    epochs = {
        f"the weights of epoch {e} were kept": {"W": one[1] * e, "b": one[2] * e} for e in (2, 3)
    }
    ours, first = ({"W": W, "b": b} for _, W, b in (many, one))
    assert_right(ours, first, epochs, rtol=1e-4, atol=0)


def test_the_smallest_gain_counts(examples):
    """Each epoch gains less than 1e-6; the weights kept are those of the last one."""
    curves, W, b = search(*examples, Grid((160,), (1e-7,), (0.0,), 3), seed=0)
    gains = -np.diff(curves.cross_entropy[0, 0, 0])
    assert (gains > 0).all(), "this test needs a cross-entropy that falls in each epoch"
    assert (gains < 1e-6).all(), "this test needs small gains"
    _, W_one, b_one = search(*examples, Grid((160,), (1e-7,), (0.0,), 1), seed=0)
    first = {"the weights of epoch 1 were kept": {"W": W_one, "b": b_one}}
    assert_right({"W": W, "b": b}, {"W": 3 * W_one, "b": 3 * b_one}, first, rtol=1e-3, atol=0)


@pytest.mark.parametrize("workers", [1, 3, 5])
def test_workers_change_nothing(examples, found, monkeypatch, workers):
    monkeypatch.setattr(softmax_sgd, "MAX_STACK", MAX_STACK)
    curves, W, b = search(*examples, GRID, SEED, workers)
    said = f"with {workers} workers, and with 2"
    np.testing.assert_array_equal(curves, found.curves, f"curves {said}")
    np.testing.assert_array_equal(W, found.W, f"W {said}")
    np.testing.assert_array_equal(b, found.b, f"b {said}")


def test_the_validation_images_do_not_train(examples):
    """Other validation images change what is measured, and no weight."""
    X, y, train, validation = examples
    grid = SHORT._replace(epochs=1)  # so that the weights kept are those of the same epoch
    X_other = X.copy()
    X_other[validation] = X[validation][::-1]
    ours, others = (search(x, y, train, validation, grid, seed=0) for x in (X, X_other))
    assert (ours[0].cross_entropy != others[0].cross_entropy).all(), "not measured on validation"
    assert np.array_equal(ours[1], others[1]), "W depends on the validation images"
    assert np.array_equal(ours[2], others[2]), "b depends on the validation images"


def test_many_rows_count_as_few_do():
    """One step from zero over half of them, measured on the other half, as float64 has it."""
    n = 100_003  # no chunks of a round number of rows are of equal size
    rng, y = np.random.default_rng(0), np.arange(n) * 10 // n
    X = (rng.uniform(0, 1, (n, 2)) + np.eye(10, 2)[y]).astype(np.float32)
    train, validation = split(n, 0.5, rng)
    rows = len({*train, *validation})
    assert rows == n, f"{rows} of {n} rows are left, numbered from {train.min()} to {train.max()}"
    curves, W, b = search(X, y, train, validation, Grid((len(train),), (9.0,), (0.0,), 1), seed=0)

    D = 9 * (np.eye(10)[y[train]] - 0.1) / len(train)
    right = {"W": X[train].T @ D, "b": D.sum(axis=0)}
    ours = {"W": W[..., 0, 0, 0], "b": b[..., 0, 0, 0]}
    assert_right(ours, right, {}, rtol=1e-4, atol=1e-6)
    Z, labels = X[validation] @ right["W"] + right["b"], y[validation]
    losses = np.log(np.exp(Z).sum(axis=1)) - Z[range(len(Z)), labels]
    right = {"cross-entropy": losses.mean(), "accuracy": (Z.argmax(axis=1) == labels).mean()}
    ours = {name: c[0, 0, 0, 0] for name, c in zip(right, curves)}
    assert_right(ours, right, {}, rtol=0, atol=1e-4)


# --- The winner -----------------------------------------------------------------------------------


def curves_of(cross_entropy):
    return Curves(np.array(cross_entropy, float), np.zeros(np.shape(cross_entropy)))


@pytest.mark.parametrize("lowest", [0.49, 0.4999999])
def test_the_lowest_cross_entropy_wins_however_close(lowest):
    cross_entropy = np.full((4, 5, 6, 7), 0.5)
    cross_entropy[2, 3, 4, 5] = lowest
    accuracy = np.zeros(cross_entropy.shape)
    accuracy[0, 0, 0, 0] = 1
    assert best_point(Curves(cross_entropy, accuracy)) == (2, 3, 4, 5), "not the lowest"


@pytest.mark.parametrize(
    ("tied", "wins"),
    [
        (((0, 0, 1, 3), (1, 1, 0, 2)), (1, 1, 0, 2)),
        (((0, 0, 0, 2), (0, 1, 1, 2)), (0, 1, 1, 2)),
        (((0, 0, 1, 2), (1, 1, 1, 2)), (1, 1, 1, 2)),
        (((0, 0, 1, 2), (0, 1, 1, 2)), (0, 0, 1, 2)),
        (((0, 0, 1, 2), (1, 0, 0, 2)), (0, 0, 1, 2)),
    ],
    ids=[
        "fewer epochs",
        "larger alpha",
        "larger minibatch",
        "smaller rate",
        "larger alpha before larger minibatch",
    ],
)
def test_ties_go_to(tied, wins):
    cross_entropy = np.ones((2, 2, 2, 4))
    for at in tied:
        cross_entropy[at] = 0.5
    found = best_point(curves_of(cross_entropy))
    assert found == wins, f"of the equally good points {tied}, {found} wins"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_model_with_a_point_that_is_not_finite_has_diverged(bad):
    cross_entropy = np.array([[[[0.1, 0.2, bad], [0.5, 0.4, 0.6]]]])
    found = best_point(curves_of(cross_entropy))
    assert found == (0, 0, 1, 1), f"a point of a model that diverged later wins: {found}"
    with pytest.raises(FloatingPointError, match="every model diverged"):
        best_point(curves_of(cross_entropy[:, :, :1]))


# --- Workers and progress -------------------------------------------------------------------------


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


def test_progress_tells_the_best_of_the_epochs_done(examples, found):
    """Before the first epoch and after each; what it does with its arrays changes nothing."""
    calls = []

    def progress(epochs_done, lowest, best_epoch):
        calls.append((epochs_done, lowest.copy(), best_epoch.copy()))
        lowest[:], best_epoch[:] = -1, -1

    grid = GRID._replace(epochs=20)
    curves, _, _ = search(*examples, grid, SEED, progress=progress)
    assert [epochs_done for epochs_done, _, _ in calls] == list(range(21)), "epochs done"
    _, lowest, best_epoch = calls[0]
    assert (lowest == np.inf).all(), "before the first epoch, nothing was measured"
    assert (best_epoch == 0).all(), "before the first epoch, there is no best one"
    for epochs_done, lowest, best_epoch in calls[1:]:
        done = curves.cross_entropy[..., :epochs_done]
        when = f"after {epochs_done} epochs"
        assert np.isfinite(lowest).all(), f"{when}, the lowest cross-entropy is not finite"
        assert (lowest == done.min(axis=-1)).all(), f"{when}, not the lowest so far"
        assert (best_epoch == done.argmin(axis=-1) + 1).all(), f"{when}, not the epoch of it"
    same = np.allclose(curves.cross_entropy, found.curves.cross_entropy[..., :20], 1e-9)
    assert same, "progress gets the arrays of the search itself, and can change them"


def test_the_line_of_progress_names_the_winner(examples):
    progress = Progress(GRID)
    curves, _, _ = search(*examples, GRID, SEED, progress=progress)
    i, j, k, e = best_point(curves)
    assert i not in (j, k), "this test needs a winner of indices that differ"
    assert j != k, "this test needs a winner of indices that differ"
    wanted = described(point(GRID, i, j, k, e + 1))
    assert wanted in progress.best_so_far, "another point than that of best_point"
    assert f"{curves.cross_entropy[i, j, k, e]:.4f}" in progress.best_so_far


def test_an_interrupted_search_ends_at_once(examples, monkeypatch):
    """What waits is neither trained nor measured, and no thread is left."""
    measured, threads, workers = [], set(threading.enumerate()), 2

    def measure_slowly(*model):
        measured.append(time.sleep(0.01))
        return evaluate(*model)

    def interrupt(epochs_done, *_):
        if epochs_done == 1:
            measured.clear()
            raise KeyboardInterrupt

    monkeypatch.setattr(softmax_sgd, "evaluate", measure_slowly)
    grid = SHORT._replace(batch_sizes=range(1, 51))
    with pytest.raises(KeyboardInterrupt) as _interrupted:  # which keeps the workers' pool alive
        search(*examples, grid, SEED, workers, interrupt)
    assert len(measured) <= workers, "stacks that waited were measured after the interruption"
    left = set(threading.enumerate()) - threads
    assert left == set(), "threads are left"


def test_memory_grows_with_what_was_trained(examples):
    """A billion epochs are as good as no limit, until someone interrupts."""

    def interrupt(epochs_done, *_):
        if epochs_done == 3:
            raise KeyboardInterrupt

    tracemalloc.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            search(*examples, SHORT._replace(epochs=10**9), SEED, progress=interrupt)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10**7, f"{peak} bytes for three epochs of a billion"


# --- What it takes --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, bool])
def test_images_may_be_of_integers(examples, dtype):
    X, *rest = examples
    X = (X > 0.5).astype(dtype)
    ours, right = (search(x, *rest, SHORT, SEED) for x in (X, X.astype(np.float64)))
    assert ours[1].dtype in (np.float32, np.float64), f"W is {ours[1].dtype}"
    for one, other in zip(ours, right):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_weights_are_as_precise_as_the_images(examples, dtype):
    X, *rest = examples
    _, W, b = search(X.astype(dtype), *rest, SHORT, SEED)
    assert W.dtype == dtype, f"W is {W.dtype} for images of {np.dtype(dtype)}"
    assert b.dtype == dtype, f"b is {b.dtype} for images of {np.dtype(dtype)}"


@pytest.mark.parametrize("label", [-1, 10])
def test_labels_that_are_no_class_are_refused(examples, label):
    X, y, *rows = examples
    with pytest.raises(ValueError, match=f"labels.*{label}"):
        search(X, np.where(np.arange(len(y)) == 77, label, y), *rows, SHORT, SEED)


@pytest.mark.parametrize("axis", ["batch_sizes", "learning_rates", "alphas"])
@pytest.mark.parametrize("value", [8, (), ((8,), (16,))])
def test_an_axis_that_is_no_sequence_is_refused(examples, axis, value):
    with pytest.raises(ValueError, match=axis):
        search(*examples, SHORT._replace(**{axis: value}), SEED)
