"""Pictures of runs: the accuracy matrix, accuracy over the stream, and stability against plasticity.

Every figure is drawn without pyplot, so nothing is global and nothing opens a window; the same numbers give
the same bytes.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from clgym.events import Array
from clgym.formulary import mean
from clgym.scorer import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Twelve hues that are dark enough to be read as text on white, neighbours far apart.
COLOURS = (
    "#1f5fa8",
    "#c8501e",
    "#2b7a3d",
    "#b0285e",
    "#6a4fa3",
    "#8a6a00",
    "#00808a",
    "#8c3b2a",
    "#4d6b1f",
    "#a6389b",
    "#3f4a5a",
    "#d1342f",
)
LARGEST_ANNOTATED = 30  # tasks beyond which numbers in cells would be too small to read
LARGEST_LABELLED = 24  # tasks beyond which names at the ends of lines would cover one another
BLACK_FROM = 0.44  # accuracy whose colour contrasts as well with black as with white (WCAG, 4.6 to 1)


def matrix_figure(R: npt.NDArray[np.float64], tasks: Sequence[str], title: str = "") -> Figure:
    """Draw an accuracy matrix in percent; the outlined diagonal parts retention from zero-shot transfer.

    Args:
        R: Accuracy ``(T + 1, T)`` in [0, 1], row 0 zero-shot; a hatched cell is NaN, not measured.
        tasks: Names of the ``T`` tasks.
        title: Heading.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    count = len(tasks)
    cell = min(0.52, max(0.12, 9 / count))
    longest = max(len(name) for name in tasks)
    size = (cell * count + 0.085 * longest + 2.2, cell * (count + 1) + 0.055 * longest + 1.5)
    figure = Figure(figsize=(max(size[0], 3.4), size[1]), layout="compressed")
    axes = figure.add_subplot()
    axes.set_facecolor("#f2f2f2")
    image = axes.imshow(100 * R, cmap="viridis", vmin=0, vmax=100)
    for row, column in np.argwhere(np.isnan(R)):
        at = (column - 0.5, row - 0.5)
        axes.add_patch(Rectangle(at, 1, 1, fill=False, hatch="///", edgecolor="#cfcfcf", linewidth=0))
    if count <= LARGEST_ANNOTATED:
        _write_cells(axes, R, size=8 if count <= 17 else 6)
    _outline_diagonal(axes, count)
    axes.axhline(0.5, color="white", linewidth=4)
    shown = range(0, count, math.ceil(0.24 / cell))
    plain: dict[str, Any] = {"fontsize": 9, "parse_math": False}
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xticks(list(shown), [tasks[j] for j in shown], rotation=40, ha="left", rotation_mode="anchor", **plain)
    rows = ["zero-shot", *(f"after {tasks[j]}" for j in shown)]
    axes.set_yticks([0, *(j + 1 for j in shown)], rows, **plain)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xlabel("accuracy on, in %", fontsize=9)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=25, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8)
    if count > 1:
        note = "below the outlined cells: retention\nabove them: zero-shot transfer"
        figure.supxlabel(note, fontsize=8, color="#555555")
    head(figure, title)
    return figure


def head(figure: Figure, title: str) -> None:
    """Write a title over a figure, in as many lines as its width asks for."""
    if title:
        lines = textwrap.wrap(title, max(20, int(11.5 * figure.get_figwidth())))
        figure.suptitle("\n".join(lines), fontsize=10.5, parse_math=False)


def _write_cells(axes: Axes, R: npt.NDArray[np.float64], size: int) -> None:
    """Write every accuracy into its cell, white on dark and black on light."""
    for (row, column), accuracy in np.ndenumerate(R):
        missing = bool(np.isnan(accuracy))
        text = "\N{EN DASH}" if missing else f"{100 * accuracy:.1f}" if accuracy < 0.9995 else "100"
        colour = "#777777" if missing else "white" if accuracy < BLACK_FROM else "black"
        written = axes.text(column, row, text, ha="center", va="center", fontsize=size, color=colour)
        written.set_in_layout(False)  # within the cells anyway, and measuring so many texts takes long


def _outline_diagonal(axes: Axes, count: int) -> None:
    """Frame each task's accuracy right after learning it, in two tones: seen on dark cells and on light."""
    from matplotlib.patches import Rectangle

    for j in range(count):
        for colour, width in (("white", 2.4), ("black", 1.0)):
            frame = Rectangle((j - 0.46, j + 0.54), 0.92, 0.92, fill=False, ec=colour, lw=width, zorder=3)
            axes.add_patch(frame)


def matrix_image(report: Report) -> npt.NDArray[np.uint8]:
    """Return the accuracy matrix so far, uint8 ``(H, W, 3)``, for ``render_mode="rgb_array"``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = matrix_figure(report.R, report.tasks)
    figure.set_dpi(80)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.array(canvas.buffer_rgba(), dtype=np.uint8)[..., :3].copy()  # type: ignore[no-untyped-call]


def lines_figure(R: npt.NDArray[np.float64], tasks: Sequence[str], title: str = "") -> Figure:
    """Draw accuracy over the stream, one line per task: dotted before it is learned, solid from then on.

    Args:
        R: Accuracy ``(T + 1, T)`` in [0, 1], row 0 zero-shot; a line breaks where it is NaN. The thick line is the
            mean over all tasks, or, in rows where no task to come was measured, over those learned.
        tasks: Names of the ``T`` tasks.
        title: Heading.
    """
    from matplotlib.figure import Figure

    count = len(tasks)
    height = max(4.6, 0.2 * min(count, LARGEST_LABELLED) + 2)
    figure = Figure(figsize=(min(4.5 + 0.5 * count, 16), height), layout="constrained")
    axes = figure.add_subplot()
    percent, x = 100 * R, np.arange(count + 1)
    named = count <= LARGEST_LABELLED
    for j in range(count):
        colour, y = COLOURS[j % len(COLOURS)], percent[:, j]
        axes.plot(x[: j + 2], y[: j + 2], color=colour, linewidth=1.1 if named else 0.4, linestyle=(0, (1, 1.6)))
        axes.plot(x[j + 1 :], y[j + 1 :], color=colour, linewidth=1.6 if named else 0.8)
        axes.plot(j + 1, y[j + 1], "o", color=colour, markersize=5.5, markeredgecolor="white")
    # Where tasks are asked from their own end on, the mean is that of the tasks learned so far.
    means = np.array([mean(row[:t] if np.isnan(row[t:]).all() else row) for t, row in enumerate(percent)])
    axes.plot(x, means, color="black", linewidth=3, zorder=3)
    axes.set(xlim=(0, count + 0.05), ylim=(0, 102), yticks=range(0, 101, 20), ylabel="accuracy, %")
    end = int(np.flatnonzero(~np.isnan(R).all(axis=1)).max(initial=0))  # the last row that was measured
    shown = range(count if named else 0)
    colours = [*(COLOURS[j % len(COLOURS)] for j in shown), "black"]
    values = np.array([*(percent[end, j] for j in shown), means[end]])
    _label_ends(figure, axes, end, values, [*(tasks[j] for j in shown), "mean"], colours)
    ticks = [0, *range(1, count + 1, math.ceil(count / LARGEST_LABELLED))]
    names = ["zero-shot", *(tasks[t - 1] for t in ticks[1:])]
    axes.set_xticks(ticks, names, rotation=40, ha="right", rotation_mode="anchor", fontsize=9, parse_math=False)
    axes.set_xlabel("after learning", fontsize=9)
    axes.set_title("dotted: not yet learned    ● learned    solid: since then", fontsize=8, color="#555555", loc="left")
    axes.grid(axis="y", color="#e4e4e4")
    axes.spines[["top", "right"]].set_visible(False)
    head(figure, title)
    return figure


def _label_ends(figure: Figure, axes: Axes, x: int, ends: Array, names: Sequence[str], colours: Sequence[str]) -> None:
    """Name lines at their right ends, moved apart until none covers another."""
    span = axes.get_xlim()[1]
    width, height = figure.get_size_inches() - (2.2, 1.7)  # of the axes, about, inches
    at = spread(ends, gap=102 * 0.165 / height, low=0, high=102)
    for name, y, label, colour in zip(names, ends, at, colours, strict=True):
        if np.isnan(y):
            continue
        axes.annotate(
            name,
            xy=(x, y),
            xytext=(x + 0.22 * span / width, label),
            fontsize=8.5,
            color=colour,
            va="center",
            weight="bold" if name == "mean" and colour == "black" else "normal",
            annotation_clip=False,
            parse_math=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "lw": 0.7,
                "shrinkA": 1,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
        )


def spread(wanted: Array, gap: float, low: float, high: float) -> Array:
    """Move positions as little as needed to be ``gap`` apart and within bounds; NaN stays NaN.

    >>> spread(np.array([50.0, 50.0, 90.0]), gap=10, low=0, high=100)
    array([45., 55., 90.])
    """
    out = np.array(wanted, dtype=np.float64)
    order = [i for i in np.argsort(out, kind="stable") if not np.isnan(out[i])]
    blocks: list[list[float]] = []  # sum of (wanted - offset in block), size
    for i in order:
        blocks.append([out[i], 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] + blocks[-2][1] * gap > blocks[-1][0] / blocks[-1][1]:
            total, size = blocks.pop()
            # The upper block's offsets grow by the lower one's length.
            blocks[-1][0] += total - size * blocks[-1][1] * gap
            blocks[-1][1] += size
    placed = [total / size + k * gap for total, size in blocks for k in range(int(size))]
    for k, i in enumerate(order):
        out[i] = min(max(placed[k], low + k * gap), high - (len(order) - 1 - k) * gap)
    return out


def scatter_figure(points: Sequence[tuple[str, float, float]], title: str = "") -> Figure:
    """Draw stability against plasticity: a small point per run, a large one for the mean of a label.

    Args:
        points: For each run its label (the agent), plasticity (learning accuracy) and stability
            (1 - forgetting), both in [0, 1]; a run with NaN in either is left out and counted in a note.
        title: Heading.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5.4), layout="constrained")
    axes = figure.add_subplot()
    finite = [p for p in points if np.isfinite(p[1]) and np.isfinite(p[2])]
    means = []
    for number, label in enumerate(dict.fromkeys(p[0] for p in finite)):
        xy = 100 * np.array([p[1:3] for p in finite if p[0] == label])
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(*xy.T, "o", color=colour, markersize=4.5, alpha=0.55, markeredgewidth=0)
        axes.plot(*xy.mean(axis=0), "o", color=colour, markersize=11, markeredgecolor="white", zorder=3)
        means.append((label, xy.mean(axis=0), colour))
    runs = 100 * np.array([p[1:3] for p in finite]).reshape(-1, 2)
    _frame(axes, runs)
    axes.set_xlabel("plasticity: accuracy right after learning, %  (higher is better →)", fontsize=9)
    axes.set_ylabel("stability: 100 - forgetting, %  (higher is better →)", fontsize=9)
    axes.grid(color="#ececec")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    corner: dict[str, Any] = {
        "transform": axes.transAxes,
        "fontsize": 8.5,
        "color": "#8a8a8a",
        "style": "italic",
    }
    axes.text(0.985, 0.985, "learns and remembers ↗", ha="right", va="top", **corner)
    axes.text(0.015, 0.985, "remembers, learns little", ha="left", va="top", **corner)
    axes.text(0.985, 0.015, "learns, forgets", ha="right", va="bottom", **corner)
    if left_out := len(points) - len(finite):
        note = f"{left_out} of {len(points)} runs have no forgetting or no learning accuracy and are not shown"
        axes.text(0.015, 0.015, note, ha="left", va="bottom", **corner)
    head(figure, title)
    if means:
        _name_points(figure, axes, runs, means)
    return figure


def _frame(axes: Axes, xy: Array) -> None:
    """Set limits with room around the points, at least ten points of accuracy wide."""
    if not len(xy):
        axes.set(xlim=(0, 100), ylim=(0, 100))
        return
    low, high = xy.min(axis=0), xy.max(axis=0)
    pad = np.maximum(0.14 * (high - low), (10 - (high - low)) / 2 + 1)
    axes.set(xlim=(low[0] - pad[0], high[0] + pad[0]), ylim=(low[1] - pad[1], high[1] + pad[1]))


def _name_points(figure: Figure, axes: Axes, runs: Array, means: Sequence[tuple[str, Array, str]]) -> None:
    """Write each label beside its point, where it covers least of the others and of what is written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    FigureCanvasAgg(figure).draw()  # type: ignore[no-untyped-call]  # lays out, so that sizes in pixels are known
    taken = [text.get_window_extent() for text in axes.texts]
    for points, half in ((runs, 4), ([at for _, at, _ in means], 9)):
        for x, y in axes.transData.transform(points):
            taken.append(Bbox.from_extents(x - half, y - half, x + half, y + half))
    size = 9.5 if len(means) <= 16 else 8
    texts: list[Any] = [None] * len(means)
    for _ in range(2):  # again, so that the first give way to the last
        for number, (label, at, colour) in enumerate(means):
            others = taken + [text.get_window_extent() for i, text in enumerate(texts) if text and i != number]
            if texts[number]:
                texts[number].remove()
            texts[number] = _beside(axes, label, at, others, fontsize=size, color=colour)


def _beside(axes: Axes, label: str, at: Array, others: Sequence[Any], *, fontsize: float, color: str) -> Any:
    """Write a label beside a point, where it covers least of the others."""
    best, cost = None, np.inf
    for dx, dy, ha, va in _places():
        line = {"arrowstyle": "-", "color": color, "linewidth": 0.7} if abs(dx) + abs(dy) > 24 else None
        text = axes.annotate(
            label,
            (at[0], at[1]),
            (dx, dy),
            textcoords="offset points",
            ha=ha,
            va=va,
            fontsize=fontsize,
            color=color,
            weight="bold",
            parse_math=False,
            arrowprops=line,
        )
        box = text.get_window_extent()
        covered = sum(_overlap(box, other) for other in others) + 3 * _outside(box, axes.bbox)
        if covered >= cost - 1e-6:
            text.remove()
            continue
        if best is not None:
            best.remove()
        best, cost = text, covered
        if cost <= 1e-6:
            break
    return best


def _places() -> Iterator[tuple[float, float, str, str]]:
    """Yield offsets in points and alignments for a label, the nearest and most usual first."""
    for far in (1.0, 2.0, 3.5, 5.0):
        yield 9 * far, 0, "left", "center"
        yield -9 * far, 0, "right", "center"
        yield 0, 9 * far, "center", "bottom"
        yield 0, -9 * far, "center", "top"
        for dx in (8, -8):
            for dy in (7, -7):
                yield dx * far, dy * far, "left" if dx > 0 else "right", "bottom" if dy > 0 else "top"


def _overlap(a: Any, b: Any) -> float:
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return float(max(width, 0) * max(height, 0))


def _outside(box: Any, frame: Any) -> float:
    return float(box.width * box.height) - _overlap(box, frame)


def png_bytes(figure: Figure) -> bytes:
    """Return a figure as PNG; equal figures give equal bytes, with neither date nor software inside."""
    sink = BytesIO()
    figure.savefig(sink, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return sink.getvalue()


def svg_bytes(figure: Figure) -> bytes:
    """Return a figure as SVG with its text as paths; equal figures give equal bytes."""
    import matplotlib

    sink = BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "clgym", "svg.fonttype": "path"}):
        figure.savefig(sink, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
    return sink.getvalue()
