"""Every registered agent is asked to forget a class: nothing of it is kept, and a state continues amid it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import clgym
from clgym.agent import EMBEDDED_CLIP, EMBEDDED_VIT, Agent
from clgym.agent_rules import changed
from clgym.audit import Bench
from clgym.audit_runs import through_disk
from clgym.backbones import load_backbone
from clgym.canary import Trace, marked, traces
from clgym.env import ContinualEnv
from clgym.events import Array, Erase, EraseEnd, Event, Guess, IntArray, Query
from clgym.registry import entries, find, make_agent


@dataclass(frozen=True)
class Story:
    """Two small domains are learned and a class of the first is erased; ids are marked.

    Attributes:
        env: The stream.
        events: Up to the round of questions after the request.
        inside: Position after the first event of the phase.
        after: Position after the request was acknowledged.
        ids: Of the erased samples, without marks.
        images: Of the erased samples, then of as many others.
        labels: Of the erased samples.
        frozen: Features of both.
    """

    env: ContinualEnv
    events: list[Event]
    inside: int
    after: int
    ids: IntArray
    images: tuple[Array, Array]
    labels: IntArray
    frozen: tuple[Array, Array]


@pytest.fixture(scope="module")
def story(four_domains: Path) -> Iterator[Story]:
    yield from told(four_domains, EMBEDDED_CLIP)


@pytest.fixture(scope="module")
def story_without_text(four_domains: Path) -> Iterator[Story]:
    yield from told(four_domains, EMBEDDED_VIT)


def told(four_domains: Path, backbone: str) -> Iterator[Story]:
    """Play the stream up to its end with guesses."""
    settings = {"backbone": backbone, "amount": 1, "requests": 1, "steps": 2, "erase_steps": 2}
    made = clgym.make("CLIP-Erasure-v0", source=str(four_domains), disable_env_checker=True, **settings)
    env = made.unwrapped
    assert isinstance(env, ContinualEnv)
    event, _ = env.reset(seed=0)
    events: list[Event] = []
    while not (events and isinstance(events[-1], EraseEnd)):
        if not isinstance(event, Query) or len(events) > 10:
            events.append(marked(event))
        event, *_ = env.step(Guess(0) if isinstance(event, Query) else None)
    events.append(event)
    life = env.lifetime
    (erased, *_), task = life.ledger.taken(0), life.tasks[0]
    others = np.setdiff1d(np.arange(len(task.train)), erased)[: len(erased)]
    images = tuple(np.asarray(task.train.batch(rows)) for rows in (erased, others))
    with torch.no_grad():
        model = load_backbone(backbone, torch.device("cpu"))
        frozen = tuple(model.encode_images(torch.from_numpy(part)).numpy() for part in images)
    inside = next(k for k, event in enumerate(events) if isinstance(event, Erase)) + 1
    yield Story(env, events, inside, len(events) - 1, life.ids[0][erased], images, task.train.targets[erased], frozen)  # type: ignore[arg-type]
    made.close()


def found(agent: Agent, story: Story) -> list[Trace]:
    """Return what an agent's state holds of the erased samples, prototypes left out."""
    spaces: dict[str, Any] = {"frozen": story.frozen}
    own = [agent.features(part) for part in story.images]
    if own[0] is not None:
        spaces["agent"] = own
    bench = Bench(story.env.lifetime, 0)
    seen = traces(through_disk(agent), story.ids, story.images[0], story.labels, spaces, bench.views(story.ids))
    return [trace for trace in seen if trace.kind != "mean"]


@pytest.mark.parametrize("id", entries("agents"))
def test_agent(id: str, request: pytest.FixtureRequest) -> None:
    needs_head = find("agents", id).spec.needs_head
    story: Story = request.getfixturevalue("story_without_text" if needs_head else "story")
    agent, middle = make_agent(id, story.env, 0, device="cpu"), {}
    for position, event in enumerate(story.events):
        if position == story.inside:
            middle = through_disk(agent)
        answer = agent.act(event)
    assert found(agent, story) == []
    again = make_agent(id, story.env, 0, device="cpu")
    again.load_state_dict(middle)
    for event in story.events[story.inside :]:
        resumed = again.act(event)
    assert np.array_equal(np.asarray(answer), np.asarray(resumed))
    assert changed(through_disk(agent), through_disk(again)) == ""


def test_an_agent_that_keeps_its_memory_is_found_out(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clgym.learner.Learner.drop_samples", lambda self, ids: None)
    agent = make_agent("replay-v0", story.env, 0, device="cpu")
    for event in story.events:
        agent.act(event)
    assert {trace.kind for trace in found(agent, story)} == {"bytes", "id"}
