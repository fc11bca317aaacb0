from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from clgym.errors import SettingError
from clgym.optim import AdamWProx, load_moments, moments


def parameters(sizes: tuple[int, ...]) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(n, generator=generator)) for n in sizes]


def give_gradients(params: list[nn.Parameter], number: int) -> None:
    generator = torch.Generator().manual_seed(number)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)


@pytest.mark.parametrize("sizes", [(30,), (3, 4, 5)])
def test_without_a_threshold_it_is_torchs_fused_adamw_bit_for_bit(sizes: tuple[int, ...]) -> None:
    mine, theirs = parameters(sizes), parameters(sizes)
    settings = {"lr": 0.05, "betas": (0.9, 0.9999), "weight_decay": 0.1}
    optimizers = AdamWProx(mine, **settings), torch.optim.AdamW(theirs, **settings, fused=True)  # type: ignore[arg-type]
    for number in range(5):
        for params, optimizer in zip((mine, theirs), optimizers, strict=True):
            give_gradients(params, number)
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_its_state_goes_to_torchs_adamw_and_comes_back() -> None:
    mine, theirs = parameters((30,)), parameters((30,))
    ours = AdamWProx(mine, lr=0.05)
    for number in range(3):
        give_gradients(mine, number)
        ours.step()
    with torch.no_grad():
        theirs[0].copy_(mine[0])
    other = torch.optim.AdamW(theirs, lr=0.05, fused=True, weight_decay=0.0)
    slots = copy.deepcopy(ours.state_dict()["state"])
    assert set(slots[0]) == {"step", "exp_avg", "exp_avg_sq"}
    other.load_state_dict({"state": slots, "param_groups": other.state_dict()["param_groups"]})
    ours.load_state_dict(ours.state_dict())
    for params, optimizer in ((mine, ours), (theirs, other)):
        give_gradients(params, 7)
        optimizer.step()
    assert torch.equal(mine[0], theirs[0])


def test_a_schedule_sets_the_threshold_of_a_stretch() -> None:
    (arena,) = parameters((30,))
    optimizer = AdamWProx([arena], lr=0.05)
    optimizer.param_groups[0] |= {"start": 20}
    dead = []
    for kappa in (0.0, 0.1, 0.5, 5.0):
        optimizer.param_groups[0]["kappa"] = kappa
        give_gradients([arena], 0)
        optimizer.step()
        dead.append(int((arena[20:] == 0).sum()))
    assert dead == sorted(dead)
    assert (dead[0], dead[-1]) == (0, 10)
    assert (arena[:20] != 0).all()


def test_parameters_without_a_gradient_stay() -> None:
    first, second = parameters((3, 4))
    before = second.detach().clone()
    optimizer = AdamWProx([first, second], lr=0.05)
    give_gradients([first], 0)
    optimizer.step()
    AdamWProx([second], lr=0.05).step()
    assert torch.equal(second, before)


def test_a_negative_threshold_is_refused() -> None:
    (arena,) = parameters((3,))
    optimizer = AdamWProx([arena], lr=0.05)
    optimizer.param_groups[0]["kappa"] = -0.5
    give_gradients([arena], 0)
    with pytest.raises(SettingError, match=r"Expected kappa of 0 or more; got -0\.5\."):
        optimizer.step()


def test_moments_continue_in_another_optimizer_bit_for_bit() -> None:
    mine = parameters((3, 4))
    ours = AdamWProx(mine, lr=0.05)
    give_gradients(mine, 0)
    ours.step()
    kept = {name: value.clone() for name, value in moments(ours).items()}
    assert set(kept) == {f"{i}.{name}" for i in (0, 1) for name in ("step", "exp_avg", "exp_avg_sq")}
    theirs = [nn.Parameter(p.detach().clone()) for p in mine]
    other = AdamWProx(theirs, lr=0.05)
    load_moments(other, kept)
    for params, optimizer in ((mine, ours), (theirs, other)):
        give_gradients(params, 1)
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
