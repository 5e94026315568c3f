"""The downloader's constants, as the course, Zalando, Debian and the user know them."""

import hashlib
from pathlib import Path

import pytest
from servers import idx

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
# Zalando's names for the same values, the highest of them, and the hash of the IDX file, unzipped.
ZALANDO = {
    "fashion_mnist_train_images.npy": (
        "train-images-idx3-ubyte.gz",
        255,
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ),
    "fashion_mnist_train_labels.npy": (
        "train-labels-idx1-ubyte.gz",
        9,
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    ),
    "fashion_mnist_test_images.npy": (
        "t10k-images-idx3-ubyte.gz",
        255,
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ),
    "fashion_mnist_test_labels.npy": (
        "t10k-labels-idx1-ubyte.gz",
        9,
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}


def test_there_are_four_files():
    assert {file.name for file in FILES} == set(COURSE)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_each_file_is_that_of_the_course_and_of_zalando(file):
    size, dtype, shape, sha256 = COURSE[file.name]
    assert file.size == size
    assert file.dtype == dtype
    assert file.shape == shape
    assert file.sha256 == sha256
    assert (file.idx_name, file.highest) == ZALANDO[file.name][:2]


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
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_servers_of_the_tests_have_what_zalando_has(file):
    """The tests make Zalando's files from the course's: the hash is that of Zalando's own."""
    assert hashlib.sha256(idx(file)).hexdigest() == ZALANDO[file.name][2]
