"""The fixtures that several modules share. Where a test belongs:

test_model, test_gradients, test_sgd, test_search   lemmas on the parts of softmax_sgd.py
test_assignment                                     what the assignment asks, in its words
test_oracle                                         whole runs against a plain loop, scikit-learn
test_load, test_command                             a user's files, options and terminal
test_download                                       the downloader
test_report, test_readme                            what report.pdf and README.md state
test_report_tools                                   the programs that measure the report's numbers

helpers.py has the functions and names that several modules share, server.py the server that the
downloader meets. Only what is about the real images needs them; it skips if they are not there.

Who changes the program tells the tests:

A learning-rate schedule: the plain loop of test_oracle and train_alone of test_search train with
`learning_rate * 0.95 ** (epoch - 1)`. With SEED = 12 the winner stays inside GRID.

A hyperparameter, such as momentum: GRID and GRID_OPTIONS in helpers, the plain loop of test_oracle
and train_alone of test_search get it, and so does the test of TABLES in test_command, as
print_lowest takes one axis more. Give GRID a value that matters, such as 0.3 alone, with learning
rates 0.7 times as large and SEED = 12; and once two, 0.1 and 0.3, for test_search, which then sees
axes in another order. The test that asks for four values of everything must be told, and the tests
of README and report fail until both are made again (report/choice.py and report/build.py take alpha
for the last axis but one).

The tests want a winner of GRID that is at no edge, with indices that differ; one of them says so if
it is elsewhere after a change. Then try other seeds.
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
from hypothesis import settings

from download_data import DATA, FILES, mismatch

settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")

# With it, stdout has no buffer, and what happens to one at the end of a program would not be seen.
os.environ.pop("PYTHONUNBUFFERED", None)

# Tests send SIGINT to programs. A shell that starts pytest in the background has it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """The lemmas on the mathematics come first, each before those that build on it."""
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


@pytest.fixture(params=[(), (3,)], ids=["one model", "a stack of 3"])
def problem(request):
    """A problem of `make_problem`, for one model and for a stack of three."""
    return make_problem(*request.param)


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
    """A run of the program on such files, with GRID: its output, and the files it wrote."""
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
