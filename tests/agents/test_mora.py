"""MoRA: who is active and by how much, what stays frozen, and when the answer is the frozen model's."""

from __future__ import annotations

import copy
import re
from typing import Any

import gymnasium
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import clgym
from clgym.agents.mora import ExpertLinear, MoRA, SideBySide
from clgym.attention import unfold_attention
from clgym.backbones import load_clip
from clgym.errors import SettingError
from clgym.events import Query, TaskEnd, TaskStart, Train
from clgym.lora import LoRALinear
from clgym.ops import activations


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(topk: int = 4, temperature: float = 0.1, delta: float = 0.0, r: int = 6) -> ExpertLinear:
    """A layer of 16 inputs and 8 outputs in training mode, whose fresh experts say something."""
    base = nn.Linear(16, 8)
    with torch.no_grad():
        base.weight.copy_(random(8, 16, seed=1))
    made = ExpertLinear(LoRALinear(base, r), topk, temperature, delta)
    fill(made, random(r, 16, seed=2), random(r, 8, seed=3))
    return made.train()


def fill(at: ExpertLinear, keys: torch.Tensor, values: torch.Tensor | None = None) -> None:
    with torch.no_grad():
        at.fresh.A.copy_(keys)
        at.fresh.Bt.zero_() if values is None else at.fresh.Bt.copy_(values)


def update(at: ExpertLinear, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        changed: torch.Tensor = at(x) - at.fresh.base(x)
        return changed


def stream(steps: int, **chosen: Any) -> tuple[gymnasium.Env[Any, Any], MoRA]:
    env = clgym.make("CLIP-MTIL-v0", tasks=2, steps=steps)
    agent = clgym.make_agent("mora", env, device="cpu", **chosen)
    assert isinstance(agent, MoRA)
    return env, agent


def until(env: gymnasium.Env[Any, Any], agent: MoRA, kind: type, event: Any = None) -> Any:
    """Play until an event of a kind waits to be acted on, guessing at questions to save time."""
    event = env.reset(seed=0)[0] if event is None else env.step(act(env, agent, event))[0]
    while not isinstance(event, kind):
        event = env.step(act(env, agent, event))[0]
    return event


def act(env: gymnasium.Env[Any, Any], agent: MoRA, event: Any) -> Any:
    return env.action_space.sample() if isinstance(event, Query) else agent.act(event)


@pytest.mark.parametrize(("experts", "topk"), [(160, 16), (16, 16), (5, 2)])
def test_rows_sum_to_one_over_at_most_k_experts(experts: int, topk: int) -> None:
    a = activations(random(50, experts), topk, 0.1)
    assert torch.allclose(a.sum(-1), torch.ones(50))
    assert ((a > 0).sum(-1) <= topk).all()
    assert ((a > 0).sum(-1) > 1).any()


def test_worked_by_hand() -> None:
    # p = (3, -4), |p| = 5, s = (0.6, -0.8); signed: the larger response in absolute value is the lesser one.
    a = activations(torch.tensor([3.0, -4.0]), 2, 0.7)
    first = 1 / (1 + float(torch.exp(torch.tensor((-0.8 - 0.6) / 0.7))))
    assert a.tolist() == pytest.approx([first, 1 - first], rel=1e-5)
    made = layer(topk=2, temperature=0.7, r=2)
    fill(made, torch.eye(16)[:2], random(2, 8, seed=3))
    x = F.pad(torch.tensor([3.0, -4.0]), (0, 14))
    # The value is multiplied by the raw response p, not by the score s.
    expected = first * 3 * made.fresh.Bt[0] - (1 - first) * 4 * made.fresh.Bt[1]
    assert torch.allclose(update(made, x), expected.detach(), atol=1e-5)


def test_a_gap_of_a_twentieth_is_a_factor_of_e_to_the_fifth() -> None:
    s = torch.tensor([0.6, 0.55, (1 - 0.6**2 - 0.55**2) ** 0.5 * -1])  # of length 1; card A2, pitfall 2
    a = activations(s, 2, 0.01)
    assert float(a[0] / a[1]) == pytest.approx(148.41, rel=1e-3)
    assert a[2] == 0


@pytest.mark.parametrize("value", [1.0, 0.0, -1.0])
def test_of_equal_scores_the_lowest_index_is_taken(value: float) -> None:
    a = activations(torch.full((3, 40), value), 4, 0.01)
    assert torch.equal(a, F.pad(torch.full((3, 4), 0.25), (0, 36)))
    mixed = activations(torch.tensor([1.0, 2.0, 1.0, 1.0]), 2, 0.5)
    assert (mixed > 0).tolist() == [True, True, False, False]


@pytest.mark.parametrize("c", [0.01, 3.0, 1000.0])
def test_scaling_an_input_scales_its_update_alone(c: float) -> None:
    made, x = layer(), random(20, 16)
    p = x @ made.fresh.A.detach().T
    assert torch.allclose(activations(c * p, 4, 0.1), activations(p, 4, 0.1), atol=1e-5)
    assert torch.allclose(update(made, c * x), c * update(made, x), rtol=1e-3, atol=1e-5 * c)


def test_fresh_experts_compete_although_they_say_nothing() -> None:
    made, x = layer(), random(20, 16)
    before = update(made, x)
    made.freeze()
    fill(made, random(6, 16, seed=4))  # values of zero
    assert not torch.allclose(update(made, x), before, atol=1e-2)


def test_fresh_experts_orthogonal_to_the_input_change_nothing_where_k_old_ones_respond() -> None:
    made, x = layer(topk=2).double(), random(200, 16).double()
    x[:, -1] = 0.0
    x = x[((x @ made.fresh.A.detach().T) > 0).sum(-1) >= 2]
    assert len(x) > 100
    before = update(made, x)
    made.freeze()
    fill(made, torch.eye(16)[-1:].expand(6, 16))
    assert torch.allclose(update(made, x), before, atol=1e-12)
    assert made.keys.shape == (6, 16)


def test_the_threshold_silences_at_evaluation_only_and_leaves_the_others_as_they_are() -> None:
    p = random(50, 40)
    free, cut = activations(p, 8, 0.1), activations(p, 8, 0.1, 0.25)
    kept = F.normalize(p, dim=-1) >= 0.25
    assert torch.equal(cut, free * kept)
    assert 0 < (cut.sum(-1) < 0.999).sum()
    made, x = layer(delta=0.4), random(20, 16)
    training = update(made, x)
    assert not torch.equal(update(made.eval(), x), training)


def test_frozen_experts_get_no_gradient_and_stay() -> None:
    made = layer()
    made.freeze()
    keys, values = made.keys.clone(), made.values.clone()
    made(random(20, 16)).square().sum().backward()
    assert not made.keys.requires_grad
    assert not made.values.requires_grad
    assert made.fresh.A.grad is not None
    assert made.fresh.A.grad.any()
    assert torch.equal(made.keys, keys)
    assert torch.equal(made.values, values)


def test_an_agent_trains_the_experts_of_the_task_at_hand() -> None:
    env, agent = stream(3)
    event = until(env, agent, TaskEnd)
    first = {name: (at.fresh.A.detach().clone(), at.fresh.Bt.detach().clone()) for name, at in agent.experts.items()}
    assert agent.footprint().stored == agent.footprint().added_at_inference == agent.footprint().trainable
    event = until(env, agent, TaskEnd, event)
    for name, at in agent.experts.items():
        keys, values = first[name]
        assert torch.equal(at.keys, keys)
        assert torch.equal(at.values, values)
        assert values.any()
        assert at.fresh.Bt.any()
    cost = agent.footprint()
    assert cost.stored == cost.added_at_inference == 2 * cost.trainable
    assert cost.trainable == sum(16 * sum(at.weight.shape) for at in agent.experts.values())


def test_above_every_score_the_model_is_the_frozen_one() -> None:
    env, agent = stream(3, delta=1.01)
    event = until(env, agent, TaskEnd)
    until(env, agent, TaskEnd, event)
    plain = load_clip("embedded/tiny-clip", "cpu")
    unfold_attention(plain.model)
    images = torch.randint(0, 256, (8, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(agent.backbone.encode_images(images), plain.encode_images(images))
        assert torch.equal(agent.clip.encode_texts(["a cat"]), plain.encode_texts(["a cat"]))
        for at in agent.experts.values():
            at.delta = -1.0
        assert not torch.allclose(agent.backbone.encode_images(images), plain.encode_images(images), atol=1e-3)


def test_training_is_without_the_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    env, agent = stream(1)
    event = until(env, agent, Train)
    modes: list[bool] = []
    loss = agent.loss

    def watched(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        modes.extend(at.training for at in agent.experts.values())
        return loss(images, targets)

    monkeypatch.setattr(agent, "loss", watched)
    agent.act(event)
    assert len(modes) == len(agent.experts)
    assert all(modes)
    assert not any(at.training for at in agent.experts.values())


def test_layers_of_the_same_inputs_are_asked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    env, agent = stream(2, r=4, topk=4)
    event = until(env, agent, TaskEnd)
    event = until(env, agent, TaskEnd, event)
    images = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def said(agent: MoRA) -> list[torch.Tensor]:
        assert agent.lora is not None
        found = []
        for learning in (True, False):
            agent._train(learning)
            features = agent.backbone.encode_images(images)
            loss = (features * random(*features.shape)).sum() + agent.clip.encode_texts(["a cat"])[0, 0]
            found += [loss, *torch.autograd.grad(loss, list(agent.lora.parameters()))]
            with torch.inference_mode():
                found.append(agent.backbone.encode_images(images))
        return found

    def outputs(self: SideBySide, x: torch.Tensor, *layers: ExpertLinear) -> torch.Tensor | None:
        asked.append(len(layers))
        return original(self, x, *layers) if together else None

    asked: list[int] = []
    original, together = SideBySide.outputs, True
    monkeypatch.setattr(SideBySide, "outputs", outputs)
    at_once, copied = said(agent), said(copy.deepcopy(agent))
    assert set(asked) == {2, 3}
    together = False
    for mine, other, alone in zip(at_once, copied, said(agent), strict=True):
        assert torch.equal(mine, other)
        torch.testing.assert_close(mine, alone, rtol=1e-4, atol=1e-5)


def test_a_new_agent_is_zero_shot() -> None:
    env, agent = stream(1)
    event = until(env, agent, Query)
    other = clgym.make_agent("zero_shot", env, device="cpu")
    assert torch.allclose(torch.from_numpy(agent.act(event)), torch.from_numpy(other.act(event)), atol=1e-4)


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
        to_text = F.cross_entropy(agent.scale * z @ t.T, targets)
        rows = -(agent.scale * t @ z.T).log_softmax(1)[targets, torch.arange(len(targets))]
        # Three more rows, of old classes, are zero and count in the average.
        to_image = rows.sum() / (len(t) + 3)
    assert float(loss) == pytest.approx(float(to_text + 0.7 * to_image), rel=1e-5)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"temperature": 0.0}, "got 0.0 and 16. The paper has 0.01 and 16."),
        ({"topk": 0}, "Expected temperature above 0 and topk of 1 or more; got 0.01 and 0."),
    ],
)
def test_settings_out_of_range(setting: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=re.escape(words)):
        stream(1, **setting)


def test_at_least_two_are_active() -> None:
    env, agent = stream(1, topk=1)
    until(env, agent, TaskStart)
    assert {at.topk for at in agent.experts.values()} == {2}
