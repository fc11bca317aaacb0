"""A view into the image encoder: what hidden units do, and which weights act."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from clgym.attention import lora_targets, unfold_attention
from clgym.backbones import load_backbone
from clgym.inside import acting_weights, listening
from clgym.lora import adapt

BACKBONES = ["embedded/tiny-clip", "embedded/tiny-vit"]


def pictures(count: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8))


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("adapted", [False, True])
@torch.inference_mode()
def test_hidden_units_are_what_the_second_layer_reads(name: str, adapted: bool) -> None:
    backbone = load_backbone(name, "cpu")
    if adapted:
        with torch.inference_mode(False):
            model = unfold_attention(backbone.model)
            adapt(model, r=2, targets=lora_targets(model), generator=torch.Generator().manual_seed(0))
    tower: Any = getattr(backbone.model, "visual", backbone.model)
    blocks = tower.transformer.resblocks if hasattr(tower, "transformer") else tower.blocks
    read: list[np.ndarray] = []

    def note(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        read.append(inputs[0].abs().mean(dim=1).numpy())

    for block in blocks:
        (block.mlp.c_proj if hasattr(block.mlp, "c_proj") else block.mlp.fc2).register_forward_pre_hook(note)
    with listening(backbone.model) as heard:
        backbone.encode_images(pictures(3))
    assert len(heard) == len(blocks)
    for layer, expected in zip(heard.values(), read, strict=True):
        assert layer.ndim == 2
        assert len(layer) == 3
        np.testing.assert_array_equal(layer, expected)
    backbone.encode_images(pictures(5))
    assert {len(layer) for layer in heard.values()} == {3}, "hooks stay behind"


@pytest.mark.parametrize("name", BACKBONES)
def test_a_branch_counts_as_if_it_were_merged(name: str) -> None:
    backbone = load_backbone(name, "cpu")
    plain = [float(np.square(w, dtype=np.float64).sum()) for w in acting_weights(backbone.model)]
    lora = adapt(
        unfold_attention(backbone.model),
        r=2,
        targets=[n for n, _ in backbone.model.named_modules() if n.endswith(("c_fc", "fc1"))],
        generator=torch.Generator().manual_seed(0),
    )
    fresh = [float(np.square(w, dtype=np.float64).sum()) for w in acting_weights(backbone.model)]
    assert sum(fresh) == pytest.approx(sum(plain))
    with torch.no_grad():
        lora.arena().normal_(generator=torch.Generator().manual_seed(1))
    apart = [w.copy() for w in acting_weights(backbone.model)]
    lora.merge_()
    merged = list(acting_weights(backbone.model))
    assert len(apart) == len(merged)
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(apart, merged, strict=True))
    assert sum(float(np.square(w, dtype=np.float64).sum()) for w in merged) > 1.5 * sum(plain)


def test_only_the_image_encoder_is_weighed() -> None:
    model = load_backbone("embedded/tiny-clip", "cpu").model
    assert sum(w.size for w in acting_weights(model)) == sum(p.numel() for p in model.visual.parameters())
