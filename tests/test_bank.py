from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from clgym.errors import SettingError
from clgym.ops import expert_linear, rank_gate


def layer(old: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 10, 6), (5, 6), (5,), (old, 6), (old, 5), (3, 6), (3, 5))
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("delta", [None, 0.3])
@pytest.mark.parametrize("old", [0, 4])
def test_it_is_the_layer_plus_the_gated_experts(old: int, delta: float | None) -> None:
    x, W, b, keys, values, A, Bt = layer(old)
    leaves = [t.requires_grad_() for t in (x, A, Bt)]
    ours = expert_linear(x, W, b, (keys, values), A, Bt, topk=3, temperature=0.1, delta=delta)
    p = F.linear(x, torch.cat([keys, A]))
    theirs = F.linear(x, W, b) + rank_gate(p, 3, 0.1, delta) @ torch.cat([values, Bt])
    torch.testing.assert_close(ours, theirs)
    dy = torch.linspace(-1, 1, ours.numel(), dtype=torch.float64).view(ours.shape)
    for mine, other in zip(torch.autograd.grad(ours, leaves, dy), torch.autograd.grad(theirs, leaves, dy), strict=True):
        torch.testing.assert_close(mine, other)


def test_gradcheck() -> None:
    x, W, b, keys, values, A, Bt = layer()
    leaves = [t.requires_grad_() for t in (x[:1, :3], A, Bt)]

    def f(x: Tensor, A: Tensor, Bt: Tensor) -> Tensor:
        return expert_linear(x, W, b, (keys, values), A, Bt, topk=3, temperature=0.5)

    assert torch.autograd.gradcheck(f, leaves)


def test_the_bank_gets_no_gradient() -> None:
    x, W, b, *experts = layer()
    for t in experts:
        t.requires_grad_()
    keys, values, A, Bt = experts
    y = expert_linear(x, W, b, (keys, values), A, Bt, topk=3, temperature=0.1)
    torch.autograd.backward(y.sum())
    assert keys.grad is None
    assert values.grad is None
    assert A.grad is not None


def test_above_every_score_the_layer_is_the_frozen_one_bit_for_bit() -> None:
    x, W, b, *experts = (t.float() for t in layer())
    keys, values, A, Bt = experts
    y = expert_linear(x, W, b, (keys, values), A, Bt, topk=3, temperature=0.1, delta=1.01)
    assert torch.equal(y, F.linear(x, W, b))


def test_under_autocast_the_fresh_experts_get_fp32_gradients() -> None:
    x, W, b, *experts = (t.float() for t in layer())
    keys, values, A, Bt = experts
    A.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = expert_linear(x, W, b, (keys, values), A, Bt, topk=3, temperature=0.1)
    assert y.dtype == torch.bfloat16
    assert torch.autograd.grad(y.float().sum(), A)[0].dtype == torch.float32


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("delta", [None, 0.3])
def test_layers_of_the_same_inputs_are_one_call(n: int, delta: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = (n * 5, 6), (n * 5,), (n, 4, 6), (n, 4, 5), (n, 3, 6), (n, 3, 5)
    W, b, keys, values, A, Bt = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    x = layer()[0]
    leaves = [t.requires_grad_() for t in (x, A, Bt)]
    gate: dict[str, Any] = {"topk": 3, "temperature": 0.1, "delta": delta}
    ours = expert_linear(x, W, b, (keys, values), A, Bt, **gate)
    each = zip(torch.split(W, 5), torch.split(b, 5), keys, values, A, Bt, strict=True)
    theirs = torch.cat([expert_linear(x, w, c, (k, v), a, t, **gate) for w, c, k, v, a, t in each], -1)
    torch.testing.assert_close(ours, theirs)
    dy = torch.linspace(-1, 1, ours.numel(), dtype=torch.float64).view(ours.shape)
    for mine, other in zip(torch.autograd.grad(ours, leaves, dy), torch.autograd.grad(theirs, leaves, dy), strict=True):
        torch.testing.assert_close(mine, other)
    with torch.no_grad():
        torch.testing.assert_close(expert_linear(x, W, b, (keys, values), A, Bt, **gate), ours)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("topk", [1, 3, 9])
@pytest.mark.parametrize("delta", [None, 0.3])
def test_answers_are_what_training_computes(delta: float | None, topk: int, dtype: torch.dtype) -> None:
    x, W, b, *experts = (t.to(dtype) for t in layer())
    experts[0][1:] = experts[0][0]  # four equal responses, of which the first are active
    x[0, 0] = 0.0
    keys, values, A, Bt = experts
    gate: dict[str, Any] = {"topk": topk, "temperature": 0.1, "delta": delta}
    training = expert_linear(x, W, b, (keys, values), A.requires_grad_(), Bt, **gate)
    with torch.no_grad():
        answers = expert_linear(x, W, b, (keys, values), A, Bt, **gate)
        assert expert_linear(x[:0], W, b, (keys, values), A, Bt, **gate).shape == (0, 10, 5)
    assert answers.dtype == dtype
    # In bf16 either path rounds sums of terms of size 1, in another order.
    rounding = 2**-6 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(answers, training.detach(), rtol=rounding, atol=rounding)


def test_an_input_that_is_no_number_spoils_its_own_answer_alone() -> None:
    x, W, b, keys, values, A, Bt = layer()
    x[0, 3, 2] = torch.nan
    with torch.no_grad():
        y = expert_linear(x, W, b, (keys, values), A, Bt, topk=3, temperature=0.1)
    spoiled = torch.zeros(2, 10, dtype=torch.bool)
    spoiled[0, 3] = True
    assert torch.equal(y.isnan().all(-1), spoiled)
    assert torch.equal(y.isnan().any(-1), spoiled)


@pytest.mark.parametrize("wrong", [{"topk": 0, "temperature": 0.1}, {"topk": 1, "temperature": -1.0}])
def test_refused(wrong: dict[str, Any]) -> None:
    x, W, b, keys, values, A, Bt = layer()
    with pytest.raises(SettingError, match="Expected topk of 1 or more and temperature above 0"):
        expert_linear(x, W, b, (keys, values), A, Bt, **wrong)
