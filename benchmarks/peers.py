"""Time the grid search of softmax_sgd.py next to what one would use instead.

    pip install -r requirements.txt -r benchmarks/requirements.txt
    python -m benchmarks.peers            # some minutes, on a quiet machine with the data present

Each contender trains the models of the default grid for one epoch, from zero weights, and evaluates
them on the validation images. All take the step of softmax_sgd.py, on the same minibatches in the
same order, and must reach the same validation metrics as softmax_sgd.py.

Contenders that train one model at a time are timed on one model per batch size, and their time is
scaled up to the grid. The others train all models of a batch size together. Like softmax_sgd.py,
they train as many batch sizes at the same time as there are cores. For all, NumPy and PyTorch use
one thread in each call; JAX uses as many as it likes.

Each contender has a process of its own. They take turns, in several rounds after a first one that
warms up and compiles. Reported are the median time of a contender and, as its relative time, the
median over the rounds of its time divided by that of softmax_sgd.py in the same round.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

from download_data import DATA
from softmax_sgd import BLAS_THREADS, CLASSES, Grid, load, minibatches, search, split

SEED = 0
GRID = Grid(epochs=1)
MODELS = np.array(list(itertools.product(GRID.learning_rates, GRID.alphas)), np.float32)
ONE_MODEL = MODELS[-1:]  # the largest rate and alpha, as a mistake in these shows most there
TOLERANCE = 1e-4  # between metrics of the same model; one validation image more or less is 0.8e-4


class Data:
    """The training files, split and in minibatches as softmax_sgd.py has them."""

    def __init__(self):
        self.X, self.y, _, _ = load(DATA)
        self.train, self.validation = split(len(self.X), 0.2, np.random.default_rng(SEED))

    def minibatches(self, batch_size: int) -> np.ndarray:
        """Row numbers: (minibatches, batch_size). All batch sizes divide the 48,000 images."""
        rng = np.random.default_rng([SEED, batch_size])
        return np.stack(list(minibatches(self.train, batch_size, rng)))

    def arrays(self, convert: Callable) -> list:
        """X, y, X_validation and y_validation, each converted."""
        X, y, rows = self.X, self.y, self.validation
        return [convert(array) for array in (X, y, X[rows], y[rows])]


# --- Contenders -----------------------------------------------------------------------------------
# Each takes the data, prepares itself, and returns a function
#     train(batches, learning_rates, alphas) -> validation cross-entropy and accuracy,
# which trains K models with the same batch size for one epoch. All but `batches` have shape (K,).
# For contenders that train one model at a time, K is 1.


def numpy_naive(data):
    X, y, X_validation, y_validation = data.arrays(np.asarray)
    X, X_validation = X.astype(np.float64), X_validation.astype(np.float64)
    Y = np.eye(CLASSES)[y]

    def softmax(Z):
        E = np.exp(Z - Z.max(axis=1, keepdims=True))
        return E / E.sum(axis=1, keepdims=True)

    def train(batches, learning_rate, alpha):
        W, b = np.zeros((X.shape[1], CLASSES)), np.zeros(CLASSES)
        for rows in batches:
            D = softmax(X[rows] @ W + b) - Y[rows]
            W = W - learning_rate * (X[rows].T @ D / len(rows) + alpha * W)
            b = b - learning_rate * D.mean(axis=0)
        Yhat = softmax(X_validation @ W + b)
        cross_entropy = -np.log(Yhat[np.arange(len(Yhat)), y_validation]).mean()
        return cross_entropy, (Yhat.argmax(axis=1) == y_validation).mean()

    return train


def scikit_learn(data):
    from sklearn.metrics import accuracy_score, log_loss
    from sklearn.neural_network import MLPClassifier

    X, y, X_validation, y_validation = data.arrays(np.asarray)

    def train(batches, learning_rate, alpha):
        n = batches.shape[1]
        model = MLPClassifier((), solver="sgd", momentum=0, shuffle=False, batch_size=n)
        # The model divides its alpha by the batch size.
        model.set_params(learning_rate_init=learning_rate.item(), alpha=alpha.item() * n)
        # No option replaces the random start: take one step, then set the weights to zero.
        model.partial_fit(X[batches[0]], y[batches[0]], classes=np.arange(CLASSES))
        for array in (*model.coefs_, *model.intercepts_):
            array[:] = 0
        order = batches.ravel()
        model.partial_fit(X[order], y[order])
        Yhat = model.predict_proba(X_validation)
        return log_loss(y_validation, Yhat), accuracy_score(y_validation, Yhat.argmax(axis=1))

    return train


def torch_loader(data):
    import torch
    from torch.nn.functional import cross_entropy
    from torch.utils.data import DataLoader, TensorDataset

    X, y, X_validation, y_validation = data.arrays(torch.from_numpy)

    def train(batches, learning_rate, alpha):
        model = torch.nn.Linear(X.shape[1], CLASSES)
        torch.nn.init.zeros_(model.weight)
        torch.nn.init.zeros_(model.bias)
        decayed = {"params": [model.weight], "weight_decay": alpha.item()}
        optimizer = torch.optim.SGD([decayed, {"params": [model.bias]}], lr=learning_rate.item())
        for x, labels in DataLoader(TensorDataset(X, y), batch_sampler=batches.tolist()):
            optimizer.zero_grad()
            cross_entropy(model(x), labels).backward()
            optimizer.step()
        with torch.no_grad():
            Z = model(X_validation)
            accuracy = (Z.argmax(dim=1) == y_validation).float().mean()
            return cross_entropy(Z, y_validation).item(), accuracy.item()

    return train


def torch_stacked(data):
    import torch

    X, y, X_validation, y_validation = data.arrays(torch.from_numpy)
    Y = torch.eye(CLASSES)[:, y].contiguous()

    def logits(W, b, x):  # (c, K, n), from W of shape (m, cK)
        return torch.addmm(b, x, W).T.contiguous().view(CLASSES, -1, len(x))

    @torch.no_grad()  # in each thread
    def train(batches, learning_rates, alphas):
        rates, alphas = (torch.tensor(a).repeat(CLASSES) for a in (learning_rates, alphas))  # (cK,)
        W, b = torch.zeros(X.shape[1], len(rates)), torch.zeros(len(rates))
        for rows in torch.from_numpy(batches):
            x, n = X[rows], len(rows)
            D = torch.softmax(logits(W, b, x), dim=0).sub_(Y[:, None, rows]).div_(n).view(-1, n)
            W.addcmul_(rates, (x.T @ D.T).addcmul_(alphas, W), value=-1)
            b.addcmul_(rates, D.sum(dim=1), value=-1)
        Z = logits(W, b, X_validation)
        accuracy = (Z.argmax(dim=0) == y_validation).float().mean(dim=1)
        examples = torch.arange(len(y_validation))
        return -torch.log_softmax(Z, dim=0)[y_validation, :, examples].mean(dim=0), accuracy

    return train


def jax_stacked(data):
    import jax
    import jax.numpy as jnp

    def logits(W, b, x):  # (c, K, n), from W of shape (m, cK)
        return (x @ W + b).T.reshape(CLASSES, -1, len(x))

    @jax.jit  # the whole epoch
    def epoch(arrays, batches, learning_rates, alphas):
        X, y, X_validation, y_validation = arrays
        rates, alphas = jnp.tile(learning_rates, CLASSES), jnp.tile(alphas, CLASSES)  # (cK,)

        def step(model, rows):
            W, b = model
            x = X[rows]
            D = jax.nn.softmax(logits(W, b, x), axis=0)
            D -= jax.nn.one_hot(y[rows], CLASSES, axis=0)[:, None]
            D = D.reshape(-1, len(x)) / len(x)
            return (W - rates * (x.T @ D.T + alphas * W), b - rates * D.sum(axis=1)), None

        start = jnp.zeros((X.shape[1], len(rates))), jnp.zeros(len(rates))
        model, _ = jax.lax.scan(step, start, batches)
        log_Yhat = jax.nn.log_softmax(logits(*model, X_validation), axis=0)
        log_yhat = jnp.take_along_axis(log_Yhat, y_validation[None, None], axis=0)
        return -log_yhat.mean(axis=(0, 2)), (log_Yhat.argmax(axis=0) == y_validation).mean(axis=1)

    arrays = data.arrays(jnp.asarray)

    def train(batches, learning_rates, alphas):
        metrics = epoch(arrays, batches, learning_rates, alphas)
        return jax.block_until_ready(metrics)  # JAX returns before it has computed them

    return train


class Contender(NamedTuple):
    name: str
    prepare: Callable | None  # None for this project, whose search trains the whole grid
    stacked: bool  # or one model at a time


CONTENDERS = [
    Contender("this project", None, stacked=True),
    Contender("NumPy, naive, float64", numpy_naive, stacked=False),
    Contender("scikit-learn, MLPClassifier", scikit_learn, stacked=False),
    Contender("PyTorch, DataLoader", torch_loader, stacked=False),
    Contender("PyTorch, stacked", torch_stacked, stacked=True),
    Contender("JAX, stacked", jax_stacked, stacked=True),
]


# --- Timing ---------------------------------------------------------------------------------------
# Each contender has a process, which calls `prepare` once, and `run` in every round.


def prepare(contender: Contender) -> None:
    """Define train_grid(), which returns the metrics: (2, batch sizes, models)."""
    global train_grid
    data = Data()
    if contender.prepare is None:

        def train_grid():
            curves, _, _, _ = search(data.X, data.y, data.train, data.validation, GRID, SEED)
            return np.reshape(curves, (2, len(GRID.batch_sizes), len(MODELS)))
    else:
        train = contender.prepare(data)
        learning_rates, alphas = (MODELS if contender.stacked else ONE_MODEL).T
        threads = ThreadPoolExecutor(os.cpu_count() if contender.stacked else 1)
        all_batches = [data.minibatches(batch_size) for batch_size in GRID.batch_sizes]

        def train_one_size(batches):
            return np.reshape(train(batches, learning_rates, alphas), (2, -1))

        def train_grid():
            return np.stack(list(threads.map(train_one_size, all_batches)), axis=1)


def run() -> tuple[float, np.ndarray]:
    """Train the models: the seconds, scaled up to the whole grid, and the metrics."""
    start = time.perf_counter()
    metrics = train_grid()
    seconds = time.perf_counter() - start
    return seconds * len(MODELS) / metrics.shape[-1], metrics


def assert_same(name: str, metrics: np.ndarray, expected: np.ndarray) -> None:
    """Exit unless a contender reached the metrics of softmax_sgd.py."""
    expected = expected[..., -metrics.shape[-1] :]  # ONE_MODEL is the last of MODELS
    if not np.allclose(metrics, expected, rtol=0, atol=TOLERANCE):
        sys.exit(f"{name} reaches\n{metrics}\nwhere softmax_sgd.py reaches\n{expected}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the results as JSON")
    options = parser.parse_args()

    for variable in BLAS_THREADS:  # NumPy and PyTorch read these when they start
        os.environ[variable] = "1"
    spawn = multiprocessing.get_context("spawn")  # a fresh Python
    processes = [ProcessPoolExecutor(1, spawn, prepare, (each,)) for each in CONTENDERS]
    seconds = np.empty((options.rounds + 1, len(CONTENDERS)))
    for turn in range(options.rounds + 1):
        print(f"round {turn} of {options.rounds}", file=sys.stderr, flush=True)
        for i, (contender, process) in enumerate(zip(CONTENDERS, processes)):
            seconds[turn, i], metrics = process.submit(run).result()
            if i == 0:
                expected = metrics
            assert_same(contender.name, metrics, expected)
    seconds = seconds[1:]  # without the warm-up

    rows = []
    print(f"{'':27}  seconds  relative time")
    for contender, times in zip(CONTENDERS, seconds.T):
        row = {"seconds": median(times), "relative": median(times / seconds[:, 0])}
        print(f"{contender.name:27}  {row['seconds']:7.2f}  {row['relative']:13.1f}")
        rows.append({"name": contender.name, **row})
    results = {
        "contenders": rows,
        "rounds": options.rounds,
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in ("numpy", "scikit-learn", "torch", "jax")},
    }
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n", newline="\n")


if __name__ == "__main__":
    main()
