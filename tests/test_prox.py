"""AdamW with a proximal step; ``test_ops.py`` has the thresholds by themselves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from clgym.errors import SettingError
from clgym.ops import adamw_prox_, group_segments, group_threshold_

SETTINGS: dict[str, Any] = {"lr": 0.05, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1}


def start(dtype: torch.dtype = torch.float64, n: int = 40) -> dict[str, Any]:
    w = torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=dtype)
    zeros = {"exp_avg": torch.zeros_like(w), "exp_avg_sq": torch.zeros_like(w)}
    return {"w": w, **zeros, "step": torch.zeros((), dtype=torch.float32)}


def gradient(number: int, dtype: torch.dtype = torch.float64, n: int = 40) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(number + 1), dtype=dtype)


def test_a_first_step_worked_by_hand() -> None:
    # m / (1 - b1) = g and sqrt(v / (1 - b2)) = |g|: the step is lr sign(g); decay comes first, the threshold last.
    state = start()
    before, grad = state["w"].clone(), gradient(0)
    adamw_prox_(**state, grad=grad, **SETTINGS, kappa=0.3)
    stepped = before * (1 - 0.05 * 0.1) - 0.05 * grad / (grad.abs() + 1e-6)
    torch.testing.assert_close(state["w"], F.softshrink(stepped, 0.3))
    assert 0 < int((state["w"] == 0).sum()) < 40
    assert state["step"] == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_ten_steps_are_those_of_torch_and_a_threshold(dtype: torch.dtype) -> None:
    state = start(dtype)
    theirs = torch.nn.Parameter(state["w"].clone())
    optimizer = torch.optim.AdamW([theirs], **SETTINGS, fused=True)
    for number in range(10):
        grad, kappa = gradient(number, dtype), 0.01 * number
        adamw_prox_(**state, grad=grad, **SETTINGS, kappa=kappa, start=7, stop=31)
        theirs.grad = grad
        optimizer.step()
        with torch.no_grad():
            theirs[7:31] = F.softshrink(theirs[7:31], kappa)
        assert torch.equal(state["w"], theirs.detach())
    assert (state["w"][7:31] == 0).any()
    assert (state["w"][:7] != 0).all()
    assert (state["w"][31:] != 0).all()


def test_adamw_of_the_paper_written_out() -> None:
    # Algorithm 2 of arXiv:1711.05101, in Python floats.
    state = start(n=1)
    w, m, v = float(state["w"]), 0.0, 0.0
    for number in range(5):
        g = float(gradient(number, n=1))
        adamw_prox_(**state, grad=torch.tensor([g], dtype=torch.float64), **SETTINGS)
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        root = math.sqrt(v / (1 - 0.99 ** (number + 1)))
        w = w - 0.05 * 0.1 * w - 0.05 * m / (1 - 0.9 ** (number + 1)) / (root + 1e-6)
    assert float(state["w"]) == pytest.approx(w, rel=1e-9)


def test_groups_shrink_as_one_after_the_step() -> None:
    member = torch.arange(40) % 5 - 1  # four groups of eight, and eight elements in none
    grouped, plain = start(), start()
    for number in range(3):
        grad = gradient(number)
        adamw_prox_(**grouped, grad=grad, **SETTINGS, kappa=0.2, groups=group_segments(member))
        adamw_prox_(**plain, grad=grad, **SETTINGS)
        for g in range(4):
            of = plain["w"][member == g]
            plain["w"][member == g] = of * max(0.0, 1 - 0.2 / float(of.norm()))
        torch.testing.assert_close(grouped["w"], plain["w"])


def test_a_group_below_the_threshold_vanishes_and_an_empty_one_is_nothing() -> None:
    groups = group_segments(torch.tensor([2, 0, 2, -1]))
    w = group_threshold_(torch.tensor([3.0, 0.1, 4.0, 9.0]), groups, 2.5)
    assert w.tolist() == pytest.approx([1.5, 0.0, 2.0, 9.0])
    assert group_threshold_(torch.zeros(4), groups, 0.0).tolist() == [0.0] * 4
    torch.testing.assert_close(group_threshold_(torch.ones(4), groups, 0.0), torch.ones(4))


def test_no_gradient_is_recorded_and_parameters_may_be_passed() -> None:
    state = start(torch.float32)
    w = torch.nn.Parameter(state.pop("w"))
    version = w._version
    adamw_prox_(w, gradient(0, torch.float32), **state, lr=0.1, kappa=0.1)
    assert w.is_leaf
    assert w._version > version


@pytest.mark.parametrize(
    "call",
    [
        lambda: adamw_prox_(**start(), grad=gradient(0), lr=0.1, kappa=-1.0),
        lambda: group_threshold_(torch.ones(1), group_segments(torch.zeros(1, dtype=torch.int64)), -1.0),
    ],
)
def test_a_negative_threshold_is_refused(call: Callable[[], Tensor]) -> None:
    with pytest.raises(SettingError, match=r"Expected kappa of 0 or more; got -1\.0\. At 0 nothing shrinks\."):
        call()


def test_a_view_with_gaps_is_refused() -> None:
    state = {name: t[::2] if t.dim() else t for name, t in start(n=80).items()}
    with pytest.raises(SettingError, match="Expected w and its moments contiguous; got a view with gaps"):
        adamw_prox_(**state, grad=gradient(0), lr=0.1)
