"""Gates over ranks, one row of responses in registers from the first norm to the product.

``p (M, R)`` with ``R`` up to a few hundred. The ``k`` largest of a row are found by bisecting on the bits of the k-th
largest, 32 counts for any ``k``; of equal ones the lower indices are kept. The two gates and their gradients are
those of ``clgym.ops.rank_gate`` and ``router_gate``. bf16, fp16 and fp32; computed and kept (``a``) in fp32.
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
def _at_least(keys: tl.tensor, bound: tl.tensor) -> tl.tensor:
    return tl.sum((keys >= bound[:, None]).to(tl.int32), axis=1)


@_device
def _largest(values: tl.tensor, inside: tl.tensor, topk: tl.tensor) -> tl.tensor:
    """Return where the ``topk`` largest of each row are."""
    bits = (values + 0.0).to(tl.int32, bitcast=True)  # -0.0 + 0.0 is 0.0, which it equals
    keys = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # integers in the order of the floats
    keys = tl.where(inside, keys, -0x7FFFFFFF)  # below that of minus infinity
    zero = tl.sum(keys * 0, axis=1)
    least = tl.where(_at_least(keys, zero) >= topk, zero, (zero - 1) ^ 0x7FFFFFFF)
    for step in range(31):
        higher = least | (1 << (30 - step))
        least = tl.where(_at_least(keys, higher) >= topk, higher, least)
    above = keys > least[:, None]
    tied = (keys == least[:, None]).to(tl.int32)
    room = topk - tl.sum(above.to(tl.int32), axis=1)
    return inside & (above | ((tied == 1) & (tl.cumsum(tied, axis=1) <= room[:, None])))


@_device
def _norm(p: tl.tensor) -> tl.tensor:
    return tl.maximum(tl.sqrt(tl.sum(p * p, axis=1)), 1e-12)


@_jit
def _self_forward_kernel(
    p: tl.tensor,
    h: tl.tensor,
    a: tl.tensor,
    m: tl.tensor,
    r: tl.tensor,
    topk: tl.tensor,
    temperature: tl.tensor,
    delta: tl.tensor,
    block_m: tl.constexpr,
    block_r: tl.constexpr,
    has_delta: tl.constexpr,
) -> None:
    rows = tl.program_id(0) * block_m + tl.arange(0, block_m)
    ranks = tl.arange(0, block_r)
    inside = (rows < m)[:, None] & (ranks < r)[None, :]
    at = rows.to(tl.int64)[:, None] * r + ranks[None, :]
    response = tl.load(p + at, mask=inside, other=0.0).to(tl.float32)
    norm = _norm(response)
    most = tl.max(tl.where(inside, response, float("-inf")), axis=1)
    most = tl.where(rows < m, most, 0.0)
    keep = _largest(response, inside, topk)
    gate = tl.where(keep, tl.exp((response - most[:, None]) / (norm * temperature)[:, None]), 0.0)
    total = tl.sum(gate, axis=1)
    gate = gate / tl.where(rows < m, total, 1.0)[:, None]
    tl.store(a + at, gate, mask=inside)
    if has_delta:
        gate = tl.where(response >= (norm * delta)[:, None], gate, 0.0)
    tl.store(h + at, (gate * response).to(h.dtype.element_ty), mask=inside)


@_jit
def _self_backward_kernel(
    dh: tl.tensor,
    p: tl.tensor,
    a: tl.tensor,
    dp: tl.tensor,
    m: tl.tensor,
    r: tl.tensor,
    temperature: tl.tensor,
    delta: tl.tensor,
    block_m: tl.constexpr,
    block_r: tl.constexpr,
    has_delta: tl.constexpr,
) -> None:
    rows = tl.program_id(0) * block_m + tl.arange(0, block_m)
    ranks = tl.arange(0, block_r)
    inside = (rows < m)[:, None] & (ranks < r)[None, :]
    at = rows.to(tl.int64)[:, None] * r + ranks[None, :]
    response = tl.load(p + at, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(dh + at, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(a + at, mask=inside, other=0.0)
    norm = _norm(response)
    if has_delta:
        grad = tl.where(response >= (norm * delta)[:, None], grad, 0.0)
    of_gate = grad * response
    of_score = (of_gate - tl.sum(gate * of_gate, axis=1)[:, None]) * gate / temperature
    along = tl.sum(response * of_score, axis=1) / (norm * norm)
    out = (of_score - response * along[:, None]) / norm[:, None] + gate * grad
    tl.store(dp + at, out.to(dp.dtype.element_ty), mask=inside)


@_device
def _sigmoid(logits: tl.tensor) -> tl.tensor:
    return 1.0 / (1.0 + tl.exp(-logits))


@_jit
def _router_forward_kernel(
    p: tl.tensor,
    logits: tl.tensor,
    bias: tl.tensor,
    h: tl.tensor,
    a: tl.tensor,
    m: tl.tensor,
    r: tl.tensor,
    topk: tl.tensor,
    block_m: tl.constexpr,
    block_r: tl.constexpr,
) -> None:
    rows = tl.program_id(0) * block_m + tl.arange(0, block_m)
    ranks = tl.arange(0, block_r)
    inside = (rows < m)[:, None] & (ranks < r)[None, :]
    at = rows.to(tl.int64)[:, None] * r + ranks[None, :]
    z = _sigmoid(tl.load(logits + at, mask=inside, other=0.0).to(tl.float32))
    z += tl.load(bias + ranks, mask=ranks < r, other=0.0).to(tl.float32)[None, :]
    z = tl.where(_largest(z, inside, topk), z, 0.0)
    total = tl.where(rows < m, tl.sum(z, axis=1), 1.0)
    gate = z * (topk / total)[:, None]
    response = tl.load(p + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(a + at, gate, mask=inside)
    tl.store(h + at, (gate * response).to(h.dtype.element_ty), mask=inside)


@_jit
def _router_backward_kernel(
    dh: tl.tensor,
    p: tl.tensor,
    logits: tl.tensor,
    bias: tl.tensor,
    a: tl.tensor,
    dp: tl.tensor,
    dlogits: tl.tensor,
    m: tl.tensor,
    r: tl.tensor,
    block_m: tl.constexpr,
    block_r: tl.constexpr,
) -> None:
    rows = tl.program_id(0) * block_m + tl.arange(0, block_m)
    ranks = tl.arange(0, block_r)
    inside = (rows < m)[:, None] & (ranks < r)[None, :]
    at = rows.to(tl.int64)[:, None] * r + ranks[None, :]
    grad = tl.load(dh + at, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(a + at, mask=inside, other=0.0)
    sigma = _sigmoid(tl.load(logits + at, mask=inside, other=0.0).to(tl.float32))
    shift = tl.load(bias + ranks, mask=ranks < r, other=0.0).to(tl.float32)
    active = gate != 0.0
    total = tl.sum(tl.where(active, sigma + shift[None, :], 0.0), axis=1)
    total = tl.where(rows < m, total, 1.0)
    of_gate = grad * tl.load(p + at, mask=inside, other=0.0).to(tl.float32)
    of_z = of_gate * tl.sum(gate, axis=1)[:, None] - tl.sum(of_gate * gate, axis=1)[:, None]
    of_z = tl.where(active, of_z / total[:, None], 0.0)
    tl.store(dp + at, (gate * grad).to(dp.dtype.element_ty), mask=inside)
    tl.store(dlogits + at, (of_z * sigma * (1.0 - sigma)).to(dlogits.dtype.element_ty), mask=inside)


def self_forward(p: Tensor, topk: int, temperature: float, delta: float | None) -> tuple[Tensor, Tensor]:
    """Return ``h`` like ``p``, and the gate ``a`` before ``delta`` in fp32."""
    h, a = torch.empty_like(p), torch.empty_like(p, dtype=torch.float32)
    grid, blocks = _tiling(p)
    _self_forward_kernel[grid](
        *(p, h, a, *p.shape, topk, temperature, delta or 0.0), has_delta=delta is not None, **blocks
    )
    return h, a


def self_backward(dh: Tensor, p: Tensor, a: Tensor, temperature: float, delta: float | None) -> Tensor:
    """Return the gradient of ``p``."""
    dp = torch.empty_like(p)
    grid, blocks = _tiling(p)
    _self_backward_kernel[grid](
        *(dh, p, a, dp, *p.shape, temperature, delta or 0.0), has_delta=delta is not None, **blocks
    )
    return dp


def router_forward(p: Tensor, logits: Tensor, bias: Tensor, topk: int) -> tuple[Tensor, Tensor]:
    """Return ``h`` like ``p``, and the gate ``a`` in fp32."""
    h, a = torch.empty_like(p), torch.empty_like(p, dtype=torch.float32)
    grid, blocks = _tiling(p)
    _router_forward_kernel[grid](p, logits, bias, h, a, *p.shape, topk, **blocks)
    return h, a


def router_backward(dh: Tensor, p: Tensor, logits: Tensor, bias: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of ``p`` and ``logits``."""
    dp, dlogits = torch.empty_like(p), torch.empty_like(logits)
    grid, blocks = _tiling(p)
    _router_backward_kernel[grid](dh, p, logits, bias, a, dp, dlogits, *p.shape, **blocks)
    return dp, dlogits


def _tiling(p: Tensor) -> tuple[tuple[int], dict[str, int]]:
    """Return grid and tile: about 2048 responses for four warps, so that the keys stay in registers."""
    block_r = max(16, triton.next_power_of_2(p.shape[1]))
    block_m = max(1, 2048 // block_r)
    return (triton.cdiv(p.shape[0], block_m),), {
        "block_m": block_m,
        "block_r": block_r,
        "num_warps": 4,
        "num_stages": 1,
    }
