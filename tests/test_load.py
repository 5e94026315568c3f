"""A user's own files: what is read, and the line that says what is wrong with a file."""

import io
import pickle

import numpy as np
import pytest
from helpers import TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS
from numpy.testing import assert_allclose

import softmax_sgd
from download_data import UserError
from softmax_sgd import load

X = np.arange(24).reshape(6, 4) * 7  # six images of four pixels, up to 161
LABELS = np.arange(6)


@pytest.fixture
def folder(tmp_path):
    """A folder with data in the right form: six images to train, three to test."""
    np.save(tmp_path / TRAIN_IMAGES, X)
    np.save(tmp_path / TRAIN_LABELS, LABELS)
    np.save(tmp_path / TEST_IMAGES, X[:3])
    np.save(tmp_path / TEST_LABELS, LABELS[:3])
    return tmp_path


# --- What is read ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["u1", "<i4", "<f2", ">f4", "<f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_dtype_and_order_gives_the_same_numbers(folder, dtype, order):
    for path in folder.iterdir():
        np.save(path, np.asarray(np.load(path), dtype, order=order))
    X_train, y, X_test, y_test = load(folder)
    assert_allclose(X_train, X / 255, rtol=1e-6)
    assert_allclose(X_test, X[:3] / 255, rtol=1e-6)
    assert y.tolist() == LABELS.tolist()
    assert y_test.tolist() == LABELS[:3].tolist()
    for images in (X_train, X_test):
        assert images.dtype == np.float32
        assert images.flags.c_contiguous, "not in rows: taking minibatches would be slow"


def test_the_extremes_of_pixels_and_labels_are_valid(folder):
    np.save(folder / TRAIN_IMAGES, np.array([[0, 255, 0, 255]] * 6))
    np.save(folder / TRAIN_LABELS, np.array([0, 9, 0, 9, 0, 9]))
    images, labels, _, _ = load(folder)
    assert (images.min(), images.max()) == (0, 1)
    assert (labels.min(), labels.max()) == (0, 9)


def test_CLASSES_says_how_many_there_are(folder, monkeypatch):
    np.save(folder / TRAIN_LABELS, LABELS + 20)
    monkeypatch.setattr(softmax_sgd, "CLASSES", 26)
    assert load(folder)[1].tolist() == (LABELS + 20).tolist()


# --- What is refused ------------------------------------------------------------------------------


def refusal(folder, name):
    """The line of the error that names this file."""
    with pytest.raises(UserError) as error:
        load(folder)
    message = str(error.value)
    assert str(folder / name) in message, "the file is not named"
    assert "\n" not in message, "not one line"
    return message


class Hostile:
    """Unpickled, it calls pytest.fail, whose exception no `except Exception` can hide."""

    def __reduce__(self):
        return pytest.fail, ("code in a file was run",)


def test_nothing_in_a_file_is_run(folder):
    with open(folder / TRAIN_LABELS, "wb") as file:
        pickle.dump(Hostile(), file)
    refusal(folder, TRAIN_LABELS)
    np.save(folder / TRAIN_LABELS, np.array([Hostile()]), allow_pickle=True)
    refusal(folder, TRAIN_LABELS)


def with_pixel(value):
    changed = X.astype(float)
    changed[1, 2] = value
    return changed


# What is wrong, the file, the array in it, and what the line says besides the file's name.
WRONG = [
    ("images of rows and columns", TRAIN_IMAGES, X.reshape(6, 2, 2), "X.reshape(len(X), -1)"),
    ("images of one number each", TRAIN_IMAGES, LABELS, "shape (6,), not (n, pixels)"),
    ("no images", TRAIN_IMAGES, X[:0], "shape (0, 4), which is empty"),
    ("a pixel below 0", TRAIN_IMAGES, with_pixel(-0.5), "pixels from -0.5 to 161.0; 0 to 255"),
    ("a pixel above 255", TRAIN_IMAGES, with_pixel(255.5), "pixels from 0.0 to 255.5; 0 to 255"),
    ("an infinite pixel", TEST_IMAGES, with_pixel(np.inf)[:3], "pixels from 0.0 to inf"),
    ("NaN", TEST_IMAGES, with_pixel(np.nan)[:3], "pixels from nan to nan"),
    ("already divided", TRAIN_IMAGES, X / 161, "pixels from 0.0 to 1.0; 0 to 255"),
    ("at most 16", TRAIN_IMAGES, X // 10, "pixels from 0 to 16; 0 to 255"),
    ("test images of another size", TEST_IMAGES, X[:3, :3], "3 pixels in an image, but 4 in"),
    ("one-hot labels", TRAIN_LABELS, np.eye(10)[LABELS], "y.argmax(axis=1)"),
    ("labels in a column", TRAIN_LABELS, LABELS[:, None], "y.ravel()"),
    ("too few labels", TRAIN_LABELS, LABELS[:5], "5 labels for 6 images"),
    ("too many test labels", TEST_LABELS, LABELS, "6 labels for 3 images"),
    ("a label of 10", TRAIN_LABELS, LABELS + 5, "labels from 5 to 10; whole numbers from 0 to 9"),
    ("a negative label", TRAIN_LABELS, LABELS - 1, "from -1 to 4; whole numbers from 0 to 9"),
    ("half a label", TRAIN_LABELS, LABELS / 2, "whole numbers from 0 to 9"),
    ("a label of NaN", TRAIN_LABELS, np.array([0, 1, np.nan, 3, 4, 5]), "labels from nan to nan"),
    ("names", TRAIN_LABELS, LABELS.astype("U5"), "holds <U5, not real numbers"),
    ("objects", TRAIN_LABELS, LABELS.astype(object), "cannot be read"),
]


@pytest.mark.parametrize(
    ("name", "array", "says"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG]
)
def test_the_line_says_which_file_is_wrong_and_what_is_expected(folder, name, array, says):
    np.save(folder / name, array)
    assert says in refusal(folder, name)


def zipped(content):
    """The bytes of an .npz file."""
    file = io.BytesIO()
    np.savez(file, X)
    return file.getvalue()


DAMAGED = {
    "empty": (lambda content: b"", "not in the format .npy"),
    "a web page": (lambda content: b"<!DOCTYPE html><html>", "not in the format .npy"),
    "an .npz": (zipped, "not in the format .npy"),
    "cut in its header": (lambda content: content[:50], ""),
    "cut in its numbers": (lambda content: content[:-3], ""),
    "damaged in its header": (lambda content: content.replace(b"shape", b"shame"), ""),
    "larger in its header": (lambda content: content.replace(b"(6, 4)", b"(9, 4)"), ""),
    "with a byte too many, as after a transfer that turned LF into CRLF": (
        lambda content: content[:140] + b"\r" + content[140:],
        "more bytes than its header says",
    ),
}


@pytest.mark.parametrize(("damage", "says"), DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_file_is_named(folder, damage, says):
    path = folder / TRAIN_IMAGES
    path.write_bytes(damage(path.read_bytes()))
    line = refusal(folder, TRAIN_IMAGES)
    assert f"cannot be read: {says}" in line
    assert "allow_pickle" not in line, "advises what would run a hostile file"


@pytest.mark.parametrize("name", [TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS])
def test_for_a_missing_file_the_downloader_is_named(folder, name):
    (folder / name).unlink()
    assert "download_data.py --data-dir" in refusal(folder, name)
