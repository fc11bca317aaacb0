"""Projection out of a subspace in one launch: ``G - U (U^T G)``, or ``G - (G U) U^T`` by exchanging the strides.

A program has a block of columns to itself: it sums ``U^T G`` over all rows in registers, then walks through the rows
again and subtracts. ``G`` is read twice, the second time from cache where it fits, and written once. ``G (B, m, n)``
and ``U (B, m, k)`` row-major, any of bf16, fp16 and fp32; all products are full fp32, since what is left along ``U``
is the error.
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
def _project_kernel(
    g: tl.tensor,
    u: tl.tensor,
    out: tl.tensor,
    m: tl.tensor,
    n: tl.tensor,
    k: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
) -> None:
    matrix = tl.program_id(1).to(tl.int64)
    columns = tl.program_id(0) * block_n + tl.arange(0, block_n)
    directions = tl.arange(0, block_k)
    g += matrix * m * n
    u += matrix * m * k
    out += matrix * m * n
    along = tl.zeros((block_k, block_n), tl.float32)
    for start in range(0, m, block_m):
        rows = start + tl.arange(0, block_m)
        basis = tl.load(
            u + rows[:, None] * k + directions[None, :],
            mask=(rows < m)[:, None] & (directions < k)[None, :],
            other=0.0,
        ).to(tl.float32)
        at = rows.to(tl.int64)[:, None] * row_stride + columns.to(tl.int64)[None, :] * column_stride
        tile = tl.load(g + at, mask=(rows < m)[:, None] & (columns < n)[None, :], other=0.0).to(tl.float32)
        along += tl.dot(tl.trans(basis), tile, input_precision="ieee")
    for start in range(0, m, block_m):
        rows = start + tl.arange(0, block_m)
        basis = tl.load(
            u + rows[:, None] * k + directions[None, :],
            mask=(rows < m)[:, None] & (directions < k)[None, :],
            other=0.0,
        ).to(tl.float32)
        at = rows.to(tl.int64)[:, None] * row_stride + columns.to(tl.int64)[None, :] * column_stride
        inside = (rows < m)[:, None] & (columns < n)[None, :]
        tile = tl.load(g + at, mask=inside, other=0.0).to(tl.float32)
        tile -= tl.dot(basis, along, input_precision="ieee")
        tl.store(out + at, tile.to(out.dtype.element_ty), mask=inside)


def project(G: Tensor, U: Tensor, left: bool) -> Tensor:
    """Return the projection, a new tensor like ``G``; both contiguous."""
    (m, n), k = G.shape[-2:] if left else (G.shape[-1], G.shape[-2]), U.shape[-1]
    strides = (G.shape[-1], 1) if left else (1, G.shape[-1])
    out = torch.empty_like(G)
    block_k = max(16, triton.next_power_of_2(k))
    block_m, block_n = 32, 32 if block_k > 64 else 64
    _project_kernel[(triton.cdiv(n, block_n), G.shape[:-2].numel())](
        *(G, U, out, m, n, k, *strides),
        **{"block_m": block_m, "block_n": block_n, "block_k": block_k, "num_warps": 4, "num_stages": 2},
    )
    return out
