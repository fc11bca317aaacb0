"""What it costs an agent to meet requests to forget: seconds and state, request by request (E9)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from clgym.events import Erase, EraseEnd, EraseRequest, Event


class RequestCosts:
    """A row per request: number, kind, seconds of the agent's acts, bytes of its state before and after.

    The seconds of an ``Erase`` event that serves several requests are shared out among them.
    """

    def __init__(self) -> None:
        """Start without a request."""
        self.rows: list[dict[str, Any]] = []

    def before(self, event: Event, state_bytes: Callable[[], int]) -> None:
        """Open a row before the agent learns of a request."""
        if isinstance(event, EraseRequest):
            row = {"request": event.request, "kind": event.kind, "seconds": 0.0}
            self.rows.append({**row, "state_bytes_before": state_bytes(), "state_bytes_after": None})

    def after(self, event: Event, seconds: float, state_bytes: Callable[[], int]) -> None:
        """Charge an act, and close a row once its request is acknowledged."""
        match event:
            case EraseRequest() | EraseEnd():
                served: tuple[int, ...] = (event.request,)
            case Erase():
                served = event.requests
            case _:
                return
        for row in self.rows:
            if row["request"] in served:
                row["seconds"] += seconds / len(served)
                if isinstance(event, EraseEnd):
                    row["state_bytes_after"] = state_bytes()

    def told(self, reads: Sequence[Mapping[str, int]]) -> dict[str, Any]:
        """Return the rows and what each service read, for a record; nothing without requests."""
        return {"per_request": self.rows, "reads": [dict(row) for row in reads]} if self.rows else {}
