"""The baselines: what each must do that the contract cannot know."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import clgym
from clgym.errors import SettingError
from clgym.events import Query, TaskEnd, Train

SMALL = {"tasks": 2, "steps": 8}


def played(agent: str, **settings: Any) -> Any:
    """Play a short stream with guesses for answers and return the agent and the events."""
    env = clgym.make("CLIP-MTIL-v0", **SMALL)
    learner = clgym.make_agent(agent, env, device="cpu", **settings)
    events, done = [env.reset(seed=0)[0]], False
    while not done:
        event = events[-1]
        answer = env.action_space.sample() if isinstance(event, Query) else learner.act(event)
        event, _, done, _, _ = env.step(answer)
        events.append(event)
    return learner, events


def test_zero_shot_never_changes() -> None:
    record = clgym.run("CLIP-MTIL-v0", "zero_shot", scenario_settings=SMALL)
    R = record.matrix
    assert (R == R[0]).all()
    assert record.metrics["forgetting"] == 0.0
    assert all(task["trainable"] == 0 for task in record.resources["per_task"])


def test_zero_shot_is_the_card_of_the_weights() -> None:
    from clgym.worlds import tiny_clip

    record = clgym.run("CLIP-MTIL-v0", "zero_shot", scenario_settings={**SMALL, "tasks": 11}, ensemble=False)
    stated = tiny_clip.card()["zero_shot"]
    R = dict(zip(record.tasks, record.matrix[0], strict=True))
    # The card was measured on more pictures of the same classes; 20 a class leave a few points of noise.
    assert all(abs(R[name] - stated[name]) < 0.1 for name in R)


def test_sequential_lora_learns_the_task_at_hand() -> None:
    record = clgym.run("CLIP-MTIL-v0", "sequential_lora", scenario_settings={"tasks": 1, "steps": 60}, lr=1e-3)
    assert record.matrix[1, 0] > record.matrix[0, 0] + 0.2


def test_sequential_lora_merges_and_renews() -> None:
    learner, _ = played("sequential_lora")
    images = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    with torch.no_grad():
        before = learner.backbone.encode_images(images)
        learner.merge_and_renew()
        after = learner.backbone.encode_images(images)
    assert torch.allclose(before, after, atol=1e-5)
    assert all(not layer.Bt.any() for _, layer in learner.lora.layers)


def test_replay_holds_its_size_and_rehearses_earlier_tasks_only() -> None:
    learner, events = played("replay", size=20)
    assert len(learner.memory) == 20
    assert learner.footprint().sample_bytes == 20 * 32 * 32 * 3
    shown = {int(i): e.inputs[k] for e in events if isinstance(e, Train) for k, i in enumerate(e.ids)}
    for image, id in zip(learner.memory["images"], learner.memory["ids"], strict=True):
        assert np.array_equal(image.numpy(), shown[int(id)])
    for _ in range(20):
        _, _, prompts = learner.memory.draw(4, before=1)
        assert prompts == learner.memory.prompts[0]


def test_joint_stores_every_sample_and_trains_at_the_end_of_a_task() -> None:
    learner, events = played("joint")
    ids = {int(i) for e in events if isinstance(e, Train) for i in e.ids}
    assert {int(i) for i in learner.memory["ids"]} == ids
    assert sum(isinstance(e, TaskEnd) for e in events) == 2
    assert learner.step == 2 * SMALL["steps"]


def test_joint_from_the_pre_trained_model_each_time() -> None:
    learner, _ = played("joint")
    fresh = clgym.make_agent("joint", clgym.make("CLIP-MTIL-v0"), device="cpu")
    ours, theirs = (a.lora.layers for a in (learner, fresh))  # type: ignore[union-attr]
    assert all(torch.equal(a.base.weight, b.base.weight) for (_, a), (_, b) in zip(ours, theirs, strict=True))


def test_a_random_guess_is_uniform_and_depends_on_the_question_alone() -> None:
    env = clgym.make("CLIP-MTIL-v0", tasks=1, steps=1)
    query = env.reset(seed=0)[0]
    assert isinstance(query, Query)
    images = np.random.default_rng(0).integers(0, 256, (4000, 4, 4, 3), np.uint8)
    query = replace(query, inputs=images, candidates=tuple("abcde"), prompts=tuple((c,) for c in "abcde"))
    agents = [clgym.make_agent("random_guess", env, seed=seed) for seed in (0, 0, 1)]
    first, again, other = (np.asarray(agent.act(query)) for agent in agents)
    assert np.array_equal(first, again)
    assert np.allclose(np.exp(first), 0.2, atol=1e-3)
    guesses = first.argmax(1)
    # 4000 guesses among five: chi-square with 4 degrees of freedom, whose 0.1 and 99.9 percentiles are 0.09 and 18.5.
    chi = ((np.bincount(guesses, minlength=5) - 800) ** 2 / 800).sum()
    assert 0.09 < chi < 18.5
    assert abs((guesses == other.argmax(1)).mean() - 0.2) < 0.03
    assert np.array_equal(np.asarray(agents[0].act(replace(query, inputs=images[7:9]))), first[7:9])


@pytest.mark.parametrize(
    ("agent", "settings", "words"),
    [
        ("replay", {"size": 0}, "Expected size of 1 or more; got 0. For no replay take sequential_lora."),
        ("joint", {"effort": 0}, "Expected effort above 0 and batch_size of 1 or more; got 0 and 32."),
        ("sequential_lora", {"lr": -1}, "Expected lr above 0; got -1. Try 1e-3."),
        ("sequential_lora", {"label_smoothing": 1.5}, "Expected warmup and label_smoothing in [0, 1); got 0.0 and 1"),
    ],
)
def test_settings_out_of_range(agent: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=re.escape(words)):
        clgym.make_agent(agent, clgym.make("CLIP-MTIL-v0"), **settings)
