"""The blocks of a vision or text transformer in the form in which methods reach every linear layer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from timm.layers.attention import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from clgym.errors import SettingError

Encoders = Literal["all", "vision", "text"]
Prefix = tuple[Tensor, Tensor]
SHORT = 64  # tokens; up to here two batched products train faster on CPU than torch's flash attention does

_LINEARS = re.compile(r"(?:.*\.)?(?:resblocks|blocks)\.\d+\.(?:attn\.(?:q|k|v|out)_proj|mlp\.(?:c_fc|c_proj|fc1|fc2))")
# YOLOS of transformers: its blocks, and what others call their linears.
_YOLOS = re.compile(
    r"(vit\.encoder\.layer\.\d+)\."
    r"(attention\.attention\.(?:query|key|value)|attention\.output\.dense|intermediate\.dense|output\.dense)"
)
_YOLOS_PARTS = {
    "attention.attention.query": "q_proj",
    "attention.attention.key": "k_proj",
    "attention.attention.value": "v_proj",
    "attention.output.dense": "out_proj",
    "intermediate.dense": "fc1",
    "output.dense": "fc2",
}


class UnfoldedAttention(nn.Module):
    """Self-attention with four linear layers that adapters can replace.

    It is called like what it replaces: ``nn.MultiheadAttention`` (``open_clip``) or ``timm``'s ``Attention``.

    Attributes:
        prefix: Keys and values ``(B, P, d)`` put before those of the tokens, after their projection (prefix tuning, as
            DualPrompt and CODA-Prompt do); ``None`` adds none.

    Args:
        fused: The layer to replace; its weights are taken over.

    Raises:
        SettingError: ``fused`` has an option that these models do not use.
    """

    prefix: Prefix | None

    def __init__(self, fused: nn.MultiheadAttention | Attention) -> None:
        """Split the joint projection."""
        super().__init__()
        self.pair = isinstance(fused, nn.MultiheadAttention)
        weights, biases, out = _parts_of_torch(fused) if self.pair else _parts_of_timm(fused)
        self.heads = int(fused.num_heads)
        self.q_proj, self.k_proj, self.v_proj = map(_linear, weights, biases)
        self.out_proj = _linear(out.weight, out.bias)
        self.prefix = None
        self.train(fused.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Any:
        """Attend.

        Args:
            query: ``(B, L, d)``.
            key: ``(B, S, d)``; the query if there is none.
            value: ``(B, S, d)``; the key if there is none.
            need_weights: Ignored: the weights are never formed.
            attn_mask: Added to the scores, or True where a pair is forbidden; ``(L, S)`` or
                ``(B * heads, L, S)``. It does not go together with a prefix.
            is_causal: Must be False; ``timm`` passes it.

        Returns:
            ``(B, L, d)``; in the place of ``nn.MultiheadAttention`` with None in the place of the weights.
        """
        del need_weights
        assert not is_causal
        key = query if key is None else key
        value = key if value is None else value
        assert self.prefix is None or attn_mask is None
        q, k, v = self._projected(query, key, value)
        if attn_mask is not None:
            if attn_mask.dtype == torch.bool:
                attn_mask = ~attn_mask
            if attn_mask.dim() == 3:
                attn_mask = attn_mask.view(-1, self.heads, *attn_mask.shape[1:])
        mixed = _attend(q, k, v, attn_mask)  # (B, heads, L, d / heads)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return (out, None) if self.pair else out

    @property
    def same_inputs(self) -> tuple[nn.Module, ...]:
        """The layers that read the same tokens where attention is to oneself."""
        return self.q_proj, self.k_proj, self.v_proj

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Return q, k and v by head: ``(B, heads, L, d / heads)``, and S for L in the last two."""
        if self.prefix is None and key is value:
            if query is key and (joint := side_by_side(query, *self.same_inputs)) is not None:
                return self._by_head(joint, 3)
            if (joint := side_by_side(key, *self.same_inputs[1:])) is not None:
                return self._by_head(self.q_proj(query)) + self._by_head(joint, 2)
        k, v = self.k_proj(key), self.v_proj(value)
        if self.prefix is not None:
            k, v = torch.cat([self.prefix[0].to(k), k], 1), torch.cat([self.prefix[1].to(v), v], 1)
        return [part for x in (self.q_proj(query), k, v) for part in self._by_head(x)]

    def _by_head(self, joint: Tensor, parts: int = 1) -> list[Tensor]:
        """Split projections ``(B, L, parts * d)`` into parts ``(B, heads, L, d / heads)``, as views."""
        each = joint.view(*joint.shape[:2], parts, self.heads, -1).unbind(2)
        return [part.transpose(1, 2) for part in each]


def side_by_side(x: Tensor, *layers: nn.Module) -> Tensor | None:
    """Return what layers say of the same inputs at once, ``(..., len(layers) * out)``.

    Layers of a method have what they share in ``together``; None where they must be asked one by one, since they share
    nothing, cannot serve, or somebody looks on.
    """
    together = getattr(layers[0], "together", None)
    if together is None or any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers):
        return None
    joint: Tensor | None = together.outputs(x, *layers)
    return joint


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Return ``softmax(q k^T / sqrt(d) + mask) v``, ``(B, heads, L, d)``.

    To train on CPU, the weights of a short sequence are formed.
    """
    if q.is_cuda or k.shape[2] > SHORT or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()  # the products would copy too, and q twice
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.mT)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return torch.matmul(scores.softmax(-1), v)


def _parts_of_torch(fused: Any) -> tuple[list[Tensor], list[Tensor | None], nn.Linear]:
    """Return the weights and biases of q, k and v, and the output layer, of ``nn.MultiheadAttention``."""
    if not fused.batch_first or fused.bias_k is not None or fused.add_zero_attn or fused.dropout:
        raise SettingError(
            "Expected attention with batch_first, without bias_k, add_zero_attn and dropout; "
            f"got {fused}. Build the model with open_clip's defaults."
        )
    if fused.in_proj_weight is None:
        weights = [fused.q_proj_weight, fused.k_proj_weight, fused.v_proj_weight]
    else:
        weights = list(fused.in_proj_weight.chunk(3))
    biases = [None] * 3 if fused.in_proj_bias is None else list(fused.in_proj_bias.chunk(3))
    return weights, biases, fused.out_proj


def _parts_of_timm(fused: Any) -> tuple[list[Tensor], list[Tensor | None], nn.Linear]:
    """Return the weights and biases of q, k and v, and the output layer, of ``timm.layers.Attention``."""
    plain = all(isinstance(m, nn.Identity) for m in (fused.q_norm, fused.k_norm, fused.norm))
    if not plain or fused.gate is not None or fused.attn_drop.p or fused.proj_drop.p:
        raise SettingError(
            f"Expected timm attention without norms, gate and dropout; got {fused}. Choose a plain vision transformer."
        )
    biases = [None] * 3 if fused.qkv.bias is None else list(fused.qkv.bias.chunk(3))
    return list(fused.qkv.weight.chunk(3)), biases, fused.proj


def unfold_attention(model: nn.Module) -> nn.Module:
    """Replace every fused attention in place, so that q, k, v and out are layers of their own.

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
            if isinstance(child, nn.MultiheadAttention | Attention):
                setattr(parent, name, UnfoldedAttention(child))
    return model


def lora_targets(model: nn.Module, encoders: Encoders = "all") -> list[str]:
    """Name the six linear layers of every block: q, k, v, out and the two of the feed-forward part.

    In ``open_clip`` these end in ``q_proj k_proj v_proj out_proj c_fc c_proj``; in ``timm`` the last two are ``fc1``
    and ``fc2``; for YOLOS of ``transformers`` see :func:`part_of`.

    Args:
        model: Unfolded; see :func:`unfold_attention`.
        encoders: Of which encoder.

    Raises:
        SettingError: The model is not unfolded or has no such block, or ``encoders`` is unknown or not there.
    """
    _known(encoders)
    names = [name for name, _ in model.named_modules() if _LINEARS.fullmatch(name) or _YOLOS.fullmatch(name)]
    if not any(part_of(name) == "q_proj" for name in names):
        raise SettingError(
            f"Expected a transformer with unfolded attention; got {type(model).__name__} without q_proj. "
            "Call unfold_attention(model) first."
        )
    return of_encoder(model, names, encoders)


def part_of(name: str) -> str:
    """Return what a linear layer is in its block, such as ``"q_proj"``.

    >>> part_of("visual.transformer.resblocks.3.mlp.c_fc"), part_of("vit.encoder.layer.3.output.dense")
    ('c_fc', 'fc2')
    """
    found = _YOLOS.fullmatch(name)
    return _YOLOS_PARTS[found[2]] if found else name.rpartition(".")[2]


def block_of(name: str) -> str:
    """Return the name of the block that a linear layer is in.

    >>> block_of("visual.transformer.resblocks.3.mlp.c_fc"), block_of("vit.encoder.layer.3.output.dense")
    ('visual.transformer.resblocks.3', 'vit.encoder.layer.3')
    """
    found = _YOLOS.fullmatch(name)
    return found[1] if found else name.partition(".mlp.")[0].partition(".attn.")[0]


def of_encoder(model: nn.Module, names: list[str], encoders: Encoders) -> list[str]:
    """Return the names of layers or parameters that belong to one encoder; a plain vision model has no other.

    Raises:
        SettingError: ``encoders`` is unknown, or the model has no such encoder.
    """
    _known(encoders)
    if encoders == "all":
        return names
    alone = not hasattr(model, "visual")
    found = [n for n in names if encoders == ("vision" if alone or n.startswith("visual.") else "text")]
    if not found:
        raise SettingError(
            f"Expected encoders 'all' or 'vision' of {type(model).__name__}, which reads no text; got {encoders!r}. "
            "Choose one of these."
        )
    return found


def _known(encoders: str) -> None:
    if encoders not in get_args(Encoders):
        raise SettingError(f"Expected encoders {get_args(Encoders)}; got {encoders!r}. Choose one of them.")


@dataclass(frozen=True, slots=True)
class Block:
    """One block of a transformer: ``x + attn(norm1(x))``, then ``x + mlp(norm2(x))``.

    Attributes:
        whole: The block itself.
        attention: Its attention.
        norm: The norm before the feed-forward part; its input is the stream after attention.
        mlp: The feed-forward part.
    """

    whole: nn.Module
    attention: UnfoldedAttention
    norm: nn.Module
    mlp: nn.Module


def vision_blocks(model: nn.Module) -> list[Block]:
    """Return the blocks of the image encoder of an ``open_clip`` or ``timm`` model, unfolded, in order.

    Raises:
        SettingError: The model is no vision transformer.
    """
    unfold_attention(model)
    tower: Any = getattr(model, "visual", model)
    clip = hasattr(tower, "transformer")
    found = tower.transformer.resblocks if clip else getattr(tower, "blocks", ())
    if not len(found):
        raise SettingError(
            f"Expected a vision transformer of open_clip or timm; got {type(tower).__name__}. Choose another backbone."
        )
    return [Block(b, b.attn, b.ln_2 if clip else b.norm2, b.mlp) for b in found]


def text_blocks(model: nn.Module) -> list[Block]:
    """Return the blocks of the text encoder of an ``open_clip`` model, unfolded, in order.

    Raises:
        SettingError: The model reads no text, or not with a transformer of its own.
    """
    unfold_attention(model)
    found = getattr(getattr(model, "transformer", None), "resblocks", ())
    if not len(found):
        raise SettingError(
            f"Expected a CLIP of open_clip with a text transformer; got {type(model).__name__}. "
            "Choose another backbone."
        )
    return [Block(b, b.attn, b.ln_2, b.mlp) for b in found]


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Make a linear layer of given weights, without drawing any."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), weight.requires_grad)
    return layer
