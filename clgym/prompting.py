"""Prompts in a frozen vision transformer: put in for one forward pass, and taken out whatever happens."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from clgym.attention import Block, vision_blocks
from clgym.backbones import Backbone
from clgym.errors import SettingError


class PromptedViT:
    """The image encoder of a frozen backbone, with prompts that live as long as a forward pass.

    Args:
        backbone: With a class token that its features are read from; its attention is unfolded in place.

    Raises:
        SettingError: The features are not those of the class token.
    """

    def __init__(self, backbone: Backbone) -> None:
        """Find the blocks."""
        self.backbone = backbone
        self.blocks: list[Block] = vision_blocks(backbone.model)
        tower: Any = getattr(backbone.model, "visual", backbone.model)
        clip = hasattr(tower, "ln_post")
        self.norm = tower.ln_post if clip else tower.norm
        pooling = tower.pool_type if clip else tower.global_pool
        if pooling not in ("tok", "token") or getattr(tower, "final_ln_after_pool", False):
            raise SettingError(
                f"Expected a vision transformer that reads its features off the class token; got pooling {pooling!r}. "
                "Choose another backbone."
            )

    @property
    def width(self) -> int:
        """Length of a token."""
        return self.blocks[0].attention.q_proj.in_features

    def first(self, blocks: int | None, share: float, after: int = 0) -> slice:
        """Return which blocks to prompt.

        Args:
            blocks: How many; ``None`` is ``share`` of all, rounded up.
            share: See ``blocks``.
            after: Leave out as many at the start.

        Raises:
            SettingError: There are not as many.
        """
        count = math.ceil(share * len(self.blocks)) if blocks is None else blocks
        if not 1 <= count <= len(self.blocks) - after:
            raise SettingError(
                f"Expected 1 to {len(self.blocks) - after} prompted blocks behind the first {after} of "
                f"{len(self.blocks)}; got {count}. Prompt fewer."
            )
        return slice(after, after + count)

    @torch.no_grad()
    def query(self, images: Tensor) -> Tensor:
        """Return the features ``(B, embed_dim)`` of the frozen model without prompts."""
        return self.backbone.encode_images(images)

    @contextmanager
    def prefixed(self, prefixes: Sequence[tuple[slice, Tensor]]) -> Iterator[None]:
        """Put keys and values before those of the tokens (prefix tuning, Li and Liang 2021, arXiv:2101.00190).

        Args:
            prefixes: Blocks, and what to put in them ``(blocks, 2, B, P, d)``: keys, then values.
        """
        try:
            for where, pairs in prefixes:
                for block, (keys, values) in zip(self.blocks[where], pairs, strict=True):
                    block.attention.prefix = keys, values
            yield
        finally:
            for block in self.blocks:
                block.attention.prefix = None

    @contextmanager
    def appended(self, tokens: Tensor, *, read: bool) -> Iterator[None]:
        """Append tokens to those of the images before the first block.

        They have no position, so their place in the row changes nothing; at its end, the class token stays the first.

        Args:
            tokens: ``(B, P, d)``.
            read: Read the features off the mean of what these tokens become, in the class token's place.
        """

        def lengthen(_: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return torch.cat([inputs[0], tokens.to(inputs[0])], dim=1), *inputs[1:]

        def mean(_: Any, __: Any, x: Tensor) -> Tensor:
            return x[:, -tokens.shape[1] :].mean(dim=1, keepdim=True)

        hooks = [self.blocks[0].whole.register_forward_pre_hook(lengthen)]
        if read:
            hooks.append(self.norm.register_forward_hook(mean))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def cosines(query: Tensor, keys: Tensor) -> Tensor:
    """Return the cosines ``(B, M)`` of queries ``(B, d)`` and keys ``(M, d)``."""
    return F.normalize(query.float(), dim=-1) @ F.normalize(keys, dim=-1).T
