"""Taking the directions of earlier tasks out of an update."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from clgym.backend import facts, register, uses_kernel
from clgym.errors import SettingError

Side = Literal["left", "right"]


def project_out(G: Tensor, U: Tensor, side: Side = "left") -> Tensor:
    """Return ``G - U (U^T G)``, or from the right ``G - (G U) U^T``; without the dense projector.

    It is linear in ``G`` and its own transpose, so the gradient goes through it likewise. ``U`` has none.

    Args:
        G: ``(..., m, n)``.
        U: Orthonormal columns of the directions to take out, ``(..., m, k)``, or ``(..., n, k)`` from the right;
            :func:`checked_basis` looks. With ``k`` 0 nothing is taken out.
        side: ``"left"`` or ``"right"``.

    Returns:
        A new tensor like ``G``.

    Raises:
        SettingError: ``side`` is unknown, or the shapes do not fit.

    Example:
        >>> project_out(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0], [0.0]]))
        tensor([[0., 0.],
                [3., 4.]])
    """
    _check(G, U, side)
    out: Tensor = _Project.apply(G, U, side)
    return out


def project_out_(G: Tensor, U: Tensor, side: Side = "left") -> Tensor:
    """Apply :func:`project_out` in place, outside the graph, and return ``G``."""
    _check(G, U, side)
    with torch.no_grad():
        return G.copy_(_project(G, U, side == "left"))


def project_update_(after: Tensor, before: Tensor, U: Tensor, side: Side = "left") -> Tensor:
    """Take the directions out of what a step did: ``after <- before + project_out(after - before)``.

    A projected gradient is not enough: Adam scales its elements one by one, which leaves the subspace.

    Args:
        after: The parameter after the step, changed in place, outside the graph.
        before: The parameter before the step.
        U: See :func:`project_out`.
        side: See :func:`project_out`.

    Returns:
        ``after``.

    Example:
        >>> after, before, U = torch.ones(2, 1), torch.zeros(2, 1), torch.tensor([[1.0], [0.0]])
        >>> project_update_(after, before, U).tolist()
        [[0.0], [1.0]]
    """
    with torch.no_grad():
        after.sub_(before)
        return project_out_(after, U, side).add_(before)


def checked_basis(U: Tensor, tolerance: float = 1e-4) -> Tensor:
    """Return ``U`` if its columns are orthonormal; ask once, where a basis is made.

    Args:
        U: ``(..., m, k)``.
        tolerance: Largest deviation of ``U^T U`` from the identity.

    Raises:
        SettingError: They are not.

    Example:
        >>> checked_basis(torch.eye(3)[:, :2]).shape
        torch.Size([3, 2])
    """
    gram = U.mT @ U
    off = (
        float((gram - torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)).abs().max()) if U.numel() else 0
    )
    if off > tolerance:
        raise SettingError(
            f"Expected orthonormal columns; got U^T U up to {off:.2g} from the identity. "
            "Take them from torch.linalg.qr or svd."
        )
    return U


class _Project(torch.autograd.Function):
    """The projection, which is its own gradient."""

    @staticmethod
    def forward(ctx: Any, G: Tensor, U: Tensor, side: Side) -> Tensor:
        """Project."""
        ctx.save_for_backward(U)
        ctx.side = side
        out: Tensor = _project(G, U, side == "left")
        return out

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Project the gradient."""
        (basis,) = ctx.saved_tensors
        return project_out(dy, basis, ctx.side), None, None


def _check(G: Tensor, U: Tensor, side: Side) -> None:
    if side not in get_args(Side):
        raise SettingError(f"Expected side in {get_args(Side)}; got {side!r}. Choose one of them.")
    width = G.shape[-2 if side == "left" else -1] if G.dim() > 1 else -1
    if U.dim() != G.dim() or U.shape[:-2] != G.shape[:-2] or U.shape[-2] != width:
        raise SettingError(
            f"Expected U (..., {width}, k) for G {tuple(G.shape)} from the {side}; got {tuple(U.shape)}. "
            "Give one basis per matrix, directions in columns."
        )


def _project_impl(G: Tensor, U: Tensor, left: bool) -> Tensor:
    basis = U.to(G.dtype)
    if G.numel() and U.numel() and uses_kernel("project_out", G, U.shape[-1]):
        from clgym.kernels import project_out as kernel

        return kernel.project(G.contiguous(), U.contiguous(), left)
    one, other = (basis, basis.mT @ G) if left else (G @ basis, basis.mT)
    if G.dim() == 2:
        return torch.addmm(G, one, other, alpha=-1)
    rows = [t.reshape(-1, *t.shape[-2:]) for t in (G, one, other)]
    return torch.baddbmm(*rows, alpha=-1).view(G.shape)


def _project_fake(G: Tensor, U: Tensor, left: bool) -> Tensor:
    return G.new_empty(G.shape)


_project: Any = register("project_out(Tensor G, Tensor U, bool left) -> Tensor", _project_impl, _project_fake)


@facts("project_out")
def _facts(G: Tensor, U: Tensor, *_: Any, **__: Any) -> tuple[Tensor, int, torch.dtype]:
    return G, U.shape[-1], G.dtype
