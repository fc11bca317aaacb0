"""An adapter per sample, taken from a pool by index, without gathering the adapters.

``x (B, L, K)``, ``A (U, R, K)``, ``B (U, R, N)`` (transposed), ``index (B,)``:

* :func:`shrink` ``s_b = x_b A[u_b]^T``, ``(B, L, R)``;
* :func:`expand` ``y_b = bias + scale * s_b B[u_b]``, ``(B, L, N)``;
* :func:`outer` ``sum over the samples b of u of s_b^T x_b``, ``(U, R, K)`` in fp32: the gradient of ``A`` and ``B``.

:func:`outer` walks through the samples of each adapter in their order, so results repeat. bf16, fp16 and fp32; sums are
fp32; fp32 operands are multiplied in full, or as tf32 where torch is allowed to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_jit: Callable[[Callable[..., None]], Any] = triton.jit
_device: Callable[[Callable[..., Any]], Any] = triton.jit  # called by kernels


@_device
def _load_rows(
    base: tl.tensor, rows: tl.tensor, columns: tl.tensor, n_rows: tl.tensor, n_columns: tl.tensor
) -> tl.tensor:
    inside = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
    return tl.load(base + rows.to(tl.int64)[:, None] * n_columns + columns[None, :], mask=inside, other=0.0)


@_jit
def _shrink_kernel(
    x: tl.tensor,
    a: tl.tensor,
    index: tl.tensor,
    s: tl.tensor,
    tokens: tl.tensor,
    k: tl.tensor,
    r: tl.tensor,
    factor: tl.tensor,
    block_l: tl.constexpr,
    block_k: tl.constexpr,
    block_r: tl.constexpr,
    precision: tl.constexpr,
) -> None:
    sample = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * block_l + tl.arange(0, block_l)
    ranks = tl.arange(0, block_r)
    a += tl.load(index + sample) * r * k
    x += sample * tokens * k
    total = tl.zeros((block_l, block_r), tl.float32)
    for start in range(0, k, block_k):
        columns = start + tl.arange(0, block_k)
        tile = _load_rows(x, rows, columns, tokens, k)
        down = _load_rows(a, ranks, columns, r, k).to(tile.dtype)
        total += tl.dot(tile, tl.trans(down), input_precision=precision)
    inside = (rows < tokens)[:, None] & (ranks < r)[None, :]
    out = s + sample * tokens * r + rows[:, None] * r + ranks[None, :]
    tl.store(out, (total * factor).to(s.dtype.element_ty), mask=inside)


@_jit
def _expand_kernel(
    s: tl.tensor,
    b: tl.tensor,
    index: tl.tensor,
    bias: tl.tensor,
    y: tl.tensor,
    tokens: tl.tensor,
    n: tl.tensor,
    r: tl.tensor,
    factor: tl.tensor,
    block_l: tl.constexpr,
    block_n: tl.constexpr,
    block_r: tl.constexpr,
    has_bias: tl.constexpr,
    precision: tl.constexpr,
) -> None:
    sample = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * block_l + tl.arange(0, block_l)
    columns = tl.program_id(2) * block_n + tl.arange(0, block_n)
    ranks = tl.arange(0, block_r)
    b += tl.load(index + sample) * r * n
    h = _load_rows(s + sample * tokens * r, rows, ranks, tokens, r)
    tile = tl.dot(h, _load_rows(b, ranks, columns, r, n).to(h.dtype), input_precision=precision) * factor
    if has_bias:
        tile += tl.load(bias + columns, mask=columns < n, other=0.0).to(tl.float32)[None, :]
    inside = (rows < tokens)[:, None] & (columns < n)[None, :]
    out = y + sample * tokens * n + rows.to(tl.int64)[:, None] * n + columns[None, :]
    tl.store(out, tile.to(y.dtype.element_ty), mask=inside)


@_jit
def _outer_kernel(
    s: tl.tensor,
    x: tl.tensor,
    order: tl.tensor,
    bounds: tl.tensor,
    out: tl.tensor,
    tokens: tl.tensor,
    k: tl.tensor,
    r: tl.tensor,
    factor: tl.tensor,
    block_l: tl.constexpr,
    block_k: tl.constexpr,
    block_r: tl.constexpr,
    precision: tl.constexpr,
) -> None:
    adapter = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * block_k + tl.arange(0, block_k)
    ranks = tl.arange(0, block_r)
    first = tl.load(bounds + adapter)
    last = tl.load(bounds + adapter + 1)
    total = tl.zeros((block_r, block_k), tl.float32)
    for place in range(first, last):
        sample = tl.load(order + place).to(tl.int64)
        for start in range(0, tokens, block_l):
            rows = start + tl.arange(0, block_l)
            tile = _load_rows(x + sample * tokens * k, rows, columns, tokens, k)
            h = _load_rows(s + sample * tokens * r, rows, ranks, tokens, r)
            total += tl.dot(tl.trans(h), tile, input_precision=precision)
    inside = (ranks < r)[:, None] & (columns < k)[None, :]
    tl.store(out + adapter * r * k + ranks[:, None] * k + columns[None, :], total * factor, mask=inside)


def shrink(x: Tensor, A: Tensor, index: Tensor, scale: float = 1.0) -> Tensor:
    """Return ``scale * x_b A[u_b]^T``, ``(B, L, R)`` in the dtype of ``x``."""
    (samples, tokens, k), r = x.shape, A.shape[1]
    s = x.new_empty(samples, tokens, r)
    block_l, block_r = _tile(tokens), _block_of(r)
    _shrink_kernel[(samples, triton.cdiv(tokens, block_l))](
        *(x, A, index, s, tokens, k, r, scale),
        **{"block_l": block_l, "block_k": 32 if x.element_size() > 2 else 64, "block_r": block_r},
        **{"precision": _precision(), "num_warps": 8 if block_r > 128 else 4, "num_stages": 2},
    )
    return s


def expand(s: Tensor, B: Tensor, index: Tensor, bias: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """Return ``bias + scale * s_b B[u_b]``, ``(B, L, N)`` in the dtype of ``s``."""
    (samples, tokens, r), n = s.shape, B.shape[2]
    y = s.new_empty(samples, tokens, n)
    block_l, block_r = _tile(tokens), _block_of(r)
    block_n = 128 if block_r <= 64 else 64
    _expand_kernel[(samples, triton.cdiv(tokens, block_l), triton.cdiv(n, block_n))](
        *(s, B, index, B if bias is None else bias, y, tokens, n, r, scale),
        **{"block_l": block_l, "block_n": block_n, "block_r": block_r, "has_bias": bias is not None},
        **{"precision": _precision(), "num_warps": 4, "num_stages": 1},
    )
    return y


def outer(s: Tensor, x: Tensor, index: Tensor, adapters: int, scale: float = 1.0) -> Tensor:
    """Return ``scale * sum of s_b^T x_b`` over the samples of each adapter, ``(U, R, K)`` in fp32."""
    (_, tokens, k), r = x.shape, s.shape[2]
    out = torch.empty(adapters, r, k, dtype=torch.float32, device=x.device)
    order = index.argsort(stable=True)
    bounds = torch.searchsorted(index[order], torch.arange(adapters + 1, device=index.device))
    block_k, block_r = 64 if _block_of(r) <= 64 else 32, _block_of(r)
    _outer_kernel[(adapters, triton.cdiv(k, block_k))](
        *(s, x, order, bounds, out, tokens, k, r, scale),
        **{"block_l": _tile(tokens), "block_k": block_k, "block_r": block_r},
        **{"precision": _precision(), "num_warps": 8 if block_r > 128 else 4, "num_stages": 2},
    )
    return out


def _tile(tokens: int) -> int:
    return min(64, max(16, int(triton.next_power_of_2(tokens))))


def _block_of(r: int) -> int:
    """Return the ranks of a tile: tensor cores take no fewer than 16."""
    return max(16, int(triton.next_power_of_2(r)))


def _precision() -> str:
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"
