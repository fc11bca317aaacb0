"""Traces of erased samples in a state: found where they are, and not where they are not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from clgym.canary import MARK, Trace, mark, marked, traces
from clgym.events import Erase, EraseRequest, Query, TaskEnd, Train

RNG = np.random.default_rng(0)
IDS = np.array([3, 7, 9, 12])
IMAGES = RNG.integers(0, 256, (4, 4, 4, 3), np.uint8)
LABELS = np.array([0, 0, 1, 1])
OTHERS = RNG.normal(size=(40, 16)) + 3
GONE = np.concatenate(
    [RNG.normal(size=(2, 16)) + 3 + np.eye(16)[0] * 8, RNG.normal(size=(2, 16)) + 3 + np.eye(16)[1] * 8]
)


def found(state: dict[str, Any]) -> list[Trace]:
    return traces(state, IDS, IMAGES, LABELS, {"frozen": (GONE, OTHERS)})


def test_a_clean_state_has_none() -> None:
    state = {
        "ids": torch.arange(20),  # small numbers are not marks
        "weights": torch.from_numpy(RNG.normal(size=(16, 16))),
        "pixels": torch.from_numpy(RNG.integers(0, 256, (5, 4, 4, 3), np.uint8)),
        "features": OTHERS,
        "step": 3,
        "gone": ["dog", "3"],
        "empty": np.empty(0),
    }
    assert found(state) == []


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({"met": torch.from_numpy(mark(IDS[:2]))}, Trace("id", "met", 2)),
        ({"log": {"seen": [1, int(mark(IDS)[0])]}}, Trace("id", "log", 1)),
        ({"log": [str(mark(IDS)[3])]}, Trace("id", "log", 1)),
        ({"memory": torch.from_numpy(IMAGES[1:])}, Trace("bytes", "memory", 3)),
        ({"memory": np.concatenate([IMAGES[2].ravel(), np.zeros(9, np.uint8)])}, Trace("bytes", "memory", 1)),
        ({"scaled": torch.from_numpy(IMAGES[:1].astype(np.float32) / 255 - 0.5)}, Trace("pixels", "scaled", 1)),
        ({"rows": torch.from_numpy(2 * GONE[:3])}, Trace("feature", "rows", 3)),
        ({"columns": GONE.T.copy()}, Trace("feature", "columns", 4)),
    ],
    ids=["ids", "json", "text", "bytes", "bytes within", "pixels", "features", "columns"],
)
def test_what_is_kept_is_found(state: dict[str, Any], expected: Trace) -> None:
    assert expected in found(state)


def test_a_prototype_is_listed_though_no_sample_is_copied() -> None:
    means = np.stack([GONE[:2].mean(0), GONE[2:].mean(0), OTHERS.mean(0)])
    assert found({"prototypes": torch.from_numpy(means)}) == [Trace("mean", "prototypes", 2)]


def test_marks_are_unlike_any_other_number_and_one_each() -> None:
    marks = mark(np.arange(1000))
    assert len(set(marks.tolist())) == 1000
    assert marks.min() >= MARK > 2**31


def test_events_are_marked_wherever_they_show_ids() -> None:
    batch = Train(IMAGES, LABELS, IDS)
    assert isinstance(marked(batch), Train)
    assert np.array_equal(marked(batch).ids, mark(IDS))  # type: ignore[attr-defined]
    asked: Any = marked(EraseRequest(0, "sample", ("3", "7"), IDS[:2]))
    assert asked.scope == tuple(map(str, mark(IDS[:2]).tolist()))
    assert np.array_equal(asked.ids, mark(IDS[:2]))
    named: Any = marked(EraseRequest(0, "class", ("dog",), IDS[:2]))
    assert named.scope == ("dog",)
    part: Any = marked(Erase((0,), ("dog",), (("dog",),), batch, None, 0, 1))
    assert np.array_equal(part.forget.ids, mark(IDS))
    assert part.retain is None
    for event in (TaskEnd(0), Query(IMAGES, ("a",), (("a",),), "labels", 0)):
        assert marked(event) is event
