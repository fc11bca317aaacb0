from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from clgym.ops import double_soft_threshold_, lora_linear, soft_threshold, soft_threshold_

torch.set_num_threads(1)


def drawn(seed: int, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def written_out(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    down: Tensor,
    up: Tensor,
    gate: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """Equation 3 of arXiv:2106.09685 with CoDyRA's gate, left to autograd."""
    shrunk = x @ down.T
    return F.linear(x, weight, bias) + scale * ((shrunk if gate is None else shrunk * gate) @ up)


@pytest.mark.parametrize(("with_bias", "with_gate"), [(True, True), (True, False), (False, True), (False, False)])
def test_lora_linear_passes_gradcheck(with_bias: bool, with_gate: bool) -> None:
    x, weight, bias, down, up, gate = drawn(0, (2, 3, 5), (4, 5), (4,), (2, 5), (2, 4), (2,))
    learned = [t.requires_grad_() for t in (x, down, up, gate)]

    def f(x: Tensor, down: Tensor, up: Tensor, gate: Tensor) -> Tensor:
        fixed = bias if with_bias else None
        return lora_linear(x, weight, fixed, down, up, gate if with_gate else None, scale=0.7) + 0 * gate.sum()

    assert torch.autograd.gradcheck(f, learned)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(6,), (7, 6), (1, 6), (0, 6), (2, 3, 4, 6)])
def test_closed_form_equals_autograd(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight, bias, down, up, gate, dy = drawn(
        1, shape, (5, 6), (5,), (3, 6), (3, 5), (3,), (*shape[:-1], 5), dtype=dtype
    )
    results = []
    for function in (lora_linear, written_out):
        x, down, up, gate = learned = [t.detach().clone().requires_grad_() for t in (x, down, up, gate)]
        y = function(x, weight, bias, down, up, gate, 1.5)
        results.append([y, *torch.autograd.grad(y, learned, dy)])
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.1}[dtype]
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_input_that_is_not_contiguous() -> None:
    x, weight, bias, down, up = drawn(2, (6, 3, 2), (5, 6), (5,), (3, 6), (3, 5))
    x = x.permute(2, 1, 0).requires_grad_()
    y = lora_linear(x, weight, bias, down, up)
    torch.testing.assert_close(y, written_out(x, weight, bias, down, up))
    (grad,) = torch.autograd.grad(y.transpose(0, 1).sum(), x)
    torch.testing.assert_close(grad, (weight + up.T @ down).sum(0).expand_as(grad))


def test_only_what_is_asked_for_gets_a_gradient() -> None:
    x, weight, bias, down, up, gate = drawn(3, (7, 6), (5, 6), (5,), (3, 6), (3, 5), (3,))
    weight.requires_grad_()
    bias.requires_grad_()
    up.requires_grad_()
    torch.autograd.backward(lora_linear(x, weight, bias, down, up, gate).sum())
    assert up.grad is not None
    assert [t.grad for t in (x, weight, bias, down, gate)] == [None] * 5


def test_nothing_wide_is_kept_when_the_branch_is_frozen() -> None:
    x, weight, down, up = drawn(4, (7, 6), (5, 6), (3, 6), (3, 5))
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        lora_linear(x.requires_grad_(), weight, None, down, up)
    assert sorted(t.shape for t in kept) == sorted(t.shape for t in (weight, down, up))


def test_without_gradients() -> None:
    x, weight, down, up = drawn(5, (7, 6), (5, 6), (3, 6), (3, 5))
    down.requires_grad_()
    with torch.no_grad():
        y = lora_linear(x, weight, None, down, up, scale=2.0)
    assert not y.requires_grad
    torch.testing.assert_close(y, written_out(x, weight, None, down.detach(), up, None, 2.0))


def test_second_derivative_is_refused() -> None:
    x, weight, down, up = drawn(6, (7, 6), (5, 6), (3, 6), (3, 5))
    down.requires_grad_()
    y = lora_linear(x, weight, None, down, up)
    (grad,) = torch.autograd.grad(y.square().sum(), down, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        torch.autograd.backward(grad.sum())


def test_autocast_computes_in_its_type_and_returns_gradients_in_theirs() -> None:
    x, weight, bias, down, up, gate = drawn(7, (7, 6), (5, 6), (5,), (3, 6), (3, 5), (3,), dtype=torch.float32)
    learned = [t.requires_grad_() for t in (x, down, up, gate)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = lora_linear(x, weight, bias, down, up, gate)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), written_out(x, weight, bias, down, up, gate, 1.0), rtol=0.1, atol=0.1)
    torch.autograd.backward(y.float().sum())
    assert [t.grad.dtype for t in learned if t.grad is not None] == [torch.float32] * 4


def test_adapters_in_fp32_beside_a_bf16_layer() -> None:
    x, weight = drawn(8, (7, 6), (5, 6), dtype=torch.bfloat16)
    down, up = (t.requires_grad_() for t in drawn(9, (3, 6), (3, 5), dtype=torch.float32))
    y = lora_linear(x, weight, None, down, up)
    torch.autograd.backward(y.sum())
    assert y.dtype == torch.bfloat16
    assert down.grad is not None
    assert down.grad.dtype == torch.float32


# Card A1(h) of the study of CoDyRA, worked by hand.
CARD = [-0.35, -0.1, -0.05, 0.0, 0.1000001, 0.25]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_soft_threshold_of_the_card(dtype: torch.dtype) -> None:
    w = torch.tensor(CARD, dtype=dtype)
    got = soft_threshold(w, 0.1)
    expected = torch.tensor([-0.25, 0.0, 0.0, 0.0, 1e-7, 0.15], dtype=dtype)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=3e-8)
    assert got[1:4].count_nonzero() == 0
    assert torch.equal(soft_threshold(got[1:4], 0.1), got[1:4])
    assert soft_threshold_(w, 0.1) is w
    assert torch.equal(w, got)


def test_soft_threshold_of_nothing_is_the_identity_and_of_a_negative_is_refused() -> None:
    w = torch.tensor(CARD)
    assert torch.equal(soft_threshold(w, 0.0), w)
    with pytest.raises(RuntimeError, match="lambda must be"):
        soft_threshold(w, -0.1)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_double_soft_threshold_has_a_dead_zone_of_twice_kappa(sign: float) -> None:
    # Card A1(b): 0.15 and 0.19 die; |w| = kappa stays; above 2 kappa both rules agree.
    w = sign * torch.tensor([0.05, 0.1, 0.15, 0.19, 0.35, 0.0], dtype=torch.float64)
    got = double_soft_threshold_(w, 0.1)
    assert got is w
    expected = sign * torch.tensor([0.0, 0.1, 0.0, 0.0, 0.25, 0.0], dtype=torch.float64)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-15)


def test_thresholds_write_to_views_of_parameters() -> None:
    flat = torch.nn.Parameter(torch.tensor([1.0, 0.05, 0.3]))
    soft_threshold_(flat.detach()[1:], 0.1)
    torch.testing.assert_close(flat.detach(), torch.tensor([1.0, 0.0, 0.2]))
    double_soft_threshold_(flat, 0.15)
    torch.testing.assert_close(flat.detach(), torch.tensor([0.85, 0.0, 0.0]))
