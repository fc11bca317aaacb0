"""DualPrompt: which prompts go where, what each task trains, and what it costs."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from clgym.errors import SettingError
from clgym.events import Query, TaskEnd, TaskStart, Train

SCENES = (CLIP, VIT) = ("CLIP-MTIL-v0", "ViT-CIFAR100-CIL-v0")


def images_of(stage: Any, count: int = 6) -> tuple[Tensor, Any]:
    """Play until a question, and return its first images and its prompts."""
    query = stage.until(Query)
    return stage.agent.to_device(query.inputs[:count], None)[0], query.prompts


def encoded(agent: Any, image: Tensor, expert: Tensor) -> Tensor:
    """Encode one image with the general prompt in the first block and an expert prompt in the second, by hand."""
    first, second = (block.attention for block in agent.vit.blocks[:2])
    first.prefix = agent.general[0, 0][None], agent.general[0, 1][None]
    second.prefix = expert[0, 0][None], expert[0, 1][None]
    features: Tensor = agent.backbone.encode_images(image[None])
    first.prefix = second.prefix = None
    return features


@pytest.mark.parametrize("scenario", SCENES)
def test_loss_against_its_definition(play: Any, scenario: str) -> None:
    stage = play("dualprompt", scenario, pull=0.5)
    stage.until(Train, 6)  # in the second task
    agent, (images, targets) = stage.agent, stage.batch()
    assert agent.tasks == 2
    with torch.no_grad():
        loss = agent.loss(images, targets)
        each = []
        for image, target in zip(images, targets, strict=True):
            logits = agent.classify(encoded(agent, image, agent.expert), agent.training_rows(agent.task.prompts))
            near = F.cosine_similarity(agent.backbone.encode_images(image[None])[0], agent.key, dim=0)
            each.append(F.cross_entropy(logits, target[None]) - 0.5 * near)
    assert float(loss) == pytest.approx(float(torch.stack(each).mean()), rel=1e-4)


@pytest.mark.parametrize("scenario", SCENES)
def test_an_answer_takes_the_expert_of_the_nearest_key(play: Any, scenario: str) -> None:
    stage = play("dualprompt", scenario)
    stage.until(TaskEnd, 2)
    agent, (images, prompts) = stage.agent, images_of(stage)
    with torch.no_grad():
        query = agent.backbone.encode_images(images)
        agent.expert += torch.randn(agent.expert.shape, generator=torch.Generator().manual_seed(0))
        agent.keys[0], agent.key[:] = query[0], query[1]
        rows = agent.class_rows(prompts, False)
        got = agent.logits(images, rows)
        chosen = []
        for image, q, logits in zip(images, query, got, strict=True):
            chosen.append(int(F.cosine_similarity(q, agent.key, dim=0) > F.cosine_similarity(q, agent.keys[0], dim=0)))
            features = encoded(agent, image, agent.expert if chosen[-1] else agent.experts[0])
            torch.testing.assert_close(logits, agent.classify(features, rows)[0], rtol=0, atol=1e-3)
    assert chosen[:2] == [0, 1]


@pytest.mark.parametrize("scenario", SCENES)
def test_each_task_trains_its_own_expert_from_the_last(play: Any, scenario: str) -> None:
    stage = play("dualprompt", scenario)
    stage.until(TaskEnd)
    stage.step()
    agent = stage.agent
    general, expert, key = (p.detach().clone() for p in (agent.general, agent.expert, agent.key))
    stage.until(Train)
    assert torch.equal(agent.expert, expert)
    assert not torch.equal(agent.key, key)
    stage.until(TaskEnd)
    assert torch.equal(agent.experts[0], expert)
    assert torch.equal(agent.keys[0], key)
    assert not torch.equal(agent.expert, expert)
    assert not torch.equal(agent.general, general)
    assert agent.experts.shape[0] == agent.keys.shape[0] == 1


@pytest.mark.parametrize("scenario", SCENES)
def test_only_the_pull_moves_the_key_and_nothing_the_backbone(play: Any, scenario: str) -> None:
    stage = play("dualprompt", scenario, pull=0.0)
    stage.until(Train, 5)
    agent = stage.agent
    torch.autograd.backward(agent.loss(*stage.batch()))
    assert not agent.key.grad.any()
    assert agent.expert.grad.any()
    assert agent.general.grad.any()
    assert not any(p.requires_grad for p in agent.backbone.parameters())
    agent.pull = 1.0
    torch.autograd.backward(agent.loss(*stage.batch()))
    assert agent.key.grad.any()


@pytest.mark.parametrize("scenario", SCENES)
def test_a_state_goes_on_bit_for_bit(play: Any, scenario: str) -> None:
    stage, other = play("dualprompt", scenario), play("dualprompt", scenario)
    stage.until(Train, 6)
    other.until(Train, 6)
    other.agent = play("dualprompt", scenario).agent
    other.agent.load_state_dict(copy.deepcopy(stage.agent.state_dict()))
    for each in (stage, other):
        each.until(TaskEnd)
    query = stage.until(Query)
    assert np.array_equal(stage.agent.act(query), other.agent.act(query))


def test_before_the_first_task_there_are_no_prompts(play: Any) -> None:
    stage = play("dualprompt", CLIP)
    query = stage.until(Query)
    first = stage.agent.act(query)
    assert np.allclose(first, play("zero_shot", CLIP).agent.act(query), rtol=0, atol=1e-3)
    stage.until(Train)
    assert not np.allclose(stage.agent.act(query), first, atol=1e-2)


@pytest.mark.parametrize("scenario", SCENES)
def test_the_gradient_is_clipped_and_the_learning_rate_constant(play: Any, scenario: str) -> None:
    stage = play("dualprompt", scenario, clip=1e-3)
    stage.until(TaskStart)
    stage.until(Train)
    agent = stage.agent
    torch.autograd.backward(agent.loss(*stage.batch()))
    agent.after_backward()
    heads = [] if agent.head is None else agent.head.blocks
    grads = [p.grad.flatten() for p in (agent.general, agent.expert, agent.key, *heads)]
    assert float(torch.cat(grads).norm()) == pytest.approx(1e-3, rel=1e-3)
    assert [agent.schedule(step) for step in (0, 3)] == [1.0, 1.0]


def test_footprint_on_vit_b_16(on_vit_b_16: Callable[..., Any]) -> None:
    # Keys and values of 768 numbers: five of each in two blocks, and twenty of each in three for each task.
    general, expert = 2 * 2 * 5 * 768, 3 * 2 * 20 * 768 + 768
    agent = on_vit_b_16("dualprompt")
    agent.tasks = 10
    cost = agent.footprint()
    assert cost.trainable == general + expert
    assert cost.stored == cost.added_at_inference == general + 10 * expert == 944_640


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"general_length": 0}, "Expected lengths of 1 or more, pull of 0 or more and clip above 0; got 0 and "),
        ({"expert_length": -1}, "and -1, 1.0 and 1.0. The released code has 5 and 20, 1 and 1."),
        ({"pull": -2.0}, "-2.0 and 1.0"),
        ({"clip": 0.0}, "1.0 and 0.0"),
        ({"general_blocks": 4}, "Expected 1 to 3 prompted blocks behind the first 0 of 3; got 4."),
        ({"general_blocks": 3}, "Expected 1 to 0 prompted blocks behind the first 3 of 3; got 1."),
    ],
)
def test_settings_out_of_range(play: Any, setting: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=re.escape(words)):
        play("dualprompt", CLIP, **setting)
