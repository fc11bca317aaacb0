from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from open_clip.transformer import QuickGELU
from torch import Tensor, nn
from torch.nn import functional as F

from clgym import backbones
from clgym.agent import EMBEDDED_CLIP
from clgym.attention import Encoders, UnfoldedAttention, lora_targets, unfold_attention
from clgym.backbones import ClipBackbone, download_backbone, load_clip
from clgym.errors import NotRegisteredError, SettingError, SourceMissingError
from clgym.lora import adapt
from clgym.worlds import tiny_clip
from clgym.worlds.tokenizer import WordTokenizer

torch.set_num_threads(1)

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def redrawn(model: Any) -> Any:
    """Draw the weights anew, so that no test leans on the global generator."""
    generator = seeded(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 or name.endswith(("bias", "class_embedding")):
                parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
    return model.eval()


def clip(kind: str = "tiny") -> Any:
    if kind == "tiny":
        return redrawn(tiny_clip.build())
    vision = CLIPVisionCfg(layers=2, width=64, head_width=16, patch_size=16, image_size=32)
    return redrawn(CLIP(32, vision, CLIPTextCfg(vocab_size=512, width=48, heads=3, layers=2), quick_gelu=True))


def pictures(count: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def texts(count: int, length: int) -> Tensor:
    tokens = torch.randint(1, 510, (count, length), generator=seeded())
    for row, end in zip(tokens, torch.randint(2, length, (count,), generator=seeded(1)).tolist(), strict=True):
        row[end], row[end + 1 :] = 511, 0
    return tokens


def backbone() -> ClipBackbone:
    return ClipBackbone("test", clip(), WordTokenizer(), mean=MEAN, std=STD)


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("kind", ["tiny", "quickgelu"])
def test_unfolding_keeps_the_outputs(kind: str, batch: int) -> None:
    fused = clip(kind)
    unfolded: Any = unfold_attention(copy.deepcopy(fused))
    assert not any(isinstance(module, nn.MultiheadAttention) for module in unfolded.modules())
    assert any(isinstance(m, QuickGELU) for m in unfolded.modules()) == (kind == "quickgelu")
    images = torch.randn(batch, 3, 32, 32, generator=seeded())
    tokens = texts(batch, fused.context_length)
    for frozen in (False, True):
        for model in (fused, unfolded):
            model.requires_grad_(not frozen)
        seen, read = fused.encode_image(images), fused.encode_text(tokens)
        assert seen.abs().max() > 0.1
        torch.testing.assert_close(unfolded.encode_image(images), seen, rtol=0, atol=1e-5)
        torch.testing.assert_close(unfolded.encode_text(tokens), read, rtol=0, atol=1e-5)


def test_unfolding_draws_nothing_and_stops_at_the_second_time() -> None:
    model = clip()
    before = torch.get_rng_state()
    unfold_attention(model)
    assert torch.equal(torch.get_rng_state(), before)
    first = model.visual.transformer.resblocks[0].attn
    assert unfold_attention(model).get_submodule("visual.transformer.resblocks.0.attn") is first


@pytest.mark.parametrize("mask", ["float", "bool", "per head"])
def test_unfolded_attention_takes_the_masks_of_the_fused_one(mask: str) -> None:
    fused = redrawn(nn.MultiheadAttention(8, 2, batch_first=True))
    x = torch.randn(3, 5, 8, generator=seeded())
    forbidden = torch.ones(5, 5, dtype=torch.bool).triu(1)
    given = forbidden if mask == "bool" else torch.zeros(5, 5).masked_fill(forbidden, float("-inf"))
    if mask == "per head":
        given = given.expand(6, 5, 5) + torch.randn(6, 5, 5, generator=seeded(1))
    expected, _ = fused(x, x, x, attn_mask=given, need_weights=False)
    got, weights = UnfoldedAttention(fused)(x, x, x, need_weights=False, attn_mask=given)
    assert weights is None
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_unfolded_attention_of_a_pooler_with_its_own_key_width() -> None:
    fused = redrawn(nn.MultiheadAttention(8, 2, kdim=6, vdim=6, batch_first=True, bias=False))
    query, key = torch.randn(3, 2, 8, generator=seeded()), torch.randn(3, 5, 6, generator=seeded(1))
    expected, _ = fused(query, key, key, need_weights=False)
    torch.testing.assert_close(UnfoldedAttention(fused)(query, key, key)[0], expected, rtol=0, atol=1e-6)


def test_attention_that_clip_does_not_use_is_refused() -> None:
    with pytest.raises(SettingError, match="Expected attention with batch_first"):
        unfold_attention(nn.Sequential(nn.MultiheadAttention(8, 2)))


@pytest.mark.parametrize(("encoders", "blocks"), [("all", 6), ("vision", 3), ("text", 3)])
def test_targets_are_six_linears_of_every_block(encoders: Encoders, blocks: int) -> None:
    model = unfold_attention(clip())
    names = lora_targets(model, encoders)
    assert len(names) == len(set(names)) == 6 * blocks
    assert all(type(model.get_submodule(name)) is nn.Linear for name in names)
    sides = {"all": {True, False}, "vision": {True}, "text": {False}}[encoders]
    assert {name.startswith("visual.") for name in names} == sides
    kinds = {"q_proj", "k_proj", "v_proj", "out_proj", "c_fc", "c_proj"}
    assert {name.rpartition(".")[2] for name in names} == kinds


def test_targets_need_an_unfolded_model_and_a_known_encoder() -> None:
    with pytest.raises(SettingError, match=r"unfold_attention\(model\) first"):
        lora_targets(clip())
    with pytest.raises(SettingError, match="got 'audio'"):
        lora_targets(clip(), "audio")  # type: ignore[arg-type]


def test_vit_b_16_has_the_trainable_count_of_codyra() -> None:
    # Card A1(a) of the study of CoDyRA: the "4.4M" of its table 3, and 12 * 2 * 6 * 16 gates.
    config = open_clip.get_model_config("ViT-B-16")
    with torch.device("meta"):
        model = CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
    unfold_attention(model)
    lora = adapt(model, r=16, targets=lora_targets(model), gate="normal", generator=seeded())
    assert len(lora) == 144
    assert lora.gates().numel() == 2_304
    assert lora.trainable_count - lora.gates().numel() == 4_423_680


def test_images_are_normalised_with_the_models_own_statistics() -> None:
    ours = backbone()
    raw = pictures(3)
    scaled = torch.from_numpy(raw).permute(0, 3, 1, 2).float() / 255
    scaled = (scaled - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    expected = F.normalize(ours.model.encode_image(scaled), dim=-1)
    kept = raw.copy()
    for given in (raw, torch.from_numpy(raw), raw[:, ::-1][:, ::-1]):
        got = ours.encode_images(given)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    assert (got.shape, got.dtype) == ((3, ours.embed_dim), torch.float32)
    assert np.array_equal(raw, kept)
    torch.testing.assert_close(got.norm(dim=-1), torch.ones(3))


def test_pictures_of_another_type_or_shape_are_refused() -> None:
    ours = backbone()
    for wrong in (pictures(2).astype(np.float32), pictures(2)[:, :16], pictures(2).transpose(0, 3, 1, 2)):
        with pytest.raises(SettingError, match=r"Expected uint8 pictures of shape \(B, 32, 32, 3\)"):
            ours.encode_images(wrong)


@pytest.mark.parametrize("kind", ["tiny", "quickgelu"])
def test_texts_are_cut_without_a_change(kind: str) -> None:
    model = clip(kind)
    words = WordTokenizer(model.context_length)
    ours = ClipBackbone("test", model, words, mean=MEAN, std=STD)
    prompts = ["a red mug", "a photo of a very large yellow bus", "sky"]
    expected = F.normalize(model.encode_text(words(prompts)), dim=-1)
    torch.testing.assert_close(ours.encode_texts(prompts), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.encode_texts(prompts[2:]), expected[2:], rtol=0, atol=1e-6)
    cut = ours._tokenize(tuple(prompts)).shape[1]
    assert cut < model.context_length
    model.text_pool_type = "last"
    torch.testing.assert_close(
        ours.encode_texts(["sky"]), F.normalize(model.encode_text(words(["sky"])), dim=-1), rtol=0, atol=1e-6
    )


def test_each_text_is_tokenized_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, seen = backbone(), []
    words = ours.tokenizer

    def counting(new: list[str]) -> Tensor:
        seen.extend(new)
        return torch.as_tensor(words(new))

    monkeypatch.setattr(ours, "tokenizer", counting)
    monkeypatch.setattr(backbones, "_PROMPTS_AT_ONCE", 2)
    got = [ours.encode_texts(prompts) for prompts in (["cat", "dog"], ["dog", "cat", "dog"], ["cow", "dog"])]
    assert seen == ["cat", "dog", "cow"]
    torch.testing.assert_close(got[1], got[0][[1, 0, 1]], rtol=0, atol=1e-6)


def test_class_features() -> None:
    ours = backbone()
    prompts = (("a cat", "a photo of a cat", "the cat"), ("a dog",))
    first = ours.class_features(prompts, ensemble=False)
    torch.testing.assert_close(first, ours.encode_texts(["a cat", "a dog"]))
    each = ours.encode_texts(prompts[0])
    mean = each.sum(0) / 3
    both = ours.class_features(prompts, ensemble=True)
    torch.testing.assert_close(both[0], mean / mean.norm(), rtol=0, atol=1e-6)
    torch.testing.assert_close(both[1], first[1], rtol=0, atol=1e-6)


def test_the_model_is_frozen_and_adapters_get_gradients_from_both_sides() -> None:
    ours = backbone()
    assert not any(p.requires_grad for p in ours.parameters())
    assert not ours.model.training
    assert ours.logit_scale == pytest.approx(np.log(1 / 0.07))
    unfold_attention(ours.model)
    before = ours.encode_images(pictures(2))
    lora = adapt(ours.model, r=2, targets=lora_targets(ours.model), gate="normal", generator=seeded())
    torch.testing.assert_close(ours.encode_images(pictures(2)), before, rtol=0, atol=1e-6)
    logits = ours.encode_images(pictures(2)) @ ours.class_features((("a cat",), ("a dog",)), False).T
    torch.autograd.backward(logits.square().sum())
    moved = [layer.Bt.grad is not None and bool(layer.Bt.grad.any()) for _, layer in lora.layers]
    assert all(moved)


def test_fingerprint_is_of_the_file_or_of_the_state(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"abc")
    ours = ClipBackbone("test", clip(), WordTokenizer(), mean=MEAN, std=STD, weights=file)
    # FIPS 180-2, appendix B.1.
    assert ours.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    same, other = backbone(), backbone()
    with torch.no_grad():
        other.model.logit_scale.add_(1e-3)
    assert same.sha256 == backbone().sha256 != other.sha256
    before = same.sha256
    unfold_attention(same.model)
    assert same.sha256 == before


@pytest.mark.skipif(not tiny_clip.WEIGHTS.is_file(), reason="the embedded weights are not built yet")
def test_embedded_clip() -> None:
    before = torch.get_rng_state()
    ours = load_clip(EMBEDDED_CLIP, "cpu")
    assert torch.equal(torch.get_rng_state(), before)
    assert (ours.name, ours.image_size, ours.embed_dim) == (EMBEDDED_CLIP, 32, 64)
    assert ours.sha256 == tiny_clip.card()["sha256"]
    raw = torch.from_numpy(pictures(3))
    expected = F.normalize(ours.model.encode_image(tiny_clip.normalise(raw)), dim=-1)
    torch.testing.assert_close(ours.encode_images(raw), expected, rtol=0, atol=1e-5)
    assert download_backbone(EMBEDDED_CLIP) == tiny_clip.WEIGHTS


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


@pytest.mark.usefixtures("empty_cache")
def test_missing_weights_name_the_command() -> None:
    with pytest.raises(SourceMissingError, match=r"weights of ViT-B-16/openai.*`clgym download <scenario>`"):
        load_clip("ViT-B-16/openai")


@pytest.mark.parametrize("load", [load_clip, download_backbone])
def test_unknown_names_meet_their_neighbours(load: Any) -> None:
    with pytest.raises(NotRegisteredError, match=r"got 'ViT-B-16/opena'\. Did you mean 'ViT-B-16/openai'\?"):
        load("ViT-B-16/opena")


def test_weights_of_a_tag_bring_their_activation(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = {
        "embed_dim": 32,
        "vision_cfg": {"layers": 2, "width": 64, "head_width": 16, "patch_size": 16, "image_size": 32},
        "text_cfg": {"layers": 2, "width": 48, "heads": 3, "vocab_size": 512, "context_length": 77},
    }
    config = {"url": "https://example.org/small.pt", "mean": MEAN, "std": STD, "quick_gelu": True}
    monkeypatch.setattr("open_clip.factory._MODEL_CONFIGS", {"clgym-small": shape})
    monkeypatch.setattr("open_clip.pretrained._PRETRAINED", {"clgym-small": {"tag": config}})
    trained = clip("quickgelu")
    file = empty_cache / ".cache" / "clip" / "small.pt"
    file.parent.mkdir(parents=True)
    torch.save(trained.state_dict(), file)
    before = torch.get_rng_state()
    ours = load_clip("clgym-small/tag", "cpu")
    assert torch.equal(torch.get_rng_state(), before)
    assert sum(isinstance(module, QuickGELU) for module in ours.model.modules()) == 4
    scaled = torch.randn(2, 3, 32, 32, generator=seeded())
    torch.testing.assert_close(ours.model.encode_image(scaled), trained.encode_image(scaled))
    assert download_backbone("clgym-small/tag") == file
