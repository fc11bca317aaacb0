"""The tiny vision transformer of the embedded world: timm's own class, with weights that ship with the package."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer

from clgym.errors import SourceError, SourceMissingError
from clgym.worlds.canvas import SIDE
from clgym.worlds.tiny_clip import MEAN, STD, card

__all__ = ["CONFIG", "MEAN", "STD", "WEIGHTS", "build", "load"]

WEIGHTS = Path(__file__).with_name("tiny_vit.safetensors")
CONFIG: dict[str, Any] = {"img_size": SIDE, "patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 4}


def build() -> VisionTransformer:
    """Return the model without classifier, with random weights from torch's global generator as timm does."""
    return VisionTransformer(num_classes=0, **CONFIG)


def load(weights: Path = WEIGHTS) -> VisionTransformer:
    """Load the pre-trained model, in eval mode.

    Raises:
        SourceMissingError: The weights or their description are not there.
        SourceError: The weights are not those that the description's sha256 names.
    """
    expected = card(weights)["sha256"]
    if not weights.is_file():
        raise SourceMissingError(
            f"Expected the tiny vision transformer's weights at {weights}; got no file. "
            "Install clgym again, or write them with `python -m clgym.worlds.pretrain_vit`."
        )
    found = hashlib.sha256(weights.read_bytes()).hexdigest()
    if found != expected:
        raise SourceError(
            f"Expected {weights} with sha256 {expected}; got {found}. "
            "Install clgym again, or write both files with `python -m clgym.worlds.pretrain_vit`."
        )
    with torch.random.fork_rng(devices=[]):
        model = build()
    model.load_state_dict(load_file(weights))
    model.eval()
    return model
