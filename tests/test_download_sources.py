"""The downloader's sources: IDX files and their damages, whole runs from each, and none at all."""

import os
import pty
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from faulty_server import (
    FILES,
    LABELS_ONLY,
    SERVER,
    SMALL,
    damages,
    end,
    fill,
    idx,
    original,
    right,
    run,
    start,
    until,
)

pytestmark = pytest.mark.data


@pytest.fixture(scope="module")
def outcome(data_dir, tmp_path_factory, request):
    """What came of each damage to an IDX file, in the system's copy and on Zalando's server."""
    base, raw = tmp_path_factory.mktemp("idx"), idx(SMALL)

    def meet(damage):
        system, folder, url = base / damage / "system", base / damage / "data", SERVER.url(damage)
        system.mkdir(parents=True)
        (system / SMALL.idx).write_bytes(damages[damage][0](raw))
        end = run(fill(folder), SYSTEM=str(system), ZALANDO=url, before=LABELS_ONLY)
        refused = not (folder / SMALL.name).exists()
        return SimpleNamespace(**vars(end), system=system, asked=SERVER.asked(url), refused=refused)

    specs = [getattr(item, "callspec", None) for item in request.session.items]
    names = dict.fromkeys(
        spec.params["damage"] for spec in specs if spec and "damage" in spec.params
    )
    with ThreadPoolExecutor(4) as pool:
        outcomes = {name: pool.submit(meet, name) for name in names}
        yield lambda name: outcomes[name].result()


@pytest.mark.parametrize("damage", damages)
def test_a_damaged_idx_file_is_told_and_refused(outcome, damage):
    end, reason = outcome(damage), damages[damage][1]
    assert end.refused, "wrong bytes were accepted"
    assert end.code == 1
    for source in (end.system, "Zalando's server"):
        assert re.search(f"{source}: {SMALL.name}: .*({reason})", end.err), end.err
    # Where something is missing, the transfer may have been cut, and another attempt is fair.
    times = 3 if re.search("Zalando's server: .* cut short.*, 3 times", end.err) else 1
    assert ", 1 times" not in end.err
    assert not re.search(f"{end.system}: .*again in", end.err), "a file on disk was tried again"
    assert end.asked == [SMALL.idx] * times, "asked again, though the answer cannot change"
    assert end.megabytes < 120, "more memory than the program and a few MB of data"
    assert end.seconds < 15


def test_idx_files_labelled_as_encoded_are_taken_as_they_are(data_dir, tmp_path):
    """Many servers say 'Content-Encoding: gzip' of a file that is itself a .gz."""
    zalando = SERVER.url("mislabelled")
    assert run(fill(tmp_path), ZALANDO=zalando).code == 0
    assert right(tmp_path)


@pytest.mark.parametrize("source", ["mirror", "COURSE", "ZALANDO", "SYSTEM"])
def test_a_whole_run_from_each_source(data_dir, tmp_path, source):
    """All 220 MB, into a folder that does not exist yet, from one source that works."""
    folder, url = tmp_path / "new" / "data", SERVER.url("good")
    for file in FILES:
        original(file.idx)  # compressed now, lest the server seem to stall
    if source == "SYSTEM":
        for file in FILES:
            (tmp_path / file.idx).write_bytes(original(file.idx))
        url = str(tmp_path)
    end = run(folder, **{source: url})
    assert end.code == 0, end.err
    assert right(folder)
    assert end.megabytes < 120
    if source != "SYSTEM":
        names = [file.idx if source == "ZALANDO" else file.name for file in FILES]
        assert SERVER.asked(url) == names


def test_the_package_mirror(data_dir, tmp_path):
    """For real, where the system has one that answers."""
    if not shutil.which("apt-get"):
        pytest.skip("no apt-get on this system")
    if Path("/usr/share/datasets/fashion-mnist").exists():
        pytest.skip("the package is installed, so nothing would be fetched")
    system = "/usr/share/datasets/fashion-mnist"
    end = run(tmp_path, SYSTEM=system, GRACE=50, env={"PATH": "/usr/bin:/bin"}, timeout=120)
    if end.code and (reason := re.search("package mirror: apt-get: .*", end.err)):
        pytest.skip(reason[0])
    assert end.code == 0, end.err
    assert right(tmp_path)


@pytest.fixture
def package(tmp_path):
    """Make apt-get and dpkg-deb, to be used instead of the system's, of these shell commands."""

    def make(apt_get, dpkg_deb="exit 1"):
        tools, temporary = tmp_path / "bin", tmp_path / "temporary"
        tools.mkdir()
        temporary.mkdir()
        for name, commands in {"apt-get": apt_get, "dpkg-deb": dpkg_deb}.items():
            (tools / name).write_text(f"#!/bin/sh\n{commands}\n")
            (tools / name).chmod(0o755)
        return {"PATH": f"{tools}:/usr/bin:/bin", "TMPDIR": str(temporary)}, temporary

    return make


def test_the_package_is_unpacked_in_a_temporary_folder(data_dir, tmp_path, package):
    folder, system = fill(tmp_path / "data"), tmp_path / "nothing"
    (tmp_path / SMALL.idx).write_bytes(original(SMALL.idx))
    unpack = f'mkdir -p "$3{system}" && cp {tmp_path}/{SMALL.idx} "$3{system}"'
    download = "case $* in *update) touch new;; *) test -e new && touch the.deb;; esac"
    env, temporary = package(f"ls lists/partial cache/archives/partial && {download}", unpack)
    end = run(folder, PACKED=str(system)[1:], env=env)
    assert end.code == 0, end.err
    assert "from the system's package mirror, verified" in end.err
    assert right(folder)
    assert not list(temporary.iterdir()), "the temporary folder stays"


def test_a_package_of_damaged_files_is_not_tried_again(data_dir, tmp_path, package):
    system = tmp_path / "nothing"
    (tmp_path / SMALL.idx).write_bytes(original(SMALL.idx)[:-9])
    unpack = f'mkdir -p "$3{system}" && cp {tmp_path}/{SMALL.idx} "$3{system}"'
    env, _ = package("touch the.deb", unpack)
    end = run(fill(tmp_path / "data"), PACKED=str(system)[1:], env=env)
    assert f"package mirror: {SMALL.name}: the gzip file is cut short\n" in end.err
    assert "again in" not in end.err


def test_the_tools_cannot_ask(data_dir, tmp_path, package):
    env, _ = package("readlink /proc/self/fd/0; exit 7")
    end = run(fill(tmp_path / "data"), env=env)
    assert "apt-get: /dev/null" in end.err, "what the user types, or a pipe, reaches them"


@pytest.mark.parametrize("missing", ["apt-get", "dpkg-deb"])
def test_both_tools_are_needed(data_dir, tmp_path, package, missing):
    env, _ = package("exit 7")
    tools = env["PATH"].split(":")[0]
    Path(tools, missing).unlink()
    end = run(fill(tmp_path / "data"), env={"PATH": tools})
    assert "package mirror: no apt-get on this system" in end.err


def test_a_tool_that_cannot_be_run_is_told(data_dir, tmp_path, package):
    env, _ = package("exit 7")
    tools = env["PATH"].split(":")[0]
    Path(tools, "apt-get").write_text("not a program")
    end = run(fill(tmp_path / "data"), env={"PATH": tools})
    assert "cannot unpack dataset-fashion-mnist: Exec format error" in end.err


def test_a_terminal_is_told_what_is_waited_for(data_dir, tmp_path, package):
    ours, its = pty.openpty()
    env = package("exit 7")[0] | {"COLUMNS": "40"}
    process = start(fill(tmp_path / "data"), env=env, stderr=its)
    os.close(its)
    assert end(process).code == 1
    told = "dataset-fashion-mnist from the system's package mirror"[:39]
    assert f"\r\x1b[K{told}\r" in os.read(ours, 10**5).decode(), "wrapped, or cut elsewhere"
    os.close(ours)


@pytest.mark.parametrize(
    ("apt_get", "dpkg_deb", "reason"),
    [
        ("echo 'W: old' >&2; echo 'E: no such package' >&2; exit 100", "", "E: no such package"),
        ("printf 'E: \\033caf\\351\\n\\n' >&2; exit 1", "", "apt-get: E: caf"),
        ("exit 7", "", "apt-get: 7"),
        ("kill -9 $$", "", "apt-get: -9"),
        ("touch the.deb", "echo 'not an archive' >&2; exit 2", "dpkg-deb: not an archive"),
        ("true", "true", f"{SMALL.name}: .*No such file|not there"),
    ],
)
def test_a_package_that_cannot_be_had_is_told(
    data_dir, tmp_path, package, apt_get, dpkg_deb, reason
):
    env, temporary = package(apt_get, dpkg_deb)
    end = run(fill(tmp_path / "data"), env=env)
    assert end.code == 1
    assert re.search(f"package mirror: .*({reason})", end.err), end.err
    assert not list(temporary.iterdir()), "the temporary folder stays"


def test_a_package_mirror_that_hangs_is_left_like_the_others(data_dir, tmp_path, package):
    env, _ = package("exec sleep 60")
    end = run(fill(tmp_path / "data"), env=env, PACE=10**9, GRACE=1, timeout=15)
    assert "apt-get was too slow" in end.err
    assert end.seconds > 1, "it was given no time"


def test_interrupted_with_a_package_underway(data_dir, tmp_path, package):
    env, temporary = package(f"echo $$ > {tmp_path}/pid; exec sleep 60")
    process = start(fill(tmp_path / "data"), env=env)
    pid = tmp_path / "pid"
    until(lambda: pid.exists() and pid.read_text())
    assert next(temporary.iterdir()).name.startswith("fashion-mnist-")
    time.sleep(0.5)  # for subprocess to learn that what it started has started
    process.send_signal(2)
    assert end(process).code == 130
    assert not list(temporary.iterdir()), "the temporary folder stays"
    state = Path("/proc", pid.read_text().strip(), "stat")
    until(lambda: not state.exists() or " Z " in state.read_text())  # Z: dead, but not buried yet


def test_when_every_source_fails_one_summary_tells_all(data_dir, tmp_path):
    mirror = SERVER.url("404")
    end = run(fill(tmp_path), mirror=mirror, COURSE=SERVER.url("503"), ZALANDO=SERVER.url("html"))
    package = "dataset-fashion-mnist (Debian, Ubuntu)"
    assert end.code == 1
    summary = end.err[end.err.index("not all files can be had") :].splitlines()
    assert summary[1:] == [
        f"  {mirror}: {SMALL.name}: HTTP 404 Not Found",
        f"  {tmp_path}/no system copy: not there",
        f"  the course's server: {SMALL.name}: HTTP 503 Service Unavailable, 3 times",
        f"  Zalando's server: {SMALL.name}: not the file but an HTML page",
        "  the system's package mirror: no apt-get on this system",
        f"Either install the package {package}, or put into {tmp_path}:",
        f"  {SMALL.name}  {SMALL.size} bytes, SHA-256 {SMALL.sha256}",
    ]


def test_what_is_verified_is_kept_and_the_next_run_fetches_the_rest(data_dir, tmp_path):
    partial, whole = SERVER.url("images missing"), SERVER.url("good")
    fill(tmp_path, missing=FILES[:3])
    first = run(tmp_path, mirror=partial)
    assert first.code == 1
    assert right(tmp_path, *FILES[:2]), first.err
    kept = [(tmp_path / file.name).stat() for file in FILES[:2]]
    assert run(tmp_path, mirror=whole).code == 0
    assert right(tmp_path)
    assert SERVER.asked(whole) == [FILES[2].name]
    assert [(tmp_path / file.name).stat().st_mtime_ns for file in FILES[:2]] == [
        stat.st_mtime_ns for stat in kept
    ]


def test_each_file_comes_from_where_it_can_be_had(data_dir, tmp_path):
    """A source that lacks a file is still asked for the others, and the next one for that file."""
    system, folder = tmp_path / "system", fill(tmp_path / "data", missing=FILES[:3])
    system.mkdir()
    (system / FILES[1].idx).write_bytes(original(FILES[1].idx))
    partial, rest = SERVER.url("images missing"), SERVER.url("good")
    end = run(folder, SYSTEM=str(system), COURSE=partial, ZALANDO=rest)
    assert end.code == 0, end.err
    assert right(folder)
    for file in (FILES[0], FILES[2]):
        assert f"{system}: {file.name}: {file.idx}: No such file" in end.err
    assert SERVER.asked(partial) == [FILES[0].name, FILES[2].name]
    assert SERVER.asked(rest) == [FILES[2].idx]


def test_one_file_that_fails_does_not_cost_the_others(data_dir, tmp_path):
    """A file that is cut on the server, every time: the server has answered, and has the rest."""
    run(fill(tmp_path, missing=FILES[:2]), mirror=SERVER.url("small cut"))
    assert right(tmp_path, FILES[1]), "the whole source was given up for one file"
