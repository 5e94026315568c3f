"""Fetch the four Fashion-MNIST files of the assignment, verified by SHA-256.

    python download_data.py [--data-dir DIR] [--mirror URL]

A file that is already there is never replaced: either it is right, or the program stops and names
it. The others are fetched, from one source after another, into a temporary folder; each gets its
name only when it has been verified. After a failure, start again: only what is missing is fetched.
"""

import argparse
import contextlib
import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

DATA = Path(__file__).resolve().with_name("data")
COURSE = "https://s3.amazonaws.com/jrwprojects/"
ZALANDO = "https://fashion-mnist.s3.eu-central-1.amazonaws.com/"  # the publisher of Fashion-MNIST
PACKAGE = "dataset-fashion-mnist"  # of Debian and Ubuntu, with Zalando's files
SYSTEM = Path("/usr/share/datasets/fashion-mnist")  # where the package puts them
TIMEOUT = 15  # seconds, to connect and between two pieces of data


class UserError(Exception):
    """Something that the user can fix. The message is meant for the user."""


class Unreachable(Exception):
    """A source is out of reach, so it need not be asked for its other files."""


class File(NamedTuple):
    """A file as the course serves it."""

    name: str
    idx_name: str  # Zalando's file with the same values, as unsigned bytes in gzipped IDX
    dtype: str
    shape: tuple[int, ...]
    size: int  # in bytes
    sha256: str


# fmt: off
FILES = (  # smallest first, to find out early if a source is bad
    File("fashion_mnist_test_labels.npy", "t10k-labels-idx1-ubyte.gz", "<i4", (10000,), 40128,
         "a061445ec01d9336dd4e01f4a7ac5130bfbe293c72552800597ee202941c88c7"),
    File("fashion_mnist_train_labels.npy", "train-labels-idx1-ubyte.gz", "<i4", (60000,), 240128,
         "ad5d875264cf0487ba1a2330b7cd74a15a4df0bacccadd6e711126f11e365251"),
    File("fashion_mnist_test_images.npy", "t10k-images-idx3-ubyte.gz", "<f4", (10000, 784),
         31360128, "15be6db025eec7ed428d43f890c9e6a8f314a730b255b6f300a50eb98b8d2cde"),
    File("fashion_mnist_train_images.npy", "train-images-idx3-ubyte.gz", "<f4", (60000, 784),
         188160128, "b4c9ef4d227514f872c39662c006b45cb682c5bc28ed567f42adb0bc542153a4"),
)
# fmt: on


def ensure(data_dir: str | os.PathLike = DATA, mirror: str | None = None) -> Path:
    """Fetch what is missing of FILES, verify all, and return the absolute path of the folder.

    `mirror` is the URL of a folder with the .npy files, tried before the other sources. Raises
    UserError if a file that is there is wrong, or if one that is missing cannot be fetched.
    """
    data_dir = Path(data_dir).absolute()
    present = [file for file in FILES if os.path.lexists(data_dir / file.name)]
    missing = [file for file in FILES if file not in present]
    problems = [mismatch(data_dir / file.name, file) for file in present]
    if any(problems):
        raise UserError(
            f"{data_dir} has files that are wrong: {'; '.join(filter(None, problems))}. Nothing "
            "was fetched or changed. Move what is your own to another folder DIR, and use it with "
            "softmax_sgd.py --data-dir DIR; delete the rest, and start again"
        )
    if missing:
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            needed, free = sum(f.size for f in missing), shutil.disk_usage(data_dir).free
            if free < needed:
                raise OSError(f"{needed / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB are free")
            with tempfile.TemporaryDirectory(prefix=".fetching-", dir=data_dir) as folder:
                unavailable = fetch(missing, data_dir, Path(folder), mirror)
        except OSError as error:
            raise UserError(
                f"the data cannot be stored in {data_dir}: {error}. To use another folder DIR: "
                "download_data.py --data-dir DIR, and then softmax_sgd.py --data-dir DIR"
            ) from None
        if unavailable:
            raise UserError(
                "some files could not be fetched, for the reasons above. Try again later; or "
                f"install the package {PACKAGE} (Debian, Ubuntu); or put these files into "
                f"{data_dir} yourself:"
                + "".join(
                    f"\n  {COURSE}{f.name}  {f.size} bytes, SHA-256 {f.sha256}" for f in unavailable
                )
            )
    return data_dir


def mismatch(path: Path, file: File) -> str:
    """What is wrong with the file at `path`; an empty string if it is right."""
    if not os.path.isfile(path):  # a folder, a broken link, or a pipe, whose reading may never end
        return f"{path.name} is not a file"
    try:
        content = path.read_bytes()
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror})"
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 == file.sha256:
        return ""
    return f"{path.name} has {len(content)} bytes (SHA-256 {sha256[:8]}...)"


def fetch(files: list[File], data_dir: Path, folder: Path, mirror: str | None) -> list[File]:
    """Fetch the files by way of the temporary `folder`; return those that are still missing."""
    missing = list(files)
    # None, or the error that our caller is handling. Python makes it the `__context__` of every
    # error below, although it is not their cause; first_cause stops before it.
    handled = sys.exc_info()[1]
    to_try = sources(mirror)
    for i, (name, source) in enumerate(to_try):
        then = f"; next: {to_try[i + 1][0]}" if i + 1 < len(to_try) else ""
        for file in list(missing):
            path, target = folder / file.name, data_dir / file.name
            try:
                source(file, path)
                problem = mismatch(path, file)
                if problem:
                    raise ValueError(f"wrong content: {problem}")
            except Exception as error:  # requests, urllib3, gzip and NumPy raise many types
                show(f"{name}: {file.name}: {first_cause(error, handled)}{then}")
                if isinstance(error, Unreachable):
                    break
                continue
            missing.remove(file)
            if os.path.lexists(target):  # another program has put it there in the meantime
                if problem := mismatch(target, file):
                    raise UserError(f"{data_dir}: {problem}. It appeared during the download")
                show(f"{target}: appeared during the download, verified")
            else:
                os.replace(path, target)
                show(f"{target}: {file.size / 1e6:.2f} MB from {name}, verified")
    return missing


def first_cause(error: BaseException, handled: BaseException | None) -> str:
    """The message of the root cause: "Name or service not known", not "Max retries exceeded".

    `handled`, and what comes after it in the chain, are not causes: see fetch.
    """
    while True:
        cause = error.__cause__ if error.__suppress_context__ else error.__context__
        if cause is None or cause is handled:
            break
        error = cause
    text = str(error) or type(error).__name__
    return "".join(filter(str.isprintable, text))[:200]  # as parts of it may come from a server


last_shown = time.monotonic()


def show(line: str, live: bool = False) -> None:
    """Print a line on stderr.

    On a terminal, the next line overwrites a live one. Elsewhere, a live line is printed only if
    nothing was printed for ten seconds. If stderr is closed or full, the line is lost and the
    program goes on.
    """
    global last_shown
    if sys.stderr is None:
        return
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns - 1  # a longer line could not be overwritten
        blank = " " * width  # over what is left of a live line
        line = f"\r{blank}\r{line[:width] if live else line}"
    elif live:
        if time.monotonic() < last_shown + 10:
            return
        live = False
    with contextlib.suppress(OSError):
        print(line, end="" if live else "\n", file=sys.stderr, flush=True)
    last_shown = time.monotonic()


# --- Sources --------------------------------------------------------------------------------------


def sources(mirror: str | None) -> list[tuple[str, Callable]]:
    """The names of the sources and their functions, in the order in which they are tried.

    A function takes a File, and the path to write it to. It raises Unreachable, or any other
    exception if it cannot deliver this file.
    """
    found = []
    if mirror:
        found.append((mirror, partial(from_server, mirror)))
    if SYSTEM.is_dir():
        found.append((str(SYSTEM), from_system))
    found.append(("the course's server", partial(from_server, COURSE)))
    found.append(("Zalando's server", from_zalando))
    if shutil.which("apt-get"):  # some networks, as for CI, let only package mirrors through
        found.append(("the system's package mirror", from_package))
    return found


def from_server(url: str, file: File, path: Path) -> None:
    download(f"{url.rstrip('/')}/{file.name}", path, file.size)


def from_system(file: File, path: Path) -> None:
    write_npy(file, SYSTEM / file.idx_name, path)


def from_zalando(file: File, path: Path) -> None:
    idx = path.with_suffix(".gz")
    # Compressed, a file is smaller than its .npy file, so the size of that is a safe limit.
    download(ZALANDO + file.idx_name, idx, file.size)
    write_npy(file, idx, path)


def from_package(file: File, path: Path) -> None:
    """Download and unpack the system's package, which needs no root and installs nothing."""
    folder = path.parent / "package"  # of its own: nothing in a package may overwrite our files
    if not folder.exists():
        show(f"downloading {PACKAGE} from the system's package mirror", live=True)
        folder.mkdir()
        apt_get = 'apt-get -q -o "Dir::State=$PWD" -o "Dir::Cache=$PWD"'  # in the folder
        # The update fails if any repository is down, even if another has the package, so go on.
        script = f"{apt_get} update; {apt_get} download {PACKAGE} && dpkg-deb -x *.deb ."
        how = {"cwd": folder, "capture_output": True, "text": True, "errors": "replace"}
        shell = subprocess.run(["sh", "-c", script], **how)
        if shell.returncode:
            raise Unreachable((shell.stderr.strip().splitlines() or ["apt-get failed"])[-1])
    write_npy(file, folder / SYSTEM.relative_to("/") / file.idx_name, path)


def write_npy(file: File, idx: Path, path: Path) -> None:
    """Convert a gzipped IDX file to the bytes of the course's .npy file."""
    # Not at the top, so that this module may be imported before softmax_sgd, which must be imported
    # before NumPy.
    import numpy as np

    # A header has 4 bytes, and 4 for each dimension: n, or n x 28 x 28 if these are images.
    header = 16 if len(file.shape) == 2 else 8
    with gzip.open(idx) as content:
        # A right file has one byte for a value, its .npy file four. So this limit is high enough,
        # and it ends a gzip bomb.
        values = np.frombuffer(content.read(file.size), np.uint8, offset=header)
    np.save(path, values.reshape(file.shape).astype(file.dtype))


def download(url: str, path: Path, limit: int) -> None:
    """Write the body of `url` to `path`, and give up after `limit` bytes: it may have no end."""
    headers = {"Accept-Encoding": "identity"}  # compressed bytes would have another SHA-256
    try:
        import requests  # only here, as it is not needed once the data are present

        response = requests.get(url, stream=True, timeout=TIMEOUT, headers=headers)
    except (ImportError, OSError) as error:  # the errors of requests are OSErrors
        raise Unreachable from error  # first_cause shows the message of `error`
    with response:
        response.raise_for_status()
        expected = int(response.headers.get("Content-Length", limit))
        with open(path, "wb") as output:
            while chunk := response.raw.read(2**16):
                output.write(chunk)
                done = output.tell()
                show(f"{path.name}: {done / 1e6:.1f} of {expected / 1e6:.1f} MB", live=True)
                if done > limit:
                    raise ValueError(f"more than {limit} bytes")


# --- Command line ---------------------------------------------------------------------------------


def folder_path(text: str) -> Path:
    """An argparse type: the absolute path, which stays the same if the current folder changes.

    An empty text is refused. It would mean the current folder, but is often an unset variable.
    """
    if not text:
        raise argparse.ArgumentTypeError("a folder is expected, not an empty text")
    return Path(text).absolute()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    # fmt: off
    add("--data-dir", type=folder_path, metavar="DIR", default=DATA,
        help="folder for the files (default: %(default)s)")
    # fmt: on
    add("--mirror", metavar="URL", help="URL of a folder with the .npy files, tried first")
    options = parser.parse_args(argv)
    if options.mirror and not options.mirror.startswith(("http://", "https://")):
        parser.error("--mirror: a URL that begins with http:// or https:// is expected")
    try:
        data_dir = ensure(options.data_dir, options.mirror)
        show(f"{data_dir}: all four files are present and verified")
    except UserError as error:
        show(f"download_data.py: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        show("interrupted")
        sys.exit(130)


if __name__ == "__main__":
    main()
