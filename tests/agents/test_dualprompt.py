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

from clgym.agent import EMBEDDED_CLIP
from clgym.errors import SettingError
from clgym.events import TaskEnd, TaskStart, Train

Lives = Callable[..., Any]


def encoded(agent: Any, image: Tensor, expert: Tensor) -> Tensor:
    """Encode one image with the general prompt in the first block and an expert prompt in the second, by hand."""
    first, second = (block.attention for block in agent.vit.blocks[:2])
    first.prefix = agent.general[0, 0][None], agent.general[0, 1][None]
    second.prefix = expert[0, 0][None], expert[0, 1][None]
    features: Tensor = agent.backbone.encode_images(image[None])
    first.prefix = second.prefix = None
    return features


def test_loss_against_its_definition(lives: Lives, backbone: str) -> None:
    life = lives("dualprompt", backbone, pull=0.5)
    life.play(Train, 6)  # in the second task
    agent, (images, targets) = life.agent, life.batch()
    assert agent.tasks == 2
    with torch.no_grad():
        loss = agent.loss(images, targets)
        each = []
        for image, target in zip(images, targets, strict=True):
            logits = agent.classify(encoded(agent, image, agent.expert), agent.training_rows(agent.task.prompts))
            near = F.cosine_similarity(agent.backbone.encode_images(image[None])[0], agent.key, dim=0)
            each.append(F.cross_entropy(logits, target[None]) - 0.5 * near)
    assert float(loss) == pytest.approx(float(torch.stack(each).mean()), rel=1e-4)


def test_an_answer_takes_the_expert_of_the_nearest_key(lives: Lives, backbone: str) -> None:
    life = lives("dualprompt", backbone)
    life.play(TaskEnd, 2)
    agent, images = life.agent, life.images()
    with torch.no_grad():
        query = agent.backbone.encode_images(images)
        agent.expert += torch.randn(agent.expert.shape, generator=torch.Generator().manual_seed(0))
        agent.keys[0], agent.key[:] = query[0], query[1]
        rows = agent.class_rows(life.queries[-1].prompts, False)
        got = agent.logits(images, rows)
        chosen = []
        for image, q, logits in zip(images, query, got, strict=True):
            chosen.append(int(F.cosine_similarity(q, agent.key, dim=0) > F.cosine_similarity(q, agent.keys[0], dim=0)))
            features = encoded(agent, image, agent.expert if chosen[-1] else agent.experts[0])
            torch.testing.assert_close(logits, agent.classify(features, rows)[0], rtol=0, atol=1e-3)
    assert chosen[:2] == [0, 1]


def test_each_task_trains_its_own_expert_from_the_last(lives: Lives, backbone: str) -> None:
    life = lives("dualprompt", backbone)
    life.agent.act(life.play(TaskEnd))
    life.events.pop(0)
    agent = life.agent
    general, expert, key = (p.detach().clone() for p in (agent.general, agent.expert, agent.key))
    life.play(Train)
    assert torch.equal(agent.expert, expert)
    assert not torch.equal(agent.key, key)
    life.play(TaskEnd)
    assert torch.equal(agent.experts[0], expert)
    assert torch.equal(agent.keys[0], key)
    assert not torch.equal(agent.expert, expert)
    assert not torch.equal(agent.general, general)
    assert agent.experts.shape[0] == agent.keys.shape[0] == 1


def test_only_the_pull_moves_the_key_and_nothing_the_backbone(lives: Lives, backbone: str) -> None:
    life = lives("dualprompt", backbone, pull=0.0)
    life.play(Train, 5)
    agent = life.agent
    torch.autograd.backward(agent.loss(*life.batch()))
    assert not agent.key.grad.any()
    assert agent.expert.grad.any()
    assert agent.general.grad.any()
    assert not any(p.requires_grad for p in agent.backbone.parameters())
    agent.pull = 1.0
    torch.autograd.backward(agent.loss(*life.batch()))
    assert agent.key.grad.any()


def test_a_state_goes_on_bit_for_bit(lives: Lives, backbone: str) -> None:
    life, other = lives("dualprompt", backbone), lives("dualprompt", backbone)
    life.play(Train, 6)
    other.agent.load_state_dict(copy.deepcopy(life.agent.state_dict()))
    other.events = list(life.events)
    for each in (life, other):
        each.play(TaskEnd)
    assert np.array_equal(life.agent.act(life.queries[-1]), other.agent.act(life.queries[-1]))


def test_before_the_first_task_there_are_no_prompts(lives: Lives) -> None:
    life = lives("dualprompt", EMBEDDED_CLIP)
    first = life.agent.act(life.queries[0])
    assert np.allclose(first, lives("zero_shot", EMBEDDED_CLIP).agent.act(life.queries[0]), rtol=0, atol=1e-3)
    life.play(Train)
    assert not np.allclose(life.agent.act(life.queries[0]), first, atol=1e-2)


def test_the_gradient_is_clipped_and_the_learning_rate_constant(lives: Lives, backbone: str) -> None:
    life = lives("dualprompt", backbone, clip=1e-3)
    life.play(TaskStart)
    life.play(Train)
    agent = life.agent
    torch.autograd.backward(agent.loss(*life.batch()))
    agent.after_backward()
    heads = [] if agent.head is None else agent.head.blocks
    grads = [p.grad.flatten() for p in (agent.general, agent.expert, agent.key, *heads)]
    assert float(torch.cat(grads).norm()) == pytest.approx(1e-3, rel=1e-3)
    assert [agent.schedule(step) for step in (0, 3)] == [1.0, 1.0]


def test_footprint_on_vit_b_16(vit_b_16: Callable[..., Any]) -> None:
    # Keys and values of 768 numbers: five of each in two blocks, and twenty of each in three for each task.
    general, expert = 2 * 2 * 5 * 768, 3 * 2 * 20 * 768 + 768
    cost = vit_b_16("dualprompt", tasks=10).footprint()
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
def test_settings_out_of_range(lives: Lives, setting: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=re.escape(words)):
        lives("dualprompt", EMBEDDED_CLIP, **setting)
