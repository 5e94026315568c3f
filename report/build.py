"""Make report.pdf from report/results: the same bytes for the same results.

    pip install -r report/requirements.txt
    python report/build.py [--output report.pdf]

The figures are drawn here as SVG and handed to report.typ as they are; Typst sets their lettering
in the document's own font. Every other number of the report is read by report.typ itself.
"""

import argparse
import io
import json
import logging
import re
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import typst
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
WIDTH = 16.8 / 2.54  # of the text, in inches
CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
# Two colours that no kind of colour blindness confuses, one dark and one light in black and white.
BLUE, ORANGE, GREY = "#00508c", "#c25e00", "#666666"
SHADES = LinearSegmentedColormap.from_list("shades", ["white", "#cfe0ee", "#5f98c6", BLUE])
SIGNED = LinearSegmentedColormap.from_list("signed", ["#d97b00", "white", "#00355f"])
STYLE = {
    # Typst has the first font; Matplotlib, which only measures, has the second, of equal widths.
    "font.family": ["New Computer Modern", "cmr10"],
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.linewidth": 0.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.2,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "figure.constrained_layout.use": True,
}


def read(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(RESULTS / f"{name}.npz") as file:
        return dict(file)


def power(value: float) -> str:
    """0, 10^{-5} or 3 × 10^{-4}; svg() raises what is in the braces."""
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:e}".split("e")
    mantissa = "" if float(mantissa) == 1 else f"{float(mantissa):g} × "
    return f"{mantissa}10^{{{int(exponent)}}}".replace("-", "−")


def svg(figure: Figure) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    raised = r'<tspan style="font-size: 5.5px" dy="-2.7">\1</tspan>'
    return re.sub(r"\^\{(.*?)\}", raised, file.getvalue())


# --- Problem 1 ------------------------------------------------------------------------------------


def xor() -> Figure:
    """The four points, drawn as heights over the square, and the flat best fit between them."""
    figure = Figure((6 / 2.54, 4.4 / 2.54), layout="none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-0.42, 1.98), ylim=(-0.23, 1.53), aspect="equal")
    axes.axis("off")

    def at(x1, x2, height):  # an oblique projection
        return x1 + 0.45 * x2, 0.33 * x2 + height

    corners = [(0, 0), (1, 0), (1, 1), (0, 1)]
    floor, plane = (np.array([at(*corner, height) for corner in corners]) for height in (0, 0.5))
    axes.fill(*floor.T, facecolor="none", edgecolor=GREY, linewidth=0.5)
    axes.fill(*plane.T, facecolor=BLUE, alpha=0.18, linewidth=0)
    axes.text(0.72, 0.63, "ŷ = ½", color=BLUE, ha="center", size=9)
    for x1, x2 in corners:
        y = x1 ^ x2
        (x, low), (_, high) = at(x1, x2, min(y, 0.5)), at(x1, x2, max(y, 0.5))
        axes.plot([x, x], [low, high], color=ORANGE, linewidth=1.4)
        axes.text(x + 0.04, (low + high) / 2, "½", color=ORANGE, va="center", size=9)
        face = "black" if y else "white"
        axes.plot(*at(x1, x2, y), "o", color=face, markeredgecolor="black", markersize=4.5)
        side, align = (-0.07, "right") if x1 == 0 else (0.07, "left")
        axes.text(x + side, at(x1, x2, y)[1], f"({x1}, {x2})", ha=align, va="center")
    return figure


# --- Problem 3 ------------------------------------------------------------------------------------


def heat() -> Figure:
    """Each model's lowest validation cross-entropy: a map for each minibatch size."""
    results = read("results")
    grid, best = results["grid"], results["best"]
    curves = arrays("curves")["cross_entropy"]
    finite = np.isfinite(curves).all(axis=-1)
    lowest = np.where(finite, curves.min(axis=-1), np.nan)
    sizes = grid["batch_sizes"]
    figure = Figure((WIDTH, 4.6 / 2.54))
    panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    low, high = np.nanmin(lowest), np.nanquantile(lowest, 0.9)
    for axes, size, cells in zip(panels, sizes, lowest, strict=True):
        axes.pcolormesh(cells, cmap=SHADES.reversed(), vmin=low, vmax=high, ec="white", lw=1)
        for (j, k), value in np.ndenumerate(cells):
            chosen = (size, grid["learning_rates"][j], grid["alphas"][k]) == tuple(
                best[name] for name in ("batch_size", "learning_rate", "alpha")
            )
            axes.text(
                k + 0.5,
                j + 0.5,
                f"{value:.4f}" if np.isfinite(value) else "–",
                color="white" if value < low + 0.3 * (high - low) else "black",
                weight="bold" if chosen else "normal",
                size=7,
                ha="center",
                va="center",
            )
            if chosen:
                axes.hlines([j + 0.2, j + 0.8], k + 0.1, k + 0.9, color="white", linewidth=1)
        axes.set_title(f"minibatches of {size}")
        axes.set_xticks(np.arange(len(grid["alphas"])) + 0.5, map(power, grid["alphas"]))
        axes.set_yticks(np.arange(len(grid["learning_rates"])) + 0.5, grid["learning_rates"])
        axes.set_xlabel("regularisation 𝛼")
        bare(axes)
    panels[0].set_ylabel("learning rate 𝜀")
    return figure


def bare(axes) -> None:
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def curves() -> Figure:
    """Training and validation cross-entropy of the chosen model by epoch, the chosen one marked."""
    best = read("results")["best"]["epochs"]
    values = read("winner")["curves"]
    epochs = np.arange(1, len(values["training"]) + 1)
    chosen = values["validation"][best - 1]
    figure = Figure((6.6 / 2.54, 6.6 / 2.54))
    axes = figure.subplots()
    for name, colour, style, below in (
        ("training", GREY, (0, (4, 1.5)), True),
        ("validation", BLUE, "-", False),
    ):
        axes.plot(epochs, values[name], color=colour, linestyle=style)
        middle = len(epochs) // 2
        axes.annotate(
            name,
            (epochs[middle], values[name][middle]),
            (0, -8 if below else 9),
            textcoords="offset points",
            color=colour,
            ha="center",
            va="top" if below else "bottom",
        )
    axes.plot(best, chosen, "o", color=ORANGE, markersize=5, clip_on=False)
    axes.annotate(
        f"epoch {best}",
        (best, chosen),
        (0, 19),
        textcoords="offset points",
        color=ORANGE,
        ha="center" if best < 0.85 * len(epochs) else "right",
    )
    axes.set(xlabel="epoch", xlim=(0, len(epochs)), title="cross-entropy")
    axes.title.set(ha="left", x=0)
    ends = values["training"], values["validation"]
    axes.set_ylim(min(map(min, ends)) - 0.01, np.quantile(np.concatenate(ends), 0.985) + 0.01)
    return figure


def confusion() -> Figure:
    """Test images by true and predicted class, and the accuracy of each class."""
    winner = read("winner")
    counts, accuracy = np.array(winner["confusion"]), winner["class_accuracy"]
    figure = Figure((9.8 / 2.54, 6.6 / 2.54))
    axes = figure.subplots()
    mistakes = np.where(np.eye(len(counts)), 0, counts)
    axes.pcolormesh(mistakes, cmap=SHADES, vmin=0, vmax=mistakes.max(), ec="white", lw=1)
    for (true, predicted), count in np.ndenumerate(counts):
        if count:
            axes.text(
                predicted + 0.5,
                true + 0.52,
                count,
                color="white" if mistakes[true, predicted] > 0.6 * mistakes.max() else "black",
                weight="bold" if true == predicted else "normal",
                size=7,
                ha="center",
                va="center",
            )
    for true, fraction in enumerate(accuracy):
        axes.text(11.1, true + 0.52, f"{fraction:.1%}", ha="right", va="center", size=7)
    names = [*CLASSES, "correct"]
    axes.set_xticks(np.arange(11) + 0.5, names, rotation=40, ha="left", rotation_mode="anchor")
    axes.xaxis.tick_top()
    axes.set_yticks(np.arange(10) + 0.5, CLASSES)
    axes.tick_params(pad=1)
    axes.invert_yaxis()
    bare(axes)
    return figure


def weights() -> Figure:
    """The ten columns of W as images: blue speaks for the class, orange against it."""
    W = arrays("model")["W"]
    figure = Figure((WIDTH, 7.3 / 2.54))
    figure.get_layout_engine().set(hspace=0.08)
    bound = np.quantile(np.abs(W), 0.995)
    for axes, column, name in zip(figure.subplots(2, 5).flat, W.T, CLASSES, strict=True):
        picture(axes, column, SIGNED, -bound, bound)
        axes.set_title(name)
    return figure


def picture(axes, pixels, shades, low: float, high: float) -> None:
    squares = np.kron(pixels.reshape(28, 28), np.ones((8, 8)))  # sharp wherever they are shown
    axes.imshow(squares, shades, vmin=low, vmax=high, interpolation="none")
    axes.set(xticks=[], yticks=[])
    bare(axes)


def mistakes() -> Figure:
    """The test images that the model mistakes with the greatest confidence."""
    facts, images = read("winner")["mistakes"], arrays("winner")["mistakes"]
    figure = Figure((WIDTH, 7.2 / 2.54))
    figure.get_layout_engine().set(hspace=0.12)
    for axes, fact, image in zip(figure.subplots(2, 4).flat, facts, images, strict=True):
        picture(axes, image, "gray_r", 0, 255)
        axes.set_title(CLASSES[fact["true"]])
        axes.set_xlabel(
            f"“{CLASSES[fact['predicted']]}”, {fact['probability']:.1%}", color=ORANGE, labelpad=2
        )
    return figure


# --- Problem 4 ------------------------------------------------------------------------------------


def logistic() -> Figure:
    """The loss, b and ‖w‖ of the simulated descents, with what the proofs predict dashed."""
    facts, path = read("logistic"), arrays("logistic")
    t, size = path["t"], np.linalg.norm(path["w"], axis=-1)
    figure = Figure((WIDTH, 5.8 / 2.54))
    panels = figure.subplots(1, 3)
    looks = {
        "opposite": {"color": BLUE, "linewidth": 1.2},
        "unequal": {"color": "#a0a0a0", "linewidth": 2.8},
        "apart": {"color": ORANGE, "linewidth": 1.2},
    }
    late = t >= 30
    for i, name in reversed(list(enumerate(facts["pairs"]))):
        predictions = predicted(name, facts, t)
        for axes, values, prediction in zip(
            panels, (path["loss"], path["b"], size), predictions, strict=True
        ):
            axes.plot(t, values[:, i], **looks[name])
            axes.plot(t[late], prediction[late], color="black", linewidth=0.8, dashes=(2.5, 2.5))
    panels[0].set_yscale("log")
    for axes, title in zip(panels, ("loss", "𝑏", "‖𝑤‖"), strict=True):
        axes.set_xscale("log")
        axes.set_xticks([1, 1e2, 1e4, 1e6], map(power, (1, 1e2, 1e4, 1e6)))
        axes.minorticks_off()
        axes.set(xlabel="step 𝑡", xlim=(1, facts["steps"]), title=title)
        axes.title.set(ha="left", x=0)
    ticks = (1, 1e-2, 1e-4, 1e-6)
    panels[0].set_yticks(ticks, map(power, ticks))
    panels[0].minorticks_off()
    panels[1].set(ylim=(0, None), yticks=(0, 5, 10))
    panels[2].set(ylim=(0, None), yticks=(0, 2, 4, 6))
    for axes, x, y, text, name in (
        (panels[0], 2e4, 2e-3, "(i) and (i′)", "opposite"),
        (panels[0], 3e2, 3e-5, "(ii)", "apart"),
        (panels[1], 4e2, 9.2, "(i) and (i′)", "opposite"),
        (panels[1], 2e4, 0.9, "(ii)", "apart"),
        (panels[2], 2.5e4, 0.27, "(i)", "opposite"),
        (panels[2], 2.5e4, 1.3, "(i′)", "unequal"),
        (panels[2], 1e4, 4.9, "(ii)", "apart"),
    ):
        color = looks[name]["color"] if name != "unequal" else GREY
        axes.text(x, y, text, color=color, ha="center")
    return figure


def predicted(name: str, facts: dict, t: np.ndarray) -> tuple[np.ndarray, ...]:
    """What the loss, b and ‖w‖ tend to by the proofs of problem 4."""
    rate, pair = facts["learning_rate"], facts["pairs"][name]
    (first, second), start = np.array(pair["examples"], float), np.array(pair["start"], float)
    if name == "apart":  # z_1 = z_2 = ρb, and w = b (x_1 + x_2)/2
        middle = (first + second) / 2
        rho = 1 + middle @ middle
        b = np.log(rho * rate * t) / rho
        return 1 / (rho * rate * t), b, np.linalg.norm(middle) * b
    c = np.linalg.norm(second) / np.linalg.norm(first)
    s = -np.log(c) / (1 + c)
    w = start + (s - first @ start) / (first @ first) * first
    b = np.log(rate * (np.exp(-s) + np.exp(c * s)) / 2 * t)
    return 1 / (rate * t), b, np.full(len(t), np.linalg.norm(w))


# --- The document ---------------------------------------------------------------------------------

FIGURES = (xor, heat, curves, confusion, weights, mistakes, logistic)


def document() -> dict:
    """What Typst needs to set the report: the source, and the figures."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # What Matplotlib misses in the fonts of STYLE is there when Typst sets them.
        logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", message=".*cmr10")
        inputs = {figure.__name__: svg(figure()) for figure in FIGURES}
    if (RESULTS / "peers.json").exists():
        inputs["peers"] = "measured"
    source = HERE / "report.typ"
    return {"input": source, "root": HERE, "sys_inputs": inputs, "ignore_system_fonts": True}


def build(output: Path) -> None:
    typst.compile(output=output, **document())


def main() -> None:
    parser = argparse.ArgumentParser(description="Make report.pdf from report/results.")
    parser.add_argument("--output", type=Path, default=HERE.parent / "report.pdf", metavar="PDF")
    build(parser.parse_args().output)


if __name__ == "__main__":
    main()
