from __future__ import annotations

import pytest
import torch

from clgym.philox import keep_mask, thinning, words

# philox4x32 of 7 rounds at counter and key 0, from the known answers of the authors' Random123 library.
KNOWN = [0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48]


def test_known_answer() -> None:
    assert words(1, 4, seed=0).tolist() == [KNOWN]


def test_a_word_depends_on_seed_and_place_alone() -> None:
    drawn = words(70_000, 5, seed=3)  # more than is computed at once
    assert drawn.shape == (70_000, 5)
    assert torch.equal(drawn[:3], words(3, 5, seed=3))
    assert not torch.equal(drawn[:3], words(3, 5, seed=4))
    assert not torch.equal(drawn[:3], words(3, 5, seed=3 + 2**32))
    assert len(torch.unique(drawn)) > 0.999 * drawn.numel()
    assert 0 <= int(drawn.min()) <= int(drawn.max()) < 2**32


@pytest.mark.parametrize("bit", [0, 15, 31])
def test_every_bit_is_fair(bit: int) -> None:
    share = (words(400, 257, seed=1) >> bit & 1).double().mean().item()
    assert share == pytest.approx(0.5, abs=5 * 0.5 / (400 * 257) ** 0.5)


@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.9])
def test_a_mask_keeps_its_share(dropout: float) -> None:
    mask = keep_mask(300, 100, dropout, seed=2)
    assert mask.double().mean().item() == pytest.approx(1 - dropout, abs=5 * (dropout * (1 - dropout) / 30_000) ** 0.5)
    threshold, factor = thinning(dropout)
    assert factor == pytest.approx(1 / (1 - dropout), rel=1e-8)
    assert torch.equal(mask, words(300, 100, 2) // 2 >= threshold)


def test_without_dropout_all_is_kept() -> None:
    assert keep_mask(50, 50, 0.0, seed=0).all()
    assert thinning(0.0) == (0, 1.0)


def test_of_nothing() -> None:
    assert words(0, 4, seed=0).shape == (0, 4)
