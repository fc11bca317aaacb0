"""Pictures of requests to forget: what is drawn where."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.text import Text

from clgym.erasure_plots import Panel, divergence_figure, relearn_figure, stream_figure
from clgym.plots import png_bytes

POINTS = ("zero-shot", "pets", "after request 0", "tools", "after requests 1, 2")
MARKS = ((2, "0: class"), (4, "1: class"), (4, "2: sample"))
CURVES = {
    "erased": np.array([[0.2, 0.8, 0.8, 0.7, 0.6], [0.1, 0.1, 0.2, 0.3, 0.1], [0.1, 0.1, 0.4, 0.3, 0.5]]),
    "tested": np.array([[np.nan, 0.8, 0.9, 0.9, 0.9]] * 3),
}
PANEL = Panel("request 0 · class dog · counterfactual", CURVES, POINTS, 2, MARKS)
ROWS = [("request 0 · 2 steps, reference never", [0.1, 0.5, 0.9], [0.1, 0.1, 0.2, 0.2]), ("request 1", [0.9], [0.9])]
DISTANCES: list[tuple[str, dict[str, tuple[float, float]]]] = [
    ("a · request 0", {"bits": (0.1, 0.3), "D": (0.2, 0.0)}),
    ("a · request 1", {"bits": (np.nan, 0.25), "D": (0.1, 0.1)}),
]


def words(figure: Figure) -> set[str]:
    FigureCanvasAgg(figure).draw()  # type: ignore[no-untyped-call]
    return {text.get_text() for text in figure.findobj(Text) if text.get_text()}


@pytest.mark.parametrize(
    "make",
    [
        lambda: stream_figure([PANEL, PANEL], "title"),
        lambda: divergence_figure(DISTANCES, ["bits", "D"], "title"),
        lambda: relearn_figure(ROWS, [0.8, 0.7], "title"),
    ],
    ids=["stream", "divergence", "relearning"],
)
def test_equal_figures_give_equal_bytes(make: Any) -> None:
    assert png_bytes(make()) == png_bytes(make())
    assert "title" in words(make())


def test_accuracy_over_the_stream() -> None:
    figure = stream_figure([PANEL])
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert np.allclose(lines["erased"].get_ydata(), [20, 80, 80, 70, 60])
    assert "neighbours" not in lines
    shown = words(figure)
    assert {"erased", "retained", "references' range", "and mean", *POINTS, PANEL.title} <= shown
    assert "neighbours" not in shown


def test_references_are_drawn_from_the_request_on() -> None:
    (axes,) = stream_figure([PANEL]).axes
    dashed = [line for line in axes.get_lines() if line.get_linestyle() == "--"]
    assert [line.get_xdata().tolist() for line in dashed] == [[2, 3, 4]] * 2  # type: ignore[union-attr]
    assert np.allclose(dashed[0].get_ydata(), [30, 30, 30])
    (band, _) = (part for part in axes.collections if isinstance(part, PolyCollection))
    corners = np.asarray(band.get_paths()[0].vertices)
    at_request = corners[corners[:, 0] == 2, 1]
    assert (at_request.min(), at_request.max()) == pytest.approx((20, 40))


def test_requests_are_marked_before_their_point_and_share_a_mark() -> None:
    (axes,) = stream_figure([PANEL]).axes
    marks = [line for line in axes.get_lines() if np.ptp(line.get_xdata()) == 0]
    assert [line.get_xdata()[0] for line in marks] == [1.5, 3.5]  # type: ignore[index]
    assert [line.get_color() == "black" for line in marks] == [True, False]
    assert [text.get_text() for text in axes.texts] == ["0: class", "1: class\n2: sample"]
    # Above what is drawn.
    assert all(text.xy[1] > 100 for text in axes.texts)  # type: ignore[attr-defined]


def test_without_references_none_are_named() -> None:
    alone = Panel("removal", {name: curve[:1] for name, curve in CURVES.items()}, POINTS, 2, MARKS[:1])
    assert not {"references' range", "and mean"} & words(stream_figure([alone]))


def test_divergence_is_stacked_on_the_floor() -> None:
    figure = divergence_figure(DISTANCES, ["bits", "D"])
    floors, excesses = figure.axes[0].containers
    assert [bar.get_width() for bar in excesses] == pytest.approx([0.3, 0.25])
    assert [bar.get_x() for bar in excesses] == [0.1, 0.0]
    assert floors[0].get_width() == 0.1
    assert [bar.get_width() for bar in figure.axes[1].containers[1]] == pytest.approx([0.0, 0.1])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a · request 0", "a · request 1"]
    heights = [bar.get_y() for bar in excesses]
    assert heights[0] > heights[1]


def test_relearning_step_by_step() -> None:
    figure = relearn_figure(ROWS, [0.8, 0.7])
    other, mine, goal = figure.axes[0].get_lines()
    assert np.allclose(mine.get_ydata(), [10, 50, 90])
    assert np.allclose(other.get_ydata(), [10, 10, 20, 20])
    assert np.allclose(goal.get_ydata(), 80)
    # One scale for all, in whole steps.
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()
    assert all(tick == int(tick) for tick in figure.axes[1].get_xticks())
    assert {"the agent", "a reference", "relearned", ROWS[0][0], ROWS[1][0]} <= words(figure)


def test_a_fourth_request_is_drawn_below() -> None:
    figure = relearn_figure([ROWS[1]] * 4, [0.7] * 4)
    assert [axes.get_visible() for axes in figure.axes] == [True] * 4 + [False] * 2
    tops = [axes.get_subplotspec().rowspan.start for axes in figure.axes[:4]]  # type: ignore[union-attr]
    assert tops == [0, 0, 0, 1]
