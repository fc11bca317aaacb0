"""The tiny CLIP and its pre-training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.model import CLIP

from clgym.errors import SourceError, SourceMissingError
from clgym.worlds import pictures, pretrain, tiny_clip


def test_load_gives_open_clips_own_class_without_touching_the_global_generator() -> None:
    before = torch.random.get_rng_state()
    model, tokenizer = tiny_clip.load()
    assert type(model) is CLIP
    assert not model.training
    assert torch.equal(before, torch.random.get_rng_state())
    assert type(model.visual.transformer.resblocks[0].attn) is torch.nn.MultiheadAttention
    text = model.encode_text(tokenizer(["a red mug", "a red mug!"]), normalize=True)
    assert torch.equal(text[0], text[1])
    assert text.norm(dim=-1).detach().numpy() == pytest.approx([1.0, 1.0], abs=1e-5)
    assert model.logit_scale.exp().item() == pytest.approx(pretrain.SHIPPED_LOGIT_SCALE)


def test_weights_are_small_and_named_by_their_hash() -> None:
    assert tiny_clip.WEIGHTS.stat().st_size < 6_000_000
    assert tiny_clip.card()["sha256"] == tiny_clip.WEIGHTS_SHA256
    assert tiny_clip.card()["pictures_revision"] == pictures.REVISION


def test_tampered_weights_are_refused(tmp_path: Path) -> None:
    copy = tmp_path / "tiny_clip.safetensors"
    blob = bytearray(tiny_clip.WEIGHTS.read_bytes())
    blob[-1] ^= 1
    copy.write_bytes(bytes(blob))
    shutil.copy(tiny_clip.WEIGHTS.with_suffix(".json"), tmp_path)
    with pytest.raises(SourceError, match=r"tiny_clip\.safetensors with sha256"):
        tiny_clip.load(copy)


def test_weights_of_another_vocabulary_are_refused(tmp_path: Path) -> None:
    shutil.copy(tiny_clip.WEIGHTS, tmp_path)
    changed = tiny_clip.card() | {"vocabulary_sha256": "0" * 64}
    (tmp_path / "tiny_clip.json").write_text(json.dumps(changed), encoding="utf-8")
    with pytest.raises(SourceError, match="Pre-train anew"):
        tiny_clip.load(tmp_path / "tiny_clip.safetensors")


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(SourceMissingError, match=r"tiny_clip\.json"):
        tiny_clip.load(tmp_path / "tiny_clip.safetensors")
    shutil.copy(tiny_clip.WEIGHTS.with_suffix(".json"), tmp_path)
    with pytest.raises(SourceMissingError, match=r"tiny_clip\.safetensors"):
        tiny_clip.load(tmp_path / "tiny_clip.safetensors")


def test_no_other_attribute_is_made_up() -> None:
    with pytest.raises(AttributeError, match="WEIGHTS_SHA512"):
        _ = tiny_clip.WEIGHTS_SHA512


def test_normalise_by_hand() -> None:
    picture = torch.full((1, 32, 32, 3), 255, dtype=torch.uint8)
    out = tiny_clip.normalise(picture)
    assert out.shape == (1, 3, 32, 32)
    assert (out == 2.0).all()  # (1 - 0.5) / 0.25


def test_zero_shot_is_what_the_description_says_and_leaves_room() -> None:
    model, tokenizer = tiny_clip.load()
    accuracy = {name: pretrain.zero_shot(model, tokenizer, name, 20) for name in pictures.DOMAINS}
    said = tiny_clip.card()["zero_shot"]
    assert accuracy == pytest.approx(said, abs=0.15)
    assert 0.35 <= np.mean(list(accuracy.values())) <= 0.65
    assert sum(value < 0.30 for value in accuracy.values()) >= 3
    assert sum(value > 0.60 for value in accuracy.values()) >= 3


def test_contrastive_loss_by_hand() -> None:
    # Two pictures with one caption: every pair is right, logits are equal, so the loss is log 2.
    unit = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    same = torch.ones(2, 2, dtype=torch.bool)
    assert pretrain.contrastive_loss(unit, unit, same, torch.tensor(5.0)).item() == pytest.approx(np.log(2))
    # Orthogonal pairs at scale s: log(1 + exp(-s)).
    loss = pretrain.contrastive_loss(torch.eye(2), torch.eye(2), torch.eye(2, dtype=torch.bool), torch.tensor(3.0))
    assert loss.item() == pytest.approx(np.log1p(np.exp(-3.0)), rel=1e-5)


def test_pretraining_runs_writes_what_load_reads_and_repeats(tmp_path: Path) -> None:
    settings = {"steps": 3, "pairs": 16, "images": 100, "seed": 1, "rate": 1e-3}
    model, loss = pretrain.train(steps=3, pairs=16, images=100, seed=1, rate=1e-3)
    again, same = pretrain.train(steps=3, pairs=16, images=100, seed=1, rate=1e-3)
    assert np.isfinite(loss)
    assert loss == same
    pretrain.write(model, tmp_path / "a.safetensors", settings)
    loaded, _ = tiny_clip.load(tmp_path / "a.safetensors")
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert json.loads((tmp_path / "a.json").read_text())["training"] == settings
