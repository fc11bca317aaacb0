"""Vision transformers without texts: loading, unfolding, pixels, and the error for what is not there."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

import clgym
from clgym.agent import EMBEDDED_VIT
from clgym.attention import UnfoldedAttention, lora_targets, unfold_attention, vision_blocks
from clgym.backbones import download_backbone, load_backbone, load_clip
from clgym.errors import NotRegisteredError, SettingError, SourceError, SourceMissingError
from clgym.tuning import tune_encoders
from clgym.vit import ViTBackbone, load_vit
from clgym.worlds import tiny_clip, tiny_vit

TAG = "timm/vit_base_patch16_224.augreg_in21k_ft_in1k"


def pictures(count: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def test_the_embedded_model_is_loaded_by_name_with_its_hash() -> None:
    backbone = load_backbone(EMBEDDED_VIT, "cpu")
    assert isinstance(backbone, ViTBackbone)
    assert (backbone.image_size, backbone.embed_dim) == (32, tiny_vit.CONFIG["embed_dim"])
    assert backbone.sha256 == tiny_clip.card(tiny_vit.WEIGHTS)["sha256"]
    assert download_backbone(EMBEDDED_VIT) == tiny_vit.WEIGHTS
    assert tiny_vit.WEIGHTS.stat().st_size < 3e6


def test_features_are_what_the_classifier_would_read() -> None:
    backbone = load_vit(EMBEDDED_VIT, "cpu")
    images = torch.from_numpy(pictures(3)).permute(0, 3, 1, 2).float() / 255
    images = (images - torch.tensor(tiny_vit.MEAN).view(3, 1, 1)) / torch.tensor(tiny_vit.STD).view(3, 1, 1)
    with torch.no_grad():
        expected = backbone.model.forward_head(backbone.model.forward_features(images), pre_logits=True)
        torch.testing.assert_close(backbone.encode_images(pictures(3)), expected, rtol=0, atol=1e-5)


def test_unfolding_keeps_the_outputs_and_names_six_linears_a_block() -> None:
    fused = tiny_vit.load()
    model = unfold_attention(copy.deepcopy(fused))
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(x), fused(x), rtol=0, atol=1e-5)
    names = lora_targets(model)
    assert len(names) == 6 * tiny_vit.CONFIG["depth"]
    kinds = {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}
    assert {name.rpartition(".")[2] for name in names} == kinds
    assert lora_targets(model, "vision") == names
    with pytest.raises(SettingError, match="Expected encoders 'all' or 'vision' of VisionTransformer, which reads no"):
        lora_targets(model, "text")
    assert tune_encoders(model).count == sum(p.numel() for p in fused.parameters())


def test_attention_with_options_is_refused() -> None:
    odd = timm.layers.attention.Attention(8, 2, qk_norm=True, norm_layer=torch.nn.LayerNorm)
    with pytest.raises(SettingError, match="Expected timm attention without norms, gate and dropout"):
        UnfoldedAttention(odd)


@pytest.mark.parametrize("name", [EMBEDDED_VIT, "embedded/tiny-clip"])
def test_blocks_of_the_image_encoder(name: str) -> None:
    model = load_backbone(name, "cpu").model
    blocks = vision_blocks(model)
    tower: Any = getattr(model, "visual", model)
    assert [type(block.attention) for block in blocks] == [UnfoldedAttention] * (4 if "vit" in name else 3)
    assert all(block.whole in list(tower.modules()) for block in blocks)
    with pytest.raises(SettingError, match="Expected a vision transformer of open_clip or timm; got Linear"):
        vision_blocks(torch.nn.Linear(2, 2))


def test_a_prefix_is_attended_to_like_tokens_that_ask_nothing() -> None:
    attention = vision_blocks(tiny_vit.load())[0].attention
    x = torch.randn(2, 5, 96, generator=torch.Generator().manual_seed(0))
    extra = torch.randn(2, 3, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = attention(x, torch.cat([extra, x], 1))
        attention.prefix = (attention.k_proj(extra), attention.v_proj(extra))
        torch.testing.assert_close(attention(x), expected, rtol=0, atol=1e-5)


def test_a_timm_model_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name = "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    made: Any = timm.create_model("vit_tiny_patch16_224")
    file = tmp_path / "model.safetensors"
    save_file(made.state_dict(), file)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repo, file_name: str(file))
    backbone = load_backbone(name, "cpu")
    assert (backbone.image_size, backbone.embed_dim) == (224, 192)
    assert torch.equal(backbone.model.patch_embed.proj.weight, made.patch_embed.proj.weight)
    white = np.full((1, 224, 224, 3), 255, np.uint8)
    # As L2P, CODA-Prompt and PILOT do: in [0, 1], without mean and deviation.
    assert torch.equal(backbone.pixels(white), torch.ones(1, 3, 224, 224))
    assert download_backbone(name) == file


def test_what_is_not_there() -> None:
    with pytest.raises(SourceMissingError, match=r"Expected the weights of timm/vit_base_patch16_224\.augreg_in21k_ft"):
        load_backbone(TAG, "cpu")
    with pytest.raises(NotRegisteredError, match="Expected a registered backbone; got 'timm/vit_bass'"):
        load_backbone("timm/vit_bass", "cpu")
    with pytest.raises(NotRegisteredError, match="Expected a registered backbone"):
        load_clip("tiny", "cpu")


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    weights = tmp_path / "tiny_vit.safetensors"
    with pytest.raises(SourceMissingError, match=r"Expected the description of the tiny CLIP|tiny_vit"):
        tiny_vit.load(weights)
    weights.with_suffix(".json").write_bytes(tiny_vit.WEIGHTS.with_suffix(".json").read_bytes())
    with pytest.raises(SourceMissingError, match="Expected the tiny vision transformer's weights at"):
        tiny_vit.load(weights)
    weights.write_bytes(tiny_vit.WEIGHTS.read_bytes()[:-1])
    with pytest.raises(SourceError, match=r"with sha256 .* with `python -m clgym\.worlds\.pretrain_vit`"):
        tiny_vit.load(weights)


def test_a_method_that_needs_texts_is_refused_on_a_backbone_without(monkeypatch: pytest.MonkeyPatch) -> None:
    env = clgym.make("CLIP-MTIL-v0", tasks=1)
    monkeypatch.setattr(env.unwrapped.scenario, "backbone", EMBEDDED_VIT)  # type: ignore[attr-defined]
    with pytest.raises(SettingError, match="Expected a backbone that reads texts for 'zero_shot'; got 'embedded/tiny"):
        clgym.make_agent("zero_shot", env)
