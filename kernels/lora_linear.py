"""The thin products of a low-rank branch: each reads or writes one wide tensor once.

With ``x (M, K)``, ``A (R, K)``, ``B (R, N)`` (transposed, as everywhere) and ``dy (M, N)``, all row-major:

* :func:`shrink` ``s = (m * x) A^T / (1 - p)``, ``(M, R)``;
* :func:`expand` ``y = bias + scale * (s * g) B``, ``(M, N)``, or with a mask ``m * (s A) / (1 - p)``;
* :func:`backward_up` ``ds = scale * g * (dy B^T)`` and ``D = scale * s^T dy``, up to 32 ranks from one pass;
* :func:`backward_down` ``dA = ds^T (m * x) / (1 - p)``.

The two wide products stay with cuBLAS, which adds to what is written here (``addmm_``). bf16, fp16 and fp32; sums
are fp32, and so are the weight gradients. fp32 operands are multiplied in full, or as tf32 where torch is
allowed to. Rows are reduced in a fixed order, so results repeat; ``atomic=True`` adds in any order instead. The
mask ``m`` is never stored: it is Philox4x32-7 of the seed and the place, four columns of a row to one counter,
as in ``clgym.philox``. Against float64 the error is that of rounding inputs and outputs to their dtypes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# With more ranks, partial sums of all blocks of rows are more bytes than a second pass over dy.
_ONE_PASS = 32

_jit: Callable[[Callable[..., None]], Any] = triton.jit
_device: Callable[[Callable[..., Any]], Any] = triton.jit  # called by kernels


@_device
def _kept(tile: tl.tensor, word: tl.tensor, threshold: tl.tensor) -> tl.tensor:
    """Zero where the upper 31 bits of a random word are below the threshold."""
    return tl.where((word >> 1).to(tl.int32) >= threshold, tile, 0.0).to(tile.dtype)


@_device
def _load_rows(
    base: tl.tensor, rows: tl.tensor, columns: tl.tensor, n_rows: tl.tensor, n_columns: tl.tensor, stride: tl.tensor
) -> tl.tensor:
    inside = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
    return tl.load(base + rows.to(tl.int64)[:, None] * stride + columns[None, :], mask=inside, other=0.0)


@_jit
def _shrink_kernel(
    x: tl.tensor,
    a: tl.tensor,
    s: tl.tensor,
    m: tl.tensor,
    k: tl.tensor,
    r: tl.tensor,
    factor: tl.tensor,
    seed: tl.tensor,
    threshold: tl.tensor,
    block_m: tl.constexpr,
    block_k: tl.constexpr,
    block_r: tl.constexpr,
    drops: tl.constexpr,
    precision: tl.constexpr,
) -> None:
    rows = tl.program_id(0) * block_m + tl.arange(0, block_m)
    ranks = tl.arange(0, block_r)
    total = tl.zeros((block_m, block_r), tl.float32)
    if drops:
        quarter = tl.cdiv(k, 4)
        for start in range(0, quarter, block_k):
            part = start + tl.arange(0, block_k)
            counter = rows[:, None] * quarter + part[None, :]
            words = tl.randint4x(seed, counter, 7)
            for j in tl.static_range(4):
                # The last column group may begin before the row's end and stop after the next one has begun.
                columns = tl.where(part < quarter, j * quarter + part, k)
                tile = _kept(_load_rows(x, rows, columns, m, k, k), words[j], threshold)
                down = _load_rows(a, ranks, columns, r, k, k).to(tile.dtype)
                total += tl.dot(tile, tl.trans(down), input_precision=precision)
    else:
        for start in range(0, k, block_k):
            columns = start + tl.arange(0, block_k)
            tile = _load_rows(x, rows, columns, m, k, k)
            down = _load_rows(a, ranks, columns, r, k, k).to(tile.dtype)
            total += tl.dot(tile, tl.trans(down), input_precision=precision)
    inside = (rows < m)[:, None] & (ranks < r)[None, :]
    out = s + rows.to(tl.int64)[:, None] * r + ranks[None, :]
    tl.store(out, (total * factor).to(s.dtype.element_ty), mask=inside)


@_jit
def _expand_kernel(
    s: tl.tensor,
    b: tl.tensor,
    bias: tl.tensor,
    gate: tl.tensor,
    y: tl.tensor,
    m: tl.tensor,
    n: tl.tensor,
    r: tl.tensor,
    factor: tl.tensor,
    seed: tl.tensor,
    threshold: tl.tensor,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_r: tl.constexpr,
    has_bias: tl.constexpr,
    has_gate: tl.constexpr,
    drops: tl.constexpr,
    precision: tl.constexpr,
) -> None:
    rows = tl.program_id(0) * block_m + tl.arange(0, block_m)
    ranks = tl.arange(0, block_r)
    part = tl.program_id(1) * block_n + tl.arange(0, block_n)
    h = _load_rows(s, rows, ranks, m, r, r)
    if has_gate:
        g = tl.load(gate + ranks, mask=ranks < r, other=0.0).to(tl.float32)
        h = (h.to(tl.float32) * g[None, :]).to(s.dtype.element_ty)
    out = y + rows.to(tl.int64)[:, None] * n
    if drops:
        quarter = tl.cdiv(n, 4)
        words = tl.randint4x(seed, rows[:, None] * quarter + part[None, :], 7)
        for j in tl.static_range(4):
            columns = tl.where(part < quarter, j * quarter + part, n)
            up = _load_rows(b, ranks, columns, r, n, n).to(h.dtype)
            tile = _kept(tl.dot(h, up, input_precision=precision) * factor, words[j], threshold)
            inside = (rows < m)[:, None] & (columns < n)[None, :]
            tl.store(out + columns[None, :], tile.to(y.dtype.element_ty), mask=inside)
    else:
        up = _load_rows(b, ranks, part, r, n, n).to(h.dtype)
        tile = tl.dot(h, up, input_precision=precision) * factor
        if has_bias:
            tile += tl.load(bias + part, mask=part < n, other=0.0).to(tl.float32)[None, :]
        inside = (rows < m)[:, None] & (part < n)[None, :]
        tl.store(out + part[None, :], tile.to(y.dtype.element_ty), mask=inside)


@_jit
def _backward_up_kernel(
    dy: tl.tensor,
    b: tl.tensor,
    s: tl.tensor,
    gate: tl.tensor,
    ds: tl.tensor,
    parts: tl.tensor,
    m: tl.tensor,
    n: tl.tensor,
    r: tl.tensor,
    scale: tl.tensor,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_r: tl.constexpr,
    has_gate: tl.constexpr,
    atomic: tl.constexpr,
    precision: tl.constexpr,
) -> None:
    program = tl.program_id(0)
    rows = program * block_m + tl.arange(0, block_m)
    ranks = tl.arange(0, block_r)
    h = _load_rows(s, rows, ranks, m, r, r)
    total = tl.zeros((block_m, block_r), tl.float32)
    for start in range(0, n, block_n):
        columns = start + tl.arange(0, block_n)
        tile = _load_rows(dy, rows, columns, m, n, n)
        up = _load_rows(b, ranks, columns, r, n, n).to(tile.dtype)
        total += tl.dot(tile, tl.trans(up), input_precision=precision)
        part = tl.dot(tl.trans(h), tile, input_precision=precision) * scale
        inside = (ranks < r)[:, None] & (columns < n)[None, :]
        at = ranks[:, None] * n + columns[None, :]
        if atomic:
            tl.atomic_add(parts + at, part, mask=inside, sem="relaxed")
        else:
            tl.store(parts + program.to(tl.int64) * r * n + at, part, mask=inside)
    total = total * scale
    if has_gate:
        total = total * tl.load(gate + ranks, mask=ranks < r, other=0.0).to(tl.float32)[None, :]
    inside = (rows < m)[:, None] & (ranks < r)[None, :]
    out = ds + rows.to(tl.int64)[:, None] * r + ranks[None, :]
    tl.store(out, total.to(ds.dtype.element_ty), mask=inside)


@_jit
def _backward_down_kernel(
    ds: tl.tensor,
    x: tl.tensor,
    parts: tl.tensor,
    m: tl.tensor,
    k: tl.tensor,
    r: tl.tensor,
    span: tl.tensor,
    factor: tl.tensor,
    seed: tl.tensor,
    threshold: tl.tensor,
    block_m: tl.constexpr,
    block_k: tl.constexpr,
    block_r: tl.constexpr,
    drops: tl.constexpr,
    precision: tl.constexpr,
) -> None:
    ranks = tl.arange(0, block_r)
    quarter = tl.cdiv(k, 4)
    # With a mask, a program has one quarter of the columns to itself, and draws the words of all four.
    j = tl.program_id(2)
    part = tl.program_id(0) * block_k + tl.arange(0, block_k)
    columns = tl.where(part < quarter, j * quarter + part, k) if drops else part
    first = tl.program_id(1) * span
    total = tl.zeros((block_r, block_k), tl.float32)
    for start in range(first, tl.minimum(first + span, m), block_m):
        rows = start + tl.arange(0, block_m)
        tile = _load_rows(x, rows, columns, m, k, k)
        if drops:
            w0, w1, w2, w3 = tl.randint4x(seed, rows[:, None] * quarter + part[None, :], 7)
            word = tl.where(j == 0, w0, tl.where(j == 1, w1, tl.where(j == 2, w2, w3)))
            tile = _kept(tile, word, threshold)
        g = _load_rows(ds, rows, ranks, m, r, r)
        total += tl.dot(tl.trans(g), tile, input_precision=precision)
    inside = (ranks < r)[:, None] & (columns < k)[None, :]
    out = parts + tl.program_id(1).to(tl.int64) * r * k + ranks[:, None] * k + columns[None, :]
    tl.store(out, total * factor, mask=inside)


def shrink(x: Tensor, A: Tensor, scale: float = 1.0, *, dropout: float = 0.0, seed: int = 0) -> Tensor:
    """Return ``scale * (m * x) A^T / (1 - p)``, ``(M, R)`` in the dtype of ``x``."""
    (m, k), r = x.shape, A.shape[0]
    s = x.new_empty(m, r)
    block_r, wide = _block_of(r), x.element_size() > 2
    threshold, factor = _thinning(dropout)
    block_m, block_k = 64, 32 if wide or threshold else 64
    _shrink_kernel[(triton.cdiv(m, block_m),)](
        *(x, A, s, m, k, r, scale * factor, seed, threshold),
        **{"block_m": block_m, "block_k": block_k, "block_r": block_r, "drops": threshold > 0},
        **{"precision": _precision(), "num_warps": 8 if block_r > 64 else 4, "num_stages": 2 if block_r > 128 else 3},
    )
    return s


def expand(
    s: Tensor,
    B: Tensor,
    bias: Tensor | None = None,
    gate: Tensor | None = None,
    scale: float = 1.0,
    *,
    dropout: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """Return ``bias + scale * (s * gate) B``, ``(M, N)`` in the dtype of ``s``; with dropout neither bias nor gate."""
    (m, r), n = s.shape, B.shape[1]
    y = s.new_empty(m, n)
    threshold, factor = _thinning(dropout)
    assert not threshold or bias is None
    block_r, drops = _block_of(r), threshold > 0
    block_m, block_n = 64, 32 if drops else 128 if block_r <= 64 else 64
    grid = (triton.cdiv(m, block_m), triton.cdiv(triton.cdiv(n, 4) if drops else n, block_n))
    _expand_kernel[grid](
        *(s, B, B if bias is None else bias, B if gate is None else gate, y, m, n, r, scale * factor, seed, threshold),
        **{"block_m": block_m, "block_n": block_n, "block_r": block_r, "drops": drops},
        **{"has_bias": bias is not None, "has_gate": gate is not None},
        **{"precision": _precision(), "num_warps": 4, "num_stages": 1},
    )
    return y


def backward_up(
    dy: Tensor, B: Tensor, s: Tensor, gate: Tensor | None = None, scale: float = 1.0, *, atomic: bool = False
) -> tuple[Tensor, Tensor]:
    """Return ``scale * gate * (dy B^T)``, ``(M, R)`` like ``dy``, and ``scale * s^T dy``, ``(R, N)`` in fp32."""
    (m, n), r = dy.shape, B.shape[0]
    if r > _ONE_PASS and not atomic:
        up = B if gate is None else gate.to(B.dtype)[:, None] * B
        return shrink(dy, up, scale), backward_down(s, dy, scale)
    block_r, wide = _block_of(r), dy.element_size() > 2
    block_m, block_n = (32, 32) if wide else (64 if block_r > 32 else 128, 64 if block_r <= 128 else 32)
    programs = triton.cdiv(m, block_m)
    ds = dy.new_empty(m, r)
    shape = (r, n) if atomic else (programs, r, n)
    parts = (torch.zeros if atomic else torch.empty)(shape, dtype=torch.float32, device=dy.device)
    _backward_up_kernel[(programs,)](
        *(dy, B, s, B if gate is None else gate, ds, parts, m, n, r, scale),
        **{"block_m": block_m, "block_n": block_n, "block_r": block_r, "has_gate": gate is not None},
        **{"atomic": atomic, "precision": _precision(), "num_warps": 8 if block_r > 16 else 4, "num_stages": 2},
    )
    return ds, parts if atomic else parts.sum(0)


def backward_down(ds: Tensor, x: Tensor, scale: float = 1.0, *, dropout: float = 0.0, seed: int = 0) -> Tensor:
    """Return ``scale * ds^T (m * x) / (1 - p)``, ``(R, K)`` in fp32."""
    (m, k), r = x.shape, ds.shape[1]
    threshold, factor = _thinning(dropout)
    block_r, wide, drops = _block_of(r), x.element_size() > 2, threshold > 0
    block_m, block_k = 32 if wide else 64, 32 if block_r > 64 or wide else 64
    splits = min(triton.cdiv(m, 512), 16)
    span = triton.cdiv(triton.cdiv(m, splits), block_m) * block_m
    splits = triton.cdiv(m, span)
    parts = torch.empty((splits, r, k), dtype=torch.float32, device=x.device)
    grid = (triton.cdiv(triton.cdiv(k, 4) if drops else k, block_k), splits, 4 if drops else 1)
    _backward_down_kernel[grid](
        *(ds, x, parts, m, k, r, span, scale * factor, seed, threshold),
        **{"block_m": block_m, "block_k": block_k, "block_r": block_r, "drops": drops},
        **{"precision": _precision(), "num_warps": 8 if block_r > 128 else 4, "num_stages": 2},
    )
    return parts.sum(0)


def _block_of(r: int) -> int:
    """Return the ranks of a tile: tensor cores take no fewer than 16."""
    return max(16, int(triton.next_power_of_2(r)))


def _thinning(dropout: float) -> tuple[int, float]:
    """Return the least 31-bit word that is kept, and what the rest is multiplied by."""
    threshold = round(dropout * 2**31)
    return threshold, 1.0 / (1.0 - threshold / 2**31)


def _precision() -> str:
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"
