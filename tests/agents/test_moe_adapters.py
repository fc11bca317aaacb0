"""MoE-Adapters: experts against a loop, what is fixed when, who is selected, and what it costs."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clgym.agents.moe_adapters import SCALE, Experts, Selector, errors
from clgym.errors import SettingError
from clgym.events import Query, TaskEnd, TaskStart, Train

CPU = torch.device("cpu")
CLIP = "CLIP-MTIL-v0"


def images_of(stage: Any, count: int = 6) -> tuple[Tensor, Any]:
    """Play until a question, and return its first images and its prompts."""
    query = stage.until(Query)
    return stage.agent.to_device(query.inputs[:count], None)[0], query.prompts


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed))


def experts(tasks: int = 1) -> Experts:
    """Five experts of width 3 beside a stream of width 4, with routers of their own for each task."""
    made = Experts(4, 5, 3, 2, CPU)
    with torch.no_grad():
        for i, part in enumerate(made.weights.values()):
            part.copy_(random(*part.shape, seed=10 + i))
        for t in range(tasks):
            if t:
                made.renew()
            made.router.copy_(random(4, 5, seed=20 + t))
    return made


def looped(made: Experts, x: Tensor, router: Tensor) -> Tensor:
    """Add up the two best experts of one sample ``(L, d)``."""
    logits = x[0] @ router
    best = logits.argsort(descending=True)[:2]
    total = torch.zeros_like(x)
    for e, w in zip(best, logits[best].softmax(dim=0), strict=True):
        down, down_bias, up, up_bias = (made.weights[n][e] for n in ("down", "down_bias", "up", "up_bias"))
        total += w * (torch.relu(x @ down.T + down_bias) @ up + up_bias)
    return SCALE * total


def test_experts_against_a_loop() -> None:
    made, x = experts(tasks=3), random(6, 7, 4)
    routers = [*made.routers, made.router]
    routes = torch.tensor([2, 0, -1, 1, 2, 0])
    with torch.no_grad():
        got = made(x, routes)
        for sample, route, added in zip(x, routes.tolist(), got, strict=True):
            expected = looped(made, sample, routers[route]) if route >= 0 else torch.zeros_like(sample)
            torch.testing.assert_close(added, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(made(x, torch.tensor([1])), made(x, torch.ones(6, dtype=torch.int64)))
    assert not got[2].any()
    assert not made.used.any()


def test_fresh_experts_say_nothing_and_have_no_favourites() -> None:
    made = Experts(16, 5, 3, 2, CPU)
    made.reset(seeded())
    assert not made(random(6, 7, 16), torch.tensor([0])).any()
    assert 0.2 < float(made.weights["down"].detach().abs().max()) <= 0.25  # 1 / sqrt(16)
    for seed in range(20):
        made(random(8, 2, 16, seed=seed), torch.tensor([0]), seeded(seed))
    # Noise alone chooses: 2 of 5 experts for each of 160 samples, 64 each on average, with a deviation of 6.
    assert int(made.used.sum()) == 320
    assert (made.used - 64).abs().max() < 25


def test_noise_is_of_the_size_that_the_task_learns() -> None:
    made, first = experts(), random(20_000, 1, 4)
    with torch.no_grad():
        made.noise.copy_(random(4, 5, seed=3))
        noisy = made._logits(first[:, 0], torch.zeros(1, dtype=torch.int64), seeded())
        error = (noisy - first[:, 0] @ made.router) / (nn.functional.softplus(first[:, 0] @ made.noise) + 0.01)
    assert float(error.mean()) == pytest.approx(0.0, abs=0.02)
    assert float(error.std()) == pytest.approx(1.0, abs=0.02)


def test_the_most_used_are_fixed_and_stay_fixed() -> None:
    made = experts()
    made.used.copy_(torch.tensor([3, 9, 1, 9, 9]))
    made.freeze()
    assert made.frozen.tolist() == [False, True, False, True, False]
    made.renew()
    assert not made.used.any()
    assert not made.router.any()
    assert made.routers.shape == (1, 4, 5)
    made.used.copy_(torch.tensor([5, 9, 0, 0, 0]))
    made.freeze()
    assert made.frozen.tolist() == [True, True, False, True, False]
    with torch.no_grad():
        made.router.copy_(random(4, 5))
    made(random(50, 7, 4), torch.tensor([1])).square().sum().backward()
    loose = {name: p.grad.clone() for name, p in made.weights.items() if p.grad is not None}
    made.still()
    for name, p in made.weights.items():
        assert not p.grad[made.frozen].any()
        assert torch.equal(p.grad[~made.frozen], loose[name][~made.frozen])
    assert any(grad[made.frozen].any() for grad in loose.values())
    assert not made.routers.requires_grad


def test_errors_of_auto_encoders_against_a_loop() -> None:
    shapes = {"encode": (2, 6, 3), "code_bias": (2, 3), "decode": (2, 3, 6), "bias": (2, 6)}
    parts = {name: random(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    features = random(4, 6, seed=9)
    got = errors(features, parts)
    assert got.shape == (4, 2)
    for b, q in enumerate(features):
        s = torch.sigmoid(6**0.5 * q)
        for t in range(2):
            code = torch.relu(s @ parts["encode"][t] + parts["code_bias"][t])
            again = torch.sigmoid(code @ parts["decode"][t] + parts["bias"][t])
            assert float(got[b, t]) == pytest.approx(float(((again - s) ** 2).mean()), rel=1e-4)


def taught(selector: Selector, features: Tensor) -> None:
    optimizer = torch.optim.Adam(selector.fresh.values(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        selector.loss(features).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def test_an_image_goes_to_the_task_that_knows_it_or_to_none() -> None:
    selector = Selector(16, 8, CPU)
    selector.reset(seeded())
    places = nn.functional.normalize(random(3, 16), dim=1)
    one, two, unseen = (nn.functional.normalize(p + 0.05 * random(40, 16, seed=i), dim=1) for i, p in enumerate(places))
    taught(selector, one)
    selector.renew(seeded(1))
    taught(selector, two)
    with torch.no_grad():
        asked = torch.cat([one, two, unseen])
        assert selector(asked, 3.0).tolist() == [0] * 40 + [1] * 40 + [-1] * 40
        assert selector(asked, 0.0).tolist() == [-1] * 120
        assert set(selector(asked, 1e9).tolist()) == {0, 1}
        alone = torch.cat([selector(q[None], 1.0) for q in asked])
        assert torch.equal(alone, selector(asked, 1.0))
    assert not any(getattr(selector, f"old_{name}").requires_grad for name in selector.fresh)
    assert selector.usuals.shape == (1,)


def test_the_usual_error_is_a_running_mean() -> None:
    selector = Selector(16, 8, CPU)
    selector.reset(seeded())
    batches = [random(5, 16, seed=seed) for seed in range(3)]
    each = [float(selector.loss(batch).detach()) for batch in batches]
    assert float(selector.usual) == pytest.approx(0.95 * (0.95 * each[0] + 0.05 * each[1]) + 0.05 * each[2], rel=1e-5)


def test_a_task_trains_its_router_and_the_experts_that_are_not_fixed(play: Any) -> None:
    stage = play("moe_adapters", CLIP)
    agent = stage.agent
    assert len(agent.experts) == 6  # three blocks in each encoder
    stage.until(TaskEnd)
    stage.step()
    assert all(int(each.frozen.sum()) == 2 for each in agent.experts)
    cost = agent.footprint()
    first = copy.deepcopy(agent.experts)
    encoder = {name: part.detach().clone() for name, part in agent.selector.fresh.items()}
    stage.until(TaskEnd)
    moved = 0
    for before, now in zip(first, agent.experts, strict=True):
        assert torch.equal(now.routers[0], before.router)
        assert not torch.equal(now.router, before.router)
        for name, part in now.weights.items():
            assert torch.equal(part[before.frozen], before.weights[name][before.frozen])
            moved += int(not torch.equal(part, before.weights[name]))
        assert (now.frozen | ~before.frozen).all()
    assert moved > 12
    for name, part in encoder.items():
        assert torch.equal(getattr(agent.selector, f"old_{name}")[0], part)
    later = agent.footprint()
    routers = 6 * 96 * 22
    coder = 2 * 64 * 8 + 8 + 64
    assert later.stored - cost.stored == later.added_at_inference - cost.added_at_inference == routers + coder
    assert later.trainable <= cost.trainable


def test_an_image_that_no_task_knows_is_answered_by_clip(play: Any) -> None:
    stage = play("moe_adapters", CLIP, threshold=0.0, lr=0.05)
    agent, plain = stage.agent, play("zero_shot", CLIP).agent
    stage.until(TaskEnd, 2)
    query = stage.until(Query)
    assert np.allclose(agent.act(query), plain.act(query), rtol=0, atol=1e-3)
    agent.threshold = 1e9
    assert not np.allclose(agent.act(query), plain.act(query), atol=1.0)


def test_image_and_texts_take_the_routers_of_one_task(play: Any) -> None:
    stage = play("moe_adapters", CLIP, lr=0.05)
    stage.until(TaskEnd, 2)
    agent, (images, prompts) = stage.agent, images_of(stage, 4)
    routes = torch.tensor([1, -1, 0, 1])
    agent.selector.forward = lambda features, threshold: routes[: len(features)]
    with torch.inference_mode():
        got = agent.answering_logits(images, prompts)
        for image, route, logits in zip(images, routes, got, strict=True):
            with agent.routed(route[None]):
                features = agent.backbone.encode_images(image[None])
                rows = agent.clip.class_features(prompts, ensemble=True)
            torch.testing.assert_close(logits[None], agent.scale * features @ rows.T, rtol=0, atol=2e-3)
    assert agent.routes is None
    assert {route for _, route in agent._rows} == {0, 1}
    agent.end_task(TaskEnd(1))
    assert not agent._rows


def test_the_model_is_untouched_without_a_route_whatever_happens(play: Any) -> None:
    stage = play("moe_adapters", CLIP, lr=0.05)
    stage.until(TaskEnd)
    agent, (images, _) = stage.agent, images_of(stage)
    plain = play("zero_shot", CLIP).agent

    def fail() -> None:
        with agent.routed(torch.tensor([0])):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    with torch.no_grad():
        features = agent.backbone.encode_images(images)
        torch.testing.assert_close(features, plain.backbone.encode_images(images), rtol=0, atol=1e-6)
        with agent.routed(torch.tensor([-1])):
            assert torch.equal(agent.backbone.encode_images(images), features)


def test_loss_is_smoothed_cross_entropy_and_the_error(play: Any) -> None:
    stage = play("moe_adapters", CLIP, label_smoothing=0.3)
    stage.until(Train, 3)
    agent, (images, targets) = stage.agent, stage.batch()
    state = agent.generator.get_state()
    with torch.no_grad():
        loss = agent.loss(images, targets)
        agent.generator.set_state(state)
        with agent.routed(torch.tensor([0]), agent.generator):
            t = agent.clip.encode_texts([texts[0] for texts in agent.task.prompts])
            z = agent.backbone.encode_images(images)
        p = (agent.scale * z @ t.T).log_softmax(dim=1)
        smoothed = -(0.7 * p[torch.arange(len(targets)), targets] + 0.3 * p.mean(dim=1)).mean()
        error = agent.selector.loss(agent.backbone.encode_images(images))
    assert float(loss) == pytest.approx(float(smoothed + error), rel=1e-4)


def test_the_auto_encoder_has_a_learning_rate_of_its_own(play: Any) -> None:
    stage = play("moe_adapters", CLIP, lr=1e-9)
    stage.until(TaskStart)
    before = stage.agent.selector.fresh["decode"].detach().clone()
    stage.step()
    stage.until(TaskEnd)
    assert [group["share"] * stage.agent.lr for group in stage.agent.optimizer.param_groups] == [
        1e-9,
        pytest.approx(3e-3),
    ]
    assert float((stage.agent.selector.fresh["decode"] - before).detach().abs().max()) > 1e-3


def test_footprint_on_vit_b_16(on_clip_b_16: Callable[..., Any]) -> None:
    # Experts of 2 * 64 * d + 64 + d numbers, and routers and noise of 22 * d a task, in 12 blocks of either width.
    agent = on_clip_b_16("moe_adapters")
    pool = sum(12 * 22 * (2 * 64 * d + 64 + d) for d in (768, 512))
    routers = sum(12 * 22 * d for d in (768, 512))
    coder = 2 * 512 * 100 + 100 + 512
    agent.tasks = 11
    cost = agent.footprint()
    assert cost.trainable == pool + 2 * routers + coder
    assert cost.stored == cost.added_at_inference == pool + 11 * (routers + coder)
    # The paper's 59.8 million train eleven routers with their noise and one auto-encoder of AlexNet's features.
    alexnet = sum(p.numel() for p in Selector(256 * 13 * 13, 100, torch.device("meta")).fresh.values())
    assert pool + 11 * 2 * routers + alexnet == 59_755_876


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (
            {"top_k": 23},
            "Expected top_k from 1 to experts, width and code of 1 or more and threshold of 0 or more; got 23 of 22",
        ),
        ({"top_k": 0}, "got 0 of 22, 8, 8 and 2.0. The paper has 2 of 22, 64 and 100."),
        ({"width": 0}, "got 2 of 22, 0, 8 and 2.0"),
        ({"code": 0}, "got 2 of 22, 8, 0 and 2.0"),
        ({"threshold": -1.0}, "8, 8 and -1.0"),
    ],
)
def test_settings_out_of_range(play: Any, setting: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=re.escape(words)):
        play("moe_adapters", CLIP, **setting)
