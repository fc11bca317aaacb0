"""SimpleCIL: class means by hand, cosines, and what is said of classes never taught."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import clgym
from clgym.check import check_agent
from clgym.errors import SettingError
from clgym.events import Query, TaskEnd, TaskStart, Train


def played(scenario: str, ends: int, **settings: Any) -> tuple[Any, list[Any]]:
    """Return an agent after so many tasks of a short stream, and the events; answers are guessed."""
    env = clgym.make(scenario, tasks=2, steps=6)
    agent = clgym.make_agent("simplecil", env, device="cpu", **settings)
    events, done, learning = [env.reset(seed=0)[0]], False, ends
    while not done:
        if learning:
            agent.act(events[-1])
            learning -= isinstance(events[-1], TaskEnd)
        event, _, done, _, _ = env.step(env.action_space.sample() if isinstance(events[-1], Query) else None)
        events.append(event)
    return agent, events


def shown(events: list[Any], task: int) -> dict[int, list[np.ndarray[Any, Any]]]:
    """Return the distinct images of each class of a task."""
    starts = [i for i, event in enumerate(events) if isinstance(event, TaskStart)] + [len(events)]
    met: set[int] = set()
    images: dict[int, list[np.ndarray[Any, Any]]] = {}
    for event in events[starts[task] : starts[task + 1]]:
        if isinstance(event, Train):
            for image, target, id in zip(event.inputs, event.targets, event.ids, strict=True):
                if int(id) not in met:
                    met.add(int(id))
                    images.setdefault(int(target), []).append(image)
    return images


@pytest.mark.parametrize("scenario", ["CLIP-XTAIL-v0", "ViT-CIFAR100-CIL-v0"])
def test_scores_are_cosines_to_class_means(scenario: str) -> None:
    agent, events = played(scenario, 2, temperature=0.5)
    start = [event for event in events if isinstance(event, TaskStart)][1]
    query = next(event for event in events if isinstance(event, Query))
    means = {}
    for target, images in shown(events, 1).items():
        with torch.no_grad():
            means[start.prompts[target]] = agent.backbone.encode_images(np.stack(images)).mean(0)
    assert len(means) > 2
    query = replace(query, prompts=tuple(means), candidates=tuple(texts[0] for texts in means))
    with torch.no_grad():
        features = agent.backbone.encode_images(query.inputs)
    cosines = torch.stack([torch.cosine_similarity(features, mean[None], dim=1) for mean in means.values()], dim=1)
    assert np.allclose(agent.act(query), (cosines / 0.5).log_softmax(dim=1).numpy(), atol=1e-5)


def test_a_class_that_was_never_taught_gets_no_probability() -> None:
    agent, events = played("CLIP-XTAIL-v0", 1)
    query = next(event for event in events if isinstance(event, Query))
    first, second = [event for event in events if isinstance(event, TaskStart)]
    p = np.exp(agent.act(query))
    known = np.array([prompts in first.prompts for prompts in query.prompts])
    assert known.any()
    assert not known.all()
    assert np.allclose(p[:, known].sum(1), 1.0, atol=1e-5)
    assert (p[:, ~known] == 0).all()
    unknown = replace(query, prompts=second.prompts, candidates=second.classes)
    assert np.allclose(np.exp(agent.act(unknown)), 1 / len(second.classes), atol=1e-6)


def test_a_class_that_started_but_was_not_shown_is_not_known() -> None:
    agent, events = played("CLIP-XTAIL-v0", 0)
    start = next(event for event in events if isinstance(event, TaskStart))
    batch = next(event for event in events if isinstance(event, Train))
    query = next(event for event in events if isinstance(event, Query))
    agent.act(start)
    agent.act(replace(batch, inputs=batch.inputs[:1], targets=batch.targets[:1], ids=batch.ids[:1]))
    p = np.exp(agent.act(replace(query, prompts=start.prompts, candidates=start.classes)))
    assert (p[:, int(batch.targets[0])] == 1).all()


def test_nearest_means_beat_guessing_by_far_on_frozen_features() -> None:
    record = clgym.run("ViT-CIFAR100-CIL-v0", "simplecil", scenario_settings={"tasks": 2, "steps": 10})
    assert record.matrix[-1].mean() > 0.3


def test_it_keeps_the_contract_on_a_vision_transformer() -> None:
    check_agent("simplecil-v0", "ViT-CIFAR100-CIL-v0")


def test_its_footprint_is_a_mean_per_class() -> None:
    agent, events = played("ViT-CIFAR100-CIL-v0", 2)
    classes = sum(len(event.classes) for event in events if isinstance(event, TaskStart))
    cost = agent.footprint()
    assert (cost.trainable, cost.stored) == (0, classes * agent.backbone.embed_dim)


def test_temperature_out_of_range() -> None:
    with pytest.raises(SettingError, match=re.escape("Expected temperature above 0; got 0. Try 0.05.")):
        clgym.make_agent("simplecil", clgym.make("CLIP-XTAIL-v0"), temperature=0)
