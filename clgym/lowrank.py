"""A frozen linear layer with a low-rank branch beside it: the op that nearly every method trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from clgym.backend import facts, register, uses_kernel
from clgym.errors import SettingError
from clgym.merging import fold, merge_stochastic
from clgym.philox import keep_mask, thinning

Mode = Literal["split", "merged"]


def lora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    A: Tensor,
    Bt: Tensor,
    gate: Tensor | None = None,
    scale: float = 1.0,
    *,
    mode: Mode = "split",
    dropout: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """Apply a frozen linear layer and the low-rank branch beside it.

    ``y = x W^T + b + scale * (((m * x) A^T / (1 - p)) * w) Bt``, after Hu et al. 2021 (arXiv:2106.09685, eq. 3),
    with the gate ``w`` of CoDyRA (arXiv:2412.01004) and dropout before ``A``, as LoRA's code has it. Gradients
    flow to ``x``, ``A``, ``Bt`` and ``gate``, never to the frozen ``weight`` and ``bias``; a second derivative
    is refused. The branch is computed in the type of ``x``, or in autocast's type where autocast is on; the
    gradients of ``A``, ``Bt`` and ``gate`` are of their own types.

    Args:
        x: ``(..., in)``, any floating type, contiguous or not.
        weight: Frozen, ``(out, in)``, of the type of ``x``.
        bias: Frozen, ``(out,)``.
        A: ``(R, in)``.
        Bt: B transposed, ``(R, out)``: row-major in this layout, every thin product reads whole rows.
        gate: One factor per rank, ``(R,)``; none means all ones.
        scale: Factor of the whole branch.
        mode: ``"split"`` adds the branch to the layer's output; ``"merged"`` adds it to the weight first, and
            differentiates the branch as such: one product fewer for a copy of the weight. In bf16 the copy is
            rounded at random by ``seed``, see :func:`clgym.merging.merge_stochastic`.
        dropout: Probability ``p`` that an input of the branch is zero, in [0, 1); of split mode only.
        seed: Of the mask, which is drawn anew in the backward pass and never stored; another for every call.

    Returns:
        ``(..., out)``.

    Raises:
        SettingError: ``mode`` is unknown, or ``dropout`` is out of range or given in merged mode.

    Example:
        >>> x, W, A, Bt = torch.ones(1, 2), torch.eye(2), torch.ones(1, 2), torch.tensor([[1.0, 3.0]])
        >>> lora_linear(x, W, None, A, Bt, gate=torch.tensor([0.5]))
        tensor([[2., 4.]])
    """
    if mode not in get_args(Mode):
        raise SettingError(f"Expected mode in {get_args(Mode)}; got {mode!r}. Choose one of them.")
    if not 0.0 <= dropout < 1.0 or (dropout and mode == "merged"):
        raise SettingError(
            f"Expected dropout in [0, 1), and 0 in merged mode; got {dropout} in {mode} mode. "
            "A merged weight has no input of its own to drop."
        )
    with computing(x) as dtype:
        x, bias = x.to(dtype), None if bias is None else bias.to(dtype)
        if mode == "merged":
            y: Tensor = _Merged.apply(x, weight, bias, A, Bt, gate, scale, seed)
        else:
            y = _Split.apply(x, weight.to(dtype), bias, A, Bt, gate, scale, dropout, seed)
    return y


@contextmanager
def computing(x: Tensor) -> Iterator[torch.dtype]:
    """Yield the dtype to compute in, that of ``x`` or autocast's, with autocast off: nothing is cast twice."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            yield dtype
    else:
        yield x.dtype


class _Split(torch.autograd.Function):
    """The closed form of :func:`lora_linear`: it keeps ``x`` and ``s = x A^T``, and nothing as wide as the output."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        A: Tensor,
        Bt: Tensor,
        gate: Tensor | None,
        scale: float,
        dropout: float,
        seed: int,
    ) -> Tensor:
        """Compute in rows."""
        rows = x.reshape(-1, x.shape[-1])  # (M, in)
        y: Tensor
        y, s = _forward(rows, weight, bias, A, Bt, gate, scale, dropout, seed)
        learns = any(ctx.needs_input_grad[3:6])
        ctx.save_for_backward(rows if learns else None, s if learns else None, weight, A, Bt, gate)
        ctx.constants, ctx.shape = (scale, dropout, seed), x.shape
        return y.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients that are asked for, none for the frozen layer."""
        rows, s, weight, A, Bt, gate = ctx.saved_tensors
        wants_x, _, _, wants_a, wants_b, wants_gate, *_ = ctx.needs_input_grad
        wants = (wants_x, wants_a, wants_b or wants_gate)
        dy = dy.reshape(-1, weight.shape[0])  # (M, out)
        dx, da, db, dgate = _backward(dy, rows, s, weight, A, Bt, gate, *ctx.constants, *wants)
        return (
            dx.view(ctx.shape) if wants_x else None,
            *(None, None),
            da if wants_a else None,
            db if wants_b else None,
            dgate if wants_gate else None,
            *(None, None, None),
        )


class _Merged(torch.autograd.Function):
    """Merged mode: the weight with the branch in it is kept, and ``s`` is computed where it is needed."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        A: Tensor,
        Bt: Tensor,
        gate: Tensor | None,
        scale: float,
        seed: int,
    ) -> Tensor:
        """Merge, then apply."""
        merged = merge_stochastic(weight, A, Bt, gate, scale, seed=seed, dtype=x.dtype)
        learns = any(ctx.needs_input_grad[3:6])
        ctx.save_for_backward(x if learns else None, merged, A, Bt, gate)
        ctx.scale, ctx.shape = scale, x.shape
        return F.linear(x, merged, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Differentiate the branch as such; the input's gradient goes through the merged weight."""
        x, merged, A, Bt, gate = ctx.saved_tensors
        wants_x, _, _, wants_a, wants_b, wants_gate, *_ = ctx.needs_input_grad
        learns_up = wants_b or wants_gate
        dy = dy.reshape(-1, merged.shape[0])  # (M, out)
        da = db = dgate = None
        if wants_a or learns_up:
            rows = x.reshape(-1, x.shape[-1])
            s = torch.mm(rows, A.to(rows.dtype).t()) if learns_up else None
            wants = (False, wants_a, learns_up)
            _, da, db, dgate = _backward(dy, rows, s, merged, A, Bt, gate, ctx.scale, 0.0, 0, *wants)
        return (
            torch.mm(dy, merged).view(ctx.shape) if wants_x else None,
            *(None, None),
            da if wants_a else None,
            db if wants_b else None,
            dgate if wants_gate else None,
            *(None, None),
        )


def _forward_impl(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    A: Tensor,
    Bt: Tensor,
    gate: Tensor | None,
    scale: float,
    dropout: float,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Compute the thin products first, so that the wide one adds to them while it writes."""
    if x.numel() and uses_kernel("lora_linear", x, A.shape[0]):
        from clgym.kernels import lora_linear as kernel

        x, A, Bt = x.contiguous(), A.contiguous(), Bt.contiguous()
        s = kernel.shrink(x, A, dropout=dropout, seed=seed)
        return kernel.expand(s, Bt, bias, gate, scale).addmm_(x, weight.t()), s
    s = _dropped(x, dropout, seed) @ A.to(x.dtype).t()  # (M, R)
    up = fold(Bt, gate, scale).to(x.dtype)
    y = torch.mm(s, up) if bias is None else torch.addmm(bias, s, up)
    return y.addmm_(x, weight.t()), s


def _forward_fake(x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], weight.shape[0]), x.new_empty(x.shape[0], A.shape[0])


def _backward_impl(
    dy: Tensor,
    x: Tensor | None,
    s: Tensor | None,
    weight: Tensor,
    A: Tensor,
    Bt: Tensor,
    gate: Tensor | None,
    scale: float,
    dropout: float,
    seed: int,
    wants_x: bool,
    wants_a: bool,
    wants_b: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of ``x``, ``A``, ``Bt`` and ``gate``; what is not asked for is empty."""
    kernel = bool(dy.numel()) and uses_kernel("lora_linear", dy, A.shape[0])
    dx, da, db, dgate = dy.new_empty(0), A.new_empty(0), Bt.new_empty(0), Bt.new_empty(0)
    dy = dy.contiguous() if kernel else dy
    ds, sums = (_inner_kernel if kernel else _inner)(dy, s, Bt, gate, scale, wants_x or wants_a, wants_b)
    if wants_a:
        assert ds is not None
        assert x is not None
        da = outer(ds, x, kernel, dropout, seed).to(A.dtype)  # (R, in)
    if wants_x:
        assert ds is not None
        dx = spread(ds, A, kernel, dropout, seed).addmm_(dy, weight)
    if wants_b:
        assert sums is not None
        db = sums = sums.to(Bt.dtype)
        if gate is not None:
            db = sums * gate.to(Bt.dtype)[:, None]
            dgate = (sums * Bt).sum(1)  # s^T dy is all that the gate's gradient needs
    return dx, da, db, dgate


def _inner(
    dy: Tensor, s: Tensor | None, Bt: Tensor, gate: Tensor | None, scale: float, wants_s: bool, wants_b: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradient of ``s``, ``(M, R)``, and ``scale * s^T dy``, ``(R, out)``, as far as they are wanted."""
    ds = sums = None
    if wants_b:
        assert s is not None
        sums = torch.mm(s.t(), dy)
        sums = sums if scale == 1.0 else sums.mul_(scale)
    if wants_s:
        ds = torch.mm(dy, fold(Bt, gate, scale).to(dy.dtype).t())
    return ds, sums


def _inner_kernel(
    dy: Tensor, s: Tensor | None, Bt: Tensor, gate: Tensor | None, scale: float, wants_s: bool, wants_b: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Do the same in one pass over ``dy`` where both are wanted."""
    from clgym.kernels import lora_linear as kernel

    if wants_b:
        assert s is not None
        return kernel.backward_up(dy, Bt.contiguous(), s.contiguous(), gate, scale)
    return kernel.shrink(dy, fold(Bt, gate, scale).contiguous()) if wants_s else None, None


def outer(ds: Tensor, x: Tensor, kernel: bool, dropout: float = 0.0, seed: int = 0) -> Tensor:
    """Return ``ds^T (m * x) / (1 - p)``, ``(R, in)``: what ``A`` learns; by the kernel in fp32."""
    if kernel:
        from clgym.kernels import lora_linear as thin

        return thin.backward_down(ds.contiguous(), x.contiguous(), dropout=dropout, seed=seed)
    return torch.mm(ds.t(), _dropped(x, dropout, seed))


def spread(ds: Tensor, A: Tensor, kernel: bool, dropout: float = 0.0, seed: int = 0) -> Tensor:
    """Return ``m * (ds A) / (1 - p)``, ``(M, in)``: what the branch passes on to its input."""
    if kernel:
        from clgym.kernels import lora_linear as thin

        return thin.expand(ds, A.contiguous(), dropout=dropout, seed=seed)
    return _dropped(torch.mm(ds, A.to(ds.dtype)), dropout, seed)


def _backward_fake(
    dy: Tensor,
    x: Tensor | None,
    s: Tensor | None,
    weight: Tensor,
    A: Tensor,
    Bt: Tensor,
    gate: Tensor | None,
    scale: float,
    dropout: float,
    seed: int,
    wants_x: bool,
    wants_a: bool,
    wants_b: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dx = dy.new_empty(dy.shape[0], weight.shape[1]) if wants_x else dy.new_empty(0)
    da = A.new_empty(A.shape if wants_a else 0)
    db = Bt.new_empty(Bt.shape if wants_b else 0)
    dgate = Bt.new_empty(Bt.shape[0] if wants_b and gate is not None else 0)
    return dx, da, db, dgate


def _dropped(x: Tensor, dropout: float, seed: int) -> Tensor:
    """Return ``m * x / (1 - p)``."""
    if not dropout:
        return x
    mask = keep_mask(x.shape[0], x.shape[1], dropout, seed, x.device)
    return x * mask.to(x.dtype).mul_(thinning(dropout)[1])


_forward: Any = register(
    "lora_linear(Tensor x, Tensor weight, Tensor? bias, Tensor A, Tensor Bt, Tensor? gate, float scale, "
    "float dropout, SymInt seed) -> (Tensor, Tensor)",
    _forward_impl,
    _forward_fake,
)
_backward: Any = register(
    "lora_linear_backward(Tensor dy, Tensor? x, Tensor? s, Tensor weight, Tensor A, Tensor Bt, Tensor? gate, "
    "float scale, float dropout, SymInt seed, bool wants_x, bool wants_a, bool wants_b) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _backward_impl,
    _backward_fake,
)


@facts("lora_linear")
@facts("stacked_lora")
@facts("batched_lora")
def _facts(
    x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, *_: Any, **__: Any
) -> tuple[Tensor, int, torch.dtype]:
    with computing(x) as dtype:
        return x, A.shape[-2], dtype
