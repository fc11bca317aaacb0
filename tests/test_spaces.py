"""The two spaces: what belongs to them, and that they behave as Gymnasium's own do."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate
from hypothesis import given
from hypothesis import strategies as st

from clgym.events import End, EraseEnd, Event, Guess, Query, TaskEnd, TaskStart, Train
from clgym.spaces import AnswerSpace, EventSpace, fault_of_scores

SHAPE = (4, 4, 3)
IMAGES = np.zeros((2, *SHAPE), np.uint8)
TRAIN = Train(IMAGES, np.array([0, 1]), np.array([5, 6]))
QUERY = Query(IMAGES, ("a", "b"), (("a",), ("b",)), "labels", None)
START = TaskStart(0, "t", "", ("a", "b"), (("a",), ("b",)), 2, 1)


@pytest.mark.parametrize(
    "event", [TRAIN, QUERY, START, TaskEnd(0), EraseEnd(0), End(), replace(TRAIN, targets=("x", "y"))]
)
def test_events_of_the_stream(event: Event) -> None:
    assert event in EventSpace(SHAPE)


@pytest.mark.parametrize(
    "event",
    [
        "text",
        None,
        replace(TRAIN, inputs=IMAGES.astype(np.float32)),
        replace(TRAIN, inputs=IMAGES[:, 1:]),
        replace(TRAIN, inputs=IMAGES[:1]),
        replace(TRAIN, inputs=("a", "b")),
        replace(TRAIN, ids=np.array([5, 6], np.int32)),
        replace(TRAIN, targets=np.array([0])),
        replace(QUERY, inputs=IMAGES[:0]),
        replace(QUERY, candidates=(), prompts=()),
        replace(QUERY, prompts=(("a",),)),
        replace(START, prompts=()),
    ],
    ids=str,
)
def test_what_is_no_event_of_the_stream(event: Any) -> None:
    assert event not in EventSpace(SHAPE)


def test_texts() -> None:
    space = EventSpace(())
    assert replace(TRAIN, inputs=("one", "two")) in space
    assert replace(TRAIN, inputs=("one", 2)) not in space  # type: ignore[arg-type]
    assert TRAIN not in space
    assert space.sample() in space


@pytest.mark.parametrize(
    "answer",
    [
        None,
        Guess(0),
        np.array([0, 2]),
        np.log([[0.5, 0.25, 0.25]]),
        np.log(np.array([[0.5, 0.5]], np.float32)),
        np.array([[0.0, -np.inf]]),
    ],
    ids=str,
)
def test_answers(answer: Any) -> None:
    assert answer in AnswerSpace(3)


@pytest.mark.parametrize(
    "answer",
    [
        0,
        "a",
        [0, 1],
        np.array([3]),
        np.array([-1]),
        np.array([0], np.int32),
        np.zeros((1, 2), np.int64),
        np.zeros(0, np.int64),
        np.array([[np.nan, 0.0]]),
        np.array([[0.0, 0.0]]),
        np.log(np.array([[0.5, 0.5]])).astype(np.float16),
    ],
    ids=str,
)
def test_what_is_no_answer(answer: Any) -> None:
    assert answer not in AnswerSpace(3)


@pytest.mark.parametrize("space", [EventSpace(SHAPE), EventSpace(()), AnswerSpace(3)], ids=repr)
def test_a_seed_fixes_the_samples(space: gymnasium.Space[Any]) -> None:
    space.seed(3)
    first = [space.sample() for _ in range(3)]
    space.seed(3)
    assert [space.sample() for _ in range(3)] == first
    assert first[0] != first[1]
    assert all(sample in space for sample in first)
    assert not space.is_np_flattenable


@pytest.mark.parametrize("space", [EventSpace(SHAPE), EventSpace(()), AnswerSpace(3)], ids=repr)
def test_copies_are_equal(space: gymnasium.Space[Any]) -> None:
    for again in (copy.deepcopy(space), pickle.loads(pickle.dumps(space))):
        assert again == space
        assert hash(again) == hash(space)
        assert repr(again) == repr(space)


def test_spaces_differ_by_what_they_hold() -> None:
    assert EventSpace(SHAPE) != EventSpace(())
    assert AnswerSpace(3) != AnswerSpace(4)
    assert EventSpace(()) != AnswerSpace(3)


def test_batches_are_tuples() -> None:
    space = EventSpace(SHAPE, seed=0)
    batch = batch_space(space, 2)
    out: Any = create_empty_array(space, 2)
    events = (TRAIN, QUERY)
    assert concatenate(space, events, out) == events
    assert list(iterate(batch, events)) == list(events)


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=6), st.integers(1, 3))
def test_normalised_scores_have_no_fault(weights: list[float], rows: int) -> None:
    p = np.array([weights] * rows) / np.sum(weights)
    assert fault_of_scores(np.log(p)) == ""
    assert fault_of_scores(np.log(p) + 0.1).startswith("rows whose exponentials sum to between 1.105")


def test_infinite_scores_are_a_fault_without_a_warning() -> None:
    assert fault_of_scores(np.array([[1e6, 0.0]])) == "rows whose exponentials sum to between inf and inf"
    assert fault_of_scores(np.array([[0.0, -np.inf], [np.nan, 0.0]])) == "NaN in row 1"
