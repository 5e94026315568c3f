"""The downloader as its user meets it: options, lines, interruptions, and several runs at once."""

import contextlib
import os
import re
import signal
import struct
import subprocess
import sys

import pytest
from downloader import FILES, MEDIUM, SMALL, defects, fetch, finish, needs_posix, start, until

import download_data

pytestmark = [pytest.mark.data, pytest.mark.usefixtures("data_dir")]


# --- Options --------------------------------------------------------------------------------------


def test_help_shows_the_usage_and_the_default():
    command = [sys.executable, download_data.__file__, "--help"]
    environment = os.environ | {"COLUMNS": "999"}
    shown = subprocess.run(command, env=environment, capture_output=True, text=True).stdout
    usage = "download_data.py [--data-dir DIR] [--mirror URL]"
    assert usage in download_data.__doc__
    assert usage.replace(" ", " [-h] ", 1) in shown
    assert str(download_data.DATA) in shown


@pytest.mark.parametrize("url", ["", "ftp://me:secret@host/", "https:///"])
def test_a_mirror_must_be_on_the_web(tmp_path, url):
    """The message does not repeat a password."""
    outcome = finish(start(tmp_path, "--mirror", url))
    assert outcome.status == 2
    assert "secret" not in outcome.err
    assert outcome.err.endswith("error: --mirror: not an http or https URL\n")


def test_a_mirror_as_one_may_write_it(tmp_path, server):
    """With blanks, in capitals, with a password, which is used and not printed."""
    url = server.url("good").replace("http", "HTTP")
    outcome = finish(start(tmp_path, mirror=f" {url.replace('//', '//me:p@secret@')} "))
    assert not defects(tmp_path, SMALL), outcome.err
    assert server.headers["Authorization"] == "Basic bWU6cEBzZWNyZXQ="
    assert "secret" not in outcome.err
    assert outcome.lines[0].endswith(f"from {url}, verified")


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_mirror_needs_no_slash_at_its_end(tmp_path, server, slash):
    url = server.url("good")
    assert fetch(tmp_path, url.rstrip("/") + slash).status == 0
    assert server.asked(url) == [SMALL.name]


# --- Lines ----------------------------------------------------------------------------------------


def results(folder, file, source):
    return [
        f"{folder / file.name}: {file.size / 1e6:.2f} MB from {source}, verified",
        f"{folder}: all four files are present and verified",
    ]


def test_without_a_terminal_only_results_are_printed(tmp_path, server):
    mirror = server.url("503+good")
    outcome = finish(start(tmp_path, mirror=mirror))
    assert outcome.status == 0
    assert outcome.lines == results(tmp_path, SMALL, mirror)


def test_without_a_terminal_what_is_waited_for_is_printed_after_ten_seconds(tmp_path, server):
    mirror = server.url("503+good")
    outcome = finish(start(tmp_path, mirror=mirror, sabotage=["ten_seconds_pass"]))
    assert outcome.status == 0
    retrying = f"{mirror}: {SMALL.name}: HTTP 503 Service Unavailable; retrying in 0.05 s"
    assert outcome.lines == [retrying, *results(tmp_path, SMALL, mirror)]


@pytest.mark.parametrize(("columns", "width"), [(75, 74), (0, 79)])  # 0: it does not know
def test_live_lines_on_a_terminal(tmp_path, server, columns, width):
    """They tell what is waited for, do not wrap, and leave nothing behind."""
    fcntl, pty, termios = map(pytest.importorskip, ("fcntl", "pty", "termios"))
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    mirror, seen = server.url("503+leisurely"), b""
    process = start(tmp_path, mirror=mirror, stderr=its, files=[MEDIUM])
    os.close(its)
    with contextlib.suppress(OSError):  # how Linux says that the other end was closed
        while data := os.read(ours, 10**4):
            seen += data
    os.close(ours)
    assert finish(process).status == 0, seen
    blanked, *live, first, last = seen.decode().split(f"\r{'':{width}}\r")
    assert not any(len(line) > width or "\n" in line for line in (blanked, *live))
    retrying = f"{mirror}: {MEDIUM.name}: HTTP 503 Service Unavailable; retrying in 0.05 s"
    assert retrying[:width] in live
    assert any(re.search(r" of 31\.4 MB, \d+ s left$", line) for line in live)
    assert [first.rstrip(), last.rstrip()] == results(tmp_path, MEDIUM, mirror)


def test_the_data_are_fetched_though_nobody_reads_stderr(tmp_path, server):
    reader, pipe = os.pipe()
    os.close(reader)
    process = start(tmp_path, mirror=server.url("503+good"), stderr=pipe)
    os.close(pipe)
    assert finish(process).status == 0
    assert not defects(tmp_path, SMALL)


@needs_posix("closing stderr")
def test_the_data_are_fetched_though_stderr_is_closed(tmp_path, server):
    closing = ("/bin/sh", "-c", 'exec "$@" 2>&-', "sh")
    assert finish(start(tmp_path, mirror=server.url("503+good"), prefix=closing)).status == 0
    assert not defects(tmp_path, SMALL)


# --- Interrupted ----------------------------------------------------------------------------------


@needs_posix("sending signals")
@pytest.mark.parametrize(
    ("source", "name", "status"), [("COURSE", "SIGINT", 130), ("ZALANDO", "SIGTERM", 143)]
)
def test_a_signal_midway_leaves_the_old_file_and_nothing_else(
    tmp_path, server, source, name, status
):
    """In mid-download from the course's server; in mid-conversion of Zalando's file."""
    outcome = signalled_midway(tmp_path, server, source, name)
    assert (tmp_path / MEDIUM.name).read_bytes() == b"a damaged file"
    assert outcome.status == status, outcome.err
    assert outcome.lines[-1] == "download_data.py: interrupted"


@needs_posix("SIGKILL")
def test_what_sigkill_leaves_is_not_taken_for_data(tmp_path, server):
    outcome = signalled_midway(tmp_path, server, "COURSE", "SIGKILL")
    assert outcome.status == -signal.SIGKILL
    assert (tmp_path / MEDIUM.name).read_bytes() == b"a damaged file"
    process = start(tmp_path, files=[MEDIUM], mirror=server.url("good"))
    assert process.communicate(timeout=60)[1].splitlines()[-1] == results(tmp_path, MEDIUM, "")[-1]
    assert not defects(tmp_path, MEDIUM)


def signalled_midway(folder, server, source, name):
    """Send the signal when a quarter of a file has come, in the place of a damaged one."""
    (folder / MEDIUM.name).write_bytes(b"a damaged file")
    constants = {"TIMEOUT": 600, source: server.url("stall-in-body")}
    process = start(folder, files=[MEDIUM], constants=constants)
    quarter = MEDIUM.size / 4

    def a_quarter_has_come():
        return any(part.stat().st_size > quarter for part in folder.glob(".*/*.npy"))

    until("a quarter of the file", a_quarter_has_come, process)
    process.send_signal(getattr(signal, name))
    return finish(process)


SIGNALS = [
    name for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGBREAK") if hasattr(signal, name)
]


@pytest.mark.parametrize(
    ("first", "second"), [("made", name) for name in SIGNALS] + [("removed", "SIGINT")]
)
def test_several_signals_do_not_leave_the_temporary_folder(tmp_path, server, first, second):
    """The first comes when the folder was just made, or is removed; more when it is removed."""
    sabotage = ["signals", first, second]
    outcome = finish(start(tmp_path, mirror=server.url("good"), sabotage=sabotage))
    assert outcome.status == 128 + signal.SIGTERM, outcome.err
    assert outcome.lines[-1] == "download_data.py: interrupted"


@pytest.mark.parametrize("name", SIGNALS)
def test_each_signal_has_its_status(tmp_path, server, name):
    sabotage = ["signal_at_once", name]
    outcome = finish(start(tmp_path, mirror=server.url("good"), sabotage=sabotage))
    assert outcome.status == 128 + getattr(signal, name), outcome.err


@needs_posix("nohup")
def test_what_nohup_ignores_is_ignored(tmp_path, server):
    ignoring = ("/bin/sh", "-c", 'trap "" HUP; exec "$@"', "sh")
    how = {"prefix": ignoring, "sabotage": ["signal_at_once", "SIGHUP"]}
    outcome = finish(start(tmp_path, mirror=server.url("good"), **how))
    assert outcome.status == 0, outcome.err
    assert not defects(tmp_path, SMALL)


# --- Several at once ------------------------------------------------------------------------------


def test_several_at_once_on_one_empty_folder(tmp_path, server):
    folder, mirror = tmp_path / "data", server.url("good")
    processes = [start(folder, files=FILES[:3], mirror=mirror) for _ in range(3)]
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], errors
    assert not defects(folder, *FILES[:3])
    assert {path.name for path in folder.iterdir()} == {file.name for file in FILES[:3]}
