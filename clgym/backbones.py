"""Frozen pre-trained models: loading, encoding, and the form in which adapters reach every linear layer."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clgym.errors import NotRegisteredError, SettingError, SourceMissingError

Encoders = Literal["all", "vision", "text"]

EMBEDDED = "embedded/tiny-clip"
_LINEARS = re.compile(r"(?:.*\.)?resblocks\.\d+\.(?:attn\.(?:q|k|v|out)_proj|mlp\.c_(?:fc|proj))")
_PROMPTS_AT_ONCE = 1024


class ClipBackbone(nn.Module):
    """A frozen CLIP with its tokenizer and pixel statistics; gradients flow through it to adapters.

    Args:
        name: As :func:`load_clip` knows it.
        model: An ``open_clip`` model; frozen and put in eval mode.
        tokenizer: Maps a list of N texts to token numbers ``(N, context)``.
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
        tokenizer: Any,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        weights: Path | None = None,
    ) -> None:
        """Freeze the model."""
        super().__init__()
        open_clip_model: Any = model  # it has no types, and its attributes are not nn.Module's
        at = open_clip_model.logit_scale.device
        side = open_clip_model.visual.image_size
        self.image_size = int(side[0] if isinstance(side, tuple) else side)
        self.embed_dim = int(open_clip_model.visual.output_dim)
        self.logit_scale = float(open_clip_model.logit_scale.detach())
        self.name, self.tokenizer, self.weights = name, tokenizer, weights
        self.model = model.requires_grad_(False).eval()
        self.register_buffer("mean", torch.tensor(mean, device=at).view(3, 1, 1) * 255, persistent=False)
        inverse = 1 / (torch.tensor(std, device=at).view(3, 1, 1) * 255)
        self.register_buffer("inverse", inverse, persistent=False)
        self._sha256: str | None = None
        self._tokens: dict[str, Tensor] = {}
        self._last: tuple[tuple[str, ...], Tensor] | None = None

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

    def encode_images(self, images: Tensor | np.ndarray[Any, Any]) -> Tensor:
        """Encode pictures.

        Args:
            images: uint8 ``(B, image_size, image_size, 3)``, on any device.

        Returns:
            ``(B, embed_dim)``, fp32, of length 1.

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
        features: Tensor = self.model.encode_image(pixels.sub_(self.mean).mul_(self.inverse))
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


class UnfoldedAttention(nn.Module):
    """Attention with four linear layers that adapters can replace, called like ``nn.MultiheadAttention``.

    Args:
        fused: The layer to replace; its weights are taken over.

    Raises:
        SettingError: ``fused`` has an option that CLIP does not use.
    """

    def __init__(self, fused: nn.MultiheadAttention) -> None:
        """Split the joint projection."""
        super().__init__()
        if not fused.batch_first or fused.bias_k is not None or fused.add_zero_attn or fused.dropout:
            raise SettingError(
                "Expected attention with batch_first, without bias_k, add_zero_attn and dropout; "
                f"got {fused}. Build the model with open_clip's defaults."
            )
        self.heads = fused.num_heads
        if fused.in_proj_weight is None:
            weights = [fused.q_proj_weight, fused.k_proj_weight, fused.v_proj_weight]
        else:
            weights = list(fused.in_proj_weight.chunk(3))
        biases = [None] * 3 if fused.in_proj_bias is None else list(fused.in_proj_bias.chunk(3))
        self.q_proj, self.k_proj, self.v_proj = map(_linear, weights, biases)
        self.out_proj = _linear(fused.out_proj.weight, fused.out_proj.bias)
        self.train(fused.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Attend.

        Args:
            query: ``(B, L, d)``.
            key: ``(B, S, d)``.
            value: ``(B, S, d)``.
            need_weights: Ignored: the weights are never formed.
            attn_mask: Added to the scores, or True where a pair is forbidden; ``(L, S)`` or
                ``(B * heads, L, S)``.

        Returns:
            ``(B, L, d)``, and None in the place of the weights.
        """
        del need_weights
        heads = [self.q_proj(query), self.k_proj(key), self.v_proj(value)]
        q, k, v = (x.view(*x.shape[:-1], self.heads, -1).transpose(1, 2) for x in heads)
        if attn_mask is not None:
            if attn_mask.dtype == torch.bool:
                attn_mask = ~attn_mask
            if attn_mask.dim() == 3:
                attn_mask = attn_mask.view(-1, self.heads, *attn_mask.shape[1:])
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)  # (B, heads, L, d / heads)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out, None


def unfold_attention(model: nn.Module) -> nn.Module:
    """Replace every ``nn.MultiheadAttention`` in place, so that q, k, v and out are layers of their own.

    Outputs stay what they were, up to rounding. A model that is unfolded already stays as it is.

    Returns:
        ``model``.

    Example:
        >>> block = nn.ModuleDict({"attn": nn.MultiheadAttention(8, 2, batch_first=True)})
        >>> [name for name, _ in unfold_attention(block).attn.named_children()]
        ['q_proj', 'k_proj', 'v_proj', 'out_proj']
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.MultiheadAttention):
                setattr(parent, name, UnfoldedAttention(child))
    return model


def lora_targets(model: nn.Module, encoders: Encoders = "all") -> list[str]:
    """Name the six linear layers of every block: ``q_proj k_proj v_proj out_proj c_fc c_proj``.

    Args:
        model: Unfolded; see :func:`unfold_attention`.
        encoders: Of which encoder.

    Raises:
        SettingError: The model is not unfolded or has no such block, or ``encoders`` is unknown.
    """
    if encoders not in get_args(Encoders):
        raise SettingError(f"Expected encoders {get_args(Encoders)}; got {encoders!r}. Choose one of them.")
    names = [name for name, _ in model.named_modules() if _LINEARS.fullmatch(name)]
    if not any(name.endswith("q_proj") for name in names):
        raise SettingError(
            f"Expected a CLIP with unfolded attention; got {type(model).__name__} without q_proj. "
            "Call unfold_attention(model) first."
        )
    return [name for name in names if encoders in ("all", "vision" if "visual." in f".{name}" else "text")]


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
    if name == EMBEDDED:
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
    if name == EMBEDDED:
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
        known = [EMBEDDED, *("/".join(pair) for pair in open_clip.list_pretrained())]
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

    Under a causal mask these change nothing; without them a batch of class names costs a fraction.
    """
    if not _reads_last_number(model):
        return cast(Tensor, model.encode_text(tokens))
    length = tokens.shape[1]
    dtype = model.transformer.get_cast_dtype()
    x = model.token_embedding(tokens).to(dtype) + model.positional_embedding[:length].to(dtype)
    x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])  # (N, length, width)
    ends = x[torch.arange(len(x), device=x.device), tokens.argmax(-1)]
    ends = model.ln_final(ends)
    projection = model.text_projection
    return cast(Tensor, projection(ends) if isinstance(projection, nn.Linear) else ends @ projection)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Make a linear layer of given weights, without drawing any."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), weight.requires_grad)
    return layer


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_state(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
