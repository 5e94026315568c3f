"""The downloader against servers that misbehave, over real sockets."""

import contextlib
import re
import socket
import time
import weakref
from typing import NamedTuple

import numpy as np
import pytest
from downloader import FILES, MEDIUM, SMALL, defects, fetch, until
from servers import DAMAGES, Server, original

import download_data
from download_data import Refused, SourceDown, npy_from_idx, until_deadline

pytestmark = [pytest.mark.data, pytest.mark.usefixtures("data_dir")]


# --- One transfer ---------------------------------------------------------------------------------


def test_what_is_given_up_is_read_no_further():
    endless = (b"more" for _ in iter(lambda: time.sleep(0.001), "never"))
    chunks, still_read = until_deadline(endless, 60), weakref.ref(endless)
    del endless
    next(chunks)
    chunks.close()
    until("the end of the reading thread", lambda: not still_read())


class Clock:
    """The time, which only the test and `sleep` move, in place of the module `time`."""

    def __init__(self):
        self.now = 1000.0
        self.pauses = []

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        self.pauses.append(seconds)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(download_data, "time", clock)
    return clock


LARGE = FILES[3]  # 188 MB: an attempt may take 40 + 1882 seconds


def fetch_from(source, file, tmp_path):
    """Fetch the file from `source`, which makes an iterator over chunks for each attempt."""
    download_data.fetch(file, "it", lambda _: source(), tmp_path / "part", tmp_path / "target")


def a_byte_per_second(clock, seconds):
    for _ in range(seconds):
        clock.now += 1
        yield b"x"


def test_a_source_is_tried_three_times_with_a_pause_of_2_seconds(tmp_path, clock):
    attempts = []

    def nothing():
        attempts.append(clock.now)
        if len(attempts) > 3:
            pytest.fail("there is an attempt after the third")
        return iter([])

    with contextlib.suppress(Refused):
        fetch_from(nothing, SMALL, tmp_path)
    assert not (tmp_path / "target").exists(), "an empty file got its final name"
    assert len(attempts) == 3, f"{len(attempts)} attempts"
    assert clock.pauses == [2, 2], "seconds between the attempts"


def test_188_mb_at_1_mb_per_second_are_let_finish(tmp_path, clock):
    content = original(LARGE.name)

    def chunks():
        for first in range(0, LARGE.size, 1_000_000):
            clock.now += 1
            yield content[first : first + 1_000_000]

    fetch_from(chunks, LARGE, tmp_path)
    assert (tmp_path / "target").read_bytes() == content


def test_an_attempt_at_188_mb_is_given_up_after_1922_seconds(tmp_path, clock):
    with pytest.raises(Refused) as refused:
        fetch_from(lambda: a_byte_per_second(clock, 2500), LARGE, tmp_path)
    assert refused.type is SourceDown, f"the deadline did not end it: {refused.value}"


def test_each_attempt_has_its_own_time(tmp_path, clock):
    """Three attempts of 1,800 s each break off early: the source fails at that, not at its time."""
    with pytest.raises(Refused) as refused:
        fetch_from(lambda: a_byte_per_second(clock, 1800), LARGE, tmp_path)
    assert refused.type is Refused, f"the second attempt had too little time: {refused.value}"


def test_progress_tells_the_time_left(tmp_path, clock, monkeypatch):
    """Ten seconds for a quarter of a file leave thirty for the rest."""
    lines = []
    monkeypatch.setattr(download_data, "log", lambda line, live=False: lines.append(line))

    def quarter():
        clock.now += 10
        yield bytes(LARGE.size // 4)

    with pytest.raises(Refused):
        download_data.write_verified(quarter(), LARGE, tmp_path / "part")
    assert lines == [f"{LARGE.name}: 47.0 of 188.2 MB, 30 s left"]


# --- Zalando's files ------------------------------------------------------------------------------


def assert_becomes_the_courses(file, chunks):
    """Hold that Zalando's file, in chunks, becomes the course's, to the byte."""
    ours, right = b"".join(npy_from_idx(file, chunks)), original(file.name)
    assert ours[:128] == right[:128], "the header of 128 bytes is another"
    values, right_values = (np.frombuffer(content[128:], file.dtype) for content in (ours, right))
    count = f"{len(values)} values, not {len(right_values)}"
    assert len(values) == len(right_values), f"{count}; the first are {values[:20]}"
    assert ours == right, f"the values are others, such as {values[:20]}"


@pytest.mark.parametrize("file", [SMALL, MEDIUM], ids=["labels", "images"])
def test_zalandos_files_become_the_courses(file):
    assert_becomes_the_courses(file, [original(file.idx_name)])


def test_zalandos_files_may_come_byte_by_byte():
    start = [bytes([byte]) for byte in original(SMALL.idx_name)[:100]]
    assert_becomes_the_courses(SMALL, [*start, original(SMALL.idx_name)[100:]])


def test_a_bomb_expands_to_no_more_than_a_file_at_a_time():
    pieces = npy_from_idx(SMALL, [DAMAGES["gzip-bomb"](original(SMALL.idx_name))])
    assert max(map(len, pieces)) <= SMALL.size


def test_nothing_is_read_beyond_the_gzip_file():
    chunks = iter([original(SMALL.idx_name), b"and more"])
    assert b"".join(npy_from_idx(SMALL, chunks)) == original(SMALL.name)
    assert list(chunks) == [b"and more"], "what follows the gzip file was read"


# --- Faults of a server ---------------------------------------------------------------------------


class Met(NamedTuple):
    """What comes of a fault: how often the server is asked, and the reason that is reported."""

    asked: int
    reason: str  # a regular expression
    constants: tuple = ()  # of download_data, as pairs


WRONG_CONTENT = r"wrong content \(MNIST, or an older Fashion-MNIST\?\): its SHA-256 is \w{64}"
PAGE = "an HTML or XML page instead of the file"
LOST = "the connection was lost"
STALLED = "the connection was lost, or stalled"
HURRIED = (("TIMEOUT", 0.3), ("GRACE", 0.1))
# In all of these the next source has the right file.
FAULTS = {
    "html": Met(1, PAGE),
    "xml": Met(1, PAGE),
    "imposter": Met(1, WRONG_CONTENT),
    "empty": Met(3, "cut short: 0 bytes of 40128"),
    "one-short": Met(3, "cut short: 40127 bytes of 40128"),
    "one-more": Met(1, "more than the 40128 bytes expected"),
    "endless": Met(1, "more than the 40128 bytes expected"),
    "203": Met(1, "HTTP 203 Non-Authoritative Information"),
    "206": Met(1, "HTTP 206 Partial Content"),
    "403": Met(1, "HTTP 403 Forbidden"),
    "404": Met(1, "HTTP 404 Not Found"),
    "408": Met(3, "HTTP 408 Request Timeout"),
    "busy-for-an-hour": Met(3, "HTTP 429 Too Many Requests"),
    "500": Met(3, "HTTP 500 Internal Server Error"),
    "503": Met(3, "HTTP 503 Service Unavailable"),
    "control-characters": Met(1, r"HTTP 404 \[2JSo, (so ){64}s"),
    "cut": Met(3, f"{STALLED}|cut short: .*"),  # depends on urllib3
    "cut-without-length": Met(3, "cut short: 20064 bytes of 40128"),
    "cut-in-chunk": Met(3, STALLED),
    "cut-between-chunks": Met(3, STALLED),
    "reset": Met(3, LOST),
    "closed": Met(3, LOST),
    "reset-in-body": Met(3, STALLED),
    "redirect": Met(31, "too many redirects"),
    "redirect-to-file": Met(1, "redirected to another protocol"),
    "compressed": Met(1, r"something beginning with b'\\x1f\\x8b.*' instead of the file"),
    "not-http": Met(1, "not an HTTP response"),
    "stall": Met(1, "no answer for 0.3 s", HURRIED),
    "stall-in-body": Met(3, STALLED, HURRIED),
    "drip": Met(1, "too slow: timed out", (*HURRIED, ("CHUNK", 2))),  # many pieces, one deadline
    "drip-head": Met(1, "too slow: timed out", HURRIED),
}


def assert_one_reason(outcome, source, reason, asked=1):
    """Hold that one reason is reported for the source, or for its file, and that it is this."""
    lines = [line.removeprefix(f"{SMALL.name}: ") for line in outcome.about(source)]
    assert len(lines) == 1, f"{source} has {len(lines)} reasons:\n{outcome.err}"
    expected = f"({reason}), 3 times" if asked == 3 else reason
    assert re.fullmatch(expected, lines[0]), f"reported: {lines[0]}\nexpected: {expected}"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_reported_and_the_next_source_asked(tmp_path, server, fault):
    met, mirror, course = FAULTS[fault], server.url(fault), server.url("good")
    constants = {"COURSE": course, **dict(met.constants)}
    outcome = fetch(tmp_path, mirror, constants=constants)
    next_asked = server.asked(course)
    assert next_asked, f"the next source was not asked; what is reported:\n{outcome.err}"
    assert next_asked == [SMALL.name]
    assert not defects(tmp_path, SMALL), outcome.err
    assert outcome.status == 0, outcome.err
    asked = len(server.asked(mirror))
    assert asked, f"the mirror was not asked before the course's server:\n{outcome.err}"
    assert asked == met.asked, f"asked {asked} times, not {met.asked}:\n{outcome.err}"
    assert_one_reason(outcome, mirror, met.reason, met.asked)


GZIP_FAULTS = {
    "gzip-cut": Met(3, r"cut short: \d+ bytes of 40128"),
    "gzip-wrong-crc": Met(1, "the gzip file is damaged"),
    "gzip-bomb": Met(1, "more than the 40128 bytes expected"),
    "one-value-less": Met(3, "cut short: 40124 bytes of 40128"),
    "html": Met(1, PAGE),
    "empty": Met(3, "cut short: 128 bytes of 40128"),
    "imposter": Met(1, WRONG_CONTENT),
}


@pytest.mark.parametrize("fault", GZIP_FAULTS)
def test_a_fault_of_zalandos_file_is_reported(tmp_path, server, fault):
    met, zalando = GZIP_FAULTS[fault], server.url(fault)
    outcome = fetch(tmp_path, constants={"ZALANDO": zalando})
    assert not list(tmp_path.iterdir()), f"a wrong file was stored:\n{outcome.err}"
    assert outcome.status == 1
    asked = len(server.asked(zalando))
    assert asked == met.asked, f"asked {asked} times, not {met.asked}:\n{outcome.err}"
    assert_one_reason(outcome, "Zalando's server", met.reason, met.asked)


# What gets the right file all the same, and how often the server is asked.
OVERCOME = {
    "chunked": Met(1, ""),
    "mislabelled": Met(1, ""),
    "redirect+good": Met(2, ""),
    "503+good": Met(2, ""),
    "503+500+good": Met(3, ""),
    "cut+good": Met(2, ""),
    "closed+reset+good": Met(3, ""),
    "stall-in-body+reset-in-body+good": Met(3, "", HURRIED),
}


@pytest.mark.parametrize("faults", OVERCOME)
def test_what_can_be_overcome_is(tmp_path, server, faults):
    met, mirror, course = OVERCOME[faults], server.url(faults), server.url("good")
    outcome = fetch(tmp_path, mirror, constants={"COURSE": course, **dict(met.constants)})
    assert not defects(tmp_path, SMALL), outcome.err
    assert not server.asked(course), f"the mirror was given up:\n{outcome.err}"
    assert len(server.asked(mirror)) == met.asked
    assert outcome.status == 0


# --- Servers out of reach -------------------------------------------------------------------------


@pytest.fixture
def closed_port():
    """A port that is taken, so that nobody listens there."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


# The URL of a server, with {closed} and {open} for ports, and the reason that is reported.
OUT_OF_REACH = {
    "nobody listens": ("http://127.0.0.1:{closed}/", "connection refused"),
    "nobody listens, over TLS": ("https://127.0.0.1:{closed}/", "connection refused"),
    "no such name": ("http://nowhere.invalid/", "cannot resolve its name"),
    "no such port": ("http://127.0.0.1:99999/", "unreachable, or not an HTTP response"),
    "no TLS": ("https://127.0.0.1:{open}/", "TLS failed, or the certificate is not trusted"),
}


@pytest.mark.parametrize("case", OUT_OF_REACH)
def test_a_server_out_of_reach_is_tried_for_one_file_only(tmp_path, server, closed_port, case):
    url, reason = OUT_OF_REACH[case]
    mirror = url.format(closed=closed_port, open=server.server_port)
    course = server.url("good")
    outcome = fetch(tmp_path, mirror, files=FILES[:2], constants={"COURSE": course})
    assert server.asked(course) == [file.name for file in FILES[:2]], outcome.err
    assert outcome.status == 0, outcome.err
    assert_one_reason(outcome, mirror, re.escape(reason))


def test_the_proxy_of_the_environment_is_used_and_reported_if_it_refuses(tmp_path):
    mirror, course = "https://refused.invalid/", "http://course.invalid/good/1/"
    with Server() as proxy:
        env = {"http_proxy": proxy.address, "https_proxy": proxy.address}
        outcome = fetch(tmp_path, mirror, constants={"COURSE": course}, env=env)
    assert proxy.requests == ["refused.invalid:443", course + SMALL.name], outcome.err
    assert not defects(tmp_path, SMALL), outcome.err
    assert_one_reason(outcome, mirror, "the proxy cannot be used")


# --- TLS ------------------------------------------------------------------------------------------

NOT_TRUSTED = "TLS failed, or the certificate is not trusted"


@pytest.fixture(scope="session")
def trust(authority, tmp_path_factory):
    """The environment of somebody who trusts the authority."""
    path = tmp_path_factory.mktemp("certificate") / "authority.pem"
    authority.cert_pem.write_to_path(str(path))
    return {"REQUESTS_CA_BUNDLE": str(path)}


def test_a_certificate_that_is_trusted_will_do(tmp_path, tls_server, trust):
    outcome = fetch(tmp_path, tls_server.url("good"), env=trust)
    assert not defects(tmp_path, SMALL), outcome.err


def test_a_certificate_that_is_not_trusted_will_not(tmp_path, tls_server):
    mirror = tls_server.url("good")
    outcome = fetch(tmp_path, mirror)
    assert not tls_server.asked(mirror), f"asked without trust:\n{outcome.err}"
    assert outcome.status == 1
    assert_one_reason(outcome, mirror, NOT_TRUSTED)


def test_a_certificate_for_another_name_will_not(tmp_path, tls_server, trust):
    mirror = tls_server.url("good").replace("127.0.0.1", "localhost")
    outcome = fetch(tmp_path, mirror, env=trust)
    assert not tls_server.asked(mirror), f"asked under another name:\n{outcome.err}"
    assert outcome.status == 1
    assert_one_reason(outcome, mirror, NOT_TRUSTED)


@pytest.mark.parametrize("scheme", ["https", "HTTPS"])
def test_https_is_never_left_for_http(tmp_path, server, tls_server, trust, scheme):
    mirror = tls_server.url("redirect-to-http").replace("https", scheme)
    before = len(server.requests)
    outcome = fetch(tmp_path, mirror, env=trust)
    assert server.requests[before:] == [], f"a request went out in the clear:\n{outcome.err}"
    assert_one_reason(outcome, mirror, "redirected to another protocol")


def test_a_missing_file_of_certificates_is_reported(tmp_path, closed_port):
    mirror = f"https://127.0.0.1:{closed_port}/"
    outcome = fetch(tmp_path, mirror, env={"REQUESTS_CA_BUNDLE": "gone"})
    assert_one_reason(outcome, mirror, ".*: gone")
