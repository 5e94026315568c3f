"""Put mutated .npy and IDX.gz files through both loaders, and look for what must not be.

    python tests/fuzz_loaders.py [N [FIRST]]        # 120000 inputs from number 0: a minute or two

For every input the loader must return what is valid, or raise the one exception that it declares,
and stay within BOUND bytes of memory; the interpreter must live. What an input is depends on its
number alone, so that a failure can be had again. Exits with 1 if anything failed.
"""

import gzip
import hashlib
import io
import itertools
import os
import random
import re
import struct
import sys
import tempfile
import time
import tracemalloc
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from softmax_sgd import read_npy  # before NumPy, as in use

import numpy as np  # isort: skip
from download_data import DataError, File, Refused, gunzip, npy  # isort: skip

BOUND = 5_000_000  # bytes, at any time, beside the input: 5 MB
SPAN = 4000  # inputs for each process: a crash ends no more
SHOWN = 10  # failures that are printed


# --- Seeds ----------------------------------------------------------------------------------------


def stored(array, version=None) -> bytes:
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.lib.format.write_array(content, array, version)
    return content.getvalue()


def stock() -> tuple[list[bytes], list[tuple[File, bytes]]]:
    """Valid .npy files, of one dimension and of two; and valid IDX files, with what they become."""
    rng = np.random.default_rng(0)
    labels, images = rng.integers(0, 10, 300), rng.integers(0, 256, (2, 784))
    arrays = [
        *(labels.astype(dtype) for dtype in ("<i4", ">i8", "u1", "<f2", ">f8")),
        *(images.astype(dtype) for dtype in ("<f4", ">f4", "u1", "<u2")),
        np.asfortranarray(images.astype("<f4")),
        labels > 4,
    ]
    versions = (1, 0), (1, 0), (1, 0), (2, 0), (3, 0)
    files = [stored(array, version) for array in arrays for version in versions]

    pairs = []
    for numbers, dtype, sizes in ((labels, "<i4", [300]), (images, "<f4", [2, 28, 28])):
        content = stored(numbers.astype(dtype))
        sha256 = hashlib.sha256(content).hexdigest()
        file = File(
            name="f.npy", idx="", size=len(content), dtype=dtype, shape=numbers.shape, sha256=sha256
        )
        head = struct.pack(f">4B{len(sizes)}I", 0, 0, 8, len(sizes), *sizes)
        pairs.append((file, head + numbers.astype(np.uint8).tobytes()))
    return files, pairs


NPY, IDX = stock()
BOMB = gzip.compress(IDX[0][1] + bytes(30_000_000))


# --- Mutations ------------------------------------------------------------------------------------

NUMBERS = [
    b"0",
    b"1",
    b"-1",
    b"9",
    b"299",
    b"301",
    b"1e3",
    b"2.5",
    b"True",
    b"None",
    b"()",
    b"(2,)",
]
NUMBERS += [b"%d" % (2**k + d) for k in (15, 16, 31, 32, 33, 62, 63, 64, 200) for d in (-1, 0)]
DTYPES = (
    b"|O |V0 |V9 <U9 |S2147483647 <c8 <M8[s] <f2 >f4 <f8 <f16 |b1 <i1 >u8 <q O f , <f4,<i4".split()
)
TOKENS = [
    b"{",
    b"}",
    b"(",
    b")",
    b"'",
    b"[",
    b",",
    b"\0",
    b"\n",
    b" ",
    b"descr",
    b"(" * 300,
    b"-" * 99,
]


def bytes_changed(rng: random.Random, content: bytes) -> bytes:
    """A few of: a bit flipped, a byte or a word set, a range cut, doubled, moved or made noise."""
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 8])):
        limit = len(content) if rng.random() < 0.4 else min(len(content), 140)
        at, length = rng.randrange(limit + 1), rng.choice([1, 2, 4, 8, rng.randrange(200)])
        match rng.randrange(9):
            case 0 | 1 if at < len(content):
                content[at] ^= 1 << rng.randrange(8)
            case 2 if at < len(content):
                content[at] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
            case 3:
                content[at : at + 4] = struct.pack("<I", rng.choice([0, 1, 2**31, 2**32 - 1, 9999]))
            case 4:
                del content[at : at + length]
            case 5:
                content[at:at] = content[at : at + length]
            case 6:
                content[at : at + length] = rng.randbytes(length)
            case 7:
                del content[at:]
            case _:
                content += rng.randbytes(length)
    return bytes(content)


def header_changed(rng: random.Random, content: bytes) -> bytes:
    """Another word in the header of a .npy file, of which the length field may keep up or not."""
    start = 10 if content[6] == 1 else 12
    end = content.index(b"\n") + 1
    header = content[start:end]
    for _ in range(rng.choice([1, 1, 2, 3])):
        pattern, words = rng.choice(
            [(rb"\d+", NUMBERS), (rb"[|<>][a-z]\d", DTYPES), (rb"\W", TOKENS)]
        )
        if places := list(re.finditer(pattern, header)):
            place = rng.choice(places)
            header = header[: place.start()] + rng.choice(words) + header[place.end() :]
    length = len(header) if rng.random() < 0.8 else rng.choice([0, 10, 65535, 2**31, 2**32 - 1])
    field = struct.pack("<I", length % 2**32)[: start - 8]
    return content[:8] + field + header + content[end:]


def npy_mutant(rng: random.Random) -> bytes:
    content = rng.choice(NPY)
    if rng.random() < 0.5:
        content = header_changed(rng, content)
    if rng.random() < 0.6:
        content = bytes_changed(rng, content)
    return content


def idx_mutant(rng: random.Random) -> tuple[File, list[bytes]]:
    """What the file should be, and a gzipped IDX file that it is perhaps not, in pieces."""
    file, raw = rng.choice(IDX)
    if rng.random() < 0.5:
        raw = bytes_changed(rng, raw)
    content = gzip.compress(raw, rng.choice([0, 1, 6]), mtime=0)
    match rng.randrange(40):
        case 0:
            content = rng.choice([BOMB, BOMB * 2, BOMB[: rng.randrange(len(BOMB))]])
        case 1:
            content += gzip.compress(raw)
        case 2:
            content += rng.randbytes(rng.randrange(1, 20))
        case number if number < 25:
            content = bytes_changed(rng, content)
    cuts = sorted(rng.randrange(len(content) + 1) for _ in range(rng.choice([0, 0, 1, 5, 50])))
    return file, [content[a:b] for a, b in zip([0, *cuts], [*cuts, None], strict=True)]


# --- Checks: return the name of an outcome, or raise ----------------------------------------------


def plain(error: Exception, start: str = "") -> None:
    text = str(error)
    assert text.startswith(start), f"the file is not named: {text:.300}"
    assert text.isprintable(), f"not one plain line: {text:.300}"


def check_npy(content: bytes, path: Path) -> str:
    path.write_bytes(content)
    dimensions = 1 + (b", 784)" in content[:150])
    try:
        array = read_npy(path, dimensions, highest=255)
    except DataError as error:
        plain(error, str(path))
        return ".npy refused"
    assert array.ndim == dimensions, f"{array.ndim} dimensions"
    assert array.dtype.kind in "buif", f"dtype {array.dtype}"
    assert ((array >= 0) & (array <= 255)).all(), "values out of range"
    assert array.nbytes < len(content), "numbers that are not in the file"
    return ".npy read"


def check_idx(file: File, pieces: list[bytes]) -> str:
    size, digest = 0, hashlib.sha256()
    try:
        for chunk in npy(file, gunzip(iter(pieces))):
            size += len(chunk)
            digest.update(chunk)
            if size > file.size:
                return "IDX too long"
    except Refused as error:
        plain(error)
        return "IDX refused"
    return "IDX right" if digest.hexdigest() == file.sha256 else "IDX with another hash"


def fuzz(first: int, end: int) -> tuple[Counter, int, list[str]]:
    """How often each outcome came of these inputs, the most memory that any took, the failures."""
    outcomes, most, failures = Counter(), 0, []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(first, end):
            rng, even = random.Random(number), number % 2 == 0
            mutant = idx_mutant(rng) if even else (npy_mutant(rng), Path(folder, "mutant.npy"))
            tracemalloc.start()
            try:
                outcomes[(check_idx if even else check_npy)(*mutant)] += 1
                peak = tracemalloc.get_traced_memory()[1]
                most = max(most, peak)
                assert peak < BOUND, f"{peak / 1e6:.1f} MB of memory"
            except Exception as error:
                shown = mutant[even]
                failures.append(
                    f"input {number}: {type(error).__name__}: {error}\n  {shown!r:.300}"
                )
            finally:
                tracemalloc.stop()
    return outcomes, most, failures


def isolated(first: int, end: int) -> tuple[Counter, int, list[str]]:
    """The same in a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            return pool.submit(fuzz, first, end).result()
        except BrokenProcessPool:
            return Counter(), 0, [f"inputs {first} to {end - 1}: the interpreter crashed"]


def main(count: int = 120_000, first: int = 0) -> int:
    start, starts = time.monotonic(), range(first, first + count, SPAN)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        ends = [min(begin + SPAN, first + count) for begin in starts]
        counters, peaks, failures = zip(*pool.map(isolated, starts, ends), strict=True)
    failures = list(itertools.chain(*failures))
    print(*failures[:SHOWN], sep="\n", end="\n" * bool(failures))
    print(f"{count} inputs in {time.monotonic() - start:.0f} s:", end=" ")
    outcomes = sorted(sum(counters, start=Counter()).items())
    print(*(f"{times} {outcome}" for outcome, times in outcomes), sep=", ")
    print(f"{len(failures)} failures; {max(peaks) / 1e6:.2f} of {BOUND / 1e6:g} MB of memory")
    return len(failures) > 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
