"""Group sparsity over the blocks of a transformer, as GS-LoRA has it: few blocks change, the others not at all."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clgym.attention import block_of
from clgym.errors import SettingError
from clgym.lora import LoRASet
from clgym.ops import group_segments

FFN = ("c_fc", "c_proj", "fc1", "fc2")  # the linears of a feed-forward part, see clgym.attention.part_of
PENALTIES = ("loss", "proximal")


def bounded(loss: Tensor, bound: float) -> Tensor:
    """Return ``max(0, bound - loss)``: pushes a loss up to a bound, and no further.

    >>> bounded(torch.tensor(3.0), 5.0), bounded(torch.tensor(6.0), 5.0)
    (tensor(2.), tensor(0.))
    """
    return F.relu(bound - loss)


class GroupSparsity:
    """The group lasso ``alpha sum_g |w_g|_2`` of GS-LoRA (arXiv:2403.11530), one group for each block's adapters.

    Args:
        lora: The adapters.
        names: Names of those that belong to a group; the group is the block.
        alpha: Strength.
        dense_share: Share of a phase's steps before the strength goes from 0 to ``alpha``.
        penalty: ``"loss"``: added to the loss, whose gradient AdamW rescales, so that groups get small and never zero;
            or ``"proximal"``: the group threshold ``lr alpha`` after each step, by which groups vanish.

    Raises:
        SettingError: A setting is out of range.
    """

    def __init__(
        self, lora: LoRASet, names: Collection[str], *, alpha: float, dense_share: float, penalty: str
    ) -> None:
        """Number the groups."""
        if alpha < 0 or not 0 <= dense_share <= 1:
            raise SettingError(
                f"Expected alpha of 0 or more and dense_share in [0, 1]; got {alpha} and {dense_share}. "
                "The paper has 1e-4 and 0.2."
            )
        if penalty not in PENALTIES:
            raise SettingError(f"Expected penalty to be one of {PENALTIES}; got {penalty!r}. Choose one of these.")
        self.alpha, self.dense_share, self.penalty = alpha, dense_share, penalty
        of = {name: block_of(name) for name, _ in lora.layers if name in names}
        self.blocks = tuple(dict.fromkeys(of.values()))
        self._leaves: list[list[nn.Parameter]] = [[] for _ in self.blocks]
        for name, layer in lora.layers:
            if name in of:
                self._leaves[self.blocks.index(of[name])] += [layer.A, layer.Bt]
        number = {id(leaf): g for g, leaves in enumerate(self._leaves) for leaf in leaves}
        member = [torch.full((leaf.numel(),), number.get(id(leaf), -1)) for leaf in lora.parameters()]
        order, offsets = group_segments(torch.cat(member))
        self.segments = order.to(lora.arena().device), offsets.to(lora.arena().device)

    def norms(self) -> Tensor:
        """Return the norm of each group ``(G,)``, with gradient; at zero it has none."""
        return torch.stack([torch.cat([leaf.flatten() for leaf in leaves]).norm() for leaves in self._leaves])

    def strength(self, step: int, steps: int) -> float:
        """Return ``alpha``, or 0 in the dense part of a phase.

        Args:
            step: Of the phase, from 0.
            steps: Length of the phase.
        """
        return 0.0 if step < int(self.dense_share * steps) else self.alpha

    def loss(self, step: int, steps: int) -> Tensor | float:
        """Return what is added to the loss at a step: nothing, if the penalty is proximal."""
        alpha = self.strength(step, steps) if self.penalty == "loss" else 0.0
        return alpha * self.norms().sum() if alpha else 0.0

    def threshold(self, step: int, steps: int, lr: float) -> dict[str, Any]:
        """Return how :class:`clgym.optim.AdamWProx` ends a step: at which threshold, of which groups."""
        alpha = self.strength(step, steps) if self.penalty == "proximal" else 0.0
        return {"kappa": lr * alpha, "groups": self.segments}

    def zeros(self) -> int:
        """Count the groups that are zero in every element."""
        with torch.no_grad():
            return int((self.norms() == 0).sum())
