"""The table of runs: mean and 95 % interval over seeds of every column; methods first, then the baselines."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from clgym.columns import columns, plain, values
from clgym.errors import RecordError
from clgym.record import RunRecord
from clgym.registry import entries, find

NOT_AVAILABLE = "n/a"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A column over seeds.

    Attributes:
        mean: Mean over seeds; NaN where any seed's value is.
        half: Half the width of the 95 % t-interval; NaN for a single seed.
        n: Number of seeds.
        percent: Whether it is a share.
    """

    mean: float
    half: float
    n: int
    percent: bool = True

    def __str__(self) -> str:
        """Say a share in percent, and anything else as it is.

        >>> str(Estimate(0.5, 0.0123, 3)), str(Estimate(0.5, math.nan, 1)), str(Estimate(9216.0, 0.0, 3, False))
        ('50.0 ± 1.2', '50.0', '9,216')
        """
        if math.isnan(self.mean):
            return NOT_AVAILABLE
        if not self.percent:
            return plain(self.mean) + (f" ± {plain(self.half)}" if self.half > 0 else "")
        return f"{100 * self.mean:.1f}" + ("" if math.isnan(self.half) else f" ± {100 * self.half:.1f}")


@dataclass(frozen=True, slots=True)
class Row:
    """One agent with one set of settings, on one scenario with one set of settings and one source.

    Attributes:
        scenario: Scenario id.
        scenario_settings: Its settings that are not defaults.
        source: The data's source.
        agent: Agent id.
        agent_settings: Its settings that are not defaults.
        seeds: Seeds, ascending.
        metrics: Column id to estimate, in the order of the scenario's spec or as chosen.
        baseline: Whether the agent is of the family "baseline": what any method has to beat, or cannot.
    """

    scenario: str
    scenario_settings: Mapping[str, Any]
    source: str
    agent: str
    agent_settings: Mapping[str, Any]
    seeds: tuple[int, ...]
    metrics: Mapping[str, Estimate]
    baseline: bool = False

    @property
    def table(self) -> str:
        """Heading of the table that the row belongs to; rows of different headings never meet."""
        return f"{named(self.scenario, self.scenario_settings)} · source: {self.source}"

    @property
    def label(self) -> str:
        """The agent and its settings."""
        return named(self.agent, self.agent_settings)


def named(id: str, chosen: Mapping[str, Any]) -> str:
    """Return an id with its settings behind it.

    >>> named("codyra-v0", {"r": 8, "prox": "released"})
    'codyra-v0, prox=released, r=8'
    """
    return ", ".join([id, *(f"{name}={value}" for name, value in sorted(chosen.items()))])


def summarise(records: Iterable[RunRecord], ids: Sequence[str] = (), more: Sequence[str] = ()) -> list[Row]:
    """Return a row per scenario, source and agent with their settings, the best of a table first, baselines last.

    What follows from ``record.matrix`` is computed from it, whatever a record says; see :func:`clgym.columns.values`
    for what needs more. What a run does not have is NaN.

    Args:
        records: Finished runs.
        ids: Columns to show, the first of which orders the rows; without any, the metrics of the scenario's spec.
        more: Columns to show behind these.

    Raises:
        RecordError: A run is unfinished, a seed occurs twice, or runs that would share a table were not
            played on the same stream and data.
        NotRegisteredError: A record's scenario is unknown here.
    """
    groups: dict[tuple[str, ...], list[RunRecord]] = {}
    for record in records:
        if record.status != "finished":
            raise RecordError(
                f"Expected finished runs; got {record.agent} on {record.scenario} with seed {record.seed}, "
                f"which is {record.status}. Finish it with clgym run --resume, or leave it out."
            )
        groups.setdefault((*table_key(record), record.agent, _text(record.agent_settings)), []).append(record)
    _check_streams([record for group in groups.values() for record in group])
    rows = [_row(sorted(group, key=lambda record: record.seed), ids, more) for group in groups.values()]
    return sorted(rows, key=lambda row: (row.table, row.baseline, _rank(row), row.label))


def table_key(record: RunRecord) -> tuple[str, str, str]:
    """Return what runs must share to stand in one table: scenario, its settings, source."""
    return (record.scenario, _text(record.scenario_settings), record.source)


def _text(chosen: Mapping[str, Any]) -> str:
    return json.dumps(chosen, sort_keys=True)


def _check_streams(records: Sequence[RunRecord]) -> None:
    """Raise unless all runs of a table and seed were played on the same stream, data and backbone."""
    first: dict[tuple[str, ...], tuple[str, str]] = {}
    for record in records:
        for name, digest in record.fingerprints.items():
            key = (*table_key(record), str(record.seed), name)
            before, agent = first.setdefault(key, (digest, record.agent))
            if digest != before:
                raise RecordError(
                    f"Expected runs of {record.scenario} with seed {record.seed} that share the {name}; got "
                    f"{before[:12]} from {agent} and {digest[:12]} from {record.agent}. "
                    "Give runs on the same data only."
                )


def _row(runs: Sequence[RunRecord], ids: Sequence[str], more: Sequence[str]) -> Row:
    seeds = tuple(run.seed for run in runs)
    one = runs[0]
    if len(set(seeds)) < len(seeds):
        raise RecordError(
            f"Expected each seed of {one.agent} on {one.scenario} once; got {', '.join(map(str, seeds))}. "
            "Leave the copies out."
        )
    found = [values(run) for run in runs]
    shown = dict.fromkeys([*(ids or find("scenarios", one.scenario).spec.metrics), *more])
    entry = entries("agents").get(one.agent)  # None for the agent of a package that is not installed here
    return Row(
        one.scenario,
        one.scenario_settings,
        one.source,
        one.agent,
        one.agent_settings,
        seeds,
        {id: estimate([value.get(id, math.nan) for value in found], columns()[id].percent) for id in shown},
        entry is not None and entry.spec.family == "baseline",
    )


def _rank(row: Row) -> float:
    """Return what rows are sorted by: the first column, best first, undefined last."""
    id, first = next(iter(row.metrics.items()))
    if math.isnan(first.mean):
        return math.inf
    return first.mean if columns()[id].higher_is_better is False else -first.mean


def estimate(seen: Sequence[float], percent: bool = True) -> Estimate:
    """Return mean and half-width of the 95 % t-interval of values that are one per seed.

    The half-width is ``t(0.975, n - 1) s / sqrt(n)``, ``s`` with ``n - 1`` in its denominator.

    Args:
        seen: The values.
        percent: Whether they are shares.

    >>> print(estimate([0.5, 0.6, 0.7]))
    60.0 ± 24.8
    """
    n = len(seen)
    mean = math.fsum(seen) / n
    if n == 1:
        return Estimate(mean, math.nan, 1, percent)
    return Estimate(mean, student_quantile(n - 1) * float(np.std(seen, ddof=1)) / math.sqrt(n), n, percent)


def student_quantile(freedom: int) -> float:
    """Return the 0.975 quantile of Student's t with a whole number of degrees of freedom.

    Solves ``P(|t| <= x) = 0.95`` for ``theta = atan(x / sqrt(freedom))`` by bisection; the probability is the
    finite series of Abramowitz & Stegun, 26.7.3 and 26.7.4.

    >>> round(student_quantile(1), 4), round(student_quantile(2), 4), round(student_quantile(9), 4)
    (12.7062, 4.3027, 2.2622)
    """
    low, high = 0.0, math.pi / 2
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if _within(middle, freedom) < 0.95 else (low, middle)
    return math.sqrt(freedom) * math.tan(middle)


def _within(theta: float, freedom: int) -> float:
    """Return ``P(|t| <= sqrt(freedom) tan(theta))``."""
    odd = freedom % 2
    term = math.cos(theta) if odd else 1.0
    total = term if freedom > 1 or not odd else 0.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= (k - 1) / k * math.cos(theta) ** 2
        total += term
    return 2 / math.pi * (theta + math.sin(theta) * total) if odd else math.sin(theta) * total


def tables(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Return the rows of each table by its heading, in order."""
    out: dict[str, list[Row]] = {}
    for row in rows:
        out.setdefault(row.table, []).append(row)
    return out


def markdown(rows: Iterable[Row]) -> str:
    """Return the tables as Markdown: mean and 95 % t-interval over seeds, shares in percent; baselines in italics."""
    parts = []
    for heading, group in tables(rows).items():
        ids = list(group[0].metrics)
        lines = [["agent", "seeds", *(f"{id} {arrow(id)}".rstrip() for id in ids)]]
        lines.append(["---", *["---:"] * (len(ids) + 1)])
        labels = [f"*{row.label}*" if row.baseline else row.label for row in group]
        lines += [
            [label, _seeds(row), *map(str, row.metrics.values())] for label, row in zip(labels, group, strict=True)
        ]
        body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        below = "\nIn italics: baselines.\n" if any(row.baseline for row in group) else ""
        parts.append(f"### {heading}\n\n{body}\n{below}")
    return "\n".join(parts)


def rich_tables(rows: Iterable[Row], width: int = 160) -> list[Table]:
    """Return the tables for a terminal: mean and 95 % t-interval over seeds, shares in percent; baselines dim.

    Args:
        rows: As :func:`summarise` returns them.
        width: Columns of the terminal; a table that is wider goes on below.
    """
    out = []
    for heading, group in tables(rows).items():
        parts = list(_parts(group, width))
        out += [_rich_table(group, ids) for ids in parts]
        out[-len(parts)].title = f"[bold]{escape(heading)}[/]"
        shares = "%, " if all(one.percent for one in group[0].metrics.values()) else "shares in %, "
        dim = "; dim: baselines" if any(row.baseline for row in group) else ""
        out[-1].caption = f"{shares}mean ± 95 % t-interval over seeds{dim}"
    return out


def _parts(group: Sequence[Row], width: int) -> Iterator[list[str]]:
    """Yield the metrics in parts that fit beside the agents."""
    frame = 3  # of a column: a rule, and a blank on either side
    room = width - max(len(row.label) for row in group) - max(len(_seeds(row)) for row in group) - 3 * frame
    part: list[str] = []
    left = room
    for id in group[0].metrics:
        cells = [*_heading(id), *(str(row.metrics[id]) for row in group)]
        need = max(map(len, cells)) + frame
        if part and need > left:
            yield part
            part, left = [], room
        part.append(id)
        left -= need
    yield part


def _rich_table(group: Sequence[Row], ids: Sequence[str]) -> Table:
    table = Table(title_justify="left", caption_justify="left", title_style="", caption_style="dim")
    longest = max(len(word) for row in group for word in row.label.split())
    table.add_column("agent", overflow="fold", min_width=longest)  # an id is not broken
    table.add_column("seeds", justify="right", no_wrap=True, min_width=max(len(_seeds(row)) for row in group))
    for id in ids:
        room = max(map(len, [*_heading(id), *(str(row.metrics[id]) for row in group)]))
        table.add_column("\n".join(_heading(id)), justify="right", no_wrap=True, min_width=room)
    for row in group:
        style = "dim" if row.baseline else None
        table.add_row(escape(row.label), _seeds(row), *(str(row.metrics[id]) for id in ids), style=style)
    return table


def _heading(id: str) -> list[str]:
    """Return an id in lines, broken at its underscores to keep columns narrow, and which way is better."""
    words = textwrap.wrap(id.replace("_", " "), 10)
    return [*words[:-1], f"{words[-1]} {arrow(id)}".rstrip()]


def arrow(id: str) -> str:
    """Return which way a column is better: an arrow, or nothing where neither is."""
    return {True: "↑", False: "↓", None: ""}[columns()[id].higher_is_better]


def _seeds(row: Row) -> str:
    return f"n={len(row.seeds)}"
