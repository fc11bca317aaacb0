"""Adapters as files of the ``peft`` package."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from clgym.errors import SourceError, SourceMissingError
from clgym.lora import LoRASet, differences

_PEFT_WEIGHTS, _PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"


def export_peft(lora_set: LoRASet, folder: str | Path, base_model_name: str) -> None:
    """Write the branches as an adapter of the ``peft`` package, which loads onto the same, unfolded model.

    The gate is folded into B. Frozen weights that were merged into are not part of such a file.

    Args:
        lora_set: What to write.
        folder: Made if missing.
        base_model_name: Noted as the model of the adapter.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, layer in lora_set.layers:
        tensors[f"base_model.model.{name}.lora_A.weight"] = layer.A.detach().clone()
        tensors[f"base_model.model.{name}.lora_B.weight"] = layer.gated().detach().t().contiguous()
    save_file(tensors, folder / _PEFT_WEIGHTS, metadata={"format": "pt"})
    first = lora_set.layers[0][1]
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": base_model_name,
        "r": first.r,
        "lora_alpha": first.scale * first.r,
        "inference_mode": True,
        # peft matches listed names by their endings, which takes visual.transformer for transformer.
        "target_modules": "|".join(re.escape(name) for name, _ in lora_set.layers),
    }
    (folder / _PEFT_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def import_peft(folder: str | Path, lora_set: LoRASet) -> None:
    """Read an adapter of the ``peft`` package into the branches; gates are set to one.

    Args:
        folder: Holds ``adapter_model.safetensors`` and ``adapter_config.json``.
        lora_set: Adapted on the same layers with the same rank; any ``alpha``.

    Raises:
        SourceMissingError: A file is not there.
        SourceError: The adapter is of another kind, or of other layers or ranks; nothing is changed then.
    """
    folder = Path(folder)
    for file in (_PEFT_WEIGHTS, _PEFT_CONFIG):
        if not (folder / file).is_file():
            raise SourceMissingError(
                f"Expected {file} in {folder}; got no such file. Write it with peft's save_pretrained."
            )
    config: dict[str, Any] = json.loads((folder / _PEFT_CONFIG).read_text(encoding="utf-8"))
    refused = ("use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out")
    variants = [key for key in refused if config.get(key)]
    if config.get("peft_type") != "LORA" or variants:
        raise SourceError(
            f"Expected a plain LoRA adapter in {folder}; got peft_type={config.get('peft_type')!r} with "
            f"{', '.join(variants) or 'no options'}. Export one rank and one alpha, without DoRA."
        )
    tensors = load_file(folder / _PEFT_WEIGHTS)
    want: dict[str, Tensor] = {}
    for name, layer in lora_set.layers:
        want[f"base_model.model.{name}.lora_A.weight"] = layer.A
        want[f"base_model.model.{name}.lora_B.weight"] = layer.Bt.t()
    if odd := differences(want, tensors):
        raise SourceError(
            f"Expected an adapter of {len(lora_set)} adapted layers in {folder}; got other layers or ranks: "
            f"{odd}. Adapt the layers that the file names, with its rank."
        )
    scale = config["lora_alpha"] / (config["r"] ** 0.5 if config.get("use_rslora") else config["r"])
    for name, layer in lora_set.layers:
        layer.A.copy_(tensors[f"base_model.model.{name}.lora_A.weight"])
        layer.Bt.copy_(tensors[f"base_model.model.{name}.lora_B.weight"].t() * (scale / layer.scale))
        if layer.gate is not None:
            layer.gate.fill_(1.0)
