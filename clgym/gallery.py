"""Writes the pictures of runs: matrix and lines of each, and stability against plasticity over all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clgym.erasure_gallery import figures
from clgym.errors import SettingError
from clgym.leaderboard.table import named, table_key
from clgym.metrics import forgetting, learning_accuracy
from clgym.plots import lines_figure, matrix_figure, png_bytes, scatter_figure, svg_bytes
from clgym.record import RunRecord, write_atomic
from clgym.runner import folder_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(runs: Mapping[Path, RunRecord], out: Path) -> list[Path]:
    """Write all pictures as PNG and SVG under a folder, laid out as runs are, and return their paths.

    Raises:
        SettingError: Two of the runs are the same one.
    """
    places: dict[Path, Path] = {}
    groups: dict[tuple[str, str, str], list[RunRecord]] = {}
    for folder, record in runs.items():
        place = out / folder_of(record)
        if place in places:
            raise SettingError(
                f"Expected different runs; got {places[place]} and {folder}, which are the same. Leave one out."
            )
        places[place] = folder
        groups.setdefault(table_key(record), []).append(record)
    written = []
    for place, folder in places.items():
        record = runs[folder]
        title = f"{_heading(record)} · {named(record.agent, record.agent_settings)} · seed {record.seed}"
        written += _write(place / "matrix", matrix_figure(record.matrix, record.tasks, title))
        written += _write(place / "lines", lines_figure(record.matrix, record.tasks, title))
    for place, figure in figures(runs):
        written += _write(out / place, figure)
    for records in groups.values():
        place = out / folder_of(records[0]).parts[0]
        points = stability_plasticity(records)
        written += _write(place / "stability-plasticity", scatter_figure(points, _heading(records[0])))
    return written


def stability_plasticity(records: Sequence[RunRecord]) -> list[tuple[str, float, float]]:
    """Return for each run its agent, learning accuracy and 1 - forgetting; NaN where undefined."""
    return [
        (
            named(record.agent, record.agent_settings),
            learning_accuracy(record.matrix),
            1 - forgetting(record.matrix),
        )
        for record in records
    ]


def _heading(record: RunRecord) -> str:
    return named(record.scenario, {"source": record.source, **record.scenario_settings})


def _write(path: Path, figure: Figure) -> list[Path]:
    out = []
    for ending, content in ((".png", png_bytes(figure)), (".svg", svg_bytes(figure))):
        write_atomic(path.with_suffix(ending), content)
        out.append(path.with_suffix(ending))
    return out
