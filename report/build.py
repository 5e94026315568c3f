"""Build report.pdf and report/readme.svg from report/results: the same bytes for the same results.

    pip install -r report/requirements.txt
    python -m report.build

The figures are drawn here as SVG and handed to report.typ as they are; Typst sets their lettering
in the document's own font. Every other number in the report is read by report.typ itself.
"""

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
CM = 1 / 2.54  # in inches
WIDTH = 14 * CM  # of the text
NAMES = "T-shirt/top, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag, ankle boot"
CLASSES = NAMES.split(", ")
# Two colours that no kind of colour blindness confuses, one dark and one light in black and white.
BLUE, ORANGE, GREY = "#00508c", "#a85000", "#666666"
SHADES = LinearSegmentedColormap.from_list("shades", ["white", "#c4dbec", "#6fa8d6"])
SIGNED = LinearSegmentedColormap.from_list("signed", ["#d97b00", "white", "#00355f"])
CENTRED = {"ha": "center", "va": "center_baseline"}
STYLE = {
    # Typst has the first font; Matplotlib, which only measures, has the second, of equal widths.
    "font.family": ["New Computer Modern", "cmr10"],
    "font.size": 8,
    "axes.titlesize": 8,
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


def read(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


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
    """The figure as SVG, with ^{…} raised and _{…} lowered.

    This is done in the SVG because Matplotlib's own mathematics would bring its own fonts.
    """
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    for mark, dy in ((r"\^", -2.7), ("_", 1.5)):
        script = rf'<tspan style="font-size: 5.5px" dy="{dy}">\1</tspan>'
        back = rf'<tspan dy="{-dy}">\2</tspan>'
        text = re.sub(mark + r"\{([^}]*)\}([^<])", script + back, text)  # more text follows
        text = re.sub(mark + r"\{([^}]*)\}", script, text)  # nothing follows
    return text


def bare(axes) -> None:
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def cells(axes, values, texts, bold, high: float, size: float = 7) -> None:
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
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-0.8, 1.98), ylim=(-0.25, 1.5), aspect="equal")
    axes.axis("off")

    def at(x1, x2, height):  # an oblique projection
        return x1 + 0.45 * x2, 0.33 * x2 + height

    corners = [(0, 0), (1, 0), (1, 1), (0, 1)]
    floor, plane = (np.array([at(*corner, height) for corner in corners]) for height in (0, 0.5))
    axes.fill(*floor.T, facecolor="none", edgecolor=GREY, linewidth=0.5)
    axes.fill(*plane.T, facecolor=BLUE, alpha=0.18, linewidth=0)
    axes.text(0.62, 0.63, "ŷ", color=BLUE, ha="right", size=9, style="italic")
    axes.text(0.66, 0.63, "= ½", color=BLUE, ha="left", size=9)
    for x1, x2 in corners:
        y = x1 ^ x2
        (x, low), (_, high) = at(x1, x2, min(y, 0.5)), at(x1, x2, max(y, 0.5))
        axes.plot([x, x], [low, high], color=ORANGE, linewidth=1.4)
        sign = "+½" if y else "−½"
        axes.text(x + 0.04, (low + high) / 2, sign, color=ORANGE, va="center", size=9)
        axes.plot(*at(x1, x2, 0), "x", color=GREY, ms=4)  # where the point stands on the floor
        axes.plot(*at(x1, x2, y), "o", color="black" if y else "white", mec="black", ms=4.5)
        side, align = (0.07, "left") if x1 else (-0.07, "right")
        axes.text(x + side, at(x1, x2, y)[1], f"({x1}, {x2})", ha=align, va="center")
    axes.text(0.5, -0.06, "𝑥_{1}", color=GREY, ha="center", va="top")
    axes.text(1.3, 0.1, "𝑥_{2}", color=GREY, ha="left", va="center")
    axes.plot([-0.55, -0.55], [0, 1], "_-", color=GREY, linewidth=0.5)  # the axis of the heights
    for height in (0, 1):
        axes.text(-0.6, height, str(height), color=GREY, ha="right", va="center")
    axes.text(-0.55, 1.12, "𝑦", color=GREY, ha="center")
    return figure


# --- Problem 3 ------------------------------------------------------------------------------------


def heat() -> Figure:
    """Each model's lowest validation cross-entropy: a map for each minibatch size."""
    grid, values = read("results")["grid"], arrays("curves")["cross_entropy"]
    lowest, last = values.min(axis=-1), grid["epochs"] - read("choice")["last_epochs"]
    stars = np.where(values.argmin(axis=-1) >= last, "*", "")
    texts = np.char.add(np.char.lstrip(np.char.mod("%.4f", lowest), "0"), stars)
    above, chosen = lowest - lowest.min(), lowest == lowest.min()
    figure = Figure((WIDTH, 3.9 * CM))
    figure.get_layout_engine().set(w_pad=0.02, wspace=0)
    panels = figure.subplots(1, len(lowest), sharey=True)
    for i, axes in enumerate(panels):
        cells(axes, above[i], texts[i], chosen[i], 1.2 * above.max(), size=6.3)
        for j, k in np.argwhere(chosen[i]):
            axes.fill([k, k + 1, k + 1, k], [j, j, j + 1, j + 1], fc="none", ec=ORANGE, lw=2)
        axes.set_title(f"minibatches of {grid['batch_sizes'][i]}", loc="center")
        axes.set_xticks(np.arange(len(grid["alphas"])) + 0.5, map(power, grid["alphas"]))
        axes.set_yticks(np.arange(len(grid["learning_rates"])) + 0.5, grid["learning_rates"])
        axes.set_xlabel("regularisation 𝛼")
    panels[0].set_ylabel("learning rate 𝜀")
    return figure


def curves() -> Figure:
    """The chosen model's cross-entropy by epoch among that of all models, and its lowest point."""
    best, training = read("results")["best"]["epochs"], read("winner")["curves"]["training"]
    everything = arrays("curves")["cross_entropy"]
    lowest, epochs = everything.min(), np.arange(1, everything.shape[-1] + 1)
    chosen = everything[np.unravel_index(everything.argmin(), everything.shape)[:-1]]
    figure = Figure((WIDTH, 4.6 * CM))
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for axes in (left, right):
        axes.plot(epochs, everything.reshape(-1, len(epochs)).T, color="#c4c4c4", linewidth=0.4)
        axes.plot(epochs, chosen, color=BLUE)
        axes.set_xlabel("epoch")
    left.plot(epochs, training, color="black", linewidth=0.9, dashes=(3, 1.5))
    left.plot(best, lowest, "o", color=ORANGE, markersize=4)
    left.set(xlim=(0, len(epochs)), ylim=(min(training) - 0.01, lowest + 0.07))
    left.set_title("cross-entropy")
    near = read("choice")["neighbours"]
    right.plot(near["epochs"], near["cross_entropy"], "o", color=BLUE, markersize=3)
    right.plot(best, lowest, "o", color=ORANGE, markersize=5)
    # The values named in the text, each where the blue line is not.
    for step, align, up in ((-1, "right", -0.003), (0, "center", -0.003), (1, "left", 0.003)):
        value = near["cross_entropy"][near["epochs"].index(best + step)]
        place = {"ha": align, "va": "center", "size": 7.5, "color": BLUE if step else ORANGE}
        label = right.text(best + 1.2 * step, value + up, f"{value:.4f}", **place)
        label.set_bbox({"facecolor": "white", "linewidth": 0, "pad": 1})
    right.set(xlim=(near["epochs"][0] - 1, near["epochs"][-1] + 1))
    right.set(ylim=(lowest - 0.006, max(near["cross_entropy"]) + 0.004), xticks=near["epochs"])
    right.set_title("validation near the chosen epoch")
    return figure


def confusion() -> Figure:
    """Test images by true and predicted class, and the accuracy of each class."""
    counts = np.array(read("winner")["confusion"])
    right = np.eye(len(counts), dtype=bool)
    mistakes = np.where(right, 0, counts)
    figure = Figure((9 * CM, 5.4 * CM))
    axes = figure.subplots()
    cells(axes, mistakes, np.where(counts, counts, ""), right, 1.1 * mistakes.max())
    for true, accuracy in enumerate(counts.diagonal() / counts.sum(axis=1)):
        axes.text(10.9, true + 0.5, f"{accuracy:.1%}", size=7, **CENTRED)
    slanted = {"rotation": 55, "rotation_mode": "anchor", "ha": "left", "va": "baseline"}
    axes.xaxis.tick_top()
    axes.set_xticks([*np.arange(10) + 0.6, 11], [*CLASSES, "correct"], **slanted)
    axes.set_yticks(np.arange(10) + 0.5, CLASSES)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.tick_params(pad=1)
    axes.invert_yaxis()
    return figure


def weights() -> Figure:
    """The ten columns of W as images: blue raises the score of the class, orange lowers it."""
    W, figure = arrays("model")["W"], Figure((4.8 * CM, 5.4 * CM), layout="none")
    bound = np.quantile(np.abs(W), 0.995)
    for k, name in enumerate(CLASSES):
        row, column = divmod(k, 3)
        axes = figure.add_axes((column / 3, 0.76 - row / 4, 0.32, 0.185))
        image(axes, W[:, k], SIGNED, -bound, bound)
        axes.set_title(name, loc="center", size=7, pad=1.5)
    return figure


def image(axes, pixels, shades, low: float, high: float) -> None:
    squares = np.kron(pixels.reshape(28, 28), np.ones((4, 4)))  # sharp wherever they are shown
    axes.imshow(squares, shades, vmin=low, vmax=high, interpolation="none")
    axes.set(xticks=[], yticks=[])
    bare(axes)


# --- Problem 4 ------------------------------------------------------------------------------------


LOOKS = {"opposite": ("(i)", BLUE), "apart": ("(ii)", ORANGE)}  # the answers to 4(c)


def plane() -> Figure:
    """The examples (i) and (ii), the segment between them, its point h, and the path of w."""
    pairs, paths = read("logistic")["pairs"], arrays("logistic")
    figure = Figure((7 * CM, 3.4 * CM), layout="none")
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
            x, align = (x1 - 0.2, "right") if x1 == 1 else (x1 + 0.2, "left")
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
    t, figure = paths["t"], Figure((WIDTH, 3.4 * CM))
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
    for axes, title in zip(panels, ("(a) loss 𝑓_{𝑡}", "(b) 𝑏_{𝑡}", "(c) length of 𝑤_{𝑡}")):
        axes.set(xscale="log", xlabel="step 𝑡", xlim=(1, t[-1]), ylim=(0, None), title=title)
        axes.set_xticks([1, 1e2, 1e4, 1e6], map(power, (1, 1e2, 1e4, 1e6)))
    panels[0].set(yscale="log", ylim=(1e-7, 2))
    panels[0].set_yticks([1, 1e-2, 1e-4, 1e-6], map(power, (1, 1e-2, 1e-4, 1e-6)))
    for axes in panels:
        axes.minorticks_off()
    return figure


# --- The picture in the README --------------------------------------------------------------------

CARD = {
    "font.family": "DejaVu Sans",  # comes with Matplotlib
    "font.size": 17,
    "axes.titlesize": 19,
    "axes.linewidth": 1,
    "lines.linewidth": 2.5,
    "xtick.major.width": 1,
    "ytick.major.width": 1,
    "svg.fonttype": "path",
}


def card() -> Figure:
    """The learning curve, and the weights and a test image of each class, all on white."""
    best, winner, W = read("results")["best"]["epochs"], read("winner"), arrays("model")["W"]
    figure = Figure((10, 8.1), layout="none", facecolor="white")
    axes = figure.add_axes((0.08, 0.68, 0.745, 0.25))
    epochs = np.arange(1, len(winner["curves"]["training"]) + 1)
    for part, colour in (("validation", BLUE), ("training", GREY)):
        values = winner["curves"][part]
        axes.plot(epochs, values, color=colour)
        axes.text(epochs[-1] + 1, values[-1], part, color=colour, va="center")
    lowest = winner["curves"]["validation"][best - 1]
    axes.plot(best, lowest, "o", color=ORANGE, markersize=9)
    axes.annotate(
        f"chosen: epoch {best}",
        (best, lowest),
        (best, lowest + 0.065),
        color=ORANGE,
        ha="center",
        arrowprops={"arrowstyle": "-", "color": ORANGE, "shrinkB": 8},
    )
    axes.set(xlim=(1, epochs[-1]), xlabel="epoch", title="Cross-entropy of the chosen model")
    figure.text(0.02, 0.525, "Weights of each class (ink on blue speaks for it, on orange", size=19)
    figure.text(0.02, 0.49, "against it), and a test image of it with the prediction", size=19)
    examples, images = winner["examples"], arrays("winner")["examples"]
    bound = np.quantile(np.abs(W), 0.995)
    for k, name in enumerate(CLASSES):
        row, column = divmod(k, 5)
        left, low = 0.02 + 0.196 * column, 0.29 - 0.235 * row
        axes = figure.add_axes((left, low, 0.09, 0.111))
        image(axes, W[:, k], SIGNED, -bound, bound)
        axes = figure.add_axes((left + 0.094, low, 0.09, 0.111))
        image(axes, images[k], "gray_r", 0, 255)
        figure.text(left + 0.09, low + 0.13, name, ha="center", weight="bold")
        predicted, probability = examples["predicted"][k], examples["probability"][k]
        verdict = f"{CLASSES[predicted]} {int(100 * probability)}%"
        colour = BLUE if predicted == k else ORANGE
        figure.text(left + 0.09, low - 0.035, verdict, ha="center", color=colour)
    return figure


# --- The document ---------------------------------------------------------------------------------

FIGURES = (xor, heat, curves, confusion, weights, plane, logistic)


def document() -> dict:
    """What Typst needs to set the report: the source, and the figures."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # What Matplotlib misses in the fonts of STYLE is there when Typst sets them.
        logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", message=".*cmr10")
        inputs = {figure.__name__: svg(figure()) for figure in FIGURES}
    inputs["classes"] = NAMES
    source = HERE / "report.typ"
    return {"input": source, "root": HERE, "sys_inputs": inputs, "ignore_system_fonts": True}


def build(folder: Path) -> None:
    """Write report.pdf, as PDF/UA-1, and report/readme.svg into `folder`.

    PDF/UA asks for a text for each figure and formula.
    """
    typst.compile(output=folder / "report.pdf", pdf_standards="ua-1", **document())
    with matplotlib.rc_context(STYLE | CARD):
        card().savefig(folder / "report" / "readme.svg", metadata={"Date": None})


if __name__ == "__main__":
    build(HERE.parent)
