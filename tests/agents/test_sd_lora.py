"""SD-LoRA: directions that stay, magnitudes that go on, and the two variants that save parameters."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

import clgym
from clgym.attention import vision_blocks
from clgym.errors import SettingError
from clgym.events import TaskEnd, TaskStart, Train

SCENES = ("CLIP-MTIL-v0", "ViT-CIFAR100-CIL-v0")


def each(layer: Any, ranks: list[int]) -> list[torch.Tensor]:
    """Return the kept directions of a layer as matrices, fp64 ``(out, in)``."""
    keys, values = layer.keys.double().split(ranks), layer.values.double().split(ranks)
    return [value.T @ key for key, value in zip(keys, values, strict=True)]


def features_of(agent: Any) -> torch.Tensor:
    images = torch.randint(0, 256, (5, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return agent.backbone.encode_images(images)  # type: ignore[no-any-return]


@pytest.mark.parametrize("scenario", SCENES)
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_only_queries_and_values_of_the_image_encoder_move(play: Any, scenario: str, variant: str) -> None:
    stage = play("sd_lora", scenario, steps=3, variant=variant)
    before = {name: value.clone() for name, value in stage.agent.backbone.model.state_dict().items()}
    agent = stage.to_the_end()
    after = agent.backbone.model.state_dict()
    visual = r"visual\." if scenario.startswith("CLIP") else ""
    assert all(re.fullmatch(rf"{visual}.*\.attn\.[qv]_proj", name) for name in agent.directions)
    frozen = [n for n in before if not re.search(r"\.(A|Bt|keys|values)$", n)]
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert len(agent.directions) == 2 * len(vision_blocks(agent.backbone.model))


@pytest.mark.parametrize("scenario", SCENES)
def test_kept_directions_have_norm_1_and_never_change(play: Any, scenario: str) -> None:
    stage = play("sd_lora", scenario, steps=4)
    stage.until(TaskStart, 2)
    agent = stage.agent
    first = {name: each(layer, [10])[0] for name, layer in agent.directions.items()}
    assert all(float(D.norm()) == pytest.approx(1, abs=1e-5) for D in first.values())
    agent = stage.to_the_end()
    for name, layer in agent.directions.items():
        old, new = each(layer, [10, 10])
        assert torch.equal(old, first[name])
        assert float(new.norm()) == pytest.approx(1, abs=1e-5)


def test_all_magnitudes_and_the_newest_direction_are_learned(play: Any) -> None:
    stage = play("sd_lora", "CLIP-MTIL-v0", steps=4)
    images, targets = stage.batch(5)
    agent = stage.agent
    before = agent.magnitudes.values.detach().clone()
    assert before.tolist() == [pytest.approx(float(before[0])), 1.0]
    assert float(before[0]) != 1.0
    parameters = [agent.magnitudes.values, *(p for _, layer in agent.lora.layers for p in (layer.A, layer.Bt))]
    gradients = torch.autograd.grad(agent.loss(images, targets), parameters)
    assert all(bool(gradient.any(dim=-1).all()) for gradient in gradients)
    stage.until(TaskEnd)
    assert bool((agent.magnitudes.values != before).all())
    learnt = {id(p) for group in agent.optimizer.param_groups for p in group["params"]}
    assert learnt == {id(agent.lora.arena()), id(agent.magnitudes.values)}


def test_a_layer_is_the_sum_of_the_equation(play: Any) -> None:
    stage = play("sd_lora", "CLIP-MTIL-v0", steps=3)
    stage.until(Train, 6)
    agent = stage.agent
    old, new = agent.magnitudes.values.detach().double()
    for layer in agent.directions.values():
        (kept,) = each(layer, [10])
        product = (layer.fresh.Bt.T @ layer.fresh.A).detach().double()
        expected = layer.weight.double() + old * kept + new * product / product.norm()
        x = torch.randn(7, kept.shape[1], generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            found = layer(x)
        assert torch.allclose(found.double(), x.double() @ expected.T + layer.fresh.base.bias.double(), atol=1e-5)
        assert float((old * kept).norm()) > 0.1


@pytest.mark.parametrize("scenario", SCENES)
def test_keeping_a_direction_changes_no_answer(play: Any, scenario: str) -> None:
    stage = play("sd_lora", scenario, steps=4)
    stage.until(TaskEnd, 2)
    features, ranks = [features_of(stage.agent)], list(stage.agent.magnitudes.ranks)
    stage.step()
    features.append(features_of(stage.agent))
    assert (ranks, stage.agent.magnitudes.ranks) == ([10], [10, 10])
    assert torch.allclose(features[0], features[1], atol=1e-4 * float(features[0].abs().max()))


def test_ranks_shrink_and_the_rest_stays_zero(play: Any) -> None:
    stage = play("sd_lora", "CLIP-MTIL-v0", steps=4, r=6, reduce=((2, 3),))
    width = sum(layer.A.shape[1] + layer.Bt.shape[1] for _, layer in stage.agent.lora.layers)
    stage.until(TaskStart, 2)
    assert stage.agent.footprint().stored == 6 * width + 1
    stage.step()
    assert stage.agent.footprint().trainable == 3 * width + 2
    stage.until(TaskEnd)
    for _, layer in stage.agent.lora.layers:
        assert layer.A[:3].any(dim=1).all()
        assert not layer.A[3:].any()
        assert not layer.Bt[3:].any()
    agent = stage.to_the_end()
    assert agent.magnitudes.ranks == [6, 3]
    assert all(layer.keys.shape[0] == 9 for layer in agent.directions.values())


def test_a_direction_that_others_sum_to_is_absorbed_without_a_change(play: Any) -> None:
    stage = play("sd_lora", "CLIP-MTIL-v0", steps=4, r=4, absorb=0.01)
    stage.until(TaskEnd, 2)
    agent = stage.agent
    # The second direction is made minus the first, in all layers at once.
    for layer in agent.directions.values():
        with torch.no_grad():
            layer.fresh.A.copy_(layer.keys)
            layer.fresh.Bt.copy_(-layer.values)
            agent.magnitudes.values.copy_(torch.tensor([0.5, 0.2]))
    before = features_of(agent)
    stage.step()
    assert agent.magnitudes.ranks == [4]
    assert agent.magnitudes.values.tolist() == [pytest.approx(0.5 - 0.2, abs=1e-5)]
    assert torch.allclose(features_of(agent), before, atol=1e-4)


def test_the_fit_is_least_squares_over_all_layers(play: Any) -> None:
    agent = play("sd_lora", "ViT-CIFAR100-CIL-v0", steps=3, r=2).to_the_end()
    agent.magnitudes.ranks, generator = [2, 2, 2], torch.Generator().manual_seed(0)
    for layer in agent.directions.values():
        layer.keys = torch.randn(6, layer.keys.shape[1], generator=generator)
        layer.values = torch.randn(6, layer.values.shape[1], generator=generator)
    flat = [torch.cat([each(layer, [2, 2, 2])[k].flatten() for layer in agent.directions.values()]) for k in range(3)]
    solved = torch.linalg.lstsq(torch.stack(flat[:2], dim=1), flat[2][:, None]).solution[:, 0]
    left = flat[2] - torch.stack(flat[:2], dim=1) @ solved
    shares, residual = agent.fit()
    assert torch.allclose(shares, solved, atol=1e-8)
    assert residual == pytest.approx(float(left.norm() / flat[2].norm()), abs=1e-8)


def test_directions_that_are_new_are_kept(play: Any) -> None:
    assert play("sd_lora", "CLIP-MTIL-v0", steps=3, absorb=0.05).to_the_end().magnitudes.ranks == [10, 10]
    assert play("sd_lora", "CLIP-MTIL-v0", steps=3, absorb=1.0).to_the_end().magnitudes.ranks == [10]


def test_the_released_variant_starts_every_magnitude_anew(play: Any) -> None:
    stage = play("sd_lora", "CLIP-MTIL-v0", steps=4, variant="released")
    stage.until(TaskStart, 2)
    agent = stage.agent
    factors = {name: (layer.fresh.A.clone(), layer.fresh.Bt.clone()) for name, layer in agent.directions.items()}
    stage.step()
    assert agent.magnitudes.values.tolist() == [pytest.approx(0.8)] * 2
    for name, layer in agent.directions.items():
        A, Bt = factors[name]
        (kept,) = each(layer, [10])
        assert torch.allclose(kept, (Bt.T @ A / (A.norm() * Bt.norm())).detach().double(), atol=1e-6)
        # A new direction starts from zero, so that only the kept ones are in the layer.
        assert torch.allclose(layer.effective().detach().double(), layer.weight.double() + 0.8 * kept, atol=1e-5)
    stage.until(TaskEnd)
    assert all(bool(layer.fresh.Bt.any()) for layer in agent.directions.values())


def test_footprint_on_vit_b_16(on_vit_b_16: Callable[..., Any]) -> None:
    # 24 projections of width 768, rank 10: the 0.37 million of the paper's table 5, and a magnitude.
    agent = on_vit_b_16("sd_lora")
    agent.magnitudes.values = torch.nn.Parameter(torch.ones(1))
    assert len(agent.directions) == 24
    assert agent.footprint().trainable == 24 * 10 * (768 + 768) + 1 == 368_641
    assert agent.footprint().added_at_inference == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"reduce": ((2, 11),)}, "from 1 to r, and absorb in [0, 1]; got ((2, 11),) with r=10, and 0.0. The paper has"),
        ({"absorb": -1}, "Expected reduce to be pairs of a task from 1 and a rank from 1 to r, and absorb in [0, 1]"),
        ({"variant": "new"}, "Expected variant to be one of ('paper', 'released'); got 'new'. Choose one of these."),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=re.escape(words)):
        clgym.make_agent("sd_lora", clgym.make("CLIP-MTIL-v0"), **settings)
