"""SLCA: two speeds, Gaussians of classes, and a head that is aligned for answering alone."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import clgym
from clgym.agents.slca import gaussian, normalised
from clgym.errors import SettingError
from clgym.events import Query, TaskEnd, TaskStart, Train

VIT = "ViT-CIFAR100-CIL-v0"


def rows(agent: Any) -> list[torch.Tensor]:
    return [block.detach().clone() for block in agent.head.blocks]


def test_a_gaussian_is_the_mean_and_the_covariance() -> None:
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) @ torch.ones(4, 4).double()
    x += torch.randn(50, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 7
    mean, factor = gaussian(torch.tensor(50.0), x.sum(0), x.T @ x)
    assert torch.allclose(mean.double(), x.mean(0), atol=1e-5)
    expected = torch.cov(x.T) + 1e-4 * torch.eye(4)
    assert torch.allclose((factor @ factor.T).double(), expected, rtol=1e-4)
    lone, narrow = gaussian(torch.tensor(1.0), x[0], x[0].outer(x[0]))
    assert torch.allclose(lone.double(), x[0], atol=1e-5)
    assert torch.allclose(narrow @ narrow.T, 1e-4 * torch.eye(4), atol=1e-6)


def test_logits_are_normalised_by_the_mean_norm_of_the_tasks() -> None:
    # |(3, 4)| = 5 and |(0, 12)| = 12: the mean is 8.5.
    of = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    logits = torch.tensor([[3.0, 4.0, 0.0, 12.0]])
    assert torch.allclose(normalised(logits, of, 0.1), logits / 8.5 / 0.1)
    assert torch.allclose(normalised(7 * logits, of, 0.1), normalised(logits, of, 0.1))
    assert torch.equal(normalised(logits, of, 0.0), logits)


def test_the_backbone_learns_at_a_share_of_the_heads_rate(play: Any) -> None:
    stage = play("slca", VIT, lr=0.02, slow=0.05)
    stage.until(Train)
    stage.step()
    backbone, head = stage.agent.optimizer.param_groups
    assert head["params"] == list(stage.agent.head.blocks)
    assert (backbone["lr"], head["lr"]) == (pytest.approx(0.001), pytest.approx(0.02))
    assert sum(p.numel() for p in backbone["params"]) == stage.agent.weights.count


def test_gaussians_are_of_the_features_of_the_last_steps(play: Any) -> None:
    stage = play("slca", VIT, steps=5, share=0.4)
    features: dict[str, list[torch.Tensor]] = {}
    for number in range(5):
        event = stage.until(Train)
        if number >= 3:
            with torch.no_grad():
                z = stage.agent.backbone.encode_images(event.inputs)
            for row, target in zip(z, event.targets, strict=True):
                features.setdefault(stage.agent.task.prompts[target][0], []).append(row)
        stage.step()
    stage.step()
    assert stage.agent.gaussians.keys() == features.keys()
    for name, (mean, factor) in stage.agent.gaussians.items():
        x = torch.stack(features[name]).double()
        assert torch.allclose(mean.double(), x.mean(0), atol=1e-4)
        expected = torch.cov(x.T) if len(x) > 1 else torch.zeros(x.shape[1], x.shape[1])
        found = (factor @ factor.T).double()
        assert torch.allclose(found, expected + 1e-4 * torch.eye(len(mean)), atol=1e-4)


def test_the_aligned_head_answers_and_the_next_task_goes_on_without(play: Any) -> None:
    stage = play("slca", VIT, steps=4)
    stage.until(TaskEnd)
    first = rows(stage.agent)
    stage.step()
    assert torch.equal(rows(stage.agent)[0], first[0])  # one task has nothing to be aligned with
    stage.until(TaskEnd)
    before = rows(stage.agent)
    assert torch.equal(before[0], first[0])
    stage.step()
    agent = stage.agent
    after = rows(agent)
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(agent.unaligned, before, strict=True))
    agent.begin_task(agent.task)
    assert all(torch.equal(a, b) for a, b in zip(rows(agent), before, strict=True))


@pytest.mark.parametrize("temperature", [0.0, 0.1])
def test_alignment_sets_old_classes_against_new_ones(play: Any, temperature: float) -> None:
    stage = play("slca", VIT, steps=8, temperature=temperature, shrink=0.0, share=1.0)
    stage.until(TaskEnd, 2)
    agent = stage.agent
    loss = []

    def right() -> float:
        """Return the share of features, drawn anew, that the head puts into their class."""
        names, found = list(agent.gaussians), 0
        generator = torch.Generator().manual_seed(9)
        for c, (mean, factor) in enumerate(agent.gaussians.values()):
            z = mean + torch.randn(100, len(mean), generator=generator) @ factor.T
            found += int((agent.classify(z, agent.head.rows(names)).argmax(1) == c).sum())
        return found / (100 * len(names))

    agent.epochs = 0
    stage.step()
    loss.append(right())
    agent.epochs = 5
    agent.align(agent.head)
    loss.append(right())
    assert loss[1] > loss[0] + 0.05


def test_means_of_older_tasks_shrink_as_they_are_drawn(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = play("slca", VIT, steps=4, shrink=0.5, epochs=1)
    stage.until(TaskEnd, 2)
    agent = stage.agent
    drawn: list[torch.Tensor] = []
    classify = agent.classify

    def noted(z: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        drawn.append(z)
        logits: torch.Tensor = classify(z, rows)
        return logits

    monkeypatch.setattr(agent, "classify", noted)
    monkeypatch.setattr(torch, "randn", lambda *size, **_: torch.zeros(size))
    stage.step()
    features = torch.unique(torch.cat(drawn), dim=0)
    groups = agent.head.groups
    scale = {name: 0.75 if name in groups[0] else 1.0 for name in agent.gaussians}
    expected = torch.unique(torch.stack([scale[name] * mean for name, (mean, _) in agent.gaussians.items()]), dim=0)
    assert torch.allclose(features, expected, atol=1e-6)


def test_on_clip_the_slow_learner_alone_is_left(play: Any) -> None:
    agent = play("slca", "CLIP-MTIL-v0", steps=3).to_the_end()
    assert not agent.gaussians
    assert agent.footprint().stored == 0
    slow = play("full_finetune", "CLIP-MTIL-v0", steps=3, lr=agent.lr, warmup=0.0, label_smoothing=0.0).to_the_end()
    mine, theirs = agent.weights.views(), slow.weights.views()
    assert mine.keys() == theirs.keys()
    assert all(torch.allclose(mine[name], theirs[name], atol=1e-6) for name in mine)


def test_a_state_after_an_alignment_continues_bit_for_bit(play: Any) -> None:
    stage = play("slca", VIT, steps=3)
    stage.until(TaskEnd, 2)
    stage.step()
    other = play("slca", VIT, steps=3).agent
    other.load_state_dict(copy.deepcopy(stage.agent.state_dict()))
    query = stage.until(Query)
    assert np.array_equal(stage.agent.act(query), other.act(query))
    for agent in (stage.agent, other):
        agent.begin_task(agent.task)
    assert all(torch.equal(a, b) for a, b in zip(rows(stage.agent), rows(other), strict=True))


def test_footprint_is_a_gaussian_a_class(play: Any, on_vit_b_16: Callable[..., Any]) -> None:
    stage = play("slca", VIT, steps=3, share=1.0)
    stage.until(TaskStart, 2)
    agent, d = stage.agent, stage.agent.backbone.embed_dim
    assert agent.footprint().stored == len(agent.gaussians) * (d + d * d)
    # timm's ViT-B/16 without classifier.
    assert on_vit_b_16("slca").footprint().trainable == 85_798_656


def test_settings_out_of_range() -> None:
    words = "got 0, 0.01, 5, 0.1, 0.1 and 0.2. The code has 0.01, 0.01, 5, 0.1, 0.1 and all."
    with pytest.raises(SettingError, match=re.escape(words)):
        clgym.make_agent("slca", clgym.make("CLIP-MTIL-v0"), slow=0)
