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
    weight: tl.tensor,
    a: tl.tensor,
    b: tl.tensor,
    gate: tl.tensor,
    out: tl.tensor,
    n: tl.tensor,
    k: tl.tensor,
    r: tl.tensor,
    scale: tl.tensor,
    seed: tl.tensor,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    has_gate: tl.constexpr,
    halves: tl.constexpr,
) -> None:
    rows = tl.program_id(0) * block_n + tl.arange(0, block_n)
    part = tl.program_id(1) * block_k + tl.arange(0, block_k)
    quarter = tl.cdiv(k, 4)
    words = tl.randint4x(seed, rows[:, None] * quarter + part[None, :], 7)
    for j in tl.static_range(4):
        columns = tl.where(part < quarter, j * quarter + part, k)
        total = tl.zeros((block_n, block_k), tl.float32)
        for rank in range(0, r):  # by outer products: in fp32 tensor cores would not be exact
            up = tl.load(b + rank * n + rows, mask=rows < n, other=0.0).to(tl.float32) * scale
            if has_gate:
                up *= tl.load(gate + rank).to(tl.float32)
            low = tl.load(a + rank * k + columns, mask=columns < k, other=0.0).to(tl.float32)
            total += up[:, None] * low[None, :]
        at = rows.to(tl.int64)[:, None] * k + columns[None, :]
        inside = (rows < n)[:, None] & (columns < k)[None, :]
        if halves:
            total += (tl.load(weight + at, mask=inside, other=0).to(tl.int32) << 16).to(tl.float32, bitcast=True)
        else:
            total += tl.load(weight + at, mask=inside, other=0.0)
        bits = total.to(tl.int32, bitcast=True)
        finite = (bits & 0x7F800000) != 0x7F800000
        bits = tl.where(finite, bits + (words[j] & 0xFFFF).to(tl.int32), bits)
        tl.store(out + at, (bits >> 16).to(tl.int16), mask=inside)


def merge(weight: Tensor, A: Tensor, Bt: Tensor, gate: Tensor | None, scale: float, seed: int) -> Tensor:
    """Return the merged weight in bf16, ``(N, K)``; see ``clgym.ops.merge_stochastic``."""
    (n, k), r = weight.shape, A.shape[0]
    out = torch.empty(n, k, dtype=torch.bfloat16, device=weight.device)
    halves = weight.dtype == torch.bfloat16
    block_n, block_k = 32, 64
    _merge_kernel[(triton.cdiv(n, block_n), triton.cdiv(triton.cdiv(k, 4), block_k))](
        *(weight.view(torch.int16) if halves else weight, A, Bt, Bt if gate is None else gate, out.view(torch.int16)),
        *(n, k, r, scale, seed),
        **{"block_n": block_n, "block_k": block_k, "has_gate": gate is not None, "halves": halves},
        **{"num_warps": 4, "num_stages": 1},
    )
    return out
