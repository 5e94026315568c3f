"""What several programs of the report need: the data, and the files of report/results."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from softmax_sgd import load, split

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "report" / "results"


def read(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(RESULTS / f"{name}.npz") as file:
        return dict(file)


def data() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """X, y, X_test, y_test of Fashion-MNIST, as softmax_sgd.py reads them."""
    return load(ROOT / "data")


def rows_of(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows to train on and those to validate on, split as softmax_sgd.py splits them."""
    counts = read("results")["split"]
    n = counts["training"] + counts["validation"]
    return split(n, counts["validation"] / n, np.random.default_rng(seed))


def write(name: str, measure: Callable[[], tuple[dict, dict]]) -> None:
    """Write what `measure` returns: facts to NAME.json, and arrays, if any, to NAME.npz."""
    start = time.monotonic()
    facts, found = measure()
    # Not a number is an error here, where it was made, and not in the program that reads it.
    text = json.dumps(facts, indent=1, allow_nan=False) + "\n"
    (RESULTS / f"{name}.json").write_text(text, encoding="utf-8", newline="\n")
    if found:
        np.savez_compressed(RESULTS / f"{name}.npz", **found)
    print(f"{name}: {time.monotonic() - start:.1f} s", flush=True)
