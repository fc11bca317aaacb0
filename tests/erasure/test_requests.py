"""Requests to forget: when they come, what they name and grant, and what is gone afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from clgym.env import ContinualEnv
from clgym.errors import ErasedError, SettingError
from clgym.events import Erase, EraseEnd, EraseRequest, Event, Guess, Query, TaskStart, Train
from clgym.scenario import Request
from tests.erasure.conftest import Asking, of, of_class, places, played, rows, stream


def kinds(events: Sequence[Event]) -> str:
    """Return the kinds of events in letters, repeated ones once."""
    letters = {"TaskStart": "S", "Train": "T", "TaskEnd": "E", "Query": "q", "End": "."}
    letters |= {"EraseRequest": "r", "Erase": "e", "EraseEnd": "d"}
    said = [letters[type(event).__name__] for event in events]
    return "".join(a for a, b in zip(said, ["", *said], strict=False) if a != b)


def test_a_request_comes_at_a_boundary_and_a_round_of_questions_follows() -> None:
    env, events = stream(of_class(0, 1), of_class(1, 2))
    assert kinds(events) == "qSTEqredqSTEqredqSTEq."
    assert [(p.after, p.service) for p in env._playing().plan.points] == [
        (0, -1),
        (1, -1),
        (1, 0),
        (2, -1),
        (2, 1),
        (3, -1),
    ]
    assert env.report().R.shape == (4, 3)


def test_a_request_names_what_was_shown() -> None:
    _, events = stream(of_class(0, 1, goal="removal", notice="temporary"))
    (asked,) = of(EraseRequest, events)
    shown = {
        id
        for event in of(Train, events)[:3]
        for id, label in zip(event.ids.tolist(), event.targets, strict=True)
        if label
    }
    assert asked == EraseRequest(
        0, "class", ("t0c1",), np.array(sorted(shown)), ("t0c1",), "removal", "temporary", "full", "none", 0, (), 2, 0
    )
    assert len(shown) == 6


def test_all_is_read_once_per_pass_and_counted() -> None:
    env, events = stream(of_class(0, 1, steps=3, batch_size=4, retain="full"))
    erases = of(Erase, events)
    assert [(e.requests, e.step, e.steps) for e in erases] == [((0,), k, 3) for k in range(3)]
    # Six samples in batches of four: the first six deliveries are all of them, the next six again.
    read = [place for e in erases for place in places(e.forget)]
    assert sorted(read[:6]) == sorted(read[6:]) == [(0, row) for row in (1, 3, 5, 7, 9, 11)]
    assert all(e.forget.targets.tolist() == [1] * 4 for e in erases)
    kept = [place for e in erases for place in places(e.retain)]
    assert sorted(kept[:6]) == [(0, row) for row in (0, 2, 4, 6, 8, 10)]
    assert env.reads == [
        {"events": 3, "forget_reads": 12, "forget_samples": 6, "retain_reads": 12, "retain_samples": 6}
    ]
    env.reset(seed=0)
    assert env.reads == [{"events": 0, "forget_reads": 0, "forget_samples": 0, "retain_reads": 0, "retain_samples": 0}]


@pytest.mark.parametrize(
    ("settings", "forget", "retain", "budget"),
    [
        ({"forget": "none"}, 0, 0, 0),
        ({"forget": "none", "retain": "own"}, 0, 0, 0),
        ({"forget": "few", "shots": 2, "batch_size": 9}, 2, 0, 2),
        # Two of task 0's two classes and of the two classes of task 1 that stay.
        ({"forget": "none", "retain": "few", "shots": 2, "batch_size": 9}, 0, 8, 2),
        ({"forget": "full", "retain": "few", "shots": 1, "missing": ("t0c0", "t1c1"), "batch_size": 9}, 4, 2, 2),
        ({"forget": "full", "retain": "full", "steps": 0}, 0, 0, 0),
    ],
)
def test_grants(settings: dict[str, Any], forget: int, retain: int, budget: int) -> None:
    _, events = stream(of_class(1, 2, **settings))
    (asked,) = of(EraseRequest, events)
    assert asked.budget == budget == len(of(Erase, events))
    erases = of(Erase, events)
    assert {0 if e.forget is None else len(e.forget.ids) for e in erases} <= {forget}
    assert {0 if e.retain is None else len(e.retain.ids) for e in erases} <= {retain}
    for e in erases:
        names = [e.classes[label] for part in (e.retain,) if part is not None for label in part.targets]
        assert not {"t1c2", *settings.get("missing", ())} & set(names)
        assert all(
            name == f"t{t}c{row % (t + 2)}"
            for name, (t, row) in zip(names, places(e.retain) if e.retain else [], strict=True)
        )


def test_after_the_end_no_event_brings_a_sample_again() -> None:
    # A user with samples in all three tasks, who asks after the second.
    user = Request(2, "user", ("u7",), rows((0, 1), (2, 3, 4), (5, 6, 7, 11)), forget="full", steps=1)
    _, events = stream(user, passes=2)
    end = next(k for k, event in enumerate(events) if isinstance(event, EraseEnd))
    before = [place for event in events[:end] if isinstance(event, Train) for place in places(event)]
    after = [place for event in events[end:] if isinstance(event, Train) for place in places(event)]
    assert {(0, 0), (1, 4)} < set(before)
    assert sorted(after) == sorted((2, row) for row in (0, 1, 2, 3, 4, 8, 9, 10) for _ in range(2))
    (start,) = [event for event in events[end:] if isinstance(event, TaskStart)]
    assert start.samples == 8
    assert start.steps == len([event for event in events[end:] if isinstance(event, Train)])


def test_asking_for_what_is_gone_raises() -> None:
    env = ContinualEnv(Asking(of_class(0, 1)))
    event, _ = env.reset(seed=0)
    first: Train | None = None
    while not isinstance(event, EraseEnd):
        event, *_ = env.step(Guess(0) if isinstance(event, Query) else None)
        first = event if first is None and isinstance(event, Train) else first
    assert first is not None
    assert np.array_equal(env.look_up(first.ids).inputs, first.inputs)
    assert np.array_equal(env.look_up(first.ids).targets, first.targets)
    env.step(None)
    gone = first.ids[np.asarray(first.targets) == 1]
    with pytest.raises(
        ErasedError, match=f"Expected ids of samples that are there; got {gone[0]}, erased by request 0"
    ):
        env.look_up(gone)
    assert len(env.look_up(first.ids[np.asarray(first.targets) == 0]).ids) > 0
    with pytest.raises(SettingError, match="Expected ids shown so far; got 36"):
        env.look_up(np.array([36]))


def test_a_duplicate_request_has_no_phase() -> None:
    _, events = stream(of_class(0, 1), of_class(0, 1), of_class(0, 1, after=3))
    first, second, third = of(EraseRequest, events)
    assert np.array_equal(first.ids, second.ids)
    assert (first.budget, second.budget, third.budget) == (2, 0, 0)
    assert kinds(events) == "qSTEqredqrdqSTEqSTEqrdq."
    assert [e.request for e in of(EraseEnd, events)] == [0, 1, 2]


def test_a_request_for_unknown_ids_has_no_phase() -> None:
    _, events = stream(Request(1, "sample", unknown=3, forget="full", retain="full", steps=4))
    (asked,) = of(EraseRequest, events)
    assert asked.ids.tolist() == [36, 37, 38]
    assert asked.scope == ("36", "37", "38")
    assert asked.budget == 0
    assert not of(Erase, events)


def test_of_overlapping_scopes_only_the_rest_is_forgotten() -> None:
    some = Request(1, "sample", train=rows((0, 1, 2, 3)), forget="full", steps=1)
    env, events = stream(of_class(0, 1), some)
    first, second = of(EraseRequest, events)
    assert set(first.ids.tolist()) & set(second.ids.tolist())
    assert sorted(places(of(Erase, events)[-1].forget)) == [(0, 0), (0, 2)]
    with pytest.raises(ErasedError, match="erased by request 1"):
        env.look_up(np.setdiff1d(second.ids, first.ids))


def test_erase_relearn_erase() -> None:
    # Task 2 stands for new samples of class t0c1.
    again = Request(2, "relearn", ("t0c1",), classes=("t0c1",))
    last = Request(
        3, "class", ("t0c1",), rows((1, 3, 5, 7, 9, 11), (), range(12)), classes=("t0c1",), forget="full", steps=3
    )
    env, events = stream(of_class(0, 1), again, last)
    assert kinds(events) == "qSTEqredqSTEqrdqSTEqredq."
    relearn = of(EraseRequest, events)[1]
    assert (relearn.kind, relearn.ids.tolist(), relearn.budget, relearn.classes) == ("relearn", [], 0, ("t0c1",))
    assert len(of(EraseRequest, events)[2].ids) == 18
    # What went with the first request is not brought a second time.
    assert {t for e in of(Erase, events)[2:] for t, _ in places(e.forget)} == {2}
    known = env.counterfactual()
    assert not of(EraseRequest, played(known))


def test_requests_with_a_deadline_are_served_together() -> None:
    both = [of_class(0, 1, delay=1, retain="full"), of_class(1, 2, delay=0), of_class(0, 0, after=1, delay=1)]
    _, events = stream(*both)
    assert kinds(events) == "qSTEqrSTEqedqredqSTEq."
    first, third, second = of(EraseRequest, events)
    position = events.index(first)
    phase = next(k for k, event in enumerate(events) if isinstance(event, Erase))
    assert first.deadline == phase - position - 1 == third.deadline + 1
    assert second.deadline == 0
    joint = of(Erase, events)[:4]
    assert [(e.requests, e.step, e.steps) for e in joint] == [((0, 2), k, 4) for k in range(4)]
    assert {place for e in joint for place in places(e.forget)} == {(0, row) for row in range(12)}
    # Nothing that either request takes away is retained.
    assert {t for e in joint for t, _ in places(e.retain)} == {1}
    assert [e.request for e in of(EraseEnd, events)] == [0, 2, 1]


def test_an_announcement_comes_with_the_task() -> None:
    _, events = stream(noted=("t1c2", "t2c0"))
    assert [start.temporary for start in of(TaskStart, events)] == [(), ("t1c2",), ("t2c0",)]
