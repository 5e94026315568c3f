"""Softmax regression on Fashion-MNIST, by minibatch SGD and a grid search (CS/DS541, Homework 2).

    python softmax_sgd.py            # python softmax_sgd.py --help lists the options

The model gives an image x the probabilities

    ŷ_k = exp z_k / Σ_j exp z_j,    z = Wᵀx + b                                           (1)

of its classes k. Training minimises the regularised cross-entropy of n examples,

    loss(W, b) = −1/n Σ_i log ŷ_{y_i}(x_i) + α/2 ‖W‖²                                     (2)

whose last term is not divided by n and leaves the biases b out. With an example's probabilities in
each row of Ŷ, and its one-hot label in that row of Y, its gradients (problem 2 of the assignment,
derived in report.pdf) are

    dW = Xᵀ(Ŷ − Y)/n + αW,    db = the sum of the rows of (Ŷ − Y)/n                       (3)

A step of SGD at the learning rate ε takes W to W − ε dW and b to b − ε db, that is,

    W ← (1 − εα)W − Xᵀ ε(Ŷ − Y)/n,    b ← b − the sum of the rows of ε(Ŷ − Y)/n           (4)

Conventions

    n, m, c    examples, pixels of an image, classes
    K          models in a stack: trained side by side, on the same minibatches
    X, y       (n, m) pixels in 0..1, and (n,) integer labels in 0..c-1
    W, b       (m, c) and (c,); for a stack (m, c, K) and (c, K)
    dW, db     their gradients, of the same shapes
    alpha, learning_rate, and every measure     a number; for a stack (K,)

The functions of the model compute in the dtype of W, b and X; only the measures are averaged in
float64. They change none of their arguments. Three things make them fast: one wide product serves
a whole stack; the class axis comes first, (c, n) or (c, K, n), as a short last axis is slow; and a
step passes over W, by far the largest of its arrays where minibatches are small, only twice.
"""

import os
import signal
import sys

if __name__ == "__main__":
    # One BLAS thread per worker is fastest; BLAS reads this when NumPy is first imported.
    for library in ("OPENBLAS_NUM", "MKL_NUM", "OMP_NUM", "VECLIB_MAXIMUM"):
        os.environ.setdefault(f"{library}_THREADS", "1")
    sys.setswitchinterval(1e-4)  # seconds: the workers' many short calls wait less for each other
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # while modules are imported: no traceback

import argparse
import contextlib
import itertools
import json
import math
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from download_data import DATA, DataError, ensure, log, read_npy, run

import numpy as np  # isort: skip - after download_data, which says it plainly if it is missing

CLASSES = 10  # c of the models that are trained here
MAX_STACK = 16  # the largest K: more are not faster, and leave fewer stacks for the cores to share

# --- Data -----------------------------------------------------------------------------------------


def load(data_dir: str | os.PathLike) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Read X_train, y_train, X_test, y_test from the four files of the assignment.

    The images come as float32 in 0..1, divided by 255 unless none of them exceeds 1; the labels as
    np.intp. Raises DataError, which names the file, if one is not as the conventions above say.
    """
    data = []
    for part in ("train", "test"):
        images = Path(data_dir, f"fashion_mnist_{part}_images.npy")
        labels = Path(data_dir, f"fashion_mnist_{part}_labels.npy")
        X = read_npy(images, dimensions=2, highest=255)
        y = read_npy(labels, dimensions=1, highest=CLASSES - 1)
        if len(X) != len(y):
            raise DataError(f"{labels}: {len(y)} labels for {len(X)} images")
        if (y % 1).any():
            raise DataError(f"{labels}: not all labels are whole numbers")
        data += [np.ascontiguousarray(X, np.float32), y.astype(np.intp)]
    X_train, _, X_test, _ = data
    if X_train.shape[1] != X_test.shape[1]:
        raise DataError(f"{images}: {X_test.shape[1]} pixels, but {X_train.shape[1]} in training")
    highest = X_train.max()
    if (highest > 1) != (X_test.max() > 1):
        raise DataError(f"{images}: not on the scale of the training images: only one exceeds 1")
    if highest > 1:
        X_train /= 255
        X_test /= 255
        if highest < 128:
            log(f"Note: divided by 255, though no pixel in {data_dir} exceeds {highest:g}")
    else:
        log(f"Note: the images in {data_dir} look normalised already and are used as they are")
    return tuple(data)


# --- Model ----------------------------------------------------------------------------------------


def logits(W, b, X) -> np.ndarray:
    """z of equation (1), less its largest, so that no exp can overflow: (c, n), or (c, K, n)."""
    Z = X @ W.reshape(len(W), -1)  # (n, m) @ (m, cK)
    Z = np.ascontiguousarray(Z.T).reshape(*b.shape, len(X))
    Z += b[..., None]
    Z -= Z.max(axis=0)
    return Z


def softmax(W, b, X) -> np.ndarray:
    """ŷ of equation (1), from which what `logits` subtracts cancels; in their shape."""
    Yhat = np.exp(logits(W, b, X))
    return Yhat / Yhat.sum(axis=0)


def at_labels(y) -> tuple:
    """The index of each example's own class: of (c, n) it picks (n,), and of (c, K, n) (n, K)."""
    if y.ndim != 1:
        raise ValueError(f"y has the shape {y.shape}, not (n,); one-hot labels? y.argmax(axis=1)")
    return y, ..., np.arange(len(y))


def evaluate(W, b, X, y) -> tuple[np.ndarray, np.ndarray]:
    """The cross-entropy, as the mean of log Σ_j exp z_j - z_y, and the accuracy, from one pass."""
    log_yhat = logits(W, b, X)
    log_yhat -= np.log(np.exp(log_yhat).sum(axis=0))
    mean = log_yhat[at_labels(y)].mean(axis=0, dtype=np.float64)
    return 0 - mean, (log_yhat.argmax(axis=0) == y).mean(axis=-1)  # a perfect model has 0, not -0


def cross_entropy(W, b, X, y) -> np.ndarray:
    """The mean of -log ŷ_y, unregularised."""
    return evaluate(W, b, X, y)[0]


def loss(W, b, X, y, alpha) -> np.ndarray:
    """The regularised cross-entropy (2)."""
    return cross_entropy(W, b, X, y) + np.multiply(alpha, np.square(W).sum(axis=(0, 1))) / 2


def residuals(W, b, X, y) -> np.ndarray:
    """(Ŷ - Y)/n, for each class and example: (c, n), or (c, K, n)."""
    D = softmax(W, b, X)
    D[at_labels(y)] -= 1
    return D / len(X)


def over_examples(X, D) -> np.ndarray:
    """XᵀD for D of (c, n) or (c, K, n): the sum over the examples, (m, c) or (m, c, K)."""
    return (X.T @ D.reshape(-1, len(X)).T).reshape(-1, *D.shape[:-1])  # (m, n) @ (n, cK)


def gradients(W, b, X, y, alpha) -> tuple[np.ndarray, np.ndarray]:
    """(dW, db) of the loss, by equation (3)."""
    D = residuals(W, b, X, y)
    return over_examples(X, D) + alpha * W, D.sum(axis=-1)


# --- Stochastic gradient descent ------------------------------------------------------------------


def minibatches(rows, batch_size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield `rows` once, in a fresh random order, `batch_size` at a time; the last may be fewer."""
    order = rng.permutation(rows)
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def sgd(W, b, X, y, alpha, learning_rate, batches: Iterable) -> tuple[np.ndarray, np.ndarray]:
    """(W, b) after step (4) for each of `batches`, which hold row numbers of X and y."""
    W, b = W.copy(), b.copy()
    shrink = np.full_like(W, 1 - learning_rate * alpha)  # spread once, which is faster
    learning_rate = np.asarray(learning_rate, b.dtype)[..., None]  # for each model and example
    for rows in batches:
        batch = X.take(rows, axis=0)  # X[rows], but faster
        D = learning_rate * residuals(W, b, batch, y[rows])
        W *= shrink
        W -= over_examples(batch, D)
        b -= D.sum(axis=-1)
    return W, b


# --- Grid search ----------------------------------------------------------------------------------


class Grid(NamedTuple):
    """The hyperparameters to search, ascending; each number of epochs from 1 to `epochs` counts."""

    batch_sizes: tuple[int, ...] = (12, 16, 32, 64)
    learning_rates: tuple[float, ...] = (0.005, 0.01, 0.02, 0.05)
    alphas: tuple[float, ...] = (0.0, 1e-5, 1e-4, 1e-3)
    epochs: int = 60


class Curves(NamedTuple):
    """Measures of all points on validation, (batch sizes, learning rates, alphas, epochs) each."""

    cross_entropy: np.ndarray
    accuracy: np.ndarray


def split(n: int, fraction: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Divide the rows 0..n-1 at random into those to train on and a `fraction` to validate on."""
    rows = rng.permutation(n)
    validation = round(n * fraction)
    return rows[validation:], rows[:validation]


def search(
    X, y, train, validation, grid: Grid, seed: int, workers: int = 1, progress=lambda *_: None
) -> tuple[Curves, np.ndarray, np.ndarray]:
    """Train the grid's models on the rows `train`, and measure each on `validation` every epoch.

    Returns the curves, and W and b of every model at its first epoch of lowest cross-entropy, of
    shapes (m, CLASSES, batch sizes, learning rates, alphas) and the same without m. A model that
    diverges has curves that end in NaN or infinity. The result depends on `seed`, not on `workers`:
    each minibatch size has a random stream of its own. `progress` is called after every epoch of a
    stack with the number of points done, that of all, and the lowest cross-entropy so far.
    """
    X_validation, y_validation = X[validation], y[validation]
    learning_rates, alphas = np.array([*itertools.product(grid.learning_rates, grid.alphas)]).T
    shape = len(grid.batch_sizes), len(alphas)
    measures, lowest = np.full((2, *shape, grid.epochs), np.nan), np.full(shape, np.inf)
    # The loss is convex, so any start will do, and zero is as good as another.
    best_W = np.zeros((X.shape[1], CLASSES, *shape), X.dtype)
    best_b = np.zeros((CLASSES, *shape), X.dtype)
    stopped = threading.Event()

    def train_stack(i: int, models: slice):
        """Train for an epoch at each `next`, and yield the number of the models."""
        batch_size = grid.batch_sizes[i]
        rng = np.random.default_rng([seed, batch_size])
        W, b = best_W[..., i, models], best_b[..., i, models]
        for epoch in range(grid.epochs):
            batches = minibatches(train, batch_size, rng)
            batches = itertools.takewhile(lambda _: not stopped.is_set(), batches)
            with np.errstate(over="ignore", invalid="ignore"):  # models may diverge
                W, b = sgd(W, b, X, y, alphas[models], learning_rates[models], batches)
                measures[:, i, models, epoch] = evaluate(W, b, X_validation, y_validation)
            now = measures[0, i, models, epoch]
            better = now < lowest[i, models]
            for best, new in ((lowest, now), (best_W, W), (best_b, b)):
                np.copyto(best[..., i, models], new, where=better)
            yield len(now)

    K = math.ceil(len(alphas) / math.ceil(len(alphas) / MAX_STACK))
    parts = [slice(first, first + K) for first in range(0, len(alphas), K)]
    stacks = [train_stack(i, part) for i in range(len(grid.batch_sizes)) for part in parts]
    pool = ThreadPoolExecutor(workers)
    try:
        # The stacks take turns: each trains for an epoch, and goes to the end of the queue.
        queue = [(stack, pool.submit(next, stack, 0)) for stack in stacks]
        done = 0
        while queue:
            stack, future = queue.pop(0)
            if trained := future.result():
                queue.append((stack, pool.submit(next, stack, 0)))
                done += trained
                progress(done, measures[0].size, lowest.min())
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)
    shape = len(grid.batch_sizes), len(grid.learning_rates), len(grid.alphas)
    curves = Curves(*measures.reshape(2, *shape, grid.epochs))
    return curves, best_W.reshape(-1, CLASSES, *shape), best_b.reshape(CLASSES, *shape)


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
    epoch, k, i, j = min((epoch, -k, -i, j) for i, j, k, epoch in ties)
    return -i, j, -k, epoch


# --- Command line ---------------------------------------------------------------------------------

RESULTS = ("results.json", "model.npz", "curves.npz")


def run_experiment(options: argparse.Namespace) -> None:
    """Load, split, search, choose, test, and report."""
    if options.output:
        check_writable(options.output)
    data_dir = os.path.realpath(options.data_dir)
    if data_dir == os.path.realpath(DATA):
        ensure(data_dir)
    log(f"Data: {data_dir}")
    X, y, X_test, y_test = load(data_dir)

    rng = np.random.default_rng(options.seed)
    train, validation = split(len(X), options.validation_fraction, rng)
    values = options.batch_sizes, options.learning_rates, options.alphas
    grid = Grid(*(tuple(sorted(set(axis))) for axis in values), options.epochs)
    if not (len(train) and len(validation)):
        raise DataError(f"--validation-fraction leaves nothing on one side of {len(X)} images")
    if grid.batch_sizes[-1] > len(train):
        raise DataError(f"--batch-sizes {grid.batch_sizes[-1]}: only {len(train)} images to train")
    counts = {"train": len(train), "validation": len(validation), "test": len(X_test)}
    print(heading(counts, grid), flush=True)

    start = time.monotonic()

    def progress(done: int, total: int, lowest: float) -> None:
        left = (time.monotonic() - start) / done * (total - done)
        points = f"{done} of {total} points, {left:.0f} s left"
        log(f"{points}, best cross-entropy so far {lowest:.4f}", live=True)

    curves, W, b = search(X, y, train, validation, grid, options.seed, options.workers, progress)
    seconds = time.monotonic() - start
    log(f"searched in {seconds:.1f} s\n")

    i, j, k, epoch = best_point(curves)
    W, b = W[..., i, j, k], b[..., i, j, k]
    test_cross_entropy, test_accuracy = evaluate(W, b, X_test, y_test)
    results = {
        "seed": options.seed,
        "split": counts,
        "grid": grid._asdict(),
        "best": {
            "batch_size": grid.batch_sizes[i],
            "learning_rate": grid.learning_rates[j],
            "alpha": grid.alphas[k],
            "epochs": epoch + 1,
        },
        "validation": {name: float(c[i, j, k, epoch]) for name, c in curves._asdict().items()},
        "test": {"cross_entropy": float(test_cross_entropy), "accuracy": float(test_accuracy)},
        "seconds": seconds,
    }
    try:
        if options.output:
            save(options.output, results, curves, W, b)
    finally:  # a full disk does not cost the figures, nor a closed pipe the files
        print(report(results, curves), flush=True)


def heading(counts: dict[str, int], grid: Grid) -> str:
    """What is about to be searched."""
    names = "minibatch size", "learning rate", "alpha"
    sizes = [len(values) for values in grid[:3]]
    models = " x ".join(f"{size} {name}{'s' * (size > 1)}" for size, name in zip(sizes, names))
    points = math.prod(sizes) * grid.epochs
    images = "{train} to train, {validation} to validate, {test} to test".format(**counts)
    return f"Images: {images}\nGrid: {models} x 1..{grid.epochs} epochs = {points} points\n"


def report(results: dict, curves: Curves) -> str:
    """What was found: the best three models of each minibatch size, and those that diverged; the
    best of all; and its metrics, those on the test set last."""
    grid, best = Grid(**results["grid"]), results["best"]
    rows = [("batch size", "learning rate", "alpha", "epochs", "validation CE", "accuracy")]
    for i, batch_size in enumerate(grid.batch_sizes):
        finite, diverged = [], []
        for j, k in np.ndindex(len(grid.learning_rates), len(grid.alphas)):
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
    lines = ["  ".join(map(str.rjust, row, widths)).rstrip() for row in rows]

    found = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in best.items())
    lines += ["", f"Best: {found}"]
    names = "batch size", "learning rate", "alpha", "number of epochs"
    tried = *grid[:3], range(1, grid.epochs + 1)
    for name, value, values in zip(names, best.values(), tried):
        # An alpha of 0 is the end of its scale, and not an edge of the grid.
        if len(values) > 1 and value in (values[0], values[-1]) and value > 0:
            lines.append(f"Note: the best {name}, {value}, is on the edge of the grid")
    validation, test = results["validation"], results["test"]
    lines += ["", f"Validation cross-entropy: {validation['cross_entropy']:.4f}"]
    lines += [f"Validation accuracy: {validation['accuracy']:.2%}"]
    lines += [f"Test cross-entropy (unregularized): {test['cross_entropy']:.4f}"]
    lines += [f"Test accuracy: {test['accuracy']:.2%}"]
    return "\n".join(lines)


def check_writable(folder: Path) -> None:
    """Make the folder, and find out before the search whether results can be written there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in RESULTS:
        if (folder / name).is_dir():
            raise DataError(f"{folder / name}: a folder is in the place of a result")
    tempfile.TemporaryFile(dir=folder).close()


def save(folder: Path, results: dict, curves: Curves, W: np.ndarray, b: np.ndarray) -> None:
    """Write RESULTS; they are moved into place when all of them are complete."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        parts = [Path(temporary, name) for name in RESULTS]
        parts[0].write_text(json.dumps(results, indent=2) + "\n")
        np.savez(parts[1], W=W, b=b)
        np.savez(parts[2], **curves._asdict())
        for part in parts:
            os.replace(part, folder / part.name)


def checked(kind: type, valid: Callable[..., bool], wanted: str) -> Callable[[str], int | float]:
    """A type for argparse: a `kind` that is `valid`."""

    def parse(text: str) -> int | float:
        with contextlib.suppress(ValueError):
            if valid(value := kind(text)):
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")

    return parse


def parse_arguments() -> argparse.Namespace:
    """Read the command line; exit with status 2 where it is wrong."""
    count = checked(int, lambda v: 1 <= v <= 10**9, "a whole number from 1 to 1000000000")
    seed = checked(int, lambda v: v >= 0, "a whole number of at least 0")
    rate = checked(float, lambda v: 0 < v < math.inf, "a positive number")
    alpha = checked(float, lambda v: 0 <= v < math.inf, "a number of at least 0")
    fraction = checked(float, lambda v: 0 < v < 1, "a number between 0 and 1")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

    parser = argparse.ArgumentParser(
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Train softmax regression on Fashion-MNIST by minibatch SGD: search a grid of\n"
        "hyperparameters on a validation set, then measure the best model, once, on the test set.",
        epilog="examples:\n"
        "  python softmax_sgd.py                                    a minute or two\n"
        "  python softmax_sgd.py --batch-sizes 64 --epochs 5        a few seconds",
    )
    add, default = parser.add_argument, "(default: %(default)s)"
    add("--batch-sizes", type=count, nargs="+", metavar="N", help=f"minibatch sizes {default}")
    add("--learning-rates", type=rate, nargs="+", metavar="R", help=f"learning rates {default}")
    add("--alphas", type=alpha, nargs="+", metavar="A", help=f"L2 regularisation {default}")
    add("--epochs", type=count, metavar="N", help=f"largest number of epochs {default}")
    parser.set_defaults(**Grid()._asdict())
    add("--validation-fraction", type=fraction, metavar="F", default=0.2,
        help=f"part of the training files to validate on {default}")  # fmt: skip
    add("--seed", type=seed, metavar="N", default=0,
        help=f"of the split and of the order of the examples {default}")  # fmt: skip
    add("--workers", type=count, metavar="N", default=cores, help=f"threads that train {default}")
    add("--data-dir", metavar="DIR", default=DATA,
        help="folder of the four files; the default, %(default)s, is kept complete and verified, "
        "and any other is used as it is")  # fmt: skip
    add("--output", type=Path, metavar="DIR", help=f"folder for {', '.join(RESULTS)}")
    return parser.parse_args()


def main() -> int:
    return run(lambda: run_experiment(parse_arguments()))


if __name__ == "__main__":
    sys.exit(main())
