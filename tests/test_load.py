"""What is read, and what is refused, of files of one's own."""

import io
import os

import numpy as np
import pytest
from conftest import NAMES

from download_data import DataError
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


# The file at fault, what is put in its place, and what is said of it. A FIFO must not be opened.
BAD = {
    "missing": (IMAGES, None, "not usable: missing"),
    "a folder": (IMAGES, os.mkdir, "not a regular file"),
    "a FIFO": (IMAGES, getattr(os, "mkfifo", None), "not a regular file"),
    "empty": (IMAGES, b"", "not usable: "),
    "an HTML page": (IMAGES, b"<!doctype html><title>404</title>" * 9, "not usable: "),
    "truncated": (IMAGES, zeros((60, 49))[:-1], "11759 bytes of data, not float32"),
    "trailing bytes": (IMAGES, zeros((60, 49)) + b"\0", "11761 bytes of data, not float32"),
    "another format": (IMAGES, npy(np.ones((60, 49)), (2, 0)), "not of format 1.0"),
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


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_file_is_named_with_what_is_wrong(own_files, fault):
    name, content, reason = BAD[fault]
    (own_files / name).unlink()
    if callable(content):
        content(own_files / name)
    elif content is not None:
        (own_files / name).write_bytes(content)
    with pytest.raises(DataError, match=reason) as caught:
        load(own_files)
    assert str(caught.value).startswith(f"{own_files / name}: ")
    assert "\n" not in str(caught.value)


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
