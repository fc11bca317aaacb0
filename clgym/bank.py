"""A bank of rank-1 experts beside a frozen linear layer, each active by its own response."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from clgym.gating import check_gate, self_gate, self_gate_backward
from clgym.lowrank import computing


def expert_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    bank: tuple[Tensor, Tensor],
    A: Tensor,
    Bt: Tensor,
    *,
    topk: int,
    temperature: float,
    delta: float | None = None,
) -> Tensor:
    """Apply a frozen linear layer, and beside it frozen and fresh rank-1 experts that compete.

    ``y = x W^T + b + rank_gate(x K^T) V``, where keys ``K`` and values ``V`` are those of the bank, then the fresh
    ``A`` and ``Bt`` (MoRA, arXiv:2506.21035). The bank takes no gradient and costs none.

    Args:
        x: ``(..., in)``.
        weight: Frozen, ``(out, in)``.
        bias: Frozen, ``(out,)``.
        bank: Frozen keys ``(R, in)`` and values ``(R, out)``; ``R`` may be 0.
        A: Fresh keys ``(r, in)``.
        Bt: Fresh values ``(r, out)``.
        topk: See :func:`clgym.gating.rank_gate`.
        temperature: See :func:`clgym.gating.rank_gate`.
        delta: See :func:`clgym.gating.rank_gate`.

    Returns:
        ``(..., out)``.

    Raises:
        SettingError: ``topk`` or ``temperature`` is out of range.

    Example:
        >>> one, none = torch.ones(1, 1), torch.zeros(0, 1)
        >>> expert_linear(one, one, None, (none, none), one, 3 * one, topk=2, temperature=1.0)
        tensor([[4.]])
    """
    check_gate(topk, temperature)
    with computing(x) as dtype:
        frozen = [None if t is None else t.to(dtype) for t in (weight, bias, *bank)]
        y: Tensor = _Experts.apply(x.to(dtype), *frozen, A, Bt, topk, temperature, delta)
    return y


class _Experts(torch.autograd.Function):
    """The closed form of :func:`expert_linear`; it keeps ``x``, the responses and how far each expert is active."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        keys: Tensor,
        values: Tensor,
        A: Tensor,
        Bt: Tensor,
        topk: int,
        temperature: float,
        delta: float | None,
    ) -> Tensor:
        """Compute the thin products first, so that the wide one adds to them while it writes."""
        rows = x.reshape(-1, x.shape[-1])  # (M, in)
        down, up = torch.cat([keys, A.to(x.dtype)]), torch.cat([values, Bt.to(x.dtype)])
        p = rows @ down.t()  # (M, R + r)
        h, a = self_gate(p, min(topk, len(down)), temperature, delta)
        y = torch.mm(h, up) if bias is None else torch.addmm(bias, h, up)
        ctx.save_for_backward(rows, weight, down, up, p, a)
        ctx.constants, ctx.shape, ctx.fresh = (temperature, delta), x.shape, slice(len(keys), None)
        ctx.dtypes = A.dtype, Bt.dtype
        return y.addmm_(rows, weight.t()).view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients that are asked for, none for the frozen layer and the bank."""
        rows, weight, down, up, p, a = ctx.saved_tensors
        wants_x, wants_a, wants_b = (ctx.needs_input_grad[i] for i in (0, 5, 6))
        fresh = ctx.fresh
        dy = dy.reshape(-1, weight.shape[0])  # (M, out)
        temperature, delta = ctx.constants
        dx = da = db = None
        if wants_b:
            h = a[:, fresh] * p[:, fresh]
            if delta is not None:
                h *= p[:, fresh] >= delta * torch.linalg.vector_norm(p, dim=-1, keepdim=True, dtype=a.dtype)
            db = torch.mm(h.to(dy.dtype).t(), dy).to(ctx.dtypes[1])
        if wants_x or wants_a:
            dp = self_gate_backward(torch.mm(dy, up.t()), p, a, temperature, delta)
            if wants_a:
                da = torch.mm(dp[:, fresh].t(), rows).to(ctx.dtypes[0])
            if wants_x:
                dx = torch.mm(dp, down).addmm_(dy, weight).view(ctx.shape)
        return dx, None, None, None, None, da, db, None, None, None
