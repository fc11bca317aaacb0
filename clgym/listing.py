"""What ``clgym list`` shows: scenarios and agents, and which setting makes a scenario another kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from clgym.console import plain_table
from clgym.errors import NotRegisteredError, SettingError
from clgym.registry import Room, entries
from clgym.scenario import KINDS
from clgym.variants import COMPOSED


def listing(rooms: Sequence[Room], kind: str = "") -> tuple[dict[str, list[dict[str, Any]]], list[RenderableType]]:
    """Return what is registered, as JSON values by room and as tables.

    Args:
        rooms: Which rooms to list.
        kind: Only scenarios that are of this kind or that a setting makes so, and agents of this family; ``""``
            takes all.

    Raises:
        SettingError: Neither is there such a kind nor such a family.
    """
    found = {room: [_row(room, entry.spec) for entry in entries(room).values()] for room in rooms}
    kinds = {row["kind"] for rows in found.values() for row in rows} | set(KINDS)
    if kind and kind not in kinds:
        raise SettingError(str(NotRegisteredError.among("kind", kind, sorted(kinds))))
    shown = {
        room: [row for row in rows if kind in ("", row["kind"]) or kind in row["with"]] for room, rows in found.items()
    }
    tables = [_table(room, rows, kind) for room, rows in shown.items() if rows]
    return {str(room): rows for room, rows in shown.items()}, [*tables] if tables else [
        f"Nothing listed is {kind} or can be made so."
    ]


def _row(room: Room, spec: Any) -> dict[str, Any]:
    """Return what a list says of one entry; ``with`` holds, for each other kind, the words that make it so."""
    scenario = room == "scenarios"
    return {
        "id": spec.id,
        "title": spec.title,
        "kind": spec.kind if scenario else spec.family,
        "paper": spec.paper,
        "with": {tag: f"--with {COMPOSED[tag]}" for tag in spec.tags} if scenario else {},
    }


def _table(room: Room, rows: Sequence[dict[str, Any]], kind: str) -> Table:
    """Lay out a room; where a kind was asked for that settings bring about, with the words that do."""
    lines = [[*(row[name] for name in ("id", "title", "kind", "paper")), row["with"].get(kind, "")] for row in rows]
    headings = [room, "title", "kind" if room == "scenarios" else "family", "paper", "how"]
    width = 5 if any(line[-1] for line in lines) else 4
    return plain_table(headings[:width], [*(line[:width] for line in lines), [""] * width], whole=(0, 3))
