"""An adapter per sample: users, domains or seeds of one frozen model in one batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from clgym.backend import register, uses_kernel
from clgym.errors import SettingError
from clgym.lowrank import computing


def batched_lora(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    A: Tensor,
    Bt: Tensor,
    index: Tensor,
    scale: float = 1.0,
) -> Tensor:
    """Apply a frozen linear layer, and beside it to each sample the low-rank branch of its own.

    ``y_b = x_b W^T + bias + scale * (x_b A_u^T) Bt_u`` with ``u = index_b``. Gradients flow to ``x``, ``A`` and
    ``Bt``, where samples that share an adapter add up. Where few adapters are mixed per sample, see
    :func:`clgym.stacking.stacked_lora`.

    Args:
        x: ``(B, ..., in)``.
        weight: Frozen, ``(out, in)``.
        bias: Frozen, ``(out,)``.
        A: The pool, ``(U, R, in)``.
        Bt: B transposed, ``(U, R, out)``.
        index: Which adapter each sample has, int64 ``(B,)`` in [0, U); beyond it is undefined, and not looked
            for, as that would wait for the device.
        scale: Factor of the branches.

    Returns:
        ``(B, ..., out)``.

    Raises:
        SettingError: ``x``, the pool and ``index`` do not fit.

    Example:
        >>> x, W, A, Bt = torch.ones(2, 1), torch.zeros(1, 1), torch.ones(2, 1, 1), torch.tensor([[[1.0]], [[5.0]]])
        >>> batched_lora(x, W, None, A, Bt, torch.tensor([1, 0])).tolist()
        [[5.0], [1.0]]
    """
    if A.dim() != 3 or Bt.dim() != 3 or A.shape[:2] != Bt.shape[:2] or index.shape != x.shape[:1] or x.dim() < 2:
        raise SettingError(
            "Expected x (B, ..., in), A (U, R, in), Bt (U, R, out) and index (B,); got "
            f"{tuple(x.shape)}, {tuple(A.shape)}, {tuple(Bt.shape)} and {tuple(index.shape)}. "
            "Stack the adapters first, with equal ranks."
        )
    with computing(x) as dtype:
        fixed = [None if t is None else t.to(dtype) for t in (weight, bias)]
        y: Tensor = _Batched.apply(x.to(dtype), *fixed, A, Bt, index, scale)
    return y


class _Batched(torch.autograd.Function):
    """The closed form of :func:`batched_lora`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        A: Tensor,
        Bt: Tensor,
        index: Tensor,
        scale: float,
    ) -> Tensor:
        """Compute in samples of rows."""
        samples = x.reshape(x.shape[0], x.shape[1:-1].numel(), x.shape[-1])  # (B, L, in)
        y: Tensor
        y, s = _forward(samples, weight, bias, A, Bt, index, scale)
        learns_a, learns_b = ctx.needs_input_grad[3:5]
        ctx.save_for_backward(samples if learns_a else None, s if learns_b else None, weight, A, Bt, index)
        ctx.scale, ctx.shape = scale, x.shape
        return y.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients that are asked for, none for the frozen layer."""
        samples, s, weight, A, Bt, index = ctx.saved_tensors
        wants_x, _, _, wants_a, wants_b, *_ = ctx.needs_input_grad
        dy = dy.reshape(dy.shape[0], dy.shape[1:-1].numel(), dy.shape[-1])  # (B, L, out)
        dx, da, db = _backward(dy, samples, s, weight, A, Bt, index, ctx.scale, wants_x, wants_a, wants_b)
        return (
            dx.view(ctx.shape) if wants_x else None,
            *(None, None),
            da if wants_a else None,
            db if wants_b else None,
            *(None, None),
        )


def _forward_impl(
    x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, Bt: Tensor, index: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    if x.numel() and uses_kernel("batched_lora", x, A.shape[1]):
        from clgym.kernels import batched_lora as kernel

        x = x.contiguous()
        s = kernel.shrink(x, A.contiguous(), index)
        y = kernel.expand(s, Bt.contiguous(), index, bias, scale)
    else:
        s = torch.bmm(x, _picked(A, index, x).transpose(1, 2))  # (B, L, R)
        up = _picked(Bt, index, x)
        y = torch.bmm(s, up if scale == 1.0 else up * scale)
        y = y if bias is None else y.add_(bias)
    y.view(-1, y.shape[2]).addmm_(x.view(-1, x.shape[2]), weight.t())
    return y, s


def _forward_fake(x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(*x.shape[:2], weight.shape[0]), x.new_empty(*x.shape[:2], A.shape[1])


def _backward_impl(
    dy: Tensor,
    x: Tensor | None,
    s: Tensor | None,
    weight: Tensor,
    A: Tensor,
    Bt: Tensor,
    index: Tensor,
    scale: float,
    wants_x: bool,
    wants_a: bool,
    wants_b: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of ``x``, ``A`` and ``Bt``; what is not asked for is empty."""
    kernel = bool(dy.numel()) and uses_kernel("batched_lora", dy, A.shape[1])
    dy = dy.contiguous()
    dx, da, db = dy.new_empty(0), A.new_empty(0), Bt.new_empty(0)
    if wants_b:
        assert s is not None
        db = _summed(s, dy, index, len(Bt), scale, kernel).to(Bt.dtype)
    if wants_x or wants_a:
        if kernel:
            from clgym.kernels import batched_lora as batched

            ds = batched.shrink(dy, Bt.contiguous(), index, scale)
        else:
            ds = torch.bmm(dy, _picked(Bt, index, dy).transpose(1, 2)).mul_(scale)  # (B, L, R)
        if wants_a:
            assert x is not None
            da = _summed(ds, x.contiguous(), index, len(A), 1.0, kernel).to(A.dtype)
        if wants_x:
            dx = batched.expand(ds, A.contiguous(), index) if kernel else torch.bmm(ds, _picked(A, index, dy))
            dx.view(-1, dx.shape[2]).addmm_(dy.view(-1, dy.shape[2]), weight)
    return dx, da, db


def _backward_fake(
    dy: Tensor,
    x: Tensor | None,
    s: Tensor | None,
    weight: Tensor,
    A: Tensor,
    Bt: Tensor,
    index: Tensor,
    scale: float,
    wants_x: bool,
    wants_a: bool,
    wants_b: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dx = dy.new_empty(*dy.shape[:2], weight.shape[1]) if wants_x else dy.new_empty(0)
    return dx, A.new_empty(A.shape if wants_a else 0), Bt.new_empty(Bt.shape if wants_b else 0)


def _picked(pool: Tensor, index: Tensor, like: Tensor) -> Tensor:
    return pool.index_select(0, index).to(like.dtype)


def _summed(s: Tensor, x: Tensor, index: Tensor, adapters: int, scale: float, kernel: bool) -> Tensor:
    """Return ``scale * sum of s_b^T x_b`` over the samples of each adapter, ``(U, R, in)``."""
    if kernel:
        from clgym.kernels import batched_lora as batched

        return batched.outer(s.contiguous(), x, index, adapters, scale)
    each = torch.bmm(s.transpose(1, 2), x)
    each = each if scale == 1.0 else each.mul_(scale)
    if not x.is_cuda:
        return each.new_zeros(adapters, *each.shape[1:]).index_add_(0, index, each)
    # Adding at indices is done in any order on CUDA; a product with zeros and ones is not.
    member = torch.zeros(adapters, len(index), dtype=each.dtype, device=each.device).scatter_(0, index[None], 1)
    return (member @ each.flatten(1)).view(adapters, *each.shape[1:])


_forward: Any = register(
    "batched_lora(Tensor x, Tensor weight, Tensor? bias, Tensor A, Tensor Bt, Tensor index, float scale)"
    " -> (Tensor, Tensor)",
    _forward_impl,
    _forward_fake,
)
_backward: Any = register(
    "batched_lora_backward(Tensor dy, Tensor? x, Tensor? s, Tensor weight, Tensor A, Tensor Bt, Tensor index, "
    "float scale, bool wants_x, bool wants_a, bool wants_b) -> (Tensor, Tensor, Tensor)",
    _backward_impl,
    _backward_fake,
)
