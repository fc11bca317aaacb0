"""Frozen text encoders by name, apart from a stream's backbone: what a language model makes of a class's words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from clgym.backbones import load_clip
from clgym.errors import SourceMissingError

TRANSFORMERS = "transformers/"


@torch.no_grad()
def encode(encoder: str, texts: Sequence[str], device: str | torch.device) -> Tensor:
    """Return what a text encoder makes of texts; it is loaded from this machine, never from the network, and dropped.

    Args:
        encoder: ``"embedded/tiny-clip"``, ``"<architecture>/<tag>"`` of open_clip like ``"ViT-B-32/openai"``, or
            ``"transformers/<repository or folder>"``. Of a `transformers` model with a projected text feature, as CLIP
            has, that is taken; of an encoder and decoder the encoder; and of all others the mean of the last hidden
            states over a text's tokens.
        texts: One or more texts.
        device: Where to compute.

    Returns:
        ``(len(texts), d)``, fp32, of length 1.

    Raises:
        NotRegisteredError: open_clip has no such model.
        SourceMissingError: The weights are not on this machine.
    """
    if encoder.startswith(TRANSFORMERS):
        return _by_transformers(encoder.removeprefix(TRANSFORMERS), texts, device)
    try:
        clip = load_clip(encoder, device)
    except SourceMissingError as error:
        raise SourceMissingError(
            f"Expected the text encoder {encoder!r} on this machine; got none. Fetch it with "
            f"`python -c \"import clgym.backbones as b; b.download_backbone('{encoder}')\"`."
        ) from error
    return clip.encode_texts(texts)


def _by_transformers(place: str, texts: Sequence[str], device: str | torch.device) -> Tensor:
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(place, local_files_only=True)
        model: Any = AutoModel.from_pretrained(place, local_files_only=True)
    except (OSError, ValueError) as error:  # a folder without a tokenizer is the latter
        raise SourceMissingError(
            f"Expected the text encoder {place!r} of transformers on this machine; got {type(error).__name__}. "
            f"Fetch it with `hf download {place}`, or give the folder that it is in."
        ) from error
    model = model.to(device).eval()
    # One by one: padding then plays no part, whatever a model does with it.
    features = [_feature(model, tokenizer([text], return_tensors="pt").to(device)) for text in texts]
    return F.normalize(torch.cat(features).float(), dim=-1)


def _feature(model: Any, tokens: Any) -> Tensor:
    """Return the feature ``(1, d)`` of one text."""
    if hasattr(model, "get_text_features"):
        found = model.get_text_features(**tokens)
        projected: Tensor = found if isinstance(found, Tensor) else found.pooler_output
        return projected
    encoder = model.get_encoder() if model.config.is_encoder_decoder else model
    hidden: Tensor = encoder(**tokens).last_hidden_state  # (1, L, d)
    return hidden.mean(dim=1)
