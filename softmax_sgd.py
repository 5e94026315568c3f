"""Softmax regression on Fashion-MNIST, by minibatch SGD and a grid search (CS/DS541, Homework 2).

    python softmax_sgd.py            # python softmax_sgd.py --help lists the options

The model gives an image x the probabilities

    ŷ_k = exp z_k / Σ_j exp z_j,    z = Wᵀx + b                                           (1)

for its classes k. Training minimises the regularised cross-entropy of n examples,

    loss(W, b) = −1/n Σ_i log ŷ_{y_i}(x_i) + α/2 ‖W‖²                                     (2)

whose last term is not divided by n and leaves the biases b out. Its gradients (problem 2 of the
assignment, derived in report.pdf) are, with one-hot labels Y and an example in each row,

    dW = 1/n Xᵀ(Ŷ − Y) + αW,    db = 1/n Σ_i (ŷ_i − y_i)                                  (3)

Conventions

    n, m, c    examples, pixels of an image, classes
    K          models in a stack: trained side by side, on the same minibatches
    X, y       (n, m) pixels in 0..1, and (n,) integer labels in 0..c-1
    W, b       (m, c) and (c,); for a stack (m, c, K) and (c, K)
    dW, db     their gradients, of the same shapes
    alpha, learning_rate, and every measure     a number; for a stack (K,)

The functions of the model compute in the dtype of W, b and X, measures apart, which are float64;
they change none of their arguments, and take for granted that these are as described here. What
depends on class and example has the class axis first and the example axis last, for NumPy reduces
a short last axis slowly; and one wide product of a stack is faster than K thin ones.
"""

import os

# One BLAS thread per worker beats threaded products of this size. BLAS reads this only once, when
# NumPy is first imported.
for library in ("OPENBLAS", "MKL", "VECLIB"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")

import argparse
import errno
import itertools
import json
import math
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from download_data import DataError, ensure, live, on_terminal, plain, replacing, say


class Grid(NamedTuple):
    """The hyperparameters searched, ascending; every number of epochs up to `epochs` counts."""

    batch_sizes: tuple[int, ...] = (32, 64, 128, 256)
    learning_rates: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1)
    alphas: tuple[float, ...] = (0.0, 1e-5, 1e-4, 1e-3)
    epochs: int = 100


DATA = Path("data")
RESULTS = ("results.json", "model.npz", "curves.npz")
CLASSES = 10
STACK = 16  # models at most: a wider stack gains little, and fewer stacks share the cores worse


# --- Data -----------------------------------------------------------------------------------------


def load(data_dir: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Read X_train, y_train, X_test, y_test from the four files of the assignment.

    The images come as float32 in 0..1, divided by 255 unless none of them exceeds 1; the labels as
    np.intp. Raises DataError, which names the file, if one is not of the form described above.
    """
    data = {}
    for part in ("train", "test"):
        images = data_dir / f"fashion_mnist_{part}_images.npy"
        labels = data_dir / f"fashion_mnist_{part}_labels.npy"
        X = read_npy(images, dimensions=2, highest=255)
        y = read_npy(labels, dimensions=1, highest=CLASSES - 1)
        if len(X) != len(y):
            raise DataError(f"{labels}: {len(y)} labels for {len(X)} images")
        if (y != np.floor(y)).any():
            raise DataError(f"{labels}: not all labels are whole numbers")
        data[part] = np.ascontiguousarray(X, np.float32), y.astype(np.intp)
    (X_train, y_train), (X_test, y_test) = data.values()
    if X_train.shape[1] != X_test.shape[1]:
        raise DataError(f"{images}: {X_test.shape[1]} pixels, but {X_train.shape[1]} in training")
    exceed = X_train.max() > 1, X_test.max() > 1
    if all(exceed):
        X_train /= 255
        X_test /= 255
    elif any(exceed):
        raise DataError(f"{images}: not on the scale of the training images: only one exceeds 1")
    else:
        say(f"Note: the images in {data_dir} look normalised already and are used as they are")
    return X_train, y_train, X_test, y_test


def read_npy(path: Path, dimensions: int, highest: int) -> np.ndarray:
    """Read an array of real numbers in 0..highest; raise DataError if `path` is anything else."""
    try:
        if not path.is_file():
            raise DataError(f"{path}: {'not a file' if path.exists() else 'missing'}")
        with open(path, "rb") as content, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if np.lib.format.read_magic(content) != (1, 0):
                raise ValueError("not of format 1.0, in which np.save writes numbers")
            shape, _, dtype = np.lib.format.read_array_header_1_0(content)
            if dtype.kind not in "buif" or len(shape) != dimensions or min(shape) < 1:
                form = plain(f"{dtype} of shape {shape}")
                raise DataError(f"{path}: {form}, not real numbers in {dimensions} dimensions")
            # Before memory is allocated: a header may claim anything.
            rest = path.stat().st_size - content.tell()
            if rest != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"{rest} bytes do not hold {dtype} of shape {shape}")
            array = np.load(path)  # which refuses to unpickle
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except Exception as error:  # NumPy raises half a dozen types, and goes on to advise pickle
        reason = plain(" ".join(str(error).split()).split(". ")[0])
        raise DataError(f"{path}: not a whole .npy file of numbers ({reason})") from None
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= highest):  # NaN compares false
        raise DataError(f"{path}: values from {low} to {high}, not within 0 to {highest}")
    return array


def split(n: int, fraction: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Divide the rows 0..n-1 at random: those to train on, and `fraction` of them to validate."""
    rows = rng.permutation(n)
    validation = round(n * fraction)
    return rows[validation:], rows[:validation]


# --- Model ----------------------------------------------------------------------------------------


def log_softmax(W, b, X) -> np.ndarray:
    """log ŷ of equation (1), for each class and example: (c, n), or (c, K, n).

    The largest logit is subtracted from all: that cancels in (1), and no exp can overflow.
    """
    Z = (W.reshape(len(W), -1).T @ X.T).reshape(*b.shape, len(X))
    Z += b[..., None]
    Z -= Z.max(axis=0)
    Z -= np.log(np.exp(Z).sum(axis=0))
    return Z


def evaluate(W, b, X, y) -> tuple[np.ndarray, np.ndarray]:
    """The cross-entropy and the accuracy, from one pass."""
    log_yhat = log_softmax(W, b, X)
    # Summed in float64; and 0 minus 0 is 0, where minus 0 would be -0.
    cross_entropy = 0 - log_yhat[y, ..., np.arange(len(y))].mean(axis=0, dtype=np.float64)
    return cross_entropy, (log_yhat.argmax(axis=0) == y).mean(axis=-1)


def cross_entropy(W, b, X, y) -> np.ndarray:
    """The mean of -log ŷ_y, unregularised."""
    return evaluate(W, b, X, y)[0]


def accuracy(W, b, X, y) -> np.ndarray:
    """The fraction, 0..1, of examples whose likeliest class is y; of equals, the first counts."""
    return evaluate(W, b, X, y)[1]


def loss(W, b, X, y, alpha) -> np.ndarray:
    """The regularised cross-entropy (2)."""
    return cross_entropy(W, b, X, y) + np.multiply(alpha, np.square(W).sum(axis=(0, 1))) / 2


def gradients(W, b, X, y, alpha) -> tuple[np.ndarray, np.ndarray]:
    """(dW, db) of the loss, by equation (3)."""
    n = len(X)
    D = np.exp(log_softmax(W, b, X))
    D[y, ..., np.arange(n)] -= 1
    D /= n
    dW = (X.T @ D.reshape(-1, n).T).reshape(W.shape)
    dW += np.full_like(b, alpha) * W  # spread to b's shape, so that NumPy's inner loop is long
    return dW, D.sum(axis=-1)


# --- Stochastic gradient descent ------------------------------------------------------------------


def minibatches(rows, batch_size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield `rows` once, in a fresh random order, `batch_size` at a time; the last may be fewer."""
    order = rng.permutation(rows)
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def sgd(W, b, X, y, alpha, learning_rate, batches: Iterable) -> tuple[np.ndarray, np.ndarray]:
    """(W, b) after a step down the gradient for each of `batches`, which are rows of X and y."""
    W, b, learning_rate = W.copy(), b.copy(), np.full_like(b, learning_rate)
    for rows in batches:
        dW, db = gradients(W, b, X.take(rows, axis=0), y[rows], alpha)  # X[rows], but faster
        W -= learning_rate * dW
        b -= learning_rate * db
    return W, b


# --- Grid search ----------------------------------------------------------------------------------


class Curves(NamedTuple):
    """The grid's points, measured on validation: (batch sizes, learning rates, alphas, epochs)."""

    cross_entropy: np.ndarray
    accuracy: np.ndarray


def search(
    X: np.ndarray,
    y: np.ndarray,
    train: np.ndarray,
    validation: np.ndarray,
    grid: Grid,
    seed: int,
    workers: int = 1,
    progress: Callable[[int, int, float], None] = lambda done, total, lowest: None,
) -> tuple[Curves, dict]:
    """Train the grid's models on the rows `train`, and measure each on `validation` every epoch.

    Returns the curves, and the (W, b) of each model at its first epoch of lowest cross-entropy, by
    the model's index into the curves; a model that diverges has curves that end in NaN or infinity.
    The result depends on `seed`, not on `workers`: each minibatch size has a random stream of its
    own, and the stacks, of STACK models at most, queue for their next epoch. `progress` is called
    after each with the points done, those in all, and the lowest cross-entropy so far.
    """
    X_validation, y_validation = X[validation], y[validation]
    shape = len(grid.batch_sizes), len(grid.learning_rates), len(grid.alphas)
    curves = Curves(*(np.full((*shape, grid.epochs), np.nan) for _ in Curves._fields))
    lowest, weights = np.full(shape, np.inf), {}
    stopped = threading.Event()

    def train_stack(models):
        i, j, k = models.T
        batch_size = grid.batch_sizes[i[0]]
        learning_rate, alpha = np.array(grid.learning_rates)[j], np.array(grid.alphas)[k]
        rng = np.random.default_rng([seed, batch_size])
        # The loss is convex, so the start does not matter but for time, and zero is as good as any.
        W = np.zeros((X.shape[1], CLASSES, len(models)), X.dtype)
        b = np.zeros((CLASSES, len(models)), X.dtype)
        for epoch in range(grid.epochs):
            batches = minibatches(train, batch_size, rng)
            batches = itertools.takewhile(lambda _: not stopped.is_set(), batches)
            with np.errstate(over="ignore", invalid="ignore"):  # models may diverge
                W, b = sgd(W, b, X, y, alpha, learning_rate, batches)
                measures = evaluate(W, b, X_validation, y_validation)
            yield epoch, measures, W, b

    pool = ThreadPoolExecutor(workers)
    try:
        queue, done = deque(), 0
        for i in range(len(grid.batch_sizes)):
            models = np.array([(i, j, k) for j, k in np.ndindex(shape[1:])])
            for stack in np.array_split(models, math.ceil(len(models) / STACK)):
                training = train_stack(stack)
                queue.append((stack, training, pool.submit(next, training)))
        while queue:
            stack, training, future = queue.popleft()
            epoch, measures, W, b = future.result()
            if epoch + 1 < grid.epochs:  # to the end of the line
                queue.append((stack, training, pool.submit(next, training)))
            i, j, k = stack.T
            curves.cross_entropy[i, j, k, epoch], curves.accuracy[i, j, k, epoch] = measures
            for column, model in enumerate(map(tuple, stack)):
                if curves.cross_entropy[model][epoch] < lowest[model]:
                    lowest[model] = curves.cross_entropy[model][epoch]
                    weights[model] = W[..., column].copy(), b[..., column].copy()
            done += len(stack)
            progress(done, curves.accuracy.size, lowest.min())
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)
    return curves, weights


def best_point(curves: Curves) -> tuple[int, int, int, int]:
    """The index of the lowest validation cross-entropy of the models that did not diverge.

    Ties go to the fewer epochs, then to the larger alpha, then to the larger minibatch size, then
    to the smaller learning rate. Raises FloatingPointError if every model diverged.
    """
    finite = np.isfinite(curves.cross_entropy).all(axis=-1, keepdims=True)
    if not finite.any():
        raise FloatingPointError("every model diverged; try smaller learning rates or alphas")
    cross_entropy = np.where(finite, curves.cross_entropy, np.inf)
    ties = np.argwhere(cross_entropy == cross_entropy.min()).tolist()
    return tuple(min(ties, key=lambda at: (at[3], -at[2], -at[0], at[1])))


# --- Command line ---------------------------------------------------------------------------------


def table(grid: Grid, curves: Curves) -> Iterator[str]:
    """Yield a header, and for each minibatch size its best three models and those that diverged."""
    rows = [("batch size", "learning rate", "alpha", "epochs", "validation CE", "accuracy")]
    for i, batch_size in enumerate(grid.batch_sizes):
        finite, diverged = [], []
        for j, k in np.ndindex(curves.cross_entropy.shape[1:3]):
            model = f"{batch_size}", f"{grid.learning_rates[j]}", f"{grid.alphas[k]}"
            curve = curves.cross_entropy[i, j, k]
            epoch = curve.argmin()
            if np.isfinite(curve).all():
                measures = f"{curve[epoch]:.4f}", f"{curves.accuracy[i, j, k, epoch]:.2%}"
                finite.append((curve[epoch], (*model, f"{epoch + 1}", *measures)))
            else:
                diverged.append((*model, "", "diverged", ""))
        rows += [row for _, row in sorted(finite)[:3]] + diverged
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        cells = (cell.rjust(width) for cell, width in zip(row, widths))
        yield "  ".join(cells).rstrip()


def edges(grid: Grid, best: dict) -> Iterator[str]:
    """Yield a note for each hyperparameter whose best value is the least or the greatest tried."""
    for name, values in zip(best, (*grid[:3], (1, grid.epochs))):
        if values[0] < values[-1] and best[name] in (values[0], values[-1]):
            what = f"{name.replace('_', ' ')}, {best[name]}"
            yield f"Note: the best {what}, is on the edge of the grid"


def solve(options: argparse.Namespace) -> None:
    """Load, search, choose, test, and only then report: the whole experiment."""
    if options.output:
        prepare(options.output)
    if options.data_dir is DATA:
        ensure(DATA)
    X, y, X_test, y_test = load(options.data_dir)
    rng = np.random.default_rng(options.seed)
    train, validation = split(len(X), options.validation_fraction, rng)
    grid = Grid(options.batch_sizes, options.learning_rates, options.alphas, options.epochs)
    if not (len(train) and len(validation)):
        raise DataError(f"--validation-fraction leaves nothing on one side of {len(X)} images")
    if grid.batch_sizes[-1] > len(train):
        raise DataError(f"--batch-sizes {grid.batch_sizes[-1]}: only {len(train)} images to train")
    counts = {"train": len(train), "validation": len(validation), "test": len(X_test)}
    print(*heading(counts, grid), sep="\n")

    start = time.monotonic()
    curves, weights = search(
        X, y, train, validation, grid, options.seed, options.workers, show_progress(start)
    )
    seconds = time.monotonic() - start
    say(f"searched in {seconds:.1f} s")

    i, j, k, epoch = best_point(curves)
    W, b = weights[i, j, k]
    best = {
        "batch_size": grid.batch_sizes[i],
        "learning_rate": grid.learning_rates[j],
        "alpha": grid.alphas[k],
        "epochs": epoch + 1,
    }
    test_cross_entropy, test_accuracy = evaluate(W, b, X_test, y_test)
    results = {
        "seed": options.seed,
        "split": counts,
        "grid": grid._asdict(),
        "best": best,
        "validation": {name: float(c[i, j, k, epoch]) for name, c in curves._asdict().items()},
        "test": {"cross_entropy": float(test_cross_entropy), "accuracy": float(test_accuracy)},
        "seconds": seconds,
    }
    print(*report(results, curves), sep="\n")
    if options.output:
        save(options.output, results, curves, W, b)


def heading(counts: dict[str, int], grid: Grid) -> Iterator[str]:
    """Yield the lines that tell what is about to be searched."""
    yield "Images: {train} to train, {validation} to validate, {test} to test".format(**counts)
    sizes = list(map(len, grid[:3]))
    models = "{} minibatch sizes x {} learning rates x {} alphas".format(*sizes)
    yield f"Grid: {models} x 1..{grid.epochs} epochs = {math.prod(sizes) * grid.epochs} points\n"


def report(results: dict, curves: Curves) -> Iterator[str]:
    """Yield the lines that tell the outcome of the search, the metrics on the test set last."""
    grid, best = Grid(**results["grid"]), results["best"]
    yield from table(grid, curves)
    yield ""
    yield "Best: " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in best.items())
    yield from edges(grid, best)
    yield f"\nValidation cross-entropy: {results['validation']['cross_entropy']:.4f}"
    yield f"Validation accuracy: {results['validation']['accuracy']:.2%}"
    yield f"Test cross-entropy (unregularized): {results['test']['cross_entropy']:.4f}"
    yield f"Test accuracy: {results['test']['accuracy']:.2%}"


def show_progress(start: float) -> Callable[[int, int, float], None]:
    """What `search` calls: a live line on a terminal, elsewhere a line for every tenth done."""
    tenths = 0

    def show(done: int, total: int, lowest: float) -> None:
        nonlocal tenths
        left = (time.monotonic() - start) / done * (total - done)
        line = (
            f"{done} of {total} points, {left:.0f} s left, best cross-entropy so far {lowest:.4f}"
        )
        live(line)
        if 10 * done // total > tenths and not on_terminal():
            tenths = 10 * done // total
            say(line)

    return show


def prepare(folder: Path) -> None:
    """Make the folder, and see that files can be made in it, before there is anything to lose."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in RESULTS:
        if (folder / name).is_dir():
            raise IsADirectoryError(errno.EISDIR, "a folder is in its place", folder / name)
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(error.errno, error.strerror, folder) from None


def save(folder: Path, results: dict, curves: Curves, W: np.ndarray, b: np.ndarray) -> None:
    """Write RESULTS, each as a whole or not at all."""
    with replacing(folder / "results.json") as file:
        file.write(json.dumps(results, indent=2).encode() + b"\n")
    with replacing(folder / "model.npz") as file:
        np.savez(file, W=W, b=b)
    with replacing(folder / "curves.npz") as file:
        np.savez(file, **curves._asdict())


def number(kind: type, valid: Callable[..., bool], wanted: str) -> Callable[[str], int | float]:
    """A type for argparse: a `kind` that is `valid`."""

    def parse(text: str) -> int | float:
        try:
            if valid(value := kind(text)):
                return value
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")

    return parse


def parse_arguments() -> argparse.Namespace:
    """Read the command line; exit with status 2 where it is wrong."""
    count = number(int, lambda v: 1 <= v <= 10**9, "a whole number from 1 to 1000000000")
    seed = number(int, lambda v: v >= 0, "a whole number of at least 0")
    rate = number(float, lambda v: 0 < v < math.inf, "a positive number")
    alpha = number(float, lambda v: 0 <= v < math.inf, "a number of at least 0")
    fraction = number(float, lambda v: 0 < v < 1, "a number between 0 and 1")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

    parser = argparse.ArgumentParser(
        description="Train softmax regression on Fashion-MNIST by minibatch SGD: search a grid of "
        "hyperparameters on a validation set, then measure the best model, once, on the test set."
    )
    for flag, metavar, kind, default, text in (
        ("--data-dir", "DIR", Path, DATA, "folder of your own four files, to be used as they are; "
         "without this option, data is kept complete and verified"),
        ("--batch-sizes", "N", count, Grid().batch_sizes, "minibatch sizes"),
        ("--learning-rates", "R", rate, Grid().learning_rates, "learning rates"),
        ("--alphas", "A", alpha, Grid().alphas, "strengths of the L2 regularisation"),
        ("--epochs", "N", count, Grid().epochs, "largest number of epochs"),
        ("--validation-fraction", "F", fraction, 0.2, "part of the training files to validate on"),
        ("--seed", "N", seed, 0, "of the split and of the order of the examples"),
        ("--workers", "N", count, cores, "threads that train"),
        ("--output", "DIR", Path, None, f"folder for {', '.join(RESULTS)}"),
    ):  # fmt: skip
        several = isinstance(default, tuple)
        shown = " ".join(map(str, default)) if several else default
        parser.add_argument(
            flag,
            metavar=metavar,
            type=kind,
            nargs="+" if several else None,
            default=default,
            help=text if shown is None else f"{text} (default: {shown})",
        )
    options = parser.parse_args()
    for name in Grid._fields[:3]:
        setattr(options, name, tuple(sorted(set(getattr(options, name)))))
    return options


def main() -> int:
    options = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if sys.stdout:  # None if it was closed
        sys.stdout.reconfigure(line_buffering=True)
    try:
        solve(options)
    except BrokenPipeError:  # nobody reads stdout any more, and Python's last flush must not fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (DataError, FloatingPointError) as error:
        say(f"softmax_sgd.py: {error}")
        return 1
    except MemoryError as error:
        say(f"softmax_sgd.py: not enough memory: {error}")
        return 1
    except OSError as error:
        say(f"softmax_sgd.py: cannot write {error.filename or 'the results'}: {error.strerror}")
        return 1
    except KeyboardInterrupt:
        say("softmax_sgd.py: interrupted")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
