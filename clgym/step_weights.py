"""The weights of a training step, with the branches in them: computed at once for all adapted layers, on CPU.

Small layers spend a step in overhead: a merge, four thin products and two calls into Python for each of them. Here one
node of the graph gives every layer's ``W + scale * B diag(w) A`` by a batched product per shape, layers are plain
linear ones to autograd, and what their weights' gradients say of the branches is again a batched product per shape.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from clgym.lora import LoRALinear

State = list[tuple[int, bool]]
_TIMES_AT_MOST = 8  # as many numbers as the branch has, in a weight
_ROWS_AT_MOST = 2048
Branch = tuple[Tensor, Tensor, Tensor | None, float]  # A (n, r, in), Bt (n, r, out), gate (n, r, 1), scale


class StepWeights:
    """The merged weights of adapted layers, kept until a backward pass or a change of weight or branch.

    A copy has no layers: copied layers are on their own.

    Args:
        layers: Those of one model; on CPU and in fp32 they take part, others do not.
    """

    def __init__(self, layers: Sequence[LoRALinear] = ()) -> None:
        """Group the layers by shape."""
        alike: dict[tuple[Any, ...], list[LoRALinear]] = {}
        for layer in layers:
            if layer.weight.device.type == "cpu" and layer.weight.dtype == layer.A.dtype == torch.float32:
                alike.setdefault((layer.weight.shape, layer.r, layer.scale, layer.gate is None), []).append(layer)
        self.groups = list(alike.values())
        self._members = {layer for group in self.groups for layer in group}
        self._made: dict[LoRALinear, tuple[State, Tensor]] | None = None

    def __reduce__(self) -> tuple[type[StepWeights], tuple[()]]:
        """Copy and pickle as one without layers."""
        return StepWeights, ()

    def serve(self, layer: LoRALinear, x: Tensor) -> bool:
        """Say whether a layer's inputs ``(..., in)`` are to meet its weight of the step rather than weight and branch.

        In the backward pass one product as wide as the weight takes the place of four thin ones: that pays for small
        weights and few rows.
        """
        if layer not in self._members or x.is_cuda or torch.is_autocast_enabled(x.device.type):
            return False
        narrow = layer.weight.numel() <= _TIMES_AT_MOST * (layer.A.numel() + layer.Bt.numel())
        short = x.numel() <= _ROWS_AT_MOST * x.shape[-1]
        known = narrow and short and not torch.compiler.is_compiling()
        return known and not any(t.is_inference() for t in layer.changing())

    def of(self, layer: LoRALinear) -> Tensor:
        """Return a layer's weight ``(out, in)`` with its branch in it, differentiable in the branch."""
        if self._made is None or self._made[layer][0] != _state(layer):
            self._made = self._make()
        return self._made[layer][1]

    def forget(self) -> None:
        """Let go of the weights."""
        self._made = None

    def _make(self) -> dict[LoRALinear, tuple[State, Tensor]]:
        members = [layer for group in self.groups for layer in group]
        leaves: list[Tensor] = []
        for group in self.groups:
            leaves += [*(layer.A for layer in group), *(layer.Bt for layer in group)]
            leaves += [layer.gate for layer in group if layer.gate is not None]
        weights: tuple[Tensor, ...] = _Weights.apply(weakref.ref(self), self.groups, *leaves)
        return {layer: (_state(layer), weight) for layer, weight in zip(members, weights, strict=True)}


def _state(layer: LoRALinear) -> State:
    """Return what moves when a weight or a branch is written to, frozen or freed."""
    return [(t._version, t.requires_grad) for t in layer.changing()]


class _Weights(torch.autograd.Function):
    """All branches in, all merged weights out; layers that a loss did not use have no gradient."""

    @staticmethod
    def forward(
        ctx: Any, owner: weakref.ref[StepWeights], groups: Sequence[Sequence[LoRALinear]], *leaves: Tensor
    ) -> tuple[Tensor, ...]:
        """Merge by shape."""
        ctx.set_materialize_grads(False)
        # Stacking copies, so that a backward pass sees the branches as they were; held here rather than as saved
        # tensors, since several losses of one step go through this node.
        ctx.owner, ctx.branches = owner, []
        weights: list[Tensor] = []
        start = 0
        for group in groups:
            n, gated, scale = len(group), group[0].gate is not None, group[0].scale
            A, Bt = torch.stack(leaves[start : start + n]), torch.stack(leaves[start + n : start + 2 * n])
            gate = torch.stack(leaves[start + 2 * n : start + 3 * n]).unsqueeze(-1) if gated else None
            start += (3 if gated else 2) * n
            branch = A, Bt, gate, scale
            merged = torch.stack([layer.weight for layer in group]).baddbmm_(_times(Bt, gate, scale).mT, A)
            weights += merged.unbind(0)
            ctx.branches.append(branch)
        return tuple(weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *dweights: Tensor | None) -> tuple[Any, ...]:
        """Return what the weights' gradients ``(out, in)`` say of the branches."""
        owner = ctx.owner()
        if owner is not None:
            owner.forget()
        grads: list[Tensor | None] = []
        start = 0
        for branch in ctx.branches:
            n = len(branch[0])
            grads += _of_branches(branch, dweights[start : start + n])
            start += n
        return None, None, *grads


def _of_branches(branch: Branch, dweights: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Return the gradients of a group's every ``A``, then ``Bt``, then gate."""
    A, Bt, gate, scale = branch
    used = [i for i, dweight in enumerate(dweights) if dweight is not None]
    grads: list[list[Tensor | None]] = [[None] * len(A) for _ in range(2 if gate is None else 3)]
    if used:
        if len(used) < len(A):
            A, Bt, gate = A[used], Bt[used], None if gate is None else gate[used]
        dweight = torch.stack([dw for dw in dweights if dw is not None])  # (n, out, in)
        inner = torch.bmm(A, dweight.mT)  # (n, r, out)
        found = [torch.bmm(_times(Bt, gate, scale), dweight), _times(inner, gate, scale)]
        if gate is not None:
            found.append(_times((inner * Bt).sum(-1), None, scale))
        for kind, values in zip(grads, found, strict=True):
            for i, value in zip(used, values.unbind(0), strict=True):
                kind[i] = value
    return [grad for kind in grads for grad in kind]


def _times(x: Tensor, gate: Tensor | None, scale: float) -> Tensor:
    """Return ``scale * gate * x``."""
    x = x if gate is None else x * gate
    return x if scale == 1.0 else x * scale
