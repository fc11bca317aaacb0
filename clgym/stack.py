"""The branches of all tasks beside one frozen layer, stacked: merged where gates allow it, never in a loop."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clgym.lora import LoRALinear, LoRASet
from clgym.ops import merge_stochastic, stacked_lora


class StackedLinear(nn.Module):
    """A frozen linear layer, the frozen branches of earlier tasks, and the one in training.

    ``y = W x + b + scale * sum_t g_t B_t A_t x``. Where the gates do not depend on the input and no gradient is
    asked for, the branches are added to a copy of the weight, which is kept until one of them changes: an answer
    costs what the frozen layer costs, for any number of tasks. Otherwise all of them are two thin products.

    Args:
        fresh: The adapted layer; its branch, without a gate of its own, is the one in training.

    Attributes:
        gate: ``(tasks,)``, or ``(B, tasks)`` or ``(B, L, tasks)`` for inputs ``(B, L, in)``, the branch in training
            last; ``None`` means all ones. Set by the method.
        A: Of the frozen branches, ``(R, in)``.
        Bt: Of the frozen branches, ``(R, out)``.
        offsets: Where each frozen branch begins in them, and the end.

    Example:
        >>> layer = StackedLinear(LoRALinear(nn.Linear(4, 3), r=2))
        >>> layer.freeze()
        >>> layer(torch.zeros(5, 4)).shape, layer.offsets, len(layer)
        (torch.Size([5, 3]), (0, 2), 2)
    """

    A: Tensor
    Bt: Tensor

    def __init__(self, fresh: LoRALinear) -> None:
        """Start with the branch in training alone."""
        super().__init__()
        self.fresh = fresh
        self.gate: Tensor | None = None
        self.offsets: tuple[int, ...] = (0,)
        self.register_buffer("A", fresh.A.detach().new_empty(0, fresh.A.shape[1]))
        self.register_buffer("Bt", fresh.Bt.detach().new_empty(0, fresh.Bt.shape[1]))
        self._merged: tuple[list[tuple[int, int]], Tensor] | None = None

    def __len__(self) -> int:
        """Count the branches, the one in training included."""
        return len(self.offsets)

    @property
    def weight(self) -> Tensor:
        """The frozen weight ``(out, in)``; models ask their layers for its dtype."""
        return self.fresh.weight

    @torch.no_grad()
    def freeze(self) -> None:
        """Append the branch in training to the stack, as a copy; the method draws a fresh one."""
        self.A, self.Bt = torch.cat([self.A, self.fresh.A]), torch.cat([self.Bt, self.fresh.Bt])
        self.offsets = (*self.offsets, len(self.A))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., in)`` to ``(..., out)``."""
        fixed = self.gate is None or self.gate.dim() == 1
        base = self.fresh.base
        if fixed and self.fresh.keeps_merged and not torch.is_grad_enabled():
            return F.linear(x, self._merged_weight(), base.bias)
        self._merged = None
        offsets = (*self.offsets, len(self.A) + self.fresh.r)
        stack = torch.cat([self.A, self.fresh.A]), torch.cat([self.Bt, self.fresh.Bt])
        return stacked_lora(
            x,
            base.weight,
            base.bias,
            *stack,
            self.gate,
            self.fresh.scale,
            offsets=offsets,
            frozen=len(self.A),
        )

    def _merged_weight(self) -> Tensor:
        parts = [t for t in (*self.fresh.changing(), self.A, self.Bt, self.gate) if t is not None]
        versions = [(id(t), t._version) for t in parts]
        if self._merged is None or self._merged[0] != versions:
            with torch.inference_mode(False), torch.no_grad():
                up = torch.cat([self.Bt, self.fresh.Bt])
                if self.gate is not None:
                    ends = torch.tensor((*self.offsets, len(up)), device=up.device)
                    up = self.gate.to(up.dtype).repeat_interleave(ends.diff())[:, None] * up
                merged = merge_stochastic(self.weight, torch.cat([self.A, self.fresh.A]), up, None, self.fresh.scale)
            self._merged = versions, merged
        return self._merged[1]


def stack(lora: LoRASet) -> Mapping[str, StackedLinear]:
    """Put a :class:`StackedLinear` in the place of each adapted layer, and return them by name.

    Example:
        >>> from clgym.lora import adapt
        >>> model = nn.Sequential(nn.Linear(4, 8))
        >>> sorted(stack(adapt(model, r=2, targets="0", generator=torch.Generator())))
        ['0']
    """
    return lora.replace(StackedLinear)
