"""The weights of a training step, with the branches in them: computed at once for all adapted layers, on CPU.

Small layers spend a step in overhead: a merge, four thin products and two calls into Python for each of them. Here one
node of the graph gives every layer's ``W + scale * B diag(w) A`` by a batched product per shape, layers are plain
linear ones to autograd, and what their weights' gradients say of the branches is again a batched product per shape.
Layers that read the same inputs, as an attention's q, k and v do, have one weight, and one product gives their outputs.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

if TYPE_CHECKING:
    from clgym.lora import LoRALinear

_TIMES_AT_MOST = 8  # as many numbers as the branch has, in a weight
_ROWS_AT_MOST = 2048
Run: TypeAlias = "tuple[LoRALinear, ...]"  # layers of one shape that read the same inputs
State = list[tuple[int, bool]]
Branch = tuple[Tensor, Tensor, Tensor | None, float]  # A (n, r, in), Bt (n, r, out), gate (n, r, 1), scale


class StepWeights:
    """The merged weights of adapted layers, kept until a backward pass or a change of weight or branch.

    A copy has no layers: copied layers are on their own.

    Args:
        layers: Those of one model; on CPU, in fp32 and small they take part, others do not.
        model: Its modules say by ``same_inputs`` which of their layers read the same inputs.
    """

    def __init__(self, layers: Sequence[LoRALinear] = (), model: nn.Module | None = None) -> None:
        """Group the layers by shape."""
        alike: dict[tuple[Any, ...], list[Run]] = {}
        for run in same_inputs([layer for layer in layers if _takes_part(layer)], model):
            first = run[0]
            alike.setdefault((first.weight.shape, first.r, first.scale, first.gate is None), []).append(run)
        self.groups = list(alike.values())
        self._place = {layer: (run, i) for group in self.groups for run in group for i, layer in enumerate(run)}
        self._made: tuple[dict[LoRALinear, State], dict[Run, Tensor]] | None = None
        self._frozen: tuple[list[int], list[Tensor]] = [], []

    def __reduce__(self) -> tuple[type[StepWeights], tuple[()]]:
        """Copy and pickle as one without layers."""
        return StepWeights, ()

    def weight(self, x: Tensor, *layers: LoRALinear) -> Tensor | None:
        """Return what inputs ``(..., in)`` meet in the place of weight and branch.

        In the backward pass one product as wide as the weight takes the place of four thin ones: that pays for small
        weights and few rows.

        Args:
            x: The inputs.
            layers: One, or neighbours of a run.

        Returns:
            The layers' weights with their branches in them, one under the other: ``(len(layers) * out, in)``,
            differentiable in the branches; None where inputs or layers had better go their own way.
        """
        run, at = self._place.get(layers[0], ((), 0))
        if run[at : at + len(layers)] != layers or x.is_cuda or x.numel() > _ROWS_AT_MOST * x.shape[-1]:
            return None
        if torch.is_autocast_enabled(x.device.type) or torch.compiler.is_compiling():
            return None
        if self._made is None or any(self._made[0][layer] != _state(layer) for layer in layers):
            self._made = self._make()
        whole = self._made[1][run]
        out = len(whole) // len(run)
        return whole if len(layers) == len(run) else whole[at * out : (at + len(layers)) * out]

    def outputs(self, x: Tensor, *layers: LoRALinear) -> Tensor | None:
        """Return what neighbours of a run say of inputs ``(..., in)``, by one product: ``(..., len(layers) * out)``.

        None where they must be asked one by one: they have no weights of a step in common, or nothing learns.
        """
        weight = self.weight(x, *layers) if torch.is_grad_enabled() else None
        if weight is None:
            return None
        biases: list[Tensor] = [layer.base.bias for layer in layers if layer.base.bias is not None]
        return F.linear(x, weight, torch.cat(biases) if biases else None)

    def forget(self) -> None:
        """Let go of the weights."""
        self._made = None

    def _make(self) -> tuple[dict[LoRALinear, State], dict[Run, Tensor]]:
        leaves: list[Tensor] = []
        flat = [[layer for run in group for layer in run] for group in self.groups]
        for each in flat:
            leaves += [*(layer.A for layer in each), *(layer.Bt for layer in each)]
            leaves += [layer.gate for layer in each if layer.gate is not None]
        versions = [layer.weight._version for layer in self._place]
        if self._frozen[0] != versions:
            self._frozen = versions, [torch.stack([layer.weight for layer in each]) for each in flat]
        weights: tuple[Tensor, ...] = _Weights.apply(weakref.ref(self), self.groups, self._frozen[1], *leaves)
        runs = [run for group in self.groups for run in group]
        return {layer: _state(layer) for layer in self._place}, dict(zip(runs, weights, strict=True))


def _takes_part(layer: LoRALinear) -> bool:
    """Whether a layer is on CPU, in fp32, its weight small beside its branch, and a change of them can be told."""
    plain = layer.weight.device.type == "cpu" and layer.weight.dtype == layer.A.dtype == torch.float32
    known = plain and not any(t.is_inference() for t in layer.changing())
    return known and layer.weight.numel() <= _TIMES_AT_MOST * (layer.A.numel() + layer.Bt.numel())


def same_inputs(layers: Sequence[LoRALinear], model: nn.Module | None) -> list[Run]:
    """Return the layers, those together that read the same inputs, as the model's modules say, and are alike."""
    first: dict[LoRALinear, Run] = {}
    for module in [] if model is None else model.modules():
        run = getattr(module, "same_inputs", ())
        if run and all(layer in layers for layer in run):
            alike = {(layer.weight.shape, layer.r, layer.scale, layer.base.bias is None) for layer in run}
            if len(alike) == 1:
                first[run[0]] = run
    inner = {layer for run in first.values() for layer in run[1:]}
    return [first.get(layer, (layer,)) for layer in layers if layer not in inner]


def _state(layer: LoRALinear) -> State:
    """Return what moves when a weight or a branch is written to, frozen or freed."""
    return [(t._version, t.requires_grad) for t in layer.changing()]


class _Weights(torch.autograd.Function):
    """All branches in, the merged weights of all runs out; runs that a loss did not use have no gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        owner: weakref.ref[StepWeights],
        groups: Sequence[Sequence[Run]],
        frozen: Sequence[Tensor],
        *leaves: Tensor,
    ) -> tuple[Tensor, ...]:
        """Merge by shape."""
        ctx.set_materialize_grads(False)
        # Stacking copies, so that a backward pass sees the branches as they were; held here rather than as saved
        # tensors, since several losses of one step go through this node.
        ctx.owner, ctx.branches = owner, []
        weights: list[Tensor] = []
        start = 0
        for group, weight in zip(groups, frozen, strict=True):
            n, gated, scale = len(weight), group[0][0].gate is not None, group[0][0].scale
            A, Bt = torch.stack(leaves[start : start + n]), torch.stack(leaves[start + n : start + 2 * n])
            gate = torch.stack(leaves[start + 2 * n : start + 3 * n]).unsqueeze(-1) if gated else None
            start += (3 if gated else 2) * n
            branch = A, Bt, gate, scale
            merged = torch.baddbmm(weight, _times(Bt, gate, scale).mT, A)
            sizes = [len(run) for run in group]
            weights += [part.flatten(0, 1) for part in torch.split(merged, sizes)]
            ctx.branches.append((branch, sizes))
        return tuple(weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *dweights: Tensor | None) -> tuple[Any, ...]:
        """Return what the weights' gradients ``(run * out, in)`` say of the branches."""
        owner = ctx.owner()
        if owner is not None:
            owner.forget()
        grads: list[Tensor | None] = []
        start = 0
        for branch, sizes in ctx.branches:
            grads += _of_branches(branch, sizes, dweights[start : start + len(sizes)])
            start += len(sizes)
        return None, None, None, *grads


def _of_branches(branch: Branch, sizes: Sequence[int], dweights: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Return the gradients of a group's every ``A``, then ``Bt``, then gate."""
    A, Bt, gate, scale = branch
    taken = [dweight is not None for dweight, size in zip(dweights, sizes, strict=True) for _ in range(size)]
    used = [i for i, took in enumerate(taken) if took]
    grads: list[list[Tensor | None]] = [[None] * len(A) for _ in range(2 if gate is None else 3)]
    if used:
        if len(used) < len(A):
            A, Bt, gate = A[used], Bt[used], None if gate is None else gate[used]
        known = [dweight for dweight in dweights if dweight is not None]
        dweight = torch.cat(known).view(len(used), Bt.shape[-1], A.shape[-1])  # (n, out, in)
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
