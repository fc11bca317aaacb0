"""Events: equal by value, hashable, frozen, and whole after pickling and copying."""

from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import numpy as np
import pytest

from clgym.events import End, Erase, EraseEnd, EraseRequest, Event, Guess, Interact, Query, TaskEnd, TaskStart, Train

IMAGES = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
TRAIN = Train(IMAGES, np.array([0, 1]), np.array([7, 3]))
EVENTS: list[Event] = [
    TaskStart(0, "aircraft", "Planes.", ("a", "b"), (("an a",), ("a b",)), 2, 1),
    TRAIN,
    Train(("one", "two"), ("1", "2"), np.array([0, 1])),
    TaskEnd(None),
    EraseRequest(1, "class", ("a",), np.array([7]), ("a",), "removal", "temporary", "few", "own", 4, ("b",), 3, 5),
    Erase((1,), ("a", "b"), (("an a",), ("a b",)), TRAIN, None, 0, 2),
    Erase((1,), ("a", "b"), (("an a",), ("a b",)), TRAIN, replace(TRAIN, ids=np.array([1, 2])), 0, 2),
    EraseEnd(1),
    Query(IMAGES, ("a", "b"), (("an a",), ("a b",)), "labels", 0),
    Interact(np.array([0.5]), 1.0, False),
    End(),
]


def test_every_kind_is_tried() -> None:
    # By name: a dataclass with slots leaves its class without them behind, as another subclass.
    assert {type(event).__name__ for event in EVENTS} == {kind.__name__ for kind in Event.__subclasses__()}


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_copies_are_equal_and_apart(event: Event) -> None:
    for again in (pickle.loads(pickle.dumps(event)), copy.deepcopy(event), copy.copy(event)):
        assert again == event
        assert again is not event
        assert type(again) is type(event)
        assert hash(again) == hash(event)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_no_two_of_these_are_equal(event: Event) -> None:
    assert [other for other in EVENTS if other == event] == [event]
    assert event != "event"


def test_a_deep_copy_shares_no_array() -> None:
    again = copy.deepcopy(TRAIN)
    assert isinstance(again.inputs, np.ndarray)
    again.inputs[0] = 0
    assert again != TRAIN
    assert IMAGES[0].any()


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": IMAGES[::-1]},
        {"inputs": IMAGES.astype(np.int64)},
        {"targets": np.array([0, 1], np.int32)},
        {"targets": np.array([1, 1])},
        {"targets": (0, 1)},
        {"ids": np.array([7, 3, 5])},
    ],
)
def test_values_shapes_and_types_count(change: dict[str, Any]) -> None:
    assert replace(TRAIN, **change) != TRAIN


def test_true_is_not_one() -> None:
    assert TaskEnd(1) != TaskEnd(True)


@pytest.mark.parametrize("event", [event for event in EVENTS if fields(event)], ids=lambda event: type(event).__name__)
def test_events_are_frozen(event: Event) -> None:
    with pytest.raises(FrozenInstanceError):
        setattr(event, fields(event)[0].name, 0)
    assert not hasattr(event, "__dict__")


def test_guesses_are_values() -> None:
    assert Guess(1) == Guess(1) != Guess(2)
    assert len({Guess(1), Guess(1), Guess(2)}) == 2
    assert pickle.loads(pickle.dumps(Guess(3))) == Guess(3)
