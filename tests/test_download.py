"""The downloader: what it never replaces, what it fetches, and how it meets what goes wrong.

In this order: files that are there; each source; faults of servers and of IDX files; no source,
disks and folders; Ctrl-C, two at once, the terminal; the system's package.
"""

import contextlib
import filecmp
import gzip
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from hashlib import sha256
from types import SimpleNamespace

import numpy as np
import pytest
import server
from helpers import ROOT, run

import download_data
from download_data import FILES, SYSTEM

FIRST, SECOND, IMAGES, _ = FILES
LABELS = FIRST, SECOND  # the two small files

# How the program says it.
COURSE_SERVER, ZALANDO_SERVER = "the course's server", "Zalando's server"
PACKAGE_MIRROR = "the system's package mirror"
WRONG_CONTENT = "wrong content: "


def has(size):
    return f"has {size} bytes"


needs_posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")
needs_permissions = pytest.mark.skipif(
    os.name != "posix" or os.geteuid() == 0, reason="permissions bind neither root nor Windows"
)


# --- Fixtures and helpers -------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def offline(data_dir, tmp_path, monkeypatch):
    """Unless a test says otherwise, the labels are wanted, and no source can be reached."""
    monkeypatch.setattr(download_data, "FILES", LABELS)
    monkeypatch.setattr(download_data, "SYSTEM", SYSTEM / "not installed")
    monkeypatch.setenv("PATH", str(tmp_path / "tools"))  # without apt-get
    monkeypatch.setenv(
        "https_proxy", "no-proxy://"
    )  # which fails at once, so the web is unreachable
    monkeypatch.setenv("no_proxy", "127.0.0.1,nowhere.invalid")


@pytest.fixture
def serve():
    """Start servers, each with a behaviour of server.py."""
    with contextlib.ExitStack() as stack:
        yield lambda behaviour: stack.enter_context(server.serving(behaviour))


@pytest.fixture
def download(capfd):
    """Run the program here: its exit status, and its lines on stderr."""

    def call(folder, mirror=None):
        arguments = ["--data-dir", str(folder), *(["--mirror", mirror] if mirror else [])]
        status = 0
        try:
            download_data.main(arguments)
        except SystemExit as ended:
            status = ended.code
        stdout, stderr = capfd.readouterr()
        assert stdout == "", "stdout is not for messages"
        return status, without_progress(stderr)

    return call


@pytest.fixture
def apt_get(tmp_path, monkeypatch):
    """Make a shell script the only apt-get."""

    def make(script):
        tools = tmp_path / "tools"
        tools.mkdir()
        (tools / "apt-get").write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        (tools / "apt-get").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tools}:{os.defpath}")

    return make


# It delivers once, and works in its own folder only, as it must for a user who is not root. Its
# update fails, which does no harm: another repository has the package.
APT_GET = """
echo "Reading package lists..."
case "$3 and $5: $6 $7" in
    "Dir::State=$PWD and Dir::Cache=$PWD: update ")
        touch updated; echo "E: a repository is down" >&2; exit 100 ;;
    "Dir::State=$PWD and Dir::Cache=$PWD: download dataset-fashion-mnist")
        [ -e updated ] && mv "{deb}" . ;;
    *) echo "E: the apt-get of this test does not understand: $*" >&2; exit 100 ;;
esac
"""
CONTROL = """\
Package: dataset-fashion-mnist
Version: 1
Architecture: all
Maintainer: Nobody <nobody@example.org>
Description: images
"""


@pytest.fixture
def package(tmp_path, apt_get):
    """Make a package of Zalando's files, right or changed, and an apt-get that delivers it."""
    if not shutil.which("dpkg-deb", path=os.defpath):
        pytest.skip("needs dpkg-deb")

    def make(*files, change=lambda body: body, links=()):
        root, deb = tmp_path / "package", tmp_path / "the.deb"
        # Where from_package looks for them, which `offline` has changed.
        put_idx(root / download_data.SYSTEM.relative_to("/"), *files, change=change)
        for name, target in links:
            (root / name).symlink_to(target)
        (root / "DEBIAN").mkdir()
        (root / "DEBIAN" / "control").write_text(CONTROL)
        apt_get(APT_GET.format(deb=deb))
        subprocess.run(["dpkg-deb", "-Znone", "-b", root, deb], check=True, capture_output=True)

    return make


def without_progress(stderr):
    """The lines, without those of progress, which a slow machine prints every ten seconds."""
    lines = stderr.removesuffix("\n").split("\n")
    others = [
        line for line in lines if not (line.endswith(" MB") or line.startswith("downloading"))
    ]
    assert len(lines) - len(others) < 30, "a line for each piece of a file: progress is not live"
    return others


def put_idx(folder, *files, change=lambda body: body):
    """Put Zalando's files into the folder, right or changed."""
    folder.mkdir(parents=True)
    for file in files:
        (folder / file.idx_name).write_bytes(change(server.content(file.idx_name)))
    return folder


def names(files):
    return {file.name for file in files}


def found(folder):
    """The names of all that is in the folder; what is not one of the right files is marked."""

    def marked(path):
        original = ROOT / "data" / path.name
        right = original.exists() and filecmp.cmp(path, original, shallow=False)
        return path.name if right else f"wrong: {path.name}"

    return {marked(path) for path in folder.iterdir()}


def verified(file, folder, source):
    return f"{folder / file.name}: {file.size / 1e6:.2f} MB from {source}, verified"


def assert_success(folder, source, status, lines):
    """Check that all files that are wanted came from this source, and that the lines say so."""
    files = download_data.FILES
    expected = [verified(file, folder, source) for file in files]
    assert lines == [*expected, f"{folder}: all four files are present and verified"]
    assert status == 0
    assert found(folder) == names(files)


def traces(folder):
    """What a write would change."""
    stats = {path.name: path.lstat() for path in (folder, *folder.iterdir())}
    return {name: (s.st_ino, s.st_size, s.st_mtime_ns) for name, s in stats.items()}


# --- Files that are there -------------------------------------------------------------------------


def test_right_files_need_no_network_and_nothing_is_written(data_dir, tmp_path):
    """They are in the folder data beside the program, wherever it is started."""
    (tmp_path / "requests.py").write_text("raise ImportError('requests is not needed for this')")
    before = traces(data_dir)
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = run("download_data.py", env=env, cwd=tmp_path)
    assert done.stderr == f"{data_dir}: all four files are present and verified\n"
    assert done.stdout == ""
    assert done.returncode == 0
    assert traces(data_dir) == before, "something was written"


@needs_posix
def test_a_link_to_a_right_file_is_right(data_dir, tmp_path, download):
    for file in LABELS:
        (tmp_path / file.name).symlink_to(data_dir / file.name)
    before = traces(tmp_path)
    status, lines = download(tmp_path)
    assert status == 0, lines
    assert traces(tmp_path) == before, "something was written"


# What is in the place of a file.
WRONG = [
    pytest.param(lambda path: path.write_bytes(b""), id="empty"),
    pytest.param(lambda path: path.write_bytes(server.content(path.name)[:-1]), id="cut"),
    pytest.param(lambda path: path.write_bytes(server.content(path.name) + b"\0"), id="padded"),
    pytest.param(lambda path: path.write_text("<!DOCTYPE html><html></html>"), id="HTML"),
    pytest.param(lambda path: np.save(path, np.ones((5, 4))), id="an own array"),
    pytest.param(lambda path: path.mkdir(), id="a folder"),
    pytest.param(lambda path: path.symlink_to("nothing"), id="a dangling link", marks=needs_posix),
    pytest.param(lambda path: path.touch(mode=0), id="unreadable", marks=needs_permissions),
]


@pytest.fixture
def assert_refused(tmp_path, download, serve):
    """Check that just these files are named, and that nothing is fetched or changed."""

    def check(files):
        before, source = traces(tmp_path), serve(server.good)
        status, lines = download(tmp_path, source.url)
        named = re.findall(rf"(\S+\.npy) (?:{has('[0-9]+')}|cannot be read)", lines[0])
        unnoticed = [file.name for file in files if file.name not in named]
        assert not unnoticed, f"wrong, but not named: {unnoticed}\nsaid instead: {lines}"
        assert len(named) == len(files), f"right or missing, but named as wrong: {lines}"
        assert traces(tmp_path) == before, "something was written or replaced"
        assert source.asked() == [], "something was fetched, though a file that is there is wrong"
        assert status == 1, f"exit status {status}"
        assert len(lines) == 1
        assert str(tmp_path) in lines[0]
        assert "softmax_sgd.py --data-dir DIR" in lines[0]
        return lines[0]

    return check


@pytest.mark.parametrize("make", WRONG)
def test_wrong_files_are_all_named_and_never_replaced(tmp_path, assert_refused, make):
    for file in LABELS:
        make(tmp_path / file.name)
    assert_refused(LABELS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_one_wrong_bit_in_a_file_that_is_there_is_noticed(
    data_dir, tmp_path, monkeypatch, assert_refused, file
):
    """Beside it are the right labels; the images are missing."""
    monkeypatch.setattr(download_data, "FILES", FILES)
    for right in LABELS:
        shutil.copy(data_dir / right.name, tmp_path)
    content = server.flip_a_bit(server.content(file.name))
    (tmp_path / file.name).write_bytes(content)
    line = assert_refused([file])
    assert f"{file.name} {has(file.size)} (SHA-256 {sha256(content).hexdigest()[:8]}" in line


# --- Each source ----------------------------------------------------------------------------------


def test_the_urls_of_the_course_and_of_zalando():
    """In most other tests, others stand for them, so that a typing error would not show."""
    assert download_data.COURSE == "https://s3.amazonaws.com/jrwprojects/"
    assert download_data.ZALANDO == "https://fashion-mnist.s3.eu-central-1.amazonaws.com/"


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_mirror_is_asked_for_the_files_of_the_course(tmp_path, download, serve, slash):
    source = serve(server.good)
    mirror = f"{source.url}some/folder{slash}"
    status, lines = download(tmp_path, mirror)
    assert source.asked() == [f"/some/folder/{file.name}" for file in LABELS], lines
    # Many servers compress if they may. Then the bytes, and so the SHA-256, would be others.
    assert "accept-encoding: identity\r\n" in source.requests[0].lower()
    assert_success(tmp_path, mirror, status, lines)


def test_zalandos_files_become_those_of_the_course(tmp_path, monkeypatch, download, serve):
    """All four of them, to the byte."""
    source = serve(server.good)
    monkeypatch.setattr(download_data, "FILES", FILES)
    monkeypatch.setattr(download_data, "ZALANDO", source.url)
    status, (_, *lines) = download(tmp_path)  # the first line is on the course's server
    assert source.asked() == [
        "/t10k-labels-idx1-ubyte.gz",
        "/train-labels-idx1-ubyte.gz",
        "/t10k-images-idx3-ubyte.gz",
        "/train-images-idx3-ubyte.gz",
    ], lines
    assert_success(tmp_path, ZALANDO_SERVER, status, lines)


def test_a_system_copy_needs_no_network(tmp_path, monkeypatch, download):
    system = put_idx(tmp_path / "system", *LABELS)
    monkeypatch.setattr(download_data, "SYSTEM", system)
    status, lines = download(tmp_path / "data")
    assert_success(tmp_path / "data", system, status, lines)


def test_of_an_incomplete_system_copy_the_rest_is_used(tmp_path, monkeypatch, download, serve):
    system = put_idx(tmp_path / "system", SECOND)
    monkeypatch.setattr(download_data, "SYSTEM", system)
    monkeypatch.setattr(download_data, "COURSE", serve(server.good).url)
    status, (missing, *lines) = download(tmp_path / "data")
    assert missing.startswith(f"{system}: {FIRST.name}: "), missing
    assert lines[0] == verified(SECOND, tmp_path / "data", system)
    assert lines[1] == verified(FIRST, tmp_path / "data", COURSE_SERVER)
    assert status == 0, lines


def test_no_source_is_trusted(tmp_path, monkeypatch, download, serve):
    """In this order, each offers a file of the right size with one wrong bit."""
    mirror, course, zalando = (serve(server.one_bit_flipped).url for _ in range(3))
    system = put_idx(tmp_path / "system", FIRST, change=server.flip_a_bit)
    monkeypatch.setattr(download_data, "FILES", [FIRST])
    monkeypatch.setattr(download_data, "SYSTEM", system)
    monkeypatch.setattr(download_data, "ZALANDO", zalando)
    monkeypatch.setattr(download_data, "COURSE", course)
    status, lines = download(tmp_path / "data", mirror)
    servers = COURSE_SERVER, ZALANDO_SERVER
    for source, line in zip((mirror, system, *servers), lines[:4], strict=True):
        assert line.startswith(f"{source}: {FIRST.name}: {WRONG_CONTENT}"), line
    assert status == 1, lines
    assert found(tmp_path / "data") == set()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_one_wrong_bit_in_a_fetched_file_is_noticed(tmp_path, monkeypatch, download, serve, file):
    mirror = serve(server.one_bit_flipped).url
    course = serve(server.good)
    monkeypatch.setattr(download_data, "FILES", [file])
    monkeypatch.setattr(download_data, "COURSE", course.url)
    status, (line, *lines) = download(tmp_path, mirror)
    assert line.startswith(f"{mirror}: {file.name}: {WRONG_CONTENT}"), line
    assert course.asked() == [f"/{file.name}"]
    assert_success(tmp_path, COURSE_SERVER, status, lines)


# --- Faults of servers and of IDX files -----------------------------------------------------------


@pytest.fixture
def assert_next_source_delivers(tmp_path, monkeypatch, download, serve):
    """Check that a mirror fails with one line and this reason, and the next source has the files.

    The reason is a regular expression: systems and versions of urllib3 say it differently.
    """

    def check(mirror, reason, files=(FIRST,)):
        monkeypatch.setattr(download_data, "FILES", files)
        monkeypatch.setattr(download_data, "COURSE", serve(server.good).url)
        status, (line, *lines) = download(tmp_path, mirror)
        source, _, reported = line.partition(f": {FIRST.name}: ")
        assert source == mirror
        assert re.search(reason, reported), f"reported: {reported}; expected: {reason}"
        assert line.isprintable(), f"control characters: {line!r}"
        assert len(reported) <= 200, f"too long: {reported}"
        assert "Max retries" not in line, f"not the root cause: {line}"
        assert_success(tmp_path, COURSE_SERVER, status, lines)

    return check


FAULTS = {  # the right file has 40128 bytes, the page 56
    server.cut_short: f"IncompleteRead|{WRONG_CONTENT}.* {has(40127)}",
    server.cut_short_without_length: f"{WRONG_CONTENT}.* {has(40127)}",
    server.too_long: "more than 40128 bytes",
    server.html_page: f"{WRONG_CONTENT}.* {has(56)}",
    server.not_found: "404 Client Error: Not Found",
    server.unavailable: "503 Server Error: Service Unavailable",
    server.redirect_for_ever: "redirects",
    server.control_characters: "404 Client Error",
    server.reset_midway: "reset by peer|forcibly closed|IncompleteRead",
}


@pytest.mark.parametrize(
    ("fault", "reason"), FAULTS.items(), ids=[fault.__name__ for fault in FAULTS]
)
def test_after_a_fault_comes_the_next_source(serve, assert_next_source_delivers, fault, reason):
    assert_next_source_delivers(serve(fault).url, reason)


@pytest.mark.parametrize("stall", [server.stall, server.stall_midway])
def test_after_a_stall_comes_the_next(monkeypatch, serve, assert_next_source_delivers, stall):
    def stall_and_give_others_time(client, body):
        download_data.TIMEOUT = 60  # for the next source, however slow this machine is just now
        stall(client, body)

    monkeypatch.setattr(download_data, "TIMEOUT", 2)
    assert_next_source_delivers(serve(stall_and_give_others_time).url, "timed out")


def test_a_body_without_end_is_given_up(serve, assert_next_source_delivers):
    sent, given_up = [], threading.Event()  # a list of the megabytes that were sent

    def endless(client, body):
        client.sendall(server.head())
        try:
            while len(sent) < 200:
                client.sendall(bytes(10**6))
                sent.append("1 MB")
        finally:
            given_up.set()

    assert_next_source_delivers(serve(endless).url, "more than 40128 bytes")
    assert given_up.wait(30), "the connection stays open"
    assert len(sent) < 100, f"{len(sent)} MB were sent for a file of 40 kB"


UNREACHABLE = {
    "http://127.0.0.1:1": "refused",
    "http://nowhere.invalid": "[Nn]ame|getaddrinfo|[Tt]ry again",
    "https://127.0.0.1:{port}": "SSL",  # where a server without TLS listens
}


@pytest.mark.parametrize(("url", "reason"), UNREACHABLE.items())
def test_a_mirror_out_of_reach_is_tried_once(serve, assert_next_source_delivers, url, reason):
    """Although two files are wanted."""
    port = serve(server.good).server_address[1]
    assert_next_source_delivers(url.format(port=port), reason, files=LABELS)


def test_a_proxy_is_used(tmp_path, monkeypatch, download, serve):
    proxy = serve(server.good)
    monkeypatch.setenv("http_proxy", proxy.url)
    status, lines = download(tmp_path, "http://mirror.invalid")
    assert proxy.asked() == [f"http://mirror.invalid/{file.name}" for file in LABELS], lines
    assert status == 0, lines


def test_a_mirror_that_is_no_url_is_refused_before_anything_is_fetched(tmp_path, download):
    """Otherwise, a whole class would fetch 220 MB each from the course's server."""
    status, lines = download(tmp_path, "classroom:8000")
    assert lines[-1].endswith("--mirror: a URL that begins with http:// or https:// is expected")
    assert status == 2
    assert found(tmp_path) == set()


IDX_FAULTS = {
    "damaged": lambda body: body[:-8] + bytes(8),
    "cut short": lambda body: body[:-1000],
    "one value more": lambda body: gzip.compress(gzip.decompress(body) + b"0"),
}


@pytest.mark.parametrize("change", IDX_FAULTS.values(), ids=IDX_FAULTS.keys())
def test_after_a_wrong_idx_file_comes_the_next_source(
    tmp_path, monkeypatch, download, serve, change
):
    system = put_idx(tmp_path / "system", FIRST, change=change)
    monkeypatch.setattr(download_data, "SYSTEM", system)
    monkeypatch.setattr(download_data, "FILES", [FIRST])
    monkeypatch.setattr(download_data, "COURSE", serve(server.good).url)
    status, (line, *lines) = download(tmp_path / "data")
    assert line.startswith(f"{system}: {FIRST.name}: "), line
    assert_success(tmp_path / "data", COURSE_SERVER, status, lines)


def test_a_gzip_bomb_is_not_expanded(tmp_path, monkeypatch, download):
    """Of 200 MB of zeros in 200 kB, no more is read than the file may have."""
    zeros = 20 * gzip.compress(bytes(10**7))
    system = put_idx(tmp_path / "system", FIRST, change=lambda body: body + zeros)
    monkeypatch.setattr(download_data, "SYSTEM", system)
    tracemalloc.start()
    try:
        download(tmp_path / "data")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20e6, f"{peak / 1e6:.0f} MB of memory for a file of 40 kB"
    assert found(tmp_path / "data") == set()


# --- No source, disks and folders -----------------------------------------------------------------


def lacks_the_first(client, body):
    if len(body) == FIRST.size:
        server.not_found(client, body)
    else:
        server.good(client, body)


def test_what_no_source_has_is_missing_and_the_rest_is_kept(tmp_path, download, serve):
    mirror = serve(lacks_the_first).url
    status, lines = download(tmp_path, mirror)
    assert lines[0].startswith(f"{mirror}: {FIRST.name}: "), lines[0]
    assert lines[1] == verified(SECOND, tmp_path, mirror), "the source was not asked for the rest"
    assert lines[2].startswith(f"{COURSE_SERVER}: {FIRST.name}: "), lines[2]
    assert lines[3].startswith(f"{ZALANDO_SERVER}: {FIRST.name}: "), lines[3]
    # There is no system copy and no apt-get, so nothing is said of them.
    assert lines[4].startswith("download_data.py: some files could not be fetched"), lines[4]
    assert "the package dataset-fashion-mnist" in lines[4]
    assert str(tmp_path) in lines[4]
    url = f"https://s3.amazonaws.com/jrwprojects/{FIRST.name}"
    assert lines[5:] == [f"  {url}  40128 bytes, SHA-256 {FIRST.sha256}"]
    assert status == 1, lines
    assert found(tmp_path) == {SECOND.name}


def test_a_second_try_fetches_only_what_is_missing(tmp_path, download, serve):
    download(tmp_path, serve(lacks_the_first).url)
    source = serve(server.good)
    status, lines = download(tmp_path, source.url)
    assert source.asked() == [f"/{FIRST.name}"], lines
    assert status == 0, lines
    assert found(tmp_path) == names(LABELS)


def test_a_right_file_that_appears_during_the_download_is_not_replaced(tmp_path, download, serve):
    path, before = tmp_path / FIRST.name, []

    def let_it_appear(client, body):
        if len(body) == FIRST.size:
            path.write_bytes(body)
            before.append(path.stat())
        server.good(client, body)

    status, lines = download(tmp_path, serve(let_it_appear).url)
    assert os.path.samestat(path.stat(), before[0]), "it was replaced"
    assert found(tmp_path) == names(LABELS)
    assert status == 0, lines


def test_a_wrong_file_that_appears_during_the_download_is_named_and_kept(tmp_path, download, serve):
    def let_it_appear(client, body):
        (tmp_path / FIRST.name).write_bytes(b"of the user")
        server.good(client, body)

    status, lines = download(tmp_path, serve(let_it_appear).url)
    assert (tmp_path / FIRST.name).read_bytes() == b"of the user", "it was replaced"
    assert FIRST.name in lines[-1]
    assert "It appeared during the download" in lines[-1]
    assert status == 1, lines
    assert found(tmp_path) == {f"wrong: {FIRST.name}"}, "something else stays"


def a_file(parent):
    parent.touch()


def read_only(parent):
    parent.mkdir(0o555)


@pytest.mark.parametrize("make", [a_file, pytest.param(read_only, marks=needs_permissions)])
def test_a_folder_that_cannot_be_written(tmp_path, download, serve, make):
    make(tmp_path / "parent")
    source = serve(server.good)
    status, lines = download(tmp_path / "parent" / "data", source.url)
    assert f"cannot be stored in {tmp_path / 'parent' / 'data'}: " in lines[0]
    assert "download_data.py --data-dir DIR" in lines[0]
    assert len(lines) == 1
    assert status == 1, lines
    assert source.asked() == []


def test_the_room_for_what_is_missing_is_needed(data_dir, tmp_path, monkeypatch, download, serve):
    """Nothing is fetched without it. With the images there, 1 MB is enough."""
    monkeypatch.setattr(download_data, "FILES", [*LABELS, IMAGES])
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=10**6))
    source = serve(server.good)
    status, lines = download(tmp_path, source.url)
    assert f"cannot be stored in {tmp_path}: 32 MB are needed, 1 MB are free" in lines[0]
    assert len(lines) == 1
    assert status == 1, lines
    assert source.asked() == []

    shutil.copy(data_dir / IMAGES.name, tmp_path)
    status, lines = download(tmp_path, source.url)
    assert status == 0, lines


def test_if_a_file_cannot_be_written_the_files_before_it_are_kept(tmp_path, download, serve):
    """As on a full disk: here, because no file may have more than 100,000 bytes."""
    resource = pytest.importorskip("resource", reason="needs POSIX")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    mirror = serve(server.good).url
    try:
        status, lines = download(tmp_path, mirror)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert lines[0] == verified(FIRST, tmp_path, mirror)
    assert lines[1].startswith(f"{mirror}: {SECOND.name}: [Errno 27]"), lines[1]
    assert status == 1, lines
    assert found(tmp_path) == {FIRST.name}


def test_the_systems_temporary_folder_is_not_used(tmp_path, monkeypatch, download, serve):
    """It may be too small, or on another disk, from which a file cannot be moved at once."""
    mirror = serve(server.good).url
    with monkeypatch.context() as meanwhile:  # undone at once, as pytest's capture uses it, too
        meanwhile.setattr("tempfile.tempdir", str(tmp_path / "no such folder"))
        status, lines = download(tmp_path / "data", mirror)
    assert_success(tmp_path / "data", mirror, status, lines)


def test_a_relative_folder_with_blanks_and_umlauts(tmp_path, monkeypatch, download, serve):
    monkeypatch.chdir(tmp_path)
    mirror = serve(server.good).url
    status, lines = download("Übung 1/große Dateien", mirror)
    assert_success(tmp_path / "Übung 1" / "große Dateien", mirror, status, lines)


# --- Processes: Ctrl-C, two at once, the terminal -------------------------------------------------

CHILD = """
import download_data
download_data.TIMEOUT = 60
download_data.SYSTEM /= "not installed"
download_data.FILES = [f for f in download_data.FILES if f.name in {names}]
download_data.main()
"""


def start(folder, *options):
    """Start the program in a process and session of its own; it wants the labels."""
    code = CHILD.format(names=names(LABELS))
    command = [sys.executable, "-c", code, "--data-dir", str(folder), *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
    return subprocess.Popen(command, cwd=ROOT, start_new_session=os.name == "posix", **pipes)


def press_ctrl_c(process, when):
    """Press Ctrl-C as soon as `when()`, and check that the program ends as it should."""
    while not when() and process.poll() is None:
        time.sleep(0.01)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)  # to apt-get, too, as a terminal does
    stdout, stderr = process.communicate()
    assert stderr.splitlines()[-1] == "interrupted"
    assert process.returncode == 130
    assert stdout == ""


@needs_posix
@pytest.mark.parametrize("behaviour", [server.stall, server.stall_midway])
def test_ctrl_c_during_a_transfer(tmp_path, serve, behaviour):
    """The first file is verified; of the second comes nothing, or one half."""

    def good_once(client, body):
        if len(body) == FIRST.size:
            server.good(client, body)
        else:
            behaviour(client, body)

    source = serve(good_once)
    process = start(tmp_path, "--mirror", source.url)
    press_ctrl_c(process, when=lambda: len(source.asked()) == 2)
    assert found(tmp_path) == {FIRST.name}


@needs_posix
def test_ctrl_c_during_apt_get(tmp_path, apt_get):
    started = tmp_path / "started"
    apt_get(f'touch "{started}"; sleep 60')
    process = start(tmp_path / "data")
    press_ctrl_c(process, when=started.exists)
    assert found(tmp_path / "data") == set()


def test_two_at_once_both_succeed(tmp_path, serve):
    """Windows does not open or replace a file that is just being moved: there, one may fail."""
    both = threading.Barrier(2)

    def when_both_have_asked(client, body):
        if len(body) == FIRST.size:  # the first file
            both.wait(60)
        server.good(client, body)

    mirror = serve(when_both_have_asked).url
    processes = [start(tmp_path / "data", "--mirror", mirror) for _ in range(2)]
    outputs = [process.communicate() for process in processes]
    for process, (_, stderr) in zip(processes, outputs, strict=True):
        if os.name == "posix" or process.returncode == 0:
            assert_success(tmp_path / "data", mirror, process.returncode, without_progress(stderr))
    assert 0 in [process.returncode for process in processes]


def test_without_a_terminal_a_line_of_progress_comes_every_ten_seconds(monkeypatch, capsys):
    monkeypatch.setattr(download_data, "last_shown", 0)
    for seconds in range(0, 40, 4):  # so the first after ten seconds is that after twelve
        monkeypatch.setattr("time.monotonic", lambda seconds=seconds: seconds)
        download_data.show(f"after {seconds} seconds", live=True)
    shown = [f"after {seconds} seconds" for seconds in (12, 24, 36)]
    assert capsys.readouterr().err.splitlines() == shown


def test_a_terminal_shows_a_message_at_its_full_length(monkeypatch, capsys):
    """Only a live line must not wrap, as it could not be overwritten."""
    monkeypatch.setenv("COLUMNS", "45")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    message = "a message, and its cause. " * 9
    download_data.show(message)
    assert capsys.readouterr().err == f"\r{'':44}\r{message}\n"
    download_data.show(message, live=True)
    assert capsys.readouterr().err == f"\r{'':44}\r{message[:44]}"


# --- The system's package -------------------------------------------------------------------------


def test_one_package_has_all_files(tmp_path, download, package):
    """The blank in the path must not break the shell's commands."""
    package(*LABELS)
    data = tmp_path / "Übung 1" / "data"
    status, (_course, _zalando, *lines) = download(data)
    assert_success(data, PACKAGE_MIRROR, status, lines)


@needs_posix
def test_a_failure_of_apt_get_is_one_line(tmp_path, download, apt_get):
    apt_get("echo 'W: something' >&2; echo 'E: Unable to locate package' >&2; exit 100")
    status, lines = download(tmp_path / "data")
    failures = [line for line in lines if line.startswith(f"{PACKAGE_MIRROR}: ")]
    reason = f"{FIRST.name}: E: Unable to locate package"
    assert failures == [f"{PACKAGE_MIRROR}: {reason}"]
    assert status == 1, lines


def test_the_package_is_not_trusted(tmp_path, monkeypatch, download, package):
    monkeypatch.setattr(download_data, "FILES", [FIRST])
    package(FIRST, change=server.flip_a_bit)
    status, lines = download(tmp_path / "data")
    wrong = f"{PACKAGE_MIRROR}: {FIRST.name}: {WRONG_CONTENT}"
    assert any(line.startswith(wrong) for line in lines), lines
    assert status == 1, lines
    assert found(tmp_path / "data") == set()


def test_a_package_writes_nothing_outside_its_folder(tmp_path, download, package):
    """If it were unpacked beside the files, they would be written through these links."""
    outside = tmp_path / "outside"
    outside.write_bytes(b"of the user")
    package(*LABELS, links=[(file.name, outside) for file in LABELS])
    download(tmp_path / "data")
    assert outside.read_bytes() == b"of the user", "a link of the package was written through"
    assert found(tmp_path / "data") == names(LABELS)


@pytest.mark.network
def test_the_real_package(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", os.defpath)
    if SYSTEM.exists() or not shutil.which("apt-get"):
        pytest.skip("needs apt-get, and that the package is not installed")
    apt = ["apt-get", "-o", f"Dir::State={tmp_path}", "-o", f"Dir::Cache={tmp_path}", "update"]
    try:
        update = subprocess.run(apt, capture_output=True, text=True, timeout=60)
        if update.returncode or "Failed to fetch" in update.stderr:
            pytest.skip(f"the package mirror is out of reach: {update.stderr.splitlines()[-1:]}")
        done = run("download_data.py", "--data-dir", tmp_path / "data", timeout=60)
    except subprocess.TimeoutExpired:
        pytest.skip("the package mirror is slow")
    monkeypatch.setattr(download_data, "FILES", FILES)
    _course, _zalando, *lines = without_progress(done.stderr)
    assert_success(tmp_path / "data", PACKAGE_MIRROR, done.returncode, lines)
