"""The downloader against servers that misbehave: the real command, over real sockets."""

import itertools
import re
import shutil
import ssl
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from faulty_server import (
    CLOSED,
    DAMAGES,
    FILES,
    SERVER,
    SMALL,
    Server,
    original,
    right,
    run,
)

from download_data import npy_from_idx, printable, until_deadline

pytestmark = pytest.mark.data

CUT_MIDWAY = (
    "the connection broke, or stalled|cut short: .*"  # it depends on the version of urllib3
)

# A mirror's fault: how often it is asked for the file, and what is said of it. In all of these the
# next source has the right file.
FAULTS = {
    "drip": (1, "too slow: its time is up"),
    "drip-head": (1, "too slow: its time is up"),
    "stall": (1, "no answer for 2 s"),
    "stall-in-body": (3, "the connection broke, or stalled"),
    "206": (1, "HTTP 206 Partial Content"),
    "403": (1, "HTTP 403 Forbidden"),
    "404": (1, "HTTP 404 Not Found"),
    "408": (3, "HTTP 408 Request Timeout"),
    "429": (3, "HTTP 429 Too Many Requests"),
    "500": (3, "HTTP 500 Internal Server Error"),
    "503": (3, "HTTP 503 Service Unavailable"),
    "busy-for-an-hour": (3, "HTTP 429 Too Many Requests"),
    "html": (1, "not the file but an HTML or XML page"),
    "xml": (1, "not the file but an HTML or XML page"),
    "empty": (3, "cut short: 0 bytes of 40128"),
    "mnist": (1, r"wrong content \(MNIST, or an older version\?\): its SHA-256 is \w{64}"),
    "one-short": (3, "cut short: 40127 bytes of 40128"),
    "one-more": (1, "more than the 40128 bytes expected"),
    "endless": (1, "more than the 40128 bytes expected"),
    "endless-chunked": (1, "more than the 40128 bytes expected"),
    "cut": (3, CUT_MIDWAY),
    "cut-in-magic": (3, "cut short: 3 bytes of 40128"),
    "cut-unannounced": (3, "cut short: 20064 bytes of 40128"),
    "cut-chunked": (3, CUT_MIDWAY),
    "hang-up": (1, "it cannot be reached"),
    "reset": (1, "it cannot be reached"),
    "reset-in-body": (3, "the connection broke, or stalled"),
    "redirect": (31, "it cannot be reached"),
    "redirect-nowhere": (1, "HTTP 302 Found"),
    "redirect-to-file": (1, "it redirects away from https"),
    "compressed": (1, r"not the file but something that begins b'\\x1f\\x8b.*'"),
    "not-http": (1, "it cannot be reached"),
    "control-characters": (1, r"HTTP 404 \[2JAll is well"),
}
# Those that get the right file all the same: how often it is asked for.
OVERCOME = {
    "good": 1,
    "mislabelled": 1,
    "redirect+good": 2,
    "503+good": 2,
    "cut+good": 2,
    "stall-in-body+good": 2,
    "reset-in-body+reset-in-body+good": 3,
}
# What is said of a damaged IDX file, in the system's folder and on Zalando's server.
IN_IDX = {
    "empty": (3, "cut short: (0|128) bytes of 40128"),
    "gzip-cut": (3, r"cut short: \d+ bytes of 40128"),
    "gzip-wrong-crc": (1, "the gzip file is damaged"),
    "gzip-bomb": (1, "more than the 40128 bytes expected"),
    "not-compressed": (1, "the gzip file is damaged|not the file but something that begins .*"),
    "page": (1, "the gzip file is damaged|not the file but an HTML or XML page"),
    "one-value-less": (3, "cut short: 40124 bytes of 40128"),
    "one-value-more": (1, "more than the 40128 bytes expected"),
    "other-values": (1, r"wrong content \(MNIST, .*"),
}


def said(end, source, reason, times):
    """Whether the reason is given for the source, or for its file, once and as it is written."""
    thrice = ", 3 times" * (times == 3)
    lines = re.findall(f"^{re.escape(source)}: (?:{SMALL.name}: )?(.*)$", end.err, re.M)
    return len(lines) == 1 and re.fullmatch(f"(?:{reason}){thrice}", lines[0])


def outcomes(request, parameter, meet):
    """What came of each value of the parameter; eight at a time, since most only wait."""
    specs = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    names = dict.fromkeys(spec[parameter] for spec in specs if parameter in spec)
    with ThreadPoolExecutor(8) as pool:
        futures = {name: pool.submit(meet, name) for name in names}
        yield lambda name: futures[name].result()


@pytest.fixture(scope="module")
def outcome(data_dir, tmp_path_factory, request):
    """What came of a fault of the mirror."""
    base = tmp_path_factory.mktemp("faults")

    def meet(fault):
        folder, mirror, course = base / fault, SERVER.url(fault), SERVER.url("good")
        waits = fault.startswith(("drip", "stall"))
        end = run(folder, mirror=mirror, COURSE=course, **dict(TIMEOUT=2, GRACE=9) if waits else {})
        asked = SimpleNamespace(mirror=SERVER.asked(mirror), course=SERVER.asked(course))
        return SimpleNamespace(**vars(end), asked=asked, mirror=mirror, right=right(folder, SMALL))

    yield from outcomes(request, "fault", meet)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_mirror_is_told_and_the_next_source_asked(outcome, fault):
    (times, reason), end = FAULTS[fault], outcome(fault)
    assert end.right, f"wrong bytes were accepted, or none came:\n{end.err}"
    assert end.code == 0, end.err
    assert said(end, end.mirror, reason, times), f"not told, or in other words:\n{end.err}"
    assert len(end.asked.mirror) == times, f"not asked {times} times:\n{end.err}"
    assert end.asked.course == [SMALL.name], "the next source was not asked for just this file"


@pytest.mark.parametrize("fault", OVERCOME)
def test_what_can_be_overcome_is(outcome, fault):
    end = outcome(fault)
    assert end.right, f"wrong bytes were accepted, or none came:\n{end.err}"
    assert end.code == 0, end.err
    assert not end.asked.course, f"the mirror was given up:\n{end.err}"
    assert end.asked.mirror == [SMALL.name] * OVERCOME[fault]


@pytest.fixture(scope="module")
def idx_outcome(data_dir, tmp_path_factory, request):
    """What came of a damaged IDX file."""
    base = tmp_path_factory.mktemp("idx")

    def meet(damage):
        system, folder, url = base / damage / "system", base / damage / "data", SERVER.url(damage)
        system.mkdir(parents=True)
        (system / SMALL.idx).write_bytes(DAMAGES[damage](original(SMALL.idx)))
        end = run(folder, SYSTEM=str(system), ZALANDO=url)
        stored = list(folder.iterdir())
        return SimpleNamespace(**vars(end), system=system, asked=SERVER.asked(url), stored=stored)

    yield from outcomes(request, "damage", meet)


@pytest.mark.parametrize("damage", IN_IDX)
def test_a_damaged_idx_file_is_told_and_refused(idx_outcome, damage):
    (times, reason), end = IN_IDX[damage], idx_outcome(damage)
    assert not end.stored, "wrong bytes were accepted"
    assert end.code == 1
    for source in (str(end.system), "Zalando's server"):
        assert said(end, source, reason, times), f"not told, or in other words:\n{end.err}"
    assert end.asked == [SMALL.idx] * times, f"not asked {times} times"


def test_idx_files_labelled_as_compressed_are_taken_as_they_are(data_dir, tmp_path):
    """Many servers say 'Content-Encoding: gzip' of a file that is itself a .gz."""
    assert run(tmp_path, ZALANDO=SERVER.url("mislabelled")).code == 0
    assert right(tmp_path, SMALL)


def test_a_bomb_expands_to_no_more_than_a_file_at_a_time(data_dir):
    pieces = npy_from_idx(SMALL, [DAMAGES["gzip-bomb"](original(SMALL.idx))])
    assert max(map(len, pieces)) <= SMALL.size


def test_the_server_is_asked_not_to_compress(data_dir, tmp_path):
    run(tmp_path, mirror=(mirror := SERVER.url("good")))
    (head,) = (head for head in SERVER.heads if mirror.removeprefix(SERVER.address) in head)
    assert "Accept-Encoding: identity" in head


@pytest.mark.parametrize(
    ("mirror", "reason"),
    [
        (CLOSED, "connection refused"),
        (CLOSED.replace("http", "https"), "connection refused"),
        ("http://nowhere.invalid/", "its name cannot be resolved"),
        ("http://127.0.0.1:99999/", "it cannot be reached"),
        (SERVER.address.replace("http", "https"), "TLS failed, or .*"),
    ],
)
def test_a_server_out_of_reach_is_asked_once_and_for_one_file(data_dir, tmp_path, mirror, reason):
    course = SERVER.url("good")
    end = run(tmp_path, files=FILES[:2], mirror=mirror, COURSE=course)
    assert end.code == 0, end.err
    assert said(end, mirror, reason, times=1), f"not once, or in other words:\n{end.err}"
    assert SERVER.asked(course) == [file.name for file in FILES[:2]]


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    """A server over TLS for 127.0.0.1, and the certificate that it signed itself."""
    folder = tmp_path_factory.mktemp("certificate")
    request = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test -keyout key.pem"
    words = f"{request} -out certificate.pem -addext subjectAltName=IP:127.0.0.1".split()
    if (
        not shutil.which("openssl")
        or subprocess.run(words, cwd=folder, capture_output=True).returncode
    ):
        pytest.skip("needs an openssl that can make a certificate")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    return Server(context), {"REQUESTS_CA_BUNDLE": str(folder / "certificate.pem")}


def test_https_with_a_certificate_that_verifies(data_dir, tmp_path, tls):
    server, trust = tls
    end = run(tmp_path, mirror=server.url("good"), env=trust)
    assert end.code == 0, end.err
    assert right(tmp_path, SMALL)


@pytest.mark.parametrize("wrong", ["not trusted", "another name"])
def test_https_is_verified(data_dir, tmp_path, tls, wrong):
    server, trust = tls
    mirror = server.url("good")
    if wrong == "another name":
        mirror = mirror.replace("127.0.0.1", "localhost")
    end = run(tmp_path, mirror=mirror, env=trust if wrong == "another name" else {})
    assert end.code == 1, "taken from a server that was not verified"
    assert said(end, mirror, "TLS failed, or the certificate does not verify", times=1), end.err


def test_https_is_never_left_for_http(data_dir, tmp_path, tls):
    server, trust = tls
    mirror, before = server.url("redirect-to-http"), len(SERVER.requests)
    end = run(tmp_path, mirror=mirror, env=trust)
    assert end.code == 1
    assert said(end, mirror, "it redirects away from https", times=1), end.err
    assert SERVER.requests[before:] == [], "the request went out in the clear"


def test_the_proxy_of_the_environment_is_used(data_dir, tmp_path):
    proxy, mirror = Server(), "http://mirror.invalid/good/1/"
    end = run(tmp_path, mirror=mirror, env={"http_proxy": proxy.address})
    assert proxy.requests == [mirror + SMALL.name], end.err
    assert right(tmp_path, SMALL)


def test_a_proxy_that_refuses_is_told(data_dir, tmp_path):
    proxy, mirror = Server(), "https://a.invalid/"
    end = run(tmp_path, mirror=mirror, env={"https_proxy": proxy.address})
    assert proxy.requests == ["a.invalid:443"]
    assert said(end, mirror, "the proxy cannot be used", times=1), end.err


def test_foreign_text_is_one_line_of_bounded_length():
    assert printable("All\x1b[2J\r\n is\0 well" + "l" * 300) == "All[2J is well" + "l" * 186


def test_what_is_given_up_is_read_no_further():
    ended = threading.Event()

    def endless():
        try:
            yield from itertools.repeat(b"more")
        finally:
            ended.set()

    chunks = until_deadline(time.monotonic() + 60, endless())
    next(chunks)
    chunks.close()
    assert ended.wait(60), "a thread reads on"
