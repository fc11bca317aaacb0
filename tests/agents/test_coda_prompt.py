"""CODA-Prompt: how components make a prompt, how new ones are drawn, what learns, and what it costs."""

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

from clgym.agents.coda_prompt import assemble, orthogonal, penalty
from clgym.errors import SettingError
from clgym.events import Query, TaskEnd, TaskStart, Train

SCENES = (CLIP, VIT) = ("CLIP-MTIL-v0", "ViT-CIFAR100-CIL-v0")


def images_of(stage: Any, count: int = 6) -> tuple[Tensor, Any]:
    """Play until a question, and return its first images and its prompts."""
    query = stage.until(Query)
    return stage.agent.to_device(query.inputs[:count], None)[0], query.prompts


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed))


def looped(query: Tensor, prompts: Tensor, keys: Tensor, attention: Tensor) -> Tensor:
    """Sum the weighted components one image, one block and one component at a time."""
    made = torch.zeros(len(prompts), len(query), *prompts.shape[2:])
    for n, (block, k, a) in enumerate(zip(prompts, keys, attention, strict=True)):
        for b, q in enumerate(query):
            for m in range(len(block)):
                made[n, b] += F.cosine_similarity(q * a[m], k[m], dim=0) * block[m]
    return made


def test_prompts_against_a_loop() -> None:
    parts = random(2, 3, 4, 6), random(2, 3, 5, seed=1), random(2, 3, 5, seed=2)
    query = random(7, 5, seed=3)
    torch.testing.assert_close(assemble(query, *parts), looped(query, *parts), rtol=0, atol=1e-5)
    # By hand: q * A = (2, 0), K = (1, 1), so the weight is the cosine of half a right angle.
    one = assemble(
        torch.tensor([[2.0, 3.0]]), torch.ones(1, 1, 1, 1), torch.ones(1, 1, 2), torch.tensor([[[1.0, 0.0]]])
    )
    assert float(one) == pytest.approx(0.5**0.5)
    assert not assemble(torch.zeros(1, 2), torch.ones(1, 1, 1, 1), torch.ones(1, 1, 2), torch.ones(1, 1, 2)).any()


def test_new_components_are_orthogonal_to_all_while_there_is_room() -> None:
    before = random(4, 9)
    new = orthogonal(5, before, seeded())
    torch.testing.assert_close(new @ new.T, torch.eye(5), rtol=0, atol=1e-6)
    torch.testing.assert_close(before @ new.T, torch.zeros(4, 5), rtol=0, atol=1e-5)
    full = orthogonal(6, before, seeded())
    torch.testing.assert_close(full @ full.T, torch.eye(6), rtol=0, atol=1e-6)
    assert (before @ full.T).abs().max() > 0.1
    assert torch.equal(orthogonal(5, before, seeded()), new)
    assert torch.equal(orthogonal(3, before[:0], seeded()), orthogonal(3, torch.zeros(0, 9), seeded()))


def test_the_penalty_is_zero_where_components_are_orthonormal() -> None:
    rows = torch.stack([orthogonal(3, torch.zeros(0, 8), seeded(seed)) for seed in range(2)])
    assert float(penalty(rows.view(2, 3, 2, 4))) == pytest.approx(0.0, abs=1e-10)
    # Doubled, each product of a row with itself is 4 rather than 1, in two blocks: 2 * 3 * 3^2 / 9.
    assert float(penalty(2 * rows)) == pytest.approx(6.0, rel=1e-5)


@pytest.mark.parametrize("scenario", SCENES)
def test_loss_against_its_definition(play: Any, scenario: str) -> None:
    stage = play("coda_prompt", scenario, ortho=0.3)
    stage.until(Train, 6)  # in the second task
    agent, (images, targets) = stage.agent, stage.batch()
    with torch.no_grad():
        loss = agent.loss(images, targets)
        parts = agent.parts()
        prompts = looped(agent.backbone.encode_images(images).float(), *parts)
        for block, p in zip(agent.vit.blocks, prompts, strict=False):
            block.attention.prefix = p[:, :2], p[:, 2:]  # the first half are keys
        features = agent.backbone.encode_images(images)
        for block in agent.vit.blocks:
            block.attention.prefix = None
        expected = F.cross_entropy(agent.classify(features, agent.training_rows(agent.task.prompts)), targets)
        for part in parts:
            for rows in part.flatten(2):
                expected = expected + 0.3 * (rows @ rows.T - torch.eye(10)).square().mean()
    assert len(prompts) == 2
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("scenario", SCENES)
def test_components_of_earlier_tasks_are_fixed_and_take_part(play: Any, scenario: str) -> None:
    stage = play("coda_prompt", scenario)
    agent = stage.agent
    stage.until(TaskEnd)
    stage.step()
    first = [part.detach().clone() for part in agent.fresh]
    stage.until(Train)
    for old, new, learned in zip(agent.fixed, agent.fresh, first, strict=True):
        assert torch.equal(old, learned)
        assert not old.requires_grad
        for before, drawn in zip(old.flatten(2), new.detach().flatten(2), strict=True):
            torch.testing.assert_close(before @ drawn.T, torch.zeros(5, 5), rtol=0, atol=1e-5)
    torch.autograd.backward(agent.loss(*stage.batch()))
    assert all(part.grad is not None and part.grad.any() for part in agent.fresh)
    assert not any(p.requires_grad for p in agent.backbone.parameters())
    stage.until(TaskEnd)
    assert all(torch.equal(old, learned) for old, learned in zip(agent.fixed, first, strict=True))
    images, prompts = images_of(stage)
    rows = agent.class_rows(prompts, False)
    with torch.no_grad():
        answer = agent.logits(images, rows)
        agent.fixed[0].zero_()
        assert not torch.allclose(agent.logits(images, rows), answer, atol=1e-2)


@pytest.mark.parametrize("scenario", SCENES)
def test_components_grow_by_the_task_and_never_shrink(play: Any, scenario: str) -> None:
    stage = play("coda_prompt", scenario, components=3)
    sizes = []
    for _ in range(2):
        stage.until(TaskStart)
        stage.step()
        sizes.append([part.shape[1] for part in stage.agent.parts()])
    assert sizes == [[3] * 3, [6] * 3]
    cost = stage.agent.footprint()
    assert cost.stored == cost.added_at_inference == 2 * cost.trainable


@pytest.mark.parametrize("scenario", SCENES)
def test_a_state_goes_on_bit_for_bit(play: Any, scenario: str) -> None:
    stage, other = play("coda_prompt", scenario), play("coda_prompt", scenario)
    stage.until(Train, 6)
    other.until(Train, 6)
    other.agent = play("coda_prompt", scenario).agent
    other.agent.load_state_dict(copy.deepcopy(stage.agent.state_dict()))
    for each in (stage, other):
        each.until(TaskEnd)
    query = stage.until(Query)
    assert np.array_equal(stage.agent.act(query), other.agent.act(query))


def test_before_the_first_task_there_are_no_prompts(play: Any) -> None:
    stage = play("coda_prompt", CLIP)
    query = stage.until(Query)
    first = stage.agent.act(query)
    assert np.allclose(first, play("zero_shot", CLIP).agent.act(query), rtol=0, atol=1e-3)
    stage.until(Train)
    assert not np.allclose(stage.agent.act(query), first, atol=1e-2)


def test_footprint_on_vit_b_16(on_vit_b_16: Callable[..., Any]) -> None:
    # Ten components a task in five blocks: prompts of eight tokens of 768 numbers, a key and an attention.
    agent = on_vit_b_16("coda_prompt")
    agent.tasks = 10
    cost = agent.footprint()
    assert cost.trainable == 10 * 5 * (8 + 2) * 768 == 384_000
    assert cost.stored == cost.added_at_inference == 3_840_000  # a hundred components


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (
            {"components": 0},
            "Expected components from 1 to 64, an even length of 2 or more and ortho of 0 or more; got 0",
        ),
        ({"components": 65}, "got 65, "),
        ({"length": 3}, "3 and 1e-07. The released code has 10 in each of ten tasks, 8 and 0."),
        ({"length": 0}, "0 and 1e-07"),
        ({"ortho": -0.1}, "and -0.1."),
        ({"blocks": 4}, "Expected 1 to 3 prompted blocks behind the first 0 of 3; got 4."),
    ],
)
def test_settings_out_of_range(play: Any, setting: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=re.escape(words)):
        play("coda_prompt", CLIP, **setting)
