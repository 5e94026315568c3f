"""A web server on loopback that misbehaves as the URL demands.

    http://127.0.0.1:…/cut/7/fashion_mnist_test_labels.npy

is answered with the fault "cut". Where the URL names several faults, as cut+good, the first request
for a file meets the first of them, the second request the second, and so on; the last one stays.
The number keeps the folders of different tests apart.
"""

import gzip
import itertools
import os
import socket
import ssl
import struct
import sys
import threading
import time
from functools import cache, partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import numpy as np
import pytest

from download_data import DATA, FILES

# --- The content of a file, and how it may be damaged ---------------------------------------------

compress = partial(gzip.compress, mtime=0)  # the same bytes at any time


@cache
def original(name: str) -> bytes:
    """The right content of a file, by its name on the course's server or on Zalando's."""
    file = next(file for file in FILES if name in (file.name, file.idx_name))
    return (DATA / name).read_bytes() if name == file.name else compress(idx(file), 1)


def idx(file) -> bytes:
    """The IDX file with the values of `file`."""
    values = np.load(DATA / file.name).astype(np.uint8)
    sizes = (len(values), 28, 28) if values.ndim == 2 else (len(values),)
    return struct.pack(f">4B{len(sizes)}I", 0, 0, 8, len(sizes), *sizes) + values.tobytes()


def imposter(content: bytes) -> bytes:
    """The same header and size, other values: what MNIST is to Fashion-MNIST."""
    if content.startswith(b"\x1f\x8b"):
        return compress(imposter(gzip.decompress(content)), 1)
    header = 128 if content.startswith(b"\x93NUMPY") else 16
    return content[:header] + content[header + 4 :] + content[header : header + 4]


HTML = b"<!DOCTYPE html>\n<html><title>Please log in</title></html>"
XML = b'\n<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>'

DAMAGES = {
    "good": lambda content: content,
    "empty": lambda content: b"",
    "html": lambda content: HTML,
    "xml": lambda content: XML,
    "imposter": imposter,
    "one-short": lambda content: content[:-1],
    "one-more": lambda content: content + b"\0",
    # Of gzipped IDX files:
    "gzip-cut": lambda content: content[:-2000],
    "gzip-wrong-crc": lambda content: content[:-8] + bytes(8),
    "gzip-bomb": lambda content: compress(gzip.decompress(content) + bytes(4 * 10**7)),
    "one-value-less": lambda content: compress(gzip.decompress(content)[:-1]),
}

# --- The faults of a server -----------------------------------------------------------------------

HOLD = object()  # send nothing more until the client leaves
RESET = object()  # reset the connection


def head(*lines: str, status: int = 200) -> bytes:
    first = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"
    return "\r\n".join([first, "Connection: close", *lines, "\r\n"]).encode()


def whole(body: bytes, *lines: str, status: int = 200) -> bytes:
    return head(f"Content-Length: {len(body)}", *lines, status=status) + body


def half(answer: bytes) -> bytes:
    return answer[: len(answer) // 2]


def slowly(answer: bytes) -> list:
    """The answer in ten pieces, with a pause after each."""
    step = len(answer) // 10 + 1
    pieces = [answer[first : first + step] for first in range(0, len(answer), step)]
    return [part for piece in pieces for part in (piece, 0.03)]


def smallest_cut(body: bytes) -> list:
    """The smallest file is cut short; the others are good."""
    answer = whole(body)
    return [answer[:-1] if len(body) == FILES[0].size else answer]


def chunked(body: bytes) -> bytes:
    return head("Transfer-Encoding: chunked") + f"{len(body):x}\r\n".encode() + body + b"\r\n"


def redirect(location: str) -> list:
    return [whole(b"", f"Location: {location}", status=302)]


def forever(first: bytes, *again):
    return itertools.chain([first], itertools.cycle(again))


# What the server sends in place of the file `body`, piece by piece: bytes, a pause in seconds, HOLD
# or RESET. Then it closes the connection.
FAULTS = {
    "leisurely": lambda body: slowly(whole(body)),
    "endless": lambda body: forever(head() + body, bytes(10**6)),
    "cut": lambda body: [half(whole(body))],
    "cut-without-length": lambda body: [head() + half(body)],
    "cut-in-chunk": lambda body: [half(chunked(body))],
    "cut-between-chunks": lambda body: [chunked(half(body))],
    "chunked": lambda body: [chunked(body) + b"0\r\n\r\n"],
    "smallest-cut": smallest_cut,
    "drip": lambda body: forever(whole(body)[:1000], b"\0", 0.1),
    "drip-head": lambda body: forever(b"HTTP/1.1 200 OK\r\nX-Patience: ", b".", 0.1),
    "stall": lambda body: [HOLD],
    "stall-in-body": lambda body: [half(whole(body)), HOLD],
    "reset": lambda body: [RESET],
    "reset-in-body": lambda body: [half(whole(body)), 0.1, RESET],
    "closed": lambda body: [],
    "busy-for-an-hour": lambda body: [whole(b"", "Retry-After: 3600", status=429)],
    "redirect": lambda body: redirect("?again"),
    "redirect-to-file": lambda body: redirect(DATA.as_uri()),
    "compressed": lambda body: [whole(compress(body), "Content-Encoding: gzip")],
    "mislabelled": lambda body: [whole(body, "Content-Encoding: gzip")],
    "not-http": lambda body: [b"220 Welcome to FTP\r\n" * 10],
    "control-characters": lambda body: [b"HTTP/1.1 404 \x1b[2J\rSo, " + b"so " * 999 + b"\r\n\r\n"],
}
for name, damage in DAMAGES.items():
    FAULTS[name] = lambda body, damage=damage: [whole(damage(body))]
for status in 203, 206, 403, 404, 408, 500, 503:
    FAULTS[str(status)] = lambda body, status=status: [whole(body, status=status)]

# --- The server -----------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        """Send the pieces of the fault that the URL names."""
        target = self.path.partition("?")[0]
        self.server.headers = self.headers
        self.server.requests.append(target)
        path = urlsplit(target).path.split("/")
        if len(path) != 4:
            return self.send(whole(b"", status=404))
        names, file = path[1].split("+"), path[3]
        name = names[min(self.server.requests.count(target), len(names)) - 1]
        if self.headers["Accept-Encoding"] != "identity":
            name = "compressed"  # as many servers do
        for piece in self.server.faults[name](original(file)):
            self.send(piece)

    def do_CONNECT(self):
        """Refuse to be a proxy for https."""
        self.server.requests.append(self.path)
        self.send(whole(b"", status=403))

    def send(self, piece):
        if piece is HOLD:
            self.connection.recv(1)
        elif piece is RESET:
            linger = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.rfile.close()  # the last but one to hold the socket
            self.connection.close()
        elif isinstance(piece, float):
            time.sleep(piece)
        else:
            self.wfile.write(piece)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    """The server, running in a thread: what it was asked for, and how it answers."""

    def __init__(self, tls: ssl.SSLContext | None = None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"{'https' if tls else 'http'}://127.0.0.1:{self.server_port}"
        if tls:  # the handshake is left to the thread of each connection
            self.socket = tls.wrap_socket(
                self.socket, server_side=True, do_handshake_on_connect=False
            )
        self.faults = dict(FAULTS)
        self.requests = []  # the targets of all requests
        self.headers = None  # those of the last request
        self.numbers = itertools.count(1)
        threading.Thread(target=self.serve_forever, args=[0.05], daemon=True).start()

    def url(self, faults: str) -> str:
        """The URL of a folder that nobody has asked for yet."""
        return f"{self.address}/{faults}/{next(self.numbers)}/"

    def asked(self, url: str) -> list[str]:
        """The files that were asked for in the folder `url`."""
        path = urlsplit(url).path
        return [target.removeprefix(path) for target in self.requests if target.startswith(path)]

    def handle_error(self, *_):
        """Clients may leave at any time, and may distrust the certificate: that is no error."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(*_)

    def __exit__(self, *_):
        self.shutdown()
        super().__exit__(*_)


@pytest.fixture(scope="session")
def server():
    with Server() as server:
        yield server


@pytest.fixture(scope="session")
def authority():
    """An authority for certificates that nobody trusts by default."""
    return pytest.importorskip("trustme").CA()


@pytest.fixture(scope="session")
def tls_server(authority, server):
    """The same over TLS, for the name 127.0.0.1. It also redirects to the server without TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with Server(context) as tls_server:
        plain = server.url("good") + FILES[0].name
        tls_server.faults["redirect-to-http"] = lambda body: redirect(plain)
        yield tls_server
