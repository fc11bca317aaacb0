"""Classifiers that grow with the classes that a learner meets: rows that it trains, or vectors that are given."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clgym.errors import RecordError

UNMET = -1e4  # logit of a class that has no row


class GrowingHead(nn.Module):
    """One row per class: weights and, last, a bias. Classes are known by name; rows of a task lie in one block.

    Args:
        dim: Length of the features.
        device: Where the rows are.

    Example:
        >>> head = GrowingHead(3, torch.device("cpu"))
        >>> head.grow(["cat", "dog"], torch.Generator().manual_seed(0))
        >>> head.grow(["dog", "bird"], torch.Generator().manual_seed(0))
        >>> list(head.names), head.rows(["bird", "cat"]).shape
        (['cat', 'dog', 'bird'], torch.Size([2, 4]))
    """

    learns = True  # whether rows take gradients

    def __init__(self, dim: int, device: torch.device) -> None:
        """Start without classes."""
        super().__init__()
        self.dim, self.device = dim, device
        self.blocks = nn.ParameterList()
        self.names: dict[str, int] = {}
        self._sizes: list[int] = []

    def __len__(self) -> int:
        """Count the classes."""
        return len(self.names)

    @property
    def count(self) -> int:
        """Number of scalars."""
        return len(self.names) * self.width

    @property
    def width(self) -> int:
        """Length of a row."""
        return self.dim + 1

    def empty(self) -> GrowingHead:
        """Return a head of this kind without classes."""
        return GrowingHead(self.dim, self.device)

    def trained(self) -> list[nn.Parameter]:
        """Return what a learner trains beside its method."""
        return list(self.blocks)

    def classify(self, features: Tensor, rows: Tensor) -> Tensor:
        """Return logits ``(B, C)`` of features ``(B, dim)`` over rows ``(C, width)``."""
        return F.linear(features, rows[:, :-1], rows[:, -1])

    def unmet(self, images: int, classes: int) -> Tensor:
        """Return what is answered about classes none of which has a row, ``(images, classes)``."""
        return torch.full((images, classes), UNMET, device=self.device)

    def spread(self, logits: Tensor, met: Tensor) -> Tensor:
        """Return logits ``(B, C)`` of which only those ``met``, bool ``(C,)``, are given, ``(B, met)``."""
        out = logits.new_full((*logits.shape[:-1], len(met)), UNMET)
        out[..., met] = logits
        return out

    def answer(self, logits: Tensor) -> Tensor:
        """Return what a query is answered: log-probabilities ``(B, C)``."""
        return logits.log_softmax(dim=-1)

    def grow(self, names: Sequence[str], generator: torch.Generator) -> None:
        """Add rows for the names that are new, see :meth:`draw`."""
        new = [name for name in dict.fromkeys(names) if name not in self.names]
        if new:
            self._append(new, self.draw(new, generator).to(self.device))

    def draw(self, names: Sequence[str], generator: torch.Generator) -> Tensor:
        """Draw rows for new names uniformly within ``1 / sqrt(dim)``, as ``nn.Linear`` does."""
        drawn = torch.empty(len(names), self.width, device=generator.device)
        bound = self.dim**-0.5
        return drawn.uniform_(-bound, bound, generator=generator)

    def _append(self, names: Sequence[str], rows: Tensor) -> None:
        self.names |= {name: len(self.names) + i for i, name in enumerate(names)}
        self.blocks.append(nn.Parameter(rows, requires_grad=self.learns))
        self._sizes.append(len(names))

    def rows(self, names: Sequence[str]) -> Tensor:
        """Return the rows of classes ``(len(names), width)``, with gradient.

        Raises:
            KeyError: A class was never met; see :meth:`met`.
        """
        if not names:
            return torch.zeros(0, self.width, device=self.device)
        whole = torch.cat(list(self.blocks))
        return whole[torch.tensor([self.names[name] for name in names], device=self.device)]

    def met(self, names: Sequence[str]) -> Tensor:
        """Return which classes have a row, bool ``(len(names),)``."""
        return torch.tensor([name in self.names for name in names], device=self.device)

    def state(self) -> dict[str, Tensor]:
        """Return the blocks by number; the names are kept apart, they are not tensors."""
        return {f"block.{i}": block.detach() for i, block in enumerate(self.blocks)}

    @property
    def groups(self) -> list[list[str]]:
        """Names of the classes, block by block."""
        names, start, found = list(self.names), 0, []
        for size in self._sizes:
            found.append(names[start : start + size])
            start += size
        return found

    def restore(self, groups: Sequence[Sequence[str]], tensors: Mapping[str, Tensor]) -> None:
        """Start anew with blocks of these names and rows.

        Raises:
            RecordError: Names and rows do not fit each other, or the features' length.
        """
        sizes = [tuple(tensors[f"block.{i}"].shape) for i in range(len(groups)) if f"block.{i}" in tensors]
        if sizes != [(len(names), self.width) for names in groups] or len(tensors) != len(groups):
            raise RecordError(
                f"Expected head rows of {self.width} values for {sum(map(len, groups))} classes; got {sizes}. "
                "Restore the state of the same agent on the same backbone."
            )
        self.blocks, self.names, self._sizes = nn.ParameterList(), {}, []
        for i, names in enumerate(groups):
            self._append(names, tensors[f"block.{i}"].detach().clone().to(self.device))


class TargetHead(GrowingHead):
    """Classes are unit vectors that were given and never change; the logit of one is ``eta cos(f(x), s_c)``.

    Only ``eta`` is trained, by its logarithm (LingoCL, arXiv:2403.16124).

    Args:
        dim: Length of the features and the vectors.
        device: Where the vectors are.
        targets: Returns the vectors ``(n, dim)``, of length 1, of ``n`` new classes, given their names and how many
            classes came before.
        scale: ``eta`` at the start.

    Example:
        >>> head = TargetHead(2, torch.device("cpu"), lambda names, before: torch.eye(2)[: len(names)], scale=4.0)
        >>> head.grow(["cat", "dog"], torch.Generator())
        >>> head.classify(torch.tensor([[0.0, 3.0]]), head.rows(["cat", "dog"])).tolist()
        [[0.0, 4.0]]
    """

    learns = False

    def __init__(
        self, dim: int, device: torch.device, targets: Callable[[Sequence[str], int], Tensor], scale: float
    ) -> None:
        """Start without classes."""
        super().__init__(dim, device)
        self.targets, self.scale = targets, scale
        self.log_scale = nn.Parameter(torch.tensor([math.log(scale)], device=device))

    @property
    def width(self) -> int:
        """Length of a row: there is no bias."""
        return self.dim

    def empty(self) -> TargetHead:
        """Return a head of this kind without classes, its ``eta`` as at the start."""
        return TargetHead(self.dim, self.device, self.targets, self.scale)

    def trained(self) -> list[nn.Parameter]:
        """Return the logarithm of ``eta``."""
        return [self.log_scale]

    def draw(self, names: Sequence[str], generator: torch.Generator) -> Tensor:
        """Ask for the vectors of new names; nothing is drawn."""
        del generator
        return self.targets(names, len(self))

    def rows(self, names: Sequence[str]) -> Tensor:
        """Return ``eta s_c`` of classes ``(len(names), dim)``, whose gradient is that of ``eta`` alone."""
        return self.log_scale.exp() * super().rows(names)

    def classify(self, features: Tensor, rows: Tensor) -> Tensor:
        """Return logits ``(B, C)``: the cosines of features ``(B, dim)`` to the vectors, times ``eta``."""
        return F.linear(F.normalize(features, dim=-1), rows)

    def state(self) -> dict[str, Tensor]:
        """Return the blocks by number, and the logarithm of ``eta``."""
        return super().state() | {"log_scale": self.log_scale.detach()}

    def restore(self, groups: Sequence[Sequence[str]], tensors: Mapping[str, Tensor]) -> None:
        """Start anew with blocks of these names and vectors, and this ``eta``.

        Raises:
            RecordError: Names and vectors do not fit each other, or the features' length, or ``eta`` is missing.
        """
        blocks = {name: block for name, block in tensors.items() if name != "log_scale"}
        if len(blocks) == len(tensors):
            raise RecordError(
                f"Expected the scale of a head of frozen targets; got {sorted(tensors)[:3]} alone. "
                "Restore the state of the same agent with the same settings."
            )
        super().restore(groups, blocks)
        with torch.no_grad():
            self.log_scale.copy_(tensors["log_scale"])
