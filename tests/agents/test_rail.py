"""RAIL: the recursion is exact, a sample counts once, and what was not taught is answered as by zero-shot."""

from __future__ import annotations

import re
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import clgym
from clgym.agents.rail import RAIL, absorb
from clgym.errors import SettingError
from clgym.events import Query, TaskStart, Train


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ridge_regression(features: torch.Tensor, labels: torch.Tensor, ridge: float) -> torch.Tensor:
    """Solve all at once, the textbook's way."""
    gram = features.T @ features + ridge * torch.eye(features.shape[1], dtype=torch.float64)
    solved: torch.Tensor = torch.linalg.solve(gram, features.T @ labels)
    return solved


def stream(scenario: str = "CLIP-XTAIL-v0", *, width: int = 100, **chosen: Any) -> tuple[Any, RAIL]:
    env = clgym.make(scenario, **{"tasks": 2, "steps": 16, **chosen})
    agent = clgym.make_agent("rail", env, device="cpu", width=width)
    assert isinstance(agent, RAIL)
    return env, agent


def taught(env: gymnasium.Env[Any, Any], agent: RAIL) -> tuple[list[tuple[TaskStart, list[Train]]], Query]:
    """Play to the end with guesses for answers; return each task's events and the last query."""
    tasks: list[tuple[TaskStart, list[Train]]] = []
    event, done = env.reset(seed=0)[0], False
    while not done:
        if isinstance(event, Query):
            last, answer = event, env.action_space.sample()
        else:
            answer = agent.act(event)
            if isinstance(event, TaskStart):
                tasks.append((event, []))
            elif isinstance(event, Train):
                tasks[-1][1].append(event)
        event, _, done, _, _ = env.step(answer)
    return tasks, last


def test_the_recursion_equals_the_closed_form() -> None:
    features, labels = random(60, 12), torch.eye(5, dtype=torch.float64)[torch.arange(60) // 12]
    inverse, weights = torch.eye(12, dtype=torch.float64) / 0.1, torch.zeros(12, 0, dtype=torch.float64)
    start = 0
    for size, classes in ((1, 1), (23, 2), (36, 5)):  # batches of any size; classes appear as they come
        part = slice(start, start + size)
        weights = torch.cat([weights, weights.new_zeros(12, classes - weights.shape[1])], dim=1)
        absorb(inverse, weights, features[part], labels[part, :classes])
        start += size
    assert torch.allclose(weights, ridge_regression(features, labels, 0.1), rtol=1e-9, atol=1e-12)
    gram = features.T @ features + 0.1 * torch.eye(12, dtype=torch.float64)
    assert torch.allclose(inverse, torch.linalg.inv(gram), rtol=1e-8, atol=1e-12)


def test_after_all_tasks_the_adapter_is_that_of_joint_training() -> None:
    env, agent = stream()
    tasks, _ = taught(env, agent)
    images, labels, offset = {}, {}, 0
    for start, trains in tasks:
        for train in trains:
            assert isinstance(train.inputs, np.ndarray)
            for image, target, id in zip(train.inputs, train.targets, train.ids.tolist(), strict=True):
                images[id], labels[id] = image, offset + int(target)
        offset += len(start.classes)
    assert len(images) == sum(start.samples for start, _ in tasks)
    with torch.no_grad():
        phi = agent.expand(agent.backbone.encode_images(np.stack(list(images.values()))))
    assert phi.shape == (len(images), 100)
    assert float((phi > 0).double().mean()) == pytest.approx(0.5, abs=0.2)
    joint = ridge_regression(phi, torch.eye(offset, dtype=torch.float64)[list(labels.values())], 0.1)
    # Features are fp32: they differ in the last digits between batches.
    assert torch.allclose(agent.weights, joint, rtol=1e-3, atol=1e-3 * float(joint.abs().max()))


def test_a_sample_counts_once() -> None:
    env, agent = stream()
    tasks, _ = taught(env, agent)
    start, trains = tasks[1]
    assert 32 * len(trains) > start.samples
    inverse, weights = agent.inverse.clone(), agent.weights.clone()
    for train in trains:
        agent.learn(train)
    assert torch.equal(agent.inverse, inverse)
    assert torch.equal(agent.weights, weights)
    twice = trains[0]
    agent.shown.clear()
    doubled = Train(np.repeat(twice.inputs, 2, axis=0), np.repeat(twice.targets, 2), np.repeat(twice.ids, 2))
    agent.learn(doubled)
    assert len(agent.shown) == 32


def test_transfer_is_exactly_zero_shots() -> None:
    played = {"tasks": 4, "steps": 10}
    ours = clgym.run("CLIP-XTAIL-v0", "rail", scenario_settings=played, width=300)
    base = clgym.run("CLIP-XTAIL-v0", "zero_shot", scenario_settings=played)
    above = np.triu_indices(4)  # row t, column t and later: what is not taught after t tasks
    assert np.array_equal(ours.matrix[above], base.matrix[above])
    assert ours.metrics["mtil_transfer"] == base.metrics["mtil_transfer"]
    assert ours.matrix[-1].mean() > base.matrix[-1].mean() + 0.2


def test_zero_shot_decides_who_answers() -> None:
    env, agent = stream(tasks=3)
    untaught, query = clgym.make_agent("zero_shot", env, device="cpu"), None
    event, ends = env.reset(seed=0)[0], 0
    while ends < 2 or not isinstance(event, Query):
        ends += type(event).__name__ == "TaskEnd"
        event = env.step(env.action_space.sample() if isinstance(event, Query) else agent.act(event))[0]
    query = event
    known = np.array([prompts in agent.columns for prompts in query.prompts])
    assert 0 < known.sum() < len(known)
    plain, ours = untaught.act(query), agent.act(query)
    assert isinstance(plain, np.ndarray)
    assert isinstance(ours, np.ndarray)
    adapted = known[plain.argmax(1)]
    assert 0 < adapted.sum()
    assert np.allclose(ours[~adapted], plain[~adapted], atol=1e-5)
    assert np.isneginf(ours[adapted][:, ~known]).all()
    assert isinstance(query.inputs, np.ndarray)
    with torch.no_grad():
        phi = agent.expand(agent.backbone.encode_images(query.inputs))
    columns = [agent.columns[prompts] for prompts in query.prompts if prompts in agent.columns]
    fused = 0.2 * np.exp(plain[:, known]) + 0.8 * (phi @ agent.weights)[:, columns].numpy()
    assert np.array_equal(ours[adapted][:, known].argmax(1), fused[adapted].argmax(1))


def test_where_candidates_are_one_tasks_all_of_them_are_fused_or_none() -> None:
    env, agent = stream("CLIP-MTIL-v0", steps=2)
    tasks, query = taught(env, agent)
    answer = agent.act(query)
    assert isinstance(answer, np.ndarray)
    assert np.isfinite(answer).all()
    assert len(agent.columns) == agent.weights.shape[1] == sum(len(start.classes) for start, _ in tasks)


def test_footprint_counts_the_adapter_and_the_inverse() -> None:
    env, agent = stream(width=50)
    taught(env, agent)
    classes = len(agent.columns)
    cost = agent.footprint()
    assert (cost.trainable, cost.stored) == (50 * classes, 50 * classes + 50 * 50)
    assert cost.added_at_inference == 50 * classes + 50 * 64


@pytest.mark.parametrize("setting", [{"width": -1}, {"ridge": 0.0}, {"fusion": 1.5}])
def test_settings_out_of_range(setting: dict[str, Any]) -> None:
    words = "Expected width of 0 or more, ridge above 0 and fusion in [0, 1]; got "
    with pytest.raises(SettingError, match=re.escape(words)):
        clgym.make_agent("rail", clgym.make("CLIP-XTAIL-v0"), device="cpu", **setting)
