"""What several test modules need besides fixtures: names, a grid, own files, and how to run."""

import copy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from softmax_sgd import Grid

ROOT = Path(__file__).resolve().parents[1]
TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = DATA_FILES = (
    "fashion_mnist_train_images.npy",
    "fashion_mnist_train_labels.npy",
    "fashion_mnist_test_images.npy",
    "fashion_mnist_test_labels.npy",
)

# The grid of the run that tests look at. Its axes have different lengths, and its winner has a
# different index on each, so swapped axes are noticed. In later epochs, other models of its stack
# still improve, so a program that replaced the winner's W then is noticed, too.
GRID = Grid(
    batch_sizes=(4, 9, 16),
    learning_rates=(0.1, 0.2, 0.4, 0.8, 1.2),
    alphas=(0.0, 0.001, 0.01, 0.1),
    epochs=12,
)
SEED = 2
GRID_OPTIONS = (
    *("--batch-sizes", *GRID.batch_sizes, "--learning-rates", *GRID.learning_rates),
    *("--alphas", *GRID.alphas, "--epochs", GRID.epochs, "--seed", SEED),
)


def make_problem(K: int | None = None, n: int = 13, m: int = 5, c: int = 4) -> SimpleNamespace:
    """A small problem in float64, far from any optimum: one model, or a stack of K."""
    rng = np.random.default_rng(541)
    models = () if K is None else (K,)
    return SimpleNamespace(
        X=rng.uniform(0, 1, (n, m)),
        y=rng.integers(0, c, n),
        W=rng.normal(0, 1, (*models, c, m)),
        b=rng.normal(0, 1, (*models, c)),
        alpha=rng.uniform(0.5, 3.0, models),
        learning_rate=rng.uniform(0.1, 0.3, models),
    )


def write_own_files(folder: Path) -> Path:
    """Write four small files: 60 and 40 noisy images of 49 pixels, in ten classes.

    No pixel reaches 255, so that a division by the largest pixel is not one by 255.
    """
    folder.mkdir()
    rng = np.random.default_rng(80)
    class_means = rng.uniform(0, 250, (10, 49))
    for n, images, labels in ((60, TRAIN_IMAGES, TRAIN_LABELS), (40, TEST_IMAGES, TEST_LABELS)):
        y = rng.integers(0, 10, n)
        X = np.clip(class_means[y] + rng.normal(0, 170, (n, 49)), 0, 250)
        np.save(folder / images, X.astype(np.float32))
        np.save(folder / labels, y.astype(np.int32))
    return folder


def run(program: str, *arguments, **how) -> subprocess.CompletedProcess:
    """Run one of the two programs, or a copy at an absolute path, to its end, as a user would."""
    command = [sys.executable, ROOT / program, *map(str, arguments)]
    how = {"encoding": "utf-8", "timeout": 300, "capture_output": True} | how
    return subprocess.run(command, **how)


def assert_leaves_arguments_alone(function, *arguments):
    """Call the function; fail if it changes an argument."""
    before = copy.deepcopy(arguments)
    function(*arguments)
    for number, (old, new) in enumerate(zip(before, arguments, strict=True), start=1):
        assert np.array_equal(old, new), f"{function.__name__} changes its argument {number}"
