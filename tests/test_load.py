"""What is read, and what is refused, of files of one's own."""

import io
import os

import numpy as np
import pytest
from conftest import NAMES

from download_data import DataError
from softmax_sgd import load

IMAGES, LABELS, TEST_IMAGES, TEST_LABELS = NAMES


def npy(array, **how):
    content = io.BytesIO()
    np.lib.format.write_array(content, np.asanyarray(array), **how)
    return content.getvalue()


def zeros(shape, value=0, dtype=np.float32):
    array = np.zeros(shape, dtype)
    array.flat[array.size // 2] = value
    return npy(array)


BAD = {
    "missing": (IMAGES, None, "missing"),
    "a folder": (IMAGES, "folder", "not a file"),
    "empty": (IMAGES, b"", "not a whole .npy file"),
    "an HTML page": (IMAGES, b"<!doctype html><title>404</title>" * 9, "not a whole .npy file"),
    "truncated": (IMAGES, zeros((60, 9))[:-1], "not a whole .npy file"),
    "trailing bytes": (IMAGES, zeros((60, 9)) + b"\0", "2161 bytes do not hold"),
    "a later format": (LABELS, npy(np.zeros(60), version=(2, 0)), "not of format 1.0"),
    "objects": (LABELS, npy(np.array([{}] * 60), allow_pickle=True), "object of shape"),
    "strings": (LABELS, npy(np.array(["3"] * 60)), "not real numbers"),
    "complex": (IMAGES, npy(np.ones((60, 9), complex)), "not real numbers"),
    "images in one dimension": (IMAGES, zeros(540), r"shape \(540,\)"),
    "images in three": (IMAGES, zeros((60, 3, 3)), r"shape \(60, 3, 3\)"),
    "no images": (IMAGES, npy(np.zeros((0, 9), np.float32)), r"shape \(0, 9\)"),
    "no pixels": (IMAGES, npy(np.zeros((60, 0), np.float32)), r"shape \(60, 0\)"),
    "NaN": (IMAGES, zeros((60, 9), np.nan), "nan"),
    "infinite": (IMAGES, zeros((60, 9), np.inf), "inf"),
    "below 0": (IMAGES, zeros((60, 9), -0.5), "-0.5"),
    "above 255": (TEST_IMAGES, zeros((20, 9), 256), "256"),
    "labels in two dimensions": (LABELS, zeros((60, 1)), r"shape \(60, 1\)"),
    "a label of 10": (LABELS, zeros(60, 10, np.int32), "10"),
    "a label of -1": (TEST_LABELS, zeros(20, -1, np.int32), "-1"),
    "half a label": (LABELS, zeros(60, 2.5), "whole numbers"),
    "more labels than images": (LABELS, zeros(61), "61 labels for 60 images"),
    "other width in test": (TEST_IMAGES, npy(np.full((20, 8), 9.0)), "8 pixels, but 9"),
}


def damage(folder, name, content):
    (folder / name).unlink()
    if content == "folder":
        (folder / name).mkdir()
    elif content is not None:
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_file_is_named_with_what_is_wrong(own_files, fault):
    name, content, reason = BAD[fault]
    damage(own_files, name, content)
    with pytest.raises(DataError, match=reason) as caught:
        load(own_files)
    assert str(caught.value).startswith(str(own_files / name))
    assert "\n" not in str(caught.value)


def test_pixels_are_divided_by_255_in_both_parts_and_become_float32(own_files):
    X, y, X_test, y_test = load(own_files)
    for ours, name in ((X, IMAGES), (X_test, TEST_IMAGES)):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, np.load(own_files / name) / 255, rtol=1e-6)
    for ours, name in ((y, LABELS), (y_test, TEST_LABELS)):
        assert ours.dtype.kind == "i"
        np.testing.assert_array_equal(ours, np.load(own_files / name))


@pytest.mark.parametrize("peak", [0.4, 1, 1.5, 2])
def test_images_that_never_exceed_1_are_left_as_they_are(own_files, capsys, peak):
    for name in (IMAGES, TEST_IMAGES):
        X = np.load(own_files / name)
        np.save(own_files / name, X / X.max() * peak)
    X, _, X_test, _ = load(own_files)
    for ours in (X, X_test):
        np.testing.assert_allclose(ours.max(), peak if peak <= 1 else peak / 255, rtol=1e-6)
    assert ("look normalised already" in capsys.readouterr().err) == (peak <= 1)


@pytest.mark.parametrize("dark", [IMAGES, TEST_IMAGES])
def test_both_parts_must_be_on_one_scale(own_files, dark):
    np.save(own_files / dark, np.load(own_files / dark) / 255)
    with pytest.raises(DataError, match="not on the scale of the training images"):
        load(own_files)


FORMS = {
    "bytes": lambda a: a.astype(np.uint8),
    "integers of 64 bits": lambda a: a.astype(np.int64),
    "big-endian": lambda a: a.astype(">f4"),
    "float64": lambda a: a.astype(np.float64),
    "float16": lambda a: a.astype(np.float16),
    "Fortran order": np.asfortranarray,
}


@pytest.mark.parametrize("form", FORMS)
def test_the_same_numbers_in_another_form_read_the_same(own_files, form):
    for name in NAMES:
        np.save(own_files / name, np.floor(np.load(own_files / name)))
    plain = load(own_files)
    for name in NAMES:
        np.save(own_files / name, FORMS[form](np.load(own_files / name)))
    for ours, expected in zip(load(own_files), plain, strict=True):
        np.testing.assert_array_equal(ours, expected)
        assert ours.dtype == expected.dtype
        assert ours.flags.c_contiguous


def test_a_header_of_python_2_is_read_without_a_warning(own_files, recwarn):
    content = (own_files / IMAGES).read_bytes()
    (own_files / IMAGES).write_bytes(content.replace(b"(60, 9), }  ", b"(60L, 9L), }"))
    assert load(own_files)[0].shape == (60, 9)
    assert not recwarn.list


@pytest.mark.skipif(
    not os.path.exists("/proc/self/mem"), reason="needs a file that root can't read"
)
def test_a_file_that_cannot_be_read(own_files):
    (own_files / IMAGES).unlink()
    (own_files / IMAGES).symlink_to("/proc/self/mem")
    with pytest.raises(DataError, match=f"{IMAGES}: Input/output error"):
        load(own_files)


@pytest.mark.data
def test_the_real_files_are_read_whole(real):
    assert real.X.shape == (60000, 784)
    assert real.X_test.shape == (10000, 784)
    assert real.X.min() == 0
    assert real.X.max() == 1
    assert np.bincount(real.y).tolist() == [6000] * 10
    assert np.bincount(real.y_test).tolist() == [1000] * 10
