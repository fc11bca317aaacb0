"""Text encoders by name, from open_clip and transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from clgym.backbones import load_clip
from clgym.errors import NotRegisteredError, SourceMissingError
from clgym.texts import encode

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "yellow", "key", "forest"]


def saved(model: Any, folder: Path) -> str:
    """Write a model and a tokenizer of seven words into a folder, and return the encoder's name."""
    from transformers import BertTokenizer

    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return f"transformers/{folder}"


@pytest.fixture(autouse=True)
def same_weights() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def test_the_tiny_clip() -> None:
    with torch.no_grad():
        expected = load_clip("embedded/tiny-clip", "cpu").encode_texts(["a yellow key", "forest"])
    assert torch.equal(encode("embedded/tiny-clip", ["a yellow key", "forest"], "cpu"), expected)


def test_the_mean_over_tokens_of_a_language_model(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=7, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    model: Any = BertModel(config)
    model.eval()
    found = encode(saved(model, tmp_path), ["yellow key", "forest"], "cpu")
    with torch.no_grad():
        hidden = model(torch.tensor([[2, 4, 5, 3]])).last_hidden_state[0]
    assert found.shape == (2, 8)
    assert torch.allclose(found[0], F.normalize(hidden.mean(0), dim=0), atol=1e-6)


def test_the_encoder_of_an_encoder_and_decoder(tmp_path: Path) -> None:
    from transformers import T5Config, T5Model

    config = T5Config(vocab_size=7, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    model: Any = T5Model(config)
    model.eval()
    found = encode(saved(model, tmp_path), ["forest"], "cpu")
    with torch.no_grad():
        hidden = model.get_encoder()(torch.tensor([[2, 6, 3]])).last_hidden_state[0]
    assert torch.allclose(found[0], F.normalize(hidden.mean(0), dim=0), atol=1e-6)


def test_the_projected_feature_of_a_clip(tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPModel

    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**small, "vocab_size": 7, "eos_token_id": 3, "bos_token_id": 2, "pad_token_id": 0},
        vision_config={**small, "image_size": 8, "patch_size": 8},
        projection_dim=5,
    )
    model: Any = CLIPModel(config)
    model.eval()
    found = encode(saved(model, tmp_path), ["yellow key"], "cpu")
    with torch.no_grad():
        pooled = model.text_model(torch.tensor([[2, 4, 5, 3]])).pooler_output
        expected = F.normalize(model.text_projection(pooled), dim=-1)
    assert torch.allclose(found, expected, atol=1e-6)


def test_what_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceMissingError, match=r"Expected the text encoder '.*' of transformers on this machine; go"):
        encode(f"transformers/{tmp_path}", ["forest"], "cpu")
    monkeypatch.setattr("clgym.backbones._cached", lambda config: None)
    with pytest.raises(SourceMissingError, match=r"the text encoder 'ViT-B-32/openai' on this machine; got none\. Fet"):
        encode("ViT-B-32/openai", ["forest"], "cpu")
    with pytest.raises(NotRegisteredError, match=r"Expected a registered backbone; got 'ViT-B-32/opnai'"):
        encode("ViT-B-32/opnai", ["forest"], "cpu")
