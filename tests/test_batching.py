from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from clgym.errors import SettingError
from clgym.ops import batched_lora, lora_linear

INDEX = torch.tensor([2, 0, 2, 1, 0])  # adapter 3 serves nobody


def layer(*tokens: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((5, *tokens, 6), (3, 6), (3,), (4, 2, 6), (4, 2, 3))
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def loop(x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, Bt: Tensor, index: Tensor, scale: float) -> Tensor:
    """Sample by sample."""
    each = [F.linear(x[i], W, b) + scale * (x[i] @ A[u].T) @ Bt[u] for i, u in enumerate(index.tolist())]
    return torch.stack(each)


@pytest.mark.parametrize("tokens", [(), (3,), (2, 2)], ids=str)
def test_it_is_the_loop_gradients_included(tokens: tuple[int, ...]) -> None:
    x, W, b, A, Bt = layer(*tokens)
    leaves = [t.requires_grad_() for t in (x, A, Bt)]
    ours, theirs = (f(x, W, b, A, Bt, INDEX, 0.7) for f in (batched_lora, loop))
    torch.testing.assert_close(ours, theirs)
    dy = torch.linspace(-1, 1, ours.numel(), dtype=torch.float64).view(ours.shape)
    for mine, other in zip(torch.autograd.grad(ours, leaves, dy), torch.autograd.grad(theirs, leaves, dy), strict=True):
        torch.testing.assert_close(mine, other)
    assert torch.autograd.gradcheck(lambda x, A, Bt: batched_lora(x, W, None, A, Bt, INDEX, 0.7), leaves)


def test_where_all_samples_share_one_it_is_lora_linear() -> None:
    x, W, b, A, Bt = layer(3)
    torch.testing.assert_close(batched_lora(x, W, b, A, Bt, torch.full((5,), 3)), lora_linear(x, W, b, A[3], Bt[3]))


def test_permuting_samples_permutes_outputs() -> None:
    x, W, b, A, Bt = layer(3)
    order = torch.tensor([3, 1, 4, 0, 2])
    y = batched_lora(x, W, b, A, Bt, INDEX)
    torch.testing.assert_close(batched_lora(x[order], W, b, A, Bt, INDEX[order]), y[order])


def test_an_adapter_that_serves_nobody_has_a_gradient_of_zero() -> None:
    x, W, b, A, Bt = layer(3)
    A.requires_grad_()
    (grad,) = torch.autograd.grad(batched_lora(x, W, b, A, Bt, INDEX).sum(), A)
    assert not grad[3].any()
    assert grad[:3].any()


def test_of_no_sample() -> None:
    x, W, b, A, Bt = layer(3)
    A.requires_grad_()
    y = batched_lora(x[:0], W, b, A, Bt, INDEX[:0])
    assert y.shape == (0, 3, 3)
    assert not torch.autograd.grad(y.sum(), A)[0].any()


@pytest.mark.parametrize("change", [{"index": INDEX[:3]}, {"A": torch.zeros(2, 6)}, {"Bt": torch.zeros(4, 1, 3)}])
def test_refused(change: dict[str, Any]) -> None:
    arguments = dict(zip(("x", "weight", "bias", "A", "Bt"), layer(3), strict=True), index=INDEX) | change
    with pytest.raises(SettingError, match=re.escape("Expected x (B, ..., in), A (U, R, in), Bt (U, R, out)")):
        batched_lora(**arguments)
