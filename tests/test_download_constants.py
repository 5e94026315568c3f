"""The downloader's constants, as the course, Zalando, Debian and the user know them."""

from pathlib import Path

import pytest
from servers import idx, original

import download_data
from download_data import FILES

# The sizes, forms and hashes of the files that the course serves.
COURSE = {
    "fashion_mnist_train_images.npy": (
        188160128,
        "<f4",
        (60000, 784),
        "b4c9ef4d227514f872c39662c006b45cb682c5bc28ed567f42adb0bc542153a4",
    ),
    "fashion_mnist_train_labels.npy": (
        240128,
        "<i4",
        (60000,),
        "ad5d875264cf0487ba1a2330b7cd74a15a4df0bacccadd6e711126f11e365251",
    ),
    "fashion_mnist_test_images.npy": (
        31360128,
        "<f4",
        (10000, 784),
        "15be6db025eec7ed428d43f890c9e6a8f314a730b255b6f300a50eb98b8d2cde",
    ),
    "fashion_mnist_test_labels.npy": (
        40128,
        "<i4",
        (10000,),
        "a061445ec01d9336dd4e01f4a7ac5130bfbe293c72552800597ee202941c88c7",
    ),
}
# Zalando's names for the same values, and the highest of them.
ZALANDO = {
    "fashion_mnist_train_images.npy": ("train-images-idx3-ubyte.gz", 255),
    "fashion_mnist_train_labels.npy": ("train-labels-idx1-ubyte.gz", 9),
    "fashion_mnist_test_images.npy": ("t10k-images-idx3-ubyte.gz", 255),
    "fashion_mnist_test_labels.npy": ("t10k-labels-idx1-ubyte.gz", 9),
}


def test_the_files_are_those_of_the_course():
    assert {f.name: (f.size, f.dtype, f.shape, f.sha256) for f in FILES} == COURSE
    assert {f.name: (f.idx, f.highest) for f in FILES} == ZALANDO


def test_the_smallest_file_is_fetched_first():
    """So that a bad source is found out soon."""
    sizes = [file.size for file in FILES]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("COURSE", "https://s3.amazonaws.com/jrwprojects/"),
        ("ZALANDO", "https://fashion-mnist.s3.eu-central-1.amazonaws.com/"),
        ("PACKAGE", "dataset-fashion-mnist"),
        ("PACKED", "usr/share/datasets/fashion-mnist"),
        ("SYSTEM", Path("/usr/share/datasets/fashion-mnist")),
        ("DATA", Path(__file__).resolve().parent.parent / "data"),
        ("TIMEOUT", 15),  # seconds
        ("GRACE", 40),  # seconds
        ("MIN_RATE", 100_000),  # bytes per second
        ("ATTEMPTS", 3),
        ("PAUSE", 2),  # seconds
    ],
)
def test_what_a_user_meets(name, value):
    assert getattr(download_data, name) == value


@pytest.mark.data
@pytest.mark.usefixtures("data_dir")
def test_the_servers_of_the_tests_have_what_zalando_has():
    """The tests make Zalando's files from the course's: an IDX header, then one byte per value."""
    for file in FILES:
        values = file.shape[0] * (784 if len(file.shape) == 2 else 1)
        assert len(idx(file)) == values + (16 if len(file.shape) == 2 else 8)
        assert original(file.idx).startswith(b"\x1f\x8b")
