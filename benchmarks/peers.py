"""The grid search of softmax_sgd.py, timed beside what one would use instead. Needs Linux.

    pip install -r requirements.txt -r benchmarks/requirements.txt
    python benchmarks/peers.py            # some minutes, on a quiet machine with the data present

Every contender trains the same models, by the same objective, from zero weights, on the same
minibatches in the same order, and measures them on the same validation images after every epoch.
Before it is timed, each must reach our validation cross-entropy. Each lives in processes of its
own, which take turns: in every round all contenders run once, and what is reported is the median
of the rounds; of a ratio, the median of the ratios within each round.

Each runs in two ways: as one process with a thread per core, as a program that is simply started;
and as a process per core with one thread, as a program whose work was divided by hand, and so well
that no core ever waits for another: all do the same at once, and their time is divided by their
number. A peer of several forms counts in the faster one. One that trains model after model is timed
on one model per minibatch size, and multiplied up to the whole grid.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import time
import timeit
from functools import partial
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import softmax_sgd  # noqa: E402, I001  (before NumPy, for it sets BLAS's threads)
import numpy as np  # noqa: E402
from softmax_sgd import CLASSES, Grid  # noqa: E402
from threadpoolctl import threadpool_limits  # noqa: E402

SEED = 0
CORES = len(os.sched_getaffinity(0))
GRID = Grid(epochs=1)
SAMPLE = Grid(learning_rates=(0.05,), alphas=(1e-4,), epochs=1)  # one model per minibatch size
SAMPLED = 10  # its place among those of the grid
CHECKED_EPOCHS, TOLERANCE = 2, 2e-3
EPOCHS = 4  # of our search at a time: its end, where a worker may idle, comes once in 100 epochs


class Data:
    """The training files, split as the command line splits them."""

    def __init__(self):
        self.X, self.y, _, _ = softmax_sgd.load(ROOT / "data")
        rng = np.random.default_rng(SEED)
        self.train, self.validation = softmax_sgd.split(len(self.X), 0.2, rng)
        self.X_validation, self.y_validation = self.X[self.validation], self.y[self.validation]

    def arrays(self, convert):
        return map(convert, (self.X, self.y, self.X_validation, self.y_validation))

    def orders(self, batch_size, epochs):
        """Yield each epoch's order of the training rows, the one that our search takes."""
        rng = np.random.default_rng([SEED, batch_size])
        for _ in range(epochs):
            yield rng.permutation(self.train)


# --- The contenders -------------------------------------------------------------------------------
# Each is a function of the data that gets ready, and returns another:
#     fit(batch_size, learning_rates, alphas, epochs) -> validation cross-entropy of each model.
# The first four train one model at a time: learning_rates and alphas have one element.


def numpy_naive(data):
    X, X_validation = data.X.astype(np.float64), data.X_validation.astype(np.float64)
    Y = np.eye(CLASSES)[data.y]

    def softmax(Z):
        E = np.exp(Z - Z.max(axis=1, keepdims=True))
        return E / E.sum(axis=1, keepdims=True)

    def fit(batch_size, learning_rates, alphas, epochs):
        [learning_rate], [alpha] = learning_rates, alphas
        W, b = np.zeros((X.shape[1], CLASSES)), np.zeros(CLASSES)
        for order in data.orders(batch_size, epochs):
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                D = softmax(X[rows] @ W + b) - Y[rows]
                W = W - learning_rate * (X[rows].T @ D / len(rows) + alpha * W)
                b = b - learning_rate * D.mean(axis=0)
            yhat = softmax(X_validation @ W + b)
            cross_entropy = -np.log(yhat[np.arange(len(yhat)), data.y_validation]).mean()
            (yhat.argmax(axis=1) == data.y_validation).mean()
        return [cross_entropy]

    return fit


def scikit_learn(data):
    from sklearn.metrics import accuracy_score, log_loss
    from sklearn.neural_network import MLPClassifier

    def fit(batch_size, learning_rates, alphas, epochs):
        model = MLPClassifier(hidden_layer_sizes=(), solver="sgd", momentum=0, shuffle=False)
        alpha = alphas[0] * batch_size  # which it divides by the size of the minibatch
        model.set_params(batch_size=batch_size, alpha=alpha, learning_rate_init=learning_rates[0])
        first = slice(batch_size)
        model.partial_fit(data.X[first], data.y[first], classes=np.arange(CLASSES))
        for array in (*model.coefs_, *model.intercepts_):  # it starts at random, and has no option
            array[:] = 0
        for order in data.orders(batch_size, epochs):
            model.partial_fit(data.X[order], data.y[order])
            yhat = model.predict_proba(data.X_validation)
            cross_entropy = log_loss(data.y_validation, yhat)
            accuracy_score(data.y_validation, yhat.argmax(axis=1))
        return [cross_entropy]

    return fit


def torch_one(data, loader: bool):
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    X, y, X_validation, y_validation = data.arrays(torch.from_numpy)

    def batches(order, batch_size):
        if loader:
            return DataLoader(TensorDataset(X, y), batch_size, sampler=order.tolist())
        return ((X[rows], y[rows]) for rows in torch.from_numpy(order).split(batch_size))

    def fit(batch_size, learning_rates, alphas, epochs):
        model = torch.nn.Linear(X.shape[1], CLASSES)
        torch.nn.init.zeros_(model.weight)
        torch.nn.init.zeros_(model.bias)
        decayed = {"params": [model.weight], "weight_decay": alphas[0]}
        optimizer = torch.optim.SGD([decayed, {"params": [model.bias]}], lr=learning_rates[0])
        for order in data.orders(batch_size, epochs):
            for x, labels in batches(order, batch_size):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(x), labels).backward()
                optimizer.step()
            with torch.no_grad():
                Z = model(X_validation)
                cross_entropy = torch.nn.functional.cross_entropy(Z, y_validation).item()
                (Z.argmax(dim=1) == y_validation).float().mean().item()
        return [cross_entropy]

    return fit


def torch_stacked(data):
    """By hand: wide products, in place, and the update folded into the product of the gradient."""
    import torch

    X, y, X_validation, y_validation = data.arrays(torch.from_numpy)
    Y = torch.eye(CLASSES)[:, y].contiguous()

    @torch.no_grad()
    def fit(batch_size, learning_rates, alphas, epochs):
        learning_rates, alphas = torch.tensor([learning_rates, alphas])
        keep = (1 - learning_rates * alphas).repeat(CLASSES)[:, None]
        K = len(alphas)
        W, b = torch.zeros(CLASSES * K, X.shape[1]), torch.zeros(CLASSES * K)
        for order in data.orders(batch_size, epochs):
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
            (Z.argmax(dim=0) == y_validation).float().mean(dim=1)
        return cross_entropy.tolist()

    return fit


def jax_fit(data, step, measure, start):
    """Whole epochs jitted: `step` and `measure` are told the model, `start` tells its shapes."""
    import jax
    import jax.numpy as jnp

    arrays = list(data.arrays(jnp.asarray))

    @partial(jax.jit, static_argnames="batch_size", donate_argnames="model")
    def epoch(model, arrays, order, learning_rates, alphas, batch_size):
        X, y, X_validation, y_validation = arrays

        def update(model, rows):
            return step(*model, X[rows], y[rows], learning_rates, alphas), None

        full = len(order) // batch_size * batch_size
        model, _ = jax.lax.scan(update, model, order[:full].reshape(-1, batch_size))
        if full < len(order):
            model, _ = update(model, order[full:])
        return model, measure(*model, X_validation, y_validation)

    def fit(batch_size, learning_rates, alphas, epochs):
        model = tuple(jnp.zeros(shape) for shape in start(data.X.shape[1], len(alphas)))
        learning_rates, alphas = jnp.asarray(learning_rates), jnp.asarray(alphas)
        for order in data.orders(batch_size, epochs):
            model, measures = epoch(model, arrays, order, learning_rates, alphas, batch_size)
        return np.atleast_1d(measures[0]).tolist()

    return fit


def jax_one(data, stacked: bool = False):
    """The textbook's form; stacked, by vmap."""
    import jax
    import jax.numpy as jnp

    def cross_entropy(W, b, x, labels):
        log_yhat = jax.nn.log_softmax(x @ W + b)
        return -jnp.take_along_axis(log_yhat, labels[:, None], axis=1).mean()

    def step(W, b, x, labels, learning_rate, alpha):
        dW, db = jax.grad(cross_entropy, (0, 1))(W, b, x, labels)
        return W - learning_rate * (dW + alpha * W), b - learning_rate * db

    def measure(W, b, x, labels):
        return cross_entropy(W, b, x, labels), ((x @ W + b).argmax(axis=1) == labels).mean()

    if stacked:
        step = jax.vmap(step, in_axes=(0, 0, None, None, 0, 0))
        measure = jax.vmap(measure, in_axes=(0, 0, None, None))
        return jax_fit(data, step, measure, lambda m, K: ((K, m, CLASSES), (K, CLASSES)))
    return jax_fit(data, step, measure, lambda m, K: ((m, CLASSES), CLASSES))


def jax_wide(data):
    """Stacked by hand, as torch_stacked."""
    import jax
    import jax.numpy as jnp

    def logits(W, b, x):
        return (W @ x.T + b[:, None]).reshape(CLASSES, -1, len(x))

    def step(W, b, x, labels, learning_rates, alphas):
        D = jax.nn.softmax(logits(W, b, x), axis=0)
        D -= jax.nn.one_hot(labels, CLASSES, axis=0)[:, None]
        D = (D * (learning_rates / len(x))[:, None]).reshape(len(W), -1)
        keep = jnp.tile(1 - learning_rates * alphas, CLASSES)
        return W * keep[:, None] - D @ x, b - D.sum(axis=1)

    def measure(W, b, x, labels):
        log_yhat = jax.nn.log_softmax(logits(W, b, x), axis=0)
        cross_entropy = -jnp.take_along_axis(log_yhat, labels[None, None], axis=0).mean((0, 2))
        return cross_entropy, (log_yhat.argmax(axis=0) == labels).mean(axis=1)

    return jax_fit(data, step, measure, lambda m, K: ((CLASSES * K, m), CLASSES * K))


WAYS = {"one_process": 1, "process_per_core": CORES}  # processes
PEERS = [  # name, its forms (the fastest counts), and the grid that each process trains
    ("NumPy, naive, float64", [numpy_naive], SAMPLE),
    ("scikit-learn, MLPClassifier", [scikit_learn], SAMPLE),
    ("PyTorch, DataLoader", [partial(torch_one, loader=True)], SAMPLE),
    ("PyTorch, hand-made batches", [partial(torch_one, loader=False)], SAMPLE),
    ("PyTorch, stacked by hand", [torch_stacked], GRID),
    ("JAX, jit and scan", [jax_one], SAMPLE),
    ("JAX, stacked", [partial(jax_one, stacked=True), jax_wide], GRID),
]


# --- Processes ------------------------------------------------------------------------------------
# In each, one of these three gets ready, and returns what is run whenever the pipe asks for it.


def ours(data):
    def run(grid, workers):
        X, y, train, validation = data.X, data.y, data.train, data.validation
        curves, _ = softmax_sgd.search(X, y, train, validation, grid, SEED, workers)
        return curves.cross_entropy[..., -1].reshape(len(grid.batch_sizes), -1)

    return run


def peer(form, data):
    fit = form(data)

    def run(grid):
        learning_rates = np.repeat(grid.learning_rates, len(grid.alphas)).tolist()
        alphas = list(grid.alphas) * len(grid.learning_rates)
        sizes = grid.batch_sizes
        return np.array([fit(size, learning_rates, alphas, grid.epochs) for size in sizes])

    return run


def sgemm(data):
    A = np.random.default_rng(SEED).random((2048, 2048), np.float32)

    def run():
        """The gigaflops of the best of five products."""
        seconds = timeit.repeat(lambda: A @ A, number=1, repeat=5)
        return 2 * len(A) ** 3 / min(seconds) / 1e9

    return run


def serve(pipe, prepare, data, threads, core):
    if core is not None:
        os.sched_setaffinity(0, {core})
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read when PyTorch is imported
    run = prepare(data)
    with threadpool_limits(threads):
        while True:
            pipe.send(run(*pipe.recv()))


class Contender:
    """Processes that all do the same work at the same time when it is called for, and else wait."""

    def __init__(self, prepare, data, processes=1, threads=1):
        fork = multiprocessing.get_context("fork")  # which shares the data
        self.members = []
        for core in sorted(os.sched_getaffinity(0))[:processes]:
            pipe, end = fork.Pipe()
            arguments = end, prepare, data, threads, core if processes > 1 else None
            process = fork.Process(target=serve, args=arguments, daemon=True)
            process.start()
            end.close()
            self.members.append((process, pipe))

    def __call__(self, *work):
        """Return the seconds it took, and the result of one process."""
        start = time.perf_counter()
        for _, pipe in self.members:
            pipe.send(work)
        results = [pipe.recv() for _, pipe in self.members]
        return time.perf_counter() - start, results[0]

    def stop(self):
        for process, _ in self.members:
            process.terminate()
            process.join()


# --- Measuring ------------------------------------------------------------------------------------


def models(grid):
    return len(grid.batch_sizes) * len(grid.learning_rates) * len(grid.alphas)


def fastest(name, forms, grid, data, expected, processes):
    """Check and try a peer's forms; return the fastest's name, cross-entropy and timer."""
    columns = range(models(GRID) // len(GRID.batch_sizes)) if grid is GRID else [SAMPLED]
    share = models(GRID) / models(grid) / processes
    best, seconds = None, np.inf
    for form in forms:
        called = getattr(form, "func", form).__name__
        contender = Contender(partial(peer, form), data, processes, CORES // processes)
        _, found = contender(grid._replace(epochs=CHECKED_EPOCHS))
        if not np.allclose(found, expected[:, columns], rtol=0, atol=TOLERANCE):
            sys.exit(
                f"{name} does other work than ours: after {CHECKED_EPOCHS} epochs its validation "
                f"cross-entropies are\n{found}\nwhere ours are\n{expected[:, columns]}"
            )
        trial = min(contender(grid)[0] for _ in range(2)) * share
        say(f"{name}: {called}, processes {processes}: {trial:.2f} s")
        if trial < seconds:
            contender, best, seconds = best, contender, trial
            fastest_form, cross_entropy = called, found[:, list(columns).index(SAMPLED)].mean()
        if contender:
            contender.stop()
    return fastest_form, cross_entropy, lambda: best(grid)[0] * share


def peak_memory() -> float:
    """The megabytes of the command line's process, in a run of one epoch."""
    command = [sys.executable, "softmax_sgd.py", "--epochs", "1"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit("softmax_sgd.py failed")
    return usage.ru_maxrss * 1024 / 1e6


FIRST_UPDATE = """
import os, sys, time, softmax_sgd
gradients = softmax_sgd.gradients
def first(*arguments):
    gradients(*arguments)
    os.write(1, f"first update {time.monotonic()}".encode())
    os._exit(0)
softmax_sgd.gradients = first
sys.argv = ["softmax_sgd.py", "--epochs", "1"]
softmax_sgd.main()
"""


def seconds_to_first_update() -> float:
    """From the start of the command line's process to the end of its first gradient."""
    start = time.monotonic()
    command = [sys.executable, "-c", FIRST_UPDATE]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return float(run.stdout.split()[-1]) - start


def measure(rounds: int) -> dict:
    memory = peak_memory()  # a child's peak is no less than its parent's memory, so before loading
    first_update = median(seconds_to_first_update() for _ in range(3))

    data = Data()
    search, peak = Contender(ours, data), Contender(sgemm, data, threads=CORES)
    searches = {"one_process": search, "process_per_core": Contender(ours, data, CORES)}
    _, expected = search(GRID._replace(epochs=CHECKED_EPOCHS), CORES)

    def searching(grid, workers, search=search, processes=1):
        return lambda: search(grid, workers)[0] / grid.epochs / processes

    several = GRID._replace(epochs=EPOCHS)
    row = {"name": "this project", "models_timed": models(GRID)}
    row["validation_cross_entropy"] = expected[:, SAMPLED].mean()
    rows, timed = [row], []  # of each row a place and a timer for each of WAYS
    for way, processes in WAYS.items():
        row[way] = {}
        timed.append((row[way], searching(several, CORES // processes, searches[way], processes)))
    for name, forms, grid in PEERS:
        row = {"name": name, "models_timed": models(grid)}
        rows.append(row)
        for way, processes in WAYS.items():
            form, cross_entropy, timer = fastest(name, forms, grid, data, expected, processes)
            row["validation_cross_entropy"] = cross_entropy
            row[way] = {"form": form}
            timed.append((row[way], timer))
    scaling = [
        ("models, minibatch size 128", K, searching(Grid((128,), (0.05,) * K, (1e-4,), 1), 1))
        for K in (1, 4, 16, 64)
    ]
    for size in (16, 32, 64, 128, 256, 512):
        timer = searching(GRID._replace(batch_sizes=(size,)), 1)
        scaling.append(("minibatch size, 16 models", size, timer))
    scaling += [("workers, whole grid", workers, searching(several, workers)) for workers in (1, 2)]

    turns = [lambda: peak()[1], *(timer for *_, timer in timed + scaling)]
    measured = []
    for i in range(rounds):
        say(f"round {i + 1} of {rounds}")
        measured.append([turn() for turn in turns])
    gigaflops, *seconds = np.array(measured).T  # each a row, with a column per round

    for i, (place, _) in enumerate(timed):
        place["seconds_per_epoch"] = median(seconds[i])
        place["times_slower"] = median(seconds[i] / seconds[i % len(WAYS)])
    n, n_validation, m = len(data.train), len(data.validation), data.X.shape[1]
    work = models(GRID) * (4 * n + 2 * n_validation) * m * CLASSES / 1e9
    return {
        "machine": {"cores": CORES, "sgemm_peak_gflops": median(gigaflops)},
        "fraction_of_peak": median(work / seconds[0] / gigaflops),
        "grid": Grid()._asdict(),
        "rows": rows,
        "scaling": [
            {"what": what, "value": value, "seconds_per_epoch": median(times)}
            for (what, value, _), times in zip(scaling, seconds[len(timed) :], strict=True)
        ],
        "workers_speedup": median(seconds[-2] / seconds[-1]),
        "peak_memory_mb": memory,
        "seconds_to_first_update": first_update,
    }


def tables(results: dict):
    """Yield the lines of what was measured."""
    yield f"{'':27}{'one process':>19}{'process per core':>19}  validation CE  models timed"
    for row in results["rows"]:
        times = "".join(
            "{seconds_per_epoch:9.3f} s {times_slower:6.2f} x".format(**row[w]) for w in WAYS
        )
        yield (
            f"{row['name']:27}{times}  {row['validation_cross_entropy']:13.4f}"
            f"  {row['models_timed']:12}{' multiplied up' * (row['models_timed'] < models(GRID))}"
        )
    yield f"""
Seconds for one epoch of {models(GRID)} models, training and validation, and times ours. The
cross-entropy is that of one model per minibatch size, their mean, after {CHECKED_EPOCHS} epochs.

what grows                    value  s per epoch"""
    for row in results["scaling"]:
        yield "{what:26}  {value:7}  {seconds_per_epoch:11.3f}".format(**row)
    yield """
(models and minibatch size: with one worker)

sgemm peak of {cores} cores: {sgemm_peak_gflops:.0f} gigaflops""".format(**results["machine"])
    yield f"our search, of that peak: {results['fraction_of_peak']:.0%}"
    yield f"two workers against one: {results['workers_speedup']:.2f} times as fast"
    yield f"peak memory: {results['peak_memory_mb']:.0f} MB"
    yield f"first update after: {results['seconds_to_first_update']:.2f} s"


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="of which the median counts")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write it there, as JSON")
    options = parser.parse_args()
    if options.output and not options.output.parent.is_dir():
        parser.error(f"no folder for {options.output}")
    results = measure(options.rounds)
    print(*tables(results), sep="\n")
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
