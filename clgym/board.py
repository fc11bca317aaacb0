"""The progress of a sweep: one table on a terminal, one line a run elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from clgym.grid import Cell
from clgym.sweep import Outcome, Watch
from clgym.worker import Progress


class Board(Watch):
    """A row per scenario and agent: how many of its seeds have finished, and what is played now.

    Args:
        console: Where to draw; ``None`` is standard error.
    """

    def __init__(self, console: Console | None = None) -> None:
        """Draw nothing yet."""
        self._console = console or Console(stderr=True, highlight=False)
        self._rows: dict[tuple[str, str], dict[int, str | Progress]] = {}
        self._start = time.monotonic()
        self._live: Live | None = None
        if self._console.is_terminal:
            self._live = Live(console=self._console, get_renderable=self.table, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        """Start drawing."""
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the table."""
        if self._live:
            self._live.stop()

    def on_plan(self, finished: Sequence[Cell], waiting: Sequence[Cell]) -> None:
        """Enter runs."""
        for cells, state in ((finished, "finished"), (waiting, "waiting")):
            for one in cells:
                self._enter(one, state)
        if finished and not self._live:
            self._say(f"{len(finished)} of {len(finished) + len(waiting)} runs are finished already.")

    def on_progress(self, cell: Cell, progress: Progress) -> None:
        """Move a run."""
        self._enter(cell, progress)

    def on_outcome(self, outcome: Outcome) -> None:
        """Tick a run off."""
        state = "finished" if outcome.record else "failed"
        self._enter(outcome.cell, state)
        if not self._live:
            ended = self._count("finished") + self._count("failed")
            self._say(f"[{ended}/{len(self._states())}] {state}: {outcome.cell}")

    def on_stop(self) -> None:
        """Say why it does not stop at once."""
        self._say("Stopping: runs finish the event in hand and write a checkpoint. Ctrl-C again does not wait.")

    def table(self) -> Group:
        """Return what is drawn: the rows with runs in progress, others as far as there is room, and a sum."""
        room = max(1, self._console.height - 4)
        first = sorted(self._rows, key=lambda row: not _running(self._rows[row]))[:room]
        table = Table(box=None, padding=(0, 2, 0, 0))
        for heading in ("scenario", "agent", "finished", "failed", "now"):
            table.add_column(heading, no_wrap=True, justify="right" if heading in ("finished", "failed") else "left")
        for (scenario, agent), seeds in self._rows.items():
            if (scenario, agent) in first:
                counts = [list(seeds.values()).count(state) for state in ("finished", "failed")]
                failed = f"[red]{counts[1]}[/]" if counts[1] else ""
                now = escape(", ".join(f"seed {seed} {_where(at)}" for seed, at in _running(seeds).items()))
                table.add_row(escape(scenario), escape(agent), f"{counts[0]}/{len(seeds)}", failed, now)
        return Group(table, self._sum(len(self._rows) - len(first)))

    def _sum(self, hidden: int) -> str:
        states = self._states()
        running = sum(isinstance(state, Progress) for state in states)
        more = f"{hidden} more rows. " if hidden else ""
        spent = timedelta(seconds=int(time.monotonic() - self._start))
        return (
            f"[dim]{more}{self._count('finished')} of {len(states)} runs finished, {self._count('failed')} failed, "
            f"{running} running, {self._count('waiting')} waiting; {spent}[/]"
        )

    def _enter(self, one: Cell, state: str | Progress) -> None:
        self._rows.setdefault((one.stage, one.player), {})[one.seed] = state

    def _states(self) -> list[str | Progress]:
        return [state for seeds in self._rows.values() for state in seeds.values()]

    def _count(self, state: str) -> int:
        return self._states().count(state)

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)


def _running(seeds: dict[int, str | Progress]) -> dict[int, Progress]:
    return {seed: state for seed, state in seeds.items() if isinstance(state, Progress)}


def _where(at: Progress) -> str:
    """Say how far a run is.

    >>> _where(Progress(50, 200, "asking all", 0.5)), _where(Progress(0, 200, "", None))
    ('25 % asking all (50.0 %)', '0 %')
    """
    accuracy = "" if at.accuracy is None else f"({100 * at.accuracy:.1f} %)"
    return " ".join(filter(None, [f"{100 * at.position // at.length} %", at.what, accuracy]))
