"""The numerical operations of the methods, each in plain torch."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def lora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    A: Tensor,
    Bt: Tensor,
    gate: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """Apply a frozen linear layer and the low-rank branch beside it.

    ``y = x W^T + b + scale * ((x A^T) * w) Bt``, after Hu et al. 2021 (arXiv:2106.09685, eq. 3), with the
    gate ``w`` of CoDyRA (arXiv:2412.01004). Gradients flow to ``x``, ``A``, ``Bt`` and ``gate``, never to the
    frozen ``weight`` and ``bias``; a second derivative is refused. The branch is computed in the type of
    ``x``, or in autocast's type where autocast is on.

    Args:
        x: ``(..., in)``, any floating type, contiguous or not.
        weight: Frozen, ``(out, in)``, of the type of ``x``.
        bias: Frozen, ``(out,)``.
        A: ``(R, in)``.
        Bt: B transposed, ``(R, out)``: row-major in this layout, every thin product reads whole rows.
        gate: One factor per rank, ``(R,)``; none means all ones.
        scale: Factor of the whole branch.

    Returns:
        ``(..., out)``.

    Example:
        >>> x, W, A, Bt = torch.ones(1, 2), torch.eye(2), torch.ones(1, 2), torch.tensor([[1.0, 3.0]])
        >>> lora_linear(x, W, None, A, Bt, gate=torch.tensor([0.5]))
        tensor([[2., 4.]])
    """
    device = x.device.type
    cast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if cast else x.dtype
    frozen = [None if t is None else t.to(dtype) for t in (weight, bias)]
    gate = None if gate is None else gate.to(dtype)
    with torch.autocast(device, enabled=False) if cast else nullcontext():
        y: Tensor = _LoRALinear.apply(x.to(dtype), *frozen, A.to(dtype), Bt.to(dtype), gate, scale)
    return y


class _LoRALinear(torch.autograd.Function):
    """The closed form of :func:`lora_linear`; ``B`` is passed transposed.

    It keeps ``x`` and ``s = x A^T``, and nothing that is as wide as the output.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        A: Tensor,
        B: Tensor,
        gate: Tensor | None,
        scale: float,
    ) -> Tensor:
        """Compute the thin products first, so that the large one adds to them while it writes."""
        rows = x.reshape(-1, x.shape[-1])  # (M, in)
        s = rows @ A.t()  # (M, R)
        h = s if gate is None else s * gate
        if bias is None:
            y = torch.mm(h, B).addmm_(rows, weight.t(), beta=scale)  # (M, out)
        else:
            y = torch.addmm(bias, h, B, alpha=scale).addmm_(rows, weight.t())
        learns = any(ctx.needs_input_grad[3:6])
        ctx.save_for_backward(rows if learns else None, s if learns else None, weight, A, B, gate)
        ctx.scale, ctx.shape = scale, x.shape
        return y.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients that are asked for, none for the frozen layer."""
        rows, s, weight, A, B, gate = ctx.saved_tensors
        wants_x, _, _, wants_a, wants_b, wants_gate, _ = ctx.needs_input_grad
        dy = dy.reshape(-1, weight.shape[0])  # (M, out)
        dx = da = db = dgate = None
        if wants_b:
            db = torch.mm((s if gate is None else s * gate).t(), dy).mul_(ctx.scale)  # (R, out)
        if wants_x or wants_a or wants_gate:
            ds = torch.mm(dy, B.t()).mul_(ctx.scale)  # (M, R), so far the gradient of s * gate
            if wants_gate:
                dgate = (ds * s).sum(0)
            if gate is not None:
                ds.mul_(gate)
            if wants_a:
                da = torch.mm(ds.t(), rows)  # (R, in)
            if wants_x:
                dx = torch.mm(ds, A).addmm_(dy, weight).view(ctx.shape)
        return dx, None, None, da, db, dgate, None


def soft_threshold(w: Tensor, kappa: float) -> Tensor:
    """Return the proximal map of ``kappa * |w|_1``: shrink towards zero, and zero what is small.

    ``T_k(w) = 1[|w| > k] (w - sign(w) k)``, the soft threshold of CoDyRA (arXiv:2412.01004).

    Args:
        w: Any shape, floating.
        kappa: The threshold, at least 0.

    Returns:
        A new tensor like ``w``.

    Raises:
        RuntimeError: ``kappa`` is negative (torch's own check).

    Example:
        >>> soft_threshold(torch.tensor([-3.0, 0.5, 1.0, 2.0]), kappa=1.0)
        tensor([-2.,  0.,  0.,  1.])
    """
    return F.softshrink(w, kappa)


def soft_threshold_(w: Tensor, kappa: float) -> Tensor:
    """Apply :func:`soft_threshold` in place, outside the graph, and return ``w``.

    Example:
        >>> soft_threshold_(torch.tensor([-3.0, 0.5]), kappa=1.0)
        tensor([-2.,  0.])
    """
    with torch.no_grad():
        return w.copy_(F.softshrink(w, kappa))


def double_soft_threshold_(w: Tensor, kappa: float) -> Tensor:
    """Apply the threshold of CoDyRA's released code in place, outside the graph, and return ``w``.

    Three masks in turn: subtract ``kappa`` where ``w > kappa``; add it where ``w < -kappa``; then zero
    ``|w| < kappa``. The third mask sees shrunk values, so everything up to ``2 * kappa`` dies; departs from
    the paper's rule (:func:`soft_threshold`) there, and leaves ``|w| = kappa`` as it is.

    Args:
        w: Any shape, floating.
        kappa: The threshold, at least 0.

    Example:
        >>> double_soft_threshold_(torch.tensor([-3.0, 0.5, 1.0, 1.5, 2.5]), kappa=1.0)
        tensor([-2.0000,  0.0000,  1.0000,  0.0000,  1.5000])
    """
    with torch.no_grad():
        w.copy_(torch.where(w > kappa, w - kappa, w))
        w.copy_(torch.where(w < -kappa, w + kappa, w))
        return w.masked_fill_(w.abs() < kappa, 0.0)
