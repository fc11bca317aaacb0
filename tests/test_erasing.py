"""The default answer to a request to forget: drop what is stored of it, then train on what may be retained."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import clgym
from clgym.agent import Agent, AgentSpec, Setup
from clgym.agents.replay import Replay
from clgym.erasing import RetainFinetune
from clgym.errors import UnsupportedEventError
from clgym.events import Answer, Erase, EraseEnd, EraseRequest, Event, Query, TaskEnd, TaskStart, Train
from clgym.learner import Learner

IMAGES = np.arange(2 * 12, dtype=np.uint8).reshape(2, 2, 2, 3)
CLASSES = ("cat", "dog", "eel")
PROMPTS = tuple((f"a {name}",) for name in CLASSES)
REQUEST = EraseRequest(0, "class", ("dog",), np.array([3, 7]), ("dog",), retain="few", shots=2, budget=3)


def batch(*targets: int) -> Train:
    return Train(IMAGES[: len(targets)], np.array(targets), np.arange(len(targets)))


def part(step: int, retain: Train | None) -> Erase:
    return Erase((0,), CLASSES, PROMPTS, batch(1), retain, step, 3)


class Pupil:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def drop_samples(self, ids: torch.Tensor) -> None:
        self.told.append(ids.tolist())

    def begin_task(self, event: TaskStart) -> None:
        self.told.append(event)

    def learn(self, event: Train) -> None:
        self.told.append(event)

    def end_task(self, event: TaskEnd) -> None:
        self.told.append(event)


def test_retained_data_are_one_more_task_without_the_erased_class() -> None:
    pupil, default = Pupil(), RetainFinetune()
    default.begin(pupil, REQUEST)
    default.erase(pupil, part(0, batch(2, 0)))
    default.erase(pupil, part(1, batch(0, 2)))
    default.end(pupil, EraseEnd(0))
    ids, start, first, second, end = pupil.told
    assert ids == [3, 7]
    assert start == TaskStart(None, "", "", ("cat", "eel"), (("a cat",), ("a eel",)), 6, 3)
    assert (first.targets.tolist(), second.targets.tolist()) == ([1, 0], [0, 1])
    assert end == TaskEnd(None)


def test_without_retained_data_only_the_memory_changes() -> None:
    pupil, default = Pupil(), RetainFinetune()
    default.begin(pupil, REQUEST)
    default.erase(pupil, part(0, None))
    default.end(pupil, EraseEnd(0))
    assert pupil.told == [[3, 7]]


def test_a_class_comes_back_when_it_is_to_be_relearned() -> None:
    pupil, default = Pupil(), RetainFinetune()
    default.begin(pupil, REQUEST)
    default.begin(pupil, EraseRequest(1, "relearn", ("dog",), np.empty(0, np.int64), ("dog",)))
    default.erase(pupil, part(0, batch(1, 0)))
    assert pupil.told[0] == [3, 7]
    assert pupil.told[1].classes == CLASSES
    assert pupil.told[2].targets.tolist() == [1, 0]


def test_its_state_continues_inside_the_task() -> None:
    default, again = RetainFinetune(), RetainFinetune()
    default.begin(Pupil(), REQUEST)
    default.erase(Pupil(), part(0, batch(0)))
    again.load_state_dict(default.state_dict())
    pupil = Pupil()
    again.erase(pupil, part(1, batch(2)))
    again.end(pupil, EraseEnd(0))
    assert [type(told) for told in pupil.told] == [Train, TaskEnd]
    assert pupil.told[0].targets.tolist() == [1]


def learner(agent: str) -> Learner:
    made = clgym.make_agent(agent, clgym.make("CLIP-MTIL-v0", tasks=1), device="cpu")
    assert isinstance(made, Learner)
    return made


def pictures(*ids: int) -> Train:
    images = np.random.default_rng(0).integers(0, 256, (len(ids), 32, 32, 3), np.uint8)
    return Train(images, np.arange(len(ids)) % 3, np.array(ids))


def test_a_learner_forgets_what_it_stored_and_learns_from_what_it_may_retain() -> None:
    agent = learner("replay")
    for event in (TaskStart(0, "pets", "", CLASSES, PROMPTS, 4, 1), pictures(3, 7, 9, 4), TaskEnd(0)):
        agent.act(event)
    assert isinstance(agent, Replay)
    before = {name: tensor.clone() for name, tensor in agent.tensors().items()}
    agent.act(REQUEST)
    assert sorted(agent.memory["ids"].tolist()) == [4, 9]
    assert sorted(agent.state_dict()["memory.seen"].tolist()) == [4, 9]
    assert all(torch.equal(before[name], tensor) for name, tensor in agent.tensors().items())
    agent.act(Erase((0,), CLASSES, PROMPTS, None, pictures(9), 0, 1))
    assert any(not torch.equal(before[name], tensor) for name, tensor in agent.tensors().items())
    agent.act(EraseEnd(0))
    assert agent.optimizer is None
    assert agent.state_dict()["gone"] == ["dog"]
    assert not agent.state_dict()["retaining"]


class Plain(Agent):
    """Has no answer to a request."""

    spec = AgentSpec(id="plain-v0", title="Plain")

    def answer(self, event: Query) -> Answer:
        return np.zeros(len(event.inputs), np.int64)


@pytest.mark.parametrize("event", [REQUEST, part(0, None), EraseEnd(0)], ids=lambda event: type(event).__name__)
def test_an_agent_without_an_answer_says_so(event: Event) -> None:
    agent = Plain(Setup("image", (2, 2, 3), "none"))
    words = f"Expected an event that plain-v0 handles; got {type(event).__name__}. Choose another agent, or override"
    with pytest.raises(UnsupportedEventError, match=words):
        agent.act(event)
