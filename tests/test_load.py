"""Lemmas on reading a user's own files: what is read, and which line tells what is wrong.

No code in a file is run, and no memory is taken beyond the file's size.
More damaged files than are tried here: FUZZ=100000 python -m pytest tests/test_load.py
"""

import io
import os
import pickle
import re
import struct
import threading
import tracemalloc

import numpy as np
import pytest
from conftest import NAMES
from hypothesis import given, settings
from hypothesis import strategies as st

from download_data import FILES, DataError, read_npy
from softmax_sgd import load

IMAGES, LABELS, TEST_IMAGES, TEST_LABELS = NAMES

# Own data in the right form: six images of four pixels to train, three to test.
X = np.arange(24, dtype=np.uint8).reshape(6, 4) * 7  # up to 161
Y = np.arange(6)
RIGHT = {IMAGES: X, LABELS: Y, TEST_IMAGES: X[:3], TEST_LABELS: Y[:3]}


@pytest.fixture
def folder(tmp_path):
    """A folder with own data in the right form."""
    folder = tmp_path / "own"
    folder.mkdir()
    for name, array in RIGHT.items():
        np.save(folder / name, array)
    return folder


def with_pixel(value, dtype=float):
    """X, in which one pixel has this value."""
    changed = X.astype(dtype)
    changed[1, 2] = value
    return changed


def refusal(folder):
    """The message of the DataError that `load` raises."""
    try:
        load(folder)
    except DataError as error:
        return str(error)
    except Exception as error:
        pytest.fail(f"not a DataError, which is a line for the user, but {error!r}")
    pytest.fail("accepted")


# --- What is read ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["?", "u1", "<i4", "<f2", ">f4", "<f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_dtype_and_order_gives_the_same_numbers(folder, dtype, order):
    highest = 1 if dtype == "?" else 9  # valid for pixels and for labels, in every dtype
    numbers = {name: array % (highest + 1) for name, array in RIGHT.items()}
    for name in NAMES:
        np.save(folder / name, np.asarray(numbers[name], dtype, order=order))
    scale = 1 if highest == 1 else 255
    for loaded, name in zip(load(folder), NAMES):
        expected = numbers[name] / scale if name in (IMAGES, TEST_IMAGES) else numbers[name]
        stored = f"{name}, stored as {dtype} in order {order}"
        np.testing.assert_allclose(loaded, expected, 1e-6, err_msg=stored)
        assert loaded.dtype == (np.float32 if "images" in name else np.intp), stored
        assert loaded.flags.c_contiguous, stored


@pytest.mark.parametrize(
    ("highest", "divisor", "note"),
    [
        (1, 1, "Note: the images in {} already look normalised and are used unchanged\n"),
        (1.5, 255, "Note: dividing by 255, although no training pixel exceeds 1.5\n"),
        (127, 255, "Note: dividing by 255, although no training pixel exceeds 127\n"),
        (128, 255, ""),
    ],
)
def test_pixels_are_divided_by_255_unless_none_exceeds_1(folder, capsys, highest, divisor, note):
    for name in (IMAGES, TEST_IMAGES):
        np.save(folder / name, RIGHT[name] / RIGHT[name].max() * highest)
    train, _, test, _ = load(str(folder))  # a string will do for the folder
    for images in (train, test):
        np.testing.assert_allclose(images.max(), highest / divisor, 1e-6)
    assert capsys.readouterr().err == note.format(folder)


def test_a_file_of_python_2_is_read_without_a_warning(tmp_path, recwarn):
    (tmp_path / "old.npy").write_bytes(described(shape="(60L, 9L)"))
    assert read_npy(tmp_path / "old.npy").shape == (60, 9)
    assert not recwarn.list


# --- What is refused: own data in another form ----------------------------------------------------

PIXELS = "not within 0 to 255; pixels may be 0..255 or 0..1, but not standardised"
FROM_1 = "not within 0 to 9; if the classes are numbered from 1, save y - 1"

# The wrong array, the file that has it, and the line that the user sees after the file's name.
WRONG = {
    "images of rows and columns": (
        X.reshape(6, 2, 2),
        IMAGES,
        "images of shape (6, 2, 2), not (n, pixels); save X.reshape(len(X), -1)",
    ),
    "images of one number each": (Y, IMAGES, "images of shape (6,), not (n, pixels)"),
    "no images": (X[:0], IMAGES, "empty, of shape (0, 4)"),
    "images of no pixels": (X[:, :0], IMAGES, "empty, of shape (6, 0)"),
    "NaN": (with_pixel(np.nan), IMAGES, "holds NaN, first at index (1, 2)"),
    "below 0": (with_pixel(-0.5), IMAGES, f"values from -0.5 to 161.0, {PIXELS}"),
    "above 255": (with_pixel(256, int), IMAGES, f"values from 0 to 256, {PIXELS}"),
    "infinite": (with_pixel(np.inf), IMAGES, f"values from 0.0 to inf, {PIXELS}"),
    "standardised": (np.array([[-1.5, 1.5]] * 6), IMAGES, f"values from -1.5 to 1.5, {PIXELS}"),
    "test images of another width": (X[:3, :3], TEST_IMAGES, "3 pixels, but 4 in training"),
    "test images of another scale": (
        X[:3] / 255,
        TEST_IMAGES,
        "not scaled like the training images: pixels exceed 1 in only one of the two sets",
    ),
    "one-hot labels": (
        np.eye(10)[Y],
        LABELS,
        "labels of shape (6, 10), not (n,); if one-hot, save y.argmax(axis=1)",
    ),
    "labels in a column": (Y[:, None], LABELS, "labels of shape (6, 1), not (n,); save y.ravel()"),
    "labels in a row": (Y[None], LABELS, "labels of shape (1, 6), not (n,); save y.ravel()"),
    "a single label": (Y[0], LABELS, "labels of shape (), not (n,)"),
    "no labels": (Y[:0], LABELS, "empty, of shape (0,)"),
    "labels from 5 to 10": (Y + 5, LABELS, f"values from 5 to 10, {FROM_1}"),
    "a negative label": (Y - 1, LABELS, f"values from -1 to 4, {FROM_1}"),
    "a label of NaN": (np.where(Y == 2, np.nan, Y), LABELS, "holds NaN, first at index (2,)"),
    "half a label": (Y / 2, LABELS, "not all labels are whole numbers"),
    "fewer labels than images": (Y[1:], LABELS, "5 labels for 6 images"),
    "more labels than images": (Y, TEST_LABELS, "6 labels for 3 images"),
    "objects": (Y.astype(object), LABELS, "unusable: object of shape (6,), not real numbers"),
    "strings": (Y.astype("U5"), LABELS, "unusable: <U5 of shape (6,), not real numbers"),
    "complex": (X + 0j, IMAGES, "unusable: complex128 of shape (6, 4), not real numbers"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_the_form_that_is_wrong_and_the_form_that_is_wanted_are_told(folder, fault):
    array, name, line = WRONG[fault]
    np.save(folder / name, array)
    assert refusal(folder).removeprefix(f"{folder / name}: ") == line


@pytest.mark.parametrize(
    "fault",
    [
        "images of rows and columns",
        "one-hot labels",
        "labels in a column",
        "labels in a row",
        "labels from 5 to 10",
    ],
)
def test_the_advice_leads_to_the_right_form(folder, fault):
    """The message tells what to save; that is computed from the wrong array, and saved."""
    array, name, _ = WRONG[fault]
    np.save(folder / name, array)
    advice = re.search(r"save (.*?)$", refusal(folder))[1]
    np.save(folder / name, eval(advice, {"X": array, "y": array}))
    load(folder)


def test_the_scale_may_be_wrong_in_either_part(folder):
    np.save(folder / IMAGES, X / 255)
    assert refusal(folder).startswith(
        f"{folder / TEST_IMAGES}: not scaled like the training images"
    )


# --- What is refused: files that are missing, or no arrays ----------------------------------------


def test_missing_files_are_named_all_at_once_with_the_command_that_fetches_them(folder):
    command = (
        f'To fetch Fashion-MNIST into this folder: python download_data.py --data-dir "{folder}"'
    )
    os.remove(folder / LABELS)
    assert refusal(folder) == f"{folder}: missing {LABELS}. {command}"
    for name in (IMAGES, TEST_IMAGES, TEST_LABELS):
        os.rename(folder / name, folder / name.replace("fashion_mnist", "my"))
    every = ", ".join(file.name for file in FILES)
    assert refusal(folder) == f"{folder}: missing {every}. {command}"


def test_a_folder_that_is_none_is_named(folder):
    assert refusal(folder / "none") == f"{folder / 'none'}: no such folder"
    assert refusal(folder / IMAGES) == f"{folder / IMAGES}: not a folder"
    too_long = folder / ("a" * 300)
    if os.name == "posix":  # Windows calls it no such folder
        assert refusal(too_long) == f"{too_long}: unusable: File name too long"


def npy(array, version=(1, 0)):
    content = io.BytesIO()
    np.lib.format.write_array(content, array, version)
    return content.getvalue()


def npz(array):
    content = io.BytesIO()
    np.savez(content, array)
    return content.getvalue()


def headed(header, data=bytes(2160), version=1, length=None):
    """An .npy file with any header, which may lie about its own length and about the data."""
    field = struct.pack("<H" if version == 1 else "<I", length or len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + field + header.encode() + data


def described(dtype="'<f4'", shape="(60, 9)", **data):
    return headed(f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}\n", **data)


class Executed:
    """When unpickled, makes the folder that tells of it."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


# What is found in place of the images.
HOSTILE = {
    "nothing": b"",
    "an HTML page": b"<!doctype html><title>404</title>" * 9,
    "a table in text": b"0,0,255,17\n" * 6,
    "an .npz file": npz(X),
    "another .npy format": npy(X, (2, 0)),
    "a cut file": npy(X)[:-1],
    "a padded file": npy(X) + b"\0",
    "a pickle": pickle.dumps(Executed()),
    "a pickle in .npy": described("'|O'", data=pickle.dumps(Executed())),
    "a header that is a call": headed("__import__('os').mkdir('executed')"),
    "a header too long": headed(" " * 20000),
    "a header of 4 GiB": headed("{", version=2, length=2**32 - 1),
    "a header of one word, again and again": headed("descr " * 1500),
    "a header nested deeply": headed("(" * 1000),
    "a shape of a thousand numbers": described(shape=f"({'60, ' * 1000})"),
    "a shape of 32 GiB": described(shape=f"({2**33}, 1)"),
    "a shape that overflows": described(shape=f"({2**62 + 135}, 4)"),  # to that of the data
    "a shape that no array has": described(shape=f"(0, {2**70})", data=b""),
    "a negative shape": described(shape="(-60, -9)"),
    "a dtype of 2 GiB": described("'|V2147483647'"),
    "a dtype of arrays of 32 GiB": described("('<f4', (8589934592,))"),
    "control characters": headed("\x1b[2J\r\nAll is well"),
}


def assert_clear(message, path):
    assert message.startswith(f"{path}: unusable: "), f"the file is not named: {message}"
    reason = message.removeprefix(f"{path}: unusable: ")
    assert reason.isprintable(), f"more than a line, or control characters: {message!r}"
    assert 0 < len(reason) < 300, f"not one clear line: {message}"


@pytest.mark.parametrize("content", HOSTILE)
def test_a_file_that_is_no_array_is_refused_unread(folder, monkeypatch, content):
    monkeypatch.chdir(folder)
    (folder / IMAGES).write_bytes(HOSTILE[content])
    tracemalloc.start()
    try:
        message = refusal(folder)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert_clear(message, folder / IMAGES)
    assert not os.path.exists("executed"), "code in the file was executed"
    assert peak < 5_000_000, f"{peak / 1e6:.0f} MB for a small file"


@pytest.mark.parametrize("make", [os.mkdir, getattr(os, "mkfifo", None)], ids=["folder", "FIFO"])
def test_what_is_no_regular_file_is_not_opened(folder, make):
    """A FIFO would be read for ever."""
    if make is None:
        pytest.skip("this system has no FIFOs")
    os.remove(folder / IMAGES)
    make(folder / IMAGES)
    timer = threading.Timer(5, end_reading, [folder / IMAGES])
    timer.start()
    assert refusal(folder) == f"{folder / IMAGES}: unusable: not a regular file"
    timer.cancel()


def end_reading(fifo):
    """Let whatever waits for the content of a FIFO go on."""
    os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))


WORDS = b"0 -1 2.5 True None () (2,) [ ] { } ( ) , ' L descr |O |V0 <U9 <c8 <M8[s] f4,f4".split()
WORDS += b" ", b"\0", b"\n", *(b"%d" % 2**k for k in (16, 31, 32, 63, 64, 200))
WORD = st.sampled_from(WORDS) | st.binary(max_size=2)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of np.load, about files of Python 2
@settings(max_examples=int(os.environ.get("FUZZ", 300)))
@given(
    dtype=st.sampled_from(["u1", "<i4", ">i8", "<f2", "<f4", ">f8"]),
    shape=st.sampled_from([(5,), (2, 3)]),
    changes=st.lists(st.tuples(st.integers(-40, 60), WORD), max_size=5),
    cut=st.none() | st.integers(-50, 150),
)
def test_a_damaged_file_is_read_as_numpy_reads_it_or_refused(
    tmp_path_factory, dtype, shape, changes, cut
):
    """Words of a valid file are replaced by others, or put in, and its end is cut off."""
    words = re.findall(rb"\w+|\W", npy(np.full(shape, 9, dtype))[:cut])
    for at, word in changes:
        words[at : at + 1] = [word]
    path = tmp_path_factory.getbasetemp() / "damaged.npy"
    path.write_bytes(b"".join(words))
    try:
        array = read_npy(path)
    except DataError as error:
        return assert_clear(str(error), path)
    assert array.dtype.kind in "buif", f"{array.dtype}: not real numbers"
    assert array.nbytes < path.stat().st_size, "numbers that are not in the file"
    np.testing.assert_array_equal(array, np.load(path, allow_pickle=False))
