"""Merging a low-rank branch into its weight: summed in fp32, rounded without bias where the weight is bf16."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clgym.backend import facts, register, uses_kernel
from clgym.errors import SettingError
from clgym.philox import words


def merge_stochastic(
    weight: Tensor,
    A: Tensor,
    Bt: Tensor,
    gate: Tensor | None = None,
    scale: float = 1.0,
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return ``W + scale * B diag(g) A``, for which the branch is no longer needed; no gradient is recorded.

    The sum is taken in fp32 (fp64 for fp64 weights). In bf16 it is rounded up or down at random, with the
    probabilities that keep its expectation: of an update a thousandth of the weight's size, rounding to the
    nearest keeps about half, and all rounding errors point the same way. The dice are Philox of seed and
    place, the same on every device.

    Args:
        weight: ``(out, in)``, bf16, fp32 or fp64.
        A: ``(R, in)``.
        Bt: B transposed, ``(R, out)``.
        gate: ``(R,)``; none means all ones.
        scale: Factor of the branch.
        seed: Of the dice; give each layer and each merge its own. In fp32 and fp64 none are thrown.
        dtype: Of the result; by default that of ``weight``.

    Raises:
        SettingError: The result is to be of a dtype that is not rounded here.

    Example:
        >>> merge_stochastic(torch.zeros(2, 2), torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 3.0]]))
        tensor([[1., 2.],
                [3., 6.]])
    """
    dtype = weight.dtype if dtype is None else dtype
    if dtype not in (torch.bfloat16, torch.float32, torch.float64):
        raise SettingError(
            f"Expected a weight in bfloat16, float32 or float64; got {dtype}. Cast the model before adapting it."
        )
    with torch.no_grad():
        merged: Tensor = _merge(weight, A, Bt, gate, scale, seed, dtype)
    return merged


@dataclass(frozen=True, slots=True)
class MergeError:
    """What a merge lost.

    Attributes:
        relative: Norm of what is missing or too much, over the norm of the branch; 0 is best.
        gain: Projection of the realised update on the branch; 1 is best, and 0 means that nothing arrived.
    """

    relative: float
    gain: float


def merge_error(
    before: Tensor, after: Tensor, A: Tensor, Bt: Tensor, gate: Tensor | None = None, scale: float = 1.0
) -> MergeError:
    """Compare a merged weight with the branch that went in, in fp64.

    A branch of zeros loses nothing.

    Args:
        before: The weight, ``(out, in)``.
        after: The merged weight.
        A: See :func:`merge_stochastic`.
        Bt: See :func:`merge_stochastic`.
        gate: See :func:`merge_stochastic`.
        scale: See :func:`merge_stochastic`.

    Example:
        >>> W, A, Bt = torch.full((1, 1), 256.0), torch.ones(1, 1), torch.ones(1, 1)
        >>> merge_error(W, W, A, Bt), merge_error(W, W + 1, A, Bt)
        (MergeError(relative=1.0, gain=0.0), MergeError(relative=0.0, gain=1.0))
    """
    with torch.no_grad():
        wanted = torch.mm(fold(Bt.double(), gate, scale).t(), A.double())
        got = after.double() - before.double()
        size = wanted.square().sum()
        if not size:
            return MergeError(float(got.norm() > 0), 1.0)
        return MergeError(float((got - wanted).norm() / size.sqrt()), float((got * wanted).sum() / size))


def fold(Bt: Tensor, gate: Tensor | None, scale: float) -> Tensor:
    """Return ``scale * diag(gate) Bt``, ``(R, out)``; a branch needs no other factor then.

    >>> fold(torch.ones(2, 1), torch.tensor([1.0, 2.0]), scale=0.5).tolist()
    [[0.5], [1.0]]
    """
    if gate is not None:
        return (gate * scale if scale != 1.0 else gate).to(Bt.dtype)[:, None] * Bt
    return Bt if scale == 1.0 else Bt * scale


def _merge_impl(
    weight: Tensor, A: Tensor, Bt: Tensor, gate: Tensor | None, scale: float, seed: int, dtype: torch.dtype
) -> Tensor:
    if dtype == torch.bfloat16 and uses_kernel("merge_stochastic", weight, A.shape[0], dtype):
        from clgym.kernels import merge_stochastic as kernel

        return kernel.merge(weight, A, Bt, gate, scale, seed)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    up = fold(Bt.to(exact), None if gate is None else gate.to(exact), scale)
    total = torch.addmm(weight.to(exact), up.t(), A.to(exact))
    return total if dtype == exact else _dither(total, seed)


def _dither(total: Tensor, seed: int) -> Tensor:
    """Round fp32 to bf16: a random number below one unit in the last place is added, the rest cut off."""
    dice = words(total.shape[0], total.shape[1], seed, total.device).bitwise_and_(0xFFFF).to(torch.int32)
    rounded = total.view(torch.int32).add(dice).bitwise_and_(-0x10000).view(torch.float32)
    return torch.where(total.isfinite(), rounded, total).to(torch.bfloat16)


def _merge_fake(
    weight: Tensor, A: Tensor, Bt: Tensor, gate: Tensor | None, scale: float, seed: int, dtype: torch.dtype
) -> Tensor:
    return weight.new_empty(weight.shape, dtype=dtype)


_merge: Any = register(
    "merge_stochastic(Tensor weight, Tensor A, Tensor Bt, Tensor? gate, float scale, SymInt seed, ScalarType dtype)"
    " -> Tensor",
    _merge_impl,
    _merge_fake,
)


@facts("merge_stochastic")
def _facts(
    weight: Tensor, A: Tensor, Bt: Tensor, *_: Any, dtype: torch.dtype | None = None, **__: Any
) -> tuple[Tensor, int, torch.dtype]:
    return weight, A.shape[0], weight.dtype if dtype is None else dtype
