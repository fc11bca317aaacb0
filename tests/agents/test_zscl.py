"""ZSCL: its loss on the reference, the mean of weights, and where the reference comes from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import clgym
from clgym.agents.zscl import ZSCL, draw_reference, read_reference
from clgym.distil import distillation
from clgym.errors import SettingError
from clgym.events import Query, TaskEnd, Train


def played(kind: type, number: int = 1, steps: int = 4, **settings: Any) -> Any:
    """Play until the ``number``-th event of a kind waits, and return the agent, the event and the weights met."""
    env = clgym.make("CLIP-MTIL-v0", tasks=2, steps=steps)
    agent = clgym.make_agent("zscl", env, device="cpu", **{"samples": 50, **settings})
    assert isinstance(agent, ZSCL)
    event: Any = env.reset(seed=0)[0]
    met = [agent.weights.copy()]
    while number := number - isinstance(event, kind):
        event = env.step(env.action_space.sample() if isinstance(event, Query) else agent.act(event))[0]
        if agent.step == len(met):
            met.append(agent.weights.copy())
    return agent, event, met


def test_the_mean_is_that_of_the_weights_met() -> None:
    # Before the task, after steps 2 and 4 of 4: half of the steps between two samples.
    agent, event, met = played(TaskEnd, average_every=0.5)
    agent.act(event)
    for name, value in agent.weights.views().items():
        assert torch.allclose(value, (met[0][name] + met[2][name] + met[4][name]) / 3, atol=1e-7)
    assert agent.averaged == 3


def test_a_tenth_of_a_short_task_is_every_step() -> None:
    agent, _, _ = played(TaskEnd)
    assert agent.averaged == 5


def test_without_a_mean_the_last_weights_stay() -> None:
    agent, event, met = played(TaskEnd, average_every=0.0)
    agent.act(event)
    assert all(torch.equal(value, met[4][name]) for name, value in agent.weights.views().items())


def test_loss_against_its_definition() -> None:
    agent, event, _ = played(Train, 3, weight=0.5, l2=3.0, temperature=1.5)
    images, targets = agent.to_device(event.inputs, event.targets)
    state, now = agent.generator.get_state(), agent.weights.copy()
    with torch.no_grad():
        loss = agent.loss(images, targets)
        agent.generator.set_state(state)
        drawn = torch.randint(len(agent.images), (len(images),), generator=agent.generator).numpy()
        pictures = torch.from_numpy(agent.images.batch(drawn))
        z = agent.backbone.encode_images(pictures)
        task = agent.cross_entropy(images, targets, agent.task.prompts)
        agent.weights.put_(agent.pretrained)
        texts = agent.clip.encode_texts(agent.texts)
        s, t = agent.scale * z @ texts.T, agent.scale * agent.backbone.encode_images(pictures) @ texts.T
    moved = sum(float((now[name] - agent.before[name]).square().sum()) for name in now)
    taught = distillation(s, t, 1.5) + distillation(s.T, t.T, 1.5)
    assert moved > 0
    assert float(loss) == pytest.approx(float(task + 0.5 * taught) + 3 * moved, rel=1e-5)


def test_before_the_first_step_the_teacher_teaches_nothing() -> None:
    agent, event, _ = played(Train)
    batch = agent.to_device(event.inputs, event.targets)
    taught = torch.autograd.grad(agent.loss(*batch), agent.weights.parameters)
    agent.weight = agent.l2 = 0.0
    alone = torch.autograd.grad(agent.loss(*batch), agent.weights.parameters)
    largest = max(float(g.abs().max()) for g in alone)
    assert all(torch.allclose(a, b, atol=1e-5 * largest) for a, b in zip(taught, alone, strict=True))


def test_the_teacher_is_the_pre_trained_model_in_the_second_task_too() -> None:
    agent, _, met = played(Train, 5)
    assert all(torch.equal(agent.pretrained[name], met[0][name]) for name in met[0])
    assert any(not torch.equal(agent.before[name], met[0][name]) for name in met[0])


def test_the_embedded_reference_is_of_the_pre_training_distribution() -> None:
    images, texts = draw_reference(40, seed=1)
    same, _ = draw_reference(40, seed=1)
    other, _ = draw_reference(40, seed=2)
    everything = np.arange(40)
    assert len(images) == 40
    assert len(set(texts)) == len(texts) > 10
    assert np.array_equal(images.batch(everything), same.batch(everything))
    assert not np.array_equal(images.batch(everything), other.batch(everything))


def test_a_folder_of_images_and_captions(tmp_path: Path) -> None:
    (tmp_path / "n01").mkdir()
    for number, place in enumerate(("a.png", "n01/b.jpg", "n01/c.PNG")):
        Image.new("RGB", (48, 40), (80 * number, 10, 10)).save(tmp_path / place)
    (tmp_path / "captions.txt").write_text("a red dog\n\na cat\na red dog\n", encoding="utf-8")
    agent, _, _ = played(TaskEnd, steps=2, reference=str(tmp_path))
    assert len(agent.images) == 3
    assert agent.images.batch(np.array([1])).shape == (1, 32, 32, 3)
    assert agent.texts == ("a red dog", "a cat")


@pytest.mark.parametrize("folder", ["", "nowhere"])
def test_no_reference(folder: str) -> None:
    words = f"Expected reference to be a folder with images and captions.txt; got {folder!r} with 0 images and 0 texts."
    with pytest.raises(SettingError, match=re.escape(words)):
        read_reference(folder, 32)


def test_a_reference_without_texts(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(SettingError, match="with 1 images and 0 texts"):
        played(Train, reference=str(tmp_path))


def test_settings_out_of_range() -> None:
    with pytest.raises(SettingError, match=re.escape("got 1.0, 1.0, 2.0, 2.0 and 50. Try 1, 1, 2, 0.1 and 2000.")):
        played(Train, average_every=2.0)


def test_footprint() -> None:
    agent, _, _ = played(Query)
    cost = agent.footprint()
    assert cost.trainable == agent.weights.count
    assert (cost.stored, cost.sample_bytes) == (3 * cost.trainable, 0)
