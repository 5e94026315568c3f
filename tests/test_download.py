"""The downloader: what it never replaces, what it fetches, and how it meets what goes wrong.

No test needs a network, apt-get or the real data, but for the two at the end: small files stand in
for the real ones. The parts of the program come first, each before what builds on it.
"""

import contextlib
import gzip
import io
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
import tracemalloc
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import server
from helpers import DATA_FILES, ROOT, run

import download_data
from download_data import COURSE, SYSTEM, ZALANDO, UserError, first_cause, mismatch, show, write_npy

REAL = download_data.FILES
COURSE_SERVER, ZALANDO_SERVER = "the course's server", "Zalando's server"
PACKAGE_MIRROR = "the system's package mirror"
OFFLINE = "offline://"  # requests knows no such protocol, so it fails without asking any network

needs_posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")
needs_permissions = pytest.mark.skipif(
    os.name != "posix" or os.geteuid() == 0, reason="permissions bind neither root nor Windows"
)


# --- Stand-ins for the real files -----------------------------------------------------------------


def npy_and_idx(values):
    """The bytes of the course's and of Zalando's file with these values."""
    labels, npy = values.ndim == 1, io.BytesIO()
    axes = (len(values),) if labels else (len(values), 28, 28)
    np.save(npy, values.astype("<i4" if labels else "<f4"))
    header = struct.pack(f">4B{len(axes)}I", 0, 0, 8, len(axes), *axes)  # 8: unsigned bytes
    return npy.getvalue(), gzip.compress(header + values.tobytes(), 1)


def stand_in(real, n):
    """A file of n labels or images, and the bytes of its two forms."""
    rng = np.random.default_rng(n)
    labels = "labels" in real.name
    values = rng.integers(10 if labels else 256, size=n if labels else (n, 784), dtype=np.uint8)
    npy, idx = npy_and_idx(values)
    how = {"dtype": "<i4" if labels else "<f4", "shape": values.shape}
    file = real._replace(size=len(npy), sha256=sha256(npy).hexdigest(), **how)
    return file, {file.name: npy, file.idx_name: idx}


FILES, contents = zip(*map(stand_in, REAL, (20, 31, 42, 53)))
CONTENT = {name: content for both in contents for name, content in both.items()}
NAMES = {file.name for file in FILES}
FIRST, SECOND, _, LAST = FILES


def flip_a_bit(content):
    """Change one value: a label by 1, a pixel a little."""
    if content.startswith(b"\x1f\x8b"):
        return gzip.compress(flip_a_bit(gzip.decompress(content)))
    changed = bytearray(content)
    changed[-8] ^= 1
    return bytes(changed)


# --- Fixtures and helpers -------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """FILES are the stand-ins, and no source can be reached, unless a test says otherwise."""
    monkeypatch.setattr(download_data, "FILES", FILES)
    monkeypatch.setattr(download_data, "COURSE", OFFLINE)
    monkeypatch.setattr(download_data, "ZALANDO", OFFLINE)
    monkeypatch.setattr(download_data, "SYSTEM", Path("/usr/share/not installed"))
    monkeypatch.setenv("PATH", str(tmp_path / "tools"))  # without apt-get
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def folder(tmp_path):
    """Where the data go. The folder does not exist yet."""
    return tmp_path / "data"


@pytest.fixture
def serve():
    """Start servers, each with a behaviour of server.py and the contents of its files."""
    with contextlib.ExitStack() as stack:
        yield lambda behaviour=server.good, files=CONTENT: stack.enter_context(
            server.serving(files, behaviour)
        )


def attempt(folder, mirror=None):
    """Call ensure(): the text of its error ("" if there is none), and the lines that it shows."""
    error, stderr = "", io.StringIO()
    with contextlib.redirect_stderr(stderr):
        try:
            download_data.ensure(folder, mirror)
        except UserError as raised:
            error = str(raised)
    return error, without_progress(stderr.getvalue())


def without_progress(stderr):
    """The lines, without those of progress, which a slow machine prints every ten seconds."""
    progress = re.compile(r"downloading |\S+: \S+ of \S+ MB$")
    return [line for line in stderr.splitlines() if not progress.match(line)]


def put(folder, *names, change=lambda content: content):
    """Put files into the folder, right or changed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(change(CONTENT[name]))
    return folder


def found(folder):
    """The names of all that is in the folder; what is not one of the right files is marked."""

    def is_right(path):
        return path.name in NAMES and path.is_file() and path.read_bytes() == CONTENT[path.name]

    return {path.name if is_right(path) else f"wrong: {path.name}" for path in folder.iterdir()}


def traces(folder):
    """What a write would change."""
    stats = {path.name: path.lstat() for path in (folder, *folder.iterdir())}
    return {name: (s.st_ino, s.st_size, s.st_mtime_ns) for name, s in stats.items()}


def verified(file, folder, source):
    return f"{folder / file.name}: {file.size / 1e6:.2f} MB from {source}, verified"


def assert_delivered(folder, source, error, lines):
    """Check that all files came from this source, and that the last lines say so."""
    assert found(folder) == NAMES, f"{error} {lines}"
    assert not error, f"all files are there, but ensure() says: {error}"
    assert lines[-4:] == [verified(file, folder, source) for file in FILES]


# --- URLs and names ------------------------------------------------------------------------------


def test_the_urls_and_names_of_the_sources():
    """Most other tests replace them, so they would not notice a typing error."""
    assert COURSE == "https://s3.amazonaws.com/jrwprojects/"
    assert ZALANDO == "https://fashion-mnist.s3.eu-central-1.amazonaws.com/"
    assert str(SYSTEM) == str(Path("/usr/share/datasets/fashion-mnist"))
    assert download_data.PACKAGE == "dataset-fashion-mnist"
    assert [(file.name, file.idx_name) for file in REAL] == [
        ("fashion_mnist_test_labels.npy", "t10k-labels-idx1-ubyte.gz"),
        ("fashion_mnist_train_labels.npy", "train-labels-idx1-ubyte.gz"),
        ("fashion_mnist_test_images.npy", "t10k-images-idx3-ubyte.gz"),
        ("fashion_mnist_train_images.npy", "train-images-idx3-ubyte.gz"),
    ], "other names, or another order than smallest first"


# --- Lines for the user ---------------------------------------------------------------------------


def test_the_root_cause_is_reported():
    """requests and urllib3 wrap it, some with `raise ... from`, some without."""
    root, retries, of_requests = OSError("refused"), OSError("Max retries"), OSError("in vain")
    retries.__cause__ = retries.__context__ = root
    of_requests.__context__ = retries
    assert first_cause(of_requests, None) == "refused"
    retries.__cause__ = None  # as by `raise ... from None`
    assert first_cause(of_requests, None) == "Max retries"


def test_a_cause_is_a_short_line_that_can_be_printed():
    assert first_cause(ValueError(), None) == "ValueError", "without a text, its type is said"
    assert first_cause(ValueError("\x1b[2J\aa\rb\nc"), None) == "[2Jabc"
    assert len(first_cause(ValueError("long " * 1000), None)) == 200


def test_without_a_terminal_a_line_of_progress_comes_every_ten_seconds(monkeypatch, capsys):
    clock = SimpleNamespace()
    monkeypatch.setattr(download_data, "time", clock)
    monkeypatch.setattr(download_data, "last_shown", 0)
    for seconds in range(0, 40, 4):  # so the first after ten seconds is that after twelve
        clock.monotonic = lambda seconds=seconds: seconds
        show(f"after {seconds} seconds", live=True)
    lines = capsys.readouterr().err.splitlines()
    expected = [f"after {seconds} seconds" for seconds in (12, 24, 36)]
    assert lines == expected, f"shown are {lines}"


def test_a_terminal_shows_a_message_at_its_full_length(monkeypatch, capsys):
    """Only a live line must not wrap, as it could not be overwritten."""
    monkeypatch.setenv("COLUMNS", "45")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    message = "a message, and its cause. " * 9
    show(message)
    assert capsys.readouterr().err == f"\r{'':44}\r{message}\n"
    show(message, live=True)
    live = capsys.readouterr().err
    assert len(live.rpartition("\r")[2]) < 45, "a live line would wrap"
    assert live == f"\r{'':44}\r{message[:44]}"


# --- Zalando's files become those of the course ---------------------------------------------------


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.idx_name)
def test_an_idx_file_becomes_the_npy_file_to_the_byte(tmp_path, file):
    put(tmp_path, file.idx_name)
    write_npy(file, tmp_path / file.idx_name, tmp_path / file.name)
    made, right = np.load(tmp_path / file.name), np.load(io.BytesIO(CONTENT[file.name]))
    assert (made.dtype.str, made.shape) == (right.dtype.str, right.shape)
    assert np.array_equal(made, right), "the values differ"
    assert (tmp_path / file.name).read_bytes() == CONTENT[file.name]


def test_a_gzip_bomb_is_not_unpacked(tmp_path):
    idx = tmp_path / FIRST.idx_name
    idx.write_bytes(gzip.compress(bytes(10**8)))
    tracemalloc.start()
    with contextlib.suppress(ValueError):  # the values do not fit the shape
        write_npy(FIRST, idx, tmp_path / FIRST.name)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**7, f"{peak / 1e6:.0f} MB were unpacked for a file of {FIRST.size} bytes"


# --- One download ---------------------------------------------------------------------------------


def test_a_body_is_written_as_it_is_with_few_lines_of_progress(tmp_path, capsys, serve):
    """With a line for each piece of 64 KiB, a file of 188 MB would make 2,900 lines."""
    body = bytes(64 * 2**16)
    source = serve(files={"big": body})
    download_data.download(f"{source.url}big", tmp_path / "big", len(body))
    assert (tmp_path / "big").read_bytes() == body
    # Many servers compress if they may. Then the bytes, and so the SHA-256, would be others.
    assert source.headers["Accept-Encoding"] == "identity"
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) < 32, f"{len(lines)} lines for 64 pieces: {lines[:3]}"


@pytest.mark.parametrize("end", ["", "/"])
def test_the_url_of_a_folder_may_end_with_a_slash_or_not(tmp_path, serve, end):
    source = serve()
    with contextlib.suppress(Exception):
        download_data.from_server(f"{source.url}folder{end}", FIRST, tmp_path / "file")
    assert source.asked == [f"/folder/{FIRST.name}"], f"asked for was {source.asked}"


@pytest.mark.parametrize("stall", [server.stall, server.stall_midway])
def test_the_time_limit_holds_before_and_within_a_body(tmp_path, monkeypatch, serve, stall):
    monkeypatch.setattr(download_data, "TIMEOUT", 0.5)
    with pytest.raises(Exception) as error:  # noqa: PT011  (requests or urllib3)
        download_data.download(serve(stall).url + FIRST.name, tmp_path / "file", FIRST.size)
    cause = first_cause(error.value, None)
    assert "timed out" in cause, f"the time limit of 0.5 s does not hold: {cause}"


@pytest.mark.parametrize("name", [FIRST.name, FIRST.idx_name])
def test_a_body_without_end_is_given_up(tmp_path, monkeypatch, serve, name):
    """This holds for the course's server and for Zalando's."""
    megabytes = 0

    def endless(handler, body):
        nonlocal megabytes
        server.start(handler)
        while megabytes < 60:
            handler.wfile.write(bytes(10**6))
            megabytes += 1

    source = serve(endless)
    monkeypatch.setattr(download_data, "ZALANDO", source.url)
    deliver = partial(download_data.from_server, source.url)
    if name == FIRST.idx_name:
        deliver = download_data.from_zalando
    with contextlib.suppress(Exception):
        deliver(FIRST, tmp_path / "file.npy")
    assert source.asked == [f"/{name}"]
    assert megabytes < 30, f"{megabytes} MB were sent for a file of {FIRST.size} bytes"


# --- The sources ----------------------------------------------------------------------------------


def test_the_mirror_is_tried_first_and_then_what_costs_least(tmp_path, monkeypatch):
    names = [name for name, _ in download_data.sources(None)]
    assert names == [COURSE_SERVER, ZALANDO_SERVER], f"without a system copy and apt-get: {names}"
    monkeypatch.setattr(download_data, "SYSTEM", tmp_path)
    monkeypatch.setattr("shutil.which", lambda name: name)
    first, *others = [name for name, _ in download_data.sources("the mirror")]
    assert first == "the mirror", f"{first} is tried before the mirror"
    expected = [str(tmp_path), COURSE_SERVER, ZALANDO_SERVER, PACKAGE_MIRROR]
    assert others == expected, f"this is the order: {others}"


def test_a_source_that_lacks_a_file_is_asked_for_the_others(folder, serve):
    source = serve(files={name: CONTENT[name] for name in NAMES - {FIRST.name}})
    _, lines = attempt(folder, f"{source.url}folder/")
    expected = [f"/folder/{file.name}" for file in FILES]
    assert source.asked == expected, f"asked for were {source.asked}, after {lines[:1]}"
    assert NAMES - found(folder) == {FIRST.name}


def test_a_source_out_of_reach_is_tried_once(folder, monkeypatch, serve):
    monkeypatch.setattr(download_data, "COURSE", serve().url)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens there
        mirror = f"http://127.0.0.1:{closed.getsockname()[1]}/"
        error, lines = attempt(folder, mirror)
    assert_delivered(folder, COURSE_SERVER, error, lines)
    tried = [line for line in lines if line.startswith(mirror)]
    assert len(tried) == 1, f"it is tried {len(tried)} times: {tried}"
    assert "refused" in tried[0], f"not the root cause: {tried[0]}"
    assert "Max retries" not in tried[0], f"not the root cause: {tried[0]}"


# This apt-get writes its arguments to the file `log`, each on a line, and -- after the last.
# It delivers a package, although its update fails: another repository has it.
APT_GET = r"""
here=${0%/*}
printf '%s\n' "$@" -- >> "$here/log"
for argument; do
    case $argument in
        update) echo "E: a repository is down" >&2; exit 100 ;;
        download) cp "$here/package" package.deb ;;
    esac
done
"""
DPKG_DEB = 'tar -xf "$2" -C "$3"'  # called as dpkg-deb -x PACKAGE FOLDER, for a tar archive


def put_tools(tmp_path, monkeypatch, apt_get):
    """Put these shell scripts before the tools of the system."""
    tools = put(tmp_path / "tools")
    for name, script in {"apt-get": apt_get, "dpkg-deb": DPKG_DEB}.items():
        (tools / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.defpath}")
    return tools


def put_package(tmp_path, monkeypatch, change=lambda content: content):
    """Let apt-get deliver a package of Zalando's files."""
    tools = put_tools(tmp_path, monkeypatch, APT_GET)
    unpacked = put(tmp_path / "unpacked", *(file.idx_name for file in FILES), change=change)
    with tarfile.open(tools / "package", "w") as package:
        package.add(unpacked, download_data.SYSTEM.relative_to("/"))
    return tools


SOURCES = "a mirror", "a system copy", COURSE_SERVER, ZALANDO_SERVER, PACKAGE_MIRROR


def offer(source, tmp_path, monkeypatch, serve, change=lambda content: content):
    """Let this source alone have the files. Return its name in lines, and the mirror's URL."""
    if source == PACKAGE_MIRROR:
        if os.name != "posix":
            pytest.skip("needs POSIX")
        put_package(tmp_path, monkeypatch, change)
        return source, None
    if source == "a system copy":
        system = put(tmp_path / "system", *(file.idx_name for file in FILES), change=change)
        monkeypatch.setattr(download_data, "SYSTEM", system)
        return str(system), None
    url = serve(files={name: change(content) for name, content in CONTENT.items()}).url
    if source == "a mirror":
        return f"{url}some/folder", f"{url}some/folder"
    constant = "COURSE" if source == COURSE_SERVER else "ZALANDO"
    monkeypatch.setattr(download_data, constant, url)
    return source, None


def test_a_source_writes_into_a_temporary_folder_only(folder, monkeypatch, serve):
    """A file gets its place when it is verified."""
    written, from_server = [], download_data.from_server

    def record(url, file, path):
        written.append(path)
        from_server(url, file, path)

    monkeypatch.setattr(download_data, "from_server", record)
    attempt(folder, serve().url)
    assert written, "the mirror was not asked"
    for path in written:
        right = path.parent.parent == folder
        assert right, f"a source writes to {path}, not into a temporary folder in {folder}"


@needs_posix
def test_apt_get_updates_and_downloads_once_in_the_temporary_folder(tmp_path, monkeypatch):
    """So it needs no root. The blank in the path must not break the shell's commands."""
    tools = put_package(tmp_path, monkeypatch)
    attempt(tmp_path / "Übung 1")
    calls = (tools / "log").read_text(encoding="utf-8").split("--\n")[:-1]
    assert len(calls) == 2, f"not one update and one download: {calls}"
    assert "update" in calls[0].splitlines()
    assert {"download", "dataset-fashion-mnist"} <= set(calls[1].splitlines())
    for arguments in calls:
        for option in "Dir::State", "Dir::Cache":
            inside = f"^{option}={re.escape(str(tmp_path))}/Übung 1/.fetching-"
            assert re.search(inside, arguments, re.MULTILINE), (
                f"{option} is not inside: {arguments!r}"
            )


@pytest.mark.parametrize("source", SOURCES)
def test_no_source_is_trusted(tmp_path, folder, monkeypatch, serve, source):
    """Each of its files has the right size and one wrong bit."""
    name, mirror = offer(source, tmp_path, monkeypatch, serve, change=flip_a_bit)
    error, lines = attempt(folder, mirror)
    kept = found(folder)
    assert not [path for path in kept if path.endswith(".npy")], f"a wrong file is kept: {kept}"
    assert error, f"ensure() reports success, but the folder has {kept}"
    wrong = [line for line in lines if line.startswith(f"{name}: ") and "wrong content: " in line]
    assert len(wrong) == 4, f"of four wrong files, these were noticed: {wrong}\nin {lines}"


@pytest.mark.parametrize("source", SOURCES)
def test_each_source_delivers_all_files(tmp_path, folder, monkeypatch, serve, source):
    name, mirror = offer(source, tmp_path, monkeypatch, serve)
    error, lines = attempt(folder, mirror)
    assert_delivered(folder, name, error, lines)


@needs_posix
def test_a_failure_of_apt_get_is_one_line_in_any_encoding(tmp_path, folder, monkeypatch):
    script = r"printf 'W: something\nE: f\374r das Paket\n' >&2; exit 100"  # in Latin-1
    put_tools(tmp_path, monkeypatch, script)
    error, lines = attempt(folder)
    failures = [line for line in lines if line.startswith(f"{PACKAGE_MIRROR}: ")]
    assert len(failures) == 1, f"{len(failures)} lines: {failures}"
    assert re.search(r": E: f.+r das Paket$", failures[0]), f"not its last line: {failures[0]}"
    assert error.startswith("some files could not be fetched")


# --- From one source to the next ------------------------------------------------------------------


def test_the_line_of_a_failing_source_names_the_next(folder, serve):
    _, lines = attempt(folder, serve(files={}).url)
    *others, last = [line for line in lines if FIRST.name in line]
    following = [line.rpartition("; next: ")[2] for line in others]
    assert following == [COURSE_SERVER, ZALANDO_SERVER], f"as next, these are named: {following}"
    assert "next" not in last, "there is no source after the last"


def test_called_in_an_except_block_ensure_still_reports_the_reason_of_the_source(folder, serve):
    try:
        raise KeyError("of the caller")
    except KeyError:
        _, lines = attempt(folder, serve(server.html_page).url)
    blamed = [line for line in lines if "of the caller" in line]
    assert not blamed, f"the caller's exception is reported: {blamed[0]}"
    assert "wrong content: " in lines[0]


FAULTS = {  # how each is reported: a regular expression, as versions of urllib3 say it differently
    server.cut_short: f"IncompleteRead|has {FIRST.size - 1} bytes",
    server.cut_short_without_length: f"has {FIRST.size - 1} bytes",
    server.too_long: f"more than {FIRST.size} bytes",
    server.html_page: "has 56 bytes",
    server.not_found: "404",
    server.control_characters: "404",
    server.reset_midway: "reset|forcibly closed|IncompleteRead",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_after_a_fault_comes_the_next_source(folder, monkeypatch, serve, fault):
    monkeypatch.setattr(download_data, "COURSE", serve().url)
    mirror = serve(fault).url
    error, lines = attempt(folder, mirror)
    assert_delivered(folder, COURSE_SERVER, error, lines)
    assert lines[0].startswith(f"{mirror}: {FIRST.name}: ")
    assert re.search(FAULTS[fault], lines[0]), f"{lines[0]!r} has no {FAULTS[fault]!r}"
    assert lines[0].isprintable(), f"control characters: {lines[0]!r}"


def test_after_a_damaged_idx_file_comes_the_next_source(tmp_path, folder, monkeypatch, serve):
    offer("a system copy", tmp_path, monkeypatch, serve, change=lambda content: content[:-10])
    monkeypatch.setattr(download_data, "COURSE", serve().url)
    error, lines = attempt(folder)
    assert_delivered(folder, COURSE_SERVER, error, lines)


def test_without_requests_other_sources_deliver(tmp_path, folder, monkeypatch, serve):
    """Each server is then out of reach, in one line. The first file is in the system copy only."""
    monkeypatch.setitem(sys.modules, "requests", None)
    system = put(tmp_path / "system", FIRST.idx_name)
    monkeypatch.setattr(download_data, "SYSTEM", system)
    error, lines = attempt(folder)
    assert found(folder) == {FIRST.name}, f"{error}, after these lines: {lines}"
    for name in COURSE_SERVER, ZALANDO_SERVER:
        said = [line for line in lines if line.startswith(f"{name}: ")]
        assert len(said) == 1, f"{len(said)} lines on {name}: {said}"
        assert "requests" in said[0]


# --- Files that are there, and what stays ---------------------------------------------------------


def dangling(path):
    path.symlink_to("nothing")


def pipe(path):
    os.mkfifo(path)


def unreadable(path):
    path.touch(mode=0)


in_half_a_minute = pytest.mark.timeout(30)  # whoever reads a pipe waits for ever
FLIPPED = flip_a_bit(CONTENT[FIRST.name])
FLIPPED_SAID = f"has {FIRST.size} bytes (SHA-256 {sha256(FLIPPED).hexdigest()[:8]}"

each_wrong_file = pytest.mark.parametrize(
    ("make", "said"),
    [
        pytest.param(Path.touch, "has 0 bytes", id="empty"),
        pytest.param(lambda path: path.write_bytes(FLIPPED), FLIPPED_SAID, id="one wrong bit"),
        pytest.param(lambda path: np.save(path, np.ones((4, 4))), "has 256 bytes", id="own array"),
        pytest.param(Path.mkdir, "is not a file", id="folder"),
        pytest.param(dangling, "is not a file", id="dangling link", marks=needs_posix),
        pytest.param(pipe, "is not a file", id="pipe", marks=[needs_posix, in_half_a_minute]),
        pytest.param(unreadable, "cannot be read", id="unreadable", marks=needs_permissions),
    ],
)


@each_wrong_file
def test_wrong_files_are_all_named_and_never_replaced(folder, serve, make, said):
    """And nothing is fetched, although a source has them."""
    put(folder, SECOND.name)
    make(folder / FIRST.name)
    put(folder, LAST.name, change=flip_a_bit)
    before, source = traces(folder), serve()
    error, lines = attempt(folder, source.url)
    assert traces(folder) == before, "a file was written, replaced or removed"
    assert source.asked == [], f"fetched, though files that are there are wrong: {source.asked}"
    assert error, f"ensure() accepts wrong files, with these lines: {lines}"
    assert f"{FIRST.name} {said}" in error, f"{FIRST.name} is not named as wrong: {error}"
    assert LAST.name in error, "another wrong file is not named"
    assert SECOND.name not in error, "a right file is named"
    assert str(folder) in error
    assert "softmax_sgd.py --data-dir DIR" in error


@pytest.mark.parametrize("there", [FIRST, LAST], ids=["the first", "the last"])
def test_only_what_is_missing_is_fetched(folder, serve, there):
    before, source = traces(put(folder, there.name)), serve()
    error, _ = attempt(folder, source.url)
    missing = NAMES - found(folder)
    assert not missing, f"still missing: {missing}; the error was: {error!r}"
    assert f"/{there.name}" not in source.asked, "what is there is fetched again"
    assert traces(folder)[there.name] == before[there.name], "a right file was replaced"


def test_right_files_need_no_source_and_nothing_is_written(tmp_path, folder):
    """Not even a temporary folder, as the folder may be read-only."""
    put(folder, *NAMES)
    if os.name == "posix":  # one of them is a link
        (folder / LAST.name).rename(tmp_path / "elsewhere")
        (folder / LAST.name).symlink_to(tmp_path / "elsewhere")
    before = traces(folder)
    assert attempt(folder) == ("", [])
    assert traces(folder) == before, "something was written"


def right(path):
    path.write_bytes(CONTENT[path.name])


@pytest.mark.parametrize("make", [right, Path.touch, pytest.param(dangling, marks=needs_posix)])
def test_what_appears_during_the_download_is_not_replaced(folder, serve, make):
    """If it is wrong, it is named, and the download ends."""
    path, before = folder / FIRST.name, []

    def let_it_appear(handler, body):
        if not before:
            make(path)
            before.append(path.lstat())
        server.good(handler, body)

    error, lines = attempt(folder, serve(let_it_appear).url)
    assert os.path.samestat(path.lstat(), before[0]), "it was replaced"
    if make is right:
        assert not error
        assert found(folder) == NAMES
    else:
        assert FIRST.name in error, f"it is taken for right: {lines}"
        left = found(folder) - {f"wrong: {FIRST.name}"}
        assert not left, f"left over after an error: {left}"


def test_files_that_no_source_has_can_be_placed_by_hand(folder, serve):
    """The error says where they are, how to know them, and where they go."""
    error, _ = attempt(folder, serve(files={FIRST.name: CONTENT[FIRST.name]}).url)
    assert error, "ensure() reports success, but three files are missing"
    advice, *named = error.splitlines()
    assert str(folder) in advice
    assert "dataset-fashion-mnist" in advice
    assert named == [
        f"  {OFFLINE}{file.name}  {file.size} bytes, SHA-256 {file.sha256}" for file in FILES[1:]
    ], "not the three missing files"


def test_for_a_folder_that_cannot_be_written_nothing_is_fetched(tmp_path, serve):
    # Its parent is a file.
    (tmp_path / "parent").touch()
    folder, source = tmp_path / "parent" / "data", serve()
    error, _ = attempt(folder, source.url)
    assert f"cannot be stored in {folder}: " in error
    assert "download_data.py --data-dir DIR" in error
    assert source.asked == []


def test_the_free_disk_space_must_hold_the_missing_files_only(folder, monkeypatch, serve):
    free = sum(file.size for file in FILES) - 1
    usage = SimpleNamespace(total=10**9, used=10**9 - free, free=free)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    source = serve()
    error, _ = attempt(folder, source.url)
    assert source.asked == [], "files were fetched without room for all"
    assert "are needed" in error
    error, _ = attempt(put(folder, FIRST.name), source.url)
    assert not error, f"refused, though there is room for what is missing: {error}"


def test_the_absolute_path_of_a_relative_folder_is_returned(tmp_path, monkeypatch, serve):
    monkeypatch.chdir(tmp_path)
    returned = download_data.ensure("Übung 1/große Dateien", serve().url)
    assert returned == tmp_path / "Übung 1" / "große Dateien"
    assert found(returned) == NAMES


# --- The program ----------------------------------------------------------------------------------


@pytest.fixture
def program(tmp_path):
    """A copy of the program in which FILES are the stand-ins, and no source can be reached."""
    text = (ROOT / "download_data.py").read_text(encoding="utf-8")
    functions, start, end = text.rpartition('if __name__ == "__main__":')
    constants = [
        f"FILES = {FILES}",
        f"COURSE = ZALANDO = {OFFLINE!r}",
        "SYSTEM = Path('/usr/share/not installed')",
        "TIMEOUT = 60  # however slow this machine is just now",
    ]
    copy = put(tmp_path / "program") / "download_data.py"
    copy.write_text("\n".join([functions, *constants, start + end]), encoding="utf-8")
    return copy


@contextlib.contextmanager
def started(*command):
    """A process, which is ended at the end."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
    with subprocess.Popen([sys.executable, *map(str, command)], **pipes) as process:
        try:
            yield process
        finally:
            process.kill()  # if it still runs


def test_the_default_folder_is_data_beside_the_program(tmp_path, program):
    """Wherever it is started, and by whatever path."""
    put(program.parent / "data", *NAMES)
    elsewhere = put(tmp_path / "elsewhere")
    for path in program, Path("..", "program", "download_data.py"):
        done = subprocess.run([sys.executable, path], cwd=elsewhere, capture_output=True, text=True)
        said = f"{program.parent / 'data'}: all four files are present and verified\n"
        assert (done.stderr, done.stdout) == (said, ""), "it looked elsewhere"
        assert done.returncode == 0


def test_the_options_are_used_and_success_is_status_0(folder, program, serve):
    source = serve()
    done = run(program, "--data-dir", folder, "--mirror", source.url)
    assert len(source.asked) == 4, f"the mirror is not used: {done.stderr}"
    assert folder.exists(), f"the folder is not used: {done.stderr}"
    assert found(folder) == NAMES
    assert done.returncode == 0, f"status {done.returncode} after {done.stderr}"


def test_an_error_is_status_1_and_a_line(folder, program):
    put(folder, FIRST.name, change=flip_a_bit)
    done = run(program, "--data-dir", folder)
    assert done.returncode == 1, f"status {done.returncode} after {done.stderr}"
    assert done.stderr.startswith(f"download_data.py: {folder} has files that are wrong")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--mirror", "classroom:8000", "http:// or https://"),
        ("--mirror", "http:/classroom", "http:// or https://"),
        ("--data-dir", "", "empty"),
    ],
)
def test_a_useless_option_is_refused_before_anything_is_done(program, option, value, said):
    """With a wrong mirror, a whole class would fetch 220 MB each from the course's server."""
    done = run(program, option, value, cwd=program.parent)
    assert done.returncode == 2, f"status {done.returncode} after {done.stderr}"
    assert said in done.stderr.splitlines()[-1]
    assert [*program.parent.iterdir()] == [program]


@needs_posix
@pytest.mark.parametrize("behaviour", [server.stall, server.stall_midway])
def test_after_ctrl_c_only_verified_files_stay(folder, program, serve, behaviour):
    """The first file is verified; of the second comes nothing, or one half."""

    def good_once(handler, body):
        (server.good if body == CONTENT[FIRST.name] else behaviour)(handler, body)

    source = serve(good_once)
    with started(program, "--data-dir", folder, "--mirror", source.url) as process:
        while len(source.asked) < 2:
            assert process.poll() is None, f"it ended too early: {process.communicate()}"
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate()
    assert process.returncode == 130, f"status {process.returncode} after {stderr}"
    assert without_progress(stderr)[-1] == "interrupted"
    assert found(folder) == {FIRST.name}


def test_two_at_once_both_succeed(folder, program, serve):
    """Windows does not open or replace a file that is just being moved: there, one may fail."""
    both = threading.Barrier(2)

    def when_both_have_asked(handler, body):
        if body == CONTENT[FIRST.name]:
            both.wait(60)
        server.good(handler, body)

    command = program, "--data-dir", folder, "--mirror", serve(when_both_have_asked).url
    with started(*command) as one, started(*command) as other:
        stderrs = [process.communicate()[1] for process in (one, other)]
    statuses = [one.returncode, other.returncode]
    assert 0 in statuses, stderrs
    if os.name == "posix":
        assert statuses == [0, 0], stderrs
    assert found(folder) == NAMES


# --- The real files, and the real package ---------------------------------------------------------


def test_the_real_files_are_as_they_are_declared(data_dir, tmp_path):
    """And of Zalando's files with the same values, the program makes the same bytes."""
    assert {file.name for file in REAL} == set(DATA_FILES)
    for file in REAL:
        content, array = (data_dir / file.name).read_bytes(), np.load(data_dir / file.name)
        assert (len(content), sha256(content).hexdigest()) == (file.size, file.sha256)
        assert (array.dtype.str, array.shape) == (file.dtype, file.shape)
        (tmp_path / "idx").write_bytes(npy_and_idx(array.astype(np.uint8))[1])
        write_npy(file, tmp_path / "idx", tmp_path / "made.npy")
        assert (tmp_path / "made.npy").read_bytes() == content, f"{file.name} is made differently"


@pytest.mark.network
def test_the_real_package_has_the_real_files(folder, monkeypatch):
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.setattr(download_data, "FILES", REAL)
    monkeypatch.setattr(download_data, "SYSTEM", SYSTEM)
    if SYSTEM.exists() or PACKAGE_MIRROR not in dict(download_data.sources(None)):
        pytest.skip("needs apt-get, and that the package is not installed")
    error, lines = attempt(folder)
    assert not error, f"{error}\nafter these lines: {lines}"
    assert lines[-4:] == [verified(file, folder, PACKAGE_MIRROR) for file in REAL]
    assert not any(mismatch(folder / file.name, file) for file in REAL)
