from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clgym.errors import SettingError
from clgym.ops import merge_error, merge_stochastic


def branch(ratio: float, rows: int = 300, columns: int = 200) -> tuple[Tensor, Tensor, Tensor]:
    """A bf16 weight of standard deviation 0.02, and a branch of rank 8 whose size is a share of it."""
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(rows, columns, generator=generator).mul_(0.02).bfloat16()
    A, Bt = torch.randn(8, columns, generator=generator), torch.randn(8, rows, generator=generator)
    return W, A, Bt * (ratio * W.float().norm() / (Bt.T @ A).norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_in_full_precision_it_is_the_sum(dtype: torch.dtype) -> None:
    W, A, Bt = (t.to(dtype) for t in branch(1e-2))
    gate = torch.linspace(-1, 1, 8, dtype=dtype)
    merged = merge_stochastic(W, A, Bt, gate, 0.5, seed=1)
    torch.testing.assert_close(merged, W + 0.5 * Bt.T @ gate.diag() @ A)
    assert torch.equal(merged, merge_stochastic(W, A, Bt, gate, 0.5, seed=2))


@pytest.mark.parametrize(("ratio", "nearest_below"), [(1e-4, 0.2), (1e-3, 0.7)])
def test_in_bf16_nothing_is_lost_on_average_where_rounding_to_the_nearest_loses_most(
    ratio: float, nearest_below: float
) -> None:
    W, A, Bt = branch(ratio)
    nearest = (W.float() + Bt.T @ A).bfloat16()
    assert merge_error(W, nearest, A, Bt).gain < nearest_below
    gains = torch.tensor([merge_error(W, merge_stochastic(W, A, Bt, seed=s), A, Bt).gain for s in range(8)])
    spread = gains.std() / 8**0.5
    assert abs(gains.mean() - 1) < 5 * spread
    assert spread < 0.1


def test_a_place_is_rounded_up_as_often_as_its_remainder_says() -> None:
    # Between 1 and its upper neighbour in bf16, 1 + 2^-7, lies 1 + 2^-9: a quarter of the way.
    W, A, Bt = torch.ones(1, 1).bfloat16(), torch.ones(1, 1), torch.full((1, 1), 2.0**-9)
    rounded = torch.cat([merge_stochastic(W, A, Bt, seed=seed) for seed in range(400)]).float()
    assert set(rounded.flatten().tolist()) == {1.0, 1 + 2**-7}
    assert (rounded > 1).float().mean().item() == pytest.approx(0.25, abs=5 * (0.25 * 0.75 / 400) ** 0.5)


def test_what_fits_is_not_rounded_and_what_is_not_finite_stays() -> None:
    W = torch.tensor([[1.0, -2.5, torch.inf, -torch.inf, torch.nan, 0.0]]).bfloat16()
    merged = merge_stochastic(W, torch.zeros(1, 6), torch.zeros(1, 1), seed=3)
    torch.testing.assert_close(merged, W, equal_nan=True)


def test_the_seed_says_the_dice() -> None:
    W, A, Bt = branch(1e-3)
    assert torch.equal(merge_stochastic(W, A, Bt, seed=1), merge_stochastic(W, A, Bt, seed=1))
    assert not torch.equal(merge_stochastic(W, A, Bt, seed=1), merge_stochastic(W, A, Bt, seed=2))


def test_the_error_of_a_merge_worked_by_hand() -> None:
    W, A, Bt = torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]), torch.ones(1, 1)
    half = merge_error(W, torch.tensor([[1.5, 2.0]]), A, Bt)
    assert (half.relative, half.gain) == (0.5, 0.5)
    aside = merge_error(W, torch.tensor([[7.0, 1.0]]), A, Bt)  # (4, -3) too much, at a right angle
    assert aside.relative == pytest.approx(1.0)
    assert aside.gain == pytest.approx(1.0)
    assert merge_error(W, W, A, 0 * Bt).relative == 0.0


def test_no_gradient_is_recorded() -> None:
    W, A, Bt = branch(1e-3)
    assert not merge_stochastic(W, A.requires_grad_(), Bt).requires_grad


def test_other_types_are_refused() -> None:
    with pytest.raises(SettingError, match=r"Expected a weight in bfloat16, float32 or float64; got torch\.float16"):
        merge_stochastic(torch.zeros(2, 2).half(), torch.zeros(1, 2), torch.zeros(1, 2))
