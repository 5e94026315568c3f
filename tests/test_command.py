"""The program as its user meets it: what it prints, writes and refuses, and how it ends.

Each wording is pinned once: in the stdout of the finished run, or in a table of messages. Every
other test looks at the exit status, at the files, or at the numbers.
"""

import ast
import json
import os
import re
import runpy
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import FRACTION, GRID, NAMES, ROOT, SEED, command, start

import softmax_sgd
from download_data import DataError
from softmax_sgd import RESULTS, Curves, Grid, Progress, best_point, evaluate, heading, load, report

posix = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell, signals or terminal")
both = pytest.mark.parametrize("program", ["softmax_sgd.py", "download_data.py"])

# A grid of one model, for runs in which only the way counts.
ONE_MODEL = ("--batch-sizes", 20, "--learning-rates", 0.1, "--alphas", 0, "--epochs", 1)


def parse(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["softmax_sgd.py", *map(str, arguments)])
    return softmax_sgd.parse_arguments()


def in_shell(commands, program="softmax_sgd.py"):
    """The command line of a program that a shell starts after these commands."""
    return ["sh", "-c", f'{commands}; exec "$@"', "sh", sys.executable, ROOT / program]


def contents(folder):
    """The files of a folder and what is in them."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- Options and their defaults -------------------------------------------------------------------


def test_the_options_reach_the_search(finished_run, monkeypatch, tmp_path):
    """Each value of the grid once, in ascending order."""
    calls, original = [], softmax_sgd.search

    def search(X, y, train, validation, grid, seed, workers, progress):
        calls.append((grid, seed, workers, len(validation)))
        return original(X, y, train, validation, grid, seed, workers, progress)

    monkeypatch.setattr(softmax_sgd, "search", search)
    options = "--batch-sizes 16 8 16 --learning-rates .5 .1 .5 --alphas .3 0 .3 --epochs 7"
    parse(
        monkeypatch,
        *options.split(),
        *("--seed", 5, "--workers", 3, "--validation-fraction", 0.25),
        *("--data-dir", finished_run.own_files),
    )
    softmax_sgd.run_experiment()
    [(grid, *others)] = calls
    right = Grid((8, 16), (0.1, 0.5), (0.0, 0.3), 7)
    assert grid == right, f"not each value once, in ascending order, or not 7 epochs: {grid}"
    assert others == [5, 3, 15], "the seed, the workers, or the number of validation images"


def test_the_defaults_can_be_typed_as_help_shows_them(monkeypatch):
    shown = " ".join(command("--help").stdout.split())
    typed = []
    for entry in re.split(r" (?=--)", shown.partition(" options: ")[2]):
        default = re.search(r"\(default: (.*?)\)", entry)
        if default:
            typed += [entry.split()[0], *default[1].split()]
    assert len([word for word in typed if word.startswith("--")]) == 7, "a default is not shown"
    again, default = vars(parse(monkeypatch, *typed)), vars(parse(monkeypatch))
    for name in ("batch_sizes", "learning_rates", "alphas"):
        again[name] = tuple(again[name])
    assert again == default, "what --help shows is not the default"


def test_there_is_a_worker_for_each_core_that_may_be_used(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 2, 5}, raising=False)
    assert parse(monkeypatch).workers == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert parse(monkeypatch).workers == 7


def copy_programs(folder):
    folder.mkdir(exist_ok=True)
    for program in ("softmax_sgd.py", "download_data.py"):
        shutil.copy(ROOT / program, folder)
    return folder


@both
def test_help_works_in_a_folder_of_any_name(tmp_path, program):
    """Even if the output cannot show it."""
    folder = copy_programs(tmp_path / "50 %(s für 木")
    done = command(
        "--help",
        line=[sys.executable, folder / program],
        env={"PYTHONIOENCODING": "ascii", "COLUMNS": "999"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: {program}")
    assert "50 %(s f\\xfcr \\u6728" in done.stdout, "the default folder is not shown"


# --- What it writes -------------------------------------------------------------------------------


def test_results_tell_what_was_run_and_what_came_out(finished_run):
    text = (finished_run.output / "results.json").read_bytes()
    assert text.startswith(b'{\n  "seed": '), "not laid out for people"
    assert text.endswith(b"}\n")
    assert b"\r" not in text
    results = finished_run.results
    assert list(results) == [
        *("seed", "data_dir", "validation_fraction", "grid", "split"),
        *("best", "training", "validation", "test", "seconds", "numpy"),
    ]
    assert results["seed"] == SEED
    assert results["data_dir"] == str(finished_run.own_files)
    assert results["validation_fraction"] == FRACTION
    assert results["grid"] == json.loads(json.dumps(GRID._asdict()))
    assert results["split"] == {"train": 42, "validation": 18, "test": 40}
    assert 0 < results["seconds"] < 300
    assert results["numpy"] == np.__version__


def test_curves_have_the_axes_of_the_grid_and_their_best_point_is_the_result(finished_run):
    curves = Curves(**np.load(finished_run.output / "curves.npz"))
    axes = *GRID[:3], range(1, GRID.epochs + 1)
    for curve in curves:
        assert curve.shape == tuple(map(len, axes))
    best = tuple(
        axis.index(value) for axis, value in zip(axes, finished_run.results["best"].values())
    )
    assert best_point(curves) == best
    metrics = {name: curve[best] for name, curve in curves._asdict().items()}
    assert finished_run.results["validation"] == metrics


def test_the_model_is_the_one_whose_metrics_are_printed(finished_run):
    model, results = np.load(finished_run.output / "model.npz"), finished_run.results
    X, y, X_test, y_test = load(finished_run.own_files)
    rng = np.random.default_rng(SEED)
    train, validation = softmax_sgd.split(len(X), FRACTION, rng)
    assert sorted(model) == ["W", "b"]
    for part, X_part, y_part in (
        ("training", X[train], y[train]),
        ("validation", X[validation], y[validation]),
        ("test", X_test, y_test),
    ):
        cross_entropy, accuracy = evaluate(model["W"], model["b"], X_part, y_part)
        said = f"{part}: not the metrics of W and b in model.npz"
        assert results[part]["cross_entropy"] == pytest.approx(cross_entropy, rel=1e-5), said
        assert results[part].get("accuracy", accuracy) == pytest.approx(accuracy), said


def test_the_training_cross_entropy_is_the_mean_over_all_rows():
    """It is computed in parts; the last part is smaller than the others."""
    rng = np.random.default_rng(3)
    X, y = rng.uniform(0, 1, (25_001, 3)), rng.integers(0, 10, 25_001)
    W, b = rng.normal(0, 1, (3, 10)), rng.normal(0, 1, 10)
    rows = np.flatnonzero(rng.uniform(0, 1, len(X)) < 0.9)
    in_parts = softmax_sgd.cross_entropy_in_parts(W, b, X, y, rows)
    at_once = softmax_sgd.cross_entropy(W, b, X[rows], y[rows])
    assert in_parts == pytest.approx(at_once, rel=1e-9)


def test_all_is_written_into_the_folder_and_nothing_else_anywhere(finished_run, tmp_path):
    """A relative name is one below the current folder, and --data-dir is recorded as given."""
    shutil.copytree(finished_run.own_files, tmp_path / "own")
    command(*ONE_MODEL, "--data-dir", "own", "--output", "a/b", cwd=tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["a", "own"]
    assert sorted(os.listdir(tmp_path / "a/b")) == sorted(RESULTS)
    assert sorted(os.listdir(tmp_path / "own")) == sorted(NAMES)
    results = json.loads((tmp_path / "a/b/results.json").read_text(encoding="utf-8"))
    assert results["data_dir"] == "own"


@pytest.fixture
def old_results(finished_run, tmp_path):
    """A copy of the finished run's results, in a folder with a file of the user's own."""
    shutil.copytree(finished_run.output, tmp_path / "out")
    (tmp_path / "out" / "mine.txt").write_text("mine")
    return tmp_path / "out"


def test_the_same_options_give_the_same_results_whatever_the_workers(finished_run, old_results):
    options = (*finished_run.options, "--workers", 1, "--output", old_results)
    before = contents(old_results)
    done = command(*options)
    assert done.stdout == finished_run.stdout
    assert "Note" not in done.stderr
    after = contents(old_results)
    for files in (before, after):
        results = json.loads(files.pop("results.json"))
        files["results"] = results | {"seconds": 0}
    assert after == before


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (("--seed", 5), "has results of a run with different seed; it will be replaced"),
        (
            ("--epochs", 2, "--validation-fraction", 0.5),
            "has results of a run with different validation_fraction, grid; it will be replaced",
        ),
        ((), "is not from this version of the program; it will be replaced"),
    ],
    ids=["another seed", "two other options", "no results"],
)
def test_results_of_other_options_are_replaced_with_a_note(finished_run, old_results, change, note):
    path = old_results / "results.json"
    if not change:
        path.write_text("[]")
    done = command(*finished_run.options, *change, "--output", old_results)
    assert f"Note: {path} {note}\n" in done.stderr
    assert sorted(os.listdir(old_results)) == sorted([*RESULTS, "mine.txt"])
    assert json.loads(path.read_text(encoding="utf-8"))["numpy"] == np.__version__


@pytest.mark.parametrize("name", ["model.npz", "curves.npz"])
def test_a_file_of_another_origin_is_replaced_with_a_note(own_files, tmp_path, name):
    (tmp_path / name).write_text("mine")
    done = command(*ONE_MODEL, "--data-dir", own_files, "--output", tmp_path)
    notes = [line for line in done.stderr.splitlines() if line.startswith("Note: ")]
    assert notes == [f"Note: {tmp_path / name} exists and will be replaced"]


@pytest.mark.parametrize("old", ["a FIFO", "brackets"])
def test_a_results_file_that_cannot_be_read_is_replaced_with_a_note(own_files, tmp_path, old):
    path = tmp_path / "results.json"
    if old == "brackets":
        path.write_text("[" * 200_000)
    elif hasattr(os, "mkfifo"):
        os.mkfifo(path)
    else:
        pytest.skip("there are no FIFOs here")
    done = command(*ONE_MODEL, "--data-dir", own_files, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    note = "exists and will be replaced"
    if old == "brackets":
        note = "is not from this version of the program; it will be replaced"
    assert f"Note: {path} {note}\n" in done.stderr
    assert json.loads(path.read_text(encoding="utf-8"))["seed"] == 0


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_that_cannot_be_moved_into_place_is_an_error(tmp_path, name):
    """Here a folder is in the way; on Windows, another program may have the old file open."""
    (tmp_path / name).mkdir()
    curves = Curves(np.zeros((1, 1, 1, 1)), np.zeros((1, 1, 1, 1)))
    told = re.escape(f"cannot replace {tmp_path / name}: ")
    with pytest.raises(DataError, match=told):
        softmax_sgd.save(tmp_path, {}, curves, np.zeros((1, 10)), np.zeros(10))
    assert all(path.name in RESULTS for path in tmp_path.iterdir()), "something is left behind"


@posix
@pytest.mark.parametrize("too_large", RESULTS)
def test_a_full_disk_leaves_the_old_results(finished_run, old_results, too_large):
    """A limit on the size of files, just below that of one of them, stands in for the disk."""
    before = contents(old_results)
    blocks = (len(before[too_large]) - 1) // 512
    done = command(
        *(*finished_run.options, "--seed", 5, "--output", old_results),
        line=in_shell(f"ulimit -f {blocks}"),
    )
    assert done.returncode == 1, f"status {done.returncode}, though the results are not written"
    assert done.stderr.splitlines()[-1].startswith("softmax_sgd.py: cannot write")
    assert "Test accuracy" in done.stdout, "the results are not even printed"
    assert contents(old_results) == before, "not all of the old results, or others beside them"


@posix
def test_permissions_follow_the_umask(finished_run, tmp_path):
    out = tmp_path / "out"
    options = (*ONE_MODEL, "--data-dir", finished_run.own_files, "--output", out)
    command(*options, line=in_shell("umask 027"))
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in (out, *out.iterdir())}
    assert modes == {"out": "0o750"} | dict.fromkeys(RESULTS, "0o640")


def unwritable(folder):
    """A folder in which even who runs these tests may not write: `folder`, if that can be."""
    folder.mkdir()
    if os.name == "nt":
        everyone = "*S-1-1-0"
        subprocess.run(["icacls", folder, "/deny", f"{everyone}:(W)"], capture_output=True)
    else:
        folder.chmod(0o555)
        if os.geteuid() == 0:  # whom permissions do not bind, but this file system does
            folder = Path("/proc/self")
    try:
        (folder / "probe").touch()
    except OSError:
        return folder
    (folder / "probe").unlink()
    pytest.skip("permissions do not bind here")


# What is in the way of the results in the folder "out", and the line that the user sees.
def a_file(out):
    out.write_text("mine")
    return out, f"cannot write to {out}: File exists"


def below_a_file(out):
    out.write_text("mine")
    return out / "deep", f"cannot write to {out / 'deep'}: Not a directory"


def a_folder_for_a_result(out):
    (out / "model.npz").mkdir(parents=True)
    return out, f"{out / 'model.npz'} is a folder, but a result file must go there"


def no_permission(out):
    folder = unwritable(out)
    return folder, f"cannot write to {folder}: "


@pytest.mark.parametrize("hindrance", [a_file, below_a_file, a_folder_for_a_result, no_permission])
def test_a_folder_that_cannot_be_written_fails_before_the_search(own_files, tmp_path, hindrance):
    output, line = hindrance(tmp_path / "out")
    before = sorted(tmp_path.rglob("*"))
    done = command(*ONE_MODEL, "--data-dir", own_files, "--output", output)
    assert (done.returncode, done.stdout) == (1, "")
    if os.name == "nt":  # has other words for the same errors
        line = line.partition(": ")[0]
    assert done.stderr.startswith(f"softmax_sgd.py: {line}")
    assert done.stderr.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


# --- What it prints -------------------------------------------------------------------------------


def test_the_heading_counts_in_the_singular_and_in_the_plural():
    one = heading({"train": 1, "validation": 1, "test": 1}, Grid((8,), (0.1,), (0.0,), 1))
    assert one == (
        "Images: 1 training, 1 validation, 1 test\n"
        "Grid: 1 batch size x 1 learning rate x 1 alpha x 1 epoch = 1 point\n"
    )
    many = heading({"train": 5, "validation": 4, "test": 3}, Grid((8, 9), (0.1, 0.2, 0.3), (0, 1)))
    assert many == (
        "Images: 5 training, 4 validation, 3 test\n"
        "Grid: 2 batch sizes x 3 learning rates x 2 alphas x 60 epochs = 720 points\n"
    )


def reported(grid, cross_entropy, i, j, k, e):
    """The lines of a report on these curves, whose accuracies are 0.00, 0.01, 0.02, ..."""
    cross_entropy = np.array(cross_entropy, float)
    curves = Curves(cross_entropy, np.arange(cross_entropy.size).reshape(cross_entropy.shape) / 100)
    results = {
        "grid": grid._asdict(),
        "best": softmax_sgd.point(grid, i, j, k, e + 1),
        "training": {"cross_entropy": 0.25},
        "validation": {"cross_entropy": cross_entropy[i, j, k, e], "accuracy": 0.5},
        "test": {"cross_entropy": 0.75, "accuracy": 0.625},
    }
    return report(results, curves).splitlines()


def test_the_table_has_each_model_at_its_best_epoch_and_those_that_diverged_last():
    grid = Grid((32,), (0.1, 0.25), (0.0, 1e-05), 3)
    curves = [[[[3, 1.23456, 2], [9, 8, 7]], [[4, 5, 4], [1, 2, np.inf]]]]
    assert reported(grid, curves, 0, 0, 0, 1)[1:6] == [
        "batch size  learning rate  alpha  epochs  validation CE  accuracy",
        "        32            0.1    0.0       2         1.2346     1.00%",
        "        32           0.25    0.0       1         4.0000     6.00%",
        "        32            0.1  1e-05       3         7.0000     5.00%",
        "        32           0.25  1e-05               diverged",
    ]


def test_of_equal_models_the_table_lists_first_what_would_win():
    """That is the one with the fewest epochs, then the largest alpha, then the smallest rate."""
    grid = Grid((32,), (0.1, 0.2), (0.0, 0.5), 2)
    curves = np.array([[[[2, 1], [2, 1]], [[1, 2], [2, 1]]]])
    rows = reported(grid, curves, *best_point(Curves(curves, curves)))[2:5]
    listed = [tuple(map(float, row.split()[1:4])) for row in rows]
    assert listed == [(0.2, 0.0, 1), (0.1, 0.5, 2), (0.2, 0.5, 2)]


EDGES = Grid((8, 16, 32), (0.1, 0.2, 0.3), (0.01, 0.02, 0.03), 3)
LIMITS = Grid((1, 2, 3), (0.1, 0.2, 0.3), (0.0, 0.01, 0.02), 3)
NOTES = [
    (EDGES, (1, 1, 1, 1), []),
    (
        EDGES,
        (0, 0, 0, 2),
        [
            "Note: the best batch size, 8, is at the edge of the grid; "
            "try a smaller one (--batch-sizes)",
            "Note: the best learning rate, 0.1, is at the edge of the grid; "
            "try a smaller one (--learning-rates)",
            "Note: the best alpha, 0.01, is at the edge of the grid; try a smaller one (--alphas)",
            "Note: the best number of epochs, 3, is at the edge of the grid; "
            "try a larger one (--epochs)",
        ],
    ),
    (
        EDGES,
        (2, 2, 2, 1),
        [
            "Note: the best batch size, 32, is at the edge of the grid; "
            "try a larger one (--batch-sizes)",
            "Note: the best learning rate, 0.3, is at the edge of the grid; "
            "try a larger one (--learning-rates)",
            "Note: the best alpha, 0.03, is at the edge of the grid; try a larger one (--alphas)",
        ],
    ),
    (LIMITS, (0, 1, 0, 0), []),  # nothing is below a batch of 1, alpha = 0, and one epoch
    (Grid((8,), (0.1,), (0.5,), 1), (0, 0, 0, 0), []),  # nothing was compared
]


@pytest.mark.parametrize(("grid", "best", "notes"), NOTES)
def test_a_best_value_at_the_edge_is_noted_with_what_to_do(grid, best, notes):
    curves = np.full([*map(len, grid[:3]), grid.epochs], 0.5)
    assert [line for line in reported(grid, curves, *best) if "edge" in line] == notes


@pytest.mark.parametrize(("cross_entropy", "noted"), [(2.3026, True), (2.3025, False)])
def test_a_model_no_better_than_guessing_is_noted(cross_entropy, noted):
    lines = reported(Grid((8,), (0.1,), (0.5,), 1), [[[[cross_entropy]]]], 0, 0, 0, 0)
    note = "Note: guessing does at least as well, with a cross-entropy of 2.3026"
    assert (note in lines) == noted


def test_the_metrics_are_each_in_their_place():
    """Of training, then of validation, and those of the test set last."""
    lines = reported(Grid((8,), (0.1,), (0.5,), 1), [[[[0.375]]]], 0, 0, 0, 0)[-5:]
    assert [line.split()[0] for line in lines] == [
        *("Training", "Validation", "Validation", "Test", "Test")
    ]
    shown = [line.rpartition(": ")[2] for line in lines]
    assert shown == ["0.2500", "0.3750", "50.00%", "0.7500", "62.50%"]


# --- Progress -------------------------------------------------------------------------------------


def progress_line(monkeypatch, epochs, seconds):
    """The line after so many of 1000 epochs, which took so many seconds."""
    lines = []
    monkeypatch.setattr(softmax_sgd, "log", lambda line, live: lines.append(line))
    progress = Progress(GRID._replace(epochs=1000))
    progress.start -= seconds
    shape = [*map(len, GRID[:3])]
    lowest, best_epoch = np.full(shape, np.inf if epochs == 0 else 0.5), np.full(shape, 9)
    if epochs > 0:
        lowest[1, 0, 2], best_epoch[1, 0, 2] = 0.43219, 7
    progress(epochs, lowest, best_epoch)
    return lines.pop()


@pytest.mark.parametrize(
    ("epochs", "seconds", "left"),
    [(500, 119, "119 s"), (500, 121, "2 min"), (250, 2340, "117 min"), (250, 2460, "2 h")],
)
def test_progress_tells_the_cross_entropy_the_time_left_and_the_best_point(
    monkeypatch, epochs, seconds, left
):
    size, rate, alpha = GRID.batch_sizes[1], GRID.learning_rates[0], GRID.alphas[2]
    assert progress_line(monkeypatch, epochs, seconds) == (
        f"CE 0.4322, {epochs}/1000 epochs, {left} left; "
        f"size {size}, rate {rate}, alpha {alpha}, epoch 7"
    )


def test_progress_begins_before_the_first_epoch(monkeypatch):
    assert progress_line(monkeypatch, 0, 0) == "0/1000 epochs"


class Terminal:
    """A run of the program whose stderr is a terminal of so many columns."""

    def __init__(self, columns, *arguments, **options):
        import fcntl
        import pty
        import struct
        import termios

        self.leader, follower = pty.openpty()
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
        self.child = start(*arguments, stderr=follower, **options)
        os.close(follower)
        self.shown = ""

    def read_until(self, pattern):
        """Read on until `pattern` is shown, or if it is None, until the program ends."""
        deadline = time.monotonic() + 60
        while pattern is None or not re.search(pattern, self.shown):
            ready, _, _ = select.select([self.leader], [], [], deadline - time.monotonic())
            assert ready, f"{pattern!r} is not shown within a minute: {self.shown!r}"
            try:
                piece = os.read(self.leader, 100_000)
            except OSError:  # how Linux tells the end
                piece = b""
            if not piece:
                assert pattern is None, f"ended without {pattern!r}: {self.shown!r}"
                return
            self.shown += piece.decode()

    def lines(self):
        return [line.strip() for line in re.split("[\r\n]", self.shown) if line.strip()]

    def close(self):
        self.child.kill()
        self.child.stdout.close()
        self.child.wait()
        os.close(self.leader)


# --- What it refuses ------------------------------------------------------------------------------

COUNT = "is not a whole number from 1 to 1000000000"
WRONG_OPTIONS = {
    "--batch-sizes 0": f"argument --batch-sizes: '0' {COUNT}",
    "--batch-sizes 8 2.5": f"argument --batch-sizes: '2.5' {COUNT}",
    "--batch-sizes 1000000001": f"argument --batch-sizes: '1000000001' {COUNT}",
    "--batch-sizes 8,16": f"argument --batch-sizes: '8,16' {COUNT}; "
    "write one number, or several with spaces between",
    "--batch-sizes": "argument --batch-sizes: expected at least one argument",
    "--learning-rates 0": "argument --learning-rates: '0' is not a finite number above 0",
    "--learning-rates -1": "argument --learning-rates: '-1' is not a finite number above 0",
    "--learning-rates inf": "argument --learning-rates: 'inf' is not a finite number above 0",
    "--learning-rates nan": "argument --learning-rates: 'nan' is not a finite number above 0",
    "--alphas -0.1": "argument --alphas: '-0.1' is not a finite number, 0 or more",
    "--alphas 0 inf": "argument --alphas: 'inf' is not a finite number, 0 or more",
    "--alphas nan": "argument --alphas: 'nan' is not a finite number, 0 or more",
    "--epochs 0": f"argument --epochs: '0' {COUNT}",
    "--validation-fraction 0": "argument --validation-fraction: '0' is not a number "
    "between 0 and 1",
    "--validation-fraction 1": "argument --validation-fraction: '1' is not a number "
    "between 0 and 1",
    "--validation-fraction 20%": "argument --validation-fraction: '20%' is not a number "
    "between 0 and 1",
    "--seed -1": "argument --seed: '-1' is not a whole number, 0 or more",
    "--seed 0.5": "argument --seed: '0.5' is not a whole number, 0 or more",
    "--workers 0": f"argument --workers: '0' {COUNT}",
    "--output=": "argument --output: the name of the folder is empty",
    "--data-dir=": "argument --data-dir: the name of the folder is empty",
    "--no-such-option": "unrecognized arguments: --no-such-option",
}


@pytest.mark.parametrize("arguments", WRONG_OPTIONS)
def test_a_wrong_option_is_named_after_the_usage(monkeypatch, capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        parse(monkeypatch, *arguments.split())
    shown = capsys.readouterr()
    assert ended.value.code == 2
    assert shown.err.startswith("usage: softmax_sgd.py")
    assert shown.err.endswith(f"\nsoftmax_sgd.py: error: {WRONG_OPTIONS[arguments]}\n")
    assert shown.out == ""


def test_the_process_ends_with_the_status_for_a_wrong_option():
    done = command("--epochs", 0)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


def test_the_ends_of_the_ranges_are_allowed(monkeypatch):
    options = parse(monkeypatch, "--epochs", 1, "--seed", 0, "--alphas", 0, "--workers", 1)
    assert (options.epochs, options.seed, options.alphas, options.workers) == (1, 0, [0], 1)
    assert parse(monkeypatch, "--epochs", 10**9).epochs == 10**9


# Options that do not fit the 60 + 40 images of the user's own files.
UNFIT = {
    "--batch-sizes 49": "--batch-sizes 49: more than the 48 training images",
    "--batch-sizes 1000000 8": "--batch-sizes 1000000: more than the 48 training images",
    "--validation-fraction 0.98": "--batch-sizes 64: more than the 1 training image",
    "--validation-fraction 0.999": "--validation-fraction leaves no training images (of 60)",
    "--validation-fraction 0.001": "--validation-fraction leaves no validation images (of 60)",
    "--learning-rates 1e30 --alphas 1 --batch-sizes 8": "every model diverged; "
    "try smaller learning rates or alphas",
}


@pytest.mark.parametrize("arguments", UNFIT)
def test_what_does_not_fit_the_data_is_named(own_files, tmp_path, arguments):
    output = tmp_path / "out"
    done = command("--data-dir", own_files, "--output", output, *arguments.split())
    assert done.returncode == 1, f"accepted, or the status is wrong:\n{done.stdout}{done.stderr}"
    assert done.stderr.splitlines()[-1] == f"softmax_sgd.py: {UNFIT[arguments]}"
    assert "Warning" not in done.stderr
    assert "Test" not in done.stdout
    assert list(output.iterdir()) == []


def test_a_minibatch_may_hold_all_images(own_files):
    done = command(*ONE_MODEL, "--data-dir", own_files, "--batch-sizes", 48)
    assert done.returncode == 0


# --- Where it runs --------------------------------------------------------------------------------


def run_with(folder, module, statements, *arguments, **options):
    """Run the program where a module of one's own, of these statements, is found first."""
    folder.mkdir(exist_ok=True)
    (folder / f"{module}.py").write_text(statements, encoding="utf-8")
    return command(*arguments, env={"PYTHONPATH": str(folder)}, **options)


def test_a_missing_numpy_is_told_in_one_line(tmp_path):
    done = run_with(tmp_path, "numpy", "raise ModuleNotFoundError('numpy')", "--help")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "NumPy is missing. To install what is needed: pip install -r requirements.txt\n"
    )


def test_an_old_python_is_told_in_one_line(tmp_path):
    """Python runs sitecustomize first of all. An old one can read the programs so far."""
    pretend = "import sys\nsys.version_info, sys.version = {}, '{} (default)'"
    old = pretend.format((3, 9, 6), "3.9.6")
    done = run_with(tmp_path / "old", "sitecustomize", old, "--help")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Python 3.10 or newer is needed; this is Python 3.9.6.\n"
    for program in ("softmax_sgd.py", "download_data.py"):
        ast.parse((ROOT / program).read_text(encoding="utf-8"), feature_version=(3, 8))


def test_own_data_need_no_requests(finished_run, tmp_path):
    missing = "raise ModuleNotFoundError('requests')"
    options = (*ONE_MODEL, "--data-dir", finished_run.own_files)
    assert run_with(tmp_path, "requests", missing, *options).returncode == 0


def test_a_limit_on_threads_is_told_in_one_line(own_files, tmp_path):
    """The system's refusal to start a thread is simulated."""
    no_threads = """\
import threading
def start(self):
    raise RuntimeError("can't start new thread")
threading.Thread.start = start
"""
    options = (*ONE_MODEL, "--data-dir", own_files)
    done = run_with(tmp_path / "modules", "sitecustomize", no_threads, *options)
    told = "cannot start another thread: a limit on memory or on tasks is reached"
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"softmax_sgd.py: {told}"
    assert "Traceback" not in done.stderr


def test_blas_has_one_thread_for_each_worker(tmp_path):
    pytest.importorskip("threadpoolctl")
    at_exit = """\
import atexit
@atexit.register
def show():
    import threadpoolctl
    print("BLAS threads:", *(pool["num_threads"] for pool in threadpoolctl.threadpool_info()))
"""
    done = run_with(tmp_path, "sitecustomize", at_exit, "--help")
    assert set(done.stdout.partition("BLAS threads:")[2].split()) <= {"1"}


def test_importing_changes_nothing(capsys, monkeypatch):
    for name in [name for name in os.environ if name.endswith("_THREADS")]:
        monkeypatch.delenv(name)
    before = dict(os.environ), sys.getswitchinterval(), signal.getsignal(signal.SIGTERM)
    runpy.run_path(str(ROOT / "softmax_sgd.py"), run_name="imported")
    after = dict(os.environ), sys.getswitchinterval(), signal.getsignal(signal.SIGTERM)
    assert after == before, "a notebook loses its BLAS threads, or its signals"
    assert capsys.readouterr() == ("", "")


@pytest.mark.data
def test_started_from_another_folder_it_uses_the_data_beside_the_script(data_dir, tmp_path):
    """And on these data a linear model reaches 83%, but not 85%."""
    small = ("--batch-sizes", 64, "--learning-rates", 0.05, "--alphas", 1e-4, "--epochs", 12)
    done = command(*small, "--output", "out", cwd=tmp_path)
    assert done.stderr.startswith(f"Data: {data_dir.resolve()}\n")
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert results["data_dir"] == "data", "a path of this machine"
    assert results["split"] == {"train": 48000, "validation": 12000, "test": 10000}
    accuracy = results["test"]["accuracy"]
    assert accuracy > 0.83, "badly trained, or tested on images of another scale (/255?)"
    assert accuracy < 0.85, "no linear model is as good as that: it has seen the test set"


@pytest.mark.parametrize("place", ["data", pytest.param("elsewhere", marks=posix)])
def test_only_the_folder_beside_the_script_is_completed(tmp_path, place):
    """A file in its place shows which way was taken, with no network; also where `data` links."""
    folder = copy_programs(tmp_path / "project")
    (folder / place).write_text("in the way")
    if place != "data":
        (folder / "data").symlink_to(place)
    line = [sys.executable, folder / "softmax_sgd.py"]
    done = command(line=line)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"cannot store the data in {folder / place}: " in done.stderr
    done = command("--data-dir", "none", line=line, cwd=tmp_path)
    assert done.stderr == f"softmax_sgd.py: {tmp_path / 'none'}: no such folder\n"
    assert not (tmp_path / "none").exists()


# --- How it ends ----------------------------------------------------------------------------------


@posix
@both
def test_started_in_a_folder_that_is_gone(tmp_path, program):
    (tmp_path / "gone").mkdir()
    line = in_shell("rmdir ../gone", program)
    done = command("--data-dir", "here", line=line, cwd=tmp_path / "gone")
    told = f"{program}: the current folder no longer exists\n"
    assert (done.returncode, done.stderr) == (1, told)


@posix
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_search_names_its_best_point(finished_run, tmp_path, sent, status):
    """Trained alone, for so many epochs, that point has the cross-entropy that is told.

    Memory is limited, and the number of epochs is not: their metrics are not allocated in advance.
    On the way, a terminal of 60 columns shows each line of progress, cut off if need be.
    """
    epochs, output = 10**9, tmp_path / "out"
    options = (*finished_run.options, "--epochs", epochs, "--output", output)
    terminal = Terminal(60, *options, line=in_shell("ulimit -v 4000000"))
    try:
        terminal.read_until(rf"CE .* \d\d+/{epochs} epochs")
        for _ in range(3):
            terminal.child.send_signal(sent)
        terminal.read_until(None)
        stdout = terminal.child.stdout.read()
    finally:
        terminal.close()
    ended = terminal.child.returncode
    assert ended == status, f"status {ended}, not {status}: {terminal.lines()[-1]}"
    assert "Test" not in stdout, "the test set was used"
    assert list(output.iterdir()) == [], "something was written"

    _, first, *live, last = terminal.lines()
    assert first == f"0/{epochs} epochs"
    for line in live:
        assert re.match(rf"CE \d\.\d{{4}}, \d+/{epochs} epochs, \d+ h left; size", line)
        assert len(line) < 60

    told = r"softmax_sgd.py: interrupted; (best) so far: batch size (\d+), learning rate (.+), "
    told += r"alpha (.+), epochs (\d+), validation cross-entropy (\d\.\d{4})"
    best = re.fullmatch(told, last)
    assert best, f"the best point is not told: {last}"
    _, size, rate, alpha, epoch, cross_entropy = best.groups()
    alone = ("--batch-sizes", size, "--learning-rates", rate, "--alphas", alpha, "--epochs", epoch)
    shown = command(*finished_run.options, *alone).stdout
    assert f"Best: {last.partition('so far: ')[2].rpartition(', ')[0]}\n" in shown
    again = re.search(r"Validation cross-entropy: (.*)", shown)[1]
    assert float(again) == pytest.approx(float(cross_entropy), abs=1.1e-4)


@posix
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_in_mid_epoch_it_ends_at_once(own_files, tmp_path, sent, status):
    """Here an epoch would take half a minute, and none has ended: there is no best point."""
    for images, labels, n in ((*NAMES[:2], 1_000_000), (*NAMES[2:], 1)):
        np.save(own_files / images, np.full((n, 2), 200, np.uint8))
        np.save(own_files / labels, np.zeros(n, np.uint8))
    output = tmp_path / "out"
    options = ("--data-dir", own_files, "--output", output, "--validation-fraction", 1e-5)
    with start(*options, "--batch-sizes", 1, 2) as child:
        try:
            assert child.stdout.readline().startswith("Images")
            time.sleep(0.5)
            begin = time.monotonic()
            for _ in range(3):
                child.send_signal(sent)
            stdout, stderr = child.communicate(timeout=20)
            seconds = time.monotonic() - begin
        except subprocess.TimeoutExpired:
            pytest.fail("20 s after the signal, the search goes on")
        finally:
            child.kill()
    assert child.returncode == status
    assert stderr.endswith("\nsoftmax_sgd.py: interrupted\n")
    assert "Test" not in stdout, "the test set was used"
    assert list(output.iterdir()) == [], "something was written"
    assert seconds < 2, "not at once"


@pytest.mark.parametrize("lines", [0, 1])
def test_a_reader_of_stdout_may_leave(finished_run, tmp_path, lines):
    """Before the heading or after its first line. What was written first is complete."""
    output = tmp_path / "out"
    with start(*finished_run.options, "--epochs", 60, "--output", output) as child:
        for _ in range(lines):
            child.stdout.readline()
        child.stdout.close()
        stderr = child.stderr.read()
    assert child.returncode == 1
    assert "Error" not in stderr
    assert "cannot write" not in stderr
    if lines == 1:
        assert sorted(os.listdir(output)) == sorted(RESULTS), "the results are lost"


@posix
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_are_no_error(finished_run, tmp_path, closed):
    options = (*ONE_MODEL, "--data-dir", finished_run.own_files, "--output", tmp_path)
    done = command(*options, line=in_shell(f"exec {closed}"))
    assert done.returncode == 0
    assert sorted(os.listdir(tmp_path)) == sorted(RESULTS)


full_disk = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")


@full_disk
def test_a_full_disk_under_stdout_is_told(finished_run):
    with open("/dev/full", "w") as full:
        done = command(*ONE_MODEL, "--data-dir", finished_run.own_files, stdout=full)
    assert done.returncode == 1
    assert done.stderr.endswith("cannot write the results: No space left on device\n")


@full_disk
@both
def test_help_that_cannot_be_written_is_told_once(program):
    """Not once more by Python, when it ends."""
    with open("/dev/full", "w") as full:
        done = command("--help", line=[sys.executable, ROOT / program], stdout=full)
    assert done.returncode == 1, done.stderr
    assert done.stderr == f"{program}: cannot write the results: No space left on device\n"


@both
def test_help_may_lose_its_reader(program):
    reader, writer = os.pipe()
    os.close(reader)
    done = command("--help", line=[sys.executable, ROOT / program], stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


# --- To the letter --------------------------------------------------------------------------------


def test_stdout_to_the_letter(finished_run):
    assert (
        finished_run.stdout
        == """\
Images: 42 training, 18 validation, 40 test
Grid: 3 batch sizes x 4 learning rates x 5 alphas x 10 epochs = 600 points

The best models for each batch size (at most three), at their best epochs:
batch size  learning rate  alpha  epochs  validation CE  accuracy
         4            1.0  0.004       8         1.6929    44.44%
         4            1.9  0.004      10         1.7128    44.44%
         4            1.0  0.001       8         1.7497    50.00%
         9            1.0   0.02       9         1.6395    55.56%
         9            1.9   0.02       6         1.6605    61.11%
         9            1.0  0.004       9         1.7005    55.56%
        16            1.9  0.004       6         1.8309    61.11%
        16            1.0   0.02       6         1.8322    55.56%
        16            1.0  0.004       6         1.8421    61.11%

Best: batch size 9, learning rate 1.0, alpha 0.02, epochs 9

Training cross-entropy: 0.2380
Validation cross-entropy: 1.6395
Validation accuracy: 55.56%
Test cross-entropy (unregularized): 1.9452
Test accuracy: 57.50%
"""
    )


def test_stderr_to_the_letter_but_for_the_seconds(finished_run):
    told = finished_run.stderr.replace(str(finished_run.own_files), "OWN")
    told = told.replace(str(finished_run.output), "OUT")
    live = r"(CE .*\n|\d+/\d+ epochs\n)*"  # if the machine is slow
    assert re.fullmatch(
        rf"Data: OWN\n{live}searched in \d+\.\d s\n\n"
        r"Wrote results\.json, model\.npz, curves\.npz to OUT\n",
        told,
    )
