"""Merging into bf16: ``W' = round(W + scale * B diag(g) A)``, rounded at random without bias, in one pass over ``W``.

``W (N, K)`` is bf16 or fp32; the sum is fp32. bf16 is read and written as 16-bit integers, the upper halves of fp32,
so that the rounding is the integer sum below and no conversion of the compiler's. The dice are Philox4x32-7 of seed
and place, four columns of a row to one counter, as in ``clgym.philox``: bit for bit those of the plain op. What is
not finite is cut, not rounded.
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
def _merge_kernel(
    weight: Any,
    a: Any,
    b: Any,
    gate: Any,
    out: Any,
    n: Any,
    k: Any,
    r: Any,
    scale: Any,
    seed: Any,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    block_r: tl.constexpr,
    has_gate: tl.constexpr,
    halves: tl.constexpr,
) -> None:
    rows = tl.program_id(0) * block_n + tl.arange(0, block_n)
    part = tl.program_id(1) * block_k + tl.arange(0, block_k)
    ranks = tl.arange(0, block_r)
    up = tl.load(b + ranks[:, None] * n + rows[None, :], mask=(ranks < r)[:, None] & (rows < n)[None, :], other=0.0)
    up = up.to(tl.float32) * scale
    if has_gate:
        up = up * tl.load(gate + ranks, mask=ranks < r, other=0.0).to(tl.float32)[:, None]
    quarter = tl.cdiv(k, 4)
    words = tl.randint4x(seed, rows[:, None] * quarter + part[None, :], 7)
    for j in tl.static_range(4):
        columns = tl.where(part < quarter, j * quarter + part, k)
        low = tl.load(
            a + ranks[:, None] * k + columns[None, :], mask=(ranks < r)[:, None] & (columns < k)[None, :], other=0.0
        )
        at = rows.to(tl.int64)[:, None] * k + columns[None, :]
        inside = (rows < n)[:, None] & (columns < k)[None, :]
        if halves:
            base = (tl.load(weight + at, mask=inside, other=0).to(tl.int32) << 16).to(tl.float32, bitcast=True)
        else:
            base = tl.load(weight + at, mask=inside, other=0.0)
        total = base + tl.dot(tl.trans(up), low.to(tl.float32), input_precision="ieee")
        bits = total.to(tl.int32, bitcast=True)
        finite = (bits & 0x7F800000) != 0x7F800000
        bits = tl.where(finite, bits + (words[j] & 0xFFFF).to(tl.int32), bits)
        tl.store(out + at, (bits >> 16).to(tl.int16), mask=inside)


def merge(weight: Tensor, A: Tensor, Bt: Tensor, gate: Tensor | None, scale: float, seed: int) -> Tensor:
    """Return the merged weight in bf16, ``(N, K)``; see ``clgym.ops.merge_stochastic``."""
    (n, k), r = weight.shape, A.shape[0]
    out = torch.empty(n, k, dtype=torch.bfloat16, device=weight.device)
    halves = weight.dtype == torch.bfloat16
    block_r = max(16, triton.next_power_of_2(r))
    block_n, block_k = 64, 32 if block_r > 64 else 64
    _merge_kernel[(triton.cdiv(n, block_n), triton.cdiv(triton.cdiv(k, 4), block_k))](
        *(weight.view(torch.int16) if halves else weight, A, Bt, Bt if gate is None else gate, out.view(torch.int16)),
        *(n, k, r, scale, seed),
        **{"block_n": block_n, "block_k": block_k, "block_r": block_r, "has_gate": gate is not None, "halves": halves},
        **{"num_warps": 4, "num_stages": 1},
    )
    return out
