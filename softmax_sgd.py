"""Softmax regression on Fashion-MNIST, by minibatch SGD and a grid search (CS/DS541, Homework 2).

    python softmax_sgd.py            # --help lists the options

For an image x, the model predicts the probability of each class k:

    ŷ_k = exp z_k / Σ_j exp z_j,    z = Wᵀx + b                                           (1)

Training minimises the regularised cross-entropy of n examples,

    loss(W, b) = −1/n Σ_i log ŷ_{y_i}(x_i) + α/2 ‖W‖²                                     (2)

The last term is not divided by n and does not include the biases b. Let each row of Ŷ hold an
example's probabilities, and the same row of Y its one-hot label. The gradients of the loss (problem
2 of the assignment, derived in report.pdf) are

    dW = Xᵀ(Ŷ − Y)/n + αW,    db = the sum of the rows of (Ŷ − Y)/n                       (3)

One step of SGD with learning rate ε updates W to W − ε dW and b to b − ε db, that is,

    W ← (1 − εα)W − Xᵀ ε(Ŷ − Y)/n,    b ← b − the sum of the rows of ε(Ŷ − Y)/n           (4)

Conventions

    n, m, c    examples, pixels of an image, classes
    K          models in a stack, trained together on the same minibatches
    X, y       (n, m) pixels in 0..1, and (n,) integer labels in 0..c-1
    W, b       (m, c) and (c,); for a stack, (m, c, K) and (c, K)
    dW, db     their gradients, with the same shapes
    alpha, learning_rate    numbers; for a stack, (K,)
    metrics    cross-entropy and accuracy: numbers; for a stack, (K,)

The functions of the model never modify their arguments. They compute in the common dtype of W and
X; in `loss` and `gradients`, the dtype of a NumPy alpha counts, too. Metrics are averaged in
float64. Three things make training fast: one wide matrix product serves a whole stack; logits and
probabilities are stored with the class axis first, as Ŷᵀ (c, n) or (c, K, n), because NumPy is slow
along a short last axis; and besides the matrix products, a step passes over W only twice
(`W *= ...`, `W -= ...`), which matters because if the minibatch is small, W is far larger than the
images, logits and probabilities.
"""

import os
import sys

if __name__ == "__main__":
    # One BLAS thread per worker is fastest. BLAS reads these when NumPy is first imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("MKL_NUM_THREADS", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("VECLIB_MAXIMUM_THREADS", "1")
    # Between NumPy calls the workers wait for Python's lock (the GIL); let it change hands sooner.
    sys.setswitchinterval(0.001)  # seconds; the default is 0.005

import argparse
import itertools
import json
import math
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

from download_data import DATA, FILES, DataError, ensure, folder_name, log, read_npy, run, unusable

import numpy as np  # isort: skip - after download_data, which reports a missing NumPy clearly

CLASSES = 10  # c, for Fashion-MNIST
MAX_STACK = 16  # largest K: larger ones are no faster, and leave too few stacks for the cores

# --- Data -----------------------------------------------------------------------------------------


def load(data_dir: str | os.PathLike) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Read X, y, X_test, y_test from the assignment's four files.

    Images are float32 (n, m) in 0..1: divided by 255 if any pixel exceeds 1. Labels are np.intp
    (n,) in 0..CLASSES-1. Raises DataError, naming the file, if a file holds anything else.
    """
    check_present(Path(data_dir))
    X, y = load_part(data_dir, "train")
    X_test, y_test = load_part(data_dir, "test")
    path = Path(data_dir, "fashion_mnist_test_images.npy")
    if X_test.shape[1] != X.shape[1]:
        raise DataError(f"{path}: {X_test.shape[1]} pixels, but {X.shape[1]} in training")
    highest = X.max()
    if (highest > 1) != (X_test.max() > 1):
        reason = "pixels exceed 1 in only one of the two sets"
        raise DataError(f"{path}: not scaled like the training images: {reason}")
    if highest > 1:
        X /= 255
        X_test /= 255
        if highest < 128:
            log(f"Note: dividing by 255, although no training pixel exceeds {highest:g}")
    else:
        log(f"Note: the images in {data_dir} already look normalised and are used unchanged")
    return X, y, X_test, y_test


def check_present(folder: Path) -> None:
    """Raise DataError, naming all that is missing, unless the folder has the four files."""
    try:
        os.stat(folder)
    except FileNotFoundError:
        raise DataError(f"{folder}: no such folder") from None
    except OSError as error:  # such as: permission denied, the name is too long
        raise unusable(folder, error) from None
    if not folder.is_dir():
        raise DataError(f"{folder}: not a folder")
    missing = [file.name for file in FILES if not os.path.lexists(folder / file.name)]
    if missing:
        raise DataError(
            f"{folder}: missing {', '.join(missing)}. To fetch Fashion-MNIST into this folder: "
            f'python download_data.py --data-dir "{folder}"'
        )


def load_part(data_dir: str | os.PathLike, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Read the images and labels of a part, "train" or "test", with pixels as they are stored."""
    images = Path(data_dir, f"fashion_mnist_{part}_images.npy")
    labels = Path(data_dir, f"fashion_mnist_{part}_labels.npy")
    X, y = read_npy(images), read_npy(labels)
    if X.ndim != 2:
        hint = "; save X.reshape(len(X), -1)" if X.ndim > 2 else ""
        raise DataError(f"{images}: images of shape {X.shape}, not (n, pixels){hint}")
    check_values(images, X, 255, "; pixels may be 0..255 or 0..1, but not standardised")
    if y.ndim != 1:
        hint = ""
        if y.ndim == 2:
            hint = "; save y.ravel()" if 1 in y.shape else "; if one-hot, save y.argmax(axis=1)"
        raise DataError(f"{labels}: labels of shape {y.shape}, not (n,){hint}")
    check_values(labels, y, CLASSES - 1, "; if the classes are numbered from 1, save y - 1")
    if (y % 1).any():
        raise DataError(f"{labels}: not all labels are whole numbers")
    if len(X) != len(y):
        raise DataError(f"{labels}: {len(y)} labels for {len(X)} images")
    return np.ascontiguousarray(X, np.float32), y.astype(np.intp)


def check_values(path: Path, array: np.ndarray, highest: int, hint: str) -> None:
    """Raise DataError unless the array has values, and all are within 0 to `highest`."""
    if array.size == 0:
        raise DataError(f"{path}: empty, of shape {array.shape}")
    low, high = array.min(), array.max()
    if np.isnan(low):
        first = tuple(np.argwhere(np.isnan(array))[0].tolist())
        raise DataError(f"{path}: holds NaN, first at index {first}")
    if low < 0 or high > highest:
        raise DataError(f"{path}: values from {low} to {high}, not within 0 to {highest}{hint}")


# --- Model ----------------------------------------------------------------------------------------


def logits(W, b, X) -> np.ndarray:
    """z of equation (1) minus its maximum over the classes, so that exp cannot overflow.

    Shape (c, n); for a stack, (c, K, n). Subtracting a constant from all z of an example changes
    none of its probabilities.
    """
    Z = X @ W.reshape(len(W), -1)  # (n, m) @ (m, cK)
    Z = np.ascontiguousarray(Z.T)  # copied, because NumPy is fast only along contiguous rows
    Z = Z.reshape(*b.shape, len(X))  # (c, n), or (c, K, n)
    Z += b[..., None]
    Z -= Z.max(axis=0)
    return Z


def softmax(W, b, X) -> np.ndarray:
    """The probabilities ŷ of equation (1), in the shape of `logits`."""
    exp_z = np.exp(logits(W, b, X))
    return exp_z / exp_z.sum(axis=0)


def at_labels(y) -> tuple:
    """An index that selects each example's own class: Z[at_labels(y)] holds each Z[y[i], ..., i].

    Its shape is (n,) if Z is (c, n), and (n, K) if Z is (c, K, n): NumPy puts the axis of the
    examples first, because `...` stands between the two index arrays.
    """
    if y.ndim != 1:
        raise ValueError(f"y has shape {y.shape}, not (n,); for one-hot labels, y.argmax(axis=1)")
    return y, ..., np.arange(len(y))


def evaluate(W, b, X, y) -> tuple[np.ndarray, np.ndarray]:
    """Return (cross-entropy, accuracy).

    The cross-entropy is unregularised: the mean of log(Σ_j exp z_j) - z_y.
    """
    Z, own_class = logits(W, b, X), at_labels(y)
    correct = Z.argmax(axis=0) == y  # (n,), or (K, n)
    losses = np.log(np.exp(Z).sum(axis=0)).T - Z[own_class]  # (n,), or (n, K)
    return losses.mean(axis=0, dtype=np.float64), correct.mean(axis=-1)


def cross_entropy(W, b, X, y) -> np.ndarray:
    """The mean of -log ŷ_y, unregularised."""
    return evaluate(W, b, X, y)[0]


def loss(W, b, X, y, alpha) -> np.ndarray:
    """The regularised cross-entropy (2)."""
    return cross_entropy(W, b, X, y) + alpha / 2 * np.square(W).sum(axis=(0, 1))


def cross_entropy_gradients(W, b, X, y, scale=1) -> tuple[np.ndarray, np.ndarray]:
    """`scale` times the gradients (3) without αW, those of the unregularised cross-entropy.

    `scale` is a number; for a stack, it may be (K,). It multiplies the small Ŷ - Y, not dW.
    """
    D = softmax(W, b, X)
    D[at_labels(y)] -= 1  # (Ŷ - Y)ᵀ: the last axis runs over the examples
    D *= np.asarray(scale, D.dtype)[..., None] / len(X)  # (1,); or (K, 1), to fit (c, K, n)
    dW = X.T @ D.reshape(-1, len(X)).T  # (m, n) @ (n, cK)
    return dW.reshape(W.shape), D.sum(axis=-1)


def gradients(W, b, X, y, alpha) -> tuple[np.ndarray, np.ndarray]:
    """(dW, db) of the loss, by equation (3)."""
    dW, db = cross_entropy_gradients(W, b, X, y)
    return dW + alpha * W, db


# --- Stochastic gradient descent ------------------------------------------------------------------


def minibatches(rows, batch_size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield all `rows` in a new random order, `batch_size` at a time; the last may hold fewer."""
    order = rng.permutation(rows)
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def sgd(W, b, X, y, alpha, learning_rate, batches: Iterable) -> tuple[np.ndarray, np.ndarray]:
    """(W, b) after one step (4) for each batch; a batch is an array of row numbers of X and y."""
    W, b = W.copy(), b.copy()
    # 1 - εα. It is as large as W, because that is faster than broadcasting it in every step.
    shrink = np.full_like(W, 1 - learning_rate * alpha)
    for rows in batches:
        step_W, step_b = cross_entropy_gradients(W, b, X[rows], y[rows], scale=learning_rate)
        W *= shrink
        W -= step_W
        b -= step_b
    return W, b


# --- Grid search ----------------------------------------------------------------------------------


class Grid(NamedTuple):
    """The values to search for each hyperparameter, in ascending order.

    A model is identified by its batch size, learning rate and alpha. A point is a model after a
    number of epochs; every number from 1 to `epochs` is searched.
    """

    batch_sizes: tuple[int, ...] = (8, 16, 32, 64)
    learning_rates: tuple[float, ...] = (0.005, 0.01, 0.02, 0.05)
    alphas: tuple[float, ...] = (0.0, 1e-5, 1e-4, 1e-3)
    epochs: int = 60


class Curves(NamedTuple):
    """Validation metrics, each of shape (batch sizes, learning rates, alphas, epochs)."""

    cross_entropy: np.ndarray
    accuracy: np.ndarray


class Stack(NamedTuple):
    """K models with the same batch size, trained together on the same minibatches."""

    batch_size: int
    learning_rates: np.ndarray  # (K,)
    alphas: np.ndarray  # (K,)
    at: tuple  # A[at] selects these models from A (..., batch sizes, learning rates, alphas)
    rng: np.random.Generator


def split(n: int, fraction: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Randomly split the rows 0..n-1 into training rows and a `fraction` for validation."""
    rows = rng.permutation(n)
    n_validation = round(n * fraction)
    return rows[n_validation:], rows[:n_validation]


def stacks_of(grid: Grid, seed: int) -> list[Stack]:
    """Divide the models of each batch size into as few stacks as MAX_STACK allows.

    If the grid has only one batch size, its models are divided into at least two stacks (unless
    there is only one model), so that two cores have work. Every stack draws its minibatches from
    `seed` and its batch size alone, so a model sees the same minibatches whatever else is in the
    grid.
    """
    learning_rates, alphas = np.array(grid.learning_rates, float), np.array(grid.alphas, float)
    n_models = len(learning_rates) * len(alphas)  # of each batch size
    n_stacks = math.ceil(n_models / MAX_STACK)
    if len(grid.batch_sizes) == 1:
        n_stacks = max(n_stacks, 2)
    stacks = []
    for i, batch_size in enumerate(grid.batch_sizes):
        for models in np.array_split(np.arange(n_models), min(n_stacks, n_models)):
            j, k = np.unravel_index(models, (len(learning_rates), len(alphas)))
            rng = np.random.default_rng([seed, batch_size])
            at = np.s_[..., i, j, k]
            stacks.append(Stack(batch_size, learning_rates[j], alphas[k], at, rng))
    return stacks


def check_searchable(y, grid: Grid) -> None:
    """Raise ValueError unless y holds valid labels, and the grid holds non-empty sequences and a
    positive number of epochs."""
    if y.min() < 0 or y.max() >= CLASSES:
        raise ValueError(f"labels from {y.min()} to {y.max()}, not within 0 to {CLASSES - 1}")
    for name, values in zip(grid._fields[:3], grid):
        if np.ndim(values) != 1 or len(values) == 0:
            raise ValueError(f"{name} of the grid: {values!r} is not a sequence of numbers")
    if grid.epochs < 1:
        raise ValueError(f"epochs of the grid: {grid.epochs} is not a positive number")


def search(
    X, y, train, validation, grid: Grid, seed: int, workers: int = 1, progress=lambda *_: None
) -> tuple[Curves, np.ndarray, np.ndarray]:
    """Train the grid's models on the rows `train`, and evaluate them on `validation` every epoch.

    Returns the curves, W and b. W has the shape (m, CLASSES, batch sizes, learning rates, alphas),
    and b the same without m. They hold each model after its best epoch: the one with the lowest
    cross-entropy, the earliest if several are equal. The cross-entropy of a diverging model ends in
    NaN or infinity. The result depends on `seed`, not on `workers`.

    Calls `progress` before the first epoch and after every epoch, with the number of epochs done
    and two arrays of shape (batch sizes, learning rates, alphas): each model's lowest cross-entropy
    so far, and the epoch that reached it. Raises ValueError if labels or grid are not valid.
    """
    check_searchable(y, grid)
    X_validation, y_validation = X[validation], y[validation]
    stopped = threading.Event()  # ends the running epochs at their next minibatch

    def train_epoch(stack: Stack, W, b) -> tuple:
        """Train a stack for one epoch from (W, b); return the new W, b, and their metrics."""
        batches = minibatches(train, stack.batch_size, stack.rng)
        # After an interruption, the epoch ends early.
        batches = itertools.takewhile(lambda _: not stopped.is_set(), batches)
        with np.errstate(all="ignore"):  # models may diverge
            W, b = sgd(W, b, X, y, stack.alphas, stack.learning_rates, batches)
            return W, b, evaluate(W, b, X_validation, y_validation)

    stacks = stacks_of(grid, seed)
    shape = len(grid.batch_sizes), len(grid.learning_rates), len(grid.alphas)
    lowest, best_epoch = np.full(shape, np.inf), np.zeros(shape, int)
    m, dtype = X.shape[1], np.result_type(X, np.float32)
    best_W = np.zeros((m, CLASSES, *shape), dtype)
    best_b = np.zeros((CLASSES, *shape), dtype)
    history = []  # the metrics of each epoch: cross-entropy and accuracy, (2, *shape)

    pool = ThreadPoolExecutor(workers)
    try:
        progress(0, lowest.copy(), best_epoch.copy())
        futures = []
        for stack in stacks:
            # The loss is convex, so any starting point will do; we use zero.
            K = len(stack.alphas)
            W, b = np.zeros((m, CLASSES, K), dtype), np.zeros((CLASSES, K), dtype)
            futures.append(pool.submit(train_epoch, stack, W, b))
        for epoch in range(1, grid.epochs + 1):
            metrics = np.empty((2, *shape))
            for s, stack in enumerate(stacks):
                while not futures[s].done():
                    wait([futures[s]], timeout=0.5)  # without a timeout, Windows defers Ctrl-C
                W, b, (cross_entropy, accuracy) = futures[s].result()
                if epoch < grid.epochs:  # the stack's next epoch can start at once
                    futures[s] = pool.submit(train_epoch, stack, W, b)
                at = stack.at
                metrics[at] = cross_entropy, accuracy
                better = cross_entropy < lowest[at]
                lowest[at] = np.where(better, cross_entropy, lowest[at])
                best_epoch[at] = np.where(better, epoch, best_epoch[at])
                best_W[at] = np.where(better, W, best_W[at])
                best_b[at] = np.where(better, b, best_b[at])
            history.append(metrics)
            progress(epoch, lowest.copy(), best_epoch.copy())
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)
    cross_entropy, accuracy = np.stack(history, axis=-1)  # (2, *shape, epochs)
    return Curves(cross_entropy, accuracy), best_W, best_b


def best_point(curves: Curves) -> tuple[int, int, int, int]:
    """The indices of the lowest validation cross-entropy of all models that did not diverge.

    Raises FloatingPointError if every model diverged. `preference` breaks ties.
    """
    finite = np.isfinite(curves.cross_entropy).all(axis=-1, keepdims=True)
    if not finite.any():
        raise FloatingPointError("every model diverged; try smaller learning rates or alphas")
    cross_entropy = np.where(finite, curves.cross_entropy, np.inf)
    tied = np.argwhere(cross_entropy == cross_entropy.min()).tolist()
    return min(map(tuple, tied), key=lambda indices: preference(*indices))


def preference(i: int, j: int, k: int, e: int) -> tuple[int, int, int, int]:
    """A key that sorts equally good points: the fewest epochs first, then the largest alpha, then
    the largest batch size, then the smallest learning rate."""
    return e, -k, -i, j


# --- Command line ---------------------------------------------------------------------------------

RESULTS = ("results.json", "model.npz", "curves.npz")


def run_experiment() -> None:
    """Load, split, search, choose, test, and report, as the command line asks."""
    options = parse_arguments()
    if options.output:
        check_writable(options.output)
    X, y, X_test, y_test = prepare_data(options.data_dir)
    rng = np.random.default_rng(options.seed)
    train, validation = split(len(X), options.validation_fraction, rng)
    grid = Grid(
        ascending(options.batch_sizes),
        ascending(options.learning_rates),
        ascending(options.alphas),
        options.epochs,
    )
    check_sizes(grid, train, validation)
    setup = {
        "seed": options.seed,
        # For the default folder only its name, because the full path differs between machines.
        "data_dir": DATA.name if options.data_dir == DATA else str(options.data_dir),
        "validation_fraction": options.validation_fraction,
        "grid": grid._asdict(),
    }
    counts = {"train": len(train), "validation": len(validation), "test": len(X_test)}
    if options.output:
        note_replacement(options.output, setup)
    print(heading(counts, grid), flush=True)

    progress = Progress(grid)
    try:
        curves, W, b = search(
            X, y, train, validation, grid, options.seed, options.workers, progress
        )
    except KeyboardInterrupt as interruption:
        if progress.best_so_far:
            interruption.args += (progress.best_so_far,)  # `run` prints it
        raise
    seconds = time.monotonic() - progress.start
    log(f"searched in {seconds:.1f} s\n")

    i, j, k, e = best_point(curves)
    # `search` returned the weights of each model after its best epoch; for this one, epoch e + 1.
    W, b = W[..., i, j, k], b[..., i, j, k]
    # The test set is used here for the first and only time.
    test_cross_entropy, test_accuracy = evaluate(W, b, X_test, y_test)
    results = {
        **setup,
        "split": counts,
        "best": point(grid, i, j, k, e + 1),
        "training": {"cross_entropy": cross_entropy_in_parts(W, b, X, y, train)},
        "validation": {
            "cross_entropy": float(curves.cross_entropy[i, j, k, e]),
            "accuracy": float(curves.accuracy[i, j, k, e]),
        },
        "test": {"cross_entropy": float(test_cross_entropy), "accuracy": float(test_accuracy)},
        "seconds": seconds,
        "numpy": np.__version__,
    }
    try:
        print(report(results, curves), flush=True)
    finally:  # even if nobody reads stdout any more
        if options.output:
            save(options.output, results, curves, W, b)
            log(f"Wrote {', '.join(RESULTS)} to {options.output}")


def prepare_data(data_dir: str | os.PathLike) -> tuple:
    """`load` the data; in the default folder, first fetch what is missing and verify all files."""
    data_dir = os.path.realpath(data_dir)
    if data_dir == os.path.realpath(DATA):
        ensure(data_dir)
    data = load(data_dir)
    log(f"Data: {data_dir}")
    return data


def ascending(values: Iterable) -> tuple:
    """Sorted, without duplicates."""
    return tuple(sorted(set(values)))


def check_sizes(grid: Grid, train, validation) -> None:
    """Raise DataError if there are too few images for the split or for the batch sizes."""
    n = len(train) + len(validation)
    if len(train) == 0 or len(validation) == 0:
        part = "training" if len(train) == 0 else "validation"
        raise DataError(f"--validation-fraction leaves no {part} images (of {n})")
    largest = grid.batch_sizes[-1]
    if largest > len(train):
        images = plural(len(train), "training image")
        raise DataError(f"--batch-sizes {largest}: more than the {images}")


def cross_entropy_in_parts(W, b, X, y, rows) -> float:
    """The cross-entropy of `rows` of X and y, without a copy of all those images at once."""
    total = 0.0
    for start in range(0, len(rows), 5_000):
        part = rows[start : start + 5_000]
        total += len(part) * cross_entropy(W, b, X[part], y[part])
    return float(total / len(rows))


class Progress:
    """Shows the progress of a search as a live line; `best_so_far` describes the best point."""

    def __init__(self, grid: Grid):
        self.grid = grid
        self.start = time.monotonic()
        self.best_so_far = ""

    def __call__(self, epochs: int, lowest: np.ndarray, best_epoch: np.ndarray) -> None:
        done = f"{epochs}/{plural(self.grid.epochs, 'epoch')}"
        if not np.isfinite(lowest).any():  # before the first epoch, or all models diverged
            log(done, live=True)
            return
        left = (time.monotonic() - self.start) / epochs * (self.grid.epochs - epochs)
        i, j, k = np.unravel_index(lowest.argmin(), lowest.shape)
        best = point(self.grid, i, j, k, int(best_epoch[i, j, k]))
        self.best_so_far = (
            f"best so far: {described(best)}, validation cross-entropy {lowest[i, j, k]:.4f}"
        )
        short = "size {batch_size}, rate {learning_rate}, alpha {alpha}, epoch {epochs}"
        log(
            f"CE {lowest[i, j, k]:.4f}, {done}, {duration(left)} left; {short.format(**best)}",
            live=True,
        )


def duration(seconds: float) -> str:
    """In seconds, minutes or hours, whichever reads best."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h"


def plural(n: int, name: str) -> str:
    return f"{n} {name}" if n == 1 else f"{n} {name}s"


def point(grid: Grid, i: int, j: int, k: int, epochs: int) -> dict:
    """The hyperparameters of a point of the grid."""
    return {
        "batch_size": grid.batch_sizes[i],
        "learning_rate": grid.learning_rates[j],
        "alpha": grid.alphas[k],
        "epochs": epochs,
    }


def described(best: dict) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in best.items())


def heading(counts: dict[str, int], grid: Grid) -> str:
    """A summary of the data and the grid."""
    axes = [
        plural(len(grid.batch_sizes), "batch size"),
        plural(len(grid.learning_rates), "learning rate"),
        plural(len(grid.alphas), "alpha"),
        plural(grid.epochs, "epoch"),
    ]
    points = math.prod(len(values) for values in grid[:3]) * grid.epochs
    return (
        "Images: {train} training, {validation} validation, {test} test\n".format(**counts)
        + f"Grid: {' x '.join(axes)} = {plural(points, 'point')}\n"
    )


def report(results: dict, curves: Curves) -> str:
    """The best models, the best point of all, and its metrics, with those on the test set last."""
    grid, best, validation = Grid(**results["grid"]), results["best"], results["validation"]
    guessing = math.log(CLASSES)
    lines = [*table(grid, curves), "", f"Best: {described(best)}", *edge_notes(grid, best)]
    if validation["cross_entropy"] >= guessing:
        lines.append(
            f"Note: guessing does at least as well, with a cross-entropy of {guessing:.4f}"
        )
    lines += [
        "",
        f"Training cross-entropy: {results['training']['cross_entropy']:.4f}",
        f"Validation cross-entropy: {validation['cross_entropy']:.4f}",
        f"Validation accuracy: {validation['accuracy']:.2%}",
        f"Test cross-entropy (unregularized): {results['test']['cross_entropy']:.4f}",
        f"Test accuracy: {results['test']['accuracy']:.2%}",
    ]
    return "\n".join(lines)


def table(grid: Grid, curves: Curves) -> list[str]:
    """The best three models for each batch size, at their best epochs, and those that diverged."""
    rows = [("batch size", "learning rate", "alpha", "epochs", "validation CE", "accuracy")]
    for i in range(len(grid.batch_sizes)):
        finite, diverged = [], []
        for j, k in np.ndindex(len(grid.learning_rates), len(grid.alphas)):
            curve = curves.cross_entropy[i, j, k]
            e = curve.argmin()
            model = [str(value) for value in point(grid, i, j, k, e + 1).values()]
            if np.isfinite(curve).all():
                row = (*model, f"{curve[e]:.4f}", f"{curves.accuracy[i, j, k, e]:.2%}")
                finite.append((curve[e], preference(i, j, k, e), row))
            else:
                diverged.append((*model[:3], "", "diverged", ""))
        rows += [row for *_, row in sorted(finite)[:3]] + diverged
    widths = [max(map(len, column)) for column in zip(*rows)]
    title = "The best models for each batch size (at most three), at their best epochs:"
    return [title, *("  ".join(map(str.rjust, row, widths)).rstrip() for row in rows)]


def edge_notes(grid: Grid, best: dict) -> list[str]:
    """A line for each hyperparameter whose best value is the smallest or the largest tried."""
    epochs = range(1, grid.epochs + 1)
    lines = []
    for name, flag, best_value, tried, least in (
        ("batch size", "--batch-sizes", best["batch_size"], grid.batch_sizes, 1),
        ("learning rate", "--learning-rates", best["learning_rate"], grid.learning_rates, 0),
        ("alpha", "--alphas", best["alpha"], grid.alphas, 0),
        ("number of epochs", "--epochs", best["epochs"], epochs, 1),
    ):
        if len(tried) == 1 or best_value == least:  # not compared, or there is nothing smaller
            continue
        if best_value in (tried[0], tried[-1]):
            change = "smaller" if best_value == tried[0] else "larger"
            lines.append(
                f"Note: the best {name}, {best_value}, is at the edge of the grid; "
                f"try a {change} one ({flag})"
            )
    return lines


def check_writable(folder: Path) -> None:
    """Create the folder; fail before the search, not after it, if it is not writable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Not with tempfile: on Windows, it tries other names for hours if the folder is not
        # writable.
        probe = folder / f".probe-{os.urandom(8).hex()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise DataError(f"cannot write to {folder}: {error.strerror}") from None
    for name in RESULTS:
        if (folder / name).is_dir():
            raise DataError(f"{folder / name} is a folder, but a result file must go there")


def note_replacement(folder: Path, setup: dict) -> None:
    """Log a line for what will be replaced, unless it is a run's results with the same options."""
    path = folder / "results.json"
    if not path.is_file():
        for name in RESULTS:
            if os.path.lexists(folder / name):
                log(f"Note: {folder / name} exists and will be replaced")
        return
    setup = json.loads(json.dumps(setup))  # tuples become lists
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
        differing = [name for name in setup if old[name] != setup[name]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        log(f"Note: {path} is not from this version of the program; it will be replaced")
        return
    if differing:
        what = ", ".join(differing)
        log(f"Note: {path} has results of a run with different {what}; it will be replaced")


def save(folder: Path, results: dict, curves: Curves, W: np.ndarray, b: np.ndarray) -> None:
    """Write RESULTS; they are moved into place once all are complete."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        results_json, model, curves_npz = (Path(temporary, name) for name in RESULTS)
        text = json.dumps(results, indent=2) + "\n"
        results_json.write_text(text, encoding="utf-8", newline="\n")
        np.savez(model, W=W, b=b)
        np.savez(curves_npz, **curves._asdict())
        for name in RESULTS:
            try:
                os.replace(Path(temporary, name), folder / name)
            except OSError as error:
                raise DataError(f"cannot replace {folder / name}: {error.strerror}") from None


def number(kind: type, valid: Callable, wanted: str) -> Callable[[str], int | float]:
    """Make an argparse type: an int or a float that is `valid`; `wanted` describes it."""

    def parse(text: str) -> int | float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan  # which is never valid
        if not valid(value):
            hint = "; write one number, or several with spaces between" if "," in text else ""
            raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}{hint}")
        return value

    return parse


def parse_arguments() -> argparse.Namespace:
    """Parse the command line; exit with status 2 if it is invalid."""
    count = number(int, lambda v: 1 <= v <= 10**9, "a whole number from 1 to 1000000000")
    rate = number(float, lambda v: 0 < v < math.inf, "a finite number above 0")
    alpha = number(float, lambda v: 0 <= v < math.inf, "a finite number, 0 or more")
    seed = number(int, lambda v: v >= 0, "a whole number, 0 or more")
    fraction = number(float, lambda v: 0 < v < 1, "a number between 0 and 1")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

    parser = argparse.ArgumentParser(
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Train softmax regression on Fashion-MNIST by minibatch SGD: search a grid of\n"
        "hyperparameters on a validation set, then evaluate the best model once on the test set.",
        epilog="examples:\n"
        "  python softmax_sgd.py                                    about two minutes\n"
        "  python softmax_sgd.py --batch-sizes 64 --epochs 5        a few seconds",
    )

    def several(values: tuple) -> str:
        return f"separated by spaces (default: {' '.join(map(str, values))})"

    # fmt: off
    grid, default = Grid(), "(default: %(default)s)"
    add = parser.add_argument
    add("--batch-sizes", type=count, nargs="+", metavar="N", default=grid.batch_sizes,
        help=f"batch sizes (examples per minibatch), {several(grid.batch_sizes)}")
    add("--learning-rates", type=rate, nargs="+", metavar="R", default=grid.learning_rates,
        help=f"learning rates, {several(grid.learning_rates)}")
    add("--alphas", type=alpha, nargs="+", metavar="A", default=grid.alphas,
        help=f"L2 regularisation strengths, {several(grid.alphas)}")
    add("--epochs", type=count, metavar="N", default=grid.epochs,
        help=f"maximum number of epochs {default}")
    add("--validation-fraction", type=fraction, metavar="F", default=0.2,
        help=f"fraction of the training files used for validation {default}")
    add("--seed", type=seed, metavar="N", default=0,
        help=f"random seed of the split and of the order of the examples {default}")
    add("--workers", type=count, metavar="N", default=cores,
        help=f"training threads; each trains a stack of up to {MAX_STACK} models of one batch size "
        "at a time. The default grid has four stacks, a grid of one batch size at least two; "
        f"there is no benefit in more threads than stacks {default}")
    add("--data-dir", type=folder_name, metavar="DIR", default=DATA,
        help="folder with the four files fashion_mnist_*.npy; in the default, %(default)s, missing "
        "files are fetched and all are verified; any other folder is used as it is")
    add("--output", type=folder_name, metavar="DIR",
        help=f"write {', '.join(RESULTS)} to this folder")
    # fmt: on
    return parser.parse_args()


def main() -> int:
    return run(run_experiment)


if __name__ == "__main__":
    sys.exit(main())
