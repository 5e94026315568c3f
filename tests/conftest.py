"""The fixtures that several modules share. Where a test belongs:

test_model, test_gradients, test_sgd, test_search   lemmas on the parts of softmax_sgd.py
test_assignment                                     what the assignment asks, in its words
test_oracle                                         a whole run against a plain loop
test_load, test_command                             a user's files, options and terminal
test_download                                       the downloader
test_report, test_readme                            what report.pdf and README.md state
test_report_tools                                   the programs that measure the report's numbers

helpers.py has the functions and names that several modules share, server.py the server that the
downloader's tests use. Tests of the real images skip if the data are missing.

If you add a learning-rate schedule, put it into the plain loop of test_oracle and `train_alone` of
test_search, too, as `learning_rate * 0.95 ** (epoch - 1)` if epochs count from 1. Set SEED = 12 in
helpers, so that the winner of GRID stays inside it; test_oracle says so if it does not.

If you add a hyperparameter, such as momentum:

- Add it to the same two loops.
- Give GRID and GRID_OPTIONS in helpers one value of it, such as 0.3. Momentum of 0.3 makes the
  steps longer, so multiply the learning rates by 0.7 there. Set SEED = 12.
- In test_command, add its option to the test of --help, and an axis to `lowest` in the test of
  TABLES.
- The report and its tests are about the four hyperparameters of today: among others, choice.py,
  ratios.py, averages.py and build.py must learn of the new one.
"""

import softmax_sgd  # before NumPy, so that BLAS uses one thread in each call

# isort: split
import json
import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import GRID_OPTIONS, make_problem, run, write_own_files
from hypothesis import HealthCheck, settings

from download_data import DATA, FILES, mismatch

settings.register_profile(
    "steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")

# PYTHONUNBUFFERED would hide errors that occur when stdout is flushed at the end of a program.
os.environ.pop("PYTHONUNBUFFERED", None)

# Tests send SIGINT to programs, which would ignore it if pytest was started in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """The tests of the mathematics come first, each module before those that build on it."""
    first = ["test_model", "test_gradients", "test_sgd", "test_search"]

    def rank(item):
        name = item.path.stem
        return first.index(name) if name in first else len(first)

    items.sort(key=rank)


def pytest_terminal_summary(terminalreporter):
    """Say whose functions were checked if they are those of a student: see test_gradients."""
    for name in ("gradients", "sgd"):
        module = getattr(softmax_sgd, name).__module__
        if module != "softmax_sgd":
            terminalreporter.write_line(f"checked: {name} of {module}.py")


@pytest.fixture(params=[None, 3], ids=["one model", "a stack of 3"])
def problem(request):
    """A problem of `make_problem`, for one model and for a stack of three."""
    return make_problem(request.param)


@pytest.fixture(scope="session")
def data_dir():
    """The folder of the four real files. If they are missing, tests that need them skip."""
    if not all((DATA / file.name).exists() for file in FILES):
        pytest.skip("needs the real data: start download_data.py first")
    wrong = [problem for file in FILES if (problem := mismatch(DATA / file.name, file))]
    assert not wrong, f"{DATA} has wrong files: {wrong}"
    return DATA


@pytest.fixture
def own_files(tmp_path):
    """A folder with four small files of a user's own."""
    return write_own_files(tmp_path / "own")


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """A run of the program on small own files, with GRID: its output, and the files it wrote."""
    folder = tmp_path_factory.mktemp("run")
    own_files, output = write_own_files(folder / "own"), folder / "new" / "results"
    options = (*GRID_OPTIONS, "--data-dir", own_files, "--output", output)
    done = run("softmax_sgd.py", *options)
    assert done.returncode == 0, done.stderr
    model, curves = np.load(output / "model.npz"), np.load(output / "curves.npz")
    return SimpleNamespace(
        stdout=done.stdout,
        stderr=done.stderr,
        own_files=own_files,
        output=output,
        results=json.loads((output / "results.json").read_text(encoding="utf-8")),
        model=dict(model),
        curves=dict(curves),
    )
