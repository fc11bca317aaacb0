from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clgym.lora import LoRALinear, adapt
from clgym.stack import StackedLinear, stack


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inputs() -> Tensor:
    return torch.randn(4, 3, 6, generator=seeded(3))


def stacked(tasks: int = 3) -> tuple[StackedLinear, list[tuple[Tensor, Tensor]]]:
    """A layer with some frozen branches and one in training, and all of them apart."""
    fresh = LoRALinear(nn.Linear(6, 5), 2, scale=0.5)
    layer, branches = StackedLinear(fresh), []
    for task in range(tasks):
        if task:
            layer.freeze()
        fresh.reset(seeded(task))
        with torch.no_grad():
            fresh.Bt.normal_(generator=seeded(10 + task))
        branches.append((fresh.A.detach().clone(), fresh.Bt.detach().clone()))
    return layer, branches


def loop(layer: StackedLinear, branches: list[tuple[Tensor, Tensor]], gates: Tensor) -> Tensor:
    y = F.linear(inputs(), layer.weight, layer.fresh.base.bias)
    for t, (A, Bt) in enumerate(branches):
        y = y + 0.5 * gates[..., t, None, None] * (inputs() @ A.T @ Bt)
    return y.detach()


def test_the_sum_of_branches_by_either_path() -> None:
    layer, branches = stacked()
    expected = loop(layer, branches, torch.ones(3))
    torch.testing.assert_close(layer(inputs()).detach(), expected, rtol=1e-5, atol=1e-5)
    with torch.inference_mode():
        torch.testing.assert_close(layer(inputs()), expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(layer(inputs()), F.linear(inputs(), layer._merged_weight(), layer.fresh.base.bias))


def test_gates_per_task_are_merged_and_gates_per_sample_are_not() -> None:
    layer, branches = stacked()
    layer.gate = torch.tensor([1.0, 0.0, -2.0])
    with torch.no_grad():
        torch.testing.assert_close(layer(inputs()), loop(layer, branches, layer.gate), rtol=1e-5, atol=1e-5)
        assert layer._merged is not None
        layer.gate = torch.rand(4, 3, generator=seeded())
        torch.testing.assert_close(layer(inputs()), loop(layer, branches, layer.gate), rtol=1e-5, atol=1e-5)
        assert layer._merged is None


def test_the_merged_weight_follows_every_change() -> None:
    layer, branches = stacked()
    layer.gate = torch.tensor([1.0, 0.5, 1.0])
    with torch.no_grad():
        layer(inputs())
        layer.gate[1] = 3.0
        torch.testing.assert_close(layer(inputs()), loop(layer, branches, layer.gate), rtol=1e-5, atol=1e-5)
        layer.fresh.Bt.mul_(2)
        branches[-1] = (branches[-1][0], 2 * branches[-1][1])
        torch.testing.assert_close(layer(inputs()), loop(layer, branches, layer.gate), rtol=1e-5, atol=1e-5)
        layer.gate = None
        layer.freeze()
        torch.testing.assert_close(layer(inputs()), loop(layer, [*branches, branches[-1]], torch.ones(4)))


def test_frozen_branches_stay_and_the_fresh_one_and_the_gate_learn() -> None:
    layer, _ = stacked()
    gate = torch.ones(4, 3, requires_grad=True)
    layer.gate = gate
    A, Bt = layer.A.clone(), layer.Bt.clone()
    layer(inputs()).square().sum().backward()
    assert gate.grad is not None
    assert layer.fresh.A.grad is not None
    assert layer.fresh.A.grad.any()
    assert not layer.A.requires_grad
    assert torch.equal(layer.A, A)
    assert torch.equal(layer.Bt, Bt)


def test_a_whole_model_is_stacked_in_place_and_the_arena_still_trains_it() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 6))
    lora = adapt(model, r=2, targets="[02]", generator=seeded())
    layers = stack(lora)
    assert [model[0], model[2]] == list(layers.values())
    for layer in layers.values():
        layer.freeze()
    lora.reset(seeded(1))
    torch.autograd.backward(model(inputs()).square().sum())
    gradient = lora.arena().grad
    assert gradient is not None
    assert gradient.any()
    assert all(len(layer) == 2 and layer.offsets == (0, 2) for layer in layers.values())
