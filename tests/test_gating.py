"""The gates' values and gradients; ``agents/test_mora.py`` has the rules of MoRA's card."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from clgym.errors import SettingError
from clgym.gating import largest
from clgym.ops import activations, rank_gate, router_gate


def drawn(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def self_written(p: Tensor, topk: int, temperature: float, delta: float | None) -> Tensor:
    """Equation by equation, with topk and softmax, left to autograd."""
    scores = F.normalize(p, dim=-1)
    chosen = scores.topk(topk, dim=-1).indices
    among = (scores.gather(-1, chosen) / temperature).softmax(-1)
    a = torch.zeros_like(p).scatter(-1, chosen, among)
    return (a if delta is None else a.masked_fill(scores < delta, 0.0)) * p


def router_written(p: Tensor, logits: Tensor, bias: Tensor, topk: int) -> Tensor:
    """Card of SMoRA, (b), left to autograd."""
    z = logits.sigmoid() + bias
    chosen = z.topk(topk, dim=-1).indices
    a = torch.zeros_like(z).scatter(-1, chosen, topk * z.gather(-1, chosen) / z.gather(-1, chosen).sum(-1, True))
    return a * p


def same_with_gradients(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], *leaves: Tensor) -> None:
    results = []
    for function in (ours, theirs):
        learned = [leaf.detach().clone().requires_grad_() for leaf in leaves]
        y = function(*learned)
        dy = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
        results.append([y, *torch.autograd.grad(y, learned, dy)])
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("topk", "delta"), [(3, None), (3, 0.2), (12, None), (1, None)])
def test_rank_gate_against_its_equations(topk: int, delta: float | None) -> None:
    (p,) = drawn((2, 20, 12))
    same_with_gradients(lambda p: rank_gate(p, topk, 0.1, delta), lambda p: self_written(p, topk, 0.1, delta), p)
    (few,) = drawn((4, 12))
    assert torch.autograd.gradcheck(lambda p: rank_gate(p, topk, 0.1, delta), few.requires_grad_())


@pytest.mark.parametrize("topk", [3, 12])
def test_router_gate_against_its_equations(topk: int) -> None:
    p, logits, bias = drawn((2, 20, 12), (2, 20, 12), (12,))
    bias *= 0.05
    same_with_gradients(
        lambda p, z: router_gate(p, z, bias, topk), lambda p, z: router_written(p, z, bias, topk), p, logits
    )
    few = [t.requires_grad_() for t in drawn((4, 12), (4, 12))]
    assert torch.autograd.gradcheck(lambda p, z: router_gate(p, z, bias, topk), few)


def test_router_gates_sum_to_k_and_silent_ranks_learn_nothing() -> None:
    # Card of SMoRA, (h) T3 and T4.
    p, logits = (t.requires_grad_() for t in drawn((30, 12), (30, 12)))
    h = router_gate(p, logits, torch.zeros(12, dtype=torch.float64), 4)
    a = h / p
    assert ((a != 0).sum(-1) == 4).all()
    torch.testing.assert_close(a.sum(-1), torch.full((30,), 4.0, dtype=torch.float64))
    for grad in torch.autograd.grad(h.square().sum(), (p, logits)):
        assert not grad[a == 0].any()


def test_a_bias_moves_ranks_in_and_weighs_them() -> None:
    ones, logits = torch.ones(1, 3), torch.zeros(1, 3)
    h = router_gate(ones, logits, torch.tensor([0.0, 0.25, 0.75]), 2)
    torch.testing.assert_close(h, torch.tensor([[0.0, 2 * 0.75 / 2, 2 * 1.25 / 2]]))


def test_unselected_responses_learn_through_the_norm_alone() -> None:
    (p,) = drawn((1, 12))
    p.requires_grad_()
    h = rank_gate(p, 3, 0.1)
    (grad,) = torch.autograd.grad(h.sum(), p)
    silent = (h == 0)[0]
    ratio = grad[0, silent] / p.detach()[0, silent]
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))


def test_of_equal_values_the_first_are_the_largest() -> None:
    values = torch.tensor(
        [[1.0, 2.0, 1.0, 1.0], [0.0, -0.0, 0.0, -0.0], [-1.0, -1.0, -2.0, -1.0], [3.0, 2.0, 1.0, 0.0]]
    )
    expected = [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]
    assert largest(values, 2).int().tolist() == expected
    assert largest(values, 4).all()
    assert largest(values, 9).all()


def test_an_input_of_zeros_is_answered_by_nobody_and_gives_no_nan() -> None:
    p = torch.zeros(2, 5, requires_grad=True)
    h = rank_gate(p, 2, 0.1)
    (grad,) = torch.autograd.grad(h.sum(), p)
    assert not h.any()
    assert grad.isfinite().all()


def test_half_precision_is_gated_in_full() -> None:
    p = drawn((50, 12))[0].bfloat16()
    h = rank_gate(p, 3, 0.05)
    assert h.dtype == torch.bfloat16
    assert activations(p, 3, 0.05).dtype == torch.float32
    exact = self_written(p.double(), 3, 0.05, None)
    torch.testing.assert_close(h.double(), exact, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize(("topk", "temperature"), [(0, 0.1), (2, 0.0)])
def test_refused(topk: int, temperature: float) -> None:
    p = torch.ones(1, 3)
    words = f"Expected topk of 1 or more and temperature above 0; got {topk} and {temperature}."
    with pytest.raises(SettingError, match=re.escape(words)):
        rank_gate(p, topk, temperature)


def test_a_router_of_none_is_refused() -> None:
    p = torch.ones(1, 3)
    with pytest.raises(SettingError, match=r"Expected topk of 1 or more; got 0\. The paper has 8 of 64 ranks\."):
        router_gate(p, p, p[0], 0)
