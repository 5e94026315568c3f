"""Files that pretend to be .npy: one clear line each, no code run, no memory beyond their size.

More damaged files than are tried here:

    FUZZ=1000000 python -m pytest tests/test_load_hostile.py
"""

import io
import os
import pickle
import random
import re
import struct
import tracemalloc

import numpy as np
import pytest

from download_data import DataError, read_npy


def npy(header, data=bytes(2160), version=1, length=None):
    """A .npy file with any header, which may lie about its own length and about the data."""
    field = struct.pack("<H" if version == 1 else "<I", length or len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + field + header.encode() + data


def header(dtype="'<f4'", shape="(60, 9)"):
    return f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}\n"


class Executed:
    """When unpickled, makes the folder that tells of it."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


HOSTILE = {
    "a pickle": pickle.dumps(Executed()),
    "a pickle in .npy": npy(header("'|O'"), pickle.dumps(Executed())),
    "a header that is a call": npy("__import__('os').mkdir('executed')"),
    "a header of 4 GiB": npy("{", version=2, length=2**32 - 1),
    "a header nested deeply": npy("(" * 9000),
    "a shape of 32 GiB": npy(header(shape=f"({2**33}, 1)")),
    "a shape that overflows to (60, 9)": npy(header(shape=f"({2**62 + 60}, 9, 4)")),
    "a negative shape": npy(header(shape="(-60, -9)")),
    "a dtype of 2 GiB": npy(header("'|V2147483647'")),
    "a dtype of arrays of 32 GiB": npy(header("('<f4', (8589934592,))")),
    "control characters": npy("\x1b[2J\r\nAll is well"),
}


def refused(path, dimensions=2):
    """Whether read_npy refuses the file. What it accepts must be in the file, and be valid."""
    try:
        array = read_npy(path, dimensions, highest=255)
    except DataError as error:
        said = str(error)
        assert said.startswith(f"{path}: not usable: "), f"the file is not named: {said}"
        assert said.isprintable(), f"more than a line, or control characters: {said!r}"
        assert len(said) < len(str(path)) + 300, f"not one clear line: {said}"
        return True
    assert (array.ndim, array.dtype.kind in "buif") == (dimensions, True)
    assert ((array >= 0) & (array <= 255)).all(), "values out of range"
    assert array.nbytes < path.stat().st_size, "numbers that are not in the file"
    return False


@pytest.mark.parametrize("name", HOSTILE)
def test_one_clear_line_and_no_memory(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "hostile.npy"
    path.write_bytes(HOSTILE[name])
    tracemalloc.start()
    try:
        assert refused(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5_000_000, f"{peak / 1e6:.0f} MB for a file of {len(HOSTILE[name])} bytes"
    assert not os.path.exists("executed"), "code in the file was executed"


# --- The fuzzer: valid files, damaged at random ---------------------------------------------------


def valid_files():
    """Pairs of dimensions and content."""
    rng = np.random.default_rng(0)
    for numbers in (rng.integers(0, 10, 30), rng.integers(0, 256, (5, 9))):
        for dtype in ("u1", "<i4", ">i8", "<f2", "<f4", ">f8"):
            content = io.BytesIO()
            np.save(content, numbers.astype(dtype))
            yield numbers.ndim, content.getvalue()


WORDS = (
    b"0 -1 2.5 True None () (2,) [ ] { } ( ) , ' L descr |O |V0 |V9 <U9 <c8 <M8[s] f4,f4".split()
)
WORDS += [b" ", b"\0", b"\n", *(b"%d" % 2**k for k in (16, 31, 32, 63, 64, 200))]


def damage(rng, content):
    """A few times: replace a word of the header or a byte, or cut or double the content."""
    for _ in range(rng.choice([1, 1, 2, 5])):
        word = rng.choice([*re.finditer(rb"\d+|\w+|\W", content[:128])] or [re.match(b"", b"")])
        at = rng.randrange(len(content) + 1)
        content = rng.choice(
            [
                content[: word.start()] + rng.choice(WORDS) + content[word.end() :],
                content[: word.start()] + rng.choice(WORDS) + content[word.end() :],
                content[:at] + rng.randbytes(1) + content[at + 1 :],
                content[:at],
                content[:at] + content,
            ]
        )
    return content


def test_damaged_files_are_read_right_or_refused(tmp_path, recwarn):
    files, path, outcomes = list(valid_files()), tmp_path / "damaged.npy", set()
    with open(path, "wb", buffering=0) as file:  # once, as that is what takes time
        for seed in range(int(os.environ.get("FUZZ", 20_000))):
            rng = random.Random(seed)
            dimensions, content = rng.choice(files)
            content = damage(rng, content)
            file.seek(0)
            file.write(content)
            file.truncate()
            try:
                outcomes.add(refused(path, dimensions))
            except Exception as error:
                pytest.fail(f"input {seed}: {type(error).__name__}: {error}\n{content!r}")
    assert outcomes == {True, False}, "the damage is too great, or too small, to tell anything"
    assert not recwarn.list, "a warning reaches the user"
