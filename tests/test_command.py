"""The program as its user meets it: what it prints, writes and refuses, and how it ends."""

import ast
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import GRID, NAMES, ROOT, SEED, command

import softmax_sgd
from softmax_sgd import Curves, Grid, best_point, evaluate, load, report

posix = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell and POSIX signals")


def parse(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["softmax_sgd.py", *map(str, arguments)])
    return softmax_sgd.parse_arguments()


def after(commands, program, *arguments, **how):
    """What comes of a program that a shell starts after these commands."""
    line = shlex.join(map(str, (sys.executable, ROOT / program, *arguments)))
    return command(line=["sh", "-c", f"{commands}; exec {line}"], **how)


def started(before, *arguments):
    """Run the program in an interpreter in which the statements `before` were executed."""
    code = f"import runpy, sys; {before}; runpy.run_path('softmax_sgd.py', run_name='__main__')"
    return command(*arguments, line=[sys.executable, "-c", code])


# --- What it prints -------------------------------------------------------------------------------


def test_stdout_to_the_letter(run):
    assert run.stdout == (
        "Images: 42 to train, 18 to validate, 40 to test\n"
        "Grid: 2 minibatch sizes x 2 learning rates x 3 alphas x 1..10 epochs = 120 points\n"
        "\n"
        "batch size  learning rate  alpha  epochs  validation CE  accuracy\n"
        "         8            0.5   0.02       7         2.0969    50.00%\n"
        "         8            0.5    0.0       7         2.1869    61.11%\n"
        "         8            0.1    0.3       7         2.2906    27.78%\n"
        "        20            0.5   0.02       6         2.1969    55.56%\n"
        "        20            0.5    0.0       6         2.2026    50.00%\n"
        "        20            0.1    0.3       6         2.2714    27.78%\n"
        "\n"
        "Best: batch size 8, learning rate 0.5, alpha 0.02, epochs 7\n"
        "Note: the best batch size, 8, is on the edge of the grid\n"
        "Note: the best learning rate, 0.5, is on the edge of the grid\n"
        "\n"
        "Validation cross-entropy: 2.0969\n"
        "Validation accuracy: 50.00%\n"
        "Test cross-entropy (unregularized): 1.5577\n"
        "Test accuracy: 57.50%\n"
    )


def test_stderr_tells_the_folder_and_the_seconds_and_ends_with_a_blank_line(run):
    live = r"(\d+ of 120 points, \d+ s left, best cross-entropy so far \d\.\d{4}\n)*"  # if slow
    folder = re.escape(str(run.own_files))
    assert re.fullmatch(rf"Data: {folder}\n{live}searched in \d\d?\.\d s\n\n", run.stderr)


def test_the_table_and_its_notes_to_the_letter():
    """Models that diverged come last; of a single value and of alpha = 0 nothing is noted."""
    grid = Grid((32,), (0.1, 0.25), (0.0, 1e-05), 3)
    cross_entropy = np.array([[[[3, 1.23456, 2], [9, 8, 7]], [[4, 5, 4], [1, 2, np.inf]]]])
    accuracy = np.arange(12).reshape(1, 2, 2, 3) / 100
    results = {
        "grid": grid._asdict(),
        "best": {"batch_size": 32, "learning_rate": 0.1, "alpha": 0.0, "epochs": 3},
        **{key: {"cross_entropy": 1.0, "accuracy": 0.01} for key in ("validation", "test")},
    }
    curves = Curves(cross_entropy, accuracy)
    assert report(results, curves).partition("\n\nValidation")[0].splitlines() == [
        "batch size  learning rate  alpha  epochs  validation CE  accuracy",
        "        32            0.1    0.0       2         1.2346     1.00%",
        "        32           0.25    0.0       1         4.0000     6.00%",
        "        32            0.1  1e-05       3         7.0000     5.00%",
        "        32           0.25  1e-05               diverged",
        "",
        "Best: batch size 32, learning rate 0.1, alpha 0.0, epochs 3",
        "Note: the best learning rate, 0.1, is on the edge of the grid",
        "Note: the best number of epochs, 3, is on the edge of the grid",
    ], "not each model at its best epoch"
    results["best"] |= {"alpha": 1e-05, "epochs": 1}
    for edge in ("alpha, 1e-05", "number of epochs, 1"):
        said = f"Note: the best {edge}, is on the edge of the grid"
        assert said in report(results, curves), "an edge of the grid is not noted"


def test_the_options_reach_the_search_which_tells_the_time_left(own_files, monkeypatch):
    """The values of the grid once each, and ascending. Ten seconds for 3 of 22 points leave 63."""

    def search(X, y, train, validation, grid, seed, workers=None, progress=None):
        assert grid == Grid((8, 16), (0.1, 0.5), (0.0, 0.3), 7), "a value twice, or not ascending"
        assert seed == 5, "--seed is ignored"
        assert workers == 3, "--workers is ignored"
        progress(3, 22, 0.5)
        raise KeyboardInterrupt

    lines, clock = [], iter([5, 15])
    monkeypatch.setattr(softmax_sgd, "search", search)
    monkeypatch.setattr(softmax_sgd, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(softmax_sgd, "log", lambda line, live=False: lines.append((line, live)))
    given = "--batch-sizes 16 8 16 --learning-rates .5 .1 .5 --alphas .3 0 .3 --epochs 7 --seed 5"
    arguments = (*given.split(), "--workers", 3, "--data-dir", own_files)
    with pytest.raises(KeyboardInterrupt):
        softmax_sgd.run_experiment(parse(monkeypatch, *arguments))
    assert lines[-1] == ("3 of 22 points, 63 s left, best cross-entropy so far 0.5000", True)


# --- What it writes -------------------------------------------------------------------------------


def test_results_are_those_of_the_search(run):
    assert sorted(os.listdir(run.output)) == ["curves.npz", "model.npz", "results.json"]
    laid_out = (run.output / "results.json").read_text().startswith('{\n  "seed": ')
    assert laid_out, "not laid out for people"
    curves = Curves(**np.load(run.output / "curves.npz"))
    model = np.load(run.output / "model.npz")
    _, _, X_test, y_test = load(run.own_files)
    parts = ["seed", "split", "grid", "best", "validation", "test", "seconds"]
    assert (list(run.results), run.results["seed"]) == (parts, SEED)
    assert run.results["split"] == {"train": 42, "validation": 18, "test": 40}
    assert run.results["grid"] == json.loads(json.dumps(GRID._asdict()))
    axes = *GRID[:3], range(1, GRID.epochs + 1)
    best = tuple(axis.index(value) for axis, value in zip(axes, run.results["best"].values()))
    said = "the axes of the curves are exchanged, or the best of them is not that of the results"
    assert curves.cross_entropy.shape == curves.accuracy.shape == tuple(map(len, axes)), said
    assert best_point(curves) == best, said
    assert run.results["validation"] == {name: c[best] for name, c in curves._asdict().items()}
    measures = evaluate(model["W"], model["b"], X_test, y_test)
    np.testing.assert_allclose([*run.results["test"].values()], measures, rtol=1e-5)


@posix
def test_a_full_disk_leaves_the_old_results(run):
    """As seen with a limit on the size of files: the figures are printed, and nothing is torn."""
    before = {path.name: path.read_bytes() for path in run.output.iterdir()}
    done = after("ulimit -f 1", "softmax_sgd.py", *run.options, "--output", run.output)
    assert (done.returncode, done.stdout) == (1, run.stdout)
    assert "softmax_sgd.py: cannot write" in done.stderr.splitlines()[-1]
    assert {path.name: path.read_bytes() for path in run.output.iterdir()} == before


@pytest.mark.parametrize("place", ["a file", "below a file", "a result is a folder", "/proc/self"])
def test_results_that_cannot_be_written_fail_before_training(own_files, tmp_path, place):
    output = Path(place) if place == "/proc/self" else tmp_path / "out"
    if place == "a result is a folder":
        (output / "model.npz").mkdir(parents=True)
    elif place != "/proc/self":
        output.write_text("mine")
    elif not output.is_dir():
        pytest.skip("needs a closed folder: /proc")
    deep = output / "deep" if place == "below a file" else output
    done = command("--data-dir", own_files, "--output", deep)
    told = f"{'' if 'folder' in place else 'cannot write '}{re.escape(str(output))}"
    assert re.fullmatch(f"softmax_sgd.py: {told}.*\n", done.stderr), done
    assert (done.returncode, done.stdout) == (1, "")
    assert output.is_dir() or output.read_text() == "mine"


# --- What it refuses ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        *(("--batch-sizes", value) for value in ("0", "2.5", "1000000001")),
        *(("--learning-rates", value) for value in ("0", "-1", "inf", "nan")),
        *(("--alphas", value) for value in ("-0.1", "inf", "nan")),
        *(("--validation-fraction", value) for value in ("0", "1", "nan")),
        *(("--epochs", "0"), ("--seed", "-1"), ("--workers", "0")),
        *(("--batch-sizes",), ("--no-such-flag",)),
    ],
    ids=" ".join,
)
def test_a_wrong_option_is_named_with_the_usage(monkeypatch, capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        parse(monkeypatch, *arguments)
    shown = capsys.readouterr()
    assert ended.value.code == 2
    assert shown.err.startswith("usage: softmax_sgd.py")
    assert all(word in shown.err.splitlines()[-1] for word in arguments)
    assert shown.out == ""


def test_the_ends_of_the_ranges_are_allowed(monkeypatch):
    at_least = parse(monkeypatch, "--epochs", 1, "--seed", 0, "--alphas", 0, "--workers", 1)
    assert (at_least.epochs, at_least.seed, at_least.alphas, at_least.workers) == (1, 0, [0], 1)
    assert parse(monkeypatch, "--epochs", 10**9).epochs == 10**9


def test_help_shows_the_usage_and_every_default(monkeypatch):
    shown = command("--help", env={"COLUMNS": "999"}).stdout
    assert shown.startswith(
        "usage: softmax_sgd.py [-h] [--batch-sizes N [N ...]] [--learning-rates R [R ...]] "
        "[--alphas A [A ...]] [--epochs N] [--validation-fraction F] [--seed N] [--workers N] "
        "[--data-dir DIR] [--output DIR]\n"
    )
    for default in (*Grid(), 0.2, 0):
        assert f"(default: {default})" in shown
    assert f"(default: {parse(monkeypatch).workers})" in shown
    assert str(softmax_sgd.DATA) in shown
    assert "results.json, model.npz, curves.npz" in shown
    assert "Train softmax regression" in shown
    assert shown.count("  python softmax_sgd.py") == 2


def test_a_minibatch_may_hold_all_images(own_files):
    assert command("--data-dir", own_files, "--batch-sizes", 48).returncode == 0


@pytest.mark.parametrize("arguments", [("--batch-sizes", 49), ("--validation-fraction", 0.999)])
def test_what_does_not_fit_the_data_is_named(own_files, arguments):
    done = command("--data-dir", own_files, *arguments)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"softmax_sgd.py: {arguments[0]}")


def test_every_model_diverged(run):
    done = command(*run.options, "--learning-rates", 1e30, "--alphas", 1)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("softmax_sgd.py: every model diverged")
    assert "Warning" not in done.stderr
    assert "accuracy:" not in done.stdout


# --- Where it runs --------------------------------------------------------------------------------


def test_a_missing_numpy_or_an_old_python_is_told_in_one_line():
    done = started("sys.modules['numpy'] = None", "--help")
    wanted = "NumPy is missing. README.md says how to install it: pip install -r requirements.txt\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", wanted)
    done = started("sys.version_info, sys.version = (3, 9, 6), '3.9.6 (default)'", "--help")
    wanted = "Python 3.10 or newer is needed; this is Python 3.9.6.\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", wanted)
    assert started("sys.version_info = (3, 10)", "--help").returncode == 0
    for program in ("softmax_sgd.py", "download_data.py"):  # which an old Python can read so far
        ast.parse((ROOT / program).read_text(encoding="utf-8"), feature_version=(3, 8))


def test_own_data_need_no_requests(run):
    assert started("sys.modules['requests'] = None", *run.options).stdout == run.stdout


@pytest.mark.data
def test_started_from_another_folder_it_uses_the_data_beside_the_script(data_dir, tmp_path):
    """And on these data a linear model reaches 83%, but not 85%."""
    small = ("--batch-sizes", 64, "--learning-rates", 0.05, "--alphas", 1e-4, "--epochs", 12)
    done = command(*small, cwd=tmp_path)
    assert done.stderr.startswith(f"Data: {data_dir.resolve()}\n")
    assert list(tmp_path.iterdir()) == []
    assert "Grid: 1 minibatch size x 1 learning rate x 1 alpha x 1..12 epochs" in done.stdout
    accuracy = float(re.search(r"Test accuracy: (.*)%", done.stdout)[1])
    assert accuracy > 83, "badly trained, or tested on images of another scale (/255?)"
    assert accuracy < 85, "no linear model is as good as that: it has seen the test set"


@pytest.mark.parametrize("place", ["data", pytest.param("elsewhere", marks=posix)])
def test_only_the_folder_beside_the_script_is_completed(tmp_path, place):
    """A file in its place shows which way was taken, with no network; also where `data` links."""
    for program in ("softmax_sgd.py", "download_data.py"):
        shutil.copy(ROOT / program, tmp_path)
    (tmp_path / place).write_text("in the way")
    if place != "data":
        (tmp_path / "data").symlink_to(place)
    done = command(line=[sys.executable, tmp_path / "softmax_sgd.py"])
    assert done.stderr.startswith(f"softmax_sgd.py: cannot store the data in {tmp_path / place}: ")
    done = command("--data-dir", "none", cwd=tmp_path)
    assert f"{tmp_path / 'none' / NAMES[0]}: not usable: missing" in done.stderr
    assert not (tmp_path / "none").exists()


def test_there_is_a_worker_for_each_core_that_may_be_used(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    monkeypatch.setattr(os, "sched_getaffinity", {0: {0, 2, 5}}.get, raising=False)  # 0 is we
    assert parse(monkeypatch).workers == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert parse(monkeypatch).workers == 7


def test_blas_has_one_thread_for_each_worker():
    pytest.importorskip("threadpoolctl")
    shown = "print(*(pool['num_threads'] for pool in threadpoolctl.threadpool_info()))"
    done = started(f"import atexit, threadpoolctl; atexit.register(lambda: {shown})", "--help")
    assert set(done.stdout.splitlines()[-1].split()) <= {"1"}


def test_importing_does_nothing(tmp_path):
    code = f"import os, sys; was = dict(os.environ); sys.path.append({str(ROOT)!r}); "
    code += "import softmax_sgd; print(was == dict(os.environ))"
    done = command(line=[sys.executable, "-c", code], cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("True\n", ""), "a notebook loses its BLAS threads"
    assert list(tmp_path.iterdir()) == []


# --- How it ends ----------------------------------------------------------------------------------

both = pytest.mark.parametrize("program", ["softmax_sgd.py", "download_data.py"])


@posix
@both
def test_started_in_a_folder_that_is_gone(tmp_path, program):
    done = after("mkdir gone; cd gone; rmdir ../gone", program, "--data-dir", "here", cwd=tmp_path)
    told = f"{program}: the current folder no longer exists\n"
    assert (done.returncode, done.stderr) == (1, told)


@posix
@both
@pytest.mark.parametrize(("trap", "code"), [("-", -signal.SIGINT), ("''", 1)], ids=["", "ignored"])
def test_interrupted_while_it_starts_it_ends_in_silence(tmp_path, program, trap, code):
    """Unless SIGINT is ignored, as by a shell's jobs in the background."""
    signalled = "import os; os.kill(os.getpid(), 2); raise SystemExit('went on')"
    (tmp_path / "numpy.py").write_text(signalled)
    done = after(f"trap {trap} INT", program, env={"PYTHONPATH": tmp_path})
    assert (done.returncode, done.stderr) == (code, "went on\n" if code == 1 else "")


@posix
@pytest.mark.parametrize("lines", [0, 1])
def test_a_reader_of_stdout_may_leave(run, lines):
    """At once, or when the heading is read."""
    with command(*run.options, "--epochs", 200, call=subprocess.Popen) as child:
        for _ in range(lines):
            child.stdout.readline()
        child.stdout.close()
        stderr = child.stderr.read()
    assert "Error" not in stderr
    assert child.returncode == 1


@posix
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_in_mid_search(own_files, tmp_path, sent, status):
    """At once, also within an epoch that would take long, and however often one asks."""
    for images, labels, n in ((*NAMES[:2], 1_000_000), (*NAMES[2:], 1)):
        np.save(own_files / images, np.full((n, 2), 200, np.uint8))
        np.save(own_files / labels, np.zeros(n, np.uint8))
    output = tmp_path / "out"
    line = ["--data-dir", own_files, "--output", output, "--validation-fraction", 1e-5]
    line += ["--batch-sizes", *range(1, 101), "--learning-rates", 0.1, "--alphas", 0]
    with command(*line, call=subprocess.Popen) as child:
        try:
            assert child.stdout.readline().startswith("Images")
            time.sleep(0.5)
            child.send_signal(sent)
            child.send_signal(sent)
            _, stderr = child.communicate(timeout=20)
        finally:
            child.kill()
    assert child.returncode == status
    assert stderr.endswith("softmax_sgd.py: interrupted\n")
    assert "Traceback" not in stderr
    assert list(output.iterdir()) == [], "something was written"
