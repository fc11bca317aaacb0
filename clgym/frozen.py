"""What all frozen pre-trained image models share: pixels in, a fingerprint of the weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clgym.errors import SettingError


class FrozenModel(nn.Module):
    """A pre-trained image model with its pixel statistics; gradients flow through it to adapters.

    Args:
        name: Name of the backbone.
        model: Frozen and put in eval mode; already on its device.
        image_size: Height and width of its images, pixels.
        embed_dim: Length of its features.
        mean: Of each colour channel, for pixels in [0, 1].
        std: Of each colour channel, for pixels in [0, 1].
        weights: The file that the model came from, for :attr:`sha256`.
    """

    model: Any
    mean: Tensor
    inverse: Tensor

    def __init__(
        self,
        name: str,
        model: nn.Module,
        *,
        image_size: int,
        embed_dim: int,
        mean: Sequence[float],
        std: Sequence[float],
        weights: Path | None = None,
    ) -> None:
        """Freeze the model."""
        super().__init__()
        self.name, self.weights = name, weights
        self.image_size, self.embed_dim = image_size, embed_dim
        self.model = model.requires_grad_(False).eval()
        at = next(model.parameters()).device
        self.register_buffer("mean", torch.tensor(mean, device=at).view(3, 1, 1) * 255, persistent=False)
        inverse = 1 / (torch.tensor(std, device=at).view(3, 1, 1) * 255)
        self.register_buffer("inverse", inverse, persistent=False)
        self._sha256: str | None = None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.mean.device

    @property
    def sha256(self) -> str:
        """Fingerprint of the pre-trained weights: of their file, else of the state at the first use.

        The file's does not change with training; ask for the state's before the model is adapted.
        """
        if self._sha256 is None:
            self._sha256 = _hash_file(self.weights) if self.weights else _hash_state(self.model)
        return self._sha256

    def pixels(self, images: Tensor | np.ndarray[Any, Any]) -> Tensor:
        """Turn pictures into what the model takes.

        Args:
            images: uint8 ``(B, image_size, image_size, 3)``, on any device.

        Returns:
            ``(B, 3, image_size, image_size)``, floating, on the model's device, of the model's mean and scale.

        Raises:
            SettingError: The pictures are of another type or shape.
        """
        raw = torch.from_numpy(np.ascontiguousarray(images)) if isinstance(images, np.ndarray) else images
        side = self.image_size
        if raw.dtype != torch.uint8 or raw.shape[1:] != (side, side, 3):
            raise SettingError(
                f"Expected uint8 pictures of shape (B, {side}, {side}, 3); got {raw.dtype} of shape "
                f"{tuple(raw.shape)}. Resize them in the source, and keep the channels last."
            )
        pixels = raw.to(self.device, non_blocking=True).permute(0, 3, 1, 2).to(self.mean.dtype)
        return pixels.sub_(self.mean).mul_(self.inverse)


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_state(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
