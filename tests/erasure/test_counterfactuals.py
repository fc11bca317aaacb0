"""The same stream without the erased samples, states in the middle of it, and what no stream can be asked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from clgym.counterfactual import without
from clgym.env import ContinualEnv
from clgym.errors import RecordError, SettingError
from clgym.events import Erase, EraseEnd, EraseRequest, Guess, Query, TaskEnd, TaskStart, Train
from clgym.scenario import Request
from tests.erasure.conftest import Asking, of, of_class, places, played, rows, stream


@pytest.mark.parametrize(
    "asked",
    [
        [of_class(0, 1)],
        [of_class(0, 1), of_class(1, 0, delay=1)],
        [Request(1, "task", ("task 0",), rows(range(12)), rows(range(6)), ("t0c0", "t0c1"), forget="full", steps=2)],
        [Request(2, "user", ("u",), rows((0, 1), (2, 3, 4), (5, 6, 7, 11)), forget="few", shots=1, steps=2)],
        [Request(2, "sample", train=rows(range(12), (0, 3, 6, 9)), steps=2, forget="full"), of_class(1, 0, after=3)],
    ],
    ids=["class", "delay", "task", "user", "overlap"],
)
@pytest.mark.parametrize("passes", [1, 3])
def test_the_counterfactual_stream_is_the_same_without_the_samples(asked: list[Request], passes: int) -> None:
    env, events = stream(*asked, passes=passes)
    twin = env.counterfactual()
    others = played(twin)
    assert not [event for event in others if isinstance(event, EraseRequest | Erase | EraseEnd)]
    gone = {id for e in of(EraseRequest, events) for id in e.ids.tolist()}
    assert gone
    taught = [event for event in others if isinstance(event, TaskStart | Train | TaskEnd)]
    expected = without(events, gone)
    assert taught == expected
    assert of(Query, others) == of(Query, events)
    assert np.array_equal(twin.scorer.predictions()["question"], env.scorer.predictions()["question"])
    assert twin.fingerprints()["stream"] != env.fingerprints()["stream"]
    assert twin.fingerprints()["data"] == env.fingerprints()["data"]


def test_a_counterfactual_of_some_requests_keeps_the_others() -> None:
    env, events = stream(of_class(0, 1), of_class(1, 2))
    others = played(env.counterfactual([0]))
    (asked,) = of(EraseRequest, others)
    assert asked == of(EraseRequest, events)[1]
    assert of(Erase, others) == of(Erase, events)[2:]
    assert of(Query, others) == of(Query, events)


def test_a_request_that_is_none_has_no_counterfactual() -> None:
    env, _ = stream(of_class(0, 1), Request(2, "relearn", ("t0c1",)))
    with pytest.raises(SettingError, match=r"Expected numbers of requests to forget, among \[0\]; got \[1\]"):
        env.counterfactual([1]).reset(seed=0)


@pytest.mark.parametrize(
    ("request_", "settings", "words"),
    [
        (of_class(0, 1, after=0), {}, "Expected request 0 to come and be served after 1 to 3 tasks; got 0 and 0"),
        (of_class(0, 1, delay=3), {}, "got 1 and 4"),
        (of_class(0, 1), {"boundaries": "hidden"}, "Expected boundaries='given' in a stream with requests to forget"),
    ],
)
def test_requests_that_cannot_be_met(request_: Request, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        ContinualEnv(Asking(request_, **settings)).reset(seed=0)


def test_a_state_continues_from_any_event() -> None:
    asked = [of_class(0, 1, retain="few", shots=2), of_class(1, 2, delay=1, forget="few", shots=1)]
    env, events = stream(*asked, needs_scores=False)
    whole = env.scorer.predictions()
    env.reset(seed=0)
    for position in range(len(events) - 1):
        again = ContinualEnv(Asking(*asked))
        event, _ = again.reset(options={"resume": env.get_state()})
        assert event == events[position]
        action = Guess(position + 1) if isinstance(event, Query) else None
        assert again.step(action)[0] == env.step(action)[0] == events[position + 1]
        assert again.reads == env.reads
    assert all(
        np.array_equal(whole[name], column, equal_nan=column.dtype.kind == "f")
        for name, column in env.scorer.predictions().items()
    )


def test_a_state_of_another_stream_is_refused() -> None:
    env, _ = stream(of_class(0, 1))
    twin = env.counterfactual()
    with pytest.raises(RecordError, match="Expected the state of a stream of"):
        twin.reset(options={"resume": env.get_state()})


def test_events_are_in_the_space_and_have_a_line() -> None:
    env = ContinualEnv(Asking(of_class(0, 1, retain="full")), "ansi")
    event, _ = env.reset(seed=0)
    lines, done = [], False
    while not done:
        assert event in env.observation_space
        lines.append(str(env.render())[7:].strip())
        event, _, done, _, _ = env.step(Guess(0) if isinstance(event, Query) else None)
    assert "EraseRequest  class: 6 samples, counterfactual" in lines
    assert "Erase      5 to forget and 5 to retain" in lines
    assert "EraseEnd" in lines
    log = env.describe(np.zeros(env.length - 1))
    assert {"EraseRequest", "Erase", "EraseEnd"} < set(log["kind"])


def test_an_erase_event_without_batches_is_not_in_the_space() -> None:
    space = ContinualEnv(Asking()).observation_space
    assert Erase((0,), ("a",), (("a",),), None, None, 0, 1) not in space


def test_reading_ahead_shows_the_same() -> None:
    asked = of_class(0, 1, retain="full")
    assert [event for event in stream(asked, slow=True)[1] if not isinstance(event, Train | Erase)] == [
        event for event in stream(asked)[1] if not isinstance(event, Train | Erase)
    ]
    again = stream(asked, slow=True)[1]
    assert again == stream(asked, slow=True)[1]
    assert [places(e.forget) for e in of(Erase, again)] == [places(e.forget) for e in of(Erase, stream(asked)[1])]
