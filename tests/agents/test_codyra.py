"""CoDyRA: the prox, its schedule, and what merging and the random-gate control must keep."""

from __future__ import annotations

import re
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch.nn import functional as F

import clgym
from clgym.agents.codyra import CoDyRA, threshold
from clgym.errors import SettingError
from clgym.events import Query, TaskEnd, TaskStart, Train
from clgym.ops import double_soft_threshold_, soft_threshold


def stream(steps: int, **chosen: Any) -> tuple[gymnasium.Env[Any, Any], CoDyRA]:
    env = clgym.make("CLIP-MTIL-v0", tasks=2, steps=steps)
    agent = clgym.make_agent("codyra", env, device="cpu", **chosen)
    assert isinstance(agent, CoDyRA)
    return env, agent


def until(env: gymnasium.Env[Any, Any], agent: CoDyRA, kind: type, event: Any = None) -> Any:
    """Play until an event of a kind waits to be acted on, guessing at questions to save time."""
    event = env.reset(seed=0)[0] if event is None else env.step(act(env, agent, event))[0]
    while not isinstance(event, kind):
        event = env.step(act(env, agent, event))[0]
    return event


def act(env: gymnasium.Env[Any, Any], agent: CoDyRA, event: Any) -> Any:
    return env.action_space.sample() if isinstance(event, Query) else agent.act(event)


def kappas(steps: int) -> list[float]:
    return [threshold(i, steps, 0.5, 50, 0.005) for i in range(steps)]


def test_schedule_of_the_released_runner() -> None:
    # 500 steps: 249 thresholds, at steps 251 to 499, adding up to 0.650; card A1(h), from the released code.
    schedule = kappas(500)
    assert [i for i, k in enumerate(schedule) if k] == list(range(251, 500))
    assert sum(schedule) == pytest.approx(0.64990, abs=1e-4)
    assert schedule[-1] == 0.005
    assert schedule[251] == pytest.approx(0.005 / 49)


@pytest.mark.parametrize("steps", [100, 250, 1000])
def test_total_shrinkage_does_not_depend_on_the_length_of_a_task(steps: int) -> None:
    assert sum(kappas(steps)) == pytest.approx(0.65, abs=0.02)


@pytest.mark.parametrize("prox", [soft_threshold, double_soft_threshold_])
def test_half_of_the_ranks_survive_without_any_gradient(prox: Any) -> None:
    # P(|N(0, 1)| > 0.65) = 0.516: why "adaptive rank" needs the random-gate control (card A1, pitfall 1).
    gates = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    for kappa in kappas(500):
        gates = prox(gates, kappa)
    assert 0.50 < float((gates != 0).float().mean()) < 0.53


def test_a_new_task_starts_from_the_same_function_and_full_rank() -> None:
    env, agent = stream(3)
    event = until(env, agent, TaskEnd)
    agent.act(event)
    images = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = agent.backbone.encode_images(images)
    event = until(env, agent, Train, event)
    with torch.no_grad():
        after = agent.backbone.encode_images(images)
    assert torch.allclose(before, after, atol=1e-5)
    assert agent.lora is not None
    for _, layer in agent.lora.layers:
        assert layer.gate is not None
        assert not layer.Bt.any()
        assert int((layer.gate != 0).sum()) == layer.r


def test_the_merged_update_has_as_much_rank_as_ranks_survived() -> None:
    env, agent = stream(20, kappa_max=0.02)
    until(env, agent, TaskStart)
    assert agent.lora is not None
    before = {name: layer.base.weight.clone() for name, layer in agent.lora.layers}
    event = until(env, agent, TaskEnd)
    survived = {name: int((layer.gate != 0).sum()) for name, layer in agent.lora.layers if layer.gate is not None}
    agent.act(event)
    ranks = {}
    for name, layer in agent.lora.layers:
        spectrum = torch.linalg.svdvals((layer.base.weight - before[name]).double())
        ranks[name] = int((spectrum > 1e-3 * spectrum[0].clamp(min=1e-9)).sum())
    assert 0 < sum(survived.values()) < 16 * len(survived)
    assert all(ranks[name] <= survived[name] for name in survived)
    assert sum(ranks.values()) > 0.8 * sum(survived.values())


def test_gates_get_no_gradient_at_the_first_step() -> None:
    env, agent = stream(2)
    event = until(env, agent, Train)
    torch.autograd.backward(agent.loss(*agent.to_device(event.inputs, event.targets)))
    assert agent.lora is not None
    gradient = agent.lora.arena().grad
    assert gradient is not None
    assert not gradient[-len(agent.lora.gates()) :].any()
    assert gradient.any()


def test_random_gates_move_by_the_threshold_alone() -> None:
    env, agent = stream(6, gates="random")
    event = until(env, agent, Train)
    assert agent.lora is not None
    expected = agent.lora.gates().clone()
    for step in range(6):
        agent.act(event)
        if kappa := threshold(step, 6, 0.5, 50, 0.005):
            expected = soft_threshold(expected, kappa)
        event = env.step(None)[0]
    assert torch.equal(agent.lora.gates(), expected)


def test_learned_gates_move_by_their_gradient_too() -> None:
    env, agent = stream(6)
    event = until(env, agent, Train)
    assert agent.lora is not None
    drawn = agent.lora.gates().clone()
    for _ in range(3):
        agent.act(event)
        event = env.step(None)[0]
    assert not torch.equal(agent.lora.gates(), drawn)


def test_loss_against_its_definition() -> None:
    env, agent = stream(2)
    event = until(env, agent, Train)
    agent.old_classes, agent.text_to_image = 3, 0.7
    images, targets = agent.to_device(event.inputs, event.targets)
    with torch.no_grad():
        loss = agent.loss(images, targets)
        assert agent.task is not None
        z = agent.backbone.encode_images(images)
        t = agent.clip.encode_texts([p[0] for p in agent.task.prompts])
        s = agent.scale
        to_text = F.cross_entropy(s * z @ t.T, targets)
        rows = [
            -(s * t[c] @ z.T).log_softmax(0)[targets == c].sum() if (targets == c).any() else torch.tensor(0.0)
            for c in range(len(t))
        ]
        # Three more rows, of old classes, are zero and count in the average.
        to_image = torch.stack(rows).sum() / (len(t) + 3)
    assert float(loss) == pytest.approx(float(to_text + 0.7 * to_image), rel=1e-5)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"prox": "hard"}, "Expected prox to be one of ('paper', 'released'); got 'hard'."),
        ({"gates": "none"}, "Expected gates to be one of ('learned', 'random'); got 'none'."),
        ({"levels": 1}, "got 0.5, 1 and 0.005. The paper has 0.5, 50 and 0.005."),
        ({"lr": 0}, "Expected lr above 0; got 0."),
    ],
)
def test_settings_out_of_range(setting: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=re.escape(words)):
        stream(1, **setting)


def test_footprint_is_the_papers() -> None:
    _, agent = stream(1)
    assert agent.lora is not None
    gates = 16 * len(agent.lora.layers)
    weights = sum(16 * sum(layer.base.weight.shape) for _, layer in agent.lora.layers)
    cost = agent.footprint()
    assert cost.trainable == weights + gates
    assert (cost.stored, cost.added_at_inference, cost.sample_bytes) == (0, 0, 0)
    assert np.isfinite(agent.scale)
