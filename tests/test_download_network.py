"""The downloader against servers that misbehave: the real command, over real sockets."""

import re
import ssl
import time
import weakref
from types import SimpleNamespace

import pytest
from faulty_server import CLOSED, DAMAGES, FILES, SERVER, SMALL, Server, original, right, run, until

from download_data import npy_from_idx, until_deadline

pytestmark = [pytest.mark.data, pytest.mark.usefixtures("data_dir")]

# A mirror's fault, or that of an IDX file in the system's folder: how often the source is asked,
# and what is said of it. In all of these the next source has the right file.
FAULTS = {
    "drip": (1, "too slow: its time is up"),
    "drip-head": (1, "too slow: its time is up"),
    "stall": (1, "no answer for 1 s"),
    "stall-in-body": (3, "the connection broke, or stalled"),
    "206": (1, "HTTP 206 Partial Content"),
    "403": (1, "HTTP 403 Forbidden"),
    "408": (3, "HTTP 408 Request Timeout"),
    "500": (3, "HTTP 500 Internal Server Error"),
    "busy-for-an-hour": (3, "HTTP 429 Too Many Requests"),
    "html": (1, "not the file but an HTML or XML page"),
    "xml": (1, "not the file but an HTML or XML page"),
    "empty": (3, "cut short: 0 bytes of 40128"),
    "mnist": (1, r"wrong content \(MNIST, or an older version\?\): its SHA-256 is \w{64}"),
    "one-short": (3, "cut short: 40127 bytes of 40128"),
    "one-more": (1, "more than the 40128 bytes expected"),
    "endless": (1, "more than the 40128 bytes expected"),
    "cut": (3, "the connection broke, or stalled|cut short: .*"),  # depends on urllib3
    "reset": (3, "the connection broke"),
    "reset-in-body": (3, "the connection broke, or stalled"),
    "redirect": (31, "it redirects without end"),
    "redirect-to-file": (1, "it redirects to another protocol"),
    "compressed": (1, r"not the file but something that begins b'\\x1f\\x8b.*'"),
    "not-http": (1, "its answer is not HTTP"),
    "control-characters": (1, r"HTTP 404 \[2JSo, (so ){64}s"),
    "gzip-cut": (3, r"cut short: \d+ bytes of 40128"),
    "gzip-wrong-crc": (1, "the gzip file is damaged"),
    "gzip-bomb": (1, "more than the 40128 bytes expected"),
    "one-value-less": (3, "cut short: 40124 bytes of 40128"),
    "other-values": (1, r"wrong content \(MNIST, .*"),
}
# Those that get the right file all the same: how often it is asked for.
OVERCOME = {
    "mislabelled": 1,
    "redirect+good": 2,
    "503+good": 2,
    "cut+good": 2,
    "closed+reset+good": 3,
    "stall-in-body+reset-in-body+good": 3,
}


def meet(fault, base):
    """What comes of it: the command's end, what was asked, and what the next source was asked."""
    folder, source, good = base / "data", SERVER.url(fault), SERVER.url("good")
    how = {"mirror": source}
    if fault in DAMAGES:
        (base / SMALL.idx).write_bytes(DAMAGES[fault](original(SMALL.idx)))
        how = {"SYSTEM": (source := str(base))}
    if fault.startswith("drip"):
        how["GRACE"] = 2
    if fault.startswith("stall"):
        how["TIMEOUT"] = 1
    end = run(folder, COURSE=good, **how)
    asked, next_asked = SERVER.asked(source), SERVER.asked(good)
    return SimpleNamespace(folder=folder, source=source, asked=asked, next=next_asked, **vars(end))


def said_once(end, source, reason, times=1):
    """Hold that one reason is given for the source, or for its file, and is worded like this."""
    lines = re.findall(f"^{re.escape(str(source))}: (?:{SMALL.name}: )?(.*)$", end.err, re.M)
    assert len(lines) == 1, f"{source} is given {len(lines)} reasons:\n{end.err}"
    expected = f"(?:{reason})" + ", 3 times" * (times == 3)
    assert re.fullmatch(expected, lines[0]), f"{source} is given another reason:\n{end.err}"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_told_and_the_next_source_asked(tmp_path, fault):
    (times, reason), end = FAULTS[fault], meet(fault, tmp_path)
    assert right(end.folder, SMALL), f"wrong bytes were accepted, or none came:\n{end.err}"
    assert end.code == 0, end.err
    said_once(end, end.source, reason, times)
    assert fault in DAMAGES or len(end.asked) == times, "not asked that often"
    assert end.next == [SMALL.name], "the next source was not asked for just this file"


@pytest.mark.parametrize("fault", OVERCOME)
def test_what_can_be_overcome_is(tmp_path, fault):
    end = meet(fault, tmp_path)
    assert right(end.folder, SMALL), f"wrong bytes were accepted, or none came:\n{end.err}"
    assert end.code == 0, end.err
    assert len(end.asked) == OVERCOME[fault]
    assert not end.next, f"the mirror was given up:\n{end.err}"


def test_a_bomb_expands_to_no_more_than_a_file_at_a_time():
    pieces = npy_from_idx(SMALL, [DAMAGES["gzip-bomb"](original(SMALL.idx))])
    assert max(map(len, pieces)) <= SMALL.size


def test_nothing_is_read_beyond_the_gzip_file():
    chunks = iter([original(SMALL.idx), b"and more"])
    assert b"".join(npy_from_idx(SMALL, chunks)) == original(SMALL.name)
    assert next(chunks) == b"and more"


def test_what_is_given_up_is_read_no_further():
    endless = (b"more" for _ in iter(lambda: time.sleep(0.001), "never"))
    chunks, still_read = until_deadline(endless, 60), weakref.ref(endless)
    del endless
    next(chunks)
    chunks.close()
    until(lambda: not still_read())


TLS = CLOSED.replace("http", "https")
OUT_OF_REACH = {
    "closed": (CLOSED, "connection refused"),
    "closed to TLS": (TLS, "connection refused"),
    "without a name": ("http://nowhere.invalid/", "its name cannot be resolved"),
    "without an address": ("http://127.0.0.1:99999/", "it cannot be reached"),
    "without certificates": (TLS, "the certificates that REQUESTS_CA_BUNDLE names are not there"),
    "without TLS": (SERVER.address.replace("http", "https"), "TLS failed, or .*"),
}


@pytest.mark.parametrize("server", OUT_OF_REACH)
def test_a_server_out_of_reach_is_asked_once_and_for_one_file(tmp_path, server):
    (mirror, reason), course = OUT_OF_REACH[server], SERVER.url("good")
    env = {"REQUESTS_CA_BUNDLE": "gone"} if "certificates" in server else {}
    end = run(tmp_path, files=FILES[:2], mirror=mirror, COURSE=course, env=env)
    said_once(end, mirror, reason)
    assert SERVER.asked(course) == [file.name for file in FILES[:2]]


def test_the_proxy_of_the_environment_is_used_and_told_if_it_refuses(tmp_path):
    proxy, mirror, course = Server(), "https://refused.invalid/", "http://course.invalid/good/1/"
    env = {"http_proxy": proxy.address, "https_proxy": proxy.address}
    end = run(tmp_path, mirror=mirror, COURSE=course, env=env)
    assert proxy.requests == ["refused.invalid:443", course + SMALL.name], end.err
    said_once(end, mirror, "the proxy cannot be used")
    assert right(tmp_path, SMALL), end.err


@pytest.fixture(scope="session")
def tls(tmp_path_factory):
    """A server over TLS for 127.0.0.1, and what it takes to trust it."""
    authority = pytest.importorskip("trustme").CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trust = tmp_path_factory.mktemp("certificate") / "authority.pem"
    authority.cert_pem.write_to_path(str(trust))
    return Server(context), {"REQUESTS_CA_BUNDLE": str(trust)}


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("trusted", [True, False])
def test_https_is_verified(tmp_path, tls, name, trusted):
    server, trust = tls
    mirror = server.url("good").replace("127.0.0.1", name)
    end = run(tmp_path, mirror=mirror, env=trust if trusted else {})
    if trusted and name == "127.0.0.1":
        assert right(tmp_path, SMALL), end.err
    else:
        assert end.code == 1, "taken from a server that was not verified"
        said_once(end, mirror, "TLS failed, or the certificate does not verify")


@pytest.mark.parametrize("scheme", ["https", "HTTPS"])
def test_https_is_never_left_for_http(tmp_path, tls, scheme):
    server, trust = tls
    mirror = server.url("redirect-to-http").replace("https", scheme)
    before = len(SERVER.requests)
    end = run(tmp_path, mirror=mirror, env=trust)
    assert SERVER.requests[before:] == [], "the request went out in the clear"
    said_once(end, mirror, "it redirects to another protocol")
