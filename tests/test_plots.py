import subprocess
import sys
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from clgym.plots import (
    lines_figure,
    matrix_figure,
    matrix_image,
    png_bytes,
    scatter_figure,
    spread,
    svg_bytes,
)
from clgym.scorer import Report

MTIL = "aircraft caltech101 cifar100 dtd eurosat flowers food mnist oxford_pet stanford_cars sun397".split()
R = np.random.default_rng(0).uniform(0.05, 1, (12, 11))
SMALL = np.array([[0.25, 0.5], [1.0, np.nan], [0.75, 0.875]])
POINTS = [("a-v0", 0.8, 0.9), ("a-v0", 0.82, 0.88), ("b-v0", 0.4, 1.0)]


def drawn(figure: Figure) -> FigureCanvasAgg:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return canvas


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.parametrize(
    "make",
    [
        lambda: matrix_figure(SMALL, ["a", "b"], "title"),
        lambda: lines_figure(SMALL, ["a", "b"], "title"),
        lambda: scatter_figure(POINTS, "title"),
    ],
    ids=["matrix", "lines", "scatter"],
)
def test_equal_figures_give_equal_bytes_without_date_or_software(make: Any) -> None:
    png, svg = png_bytes(make()), svg_bytes(make())
    assert (png, svg) == (png_bytes(make()), svg_bytes(make()))
    assert png.startswith(b"\x89PNG")
    assert b"Software" not in png
    assert b"<svg" in svg
    assert b"date" not in svg
    assert b"Matplotlib v" not in svg


def test_matrix_cells_are_percent_and_a_missing_one_is_a_dash() -> None:
    figure = matrix_figure(SMALL, ["a", "b"])
    assert texts(figure) == ["25.0", "50.0", "100", "\N{EN DASH}", "75.0", "87.5"]
    axes = figure.axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["zero-shot", "after a", "after b"]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["a", "b"]


def test_matrix_outlines_the_diagonal_and_hatches_what_is_missing() -> None:
    patches = [p for p in matrix_figure(SMALL, ["a", "b"]).axes[0].patches if isinstance(p, Rectangle)]
    # The cell of task j right after it: column j, row j + 1.
    outlined = {(round(p.get_x() + 0.46), round(p.get_y() + 0.46)) for p in patches if not p.get_hatch()}
    assert outlined == {(0, 1), (1, 2)}
    assert [(p.get_x() + 0.5, p.get_y() + 0.5) for p in patches if p.get_hatch()] == [(1, 1)]


def test_matrix_writes_white_on_dark_and_black_on_light() -> None:
    colours = [text.get_color() for text in matrix_figure(SMALL, ["a", "b"]).axes[0].texts]
    assert colours[:3] == ["white", "black", "black"]


def test_names_are_shown_as_they_are() -> None:
    figure = lines_figure(SMALL, ["a$_x$", "b_y"], "$1$")
    drawn(figure)
    assert "a$_x$" in texts(figure)


@pytest.mark.parametrize("figure", [matrix_figure, lines_figure])
def test_nothing_is_cut_with_eleven_tasks(figure: Any) -> None:
    made = figure(R, MTIL, "CLIP-MTIL-v0, source=embedded · sequential_lora-v0 · seed 0")
    drawn(made)
    axes = made.axes[0]
    whole = made.bbox
    for text in [*axes.get_xticklabels(), *axes.get_yticklabels(), *axes.texts, made._suptitle]:
        box = Text.get_window_extent(text)
        assert box.x0 >= -1
        assert box.y0 >= -1
        assert box.x1 <= whole.x1 + 1, text.get_text()
        assert box.y1 <= whole.y1 + 1, text.get_text()


@pytest.mark.parametrize("ends", [R[-1], np.full(11, 0.5), np.zeros(11), np.ones(11)])
def test_labels_of_lines_do_not_overlap(ends: Any) -> None:
    matrix = R.copy()
    matrix[-1] = ends
    figure = lines_figure(matrix, MTIL)
    drawn(figure)
    boxes = [Text.get_window_extent(text) for text in figure.axes[0].texts]  # without the leader lines
    assert len(boxes) == 12
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))


def test_a_line_is_dotted_until_learned_and_solid_from_then_on() -> None:
    figure = lines_figure(np.array([[0.2, 0.3], [0.9, 0.4], [0.5, 0.8]]), ["a", "b"])
    lines = figure.axes[0].lines
    found = [(line.get_xdata(), line.get_ydata()) for line in lines[3:6]]  # dotted, solid and marker of task b
    for (x, y), (wanted_x, wanted_y) in zip(found, [([0, 1, 2], [30, 40, 80]), ([2], [80]), ([2], [80])], strict=True):
        np.testing.assert_allclose(np.atleast_1d(np.asarray(x, float)), wanted_x)
        np.testing.assert_allclose(np.atleast_1d(np.asarray(y, float)), wanted_y)
    np.testing.assert_allclose(np.asarray(lines[-1].get_ydata(), float), [25, 65, 65])  # mean by hand
    assert texts(figure) == ["a", "b", "mean"]


def test_lines_of_a_matrix_without_tasks_to_come_average_those_learned() -> None:
    lower = np.array([[np.nan] * 3, [0.9, np.nan, np.nan], [0.7, 0.5, np.nan], [0.6, 0.3, 0.9]])
    figure = lines_figure(lower, ["a", "b", "c"])
    np.testing.assert_allclose(np.asarray(figure.axes[0].lines[-1].get_ydata(), float), [np.nan, 90, 60, 60])
    assert texts(figure) == ["a", "b", "c", "mean"]
    drawn(figure)
    cells = texts(matrix_figure(lower, ["a", "b", "c"]))
    assert cells.count("\N{EN DASH}") == 6
    assert png_bytes(matrix_figure(lower[:, :1][:2], ["a"]))
    assert matrix_image(Report(("a", "b", "c"), np.full((4, 3), np.nan), {})).ndim == 3


def test_lines_of_an_unfinished_stream_are_named_where_they_end() -> None:
    matrix = R.copy()
    matrix[5:] = np.nan
    figure = lines_figure(matrix, MTIL)
    assert {note.xy[0] for note in figure.axes[0].texts} == {4}  # type: ignore[attr-defined]


def test_beyond_what_can_be_read_only_the_mean_is_named() -> None:
    many = np.random.default_rng(0).uniform(size=(41, 40))
    assert texts(lines_figure(many, [str(j) for j in range(40)])) == ["mean"]
    assert texts(matrix_figure(many, [str(j) for j in range(40)])) == []


def test_scatter_has_a_small_point_per_run_and_a_large_one_per_agent() -> None:
    figure = scatter_figure(POINTS)
    runs_a, mean_a, _, mean_b = figure.axes[0].lines[:4]
    np.testing.assert_allclose(np.asarray(runs_a.get_xdata(), float), [80, 82])
    np.testing.assert_allclose([np.asarray(mean_a.get_xdata()).item(), np.asarray(mean_a.get_ydata()).item()], [81, 89])
    assert mean_b.get_markersize() > runs_a.get_markersize()
    assert {"a-v0", "b-v0"} <= set(texts(figure))


def test_scatter_counts_runs_without_both_numbers() -> None:
    figure = scatter_figure([*POINTS, ("c-v0", np.nan, 0.5)])
    assert "c-v0" not in texts(figure)
    assert any(text.startswith("1 of 4 runs") for text in texts(figure))
    assert png_bytes(scatter_figure([]))


def test_labels_of_close_points_do_not_cover_each_other() -> None:
    figure = scatter_figure([(f"agent-{i}", 0.8 + i / 500, 0.9) for i in range(5)])
    drawn(figure)
    boxes = [t.get_window_extent() for t in figure.axes[0].texts if t.get_text().startswith("agent")]
    assert len(boxes) == 5
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))


def test_matrix_image_is_a_picture() -> None:
    image = matrix_image(Report(tuple(MTIL), R, {}))
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 50


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 100), min_size=1, max_size=20))
def test_spread_keeps_order_gap_and_bounds(wanted: list[float]) -> None:
    placed = spread(np.array(wanted), gap=4, low=0, high=100)
    order = np.argsort(np.array(wanted), kind="stable")
    assert (np.diff(placed[order]) > 4 - 1e-6).all()
    assert placed.min() > -1e-9
    assert placed.max() < 100 + 1e-9
    assert np.isnan(spread(np.array([np.nan, 1.0]), 4, 0, 100)[0])


def test_importing_draws_in_no_matplotlib_and_drawing_no_pyplot() -> None:
    code = (
        "import sys, numpy as np, clgym.plots as p\n"
        "assert 'matplotlib' not in sys.modules\n"
        "p.png_bytes(p.matrix_figure(np.ones((2, 1)), ['a']))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
