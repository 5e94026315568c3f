"""The program as its user meets it: what it prints, writes and refuses, and how it ends."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import NAMES, ROOT, command, heed_interrupts

from softmax_sgd import (
    Curves,
    Grid,
    best_point,
    edges,
    evaluate,
    load,
    report,
    show_progress,
    table,
)

SMALL = ("--batch-sizes", 8, 20, "--learning-rates", 1, 0.1, "--alphas", 0, 0.01, "--epochs", 5)
METRICS = re.compile(
    r"\nValidation cross-entropy: \d+\.\d{4}\nValidation accuracy: \d+\.\d{2}%"
    r"\nTest cross-entropy \(unregularized\): \d+\.\d{4}\nTest accuracy: \d+\.\d{2}%\n\Z"
)


@pytest.fixture
def run(own_files, tmp_path):
    """A finished run on one's own files, with its results."""
    done = command("--data-dir", own_files, *SMALL, "--output", tmp_path / "out" / "deep")
    assert done.returncode == 0, done.stderr
    done.output, done.own_files = tmp_path / "out" / "deep", own_files
    return done


def test_stdout_to_the_letter(run):
    results = json.loads((run.output / "results.json").read_text())
    curves = Curves(**np.load(run.output / "curves.npz"))
    lines = [
        "Images: 48 to train, 12 to validate, 20 to test",
        "Grid: 2 minibatch sizes x 2 learning rates x 2 alphas x 1..5 epochs = 40 points\n",
        *report(results, curves),
    ]
    assert run.stdout == "\n".join(lines) + "\n"
    assert METRICS.search(run.stdout)


def test_stderr_without_a_terminal_is_a_few_plain_lines(run):
    assert "\r" not in run.stderr
    assert "\x1b" not in run.stderr
    assert 2 <= run.stderr.count("\n") <= 12
    assert re.search(r"40 of 40 points, 0 s left, best cross-entropy so far \d", run.stderr)


def test_results_are_those_of_the_search(run):
    text = (run.output / "results.json").read_text()
    assert text.startswith('{\n  "seed": 0,\n'), "not laid out for people"
    results = json.loads(text)
    curves = Curves(**np.load(run.output / "curves.npz"))
    model = np.load(run.output / "model.npz")
    _, _, X_test, y_test = load(run.own_files)
    assert list(results) == ["seed", "split", "grid", "best", "validation", "test", "seconds"]
    assert results["seed"] == 0
    assert 0 <= results["seconds"] < 60
    assert results["split"] == {"train": 48, "validation": 12, "test": 20}
    grid = Grid(**results["grid"])
    assert grid == ([8, 20], [0.1, 1.0], [0.0, 0.01], 5)
    assert {c.shape for c in curves} == {(2, 2, 2, 5)}
    at = i, j, k, epoch = best_point(curves)
    assert list(results["best"].items()) == [
        ("batch_size", grid.batch_sizes[i]),
        ("learning_rate", grid.learning_rates[j]),
        ("alpha", grid.alphas[k]),
        ("epochs", epoch + 1),
    ]
    assert results["validation"] == {name: c[at] for name, c in curves._asdict().items()}
    ce, accuracy = evaluate(model["W"], model["b"], X_test, y_test)
    assert results["test"] == {"cross_entropy": ce, "accuracy": accuracy}
    assert sorted(p.name for p in run.output.iterdir()) == [
        "curves.npz",
        "model.npz",
        "results.json",
    ]


def test_the_test_labels_do_not_influence_the_choice(run, tmp_path):
    """The search is over before the test set is looked at: other labels, the same winner."""
    labels = run.own_files / NAMES[3]
    np.save(labels, (np.load(labels) + 1) % 10)
    other = command("--data-dir", run.own_files, *SMALL, "--output", tmp_path / "other")
    before, after = (text.split("Test cross-entropy") for text in (run.stdout, other.stdout))
    assert after[0] == before[0]
    assert after[1] != before[1]
    model = (run.output / "model.npz").read_bytes()
    assert (tmp_path / "other" / "model.npz").read_bytes() == model


def test_the_seed_decides_alone(run):
    def stdout(*more):
        return command("--data-dir", run.own_files, *SMALL, *more).stdout

    assert stdout("--workers", 3, "--seed", 0) == run.stdout
    assert stdout("--seed", 1) != run.stdout


def test_a_diverged_model_is_shown(own_files):
    done = command(
        "--data-dir", own_files, *("--epochs", 2, "--batch-sizes", 16, "--alphas", 1),
        *("--learning-rates", 0.1, 1e30),
    )  # fmt: skip
    assert done.returncode == 0
    assert re.search(r"^ +16 +1e\+30 +1.0 +diverged$", done.stdout, re.MULTILINE)
    assert "Warning" not in done.stderr
    assert "learning rate 0.1, alpha" in done.stdout


def test_the_table_to_the_letter():
    """The best three models of each minibatch size, at their best, then those that diverged."""
    grid = Grid((8, 32), (0.1, 0.25), (0.0, 1e-05), 3)
    cross_entropy = np.array(
        [
            [[[3, 1, 2], [9, 8, 7]], [[4, 5, 6], [1, 2, np.inf]]],
            [[[3, 3, 3], [2.5, 9, 9]], [[2, 1.23456, 2], [5, 5, 4]]],
        ]
    )
    accuracy = np.arange(24).reshape(cross_entropy.shape) / 100
    assert list(table(grid, Curves(cross_entropy, accuracy))) == [
        "batch size  learning rate  alpha  epochs  validation CE  accuracy",
        "         8            0.1    0.0       2         1.0000     1.00%",
        "         8           0.25    0.0       1         4.0000     6.00%",
        "         8            0.1  1e-05       3         7.0000     5.00%",
        "         8           0.25  1e-05               diverged",
        "        32           0.25    0.0       2         1.2346    19.00%",
        "        32            0.1  1e-05       1         2.5000    15.00%",
        "        32            0.1    0.0       1         3.0000    12.00%",
    ]


@pytest.mark.parametrize(
    ("best", "noted"),
    [
        ((8, 0.2, 0.0, 3), []),
        ((8, 0.1, 0.0, 3), ["learning rate, 0.1,"]),
        ((8, 0.3, 0.0, 5), ["learning rate, 0.3,", "epochs, 5,"]),
        ((8, 0.2, 0.0, 1), ["epochs, 1,"]),
    ],
)
def test_the_edges_of_the_grid_are_noted(best, noted):
    """Where there is a choice: a single value is no edge."""
    grid = Grid((8,), (0.1, 0.2, 0.3), (0.0,), 5)
    lines = edges(
        grid, dict(zip(("batch_size", "learning_rate", "alpha", "epochs"), best, strict=True))
    )
    assert list(lines) == [f"Note: the best {what} is on the edge of the grid" for what in noted]


USAGE = [
    ("--batch-sizes", "0"),
    ("--batch-sizes", "2.5"),
    ("--learning-rates", "0"),
    ("--learning-rates", "-1"),
    ("--learning-rates", "inf"),
    ("--learning-rates", "nan"),
    ("--alphas", "-0.1"),
    ("--alphas", "inf"),
    ("--alphas", "nan"),
    ("--epochs", "0"),
    ("--epochs", "1000000001"),
    ("--validation-fraction", "0"),
    ("--validation-fraction", "1"),
    ("--validation-fraction", "nan"),
    ("--seed", "-1"),
    ("--workers", "0"),
    ("--batch-sizes",),
    ("--no-such-flag",),
]


@pytest.mark.parametrize("arguments", USAGE, ids=" ".join)
def test_a_wrong_option_is_named_with_the_usage(arguments):
    done = command(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: softmax_sgd.py")
    assert arguments[0] in done.stderr.splitlines()[-1]
    assert done.stdout == ""


def fails(done, *words):
    assert done.returncode == 1, done
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("softmax_sgd.py: ")
    for word in words:
        assert str(word) in done.stderr
    assert "Best" not in done.stdout


def test_a_bad_file_costs_one_line(own_files):
    (own_files / NAMES[2]).write_bytes(b"<html>")
    fails(command("--data-dir", own_files), own_files / NAMES[2])


def test_a_missing_folder_is_named_and_nothing_is_downloaded(tmp_path):
    fails(command("--data-dir", tmp_path / "none"), tmp_path / "none" / NAMES[0], "missing")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [("--batch-sizes", 49), ("--validation-fraction", 0.001), ("--validation-fraction", 0.999)],
    ids=str,
)
def test_what_does_not_fit_the_data_is_named(own_files, arguments):
    fails(command("--data-dir", own_files, *arguments), *arguments[:1])


def test_a_batch_may_be_the_whole_training_set(own_files):
    assert command("--data-dir", own_files, "--batch-sizes", 48, "--epochs", 1).returncode == 0


def test_only_the_default_folder_is_completed(tmp_path):
    """A file in its place shows which way was taken, with no network."""
    (tmp_path / "data").write_text("in the way")
    fails(command(cwd=tmp_path), "cannot", "data")
    fails(command("--data-dir", "data", cwd=tmp_path), f"data/{NAMES[0]}: missing")


def test_progress_tells_the_time_left(capsys):
    """Ten seconds for 3 of 22 points leave 63 for the rest; a line for each tenth, no more."""
    show = show_progress(time.monotonic() - 10)
    for done in range(1, 23):
        show(done, 22, 0.5)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "3 of 22 points, 63 s left, best cross-entropy so far 0.5000"
    assert [int(line.split()[0]) for line in lines] == [3, 5, 7, 9, 11, 14, 16, 18, 20, 22]


def test_every_model_diverged(own_files):
    wild = ("--learning-rates", 1e30, "--alphas", 1, "--batch-sizes", 8, "--epochs", 1)
    done = command("--data-dir", own_files, *wild)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("softmax_sgd.py: every model diverged")
    assert "accuracy:" not in done.stdout


@pytest.mark.parametrize("place", ["a file", "below a file", "a result is a folder"])
def test_results_that_cannot_be_written_fail_before_training(own_files, tmp_path, place):
    output = tmp_path / "out"
    if place == "a result is a folder":
        (output / "model.npz").mkdir(parents=True)
    else:
        output.write_text("mine")
    done = command(
        "--data-dir", own_files, "--output", output / "deep" if place == "below a file" else output
    )
    fails(done, "cannot write", output)
    assert done.stdout == ""
    assert output.is_dir() or output.read_text() == "mine"


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder closed even to root")
def test_a_folder_that_takes_no_files_fails_before_training(own_files):
    done = command("--data-dir", own_files, "--output", "/proc/self")
    fails(done, "cannot write /proc/self:")
    assert done.stdout == ""


def test_a_full_disk_leaves_the_old_results(run):
    """As seen with a limit on the size of files: the numbers are printed, and nothing is torn."""
    resource = pytest.importorskip("resource")
    before = {p.name: p.read_bytes() for p in run.output.iterdir()}

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

    done = command("--data-dir", run.own_files, *SMALL, "--output", run.output, preexec_fn=limit)
    assert done.returncode == 1
    assert METRICS.search(done.stdout)
    assert "cannot write" in done.stderr.splitlines()[-1]
    assert {p.name: p.read_bytes() for p in run.output.iterdir()} == before


def test_not_enough_memory(own_files):
    fails(
        command("--data-dir", own_files, "--batch-sizes", 8, "--epochs", 10**9), "not enough memory"
    )


@pytest.mark.parametrize("closed", [">&-", "2>&-", "2>/dev/full"])
def test_closed_streams_do_not_cost_the_results(own_files, tmp_path, closed):
    arguments = ["--data-dir", own_files, *SMALL, "--output", tmp_path / "out"]
    line = shlex.join(map(str, [sys.executable, ROOT / "softmax_sgd.py", *arguments]))
    done = subprocess.run(["sh", "-c", f"{line} {closed}"], capture_output=True, text=True)
    # 120 is Python's own, when it cannot write at its end what stderr did not take.
    assert done.returncode == (120 if "full" in closed else 0), done.stderr
    assert len(list((tmp_path / "out").iterdir())) == 3
    assert closed == ">&-" or METRICS.search(done.stdout)


def test_a_reader_of_stdout_may_leave(own_files):
    line = [sys.executable, ROOT / "softmax_sgd.py", "--data-dir", own_files, *map(str, SMALL)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        child.stdout.close()
        stderr = child.stderr.read()
    assert "Error" not in stderr
    assert child.returncode == 1


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_in_mid_search(own_files, tmp_path, sent, status):
    output, n = tmp_path / "out", 200_000  # an epoch takes longer than one may wait
    np.save(own_files / NAMES[0], np.full((n, 2), 7, np.uint8))
    np.save(own_files / NAMES[1], np.zeros(n, np.uint8))
    np.save(own_files / NAMES[2], np.full((1, 2), 7, np.uint8))
    np.save(own_files / NAMES[3], np.zeros(1, np.uint8))
    line = [sys.executable, ROOT / "softmax_sgd.py", "--data-dir", own_files, "--output", output]
    line += ["--batch-sizes", *map(str, range(1, 201))]  # stacks that wait need not begin
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(line, preexec_fn=heed_interrupts, **how) as child:
        try:
            assert child.stdout.readline().startswith("Images")
            time.sleep(1)
            child.send_signal(sent)
            start = time.monotonic()
            _, stderr = child.communicate(timeout=10)
            assert time.monotonic() - start < 3
        finally:
            child.kill()
    assert child.returncode == status
    assert "Traceback" not in stderr
    assert stderr.endswith("softmax_sgd.py: interrupted\n") or sent == signal.SIGTERM
    assert list(output.iterdir()) == [], "something was written"


def test_a_terminal_gets_one_live_line(own_files):
    pty = pytest.importorskip("pty")
    leader, follower = pty.openpty()
    done = subprocess.run(
        [sys.executable, ROOT / "softmax_sgd.py", "--data-dir", own_files, *map(str, SMALL)],
        stdout=subprocess.PIPE,
        stderr=follower,
        timeout=60,
    )
    os.close(follower)
    shown = os.read(leader, 1 << 16).decode()
    assert done.returncode == 0
    assert re.search(r"\r\x1b\[K4 of 40 points, \d+ s left", shown)
    assert shown.count("\n") == 1, "a live line replaces itself; one plain line ends it"


def test_help_shows_every_default():
    shown = " ".join(command("--help").stdout.split())
    for default in (*Grid()[:3], (0.2,), (100,), (0,), ("data",)):
        assert f"(default: {' '.join(map(str, default))})" in shown
    assert "[--learning-rates R [R ...]]" in shown
    assert "Train softmax regression" in shown


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_there_is_a_worker_for_each_core_that_may_be_used():
    core = min(os.sched_getaffinity(0))
    done = command("--help", preexec_fn=lambda: os.sched_setaffinity(0, {core}))
    assert "threads that train (default: 1)" in " ".join(done.stdout.split())


def test_importing_does_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", "import softmax_sgd"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert list(tmp_path.iterdir()) == []


def test_blas_runs_in_one_thread_for_each_worker():
    pytest.importorskip("threadpoolctl")
    code = "import softmax_sgd, threadpoolctl; print(threadpoolctl.threadpool_info())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "'num_threads': 1," in done.stdout
