"""What is read of files of one's own, and what is refused, in one clear line that names the file:
no code in them is run, and no memory is taken beyond their size.

More damaged files than are tried here: FUZZ=100000 python -m pytest tests/test_load.py
"""

import io
import os
import pickle
import re
import struct
import tracemalloc

import numpy as np
import pytest
from conftest import NAMES
from hypothesis import given, settings
from hypothesis import strategies as st

from download_data import DataError, read_npy
from softmax_sgd import load

IMAGES, LABELS, TEST_IMAGES, TEST_LABELS = NAMES


def npy(array, version=(1, 0)):
    content = io.BytesIO()
    np.lib.format.write_array(content, array, version)
    return content.getvalue()


def zeros(shape, value=0.0):
    array = np.zeros(shape, np.float32)
    array.flat[array.size // 2] = value
    return npy(array)


def headed(header, data=bytes(2160), version=1, length=None):
    """A .npy file with any header, which may lie about its own length and about the data."""
    field = struct.pack("<H" if version == 1 else "<I", length or len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + field + header.encode() + data


def described(dtype="'<f4'", shape="(60, 9)", **data):
    return headed(f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}\n", **data)


class Executed:
    """When unpickled, makes the folder that tells of it."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


# The file at fault, what is put in its place, and what is said of it. A FIFO must not be opened.
BAD = {
    "missing": (IMAGES, None, "not usable: missing"),
    "a folder": (IMAGES, os.mkdir, "not a regular file"),
    "a FIFO": (IMAGES, getattr(os, "mkfifo", None), "not a regular file"),
    "another format": (IMAGES, npy(np.ones((60, 49)), (2, 0)), "not of format 1.0"),
    "truncated": (IMAGES, zeros((60, 49))[:-1], "11759 bytes of data, not float32"),
    "trailing bytes": (IMAGES, zeros((60, 49)) + b"\0", "11761 bytes of data, not float32"),
    "a header too long": (IMAGES, headed(" " * 20000), "not be safe to load securely$"),
    "no images": (IMAGES, npy(np.ones((0, 49))), r"shape \(0, 49\), not real numbers"),
    "complex": (IMAGES, npy(np.ones((60, 49), complex)), "not real numbers"),
    "images in three dimensions": (IMAGES, zeros((60, 7, 7)), r"shape \(60, 7, 7\), not .* in 2"),
    "labels in two dimensions": (LABELS, zeros((60, 1)), r"shape \(60, 1\), not .* in 1 dimension"),
    "NaN": (IMAGES, zeros((60, 49), np.nan), "nan"),
    "below 0": (IMAGES, zeros((60, 49), -0.5), "from -0.5 to 0"),
    "above 255": (TEST_IMAGES, zeros((40, 49), 256), "256.* not within 0 to 255"),
    "a label of 10": (LABELS, zeros(60, 10), "10.* not within 0 to 9"),
    "half a label": (LABELS, zeros(60, 2.5), "whole numbers"),
    "more labels than images": (TEST_LABELS, zeros(41), "41 labels for 40 images"),
    "other width in test": (TEST_IMAGES, npy(np.full((40, 8), 9.0)), "8 pixels, but 49"),
}
HOSTILE = {
    "empty": b"",
    "an HTML page": b"<!doctype html><title>404</title>" * 9,
    "a pickle": pickle.dumps(Executed()),
    "a pickle in .npy": described("'|O'", data=pickle.dumps(Executed())),
    "a header that is a call": headed("__import__('os').mkdir('executed')"),
    "a header of 4 GiB": headed("{", version=2, length=2**32 - 1),
    "a header of one word, again and again": headed("descr " * 1500),
    "a shape of a thousand numbers": described(shape=f"({'60, ' * 1000})"),
    "a header nested deeply": headed("(" * 9000),
    "a shape of 32 GiB": described(shape=f"({2**33}, 1)"),
    "a shape that overflows": described(shape=f"({2**62 + 135}, 4)"),  # to that of the data
    "a negative shape": described(shape="(-60, -9)"),
    "a dtype of 2 GiB": described("'|V2147483647'"),
    "a dtype of arrays of 32 GiB": described("('<f4', (8589934592,))"),
    "control characters": headed("\x1b[2J\r\nAll is well"),
}
BAD |= {fault: (IMAGES, content, "not usable: ") for fault, content in HOSTILE.items()}


def assert_clear(error, path):
    said = str(error)
    assert said.startswith(f"{path}: "), f"the file is not named: {said}"
    assert said.isprintable(), f"more than a line, or control characters: {said!r}"
    assert len(": not usable: ") < len(said) - len(f"{path}") < 300, f"not one clear line: {said}"


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_file_is_named_with_what_is_wrong(own_files, monkeypatch, fault):
    name, content, reason = BAD[fault]
    monkeypatch.chdir(own_files)
    os.remove(name)
    if callable(content):
        content(name)
    elif content is not None:
        (own_files / name).write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=reason) as caught:
            load(own_files)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert_clear(caught.value, own_files / name)
    assert peak < 5_000_000, f"{peak / 1e6:.0f} MB for a small file"
    assert not os.path.exists("executed"), "code in the file was executed"


WORDS = b"0 -1 2.5 True None () (2,) [ ] { } ( ) , ' L descr |O |V0 <U9 <c8 <M8[s] f4,f4".split()
WORDS += b" ", b"\0", b"\n", *(b"%d" % 2**k for k in (16, 31, 32, 63, 64, 200))
WORD = st.sampled_from(WORDS) | st.binary(max_size=2)


@settings(max_examples=int(os.environ.get("FUZZ", 1000)))
@given(
    dtype=st.sampled_from(["u1", "<i4", ">i8", "<f2", "<f4", ">f8"]),
    shape=st.sampled_from([(5,), (2, 3)]),
    changes=st.lists(st.tuples(st.integers(-40, 60), WORD), max_size=5),
    cut=st.none() | st.integers(-50, 150),
)
def test_damaged_files_are_read_right_or_refused(tmp_path_factory, dtype, shape, changes, cut):
    """Words of a valid file are replaced by others, or put in, and its end is cut off."""
    words = re.findall(rb"\w+|\W", npy(np.full(shape, 9, dtype))[:cut])
    for at, word in changes:
        words[at : at + 1] = [word]
    path = tmp_path_factory.getbasetemp() / "damaged.npy"
    path.write_bytes(b"".join(words))
    try:
        array = read_npy(path, len(shape), highest=255)
    except DataError as error:
        return assert_clear(error, path)
    assert (array.ndim, array.dtype.kind in "buif") == (len(shape), True)
    assert ((array >= 0) & (array <= 255)).all(), "values out of range"
    assert array.nbytes < path.stat().st_size, "numbers that are not in the file"


def test_what_python_2_wrote_is_read_without_a_warning(tmp_path, recwarn):
    (tmp_path / "old.npy").write_bytes(described(shape="(60L, 9L)"))
    assert read_npy(tmp_path / "old.npy", 2, highest=255).shape == (60, 9)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("highest", "note"),
    [
        (1, "Note: the images in {} look normalised already and are used as they are\n"),
        (1.5, "Note: divided by 255, though no pixel in {} exceeds 1.5\n"),
        (127, "Note: divided by 255, though no pixel in {} exceeds 127\n"),
        (128, ""),
    ],
)
def test_another_scale_is_noted(own_files, capsys, highest, note):
    for name in (IMAGES, TEST_IMAGES):
        X = np.load(own_files / name)
        np.save(own_files / name, X / X.max() * highest)
    X, _, X_test, _ = load(own_files)
    for ours in (X, X_test):
        np.testing.assert_allclose(ours.max(), highest if highest <= 1 else highest / 255)
    assert capsys.readouterr().err == note.format(own_files)


@pytest.mark.parametrize("dark", [IMAGES, TEST_IMAGES])
def test_both_parts_must_be_on_one_scale(own_files, dark):
    np.save(own_files / dark, np.load(own_files / dark) / 255)
    with pytest.raises(DataError, match="not on the scale of the training images"):
        load(own_files)


@pytest.mark.parametrize("dtype", ["?", "u1", "<i4", "<f2", ">f4", "<f8"])
@pytest.mark.parametrize("order", "CF")
def test_pixels_are_divided_by_255_and_labels_are_indices_in_whatever_form(own_files, dtype, order):
    most = 1 if dtype == "?" else 9  # valid for pixels and for labels, in any dtype
    numbers = {name: np.minimum(np.floor(np.load(own_files / name)), most) for name in NAMES}
    for name in NAMES:
        np.save(own_files / name, np.asarray(numbers[name], dtype, order=order))
    for ours, name in zip(load(str(own_files)), NAMES):  # a string will do for the folder
        right = numbers[name] / (255 if "images" in name and most > 1 else 1)
        np.testing.assert_allclose(ours, right, 1e-6, err_msg=f"{name}: not divided by 255?")
        assert ours.dtype == (np.float32 if "images" in name else np.intp)
        assert ours.flags.c_contiguous
