"""The downloader's sources: each of them, one after the other, and none at all."""

import os
import re
import shutil
import signal
import subprocess
import time

import faulty_server
import pytest
from faulty_server import FILES, SERVER, SMALL, end, original, right, run, start, until

from download_data import PACKED

pytestmark = [pytest.mark.data, pytest.mark.usefixtures("data_dir")]


@pytest.mark.parametrize("source", ["mirror", "SYSTEM", "COURSE", "ZALANDO"])
def test_all_four_files_come_from_each_source(tmp_path, source):
    """All 220 MB, into a folder that does not exist yet, from one source that works."""
    folder, url = tmp_path / "new" / "data", SERVER.url("good")
    names = [file.idx if source in ("SYSTEM", "ZALANDO") else file.name for file in FILES]
    if source == "SYSTEM":
        url = str(tmp_path)
        for name in names:
            (tmp_path / name).write_bytes(original(name))
    end = run(folder, files=FILES, **{source: url})
    assert end.code == 0, end.err
    assert right(folder, *FILES)
    assert SERVER.asked(url) == ([] if source == "SYSTEM" else names)


def test_each_file_comes_from_where_it_can_be_had_and_stays(tmp_path):
    """A source that lacks a file, or has a bad one, is still asked for the others."""
    system, folder = tmp_path / "system", tmp_path / "data"
    system.mkdir()
    (system / FILES[1].idx).write_bytes(original(FILES[1].idx))
    course, zalando = SERVER.url("small-cut"), SERVER.url("good")
    first = run(folder, files=FILES[:3], SYSTEM=str(system), COURSE=course)
    assert first.code == 1
    assert f"{system}: {SMALL.name}: {SMALL.idx}: No such file" in first.err
    assert right(folder, *FILES[1:3]), f"a source was given up for one file:\n{first.err}"
    assert SERVER.asked(course) == [SMALL.name] * 3 + [FILES[2].name]
    assert run(folder, files=FILES[:3], ZALANDO=zalando).code == 0
    assert right(folder, *FILES[:3])
    assert SERVER.asked(zalando) == [SMALL.idx], "fetched again, though it was verified"


def test_when_every_source_fails_each_reason_is_told_and_what_to_do(tmp_path):
    mirror, course = SERVER.url("404"), SERVER.url("503")
    end = run(tmp_path, mirror=mirror, COURSE=course, ZALANDO=SERVER.url("html"))
    assert end.code == 1
    assert end.err.splitlines() == [
        f"{mirror}: {SMALL.name}: HTTP 404 Not Found",
        "no system copy: not there",
        f"the course's server: {SMALL.name}: HTTP 503 Service Unavailable, 3 times",
        f"Zalando's server: {SMALL.name}: not the file but an HTML or XML page",
        "the system's package mirror: no apt-get on this system",
        "download_data.py: not all files can be had, for the reasons above. Install the package "
        f"dataset-fashion-mnist (Debian, Ubuntu), or put into {tmp_path}:",
        f"  {course}{SMALL.name}  {SMALL.size} bytes, SHA-256 {SMALL.sha256}",
    ]


@pytest.mark.parametrize("error", ["ModuleNotFoundError", "AttributeError"])  # missing, broken
def test_without_requests_the_other_sources_still_work(tmp_path, error):
    (tmp_path / SMALL.idx).write_bytes(original(SMALL.idx))
    (tmp_path / "requests.py").write_text(f"raise {error}('for this\\nreason')")
    mirror, first = SERVER.url("good"), f"sys.path.insert(0, {str(tmp_path)!r})"
    end = run(tmp_path / "data", mirror=mirror, SYSTEM=str(tmp_path), before=first)
    assert f"{mirror}: the package requests is not usable: for thisreason\n" in end.err
    assert right(tmp_path / "data", SMALL), end.err


# --- The system's package mirror ------------------------------------------------------------------


def test_the_package_mirror(tmp_path):
    """For real, where the system has one that answers."""
    if not shutil.which("apt-get"):
        pytest.skip("no apt-get on this system")
    end = run(tmp_path, files=FILES, env={"PATH": "/usr/bin:/bin"})
    if end.code and (reason := re.search("package mirror: (apt-get|too slow).*", end.err)):
        pytest.skip(reason[0])
    assert end.code == 0, end.err
    assert right(tmp_path, *FILES)


@pytest.fixture
def package(tmp_path):
    """Make apt-get and dpkg-deb, to be used in place of the system's, of these shell commands."""
    if os.name == "nt":
        pytest.skip("needs a shell")

    def make(apt_get, dpkg_deb="exit 1"):
        for name, commands in {"apt-get": apt_get, "dpkg-deb": dpkg_deb}.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{commands}\n")
            (tmp_path / name).chmod(0o755)
        return {"PATH": f"{tmp_path}:/usr/bin:/bin"}

    return make


def test_the_package_is_unpacked_in_a_temporary_folder(tmp_path, package):
    """Update comes before download, and need not succeed; lists, cache and TMPDIR are our own."""
    (tmp_path / SMALL.idx).write_bytes(original(SMALL.idx))
    apt_get = """case "$TMPDIR $*" in
        $PWD*State=$PWD*Cache=$PWD*update) sleep 1.5; touch updated; exit 100 ;;
        $PWD*State=$PWD*Cache=$PWD*download*) test -e updated && touch the.deb ;;
    esac"""
    dpkg_deb = f"""test "$1 $2 $3" = "-x the.deb ." || exit
        mkdir -p {PACKED} && cp {tmp_path}/{SMALL.idx} {PACKED}"""
    show = "d.log = lambda line, live=False: print('live: ' * live + line, file=sys.stderr)"
    time_enough, env = {"GRACE": 20, "MIN_RATE": 1_550_000}, package(apt_get, dpkg_deb)
    end = run(tmp_path / "data", env=env, before=show, **time_enough)
    assert "\nlive: dataset-fashion-mnist from the system's package mirror\n" in end.err
    assert f"{SMALL.name}: 0.04 MB from the system's package mirror, verified" in end.err
    assert right(tmp_path / "data", SMALL)


def test_what_cannot_be_removed_costs_no_data(tmp_path, package):
    """Another program may hold a file; here it is a disk, mounted in the temporary folder."""
    folder, idx = tmp_path / "data", tmp_path / SMALL.idx
    idx.write_bytes(original(SMALL.idx))
    dpkg_deb = f"mkdir -p held {PACKED}; mount -t tmpfs tmpfs held; cp {idx} {PACKED}"
    process = start(folder, env=package("touch the.deb", dpkg_deb))
    _, err = process.communicate(timeout=60)
    held = list(folder.glob("*/held"))
    if not held:
        pytest.skip("mounting is not permitted")
    subprocess.run(["umount", *held], check=True)
    assert process.returncode == 0, err
    assert right(folder, SMALL)


CANNOT_BE_HAD = {
    "echo 'W: old' >&2; echo 'E: no such package' >&2; exit 100": "apt-get: E: no such package",
    "printf 'E: \\033caf\\351\\n\\n' >&2; exit 1": "apt-get: E: caf",
    "exit 7": "apt-get: status 7",
    "touch the.deb": "sh: dpkg-deb: not an archive",
    "read line; echo \"asked, got '$line'\"; exit 1": "apt-get: asked, got ''",
    'echo "E: $4"; exit 100': "apt-get: E: -oAcquire::Languages=none; apt-get: E: download\n",
    "exec sleep 600": "too slow: its time is up",
}


@pytest.mark.parametrize("apt_get", CANNOT_BE_HAD)
def test_a_package_that_cannot_be_had_is_told(tmp_path, package, apt_get):
    env = package(apt_get, "echo 'dpkg-deb: not an archive' >&2; exit 2")
    short = {"GRACE": 1, "MIN_RATE": 10**9} if "sleep" in apt_get else {}
    end = run(tmp_path / "data", env=env, files=FILES[:2], **short)
    assert end.code == 1
    assert end.err.count(f"\nthe system's package mirror: {CANNOT_BE_HAD[apt_get]}") == 1, end.err


@pytest.mark.parametrize("apt_get", ["sleep 600", "exit 1"])
def test_a_full_disk_is_told_at_once(tmp_path, package, apt_get):
    """Also when apt-get waits for room that never comes, or says nothing of it."""
    env, folder = package(apt_get), tmp_path / "disk"
    folder.mkdir()
    with faulty_server.small_disk(folder):
        assert "package mirror: the disk is full\n" in end(start(folder, env=env), 15).err


def test_apt_get_ends_with_us_and_its_helper_with_it(tmp_path, package):
    """It writes more than a pipe holds, so that it gets no further until it is listened to."""
    pid, beats = tmp_path / "pid", tmp_path / "beats"
    helper = f"while sleep 0.02; do echo >> {beats}; done &"
    env = package(f"{helper} head -c 1000000 /dev/zero; echo $$ > {pid}; exec sleep 600")
    process = start(tmp_path / "data", env=env)
    until(lambda: pid.exists() and pid.read_text() and beats.exists(), process)
    process.send_signal(signal.SIGTERM)
    assert end(process).code == 143
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    count = beats.stat().st_size
    time.sleep(0.5)
    assert beats.stat().st_size == count, "a helper of apt-get lives on"
