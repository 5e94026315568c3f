"""Measure everything that the report needs beyond the grid search, part by part.

    python softmax_sgd.py --output report/results     # first: the search on which this builds
    python -m report.experiments                      # then all parts, in about an hour

Each part can be run alone, for example by `python -m report.seeds`. No part needs another, except
that choice, which trains nothing, reads what seeds and optimum wrote.
"""

from report import (
    averages,
    choice,
    gradient_check,
    logistic,
    optimum,
    ratios,
    rounding,
    seeds,
    winner,
)
from report.shared import read, write
from softmax_sgd import Grid

if __name__ == "__main__":
    choice.shared_ratios(Grid(**read("results")["grid"]))  # fails now, not after an hour
    for part in (
        winner,
        gradient_check,
        averages,
        ratios,
        rounding,
        logistic,
        seeds,
        optimum,
        choice,
    ):
        write(part.NAME, part.measure)
