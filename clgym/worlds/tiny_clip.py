"""The tiny CLIP of the embedded world: open_clip's own class, with weights that ship with the package."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from safetensors.torch import load_file

from clgym.errors import SourceError, SourceMissingError
from clgym.worlds.canvas import SIDE
from clgym.worlds.tokenizer import CONTEXT_LENGTH, VOCABULARY_SIZE, WordTokenizer, vocabulary_sha256

WEIGHTS = Path(__file__).with_name("tiny_clip.safetensors")
CONFIG: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": SIDE, "patch_size": 8, "width": 96, "layers": 3, "head_width": 24},
    "text_cfg": {
        "context_length": CONTEXT_LENGTH,
        "vocab_size": VOCABULARY_SIZE,
        "width": 96,
        "heads": 4,
        "layers": 3,
    },
}
MEAN = (0.5, 0.5, 0.5)
STD = (0.25, 0.25, 0.25)


def build() -> CLIP:
    """Return the model with random weights, drawn from torch's global generator as open_clip does."""
    return CLIP(
        embed_dim=CONFIG["embed_dim"],
        vision_cfg=CLIPVisionCfg(**CONFIG["vision_cfg"]),
        text_cfg=CLIPTextCfg(**CONFIG["text_cfg"]),
    )


def normalise(pictures: torch.Tensor) -> torch.Tensor:
    """Turn uint8 pictures `(B, 32, 32, 3)` into what the model takes.

    Returns:
        Floats `(B, 3, 32, 32)`.
    """
    scaled = pictures.permute(0, 3, 1, 2).float() / 255.0
    return (scaled - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def card(weights: Path = WEIGHTS) -> dict[str, Any]:
    """Return what is written beside the weights: configuration, hash, training, zero-shot accuracy."""
    beside = weights.with_suffix(".json")
    if not beside.is_file():
        raise SourceMissingError(
            f"Expected the description of the tiny CLIP at {beside}; got no file. "
            "Install clgym again, or write it with `python -m clgym.worlds.pretrain`."
        )
    return dict(json.loads(beside.read_text(encoding="utf-8")))


def load(weights: Path = WEIGHTS) -> tuple[CLIP, WordTokenizer]:
    """Load the pre-trained model, in eval mode, and its tokenizer.

    Raises:
        SourceMissingError: The weights or their description are not there.
        SourceError: The weights are not those that the description's sha256 names.
    """
    description = card(weights)
    expected = description["sha256"]
    if not weights.is_file():
        raise SourceMissingError(
            f"Expected the tiny CLIP's weights at {weights}; got no file. "
            "Install clgym again, or write them with `python -m clgym.worlds.pretrain`."
        )
    found = hashlib.sha256(weights.read_bytes()).hexdigest()
    if found != expected:
        raise SourceError(
            f"Expected {weights} with sha256 {expected}; got {found}. "
            "Install clgym again, or write both files with `python -m clgym.worlds.pretrain`."
        )
    if vocabulary_sha256() != description["vocabulary_sha256"]:
        raise SourceError(
            f"Expected the vocabulary that {weights} was trained with; got another one, so its words would mean "
            "other things. Pre-train anew with `python -m clgym.worlds.pretrain`."
        )
    with torch.random.fork_rng(devices=[]):
        model = build()
    model.load_state_dict(load_file(weights))
    return model.eval(), WordTokenizer()


def __getattr__(name: str) -> str:
    """Read `WEIGHTS_SHA256` when it is asked for, so that importing reads no file."""
    if name == "WEIGHTS_SHA256":
        return str(card()["sha256"])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
