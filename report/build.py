"""Build report.pdf and report/readme.svg from report/results: the same bytes for the same results.

    pip install -r report/requirements.txt
    python -m report.build

The figures are drawn here as SVG and handed to report.typ as they are; Typst sets their lettering
in the document's own font. Every other number in the report is read by report.typ itself.
"""

import io
import logging
import math
import re
import warnings
from itertools import cycle
from pathlib import Path

import matplotlib
import numpy as np
import typst
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from report.shared import ROOT, arrays, read

CM = 1 / 2.54  # in inches
WIDTH, FULL_WIDTH = 14 * CM, 18.1 * CM  # of the text; with the margin beside it
NAMES = "T-shirt/top, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag, ankle boot"
CLASSES = NAMES.split(", ")
# Two colours that no kind of colour blindness confuses, one dark and one light in black and white.
BLUE, ORANGE, GREY, RED = "#00508c", "#a85000", "#666666", "#b00000"
# Of the batch sizes, from the smallest. The marks are hollow and of different shapes, so that those
# that coincide are all seen.
SIZE_COLOURS = ("black", "#00508c", "#3f9fdc", ORANGE)
SIZE_MARKS = "osD^"
SHADES = LinearSegmentedColormap.from_list("shades", ["white", "#c4dbec", "#6fa8d6"])
# From dark to light, so that the sign can be seen in black and white, too.
SIGNED = LinearSegmentedColormap.from_list(
    "signed", ["#00284a", "#3f78a8", "#9c9c9c", "#eab464", "#fff4dc"]
)
CENTRED = {"ha": "center", "va": "center_baseline"}
STYLE = {
    # Typst has the first font; Matplotlib, which only measures, has the second, of equal widths.
    "font.family": ["New Computer Modern", "cmr10"],
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.linewidth": 0.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.2,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "figure.constrained_layout.use": True,
}


def power(value: float) -> str:
    """0, 10^{-5} or 3 × 10^{-4}; svg() raises what is in the braces."""
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:e}".split("e")
    mantissa = "" if float(mantissa) == 1 else f"{float(mantissa):g} × "
    return f"{mantissa}10^{{{int(exponent)}}}".replace("-", "−")


def svg(figure: Figure) -> str:
    """The figure as SVG, with ^{…} raised and _{…} lowered.

    This is done in the SVG because Matplotlib's own mathematics would bring its own fonts.
    """
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    for mark, dy in ((r"\^", -3), ("_", 1.7)):
        script = rf'<tspan style="font-size: 7px" dy="{dy}">\1</tspan>'
        back = rf'<tspan dy="{-dy}">\2</tspan>'
        text = re.sub(mark + r"\{([^}]*)\}([^<])", script + back, text)  # more text follows
        text = re.sub(mark + r"\{([^}]*)\}", script, text)  # nothing follows
    return text


def bare(axes) -> None:
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def cells(axes, values, texts, bold, high: float, size: float = 7.5) -> None:
    """A heat map of `values` from 0 to `high`, the darker the higher, with a text in each cell.

    `values`, `texts` and `bold` have the same shape; their first row is the lowest.
    """
    axes.pcolormesh(values, cmap=SHADES, vmin=0, vmax=high, ec="white", lw=1)
    for (row, column), text in np.ndenumerate(texts):
        weight = "bold" if bold[row, column] else "normal"
        axes.text(column + 0.5, row + 0.5, text, weight=weight, size=size, **CENTRED)
    bare(axes)


# --- Problem 1 ------------------------------------------------------------------------------------


def xor() -> Figure:
    """The four points, drawn as heights over the square, and the flat best fit between them."""
    figure = Figure((5.8 * CM, 3.7 * CM), layout="none")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-0.84, 1.94), ylim=(-0.25, 1.5), aspect="equal")
    axes.axis("off")

    def at(x1, x2, height):  # an oblique projection
        return x1 + 0.45 * x2, 0.33 * x2 + height

    corners = [(0, 0), (1, 0), (1, 1), (0, 1)]
    floor, plane = (np.array([at(*corner, height) for corner in corners]) for height in (0, 0.5))
    axes.fill(*floor.T, facecolor="none", edgecolor=GREY, linewidth=0.5)
    axes.fill(*plane.T, facecolor=BLUE, alpha=0.18, linewidth=0)
    axes.text(0.36, 0.57, "ŷ", color=BLUE, ha="right", size=9, style="italic")
    axes.text(0.4, 0.57, "= ½", color=BLUE, ha="left", size=9)
    for x1, x2 in corners:
        y = x1 ^ x2
        (x, low), (_, high) = at(x1, x2, min(y, 0.5)), at(x1, x2, max(y, 0.5))
        axes.plot([x, x], [low, high], color=ORANGE, linewidth=1.4)
        sign = "+½" if y else "−½"
        side, align = (0.04, "left") if x2 else (-0.04, "right")
        axes.text(x + side, (low + high) / 2, sign, color=ORANGE, ha=align, va="center", size=9)
        axes.plot(*at(x1, x2, 0), "x", color=GREY, ms=4)  # where the point stands on the floor
        axes.plot(*at(x1, x2, y), "o", color="black" if y else "white", mec="black", ms=4.5)
        side, align = (0.07, "left") if x1 else (-0.07, "right")
        axes.text(x + side, at(x1, x2, y)[1], f"({x1}, {x2})", ha=align, va="center")
    axes.text(0.5, -0.06, "𝑥_{1}", color=GREY, ha="center", va="top")
    axes.text(1.3, 0.1, "𝑥_{2}", color=GREY, ha="left", va="center")
    axes.plot([-0.55, -0.55], [0, 1], "_-", color=GREY, linewidth=0.5)  # the axis of the heights
    for height in (0, 1):
        axes.text(-0.64, height, str(height), color=GREY, ha="right", va="center")
    axes.text(-0.55, 1.12, "𝑦", color=GREY, ha="center")
    return figure


# --- Problem 3 ------------------------------------------------------------------------------------


def one_curve(axes, marksize: float, legend: str) -> None:
    """The lowest validation cross-entropy of each model against learning rate / batch size.

    For the winner's alpha, with the models beside the grid, and in grey for the largest alpha. A
    line joins the models of a batch size. `legend` is the title of the legend.
    """
    grid, models = read("results")["grid"], read("ratios")["models"]
    with_largest_alpha = arrays("curves")["cross_entropy"].min(axis=-1)[..., -1]
    axes.set_xscale("log")
    look = {"mfc": "none", "ms": marksize, "linewidth": marksize / 8, "mew": marksize / 5}
    for n, colour, mark, above in zip(
        grid["batch_sizes"], cycle(SIZE_COLOURS), cycle(SIZE_MARKS), with_largest_alpha
    ):
        rates = np.array(grid["learning_rates"])
        axes.plot(rates / n, above, mark + "--", color="#999999", **look)
        own = [(m["learning_rate"] / n, m["lowest"]) for m in models if m["batch_size"] == n]
        axes.plot(*zip(*sorted(own), strict=True), mark + "-", color=colour, label=n, **look)
    axes.legend(
        title=legend, loc=(0.2, 0.73), ncols=4, frameon=False,
        columnspacing=0.8, handletextpad=0.4, handlelength=1.2,
    )  # fmt: skip
    best = read("results")["best"]
    x = best["learning_rate"] / best["batch_size"]
    y = read("results")["validation"]["cross_entropy"]
    point_out(axes, x, y, below=0.0061)
    ticks = 1 / np.array([12800, 3200, 800, 200])
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"1/{1 / tick:.0f}" for tick in ticks])
    axes.set(xlim=(1 / 17000, 1 / 130), ylim=(y - 0.0086, with_largest_alpha.max() + 0.004))


def point_out(axes, x: float, y: float, below: float) -> None:
    """Mark the chosen point by an arrow from a word that is this far below it."""
    arrow = {"arrowstyle": "-|>", "color": RED, "shrinkA": 0, "shrinkB": 3}
    axes.annotate(
        "chosen", (x, y), (x, y - below), color=RED, ha="center", va="center", arrowprops=arrow
    )


def chance(axes) -> None:
    """The chosen model epoch by epoch, the mean of its weights, and the exact minimum."""
    results = read("results")
    best, seed = results["best"], results["seed"]
    curves = arrays("averages")  # seed, part, metric, learning rate, epoch
    i = [run["seed"] for run in read("averages")["seeds"]].index(seed)
    j = results["grid"]["learning_rates"].index(best["learning_rate"])
    minimum = next(row for row in read("optimum")["splits"] if row["seed"] == seed)
    epochs = np.arange(1, results["grid"]["epochs"] + 1)
    for k, (part, colour) in enumerate({"validation": BLUE, "test": ORANGE}.items()):
        last, mean = (curves[name][i, k, 0, j] for name in ("last", "mean"))
        exact = minimum[part]["cross_entropy"]
        axes.plot(epochs, last, ".-", color=colour, linewidth=0.6, markersize=2.5)
        axes.plot(epochs, mean, color=colour, linewidth=2)
        axes.plot(best["epochs"], last[best["epochs"] - 1], "o", color=RED, markersize=4)
        axes.plot([0, epochs[-1]], [exact, exact], color="black", linewidth=0.8, dashes=(4, 2))
        axes.text(1.025 * epochs[-1], exact, "exact\nminimum", va="center", linespacing=0.9)
        x, y = {"validation": (0.02, 0.08), "test": (0.2, 0.92)}[part]  # free of curves
        axes.text(x, y, f"{part} images", color=colour, va="center", transform=axes.transAxes)
    chosen, top = results["validation"]["cross_entropy"], minimum["test"]["cross_entropy"] + 0.038
    point_out(axes, best["epochs"], chosen, below=0.0095)
    axes.axvline(best["epochs"], ymin=0.2, color=RED, linewidth=0.6, dashes=(1, 2))
    axes.set(xlim=(0, 1.22 * epochs[-1]), ylim=(chosen - 0.013, top))
    axes.set_xticks(range(0, epochs[-1] + 1, math.ceil(epochs[-1] / 3)))


def search() -> Figure:
    """The one curve of all models, and beside it what chance does to the chosen one."""
    grid = read("results")["grid"]
    figure = Figure((FULL_WIDTH, 6 * CM))
    left, right = figure.subplots(1, 2, width_ratios=(4, 5))
    one_curve(left, marksize=4, legend="minibatches of")
    left.set_title("lowest validation cross-entropy of each model")
    left.set_xlabel("learning rate / minibatch size, 𝜀/𝑛 (logarithmic)")
    largest, best = grid["alphas"][-1], read("ratios")["alpha"]
    left.text(1 / 4200, 0.431, f"𝛼 = {power(largest)}", color="#777777", ha="left")
    left.text(1 / 11500, 0.4085, f"𝛼 = {power(best)}", ha="left")
    chance(right)
    right.set_title("cross-entropy at the chosen 𝑛, 𝜀 and 𝛼")
    right.set_xlabel("epoch")
    return figure


def confusion() -> Figure:
    """Test images by true and predicted class, and the accuracy of each class."""
    counts = np.array(read("winner")["confusion"])
    right = np.eye(len(counts), dtype=bool)
    mistakes = np.where(right, 0, counts)
    figure = Figure((9 * CM, 5.9 * CM))
    axes = figure.subplots()
    cells(axes, mistakes, np.where(counts, counts, ""), right, 1.1 * mistakes.max())
    for true, accuracy in enumerate(counts.diagonal() / counts.sum(axis=1)):
        axes.text(11.3, true + 0.5, f"{accuracy:.1%}", size=7.5, **CENTRED)
    axes.text(11.3, -0.25, "correct", size=8, ha="center", va="bottom", weight="bold")
    axes.xaxis.tick_top()
    upright = {"rotation": 90, "ha": "center", "va": "bottom"}
    axes.set_xticks(np.arange(10) + 0.5, CLASSES, size=8, **upright)
    axes.set_yticks(np.arange(10) + 0.5, CLASSES)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.tick_params(pad=2.5)
    axes.set_xlim(0, 12)
    axes.invert_yaxis()
    return figure


def weights() -> Figure:
    """The ten rows of W as images: orange raises the score of the class, blue lowers it."""
    W, figure = arrays("model")["W"], Figure((8.9 * CM, 5.9 * CM), layout="none")
    bound = np.quantile(np.abs(W), 0.995)
    for k, name in enumerate(CLASSES):
        row, column = divmod(k, 5)
        axes = figure.add_axes((0.01 + 0.2 * column, 0.61 - 0.39 * row, 0.18, 0.27))
        shown = image(axes, W[k], SIGNED, -bound, bound)
        axes.set_title(name, loc="center", size=7.5, pad=4)
    bar = figure.add_axes((0.3, 0.12, 0.6, 0.03))
    figure.text(0.27, 0.135, "weight", size=7.5, ha="right", va="center")
    ticks = [-0.5, 0, 0.5]  # a few weights are beyond the ends
    figure.colorbar(shown, cax=bar, orientation="horizontal", ticks=ticks, extend="both")
    bar.set_xticklabels(["−0.5", "0", "+0.5"], size=7.5)
    bar.tick_params(width=0.5, length=2)
    return figure


def image(axes, pixels, shades, low: float, high: float):
    squares = np.kron(pixels.reshape(28, 28), np.ones((4, 4)))  # sharp wherever they are shown
    shown = axes.imshow(squares, shades, vmin=low, vmax=high, interpolation="none")
    axes.set(xticks=[], yticks=[])
    bare(axes)
    return shown


# --- Problem 4 ------------------------------------------------------------------------------------


LOOKS = {"opposite": ("(i)", BLUE), "apart": ("(ii)", ORANGE)}  # the answers to 4(c)


def plane() -> Figure:
    """The examples (i) and (ii), the segment between them, its point h, and the path of w."""
    pairs, paths = read("logistic")["pairs"], arrays("logistic")
    figure = Figure((7 * CM, 3.3 * CM), layout="none")
    for i, (name, (title, colour)) in enumerate(LOOKS.items()):
        examples, h = np.array(pairs[name]["examples"]), np.array(pairs[name]["h"])
        path = np.vstack([pairs[name]["start"], paths[name][:, :2]])
        axes = figure.add_axes((i / 2, 0, 0.49, 1), aspect="equal")
        edge = -2 if name == "opposite" else -0.9
        axes.set(xlim=(edge, edge + 4.7), ylim=(-1.5, 3.15))
        axes.axis("off")
        axes.text(edge, 2.7, title, weight="bold")
        axes.plot(0, 0, "k+", markersize=7, markeredgewidth=0.6)
        axes.plot(*examples.T, "ko-", markersize=3.5, linewidth=0.8)
        for x1, x2 in examples:
            # (1, 1) and (1, 2) have free space on their left, the others on their right.
            x, align = (x1 - 0.25, "right") if x1 == 1 else (x1 + 0.25, "left")
            axes.text(x, x2, f"({x1}, {x2})".replace("-", "−"), ha=align, va="center")
        inside = path[(path < 2.5).all(axis=1)]
        axes.plot(*inside.T, color=colour, linewidth=1.4)
        axes.plot(*path[0], "s", color=colour, markersize=3.5)
        if name == "apart":  # w goes on for ever
            arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.4}
            axes.annotate("", xy=(2.75, 2.75), xytext=inside[-1], arrowprops=arrow)
        else:
            axes.plot(*path[-1], "o", color=colour, mfc="white", markersize=4.5)
        axes.plot(*h, "D", color="black", mfc="white", markersize=3.5)
        if h.any():
            axes.text(h[0] + 0.3, h[1], "ℎ", va="center")
            axes.text(-0.2, -0.3, "0", ha="right", va="center")
        else:
            axes.text(-0.3, 0.1, "ℎ = 0", ha="right", va="center")
    return figure


def logistic() -> Figure:
    """The loss, b and the length of w by step, for (i) and (ii), and the law dashed.

    For b and w the law gives only the leading term: there, the dashed lines go through the last
    point.
    """
    facts, paths = read("logistic"), arrays("logistic")
    t, figure = paths["t"], Figure((WIDTH, 3.1 * CM))
    panels = figure.subplots(1, 3)
    for name, (text, colour) in LOOKS.items():
        w, b, loss = paths[name][:, :2], paths[name][:, 2], paths[name][:, 3]
        length, h = np.linalg.norm(w, axis=1), np.array(facts["pairs"][name]["h"])
        slope = np.log(t / t[-1]) / (1 + h @ h)
        law = (
            1 / (facts["learning_rate"] * (1 + h @ h) * t),
            b[-1] + slope,
            length[-1] + np.linalg.norm(h) * slope,
        )
        for axes, values, expected in zip(panels, (loss, b, length), law):
            axes.plot(t, values, color=colour)
            axes.plot(t, expected, color="black", linewidth=0.7, dashes=(3, 3))
            side = "bottom" if name == "opposite" else "top"
            axes.text(1.5 * t[-1], values[-1], text, color=colour, va=side)
    for axes, title in zip(panels, ("loss 𝑓_{𝑡}", "𝑏_{𝑡}", "length of 𝑤_{𝑡}")):
        axes.set(xscale="log", xlabel="step 𝑡", xlim=(1, t[-1]), ylim=(0, None), title=title)
        axes.set_xticks([1, 1e2, 1e4, 1e6], map(power, (1, 1e2, 1e4, 1e6)))
    panels[0].set(yscale="log", ylim=(1e-8, 2))
    panels[0].set_yticks([1, 1e-3, 1e-6], map(power, (1, 1e-3, 1e-6)))
    for axes in panels:
        axes.minorticks_off()
    return figure


# --- The picture in the README --------------------------------------------------------------------

CARD = {
    "font.family": "DejaVu Sans",  # comes with Matplotlib
    "font.size": 17,
    "axes.titlesize": 19,
    "legend.fontsize": 14,
    "axes.linewidth": 1,
    "lines.linewidth": 2.5,
    "xtick.major.width": 1,
    "ytick.major.width": 1,
    "svg.fonttype": "path",
}


def card() -> Figure:
    """The one curve of the search, and the weights of each class, all on white."""
    W, alphas = arrays("model")["W"], read("results")["grid"]["alphas"]
    figure = Figure((10, 4.5), layout="none", facecolor="white")
    axes = figure.add_axes((0.07, 0.16, 0.44, 0.68))
    one_curve(axes, marksize=8, legend="batch size")
    axes.set_xticks([1 / 6400, 1 / 1600, 1 / 400], ["1/6400", "1/1600", "1/400"])
    axes.set_xlabel("learning rate / batch size")
    axes.set_yticks([0.40, 0.42, 0.44])
    figure.text(0.01, 0.91, "Lowest validation cross-entropy", size=17)
    axes.text(1 / 4300, 0.4325, f"α = {alphas[-1]}", color="#777777")
    axes.text(1 / 15500, 0.405, f"α = {read('ratios')['alpha']}")
    figure.text(0.55, 0.91, "Weights of each class", size=17)
    bound = np.quantile(np.abs(W), 0.995)
    for k, name in enumerate(CLASSES):
        row, column = divmod(k, 4)
        left, low = 0.55 + 0.113 * column, 0.655 - 0.29 * row
        image(figure.add_axes((left, low, 0.0945, 0.21)), W[k], SIGNED, -bound, bound)
        figure.text(left + 0.047, low - 0.05, name, ha="center", size=12.5)
    figure.text(0.785, 0.21, "bright pixels on", size=13)
    figure.text(0.785, 0.155, "orange: for the class,", size=13, color=ORANGE)
    figure.text(0.785, 0.1, "blue: against it", size=13, color=BLUE)
    return figure


# --- The document ---------------------------------------------------------------------------------

FIGURES = (xor, search, confusion, weights, plane, logistic)


def document() -> dict:
    """What Typst needs to set the report: the source, and the figures."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # What Matplotlib misses in the fonts of STYLE is there when Typst sets them.
        logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", message=".*cmr10")
        inputs = {figure.__name__: svg(figure()) for figure in FIGURES}
    inputs["classes"] = NAMES
    source = ROOT / "report" / "report.typ"
    return {
        "input": source,
        "root": ROOT / "report",
        "sys_inputs": inputs,
        "ignore_system_fonts": True,
    }


def build(folder: Path) -> None:
    """Write report.pdf, as PDF/UA-1, and report/readme.svg into `folder`.

    PDF/UA asks for a text for each figure and formula.
    """
    if read("choice")["grid"] != read("results")["grid"]:
        raise SystemExit("results.json is of another grid than the rest: run report.experiments")
    typst.compile(output=folder / "report.pdf", pdf_standards="ua-1", **document())
    with matplotlib.rc_context(STYLE | CARD):
        card().savefig(folder / "report" / "readme.svg", metadata={"Date": None})


if __name__ == "__main__":
    build(ROOT)
    print("Wrote report.pdf and report/readme.svg")
