"""The last block of a transformer, for the one token that a feature is read off.

A feature of these models is what one token becomes: the class token of a picture, the end of a text. In the last block
the others matter as keys and values alone, so that their queries, outputs and feed-forward parts need not be computed:
of a block's twelve ``d x d`` products per token ten are left out, and no gradient is lost, since theirs is zero.
"""

from __future__ import annotations

from typing import Any

import torch
from open_clip.transformer import ResidualAttentionBlock
from open_clip.transformer import VisionTransformer as ClipViT
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import Tensor, nn

from clgym.attention import UnfoldedAttention


def reads_class_token(tower: Any) -> bool:
    """Whether an image encoder of ``open_clip`` or ``timm`` reads its feature off the class token, and nobody looks on.

    Whoever hooks into the last block or into the norm behind it sees every token, since then all are computed.
    """
    if type(tower) is ClipViT:
        pooled = tower.pool_type == "tok" and tower.attn_pool is None and not tower.output_tokens
        return pooled and reads_one_token(tower.transformer) and not _watched(tower.ln_post)
    if type(tower) is TimmViT:
        pooled = tower.global_pool == "token" and tower.attn_pool is None
        last = tower.blocks[-1]
        known = type(last) is TimmBlock and isinstance(last.attn, UnfoldedAttention)
        return pooled and known and not tower.grad_checkpointing and not _watched(last) and not _watched(tower.norm)
    return False


def encode_class_token(tower: Any, pixels: Tensor) -> Tensor:
    """Do what ``tower(pixels)`` does, where :func:`reads_class_token`.

    Args:
        tower: Of ``open_clip`` or ``timm``, in eval mode.
        pixels: ``(B, 3, H, W)``.

    Returns:
        ``(B, embed_dim)``, up to rounding.
    """
    first = torch.zeros(len(pixels), dtype=torch.long, device=pixels.device)
    if isinstance(tower, ClipViT):
        x = through(tower.transformer.resblocks, tower._embeds(pixels), first)
        pooled: Tensor = tower.ln_post(x)
        return pooled if tower.proj is None else pooled @ tower.proj
    x = tower.norm_pre(tower.patch_drop(tower._pos_embed(tower.patch_embed(pixels))))
    x = through(tower.blocks, x, first)
    read: Tensor = tower.forward_head(tower.norm(x.unsqueeze(1)))
    return read


def through(blocks: nn.ModuleList | nn.Sequential, x: Tensor, at: Tensor, mask: Tensor | None = None) -> Tensor:
    """Pass tokens through blocks, the last of which computes one of each row.

    Args:
        blocks: Of ``open_clip`` or ``timm``.
        x: ``(B, L, d)``.
        at: Which token of each row, ``(B,)``.
        mask: Added to the scores of all blocks, ``(L, L)``.

    Returns:
        ``(B, d)``.
    """
    last: Any = blocks[-1]
    for block in blocks[:-1]:
        x = block(x) if mask is None else block(x, attn_mask=mask)
    rows = torch.arange(len(x), device=x.device)
    timm = isinstance(last, TimmBlock)
    normed = last.norm1(x) if timm else last.ln_1(x)
    query = normed[rows, at].unsqueeze(1)  # (B, 1, d)
    if timm:
        mixed = last.drop_path1(last.ls1(last.attn(query, normed)))
    else:
        seen = None if mask is None else mask[at].to(x.dtype).unsqueeze(1)  # (B, 1, L)
        if seen is not None:
            heads = last.attn.heads if isinstance(last.attn, UnfoldedAttention) else last.attn.num_heads
            seen = seen.repeat_interleave(heads, 0)
        mixed = last.ls_1(last.attn(query, normed, normed, need_weights=False, attn_mask=seen)[0])
    y = x[rows, at] + mixed.squeeze(1)
    more = last.drop_path2(last.ls2(last.mlp(last.norm2(y)))) if timm else last.ls_2(last.mlp(last.ln_2(y)))
    out: Tensor = y + more
    return out


def reads_one_token(transformer: Any) -> bool:
    """Whether the last block of an ``open_clip`` transformer is one that :func:`through` knows, and nobody looks on."""
    last = transformer.resblocks[-1]
    known = type(last) is ResidualAttentionBlock and not hasattr(last, "ln_1_kv")
    return known and transformer.batch_first and not transformer.grad_checkpointing and not _watched(last)


def _watched(module: nn.Module) -> bool:
    """Whether a forward hook sits on a module or within it."""
    return any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
