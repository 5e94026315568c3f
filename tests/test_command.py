"""softmax_sgd.py as its user meets it: options, output, files, terminal, interruption.

`finished_run` is a run on small files with GRID (see conftest.py and helpers.py).
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from helpers import GRID, GRID_OPTIONS, ROOT, SEED, TEST_IMAGES, run, write_own_files

import download_data
import softmax_sgd
from softmax_sgd import Grid, evaluate, main, print_edges, print_lowest, search

posix = pytest.mark.skipif(os.name != "posix", reason="Windows has no such signals or terminals")
NAMES = ["curves.npz", "model.npz", "results.json"]
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
    options = "batch-sizes learning-rates alphas epochs seed data-dir output no-test"
    for option in options.split():
        assert f" --{option} " in text
    grid = Grid()
    several = (grid.batch_sizes, grid.learning_rates, grid.alphas)
    for default in (*(" ".join(map(str, values)) for values in several), grid.epochs, 0):
        assert f"(default: {default})" in text
    assert "(default: None)" not in text
    assert text.endswith("--batch-sizes 64 --epochs 5 --no-test"), "no quick example"
    assert "Exit status: 1 if " in text


def test_without_options_the_whole_default_grid_is_searched(capsys, monkeypatch):
    """Looks at the grid that `search` is given, and does not search."""
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


def test_the_smallest_valid_values_are_taken(run_here):
    smallest = ("--learning-rates", 1e-300, "--alphas", 0, "--epochs", 1, "--seed", 0)
    _, results = run_here("--batch-sizes", 1, *smallest)
    tried = {"batch_size": 1, "learning_rate": 1e-300, "alpha": 0, "epochs": 1}
    assert {name: results["best"][name] for name in tried} == tried
    assert results["seed"] == 0


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
        (("--batch-sizes", "16,32"), "1 or more; write a decimal point, and spaces between values"),
        (("--batch-sizes", "64.0"), "--batch-sizes: '64.0' is not a whole number of 1 or more"),
        (("--learning-rates", "0"), "--learning-rates: '0' is not a number above 0"),
        (("--learning-rates", "nan"), "--learning-rates: 'nan' is not a number above 0"),
        (("--learning-rates", "inf"), "--learning-rates: 'inf' is not a number above 0"),
        (("--learning-rates", "0,1"), "'0,1' is not a number above 0; write a decimal point"),
        (("--alphas", "-0.1"), "--alphas: '-0.1' is not a number of 0 or more"),
        (("--alphas", "inf"), "--alphas: 'inf' is not a number of 0 or more"),
        (("--epochs", "0"), "--epochs: '0' is not a whole number of 1 or more"),
        (("--epochs", "many"), "--epochs: 'many' is not a whole number of 1 or more"),
        (("--seed", "-1"), "--seed: '-1' is not a whole number of 0 or more"),
        (("--no_test",), "unrecognized arguments: --no_test"),
        (("--output", str(ROOT / "README.md")), "README.md is not a folder"),
        (("--output", str(ROOT / "README.md" / "out")), " is not a folder"),
        (("--output", ""), "--output: a folder is expected, not an empty text"),
        (("--data-dir", ""), "--data-dir: a folder is expected, not an empty text"),
    ],
)
def test_a_wrong_option_is_named_at_once_with_what_is_expected(options, says, own_files, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*map(str, ONE_MODEL), "--data-dir", str(own_files), *options])
    assert stop.value.code == 2
    stdout, stderr = capsys.readouterr()
    assert says in stderr.splitlines()[-1]
    assert stdout == "", "not at once, but after the search"


# --- Errors ---------------------------------------------------------------------------------------


def error_line(own_files, capsys, *options):
    """The only line on stderr of a run that fails with status 1."""
    download_data.last_shown = time.monotonic()  # so that no line of progress is due
    status = 0
    try:
        main([str(option) for option in (*options, "--data-dir", own_files)])
    except SystemExit as stop:
        status = stop.code
    stderr = capsys.readouterr().err
    assert status == 1, f"exit status {status} after an error; stderr: {stderr}"
    lines = stderr.splitlines()
    assert len(lines) == 1, f"not one line on stderr: {stderr!r}"
    return lines[0]


def test_a_batch_size_above_the_number_of_training_images_is_refused(own_files, capsys):
    line = error_line(own_files, capsys, "--batch-sizes", 49, 4)
    assert line == (
        "softmax_sgd.py: --batch-sizes: 49 is more than the 48 training images; give smaller ones"
    )
    # 48 are not refused.
    main([*map(str, ONE_MODEL), "--batch-sizes", "48", "--data-dir", str(own_files)])


def test_wrong_data_are_one_line(own_files, capsys):
    (own_files / TEST_IMAGES).write_text("<html>")
    line = error_line(own_files, capsys)
    assert line.startswith(f"softmax_sgd.py: {own_files / TEST_IMAGES}: cannot be read: ")


@pytest.mark.filterwarnings("error")  # no warning may reach the user, either
def test_if_every_model_diverges_the_last_line_says_what_to_try(own_files, capsys):
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
    assert "has files that are wrong" in done.stderr
    assert (tmp_path / "data" / TEST_IMAGES).read_bytes() == before


# --- What is printed ------------------------------------------------------------------------------


def test_the_first_lines_tell_the_split_with_its_seed_and_the_size_of_the_grid(finished_run):
    lengths = " x ".join(str(len(values)) for values in GRID.axes().values())
    names = " x ".join(name.replace("_", " ") for name in GRID.axes())
    assert finished_run.stdout.splitlines()[:3] == [
        f"Images: 48 training, 12 validation, 40 test (split by seed {SEED})",
        f"Grid: {lengths} ({names})",
        "",
    ]


def test_stderr_has_the_progress_and_the_folder_of_the_results(finished_run):
    assert re.fullmatch(
        rf"(\d+ of {GRID.epochs} epochs, .*\n)*"  # only if the search takes longer than 10 s
        r"searched in \d+\.\d s\nWrote results.json, model.npz and curves.npz to .*\n",
        finished_run.stderr,
    )


TABLES = """
Lowest validation cross-entropy by batch size and learning rate (* best):
batch size   0.0001        1.5
         8   0.7000     0.6000*
        16  12.5000   diverged
by alpha:
alpha     0.0      0.1
       0.6000   0.6000*
3 of 8 models diverged: their numbers became infinite.
"""


def test_the_tables_have_the_lowest_cross_entropy_of_all_that_share_a_value(capsys):
    """Batch size 16 with rate 1.5 diverges with both alphas, and with rate 0.0001 with one.

    0.60004 is printed like the lowest, 0.6, but has no star.
    """
    grid = Grid(batch_sizes=(8, 16), learning_rates=(0.0001, 1.5), alphas=(0.0, 0.1), epochs=9)
    lowest = np.array([[[0.7, 0.8], [0.60004, 0.6]], [[np.inf, 12.5], [np.inf, np.inf]]])
    print_lowest(grid, lowest)
    assert capsys.readouterr().out == TABLES


def test_the_tables_are_those_of_the_curves(finished_run, capsys):
    print_lowest(GRID, finished_run.curves["cross_entropy"].min(axis=-1))
    assert capsys.readouterr().out in finished_run.stdout


@pytest.mark.filterwarnings("error")
def test_models_that_diverge_are_counted_and_marked_and_do_not_win(own_files, tmp_path, capsys):
    grid = ("--batch-sizes", 8, "--alphas", 0.001, 0.01, "--epochs", 3)
    rates = ("--learning-rates", 0.1, 1e30)
    folder = tmp_path / "results"
    main([*map(str, (*grid, *rates, "--data-dir", own_files, "--output", folder))])
    out = capsys.readouterr().out
    lines = out.splitlines()
    row, by_alpha = (
        next(lines[i + 1] for i, line in enumerate(lines) if line.startswith(name))
        for name in ("batch size", "alpha")
    )
    assert re.fullmatch(r" +8 +\d\.\d{4}\* +diverged", row), out
    assert "diverged" not in by_alpha, out
    assert "\n2 of 4 models diverged" in out
    assert "learning rate 0.1, " in re.search("^Best: .*", out, re.MULTILINE)[0]
    curves = np.load(folder / "curves.npz")["cross_entropy"]
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert results["validation"]["cross_entropy"] == curves[:, 0].min()


AXES = {
    "batch_size": (4, 8, 64),
    "learning_rate": (0.1, 0.2, 0.4),
    "alpha": (0.01, 0.1, 0.5),
    "epochs": range(1, 10),
}
MIDDLE = {"batch_size": 8, "learning_rate": 0.2, "alpha": 0.1, "epochs": 5}


@pytest.mark.parametrize(
    ("best", "named", "change"),
    [
        ({"batch_size": 4}, "batch size 4", "smaller"),
        ({"batch_size": 64}, "batch size 64", "larger"),
        ({"learning_rate": 0.1}, "learning rate 0.1", "smaller"),
        ({"learning_rate": 0.4}, "learning rate 0.4", "larger"),
        ({"alpha": 0.01}, "alpha 0.01", "smaller"),
        ({"alpha": 0.5}, "alpha 0.5", "larger"),
        ({"epochs": 9}, "epochs 9", "larger"),
    ],
)
def test_a_best_value_at_the_edge_of_the_grid_gets_a_note(capsys, best, named, change):
    print_edges(AXES, MIDDLE | best, explore_hint=True)
    assert capsys.readouterr().out == (
        f"Note: {named} is at the edge of the grid; try {change} ones\n"
        "Note: explore with --no-test until the grid is final\n"
    )


@pytest.mark.parametrize("best", [MIDDLE, {"batch_size": 1, "alpha": 0.0, "epochs": 1}])
def test_a_value_inside_or_the_smallest_possible_gets_no_note(capsys, best):
    axes = AXES | {"batch_size": (1, 8, 64), "alpha": (0.0, 0.1, 0.5)}
    print_edges(axes, MIDDLE | best, explore_hint=True)
    assert capsys.readouterr().out == ""


def test_a_value_without_others_beside_it_gets_no_note(capsys):
    print_edges({"learning_rate": (0.1,)}, {"learning_rate": 0.1}, explore_hint=True)
    assert capsys.readouterr().out == ""


def test_the_hint_to_explore_is_left_out_while_one_does(run_here):
    grid = ("--batch-sizes", 4, "--learning-rates", 0.1, 0.4, "--alphas", 0.1, "--epochs", 3)
    hint = "Note: explore with --no-test until the grid is final\n"
    assert hint in run_here(*grid)[0]  # as one of two values is always at the edge
    assert hint not in run_here(*grid, "--no-test")[0]


def test_no_test_leaves_out_the_test_and_nothing_else(finished_run, tmp_path):
    where = ("--data-dir", finished_run.own_files, "--output", tmp_path)
    done = run("softmax_sgd.py", *GRID_OPTIONS, "--no-test", *where)
    assert done.stdout.splitlines() == finished_run.stdout.splitlines()[:-2]
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert results.keys() == finished_run.results.keys() - {"test"}, (
        "not all but the test's metrics"
    )


# --- Files ----------------------------------------------------------------------------------------


def test_results_json_tells_what_was_run_and_what_came_out(finished_run):
    results = finished_run.results
    right = {
        "seed": SEED,
        "data_dir": str(finished_run.own_files),
        "grid": json.loads(json.dumps(GRID._asdict())),
        "split": {"training": 48, "validation": 12, "test": 40},
        "numpy": np.__version__,
    }
    assert {name: results[name] for name in right} == right
    others = {"best", "training", "validation", "test", "seconds"}
    assert results.keys() == right.keys() | others
    assert results["seconds"] > 0


def test_results_json_has_the_absolute_path_of_the_data(own_files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main([*map(str, ONE_MODEL), "--data-dir", own_files.name, "--output", "results"])
    results = json.loads((tmp_path / "results" / "results.json").read_text(encoding="utf-8"))
    assert results["data_dir"] == str(own_files)


def test_curves_npz_has_the_values_of_its_axes_and_model_npz_has_W_and_b(finished_run):
    curves, model = finished_run.curves, finished_run.model
    assert sorted(model) == ["W", "b"]
    assert (model["W"].shape, model["b"].shape) == ((10, 49), (10,))
    assert list(curves) == ["cross_entropy", "accuracy", *GRID._fields]
    for name, values in GRID._asdict().items():
        assert curves[name].tolist() == json.loads(json.dumps(values)), name


def test_old_results_are_replaced_and_other_files_stay(run_here, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "mine.txt").write_text("mine")
    run_here(*ONE_MODEL)
    _, results = run_here(*ONE_MODEL, "--epochs", 3)
    assert results["grid"]["epochs"] == 3
    assert sorted(os.listdir(tmp_path / "results")) == sorted([*NAMES, "mine.txt"])


def test_a_search_that_does_not_end_leaves_old_results_as_they_are(run_here, tmp_path, monkeypatch):
    run_here(*ONE_MODEL)
    before = {name: (tmp_path / "results" / name).read_bytes() for name in NAMES}

    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("softmax_sgd.search", stop)
    with pytest.raises(SystemExit):
        run_here(*ONE_MODEL)
    assert sorted(os.listdir(tmp_path / "results")) == NAMES
    for name in NAMES:
        assert (tmp_path / "results" / name).read_bytes() == before[name], f"{name} has changed"


def refused_output(own_files, capsys, output):
    """The last line on stderr of a run that must end before the search, with status 2."""
    with pytest.raises(SystemExit) as stop:
        main([*map(str, (*ONE_MODEL, "--data-dir", own_files, "--output", output))])
    stdout, stderr = capsys.readouterr()
    assert (stop.value.code, stdout) == (2, ""), "not refused before the search"
    return stderr.splitlines()[-1]


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_in_the_place_of_a_result_is_refused_before_the_search(
    own_files, tmp_path, capsys, name
):
    (tmp_path / "results" / name).mkdir(parents=True)
    assert "--output: cannot write there: " in refused_output(
        own_files, capsys, tmp_path / "results"
    )


@pytest.mark.skipif(
    os.name != "posix" or os.geteuid() == 0, reason="permissions bind neither root nor Windows"
)
@pytest.mark.parametrize("mode", [0o555, 0o222, 0o666])
def test_a_folder_without_permissions_is_refused_before_the_search(
    own_files, tmp_path, capsys, mode
):
    (tmp_path / "results").mkdir()
    (tmp_path / "results").chmod(mode)
    try:
        assert "cannot write there" in refused_output(own_files, capsys, tmp_path / "results")
    finally:
        (tmp_path / "results").chmod(0o755)


def test_results_that_cannot_be_moved_to_their_place_are_kept_where_the_last_line_says(
    own_files, tmp_path, capsys, monkeypatch
):
    """As on Windows, if a notebook holds curves.npz open. And the old results.json is gone."""
    output = tmp_path / "results"
    options = (*ONE_MODEL, "--data-dir", own_files, "--output", output)
    main([*map(str, options)])
    capsys.readouterr()  # what this first run printed

    def search_and_then(*arguments):
        found = search(*arguments)
        (output / "curves.npz").unlink()
        (output / "curves.npz").mkdir()  # which no file replaces
        return found

    monkeypatch.setattr("softmax_sgd.search", search_and_then)
    with pytest.raises(SystemExit) as stop:
        main([*map(str, options)])
    stdout, stderr = capsys.readouterr()
    assert "Test accuracy" in stdout, "the results are not printed"
    line = stderr.splitlines()[-1]
    assert stop.value.code == 1, line
    (kept,) = output.glob("results-*")
    assert str(kept) in line, "the line does not say where they are"
    assert sorted(os.listdir(kept)) == ["curves.npz", "results.json"]
    assert not (output / "results.json").exists()


def test_a_folder_that_is_deleted_during_the_search_is_made_again(own_files, tmp_path, monkeypatch):
    """And the current folder may be another by then."""
    (tmp_path / "elsewhere").mkdir()

    def search_and_then(*arguments):
        found = search(*arguments)
        shutil.rmtree(tmp_path / "results")
        monkeypatch.chdir(tmp_path / "elsewhere")
        return found

    monkeypatch.setattr("softmax_sgd.search", search_and_then)
    monkeypatch.chdir(tmp_path)
    main([*map(str, ONE_MODEL), "--data-dir", own_files.name, "--output", "results"])
    assert sorted(os.listdir(tmp_path / "results")) == NAMES


def test_without_output_nothing_is_written(own_files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
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
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=follower, env=env):
        os.close(follower)
        shown = read_to_the_end(leader)
    *live, last = [line for line in shown.split("\r") if line.strip()]
    assert re.fullmatch(r"searched in \d+\.\d s\n", last), shown
    assert len(live) == 2, "not one live line for each epoch"
    for epoch, line in enumerate(live, start=1):
        assert re.fullmatch(
            rf"{epoch} of 2 epochs, \d+ s left; lowest validation cross-entropy so far \d\.\d{{4}}",
            line,
        )


def read_to_the_end(terminal):
    """All that is written to a terminal, without the "\r" that it adds to each "\n"."""
    text = b""
    try:
        while part := os.read(terminal, 100_000):
            text += part
    except OSError:  # with which Linux tells that the other end is closed
        pass
    os.close(terminal)
    return text.decode().replace("\r\n", "\n")


def test_the_time_left_is_that_of_the_epochs_that_are_left(own_files, capsys, monkeypatch):
    """By a clock that jumps, so that each line is shown even without a terminal."""
    now = [1000.0]
    monkeypatch.setattr("download_data.last_shown", 0)
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def search_slowly(X, y, train, validation, grid, seed, progress):
        for epoch in range(1, 5):
            now[0] += 20
            progress(epoch, 0.5)
        return search(X, y, train, validation, grid, seed)

    monkeypatch.setattr("softmax_sgd.search", search_slowly)
    main([*map(str, (*ONE_MODEL, "--epochs", 4, "--data-dir", own_files))])
    lines = re.findall(r"(\d) of 4 epochs, (\d+) s left", capsys.readouterr().err)
    assert lines == [("1", "60"), ("2", "40"), ("3", "20"), ("4", "0")]


@posix
@pytest.mark.parametrize("n_interrupts", [1, 3])
def test_ctrl_c_ends_a_search_within_an_epoch_with_one_line_and_status_130(tmp_path, n_interrupts):
    """Of five million images, four million train: one by one, an epoch of them takes minutes."""
    for part, n in (("train", 5_000_000), ("test", 1)):
        np.save(tmp_path / f"fashion_mnist_{part}_images.npy", np.full((n, 1), 255, np.uint8))
        np.save(tmp_path / f"fashion_mnist_{part}_labels.npy", np.zeros(n, np.uint8))
    options = (*ONE_MODEL, "--batch-sizes", 1, "--data-dir", tmp_path, "--output", tmp_path / "out")
    command = [sys.executable, ROOT / "softmax_sgd.py", *map(str, options)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
    with subprocess.Popen(command, **pipes) as process:
        try:
            assert process.stdout.readline().startswith("Images")
            assert process.stdout.readline().startswith("Grid")
            for _ in range(n_interrupts):
                time.sleep(0.1)  # somewhere in the search, and then in its end
                process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            pytest.fail("it goes on to the end of the epoch")
        finally:
            process.kill()
    # A late one may come when Python itself is ending, which can end it at once.
    statuses = (130,) if n_interrupts == 1 else (130, -signal.SIGINT)
    assert process.returncode in statuses, err
    if n_interrupts == 1:
        assert err == "interrupted\n"
    else:
        before, line, _end_of_python = err.partition("interrupted\n")
        assert line, "nothing is said"
        assert "Traceback" not in before
    assert os.listdir(tmp_path / "out") == []


# The redirection in a shell, and the expected exit status. None: it is not checked. (After a pipe,
# the shell returns the status of `true`; with a full stderr, Python may end with 120.)
UNUSABLE_STREAMS = {
    "stdout into a pipe that is closed": ("| true", None),
    "a full disk under stdout": ("> /dev/full", 1),
    "stdout closed": (">&-", 0),
    "a full disk under stderr": ("2> /dev/full", None),
    "stderr closed": ("2>&-", 0),
}


@posix
@pytest.mark.parametrize(
    ("redirection", "status"), UNUSABLE_STREAMS.values(), ids=UNUSABLE_STREAMS.keys()
)
def test_whatever_becomes_of_stdout_and_stderr_the_results_are_written(
    own_files, tmp_path, redirection, status
):
    if "/dev/full" in redirection and not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    options = (*ONE_MODEL, "--data-dir", own_files, "--output", tmp_path / "out")
    command = shlex.join(map(str, (sys.executable, ROOT / "softmax_sgd.py", *options)))
    done = subprocess.run(["sh", "-c", f"{command} {redirection}"], capture_output=True, text=True)
    assert sorted(os.listdir(tmp_path / "out")) == NAMES, done.stderr
    assert "Traceback" not in done.stderr
    if status is not None:
        assert done.returncode == status, done.stderr


@posix
def test_if_results_can_neither_be_saved_nor_printed_both_reasons_are_given(own_files, tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    code = f"""
import softmax_sgd
def fail(*arguments):
    raise softmax_sgd.UserError("not saved")
softmax_sgd.save = fail
softmax_sgd.main({[*map(str, (*ONE_MODEL, "--data-dir", own_files, "--output", tmp_path / "out"))]})
"""
    with open("/dev/full", "w") as full:
        pipes = {"stdout": full, "stderr": subprocess.PIPE, "text": True}
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, **pipes)
    assert done.returncode == 1
    assert "softmax_sgd.py: stdout: No space left on device\n" in done.stderr
    assert "softmax_sgd.py: not saved\n" in done.stderr


@posix
def test_without_output_a_full_disk_under_stdout_ends_the_program_before_the_search(own_files):
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    options = shlex.join(map(str, (*ONE_MODEL, "--data-dir", own_files)))
    command = f"{shlex.quote(sys.executable)} softmax_sgd.py {options} > /dev/full"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "softmax_sgd.py: stdout: No space left on device\n"


def test_nothing_of_a_run_stays_in_a_process_that_goes_on(own_files):
    """As after %run in IPython."""
    threads = set(threading.enumerate())
    with np.errstate(all="print"):
        before = np.geterr()
        main([*map(str, ONE_MODEL), "--data-dir", str(own_files)])
        assert np.geterr() == before
    assert set(threading.enumerate()) <= threads, "a thread is still running"


@pytest.mark.filterwarnings("error")
def test_spurious_floating_point_errors_are_not_shown(own_files, monkeypatch):
    """Some NumPys for macOS raise them in every matrix product: numpy issues 28687 and 29820."""

    def evaluate_with_an_error(*arguments):
        np.divide(1.0, np.zeros(1))
        return evaluate(*arguments)

    monkeypatch.setattr("softmax_sgd.evaluate", evaluate_with_an_error)
    main([*map(str, ONE_MODEL), "--data-dir", str(own_files)])


# --- Threads of BLAS ------------------------------------------------------------------------------

BLAS = softmax_sgd.BLAS_THREADS


def python(code, **variables):
    """Run lines of Python where none of the variables is set but these: a completed process."""
    env = {name: value for name, value in os.environ.items() if name not in BLAS} | variables
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.mark.parametrize(("own", "used"), [({}, "1"), (dict.fromkeys(BLAS, "3"), "3")])
def test_BLAS_gets_one_thread_unless_the_user_has_set_another_number(own, used):
    done = python(f"import softmax_sgd, os; print(*[os.environ[name] for name in {BLAS}])", **own)
    assert done.stdout.split() == [used] * len(BLAS), done.stderr


SEARCH = """
import numpy as np
grid = softmax_sgd.Grid(batch_sizes=(2,), learning_rates=(0.1,), alphas=(0.0,), epochs=1)
softmax_sgd.search(np.ones((9, 3)), np.arange(9), np.arange(6), np.arange(6, 9), grid, 0)
"""


@pytest.mark.parametrize(
    ("first", "own", "warned"),
    [
        ("", {}, False),
        ("import download_data", {}, False),
        ("import numpy", {}, True),
        ("import numpy", {"OPENBLAS_NUM_THREADS": "2"}, False),
    ],
    ids=["softmax_sgd", "download_data", "numpy", "numpy, but set by the user"],
)
def test_search_warns_if_numpy_was_imported_first_as_it_may_be_many_times_slower(
    first, own, warned
):
    done = python(f"{first}\nimport softmax_sgd{SEARCH}", **own)
    assert done.returncode == 0, done.stderr
    assert ("NumPy was imported before softmax_sgd" in done.stderr) == warned, done.stderr


def test_importing_the_program_prints_nothing_and_sets_only_these_variables():
    before = f"import os; right = dict(os.environ, **dict.fromkeys({BLAS}, '1')); "
    done = python(f"{before}import softmax_sgd; assert right == os.environ")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
