"""The downloader's runs: interrupted, side by side, and as the user sees them."""

import contextlib
import os
import re
import signal
import struct
import time
from types import SimpleNamespace

import pytest
from faulty_server import FILES, MEDIUM, SERVER, SMALL, end, leftovers, right, run, start, until

import download_data
from download_data import Broken, Refused, fetch, write_verified

pytestmark = [pytest.mark.data, pytest.mark.usefixtures("data_dir")]
posix = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX system")


@posix
@pytest.mark.parametrize(
    ("source", "sign", "code"),
    [("mirror", "SIGINT", 130), ("ZALANDO", "SIGTERM", 143), ("mirror", "SIGKILL", -9)],
)
def test_a_signal_midway_harms_nothing(tmp_path, source, sign, code):
    """In mid-download from a mirror; with Zalando, in mid-conversion."""
    path, hangs = tmp_path / MEDIUM.name, {source: SERVER.url("stall-in-body"), "TIMEOUT": 600}
    path.write_bytes(b"an older version")
    process = start(tmp_path, files=[MEDIUM], **hangs)
    quarter = MEDIUM.size / 4
    until(lambda: any(f.stat().st_size > quarter for f in tmp_path.glob(".*/*.npy")), process)
    process.send_signal(getattr(signal, sign))
    outcome = end(process)
    assert outcome.code == code, outcome.err
    assert outcome.err.endswith("download_data.py: interrupted\n" if code > 0 else "again\n")
    assert path.read_bytes() == b"an older version"
    rerun = start(tmp_path, files=[MEDIUM], mirror=SERVER.url("good"))
    assert "all four files are there" in rerun.communicate(timeout=60)[1]
    assert right(tmp_path, MEDIUM), "what was left behind was taken for data"


# The signals come when the folder was just made, and each time when it is about to be removed.
MADE = "mkdir = d.Path.mkdir; d.Path.mkdir = lambda path, **how: (mkdir(path, **how), "
MADE += "path.name.startswith('.fetching') and stop()); "
REMOVED = "rm = d.shutil.rmtree; d.shutil.rmtree = lambda *at, **how: (stop(), rm(*at, **how))"


@posix
@pytest.mark.parametrize("second", ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"])
@pytest.mark.parametrize("at", [MADE + REMOVED, REMOVED], ids=["made", "removed"])
def test_signals_do_not_leave_the_temporary_folder(tmp_path, at, second):
    signs = f"signs = [d.signal.SIGQUIT, *[d.signal.{second}] * 2]; "
    stop = "stop = lambda: d.os.kill(d.os.getpid(), signs.pop(0)); "
    outcome = run(tmp_path, mirror=SERVER.url("good"), before=signs + stop + at)
    assert outcome.code == 131, outcome.err
    assert outcome.err.endswith("download_data.py: interrupted\n")


def test_several_at_once_on_one_empty_folder(tmp_path):
    folder, mirror = tmp_path / "data", SERVER.url("good")
    processes = [start(folder, files=FILES[:3], mirror=mirror) for _ in range(4)]
    outputs = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, outputs
    assert right(folder, *FILES[:3])
    assert not leftovers(folder)


@posix
def test_the_umask_sets_the_permissions(tmp_path):
    assert run(tmp_path, mirror=SERVER.url("good"), umask=0o027).code == 0
    assert (tmp_path / SMALL.name).stat().st_mode & 0o777 == 0o640


def results(folder, file, mirror):
    return [
        f"{folder / file.name}: {file.size / 1e6:.2f} MB from {mirror}, verified",
        f"{folder}: all four files are there and verified",
    ]


def test_plain_lines_without_a_terminal(tmp_path):
    """Only results, unless ten seconds have passed; the folder's absolute name, however given."""
    folder, mirrors = tmp_path / "data", [SERVER.url("503+good").rstrip("/") for _ in range(2)]
    process = start(folder, "--data-dir", "data", mirror=mirrors[0], cwd=tmp_path)
    assert end(process).err.splitlines() == results(folder, SMALL, mirrors[0])
    (folder / SMALL.name).unlink()
    again = f"{mirrors[1]}: {SMALL.name}: HTTP 503 Service Unavailable; again in 0.05 s"
    outcome = run(folder, mirror=mirrors[1], before="d.last_line -= 10")
    assert outcome.err.splitlines() == [again, *results(folder, SMALL, mirrors[1])]


@posix
@pytest.mark.parametrize("stderr", ["closed", "a pipe that nobody reads"])
def test_the_data_are_fetched_though_nobody_can_be_told(tmp_path, stderr):
    reader, pipe = os.pipe()
    os.close(reader)
    how = {"prefix": ("/bin/sh", "-c", 'exec "$@" 2>&-', "sh")} if stderr == "closed" else {}
    assert run(tmp_path, mirror=SERVER.url("503+good"), **{"stderr": pipe} | how).code == 0
    os.close(pipe)


@pytest.mark.parametrize(("columns", "width"), [(75, 74), (0, 79)])  # 0: it does not know
def test_live_lines_on_a_terminal(tmp_path, columns, width):
    """They tell what is waited for, do not wrap, and leave nothing behind."""
    fcntl, pty, termios = map(pytest.importorskip, ("fcntl", "pty", "termios"))
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    mirror, seen = SERVER.url("503+leisurely"), b""
    process = start(tmp_path, mirror=mirror, stderr=its, files=[MEDIUM])
    os.close(its)
    with contextlib.suppress(OSError):  # how Linux says that the other end was closed
        while data := os.read(ours, 10**4):
            seen += data
    os.close(ours)
    assert end(process).code == 0
    blanked, *live, first, last = seen.decode().split(f"\r{'':{width}}\r")
    assert f"{mirror}: {MEDIUM.name}: HTTP 503 Service Unavailable; again in 0.05 s"[:width] in live
    assert any(re.search(r" of 31\.4 MB, \d+ s left$", line) for line in live)
    assert not any(len(line) > width or "\n" in line for line in (blanked, *live))
    assert [first.rstrip(), last.rstrip()] == results(tmp_path, MEDIUM, mirror)


def test_progress_tells_the_time_left(tmp_path, monkeypatch):
    """Ten seconds for a quarter of a file leave thirty for the rest."""
    lines, clock = [], iter([5, 15])
    monkeypatch.setattr(download_data, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(download_data, "log", lambda line, live=False: lines.append((line, live)))
    quarter = (piece for piece in [bytes(MEDIUM.size // 4)])  # a generator, which can be closed
    with pytest.raises(Broken):
        write_verified(quarter, MEDIUM, tmp_path / "part")
    assert lines == [(f"{MEDIUM.name}: 7.8 of 31.4 MB, 30 s left", True)]


def test_a_server_gets_a_pause_before_it_is_asked_again(tmp_path, monkeypatch):
    pauses, part, target = [], tmp_path / "part", tmp_path / "target"
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=pauses.append)
    monkeypatch.setattr(download_data, "time", clock)
    with pytest.raises(Refused, match="cut short: 0 bytes of 40128, 3 times"):
        fetch(SMALL, "a server", lambda file: iter([]), part, target)
    assert pauses == [2, 2]


@pytest.mark.parametrize("url", ["", "ftp://me:secret@host/", "host/path", "http://", "https:///"])
def test_a_mirror_must_be_on_the_web(tmp_path, url):
    end = run(tmp_path, "--mirror", url)
    assert end.code == 2
    assert end.err.endswith("error: --mirror: not an http or https URL\n")
    assert "secret" not in end.err


def test_a_mirror_as_one_may_write_it(tmp_path):
    """A password is used, and never told."""
    mirror = SERVER.url("good").replace("http", "HTTP")
    outcome = run(tmp_path, "--mirror", f" {mirror.replace('//', '//me:p@secret@')} ")
    assert outcome.err.splitlines() == results(tmp_path, SMALL, mirror)
    assert "\r\nAuthorization: Basic bWU6cEBzZWNyZXQ=\r\n" in SERVER.head
