"""Files that pretend to be .npy cost a clear line each, and no memory beyond their own size."""

import io
import os
import pickle
import re
import struct
import tracemalloc

import numpy as np
import pytest
from conftest import NAMES, command

from download_data import DataError
from softmax_sgd import load


def npy(entry: str, data=b"", version=b"\x01\x00", length=None) -> bytes:
    """A .npy file with the header `entry`, which may lie about its length and about the data."""
    form = "<H" if version[0] == 1 else "<I"
    length = len(entry) if length is None else length
    return b"\x93NUMPY" + version + struct.pack(form, length) + entry.encode() + data


def header(descr="'<f4'", order="False", shape="(60, 9)") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


class Executed:
    """When unpickled, makes the folder that tells of it."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


def archive() -> bytes:
    content = io.BytesIO()
    np.savez(content, X=np.zeros((60, 9)))
    return content.getvalue()


FOUR = bytes(4 * 540)
HOSTILE = {
    "empty": b"",
    "magic alone": b"\x93NUMPY",
    "no header": b"\x93NUMPY\x01\x00",
    "HTML": b"<!DOCTYPE html><html><body>Not found</body></html>" * 20,
    "XML": b'<?xml version="1.0"?><Error/>',
    "text": b"0 1 2 3\n" * 100,
    "zip": archive(),
    "zip header alone": b"PK\x03\x04",
    "empty zip": b"PK\x05\x06" + bytes(18),
    "pickle": pickle.dumps(Executed()),
    "pickle in .npy": npy(header("'|O'"), pickle.dumps(Executed())),
    "gzip": b"\x1f\x8b\x08" + bytes(100),
    "IDX": b"\0\0\x08\x03" + bytes(1000),
    "only zeros": bytes(5000),
    "version 0": npy(header(), FOUR, b"\x00\x00"),
    "version 9": npy(header(), FOUR, b"\x09\x00"),
    "version 255": npy(header(), FOUR, b"\xff\xff"),
    "header of 4 GiB": npy("{", version=b"\x02\x00", length=2**32 - 1),
    "header of 4 GiB, version 3": npy("{", version=b"\x03\x00", length=2**32 - 1),
    "header of 1 GiB": npy(header(), FOUR, version=b"\x02\x00", length=2**30),
    "header beyond the file": npy(header(), length=60000),
    "header of 64 KB": npy(header() + " " * 60000, FOUR),
    "header of zeros": npy("\0" * 118, FOUR),
    "header without end": npy("{'descr': '<f4'", FOUR),
    "header that is a list": npy("[1, 2]", FOUR),
    "header that is a call": npy("__import__('os').mkdir('executed')", FOUR),
    "header nested deeply": npy("(" * 9000, FOUR),
    "header of many signs": npy(header(shape="-" * 9000 + "1"), FOUR),
    "header of many lists": npy(header(shape="[" * 150 + "]" * 150), FOUR),
    "keys missing": npy("{'descr': '<f4'}", FOUR),
    "keys too many": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (9,), 'x': 1}", FOUR),
    "shape of 2**31 rows": npy(header(shape=f"({2**31}, 9)"), FOUR),
    "shape of 32 GiB": npy(header(shape=f"({2**33},)")),
    "shape beyond 64 bits": npy(header(shape=f"({2**64}, 9)"), FOUR),
    "shape of a googol": npy(header(shape=f"({10**100}, 9)"), FOUR),
    "shape that overflows to 0": npy(header(shape=f"({2**32}, {2**32})"), FOUR),
    "shape that overflows to 540": npy(header(shape=f"({2**62 + 60}, 9, 4)"), FOUR),
    "shape negative": npy(header(shape="(-60, 9)"), FOUR),
    "shape negative twice": npy(header(shape="(-60, -9)"), FOUR),
    "shape -1": npy(header(shape="(-1, 9)"), FOUR),
    "shape of floats": npy(header(shape="(60.0, 9)"), FOUR),
    "shape of booleans": npy(header(shape="(True, True)"), FOUR[:4]),
    "shape of strings": npy(header(shape="('60', 9)"), FOUR),
    "shape a number": npy(header(shape="540"), FOUR),
    "shape a list": npy(header(shape="[60, 9]"), FOUR),
    "shape empty": npy(header(shape="()"), FOUR[:4]),
    "shape of 70 dimensions": npy(header(shape=str((1,) * 70)), FOUR[:4]),
    "no rows, many columns": npy(header(shape=f"(0, {2**62})")),
    "order a number": npy(header(order="7"), FOUR),
    "dtype of nothing": npy(header("'|V0'"), FOUR),
    "dtype of 2 GiB": npy(header("'|V2147483647'"), FOUR),
    "dtype of 2 GiB strings": npy(header("'<U536870911'", shape="(1, 1)"), FOUR),
    "dtype unknown": npy(header("'<q77'"), FOUR),
    "dtype a number": npy(header("4"), FOUR),
    "dtype object": npy(header("'|O'"), FOUR),
    "dtype dates": npy(header("'<M8[s]'"), FOUR * 2),
    "dtype a structure": npy(header("[('a', '<f4')]"), FOUR),
    "dtype a structure of objects": npy(header("[('a', '|O')]"), FOUR * 2),
    "dtype an array": npy(header("('<f4', (9,))", shape="(60,)"), FOUR),
    "dtype an array of 32 GiB": npy(header("('<f4', (8589934592,))", shape="(60, 9)"), FOUR),
    "data missing": npy(header()),
    "data short": npy(header(), FOUR[:-1]),
    "data long": npy(header(), FOUR + b"\0"),
    "data and zeros": npy(header(), FOUR + bytes(10**5)),
    "two arrays": npy(header(), FOUR) * 2,
    "NaN": npy(header(), FOUR[4:] + b"\0\0\xc0\x7f"),
    "negative": npy(header(), FOUR[4:] + b"\0\0\x80\xbf"),
    "control characters": npy("\x1b[2J\r\nAll is well", FOUR),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("file", NAMES[:2], ids=["images", "labels"])
def test_one_clear_line_and_no_memory(own_files, monkeypatch, file, name):
    monkeypatch.chdir(own_files)
    path = own_files / file
    path.write_bytes(HOSTILE[name])
    tracemalloc.start()
    try:
        with pytest.raises(DataError) as caught:
            load(own_files)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    said = str(caught.value)
    assert said.startswith(f"{path}: ")
    assert said.isprintable(), f"more than a line, or control characters: {said!r}"
    assert len(said) < len(str(path)) + 300, f"not one clear line: {said}"
    assert "allow_pickle" not in said, f"advises what is dangerous: {said}"
    assert peak < 5_000_000 + 8 * len(HOSTILE[name]), (
        f"{peak / 1e6:.0f} MB for a file of {len(HOSTILE[name])} bytes"
    )
    assert not (own_files / "executed").exists(), "code in the file was executed"


THINGS = {
    "a folder": lambda path: path.mkdir(),
    "a FIFO": lambda path: os.mkfifo(path),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "missing": lambda path: None,
    "a pickle": lambda path: path.write_bytes(HOSTILE["pickle in .npy"]),
    "HTML": lambda path: path.write_bytes(HOSTILE["HTML"]),
    "a zip": lambda path: path.write_bytes(HOSTILE["zip"]),
    "a header of 4 GiB": lambda path: path.write_bytes(HOSTILE["header of 4 GiB"]),
    # NumPy's own open_memmap() dies of these, by a division by zero.
    "negative, of nothing": lambda path: path.write_bytes(
        npy(header("'|V0'", shape="(-1,)"), FOUR)
    ),
    "negative, of empty strings": lambda path: path.write_bytes(
        npy(header("'<U0'", shape="(-1, 9)"), FOUR)
    ),
    "nested deeply": lambda path: path.write_bytes(HOSTILE["header nested deeply"]),
}


@pytest.mark.parametrize("thing", THINGS)
def test_the_command_names_the_file_and_ends_with_1(own_files, thing):
    path = own_files / NAMES[3]
    path.unlink()
    THINGS[thing](path)
    end = command("--data-dir", own_files, "--epochs", 1)
    assert end.returncode == 1
    assert end.stdout == ""
    assert re.fullmatch(rf"softmax_sgd\.py: {path}: .+\n", end.stderr), end.stderr


KINDS = "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"
DTYPES = ["|b1", "|u1", "|i1"] + [f"{end}{kind}" for end in "<>" for kind in KINDS]


@pytest.mark.parametrize("dtype", [*DTYPES, np.longdouble])
@pytest.mark.parametrize("order", "CF")
def test_every_form_of_valid_numbers_is_read_right(own_files, dtype, order):
    plain, most = {}, 1 if dtype == "|b1" else 9  # 9 is valid for pixels and labels of any dtype
    for name in NAMES:
        numbers = np.minimum(np.floor(np.load(own_files / name)), most)
        plain[name] = numbers / (255 if "images" in name and most > 1 else 1)
        np.save(own_files / name, np.asarray(numbers, dtype, order=order))
    X, y, X_test, y_test = load(own_files)
    for read, name in zip((X, y, X_test, y_test), NAMES, strict=True):
        np.testing.assert_allclose(read, plain[name], rtol=1e-6)
    assert X.dtype == X_test.dtype == np.float32
    assert y.dtype == y_test.dtype == np.intp
