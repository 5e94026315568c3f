"""What starts the downloader for the tests, here or in a process of its own, and looks at the end.

Unless a test names a source, no source answers, and only the smallest of the four files is wanted.
"""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from servers import original

import download_data
from download_data import FILES, DataError, ensure

TESTS = Path(__file__).resolve().parent
SMALL = FILES[0]  # the labels of the test set, 40 KB
MEDIUM = FILES[2]  # the images of the test set, 31 MB: large enough to be caught midway
NOWHERE = "http://127.0.0.1:99999/"  # there is no such port: nothing is sent
CONSTANTS = {"COURSE": NOWHERE, "ZALANDO": NOWHERE, "SYSTEM": "no system copy"}
CONSTANTS |= {"TIMEOUT": 20, "PAUSE": 0.05}
PROXIES = "http_proxy", "https_proxy", "all_proxy", "no_proxy"
LIMIT = 30  # seconds for whatever a test waits for


class Outcome(NamedTuple):
    status: int
    err: str  # what is on stderr

    @property
    def lines(self) -> list[str]:
        return self.err.splitlines()

    def about(self, source) -> list[str]:
        """The lines about a source, without its name."""
        start = f"{source}: "
        return [line.removeprefix(start) for line in self.lines if line.startswith(start)]


def fetch(folder, mirror=None, files=(SMALL,), constants=(), env=()) -> Outcome:
    """Call `ensure` here: fetch `files` into the folder, with other constants of download_data."""
    constants = CONSTANTS | dict(constants) | {"FILES": files}
    constants["SYSTEM"] = Path(constants["SYSTEM"])
    raised = []

    def call():
        try:
            ensure(folder, mirror)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=call, daemon=True)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as err:
        for name, value in constants.items():
            patch.setattr(download_data, name, value)
        for name in PROXIES:
            patch.delenv(name, raising=False)
            patch.delenv(name.upper(), raising=False)
        for name, value in ({"PATH": "/nonexistent"} | dict(env)).items():
            patch.setenv(name, value)
        thread.start()
        thread.join(LIMIT)
    assert not thread.is_alive(), f"not over after {LIMIT} s:\n{err.getvalue()}"
    if raised and not isinstance(raised[0], DataError):
        raise raised[0]
    text = err.getvalue() + "".join(f"download_data.py: {error}\n" for error in raised)
    return checked(Outcome(len(raised), text), folder)


def start(
    folder,
    *arguments,
    mirror=None,
    files=(SMALL,),
    constants=(),
    sabotage=(),
    env=(),
    prefix=(),
    **how,
) -> subprocess.Popen:
    """Start the command, to fetch `files` into the folder.

    `sabotage` is a function of sabotage.py and its arguments, `prefix` a command that runs ours;
    `how` is for Popen.
    """
    settings = {"constants": CONSTANTS | dict(constants), "sabotage": sabotage}
    settings["files"] = [file.name for file in files]
    arguments = ["--data-dir", folder, *(["--mirror", mirror] if mirror else []), *arguments]
    inherited = {name: v for name, v in os.environ.items() if name.lower() not in PROXIES}
    # With one thread, NumPy is imported sooner.
    ours = {"PATH": "/nonexistent", "PYTHONPATH": str(TESTS.parent), "OPENBLAS_NUM_THREADS": "1"}
    command = [*prefix, sys.executable, TESTS / "sabotage.py", json.dumps(settings), *arguments]
    pipes = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
    process = subprocess.Popen(
        [*map(str, command)], env=inherited | ours | dict(env), text=True, **(pipes | how)
    )
    process.folder = folder
    return process


def finish(process: subprocess.Popen) -> Outcome:
    """Wait for the end of the command."""
    try:
        out, err = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"not over after {LIMIT} s:\n{process.communicate()}") from None
    assert not out, f"stdout is not for messages: {out}"
    return checked(Outcome(process.returncode, err or ""), process.folder)


def checked(outcome: Outcome, folder: Path) -> Outcome:
    """Hold what is true of every end: plain words, and nothing is left beside the data."""
    assert "Traceback" not in outcome.err, f"a traceback meets the user:\n{outcome.err}"
    python = re.search(r"\w\(['\"]|\w+\.\w+Error|object at 0x", outcome.err)
    assert not python, f"Python's words, {python[0]}:\n{outcome.err}"
    control = set("\r\x1b") & set(outcome.err)
    assert not control, f"control characters without a terminal: {outcome.err!r}"
    if outcome.status != -9:  # SIGKILL
        found = leftovers(folder)
        assert not found, f"left behind, with status {outcome.status}: {found}\n{outcome.err}"
    return outcome


# --- Folders --------------------------------------------------------------------------------------


def leftovers(folder: Path) -> list[Path]:
    """What is in the folder besides the four files."""
    names = {file.name for file in FILES}
    return [path for path in folder.glob("*") if path.name not in names]


def put(folder: Path, *files) -> None:
    """Put the right content of the files into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        (folder / file.name).write_bytes(original(file.name))


def defects(folder: Path, *files) -> list[str]:
    """What is wrong with the files in the folder."""
    found = []
    for file in files:
        path = folder / file.name
        if not path.is_file():
            found.append(f"{file.name} is missing")
        elif path.read_bytes() != original(file.name):
            found.append(f"{file.name} has wrong content")
    return found


def listing(folder: Path) -> dict:
    """All that a write would change, in the folder and below."""
    names = [Path(at, name) for at, *inside in os.walk(folder) for part in inside for name in part]
    stats = {name: os.lstat(name) for name in (folder, *names)}
    return {str(n): (s.st_ino, s.st_mode, s.st_size, s.st_mtime_ns) for n, s in stats.items()}


# --- What a test needs of the system --------------------------------------------------------------


def needs_posix(what: str):
    return pytest.mark.skipif(os.name != "posix", reason=f"{what} needs POSIX")


def unprivileged() -> tuple:
    """A prefix for a command, for which permissions count even if root runs it."""
    if os.name != "posix":
        pytest.skip("needs permissions as POSIX has them")
    if os.geteuid():
        return ()
    prefix = shutil.which("setpriv"), "--bounding-set=-dac_override,-dac_read_search"
    if not prefix[0] or subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("permissions do not bind root, and there is no setpriv that works")
    return prefix


@contextlib.contextmanager
def small_disk(folder: Path):
    """Room for the smallest file in the folder, and not for the next one."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not permitted")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)  # also if it is in use


def until(what: str, condition, process=None) -> None:
    """Wait for the condition to hold, at most as long as the process runs."""
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert process is None or process.poll() is None, (
            f"{what} did not come:\n{finish(process).err}"
        )
        assert time.monotonic() < deadline, f"{what} did not come in {LIMIT} s"
        time.sleep(0.01)
