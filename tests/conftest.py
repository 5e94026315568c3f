"""The problems on which the lemmas are tested, each built once."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import settings

import softmax_sgd  # before NumPy, as in use: it sets the number of BLAS threads
from download_data import ensure

import numpy as np  # isort: skip

settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")

os.environ.pop("PYTHONUNBUFFERED", None)  # it would hide what buffers keep

ROOT = Path(__file__).parent.parent
LARGE = 3.0  # an alpha that dominates the gradient


@pytest.fixture(params=[(), (3,)], ids=["one model", "a stack of 3"])
def problem(request):
    """A small problem in float64, far from any optimum: X, y, and W, b of one model or a stack."""
    rng = np.random.default_rng(541)
    n, m, c = 13, 5, 4
    return SimpleNamespace(
        X=rng.uniform(0, 1, (n, m)),
        y=rng.integers(0, c, n),
        W=rng.normal(0, 1, (m, c, *request.param)),
        b=rng.normal(0, 1, (c, *request.param)),
        alpha=rng.uniform(0.5, LARGE, request.param),
    )


@pytest.fixture
def stack():
    """Four models in float64 on 50 examples of 10 classes."""
    rng = np.random.default_rng(2)
    return SimpleNamespace(
        X=rng.uniform(0, 1, (50, 6)),
        y=rng.integers(0, 10, 50),
        W=rng.normal(0, 1, (6, 10, 4)),
        b=rng.normal(0, 1, (10, 4)),
        alpha=np.array([0.0, 0.01, 0.1, 1.0]),
        learning_rate=np.array([0.5, 0.1, 0.02, 0.3]),
    )


@pytest.fixture(scope="session")
def data_dir():
    """The folder of the four real files, verified."""
    ensure(ROOT / "data")
    return ROOT / "data"


@pytest.fixture(scope="session")
def real(data_dir):
    """The real data as the program loads them."""
    return SimpleNamespace(
        **dict(zip(("X", "y", "X_test", "y_test"), softmax_sgd.load(data_dir), strict=True))
    )


NAMES = [
    f"fashion_mnist_{part}_{kind}.npy"
    for part in ("train", "test")
    for kind in ("images", "labels")
]


@pytest.fixture
def own_files(tmp_path):
    """A folder of four small files of one's own: 60 + 20 images of 9 pixels, brighter by class."""
    rng = np.random.default_rng(3)
    folder = tmp_path / "own"
    folder.mkdir()
    for part, n in (("train", 60), ("test", 20)):
        y = rng.integers(0, 10, n)
        X = np.clip(25 * y[:, None] + rng.normal(0, 5, (n, 9)), 0, 255)
        np.save(folder / f"fashion_mnist_{part}_images.npy", X.astype(np.float32))
        np.save(folder / f"fashion_mnist_{part}_labels.npy", y.astype(np.int32))
    return folder


def command(*arguments, cwd=ROOT, **how):
    """Run the program as its user does."""
    line = [sys.executable, str(ROOT / "softmax_sgd.py"), *map(str, arguments)]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, timeout=120, **how)


def heed_interrupts():
    """For a child: undo what a shell does to its background jobs, of which a test may be part."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
