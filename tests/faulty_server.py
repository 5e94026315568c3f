"""A web server on loopback that misbehaves on command, and the real command to meet it.

The first part of a URL's path names the fault, a number after it tells the runs apart, and the last
part is the file: http://127.0.0.1:…/cut/7/fashion_mnist_test_labels.npy.
"""

import gzip
import itertools
import os
import re
import shlex
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from download_data import FILES

ROOT = Path(__file__).parent.parent
DATA = ROOT / "data"
SMALL = FILES[0]  # the labels of the test set, 40 KB: the file that most faults strike
MEDIUM = FILES[2]  # the images of the test set, 31 MB: large enough to be caught midway
LABELS_ONLY = "d.FILES = d.FILES[:2]"  # spares a run that is one of many the hashing of 220 MB
BOMB = 4 * 10**8  # bytes: far more than the memory that a run may take


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


def imposter(content: bytes) -> bytes:
    """The same header and size, other values: what MNIST is to Fashion-MNIST."""
    return content[:128] + content[128:][::-1]


def flipped(content: bytes) -> bytes:
    """One bit wrong, in the middle."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@cache
def bomb(head: bytes) -> bytes:
    """A small gzip file of `head` and BOMB zeros."""
    press = zlib.compressobj(1, wbits=31)
    zeros = (press.compress(bytes(10**6)) for _ in range(BOMB // 10**6))
    return b"".join([press.compress(head), *zeros, press.flush()])


# What may be wrong with an IDX.gz file: how it is made from the right IDX content, and what the
# command says of it.
damages = {
    "gzip cut short": (lambda raw: gzip.compress(raw)[:-2000], "the gzip file is cut short"),
    "gzip without its CRC": (lambda raw: gzip.compress(raw)[:-8], "the gzip file is cut short"),
    "wrong CRC": (lambda raw: gzip.compress(raw)[:-8] + bytes(8), "incorrect data check"),
    "wrong length": (lambda raw: gzip.compress(raw)[:-4] + bytes(4), "incorrect length check"),
    "bit flipped": (lambda raw: flipped(gzip.compress(raw)), "damaged|not the IDX|SHA-256"),
    "no byte": (lambda raw: b"", "cut short"),
    "gzip of nothing": (lambda raw: gzip.compress(b""), "not the IDX file|0 bytes"),
    "gzip header alone": (lambda raw: gzip.compress(raw)[:10], "cut short"),
    "two members": (lambda raw: gzip.compress(raw) * 2, "goes on after its end"),
    "two half members": (
        lambda raw: gzip.compress(raw[:500]) + gzip.compress(raw[500:]),
        "goes on after its end",
    ),
    "trailing junk": (lambda raw: gzip.compress(raw) + b"junk", "goes on after its end"),
    "bomb": (lambda raw: bomb(raw), "more than the 40128 bytes expected"),
    "bomb from the start": (lambda raw: bomb(b""), "not the IDX file"),
    "not compressed": (lambda raw: raw, "not the file|damaged"),
    "zlib": (lambda raw: zlib.compress(raw), "not the file|damaged"),
    "HTML": (lambda raw: b"<!DOCTYPE html><p>Sorry", "an HTML page|damaged"),
    "wrong magic": (lambda raw: gzip.compress(b"\0\0\x0d" + raw[3:]), "not the IDX file"),
    "magic of images": (lambda raw: gzip.compress(b"\0\0\x08\x03" + raw[4:]), "not the IDX file"),
    "wrong count": (lambda raw: gzip.compress(raw[:7] + b"\0" + raw[8:]), "not the IDX file"),
    "huge count": (lambda raw: gzip.compress(raw[:4] + b"\xff" * 4 + raw[8:]), "not the IDX file"),
    "one value less": (lambda raw: gzip.compress(raw[:-1]), "40124 bytes"),
    "one value more": (lambda raw: gzip.compress(raw + b"\0"), "more than the 40128 bytes"),
    "MNIST": (lambda raw: gzip.compress(raw[:8] + raw[8:][::-1]), "SHA-256"),
}


# --- Faults: what the server does instead of answering with `body` -------------------------------

faults = {}


def fault(function):
    """Let the server do this where a URL asks for it."""
    faults[function.__name__] = function
    return function


@fault
def good(request, body):
    request.answer(body)


@fault
def html(request, body):
    request.answer(b"<!DOCTYPE html>\n<html><title>Please log in</title></html>")


@fault
def xml(request, body):
    request.answer(b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>')


@fault
def empty(request, body):
    request.answer(b"")


@fault
def mnist(request, body):
    request.answer(imposter(body))


@fault
def bit_flip(request, body):
    request.answer(flipped(body))


@fault
def one_short(request, body):
    request.answer(body[:-1])


@fault
def one_more(request, body):
    request.answer(body + b"\0")


@fault
def images_missing(request, body):
    request.answer(body, 404 if "images" in request.file else 200)


@fault
def cut(request, body):
    request.head(content_length=len(body))
    request.wfile.write(body[: len(body) // 2])


@fault
def small_cut(request, body):
    (cut if request.file == SMALL.name else good)(request, body)


@fault
def cut_once(request, body):
    (cut if request.number == 1 else good)(request, body)


@fault
def cut_within_magic(request, body):
    request.head()
    request.wfile.write(body[:3])


@fault
def cut_unannounced(request, body):
    request.head()
    request.wfile.write(body[: len(body) // 2])


@fault
def cut_chunked(request, body):
    request.head(transfer_encoding="chunked")
    request.chunk(body[: len(body) // 2])


@fault
def cut_in_a_chunk(request, body):
    request.head(transfer_encoding="chunked")
    request.wfile.write(b"%x\r\n" % len(body) + body[: len(body) // 2])


@fault
def ended_early_chunked(request, body):
    request.head(transfer_encoding="chunked")
    request.chunk(body[: len(body) // 2])
    request.chunk(b"")


@fault
def tiny_chunks(request, body):
    request.head(transfer_encoding="chunked")
    for byte in body[:200]:
        request.chunk(bytes([byte]))
    request.chunk(body[200:])
    request.chunk(b"")


@fault
def bad_chunk_size(request, body):
    request.head(transfer_encoding="chunked")
    request.wfile.write(b"zzz\r\n" + body)


@fault
def endless_chunk_size(request, body):
    request.head(transfer_encoding="chunked")
    request.endlessly(b"0" * 10**6)


@fault
def one_more_unannounced(request, body):
    request.head()
    request.wfile.write(body + b"\0")


@fault
def endless(request, body):
    request.head()
    request.wfile.write(body)
    request.endlessly(bytes(10**6))


@fault
def endless_announced(request, body):
    request.head(content_length=10**15)
    request.wfile.write(body)
    request.endlessly(bytes(10**6))


@fault
def endless_chunked(request, body):
    request.head(transfer_encoding="chunked")
    request.chunk(body)
    request.endlessly(b"f4240\r\n" + bytes(10**6) + b"\r\n")


@fault
def endless_gzip(request, body):
    """Without end, but never a byte when decompressed: the name in a gzip header."""
    request.head()
    request.wfile.write(b"\x1f\x8b\x08\x08" + bytes(6))
    request.endlessly(b"n" * 10**5)


@fault
def drip(request, body):
    request.head(content_length=len(body))
    for byte in body:
        request.wfile.write(bytes([byte]))
        time.sleep(0.1)


@fault
def drip_chunked(request, body):
    request.head(transfer_encoding="chunked")
    for start in range(0, len(body), 10):
        request.chunk(body[start : start + 10])
        time.sleep(0.1)


@fault
def drip_head(request, body):
    for byte in b"HTTP/1.1 200 OK\r\nX-Patience: " + b"." * 10**4:
        request.wfile.write(bytes([byte]))
        time.sleep(0.1)


@fault
def endless_continue(request, body):
    while True:
        request.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        time.sleep(0.01)


@fault
def leisurely(request, body):
    request.head(content_length=len(body))
    for start in range(0, len(body), len(body) // 10):
        request.wfile.write(body[start : start + len(body) // 10])
        time.sleep(0.05)


@fault
def stall(request, body):
    request.hold()


@fault
def stall_in_body(request, body):
    request.head(content_length=len(body))
    request.wfile.write(body[: len(body) // 2])
    request.hold()


@fault
def hang_up(request, body):
    pass


@fault
def reset(request, body):
    request.reset()


@fault
def reset_in_body(request, body):
    request.head(content_length=len(body))
    request.wfile.write(body[: len(body) // 2])
    time.sleep(0.1)  # a reset overtakes what was not read yet
    request.reset()


@fault
def reset_once(request, body):
    (reset_in_body if request.number == 1 else good)(request, body)


@fault
def busy_once(request, body):
    request.answer(body, 503 if request.number == 1 else 200)


@fault
def busy_for_an_hour(request, body):
    request.answer(b"", 429, retry_after="3600")


@fault
def busy_for_ever(request, body):
    request.answer(b"", 503, retry_after="9" * 400)


@fault
def busy_for_a_second(request, body):
    request.answer(body, 503 if request.number == 1 else 200, retry_after="1")


@fault
def busy_until_a_date(request, body):
    request.answer(b"", 503, retry_after="Fri, 31 Dec 2100 23:59:59 GMT")


@fault
def redirect(request, body):
    request.answer(b"", 302, location=request.path.replace("redirect", "good", 1))


@fault
def redirect_loop(request, body):
    request.answer(b"", 301, location=request.path)


@fault
def redirect_nowhere(request, body):
    request.answer(b"", 302)


@fault
def redirect_to_file(request, body):
    request.answer(b"", 302, location=f"file://{DATA}/{request.file}")


@fault
def redirect_to_http(request, body):
    request.answer(b"", 302, location=f"{SERVER.address}/good/0/{request.file}")


@fault
def redirect_endless(request, body):
    request.head(302, location=request.path.replace("redirect_endless", "good", 1))
    request.endlessly(bytes(10**6))


@fault
def encoded(request, body):
    request.answer(gzip.compress(body), content_encoding="gzip")


@fault
def encoded_if_accepted(request, body):
    accepted = "gzip" in request.headers.get("Accept-Encoding", "gzip")
    (encoded if accepted else good)(request, body)


@fault
def mislabelled(request, body):
    request.answer(body, content_encoding="gzip")


@fault
def encoded_bomb(request, body):
    request.answer(bomb(body), content_encoding="gzip")


@fault
def not_http(request, body):
    request.wfile.write(b"220 Welcome to FTP\r\n" * 10)


@fault
def control_characters(request, body):
    request.wfile.write(b"HTTP/1.1 404 \x1b[2J\rAll is well\r\nContent-Length: 0\r\n\r\n")


for name, (make, _) in damages.items():
    faults[name.replace(" ", "_")] = lambda request, body, make=make: request.answer(
        make(gzip.decompress(body))
    )


# --- The server -----------------------------------------------------------------------------------


class Request(BaseHTTPRequestHandler):
    """A request for a file, with the means to answer it badly."""

    def do_GET(self):
        fault, _, self.file = self.path.removeprefix("http://").lstrip("/").split("/")
        with self.server.lock:
            self.server.requests.append(self.path)
            self.number = self.server.requests.count(self.path)
        if fault.isdigit():
            self.answer(b'<?xml version="1.0"?><Error><Code>Error</Code></Error>', int(fault))
        else:
            faults.get(fault, good)(self, original(self.file))

    def do_CONNECT(self):
        self.server.requests.append(self.path)
        self.answer(b"", 403)

    def head(self, status=200, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def answer(self, body, status=200, **headers):
        self.head(status, content_length=len(body), **headers)
        self.wfile.write(body)

    def chunk(self, data):
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def endlessly(self, data):
        while True:
            self.wfile.write(data)

    def hold(self):
        """Say nothing more until the other side goes."""
        while self.connection.recv(1000):
            pass

    def reset(self):
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())

    def handle(self):
        try:
            super().handle()
        except (OSError, ValueError):  # the other side went, or this one did
            self.close_connection = True

    def finish(self):
        if self.connection.fileno() >= 0:
            super().finish()

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    """The server: where to reach its faults, and what it was asked for."""

    request_queue_size = 128

    def __init__(self, scheme="http"):
        super().__init__(("127.0.0.1", 0), Request)
        self.address = f"{scheme}://127.0.0.1:{self.server_port}"
        self.requests, self.lock, self.numbers = [], threading.Lock(), itertools.count(1)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def url(self, fault: str) -> str:
        """The URL of a folder that nobody asked for yet."""
        return f"{self.address}/{fault.replace(' ', '_')}/{next(self.numbers)}/"

    def asked(self, url: str) -> list[str]:
        """The files of the folder that were asked for."""
        path = url.removeprefix(self.address)
        return [asked.removeprefix(path) for asked in self.requests if asked.startswith(path)]

    def shutdown_request(self, request):
        if request.fileno() >= 0:
            super().shutdown_request(request)

    def handle_error(self, *_):
        pass


@cache
def tls_server(certified_name: str = "IP:127.0.0.1") -> tuple[Server, Path]:
    """A server over TLS, and the certificate that it signed itself."""
    temporary = tempfile.TemporaryDirectory(prefix="certificate-")
    folder = Path(temporary.name)
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    request = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test -addext"
    name, files = f"subjectAltName={certified_name}", ["-keyout", key, "-out", certificate]
    subprocess.run([*shlex.split(request), name, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = Server("https")
    server.temporary = temporary  # which lives as long as the server
    server.socket = context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    return server, certificate


SERVER = Server()
TAKEN = socket.socket()  # bound but not listening, so that a connection is refused
TAKEN.bind(("127.0.0.1", 0))
CLOSED = f"http://127.0.0.1:{TAKEN.getsockname()[1]}/"


# --- The command ----------------------------------------------------------------------------------


def fill(folder: Path, missing=(SMALL,)) -> Path:
    """Put the verified files into the folder, but for those `missing`; the large ones as links."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in set(FILES) - set(missing):
        if "images" in file.name:
            (folder / file.name).symlink_to(DATA / file.name)
        else:
            shutil.copy(DATA / file.name, folder)
    return folder


def start(folder: Path, *arguments, before="", env=(), prefix=(), mirror=None, stderr=-1, **how):
    """Start the command. No source but `mirror` answers, unless `how`, in capitals, says which.

    Capitals are constants of download_data. `before` is code to run first, `prefix` a command that
    runs the command; other keywords are for Popen. The rest of the code makes deadlines short, and
    notes the most memory that was resident.
    """
    constants = {
        "TIMEOUT": 2,
        "GRACE": 5,
        "PAUSE": 0.05,
        "LONGEST_PAUSE": 0.2,
        "COURSE": CLOSED,
        "ZALANDO": CLOSED,
        "SYSTEM": str(folder / "no system copy"),
    } | {name: how.pop(name) for name in list(how) if name.isupper()}
    peak = tempfile.NamedTemporaryFile(mode="r", prefix="peak-")  # noqa: SIM115 - end() closes it
    code = f"""
import atexit, pathlib, re, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a background job lacks
import download_data as d
vars(d).update({constants!r})
d.SYSTEM = pathlib.Path(d.SYSTEM)
status = lambda: re.search("VmHWM:\\\\s*(\\\\d+)", open("/proc/self/status").read())[1]
if sys.platform == "linux":
    atexit.register(lambda: open({peak.name!r}, "w").write(status()))
{before}
sys.exit(d.main())"""
    arguments = ["--data-dir", folder, *(["--mirror", mirror] if mirror else []), *arguments]
    proxies = {"http_proxy", "https_proxy", "all_proxy", "no_proxy"}
    inherited = {name: v for name, v in os.environ.items() if name.lower() not in proxies}
    process = subprocess.Popen(
        [*prefix, sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        env=inherited | {"PATH": "/nonexistent"} | dict(env),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        **how,
    )
    process.folder, process.peak, process.start = folder, peak, time.monotonic()
    return process


def end(process, timeout=30) -> SimpleNamespace:
    """Wait for the command, and hold what every run must keep: plain words and a clean folder."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"not over after {timeout} s:\n{process.communicate()}") from None
    seconds = time.monotonic() - process.start
    with process.peak as peak:
        megabytes = float(peak.read() or "nan") / 1000  # no bound holds for NaN
    assert "Traceback" not in (err or ""), f"a traceback meets the user:\n{err}"
    assert not re.search(r"\w\(['\"]|\w+\.\w+Error|object at 0x", err or ""), (
        f"Python's words, not plain ones:\n{err}"
    )
    assert not out, f"stdout is not for messages: {out}"
    assert not set("\r\x1b") & set(err or ""), f"control characters without a terminal: {err!r}"
    if process.returncode != -9:
        assert not leftovers(process.folder), f"left behind: {leftovers(process.folder)}"
    return SimpleNamespace(code=process.returncode, err=err, seconds=seconds, megabytes=megabytes)


def run(folder: Path, *arguments, timeout=30, **how) -> SimpleNamespace:
    """Run the command to its end: its code, err, seconds, and megabytes of memory."""
    return end(start(folder, *arguments, **how), timeout)


def leftovers(folder: Path) -> list[Path]:
    """What is in the folder besides the four files."""
    names = {file.name for file in FILES}
    return [path for path in folder.glob("*") if path.name not in names]


def right(folder: Path, *files) -> bool:
    """Whether the folder holds these files, or all four, as they should be."""
    return all(
        (folder / file.name).is_file() and (folder / file.name).read_bytes() == original(file.name)
        for file in files or FILES
    )


def until(condition, seconds=10) -> None:
    """Wait for the condition to hold."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "what the test waits for never came"
        time.sleep(0.01)
