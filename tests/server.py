"""A small HTTP server on this machine, and the faults that a server may have.

What a server does is a function (handler, body), which sends what it likes. `body` is the right
content of the file that was asked for.
"""

import contextlib
import os
import socket
import socketserver
import struct
import threading
from http.server import BaseHTTPRequestHandler


class Server(socketserver.ThreadingTCPServer):
    """Not ThreadingHTTPServer, which looks up the name of this machine: that may take seconds."""

    daemon_threads = True

    def __init__(self, files, behaviour):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files  # their content by name
        self.behaviour = behaviour
        self.url = f"http://127.0.0.1:{self.server_address[1]}/"
        self.asked = []  # the paths that were asked for
        self.headers = None  # of the last request


class Handler(BaseHTTPRequestHandler):
    def handle(self):
        with contextlib.suppress(ConnectionError):  # the client may leave early
            super().handle()

    def do_GET(self):
        self.server.headers = self.headers
        self.server.asked.append(self.path)
        name = self.path.partition("?")[0].rpartition("/")[2]
        if name in self.server.files:
            self.server.behaviour(self, self.server.files[name])
        else:
            not_found(self, b"")

    def log_message(self, *arguments):
        """Log nothing: stderr is for the program under test."""


@contextlib.contextmanager
def serving(files, behaviour):
    with Server(files, behaviour) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


# --- What a server does ---------------------------------------------------------------------------


def start(handler, status=200, **headers):
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()


def answer(handler, body: bytes, status=200, **headers):
    start(handler, status, **{"Content_Length": len(body)} | headers)
    handler.wfile.write(body)


def good(handler, body):
    answer(handler, body)


def cut_short(handler, body):
    answer(handler, body[:-1], Content_Length=len(body))


def cut_short_without_length(handler, body):
    start(handler)
    handler.wfile.write(body[:-1])


def too_long(handler, body):
    answer(handler, body + b"\0")


def html_page(handler, body):
    answer(handler, b"<!DOCTYPE html><html><title>Please log in</title></html>")


def not_found(handler, body):
    answer(handler, b"", 404)


def control_characters(handler, body):
    """Clear the screen, ring the bell, go to the start of the line, and fill the screen."""
    reason = b"\x1b[2J\aFile\rnot here" + b" and not there" * 1000
    handler.wfile.write(b"HTTP/1.1 404 " + reason + b"\r\n\r\n")


def reset_midway(handler, body):
    answer(handler, body[: len(body) // 2], Content_Length=len(body))
    linger = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)  # closing is then a reset
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    handler.rfile.close()  # which would keep the connection open
    handler.connection.close()


def stall(handler, body):
    """Send nothing until the client leaves, but end some time."""
    handler.connection.settimeout(30)
    with contextlib.suppress(TimeoutError):
        handler.connection.recv(1)


def stall_midway(handler, body):
    answer(handler, body[: len(body) // 2], Content_Length=len(body))
    stall(handler, body)
