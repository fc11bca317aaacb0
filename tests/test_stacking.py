from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from clgym.errors import SettingError
from clgym.ops import lora_linear, stacked_lora

OFFSETS = (0, 2, 2, 5, 6)  # four tasks of 2, 0, 3 and 1 ranks


def drawn(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def layer() -> tuple[Tensor, ...]:
    return tuple(drawn((2, 3, 5), (4, 5), (4,), (6, 5), (6, 4)))


def loop(x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, Bt: Tensor, gate: Tensor | None, scale: float) -> Tensor:
    """Adapter by adapter, as the papers write it."""
    y = F.linear(x, W, b)
    for t, (first, last) in enumerate(pairwise(OFFSETS)):
        each = scale * (x @ A[first:last].T) @ Bt[first:last]
        if gate is None:
            y = y + each
        elif gate.dim() == 1:
            y = y + gate[t] * each
        else:
            y = y + gate[..., t].view(*gate.shape[:-1], *[1] * (x.dim() - gate.dim() + 1)) * each
    return y


@pytest.mark.parametrize("shape", [None, (4,), (2, 4), (2, 3, 4)], ids=str)
def test_it_is_the_loop_gradients_included(shape: tuple[int, ...] | None) -> None:
    x, W, b, A, Bt = layer()
    gates = [] if shape is None else [drawn(shape)[0]]
    leaves = [t.requires_grad_() for t in (x, A, Bt, *gates)]
    gate = leaves[3] if gates else None
    ours = stacked_lora(x, W, b, A, Bt, gate, 0.7, offsets=OFFSETS)
    theirs = loop(x, W, b, A, Bt, gate, 0.7)
    torch.testing.assert_close(ours, theirs)
    dy = drawn((2, 3, 4))[0]
    for mine, other in zip(torch.autograd.grad(ours, leaves, dy), torch.autograd.grad(theirs, leaves, dy), strict=True):
        torch.testing.assert_close(mine, other)
    assert torch.autograd.gradcheck(
        lambda x, A, Bt, *g: stacked_lora(x, W, None, A, Bt, g[0] if g else None, 0.7, offsets=OFFSETS), leaves
    )


def test_frozen_rows_get_no_gradient_and_change_no_other() -> None:
    x, W, b, A, Bt = layer()
    gate = drawn((2, 4))[0]
    results = []
    for frozen in (0, 5):
        leaves = [t.detach().clone().requires_grad_() for t in (x, A, Bt, gate)]
        y = stacked_lora(leaves[0], W, b, leaves[1], leaves[2], leaves[3], offsets=OFFSETS, frozen=frozen)
        results.append(torch.autograd.grad(y.square().sum(), leaves))
    (dx, da, db, dg), (dx5, da5, db5, dg5) = results
    for mine, other in ((dx, dx5), (dg, dg5), (da[5:], da5[5:]), (db[5:], db5[5:])):
        torch.testing.assert_close(mine, other)
    assert not da5[:5].any()
    assert not db5[:5].any()
    assert da[:5].any()


def test_a_gate_of_zero_removes_a_task_exactly() -> None:
    x, W, b, A, Bt = layer()
    without = stacked_lora(x, W, b, A[2:], Bt[2:], offsets=(0, 0, 0, 3, 4))
    gate = torch.tensor([0.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(stacked_lora(x, W, b, A, Bt, gate, offsets=OFFSETS), without, rtol=0, atol=1e-14)
    none = stacked_lora(x, W, b, A, Bt, 0 * gate, offsets=OFFSETS)
    torch.testing.assert_close(none, F.linear(x, W, b), rtol=0, atol=1e-14)


def test_a_new_stack_of_zero_changes_neither_output_nor_input_gradient() -> None:
    x, W, b, A, Bt = layer()
    x.requires_grad_()
    before = lora_linear(x, W, b, A, Bt)
    more = (torch.cat([A, A[:2]]), torch.cat([Bt, 0 * Bt[:2]]))
    after = stacked_lora(x, W, b, *more, offsets=(*OFFSETS, 8), frozen=6)
    torch.testing.assert_close(before, after)
    grads = [torch.autograd.grad(y.square().sum(), x)[0] for y in (before, after)]
    torch.testing.assert_close(*grads)


def test_a_gate_per_sample_mixes_adapters() -> None:
    # RecLoRA's per-user weight, written out: sum_k alpha_k(u) B_k A_k.
    x, W, b, A, Bt = layer()
    alpha = drawn((2, 4))[0].softmax(-1)
    ours = stacked_lora(x, W, b, A, Bt, alpha, offsets=OFFSETS)
    for user in range(2):
        ranks = torch.cat([alpha[user, t].expand(OFFSETS[t + 1] - OFFSETS[t]) for t in range(4)])
        mixed = W + Bt.T @ ranks.diag() @ A
        torch.testing.assert_close(ours[user], F.linear(x[user], mixed, b))


@pytest.mark.parametrize("rows", [0, 1])
def test_of_no_row_and_of_one(rows: int) -> None:
    _, W, b, A, Bt = layer()
    x, gate = torch.ones(rows, 5, dtype=torch.float64), torch.ones(rows, 4, dtype=torch.float64)
    leaves = [t.requires_grad_() for t in (x, A, gate)]
    y = stacked_lora(x, W, b, A, Bt, gate, offsets=OFFSETS)
    torch.testing.assert_close(y, loop(x, W, b, A, Bt, gate, 1.0))
    assert torch.autograd.grad(y.sum(), leaves)[2].shape == gate.shape


def test_in_bf16_and_under_autocast() -> None:
    x, W, b, A, Bt = (t.float() for t in layer())
    gate = drawn((2, 3, 4), dtype=torch.float32)[0]
    exact = loop(x, W, b, A, Bt, gate, 1.0)
    A.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = stacked_lora(x, W, b, A, Bt, gate, offsets=OFFSETS)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), exact, rtol=0.05, atol=0.2)
    (grad,) = torch.autograd.grad(y.float().sum(), A)
    assert grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"offsets": (0, 3)}, "Expected offsets that rise from 0 to the 6 rows of A"),
        ({"offsets": (0, 4, 2, 6)}, "got (0, 4, 2, 6) and 0. Give one offset per task, and the end."),
        ({"offsets": OFFSETS, "frozen": 7}, "and 7."),
        ({"offsets": OFFSETS, "gate": torch.ones(3)}, "then 4 tasks; got (3,). Give one factor per task, sample or"),
        ({"offsets": OFFSETS, "gate": torch.ones(3, 4)}, "a gate whose shape is a beginning of (2, 3), then 4 tasks"),
    ],
)
def test_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=re.escape(words)):
        x, W, b, A, Bt = layer()
        stacked_lora(x, W, b, A, Bt, **settings)
