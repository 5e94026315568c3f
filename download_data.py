"""Fetch the four Fashion-MNIST files of the assignment, verified by SHA-256.

    python download_data.py [--data-dir DIR] [--mirror URL]

No source is trusted. Downloads go to a temporary folder inside the data folder, never exceed the
expected size, and get their final name only if their SHA-256 matches. Therefore

- a wrong or partial file never gets its final name, and a damaged file stays until its replacement
  is verified; verified files are never fetched again;
- an array that may be the user's own, such as one of another shape, is never replaced;
- if all files are present and correct, nothing is fetched or written;
- the temporary folder is removed even after Ctrl-C or another signal that can be caught;
- time is bounded: an attempt at a file may take GRACE seconds, plus one second per MIN_RATE bytes.
"""

import sys

if sys.version_info < (3, 10):  # noqa: UP036 - fail clearly on an old Python
    sys.exit(f"Python 3.10 or newer is needed; this is Python {sys.version.split()[0]}.")

import argparse
import contextlib
import errno
import hashlib
import math
import os
import queue
import re
import shutil
import signal
import socket
import stat
import subprocess
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

try:
    import numpy as np
except ModuleNotFoundError:
    sys.exit("NumPy is missing. To install what is needed: pip install -r requirements.txt")


# --- Shared by both programs ----------------------------------------------------------------------

last_line = time.monotonic()  # when `log` last printed something


class DataError(Exception):
    """The data are unavailable or invalid. The message is for the user."""


def log(line: str, live: bool = False) -> None:
    """Print a line on stderr.

    On a terminal, a live line is overwritten by the next; elsewhere it is printed only after ten
    seconds without output. If stderr is closed or full, lines are dropped.
    """
    global last_line
    if sys.stderr is None:  # closed
        return
    try:
        width = (os.get_terminal_size(sys.stderr.fileno()).columns or 80) - 1
        blanks = " " * width  # over what is left of a live line
        line = f"\r{blanks}\r{line[:width] if live else line}"
    except (OSError, ValueError):  # not a terminal, or one that cannot overwrite, like IDLE's
        if live and time.monotonic() < last_line + 10:
            return
        live = False
    try:
        print(line, end="" if live else "\n", file=sys.stderr)
    except OSError:
        sys.stderr = None  # so that the flush at exit does not fail too
    last_line = time.monotonic()


def printable(text: str) -> str:
    """Untrusted text, made safe to print on one line."""
    return "".join(filter(str.isprintable, text))[:200]


def run(program: Callable[[], None]) -> int:
    """Call `program` and return the exit status; report errors on stderr.

    A signal raises KeyboardInterrupt with the exit status in its args (see `catch_signals`). The
    program may append a text to these args; it is printed.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not if it is closed
            stream.reconfigure(errors="backslashreplace")  # for names that it cannot encode
    name = Path(sys.argv[0]).name
    status = 0
    try:
        catch_signals()
        try:
            program()
        except SystemExit as stop:  # from argparse
            status = stop.code
        if sys.stdout is not None:
            sys.stdout.flush()  # an error must be raised here, not at exit
    except (DataError, FloatingPointError, MemoryError) as error:
        log(f"{name}: {str(error) or 'not enough memory'}")
        return 1
    except RuntimeError as error:
        if "start new thread" not in str(error):
            raise
        log(f"{name}: cannot start another thread: a limit on memory or on tasks is reached")
        return 1
    except OSError as error:  # from writing: errors in reading are DataErrors
        drop_unwritten()
        if error.filename is not None:
            log(f"{name}: cannot write {error.filename}: {error.strerror}")
        elif isinstance(error, FileNotFoundError):  # from os.getcwd
            log(f"{name}: the current folder no longer exists")
        elif not is_closed_pipe(error):
            log(f"{name}: cannot write the results: {error.strerror}")
        return 1
    except KeyboardInterrupt as interruption:
        status, *texts = interruption.args
        log(f"{name}: {'; '.join(['interrupted', *texts])}")
        return status
    return status


def catch_signals() -> None:
    """Let a signal that stops the program raise KeyboardInterrupt, with the exit status in it.

    Further signals are ignored, so that they cannot interrupt the clean-up.
    """
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGBREAK")
    stops = [getattr(signal, name) for name in names if hasattr(signal, name)]

    def ignore(number: int, frame) -> None:
        pass  # SIG_IGN instead would make Python report an error for a signal already pending

    def interrupt(number: int, frame) -> None:
        for stop in stops:
            signal.signal(stop, ignore)
        raise KeyboardInterrupt(128 + number)

    for stop in stops:
        if signal.getsignal(stop) != signal.SIG_IGN:  # ignored stays ignored: SIGHUP under nohup
            signal.signal(stop, interrupt)


def is_closed_pipe(error: OSError) -> bool:
    """Whether the reader of a pipe is gone. Windows reports that as an invalid argument."""
    return isinstance(error, BrokenPipeError) or (os.name == "nt" and error.errno == errno.EINVAL)


def drop_unwritten() -> None:
    """If stdout cannot be written, drop what it holds, so that the flush at exit does not fail."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def folder_name(text: str) -> Path:
    """An argparse type: the name of a folder, which must not be empty."""
    if not text:
        raise argparse.ArgumentTypeError("the name of the folder is empty")
    return Path(text)


class NotNumbers(DataError):
    """The file begins like an .npy file, but not like one of real numbers in format 1.0."""


class Header(NamedTuple):
    """What an .npy file of real numbers says about its array."""

    shape: tuple[int, ...]
    by_columns: bool
    dtype: np.dtype  # of kind b, u, i or f
    offset: int  # where the numbers begin, in bytes


def read_header(path: Path) -> Header:
    """Read the header of an .npy file, and check it against the file's size.

    Raises DataError unless `path` is a regular file that holds one complete array of real numbers:
    NotNumbers if it may hold an array of something else.
    """
    magic = np.lib.format.MAGIC_PREFIX
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file")
        with open(path, "rb") as content:
            if content.read(len(magic)) != magic:
                raise ValueError("not an .npy file; save the array with np.save")
            if content.read(2) != bytes([1, 0]):
                raise NotNumbers(
                    f"{path}: unusable: not .npy format 1.0, which np.save uses for numbers"
                )
            shape, by_columns, dtype = parse_header(content)
            offset = content.tell()
        if dtype.kind not in "buif":
            found = printable(f"{dtype} of shape {shape}")
            raise NotNumbers(f"{path}: unusable: {found}, not real numbers")
        size = status.st_size - offset
        negative = any(length < 0 for length in shape)
        if negative or size != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{size} bytes of data, not {dtype} of shape {shape}")
    except (OSError, ValueError) as error:
        raise unusable(path, error) from None
    return Header(shape, by_columns, dtype, offset)


def parse_header(content) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read the header after the magic string and the version: shape, order by columns, dtype.

    Raises ValueError if it is damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd headers
            shape, by_columns, dtype = np.lib.format.read_array_header_1_0(content)
        return tuple(map(int, shape)), by_columns, dtype
    except Exception:  # NumPy raises half a dozen types
        raise ValueError("damaged header") from None


def read_npy(path: Path) -> np.ndarray:
    """Read an array of real numbers, of any shape; it may be empty, or hold NaN and infinity.

    Raises DataError if `path` holds anything else. Memory is allocated only if the file is as
    large as its header says; nothing is ever unpickled.
    """
    header = read_header(path)
    try:
        array = np.fromfile(path, header.dtype, offset=header.offset)
        return array.reshape(header.shape, order="F" if header.by_columns else "C")
    except (OSError, ValueError, OverflowError) as error:  # such as too many dimensions
        raise unusable(path, error) from None


def unusable(path: Path, error: Exception) -> DataError:
    """The DataError for a file that cannot be read because of `error`."""
    if isinstance(error, FileNotFoundError):
        reason = "missing"
    elif isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    else:
        reason = " ".join(str(error).split())
    return DataError(f"{path}: unusable: {printable(reason)}")


# --- The four files -------------------------------------------------------------------------------


class File(NamedTuple):
    """A file as the course serves it: .npy format 1.0, 128-byte header, C order."""

    name: str
    idx_name: str  # Zalando's file with the same values, as unsigned bytes in gzipped IDX
    size: int
    dtype: str
    shape: tuple[int, ...]
    highest: int  # the values are whole numbers from 0 to this
    sha256: str


# fmt: off
FILES = (  # smallest first, to detect a bad source early
    File("fashion_mnist_test_labels.npy", "t10k-labels-idx1-ubyte.gz", 40128, "<i4", (10000,), 9,
         "a061445ec01d9336dd4e01f4a7ac5130bfbe293c72552800597ee202941c88c7"),
    File("fashion_mnist_train_labels.npy", "train-labels-idx1-ubyte.gz", 240128, "<i4", (60000,), 9,
         "ad5d875264cf0487ba1a2330b7cd74a15a4df0bacccadd6e711126f11e365251"),
    File("fashion_mnist_test_images.npy", "t10k-images-idx3-ubyte.gz", 31360128, "<f4",
         (10000, 784), 255, "15be6db025eec7ed428d43f890c9e6a8f314a730b255b6f300a50eb98b8d2cde"),
    File("fashion_mnist_train_images.npy", "train-images-idx3-ubyte.gz", 188160128, "<f4",
         (60000, 784), 255, "b4c9ef4d227514f872c39662c006b45cb682c5bc28ed567f42adb0bc542153a4"),
)
# fmt: on

DATA = Path(__file__).resolve().with_name("data")
PACKAGE = "dataset-fashion-mnist"  # of Debian and Ubuntu
PACKED = "usr/share/datasets/fashion-mnist"  # where that package has Zalando's files
SYSTEM = Path("/", PACKED)  # where they are if it is installed
COURSE = "https://s3.amazonaws.com/jrwprojects/"
ZALANDO = "https://fashion-mnist.s3.eu-central-1.amazonaws.com/"

TIMEOUT = 15  # seconds to connect, and between two reads
GRACE, MIN_RATE = 40, 100_000  # an attempt may take GRACE seconds + size / MIN_RATE
ATTEMPTS, PAUSE = 3, 2  # attempts at a file, and seconds between them
CHUNK = 262_144  # bytes
NPY, GZIP = b"\x93NUMPY", b"\x1f\x8b"  # first bytes of such files


class Refused(Exception):
    """The source did not deliver this file, or not the right one; it may have others."""


class Broken(Refused):
    """The transfer failed midway, or the server is busy: another attempt may succeed."""


class SourceDown(Refused):
    """The source is unusable, so no other files are tried."""


def ensure(data_dir: str | os.PathLike = DATA, mirror: str | None = None) -> Path:
    """Fetch the FILES missing from `data_dir`; return its absolute path once all are verified.

    `mirror` is the URL of a folder with the four .npy files, tried before all other sources.
    Progress and problems go to stderr. Raises DataError if a file is unavailable from every source,
    if it cannot be stored, or if a file that may be the user's own is in the way; in the last case,
    nothing is fetched.
    """
    data_dir = Path(data_dir).absolute()
    missing = missing_or_damaged(data_dir)
    if missing:
        missing = fetch_all(missing, data_dir, mirror)
    if missing:
        wanted = [f"\n  {COURSE}{f.name}  {f.size} bytes, SHA-256 {f.sha256}" for f in missing]
        raise DataError(
            "some files could not be fetched, for the reasons above. Install the package "
            f"{PACKAGE} (Debian, Ubuntu), or put these into {data_dir}:{''.join(wanted)}"
        )
    return data_dir


def missing_or_damaged(data_dir: Path) -> list[File]:
    """Return the FILES to fetch.

    Raises DataError, which names them all, if files that may be the user's own are in the way.
    """
    to_fetch, damaged, in_the_way = [], [], []
    for file in FILES:
        path = data_dir / file.name
        if not os.path.lexists(path):
            to_fetch.append(file)
            continue
        wrong = mismatch(path, file)
        if wrong is None:
            continue
        own = possible_own_file(path, file)
        if own is None:
            to_fetch.append(file)
            damaged.append(f"{path}: {wrong}; fetching it again")
        else:
            in_the_way.append(f"\n  {file.name}: {own}")
    if in_the_way:
        raise DataError(
            f"{data_dir}: these files are not Fashion-MNIST's, so nothing was fetched or changed. "
            "If they are your own, move them to another folder DIR and run softmax_sgd.py "
            f"--data-dir DIR; otherwise move or delete them, and start again:{''.join(in_the_way)}"
        )
    for line in damaged:
        log(line)
    return to_fetch


def mismatch(path: Path, file: File) -> str | None:
    """How the content of `path` differs from `file`, or None."""
    try:
        if not os.path.isfile(path):
            return "not a regular file"
        size = os.path.getsize(path)
        if size != file.size:
            return f"{size} bytes, not {file.size}"
        sha256 = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if sha256 != file.sha256:
        return f"wrong content (MNIST, or an older Fashion-MNIST?): its SHA-256 is {sha256}"
    return None


def possible_own_file(path: Path, file: File) -> str | None:
    """Describe the file at `path`, which is not `file`, if it may be the user's own.

    Return None if it is to be replaced: if it does not hold a complete array, or if the array has
    the form of `file` but values that are impossible there.
    """
    if os.path.islink(path):
        return "a link"
    if not os.path.isfile(path):
        return "not a regular file"
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    try:
        header = read_header(path)
    except NotNumbers:
        return "an array, but not of real numbers in .npy format 1.0"
    except DataError:
        return None
    if header.shape != file.shape or header.dtype != file.dtype:
        return printable(f"{header.dtype} of shape {header.shape}")
    array = read_npy(path)
    if not (array.min() >= 0 and array.max() <= file.highest):  # impossible, or NaN
        return None
    return "the right shape but other values: MNIST, an older Fashion-MNIST, or a damaged copy"


def fetch_all(files: list[File], data_dir: Path, mirror: str | None) -> list[File]:
    """Fetch `files` from whatever sources have them; return those that none has."""
    # Named before `try`, so that `finally` can always remove it.
    folder = data_dir / f".fetching-{os.urandom(8).hex()}"
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
        for name, source in sources(mirror, folder):
            # Once no files are left, this does nothing.
            files = fetch_from(name, source, files, folder, data_dir)
        return files
    except OSError as error:
        raise DataError(
            f"cannot store the data in {data_dir}: {error.strerror}. To use another folder DIR: "
            "download_data.py --data-dir DIR, then softmax_sgd.py --data-dir DIR"
        ) from None
    finally:
        try:
            shutil.rmtree(folder, ignore_errors=True)
        finally:  # once more, if a signal interrupted the first; further signals are ignored
            shutil.rmtree(folder, ignore_errors=True)


def fetch_from(
    name: str, source: Callable, files: list[File], folder: Path, data_dir: Path
) -> list[File]:
    """Fetch `files` from one source, by way of the temporary `folder`; return those it lacks."""
    missing = list(files)
    for file in files:
        try:
            fetch(file, name, source, folder / file.name, data_dir / file.name)
            missing.remove(file)
        except SourceDown as error:
            log(f"{name}: {error}")
            break
        except Refused as error:
            log(f"{name}: {file.name}: {error}")
    return missing


def fetch(file: File, name: str, source: Callable, part: Path, target: Path) -> None:
    """Fetch the file to `part`, then move it to `target`.

    Raises Refused if the source does not deliver it, and OSError or DataError if it cannot be
    stored.
    """
    seconds = GRACE + file.size / MIN_RATE
    for attempt in range(1, ATTEMPTS + 1):
        try:
            write_verified(until_deadline(source(file), seconds), file, part)
            break
        except Broken as error:
            if attempt == ATTEMPTS:
                raise Refused(f"{error}, {ATTEMPTS} times") from None
            log(f"{name}: {file.name}: {error}; retrying in {PAUSE} s", live=True)
            time.sleep(PAUSE)
    try:
        os.replace(part, target)
    except PermissionError as error:  # on Windows, if another program has the target open
        if mismatch(target, file):  # no error if another download has put the file there
            reason = f"{error.strerror}; does another program have it open?"
            raise DataError(f"cannot replace {target}: {reason}") from None
    log(f"{target}: {file.size / 1e6:.2f} MB from {name}, verified")


def write_verified(chunks: Iterator[bytes], file: File, part: Path) -> None:
    """Write `chunks` to `part`; raise Refused or Broken unless they match `file`."""
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
    wrong = mismatch(part, file)
    if wrong:
        raise Refused(wrong)


def until_deadline(chunks: Iterator[bytes], seconds: float) -> Iterator[bytes]:
    """Yield `chunks`; raise SourceDown after `seconds` in total.

    A socket timeout does not bound a transfer: a server may trickle bytes, and DNS may hang. So a
    thread reads, and is abandoned at the deadline.
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
                piece = pieces.get(timeout=1)  # short: on Windows, Ctrl-C waits until it ends
            except queue.Empty:
                continue
            if piece is None:
                return
            if isinstance(piece, Exception):
                raise piece
            yield piece
        raise SourceDown("too slow: timed out")
    finally:
        abandoned.set()


# --- Sources --------------------------------------------------------------------------------------


def sources(mirror: str | None, folder: Path) -> list[tuple[str, Callable]]:
    """The sources in the order they are tried: names and functions.

    Each function takes a File and returns an iterator over that .npy file's bytes, which are
    unverified. The call and the iteration may raise Refused. `folder` is for temporary files.
    """
    listed = [
        (str(SYSTEM), partial(local_copy, SYSTEM)),
        ("the course's server", partial(served_npy, COURSE)),
        ("Zalando's server", partial(served_idx, ZALANDO)),
        ("the system's package mirror", partial(package_mirror, folder)),
    ]
    if mirror:
        without_password = re.sub("//[^/]*@", "//", mirror)
        listed.insert(0, (without_password, partial(served_npy, mirror.rstrip("/") + "/")))
    return listed


def served_npy(url: str, file: File) -> Iterator[bytes]:
    """From a web folder with the course's files."""
    return http(url + file.name, NPY)


def served_idx(url: str, file: File) -> Iterator[bytes]:
    """From a web folder with Zalando's files."""
    return npy_from_idx(file, http(url + file.idx_name, GZIP))


def local_copy(folder: Path, file: File) -> Iterator[bytes]:
    """From a local folder with Zalando's files."""
    try:
        if not folder.is_dir():
            raise SourceDown("no such folder")
        with open(folder / file.idx_name, "rb") as content:
            chunks = iter(lambda: content.read(CHUNK), b"")  # until read returns b"", at the end
            yield from npy_from_idx(file, chunks)
    except OSError as error:
        raise Refused(f"{file.idx_name}: {error.strerror}") from None


def package_mirror(folder: Path, file: File) -> Iterator[bytes]:
    """From the Debian package, unpacked in `folder`; needs no root, installs nothing."""
    if not Path(folder, PACKED).exists():
        unpack_package(folder)  # before the iteration, whose deadline is for one file only
    return local_copy(Path(folder, PACKED), file)


def unpack_package(folder: Path) -> None:
    """Download and unpack the package with apt-get and dpkg-deb.

    Raises SourceDown with the last line of output of the command that failed.
    """
    if os.name != "posix" or not shutil.which("apt-get"):
        raise SourceDown("no apt-get on this system")
    log(f"{PACKAGE} from the system's package mirror", live=True)
    deadline = time.monotonic() + GRACE + 31_000_000 / MIN_RATE  # the size of the package
    apt_get = ["apt-get", "-q", f"-oDir::State={folder}", f"-oDir::Cache={folder}"]
    # The update fails if any repository is down, even if another has the package: so we go on.
    update_error = run_tool([*apt_get, "-oAcquire::Languages=none", "update"], folder, deadline)
    for command in ([*apt_get, "download", PACKAGE], ["sh", "-c", "exec dpkg-deb -x *.deb ."]):
        reason = run_tool(command, folder, deadline)
        if reason:
            raise SourceDown(f"{update_error}; {reason}" if update_error else reason)


def run_tool(command: list[str], folder: Path, deadline: float) -> str:
    """Run a command in `folder`; if it fails, return its last line of output.

    When the command ends, any processes that it has left behind are killed. Raises OSError if there
    is no space left in `folder`.
    """
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    environment = os.environ | {"TMPDIR": str(folder), "LC_ALL": "C"}  # C: messages in English
    with subprocess.Popen(
        command, cwd=folder, env=environment, start_new_session=True, **streams
    ) as tool:
        try:
            output, _ = tool.communicate(timeout=max(0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise SourceDown("too slow: timed out") from None
        finally:
            with contextlib.suppress(OSError):  # if none is left
                os.killpg(tool.pid, signal.SIGKILL)
            tool.wait()  # Popen skips this after KeyboardInterrupt
    if tool.returncode == 0:
        return ""
    if b"No space left on device" in output:
        raise OSError(errno.ENOSPC, "No space left on device")
    lines = output.decode(errors="replace").strip().splitlines() or [f"status {tool.returncode}"]
    return f"{command[0]}: {printable(lines[-1])}"


def http(url: str, magic: bytes) -> Iterator[bytes]:
    """The body of `url`, which must begin with `magic`.

    TLS is verified; no redirect may leave https if `url` is https.
    """
    try:
        import requests  # imported here: not needed once the data are present
    except Exception as error:  # a broken installation may raise anything
        raise SourceDown(f"cannot import requests: {printable(str(error))}") from None
    with requests.Session() as session:
        if url.lower().startswith("https://"):
            del session.adapters["http://"]  # a redirect to http raises InvalidSchema
        identity = {"Accept-Encoding": "identity"}  # compressed bytes have another hash
        try:
            answer = session.get(url, stream=True, timeout=TIMEOUT, headers=identity)
        except Exception as error:  # requests, urllib3 and http.client raise many types
            raise explain(error) from None
        with answer:
            if answer.status_code != 200:
                status = f"HTTP {answer.status_code} {printable(answer.reason or '')}".strip()
                if answer.status_code in (408, 429) or answer.status_code >= 500:  # busy
                    raise Broken(status)
                raise Refused(status)
            try:
                chunk = answer.raw.read(len(magic))
                if chunk.lstrip().startswith(b"<"):
                    raise Refused("an HTML or XML page instead of the file")
                # A body cut short within `magic` passes: `write_verified` reports it as such.
                if chunk != magic[: len(chunk)]:
                    raise Refused(f"something beginning with {chunk!r} instead of the file")
                while chunk:
                    yield chunk
                    chunk = answer.raw.read(CHUNK)
            except Refused:
                raise
            except Exception:
                raise Broken("the connection was lost, or stalled") from None


def explain(error: Exception) -> Refused:
    """The exception, in plain words, for a server that does not answer.

    `error` is what requests raised. The reason is often found in what caused it.
    """
    from requests import exceptions

    if "SOCKS" in str(error):  # missing support for it has no class of its own
        return SourceDown("the proxy cannot be used")
    chain = []  # the error, what caused it, what caused that, and so on
    while error is not None:
        chain.append(error)
        error = error.__cause__ or error.__context__
    for kinds, reason in (
        (exceptions.ProxyError, SourceDown("the proxy cannot be used")),
        (exceptions.SSLError, SourceDown("TLS failed, or the certificate is not trusted")),
        (exceptions.InvalidSchema, SourceDown("redirected to another protocol")),
        (exceptions.TooManyRedirects, SourceDown("too many redirects")),
        (socket.gaierror, SourceDown("cannot resolve its name")),
        (ConnectionRefusedError, SourceDown("connection refused")),
        ((exceptions.Timeout, TimeoutError), SourceDown(f"no answer for {TIMEOUT} s")),
        (ConnectionError, Broken("the connection was lost")),
        (HTTPException, SourceDown("not an HTTP response")),
    ):
        if any(isinstance(cause, kinds) for cause in chain):
            return reason
    if type(chain[-1]) is OSError:  # such as: the network is unreachable, a certificate is missing
        return SourceDown(printable(chain[-1].strerror or str(chain[-1])))
    return SourceDown("unreachable, or not an HTTP response")


def npy_from_idx(file: File, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Turn a gzipped IDX file (yann.lecun.com/exdb/mnist) into the bytes that np.save writes."""
    entry = f"{{'descr': '{file.dtype}', 'fortran_order': False, 'shape': {file.shape}, }}"
    header = f"{entry:117}\n".encode()  # padded, so that the numbers begin at byte 128
    yield NPY + bytes([1, 0]) + len(header).to_bytes(2, "little") + header
    unzip = zlib.decompressobj(wbits=31)  # gzip
    # The IDX header has four bytes, and four for each dimension: n x 28 x 28 for images.
    skip = 16 if len(file.shape) == 2 else 8
    # Against gzip bombs, at most this many bytes are taken from one chunk. A correct file loses
    # nothing: all of it unzips to slightly less, with one byte per value where `size` counts four.
    # If a chunk reaches the limit, the output is too long, and `write_verified` refuses it.
    limit = file.size // 4
    try:
        for chunk in chunks:
            unzipped = unzip.decompress(chunk, limit)
            yield np.frombuffer(unzipped[skip:], np.uint8).astype(file.dtype).tobytes()
            skip = max(0, skip - len(unzipped))
            if unzip.eof:
                return
    except zlib.error:
        raise Refused("the gzip file is damaged") from None


# --- Command line ---------------------------------------------------------------------------------


def fetch_data() -> None:
    """Fetch the files that the command line asks for."""
    parser = argparse.ArgumentParser(
        description="Fetch the four Fashion-MNIST files, verified by their SHA-256."
    )
    add = parser.add_argument
    add("--data-dir", type=folder_name, metavar="DIR", default=DATA,
        help="folder for the files (default: %(default)s)")  # fmt: skip
    add("--mirror", type=str.strip, metavar="URL",
        help="URL of a folder with the .npy files, tried first")  # fmt: skip
    options = parser.parse_args()
    if options.mirror is not None and not re.match("(?i)https?://[^/]", options.mirror):
        parser.error("--mirror: not an http or https URL")  # not echoed: it may hold a password
    data_dir = ensure(options.data_dir, options.mirror)
    log(f"{data_dir}: all four files are present and verified")


def main() -> int:
    return run(fetch_data)


if __name__ == "__main__":
    sys.exit(main())
