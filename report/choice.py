"""What the search decides and what it does not, from what the other programs found.

Reads curves.npz of softmax_sgd.py, and the results of seeds.py, averages.py and optimum.py.
Writes report/results/choice.json.
"""

import numpy as np

from report.shared import arrays, read, write
from softmax_sgd import Grid, Metrics, best_point

NAME = "choice"
CLOSE = 0.005  # in cross-entropy
LAST_EPOCHS = 4
AVERAGED_EPOCHS = 5


def measure() -> tuple[dict, dict]:
    grid = Grid(**read("results")["grid"])
    curves = Metrics(*(arrays("curves")[name] for name in Metrics._fields))
    runs, lowest = read("seeds")["runs"], curves.cross_entropy.min(axis=-1)
    _, rate, _, epoch = best_point(curves)
    seed = [run["seed"] for run in runs].index(read("results")["seed"])
    on_test_images = arrays("averages")["last"][seed, 1, 0, rate]  # of the chosen model, by epoch
    seeds_lowest = arrays("seeds")["lowest"]
    if seeds_lowest.shape[1:] != lowest.shape:
        raise SystemExit("seeds.npz is of another grid than results.json: run report.experiments")
    facts = {
        "grid": grid._asdict(),
        **neighbours_and_rivals(curves),
        "test_images": {
            "before_and_after": beside(on_test_images, epoch),
            "lowest_epoch": int(on_test_images.argmin()) + 1,
        },
        "averaged": best_average(grid, curves),
        "shared_ratios": shared_ratios(grid),
        "ratios_of_seeds": [spreads(grid, one) for one in seeds_lowest],
        "alphas": compare_alphas(lowest),
        "rises": rises(runs, read("averages")["seeds"], read("optimum")["splits"]),
    }
    return facts, {}


def neighbours_and_rivals(curves: Metrics) -> dict:
    """The winner's cross-entropy in the epochs beside its own, and how near other models come."""
    values = curves.cross_entropy
    *model, epoch = best_point(curves)
    lowest, last = values.min(axis=-1), values.shape[-1] - LAST_EPOCHS
    return {
        "before_and_after": beside(values[tuple(model)], epoch),
        "runner_up": float(np.sort(lowest, axis=None)[1] - lowest.min()),
        "close": CLOSE,
        "models_close": int((lowest <= lowest.min() + CLOSE).sum()),
        "last_epochs": LAST_EPOCHS,
        "lowest_in_last_epochs": int((values.argmin(axis=-1) >= last).sum()),
    }


def beside(curve: np.ndarray, i: int) -> list[float]:
    """Its values before and after the index i; at an end, there is only one."""
    return [float(curve[j]) for j in (i - 1, i + 1) if 0 <= j < len(curve)]


def best_average(grid: Grid, curves: Metrics) -> dict:
    """The point that wins if each value is replaced by the mean over the epochs around it."""
    windows = np.lib.stride_tricks.sliding_window_view(
        curves.cross_entropy, AVERAGED_EPOCHS, axis=-1
    )
    means = windows.mean(axis=-1)
    *model, first = best_point(Metrics(means, means))
    point = (*model, first + AVERAGED_EPOCHS // 2)
    best = {name: tried[i] for (name, tried), i in zip(grid.axes().items(), point, strict=True)}
    return {"epochs_averaged": AVERAGED_EPOCHS, **best}


def by_ratio(grid: Grid, lowest: np.ndarray) -> dict[float, np.ndarray]:
    """For each n/ε, the lowest cross-entropies of its models: (models, alphas)."""
    groups = {}
    for i, batch_size in enumerate(grid.batch_sizes):
        for j, learning_rate in enumerate(grid.learning_rates):
            groups.setdefault(round(batch_size / learning_rate, 6), []).append(lowest[i, j])
    return {ratio: np.array(groups[ratio]) for ratio in sorted(groups)}


def shared_ratios(grid: Grid) -> list[float]:
    """The n/ε of several batch sizes. The report is about them, so without any this is the end."""
    lowest = np.empty((len(grid.batch_sizes), len(grid.learning_rates), 1))
    shared = [ratio for ratio, models in by_ratio(grid, lowest).items() if len(models) > 1]
    if not shared:
        raise SystemExit(f"no two models of the grid share a ratio of n and ε, as in {grid}")
    return shared


def spreads(grid: Grid, lowest: np.ndarray) -> dict:
    """For each alpha, the largest differences within an n/ε, and between different ones.

    Only those n/ε count that several models share.
    """
    groups = by_ratio(grid, lowest)
    shared = [groups[ratio] for ratio in shared_ratios(grid)]
    return {
        "within": np.max([np.ptp(values, axis=0) for values in shared], axis=0).tolist(),
        "between": np.ptp(np.concatenate(shared), axis=0).tolist(),
    }


def compare_alphas(lowest: np.ndarray) -> dict:
    """How much worse the largest alpha is than the smallest, and how much the others differ.

    Each difference is that of models with the same batch size and learning rate.
    """
    worse = lowest[..., -1] - lowest[..., 0]
    others = np.ptp(lowest[..., :-1], axis=-1)
    return {
        "pairs": worse.size,
        "worse": [float(worse.min()), float(worse.max())],
        "others_median": float(np.median(others)),
        "others_largest": float(others.max()),
    }


def rises(runs: list[dict], averages: list[dict], optima: list[dict]) -> dict:
    """By how much the cross-entropy rises from validation to test, on average over the splits.

    The winner is chosen among thousands of points by its validation cross-entropy, the mean of the
    weights and the exact minimum are not.
    """
    of_splits = {
        "winner": runs,
        "mean": [row["mean"]["after_all_epochs"] for row in averages],
        "minimum": optima,
    }
    return {
        name: float(
            np.mean([r["test"]["cross_entropy"] - r["validation"]["cross_entropy"] for r in rows])
        )
        for name, rows in of_splits.items()
    }


if __name__ == "__main__":
    write(NAME, measure)
