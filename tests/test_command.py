"""softmax_sgd.py as its user meets it: options, output, files, terminal, interruption.

`finished_run` is a run on small files with GRID (see conftest.py and helpers.py).
"""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from helpers import GRID, GRID_OPTIONS, ROOT, SEED, TEST_IMAGES, run, write_own_files

from softmax_sgd import Grid, main

posix = pytest.mark.skipif(os.name != "posix", reason="Windows has no such signals or terminals")
ONE_MODEL = ("--batch-sizes", 8, "--learning-rates", 0.1, "--alphas", 0.01, "--epochs", 2)


@pytest.fixture
def run_here(own_files, tmp_path, capsys):
    """A function that runs the program in this process; it returns its output and results.json."""

    def run_here(*options):
        folder = tmp_path / "results"
        where = ("--data-dir", own_files, "--output", folder)
        main([str(option) for option in (*options, *where)])
        return capsys.readouterr().out, json.loads((folder / "results.json").read_text())

    return run_here


# --- Options --------------------------------------------------------------------------------------


def test_help_shows_the_options_with_their_defaults():
    done = run("softmax_sgd.py", "--help", env=os.environ | {"COLUMNS": "1000", "NO_COLOR": "1"})
    text = " ".join(done.stdout.split())
    options = re.findall(r"(?<= )--[a-z-]+(?= )", text.partition("options:")[2].partition("To ")[0])
    assert options == [
        *("--help", "--batch-sizes", "--learning-rates", "--alphas", "--epochs"),
        *("--seed", "--data-dir", "--output", "--no-test"),
    ]
    for values in (*Grid()[:-1], (Grid().epochs,), (0,)):
        assert f"(default: {' '.join(map(str, values))})" in text
    assert "None" not in text
    assert text.endswith("--batch-sizes 64 --epochs 5 --no-test"), "no quick example"


def test_without_options_the_whole_default_grid_is_searched(capsys, monkeypatch):
    """The grid with which `search` is called; it is stopped there."""
    grids = []

    def stop(X, y, train, validation, grid, *others):
        grids.append(grid)
        raise KeyboardInterrupt

    monkeypatch.setattr("softmax_sgd.ensure", lambda folder: None)
    monkeypatch.setattr("softmax_sgd.load", lambda folder: [np.zeros((1000, 4)), None] * 2)
    monkeypatch.setattr("softmax_sgd.search", stop)
    with pytest.raises(SystemExit):
        main([])
    assert grids == [Grid()]


def test_values_are_sorted_and_repeated_ones_are_tried_once(run_here):
    _, results = run_here(
        *("--batch-sizes", 16, 8, 16, "--learning-rates", 0.5, 0.1, "--alphas", 0.3, 0, 0.3),
        *("--epochs", 3),
    )
    assert results["grid"]["batch_sizes"] == [8, 16]
    assert results["grid"]["learning_rates"] == [0.1, 0.5]
    assert results["grid"]["alphas"] == [0.0, 0.3]
    assert results["grid"]["epochs"] == 3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--batch-sizes", "0"), "--batch-sizes: '0' is not a whole number of 1 or more"),
        (("--batch-sizes", "16,32"), "1 or more; separate several by spaces"),
        (("--batch-sizes", "64.0"), "--batch-sizes: '64.0' is not a whole number of 1 or more"),
        (("--batch-sizes",), "--batch-sizes: expected at least one argument"),
        (("--learning-rates", "0"), "--learning-rates: '0' is not a number above 0"),
        (("--learning-rates", "nan"), "--learning-rates: 'nan' is not a number above 0"),
        (("--learning-rates", "0,1"), "--learning-rates: '0,1' is not a number above 0"),
        (("--alphas", "-0.1"), "--alphas: '-0.1' is not a number of 0 or more"),
        (("--alphas", "inf"), "--alphas: 'inf' is not a number of 0 or more"),
        (("--epochs", "0"), "--epochs: '0' is not a whole number of 1 or more"),
        (("--epochs", "many"), "--epochs: 'many' is not a whole number of 1 or more"),
        (("--seed", "-1"), "--seed: '-1' is not a whole number of 0 or more"),
        (("--quick",), "unrecognized arguments: --quick"),
        (("--output", str(ROOT / "README.md")), "--output: "),
    ],
)
def test_a_wrong_option_is_named_at_once_with_what_is_expected(options, says, own_files, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*map(str, ONE_MODEL), "--data-dir", str(own_files), *options])
    assert stop.value.code == 2
    assert says in capsys.readouterr().err.splitlines()[-1]


# --- Errors ---------------------------------------------------------------------------------------


def error_line(own_files, capsys, *options):
    """The last line on stderr of a run that fails with status 1."""
    with pytest.raises(SystemExit) as stop:
        main([str(option) for option in (*options, "--data-dir", own_files)])
    assert stop.value.code == 1
    stderr = capsys.readouterr().err
    assert stderr, "nothing is said on stderr"
    return stderr.splitlines()[-1]


def test_a_batch_size_above_the_number_of_training_images_is_refused(own_files, capsys):
    line = error_line(own_files, capsys, "--batch-sizes", 4, 49)
    assert line == "softmax_sgd.py: --batch-sizes 49: there are only 48 training images"
    main([*map(str, ONE_MODEL), "--batch-sizes", "48", "--data-dir", str(own_files)])


def test_wrong_data_are_one_line(own_files, capsys):
    (own_files / TEST_IMAGES).write_text("<html>")
    line = error_line(own_files, capsys)
    assert line.startswith(f"softmax_sgd.py: {own_files / TEST_IMAGES}: cannot be read: ")


@pytest.mark.filterwarnings("error")
def test_if_every_model_diverges_one_line_says_what_to_try(own_files, capsys):
    line = error_line(own_files, capsys, *ONE_MODEL, "--learning-rates", 1e38)
    assert line == "softmax_sgd.py: every model diverged; try smaller learning rates or alphas"


@pytest.mark.parametrize("options", [(), ("--data-dir", "data")])
def test_the_default_folder_is_verified_however_it_is_named(tmp_path, options):
    """Other images under the same names, such as MNIST's, are not taken for Fashion-MNIST."""
    for program in ("softmax_sgd.py", "download_data.py"):
        shutil.copy(ROOT / program, tmp_path)
    write_own_files(tmp_path / "data")
    before = (tmp_path / "data" / TEST_IMAGES).read_bytes()
    done = run(tmp_path / "softmax_sgd.py", *ONE_MODEL, *options, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    line = done.stderr
    assert "has files that are wrong" in line
    assert (tmp_path / "data" / TEST_IMAGES).read_bytes() == before


# --- What is printed ------------------------------------------------------------------------------


def table_after(title, text):
    """The rows of the table below a line that begins with `title`, split into cells."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(title)) + 1
    rows = []
    for line in lines[start:]:
        if not line or line.startswith("by"):
            return rows
        rows.append(line.split())
    return rows


def test_the_first_lines_tell_the_split_with_its_seed_and_the_size_of_the_grid(finished_run):
    lengths = " x ".join(str(len(values)) for values in GRID.axes().values())
    names = " x ".join(name.replace("_", " ") for name in GRID.axes())
    assert finished_run.stdout.splitlines()[:3] == [
        f"Images: 48 training, 12 validation, 40 test (split by seed {SEED})",
        f"Grid: {lengths} ({names})",
        "",
    ]


def test_the_tables_have_the_lowest_cross_entropy_for_each_value_tried(finished_run):
    curve = finished_run.curves["cross_entropy"]

    def cell(values):
        mark = "*" if values.min() == curve.min() else ""
        return f"{values.min():.4f}{mark}"

    rows = [["batch", "size", *map(str, GRID.learning_rates)]]
    for i, batch_size in enumerate(GRID.batch_sizes):
        rows.append([str(batch_size), *(cell(curve[i, j]) for j in range(4))])
    assert table_after("Lowest validation cross-entropy", finished_run.stdout) == rows

    rows = [["alpha", *map(str, GRID.alphas)], [cell(curve[:, :, k]) for k in range(5)]]
    assert table_after("by alpha", finished_run.stdout) == rows


def test_the_columns_are_aligned_for_any_grid_also_if_models_diverge(run_here):
    rates = ("0.1", "0.000123456", "1e+38")
    out, _ = run_here("--batch-sizes", 4, 16, "--learning-rates", *rates, "--epochs", 2)
    lines = out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("batch size"))
    ends = [{match.end() for match in re.finditer(r"[^ *]+", line)} for line in lines[start:][:3]]
    assert ends[1] == ends[2] == ends[0] - {len("batch")}, "\n".join(lines[start:][:3])
    assert [line.split()[-1] for line in lines[start:][1:3]] == ["diverged"] * 2
    assert "8 of 24 models diverged." in lines


@pytest.mark.parametrize(
    ("grid", "notes"),
    [
        (
            "--batch-sizes 4 --learning-rates 0.1 0.4 --alphas 0 0.5 --epochs 3",
            ["learning rate 0.4: larger", "epochs 3: larger"],
        ),
        (
            "--batch-sizes 9 30 --learning-rates 0.4 2 --alphas 0 0.5 --epochs 6",
            ["batch size 9: smaller", "learning rate 0.4: smaller", "epochs 6: larger"],
        ),
        (
            "--batch-sizes 9 30 --learning-rates 0.4 --alphas 0.1 0.5 --epochs 6",
            ["batch size 30: larger", "alpha 0.1: smaller", "epochs 6: larger"],
        ),
    ],
)
def test_a_best_value_at_the_edge_of_the_grid_gets_a_note(run_here, grid, notes):
    """But not one without others beside it, nor alpha 0, below which there is none."""
    out, _ = run_here(*grid.split())
    lines = [line for line in out.splitlines() if line.startswith("Note")]
    expected = []
    for note in notes:
        value, change = note.split(": ")
        expected.append(f"Note: {value} is at the edge of the grid; try {change} ones")
    assert lines == [*expected, "Note: explore with --no-test until the grid is final"]


def test_a_winner_inside_the_grid_gets_no_note(finished_run):
    assert "Note" not in finished_run.stdout


def test_no_test_leaves_out_the_test_and_nothing_else(run_here, finished_run):
    out, results = run_here(*GRID_OPTIONS, "--no-test")
    lines = finished_run.stdout.splitlines()[:-2]
    assert [line.split()[:2] for line in out.splitlines()] == [line.split()[:2] for line in lines]
    assert "test" not in results
    for part in ("best", "training", "validation"):
        assert results[part] == pytest.approx(finished_run.results[part], rel=1e-4)


def test_progress_and_where_the_results_are_go_to_stderr(finished_run):
    assert re.fullmatch(
        r"(\d+ of 10 epochs, .*\n)*"  # on a slow machine
        r"searched in \d+\.\d s\nWrote results.json, model.npz and curves.npz to .*\n",
        finished_run.stderr,
    )


def test_another_seed_gives_another_split_and_the_same_one_the_same_output(run_here):
    outputs = [run_here(*ONE_MODEL, "--seed", seed)[0] for seed in (4, 4, 5)]
    assert outputs[0] == outputs[1]
    assert outputs[0].splitlines()[1:] != outputs[2].splitlines()[1:]


# --- Files ----------------------------------------------------------------------------------------


def test_results_json_tells_what_was_run_and_what_came_out(finished_run):
    results = finished_run.results
    assert list(results) == [
        *("seed", "data_dir", "grid", "split", "best", "training", "validation", "test"),
        *("seconds", "numpy"),
    ]
    assert results["seed"] == SEED
    assert results["data_dir"] == str(finished_run.own_files)
    assert results["grid"] == json.loads(json.dumps(GRID._asdict()))
    assert results["numpy"] == np.__version__
    assert 0 < results["seconds"] < 300
    for part in ("training", "validation", "test"):
        assert list(results[part]) == ["cross_entropy", "accuracy"]


def test_curves_npz_has_the_values_of_its_axes_and_model_npz_has_W_and_b(finished_run):
    curves, model = finished_run.curves, finished_run.model
    assert sorted(model) == ["W", "b"]
    assert (model["W"].shape, model["b"].shape) == ((49, 10), (10,))
    assert list(curves) == ["cross_entropy", "accuracy", *GRID._fields]
    for name, values in GRID._asdict().items():
        assert curves[name].tolist() == json.loads(json.dumps(values)), name


def test_output_may_be_a_folder_with_other_files(finished_run, run_here, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "mine.txt").write_text("mine")
    run_here(*ONE_MODEL)
    assert sorted(os.listdir(tmp_path / "results")) == [
        *("curves.npz", "mine.txt", "model.npz", "results.json")
    ]


def test_a_failing_write_is_one_line_after_the_results_were_printed(own_files, tmp_path, capsys):
    """And no old results.json stays beside files of another run."""
    output = tmp_path / "results"
    (output / "curves.npz").mkdir(parents=True)
    (output / "results.json").write_text("of an earlier run")
    options = (*ONE_MODEL, "--data-dir", own_files, "--output", output)
    with pytest.raises(SystemExit) as stop:
        main([*map(str, options)])
    assert stop.value.code == 1
    out, err = capsys.readouterr()
    assert "Test accuracy" in out
    assert err.splitlines()[-1].startswith(
        f"softmax_sgd.py: the results cannot be written to {output}"
    )
    assert not (output / "results.json").exists()


def test_without_output_nothing_is_written(own_files, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    main([*map(str, ONE_MODEL), "--data-dir", str(own_files)])
    assert sorted(tmp_path.rglob("*")) == before


# --- The process ----------------------------------------------------------------------------------


@posix
def test_on_a_terminal_progress_is_one_live_line(own_files):
    import pty

    leader, follower = pty.openpty()
    options = (*ONE_MODEL, "--data-dir", own_files)
    command = [sys.executable, ROOT / "softmax_sgd.py", *map(str, options)]
    env = os.environ | {"COLUMNS": "100"}
    shown = ""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=follower, env=env):
        while not re.search(r"searched in .* s\s", shown):
            shown += os.read(leader, 100_000).decode()
    os.close(follower)
    os.close(leader)
    *live, last = [line.rstrip("\n") for line in shown.split("\r") if line.strip()]
    assert re.fullmatch(r"searched in \d+\.\d s", last), shown
    assert len(live) == 2, "not one live line for each epoch"
    for epoch, line in enumerate(live, start=1):
        assert re.fullmatch(
            rf"{epoch} of 2 epochs, \d+ s left; lowest validation cross-entropy so far \d\.\d{{4}}",
            line,
        )


def test_no_time_is_left_after_the_last_epoch(own_files, capsys, monkeypatch):
    """By a clock that jumps by 20 seconds, so that lines are shown even without a terminal."""
    ticks = itertools.count(start=100, step=20)
    monkeypatch.setattr("download_data.last_shown", 0)
    monkeypatch.setattr("time.monotonic", lambda: next(ticks))
    main([*map(str, (*ONE_MODEL, "--epochs", 4, "--data-dir", own_files))])
    lines = re.findall(r"(\d) of 4 epochs, (\d+) s left", capsys.readouterr().err)
    assert [epoch for epoch, _ in lines] == ["1", "2", "3", "4"]
    *before, last = [int(seconds) for _, seconds in lines]
    assert min(before) > last == 0


@posix
def test_ctrl_c_ends_a_search_with_one_line_and_status_130(own_files, tmp_path):
    options = (*ONE_MODEL, "--epochs", 10**6, "--data-dir", own_files, "--output", tmp_path / "out")
    command = [sys.executable, ROOT / "softmax_sgd.py", *map(str, options)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
    with subprocess.Popen(command, **pipes) as process:
        try:
            assert process.stdout.readline().startswith("Images")
            assert process.stdout.readline().startswith("Grid")
            time.sleep(0.3)  # somewhere in the search
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, err.splitlines()[-1]) == (130, "interrupted")
    assert "Traceback" not in err
    assert os.listdir(tmp_path / "out") == []


def test_nothing_of_a_run_stays_in_a_process_that_goes_on(own_files):
    """As after %run in IPython: no signal handler, thread, or setting of NumPy."""
    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

    def state():
        handlers = {name: signal.getsignal(getattr(signal, name)) for name in names}
        return handlers, np.geterr(), sys.getswitchinterval()

    before, threads = state(), set(threading.enumerate())
    main([*map(str, ONE_MODEL), "--data-dir", str(own_files)])
    assert state() == before
    assert set(threading.enumerate()) <= threads, "a thread is still running"


@pytest.mark.parametrize(("own", "used"), [(None, "1"), ("3", "3")])
def test_BLAS_gets_one_thread_unless_the_user_has_set_another_number(own, used):
    names = [f"{library}_NUM_THREADS" for library in ("OPENBLAS", "MKL", "OMP")]
    names.append("VECLIB_MAXIMUM_THREADS")
    env = {name: value for name, value in os.environ.items() if name not in names}
    env |= dict.fromkeys(names, own) if own else {}
    code = f"""if True:
        import os, runpy, sys
        sys.argv = ["softmax_sgd.py", "--help"]
        try:
            runpy.run_path({str(ROOT / "softmax_sgd.py")!r}, run_name="__main__")
        except SystemExit:
            print("\\n", *[os.environ[name] for name in {names}])
    """
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout, done.stderr
    assert done.stdout.splitlines()[-1].split() == [used] * 4, done.stderr


def test_importing_the_program_does_nothing():
    code = "import os; old = dict(os.environ); import softmax_sgd; assert old == os.environ"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


SPURIOUS = """
#include <fenv.h>
#include <stdint.h>

/* The matrix product that NumPy calls; it reports errors that did not happen. */
void scipy_cblas_sgemm64_(int order, int transpose_A, int transpose_B, int64_t m, int64_t n,
                          int64_t k, float alpha, const float *A, int64_t lda, const float *B,
                          int64_t ldb, float beta, float *C, int64_t ldc) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            float sum = 0;
            for (int64_t l = 0; l < k; l++)
                sum += (transpose_A == 111 ? A[i * lda + l] : A[l * lda + i])
                     * (transpose_B == 111 ? B[l * ldb + j] : B[j * ldb + l]);
            C[i * ldc + j] = sum;
        }
    feraiseexcept(FE_DIVBYZERO | FE_OVERFLOW | FE_INVALID);
}
"""


def test_spurious_floating_point_errors_are_not_shown(own_files, tmp_path):
    """As some NumPys for macOS raise in every matrix product: numpy issues 28687 and 29820."""
    compiler = shutil.which("cc")
    if not (compiler and sys.platform == "linux"):
        pytest.skip("needs a C compiler on Linux")
    (tmp_path / "spurious.c").write_text(SPURIOUS)
    library = tmp_path / "spurious.so"
    source = tmp_path / "spurious.c"
    built = subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-lm"])
    if built.returncode:
        pytest.skip("the C compiler does not work")
    env = {**os.environ, "LD_PRELOAD": str(library), "PYTHONWARNINGS": "error"}
    product = "import numpy as np; np.ones((9, 9), 'f') @ np.ones((9, 9), 'f')"
    control = subprocess.run([sys.executable, "-c", product], env=env, capture_output=True)
    if b"RuntimeWarning" not in control.stderr:
        pytest.skip("this NumPy calls another matrix product")
    done = run("softmax_sgd.py", *ONE_MODEL, "--data-dir", own_files, env=env)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
