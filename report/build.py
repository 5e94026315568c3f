"""Make report.pdf from report/results: the same bytes for the same results.

    pip install -r report/requirements.txt
    python report/build.py

The figures are drawn here as SVG and handed to report.typ as they are; Typst sets their lettering
in the document's own font. Every other number of the report is read by report.typ itself.
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
WIDTH = 16.8 * CM  # of the text
NAMES = "T-shirt/top, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag, ankle boot"
CLASSES = NAMES.split(", ")
# Two colours that no kind of colour blindness confuses, one dark and one light in black and white.
BLUE, ORANGE, GREY = "#00508c", "#a85000", "#666666"
SHADES = LinearSegmentedColormap.from_list("shades", ["white", "#c4dbec", "#6fa8d6"])
SIGNED = LinearSegmentedColormap.from_list("signed", ["#d97b00", "white", "#00355f"])
CENTRED = {"ha": "center", "va": "center_baseline", "size": 7}
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
    return json.loads((RESULTS / f"{name}.json").read_text())


def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(RESULTS / f"{name}.npz") as file:
        return dict(file)


def power(value: float) -> str:
    """0, 10^{-5} or 3 × 10^{-4}; svg() makes small what is in the braces."""
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:e}".split("e")
    mantissa = "" if float(mantissa) == 1 else f"{float(mantissa):g} × "
    return f"{mantissa}10^{{{int(exponent)}}}".replace("-", "−")


def svg(figure: Figure) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    script = r'<tspan style="font-size: 5.5px" dy="{}">\1</tspan>'
    raised = re.sub(r"\^\{(.*?)\}", script.format(-2.7), file.getvalue())
    return re.sub(r"_\{(.*?)\}", script.format(1.5), raised)


def bare(axes) -> None:
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def cells(axes, values, texts, bold, shades, low: float, high: float) -> None:
    """A heat map of `values` with a text in each cell, all of one shape, the first row lowest."""
    axes.pcolormesh(values, cmap=shades, vmin=low, vmax=high, ec="white", lw=1)
    for (row, column), text in np.ndenumerate(texts):
        weight = "bold" if bold[row, column] else "normal"
        axes.text(column + 0.5, row + 0.5, text, weight=weight, **CENTRED)
    bare(axes)


# --- Problem 1 ------------------------------------------------------------------------------------


def xor() -> Figure:
    """The four points, drawn as heights over the square, and the flat best fit between them."""
    figure = Figure((6.2 * CM, 5 * CM), layout="none")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-0.42, 2), ylim=(-0.35, 1.6), aspect="equal")
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
    return figure


# --- Problem 3 ------------------------------------------------------------------------------------


def lowest() -> tuple[np.ndarray, np.ndarray]:
    """Each model's lowest validation cross-entropy, and whether that is at its last epoch."""
    curves = arrays("curves")["cross_entropy"]
    return curves.min(axis=-1), curves.argmin(axis=-1) == curves.shape[-1] - 1


def heat() -> Figure:
    """Each model's lowest validation cross-entropy: a map for each minibatch size."""
    grid, (values, unfinished) = read("results")["grid"], lowest()
    low, high, chosen = values.min(), 1.2 * np.ptp(values) + values.min(), values == values.min()
    texts = np.char.lstrip(np.char.mod("%.4f", values), "0") + np.where(unfinished, "*", "")
    figure = Figure((WIDTH, 4.2 * CM))
    figure.get_layout_engine().set(w_pad=0.02, wspace=0)
    panels = figure.subplots(1, len(values), sharey=True)
    for i, axes in enumerate(panels):
        cells(axes, values[i], texts[i], chosen[i], SHADES.reversed(), low, high)
        for j, k in np.argwhere(chosen[i]):
            axes.fill([k, k + 1, k + 1, k], [j, j, j + 1, j + 1], fc="none", ec=ORANGE, lw=2)
        axes.set_title(f"minibatches of {grid['batch_sizes'][i]}", loc="center")
        axes.set_xticks(np.arange(len(grid["alphas"])) + 0.5, map(power, grid["alphas"]))
        axes.set_yticks(np.arange(len(grid["learning_rates"])) + 0.5, grid["learning_rates"])
        axes.set_xlabel("regularisation 𝛼")
    panels[0].set_ylabel("learning rate 𝜀")
    return figure


def curves() -> Figure:
    """Training and validation cross-entropy of the chosen model by epoch, the chosen one marked."""
    best, values = read("results")["best"]["epochs"], read("winner")["curves"]
    epochs = np.arange(1, len(values["training"]) + 1)
    figure = Figure((6.6 * CM, 5.8 * CM))
    axes = figure.subplots()
    axes.plot(epochs, values["training"], color=GREY, dashes=(4, 1.5))
    axes.plot(epochs, values["validation"], color=BLUE)
    ends = values["validation"][best - 1], axes.get_ylim()[1] * 0.9
    stop = {"marker": "o", "markevery": [0], "markersize": 5, "linewidth": 0.8}
    axes.plot([best, best], ends, color=ORANGE, **stop)
    axes.text(best, ends[1], f"epoch {best}", color=ORANGE, ha="center", va="bottom")
    axes.text(14, 0.46, "validation", color=BLUE)
    axes.text(24, 0.37, "training", color=GREY, ha="right")
    axes.set(xlabel="epoch", xlim=(0, len(epochs)), title="cross-entropy")
    return figure


def confusion() -> Figure:
    """Test images by true and predicted class, and the accuracy of each class."""
    counts = np.array(read("winner")["confusion"])
    right = np.eye(len(counts), dtype=bool)
    mistakes = np.where(right, 0, counts)
    figure = Figure((9.8 * CM, 5.8 * CM))
    axes = figure.subplots()
    cells(axes, mistakes, np.where(counts, counts, ""), right, SHADES, 0, mistakes.max())
    for true, accuracy in enumerate(counts.diagonal() / counts.sum(axis=1)):
        axes.text(10.8, true + 0.5, f"{accuracy:.1%}", **CENTRED)
    slanted = {"rotation": 40, "rotation_mode": "anchor", "ha": "left", "va": "baseline"}
    axes.xaxis.tick_top()
    axes.set_xticks([*np.arange(10) + 0.5, 10.9], [*CLASSES, "correct"], **slanted)
    axes.set_yticks(np.arange(10) + 0.5, CLASSES)
    axes.tick_params(pad=1)
    axes.invert_yaxis()
    return figure


def weights() -> Figure:
    """The ten columns of W as images: blue speaks for the class, orange against it."""
    W, figure = arrays("model")["W"], Figure((WIDTH, 2.3 * CM))
    bound = np.quantile(np.abs(W), 0.995)
    for axes, column, name in zip(figure.subplots(1, 10), W.T, CLASSES, strict=True):
        image(axes, column, SIGNED, -bound, bound)
        axes.set_title(name, loc="center")
    return figure


def image(axes, pixels, shades, low: float, high: float) -> None:
    squares = np.kron(pixels.reshape(28, 28), np.ones((8, 8)))  # sharp wherever they are shown
    axes.imshow(squares, shades, vmin=low, vmax=high, interpolation="none")
    axes.set(xticks=[], yticks=[])
    bare(axes)


def mistakes() -> Figure:
    """The test images that the model mistakes with the greatest confidence."""
    facts, images = read("winner")["mistakes"], arrays("winner")["mistakes"]
    figure = Figure((WIDTH, 3.3 * CM))
    for i, axes in enumerate(figure.subplots(1, len(images))):
        image(axes, images[i], "gray_r", 0, 255)
        axes.set_title(CLASSES[facts["true"][i]], loc="center")
        axes.set_xlabel(f"“{CLASSES[facts['predicted'][i]]}”", color=ORANGE, labelpad=2)
        axes.text(14 * 8, 38 * 8, f"{facts['probability'][i]:.1%}", color=ORANGE, ha="center")
    return figure


# --- Problem 4 ------------------------------------------------------------------------------------


LOOKS = {  # each pair's name, colour, width of line, and on which side of its end it is named
    "unequal": ("(i′)", "#6e6e6e", 2.8, "top"),
    "opposite": ("(i)", BLUE, 1.2, "bottom"),
    "apart": ("(ii)", ORANGE, 1.2, "center"),
}


def logistic() -> Figure:
    """The loss, b and the distance of w from its limit, with what the proofs predict dashed."""
    facts, paths = read("logistic"), arrays("logistic")
    t, figure = paths["t"], Figure((WIDTH, 3.9 * CM))
    panels, late, time = figure.subplots(1, 3), t >= 30, facts["learning_rate"] * t
    for name, (text, colour, width, side) in LOOKS.items():
        w, (b, loss) = paths[name][:, :2], paths[name][:, 2:].T
        rho, ratio, limit, exponent = predicted(facts["pairs"][name])
        lines = [(loss, 1 / (rho * time)), (rho * b - np.log(time), np.log(ratio) + 0 * t)]
        if limit is not None:
            distance = np.linalg.norm(w - limit, axis=1)
            lines.append((distance, distance[-1] * (t / t[-1]) ** exponent))
        for axes, (values, expected) in zip(panels, lines):
            axes.plot(t, values, color=colour, linewidth=width)
            axes.plot(t[late], expected[late], color="black", linewidth=0.8, dashes=(2.5, 2.5))
            if axes is not panels[0]:
                axes.text(1.3 * t[-1], values[-1], text, color=colour, va=side)
    titles = "loss", "𝑎_{𝑡} − log 𝜀𝑡", "distance of 𝑤_{𝑡} from its limit"
    for axes, title, lowest in zip(panels, titles, (1e-6, None, 1e-12)):
        axes.set(xscale="log", xlabel="step 𝑡", xlim=(1, t[-1]), title=title, ymargin=0.15)
        axes.set_xticks([1, 1e2, 1e4, 1e6], map(power, (1, 1e2, 1e4, 1e6)))
        if lowest:
            ticks = lowest ** (np.arange(4) / 3)
            axes.set_yscale("log")
            axes.set_yticks(ticks, map(power, ticks))
        axes.minorticks_off()
    return figure


def plane() -> Figure:
    """The examples of (i′) and (ii), the segment between them, and the path of w."""
    facts, paths = read("logistic")["pairs"], arrays("logistic")
    figure = Figure((6.9 * CM, 3.2 * CM), layout="none")
    for i, name in enumerate(("unequal", "apart")):
        examples, limit = np.array(facts[name]["examples"]), predicted(facts[name])[2]
        path = np.vstack([facts[name]["start"], paths[name][:, :2]])
        axes = figure.add_axes((i / 2, 0, 0.49, 1), xlim=(-0.6, 3), ylim=(-0.75, 2.65))
        axes.axis("off")
        axes.text(-0.4, 2.3, LOOKS[name][0])
        axes.plot(*path.T, color=BLUE)
        axes.plot(*examples.T, "ko-", 0, 0, "k+", markersize=4, linewidth=0.8)
        axes.text(-0.1, 0.1, "0", ha="right")
        if limit is None:
            axes.plot(*examples.mean(axis=0), ".", color=ORANGE)  # nearest to 0, by symmetry
            axes.text(1.75, 1.42, "ℎ", color=ORANGE)
        else:
            axes.plot(*limit, "o", markerfacecolor="white", color=BLUE, markersize=5)
        for (x1, x2), side in zip(examples, ((-0.1, 0.1, "right"), (0.1, -0.35, "left"))):
            axes.text(x1 + side[0], x2 + side[1], f"({x1:g}, {x2:g})".replace("-", "−"), ha=side[2])
    return figure


def predicted(pair: dict) -> tuple:
    """By the proofs of problem 4: rho, where a = rho b; lambda / epsilon; and, if w converges, its
    limit and the exponent of t in its distance from there."""
    (first, second), start = np.array(pair["examples"], float), np.array(pair["start"], float)
    if first @ second > 0:  # (ii): both logits are rho b
        middle = (first + second) / 2
        return 1 + middle @ middle, 1 + middle @ middle, None, None
    q, mu = np.linalg.norm(second) / np.linalg.norm(first), -first @ second
    s = -np.log(q) / (1 + q)
    limit = start + (s - first @ start) / (first @ first) * first
    return 1, (np.exp(-s) + np.exp(q * s)) / 2, limit, -mu if q == 1 else -min(mu, 1)


# --- The document ---------------------------------------------------------------------------------

FIGURES = (xor, heat, curves, confusion, weights, mistakes, plane, logistic)


def document() -> dict:
    """What Typst needs to set the report: the source, and the figures."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # What Matplotlib misses in the fonts of STYLE is there when Typst sets them.
        logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", message=".*cmr10")
        inputs = {figure.__name__: svg(figure()) for figure in FIGURES}
    values, unfinished = lowest()
    inputs |= {"classes": NAMES, "unfinished": str(unfinished.sum())}
    inputs["lowest"] = json.dumps(values.min(axis=(0, 1)).tolist())  # for each alpha
    rates = np.array(read("results")["grid"]["learning_rates"])
    inputs["best_rates"] = json.dumps(rates[values.min(axis=2).argmin(axis=1)].tolist())
    source = HERE / "report.typ"
    return {"input": source, "root": HERE, "sys_inputs": inputs, "ignore_system_fonts": True}


def build(output: Path) -> None:
    """Write the report as PDF/UA-1, which asks for a text for each figure and formula."""
    typst.compile(output=output, pdf_standards="ua-1", **document())


if __name__ == "__main__":
    build(HERE.parent / "report.pdf")
