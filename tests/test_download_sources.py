"""The downloader's sources: each of them, one after the other, and none at all."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from downloader import FILES, NOWHERE, SMALL, defects, fetch, finish, put, start, until
from servers import DAMAGES, original

from download_data import PACKED

pytestmark = [pytest.mark.data, pytest.mark.usefixtures("data_dir")]


# --- Each source ----------------------------------------------------------------------------------

SOURCES = ["the mirror", "SYSTEM", "COURSE", "ZALANDO", "the package"]


@pytest.fixture
def package(tmp_path):
    """Make apt-get and dpkg-deb of shell commands; return an environment that has only these."""
    if os.name == "nt":
        pytest.skip("needs a POSIX shell")
    tools = tmp_path / "tools"
    tools.mkdir()

    def make(apt_get, dpkg_deb="exit 1"):
        for name, commands in {"apt-get": apt_get, "dpkg-deb": dpkg_deb}.items():
            (tools / name).write_text(f"#!/bin/sh\n{commands}\n")
            (tools / name).chmod(0o755)
        return {"PATH": f"{tools}:/usr/bin:/bin"}

    return make


@pytest.fixture
def offer(tmp_path, server, request):
    """Make a source offer files, damaged or good: how to call `fetch` with it and no other."""

    def of(source, damage, files):
        if source == "the mirror":
            return {"mirror": server.url(damage)}
        if source in ("COURSE", "ZALANDO"):
            return {"constants": {source: server.url(damage)}}
        folder = tmp_path / "zalando"
        folder.mkdir()
        for file in files:
            (folder / file.idx_name).write_bytes(DAMAGES[damage](original(file.idx_name)))
        if source == "SYSTEM":
            return {"constants": {"SYSTEM": str(folder)}}
        package = request.getfixturevalue("package")
        apt_get = f'echo "$*" >> {tmp_path}/calls; touch the.deb'
        return {"env": package(apt_get, f"mkdir -p {PACKED}; cp {folder}/* {PACKED}")}

    return of


@pytest.mark.parametrize("source", SOURCES)
def test_the_hash_decides_whatever_the_source(tmp_path, offer, source):
    """What it offers has the right form and size, and other values, as MNIST has."""
    folder = tmp_path / "data"
    outcome = fetch(folder, **offer(source, "imposter", [SMALL]))
    assert defects(folder, SMALL) == [f"{SMALL.name} is missing"], f"{source} was trusted"
    assert outcome.status == 1, "the status is that of success, though no file came"


@pytest.mark.parametrize("source", SOURCES)
def test_all_four_files_come_from_each_source(tmp_path, offer, source):
    """All 220 MB, into a folder that does not exist yet."""
    folder = tmp_path / "new" / "data"
    outcome = fetch(folder, files=FILES, **offer(source, "good", FILES))
    if source == "the package":
        calls = (tmp_path / "calls").read_text().splitlines()
        assert len(calls) == 2, f"not one update and one download for all four files: {calls}"
    assert not defects(folder, *FILES), outcome.err
    assert outcome.status == 0, outcome.err


# --- One after the other --------------------------------------------------------------------------


def test_sources_are_tried_in_the_order_of_the_readme(tmp_path, server):
    mirror, course, zalando = (server.url("404") for _ in range(3))
    before = len(server.requests)
    outcome = fetch(tmp_path, mirror, constants={"COURSE": course, "ZALANDO": zalando})
    asked = [server.address + path for path in server.requests[before:]]
    assert asked == [mirror + SMALL.name, course + SMALL.name, zalando + SMALL.idx_name]
    names = [line.partition(": ")[0] for line in outcome.err.replace(mirror, "mirror").splitlines()]
    assert names[:5] == [
        "mirror",
        "no system copy",
        "the course's server",
        "Zalando's server",
        "the system's package mirror",
    ]


def test_a_source_that_lacks_a_file_is_still_tried_for_the_others(tmp_path, server):
    """And so is one that breaks down at a file. What has been verified is never fetched again."""
    system, folder = tmp_path / "system", tmp_path / "data"
    system.mkdir()
    (system / FILES[1].idx_name).write_bytes(original(FILES[1].idx_name))
    course, zalando = server.url("smallest-cut"), server.url("good")
    constants = {"SYSTEM": str(system), "COURSE": course}
    first = fetch(folder, files=FILES[:3], constants=constants)
    assert first.status == 1, first.err
    assert defects(folder, *FILES[:3]) == [f"{SMALL.name} is missing"], first.err
    assert server.asked(course) == [SMALL.name] * 3 + [FILES[2].name]
    assert first.about(system) == [
        f"{file.name}: {file.idx_name}: No such file or directory" for file in (FILES[0], FILES[2])
    ]
    second = fetch(folder, files=FILES[:3], constants={"ZALANDO": zalando})
    assert second.status == 0, second.err
    assert not defects(folder, *FILES[:3])
    assert server.asked(zalando) == [SMALL.idx_name], "not just the file that was missing"


def test_if_every_source_fails_each_reason_is_reported_and_what_to_do(tmp_path, server):
    mirror, course, zalando = server.url("404"), server.url("503"), server.url("html")
    outcome = fetch(tmp_path, mirror, constants={"COURSE": course, "ZALANDO": zalando})
    assert outcome.status == 1
    assert not list(tmp_path.iterdir())
    assert outcome.lines == [
        f"{mirror}: {SMALL.name}: HTTP 404 Not Found",
        "no system copy: no such folder",
        f"the course's server: {SMALL.name}: HTTP 503 Service Unavailable, 3 times",
        f"Zalando's server: {SMALL.name}: an HTML or XML page instead of the file",
        "the system's package mirror: no apt-get on this system",
        "download_data.py: some files could not be fetched, for the reasons above. Install the "
        f"package dataset-fashion-mnist (Debian, Ubuntu), or put these into {tmp_path}:",
        f"  {course}{SMALL.name}  {SMALL.size} bytes, SHA-256 {SMALL.sha256}",
    ]


def test_only_the_files_that_are_still_missing_are_asked_for(tmp_path):
    put(tmp_path, FILES[0], FILES[2])
    outcome = fetch(tmp_path, files=FILES)
    assert outcome.status == 1
    wanted = [line.split()[0] for line in outcome.lines if line.startswith("  ")]
    assert wanted == [NOWHERE + FILES[1].name, NOWHERE + FILES[3].name]


@pytest.mark.parametrize("error", ["ModuleNotFoundError", "AttributeError"])  # missing, broken
def test_without_requests_the_other_sources_still_work(tmp_path, server, monkeypatch, error):
    (tmp_path / SMALL.idx_name).write_bytes(original(SMALL.idx_name))
    (tmp_path / "requests.py").write_text(f"raise {error}('for this\\nreason')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "requests", raising=False)
    mirror = server.url("good")
    outcome = fetch(tmp_path / "data", mirror, constants={"SYSTEM": str(tmp_path)})
    assert not defects(tmp_path / "data", SMALL), outcome.err
    assert outcome.about(mirror) == ["cannot import requests: for thisreason"]


# --- The system's package mirror ------------------------------------------------------------------


def test_the_package_is_unpacked_in_a_temporary_folder(tmp_path, package):
    """Update comes before download, and need not succeed; lists, cache and TMPDIR are our own."""
    (tmp_path / SMALL.idx_name).write_bytes(original(SMALL.idx_name))
    apt_get = """case "$TMPDIR $*" in
        $PWD*State=$PWD*Cache=$PWD*update) touch updated; exit 100 ;;
        $PWD*State=$PWD*Cache=$PWD*download*dataset-fashion-mnist)
            test -e updated && touch the.deb ;;
        *) echo "unexpected: $TMPDIR $*"; exit 1 ;;
    esac"""
    dpkg_deb = f"""test "$1 $2 $3" = "-x the.deb ." || exit
        mkdir -p {PACKED} && cp {tmp_path}/{SMALL.idx_name} {PACKED}"""
    outcome = fetch(tmp_path / "data", env=package(apt_get, dpkg_deb))
    assert not defects(tmp_path / "data", SMALL), outcome.err
    assert outcome.about(tmp_path / "data" / SMALL.name) == [
        "0.04 MB from the system's package mirror, verified"
    ]


def test_the_tools_have_as_much_time_as_31_mb_may_take(tmp_path, package):
    """Here one second and another two for 31 MB; apt-get takes 1.5 in all."""
    (tmp_path / SMALL.idx_name).write_bytes(original(SMALL.idx_name))
    dpkg_deb = f"mkdir -p {PACKED} && cp {tmp_path}/{SMALL.idx_name} {PACKED}"
    env = package("sleep 0.75; touch the.deb", dpkg_deb)
    constants = {"GRACE": 1, "MIN_RATE": 15_500_000}
    outcome = fetch(tmp_path / "data", env=env, constants=constants)
    assert not defects(tmp_path / "data", SMALL), outcome.err


def test_the_tools_have_no_more_time_than_that(tmp_path, package):
    env, begun = package("exec sleep 600"), time.monotonic()
    outcome = fetch(tmp_path / "data", env=env, constants={"GRACE": 0.5, "MIN_RATE": 10**9})
    assert time.monotonic() - begun < 20
    assert outcome.about("the system's package mirror") == ["too slow: timed out"]


# What `apt-get download` does, and the reason that is reported.
FAILURES = {
    "echo 'W: old' >&2; echo 'E: no such package' >&2; exit 100": "apt-get: E: no such package",
    "printf 'E: \\033caf\\351\\n\\n' >&2; exit 1": "apt-get: E: caf\ufffd",
    "exit 7": "apt-get: status 7",
    "touch the.deb": "sh: dpkg-deb: not an archive",
}


@pytest.mark.parametrize("apt_get", FAILURES)
def test_a_failure_of_the_package_mirror_is_reported_once(tmp_path, package, apt_get):
    apt_get_and_update = f'case "$*" in *update) exit ;; esac; {apt_get}'
    env = package(apt_get_and_update, "echo 'dpkg-deb: not an archive' >&2; exit 2")
    outcome = fetch(tmp_path / "data", env=env, files=FILES[:2])
    assert outcome.status == 1
    assert outcome.about("the system's package mirror") == [FAILURES[apt_get]]


@pytest.mark.parametrize("command", ["update", "download"])
def test_a_disk_that_is_full_for_the_package_is_reported_as_that(tmp_path, package, command):
    folder, error = tmp_path / "data", "E: Write error (28: No space left on device)"
    env = package(
        f'case "$*" in *{command}*) echo "{error}"; echo "E: some failed"; exit 100; esac'
    )
    outcome = fetch(folder, env=env)
    last = outcome.lines[-1]
    assert f"cannot store the data in {folder}: No space left on device. " in last, outcome.err


def test_both_update_and_download_are_reported(tmp_path, package):
    env = package(
        'case "$*" in *update) echo "E: no lists" ;; *) echo "E: no package" ;; esac; exit 9'
    )
    outcome = fetch(tmp_path / "data", env=env)
    reason = "apt-get: E: no lists; apt-get: E: no package"
    assert outcome.about("the system's package mirror") == [reason]


def test_apt_get_does_not_read_what_the_user_types(tmp_path, package):
    process = start(tmp_path / "data", env=package('read line; echo "read $line."; exit 1'))
    process.stdin.write("typed\n")
    process.stdin.flush()
    assert finish(process).about("the system's package mirror") == [
        "apt-get: read .; apt-get: read ."
    ]


def test_apt_get_ends_with_us_and_its_helper_with_it(tmp_path, package):
    """It writes more than a pipe holds, so that it gets no further until it is listened to."""
    pid, beats = tmp_path / "pid", tmp_path / "beats"
    helper = f"while sleep 0.02; do echo >> {beats}; done &"
    env = package(f"{helper} head -c 1000000 /dev/zero; echo $$ > {pid}; exec sleep 600")
    process = start(tmp_path / "data", env=env)

    def both_run():
        return pid.exists() and pid.read_text() and beats.exists()

    until("the start of apt-get and its helper", both_run, process)
    process.send_signal(signal.SIGTERM)
    assert finish(process).status != 0
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    count = beats.stat().st_size
    time.sleep(0.3)
    assert beats.stat().st_size == count, "a helper of apt-get lives on"


def test_what_cannot_be_removed_costs_no_data(tmp_path, package):
    """Another program may hold a file; here it is a disk, mounted in the temporary folder."""
    folder, idx = tmp_path / "data", tmp_path / SMALL.idx_name
    idx.write_bytes(original(SMALL.idx_name))
    dpkg_deb = f"mkdir -p held {PACKED}; mount -t tmpfs tmpfs held; cp {idx} {PACKED}"
    process = start(folder, env=package("touch the.deb", dpkg_deb))
    _, err = process.communicate(timeout=60)
    held = list(folder.glob("*/held"))
    if not held:
        pytest.skip("mounting is not permitted")
    subprocess.run(["umount", *held], check=True)
    assert process.returncode == 0, err
    assert not defects(folder, SMALL)


def test_the_package_mirror(tmp_path):
    """For real, where the system has one that answers."""
    if not shutil.which("apt-get"):
        pytest.skip("no apt-get on this system")
    outcome = fetch(tmp_path, files=FILES, env={"PATH": "/usr/bin:/bin"})
    if outcome.status and (
        reason := re.search("package mirror: (apt-get|too slow).*", outcome.err)
    ):
        pytest.skip(reason[0])
    assert outcome.status == 0, outcome.err
    assert not defects(tmp_path, *FILES)
