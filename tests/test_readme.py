"""The README quotes what the committed results say, and the program as it is."""

import json
import re

import numpy as np
from conftest import ROOT, command

from softmax_sgd import Curves, Grid, heading, report

README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "report" / "results"


def test_the_expected_output_is_that_of_the_committed_results():
    results = json.loads((RESULTS / "results.json").read_text())
    curves = Curves(**np.load(RESULTS / "curves.npz"))
    lines = [*heading(results["split"], Grid(**results["grid"])), *report(results, curves)]
    assert f"```\n{chr(10).join(lines)}\n```\n" in README
    assert results["grid"] == json.loads(json.dumps(Grid()._asdict())), "not the default grid"


def test_the_speed_is_that_of_the_committed_benchmark():
    rows = json.loads((RESULTS / "peers.json").read_text())["rows"]
    cells = " | {seconds_per_epoch:.2f} | {times_slower:.1f}"
    ways = "one_process", "process_per_core"
    lines = (row["name"] + "".join(cells.format(**row[way]) for way in ways) for row in rows)
    assert "|---|---:|---:|---:|---:|\n| " + " |\n| ".join(lines) + " |\n\n" in README


def test_the_options_are_those_of_the_program():
    usage = README[README.index("    python softmax_sgd.py [") :].partition("\n\n")[0]
    flags = set(re.findall(r"--[a-z-]+", usage))
    assert flags == set(re.findall(r"--[a-z-]+", command("--help").stdout)) - {"--help"}


def test_there_are_two_commands_and_each_sets_itself_up():
    commands = re.findall(r"^    (python3 -m venv .*)$", README, re.MULTILINE)
    assert len(commands) == 2
    for line, requirements in zip(commands, ("", "-dev"), strict=True):
        assert f".venv/bin/pip install -qr requirements{requirements}.txt && " in line
