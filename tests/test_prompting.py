"""Prompts in a frozen vision transformer: what they do, against the blocks called one by one, and that they leave."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from clgym.agent import EMBEDDED_CLIP, EMBEDDED_VIT
from clgym.backbones import load_backbone
from clgym.errors import SettingError
from clgym.prompting import PromptedViT, cosines


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def images(count: int = 3) -> Tensor:
    drawn = torch.randint(0, 256, (count, 32, 32, 3), generator=torch.Generator().manual_seed(0))
    return drawn.to(torch.uint8)


@pytest.fixture(params=[EMBEDDED_CLIP, EMBEDDED_VIT])
def vit(request: pytest.FixtureRequest) -> PromptedViT:
    return PromptedViT(load_backbone(request.param, "cpu"))


def tokens(vit: PromptedViT) -> Tensor:
    """Return what enters the first block."""
    met: list[Tensor] = []
    hook = vit.blocks[0].whole.register_forward_pre_hook(lambda _, inputs: met.append(inputs[0]))
    vit.query(images())
    hook.remove()
    return met[0]


def read_off(vit: PromptedViT, token: Tensor) -> Tensor:
    """Return the features of normed tokens ``(B, d)``."""
    model: Any = vit.backbone.model
    return F.normalize(token @ model.visual.proj, dim=-1) if hasattr(model, "visual") else token


@pytest.mark.parametrize("read", [False, True])
@torch.no_grad()
def test_appended_tokens_are_tokens_of_every_block(vit: PromptedViT, read: bool) -> None:
    extra = random(3, 2, vit.width)
    x = torch.cat([tokens(vit), extra], dim=1)
    for block in vit.blocks:
        x = block.whole(x)
    x = vit.norm(x)
    with vit.appended(extra, read=read):
        got = vit.backbone.encode_images(images())
    expected = read_off(vit, (x[:, -2] + x[:, -1]) / 2 if read else x[:, 0])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(got, vit.query(images()), atol=1e-2)


@torch.no_grad()
def test_prefixes_are_attended_to_in_their_blocks_alone(vit: PromptedViT) -> None:
    pairs = random(2, 2, 3, 4, vit.width)
    x = tokens(vit)
    for i, block in enumerate(vit.blocks):
        block.attention.prefix = (pairs[i - 1, 0], pairs[i - 1, 1]) if i in (1, 2) else None
        x = block.whole(x)
    expected = read_off(vit, vit.norm(x)[:, 0])
    with vit.prefixed([(slice(1, 3), pairs)]):
        got = vit.backbone.encode_images(images())
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("how", ["prefixed", "appended"])
def test_prompts_leave_whatever_happens(vit: PromptedViT, how: str) -> None:
    before = vit.query(images())
    pairs, extra = random(2, 2, 3, 1, vit.width), random(3, 1, vit.width)
    prompts = vit.prefixed([(slice(0, 2), pairs)]) if how == "prefixed" else vit.appended(extra, read=True)

    def fail() -> None:
        with prompts:
            assert not torch.allclose(vit.backbone.encode_images(images()), before)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert all(block.attention.prefix is None for block in vit.blocks)
    assert torch.equal(vit.query(images()), before)


def test_as_many_prefixes_as_blocks(vit: PromptedViT) -> None:
    with pytest.raises(ValueError, match="zip"), vit.prefixed([(slice(0, 2), random(1, 2, 3, 1, vit.width))]):
        pass
    assert all(block.attention.prefix is None for block in vit.blocks)


def test_shares_of_twelve_blocks_are_those_of_the_papers() -> None:
    vit = PromptedViT(load_backbone(EMBEDDED_VIT, "cpu"))
    vit.blocks = vit.blocks * 3
    assert (vit.first(None, 1 / 6), vit.first(None, 1 / 4, after=2)) == (slice(0, 2), slice(2, 5))
    assert vit.first(None, 5 / 12) == slice(0, 5)
    assert vit.first(7, 5 / 12) == slice(0, 7)
    for count in (0, 11):
        with pytest.raises(
            SettingError, match=f"Expected 1 to 10 prompted blocks behind the first 2 of 12; got {count}"
        ):
            vit.first(count, 1.0, after=2)


def test_other_pooling_is_refused() -> None:
    backbone = load_backbone(EMBEDDED_VIT, "cpu")
    backbone.model.global_pool = "avg"
    with pytest.raises(SettingError, match="reads its features off the class token; got pooling 'avg'"):
        PromptedViT(backbone)


def test_a_query_has_no_gradient_and_cosines_are_cosines(vit: PromptedViT) -> None:
    vit.backbone.model.requires_grad_(True)
    query, keys = vit.query(images()), random(5, vit.backbone.embed_dim)
    assert not query.requires_grad
    expected = F.cosine_similarity(query[:, None], keys[None], dim=-1)
    torch.testing.assert_close(cosines(query, keys), expected, rtol=0, atol=1e-6)
