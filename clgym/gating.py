"""Gates over ranks: which rank-1 experts answer an input, and how loudly."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from clgym.backend import facts, register, uses_kernel
from clgym.errors import SettingError

_LEAST_NORM = 1e-12  # as in F.normalize


def rank_gate(p: Tensor, topk: int, temperature: float, delta: float | None = None) -> Tensor:
    """Return ``a * p``: each rank-1 expert's response, times how far it is active by its own response.

    The scores are ``s = p / |p|_2`` over the experts. ``a`` is the softmax of ``s / temperature`` among the
    ``topk`` largest, signed; of equal scores the one of lower index comes first (MoRA, arXiv:2506.21035). The
    gradient goes through the scores too.

    Args:
        p: Responses ``A x``, ``(..., R)``.
        topk: Most experts active at once, at least 1.
        temperature: Of the softmax, above 0; lower is sparser.
        delta: At evaluation, experts of a lower score are silenced and the others stay as they are.

    Returns:
        ``(..., R)``, of the type of ``p``; the gate itself is computed in fp32 or fp64.

    Raises:
        SettingError: ``topk`` or ``temperature`` is out of range.

    Example:
        >>> rank_gate(torch.tensor([3.0, -4.0, 0.0]), topk=2, temperature=1.0).round(decimals=4)
        tensor([1.9370, -0.0000, 0.0000])
    """
    check_gate(topk, temperature)
    h: Tensor = _SelfGate.apply(p, min(topk, p.shape[-1]), temperature, delta)
    return h


def activations(p: Tensor, topk: int, temperature: float, delta: float | None = None) -> Tensor:
    """Return ``a`` of :func:`rank_gate`, ``(..., R)``, outside the graph; without ``delta`` each row sums to 1.

    >>> activations(torch.tensor([3.0, -4.0, 0.0]), topk=2, temperature=1.0).round(decimals=4)
    tensor([0.6457, 0.0000, 0.3543])
    >>> activations(torch.tensor([3.0, -4.0, 0.0]), topk=2, temperature=1.0, delta=0.5).round(decimals=4)
    tensor([0.6457, 0.0000, 0.0000])
    """
    with torch.no_grad():
        rows = p.reshape(-1, p.shape[-1])
        a: Tensor = self_gate(rows, min(topk, p.shape[-1]), temperature, None)[1]
        if delta is not None:
            a = a * (rows >= _norm(rows.to(a.dtype)) * delta)
        return a.view(p.shape)


def router_gate(p: Tensor, logits: Tensor, bias: Tensor, topk: int) -> Tensor:
    """Return ``a * p``: each rank's response, times what a router gives it.

    ``z = sigmoid(logits) + bias``; among the ``topk`` largest ``a_i = topk * z_i / sum z``, elsewhere 0; of
    equal ones the one of lower index comes first (SMoRA, arXiv:2501.15103, with the bias in the value too, as in
    its released code). The branch is to be scaled by ``alpha / topk``.

    Args:
        p: Responses ``A x``, ``(..., R)``.
        logits: Of the router, ``(..., R)``.
        bias: Balances the load, ``(R,)``; it has no gradient and is changed between steps, never here.
        topk: Ranks active at once, at least 1.

    Returns:
        ``(..., R)``, of the type of ``p``; the gate itself is computed in fp32 or fp64.

    Raises:
        SettingError: ``topk`` is out of range.

    Example:
        >>> router_gate(torch.ones(3), torch.tensor([0.0, 9.0, 9.0]), torch.zeros(3), topk=2)
        tensor([0., 1., 1.])
    """
    if topk < 1:
        raise SettingError(f"Expected topk of 1 or more; got {topk}. The paper has 8 of 64 ranks.")
    h: Tensor = _RouterGate.apply(p, logits, bias, min(topk, p.shape[-1]))
    return h


def check_gate(topk: int, temperature: float) -> None:
    """Raise :class:`SettingError` unless both are in range.

    >>> check_gate(16, 0.01)
    """
    if topk < 1 or temperature <= 0:
        raise SettingError(
            f"Expected topk of 1 or more and temperature above 0; got {topk} and {temperature}. MoRA has 16 and 0.01."
        )


def largest(scores: Tensor, k: int) -> Tensor:
    """Return where the ``k`` largest of each row are, bool like ``scores (M, R)``; of equal ones the first.

    >>> largest(torch.tensor([[1.0, 2.0, 1.0, 1.0]]), 2).tolist()
    [[True, True, False, False]]
    """
    ranks = scores.shape[-1]
    if k >= ranks:
        return torch.ones_like(scores, dtype=torch.bool)
    if scores.is_cuda:
        least = scores.topk(k, dim=-1).values[:, -1:]
        keep = scores >= least
        count = int(keep.count_nonzero())
    else:  # numpy's selection is four times as fast as topk
        values = scores.numpy()
        bound = np.partition(values, ranks - k, axis=-1)[:, ranks - k, None]
        kept = values >= bound
        least, keep, count = torch.from_numpy(bound), torch.from_numpy(kept), int(np.count_nonzero(kept))
    if count > k * len(scores):
        tied = scores == least
        room = k - (scores > least).sum(-1, keepdim=True)
        keep &= ~tied | (tied.cumsum(-1) <= room)
    return keep


class _SelfGate(torch.autograd.Function):
    """The closed form of :func:`rank_gate`; it keeps ``p`` and ``a``."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, topk: int, temperature: float, delta: float | None) -> Tensor:
        """Compute in rows."""
        rows = p.reshape(-1, p.shape[-1])
        h: Tensor
        h, a = self_gate(rows, topk, temperature, delta)
        ctx.save_for_backward(rows, a)
        ctx.constants = (temperature, delta)
        return h.view(p.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor | None, ...]:
        """Differentiate response, softmax and normalisation."""
        rows, a = ctx.saved_tensors
        dp = self_gate_backward(dh.reshape(rows.shape), rows, a, *ctx.constants)
        return dp.view(dh.shape), None, None, None


class _RouterGate(torch.autograd.Function):
    """The closed form of :func:`router_gate`."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, logits: Tensor, bias: Tensor, topk: int) -> Tensor:
        """Compute in rows."""
        rows, routed = p.reshape(-1, p.shape[-1]), logits.reshape(-1, p.shape[-1])
        h: Tensor
        h, a = _router_forward(rows, routed, bias, topk)
        ctx.save_for_backward(rows, routed, bias, a)
        return h.view(p.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor | None, ...]:
        """Differentiate response and router; the choice of ranks has no gradient."""
        dp, dlogits = _router_backward(dh.reshape(ctx.saved_tensors[0].shape), *ctx.saved_tensors)
        return dp.view(dh.shape), dlogits.view(dh.shape), None, None


def _self_forward_impl(p: Tensor, topk: int, temperature: float, delta: float | None) -> tuple[Tensor, Tensor]:
    """Return ``h`` and the gate ``a`` before ``delta``."""
    if p.numel() and uses_kernel("rank_gate", p, p.shape[1]):
        from clgym.kernels import rank_gate as kernel

        return kernel.self_forward(p.contiguous(), topk, temperature, delta)
    exact = p.to(_exact(p))
    norm = _norm(exact)
    # Dividing by the norm keeps the order, so the responses themselves say who is among the largest.
    scores = exact / (norm * temperature)
    if topk < p.shape[1]:
        scores = torch.where(largest(exact, topk), scores, -torch.inf)
    a = scores.softmax(-1)
    h = a * exact
    if delta is not None:
        h.mul_(exact >= norm * delta)
    return h.to(p.dtype), a


def few_gate(p: Tensor, topk: int, temperature: float, delta: float | None) -> tuple[Tensor, Tensor]:
    """Do what :func:`rank_gate` does for rows ``p (M, R)``, and return the active responses alone.

    Returns:
        Where they are in ``p`` seen as flat, ``(M, topk)``, in order; and ``h`` there, ``(M, topk)``.
    """
    exact = p.to(_exact(p))
    at = _flat(largest(exact, topk))
    if len(at) < topk * len(p):  # NaN is larger than nothing; a row with one is NaN whoever is active
        at = _flat(largest(exact.nan_to_num(), topk))
    few, norm = exact.view(-1).index_select(0, at).view(-1, topk), _norm(exact)
    h = (few / (norm * temperature)).softmax(-1).mul_(few)
    if delta is not None:
        h.mul_(few >= norm * delta)
    return at.view(h.shape), h.to(p.dtype)


def _flat(mask: Tensor) -> Tensor:
    return torch.from_numpy(np.flatnonzero(mask.numpy()))


def _self_backward_impl(dh: Tensor, p: Tensor, a: Tensor, temperature: float, delta: float | None) -> Tensor:
    if p.numel() and uses_kernel("rank_gate", p, p.shape[1]):
        from clgym.kernels import rank_gate as kernel

        return kernel.self_backward(dh.contiguous(), p.contiguous(), a, temperature, delta)
    exact, grad = p.to(a.dtype), dh.to(a.dtype)
    norm = _norm(exact)
    if delta is not None:
        grad = grad * (exact >= norm * delta)
    of_score = grad * exact
    of_score.sub_((a * of_score).sum(-1, keepdim=True)).mul_(a)
    along = (exact * of_score).sum(-1, keepdim=True) / norm.square()
    of_score.addcmul_(exact, along, value=-1).div_(norm * temperature)
    return of_score.addcmul_(a, grad).to(p.dtype)


def _norm(p: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(p, dim=-1, keepdim=True)
    return norm.clamp_min_(_LEAST_NORM)


def _router_forward_impl(p: Tensor, logits: Tensor, bias: Tensor, topk: int) -> tuple[Tensor, Tensor]:
    """Return ``h`` and the gate ``a``."""
    if p.numel() and uses_kernel("router_gate", p, p.shape[1]):
        from clgym.kernels import rank_gate as kernel

        return kernel.router_forward(p.contiguous(), logits.contiguous(), bias, topk)
    z = logits.to(_exact(p)).sigmoid().add_(bias)
    z.mul_(largest(z, topk))
    a = z.mul_(topk / z.sum(-1, keepdim=True))
    return (a * p).to(p.dtype), a


def _router_backward_impl(dh: Tensor, p: Tensor, logits: Tensor, bias: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    if p.numel() and uses_kernel("router_gate", p, p.shape[1]):
        from clgym.kernels import rank_gate as kernel

        return kernel.router_backward(dh.contiguous(), p.contiguous(), logits.contiguous(), bias, a)
    active = a != 0
    sigma = logits.to(a.dtype).sigmoid()
    topk = a.sum(-1, keepdim=True)
    total = ((sigma + bias) * active).sum(-1, keepdim=True)
    of_gate = dh.to(a.dtype) * p
    of_z = (of_gate * topk - (of_gate * a).sum(-1, keepdim=True)) / total * active
    dlogits = of_z * sigma * (1 - sigma)
    return (a * dh).to(p.dtype), dlogits.to(logits.dtype)


def _exact(p: Tensor) -> torch.dtype:
    return torch.float64 if p.dtype == torch.float64 else torch.float32


def _self_forward_fake(p: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(p), torch.empty_like(p, dtype=_exact(p))


def _router_backward_fake(dh: Tensor, p: Tensor, logits: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(p), torch.empty_like(logits)


self_gate: Any = register(
    "rank_gate(Tensor p, int topk, float temperature, float? delta) -> (Tensor, Tensor)",
    _self_forward_impl,
    _self_forward_fake,
)
self_gate_backward: Any = register(
    "rank_gate_backward(Tensor dh, Tensor p, Tensor a, float temperature, float? delta) -> Tensor",
    _self_backward_impl,
    lambda dh, p, *_: torch.empty_like(p),
)
_router_forward: Any = register(
    "router_gate(Tensor p, Tensor logits, Tensor bias, int topk) -> (Tensor, Tensor)",
    _router_forward_impl,
    _self_forward_fake,
)
_router_backward: Any = register(
    "router_gate_backward(Tensor dh, Tensor p, Tensor logits, Tensor bias, Tensor a) -> (Tensor, Tensor)",
    _router_backward_impl,
    _router_backward_fake,
)


@facts("rank_gate")
@facts("router_gate")
def _facts(p: Tensor, *_: Any, **__: Any) -> tuple[Tensor, int, torch.dtype]:
    return p, p.shape[-1], p.dtype
