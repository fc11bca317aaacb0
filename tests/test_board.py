from __future__ import annotations

import re
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from clgym.board import Board
from clgym.grid import grid
from clgym.record import RunRecord
from clgym.sweep import Outcome
from clgym.worker import Progress

MTIL = "CLIP-MTIL-v0"
CELLS = grid(MTIL, ["zero_shot", "replay"], [0, 1, 2], agent_settings={"replay": {"size": [50]}})
RECORD = RunRecord(clgym="", scenario=MTIL, source="", backbone="", agent="x", seed=0, status="finished")


def drawn(board: Board, width: int = 120, height: int = 30) -> list[str]:
    """The table's lines; a clock stands still."""
    console = Console(file=StringIO(), width=width, height=height)
    board._console = console
    console.print(board.table())
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return [re.sub(r"\d:\d\d:\d\d", "0:00:00", line).rstrip() for line in lines]


def busy() -> Board:
    """A board of six runs: one was finished, one is done, one failed, one runs."""
    board = Board(Console(file=StringIO(), force_terminal=True))
    board.on_plan(CELLS[:1], CELLS[1:])
    board.on_outcome(Outcome(CELLS[1], Path("x"), RECORD))
    board.on_outcome(Outcome(CELLS[3], Path("x"), None, "ValueError", "no such thing"))
    board.on_progress(CELLS[4], Progress(45, 134, "learning pets", None))
    return board


def test_a_row_per_agent_with_what_is_played_now() -> None:
    assert drawn(busy()) == [
        "scenario      agent               finished  failed  now",
        "CLIP-MTIL-v0  zero_shot-v0             2/3",
        "CLIP-MTIL-v0  replay-v0, size=50       0/3       1  seed 1 33 % learning pets",
        "2 of 6 runs finished, 1 failed, 1 running, 2 waiting; 0:00:00",
    ]


def test_where_there_is_no_room_rows_in_progress_stay() -> None:
    lines = drawn(busy(), height=5)
    assert len(lines) == 3
    assert lines[1].startswith("CLIP-MTIL-v0  replay-v0")
    assert lines[2].startswith("1 more rows. 2 of 6 runs finished")


def test_task_names_are_no_markup() -> None:
    board = busy()
    board.on_progress(CELLS[4], Progress(45, 134, "learning [red]", 0.5))
    assert "learning [red] (50.0 %)" in drawn(board)[2]


def test_on_a_terminal_the_table_is_drawn_and_removed() -> None:
    file = StringIO()
    with Board(Console(file=file, force_terminal=True, width=100)) as board:
        board.on_plan([], CELLS)
        board.on_progress(CELLS[4], Progress(45, 134, "learning pets", None))
        board.on_stop()
        board._live.refresh()  # type: ignore[union-attr]
    assert "seed 1 33 % learning pets" in file.getvalue()
    assert "Stopping: runs finish the event in hand and write a checkpoint." in file.getvalue()
    assert "[1/6]" not in file.getvalue()


@pytest.mark.parametrize("failed", [False, True])
def test_elsewhere_every_run_is_a_line(failed: bool) -> None:
    file = StringIO()
    with Board(Console(file=file, width=40)) as board:
        board.on_plan(CELLS[:1], CELLS[1:])
        board.on_progress(CELLS[1], Progress(45, 134, "learning pets", None))
        board.on_outcome(Outcome(CELLS[1], Path("x"), None if failed else RECORD))
    assert file.getvalue().splitlines() == [
        "1 of 6 runs are finished already.",
        f"[2/6] {'failed' if failed else 'finished'}: CLIP-MTIL-v0 · zero_shot-v0 · seed 1",
    ]
