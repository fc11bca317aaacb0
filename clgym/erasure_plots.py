"""Pictures of requests to forget: accuracy over the stream, divergence above noise, relearning step by step."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from clgym.plots import COLOURS, head

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curves = Mapping[str, npt.NDArray[np.float64]]
# What is drawn, in this order: name of the curve, its words and its colour.
SETS = (("erased", "erased", COLOURS[1]), ("near", "neighbours", COLOURS[4]), ("tested", "retained", COLOURS[0]))
GREY = "#8f8f8f"
DASHES = (0, (3, 2))
ACROSS = 3  # panels beside one another


@dataclass(frozen=True)
class Panel:
    """Accuracy over a stream as one request sees it.

    Attributes:
        title: Heading.
        curves: Accuracy ``(1 + K, P)`` in [0, 1] by set, the run first, then the references; NaN where not measured.
        points: Words for the ``P`` evaluation points.
        at: The point right after the request was met.
        marks: Point and words of each request of the stream.
    """

    title: str
    curves: Curves
    points: Sequence[str]
    at: int
    marks: Sequence[tuple[int, str]]


def stream_figure(panels: Sequence[Panel], title: str = "") -> Figure:
    """Draw accuracy on erased, neighbouring and retained items over the stream, a panel for each request.

    Solid lines are the run; a band and a dashed line are the references from the request on, lowest to highest and
    their mean.

    Args:
        panels: One per request.
        title: Heading.
    """
    from matplotlib.figure import Figure

    width = max(5.0, 0.62 * max(len(panel.points) for panel in panels) + 2.2)
    figure = Figure(figsize=(min(width, 15), 3.3 * len(panels) + 1.0), layout="constrained")
    for axes, panel in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        _draw_panel(axes, panel)
    drawn = {name for panel in panels for name in panel.curves}
    compared = any(len(curve) > 1 for panel in panels for curve in panel.curves.values())
    figure.legend(handles=_key(drawn, compared), loc="outside lower center", ncol=5, fontsize=8, frameon=False)
    head(figure, title)
    return figure


def _key(drawn: Collection[str], compared: bool) -> list[Any]:
    """Return what the legend shows: the sets, and how references are drawn."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    key = [Line2D([], [], color=c, marker="o", markersize=3.5, label=words) for n, words, c in SETS if n in drawn]
    band = Patch(color=GREY, alpha=0.3, linewidth=0), Line2D([], [], color=GREY, linestyle=DASHES)
    band[0].set_label("references' range")
    band[1].set_label("and mean")
    return [*key, *band] if compared else [*key]


def _draw_panel(axes: Axes, panel: Panel) -> None:
    x = np.arange(len(panel.points))
    for name, words, colour in SETS:
        if name not in panel.curves:
            continue
        percent = 100 * panel.curves[name]
        axes.plot(x, percent[0], color=colour, linewidth=2, marker="o", markersize=3.5, label=words, zorder=3)
        if len(percent) > 1:
            others = np.where(x < panel.at, np.nan, percent[1:])
            known = ~np.isnan(others).any(axis=0)
            low, high = others[:, known].min(axis=0), others[:, known].max(axis=0)
            axes.fill_between(x[known], low, high, color=colour, alpha=0.18, linewidth=0)
            axes.plot(x[known], others[:, known].mean(axis=0), color=colour, linewidth=1.2, linestyle=DASHES)
    for point in sorted({point for point, _ in panel.marks}):
        colour = "black" if point == panel.at else GREY
        axes.axvline(point - 0.5, color=colour, linewidth=1.2 if point == panel.at else 0.8, zorder=1)
        words = "\n".join(said for at, said in panel.marks if at == point)
        axes.annotate(words, (point - 0.47, 104), fontsize=7.5, color=colour, va="bottom", parse_math=False)
    most = max((sum(at == point for at, _ in panel.marks) for point, _ in panel.marks), default=0)
    axes.set(xlim=(-0.2, len(x) - 0.8), ylim=(0, 104 + 7 * most), yticks=range(0, 101, 20), ylabel="accuracy, %")
    axes.set_xticks(x, panel.points, rotation=40, ha="right", rotation_mode="anchor", fontsize=8, parse_math=False)
    axes.set_title(panel.title, fontsize=9, loc="left", parse_math=False)
    axes.grid(axis="y", color="#e4e4e4")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", labelsize=8)


def divergence_figure(
    rows: Sequence[tuple[str, Mapping[str, tuple[float, float]]]], columns: Sequence[str], title: str = ""
) -> Figure:
    """Draw how far answers about erased items are from the references', beyond what these differ by.

    Args:
        rows: For each agent and request its name and, by column, the noise floor and the excess above it; NaN is left
            out.
        columns: What is measured, a panel each.
        title: Heading.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.2 + 3.0 * len(columns), 0.34 * len(rows) + 1.6), layout="constrained")
    y = np.arange(len(rows))[::-1]
    parts = figure.subplots(1, len(columns), squeeze=False)[0]
    for number, (axes, column) in enumerate(zip(parts, columns, strict=True)):
        floor, excess = np.array([values.get(column, (np.nan, np.nan)) for _, values in rows]).T
        axes.barh(y, floor, color="#c4c4c4", height=0.62)
        axes.barh(y, excess, left=np.nan_to_num(floor), color=COLOURS[1], height=0.62)
        axes.set(xlim=(0, 1), ylim=(-0.6, len(rows) - 0.4))
        names = [name for name, _ in rows] if number == 0 else [""] * len(rows)
        axes.set_yticks(y, names, fontsize=8, parse_math=False)
        axes.set_title(column, fontsize=9, loc="left")
        axes.grid(axis="x", color="#e4e4e4")
        axes.set_axisbelow(True)
        axes.tick_params(axis="x", labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("grey: among references    colour: above it", fontsize=8, color="#555555")
    head(figure, title)
    return figure


def relearn_figure(
    rows: Sequence[tuple[str, Sequence[float], Sequence[float]]], target: Sequence[float], title: str = ""
) -> Figure:
    """Draw accuracy on an erased scope while it is learned again, step by step.

    Args:
        rows: For each request its name, the agent's accuracy after 0, 1, 2, ... steps, and the reference's.
        target: For each request the accuracy at which it counts as relearned.
        title: Heading.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    across, down = min(len(rows), ACROSS), -(-len(rows) // ACROSS)
    figure = Figure(figsize=(max(4.6, 3.4 * across), 3.1 * down + 0.7), layout="constrained")
    parts = figure.subplots(down, across, squeeze=False, sharey=True)
    most = max(len(curve) for _, *curves in rows for curve in curves) - 1
    for axes, (name, mine, other), goal in zip(parts.flat, rows, target, strict=False):
        for curve, colour, label in ((other, GREY, "a reference"), (mine, COLOURS[1], "the agent")):
            axes.plot(100 * np.array(curve), color=colour, linewidth=2, marker="o", markersize=3.5, label=label)
        axes.axhline(100 * goal, color="black", linewidth=0.8, linestyle=DASHES, label="relearned")
        axes.set(xlim=(-0.04 * max(most, 1), 1.04 * max(most, 1)), ylim=(0, 102), xlabel="steps")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_title(name, fontsize=9, loc="left", parse_math=False)
        axes.grid(axis="y", color="#e4e4e4")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    for axes in parts.flat[len(rows) :]:
        axes.set_visible(False)
    figure.supylabel("accuracy on the erased scope, %", fontsize=9)
    figure.legend(
        handles=parts.flat[0].get_lines()[::-1], loc="outside lower center", ncol=3, fontsize=8, frameon=False
    )
    head(figure, title)
    return figure
