"""A view into a vision transformer while it answers: what its hidden units do, and the weights that act."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from clgym.events import Array
from clgym.lora import LoRALinear

# The non-linearity of a feed-forward part: "gelu" in open_clip, "act" in timm, also where a method wraps the part, and
# "intermediate_act_fn" in YOLOS of transformers.
_HIDDEN = re.compile(
    r"(?:.*\.)?(?:resblocks|blocks)\.\d+\.mlp(?:\.\w+)?\.(?:gelu|act)|.*\.intermediate\.intermediate_act_fn"
)


@contextmanager
def listening(model: nn.Module) -> Iterator[dict[str, Array]]:
    """Hear the hidden units of every feed-forward part of the image encoder within the block.

    Nothing that is computed changes. Of several passes the last is heard.

    Args:
        model: An ``open_clip`` or ``timm`` model, adapted or not.

    Yields:
        Float32 ``(B, units)`` by layer, filled by each pass: the mean over tokens of the unit's absolute value.
    """
    heard: dict[str, Array] = {}
    tower = _tower(model)
    hooks = [
        module.register_forward_hook(_hear(name, heard))
        for name, module in tower.named_modules()
        if _HIDDEN.fullmatch(name)
    ]
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()


def _hear(name: str, heard: dict[str, Array]) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        heard[name] = output.detach().float().abs().mean(dim=1).cpu().numpy()  # (B, units)

    return hook


@torch.no_grad()
def acting_weights(model: nn.Module) -> Iterator[Array]:
    """Yield the parameters of the image encoder as they act: a low-rank branch is added to the weight it belongs to.

    Parameters that stand for themselves (norms, prompts, parallel adapters) are yielded as they are.

    Args:
        model: An ``open_clip`` or ``timm`` model, adapted or not.
    """
    seen: set[int] = set()
    for module in _tower(model).modules():
        if isinstance(module, LoRALinear):
            yield (module.base.weight.float() + module.delta()).cpu().numpy()
            seen |= {id(p) for p in (module.base.weight, *module.parameters(recurse=False))}
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield parameter.float().cpu().numpy()


def _tower(model: nn.Module) -> nn.Module:
    """Return the image encoder; a plain vision model is one."""
    tower: nn.Module = getattr(model, "visual", model)
    return tower
