"""Frozen weights of four bits: the sixteen quantiles of a normal distribution, and a scale per block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from clgym.backend import choose, facts, register
from clgym.errors import SettingError
from clgym.lowrank import computing

BLOCK = 64
# The values of QLoRA (arXiv:2305.14314, appendix E).
CODE = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


def nf4_quantize(weight: Tensor, block: int = BLOCK) -> tuple[Tensor, Tensor]:
    """Return a weight in four bits: codes, two to a byte, and the largest magnitude of each block.

    ``W ~ CODE[code] * absmax``, with the nearest code (QLoRA, arXiv:2305.14314, section 3). Codes and their
    order are those of the ``bitsandbytes`` package.

    Args:
        weight: ``(out, in)``, floating; blocks run over it row by row.
        block: Numbers to a block, even.

    Returns:
        uint8 ``(out * in / 2,)``, the first code of a pair in the upper half; and fp32 ``(out * in / block,)``.

    Raises:
        SettingError: The weight does not divide into blocks.

    Example:
        >>> packed, absmax = nf4_quantize(torch.tensor([[2.0, -2.0], [0.0, 0.7]]), block=2)
        >>> [f"{byte:02x}" for byte in packed.tolist()], absmax.tolist()
        (['f0', '7f'], [2.0, 0.699999988079071])
    """
    if block < 2 or block % 2 or weight.numel() % block:
        raise SettingError(
            f"Expected a weight that divides into blocks of an even size; got {tuple(weight.shape)} and {block}. "
            "Choose another block, or leave this layer as it is."
        )
    blocks = weight.detach().float().reshape(-1, block)
    absmax = blocks.abs().amax(1)
    code = torch.tensor(CODE, device=weight.device)
    scaled = blocks / absmax.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    codes = torch.bucketize(scaled, (code[1:] + code[:-1]) / 2).to(torch.uint8).view(-1)
    return codes[0::2] << 4 | codes[1::2], absmax


def nf4_dequantize(packed: Tensor, absmax: Tensor, block: int = BLOCK, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the flat weight ``(2 * len(packed),)`` of :func:`nf4_quantize`.

    >>> nf4_dequantize(torch.tensor([0xF0, 0x7F], dtype=torch.uint8), torch.tensor([2.0, 0.5]), block=2)
    tensor([ 2.0000, -2.0000,  0.0000,  0.5000])
    """
    with torch.no_grad():
        weight: Tensor = _dequantize(packed, absmax, block, dtype)
        return weight


def nf4_linear(x: Tensor, packed: Tensor, absmax: Tensor, bias: Tensor | None = None, *, block: int = BLOCK) -> Tensor:
    """Apply a frozen linear layer of four bits: dequantise, then multiply; the gradient goes to ``x`` alone.

    The weight is dequantised again in the backward pass, and never kept.

    Args:
        x: ``(..., in)``.
        packed: See :func:`nf4_quantize`.
        absmax: See :func:`nf4_quantize`.
        bias: Frozen, ``(out,)``.
        block: See :func:`nf4_quantize`.

    Returns:
        ``(..., out)``.

    Raises:
        SettingError: ``packed`` holds no whole number of rows, or another number of blocks than ``absmax``.

    Example:
        >>> packed, absmax = nf4_quantize(torch.tensor([[2.0, -2.0], [0.0, 1.0]]), block=2)
        >>> nf4_linear(torch.tensor([[1.0, 1.0], [1.0, 0.0]]), packed, absmax, block=2).tolist()
        [[0.0, 1.0], [2.0, 0.0]]
    """
    if 2 * len(packed) % x.shape[-1] or 2 * len(packed) != block * len(absmax):
        raise SettingError(
            f"Expected rows of {x.shape[-1]} codes in blocks of {block}; got {2 * len(packed)} codes and "
            f"{len(absmax)} blocks. Pass what nf4_quantize returned, with its block."
        )
    with computing(x) as dtype:
        y: Tensor = _Linear.apply(x.to(dtype), packed, absmax, None if bias is None else bias.to(dtype), block)
    return y


class _Linear(torch.autograd.Function):
    """The closed form of :func:`nf4_linear`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, absmax: Tensor, bias: Tensor | None, block: int) -> Tensor:
        """Dequantise and multiply."""
        ctx.save_for_backward(packed, absmax)
        ctx.block, ctx.width = block, x.shape[-1]
        return F.linear(x, _dequantize(packed, absmax, block, x.dtype).view(-1, x.shape[-1]), bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Dequantise and multiply the other way."""
        packed, absmax = ctx.saved_tensors
        weight = _dequantize(packed, absmax, ctx.block, dy.dtype).view(-1, ctx.width)
        return dy @ weight, None, None, None, None


def _dequantize_impl(packed: Tensor, absmax: Tensor, block: int, dtype: torch.dtype) -> Tensor:
    path = choose("nf4_linear", packed, dtype=dtype).path if packed.numel() else "torch"
    if path == "bitsandbytes":
        from bitsandbytes.functional import QuantState, dequantize_4bit

        shape = torch.Size([2 * len(packed)])
        state = QuantState(absmax=absmax, shape=shape, blocksize=block, quant_type="nf4", dtype=dtype)
        weight: Tensor = dequantize_4bit(packed.view(-1, 1), state)
        return weight.view(-1)
    if path != "torch":
        from clgym.kernels import nf4_linear as kernel

        return kernel.dequantize(packed.contiguous(), absmax, block, dtype, _code(packed.device))
    codes = torch.stack([packed >> 4, packed & 0xF], dim=1).view(-1, block)
    values = _code(packed.device).to(dtype).index_select(0, codes.view(-1).int()).view(codes.shape)
    return values.mul_(absmax.to(dtype)[:, None]).view(-1)


def _dequantize_fake(packed: Tensor, absmax: Tensor, block: int, dtype: torch.dtype) -> Tensor:
    return packed.new_empty(2 * packed.shape[0], dtype=dtype)


def _code(device: torch.device) -> Tensor:
    return torch.tensor(CODE, device=device)


_dequantize: Any = register(
    "nf4_dequantize(Tensor packed, Tensor absmax, int block, ScalarType dtype) -> Tensor",
    _dequantize_impl,
    _dequantize_fake,
)


@facts("nf4_linear")
def _facts(x: Tensor, packed: Tensor, *_: Any, **__: Any) -> tuple[Tensor, int, torch.dtype]:
    with computing(x) as dtype:
        return packed, 0, dtype
