"""L2P: which prompts an image takes, what learns, and what it costs."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from clgym.agents.l2p import nearest
from clgym.errors import SettingError
from clgym.events import Query, TaskEnd, TaskStart, Train

SCENES = (CLIP, VIT) = ("CLIP-MTIL-v0", "ViT-CIFAR100-CIL-v0")


def images_of(stage: Any, count: int = 6) -> tuple[Tensor, Any]:
    """Play until a question, and return its first images and its prompts."""
    query = stage.until(Query)
    return stage.agent.to_device(query.inputs[:count], None)[0], query.prompts


def test_a_vote_counts_every_image_of_the_batch() -> None:
    near = torch.tensor([[0.9, 0.1, 0.5, 0.0], [0.1, 0.2, 0.9, 0.0], [0.8, 0.9, 0.1, 0.0]])
    # Two each: images take 0 2, 2 1 and 1 0; all three have two votes, and the lower numbers win.
    assert nearest(near, 2).tolist() == [[0, 2], [2, 1], [1, 0]]
    assert nearest(near, 2, shared=True).tolist() == [[0, 1]] * 3
    assert nearest(near[:2], 1, shared=True).tolist() == [[0]] * 2


@pytest.mark.parametrize("scenario", SCENES)
def test_loss_against_its_definition(play: Any, scenario: str) -> None:
    stage = play("l2p", scenario, pull=0.5, top_k=3)
    stage.until(Train, 2)
    agent, (images, targets) = stage.agent, stage.batch()
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
    assert agent.read_prompts == (scenario == VIT)


@pytest.mark.parametrize("scenario", SCENES)
def test_prompts_and_keys_that_no_image_takes_get_no_gradient(play: Any, scenario: str) -> None:
    stage = play("l2p", scenario)
    stage.until(Train)
    agent, (images, targets) = stage.agent, stage.batch()
    images = images[:1].expand_as(images)  # one image, so that all take the same prompts
    with torch.no_grad():
        agent.keys[:] = -agent.vit.query(images).mean(dim=0) + 0.01 * agent.keys
        agent.keys[[1, 4, 5, 8]] *= -1
    torch.autograd.backward(agent.loss(images, targets))
    for part in (agent.prompts, agent.keys):
        assert part.grad.flatten(1).any(dim=1).nonzero().flatten().tolist() == [1, 4, 5, 8]
    assert not any(p.requires_grad for p in agent.backbone.parameters())


def test_a_vote_is_for_training_alone(play: Any) -> None:
    stage = play("l2p", CLIP, shared=True)
    stage.until(TaskEnd)
    images, prompts = images_of(stage)
    with torch.inference_mode():
        whole = stage.agent.answering_logits(images, prompts)
        each = torch.cat([stage.agent.answering_logits(image[None], prompts) for image in images])
    torch.testing.assert_close(whole, each, rtol=0, atol=1e-3)


def test_before_the_first_task_there_are_no_prompts(play: Any) -> None:
    stage = play("l2p", CLIP)
    query = stage.until(Query)
    first = stage.agent.act(query)
    assert np.allclose(first, play("zero_shot", CLIP).agent.act(query), rtol=0, atol=1e-3)
    stage.until(Train)
    assert not np.allclose(stage.agent.act(query), first, atol=1e-2)


def test_the_gradient_is_clipped_and_the_learning_rate_constant(play: Any) -> None:
    stage = play("l2p", VIT, clip=1e-3)
    stage.until(Train)
    agent = stage.agent
    torch.autograd.backward(agent.loss(*stage.batch()))
    agent.after_backward()
    grads = [p.grad for p in (agent.prompts, agent.keys, *agent.head.blocks)]
    assert float(torch.cat([g.flatten() for g in grads]).norm()) == pytest.approx(1e-3, rel=1e-3)
    assert [agent.schedule(step) for step in (0, 3)] == [1.0, 1.0]


@pytest.mark.parametrize("scenario", SCENES)
def test_all_of_the_pool_learns_in_every_task_and_never_grows(play: Any, scenario: str) -> None:
    stage = play("l2p", scenario)
    cost = stage.agent.footprint()
    for _ in range(2):
        stage.until(TaskStart)
        before = stage.agent.prompts.detach().clone(), stage.agent.keys.detach().clone()
        stage.until(TaskEnd)
        stage.step()
        assert not torch.equal(stage.agent.prompts, before[0])
        assert not torch.equal(stage.agent.keys, before[1])
        assert stage.agent.footprint() == cost


def test_footprint_on_vit_b_16(on_vit_b_16: Callable[..., Any]) -> None:
    # Ten prompts of ten tokens of 768 numbers, and ten keys: the pool of the released configuration.
    cost = on_vit_b_16("l2p").footprint()
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
def test_settings_out_of_range(play: Any, setting: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=re.escape(words)):
        play("l2p", CLIP, **setting)
