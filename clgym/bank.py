"""A bank of rank-1 experts beside a frozen linear layer, each active by its own response."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from clgym.backend import uses_kernel, watched
from clgym.gating import check_gate, few_gate, self_gate, self_gate_backward
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

    Layers that read the same inputs, as an attention's q, k and v do, are one call: keys and values then have a first
    dimension ``n``, ``weight`` and ``bias`` are those of the layers one under the other, and so are the outputs.

    Args:
        x: ``(..., in)``.
        weight: Frozen, ``(out, in)``; of ``n`` layers ``(n * out, in)``.
        bias: Frozen, ``(out,)``; of ``n`` layers ``(n * out,)``.
        bank: Frozen keys ``(R, in)`` and values ``(R, out)``; ``R`` may be 0.
        A: Fresh keys ``(r, in)``.
        Bt: Fresh values ``(r, out)``.
        topk: See :func:`clgym.gating.rank_gate`.
        temperature: See :func:`clgym.gating.rank_gate`.
        delta: See :func:`clgym.gating.rank_gate`.

    Returns:
        ``(..., out)``; of ``n`` layers ``(..., n * out)``.

    Raises:
        SettingError: ``topk`` or ``temperature`` is out of range.

    Example:
        >>> one, none = torch.ones(1, 1), torch.zeros(0, 1)
        >>> expert_linear(one, one, None, (none, none), one, 3 * one, topk=2, temperature=1.0)
        tensor([[4.]])
    """
    check_gate(topk, temperature)
    experts = bank[0].shape[-2] + A.shape[-2]
    answers = x.device.type == "cpu" and not torch.is_grad_enabled() and not watched()
    with computing(x) as dtype:
        frozen: list[Any] = [None if t is None else t.to(dtype) for t in (weight, bias, *bank)]
        gate = min(topk, experts), temperature, delta
        if answers and topk < experts and not uses_kernel("rank_gate", x, experts):
            return _few(x.to(dtype), *frozen, A.to(dtype), Bt.to(dtype), *gate)
        y: Tensor = _Experts.apply(x.to(dtype), *frozen, A, Bt, *gate)
    return y


def _few(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    keys: Tensor,
    values: Tensor,
    A: Tensor,
    Bt: Tensor,
    *gate: Any,
) -> Tensor:
    """Compute :func:`expert_linear` where nothing learns: the values of the few active experts are added up alone."""
    rows = x.reshape(-1, x.shape[-1])  # (M, in)
    down, up = torch.cat([keys, A], -2), torch.cat([values, Bt], -2)  # (n, R, .)
    p = torch.mm(rows, down.view(-1, rows.shape[1]).t())  # (M, n * R)
    at, h = few_gate(p.view(-1, up.shape[-2]), *gate)  # (M * n, topk)
    first = torch.arange(0, p.numel(), p.shape[1]).unsqueeze(-1)  # of an input's responses
    which = at.view(len(rows), at.numel() // max(len(rows), 1)) - first
    experts = F.embedding_bag(which.view(h.shape), up.view(-1, up.shape[-1]), per_sample_weights=h, mode="sum")
    y = torch.mm(rows, weight.t()) if bias is None else torch.addmm(bias, rows, weight.t())
    return y.add_(experts.view(y.shape)).view(*x.shape[:-1], weight.shape[0])


class _Experts(torch.autograd.Function):
    """The closed form of :func:`expert_linear`; it keeps ``x``, the responses and how far each expert is active.

    Layers of an input lie side by side, ``(M, n, .)``, so that the gate sees ``M * n`` rows of responses.
    """

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
        """Compute in rows."""
        rows = x.reshape(-1, x.shape[-1])  # (M, in)
        down, up = torch.cat([keys, A.to(x.dtype)], -2), torch.cat([values, Bt.to(x.dtype)], -2)
        experts, out = up.shape[-2:]
        p = torch.mm(rows, down.view(-1, rows.shape[1]).t()).view(-1, experts)  # (M * n, R)
        h, a = self_gate(p, topk, temperature, delta)
        y = torch.mm(rows, weight.t()) if bias is None else torch.addmm(bias, rows, weight.t())
        n = weight.shape[0] // out
        if n == 1:
            up = up.view(experts, out)
            y.addmm_(h, up)
        else:
            _by_layer(y, n, out).baddbmm_(_by_layer(h, n, experts), up)
        ctx.save_for_backward(rows, weight, down, up, p, a)
        ctx.constants, ctx.shape, ctx.fresh = (temperature, delta), x.shape, slice(keys.shape[-2], None)
        ctx.n, ctx.learned = n, (A, Bt)
        return y.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients that are asked for, none for the frozen layer and the bank."""
        rows, weight, down, up, p, a = ctx.saved_tensors
        n, out, (A, Bt) = ctx.n, up.shape[-1], ctx.learned
        wants_x, wants_a, wants_b = (ctx.needs_input_grad[i] for i in (0, 5, 6))
        fresh = ctx.fresh
        dy = dy.reshape(len(rows), -1)  # (M, n * out)
        temperature, delta = ctx.constants
        dx = da = db = None
        if wants_b:
            h = a[:, fresh] * p[:, fresh]
            if delta is not None:
                h *= p[:, fresh] >= delta * torch.linalg.vector_norm(p, dim=-1, keepdim=True, dtype=a.dtype)
            h = _by_layer(h.to(dy.dtype), n, A.shape[-2])
            db = torch.matmul(h.mT, _by_layer(dy, n, out)).view(Bt.shape).to(Bt.dtype)
        if wants_x or wants_a:
            dh = torch.matmul(_by_layer(dy, n, out), up.mT)
            dh = dh if n == 1 else dh.transpose(0, 1).reshape(p.shape)
            dp = self_gate_backward(dh, p, a, temperature, delta)
            if wants_a:
                da = torch.matmul(_by_layer(dp, n, p.shape[1])[..., fresh].mT, rows).view(A.shape).to(A.dtype)
            if wants_x:
                dx = torch.mm(dp.view(len(rows), -1), down.view(-1, rows.shape[1]))
                dx = dx.addmm_(dy, weight).view(ctx.shape)
        return dx, None, None, None, None, da, db, None, None, None


def _by_layer(rows: Tensor, n: int, width: int) -> Tensor:
    """Turn ``(M, n * width)`` or ``(M * n, width)`` into ``(n, M, width)``, a view; of one layer it is what it was."""
    return rows if n == 1 else rows.view(-1, n, width).transpose(0, 1)
