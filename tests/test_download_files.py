"""The downloader and the files that are there already: right, damaged, or the user's own."""

import contextlib
import os
import stat
import subprocess
import sys

import numpy as np
import pytest
from downloader import (
    FILES,
    SMALL,
    defects,
    fetch,
    finish,
    listing,
    needs_posix,
    put,
    small_disk,
    start,
    unprivileged,
)
from servers import DAMAGES, original

import download_data

pytestmark = [pytest.mark.data, pytest.mark.usefixtures("data_dir")]
LABELS, _, IMAGES, _ = FILES


# --- Missing files are fetched, and right ones are not --------------------------------------------


def test_a_missing_file_is_fetched(tmp_path, server):
    """As it is: a body that is compressed on the way has another hash."""
    outcome = fetch(tmp_path, server.url("good"))
    assert server.headers["Accept-Encoding"] == "identity"
    assert not defects(tmp_path, SMALL), outcome.err
    assert outcome.status == 0, outcome.err


def test_valid_files_need_no_network_and_no_write(tmp_path, server):
    put(tmp_path, *FILES[:3])
    before, mirror = listing(tmp_path), server.url("good")
    outcome = fetch(tmp_path, mirror, files=FILES[:3])
    assert outcome.status == 0, outcome.err
    assert outcome.err == "", "nothing was done, so there is nothing to report"
    assert not server.asked(mirror), "the network was used"
    assert listing(tmp_path) == before, "something was written"


def test_without_options_the_data_are_those_beside_the_script(data_dir, tmp_path):
    command = [sys.executable, download_data.__file__]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert done.stderr == f"{data_dir}: all four files are present and verified\n"


# --- Damaged files are replaced -------------------------------------------------------------------


def of_values(array) -> bytes:
    """A file of the course's form that holds `array`."""
    return original(LABELS.name)[:128] + np.asarray(array, "<i4").tobytes()


labels = np.arange(10000, dtype=np.int64) % 10
# What is in the place of the smallest file, and how it is reported.
DAMAGED = {
    "empty": (lambda right: b"", "0 bytes, not 40128"),
    "cut": (lambda right: right[:-1], "40127 bytes, not 40128"),
    "cut in its header": (lambda right: right[:100], "100 bytes, not 40128"),
    "padded": (lambda right: right + b"\0", "40129 bytes, not 40128"),
    "HTML": (DAMAGES["html"], "57 bytes, not 40128"),
    "HTML of the right size": (lambda right: DAMAGES["html"](right).ljust(40128), None),
    "a damaged header": (lambda right: right.replace(b"<i4", b"<i?"), None),
    "a label of 10": (lambda right: of_values(labels + (labels == 9)), None),
    "a label of -1": (lambda right: of_values(labels - (labels == 0)), None),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_stays_until_its_replacement_is_verified(tmp_path, server, damage):
    make, reason = DAMAGED[damage]
    path = tmp_path / SMALL.name
    put(tmp_path, *FILES[:2])
    path.write_bytes(make(original(SMALL.name)))
    before, mirror = listing(path), server.url("imposter+good")
    outcome = fetch(tmp_path, mirror, files=FILES[:2])
    assert outcome.status == 1, f"reported as fetched, though no source has it:\n{outcome.err}"
    asked = server.asked(mirror)
    assert asked == [SMALL.name], f"asked for {asked}, not for the damaged file:\n{outcome.err}"
    assert path.exists(), "the old file was removed, though nothing replaces it"
    assert listing(path) == before, "the old file was touched, though nothing replaces it"
    outcome = fetch(tmp_path, mirror, files=FILES[:2])
    assert outcome.status == 0, outcome.err
    assert not defects(tmp_path, *FILES[:2])
    assert path.stat().st_ino != before[str(path)][0], "written over, not replaced in one step"
    if reason:
        assert outcome.lines[0] == f"{path}: {reason}; fetching it again"


def test_images_with_a_pixel_of_nan_are_damaged(tmp_path, server):
    content = bytearray(original(IMAGES.name))
    content[128:132] = np.float32(np.nan).tobytes()
    (tmp_path / IMAGES.name).write_bytes(content)
    mirror = server.url("404")
    outcome = fetch(tmp_path, mirror, files=[IMAGES])
    asked = server.asked(mirror)
    assert asked, f"taken for the user's own:\n{outcome.err}"
    assert asked == [IMAGES.name], f"asked for {asked}, not once for the images"


def test_a_damaged_file_that_another_program_has_open_is_replaced_or_left(tmp_path, server):
    """Windows does not let it be replaced. Then it is left, and the status tells so."""
    path = tmp_path / SMALL.name
    path.write_bytes(b"damaged")
    with open(path, "rb"):
        outcome = fetch(tmp_path, server.url("good"))
    if outcome.status == 0:
        assert not defects(tmp_path, SMALL)
    else:
        assert os.name == "nt", outcome.err
        assert path.read_bytes() == b"damaged"


# --- The user's own files are not -----------------------------------------------------------------


OUR_FORM = "the right shape but other values: MNIST, an older Fashion-MNIST, or a damaged copy"
NO_NUMBERS = "an array, but not of real numbers in .npy format 1.0"
# Which file, an array in its place, and what the message calls it.
OWN = {
    "digits of 8 x 8 pixels": (IMAGES, np.ones((1797, 64)), "float64 of shape (1797, 64)"),
    "three dimensions": (IMAGES, np.ones((5, 28, 28), "u1"), "uint8 of shape (5, 28, 28)"),
    "by columns": (IMAGES, np.ones((784, 10), "f4").T, "float32 of shape (10, 784)"),
    "no labels": (LABELS, np.zeros(0), "float64 of shape (0,)"),
    "one-hot labels": (LABELS, np.eye(10, dtype=bool), "bool of shape (10, 10)"),
    "labels of another dtype": (LABELS, labels, "int64 of shape (10000,)"),
    "labels of another order of bytes": (LABELS, labels.astype(">i4"), ">i4 of shape (10000,)"),
    "MNIST under the same name": (LABELS, labels.astype("<i4"), OUR_FORM),
    "names of classes": (LABELS, np.array(["shirt", "bag"]), NO_NUMBERS),
    "complex numbers": (IMAGES, np.ones((5, 4), complex), NO_NUMBERS),
    "objects": (LABELS, np.array([1, "bag"], object), NO_NUMBERS),
    "fields": (LABELS, np.zeros(7, [("label", "i4"), ("weight", "f4")]), NO_NUMBERS),
    "fields with a name that needs format 3.0": (LABELS, np.zeros(7, [("ŷ", "i4")]), NO_NUMBERS),
}
ADVICE = (
    "download_data.py: {folder}: these files are not Fashion-MNIST's, so nothing was fetched or "
    "changed. If they are your own, move them to another folder DIR and run softmax_sgd.py "
    "--data-dir DIR; otherwise move or delete them, and start again:"
)


def assert_left_alone(folder, server, files) -> list[str]:
    """Hold that the downloader touches nothing; return what it reports of each file."""
    before, mirror = listing(folder), server.url("good")
    outcome = fetch(folder, mirror, files=files)
    assert listing(folder) == before, f"something was written or replaced:\n{outcome.err}"
    assert not server.asked(mirror), f"something was fetched:\n{outcome.err}"
    assert outcome.status == 1, f"it is no success:\n{outcome.err}"
    first, *lines = outcome.lines
    assert first == ADVICE.format(folder=folder)
    return [line.strip() for line in lines]


@pytest.mark.parametrize("own", OWN)
@pytest.mark.filterwarnings("ignore:Stored array in format 3.0")
def test_a_sound_array_of_the_user_is_never_replaced(tmp_path, server, own):
    file, array, found = OWN[own]
    np.save(tmp_path / file.name, array, allow_pickle=True)
    assert assert_left_alone(tmp_path, server, FILES) == [f"{file.name}: {found}"]


def test_one_damaged_byte_among_the_values_is_left_alone(tmp_path, server):
    """Nobody can tell it from another data set."""
    content = bytearray(original(LABELS.name))
    content[20000] ^= 1
    (tmp_path / LABELS.name).write_bytes(content)
    assert assert_left_alone(tmp_path, server, FILES) == [f"{LABELS.name}: {OUR_FORM}"]


def test_all_files_in_the_way_are_named_at_once(tmp_path, server):
    """A damaged file among them stays as well: nothing is done by halves."""
    damaged, own, right, folder = FILES
    (tmp_path / damaged.name).write_bytes(b"damaged")
    np.save(tmp_path / own.name, np.ones(3))
    put(tmp_path, right)
    (tmp_path / folder.name).mkdir()
    found = assert_left_alone(tmp_path, server, FILES)
    assert found == [
        f"{own.name}: float64 of shape (3,)",
        f"{folder.name}: not a regular file",
    ]


def link(path, target):
    """Make `path` a link to the target, where links can be made."""
    with contextlib.suppress(OSError):
        path.symlink_to(target)
    if not path.is_symlink():
        pytest.skip("links cannot be made here")


def fifo(path):
    if not hasattr(os, "mkfifo"):
        pytest.skip("there are no FIFOs here")
    os.mkfifo(path)


NO_FILE = {
    "a link to another file": (lambda path: link(path, __file__), "a link"),
    "a link to nothing": (lambda path: link(path, "nothing"), "a link"),
    "a folder": (lambda path: path.mkdir(), "not a regular file"),
    "a FIFO": (fifo, "not a regular file"),
}


@pytest.mark.parametrize("kind", NO_FILE)
def test_what_is_no_regular_file_is_left_alone(tmp_path, server, kind):
    make, found = NO_FILE[kind]
    make(tmp_path / SMALL.name)
    assert assert_left_alone(tmp_path, server, FILES[:1]) == [f"{SMALL.name}: {found}"]


def test_a_file_that_may_not_be_read_is_left_alone(tmp_path, server):
    """Nobody can tell whose it is."""
    path, prefix, mirror = tmp_path / SMALL.name, unprivileged(), server.url("good")
    content = b"whose?".ljust(SMALL.size)  # the right size, so it would have to be read
    path.write_bytes(content)
    path.chmod(0)
    outcome = finish(start(tmp_path, mirror=mirror, prefix=prefix))
    path.chmod(0o600)
    assert path.read_bytes() == content, outcome.err
    assert outcome.status == 1
    assert not server.asked(mirror)
    assert outcome.lines[1] == f"  {SMALL.name}: cannot be read: Permission denied"


def test_a_link_to_the_right_file_is_a_right_file(tmp_path, server):
    put(tmp_path / "elsewhere", SMALL)
    folder = tmp_path / "data"
    folder.mkdir()
    link(folder / SMALL.name, tmp_path / "elsewhere" / SMALL.name)
    before = listing(tmp_path)
    outcome = fetch(folder, server.url("good"))
    assert outcome.status == 0, outcome.err
    assert listing(tmp_path) == before, "something was written"


# --- The folder -----------------------------------------------------------------------------------


def cannot_store(folder, reason):
    return (
        f"download_data.py: cannot store the data in {folder}: {reason}. To use another folder "
        "DIR: download_data.py --data-dir DIR, then softmax_sgd.py --data-dir DIR"
    )


def test_a_file_in_the_place_of_the_folder(tmp_path, server):
    folder, mirror = tmp_path / "data", server.url("good")
    folder.write_text("in the way")
    outcome = fetch(folder, mirror)
    assert outcome.status == 1
    assert folder.read_text() == "in the way"
    assert not server.asked(mirror), "fetched, though it cannot be stored"
    with pytest.raises(FileExistsError) as error:
        folder.mkdir()
    assert outcome.lines == [cannot_store(folder, error.value.strerror)]


@pytest.mark.parametrize("which", ["the folder", "its parent"])
def test_a_folder_without_permission(tmp_path, server, which):
    prefix, mirror = unprivileged(), server.url("good")
    folder = tmp_path / "parent" / "data"
    folder.mkdir(parents=True)
    closed = folder if which == "the folder" else folder.parent
    closed.chmod(0o555 if which == "the folder" else 0)
    process = start(folder, mirror=mirror, prefix=prefix)
    _, err = process.communicate(timeout=60)
    closed.chmod(0o755)
    assert process.returncode == 1, err
    assert not list(folder.iterdir()), "written, or left behind"
    assert not server.asked(mirror), "fetched, though it cannot be stored"
    assert err == cannot_store(folder, "Permission denied") + "\n"


def test_a_full_disk_keeps_what_is_verified(tmp_path, server):
    folder = tmp_path / "disk"
    folder.mkdir()
    with small_disk(folder):
        outcome = fetch(folder, server.url("good"), files=FILES[:2])
        assert outcome.status == 1
        assert not defects(folder, SMALL)
        assert [path.name for path in folder.iterdir()] == [SMALL.name]
        assert outcome.lines[-1] == cannot_store(folder, "No space left on device")


@needs_posix("a umask")
@pytest.mark.parametrize(
    ("umask", "file", "folder"),
    [(0o027, "0o640", "0o750"), (0, "0o666", "0o777")],
    ids=["umask 027", "umask 0"],
)
def test_the_umask_sets_the_permissions(tmp_path, server, umask, file, folder):
    before = os.umask(umask)
    try:
        outcome = fetch(tmp_path / "new" / "data", server.url("good"))
    finally:
        os.umask(before)
    assert outcome.status == 0, outcome.err
    modes = {
        path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in (tmp_path / "new").rglob("*")
    }
    assert modes == {"data": folder, SMALL.name: file}


def test_a_linked_folder_is_called_by_the_name_it_was_given(tmp_path, server):
    """The absolute one, but not that of what the link leads to."""
    (tmp_path / "elsewhere").mkdir()
    link(tmp_path / "data", "elsewhere")
    mirror = server.url("good")
    outcome = finish(start(tmp_path / "data", "--data-dir", "data", mirror=mirror, cwd=tmp_path))
    assert outcome.status == 0, outcome.err
    assert not defects(tmp_path / "elsewhere", SMALL)
    assert outcome.lines[-1].partition(": ")[0] == str(tmp_path / "data")
