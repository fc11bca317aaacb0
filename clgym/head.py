"""A linear classifier that grows with the classes that a learner meets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from clgym.errors import RecordError


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
        return len(self.names) * (self.dim + 1)

    def grow(self, names: Sequence[str], generator: torch.Generator) -> None:
        """Add rows for the names that are new, drawn uniformly within ``1 / sqrt(dim)`` as ``nn.Linear`` draws them."""
        new = [name for name in dict.fromkeys(names) if name not in self.names]
        if new:
            drawn = torch.empty(len(new), self.dim + 1, device=generator.device)
            bound = self.dim**-0.5
            self._append(new, drawn.uniform_(-bound, bound, generator=generator).to(self.device))

    def _append(self, names: Sequence[str], rows: Tensor) -> None:
        self.names |= {name: len(self.names) + i for i, name in enumerate(names)}
        self.blocks.append(nn.Parameter(rows))
        self._sizes.append(len(names))

    def rows(self, names: Sequence[str]) -> Tensor:
        """Return the rows of classes ``(len(names), dim + 1)``, with gradient.

        Raises:
            KeyError: A class was never met; see :meth:`met`.
        """
        if not names:
            return torch.zeros(0, self.dim + 1, device=self.device)
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
        if sizes != [(len(names), self.dim + 1) for names in groups] or len(tensors) != len(groups):
            raise RecordError(
                f"Expected head rows of {self.dim + 1} values for {sum(map(len, groups))} classes; got {sizes}. "
                "Restore the state of the same agent on the same backbone."
            )
        self.blocks, self.names, self._sizes = nn.ParameterList(), {}, []
        for i, names in enumerate(groups):
            self._append(names, tensors[f"block.{i}"].detach().clone().to(self.device))
