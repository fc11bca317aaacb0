"""The last block computes one token, and nobody can tell but by the time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from clgym.agent import EMBEDDED_CLIP, EMBEDDED_VIT
from clgym.attention import lora_targets, unfold_attention
from clgym.backbones import Backbone, ClipBackbone, load_backbone
from clgym.lora import adapt
from clgym.reading import reads_class_token, reads_one_token

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
TEXTS = ("a cup", "a small photo of a very large dog", "a photo of a red mug.")
BACKBONES = (EMBEDDED_CLIP, EMBEDDED_VIT)


def last(backbone: Backbone, encoder: str = "image") -> Any:
    model = backbone.model
    tower = getattr(model, "visual", model)
    blocks = getattr(tower, "blocks", None)
    return model.transformer.resblocks[-1] if encoder == "text" else (blocks or tower.transformer.resblocks)[-1]


def watch(module: nn.Module) -> list[tuple[int, ...]]:
    """Hook into a module; return the shapes that it gives, as they come."""
    seen: list[tuple[int, ...]] = []
    module.register_forward_hook(lambda _, __, out: seen.append(tuple(out.shape)))
    return seen


def features(backbone: Backbone) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {"image": backbone.encode_images(IMAGES)}
    if isinstance(backbone, ClipBackbone):
        found["text"] = backbone.encode_texts(TEXTS)
    return found


@pytest.mark.parametrize("unfolded", [False, True])
@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_features_are_those_of_the_whole_block(name: str, unfolded: bool) -> None:
    backbone = load_backbone(name, "cpu")
    if unfolded:
        unfold_attention(backbone.model)
    brief = features(backbone)
    seen = {encoder: watch(last(backbone, encoder).mlp) for encoder in brief}
    for encoder, whole in features(backbone).items():
        torch.testing.assert_close(brief[encoder], whole, rtol=0, atol=2e-6)
        assert [len(shape) for shape in seen[encoder]] == [3]  # every token of every row


@pytest.mark.parametrize("name", BACKBONES)
def test_gradients_are_those_of_the_whole_block(name: str) -> None:
    backbone = load_backbone(name, "cpu")
    model = unfold_attention(backbone.model)
    lora = adapt(model, r=4, targets=lora_targets(model), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for _, layer in lora.layers:
            layer.Bt.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))

    def gradients() -> dict[str, Tensor]:
        leaves = {f"{n}.{k}": t for n, layer in lora.layers for k, t in (("A", layer.A), ("Bt", layer.Bt))}
        loss = torch.stack([found[:, :7].sum() for found in features(backbone).values()]).sum()
        return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))

    brief = gradients()
    for encoder in ("image", "text") if name == EMBEDDED_CLIP else ("image",):
        watch(last(backbone, encoder))
    for leaf, whole in gradients().items():
        torch.testing.assert_close(brief[leaf], whole, rtol=1e-4, atol=1e-5 * float(whole.abs().max()))


@pytest.mark.parametrize("name", BACKBONES)
def test_one_token_is_computed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = load_backbone(name, "cpu")
    unfold_attention(backbone.model)
    for encoder in ("image", "text") if name == EMBEDDED_CLIP else ("image",):
        mlp = last(backbone, encoder).mlp
        seen: list[tuple[int, ...]] = []
        monkeypatch.setattr(mlp, "forward", lambda x, f=mlp.forward, s=seen: (s.append(tuple(x.shape)), f(x))[1])
        features(backbone)
        assert seen == [(len(IMAGES) if encoder == "image" else len(TEXTS), 96)]


def test_what_is_read_otherwise_is_computed_whole() -> None:
    clip, vit = (load_backbone(name, "cpu").model for name in BACKBONES)
    assert reads_class_token(clip.visual)
    assert reads_one_token(clip.transformer)
    assert not reads_class_token(vit)  # timm's fused attention takes one input
    assert reads_class_token(unfold_attention(vit))
    hook = vit.norm.register_forward_hook(lambda *_: None)
    assert not reads_class_token(vit)
    hook.remove()
    assert reads_class_token(vit)
    vit.blocks[-1].mlp.fc1.register_forward_pre_hook(lambda *_: None)
    assert not reads_class_token(vit)
    clip.visual.pool_type = "avg"
    assert not reads_class_token(clip.visual)
    clip.transformer.grad_checkpointing = True
    assert not reads_one_token(clip.transformer)
    mean: Any = VisionTransformer(img_size=32, patch_size=16, embed_dim=8, depth=1, num_heads=1, global_pool="avg")
    assert not reads_class_token(unfold_attention(mean))
    assert not reads_class_token(nn.Linear(1, 1))
