"""AdamW and the proximal maps of sparse methods, on one flat buffer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.adamw import adamw

from clgym.backend import facts, register, uses_kernel
from clgym.errors import SettingError


def adamw_prox_(
    w: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    kappa: float = 0.0,
    start: int = 0,
    stop: int | None = None,
    groups: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Take a step of AdamW in place, then shrink: ``w <- prox_{kappa}(AdamW(w))``; return ``w``.

    AdamW (arXiv:1711.05101, algorithm 2) with bias correction, as ``torch.optim.AdamW`` has it; then the soft
    threshold of CoDyRA (arXiv:2412.01004) or the group threshold, on what is asked for. With ``kappa`` 0 it is
    AdamW. It is outside the graph.

    Args:
        w: Flat parameters ``(n,)``, changed.
        grad: ``(n,)``.
        exp_avg: First moment ``(n,)``, changed.
        exp_avg_sq: Second moment ``(n,)``, changed.
        step: Steps taken so far, a float32 scalar on the device of ``w``; counted up.
        lr: Learning rate.
        betas: Decay rates of the moments.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled weight decay.
        kappa: The threshold, at least 0; a schedule gives another at each step.
        start: First element that is thresholded one by one.
        stop: End of these; none means the end of ``w``.
        groups: What :func:`group_segments` returned: then whole groups shrink, and ``start`` and ``stop`` say
            nothing.

    Raises:
        SettingError: ``kappa`` is negative, or ``w`` or a moment has gaps.

    Example:
        >>> w, m, v, step = torch.tensor([1.0, 0.1]), torch.zeros(2), torch.zeros(2), torch.tensor(0.0)
        >>> adamw_prox_(w, torch.tensor([1.0, 1.0]), m, v, step, lr=0.05, kappa=0.1, start=1)
        tensor([0.9500, 0.0000])
    """
    if kappa < 0:
        raise SettingError(f"Expected kappa of 0 or more; got {kappa}. At 0 nothing shrinks.")
    stop = w.numel() if stop is None else stop
    each = kappa if groups is None else 0.0
    if not w.is_contiguous() or not exp_avg.is_contiguous() or not exp_avg_sq.is_contiguous():
        raise SettingError("Expected w and its moments contiguous; got a view with gaps. Flatten them first.")
    with torch.no_grad():
        _adamw(w, grad, exp_avg, exp_avg_sq, step, lr, *betas, eps, weight_decay, each, start, stop)
        if groups is not None and kappa:
            _group(w, *groups, kappa)
    return w


def soft_threshold(w: Tensor, kappa: float) -> Tensor:
    """Return the proximal map of ``kappa * |w|_1``: shrink towards zero, and zero what is small.

    ``T_k(w) = 1[|w| > k] (w - sign(w) k)``, the soft threshold of CoDyRA (arXiv:2412.01004).

    Args:
        w: Any shape, floating.
        kappa: The threshold, at least 0.

    Returns:
        A new tensor like ``w``.

    Raises:
        RuntimeError: ``kappa`` is negative (torch's own check).

    Example:
        >>> soft_threshold(torch.tensor([-3.0, 0.5, 1.0, 2.0]), kappa=1.0)
        tensor([-2.,  0.,  0.,  1.])
    """
    return F.softshrink(w, kappa)


def soft_threshold_(w: Tensor, kappa: float) -> Tensor:
    """Apply :func:`soft_threshold` in place, outside the graph, and return ``w``.

    Example:
        >>> soft_threshold_(torch.tensor([-3.0, 0.5]), kappa=1.0)
        tensor([-2.,  0.])
    """
    with torch.no_grad():
        return w.copy_(F.softshrink(w, kappa))


def double_soft_threshold_(w: Tensor, kappa: float) -> Tensor:
    """Apply the threshold of CoDyRA's released code in place, outside the graph, and return ``w``.

    Three masks in turn: subtract ``kappa`` where ``w > kappa``; add it where ``w < -kappa``; then zero
    ``|w| < kappa``. The third mask sees shrunk values, so everything up to ``2 * kappa`` dies; departs from
    the paper's rule (:func:`soft_threshold`) there, and leaves ``|w| = kappa`` as it is.

    Args:
        w: Any shape, floating.
        kappa: The threshold, at least 0.

    Example:
        >>> double_soft_threshold_(torch.tensor([-3.0, 0.5, 1.0, 1.5, 2.5]), kappa=1.0)
        tensor([-2.0000,  0.0000,  1.0000,  0.0000,  1.5000])
    """
    with torch.no_grad():
        w.copy_(torch.where(w > kappa, w - kappa, w))
        w.copy_(torch.where(w < -kappa, w + kappa, w))
        return w.masked_fill_(w.abs() < kappa, 0.0)


def group_threshold_(w: Tensor, groups: tuple[Tensor, Tensor], kappa: float) -> Tensor:
    """Apply the proximal map of ``kappa * sum_g |w_g|_2`` in place, outside the graph, and return ``w``.

    ``w_g <- max(0, 1 - kappa / |w_g|_2) w_g``: a group shrinks as a whole, or vanishes (Yuan & Lin 2006,
    doi:10.1111/j.1467-9868.2005.00532.x). GS-LoRA (arXiv:2403.11530) has the norm as a penalty instead.

    Args:
        w: ``(n,)``, floating.
        groups: What :func:`group_segments` returned.
        kappa: The threshold, at least 0.

    Raises:
        SettingError: ``kappa`` is negative.

    Example:
        >>> group_threshold_(torch.tensor([3.0, 0.1, 4.0, 9.0]), group_segments(torch.tensor([0, 1, 0, -1])), 2.5)
        tensor([1.5000, 0.0000, 2.0000, 9.0000])
    """
    if kappa < 0:
        raise SettingError(f"Expected kappa of 0 or more; got {kappa}. At 0 nothing shrinks.")
    with torch.no_grad():
        _group(w, *groups, kappa)
    return w


def group_segments(member: Tensor) -> tuple[Tensor, Tensor]:
    """Sort the elements of a buffer by group, once for many thresholds.

    Args:
        member: The group of each element, int64 ``(n,)``; groups are 0, 1, ...; -1 is in none.

    Returns:
        The indices of the elements, group by group; and where each group begins, and the end, ``(groups + 1,)``.

    Example:
        >>> group_segments(torch.tensor([1, -1, 0, 1]))
        (tensor([2, 0, 3]), tensor([0, 1, 3]))
    """
    order = member.argsort(stable=True)
    order = order[int((member < 0).sum()) :]
    count = int(member.max()) + 1 if member.numel() else 0
    return order, torch.searchsorted(member[order], torch.arange(count + 1, device=member.device))


def _adamw_impl(
    w: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    kappa: float,
    start: int,
    stop: int,
) -> None:
    if w.numel() and uses_kernel("adamw_prox", w):
        from clgym.kernels import adamw_prox as kernel

        moments = (exp_avg, exp_avg_sq, step)
        kernel.adamw(w, grad.contiguous(), *moments, lr, beta1, beta2, eps, weight_decay, kappa, start, stop)
        torch.autograd.graph.increment_version((w, exp_avg, exp_avg_sq))  # torch has not seen the writing
        return
    adamw(
        *([w], [grad], [exp_avg], [exp_avg_sq], [], [step]),
        fused=w.dtype.is_floating_point,
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=lr,
        weight_decay=weight_decay,
        eps=eps,
        maximize=False,
    )
    if kappa:
        soft_threshold_(w[start:stop], kappa)


def _group_impl(w: Tensor, order: Tensor, offsets: Tensor, kappa: float) -> None:
    if w.numel() and uses_kernel("adamw_prox", w):
        from clgym.kernels import adamw_prox as kernel

        kernel.group_threshold(w, order, offsets, kappa)
        torch.autograd.graph.increment_version(w)
        return
    picked = w[order]
    norms = torch.segment_reduce(picked.square(), "sum", offsets=offsets, initial=0).sqrt_()  # (groups,)
    factor = (1 - kappa / norms).clamp_(min=0.0).nan_to_num_(0.0)
    w.index_copy_(0, order, picked * factor.repeat_interleave(offsets.diff()))


def _nothing(*_: Any) -> None:
    return None


_adamw: Any = register(
    "adamw_prox_(Tensor(a!) w, Tensor grad, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor(d!) step, float lr, "
    "float beta1, float beta2, float eps, float weight_decay, float kappa, SymInt start, SymInt stop) -> ()",
    _adamw_impl,
    _nothing,
)
_group: Any = register(
    "group_threshold_(Tensor(a!) w, Tensor order, Tensor offsets, float kappa) -> ()", _group_impl, _nothing
)


@facts("adamw_prox")
def _facts(w: Tensor, *_: Any, **__: Any) -> tuple[Tensor, int, torch.dtype]:
    return w, 0, w.dtype
