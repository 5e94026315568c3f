"""The downloader against files that are there, and disks that take nothing."""

import re
import sys

import faulty_server
import pytest
from conftest import command
from faulty_server import FILES, SERVER, SMALL, imposter, listing, original, right, run, start

import download_data

DOWNLOADER = sys.executable, download_data.__file__
pytestmark = [pytest.mark.data, pytest.mark.usefixtures("data_dir")]


def test_valid_files_need_no_network_and_no_write(tmp_path):
    for file in FILES[:2]:
        (tmp_path / file.name).write_bytes(original(file.name))
    before, mirror = listing(tmp_path), SERVER.url("good")
    end = run(tmp_path, files=FILES[:2], mirror=mirror)
    assert end.code == 0
    assert end.err == f"{tmp_path}: all four files are there and verified\n"
    assert listing(tmp_path) == before
    assert not SERVER.asked(mirror)


def test_without_options_the_data_are_those_beside_the_script(data_dir, tmp_path):
    done = command(line=DOWNLOADER, cwd=tmp_path)
    told = f"{data_dir}: all four files are there and verified\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, "", told)


def test_help_shows_the_usage():
    shown = command("--help", line=DOWNLOADER, env={"COLUMNS": "999"}).stdout
    usage = "download_data.py [--data-dir DIR] [--mirror URL]"
    assert usage in download_data.__doc__
    assert f"{usage.replace(' ', ' [-h] ', 1)}\n\nFetch the four" in shown
    assert str(download_data.DATA) in shown
    assert "asked first" in shown


DAMAGES = {
    "empty": (lambda content: b"", "0 bytes, not 40128"),
    "truncated": (lambda content: content[:-1], "40127 bytes, not 40128"),
    "padded": (lambda content: content + b"\0", "40129 bytes, not 40128"),
    "MNIST": (imposter, r"wrong content \(MNIST, or an older version\?\): its SHA-256 is \w{64}"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_and_stays_until_it_is_replaced(tmp_path, damage):
    (make, reason), path = DAMAGES[damage], tmp_path / SMALL.name
    path.write_bytes(make(original(SMALL.name)))
    (tmp_path / FILES[1].name).write_bytes(original(FILES[1].name))
    mirror, before = SERVER.url("mnist+good"), listing(path)
    end = run(tmp_path, files=FILES[:2], mirror=mirror)
    assert end.code == 1
    assert re.match(f"{re.escape(str(path))}: {reason}; fetching it again\n", end.err), end.err
    assert listing(path) == before, "the old file was touched, though nothing replaces it"
    assert run(tmp_path, files=FILES[:2], mirror=mirror).code == 0
    assert right(tmp_path, *FILES[:2])
    assert path.stat().st_ino != before[path][0], "written over, not replaced in one step"
    assert SERVER.asked(mirror) == [SMALL.name] * 2, "more than the damaged file was fetched"


def test_a_file_that_may_not_be_read_is_replaced(tmp_path):
    path, prefix = tmp_path / SMALL.name, faulty_server.unprivileged()
    path.write_bytes(original(SMALL.name))
    path.chmod(0)
    end = run(tmp_path, mirror=SERVER.url("good"), prefix=prefix)
    assert end.err.startswith(f"{path}: Permission denied; fetching it again\n"), end.err
    assert right(tmp_path, SMALL)


IN_THE_WAY = "{file}: %s. Only a regular file is replaced"
UNUSABLE = "cannot store the data in {folder}: .*--data-dir DIR"
HINDRANCES = {
    "a link to a damaged file": (
        IN_THE_WAY % r"\d+ bytes, not 40128",
        lambda file: file.symlink_to(__file__),
    ),
    "a link to nothing": (IN_THE_WAY % "not a file", lambda file: file.symlink_to("nothing")),
    "a folder of a file's name": (IN_THE_WAY % "not a file", lambda file: file.mkdir()),
    "a folder that may not be written": (UNUSABLE, lambda file: file.parent.chmod(0o555)),
    "a parent that may not be entered": (UNUSABLE, lambda file: file.parent.parent.chmod(0)),
}


@pytest.mark.parametrize("hindrance", HINDRANCES)
def test_what_hinders_is_told_and_left_as_it_is(tmp_path, hindrance):
    (told, make), folder = HINDRANCES[hindrance], tmp_path / "parent" / "data"
    prefix = faulty_server.unprivileged() if "may not" in hindrance else ()
    folder.mkdir(parents=True)
    try:
        make(folder / SMALL.name)
    except OSError as error:
        pytest.skip(f"links cannot be made here: {error}")
    before, mirror = listing(tmp_path), SERVER.url("good")
    process = start(folder, mirror=mirror, prefix=prefix)
    err = process.communicate(timeout=60)[1]
    assert listing(tmp_path) == before, "written, replaced, or left behind"
    folder.parent.chmod(0o755)
    folder.chmod(0o755)
    assert process.returncode == 1
    message = told.format(file=folder / SMALL.name, folder=folder)
    assert re.match(f"download_data.py: {message}.*\n$", err), f"not told in one line:\n{err}"
    assert not SERVER.asked(mirror)


def test_a_full_disk_keeps_what_is_verified(tmp_path):
    with faulty_server.small_disk(tmp_path):
        end = run(tmp_path, files=FILES[:2], mirror=SERVER.url("good"))
        assert end.code == 1
        assert f"cannot store the data in {tmp_path}: No space left on device" in end.err
        assert [path.name for path in tmp_path.iterdir()] == [SMALL.name]
        assert right(tmp_path, SMALL)
