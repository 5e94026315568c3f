"""The problem, the files and the run on which the tests work."""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import settings

import softmax_sgd
from download_data import ensure

pytest_plugins = ["servers", "downloader"]  # their fixtures, and plain words for their asserts
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")

os.environ.pop("PYTHONUNBUFFERED", None)  # it would hide what buffers keep
# A shell starts a job in the background with these ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
if os.name == "posix":
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = sys.executable, ROOT / "softmax_sgd.py"
RUN = partial(subprocess.run, timeout=300)
LARGE = 3.0  # an alpha that dominates the gradient
PARTS = "train_images", "train_labels", "test_images", "test_labels"
NAMES = [f"fashion_mnist_{part}.npy" for part in PARTS]
# The winner of this grid has an alpha above 0, and is not of the last epoch, nor of that of its
# highest accuracy; of the batch sizes it has the first, and of the learning rates the second.
GRID = softmax_sgd.Grid((8, 20), (0.1, 0.5), (0.0, 0.02, 0.3), 10)
SEED, FRACTION = 1, 0.3
# Lemmas come before the letter: who makes a mistake meets first the test that names it.
LEMMAS = "test_gradients", "test_model", "test_sgd", "test_search", "test_load", "test_oracles"


@pytest.hookimpl(tryfirst=True)  # so that another order, such as that of mutate.py, wins
def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: (*LEMMAS, item.path.stem).index(item.path.stem))


@pytest.fixture(params=[(), (3,)], ids=["one model", "a stack of 3"])
def problem(request):
    """A small problem in float64, far from any optimum: X, y, and W, b of one model or a stack."""
    rng = np.random.default_rng(541)
    n, m, c = 13, 5, 4
    return SimpleNamespace(
        X=rng.uniform(0, 1, (n, m)),
        y=rng.integers(0, c, n),
        W=rng.normal(0, 1, (m, c, *request.param)),
        b=rng.normal(0, 1, (c, *request.param)),
        alpha=rng.uniform(0.5, LARGE, request.param),
    )


@pytest.fixture(scope="session")
def data_dir():
    """The folder of the four real files, verified."""
    return ensure(ROOT / "data")


@pytest.fixture(scope="session")
def real(data_dir):
    """The real data as the program loads them."""
    return SimpleNamespace(**dict(zip(("X", "y", "X_test", "y_test"), softmax_sgd.load(data_dir))))


def write_own_files(folder):
    """Four small files of one's own: 60 + 40 noisy images of 49 pixels."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    looks = rng.uniform(0, 255, (10, 49))  # of the ten classes
    for n, images, labels in ((60, *NAMES[:2]), (40, *NAMES[2:])):
        y = rng.integers(0, 10, n)
        X = np.clip(looks[y] + rng.normal(0, 145, (n, 49)), 0, 255)
        np.save(folder / images, X.astype(np.float32))
        np.save(folder / labels, y.astype(np.int32))
    return folder


@pytest.fixture
def own_files(tmp_path):
    return write_own_files(tmp_path / "own")


def command(*arguments, line=PROGRAM, call=RUN, env=(), **how):
    """Run the program, or what `line` says, for a user who has not set the threads of BLAS."""
    unset = {name: v for name, v in os.environ.items() if not name.endswith("_THREADS")}
    how = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | how
    return call([*map(str, (*line, *arguments))], env=unset | dict(env), **how)


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A finished run of the program on own files: its streams, its folders, its results."""
    folder = tmp_path_factory.mktemp("run")
    own_files, output = write_own_files(folder / "own"), folder / "out" / "deep"
    options = (
        *("--batch-sizes", *GRID.batch_sizes, "--learning-rates", *GRID.learning_rates[::-1]),
        *("--alphas", *GRID.alphas, "--epochs", GRID.epochs),
        *("--seed", SEED, "--validation-fraction", FRACTION, "--data-dir", own_files),
    )
    # Linux has another disk for its temporary folder: from there, nothing can be moved to `output`.
    done = command(*options, "--output", output, env={"TMPDIR": "/dev/shm"})
    assert done.returncode == 0, done.stderr
    results = json.loads((output / "results.json").read_text())
    return SimpleNamespace(
        **vars(done), options=options, own_files=own_files, output=output, results=results
    )
