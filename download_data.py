"""Fetch the four Fashion-MNIST files of the assignment, verified to the byte.

    python download_data.py [--data-dir data] [--mirror URL]

All sources are distrusted alike. What one yields goes into a temporary file beside its destination,
never more of it than expected, and only the right SHA-256 gives it its final name. So

- no file of FILES exists with wrong content because of us, not even for a moment; an old one stays
  until its successor is verified; what one run has verified, the next one keeps;
- files that are there and verify need no network, and nothing is written;
- the temporary file goes, whatever happens, but for SIGKILL; what that leaves is never read;
- memory stays within a few MB;
- time is bounded: for each file a source has GRACE seconds, and one more for each PACE bytes. One
  that exceeds this, whatever it hangs in, is asked for nothing more; if all hang from the start,
  it is over in eight minutes.
"""

import argparse
import contextlib
import hashlib
import itertools
import os
import queue
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import requests


class File(NamedTuple):
    """A file as the course serves it: NumPy format 1.0, header of 128 bytes, C order."""

    name: str
    idx: str  # Zalando's name of the same numbers, as unsigned bytes in gzipped IDX
    size: int
    dtype: str
    shape: tuple[int, ...]
    sha256: str


# fmt: off
FILES = (  # the smallest first, so that what is wrong with a source shows at once
    File("fashion_mnist_test_labels.npy", "t10k-labels-idx1-ubyte.gz", 40128, "<i4", (10000,),
         "a061445ec01d9336dd4e01f4a7ac5130bfbe293c72552800597ee202941c88c7"),
    File("fashion_mnist_train_labels.npy", "train-labels-idx1-ubyte.gz", 240128, "<i4", (60000,),
         "ad5d875264cf0487ba1a2330b7cd74a15a4df0bacccadd6e711126f11e365251"),
    File("fashion_mnist_test_images.npy", "t10k-images-idx3-ubyte.gz", 31360128, "<f4",
         (10000, 784), "15be6db025eec7ed428d43f890c9e6a8f314a730b255b6f300a50eb98b8d2cde"),
    File("fashion_mnist_train_images.npy", "train-images-idx3-ubyte.gz", 188160128, "<f4",
         (60000, 784), "b4c9ef4d227514f872c39662c006b45cb682c5bc28ed567f42adb0bc542153a4"),
)
# fmt: on

PACKAGE = "dataset-fashion-mnist"  # of Debian and Ubuntu
PACKED = "usr/share/datasets/fashion-mnist"  # Zalando's files in that package
SYSTEM = Path("/", PACKED)
COURSE = "https://s3.amazonaws.com/jrwprojects/"
ZALANDO = "https://fashion-mnist.s3.eu-central-1.amazonaws.com/"

TIMEOUT = 15  # seconds to connect, and between two pieces of an answer
GRACE, PACE = 40, 100_000  # a file may take GRACE seconds, and one more for each PACE bytes
ATTEMPTS, PAUSE, LONGEST_PAUSE = 3, 1, 10  # the pause doubles; a server may ask for another
CHUNK = 262_144  # bytes


class DataError(Exception):
    """The data cannot be had, or are not what they must be. The text is meant for the user."""


class Refused(Exception):
    """A source does not yield this file; it may yield the others."""


class Broken(Refused):
    """The transfer failed midway or the server is busy: another attempt may succeed."""

    def __init__(self, reason: str, pause: float = 0):
        super().__init__(reason)
        self.pause = pause  # seconds that the server asks for


class Unanswered(Refused):
    """The source is out of reach, for the other files too."""


Stream = Callable[[], Iterator[bytes]]  # a fresh one for each attempt


def ensure(data_dir: str | os.PathLike, mirror: str | None = None) -> None:
    """Return with all of FILES in `data_dir` and verified; fetch those that are not.

    `mirror` is the URL of a folder with the four .npy files. It is asked before all other sources,
    and it alone may be plain http, since the hashes decide. Progress goes to stderr. Raises
    DataError, with each source's reason, when a file cannot be had, or cannot be written.
    """
    data_dir = Path(data_dir)
    flaws = {file: flaw(data_dir / file.name, file) for file in FILES}
    missing = [file for file in FILES if flaws[file]]
    if not missing:
        return
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make the folder {data_dir}: {error.strerror}") from None
    for file in missing:
        if flaws[file] != "missing":
            say(f"{data_dir / file.name}: {flaws[file]}; fetching it again")

    reasons = []
    for name, attempts, source in sources(mirror):
        try:
            with contextlib.closing(source(list(missing))) as offers:
                for file, stream in offers:
                    try:
                        place(file, data_dir, stream, name, attempts)
                        missing.remove(file)
                    except Unanswered:
                        raise
                    except Refused as error:
                        reasons.append(f"{name}: {file.name}: {error}")
                        say(reasons[-1])
        except Unanswered as error:
            reasons.append(f"{name}: {error}")
            say(reasons[-1])
        if not missing:
            return
    raise DataError(
        "\n  ".join(["not all files can be had. Tried:", *reasons])
        + f"\nEither install the package {PACKAGE} (Debian, Ubuntu), or put into {data_dir}:\n  "
        + "\n  ".join(f"{file.name}  {file.size} bytes, SHA-256 {file.sha256}" for file in missing)
    )


def flaw(path: Path, file: File) -> str | None:
    """What is wrong with `path`, or None. Raises DataError where it must not be replaced."""
    try:
        if not os.path.lexists(path):
            return "missing"
        if not path.is_file():
            raise DataError(f"{path} is in the way: it is not a file. Move it elsewhere")
        size, digest = path.stat().st_size, hashlib.sha256()
        if size == file.size:
            with open(path, "rb") as content:
                while chunk := content.read(CHUNK):
                    digest.update(chunk)
        wrong = differs(file, size, digest.hexdigest())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    if wrong and path.is_symlink():
        raise DataError(f"{path} is in the way: a symbolic link, and {wrong}. Move it elsewhere")
    return wrong


def differs(file: File, size: int, sha256: str) -> str | None:
    """How content of this size and hash differs from `file`, in words, or None."""
    if size != file.size:
        return f"{size} bytes, not {file.size}"
    if sha256 != file.sha256:
        return f"wrong content (MNIST, or an older version?): SHA-256 {sha256}, not {file.sha256}"
    return None


def place(file: File, data_dir: Path, stream: Stream, origin: str, attempts: int) -> None:
    """Try `attempts` times to store what `stream` yields as `file`. Raises Refused or DataError."""
    deadline = time.monotonic() + GRACE + file.size / PACE
    for attempt in itertools.count(1):
        try:
            return receive(file, data_dir / file.name, by(deadline, stream()), origin)
        except Broken as error:
            if attempt == attempts:
                raise Refused(f"{error}, {attempts} times" if attempts > 1 else error) from None
            pause = min(max(PAUSE * 2 ** (attempt - 1), error.pause), LONGEST_PAUSE)
            say(f"{origin}: {file.name}: {error}; again in {pause:g} s")
            time.sleep(pause)


def receive(file: File, target: Path, chunks: Iterator[bytes], origin: str) -> None:
    """Write `chunks` beside `target`, and move them there if they prove to be `file`."""
    size, digest, start = 0, hashlib.sha256(), time.monotonic()
    try:
        with contextlib.closing(chunks), replacing(target) as output:
            for chunk in chunks:
                size += len(chunk)
                if size > file.size:
                    raise Refused(f"more than the {file.size} bytes expected")
                digest.update(chunk)
                output.write(chunk)
                rate = size / (time.monotonic() - start + 1e-3)
                live(
                    f"{file.name}  {size / 1e6:.1f} of {file.size / 1e6:.1f} MB"
                    f"  {rate / 1e6:.1f} MB/s  {(file.size - size) / (rate + 1):.0f} s left"
                )
            if size < file.size:
                raise Broken(f"cut short: {size} bytes of {file.size}")
            if wrong := differs(file, size, digest.hexdigest()):
                raise Refused(wrong)
    except OSError as error:
        raise DataError(f"cannot write {target}: {error.strerror}") from None
    say(f"{target}: {size / 1e6:.2f} MB from {origin}, verified")


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[BinaryIO]:
    """Open a file beside `target` that takes its place at the end, unless an exception ends it."""
    # A plain open() gives the permissions of the umask, where tempfile would give 0600.
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.part")
    try:
        with open(temporary, "xb") as output:
            yield output
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


# Sources: generators that offer (file, stream) for the files asked for, each stream the bytes of
# a .npy file. They raise Refused and nothing else; receive() judges what they yield.


def sources(mirror: str | None) -> list[tuple[str, int, Callable]]:
    """Rows of (name, attempts, source), in the order in which they are asked."""
    rows = [
        (str(SYSTEM), 1, partial(system_copy, SYSTEM)),
        ("the course's server", ATTEMPTS, partial(npy_server, COURSE)),
        ("Zalando's server", ATTEMPTS, idx_server),
        ("the system's package mirror", 1, package_mirror),
    ]
    return [(mirror, ATTEMPTS, partial(npy_server, mirror))] * bool(mirror) + rows


def system_copy(folder: Path, files: list[File]) -> Iterator[tuple[File, Stream]]:
    """Zalando's files in a folder of this machine."""
    if not os.path.isdir(folder):
        raise Unanswered("not there")
    for file in files:
        yield file, lambda path=folder / file.idx, file=file: npy(file, gunzip(read(path)))


def npy_server(url: str, files: list[File]) -> Iterator[tuple[File, Stream]]:
    """The very files, in a folder on a web server."""
    for file in files:
        yield file, partial(http, f"{url.rstrip('/')}/{file.name}", b"\x93NUMPY")


def idx_server(files: list[File]) -> Iterator[tuple[File, Stream]]:
    """Zalando's own publication."""
    for file in files:
        yield file, lambda file=file: npy(file, gunzip(http(ZALANDO + file.idx, b"\x1f\x8b")))


def package_mirror(files: list[File]) -> Iterator[tuple[File, Stream]]:
    """The Debian package, unpacked in a temporary folder: needs no root, installs nothing."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise Unanswered("no apt-get on this system")
    live(f"{PACKAGE} from the system's package mirror")
    deadline = time.monotonic() + GRACE + 31_000_000 / PACE  # the size of the package
    try:
        with tempfile.TemporaryDirectory(prefix="fashion-mnist-") as folder:
            private = [f"-oDir::State::Lists={folder}/lists", f"-oDir::Cache={folder}/cache"]
            apt = ["apt-get", "-q", *private, "-oAcquire::Languages=none"]
            for part in ("lists/partial", "cache/archives/partial"):
                Path(folder, part).mkdir(parents=True)
            run([*apt, "update"], folder, deadline)
            run([*apt, "download", PACKAGE], folder, deadline)
            found = map(str, Path(folder).glob("*.deb"))
            run(["dpkg-deb", "-x", *found, folder], folder, deadline)
            yield from system_copy(Path(folder, PACKED), files)
    except OSError as error:
        raise Unanswered(f"cannot unpack {PACKAGE}: {error.strerror}") from None


def run(command: list[str], folder: str, deadline: float) -> None:
    """Run `command` in `folder`; raise Unanswered with its last word if it fails or hangs."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            timeout=deadline - time.monotonic(),
            capture_output=True,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise Unanswered(f"{command[0]} was too slow: its time is up") from None
    if done.returncode:
        words = (done.stderr or done.stdout).decode(errors="replace").split("\n")
        last = next(filter(None, reversed(words)), done.returncode)
        raise Unanswered(plain(f"{command[0]}: {last}"))


def read(path: Path) -> Iterator[bytes]:
    """The content of a file."""
    try:
        with open(path, "rb") as content:
            while chunk := content.read(CHUNK):
                yield chunk
    except OSError as error:
        raise Refused(f"{path.name}: {error.strerror}") from None


def http(url: str, magic: bytes) -> Iterator[bytes]:
    """The body of `url`, if it begins with `magic`. TLS is verified, and not left for http."""
    with requests.Session() as session:
        session.max_redirects = 5
        if not url.startswith("http://"):
            del session.adapters["http://"]
        # Whatever a foreign server provokes below, in three libraries, is that source's failure.
        try:
            answer = session.get(
                url,
                stream=True,
                timeout=TIMEOUT,
                headers={"Accept-Encoding": "identity"},
                hooks={"response": bodiless},
            )
        except Exception as error:
            raise Unanswered(in_words(error)) from None
        with answer:
            status = f"HTTP {answer.status_code} {plain(answer.reason or '')}".rstrip()
            if answer.status_code in (408, 429) or answer.status_code >= 500:
                pause = answer.headers.get("Retry-After", "")
                raise Broken(status, int(pause) if re.fullmatch("[0-9]{1,9}", pause) else 0)
            if answer.status_code != 200:
                raise Refused(status)
            try:
                # Undecoded: bytes wrongly labelled as encoded are right; the hash decides.
                body = answer.raw.stream(CHUNK, decode_content=False)
                for number, chunk in enumerate(headed(body, len(magic))):
                    if number == 0 and chunk[: len(magic)] != magic[: len(chunk)]:
                        raise Refused(f"not the file but {kind(chunk)}")
                    yield chunk
            except Refused:
                raise
            except Exception as error:
                raise Broken(in_words(error)) from None


def bodiless(answer: requests.Response, **_) -> None:
    """A hook: drop the body of a redirect, which requests would read to its end, if it has one."""
    if answer.is_redirect:
        answer.raw.close()


def headed(chunks: Iterator[bytes], length: int) -> Iterator[bytes]:
    """Yield `chunks`, the first ones joined until they are `length` bytes or all."""
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= length:
            break
    yield head
    yield from chunks


def by(deadline: float, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield `chunks`, and raise Unanswered at the deadline, whatever they are blocked in then.

    Time-outs of sockets do not bound a transfer: a server may drip, a look-up of its name hang.
    So the blocking is done by a thread that can be left behind.
    """
    pieces = queue.Queue(maxsize=4)
    left = threading.Event()

    def pump() -> None:
        try:
            with contextlib.closing(chunks):
                for chunk in chunks:
                    pieces.put(chunk)
                    if left.is_set():
                        return
            pieces.put(None)
        except Exception as error:
            pieces.put(error)

    threading.Thread(target=pump, daemon=True).start()
    try:
        while (piece := pieces.get(timeout=max(0, deadline - time.monotonic()))) is not None:
            if isinstance(piece, Exception):
                raise piece
            yield piece
    except queue.Empty:
        raise Unanswered("too slow: its time is up") from None
    finally:
        left.set()
        with contextlib.suppress(queue.Empty):
            while True:  # a thread that waits for room goes on, and sees that it was left
                pieces.get_nowait()


def gunzip(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Decompress exactly one gzip member, a bounded piece at a time."""
    unzip = zlib.decompressobj(wbits=31)  # gzip, with its header, length and CRC
    try:
        for chunk in chunks:
            while chunk and not unzip.eof:
                yield unzip.decompress(chunk, CHUNK)
                chunk = unzip.unconsumed_tail
            if chunk or unzip.unused_data:
                raise Refused("the gzip file goes on after its end")
    except zlib.error as error:
        raise Refused(f"the gzip file is damaged: {error}") from None
    if not unzip.eof:
        raise Broken("the gzip file is cut short")


def npy(file: File, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Turn an IDX file (yann.lecun.com/exdb/mnist) into what np.save writes, byte for byte."""
    sizes = (file.shape[0], 28, 28)[: 2 * len(file.shape) - 1]
    magic = bytes([0, 0, 8, len(sizes)]) + b"".join(size.to_bytes(4, "big") for size in sizes)
    chunks = headed(chunks, len(magic))
    head = next(chunks)
    if not head.startswith(magic):
        raise Refused(f"not the IDX file expected: it begins {head[:16].hex()}, not {magic.hex()}")
    entry = f"{{'descr': '{file.dtype}', 'fortran_order': False, 'shape': {file.shape}, }}"
    yield b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + f"{entry:117}\n".encode()
    for chunk in itertools.chain([head[len(magic) :]], chunks):
        yield np.frombuffer(chunk, np.uint8).astype(file.dtype).tobytes()


def kind(head: bytes) -> str:
    """What `head` is the beginning of, in words."""
    text = head.strip().lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    if text.startswith(b"<"):
        return "an XML document"
    return f"something that begins {head[:16]!r}"


def in_words(error: Exception) -> str:
    """A failure of requests in plain words."""
    text, kinds = str(error), requests.exceptions
    for sign, words in (
        (kinds.ProxyError, "the proxy cannot be used"),
        (kinds.SSLError, "TLS failed, or its certificate does not verify"),
        (kinds.TooManyRedirects, "it redirects without end"),
        (kinds.InvalidSchema, "it redirects to another protocol than https"),
        ("NameResolution", "its name cannot be resolved"),
        ("Connection refused", "connection refused"),
        ("timed out", f"no answer for {TIMEOUT} s"),
        ("reset by peer", "the connection was reset"),
        ("RemoteDisconnected", "it closed the connection without an answer"),
        ("BadStatusLine", "it does not speak HTTP"),
        ("IncompleteRead|InvalidChunk|ended prematurely|chunk size", "the connection broke midway"),
    ):
        if re.search(sign, text) if isinstance(sign, str) else isinstance(error, sign):
            return words
    return plain(text)


def plain(text: str) -> str:
    """Text of a foreign server or file, made fit for a terminal and a line."""
    return "".join(filter(str.isprintable, text))[:200]


def say(line: str) -> None:
    """A line on stderr, in place of a live one. What stderr does not take is not worth failing."""
    live("")
    if sys.stderr:  # None if it was closed
        with contextlib.suppress(OSError):
            print(line, file=sys.stderr)


def live(line: str) -> None:
    """The line on a terminal that the next one replaces; nothing elsewhere."""
    if on_terminal():
        width = shutil.get_terminal_size().columns - 1
        # No flush: stderr is line-buffered, and \r counts as the end of a line.
        print(f"\r\x1b[K{line[:width]}", end="", file=sys.stderr)


def on_terminal() -> bool:
    """Whether stderr is a terminal."""
    return bool(sys.stderr) and sys.stderr.isatty()


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Fetch the four Fashion-MNIST files, verified by their SHA-256.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data-dir", default="data", metavar="DIR", help="where the files go")
    parser.add_argument("--mirror", metavar="URL", help="a folder on a web server to ask first")
    options = parser.parse_args()
    if options.mirror is not None and not re.match(r"https?://[^/]", options.mirror):
        parser.error(f"--mirror {options.mirror}: not an http or https URL")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        ensure(options.data_dir, options.mirror)
    except DataError as error:
        say(f"download_data.py: {error}")
        return 1
    except KeyboardInterrupt:
        say("download_data.py: interrupted")
        return 130
    say(f"{options.data_dir}: all four files are there and verified")
    return 0


if __name__ == "__main__":
    sys.exit(main())
