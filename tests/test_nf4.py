from __future__ import annotations

import re
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from clgym.errors import SettingError
from clgym.nf4 import CODE
from clgym.ops import nf4_dequantize, nf4_linear, nf4_quantize

# What bitsandbytes 0.50.2 (quantize_4bit, nf4, blocks of 64) makes of waves() on a CPU.
CODES = (
    "7f5297ab13f908b7a42ed04e7662be11eb3757e40de2497c809f31b98915f70ad5743eb06e6474bd12fa1788d31ed14b7a61bf21da6827f5"
    "0cd4665e908f5386bb13f818a7b32ec05d7762ce12ea4748e30dd2586d70af32a89a15f60ac6933e" + 32 * "77"
)
SCALES = [0.9640092253684998, 1.9589208364486694, 2.971932888031006, 0.0]


def waves() -> Tensor:
    i = torch.arange(256, dtype=torch.float64)
    w = (torch.sin(i * 1.7) * (1 + i / 64).floor() * torch.cos(i * 0.31)).float().view(4, 64)
    w[3] = 0
    return w


def test_codes_are_those_of_bitsandbytes() -> None:
    packed, absmax = nf4_quantize(waves())
    assert bytes(packed.tolist()).hex() == CODES
    assert absmax.tolist() == SCALES


def test_every_code_has_its_value() -> None:
    packed = torch.tensor([16 * code + 15 - code for code in range(16)], dtype=torch.uint8)
    values = nf4_dequantize(packed, torch.tensor([2.0]), block=32)
    assert values[0::2].tolist() == [2 * value for value in torch.tensor(CODE).tolist()]
    assert torch.equal(values[1::2], values[0::2].flip(0))


def test_what_is_quantised_again_stays() -> None:
    packed, absmax = nf4_quantize(waves())
    weight = nf4_dequantize(packed, absmax).view(4, 64)
    again, scales = nf4_quantize(weight)
    assert torch.equal(again, packed)
    assert torch.equal(scales, absmax)
    step = max(b - a for a, b in pairwise(CODE))
    assert bool(((weight - waves()).abs() <= absmax[:, None] * step / 2 + 1e-6).all())


@pytest.mark.parametrize("with_bias", [True, False])
def test_it_is_the_product_with_the_dequantised_weight(with_bias: bool) -> None:
    packed, absmax = nf4_quantize(waves())
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 64, generator=generator, dtype=torch.float64, requires_grad=True)
    bias = torch.arange(4.0, dtype=torch.float64) if with_bias else None
    weight = nf4_dequantize(packed, absmax, dtype=torch.float64).view(4, 64)
    y = nf4_linear(x, packed, absmax, bias)
    expected = torch.nn.functional.linear(x, weight, bias)
    torch.testing.assert_close(y, expected)
    dy = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(*(torch.autograd.grad(out, x, dy)[0] for out in (y, expected)))
    assert torch.autograd.gradcheck(lambda x: nf4_linear(x, packed, absmax, bias), x)


def test_under_autocast_it_computes_in_bf16() -> None:
    packed, absmax = nf4_quantize(waves())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert nf4_linear(torch.ones(3, 64), packed, absmax, torch.zeros(4)).dtype == torch.bfloat16


@pytest.mark.parametrize(("shape", "block"), [((3, 5), 64), ((4, 64), 3), ((4, 64), 0)])
def test_a_weight_that_does_not_divide_is_refused(shape: tuple[int, int], block: int) -> None:
    words = f"Expected a weight that divides into blocks of an even size; got {shape} and {block}."
    with pytest.raises(SettingError, match=re.escape(words)):
        nf4_quantize(torch.ones(shape), block)


def test_what_does_not_fit_is_refused() -> None:
    packed, absmax = nf4_quantize(waves())
    for x, scales in ((torch.ones(1, 60), absmax), (torch.ones(1, 64), absmax[:3])):
        with pytest.raises(SettingError, match=r"Expected rows of 6. codes in blocks of 64; got 256 codes and"):
            nf4_linear(x, packed, scales)
