"""L2P: which prompts an image takes, what learns, and what it costs."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from clgym.agent import EMBEDDED_CLIP, EMBEDDED_VIT
from clgym.agents.l2p import nearest
from clgym.errors import SettingError
from clgym.events import TaskEnd, TaskStart, Train

Lives = Callable[..., Any]


def test_a_vote_counts_every_image_of_the_batch() -> None:
    near = torch.tensor([[0.9, 0.1, 0.5, 0.0], [0.1, 0.2, 0.9, 0.0], [0.8, 0.9, 0.1, 0.0]])
    # Two each: images take 0 2, 2 1 and 1 0; all three have two votes, and the lower numbers win.
    assert nearest(near, 2).tolist() == [[0, 2], [2, 1], [1, 0]]
    assert nearest(near, 2, shared=True).tolist() == [[0, 1]] * 3
    assert nearest(near[:2], 1, shared=True).tolist() == [[0]] * 2


def test_loss_against_its_definition(lives: Lives, backbone: str) -> None:
    life = lives("l2p", backbone, pull=0.5, top_k=3)
    life.play(Train, 2)
    agent, (images, targets) = life.agent, life.batch()
    with torch.no_grad():
        loss = agent.loss(images, targets)
        query = agent.backbone.encode_images(images)
        each = []
        for image, q, target in zip(images, query, targets, strict=True):
            near = torch.stack([F.cosine_similarity(q, key, dim=0) for key in agent.keys])
            chosen = near.argsort(descending=True)[:3]
            with agent.vit.appended(torch.cat([agent.prompts[i] for i in chosen])[None], read=agent.read_prompts):
                features = agent.backbone.encode_images(image[None])
            logits = agent.classify(features, agent.training_rows(agent.task.prompts))
            each.append(F.cross_entropy(logits, target[None]) - 0.5 * near[chosen].sum())
    assert float(loss) == pytest.approx(float(torch.stack(each).mean()), rel=1e-4)
    assert agent.read_prompts == (backbone == EMBEDDED_VIT)


def test_prompts_and_keys_that_no_image_takes_get_no_gradient(lives: Lives, backbone: str) -> None:
    life = lives("l2p", backbone)
    life.play(Train)
    agent, (images, targets) = life.agent, life.batch()
    with torch.no_grad():
        agent.keys[:] = -agent.vit.query(images).mean(dim=0) + 0.01 * agent.keys
        agent.keys[[1, 4, 5, 8]] *= -1
    torch.autograd.backward(agent.loss(images, targets))
    for part in (agent.prompts, agent.keys):
        assert part.grad.flatten(1).any(dim=1).nonzero().flatten().tolist() == [1, 4, 5, 8]
    assert not any(p.requires_grad for p in agent.backbone.parameters())


def test_a_vote_is_for_training_alone(lives: Lives) -> None:
    life = lives("l2p", EMBEDDED_CLIP, shared=True)
    life.play(TaskEnd)
    images, prompts = life.images(), life.queries[-1].prompts
    with torch.inference_mode():
        whole = life.agent.answering_logits(images, prompts)
        each = torch.cat([life.agent.answering_logits(image[None], prompts) for image in images])
    torch.testing.assert_close(whole, each, rtol=0, atol=1e-3)


def test_before_the_first_task_there_are_no_prompts(lives: Lives) -> None:
    life = lives("l2p", EMBEDDED_CLIP)
    query = life.queries[0]
    first = life.agent.act(query)
    assert np.allclose(first, lives("zero_shot", EMBEDDED_CLIP).agent.act(query), rtol=0, atol=1e-3)
    life.play(Train)
    assert not np.allclose(life.agent.act(query), first, atol=1e-2)


def test_the_gradient_is_clipped_and_the_learning_rate_constant(lives: Lives) -> None:
    life = lives("l2p", EMBEDDED_VIT, clip=1e-3)
    life.play(Train)
    agent = life.agent
    torch.autograd.backward(agent.loss(*life.batch()))
    agent.after_backward()
    grads = [p.grad for p in (agent.prompts, agent.keys, *agent.head.blocks)]
    assert float(torch.cat([g.flatten() for g in grads]).norm()) == pytest.approx(1e-3, rel=1e-3)
    assert [agent.schedule(step) for step in (0, 3)] == [1.0, 1.0]


def test_all_of_the_pool_learns_in_every_task_and_never_grows(lives: Lives, backbone: str) -> None:
    life = lives("l2p", backbone)
    cost = life.agent.footprint()
    for _ in range(2):
        life.play(TaskStart)
        before = life.agent.prompts.detach().clone(), life.agent.keys.detach().clone()
        life.agent.act(life.play(TaskEnd))
        life.events.pop(0)
        assert not torch.equal(life.agent.prompts, before[0])
        assert not torch.equal(life.agent.keys, before[1])
        assert life.agent.footprint() == cost


def test_footprint_on_vit_b_16(vit_b_16: Callable[..., Any]) -> None:
    # Ten prompts of ten tokens of 768 numbers, and ten keys: the pool of the released configuration.
    cost = vit_b_16("l2p", tasks=10).footprint()
    assert cost.trainable == cost.stored == cost.added_at_inference == 10 * 10 * 768 + 10 * 768 == 84_480


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (
            {"top_k": 11},
            "Expected top_k from 1 to pool, length of 1 or more, pull of 0 or more and clip above 0; got 11",
        ),
        ({"top_k": 0}, "got 0 of 10"),
        ({"length": 0}, "got 4 of 10, 0, 1.0 and 1.0. The released code has 4 of 10, 10, 1 and 1."),
        ({"pull": -1.0}, "-1.0 and 1.0"),
        ({"clip": 0.0}, "1.0 and 0.0"),
        ({"read": "all"}, "Expected read 'prompts' or 'class'; got 'all'."),
    ],
)
def test_settings_out_of_range(lives: Lives, setting: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=re.escape(words)):
        lives("l2p", EMBEDDED_CLIP, **setting)
