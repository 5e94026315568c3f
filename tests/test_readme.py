"""The README quotes what the committed results say, and shows the program as it is."""

import contextlib
import io
import json
import re
import shutil
import sys

import numpy as np
import pytest
from conftest import ROOT, command

from softmax_sgd import Curves, Grid, heading, report

README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = ROOT / "report" / "results"


def test_the_expected_output_is_that_of_the_committed_results():
    results = json.loads((RESULTS / "results.json").read_text())
    assert results["grid"] == json.loads(json.dumps(Grid()._asdict())), "not the default grid"
    with np.load(RESULTS / "curves.npz") as curves:
        shown = report(results, Curves(**curves))
    assert f"```\n{heading(results['split'], Grid(**results['grid']))}\n{shown}\n```\n" in README


def test_the_speed_is_that_of_the_committed_benchmark():
    peers = json.loads((RESULTS / "peers.json").read_text())
    cells = "| {name} | {seconds_per_epoch:.2f} | {times_slower:.1f} |"
    rows = "\n".join(cells.format(**row) for row in peers["one_process"])
    assert f"|---|---:|---:|\n{rows}\n\n" in README
    *_, jax = peers["process_per_core"]
    assert f"stacked JAX takes {jax['times_slower']:.2f} of our time" in README


def test_the_two_commands_set_themselves_up_also_on_windows():
    for start, binaries, end in (
        ("python3", ".venv/bin/", " && "),
        ("py", ".venv\\Scripts\\", "; "),
    ):
        for requirements, program in (("", "softmax_sgd.py"), ("-dev", "-m pytest")):
            steps = (
                f"{start} -m venv .venv",
                f"{binaries}pip install -qr requirements{requirements}.txt",
            )
            assert f"\n    {end.join([*steps, f'{binaries}python {program}'])}\n" in README


def test_what_is_handed_in_runs(tmp_path):
    """The Zip has all that the README's first command needs."""
    files = re.search(r"zipfile -c \S+\.zip (.*)", README)[1].split()
    assert {"softmax_sgd.py", "download_data.py", "report.pdf", "requirements.txt"} <= set(files)
    for name in files:
        shutil.copy(ROOT / name, tmp_path)
    line = sys.executable, tmp_path / "softmax_sgd.py"
    assert "usage: softmax_sgd.py" in command("--help", line=line).stdout


@pytest.mark.data
def test_the_lines_for_a_notebook_do_what_they_say(data_dir, monkeypatch):
    lines = re.search("```python\n(.*?)```", README, re.DOTALL)[1]
    monkeypatch.chdir(ROOT)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(lines, {})
    checked, epoch, winner = printed.getvalue().splitlines()
    gradient, slope = map(float, checked.split())
    assert gradient == pytest.approx(slope, rel=1e-6)
    for line, least in ((epoch, 0.78), (winner, 0.80)):
        assert least < float(re.findall(r"\d\.\d+", line)[1]) < 0.86
