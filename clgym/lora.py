"""Low-rank adapters: frozen linear layers with trainable branches, all of them in one flat buffer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clgym.errors import NotRegisteredError, RecordError, SettingError
from clgym.ops import lora_linear, merge_error, merge_stochastic
from clgym.step_weights import StepWeights

Gate = Literal["none", "normal", "ones"]
Layer = TypeVar("Layer", bound=nn.Module)

MERGED_AT_MOST = 1 << 30  # bytes of weights that a copy is kept of while questions are answered

_GRAD: Any = torch.Tensor.grad  # the descriptor


class FixedGradParameter(nn.Parameter):
    """A parameter whose gradient buffer never moves: ``p.grad = None`` zeroes it instead of dropping it.

    ``Optimizer.zero_grad`` and ``Module.zero_grad`` drop gradients by default, which would tear the buffers
    of a :class:`LoRASet` apart in silence.

    Example:
        >>> p = FixedGradParameter(torch.ones(2))
        >>> p.grad = torch.tensor([1.0, 2.0])
        >>> p.grad = None
        >>> p.grad
        tensor([0., 0.])
    """

    @property
    def grad(self) -> Tensor | None:
        """The gradient buffer, once one was set."""
        buffer: Tensor | None = _GRAD.__get__(self)
        return buffer

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        """Set the buffer, or zero it."""
        if value is not None:
            _GRAD.__set__(self, value)
        elif self.grad is not None:
            self.grad.zero_()


class LoRALinear(nn.Module):
    """A frozen ``nn.Linear`` plus one low-rank branch.

    ``y = W x + b + scale * B diag(w) A x``, after Hu et al. 2021 (arXiv:2106.09685, eq. 3), with the gate
    ``w`` of CoDyRA (arXiv:2412.01004) if asked for. ``A`` is ``(r, in)``; B is kept transposed as ``Bt``,
    ``(r, out)``; ``gate`` is ``(r,)``; all three are fp32. Before :meth:`reset` all are zero.

    Args:
        base: The layer to adapt; its parameters are frozen.
        r: Rank, at least 1.
        scale: Factor of the branch.
        gate: How the gate starts; ``"none"`` makes a layer without one.

    Raises:
        SettingError: ``r`` is below 1 or above a width of ``base``, or ``gate`` is unknown.

    Example:
        >>> layer = LoRALinear(nn.Linear(4, 3), r=2, gate="normal")
        >>> layer.reset(torch.Generator().manual_seed(0))
        >>> layer(torch.zeros(5, 4)).shape, bool(layer.delta().any())
        (torch.Size([5, 3]), False)
    """

    def __init__(self, base: nn.Linear, r: int, *, scale: float = 1.0, gate: Gate = "none") -> None:
        """Freeze ``base``."""
        super().__init__()
        widest = min(base.in_features, base.out_features)
        if not 1 <= r <= widest:
            raise SettingError(f"Expected 1 <= r <= {widest}, a width of {base}; got r={r}. Lower the rank.")
        if gate not in get_args(Gate):
            raise SettingError(f"Expected gate in {get_args(Gate)}; got {gate!r}. Choose one of them.")
        self.base = base.requires_grad_(False)
        self.r, self.scale, self.gate_start = r, scale, gate
        device = base.weight.device
        self.A = FixedGradParameter(torch.zeros(r, base.in_features, device=device))
        self.Bt = FixedGradParameter(torch.zeros(r, base.out_features, device=device))
        self.gate = FixedGradParameter(torch.zeros(r, device=device)) if gate != "none" else None
        self.keeps_merged = base.weight.dtype in (torch.float32, torch.float64)
        self._merged: tuple[list[int], Tensor] | None = None
        self._arena: tuple[nn.Parameter, ...] = ()  # in a tuple, as it is no parameter of this layer
        self.together = StepWeights()

    def reset(self, generator: torch.Generator, gate: Gate | None = None) -> None:
        """Draw a fresh branch that changes nothing: ``A`` Kaiming-uniform with ``a = sqrt(5)``, B zero.

        Args:
            generator: Source of every number; the same seed gives the same branch on every device.
            gate: ``"normal"`` draws N(0, 1), ``"ones"`` sets ones; by default as the layer was built.

        Raises:
            SettingError: ``gate`` is unknown, or says none where the layer has one or the reverse.
        """
        gate = self.gate_start if gate is None else gate
        allowed = get_args(Gate)[:1] if self.gate is None else get_args(Gate)[1:]
        if gate not in allowed:
            raise SettingError(f"Expected gate in {allowed} for this layer; got {gate!r}. Build another.")
        with torch.no_grad():
            fresh = torch.empty(self.A.shape, device=generator.device)
            self.A.copy_(nn.init.kaiming_uniform_(fresh, a=5**0.5, generator=generator))
            self.Bt.zero_()
            if self.gate is not None:
                ones = torch.ones(self.r, device=generator.device)
                self.gate.copy_(ones if gate == "ones" else ones.normal_(generator=generator))

    @property
    def weight(self) -> Tensor:
        """The frozen weight ``(out, in)``; models ask their layers for its dtype."""
        return self.base.weight

    def delta(self) -> Tensor:
        """Return what the branch adds to the weight, ``(out, in)`` in fp32: ``scale * B diag(w) A``."""
        return torch.mm(self.gated().t(), self.A).mul(self.scale)

    def gated(self) -> Tensor:
        """Return ``Bt`` with the gate folded in, ``(r, out)``."""
        return self.Bt if self.gate is None else self.gate[:, None] * self.Bt

    @torch.no_grad()
    def merge_(self, seed: int = 0) -> float:
        """Add the branch to the frozen weight, summed in fp32, and zero B; outputs stay what they were.

        A weight in bf16 is rounded at random, without bias; see :func:`clgym.ops.merge_stochastic`.

        Args:
            seed: Of the rounding.

        Returns:
            What was lost, as a share of the branch; 0 where it is zero.
        """
        branch = (self.A, self.Bt, self.gate, self.scale)
        merged = merge_stochastic(self.base.weight, *branch, seed=seed)
        lost = 0.0 if merged.is_meta else merge_error(self.base.weight, merged, *branch).relative
        self.base.weight.copy_(merged)
        self.Bt.zero_()
        return lost

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., in)`` to ``(..., out)``; without gradients at the cost of the frozen layer alone."""
        if torch.is_grad_enabled():
            self._merged = None
        elif self.keeps_merged:
            return F.linear(x, self._merged_weight(), self.base.bias)
        if (weight := self.together.weight(x, self)) is not None:
            return F.linear(x, weight, self.base.bias)
        branch = (self.A, self.Bt, self.gate, self.scale)
        return lora_linear(x, self.base.weight, self.base.bias, *branch, mode="merged" if self._merges(x) else "split")

    def _merges(self, x: Tensor) -> bool:
        """Whether training goes through the merged weight: on CPU in fp32, where that is small beside the inputs.

        It saves two thin products and costs the merge; in bf16 the merged weight would have to be rounded at random.
        """
        on_cpu = not x.is_cuda and self.keeps_merged and not torch.is_autocast_enabled(x.device.type)
        return on_cpu and x.numel() > x.shape[-1] * max(self.base.weight.shape)

    def changing(self) -> list[Tensor]:
        """Return the tensors whose version moves when weight or branch are written to, the arena's included."""
        return [t for t in (self.base.weight, self.A, self.Bt, self.gate, *self._arena) if t is not None]

    def _merged_weight(self) -> Tensor:
        """Return the weight with the branch in it, kept until a step, a merge or a reset changes one of them."""
        branch = (self.A, self.Bt, self.gate, self.scale)
        tensors = self.changing()
        if any(t.is_inference() for t in tensors):  # these have no version: keep nothing
            return merge_stochastic(self.base.weight, *branch)
        versions = [t._version for t in tensors]
        if self._merged is None or self._merged[0] != versions:
            with torch.inference_mode(False):
                self._merged = versions, merge_stochastic(self.base.weight, *branch)
        return self._merged[1]


class LoRASet:
    """The branches of one model, in one flat fp32 buffer with one flat gradient.

    Every ``A``, ``Bt`` and ``gate`` is a view of :meth:`arena`, in this order, and its gradient a view of the
    arena's, so that the optimizer's step, zeroing, norms and thresholds are single operations.

    Args:
        model: The model that the layers stand in.
        layers: Name in ``model`` to layer, all on one device.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, LoRALinear]) -> None:
        """Move the parameters into the buffers."""
        self.model, self.layers = model, tuple(layers.items())
        each = [layer for _, layer in self.layers]
        gates = [layer.gate for layer in each if layer.gate is not None]
        self._leaves = (*(layer.A for layer in each), *(layer.Bt for layer in each), *gates)
        self._gates = sum(gate.numel() for gate in gates)
        self._arena = FixedGradParameter(torch.cat([leaf.detach().reshape(-1) for leaf in self._leaves]))
        flat = self._arena.detach()
        self._arena.grad = torch.zeros_like(flat)
        grad, start = self._arena.grad, 0
        for leaf in self._leaves:
            here = slice(start, start + leaf.numel())
            leaf.data = flat[here].view_as(leaf)
            leaf.grad = grad[here].view_as(leaf)
            start += leaf.numel()
        adapted = sum(layer.weight.numel() * layer.weight.element_size() for layer in each)
        for layer in each:
            layer._arena = (self._arena,)
            layer.keeps_merged &= adapted <= MERGED_AT_MOST
        together = StepWeights(each, model)
        for layer in each:
            layer.together = together

    def __len__(self) -> int:
        """Count the adapted layers."""
        return len(self.layers)

    @property
    def trainable_count(self) -> int:
        """Number of trainable scalars, gates included."""
        return self._arena.numel()

    def arena(self) -> nn.Parameter:
        """Return the flat parameter ``(n,)`` for the optimizer; its ``grad`` is the flat gradient.

        Raises:
            SettingError: The model was moved or cast after :func:`adapt`.
        """
        at, first, last = self._arena, self._leaves[0], self._leaves[-1]
        end = at.data_ptr() + (at.numel() - last.numel()) * at.element_size()
        if first.data_ptr() != at.data_ptr() or last.data_ptr() != end or last.device != at.device:
            raise SettingError(
                "Expected the adapters where they were built; got a model that was moved or cast since. "
                "Move the model first, then adapt it."
            )
        return at

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters in the arena's order."""
        yield from self._leaves

    def zero_grad(self) -> None:
        """Zero every gradient in one operation."""
        self.arena().grad = None

    def gates(self) -> Tensor:
        """Return every gate as one flat, writable view ``(layers * r,)``, outside the graph."""
        flat = self.arena().detach()
        return flat[flat.numel() - self._gates :]

    def reset(self, generator: torch.Generator, gate: Gate | None = None) -> None:
        """Draw fresh branches everywhere, see :meth:`LoRALinear.reset`; the gradients are zeroed."""
        for _, layer in self.layers:
            layer.reset(generator, gate)
        self.zero_grad()

    def merge_(self) -> float:
        """Merge every branch into its frozen weight, see :meth:`LoRALinear.merge_`; return the worst loss.

        Rounding is seeded by the branches themselves, so that a resumed run rounds alike.
        """
        values = self.arena().detach()
        # On the meta device, where parameters are counted, there are no values.
        seed = 0 if values.is_meta else int(values.view(torch.int32).sum()) & 0x7FFFFFFF
        return max(layer.merge_(seed=seed << 31 | i) for i, (_, layer) in enumerate(self.layers))

    def replace(self, make: Callable[[LoRALinear], Layer]) -> dict[str, Layer]:
        """Put another layer, made of it, in the place of each adapted one, and return these by name."""
        made = {name: make(layer) for name, layer in self.layers}
        for name, layer in made.items():
            _replace(self.model, name, layer)
        return made

    def remove(self) -> nn.Module:
        """Put the plain linear layers back, without what was not merged, and return the model."""
        for name, layer in self.layers:
            _replace(self.model, name, layer.base)
        return self.model

    @contextmanager
    def put_aside(self) -> Iterator[nn.Module]:
        """Compute without the branches for a while, as the model did when they were drawn."""
        for name, layer in self.layers:
            _replace(self.model, name, layer.base)
        try:
            yield self.model
        finally:
            for name, layer in self.layers:
                _replace(self.model, name, layer)

    def named_tensors(self, *, with_base: bool = False) -> dict[str, Tensor]:
        """Return the state for a checkpoint, as views: ``<layer>.A``, ``.Bt``, ``.gate``.

        Args:
            with_base: Add ``<layer>.weight``, which a method that merges has changed.
        """
        state: dict[str, Tensor] = {}
        for name, layer in self.layers:
            base = layer.base.weight if with_base else None
            parts = {"A": layer.A, "Bt": layer.Bt, "gate": layer.gate, "weight": base}
            state |= {f"{name}.{part}": t.detach() for part, t in parts.items() if t is not None}
        return state

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy back what :meth:`named_tensors` returned, with or without the base weights.

        Raises:
            RecordError: A name or a shape is not this set's; nothing is changed then.
        """
        mine = self.named_tensors(with_base=any(name.endswith(".weight") for name in tensors))
        if odd := differences(mine, tensors):
            raise RecordError(
                f"Expected the tensors of {len(self)} adapted layers; got other names or shapes: {odd}. "
                "Adapt the same layers, with the same settings."
            )
        for name, tensor in tensors.items():
            mine[name].copy_(tensor)


def adapt(
    model: nn.Module,
    *,
    r: int,
    targets: str | Sequence[str],
    generator: torch.Generator,
    alpha: float | None = None,
    gate: Gate = "none",
) -> LoRASet:
    """Freeze a model and put a fresh low-rank branch beside each target layer; outputs stay what they were.

    Args:
        model: Changed in place; must already be on its device.
        r: Rank of every branch.
        targets: A regular expression that a layer's whole name must match, or names: a name without dots
            stands for every layer whose name ends in it, a name with dots for one layer.
        generator: Source of the fresh branches.
        alpha: The branch is multiplied by ``alpha / r``; none means by 1.
        gate: How gates start, see :class:`LoRALinear`.

    Raises:
        NotRegisteredError: A target is no layer of the model.
        SettingError: A target is not an ``nn.Linear``, or a setting is out of range.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> lora = adapt(model, r=2, targets="[02]", generator=torch.Generator().manual_seed(0))
        >>> optimizer = torch.optim.AdamW([lora.arena()], fused=True)
        >>> lora.trainable_count, [name for name, _ in lora.layers]
        (44, ['0', '2'])
    """
    known = dict(model.named_modules())
    chosen: dict[str, LoRALinear] = {}
    for name in _matching(known, targets):
        base = known[name]
        if not isinstance(base, nn.Linear):
            raise SettingError(f"Expected nn.Linear; {name!r} is a {type(base).__name__}. Name other layers.")
        chosen[name] = LoRALinear(base, r, scale=1.0 if alpha is None else alpha / max(r, 1), gate=gate)
    model.requires_grad_(False)
    for name, layer in chosen.items():
        _replace(model, name, layer)
    lora = LoRASet(model, chosen)
    lora.reset(generator)
    return lora


def differences(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> str:
    """Name up to three tensors that are missing, foreign or of another shape; empty if there are none."""
    odd = sorted(mine.keys() ^ theirs.keys())
    odd += [name for name in sorted(mine.keys() & theirs.keys()) if mine[name].shape != theirs[name].shape]
    return f"{', '.join(odd[:3])} ({len(odd)} in all)" if odd else ""


def _matching(known: Iterable[str], targets: str | Sequence[str]) -> list[str]:
    """Return the known names that the targets stand for, in the model's order."""
    names = [name for name in known if name]
    if isinstance(targets, str):
        found = {name for name in names if re.fullmatch(targets, name)}
        missing = [] if found else [targets]
    else:
        last = {name: name.rpartition(".")[2] for name in names}
        found = {name for name in names if name in targets or last[name] in targets}
        missing = [target for target in targets if target not in found and target not in last.values()]
    if missing:
        raise NotRegisteredError.among("layer", missing[0], get_close_matches(missing[0], names, 5, 0.0))
    return [name for name in names if name in found]


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, layer)
