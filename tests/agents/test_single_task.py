"""Single-task training: which model answers, and that no task knows of another."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import clgym
from clgym.events import Query, TaskEnd, TaskStart


def scene(scenario: str, agent: str = "single_task", **settings: Any) -> tuple[Any, list[Any]]:
    """Return a fresh agent and the events of two short tasks; answers are guessed."""
    env = clgym.make(scenario, tasks=2, steps=4)
    events, done = [env.reset(seed=0)[0]], False
    while not done:
        event, _, done, _, _ = env.step(env.action_space.sample() if isinstance(events[-1], Query) else None)
        events.append(event)
    return clgym.make_agent(agent, env, device="cpu", **settings), events


def learned(agent: Any, events: list[Any], tasks: int, first: int = 0) -> Any:
    """Let an agent learn some of the tasks."""
    starts = [i for i, event in enumerate(events) if isinstance(event, TaskStart)]
    for start in starts[first : first + tasks]:
        for event in events[start:]:
            if not isinstance(event, Query):
                agent.act(event)
            if isinstance(event, TaskEnd):
                break
    return agent


def about(events: list[Any], task: int, told: int | None) -> Query:
    """Return a question about a task's own classes that says it is of the task ``told``."""
    start = [event for event in events if isinstance(event, TaskStart)][task]
    query = next(event for event in events if isinstance(event, Query))
    return replace(query, prompts=start.prompts, candidates=start.classes, task=told)


@pytest.mark.parametrize("scenario", ["CLIP-MTIL-v0", "ViT-CIFAR100-CIL-v0"])
def test_a_task_keeps_its_model(scenario: str) -> None:
    agent, events = scene(scenario)
    learned(agent, events, 1)
    question = about(events, 0, told=0)
    before = agent.act(question)
    learned(agent, events, 1, first=1)
    assert np.array_equal(agent.act(question), before)
    assert not np.array_equal(agent.act(replace(question, task=1)), before)


def test_without_a_task_the_newest_model_answers() -> None:
    agent, events = scene("CLIP-MTIL-v0")
    learned(agent, events, 2)
    question = about(events, 0, told=None)
    assert np.array_equal(agent.act(question), agent.act(replace(question, task=1)))
    assert not np.array_equal(agent.act(question), agent.act(replace(question, task=0)))


def test_the_first_task_is_sequential_loras() -> None:
    ours, events = scene("CLIP-MTIL-v0")
    theirs, _ = scene("CLIP-MTIL-v0", "sequential_lora")
    question = about(events, 0, told=0)
    first, second = (learned(agent, events, 1).act(question) for agent in (ours, theirs))
    assert np.allclose(first, second, atol=1e-4)


def test_a_task_that_comes_second_is_learned_as_if_it_came_first() -> None:
    # The adapter's start is drawn, so it is made the same in both.
    second, events = scene("CLIP-MTIL-v0")
    first, _ = scene("CLIP-MTIL-v0")
    learned(second, events, 1)
    second.generator.manual_seed(5)
    first.generator.manual_seed(5)
    question = about(events, 1, told=None)
    answers = [learned(agent, events, 1, first=1).act(question) for agent in (first, second)]
    assert np.array_equal(*answers)


def test_a_task_that_is_yet_to_come_is_asked_of_the_pre_trained_model() -> None:
    agent, events = scene("CLIP-MTIL-v0")
    untouched, _ = scene("CLIP-MTIL-v0", "zero_shot")
    learned(agent, events, 1)
    question = about(events, 1, told=1)
    assert np.allclose(agent.act(question), untouched.act(question), atol=1e-5)
    agent, events = scene("ViT-CIFAR100-CIL-v0")
    question = about(events, 1, told=1)
    learned(agent, events, 1)
    assert np.allclose(np.exp(agent.act(question)), 1 / len(question.candidates), atol=1e-6)


def test_its_footprint_grows_by_an_adapter_a_task() -> None:
    agent, events = scene("CLIP-MTIL-v0")
    costs = [learned(agent, events, 1, first=task).footprint() for task in (0, 1)]
    one = agent.lora.trainable_count
    assert [(c.trainable, c.stored, c.added_at_inference) for c in costs] == [(one, one, one), (one, 2 * one, one)]
