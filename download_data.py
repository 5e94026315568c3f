"""Fetch the four Fashion-MNIST files of the assignment, verified to the byte.

    python download_data.py [--data-dir DIR] [--mirror URL]

No source is trusted. What it sends is written into a temporary folder beside the data, never more
of it than expected, and is moved to its final name only if its SHA-256 is right. Therefore

- a wrong or partial file never gets its final name, and an old file stays until the new one is
  verified; what one run has verified, the next run keeps;
- files that are present and right need no network, and nothing is written;
- the temporary folder is removed also after Ctrl-C, SIGTERM, SIGHUP and SIGQUIT, at any time;
- time is bounded: an attempt at a file may take GRACE seconds, and one for every MIN_RATE bytes.
"""

import signal
import sys

if sys.version_info < (3, 10):  # noqa: UP036 - an old Python must say so, not fail somewhere
    sys.exit(f"Python 3.10 or newer is needed; this is Python {sys.version.split()[0]}.")
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while modules are imported: no traceback

import argparse
import contextlib
import hashlib
import math
import os
import queue
import re
import shutil
import subprocess
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

try:
    import numpy as np
except ModuleNotFoundError:
    sys.exit("NumPy is missing. README.md says how to install it: pip install -r requirements.txt")


class File(NamedTuple):
    """A file as the course serves it: NumPy format 1.0, header of 128 bytes, C order."""

    name: str
    idx: str  # Zalando's name of the same numbers, as unsigned bytes in gzipped IDX
    size: int
    dtype: str
    shape: tuple[int, ...]
    sha256: str


# fmt: off
FILES = (  # the smallest first, so that a faulty source is found out soon
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

DATA = Path(__file__).resolve().with_name("data")
PACKAGE = "dataset-fashion-mnist"  # of Debian and Ubuntu
PACKED = "usr/share/datasets/fashion-mnist"  # where that package has Zalando's files
SYSTEM = Path("/", PACKED)
COURSE = "https://s3.amazonaws.com/jrwprojects/"
ZALANDO = "https://fashion-mnist.s3.eu-central-1.amazonaws.com/"

TIMEOUT = 15  # seconds to connect, and between two pieces of an answer
GRACE, MIN_RATE = 40, 100_000  # seconds, and bytes per second beyond them
ATTEMPTS, PAUSE = 3, 2  # seconds between two attempts
CHUNK = 262_144  # bytes
NPY, GZIP = b"\x93NUMPY", b"\x1f\x8b"  # how such files begin


class DataError(Exception):
    """The data cannot be had, or are not what they must be. The text is meant for the user."""


class Refused(Exception):
    """A source does not have this file; it may have the others."""


class Broken(Refused):
    """The transfer failed midway, or the server is busy: another attempt may succeed."""


class SourceDown(Refused):
    """The source cannot be used at all, so it is not asked for the other files."""


# --- The four files -------------------------------------------------------------------------------


def ensure(data_dir: str | os.PathLike = DATA, mirror: str | None = None) -> Path:
    """Fetch those of FILES that `data_dir` lacks; return its absolute path when all are verified.

    `mirror` is the URL of a folder with the four .npy files, to be asked before all other sources.
    Progress, and what is wrong with a source, goes to stderr. Raises DataError if a file cannot be
    had from any source, or cannot be stored.
    """
    data_dir = Path(data_dir).absolute()
    missing = []
    for file in FILES:
        path = data_dir / file.name
        wrong = mismatch(path, file)
        if wrong:
            missing.append(file)
        if wrong and os.path.lexists(path):
            if os.path.islink(path) or not os.path.isfile(path):
                raise DataError(f"{path}: {wrong}. Only a regular file is replaced; move this one")
            log(f"{path}: {wrong}; fetching it again")
    if not missing:
        return data_dir
    folder = data_dir / f".fetching-{os.urandom(8).hex()}"  # known before it is made
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
        for name, source in sources(mirror, folder):
            for file in list(missing):
                try:
                    fetch(file, name, source, folder / file.name, data_dir / file.name)
                    missing.remove(file)
                except SourceDown as error:
                    log(f"{name}: {error}")
                    break
                except Refused as error:
                    log(f"{name}: {file.name}: {error}")
    except OSError as error:
        raise DataError(
            f"cannot store the data in {data_dir}: {error.strerror}. To use another folder DIR: "
            "download_data.py --data-dir DIR, then softmax_sgd.py --data-dir DIR"
        ) from None
    finally:
        try:
            shutil.rmtree(folder, ignore_errors=True)
        finally:  # again, if a signal broke that off: `run` lets no second one through
            shutil.rmtree(folder, ignore_errors=True)
    if missing:
        raise DataError(
            "not all files can be had, for the reasons above. Install the package "
            f"{PACKAGE} (Debian, Ubuntu), or put into {data_dir}:\n  "
            + "\n  ".join(f"{COURSE}{f.name}  {f.size} bytes, SHA-256 {f.sha256}" for f in missing)
        )
    return data_dir


def mismatch(path: Path, file: File) -> str | None:
    """In which way the content of `path` is not that of `file`; None if it is."""
    try:
        if not os.path.isfile(path):  # unlike path.is_file(), the same on every Python
            return "not a file" if os.path.lexists(path) else "missing"
        if (size := path.stat().st_size) != file.size:
            return f"{size} bytes, not {file.size}"
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        return error.strerror
    wrong = f"wrong content (MNIST, or an older version?): its SHA-256 is {sha256}"
    return None if sha256 == file.sha256 else wrong


def fetch(file: File, name: str, source: Callable, part: Path, target: Path) -> None:
    """Store the file as `target`, by way of `part`. Raises Refused, or OSError from the disk."""
    seconds = GRACE + file.size / MIN_RATE
    for left in reversed(range(ATTEMPTS)):
        try:
            write_verified(until_deadline(source(file), seconds), file, part)
            break
        except Broken as error:
            if not left:
                raise Refused(f"{error}, {ATTEMPTS} times") from None
            log(f"{name}: {file.name}: {error}; again in {PAUSE} s", live=True)
            time.sleep(PAUSE)
    os.replace(part, target)
    log(f"{target}: {file.size / 1e6:.2f} MB from {name}, verified")


def write_verified(chunks: Iterator[bytes], file: File, part: Path) -> None:
    """Write `chunks` to `part`; raise Refused or Broken unless they are the content of `file`."""
    size, start = 0, time.monotonic()
    with contextlib.closing(chunks), open(part, "wb") as output:
        for chunk in chunks:
            size += len(chunk)
            if size > file.size:
                raise Refused(f"more than the {file.size} bytes expected")
            output.write(chunk)
            left = (time.monotonic() - start) / size * (file.size - size)
            done = f"{size / 1e6:.1f} of {file.size / 1e6:.1f} MB, {left:.0f} s left"
            log(f"{file.name}: {done}", live=True)
    if size < file.size:
        raise Broken(f"cut short: {size} bytes of {file.size}")
    if wrong := mismatch(part, file):
        raise Refused(wrong)


def until_deadline(chunks: Iterator[bytes], seconds: float) -> Iterator[bytes]:
    """Yield `chunks`; raise SourceDown after so many seconds, wherever they hang.

    A socket's time-out does not bound a transfer: a server may send a byte now and then, and the
    look-up of its name may hang. So a thread reads, which is abandoned when its time is up.
    """
    deadline = time.monotonic() + seconds
    pieces = queue.SimpleQueue()
    abandoned = threading.Event()

    def read() -> None:
        try:
            for chunk in chunks:
                pieces.put(chunk)
                if abandoned.is_set():
                    return
            pieces.put(None)
        except Exception as error:
            pieces.put(error)

    threading.Thread(target=read, daemon=True).start()
    try:
        while time.monotonic() < deadline:
            try:
                piece = pieces.get(timeout=1)  # a signal may go unseen as long as this waits
            except queue.Empty:
                continue
            if piece is None:
                return
            if isinstance(piece, Exception):
                raise piece
            yield piece
        raise SourceDown("too slow: its time is up")
    finally:
        abandoned.set()


# --- Sources --------------------------------------------------------------------------------------


def sources(mirror: str | None, folder: Path) -> list[tuple[str, Callable]]:
    """Names of the sources, in the order in which they are asked, each with a function.

    It takes a File and returns an iterator over the bytes of that .npy file, and it or the iterator
    may raise Refused. The bytes are not checked. `folder` is for temporary files.
    """
    listed = [
        (str(SYSTEM), lambda file: local_copy(SYSTEM, file)),
        ("the course's server", lambda file: http(COURSE + file.name, NPY)),
        ("Zalando's server", lambda file: npy_from_idx(file, http(ZALANDO + file.idx, GZIP))),
        ("the system's package mirror", lambda file: package_mirror(folder, file)),
    ]
    if mirror:
        url = mirror.rstrip("/") + "/"
        name = re.sub("//[^/]*@", "//", mirror)  # without the password
        listed.insert(0, (name, lambda file: http(url + file.name, NPY)))
    return listed


def local_copy(folder: Path, file: File) -> Iterator[bytes]:
    """From Zalando's files in a folder of this machine."""
    try:
        if not folder.is_dir():
            raise SourceDown("not there")
        with open(folder / file.idx, "rb") as content:
            yield from npy_from_idx(file, iter(partial(content.read, CHUNK), b""))
    except OSError as error:
        raise Refused(f"{file.idx}: {error.strerror}") from None


def package_mirror(folder: Path, file: File) -> Iterator[bytes]:
    """From the Debian package, unpacked in `folder`: this needs no root and installs nothing."""
    if not Path(folder, PACKED).exists():
        unpack_package(folder)
    return local_copy(Path(folder, PACKED), file)


def unpack_package(folder: Path) -> None:
    """Download and unpack it with the system's tools; raise SourceDown with their last words."""
    if not shutil.which("apt-get"):
        raise SourceDown("no apt-get on this system")
    log(f"{PACKAGE} from the system's package mirror", live=True)
    deadline = time.monotonic() + GRACE + 31_000_000 / MIN_RATE  # the size of the package
    apt_get = ["apt-get", "-q", f"-oDir::State={folder}", f"-oDir::Cache={folder}"]
    # One dead repository fails the update, though another has the package.
    update = run_tool([*apt_get, "-oAcquire::Languages=none", "update"], folder, deadline)
    for command in ([*apt_get, "download", PACKAGE], ["sh", "-c", "exec dpkg-deb -x *.deb ."]):
        if reason := run_tool(command, folder, deadline):
            raise SourceDown(f"{update}; {reason}" if update else reason)


def run_tool(command: list[str], folder: Path, deadline: float) -> str:
    """Run it in `folder`, and leave no helper of its running; return its last words if it fails."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
    how = {"cwd": folder, "env": os.environ | {"TMPDIR": str(folder)}, "start_new_session": True}
    with subprocess.Popen(command, **how, **streams) as tool:
        try:
            output = None
            while output is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    output, _ = tool.communicate(timeout=1)
                if tool.returncode != 0 and shutil.disk_usage(folder).free < 1_000_000:
                    raise SourceDown("the disk is full")  # for which apt-get may wait forever
                if output is None and time.monotonic() > deadline:
                    raise SourceDown("too slow: its time is up")
        finally:
            with contextlib.suppress(OSError):  # as none is left
                os.killpg(tool.pid, signal.SIGKILL)
            tool.wait()  # Popen does not, after a KeyboardInterrupt
    words = output.decode(errors="replace").strip() or f"status {tool.returncode}"
    return f"{command[0]}: {printable(words.splitlines()[-1])}" if tool.returncode else ""


def http(url: str, magic: bytes) -> Iterator[bytes]:
    """The body of `url`, if it begins with `magic`. TLS is verified, and not left for http."""
    try:
        import requests  # only here, so that NumPy is enough once the data are there
    except Exception as error:  # whatever a half-finished upgrade leaves
        raise SourceDown(f"the package requests is not usable: {printable(str(error))}") from None
    with requests.Session() as session:
        if url.lower().startswith("https://"):
            del session.adapters["http://"]
        identity = {"Accept-Encoding": "identity"}  # what is compressed on the way has another hash
        try:
            answer = session.get(url, stream=True, timeout=TIMEOUT, headers=identity)
        except Exception as error:  # of three libraries, whatever a foreign server provokes
            raise explain(error) from None
        with answer:
            if answer.status_code != 200:
                busy = answer.status_code in (408, 429) or answer.status_code >= 500
                status = f"HTTP {answer.status_code} {printable(answer.reason or '')}"
                raise (Broken if busy else Refused)(status.strip())
            try:
                chunk = answer.raw.read(len(magic))
                if not magic.startswith(chunk):
                    markup = chunk.lstrip().startswith(b"<")
                    what = "an HTML or XML page" if markup else f"something that begins {chunk!r}"
                    raise Refused(f"not the file but {what}")
                while chunk:
                    yield chunk
                    chunk = answer.raw.read(CHUNK)
            except Refused:
                raise
            except Exception:
                raise Broken("the connection broke, or stalled") from None


def explain(error: Exception) -> Refused:
    """What to raise when a server gives no answer, in plain words."""
    for sign, words in (
        ("Proxy|SOCKS", "the proxy cannot be used"),
        ("CA certificate bundle", "the certificates that REQUESTS_CA_BUNDLE names are not there"),
        ("SSLError", "TLS failed, or the certificate does not verify"),
        ("InvalidSchema", "it redirects to another protocol"),
        ("TooManyRedirects", "it redirects without end"),
        ("BadStatus|LineTooLong|InvalidHeader|HTTPException", "its answer is not HTTP"),
        ("[Nn]ame.?[Rr]esolution|getaddrinfo|not known", "its name cannot be resolved"),
        ("refused", "connection refused"),
        ("timed out", f"no answer for {TIMEOUT} s"),
    ):
        if re.search(sign, repr(error)):
            return SourceDown(words)
    dropped = "aborted" in repr(error)
    return Broken("the connection broke") if dropped else SourceDown("it cannot be reached")


def npy_from_idx(file: File, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Turn a gzipped IDX file (yann.lecun.com/exdb/mnist) into the bytes that np.save writes."""
    entry = f"{{'descr': '{file.dtype}', 'fortran_order': False, 'shape': {file.shape}, }}"
    yield NPY + b"\x01\x00" + (118).to_bytes(2, "little") + f"{entry:117}\n".encode()
    unzip = zlib.decompressobj(wbits=31)  # gzip
    head = 8 * len(file.shape)  # bytes of the IDX header that are still to be skipped
    try:
        for chunk in chunks:
            idx = unzip.decompress(chunk, file.size // 4)  # more than the whole file, but bounded
            yield np.frombuffer(idx[head:], np.uint8).astype(file.dtype).tobytes()
            head = max(0, head - len(idx))
            if unzip.eof:
                return
    except zlib.error:
        raise Refused("the gzip file is damaged") from None


# --- Reading --------------------------------------------------------------------------------------


def read_npy(path: Path, dimensions: int, highest: int) -> np.ndarray:
    """Read an array of real numbers in 0..highest; raise DataError if `path` is anything else.

    The header cannot be trusted: it is checked against the size of the file before memory is
    allocated. Nothing is ever unpickled.
    """
    try:
        if not path.is_file():
            raise ValueError("missing, or not a regular file")
        with open(path, "rb") as content, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a file that is refused, or that Python 2 wrote
            if np.lib.format.read_magic(content) != (1, 0):
                raise ValueError("not of format 1.0, in which np.save writes numbers")
            shape, by_columns, dtype = np.lib.format.read_array_header_1_0(content)
            if dtype.kind not in "buif" or len(shape) != dimensions or min(shape) < 1:
                wanted = f"real numbers in {dimensions} dimensions"
                raise ValueError(f"{dtype} of shape {shape}, not {wanted}")
            rest = path.stat().st_size - content.tell()
            if rest != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"{rest} bytes of data, not {dtype} of shape {shape}")
            array = np.fromfile(content, dtype).reshape(shape, order="F" if by_columns else "C")
        low, high = array.min(), array.max()
        if not (low >= 0 and high <= highest):  # NaN compares false
            raise ValueError(f"values from {low} to {high}, not within 0 to {highest}")
    except Exception as error:  # NumPy raises half a dozen types
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        reason = reason.partition(". ")[0] or "damaged"  # what may follow is advice to trust it
        raise DataError(f"{path}: not usable: {printable(reason)}") from None
    return array


# --- What both programs share ---------------------------------------------------------------------

last_line = time.monotonic()


def log(line: str, live: bool = False) -> None:
    """Print a line on stderr.

    On a terminal, a live line is replaced by the next line; elsewhere it is printed only if nothing
    has been printed for ten seconds. Once stderr is closed or full, the lines are lost.
    """
    global last_line
    if sys.stderr is None:  # closed
        return
    try:
        width = (os.get_terminal_size(sys.stderr.fileno()).columns or 80) - 1
        line = f"\r{'':{width}}\r{line[:width] if live else line}"
    except OSError:  # no terminal, or one like IDLE's, where a line cannot be replaced
        if live and time.monotonic() < last_line + 10:
            return
        live = False
    try:
        print(line, end="" if live else "\n", file=sys.stderr)
    except OSError:
        sys.stderr = None  # lest Python's last flush fail, too, and with it the program
    last_line = time.monotonic()


def printable(text: str) -> str:
    """Text of a foreign server or file, made fit for a line on a terminal."""
    return "".join(filter(str.isprintable, text))[:200]


def run(program: Callable[[], None]) -> int:
    """Call `program` and return the exit status; say on stderr what stopped it, if anything."""
    stops = [s for s in signal.Signals if s.name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")]

    def interrupt(number: int, _) -> None:
        for second in stops:  # which would stop the cleaning up
            signal.signal(second, lambda *_: None)  # at SIG_IGN, Python prints a race condition
        raise KeyboardInterrupt(128 + number)

    for stop in stops:
        if signal.getsignal(stop) != signal.SIG_IGN:  # which nohup sets
            signal.signal(stop, interrupt)
    name = Path(sys.argv[0]).name
    try:
        program()
    except (DataError, FloatingPointError, MemoryError) as error:
        log(f"{name}: {str(error) or 'not enough memory'}")
        return 1
    except BrokenPipeError:  # nobody reads stdout any more, and Python's last flush must not fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        lost = isinstance(error, FileNotFoundError) and error.filename is None  # by os.getcwd
        what = f"cannot write {error.filename or 'the results'}: {error.strerror}"
        log(f"{name}: {'the current folder no longer exists' if lost else what}")
        return 1
    except KeyboardInterrupt as interruption:
        log(f"{name}: interrupted")
        return interruption.args[0]
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Fetch the four Fashion-MNIST files, verified by their SHA-256."
    )
    add = parser.add_argument
    add("--data-dir", metavar="DIR", default=DATA, help="where the files go: %(default)s")
    add("--mirror", type=str.strip, metavar="URL", help="a web folder of .npy files, asked first")
    options = parser.parse_args()
    if options.mirror is not None and not re.match("(?i)https?://[^/]", options.mirror):
        parser.error("--mirror: not an http or https URL")  # it may hold a password
    verified = "all four files are there and verified"
    return run(lambda: log(f"{ensure(options.data_dir, options.mirror)}: {verified}"))


if __name__ == "__main__":
    sys.exit(main())
