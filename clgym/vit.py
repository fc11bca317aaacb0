"""Frozen vision transformers without a text encoder: `timm` models, and the tiny one of the embedded world."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clgym.agent import EMBEDDED_VIT, TIMM
from clgym.errors import NotRegisteredError, SourceMissingError
from clgym.frozen import FrozenModel
from clgym.reading import encode_class_token, reads_class_token


class ViTBackbone(FrozenModel):
    """A frozen ``timm`` vision transformer; classes are rows of a head that a learner grows beside it.

    Args:
        name: As :func:`load_vit` knows it.
        model: A ``timm`` model without classifier (``num_classes=0``); frozen and put in eval mode.
        mean: Of each colour channel, for pixels in [0, 1].
        std: Of each colour channel, for pixels in [0, 1].
        weights: The file that the model came from, for the fingerprint.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        *,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        weights: Path | None = None,
    ) -> None:
        """Freeze the model."""
        timm_model: Any = model  # it has no types, and its attributes are not nn.Module's
        side = timm_model.patch_embed.img_size
        super().__init__(
            name,
            model,
            image_size=int(side[0]),
            embed_dim=int(timm_model.num_features),
            mean=mean,
            std=std,
            weights=weights,
        )

    def encode_images(self, images: Tensor | np.ndarray[Any, Any]) -> Tensor:
        """Encode pictures.

        Args:
            images: uint8 ``(B, image_size, image_size, 3)``, on any device.

        Returns:
            ``(B, embed_dim)``, fp32: what the model's classifier would read; of any length.

        Raises:
            SettingError: The pictures are of another type or shape.
        """
        pixels = self.pixels(images)
        brief = reads_class_token(self.model)
        features: Tensor = encode_class_token(self.model, pixels) if brief else self.model(pixels)
        return features.float()


def load_vit(name: str, device: str | torch.device) -> ViTBackbone:
    """Load a pre-trained vision transformer from this machine, never from the network.

    Pixels of ``timm`` models are in [0, 1] without mean and deviation, as L2P, CODA-Prompt, PILOT and SEMA feed them,
    and not as the models were trained.

    Args:
        name: ``"embedded/tiny-vit"``, whose weights ship with clgym, or ``"timm/<model>.<tag>"`` such as
            ``"timm/vit_base_patch16_224.augreg_in21k_ft_in1k"``. Always name the tag: ``timm`` renames its defaults.
        device: Where to.

    Raises:
        NotRegisteredError: There is no such model.
        SourceMissingError: The weights are not on this machine.
    """
    if name == EMBEDDED_VIT:
        from clgym.worlds import tiny_vit

        tiny = tiny_vit.load()
        backbone = ViTBackbone(name, tiny, mean=tiny_vit.MEAN, std=tiny_vit.STD, weights=tiny_vit.WEIGHTS)
        return backbone.to(device)
    import timm

    config = _timm_config(name)
    weights = _cached(config)
    if weights is None:
        raise SourceMissingError(
            f"Expected the weights of {name} on this machine; got none. "
            "Fetch them with `clgym download <scenario>`, naming the scenario that asks for them."
        )
    with torch.random.fork_rng(devices=[]):
        model = timm.create_model(
            name.removeprefix(TIMM), pretrained=True, pretrained_cfg_overlay={"file": str(weights)}, num_classes=0
        )
    return ViTBackbone(name, model, weights=weights).to(device)


def download_vit(name: str) -> Path:
    """Fetch the weights of a vision transformer, if they are not on this machine yet, and return their file.

    Raises:
        NotRegisteredError: There is no such model.
    """
    if name == EMBEDDED_VIT:
        from clgym.worlds import tiny_vit

        return tiny_vit.WEIGHTS
    from huggingface_hub import hf_hub_download

    config = _timm_config(name)
    return _cached(config) or Path(hf_hub_download(config.hf_hub_id, "model.safetensors"))


def _timm_config(name: str) -> Any:
    """Return what timm knows about the weights."""
    import timm

    tag = name.removeprefix(TIMM)
    config = timm.get_pretrained_cfg(tag) if tag in timm.list_models(pretrained=True) else None
    if config is None or "." not in tag:
        known = [EMBEDDED_VIT, *(TIMM + model for model in timm.list_models("vit*", pretrained=True))]
        raise NotRegisteredError.among("backbone", name, get_close_matches(name, known, n=5, cutoff=0.0))
    return config


def _cached(config: Any) -> Path | None:
    """Return the file that timm would load, if it is on this machine."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(config.hf_hub_id, "model.safetensors")
    return Path(found) if isinstance(found, str) else None
