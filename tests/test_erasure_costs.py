"""What a request costs, row by row."""

from __future__ import annotations

import numpy as np

from clgym.erasure_costs import RequestCosts
from clgym.events import Erase, EraseEnd, EraseRequest, TaskEnd


def test_seconds_are_shared_out_and_states_weighed_before_and_after() -> None:
    costs, sizes = RequestCosts(), iter((100, 110, 70, 60))

    def weigh() -> int:
        return next(sizes)

    for event, seconds in (
        (EraseRequest(0, "class", ("a",), np.array([1])), 1.0),
        (EraseRequest(1, "class", ("b",), np.array([2])), 2.0),
        (TaskEnd(0), 64.0),
        (Erase((0, 1), ("a",), (("a",),), None, None, 0, 1), 8.0),
        (EraseEnd(0), 16.0),
        (EraseEnd(1), 32.0),
    ):
        costs.before(event, weigh)
        costs.after(event, seconds, weigh)
    assert costs.told([{"events": 1}]) == {
        "per_request": [
            {"request": 0, "kind": "class", "seconds": 21.0, "state_bytes_before": 100, "state_bytes_after": 70},
            {"request": 1, "kind": "class", "seconds": 38.0, "state_bytes_before": 110, "state_bytes_after": 60},
        ],
        "reads": [{"events": 1}],
    }


def test_a_stream_without_requests_says_nothing() -> None:
    assert RequestCosts().told([]) == {}
