"""The tiny detector of the embedded world: ``transformers``' own YOLOS, with weights that ship with the package."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import YolosConfig, YolosForObjectDetection

from clgym.errors import SourceError, SourceMissingError
from clgym.worlds import composed, tiny_vit
from clgym.worlds.tiny_clip import card

SLOTS = 6  # the first four belong to the quarters of a scene; see clgym.worlds.pretrain_yolos
WEIGHTS = Path(__file__).with_name("tiny_yolos.safetensors")
CONFIG: dict[str, Any] = {
    "image_size": [composed.SCENE, composed.SCENE],
    "patch_size": 8,
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 384,
    "layer_norm_eps": 1e-6,
    "num_detection_tokens": SLOTS,
    "use_mid_position_embeddings": False,
}

# Names of a block's parts here and in the tiny vision transformer, which has query, key and value in one.
_BLOCK = {
    "layernorm_before": "norm1",
    "attention.output.dense": "attn.proj",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}


def build() -> YolosForObjectDetection:
    """Return the model with random weights from torch's global generator."""
    names = dict(enumerate(composed.CLASSES))
    return YolosForObjectDetection(YolosConfig(**CONFIG, id2label=names, label2id={v: k for k, v in names.items()}))


def start_from_vit(model: YolosForObjectDetection) -> None:
    """Copy the tiny vision transformer into the model, and draw the heads wide enough to learn.

    Positions of patches are those of the smaller pictures, stretched. A slot starts as the class token does, at its
    position; those of the first four slots are moved by the mean position of their quarter. The library's own small
    start of the three-layer heads lets next to no gradient through.
    """
    source = tiny_vit.load().state_dict()
    state: dict[str, Tensor] = {}
    for kind in ("weight", "bias"):
        state[f"vit.embeddings.patch_embeddings.projection.{kind}"] = source[f"patch_embed.proj.{kind}"]
        state[f"vit.layernorm.{kind}"] = source[f"norm.{kind}"]
        for number in range(CONFIG["num_hidden_layers"]):
            here, there = f"vit.encoder.layer.{number}", f"blocks.{number}"
            joint = source[f"{there}.attn.qkv.{kind}"].chunk(3)
            for name, part in zip(("query", "key", "value"), joint, strict=True):
                state[f"{here}.attention.attention.{name}.{kind}"] = part
            state |= {f"{here}.{ours}.{kind}": source[f"{there}.{theirs}.{kind}"] for ours, theirs in _BLOCK.items()}
    start, token = source["pos_embed"], source["cls_token"]
    side = composed.SCENE // CONFIG["patch_size"]
    grid = start[:, 1:].unflatten(1, (side // 2, side // 2)).permute(0, 3, 1, 2)
    grid = functional.interpolate(grid, size=(side, side), mode="bicubic").permute(0, 2, 3, 1)[0]  # (side, side, d)
    half = side // 2
    slots = start[0, :1] + 0.02 * torch.randn(SLOTS, start.shape[2])
    for quarter in range(4):
        y, x = (half * part for part in divmod(quarter, 2))
        slots[quarter] += grid[y : y + half, x : x + half].mean((0, 1))
    state["vit.embeddings.cls_token"] = token
    state["vit.embeddings.detection_tokens"] = token.expand(1, SLOTS, -1)
    state["vit.embeddings.position_embeddings"] = torch.cat([start[0, :1], grid.flatten(0, 1), slots])[None]
    unexpected = model.load_state_dict(state, strict=False).unexpected_keys
    assert not unexpected, unexpected
    for head in (model.class_labels_classifier, model.bbox_predictor):
        layers: Any = head.layers
        for layer in layers:
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)


def load(weights: Path = WEIGHTS) -> YolosForObjectDetection:
    """Load the pre-trained model, in eval mode.

    Raises:
        SourceMissingError: The weights or their description are not there.
        SourceError: The weights are not those that the description's sha256 names.
    """
    expected = card(weights)["sha256"]
    if not weights.is_file():
        raise SourceMissingError(
            f"Expected the tiny detector's weights at {weights}; got no file. "
            "Install clgym again, or write them with `python -m clgym.worlds.pretrain_yolos`."
        )
    found = hashlib.sha256(weights.read_bytes()).hexdigest()
    if found != expected:
        raise SourceError(
            f"Expected {weights} with sha256 {expected}; got {found}. "
            "Install clgym again, or write both files with `python -m clgym.worlds.pretrain_yolos`."
        )
    with torch.random.fork_rng(devices=[]):
        model = build()
    model.load_state_dict(load_file(weights))
    model.train(False)
    return model
