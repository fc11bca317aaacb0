"""The modes of ``lora_linear``: dropout by a regenerated mask, and the merged weight. ``test_ops.py`` has the rest."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from clgym.errors import SettingError
from clgym.ops import lora_linear, merge_stochastic
from clgym.philox import keep_mask, thinning


def drawn(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


@pytest.mark.parametrize("settings", [{"dropout": 0.4, "seed": 5}, {"mode": "merged"}], ids=str)
@pytest.mark.parametrize("with_gate", [True, False])
def test_gradcheck(settings: dict[str, Any], with_gate: bool) -> None:
    x, W, b, A, Bt, g = drawn((2, 3, 5), (4, 5), (4,), (2, 5), (2, 4), (2,))

    def f(x: Tensor, A: Tensor, Bt: Tensor, g: Tensor) -> Tensor:
        return lora_linear(x, W, b, A, Bt, g if with_gate else None, 0.7, **settings) + 0 * g.sum()

    assert torch.autograd.gradcheck(f, [t.requires_grad_() for t in (x, A, Bt, g)])


def test_dropout_is_its_definition() -> None:
    x, W, b, A, Bt, g = leaves = [t.requires_grad_() for t in drawn((7, 6), (5, 6), (5,), (3, 6), (3, 5), (3,))]
    y = lora_linear(x, W, b, A, Bt, g, 1.5, dropout=0.3, seed=9)
    mask = keep_mask(7, 6, 0.3, 9).double() * thinning(0.3)[1]
    expected = F.linear(x, W, b) + 1.5 * (((x * mask) @ A.T) * g) @ Bt
    torch.testing.assert_close(y, expected)
    learned = [leaves[i] for i in (0, 3, 4, 5)]
    ours = torch.autograd.grad(y.square().sum(), learned)
    for mine, theirs in zip(ours, torch.autograd.grad(expected.square().sum(), learned), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_seed_says_the_mask_and_no_dropout_is_no_dropout_bit_for_bit() -> None:
    x, W, A, Bt = drawn((7, 6), (5, 6), (3, 6), (3, 5), dtype=torch.float32)
    first, again, other = (lora_linear(x, W, None, A, Bt, dropout=0.5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    plain = lora_linear(x, W, None, A, Bt)
    assert torch.equal(lora_linear(x, W, None, A, Bt, dropout=0.0, seed=1), plain)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_merged_is_split_up_to_rounding(dtype: torch.dtype) -> None:
    x, W, b, A, Bt, g = drawn((2, 7, 6), (5, 6), (5,), (3, 6), (3, 5), (3,), dtype=dtype)
    results = []
    for mode in ("split", "merged"):
        learned = [t.detach().clone().requires_grad_() for t in (x, A, Bt, g)]
        y = lora_linear(learned[0], W, b, *learned[1:], 0.7, mode=mode)  # type: ignore[misc, arg-type]
        results.append([y, *torch.autograd.grad(y.square().sum(), learned)])
    for split, merged in zip(*results, strict=True):
        torch.testing.assert_close(split, merged, rtol=1e-4, atol=1e-4)


def test_merged_in_bf16_uses_the_weight_rounded_by_its_seed() -> None:
    x, W, b = drawn((7, 6), (5, 6), (5,), dtype=torch.bfloat16)
    A, Bt = drawn((3, 6), (3, 5), dtype=torch.float32)
    y = lora_linear(x, W, b, A, Bt, mode="merged", seed=4)
    assert torch.equal(y, F.linear(x, merge_stochastic(W, A, Bt, seed=4), b))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = lora_linear(x.float(), W.float(), b.float(), A, Bt, mode="merged", seed=4)
    assert torch.equal(under, y)


def test_gradients_of_fp32_branches_keep_their_digits_in_bf16() -> None:
    x, W = drawn((300, 6), (5, 6), dtype=torch.bfloat16)
    A, Bt, g = (t.requires_grad_() for t in drawn((3, 6), (3, 5), (3,), dtype=torch.float32))
    loss: Any = lora_linear(x, W, None, A, Bt, g).float().square().sum()
    loss.backward()
    for leaf in (A, Bt, g):
        assert leaf.grad is not None
        assert leaf.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mode": "folded"}, "Expected mode in ('split', 'merged'); got 'folded'. Choose one of them."),
        ({"dropout": 1.0}, "Expected dropout in [0, 1), and 0 in merged mode; got 1.0 in split mode."),
        (
            {"dropout": 0.1, "mode": "merged"},
            "got 0.1 in merged mode. A merged weight has no input of its own to drop.",
        ),
    ],
)
def test_refused(settings: dict[str, Any], words: str) -> None:
    x, W, A, Bt = drawn((7, 6), (5, 6), (3, 6), (3, 5))
    with pytest.raises(SettingError, match=re.escape(words)):
        lora_linear(x, W, None, A, Bt, **settings)
