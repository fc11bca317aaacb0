"""Frozen pre-trained models by name: CLIP, which reads texts too, plain vision transformers and detectors."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clgym.agent import EMBEDDED_CLIP, EMBEDDED_YOLOS, TRANSFORMERS, reads_text
from clgym.detector import Detector, download_detector, load_detector
from clgym.errors import NotRegisteredError, SourceMissingError
from clgym.frozen import FrozenModel
from clgym.reading import encode_class_token, reads_class_token, reads_one_token, through
from clgym.vit import ViTBackbone, download_vit, load_vit

Backbone: TypeAlias = "ClipBackbone | ViTBackbone | Detector"
_PROMPTS_AT_ONCE = 1024


class ClipBackbone(FrozenModel):
    """A frozen CLIP with its tokenizer and pixel statistics.

    Args:
        name: As :func:`load_clip` knows it.
        model: An ``open_clip`` model; frozen and put in eval mode.
        tokenizer: Maps a list of N texts to token numbers ``(N, context)``.
        mean: Of each colour channel, for pixels in [0, 1].
        std: Of each colour channel, for pixels in [0, 1].
        weights: The file that the model came from, for the fingerprint.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        tokenizer: Any,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        weights: Path | None = None,
    ) -> None:
        """Freeze the model."""
        open_clip_model: Any = model  # it has no types, and its attributes are not nn.Module's
        side = open_clip_model.visual.image_size
        super().__init__(
            name,
            model,
            image_size=int(side[0] if isinstance(side, tuple) else side),
            embed_dim=int(open_clip_model.visual.output_dim),
            mean=mean,
            std=std,
            weights=weights,
        )
        self.logit_scale = float(open_clip_model.logit_scale.detach())
        self.tokenizer = tokenizer
        self._tokens: dict[str, Tensor] = {}
        self._last: tuple[tuple[str, ...], Tensor] | None = None

    def encode_images(self, images: Tensor | np.ndarray[Any, Any]) -> Tensor:
        """Encode pictures.

        Args:
            images: uint8 ``(B, image_size, image_size, 3)``, on any device.

        Returns:
            ``(B, embed_dim)``, fp32, of length 1.

        Raises:
            SettingError: The pictures are of another type or shape.
        """
        pixels, tower = self.pixels(images), getattr(self.model, "visual", None)
        brief = tower is not None and reads_class_token(tower)
        features: Tensor = encode_class_token(tower, pixels) if brief else self.model.encode_image(pixels)
        return F.normalize(features.float(), dim=-1)

    def encode_texts(self, prompts: Sequence[str]) -> Tensor:
        """Encode texts; each text is tokenized once in the life of the backbone.

        Returns:
            ``(len(prompts), embed_dim)``, fp32, of length 1.
        """
        tokens = self._tokenize(tuple(prompts))
        parts = [_encode_tokens(self.model, part) for part in torch.split(tokens, _PROMPTS_AT_ONCE)]
        features = parts[0] if len(parts) == 1 else torch.cat(parts)
        return F.normalize(features.float(), dim=-1)

    def class_features(self, prompts: tuple[tuple[str, ...], ...], ensemble: bool) -> Tensor:
        """Encode classes, each of which has one or more prompts.

        Args:
            prompts: The prompts of each class.
            ensemble: Average the normalised features of all prompts and normalise again, as CLIP does
                (Radford et al. 2021, arXiv:2103.00020, section 3.1.4); else take the first prompt only.

        Returns:
            ``(classes, embed_dim)``, fp32, of length 1.
        """
        if not ensemble:
            return self.encode_texts([texts[0] for texts in prompts])
        features = self.encode_texts([text for texts in prompts for text in texts])
        sizes = [len(texts) for texts in prompts]
        means = [part.mean(0) for part in torch.split(features, sizes)]
        return F.normalize(torch.stack(means), dim=-1)

    def _tokenize(self, prompts: tuple[str, ...]) -> Tensor:
        """Return tokens ``(N, longest)`` on the device, cut where :func:`_encode_tokens` allows it."""
        if self._last is None or self._last[0] != prompts or self._last[1].device != self.device:
            new = [text for text in dict.fromkeys(prompts) if text not in self._tokens]
            if new:
                self._tokens.update(zip(new, self.tokenizer(new), strict=True))
            tokens = torch.stack([self._tokens[text] for text in prompts])
            if _reads_last_number(self.model):
                tokens = tokens[:, : int(tokens.argmax(-1).max()) + 1]
            self._last = prompts, tokens.to(self.device)
        return self._last[1]


def load_backbone(name: str, device: str | torch.device = "auto") -> Backbone:
    """Load a pre-trained model from this machine, never from the network.

    Args:
        name: What :func:`load_clip`, :func:`clgym.vit.load_vit` or :func:`clgym.detector.load_detector` knows.
        device: ``"auto"`` takes the GPU if there is one.

    Raises:
        NotRegisteredError: There is no such model.
        SourceMissingError: The weights are not on this machine.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if detects(name):
        return load_detector(name, device)
    return load_clip(name, device) if reads_text(name) else load_vit(name, device)


def detects(name: str) -> bool:
    """Return whether a backbone is an object detector, from its name alone."""
    return name == EMBEDDED_YOLOS or name.startswith(TRANSFORMERS)


def load_clip(name: str, device: str | torch.device = "auto") -> ClipBackbone:
    """Load a pre-trained CLIP from this machine, never from the network.

    Args:
        name: ``"embedded/tiny-clip"``, whose weights ship with clgym, or ``"<architecture>/<tag>"`` of
            open_clip, like ``"ViT-B-16/openai"``.
        device: ``"auto"`` takes the GPU if there is one.

    Raises:
        NotRegisteredError: There is no such model.
        SourceMissingError: The weights are not on this machine.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if name == EMBEDDED_CLIP:
        from clgym.worlds import tiny_clip

        tiny, words = tiny_clip.load()
        backbone = ClipBackbone(name, tiny, words, mean=tiny_clip.MEAN, std=tiny_clip.STD, weights=tiny_clip.WEIGHTS)
        return backbone.to(device)
    import open_clip

    architecture, config = _open_clip_config(name)
    weights = _cached(config)
    if weights is None:
        raise SourceMissingError(
            f"Expected the weights of {name} on this machine; got none. "
            "Fetch them with `clgym download <scenario>`, naming the scenario that asks for them."
        )
    with torch.random.fork_rng(devices=[]):
        # By path, nothing is fetched; but only the tag knows the activation, and open_clip merely warns.
        model = open_clip.create_model(
            architecture, pretrained=str(weights), force_quick_gelu=config.get("quick_gelu", False)
        )
    tokenizer = open_clip.get_tokenizer(architecture)
    backbone = ClipBackbone(name, model, tokenizer, mean=config["mean"], std=config["std"], weights=weights)
    return backbone.to(device)


def download_backbone(name: str) -> Path:
    """Fetch the weights of a backbone, if they are not on this machine yet, and return their file.

    Raises:
        NotRegisteredError: There is no such model.
    """
    if detects(name):
        return download_detector(name)
    if not reads_text(name):
        return download_vit(name)
    if name == EMBEDDED_CLIP:
        from clgym.worlds import tiny_clip

        return tiny_clip.WEIGHTS
    from open_clip.pretrained import download_pretrained

    _, config = _open_clip_config(name)
    return _cached(config) or Path(download_pretrained(config))


def _open_clip_config(name: str) -> tuple[str, dict[str, Any]]:
    """Return the architecture and what open_clip knows about the weights."""
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    architecture, _, tag = name.partition("/")
    config = get_pretrained_cfg(architecture, tag)
    if not config:
        known = [EMBEDDED_CLIP, *("/".join(pair) for pair in open_clip.list_pretrained())]
        raise NotRegisteredError.among("backbone", name, get_close_matches(name, known, n=5, cutoff=0.0))
    return architecture, config


def _cached(config: dict[str, Any]) -> Path | None:
    """Return the file that open_clip would load, if it is on this machine."""
    from huggingface_hub import try_to_load_from_cache

    repository, _, file = config.get("hf_hub", "").rpartition("/")
    for candidate in [file] if file else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]:
        found = try_to_load_from_cache(repository, candidate) if repository else None
        if isinstance(found, str):
            return Path(found)
    direct = Path("~/.cache/clip", Path(config.get("url", "")).name).expanduser()
    return direct if direct.is_file() else None


def _reads_last_number(model: Any) -> bool:
    """Whether a text's feature is read off its highest token, and no token sees a later one."""
    if getattr(model, "text_pool_type", None) != "argmax":
        return False
    return model.attn_mask is not None and model.text_projection is not None


def _encode_tokens(model: Any, tokens: Tensor) -> Tensor:
    """Do what ``model.encode_text`` does, without the tokens after the last end of text.

    Under a causal mask these change nothing; without them a batch of class names costs a fraction. The last block
    computes the ends alone, see :mod:`clgym.reading`.
    """
    if not _reads_last_number(model):
        return cast(Tensor, model.encode_text(tokens))
    length = tokens.shape[1]
    dtype = model.transformer.get_cast_dtype()
    x = model.token_embedding(tokens).to(dtype) + model.positional_embedding[:length].to(dtype)
    at, mask = tokens.argmax(-1), model.attn_mask[:length, :length]
    if reads_one_token(model.transformer):
        ends = through(model.transformer.resblocks, x, at, mask)
    else:
        ends = model.transformer(x, attn_mask=mask)[torch.arange(len(x), device=x.device), at]
    ends = model.ln_final(ends)  # (N, width)
    projection = model.text_projection
    return cast(Tensor, projection(ends) if isinstance(projection, nn.Linear) else ends @ projection)
