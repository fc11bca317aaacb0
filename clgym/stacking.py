"""The adapters of all tasks of one layer as one stacked adapter, weighed per task, sample or token: never a loop."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from clgym.backend import register, uses_kernel
from clgym.errors import SettingError
from clgym.lowrank import computing, outer, spread
from clgym.merging import fold


def stacked_lora(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    A: Tensor,
    Bt: Tensor,
    gate: Tensor | None = None,
    scale: float = 1.0,
    *,
    offsets: Sequence[int],
    frozen: int = 0,
) -> Tensor:
    """Apply a frozen linear layer and the low-rank branches of several tasks beside it.

    ``y = x W^T + b + scale * sum_t g_t (x A_t^T) Bt_t``, in two thin products for any number of tasks. With a
    gate per sample it is also a mixture of adapters per sample. Gradients flow to ``x``, ``gate`` and the rows
    of ``A`` and ``Bt`` from ``frozen`` on; those of the rows before are zero and cost nothing.

    Args:
        x: ``(..., in)``.
        weight: Frozen, ``(out, in)``.
        bias: Frozen, ``(out,)``.
        A: Of all tasks, ``(R, in)``.
        Bt: B transposed, of all tasks, ``(R, out)``.
        gate: Factor of each of T branches: ``(T,)``; or with the leading dimensions of ``x`` or the first few
            of them before ``T``, such as ``(B, T)`` per sample of ``x (B, L, in)``. None means all ones.
        scale: Factor of all branches.
        offsets: Where each task's rows begin, and the end: ``T + 1`` rising integers from 0 to ``R``.
        frozen: Rows that do not learn; they come first.

    Returns:
        ``(..., out)``.

    Raises:
        SettingError: Offsets, gate or ``frozen`` do not fit.

    Example:
        >>> x, W = torch.ones(2, 1), torch.zeros(1, 1)
        >>> A, Bt = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [10.0]])
        >>> stacked_lora(x, W, None, A, Bt, torch.tensor([[1.0, 0.0], [1.0, 1.0]]), offsets=(0, 1, 2)).tolist()
        [[1.0], [21.0]]
    """
    offsets = tuple(offsets)
    rising = all(a <= b for a, b in pairwise(offsets))
    if not offsets or offsets[0] != 0 or offsets[-1] != A.shape[0] or not rising or not 0 <= frozen <= A.shape[0]:
        raise SettingError(
            f"Expected offsets that rise from 0 to the {A.shape[0]} rows of A, and frozen among them; "
            f"got {offsets} and {frozen}. Give one offset per task, and the end."
        )
    tasks = len(offsets) - 1
    depth = 0 if gate is None else gate.dim() - 1
    if gate is not None and (gate.shape[-1] != tasks or depth >= x.dim() or gate.shape[:-1] != x.shape[:depth]):
        raise SettingError(
            f"Expected a gate whose shape is a beginning of {tuple(x.shape[:-1])}, then {tasks} tasks; "
            f"got {tuple(gate.shape)}. Give one factor per task, sample or token."
        )
    with computing(x) as dtype:
        fixed = [None if t is None else t.to(dtype) for t in (weight, bias)]
        y: Tensor = _Stacked.apply(x.to(dtype), *fixed, A, Bt, gate, scale, offsets, frozen)
    return y


class _Stacked(torch.autograd.Function):
    """The closed form of :func:`stacked_lora`."""

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
        offsets: tuple[int, ...],
        frozen: int,
    ) -> Tensor:
        """Compute in rows; a gate gets one row per task weighing, and serves as many rows of ``x`` in turn."""
        rows = x.reshape(-1, x.shape[-1])  # (M, in)
        weighing = None if gate is None else gate.reshape(-1, gate.shape[-1])  # (G, T)
        learns_a, learns_b, learns_gate = ctx.needs_input_grad[3:6]
        keeps_s = learns_b or learns_gate
        y: Tensor
        y, s = _forward(rows, weight, bias, A, Bt, weighing, scale, offsets, keeps_s)
        ctx.save_for_backward(rows if learns_a else None, s if keeps_s else None, weight, A, Bt, weighing)
        ctx.constants = (scale, offsets, frozen)
        ctx.shapes = x.shape, None if gate is None else gate.shape
        return y.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients that are asked for, none for the frozen layer."""
        rows, s, weight, A, Bt, weighing = ctx.saved_tensors
        wants_x, _, _, *wants = ctx.needs_input_grad[:6]
        dy = dy.reshape(-1, weight.shape[0])  # (M, out)
        dx, da, db, dgate = _backward(dy, rows, s, weight, A, Bt, weighing, *ctx.constants, wants_x, *wants)
        wants_a, wants_b, wants_gate = wants
        return (
            dx.view(ctx.shapes[0]) if wants_x else None,
            *(None, None),
            da if wants_a else None,
            db if wants_b else None,
            dgate.view(ctx.shapes[1]) if wants_gate else None,
            *(None, None, None),
        )


def _forward_impl(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    A: Tensor,
    Bt: Tensor,
    gate: Tensor | None,
    scale: float,
    offsets: list[int],
    keeps_s: bool,
) -> tuple[Tensor, Tensor]:
    """Return the output and, if it is to be kept, ``s = x A^T``, else nothing in its place."""
    kernel = bool(x.numel()) and uses_kernel("stacked_lora", x, A.shape[0])
    task = _task_of_rank(tuple(offsets), x.device)
    if kernel:
        from clgym.kernels import lora_linear as thin

        x = x.contiguous()
        s = thin.shrink(x, A.contiguous())
        y = thin.expand(_weighed(s, gate, task, kernel), Bt.contiguous(), bias, None, scale)
    else:
        s = x @ A.to(x.dtype).t()  # (M, R)
        h, up = _weighed(s, gate, task, kernel, into=None if keeps_s else s), fold(Bt, None, scale).to(x.dtype)
        y = torch.mm(h, up) if bias is None else torch.addmm(bias, h, up)
    return y.addmm_(x, weight.t()), s if keeps_s else s.new_empty(0)


def _forward_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    A: Tensor,
    Bt: Tensor,
    gate: Tensor | None,
    scale: float,
    offsets: list[int],
    keeps_s: bool,
) -> tuple[Tensor, Tensor]:
    s = x.new_empty((x.shape[0], A.shape[0]) if keeps_s else (0,))
    return x.new_empty(x.shape[0], weight.shape[0]), s


def _backward_impl(
    dy: Tensor,
    x: Tensor | None,
    s: Tensor | None,
    weight: Tensor,
    A: Tensor,
    Bt: Tensor,
    gate: Tensor | None,
    scale: float,
    offsets: list[int],
    frozen: int,
    wants_x: bool,
    wants_a: bool,
    wants_b: bool,
    wants_gate: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of ``x``, ``A``, ``Bt`` and ``gate``; what is not asked for is empty."""
    kernel = bool(dy.numel()) and uses_kernel("stacked_lora", dy, A.shape[0])
    dy = dy.contiguous() if kernel else dy
    task = _task_of_rank(tuple(offsets), dy.device)
    dx, da, db, dgate = dy.new_empty(0), A.new_empty(0), Bt.new_empty(0), dy.new_empty(0)
    if wants_b:
        assert s is not None
        db = torch.zeros_like(Bt)
        db[frozen:] = outer(_weighed(s, gate, task, kernel)[:, frozen:], dy, kernel).mul_(scale)
    if wants_x or wants_a or wants_gate:
        dh = _inner(dy, fold(Bt, None, scale), kernel)  # (M, R)
        if wants_gate:
            assert s is not None
            assert gate is not None
            dgate = _gate_gradient(dh, s, gate, task, kernel)
        ds = _weighed(dh, gate, task, kernel)
        if wants_a:
            assert x is not None
            da = torch.zeros_like(A)
            da[frozen:] = outer(ds[:, frozen:], x, kernel)
        if wants_x:
            dx = spread(ds, A, kernel).addmm_(dy, weight)
    return dx, da, db, dgate


def _backward_fake(
    dy: Tensor,
    x: Tensor | None,
    s: Tensor | None,
    weight: Tensor,
    A: Tensor,
    Bt: Tensor,
    gate: Tensor | None,
    scale: float,
    offsets: list[int],
    frozen: int,
    wants_x: bool,
    wants_a: bool,
    wants_b: bool,
    wants_gate: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dx = dy.new_empty(dy.shape[0], weight.shape[1]) if wants_x else dy.new_empty(0)
    da = torch.zeros_like(A) if wants_a else A.new_empty(0)
    db = torch.zeros_like(Bt) if wants_b else Bt.new_empty(0)
    return dx, da, db, dy.new_empty(gate.shape if wants_gate and gate is not None else 0)


def _weighed(s: Tensor, gate: Tensor | None, task: Tensor, kernel: bool, into: Tensor | None = None) -> Tensor:
    """Return ``s (M, R)`` times each rank's gate; ``M / G`` rows in turn share a row of ``gate (G, T)``."""
    if gate is None:
        return s
    if kernel:
        from clgym.kernels import stacked_lora as gating

        return gating.weigh(s, gate.contiguous(), task)
    per_rank = gate.to(s.dtype).index_select(1, task)  # (G, R)
    shape = len(gate), len(s) // max(len(gate), 1), len(task)
    out = None if into is None else into.view(shape)
    return torch.mul(s.view(shape), per_rank[:, None], out=out).view(s.shape)


def _gate_gradient(dh: Tensor, s: Tensor, gate: Tensor, task: Tensor, kernel: bool) -> Tensor:
    """Return the gate's gradient ``(G, T)``: ``dh * s``, summed over the rows and ranks that a gate serves."""
    if kernel and len(gate) > 1:
        from clgym.kernels import stacked_lora as gating

        per_rank = gating.weigh_backward(dh, s.contiguous(), len(gate))  # (G, R)
    else:
        per_rank = (dh * s).view(len(gate), len(s) // max(len(gate), 1), len(task)).sum(1)
    # A product with zeros and ones, as adding at indices is done in any order on CUDA.
    member = torch.eye(gate.shape[1], dtype=per_rank.dtype, device=gate.device)[task]  # (R, T)
    return (per_rank @ member).to(dh.dtype)


def _inner(dy: Tensor, B: Tensor, kernel: bool) -> Tensor:
    if kernel:
        from clgym.kernels import lora_linear as thin

        return thin.shrink(dy, B.contiguous())
    return torch.mm(dy, B.to(dy.dtype).t())


@lru_cache(maxsize=1024)
def _task_of_rank(offsets: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the task of each rank, int32 ``(R,)``."""
    sizes = [b - a for a, b in pairwise(offsets)]
    with torch.inference_mode(False):
        return torch.arange(len(sizes), dtype=torch.int32).repeat_interleave(torch.tensor(sizes)).to(device)


_forward: Any = register(
    "stacked_lora(Tensor x, Tensor weight, Tensor? bias, Tensor A, Tensor Bt, Tensor? gate, float scale, "
    "int[] offsets, bool keeps_s) -> (Tensor, Tensor)",
    _forward_impl,
    _forward_fake,
)
_backward: Any = register(
    "stacked_lora_backward(Tensor dy, Tensor? x, Tensor? s, Tensor weight, Tensor A, Tensor Bt, Tensor? gate, "
    "float scale, int[] offsets, int frozen, bool wants_x, bool wants_a, bool wants_b, bool wants_gate) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _backward_impl,
    _backward_fake,
)
