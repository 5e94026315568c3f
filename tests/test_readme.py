"""The README quotes what the committed results hold, and its commands and lines run."""

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
CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def read(name):
    """A committed file of results."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def numbers(text):
    """The numbers in a text; 84.50% is 0.845."""
    found = re.findall(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?%?", text)
    return [float(n.removesuffix("%")) / (100 if n.endswith("%") else 1) for n in found]


def sentence_with(text):
    """The first sentence that has this text in it, outside of code."""
    prose = re.sub("```.*?```", "", README, flags=re.DOTALL)
    for sentence in re.split(r"(?<=\.)\s|\n\n", prose):
        if text in sentence:
            return sentence
    pytest.fail(f"no sentence of README.md has {text}")


# --- Numbers --------------------------------------------------------------------------------------


def test_the_expected_output_is_that_of_the_committed_results():
    results = read("results.json")
    assert results["grid"] == json.loads(json.dumps(Grid()._asdict())), "not the default grid"
    with np.load(RESULTS / "curves.npz") as curves:
        shown = report(results, Curves(**curves))
    output = f"{heading(results['split'], Grid(**results['grid']))}\n{shown}"
    assert f"```\n{output}\n```\n" in README


def test_the_headline_is_that_of_the_committed_results():
    """One sentence has the test metrics and the hyperparameters of the winner."""
    results = read("results.json")
    cross_entropy, accuracy = results["test"].values()
    headline = sentence_with(f"{cross_entropy:.4f}")
    assert f"{accuracy:.2%}" in headline
    for name, value in results["best"].items():
        assert value in numbers(headline), f"{name}, {value:g}, is not in: {headline}"


def test_the_exact_minimum_is_that_of_the_committed_optima():
    """Of the optima for several alphas, that of the lowest validation cross-entropy counts."""
    optima = read("optimum.json")["rows"]
    best = min(optima, key=lambda row: row["validation"]["cross_entropy"])
    cross_entropy, accuracy = best["test"].values()
    sentence = sentence_with(f"{accuracy:.2%}")
    assert f"{cross_entropy:.4f}" in sentence
    assert f"{best['alpha']:g}" in sentence
    assert re.search(r"minimised\s+exactly", sentence)


def test_the_speed_is_that_of_the_committed_benchmark():
    peers = read("peers.json")
    cells = "| {name} | {seconds_per_epoch:.2f} | {times_slower:.1f} |"
    rows = "\n".join(cells.format(**row) for row in peers["one_process"])
    assert f"|---|---:|---:|\n{rows}\n\n" in README
    *_, jax = peers["process_per_core"]
    ratio = f"{jax['times_slower']:.2f} of this project's time"
    assert f"stacked JAX takes {ratio}" in " ".join(README.split())


# --- Commands -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "binaries", "separator"),
    [("python3", ".venv/bin/", " && "), ("py", ".venv\\Scripts\\", "; ")],
    ids=["POSIX", "PowerShell"],
)
@pytest.mark.parametrize(
    ("requirements", "program"),
    [("requirements.txt", "softmax_sgd.py"), ("requirements-dev.txt", "-m pytest")],
)
def test_a_command_sets_itself_up(start, binaries, separator, requirements, program):
    steps = (
        f"{start} -m venv .venv",
        f"{binaries}pip install -qr {requirements}",
        f"{binaries}python {program}",
    )
    assert f"\n    {separator.join(steps)}\n" in README
    assert (ROOT / requirements).is_file()


def test_what_is_handed_in_runs(tmp_path):
    """The Zip has all that the README's first command needs."""
    files = re.search(r"zipfile -c \S+\.zip (.*)", README)[1].split()
    assert {"softmax_sgd.py", "download_data.py", "report.pdf", "requirements.txt"} <= set(files)
    for name in files:
        shutil.copy(ROOT / name, tmp_path)
    done = command("--help", line=[sys.executable, tmp_path / "softmax_sgd.py"])
    assert (done.returncode, done.stderr) == (0, "")


# --- The lines for a notebook ---------------------------------------------------------------------

NOTEBOOK = re.search("```python\n(.*?)```", README, re.DOTALL)[1]


def test_the_notebook_sets_the_threads_of_blas_before_numpy_reads_them():
    imports_numpy = r"^(?:import|from) (?:numpy|matplotlib|softmax_sgd|download_data)"
    before = re.split(imports_numpy, NOTEBOOK, flags=re.MULTILINE)[0]
    assert 'os.environ["OPENBLAS_NUM_THREADS"] = "1"' in before


@pytest.mark.data
def test_the_notebook_does_what_it_describes(data_dir, tmp_path):
    """As a whole, in a fresh interpreter. It prints, in this order: the gradient and the slope; the
    cross-entropy and accuracy of one epoch; the winner; its cross-entropy and accuracy on the test
    set; the predicted and the true class of an image."""
    pytest.importorskip("matplotlib")
    (tmp_path / "notebook.py").write_text(NOTEBOOK, encoding="utf-8")
    done = command(
        line=[sys.executable, "notebook.py"],
        env={"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"},
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "np." not in done.stdout, "numbers as NumPy spells them"
    slopes, epoch, winner, test, prediction = done.stdout.splitlines()
    gradient, slope = numbers(slopes)[-2:]
    assert gradient == pytest.approx(slope, rel=1e-5)
    assert len(numbers(winner)) >= 4, f"not the four hyperparameters: {winner}"
    for line, least in ((epoch, 0.78), (test, 0.80)):
        cross_entropy, accuracy = numbers(line)[-2:]
        assert least < accuracy < 0.86, line
        assert 0.4 < cross_entropy < 0.7, line
    assert {int(n) for n in numbers(prediction)} <= set(range(10)), prediction


# --- What a reader looks for ----------------------------------------------------------------------


@pytest.mark.parametrize(("number", "name"), list(enumerate(CLASSES)))
def test_every_class_has_its_number_and_name(number, name):
    named = re.search(rf"\b{number}\W+{re.escape(name)}\b", README, re.IGNORECASE)
    assert named, f"README.md has no line or entry: {number} {name}"


def test_every_link_leads_to_a_file():
    for target in re.findall(r"\]\(([^)#]+)", README):
        assert re.match("https?://", target) or (ROOT / target).exists(), target


def test_there_is_a_picture_with_a_text_for_who_cannot_see_it():
    pictures = re.findall(r"!\[(.*?)\]\((\S+?)\)", README, re.DOTALL)
    assert pictures, "no picture in README.md"
    for alternative, target in pictures:
        assert (ROOT / target).is_file(), target
        assert len(alternative.split()) >= 3, f"{target}: what does it show?"
