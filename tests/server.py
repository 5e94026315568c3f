"""A small HTTP server on this machine, the files it has, and the faults a server may have.

What a server does is a function (client, body), which sends what it likes to the socket `client`.
`body` is the right content of the file that was asked for.
"""

import contextlib
import gzip
import os
import socket
import socketserver
import struct
import threading

import numpy as np
from helpers import DATA_FILES, ROOT, TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def __init__(self, behaviour):
        super().__init__(("127.0.0.1", 0), Handler)
        self.behaviour = behaviour
        self.url = f"http://127.0.0.1:{self.server_address[1]}/"
        self.requests = []  # their first lines and headers

    def asked(self) -> list[str]:
        """The paths that were asked for."""
        return [request.split()[1] for request in self.requests]


class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        request = self.request.recv(2**16).decode("latin-1")
        with contextlib.suppress(ConnectionError):  # the client may leave early
            if not request.startswith("GET "):  # such as the first bytes of TLS
                return answer(self.request, b"", status="400 Bad Request")
            self.server.requests.append(request)
            name = request.split()[1].partition("?")[0].rpartition("/")[2]
            if name not in (*DATA_FILES, *ZALANDO):
                return not_found(self.request, b"")
            self.server.behaviour(self.request, content(name))


@contextlib.contextmanager
def serving(behaviour):
    with Server(behaviour) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


# --- Files ----------------------------------------------------------------------------------------


ZALANDO = {  # the names of Zalando's files, and of those of the course with the same values
    "t10k-labels-idx1-ubyte.gz": TEST_LABELS,
    "t10k-images-idx3-ubyte.gz": TEST_IMAGES,
    "train-labels-idx1-ubyte.gz": TRAIN_LABELS,
    "train-images-idx3-ubyte.gz": TRAIN_IMAGES,
}


def content(name: str) -> bytes:
    """The right content of a file, by its name on the course's server or on Zalando's."""
    if name in DATA_FILES:
        return (ROOT / "data" / name).read_bytes()
    values = np.load(ROOT / "data" / ZALANDO[name]).astype(np.uint8)
    axes = (len(values), 28, 28) if values.ndim == 2 else (len(values),)
    header = struct.pack(f">4B{len(axes)}I", 0, 0, 8, len(axes), *axes)  # 8: unsigned bytes
    return gzip.compress(header + values.tobytes(), 1)


def flip_a_bit(body: bytes) -> bytes:
    """Change one value: a label by 1, a pixel in its last digit."""
    if body.startswith(b"\x1f\x8b"):
        return gzip.compress(flip_a_bit(gzip.decompress(body)), 1)
    changed = bytearray(body)
    changed[len(body) // 2] ^= 1
    return bytes(changed)


# --- What a server does ---------------------------------------------------------------------------


def head(*headers: str, status: str = "200 OK") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", "Connection: close", *headers, "\r\n"]).encode()


def answer(client, body: bytes, *headers: str, status: str = "200 OK"):
    client.sendall(head(f"Content-Length: {len(body)}", *headers, status=status))
    client.sendall(body)


def good(client, body):
    answer(client, body)


def one_bit_flipped(client, body):
    answer(client, flip_a_bit(body))


def cut_short(client, body):
    client.sendall(head(f"Content-Length: {len(body)}") + body[:-1])


def cut_short_without_length(client, body):
    client.sendall(head() + body[:-1])


def too_long(client, body):
    answer(client, body + b"\0")


def html_page(client, body):
    answer(client, b"<!DOCTYPE html><html><title>Please log in</title></html>")


def not_found(client, body):
    answer(client, b"", status="404 Not Found")


def unavailable(client, body):
    """Come back in an hour; nobody should wait for that."""
    answer(client, b"", "Retry-After: 3600", status="503 Service Unavailable")


def redirect_for_ever(client, body):
    answer(client, b"", "Location: ?again", status="302 Found")


def control_characters(client, body):
    """Clear the screen, ring the bell, go to the start of the line, and fill the screen."""
    answer(client, b"", status="404 \x1b[2J\aFile\rnot here" + " and not there" * 1000)


def reset_midway(client, body):
    client.sendall(head(f"Content-Length: {len(body)}") + body[: len(body) // 2])
    linger = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    client.close()


def stall(client, body):
    """Send nothing, until the client leaves."""
    client.settimeout(30)
    with contextlib.suppress(TimeoutError):
        client.recv(1)


def stall_midway(client, body):
    client.sendall(head(f"Content-Length: {len(body)}") + body[: len(body) // 2])
    stall(client, body)
