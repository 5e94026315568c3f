"""The downloader against servers that misbehave: the real command, over real sockets."""

import os
import re
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from faulty_server import (
    CLOSED,
    FILES,
    LABELS_ONLY,
    SERVER,
    SMALL,
    Server,
    bomb,
    fill,
    original,
    right,
    run,
    tls_server,
    until,
)

from download_data import by, plain

pytestmark = pytest.mark.data

# A mirror's fault: how often it is asked for the file, and what is said of it. In all of these the
# next source has the right file.
FAULTS = {
    "403": (1, "HTTP 403"),
    "404": (1, "HTTP 404"),
    "204": (1, "HTTP 204"),
    "206": (1, "HTTP 206"),
    "408": (3, "HTTP 408"),
    "429": (3, "HTTP 429"),
    "500": (3, "HTTP 500"),
    "503": (3, "HTTP 503"),
    "busy for an hour": (3, "HTTP 429"),
    "busy for ever": (3, "HTTP 503"),
    "busy until a date": (3, "HTTP 503"),
    "html": (1, "an HTML page"),
    "xml": (1, "an XML document"),
    "empty": (3, "cut short: 0 bytes of 40128"),
    "mnist": (1, "wrong content .*SHA-256"),
    "bit flip": (1, "SHA-256"),
    "one short": (3, "40127 bytes"),
    "one more": (1, "more than the 40128 bytes"),
    "one more unannounced": (1, "more than the 40128 bytes"),
    "endless": (1, "more than the 40128 bytes"),
    "endless announced": (1, "more than the 40128 bytes"),
    "endless chunked": (1, "more than the 40128 bytes"),
    "endless chunk size": (3, ""),
    "bad chunk size": (3, ""),
    "cut": (3, "broke midway"),
    "cut within magic": (3, "cut short"),
    "cut unannounced": (3, "cut short: 20064 bytes of 40128"),
    "cut chunked": (3, ""),
    "cut in a chunk": (3, ""),
    "ended early chunked": (3, "cut short: 20064 bytes of 40128"),
    "drip": (1, "too slow"),
    "drip chunked": (1, "too slow"),
    "drip head": (1, "too slow"),
    "endless continue": (1, "too slow"),
    "stall": (1, "no answer for 2 s"),
    "stall in body": (3, "no answer for 2 s|too slow"),
    "reset": (1, "connection was reset"),
    "hang up": (1, ""),
    "reset in body": (3, "connection was reset"),
    "redirect loop": (6, "redirects without end"),
    "redirect nowhere": (1, "HTTP 302"),
    "redirect to file": (1, "redirects to another protocol"),
    "encoded bomb": (1, "more than the 40128 bytes|not the file"),
    "not http": (1, ""),
    "control characters": (1, "HTTP 404"),
}
# Those that get the right file all the same: how often it is asked for.
OVERCOME = {
    "good": 1,
    "redirect": 1,
    "redirect endless": 1,
    "tiny chunks": 1,
    "leisurely": 1,
    "mislabelled": 1,
    "encoded if accepted": 1,
    "cut once": 2,
    "reset once": 2,
    "busy once": 2,
    "busy for a second": 2,
}


@pytest.fixture(scope="module")
def outcome(data_dir, tmp_path_factory, request):
    """What came of each fault that is tested; eight are met at a time, since most only wait."""
    folders = tmp_path_factory.mktemp("data")
    bomb(original(SMALL.name))  # now, lest the server seem to stall

    def meet(fault):
        folder = fill(folders / fault)
        mirror, course = SERVER.url(fault), SERVER.url("good")
        end = run(folder, mirror=mirror, COURSE=course, before=LABELS_ONLY, timeout=50)
        asked, next_asked = SERVER.asked(mirror), SERVER.asked(course)
        return SimpleNamespace(
            **vars(end), asked=asked, next_asked=next_asked, right=right(folder), mirror=mirror
        )

    specs = [getattr(item, "callspec", None) for item in request.session.items]
    names = dict.fromkeys(spec.params["fault"] for spec in specs if spec and "fault" in spec.params)
    with ThreadPoolExecutor(8) as pool:
        outcomes = {name: pool.submit(meet, name) for name in names}
        yield lambda name: outcomes[name].result()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_mirror_is_told_and_the_next_source_asked(outcome, fault):
    (times, reason), end = FAULTS[fault], outcome(fault)
    assert end.code == 0, end.err
    assert end.right, "wrong bytes were accepted"
    assert end.next_asked == [SMALL.name], "the next source was not asked for just this file"
    assert re.search(
        rf"{end.mirror}: {SMALL.name}: .*(?:{reason})|{end.mirror}: .*{reason}", end.err
    ), f"the source, the file or the reason is not told:\n{end.err}"
    assert end.asked == [SMALL.name] * times, (
        f"asked {len(end.asked)} times, not {times}:\n{end.err}"
    )


@pytest.mark.parametrize("fault", [*FAULTS, *OVERCOME])
def test_time_and_memory_are_bounded(outcome, fault):
    end = outcome(fault)
    assert end.seconds < 15, "the deadline of 5 s, or the cap of pauses at 0.2 s, does not hold"
    assert end.megabytes < 120, "more memory than the program and a few MB of data"


@pytest.mark.parametrize("fault", OVERCOME)
def test_what_can_be_overcome_is(outcome, fault):
    end = outcome(fault)
    assert end.code == 0, end.err
    assert end.right, "wrong bytes were accepted"
    assert not end.next_asked, f"the mirror was given up:\n{end.err}"
    assert end.asked == [SMALL.name] * OVERCOME[fault]


def test_a_server_that_ignores_identity_is_judged_by_the_hash(data_dir, tmp_path):
    mirror = SERVER.url("encoded")
    end = run(fill(tmp_path), mirror=mirror, COURSE=SERVER.url("good"))
    assert end.code == 0
    assert right(tmp_path)
    assert "not the file but something that begins b'\\x1f\\x8b" in end.err
    assert SERVER.asked(mirror) == [SMALL.name], "asked again, though the answer cannot change"


@pytest.mark.parametrize(("asked", "pause"), [("a second", "1"), ("an hour", "1.5")])
def test_retry_after_is_respected_up_to_the_cap(data_dir, tmp_path, asked, pause):
    mirror, course = SERVER.url(f"busy for {asked}"), SERVER.url("good")
    end = run(fill(tmp_path), mirror=mirror, COURSE=course, LONGEST_PAUSE=1.5)
    assert f"again in {pause} s" in end.err, end.err
    assert 1 < end.seconds < 8
    assert right(tmp_path)


def test_the_pause_doubles(data_dir, tmp_path):
    end = run(fill(tmp_path), mirror=SERVER.url("503"), COURSE=SERVER.url("good"))
    assert re.findall("again in (.*) s", end.err) == ["0.05", "0.1"]


def test_a_cut_transfer_leaves_nothing_to_the_next_attempt(data_dir, tmp_path):
    """Half a file, then the whole: only an emptied temporary file gives the right hash."""
    mirror = SERVER.url("cut once")
    end = run(fill(tmp_path), mirror=mirror)
    assert right(tmp_path), end.err
    assert "again in 0.05 s" in end.err


@pytest.mark.parametrize(
    ("mirror", "reason"),
    [
        (CLOSED, "connection refused"),
        ("http://nowhere.invalid/", "its name cannot be resolved"),
        ("https://127.0.0.1:1/", "connection refused"),
        ("http://127.0.0.1:99999/", "Failed to parse"),
        (SERVER.address.replace("http", "https"), "TLS failed"),
    ],
)
def test_a_server_out_of_reach_is_asked_once_and_for_one_file(data_dir, tmp_path, mirror, reason):
    course = SERVER.url("good")
    end = run(fill(tmp_path, missing=FILES[:2]), mirror=mirror, COURSE=course)
    assert end.code == 0, end.err
    assert re.search(f"^{mirror}: .*{reason}", end.err, re.M), end.err
    assert end.err.count(f"{mirror}: ") == 1, "retried, or asked for the other file too"
    assert end.seconds < 4
    assert SERVER.asked(course) == [file.name for file in FILES[:2]]


needs_openssl = pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl to certify")


@needs_openssl
def test_https_with_a_certificate_that_verifies(data_dir, tmp_path):
    server, certificate = tls_server()
    end = run(fill(tmp_path), mirror=server.url("good"), env={"REQUESTS_CA_BUNDLE": certificate})
    assert end.code == 0, end.err
    assert right(tmp_path)


@needs_openssl
@pytest.mark.parametrize(("name", "trusted"), [("IP:127.0.0.1", False), ("DNS:else.where", True)])
def test_https_is_verified_and_never_left(data_dir, tmp_path, name, trusted):
    server, certificate = tls_server(name)
    env = {"REQUESTS_CA_BUNDLE": certificate} if trusted else {}
    mirror, course = server.url("good"), SERVER.url("good")
    end = run(fill(tmp_path), mirror=mirror, COURSE=course, env=env)
    assert end.code == 0, end.err
    assert f"{mirror}: TLS failed, or its certificate does not verify" in end.err
    assert not server.asked(mirror), "a request went to a server that was not verified"
    assert SERVER.asked(course) == [SMALL.name]


@needs_openssl
def test_a_redirect_from_https_to_http_is_not_followed(data_dir, tmp_path):
    server, certificate = tls_server()
    mirror, before = server.url("redirect to http"), len(SERVER.requests)
    end = run(fill(tmp_path), mirror=mirror, env={"REQUESTS_CA_BUNDLE": certificate})
    assert end.code == 1
    assert f"{mirror}: it redirects to another protocol than https" in end.err
    assert SERVER.requests[before:] == [], "the request went out in the clear"


def test_the_proxy_of_the_environment_is_used(data_dir, tmp_path):
    proxy, mirror = Server(), "http://mirror.invalid/1/"
    env = {"http_proxy": proxy.address, "https_proxy": proxy.address}
    end = run(fill(tmp_path), mirror=mirror, env=env)
    assert proxy.requests == [mirror + SMALL.name], end.err
    assert right(tmp_path)


def test_a_proxy_that_refuses_is_told(data_dir, tmp_path):
    proxy = Server()
    env = {"https_proxy": proxy.address, "no_proxy": "127.0.0.1"}
    end = run(fill(tmp_path), mirror="https://a.invalid/", env=env, COURSE=SERVER.url("good"))
    assert proxy.requests == ["a.invalid:443"]
    assert "https://a.invalid/: the proxy cannot be used" in end.err
    assert right(tmp_path), end.err


def test_foreign_text_is_one_line_of_bounded_length():
    assert plain("All\x1b[2J\r\n is\0 well" + "l" * 300) == "All[2J is well" + "l" * 186


def test_what_is_not_yet_taken_is_not_read_on():
    """However fast the server and slow the disk: memory is bounded."""
    given, before = [], threading.active_count()
    chunks = by(time.monotonic() + 10, (given.append(i) or b"x" for i in range(10**6)))
    next(chunks)
    time.sleep(0.2)
    assert len(given) < 10
    chunks.close()
    until(lambda: threading.active_count() == before)  # nobody is left to wait for room


def test_the_wait_is_bounded_when_all_sources_hang(data_dir, tmp_path):
    """Four sources that hang, each in its way: each is left at its first file."""
    system = tmp_path / "system"
    system.mkdir()
    os.mkfifo(system / SMALL.idx)
    end = run(
        fill(tmp_path / "data", missing=FILES[:2]),
        mirror=SERVER.url("stall"),
        SYSTEM=str(system),
        COURSE=SERVER.url("drip head"),
        ZALANDO=SERVER.url("endless gzip"),
        TIMEOUT=1,
        GRACE=1.5,
    )
    assert end.code == 1
    for reason in (
        "no answer for 1 s",
        f"{system}: too slow",
        "course's server: too slow",
        "Zalando's server: too slow",
    ):
        assert end.err.count(reason) == 2, f"not said once, and once in the summary:\n{end.err}"
    assert end.seconds < 10, "more than the deadline of 1.5 s for each source"
