"""Frozen pre-trained object detectors by name: YOLOS of ``transformers``, a plain vision transformer with slots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clgym.agent import EMBEDDED_YOLOS, TRANSFORMERS
from clgym.errors import NotRegisteredError, SourceMissingError
from clgym.frozen import FrozenModel

HUB = ("transformers/hustvl/yolos-tiny", "transformers/hustvl/yolos-small")
HUB_SIDE = 512  # pixels; the authors train on sides of 480 to 800 with the shape kept
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_FILES = ("config.json", "model.safetensors")


class Detector(FrozenModel):
    """A frozen YOLOS (arXiv:2106.00666); classes are rows of a head that a learner has beside it.

    Args:
        name: As :func:`load_detector` knows it.
        model: ``YolosForObjectDetection``; frozen and put in eval mode.
        image_size: Height and width of its images, pixels.
        mean: Of each colour channel, for pixels in [0, 1].
        std: Of each colour channel, for pixels in [0, 1].
        weights: The file that the model came from, for the fingerprint.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        *,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        weights: Path | None = None,
    ) -> None:
        """Freeze the model."""
        config: Any = model.config
        super().__init__(
            name, model, image_size=image_size, embed_dim=config.hidden_size, mean=mean, std=std, weights=weights
        )
        self.slots = int(config.num_detection_tokens)
        self.classes: tuple[str, ...] = tuple(config.id2label[c] for c in range(config.num_labels))

    def encode_images(self, images: Tensor | np.ndarray[Any, Any]) -> Tensor:
        """Look for objects.

        Args:
            images: uint8 ``(B, image_size, image_size, 3)``, on any device.

        Returns:
            ``(B, slots, embed_dim + 4)``, fp32: of each slot what the last layer of the model's classifier would read,
            and a box: centre x, centre y, width and height as shares of the image, in [0, 1].

        Raises:
            SettingError: The pictures are of another type or shape.
        """
        found = self.model.vit(self.pixels(images)).last_hidden_state[:, -self.slots :]
        features = found
        for layer in self.model.class_labels_classifier.layers[:-1]:
            features = F.relu(layer(features))
        return torch.cat([features.float(), self.model.bbox_predictor(found).float().sigmoid()], dim=-1)

    def rows(self) -> Tensor:
        """Return the last layer of the model's classifier, weights and bias, ``(classes + 1, embed_dim + 1)``.

        The last row says that a slot holds nothing.
        """
        last = self.model.class_labels_classifier.layers[-1]
        return torch.cat([last.weight, last.bias[:, None]], dim=1).detach().clone()


def load_detector(name: str, device: str | torch.device = "cpu") -> Detector:
    """Load a pre-trained detector from this machine, never from the network.

    Args:
        name: ``"embedded/tiny-yolos"``, whose weights ship with clgym, or one of :data:`HUB`.
        device: Where to.

    Raises:
        NotRegisteredError: There is no such model.
        SourceMissingError: The weights are not on this machine.
    """
    if name == EMBEDDED_YOLOS:
        from clgym.worlds import composed, tiny_clip, tiny_yolos

        tiny = Detector(
            name,
            tiny_yolos.load(),
            image_size=composed.SCENE,
            mean=tiny_clip.MEAN,
            std=tiny_clip.STD,
            weights=tiny_yolos.WEIGHTS,
        )
        return tiny.to(device)
    from huggingface_hub import try_to_load_from_cache
    from transformers import YolosForObjectDetection

    repo = _repo(name)
    found = {file: try_to_load_from_cache(repo, file) for file in _FILES}
    missing = [file for file, path in found.items() if not isinstance(path, str)]
    if missing:
        raise SourceMissingError(
            f"Expected the weights of {name} on this machine; got no {' and no '.join(missing)}. "
            "Fetch them with `clgym download <scenario>`, naming the scenario that asks for them."
        )
    weights = Path(str(found["model.safetensors"]))
    with torch.random.fork_rng(devices=[]):
        model = YolosForObjectDetection.from_pretrained(weights.parent, local_files_only=True)
    return Detector(name, model, image_size=HUB_SIDE, mean=IMAGENET_MEAN, std=IMAGENET_STD, weights=weights).to(device)


def download_detector(name: str) -> Path:
    """Fetch the files of a detector that are not on this machine yet, and return that of its weights.

    Raises:
        NotRegisteredError: There is no such model.
    """
    if name == EMBEDDED_YOLOS:
        from clgym.worlds import tiny_yolos

        return tiny_yolos.WEIGHTS
    from huggingface_hub import hf_hub_download

    return [Path(hf_hub_download(_repo(name), file)) for file in _FILES][-1]


def _repo(name: str) -> str:
    if name not in HUB:
        raise NotRegisteredError.among("backbone", name, (EMBEDDED_YOLOS, *HUB))
    return name.removeprefix(TRANSFORMERS)
