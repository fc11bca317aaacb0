"""Gates of stacked adapters: each rank's response times the factor of its task, and the gate's gradient.

``s (M, R)`` holds the responses of all ranks, ``gate (G, T)`` one factor per task, ``task (R,)`` the task of each
rank; ``M / G`` rows in turn share a row of the gate (1 for a gate per token, the length of a sample for one per
sample). :func:`weigh` returns ``h[m, r] = s[m, r] * gate[m // (M / G), task[r]]``; :func:`weigh_backward` returns
``sum of dh * s`` over the rows that share a gate, ``(G, R)`` in fp32, in a fixed order. The thin products around them
are those of ``lora_linear``. bf16, fp16 and fp32, multiplied in fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_jit: Callable[[Callable[..., None]], Any] = triton.jit


@_jit
def _weigh_kernel(
    s: tl.tensor,
    gate: tl.tensor,
    task: tl.tensor,
    h: tl.tensor,
    m: tl.tensor,
    r: tl.tensor,
    t: tl.tensor,
    tokens: tl.tensor,
    block_m: tl.constexpr,
    block_r: tl.constexpr,
) -> None:
    rows = tl.program_id(0) * block_m + tl.arange(0, block_m)
    ranks = tl.arange(0, block_r)
    inside = (rows < m)[:, None] & (ranks < r)[None, :]
    at = rows.to(tl.int64)[:, None] * r + ranks[None, :]
    of = tl.load(task + ranks, mask=ranks < r, other=0)
    factor = tl.load(gate + (rows // tokens).to(tl.int64)[:, None] * t + of[None, :], mask=inside, other=0.0)
    product = tl.load(s + at, mask=inside, other=0.0).to(tl.float32) * factor.to(tl.float32)
    tl.store(h + at, product.to(h.dtype.element_ty), mask=inside)


@_jit
def _weigh_backward_kernel(
    dh: tl.tensor,
    s: tl.tensor,
    out: tl.tensor,
    groups: tl.tensor,
    r: tl.tensor,
    tokens: tl.tensor,
    block_g: tl.constexpr,
    block_t: tl.constexpr,
    block_r: tl.constexpr,
) -> None:
    shared = tl.program_id(0) * block_g + tl.arange(0, block_g)
    ranks = tl.arange(0, block_r)
    total = tl.zeros((block_g, block_r), tl.float32)
    for start in range(0, tokens, block_t):
        token = start + tl.arange(0, block_t)
        inside = (shared < groups)[:, None, None] & (token < tokens)[None, :, None] & (ranks < r)[None, None, :]
        rows = shared.to(tl.int64)[:, None] * tokens + token[None, :]
        at = rows[:, :, None] * r + ranks[None, None, :]
        product = tl.load(dh + at, mask=inside, other=0.0).to(tl.float32)
        product = product * tl.load(s + at, mask=inside, other=0.0).to(tl.float32)
        total += tl.sum(product, axis=1)
    inside = (shared < groups)[:, None] & (ranks < r)[None, :]
    tl.store(out + shared.to(tl.int64)[:, None] * r + ranks[None, :], total, mask=inside)


def weigh(s: Tensor, gate: Tensor, task: Tensor) -> Tensor:
    """Return ``s`` times the gates, ``(M, R)``."""
    (m, r), (groups, t) = s.shape, gate.shape
    h = torch.empty_like(s)
    block_r = max(16, triton.next_power_of_2(r))
    block_m = max(1, 4096 // block_r)
    _weigh_kernel[(triton.cdiv(m, block_m),)](
        *(s, gate, task, h, m, r, t, m // groups), block_m=block_m, block_r=block_r, num_warps=4, num_stages=1
    )
    return h


def weigh_backward(dh: Tensor, s: Tensor, groups: int) -> Tensor:
    """Return ``dh * s`` summed over the rows that share a gate, ``(G, R)`` in fp32."""
    m, r = s.shape
    tokens = m // groups
    out = torch.empty(groups, r, dtype=torch.float32, device=s.device)
    block_r = max(16, triton.next_power_of_2(r))
    block_t = min(triton.next_power_of_2(tokens), max(1, 4096 // block_r))
    block_g = max(1, 4096 // (block_r * block_t))
    _weigh_backward_kernel[(triton.cdiv(groups, block_g),)](
        *(dh, s, out, groups, r, tokens),
        **{"block_g": block_g, "block_t": block_t, "block_r": block_r, "num_warps": 4, "num_stages": 1},
    )
    return out
