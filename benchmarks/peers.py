"""Time the grid search of softmax_sgd.py next to what one would use instead. Needs Linux.

    pip install -r requirements.txt -r benchmarks/requirements.txt
    python -m benchmarks.peers            # some minutes, on a quiet machine with the data present

All contenders train the same models, from zero weights, on the same minibatches in the same order,
and evaluate them on the same validation images after every epoch. In every round, each must reach
the validation cross-entropy and accuracy of this project.

Each runs in its own process, which may use every core, like a program that is simply started. They
take turns: in each round, every one of them trains for EPOCHS epochs. Reported are the median time
over the rounds and, as a ratio, the median of the ratios within each round. A contender that trains
one model at a time is timed on one model per minibatch size, and its time scaled up to the grid.

This project and the fastest peer also run as one process per core. All processes do the same work
at the same time, and the time is divided by their number. This is the speed of a program whose work
is divided among the cores by hand, so evenly that none of them ever waits for another.
"""

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

import softmax_sgd
from softmax_sgd import CLASSES, Grid

ROOT = Path(__file__).resolve().parents[1]
SEED = 0
EPOCHS = 4  # trained by each contender in each round
GRID = Grid(epochs=EPOCHS)
# One model per minibatch size, for contenders that train one model at a time: the last of the
# grid, with the largest learning rate and alpha, as a mistake in alpha shows most there.
SAMPLE = GRID._replace(learning_rates=GRID.learning_rates[-1:], alphas=GRID.alphas[-1:])
TOLERANCE = 1e-3  # between metrics of the same model


class Data:
    """The training files, split as the command line splits them."""

    def __init__(self):
        self.X, self.y, _, _ = softmax_sgd.load(ROOT / "data")
        rng = np.random.default_rng(SEED)
        self.train, self.validation = softmax_sgd.split(len(self.X), 0.2, rng)
        self.X_validation, self.y_validation = self.X[self.validation], self.y[self.validation]

    def arrays(self, convert):
        return map(convert, (self.X, self.y, self.X_validation, self.y_validation))

    def orders(self, batch_size):
        """Yield each epoch's order of the training rows, the same as in our search."""
        rng = np.random.default_rng([SEED, batch_size])
        for _ in range(EPOCHS):
            yield rng.permutation(self.train)


# --- Peers ----------------------------------------------------------------------------------------
# Each takes the data, prepares itself, and returns a function
#     fit(batch_size, learning_rates, alphas) -> validation cross-entropy and accuracy.
# A peer that trains K models together takes learning rates and alphas, and returns each of the two
# metrics, with the shape (K,). The others call theirs learning_rate and alpha, of shape (1,).


def numpy_naive(data):
    X, X_validation = data.X.astype(np.float64), data.X_validation.astype(np.float64)
    Y = np.eye(CLASSES)[data.y]

    def softmax(Z):
        E = np.exp(Z - Z.max(axis=1, keepdims=True))
        return E / E.sum(axis=1, keepdims=True)

    def fit(batch_size, learning_rate, alpha):
        W, b = np.zeros((X.shape[1], CLASSES)), np.zeros(CLASSES)
        for order in data.orders(batch_size):
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                D = softmax(X[rows] @ W + b) - Y[rows]
                W = W - learning_rate * (X[rows].T @ D / len(rows) + alpha * W)
                b = b - learning_rate * D.mean(axis=0)
            yhat = softmax(X_validation @ W + b)
            cross_entropy = -np.log(yhat[np.arange(len(yhat)), data.y_validation]).mean()
            accuracy = (yhat.argmax(axis=1) == data.y_validation).mean()
        return cross_entropy, accuracy

    return fit


def scikit_learn(data):
    from sklearn.metrics import accuracy_score, log_loss
    from sklearn.neural_network import MLPClassifier

    def fit(batch_size, learning_rate, alpha):
        model = MLPClassifier((), solver="sgd", momentum=0, shuffle=False, batch_size=batch_size)
        # The model divides its alpha by the minibatch size.
        model.set_params(learning_rate_init=learning_rate.item(), alpha=alpha.item() * batch_size)
        first = slice(batch_size)
        model.partial_fit(data.X[first], data.y[first], classes=np.arange(CLASSES))
        for array in (*model.coefs_, *model.intercepts_):
            array[:] = 0  # no option replaces its random start
        for order in data.orders(batch_size):
            model.partial_fit(data.X[order], data.y[order])
            yhat = model.predict_proba(data.X_validation)
            cross_entropy = log_loss(data.y_validation, yhat)
            accuracy = accuracy_score(data.y_validation, yhat.argmax(axis=1))
        return cross_entropy, accuracy

    return fit


def torch_one(data, loader: bool):
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    X, y, X_validation, y_validation = data.arrays(torch.from_numpy)

    def batches(order, batch_size):
        if loader:
            return DataLoader(TensorDataset(X, y), batch_size, sampler=order.tolist())
        return ((X[rows], y[rows]) for rows in torch.from_numpy(order).split(batch_size))

    def fit(batch_size, learning_rate, alpha):
        model = torch.nn.Linear(X.shape[1], CLASSES)
        torch.nn.init.zeros_(model.weight)
        torch.nn.init.zeros_(model.bias)
        decayed = {"params": [model.weight], "weight_decay": alpha.item()}
        optimizer = torch.optim.SGD([decayed, {"params": [model.bias]}], lr=learning_rate.item())
        for order in data.orders(batch_size):
            for x, labels in batches(order, batch_size):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(x), labels).backward()
                optimizer.step()
            with torch.no_grad():
                Z = model(X_validation)
                cross_entropy = torch.nn.functional.cross_entropy(Z, y_validation).item()
                accuracy = (Z.argmax(dim=1) == y_validation).float().mean().item()
        return cross_entropy, accuracy

    return fit


def torch_stacked(data):
    """By hand: wide matrix products, arrays changed in place, decay and learning rate folded in."""
    import torch

    X, y, X_validation, y_validation = data.arrays(torch.from_numpy)
    Y = torch.eye(CLASSES)[:, y].contiguous()

    @torch.no_grad()
    def fit(batch_size, learning_rates, alphas):
        learning_rates, alphas = torch.tensor(np.float32([learning_rates, alphas]))
        keep = (1 - learning_rates * alphas).repeat(CLASSES)[:, None]
        K = len(alphas)
        W, b = torch.zeros(CLASSES * K, X.shape[1]), torch.zeros(CLASSES * K)
        for order in data.orders(batch_size):
            for rows in torch.from_numpy(order).split(batch_size):
                x, n = X[rows], len(rows)
                Z = torch.addmm(b[:, None], W, x.T).view(CLASSES, K, n)
                D = torch.softmax(Z, dim=0).sub_(Y[:, None, rows])
                D = D.mul_(learning_rates[:, None] / n).view(-1, n)
                W.mul_(keep).addmm_(D, x, alpha=-1)
                b -= D.sum(dim=1)
            Z = torch.addmm(b[:, None], W, X_validation.T).view(CLASSES, K, -1)
            examples = torch.arange(len(y_validation))
            cross_entropy = -torch.log_softmax(Z, dim=0)[y_validation, :, examples].mean(dim=0)
            accuracy = (Z.argmax(dim=0) == y_validation).float().mean(dim=1)
        return cross_entropy, accuracy

    return fit


def jax_stacked(data):
    """The same with JAX, which compiles whole epochs.

    For one model it is twice as fast as jax.grad of the textbook loss.
    """
    import jax
    import jax.numpy as jnp

    arrays = list(data.arrays(jnp.asarray))

    def logits(W, b, x):
        return (W @ x.T + b[:, None]).reshape(CLASSES, -1, len(x))

    @partial(jax.jit, static_argnames="batch_size", donate_argnames=("W", "b"))
    def epoch(W, b, arrays, order, learning_rates, alphas, batch_size):
        X, y, X_validation, y_validation = arrays
        keep = jnp.tile(1 - learning_rates * alphas, CLASSES)

        def step(model, rows):
            W, b = model
            x = X[rows]
            D = jax.nn.softmax(logits(W, b, x), axis=0)
            D -= jax.nn.one_hot(y[rows], CLASSES, axis=0)[:, None]
            D = (D * (learning_rates / len(x))[:, None]).reshape(len(W), -1)
            return (W * keep[:, None] - D @ x, b - D.sum(axis=1)), None

        # The rows must fill the minibatches: every size of the grid divides 48,000 training images.
        model, _ = jax.lax.scan(step, (W, b), order.reshape(-1, batch_size))
        log_yhat = jax.nn.log_softmax(logits(*model, X_validation), axis=0)
        log_yhat_y = jnp.take_along_axis(log_yhat, y_validation[None, None], axis=0)
        accuracy = (log_yhat.argmax(axis=0) == y_validation).mean(axis=1)
        return *model, (-log_yhat_y.mean(axis=(0, 2)), accuracy)

    def fit(batch_size, learning_rates, alphas):
        learning_rates, alphas = jnp.asarray(learning_rates), jnp.asarray(alphas)
        W = jnp.zeros((CLASSES * len(alphas), data.X.shape[1]))
        b = jnp.zeros(len(W))
        for order in data.orders(batch_size):
            W, b, metrics = epoch(W, b, arrays, order, learning_rates, alphas, batch_size)
        return metrics

    return fit


# --- Contenders -----------------------------------------------------------------------------------
# Each takes the data, prepares itself, and returns a function
#     train(grid) -> validation cross-entropy and accuracy: (2, batch sizes, models of each).


def this_project(data):
    sys.setswitchinterval(0.001)  # as softmax_sgd.py does when it is run as a program

    def train(grid):
        X, y, training, validation = data.X, data.y, data.train, data.validation
        workers = len(os.sched_getaffinity(0))
        with threadpool_limits(1):
            curves = softmax_sgd.search(X, y, training, validation, grid, SEED, workers)[0]
        metrics = np.stack([curves.cross_entropy, curves.accuracy])[..., -1]
        return metrics.reshape(2, len(grid.batch_sizes), -1)

    return train


def peer(prepare, data, **options):
    fit = prepare(data, **options)

    def train(grid):
        rates = np.repeat(grid.learning_rates, len(grid.alphas))
        alphas = np.tile(grid.alphas, len(grid.learning_rates))
        fits = [np.reshape(fit(size, rates, alphas), (2, -1)) for size in grid.batch_sizes]
        return np.stack(fits, axis=1)

    return train


class Contender(NamedTuple):
    name: str
    prepare: Callable
    grid: Grid  # on which it is timed: GRID, or SAMPLE if it trains one model at a time


# This project is first and the fastest peer last.
CONTENDERS = [
    Contender("this project", this_project, GRID),
    Contender("NumPy, naive, float64", partial(peer, numpy_naive), SAMPLE),
    Contender("scikit-learn, MLPClassifier", partial(peer, scikit_learn), SAMPLE),
    Contender("PyTorch, DataLoader", partial(peer, torch_one, loader=True), SAMPLE),
    Contender("PyTorch, hand-made batches", partial(peer, torch_one, loader=False), SAMPLE),
    Contender("PyTorch, stacked by hand", partial(peer, torch_stacked), GRID),
    Contender("JAX, jit and scan", partial(peer, jax_stacked), SAMPLE),
    Contender("JAX, stacked", partial(peer, jax_stacked), GRID),
]


# --- Timing ---------------------------------------------------------------------------------------


def start(contender: Contender, data: Data, cores: set[int]):
    """Start a process on these cores that trains each grid sent through the returned pipe."""

    def serve():
        os.sched_setaffinity(0, cores)
        train = contender.prepare(data)
        with threadpool_limits(len(cores)):
            while True:
                end.send(train(end.recv()))

    fork = multiprocessing.get_context("fork")  # which shares the data
    pipe, end = fork.Pipe()
    fork.Process(target=serve, daemon=True).start()
    end.close()
    return pipe


def run(pipes: list, grid: Grid) -> tuple[float, np.ndarray]:
    """Train the grid in every process: seconds per epoch and process, and the first's metrics."""
    begin = time.perf_counter()
    for pipe in pipes:
        pipe.send(grid)
    metrics = [pipe.recv() for pipe in pipes]
    seconds = time.perf_counter() - begin
    return seconds / EPOCHS / len(pipes), metrics[0]


def assert_same(metrics: np.ndarray, expected: np.ndarray, name: str) -> None:
    """Exit unless a contender reached this project's metrics, of the models that it trained."""
    expected = expected[:, :, -metrics.shape[2] :]  # the model of SAMPLE is the last of GRID
    if not np.allclose(metrics, expected, rtol=0, atol=TOLERANCE):
        sys.exit(f"{name} reaches\n{metrics}\nwhere this project reaches\n{expected}")


def compare(title: str, contenders: list[Contender], data, shares: list[set[int]], rounds: int):
    """Time each contender, with a process for each of `shares`, which are sets of cores.

    Returns a row for each contender: its name, its seconds per epoch of the whole grid, and how
    many times slower than this project it is.
    """
    processes = [[start(contender, data, cores) for cores in shares] for contender in contenders]
    seconds = np.empty((rounds + 1, len(contenders)))
    for turn in range(rounds + 1):  # round 0 warms up, and does not count
        print(f"{title}: round {turn} of {rounds}", file=sys.stderr, flush=True)
        for i, (contender, pipes) in enumerate(zip(contenders, processes)):
            seconds[turn, i], metrics = run(pipes, contender.grid)
            if i == 0:
                expected = metrics
            assert_same(metrics, expected, contender.name)
            seconds[turn, i] *= expected.size / metrics.size  # from SAMPLE to the whole grid
    rows = []
    for contender, times in zip(contenders, seconds[1:].T):
        slower = median(times / seconds[1:, 0])
        row = {"seconds_per_epoch": median(times), "times_slower": slower}
        rows.append({"name": contender.name, **row})
    return rows


def print_table(title: str, rows: list[dict]) -> None:
    print(f"\n{title:27}  s per epoch  relative")
    for row in rows:
        print(f"{row['name']:27}  {row['seconds_per_epoch']:11.3f}  {row['times_slower']:8.2f}")


def peak_memory() -> float:
    """The megabytes of the command line's process, in a run of one epoch."""
    command = [sys.executable, "softmax_sgd.py", "--epochs", "1"]
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the results as JSON")
    options = parser.parse_args()
    # The peak of a child counts the memory that it shares with its parent, which so far is little.
    memory = peak_memory()
    data, cores = Data(), os.sched_getaffinity(0)
    together = compare("One process", CONTENDERS, data, [cores], options.rounds)
    print_table("One process", together)
    fastest, each = [CONTENDERS[0], CONTENDERS[-1]], [{core} for core in cores]
    apart = compare("One process per core", fastest, data, each, options.rounds)
    print_table("One process per core", apart)
    print(f"\nEach epoch trains and validates the whole grid. Peak memory: {memory:.0f} MB")
    results = {
        "cores": len(cores),
        "grid": Grid()._asdict(),
        "peak_memory_mb": memory,
        "one_process": together,
        "process_per_core": apart,
    }
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n", newline="\n")


if __name__ == "__main__":
    main()
