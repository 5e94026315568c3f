"""The problem, the files and the run that tests share. Where tests are:

test_model, _gradients, _sgd, _search   lemmas on softmax_sgd.py, in the order of its parts
test_assignment, test_oracles           what the assignment asks, and its numbers in plain NumPy
test_load, test_command                 own files; softmax_sgd.py as its user meets it
test_download_*                         the downloader, started by downloader.py against servers.py
test_experiments, _report, _readme      what report/experiments.py, report.pdf and README.md state
"""

import copy
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import settings

import softmax_sgd
from download_data import DataError, ensure

pytest_plugins = ["servers", "downloader"]  # their fixtures, and plain words for their asserts
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")

os.environ.pop("PYTHONUNBUFFERED", None)  # it would hide what buffers keep
# A shell starts a job in the background with the first two ignored, nohup with the third.
signal.signal(signal.SIGINT, signal.default_int_handler)
if os.name == "posix":
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = sys.executable, ROOT / "softmax_sgd.py"
PARTS = "train_images", "train_labels", "test_images", "test_labels"
NAMES = [f"fashion_mnist_{part}.npy" for part in PARTS]
# The finished run below. Its winner has the indices (1, 2, 3, 8): no two are equal, and none is the
# first or the last of its axis. No axis is as long as another. The winner's highest accuracy is of
# another epoch. At larger learning rates, float32 and float64 would soon differ.
GRID = softmax_sgd.Grid((4, 9, 16), (0.1, 0.4, 1.0, 1.9), (0.0, 0.001, 0.004, 0.02, 0.2), 10)
SEED, FRACTION = 3, 0.3

# Whoever makes a mistake meets the test that names it before those that only notice it.
FIRST = ("model", "gradients", "sgd", "search", "assignment", "load", "oracles")


@pytest.hookimpl(tryfirst=True)  # so that another order, such as a random one, can follow
def pytest_collection_modifyitems(items):
    def place(item):
        name = item.path.stem.removeprefix("test_")
        return FIRST.index(name) if name in FIRST else len(FIRST)

    items.sort(key=place)


def assert_right(ours, right, mistakes, rtol=1e-9, atol=1e-12):
    """Fail unless ours is right; name the known mistake, if there is one, that gives ours.

    `ours` and `right` map names to numbers or arrays. `mistakes` maps each known mistake to what
    it would give in place of `right`.
    """

    def alike(a, b, equal_nan=False):
        return np.shape(a) == np.shape(b) and np.allclose(a, b, rtol, atol, equal_nan)

    wrong = [name for name in right if not alike(ours[name], right[name])]
    if not wrong:
        return
    named = [
        mistake
        for mistake, given in mistakes.items()
        if all(alike(ours[name], given[name], equal_nan=True) for name in right)
    ]
    message = f"{' and '.join(wrong)} wrong"
    if named:
        message += f", exactly as if {', or '.join(named)}"
    with np.printoptions(threshold=50):
        for name in wrong:
            if np.shape(ours[name]) != np.shape(right[name]):
                shapes = f"{np.shape(ours[name])}, not {np.shape(right[name])}"
                message += f"\n\n{name} has the shape {shapes}"
            message += f"\n\n{name} is\n{ours[name]}\nbut must be\n{right[name]}"
    pytest.fail(message, pytrace=False)


def assert_arguments_stay(function, *arguments):
    """Call the function; fail if it changes one of its arguments."""
    before = copy.deepcopy(arguments)
    function(*arguments)
    for i, (old, new) in enumerate(zip(before, arguments)):
        assert np.array_equal(old, new), f"{function.__name__} changes its argument number {i + 1}"


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
        alpha=rng.uniform(0.5, 3.0, request.param),
    )


@pytest.fixture(scope="session")
def data_dir():
    """The folder of the four real files, verified. If they cannot be fetched, tests are skipped."""
    folder = ROOT / "data"
    all_present = all((folder / name).exists() for name in NAMES)
    try:
        return ensure(folder)
    except DataError as error:
        if all_present:
            raise
        pytest.skip(f"needs the data: {str(error).partition('.')[0]}")


@pytest.fixture(scope="session")
def real(data_dir):
    """The real data as the program loads them."""
    return SimpleNamespace(**dict(zip(("X", "y", "X_test", "y_test"), softmax_sgd.load(data_dir))))


def write_own_files(folder):
    """Write four small files of a user's own: 60 + 40 noisy images of 49 pixels."""
    folder.mkdir()
    rng = np.random.default_rng(21)
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


def start(*arguments, line=PROGRAM, env=(), **options):
    """Start the program, or the command `line`, for a user who has not set the threads of BLAS."""
    unset = {name: v for name, v in os.environ.items() if not name.endswith("_THREADS")}
    pipe = subprocess.PIPE
    options = {"cwd": ROOT, "stdout": pipe, "stderr": pipe, "text": True} | options
    return subprocess.Popen([*map(str, (*line, *arguments))], env=unset | dict(env), **options)


def command(*arguments, **options):
    """Run the program, or another command, to its end: its returncode, stdout and stderr."""
    with start(*arguments, **options) as process:
        try:
            stdout, stderr = process.communicate(timeout=300)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
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
    results = json.loads((output / "results.json").read_text(encoding="utf-8"))
    return SimpleNamespace(
        **vars(done), options=options, own_files=own_files, output=output, results=results
    )
