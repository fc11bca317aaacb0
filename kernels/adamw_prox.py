"""AdamW and a soft threshold in one pass over a flat fp32 buffer; the group threshold in one launch.

:func:`adamw` is ``torch.optim.AdamW`` with bias corrections in fp64, then ``sign(w) max(|w| - kappa, 0)`` on
``[start, stop)``. The count of steps is read on the device, so that nothing waits for it. :func:`group_threshold`
scales each group by ``max(0, 1 - kappa / |w_g|)``; a group's squares are summed in a fixed order, so results repeat.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

_jit: Callable[[Callable[..., None]], Any] = triton.jit


@_jit
def _adamw_kernel(
    w: tl.tensor,
    grad: tl.tensor,
    exp_avg: tl.tensor,
    exp_avg_sq: tl.tensor,
    step: tl.tensor,
    n: tl.tensor,
    start: tl.tensor,
    stop: tl.tensor,
    lr: tl.tensor,
    kept1: tl.tensor,
    new1: tl.tensor,
    kept2: tl.tensor,
    new2: tl.tensor,
    log_beta1: tl.constexpr,
    log_beta2: tl.constexpr,
    eps: tl.tensor,
    decay: tl.tensor,
    kappa: tl.tensor,
    block: tl.constexpr,
) -> None:
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = at < n
    g = tl.load(grad + at, mask=inside, other=0.0)
    m = tl.load(exp_avg + at, mask=inside, other=0.0) * kept1 + g * new1
    v = tl.load(exp_avg_sq + at, mask=inside, other=0.0) * kept2 + g * g * new2
    taken = tl.load(step).to(tl.float64)
    bias1 = (1.0 - tl.exp(taken * log_beta1)).to(tl.float32)
    root2 = tl.sqrt(1.0 - tl.exp(taken * log_beta2)).to(tl.float32)
    new = tl.load(w + at, mask=inside, other=0.0) * decay
    new -= lr / bias1 * (m / (tl.sqrt(v) / root2 + eps))
    shrunk = tl.where(new > kappa, new - kappa, tl.where(new < -kappa, new + kappa, 0.0))
    shrinks = (at >= start) & (at < stop) & (kappa > 0.0)
    tl.store(w + at, tl.where(shrinks, shrunk, new), mask=inside)
    tl.store(exp_avg + at, m, mask=inside)
    tl.store(exp_avg_sq + at, v, mask=inside)


@_jit
def _group_kernel(w: tl.tensor, order: tl.tensor, offsets: tl.tensor, kappa: tl.tensor, block: tl.constexpr) -> None:
    group = tl.program_id(0)
    first = tl.load(offsets + group)
    last = tl.load(offsets + group + 1)
    total = tl.zeros((block,), tl.float32)
    for begin in range(first, last, block):
        place = begin + tl.arange(0, block)
        at = tl.load(order + place, mask=place < last, other=0)
        value = tl.load(w + at, mask=place < last, other=0.0).to(tl.float32)
        total += value * value
    norm = tl.sqrt(tl.sum(total, axis=0))
    factor = tl.where(norm > kappa, 1.0 - kappa / norm, 0.0)
    for begin in range(first, last, block):
        place = begin + tl.arange(0, block)
        at = tl.load(order + place, mask=place < last, other=0)
        value = tl.load(w + at, mask=place < last, other=0.0).to(tl.float32)
        tl.store(w + at, (value * factor).to(w.dtype.element_ty), mask=place < last)


def adamw(
    w: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    kappa: float,
    start: int,
    stop: int,
) -> None:
    """Take a step in place; ``step`` is counted up first."""
    step.add_(1)
    n, block = w.numel(), 1024
    _adamw_kernel[(triton.cdiv(n, block),)](
        *(w, grad, exp_avg, exp_avg_sq, step, n, start, stop, lr),
        *(beta1, 1 - beta1, beta2, 1 - beta2, math.log(beta1), math.log(beta2)),
        *(eps, 1 - lr * weight_decay, kappa),
        **{"block": block, "num_warps": 4, "num_stages": 1},
    )


def group_threshold(w: Tensor, order: Tensor, offsets: Tensor, kappa: float) -> None:
    """Shrink each group in place."""
    groups = offsets.numel() - 1
    if groups:
        _group_kernel[(groups,)](w, order, offsets, kappa, block=256, num_warps=4, num_stages=1)
