"""Dequantising weights of four bits into a buffer; the product with it stays with cuBLAS.

``packed (n / 2,)`` holds two codes a byte, the first in the upper half; ``absmax (n / block,)`` a scale per block of
numbers; ``table (16,)`` the values, fp32. The result ``(n,)`` is ``table[code] * absmax``, rounded once to its dtype.
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
def _dequantize_kernel(
    packed: tl.tensor,
    absmax: tl.tensor,
    table: tl.tensor,
    out: tl.tensor,
    pairs: tl.tensor,
    block: tl.tensor,
    block_pairs: tl.constexpr,
) -> None:
    first = tl.program_id(0).to(tl.int64) * block_pairs
    at = first + tl.arange(0, block_pairs)
    inside = at < pairs
    byte = tl.load(packed + at, mask=inside, other=0).to(tl.int32)
    scale = tl.load(absmax + at * 2 // block, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(table + (byte >> 4)) * scale
    low = tl.load(table + (byte & 0xF)) * scale
    both = 2 * first + tl.arange(0, 2 * block_pairs)
    tl.store(out + both, tl.interleave(high, low).to(out.dtype.element_ty), mask=both < 2 * pairs)


def dequantize(packed: Tensor, absmax: Tensor, block: int, dtype: torch.dtype, table: Tensor) -> Tensor:
    """Return the flat weight, ``(2 * len(packed),)``."""
    pairs, block_pairs = packed.numel(), 1024
    out = torch.empty(2 * pairs, dtype=dtype, device=packed.device)
    _dequantize_kernel[(triton.cdiv(pairs, block_pairs),)](
        *(packed, absmax, table, out, pairs, block), block_pairs=block_pairs, num_warps=4, num_stages=1
    )
    return out
