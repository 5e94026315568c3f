"""The downloader against disks, signals, other processes and its user."""

import contextlib
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from faulty_server import (
    DATA,
    FILES,
    MEDIUM,
    SERVER,
    SMALL,
    end,
    imposter,
    leftovers,
    original,
    right,
    run,
    start,
    until,
)

pytestmark = [pytest.mark.data, pytest.mark.usefixtures("data_dir")]
posix = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX system")


def unprivileged():
    """A prefix for a command, for which permissions count even if root runs it; None if none is."""
    if os.name != "posix" or os.geteuid():
        return () if os.name == "posix" else None
    prefix = shutil.which("setpriv"), "--bounding-set=-dac_override,-dac_read_search"
    works = prefix[0] and subprocess.run([*prefix, "true"], capture_output=True).returncode == 0
    return prefix if works else None


def listing(folder):
    """All that a write would change."""
    names = [os.path.join(at, name) for at, *inside in os.walk(folder) for name in sum(inside, [])]
    stats = {name: os.lstat(name) for name in (folder, *names)}
    return {name: (s.st_ino, s.st_mode, s.st_size, s.st_mtime_ns) for name, s in stats.items()}


def test_valid_files_need_no_network_and_no_write(tmp_path):
    for file in FILES[:2]:
        (tmp_path / file.name).write_bytes(original(file.name))
    tmp_path.chmod(0o555)
    before, mirror = listing(tmp_path), SERVER.url("good")
    end = run(tmp_path, files=FILES[:2], mirror=mirror, prefix=unprivileged() or ())
    assert end.code == 0, end.err
    assert end.err == f"{tmp_path}: all four files are there and verified\n"
    assert listing(tmp_path) == before
    assert not SERVER.asked(mirror)


DAMAGES = {
    "empty": (lambda content: b"", "0 bytes, not 40128"),
    "truncated": (lambda content: content[:-1], "40127 bytes, not 40128"),
    "padded": (lambda content: content + b"\0", "40129 bytes, not 40128"),
    "MNIST": (imposter, r"wrong content \(MNIST, or an older version\?\): its SHA-256 is \w{64}"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_and_stays_until_it_is_replaced(tmp_path, damage):
    (make, reason), path = DAMAGES[damage], tmp_path / SMALL.name
    path.write_bytes(make(original(SMALL.name)))
    (tmp_path / FILES[1].name).write_bytes(original(FILES[1].name))
    mirror, before = SERVER.url("mnist+good"), listing(path)
    end = run(tmp_path, files=FILES[:2], mirror=mirror)
    assert end.code == 1
    assert re.match(f"{re.escape(str(path))}: {reason}; fetching it again\n", end.err), end.err
    assert listing(path) == before, "the old file was touched, though nothing replaces it"
    assert run(tmp_path, files=FILES[:2], mirror=mirror).code == 0
    assert right(tmp_path, *FILES[:2])
    assert SERVER.asked(mirror) == [SMALL.name] * 2, "more than the damaged file was fetched"


def replace_by_a_file(folder):
    folder.rmdir()
    folder.touch()


IN_THE_WAY = "{file}: .*. Only a regular file is replaced"
UNUSABLE = "cannot store the data in {folder}: .*--data-dir DIR"
HINDRANCES = {
    "a link to a damaged file": (IN_THE_WAY, lambda file: file.symlink_to(__file__)),
    "a link to nothing": (IN_THE_WAY, lambda file: file.symlink_to("nothing")),
    "a link to itself": (IN_THE_WAY, lambda file: file.symlink_to(file)),
    "a folder of a file's name": (IN_THE_WAY, lambda file: file.mkdir()),
    "a FIFO": (IN_THE_WAY, lambda file: os.mkfifo(file)),
    "a file of the folder's name": (UNUSABLE, lambda file: replace_by_a_file(file.parent)),
    "a folder that may not be written": (UNUSABLE, lambda file: file.parent.chmod(0o555)),
    "a folder that may not be entered": (UNUSABLE, lambda file: file.parent.chmod(0)),
    "a parent that may not be entered": (UNUSABLE, lambda file: file.parent.parent.chmod(0)),
}


@pytest.mark.parametrize("hindrance", HINDRANCES)
def test_what_hinders_is_told_and_left_as_it_is(tmp_path, hindrance):
    (told, make), folder, mirror = (
        HINDRANCES[hindrance],
        tmp_path / "parent/data",
        SERVER.url("good"),
    )
    if (prefix := unprivileged()) is None and "may not" in hindrance:
        pytest.skip("needs permissions, and a user whom they bind")
    folder.mkdir(parents=True)
    try:
        make(folder / SMALL.name)
    except (AttributeError, OSError) as error:
        pytest.skip(f"cannot be made on this system: {error}")
    before = listing(tmp_path)
    process = start(folder, mirror=mirror, prefix=prefix or ())
    err = process.communicate(timeout=60)[1]
    assert listing(tmp_path) == before, "written, replaced, or left behind"
    for above in (folder.parent, folder):
        above.chmod(0o755)
    assert process.returncode == 1
    message = told.format(file=folder / SMALL.name, folder=folder)
    assert re.match(f"download_data.py: {message}.*\n$", err), f"not told in one line:\n{err}"
    assert not SERVER.asked(mirror)


def test_a_full_disk_keeps_what_is_verified(tmp_path):
    """It has room for the smallest file, and not for the next one."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(tmp_path)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not permitted")
    try:
        end = run(tmp_path, files=FILES[:2], mirror=SERVER.url("good"))
        assert end.code == 1
        assert f"cannot store the data in {tmp_path}: No space left on device" in end.err
        assert [path.name for path in tmp_path.iterdir()] == [SMALL.name]
        assert right(tmp_path, SMALL)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@posix
def test_the_umask_sets_the_permissions(tmp_path):
    assert run(tmp_path, mirror=SERVER.url("good"), umask=0o027).code == 0
    assert (tmp_path / SMALL.name).stat().st_mode & 0o777 == 0o640


# --- Signals, and other processes -----------------------------------------------------------------


@posix
@pytest.mark.parametrize(
    ("source", "sign", "code"),
    [("mirror", "SIGINT", 130), ("ZALANDO", "SIGTERM", 143), ("mirror", "SIGKILL", -9)],
)
def test_a_signal_midway_harms_nothing(tmp_path, source, sign, code):
    """In mid-download from a mirror; with Zalando, in mid-conversion."""
    path, hangs = tmp_path / MEDIUM.name, {source: SERVER.url("stall-in-body"), "TIMEOUT": 600}
    path.write_bytes(b"an older version")
    original(MEDIUM.idx)  # made now, lest the server seem to stall
    process = start(tmp_path, files=[MEDIUM], **hangs)
    until(lambda: any(part.stat().st_size > MEDIUM.size / 4 for part in tmp_path.glob(".*/*.npy")))
    process.send_signal(getattr(signal, sign))
    outcome = end(process)
    assert outcome.code == code, outcome.err
    assert outcome.err.endswith("download_data.py: interrupted\n" if code > 0 else "again\n")
    assert path.read_bytes() == b"an older version"
    rerun = start(tmp_path, files=[MEDIUM], mirror=SERVER.url("good"))
    assert "all four files are there" in rerun.communicate(timeout=60)[1]
    assert right(tmp_path, MEDIUM), "what was left behind was taken for data"


@posix
def test_an_impatient_user_leaves_no_trace(tmp_path):
    """Two signals to each of twelve runs, at different moments and some milliseconds apart."""

    def interrupt(number):
        folder, signs = tmp_path / str(number), (signal.SIGINT, signal.SIGTERM)
        process = start(folder, files=FILES[:2], mirror=SERVER.url("leisurely"))
        until(lambda: leftovers(folder))
        time.sleep(0.05 * number)
        process.send_signal(signs[number % 2])
        time.sleep(0.001 * number)
        process.send_signal(signs[number // 2 % 2])
        outcome = end(process)
        assert outcome.code in (130, 143, -2, -15), outcome.err  # the last two: after all is done
        assert outcome.err.endswith("download_data.py: interrupted\n"), outcome.err
        for file in FILES[:2]:
            assert not (folder / file.name).exists() or right(folder, file), "a wrong file"

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(interrupt, range(12)))


def test_several_at_once_on_one_empty_folder(tmp_path):
    folder, mirror = tmp_path / "data", SERVER.url("good")
    processes = [start(folder, files=FILES[:3], mirror=mirror) for _ in range(4)]
    outputs = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, outputs
    assert right(folder, *FILES[:3])
    assert not leftovers(folder)


# --- What the user sees ---------------------------------------------------------------------------


def results(folder, file, mirror):
    return [
        f"{folder / file.name}: {file.size / 1e6:.2f} MB from {mirror}, verified",
        f"{folder}: all four files are there and verified",
    ]


def test_plain_lines_without_a_terminal(tmp_path):
    """The folder's absolute name, though it was given otherwise; nothing of progress."""
    mirror = SERVER.url("503+good").rstrip("/")
    process = start(tmp_path / "data", "--data-dir", "data", mirror=mirror, cwd=tmp_path)
    assert end(process).err.splitlines() == results(tmp_path / "data", SMALL, mirror)


def test_a_word_after_ten_silent_seconds_without_a_terminal(tmp_path):
    end = run(tmp_path, mirror=(mirror := SERVER.url("503+good")), before="d.last_line -= 10")
    again = f"{mirror}: {SMALL.name}: HTTP 503 Service Unavailable; again in 0.05 s"
    assert end.err.splitlines() == [again, *results(tmp_path, SMALL, mirror)]


@posix
def test_the_data_are_fetched_though_nobody_can_be_told(tmp_path):
    closed = ("/bin/sh", "-c", 'exec "$@" 2>&-', "sh")
    assert run(tmp_path, mirror=SERVER.url("503+good"), prefix=closed).code == 0


def test_live_lines_on_a_terminal(tmp_path):
    """They tell what is waited for, do not wrap, and leave nothing behind."""
    fcntl, pty, termios = map(pytest.importorskip, ("fcntl", "pty", "termios"))
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("4H", 24, 75, 0, 0))
    mirror, seen = SERVER.url("503+leisurely"), b""
    process = start(tmp_path, mirror=mirror, stderr=its, files=[MEDIUM])
    os.close(its)
    with contextlib.suppress(OSError):  # how Linux says that the other end was closed
        while data := os.read(ours, 10**4):
            seen += data
    os.close(ours)
    assert end(process).code == 0
    blanked, *live, first, last = seen.decode().split(f"\r{'':74}\r")
    assert f"{mirror}: {MEDIUM.name}: HTTP 503 Service Unavailable; again in 0.05 s"[:74] in live
    assert any(re.search(r" of 31\.4 MB  \d+\.\d MB/s  \d+ s left$", line) for line in live)
    assert not any(len(line) > 74 or "\n" in line for line in (blanked, *live))
    assert [first.rstrip(), last.rstrip()] == results(tmp_path, MEDIUM, mirror)


@pytest.mark.parametrize("url", ["", "ftp://host/", "host/path", "http://", "https:///path"])
def test_a_mirror_must_be_on_the_web(tmp_path, url):
    end = run(tmp_path, "--mirror", url)
    assert end.code == 2
    assert end.err.endswith(f"error: --mirror {url}: not an http or https URL\n")


@pytest.mark.parametrize(
    ("lack", "answer"),
    [
        ("sys.modules['numpy'] = None", "NumPy is missing. Install it: "),
        ("sys.version_info = 3, 9", "Python 3.10 or newer is needed; "),
    ],
)
def test_what_is_missing_is_told_in_one_line(lack, answer):
    words = [sys.executable, "-c", f"import sys; {lack}; import download_data"]
    end = subprocess.run(words, capture_output=True, text=True, cwd=DATA.parent)
    assert end.returncode == 1
    assert end.stderr.startswith(answer)
    assert end.stderr.count("\n") == 1
