"""InfLoRA: the memory of directions by hand, and a branch that leaves old inputs alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

import clgym
from clgym.agents.inflora import NOTHING, ROW_NORM, GradientMemory
from clgym.errors import SettingError
from clgym.events import TaskEnd, TaskStart, Train

SPECTRA = ("released", "inputs")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def empty(d: int) -> GradientMemory:
    return GradientMemory(torch.zeros(d, 0, dtype=torch.float64))


def covariance(d: int, seed: int) -> torch.Tensor:
    """Return that of inputs of quickly falling spectrum."""
    x = torch.randn(4 * d, d, generator=seeded(seed), dtype=torch.float64) * 0.7 ** torch.arange(d)
    turned: torch.Tensor = x @ torch.linalg.qr(torch.randn(d, d, generator=seeded(seed + 1), dtype=torch.float64)).Q
    return turned.T @ turned


def held(memory: GradientMemory, C: torch.Tensor, spectrum: str) -> float:
    """Return the share of the inputs' energy that the subspace holds."""
    if spectrum == "inputs":
        return 1 - float(memory.free(memory.free(C).T).trace() / C.trace())
    return 1 - float(memory.free(C).square().sum() / C.square().sum())


# --- The memory ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spectrum", "taken"), [("inputs", 2), ("released", 1)])
def test_directions_are_taken_until_the_share_is_held(spectrum: str, taken: int) -> None:
    # Inputs 4, 3, 2, 1 of 10: the share 0.5 needs 4 + 3. Squared 16, 9, 4, 1 of 30: it needs 16 alone.
    memory = empty(4)
    memory.grow(torch.tensor([2.0, 4.0, 1.0, 3.0]).double().diag(), 0.5, spectrum)
    assert memory.basis.shape == (4, taken)
    assert memory.basis.abs().sum(1).tolist() == ([0, 1, 0, 1] if taken == 2 else [0, 1, 0, 0])
    assert not memory.dual


def test_the_smaller_of_subspace_and_complement_is_kept() -> None:
    memory = empty(4)
    memory.grow(torch.tensor([4.0, 3.0, 2.0, 1.0]).double().diag(), 0.85, "inputs")
    assert memory.dual
    assert memory.basis.abs().squeeze(1).round(decimals=9).tolist() == [0, 0, 0, 1]
    x = torch.ones(4, 1, dtype=torch.float64)
    assert memory.free(x).squeeze(1).round(decimals=9).tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("energy", [0.6, 0.95, 1.0])
def test_every_task_is_held_to_its_share_and_stays_so(spectrum: str, energy: float) -> None:
    memory, before = empty(24), []
    for task in range(4):
        C = covariance(24, 10 * task)
        memory.grow(C, energy, spectrum)
        before.append(C)
        m = memory.basis.shape[1]
        assert torch.allclose(memory.basis.T @ memory.basis, torch.eye(m, dtype=torch.float64), atol=1e-8)
        assert m <= 12
        assert all(held(memory, C, spectrum) >= energy - 1e-6 for C in before)
    assert memory.dual == ((spectrum, energy) in {("inputs", 0.95), ("inputs", 1.0), ("released", 1.0)})


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_no_direction_is_taken_in_vain(spectrum: str) -> None:
    memory, C = empty(24), covariance(24, 0)
    memory.grow(C, 0.8, spectrum)
    once = memory.basis
    memory.grow(C, 0.8, spectrum)
    assert memory.basis.shape == once.shape
    assert held(GradientMemory(once[:, :-1]), C, spectrum) < 0.8


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_a_complement_and_its_subspace_grow_alike(spectrum: str) -> None:
    C, new = covariance(24, 0), covariance(24, 50)
    plain = empty(24)
    plain.grow(C, 0.9, spectrum)
    whole, _, _ = torch.linalg.svd(plain.basis)
    dual = GradientMemory(whole[:, plain.basis.shape[1] :], dual=True)
    x = torch.randn(24, 5, generator=seeded(), dtype=torch.float64)
    assert torch.allclose(plain.free(x), dual.free(x), atol=1e-10)
    for memory in (plain, dual):
        memory.grow(new, 0.9, spectrum)
    assert torch.allclose(plain.free(x), dual.free(x), atol=1e-6)


def test_what_is_free_has_no_direction_within_the_memory() -> None:
    memory, C = empty(24), covariance(24, 0)
    memory.grow(C, 0.9, "released")
    for spectrum in SPECTRA:
        directions, values = memory.principal(covariance(24, 50), spectrum)
        assert float((memory.basis.T @ directions).abs().max()) < 1e-5
        assert (values.diff() <= 0).all()
    full = GradientMemory(torch.eye(24, dtype=torch.float64))
    assert full.principal(C, "released")[0].shape[1] == 0
    assert NOTHING < 1e-6


# --- The agent -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", ["CLIP-MTIL-v0", "ViT-CIFAR100-CIL-v0"])
def test_only_keys_and_values_of_the_image_encoder_change(play: Any, scenario: str) -> None:
    stage = play("inflora", scenario, steps=6, share=0.2)
    before = {name: value.clone() for name, value in stage.agent.backbone.model.state_dict().items()}
    after = stage.to_the_end().backbone.model.state_dict()
    changed = {
        name for name, value in before.items() if name.endswith("weight") and not torch.equal(value, after[name])
    }
    visual = r"visual\." if scenario.startswith("CLIP") else ""
    assert changed == {n for n in before if re.fullmatch(rf"{visual}.*\.attn\.[kv]_proj\.base\.weight", n)}


def test_the_input_side_is_the_tasks_principal_directions_and_stays(play: Any) -> None:
    stage = play("inflora", "ViT-CIFAR100-CIL-v0", steps=10, share=0.2, r=5)
    agent = stage.agent
    inputs: dict[str, list[torch.Tensor]] = {name: [] for name in agent.sites}
    hooks = [
        layers[0].register_forward_pre_hook(lambda _, x, name=name: inputs[name].append(x[0].flatten(0, 1)))
        for name, layers in agent.sites.items()
    ]
    stage.until(Train, 3)  # two batches were shown
    for hook in hooks:
        hook.remove()
    assert not agent.lora.arena().any()
    stage.step()
    chosen = {name: layers[0].A.clone() for name, layers in agent.sites.items()}
    for name, layers in agent.sites.items():
        x = torch.cat(inputs[name]).double()
        _, top = torch.linalg.eigh(x.T @ x)
        A = chosen[name].double() / ROW_NORM
        assert torch.allclose(A @ A.T, torch.eye(5, dtype=torch.float64), atol=1e-5)
        assert torch.allclose((A @ top[:, -5:]).abs(), torch.eye(5, dtype=torch.float64).flip(1), atol=1e-3)
        assert torch.equal(layers[0].A, layers[1].A)
    stage.until(TaskEnd)
    assert all(torch.equal(layers[0].A, chosen[name]) for name, layers in agent.sites.items())
    assert all(bool(layer.Bt.any()) for _, layer in agent.lora.layers)


@pytest.mark.parametrize("scenario", ["CLIP-MTIL-v0", "ViT-CIFAR100-CIL-v0"])
def test_the_second_task_changes_nothing_on_the_inputs_of_the_first(play: Any, scenario: str) -> None:
    stage = play("inflora", scenario, steps=10, share=0.2, energy=0.9, energy_end=0.9)
    stage.until(TaskStart, 2)
    agent = stage.agent
    memory = {name: GradientMemory(m.basis, m.dual) for name, m in agent.memory.items()}
    assert all(0 < m.basis.shape[1] <= len(m.basis) / 2 for m in memory.values())
    before = {name: [layer.base.weight.clone() for layer in layers] for name, layers in agent.sites.items()}
    stage.until(TaskEnd)
    for name, layers in agent.sites.items():
        old = torch.eye(len(memory[name].basis)).double()
        old = old - memory[name].free(old)  # projects on what the first task used
        for layer in layers:
            assert float(layer.A.norm()) > 1
            assert float((layer.A.double() @ old).abs().max()) < 1e-5
    stage.step()
    for name, layers in agent.sites.items():
        for layer, was in zip(layers, before[name], strict=True):
            update = (layer.base.weight - was).double()
            old = torch.eye(update.shape[1]).double()
            old = old - memory[name].free(old)
            assert float((update @ old).abs().max()) < 1e-4 * float(update.abs().max())
            assert float(update.abs().max()) > 1e-4


def test_the_share_that_is_held_rises_from_task_to_task(play: Any) -> None:
    stage = play("inflora", "ViT-CIFAR100-CIL-v0", steps=4, share=0.25, energy=0.5, energy_end=1.0, tasks=4)
    agent, shares = stage.agent, []
    grow = GradientMemory.grow

    def noted(self: GradientMemory, C: torch.Tensor, energy: float, spectrum: str) -> None:
        shares.append(energy)
        grow(self, C, energy, spectrum)
        assert held(self, C, spectrum) >= energy - 1e-6

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GradientMemory, "grow", noted)
        stage.to_the_end()
    blocks = len(agent.sites)
    assert shares == [0.5] * blocks + [0.625] * blocks


def test_where_nothing_is_free_nothing_is_learned(play: Any) -> None:
    stage = play("inflora", "ViT-CIFAR100-CIL-v0", steps=4, share=0.25)
    stage.until(TaskStart, 2)
    agent = stage.agent
    for memory in agent.memory.values():
        memory.basis, memory.dual = memory.basis[:, :0], True
    before = [layer.base.weight.clone() for _, layer in agent.lora.layers]
    agent = stage.to_the_end()
    assert all(torch.equal(layer.base.weight, was) for (_, layer), was in zip(agent.lora.layers, before, strict=True))


def test_footprint_on_vit_b_16(on_vit_b_16: Callable[..., Any]) -> None:
    # r columns of k and v in each of 12 blocks of width 768; the memory is d x m per block.
    agent = on_vit_b_16("inflora")
    assert len(agent.lora) == 24
    assert len(agent.memory) == 12
    assert agent.footprint().trainable == 24 * 10 * 768
    for memory in agent.memory.values():
        memory.basis = torch.zeros(768, 7)
    assert agent.footprint().stored == 12 * 768 * 7


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"energy": 0.9, "energy_end": 0.5}, "share in (0, 0.5]; got 0.9, 0.5, 10 and 0.05. Try 0.95, 1, 10 and 0.05."),
        (
            {"share": 0.7},
            "Expected 0 <= energy <= energy_end <= 1, tasks of 1 or more and share in (0, 0.5]; got 0.95,",
        ),
        ({"spectrum": "log"}, "Expected spectrum to be one of ('released', 'inputs'); got 'log'. Choose one of these."),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=re.escape(words)):
        clgym.make_agent("inflora", clgym.make("CLIP-MTIL-v0"), **settings)
