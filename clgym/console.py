"""What the command line prints: JSON or tables on standard output, all else on standard error."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table

from clgym.columns import columns, said
from clgym.errors import ClgymError

PIPE_WIDTH = 160  # columns where nobody watches, so that files and pipes get whole lines
NARROWEST = 10  # columns that a text is given where there is no room


def stdout() -> Console:
    """Return the console for results."""
    wide = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if wide else PIPE_WIDTH, highlight=False)


def stderr() -> Console:
    """Return the console for everything that is not a result."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def emit(payload: Any, as_json: bool, *shown: RenderableType) -> None:
    """Print a result: the payload as JSON, or else what is to be shown."""
    if as_json:
        print(json.dumps(_strict(payload), indent=2, allow_nan=False))
        return
    console = stdout()
    for part in shown:
        show(console, part)


def show(console: Console, part: RenderableType) -> None:
    """Print something; a table whose columns do not fit is wider than the terminal rather than broken."""
    if isinstance(part, Table):
        _, right, _, left = part.padding
        frame = len(part.columns) * (left + right) + (len(part.columns) + 1 if part.box else 0)
        least = sum(column.min_width or 1 for column in part.columns) + frame
        part.width = least if least > console.width else part.width
    console.print(part, crop=False)


def note(text: str) -> None:
    """Say something on standard error."""
    stderr().print(text, markup=False)


def fail(kind: str, message: str, as_json: bool) -> None:
    """Print an error: one red line on standard error, or JSON on standard output."""
    if as_json:
        emit({"error": {"kind": kind, "message": message}}, True)
    else:
        stderr().print(f"[red]Error: {escape(message)}[/red]")


def fail_with(error: ClgymError, as_json: bool) -> None:
    """Print one of our own errors."""
    fail(type(error).__name__, str(error), as_json)


def _strict(value: Any) -> Any:
    """Return a value as strict JSON knows it: NaN and infinities become null, keys become strings."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _strict(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(part) for part in value]
    return value if value is None or isinstance(value, str | int) else str(value)


def percent(value: float | None) -> str:
    """Return an accuracy in percent with one decimal, or a dash.

    >>> percent(0.5), percent(1.0), percent(None)
    ('50.0', '100', '-')
    """
    if value is None or math.isnan(value):
        return "-"
    return "100" if value > 0.9995 else f"{100 * value:.1f}"


def matrix_table(R: npt.NDArray[np.float64], tasks: Sequence[str], title: str) -> Group:
    """Return the accuracy matrix: bold where a task was just learned, dim where it was not yet."""
    table = Table(box=None, padding=(0, 0, 0, 1))
    table.add_column("after learning", no_wrap=True)
    for j in range(len(tasks)):
        table.add_column(str(j + 1), justify="right", no_wrap=True, min_width=4)
    for t, row in enumerate(R):
        styles = ["dim" if j + 1 > t else "bold" if j + 1 == t else "none" for j in range(len(tasks))]
        cells = [f"[{style}]{percent(float(a))}[/]" for style, a in zip(styles, row, strict=True)]
        table.add_row(f"{t} {escape(tasks[t - 1])}" if t else "0 (zero-shot)", *cells)
    caption = "accuracy in %; bold: just learned; right of it: zero-shot; left of it: retained"
    return Group(f"[bold]{escape(title)}[/]", table, f"[dim]{caption}[/]")


def metrics_table(metrics: Mapping[str, float | None], ids: Sequence[str]) -> Table:
    """Return some columns of a run with their titles, shares in percent, and which way is better."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading, side in (("metric", "left"), ("%", "right"), ("better", "left"), ("title", "left")):
        room = longest_word(ids) if heading == "metric" else None
        table.add_column(heading, justify="right" if side == "right" else "left", min_width=room)
    for id in ids:
        if id in metrics:
            better = {True: "higher", False: "lower", None: ""}[columns()[id].higher_is_better]
            table.add_row(id, said(id, metrics[id]), better, escape(columns()[id].title))
    return table


def whitebox_table(rows: Sequence[Mapping[str, float | None]], tasks: Sequence[str]) -> RenderableType:
    """Return the white-box columns of a run, a row per look: before training and after each task."""
    ids = list(rows[0]) if rows else []
    if not ids:
        return "This agent offers no look inside: no white-box columns."
    ends = [f"{t} {name}" for t, name in enumerate(tasks, 1)]
    if len(rows) <= len(tasks):
        ends = ["the whole stream"]  # whose boundaries are hidden
    names = ["0 (before training)", *ends]
    cells = [[name, *(said(id, row.get(id)) for id in ids)] for name, row in zip(names, rows, strict=True)]
    title = "white-box columns, on the frozen batch" + ("; dormant_units in %" if "dormant_units" in ids else "")
    return Group(plain_table(["after learning", *ids], cells), f"[dim]{title}[/]")


def plain_table(headings: Sequence[str], rows: Sequence[Sequence[str]], whole: Sequence[int] = (0,)) -> Table:
    """Return a table of texts, shown as they are.

    Args:
        headings: One per column.
        rows: Their texts.
        whole: Columns with ids, which users copy: their words are never broken, however narrow the terminal.
    """
    table = Table(box=None, padding=(0, 2, 0, 0))
    for number, heading in enumerate(headings):
        cells = [heading, *(row[number] for row in rows)]
        room = longest_word(cells) if number in whole else min(NARROWEST, longest_word(cells))
        table.add_column(heading, overflow="fold", min_width=room)
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def longest_word(texts: Iterable[str]) -> int:
    """Return the width that a column needs to break no word.

    >>> longest_word(["codyra-v0, r=8", "replay-v0"])
    10
    """
    return max((len(word) for text in texts for word in text.split()), default=0)
