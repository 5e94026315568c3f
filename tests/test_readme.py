"""README.md quotes what the committed results hold; its commands and its lines of Python run."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT, run

import download_data
from report.shared import arrays, read
from softmax_sgd import Grid, Metrics, parse_arguments, print_lowest, without_diverged

README = (ROOT / "README.md").read_text(encoding="utf-8")


# --- Numbers --------------------------------------------------------------------------------------


def test_the_first_sentences_have_the_metrics_and_hyperparameters_of_the_results():
    results = read("results")
    first_paragraph = README.split("\n\n")[1]
    sentence = " ".join(first_paragraph.split())
    assert f"test cross-entropy of **{results['test']['cross_entropy']:.4f}**" in sentence
    assert f"classifies **{results['test']['accuracy']:.2%}**" in sentence
    best = "batch size {batch_size}, learning rate {learning_rate}, L2 regularisation α = {alpha}, "
    assert f"({(best + '{epochs} epochs').format(**results['best'])})" in sentence


def test_the_output_is_that_of_the_results(capsys):
    results, grid = read("results"), Grid()
    assert results["grid"] == json.loads(json.dumps(grid._asdict())), "not of the default grid"
    output = re.search("```\n(Images.*?)```", README, re.DOTALL)[1]
    split, best = results["split"], results["best"]
    parts = ", ".join(f"{count} {part}" for part, count in split.items())
    lengths = " x ".join(str(len(values)) for values in grid.axes().values())
    images = f"Images: {parts} (split by seed {results['seed']})\n"
    assert output.startswith(f"{images}Grid: {lengths} (")
    metrics = Metrics(*(arrays("curves")[name] for name in Metrics._fields))
    print_lowest(grid, without_diverged(metrics).min(axis=-1))
    tables = capsys.readouterr().out
    last = "Best: " + ", ".join(f"{name.replace('_', ' ')} {best[name]}" for name in best) + "\n\n"
    for part in ("training", "validation", "test"):
        cross_entropy, accuracy = results[part].values()
        last += f"{part.capitalize()} cross-entropy (unregularized): {cross_entropy:.4f}\n"
        last += f"{part.capitalize()} accuracy: {accuracy:.2%}\n"
    assert output.partition("epochs)\n")[2] == f"{tables}\n{last}"


def test_the_speed_is_that_of_the_benchmark():
    rows = re.findall(r"^\| (.*) \| ([\d.]+) \| ([\d.]+) \|$", README, re.MULTILINE)
    contenders = read("peers")["contenders"]
    assert rows == [
        (row["name"], f"{row['seconds']:.2f}", f"{row['relative']:.1f}") for row in contenders
    ]


# --- Commands -------------------------------------------------------------------------------------


def test_both_programs_accept_the_options_in_the_commands(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(download_data, "ensure", lambda data_dir, mirror: data_dir)
    monkeypatch.setattr("softmax_sgd.try_to_save", lambda folder: None)
    command = re.compile(r"(softmax_sgd|download_data)\.py (--.*?)(?:$|`)", re.MULTILINE)
    commands = command.findall(README)
    assert len(commands) >= 3
    for program, options in commands:
        parse = download_data.main if program == "download_data" else parse_arguments
        parse(shlex.split(options))


def test_what_is_in_the_zip_runs_from_what_is_in_it(tmp_path):
    command = re.search(r"^    python3 -m (zipfile .*?[^\\])$", README, re.MULTILINE | re.DOTALL)
    command = command[1].replace("\\\n", "").split()
    archive = tmp_path / command[2]
    command = [sys.executable, "-m", *command[:2], archive, *command[3:]]
    subprocess.run(command, cwd=ROOT, check=True)
    shutil.unpack_archive(archive, tmp_path / "unpacked")
    contents = {"softmax_sgd.py", "download_data.py", "requirements.txt", "report.pdf"}
    assert set(os.listdir(tmp_path / "unpacked")) == contents
    done = run(tmp_path / "unpacked" / "softmax_sgd.py", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    first_lines = (tmp_path / "unpacked" / "softmax_sgd.py").read_text(encoding="utf-8")[:1000]
    assert "-m pip install -r requirements.txt" in first_lines


# --- The notebook ---------------------------------------------------------------------------------

BLOCKS = re.findall("```python\n(.*?)```", README, re.DOTALL)


def test_the_steps_of_the_notebook_run_and_show_what_they_announce(data_dir):
    pytest.importorskip("matplotlib")
    marked = "\nprint('---', flush=True)\n".join(BLOCKS)
    env = os.environ | {"MPLBACKEND": "Agg"}
    done = subprocess.run(
        [sys.executable, "-c", marked], cwd=ROOT, env=env, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    assert "NumPy was imported before" not in done.stderr, done.stderr
    # What the eight blocks printed; _ is not checked.
    _, check, epoch, search, _, prediction, _, confusion = done.stdout.split("---\n")
    gradient, slope = re.findall(r"-?\d\.\d{6}", check)
    assert float(gradient) == pytest.approx(float(slope), abs=2e-6)
    cross_entropy, accuracy = re.findall(r"\d+\.\d+", epoch)
    assert 0.4 < float(cross_entropy) < 0.7
    assert 78 < float(accuracy) < 86
    assert re.fullmatch(
        r"(epoch \d: lowest validation cross-entropy 0\.\d{4}\n){5}"
        + "".join(rf"{name} \S+\n" for name in Grid().axes()),
        search,
    )
    assert re.fullmatch(r"class (\d), probability \d+\.\d%; the label is \1\n", prediction)
    *rows, last = confusion.splitlines()
    counts = [list(map(int, re.findall(r"\d+", row))) for row in rows]
    # The report's is computed in float64; nearly equal probabilities may exchange their order.
    different = np.abs(np.subtract(counts, read("winner")["confusion"])).sum()
    assert different <= 4, "not the report's confusion matrix"
    true, predicted, times = map(int, re.findall(r"\d+", last))
    others = [n for i, row in enumerate(counts) for j, n in enumerate(row) if i != j]
    assert counts[true][predicted] == times == max(others)


MINE = """
import numpy as np

def gradients(W, b, X, y, alpha):
    Y = np.eye(len(b))[y]
    Z = X @ W.T + b
    E = np.exp(Z - Z.max(axis=1, keepdims=True))
    D = E / E.sum(axis=1, keepdims=True) - Y
    return D.T @ X / len(X) + alpha * W, D.mean(axis=0)

def sgd(W, b, X, y, alpha, learning_rate, batches):
    for rows in batches:
        dW, db = gradients(W, b, X[rows], y[rows], alpha)
        W, b = W - learning_rate * dW, b - learning_rate * db
    return W, b

"""


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("", "", None),
        (" + alpha * W", "", "mistake: alpha missing"),
        ("D.mean(axis=0)", "D.sum(axis=0)", "db is not the slope of the loss"),
        ("b - learning_rate * db", "b + learning_rate * db", "not b − ε db"),
    ],
    ids=["right", "alpha is missing", "a sum", "a wrong sign"],
)
def test_gradients_of_ones_own_are_checked_by_the_lessons(tmp_path, right, wrong, said):
    two_lines = re.search("```\n(import softmax_sgd\n.*?)```", README, re.DOTALL)[1]
    mine = (MINE.replace(right, wrong) if right else MINE) + two_lines
    (tmp_path / "mine.py").write_text(mine, encoding="utf-8")
    command = re.search(r"python (-m pytest -p mine .*?[^\\])$", README, re.MULTILINE | re.DOTALL)
    command = [sys.executable, *shlex.split(command[1].replace("\\\n", ""))]
    path = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"}
    how = {"cwd": ROOT, "env": env, "capture_output": True, "encoding": "utf-8"}
    done = subprocess.run([*command, "-p", "no:cacheprovider"], **how)
    assert (done.returncode == 0) == (said is None), done.stdout
    assert "checked: gradients of mine.py\nchecked: sgd of mine.py" in done.stdout
    if said:
        assert said in done.stdout


def test_the_header_for_uv_asks_for_what_requirements_txt_has():
    """PEP 723: what is between the two lines is TOML, each line after a #."""
    script = (ROOT / "softmax_sgd.py").read_text(encoding="utf-8")
    header = re.match(r"# /// script\n((?:# .*\n)*)# ///\n", script)[1]
    requirements = (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
    assert re.findall(r'"([a-z]+\S*)"', header) == requirements
    assert 'requires-python = ">=3.10"' in header
    assert "Python 3.10 or newer" in README


# --- What a reader looks for ----------------------------------------------------------------------


def test_every_link_leads_to_a_file_and_every_picture_has_a_text():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert re.match("https?://", target) or (ROOT / target).exists(), target
    for text in re.findall(r"!\[(.*?)\]", README, re.DOTALL):
        assert len(text.split()) >= 10, "who cannot see the picture is told too little"
