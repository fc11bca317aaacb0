"""Adapters beside a transformer block, each with a descriptor of what it was trained on, mixed by a router."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clgym.attention import Block

DESCRIPTOR = ("encode", "encode_bias", "decode", "decode_bias")
LEAST_DEVIATION = 1e-12


class Units(nn.Module):
    """The units of one block: those of earlier tasks, frozen and stacked, and at most one in training.

    A unit has an adapter ``f(x) = W_up relu(W_down x + b) + b'``, which reads the stream after attention and before
    the norm. Where units may be added it also has a column of the router and a representation descriptor ``g``, a
    linear auto-encoder; both read ``m``, the mean of ``x`` over the tokens. The block computes

    ``mlp(norm2(x)) + sum_k softmax(W m + c)_k f_k(x)`` (SEMA, arXiv:2403.18886).

    Args:
        width: Length of a token, ``d``.
        r: Bottleneck of an adapter.
        hidden: Bottleneck of a descriptor; 0 is for a block with one unit for good, without router and descriptor.
        device: Where the units are.

    Attributes:
        frozen: Name to parameters of all frozen units, ``(K, ...)``; ``mean`` and ``deviation`` of their descriptors'
            errors are ``(K,)``.
        fresh: Name to parameters of the unit in training, ``(1, ...)``; empty if there is none.
        records: Last reconstruction errors of the unit in training, ``(n,)``.
    """

    def __init__(self, width: int, r: int, hidden: int, device: torch.device) -> None:
        """Start without units."""
        super().__init__()
        self.hidden, self.device = hidden, device
        self.shapes: dict[str, tuple[int, ...]] = {"down": (r, width), "down_bias": (r,)}
        self.shapes |= {"up": (r, width), "up_bias": (width,)}
        if hidden:
            self.shapes |= {"router": (width,), "router_bias": (), "encode": (hidden, width)}
            self.shapes |= {"encode_bias": (hidden,), "decode": (hidden, width), "decode_bias": (width,)}
        names = [*self.shapes, "mean", "deviation"] if hidden else self.shapes
        self.frozen = {name: torch.empty(0, *self.shapes.get(name, ()), device=device) for name in names}
        self.fresh = nn.ParameterDict()
        self.records = torch.empty(0, device=device)
        self._stream: Tensor | None = None
        self._pooled: Tensor | None = None

    def __len__(self) -> int:
        """Count the units."""
        return len(self.frozen["down"]) + bool(self.fresh)

    @property
    def size(self) -> int:
        """Number of scalars of one unit in training."""
        return sum(map(math.prod, self.shapes.values()))

    @property
    def size_at_inference(self) -> int:
        """Number of scalars of one unit without its descriptor, which answers nothing."""
        return sum(math.prod(shape) for name, shape in self.shapes.items() if name not in DESCRIPTOR)

    def attach(self, block: Block) -> None:
        """Stand beside the feed-forward part of a block from now on."""
        block.norm.register_forward_pre_hook(self._look)
        block.mlp.register_forward_hook(self._add)

    def _look(self, norm: nn.Module, args: tuple[Tensor]) -> None:
        self._stream = args[0]

    def _add(self, mlp: nn.Module, args: tuple[Tensor], out: Tensor) -> Tensor:
        assert self._stream is not None
        x, self._stream = self._stream, None
        return out + self.forward(x)

    def add(self, generator: torch.Generator) -> None:
        """Put a new unit in training that says nothing yet: ``W_up`` and all biases are 0, the rest is drawn."""
        for name, shape in self.shapes.items():
            drawn = torch.zeros(1, *shape, device=generator.device)
            if name != "up" and not name.endswith("_bias"):
                # Uniform within 1 / sqrt(inputs), as nn.Linear draws; a decoder stands transposed.
                bound = (shape[0] if name == "decode" else shape[-1]) ** -0.5
                drawn.uniform_(-bound, bound, generator=generator)
            self.fresh[name] = nn.Parameter(drawn.to(self.device))
        self.records = self.records[:0]

    @torch.no_grad()
    def freeze(self) -> None:
        """Put the unit in training, if there is one, among the frozen, with the statistics of its records."""
        if not self.fresh:
            return
        new: dict[str, Tensor] = {name: p.detach() for name, p in self.fresh.items()}
        if self.hidden:
            # Of two records or fewer nothing can be said: an infinite deviation makes every score 0.
            known = len(self.records) > 2
            new["mean"] = self.records.mean(0, keepdim=True) if known else self.records.new_zeros(1)
            new["deviation"] = self.records.std(0, keepdim=True) if known else self.records.new_full((1,), torch.inf)
        self.frozen = {name: torch.cat([old, new[name]]) for name, old in self.frozen.items()}
        self.fresh = nn.ParameterDict()
        self.records = self.records[:0]

    def _every(self, name: str) -> Tensor:
        """Return a parameter of all units, ``(K, ...)``."""
        return torch.cat([self.frozen[name], self.fresh[name]]) if self.fresh else self.frozen[name]

    def forward(self, x: Tensor) -> Tensor:
        """Return what the units add to the feed-forward part, ``(B, L, d)``, given the stream ``(B, L, d)``."""
        down, up, bias = self._every("down"), self._every("up"), self._every("up_bias")  # (K, r, d), (K, d)
        h = F.linear(x, down.flatten(0, 1), self._every("down_bias").flatten()).relu()  # (B, L, K r)
        if not self.hidden:
            return h @ up[0] + bias[0]
        m = x.mean(dim=1)  # (B, d)
        self._pooled = m.detach().float()
        share = F.linear(m, self._every("router"), self._every("router_bias")).softmax(-1)  # (B, K)
        h = h * share.repeat_interleave(down.shape[1], dim=1)[:, None]
        return h @ up.flatten(0, 1) + (share @ bias)[:, None]

    def errors(self, units: Mapping[str, Tensor] | nn.ParameterDict) -> Tensor:
        """Return the reconstruction errors ``(K, B)`` of the batch just seen: mean squares over ``d``, in fp32.

        Args:
            units: :attr:`fresh` or :attr:`frozen`.
        """
        assert self._pooled is not None
        with torch.autocast(self.device.type, enabled=False):
            m = self._pooled.expand(len(units["encode"]), -1, -1)  # (K, B, d)
            code = torch.baddbmm(units["encode_bias"][:, None], m, units["encode"].mT)  # (K, B, hidden)
            back = torch.baddbmm(units["decode_bias"][:, None], code, units["decode"])
            return (back - m).square().mean(-1)

    def scores(self) -> Tensor:
        """Return how odd the batch just seen is to each frozen unit: the z-score's absolute value, ``(K, B)``."""
        mean, deviation = self.frozen["mean"][:, None], self.frozen["deviation"][:, None]
        return ((self.errors(self.frozen) - mean) / deviation.clamp_min(LEAST_DEVIATION)).abs()

    def describe(self, keep: int) -> Tensor:
        """Return the mean error of the unit in training on the batch just seen, and keep the last errors.

        No gradient reaches the stream.

        Args:
            keep: Most records kept.
        """
        errors = self.errors(self.fresh)
        self.records = torch.cat([self.records, errors.detach()[0]])[-keep:]
        return errors.mean()

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Yield all tensors by name."""
        for name, value in self.frozen.items():
            yield f"frozen.{name}", value
        for name, p in self.fresh.items():
            yield f"fresh.{name}", p.detach()
        yield "records", self.records

    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what :meth:`state` yielded, as copies."""
        mine = {name: value.to(self.device, copy=True) for name, value in tensors.items()}
        self.frozen = {name: mine[f"frozen.{name}"] for name in self.frozen}
        self.fresh = nn.ParameterDict()
        for name in self.shapes:  # one by one: a dictionary would be sorted, and an optimizer counts parameters
            if f"fresh.{name}" in mine:
                self.fresh[name] = nn.Parameter(mine[f"fresh.{name}"])
        self.records = mine["records"]
