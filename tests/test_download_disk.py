"""The downloader against disks, signals, other processes and its user."""

import os
import pty
import re
import shutil
import signal
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
    fill,
    flipped,
    imposter,
    leftovers,
    original,
    right,
    run,
    start,
    until,
)

pytestmark = pytest.mark.data

OLD = b"an older version"


def listing(folder):
    """All that a write would change."""
    stats = [folder.stat(), *(path.lstat() for path in sorted(folder.iterdir()))]
    return [(s.st_ino, s.st_mode, s.st_size, s.st_mtime_ns) for s in stats]


@pytest.fixture
def unprivileged():
    """A prefix for a command, for which permissions count even where the tests run as root."""
    if os.geteuid():
        return ()
    if not (setpriv := shutil.which("setpriv")):
        pytest.skip("permissions do not bind root, and there is no setpriv")
    return setpriv, "--bounding-set=-dac_override,-dac_read_search"


# --- Files that are there -------------------------------------------------------------------------


def test_valid_files_need_no_network_and_no_write(data_dir, tmp_path, unprivileged):
    fill(tmp_path, missing=()).chmod(0o555)
    before, mirror = listing(tmp_path), SERVER.url("good")
    end = run(tmp_path, mirror=mirror, prefix=unprivileged)
    assert end.code == 0, end.err
    assert listing(tmp_path) == before
    assert not SERVER.asked(mirror)
    assert end.megabytes < 120


DAMAGES = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[:-1],
    "half": lambda content: content[: len(content) // 2],
    "padded": lambda content: content + b"\0",
    "bit-flipped": flipped,
    "MNIST": imposter,
    "HTML": lambda content: b"<html>",
    "older": lambda content: OLD,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_and_replaced(data_dir, tmp_path, damage):
    path, bad = fill(tmp_path) / SMALL.name, DAMAGES[damage](original(SMALL.name))
    path.write_bytes(bad)
    end = run(tmp_path, mirror=(mirror := SERVER.url("good")))
    assert end.code == 0, end.err
    assert re.search(f"{path}: ({len(bad)} bytes, not|wrong content).*; fetching it again", end.err)
    assert right(tmp_path)
    assert SERVER.asked(mirror) == [SMALL.name], "more than the damaged file was fetched"


@pytest.mark.parametrize("fault", ["404", "mnist", "cut"])
def test_a_damaged_file_stays_as_long_as_no_right_one_comes(data_dir, tmp_path, fault):
    (fill(tmp_path) / SMALL.name).write_bytes(OLD)
    before = listing(tmp_path)[1:]
    assert run(tmp_path, mirror=SERVER.url(fault)).code == 1
    assert listing(tmp_path)[1:] == before, "the old file was touched though nothing replaces it"


def test_a_link_to_a_valid_file_is_used_as_it_is(data_dir, tmp_path):
    fill(tmp_path)
    (tmp_path / SMALL.name).symlink_to(DATA / SMALL.name)
    assert run(tmp_path).code == 0
    assert (tmp_path / SMALL.name).is_symlink()


def make_link(path, target):
    target.write_bytes(OLD)
    path.symlink_to(target)


IN_THE_WAY = {
    "a link to a damaged file": make_link,
    "a link to nothing": lambda path, target: path.symlink_to(target),
    "a link to itself": lambda path, target: path.symlink_to(path),
    "a folder": lambda path, target: path.mkdir(),
    "a FIFO": lambda path, target: os.mkfifo(path),
}


@pytest.mark.parametrize("thing", IN_THE_WAY)
def test_what_is_no_file_is_neither_replaced_nor_written_through(data_dir, tmp_path, thing):
    folder, target, mirror = fill(tmp_path / "data"), tmp_path / "target", SERVER.url("good")
    IN_THE_WAY[thing](folder / SMALL.name, target)
    before = listing(folder)
    end = run(folder, mirror=mirror)
    assert end.code == 1
    assert f"{folder / SMALL.name} is in the way" in end.err
    assert listing(folder) == before
    assert not target.exists() or target.read_bytes() == OLD, "written through the link"
    assert not SERVER.asked(mirror)


@pytest.mark.parametrize("thing", ["a link to nothing", "a folder"])
def test_what_comes_into_the_way_meanwhile_is_not_written_through(data_dir, tmp_path, thing):
    folder, target = fill(tmp_path / "data"), tmp_path / "target"
    process = start(folder, mirror=SERVER.url("leisurely"), TIMEOUT=10, GRACE=20)
    until(lambda: leftovers(folder))
    IN_THE_WAY[thing](folder / SMALL.name, target)
    code, err = (outcome := end(process)).code, outcome.err
    assert not target.exists(), "written through the link"
    assert code == (1 if thing == "a folder" else 0), err
    assert f"cannot write {folder / SMALL.name}: " in err or right(folder)


# --- Disks that take nothing ----------------------------------------------------------------------


def test_a_read_only_folder(data_dir, tmp_path, unprivileged):
    fill(tmp_path).chmod(0o555)
    end = run(tmp_path, mirror=SERVER.url("good"), prefix=unprivileged)
    assert end.code == 1
    assert f"cannot write {tmp_path / SMALL.name}: Permission denied" in end.err


def test_a_file_that_may_not_be_read(data_dir, tmp_path, unprivileged):
    (fill(tmp_path, missing=()) / SMALL.name).chmod(0)
    end = run(tmp_path, prefix=unprivileged)
    assert end.code == 1
    assert f"cannot read {tmp_path / SMALL.name}: Permission denied" in end.err


def test_a_system_copy_that_may_not_be_read(data_dir, tmp_path, unprivileged):
    (tmp_path / "closed" / "system").mkdir(parents=True)
    (tmp_path / "closed").chmod(0)
    system, course = str(tmp_path / "closed" / "system"), SERVER.url("good")
    end = run(fill(tmp_path / "data"), SYSTEM=system, COURSE=course, prefix=unprivileged)
    assert end.code == 0, end.err
    assert f"{system}: " in end.err


@pytest.mark.parametrize("folder", ["a file/below", "a file", "a link to nothing"])
def test_a_folder_that_cannot_be(data_dir, tmp_path, folder):
    (tmp_path / "a file").write_bytes(OLD)
    (tmp_path / "a link to nothing").symlink_to(tmp_path / "nothing")
    end = run(tmp_path / folder, mirror=SERVER.url("good"))
    assert end.code == 1
    assert f"cannot make the folder {tmp_path / folder}: " in end.err
    assert (tmp_path / "a file").read_bytes() == OLD


def test_a_limit_on_the_size_of_files(data_dir, tmp_path):
    """The limit lies between the two files of labels: one comes, the other is told."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, 10**5))"
    end = run(fill(tmp_path, missing=FILES[:2]), mirror=SERVER.url("good"), before=limit)
    assert end.code == 1
    assert f"cannot write {tmp_path / FILES[1].name}: File too large" in end.err
    assert right(tmp_path, SMALL), "what was verified is not kept"
    assert not (tmp_path / FILES[1].name).exists()


@pytest.mark.parametrize("options", ["size=200k", "size=200k,ro"])
def test_a_full_or_read_only_disk(data_dir, tmp_path, options):
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(tmp_path)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not permitted")
    try:
        end = run(tmp_path, mirror=SERVER.url("good"))
        assert end.code == 1
        if "ro" in options:
            assert f"cannot write {tmp_path / SMALL.name}: Read-only file system" in end.err
            assert not list(tmp_path.iterdir())
        else:
            name = FILES[1].name
            assert f"cannot write {tmp_path / name}: No space left on device" in end.err
            assert [path.name for path in tmp_path.iterdir()] == [SMALL.name]
            assert right(tmp_path, SMALL), "what was verified is not kept"
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


# --- Signals --------------------------------------------------------------------------------------


@pytest.fixture
def midway(tmp_path):
    """Start a run and return once it has stored some of MEDIUM, beside an old file of that name."""

    def begin(source):
        folder = fill(tmp_path, missing=[MEDIUM])
        (folder / MEDIUM.name).write_bytes(OLD)
        process = start(folder, **{source: SERVER.url("stall in body")}, TIMEOUT=30, GRACE=60)
        until(lambda: any(size(path) > MEDIUM.size / 4 for path in leftovers(folder)))
        return process

    def size(path):
        """Or 0, if another source's attempt has just left it."""
        return path.stat().st_size if path.exists() else 0

    original(MEDIUM.idx)
    return begin


@pytest.mark.parametrize("source", ["mirror", "ZALANDO"])
@pytest.mark.parametrize(("sign", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_midway_leaves_no_trace(data_dir, tmp_path, midway, source, sign, code):
    """In mid-download from a mirror; with Zalando, in mid-conversion."""
    process = midway(source)
    process.send_signal(getattr(signal, sign))
    outcome = end(process, timeout=5)
    assert outcome.code == code, outcome.err
    assert outcome.err.endswith("download_data.py: interrupted\n") == (code == 130), outcome.err
    assert (tmp_path / MEDIUM.name).read_bytes() == OLD


def test_a_kill_midway_and_a_rerun(data_dir, tmp_path, midway):
    process = midway("mirror")
    process.kill()
    assert end(process).code == -9
    assert (tmp_path / MEDIUM.name).read_bytes() == OLD
    (remains,) = leftovers(tmp_path)
    mirror = SERVER.url("good")
    process = start(tmp_path, mirror=mirror)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert right(tmp_path)
    assert SERVER.asked(mirror) == [MEDIUM.name]
    assert leftovers(tmp_path) in ([], [remains])


def test_a_signal_at_any_moment_leaves_no_trace(data_dir, tmp_path):
    """Signals sent to twelve runs, from their start to their end, some 60 ms apart."""

    def interrupt(number):
        folder, ready = tmp_path / str(number), tmp_path / f"ready {number}"
        fill(folder, missing=FILES[:2])
        ready_now = f"open({str(ready)!r}, 'w').close()"
        process = start(folder, mirror=SERVER.url("leisurely"), before=ready_now)
        until(ready.exists)
        time.sleep(0.06 * number)
        process.send_signal([signal.SIGINT, signal.SIGTERM][number % 2])
        # The first of the signals may come before the command could say what it does with them.
        _, err = process.communicate(timeout=10)
        assert process.returncode in (0, 130, 143, -signal.SIGINT, -signal.SIGTERM), err
        assert not leftovers(folder)
        for file in FILES[:2]:
            assert not (folder / file.name).exists() or right(folder, file), "a wrong file"

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(interrupt, range(12)))


# --- Processes, permissions, terminals, the command line ------------------------------------------


def test_eight_at_once_on_one_empty_folder(data_dir, tmp_path):
    folder, mirror = tmp_path / "data", SERVER.url("good")
    only = "d.FILES = d.FILES[:3]"  # 8 x 220 MB would try the disk, not the program
    processes = [start(folder, mirror=mirror, before=only, TIMEOUT=30, GRACE=60) for _ in range(8)]
    outputs = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 8, outputs
    assert right(folder, *FILES[:3])
    assert not leftovers(folder)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0, 0o666)])
def test_the_umask_sets_the_permissions(data_dir, tmp_path, umask, mode):
    assert run(fill(tmp_path), mirror=SERVER.url("good"), umask=umask).code == 0
    assert (tmp_path / SMALL.name).stat().st_mode & 0o777 == mode


def test_plain_lines_without_a_terminal(data_dir, tmp_path):
    end = run(fill(tmp_path), mirror=(mirror := SERVER.url("good")))
    assert end.err.splitlines() == [
        f"{tmp_path / SMALL.name}: 0.04 MB from {mirror}, verified",
        f"{tmp_path}: all four files are there and verified",
    ]


def test_valid_files_are_valid_though_nobody_can_be_told(data_dir, tmp_path):
    closed = ("/bin/sh", "-c", 'exec "$@" 2>&-', "sh")
    assert run(fill(tmp_path, missing=()), prefix=closed).code == 0


def test_a_live_line_on_a_terminal(data_dir, tmp_path):
    ours, its = pty.openpty()
    process = start(fill(tmp_path, missing=[MEDIUM]), mirror=SERVER.url("leisurely"), stderr=its)
    os.close(its)
    seen, times = b"", []
    try:
        while data := os.read(ours, 10**4):
            seen += data
            times.append(time.monotonic())
    except OSError:  # how Linux says that the other end was closed
        os.close(ours)
    assert end(process).code == 0
    lines = seen.decode().split("\r\x1b[K")
    assert any(re.search(r"of 31\.\d+ MB +.* MB/s +\d+ s left$", line) for line in lines), lines[:9]
    rates = re.findall(r"([\d.]+) MB/s", seen.decode())
    assert abs(MEDIUM.size / 1e6 / float(rates[-1]) - (times[-1] - times[0])) < 0.4, "another rate"
    assert max(map(len, lines[:-2])) < 80 or "\n" in max(lines[:-2], key=len), "a live line wraps"
    assert not any("left" in line and "verified" in line for line in lines), "two lines in one"
    assert "all four files are there and verified" in lines[-1]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--frobnicate"],
        ["surplus"],
        ["--mirror"],
        *(
            ["--mirror", url]
            for url in ("", "ftp://host/", "file:///etc", "host/path", "http://", "https:///path")
        ),
    ],
    ids=" ".join,
)
def test_a_wrong_command_line(tmp_path, arguments):
    end = run(tmp_path, *arguments)
    assert end.code == 2, end.err
    assert end.err.startswith("usage: ")
    assert not list(tmp_path.iterdir())


def test_help():
    end = subprocess.run(
        [sys.executable, DATA.parent / "download_data.py", "--help"], capture_output=True, text=True
    )
    assert end.returncode == 0
    shown = " ".join(end.stdout.split())
    for text in (
        "[--data-dir DIR] [--mirror URL]",
        "Fetch the four",
        "(default: data)",
        "to ask first",
    ):
        assert text in shown
