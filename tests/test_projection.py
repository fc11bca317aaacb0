from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from clgym.errors import SettingError
from clgym.ops import checked_basis, project_out, project_out_, project_update_
from clgym.projection import Side


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def matrices(side: Side, *batch: int, k: int = 3) -> tuple[Tensor, Tensor]:
    basis = torch.linalg.qr(drawn(*batch, 7 if side == "left" else 9, k, seed=1)).Q
    return drawn(*batch, 7, 9), basis


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)], ids=str)
@pytest.mark.parametrize("side", ["left", "right"])
def test_it_is_the_dense_projector(side: Side, batch: tuple[int, ...]) -> None:
    G, U = matrices(side, *batch)
    dense = torch.eye(U.shape[-2], dtype=torch.float64) - U @ U.mT
    out = project_out(G, U, side)
    torch.testing.assert_close(out, dense @ G if side == "left" else G @ dense)
    along = U.mT @ out if side == "left" else out @ U
    assert float(along.abs().max()) < 1e-14
    torch.testing.assert_close(project_out(out, U, side), out)
    assert torch.autograd.gradcheck(lambda G: project_out(G, U, side), G.requires_grad_())
    assert torch.autograd.gradgradcheck(lambda G: project_out(G, U, side), G)


def test_closed_form_equals_autograd() -> None:
    G, U = matrices("left")
    G.requires_grad_()
    dy = drawn(7, 9, seed=5)
    (ours,) = torch.autograd.grad(project_out(G, U), G, dy)
    (theirs,) = torch.autograd.grad(G - U @ (U.mT @ G), G, dy)
    torch.testing.assert_close(ours, theirs)


def test_without_directions_nothing_is_taken_out() -> None:
    G, U = matrices("left", k=0)
    assert torch.equal(project_out(G, U), G)
    assert project_out_(G, U) is G


def test_adam_leaves_the_subspace_and_the_projected_update_does_not() -> None:
    _, U = matrices("left")
    ends = []
    for of_update in (False, True):
        p = torch.nn.Parameter(drawn(7, 9))
        first, optimizer = p.detach().clone(), torch.optim.AdamW([p], lr=0.1, weight_decay=0.1)
        for number in range(3):
            p.grad = project_out(drawn(7, 9, seed=number), U)
            before = p.detach().clone()
            optimizer.step()
            if of_update:
                assert project_update_(p, before, U) is p
        ends.append(float((U.mT @ (p.detach() - first)).abs().max()))
    assert ends[0] > 1e-2
    assert ends[1] < 1e-14


def test_a_new_adapter_is_taken_out_of_the_rows_of_an_old_one() -> None:
    # A_new - A_new A_old^T (A_old A_old^T)^-1 A_old, with a basis of the old rows.
    old, new = drawn(2, 6), drawn(3, 6, seed=1)
    expected = new - new @ old.T @ torch.linalg.inv(old @ old.T) @ old
    torch.testing.assert_close(project_out(new, checked_basis(torch.linalg.qr(old.T).Q), "right"), expected)


def test_columns_that_are_not_orthonormal_are_refused() -> None:
    with pytest.raises(SettingError, match=r"Expected orthonormal columns; got U\^T U up to 3 from the identity."):
        checked_basis(2 * torch.eye(4)[:, :2])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"side": "top"}, "Expected side in ('left', 'right'); got 'top'. Choose one of them."),
        ({"side": "right"}, "Expected U (..., 9, k) for G (7, 9) from the right; got (7, 3)."),
        ({"G": torch.zeros(2, 7, 9)}, "Expected U (..., 7, k) for G (2, 7, 9) from the left; got (7, 3)."),
        ({"G": torch.zeros(7)}, "Expected U (..., -1, k) for G (7,) from the left; got (7, 3)."),
    ],
)
def test_refused(call: dict[str, Any], words: str) -> None:
    G, U = matrices("left")
    with pytest.raises(SettingError, match=re.escape(words)):
        project_out(**{"G": G, "U": U} | call)
