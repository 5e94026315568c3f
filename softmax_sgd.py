# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=1.26", "requests>=2.31"]
# ///
r"""Softmax regression on Fashion-MNIST, by minibatch SGD and a grid search (CS/DS541, Homework 2).

To run it, with Python 3.10 or newer, in the folder of this file:

    python3 -m venv .venv
    .venv/bin/python -m pip install -r requirements.txt
    .venv/bin/python softmax_sgd.py

(On Windows: `py -m venv .venv`, and then `.venv\Scripts\python`. With uv, `uv run softmax_sgd.py`
is enough.) The last command downloads the data if they are missing; the search takes two to four
minutes on two cores (--help: options). Another processor may round differently, which can change
the last digits or even the winner.

For an image x, the model predicts the probability of each class k:

    ŷ_k = exp z_k / Σ_j exp z_j,    z = Wx + b                                            (1)

Row k of W is the assignment's w⁽ᵏ⁾: W is the transpose of the assignment's W. Training minimises
the regularised cross-entropy of n examples. Images are the rows of X; their one-hot labels and
probabilities are the columns of Y and Ŷ, as W Xᵀ has a column for each image:

    loss(W, b) = −1/n Σ_i Σ_k Y_ki log Ŷ_ki + α/2 ‖W‖²                                    (2)

The last term is not divided by n and does not include the biases b. The gradients (problem 2 of the
assignment, derived in report.pdf) are

    dW = (Ŷ − Y)X/n + αW,    db_k = Σ_i (Ŷ_ki − Y_ki)/n                                   (3)

SGD takes one step for each minibatch of n examples, with the learning rate ε:

    W ← W − ε dW,    b ← b − ε db                                                         (4)

Shapes, for n examples of m pixels and c classes:

    X, y         (n, m) pixels in 0..1, and (n,) labels in 0..c-1; one image is X[:1], y[:1]
    W, b         (c, m) and (c,); dW and db the same
    Z, Ŷ, Y      (c, n)
    alpha, learning_rate, cross_entropy, accuracy    numbers

Models that share a batch size are trained together, as a *stack*, because one tall matrix product
is faster than many small ones. For K models, all but X, y and Y have one more axis, in front: W is
(K, c, m), b (K, c), Ŷ (K, c, n), and alpha and all other numbers (K,). W[0] is the first model.
"""

import os
import sys

# Each stack has its own thread, so BLAS needs only one. It reads these variables once, when NumPy
# is first imported.
BLAS_THREADS = (
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
if "numpy" in sys.modules:  # too late; `search` warns, unless the user has set one of them
    BLAS_IS_SLOW = not any(variable in os.environ for variable in BLAS_THREADS)
else:
    BLAS_IS_SLOW = False
    for variable in BLAS_THREADS:
        os.environ.setdefault(variable, "1")

import argparse
import contextlib
import itertools
import json
import math
import shutil
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from download_data import DATA, UserError, ensure, folder_path, show

CLASSES = 10
MAX_STACK = 16  # models in a stack; larger stacks are no faster
RESULT_FILES = ("model.npz", "curves.npz", "results.json")  # in this order: see save

# --- Data -----------------------------------------------------------------------------------------


def load(data_dir: str | os.PathLike) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Read X, y, X_test, y_test from the assignment's four files, with pixels divided by 255.

    Images are float32 (n, m), labels integers (n,). Raises UserError, naming the file, if one is
    missing or damaged, or if its shape, pixels or labels are not what is expected.
    """
    X, y = load_part(data_dir, "train")
    X_test, y_test = load_part(data_dir, "test")
    if X.shape[1] != X_test.shape[1]:
        raise UserError(
            f"{Path(data_dir, 'fashion_mnist_test_images.npy')}: {X_test.shape[1]} pixels in an "
            f"image, but {X.shape[1]} in fashion_mnist_train_images.npy"
        )
    return X, y, X_test, y_test


def load_part(data_dir: str | os.PathLike, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Read X and y of a part, "train" or "test"."""
    images = Path(data_dir, f"fashion_mnist_{part}_images.npy")
    labels = Path(data_dir, f"fashion_mnist_{part}_labels.npy")
    X, y = read_npy(images), read_npy(labels)
    if X.ndim != 2:
        raise UserError(f"{images}: shape {X.shape}, not (n, pixels); try X.reshape(len(X), -1)")
    if X.size == 0:
        raise UserError(f"{images}: shape {X.shape}, which is empty")
    if y.ndim != 1:
        raise UserError(
            f"{labels}: shape {y.shape}, not (n,); try y.argmax(axis=1) if the labels are one-hot, "
            "and otherwise y.ravel()"
        )
    if len(y) != len(X):
        raise UserError(f"{labels}: {len(y)} labels for {len(X)} images")
    # NaN fails this test, too. A largest pixel of at most 16 means another scale, such as 0..1.
    if not (X.min() >= 0 and 16 < X.max() <= 255):
        raise UserError(
            f"{images}: pixels from {X.min()} to {X.max()}; 0 to 255 are expected, as they "
            "will be divided by 255"
        )
    if not np.isin(y, np.arange(CLASSES)).all():
        raise UserError(
            f"{labels}: labels from {y.min()} to {y.max()}; whole numbers from 0 to {CLASSES - 1} "
            "are expected. If they start at 1, save y - 1; for more classes, change CLASSES in "
            "softmax_sgd.py"
        )
    X = np.ascontiguousarray(X, np.float32)
    X /= 255
    return X, y.astype(np.intp)


def read_npy(path: Path) -> np.ndarray:
    """Read an array of real numbers. Nothing is unpickled, as that could run a hostile program."""
    try:
        with open(path, "rb") as file:
            # np.load would take any other format for a pickle, and advise allow_pickle=True.
            if file.read(6) != np.lib.format.MAGIC_PREFIX:
                raise ValueError("not in the format .npy, which np.save writes")
            file.seek(0)
            array = np.lib.format.read_array(file, allow_pickle=False)
            if file.read(1):  # as after a transfer that turned \n into \r\n, and shifted all pixels
                raise ValueError("more bytes than its header says; copy or save it again")
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file. Four are needed: fashion_mnist_{{train,test}}_{{images,labels}}"
            ".npy. To fetch Fashion-MNIST into a folder DIR: download_data.py --data-dir DIR"
        ) from None
    except Exception as error:  # for a damaged header, NumPy raises half a dozen types
        # NumPy goes on to advise allow_pickle=True; that is cut off.
        message = str(error).partition("\n")[0].partition(" when allow_pickle")[0]
        raise UserError(f"{path}: cannot be read: {message}") from None
    if array.dtype.kind not in "buif":  # bool, unsigned, int, float
        raise UserError(f"{path}: holds {array.dtype}, not real numbers")
    return array


def split(n: int, fraction: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Randomly split the rows 0..n-1 into training rows and a `fraction` for validation."""
    rows = rng.permutation(n)
    n_validation = max(1, round(n * fraction))
    return rows[n_validation:], rows[:n_validation]


# --- Model ----------------------------------------------------------------------------------------


def product(A, B) -> np.ndarray:
    """A @ B. If A is a stack, it is multiplied as one tall matrix, as K small ones take longer."""
    tall = A.reshape(-1, A.shape[-1])  # (K, c, m) as (Kc, m)
    return (tall @ B).reshape(*A.shape[:-1], B.shape[-1])


def logits(W, b, X) -> np.ndarray:
    """z of equation (1) minus its maximum over the classes, so that exp cannot overflow.

    Subtracting the same number from all z of an example changes none of its probabilities. Raises
    ValueError if b does not have one number for each row of W.
    """
    if b.shape != W.shape[:-1]:
        raise ValueError(f"b has the shape {b.shape}; with W {W.shape}, {W.shape[:-1]} is expected")
    Z = product(W, X.T) + b[..., None]  # (c, n) or (K, c, n): the classes are the last axis but one
    return Z - Z.max(axis=-2, keepdims=True)


def softmax(W, b, X) -> np.ndarray:
    """The probabilities Ŷ of equation (1)."""
    exp_Z = np.exp(logits(W, b, X))
    return exp_Z / exp_Z.sum(axis=-2, keepdims=True)


def check_labels(y, X) -> None:
    """Raise ValueError unless y has one label for each image of X: NumPy would broadcast others."""
    if np.shape(y) != (len(X),):
        raise ValueError(
            f"y has the shape {np.shape(y)}; for {len(X)} images, ({len(X)},) is expected"
        )


class Metrics(NamedTuple):
    """Numbers for one model; for a stack, arrays (K,); for a search, with the axes of its grid."""

    cross_entropy: np.ndarray
    accuracy: np.ndarray


def evaluate(W, b, X, y) -> Metrics:
    """The unregularised cross-entropy, and the accuracy.

    The loss of an image of class k is -log ŷ_k = log(Σ_j exp z_j) - z_k.
    """
    check_labels(y, X)
    Z = logits(W, b, X)
    losses = np.log(np.exp(Z).sum(axis=-2)) - Z[..., y, np.arange(len(y))]
    correct = Z.argmax(axis=-2) == y
    # The mean in float64, as the search must tell nearly equal models apart.
    return Metrics(losses.mean(axis=-1, dtype=np.float64), correct.mean(axis=-1))


def loss(W, b, X, y, alpha) -> np.ndarray:
    """The regularised cross-entropy (2). SGD does not need it; tests check the gradients by it."""
    return evaluate(W, b, X, y).cross_entropy + alpha / 2 * np.square(W).sum(axis=(-2, -1))


def gradients(W, b, X, y, alpha) -> tuple[np.ndarray, np.ndarray]:
    """dW and db of equation (3)."""
    check_labels(y, X)
    D = softmax(W, b, X)
    D[..., y, np.arange(len(y))] -= 1  # now Ŷ − Y, as Y is 1 in row y[i] of column i, and else 0
    D /= len(X)
    dW = product(D, X)
    # alpha gets the shape (K, 1, 1) for a stack; and the dtype of dW, so that αW has it, too.
    alpha = np.asarray(alpha, dW.dtype)[..., None, None]
    dW += alpha * W  # in place, as dW is large
    return dW, D.sum(axis=-1)


# --- Stochastic gradient descent ------------------------------------------------------------------


def minibatches(rows, batch_size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield all `rows` in a new random order, `batch_size` at a time; the last may hold fewer.

    This is one epoch. Call it again for the next one, as a generator can be used only once.
    """
    order = rng.permutation(rows)
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def sgd(W, b, X, y, alpha, learning_rate, batches: Iterable) -> tuple[np.ndarray, np.ndarray]:
    """W and b after one step (4) for each batch; a batch is an array of row numbers of X and y."""
    W, b = W.copy(), b.copy()  # the caller keeps its own
    rate_b = np.asarray(learning_rate, W.dtype)[..., None]  # one number for each vector (c,)
    rate_W = rate_b[..., None]  # and for each matrix (c, m)
    for rows in batches:
        dW, db = gradients(W, b, X[rows], y[rows], alpha)
        dW *= rate_W  # in place, as dW is large
        W -= dW
        b -= rate_b * db
    return W, b


# --- Grid search ----------------------------------------------------------------------------------


class Grid(NamedTuple):
    """The values to try, which must ascend. Every number of epochs from 1 to `epochs` is tried."""

    batch_sizes: tuple[int, ...] = (8, 16, 32, 64)
    learning_rates: tuple[float, ...] = (0.005, 0.01, 0.02, 0.05)
    alphas: tuple[float, ...] = (0.0, 1e-5, 1e-4, 1e-3)
    epochs: int = 60

    def axes(self) -> dict:
        """The axes of the search's curves: for each hyperparameter, all values tried."""
        return {
            "batch_size": self.batch_sizes,
            "learning_rate": self.learning_rates,
            "alpha": self.alphas,
            "epochs": range(1, self.epochs + 1),
        }


class Stack:
    """K models with the same batch size, trained together on the same minibatches.

    `learning_rates` and `alphas` have the shape (K,): one of each for each model.
    """

    def __init__(self, m, dtype, seed, batch_size, learning_rates, alphas):
        self.batch_size = batch_size
        self.learning_rates, self.alphas = np.array(learning_rates, dtype), np.array(alphas, dtype)
        # Seeded so that a model sees the same minibatches whatever else is in the grid.
        self.rng = np.random.default_rng([seed, batch_size])
        # The loss is convex, so any starting point will do; we use zero.
        K = len(alphas)
        self.W, self.b = np.zeros((K, CLASSES, m), dtype), np.zeros((K, CLASSES), dtype)
        # Each model's lowest validation cross-entropy so far, and the W and b that reached it.
        self.lowest = np.full(K, np.inf)
        self.best_W, self.best_b = self.W.copy(), self.b.copy()

    def train_epoch(self, X, y, rows, X_validation, y_validation, stop: threading.Event) -> Metrics:
        """Train on the rows for one epoch, or until `stop` is set; evaluate; keep what is better.

        Returns the validation metrics.
        """
        batches = minibatches(rows, self.batch_size, self.rng)
        # After Ctrl-C, no more of them: see search.
        batches = itertools.takewhile(lambda batch: not stop.is_set(), batches)
        with np.errstate(all="ignore"):  # models may diverge
            self.W, self.b = sgd(self.W, self.b, X, y, self.alphas, self.learning_rates, batches)
            metrics = evaluate(self.W, self.b, X_validation, y_validation)
        better = metrics.cross_entropy < self.lowest  # never if it is NaN
        self.lowest[better] = metrics.cross_entropy[better]
        self.best_W[better] = self.W[better]
        self.best_b[better] = self.b[better]
        return metrics


@contextlib.contextmanager
def short_switch_interval() -> Iterator[None]:
    """For a while, let threads take Python's lock (the GIL) from each other after 1 ms, not 5 ms.

    NumPy gives up the lock during each large operation, and must get it back after it. With 5 ms,
    the search took about 10% longer on two cores.
    """
    interval = sys.getswitchinterval()
    sys.setswitchinterval(0.001)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


def search(
    X, y, train, validation, grid: Grid, seed: int, progress: Callable = lambda epochs, lowest: None
) -> tuple[Metrics, tuple[int, ...], np.ndarray, np.ndarray]:
    """Train all models of the grid on the rows `train`; evaluate them on `validation` every epoch.

    Returns four things: the curves, which are the validation metrics of each model after each
    epoch, with the axes `grid.axes()`; the point, which is the indices in them of the best model
    at its best epoch; and its W (c, m) and b (c,). Calls `progress` after every epoch with the
    number of epochs done and the lowest cross-entropy so far, even of a model that diverges later.
    Raises FloatingPointError if every model diverges.
    """
    if BLAS_IS_SLOW:
        warnings.warn(
            "NumPy was imported before softmax_sgd, so BLAS uses all cores in each thread, and the "
            "search may take many times as long. Restart Python, and import softmax_sgd first",
            stacklevel=2,
        )
    pairs = np.array(list(itertools.product(grid.learning_rates, grid.alphas)))
    # The number of stacks for each batch size. It must not depend on the number of cores, because
    # the last digits of a model depend on its stack.
    n_stacks = math.ceil(len(pairs) / MAX_STACK)
    if len(grid.batch_sizes) == 1:  # a single stack would keep only one core busy
        n_stacks = min(max(n_stacks, 2), len(pairs))
    stacks = [  # in the order of the grid
        Stack(X.shape[1], X.dtype, seed, batch_size, learning_rates=part[:, 0], alphas=part[:, 1])
        for batch_size in grid.batch_sizes
        for part in np.array_split(pairs, n_stacks)
    ]
    X_validation, y_validation = X[validation], y[validation]
    stop = threading.Event()

    def train_one_epoch(stack: Stack) -> Metrics:
        return stack.train_epoch(X, y, train, X_validation, y_validation, stop)

    history = []  # for each epoch, (2, models): the cross-entropies and the accuracies
    with ThreadPoolExecutor(os.cpu_count()) as pool, short_switch_interval():
        try:
            for epoch in range(1, grid.epochs + 1):
                metrics = list(pool.map(train_one_epoch, stacks))  # each is two rows of K numbers
                history.append(np.concatenate(metrics, axis=1))
                progress(epoch, min(stack.lowest.min() for stack in stacks))
        except KeyboardInterrupt:
            # Do not wait for the end of the epoch, and let no second Ctrl-C disturb the shutdown.
            previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
            stop.set()
            pool.shutdown()
            signal.signal(signal.SIGINT, previous)
            raise

    shape = tuple(len(values) for values in grid.axes().values())
    cross_entropy, accuracy = np.stack(history, axis=-1)  # (models, epochs)
    curves = Metrics(cross_entropy.reshape(shape), accuracy.reshape(shape))
    point = best_point(curves)
    winner = np.ravel_multi_index(point[:-1], shape[:-1])  # its number among the models
    # Each stack has kept, for every model, the W and b of that model's best epoch. For the winner,
    # this is the epoch of the point.
    W = np.concatenate([stack.best_W for stack in stacks])[winner]
    b = np.concatenate([stack.best_b for stack in stacks])[winner]
    return curves, point, W, b


def best_point(curves: Metrics) -> tuple[int, ...]:
    """The indices of the lowest cross-entropy of all models that did not diverge."""
    cross_entropy = without_diverged(curves)
    if not np.isfinite(cross_entropy).any():
        raise FloatingPointError("every model diverged; try smaller learning rates or alphas")
    return tuple(map(int, np.unravel_index(cross_entropy.argmin(), cross_entropy.shape)))


def without_diverged(curves: Metrics) -> np.ndarray:
    """The cross-entropy, but infinite in all epochs of a model that diverged.

    A model has diverged if its cross-entropy is infinite or NaN in any epoch, as W or b overflowed.
    Its training is unstable, so any good early epoch is luck.
    """
    finite = np.isfinite(curves.cross_entropy).all(axis=-1, keepdims=True)
    return np.where(finite, curves.cross_entropy, np.inf)


# --- Command line ---------------------------------------------------------------------------------


def run_experiment(options: argparse.Namespace) -> None:
    """Load, split, search, choose, test, and report, as the command line asks."""
    is_default = options.data_dir.resolve() == DATA.resolve()
    if is_default:
        ensure(DATA)
    X, y, X_test, y_test = load(options.data_dir)
    train, validation = split(len(X), 0.2, np.random.default_rng(options.seed))
    grid = Grid(
        batch_sizes=ascending(options.batch_sizes),
        learning_rates=ascending(options.learning_rates),
        alphas=ascending(options.alphas),
        epochs=options.epochs,
    )
    if grid.batch_sizes[-1] > len(train):
        raise UserError(
            f"--batch-sizes: {grid.batch_sizes[-1]} is more than the {len(train)} training images; "
            "give smaller ones"
        )
    counts = {"training": len(train), "validation": len(validation), "test": len(X_test)}
    axes = grid.axes()
    images = ", ".join(f"{count} {part}" for part, count in counts.items())
    lengths = " x ".join(str(len(values)) for values in axes.values())
    # If stdout cannot be written (a full disk), stop before the long search. But with --output,
    # search all the same, as the results will be saved.
    try:
        print(f"Images: {images} (split by seed {options.seed})")
        print(f"Grid: {lengths} ({' x '.join(map(spaced, axes))})", flush=True)
    except OSError:
        if not options.output:
            raise

    start = time.monotonic()

    def progress(epochs, lowest):
        left = (time.monotonic() - start) / epochs * (grid.epochs - epochs)
        show(
            f"{epochs} of {grid.epochs} epochs, {left:.0f} s left; "
            f"lowest validation cross-entropy so far {lowest:.4f}",
            live=True,
        )

    curves, point, W, b = search(X, y, train, validation, grid, options.seed, progress)
    seconds = time.monotonic() - start
    show(f"searched in {seconds:.1f} s")
    best = {name: axes[name][i] for name, i in zip(axes, point, strict=True)}
    metrics = {
        "training": evaluate(W, b, X[train], y[train]),
        "validation": Metrics(*(curve[point] for curve in curves)),
    }
    if not options.no_test:  # the test set is used here, and nowhere else
        metrics["test"] = evaluate(W, b, X_test, y_test)

    results = {
        "seed": options.seed,
        # Only the name of the default folder, because its path differs between machines.
        "data_dir": DATA.name if is_default else str(options.data_dir.resolve()),
        "grid": grid._asdict(),
        "split": counts,
        "best": best,
        **{
            part: {name: float(value) for name, value in values._asdict().items()}
            for part, values in metrics.items()
        },
        "seconds": seconds,
        "numpy": np.__version__,
    }
    try:  # save before printing, which may fail, too; and print even if saving fails
        if options.output:
            save(options.output, results, grid, curves, W, b)
    finally:
        print_lowest(grid, without_diverged(curves).min(axis=-1))
        print("\nBest: " + ", ".join(f"{spaced(name)} {value}" for name, value in best.items()))
        print_edges(axes, best, explore_hint=not options.no_test)
        print()
        for part, (cross_entropy, accuracy) in metrics.items():
            print(f"{part.capitalize()} cross-entropy (unregularized): {cross_entropy:.4f}")
            print(f"{part.capitalize()} accuracy: {accuracy:.2%}")
        print(end="", flush=True)


def ascending(values: Iterable) -> tuple:
    """Sorted, without duplicates."""
    return tuple(sorted(set(values)))


def spaced(name: str) -> str:
    return name.replace("_", " ")


def print_lowest(grid: Grid, lowest: np.ndarray) -> None:
    """Print the lowest cross-entropy for each batch size and learning rate, and for each alpha.

    `lowest` has the axes of the grid but for epochs: the lowest of each model, infinite if it
    diverged.
    """
    best = lowest.min()

    def cell(value: float) -> str:
        text = f"{value:.4f}" if np.isfinite(value) else "diverged"
        return text + ("*" if value == best else " ")

    print("\nLowest validation cross-entropy by batch size and learning rate (* best):")
    rows = [["batch size", *(f"{learning_rate} " for learning_rate in grid.learning_rates)]]
    for batch_size, row in zip(grid.batch_sizes, lowest.min(axis=2), strict=True):
        rows.append([str(batch_size), *map(cell, row)])
    print_aligned(rows)
    print("by alpha:")
    rows = [["alpha", *(f"{alpha} " for alpha in grid.alphas)]]
    rows.append(["", *map(cell, lowest.min(axis=(0, 1)))])
    print_aligned(rows)
    n_diverged = np.count_nonzero(np.isinf(lowest))
    if n_diverged:
        print(f"{n_diverged} of {lowest.size} models diverged: their numbers became infinite.")


def print_aligned(rows: list[list[str]]) -> None:
    """Print a table with its columns aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(map(str.rjust, row, widths)).rstrip())


def print_edges(axes: dict, best: dict, explore_hint: bool) -> None:
    """Print a note for each best value that is the smallest or the largest of several tried.

    If there are any and `explore_hint` is true, a last note says how to explore further.
    """
    smallest = {"batch_size": 1, "alpha": 0, "epochs": 1}  # nothing smaller can be tried
    notes = []
    for name, value in best.items():
        tried = axes[name]
        at_edge = value in (tried[0], tried[-1]) and value != smallest.get(name)
        if len(tried) > 1 and at_edge:
            change = "smaller" if value == tried[0] else "larger"
            notes.append(
                f"Note: {spaced(name)} {value} is at the edge of the grid; try {change} ones"
            )
    if notes and explore_hint:
        notes.append("Note: explore with --no-test until the grid is final")
    for note in notes:
        print(note)


def save(folder: Path, results: dict, grid: Grid, curves: Metrics, W, b) -> None:
    """Write RESULT_FILES, and replace old ones once the new are complete.

    If that fails, what is written stays where it is, and the UserError says where to look.
    """
    where = ""
    try:
        folder.mkdir(parents=True, exist_ok=True)  # it may have been deleted
        new = Path(tempfile.mkdtemp(prefix="results-", dir=folder))
        where = f". What is missing there may be in {new}"
        np.savez(new / "model.npz", W=W, b=b)
        np.savez(new / "curves.npz", **curves._asdict(), **grid._asdict())
        text = json.dumps(results, indent=2) + "\n"
        (new / "results.json").write_text(text, encoding="utf-8", newline="\n")
        # The old results.json goes first and the new one comes last, so that it never lies beside
        # files of an earlier run.
        (folder / "results.json").unlink(missing_ok=True)
        for name in RESULT_FILES:
            os.replace(new / name, folder / name)
        new.rmdir()
    except OSError as error:
        raise UserError(f"the results cannot be written to {folder}: {error}{where}") from None
    show(f"Wrote results.json, model.npz and curves.npz to {folder}")


def try_to_save(folder: Path) -> None:
    """Do now what `save` will do, so that it is unlikely to fail after the search. Raises OSError.

    Each file that is already there is replaced by a copy of itself.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        for name in RESULT_FILES:
            if os.path.lexists(folder / name):
                copy = shutil.copy2(folder / name, temporary)
                os.replace(copy, folder / name)


def number(kind: type, valid: Callable, wanted: str) -> Callable[[str], float]:
    """An argparse type for a number; `wanted` describes the valid ones in its error message."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not valid(value):
            hint = "; write a decimal point, and spaces between values" if "," in text else ""
            raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}{hint}")
        return value

    return parse


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line, and try whether the results can be saved."""
    count = number(int, lambda v: v >= 1, "a whole number of 1 or more")
    rate = number(float, lambda v: 0 < v < math.inf, "a number above 0")
    strength = number(float, lambda v: 0 <= v < math.inf, "a number of 0 or more")
    seed = number(int, lambda v: v >= 0, "a whole number of 0 or more")

    def several(what: str, values: tuple) -> str:
        return f"{what}, separated by spaces (default: {' '.join(map(str, values))})"

    parser = argparse.ArgumentParser(
        description="Train softmax regression on Fashion-MNIST by minibatch SGD: search a grid of "
        "hyperparameters on a validation set, then evaluate the best model once on the test set.",
        epilog="Exit status: 1 if the data are wrong or unavailable, every model diverges, or the "
        "results cannot be written; 2 for a wrong option; 130 after Ctrl-C. To explore in a few "
        "seconds, without a look at the test set: softmax_sgd.py --batch-sizes 64 --epochs 5 "
        "--no-test",
    )
    grid = Grid()
    add = parser.add_argument
    # fmt: off
    add("--batch-sizes", type=count, nargs="+", metavar="N", default=grid.batch_sizes,
        help=several("batch sizes, in examples", grid.batch_sizes))
    add("--learning-rates", type=rate, nargs="+", metavar="R", default=grid.learning_rates,
        help=several("learning rates", grid.learning_rates))
    add("--alphas", type=strength, nargs="+", metavar="A", default=grid.alphas,
        help=several("strengths of the L2 regularisation", grid.alphas))
    add("--epochs", type=count, metavar="N", default=grid.epochs,
        help="largest number of epochs; all smaller ones are tried, too (default: %(default)s)")
    add("--seed", type=seed, metavar="N", default=0,
        help="seed of the split and of the order of the examples (default: %(default)s)")
    add("--data-dir", type=folder_path, metavar="DIR", default=DATA,
        help="folder with the four files fashion_mnist_*.npy. In the default, %(default)s, missing "
        "files are fetched and all are verified; any other folder is used as it is")
    add("--output", type=folder_path, metavar="DIR",
        help="write results.json, model.npz and curves.npz to this folder, or replace them there")
    add("--no-test", action="store_true", help="do not use the test set")
    # fmt: on
    options = parser.parse_args(argv)
    if options.output:
        try:
            try_to_save(options.output)
        except (FileExistsError, NotADirectoryError) as error:
            parser.error(f"argument --output: {error.filename} is not a folder")
        except OSError as error:
            parser.error(f"argument --output: cannot write there: {error}")
    return options


def main(argv: list[str] | None = None) -> None:
    try:
        options = parse_arguments(argv)
        # Some NumPys for macOS warn of floating-point errors that did not happen. This does not
        # reach the threads of the search: see train_epoch.
        with np.errstate(all="ignore"):
            run_experiment(options)
    except (UserError, FloatingPointError) as error:
        show(f"softmax_sgd.py: {error}")
        sys.exit(1)
    except OSError as error:  # of print: a full disk, or a closed pipe, as by `| head -1`
        show(f"softmax_sgd.py: stdout: {error.strerror}")
        if isinstance(error.__context__, UserError):  # the results could not be saved, either
            show(f"softmax_sgd.py: {error.__context__}")
        # Otherwise Python flushes it once more when it ends, and complains.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        show("interrupted")
        sys.exit(130)


if __name__ == "__main__":
    main()
