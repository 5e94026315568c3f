"""A web server on loopback that misbehaves on command, and the real command to meet it.

The path of a URL names the fault: http://127.0.0.1:…/cut/7/fashion_mnist_test_labels.npy. Where it
names several, as cut+good, the first request for a file meets the first of them, and so on; the
last one stays. The number tells the runs apart.
"""

import contextlib
import gzip
import itertools
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from functools import cache
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import pytest

from download_data import DATA, FILES

ROOT = DATA.parent
SMALL = FILES[0]  # the labels of the test set, 40 KB: the file that most faults strike
MEDIUM = FILES[2]  # the images of the test set, 31 MB: large enough to be caught midway


# --- Bodies ---------------------------------------------------------------------------------------


@cache
def original(name: str) -> bytes:
    """The right content of a file, under its name at the course's server or at Zalando's."""
    file = next(file for file in FILES if name in (file.name, file.idx))
    return (DATA / name).read_bytes() if name == file.name else gzip.compress(idx(file), 1)


def idx(file) -> bytes:
    """The IDX file with the numbers of `file`."""
    values = np.load(DATA / file.name).astype(np.uint8)
    sizes = (len(values), 28, 28)[: 2 * values.ndim - 1]
    return struct.pack(f">4B{len(sizes)}I", 0, 0, 8, len(sizes), *sizes) + values.tobytes()


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def imposter(content: bytes) -> bytes:
    """The same header and size, other values: what MNIST is to Fashion-MNIST."""
    return content[:128] + content[128:][::-1]


# --- Faults ---------------------------------------------------------------------------------------

HOLD, RESET = object(), object()  # to say nothing more until the other side goes; to reset


def head(*lines: str, status: int = 200) -> bytes:
    first = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"
    return "\r\n".join([first, "Connection: close", *lines, "\r\n"]).encode()


def whole(body: bytes, *lines: str, status: int = 200) -> bytes:
    return head(f"Content-Length: {len(body)}", *lines, status=status) + body


def slowly(data: bytes) -> list:
    step = len(data) // 10
    return [piece for i in range(0, len(data), step) for piece in (data[i : i + step], 0.1)]


def forever(first: bytes, *again):
    return itertools.chain([first], itertools.cycle(again))


# What the server sends in place of the file `body`, piece by piece: bytes, a pause of some seconds,
# HOLD or RESET. Then it closes the connection.
FAULTS = {
    "good": lambda body: [whole(body)],
    "leisurely": lambda body: slowly(whole(body)),
    "small-cut": lambda body: [whole(body)[: -1 if len(body) == SMALL.size else None]],
    "html": lambda body: [whole(b"<!DOCTYPE html>\n<html><title>Please log in</title></html>")],
    "xml": lambda body: [whole(b'\n<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>')],
    "empty": lambda body: [whole(b"")],
    "mnist": lambda body: [whole(imposter(body))],
    "one-short": lambda body: [whole(body[:-1])],
    "one-more": lambda body: [whole(body + b"\0")],
    "endless": lambda body: forever(head() + body, bytes(10**6)),
    "cut": lambda body: [whole(body)[:20000]],
    "drip": lambda body: forever(whole(body)[:1000], b"\0", 0.1),
    "drip-head": lambda body: forever(b"HTTP/1.1 200 OK\r\nX-Patience: ", b".", 0.1),
    "stall": lambda body: [HOLD],
    "stall-in-body": lambda body: [half(whole(body)), HOLD],
    "reset": lambda body: [RESET],
    "closed": lambda body: [],
    "reset-in-body": lambda body: [half(whole(body)), 0.1, RESET],
    "busy-for-an-hour": lambda body: [whole(b"", "Retry-After: 3600", status=429)],
    "redirect": lambda body: [whole(b"", "Location: ?again", status=302)],
    "redirect-to-file": lambda body: [whole(b"", f"Location: file://{DATA}/", status=302)],
    "redirect-to-http": lambda body: [
        whole(b"", f"Location: {SERVER.address}/good/0/{SMALL.name}", status=302)
    ],
    "compressed": lambda body: [whole(gzip.compress(body), "Content-Encoding: gzip")],
    "mislabelled": lambda body: [whole(body, "Content-Encoding: gzip")],
    "not-http": lambda body: [b"220 Welcome to FTP\r\n" * 10],
    "control-characters": lambda body: [b"HTTP/1.1 404 \x1b[2J\rSo, " + b"so " * 999 + b"\r\n\r\n"],
}
for status in 206, 403, 404, 408, 500, 503:
    FAULTS[str(status)] = lambda body, status=status: [whole(body, status=status)]

# What may be wrong with a gzipped IDX file, made of the right one.
DAMAGES = {
    "gzip-cut": lambda content: content[:-2000],
    "gzip-wrong-crc": lambda content: content[:-8] + bytes(8),
    "gzip-bomb": lambda content: gzip.compress(gzip.decompress(content) + bytes(4 * 10**7)),
    "one-value-less": lambda content: gzip.compress(gzip.decompress(content)[:-1]),
    "other-values": lambda content: gzip.compress(gzip.decompress(content)[:8] + bytes(10000)),
}


# --- The server -----------------------------------------------------------------------------------


class Server:
    """The server, in a thread: where to reach its faults, and what it was asked for."""

    def __init__(self, tls=None):
        listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.address = f"http{'s' * bool(tls)}://127.0.0.1:{listener.getsockname()[1]}"
        if tls:
            listener = tls.wrap_socket(listener, server_side=True, do_handshake_on_connect=False)
        self.head, self.requests = None, []  # the head of the last request, all their targets
        self.numbers = itertools.count(1)
        threading.Thread(target=self.serve, args=[listener], daemon=True).start()

    def serve(self, listener):
        while True:
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                threading.Thread(target=self.answer, args=[connection], daemon=True).start()

    def answer(self, connection):
        """Read a request; send the pieces of the fault that it names."""
        # The other side may go at any time, or may not like our certificate.
        with contextlib.suppress(OSError), connection:
            head = connection.recv(10**5).decode("latin-1")
            if " HTTP/" not in head:
                return
            target = head.split()[1].partition("?")[0]
            self.head = head
            self.requests.append(target)
            times = self.requests.count(target)
            identity = "Accept-Encoding: identity\r\n" in head
            for piece in self.pieces(target, times, identity):
                if piece is HOLD:
                    connection.recv(1)
                elif piece is RESET:
                    linger = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                elif isinstance(piece, float):
                    time.sleep(piece)
                else:
                    connection.sendall(piece)

    def pieces(self, target, times, identity):
        """What is sent when the target is asked for the first, second, ... time."""
        path = urlsplit(target).path.split("/")
        if len(path) < 4:  # a proxy is asked to connect
            return [whole(b"", status=403)]
        faults = path[1].split("+") if identity else ["compressed"]  # as many servers do
        return FAULTS[faults[min(times, len(faults)) - 1]](original(path[3]))

    def url(self, faults: str) -> str:
        """The URL of a folder that nobody asked for yet."""
        return f"{self.address}/{faults}/{next(self.numbers)}/"

    def asked(self, url: str) -> list[str]:
        """The files of the folder that were asked for."""
        path = url.removeprefix(self.address)
        return [asked.removeprefix(path) for asked in self.requests if asked.startswith(path)]


SERVER = Server()
TAKEN = socket.socket()  # bound but not listening, so that a connection is refused
TAKEN.bind(("127.0.0.1", 0))
CLOSED = f"http://127.0.0.1:{TAKEN.getsockname()[1]}/"


# --- The command ----------------------------------------------------------------------------------


def start(folder, *arguments, files=FILES[:1], mirror=None, before="", env=(), prefix=(), **how):
    """Start the command, to fetch some of the FILES. No source answers but those given.

    Keywords in capitals are constants of download_data, among them SYSTEM, COURSE and ZALANDO;
    other keywords are for Popen. `before` is code to run first, `prefix` a command that runs ours.
    """
    for file in files if "ZALANDO" in how else ():
        original(file.idx)  # made now, lest the server seem to stall
    constants = {"TIMEOUT": 20, "PAUSE": 0.05, "COURSE": CLOSED, "ZALANDO": CLOSED}
    constants |= {"SYSTEM": "no system copy"} | {n: how.pop(n) for n in list(how) if n.isupper()}
    code = f"""
import sys
import download_data as d
sys.argv[0] = "download_data.py"
vars(d).update({constants})
d.SYSTEM = d.Path(d.SYSTEM)
d.FILES = [file for file in d.FILES if file.name in {[file.name for file in files]}]
{before}
sys.exit(d.main())"""
    arguments = ["--data-dir", folder, *(["--mirror", mirror] if mirror else []), *arguments]
    proxies = {"http_proxy", "https_proxy", "all_proxy", "no_proxy"}
    inherited = {name: v for name, v in os.environ.items() if name.lower() not in proxies}
    process = subprocess.Popen(
        [*prefix, sys.executable, "-c", code, *map(str, arguments)],
        env=inherited | {"PATH": "/nonexistent", "PYTHONPATH": str(ROOT)} | dict(env),
        text=True,
        **{name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")} | how,
    )
    process.folder = folder
    return process


def end(process, timeout=60) -> SimpleNamespace:
    """Wait for the command, and hold what every run must keep: plain words and a clean folder."""
    try:
        out, err = process.communicate("typed\n", timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"not over after {timeout} s:\n{process.communicate()}") from None
    err = err or ""
    assert "Traceback" not in err, f"a traceback meets the user:\n{err}"
    assert not re.search(r"\w\(['\"]|\w+\.\w+Error|object at 0x", err), f"Python's words:\n{err}"
    assert not set("\r\x1b") & set(err), f"control characters without a terminal: {err!r}"
    assert not out, f"stdout is not for messages: {out}"
    if process.returncode != -9:
        assert not leftovers(process.folder), f"left behind: {leftovers(process.folder)}"
    return SimpleNamespace(code=process.returncode, err=err)


def run(folder, *arguments, **how) -> SimpleNamespace:
    """Run the command to its end: its exit status `code` and what it says, `err`."""
    return end(start(folder, *arguments, **how))


def leftovers(folder: Path) -> list[Path]:
    """What is in the folder besides the four files."""
    names = {file.name for file in FILES}
    return [path for path in folder.glob("*") if path.name not in names]


def right(folder: Path, *files) -> bool:
    """Whether the folder holds these files, as they should be."""
    paths = {file.name: folder / file.name for file in files}
    return all(p.is_file() and p.read_bytes() == original(name) for name, p in paths.items())


def listing(folder: Path) -> dict:
    """All that a write would change, in the folder and below."""
    names = [Path(at, name) for at, *inside in os.walk(folder) for part in inside for name in part]
    stats = {name: os.lstat(name) for name in (folder, *names)}
    return {name: (s.st_ino, s.st_mode, s.st_size, s.st_mtime_ns) for name, s in stats.items()}


def unprivileged() -> tuple:
    """A prefix for a command, for which permissions count even if root runs it."""
    if os.name != "posix":
        pytest.skip("needs permissions as POSIX has them")
    if os.geteuid():
        return ()
    prefix = shutil.which("setpriv"), "--bounding-set=-dac_override,-dac_read_search"
    if not prefix[0] or subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("permissions do not bind root, and there is no setpriv that works")
    return prefix


@contextlib.contextmanager
def small_disk(folder: Path):
    """Room for the smallest file in the folder, and not for the next one."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not permitted")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)  # also if it is in use


def until(condition, process=None) -> None:
    """Wait for the condition to hold, at most as long as the process runs."""
    deadline = time.monotonic() + 60
    while not condition():
        over = time.monotonic() > deadline or (process and process.poll() is not None)
        assert not over, "what the test waits for never came"
        time.sleep(0.01)
